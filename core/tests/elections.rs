//! Elections: trials, leases, roles and terms, timeouts, and elections as a whole.
//!
//! Sections in brackets are of the thesis (Ongaro 2014). The situations that etcd's interaction files
//! do not notice come first.

mod common;

use bytes::Bytes;
use common::{
    Cluster, ELECTION, Peer, accepted, append, conf_state, config, entry, heartbeat, ids, message,
    pre_vote, pre_voted, storage, vote, voted,
};
use polyraft_core::{
    ConfState, EntryId, Index, Message, MessageKind, Payload, ReplicaId, RoleName, StepError,
};

fn three(id: u64) -> Peer {
    Peer::new(config(id), storage(conf_state(&[1, 2, 3], &[]), &[]))
}

/// The only answer, which must be to a vote request: granted, and in which term.
fn verdict(answers: &[Message]) -> (bool, u64) {
    match answers {
        [
            Message {
                term,
                payload: Payload::VoteResponse { reject, .. },
                ..
            },
        ] => (!reject, term.0),
        other => panic!("not one answer to a vote request: {other:?}"),
    }
}

fn kinds(messages: &[Message]) -> Vec<MessageKind> {
    messages.iter().map(|m| m.payload.kind()).collect()
}

// Trial elections [9.6].

#[test]
fn a_trial_changes_neither_term_nor_vote() {
    let mut config = config(1);
    config.pre_vote = true;
    let mut peer = Peer::new(config, storage(conf_state(&[1, 2, 3], &[]), &[]));
    let asked = peer.campaign();
    assert_eq!(peer.role(), RoleName::PreCandidate);
    assert_eq!((peer.term(), peer.hard_state().vote), (0, ReplicaId::NONE));
    assert!(asked.iter().all(|m| m.term.0 == 1), "for the next term");
    peer.say(message(2, 1, 1, pre_voted(true)));
    assert_eq!(peer.role(), RoleName::Candidate);
    assert_eq!((peer.term(), peer.hard_state().vote), (1, ReplicaId(1)));
}

/// Votes of an earlier trial must not decide the next one.
#[test]
fn a_new_trial_begins_without_votes() {
    let mut config = config(1);
    config.pre_vote = true;
    let state = conf_state(&[1, 2, 3, 4, 5], &[]);
    let mut peer = Peer::new(config, storage(state, &[]));
    peer.campaign();
    peer.say(message(2, 1, 1, pre_voted(true)));
    peer.campaign();
    peer.say(message(3, 1, 1, pre_voted(true)));
    assert_eq!(
        peer.role(),
        RoleName::PreCandidate,
        "1 and 3 are two of five"
    );
    peer.say(message(2, 1, 1, pre_voted(true)));
    assert_eq!(peer.role(), RoleName::Candidate);
}

/// Two candidates that split the vote come to a result on the next try.
#[test]
fn a_split_vote_is_tried_again() {
    let mut cluster = Cluster::with(3, |config| config.pre_vote = true);
    cluster.campaign(1);
    cluster.isolate(1);
    // 2 and 3 win their trials before either hears of the other's election.
    for id in [2, 3] {
        cluster.peer(id).node.campaign().unwrap();
    }
    cluster.lose(MessageKind::Vote);
    cluster.settle();
    assert_eq!(
        cluster.roles()[1..],
        [RoleName::Candidate, RoleName::Candidate]
    );
    assert_eq!(cluster.terms()[1..], [2, 2]);
    cluster.heal();
    cluster.isolate(1);
    cluster.campaign(2);
    assert_eq!(cluster.leader(), Some(2));
    assert_eq!(cluster.peer(2).term(), 3);
}

/// A trial candidate of a lower term must hear that it is behind, else a group in which trials are
/// just being switched on could wait for ever.
#[test]
fn a_trial_of_a_lower_term_is_answered_with_the_own_term() {
    for pre in [false, true] {
        let mut config = config(1);
        config.pre_vote = pre;
        let state = conf_state(&[1, 2], &[]);
        let mut peer = Peer::new(config, storage(state, &[1, 3]));
        let answer = peer.say(message(2, 1, 2, pre_vote(EntryId::new(9, 9))));
        assert_eq!(verdict(&answer), (false, 3), "pre {pre}");
        assert_eq!(answer[0].payload.kind(), MessageKind::PreVoteResponse);
    }
}

