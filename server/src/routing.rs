//! From a request to the store that leads its group: any store answers, by forwarding.
//!
//! A forwarded request carries a mark and is never forwarded again: the store that has the client's
//! request goes on looking until the client's deadline. It tries again only what certainly had no
//! effect.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use polyraft_core::RoleName;
use polyraft_multiraft::{GroupId, Reject, Responder};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout_at};
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::directory::{Named, Route};
use crate::failure::{Effect, Failure, Reason};
use crate::owner::Aim;
use crate::server::Server;

/// Marks a forwarded request.
const FORWARDED: &str = "polyraft-forwarded";
/// For a client that gives no deadline.
const DEADLINE: Duration = Duration::from_secs(5);
/// No client gets more: a request that is forgotten must not stay for ever.
const DEADLINE_MAX: Duration = Duration::from_secs(120);
/// First and last pause between two attempts.
pub(crate) const PAUSE: (Duration, Duration) =
    (Duration::from_millis(10), Duration::from_millis(200));

/// How a request may be treated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    /// When the answer must be on its way.
    pub(crate) deadline: Instant,
    /// Another store has the client's request and looks for the leader.
    pub(crate) forwarded: bool,
    /// Changes nothing, so that trying again never harms.
    pub(crate) reads: bool,
    /// Counts once, so that trying again does not harm either.
    pub(crate) once: bool,
}

impl Call {
    /// What the metadata of a request say.
    pub(crate) fn new(metadata: &MetadataMap, reads: bool) -> Self {
        let asked = metadata
            .get("grpc-timeout")
            .and_then(|value| parse_timeout(value.to_str().ok()?));
        let bound = asked.unwrap_or(DEADLINE).min(DEADLINE_MAX);
        // A tenth is kept for the way back, so that the reason arrives and not the client's own
        // timeout.
        let deadline = Instant::now() + bound.mul_f64(0.9);
        Self {
            deadline,
            forwarded: metadata.contains_key(FORWARDED),
            reads,
            once: false,
        }
    }

    fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// A request to another store under this one's deadline.
    pub(crate) fn forward<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request
            .metadata_mut()
            .insert(FORWARDED, tonic::metadata::MetadataValue::from_static("1"));
        request.set_timeout(self.remaining().max(Duration::from_millis(1)));
        request
    }
}

/// The `grpc-timeout` header: up to eight digits and a unit.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let count: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

impl Server {
    /// Runs `local` if this store leads the group, else `remote` at the store that does.
    pub(crate) async fn at_leader<T, L, R>(
        &self,
        group: u64,
        call: Call,
        local: impl Fn() -> L,
        remote: impl Fn(Channel) -> R,
    ) -> Result<T, Failure>
    where
        L: Future<Output = Result<T, Failure>>,
        R: Future<Output = Result<T, Status>>,
    {
        self.at_leader_unless(group, || false, call, local, remote)
            .await
    }

