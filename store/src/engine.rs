//! One directory, opened: log, data and what the store is, on one RocksDB.

use std::path::Path;
use std::sync::Arc;

use crate::data::{Application, DataStateMachine};
use crate::disk::DiskError;
use crate::log::{LogOptions, RaftLog};
use crate::meta::StoreMeta;
use crate::rocks::{RocksDisk, RocksOptions};

/// Sizes of a store.
#[derive(Clone, Copy, Debug, Default)]
pub struct StoreOptions {
    /// Of the engine.
    pub rocks: RocksOptions,
    /// Of the log.
    pub log: LogOptions,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Store {
    disk: RocksDisk,
    log: Arc<RaftLog<RocksDisk>>,
    meta: StoreMeta<RocksDisk>,
}

impl Store {
    /// Opens or creates a store in `path`.
    ///
    /// # Errors
    /// The directory is in use, of another format, or damaged.
    pub fn open(path: &Path, options: StoreOptions) -> Result<Self, DiskError> {
        let disk = RocksDisk::open(path, options.rocks)?;
        let meta = StoreMeta::open(disk.clone())?;
        let log = Arc::new(RaftLog::new(disk.clone(), options.log));
        Ok(Self { disk, log, meta })
    }

    /// The Raft log of all groups.
    #[must_use]
    pub fn log(&self) -> Arc<RaftLog<RocksDisk>> {
        Arc::clone(&self.log)
    }

    /// The data of all groups, run by `application`.
    pub fn state_machine<A: Application>(
        &self,
        application: A,
    ) -> Arc<DataStateMachine<A, RocksDisk>> {
        Arc::new(DataStateMachine::new(application, self.disk.clone()))
    }

    /// What the store is.
    #[must_use]
    pub const fn meta(&self) -> &StoreMeta<RocksDisk> {
        &self.meta
    }
}
