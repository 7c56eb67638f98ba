//! One replica of one group on this store: the core and the parts around it. Owned by value by its
//! worker.

mod log;
mod proposals;
mod ranges;
mod reads;

use std::sync::Arc;

use polyraft_core::{Append, EntryId, HardState, Index, RaftNode, ReplicaId, RoleName};

pub(crate) use log::ReplicaLog;
pub use proposals::Pending;
pub(crate) use proposals::{Proposals, Queued};
pub(crate) use ranges::{Ask, Doom, Merging, Ranges, Shift, Step};
pub use ranges::{Subsumer, Unable};
pub(crate) use reads::{Reads, Waiter};

use crate::env::StagedSnapshot;
use crate::error::Reject;
use crate::group::{GroupDescriptor, GroupId, Member, StoreId};
use crate::handle::ReplicaSummary;
use crate::responder::Responder;

/// See the module.
#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) group: GroupId,
    pub(crate) id: ReplicaId,
    pub(crate) node: RaftNode<ReplicaLog>,
    pub(crate) descriptor: Arc<GroupDescriptor>,
    /// Where other replicas live: the descriptor's members, and senders it does not know yet.
    pub(crate) routes: Arc<[Member]>,
    /// The last members that were removed while this replica looked on: they may not know it.
    pub(crate) departed: Vec<Member>,
    pub(crate) proposals: Proposals,
    pub(crate) reads: Reads,
    pub(crate) ranges: Ranges,
    pub(crate) changes: Vec<PendingChange>,
    pub(crate) transfers: Vec<Responder<Result<(), Reject>>>,
    /// Those who asked for this replica to be created while it waits for its first state.
    pub(crate) creators: Vec<Responder<Result<(), Reject>>>,
    /// A hard state that no write has carried yet; only the commit index in it can be new.
    pub(crate) unsaved: Option<HardState>,
    /// Writes with something of the core that are not durable yet.
    pub(crate) writes_in_flight: u32,
    /// Receipts to come of an earlier replica of this id, which a vote had made before the group began.
    pub(crate) void_receipts: u32,
    /// Applied and durable.
    pub(crate) flushed: Index,
    pub(crate) install: Install,
    pub(crate) quarantined: Option<String>,
    pub(crate) asleep: bool,
    /// Ticks without work.
    pub(crate) idle_ticks: u32,
    /// Ticks since this replica led last while proposals still wait.
    pub(crate) orphan_ticks: u32,
    /// Ticks since anybody spoke to it.
    pub(crate) silent_ticks: u32,
    /// Ticks for which something has been put off because a follower waits for a snapshot.
    pub(crate) patience: Option<u32>,
    /// Followers that were sent a snapshot as of an entry and have not said yet that they have it.
    pub(crate) arrived: Vec<(ReplicaId, Index)>,
    /// Bytes of cached entries that its worker has counted.
    pub(crate) cached: u64,
    /// Something came in during this pass.
    pub(crate) touched: bool,
    pub(crate) published: ReplicaSummary,
}

/// Members that left of which a replica keeps in mind that they may have to be told.
const DEPARTED_MAX: usize = 8;

/// Where a snapshot that came in stands.
#[derive(Debug, Default)]
pub(crate) enum Install {
    #[default]
    None,
    /// Staged and offered to the core in this pass.
    Offered(StagedSnapshot),
    /// The data is being replaced; then the log is, by this append. Nothing else is done meanwhile.
    Restoring(Box<Append>),
    /// The log is being replaced.
    Writing,
}

/// A change of membership that somebody waits for.
#[derive(Debug)]
pub(crate) struct PendingChange {
    pub(crate) id: EntryId,
    /// Applied; only the way out of the joint configuration is still to come.
    pub(crate) applied: bool,
    /// Also wait for that.
    pub(crate) wait_for_leave: bool,
    /// Voters that this makes learners, to be removed next.
    pub(crate) remove: Vec<ReplicaId>,
    pub(crate) respond: Responder<Result<GroupDescriptor, Reject>>,
}

