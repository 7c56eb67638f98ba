//! How much may be on its way: the window of each follower in messages and bytes, the size of a
//! message, and the leader's uncommitted tail.

mod common;

use bytes::Bytes;
use common::{Cluster, Peer, accepted, conf_state, config, message, storage};
use polyraft_core::{
    ConfChangeKind, ConfChangeV2, Config, Entry, EntryKind, Event, Index, Message, Payload,
    ProgressState, ProgressStatus, ProposeError, RejectHint, ReplicaId, Term,
};

/// The leader of term 1 of two voters; follower 2 has acknowledged the first entry.
fn leader(adjust: impl Fn(&mut Config)) -> Peer {
    let mut config = config(1);
    adjust(&mut config);
    let mut peer = Peer::new(config, storage(conf_state(&[1, 2], &[]), &[]));
    peer.lead(&[2]);
    peer.say(message(2, 1, 1, accepted(1)));
    peer
}

fn progress(peer: &Peer) -> ProgressStatus {
    let all = peer.node.status().progress;
    *all.iter().find(|p| p.id == ReplicaId(2)).expect("follower")
}

fn propose(peer: &mut Peer, size: usize) -> Vec<Message> {
    let data = Bytes::from(vec![7; size]);
    peer.node.propose(vec![data]).expect("room");
    peer.settle()
}

/// Indexes of the entries in each append.
fn appends(messages: &[Message]) -> Vec<Vec<u64>> {
    let each = messages
        .iter()
        .filter_map(|message| match &message.payload {
            Payload::Append { entries, .. } => Some(entries.iter().map(|e| e.index.0).collect()),
            _ => None,
        });
    each.collect()
}

#[test]
fn a_full_window_holds_entries_back() {
    let mut peer = leader(|config| config.max_inflight_messages = 3);
    for index in 2..=4 {
        assert_eq!(appends(&propose(&mut peer, 10)), [[index]]);
    }
    assert!(progress(&peer).inflight_full);
    assert_eq!(appends(&propose(&mut peer, 10)), [[0u64; 0]; 0]);
    assert_eq!(progress(&peer).next, Index(5));
}

#[test]
fn acknowledgements_open_the_window() {
    let mut peer = leader(|config| config.max_inflight_messages = 3);
    for _ in 0..6 {
        propose(&mut peer, 10);
    }
    // One message is acknowledged: one more goes out, with all that waits.
    let sent = peer.say(message(2, 1, 1, accepted(2)));
    assert!(appends(&sent).contains(&vec![5, 6, 7]));
    assert!(progress(&peer).inflight_full);
    // An old one opens nothing.
    let sent = peer.say(message(2, 1, 1, accepted(2)));
    assert_eq!(appends(&sent), [[0u64; 0]; 0]);
    // A later one acknowledges those before it.
    peer.say(message(2, 1, 1, accepted(4)));
    assert_eq!(progress(&peer).inflight_messages, 1);
}

/// All of a window may be lost. Each heartbeat's answer makes the leader ask where the follower stands,
/// without entries, so that the limit holds however long that goes on.
#[test]
fn a_lost_window_is_noticed_without_exceeding_it() {
    let mut peer = leader(|config| config.max_inflight_messages = 3);
    for _ in 0..5 {
        propose(&mut peer, 10);
    }
    for _ in 0..5 {
        let sent = peer.say(message(2, 1, 1, Payload::HeartbeatResponse { read: 0 }));
        assert_eq!(appends(&sent), [vec![0u64; 0]], "one, and empty");
        assert_eq!(progress(&peer).inflight_messages, 3);
    }
    let reject = Some(RejectHint {
        index: Index(1),
        term: Term(1),
    });
    let index = Index(4);
    let sent = peer.say(message(2, 1, 1, Payload::AppendResponse { index, reject }));
    assert_eq!(appends(&sent), [vec![2, 3, 4, 5, 6]]);
    assert_eq!(progress(&peer).state, ProgressState::Probe);
    assert_eq!(progress(&peer).inflight_messages, 0);
}

#[test]
fn bytes_fill_the_window_too() {
    let mut peer = leader(|config| {
        config.max_message_bytes = 1000;
        config.max_inflight_bytes = 1000;
    });
    assert_eq!(appends(&propose(&mut peer, 600)), [[2]]);
    // Soft: the message that crosses the limit still goes.
    assert_eq!(appends(&propose(&mut peer, 600)), [[3]]);
    assert_eq!(progress(&peer).inflight_bytes, 1200);
    assert_eq!(appends(&propose(&mut peer, 1)), [[0u64; 0]; 0]);
    peer.say(message(2, 1, 1, accepted(2)));
    assert_eq!(progress(&peer).inflight_bytes, 601);
}

#[test]
fn a_message_holds_entries_up_to_its_size_and_one_at_least() {
    let one_each = vec![vec![1], vec![2], vec![3], vec![4]];
    for (max, expected) in [
        (0, one_each.clone()),
        (2 * Entry::OVERHEAD - 1, one_each),
        (2 * Entry::OVERHEAD, vec![vec![1, 2], vec![3, 4]]),
        (u64::MAX, vec![vec![1, 2, 3, 4]]),
    ] {
        let config = Config {
            max_message_bytes: max,
            ..config(1)
        };
        // Three empty entries and the one of the new leader; the follower has nothing.
        let mut peer = Peer::new(config, storage(conf_state(&[1, 2], &[]), &[1, 1, 1]));
        peer.lead(&[2]);
        let reject = Some(RejectHint::default());
        let index = Index(3);
        let mut sent = peer.say(message(2, 1, 2, Payload::AppendResponse { index, reject }));
        sent.extend(peer.say(message(2, 1, 2, accepted(expected[0].len() as u64))));
        let mut filled = appends(&sent);
        filled.retain(|indexes| !indexes.is_empty());
        assert_eq!(filled, expected, "limit {max}");
    }
}

