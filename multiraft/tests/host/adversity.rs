//! Rare orders of things: crash points, late messages and late news that random runs seldom meet.

use bytes::Bytes;
use polyraft_core::{ConfChangeKind, Message, Payload, ReplicaId, Transition};
use polyraft_multiraft::env::{
    Body, GroupMessage, Inbound, Lifecycle, LogBatch, LogEngine, LogSection,
};
use polyraft_multiraft::parts::Input;
use polyraft_multiraft::{GroupDescriptor, GroupId, KeyRange, MemberChange, Reject, StoreId};

use crate::cluster::{Cluster, Promise};
use crate::network::Weather;

const ONE: GroupId = GroupId(1);

/// A leader and the two that follow it.
fn three(seed: u64, stores: u64) -> (Cluster, StoreId, [StoreId; 2]) {
    let mut cluster = Cluster::new(seed, stores, |config| config.truncate_keep_entries = 0);
    cluster.create(1, &[1, 2, 3]);
    cluster.settle_and_check();
    let leader = cluster.leader(ONE).expect("it has a leader");
    let others = [1, 2].map(|step| StoreId(1 + (leader.0 - 1 + step) % 3));
    (cluster, leader, others)
}

fn isolate(cluster: &Cluster, one: StoreId, others: [StoreId; 2], cut: bool) {
    for other in others {
        cluster.set_cut(one, other, cut);
    }
}

/// What it appended as a leader that nobody followed is longer than the snapshot that voids it.
#[test]
fn a_longer_log_does_not_survive_a_snapshot_that_a_crash_cut_short() {
    for seed in 0..4 {
        let (mut cluster, old, others) = three(seed, 3);
        isolate(&cluster, old, others, true);
        let handle = cluster.handle(old.0);
        for _ in 0..40 {
            cluster.history.write(&handle, ONE);
            cluster.step();
        }
        cluster.until("another one leads", 200, |cluster| {
            cluster.leader(ONE).is_some_and(|leader| leader != old)
        });
        for _ in 0..5 {
            cluster.written(ONE);
        }
        cluster.ticks(10);
        // Only the leader truncates, so that the other one leads later with all of its log.
        let new = cluster.leader(ONE).expect("it has a leader");
        cluster.node(new.0).flush();
        cluster.ticks(2);
        let applied = |cluster: &Cluster, store: StoreId| {
            let data = cluster.nodes[&store].data.data(ONE);
            data.map(|data| data.state.last)
        };
        let before = applied(&cluster, old);
        isolate(&cluster, old, others, false);
        cluster.until("the data of the snapshot is there", 200, |cluster| {
            applied(cluster, old) != before
        });
        let found = cluster.nodes[&old].log.recovered();
        let log = found.groups.first().expect("it has the group");
        let state = applied(&cluster, old).expect("it has data");
        assert!(
            log.last.index > state.index && log.last.term < state.term,
            "the log is longer, and not reset yet: {log:?} beside {state:?}"
        );
        cluster.crash(old, false);
        cluster.crash(new, false);
        cluster.start(old);
        cluster.elect();
        cluster.written(ONE);
        cluster.start(new);
        cluster.settle_and_check();
    }
}

/// A leader sends its group to sleep and goes down; that it is down is known before the message is there.
#[test]
fn nobody_sleeps_with_a_leader_that_is_known_to_be_gone() {
    let (mut cluster, leader, others) = three(1, 3);
    cluster.ticks(10);
    let status = cluster.describe(leader.0, ONE).expect("it is there");
    assert!(!status.asleep, "not yet");
    let (term, from) = (status.raft.basic.hard_state.term, status.raft.basic.id);
    let sleep = |to: ReplicaId| GroupMessage {
        group: ONE,
        body: Body::Sleep(Message {
            from,
            to,
            term,
            payload: Payload::Heartbeat {
                commit: status.last.index,
                read: 0,
            },
        }),
    };
    cluster.crash(leader, false);
    cluster.step();
    for other in others {
        let to = status.descriptor.replica_on(other).expect("a member");
        cluster.handle(other.0).deliver(leader, vec![sleep(to)]);
    }
    cluster.until("another one leads", 200, |cluster| {
        cluster.leader(ONE).is_some()
    });
    cluster.written(ONE);
    cluster.start(leader);
    cluster.settle_and_check();
}

