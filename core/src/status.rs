//! What a replica looks like from outside.

use alloc::vec::Vec;

use crate::membership::ConfState;
use crate::ready::{HardState, SoftState};
use crate::types::{Index, ReplicaId};

/// The role of a replica, without its data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RoleName {
    /// Follows a leader or waits for one.
    #[default]
    Follower,
    /// Asks whether an election could be won.
    PreCandidate,
    /// Asks for votes.
    Candidate,
    /// Leads.
    Leader,
}

/// What costs nothing to say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BasicStatus {
    /// Who.
    pub id: ReplicaId,
    /// Term, vote, commit.
    pub hard_state: HardState,
    /// Leader and role.
    pub soft_state: SoftState,
    /// Acknowledged as applied.
    pub applied: Index,
    /// The target of a running transfer.
    pub transfer_target: ReplicaId,
}

/// What a leader knows of one member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgressStatus {
    /// Who.
    pub id: ReplicaId,
    /// Known to be equal up to here.
    pub matched: Index,
    /// The next index to send.
    pub next: Index,
    /// Probe, replicate or snapshot.
    pub state: ProgressState,
    /// Has been heard of within the last election timeout.
    pub recently_active: bool,
    /// Appends are held back at the moment.
    pub paused: bool,
    /// Unacknowledged append messages.
    pub inflight_messages: usize,
    /// Unacknowledged bytes.
    pub inflight_bytes: u64,
    /// The window is full: only empty appends go out.
    pub inflight_full: bool,
    /// Has no vote that counts.
    pub learner: bool,
}

/// How a leader feeds a follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgressState {
    /// Looks for the last common entry, one message at a time.
    Probe,
    /// Streams appends through a window.
    Replicate,
    /// Waits for a snapshot at this index to arrive.
    Snapshot(Index),
}

/// Everything, by value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// What costs nothing.
    pub basic: BasicStatus,
    /// The configuration in force.
    pub conf_state: ConfState,
    /// On a leader: all members, ascending by id.
    pub progress: Vec<ProgressStatus>,
}
