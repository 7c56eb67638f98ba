//! `kill -9` of one store and of all stores while clients write.

use polyraft_tests::process::{Cluster, Options};
use polyraft_tests::workload::{Mix, Workload};

/// Write, kill the store of a leader, keep writing, restart: everything acknowledged is there.
#[test]
fn a_killed_leader_loses_no_acknowledged_write() {
    let mut cluster = Cluster::start(Options::default());
    let workload = Workload::start("kill", Mix::FreshKeys, cluster.clients(3));
    workload.wait_for_progress(60);

    let group = cluster.groups().expect("groups")[0];
    let leader = cluster.leader_of(group);
    cluster.store(leader).kill();
    workload.wait_for_progress(60);

    cluster.store(leader).start();
    workload.wait_for_progress(60);
    let mut history = workload.finish();

    history.read_back(&mut cluster.connect());
    history.assert_linearizable();
    assert!(history.acknowledged() >= 180);
}

/// Each store in turn is killed and comes back: every group changes its leader several times, and each store
/// has to catch up from a log that went on without it.
#[test]
fn killing_each_store_in_turn_loses_nothing() {
    let mut cluster = Cluster::start(Options::default());
    let workload = Workload::start("turn", Mix::FreshKeys, cluster.clients(3));
    for id in cluster.ids() {
        workload.wait_for_progress(20);
        cluster.store(id).kill();
        workload.wait_for_progress(20);
        cluster.store(id).start();
        cluster.wait_for_leaders();
    }
    let mut history = workload.finish();
    history.read_back(&mut cluster.connect());
    history.assert_linearizable();
}

/// Power failure of the whole site: the logs alone must bring everything back.
#[test]
fn all_stores_killed_at_once_lose_nothing() {
    let mut cluster = Cluster::start(Options::default());
    let workload = Workload::start("all", Mix::FreshKeys, cluster.clients(3));
    for _ in 0..2 {
        workload.wait_for_progress(60);
        let ids = cluster.ids();
        ids.iter().for_each(|id| cluster.store(*id).kill());
        ids.iter().for_each(|id| cluster.store(*id).start());
    }
    workload.wait_for_progress(30);
    let mut history = workload.finish();
    history.read_back(&mut cluster.connect());
    history.assert_linearizable();
}

/// Few keys, many clients, reads and swaps among the writes, and one store after the other killed: what the
/// clients saw has an order.
#[test]
fn a_contended_history_under_crashes_is_linearizable() {
    let mut cluster = Cluster::start(Options::default());
    let workload = Workload::start("contended", Mix::Contended { keys: 5 }, cluster.clients(4));
    for turn in 0..4 {
        workload.wait_for_progress(40);
        let id = 1 + turn % 3;
        cluster.store(id).kill();
        workload.wait_for_progress(40);
        cluster.store(id).start();
    }
    workload.wait_for_progress(40);
    let mut history = workload.finish();
    history.read_back(&mut cluster.connect());
    history.assert_linearizable();
}
