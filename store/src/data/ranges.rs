//! Ranges that change hands, in the batch of the turn in which they do.
//!
//! # Invariants
//! * Commands of the turn see the group as it was before the change, the application's hooks as it is
//!   after it.
//! * A key that the turn wrote goes to whoever has it after the change, or nowhere.
//! * What is removed by range holds no key that the same batch writes: the order of the two is of no
//!   importance.

use bytes::Bytes;
use polyraft_multiraft::env::{ApplyItem, RangeChange, SplitRight, StateMachineError};
use polyraft_multiraft::{AppliedState, GroupDescriptor, GroupId, KeyRange};

use super::application::{Application, SplitAt};
use super::snapshot::translate;
use super::state::put_state;
use super::sweep::{self, Past};
use super::txn::GroupTxn;
use crate::disk::{Batch, Cf, Change, Disk};
use crate::keys::{self, Local};

/// The changes of one turn.
#[derive(Debug, Default)]
pub(super) struct Turn {
    /// Of one key each.
    points: Batch,
    /// Keys that go by range.
    spans: Batch,
    /// Whether a range has changed hands.
    pub(super) changes_ranges: bool,
}

impl Turn {
    pub(super) const fn points(&mut self) -> &mut Batch {
        &mut self.points
    }

    /// Keys in order are found close to each other, in the engine's tree as in the processor's cache. What
    /// is done to one key stays in its order.
    pub(super) fn into_batch(mut self) -> Batch {
        let sorted = self
            .points
            .is_sorted_by(|(_, one), (_, two)| one.key() <= two.key());
        if !sorted {
            self.points
                .sort_by(|(_, one), (_, two)| one.key().cmp(&two.key()));
        }
        if self.spans.is_empty() {
            return self.points;
        }
        self.spans.append(&mut self.points);
        self.spans
    }

    /// Removals, by key or by range.
    fn remove(&mut self, removals: Batch) {
        for (cf, change) in removals {
            match change.key() {
                Some(_) => self.points.push((cf, change)),
                None => self.spans.push((cf, change)),
            }
        }
    }
}

/// Some group of a turn changes its range in a way that makes no sense: whoever says so is broken.
fn impossible(group: GroupId, what: &str) -> StateMachineError {
    StateMachineError::Fatal(format!("group {group} cannot change its range: {what}"))
}

/// The range of a group whose range changes.
fn range(descriptor: &GroupDescriptor) -> Result<&KeyRange, StateMachineError> {
    let range = descriptor.range.as_ref();
    range.ok_or_else(|| impossible(descriptor.group, "it has none"))
}

/// What a turn needs to know to change a range.
#[derive(Clone, Copy, Debug)]
pub(super) struct Changing<'a, A, D> {
    pub(super) application: &'a A,
    pub(super) disk: &'a D,
    /// The group before the turn.
    pub(super) before: &'a AppliedState,
    /// The group's share of the turn.
    pub(super) item: &'a ApplyItem,
}

impl<'a, A: Application, D: Disk> Changing<'a, A, D> {
    /// What the change adds to the turn; `txn` has made the group's own changes before it. `right`
    /// reads what is known of another group.
    pub(super) fn change(
        &self,
        change: &'a RangeChange,
        txn: &mut GroupTxn<'a>,
        read: impl Fn(GroupId) -> Result<Option<AppliedState>, StateMachineError>,
        turn: &mut Turn,
    ) -> Result<(), StateMachineError> {
        turn.changes_ranges = true;
        match change {
            RangeChange::Split { rights } => self.split(rights, txn, turn),
            RangeChange::Merge { right } => {
                let found = read(right.descriptor.group)?;
                if found.is_none_or(|found| found.last != right.last) {
                    let what = "its right neighbour is not here, or not where it stopped";
                    return Err(impossible(self.item.group, what));
                }
                self.merge(right, txn, turn)
            }
        }
    }

