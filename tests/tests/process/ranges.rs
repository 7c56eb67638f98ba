//! Ranges that split, merge and move, from the command line, while clients use them and stores die.

use std::process::Command;
use std::thread;

use polyraft_tests::linearizability::Action;
use polyraft_tests::process::{Cluster, Finished, Options, PATIENCE, binary, eventually, run};
use polyraft_tests::workload::{Answer, KeyValue, Mix, Workload};
use serde_json::Value;

/// One range of `polyraft range list -o json`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RangeView {
    pub(crate) group: u64,
    /// In hexadecimal.
    pub(crate) start: String,
    pub(crate) end: Option<String>,
    pub(crate) generation: u64,
    pub(crate) stores: Vec<u64>,
    pub(crate) leader: Option<u64>,
    pub(crate) frozen: bool,
}

/// All ranges as `at` lists them: in order, side by side, and no key is left out.
///
/// # Errors
/// It does not answer, or knows of holes.
pub(crate) fn ranges_at(cluster: &Cluster, at: &[String]) -> Result<Vec<RangeView>, String> {
    let list = cluster.cli_at(at, &["range", "list", "-o", "json"]);
    let list = list.success()?.json()?;
    if list["holes"]
        .as_array()
        .is_none_or(|holes| !holes.is_empty())
    {
        return Err(format!("holes: {list}"));
    }
    let ranges: Option<Vec<RangeView>> = list["ranges"]
        .as_array()
        .and_then(|ranges| ranges.iter().map(view).collect());
    let ranges = ranges.ok_or_else(|| format!("another shape: {list}"))?;
    let mut at = Some(String::new());
    for range in &ranges {
        assert_eq!(
            Some(&range.start),
            at.as_ref(),
            "a gap or an overlap: {ranges:?}"
        );
        at.clone_from(&range.end);
    }
    assert_eq!(at, None, "the last range ends: {ranges:?}");
    Ok(ranges)
}

fn view(range: &Value) -> Option<RangeView> {
    let members = range["members"].as_array()?;
    let mut stores: Vec<u64> = members
        .iter()
        .map(|member| member["store"].as_u64())
        .collect::<Option<_>>()?;
    stores.sort_unstable();
    Some(RangeView {
        group: range["group"].as_u64()?,
        start: range["start_hex"].as_str()?.to_owned(),
        end: range["end_hex"].as_str().map(str::to_owned),
        generation: range["epoch"]["range"].as_u64()?,
        stores,
        leader: range["leader_store"].as_u64(),
        frozen: !range["frozen"].is_null(),
    })
}

#[track_caller]
pub(crate) fn ranges(cluster: &Cluster) -> Vec<RangeView> {
    eventually("the ranges", || ranges_at(cluster, &cluster.endpoints()))
}

fn groups(ranges: &[RangeView]) -> Vec<u64> {
    ranges.iter().map(|range| range.group).collect()
}

fn one_range() -> Cluster {
    Cluster::start(Options {
        groups: 1,
        ..Options::default()
    })
}

/// What the command says when it succeeds, which it does after a while.
#[track_caller]
fn done(cluster: &Cluster, arguments: &[&str]) -> Value {
    eventually(&arguments.join(" "), || cluster.json(arguments))
}

#[track_caller]
fn refused(finished: &Finished, words: &str) {
    assert_eq!(finished.code(), 1, "{finished:?}");
    assert!(
        finished.stderr.contains(words),
        "no {words:?}: {finished:?}"
    );
}

