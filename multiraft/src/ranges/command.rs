//! What is written into a group's log to change its range, and what it makes of the group.
//!
//! Invariant: whether a command takes effect, and which, depends on the group's applied state alone, which is
//! the same on every replica at that entry. A command names the epoch that it was decided on; if anything
//! has changed since, it has no effect.

use std::sync::Arc;

use bytes::Bytes;
use polyraft_core::{EntryId, planted};

use crate::group::{AppliedState, Epoch, Frozen, GroupDescriptor, GroupId, KeyRange};
use crate::worker::BOOTSTRAP;

/// Groups that one split can make: a command is one entry, and its effect one write.
pub const SPLIT_PIECES_MAX: usize = 1024;

/// A change of a group's range, as an entry of its log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RangeCommand {
    /// The keys from each piece's start on belong to a new group. The group keeps what is before the first.
    Split {
        /// The epoch of the group that this was decided on.
        expected: Epoch,
        /// Ascending by start.
        pieces: Vec<SplitPiece>,
    },
    /// The group takes no commands, reads and changes of membership any more: its left neighbour is about
    /// to take over its keys.
    Freeze {
        /// The epoch of the group that this was decided on.
        expected: Epoch,
        /// The left neighbour.
        into: GroupId,
        /// The epoch of the left neighbour that the merge will expect.
        target: Epoch,
    },
    /// The merge is certain never to happen: the group serves again.
    Thaw {
        /// The epoch of the frozen group.
        expected: Epoch,
    },
    /// Only the generation grows: whatever was decided on before has no effect any more.
    Fence {
        /// The epoch of the group that this was decided on.
        expected: Epoch,
    },
    /// Nothing changes: each replica shows its state machine that it has come here
    /// ([`StateMachine::inspect`](crate::env::StateMachine::inspect)), so that what they have can be
    /// compared.
    Inspect {
        /// The epoch of the group that this was decided on.
        expected: Epoch,
        /// The name of this inspection.
        id: u64,
    },
    /// The group takes over the keys of its right neighbour, which is frozen, and whose replicas all have
    /// everything up to its freeze in their logs.
    Merge {
        /// The epoch of the group that this was decided on.
        expected: Epoch,
        /// The right neighbour, frozen.
        right: GroupDescriptor,
    },
}

/// One of the groups that a split makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitPiece {
    /// Its first key. It ends where the next piece begins, the last where the group ended.
    pub start: Bytes,
    /// Its number, never used before.
    pub group: GroupId,
}

/// Why a command has no effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RangeRefusal {
    /// The group is not as it was when this was decided on.
    #[error("the group has changed since this was decided on: its epoch is {current:?}")]
    StaleEpoch {
        /// The epoch now.
        current: Epoch,
    },
    /// The group has keys of its own.
    #[error("the group has no range of keys")]
    NoRange,
    /// A change of membership is under way.
    #[error("the group's membership is changing")]
    Joint,
    /// Groups with learners do not merge.
    #[error("the group has learners: promote or remove them first")]
    Learners,
    /// The group is being merged into its left neighbour.
    #[error("the group is being merged into group {into}")]
    Frozen {
        /// The left neighbour.
        into: GroupId,
    },
    /// There is nothing to thaw.
    #[error("the group is not frozen")]
    NotFrozen,
    /// The pieces of a split make no sense.
    #[error("the group cannot be split so: {0}")]
    Pieces(&'static str),
    /// The two groups of a merge do not fit together.
    #[error("the groups cannot be merged: {0}")]
    Neighbours(&'static str),
    /// No generation is left.
    #[error("the group has used up its generations")]
    Exhausted,
}

/// What a command makes of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RangeOutcome {
    /// Only its descriptor changes.
    Changed(AppliedState),
    /// It keeps the left part.
    Split {
        left: AppliedState,
        /// The first states of the new groups, by range.
        rights: Vec<AppliedState>,
    },
    /// It has its right neighbour's keys, too.
    Merged {
        left: AppliedState,
        right: GroupDescriptor,
    },
}

impl RangeCommand {
    /// The epoch that it was decided on.
    #[must_use]
    pub const fn expected(&self) -> Epoch {
        match self {
            Self::Split { expected, .. }
            | Self::Freeze { expected, .. }
            | Self::Thaw { expected }
            | Self::Fence { expected }
            | Self::Inspect { expected, .. }
            | Self::Merge { expected, .. } => *expected,
        }
    }

    /// Whether this is a step of undoing a merge.
    pub(crate) const fn undoes(&self) -> bool {
        matches!(self, Self::Fence { .. } | Self::Thaw { .. })
    }
}

