//! A group takes over its right neighbour's keys: what the two replicas of one store say to each other, each
//! on its own worker.
//!
//! When the command stands first in the left one's log, the left one asks the right one to stop.
//! The right one takes no messages and is not ticked from then on. It has its freeze in its log,
//! since whoever proposed the command has seen to that, and that it is committed the command itself
//! says: so it applies up to there, and nothing behind it, and says what it has. Then the left
//! one's applier moves the data, which a crash may take back; when it cannot any more, the right
//! one's replica ends for ever.
//!
//! A snapshot of the left one from behind a merge that this store missed takes the right one over in the same
//! way, as it is, whatever of it is here; the installation of that is durable at once. So does the snapshot
//! of a group that was split off again where the right one began, but not while the left one is here and has
//! not followed through the merge: it may have to by its log.
//!
//! Invariant: from the answer to the end, or to the release, nothing of the right one changes here.

use std::sync::Arc;

use polyraft_core::{EntryId, Index, planted};

use super::Worker;
use super::ranges::applied_state;
use crate::effects::{ApplyTask, Effects};
use crate::env::{SnapshotHeader, StagedSnapshot};
use crate::error::Reject;
use crate::group::{AppliedState, GroupDescriptor, GroupId, StoreId};
use crate::input::Input;
use crate::replica::{Install, Merging, Replica, Subsumer, Unable};
use crate::responder::Responder;

impl Worker {
    /// The left neighbour is about to take this group's keys over.
    pub(super) fn on_subsume(&mut self, subsumer: Subsumer, right: &GroupDescriptor) {
        let (group, left, worker) = (right.group, subsumer.left, subsumer.worker);
        if let Err(unable) = self.stop_for(subsumer, right) {
            let answer = Input::Subsumable {
                left,
                right: group,
                result: Err(unable),
            };
            return self.outbox.push((worker, answer));
        }
        self.awake.remove(&group);
        self.touch(group);
        self.answer_subsumer(group);
    }

    fn stop_for(&mut self, subsumer: Subsumer, right: &GroupDescriptor) -> Result<(), Unable> {
        let broken = |why: &str| {
            let group = right.group;
            Err(Unable::Broken(format!("right neighbour {group}: {why}")))
        };
        let store = self.config.store;
        let Some(replica) = self.replicas.get_mut(&right.group) else {
            return broken("it has no replica here");
        };
        if let Some(reason) = &replica.quarantined {
            return broken(&format!("it is out of service: {reason}"));
        }
        if right.replica_on(store) != Some(replica.id) || !replica.is_initialised() {
            return broken("its replica here is another one, or has no data");
        }
        if replica.ranges.subsumer.is_some() {
            return Err(Unable::Busy);
        }
        if let Some(at) = subsumer.at {
            match replica.node.learn_committed(at) {
                Ok(true) => {}
                Ok(false) => return broken("its log ends before its freeze"),
                Err(error) => return broken(&error.to_string()),
            }
        }
        replica.ranges.subsumer = Some(subsumer);
        Ok(())
    }

    /// Tells the left neighbour when everything that is to be applied is.
    pub(super) fn answer_subsumer(&mut self, group: GroupId) {
        let Some(replica) = self.replicas.get_mut(&group) else {
            return;
        };
        if replica.ranges.subsumer.is_none() {
            return;
        }
        let state = applied_state(replica);
        let quiet = replica.ranges.steps.is_empty() && matches!(replica.install, Install::None);
        let alone = !replica.ranges.is_unsettled() && replica.ranges.merging.is_none();
        let idle = quiet && alone && state.last.index >= replica.ranges.handed;
        let Some(subsumer) = &mut replica.ranges.subsumer else {
            return;
        };
        let broken = |why: &str| {
            let reason = format!("right neighbour {group} {why}");
            Err(Unable::Broken(reason))
        };
        let frozen = state.descriptor.frozen.map(|frozen| frozen.at);
        let result = match (&replica.quarantined, subsumer.at) {
            (Some(reason), _) => broken(&format!("is out of service: {reason}")),
            (None, None) if idle => Ok(Box::new(state)),
            (None, Some(at)) if idle && frozen == Some(at) => Ok(Box::new(state)),
            (None, Some(_)) if idle && planted!(RightNotCaughtUp) => Ok(Box::new(state)),
            (None, Some(_)) if planted!(MergeWithoutFreeze) && frozen.is_some() && idle => {
                Ok(Box::new(state))
            }
            (None, Some(at)) if state.last.index > at.index => broken("is not frozen any more"),
            (None, _) => return,
        };
        if std::mem::replace(&mut subsumer.answered, true) {
            return;
        }
        let (worker, left) = (subsumer.worker, subsumer.left);
        let answer = Input::Subsumable {
            left,
            right: group,
            result,
        };
        self.outbox.push((worker, answer));
    }

