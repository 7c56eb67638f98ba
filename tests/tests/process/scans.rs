//! Scans over many ranges: complete, in order, in pages of any size, also while stores die.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use polyraft_tests::process::{Cluster, Options, eventually};
use serde_json::Value;

/// Key and value, in hexadecimal.
type Pair = (String, String);

/// What `polyraft kv scan -o json` says.
#[derive(Debug)]
struct Scanned {
    pairs: Vec<Pair>,
    parts: Vec<Value>,
    next: Option<String>,
}

fn read(json: &Value) -> Result<Scanned, String> {
    let list = |name: &str| json[name].as_array().cloned().ok_or(format!("no {name}"));
    let text = |pair: &Value, name: &str| pair[name].as_str().map(str::to_owned);
    let pairs = list("pairs")?;
    let pairs = pairs
        .iter()
        .map(|pair| text(pair, "key_hex").zip(text(pair, "value_hex")));
    let scanned = Scanned {
        pairs: pairs.collect::<Option<_>>().ok_or("no pair")?,
        parts: list("parts")?,
        next: text(json, "next_hex"),
    };
    assert_eq!(json["count"].as_u64(), Some(scanned.pairs.len() as u64));
    Ok(scanned)
}

#[track_caller]
fn scan(cluster: &Cluster, arguments: &[&str]) -> Scanned {
    scan_at(cluster, &cluster.endpoints(), arguments).expect("a scan")
}

fn scan_at(cluster: &Cluster, at: &[String], arguments: &[&str]) -> Result<Scanned, String> {
    let arguments = [&["kv", "scan", "-o", "json"], arguments].concat();
    read(&cluster.cli_at(at, &arguments).success()?.json()?)
}

/// Writes so many keys, each of its own and spread over all ranges.
fn fill(cluster: &Cluster, keys: u64) {
    let ops = keys.to_string();
    let load = cluster.json(&["load", "--ops", &ops, "--verify", "--value-bytes", "40"]);
    let load = load.expect("load runs");
    assert_eq!(load["ok"].as_u64(), Some(keys), "{load}");
}

/// Everything, and more than there is.
const ALL: [&str; 2] = ["--limit", "1000000"];

/// Together the parts are about every key exactly once, and each of them says so rightly.
#[track_caller]
fn assert_covers_everything(scanned: &Scanned, reverse: bool) {
    let mut at = Some(String::new());
    let mut left = scanned.pairs.clone();
    let mut parts: Vec<&Value> = scanned.parts.iter().collect();
    if reverse {
        left.reverse();
        parts.reverse();
    }
    let mut left = left.into_iter();
    for part in parts {
        let (start, end) = (part["start_hex"].as_str(), part["end_hex"].as_str());
        assert_eq!(start.map(str::to_owned), at, "a gap before {part}");
        assert!(part["generation"].as_u64() > Some(0), "{part}");
        assert!(part["header"]["group"].as_u64() > Some(0), "{part}");
        assert!(part["header"]["applied_index"].as_u64() > Some(0), "{part}");
        let count = part["pairs"].as_u64().expect("a number") as usize;
        for (key, _) in left.by_ref().take(count) {
            let inside = start <= Some(&*key) && end.is_none_or(|end| *key < *end);
            assert!(inside, "{key} is not of {part}");
        }
        at = end.map(str::to_owned);
    }
    assert_eq!(at, None, "the last part ends before the last key");
    assert_eq!(left.next(), None, "pairs of no part");
}

