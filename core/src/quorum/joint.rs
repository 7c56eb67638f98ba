//! Two majorities at once (thesis section 4.3): what counts must hold in both halves.

use super::{VoteResult, majority};
use crate::planted;
use crate::types::{Index, ReplicaId};

/// The largest index committed in both halves; `None` if both are empty.
pub(crate) fn committed(
    incoming: &[ReplicaId],
    outgoing: &[ReplicaId],
    acked: impl Fn(ReplicaId) -> Index,
) -> Option<Index> {
    let first = majority::committed(incoming, &acked);
    let second = majority::committed(outgoing, &acked);
    match (first, second) {
        (Some(a), Some(_)) if planted!(JointCommitHalf) => Some(a),
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, other) => one.or(other),
    }
}

/// Won in both halves, lost in either, else pending.
pub(crate) fn tally(
    incoming: &[ReplicaId],
    outgoing: &[ReplicaId],
    vote: impl Fn(ReplicaId) -> Option<bool>,
) -> VoteResult {
    let first = majority::tally(incoming, &vote);
    let second = majority::tally(outgoing, &vote);
    match (first, second) {
        (a, _) if planted!(JointVoteHalf) => a,
        (a, b) if a == b => a,
        (VoteResult::Lost, _) | (_, VoteResult::Lost) => VoteResult::Lost,
        _ => VoteResult::Pending,
    }
}