/// Everybody sleeps when the leader's replica goes, and its store does not: nobody hears of that until
/// somebody wants something.
#[test]
fn a_request_wakes_who_sleeps_without_a_leader() {
    let (mut cluster, leader, others) = three(2, 3);
    let asleep = |cluster: &Cluster, store: StoreId| {
        let summary = cluster.handle(store.0).summary(ONE);
        summary.is_some_and(|summary| summary.asleep)
    };
    cluster.until("all sleep", 400, |cluster| {
        asleep(cluster, leader) && others.iter().all(|other| asleep(cluster, *other))
    });
    let handle = cluster.handle(leader.0);
    let gone = cluster.answer(|respond| handle.destroy_replica(ONE, ReplicaId(4), respond));
    assert_eq!(gone, Ok(()));
    cluster.ticks(100);
    assert!(
        others.iter().all(|other| asleep(&cluster, *other)),
        "nobody heard of it"
    );
    let follower = cluster.handle(others[0].0);
    let answer = cluster.answer(|respond| follower.read(ONE, respond));
    assert!(
        matches!(answer, Err(Reject::NotLeader { .. })),
        "{answer:?}"
    );
    cluster.until("another one leads", 400, |cluster| {
        let leads = |store: &StoreId| {
            let summary = cluster.handle(store.0).summary(ONE);
            summary.is_some_and(|s| s.basic.soft_state.role == polyraft_core::RoleName::Leader)
        };
        others.iter().any(leads)
    });
    cluster.written(ONE);
}

/// Two leaders put a change at the same place of the log; who asked the one that lost hears no Ok.
#[test]
fn a_change_of_membership_is_not_taken_for_that_of_another_leader() {
    let (mut cluster, old, others) = three(3, 5);
    isolate(&cluster, old, others, true);
    let handle = cluster.handle(old.0);
    cluster.history.write(&handle, ONE);
    cluster.step();
    let (promise, respond) = Promise::new();
    let lost = vec![MemberChange {
        kind: ConfChangeKind::AddLearner,
        store: StoreId(4),
    }];
    handle.change_members(ONE, lost, Transition::Auto, respond);
    cluster.until("another one leads", 200, |cluster| {
        cluster.leader(ONE).is_some_and(|leader| leader != old)
    });
    cluster.ticks(2);
    let won = cluster.change(ONE, &[(ConfChangeKind::AddLearner, 5)], Transition::Auto);
    won.expect("it is possible");
    assert!(!promise.is_kept(), "it still waits");
    isolate(&cluster, old, others, false);
    cluster.until("an answer", 200, |_| promise.is_kept());
    let answer = promise.take().expect("it is kept");
    assert!(answer.is_err(), "{answer:?}");
    cluster.settle_and_check();
}

/// It knows that it is a learner, so it never campaigns; the news of its removal is lost.
#[test]
fn a_learner_that_missed_its_removal_goes() {
    let (mut cluster, _, [leaving, _]) = three(4, 3);
    let demoted = [(ConfChangeKind::AddLearner, leaving.0)];
    let demoted = cluster.change(ONE, &demoted, Transition::Auto);
    demoted.expect("it is possible");
    cluster.settle_and_check();
    cluster.crash(leaving, false);
    let removed = [(ConfChangeKind::Remove, leaving.0)];
    let removed = cluster.change(ONE, &removed, Transition::Auto);
    assert_eq!(removed.expect("it is possible").members.len(), 2);
    cluster.start(leaving);
    cluster.until("it has collected itself", 200, |cluster| {
        cluster.handle(leaving.0).summary(ONE).is_none()
            && cluster.nodes[&leaving].data.data(ONE).is_none()
    });
    cluster.settle_and_check();
}

