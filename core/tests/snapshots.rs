//! Catching up by snapshot: what the leader waits for, and what a follower makes of one.

mod common;

use bytes::Bytes;
use common::{
    Cluster, Peer, accepted, append, bootstrapped, conf_state, config, entry, message, storage,
};
use polyraft_core::{
    Durable, EntryId, Index, Message, MessageKind, Payload, ProgressState, ProgressStatus,
    RejectHint, ReplicaId, RoleName, Snapshot, SnapshotMeta, SnapshotOutcome, Term,
};

/// The leader of term 1 whose log holds index 12 only, with a snapshot at 12 on its way to follower 3,
/// which has nothing.
fn sending() -> Peer {
    let mut peer = Peer::new(config(1), bootstrapped(conf_state(&[1, 2, 3], &[])));
    peer.lead(&[2]);
    peer.say(message(2, 1, 1, accepted(11)));
    peer.truncate();
    peer.propose(b"x").unwrap();
    peer.settle();
    peer.say(message(2, 1, 1, accepted(12)));
    let (index, reject) = (Index(10), Some(RejectHint::default()));
    let sent = peer.say(message(3, 1, 1, Payload::AppendResponse { index, reject }));
    assert_eq!(snapshots(&sent), [3]);
    peer
}

fn progress(peer: &Peer, id: u64) -> ProgressStatus {
    let all = peer.node.status().progress;
    *all.iter().find(|p| p.id.0 == id).expect("a follower")
}

fn snapshots(messages: &[Message]) -> Vec<u64> {
    let each = messages.iter();
    let each = each.filter(|m| m.payload.kind() == MessageKind::Snapshot);
    each.map(|m| m.to.0).collect()
}

fn snapshot(term: u64, index: u64) -> Payload {
    Payload::Snapshot(Box::new(Snapshot {
        meta: SnapshotMeta {
            last: EntryId::new(term, index),
            conf_state: conf_state(&[1, 2, 3], &[]),
        },
        data: Bytes::new(),
    }))
}

fn follower(terms: &[u64]) -> Peer {
    Peer::new(config(1), storage(conf_state(&[1, 2, 3], &[]), terms))
}

#[test]
fn nothing_else_is_sent_while_a_snapshot_is_on_its_way() {
    let mut peer = sending();
    let pending = progress(&peer, 3).state;
    assert!(matches!(pending, ProgressState::Snapshot(_)));
    peer.propose(b"x").unwrap();
    let mut sent = peer.settle();
    sent.extend(peer.say(message(3, 1, 1, Payload::HeartbeatResponse { read: 0 })));
    sent.extend(peer.tick(1));
    let to_3 = sent.iter().filter(|m| m.to == ReplicaId(3));
    assert!(to_3.map(|m| m.payload.kind()).eq([MessageKind::Heartbeat]));
    assert_eq!(progress(&peer, 3).state, pending);
}

#[test]
fn a_snapshot_that_failed_is_tried_again_after_a_heartbeat() {
    let mut peer = sending();
    let failed = SnapshotOutcome::Failed;
    peer.node.report_snapshot(ReplicaId(3), failed);
    assert_eq!(progress(&peer, 3).state, ProgressState::Probe);
    assert_eq!(progress(&peer, 3).next, Index(1));
    assert!(progress(&peer, 3).paused);
    let sent = peer.say(message(3, 1, 1, Payload::HeartbeatResponse { read: 0 }));
    assert_eq!(snapshots(&sent), [3]);
}

#[test]
fn a_snapshot_that_was_sent_is_followed_by_a_probe_behind_it() {
    let mut peer = sending();
    let ProgressState::Snapshot(pending) = progress(&peer, 3).state else {
        panic!("a snapshot is on its way");
    };
    peer.node
        .report_snapshot(ReplicaId(3), SnapshotOutcome::Sent);
    let state = progress(&peer, 3);
    assert_eq!(
        (state.state, state.next),
        (ProgressState::Probe, pending.next())
    );
    assert!(state.paused);
}

#[test]
fn reports_about_others_change_nothing() {
    let mut peer = sending();
    let before = peer.node.status();
    for (id, outcome) in [
        (2, SnapshotOutcome::Failed),
        (2, SnapshotOutcome::Sent),
        (9, SnapshotOutcome::Failed),
    ] {
        peer.node.report_snapshot(ReplicaId(id), outcome);
    }
    assert_eq!(peer.node.status(), before);
}

#[test]
fn the_answer_to_a_snapshot_goes_straight_to_streaming() {
    let mut peer = sending();
    let ProgressState::Snapshot(pending) = progress(&peer, 3).state else {
        panic!("a snapshot is on its way");
    };
    peer.say(message(3, 1, 1, accepted(pending.0)));
    assert_eq!(progress(&peer, 3).state, ProgressState::Replicate);
}

/// Any snapshot will do that brings the follower back into the log, also an older one that somebody
/// else sent; one that ends before the log begins will not.
#[test]
fn whatever_reconnects_ends_the_wait() {
    let mut peer = sending();
    assert_eq!(
        peer.node.storage().all().first().map(|e| e.index.0),
        Some(12)
    );
    peer.say(message(3, 1, 1, accepted(10)));
    let pending = progress(&peer, 3).state;
    assert!(matches!(pending, ProgressState::Snapshot(_)), "{pending:?}");
    peer.say(message(3, 1, 1, accepted(11)));
    assert_eq!(progress(&peer, 3).state, ProgressState::Replicate);
}

