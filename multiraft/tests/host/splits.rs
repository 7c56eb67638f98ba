//! Groups split: whatever comes first, is late, goes down or is asked for meanwhile.

use polyraft_core::{ConfChangeKind, ProgressState, ReplicaId, Transition};
use polyraft_multiraft::env::conformance::SeamFault;
use polyraft_multiraft::{BOOTSTRAP, GroupId, HostConfig, RangeCommand, Reject, StoreId};

use crate::cluster::{Cluster, Promise};
use crate::history::Answer;
use crate::network::Weather;

const LEFT: GroupId = GroupId(1);
const RIGHT: GroupId = GroupId(101);

/// Three stores with a group of keys, some of them written.
fn three(seed: u64, adjust: impl Fn(&mut HostConfig)) -> Cluster {
    let mut cluster = Cluster::new(seed, 3, adjust);
    cluster.create_ranged(1, &[1, 2, 3]);
    cluster.elect();
    for _ in 0..10 {
        cluster.written(LEFT);
    }
    cluster
}

/// The leader of a group and one that follows.
fn roles(cluster: &Cluster, group: GroupId) -> (u64, u64) {
    let leader = cluster.leader(group).expect("it has a leader").0;
    (leader, 1 + leader % 3)
}

fn is_here(cluster: &Cluster, store: u64, group: GroupId) -> bool {
    let summary = cluster.nodes[&StoreId(store)].handle();
    summary.is_some_and(|handle| handle.summary(group).is_some())
}

#[test]
fn both_halves_serve_and_the_right_one_at_once() {
    let mut cluster = three(1, |_| {});
    let (leader, _) = roles(&cluster, LEFT);
    let before = cluster.handle(leader).descriptor(LEFT).expect("it is here");
    let groups = cluster.split(LEFT, &[(100, 101)]).expect("it is possible");
    let numbers: Vec<_> = groups.iter().map(|it| it.group).collect();
    assert_eq!(numbers, [LEFT, RIGHT]);
    for after in &groups {
        assert_eq!(after.epoch.range, before.epoch.range + 1);
        assert_eq!(after.members, before.members);
        assert_eq!(after.next_replica, before.next_replica);
    }
    let ranges: Vec<_> = groups.iter().map(|it| it.range.clone()).collect();
    let [Some(left), Some(right)] = &ranges[..] else {
        panic!("{ranges:?}");
    };
    assert_eq!(left.end.as_ref(), Some(&right.start));
    let published = cluster.handle(leader).descriptor(LEFT).expect("it is here");
    assert_eq!(*published, groups[0], "who is answered can see it");
    // Much less than an election timeout.
    cluster.until("the right one is led where the left one is", 6, |cluster| {
        cluster.leader(RIGHT) == Some(StoreId(leader))
    });
    let handle = cluster.handle(leader);
    let late = cluster.answer(|respond| {
        let key = crate::machine::put(b"\x01\xff", b"late");
        handle.propose_if(LEFT, before.epoch.range, key, respond);
    });
    match late {
        Err(Reject::RangeChanged { current }) => assert_eq!(*current, groups[0]),
        other => panic!("{other:?}"),
    }
    let again = cluster.answer(|respond| {
        handle.split(LEFT, before.epoch, Vec::new(), respond);
    });
    let current = groups[0].epoch;
    assert_eq!(again.err(), Some(Reject::StaleEpoch { current }));
    cluster.settle_and_check();
    assert!(
        !cluster.nodes[&StoreId(1)]
            .data
            .data(RIGHT)
            .expect("it is here")
            .keys
            .is_empty()
    );
}