/// What the data says to be applied must not make entries of its own log look committed: whoever is refused a
/// vote would believe that, and apply what nobody decided.
#[test]
fn a_log_that_a_snapshot_voids_does_not_speak_for_what_is_committed() {
    let mut cluster = Cluster::new(5, 5, |config| config.truncate_keep_entries = 0);
    cluster.create(1, &[1, 2, 3, 4, 5]);
    cluster.settle_and_check();
    let old = cluster.leader(ONE).expect("it has a leader");
    let friend = StoreId(1 + old.0 % 5);
    let others: Vec<StoreId> = (1..=5)
        .map(StoreId)
        .filter(|store| ![old, friend].contains(store))
        .collect();
    for other in &others {
        cluster.set_cut(old, *other, true);
        cluster.set_cut(friend, *other, true);
    }
    let handle = cluster.handle(old.0);
    for _ in 0..40 {
        cluster.history.write(&handle, ONE);
        cluster.step();
    }
    // The friend lacks the end of it, so that it will be refused.
    cluster.set_cut(old, friend, true);
    cluster.history.write(&handle, ONE);
    cluster.step();
    cluster.until("another one leads", 200, |cluster| {
        cluster
            .leader(ONE)
            .is_some_and(|leader| others.contains(&leader))
    });
    for _ in 0..5 {
        cluster.written(ONE);
    }
    cluster.ticks(10);
    let new = cluster.leader(ONE).expect("it has a leader");
    cluster.node(new.0).flush();
    cluster.ticks(2);
    let applied = |cluster: &Cluster| {
        let data = cluster.nodes[&old].data.data(ONE);
        data.map(|data| data.state.last)
    };
    let before = applied(&cluster);
    cluster.set_cut(old, new, false);
    cluster.until("the data of the snapshot is there", 200, |cluster| {
        applied(cluster) != before
    });
    cluster.crash(old, false);
    cluster.set_cut(old, new, true);
    cluster.set_cut(old, friend, false);
    cluster.start(old);
    cluster.ticks(100);
    cluster.check_data();
    for other in others {
        cluster.set_cut(old, other, false);
        cluster.set_cut(friend, other, false);
    }
    cluster.settle_and_check();
}

/// A flush takes long, and the replica of which it speaks is gone meanwhile: its successor's data was
/// not part of it, so its log must stay.
#[test]
fn a_flush_speaks_for_the_replica_that_there_was() {
    let (mut cluster, leader, _) = three(6, 3);
    for _ in 0..5 {
        cluster.written(ONE);
    }
    let before = cluster.describe(leader.0, ONE).expect("it is there");
    let (own, applied) = (before.raft.basic.id, before.raft.basic.applied);
    for (id, counts) in [(ReplicaId(own.0 + 7), false), (own, true)] {
        let flushed = Input::Flushed(vec![(ONE, id, applied)]);
        cluster.node(leader.0).complete(flushed);
        cluster.ticks(1);
        let status = cluster.describe(leader.0, ONE).expect("it is there");
        assert_eq!(status.flushed == applied, counts, "{id}");
        assert_eq!(status.truncated.index == applied, counts, "{id}");
    }
    cluster.settle_and_check();
}

/// What truncation takes out of the cache is not counted for ever: else the budget would be used up for good
/// after one member was away for a while, and whoever lags would be fed from the disk.
#[test]
fn the_cache_is_as_large_as_what_is_in_it() {
    let mut cluster = Cluster::new(7, 3, |config| {
        config.truncate_keep_entries = 0;
        config.entry_cache_bytes_max = 4_000;
    });
    cluster.create(1, &[1, 2, 3]);
    cluster.settle_and_check();
    let leader = cluster.leader(ONE).expect("it has a leader");
    cluster.crash(StoreId(1 + leader.0 % 3), false);
    for _ in 0..20 {
        for _ in 0..10 {
            cluster.written(ONE);
        }
        cluster.node(leader.0).flush();
        cluster.ticks(2);
    }
    for _ in 0..5 {
        cluster.written(ONE);
    }
    let status = cluster.describe(leader.0, ONE).expect("it is there");
    let kept = status.cached_log_bytes;
    assert!(kept >= 5 * 40, "{kept} for the one that is away");
    cluster.start(StoreId(1 + leader.0 % 3));
    cluster.settle_and_check();
}

