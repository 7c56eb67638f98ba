//! What the groups replicate.
//!
//! One object serves all groups of a store, so that what many groups apply in one turn can be
//! one write.
//!
//! # Contract
//! * [`StateMachine::apply`] writes data and [`ApplyItem::state`] of an item in one atomic batch.
//!   It is deterministic: same commands, same state, on every replica.
//! * Applied data need not be durable when `apply` returns: after a crash a prefix may be gone, and
//!   the host applies again from the log. [`StateMachine::flush`] makes everything applied
//!   before the call durable; only then does the host truncate the log.
//! * `create`, `restore` and `destroy` are durable and atomic on return.

use bytes::Bytes;
use polyraft_core::EntryId;

use crate::group::{AppliedState, GroupDescriptor, GroupId};

/// One committed command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Term and index of its entry.
    pub id: EntryId,
    /// The proposer's bytes; never empty.
    pub data: Bytes,
}

/// What one turn applies for one group.
#[derive(Debug)]
pub struct ApplyItem {
    /// Which group.
    pub group: GroupId,
    /// Consecutive commands (empty and configuration entries are left out).
    pub commands: Vec<Command>,
    /// To be stored in the same batch: the state after the last entry of the turn.
    pub state: AppliedState,
    /// Whether `state.conf_state` or `state.descriptor` differ from what was stored before; if
    /// not, only `state.last` needs writing.
    pub membership_changed: bool,
    /// What happens to the group's range after the commands, in the same batch. `state` is the
    /// group's state after it; commands still see the range from before.
    pub range_change: Option<RangeChange>,
    /// To be filled: one reply per command.
    pub replies: Vec<Bytes>,
}

/// What can happen to the data of a group when its range changes. See [`ApplyItem::range_change`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RangeChange {
    /// The keys behind the end of the group's new range belong to new groups from now on. Each gets
    /// what else belongs to the data of a group (sessions, what the application keeps) from this one.
    Split {
        /// The new groups, in the order of their ranges, which lie right behind each other.
        rights: Vec<SplitRight>,
    },
    /// The keys of the group's right neighbour belong to this group from now on, and so does what else
    /// its data contains; nothing of it remains under the neighbour's number but a marker, which
    /// [`StateMachine::recover`] reports until [`StateMachine::forget`].
    Merge {
        /// The neighbour's state on this store when it stopped: everything up to its freeze is applied.
        right: AppliedState,
    },
}

/// One of the new groups of a split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitRight {
    /// Its first state.
    pub state: AppliedState,
    /// Whether it is to live on this store. If not (its replica here was removed, or replaced, before
    /// this store got to the split), its keys are removed and nothing is written under its number.
    pub keep: bool,
}

/// What can go wrong, by who must act.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateMachineError {
    /// No room; nothing was written; may be tried again when there is room.
    #[error("state machine: no space left on the device")]
    DiskFull,
    /// The engine cannot be trusted any more; the store must stop.
    #[error("state machine: {0}")]
    Fatal(String),
    /// One group's data is damaged or a snapshot is unusable; only that replica is affected.
    #[error("state machine of group {group}: {reason}")]
    Group {
        /// Which group.
        group: GroupId,
        /// What was found.
        reason: String,
    },
}

/// A consistent snapshot of one group being read, chunk by chunk.
pub trait SnapshotSource: Send {
    /// What it contains.
    fn state(&self) -> &AppliedState;
    /// The next chunk of at most about `max_bytes`; none at the end.
    fn next_chunk(&mut self, max_bytes: usize) -> Result<Option<Bytes>, StateMachineError>;
}

/// A snapshot being received. Dropped unfinished, it leaves nothing behind.
pub trait SnapshotSink: Send {
    /// The next chunk, in order.
    fn write(&mut self, chunk: Bytes) -> Result<(), StateMachineError>;
    /// All chunks are there.
    fn finish(self: Box<Self>) -> Result<StagedSnapshot, StateMachineError>;
}

/// A complete snapshot waiting on this store to be installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StagedSnapshot {
    /// The state machine's own name for it.
    pub token: u64,
    /// What it contains.
    pub state: AppliedState,
    /// Its size.
    pub bytes: u64,
    /// Groups whose keys it contains, because they were merged into its own: their data here goes
    /// when it is installed, in the same step, as in [`RangeChange::Merge`].
    pub subsumes: Vec<GroupDescriptor>,
}

/// The data of all groups of one store. See the module's contract.
pub trait StateMachine: Send + Sync + 'static {
    /// What every group has durably applied. Called once at the start.
    fn recover(&self) -> Result<Vec<AppliedState>, StateMachineError>;
    /// Groups of this store that were merged into another one and not forgotten since: their data is
    /// that of the other group now. Called once at the start.
    fn merged(&self) -> Result<Vec<GroupId>, StateMachineError>;
    /// The host knows durably that a group was merged into another one. Need not be durable.
    fn forget(&self, group: GroupId) -> Result<(), StateMachineError>;
    /// A new group with no data yet.
    fn create(&self, state: &AppliedState) -> Result<(), StateMachineError>;
    /// Applies one turn's commands of many groups as one write; fills the replies.
    fn apply(&self, items: &mut [ApplyItem]) -> Result<(), StateMachineError>;
    /// Makes everything applied before the call durable.
    fn flush(&self) -> Result<(), StateMachineError>;
    /// A consistent view of one group as of now.
    fn snapshot(&self, group: GroupId) -> Result<Box<dyn SnapshotSource>, StateMachineError>;
    /// All replicas of a group that apply the same command call this with the same `id`, each when it has
    /// applied exactly what precedes that command: whoever keeps a view of the group as of now can compare
    /// it with those of other stores later. May be ignored; nobody waits for anything but the return.
    fn inspect(&self, _group: GroupId, _id: u64) {}
    /// Begins to receive a snapshot.
    fn stage(&self, state: &AppliedState) -> Result<Box<dyn SnapshotSink>, StateMachineError>;
    /// Replaces all data of the group by the staged snapshot, atomically even across a crash.
    fn restore(&self, staged: &StagedSnapshot) -> Result<(), StateMachineError>;
    /// A staged snapshot is not wanted.
    fn discard(&self, staged: &StagedSnapshot);
    /// Removes all data of a group; nothing of it remains.
    fn destroy(&self, descriptor: &GroupDescriptor) -> Result<(), StateMachineError>;
}
