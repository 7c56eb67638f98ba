//! Merges: driven by whichever store is asked, and taken over where nobody drives them any more.
//!
//! What is to be done when is decided by [`Merging`], which looks before each step; here are the steps,
//! each at the leader of the group that it concerns. Nothing of a merge is kept anywhere but in the
//! logs of the two groups, so any number of stores may drive the same merge, and any of them may stop.
//!
//! A frozen group serves nobody. Therefore nothing is frozen while a member of it cannot be heard, and
//! what is not finished soon is undone. The store that leads a frozen group of which no driver was heard
//! for a while becomes one itself: it tries to finish the merge, and then to undo it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use polyraft_core::EntryId;
use polyraft_multiraft::{
    GroupDescriptor, GroupId, MergeAnswer, MergeFailure, MergeStep, Merging, RangeCommand,
};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tonic::Status;

use super::view;
use crate::client::Route;
use crate::failure::{Failure, Reason};
use crate::owner::Aim;
use crate::proto::admin::admin_client::AdminClient;
use crate::proto::admin::internal_client::InternalClient;
use crate::proto::admin::{
    ChangeRangeRequest, DescribeGroupRequest, LookAtRangeRequest, LookAtRangeResponse,
    MergeRangesRequest, MergeRangesResponse, SettleRangeRequest,
};
use crate::routing::{Call, PAUSE};
use crate::server::{Server, futures_join};

/// Of a frozen group no driver was heard for so long: its merge is taken over.
const ABANDONED: Duration = Duration::from_secs(5);
/// How long who takes over tries to finish a merge before it is undone.
const TAKE_OVER_BOUND: Duration = Duration::from_secs(5);
/// How long a group may be frozen before its merge is undone.
const FROZEN_BOUND: Duration = Duration::from_secs(10);
/// How long a driver tries to undo a merge. Whoever leads the frozen group goes on.
const UNDO_BOUND: Duration = Duration::from_secs(10);
/// Bound for one step.
const STEP_BOUND: Duration = Duration::from_secs(3);
/// Bound for asking one store whether it has a replica.
const PRESENCE_BOUND: Duration = Duration::from_secs(1);
/// The part of a caller's time after which a merge is given up; in the rest it is undone.
const PATIENT_PART: f64 = 0.6;

/// When drivers of merges of groups that this store leads were heard last.
#[derive(Debug, Default)]
pub(crate) struct Driven {
    heard: Mutex<BTreeMap<u64, Instant>>,
    /// Merges that this store has taken over.
    taken: Mutex<BTreeSet<u64>>,
}

impl Driven {
    fn hear(&self, group: u64) {
        self.heard.lock().insert(group, Instant::now());
    }

    /// Forgets all other groups than these.
    fn keep(&self, frozen: &BTreeSet<u64>) {
        self.heard.lock().retain(|group, _| frozen.contains(group));
    }

    /// Whether the merge of a frozen group is to be taken over now. The first time that it is seen its driver
    /// has time to be heard.
    fn take(&self, group: u64, now: Instant) -> bool {
        let heard = *self.heard.lock().entry(group).or_insert(now);
        now.duration_since(heard) >= ABANDONED && self.taken.lock().insert(group)
    }

    fn release(&self, group: u64) {
        self.hear(group);
        self.taken.lock().remove(&group);
    }
}

/// A group as its leader sees it.
#[derive(Clone, Debug)]
pub(super) struct Look {
    pub(super) descriptor: GroupDescriptor,
    blocked: Blocked,
}

/// What keeps a group from being merged now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Blocked {
    /// Empty: nothing.
    why: String,
    /// It does not pass by itself.
    lasting: bool,
}

impl Look {
    pub(super) fn to_response(&self) -> LookAtRangeResponse {
        LookAtRangeResponse {
            descriptor: self.descriptor.encode(),
            blocked: self.blocked.why.clone(),
            lasting: self.blocked.lasting,
        }
    }

    fn from_response(response: LookAtRangeResponse) -> Result<Self, Status> {
        let descriptor = GroupDescriptor::decode(&response.descriptor);
        Ok(Self {
            descriptor: descriptor.map_err(|error| Status::internal(error.to_string()))?,
            blocked: Blocked {
                why: response.blocked,
                lasting: response.lasting,
            },
        })
    }
}

