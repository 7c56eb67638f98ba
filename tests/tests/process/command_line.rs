//! The command line: every verb as a table and as JSON, and errors that say what to do.

use std::io::{Read, Write};
use std::process::Command;
use std::time::Duration;

use polyraft_tests::process::{Cluster, Finished, Options, binary, eventually, run};

fn polyraft(arguments: &[&str]) -> Finished {
    run(
        Command::new(binary()).args(arguments),
        Duration::from_secs(60),
    )
}

/// Every verb twice on one cluster: a table for people has no braces, JSON parses.
#[test]
fn every_verb_speaks_to_people_and_to_scripts() {
    let cluster = Cluster::start(Options::default());
    let group = cluster.groups().expect("groups")[0].to_string();
    let verbs: &[&[&str]] = &[
        &["status"],
        &["group", "list"],
        &["group", "describe", &group],
        &["kv", "put", "key", "value"],
        &["kv", "get", "key"],
        &["kv", "scan"],
        &["kv", "delete", "key"],
        &["group", "transfer", &group, "--to", "1"],
        &["group", "describe", "directory"],
        &["directory", "list"],
        &["directory", "stores"],
        &["balance", "explain"],
    ];
    for verb in verbs {
        let table = cluster.cli(verb).success().expect("works");
        assert!(
            !table.stdout.starts_with('{'),
            "a table for people: {table:?}"
        );
        cluster.json(verb).expect("works and prints JSON");
    }
    let table = cluster.cli(&["group", "list"]).stdout;
    assert_eq!(
        table
            .lines()
            .filter(|l| l.contains("1,2,3") || l.contains("1, 2, 3"))
            .count(),
        9,
        "{table}"
    );
    let system = table.lines().filter(|l| l.contains("directory"));
    assert_eq!(system.count(), 1, "{table}");
}

#[test]
fn a_missing_key_is_no_error_of_the_store() {
    let cluster = Cluster::start(Options::default());
    let missing = cluster
        .json(&["kv", "get", "never written"])
        .expect("a get of a missing key is answered");
    assert!(missing["value"].is_null(), "{missing}");
    cluster
        .cli(&["kv", "delete", "never written"])
        .success()
        .expect("deleting it is no error either");
}

#[test]
fn bad_arguments_exit_with_2_and_say_why() {
    for (arguments, word) in [
        (&["fly"][..], "fly"),
        (&["start"], "--data-dir"),
        (
            &[
                "start",
                "--store-id",
                "0",
                "--data-dir",
                "/nonexistent",
                "--listen",
                "127.0.0.1:0",
            ],
            "store",
        ),
        (
            &[
                "start",
                "--store-id",
                "one",
                "--data-dir",
                "/nonexistent",
                "--listen",
                "127.0.0.1:0",
            ],
            "one",
        ),
        (&["kv", "get"], "key"),
        (&["group", "describe", "first"], "first"),
        (&["kv", "get", "key", "-o", "xml"], "xml"),
        (&["kv", "scan", "--limit", "0"], "0"),
        (&["kv", "scan", "--prefix", "a", "--to", "b"], "--to"),
    ] {
        let finished = polyraft(arguments);
        assert_eq!(finished.code(), 2, "{finished:?}");
        assert!(
            finished.stderr.to_lowercase().contains(word),
            "no {word:?} in {finished:?}"
        );
        assert!(
            finished.stdout.is_empty(),
            "errors go to standard error: {finished:?}"
        );
    }
}

#[test]
fn help_has_examples() {
    for verb in [
        &["--help"][..],
        &["start", "--help"],
        &["kv", "--help"],
        &["group", "--help"],
        &["load", "--help"],
        &["group", "add-learner", "--help"],
        &["group", "destroy", "--help"],
        &["kv", "get", "--help"],
        &["kv", "cas", "--help"],
        &["kv", "scan", "--help"],
    ] {
        let help = polyraft(verb).success().expect("help");
        assert!(
            help.stdout.contains("Example"),
            "help shows how to call it: {help:?}"
        );
    }
}

#[test]
fn nobody_there_is_said_in_bounded_time() {
    let nobody = format!("127.0.0.1:{}", polyraft_tests::process::free_port());
    let finished = polyraft(&["kv", "get", "key", "--endpoints", &nobody]);
    assert_ne!(finished.code(), 0);
    assert!(
        finished.stderr.contains(&nobody),
        "the error names the address: {finished:?}"
    );
}

