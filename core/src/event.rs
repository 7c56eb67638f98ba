//! What happened, as values: the core's only "logging".
//!
//! A host turns them into log lines and metrics; the conformance runner renders them as etcd's
//! texts. Variants are in alphabetical order.

use alloc::vec::Vec;

use crate::entry::EntryKind;
use crate::membership::{ConfChangeV2, Configuration};
use crate::ready::HardState;
use crate::status::{ProgressStatus, RoleName};
use crate::types::{EntryId, Index, ReplicaId, Term};

/// Something worth a log line or a metric.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// An append was refused: the entry before it is not in this log.
    AppendRejected {
        /// Who sent it.
        from: ReplicaId,
        /// This log's term at the index; 0 if unknown.
        own_term: Term,
        /// The entry asked for.
        prev: EntryId,
    },
    /// The leader proposed to leave the joint configuration.
    AutoLeaveInitiated {
        /// The joint configuration.
        config: Configuration,
    },
    /// The role changed (or was confirmed at a new term).
    BecameRole {
        /// What this replica is now.
        role: RoleName,
        /// In which term.
        term: Term,
    },
    /// Not campaigning: a committed change of membership is not applied yet.
    CampaignBlockedByConfChange {
        /// The current term.
        term: Term,
    },
    /// An election begins.
    CampaignStarted {
        /// The term before any change.
        term: Term,
    },
    /// A proposed change of membership was replaced by an empty entry.
    ConfChangeIgnored {
        /// The change.
        change: ConfChangeV2,
        /// The kind of entry it came in.
        kind: EntryKind,
        /// The configuration in force.
        config: Configuration,
        /// Why.
        reason: ConfChangeRefusal,
    },
    /// A new configuration is in force.
    ConfigSwitched {
        /// The new configuration.
        config: Configuration,
    },
    /// An entry of this log contradicts the leader's and will be overwritten.
    ConflictFound {
        /// Where.
        index: Index,
        /// This log's term there.
        existing: Term,
        /// The leader's.
        conflicting: Term,
    },
    /// A heartbeat spoke of a commit index that this log does not reach: it was ignored.
    HeartbeatCommitIgnored {
        /// What it said.
        commit: Index,
        /// The last index here.
        last: Index,
    },
    /// A message of a higher term arrived.
    HigherTerm {
        /// Who sent it.
        from: ReplicaId,
        /// What it was.
        kind: MessageKind,
        /// The term before.
        own: Term,
        /// Its term.
        term: Term,
    },
    /// The leader was forgotten by request.
    LeaderForgotten {
        /// Who led.
        leader: ReplicaId,
        /// The current term.
        term: Term,
    },
    /// Forgetting the leader would break lease reads: refused.
    ForgetLeaderRefused,
    /// A message of a lower term was ignored.
    LowerTermIgnored {
        /// Who sent it.
        from: ReplicaId,
        /// What it was.
        kind: MessageKind,
        /// The current term.
        own: Term,
        /// Its term.
        term: Term,
    },
    /// The receipt of a write came from an earlier term: its entries may be gone again.
    LowerTermReceiptIgnored {
        /// The current term.
        own: Term,
        /// The receipt's.
        term: Term,
    },
    /// The next entry of a follower is truncated, and it is not active, so no snapshot was sent.
    InactivePeerNotSent {
        /// Who.
        to: ReplicaId,
    },
    /// Proposals were dropped: nobody is known to lead.
    NoLeaderForProposal {
        /// The current term.
        term: Term,
    },
    /// A replica was created.
    NodeCreated {
        /// Term, vote and commit.
        hard_state: HardState,
        /// The configuration.
        config: Configuration,
        /// Applied already.
        applied: Index,
        /// The last entry.
        last: EntryId,
    },
    /// A rejection moved a follower's next index back.
    ProgressDecreased {
        /// The follower, before it leaves replication.
        progress: ProgressStatus,
    },
    /// An uncommitted tail is at its limit: proposals were dropped.
    ProposalLimit {
        /// Uncommitted payload bytes.
        uncommitted: u64,
    },
    /// A receipt speaks of an entry that is not waiting any more.
    ReceiptMissing {
        /// Its index.
        index: Index,
    },
    /// A receipt speaks of an entry that was overwritten since.
    ReceiptMismatched {
        /// What the receipt says.
        receipt: EntryId,
        /// What waits there now.
        waiting: EntryId,
    },
    /// A vote was refused by somebody who knows more of the own log to be committed.
    CommitLearned {
        /// The entry.
        id: EntryId,
    },
    /// A follower refused an append.
    RejectionReceived {
        /// Who.
        from: ReplicaId,
        /// The rejected index.
        index: Index,
        /// Its hint.
        hint: EntryId,
    },
    /// A snapshot was accepted; the log goes on behind it.
    Restored {
        /// Its last entry.
        snapshot: EntryId,
        /// The commit index now.
        commit: Index,
        /// The last entry of the log now.
        last: EntryId,
    },
    /// A snapshot is about to replace the log.
    RestoreStarted {
        /// Its last entry.
        snapshot: EntryId,
        /// The log as it was.
        cursors: LogCursors,
    },
    /// A snapshot was not needed or not for this replica.
    SnapshotIgnored {
        /// Its last entry.
        snapshot: EntryId,
        /// The commit index here.
        commit: Index,
    },
    /// A follower that waited for a snapshot is back in the log.
    SnapshotRecovered {
        /// The follower, before it leaves the snapshot state.
        progress: ProgressStatus,
    },
    /// A snapshot message is going out.
    SnapshotSent {
        /// The first index of the leader's log.
        first: Index,
        /// The leader's commit index.
        commit: Index,
        /// The snapshot's last entry.
        snapshot: EntryId,
        /// The follower before.
        before: ProgressStatus,
        /// The follower after.
        after: ProgressStatus,
    },
    /// No contact to a quorum: the leader stepped down.
    SteppedDownWithoutQuorum,
    /// The target of a transfer was told to campaign.
    TimeoutNowSent {
        /// Who.
        to: ReplicaId,
        /// It had everything already when the transfer began.
        at_once: bool,
    },
    /// The leader wants this replica to campaign.
    TimeoutNowReceived {
        /// Who said it.
        from: ReplicaId,
        /// The current term.
        term: Term,
    },
    /// A transfer of leadership begins.
    TransferStarted {
        /// To whom.
        to: ReplicaId,
        /// The current term.
        term: Term,
    },
    /// This replica was asked to campaign and may not.
    Unpromotable,
    /// New entries replace the whole tail that was not durable yet.
    UnstableReplaced {
        /// From where on.
        from: Index,
    },
    /// A follower was reported unreachable while appends streamed to it.
    Unreachable {
        /// The follower, probing now.
        progress: ProgressStatus,
    },
    /// An answer to a vote request was counted.
    VoteCounted {
        /// Pre-vote or vote.
        pre: bool,
        /// Grants so far.
        granted: usize,
        /// Rejections so far.
        rejected: usize,
    },
    /// A vote request was decided.
    VoteDecided {
        /// Pre-vote or vote.
        pre: bool,
        /// The decision.
        granted: bool,
        /// Who asked.
        from: ReplicaId,
        /// The candidate's last entry.
        candidate: EntryId,
        /// This log's last entry.
        last: EntryId,
        /// The vote before.
        vote: ReplicaId,
        /// The current term.
        term: Term,
    },
    /// A vote request was ignored: a leader is alive.
    VoteIgnoredInLease {
        /// Pre-vote or vote.
        pre: bool,
        /// Who asked.
        from: ReplicaId,
        /// The candidate's last entry.
        candidate: EntryId,
        /// This log's last entry.
        last: EntryId,
        /// The vote given.
        vote: ReplicaId,
        /// The current term.
        term: Term,
        /// Ticks until the lease ends.
        remaining_ticks: u32,
    },
    /// An answer to a vote request arrived.
    VoteReceived {
        /// Pre-vote or vote.
        pre: bool,
        /// Granted or not.
        granted: bool,
        /// From whom.
        from: ReplicaId,
        /// The current term.
        term: Term,
    },
    /// A vote request is going out.
    VoteRequested {
        /// Pre-vote or vote.
        pre: bool,
        /// To whom.
        to: ReplicaId,
        /// This log's last entry.
        last: EntryId,
        /// The current term.
        term: Term,
    },
}

