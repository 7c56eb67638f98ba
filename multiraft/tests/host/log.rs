//! A log in memory that knows what is synced, and watches what a host writes into it.
//!
//! Beside faults it checks what no host may ever do to its log: lower a term, change a vote within a
//! term, bring a replica back that was destroyed, or use an id for two replicas.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use polyraft_core::{Durable, Entry, EntryId, HardState, Index, ReplicaId};
use polyraft_multiraft::env::conformance::{LogModel, LogSubject, SeamFault};
use polyraft_multiraft::env::{
    Lifecycle, LogBatch, LogEngine, LogError, LogSection, LogStats, Recovered,
};
use polyraft_multiraft::{GroupId, StoreId};

/// Ids that replicas of all stores have been created with, and where.
pub(crate) type Registry = Arc<Mutex<BTreeMap<(GroupId, ReplicaId), StoreId>>>;

/// What survives restarts of the host. Clones share one disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct LogDisk {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    store: StoreId,
    /// None: nobody watches.
    registry: Option<Registry>,
    /// What a power cut certainly keeps.
    synced: LogModel,
    now: LogModel,
    /// What lies between them, by batch.
    unsynced: Vec<LogModel>,
    fault: Option<SeamFault>,
    broken: bool,
    /// Groups whose entries cannot be read.
    damaged: BTreeSet<GroupId>,
    /// The lowest id that may still be created, by group; never forgotten.
    floor: BTreeMap<GroupId, ReplicaId>,
    stats: LogStats,
}

impl LogDisk {
    /// An empty disk of a store.
    pub(crate) fn new(store: StoreId, registry: Registry) -> Self {
        let inner = Inner {
            store,
            registry: Some(registry),
            ..Inner::default()
        };
        Self {
            inner: Arc::new(Mutex::new(inner)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("nobody panics with it")
    }

    pub(crate) fn set_fault(&self, fault: Option<SeamFault>) {
        self.lock().fault = fault;
    }

    /// From now on entries of a group cannot be read.
    pub(crate) fn damage(&self, group: GroupId) {
        self.lock().damaged.insert(group);
    }

    /// The same disk, where what is written may take back what was promised.
    pub(crate) fn stop_watching(&self) -> &Self {
        self.lock().registry = None;
        self
    }

    /// Of the writes after the last synced one the first `keep` survive.
    pub(crate) fn power_cut(&self, keep: usize) {
        let mut inner = self.lock();
        let kept = match keep.min(inner.unsynced.len()) {
            0 => inner.synced.clone(),
            keep => inner.unsynced[keep - 1].clone(),
        };
        inner.synced = kept.clone();
        inner.now = kept;
        inner.unsynced.clear();
        inner.broken = false;
        inner.fault = None;
    }

    /// A new process opens it: after a failed sync only what was synced before is there.
    pub(crate) fn reopen(&self) {
        if self.lock().broken {
            self.power_cut(0);
        }
    }

    /// What of a replica is durable: hard state and last entry.
    pub(crate) fn durable(&self, group: GroupId) -> Option<(ReplicaId, HardState, EntryId)> {
        self.lock().synced.replica(group)
    }

    /// What a start would find.
    pub(crate) fn recovered(&self) -> Recovered {
        self.lock().now.recovered()
    }
}

impl Inner {
    fn watch(&mut self, section: &LogSection) {
        let (group, store) = (section.group, self.store);
        let Some(registry) = &self.registry else {
            return;
        };
        match section.lifecycle {
            Some(Lifecycle::Create { replica }) => {
                let floor = self.floor.entry(group).or_default();
                assert!(
                    replica >= *floor,
                    "store {store}, group {group}: replica {replica} is below {floor}"
                );
                *floor = replica;
                let mut registry = registry.lock().expect("nobody panics with it");
                let home = *registry.entry((group, replica)).or_insert(store);
                assert_eq!(
                    home, store,
                    "group {group}: replica {replica} in two stores"
                );
            }
            Some(Lifecycle::Destroy { next_replica }) => {
                let floor = self.floor.entry(group).or_default();
                *floor = next_replica.max(*floor);
            }
            None => {}
        }
        if section.lifecycle.is_some() {
            return;
        }
        let before = self.now.replica(group).map(|(_, state, _)| state);
        if let (Some(before), Some(after)) = (before, section.hard_state) {
            let name = format!("store {store}, group {group}: {before:?} to {after:?}");
            assert!(after.term >= before.term, "{name}");
            assert!(after.commit >= before.commit, "{name}");
            let voted = after.term == before.term && !before.vote.is_none();
            assert!(!voted || after.vote == before.vote, "{name}");
        }
    }
}

impl LogEngine for LogDisk {
    fn recover(&self) -> Result<Recovered, LogError> {
        Ok(self.recovered())
    }

    fn write(&self, batch: &LogBatch) -> Result<Durable, LogError> {
        let mut inner = self.lock();
        let failed = |why: &str| Err(LogError::Fatal(why.to_owned()));
        if inner.broken {
            return failed("an earlier sync failed");
        }
        match inner.fault {
            Some(SeamFault::Full) => return Err(LogError::DiskFull),
            Some(SeamFault::SyncFails) if batch.sync => {
                inner.broken = true;
                return failed("sync failed");
            }
            _ => {}
        }
        let mut next = inner.now.clone();
        next.apply(batch)?;
        for section in &batch.sections {
            inner.watch(section);
        }
        inner.now = next.clone();
        if batch.sync {
            inner.synced = next;
            inner.unsynced.clear();
        } else {
            inner.unsynced.push(next);
        }
        let entries = batch.sections.iter().flat_map(|section| &section.entries);
        inner.stats.bytes += entries.clone().map(Entry::size).sum::<u64>();
        inner.stats.entries += entries.count() as u64;
        inner.stats.syncs += u64::from(batch.sync);
        Ok(Durable::attest())
    }

    fn read(
        &self,
        group: GroupId,
        low: Index,
        high: Index,
        max_bytes: u64,
    ) -> Result<Vec<Entry>, LogError> {
        let inner = self.lock();
        if inner.damaged.contains(&group) {
            let reason = "damaged on purpose".to_owned();
            return Err(LogError::Corrupt { group, reason });
        }
        inner.now.read(group, low, high, max_bytes)
    }

    fn maintain(&self) -> Result<bool, LogError> {
        Ok(false)
    }

    fn stats(&self) -> LogStats {
        self.lock().stats
    }
}

impl LogSubject for LogDisk {
    type Engine = Self;

    fn open(&self) -> Self {
        self.clone()
    }

    fn power_cut(&self, keep: usize) -> bool {
        Self::power_cut(self, keep);
        true
    }

    fn set_fault(&self, fault: Option<SeamFault>) -> bool {
        Self::set_fault(self, fault);
        true
    }
}
