//! No quorum, stores that hang, and stores that leave in good order.

use polyraft_tests::process::{Cluster, Finished, Options, eventually};
use polyraft_tests::workload::{Mix, Workload};

/// A refusal a person can act on: it names the missing quorum and comes by itself, before the
/// harness's bound.
#[track_caller]
fn assert_no_quorum(finished: &Finished) {
    assert_ne!(finished.code(), 0, "{finished:?}");
    let said = finished.stderr.to_lowercase();
    assert!(
        said.contains("no quorum"),
        "the error does not name the cause: {finished:?}"
    );
    assert!(!said.contains("panicked"), "{finished:?}");
}

#[test]
fn two_stores_down_give_a_clear_error_and_recover_by_themselves() {
    let mut cluster = Cluster::start(Options::default());
    cluster
        .cli(&["kv", "put", "key", "before"])
        .success()
        .expect("all stores run");
    cluster.store(1).kill();
    cluster.store(2).kill();

    let third = [cluster.store(3).address().to_owned()];
    assert_no_quorum(&cluster.cli_at(&third, &["kv", "put", "key", "during", "--timeout", "3s"]));
    assert_no_quorum(&cluster.cli_at(&third, &["kv", "get", "key", "--timeout", "3s"]));

    cluster.store(1).start();
    eventually("a put with two of three stores", || {
        cluster.cli(&["kv", "put", "key", "after"]).success()
    });
    let value = cluster
        .json(&["kv", "get", "key"])
        .expect("a quorum is back");
    assert_eq!(value["value"], "after");
    cluster.store(2).start();
    cluster.wait_for_leaders();
}

/// A store that hangs keeps its sockets open: only silence tells. The others go on; the sleeper finds its
/// terms over when it wakes, and answers no read from its past.
#[test]
fn a_paused_store_is_replaced_and_serves_nothing_stale() {
    let mut cluster = Cluster::start(Options::default());
    let workload = Workload::start("pause", Mix::Contended { keys: 5 }, cluster.clients(3));
    workload.wait_for_progress(40);
    for id in cluster.ids() {
        cluster.store(id).pause();
        workload.wait_for_progress(20);
        cluster.store(id).resume();
        workload.wait_for_progress(20);
    }
    let mut history = workload.finish();
    history.read_back(&mut cluster.connect());
    history.assert_linearizable();
}

/// SIGTERM: leaders move away first, so that clients notice nothing but a short pause.
#[test]
fn a_store_that_is_asked_to_leave_drains() {
    let mut cluster = Cluster::start(Options::default());
    let workload = Workload::start("drain", Mix::FreshKeys, cluster.clients(3));
    workload.wait_for_progress(40);
    let group = cluster.groups().expect("groups")[0];
    let leader = cluster.leader_of(group);

    let status = cluster.store(leader).terminate();
    assert_eq!(
        status.code(),
        Some(0),
        "{}",
        cluster.store(leader).log_tail(20)
    );
    assert_ne!(cluster.leader_of(group), leader);
    workload.wait_for_progress(40);

    cluster.store(leader).start();
    workload.wait_for_progress(40);
    let mut history = workload.finish();
    history.read_back(&mut cluster.connect());
    history.assert_linearizable();
}

/// A store that comes back gets its share of the leaderships, and then nothing moves any more.
#[test]
fn leaderships_come_back_to_a_store_that_was_away() {
    let mut cluster = Cluster::start(Options {
        groups: 30,
        start: vec!["--balance-interval".to_owned(), "500ms".to_owned()],
        ..Options::default()
    });
    let leaders = |cluster: &Cluster| -> Result<Vec<u64>, String> {
        let status = cluster.json(&["status"])?;
        let stores = status["stores"].as_array().ok_or("no stores")?;
        Ok(stores
            .iter()
            .filter_map(|s| s["leaders"].as_u64())
            .collect())
    };
    cluster.store(2).kill();
    eventually("the others to lead everything", || {
        match leaders(&cluster)? {
            all if all.iter().sum::<u64>() == 30 && all[1] == 0 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    cluster.store(2).start();
    eventually("leaders on all stores", || match leaders(&cluster)? {
        all if all.iter().all(|leaders| (9..=11).contains(leaders)) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    // Balanced, it rests: many turns later the terms are the same.
    let terms = |cluster: &Cluster| {
        let list = cluster.json(&["group", "list"]).expect("a list");
        let groups = list["groups"].as_array().expect("groups").iter();
        groups
            .map(|g| g["term"].as_u64().expect("a term"))
            .collect::<Vec<_>>()
    };
    let before = terms(&cluster);
    let passes = std::time::Duration::from_secs(4);
    std::thread::sleep(passes);
    assert_eq!(terms(&cluster), before, "leaderships move without need");
}

/// A drained store has nothing to replay that it did not flush: it starts, serves, and leaves again.
#[test]
fn leaving_and_coming_back_is_no_event() {
    let mut cluster = Cluster::start(Options::default());
    cluster
        .cli(&["kv", "put", "key", "value"])
        .success()
        .expect("all stores run");
    for id in cluster.ids() {
        assert_eq!(cluster.store(id).terminate().code(), Some(0));
        cluster.store(id).start();
        cluster.wait_for_leaders();
    }
    let value = eventually("the value", || cluster.json(&["kv", "get", "key"]));
    assert_eq!(value["value"], "value");
}

/// All stores asked to leave at once: nobody is left to lead, and still each of them exits with 0
/// in bounded time.
#[test]
fn a_whole_cluster_leaves_at_once() {
    let mut cluster = Cluster::start(Options::default());
    cluster
        .cli(&["kv", "put", "key", "value"])
        .success()
        .expect("all stores run");
    let ids = cluster.ids();
    ids.iter().for_each(|id| cluster.store(*id).signal("TERM"));
    for id in &ids {
        let status = cluster.store(*id).wait_for_exit();
        assert_eq!(
            status.code(),
            Some(0),
            "store {id}: {}",
            cluster.store(*id).log_tail(20)
        );
    }
    ids.iter().for_each(|id| cluster.store(*id).start());
    let value = eventually("the value", || cluster.json(&["kv", "get", "key"]));
    assert_eq!(value["value"], "value");
}