#[test]
fn one_group_becomes_many() {
    let mut cluster = three(2, |config| {
        config.workers = 2;
        config.appliers = 3;
    });
    let pieces: Vec<(u8, u64)> = (1..=8).map(|at| (at * 25, 100 + u64::from(at))).collect();
    let groups = cluster.split(LEFT, &pieces).expect("it is possible");
    assert_eq!(groups.len(), 9);
    cluster.settle_and_check();
    // And those again, before anything of it is durable.
    for node in cluster.nodes.values_mut() {
        node.never_flushes = true;
    }
    let first = cluster.split(LEFT, &[(10, 201)]).expect("it is possible");
    let second = cluster.split(LEFT, &[(5, 202)]).expect("it is possible");
    assert_eq!(second[0].epoch.range, first[0].epoch.range + 1);
    for node in cluster.nodes.values_mut() {
        node.never_flushes = false;
    }
    cluster.settle_and_check();
}

#[test]
fn a_split_that_makes_no_sense_is_refused() {
    let mut cluster = three(3, |_| {});
    for pieces in [
        &[][..],
        &[(50, 1)],
        &[(50, 101), (50, 102)],
        &[(60, 101), (50, 102)],
        &[(60, 101), (70, 101)],
    ] {
        let refused = cluster.split(LEFT, pieces);
        assert!(matches!(refused, Err(Reject::Refused(_))), "{refused:?}");
    }
    cluster.create(2, &[1, 2, 3]);
    let used = cluster.split(LEFT, &[(50, 2)]);
    assert!(matches!(used, Err(Reject::Refused(_))), "{used:?}");
    cluster.elect();
    let (leader, other) = roles(&cluster, GroupId(2));
    let epoch = polyraft_multiraft::Epoch::default();
    for (store, group) in [(leader, 2), (other, 2), (leader, 9)] {
        let handle = cluster.handle(store);
        let piece = polyraft_multiraft::SplitPiece {
            start: vec![1, 1].into(),
            group: GroupId(77),
        };
        let refused = cluster.answer(|respond| {
            handle.split(GroupId(group), epoch, vec![piece], respond);
        });
        assert!(refused.is_err(), "{refused:?}");
    }
    cluster.settle_and_check();
}

/// At every moment of a split, on whichever store, with the power or without.
#[test]
fn a_store_that_goes_down_during_a_split_has_all_of_it_or_nothing() {
    for seed in 0..90 {
        let mut cluster = three(seed, |config| {
            config.workers = 1 + (seed % 2) as usize;
            config.appliers = 1 + (seed / 2 % 2) as usize;
            config.truncate_keep_entries = 2;
        });
        let (leader, follower) = roles(&cluster, LEFT);
        cluster.pace = 60;
        let (promise, respond) = Promise::new();
        cluster.ask_to_split(LEFT, &[(100, 101)], respond);
        for _ in 0..4 {
            cluster.write(LEFT);
        }
        for _ in 0..seed % 45 {
            cluster.step();
        }
        let store = StoreId(if seed % 3 == 0 { leader } else { follower });
        cluster.crash(store, seed % 2 == 0);
        if seed % 5 == 0 {
            cluster.ticks(20);
        }
        cluster.start(store);
        cluster.pace = 100;
        cluster.until("an answer", 400, |_| promise.is_kept());
        let answer = promise.take().expect("it is there");
        assert!(
            matches!(
                answer,
                Ok(_) | Err(Reject::Ambiguous | Reject::NotLeader { .. })
            ),
            "{answer:?}"
        );
        cluster.settle();
        if cluster
            .nodes
            .values()
            .any(|node| node.data.data(RIGHT).is_some())
        {
            cluster.groups.insert(RIGHT);
        } else {
            assert!(answer.is_err());
        }
        cluster.settle_and_check();
    }
}