/// The situation of a rolling upgrade to trials: 3 has the higher term and the shorter log, 2 asks by
/// trials only. It hears of 3's term and wins there.
#[test]
fn trials_can_be_switched_on_in_a_running_group() {
    let state = || conf_state(&[1, 2, 3], &[]);
    let with = |id, terms: &[u64], pre| {
        let mut config = config(id);
        config.pre_vote = pre;
        Peer::new(config, storage(state(), terms))
    };
    let mut cluster = Cluster::of([
        with(1, &[1, 1], false),
        with(2, &[1, 1], true),
        with(3, &[1], false),
    ]);
    cluster.isolate(1);
    cluster.isolate(3);
    cluster.campaign(3);
    cluster.campaign(3);
    assert_eq!(cluster.terms(), [1, 1, 3]);
    cluster.heal();
    cluster.isolate(1);
    for _ in 0..3 {
        cluster.campaign(3);
        cluster.campaign(2);
    }
    assert_eq!(cluster.leader(), Some(2));
}

/// Who campaigned for real while it was cut off has a higher term than everybody; the old leader
/// learns of it by the answer to its append, also if only trials (not CheckQuorum) are on.
#[test]
fn a_stuck_candidate_frees_itself() {
    for (check_quorum, pre_vote) in [(true, false), (false, true), (true, true)] {
        let mut config = config(1);
        (config.check_quorum, config.pre_vote) = (check_quorum, pre_vote);
        let state = conf_state(&[1, 2, 3], &[]);
        for payload in [append(EntryId::new(0, 0), Vec::new(), 0), heartbeat(0)] {
            let mut peer = Peer::new(config.clone(), storage(state.clone(), &[5]));
            let answer = peer.say(message(2, 1, 3, payload));
            assert_eq!(answer, [message(1, 2, 5, accepted(0))]);
            assert_eq!((peer.term(), peer.leader()), (5, 0), "it follows nobody");
        }
    }
    // Without either nobody is ever ignored, so no answer is needed.
    let mut peer = Peer::new(config(1), storage(conf_state(&[1, 2], &[]), &[5]));
    assert_eq!(peer.say(message(2, 1, 3, heartbeat(0))), []);
}

#[test]
fn a_stuck_candidate_brings_the_group_to_its_term() {
    let mut cluster = Cluster::with(3, |config| config.check_quorum = true);
    cluster.campaign(1);
    cluster.isolate(3);
    for _ in 0..3 {
        cluster.campaign(3);
    }
    assert_eq!(cluster.terms(), [1, 1, 4]);
    cluster.heal();
    // The lease of the others stands against it ...
    cluster.campaign(3);
    assert_eq!(cluster.roles()[0], RoleName::Leader);
    // ... and the next heartbeat tells the leader, which steps down.
    cluster.tick(1, 1);
    assert_eq!(cluster.terms()[0], 5);
    assert_eq!(cluster.leader(), None);
    cluster.campaign(1);
    assert_eq!(cluster.leader(), Some(1));
    assert_eq!(cluster.terms(), [6, 6, 6]);
}

// Leases and the leader's view of its quorum [6.2].

#[test]
fn a_lease_stands_against_candidates_until_it_ends() {
    let mut config = config(1);
    config.check_quorum = true;
    for payload in [vote(EntryId::new(9, 9)), pre_vote(EntryId::new(9, 9))] {
        let mut peer = Peer::new(config.clone(), storage(conf_state(&[1, 2, 3], &[]), &[]));
        peer.say(message(2, 1, 1, heartbeat(0)));
        peer.node.set_randomized_election_timeout(2 * ELECTION);
        peer.tick(ELECTION - 1);
        assert_eq!(peer.say(message(3, 1, 2, payload.clone())), []);
        assert_eq!((peer.term(), peer.leader()), (1, 2));
        peer.tick(1);
        assert_eq!(verdict(&peer.say(message(3, 1, 2, payload))), (true, 2));
    }
}

