//! Snapshots on their way out: so many at once, and the next as soon as one has ended, however it
//! did; and on their way in, beside the end of those who should have them.

use std::sync::Arc;

use polyraft_core::{
    ConfChangeKind, ConfState, EntryId, Index, Message, Payload, RejectHint, ReplicaId, Snapshot,
    SnapshotMeta, SnapshotOutcome, Transition,
};
use polyraft_multiraft::env::{Body, GroupMessage, Inbound, SnapshotHeader};
use polyraft_multiraft::{AppliedState, GroupId, HostConfig, HostHandle, MemberChange, StoreId};
use shuttle::rand::{Rng, thread_rng};
use shuttle::thread;

use crate::check::check;
use crate::store::{Network, OTHER, STORE, Store, ask, descriptor, lead, stop};

const GROUPS: u64 = 3;

/// New learners, empty as they are, refuse what does not begin at the beginning.
fn refuse_appends(network: &Network, handle: &HostHandle) {
    for _ in 0..GROUPS {
        let (group, append) = network.take(|leaving| {
            let append = |(to, message): &(StoreId, GroupMessage)| match &message.body {
                Body::Raft(append) if *to == OTHER => Some((message.group, append.clone())),
                _ => None,
            };
            let found = leaving.messages.pop_front()?;
            Some(append(&found).expect("nothing else is said to a new learner"))
        });
        let Payload::Append { prev, .. } = append.payload else {
            panic!("{append:?} to a new learner");
        };
        let refusal = Message {
            from: append.to,
            to: append.from,
            term: append.term,
            payload: Payload::AppendResponse {
                index: prev.index,
                reject: Some(RejectHint {
                    index: Index(0),
                    ..RejectHint::default()
                }),
            },
        };
        let body = Body::Raft(refusal);
        handle.deliver(OTHER, vec![GroupMessage { group, body }]);
    }
}

/// Ends them one by one, each in some way.
fn end_snapshots(network: &Network, at_once: usize) {
    for _ in 0..GROUPS {
        let done = network.take(|leaving| {
            assert!(leaving.snapshots.len() <= at_once, "too many at once");
            leaving.snapshots.pop_front()
        });
        match thread_rng().gen_range(0..3) {
            0 => done.answer(SnapshotOutcome::Sent),
            1 => done.answer(SnapshotOutcome::Failed),
            _ => drop(done),
        }
    }
}

/// No time passes: who waits for another's end is woken by it.
#[test]
fn the_next_leaves_when_one_has_ended() {
    check(400, || {
        let mut store = Store::new(2);
        store.config = HostConfig {
            snapshot_sends_max: 1 + thread_rng().gen_range(0..2),
            ..store.config
        };
        let at_once = store.config.snapshot_sends_max;
        let host = store.start();
        let handle = host.handle();
        for group in 1..=GROUPS {
            lead(&handle, group);
        }
        let learners = thread::spawn({
            let (network, handle) = (Arc::clone(&store.network), handle.clone());
            move || refuse_appends(&network, &handle)
        });
        let sender = thread::spawn({
            let network = Arc::clone(&store.network);
            move || end_snapshots(&network, at_once)
        });
        for group in 1..=GROUPS {
            let change = MemberChange {
                kind: ConfChangeKind::AddLearner,
                store: OTHER,
            };
            let (group, changes) = (GroupId(group), vec![change]);
            let added = ask(|respond| {
                handle.change_members(group, changes, Transition::default(), respond);
            });
            let descriptor = added.wait().expect("it leads");
            assert_eq!(descriptor.replica_on(OTHER), Some(ReplicaId(2)));
        }
        learners.join().unwrap();
        sender.join().unwrap();
        stop(host);
    });
}

/// A snapshot of group 1 for the replica here.
fn snapshot() -> SnapshotHeader {
    let last = EntryId::new(5, 20);
    let conf_state = ConfState {
        voters: vec![ReplicaId(1), ReplicaId(2)],
        ..ConfState::default()
    };
    let meta = SnapshotMeta {
        last,
        conf_state: conf_state.clone(),
    };
    let message = Message {
        from: ReplicaId(2),
        to: ReplicaId(1),
        term: last.term,
        payload: Payload::Snapshot(Box::new(Snapshot {
            meta,
            ..Snapshot::default()
        })),
    };
    SnapshotHeader {
        group: GroupId(1),
        message,
        state: AppliedState {
            last,
            conf_state: Arc::new(conf_state),
            descriptor: Arc::new(descriptor(1, &[STORE, OTHER])),
        },
    }
}

/// A replica is destroyed while snapshots come for it: each is installed before, or discarded;
/// none stays where it was staged, and nothing is left of the group.
#[test]
fn what_comes_for_the_dead_leaves_nothing() {
    check(1_000, || {
        let store = Store::new(1);
        let host = store.start();
        let handle = host.handle();
        let wanted = descriptor(1, &[STORE, OTHER]);
        let created = ask(|respond| handle.create_group(wanted, respond));
        created.wait().expect("nothing is in the way");
        let senders: Vec<_> = (0..2)
            .map(|_| {
                let handle = handle.clone();
                thread::spawn(move || {
                    // Refused: there is a newer one.
                    if let Ok(receiver) = handle.begin_snapshot(OTHER, snapshot()) {
                        receiver.finish().expect("nothing is wrong with it");
                    }
                })
            })
            .collect();
        let destroy = |respond| handle.destroy_replica(GroupId(1), ReplicaId(u64::MAX), respond);
        ask(destroy).wait().expect("it is here");
        for sender in senders {
            sender.join().unwrap();
        }
        // Creations go through the same threads. One may be taken before a snapshot in the same
        // pass, and the next one is behind all that they still had to do.
        for group in [2, 3] {
            let behind = ask(|respond| handle.create_group(descriptor(group, &[STORE]), respond));
            behind.wait().expect("nothing is in the way");
        }
        assert_eq!(store.data.staged(), 0, "staged for nobody");
        assert_eq!(store.data.data(GroupId(1)), None);
        assert_eq!(store.log.durable(GroupId(1)), None);
        stop(host);
    });
}