    fn split(
        &self,
        rights: &'a [SplitRight],
        left: &mut GroupTxn<'a>,
        turn: &mut Turn,
    ) -> Result<(), StateMachineError> {
        let after = &*self.item.state.descriptor;
        self.check_split(rights)?;
        left.set_descriptor(after);
        // Before any hook sees the group, so that none sees a key twice.
        let moved: Vec<_> = rights
            .iter()
            .map(|right| left.take_keys(&right.state.descriptor))
            .collect();
        for (SplitRight { state, keep }, moved) in rights.iter().zip(moved) {
            let mut right = GroupTxn::new(self.disk, &state.descriptor);
            right.give_keys(moved);
            let at = SplitAt {
                left: self.item.state.last,
                right: state.last,
            };
            // Also for a group that is not to live here: the left one must come out alike everywhere.
            self.application
                .split(at, left, &mut right)
                .map_err(translate)?;
            if *keep {
                right.finish(&mut turn.points);
                put_state(state, true, &mut turn.points);
            } else {
                let mut removals = Batch::new();
                sweep::remove_keys(self.disk, &state.descriptor, Past::Seen, &mut removals)
                    .map_err(translate)?;
                turn.remove(removals);
            }
        }
        Ok(())
    }

    /// The ranges that come out lie right behind each other and are the one that goes in.
    fn check_split(&self, rights: &[SplitRight]) -> Result<(), StateMachineError> {
        let before = range(&self.before.descriptor)?;
        let left = range(&self.item.state.descriptor)?;
        let mut end = Some(left);
        for right in rights {
            let range = range(&right.state.descriptor)?;
            end = end.filter(|end| end.end.as_ref() == Some(&range.start));
            end = end.map(|_| range);
        }
        for right in rights {
            self.check_generation(&right.state.descriptor)?;
        }
        self.check_generation(&self.item.state.descriptor)?;
        let whole = end.is_some_and(|end| end.end == before.end) && left.start == before.start;
        match whole && !rights.is_empty() {
            true => Ok(()),
            false => Err(impossible(
                self.item.group,
                "the parts do not make up the whole",
            )),
        }
    }

    /// Of two descriptors with the same keys the later one has the higher generation.
    fn check_generation(&self, after: &GroupDescriptor) -> Result<(), StateMachineError> {
        match after.epoch.range > self.before.descriptor.epoch.range {
            true => Ok(()),
            false => Err(impossible(after.group, "its generation does not grow")),
        }
    }

    fn merge(
        &self,
        right: &'a AppliedState,
        left: &mut GroupTxn<'a>,
        turn: &mut Turn,
    ) -> Result<(), StateMachineError> {
        let (before, after) = (
            range(&self.before.descriptor)?,
            range(&self.item.state.descriptor)?,
        );
        let gone = range(&right.descriptor)?;
        let fits = before.start == after.start
            && before.end.as_ref() == Some(&gone.start)
            && gone.end == after.end;
        if !fits {
            return Err(impossible(
                self.item.group,
                "the whole is not made up of its parts",
            ));
        }
        self.check_generation(&self.item.state.descriptor)?;
        left.set_descriptor(&self.item.state.descriptor);
        let neighbour = GroupTxn::new(self.disk, &right.descriptor);
        self.application
            .merge(self.item.state.last, left, &neighbour)
            .map_err(translate)?;
        let group = right.descriptor.group;
        let mut removals = Batch::new();
        sweep::remove_state(group, &mut removals);
        sweep::remove_local(self.disk, group, Past::Seen, &mut removals).map_err(translate)?;
        turn.remove(removals);
        turn.points.push(merged(group));
        Ok(())
    }
}

/// The marker of a group that was merged into another one.
pub(super) fn merged(group: GroupId) -> (Cf, Change) {
    let key = keys::local(group, Local::Merged, b"");
    (Cf::Data, Change::Put(key, Bytes::from_static(&[VERSION])))
}

/// It is needed no more.
pub(super) fn forget(group: GroupId) -> (Cf, Change) {
    (
        Cf::Data,
        Change::Delete(keys::local(group, Local::Merged, b"")),
    )
}

/// Of the marker: its value says nothing else.
const VERSION: u8 = 1;
