//! Groups merge while something else happens: requests, transfers, full disks, snapshots, changes of
//! members, merges of their neighbours.

use polyraft_core::{ConfChangeKind, RoleName, Transition};
use polyraft_multiraft::env::conformance::SeamFault;
use polyraft_multiraft::{GroupId, MergeFailure, MergeStep, Merging, StoreId};

use crate::cluster::{Cluster, Promise};
use crate::merges::{
    Driver, LEFT, RIGHT, check_gone, driver, finish, neighbours, unite, unite_at, until_merge,
};

/// The disks of all but the leader's store have no room for the merge for a while.
#[test]
fn a_merge_waits_for_room() {
    for count in 1..=2 {
        let mut cluster = neighbours(7, |_| {});
        let leader = cluster.leader(LEFT).expect("it has a leader").0;
        let full: Vec<u64> = (0..count).map(|at| 1 + (leader + at) % 3).collect();
        let mut driver = driver(&cluster);
        until_merge(&mut cluster, &mut driver);
        for store in &full {
            cluster.node(*store).data.set_fault(Some(SeamFault::Full));
        }
        unite(&mut cluster, &mut driver);
        cluster.ticks(50);
        for store in full {
            assert!(cluster.nodes[&StoreId(store)].data.data(RIGHT).is_some());
            cluster.node(store).data.set_fault(None);
        }
        check_gone(&mut cluster);
    }
}

/// One store has room for the logs only, while a neighbour is merged into the right one and that into
/// the left one; then it does the same, one after the other.
#[test]
fn who_has_two_merges_before_it_makes_them_in_turn() {
    for seed in 0..6u64 {
        let mut cluster = neighbours(seed, |config| {
            config.workers = 1 + (seed % 2) as usize;
            config.appliers = 1 + (seed / 2 % 2) as usize;
            config.truncate_keep_entries = 100;
        });
        let third = GroupId(102);
        cluster.split(RIGHT, &[(160, 102)]).expect("it is possible");
        cluster.settle_and_check();
        // Who leads must be able to apply.
        let late = StoreId(1 + seed % 3);
        let other = StoreId(1 + late.0 % 3);
        for group in [LEFT, RIGHT, third] {
            if cluster.leader(group) == Some(late) {
                let handle = cluster.handle(late.0);
                let moved = cluster.answer(|it| handle.transfer_leader(group, other, it));
                assert_eq!(moved, Ok(()));
                cluster.until("another one leads", 50, |cluster| {
                    cluster.leader(group) == Some(other)
                });
            }
        }
        cluster.node(late.0).data.set_fault(Some(SeamFault::Full));
        let merging = Merging::new(RIGHT, third, vec![1, 160].into());
        unite_at(&mut cluster, &mut Driver::new(merging), RIGHT, &[1, 160]);
        let mut second = driver(&cluster);
        unite_at(&mut cluster, &mut second, LEFT, &[1, 160]);
        let here = |cluster: &Cluster, group| cluster.nodes[&late].data.data(group).is_some();
        assert!(here(&cluster, RIGHT) && here(&cluster, third));
        if seed % 2 == 0 {
            cluster.crash(late, seed % 4 == 0);
            cluster.node(late.0).data.set_fault(None);
            cluster.start(late);
        }
        cluster.node(late.0).data.set_fault(None);
        cluster.groups.remove(&third);
        check_gone(&mut cluster);
        assert!(cluster.is_gone(third));
        assert_eq!(cluster.handle(late.0).stats().snapshots_installed, 0);
    }
}

/// Its log is behind what the others have truncated, so it cannot have the freeze before a snapshot.
#[test]
fn a_merge_waits_for_a_member_that_needs_a_snapshot_first() {
    let mut cluster = neighbours(8, |config| config.truncate_keep_entries = 0);
    let leader = cluster.leader(RIGHT).expect("it has a leader").0;
    let away = 1 + leader % 3;
    cluster.network.set_deaf(StoreId(away), RIGHT, true);
    for _ in 0..5 {
        cluster.written(RIGHT);
    }
    for store in (1..=3).filter(|store| *store != away) {
        cluster.node(store).flush();
    }
    cluster.ticks(5);
    let mut driver = driver(&cluster);
    for _ in 0..400 {
        driver.drive(&cluster);
        cluster.step();
    }
    assert!(driver.done.is_none(), "{:?}", driver.done);
    let right = cluster.handle(leader).descriptor(RIGHT);
    assert!(right.is_some_and(|right| right.frozen.is_some()));
    cluster.network.set_deaf(StoreId(away), RIGHT, false);
    assert!(finish(&mut cluster, &mut driver).is_ok());
    assert!(cluster.handle(away).stats().snapshots_installed > 0);
    check_gone(&mut cluster);
}

