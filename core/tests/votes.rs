//! Votes: who may campaign, who gets a vote, and when a vote counts.
//!
//! Sections in brackets are of the thesis (Ongaro 2014). The situations that etcd's interaction files
//! do not notice come first.

mod common;

use bytes::Bytes;
use common::{
    ELECTION, Peer, append, conf_state, config, entry, heartbeat, ids, message, pre_vote,
    pre_voted, storage, vote, voted,
};
use polyraft_core::{
    ConfChange, ConfChangeKind, ConfState, Config, Durable, Entry, EntryId, EntryKind, Event,
    Message, Payload, RaftNode, ReplicaId, RoleName, Snapshot, SnapshotMeta, StepError,
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

fn has(peer: &Peer, wanted: impl Fn(&Event) -> bool) -> bool {
    peer.events.iter().any(wanted)
}

// Who may campaign.

fn change_entry(kind: EntryKind, index: u64) -> Entry {
    let one = ConfChange {
        kind: ConfChangeKind::AddVoter,
        replica: ReplicaId(4),
        context: Bytes::new(),
    };
    let data = match kind {
        EntryKind::ConfChange => one.encode(),
        _ => one.into_v2().encode(),
    };
    Entry {
        kind,
        data,
        ..entry(1, index, b"")
    }
}

#[test]
fn nobody_campaigns_with_a_committed_change_unapplied() {
    let timeout_now = message(2, 1, 1, Payload::TimeoutNow);
    type Attempt = (&'static str, Box<dyn Fn(&mut Peer) -> Vec<Message>>);
    let attempts: [Attempt; 3] = [
        ("by wish", Box::new(Peer::campaign)),
        ("by timeout", Box::new(|peer| peer.tick(2 * ELECTION))),
        (
            "by transfer",
            Box::new(move |peer| peer.say(timeout_now.clone())),
        ),
    ];
    for kind in [EntryKind::ConfChange, EntryKind::ConfChangeV2] {
        for (how, attempt) in &attempts {
            let mut peer = three(1);
            peer.holds_applying = true;
            let entries = vec![entry(1, 1, b"a"), change_entry(kind, 2), entry(1, 3, b"b")];
            peer.say(message(2, 1, 1, append(EntryId::new(0, 0), entries, 3)));
            assert_eq!(attempt(&mut peer), [], "{how}, {kind:?}");
            assert_eq!((peer.role(), peer.term()), (RoleName::Follower, 1));
            assert!(has(&peer, |e| matches!(
                e,
                Event::CampaignBlockedByConfChange { .. }
            )));

            peer.holds_applying = false;
            peer.apply_held();
            attempt(&mut peer);
            assert_eq!(peer.role(), RoleName::Candidate, "{how}, {kind:?}");
            assert_eq!(peer.conf_state().voters, ids(&[1, 2, 3, 4]));
        }
    }
}

#[test]
fn a_change_that_is_not_committed_does_not_block_a_campaign() {
    let mut peer = three(1);
    let entries = vec![change_entry(EntryKind::ConfChangeV2, 1)];
    peer.say(message(2, 1, 1, append(EntryId::new(0, 0), entries, 0)));
    peer.campaign();
    assert_eq!(peer.role(), RoleName::Candidate);
}

#[test]
fn nobody_campaigns_with_a_snapshot_not_yet_installed() {
    let mut node = RaftNode::new(config(1), storage(conf_state(&[1, 2, 3], &[]), &[])).unwrap();
    let snapshot = Snapshot {
        meta: SnapshotMeta {
            last: EntryId::new(1, 11),
            conf_state: conf_state(&[1, 2, 3], &[]),
        },
        data: Bytes::new(),
    };
    node.step(message(2, 1, 1, Payload::Snapshot(snapshot.into())))
        .unwrap();
    node.campaign().unwrap();
    for _ in 0..2 * ELECTION {
        node.tick().unwrap();
    }
    node.step(message(2, 1, 1, Payload::TimeoutNow)).unwrap();
    assert_eq!(node.role(), RoleName::Follower);
    let events = node.take_events();
    let refused = events.iter().filter(|e| **e == Event::Unpromotable).count();
    assert_eq!(
        refused, 2,
        "by wish and by transfer, for this reason: {events:?}"
    );

    let ready = node.ready().unwrap();
    let append = ready.append.expect("the snapshot");
    node.storage_mut()
        .apply_snapshot(append.snapshot().unwrap().clone())
        .unwrap();
    node.campaign().unwrap();
    assert_eq!(
        node.role(),
        RoleName::Follower,
        "handed out is not installed"
    );
    let (_, token) = append.persisted(&Durable::attest());
    node.on_persisted(token).unwrap();
    node.campaign().unwrap();
    assert_eq!(node.role(), RoleName::Candidate);
}

#[test]
fn learners_and_strangers_do_not_campaign() {
    for (id, state) in [
        (3, conf_state(&[1, 2], &[3])),
        (9, conf_state(&[1, 2], &[])),
    ] {
        let mut peer = Peer::new(config(id), storage(state, &[]));
        peer.campaign();
        peer.tick(5 * ELECTION);
        peer.say(message(1, id, 1, Payload::TimeoutNow));
        assert_eq!((peer.role(), peer.term()), (RoleName::Follower, 1));
        assert!(has(&peer, |e| *e == Event::Unpromotable));
    }
}

#[test]
fn a_learner_votes() {
    let mut peer = Peer::new(config(2), storage(conf_state(&[1], &[2]), &[]));
    let request = message(1, 2, 2, vote(EntryId::new(1, 5)));
    assert_eq!(verdict(&peer.say(request)), (true, 2));
    assert_eq!(peer.hard_state().vote, ReplicaId(1));
}

// Who gets a vote.

/// [3.6.1] The log that ends with the higher term, then the longer one, is more up to date.
#[test]
fn a_vote_needs_a_log_that_is_up_to_date() {
    let cases: [(&[u64], (u64, u64), bool); 9] = [
        (&[1], (1, 1), true),
        (&[1], (1, 2), true),
        (&[1, 1], (1, 1), false),
        (&[1], (2, 1), true),
        (&[1], (2, 2), true),
        (&[1, 1], (2, 1), true),
        (&[2], (1, 1), false),
        (&[2], (1, 2), false),
        (&[1, 2], (1, 1), false),
    ];
    for (terms, (term, index), granted) in cases {
        for pre in [false, true] {
            let mut peer = Peer::new(config(1), storage(conf_state(&[1, 2], &[]), terms));
            let last = EntryId::new(term, index);
            let payload = if pre { pre_vote(last) } else { vote(last) };
            let answer = verdict(&peer.say(message(2, 1, 3, payload)));
            assert_eq!(answer.0, granted, "{terms:?} asked for {last:?}, pre {pre}");
        }
    }
}

/// [3.4] One vote a term; the same request twice gets the same answer.
#[test]
fn one_vote_a_term() {
    let mut peer = three(1);
    let last = EntryId::new(0, 0);
    assert_eq!(verdict(&peer.say(message(2, 1, 1, vote(last)))), (true, 1));
    assert_eq!(verdict(&peer.say(message(3, 1, 1, vote(last)))), (false, 1));
    assert_eq!(verdict(&peer.say(message(2, 1, 1, vote(last)))), (true, 1));
    assert_eq!(verdict(&peer.say(message(3, 1, 2, vote(last)))), (true, 2));
}

#[test]
fn a_vote_survives_a_restart() {
    let mut peer = three(1);
    peer.say(message(2, 1, 1, vote(EntryId::new(0, 0))));
    peer.restart();
    let other = message(3, 1, 1, vote(EntryId::new(0, 0)));
    assert_eq!(verdict(&peer.say(other)), (false, 1));
}

/// Noticed by no test of etcd: who knows a leader of the term and has not voted grants nothing.
#[test]
fn no_vote_in_a_term_whose_leader_is_known() {
    let mut peer = three(1);
    peer.say(message(2, 1, 1, heartbeat(0)));
    assert_eq!(peer.leader(), 2);
    assert_eq!(peer.hard_state().vote, ReplicaId::NONE);
    let last = EntryId::new(9, 9);
    assert_eq!(verdict(&peer.say(message(3, 1, 1, vote(last)))), (false, 1));
    assert_eq!(
        verdict(&peer.say(message(3, 1, 1, pre_vote(last)))),
        (false, 1)
    );
    assert_eq!(peer.hard_state().vote, ReplicaId::NONE);
    // A trial for a higher term asks about that term.
    assert_eq!(
        verdict(&peer.say(message(3, 1, 2, pre_vote(last)))),
        (true, 2)
    );
    assert_eq!((peer.term(), peer.leader()), (1, 2));
}

/// Noticed by no test of etcd: granting a vote gives the candidate time, refusing one or granting a
/// trial does not.
#[test]
fn only_a_granted_vote_resets_the_timer() {
    let last = EntryId::new(1, 1);
    let cases = [
        ("granted", vote(last), 1, false),
        ("refused", vote(EntryId::new(0, 0)), 1, true),
        ("granted trial", pre_vote(last), 2, true),
    ];
    for (what, payload, term, campaigns) in cases {
        let mut peer = Peer::new(config(1), storage(conf_state(&[1, 2, 3], &[]), &[1]));
        peer.node.set_randomized_election_timeout(ELECTION);
        peer.tick(ELECTION - 1);
        peer.say(message(2, 1, term, payload));
        peer.tick(1);
        let role = if campaigns {
            RoleName::Candidate
        } else {
            RoleName::Follower
        };
        assert_eq!(peer.role(), role, "{what}");
    }
}

// When a vote counts.

#[test]
fn the_own_vote_counts_when_it_is_durable() {
    let mut node = RaftNode::new(config(1), storage(conf_state(&[1], &[]), &[])).unwrap();
    node.campaign().unwrap();
    let ready = node.ready().unwrap();
    let append = ready.append.expect("term and vote");
    assert!(append.must_sync());
    assert_eq!(node.role(), RoleName::Candidate, "not before the sync");
    let (sent, token) = append.persisted(&Durable::attest());
    assert!(sent.is_empty(), "nothing for others");
    node.on_persisted(token).unwrap();
    assert_eq!(node.role(), RoleName::Leader);
}

/// A vote that becomes durable after the election is over, lost or moved on, has no weight.
#[test]
fn a_late_own_vote_has_no_weight() {
    for pre in [false, true] {
        let mut config = config(1);
        config.pre_vote = pre;
        let mut node = RaftNode::new(config, storage(conf_state(&[1, 2, 3], &[]), &[])).unwrap();
        node.campaign().unwrap();
        let append = node.ready().unwrap().append.expect("the own vote");
        node.step(message(2, 1, 1, heartbeat(0))).unwrap();
        assert_eq!(node.role(), RoleName::Follower);
        let (_, token) = append.persisted(&Durable::attest());
        node.on_persisted(token).unwrap();
        assert_eq!(
            (node.role(), node.leader()),
            (RoleName::Follower, ReplicaId(2))
        );
    }
}

/// The own trial vote, durable only when the trial is won by others, is not a vote.
#[test]
fn a_trial_vote_is_not_a_vote() {
    let mut config = config(1);
    config.pre_vote = true;
    let mut node = RaftNode::new(config, storage(conf_state(&[1, 2, 3], &[]), &[])).unwrap();
    node.campaign().unwrap();
    let trial = node.ready().unwrap().append.expect("the own trial vote");
    for from in [2, 3] {
        node.step(message(from, 1, 1, pre_voted(true))).unwrap();
    }
    assert_eq!(node.role(), RoleName::Candidate);
    let (_, token) = trial.persisted(&Durable::attest());
    node.on_persisted(token).unwrap();
    node.step(message(2, 1, 1, pre_voted(true))).unwrap();
    assert_eq!(node.role(), RoleName::Candidate, "trial votes elect nobody");
    node.step(message(2, 1, 1, voted(true))).unwrap();
    assert_eq!(
        node.role(),
        RoleName::Candidate,
        "the own vote is not durable"
    );
    let real = node.ready().unwrap().append.expect("term and vote");
    let (_, token) = real.persisted(&Durable::attest());
    node.on_persisted(token).unwrap();
    assert_eq!(node.role(), RoleName::Leader);
}

/// A vote of somebody who is no voter, or a second one of the same voter, decides nothing.
#[test]
fn only_voters_elect_and_each_once() {
    let state = conf_state(&[1, 2, 3, 4, 5], &[6, 7]);
    let mut peer = Peer::new(config(1), storage(state, &[]));
    peer.campaign();
    for from in [6, 7, 2, 2, 2] {
        peer.say(message(from, 1, 1, voted(true)));
        assert_eq!(peer.role(), RoleName::Candidate, "after {from}");
    }
    let stranger = peer.node.step(message(8, 1, 1, voted(true)));
    assert_eq!(stranger, Err(StepError::PeerNotFound));
    peer.say(message(3, 1, 1, voted(true)));
    assert_eq!(peer.role(), RoleName::Leader);
}

/// The first answer of a voter counts.
#[test]
fn a_vote_is_not_taken_back() {
    let mut peer = three(1);
    peer.campaign();
    peer.say(message(2, 1, 1, voted(false)));
    peer.say(message(2, 1, 1, voted(true)));
    assert_eq!(peer.role(), RoleName::Candidate);
    peer.say(message(3, 1, 1, voted(false)));
    assert_eq!(peer.role(), RoleName::Follower, "a majority refused");
    assert_eq!(peer.term(), 1);
}

/// Noticed by no test of etcd above the quorum functions: a joint election needs both halves.
#[test]
fn a_joint_election_needs_both_halves() {
    let joint = ConfState {
        voters: ids(&[1, 2, 3]),
        voters_outgoing: ids(&[1, 4, 5]),
        ..ConfState::default()
    };
    for pre in [false, true] {
        for (halves, lacking) in [([2, 3], 4), ([4, 5], 2)] {
            let mut config = config(1);
            config.pre_vote = pre;
            let mut peer = Peer::new(config, storage(joint.clone(), &[]));
            peer.campaign();
            let (trial, answer) = if pre {
                (RoleName::PreCandidate, pre_voted(true))
            } else {
                (RoleName::Candidate, voted(true))
            };
            for from in halves {
                peer.say(message(from, 1, 1, answer.clone()));
            }
            assert_eq!(peer.role(), trial, "with all of one half, pre {pre}");
            peer.say(message(lacking, 1, 1, answer));
            let won = if pre {
                RoleName::Candidate
            } else {
                RoleName::Leader
            };
            assert_eq!(peer.role(), won, "with a majority of both, pre {pre}");
        }
    }
}

/// One half that refuses is enough to lose.
#[test]
fn a_joint_election_is_lost_in_either_half() {
    let joint = ConfState {
        voters: ids(&[1, 2, 3]),
        voters_outgoing: ids(&[1, 4, 5]),
        ..ConfState::default()
    };
    let mut peer = Peer::new(config(1), storage(joint, &[]));
    peer.campaign();
    for (from, granted) in [(2, true), (3, true), (4, false)] {
        peer.say(message(from, 1, 1, voted(granted)));
        assert_eq!(peer.role(), RoleName::Candidate);
    }
    peer.say(message(5, 1, 1, voted(false)));
    assert_eq!(peer.role(), RoleName::Follower);
}

/// Without its own vote on the disk a leader that crashes could lead the same term a second time, with
/// other entries under the same term and index.
#[test]
fn a_majority_of_others_waits_for_the_own_vote() {
    let mut peer = three(1);
    peer.node.campaign().expect("a campaign");
    let write = peer
        .node
        .ready()
        .expect("a ready")
        .append
        .expect("the vote");
    for from in [2, 3] {
        let granted = message(from, 1, 1, voted(true));
        peer.node.step(granted).expect("a vote");
    }
    assert_eq!(peer.role(), RoleName::Candidate);
    let state = write.hard_state().expect("term and vote");
    peer.node.storage_mut().set_hard_state(state);
    let (_, token) = write.persisted(&polyraft_core::Durable::attest());
    peer.node.on_persisted(token).expect("a receipt");
    assert_eq!(peer.role(), RoleName::Leader);
}

// What a refusal tells.

#[test]
fn who_refuses_a_vote_says_what_is_committed() {
    let talkative = |id| {
        Peer::new(
            Config {
                commit_by_vote: true,
                ..config(id)
            },
            storage(conf_state(&[1, 2, 3], &[]), &[]),
        )
    };
    let (mut voter, mut candidate) = (talkative(2), talkative(3));
    let entries = |last: u64| (1..=last).map(|index| entry(1, index, b"x")).collect();
    voter.say(message(1, 2, 1, append(EntryId::new(0, 0), entries(4), 3)));
    candidate.say(message(1, 3, 1, append(EntryId::new(0, 0), entries(2), 0)));
    assert_eq!(candidate.committed(), 0);
    candidate.tick(2 * ELECTION);
    voter.tick(2 * ELECTION);
    let answers = voter.say(message(3, 2, 2, vote(EntryId::new(1, 2))));
    let refused = Payload::VoteResponse {
        pre: false,
        reject: true,
        committed: EntryId::new(1, 2),
    };
    assert_eq!(
        answers,
        [message(2, 3, 2, refused)],
        "no further than it has"
    );
    candidate.say(answers[0].clone());
    assert_eq!(candidate.committed(), 2);
    assert_eq!(candidate.applied.len(), 2);
    // Of an entry that it does not have, or has otherwise, it learns nothing.
    for (term, index) in [(1, 9), (2, 2), (3, 1)] {
        let refused = Payload::VoteResponse {
            pre: true,
            reject: true,
            committed: EntryId::new(term, index),
        };
        candidate.say(message(2, 3, 2, refused));
        assert_eq!(candidate.committed(), 2);
    }
}

#[test]
fn a_campaign_ends_when_a_refusal_commits_a_change() {
    for silent in [true, false] {
        let mut peer = three(1);
        let entries = vec![entry(1, 1, b"a"), change_entry(EntryKind::ConfChangeV2, 2)];
        peer.say(message(2, 1, 1, append(EntryId::new(0, 0), entries, 0)));
        peer.campaign();
        assert_eq!(peer.role(), RoleName::Candidate);
        let committed = if silent {
            EntryId::default()
        } else {
            EntryId::new(1, 2)
        };
        let refused = Payload::VoteResponse {
            pre: false,
            reject: true,
            committed,
        };
        // Its term is an old one: what is committed is so for ever.
        peer.say(message(2, 1, 1, refused));
        let expected = if silent {
            (RoleName::Candidate, 0)
        } else {
            (RoleName::Follower, 2)
        };
        assert_eq!((peer.role(), peer.committed()), expected);
        let voters = peer.conf_state().voters.len();
        assert_eq!(voters, if silent { 3 } else { 4 });
    }
}
