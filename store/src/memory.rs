//! A [`Disk`] in memory that models what a crash keeps: for tests and simulation.
//!
//! Every write is kept in order with its durability; a crash replays those that survive. The model is the
//! contract of [`Disk`], not that of any engine.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

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
}

#[derive(Debug)]
struct Pending {
    batch: Batch,
    durability: Durability,
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
            .rposition(|p| p.durability == Durability::Synced);
        let mut left = keep;
        for (at, pending) in inner.pending.iter().enumerate() {
            let survives = match pending.durability {
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

impl Disk for MemoryDisk {
    fn write(&self, batch: Batch, durability: Durability) -> Result<(), DiskError> {
        let mut inner = self.inner.lock();
        if inner.broken {
            return Err(DiskError::Fatal("an earlier sync failed".to_owned()));
        }
        match inner.fault {
            Some(Fault::Full) => return Err(DiskError::Full),
            Some(Fault::SyncFails) if durability == Durability::Synced => {
                inner.broken = true;
                return Err(DiskError::Fatal("sync failed".to_owned()));
            }
            _ => {}
        }
        let tables = Arc::make_mut(&mut inner.now);
        for (cf, change) in &batch {
            tables.apply(*cf, change);
        }
        inner.pending.push(Pending {
            batch,
            durability,
            flushed: Vec::new(),
        });
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
