//! Every internal invariant of a replica in one list, for tests and simulations.

use crate::error::Error;
use crate::raft::{Raft, Role};
use crate::storage::Storage;
use crate::types::Index;

pub(crate) fn check<S: Storage>(raft: &Raft<S>) -> Result<(), Error> {
    let log = raft.log.cursors();
    let (first, last) = (raft.log.first_index(), raft.log.last_index());
    let holds = [
        (log.applied <= log.applying, "applied ≤ applying"),
        (log.applying <= log.committed, "applying ≤ committed"),
        (log.committed <= last, "committed ≤ last"),
        (first <= last.next(), "first ≤ last + 1"),
        (
            raft.log.has_pending_snapshot() || first.prev() <= log.applied,
            "truncated ≤ applied",
        ),
        (
            log.unstable_offset <= log.unstable_next,
            "unstable offset ≤ next",
        ),
        (
            raft.log.last_id().is_ok(),
            "the last entry has a known term",
        ),
        (
            // A bootstrap state may claim a term that the replica has yet to hear of.
            last < first || raft.log.last_id().is_ok_and(|id| id.term <= raft.term),
            "no entry of a future term",
        ),
        (
            raft.election_elapsed <= 2 * raft.params.election_ticks,
            "the election clock is bounded",
        ),
    ];
    if let Some((_, broken)) = holds.iter().find(|(holds, _)| !holds) {
        return Err(Error::Invariant(broken));
    }
    raft.config.check()?;
    match &raft.role {
        Role::Leader(leader) => {
            if raft.leader != raft.id {
                return Err(Error::Invariant("a leader follows somebody else"));
            }
            let members = raft.config.members();
            if !leader
                .progress
                .iter()
                .map(|p| p.id)
                .eq(members.iter().copied())
            {
                return Err(Error::Invariant("progress and members differ"));
            }
            for progress in &leader.progress {
                if progress.matched >= progress.next || progress.matched > last {
                    return Err(Error::Invariant("matched < next, matched ≤ last"));
                }
            }
            if leader.pending_conf_index > last.max(Index(0)) {
                return Err(Error::Invariant("a pending change lies beyond the log"));
            }
        }
        Role::Candidate(_) if raft.vote != raft.id => {
            return Err(Error::Invariant("a candidate votes for itself"));
        }
        Role::PreCandidate(_) | Role::Candidate(_) if !raft.leader.is_none() => {
            return Err(Error::Invariant("a candidate knows no leader"));
        }
        Role::Follower | Role::PreCandidate(_) | Role::Candidate(_) => {}
    }
    Ok(())
}