    /// The right neighbour has stopped, or cannot.
    pub(super) fn on_subsumable(
        &mut self,
        group: GroupId,
        right: GroupId,
        result: Result<Box<AppliedState>, Unable>,
        effects: &mut Effects,
    ) {
        if self.arriving.contains_key(&group) {
            return self.on_subsumable_by_snapshot(group, right, result, effects);
        }
        let asked = self.replicas.get_mut(&group).and_then(|replica| {
            let merging = replica.ranges.merging.as_mut()?;
            (merging.right == right).then_some(merging)
        });
        match (asked, result) {
            (Some(merging), Ok(state)) => {
                merging.state = Some(*state);
                self.touch(group);
            }
            (Some(_), Err(Unable::Broken(reason))) => self.quarantine(group, &reason),
            // It is asked again when this replica is looked at again, at the next tick at the latest.
            (Some(merging), Err(Unable::Busy)) => *merging = Merging::default(),
            // Nobody wants to know any more.
            (None, Ok(_)) => self.release(group, right),
            (None, Err(_)) => {}
        }
    }

    /// A snapshot contains the data of other groups of this store, which were merged into its own:
    /// it waits until they have stopped.
    pub(super) fn stop_subsumed(
        &mut self,
        from: StoreId,
        header: SnapshotHeader,
        staged: StagedSnapshot,
        rights: Vec<Arc<GroupDescriptor>>,
    ) {
        let left = header.group;
        let waits = rights.iter().map(|right| right.group).collect();
        for right in rights {
            let subsumer = Subsumer {
                left,
                worker: self.index,
                at: None,
                answered: false,
            };
            let worker = self.shared.router.worker_of(right.group);
            let right = Box::new(GroupDescriptor::clone(&right));
            self.outbox
                .push((worker, Input::Subsume { subsumer, right }));
        }
        let arriving = Arriving {
            from,
            header,
            staged,
            waits,
        };
        self.arriving.insert(left, arriving);
        if let Some(replica) = self.replicas.get_mut(&left) {
            replica.ranges.awaits_snapshot = true;
        }
    }

    fn on_subsumable_by_snapshot(
        &mut self,
        group: GroupId,
        right: GroupId,
        result: Result<Box<AppliedState>, Unable>,
        effects: &mut Effects,
    ) {
        let Some(arriving) = self.arriving.get_mut(&group) else {
            return;
        };
        let snapshot = &arriving.staged.state.descriptor;
        let result = result.and_then(|state| {
            let descriptor = GroupDescriptor::clone(&state.descriptor);
            let gone = snapshot.has_subsumed(&descriptor);
            let changed = || Unable::Broken(format!("group {right} has changed"));
            gone.then_some(descriptor).ok_or_else(changed)
        });
        match result {
            Ok(descriptor) => {
                arriving.waits.retain(|waits| *waits != right);
                arriving.staged.subsumes.push(descriptor);
            }
            Err(unable) => {
                tracing::warn!(%group, %right, ?unable, "snapshot refused");
                return self.turn_away(group, effects);
            }
        }
        if !arriving.waits.is_empty() {
            return;
        }
        if let Some(arriving) = self.stop_waiting(group) {
            let Arriving {
                from,
                header,
                staged,
                ..
            } = arriving;
            self.on_snapshot(from, header, staged, effects);
        }
    }

    fn stop_waiting(&mut self, group: GroupId) -> Option<Arriving> {
        if let Some(replica) = self.replicas.get_mut(&group) {
            replica.ranges.awaits_snapshot = false;
        }
        self.touch(group);
        self.arriving.remove(&group)
    }

    /// A snapshot that waits for other groups to stop is not installed.
    pub(super) fn turn_away(&mut self, group: GroupId, effects: &mut Effects) {
        let Some(arriving) = self.stop_waiting(group) else {
            return;
        };
        let stopped = arriving.staged.subsumes.iter().map(|it| it.group);
        for right in stopped.chain(arriving.waits) {
            self.release(group, right);
        }
        effects.applies.push(ApplyTask::Discard(arriving.staged));
    }

