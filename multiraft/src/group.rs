//! Stores, groups, ranges, and the descriptor of a group, which is replicated in the group itself.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use polyraft_core::{ConfState, EntryId, ReplicaId};

/// One engine and all that it hosts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreId(pub u64);

/// One Raft group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u64);

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The keys `[start, end)`; no `end` means no upper bound.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct KeyRange {
    /// First key.
    pub start: Bytes,
    /// Past the last key.
    pub end: Option<Bytes>,
}

/// Counters by which a decision made on an older descriptor is recognised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Epoch {
    /// Grows with every change of membership that is applied.
    pub membership: u64,
    /// Grows with every change of the range.
    pub range: u64,
}

/// One member: which replica lives on which store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Member {
    /// The replica.
    pub replica: ReplicaId,
    /// Where it lives.
    pub store: StoreId,
}

/// Range, members and epoch of a group. Its single source of truth is the applied state of the
/// group's replicas; everybody else's copy is a hint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupDescriptor {
    /// Which group.
    pub group: GroupId,
    /// The keys it serves; none: it serves no keys by range.
    pub range: Option<KeyRange>,
    /// All voters (of both halves) and learners, ascending by replica.
    pub members: Vec<Member>,
    /// The id the next new replica gets; ids are never reused.
    pub next_replica: ReplicaId,
    /// When this is from.
    pub epoch: Epoch,
}

/// What the state machine of a group has durably seen, written in one atomic batch with the
/// data it covers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppliedState {
    /// The last applied entry.
    pub last: EntryId,
    /// The configuration as of that entry.
    pub conf_state: Arc<ConfState>,
    /// The descriptor as of that entry.
    pub descriptor: Arc<GroupDescriptor>,
}