impl Replica {
    pub(crate) fn new(
        id: ReplicaId,
        node: RaftNode<ReplicaLog>,
        descriptor: Arc<GroupDescriptor>,
    ) -> Self {
        let group = descriptor.group;
        Self {
            group,
            id,
            flushed: node.applied(),
            node,
            routes: descriptor.members.clone().into(),
            departed: Vec::new(),
            descriptor,
            proposals: Proposals::default(),
            reads: Reads::default(),
            ranges: Ranges::default(),
            changes: Vec::new(),
            transfers: Vec::new(),
            creators: Vec::new(),
            unsaved: None,
            writes_in_flight: 0,
            void_receipts: 0,
            install: Install::None,
            quarantined: None,
            asleep: false,
            idle_ticks: 0,
            orphan_ticks: 0,
            silent_ticks: 0,
            patience: None,
            arrived: Vec::new(),
            cached: 0,
            touched: false,
            published: ReplicaSummary::default(),
        }
    }

    /// Notes that there is something to collect.
    pub(crate) fn touch(&mut self, touched: &mut Vec<GroupId>) {
        if !std::mem::replace(&mut self.touched, true) {
            touched.push(self.group);
        }
    }

    /// Knows its range and members; else it waits for a snapshot and must not campaign.
    pub(crate) fn is_initialised(&self) -> bool {
        !self.descriptor.members.is_empty()
    }

    pub(crate) fn leads(&self) -> bool {
        self.node.role() == RoleName::Leader
    }

    /// Whether nothing but a snapshot install may happen.
    pub(crate) fn is_installing(&self) -> bool {
        matches!(self.install, Install::Restoring(_) | Install::Writing)
    }

    /// The last entry that the applier has applied. The core may believe in more while the group is frozen,
    /// since what is behind a freeze has no effect.
    pub(crate) fn applied(&self) -> Index {
        self.node.storage().applied().index
    }

    /// Whether what it has on the disk is not what its descriptor says, or a crash may make it so.
    pub(crate) fn is_in_between(&self) -> bool {
        let restoring = matches!(self.install, Install::Restoring(_));
        self.ranges.is_unsettled() || restoring && self.quarantined.is_none()
    }

    pub(crate) fn store_of(&self, replica: ReplicaId) -> Option<StoreId> {
        self.routes
            .iter()
            .find(|member| member.replica == replica)
            .map(|member| member.store)
    }

    /// Remembers where an unknown sender lives, so that it can be answered.
    pub(crate) fn learn_route(&mut self, replica: ReplicaId, store: StoreId) {
        if self.store_of(replica).is_none() {
            let new = Member { replica, store };
            self.routes = self.routes.iter().copied().chain([new]).collect();
        }
    }

    pub(crate) fn set_descriptor(&mut self, descriptor: Arc<GroupDescriptor>) {
        let stays = |member: &&Member| descriptor.store_of(member.replica).is_some();
        let before = self.descriptor.members.iter();
        self.departed
            .extend(before.filter(|it| !stays(it)).copied());
        let over = self.departed.len().saturating_sub(DEPARTED_MAX);
        self.departed.drain(..over);
        self.routes = descriptor.members.clone().into();
        self.descriptor = descriptor;
    }

    pub(crate) fn leader_member(&self) -> Option<Member> {
        let replica = self.node.leader();
        self.store_of(replica)
            .map(|store| Member { replica, store })
    }

    pub(crate) fn not_leader(&self) -> Reject {
        Reject::NotLeader {
            leader: self.leader_member(),
        }
    }

    /// Whether anybody waits for anything, so that it must not sleep. What is behind a freeze waits for
    /// nobody here.
    pub(crate) fn has_work(&self) -> bool {
        let held = self.ranges.held.back();
        let waits = held.is_some_and(|last| last.index > self.node.applied());
        waits
            || !self.proposals.is_empty()
            || !self.reads.is_empty()
            || !self.ranges.steps.is_empty()
            || !self.ranges.asked.is_empty()
            || !self.changes.is_empty()
            || !self.transfers.is_empty()
            || self.writes_in_flight > 0
            || !matches!(self.install, Install::None)
    }

    pub(crate) fn summary(&self) -> ReplicaSummary {
        ReplicaSummary {
            group: self.group,
            replica: self.id,
            basic: self.node.basic_status(),
            leader_store: self.leader_member().map(|member| member.store),
            asleep: self.asleep,
        }
    }
}
