//! Bytes of proposals and of messages that wait stay within what a store is configured to, and when
//! everything has come to rest none are left.
//!
//! What is larger than a whole budget passes while nothing else is in use. A proposal cannot be: its size
//! is limited before. A batch of messages can, so what was delivered at once last may be above.

use std::collections::BTreeMap;

use polyraft_core::{Entry, Payload};
use polyraft_multiraft::{HostStats, StoreId};

use super::Property;
use super::books::{Books, raft};
use crate::observe::{End, Observation};

/// What a store is configured to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of proposals that are not answered yet.
    pub proposal_bytes_max: u64,
    /// Bytes of messages that wait for a worker.
    pub inbound_bytes_max: u64,
    /// Bytes of entries in an append of more than one.
    pub message_bytes_max: u64,
}

/// None.
impl Default for Limits {
    fn default() -> Self {
        Self {
            proposal_bytes_max: u64::MAX,
            inbound_bytes_max: u64::MAX,
            message_bytes_max: u64::MAX,
        }
    }
}

impl Limits {
    /// Those of a host.
    #[must_use]
    pub const fn of(config: &polyraft_multiraft::HostConfig) -> Self {
        Self {
            proposal_bytes_max: config.proposal_bytes_max,
            inbound_bytes_max: config.inbound_bytes_max,
            message_bytes_max: config.message_bytes_max,
        }
    }
}

pub(super) type LimitsOf = Box<dyn Fn(StoreId) -> Limits + Send>;

/// See the module.
pub(super) struct Budgets {
    limits: LimitsOf,
    known: BTreeMap<StoreId, Limits>,
    /// By target: sender and bytes of what is being delivered, without anything between.
    delivering: Option<(StoreId, StoreId, u64)>,
    /// By target: the most that was delivered at once since nothing was in use.
    largest: BTreeMap<StoreId, u64>,
}

/// What the host counts for a proposal or a message beside its payload, at most.
const OVERHEAD: u64 = 512;

impl Budgets {
    pub(super) fn new(limits: LimitsOf) -> Self {
        Self {
            limits,
            known: BTreeMap::new(),
            delivering: None,
            largest: BTreeMap::new(),
        }
    }

    fn limits(&mut self, store: StoreId) -> Limits {
        let limits = &self.limits;
        *self.known.entry(store).or_insert_with(|| limits(store))
    }

    fn delivered(&mut self, from: StoreId, to: StoreId, bytes: u64) {
        let before = match self.delivering {
            Some((known, target, bytes)) if (known, target) == (from, to) => bytes,
            _ => 0,
        };
        let bytes = before + bytes;
        self.delivering = Some((from, to, bytes));
        let largest = self.largest.entry(to).or_default();
        *largest = bytes.max(*largest);
    }

    fn published(&mut self, store: StoreId, stats: &HostStats) -> Result<(), String> {
        let limits = self.limits(store);
        let (proposals, inbound) = (stats.proposal_bytes, stats.inbound_bytes);
        let max = limits.proposal_bytes_max.saturating_add(OVERHEAD);
        if proposals > max {
            return Err(format!(
                "store {store}: {proposals} bytes of proposals, at most {max}"
            ));
        }
        let largest = self.largest.get(&store).copied().unwrap_or(0);
        let max = limits.inbound_bytes_max.max(largest);
        if inbound > max {
            return Err(format!(
                "store {store}: {inbound} bytes of messages, at most {max}"
            ));
        }
        if inbound == 0 {
            self.largest.remove(&store);
        }
        Ok(())
    }

    fn sent(&mut self, from: StoreId, entries: &[Entry]) -> Result<(), String> {
        if entries.len() < 2 {
            return Ok(());
        }
        let max = self.limits(from).message_bytes_max;
        let bytes: u64 = entries.iter().map(Entry::size).sum();
        if bytes <= max {
            return Ok(());
        }
        let count = entries.len();
        Err(format!(
            "store {from} sends {count} entries of {bytes} bytes at once, at most {max}"
        ))
    }
}

