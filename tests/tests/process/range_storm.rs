//! Everything that changes ranges, all at once, under load, while one store after the other is killed.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use polyraft_tests::process::{Cluster, Finished, Options, PATIENCE, binary, eventually, run};
use polyraft_tests::workload::{Mix, Workload};
use serde_json::Value;

use super::ranges::{RangeView, ranges};

/// So many of each must have succeeded; the storm goes on until then.
const CHANGES: [(&str, u64); 3] = [("splits", 12), ("merges", 8), ("moves", 6)];
/// And so many stores must have been killed.
const KILLS: u64 = 6;

/// What the people at the command line share.
#[derive(Debug)]
struct Shared {
    endpoints: String,
    stop: AtomicBool,
    /// In the order of [`CHANGES`].
    succeeded: [AtomicU64; 3],
}

impl Shared {
    fn run(&self, arguments: &[&str]) -> Finished {
        let mut command = Command::new(binary());
        command
            .args(arguments)
            .args(["--endpoints", &self.endpoints]);
        run(&mut command, PATIENCE)
    }

    /// The ranges as somebody sees them now, maybe with holes.
    fn ranges(&self) -> Vec<Value> {
        let list = self.run(&["range", "list", "-o", "json"]);
        let list = list.success().and_then(|list| list.json());
        let ranges = list
            .ok()
            .and_then(|list| list["ranges"].as_array().cloned());
        ranges.unwrap_or_default()
    }

    fn count(&self, what: usize, finished: &Finished) {
        self.succeeded[what].fetch_add(u64::from(finished.status.success()), Ordering::SeqCst);
    }

    fn is_enough(&self) -> bool {
        let each = CHANGES.iter().zip(&self.succeeded);
        each.into_iter()
            .all(|((_, wanted), count)| count.load(Ordering::SeqCst) >= *wanted)
    }
}

/// Numbers that look random, the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound.max(1)
    }
}

/// Splits at one byte after the other, where no range begins, while there are few ranges.
fn split_some(shared: &Shared, random: &mut Random) {
    if shared.ranges().len() >= 10 {
        return;
    }
    let keys: Vec<String> = (0..1 + random.below(3))
        .map(|_| format!("{:02x}", 1 + random.below(255)))
        .collect();
    let at: Vec<&str> = keys.iter().flat_map(|key| ["--at", key]).collect();
    let finished =
        shared.run(&[&["range", "split", "--hex", "--timeout", "20s"], &at[..]].concat());
    shared.count(0, &finished);
}

/// Merges two neighbours, and does what a refusal says.
fn merge_some(shared: &Shared, random: &mut Random) {
    let ranges = shared.ranges();
    let Some(right) = ranges.get(1 + random.below(ranges.len().saturating_sub(1))) else {
        return;
    };
    let start = right["start_hex"].as_str().expect("a start").to_owned();
    let merge = [
        "range",
        "merge",
        "--hex",
        "--at",
        &start,
        "--timeout",
        "20s",
    ];
    for _ in 0..4 {
        let finished = shared.run(&merge);
        shared.count(1, &finished);
        let said = finished
            .stderr
            .split('`')
            .find(|said| said.starts_with("polyraft range move"));
        let Some(advice) = said else { return };
        let words: Vec<&str> = advice.split_whitespace().skip(1).collect();
        let moved = shared.run(&[&words[..], &["--timeout", "30s"]].concat());
        shared.count(2, &moved);
    }
}

/// Moves a replica of some range to the store that has none.
fn move_some(shared: &Shared, random: &mut Random) {
    let ranges = shared.ranges();
    let Some(range) = ranges.get(random.below(ranges.len())) else {
        return;
    };
    let members = range["members"].as_array().expect("members");
    // A move that was interrupted is somebody's to go on with.
    let learner = members.iter().find(|it| it["role"] == "learner");
    let learner = learner.and_then(|it| it["store"].as_u64());
    let stores = members.iter().filter_map(|it| it["store"].as_u64());
    let stores: Vec<u64> = stores.filter(|store| Some(*store) != learner).collect();
    let to = learner.or_else(|| (1..=4).find(|store| !stores.contains(store)));
    let Some(to) = to else { return };
    let from = stores[random.below(stores.len())].to_string();
    let (group, to) = (range["group"].to_string(), to.to_string());
    let step = [
        "range",
        "move",
        &group,
        "--from",
        &from,
        "--to",
        &to,
        "--timeout",
        "30s",
    ];
    shared.count(2, &shared.run(&step));
}

