//! The small seam under log and data: named column families of ordered bytes, batches, one sync.
//!
//! # Contract
//! * [`Disk::write`] is atomic: after a crash all of a batch is there or nothing of it.
//! * [`Durability::Synced`] survives a power cut once `write` has returned, together with every
//!   earlier write that went through the write-ahead log. After a failed sync every later write fails.
//! * [`Durability::Buffered`] goes through the write-ahead log without a sync: a crash of the process
//!   keeps it, a power cut keeps a prefix of such writes.
//! * [`Durability::Volatile`] stays in memory until [`Disk::flush`] of its column family: a crash may
//!   lose it, but never a part of a batch, and never an earlier one while a later one of the same
//!   column family is kept.
//! * What was written is readable at once.

use bytes::Bytes;

use crate::bulk::{BulkId, BulkWriter};

/// The column families of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cf {
    /// Hot log records, by sequence number.
    Log,
    /// Log entries that were moved out of hot records.
    Settled,
    /// Hard state, identity and bounds of replicas; tombstones.
    State,
    /// Data of state machines.
    Data,
    /// What the store itself is.
    Meta,
}

impl Cf {
    /// All of them, in the order in which they are opened.
    pub const ALL: [Self; 5] = [
        Self::Log,
        Self::Settled,
        Self::State,
        Self::Data,
        Self::Meta,
    ];

    /// Its name on disk.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Settled => "settled",
            Self::State => "state",
            Self::Data => "data",
            Self::Meta => "meta",
        }
    }
}

/// What must survive what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// A power cut.
    Synced,
    /// A crash of the process.
    Buffered,
    /// Nothing until the next flush of the column family.
    Volatile,
}

/// One change in a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Key and value.
    Put(Bytes, Bytes),
    /// Key.
    Delete(Bytes),
    /// Keys of `[start, end)`.
    DeleteRange(Bytes, Bytes),
}

impl Change {
    /// The one key that is changed; none: it is a range.
    pub(crate) const fn key(&self) -> Option<&Bytes> {
        match self {
            Self::Put(key, _) | Self::Delete(key) => Some(key),
            Self::DeleteRange(..) => None,
        }
    }
}

/// Changes that happen together, in order.
pub type Batch = Vec<(Cf, Change)>;

/// What can go wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// No room; nothing was written.
    #[error("no space left on the device")]
    Full,
    /// The engine cannot be trusted any more.
    #[error("{0}")]
    Fatal(String),
    /// What is on the disk is damaged.
    #[error("corrupt: {0}")]
    Corrupt(String),
}

/// Key and value.
pub type Pair = (Bytes, Bytes);

/// A consistent state of the disk, as of when it was taken.
pub trait View: Send {
    /// The value of a key.
    ///
    /// # Errors
    /// See [`DiskError`].
    fn get(&self, cf: Cf, key: &[u8]) -> Result<Option<Bytes>, DiskError>;
    /// Pairs of `[start, end)` in order, at most `limit` of them; no `end`: to the last.
    ///
    /// # Errors
    /// See [`DiskError`].
    fn scan(
        &self,
        cf: Cf,
        start: &[u8],
        end: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Pair>, DiskError>;
    /// The last pairs of `[start, end)`, at most `limit` of them, the last one first; no `end`: from
    /// the very last.
    ///
    /// # Errors
    /// See [`DiskError`].
    fn scan_reverse(
        &self,
        cf: Cf,
        start: &[u8],
        end: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Pair>, DiskError>;
}

/// See the module's contract.
pub trait Disk: Send + Sync + 'static {
    /// Writes a batch.
    ///
    /// # Errors
    /// Nothing of the batch was acknowledged.
    fn write(&self, batch: Batch, durability: Durability) -> Result<(), DiskError>;
    /// The value of a key.
    ///
    /// # Errors
    /// See [`DiskError`].
    fn get(&self, cf: Cf, key: &[u8]) -> Result<Option<Bytes>, DiskError>;
    /// As [`View::scan`], of what is there now.
    ///
    /// # Errors
    /// See [`DiskError`].
    fn scan(
        &self,
        cf: Cf,
        start: &[u8],
        end: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Pair>, DiskError>;
    /// As [`View::scan_reverse`], of what is there now.
    ///
    /// # Errors
    /// See [`DiskError`].
    fn scan_reverse(
        &self,
        cf: Cf,
        start: &[u8],
        end: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Pair>, DiskError>;
    /// A consistent state, as of now.
    fn view(&self) -> Box<dyn View>;
    /// Begins a file of pairs for a column family, see [`bulk`](crate::bulk). One of the same name goes.
    ///
    /// # Errors
    /// See [`DiskError`].
    fn begin_bulk(&self, cf: Cf, id: BulkId) -> Result<Box<dyn BulkWriter>, DiskError>;
    /// Makes finished files part of a column family, one after the other.
    ///
    /// # Errors
    /// See [`DiskError`]; nothing of them was ingested.
    fn ingest(&self, cf: Cf, ids: &[BulkId]) -> Result<(), DiskError>;
    /// Removes a file. What was ingested of it stays. It is no error if there is none.
    ///
    /// # Errors
    /// See [`DiskError`].
    fn remove_bulk(&self, id: BulkId) -> Result<(), DiskError>;
    /// The files that are there, finished or not, in order.
    ///
    /// # Errors
    /// See [`DiskError`].
    fn bulks(&self) -> Result<Vec<BulkId>, DiskError>;
    /// Makes every volatile write of a column family that returned before this call durable.
    ///
    /// # Errors
    /// See [`DiskError`].
    fn flush(&self, cf: Cf) -> Result<(), DiskError>;
}
