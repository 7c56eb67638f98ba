//! A store that is started with data, a number or a cluster that do not belong together refuses clearly.
//!
//! The wrong data directory behind the right address would be a member that forgot its votes: two
//! leaders in one term.

use std::process::Command;
use std::time::Duration;

use polyraft_tests::process::{Cluster, Finished, Options, binary, eventually, free_port, run};

/// Runs `polyraft start` where it must refuse, in bounded time.
#[track_caller]
fn refused(arguments: &[String]) -> Finished {
    let finished = run(
        Command::new(binary()).args(arguments),
        Duration::from_secs(60),
    );
    assert_ne!(finished.code(), 0, "{finished:?}");
    assert!(!finished.stderr.contains("panicked"), "{finished:?}");
    finished
}

#[track_caller]
fn assert_says(finished: &Finished, words: &[&str]) {
    let said = format!("{}{}", finished.stderr, finished.stdout).to_lowercase();
    for word in words {
        assert!(said.contains(word), "no {word:?} in: {finished:?}");
    }
}

/// The arguments of a store, with one of its options given another value.
fn with(arguments: &[String], option: &str, value: &str) -> Vec<String> {
    let mut changed = arguments.to_vec();
    let at = changed.iter().position(|argument| argument == option);
    let at = at.unwrap_or_else(|| panic!("{option} is not among {arguments:?}"));
    changed[at + 1] = value.to_owned();
    changed
}

#[test]
fn two_processes_on_one_directory_are_refused() {
    let mut cluster = Cluster::start(Options::default());
    let port = free_port();
    let arguments = with(
        cluster.store(1).arguments(),
        "--listen",
        &format!("127.0.0.1:{port}"),
    );
    let finished = refused(&arguments);
    assert_says(&finished, &["store-1", "in use"]);
    assert!(cluster.store(1).is_running(), "the first process goes on");
    cluster
        .cli(&["kv", "put", "key", "value"])
        .success()
        .expect("the cluster goes on");
}

#[test]
fn another_stores_data_is_refused() {
    let mut cluster = Cluster::start(Options::default());
    cluster.store(1).kill();
    cluster.store(2).kill();
    let theirs = cluster.store(2).data().to_string_lossy().into_owned();
    let arguments = with(cluster.store(1).arguments(), "--data-dir", &theirs);
    assert_says(&refused(&arguments), &["store 2", "store 1"]);

    // Refusing has harmed nothing.
    cluster.store(1).start();
    cluster.store(2).start();
    cluster.wait_for_leaders();
}

#[test]
fn a_port_in_use_is_named() {
    let mut cluster = Cluster::start(Options::default());
    cluster.store(2).kill();
    let taken = cluster.store(1).address().to_owned();
    let arguments = with(cluster.store(2).arguments(), "--listen", &taken);
    assert_says(&refused(&arguments), &[&taken, "in use"]);
}

/// A member of one cluster that is pointed at the stores of another must not take part there.
#[test]
fn stores_of_another_cluster_are_not_talked_to() {
    let mut one = Cluster::start(Options::default());
    let mut other = Cluster::start(Options::default());
    let key = ["kv", "put", "key", "one"];
    one.cli(&key).success().expect("the first cluster serves");
    // The other's store 3 dies, and one of ours listens where it did.
    other.store(3).kill();
    one.store(3).kill();
    let address = other.store(3).address().to_owned();
    let arguments = with(one.store(3).arguments(), "--listen", &address);
    one.store(3).restart_with(arguments);
    for turn in 0..20 {
        let value = format!("{turn}");
        other
            .cli(&["kv", "put", &value, &value])
            .success()
            .expect("two of three serve");
    }
    let list = other.cli_at(&[address], &["kv", "get", "0", "--stale", "-o", "json"]);
    assert!(
        !list.stdout.contains("\"value\":\"0\""),
        "a store took the data of another cluster: {list:?}"
    );
    assert!(one.store(3).is_running(), "{}", one.store(3).log_tail(20));
}

