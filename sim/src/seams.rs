//! The seams of a host, with somebody looking: what goes through is shown to the checkers.

use std::sync::Arc;

use polyraft_core::{Durable, Entry, Index};
use polyraft_multiraft::env::{
    ApplyItem, LogBatch, LogEngine, LogError, LogStats, Recovered, SnapshotSink, SnapshotSource,
    StagedSnapshot, StateMachine, StateMachineError,
};
use polyraft_multiraft::{AppliedState, GroupDescriptor, GroupId, StoreId};
use polyraft_store::RaftLog;

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

/// The state machine of a store.
pub(crate) struct WatchedMachine {
    pub(crate) store: StoreId,
    pub(crate) machine: Arc<dyn Served>,
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
        self.machine.merged()
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
        self.machine.apply(items)?;
        let store = self.store;
        self.observer.see(&Observation::Applied { store, items });
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
