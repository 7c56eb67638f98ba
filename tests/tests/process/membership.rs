//! Members come and go while clients write.

use std::collections::BTreeSet;

use polyraft_tests::linearizability::Action;
use polyraft_tests::process::{Cluster, GroupView, Options, eventually};
use polyraft_tests::workload::{Answer, KeyValue, Mix, Workload};

fn stores(ids: &[u64]) -> BTreeSet<u64> {
    ids.iter().copied().collect()
}

/// A change of membership and the members that it leads to.
struct Change<'a> {
    arguments: &'a [&'a str],
    voters: &'a [u64],
    learners: &'a [u64],
}

/// Makes the change and waits until the group has the members. A change is refused while another one is under
/// way, and one whose answer was lost with its leader is refused the second time: it is tried again
/// until it succeeds or is seen to have been made.
#[track_caller]
fn change(cluster: &Cluster, group: u64, change: &Change<'_>) -> GroupView {
    let number = group.to_string();
    let (verb, options) = change.arguments.split_first().expect("a verb");
    let arguments = [&["group", verb, &number], options].concat();
    let mut refusals = Vec::new();
    eventually(&arguments.join(" "), || {
        if let Err(refusal) = cluster.cli(&arguments).success() {
            refusals.push(refusal);
        }
        let view = cluster.describe(group)?;
        if view.voters == stores(change.voters) && view.learners == stores(change.learners) {
            return Ok(view);
        }
        Err(format!("{view:?} after {refusals:#?}"))
    })
}

/// Learner, promotion, removal of the leader, and a joint replacement, each on a group that is being written.
#[test]
fn members_change_under_load() {
    let mut cluster = Cluster::start(Options {
        groups: 1,
        ..Options::default()
    });
    let fourth = cluster.add_store().to_string();
    let group = cluster.groups().expect("groups")[0];
    let workload = Workload::start("members", Mix::FreshKeys, cluster.clients(3));
    workload.wait_for_progress(30);
    let before = cluster.describe(group).expect("described");
    assert_eq!(before.voters, stores(&[1, 2, 3]));

    let arguments = ["add-learner", "--store", &fourth];
    let learner = Change {
        arguments: &arguments,
        voters: &[1, 2, 3],
        learners: &[4],
    };
    change(&cluster, group, &learner);
    workload.wait_for_progress(20);
    // The list says the same as the description, for people and for scripts.
    eventually("the learner in the list", || {
        let table = cluster.cli(&["group", "list"]).success()?.stdout;
        let list = cluster.json(&["group", "list"])?;
        let members = list["groups"][0]["members"]
            .as_array()
            .ok_or("no members")?;
        let roles: Vec<&str> = members.iter().filter_map(|m| m["role"].as_str()).collect();
        if table.contains("1,2,3,4(learner)") && roles == ["voter", "voter", "voter", "learner"] {
            return Ok(());
        }
        Err(format!("{table} {list}"))
    });

    let arguments = ["promote", "--store", &fourth];
    let promoted = Change {
        arguments: &arguments,
        voters: &[1, 2, 3, 4],
        learners: &[],
    };
    change(&cluster, group, &promoted);
    workload.wait_for_progress(20);

    // The leader itself goes: the others must elect without being told.
    let leader = cluster.leader_of(group);
    let rest: Vec<u64> = (1..=4).filter(|store| *store != leader).collect();
    let arguments = ["remove", "--store", &leader.to_string()];
    let removed = change(
        &cluster,
        group,
        &Change {
            arguments: &arguments,
            voters: &rest,
            learners: &[],
        },
    );
    workload.wait_for_progress(20);

    // It comes back in the place of another one, in a single step. Its store remembers that it was removed.
    let gone = rest[0];
    let now: Vec<u64> = (1..=4).filter(|store| *store != gone).collect();
    let arguments = [
        "replace",
        "--from",
        &gone.to_string(),
        "--to",
        &leader.to_string(),
    ];
    let after = change(
        &cluster,
        group,
        &Change {
            arguments: &arguments,
            voters: &now,
            learners: &[],
        },
    );
    workload.wait_for_progress(20);

    assert!(after.membership_epoch > before.membership_epoch);
    let new: Vec<u64> = after
        .replicas
        .iter()
        .copied()
        .filter(|id| !removed.replicas.contains(id))
        .collect();
    assert_eq!(new.len(), 1, "one replica is new: {removed:?} {after:?}");
    assert!(
        !before.replicas.contains(&new[0]),
        "a store that comes back is a new replica: {before:?} {after:?}"
    );

    let mut history = workload.finish();
    history.read_back(&mut cluster.connect());
    history.assert_linearizable();
}

/// The log that a new learner would need is gone: it can only be fed by a snapshot, and has the data then.
#[test]
fn a_new_learner_is_fed_by_snapshot() {
    let start = ["--truncate-keep-entries", "8", "--flush-interval", "1s"]
        .map(str::to_owned)
        .to_vec();
    let mut cluster = Cluster::start(Options {
        groups: 1,
        start,
        ..Options::default()
    });
    let group = cluster.groups().expect("groups")[0];
    let empty = cluster.describe(group).expect("described").truncated;
    let workload = Workload::start("snapshot", Mix::FreshKeys, cluster.clients(3));
    eventually("the log to be truncated", || {
        match cluster.describe(group)?.truncated {
            truncated if truncated > empty + 20 => Ok(()),
            truncated => Err(format!("truncated up to {truncated}")),
        }
    });

    let fourth = cluster.add_store();
    let arguments = ["add-learner", "--store", &fourth.to_string()];
    change(
        &cluster,
        group,
        &Change {
            arguments: &arguments,
            voters: &[1, 2, 3],
            learners: &[4],
        },
    );
    let arguments = ["promote", "--store", &fourth.to_string()];
    change(
        &cluster,
        group,
        &Change {
            arguments: &arguments,
            voters: &[1, 2, 3, 4],
            learners: &[],
        },
    );
    let mut history = workload.finish();
    history.read_back(&mut cluster.connect());
    history.assert_linearizable();

    // What the new store itself holds, without asking the leader.
    let mut own = cluster.connect_stale(fourth);
    for (key, value) in history.acknowledged_puts() {
        let expected = Answer::Done {
            value: Some(value.to_owned()),
            swapped: false,
        };
        eventually("the new store to have all data", || {
            match own.call(key, &Action::Get { result: None }) {
                answer if answer == expected => Ok(()),
                other => Err(format!("{key}: {other:?} instead of {value}")),
            }
        });
    }
    let there = [cluster.store(fourth).address().to_owned()];
    let status = cluster
        .cli_at(&there, &["status", "-o", "json"])
        .success()
        .expect("status")
        .json()
        .expect("JSON");
    let stores = status["stores"].as_array().expect("stores");
    let status = stores
        .iter()
        .find(|status| status["store"] == fourth)
        .expect("the new store");
    assert!(
        status["counters"]["snapshots_installed"].as_u64() > Some(0),
        "no snapshot was needed: {status}"
    );
}

/// Leadership goes where it is told to.
#[test]
fn leadership_moves_on_request() {
    let cluster = Cluster::start(Options::default());
    let group = cluster.groups().expect("groups")[0];
    let id = group.to_string();
    for to in [1, 2, 3, 1] {
        let arguments = ["group", "transfer", &id, "--to", &to.to_string()];
        eventually("a transfer", || cluster.cli(&arguments).success());
        eventually("the leader to have moved", || {
            match cluster.describe(group)?.leader {
                Some(leader) if leader == to => Ok(()),
                other => Err(format!("the leader is {other:?}")),
            }
        });
    }
}
