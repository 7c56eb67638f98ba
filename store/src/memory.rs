//! A [`Disk`] in memory that models what a crash keeps: for tests and simulation.
//!
//! Every write is kept in order with its durability; a crash replays those that survive. The model is the
//! contract of [`Disk`], not that of any engine.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::bulk::{self, BulkFile, BulkFiles, BulkId, BulkWriter, MemoryBulk};
use crate::disk::{Batch, Cf, Disk, DiskError, Durability, Pair, View};
use crate::tables::Tables;

/// See the module. Clones share one disk.
#[derive(Clone, Debug, Default)]
pub struct MemoryDisk {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    now: Arc<Tables>,
    /// What a power cut certainly keeps.
    base: Tables,
    /// Written since, in order.
    pending: Vec<Pending>,
    fault: Option<Fault>,
    broken: bool,
    bulks: BulkFiles,
}

#[derive(Debug)]
struct Pending {
    batch: Batch,
    durability: Durability,
    /// Files that became part of a column family: certain at once.
    ingested: bool,
    /// Volatile writes: the column families of it that were flushed since.
    flushed: Vec<Cf>,
}

/// What the next synced write runs into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No room, until the fault is taken away.
    Full,
    /// The sync fails, and with it everything later.
    SyncFails,
}

impl MemoryDisk {
    /// An empty disk.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets or takes away a fault.
    pub fn set_fault(&self, fault: Option<Fault>) {
        self.inner.lock().fault = fault;
    }

    /// The disk after a power cut: what is synced or flushed, and of the rest of the write-ahead log the
    /// first `keep` writes. Volatile writes that were not flushed are gone.
    #[must_use]
    pub fn crash(&self, keep: usize) -> Self {
        let inner = self.inner.lock();
        let mut tables = inner.base.clone();
        let synced = inner
            .pending
            .iter()
            .rposition(|p| p.durability == Durability::Synced && !p.ingested);
        let mut left = keep;
        for (at, pending) in inner.pending.iter().enumerate() {
            let survives = match pending.durability {
                _ if pending.ingested => true,
                Durability::Volatile => false,
                _ if synced.is_some_and(|synced| at <= synced) => true,
                _ => {
                    let survives = left > 0;
                    left = left.saturating_sub(1);
                    survives
                }
            };
            for (cf, change) in &pending.batch {
                if survives || pending.flushed.contains(cf) {
                    tables.apply(*cf, change);
                }
            }
        }
        let inner = Inner {
            now: Arc::new(tables.clone()),
            base: tables,
            bulks: inner.bulks.clone(),
            ..Inner::default()
        };
        Self {
            inner: Arc::new(Mutex::new(inner)),
        }
    }

    /// Flips one bit of a value, as a failing medium would.
    pub fn flip_bit(&self, cf: Cf, key: &[u8], bit: usize) {
        let mut inner = self.inner.lock();
        let mut tables = Tables::clone(&inner.now);
        if let Some(value) = tables.table_mut(cf).get_mut(key) {
            let mut bytes = value.to_vec();
            let at = bit / 8 % bytes.len();
            bytes[at] ^= 1 << (bit % 8);
            *value = bytes.into();
        }
        inner.base = tables.clone();
        inner.pending.clear();
        inner.now = Arc::new(tables);
    }
}

impl Inner {
    /// Whether something can be written, and synced.
    fn check(&mut self, synced: bool) -> Result<(), DiskError> {
        if self.broken {
            return Err(DiskError::Fatal("an earlier sync failed".to_owned()));
        }
        match self.fault {
            Some(Fault::Full) => Err(DiskError::Full),
            Some(Fault::SyncFails) if synced => {
                self.broken = true;
                Err(DiskError::Fatal("sync failed".to_owned()))
            }
            _ => Ok(()),
        }
    }

    fn push(&mut self, batch: Batch, durability: Durability, ingested: bool) {
        let tables = Arc::make_mut(&mut self.now);
        for (cf, change) in &batch {
            tables.apply(*cf, change);
        }
        self.pending.push(Pending {
            batch,
            durability,
            ingested,
            flushed: Vec::new(),
        });
    }
}

impl Disk for MemoryDisk {
    fn write(&self, batch: Batch, durability: Durability) -> Result<(), DiskError> {
        let mut inner = self.inner.lock();
        inner.check(durability == Durability::Synced)?;
        inner.push(batch, durability, false);
        Ok(())
    }

    fn get(&self, cf: Cf, key: &[u8]) -> Result<Option<Bytes>, DiskError> {
        self.inner.lock().now.get(cf, key)
    }

    fn scan(
        &self,
        cf: Cf,
        start: &[u8],
        end: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Pair>, DiskError> {
        self.inner.lock().now.scan(cf, start, end, limit)
    }

    fn scan_reverse(
        &self,
        cf: Cf,
        start: &[u8],
        end: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Pair>, DiskError> {
        self.inner.lock().now.scan_reverse(cf, start, end, limit)
    }

    fn begin_bulk(&self, cf: Cf, id: BulkId) -> Result<Box<dyn BulkWriter>, DiskError> {
        let mut inner = self.inner.lock();
        inner.check(false)?;
        inner.bulks.insert(id, None);
        let disk = self.clone();
        let done = move |file: Option<BulkFile>| {
            let mut inner = disk.inner.lock();
            let result = inner.check(true);
            match file {
                Some(file) if result.is_ok() => inner.bulks.insert(id, Some(file)),
                _ => inner.bulks.remove(&id),
            };
            result
        };
        Ok(Box::new(MemoryBulk::new(cf, done)))
    }

    fn ingest(&self, cf: Cf, ids: &[BulkId]) -> Result<(), DiskError> {
        let mut inner = self.inner.lock();
        inner.check(true)?;
        let batch = bulk::changes(&inner.bulks, cf, ids)?;
        inner.push(batch, Durability::Synced, true);
        Ok(())
    }

    fn remove_bulk(&self, id: BulkId) -> Result<(), DiskError> {
        let mut inner = self.inner.lock();
        inner.check(false)?;
        inner.bulks.remove(&id);
        Ok(())
    }

    fn bulks(&self) -> Result<Vec<BulkId>, DiskError> {
        Ok(self.inner.lock().bulks.keys().copied().collect())
    }

    fn view(&self) -> Box<dyn View> {
        Box::new(Arc::clone(&self.inner.lock().now))
    }

    fn flush(&self, cf: Cf) -> Result<(), DiskError> {
        let mut inner = self.inner.lock();
        if inner.broken {
            return Err(DiskError::Fatal("an earlier sync failed".to_owned()));
        }
        if inner.fault == Some(Fault::Full) {
            return Err(DiskError::Full);
        }
        for pending in &mut inner.pending {
            pending.flushed.push(cf);
        }
        Ok(())
    }
}
