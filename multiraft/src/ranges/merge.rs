//! A merge from the outside: which step is next, whoever takes it, however often it was begun before.
//!
//! A merge takes entries in two logs: the right group is frozen in its own, then the left one takes over
//! its keys in its own. Whoever drives it may die in between, and others may drive the same merge, or its
//! end, at the same time. So this remembers nothing that counts: it looks at the right group, then at
//! whoever has the keys before it, and what it sees says what is next. Every command names the epoch that
//! was seen, so what was decided on an old look has no effect.
//!
//! | right group | who has the keys before it | next |
//! |---|---|---|
//! | serves | the left one | freeze the right one, naming the left one's epoch |
//! | frozen | the left one with that epoch | wait until all logs have the freeze, then merge; to give up: fence the left one |
//! | frozen | somebody later, behind an older border | thaw the right one |
//! | any | somebody who has the right one's keys, too, or had them | done |
//!
//! Both must be on the same stores. If they are not, the right one is not frozen, or, if their members have
//! become different since, thawed; whoever drives it is told which stores they are.
//!
//! # Why a thaw is safe
//! It is if the merge has not happened and never will. It never will if the left group has not the named
//! epoch any more, or is gone: epochs never come again. Whether it has happened is not seen in the ranges,
//! since what was merged may have been split at the same key again; nor in what the right group says of
//! itself, since replicas of it that have not heard may still be a quorum. But a merge removes the border
//! between the two, and a split makes a new one: so a border that is not newer than the named epoch
//! ([`GroupDescriptor::border`]) was there all the time. Who is older than the named epoch himself (a
//! group that was merged, and some of whose replicas have not heard) proves nothing and is looked at
//! again.

use bytes::Bytes;
use polyraft_core::{EntryId, planted};

use super::RangeCommand;
use crate::group::{Frozen, GroupDescriptor, GroupId, StoreId};

/// See the module.
#[derive(Clone, Debug)]
pub struct Merging {
    left: GroupId,
    right: GroupId,
    /// The first key of the right group.
    start: Bytes,
    give_up: bool,
    state: State,
}

#[derive(Clone, Debug)]
enum State {
    LookRight,
    LookLeft {
        right: Option<GroupDescriptor>,
    },
    Propose {
        group: GroupId,
        command: RangeCommand,
    },
    Settle {
        left: GroupDescriptor,
        right: GroupDescriptor,
        at: EntryId,
    },
    Done(Result<GroupDescriptor, MergeFailure>),
}

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MergeStep {
    /// Look at the descriptor of a group, frozen or not, linearizably: its leader says it. Look anew each
    /// time.
    Look(GroupId),
    /// The same with the group that has the keys right before this one, whichever that is now; it may have
    /// this one, too.
    LookBefore(Bytes),
    /// Propose a command to a group.
    Propose {
        /// To which.
        group: GroupId,
        /// What.
        command: RangeCommand,
    },
    /// Wait until the logs of all members of a group have an entry.
    Settle {
        /// Of which group.
        group: GroupId,
        /// Which entry.
        at: EntryId,
    },
    /// Nothing: the left group as it is now, with the right one's keys, or why they are not merged. In
    /// both cases the right group is not frozen by this merge any more.
    Done(Result<GroupDescriptor, MergeFailure>),
}

/// What came of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MergeAnswer {
    /// Of [`MergeStep::Look`] and [`MergeStep::LookBefore`].
    Seen(GroupDescriptor),
    /// Of [`MergeStep::Look`]: all stores that could have it say that the group is no more.
    Gone,
    /// Of the other steps: it is done.
    Done,
    /// Nobody knows, or it was refused. To be tried again after a while.
    Failed,
}

/// Why two groups are not merged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MergeFailure {
    /// As was asked for: see [`Merging::give_up`].
    #[error("given up")]
    GivenUp,
    /// They are not neighbours (any more).
    #[error("the right group does not begin where the left one ends")]
    NotNeighbours,
    /// The left group is itself being merged.
    #[error("the left group is being merged into group {0}")]
    LeftFrozen(GroupId),
    /// The right group is no more: it was merged before, or destroyed.
    #[error("group {0} is no more")]
    Gone(GroupId),
    /// Their replicas are not on the same stores.
    #[error("only the left group is on stores {left:?}, only the right one on stores {right:?}")]
    Members {
        /// The stores of the left group only, ascending.
        left: Vec<u64>,
        /// Those of the right one only.
        right: Vec<u64>,
    },
}

impl Merging {
    /// The merge of two neighbours; `start` is the first key of the right one.
    #[must_use]
    pub const fn new(left: GroupId, right: GroupId, start: Bytes) -> Self {
        Self {
            left,
            right,
            start,
            give_up: false,
            state: State::LookRight,
        }
    }

    /// The merge that a frozen group waits for; none if it is not frozen.
    #[must_use]
    pub fn of_frozen(right: &GroupDescriptor) -> Option<Self> {
        let (frozen, range) = (right.frozen?, right.range.as_ref()?);
        Some(Self::new(frozen.into, right.group, range.start.clone()))
    }

