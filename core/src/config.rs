//! What one replica is told at its start.

use crate::error::ConfigError;
use crate::progress::InflightLimits;
use crate::raft::Params;
use crate::types::{Index, ReplicaId};

/// How reads are confirmed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadMode {
    /// By a round of heartbeats (thesis section 6.4); needs no clock.
    #[default]
    Safe,
    /// By the CheckQuorum lease; needs bounded clock drift and `check_quorum`.
    ///
    /// As weak as in etcd: a leader looks at its quorum once an election timeout, so one that is cut
    /// off may answer for up to two, while the others may elect after one; a voter that restarts and a
    /// leadership transfer end the lease without the leader knowing. Reads may then be stale. Where
    /// that must not be, use [`ReadMode::Safe`].
    LeaseBased,
}

/// Parameters of one replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Who this is; not 0.
    pub id: ReplicaId,
    /// Ticks without a leader before campaigning; randomised to `[n, 2n-1]`.
    pub election_ticks: u32,
    /// Ticks between heartbeats; less than `election_ticks`.
    pub heartbeat_ticks: u32,
    /// What the state machine has applied already; entries up to it are not handed out again.
    pub applied: Index,
    /// Bytes of entries per append message; 0: one entry each.
    pub max_message_bytes: u64,
    /// Bytes of committed entries handed out and not yet acknowledged; 0: as `max_message_bytes`.
    pub max_committed_bytes: u64,
    /// Payload bytes in a leader's uncommitted tail; 0: no limit.
    pub max_uncommitted_bytes: u64,
    /// Unacknowledged append messages per follower; not 0.
    pub max_inflight_messages: usize,
    /// Unacknowledged bytes per follower; 0: no limit, else not below `max_message_bytes`.
    pub max_inflight_bytes: u64,
    /// A leader without contact to a quorum steps down; voters with a live leader refuse votes.
    pub check_quorum: bool,
    /// A trial election before each real one.
    pub pre_vote: bool,
    /// How reads are confirmed.
    pub read_mode: ReadMode,
    /// Drop proposals made on followers instead of passing them to the leader.
    pub disable_proposal_forwarding: bool,
    /// Skip the checks on configuration changes when they are proposed.
    pub disable_conf_change_validation: bool,
    /// A leader that is removed or demoted steps down when it applies that.
    pub step_down_on_removal: bool,
    /// Who refuses a vote says what is committed, so that a candidate does not wait for ever for votes
    /// of members that an entry of its own log has made learners. etcd has no such thing, TiKV does.
    pub commit_by_vote: bool,
    /// Followers learn a new commit index from the next append or heartbeat, not from an empty append of
    /// its own (raft-rs calls it `skip_bcast_commit`). Halves the messages of groups with few writes; what
    /// followers apply is up to a heartbeat older. Changes of membership are told at once all the same.
    pub lazy_commit: bool,
    /// Requests for a read index that may wait, before and after the first commit of a term.
    pub max_pending_reads: usize,
    /// Seed of the election jitter; should differ for every replica of every group.
    pub seed: u64,
}

impl Config {
    /// A configuration for the replica `id` with the defaults of etcd/raft where it has any: an
    /// election timeout of 10 ticks, a heartbeat each tick, messages of 1 MiB, 256 in flight,
    /// CheckQuorum and PreVote on, leaders that step down when they are removed.
    #[must_use]
    pub const fn new(id: ReplicaId) -> Self {
        Self {
            id,
            election_ticks: 10,
            heartbeat_ticks: 1,
            applied: Index(0),
            max_message_bytes: 1 << 20,
            max_committed_bytes: 0,
            max_uncommitted_bytes: 0,
            max_inflight_messages: 256,
            max_inflight_bytes: 0,
            check_quorum: true,
            pre_vote: true,
            read_mode: ReadMode::Safe,
            disable_proposal_forwarding: false,
            disable_conf_change_validation: false,
            step_down_on_removal: true,
            commit_by_vote: false,
            lazy_commit: false,
            max_pending_reads: 4096,
            seed: id.0,
        }
    }

    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        let checks = [
            (!self.id.is_none(), "id must not be 0"),
            (self.heartbeat_ticks > 0, "heartbeat_ticks must not be 0"),
            (
                self.election_ticks > self.heartbeat_ticks,
                "election_ticks must be greater than heartbeat_ticks",
            ),
            (
                self.max_inflight_messages > 0,
                "max_inflight_messages must not be 0",
            ),
            (
                self.max_inflight_bytes == 0 || self.max_inflight_bytes >= self.max_message_bytes,
                "max_inflight_bytes must not be below max_message_bytes",
            ),
            (
                self.max_pending_reads > 0,
                "max_pending_reads must not be 0",
            ),
            (
                self.read_mode != ReadMode::LeaseBased || self.check_quorum,
                "lease reads need check_quorum",
            ),
        ];
        match checks.iter().find(|(holds, _)| !holds) {
            Some((_, broken)) => Err(ConfigError(broken)),
            None => Ok(()),
        }
    }

    /// Bytes of committed entries that may be out at once; at least 1, so that one entry always may.
    pub(crate) fn committed_bytes_max(&self) -> u64 {
        match (self.max_committed_bytes, self.max_message_bytes) {
            (0, limit) | (limit, _) => limit.max(1),
        }
    }

    pub(crate) const fn params(&self) -> Params {
        Params {
            election_ticks: self.election_ticks,
            heartbeat_ticks: self.heartbeat_ticks,
            max_message_bytes: self.max_message_bytes,
            max_uncommitted_bytes: match self.max_uncommitted_bytes {
                0 => u64::MAX,
                limit => limit,
            },
            inflights: InflightLimits {
                messages: self.max_inflight_messages,
                bytes: self.max_inflight_bytes,
            },
            check_quorum: self.check_quorum,
            pre_vote: self.pre_vote,
            read_mode: self.read_mode,
            forward_proposals: !self.disable_proposal_forwarding,
            validate_conf_changes: !self.disable_conf_change_validation,
            step_down_on_removal: self.step_down_on_removal,
            commit_by_vote: self.commit_by_vote,
            lazy_commit: self.lazy_commit,
            max_pending_reads: self.max_pending_reads,
        }
    }
}
