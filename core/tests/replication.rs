//! Replication: what a follower takes and commits, what a leader counts, answers that come late, and
//! peers whose entries are truncated.

mod common;

use bytes::Bytes;
use common::{
    Cluster, ELECTION, Peer, accepted, append, bootstrapped, conf_state, config, entry, heartbeat,
    message, storage,
};
use polyraft_core::{
    Durable, Entry, EntryId, Index, Message, MessageKind, Payload, ProgressState, ProgressStatus,
    ProposeError, RaftNode, RejectHint, ReplicaId, RoleName, StepError,
};

fn three(terms: &[u64]) -> Peer {
    Peer::new(config(1), storage(conf_state(&[1, 2, 3], &[]), terms))
}

fn progress(peer: &Peer, id: u64) -> ProgressStatus {
    let all = peer.node.status().progress;
    *all.iter()
        .find(|p| p.id == ReplicaId(id))
        .expect("a member")
}

fn rejected(index: u64, hint: (u64, u64)) -> Payload {
    Payload::AppendResponse {
        index: Index(index),
        reject: Some(RejectHint {
            term: polyraft_core::Term(hint.0),
            index: Index(hint.1),
        }),
    }
}

fn kinds(messages: &[Message], to: u64) -> Vec<MessageKind> {
    let to = messages.iter().filter(|m| m.to == ReplicaId(to));
    to.map(|m| m.payload.kind()).collect()
}

// A follower.

/// What lies behind the last new entry may not match the leader's log, whatever it has committed.
#[test]
fn a_follower_commits_nothing_behind_the_last_new_entry() {
    let mut peer = three(&[1, 1, 1]);
    peer.say(message(2, 1, 2, append(EntryId::new(1, 1), Vec::new(), 3)));
    assert_eq!(peer.committed(), 1);
    let new = vec![entry(2, 2, b"x")];
    peer.say(message(2, 1, 2, append(EntryId::new(1, 1), new, 3)));
    assert_eq!((peer.committed(), peer.terms()), (2, vec![1, 2]));
}

#[test]
fn a_follower_takes_what_connects_and_cuts_what_contradicts() {
    type Case<'a> = (&'a [u64], (u64, u64), &'a [u64], Option<u64>, &'a [u64]);
    let cases: [Case<'_>; 7] = [
        (&[1, 2], (0, 0), &[], Some(0), &[1, 2]),
        (&[1, 2], (2, 2), &[3], Some(3), &[1, 2, 3]),
        (&[1, 2], (1, 1), &[3], Some(2), &[1, 3]),
        (&[1, 2, 2], (1, 1), &[2], Some(2), &[1, 2, 2]),
        (&[1, 2, 2], (0, 0), &[3, 3], Some(2), &[3, 3]),
        (&[1, 2], (3, 3), &[3], None, &[1, 2]),
        (&[1, 2], (1, 2), &[3], None, &[1, 2]),
    ];
    for (own, prev, new, ack, after) in cases {
        let mut peer = three(own);
        let entries = new.iter().zip(prev.1 + 1..);
        let entries = entries
            .map(|(term, index)| entry(*term, index, b""))
            .collect();
        let prev = EntryId::new(prev.0, prev.1);
        let answer = peer.say(message(2, 1, 3, append(prev, entries, 0)));
        let acked = match &answer[0].payload {
            Payload::AppendResponse {
                index,
                reject: None,
            } => Some(index.0),
            _ => None,
        };
        assert_eq!(acked, ack, "{own:?} got {prev:?} {new:?}");
        assert_eq!(peer.terms(), after, "{own:?} got {prev:?} {new:?}");
    }
}

/// Entries that make no sense are refused; so is a contradiction of what is committed.
#[test]
fn nonsense_from_a_leader_is_refused() {
    let mut peer = three(&[1, 1]);
    for entries in [
        vec![entry(1, 4, b"a gap")],
        vec![entry(1, 3, b""), entry(1, 3, b"twice")],
        vec![entry(9, 3, b"of a later term")],
        vec![entry(1, 3, b""), entry(0, 4, b"of an earlier term")],
    ] {
        let bad = message(2, 1, 2, append(EntryId::new(1, 2), entries, 0));
        let result = peer.node.step(bad);
        assert!(
            matches!(result, Err(StepError::Malformed { .. })),
            "{result:?}"
        );
    }
    assert_eq!((peer.terms(), peer.node.poisoned()), (vec![1, 1], None));
    peer.say(message(2, 1, 2, heartbeat(2)));
    // A heartbeat that commits what is not here changes nothing.
    peer.say(message(2, 1, 2, heartbeat(9)));
    assert_eq!(peer.committed(), 2);
    assert_eq!(peer.node.poisoned(), None);
}