/// The right one's data is durable, its record is not.
#[test]
fn a_birth_that_was_cut_short_is_finished() {
    let mut cluster = three(4, |_| {});
    let (_, follower) = roles(&cluster, LEFT);
    cluster.node(follower).never_flushes = true;
    cluster.split(LEFT, &[(100, 101)]).expect("it is possible");
    cluster.until("the follower has split", 50, |cluster| {
        cluster.nodes[&StoreId(follower)].data.data(RIGHT).is_some()
    });
    cluster.ticks(20);
    let registered = |cluster: &Cluster| {
        let found = cluster.nodes[&StoreId(follower)].log.recovered();
        found.groups.iter().any(|replica| replica.group == RIGHT)
    };
    let heard_before = registered(&cluster);
    cluster.node(follower).log.set_fault(Some(SeamFault::Full));
    cluster.node(follower).flush();
    for _ in 0..3 {
        cluster.step();
    }
    assert_eq!(registered(&cluster), heard_before);
    cluster.crash(StoreId(follower), true);
    let data = cluster.nodes[&StoreId(follower)].data.data(RIGHT);
    assert_eq!(data.expect("it was flushed").state.last, BOOTSTRAP);
    cluster.node(follower).log.set_fault(None);
    cluster.node(follower).never_flushes = false;
    cluster.start(StoreId(follower));
    let summary = cluster.handle(follower).summary(RIGHT);
    assert_eq!(summary.map(|it| it.replica), Some(ReplicaId(follower)));
    assert_eq!(cluster.handle(follower).stats().snapshots_installed, 0);
    cluster.settle_and_check();
    assert_eq!(cluster.handle(follower).stats().snapshots_installed, 0);
}

/// Its own split comes long after the right one has a leader, votes, entries and a truncated log.
#[test]
fn who_splits_late_has_a_right_one_that_waits() {
    for seed in 0..10 {
        let mut cluster = three(seed, |config| {
            config.workers = 1 + (seed % 2) as usize;
            config.truncate_keep_entries = 0;
        });
        let (leader, late) = roles(&cluster, LEFT);
        cluster.node(late).data.set_fault(Some(SeamFault::Full));
        cluster.split(LEFT, &[(100, 101)]).expect("it is possible");
        cluster.elect();
        for _ in 0..5 {
            cluster.written(RIGHT);
        }
        cluster.until("it has heard of the right one", 50, |cluster| {
            is_here(cluster, late, RIGHT)
        });
        for store in [leader, 6 - leader - late] {
            cluster.node(store).flush();
        }
        cluster.ticks(30);
        assert_eq!(cluster.nodes[&StoreId(late)].data.data(RIGHT), None);
        let waiting = cluster.handle(late).summary(RIGHT).expect("it waits");
        let (term, vote) = {
            let state = waiting.basic.hard_state;
            (state.term, state.vote)
        };
        if seed % 3 == 0 {
            cluster.crash(StoreId(late), seed % 2 == 0);
            cluster.node(late).data.set_fault(None);
            cluster.start(StoreId(late));
        }
        cluster.node(late).data.set_fault(None);
        cluster.until("it has split, too", 100, |cluster| {
            cluster.nodes[&StoreId(late)].data.data(RIGHT).is_some()
        });
        cluster.settle_and_check();
        let state = cluster.handle(late).summary(RIGHT).expect("it is here");
        let state = state.basic.hard_state;
        assert!(state.term > term || (state.term, state.vote) == (term, vote) || vote.is_none());
    }
}

