//! What one replica is told at its start.

use crate::types::{Index, ReplicaId};

/// How reads are confirmed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadMode {
    /// By a round of heartbeats (thesis section 6.4); needs no clock.
    #[default]
    Safe,
    /// By the CheckQuorum lease; needs bounded clock drift and `check_quorum`.
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
    /// Requests for a read index that may wait, before and after the first commit of a term.
    pub max_pending_reads: usize,
    /// Seed of the election jitter; should differ for every replica of every group.
    pub seed: u64,
}
