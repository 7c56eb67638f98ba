//! Linearizable reads: which index they get, who must confirm it, and when there is no answer.

mod common;

use bytes::Bytes;
use common::{
    Cluster, ELECTION, Peer, accepted, bootstrapped, conf_state, config, heartbeat, ids, message,
    storage,
};
use polyraft_core::{
    ConfChangeKind, ConfChangeV2, ConfState, Config, Message, MessageKind, Payload, ProposeError,
    RaftNode, ReadMode, ReplicaId, RoleName,
};

/// The leader of term 1 among `voters`, with its first entry (index 1) committed.
fn leader(voters: &[u64], adjust: impl Fn(&mut Config)) -> Peer {
    let mut peer = elected(voters, adjust);
    for id in &voters[1..] {
        peer.say(message(*id, 1, 1, accepted(1)));
    }
    assert_eq!(peer.committed(), 1);
    peer
}

/// The same before anything of its term is committed.
fn elected(voters: &[u64], adjust: impl Fn(&mut Config)) -> Peer {
    let mut config = config(1);
    adjust(&mut config);
    let mut peer = Peer::new(config, storage(conf_state(voters, &[]), &[]));
    peer.lead(&voters[1..]);
    peer
}

fn ask(peer: &mut Peer, context: &'static str) -> Vec<Message> {
    peer.node
        .read_index(Bytes::from_static(context.as_bytes()))
        .expect("room for a read");
    peer.settle()
}

/// The number that goes out in the heartbeats of `messages`.
fn number(messages: &[Message]) -> u64 {
    let numbers = messages.iter().filter_map(|message| match message.payload {
        Payload::Heartbeat { read, .. } => Some(read),
        _ => None,
    });
    numbers.max().expect("heartbeats")
}

fn confirm(peer: &mut Peer, from: u64, read: u64) -> Vec<Message> {
    let term = peer.term();
    peer.say(message(from, 1, term, Payload::HeartbeatResponse { read }))
}

/// Contexts and indexes of the reads that may be served.
fn served(peer: &mut Peer) -> Vec<(String, u64)> {
    let each = peer.reads.drain(..);
    each.map(|read| {
        let context = String::from_utf8(read.context.to_vec()).expect("text");
        (context, read.index.0)
    })
    .collect()
}

fn answer(context: &str, index: u64) -> Vec<(String, u64)> {
    vec![(context.to_owned(), index)]
}

#[test]
fn a_read_waits_for_a_quorum_and_gets_the_index_of_its_asking() {
    let mut peer = leader(&[1, 2, 3, 4, 5], |_| {});
    let round = number(&ask(&mut peer, "a"));
    peer.propose(b"later").unwrap();
    peer.settle();
    for id in 2..=5 {
        peer.say(message(id, 1, 1, accepted(2)));
    }
    assert_eq!(peer.committed(), 2);
    confirm(&mut peer, 2, round);
    assert_eq!(served(&mut peer), [], "two of five are no quorum");
    confirm(&mut peer, 2, round);
    assert_eq!(served(&mut peer), [], "nor is the same one twice");
    confirm(&mut peer, 3, round);
    assert_eq!(served(&mut peer), answer("a", 1));
    confirm(&mut peer, 4, round);
    assert_eq!(served(&mut peer), [], "answered once");
}

#[test]
fn one_round_confirms_all_reads_before_it() {
    let mut peer = leader(&[1, 2, 3], |_| {});
    ask(&mut peer, "a");
    ask(&mut peer, "b");
    let round = number(&ask(&mut peer, "c"));
    confirm(&mut peer, 2, round);
    let all = [answer("a", 1), answer("b", 1), answer("c", 1)].concat();
    assert_eq!(served(&mut peer), all);
}

