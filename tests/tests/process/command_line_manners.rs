//! What the command line does when things are not as they should be: a reader that leaves, a
//! cluster that has not begun, a terminal that is closed. It says what is wrong, and at once.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use polyraft_tests::process::{Cluster, Finished, Options, binary, eventually, free_port, run};

fn polyraft(arguments: &[&str]) -> Finished {
    run(
        Command::new(binary()).args(arguments),
        Duration::from_secs(60),
    )
}

/// The JSON object on standard error.
#[track_caller]
fn told(finished: &Finished) -> serde_json::Value {
    assert_eq!(finished.code(), 1, "{finished:?}");
    serde_json::from_str(&finished.stderr).unwrap_or_else(|error| panic!("{error}: {finished:?}"))
}

/// Reads one line of the program's output, closes that, and gives how it ended and what it complained of.
fn read_one_line(mut child: Child) -> (std::process::ExitStatus, String) {
    let mut line = String::new();
    let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
    output.read_line(&mut line).expect("a line");
    drop(output);
    let mut errors = String::new();
    let mut pipe = child.stderr.take().expect("a pipe");
    pipe.read_to_string(&mut errors).expect("text");
    (child.wait().expect("it ends"), errors)
}

/// With the usual answer to signals, also where the tests themselves were started by `nohup`.
fn piped(arguments: &[&str]) -> Child {
    Command::new("env")
        .arg("--default-signal")
        .arg(binary())
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts")
}

#[test]
fn a_reader_that_leaves_ends_it_quietly() {
    let cluster = Cluster::start(Options::default());
    let endpoints = cluster.endpoints().join(",");
    let load = ["load", "--duration", "60s", "--endpoints", &endpoints];
    let begun = Instant::now();
    let (status, errors) = read_one_line(piped(&load));
    assert_eq!((status.code(), errors.as_str()), (Some(141), ""));
    assert!(begun.elapsed() < Duration::from_secs(50), "it went on");
}

#[test]
fn a_demo_that_nobody_reads_leaves_no_stores() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().to_string_lossy().into_owned();
    let demo = ["demo", "--groups", "4", "--no-wait", "--data-dir", &path];
    let (status, errors) = read_one_line(piped(&demo));
    assert_eq!((status.code(), errors.as_str()), (Some(141), ""));
    eventually("its stores to end", || nobody_uses(&path));
}

/// However the demo ends, by a closed terminal or by force, its stores end with it.
#[test]
fn a_demo_takes_its_stores_along() {
    for (signal, code) in [("HUP", Some(130)), ("INT", Some(130)), ("KILL", None)] {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().to_string_lossy().into_owned();
        let arguments = ["demo", "--groups", "4", "--no-wait", "--data-dir", &path];
        let mut demo = piped(&arguments);
        eventually("stores to run", || match nobody_uses(&path) {
            Ok(()) => Err("no store yet".to_owned()),
            Err(_) => Ok(()),
        });
        let pid = demo.id().to_string();
        let sent = Command::new("kill").args(["-s", signal, &pid]).status();
        assert!(sent.expect("kill runs").success());
        assert_eq!(demo.wait().expect("it ends").code(), code, "{signal}");
        eventually("its stores to end", || nobody_uses(&path));
    }
}

/// No store runs with its data below `path`.
fn nobody_uses(path: &str) -> Result<(), String> {
    let processes = std::fs::read_dir("/proc").map_err(|error| error.to_string())?;
    for process in processes.flatten() {
        let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(" start ") && line.contains(path) {
            return Err(format!("{:?}: {line}", process.file_name()));
        }
    }
    Ok(())
}

#[test]
fn before_init_it_says_so() {
    let mut cluster = Cluster::stopped(Options {
        stores: 2,
        ..Options::default()
    });
    cluster.store(1).start();
    eventually("it to listen", || cluster.cli(&["status"]).success());
    let first = cluster.endpoints()[..1].to_vec();
    let put = cluster.cli_at(&first, &["kv", "put", "key", "value"]);
    assert_eq!(put.code(), 1);
    for words in ["not been initialised", "polyraft init"] {
        assert!(put.stderr.contains(words), "no {words:?} in {put:?}");
    }
    let put = cluster.cli_at(&first, &["kv", "put", "key", "value", "-o", "json"]);
    let error = told(&put);
    assert_eq!(error["reason"], "not-initialised");
    assert_eq!(error["effect"], "none");
    // The second store never comes: init ends when it was told to.
    let begun = Instant::now();
    let init = cluster.cli_at(&first, &["init", "--groups", "2", "--timeout", "2s"]);
    assert_eq!(init.code(), 1, "{init:?}");
    assert!(begun.elapsed() < Duration::from_secs(15), "{init:?}");
}