    /// Whether the merge is finished or undone from now on. What is certain to happen still does. An
    /// answer to the step under way still counts.
    pub fn give_up(&mut self) {
        self.give_up = true;
        // What comes of these says nothing that the next look does not. What is being looked at is not asked
        // again: the answer would be taken for that of another look.
        if matches!(self.state, State::Propose { .. } | State::Settle { .. }) {
            self.state = State::LookRight;
        }
    }

    /// What is to be done.
    #[must_use]
    pub fn next(&self) -> MergeStep {
        match &self.state {
            State::LookRight => MergeStep::Look(self.right),
            State::LookLeft { .. } => MergeStep::LookBefore(self.start.clone()),
            State::Propose { group, command } => MergeStep::Propose {
                group: *group,
                command: command.clone(),
            },
            State::Settle { at, .. } => MergeStep::Settle {
                group: self.right,
                at: *at,
            },
            State::Done(result) => MergeStep::Done(result.clone()),
        }
    }

    /// What came of [`Self::next`].
    pub fn on(&mut self, answer: MergeAnswer) {
        let state = std::mem::replace(&mut self.state, State::LookRight);
        self.state = match (state, answer) {
            (State::LookRight, MergeAnswer::Seen(right)) if self.thaws_at_once(&right) => {
                let expected = right.epoch;
                State::Propose {
                    group: self.right,
                    command: RangeCommand::Thaw { expected },
                }
            }
            (State::LookRight, MergeAnswer::Seen(right)) if !self.begins_here(&right) => {
                State::Done(Err(MergeFailure::NotNeighbours))
            }
            (State::LookRight, MergeAnswer::Seen(right)) => State::LookLeft { right: Some(right) },
            (State::LookRight, MergeAnswer::Gone) => State::LookLeft { right: None },
            (State::LookLeft { right }, MergeAnswer::Seen(left)) => self.decide(left, right),
            (State::Settle { left, right, .. }, MergeAnswer::Done) => State::Propose {
                group: left.group,
                command: RangeCommand::Merge {
                    expected: left.epoch,
                    right,
                },
            },
            (State::Done(result), _) => State::Done(result),
            // Whatever became of it, the next look tells.
            _ => State::LookRight,
        };
    }

    /// Whether the right group has the first key that was named, which it keeps as long as it lives. If not,
    /// whoever has the keys before that tells nothing of its neighbour.
    fn begins_here(&self, right: &GroupDescriptor) -> bool {
        let range = right.range.as_ref();
        range.is_some_and(|range| range.start == self.start)
    }

    fn thaws_at_once(&self, right: &GroupDescriptor) -> bool {
        planted!(ThawWithoutLook) && self.give_up && right.frozen.is_some()
    }

    fn decide(&self, left: GroupDescriptor, right: Option<GroupDescriptor>) -> State {
        let refused = |why| State::Done(Err(why));
        let range = left.range.as_ref();
        if range.is_some_and(|range| range.contains(&self.start)) && left.group != self.right {
            return State::Done(Ok(left));
        }
        if range.and_then(|range| range.end.as_ref()) != Some(&self.start) {
            return State::LookRight;
        }
        let Some(right) = right else {
            return refused(MergeFailure::Gone(self.right));
        };
        let Some(Frozen { into, target, at }) = right.frozen else {
            return self.begin(&left, &right);
        };
        if left.group == into && left.epoch == target {
            if self.give_up || differ(&left, &right).is_some() {
                let (group, expected) = (into, target);
                let command = RangeCommand::Fence { expected };
                return State::Propose { group, command };
            }
            return State::Settle { left, right, at };
        }
        let later = match left.group == into {
            true => left.epoch.range >= target.range,
            false => left.epoch.range > target.range,
        };
        if !later {
            return State::LookRight;
        }
        if left.border > target.range {
            return refused(MergeFailure::Gone(self.right));
        }
        State::Propose {
            group: self.right,
            command: RangeCommand::Thaw {
                expected: right.epoch,
            },
        }
    }

    fn begin(&self, left: &GroupDescriptor, right: &GroupDescriptor) -> State {
        if self.give_up {
            return State::Done(Err(MergeFailure::GivenUp));
        }
        if left.group != self.left {
            return State::Done(Err(MergeFailure::NotNeighbours));
        }
        if let Some(Frozen { into, .. }) = left.frozen {
            return State::Done(Err(MergeFailure::LeftFrozen(into)));
        }
        if let Some(failure) = differ(left, right) {
            return State::Done(Err(failure));
        }
        State::Propose {
            group: self.right,
            command: RangeCommand::Freeze {
                expected: right.epoch,
                into: self.left,
                target: left.epoch,
            },
        }
    }
}

/// Stores that only one of the two is on.
fn differ(left: &GroupDescriptor, right: &GroupDescriptor) -> Option<MergeFailure> {
    let only = |one: &GroupDescriptor, other: &GroupDescriptor| {
        let stores = one.members.iter().map(|member| member.store);
        let only = stores.filter(|store| other.replica_on(*store).is_none());
        let mut only: Vec<u64> = only.map(|StoreId(store)| store).collect();
        only.sort_unstable();
        only.dedup();
        only
    };
    let (left, right) = (only(left, right), only(right, left));
    (!left.is_empty() || !right.is_empty()).then_some(MergeFailure::Members { left, right })
}

#[cfg(test)]
mod tests;