/// One merge, as this store drives it.
struct Drive {
    merging: Merging,
    right: GroupId,
    give_up_at: Instant,
    given_up: bool,
    /// The right group was not frozen as far as was seen, and nobody was asked to freeze it.
    never_froze: bool,
    frozen_since: Option<Instant>,
    /// What keeps the right group from being merged, as its leader said last, and the left one.
    blocked: [Blocked; 2],
    /// What stood in the way last.
    why: String,
}

impl Server {
    /// `MergeRanges` as any store answers it.
    pub(super) async fn merge_ranges(
        self: &Arc<Self>,
        request: MergeRangesRequest,
        call: Call,
    ) -> Result<MergeRangesResponse, Failure> {
        let (left, right) = match self.find_neighbours(request, call).await? {
            Neighbours::Apart(left, right) => (left, right),
            Neighbours::United(group) => {
                return Ok(MergeRangesResponse {
                    group: Some(view::group(&group, None)),
                    merged: 0,
                });
            }
        };
        let Some(range) = right.range else {
            return Err(no_range(right.group));
        };
        let merging = Merging::new(left.group, right.group, range.start);
        let patience = call.deadline.saturating_duration_since(Instant::now());
        let give_up_at = Instant::now() + patience.mul_f64(PATIENT_PART);
        let drive = Drive::new(merging, right.group, give_up_at);
        let server = Arc::clone(self);
        // Whoever asked may go away: it is finished or undone all the same.
        let driving = tokio::spawn(async move { server.drive(drive).await });
        let unknown = |text: &str| Failure::new(Reason::Timeout, text).of_unknown_effect();
        let merged = match timeout_at(call.deadline, driving).await {
            Ok(Ok(result)) => result?,
            Ok(Err(_)) => return Err(unknown("the store stopped while it merged them")),
            Err(_) => {
                return Err(unknown(
                    "the merge is not undone in time, and goes on being undone",
                ));
            }
        };
        Ok(MergeRangesResponse {
            group: Some(view::group(&merged, None)),
            merged: right.group.0,
        })
    }

    /// The two groups of a request.
    async fn find_neighbours(
        &self,
        request: MergeRangesRequest,
        call: Call,
    ) -> Result<Neighbours, Failure> {
        let bad = |text: String| Err(Failure::new(Reason::BadRequest, text));
        let (left, at) = match request.at {
            Some(at) if at.is_empty() => {
                return bad("there is no range before the first one".to_owned());
            }
            Some(at) => (None, at),
            None => {
                let left = self.look_at(Aim::Group(request.left), call).await?;
                let left = left.descriptor;
                let Some(range) = &left.range else {
                    return Err(no_range(left.group));
                };
                match range.end.clone() {
                    Some(end) => (Some(left), end),
                    None => {
                        return bad(format!(
                            "there is no range behind that of group {}",
                            left.group
                        ));
                    }
                }
            }
        };
        let right = self.look_at(Aim::Key(&at), call).await?.descriptor;
        let begins = right.range.as_ref().is_some_and(|range| range.start == at);
        if !begins {
            return Ok(Neighbours::United(right));
        }
        let left = match left {
            Some(left) => left,
            None => self.look_at(Aim::Before(Some(&at)), call).await?.descriptor,
        };
        Ok(match left.group == right.group {
            true => Neighbours::United(right),
            false => Neighbours::Apart(left, right),
        })
    }

    /// Drives a merge to its end.
    async fn drive(&self, mut drive: Drive) -> Result<GroupDescriptor, Failure> {
        let mut pause = PAUSE.0;
        loop {
            let step = match drive.next() {
                MergeStep::Done(Ok(left)) => {
                    tracing::info!(group = %left.group, merged = %drive.right, "ranges are merged");
                    self.directory.learn(Route::from(&left));
                    return Ok(left);
                }
                MergeStep::Done(Err(why)) => return Err(drive.not_merged(&why)),
                step => step,
            };
            if drive.is_over() || self.draining.load(Ordering::SeqCst) {
                return Err(drive.unfinished());
            }
            match self.merge_step(step, &mut drive).await {
                Ok(answer) => {
                    pause = PAUSE.0;
                    drive.merging.on(answer);
                }
                Err(failure) if failure.reason == Reason::Refused && drive.never_froze => {
                    return Err(drive.refused(&failure));
                }
                Err(failure) => {
                    tracing::debug!(group = %drive.right, why = failure.message, "a merge waits");
                    drive.why = failure.message;
                    sleep(pause).await;
                    pause = (pause * 2).min(PAUSE.1);
                    drive.merging.on(MergeAnswer::Failed);
                }
            }
        }
    }

