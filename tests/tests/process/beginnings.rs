//! The beginning of a cluster: one number and one set of ranges, however many begin it at once.

use std::collections::BTreeSet;
use std::process::Command;
use std::thread;

use polyraft_tests::process::{Cluster, Finished, Options, binary, eventually, run};

/// `polyraft init` at one store only, with a number of groups.
fn init_at(endpoint: String, groups: u32) -> thread::JoinHandle<Finished> {
    let groups = groups.to_string();
    thread::spawn(move || {
        let mut command = Command::new(binary());
        command.args(["init", "--groups", &groups, "--endpoints", &endpoint]);
        run(&mut command, std::time::Duration::from_secs(90))
    })
}

fn started(options: Options) -> Cluster {
    let mut cluster = Cluster::stopped(options);
    cluster
        .ids()
        .into_iter()
        .for_each(|id| cluster.store(id).start());
    cluster
}

/// Every store tells the same of every group: epoch, bounds and members; their number.
#[track_caller]
fn one_set_of_descriptors(cluster: &Cluster) -> usize {
    let mut lists = BTreeSet::new();
    let mut count = 0;
    for endpoint in cluster.endpoints() {
        let list = cluster.cli_at(&[endpoint], &["group", "list", "-o", "json"]);
        let list = list.success().and_then(|list| list.json()).expect("a list");
        let groups = list["groups"].as_array().expect("groups");
        count = groups.len();
        let descriptors: Vec<String> = groups
            .iter()
            .map(|g| {
                let members = g["members"].as_array().expect("members").iter();
                let members: Vec<String> = members
                    .map(|m| format!("{}@{}", m["replica"], m["store"]))
                    .collect();
                format!(
                    "{} {} {} {members:?}",
                    g["group"], g["start_hex"], g["end_hex"]
                )
            })
            .collect();
        lists.insert(descriptors);
    }
    assert_eq!(lists.len(), 1, "the stores differ: {lists:#?}");
    count
}

#[track_caller]
fn one_cluster(cluster: &Cluster) {
    let status = cluster.json(&["status"]).expect("a status");
    let stores = status["stores"].as_array().expect("stores");
    let numbers: BTreeSet<String> = stores.iter().map(|s| s["cluster"].to_string()).collect();
    assert_eq!(numbers.len(), 1, "{status}");
    assert!(!numbers.contains("null"), "{status}");
}

/// Three people begin the same cluster at the same time, at three stores, with three ideas of it.
#[test]
fn inits_at_the_same_time_make_one_cluster() {
    let cluster = started(Options::default());
    let wanted = [8, 16, 5];
    let inits: Vec<_> = cluster
        .endpoints()
        .into_iter()
        .zip(wanted)
        .map(|(endpoint, groups)| init_at(endpoint, groups))
        .collect();
    let finished: Vec<Finished> = inits
        .into_iter()
        .map(|init| init.join().expect("runs"))
        .collect();
    let (won, lost): (Vec<_>, Vec<_>) = finished
        .iter()
        .zip(wanted)
        .partition(|(f, _)| f.code() == 0);
    assert_eq!(won.len(), 1, "{finished:?}");
    let groups = won[0].1;
    for (loser, _) in lost {
        let said = &loser.stderr;
        assert!(
            said.contains("initialised with") && said.contains(&format!("{groups} groups")),
            "{loser:?}"
        );
    }
    one_cluster(&cluster);
    cluster.wait_for_leaders();
    assert_eq!(one_set_of_descriptors(&cluster), groups as usize);

    // The same again is no error, at any store; another number is, also after a restart.
    for endpoint in cluster.endpoints() {
        init_at(endpoint, groups)
            .join()
            .expect("runs")
            .success()
            .expect("the same again");
    }
    let refused = cluster.cli(&["init", "--groups", "7"]);
    assert_ne!(refused.code(), 0, "{refused:?}");
    assert!(refused.stderr.contains("initialised once"), "{refused:?}");
}

#[test]
fn the_same_init_twice_at_the_same_time_succeeds_twice() {
    let cluster = started(Options::default());
    let endpoints = cluster.endpoints();
    let (one, other) = (
        init_at(endpoints[1].clone(), 8),
        init_at(endpoints[2].clone(), 8),
    );
    one.join().expect("runs").success().expect("the first");
    other.join().expect("runs").success().expect("the second");
    one_cluster(&cluster);
    cluster.wait_for_leaders();
    assert_eq!(one_set_of_descriptors(&cluster), 8);
}

/// What was decided survives: the founder is killed right after, and another init changes nothing.
#[test]
fn an_init_with_another_number_is_refused_after_a_restart() {
    let mut cluster = Cluster::start(Options::default());
    for id in cluster.ids() {
        cluster.store(id).kill();
        cluster.store(id).start();
    }
    let refused = eventually("the founder to be back", || {
        let refused = cluster.cli(&["init", "--groups", "16"]);
        match refused.stderr.contains("initialised with 8 groups") {
            true => Ok(refused),
            false => Err(format!("{refused:?}")),
        }
    });
    assert_ne!(refused.code(), 0);
    cluster.wait_for_leaders();
    assert_eq!(one_set_of_descriptors(&cluster), 8);
}