/// Reads asked for before the heartbeats have left share them, whatever else is sent in between.
#[test]
fn reads_of_one_ready_share_a_round() {
    let mut peer = leader(&[1, 2, 3], |_| {});
    for context in ["a", "b", "c"] {
        peer.node
            .read_index(Bytes::from_static(context.as_bytes()))
            .unwrap();
        peer.propose(b"between").unwrap();
    }
    let sent = peer.settle();
    let heartbeats = sent
        .iter()
        .filter(|m| m.payload.kind() == MessageKind::Heartbeat);
    let to: Vec<u64> = heartbeats.map(|m| m.to.0).collect();
    assert_eq!(to, [2, 3], "one for each follower");
    let round = number(&sent);
    assert!(number(&ask(&mut peer, "d")) > round, "sent is sent");
    confirm(&mut peer, 2, round);
    let all = [answer("a", 1), answer("b", 1), answer("c", 1)].concat();
    assert_eq!(served(&mut peer), all);
}

fn heartbeats_of(messages: &[Message], round: u64) -> Vec<u64> {
    let asks = |m: &&Message| matches!(m.payload, Payload::Heartbeat { read, .. } if read == round);
    let heartbeats = messages.iter().filter(asks);
    heartbeats.map(|m| m.to.0).collect()
}

#[test]
fn a_read_does_not_join_heartbeats_that_miss_a_new_member() {
    let mut peer = leader(&[1, 2, 3], |_| {});
    peer.node.read_index(Bytes::from_static(b"three")).unwrap();
    let change = ConfChangeV2 {
        changes: vec![(ConfChangeKind::AddVoter, ReplicaId(4))],
        ..ConfChangeV2::default()
    };
    peer.node.apply_conf_change(&change).unwrap();
    let sent = ask(&mut peer, "four");
    assert_eq!(heartbeats_of(&sent, 1), [2, 3]);
    assert_eq!(heartbeats_of(&sent, 2), [2, 3, 4]);
}

/// A round that was lost is repeated by the next heartbeat.
#[test]
fn the_next_heartbeat_carries_what_waits() {
    let mut peer = leader(&[1, 2, 3], |_| {});
    let round = number(&ask(&mut peer, "a"));
    assert_eq!(number(&peer.tick(1)), round);
    confirm(&mut peer, 3, round);
    assert_eq!(served(&mut peer), answer("a", 1));
    assert_eq!(number(&peer.tick(1)), 0, "nothing waits any more");
}

/// The shape of etcd's stale read (etcd-io/etcd#20418): the client uses a context again, and a late
/// confirmation of the first read must not count for the second.
#[test]
fn a_late_confirmation_counts_for_its_own_round_only() {
    let mut peer = leader(&[1, 2, 3], |_| {});
    let first = number(&ask(&mut peer, "same"));
    confirm(&mut peer, 2, first);
    assert_eq!(served(&mut peer), answer("same", 1));
    let second = number(&ask(&mut peer, "same"));
    assert!(second > first);
    confirm(&mut peer, 3, first);
    assert_eq!(served(&mut peer), [], "that was the first one's");
    confirm(&mut peer, 3, second);
    assert_eq!(served(&mut peer), answer("same", 1));
}

#[test]
fn a_leader_cut_off_serves_nothing() {
    let mut group = Cluster::new(3);
    group.campaign(1);
    group.isolate(1);
    ask(group.peer(1), "stale");
    group.campaign(2);
    group.propose(2, b"new").unwrap();
    group.tick(1, 3 * ELECTION);
    assert_eq!(group.peer(1).role(), RoleName::Leader, "it does not know");
    assert_eq!(served(group.peer(1)), []);
    group.heal();
    group.tick(2, 1);
    group.tick_all(3);
    assert_eq!(group.peer(1).role(), RoleName::Follower);
    assert_eq!(
        served(group.peer(1)),
        [],
        "the wait ended with the leadership"
    );
}