    async fn merge_step(&self, step: MergeStep, drive: &mut Drive) -> Result<MergeAnswer, Failure> {
        let call = Call {
            deadline: Instant::now() + STEP_BOUND,
            forwarded: false,
            reads: true,
            once: false,
        };
        match step {
            MergeStep::Look(group) => match self.look_at(Aim::Group(group.0), call).await {
                Ok(look) => Ok(drive.saw(look)),
                Err(_) if self.is_gone(group.0).await => Ok(MergeAnswer::Gone),
                Err(failure) => Err(failure),
            },
            MergeStep::LookBefore(key) => {
                let look = self.look_at(Aim::Before(Some(&key)), call).await?;
                drive.blocked[1] = look.blocked;
                Ok(MergeAnswer::Seen(look.descriptor))
            }
            MergeStep::Propose { group, command } => {
                if matches!(command, RangeCommand::Freeze { .. }) {
                    drive.check_unblocked()?;
                    drive.never_froze = false;
                }
                let call = Call {
                    reads: false,
                    ..call
                };
                self.change_range_at_leader(group.0, &command, call).await?;
                Ok(MergeAnswer::Done)
            }
            MergeStep::Settle { group, at } => {
                self.settled_at_leader(group.0, at, call).await?;
                Ok(MergeAnswer::Done)
            }
            // Not a step.
            MergeStep::Done(_) => Ok(MergeAnswer::Failed),
        }
    }

    /// The group that a request is about, linearizably, wherever its leader is.
    pub(super) async fn look_at(&self, aim: Aim<'_>, call: Call) -> Result<Look, Failure> {
        let call = Call {
            reads: true,
            ..call
        };
        let local = |group| self.look_here(aim, group, call);
        let remote = |group, channel| {
            let request = call.forward(LookAtRangeRequest { group });
            async move {
                let answer = InternalClient::new(channel).look_at_range(request).await?;
                let look = Look::from_response(answer.into_inner())?;
                self.directory.learn(Route::from(&look.descriptor));
                match holds(&look.descriptor, aim) {
                    true => Ok(look),
                    false => Err(self.range_changed(&look.descriptor, aim).into()),
                }
            }
        };
        self.at_owner(aim, None, call, local, remote).await
    }

    /// The same where this store leads the group.
    pub(super) async fn look_here(
        &self,
        aim: Aim<'_>,
        group: u64,
        call: Call,
    ) -> Result<Look, Failure> {
        let look = |respond| self.handle.look(GroupId(group), respond);
        let descriptor = self.ask(group, call, look).await?;
        if !holds(&descriptor, aim) {
            return Err(self.range_changed(&descriptor, aim));
        }
        if descriptor.frozen.is_some() {
            self.merges.hear(group);
        }
        Ok(Look {
            blocked: self.blocks_merge(&descriptor, call).await,
            descriptor: GroupDescriptor::clone(&descriptor),
        })
    }

    /// A member that cannot be heard would keep a group frozen; groups with learners are not merged.
    async fn blocks_merge(&self, descriptor: &GroupDescriptor, call: Call) -> Blocked {
        let group = descriptor.group;
        let connected = self.peers.connected();
        let stores = descriptor.members.iter().map(|member| member.store.0);
        let away: Vec<u64> = stores
            .filter(|store| *store != self.me && !connected.contains(store))
            .collect();
        if !away.is_empty() {
            let why = format!(
                "stores {away:?} with replicas of group {group} cannot be heard from store {}",
                self.me
            );
            return Blocked {
                why,
                lasting: false,
            };
        }
        let describe = |respond| self.handle.describe(group, respond);
        let Ok(status) = self.ask(group.0, call, describe).await else {
            return Blocked::default();
        };
        let learners = status.raft.conf_state.learners.iter();
        let learners = learners.filter_map(|id| status.descriptor.store_of(*id));
        let learners: Vec<u64> = learners.map(|store| store.0).collect();
        match learners.is_empty() {
            true => Blocked::default(),
            false => Blocked {
                why: format!(
                    "group {group} has learners on stores {learners:?}: promote or remove them, or let the \
                     moves that added them go on"
                ),
                lasting: true,
            },
        }
    }

