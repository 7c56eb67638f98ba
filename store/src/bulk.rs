//! Files of pairs that are written on the side and become part of a column family all at once.
//!
//! Much data that comes in order goes faster past the write-ahead log and the memtables: it is written
//! once, where it stays.
//!
//! # Contract
//! * Nothing of a file is readable before [`Disk::ingest`](crate::disk::Disk::ingest). That is atomic and
//!   durable: after a crash everything of all files named is there or nothing of them. It comes after
//!   everything that was written to the column family before; whether that survives a crash it does
//!   not change, except that it may make it durable, and that what was [`Synced`] is.
//! * A file that is finished survives a power cut, until it is removed; it may be ingested again.
//! * A file that is not finished when the process ends may be left behind, of no use. Whoever uses files
//!   finds them with [`Disk::bulks`](crate::disk::Disk::bulks) at the start and removes them.
//!
//! [`Synced`]: crate::disk::Durability::Synced

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::disk::{Cf, Change, DiskError, Pair};

/// Which file; whoever begins files sees to it that no two have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BulkId {
    /// What it belongs to.
    pub set: u64,
    /// Which one of that.
    pub number: u32,
}

/// A file that is being written. Dropped unfinished, it is removed.
pub trait BulkWriter: Send {
    /// The next pair; keys ascend.
    ///
    /// # Errors
    /// Those of a write. Nothing but a drop may follow.
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), DiskError>;
    /// Keys of `[start, end)` go when the file is ingested, except for those in it.
    ///
    /// # Errors
    /// Those of a write. Nothing but a drop may follow.
    fn remove_range(&mut self, start: &[u8], end: &[u8]) -> Result<(), DiskError>;
    /// There are no more; durable on return. At least one pair or range must have come.
    ///
    /// # Errors
    /// Those of a write; the file is gone then.
    fn finish(self: Box<Self>) -> Result<(), DiskError>;
}

/// A file of a disk in memory.
#[derive(Clone, Debug)]
pub struct BulkFile {
    cf: Cf,
    removed: Vec<(Bytes, Bytes)>,
    pairs: Vec<Pair>,
}

/// The files of a disk in memory; none: it is not finished.
pub type BulkFiles = BTreeMap<BulkId, Option<BulkFile>>;

/// The changes that the ingestion of files makes.
///
/// # Errors
/// One of them is not there, not finished, or of another column family.
pub fn changes(files: &BulkFiles, cf: Cf, ids: &[BulkId]) -> Result<Vec<(Cf, Change)>, DiskError> {
    let mut changes = Vec::new();
    for id in ids {
        let file = files.get(id).and_then(Option::as_ref);
        let Some(file) = file.filter(|file| file.cf == cf) else {
            return Err(DiskError::Fatal(format!("{id:?} cannot be ingested")));
        };
        let removed = file.removed.iter().cloned();
        changes.extend(removed.map(|(start, end)| (cf, Change::DeleteRange(start, end))));
        let pairs = file.pairs.iter().cloned();
        changes.extend(pairs.map(|(key, value)| (cf, Change::Put(key, value))));
    }
    Ok(changes)
}

/// A file of a disk in memory that is being written: `done` is told of it when it is finished, or that it is
/// given up.
pub struct MemoryBulk<F: FnMut(Option<BulkFile>) -> Result<(), DiskError> + Send> {
    file: Option<BulkFile>,
    done: F,
}

impl<F: FnMut(Option<BulkFile>) -> Result<(), DiskError> + Send> MemoryBulk<F> {
    /// Begins one.
    pub const fn new(cf: Cf, done: F) -> Self {
        let file = BulkFile {
            cf,
            removed: Vec::new(),
            pairs: Vec::new(),
        };
        Self {
            file: Some(file),
            done,
        }
    }
}

impl<F: FnMut(Option<BulkFile>) -> Result<(), DiskError> + Send> BulkWriter for MemoryBulk<F> {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), DiskError> {
        if let Some(file) = &mut self.file {
            if file.pairs.last().is_some_and(|(last, _)| *last >= key) {
                return Err(DiskError::Fatal("keys of a file that descend".to_owned()));
            }
            let (key, value) = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
            file.pairs.push((key, value));
        }
        Ok(())
    }

    fn remove_range(&mut self, start: &[u8], end: &[u8]) -> Result<(), DiskError> {
        let (start, end) = (Bytes::copy_from_slice(start), Bytes::copy_from_slice(end));
        if let Some(file) = &mut self.file {
            file.removed.push((start, end));
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<(), DiskError> {
        let is_empty = |file: &BulkFile| file.pairs.is_empty() && file.removed.is_empty();
        if self.file.as_ref().is_some_and(is_empty) {
            return Err(DiskError::Fatal("a file of nothing".to_owned()));
        }
        let file = self.file.take();
        (self.done)(file)
    }
}

impl<F: FnMut(Option<BulkFile>) -> Result<(), DiskError> + Send> Drop for MemoryBulk<F> {
    fn drop(&mut self) {
        if self.file.is_some()
            && let Err(error) = (self.done)(None)
        {
            // It is left behind, as the contract says.
            tracing::debug!(%error, "a file that was given up is still there");
        }
    }
}