/// Why a proposed change of membership was replaced by an empty entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfChangeRefusal {
    /// It must leave the joint configuration first.
    InJoint,
    /// There is nothing to leave.
    NotInJoint,
    /// An earlier one may not be applied yet.
    Pending {
        /// Its index, or the last one that may hold one.
        index: Index,
        /// Applied so far.
        applied: Index,
    },
}

/// The cursors of a log, for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogCursors {
    /// Known to be committed.
    pub committed: Index,
    /// Acknowledged as applied.
    pub applied: Index,
    /// Handed out to be applied.
    pub applying: Index,
    /// First index that is not known to be durable.
    pub unstable_offset: Index,
    /// First index that was not handed out to be written.
    pub unstable_next: Index,
    /// Entries from `unstable_offset` on.
    pub unstable_len: usize,
}

/// A message without its contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MessageKind {
    /// See [`Payload::Append`](crate::Payload::Append).
    Append,
    /// See [`Payload::AppendResponse`](crate::Payload::AppendResponse).
    AppendResponse,
    /// See [`Payload::Heartbeat`](crate::Payload::Heartbeat).
    Heartbeat,
    /// See [`Payload::HeartbeatResponse`](crate::Payload::HeartbeatResponse).
    HeartbeatResponse,
    /// A [`Payload::Vote`](crate::Payload::Vote) with `pre`.
    PreVote,
    /// A [`Payload::VoteResponse`](crate::Payload::VoteResponse) with `pre`.
    PreVoteResponse,
    /// See [`Payload::Propose`](crate::Payload::Propose).
    Propose,
    /// See [`Payload::ReadIndex`](crate::Payload::ReadIndex).
    ReadIndex,
    /// See [`Payload::ReadIndexResponse`](crate::Payload::ReadIndexResponse).
    ReadIndexResponse,
    /// See [`Payload::Snapshot`](crate::Payload::Snapshot).
    Snapshot,
    /// See [`Payload::TimeoutNow`](crate::Payload::TimeoutNow).
    TimeoutNow,
    /// See [`Payload::TransferLeader`](crate::Payload::TransferLeader).
    TransferLeader,
    /// See [`Payload::Vote`](crate::Payload::Vote).
    Vote,
    /// See [`Payload::VoteResponse`](crate::Payload::VoteResponse).
    VoteResponse,
}

/// Events that wait to be taken.
///
/// Not everything that happens leads to a Ready (a stray message of a lower term does not), so it
/// may take long until somebody comes for them: the oldest are forgotten then.
#[derive(Debug, Default)]
pub(crate) struct Events(Vec<Event>);

impl Events {
    pub(crate) fn push(&mut self, event: Event) {
        if self.0.len() == EVENTS_MAX {
            self.0.drain(..EVENTS_MAX / 2);
        }
        self.0.push(event);
    }

    pub(crate) fn take(&mut self) -> Vec<Event> {
        core::mem::take(&mut self.0)
    }
}

/// Events kept until they are taken.
const EVENTS_MAX: usize = 1024;