    pub(super) async fn change_range_at_leader(
        &self,
        group: u64,
        command: &RangeCommand,
        call: Call,
    ) -> Result<(), Failure> {
        let local = || async move {
            let changed = self.change_range_here(group, command, call).await;
            changed.map(drop)
        };
        let remote = |channel| {
            let command = command.encode();
            let request = call.forward(ChangeRangeRequest { group, command });
            async move {
                let changed = InternalClient::new(channel).change_range(request).await?;
                for descriptor in changed.into_inner().descriptors {
                    // They are hints.
                    if let Ok(descriptor) = GroupDescriptor::decode(&descriptor) {
                        self.directory.learn(Route::from(&descriptor));
                    }
                }
                Ok(())
            }
        };
        self.at_leader(group, call, local, remote).await
    }

    /// Changes the range of a group that this store leads; the groups that came out of it.
    pub(super) async fn change_range_here(
        &self,
        group: u64,
        command: &RangeCommand,
        call: Call,
    ) -> Result<Vec<GroupDescriptor>, Failure> {
        self.merges.hear(group);
        let change = |respond| {
            let command = command.clone();
            self.handle.change_range(GroupId(group), command, respond);
        };
        let groups = self.ask(group, call, change).await?;
        for descriptor in &groups {
            self.directory.learn(Route::from(descriptor));
        }
        Ok(groups)
    }

    async fn settled_at_leader(&self, group: u64, at: EntryId, call: Call) -> Result<(), Failure> {
        let local = || self.settled_here(group, at, call);
        let remote = |channel| {
            let request = call.forward(SettleRangeRequest {
                group,
                term: at.term.0,
                index: at.index.0,
            });
            async move {
                let settled = InternalClient::new(channel).settle_range(request).await;
                settled.map(drop)
            }
        };
        self.at_leader(group, call, local, remote).await
    }

    /// Whether all members of a group that this store leads have its freeze; else who has not.
    pub(super) async fn settled_here(
        &self,
        group: u64,
        at: EntryId,
        call: Call,
    ) -> Result<(), Failure> {
        self.merges.hear(group);
        let settled = |respond| self.handle.settled(GroupId(group), at, respond);
        let failure = match self.ask(group, call, settled).await {
            Err(failure) if failure.reason == Reason::Busy => failure,
            result => return result,
        };
        let describe = |respond| self.handle.describe(GroupId(group), respond);
        let Ok(status) = self.ask(group, call, describe).await else {
            return Err(failure);
        };
        let behind = status
            .raft
            .progress
            .iter()
            .filter(|progress| progress.matched < at.index);
        let store = |id| status.descriptor.store_of(id).map_or(0, |store| store.0);
        let behind: Vec<u64> = behind.map(|progress| store(progress.id)).collect();
        let text = format!(
            "the replicas of group {group} on stores {behind:?} do not have its log up to {} yet",
            at.index
        );
        Err(Failure {
            message: text,
            ..failure
        })
    }

    /// Whether no store has a replica of a group, as all of them say.
    async fn is_gone(&self, group: u64) -> bool {
        if self.handle.summary(GroupId(group)).is_some() {
            return false;
        }
        let absent = |store: u64| async move {
            let Some(channel) = self.peers.channel(store) else {
                return false;
            };
            let request = DescribeGroupRequest {
                group,
                local: true,
                key: None,
            };
            let mut client = AdminClient::new(channel);
            let described = timeout(PRESENCE_BOUND, client.describe_group(request)).await;
            match described {
                Ok(Err(status)) => Failure::from_status(&status, true).reason == Reason::NoGroup,
                Ok(Ok(_)) | Err(_) => false,
            }
        };
        let others = self.peers.others();
        let all = futures_join(others.into_iter().map(absent)).await;
        all.into_iter().all(|absent| absent)
    }