/// Several keys at once, the same again, and from several stores at the same time: every key gets one range,
/// and no number is given twice.
#[test]
fn ranges_split_where_they_are_told_to() {
    let cluster = one_range();
    let workload = Workload::start("split", Mix::FreshKeys, cluster.clients(2));
    workload.wait_for_progress(10);
    let before = ranges(&cluster);
    assert_eq!(before.len(), 1);
    let split = ["range", "split", "--hex", "--at", "80", "--at", "40"];
    let answer = done(&cluster, &split);
    assert_eq!(
        answer["groups"].as_array().map(Vec::len),
        Some(3),
        "{answer}"
    );
    let answer = done(&cluster, &split);
    assert_eq!(answer["already_hex"], serde_json::json!(["40", "80"]));
    workload.wait_for_progress(10);
    let after = ranges(&cluster);
    let starts: Vec<&str> = after.iter().map(|range| &*range.start).collect();
    assert_eq!(starts, ["", "40", "80"]);
    assert_eq!(after[0].group, before[0].group);
    assert!(
        after
            .iter()
            .all(|range| range.generation > before[0].generation)
    );

    // The same keys and others, at once, by every store.
    thread::scope(|scope| {
        for endpoint in cluster.endpoints() {
            let cluster = &cluster;
            scope.spawn(move || {
                for key in ["20", "60", "a0", "a0ff", "c0"] {
                    let split = ["range", "split", "--hex", "--at", key, "--timeout", "50s"];
                    let split = cluster.cli_at(std::slice::from_ref(&endpoint), &split);
                    split.success().expect("a split");
                }
            });
        }
    });
    let after = ranges(&cluster);
    let starts: Vec<&str> = after.iter().map(|range| &*range.start).collect();
    assert_eq!(starts, ["", "20", "40", "60", "80", "a0", "a0ff", "c0"]);
    let mut numbers = groups(&after);
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), 8, "{after:?}");

    let described = done(&cluster, &["range", "describe", "--hex", "--key", "a0fe"]);
    assert_eq!(described["group"].as_u64(), Some(after[5].group));
    let table = cluster
        .cli(&["range", "list"])
        .success()
        .expect("a table")
        .stdout;
    assert!(
        table.lines().count() == 9 && table.contains("0xa0ff"),
        "{table}"
    );
    // Numbers of groups that are made otherwise come from the same row.
    let made = done(&cluster, &["group", "create", "--stores", "1,2,3"]);
    assert!(made["group"].as_u64() > numbers.last().copied(), "{made}");
    refused(
        &cluster.cli(&["range", "split", "--hex", "--at", "xy"]),
        "hexadecimal",
    );

    workload.wait_for_progress(10);
    let mut history = workload.finish();
    history.read_back(&mut cluster.connect().patient());
    history.assert_linearizable();
}