/// With writes in flight only what is durable here is handed out to be applied.
#[test]
fn only_durable_entries_are_applied() {
    let mut node = RaftNode::new(config(1), storage(conf_state(&[1, 2, 3], &[]), &[])).unwrap();
    let entries = vec![entry(1, 1, b"a"), entry(1, 2, b"b")];
    node.step(message(2, 1, 1, append(EntryId::new(0, 0), entries, 2)))
        .unwrap();
    let ready = node.ready().unwrap();
    assert_eq!(ready.committed, []);
    let mut write = ready.append.expect("the entries");
    node.storage_mut().append(&write.take_entries()).unwrap();
    let (_, token) = write.persisted(&Durable::attest());
    node.on_persisted(token).unwrap();
    assert_eq!(node.ready().unwrap().committed.len(), 2);
}

/// Proposals that go into one write count once it is durable, all at once: the followers hear of
/// one new commit index, not of one for each.
#[test]
fn proposals_of_one_write_commit_together() {
    let mut peer = three(&[]);
    peer.lead(&[2]);
    peer.say(message(2, 1, 1, accepted(1)));
    for data in [b"a", b"b", b"c"] {
        peer.propose(data).unwrap();
    }
    let mut ready = peer.node.ready().unwrap();
    let mut write = ready.append.take().expect("three entries");
    peer.node.step(message(2, 1, 1, accepted(4))).unwrap();
    assert_eq!(peer.committed(), 1, "no quorum without the own write");
    let storage = peer.node.storage_mut();
    storage.append(&write.take_entries()).unwrap();
    let (sent, token) = write.persisted(&Durable::attest());
    assert_eq!(sent, []);
    peer.node.on_persisted(token).unwrap();
    assert_eq!(peer.committed(), 4);
    let after = peer.settle();
    assert_eq!(kinds(&after, 2), [MessageKind::Append]);
}

/// The limit on committed entries that are out counts over hand-outs, until they are applied.
#[test]
fn committed_entries_wait_for_those_that_are_out() {
    let mut config = config(1);
    config.max_committed_bytes = 2 * Entry::OVERHEAD;
    let mut node = RaftNode::new(config, storage(conf_state(&[1, 2], &[]), &[1; 5])).unwrap();
    node.step(message(2, 1, 1, heartbeat(5))).unwrap();
    let mut seen = Vec::new();
    for round in [2, 2, 1] {
        let out = node.ready().unwrap().committed;
        assert_eq!(out.len(), round);
        assert_eq!(
            node.ready().unwrap().committed,
            [],
            "not before those are applied"
        );
        let bytes = out.iter().map(Entry::size).sum();
        node.on_applied(out[out.len() - 1].index, bytes).unwrap();
        seen.extend(out.into_iter().map(|e| e.index.0));
    }
    assert_eq!(seen, [1, 2, 3, 4, 5], "each once, in order");
}

// A leader.

/// With lazy commit the news of a commit travels with the next append or heartbeat; a change of membership is
/// news that cannot wait.
#[test]
fn a_lazy_commit_waits_for_company() {
    let commits = |messages: &[Message]| -> Vec<(u64, u64)> {
        let commit = |message: &Message| match message.payload {
            Payload::Append { commit, .. } | Payload::Heartbeat { commit, .. } => {
                Some((message.to.0, commit.0))
            }
            _ => None,
        };
        messages.iter().filter_map(commit).collect()
    };
    let mut config = config(1);
    config.lazy_commit = true;
    let mut peer = Peer::new(config, storage(conf_state(&[1, 2, 3], &[]), &[]));
    peer.lead(&[2]);
    for from in [2, 3] {
        peer.say(message(from, 1, 1, accepted(1)));
    }
    assert!(peer.propose(b"x").is_ok());
    assert_eq!(commits(&peer.settle()), [(2, 1), (3, 1)]);
    for from in [2, 3] {
        assert_eq!(peer.say(message(from, 1, 1, accepted(2))), []);
    }
    assert_eq!(peer.committed(), 2);
    assert!(peer.propose(b"y").is_ok());
    assert_eq!(commits(&peer.settle()), [(2, 2), (3, 2)]);
    assert_eq!(peer.say(message(2, 1, 1, accepted(3))), []);
    assert_eq!(commits(&peer.tick(1)), [(2, 3), (3, 2)]);
    let changes = vec![(polyraft_core::ConfChangeKind::AddLearner, ReplicaId(4))];
    let change = polyraft_core::ConfChangeV2 {
        changes,
        ..polyraft_core::ConfChangeV2::default()
    };
    peer.node.propose_conf_change(&change).unwrap();
    assert_eq!(commits(&peer.settle()), [(2, 3), (3, 3)]);
    let told = commits(&peer.say(message(2, 1, 1, accepted(4))));
    assert!(told.contains(&(2, 4)) && told.contains(&(3, 4)), "{told:?}");
}