/// The right one's replica is removed, and maybe added again, before this store gets to the split.
#[test]
fn who_splits_late_does_not_bring_back_who_was_removed() {
    for again in [false, true] {
        let mut cluster = three(5, |_| {});
        let (_, late) = roles(&cluster, LEFT);
        cluster.network.set_deaf(StoreId(late), LEFT, true);
        cluster.split(LEFT, &[(100, 101)]).expect("it is possible");
        cluster.elect();
        cluster.until("it has heard of the right one", 50, |cluster| {
            is_here(cluster, late, RIGHT)
        });
        let gone = [(ConfChangeKind::Remove, late)];
        let removed = cluster.change(RIGHT, &gone, Transition::Auto);
        assert_eq!(removed.expect("it is possible").members.len(), 2);
        let back = [(ConfChangeKind::AddVoter, late)];
        let handle = cluster.handle(late);
        if again {
            let added = cluster.change(RIGHT, &back, Transition::Auto);
            let added = added.expect("it is possible");
            assert_eq!(added.replica_on(StoreId(late)), Some(ReplicaId(4)));
            cluster.until("the newer one is here", 100, |cluster| {
                let summary = cluster.handle(late).summary(RIGHT);
                summary.is_some_and(|it| it.replica == ReplicaId(4))
            });
        } else {
            // If nobody tells it, an operator does.
            let next = ReplicaId(late + 1);
            let gone = cluster.answer(|respond| handle.destroy_replica(RIGHT, next, respond));
            assert_eq!(gone, Ok(()));
        }
        cluster.ticks(30);
        assert_eq!(handle.descriptor(LEFT).map(|it| it.epoch.range), Some(0));
        cluster.network.set_deaf(StoreId(late), LEFT, false);
        cluster.until("it has split, too", 100, |cluster| {
            let descriptor = cluster.handle(late).descriptor(LEFT);
            descriptor.is_some_and(|it| it.epoch.range == 1)
        });
        if !again {
            assert_eq!(cluster.nodes[&StoreId(late)].data.data(RIGHT), None);
            assert!(!is_here(&cluster, late, RIGHT));
            let added = cluster.change(RIGHT, &back, Transition::Auto);
            assert_eq!(added.map(|it| it.members.len()), Ok(3));
        }
        // Only now its keys are free for it.
        cluster.settle_and_check();
        let summary = cluster.handle(late).summary(RIGHT).map(|it| it.replica);
        assert_eq!(summary, Some(ReplicaId(4)));
        cluster.until("it came by snapshot", 5, |cluster| {
            cluster.handle(late).stats().snapshots_installed == 1
        });
    }
}

/// What the old replica of the left one needs comes as a snapshot, which is smaller than what it has.
#[test]
fn who_missed_the_split_is_given_both_halves_by_snapshot() {
    for power in [false, true] {
        let mut cluster = three(6, |config| config.truncate_keep_entries = 0);
        let (leader, absent) = roles(&cluster, LEFT);
        cluster.crash(StoreId(absent), power);
        cluster.split(LEFT, &[(100, 101)]).expect("it is possible");
        cluster.elect();
        for group in [LEFT, RIGHT] {
            for _ in 0..5 {
                cluster.written(group);
            }
        }
        for store in [leader, 6 - leader - absent] {
            cluster.node(store).flush();
        }
        cluster.ticks(5);
        cluster.start(StoreId(absent));
        cluster.settle_and_check();
        cluster.until("both came by snapshot", 5, |cluster| {
            cluster.handle(absent).stats().snapshots_installed >= 2
        });
    }
}

/// Requests of every kind are on their way when it happens; each is answered, and truly.
#[test]
fn a_split_amid_everything() {
    for seed in 0..30 {
        let mut cluster = three(seed, |config| config.message_bytes_max = 200);
        cluster.pace = 50;
        let (leader, other) = roles(&cluster, LEFT);
        let handle = cluster.handle(leader);
        let data = cluster.nodes[&StoreId(leader)].data.clone();
        let (split, respond) = Promise::new();
        for _ in 0..10 {
            cluster.history.write(&handle, LEFT);
        }
        cluster.history.read(&handle, &data, LEFT);
        cluster.ask_to_split(LEFT, &[(100, 101)], respond);
        for step in 0..20 {
            cluster.history.write(&handle, LEFT);
            cluster.history.read(&handle, &data, LEFT);
            if step == seed % 20 {
                let (_, respond) = Promise::new();
                handle.transfer_leader(LEFT, StoreId(other), respond);
            }
            cluster.step();
        }
        cluster.until("an answer", 400, |_| split.is_kept());
        let answer = split.take().expect("it is there");
        cluster.pace = 100;
        cluster.settle();
        if answer.is_ok() || cluster.nodes[&StoreId(leader)].data.data(RIGHT).is_some() {
            cluster.groups.insert(RIGHT);
        }
        cluster.settle_and_check();
    }
}

