//! Snapshots: whole, broken at each step, refused.

use polyraft_core::SnapshotOutcome;
use polyraft_multiraft::{AppliedState, StoreId};

use super::super::*;
use super::lab::*;
use crate::time::SECOND;

#[test]
fn a_snapshot_arrives_in_chunks_no_faster_than_allowed() {
    let (mut lab, ports) = Lab::of(1, 2);
    let faults = lab.network.faults_mut();
    (faults.chunk_min, faults.chunk_max) = (1000, 1000);
    faults.snapshot_bytes_per_second = 1000;
    let begun = lab.queue.now();
    let one = send_snapshot(&ports[0], 2, 1, 5_500);
    let other = send_snapshot(&ports[0], 2, 1, 0);
    while lab.turn() {}
    assert_eq!(*one.lock(), [SnapshotOutcome::Sent]);
    assert_eq!(*other.lock(), [SnapshotOutcome::Sent]);
    let took = lab.queue.now() - begun;
    assert!((5 * SECOND..6 * SECOND).contains(&took), "{took}");
    let told = lab.told();
    let count = |what: &str| told.iter().filter(|told| *told == what).count();
    assert_eq!((count("2: begun"), count("2: chunk")), (2, 6));
    let finished = (count("2: finished with 5500"), count("2: finished with 0"));
    assert_eq!((finished, count("2: dropped")), ((1, 1), 0));
}

#[test]
fn snapshots_that_come_to_nothing_are_answered_and_leave_nothing() {
    // What the receiver was told, and what the sender was.
    let under = |set: fn(&mut NetworkFaults), group, fails| {
        let (mut lab, ports) = Lab::of(1, 2);
        set(lab.network.faults_mut());
        let state = AppliedState::default();
        let source = Bulk {
            state,
            left: 10,
            fails,
        };
        let outcome = send_source(&ports[0], 2, group, source);
        while lab.turn() {}
        assert!(lab.network.transfers.is_empty());
        assert_eq!(*outcome.lock(), [SnapshotOutcome::Failed]);
        lab.told()
    };
    let nothing: [&str; 0] = [];
    assert_eq!(under(|_| (), 99, false), nothing, "refused");
    let unread = under(|_| (), 1, true);
    assert_eq!(unread, ["2: begun", "2: chunk", "2: dropped"]);
    let bad = under(|faults| faults.bad_chunk = 1_000_000, 1, false);
    assert_eq!(bad, ["2: begun", "2: dropped"]);
    let stuck = under(|faults| faults.stuck = 1_000_000, 1, false);
    assert_eq!(stuck, nothing);
    let broken = under(|faults| faults.break_off = 1_000_000, 1, false);
    assert_eq!(broken, nothing);
}

#[test]
fn a_store_takes_in_few_snapshots_at_once() {
    let (mut lab, ports) = Lab::of(1, 3);
    lab.network.faults_mut().snapshots_in_max = 1;
    let all = [&ports[0], &ports[2]].map(|port| send_snapshot(port, 2, 1, 100_000));
    while lab.turn() {}
    let mut outcomes = all.map(|outcome| outcome.lock()[0]);
    outcomes.sort_by_key(|outcome| *outcome == SnapshotOutcome::Sent);
    assert_eq!(outcomes, [SnapshotOutcome::Failed, SnapshotOutcome::Sent]);
}

/// Lets `turns` things happen after a snapshot was handed over, then something else, then the rest.
fn interrupted(seed: u64, turns: usize, by: fn(&mut Lab)) -> (Vec<String>, Vec<SnapshotOutcome>) {
    let (mut lab, ports) = Lab::of(seed, 2);
    let faults = lab.network.faults_mut();
    (faults.chunk_min, faults.chunk_max) = (10, 10);
    let outcome = send_snapshot(&ports[0], 2, 1, 30);
    for _ in 0..turns {
        assert!(lab.turn());
    }
    by(&mut lab);
    while lab.turn() {}
    assert!(lab.network.transfers.is_empty(), "after {turns} turns");
    let told = lab.told().into_iter().filter(|told| {
        let about = ["begun", "finished", "dropped"];
        about.iter().any(|what| told.contains(what))
    });
    let outcome = outcome.lock().clone();
    (told.collect(), outcome)
}

/// Header, three chunks, the end of the source, the end, the answer.
const TURNS: usize = 7;

#[test]
fn a_snapshot_may_lose_either_end_at_each_step() {
    use SnapshotOutcome::{Failed, Sent};
    for seed in 0..10 {
        for turns in 0..=TURNS {
            let (told, outcome) = interrupted(seed, turns, |lab| lab.network.stopped(StoreId(1)));
            let ended = told.last().map(String::as_str);
            match turns {
                0 => assert_eq!(ended, None),
                1..5 => assert_eq!(ended, Some("2: dropped")),
                // Its end and the news of its sender's are under way.
                5 => assert!(ended.is_some()),
                _ => assert_eq!(ended, Some("2: finished with 30")),
            }
            assert_eq!(outcome, [if turns == TURNS { Sent } else { Failed }]);
            let (told, outcome) = interrupted(seed, turns, |lab| lab.network.stopped(StoreId(2)));
            let ended = told.last().map(String::as_str);
            match turns {
                0 => assert_eq!(ended, None),
                1..6 => assert_eq!((ended, &outcome[..]), (Some("2: dropped"), &[Failed][..])),
                _ => assert_eq!(ended, Some("2: finished with 30")),
            }
            assert_eq!(outcome.len(), 1);
        }
    }
}

#[test]
fn a_snapshot_survives_a_short_cut_at_each_step_and_no_long_one() {
    for seed in 0..10 {
        for turns in 0..TURNS {
            let (told, outcome) = interrupted(seed, turns, |lab| {
                lab.cut(1, 2, true);
                lab.run(SECOND);
                lab.cut(1, 2, false);
            });
            let ended = told.last().map(String::as_str);
            assert_eq!(ended, Some("2: finished with 30"));
            assert_eq!(outcome, [SnapshotOutcome::Sent]);
            let (told, outcome) = interrupted(seed, turns, |lab| {
                lab.cut(1, 2, true);
                lab.cut(2, 1, true);
            });
            let ended = told.last().map(String::as_str);
            assert_eq!(outcome, [SnapshotOutcome::Failed]);
            match turns {
                0 => assert_eq!(ended, None),
                1..6 => assert_eq!(ended, Some("2: dropped")),
                _ => assert_eq!(
                    ended,
                    Some("2: finished with 30"),
                    "only the answer is lost"
                ),
            }
        }
    }
}
