//! Followers that wait for a snapshot: what would make it useless before it is there is put off.
//!
//! It is not put off for ever. A follower that never gets there, however often it is tried, must
//! neither keep a log from being truncated nor a range from being split.

use polyraft_core::{Index, ProgressState, ProgressStatus, ReplicaId};

use crate::config::HostConfig;
use crate::replica::Replica;

/// So many election timeouts a group puts up with a follower that waits for a snapshot.
const PATIENCE: u32 = 60;

/// What followers of a leader wait for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Awaited {
    /// One is being sent a snapshot.
    pub(super) snapshot: bool,
    /// Behind this entry somebody is going to go on from a snapshot.
    pub(super) behind: Option<Index>,
}

/// Looks at the followers of a leader; nothing if the group has waited for long enough.
pub(super) fn awaited(replica: &mut Replica, config: &HostConfig) -> Awaited {
    let now = look(replica);
    if now == Awaited::default() {
        replica.patience = None;
        return now;
    }
    let waited = *replica.patience.get_or_insert(0);
    match waited < config.election_ticks.saturating_mul(PATIENCE) {
        true => now,
        false => Awaited::default(),
    }
}

/// Time goes by for those who wait.
pub(super) fn tick(replica: &mut Replica) {
    if let Some(waited) = replica.patience {
        let waits = look(replica) != Awaited::default();
        replica.patience = waits.then(|| waited.saturating_add(1));
    }
}

/// A snapshot is said to have arrived; the follower will say so itself when it is installed.
pub(super) fn snapshot_arrived(replica: &mut Replica, to: ReplicaId) {
    let status = replica.node.status();
    let mut members = status.progress.iter().filter(|member| member.id == to);
    if let Some(index) = members.find_map(is_sent) {
        replica.arrived.retain(|(id, _)| *id != to);
        replica.arrived.push((to, index));
    }
}

fn look(replica: &mut Replica) -> Awaited {
    if !replica.leads() {
        replica.arrived.clear();
        return Awaited::default();
    }
    let members = replica.node.status().progress;
    let sent = || members.iter().filter_map(is_sent);
    replica.arrived.retain(|(id, index)| {
        let mut members = members.iter();
        members.any(|member| member.id == *id && member.matched < *index)
    });
    let arrived = replica.arrived.iter().map(|(_, index)| *index);
    Awaited {
        snapshot: sent().next().is_some(),
        behind: sent().chain(arrived).min(),
    }
}

/// The snapshot that a follower is being sent; the transport says when it has arrived or failed.
const fn is_sent(member: &ProgressStatus) -> Option<Index> {
    match member.state {
        ProgressState::Snapshot(index) => Some(index),
        ProgressState::Probe | ProgressState::Replicate => None,
    }
}