/// The founder dies in the middle of its work. What it had decided stands; the next init completes it.
#[test]
fn an_init_that_is_cut_short_is_completed_by_the_next() {
    let mut cluster = started(Options::default());
    let endpoints = cluster.endpoints();
    let cut_short = init_at(endpoints[2].clone(), 300);
    eventually("the first groups", || {
        let status = cluster.json(&["status"])?;
        match status["initialised"] == true {
            true => Ok(()),
            false => Err(status.to_string()),
        }
    });
    cluster.store(1).kill();
    cluster.store(1).start();
    let refused = eventually("the founder to be back", || {
        let refused = cluster.cli(&["init", "--groups", "299"]);
        match refused.stderr.contains("300 groups") {
            true => Ok(refused),
            false => Err(format!("{refused:?}")),
        }
    });
    assert_ne!(refused.code(), 0);
    eventually("the rest of the groups", || {
        cluster.cli(&["init", "--groups", "300"]).success()
    });
    // It went on asking, or had its answer before the founder died: both are well.
    let first = cut_short.join().expect("runs");
    assert!(!first.stderr.contains("panicked"), "{first:?}");
    cluster.wait_for_leaders();
    assert_eq!(one_set_of_descriptors(&cluster), 300);
    cluster
        .cli(&["kv", "put", "key", "value"])
        .success()
        .expect("serves");
}

#[test]
fn stores_with_different_lists_begin_no_cluster() {
    let mut cluster = Cluster::stopped(Options::default());
    let addresses = cluster.endpoints();
    cluster.store(1).start();
    cluster.store(3).start();
    let mut arguments = cluster.store(2).arguments().to_vec();
    let at = arguments
        .iter()
        .position(|a| a == "--peers")
        .expect("--peers");
    arguments[at + 1] = format!("2={},3={}", addresses[1], addresses[2]);
    cluster.store(2).restart_with(arguments);
    for endpoint in addresses {
        let refused = eventually("all stores to listen", || {
            let init = cluster.cli_at(std::slice::from_ref(&endpoint), &["init", "--groups", "8"]);
            assert_ne!(init.code(), 0, "{init:?}");
            match init.stderr.contains("--peers") {
                true => Ok(init),
                false => Err(format!("{init:?}")),
            }
        });
        let said = &refused.stderr;
        assert!(
            said.contains("stores 1,2,3") && said.contains("stores 2,3"),
            "the difference is named: {refused:?}"
        );
    }
    let status = cluster.json(&["status"]).expect("a status");
    assert_eq!(status["initialised"], false, "{status}");
}

/// A store that is to come later was started too early and stopped again, as the refusal says.
#[test]
fn a_store_that_came_too_early_and_went_again_is_not_waited_for() {
    let mut cluster = Cluster::stopped(Options {
        stores: 4,
        ..Options::default()
    });
    let addresses = cluster.endpoints();
    let listed: Vec<String> = (1..4)
        .map(|id| format!("{id}={}", addresses[id - 1]))
        .collect();
    cluster.store(4).start();
    for id in 1..4 {
        let mut arguments = cluster.store(id).arguments().to_vec();
        let at = arguments
            .iter()
            .position(|a| a == "--peers")
            .expect("--peers");
        arguments[at + 1] = listed.join(",");
        cluster.store(id).restart_with(arguments);
    }
    let known = |cluster: &Cluster, at: usize| {
        let status = cluster.cli_at(&addresses[at..=at], &["status", "-o", "json"]);
        let status = status.stdout;
        match status.contains(addresses[3].as_str()) {
            true => Ok(()),
            false => Err(status),
        }
    };
    for at in 0..3 {
        eventually("store 4 to have greeted", || known(&cluster, at));
    }
    let init = ["init", "--groups", "8"];
    let refused = eventually("store 4 to be in the way", || {
        let refused = cluster.cli_at(&addresses[..1], &init);
        assert_ne!(refused.code(), 0, "{refused:?}");
        match refused.stderr.contains("--peers") {
            true => Ok(refused),
            false => Err(format!("{refused:?}")),
        }
    });
    let said = &refused.stderr;
    assert!(said.contains("store 4 lists 4"), "{refused:?}");
    cluster.store(4).kill();
    eventually("the cluster to begin", || {
        cluster.cli_at(&addresses[..1], &init).success()
    });
    cluster.store(4).start();
    eventually("store 4 to join", || {
        let status = cluster.json(&["status"])?;
        let stores = status["stores"].as_array().ok_or("no stores")?;
        let joined = |id: u64| {
            let mut all = stores.iter();
            all.any(|s| s["store"] == id && s["cluster"].is_string())
        };
        match (1..=4).all(joined) {
            true => Ok(()),
            false => Err(status.to_string()),
        }
    });
}

/// `status` is what a person asks first, and says what to do next.
#[test]
fn status_before_init_shows_the_stores_and_what_to_do() {
    let mut cluster = Cluster::stopped(Options::default());
    cluster.store(1).start();
    cluster.store(2).start();
    let table = eventually("two stores that wait", || {
        let table = cluster.cli(&["status"]).success()?.stdout;
        match table.matches("not initialised").count() >= 3 {
            true => Ok(table),
            false => Err(table),
        }
    });
    assert!(table.contains("polyraft init"), "{table}");
    assert!(table.contains("DOWN"), "store 3 does not run: {table}");
    assert!(table.contains(cluster.store(3).address()), "{table}");
    cluster.store(3).start();
    let endpoints = cluster.endpoints();
    init_at(endpoints[0].clone(), 8)
        .join()
        .expect("runs")
        .success()
        .expect("init");
    let status = cluster.json(&["status"]).expect("a status");
    assert_eq!(status["initialised"], true, "{status}");
}
