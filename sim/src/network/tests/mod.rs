//! The network keeps the contract of a transport while it is sound, and breaks it in every way that
//! it is told to.

mod lab;
mod messages;
mod snapshots;

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use polyraft_multiraft::StoreId;
use polyraft_multiraft::env::conformance::{TransportSubject, transport};
use polyraft_multiraft::env::{Inbound, Lane, Transport};

use self::lab::*;
use super::*;
use crate::observe::Checker;
use crate::time::{MILLISECOND, SECOND};

struct Subject(Lab);

impl TransportSubject for Subject {
    fn start(
        &mut self,
        store: StoreId,
        incarnation: u64,
        inbound: Arc<dyn Inbound>,
    ) -> Arc<dyn Transport> {
        let port = self.0.network.port(store, incarnation);
        self.0.network.started(store, incarnation, inbound);
        port
    }

    fn stop(&mut self, store: StoreId) {
        self.0.network.stopped(store);
    }

    fn go_on(&mut self) {
        self.0.run(20 * MILLISECOND);
    }

    fn too_many(&self) -> u64 {
        2 * (1 << 10)
    }
}

#[test]
fn the_contract_of_a_transport_is_kept() {
    for seed in 0..10 {
        transport(|| {
            let mut lab = Lab::new(seed);
            lab.network.faults_mut().waiting_max = 1 << 10;
            Subject(lab)
        });
    }
}

#[test]
fn a_limit_on_everything_is_no_breach_of_the_contract() {
    transport(|| {
        let mut lab = Lab::new(1);
        let faults = lab.network.faults_mut();
        (faults.in_flight_max, faults.frame_max, faults.waiting_max) = (1, 1, 1 << 10);
        (faults.delay_min, faults.delay_max) = (100_000, 100_000);
        Subject(lab)
    });
}

/// Runs under all faults at once, and returns everything that stores were told and when.
fn storm(seed: u64) -> (Vec<(Nanos, StoreId, String)>, NetworkStats) {
    let (mut lab, mut ports) = Lab::of(seed, 3);
    let mut rng = Rng::new(seed);
    let faults = lab.network.faults_mut();
    faults.spike = 20_000;
    faults.loss = 20_000;
    faults.duplication = 20_000;
    faults.reorder = 20_000;
    faults.reset = 5_000;
    faults.stale = 20_000;
    faults.bad_chunk = 2_000;
    faults.break_off = 2_000;
    faults.stuck = 200;
    (faults.chunk_min, faults.chunk_max) = (16, 256);
    let mut outcomes = Vec::new();
    for round in 0..4_000 {
        let (from, to) = (rng.below(3), 1 + rng.below(3));
        let lane = *rng.pick(&[Lane::Control, Lane::Append]).expect("two");
        let port = &ports[usize::try_from(from).expect("small")];
        send(port, to, lane, round * 10..round * 10 + 1 + rng.below(9));
        if from + 1 != to && rng.percent(5) {
            outcomes.push(send_snapshot(port, to, 1, 2_000));
        }
        if rng.percent(1) {
            let store = 1 + rng.below(3);
            lab.network.stopped(StoreId(store));
            if rng.percent(50) {
                let pause = rng.magnitude(1, SECOND);
                lab.run(pause);
            }
            ports[usize::try_from(store - 1).expect("small")] = lab.start(store);
        }
        if rng.percent(2) {
            lab.cut(1 + rng.below(3), 1 + rng.below(3), rng.percent(50));
            if rng.percent(5) {
                // So long that whoever hears nothing notices.
                lab.run(15 * SECOND);
            }
        }
        if rng.percent(2) {
            let faults = lab.network.faults_mut();
            (faults.delay_min, faults.delay_max) = (0, rng.magnitude(0, 50 * MILLISECOND));
            faults.waiting_max = usize::try_from(rng.magnitude(0, 100)).expect("small");
            faults.frame_max = usize::try_from(rng.magnitude(0, 100)).expect("small");
            faults.in_flight_max = usize::try_from(rng.magnitude(0, 100)).expect("small");
            faults.snapshots_in_max = usize::try_from(rng.magnitude(0, 4)).expect("small");
            faults.silence_max = rng.magnitude(faults.silence_min, 10 * SECOND);
            faults.snapshot_bytes_per_second = rng.magnitude(0, 100_000);
        }
        let pause = rng.magnitude(1, 20 * MILLISECOND);
        lab.run(pause);
    }
    lab.network.heal();
    *lab.network.faults_mut() = NetworkFaults::default();
    lab.run(60 * SECOND);
    while lab.turn() {}
    for outcome in outcomes {
        assert_eq!(outcome.lock().len(), 1, "each is answered once");
    }
    assert!(lab.network.transfers.is_empty(), "nothing is left of them");
    let stats = lab.network.stats();
    assert!(conserves(&stats), "{stats:?}");
    assert!(lab.network.links.iter().all(|link| link.from == link.to
        || link.phase == link::Phase::Up && link.stalled == 0 && link.in_flight.is_empty()));
    let notes = std::mem::take(&mut *lab.notes.lock());
    (notes, stats)
}

