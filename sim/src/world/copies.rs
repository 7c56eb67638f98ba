//! Somebody who now and then looks at a replica's own copy of the data, without asking anybody.
//!
//! Invariant: looking changes nothing. What is looked at is drawn from a source of its own, so that the
//! world goes on as it would have.

use polyraft_core::RoleName;

use super::World;
use crate::history::LocalCopy;
use crate::rng::Rng;
use crate::sometimes;
use crate::subject::Request;

/// Of a hundred events of clients, how many are followed by a look.
const LOOKS: u64 = 15;
/// How often a subject is asked for an operation until it is a query.
const TRIES: u64 = 8;

impl World {
    /// Perhaps reads from a copy, leader or not.
    pub(super) fn look_at_a_copy(&mut self) {
        let mut rng = Rng::new(self.plan.seed ^ self.events.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        if !rng.percent(LOOKS) {
            return;
        }
        let stores: Vec<_> = self.stores.keys().copied().collect();
        let (Some(group), Some(store)) = (rng.pick(&self.live()).copied(), rng.pick(&stores))
        else {
            return;
        };
        let Some(store) = self.stores.get(store) else {
            return;
        };
        let Some(running) = &store.running else {
            return;
        };
        let handle = &running.parts.handle;
        let (Some(summary), Some(descriptor)) = (handle.summary(group), handle.descriptor(group))
        else {
            return;
        };
        let mut operations =
            (0..TRIES).map(|number| self.subject.operation(&mut rng, group, 0, number));
        let query = operations.find_map(|operation| match &operation.request {
            Request::Query(query) => Some((query.clone(), operation)),
            Request::Command { .. } => None,
        });
        let Some((query, operation)) = query else {
            return;
        };
        // A copy that is being replaced cannot be read.
        let Ok(output) = running.machine.query(&descriptor, &query) else {
            return;
        };
        let role = summary.basic.soft_state.role;
        sometimes!(role != RoleName::Leader, "world: copy of a follower read");
        let copy = LocalCopy {
            store: store.id,
            incarnation: store.incarnation,
            replica: summary.replica,
        };
        let now = self.queue.now();
        self.history.local_read(now, copy, group, operation, output);
    }
}
