//! Snapshots: which are let in, what waits for them, what is kept for those who get them.

use bytes::Bytes;
use polyraft_core::{
    ConfChangeKind, ConfState, EntryId, Index, Message, Payload, ProgressState, ReplicaId,
    Snapshot, SnapshotMeta, Term, Transition,
};
use polyraft_multiraft::env::{Inbound, SnapshotHeader, SnapshotReceiver, SnapshotRefusal};
use polyraft_multiraft::{AppliedState, GroupDescriptor, GroupId, KeyRange, Member, StoreId};

use crate::cluster::Cluster;
use crate::network::Weather;

const ONE: GroupId = GroupId(1);

/// The snapshot of a group as of an entry, for a replica on store 3, by the one on store 1.
fn header(descriptor: &GroupDescriptor, to: ReplicaId, index: u64) -> SnapshotHeader {
    let last = EntryId::new(2, index);
    let voters = descriptor.members.iter().map(|member| member.replica);
    let conf_state = ConfState {
        voters: voters.collect(),
        ..ConfState::default()
    };
    let meta = SnapshotMeta {
        last,
        conf_state: conf_state.clone(),
    };
    let message = Message {
        from: ReplicaId(1),
        to,
        term: Term(2),
        payload: Payload::Snapshot(Box::new(Snapshot {
            meta,
            data: Bytes::new(),
        })),
    };
    SnapshotHeader {
        group: descriptor.group,
        message,
        state: AppliedState {
            last,
            conf_state: conf_state.into(),
            descriptor: descriptor.clone().into(),
        },
    }
}

fn edited(
    descriptor: &GroupDescriptor,
    edit: impl FnOnce(&mut GroupDescriptor),
) -> GroupDescriptor {
    let mut descriptor = descriptor.clone();
    edit(&mut descriptor);
    descriptor
}

fn why(result: Result<Box<dyn SnapshotReceiver>, SnapshotRefusal>) -> String {
    match result {
        Ok(_) => "let in".to_owned(),
        Err(refusal) => refusal.to_string(),
    }
}

/// Before a byte of it is sent.
#[test]
fn a_snapshot_is_let_in_only_where_it_fits() {
    let mut cluster = Cluster::new(1, 3, |_| {});
    cluster.create_ranged(1, &[1, 2, 3]);
    cluster.settle_and_check();
    let handle = cluster.handle(3);
    let summary = handle.summary(ONE).expect("it is here");
    let commit = summary.basic.hard_state.commit.0;
    let own = Cluster::ranged(ONE, &[1, 2, 3]);
    let (dead, other) = (GroupId(2), Cluster::ranged(GroupId(5), &[1, 2, 3]));
    let gone = cluster.answer(|respond| handle.destroy_replica(dead, ReplicaId(9), respond));
    assert_eq!(gone, Ok(()));
    let third = ReplicaId(3);
    let moved = |store| move |it: &mut GroupDescriptor| it.members[2].store = StoreId(store);
    let within = |generation| {
        edited(&other, |it| {
            it.range = Some(KeyRange {
                start: vec![1].into(),
                end: Some(vec![1, 9].into()),
            });
            it.epoch.range = generation;
        })
    };
    let cases = [
        (header(&own, third, commit + 1), "let in"),
        (header(&other, third, 9), "let in"),
        (header(&own, third, commit), "not newer"),
        (
            header(&edited(&own, moved(7)), third, commit + 1),
            "as a member",
        ),
        (
            header(
                &edited(&own, |it| it.members[2].replica = ReplicaId(2)),
                ReplicaId(2),
                99,
            ),
            "as a member",
        ),
        (
            header(
                &edited(&own, |it| {
                    let replica = ReplicaId(2);
                    it.members = vec![Member {
                        replica,
                        store: StoreId(3),
                    }];
                }),
                ReplicaId(2),
                commit + 1,
            ),
            "removed",
        ),
        (
            header(&Cluster::ranged(dead, &[1, 2, 3]), third, 9),
            "destroyed here",
        ),
        (header(&within(0), third, 9), "overlaps that of group 1"),
        // Whoever owns the first key of a group later has taken it over.
        (header(&within(1), third, 9), "let in"),
        (
            header(
                &edited(&other, |it| {
                    it.range = it.range.take().map(|range| KeyRange {
                        end: Some(range.start.clone()),
                        ..range
                    })
                }),
                third,
                9,
            ),
            "no key",
        ),
    ];
    for (header, expected) in cases {
        let asked = format!("{header:?}");
        let said = why(handle.begin_snapshot(StoreId(1), header));
        assert!(said.contains(expected), "{said:?} to {asked}");
    }
    let mut crossed = header(&other, third, 9);
    crossed.state.last = EntryId::new(2, 10);
    let said = why(handle.begin_snapshot(StoreId(1), crossed));
    assert!(said.contains("disagree"), "{said}");
    cluster.settle_and_check();
}