#[test]
fn a_wrong_group_is_said_at_once() {
    let cluster = Cluster::start(Options::default());
    let timeout = ["--timeout", "100s", "-o", "json"];
    let begun = Instant::now();
    let with = |arguments: &[&str]| cluster.cli(&[arguments, &timeout].concat());
    let unknown = told(&with(&["kv", "put", "--group", "77", "key", "value"]));
    assert!(unknown["error"].as_str().expect("text").contains("77"));
    assert_eq!(unknown["effect"], "none");
    // Group 1 begins at the lowest key; this one is far beyond its end.
    for verb in [
        &["kv", "get", "--group", "1", "--hex", "ffff"][..],
        &["kv", "put", "--group", "1", "--hex", "ffff", "00"],
        &["kv", "get", "--stale", "--group", "1", "--hex", "ffff"],
    ] {
        let outside = told(&with(verb));
        assert_eq!(outside["reason"], "bad-request", "{outside}");
        assert!(outside["error"].as_str().expect("text").contains("range"));
    }
    assert!(begun.elapsed() < Duration::from_secs(60));
    cluster
        .cli(&["kv", "put", "--group", "1", "--hex", "00", "00"])
        .success()
        .expect("a key of its range");
}

#[test]
fn what_is_wrong_is_found_before_the_run() {
    let nobody = format!("127.0.0.1:{}", free_port());
    for (arguments, words) in [
        (
            &[
                "load",
                "--json",
                "/nonexistent/x.json",
                "--endpoints",
                &nobody,
            ][..],
            "/nonexistent/x.json",
        ),
        (
            &["load", "--reads", "60", "--scans", "60"],
            "together at most 100",
        ),
        (
            &["kv", "get", "key", "--endpoints", &nobody],
            "POLYRAFT_ENDPOINTS",
        ),
        (
            &["init", "--timeout", "2s", "--endpoints", &nobody],
            "POLYRAFT_ENDPOINTS",
        ),
    ] {
        let finished = polyraft(arguments);
        assert_eq!(finished.code(), 1, "{finished:?}");
        assert!(finished.stderr.contains(words), "{finished:?}");
    }
    for (arguments, words) in [
        (
            &["status", "--endpoints", "http://127.0.0.1:1"][..],
            "http://",
        ),
        (&["status", "--endpoints", "nonsense"], "HOST:PORT"),
        (&["demo", "--groups", "100000000"], "100000"),
    ] {
        let finished = polyraft(arguments);
        assert_eq!(finished.code(), 2, "{finished:?}");
        assert!(finished.stderr.contains(words), "{finished:?}");
    }
}

#[test]
fn who_votes_is_said_whenever_members_are() {
    let cluster = Cluster::start(Options::default());
    let roles = |answer: &serde_json::Value| -> Vec<String> {
        let members = answer["members"].as_array().expect("members");
        let each = members
            .iter()
            .map(|m| format!("{} {}", m["store"], m["role"]));
        each.collect()
    };
    let created = cluster
        .json(&["group", "create", "--stores", "1,2"])
        .expect("created");
    assert_eq!(roles(&created), ["1 \"voter\"", "2 \"voter\""]);
    let group = created["group"].to_string();
    let learner = ["group", "add-learner", &group, "--store", "3"];
    let changed = eventually("a learner", || cluster.json(&learner));
    let expected = ["1 \"voter\"", "2 \"voter\"", "3 \"learner\""];
    assert_eq!(roles(&changed), expected);
    // Nobody is left to decide anything: that is a group to destroy.
    let alone = cluster
        .json(&["group", "create", "--stores", "1"])
        .expect("created");
    let alone = alone["group"].to_string();
    let removed = cluster.cli(&["group", "remove", &alone, "--store", "1"]);
    assert_eq!(removed.code(), 1, "{removed:?}");
    assert!(removed.stderr.contains("group destroy"), "{removed:?}");
}
