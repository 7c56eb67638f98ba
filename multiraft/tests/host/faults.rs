//! Full disks, failed syncs, damaged groups, used-up budgets: what is hurt stops, says so, and harms nobody
//! else.

use polyraft_core::{HardState, RoleName};
use polyraft_multiraft::env::conformance::SeamFault;
use polyraft_multiraft::env::{LogBatch, LogEngine, LogSection};
use polyraft_multiraft::{BOOTSTRAP, GroupId, HostConfig, Reject, StoreId};

use crate::cluster::Cluster;
use crate::history::Answer;

const ONE: GroupId = GroupId(1);
const TWO: GroupId = GroupId(2);

fn three(seed: u64, groups: u64, adjust: impl Fn(&mut HostConfig)) -> Cluster {
    let mut cluster = Cluster::new(seed, 3, adjust);
    for group in 1..=groups {
        cluster.create(group, &[1, 2, 3]);
    }
    cluster.elect();
    for group in 1..=groups {
        cluster.written(GroupId(group));
    }
    cluster
}

fn is_full(reject: &Option<Answer>) -> bool {
    matches!(reject, Some(Answer::Rejected(Reject::DiskFull)))
}

#[test]
fn a_full_log_stops_says_so_and_goes_on() {
    let mut cluster = three(1, 2, |_| {});
    for store in 1..=3 {
        cluster.node(store).log.set_fault(Some(SeamFault::Full));
    }
    let first = cluster.write(ONE).expect("it has a leader");
    cluster.ticks(3);
    let leader = cluster.leader(ONE).expect("it has a leader");
    assert!(cluster.handle(leader.0).stats().disk_full, "it says so");
    let second = cluster.write(ONE).expect("it has a leader");
    assert!(is_full(&cluster.history.answer(second)), "refused at once");
    assert_eq!(
        cluster.history.answer(first),
        None,
        "what was taken on is neither lost nor acknowledged"
    );
    for store in 1..=3 {
        cluster.node(store).log.set_fault(None);
    }
    let history = cluster.history.clone();
    cluster.until("an answer", 100, |_| history.answer(first).is_some());
    assert_eq!(history.answer(first), Some(Answer::Written));
    assert!(!cluster.handle(leader.0).stats().disk_full);
    cluster.settle_and_check();
}

#[test]
fn a_full_state_machine_stops_says_so_and_goes_on() {
    let mut cluster = three(2, 2, |_| {});
    let leader = cluster.leader(ONE).expect("it has a leader").0;
    cluster.node(leader).data.set_fault(Some(SeamFault::Full));
    let first = cluster.write(ONE).expect("it has a leader");
    cluster.ticks(3);
    let second = cluster.write(ONE).expect("it has a leader");
    assert!(is_full(&cluster.history.answer(second)));
    assert_eq!(
        cluster.history.answer(first),
        None,
        "committed, but not applied here yet"
    );
    cluster.node(leader).data.set_fault(None);
    let history = cluster.history.clone();
    cluster.until("an answer", 100, |_| history.answer(first).is_some());
    assert_eq!(history.answer(first), Some(Answer::Written));
    cluster.settle_and_check();
}

/// Nobody writes anything while all sleep, so nobody has noticed; what wakes them must not be lost.
#[test]
fn groups_sleep_beside_a_full_disk_and_wake() {
    for count in 1..=3 {
        let mut cluster = three(9, 1, |config| config.sleep_after_ticks = 5);
        let asleep = |cluster: &Cluster| {
            let stats = (1..=3).map(|store| cluster.handle(store).stats().asleep);
            stats.sum::<u64>() == 3
        };
        cluster.settle_and_check();
        cluster.until("all sleep", 200, asleep);
        let leader = cluster.leader(ONE).expect("it has a leader").0;
        let full: Vec<u64> = (0..count).map(|at| 1 + (leader - 1 + at) % 3).collect();
        for store in &full {
            cluster.node(*store).log.set_fault(Some(SeamFault::Full));
        }
        cluster.ticks(30);
        assert!(asleep(&cluster), "a full disk is no reason to wake");
        let id = cluster.write(ONE).expect("it has a leader");
        cluster.ticks(5);
        assert!(!asleep(&cluster));
        for store in full {
            cluster.node(store).log.set_fault(None);
        }
        let history = cluster.history.clone();
        cluster.until("an answer", 200, |_| history.answer(id).is_some());
        cluster.settle_and_check();
        cluster.until("all sleep", 200, asleep);
    }
}

