//! What a cluster does while nothing goes wrong, and after crashes.

use polyraft_core::{ConfChangeKind, Transition};
use polyraft_multiraft::{GroupId, Reject, StoreId};

use crate::cluster::Cluster;
use crate::history::Answer;

#[test]
fn fifty_groups_elect_and_commit() {
    let mut cluster = Cluster::new(1, 3, |_| {});
    for group in 1..=50 {
        cluster.create(group, &[1, 2, 3]);
    }
    cluster.elect();
    for _ in 0..4 {
        for group in 1..=50 {
            cluster.write(GroupId(group)).expect("it has a leader");
        }
        cluster.ticks(2);
    }
    cluster.settle_and_check();
    let summary = cluster.history.summary();
    assert_eq!((summary.written, summary.refused), (250, 0), "{summary:?}");
}

#[test]
fn a_follower_names_the_leader() {
    let mut cluster = Cluster::new(2, 3, |_| {});
    cluster.create(1, &[1, 2, 3]);
    cluster.elect();
    cluster.written(GroupId(1));
    let leader = cluster.leader(GroupId(1)).expect("it has a leader");
    let other = StoreId(1 + leader.0 % 3);
    let handle = cluster.handle(other.0);
    let id = cluster.history.write(&handle, GroupId(1));
    let history = cluster.history.clone();
    cluster.until("an answer", 10, |_| history.answer(id).is_some());
    match history.answer(id) {
        Some(Answer::Rejected(Reject::NotLeader { leader: Some(hint) })) => {
            assert_eq!(hint.store, leader);
        }
        other => panic!("{other:?}"),
    }
    cluster.settle_and_check();
}

#[test]
fn a_leader_that_crashes_loses_nothing_acknowledged() {
    for seed in 0..20 {
        let mut cluster = Cluster::new(seed, 3, |_| {});
        for group in 1..=4 {
            cluster.create(group, &[1, 2, 3]);
        }
        cluster.elect();
        for round in 0..6 {
            for group in 1..=4 {
                cluster.write(GroupId(group));
                cluster.write(GroupId(group));
            }
            let steps = cluster.rng.below(8);
            for _ in 0..steps {
                cluster.step();
            }
            let leader = cluster.leader(GroupId(1)).expect("it has a leader");
            cluster.crash(leader, round % 2 == 0);
            cluster.elect();
            cluster.start(leader);
        }
        cluster.settle_and_check();
    }
}

#[test]
fn a_leader_that_is_cut_off_serves_no_reads() {
    let mut cluster = Cluster::new(3, 3, |_| {});
    cluster.create(1, &[1, 2, 3]);
    cluster.elect();
    cluster.written(GroupId(1));
    let old = cluster.leader(GroupId(1)).expect("it has a leader");
    let history = cluster.history.clone();
    let read = |cluster: &Cluster| {
        let node = &cluster.nodes[&old];
        let handle = node.handle().expect("it runs");
        history.read(&handle, &node.data, GroupId(1))
    };
    let before = read(&cluster);
    cluster.until("an answer", 50, |_| history.answer(before).is_some());
    assert!(matches!(history.answer(before), Some(Answer::Read(_))));
    let others: Vec<StoreId> = (1..=3).map(StoreId).filter(|other| *other != old).collect();
    for other in &others {
        cluster.set_cut(old, *other, true);
    }
    let during = read(&cluster);
    cluster.until("the others have a leader", 100, |cluster| {
        cluster.leader(GroupId(1)) != Some(old)
    });
    cluster.written(GroupId(1));
    let after = read(&cluster);
    cluster.ticks(50);
    for id in [during, after] {
        let answer = history.answer(id);
        assert!(matches!(answer, Some(Answer::Rejected(_))), "{answer:?}");
    }
    for other in &others {
        cluster.set_cut(old, *other, false);
    }
    cluster.settle_and_check();
}

#[test]
fn idle_groups_sleep_and_wake() {
    sleep_and_wake(10);
}

/// The leader's last heartbeat is the first that tells of its last commit.
#[test]
fn groups_sleep_that_hear_at_once_that_they_may() {
    sleep_and_wake(1);
}

fn sleep_and_wake(sleep_after_ticks: u32) {
    let mut cluster = Cluster::new(4, 3, |config| config.sleep_after_ticks = sleep_after_ticks);
    for group in 1..=20 {
        cluster.create(group, &[1, 2, 3]);
    }
    cluster.settle_and_check();
    let asleep = |cluster: &Cluster| {
        let stats = (1..=3).map(|store| cluster.handle(store).stats().asleep);
        stats.sum::<u64>()
    };
    cluster.until("all replicas sleep", 200, |cluster| asleep(cluster) == 60);
    let said = cluster.network.messages();
    cluster.ticks(500);
    assert_eq!(cluster.network.messages(), said, "they say nothing");
    assert_eq!(asleep(&cluster), 60);
    cluster.written(GroupId(7));
    assert!(asleep(&cluster) >= 57, "the others sleep on");
    cluster.until("it sleeps again", 200, |cluster| asleep(cluster) == 60);
    // News of a store wakes those that it leads, and they find a leader without anybody asking.
    let gone = cluster.leader(GroupId(1)).expect("it has a leader");
    cluster.crash(gone, false);
    cluster.elect();
    cluster.start(gone);
    cluster.settle_and_check();
    cluster.until("all replicas sleep", 300, |cluster| asleep(cluster) == 60);
}

