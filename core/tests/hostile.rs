//! Whatever comes from outside, however wrong, is refused or ignored; it never stops a replica, and
//! never makes it lie.

mod common;

use bytes::Bytes;
use common::{Peer, accepted, append, conf_state, config, entry, heartbeat, message, storage};
use polyraft_core::{
    EntryId, Fetch, Fetched, Index, Message, Payload, RejectHint, ReplicaId, RoleName, Snapshot,
    SnapshotMeta, StepError, StorageError, Term,
};
use proptest::prelude::*;

fn follower() -> Peer {
    Peer::new(config(1), storage(conf_state(&[1, 2, 3], &[]), &[1, 1]))
}

fn leader() -> Peer {
    let mut peer = follower();
    peer.lead(&[2]);
    peer
}

fn snapshot(last: EntryId) -> Payload {
    let conf_state = conf_state(&[1, 2, 3], &[]);
    Payload::Snapshot(Box::new(Snapshot {
        meta: SnapshotMeta { last, conf_state },
        data: Bytes::new(),
    }))
}

fn refused(peer: &mut Peer, payload: Payload, term: u64) {
    let before = (peer.role(), peer.hard_state(), peer.terms());
    match peer.node.step(message(2, 1, term, payload.clone())) {
        Err(StepError::Malformed { .. }) => {}
        other => panic!("{payload:?} gives {other:?}"),
    }
    peer.settle();
    assert_eq!(before, (peer.role(), peer.hard_state(), peer.terms()));
}

/// Sums with such numbers overflow: in a term that could never be left, for one.
#[test]
fn numbers_at_the_end_of_their_range_are_refused() {
    const MAX: u64 = u64::MAX;
    let reject = |index, term| Payload::AppendResponse {
        index: Index(2),
        reject: Some(RejectHint {
            index: Index(index),
            term: Term(term),
        }),
    };
    for mut peer in [follower(), leader()] {
        let term = peer.term();
        refused(&mut peer, heartbeat(0), MAX);
        refused(&mut peer, heartbeat(MAX), term + 1);
        refused(&mut peer, append(EntryId::new(1, MAX), vec![], 0), term + 1);
        refused(&mut peer, append(EntryId::new(MAX, 2), vec![], 0), term + 1);
        refused(&mut peer, append(EntryId::new(1, 2), vec![], MAX), term + 1);
        refused(&mut peer, snapshot(EntryId::new(1, MAX)), term + 1);
        refused(&mut peer, accepted(MAX), term);
        refused(&mut peer, reject(MAX, 0), term);
        refused(&mut peer, reject(MAX, 1), term);
        refused(&mut peer, reject(1, MAX), term);
    }
}

#[test]
fn a_snapshot_of_a_term_to_come_is_refused() {
    let mut peer = follower();
    refused(&mut peer, snapshot(EntryId::new(9, 20)), 3);
}

#[test]
fn a_confirmation_of_a_read_that_was_not_asked_yet_does_not_count() {
    let mut peer = leader();
    peer.say(message(2, 1, 2, accepted(3)));
    assert_eq!(peer.committed(), 3);
    peer.say(message(2, 1, 2, Payload::HeartbeatResponse { read: 99 }));
    peer.node.read_index(Bytes::from_static(b"r")).unwrap();
    peer.settle();
    assert_eq!(peer.reads, [], "nobody confirmed this one");
    peer.say(message(2, 1, 2, Payload::HeartbeatResponse { read: 1 }));
    assert_eq!(peer.reads.len(), 1);
}

/// The bytes of what was never handed out cannot be reckoned with.
#[test]
fn an_applied_index_that_was_not_handed_out_stops_the_replica() {
    let mut peer = follower();
    let last = EntryId::new(1, (1 << 62) - 1);
    peer.node.step(message(2, 1, 1, snapshot(last))).unwrap();
    assert_eq!(peer.node.committed(), last.index);
    assert!(peer.node.on_applied(last.index, 0).is_err());
    assert!(peer.node.poisoned().is_some());
}

#[test]
fn a_fetched_index_at_the_end_of_its_range_is_damage() {
    let low = Index(u64::MAX);
    let fetch = Fetch {
        low,
        high: low,
        max_bytes: 0,
        replica: ReplicaId::NONE,
    };
    let entries = Ok(vec![entry(1, low.0, b"")]);
    let result = follower().node.on_fetched(Fetched { fetch, entries });
    assert_eq!(result, Err(StorageError::Corrupt(low).into()));
}