/// Power and all: what was acknowledged before is there, what was not is not claimed.
#[test]
fn a_failed_sync_stops_the_store_for_good() {
    let mut cluster = three(3, 4, |_| {});
    let leader = cluster.leader(ONE).expect("it has a leader");
    cluster
        .node(leader.0)
        .log
        .set_fault(Some(SeamFault::SyncFails));
    let id = cluster.write(ONE).expect("it has a leader");
    let failed = |cluster: &Cluster| cluster.nodes[&leader].fatal.is_some();
    cluster.until("the store stops", 50, failed);
    let answer = cluster.history.answer(id);
    assert!(
        matches!(
            answer,
            Some(Answer::Written | Answer::Rejected(Reject::Ambiguous))
        ),
        "the others may have decided it: {answer:?}"
    );
    cluster.elect();
    for group in 1..=4 {
        cluster.written(GroupId(group));
    }
    cluster.crash(leader, true);
    cluster.start(leader);
    cluster.settle_and_check();
}

#[test]
fn a_group_whose_data_is_damaged_is_taken_out_of_service_alone() {
    for leads in [true, false] {
        let mut cluster = three(4, 3, |_| {});
        let leader = cluster.leader(TWO).expect("it has a leader");
        let bad = if leads { leader.0 } else { 1 + leader.0 % 3 };
        cluster.node(bad).data.damage(TWO);
        let id = cluster.write(TWO).expect("it has a leader");
        cluster.ticks(10);
        let status = cluster.describe(bad, TWO).expect("it still says how it is");
        let why = status.quarantined.expect("it is out of service");
        assert!(why.contains("damaged on purpose"), "{why}");
        let answer = cluster.history.answer(id);
        if leads {
            assert_eq!(answer, Some(Answer::Rejected(Reject::Ambiguous)));
        } else {
            assert_eq!(answer, Some(Answer::Written));
        }
        let handle = cluster.handle(bad);
        let refused = cluster.history.write(&handle, TWO);
        cluster.ticks(3);
        let answer = cluster.history.answer(refused);
        assert!(
            matches!(answer, Some(Answer::Rejected(Reject::Refused(_)))),
            "{answer:?}"
        );
        // The same store serves its other groups, and the other stores this one.
        cluster.groups.remove(&TWO);
        cluster.settle_and_check();
        let others: Vec<u64> = (1..=3).filter(|store| *store != bad).collect();
        cluster.until("the others elect a leader", 200, |cluster| {
            others.iter().any(|store| {
                let summary = cluster.handle(*store).summary(TWO).expect("it is there");
                summary.basic.soft_state.role == RoleName::Leader
            })
        });
    }
}

#[test]
fn a_group_whose_log_is_damaged_is_taken_out_of_service_alone() {
    let mut cluster = three(5, 2, |config| config.entry_cache_bytes_max = 0);
    let leader = cluster.leader(ONE).expect("it has a leader");
    let behind = StoreId(1 + leader.0 % 3);
    cluster.crash(behind, false);
    for _ in 0..5 {
        cluster.written(ONE);
    }
    cluster.node(leader.0).log.damage(ONE);
    cluster.start(behind);
    cluster.until(
        "the leader reads its log, and another one takes over",
        200,
        |cluster| cluster.leader(ONE) != Some(leader),
    );
    let status = cluster.describe(leader.0, ONE).expect("it says how it is");
    assert!(status.quarantined.is_some());
    cluster.groups.remove(&ONE);
    cluster.settle_and_check();
}

