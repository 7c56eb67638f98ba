//! Members come and go.

use polyraft_core::{ConfChangeKind, Index, Message, Payload, ReplicaId, Transition};
use polyraft_multiraft::env::{Body, GroupMessage, Inbound};
use polyraft_multiraft::{GroupId, StoreId};

use crate::cluster::Cluster;
use crate::network::Weather;

const ONE: GroupId = GroupId(1);

/// The leader that added it went down before it spoke to it, and nobody can lead without its vote.
#[test]
fn a_new_voter_that_was_never_spoken_to_can_vote() {
    let mut cluster = Cluster::new(1, 2, |_| {});
    cluster.create(1, &[1]);
    cluster.elect();
    cluster.set_cut(StoreId(1), StoreId(2), true);
    let added = cluster.change(ONE, &[(ConfChangeKind::AddVoter, 2)], Transition::Auto);
    assert_eq!(added.expect("one voter decides alone").members.len(), 2);
    cluster.crash(StoreId(1), false);
    cluster.set_cut(StoreId(1), StoreId(2), false);
    cluster.start(StoreId(1));
    cluster.settle_and_check();
    assert_eq!(
        cluster
            .handle(2)
            .summary(ONE)
            .map(|summary| summary.replica),
        Some(ReplicaId(2))
    );
}

/// Its log is empty, the leader's begins later, and writes go on all the time: entries come in right
/// behind the snapshot and are acknowledged, so they must be kept.
#[test]
fn a_learner_far_behind_is_given_a_snapshot_while_writes_go_on() {
    let mut snapshots = 0;
    for seed in 0..20 {
        let mut cluster = Cluster::new(seed, 3, |config| config.truncate_keep_entries = 0);
        cluster.create(1, &[1, 2]);
        cluster.elect();
        for _ in 0..20 {
            cluster.written(ONE);
        }
        for store in 1..=2 {
            cluster.node(store).flush();
        }
        cluster.ticks(2);
        cluster.pace = 30;
        let added = cluster.change(ONE, &[(ConfChangeKind::AddLearner, 3)], Transition::Auto);
        assert_eq!(added.expect("it is led").members.len(), 3);
        for _ in 0..60 {
            cluster.write(ONE);
            cluster.step();
        }
        cluster.crash(StoreId(3), true);
        cluster.start(StoreId(3));
        cluster.settle_and_check();
        snapshots += cluster.handle(3).stats().snapshots_installed;
        snapshots += [1, 2]
            .map(|store| cluster.handle(store).stats().snapshots_sent)
            .iter()
            .sum::<u64>();
    }
    assert!(snapshots >= 20, "{snapshots}");
}

/// It has heard of the leader that made it, but not got its snapshot, when that one goes down.
#[test]
fn a_new_voter_without_data_does_not_stand_by_a_leader_that_is_gone() {
    let mut cluster = Cluster::new(1, 2, |_| {});
    cluster.create(1, &[1]);
    cluster.elect();
    cluster.network.set_weather(Weather {
        broken: 100,
        ..Weather::default()
    });
    let added = cluster.change(ONE, &[(ConfChangeKind::AddVoter, 2)], Transition::Auto);
    assert_eq!(added.expect("one voter decides alone").members.len(), 2);
    cluster.until("the new replica knows the leader", 50, |cluster| {
        let summary = cluster.handle(2).summary(ONE);
        summary.is_some_and(|summary| !summary.basic.soft_state.leader.is_none())
    });
    cluster.crash(StoreId(1), false);
    cluster.network.set_weather(Weather::default());
    cluster.start(StoreId(1));
    cluster.settle_and_check();
}
