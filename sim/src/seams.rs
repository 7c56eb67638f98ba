//! The seams of a host, with somebody looking: what goes through is shown to the checkers.

use std::sync::Arc;

use polyraft_core::{Durable, Entry, Index};
use polyraft_multiraft::env::{
    ApplyItem, LogBatch, LogEngine, LogError, LogStats, RangeChange, Recovered, SnapshotSink,
    SnapshotSource, StagedSnapshot, StateMachine, StateMachineError,
};
use polyraft_multiraft::{AppliedState, GroupDescriptor, GroupId, KeyRange, StoreId};
use polyraft_store::RaftLog;
use polyraft_store::disk::Cf;

use crate::disk::SimDisk;
use crate::observe::{Observation, Observer};
use crate::subject::Served;

/// The log of a store.
pub(crate) struct WatchedLog {
    pub(crate) store: StoreId,
    pub(crate) log: RaftLog<SimDisk>,
    pub(crate) observer: Observer,
}

impl LogEngine for WatchedLog {
    fn recover(&self) -> Result<Recovered, LogError> {
        let found = self.log.recover()?;
        self.observer.see(&Observation::RecoveredLog {
            store: self.store,
            found: &found,
        });
        Ok(found)
    }

    fn write(&self, batch: &LogBatch) -> Result<Durable, LogError> {
        let result = self.log.write(batch);
        // After a failed sync nobody knows whether it is there: it may be.
        if matches!(result, Ok(_) | Err(LogError::Fatal(_))) {
            self.observer.see(&Observation::Written {
                store: self.store,
                batch,
            });
        }
        result
    }

    fn read(
        &self,
        group: GroupId,
        low: Index,
        high: Index,
        max_bytes: u64,
    ) -> Result<Vec<Entry>, LogError> {
        self.log.read(group, low, high, max_bytes)
    }

    fn maintain(&self) -> Result<bool, LogError> {
        self.log.maintain()
    }

    fn stats(&self) -> LogStats {
        self.log.stats()
    }
}

/// A split that nothing else of its group is applied with: the keys of the parts that stay on this store are
/// the same before and after.
struct Divided {
    group: GroupId,
    parts: Vec<KeyRange>,
}

impl Divided {
    fn of(item: &ApplyItem) -> Option<Self> {
        let Some(RangeChange::Split { rights }) = &item.range_change else {
            return None;
        };
        if !item.commands.is_empty() {
            return None;
        }
        let left = item.state.descriptor.range.iter();
        let kept = rights.iter().filter(|right| right.keep);
        let kept = kept.filter_map(|right| right.state.descriptor.range.as_ref());
        Some(Self {
            group: item.group,
            parts: left.chain(kept).cloned().collect(),
        })
    }

    fn digest(&self, disk: &SimDisk) -> u64 {
        digest(disk, &self.parts)
    }
}

/// Over all pairs of the ranges. Keys of users begin with a byte that is not 0, which is not their own:
/// the format is in `store`'s documentation.
fn digest(disk: &SimDisk, ranges: &[KeyRange]) -> u64 {
    let of_ranges = |key: &[u8]| match key.split_first() {
        Some((&tag, key)) if tag != 0 => ranges.iter().any(|part| part.contains(key)),
        _ => false,
    };
    let fold = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    let pairs = disk.contents(Cf::Data).into_iter();
    let pairs = pairs.filter(|(key, _)| of_ranges(key));
    pairs.fold(0xcbf2_9ce4_8422_2325, |hash, (key, value)| {
        let hash = key.iter().fold(hash, fold);
        value.iter().fold(hash.rotate_left(9), fold)
    })
}

/// A merge, before it is applied.
struct Uniting {
    /// Where among the items.
    at: usize,
    right: AppliedState,
    /// The range of both.
    range: KeyRange,
    brought: u64,
    before: u64,
    /// Commands are applied with it.
    busy: bool,
}