/// A new leader may not know yet what its predecessor committed.
#[test]
fn before_the_first_commit_of_the_term_reads_wait() {
    let mut peer = elected(&[1, 2, 3], |_| {});
    let sent = ask(&mut peer, "early");
    assert!(sent.is_empty(), "a round now would confirm too little");
    confirm(&mut peer, 2, 0);
    confirm(&mut peer, 3, 0);
    assert_eq!(served(&mut peer), []);
    let sent = peer.say(message(2, 1, 1, accepted(1)));
    let round = number(&sent);
    assert_eq!(served(&mut peer), []);
    confirm(&mut peer, 2, round);
    assert_eq!(served(&mut peer), answer("early", 1));
}

#[test]
fn reads_that_wait_are_bounded_and_end_with_the_leadership() {
    for committed in [false, true] {
        let few = |config: &mut Config| config.max_pending_reads = 2;
        let mut peer = if committed {
            leader(&[1, 2, 3], few)
        } else {
            elected(&[1, 2, 3], few)
        };
        ask(&mut peer, "a");
        ask(&mut peer, "b");
        let third = peer.node.read_index(Bytes::from_static(b"c"));
        assert_eq!(third, Err(ProposeError::Dropped));
        // The same through the network: nothing to answer, and nothing kept.
        let context = Bytes::from_static(b"d");
        peer.say(message(2, 1, 0, Payload::ReadIndex { context }));

        peer.say(message(2, 1, 2, heartbeat(0)));
        assert_eq!(peer.role(), RoleName::Follower);
        peer.lead(&[2]);
        let last = peer.node.last_index().0;
        let sent = peer.say(message(2, 1, 3, accepted(last)));
        assert!(sent.iter().all(|message| !matches!(
            message.payload,
            Payload::Heartbeat { .. } | Payload::ReadIndexResponse { .. }
        )));
        confirm(&mut peer, 2, 99);
        assert_eq!(served(&mut peer), []);
    }
}

#[test]
fn one_voter_answers_at_once_but_not_too_early() {
    let mut peer = elected(&[1], |_| {});
    assert_eq!(peer.committed(), 1, "the harness stores at once");
    ask(&mut peer, "a");
    assert_eq!(served(&mut peer), answer("a", 1));

    let mut early = Peer::new(config(1), storage(conf_state(&[1], &[]), &[]));
    early.node.campaign().unwrap();
    let (messages, token) = loop {
        // Until it leads, its first entry handed out to be written and no more.
        let ready = early.node.ready().unwrap();
        let append = ready.append.unwrap();
        let storage = early.node.storage_mut();
        storage.append(append.entries()).unwrap();
        let parts = append.persisted(&polyraft_core::Durable::attest());
        if early.node.role() == RoleName::Leader {
            break parts;
        }
        early.node.on_persisted(parts.1).unwrap();
    };
    assert!(messages.is_empty());
    ask(&mut early, "b");
    assert_eq!(served(&mut early), [], "nothing of this term is committed");
    early.node.on_persisted(token).unwrap();
    early.settle();
    assert_eq!(served(&mut early), answer("b", 1));
}

#[test]
fn a_follower_asks_its_leader() {
    let mut group = Cluster::new(3);
    group.campaign(1);
    group.propose(1, b"x").unwrap();
    let context = Bytes::from_static(b"f");
    group.peer(2).node.read_index(context).unwrap();
    group.settle();
    assert_eq!(served(group.peer(2)), answer("f", 2));
    assert_eq!(served(group.peer(1)), [], "it is not the leader's own");
}

#[test]
fn a_learner_asks_but_does_not_confirm() {
    let members = conf_state(&[1, 2], &[3]);
    let peer = |id| Peer::new(config(id), bootstrapped(members.clone()));
    let mut group = Cluster::of([peer(1), peer(2), peer(3)]);
    group.campaign(1);
    let context = Bytes::from_static(b"l");
    group.peer(3).node.read_index(context.clone()).unwrap();
    group.settle();
    assert_eq!(served(group.peer(3)), answer("l", 11));
    group.cut(1, 2);
    group.peer(1).node.read_index(context).unwrap();
    group.settle();
    group.tick(1, 5);
    assert_eq!(served(group.peer(1)), []);
}