/// Its keys were free when it began to come, and are another group's when all of it is there.
#[test]
fn a_snapshot_whose_place_was_taken_meanwhile_is_thrown_away() {
    let mut cluster = Cluster::new(2, 3, |_| {});
    cluster.create(1, &[1, 2, 3]);
    cluster.elect();
    let handle = cluster.handle(3);
    let (late, first) = (GroupId(5), GroupId(6));
    let descriptor = Cluster::ranged(late, &[1, 2, 3]);
    let header = header(&descriptor, ReplicaId(3), 9);
    let receiver = handle.begin_snapshot(StoreId(1), header);
    let receiver = receiver.expect("its keys are free");
    let taken = GroupDescriptor {
        group: first,
        ..Cluster::ranged(late, &[3])
    };
    let created = cluster.answer(|respond| handle.create_group(taken, respond));
    assert_eq!(created, Ok(()));
    let refused = handle.stats().messages_refused;
    receiver.finish().expect("it is whole");
    cluster.ticks(5);
    assert_eq!(handle.stats().messages_refused, refused + 1);
    assert_eq!(handle.stats().snapshots_installed, 0);
    assert_eq!(cluster.nodes[&StoreId(3)].data.data(late), None);
    cluster.groups.insert(first);
    cluster.settle_and_check();
}

/// Else it would need another one when it has this one, and so on.
#[test]
fn the_log_behind_a_snapshot_that_is_under_way_is_kept() {
    for seed in 0..10 {
        let mut cluster = Cluster::new(seed, 4, |config| config.truncate_keep_entries = 20);
        cluster.create(1, &[1, 2, 3]);
        cluster.elect();
        let leader = cluster.leader(ONE).expect("it has a leader").0;
        for _ in 0..10 {
            cluster.written(ONE);
        }
        let halted = |halted| Weather {
            halted,
            ..Weather::default()
        };
        cluster.network.set_weather(halted(true));
        let added = cluster.change(ONE, &[(ConfChangeKind::AddLearner, 4)], Transition::Auto);
        added.expect("it is led");
        cluster.until("a snapshot is under way", 50, |cluster| {
            cluster.network.snapshots_begun() > 0
        });
        for step in 0..400 {
            cluster.write(ONE);
            cluster.step();
            cluster.node(leader).flush();
            if step == 100 {
                cluster.network.set_weather(halted(false));
            }
            if cluster.handle(4).stats().snapshots_installed > 0 {
                break;
            }
        }
        cluster.settle_and_check();
        let installed = cluster.handle(4).stats().snapshots_installed;
        assert_eq!(installed, 1, "seed {seed}");
        cluster.node(leader).flush();
        cluster.ticks(2);
        let status = cluster.describe(leader, ONE).expect("it leads");
        let kept = status.truncated.index.until(status.last.index);
        assert!(kept <= 20, "{kept} entries are kept, and nobody needs them");
    }
}

/// One that never arrives does not keep the log for ever.
#[test]
fn the_log_does_not_wait_for_a_snapshot_for_ever() {
    let mut cluster = Cluster::new(3, 4, |config| config.truncate_keep_entries = 0);
    cluster.create(1, &[1, 2, 3]);
    cluster.elect();
    cluster.written(ONE);
    let leader = cluster.leader(ONE).expect("it has a leader").0;
    cluster.network.set_weather(Weather {
        halted: true,
        ..Weather::default()
    });
    let added = cluster.change(ONE, &[(ConfChangeKind::AddLearner, 4)], Transition::Auto);
    added.expect("it is led");
    let awaited = |cluster: &mut Cluster| {
        let status = cluster.describe(leader, ONE).expect("it is there");
        let mut progress = status.raft.progress.iter();
        let index = progress.find_map(|it| match it.state {
            ProgressState::Snapshot(index) => Some(index),
            _ => None,
        });
        (index, status.truncated.index)
    };
    let index = (0..50).find_map(|_| {
        cluster.ticks(1);
        awaited(&mut cluster).0
    });
    let index = index.expect("the learner needs a snapshot");
    let truncated = |cluster: &mut Cluster| {
        for _ in 0..5 {
            cluster.written(ONE);
        }
        cluster.node(leader).flush();
        cluster.ticks(2);
        awaited(cluster).1
    };
    assert!(truncated(&mut cluster) <= index, "it is kept");
    cluster.ticks(300);
    assert!(truncated(&mut cluster) <= index, "still");
    cluster.ticks(600);
    let end = truncated(&mut cluster);
    assert!(end > index.max(Index(0)), "{end} is not behind {index}");
    cluster.network.set_weather(Weather::default());
    cluster.crash(StoreId(4), false);
    cluster.start(StoreId(4));
    cluster.settle_and_check();
}
