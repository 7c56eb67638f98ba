//! What the cluster knows of itself: it survives its leader, and is no more than a hint to those who route.

use std::collections::BTreeSet;

use polyraft_tests::process::{Cluster, Options, eventually};
use serde_json::Value;

/// Groups with a range by the directory, with their leaders; an error while one is missing or its leader
/// is not the one that it has.
fn ranges(cluster: &Cluster, arguments: &[&str]) -> Result<BTreeSet<(u64, u64)>, String> {
    let list = cluster.json(&[&["directory", "list"], arguments].concat())?;
    let ranges = list["ranges"].as_array().ok_or("no `ranges`")?;
    let number = |entry: &Value, field: &str| entry[field].as_u64().ok_or("no number".to_owned());
    let each = ranges
        .iter()
        .map(|entry| Ok((number(entry, "group")?, number(entry, "leader_store")?)));
    each.collect()
}

/// What every group's leader says of itself.
fn leaders(cluster: &Cluster) -> Result<BTreeSet<(u64, u64)>, String> {
    let groups = cluster.groups()?;
    let leader = |group: u64| {
        let view = cluster.describe(group)?;
        Ok((group, view.leader.ok_or("no leader")?))
    };
    groups.into_iter().map(leader).collect()
}

#[track_caller]
fn wait_until_true(cluster: &Cluster) {
    eventually("the directory to know every range and leader", || {
        let (known, truth) = (ranges(cluster, &[])?, leaders(cluster)?);
        if known == truth {
            return Ok(());
        }
        Err(format!("{known:?} is not {truth:?}"))
    });
}

fn described(cluster: &Cluster) -> Result<Value, String> {
    cluster.json(&["directory", "stores"])
}

#[track_caller]
fn leader_of_directory(cluster: &Cluster) -> u64 {
    eventually("a leader of the directory", || {
        let said = described(cluster)?;
        let leader = said["directory"]["leader_store"].as_u64();
        leader
            .filter(|leader| *leader != 0)
            .ok_or_else(|| said.to_string())
    })
}

#[track_caller]
fn create(cluster: &Cluster) -> u64 {
    let made = eventually("a new group", || {
        cluster.json(&["group", "create", "--stores", "1,2,3"])
    });
    made["group"].as_u64().expect("its number")
}

#[test]
fn the_directory_survives_kill_9_of_its_leader_and_of_everybody() {
    let mut cluster = Cluster::start(Options::default());
    wait_until_true(&cluster);
    let mut taken: BTreeSet<u64> = cluster.groups().expect("groups").into_iter().collect();
    for _ in 0..3 {
        let leader = leader_of_directory(&cluster);
        cluster.store(leader).kill();
        let group = create(&cluster);
        assert!(taken.insert(group), "{group} was given twice");
        cluster.store(leader).start();
    }
    cluster.wait_for_leaders();
    for id in cluster.ids() {
        cluster.store(id).kill();
    }
    for id in cluster.ids() {
        cluster.store(id).start();
    }
    cluster.wait_for_leaders();
    assert!(taken.insert(create(&cluster)), "{taken:?}");
    eventually("the directory to know everything again", || {
        let list = cluster.json(&["directory", "list"])?;
        let of = |field: &str| list[field].as_array().cloned().unwrap_or_default();
        let all = of("ranges").into_iter().chain(of("others"));
        let known: BTreeSet<u64> = all.filter_map(|entry| entry["group"].as_u64()).collect();
        // And itself.
        let own = known
            .iter()
            .filter(|group| **group > u64::from(u32::MAX))
            .count();
        match taken.is_subset(&known) && known.len() == taken.len() + own && own == 1 {
            true => Ok(()),
            false => Err(format!("{known:?} is not {taken:?}")),
        }
    });
    let refused = cluster.cli(&["group", "destroy", "directory", "--force"]);
    let why = refused.success().expect_err("the cluster lives by it");
    assert!(
        why.contains("group directory belongs to the system"),
        "{why}"
    );
    let members = cluster
        .json(&["group", "describe", "directory"])
        .expect("it has a leader");
    assert_eq!(
        members["members"].as_array().map(Vec::len),
        Some(3),
        "{members}"
    );
}