/// Of a split and a change of membership that are asked for at once one is refused.
#[test]
fn a_split_and_a_change_of_membership_take_turns() {
    for split_first in [false, true] {
        let mut cluster = Cluster::new(7, 4, |_| {});
        cluster.create_ranged(1, &[1, 2, 3]);
        cluster.elect();
        let leader = cluster.leader(LEFT).expect("it has a leader");
        let handle = cluster.handle(leader.0);
        let (split, respond_split) = Promise::new();
        let (change, respond_change) = Promise::new();
        let add = polyraft_multiraft::MemberChange {
            kind: ConfChangeKind::AddVoter,
            store: StoreId(4),
        };
        if split_first {
            cluster.ask_to_split(LEFT, &[(100, 101)], respond_split);
            handle.change_members(LEFT, vec![add], Transition::Auto, respond_change);
            cluster.groups.insert(RIGHT);
        } else {
            handle.change_members(LEFT, vec![add], Transition::Auto, respond_change);
            cluster.ask_to_split(LEFT, &[(100, 101)], respond_split);
        }
        cluster.until("both are answered", 100, |_| {
            split.is_kept() && change.is_kept()
        });
        let split = split.take().expect("it is there").map(drop);
        let change = change.take().expect("it is there").map(drop);
        let busy = |result| matches!(result, Err(Reject::Busy(_)));
        assert_eq!((split.is_ok(), busy(change)), (split_first, split_first));
        assert_eq!(busy(split), !split_first);
        cluster.settle_and_check();
    }
}

/// Its end waits until the right one has its data for good.
#[test]
fn the_left_one_does_not_take_the_right_one_with_it() {
    for power in [false, true] {
        let mut cluster = three(8, |_| {});
        let (_, follower) = roles(&cluster, LEFT);
        cluster.node(follower).never_flushes = true;
        cluster.split(LEFT, &[(100, 101)]).expect("it is possible");
        cluster.until("it has split", 50, |cluster| {
            cluster.nodes[&StoreId(follower)].data.data(RIGHT).is_some()
        });
        let (promise, respond) = Promise::new();
        let handle = cluster.handle(follower);
        handle.destroy_replica(LEFT, ReplicaId(u64::MAX), respond);
        cluster.ticks(10);
        assert!(!promise.is_kept(), "it waits for the flush");
        if power {
            // The split is taken back; so is what nobody has answered.
            cluster.crash(StoreId(follower), true);
            cluster.start(StoreId(follower));
            cluster.until("it has split again", 50, |cluster| {
                cluster.nodes[&StoreId(follower)].data.data(RIGHT).is_some()
            });
            let (again, respond) = Promise::new();
            let handle = cluster.handle(follower);
            handle.destroy_replica(LEFT, ReplicaId(u64::MAX), respond);
            cluster.node(follower).never_flushes = false;
            cluster.until("an answer", 100, |_| again.is_kept());
            assert_eq!(again.take(), Some(Ok(())));
        } else {
            cluster.node(follower).never_flushes = false;
            cluster.until("an answer", 100, |_| promise.is_kept());
            assert_eq!(promise.take(), Some(Ok(())));
        }
        assert!(is_here(&cluster, follower, RIGHT) && !is_here(&cluster, follower, LEFT));
        assert_eq!(cluster.nodes[&StoreId(follower)].data.data(LEFT), None);
        cluster.groups.remove(&LEFT);
        cluster.settle_and_check();
    }
}

/// Groups that are being created or are here already: the store that has such a one is left without.
#[test]
fn a_number_that_is_in_use_on_one_store_harms_that_store_alone() {
    let mut cluster = three(9, |_| {});
    let (_, bad) = roles(&cluster, LEFT);
    let handle = cluster.handle(bad);
    let mut stray = Cluster::descriptor(RIGHT, &[bad]);
    stray.members[0].replica = ReplicaId(77);
    stray.next_replica = ReplicaId(78);
    cluster.network.stop_watching();
    let created = cluster.answer(|respond| handle.create_group(stray, respond));
    assert_eq!(created, Ok(()));
    cluster
        .split(LEFT, &[(100, 101)])
        .expect("the leader knows of nothing");
    cluster.until("it says so", 50, |cluster| {
        let summary = cluster.handle(bad).summary(LEFT);
        summary.is_some()
    });
    cluster.ticks(10);
    let status = cluster.describe(bad, LEFT).expect("it says how it is");
    let why = status.quarantined.expect("it is out of service");
    assert!(why.contains("its number is in use"), "{why}");
    let id = cluster.write(LEFT).expect("the others lead it");
    let history = cluster.history.clone();
    cluster.until("an answer", 200, |_| history.answer(id).is_some());
    assert_eq!(history.answer(id), Some(Answer::Written));
}

