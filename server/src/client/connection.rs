//! Calls, and calls again: at one store after the other until one answers.

use std::collections::{BTreeMap, BTreeSet};
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
        self.call_until(deadline, again, &Plain(message), call)
            .await
    }

    pub(super) async fn call_until<Q, A, F>(
        &self,
        deadline: Instant,
        again: Again,
        asking: &impl Asking<Q, A>,
        call: impl Fn(Channel, Request<Q>) -> F,
    ) -> Result<A, Failure>
    where
        F: Future<Output = Result<tonic::Response<A>, Status>>,
    {
        let reads = again == Again::Reads;
        let mut tried = Tried::default();
        loop {
            let (straight, message) = asking.attempt();
            let (endpoint, channel, at) = self.next_store(straight, &mut tried);
            let remaining = deadline.saturating_duration_since(Instant::now());
            let mut request = Request::new(message);
            request.set_timeout(remaining.max(Duration::from_millis(1)));
            // A little more than the server's own deadline: its reason is worth waiting for.
            let answer = tokio::time::timeout(
                remaining + Duration::from_millis(100),
                call(channel, request),
            );
            let failure = match answer.await {
                Ok(Ok(answer)) => {
                    let answer = answer.into_inner();
                    asking.answered(&answer);
                    return Ok(answer);
                }
                Ok(Err(status)) => refusal(&endpoint, &status, reads, &mut tried.unreachable),
                Err(_) => silence(&endpoint, reads),
            };
            asking.failed(&failure, at.is_none().then_some(&endpoint));
            if let Some(at) = at {
                tried.endpoints += 1;
                // The next call begins elsewhere, unless someone else has moved on already.
                let _ =
                    self.next
                        .compare_exchange(at, at + 1, Ordering::Relaxed, Ordering::Relaxed);
            }
            tried.in_doubt |= failure.effect == Effect::Unknown;
            let failure = self.judge(failure, again, &tried, deadline)?;
            let round = tried.endpoints >= self.endpoints.len() && at.is_some();
            if round && failure.reason != Reason::RangeChanged {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }

    /// The store to ask: straight the one that is named, once, else the next endpoint, with its
    /// number.
    fn next_store(
        &self,
        straight: Option<(String, Channel)>,
        tried: &mut Tried,
    ) -> (String, Channel, Option<usize>) {
        if let Some((address, channel)) = straight
            && tried.straight.insert(address.clone())
        {
            return (address, channel, None);
        }
        let at = self.next.load(Ordering::Relaxed);
        let (endpoint, channel) = &self.endpoints[at % self.endpoints.len()];
        (endpoint.clone(), channel.clone(), Some(at))
    }

    /// Whether the call is tried again, or ends with the failure.
    fn judge(
        &self,
        failure: Failure,
        again: Again,
        tried: &Tried,
        deadline: Instant,
    ) -> Result<Failure, Failure> {
        let once = again == Again::CountsOnce;
        let more = failure.is_worth_another_try() || (once && failure.is_worth_a_copy());
        let failure = match tried.in_doubt {
            true => failure.of_unknown_effect(),
            false => failure,
        };
        // A store that waits to join: another one may serve, but waiting does not help.
        let elsewhere =
            failure.reason == Reason::NotInitialised && tried.endpoints < self.endpoints.len();
        // Who is in doubt and may ask again does so as long as there is time.
        let patient = once && tried.in_doubt;
        let enough = tried.endpoints >= 3 * self.endpoints.len() && !patient;
        if !(more || elsewhere) || enough || Instant::now() >= deadline {
            return Err(self.nobody(failure, &tried.unreachable));
        }
        Ok(failure)
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

/// What was tried so far.
#[derive(Debug, Default)]
struct Tried {
    /// Attempts at endpoints.
    endpoints: usize,
    /// Other stores.
    straight: BTreeSet<String>,
    /// An attempt may have had its effect.
    in_doubt: bool,
    /// Endpoints that could not be reached, and why.
    unreachable: BTreeMap<String, String>,
}

/// A call, attempt by attempt.
pub(super) trait Asking<Q, A> {
    /// The store to go straight to, if one is known, and what it is asked.
    fn attempt(&self) -> (Option<(String, Channel)>, Q);
    /// The answer that ends it.
    fn answered(&self, answer: &A);
    /// An attempt failed, `straight` at this store or at an endpoint.
    fn failed(&self, failure: &Failure, straight: Option<&String>);
}

/// The same at every store.
pub(super) struct Plain<Q>(pub(super) Q);

impl<Q: Clone, A> Asking<Q, A> for Plain<Q> {
    fn attempt(&self) -> (Option<(String, Channel)>, Q) {
        (None, self.0.clone())
    }

    fn answered(&self, _answer: &A) {}

    fn failed(&self, _failure: &Failure, _straight: Option<&String>) {}
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
