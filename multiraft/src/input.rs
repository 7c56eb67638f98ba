//! Everything that can reach a worker.

use bytes::Bytes;
use polyraft_core::{
    ConfChangeV2, EntryId, Fetched, Index, Persisted, ReplicaId, SnapshotOutcome, Transition,
};

use crate::budget::Permit;
use crate::env::{GroupMessage, Lost, SnapshotHeader, StagedSnapshot};
use crate::error::Reject;
use crate::group::{AppliedState, GroupDescriptor, GroupId, StoreId};
use crate::handle::{GroupStatus, MemberChange, ReadPermit};
use crate::ranges::RangeCommand;
use crate::replica::{Subsumer, Unable};
use crate::responder::Responder;

/// One thing that happened or is wished for.
#[derive(Debug)]
pub enum Input {
    // Requests: bounded by budgets.
    /// A command is proposed.
    Propose {
        /// To which group.
        group: GroupId,
        /// The command.
        data: Bytes,
        /// Only if the group's range is still of this generation.
        expected: Option<u64>,
        /// Its share of the budget.
        permit: Permit,
        /// Whom to answer.
        respond: Responder<Result<Bytes, Reject>>,
    },
    /// A linearizable read wants to begin.
    Read {
        /// Of which group.
        group: GroupId,
        /// Even if it is frozen: only its descriptor is of interest.
        even_frozen: bool,
        /// Whom to answer.
        respond: Responder<Result<ReadPermit, Reject>>,
    },
    /// Messages of another store, all for groups of this worker.
    Messages {
        /// Who sent them.
        from: StoreId,
        /// The messages.
        messages: Vec<GroupMessage>,
        /// Their share of the budget.
        permit: Permit,
    },
    /// See [`HostHandle`](crate::HostHandle).
    Admin(Admin),

    // Completions: never refused, bounded by what is in flight.
    /// Writes are durable.
    Persisted(Vec<PersistedItem>),
    /// Entries are applied.
    Applied(Vec<AppliedItem>),
    /// A log range was read, or could not be.
    Fetched {
        /// Of which group.
        group: GroupId,
        /// For which replica of this store.
        replica: ReplicaId,
        /// The range.
        fetched: Fetched,
    },
    /// A complete snapshot is staged on this store.
    SnapshotReceived {
        /// Who sent it.
        from: StoreId,
        /// What came with it.
        header: Box<SnapshotHeader>,
        /// Where it is.
        staged: StagedSnapshot,
    },
    /// The sending of a snapshot ended.
    SnapshotSent {
        /// Of which group.
        group: GroupId,
        /// From which replica of this store.
        replica: ReplicaId,
        /// To whom.
        to: ReplicaId,
        /// How.
        outcome: SnapshotOutcome,
    },
    /// A group is damaged and must not go on.
    Quarantine {
        /// Which group.
        group: GroupId,
        /// Why.
        reason: String,
        /// Whether its applier says so: what that has not applied it never will.
        by_applier: bool,
    },
    /// The data of a new group, which a split has made, is durable: its replica begins.
    Born {
        /// Its first state.
        state: Box<AppliedState>,
        /// Which replica.
        replica: ReplicaId,
        /// It is to lead at once.
        campaign: bool,
    },
    /// The group's left neighbour is about to take its keys over: it is to stop at its freeze.
    Subsume {
        /// Who asks.
        subsumer: Subsumer,
        /// The group.
        right: Box<GroupDescriptor>,
    },
    /// The right neighbour has stopped, with everything up to its freeze applied, or cannot.
    Subsumable {
        /// Who has asked.
        left: GroupId,
        /// The right neighbour.
        right: GroupId,
        /// What it has applied.
        result: Result<Box<AppliedState>, Unable>,
    },
    /// The left neighbour does not take the group over here after all.
    Released {
        /// Who has asked.
        left: GroupId,
        /// The group.
        right: GroupId,
    },
    /// It has taken the group over, durably: its replica ends.
    Subsumed(GroupId),
    /// The flush of this number is done: what was applied before it began is durable.
    Durable(u64),
    /// Applied data is durable up to these indexes.
    Flushed(Vec<(GroupId, ReplicaId, Index)>),
    /// Time has passed.
    Tick,
    /// Both directions to a store work (again).
    StoreUp(StoreId),
    /// A store is not heard of.
    StoreDown(StoreId),
    /// Messages to a store that is up were lost before they left this one; `Of` names groups of
    /// this worker only.
    Lost(StoreId, Lost),
}