#[test]
fn a_leader_without_its_quorum_steps_down() {
    let mut cluster = Cluster::with(3, |config| config.check_quorum = true);
    cluster.campaign(1);
    cluster.tick(1, 3 * ELECTION);
    assert_eq!(cluster.roles()[0], RoleName::Leader, "both answer");
    cluster.cut(1, 2);
    cluster.tick(1, 3 * ELECTION);
    assert_eq!(cluster.roles()[0], RoleName::Leader, "one answers");
    cluster.cut(1, 3);
    cluster.tick(1, 2 * ELECTION);
    assert_eq!(cluster.roles()[0], RoleName::Follower);
    assert_eq!((cluster.peer(1).term(), cluster.peer(1).leader()), (1, 0));
}

/// Noticed by no test of etcd: learners that answer are no quorum.
#[test]
fn learners_are_no_quorum() {
    let state = conf_state(&[1, 2, 3], &[4, 5, 6]);
    let mut peer = Peer::new(
        {
            let mut config = config(1);
            config.check_quorum = true;
            config
        },
        storage(state, &[]),
    );
    peer.lead(&[2, 3]);
    for _ in 0..2 * ELECTION {
        peer.tick(1);
        for from in [4, 5, 6] {
            if peer.role() == RoleName::Leader {
                peer.say(message(from, 1, 1, Payload::HeartbeatResponse { read: 0 }));
            }
        }
    }
    assert_eq!(peer.role(), RoleName::Follower);
}

/// In a joint configuration the leader must hear of majorities of both halves.
#[test]
fn a_joint_leader_needs_both_halves() {
    for (alive, leads) in [([2, 4], true), ([2, 3], false), ([4, 5], false)] {
        let state = ConfState {
            voters: ids(&[1, 2, 3]),
            voters_outgoing: ids(&[1, 4, 5]),
            ..ConfState::default()
        };
        let mut config = config(1);
        config.check_quorum = true;
        let mut peer = Peer::new(config, storage(state, &[]));
        peer.lead(&[2, 3, 4, 5]);
        for _ in 0..3 * ELECTION {
            peer.tick(1);
            for from in alive {
                if peer.role() == RoleName::Leader {
                    peer.say(message(from, 1, 1, Payload::HeartbeatResponse { read: 0 }));
                }
            }
        }
        assert_eq!(peer.role() == RoleName::Leader, leads, "{alive:?} alive");
    }
}

/// With trials and leases, who was away does not disturb the group when it comes back.
#[test]
fn a_returning_member_does_not_disturb() {
    let mut cluster = Cluster::with(3, |config| {
        config.check_quorum = true;
        config.pre_vote = true;
    });
    cluster.campaign(1);
    cluster.isolate(3);
    cluster.tick(3, 5 * ELECTION);
    assert_eq!(cluster.peer(3).term(), 1, "trials alone move no term");
    cluster.tick(1, 1);
    cluster.heal();
    cluster.campaign(3);
    cluster.tick(1, 1);
    assert_eq!(cluster.leader(), Some(1));
    assert_eq!(cluster.terms(), [1, 1, 1]);
    assert_eq!(cluster.peer(3).leader(), 1);
}

/// A quorum that cannot hear the leader replaces it, trials and leases or not: a trial candidate
/// has given up its leader, so it holds no lease against another one.
#[test]
fn a_quorum_of_trial_candidates_elects() {
    let mut cluster = Cluster::with(3, |config| {
        config.check_quorum = true;
        config.pre_vote = true;
    });
    cluster.campaign(1);
    cluster.isolate(1);
    cluster.campaign(2);
    assert_eq!(
        cluster.roles()[1],
        RoleName::PreCandidate,
        "3 holds to its lease"
    );
    cluster.campaign(3);
    assert_eq!(cluster.leader(), Some(3));
}

