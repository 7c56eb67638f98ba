//! Calls, and calls again: at one store after the other until one answers.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::Client;
use crate::failure::{Effect, Failure, REASON, Reason};

impl Client {
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

    pub(super) async fn call_until<Q, A, F>(
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
}

/// When a call is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Again {
    /// If it certainly had no effect.
    WithoutEffect,
    /// It has none.
    Reads,
    /// Also if it may have had it.
    CountsOnce,
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
    use bytes::Bytes;

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