    /// Takes over merges of groups that this store leads and that nobody drives. To be called now and then.
    pub(crate) fn take_over_merges(self: &Arc<Self>) {
        let descriptors = self.handle.descriptors().into_iter();
        let frozen = descriptors
            .filter(|descriptor| descriptor.frozen.is_some() && self.leads(descriptor.group.0));
        let frozen: BTreeMap<u64, _> = frozen.map(|it| (it.group.0, it)).collect();
        self.merges.keep(&frozen.keys().copied().collect());
        let now = Instant::now();
        for (group, descriptor) in frozen {
            let Some(merging) = Merging::of_frozen(&descriptor) else {
                continue;
            };
            if self.draining.load(Ordering::SeqCst) || !self.merges.take(group, now) {
                continue;
            }
            tracing::warn!(
                group,
                "frozen for a merge that nobody drives: taking it over"
            );
            let drive = Drive::new(merging, descriptor.group, now + TAKE_OVER_BOUND);
            let server = Arc::clone(self);
            tokio::spawn(async move {
                if let Err(failure) = server.drive(drive).await {
                    tracing::warn!(group, "not merged: {}", failure.message);
                }
                server.merges.release(group);
            });
        }
    }
}

/// What the request for a merge is about.
enum Neighbours {
    Apart(GroupDescriptor, GroupDescriptor),
    /// No range begins at the key.
    United(GroupDescriptor),
}

impl Drive {
    fn new(merging: Merging, right: GroupId, give_up_at: Instant) -> Self {
        Self {
            merging,
            right,
            give_up_at,
            given_up: false,
            frozen_since: None,
            blocked: Default::default(),
            never_froze: true,
            why: String::new(),
        }
    }

    /// The next step, towards the end of the merge or, after a while, back.
    fn next(&mut self) -> MergeStep {
        let now = Instant::now();
        let frozen = self.frozen_since.map(|since| since + FROZEN_BOUND);
        let bound = frozen.map_or(self.give_up_at, |frozen| frozen.min(self.give_up_at));
        if !self.given_up && now >= bound {
            self.given_up = true;
            self.give_up_at = now;
            self.merging.give_up();
        }
        self.merging.next()
    }

    fn is_over(&self) -> bool {
        self.given_up && Instant::now() >= self.give_up_at + UNDO_BOUND
    }

    /// The right group was looked at.
    fn saw(&mut self, look: Look) -> MergeAnswer {
        if look.descriptor.frozen.is_none() {
            self.frozen_since = None;
        } else {
            self.never_froze = false;
            self.frozen_since.get_or_insert_with(Instant::now);
        }
        self.blocked[0] = look.blocked;
        MergeAnswer::Seen(look.descriptor)
    }

    /// Nobody is to wait while a group is frozen that cannot be merged.
    fn check_unblocked(&self) -> Result<(), Failure> {
        let blocked = self.blocked.iter().filter(|it| !it.why.is_empty());
        if let Some(blocked) = blocked.max_by_key(|it| it.lasting) {
            let reason = match blocked.lasting {
                true => Reason::Refused,
                false => Reason::Busy,
            };
            return Err(Failure::new(reason, blocked.why.clone()));
        }
        Ok(())
    }

    fn refused(&self, failure: &Failure) -> Failure {
        let text = format!("group {} is not merged: {}", self.right, failure.message);
        Failure::new(Reason::Refused, text)
    }

    fn not_merged(&self, failure: &MergeFailure) -> Failure {
        let right = self.right;
        match failure {
            MergeFailure::GivenUp if self.why.is_empty() => Failure::new(
                Reason::Timeout,
                format!("group {right} was not merged in time, and serves as before"),
            ),
            MergeFailure::GivenUp => Failure::new(
                Reason::Timeout,
                format!(
                    "group {right} was not merged in time, and serves as before; in its way: {}",
                    self.why
                ),
            ),
            MergeFailure::Members {
                left,
                right: others,
            } => {
                let moves = others.iter().zip(left);
                let moves = moves.map(|(from, to)| {
                    format!("`polyraft range move {right} --from {from} --to {to}`")
                });
                let moves: Vec<String> = moves.collect();
                let text = format!(
                    "not merged: {failure}; both must have replicas on the same stores: {}",
                    match moves.is_empty() {
                        true =>
                            "add or remove some (`polyraft group promote`, `remove`)".to_owned(),
                        false => moves.join(", "),
                    }
                );
                Failure::new(Reason::Refused, text)
            }
            // Others have changed the ranges meanwhile.
            MergeFailure::NotNeighbours | MergeFailure::LeftFrozen(_) => {
                Failure::new(Reason::Stale, format!("not merged: {failure}; try again"))
            }
            other => Failure::new(Reason::Refused, format!("not merged: {other}")),
        }
    }