/// Neighbours become one, by number and by border, also asked twice and by all stores at once; what cannot
/// be merged goes on serving.
#[test]
fn ranges_merge_where_they_are_told_to() {
    let mut cluster = one_range();
    let keys = ["20", "40", "60", "80", "a0", "c0"];
    let at: Vec<&str> = keys.iter().flat_map(|key| ["--at", key]).collect();
    done(&cluster, &[&["range", "split", "--hex"], &at[..]].concat());
    let workload = Workload::start("merge", Mix::FreshKeys, cluster.clients(2));
    workload.wait_for_progress(10);
    let before = ranges(&cluster);
    assert_eq!(before.len(), 7);

    let merge = ["range", "merge", "--hex", "--at", "40"];
    let answer = done(&cluster, &merge);
    assert_eq!(
        answer["group"]["group"].as_u64(),
        Some(before[1].group),
        "{answer}"
    );
    let answer = done(&cluster, &merge);
    assert!(answer["merged"].is_null(), "{answer}");
    let first = before[0].group.to_string();
    let answer = done(&cluster, &["range", "merge", &first]);
    assert_eq!(answer["merged"].as_u64(), Some(before[1].group), "{answer}");
    workload.wait_for_progress(10);
    // Every border that is left, by every store.
    thread::scope(|scope| {
        for endpoint in cluster.endpoints() {
            let cluster = &cluster;
            scope.spawn(move || {
                for key in ["60", "80", "a0"] {
                    let merge = ["range", "merge", "--hex", "--at", key, "--timeout", "50s"];
                    let at = std::slice::from_ref(&endpoint);
                    eventually(key, || cluster.cli_at(at, &merge).success());
                }
            });
        }
    });
    let after = ranges(&cluster);
    assert_eq!(groups(&after), [before[0].group, before[6].group]);
    assert!(after[0].generation > before[0].generation);
    workload.wait_for_progress(10);

    let last = after[1].group.to_string();
    refused(&cluster.cli(&["range", "merge", &last]), "no range behind");
    refused(
        &cluster.cli(&["range", "merge", "--at", ""]),
        "before the first",
    );
    refused(&cluster.cli(&["range", "merge", "4711"]), "4711");
    // A member that cannot be heard would keep the group frozen: nothing is frozen, and all serve.
    cluster.store(3).kill();
    eventually("a refusal", || {
        let merge = ["range", "merge", &first, "--timeout", "12s"];
        match cluster.cli(&merge) {
            it if it.code() == 1 && it.stderr.contains("stores [3]") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    workload.wait_for_progress(10);
    assert!(ranges(&cluster).iter().all(|range| !range.frozen));
    cluster.store(3).start();
    done(&cluster, &["range", "merge", &first, "--timeout", "50s"]);
    assert_eq!(groups(&ranges(&cluster)), [before[0].group]);
    let mut history = workload.finish();
    history.read_back(&mut cluster.connect().patient());
    history.assert_linearizable();
}

/// A merge that waits while its right group is frozen, because the log of a store that is paused does not get
/// the freeze. Only stores that are heard are waited for: if it was missed already, it is paused again.
fn merge_that_waits(
    cluster: &mut Cluster,
    [driver, leader, slow]: [u64; 3],
) -> thread::JoinHandle<Finished> {
    let witness = [cluster.store(leader).address().to_owned()];
    let endpoint = cluster.store(driver).address().to_owned();
    for _ in 0..20 {
        cluster.store(slow).pause();
        let endpoint = endpoint.clone();
        let merge = thread::spawn(move || {
            let mut merge = Command::new(binary());
            merge.args(["range", "merge", "--hex", "--at", "80", "--timeout", "10s"]);
            run(merge.args(["--endpoints", &endpoint]), PATIENCE)
        });
        let mut frozen = false;
        eventually("the right group to be frozen, or the end", || {
            let seen = cluster.cli_at(&witness, &["group", "list", "-o", "json"]);
            let seen = seen.success()?.json()?;
            let groups = seen["groups"].as_array().ok_or("no groups")?;
            frozen = groups.iter().any(|group| !group["frozen"].is_null());
            (frozen || merge.is_finished())
                .then_some(())
                .ok_or(format!("{seen}"))
        });
        if frozen {
            return merge;
        }
        let ended = merge.join().expect("the command ends");
        assert_eq!(ended.code(), 1, "{ended:?}");
        cluster.store(slow).resume();
        eventually("all to be heard", || {
            let seen = cluster.cli_at(&witness, &["group", "list", "-o", "json"]);
            let seen = seen.success()?.json()?;
            let none = seen["unreachable"].as_array().is_some_and(Vec::is_empty);
            none.then_some(()).ok_or(format!("{seen}"))
        });
    }
    panic!("a store that is paused is never waited for");
}

/// The store that drives a merge dies while its right group is frozen: others finish or undo it.
#[test]
fn a_merge_whose_driver_dies_is_taken_over() {
    let start = ["--balance-interval", "0s"].map(str::to_owned).to_vec();
    let mut cluster = Cluster::start(Options {
        groups: 1,
        start,
        ..Options::default()
    });
    for turn in 0..2 {
        done(&cluster, &["range", "split", "--hex", "--at", "80"]);
        let both = groups(&ranges(&cluster));
        let leader = cluster.leader_of(both[1]);
        // Neither is led by the slow one.
        let led = cluster.leader_of(both[0]);
        let slow = (1..=3).rev().find(|store| ![leader, led].contains(store));
        let slow = slow.expect("there are three stores");
        let driver = (1..=3).find(|store| ![leader, slow].contains(store));
        let driver = driver.expect("there are three stores");
        let merge = merge_that_waits(&mut cluster, [driver, leader, slow]);
        cluster.store(driver).kill();
        let finished = merge.join().expect("the command ends");
        assert_eq!(finished.code(), 1, "{finished:?}");
        cluster.store(slow).resume();
        cluster.store(driver).start();
        eventually("nobody to be frozen", || {
            let seen = ranges_at(&cluster, &cluster.endpoints())?;
            match seen.iter().any(|range| range.frozen) {
                true => Err(format!("{seen:?}")),
                false => Ok(()),
            }
        });
        let mut client = cluster.connect().patient();
        let value = format!("of turn {turn}");
        let put = Action::Put {
            value: value.clone(),
        };
        eventually("a write to the right part", || {
            match client.call("90key", &put) {
                Answer::Done { .. } => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        done(
            &cluster,
            &["range", "merge", "--hex", "--at", "80", "--timeout", "50s"],
        );
        assert_eq!(ranges(&cluster).len(), 1);
        let got = client.call("90key", &Action::Get { result: None });
        let expected = Answer::Done {
            value: Some(value),
            swapped: false,
        };
        assert_eq!(got, expected);
    }
}

/// A voter moves under load, the leader too; interrupted it goes on elsewhere; and neighbours that came apart
/// are merged when they are together again.
#[test]
fn replicas_move_where_they_are_told_to() {
    let mut cluster = one_range();
    let fourth = cluster.add_store();
    done(&cluster, &["range", "split", "--hex", "--at", "80"]);
    let workload = Workload::start("move", Mix::FreshKeys, cluster.clients(2));
    workload.wait_for_progress(20);
    let right = ranges(&cluster)[1].group;
    let number = right.to_string();
    let leader = cluster.leader_of(right);
    let from = leader.to_string();
    let to = fourth.to_string();
    let step = ["range", "move", &number, "--from", &from, "--to", &to];
    // It is cut off again and again, and asked of one store after the other.
    let mut endpoints = cluster.endpoints().into_iter().cycle();
    eventually("the move", || {
        let at = [endpoints.next().ok_or("no endpoint")?];
        let step = [&step[..], &["--timeout", "300ms"]].concat();
        cluster.cli_at(&at, &step).success()
    });
    // Once more: it is done.
    let again = done(&cluster, &step);
    assert_eq!(again["done"], true, "{again}");
    workload.wait_for_progress(10);
    let moved = cluster.describe(right).expect("described");
    assert!(
        moved.voters.contains(&fourth) && !moved.voters.contains(&leader),
        "{moved:?}"
    );
    assert!(
        moved.learners.is_empty() && moved.voters.len() == 3,
        "{moved:?}"
    );

    // What the stores say of their replicas; the old one goes.
    eventually("three replicas that have everything", || {
        let said = cluster.json(&["range", "replicas", &number])?;
        let replicas = said["replicas"].as_array().ok_or("no replicas")?;
        let sound = |replica: &Value| {
            let state = replica["state"].as_str();
            replica["role"] == "voter"
                && state.is_some_and(|it| ["leader", "follower"].contains(&it))
        };
        match replicas.len() == 3 && replicas.iter().all(sound) {
            true => Ok(()),
            false => Err(format!("{said}")),
        }
    });
    // Its neighbour stayed: they cannot be merged, and the refusal says what to do.
    let merge = ["range", "merge", "--hex", "--at", "80"];
    let words = format!("polyraft range move {right} --from {to} --to {from}");
    refused(&cluster.cli(&merge), &words);
    workload.wait_for_progress(10);
    // Now with the receiving store down for a while.
    cluster.store(leader).kill();
    let back = ["range", "move", &number, "--from", &to, "--to", &from];
    let short = [&back[..], &["--timeout", "2s"]].concat();
    let finished = cluster.cli(&short);
    refused(&finished, "goes on where it is");
    cluster.store(leader).start();
    done(&cluster, &back);
    done(&cluster, &[&merge[..], &["--timeout", "50s"]].concat());
    assert_eq!(ranges(&cluster).len(), 1);
    let slip = cluster.cli(&["range", "move", "1", "--from", "1", "--to", "2"]);
    refused(&slip, "only shrink");
    refused(
        &cluster.cli(&["range", "move", "1", "--from", "1", "--to", "9"]),
        "not known",
    );

    let mut history = workload.finish();
    history.read_back(&mut cluster.connect().patient());
    history.assert_linearizable();
}

/// Everything leaves a store while clients write; then the store does. Asked again it is no error, and
/// with too few stores it says what is in the way.
#[test]
fn a_store_is_emptied_under_load() {
    let mut cluster = Cluster::start(Options {
        groups: 5,
        ..Options::default()
    });
    done(&cluster, &["group", "create", "--stores", "1,2,3"]);
    let short = ["store", "decommission", "2", "--timeout", "2s"];
    refused(&cluster.cli(&short), "add a store");
    cluster.add_store();
    let workload = Workload::start("leave", Mix::FreshKeys, cluster.clients(2));
    workload.wait_for_progress(20);
    // Interrupted, and by another store.
    let at = [cluster.store(3).address().to_owned()];
    let began = cluster.cli_at(&at, &short);
    assert!(began.code() <= 1, "{began:?}");
    let emptied = eventually("store 2 to be empty", || {
        cluster
            .cli(&["store", "decommission", "2", "--timeout", "50s"])
            .success()
    });
    assert!(emptied.stdout.contains("has no replica"), "{emptied:?}");
    done(&cluster, &["store", "decommission", "2"]);
    for group in cluster.groups().expect("groups") {
        let view = eventually("a leader", || cluster.describe(group));
        assert_eq!(view.voters, [1, 3, 4].into(), "{view:?}");
        assert!(view.learners.is_empty(), "{view:?}");
    }
    cluster.store(2).terminate();
    workload.wait_for_progress(20);
    let checked = cluster
        .json(&["range", "check", "--all", "--timeout", "50s"])
        .expect("a check");
    let checked = checked["ranges"].as_array().expect("ranges");
    assert_eq!(checked.len(), 5);
    assert!(checked.iter().all(|it| it["same"] == true), "{checked:?}");
    let mut history = workload.finish();
    history.read_back(&mut cluster.connect().patient());
    history.assert_linearizable();
}
