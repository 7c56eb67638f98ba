//! Reads of replicas' own copies, whoever leads: they may lag, but never show what never was, nor go back.

use polyraft_multiraft::{GroupId, StoreId};

use super::{Event, World};
use crate::history::LocalCopy;
use crate::subject::{Operation, Request};
use crate::time::{MILLISECOND, SECOND};

/// The client in whose name copies are read; it never writes.
const READER: u64 = u16::MAX as u64;
/// Operations that are drawn at most until one of them is a query.
const DRAWS: u64 = 16;

impl World {
    /// One copy is read; the next one a while later.
    pub(super) fn peek(&mut self) {
        let after = self.peeks.magnitude(20 * MILLISECOND, SECOND);
        self.queue.push(after, Event::Peek);
        let stores: Vec<StoreId> = self.running().map(|(store, _)| store).collect();
        let families = self.families();
        let (store, family) = (self.peeks.pick(&stores), self.peeks.pick(&families));
        if let (Some(&store), Some(&family)) = (store, family) {
            self.read_copy(store, family);
        }
    }

    /// Reads one of the groups of a family.
    fn read_copy(&mut self, id: StoreId, family: GroupId) {
        let Some(query) = self.some_query(family) else {
            return;
        };
        let numbers = self.groups.get(&family).map(|known| &known.numbers);
        let here = |group: &&GroupId| {
            let handle = self.stores[&id].handle();
            handle.is_some_and(|handle| handle.summary(**group).is_some())
        };
        let groups: Vec<GroupId> = numbers
            .into_iter()
            .flatten()
            .filter(here)
            .copied()
            .collect();
        let Some(&group) = self.peeks.pick(&groups) else {
            return;
        };
        let store = &self.stores[&id];
        let Some(running) = &store.running else {
            return;
        };
        let handle = &running.parts.handle;
        let here = handle.descriptor(group).zip(handle.summary(group));
        let Some((descriptor, summary)) = here.filter(|(d, _)| !d.members.is_empty()) else {
            return;
        };
        let Request::Query(asked) = &query.request else {
            return;
        };
        // Not all of a snapshot is there yet, or the copy is on its way out: then it says so.
        let Ok(output) = running.machine.query(&descriptor, asked) else {
            return;
        };
        // Its data may have moved before it says so.
        if handle.generation(group) != Some(descriptor.epoch.range) {
            return;
        }
        let copy = LocalCopy {
            store: id,
            incarnation: store.incarnation,
            group,
            replica: summary.replica,
        };
        let now = self.queue.now();
        self.history.local_read(now, copy, family, query, output);
    }

    fn some_query(&mut self, group: GroupId) -> Option<Operation> {
        let (subject, rng) = (&self.subject, &mut self.peeks);
        let mut drawn = (1..=DRAWS).map(|number| subject.operation(rng, group, READER, number));
        drawn.find(|operation| matches!(operation.request, Request::Query(_)))
    }
}