/// Two of the three stores that have the directory are gone for long. The others serve what they hold, also
/// a store that has just started and is asked for keys of which it knows nothing.
#[test]
fn known_ranges_are_served_while_the_directory_has_no_quorum() {
    let mut cluster = Cluster::stopped(Options {
        stores: 4,
        ..Options::default()
    });
    for id in cluster.ids() {
        cluster.store(id).start();
    }
    eventually("the cluster to be initialised", || {
        let init = ["init", "--groups", "4", "--replicas", "1"];
        cluster.cli(&init).success()
    });
    cluster.wait_for_leaders();
    wait_until_true(&cluster);
    // Digits are in the first range, which is on the first store.
    let put = |cluster: &Cluster, at: &[String], value: &str| {
        cluster
            .cli_at(at, &["kv", "put", "5", value, "--timeout", "5s"])
            .success()
    };
    let all = cluster.endpoints();
    eventually("a write", || put(&cluster, &all, "before"));
    cluster.store(2).kill();
    cluster.store(3).kill();
    cluster.store(4).kill();
    cluster.store(4).start();
    for store in [3, 0] {
        let one = &all[store..=store];
        eventually("a write without the directory", || {
            put(&cluster, one, "during")
        });
        let hint = cluster.cli_at(one, &["directory", "list", "--stale", "-o", "json"]);
        let hint = hint.success().and_then(|said| said.json()).expect("a hint");
        assert_eq!(hint["ranges"].as_array().map(Vec::len), Some(4), "{hint}");
    }
    let create = ["group", "create", "--stores", "1", "--timeout", "3s"];
    let refused = cluster.cli_at(&all[..1], &create).success();
    let why = refused.expect_err("nobody can say which number is free");
    assert!(why.contains("no quorum: group directory"), "{why}");
    cluster.store(2).start();
    cluster.store(3).start();
    eventually("a number again", || {
        cluster.cli(&["group", "create", "--stores", "1"]).success()
    });
    let value = cluster.json(&["kv", "get", "5"]).expect("it was written");
    assert_eq!(value["value"], "during");
}

#[test]
fn the_directory_grows_with_the_cluster_and_says_who_is_silent() {
    let mut cluster = Cluster::start(Options {
        stores: 1,
        ..Options::default()
    });
    let on = |cluster: &Cluster, expected: &[u64]| {
        let said = described(cluster)?;
        let stores = said["directory"]["stores"].as_array().ok_or("no stores")?;
        let mut stores: Vec<u64> = stores.iter().filter_map(Value::as_u64).collect();
        stores.sort_unstable();
        match stores == expected {
            true => Ok(said),
            false => Err(said.to_string()),
        }
    };
    on(&cluster, &[1]).expect("there is no other store");
    for _ in 0..2 {
        let given = cluster.json(&["directory", "new-store"]).expect("a number");
        let free = given["store"].as_u64().expect("a number");
        assert!(free > cluster.ids().len() as u64, "{given}");
        cluster.add_store();
    }
    let said = eventually("three replicas", || on(&cluster, &[1, 2, 3]));
    assert_eq!(said["stores"].as_array().map(Vec::len), Some(3), "{said}");
    let voters = eventually("votes for all of them", || {
        let view = cluster.json(&["group", "describe", "directory"])?;
        let members = view["members"].as_array().ok_or("no members")?;
        let voters = members.iter().filter(|member| member["role"] == "voter");
        match voters.count() {
            3 => Ok(3),
            _ => Err(view.to_string()),
        }
    });
    assert_eq!(voters, 3);
    let silent = |cluster: &Cluster, expected: bool| {
        let said = described(cluster)?;
        let stores = said["stores"].as_array().ok_or("no stores")?;
        let third = stores
            .iter()
            .find(|store| store["store"] == 3)
            .ok_or("no store 3")?;
        match third["silent_since_ms"].is_u64() == expected {
            true => Ok(()),
            false => Err(said.to_string()),
        }
    };
    cluster.store(3).kill();
    eventually("the third to be silent", || silent(&cluster, true));
    cluster.store(3).start();
    eventually("the third to be heard", || silent(&cluster, false));
}