#[test]
fn nobody_asks_without_a_leader() {
    let mut peer = Peer::new(config(2), storage(conf_state(&[1, 2, 3], &[]), &[]));
    let read = |peer: &mut Peer| peer.node.read_index(Bytes::from_static(b"x"));
    assert_eq!(read(&mut peer), Err(ProposeError::Dropped));
    peer.campaign();
    assert_eq!(read(&mut peer), Err(ProposeError::Dropped));
    assert!(!peer.node.has_ready());
}

/// The answer would come to the one in between, who may wait for something else under this context.
#[test]
fn a_read_is_passed_on_once_only() {
    let mut peer = Peer::new(config(2), storage(conf_state(&[1, 2, 3], &[]), &[]));
    peer.say(message(1, 2, 1, heartbeat(0)));
    let context = Bytes::from_static(b"x");
    let sent = peer.say(message(3, 2, 0, Payload::ReadIndex { context }));
    assert_eq!(sent, []);
}

#[test]
fn an_answer_of_an_older_term_is_not_used() {
    let mut peer = Peer::new(config(2), storage(conf_state(&[1, 2, 3], &[]), &[]));
    peer.say(message(1, 2, 5, heartbeat(0)));
    let answer = |term| {
        let (index, context) = (polyraft_core::Index(0), Bytes::from_static(b"x"));
        message(1, 2, term, Payload::ReadIndexResponse { index, context })
    };
    peer.say(answer(4));
    assert_eq!(served(&mut peer), []);
    peer.say(answer(5));
    assert_eq!(peer.reads.len(), 1);
}

#[test]
fn a_joint_configuration_confirms_by_both_halves() {
    let joint = ConfState {
        voters: ids(&[1, 2, 3]),
        voters_outgoing: ids(&[1, 4, 5]),
        ..ConfState::default()
    };
    let mut peer = Peer::new(config(1), storage(joint, &[]));
    peer.lead(&[2, 4]);
    for id in [2, 4] {
        peer.say(message(id, 1, 1, accepted(1)));
    }
    let round = number(&ask(&mut peer, "j"));
    confirm(&mut peer, 2, round);
    confirm(&mut peer, 3, round);
    assert_eq!(served(&mut peer), [], "the outgoing half has not confirmed");
    confirm(&mut peer, 5, round);
    assert_eq!(served(&mut peer), answer("j", 1));
}

#[test]
fn leases_answer_at_once_but_not_before_the_first_commit() {
    let lease = |config: &mut Config| {
        config.read_mode = ReadMode::LeaseBased;
        config.check_quorum = true;
    };
    let mut peer = elected(&[1, 2, 3], lease);
    ask(&mut peer, "early");
    assert_eq!(served(&mut peer), []);
    peer.say(message(2, 1, 1, accepted(1)));
    assert_eq!(served(&mut peer), answer("early", 1));
    let sent = ask(&mut peer, "now");
    assert!(sent.is_empty());
    assert_eq!(served(&mut peer), answer("now", 1));
}

#[test]
fn leases_need_check_quorum() {
    let config = Config {
        read_mode: ReadMode::LeaseBased,
        ..config(1)
    };
    assert!(RaftNode::new(config, storage(conf_state(&[1], &[]), &[])).is_err());
}

#[test]
fn reads_work_while_nothing_is_written_and_heartbeats_are_lost() {
    let mut group = Cluster::new(3);
    group.campaign(1);
    group.lose(MessageKind::HeartbeatResponse);
    ask(group.peer(1), "a");
    group.tick(1, 2);
    assert_eq!(served(group.peer(1)), []);
    group.heal();
    group.tick(1, 1);
    assert_eq!(served(group.peer(1)), answer("a", 1));
}
