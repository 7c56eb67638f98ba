//! Changes of membership against plain sets, and against each other: one by one, or jointly.

use std::collections::BTreeSet;

use bytes::Bytes;
use polyraft_core::{
    ConfChange, ConfChangeKind, ConfChangeV2, ConfState, Configuration, MembershipError, ReplicaId,
    Transition,
};
use proptest::prelude::*;

fn kind() -> impl Strategy<Value = ConfChangeKind> {
    prop_oneof![
        Just(ConfChangeKind::AddVoter),
        Just(ConfChangeKind::AddLearner),
        Just(ConfChangeKind::Remove),
        Just(ConfChangeKind::Update),
    ]
}

fn changes() -> impl Strategy<Value = Vec<(ConfChangeKind, ReplicaId)>> {
    prop::collection::vec((kind(), (0u64..9).prop_map(ReplicaId)), 0..10)
}

fn transition() -> impl Strategy<Value = Transition> {
    prop_oneof![
        Just(Transition::Auto),
        Just(Transition::JointImplicit),
        Just(Transition::JointExplicit),
    ]
}

fn change() -> impl Strategy<Value = ConfChangeV2> {
    (
        transition(),
        changes(),
        prop::collection::vec(any::<u8>(), 0..4),
    )
        .prop_map(|(transition, changes, context)| ConfChangeV2 {
            transition,
            changes,
            context: context.into(),
        })
}

/// Any configuration that can be: each id is in none of the parts, or in an allowed mixture.
fn conf_state() -> impl Strategy<Value = ConfState> {
    let parts = prop::collection::vec(0u8..7, 9);
    (parts, any::<bool>(), any::<bool>(), any::<u64>()).prop_map(
        |(parts, joint, auto_leave, order)| {
            let mut state = ConfState::default();
            for (at, part) in parts.into_iter().enumerate() {
                let id = ReplicaId(at as u64 + 1);
                match part {
                    0 => {}
                    1 => state.learners.push(id),
                    2 if joint => state.voters_outgoing.push(id),
                    3 if joint => {
                        state.voters_outgoing.push(id);
                        state.learners_next.push(id);
                    }
                    4 if joint => {
                        state.voters.push(id);
                        state.voters_outgoing.push(id);
                    }
                    _ => state.voters.push(id),
                }
            }
            if state.voters.is_empty() {
                state.voters.push(ReplicaId(100));
            }
            state.auto_leave = auto_leave && !state.voters_outgoing.is_empty();
            // In no particular order, as it may come from outside.
            if order % 2 == 0 {
                state.voters.reverse();
                state.learners.reverse();
            }
            state
        },
    )
}

/// Voters and learners after changes that no rule stands against, as plain sets.
fn dumb(
    start: &Configuration,
    changes: &[(ConfChangeKind, ReplicaId)],
) -> (BTreeSet<ReplicaId>, BTreeSet<ReplicaId>) {
    let state = start.to_conf_state();
    let mut voters: BTreeSet<_> = state.voters.into_iter().collect();
    let mut learners: BTreeSet<_> = state.learners.into_iter().collect();
    for (kind, id) in changes.iter().filter(|(_, id)| !id.is_none()) {
        if *kind != ConfChangeKind::Update {
            voters.remove(id);
            learners.remove(id);
        }
        match kind {
            ConfChangeKind::AddVoter => voters.insert(*id),
            ConfChangeKind::AddLearner => learners.insert(*id),
            ConfChangeKind::Remove | ConfChangeKind::Update => false,
        };
    }
    (voters, learners)
}

fn sets(config: &Configuration) -> (BTreeSet<ReplicaId>, BTreeSet<ReplicaId>) {
    let state = config.to_conf_state();
    (
        state.voters.into_iter().collect(),
        state.learners.into_iter().collect(),
    )
}

