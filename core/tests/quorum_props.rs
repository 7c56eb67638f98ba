//! Majorities against a twin that is too dumb to be wrong: it tries every set of voters.

use std::collections::BTreeMap;

use polyraft_core::quorum_inspect::{committed, tally};
use polyraft_core::{Index, ReplicaId, VoteResult};
use proptest::prelude::*;

/// Up to nine voters, so that both the computation on the stack and the one beyond it are met.
fn half() -> impl Strategy<Value = Vec<ReplicaId>> {
    prop::collection::btree_set(1u64..12, 0..10)
        .prop_map(|ids| ids.into_iter().map(ReplicaId).collect())
}

fn acks() -> impl Strategy<Value = BTreeMap<ReplicaId, Index>> {
    let ack = (1u64..12, 0u64..8).prop_map(|(id, index)| (ReplicaId(id), Index(index)));
    prop::collection::vec(ack, 0..16).prop_map(|acks| acks.into_iter().collect())
}

fn votes() -> impl Strategy<Value = BTreeMap<ReplicaId, bool>> {
    let vote = (1u64..12, any::<bool>()).prop_map(|(id, vote)| (ReplicaId(id), vote));
    prop::collection::vec(vote, 0..16).prop_map(|votes| votes.into_iter().collect())
}

/// All sets of more than half of `voters`.
fn majorities(voters: &[ReplicaId]) -> Vec<Vec<ReplicaId>> {
    (0u32..1 << voters.len())
        .filter(|set| set.count_ones() as usize > voters.len() / 2)
        .map(|set| {
            let member = |at: &usize| set & (1 << at) != 0;
            (0..voters.len())
                .filter(member)
                .map(|at| voters[at])
                .collect()
        })
        .collect()
}

/// The largest index that all members of some majority have.
fn dumb_committed(voters: &[ReplicaId], acks: &BTreeMap<ReplicaId, Index>) -> Option<Index> {
    let acked = |id: &ReplicaId| acks.get(id).copied().unwrap_or_default();
    if voters.is_empty() {
        return None;
    }
    majorities(voters)
        .iter()
        .filter_map(|set| set.iter().map(acked).min())
        .max()
}

/// Won if some majority agrees; lost if none can any more, however the missing ones vote.
fn dumb_tally(voters: &[ReplicaId], votes: &BTreeMap<ReplicaId, bool>) -> VoteResult {
    let sets = majorities(voters);
    let some = |good: &dyn Fn(&ReplicaId) -> bool| sets.iter().any(|set| set.iter().all(good));
    if voters.is_empty() || some(&|id| votes.get(id) == Some(&true)) {
        VoteResult::Won
    } else if some(&|id| votes.get(id) != Some(&false)) {
        VoteResult::Pending
    } else {
        VoteResult::Lost
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn committed_is_what_some_majority_of_each_half_has(
        incoming in half(), outgoing in half(), acks in acks(),
    ) {
        let dumb = match (dumb_committed(&incoming, &acks), dumb_committed(&outgoing, &acks)) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        let acked = |id| acks.get(&id).copied();
        prop_assert_eq!(committed(&incoming, &outgoing, acked), dumb);
        prop_assert_eq!(committed(&outgoing, &incoming, acked), dumb, "the halves are equal in rank");
    }

    #[test]
    fn a_vote_stands_as_the_worse_half_says(
        incoming in half(), outgoing in half(), votes in votes(),
    ) {
        let halves = (dumb_tally(&incoming, &votes), dumb_tally(&outgoing, &votes));
        let dumb = match halves {
            (VoteResult::Won, VoteResult::Won) => VoteResult::Won,
            (VoteResult::Lost, _) | (_, VoteResult::Lost) => VoteResult::Lost,
            _ => VoteResult::Pending,
        };
        let vote = |id| votes.get(&id).copied();
        prop_assert_eq!(tally(&incoming, &outgoing, vote), dumb);
        prop_assert_eq!(tally(&outgoing, &incoming, vote), dumb, "the halves are equal in rank");
    }

    /// What a won vote and a committed index have in common: two of them share a voter in each half.
    #[test]
    fn a_won_vote_sees_everything_committed(
        incoming in half(), outgoing in half(), acks in acks(), votes in votes(),
    ) {
        let yes = |id| votes.get(&id).copied().filter(|yes| *yes);
        let Some(index) = committed(&incoming, &outgoing, |id| acks.get(&id).copied()) else {
            return Ok(());
        };
        if index > Index(0) && tally(&incoming, &outgoing, yes) == VoteResult::Won {
            let has = |id: &ReplicaId| acks.get(id).is_some_and(|acked| *acked >= index);
            let seen = incoming.iter().chain(&outgoing).any(|id| yes(*id).is_some() && has(id));
            prop_assert!(seen, "a new leader could miss index {index}");
        }
    }
}

#[test]
fn no_voters_win_and_commit_everything() {
    assert_eq!(tally(&[], &[], |_| None), VoteResult::Won);
    assert_eq!(committed(&[], &[], |_| None), None);
}