/// What Prometheus scrapes: counters that grow, with the store as a label, on an address of their own.
#[test]
fn metrics_are_there_for_prometheus() {
    let mut cluster = Cluster::stopped(Options {
        stores: 1,
        ..Options::default()
    });
    let address = format!("127.0.0.1:{}", polyraft_tests::process::free_port());
    let mut arguments = cluster.store(1).arguments().to_vec();
    arguments.extend(["--metrics-listen".to_owned(), address.clone()]);
    cluster.store(1).restart_with(arguments);
    eventually("init", || cluster.cli(&["init", "--groups", "3"]).success());
    cluster.wait_for_leaders();
    for turn in 0..5 {
        let value = turn.to_string();
        cluster
            .cli(&["kv", "put", "key", &value])
            .success()
            .expect("serves");
    }
    let scrape = || -> std::io::Result<String> {
        let mut stream = std::net::TcpStream::connect(&address)?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    let text = scrape().expect("an answer");
    let value = |name: &str| -> f64 {
        let line = text
            .lines()
            .find(|line| line.starts_with(&format!("{name}{{")));
        let line = line.unwrap_or_else(|| panic!("no {name} in {text}"));
        assert!(line.contains("store=\"1\""), "{line}");
        let (_, value) = line.rsplit_once(' ').expect("a value");
        value.parse().expect("a number")
    };
    assert!(text.contains("# HELP polyraft_proposals_total "), "{text}");
    assert_eq!(value("polyraft_replicas"), 3.0);
    assert_eq!(value("polyraft_leaders"), 3.0);
    assert!(value("polyraft_proposals_total") >= 5.0);
    assert!(value("polyraft_synced_writes_total") > 0.0);
    assert_eq!(value("polyraft_disk_full"), 0.0);
}

/// So many operations on these groups and no others, and a report that says where it ran.
#[test]
fn load_by_operations_and_groups_and_what_its_report_says() {
    let cluster = Cluster::start(Options::default());
    let file = cluster.directory().join("report.json");
    let path = file.to_string_lossy().into_owned();
    let load = cluster.cli(&[
        "load",
        "--ops",
        "500",
        "--groups",
        "2-3,5",
        "--connections",
        "2",
        "--concurrency",
        "7",
        "--reads",
        "10",
        "--scans",
        "10",
        "--json",
        &path,
    ]);
    let summary = load.success().expect("load runs").stdout;
    for words in [
        "3 groups of 3 replicas",
        "RocksDB",
        "fdatasync of every log record",
    ] {
        assert!(summary.contains(words), "no {words:?} in: {summary}");
    }
    let text = std::fs::read_to_string(&file).expect("a report");
    let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let errors = report["errors"].as_object().expect("errors").values();
    let errors: u64 = errors.filter_map(serde_json::Value::as_u64).sum();
    assert_eq!(
        report["ok"].as_u64().expect("a number") + errors,
        500,
        "{report}"
    );
    assert_eq!(report["groups"], 3);
    assert_eq!(report["replication_factor"]["min"], 3);
    let stores = report["stores"].as_array().expect("stores");
    assert_eq!(stores.len(), 3);
    for store in stores {
        let environment = &store["environment"];
        for name in [
            "rocksdb",
            "filesystem",
            "sync_policy",
            "processor_model",
            "kernel",
        ] {
            let value = environment[name].as_str().expect("text");
            assert!(!value.is_empty(), "no {name} in {environment}");
        }
        assert!(
            environment["processors"].as_u64() > Some(0),
            "{environment}"
        );
    }
    // Nothing went to other groups: the first of them has its bootstrap and its leaders' entries only.
    let list = cluster.json(&["group", "list"]).expect("a list");
    let commits = |wanted: &[u64]| -> u64 {
        let groups = list["groups"].as_array().expect("groups").iter();
        let those = groups.filter(|g| g["group"].as_u64().is_some_and(|n| wanted.contains(&n)));
        those.filter_map(|g| g["commit_index"].as_u64()).sum()
    };
    assert!(commits(&[2, 3, 5]) > 350, "{list}");
    assert!(commits(&[1, 4, 6, 7, 8]) < 100, "{list}");

    let none = cluster.cli(&["load", "--groups", "100-200", "--ops", "1"]);
    assert_ne!(none.code(), 0);
    assert!(none.stderr.contains("none of the groups"), "{none:?}");
}

/// The load generator's own history, checked from outside.
#[test]
fn load_writes_a_history_that_checks() {
    let cluster = Cluster::start(Options::default());
    let file = cluster.directory().join("history.jsonl");
    let history = file.to_string_lossy().into_owned();
    let load = cluster.cli(&[
        "load",
        "--duration",
        "5s",
        "--concurrency",
        "8",
        "--keys",
        "5",
        "--history",
        &history,
    ]);
    let load = load.success().expect("load runs");
    let operations = polyraft_tests::linearizability::read_file(&file).expect("a history");
    assert!(
        operations.len() > 50,
        "{} operations; {}",
        operations.len(),
        load.stdout
    );
    let report = polyraft_tests::linearizability::check(&operations, &Default::default());
    assert!(report.is_linearizable(), "{report}");
}

/// What is kept in a directory, and how to go on by hand.
#[test]
fn a_demo_keeps_its_directory_if_asked() {
    let directory = tempfile::tempdir().expect("a directory");
    let data = directory.path().join("demo");
    let path = data.to_string_lossy().into_owned();
    let arguments = [
        "demo",
        "--no-wait",
        "--groups",
        "4",
        "--stores",
        "4",
        "--duration",
        "3s",
        "--data-dir",
        &path,
    ];
    // The second one goes on with the stores of the first, on other ports.
    for _ in 0..2 {
        let finished = run(
            Command::new(binary()).args(arguments),
            Duration::from_secs(180),
        );
        let finished = finished.success().expect("ends well");
        assert!(finished.stdout.contains("verified"), "{finished:?}");
        assert!(finished.stdout.contains("store-N.log"), "{finished:?}");
    }
    for store in 1..=4 {
        assert!(data.join(format!("store-{store}.log")).is_file());
    }
}

/// The whole demonstration in small: three processes, load, a crash, and all acknowledged writes verified.
#[test]
fn the_demo_ends_well() {
    let finished = run(
        Command::new(binary()).args(["demo", "--no-wait", "--groups", "16", "--duration", "6s"]),
        Duration::from_secs(180),
    );
    let finished = finished
        .success()
        .expect("the demo verifies its writes and exits with 0");
    assert!(finished.stdout.contains("verified"), "{}", finished.stdout);
}