impl AppliedState {
    /// What a command makes of the group when the entry `at` is applied.
    ///
    /// # Errors
    /// Why it has no effect.
    pub(crate) fn after(
        &self,
        command: &RangeCommand,
        at: EntryId,
    ) -> Result<RangeOutcome, RangeRefusal> {
        let current = self.descriptor.epoch;
        let merges = matches!(command, RangeCommand::Merge { .. });
        if command.expected() != current && !(merges && planted!(MergeAfterFence)) {
            return Err(RangeRefusal::StaleEpoch { current });
        }
        let Some(range) = &self.descriptor.range else {
            return Err(RangeRefusal::NoRange);
        };
        // Who ends or undoes a merge does not wait for whoever changes the members.
        if self.conf_state.is_joint() && !command.undoes() {
            return Err(RangeRefusal::Joint);
        }
        let generation = |others: u64| {
            let next = current.range.max(others).checked_add(1);
            next.ok_or(RangeRefusal::Exhausted)
        };
        let changed = |change: &dyn Fn(&mut GroupDescriptor)| {
            let generation = generation(0)?;
            let state = self.with(at, generation, change);
            Ok(RangeOutcome::Changed(state))
        };
        let frozen = self.descriptor.frozen;
        match (command, frozen) {
            (RangeCommand::Thaw { .. }, None) => Err(RangeRefusal::NotFrozen),
            (RangeCommand::Thaw { .. }, Some(_)) => changed(&|descriptor| descriptor.frozen = None),
            (_, Some(Frozen { into, .. })) => Err(RangeRefusal::Frozen { into }),
            (RangeCommand::Fence { .. }, None) => changed(&|_| {}),
            (RangeCommand::Inspect { .. }, None) => {
                let state = self.with(at, current.range, &|_| {});
                Ok(RangeOutcome::Changed(state))
            }
            (RangeCommand::Freeze { into, target, .. }, None) => {
                self.check_no_learners()?;
                if *into == self.descriptor.group {
                    return Err(RangeRefusal::Neighbours("a group is not its own neighbour"));
                }
                let frozen = Frozen {
                    into: *into,
                    target: *target,
                    at,
                };
                changed(&|descriptor| descriptor.frozen = Some(frozen))
            }
            (RangeCommand::Split { pieces, .. }, None) => {
                check_pieces(self.descriptor.group, range, pieces)?;
                Ok(self.split(range, pieces, generation(0)?, at))
            }
            (RangeCommand::Merge { right, .. }, None) => {
                self.check_no_learners()?;
                let end = self.check_right(range, right)?;
                let generation = generation(right.epoch.range)?;
                let united = KeyRange {
                    start: range.start.clone(),
                    end,
                };
                let left = self.with(at, generation, &|left| {
                    left.range = Some(united.clone());
                    left.border = right.border;
                });
                let right = right.clone();
                Ok(RangeOutcome::Merged { left, right })
            }
        }
    }

    /// The state at `at` with another descriptor.
    fn with(&self, at: EntryId, generation: u64, change: &dyn Fn(&mut GroupDescriptor)) -> Self {
        let mut descriptor = GroupDescriptor::clone(&self.descriptor);
        descriptor.epoch.range = generation;
        change(&mut descriptor);
        Self {
            last: at,
            conf_state: Arc::clone(&self.conf_state),
            descriptor: Arc::new(descriptor),
        }
    }

    fn split(
        &self,
        range: &KeyRange,
        pieces: &[SplitPiece],
        generation: u64,
        at: EntryId,
    ) -> RangeOutcome {
        let ends = pieces.iter().skip(1).map(|next| Some(next.start.clone()));
        let ends = ends.chain([range.end.clone()]);
        let last = pieces.len() - 1;
        let right = |(at, (piece, end)): (usize, (&SplitPiece, Option<Bytes>))| {
            self.with(BOOTSTRAP, generation, &|right| {
                right.group = piece.group;
                if at < last {
                    right.border = generation;
                }
                right.range = Some(KeyRange {
                    start: piece.start.clone(),
                    end: end.clone(),
                });
            })
        };
        let rights = pieces.iter().zip(ends).enumerate().map(right).collect();
        let left = self.with(at, generation, &|left| {
            left.border = generation;
            left.range = Some(KeyRange {
                start: range.start.clone(),
                end: pieces.first().map(|piece| piece.start.clone()),
            });
        });
        RangeOutcome::Split { left, rights }
    }

    /// Who may not yet know that he votes may not yet have the log either.
    fn check_no_learners(&self) -> Result<(), RangeRefusal> {
        match self.conf_state.learners.is_empty() {
            true => Ok(()),
            false => Err(RangeRefusal::Learners),
        }
    }

    /// The end of the right neighbour, if the two can be merged.
    fn check_right(
        &self,
        range: &KeyRange,
        right: &GroupDescriptor,
    ) -> Result<Option<Bytes>, RangeRefusal> {
        let refused = |why| Err(RangeRefusal::Neighbours(why));
        let Some(keys) = &right.range else {
            return refused("the right one has no range of keys");
        };
        if range.end.as_ref() != Some(&keys.start) {
            return refused("the right one does not begin where the left one ends");
        }
        match right.frozen {
            // For this epoch: whoever sees another one here takes it that the merge is off, and thaws.
            Some(Frozen { into, target, .. })
                if into == self.descriptor.group
                    && (target == self.descriptor.epoch || planted!(MergeAfterFence)) => {}
            _ => return refused("the right one is not frozen for this merge"),
        }
        let stores = |descriptor: &GroupDescriptor| {
            let mut stores: Vec<_> = descriptor.members.iter().map(|m| m.store).collect();
            stores.sort_unstable();
            stores
        };
        if stores(&self.descriptor) != stores(right) {
            return refused("their replicas are not on the same stores");
        }
        Ok(keys.end.clone())
    }
}

fn check_pieces(
    group: GroupId,
    range: &KeyRange,
    pieces: &[SplitPiece],
) -> Result<(), RangeRefusal> {
    let refused = |why| Err(RangeRefusal::Pieces(why));
    if pieces.is_empty() || pieces.len() > SPLIT_PIECES_MAX {
        return refused("a split makes at least one and at most 1024 new groups");
    }
    let starts = pieces.iter().map(|piece| &piece.start);
    if !starts.is_sorted_by(|one, next| one < next) {
        return refused("the keys must ascend");
    }
    let within = |piece: &SplitPiece| piece.start > range.start && range.contains(&piece.start);
    if !pieces.iter().all(within) {
        return refused("the keys must lie within the range, above its start");
    }
    let mut groups: Vec<GroupId> = pieces.iter().map(|piece| piece.group).collect();
    groups.push(group);
    groups.sort_unstable();
    groups.dedup();
    if groups.len() != pieces.len() + 1 {
        return refused("every new group needs a number of its own");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
