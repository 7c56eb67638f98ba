//! The way to talk to a host: cheap to clone, callable from any thread, never blocking.

use bytes::Bytes;
use polyraft_core::{ConfChangeKind, EntryId, Index, ReplicaId, Status, Transition};

use crate::error::Reject;
use crate::group::{GroupDescriptor, GroupId, StoreId};
use crate::responder::Responder;

/// Leave to read: the local state machine contains every write acknowledged before the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadPermit {
    /// The index the state machine has reached at least.
    pub applied: Index,
    /// The descriptor as of then.
    pub descriptor: std::sync::Arc<GroupDescriptor>,
}

/// One wanted change of membership, by store; the host picks and looks up replica ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberChange {
    /// What.
    pub kind: ConfChangeKind,
    /// On which store.
    pub store: StoreId,
}

/// What costs nothing to say about a replica; published by its worker at the end of a pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplicaSummary {
    /// Which group.
    pub group: GroupId,
    /// Which replica.
    pub replica: ReplicaId,
    /// Role, leader, term, commit, applied.
    pub basic: polyraft_core::BasicStatus,
    /// The store of the leader, if known.
    pub leader_store: Option<StoreId>,
    /// Not ticked at the moment.
    pub asleep: bool,
}

/// Everything about a replica.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupStatus {
    /// As of the applied index.
    pub descriptor: GroupDescriptor,
    /// As the core says it; progress only on the leader.
    pub raft: Status,
    /// The entry before the first one in the log.
    pub truncated: EntryId,
    /// The last entry of the log.
    pub last: EntryId,
    /// Bytes of entries in the log.
    pub log_bytes: u64,
    /// Applied and durable.
    pub flushed: Index,
    /// Not ticked at the moment.
    pub asleep: bool,
    /// Why the replica is out of service, if it is.
    pub quarantined: Option<String>,
}

/// The way to talk to a host.
#[derive(Clone, Debug)]
pub struct HostHandle {}

impl HostHandle {
    /// Proposes a command; answered with the state machine's reply after it is applied.
    pub fn propose(
        &self,
        _group: GroupId,
        _data: Bytes,
        _respond: Responder<Result<Bytes, Reject>>,
    ) {
        todo!()
    }
    /// Asks for leave to read linearizably (ReadIndex; batched per group).
    pub fn read(&self, _group: GroupId, _respond: Responder<Result<ReadPermit, Reject>>) {
        todo!()
    }
    /// Creates this store's replica of a new group whose first members the descriptor names.
    pub fn create_group(
        &self,
        _descriptor: GroupDescriptor,
        _respond: Responder<Result<(), Reject>>,
    ) {
        todo!()
    }
    /// Destroys this store's replica; with `next_replica` `u64::MAX` the group is dead here for ever.
    pub fn destroy_replica(
        &self,
        _group: GroupId,
        _next_replica: ReplicaId,
        _respond: Responder<Result<(), Reject>>,
    ) {
        todo!()
    }
    /// Changes membership (leader only); answered when the change is applied (a joint one: when
    /// it has been left, unless `transition` is explicit), with the new descriptor.
    pub fn change_members(
        &self,
        _group: GroupId,
        _changes: Vec<MemberChange>,
        _transition: Transition,
        _respond: Responder<Result<GroupDescriptor, Reject>>,
    ) {
        todo!()
    }
    /// Hands leadership to the replica on `to`; answered when this replica no longer leads.
    pub fn transfer_leader(
        &self,
        _group: GroupId,
        _to: StoreId,
        _respond: Responder<Result<(), Reject>>,
    ) {
        todo!()
    }
    /// Campaigns now.
    pub fn campaign(&self, _group: GroupId, _respond: Responder<Result<(), Reject>>) {
        todo!()
    }
    /// Everything about one replica.
    pub fn describe(&self, _group: GroupId, _respond: Responder<Result<GroupStatus, Reject>>) {
        todo!()
    }
    /// A summary of all replicas of this store, ascending by group, without asking the workers.
    #[must_use]
    pub fn list(&self) -> Vec<ReplicaSummary> {
        todo!()
    }
    /// The summary of one replica, without asking its worker.
    #[must_use]
    pub fn summary(&self, _group: GroupId) -> Option<ReplicaSummary> {
        todo!()
    }
    /// The descriptor of a group as last applied here, without asking its worker.
    #[must_use]
    pub fn descriptor(&self, _group: GroupId) -> Option<std::sync::Arc<GroupDescriptor>> {
        todo!()
    }
}
