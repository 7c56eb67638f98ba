//! One request of a client, straight to the store that leads.

use std::time::Duration;

use bytes::Bytes;
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::Target;
use crate::client::{cas_request, kv_client, put_request};
use crate::failure::{Failure, Reason};
use crate::proto::kv::{GetRequest, RangeHint, ResponseHeader, ScanRequest, WriteRequest};

/// Pairs of a scan at most.
const SCAN_PAIRS: u32 = 100;

/// What to ask for.
#[derive(Clone, Debug)]
pub(super) enum Action {
    Get,
    /// Some pairs from the key on.
    Scan,
    Put(Bytes),
    Delete,
    Cas {
        expected: Option<Bytes>,
        value: Bytes,
    },
}

/// What was answered: a get's value, or whether a cas wrote.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) value: Option<Bytes>,
    pub(super) applied: bool,
    headers: Vec<ResponseHeader>,
}

/// Asks for a key of a group, by its name there.
pub(super) async fn send(
    target: &Target,
    group: usize,
    name: &str,
    action: Action,
    bound: Duration,
) -> Result<Answer, Failure> {
    let reads = matches!(action, Action::Get | Action::Scan);
    let key = target.key(group, name);
    let Some((hint, channel)) = target.way(&key) else {
        return Err(Failure::new(Reason::NoGroup, "no store is known"));
    };
    let answer = ask(channel, key, action, hint, bound);
    match tokio::time::timeout(bound + Duration::from_millis(200), answer).await {
        Ok(Ok(answer)) => {
            for header in &answer.headers {
                target.learn(&header.ranges);
            }
            Ok(answer)
        }
        Ok(Err(status)) => Err(Failure::from_status(&status, reads)),
        Err(_) => {
            let failure = Failure::new(Reason::Timeout, "no answer in time");
            Err(if reads {
                failure
            } else {
                failure.of_unknown_effect()
            })
        }
    }
}

async fn ask(
    channel: Channel,
    key: Bytes,
    action: Action,
    hint: RangeHint,
    bound: Duration,
) -> Result<Answer, Status> {
    let mut client = kv_client(channel);
    let hint = Some(hint);
    let write = match action {
        Action::Get => {
            let request = GetRequest {
                key,
                hint,
                ..GetRequest::default()
            };
            let answer = client.get(within(request, bound)).await?.into_inner();
            return Ok(Answer {
                value: answer.value,
                applied: false,
                headers: answer.header.into_iter().collect(),
            });
        }
        Action::Scan => {
            let request = ScanRequest {
                start: key,
                limit: Some(SCAN_PAIRS),
                hint,
                ..ScanRequest::default()
            };
            let answer = client.scan(within(request, bound)).await?.into_inner();
            let parts = answer.parts.into_iter();
            return Ok(Answer {
                headers: parts.filter_map(|part| part.header).collect(),
                ..Answer::default()
            });
        }
        Action::Put(value) => put_request(key, Some(value), 0),
        Action::Delete => put_request(key, None, 0),
        Action::Cas { expected, value } => cas_request(key, expected, value, 0),
    };
    let request = WriteRequest { hint, ..write };
    let answer = client.write(within(request, bound)).await?.into_inner();
    Ok(Answer {
        value: None,
        applied: answer.applied,
        headers: answer.header.into_iter().collect(),
    })
}

fn within<T>(message: T, bound: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(bound);
    request
}
