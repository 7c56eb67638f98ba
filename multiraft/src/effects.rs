//! Everything a pass can want done.

use std::collections::BTreeMap;
use std::sync::Arc;

use polyraft_core::{Append, Entry, EntryId, Fetch, Message, Payload, ReplicaId, planted};

use crate::env::{Body, GroupMessage, Lane, LogSection, RangeChange, StagedSnapshot};
use crate::error::Reject;
use crate::group::{AppliedState, GroupDescriptor, GroupId, Member, StoreId};
use crate::input::Input;
use crate::replica::Pending;
use crate::responder::Responder;

/// The value of a pass: the thread around it performs it, in any order, without deciding anything.
#[must_use]
#[derive(Debug, Default)]
pub struct Effects {
    /// Messages that may leave now, by store and lane.
    pub sends: BTreeMap<(StoreId, LaneKey), Vec<GroupMessage>>,
    /// For the log writer, in order.
    pub writes: Vec<WriteItem>,
    /// For the appliers, in order.
    pub applies: Vec<ApplyTask>,
    /// For the fetcher.
    pub fetches: Vec<FetchTask>,
    /// For the snapshot pool.
    pub snapshots: Vec<SnapshotTask>,
    /// For workers, this one among them, by index: completions, in order.
    pub inputs: Vec<(usize, Input)>,
    /// Somebody waits for what is applied to be durable: a flush is to begin soon.
    pub flush: bool,
}

/// A [`Lane`] that can be sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LaneKey {
    /// See [`Lane::Control`].
    Control,
    /// See [`Lane::Append`].
    Append,
}

impl From<LaneKey> for Lane {
    fn from(key: LaneKey) -> Self {
        match key {
            LaneKey::Control => Self::Control,
            LaneKey::Append => Self::Append,
        }
    }
}

impl Effects {
    pub(crate) fn send(&mut self, to: StoreId, lane: LaneKey, mut message: GroupMessage) {
        let list = self.sends.entry((to, lane)).or_default();
        if planted!(HeartbeatToWrongGroup)
            && let Body::Raft(raft) = &message.body
            && matches!(raft.payload, Payload::Heartbeat { .. })
            && let Some(before) = list.last()
        {
            message.group = before.group;
        }
        list.push(message);
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sends.is_empty()
            && self.writes.is_empty()
            && self.applies.is_empty()
            && self.fetches.is_empty()
            && self.snapshots.is_empty()
            && self.inputs.is_empty()
            && !self.flush
    }
}

/// One group's part of a durable write, with what must wait for it.
#[derive(Debug)]
pub struct WriteItem {
    /// The worker that wants it.
    pub worker: usize,
    /// Which replica.
    pub replica: ReplicaId,
    /// What to write.
    pub section: LogSection,
    /// Must survive a power cut.
    pub sync: bool,
    /// The core's append: its messages come out against the receipt.
    pub append: Option<Append>,
    /// Where the replicas live to which those messages go.
    pub routes: Arc<[Member]>,
    /// To be answered when it is durable.
    pub created: Option<Responder<Result<(), Reject>>>,
    /// The replica's tombstone is in this write: its data is to be destroyed next.
    pub destroyed: Option<DestroyData>,
}

/// Data of a replica whose tombstone is durable.
#[derive(Debug)]
pub struct DestroyData {
    /// Of which group, with which keys.
    pub descriptor: Arc<GroupDescriptor>,
    /// Its data is another group's now: there is nothing to remove.
    pub merged: bool,
    /// To be answered when nothing is left.
    pub respond: Option<Responder<Result<(), Reject>>>,
}

/// Something for the applier of a group, in order.
#[derive(Debug)]
pub enum ApplyTask {
    /// Committed entries.
    Entries {
        /// The worker that wants it.
        worker: usize,
        /// Which group.
        group: GroupId,
        /// Which replica.
        replica: ReplicaId,
        /// Consecutive.
        entries: Vec<Entry>,
        /// Those who wait for some of them, in order.
        pending: Vec<Pending>,
    },
    /// A committed command for the host.
    Range(Box<RangeTask>),
    /// A group whose data a split has made begins.
    Load(AppliedState),
    /// A new group.
    Create {
        /// The worker that wants it.
        worker: usize,
        /// Its first state.
        state: AppliedState,
        /// Its replica here.
        replica: ReplicaId,
    },
    /// A staged snapshot becomes the group's data.
    Restore {
        /// The worker that wants it.
        worker: usize,
        /// The replica here.
        replica: ReplicaId,
        /// The snapshot.
        staged: StagedSnapshot,
    },
    /// A staged snapshot is not wanted.
    Discard(StagedSnapshot),
    /// The tombstone is durable: remove the data.
    Destroy {
        /// The worker that wants it.
        worker: usize,
        /// The replica that was here.
        replica: ReplicaId,
        /// What is to be removed.
        data: DestroyData,
    },
}

impl ApplyTask {
    /// By which tasks are spread over appliers: all of one group go to the same.
    #[must_use]
    pub fn group(&self) -> GroupId {
        match self {
            Self::Entries { group, .. } => *group,
            Self::Range(task) => task.group,
            Self::Load(state) | Self::Create { state, .. } => state.descriptor.group,
            Self::Restore { staged, .. } | Self::Discard(staged) => staged.state.descriptor.group,
            Self::Destroy { data, .. } => data.descriptor.group,
        }
    }
}

/// What a command for the host does to a group.
#[derive(Debug)]
pub struct RangeTask {
    /// The worker that wants it.
    pub worker: usize,
    /// Which group.
    pub group: GroupId,
    /// Which replica.
    pub replica: ReplicaId,
    /// The command's entry.
    pub id: EntryId,
    /// Its size.
    pub bytes: u64,
    /// The group's descriptor after it, and what happens to the data. None: it has no effect.
    pub outcome: Option<(Arc<GroupDescriptor>, Option<RangeChange>)>,
    /// The inspection that the command asks for.
    pub inspect: Option<u64>,
}

/// A log range wanted from the disk.
#[derive(Clone, Copy, Debug)]
pub struct FetchTask {
    /// The worker that wants it.
    pub worker: usize,
    /// Of which group.
    pub group: GroupId,
    /// For which replica of this store.
    pub replica: ReplicaId,
    /// The range.
    pub fetch: Fetch,
}

/// A snapshot to be built and sent.
#[derive(Debug)]
pub struct SnapshotTask {
    /// The worker that wants it.
    pub worker: usize,
    /// Of which group.
    pub group: GroupId,
    /// The store of the one who needs it.
    pub to: StoreId,
    /// What Raft says; names sender and receiver.
    pub message: Message,
}
