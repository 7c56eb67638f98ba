//! A client for programs: calls any store of a cluster, and the next one if that cannot be reached.
//!
//! A call is tried at another store only if it certainly had no effect at the first, or if it
//! counts once however often it arrives ([`Client::write_once`]). Results carry the leader's store;
//! a client that has seen it goes there first for the same group's keys.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use polyraft_store::sessions::{Once, Session};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::failure::{Effect, Failure, REASON, Reason};
use crate::peers::connect_lazily;
use crate::proto::admin::admin_client::AdminClient;
use crate::proto::kv::kv_client::KvClient;
use crate::proto::kv::{
    self, Condition, Consistency, GetRequest, GetResponse, Mutation, ResponseHeader, WriteRequest,
    WriteResponse,
};

/// A connection to a cluster. Cheap to share by reference between tasks.
#[derive(Debug)]
pub struct Client {
    endpoints: Vec<(String, Channel)>,
    next: AtomicUsize,
    timeout: Duration,
}

impl Client {
    /// A client of the stores at `endpoints` (`HOST:PORT`); connects when it is used. Each call may
    /// take `timeout`.
    ///
    /// # Errors
    /// No endpoint is given, or one is no address.
    pub fn new(endpoints: &[String], timeout: Duration) -> Result<Self, String> {
        if endpoints.is_empty() {
            return Err("no endpoint is given".to_owned());
        }
        let connect = |endpoint: &String| {
            let channel =
                connect_lazily(endpoint).ok_or_else(|| format!("{endpoint:?} is no HOST:PORT"))?;
            Ok((endpoint.clone(), channel))
        };
        let endpoints = endpoints
            .iter()
            .map(connect)
            .collect::<Result<_, String>>()?;
        Ok(Self {
            endpoints,
            next: AtomicUsize::new(0),
            timeout,
        })
    }

    /// From now on each call may take `timeout`.
    pub const fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Calls `call` at one store after the other until one answers or refuses. `reads`: the call
    /// changes nothing.
    ///
    /// # Errors
    /// The refusal, or that no store could be reached in time.
    pub async fn call<Q, A, F>(
        &self,
        reads: bool,
        message: Q,
        call: impl Fn(Channel, Request<Q>) -> F,
    ) -> Result<A, Failure>
    where
        Q: Clone,
        F: Future<Output = Result<tonic::Response<A>, Status>>,
    {
        let again = if reads {
            Again::Reads
        } else {
            Again::WithoutEffect
        };
        let deadline = Instant::now() + self.timeout;
        self.call_until(deadline, again, message, call).await
    }