/// What an operator or the embedder wishes for.
#[derive(Debug)]
pub enum Admin {
    /// Create this store's replica of a new group.
    Create {
        /// Its first descriptor.
        descriptor: GroupDescriptor,
        /// Whom to answer.
        respond: Responder<Result<(), Reject>>,
    },
    /// Destroy this store's replica.
    Destroy {
        /// Of which group.
        group: GroupId,
        /// The lowest replica id that may be created later.
        next_replica: ReplicaId,
        /// Whom to answer.
        respond: Responder<Result<(), Reject>>,
    },
    /// Change membership.
    ChangeMembers {
        /// Of which group.
        group: GroupId,
        /// What on which stores.
        changes: Vec<MemberChange>,
        /// How.
        transition: Transition,
        /// Only if the descriptor's membership epoch still is this.
        expected: Option<u64>,
        /// Whom to answer.
        respond: Responder<Result<GroupDescriptor, Reject>>,
    },
    /// Change the group's range.
    ChangeRange {
        /// Which group.
        group: GroupId,
        /// How.
        command: RangeCommand,
        /// Whom to answer.
        respond: Responder<Result<Vec<GroupDescriptor>, Reject>>,
    },
    /// Whether the logs of all members of a frozen group have its freeze.
    Settled {
        /// Which group.
        group: GroupId,
        /// The freeze.
        at: EntryId,
        /// Whom to answer.
        respond: Responder<Result<(), Reject>>,
    },
    /// Hand leadership to the replica on a store.
    Transfer {
        /// Of which group.
        group: GroupId,
        /// To which store.
        to: StoreId,
        /// Whom to answer.
        respond: Responder<Result<(), Reject>>,
    },
    /// Campaign now.
    Campaign {
        /// In which group.
        group: GroupId,
        /// Whom to answer.
        respond: Responder<Result<(), Reject>>,
    },
    /// Take a replica out of service.
    Quarantine {
        /// Of which group.
        group: GroupId,
        /// Which replica.
        replica: ReplicaId,
        /// Why.
        reason: String,
        /// Whom to answer.
        respond: Responder<Result<(), Reject>>,
    },
    /// Say everything about a replica.
    Describe {
        /// Of which group.
        group: GroupId,
        /// Whom to answer.
        respond: Responder<Result<GroupStatus, Reject>>,
    },
}

/// One durable write, on its way back to its replica.
#[derive(Debug)]
pub struct PersistedItem {
    /// Which group.
    pub group: GroupId,
    /// Which replica; one that is gone is ignored.
    pub replica: ReplicaId,
    /// The token; none: the record with which the replica begins is durable.
    pub persisted: Option<Persisted>,
}

/// What an applier did for one group.
#[derive(Debug)]
pub struct AppliedItem {
    /// Which group.
    pub group: GroupId,
    /// Which replica; one that is gone is ignored.
    pub replica: ReplicaId,
    /// What.
    pub what: Applied,
}

/// See [`AppliedItem`].
#[derive(Debug)]
pub enum Applied {
    /// Committed entries.
    Entries {
        /// The last one.
        last: EntryId,
        /// Their size as the core counts it.
        bytes: u64,
        /// Changes of membership among them that were possible, with their indexes.
        changes: Vec<(Index, ConfChangeV2)>,
        /// The state after them, if membership changed.
        state: Option<AppliedState>,
    },
    /// A new group's data exists.
    Created(AppliedState),
    /// A staged snapshot is the group's data now.
    Restored(AppliedState),
    /// Nothing of the group is left on the disk.
    Destroyed {
        /// To be answered when its number and its range are free, too.
        respond: Option<Responder<Result<(), Reject>>>,
    },
}