/// Each range once, whoever is asked; pages of any size, in both directions, make up the same.
#[test]
fn a_scan_is_complete_and_in_order_over_all_ranges() {
    let cluster = Cluster::start(Options::default());
    let empty = scan(&cluster, &ALL);
    assert_eq!((empty.pairs.len(), empty.next.as_ref()), (0, None));
    assert_covers_everything(&empty, false);

    fill(&cluster, 2000);
    let whole = scan(&cluster, &ALL);
    assert_eq!((whole.pairs.len(), whole.next.as_ref()), (2000, None));
    assert!(whole.pairs.is_sorted_by(|one, other| one.0 < other.0));
    assert_eq!(
        whole.parts.len(),
        8,
        "one page, one part each: {:?}",
        whole.parts
    );
    assert_covers_everything(&whole, false);
    for endpoint in cluster.endpoints() {
        let same = scan_at(&cluster, &[endpoint], &ALL).expect("any store answers");
        assert_eq!(same.pairs, whole.pairs);
    }

    let mut backwards = whole.pairs.clone();
    backwards.reverse();
    for page in [&[][..], &["--page", "37"], &["--page", "1999"]] {
        let forward = scan(&cluster, &[&ALL, page].concat());
        assert_eq!(forward.pairs, whole.pairs, "{page:?}");
        assert_covers_everything(&forward, false);
        let reverse = scan(&cluster, &[&ALL, page, &["--reverse"]].concat());
        assert_eq!(reverse.pairs, backwards, "{page:?}");
        assert_covers_everything(&reverse, true);
    }
    bounds_and_limits(&cluster, &whole.pairs);
}

/// Parts of what there is, and going on from where a limit ended one.
fn bounds_and_limits(cluster: &Cluster, whole: &[Pair]) {
    let (from, to) = (&*whole[300].0, &*whole[1700].0);
    let bounds = ["--hex", "--from", from, "--to", to];
    let some = scan(cluster, &[&ALL[..], &bounds].concat());
    assert_eq!(some.pairs, whole[300..1700]);
    let prefix = &from[..4];
    let those = whole.iter().filter(|(key, _)| key.starts_with(prefix));
    let those: Vec<Pair> = those.cloned().collect();
    let some = scan(
        cluster,
        &[&ALL[..], &["--hex", "--prefix", prefix]].concat(),
    );
    assert_eq!(some.pairs, those);

    let first = scan(cluster, &[&bounds[..], &["--limit", "1000"]].concat());
    assert_eq!(first.pairs, whole[300..1300]);
    let next = first.next.expect("there are more");
    let rest = scan(cluster, &["--hex", "--from", &next, "--to", to]);
    assert_eq!((rest.pairs, rest.next), (whole[1300..1700].to_vec(), None));

    let reverse = ["--reverse", "--limit", "10"];
    let last = scan(cluster, &[&bounds[..], &reverse].concat());
    let expected: Vec<Pair> = whole[1690..1700].iter().rev().cloned().collect();
    assert_eq!(last.pairs, expected);
    let next = last.next.expect("there are more");
    let before = scan(
        cluster,
        &["--hex", "--from", from, "--to", &next, "--reverse"],
    );
    let expected: Vec<Pair> = whole[690..1690].iter().rev().cloned().collect();
    assert_eq!(before.pairs, expected, "a thousand, unless asked for more");
    assert!(before.next.is_some());

    let nothing = scan(cluster, &["--hex", "--from", from, "--to", from]);
    assert_eq!((nothing.pairs.len(), nothing.next), (0, None));
    let inverted = cluster.cli(&["kv", "scan", "--from", "b", "--to", "a"]);
    assert_eq!(inverted.code(), 1);
    assert!(inverted.stderr.contains("before its start"), "{inverted:?}");
    let table = cluster.cli(&["kv", "scan", "--limit", "5"]).success();
    let table = table.expect("a scan").stdout;
    assert_eq!(table.lines().count(), 6, "{table}");
    assert!(
        table.contains("(5 pairs") && table.contains("--hex --from"),
        "{table}"
    );
}