/// Whoever wrote it: it is not what this replica gave out to be written.
#[test]
fn a_storage_that_shows_what_it_was_never_given_stops_the_replica() {
    let mut peer = follower();
    let stray = [entry(1, 3, b"")];
    peer.node.storage_mut().append(&stray).unwrap();
    let behind = append(EntryId::new(1, 3), vec![entry(1, 4, b"")], 0);
    let result = peer.node.step(message(2, 1, 1, behind));
    assert_eq!(result, Err(StepError::Poisoned("append leaves a gap")));
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0u64..6, 1 => Just(u64::MAX), 1 => Just(u64::MAX - 1), 1 => Just(u64::MAX >> 1)]
}

fn payload() -> impl Strategy<Value = Payload> {
    let id = || (number(), number()).prop_map(|(term, index)| EntryId::new(term, index));
    let entries = prop::collection::vec((number(), number()), 0..3);
    let entries = entries.prop_map(|list| {
        let each = list.into_iter();
        each.map(|(term, index)| entry(term, index, b"x")).collect()
    });
    let hint = prop::option::of((number(), number()).prop_map(|(index, term)| RejectHint {
        index: Index(index),
        term: Term(term),
    }));
    prop_oneof![
        // A commit index that contradicts what a majority has would be a broken group, not a broken
        // message; with commit 0 there is no group to break.
        (id(), entries).prop_map(|(prev, entries)| append(prev, entries, 0)),
        (number(), hint).prop_map(|(index, reject)| Payload::AppendResponse {
            index: Index(index),
            reject
        }),
        (any::<bool>(), id(), any::<bool>()).prop_map(|(pre, last, transfer)| Payload::Vote {
            pre,
            last,
            transfer
        }),
        (any::<bool>(), any::<bool>(), id()).prop_map(|(pre, reject, committed)| {
            Payload::VoteResponse {
                pre,
                reject,
                committed,
            }
        }),
        Just(heartbeat(0)),
        number().prop_map(|read| Payload::HeartbeatResponse { read }),
        id().prop_map(snapshot),
        Just(Payload::Propose { entries: vec![] }),
        Just(Payload::Propose {
            entries: vec![entry(7, 7, b"y")]
        }),
        Just(Payload::TransferLeader),
        Just(Payload::TimeoutNow),
        Just(Payload::ReadIndex {
            context: Bytes::from_static(b"c")
        }),
        number().prop_map(|index| Payload::ReadIndexResponse {
            index: Index(index),
            context: Bytes::from_static(b"c")
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
    /// Any messages in any order: no panic, and the invariants hold after each (the harness looks).
    #[test]
    fn nonsense_does_no_harm(
        leads in any::<bool>(),
        messages in prop::collection::vec((0u64..5, number(), payload()), 1..30),
    ) {
        let mut peer = if leads { leader() } else { follower() };
        let (mut term, mut committed) = (peer.term(), peer.committed());
        for (from, at, payload) in messages {
            let message = Message {
                from: ReplicaId(from),
                to: ReplicaId(1),
                term: Term(at),
                payload,
            };
            // What is refused is refused; only a contradiction of what is committed may stop it.
            let result = peer.node.step(message);
            if let Err(StepError::Poisoned(why)) = &result {
                prop_assert_eq!(*why, "a leader contradicts a committed entry");
                return Ok(());
            }
            peer.settle();
            prop_assert!(peer.term() >= term && peer.committed() >= committed);
            (term, committed) = (peer.term(), peer.committed());
            prop_assert!(term < u64::MAX / 2 + 2);
            let _: RoleName = peer.role();
        }
    }
}

/// What leads to no Ready leaves events that nobody comes for; they do not pile up.
#[test]
fn events_that_nobody_takes_are_forgotten() {
    let mut peer = leader();
    let term = peer.term();
    for stray in 1..=5000 {
        let payload = Payload::ReadIndexResponse {
            index: Index(stray),
            context: Bytes::new(),
        };
        peer.node.step(message(2, 1, term - 1, payload)).unwrap();
        assert!(!peer.node.has_ready());
    }
    let events = peer.node.take_events();
    assert!((512..=1024).contains(&events.len()), "{}", events.len());
}