/// [thesis 3.6.2] Entries of earlier terms are committed only with one of the own term.
#[test]
fn entries_of_earlier_terms_are_not_committed_by_counting() {
    let mut peer = three(&[1, 2]);
    peer.lead(&[2]);
    for from in [2, 3] {
        peer.say(message(from, 1, 3, accepted(2)));
    }
    assert_eq!(peer.committed(), 0);
    peer.say(message(2, 1, 3, accepted(3)));
    assert_eq!(peer.committed(), 3);
}

#[test]
fn late_answers_do_not_move_a_follower_back() {
    let mut peer = three(&[]);
    peer.lead(&[2]);
    for _ in 0..4 {
        peer.propose(b"x").unwrap();
    }
    peer.settle();
    peer.say(message(2, 1, 1, accepted(4)));
    let before = progress(&peer, 2);
    assert_eq!(
        (before.matched, before.state),
        (Index(4), ProgressState::Replicate)
    );
    // Answers to what is long settled.
    peer.say(message(2, 1, 1, accepted(1)));
    peer.say(message(2, 1, 1, rejected(3, (0, 0))));
    peer.say(message(2, 1, 1, rejected(4, (1, 1))));
    let after = progress(&peer, 2);
    assert_eq!((after.matched, after.state), (before.matched, before.state));
    assert!(after.next > after.matched);

    // One that is not settled: look again, but never below what is known to match.
    peer.say(message(2, 1, 1, rejected(5, (0, 0))));
    let probing = progress(&peer, 2);
    assert_eq!(
        (probing.state, probing.next),
        (ProgressState::Probe, Index(5))
    );
    peer.say(message(2, 1, 1, rejected(4, (0, 0))));
    assert_eq!(
        progress(&peer, 2).next,
        Index(5),
        "a refusal of what it had accepted"
    );
    // The same refusal again is an answer to an older probe.
    peer.say(message(2, 1, 1, rejected(5, (0, 0))));
    assert_eq!(progress(&peer, 2).next, Index(5));
}

#[test]
fn only_the_answer_to_the_last_probe_counts() {
    let mut peer = three(&[1; 9]);
    peer.lead(&[2]);
    assert_eq!(progress(&peer, 3).next, Index(10));
    for stale in [3, 7, 8, 12] {
        peer.say(message(3, 1, 2, rejected(stale, (1, 2))));
        assert_eq!(progress(&peer, 3).next, Index(10), "refused {stale}");
    }
    peer.say(message(3, 1, 2, rejected(9, (1, 2))));
    assert_eq!(progress(&peer, 3).next, Index(3));
}

#[test]
fn acknowledging_more_than_there_is_is_refused() {
    let mut peer = three(&[]);
    peer.lead(&[2]);
    let result = peer.node.step(message(2, 1, 1, accepted(99)));
    assert!(
        matches!(result, Err(StepError::Malformed { .. })),
        "{result:?}"
    );
    assert_eq!((peer.committed(), peer.role()), (0, RoleName::Leader));
}

#[test]
fn proposals_wait_while_leadership_moves() {
    let mut peer = three(&[]);
    peer.lead(&[2]);
    peer.node.transfer_leader(ReplicaId(3)).unwrap();
    assert_eq!(peer.propose(b"x"), Err(ProposeError::Dropped));
    assert_eq!(peer.node.last_index(), Index(1));
    peer.tick(ELECTION);
    assert!(
        peer.propose(b"x").is_ok(),
        "after an election timeout it is over"
    );
}

