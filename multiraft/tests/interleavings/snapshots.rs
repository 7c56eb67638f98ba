//! Snapshots on their way out: so many at once, and the next as soon as one has ended, however it
//! did.

use std::sync::Arc;

use polyraft_core::{
    ConfChangeKind, Index, Message, Payload, RejectHint, ReplicaId, SnapshotOutcome, Transition,
};
use polyraft_multiraft::env::{Body, GroupMessage, Inbound};
use polyraft_multiraft::{GroupId, HostConfig, HostHandle, MemberChange, StoreId};
use shuttle::rand::{Rng, thread_rng};
use shuttle::thread;

use crate::check::check;
use crate::store::{Network, OTHER, Store, ask, lead, stop};

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