    /// The left neighbour's replica does not take it over here after all.
    pub(super) fn on_released(&mut self, left: GroupId, right: GroupId) {
        let Some(replica) = self.replicas.get_mut(&right) else {
            return;
        };
        let subsumer = &mut replica.ranges.subsumer;
        if subsumer.as_ref().is_some_and(|it| it.left == left) {
            *subsumer = None;
            self.wake(right);
        }
    }

    pub(super) fn release(&mut self, left: GroupId, right: GroupId) {
        let worker = self.shared.router.worker_of(right);
        self.outbox.push((worker, Input::Released { left, right }));
    }

    /// A group that has asked its right neighbour to stop does not go on with that.
    pub(super) fn give_up_merging(&mut self, group: GroupId) {
        let Some(replica) = self.replicas.get_mut(&group) else {
            return;
        };
        if let Some(merging) = replica.ranges.merging.take() {
            self.release(group, merging.right);
        }
    }

    /// The merge is durable: the replica ends, and its data is the left neighbour's.
    pub(super) fn on_subsumed(&mut self, group: GroupId, effects: &mut Effects) {
        if let Some(replica) = self.replicas.get_mut(&group) {
            replica.ranges.subsumer = None;
            replica.ranges.doomed = None;
        }
        tracing::info!(%group, "merged into its left neighbour");
        self.end_merged(group, effects);
    }

    /// Whether the logs of all members of a frozen group have its freeze.
    pub(super) fn settled(
        &mut self,
        group: GroupId,
        at: EntryId,
        respond: Responder<Result<(), Reject>>,
    ) {
        let replica = match self.leading(group) {
            Ok(replica) => replica,
            Err(reject) => return respond.answer(Err(reject)),
        };
        let frozen = replica.descriptor.frozen;
        let result = if frozen.is_none_or(|frozen| frozen.at != at) {
            Err(Reject::Refused(format!(
                "it is not frozen since {}",
                at.index
            )))
        } else if has_everywhere(replica, at.index) || planted!(MergeUnsettled) {
            Ok(())
        } else {
            Err(Reject::Busy("not all members have its freeze yet"))
        };
        respond.answer(result);
        self.wake(group);
    }

    /// A replica that could still be taken over by its left neighbour is a lock on its keys: if it
    /// went, the left one could not follow. The left one may not have its first state yet.
    pub(super) fn is_lock(&self, group: GroupId) -> bool {
        let replica = self.replicas.get(&group);
        replica.is_some_and(|replica| self.shared.is_lock(&replica.descriptor, &[]))
    }
}

fn has_everywhere(replica: &Replica, index: Index) -> bool {
    let others = replica.node.matched_by_all();
    replica.applied() >= index && others.is_none_or(|matched| matched >= index)
}

/// A snapshot that waits for the groups that it takes over.
#[derive(Debug)]
pub(super) struct Arriving {
    from: StoreId,
    header: SnapshotHeader,
    staged: StagedSnapshot,
    /// Those that have not stopped yet.
    waits: Vec<GroupId>,
}

/// What the left one needs of its right neighbour before the command can have its effect.
pub(super) enum Neighbour {
    /// It has been asked.
    Waits,
    /// It has stopped with this.
    Stopped(Box<AppliedState>),
}

/// Asks the right neighbour to stop, once, and takes its answer.
pub(super) fn stop_neighbour(
    replica: &mut Replica,
    worker: usize,
    at: EntryId,
    right: &GroupDescriptor,
    right_worker: usize,
    effects: &mut Effects,
) -> Result<Neighbour, String> {
    let merging = replica.ranges.merging.get_or_insert_default();
    if merging.at != at {
        merging.at = at;
        merging.right = right.group;
        let frozen = right.frozen.ok_or("the right neighbour is not frozen")?;
        let subsumer = Subsumer {
            left: replica.group,
            worker,
            at: Some(frozen.at),
            answered: false,
        };
        let right = Box::new(right.clone());
        effects
            .inputs
            .push((right_worker, Input::Subsume { subsumer, right }));
        return Ok(Neighbour::Waits);
    }
    match merging.state.take() {
        None => Ok(Neighbour::Waits),
        Some(state) => {
            replica.ranges.merging = None;
            Ok(Neighbour::Stopped(Box::new(state)))
        }
    }
}
