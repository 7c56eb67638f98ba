//! Which worker owns a group, and what may be known of it without asking.
//!
//! The only map that threads share. Access is by closures that return values: no guard is ever held
//! across another call.

use std::sync::Arc;

use polyraft_core::{RoleName, Term};

use crate::changes::Changes;
use crate::group::{GroupDescriptor, GroupId};
use crate::group_map::BuildGroupHasher;
use crate::handle::ReplicaSummary;
use crate::sync::{DashMap, Entry};

/// Group → worker, with the small summary that the worker publishes at the end of a pass.
#[derive(Debug)]
pub(crate) struct Router {
    workers: usize,
    slots: DashMap<GroupId, Slot, BuildGroupHasher>,
    /// What the leaders among the replicas have news of.
    pub(crate) changes: Changes,
}

#[derive(Clone, Debug)]
struct Slot {
    worker: usize,
    summary: ReplicaSummary,
    descriptor: Arc<GroupDescriptor>,
    /// Of its range, or of the one that it is about to have.
    generation: u64,
}

impl Router {
    pub(crate) fn new(workers: usize) -> Self {
        Self {
            workers,
            slots: DashMap::default(),
            changes: Changes::default(),
        }
    }

    /// The worker of a group; of one that is not here, the worker that would own it.
    #[must_use]
    pub(crate) fn worker_of(&self, group: GroupId) -> usize {
        if self.workers == 1 {
            return 0;
        }
        let owner = self.slots.get(&group).map(|slot| slot.worker);
        owner.unwrap_or_else(|| self.home_of(group))
    }

    /// The worker on which a new group is put.
    pub(crate) fn home_of(&self, group: GroupId) -> usize {
        let spread = group.0.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        usize::try_from(spread).unwrap_or(0) % self.workers
    }

    pub(crate) fn publish(
        &self,
        worker: usize,
        summary: ReplicaSummary,
        descriptor: &Arc<GroupDescriptor>,
    ) {
        let mut news = leads(&summary);
        match self.slots.entry(summary.group) {
            Entry::Occupied(mut slot) => {
                let slot = slot.get_mut();
                let same = Arc::ptr_eq(&slot.descriptor, descriptor);
                news &= !same || !leads(&slot.summary) || term(&slot.summary) != term(&summary);
                (slot.worker, slot.summary) = (worker, summary);
                if !same {
                    slot.descriptor = Arc::clone(descriptor);
                    slot.generation = slot.generation.max(descriptor.epoch.range);
                }
            }
            Entry::Vacant(free) => {
                free.insert(Slot {
                    worker,
                    summary,
                    descriptor: Arc::clone(descriptor),
                    generation: descriptor.epoch.range,
                });
            }
        }
        // Only now: whoever hears of it must find it.
        if news {
            self.changes.note(summary.group);
        }
    }

    /// The range of a group is about to change.
    pub(crate) fn announce(&self, group: GroupId, generation: u64) {
        if let Entry::Occupied(mut slot) = self.slots.entry(group) {
            let slot = slot.get_mut();
            slot.generation = slot.generation.max(generation);
        }
    }

    /// The generation of a group's range, or of the one that it is about to have.
    pub(crate) fn generation(&self, group: GroupId) -> Option<u64> {
        self.slots.get(&group).map(|slot| slot.generation)
    }

    pub(crate) fn remove(&self, group: GroupId) {
        self.slots.remove(&group);
    }

    pub(crate) fn summary(&self, group: GroupId) -> Option<ReplicaSummary> {
        self.slots.get(&group).map(|slot| slot.summary)
    }

    pub(crate) fn descriptor(&self, group: GroupId) -> Option<Arc<GroupDescriptor>> {
        self.slots
            .get(&group)
            .map(|slot| Arc::clone(&slot.descriptor))
    }

    /// All summaries, ascending by group.
    pub(crate) fn list(&self) -> Vec<ReplicaSummary> {
        let mut all: Vec<_> = self.slots.iter().map(|slot| slot.summary).collect();
        all.sort_unstable_by_key(|summary| summary.group);
        all
    }

    /// All descriptors, ascending by group.
    pub(crate) fn descriptors(&self) -> Vec<Arc<GroupDescriptor>> {
        let mut all: Vec<_> = self
            .slots
            .iter()
            .map(|slot| Arc::clone(&slot.descriptor))
            .collect();
        all.sort_unstable_by_key(|descriptor| descriptor.group);
        all
    }
}

fn leads(summary: &ReplicaSummary) -> bool {
    summary.basic.soft_state.role == RoleName::Leader
}

const fn term(summary: &ReplicaSummary) -> Term {
    summary.basic.hard_state.term
}
