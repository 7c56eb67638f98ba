//! Moving leadership on purpose: to whom it goes, what it waits for, and how it ends without success.

mod common;

use common::{
    Cluster, ELECTION, Peer, accepted, bootstrapped, conf_state, config, message, storage,
};
use polyraft_core::{
    ConfChangeKind, ConfChangeV2, EntryId, Event, Message, MessageKind, Payload, ReplicaId,
    RoleName, SnapshotOutcome, Transition,
};

fn group() -> Cluster {
    let mut group = Cluster::new(3);
    group.campaign(1);
    group
}

fn transfer(group: &mut Cluster, by: u64, to: u64) {
    group
        .peer(by)
        .node
        .transfer_leader(ReplicaId(to))
        .expect("asked for");
    group.settle();
}

fn target(peer: &Peer) -> u64 {
    peer.node.basic_status().transfer_target.0
}

fn told(messages: &[Message]) -> Vec<u64> {
    let told = messages.iter().filter(|m| m.payload == Payload::TimeoutNow);
    told.map(|m| m.to.0).collect()
}

/// A leader of term 1 whose followers have acknowledged nothing.
fn leader() -> Peer {
    let mut peer = Peer::new(config(1), storage(conf_state(&[1, 2, 3], &[]), &[]));
    peer.lead(&[2]);
    peer
}

fn ask(peer: &mut Peer, to: u64) -> Vec<Message> {
    peer.node.transfer_leader(ReplicaId(to)).expect("asked for");
    peer.settle()
}

#[test]
fn who_is_up_to_date_takes_over_at_once() {
    let mut group = group();
    transfer(&mut group, 1, 3);
    assert_eq!(group.leader(), Some(3));
    assert_eq!(group.peer(1).role(), RoleName::Follower);
    assert_eq!(target(group.peer(1)), 0);
    group.propose(3, b"x").unwrap();
    group.assert_agreed();
}

#[test]
fn a_follower_can_ask_for_it() {
    let mut group = group();
    transfer(&mut group, 2, 2);
    assert_eq!(group.leader(), Some(2));
    transfer(&mut group, 1, 3);
    assert_eq!(group.leader(), Some(3), "also for another");
}

#[test]
fn a_follower_without_a_leader_asks_nobody() {
    let mut peer = Peer::new(config(2), storage(conf_state(&[1, 2, 3], &[]), &[]));
    assert_eq!(ask(&mut peer, 2), []);
    let wish = message(3, 2, 0, Payload::TransferLeader);
    assert!(peer.node.step(wish).is_err(), "a wish has a term");
}

#[test]
fn a_slow_follower_catches_up_first() {
    let mut group = group();
    group.isolate(3);
    group.propose(1, b"missed").unwrap();
    group.heal();
    transfer(&mut group, 1, 3);
    // The append that the leader sends at once finds it, whatever was lost before.
    group.tick(1, 1);
    assert_eq!(group.leader(), Some(3));
    group.assert_agreed();
}

#[test]
fn it_goes_on_when_the_last_entry_is_acknowledged_and_not_before() {
    let mut peer = leader();
    peer.say(message(2, 1, 1, accepted(1)));
    peer.propose(b"x").unwrap();
    peer.settle();
    assert_eq!(told(&ask(&mut peer, 2)), [0u64; 0]);
    assert_eq!(told(&peer.say(message(3, 1, 1, accepted(2)))), [0u64; 0]);
    assert_eq!(told(&peer.say(message(2, 1, 1, accepted(2)))), [2]);
}

#[test]
fn a_follower_behind_the_truncated_part_gets_a_snapshot_first() {
    let members = conf_state(&[1, 2, 3], &[]);
    let peer = |id| Peer::new(config(id), bootstrapped(members.clone()));
    let mut group = Cluster::of([peer(1), peer(2), peer(3)]);
    group.campaign(1);
    group.isolate(3);
    for value in [b"a", b"b", b"c"] {
        group.propose(1, value).unwrap();
    }
    group.peer(1).truncate();
    group.heal();
    group.lose(MessageKind::Snapshot);
    group.tick(1, 1);
    transfer(&mut group, 1, 3);
    assert_eq!((group.leader(), target(group.peer(1))), (Some(1), 3));
    group.heal();
    let node = &mut group.peer(1).node;
    node.report_snapshot(ReplicaId(3), SnapshotOutcome::Failed);
    group.tick(1, 1);
    assert_eq!(group.leader(), Some(3));
}