/// A vote made the replica before it was to be created: its range is taken from then on all the same, or
/// another group could take it before the snapshot comes, which would be refused for ever.
#[test]
fn a_group_that_waits_for_its_first_state_owns_its_range() {
    let mut cluster = Cluster::new(8, 2, |_| {});
    let with_range = |group: u64, stores: &[u64], start: &'static [u8], end: &'static [u8]| {
        let range = Some(KeyRange {
            start: Bytes::from_static(start),
            end: Some(Bytes::from_static(end)),
        });
        let descriptor = Cluster::descriptor(GroupId(group), stores);
        GroupDescriptor {
            range,
            ..descriptor
        }
    };
    let (one, two) = (
        with_range(1, &[1, 2], b"a", b"m"),
        with_range(2, &[2], b"b", b"c"),
    );
    cluster.network.set_weather(Weather {
        broken: 100,
        ..Weather::default()
    });
    let (first, second) = (cluster.handle(1), cluster.handle(2));
    let created = cluster.answer(|respond| first.create_group(one.clone(), respond));
    assert_eq!(created, Ok(()));
    cluster.until("a vote made the other replica", 200, |_| {
        second.summary(ONE).is_some()
    });
    let (created, respond) = Promise::new();
    second.create_group(one, respond);
    cluster.ticks(100);
    assert!(!created.is_kept(), "only one store has the group's state");
    let overlapping = cluster.answer(|respond| second.create_group(two, respond));
    assert!(
        matches!(overlapping, Err(Reject::Refused(_))),
        "{overlapping:?}"
    );
    cluster.network.set_weather(Weather::default());
    cluster.groups.insert(ONE);
    cluster.settle_and_check();
    assert_eq!(created.take(), Some(Ok(())), "now both have it");
}

/// Twice the same new store would be two replicas in one place, of which the older could never live; a voter
/// that is to go and to stay would go in one step.
#[test]
fn members_name_a_store_once() {
    let (mut cluster, leader, _) = three(9, 4);
    let member = 1 + leader.0 % 3;
    let twice = [
        [(ConfChangeKind::AddVoter, 4), (ConfChangeKind::AddVoter, 4)],
        [
            (ConfChangeKind::Remove, member),
            (ConfChangeKind::AddVoter, member),
        ],
    ];
    for changes in twice {
        let answer = cluster.change(ONE, &changes, Transition::Auto);
        assert!(matches!(answer, Err(Reject::Refused(_))), "{answer:?}");
    }
    let handle = cluster.handle(4);
    let descriptor = Cluster::descriptor(GroupId(2), &[4, 4]);
    let created = cluster.answer(|respond| handle.create_group(descriptor, respond));
    assert!(matches!(created, Err(Reject::Refused(_))), "{created:?}");
    cluster.settle_and_check();
}

/// The end of a replica takes its data with it before a later one begins. Who finds it otherwise must
/// not take the data for its own: it would be a voter with somebody else's past.
#[test]
fn data_of_an_earlier_replica_is_not_taken_up() {
    let (mut cluster, leader, [bad, _]) = three(10, 3);
    cluster.crash(bad, false);
    let later = ReplicaId(7);
    let section = |lifecycle| LogSection {
        group: ONE,
        lifecycle: Some(lifecycle),
        ..LogSection::default()
    };
    let batch = LogBatch {
        sync: true,
        sections: vec![
            section(Lifecycle::Destroy {
                next_replica: later,
            }),
            section(Lifecycle::Create { replica: later }),
        ],
    };
    let written = cluster.nodes[&bad].log.write(&batch);
    written.expect("there is room");
    cluster.start(bad);
    let status = cluster.describe(bad.0, ONE).expect("it says how it is");
    let why = status.quarantined.expect("it is out of service");
    assert!(why.contains("an earlier replica"), "{why}");
    let handle = cluster.handle(bad.0);
    let read = cluster.answer(|respond| handle.read(ONE, respond));
    assert!(matches!(read, Err(Reject::Refused(_))), "{read:?}");
    let id = cluster.write(ONE).expect("the others go on");
    let history = cluster.history.clone();
    cluster.until("an answer", 200, |_| history.answer(id).is_some());
    let answer = history.answer(id);
    assert_eq!(answer, Some(crate::history::Answer::Written));
    assert_eq!(cluster.leader(ONE), Some(leader));
}