/// The directory of a store is gone, and an empty one stands in its place: it would vote a second
/// time in terms it has voted in, and others count on acknowledged writes that it no longer has.
#[test]
fn an_empty_directory_in_the_place_of_a_lost_one_is_refused() {
    let mut cluster = Cluster::start(Options::default());
    let put = ["kv", "put", "key", "value"];
    cluster.cli(&put).success().expect("the cluster serves");
    cluster.store(2).kill();
    let lost = cluster.store(2).data().with_extension("lost");
    std::fs::rename(cluster.store(2).data(), &lost).expect("the directory moves away");
    let finished = refused(cluster.store(2).arguments());
    assert_says(
        &finished,
        &[
            "store 2",
            "another data directory",
            "group replace",
            "never used",
        ],
    );
    cluster.cli(&put).success().expect("the others go on");

    // The others know it after a restart too.
    cluster.store(1).kill();
    cluster.store(3).kill();
    cluster.store(1).start();
    cluster.store(3).start();
    eventually("two of three stores to serve", || {
        cluster.cli(&put).success()
    });
    assert_says(
        &refused(cluster.store(2).arguments()),
        &["another data directory"],
    );

    // The old directory is welcome.
    std::fs::remove_dir_all(cluster.store(2).data()).expect("the empty directory goes");
    std::fs::rename(&lost, cluster.store(2).data()).expect("the directory comes back");
    cluster.store(2).start();
    eventually("three stores", || all_up(&cluster, 3));
}

/// A copy of the directory from before: the same loss, in part.
#[test]
fn an_old_copy_of_the_directory_is_refused() {
    let mut cluster = Cluster::start(Options::default());
    assert_eq!(cluster.store(2).terminate().code(), Some(0));
    let (data, copy) = (
        cluster.store(2).data().to_owned(),
        cluster.store(2).data().with_extension("copy"),
    );
    let copied = Command::new("cp").arg("-r").args([&data, &copy]).status();
    assert!(copied.expect("cp runs").success());
    for _ in 0..2 {
        cluster.store(2).start();
        cluster.wait_for_leaders();
        eventually("store 2 to be heard", || all_up(&cluster, 3));
        assert_eq!(cluster.store(2).terminate().code(), Some(0));
    }
    let arguments = with(
        cluster.store(2).arguments(),
        "--data-dir",
        &copy.to_string_lossy(),
    );
    // However often it is tried.
    for _ in 0..3 {
        assert_says(&refused(&arguments), &["old copy", "store 2"]);
    }
}

/// Whoever mistypes the list of stores must not make the others believe in a store that is none.
#[test]
fn a_store_that_is_none_is_forgotten_and_told_to_nobody() {
    let mut cluster = Cluster::start(Options::default());
    let fourth = cluster.add_store();
    eventually("store 4 to be heard", || all_up(&cluster, 4));
    let wrong = format!("9={}", cluster.store(1).address());
    assert_eq!(cluster.store(fourth).terminate().code(), Some(0));
    let arguments = with(cluster.store(fourth).arguments(), "--peers", &wrong);
    cluster.store(fourth).restart_with(arguments);
    eventually("store 4 to complain", || {
        let log = cluster.store(fourth).log();
        if log.contains("check --peers") {
            Ok(())
        } else {
            Err(log)
        }
    });
    eventually("store 4 to be heard again", || all_up(&cluster, 4));
    for endpoint in cluster.endpoints() {
        let status = cluster.cli_at(&[endpoint], &["status", "-o", "json"]);
        let status = status
            .success()
            .and_then(|done| done.json())
            .expect("a status");
        let stores = status["stores"].as_array().expect("stores");
        assert!(stores.iter().all(|store| store["store"] != 9), "{status}");
    }
}

fn all_up(cluster: &Cluster, count: usize) -> Result<(), String> {
    let status = cluster.json(&["status"])?;
    let up = status["stores"]
        .as_array()
        .is_some_and(|all| all.len() == count && all.iter().all(|s| s["state"] == "up"));
    if up { Ok(()) } else { Err(status.to_string()) }
}

/// A store that could not run must not join first, nor one that tells the others a useless address.
#[test]
fn what_cannot_run_touches_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let data = directory.path().join("data");
    for (options, words) in [
        (
            &["--listen", "127.0.0.1:0", "--workers", "0"][..],
            "workers",
        ),
        (&["--listen", "127.0.0.1:0", "--tick", "0s"], "tick"),
        (&["--listen", "0.0.0.0:0"], "--advertise"),
    ] {
        let start = ["start", "--store-id", "1", "--data-dir"].map(str::to_owned);
        let mut arguments = start.to_vec();
        arguments.push(data.to_string_lossy().into_owned());
        arguments.extend(options.iter().map(|option| (*option).to_owned()));
        assert_says(&refused(&arguments), &[words]);
        assert!(!data.exists(), "{options:?} touched the directory");
    }
}