/// A learner has the last entry, and missed both the news that it is committed and the call to sleep.
#[test]
fn a_learner_hears_of_the_last_commit_while_its_group_sleeps() {
    let mut cluster = Cluster::new(7, 3, |config| config.sleep_after_ticks = 10);
    let one = GroupId(1);
    cluster.create(1, &[1, 2]);
    cluster.elect();
    let added = cluster.change(one, &[(ConfChangeKind::AddLearner, 3)], Transition::Auto);
    assert_eq!(added.expect("it is led").members.len(), 3);
    cluster.settle_and_check();
    let applied = |cluster: &Cluster, store: StoreId| {
        let summary = cluster.handle(store.0).summary(one);
        summary.map(|summary| summary.basic.applied)
    };
    let (learner, leader) = (StoreId(3), cluster.leader(one).expect("it is led"));
    cluster.until("it has all", 100, |cluster| {
        applied(cluster, learner) == applied(cluster, leader)
    });
    let before = applied(&cluster, learner).expect("it is a member");
    cluster.write(one);
    cluster.until("the learner has it", 50, |cluster| {
        let found = cluster.nodes[&learner].log.recovered();
        found.groups.iter().any(|log| log.last.index > before)
    });
    cluster.network.set_deaf(learner, one, true);
    cluster.until("the leader sleeps", 200, |cluster| {
        let summary = cluster.handle(leader.0).summary(one);
        summary.is_some_and(|summary| summary.asleep)
    });
    cluster.ticks(5);
    assert_eq!(applied(&cluster, learner), Some(before), "it is not told");
    cluster.network.set_deaf(learner, one, false);
    cluster.until("the learner is told", 400, |cluster| {
        applied(cluster, learner) == applied(cluster, leader)
    });
    cluster.settle_and_check();
}

/// Nobody but itself could wake it.
#[test]
fn a_lone_voter_sleeps_and_comes_back() {
    let mut cluster = Cluster::new(8, 1, |config| config.sleep_after_ticks = 5);
    cluster.create(1, &[1]);
    for power in [false, true] {
        cluster.settle_and_check();
        cluster.until("it sleeps", 100, |cluster| {
            cluster.handle(1).stats().asleep == 1
        });
        cluster.crash(StoreId(1), power);
        cluster.start(StoreId(1));
    }
    cluster.settle_and_check();
}

/// A leader that sleeps is told to go; then a sleeping group gets another leader.
#[test]
fn leaders_change_in_their_sleep() {
    let mut cluster = Cluster::new(9, 3, |config| config.sleep_after_ticks = 5);
    let one = GroupId(1);
    cluster.create(1, &[1, 2, 3]);
    cluster.settle_and_check();
    let asleep = |cluster: &Cluster| {
        let stats = (1..=3).map(|store| cluster.handle(store).stats().asleep);
        stats.sum::<u64>() == 3
    };
    cluster.until("all sleep", 200, asleep);
    let old = cluster.leader(one).expect("it has a leader");
    let demoted = [(ConfChangeKind::AddLearner, old.0)];
    let demoted = cluster.change(one, &demoted, Transition::Auto);
    assert_eq!(demoted.expect("it is led").members.len(), 3);
    cluster.until("another one leads", 100, |cluster| {
        cluster.leader(one).is_some_and(|leader| leader != old)
    });
    cluster.settle_and_check();
    cluster.until("all sleep", 200, asleep);
    let leader = cluster.leader(one).expect("it has a leader");
    let other = (1..=3).map(StoreId).find(|it| ![old, leader].contains(it));
    let other = other.expect("there are three");
    let handle = cluster.handle(leader.0);
    let moved = cluster.answer(|respond| handle.transfer_leader(one, other, respond));
    assert_eq!(moved, Ok(()));
    cluster.until("it leads", 10, |cluster| cluster.leader(one) == Some(other));
    cluster.settle_and_check();
}

#[test]
fn groups_come_and_go_at_run_time() {
    let mut cluster = Cluster::new(5, 3, |_| {});
    cluster.create(1, &[1, 2, 3]);
    cluster.settle_and_check();
    cluster.create(2, &[1, 2, 3]);
    cluster.settle_and_check();
    let (group, dead) = (GroupId(2), polyraft_core::ReplicaId(u64::MAX));
    let handle = cluster.handle(1);
    let done = cluster.answer(|respond| handle.destroy_replica(group, dead, respond));
    assert_eq!(done, Ok(()));
    cluster.groups.remove(&group);
    assert_eq!(cluster.nodes[&StoreId(1)].data.data(group), None);
    // The others are told when they speak to it: it is dead for ever.
    cluster.until("the group is gone everywhere", 300, |cluster| {
        (1..=3).all(|store| cluster.handle(store).summary(group).is_none())
    });
    for power in [false, true] {
        let descriptor = Cluster::descriptor(group, &[1, 2, 3]);
        for store in 1..=3 {
            let handle = cluster.handle(store);
            let again = cluster.answer(|respond| handle.create_group(descriptor.clone(), respond));
            assert!(matches!(again, Err(Reject::Refused(_))), "{again:?}");
            cluster.crash(StoreId(store), power);
            cluster.start(StoreId(store));
        }
    }
    cluster.settle_and_check();
}
