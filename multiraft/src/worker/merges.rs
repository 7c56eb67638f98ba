//! A group takes over its right neighbour's keys: what the two replicas of one store say to each other, each
//! on its own worker.
//!
//! When the command stands first in the left one's log, the left one asks the right one to stop. The right one
//! takes no messages and is not ticked from then on. It has its freeze in its log, since whoever proposed the
//! command has seen to that, and that it is committed the command itself says: so it applies up to
//! there, and nothing behind it, and says what it has. Then the left one's applier moves the data, which a
//! crash may take back; when it cannot any more, the right one's replica ends for ever.
//!
//! Invariant: from the answer to the end, or to the release, nothing of the right one changes here.

use polyraft_core::{EntryId, Index};

use super::Worker;
use super::ranges::applied_state;
use crate::effects::Effects;
use crate::error::Reject;
use crate::group::{AppliedState, Frozen, GroupDescriptor, GroupId};
use crate::input::Input;
use crate::replica::{Install, Replica, Subsumer};
use crate::responder::Responder;

impl Worker {
    /// The left neighbour is about to take this group's keys over.
    pub(super) fn on_subsume(&mut self, subsumer: Subsumer, right: &GroupDescriptor) {
        let (group, left, worker) = (right.group, subsumer.left, subsumer.worker);
        let stopped = self.stop_for(subsumer, right);
        if let Err(reason) = stopped {
            let result = Err(format!(
                "its right neighbour {group} cannot follow: {reason}"
            ));
            self.outbox.push((
                worker,
                Input::Subsumable {
                    left,
                    right: group,
                    result,
                },
            ));
            return;
        }
        self.awake.remove(&group);
        self.touch(group);
        self.answer_subsumer(group);
    }

    fn stop_for(&mut self, subsumer: Subsumer, right: &GroupDescriptor) -> Result<(), String> {
        let store = self.config.store;
        let replica = self.replicas.get_mut(&right.group);
        let replica = replica.ok_or("it has no replica here")?;
        if let Some(reason) = &replica.quarantined {
            return Err(format!("it is out of service: {reason}"));
        }
        if right.replica_on(store) != Some(replica.id) || !replica.is_initialised() {
            return Err(format!(
                "replica {} of it is here, without data",
                replica.id
            ));
        }
        let learned = replica.node.learn_committed(subsumer.at);
        if !learned.map_err(|error| error.to_string())? {
            return Err("its log ends before its freeze".to_owned());
        }
        replica.ranges.subsumer = Some(subsumer);
        Ok(())
    }

    /// Tells the left neighbour when everything up to the freeze is applied.
    pub(super) fn answer_subsumer(&mut self, group: GroupId) {
        let Some(replica) = self.replicas.get_mut(&group) else {
            return;
        };
        let state = applied_state(replica);
        let ready = replica.ranges.steps.is_empty() && matches!(replica.install, Install::None);
        let Some(subsumer) = &mut replica.ranges.subsumer else {
            return;
        };
        let result = match (&replica.quarantined, state.descriptor.frozen) {
            (Some(reason), _) => Err(format!("its right neighbour is out of service: {reason}")),
            (None, Some(Frozen { at, .. })) if ready && at == subsumer.at => Ok(Box::new(state)),
            (None, _) if state.last.index > subsumer.at.index => {
                Err("its right neighbour is not frozen any more".to_owned())
            }
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
        result: Result<Box<AppliedState>, String>,
    ) {
        let asked = self.replicas.get_mut(&group).and_then(|replica| {
            let merging = replica.ranges.merging.as_mut()?;
            (merging.right == right).then_some(merging)
        });
        match (asked, result) {
            (Some(merging), Ok(state)) => {
                merging.state = Some(*state);
                self.touch(group);
            }
            (Some(_), Err(reason)) => self.quarantine(group, &reason),
            // Nobody wants to know any more.
            (None, _) => self.release(group, right),
        }
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
        } else if has_everywhere(replica, at.index) {
            Ok(())
        } else {
            Err(Reject::Busy("not all members have its freeze yet"))
        };
        respond.answer(result);
        self.wake(group);
    }

    /// A replica that could still be taken over by its left neighbour is a lock on its keys: if it went, the left
    /// one could not follow.
    pub(super) fn is_lock(&self, group: GroupId) -> bool {
        let Some(replica) = self.replicas.get(&group) else {
            return false;
        };
        let into = replica.descriptor.frozen.map(|frozen| frozen.into);
        self.shared.registry.has_left_of(group, into)
    }
}

fn has_everywhere(replica: &Replica, index: Index) -> bool {
    let others = replica.node.matched_by_all();
    replica.node.applied() >= index && others.is_none_or(|matched| matched >= index)
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
            at: frozen.at,
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
