//! Members come and go while clients write.

use std::collections::BTreeSet;

use polyraft_tests::process::{Cluster, GroupView, Options, eventually};
use polyraft_tests::workload::{Mix, Workload};

fn stores(ids: &[u64]) -> BTreeSet<u64> {
    ids.iter().copied().collect()
}

/// Runs a change of membership until it succeeds; a change that is refused because another one is under way
/// or the leader just moved is tried again, as an operator would.
#[track_caller]
fn change(cluster: &Cluster, arguments: &[&str]) {
    eventually(&arguments.join(" "), || cluster.cli(arguments).success());
}

#[track_caller]
fn wait_for(cluster: &Cluster, group: u64, voters: &[u64], learners: &[u64]) -> GroupView {
    eventually("the members to be as asked for", || {
        let view = cluster.describe(group)?;
        let right = view.voters == stores(voters) && view.learners == stores(learners);
        if right {
            Ok(view)
        } else {
            Err(format!("{view:?}"))
        }
    })
}

/// Learner, promotion, removal, and a joint replacement, each on a group that is being written.
#[test]
fn members_change_under_load() {
    let mut cluster = Cluster::start(Options {
        groups: 1,
        ..Options::default()
    });
    let fourth = cluster.add_store().to_string();
    let group = cluster.groups().expect("groups")[0];
    let id = group.to_string();
    let workload = Workload::start("members", Mix::FreshKeys, cluster.clients(3));
    workload.wait_for_progress(30);
    let before = cluster.describe(group).expect("described");
    assert_eq!(before.voters, stores(&[1, 2, 3]));

    change(&cluster, &["group", "add-learner", &id, "--store", &fourth]);
    wait_for(&cluster, group, &[1, 2, 3], &[4]);
    workload.wait_for_progress(20);

    change(&cluster, &["group", "promote", &id, "--store", &fourth]);
    wait_for(&cluster, group, &[1, 2, 3, 4], &[]);
    workload.wait_for_progress(20);

    // The leader itself goes: the others must elect without being told.
    let leader = cluster.leader_of(group);
    change(
        &cluster,
        &["group", "remove", &id, "--store", &leader.to_string()],
    );
    let rest: Vec<u64> = (1..=4).filter(|store| *store != leader).collect();
    wait_for(&cluster, group, &rest, &[]);
    workload.wait_for_progress(20);

    // One step from three stores to three others, two of them the same.
    let gone = rest[0];
    change(
        &cluster,
        &[
            "group",
            "replace",
            &id,
            "--from",
            &gone.to_string(),
            "--to",
            &leader.to_string(),
        ],
    );
    let now: Vec<u64> = (1..=4).filter(|store| *store != gone).collect();
    let after = wait_for(&cluster, group, &now, &[]);
    workload.wait_for_progress(20);

    assert!(after.membership_epoch > before.membership_epoch);
    let returned = after
        .replicas
        .iter()
        .filter(|replica| before.replicas.contains(replica))
        .count();
    assert_eq!(
        returned,
        3 - before.voters.difference(&stores(&now)).count() - usize::from(now.contains(&leader)),
        "a store that comes back gets a new replica id: {before:?} {after:?}"
    );

    let mut history = workload.finish();
    history.read_back(&mut cluster.connect());
    history.assert_linearizable();
}

/// The log that a new learner would need is gone: it can only be fed by a snapshot, and has the data then.
#[test]
fn a_new_learner_is_fed_by_snapshot() {
    let mut options = Options {
        groups: 1,
        ..Options::default()
    };
    options.start = vec!["--truncate-keep-entries".to_owned(), "8".to_owned()];
    let mut cluster = Cluster::start(options);
    let group = cluster.groups().expect("groups")[0];
    let id = group.to_string();
    let workload = Workload::start("snapshot", Mix::FreshKeys, cluster.clients(3));
    eventually("the log to be truncated", || {
        match cluster.describe(group)?.truncated {
            0 => Err("nothing truncated yet".to_owned()),
            truncated => Ok(truncated),
        }
    });

    let fourth = cluster.add_store();
    change(
        &cluster,
        &["group", "add-learner", &id, "--store", &fourth.to_string()],
    );
    change(
        &cluster,
        &["group", "promote", &id, "--store", &fourth.to_string()],
    );
    wait_for(&cluster, group, &[1, 2, 3, 4], &[]);
    let mut history = workload.finish();
    history.read_back(&mut cluster.connect());
    history.assert_linearizable();

    // What the new store itself holds, without asking the leader.
    let there = [cluster.store(fourth).address().to_owned()];
    for (key, value) in history.acknowledged_puts() {
        eventually("the new store to have all data", || {
            let read = cluster
                .cli_at(&there, &["kv", "get", key, "--stale", "-o", "json"])
                .success()?
                .json()?;
            if read["value"] == value {
                Ok(())
            } else {
                Err(format!("{key}: {read} instead of {value}"))
            }
        });
    }
}

/// Leadership goes where it is told to.
#[test]
fn leadership_moves_on_request() {
    let cluster = Cluster::start(Options::default());
    let group = cluster.groups().expect("groups")[0];
    let id = group.to_string();
    for to in [1, 2, 3, 1] {
        change(
            &cluster,
            &["group", "transfer", &id, "--to", &to.to_string()],
        );
        eventually("the leader to have moved", || {
            match cluster.describe(group)?.leader {
                Some(leader) if leader == to => Ok(()),
                other => Err(format!("the leader is {other:?}")),
            }
        });
    }
}