/// Its disk has lost what was synced. It would vote for leaders that lack what it has acknowledged.
#[test]
fn a_replica_that_has_lost_what_it_acknowledged_is_taken_out_of_service() {
    let mut cluster = three(8, 2, |_| {});
    let leader = cluster.leader(ONE).expect("it has a leader");
    let bad = StoreId(1 + leader.0 % 3);
    // What it has applied would tell at the start how far its log must go.
    cluster.node(bad.0).data.set_fault(Some(SeamFault::Full));
    for _ in 0..5 {
        cluster.written(ONE);
    }
    cluster.ticks(10);
    cluster.crash(bad, false);
    cluster.node(bad.0).data.set_fault(None);
    let found = cluster.nodes[&bad].log.recovered();
    let mut logs = found.groups.iter();
    let log = logs.find(|log| log.group == ONE).expect("it is here");
    let applied = cluster.nodes[&bad]
        .data
        .data(ONE)
        .expect("it is here")
        .state
        .last;
    assert!(log.last.index > applied.index.max(BOOTSTRAP.index));
    let cut = LogSection {
        group: ONE,
        reset: Some(applied),
        hard_state: Some(HardState {
            commit: applied.index,
            ..log.hard_state
        }),
        ..LogSection::default()
    };
    cluster.network.stop_watching();
    let written = cluster.nodes[&bad].log.stop_watching().write(&LogBatch {
        sync: true,
        sections: vec![cut],
    });
    written.expect("there is room");
    cluster.start(bad);
    let mut why = None;
    for _ in 0..100 {
        cluster.ticks(1);
        let status = cluster.describe(bad.0, ONE).expect("it says how it is");
        why = why.or(status.quarantined);
    }
    let why = why.expect("it is out of service");
    assert!(why.contains("entries were lost"), "{why}");
    cluster.written(ONE);
    cluster.groups.remove(&ONE);
    cluster.settle_and_check();
}

#[test]
fn proposals_beyond_the_budget_are_refused() {
    let mut cluster = three(6, 1, |config| {
        config.command_bytes_max = 400;
        config.proposal_bytes_max = 2_000;
    });
    let leader = cluster.leader(ONE).expect("it has a leader");
    let handle = cluster.handle(leader.0);
    let ids: Vec<usize> = (0..20)
        .map(|_| cluster.history.write_bytes(&handle, ONE, 100))
        .collect();
    let busy = |id: &&usize| {
        let answer = cluster.history.answer(**id);
        matches!(answer, Some(Answer::Rejected(Reject::Busy(_))))
    };
    let refused = ids.iter().filter(busy).count();
    assert!((10..20).contains(&refused), "{refused} of 20, at once");
    cluster.ticks(10);
    let written = ids
        .iter()
        .filter(|id| cluster.history.answer(**id) == Some(Answer::Written));
    assert_eq!(written.count(), 20 - refused);
    let large = cluster.history.write_bytes(&handle, ONE, 1_000);
    let answer = cluster.history.answer(large);
    assert!(
        matches!(answer, Some(Answer::Rejected(Reject::TooLarge { .. }))),
        "{answer:?}"
    );
    assert_eq!(handle.stats().proposal_bytes, 0, "every share came back");
    cluster.settle_and_check();
}

#[test]
fn messages_beyond_the_budget_are_dropped_and_repaired() {
    let mut cluster = three(7, 8, |config| config.inbound_bytes_max = 700);
    cluster.pace = 30;
    for _ in 0..20 {
        for group in 1..=8 {
            cluster.write(GroupId(group));
        }
        cluster.step();
    }
    let dropped = (1..=3).map(|store| cluster.handle(store).stats().messages_dropped);
    assert!(dropped.sum::<u64>() > 0);
    cluster.pace = 100;
    cluster.settle_and_check();
    cluster.ticks(100);
    for store in 1..=3 {
        assert_eq!(cluster.handle(store).stats().inbound_bytes, 0);
    }
}