impl Property for Budgets {
    fn name(&self) -> &'static str {
        "budgets"
    }

    fn see(&mut self, seen: &Observation<'_>, _books: &Books) -> Result<(), String> {
        if let Observation::Delivered { from, to, message } = *seen {
            let payload = raft(message).map(|message| &message.payload);
            let bytes = match payload {
                Some(Payload::Append { entries, .. }) => entries.iter().map(Entry::size).sum(),
                _ => 0,
            };
            self.delivered(from, to, bytes + OVERHEAD);
            return Ok(());
        }
        self.delivering = None;
        match *seen {
            Observation::Published { store, stats, .. } => self.published(store, stats),
            Observation::Sent { from, message, .. } => match raft(message).map(|m| &m.payload) {
                Some(Payload::Append { entries, .. }) => self.sent(from, entries),
                _ => Ok(()),
            },
            Observation::Starting { store, .. } => {
                self.largest.remove(&store);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn finish(&mut self, end: &End) -> Result<(), String> {
        for store in &end.stores {
            let (proposals, inbound) = (store.stats.proposal_bytes, store.stats.inbound_bytes);
            if proposals + inbound > 0 {
                return Err(format!(
                    "store {} is at rest with {proposals} bytes of proposals and {inbound} of messages",
                    store.store
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use polyraft_core::RoleName;
    use polyraft_multiraft::env::{Body, GroupMessage};

    use super::super::testing::{GROUP, Scene, append, caught, entry, hard, summary};
    use super::*;
    use crate::observe::StoreEnd;

    fn scene() -> Scene {
        let limits = Limits {
            proposal_bytes_max: 1_000,
            inbound_bytes_max: 2_000,
            message_bytes_max: 60,
        };
        Scene::of(Budgets::new(Box::new(move |_| limits)))
    }

    fn stats(proposal_bytes: u64, inbound_bytes: u64) -> HostStats {
        HostStats {
            proposal_bytes,
            inbound_bytes,
            ..HostStats::default()
        }
    }

    fn publish(scene: &mut Scene, proposals: u64, inbound: u64) -> Result<(), String> {
        let says = summary(1, RoleName::Follower, hard(1, 0, 2));
        scene.publish_stats(1, says, &stats(proposals, inbound))
    }

    #[test]
    fn budgets_are_kept() {
        let mut scene = scene();
        publish(&mut scene, 1_000, 2_000).unwrap();
        caught(&publish(&mut scene, 1_600, 0), "1600 bytes of proposals");
        caught(&publish(&mut scene, 0, 2_001), "2001 bytes of messages");
    }

    #[test]
    fn one_large_delivery_passes_alone() {
        let mut scene = scene();
        let message = GroupMessage {
            group: GROUP,
            body: Body::Tombstone {
                replica: polyraft_core::ReplicaId(1),
                next_replica: polyraft_core::ReplicaId(2),
            },
        };
        let deliver = |scene: &mut Scene| {
            scene.see(&Observation::Delivered {
                from: StoreId(2),
                to: StoreId(1),
                message: &message,
            })
        };
        (0..5).for_each(|_| deliver(&mut scene).unwrap());
        publish(&mut scene, 0, 2_500).unwrap();
        publish(&mut scene, 0, 0).unwrap();
        caught(&publish(&mut scene, 0, 2_500), "2500 bytes of messages");
    }

    #[test]
    fn messages_are_as_large_as_they_may_be() {
        let mut scene = scene();
        let long = "a command of more than sixty bytes, which therefore travels alone";
        scene
            .send(1, 2, 2, append((1, 2), &[entry(2, 3, long)]))
            .unwrap();
        let two = [entry(2, 3, "12345"), entry(2, 4, "12345")];
        scene.send(1, 2, 2, append((1, 2), &two)).unwrap();
        let two = [entry(2, 3, "12345678"), entry(2, 4, "12345")];
        caught(
            &scene.send(1, 2, 2, append((1, 2), &two)),
            "sends 2 entries of 61 bytes",
        );
    }

    #[test]
    fn nothing_is_in_use_at_rest() {
        let end = |stats| End {
            stores: vec![StoreEnd {
                store: StoreId(1),
                replicas: Vec::new(),
                stats,
                data: Vec::new(),
                leftovers: Vec::new(),
            }],
            ..End::default()
        };
        let mut scene = scene();
        scene.finish(&end(stats(0, 0))).unwrap();
        caught(
            &scene.finish(&end(stats(1, 0))),
            "at rest with 1 bytes of proposals",
        );
        caught(&scene.finish(&end(stats(0, 1))), "and 1 of messages");
    }
}