    fn unfinished(&self) -> Failure {
        let text = format!(
            "the merge of group {} is neither finished nor undone; the store that leads it goes on. In its \
             way: {}",
            self.right,
            match self.why.is_empty() {
                true => "the store that was asked is leaving",
                false => &*self.why,
            }
        );
        Failure::new(Reason::Timeout, text).of_unknown_effect()
    }
}

/// Whether a group is the one that a request is about.
pub(super) fn holds(descriptor: &GroupDescriptor, aim: Aim<'_>) -> bool {
    let Some(range) = &descriptor.range else {
        return matches!(aim, Aim::Group(_));
    };
    let reaches = |key: &[u8]| range.end.as_ref().is_none_or(|end: &Bytes| **end >= *key);
    match aim {
        Aim::Group(_) => true,
        Aim::Key(key) => range.contains(key),
        Aim::Before(Some(key)) => *range.start < *key && reaches(key),
        Aim::Before(None) => range.end.is_none(),
    }
}

pub(super) fn no_range(group: GroupId) -> Failure {
    let text = format!("group {group} has keys of its own, and no range");
    Failure::new(Reason::BadRequest, text)
}

#[cfg(test)]
mod tests {
    use polyraft_multiraft::{KeyRange, StoreId};

    use super::*;

    #[test]
    fn a_frozen_group_is_taken_over_when_nobody_was_heard() {
        let (driven, begun) = (Driven::default(), Instant::now());
        let later = |seconds| begun + Duration::from_secs(seconds);
        assert!(!driven.take(7, begun), "its driver has time to be heard");
        assert!(!driven.take(7, later(4)));
        driven.heard.lock().insert(7, later(4));
        assert!(!driven.take(7, later(8)));
        assert!(driven.take(7, later(9)));
        assert!(!driven.take(7, later(20)), "once at a time");
        driven.release(7);
        assert!(driven.take(7, Instant::now() + ABANDONED));
        driven.release(7);
        driven.keep(&BTreeSet::from([8]));
        assert!(!driven.take(7, later(90)), "a group that is frozen again");
    }

    #[test]
    fn who_holds_what_is_asked_for() {
        let range = |start: &'static [u8], end: Option<&'static [u8]>| GroupDescriptor {
            range: Some(KeyRange {
                start: Bytes::from_static(start),
                end: end.map(Bytes::from_static),
            }),
            ..GroupDescriptor::default()
        };
        let (middle, last) = (range(b"b", Some(b"d")), range(b"d", None));
        assert!(holds(&middle, Aim::Key(b"b")) && !holds(&middle, Aim::Key(b"d")));
        assert!(holds(&middle, Aim::Before(Some(b"d"))) && holds(&middle, Aim::Before(Some(b"c"))));
        assert!(!holds(&middle, Aim::Before(Some(b"b"))));
        assert!(!holds(&middle, Aim::Before(Some(b"e"))));
        assert!(holds(&last, Aim::Before(None)) && !holds(&middle, Aim::Before(None)));
        let own = GroupDescriptor::default();
        assert!(holds(&own, Aim::Group(0)) && !holds(&own, Aim::Key(b"b")));
    }

    #[test]
    fn members_that_differ_are_told_with_what_to_do() {
        let merging = Merging::new(GroupId(1), GroupId(2), Bytes::from_static(b"m"));
        let drive = Drive::new(merging, GroupId(2), Instant::now());
        let failure = drive.not_merged(&MergeFailure::Members {
            left: vec![StoreId(4).0],
            right: vec![3],
        });
        assert_eq!(failure.reason, Reason::Refused);
        let told = "polyraft range move 2 --from 3 --to 4";
        assert!(failure.message.contains(told), "{}", failure.message);
    }
}