#[test]
fn only_voters_can_be_told_to_lead() {
    let members = conf_state(&[1, 2], &[3]);
    let mut peer = Peer::new(config(1), bootstrapped(members));
    peer.lead(&[2]);
    for to in [1, 3, 9] {
        assert_eq!(ask(&mut peer, to), [], "to {to}");
        assert_eq!(target(&peer), 0);
    }
    assert!(peer.propose(b"x").is_ok());
}

/// Somebody who is told to lead without being a voter (any more) does not campaign.
#[test]
fn who_is_no_voter_does_not_obey() {
    for members in [conf_state(&[2, 3], &[]), conf_state(&[2, 3], &[1])] {
        let mut peer = Peer::new(config(1), bootstrapped(members));
        peer.say(message(2, 1, 1, Payload::TimeoutNow));
        assert_eq!(peer.role(), RoleName::Follower);
        assert!(peer.events.contains(&Event::Unpromotable));
    }
}

#[test]
fn an_election_timeout_ends_it() {
    let mut group = group();
    group.isolate(3);
    transfer(&mut group, 1, 3);
    assert_eq!(target(group.peer(1)), 3);
    assert!(group.propose(1, b"refused").is_err());
    group.tick(1, ELECTION - 1);
    assert_eq!(target(group.peer(1)), 3);
    group.tick(1, 1);
    assert_eq!(target(group.peer(1)), 0);
    assert_eq!(group.leader(), Some(1));
    group.propose(1, b"taken").unwrap();
}

#[test]
fn the_same_wish_twice_does_not_prolong_it() {
    let mut group = group();
    group.isolate(3);
    transfer(&mut group, 1, 3);
    group.tick(1, ELECTION - 1);
    transfer(&mut group, 1, 3);
    group.tick(1, 1);
    assert_eq!(target(group.peer(1)), 0);
}

#[test]
fn a_second_target_replaces_the_first() {
    let mut group = group();
    group.isolate(3);
    transfer(&mut group, 1, 3);
    transfer(&mut group, 1, 2);
    assert_eq!(group.leader(), Some(2));
}

#[test]
fn a_transfer_to_the_leader_itself_calls_it_off() {
    let mut group = group();
    group.isolate(3);
    transfer(&mut group, 1, 3);
    transfer(&mut group, 1, 1);
    assert_eq!(target(group.peer(1)), 0);
    group.propose(1, b"x").unwrap();
}

#[test]
fn a_later_term_ends_it() {
    let mut group = group();
    group.isolate(3);
    transfer(&mut group, 1, 3);
    let last = EntryId::new(1, 1);
    let (pre, transfer) = (false, false);
    let payload = Payload::Vote {
        pre,
        last,
        transfer,
    };
    group.send(message(2, 1, 2, payload));
    assert_eq!(group.peer(1).role(), RoleName::Follower);
    assert_eq!(target(group.peer(1)), 0);
}

/// A transfer drops all proposals, also the one that leaves a joint configuration. When it ends without
/// success, and nothing else is ever applied, the leader must still leave.
#[test]
fn a_transfer_that_fails_does_not_leave_the_group_joint() {
    let mut group = group();
    group.peer(1).holds_applying = true;
    let change = ConfChangeV2 {
        transition: Transition::JointImplicit,
        changes: vec![(ConfChangeKind::AddLearner, ReplicaId(4))],
        ..ConfChangeV2::default()
    };
    group.change(1, &change).unwrap();
    group.isolate(3);
    transfer(&mut group, 1, 3);
    group.peer(1).holds_applying = false;
    group.peer(1).apply_held();
    group.settle();
    assert!(group.peer(1).conf_state().is_joint());
    group.tick(1, ELECTION);
    assert_eq!(target(group.peer(1)), 0);
    assert!(!group.peer(1).conf_state().is_joint());
    assert!(!group.peer(2).conf_state().is_joint());
}