/// Requests of every kind reach both groups before, while and after they merge; their leaders change and
/// their logs are truncated. Each is answered, and truly.
#[test]
fn a_merge_amid_everything() {
    for seed in 0..30u64 {
        let mut cluster = neighbours(seed, |config| {
            config.workers = 1 + (seed % 2) as usize;
            config.truncate_keep_entries = seed % 3 * 4;
        });
        cluster.pace = 50;
        let mut driver = driver(&cluster);
        let (mut step, start) = (0, seed % 20 * 6);
        while driver.done.is_none() {
            assert!(step < 4_000, "seed {seed}: {:?}", driver.merging);
            driver.drive(&cluster);
            for group in [LEFT, RIGHT] {
                let store = cluster.leader(group).unwrap_or(StoreId(1));
                let node = &cluster.nodes[&store];
                let handle = node.handle().expect("all run");
                let summary = handle.summary(group);
                let leads = summary.is_some_and(|it| it.basic.soft_state.role == RoleName::Leader);
                if step % 3 == 0 {
                    cluster.history.write(&handle, group);
                    cluster.history.read(&handle, &node.data, group);
                }
                if leads && (start..start + 40).contains(&step) && step % 13 == 0 {
                    let (_unheard, respond) = Promise::new();
                    handle.transfer_leader(group, StoreId(1 + store.0 % 3), respond);
                }
            }
            if step % 7 == seed % 7 {
                cluster.node(1 + step % 3).flush();
            }
            cluster.step();
            step += 1;
        }
        assert!(
            driver.done.take().is_some_and(|done| done.is_ok()),
            "seed {seed}"
        );
        for _ in 0..20 {
            for store in 1..=3 {
                let handle = cluster.handle(store);
                cluster.history.write(&handle, RIGHT);
                let data = cluster.nodes[&StoreId(store)].data.clone();
                cluster.history.read(&handle, &data, RIGHT);
            }
            cluster.step();
        }
        cluster.pace = 100;
        check_gone(&mut cluster);
    }
}

/// The left one's members change when the right one is frozen already: the two do not merge, and the
/// right one serves again.
#[test]
fn a_left_one_whose_members_change_is_not_merged_into() {
    let mut cluster = neighbours(9, |_| {});
    let mut driver = driver(&cluster);
    while !matches!(driver.merging.next(), MergeStep::Settle { .. }) {
        driver.drive(&cluster);
        cluster.step();
    }
    let leader = cluster.leader(LEFT).expect("it has a leader").0;
    let removed = 1 + leader % 3;
    let changed = cluster.change(LEFT, &[(ConfChangeKind::Remove, removed)], Transition::Auto);
    changed.expect("it is not frozen");
    let done = finish(&mut cluster, &mut driver);
    let differ = MergeFailure::Members {
        left: Vec::new(),
        right: vec![removed],
    };
    assert_eq!(done, Err(differ));
    for group in [LEFT, RIGHT] {
        cluster.written(group);
    }
    cluster.settle_and_check();
}

/// What is here of a group that was merged stays for the left neighbour. It goes when that has come by
/// a snapshot from behind the merge and a split at the same key: its keys are a group's that is not here.
#[test]
fn what_is_left_of_a_merged_group_goes_when_nobody_needs_it() {
    for seed in 0..4 {
        let mut cluster = neighbours(seed, |config| {
            config.workers = 1 + (seed % 2) as usize;
            config.truncate_keep_entries = 0;
        });
        let leader = cluster.leader(LEFT).expect("it has a leader").0;
        let away = StoreId(1 + leader % 3);
        let mut driver = driver(&cluster);
        until_merge(&mut cluster, &mut driver);
        cluster.crash(away, seed % 4 < 2);
        unite(&mut cluster, &mut driver);
        cluster.groups.remove(&RIGHT);
        let third = GroupId(103);
        cluster.split(LEFT, &[(100, 103)]).expect("it is possible");
        cluster.elect();
        let gone = [(ConfChangeKind::Remove, away.0)];
        let removed = cluster.change(third, &gone, Transition::Auto);
        removed.expect("it is led");
        for _ in 0..5 {
            cluster.written(LEFT);
        }
        for store in 1..=3 {
            cluster.node(store).flush();
        }
        cluster.ticks(5);
        cluster.start(away);
        assert!(cluster.handle(away.0).summary(RIGHT).is_some());
        check_gone(&mut cluster);
        assert!(cluster.handle(away.0).summary(third).is_none());
    }
}
