//! `kill -9` of one store and of all stores while clients write.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use polyraft_tests::linearizability::Action;
use polyraft_tests::process::{Cluster, Connection, Options, eventually};
use polyraft_tests::workload::{Answer, KeyValue, Mix, Workload};

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

/// Each store in turn is killed and comes back: every group changes its leader several times, and
/// each store has to catch up from a log that went on without it.
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

/// Few keys, many clients, reads and swaps among the writes, and one store after the other killed:
/// what the clients saw has an order.
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

/// Counts up by comparing and writing until it is told to stop. A write that was made and whose
/// answer was lost finds another value when it is sent again: only who is recognised is told that
/// it has written.
fn count_up(mut client: Connection, key: &str, stop: &AtomicBool, done: &AtomicU64) -> u64 {
    let mut count = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        let action = Action::Cas {
            expected: (count > 0).then(|| count.to_string()),
            value: (count + 1).to_string(),
            swapped: false,
        };
        match client.call(key, &action) {
            Answer::Done { swapped: true, .. } => count += 1,
            other => panic!("{key}: the write of {} gave {other:?}", count + 1),
        }
        done.fetch_add(1, Ordering::Relaxed);
    }
    count
}

/// Whoever dies while a write is made: it is made once, and its client hears that it was.
#[test]
fn a_write_counts_once_over_crashes() {
    const KEYS: [&str; 4] = ["00counter", "51counter", "a2counter", "f3counter"];
    let mut cluster = Cluster::start(Options::default());
    let (stop, done) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let counters = KEYS.map(|key| {
        let client = cluster.connect().patient();
        let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
        thread::spawn(move || count_up(client, key, &stop, &done))
    });
    let wait_for_progress = || {
        let goal = done.load(Ordering::Relaxed) + 12;
        eventually("writes go on", || {
            // A counter that fails never comes back; it tells why when it is joined.
            let over = counters.iter().any(thread::JoinHandle::is_finished);
            let seen = done.load(Ordering::Relaxed);
            (over || seen >= goal)
                .then_some(())
                .ok_or_else(|| format!("{seen} of {goal}"))
        });
    };
    for id in cluster.ids().repeat(2) {
        wait_for_progress();
        cluster.store(id).kill();
        wait_for_progress();
        cluster.store(id).start();
        cluster.wait_for_leaders();
    }
    stop.store(true, Ordering::Relaxed);
    let mut reader = cluster.connect().patient();
    for (key, counter) in KEYS.into_iter().zip(counters) {
        let count = counter.join().expect("the counter says what went wrong");
        match reader.call(key, &Action::Get { result: None }) {
            Answer::Done { value, .. } => assert_eq!(value, Some(count.to_string()), "{key}"),
            other => panic!("{key}: {other:?}"),
        }
    }
}