/// A group whose end was put off, and one whose data is damaged while it splits.
#[test]
fn a_group_that_fails_while_it_splits_can_be_destroyed() {
    let mut cluster = three(10, |_| {});
    let (_, bad) = roles(&cluster, LEFT);
    cluster.node(bad).data.damage(LEFT);
    cluster.split(LEFT, &[(100, 101)]).expect("the others can");
    cluster.ticks(20);
    let status = cluster.describe(bad, LEFT).expect("it says how it is");
    assert!(status.quarantined.is_some());
    assert_eq!(cluster.nodes[&StoreId(bad)].data.data(RIGHT), None);
    let handle = cluster.handle(bad);
    let next = ReplicaId(bad + 1);
    let gone = cluster.answer(|respond| handle.destroy_replica(LEFT, next, respond));
    assert_eq!(gone, Ok(()));
    cluster.groups.remove(&LEFT);
    // The right one's leader feeds it now that nobody else has its keys.
    cluster.settle_and_check();
    assert!(is_here(&cluster, bad, RIGHT));
}

#[test]
fn a_sleeping_group_splits() {
    let mut cluster = three(11, |config| config.sleep_after_ticks = 5);
    let (leader, _) = roles(&cluster, LEFT);
    let asleep = |cluster: &Cluster, group| {
        (1..=3).all(|store| {
            let summary = cluster.handle(store).summary(group);
            summary.is_some_and(|it| it.asleep)
        })
    };
    cluster.until("it sleeps", 100, |cluster| asleep(cluster, LEFT));
    cluster.split(LEFT, &[(100, 101)]).expect("it is possible");
    cluster.until("both sleep", 200, |cluster| {
        asleep(cluster, LEFT) && asleep(cluster, RIGHT)
    });
    assert_eq!(cluster.leader(RIGHT), Some(StoreId(leader)));
    cluster.settle_and_check();
}

/// The right one's leader finds nothing on the store that is late and would send it everything. It is
/// not let in before, and afterwards it hears that the split has brought the first state.
#[test]
fn who_splits_late_needs_no_snapshot_of_the_right_one() {
    for seed in 0..8 {
        let mut cluster = three(seed, |config| config.workers = 1 + (seed % 2) as usize);
        let (_, late) = roles(&cluster, LEFT);
        cluster.node(late).data.set_fault(Some(SeamFault::Full));
        cluster.split(LEFT, &[(100, 101)]).expect("it is possible");
        cluster.elect();
        for _ in 0..5 {
            cluster.written(RIGHT);
        }
        cluster.until("it has heard of the right one", 50, |cluster| {
            is_here(cluster, late, RIGHT)
        });
        let leader = cluster.leader(RIGHT).expect("it has a leader").0;
        cluster.until("the leader would send it a snapshot", 100, |cluster| {
            let sending = cluster.network.snapshots_begun();
            sending > 0
        });
        if seed % 4 == 0 {
            cluster.crash(StoreId(late), seed % 8 == 0);
            cluster.node(late).data.set_fault(None);
            cluster.start(StoreId(late));
        }
        cluster.node(late).data.set_fault(None);
        cluster.until("it has split, too", 100, |cluster| {
            cluster.nodes[&StoreId(late)].data.data(RIGHT).is_some()
        });
        cluster.settle_and_check();
        let status = cluster.describe(leader, RIGHT).expect("it leads");
        let mut progress = status.raft.progress.iter();
        assert!(progress.all(|it| it.state == ProgressState::Replicate));
        let installed = cluster.handle(late).stats().snapshots_installed;
        assert_eq!(installed, 0, "seed {seed}");
    }
}

