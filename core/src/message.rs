//! What replicas of a group say to each other.
//!
//! Local commands (campaign, tick, forget the leader, ...) are methods of
//! [`RaftNode`](crate::RaftNode), not messages, so they cannot arrive from outside.

use alloc::boxed::Box;
use alloc::vec::Vec;

use bytes::Bytes;

use crate::entry::Entry;
use crate::event::MessageKind;
use crate::ready::Snapshot;
use crate::types::{EntryId, Index, ReplicaId, Term};

/// One message from one replica of a group to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who says it.
    pub from: ReplicaId,
    /// To whom.
    pub to: ReplicaId,
    /// The sender's term; for a pre-vote the term it would campaign in; 0 for forwarded
    /// proposals and reads, which are of no term.
    pub term: Term,
    /// What is said.
    pub payload: Payload,
}

impl Message {
    /// Whether `earlier`, of the same sender to the same receiver, tells nothing that this one does
    /// not: both accept appends, and this one further on.
    pub(crate) fn supersedes(&self, earlier: &Self) -> bool {
        let accepted = |message: &Self| match message.payload {
            Payload::AppendResponse {
                index,
                reject: None,
            } => Some(index),
            _ => None,
        };
        let (Some(index), Some(before)) = (accepted(self), accepted(earlier)) else {
            return false;
        };
        self.term == earlier.term && index >= before
    }
}

/// Every RPC of Raft and its answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// `AppendEntries` (thesis section 3.5). Also the empty probe and the commit update.
    Append {
        /// The entry before the first one sent.
        prev: EntryId,
        /// Consecutive entries from `prev.index + 1`; may be empty.
        entries: Vec<Entry>,
        /// The leader's commit index.
        commit: Index,
    },
    /// The answer to `Append` and to `Snapshot`.
    AppendResponse {
        /// Accepted: the last index known to match. Rejected: `prev.index` of the request.
        index: Index,
        /// Present if rejected: where to look for a match.
        reject: Option<RejectHint>,
    },
    /// `RequestVote`, or its trial form.
    Vote {
        /// A pre-vote (thesis section 9.6): changes nobody's term or vote.
        pre: bool,
        /// The candidate's last entry.
        last: EntryId,
        /// The campaign was asked for by the leader, so leases do not stand against it.
        transfer: bool,
    },
    /// The answer to `Vote`.
    VoteResponse {
        /// The answer to a pre-vote.
        pre: bool,
        /// Refused.
        reject: bool,
        /// With [`Config::commit_by_vote`](crate::Config::commit_by_vote), if refused: an entry known to be
        /// committed, the last one that the candidate may have. Index 0: nothing is said.
        committed: EntryId,
    },
    /// A leader's sign of life.
    Heartbeat {
        /// `min(match of the follower, commit of the leader)`.
        commit: Index,
        /// The leader's running number of the newest read that waits for confirmation; 0: none.
        read: u64,
    },
    /// The answer to `Heartbeat`.
    HeartbeatResponse {
        /// The number of the heartbeat answered.
        read: u64,
    },
    /// `InstallSnapshot`. Boxed: it is rare, and every message is as large as the largest kind.
    Snapshot(Box<Snapshot>),
    /// A follower passes proposals on to the leader; term and index of the entries are 0.
    Propose {
        /// What to append.
        entries: Vec<Entry>,
    },
    /// A follower passes on the wish to move leadership to `message.from`.
    TransferLeader,
    /// The leader tells its successor to campaign at once (thesis section 3.10).
    TimeoutNow,
    /// A follower asks the leader for a read index (thesis section 6.4).
    ReadIndex {
        /// Returned unchanged.
        context: Bytes,
    },
    /// The answer to `ReadIndex`.
    ReadIndexResponse {
        /// A state at or above this index may be read.
        index: Index,
        /// As in the request.
        context: Bytes,
    },
}

/// Where a follower that refused an append suggests to go on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RejectHint {
    /// The largest index that may match.
    pub index: Index,
    /// The follower's term at that index; 0 if it does not know it.
    pub term: Term,
}

impl Payload {
    /// What it is, without its contents.
    #[must_use]
    pub const fn kind(&self) -> MessageKind {
        match self {
            Self::Append { .. } => MessageKind::Append,
            Self::AppendResponse { .. } => MessageKind::AppendResponse,
            Self::Heartbeat { .. } => MessageKind::Heartbeat,
            Self::HeartbeatResponse { .. } => MessageKind::HeartbeatResponse,
            Self::Propose { .. } => MessageKind::Propose,
            Self::ReadIndex { .. } => MessageKind::ReadIndex,
            Self::ReadIndexResponse { .. } => MessageKind::ReadIndexResponse,
            Self::Snapshot(_) => MessageKind::Snapshot,
            Self::TimeoutNow => MessageKind::TimeoutNow,
            Self::TransferLeader => MessageKind::TransferLeader,
            Self::Vote { pre: true, .. } => MessageKind::PreVote,
            Self::Vote { pre: false, .. } => MessageKind::Vote,
            Self::VoteResponse { pre: true, .. } => MessageKind::PreVoteResponse,
            Self::VoteResponse { pre: false, .. } => MessageKind::VoteResponse,
        }
    }

    /// Whether it must wait until everything before it is durable: it promises something about
    /// this replica's disk.
    #[must_use]
    pub(crate) const fn waits_for_disk(&self) -> bool {
        matches!(
            self,
            Self::AppendResponse { .. } | Self::VoteResponse { .. }
        )
    }

    /// Whether only a member may send it.
    #[must_use]
    pub(crate) const fn is_response(&self) -> bool {
        matches!(
            self,
            Self::AppendResponse { .. }
                | Self::VoteResponse { .. }
                | Self::HeartbeatResponse { .. }
                | Self::ReadIndexResponse { .. }
        )
    }
}