/// [3.10] A transfer is no trial: it costs the leader nothing and must not be held up by leases.
/// Noticed by no test of etcd.
#[test]
fn a_transfer_campaigns_without_a_trial() {
    let mut config = config(1);
    (config.pre_vote, config.check_quorum) = (true, true);
    let mut peer = Peer::new(config, storage(conf_state(&[1, 2, 3], &[]), &[]));
    peer.say(message(2, 1, 1, heartbeat(0)));
    let asked = peer.say(message(2, 1, 1, Payload::TimeoutNow));
    assert_eq!((peer.role(), peer.term()), (RoleName::Candidate, 2));
    assert_eq!(kinds(&asked), [MessageKind::Vote, MessageKind::Vote]);
    for request in asked {
        assert!(matches!(
            request.payload,
            Payload::Vote { transfer: true, .. }
        ));
    }
}

#[test]
fn a_transfer_breaks_the_lease() {
    let mut cluster = Cluster::with(3, |config| {
        config.check_quorum = true;
        config.pre_vote = true;
    });
    cluster.campaign(1);
    cluster.peer(1).node.transfer_leader(ReplicaId(3)).unwrap();
    cluster.settle();
    assert_eq!(cluster.leader(), Some(3));
    assert_eq!(cluster.terms(), [2, 2, 2]);
}

// Roles and terms.

