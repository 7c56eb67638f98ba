//! The Raft log of all groups of one store.
//!
//! # Contract
//! * [`LogEngine::write`] makes a whole [`LogBatch`] durable, atomically, in one record and with
//!   one sync, or fails. After a failed sync every later write fails too: what the disk holds is
//!   no longer known.
//! * Sections of one batch are applied in order; within a section: `lifecycle`, `reset`,
//!   `hard_state`, `entries` (overwriting any stored suffix from the first one's index on),
//!   `truncate`.
//! * What was written is readable at once, durable or not.
//! * Recovery verifies what it reads and refuses what it cannot trust, naming group and record.

use polyraft_core::{Durable, Entry, EntryId, HardState, Index, ReplicaId, Term};

use crate::group::GroupId;

/// Everything that one sync makes durable.
#[derive(Debug, Default)]
pub struct LogBatch {
    /// False only if nothing in the batch needs to survive a power cut (commit indexes,
    /// truncation marks).
    pub sync: bool,
    /// In order; a group may occur more than once.
    pub sections: Vec<LogSection>,
}

/// What one batch changes for one group.
#[derive(Clone, Debug, Default)]
pub struct LogSection {
    /// Which group.
    pub group: GroupId,
    /// Begin or end of a replica.
    pub lifecycle: Option<Lifecycle>,
    /// The log becomes empty and continues after this entry (bootstrap, snapshot).
    pub reset: Option<EntryId>,
    /// Term, vote and commit, if changed.
    pub hard_state: Option<HardState>,
    /// To append.
    pub entries: Vec<Entry>,
    /// Entries up to and including this one are no longer needed.
    pub truncate: Option<EntryId>,
}

/// Begin or end of a replica on this store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifecycle {
    /// The replica exists from now on; written before its first vote. An older replica of the
    /// same group must have been destroyed before (or is, by an earlier section).
    Create {
        /// Its id.
        replica: ReplicaId,
    },
    /// The replica's log and hard state are gone; what remains is the tombstone: no replica of
    /// this group with a lower id than `next_replica` may ever be created here.
    Destroy {
        /// The tombstone; `u64::MAX`: the group itself is dead for ever.
        next_replica: ReplicaId,
    },
}

/// What a start finds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// All replicas that exist, ascending by group.
    pub groups: Vec<RecoveredGroup>,
    /// Tombstones of groups without a replica here: group and lowest replica id that may be
    /// created. Where there is a replica, its own id is that bound.
    pub tombstones: Vec<(GroupId, ReplicaId)>,
}

/// One replica as found at the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveredGroup {
    /// Which group.
    pub group: GroupId,
    /// Which replica.
    pub replica: ReplicaId,
    /// As last written.
    pub hard_state: HardState,
    /// The entry before the first one present.
    pub truncated: EntryId,
    /// The last entry present, or `truncated`.
    pub last: EntryId,
    /// The term of every present index: first index of each run of one term, ascending.
    pub terms: Vec<(Term, Index)>,
}

/// Sizes, for status and metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogStats {
    /// Bytes in hot records.
    pub hot_bytes: u64,
    /// Hot records.
    pub hot_records: u64,
    /// Bytes of the index in memory.
    pub index_bytes: u64,
    /// Synced writes since the start.
    pub syncs: u64,
    /// Entries written since the start.
    pub entries: u64,
    /// Bytes written since the start.
    pub bytes: u64,
}

/// What can go wrong, by who must act.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// No room; nothing was written; may be tried again when there is room.
    #[error("log: no space left on the device")]
    DiskFull,
    /// The engine cannot be trusted any more; the store must stop.
    #[error("log: {0}")]
    Fatal(String),
    /// One group's log is damaged; the replica must be quarantined.
    #[error("log of group {group}: {reason}")]
    Corrupt {
        /// Which group.
        group: GroupId,
        /// What was found.
        reason: String,
    },
    /// The range is (partly) truncated or beyond the end.
    #[error("log of group {group}: entries [{low}, {high}) are not all present")]
    Unavailable {
        /// Which group.
        group: GroupId,
        /// First index asked for.
        low: Index,
        /// Past the last index asked for.
        high: Index,
    },
}

/// The durable log of all groups of one store. See the module's contract.
pub trait LogEngine: Send + Sync + 'static {
    /// What exists, verified. To be called once, before anything else.
    fn recover(&self) -> Result<Recovered, LogError>;
    /// Writes the batch; on return it is durable (if `batch.sync`), and this is the receipt.
    fn write(&self, batch: &LogBatch) -> Result<Durable, LogError>;
    /// Consecutive entries of `[low, high)`, cut after `max_bytes` of [`Entry::size`] but never
    /// empty. Contiguity is verified on the way out.
    fn read(
        &self,
        group: GroupId,
        low: Index,
        high: Index,
        max_bytes: u64,
    ) -> Result<Vec<Entry>, LogError>;
    /// Bounded housekeeping (settling, removal of dead records); called now and then from a
    /// maintenance thread. Returns whether there is more to do.
    fn maintain(&self) -> Result<bool, LogError>;
    /// Sizes.
    fn stats(&self) -> LogStats;
}