    async fn call_until<Q, A, F>(
        &self,
        deadline: Instant,
        again: Again,
        message: Q,
        call: impl Fn(Channel, Request<Q>) -> F,
    ) -> Result<A, Failure>
    where
        Q: Clone,
        F: Future<Output = Result<tonic::Response<A>, Status>>,
    {
        let reads = again == Again::Reads;
        let mut tried = 0;
        // An attempt may have had its effect.
        let mut in_doubt = false;
        // Endpoints that could not be reached, and why.
        let mut unreachable = BTreeMap::new();
        loop {
            let at = self.next.load(Ordering::Relaxed) % self.endpoints.len();
            let (endpoint, channel) = &self.endpoints[at];
            let remaining = deadline.saturating_duration_since(Instant::now());
            let mut request = Request::new(message.clone());
            request.set_timeout(remaining.max(Duration::from_millis(1)));
            // A little more than the server's own deadline: its reason is worth waiting for.
            let answer = tokio::time::timeout(
                remaining + Duration::from_millis(100),
                call(channel.clone(), request),
            );
            let failure = match answer.await {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                Ok(Err(status)) => refusal(endpoint, &status, reads, &mut unreachable),
                Err(_) => silence(endpoint, reads),
            };
            tried += 1;
            // The next call begins elsewhere, unless someone else has moved on already.
            let _ = self
                .next
                .compare_exchange(at, at + 1, Ordering::Relaxed, Ordering::Relaxed);
            in_doubt |= failure.effect == Effect::Unknown;
            let once = again == Again::CountsOnce;
            let more = failure.is_worth_another_try() || (once && failure.is_worth_a_copy());
            let failure = match in_doubt {
                true => failure.of_unknown_effect(),
                false => failure,
            };
            // A store that waits to join: another one may serve, but waiting does not help.
            let elsewhere =
                failure.reason == Reason::NotInitialised && tried < self.endpoints.len();
            if !(more || elsewhere) || Instant::now() >= deadline {
                return Err(self.nobody(failure, &unreachable));
            }
            if tried >= self.endpoints.len() {
                // Who is in doubt and may ask again does so as long as there is time.
                if tried >= 3 * self.endpoints.len() && !(once && in_doubt) {
                    return Err(self.nobody(failure, &unreachable));
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }

    /// If no endpoint could be reached, all of them are named instead of the last.
    fn nobody(&self, failure: Failure, unreachable: &BTreeMap<String, String>) -> Failure {
        let all = |(endpoint, _): &(String, Channel)| unreachable.contains_key(endpoint);
        if failure.reason != Reason::Unreachable || !self.endpoints.iter().all(all) {
            return failure;
        }
        let each: Vec<String> = unreachable
            .iter()
            .map(|(endpoint, why)| format!("{endpoint}: {why}"))
            .collect();
        let message = format!(
            "no store can be reached; tried {} (--endpoints or POLYRAFT_ENDPOINTS says where the stores are)",
            each.join(", ")
        );
        Failure { message, ..failure }
    }

    /// Reads a key.
    ///
    /// # Errors
    /// See [`Client::call`].
    pub async fn get(&self, key: Bytes, stale: bool, group: u64) -> Result<GetResponse, Failure> {
        let consistency = if stale {
            Consistency::Stale
        } else {
            Consistency::Linearizable
        };
        let request = GetRequest {
            key,
            consistency: consistency.into(),
            group,
        };
        self.call(true, request, |channel, request| async move {
            KvClient::new(channel)
                .max_decoding_message_size(usize::MAX)
                .get(request)
                .await
        })
        .await
    }

    /// An atomic write that counts once: it is sent again, also when nobody knows what became of
    /// it, until there is an answer or the time of the call is over. `session` is one with the
    /// group that holds the keys; it is renewed if the group does not know it and the write had
    /// certainly no effect.
    ///
    /// # Errors
    /// See [`Client::call`]; [`Reason::Busy`]: too many writes of the session are open.
    pub async fn write_once(
        &self,
        session: &mut Session,
        request: WriteRequest,
    ) -> Result<WriteResponse, Failure> {
        let deadline = Instant::now() + self.timeout;
        loop {
            let once = session.number().ok_or_else(|| {
                Failure::new(Reason::Busy, "too many writes of the session are open")
            })?;
            let request = WriteRequest {
                session: Some(once.into()),
                ..request.clone()
            };
            let write =
                |channel, request| async move { KvClient::new(channel).write(request).await };
            let again = Again::CountsOnce;
            let result = self.call_until(deadline, again, request, write).await;
            session.end(once.sequence);
            let Err(failure) = result else { return result };
            match failure.index {
                Some(index) if failure.effect == Effect::None && Instant::now() < deadline => {
                    session.renew(once.session, index);
                }
                _ => return Err(failure),
            }
        }
    }

    /// Writes one key, or makes it absent.
    ///
    /// # Errors
    /// See [`Client::call`].
    pub async fn put(
        &self,
        key: Bytes,
        value: Option<Bytes>,
        group: u64,
    ) -> Result<ResponseHeader, Failure> {
        let request = put_request(key, value, group);
        Ok(self.write(request).await?.header.unwrap_or_default())
    }

    /// Writes `value` if the key has the value `expected` (none: is absent); whether it did.
    ///
    /// # Errors
    /// See [`Client::call`].
    pub async fn cas(
        &self,
        key: Bytes,
        expected: Option<Bytes>,
        value: Bytes,
        group: u64,
    ) -> Result<bool, Failure> {
        let request = cas_request(key, expected, value, group);
        Ok(self.write(request).await?.applied)
    }

    /// An atomic write.
    ///
    /// # Errors
    /// See [`Client::call`].
    pub async fn write(&self, request: WriteRequest) -> Result<WriteResponse, Failure> {
        self.call(false, request, |channel, request| async move {
            KvClient::new(channel).write(request).await
        })
        .await
    }

    /// A call of the admin interface.
    ///
    /// # Errors
    /// See [`Client::call`].
    pub async fn admin<Q, A, F>(
        &self,
        reads: bool,
        message: Q,
        call: impl Fn(AdminClient<Channel>, Request<Q>) -> F,
    ) -> Result<A, Failure>
    where
        Q: Clone,
        F: Future<Output = Result<tonic::Response<A>, Status>>,
    {
        self.call(reads, message, |channel, request| {
            call(
                AdminClient::new(channel).max_decoding_message_size(usize::MAX),
                request,
            )
        })
        .await
    }
}

/// When a call is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Again {
    /// If it certainly had no effect.
    WithoutEffect,
    /// It has none.
    Reads,
    /// Also if it may have had it.
    CountsOnce,
}

/// The request of [`Client::put`].
#[must_use]
pub fn put_request(key: Bytes, value: Option<Bytes>, group: u64) -> WriteRequest {
    WriteRequest {
        mutations: vec![Mutation { key, value }],
        group,
        ..WriteRequest::default()
    }
}

/// The request of [`Client::cas`].
#[must_use]
pub fn cas_request(key: Bytes, expected: Option<Bytes>, value: Bytes, group: u64) -> WriteRequest {
    let condition = Condition {
        key: key.clone(),
        value: expected,
    };
    WriteRequest {
        conditions: vec![condition],
        ..put_request(key, Some(value), group)
    }
}

impl From<Once> for kv::Session {
    fn from(once: Once) -> Self {
        Self {
            client: once.session.client.get(),
            since: once.session.since,
            sequence: once.sequence,
            acknowledged: once.acknowledged,
        }
    }
}

/// What a status of a store, or of the connection to it, says.
fn refusal(
    endpoint: &str,
    status: &Status,
    reads: bool,
    unreachable: &mut BTreeMap<String, String>,
) -> Failure {
    let failure = Failure::from_status(status, reads);
    if status.metadata().contains_key(REASON) {
        return failure;
    }
    if status.code() == Code::Unimplemented {
        // Before it joins, a store serves nothing but what is needed to join.
        let text = format!(
            "{endpoint} serves no keys and groups yet: the cluster has not been initialised; \
             run `polyraft init` once all stores are started"
        );
        return Failure::new(Reason::NotInitialised, text);
    }
    let why = describe(status);
    if failure.reason == Reason::Unreachable {
        unreachable.insert(endpoint.to_owned(), why.clone());
    }
    Failure {
        message: format!("{endpoint}: {why}"),
        ..failure
    }
}

fn silence(endpoint: &str, reads: bool) -> Failure {
    let failure = Failure::new(
        Reason::Timeout,
        format!("{endpoint} did not answer in time"),
    );
    if reads {
        failure
    } else {
        failure.of_unknown_effect()
    }
}

/// A status with the innermost of its causes: "connection refused" helps more than "transport
/// error".
fn describe(status: &Status) -> String {
    let mut innermost = None;
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        innermost = Some(error.to_string());
        cause = error.source();
    }
    match (innermost, status.message()) {
        (Some(cause), message) => format!("{message} ({cause})"),
        (None, "") => format!("{:?} without a reason", status.code()),
        (None, message) => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_waits_says_so() {
        let failure = refusal(
            "a:1",
            &Status::unimplemented(""),
            false,
            &mut BTreeMap::new(),
        );
        assert_eq!(failure.reason, Reason::NotInitialised);
        assert_eq!(failure.effect, Effect::None);
        assert!(failure.message.contains("polyraft init"), "{failure:?}");
        // What says nothing is told by its code.
        let failure = refusal("a:1", &Status::unknown(""), false, &mut BTreeMap::new());
        assert_eq!(failure.effect, Effect::Unknown);
        assert!(failure.message.contains("Unknown"), "{failure:?}");
    }

    #[tokio::test]
    async fn all_that_cannot_be_reached_are_named() {
        // Ports that were free a moment ago and are not listened on.
        let free = || {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
            listener.local_addr().expect("an address").to_string()
        };
        let endpoints = [free(), free()];
        let client = Client::new(&endpoints, Duration::from_secs(30)).expect("a client");
        let failure = client.put(Bytes::from("k"), None, 0).await;
        let failure = failure.expect_err("nobody is there");
        assert_eq!(
            (failure.reason, failure.effect),
            (Reason::Unreachable, Effect::None)
        );
        for words in [&endpoints[0], &endpoints[1], "--endpoints", "refused"] {
            assert!(failure.message.contains(words), "no {words}: {failure:?}");
        }
    }
}