    /// The same, but gives up as [`Reason::RangeChanged`] when after a failure the group is `outdated`.
    pub(crate) async fn at_leader_unless<T, L, R>(
        &self,
        group: u64,
        outdated: impl Fn() -> bool,
        call: Call,
        local: impl Fn() -> L,
        remote: impl Fn(Channel) -> R,
    ) -> Result<T, Failure>
    where
        L: Future<Output = Result<T, Failure>>,
        R: Future<Output = Result<T, Status>>,
    {
        let mut pause = PAUSE.0;
        let mut hint = None;
        let mut failed = BTreeSet::new();
        // An attempt may have had its effect.
        let mut in_doubt = false;
        loop {
            let target = if call.forwarded {
                Some(self.me)
            } else {
                self.pick(group, hint, &failed)
            };
            let result = match target {
                Some(store) if store == self.me => local().await,
                Some(store) => self.ask_store(store, call, &remote).await,
                None => Err(Failure::new(
                    Reason::NoGroup,
                    format!("group {} is nowhere to be found", Named(group)),
                )),
            };
            let failure = match result {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            self.learn_ranges(&failure.ranges);
            in_doubt |= !call.reads && failure.effect == Effect::Unknown;
            let failure = doubtful(failure, in_doubt);
            let again = is_worth_another_try(&failure, call);
            if call.forwarded || !again {
                return Err(if call.forwarded {
                    failure
                } else {
                    self.explain(group, failure)
                });
            }
            if outdated() {
                return Err(doubtful(no_longer_owner(group), in_doubt));
            }
            let named = failure
                .leader
                .filter(|leader| Some(*leader) != target && !failed.contains(leader));
            if let Some(target) = target {
                failed.insert(target);
            }
            hint = named;
            if hint.is_none() {
                // Nobody is named: wait for an election, and ask all again then.
                let next = Instant::now() + pause;
                if next >= call.deadline {
                    return Err(doubtful(self.out_of_time(group), in_doubt));
                }
                sleep_until(next).await;
                pause = (pause * 2).min(PAUSE.1);
                if self.pick(group, None, &failed).is_none() {
                    failed.clear();
                    self.refresh_group(group, call).await;
                    if outdated() {
                        return Err(doubtful(no_longer_owner(group), in_doubt));
                    }
                }
            }
        }
    }

    pub(crate) async fn ask_store<T, R>(
        &self,
        store: u64,
        call: Call,
        remote: &impl Fn(Channel) -> R,
    ) -> Result<T, Failure>
    where
        R: Future<Output = Result<T, Status>>,
    {
        let Some(channel) = self.peers.channel(store) else {
            return Err(Failure::new(
                Reason::NoGroup,
                format!("the address of store {store} is not known"),
            ));
        };
        // The other store answers by this deadline; a little more for an answer on its way.
        let patience = call.deadline + Duration::from_millis(20);
        match timeout_at(patience, remote(channel)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(status)) => Err(Failure::from_status(&status, call.reads)),
            Err(_) => {
                let failure = Failure::new(
                    Reason::Timeout,
                    format!("store {store} did not answer in time"),
                );
                Err(if call.reads {
                    failure
                } else {
                    failure.of_unknown_effect()
                })
            }
        }
    }

    /// The store to ask next: the one named, the leader as known here, then members that can be
    /// heard.
    fn pick(&self, group: u64, hint: Option<u64>, failed: &BTreeSet<u64>) -> Option<u64> {
        if hint.is_some() {
            return hint;
        }
        // The usual case costs one look-up.
        if failed.is_empty() && self.leads(group) {
            return Some(self.me);
        }
        let mut candidates = Vec::new();
        if let Some(summary) = self.handle.summary(GroupId(group)) {
            if summary.basic.soft_state.role == RoleName::Leader {
                candidates.push(self.me);
            }
            candidates.extend(summary.leader_store.map(|store| store.0));
        }
        if let Some(route) = self.route_of_group(group) {
            let connected = self.peers.connected();
            candidates.push(route.leader);
            candidates.extend(
                route
                    .stores
                    .iter()
                    .filter(|store| connected.contains(store)),
            );
            candidates.extend(&route.stores);
        }
        candidates
            .into_iter()
            .find(|store| *store != 0 && !failed.contains(store))
    }

    /// Whether this store leads `group` now, as far as its replica has said.
    pub(crate) fn leads(&self, group: u64) -> bool {
        let summary = self.handle.summary(GroupId(group));
        summary.is_some_and(|summary| summary.basic.soft_state.role == RoleName::Leader)
    }

    /// Where `group` is, as far as known: this store's own replica knows best.
    pub(crate) fn route_of_group(&self, group: u64) -> Option<Arc<Route>> {
        match self.handle.descriptor(GroupId(group)) {
            // One without data knows nothing yet.
            Some(descriptor) if descriptor.members.is_empty() => self.directory.of_group(group),
            Some(descriptor) => Some(Arc::new(Route::from(&*descriptor))),
            None => self.directory.of_group(group),
        }
    }

