//! Permits to read: what was read under one counts only while it holds.

use std::sync::{Arc, Mutex, PoisonError};

use polyraft_core::ReplicaId;
use polyraft_multiraft::{GroupId, HostHandle, ReadPermit, Reject, Responder, StoreId};

use crate::cluster::Cluster;

const GROUP: GroupId = GroupId(1);

/// What a request was answered, once it was.
type Answer<T> = Arc<Mutex<Option<Result<T, Reject>>>>;

fn ask<T: Send + 'static>(call: impl FnOnce(Responder<Result<T, Reject>>)) -> Answer<T> {
    let answer = Answer::default();
    let slot = Arc::clone(&answer);
    let respond = move |result| *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
    call(Responder::new(|| Err(Reject::Stopped), respond));
    answer
}

fn wait<T>(cluster: &mut Cluster, what: &str, answer: &Answer<T>) -> Result<T, Reject> {
    let taken = || answer.lock().unwrap_or_else(PoisonError::into_inner);
    cluster.until(what, 200, |_| taken().is_some());
    taken().take().expect("it was answered")
}

/// Three stores, a group with some writes, its leader, and leave to read there.
fn permitted(seed: u64) -> (Cluster, StoreId, ReadPermit) {
    let mut cluster = Cluster::new(seed, 3, |_| {});
    cluster.create(1, &[1, 2, 3]);
    cluster.elect();
    for _ in 0..5 {
        cluster.written(GROUP);
    }
    let leader = cluster.leader(GROUP).expect("it has a leader");
    let permit = permit(&mut cluster, leader);
    (cluster, leader, permit)
}

fn permit(cluster: &mut Cluster, leader: StoreId) -> ReadPermit {
    let handle = cluster.handle(leader.0);
    let permit = ask(|respond| handle.read(GROUP, respond));
    wait(cluster, "a permit", &permit).expect("the leader may read")
}

#[test]
fn a_permit_holds_while_nothing_happens_to_the_replica() {
    let (mut cluster, leader, permit) = permitted(1);
    let handle = cluster.handle(leader.0);
    assert!(permit.still_holds(&handle));
    cluster.written(GROUP);
    cluster.ticks(50);
    assert!(
        permit.still_holds(&handle),
        "more writes and time change nothing"
    );
    for other in (1..=3).map(StoreId).filter(|other| *other != leader) {
        assert!(!permit.still_holds(&cluster.handle(other.0)));
    }
    cluster.settle_and_check();
}

/// The data of a replica that was moved away is gone: every key would seem absent.
#[test]
fn a_permit_ends_before_the_data_of_a_removed_replica_goes() {
    let (mut cluster, leader, permit) = permitted(2);
    let handle = cluster.handle(leader.0);
    let data = cluster.nodes[&leader].data.clone();
    let gone = ask(|respond| handle.destroy_replica(GROUP, ReplicaId(9), respond));
    let holds_without_data = || data.data(GROUP).is_none() && permit.still_holds(&handle);
    for _ in 0..200 {
        cluster.step();
        assert!(!holds_without_data());
    }
    wait(&mut cluster, "the end of the replica", &gone).expect("it can be destroyed");
    assert!(data.data(GROUP).is_none(), "a reader would find nothing");
    assert!(!permit.still_holds(&handle));
    cluster.elect();
}

/// Who lost leadership and has it again may have been fed by snapshot between the two.
#[test]
fn a_permit_ends_with_the_leadership_and_does_not_come_back() {
    let (mut cluster, leader, old) = permitted(3);
    let other = StoreId(1 + leader.0 % 3);
    let transfer = |cluster: &mut Cluster, from: StoreId, to: StoreId| {
        let handle: HostHandle = cluster.handle(from.0);
        let moved = ask(|respond| handle.transfer_leader(GROUP, to, respond));
        wait(cluster, "a transfer", &moved).expect("all are well");
        cluster.until("a new leader", 200, |cluster| {
            cluster.leader(GROUP) == Some(to)
        });
    };
    transfer(&mut cluster, leader, other);
    assert!(!old.still_holds(&cluster.handle(leader.0)));
    transfer(&mut cluster, other, leader);
    cluster.written(GROUP);
    assert!(
        !old.still_holds(&cluster.handle(leader.0)),
        "it is another term"
    );
    let new = permit(&mut cluster, leader);
    assert!(new.still_holds(&cluster.handle(leader.0)));
    assert_eq!(new.replica, old.replica);
    cluster.settle_and_check();
}

/// Keys that a split gave away may be another store's by the time they are read here.
#[test]
fn a_permit_ends_when_the_range_changes() {
    let mut cluster = Cluster::new(4, 3, |_| {});
    cluster.create_ranged(1, &[1, 2, 3]);
    cluster.elect();
    cluster.written(GROUP);
    let leader = cluster.leader(GROUP).expect("it has a leader");
    let old = permit(&mut cluster, leader);
    assert!(old.still_holds(&cluster.handle(leader.0)));
    cluster.split(GROUP, &[(100, 101)]).expect("it is possible");
    assert_eq!(cluster.leader(GROUP), Some(leader));
    assert!(
        !old.still_holds(&cluster.handle(leader.0)),
        "it leads on, with another range"
    );
    let new = permit(&mut cluster, leader);
    assert!(new.still_holds(&cluster.handle(leader.0)));
    assert!(new.descriptor.epoch.range > old.descriptor.epoch.range);
    cluster.settle_and_check();
}