/// [3.3] Whatever it is, and whatever it hears: a higher term makes it a follower of that term.
#[test]
fn a_higher_term_makes_a_follower() {
    let last = EntryId::new(0, 0);
    type Start = (&'static str, fn(&mut Peer));
    let starts: [Start; 4] = [
        ("follower", |_| {}),
        ("pre-candidate", |peer| {
            peer.campaign();
        }),
        ("candidate", |peer| {
            peer.campaign();
            peer.say(message(2, 1, 1, pre_voted(true)));
        }),
        ("leader", |peer| {
            peer.campaign();
            peer.say(message(2, 1, 1, pre_voted(true)));
            peer.say(message(2, 1, 1, voted(true)));
        }),
    ];
    let from_leader = append(last, Vec::new(), 0);
    for (what, start) in starts {
        for (payload, leader) in [
            (vote(EntryId::new(9, 9)), 0),
            (pre_voted(false), 0),
            (voted(false), 0),
            (heartbeat(0), 2),
            (from_leader.clone(), 2),
        ] {
            let mut config = config(1);
            config.pre_vote = true;
            let mut peer = Peer::new(config, storage(conf_state(&[1, 2, 3], &[]), &[]));
            start(&mut peer);
            peer.say(message(2, 1, 7, payload.clone()));
            assert_eq!(peer.role(), RoleName::Follower, "{what}, {payload:?}");
            assert_eq!(
                (peer.term(), peer.leader()),
                (7, leader),
                "{what}, {payload:?}"
            );
        }
        // But a trial for a higher term, and its grant, move nobody.
        for payload in [pre_vote(EntryId::new(9, 9)), pre_voted(true)] {
            let mut config = config(1);
            config.pre_vote = true;
            let mut peer = Peer::new(config, storage(conf_state(&[1, 2, 3, 4, 5], &[]), &[]));
            start(&mut peer);
            let before = peer.term();
            peer.say(message(2, 1, before + 6, payload));
            assert_eq!(peer.term(), before, "{what}");
        }
    }
}

/// [3.4] A candidate that hears of a leader of its own term follows it.
#[test]
fn a_candidate_follows_a_leader_of_its_term() {
    for payload in [heartbeat(0), append(EntryId::new(0, 0), Vec::new(), 0)] {
        for pre in [false, true] {
            let mut config = config(1);
            config.pre_vote = pre;
            let mut peer = Peer::new(config, storage(conf_state(&[1, 2, 3], &[]), &[]));
            peer.campaign();
            let term = peer.term().max(1);
            peer.say(message(2, 1, term, payload.clone()));
            assert_eq!((peer.role(), peer.leader()), (RoleName::Follower, 2));
        }
    }
}

/// [3.3] Messages of an older term change nothing.
#[test]
fn an_older_term_is_ignored() {
    let mut peer = Peer::new(config(1), storage(conf_state(&[1, 2, 3], &[]), &[2]));
    let before = (peer.terms(), peer.hard_state());
    for payload in [
        append(EntryId::new(2, 1), vec![entry(1, 2, b"x")], 2),
        vote(EntryId::new(9, 9)),
        voted(true),
        heartbeat(1),
        Payload::TimeoutNow,
    ] {
        assert_eq!(peer.say(message(2, 1, 1, payload)), []);
        assert_eq!((peer.terms(), peer.hard_state()), before);
        assert_eq!((peer.role(), peer.leader()), (RoleName::Follower, 0));
    }
}

/// What claims to be of no term, or from nobody, is refused and does no harm.
#[test]
fn impossible_messages_are_refused() {
    let mut peer = three(1);
    for bad in [
        message(2, 1, 0, heartbeat(0)),
        message(0, 1, 1, heartbeat(0)),
        message(1, 1, 1, heartbeat(0)),
        message(2, 3, 1, heartbeat(0)),
    ] {
        let result = peer.node.step(bad);
        assert!(
            matches!(result, Err(StepError::Malformed { .. })),
            "{result:?}"
        );
    }
    peer.lead(&[2]);
    let twin = peer.node.step(message(2, 1, 1, heartbeat(0)));
    assert!(
        matches!(twin, Err(StepError::Malformed { .. })),
        "two leaders: {twin:?}"
    );
    assert_eq!(peer.role(), RoleName::Leader);
    assert_eq!(peer.node.poisoned(), None);
}

// Timeouts [3.4].

#[test]
fn timeouts_are_spread_over_their_range() {
    let mut seen = [0u32; 2 * ELECTION as usize];
    for seed in 0..1_000 {
        let mut config = config(1);
        config.seed = seed;
        let mut peer = Peer::new(config, storage(conf_state(&[1, 2, 3], &[]), &[]));
        let mut ticks = 0;
        while peer.role() == RoleName::Follower {
            peer.tick(1);
            ticks += 1;
        }
        seen[ticks] += 1;
    }
    let election = ELECTION as usize;
    assert_eq!(seen[..election].iter().sum::<u32>(), 0, "never early");
    for (ticks, count) in seen.iter().enumerate().skip(election) {
        assert!(
            (50..=150).contains(count),
            "{count} of 1000 at {ticks} ticks"
        );
    }
}

/// Of replicas that start alike one is usually alone in timing out first.
#[test]
fn groups_rarely_split_the_vote() {
    let ties = (0..300)
        .filter(|round| {
            let timeouts: Vec<u32> = (0..5)
                .map(|id| {
                    let mut config = config(1);
                    config.seed = round * 5 + id;
                    let mut peer = Peer::new(config, storage(conf_state(&[1, 2, 3], &[]), &[]));
                    let mut ticks = 0;
                    while peer.role() == RoleName::Follower {
                        peer.tick(1);
                        ticks += 1;
                    }
                    ticks
                })
                .collect();
            let first = timeouts.iter().min().expect("five");
            timeouts.iter().filter(|t| *t == first).count() > 1
        })
        .count();
    assert!(ties < 150, "{ties} of 300 groups tie");
}

#[test]
fn the_clock_of_a_learner_does_not_run_away() {
    let mut peer = Peer::new(config(2), storage(conf_state(&[1], &[2]), &[]));
    peer.tick(1_000);
    peer.node.check().expect("the invariants hold");
}

// Elections as a whole.

#[test]
fn one_member_leads_alone() {
    let mut cluster = Cluster::new(1);
    cluster.tick(1, 2 * ELECTION);
    assert_eq!(cluster.leader(), Some(1));
    cluster.propose(1, b"x").unwrap();
    assert_eq!(cluster.peer(1).values(), [Bytes::from_static(b"x")]);
}

#[test]
fn a_majority_elects_and_a_minority_does_not() {
    for pre in [false, true] {
        for (count, dead, elected) in [
            (3, 0, true),
            (3, 1, true),
            (3, 2, false),
            (4, 1, true),
            (4, 2, false),
            (5, 2, true),
            (5, 3, false),
        ] {
            let mut cluster = Cluster::with(count, |config| config.pre_vote = pre);
            for id in count - dead + 1..=count {
                cluster.isolate(id);
            }
            cluster.campaign(1);
            let leader = elected.then_some(1);
            assert_eq!(
                cluster.leader(),
                leader,
                "{dead} of {count} dead, pre {pre}"
            );
        }
    }
}

/// Every member can become leader in turn, and each of them takes the others' entries over.
#[test]
fn leadership_goes_round() {
    for pre in [false, true] {
        let mut cluster = Cluster::with(3, |config| config.pre_vote = pre);
        for round in 0..2 {
            for id in 1..=3 {
                cluster.campaign(id);
                assert_eq!(cluster.leader(), Some(id), "round {round}, pre {pre}");
                cluster.propose(id, b"x").unwrap();
            }
        }
        cluster.tick(3, 1);
        cluster.assert_agreed();
        assert_eq!(cluster.peer(1).values().len(), 6);
    }
}

/// Two candidates, cut off from each other; the loser gives up when it hears of the winner. With
/// trials its failed attempts have not even moved the term.
#[test]
fn duelling_candidates() {
    for pre in [false, true] {
        let mut cluster = Cluster::with(3, |config| config.pre_vote = pre);
        cluster.cut(1, 3);
        cluster.campaign(1);
        cluster.campaign(3);
        assert_eq!(cluster.roles()[0], RoleName::Leader, "1 has the vote of 2");
        assert_ne!(cluster.roles()[2], RoleName::Leader);
        cluster.heal();
        cluster.campaign(3);
        assert_ne!(cluster.leader(), Some(3), "its log is behind");
        if pre {
            assert_eq!(cluster.terms()[..2], [1, 1], "nobody was disturbed");
        }
        cluster.campaign(1);
        cluster.tick(1, 1);
        assert_eq!(cluster.leader(), Some(1));
        cluster.assert_agreed();
    }
}

/// [3.6.2, figure 3.7] A leader may overwrite entries of a higher term than its log's, if those were
/// never committed.
#[test]
fn a_new_leader_overwrites_newer_entries_that_were_never_committed() {
    for pre in [false, true] {
        let state = || conf_state(&[1, 2, 3, 4, 5], &[]);
        let with = |id, terms: &[u64], term, voted: u64| {
            let mut config = config(id);
            config.pre_vote = pre;
            let mut storage = storage(state(), terms);
            let mut hard = storage.hard_state();
            (hard.term.0, hard.vote) = (term, ReplicaId(voted));
            storage.set_hard_state(hard);
            Peer::new(config, storage)
        };
        // 1 led term 1; 3 won term 2 by the votes of 4 and 5, appended, and reached nobody.
        let mut cluster = Cluster::of([
            with(1, &[1], 1, 1),
            with(2, &[1], 1, 1),
            with(3, &[2], 2, 3),
            with(4, &[], 2, 3),
            with(5, &[], 2, 3),
        ]);
        // Term 2 is taken: the first campaign tells 1 of it, the second wins term 3.
        cluster.campaign(1);
        assert_eq!(cluster.leader(), None);
        assert_eq!(cluster.peer(1).term(), 2);
        cluster.campaign(1);
        assert_eq!(cluster.leader(), Some(1));
        cluster.tick(1, 1);
        cluster.assert_agreed();
        assert_eq!(cluster.peer(3).terms(), [1, 3]);
    }
}

/// Acknowledgements of an earlier leadership of the same replica do not count in the new one.
#[test]
fn old_acknowledgements_do_not_count() {
    let mut peer = three(1);
    peer.lead(&[2]);
    peer.propose(b"x").unwrap();
    peer.settle();
    let late = message(2, 1, 1, accepted(2));
    peer.say(message(3, 1, 2, heartbeat(0)));
    peer.lead(&[2]);
    assert_eq!(peer.term(), 3);
    peer.say(late);
    assert_eq!(peer.committed(), 0);
    peer.say(message(2, 1, 3, accepted(3)));
    assert_eq!(peer.committed(), 3);
}

#[test]
fn a_candidate_drops_proposals_and_a_follower_forwards_them() {
    let mut peer = three(1);
    peer.campaign();
    assert!(peer.propose(b"x").is_err());
    peer.say(message(2, 1, 1, heartbeat(0)));
    assert_eq!(peer.propose(b"x"), Ok(None));
    let sent = peer.settle();
    assert_eq!(kinds(&sent), [MessageKind::Propose]);
    assert_eq!(sent[0].to, ReplicaId(2));
    assert_eq!(peer.node.last_index(), Index(0));
}
