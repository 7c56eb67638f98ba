//! A world does the same twice, event by event, whatever else runs beside it.

use std::sync::Arc;

use polyraft_sim::kv::Kv;
use polyraft_sim::plan::{Fault, Plan};
use polyraft_sim::run::run;
use polyraft_sim::subject::Subject;
use polyraft_sim::time::{MILLISECOND, SECOND};
use polyraft_sim::trace::Trace;
use polyraft_sim::world::Outcome;

const SEEDS: std::ops::Range<u64> = 1..5;

/// A small world, quick also without optimisation, in which everything may happen.
fn small(seed: u64) -> Plan {
    Plan {
        groups: 3,
        clients: 3,
        think: 50 * MILLISECOND,
        chaos: 6 * SECOND,
        pace: 300 * MILLISECOND,
        faults: Fault::ALL.into(),
        ..Plan::drawn(seed)
    }
}

/// What a world came to, and all that happened in it.
fn lived(seed: u64) -> (Outcome, Vec<String>) {
    let subject: Arc<dyn Subject> = Arc::new(Kv);
    let trace = Trace::last(usize::MAX);
    let outcome = run(&small(seed), &subject, Some(&trace));
    (outcome, trace.lines())
}

fn compare(one: &(Outcome, Vec<String>), two: &(Outcome, Vec<String>)) {
    let mut lines = one.1.iter().zip(&two.1).enumerate();
    let differ = lines.find(|(_, (one, two))| one != two);
    assert_eq!(differ, None, "the first lines that differ");
    assert_eq!(one.1.len(), two.1.len(), "lines of the traces");
    assert_eq!(one.0, two.0);
}

#[test]
fn the_same_seed_gives_the_same_world_in_two_threads_at_once() {
    for seed in SEEDS {
        let (one, two) = std::thread::scope(|scope| {
            let (one, two) = (scope.spawn(|| lived(seed)), scope.spawn(|| lived(seed)));
            (one.join().unwrap(), two.join().unwrap())
        });
        compare(&one, &two);
        let (outcome, lines) = one;
        assert_eq!(outcome.violation, None, "seed {seed}");
        assert!(outcome.answered > 0, "seed {seed}: {outcome:?}");
        assert!(lines.len() as u64 > outcome.events);
    }
}

#[test]
fn the_same_seed_gives_the_same_world_one_after_the_other() {
    compare(&lived(SEEDS.start), &lived(SEEDS.start));
}

/// Who looks on changes nothing.
#[test]
fn a_trace_is_only_a_look() {
    let subject: Arc<dyn Subject> = Arc::new(Kv);
    let alone = run(&small(SEEDS.start), &subject, None);
    assert_eq!(alone, lived(SEEDS.start).0);
}

#[test]
fn another_seed_gives_another_world() {
    let (one, two) = (lived(SEEDS.start).0, lived(SEEDS.end).0);
    assert_ne!(one.hash, two.hash);
}