    /// The group that a request is about: as this store has in mind, else as the directory says, else as
    /// any other store does.
    pub(crate) async fn route(&self, call: Call, aim: Aim<'_>) -> Result<Arc<Route>, Failure> {
        let look_up = || self.owner_known_here(aim);
        let mut pause = PAUSE.0;
        loop {
            if let Some(route) = look_up() {
                return Ok(route);
            }
            self.learn_from_directory(aim, call).await;
            if let Some(route) = look_up() {
                return Ok(route);
            }
            self.refresh_routes(call).await;
            if let Some(route) = look_up() {
                return Ok(route);
            }
            if call.forwarded || Instant::now() + pause >= call.deadline {
                let text = "no group holds this key: either nobody has run `polyraft init`, or the group of its range was destroyed";
                return Err(Failure::new(Reason::NotInitialised, text));
            }
            sleep_until(Instant::now() + pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    /// What went wrong, seen from the group: a lost quorum is the cause behind many symptoms.
    fn explain(&self, group: u64, failure: Failure) -> Failure {
        let symptom = matches!(
            failure.reason,
            Reason::Ambiguous
                | Reason::Timeout
                | Reason::NotLeader
                | Reason::NoGroup
                | Reason::Unreachable
        );
        match self.lost_quorum(group) {
            Some(message) if symptom => Failure {
                reason: Reason::NoQuorum,
                message,
                ..failure
            },
            _ => failure,
        }
    }

    /// No leader was found, or it did not answer, before the deadline.
    pub(crate) fn out_of_time(&self, group: u64) -> Failure {
        match self.lost_quorum(group) {
            Some(message) => Failure::new(Reason::NoQuorum, message),
            None => Failure::new(
                Reason::Timeout,
                format!(
                    "no leader of group {} answered in time; try again",
                    Named(group)
                ),
            ),
        }
    }

    /// Says so if fewer than a majority of the group's stores can be heard from here.
    fn lost_quorum(&self, group: u64) -> Option<String> {
        let route = self.route_of_group(group)?;
        if route.stores.is_empty() {
            // A replica that waits for its first snapshot knows no members.
            return None;
        }
        let connected = self.peers.connected();
        let (up, down): (Vec<u64>, Vec<u64>) = route
            .stores
            .iter()
            .partition(|store| **store == self.me || connected.contains(store));
        let needed = route.stores.len() / 2 + 1;
        (up.len() < needed).then(|| {
            format!(
                "no quorum: group {} needs {needed} of its stores {:?}, and {down:?} cannot be reached from store {}",
                Named(group), route.stores, self.me
            )
        })
    }

    /// Asks the host and waits for its answer until the deadline. `reads` decides what a missing
    /// answer means.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        group: u64,
        call: Call,
        request: impl FnOnce(Responder<Result<T, Reject>>),
    ) -> Result<T, Failure> {
        let (answer, answered) = oneshot::channel();
        request(Responder::new(
            || Err(Reject::Ambiguous),
            // Nobody waits any more if the caller's time is over.
            move |result| drop(answer.send(result)),
        ));
        match timeout_at(call.deadline, answered).await {
            Ok(Ok(result)) => result.map_err(|reject| {
                let failure = Failure::from(reject);
                if call.reads {
                    Failure {
                        effect: Effect::None,
                        ..failure
                    }
                } else {
                    failure
                }
            }),
            Ok(Err(_)) => Err(Failure::from(Reject::Ambiguous)),
            Err(_) if call.reads => Err(self.out_of_time(group)),
            Err(_) => Err(self.out_of_time(group).of_unknown_effect()),
        }
    }
}

/// What does no harm may be tried again after anything that passes.
fn is_worth_another_try(failure: &Failure, call: Call) -> bool {
    // Whoever owns the keys now is not found among the members of this group.
    if failure.reason == Reason::RangeChanged {
        return false;
    }
    let harmless = call.reads || call.once;
    let broken = call.reads && failure.reason == Reason::Internal;
    failure.is_worth_another_try() || broken || (harmless && failure.is_worth_a_copy())
}

fn no_longer_owner(group: u64) -> Failure {
    let text = format!("group {group} does not own the keys any more; try again");
    Failure::new(Reason::RangeChanged, text)
}

/// What an attempt without effect says of the whole request, of which another attempt may have had
/// one.
pub(crate) fn doubtful(failure: Failure, in_doubt: bool) -> Failure {
    if in_doubt {
        failure.of_unknown_effect()
    } else {
        failure
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        assert_eq!(parse_timeout("5S"), Some(Duration::from_secs(5)));
        assert_eq!(parse_timeout("1500m"), Some(Duration::from_millis(1500)));
        assert_eq!(
            parse_timeout("99999999H"),
            Some(Duration::from_secs(99_999_999 * 3600))
        );
        for wrong in ["", "S", "5", "5x", "123456789S", "-1S", "5é"] {
            assert_eq!(parse_timeout(wrong), None, "{wrong}");
        }
    }
}