/// While it is looked for the last common entry, one message is out at a time.
#[test]
fn a_probe_is_one_message_until_an_answer() {
    let mut peer = leader(|_| {});
    peer.node.report_unreachable(ReplicaId(2));
    assert_eq!(progress(&peer).state, ProgressState::Probe);
    assert_eq!(appends(&propose(&mut peer, 10)), [[2]]);
    for _ in 0..3 {
        assert_eq!(appends(&propose(&mut peer, 10)), [[0u64; 0]; 0]);
    }
    // Lost, as it seems: one more try for each heartbeat that comes back.
    for _ in 0..3 {
        let sent = peer.say(message(2, 1, 1, Payload::HeartbeatResponse { read: 0 }));
        assert_eq!(appends(&sent), [[2, 3, 4, 5]]);
    }
    peer.say(message(2, 1, 1, accepted(2)));
    assert_eq!(progress(&peer).state, ProgressState::Replicate);
}

#[test]
fn unreachable_followers_are_probed_again() {
    let mut peer = leader(|_| {});
    propose(&mut peer, 10);
    assert_eq!(progress(&peer).next, Index(3));
    peer.node.report_unreachable(ReplicaId(2));
    peer.node.report_unreachable(ReplicaId(9));
    assert_eq!(progress(&peer).state, ProgressState::Probe);
    assert_eq!(progress(&peer).next, Index(2));
    let sent = peer.say(message(2, 1, 1, Payload::HeartbeatResponse { read: 0 }));
    assert_eq!(appends(&sent), [[2]], "what was lost is sent again");
}

#[test]
fn the_uncommitted_tail_is_bounded() {
    let mut peer = leader(|config| config.max_uncommitted_bytes = 1000);
    propose(&mut peer, 600);
    let more = peer.node.propose(vec![Bytes::from(vec![7; 600])]);
    assert_eq!(more, Err(ProposeError::UncommittedLimit));
    assert_eq!(peer.node.last_index(), Index(2), "all or nothing");
    let limit = Event::ProposalLimit { uncommitted: 600 };
    assert!(peer.node.take_events().contains(&limit));
    propose(&mut peer, 400);
    propose(&mut peer, 0);
    // Committed and applied it counts no longer.
    peer.say(message(2, 1, 1, accepted(4)));
    propose(&mut peer, 1000);
}

#[test]
fn one_proposal_above_the_limit_passes_alone() {
    let mut peer = leader(|config| config.max_uncommitted_bytes = 10);
    propose(&mut peer, 1000);
    assert!(peer.node.propose(vec![Bytes::from_static(b"x")]).is_err());
    peer.say(message(2, 1, 1, accepted(2)));
    propose(&mut peer, 1000);
}

#[test]
fn a_batch_is_taken_whole_or_not_at_all() {
    let mut peer = leader(|config| config.max_uncommitted_bytes = 100);
    propose(&mut peer, 10);
    let batch = vec![Bytes::from(vec![7; 50]), Bytes::from(vec![7; 50])];
    let before = peer.node.last_index();
    assert!(peer.node.propose(batch).is_err());
    assert_eq!(peer.node.last_index(), before);
    assert_eq!(peer.settle(), []);
}

/// What the limit drops leaves no mark: the next change of membership is not refused for its sake.
#[test]
fn a_dropped_change_does_not_stand_in_the_way() {
    let mut peer = leader(|config| config.max_uncommitted_bytes = 20);
    propose(&mut peer, 20);
    let change = ConfChangeV2 {
        changes: vec![(ConfChangeKind::AddLearner, ReplicaId(3))],
        ..ConfChangeV2::default()
    };
    let dropped = peer.node.propose_conf_change(&change);
    assert_eq!(dropped, Err(ProposeError::UncommittedLimit));
    peer.node.check().expect("the invariants hold");
    peer.say(message(2, 1, 1, accepted(2)));
    peer.node.propose_conf_change(&change).unwrap();
    peer.settle();
    let last = peer.node.storage().all().last().expect("an entry").kind;
    assert_eq!(
        last,
        EntryKind::ConfChangeV2,
        "and not an empty one instead"
    );
}

/// With the smallest limits there are, everything still arrives.
#[test]
fn the_smallest_limits_only_slow_down() {
    let mut group = Cluster::with(3, |config| {
        config.max_message_bytes = 0;
        config.max_committed_bytes = 1;
        config.max_inflight_messages = 1;
        config.max_inflight_bytes = 1;
    });
    group.campaign(1);
    group.isolate(3);
    for _ in 0..20 {
        group.propose(1, b"value").unwrap();
    }
    group.heal();
    group.tick(1, 2);
    group.assert_agreed();
    assert_eq!(group.peer(3).values().len(), 20);
}