#[test]
fn equal_seeds_make_equal_storms_in_which_everything_happens() {
    let (told, stats) = storm(1);
    assert!(told == storm(1).0, "the same happens again");
    assert!(told != storm(2).0);
    let counts = [
        stats.delivered,
        stats.doubled,
        stats.lost,
        stats.resets,
        stats.disconnected,
        stats.snapshots_sent,
        stats.snapshots_failed,
    ];
    assert!(counts.iter().all(|count| *count > 0), "{stats:?}");
    for seed in 3..60 {
        storm(seed);
    }
    let hits: BTreeMap<&str, u64> = crate::marks::report().into_iter().collect();
    let rare = hits
        .iter()
        .filter(|(name, _)| name.starts_with("network: "));
    // Those have tests of their own.
    let elsewhere = [
        "network: a cut of one way was noticed",
        "network: no room on a lane",
        "network: too many snapshots at once",
        "network: a snapshot was refused",
        "network: a snapshot could not be read",
    ];
    let missed: Vec<&str> = rare
        .filter(|(name, count)| **count == 0 && !elsewhere.contains(name))
        .map(|(name, _)| *name)
        .collect();
    assert!(missed.is_empty(), "never seen: {missed:?}");
}

/// Counts what is sent and delivered.
struct Counter(Arc<Mutex<(u64, u64)>>);

impl Checker for Counter {
    fn name(&self) -> &'static str {
        "counter"
    }

    fn see(&mut self, seen: &Observation<'_>) -> Result<(), String> {
        let mut counts = self.0.lock();
        match seen {
            Observation::Sent { .. } => counts.0 += 1,
            Observation::Delivered { .. } => counts.1 += 1,
            _ => {}
        }
        Ok(())
    }
}

#[test]
fn observers_see_what_leaves_and_what_enters() {
    let counts = Arc::new(Mutex::new((0, 0)));
    let checkers: Vec<Box<dyn Checker>> = vec![Box::new(Counter(Arc::clone(&counts)))];
    let mut lab = Lab::watched(1, Observer::new(checkers));
    let ports = [1, 2].map(|store| lab.start(store));
    lab.run(3 * SECOND);
    lab.network.faults_mut().duplication = 1_000_000;
    send(&ports[0], 2, Lane::Control, [1]);
    send(&ports[0], 9, Lane::Control, [2]);
    assert_eq!(*counts.lock(), (2, 0));
    while lab.turn() {}
    assert_eq!(*counts.lock(), (2, 2));
    send_snapshot(&ports[0], 2, 1, 10);
    while lab.turn() {}
    assert_eq!(*counts.lock(), (3, 3));
}

#[test]
fn the_table_of_pairs_has_a_place_for_each() {
    let mut places: Vec<usize> = (0..9)
        .flat_map(|from| (0..9).map(move |to| pair(from, to)))
        .collect();
    places.sort_unstable();
    assert!(places.into_iter().eq(0..81));
}
