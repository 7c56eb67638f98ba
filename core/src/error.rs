//! Errors. Whatever can come from outside is an error here and never a panic; the caller decides
//! whether one group is poisoned by it.

use crate::types::{Index, ReplicaId};

/// What a [`Storage`](crate::Storage) may answer instead of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// The index was truncated away.
    #[error("requested index is unavailable due to compaction")]
    Compacted,
    /// The index lies beyond the last one.
    #[error("requested entry at index is unavailable")]
    Unavailable,
    /// A snapshot older than the one present.
    #[error("requested index is older than the existing snapshot")]
    SnapshotOutOfDate,
    /// Not in memory; ask for it with [`Fetch`](crate::Fetch).
    #[error("entries are temporarily unavailable")]
    TemporarilyUnavailable,
    /// No snapshot now; try later.
    #[error("snapshot is temporarily unavailable")]
    SnapshotTemporarilyUnavailable,
    /// The storage's data cannot be trusted.
    #[error("storage is corrupt at index {0}")]
    Corrupt(Index),
}

/// Why a message was not stepped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StepError {
    /// A response from a replica that is no member.
    #[error("raft: cannot step as peer not found")]
    PeerNotFound,
    /// A forwarded proposal was dropped.
    #[error(transparent)]
    Propose(#[from] ProposeError),
    /// The message contradicts itself or this replica's durable state.
    #[error("malformed message from replica {from}: {reason}")]
    Malformed {
        /// Who sent it.
        from: ReplicaId,
        /// What is wrong.
        reason: &'static str,
    },
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The replica is poisoned.
    #[error("replica is stopped after an internal error: {0}")]
    Poisoned(&'static str),
}

/// Why a proposal was not appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProposeError {
    /// No leader is known, this replica is no member, forwarding is off, or a transfer runs.
    #[error("raft proposal dropped")]
    Dropped,
    /// The limit on uncommitted bytes is reached.
    #[error("raft proposal dropped: uncommitted size limit")]
    UncommittedLimit,
    /// The storage failed; the replica is stopped, so nothing of the proposal leaves it.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The replica is stopped, so nothing of the proposal leaves it.
    #[error("replica is stopped after an internal error: {0}")]
    Poisoned(&'static str),
}

/// Why a configuration change is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MembershipError {
    /// Entering joint from joint.
    #[error("config is already joint")]
    AlreadyJoint,
    /// Entering joint without voters.
    #[error("can't make a zero-voter config joint")]
    ZeroVoterJoint,
    /// Leaving what is not joint.
    #[error("can't leave a non-joint config")]
    NotJoint,
    /// A simple change while joint.
    #[error("can't apply simple config change in joint config")]
    SimpleInJoint,
    /// Nobody would be left.
    #[error("removed all voters")]
    RemovedAllVoters,
    /// More than one voter in a simple change.
    #[error("more than one voter changed without entering joint config")]
    MoreThanOneVoter,
    /// The bytes are not a change this version knows.
    #[error("malformed configuration change: {0}")]
    Malformed(&'static str),
}

/// A [`Config`](crate::Config) that cannot work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid raft configuration: {0}")]
pub struct ConfigError(pub &'static str);

/// Any failure of the core that is not an answer to a step or a proposal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// See [`ConfigError`].
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// See [`StorageError`].
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// See [`MembershipError`].
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// A broken invariant: this replica must not go on.
    #[error("raft invariant broken: {0}")]
    Invariant(&'static str),
}
