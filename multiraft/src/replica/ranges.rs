//! What a replica is doing about changes of its range.
//!
//! What a command for the host does depends on everything before it, so it waits, and with it what is
//! behind it, until that is applied. Then the applier gets it, and when the effect is applied whoever asked
//! for it is answered. The groups that a split makes begin when the split is durable.

use std::collections::VecDeque;
use std::sync::Arc;

use polyraft_core::{Entry, EntryId, Index, ReplicaId};

use crate::error::Reject;
use crate::group::{AppliedState, GroupDescriptor, GroupId, KeyRange};
use crate::ranges::RangeRefusal;
use crate::responder::Responder;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Ranges {
    /// Committed entries that the applier does not have yet: the first is for the host, or behind one.
    pub(crate) held: VecDeque<Entry>,
    /// Commands that the applier has.
    pub(crate) steps: VecDeque<Step>,
    /// Splits that are applied and not durable.
    pub(crate) shifts: Vec<Shift>,
    /// The last command that this replica has proposed.
    pub(crate) proposed: EntryId,
    /// Those who wait for a command.
    pub(crate) asked: Vec<Ask>,
    /// The right neighbour that has been asked to stop.
    pub(crate) merging: Option<Merging>,
    /// The last entry that the applier was given.
    pub(crate) handed: Index,
    /// A snapshot that takes other groups over waits for those to stop.
    pub(crate) awaits_snapshot: bool,
    /// Groups that the snapshot which is being installed takes over.
    pub(crate) subsuming: Vec<GroupId>,
    /// The left neighbour that has asked this one to stop.
    pub(crate) subsumer: Option<Subsumer>,
    /// The replica is to be destroyed when it has no split that is not durable.
    pub(crate) doomed: Option<Doom>,
}

/// What a command is going to do, or why it has no effect.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) id: EntryId,
    /// The descriptors of all groups that come out of it, by range.
    pub(crate) result: Result<Vec<Arc<GroupDescriptor>>, RangeRefusal>,
    pub(crate) shift: Option<Shift>,
}

/// Keys have changed hands, which is not durable yet: new groups wait for that, or the end of one.
#[derive(Debug)]
pub(crate) struct Shift {
    /// What the group has now.
    pub(crate) left: Option<KeyRange>,
    /// The new groups, each with its replica here, if it is to have one.
    pub(crate) rights: Vec<(AppliedState, Option<ReplicaId>)>,
    /// The group whose keys were taken over.
    pub(crate) absorbs: Option<GroupId>,
    /// The last flush that may have begun before the split was applied.
    pub(crate) after_flush: u64,
}

/// A merge that stands first in the log.
#[derive(Debug, Default)]
pub(crate) struct Merging {
    /// Its command's entry.
    pub(crate) at: EntryId,
    pub(crate) right: GroupId,
    /// What the right neighbour has stopped with.
    pub(crate) state: Option<AppliedState>,
}

/// Who takes this group over, on this store.
#[derive(Debug)]
pub struct Subsumer {
    /// The left neighbour.
    pub left: GroupId,
    /// Its worker.
    pub worker: usize,
    /// The freeze: everything up to it is to be applied. None: the left neighbour has a snapshot
    /// that contains this group's data, whatever of it is here.
    pub at: Option<EntryId>,
    /// It has been told.
    pub answered: bool,
}

/// Why a group does not stop for its left neighbour.
#[derive(Debug)]
pub enum Unable {
    /// It has stopped for another one already, which may yet leave it.
    Busy,
    /// It never will.
    Broken(String),
}

/// Somebody waits for the effect of a command.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) id: EntryId,
    pub(crate) respond: Responder<Result<Vec<GroupDescriptor>, Reject>>,
}

/// See [`Ranges::doomed`].
#[derive(Debug)]
pub(crate) struct Doom {
    pub(crate) next_replica: ReplicaId,
    pub(crate) asked: Vec<Responder<Result<(), Reject>>>,
}

impl Shift {
    /// The groups that begin on this store.
    pub(crate) fn kept(&self) -> impl Iterator<Item = GroupId> + '_ {
        let kept = self.rights.iter().filter(|(_, replica)| replica.is_some());
        kept.map(|(state, _)| state.descriptor.group)
    }
}

impl Ranges {
    /// Whether groups have data here that they cannot begin with yet.
    pub(crate) fn is_unsettled(&self) -> bool {
        !self.shifts.is_empty() || self.steps.iter().any(|step| step.shift.is_some())
    }

    /// A snapshot takes the place of everything that is not applied.
    pub(crate) fn skipped_to(&mut self, index: Index) {
        self.held.clear();
        self.steps.clear();
        self.merging = None;
        let skipped = |ask: &mut Ask| ask.id.index <= index;
        for ask in self.asked.extract_if(.., skipped) {
            ask.respond.answer(Err(Reject::Ambiguous));
        }
    }

    /// Whoever waits may or may not get what he wants.
    pub(crate) fn give_up(&mut self) {
        for ask in self.asked.drain(..) {
            ask.respond.answer(Err(Reject::Ambiguous));
        }
    }
}
