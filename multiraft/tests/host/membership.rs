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