/// Somebody who does one thing after the other until it is enough.
fn operator(shared: &Arc<Shared>, seed: u64, act: fn(&Shared, &mut Random)) -> JoinHandle<()> {
    let shared = Arc::clone(shared);
    thread::spawn(move || {
        let mut random = Random(seed);
        while !shared.stop.load(Ordering::SeqCst) {
            act(&shared, &mut random);
        }
    })
}

/// Splits, merges and moves, by several people who do not know of each other, and every store is killed: no
/// write is lost, nobody sees what one copy of the data could not have shown, every key is in one range, and
/// all replicas of it hold the same.
#[test]
fn ranges_change_under_load_while_stores_die() {
    let mut cluster = Cluster::start(Options {
        groups: 2,
        ..Options::default()
    });
    cluster.add_store();
    let clients = (0..4)
        .map(|_| Box::new(cluster.connect().patient()) as _)
        .collect();
    let workload = Workload::start("storm", Mix::Contended { keys: 10 }, clients);
    workload.wait_for_progress(20);
    let shared = Arc::new(Shared {
        endpoints: cluster.endpoints().join(","),
        stop: AtomicBool::new(false),
        succeeded: Default::default(),
    });
    let operators = [
        operator(&shared, 1, split_some),
        operator(&shared, 2, merge_some),
        operator(&shared, 3, merge_some),
        operator(&shared, 4, move_some),
    ];
    let (mut random, mut kills, begun) = (Random(5), 0, Instant::now());
    while kills < KILLS || !shared.is_enough() {
        assert!(begun.elapsed() < 8 * PATIENCE, "{kills} kills, {shared:?}");
        let id = 1 + random.below(4) as u64;
        workload.wait_for_progress(15);
        cluster.store(id).kill();
        kills += 1;
        workload.wait_for_progress(15);
        cluster.store(id).start();
        eventually("the store to answer", || {
            let address = [cluster.store(id).address().to_owned()];
            cluster.cli_at(&address, &["status"]).success()
        });
    }
    shared.stop.store(true, Ordering::SeqCst);
    for operator in operators {
        operator.join().expect("nobody panics");
    }
    workload.wait_for_progress(15);
    let mut history = workload.finish();
    let ranges = eventually("nobody to be frozen", || {
        let ranges = ranges(&cluster);
        match ranges.iter().any(|range| range.frozen) {
            true => Err(format!("{ranges:?}")),
            false => Ok(ranges),
        }
    });
    history.read_back(&mut cluster.connect().patient());
    history.assert_linearizable();
    for range in &ranges {
        assert_same_everywhere(&mut cluster, range);
        // Sessions and all, which no client sees.
        let group = range.group.to_string();
        eventually("all replicas to hold the same", || {
            let checked = cluster.json(&["range", "check", &group])?;
            let replicas = checked["ranges"][0]["replicas"].as_array();
            let replicas = replicas.ok_or("another shape")?;
            match replicas.iter().all(|it| it["error"].is_null()) && replicas.len() >= 3 {
                true => Ok(()),
                false => Err(format!("{checked}")),
            }
        });
    }
}

/// All replicas of a range hold what its leader says.
fn assert_same_everywhere(cluster: &mut Cluster, range: &RangeView) {
    let mut scan = vec!["kv", "scan", "-o", "json", "--hex", "--limit", "100000"];
    scan.extend(["--from", &range.start]);
    if let Some(end) = &range.end {
        scan.extend(["--to", end]);
    }
    let pairs = |finished: Finished| Ok::<_, String>(finished.success()?.json()?["pairs"].clone());
    for store in &range.stores {
        let at = [cluster.store(*store).address().to_owned()];
        eventually("a store to hold what its leader does", || {
            let all = pairs(cluster.cli(&scan))?;
            let here = pairs(cluster.cli_at(&at, &[&scan[..], &["--stale"]].concat()))?;
            (all == here).then_some(()).ok_or_else(|| {
                format!("store {store} has {here} of {range:?}, where there is {all}")
            })
        });
    }
}