// Truncated logs.

#[test]
fn who_needs_what_is_truncated_gets_a_snapshot_if_it_is_alive() {
    let mut peer = Peer::new(config(1), bootstrapped(conf_state(&[1, 2, 3], &[])));
    peer.lead(&[2]);
    peer.say(message(2, 1, peer.term(), accepted(11)));
    peer.truncate();
    // Nothing was heard of 3: it costs nothing but heartbeats.
    let sent = peer.tick(3);
    assert!(
        kinds(&sent, 3).iter().all(|k| *k == MessageKind::Heartbeat),
        "{sent:?}"
    );
    peer.propose(b"x").unwrap();
    peer.settle();
    let term = peer.term();
    let sent = peer.say(message(3, 1, term, rejected(10, (0, 0))));
    assert_eq!(kinds(&sent, 3), [MessageKind::Snapshot]);
    assert_eq!(progress(&peer, 3).state, ProgressState::Snapshot(Index(11)));
    let sent = peer.say(message(3, 1, term, accepted(11)));
    assert_eq!(
        kinds(&sent, 3),
        [MessageKind::Append],
        "from there on by the log"
    );
    assert_eq!(progress(&peer, 3).state, ProgressState::Replicate);
}

#[test]
fn no_snapshot_goes_to_the_dead() {
    let mut config = config(1);
    config.check_quorum = true;
    let mut peer = Peer::new(config, bootstrapped(conf_state(&[1, 2, 3], &[])));
    peer.lead(&[2]);
    let term = peer.term();
    peer.say(message(3, 1, term, accepted(11)));
    // 3 falls silent, and does not get what follows.
    for round in 0..2 * ELECTION {
        peer.tick(1);
        let beat = Payload::HeartbeatResponse { read: 0 };
        peer.say(message(2, 1, term, beat));
        if round == 0 {
            peer.propose(b"x").unwrap();
            peer.settle();
            peer.say(message(2, 1, term, accepted(12)));
        }
    }
    assert!(!progress(&peer, 3).recently_active);
    peer.propose(b"y").unwrap();
    peer.settle();
    peer.say(message(2, 1, term, accepted(13)));
    peer.truncate();
    peer.node.report_unreachable(ReplicaId(3));
    peer.propose(b"z").unwrap();
    let sent = peer.settle();
    assert_eq!(kinds(&sent, 3), [], "it needs a snapshot, and is not there");
    let alive = message(3, 1, term, Payload::HeartbeatResponse { read: 0 });
    assert_eq!(kinds(&peer.say(alive), 3), [MessageKind::Snapshot]);
}

/// The term of a truncated index is unknown, not 0: nothing can be made to match there.
#[test]
fn nothing_matches_in_the_truncated_part() {
    let mut cluster = Cluster::new(3);
    cluster.campaign(1);
    for _ in 0..3 {
        cluster.propose(1, b"x").unwrap();
    }
    cluster.tick(1, 1);
    let peer = cluster.peer(2);
    peer.truncate();
    let before = (peer.committed(), peer.node.last_index());
    let stale = append(EntryId::new(0, 2), vec![entry(1, 3, b"other")], 3);
    let answer = peer.say(message(1, 2, 1, stale));
    assert_eq!(
        answer,
        [message(2, 1, 1, accepted(4))],
        "what is committed is settled"
    );
    assert_eq!((peer.committed(), peer.node.last_index()), before);
}

#[test]
fn a_member_that_was_away_catches_up_by_snapshot_and_log() {
    let mut cluster = Cluster::of(
        (1..=3).map(|id| Peer::new(config(id), bootstrapped(conf_state(&[1, 2, 3], &[])))),
    );
    cluster.campaign(1);
    cluster.isolate(3);
    cluster.propose(1, b"a").unwrap();
    cluster.peer(1).truncate();
    cluster.propose(1, b"b").unwrap();
    cluster.heal();
    cluster.tick(1, 2);
    cluster.propose(1, b"c").unwrap();
    cluster.tick(1, 1);
    let away = cluster.peer(3).values();
    assert!(away.ends_with(&[Bytes::from_static(b"c")]), "{away:?}");
    let last = cluster.peer(1).node.last_index();
    assert_eq!(cluster.peer(3).node.applied(), last);
}
