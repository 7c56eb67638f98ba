//! The command line: every verb as a table and as JSON, and errors that say what to do.

use std::process::Command;
use std::time::Duration;

use polyraft_tests::process::{Cluster, Finished, Options, binary, run};

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
        &["kv", "delete", "key"],
        &["group", "transfer", &group, "--to", "1"],
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
        8,
        "{table}"
    );
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
    ] {
        let help = polyraft(verb).success().expect("help");
        assert!(
            help.stdout.contains("polyraft "),
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