/// A follower that is being sent a snapshot would need one of each part, and of the new ones only when it has
/// the old one's: so a split is put off, but not for ever.
#[test]
fn a_split_waits_for_a_follower_that_needs_a_snapshot() {
    let mut cluster = Cluster::new(12, 4, |_| {});
    cluster.create_ranged(1, &[1, 2, 3]);
    cluster.elect();
    for _ in 0..10 {
        cluster.written(LEFT);
    }
    cluster.network.set_weather(Weather {
        halted: true,
        ..Weather::default()
    });
    let added = cluster.change(LEFT, &[(ConfChangeKind::AddLearner, 4)], Transition::Auto);
    added.expect("it is led");
    let leader = cluster.leader(LEFT).expect("it has a leader").0;
    cluster.until("the snapshot is on its way", 50, |cluster| {
        cluster.network.snapshots_begun() > 0
    });
    let busy = |result: &Result<_, Reject>| matches!(result, Err(Reject::Busy(_)));
    let refused = cluster.split(LEFT, &[(100, 101)]);
    assert!(busy(&refused), "{refused:?}");
    cluster.network.set_weather(Weather::default());
    cluster.settle();
    cluster
        .split(LEFT, &[(100, 101)])
        .expect("it waits no more");
    cluster.settle_and_check();
    assert_eq!(cluster.handle(4).stats().snapshots_installed, 1);

    // One that never gets there does not stand in the way for ever.
    cluster.network.set_weather(Weather {
        halted: true,
        ..Weather::default()
    });
    let demoted = [(ConfChangeKind::Remove, 4)];
    let removed = cluster.change(LEFT, &demoted, Transition::Auto);
    removed.expect("it is led");
    cluster.until("it has collected itself", 100, |cluster| {
        !is_here(cluster, 4, LEFT)
    });
    let begun = cluster.network.snapshots_begun();
    let added = cluster.change(LEFT, &[(ConfChangeKind::AddLearner, 4)], Transition::Auto);
    added.expect("it is led");
    cluster.until("the snapshot is on its way", 50, |cluster| {
        cluster.network.snapshots_begun() > begun
    });
    let refused = cluster.split(LEFT, &[(50, 102)]);
    assert!(busy(&refused), "{refused:?}");
    let election_ticks = HostConfig::new(StoreId(leader)).election_ticks;
    cluster.ticks(60 * u64::from(election_ticks));
    cluster.split(LEFT, &[(50, 102)]).expect("that was enough");
    cluster.network.set_weather(Weather::default());
    cluster.settle_and_check();
}

/// Amid writes, and where a store is away: every replica shows what it has at the very same entry.
#[test]
fn all_replicas_are_inspected_at_the_same_entry() {
    for seed in 0..6 {
        let mut cluster = three(seed, |config| {
            config.appliers = 1 + (seed % 2) as usize;
            config.truncate_keep_entries = 1000;
        });
        let (leader, away) = roles(&cluster, LEFT);
        cluster.network.set_deaf(StoreId(away), LEFT, seed % 3 == 0);
        let handle = cluster.handle(leader);
        let before = handle.descriptor(LEFT).expect("it is here");
        for id in 1..=4 {
            for _ in 0..5 {
                cluster.write(LEFT);
            }
            let expected = before.epoch;
            let inspect = RangeCommand::Inspect { expected, id };
            let done = cluster.answer(|respond| handle.change_range(LEFT, inspect, respond));
            assert_eq!(done.map(|groups| groups.len()), Ok(1));
            cluster.write(LEFT);
        }
        cluster.network.set_deaf(StoreId(away), LEFT, false);
        cluster.settle_and_check();
        for id in 1..=4 {
            let at = |store: u64| cluster.nodes[&StoreId(store)].data.inspected(id);
            let seen: Vec<_> = (1..=3)
                .map(|store| at(store).expect("it came there"))
                .collect();
            assert!(
                seen.iter().all(|it| it.state.last == seen[0].state.last),
                "{seen:?}"
            );
            assert!(seen.iter().all(|it| it.keys == seen[0].keys), "{seen:?}");
        }
    }
}
