//! One majority.

use alloc::vec::Vec;

use super::VoteResult;
use crate::types::{Index, ReplicaId};

/// Voters up to which the computation stays on the stack.
const ON_STACK: usize = 7;

/// The largest index that a majority of `voters` has acknowledged; `None` without voters, which
/// stands for "no limit", so that a joint configuration with one empty half is that of the other.
pub(super) fn committed(
    voters: &[ReplicaId],
    acked: &impl Fn(ReplicaId) -> Index,
) -> Option<Index> {
    let count = voters.len();
    if count == 0 {
        return None;
    }
    if count <= ON_STACK {
        let mut indexes = [Index(0); ON_STACK];
        for (slot, &id) in indexes.iter_mut().zip(voters) {
            *slot = acked(id);
        }
        Some(quorum_index(&mut indexes[..count]))
    } else {
        let mut indexes: Vec<Index> = voters.iter().map(|&id| acked(id)).collect();
        Some(quorum_index(&mut indexes))
    }
}

/// With the indexes ascending, the last one that `n/2 + 1` of them reach.
fn quorum_index(indexes: &mut [Index]) -> Index {
    indexes.sort_unstable();
    indexes[indexes.len() - (indexes.len() / 2 + 1)]
}

/// How the vote of `voters` stands. Nobody to ask counts as won.
pub(super) fn tally(voters: &[ReplicaId], vote: &impl Fn(ReplicaId) -> Option<bool>) -> VoteResult {
    if voters.is_empty() {
        return VoteResult::Won;
    }
    let quorum = voters.len() / 2 + 1;
    let (mut yes, mut missing) = (0, 0);
    for &id in voters {
        match vote(id) {
            Some(true) => yes += 1,
            Some(false) => {}
            None => missing += 1,
        }
    }
    if yes >= quorum {
        VoteResult::Won
    } else if yes + missing >= quorum {
        VoteResult::Pending
    } else {
        VoteResult::Lost
    }
}