impl Uniting {
    fn of(at: usize, item: &ApplyItem, disk: &SimDisk) -> Option<Self> {
        let Some(RangeChange::Merge { right }) = &item.range_change else {
            return None;
        };
        let range = item.state.descriptor.range.clone()?;
        let gone = right.descriptor.range.clone()?;
        Some(Self {
            at,
            right: right.clone(),
            brought: digest(disk, &[gone]),
            before: digest(disk, std::slice::from_ref(&range)),
            range,
            busy: !item.commands.is_empty(),
        })
    }

    fn tell(&self, store: StoreId, items: &[ApplyItem], disk: &SimDisk, observer: &Observer) {
        let after = || digest(disk, std::slice::from_ref(&self.range));
        observer.see(&Observation::United {
            store,
            group: items[self.at].group,
            right: &self.right,
            brought: self.brought,
            before: self.before,
            after: (!self.busy).then(after),
        });
    }
}

/// The state machine of a store.
pub(crate) struct WatchedMachine {
    pub(crate) store: StoreId,
    pub(crate) machine: Arc<dyn Served>,
    pub(crate) disk: SimDisk,
    pub(crate) observer: Observer,
}

impl StateMachine for WatchedMachine {
    fn recover(&self) -> Result<Vec<AppliedState>, StateMachineError> {
        let states = self.machine.recover()?;
        self.observer.see(&Observation::RecoveredData {
            store: self.store,
            states: &states,
        });
        Ok(states)
    }

    fn merged(&self) -> Result<Vec<GroupId>, StateMachineError> {
        let merged = self.machine.merged()?;
        self.observer.see(&Observation::RecoveredMerges {
            store: self.store,
            merged: &merged,
        });
        Ok(merged)
    }

    fn forget(&self, group: GroupId) -> Result<(), StateMachineError> {
        self.machine.forget(group)
    }

    fn create(&self, state: &AppliedState) -> Result<(), StateMachineError> {
        self.machine.create(state)?;
        let store = self.store;
        self.observer.see(&Observation::Created { store, state });
        Ok(())
    }

    fn apply(&self, items: &mut [ApplyItem]) -> Result<(), StateMachineError> {
        let divided = items.iter().filter_map(Divided::of);
        let divided: Vec<Divided> = divided.collect();
        let digest = |divided: &Divided| divided.digest(&self.disk);
        let before: Vec<u64> = divided.iter().map(digest).collect();
        let each = items.iter().enumerate();
        let uniting = each.filter_map(|(at, item)| Uniting::of(at, item, &self.disk));
        let uniting: Vec<Uniting> = uniting.collect();
        self.machine.apply(items)?;
        let store = self.store;
        self.observer.see(&Observation::Applied { store, items });
        for (divided, before) in divided.iter().zip(before) {
            self.observer.see(&Observation::Divided {
                store,
                group: divided.group,
                before,
                after: divided.digest(&self.disk),
            });
        }
        for uniting in uniting {
            uniting.tell(store, items, &self.disk, &self.observer);
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), StateMachineError> {
        self.machine.flush()?;
        self.observer
            .see(&Observation::Flushed { store: self.store });
        Ok(())
    }

    fn snapshot(&self, group: GroupId) -> Result<Box<dyn SnapshotSource>, StateMachineError> {
        self.machine.snapshot(group)
    }

    fn stage(&self, state: &AppliedState) -> Result<Box<dyn SnapshotSink>, StateMachineError> {
        self.machine.stage(state)
    }

    fn restore(&self, staged: &StagedSnapshot) -> Result<(), StateMachineError> {
        self.machine.restore(staged)?;
        self.observer.see(&Observation::Restored {
            store: self.store,
            state: &staged.state,
            subsumes: &staged.subsumes,
        });
        Ok(())
    }

    fn discard(&self, staged: &StagedSnapshot) {
        self.machine.discard(staged);
    }

    fn destroy(&self, descriptor: &GroupDescriptor) -> Result<(), StateMachineError> {
        self.machine.destroy(descriptor)?;
        self.observer.see(&Observation::Destroyed {
            store: self.store,
            descriptor,
        });
        Ok(())
    }
}