fn simple_start() -> impl Strategy<Value = Configuration> {
    conf_state().prop_map(|state| {
        Configuration::restore(&ConfState {
            voters_outgoing: Vec::new(),
            learners_next: Vec::new(),
            auto_leave: false,
            ..state
        })
        .expect("simple")
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// The way through a joint configuration ends where simple changes, one at a time, end.
    #[test]
    fn jointly_is_one_by_one(start in simple_start(), changes in changes(), auto in any::<bool>()) {
        let mut simple = start.clone();
        for change in &changes {
            match simple.simple(std::slice::from_ref(change)) {
                Ok(next) => simple = next,
                // Only at once can a sole voter be replaced by a later change of the same list.
                Err(error) => {
                    prop_assert_eq!(error, MembershipError::RemovedAllVoters);
                    return Ok(());
                }
            }
        }
        let joint = start.enter_joint(auto, &changes).expect("each simple change is possible");
        prop_assert!(joint.is_joint());
        prop_assert_eq!(joint.to_conf_state().auto_leave, auto);
        prop_assert_eq!(joint.to_conf_state().voters_outgoing, start.to_conf_state().voters);
        prop_assert_eq!(joint.check(), Ok(()));
        prop_assert_eq!(joint.leave_joint().expect("joint"), simple);
    }

    /// The joint way against plain sets; a list that takes all voters away is refused.
    #[test]
    fn jointly_is_what_plain_sets_say(start in simple_start(), changes in changes()) {
        let (voters, learners) = dumb(&start, &changes);
        match start.enter_joint(true, &changes) {
            Ok(joint) => prop_assert_eq!(sets(&joint.leave_joint().expect("joint")), (voters, learners)),
            Err(error) => {
                prop_assert_eq!(error, MembershipError::RemovedAllVoters);
                prop_assert!(voters.is_empty());
            }
        }
    }

    /// A simple change is refused exactly if it takes all voters away or moves more than one.
    #[test]
    fn a_simple_change_moves_one_voter(start in simple_start(), changes in changes()) {
        let (voters, learners) = dumb(&start, &changes);
        let (before, _) = sets(&start);
        let moved = before.symmetric_difference(&voters).count();
        match start.simple(&changes) {
            Ok(next) => {
                prop_assert!(moved <= 1 && !voters.is_empty());
                prop_assert_eq!(sets(&next), (voters, learners));
            }
            Err(MembershipError::RemovedAllVoters) => prop_assert!(voters.is_empty()),
            Err(error) => {
                prop_assert_eq!(error, MembershipError::MoreThanOneVoter);
                prop_assert!(moved > 1);
            }
        }
    }

    /// Any configuration survives being stored, sent and restored, in whatever order its lists are.
    #[test]
    fn what_is_stored_is_restored(state in conf_state()) {
        let config = Configuration::restore(&state).expect("a possible state");
        let sorted = |mut ids: Vec<ReplicaId>| { ids.sort(); ids };
        let again = config.to_conf_state();
        prop_assert_eq!(&again.voters, &sorted(state.voters));
        prop_assert_eq!(&again.learners, &sorted(state.learners));
        prop_assert_eq!(&again.voters_outgoing, &sorted(state.voters_outgoing));
        prop_assert_eq!(&again.learners_next, &sorted(state.learners_next));
        prop_assert_eq!(again.auto_leave, state.auto_leave);
        prop_assert_eq!(Configuration::restore(&again).expect("a possible state"), config);
    }

    /// From any configuration, any change either is refused or leads to one that holds together.
    #[test]
    fn nothing_leads_out_of_the_possible(state in conf_state(), change in change()) {
        if let Ok(next) = state.apply(&change) {
            let config = Configuration::restore(&next).expect("the result is possible");
            prop_assert!(!next.voters.is_empty());
            prop_assert_eq!(config.to_conf_state(), next);
        }
    }

    #[test]
    fn bytes_bring_back_the_change(change in change(), kind in kind(), id in any::<u64>()) {
        prop_assert_eq!(ConfChangeV2::decode(&change.encode()), Ok(change));
        let one = ConfChange { kind, replica: ReplicaId(id), context: Bytes::from_static(b"c") };
        prop_assert_eq!(ConfChange::decode(&one.encode()), Ok(one));
    }

    /// Bytes from outside are refused or understood, and what is understood is encoded the same way.
    #[test]
    fn foreign_bytes_do_no_harm(bytes in prop::collection::vec(0u8..5, 0..40)) {
        let bytes = Bytes::from(bytes);
        if let Ok(change) = ConfChangeV2::decode(&bytes)
            && !change.leaves_joint()
        {
            prop_assert_eq!(change.encode(), bytes.clone());
        }
        if let Ok(change) = ConfChange::decode(&bytes) {
            prop_assert_eq!(change.encode(), bytes);
        }
    }
}

fn ids(ids: &[u64]) -> Vec<ReplicaId> {
    ids.iter().copied().map(ReplicaId).collect()
}

#[test]
fn impossible_states_are_not_restored() {
    let good = ConfState {
        voters: ids(&[1, 2]),
        voters_outgoing: ids(&[2, 3]),
        learners: ids(&[4]),
        learners_next: ids(&[3]),
        auto_leave: true,
    };
    assert!(Configuration::restore(&good).is_ok());
    let with = |change: fn(&mut ConfState)| {
        let mut state = good.clone();
        change(&mut state);
        Configuration::restore(&state)
    };
    for (what, result) in [
        ("a learner votes", with(|s| s.learners = ids(&[1]))),
        (
            "a learner votes on the way out",
            with(|s| s.learners = ids(&[3])),
        ),
        (
            "a next learner never voted",
            with(|s| s.learners_next = ids(&[5])),
        ),
        (
            "a next learner votes on",
            with(|s| s.learners_next = ids(&[2])),
        ),
        ("nobody comes in", with(|s| s.voters.clear())),
        ("id 0", with(|s| s.voters = ids(&[0, 1]))),
        (
            "leaves what is not joint",
            with(|s| {
                s.voters_outgoing.clear();
                s.learners_next.clear();
            }),
        ),
    ] {
        assert!(
            matches!(result, Err(MembershipError::Malformed(_))),
            "{what}: {result:?}"
        );
    }
}