#[test]
fn a_snapshot_replaces_the_log() {
    let mut peer = follower(&[1, 1, 1]);
    let sent = peer.say(message(2, 1, 2, snapshot(2, 20)));
    assert_eq!(sent, [message(1, 2, 2, accepted(20))]);
    assert_eq!((peer.committed(), peer.terms()), (20, vec![]));
    assert_eq!(peer.node.applied(), Index(20));
    let next = vec![entry(2, 21, b"x")];
    peer.say(message(2, 1, 2, append(EntryId::new(2, 20), next, 21)));
    assert_eq!(peer.applied.last().map(|e| e.index), Some(Index(21)));
}

#[test]
fn a_snapshot_that_brings_nothing_new_is_acknowledged_and_dropped() {
    let mut peer = follower(&[1, 1, 1]);
    peer.say(message(2, 1, 1, append(EntryId::new(1, 3), vec![], 3)));
    for index in [2, 3] {
        let sent = peer.say(message(2, 1, 1, snapshot(1, index)));
        assert_eq!(sent, [message(1, 2, 1, accepted(3))]);
        assert_eq!(peer.terms(), [1, 1, 1]);
    }
}

/// All of it is here already, only not known to be committed.
#[test]
fn a_snapshot_that_matches_only_moves_the_commit_index() {
    let mut peer = follower(&[1, 1, 1]);
    let sent = peer.say(message(2, 1, 1, snapshot(1, 2)));
    assert_eq!(sent, [message(1, 2, 1, accepted(2))]);
    assert_eq!((peer.committed(), peer.terms()), (2, vec![1, 1, 1]));
}

#[test]
fn a_snapshot_that_contradicts_the_log_replaces_it() {
    let mut peer = follower(&[1, 1, 1]);
    peer.say(message(2, 1, 2, snapshot(2, 2)));
    assert_eq!((peer.committed(), peer.node.last_index()), (2, Index(2)));
}

/// Until the snapshot is installed nothing is applied and nothing is answered.
#[test]
fn an_install_in_progress_holds_everything_behind_it() {
    let mut peer = follower(&[]);
    peer.node.step(message(2, 1, 2, snapshot(2, 20))).unwrap();
    let mut install = peer.node.ready().unwrap();
    assert_eq!(install.messages, []);
    let write = install.append.take().expect("the snapshot to install");
    assert!(write.must_sync());
    let tail = vec![entry(2, 21, b"x"), entry(2, 22, b"y")];
    let payload = append(EntryId::new(2, 20), tail, 22);
    peer.node.step(message(2, 1, 2, payload)).unwrap();
    let mut second = peer.node.ready().unwrap();
    assert_eq!((second.messages.len(), second.committed.len()), (0, 0));
    let behind = second.append.take().expect("the entries behind it");
    assert!(behind.snapshot().is_none(), "handed out once");
    peer.node.campaign().unwrap();
    assert_eq!(peer.role(), RoleName::Follower, "its state is not complete");

    let storage = peer.node.storage_mut();
    let image = write.snapshot().cloned().expect("a snapshot");
    storage.apply_snapshot(image).unwrap();
    storage.append(behind.entries()).unwrap();
    let (sent, token) = write.persisted(&Durable::attest());
    assert_eq!(sent, [message(1, 2, 2, accepted(20))]);
    peer.node.on_persisted(token).unwrap();
    assert_eq!(peer.node.applied(), Index(20));
    let (sent, token) = behind.persisted(&Durable::attest());
    assert_eq!(sent, [message(1, 2, 2, accepted(22))]);
    peer.node.on_persisted(token).unwrap();
    peer.settle();
    assert_eq!(peer.node.applied(), Index(22));
    assert_eq!(peer.term(), 2);
    assert_eq!(
        peer.node.storage().hard_state().term,
        Term(0),
        "left to the host"
    );
}

/// A snapshot that overtakes entries which are out to be applied.
#[test]
fn late_acknowledgements_of_what_a_snapshot_contains_are_harmless() {
    let mut peer = follower(&[1, 1, 1]);
    peer.holds_applying = true;
    peer.say(message(2, 1, 1, append(EntryId::new(1, 3), vec![], 3)));
    peer.say(message(2, 1, 1, snapshot(1, 20)));
    assert_eq!(peer.node.applied(), Index(20));
    peer.holds_applying = false;
    peer.apply_held();
    peer.settle();
    assert_eq!(peer.node.applied(), Index(20), "never back");
    let next = vec![entry(1, 21, b"x")];
    peer.say(message(2, 1, 1, append(EntryId::new(1, 20), next, 21)));
    assert_eq!(peer.node.applied(), Index(21));
}

#[test]
fn a_candidate_takes_a_snapshot_of_the_leader_of_its_term() {
    let mut peer = follower(&[1]);
    peer.campaign();
    peer.say(message(2, 1, 2, snapshot(2, 20)));
    assert_eq!((peer.role(), peer.leader()), (RoleName::Follower, 2));
    assert_eq!(peer.committed(), 20);
}

#[test]
fn a_group_goes_on_while_one_is_restored() {
    let members = conf_state(&[1, 2, 3], &[]);
    let peer = |id| Peer::new(config(id), bootstrapped(members.clone()));
    let mut group = Cluster::of([peer(1), peer(2), peer(3)]);
    group.campaign(1);
    group.isolate(3);
    for _ in 0..10 {
        group.propose(1, b"x").unwrap();
    }
    group.peer(1).truncate();
    group.heal();
    group.tick(1, 1);
    for _ in 0..3 {
        group.propose(1, b"y").unwrap();
    }
    group.tick(1, 1);
    let leader = group.peer(1).node.committed();
    assert_eq!(group.peer(3).node.applied(), leader);
    assert_eq!(progress(group.peer(1), 3).state, ProgressState::Replicate);
}