/// A page is bounded by its bytes, and the keys of a group without a range are its own.
#[test]
fn large_values_come_in_several_pages_and_private_keys_by_their_group() {
    let cluster = Cluster::start(Options::default());
    let value = "v".repeat(100_000);
    for number in 10..40 {
        let put = cluster.cli(&["kv", "put", &format!("big/{number}"), &value]);
        put.success().expect("a put");
    }
    for direction in [&[][..], &["--reverse"]] {
        let all = scan(&cluster, &[&["--prefix", "big/"], direction].concat());
        assert_eq!(all.pairs.len(), 30);
        assert_eq!(all.parts.len(), 3, "a mebibyte each: {:?}", all.parts);
    }
    let one = scan(&cluster, &["--prefix", "big/39"]);
    assert_eq!(one.pairs[0].1.len(), 200_000);

    let group = cluster.json(&["group", "create", "--stores", "1,2,3"]);
    let group = group.expect("a group")["group"].as_u64().expect("a number");
    let group = group.to_string();
    for key in ["a", "b", "c"] {
        eventually("a put", || {
            cluster
                .cli(&["kv", "put", key, key, "--group", &group])
                .success()
        });
    }
    let keys = |arguments: &[&str]| -> String {
        let group = ["--group", &group];
        let scanned = scan(&cluster, &[&group[..], arguments].concat());
        let key = |(key, _): &Pair| match &**key {
            "61" => 'a',
            "62" => 'b',
            "63" => 'c',
            _ => '?',
        };
        scanned.pairs.iter().map(key).collect()
    };
    assert_eq!(keys(&[]), "abc");
    assert_eq!(keys(&["--reverse", "--page", "1"]), "cba");
    assert_eq!(keys(&["--from", "b"]), "bc");
    assert_eq!(keys(&["--to", "b"]), "a");
    let nowhere = cluster.cli(&["kv", "scan", "--group", "999"]);
    assert_eq!(nowhere.code(), 1, "{nowhere:?}");
}

/// One scan after the other while each store is killed in turn: every one of them is complete.
#[test]
fn scans_are_complete_while_stores_die() {
    let mut cluster = Cluster::start(Options::default());
    fill(&cluster, 1500);
    let whole = scan(&cluster, &ALL).pairs;
    assert_eq!(whole.len(), 1500);
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let endpoints = cluster.endpoints();
    let shared = Arc::new((stop, done));
    let scanner = thread::spawn({
        let shared = Arc::clone(&shared);
        move || scan_on(&endpoints, &whole, &shared)
    });
    let wait = |more: u64| {
        let from = shared.1.load(Ordering::SeqCst);
        eventually("scans to go on", || {
            let now = shared.1.load(Ordering::SeqCst);
            if scanner.is_finished() {
                return Ok(());
            }
            (now >= from + more)
                .then_some(())
                .ok_or(format!("{now} from {from}"))
        });
    };
    for id in cluster.ids() {
        wait(1);
        cluster.store(id).kill();
        wait(2);
        cluster.store(id).start();
        eventually("the store to answer", || {
            let address = [cluster.store(id).address().to_owned()];
            cluster.cli_at(&address, &["status"]).success()
        });
        cluster.wait_for_leaders();
    }
    shared.0.store(true, Ordering::SeqCst);
    scanner.join().expect("every scan was complete");
}

/// Scans in small pages, forwards and backwards in turn, until it is told to stop.
fn scan_on(endpoints: &[String], whole: &[Pair], (stop, done): &(AtomicBool, AtomicU64)) {
    let mut backwards = whole.to_vec();
    backwards.reverse();
    while !stop.load(Ordering::SeqCst) {
        let turn = done.load(Ordering::SeqCst);
        let (expected, direction) = match turn % 2 {
            0 => (whole, &[][..]),
            _ => (&*backwards, &["--reverse"][..]),
        };
        let mut command = std::process::Command::new(polyraft_tests::process::binary());
        command
            .args([
                "kv",
                "scan",
                "-o",
                "json",
                "--page",
                "30",
                "--timeout",
                "50s",
            ])
            .args(ALL)
            .args(direction)
            .args(["--endpoints", &endpoints.join(",")]);
        let bound = polyraft_tests::process::PATIENCE;
        let finished = polyraft_tests::process::run(&mut command, bound);
        let json = finished.success().and_then(|finished| finished.json());
        let scanned = json.and_then(|json| read(&json)).expect("a scan");
        assert!(
            scanned.pairs == expected,
            "scan {turn}: {} pairs",
            scanned.pairs.len()
        );
        done.fetch_add(1, Ordering::SeqCst);
    }
}
