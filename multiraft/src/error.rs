//! Errors, by who must act.

use std::sync::Arc;

use polyraft_core::MembershipError;

use crate::env::{LogError, StateMachineError};
use crate::group::{Epoch, GroupDescriptor, GroupId, Member};

/// A request that was refused; the caller may act on it. Unless it is [`Reject::Ambiguous`], it
/// certainly had no effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Reject {
    /// Ask the leader, if one is known.
    #[error("this replica does not lead the group")]
    NotLeader {
        /// Who does, as far as known.
        leader: Option<Member>,
    },
    /// This store has no replica of the group.
    #[error("no replica of group {0} on this store")]
    NoGroup(GroupId),
    /// A store-wide budget is used up; try again later.
    #[error("busy: {0}")]
    Busy(&'static str),
    /// The disk is full; nothing is accepted until there is room.
    #[error("disk full: free space on the store's device and try again")]
    DiskFull,
    /// Larger than the limit.
    #[error("request of {size} bytes exceeds the limit of {limit} bytes")]
    TooLarge {
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The caller's descriptor is out of date.
    #[error("stale epoch; the current one is {current:?}")]
    StaleEpoch {
        /// The current one.
        current: Epoch,
    },
    /// The group's range is not the one that the request was made for.
    #[error("the group's range has changed; it is of generation {} now", current.epoch.range)]
    RangeChanged {
        /// The group as it is now.
        current: Arc<GroupDescriptor>,
    },
    /// The group is being merged into its left neighbour, and serves nobody meanwhile.
    #[error("the group is being merged into group {into}")]
    Frozen {
        /// The left neighbour.
        into: GroupId,
    },
    /// Not allowed in the present state; says why.
    #[error("refused: {0}")]
    Refused(String),
    /// A change of membership that cannot be.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// The host is stopping.
    #[error("the store is shutting down")]
    Stopped,
    /// The request may or may not take effect; nobody knows yet.
    #[error("outcome unknown: leadership changed or the store stopped before it was decided")]
    Ambiguous,
}

/// What keeps a host from starting or going on.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// A parameter that cannot work.
    #[error("invalid host configuration: {0}")]
    Config(String),
    /// See [`LogError`].
    #[error(transparent)]
    Log(#[from] LogError),
    /// See [`StateMachineError`].
    #[error(transparent)]
    StateMachine(#[from] StateMachineError),
    /// Log and data contradict each other.
    #[error("group {group}: {reason}")]
    Inconsistent {
        /// Which group.
        group: GroupId,
        /// What was found.
        reason: String,
    },
}
