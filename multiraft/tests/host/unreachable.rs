//! What a host does when its transport says that messages were lost.

use polyraft_core::ProgressState;
use polyraft_multiraft::env::{Inbound, Lost};
use polyraft_multiraft::{GroupId, StoreId};

use crate::cluster::Cluster;

/// How a group's leader sends to the replica on a store.
fn state(cluster: &mut Cluster, group: GroupId, follower: StoreId) -> ProgressState {
    let leader = cluster.leader(group).expect("it has a leader");
    let status = cluster.describe(leader.0, group).expect("it is in service");
    let replica = status.descriptor.replica_on(follower);
    let replica = replica.expect("it is a member");
    let mut progress = status.raft.progress.iter();
    let progress = progress.find(|progress| progress.id == replica);
    progress.expect("a leader knows its members").state
}

#[test]
fn leaders_of_the_groups_concerned_probe_and_then_go_on() {
    const GROUPS: [GroupId; 2] = [GroupId(1), GroupId(2)];
    let mut cluster = Cluster::new(11, 2, |_| {});
    for group in GROUPS {
        cluster.create(group.0, &[1, 2]);
    }
    cluster.elect();
    for group in GROUPS {
        cluster.written(group);
    }
    let follower_of = |cluster: &Cluster, group| {
        let leader = cluster.leader(group).expect("it has a leader");
        StoreId(3 - leader.0)
    };
    for group in GROUPS {
        let follower = follower_of(&cluster, group);
        assert_eq!(
            state(&mut cluster, group, follower),
            ProgressState::Replicate
        );
    }
    let (one, two) = (GROUPS[0], GROUPS[1]);
    let (to_one, to_two) = (follower_of(&cluster, one), follower_of(&cluster, two));
    let of = |group: GroupId| Lost::Of(vec![GroupId(77), group]);
    // A report from both stores: a follower has nothing to do with it.
    for store in [1, 2] {
        let to = StoreId(3 - store);
        cluster.handle(store).lost(to, of(one));
    }
    assert_eq!(state(&mut cluster, one, to_one), ProgressState::Probe);
    assert_eq!(state(&mut cluster, two, to_two), ProgressState::Replicate);
    for store in [1, 2] {
        cluster.handle(store).lost(StoreId(3 - store), Lost::Any);
    }
    assert_eq!(state(&mut cluster, two, to_two), ProgressState::Probe);
    for group in GROUPS {
        cluster.written(group);
    }
    cluster.ticks(10);
    assert_eq!(state(&mut cluster, one, to_one), ProgressState::Replicate);
    assert_eq!(state(&mut cluster, two, to_two), ProgressState::Replicate);
    cluster.settle_and_check();
}
