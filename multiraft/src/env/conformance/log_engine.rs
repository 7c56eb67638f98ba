//! What every log must keep of its promises.

use bytes::Bytes;
use polyraft_core::{Entry, EntryId, HardState, Index, ReplicaId, Term};

use super::{LogModel, Rng, SeamFault};
use crate::env::{Lifecycle, LogBatch, LogEngine, LogError, LogSection};
use crate::group::GroupId;

/// A log that can be opened again and hurt.
pub trait LogSubject {
    /// What is tested.
    type Engine: LogEngine;
    /// Opens what is there; the one opened before has been dropped.
    fn open(&self) -> Self::Engine;
    /// Cuts the power: of the writes that were not synced the first `keep` survive. False: it cannot
    /// be done here, and nothing happened.
    fn power_cut(&self, keep: usize) -> bool;
    /// Sets or takes away a fault. False: it cannot be done here.
    fn set_fault(&self, fault: Option<SeamFault>) -> bool;
}

/// The whole suite; `new` makes an empty log.
pub fn log_engine<S: LogSubject>(new: impl Fn() -> S) {
    an_empty_log_has_nothing(&new());
    what_was_written_is_readable_at_once(&new());
    sections_take_effect_in_order(&new());
    a_conflict_replaces_the_tail(&new());
    reads_are_bounded_and_never_empty(&new());
    truncation_forgets_the_front_only(&new());
    a_reset_leaves_nothing_but_the_mark(&new());
    a_tombstone_outlives_the_replica(&new());
    groups_do_not_see_each_other(&new());
    synced_writes_survive_a_power_cut(&new);
    unsynced_writes_survive_as_a_prefix(&new);
    without_room_nothing_is_written(&new());
    after_a_failed_sync_nothing_succeeds(&new());
    for seed in 0..8 {
        it_does_what_the_model_does(&new(), seed);
    }
}

const ONE: GroupId = GroupId(1);
const TWO: GroupId = GroupId(2);
const ALL: u64 = u64::MAX;

fn entries(term: u64, indexes: std::ops::Range<u64>) -> Vec<Entry> {
    let entry = |index: u64| Entry {
        term: Term(term),
        index: Index(index),
        data: Bytes::from(format!("entry {index} of term {term}")),
        ..Entry::default()
    };
    indexes.map(entry).collect()
}

fn append(group: GroupId, term: u64, indexes: std::ops::Range<u64>) -> LogSection {
    LogSection {
        group,
        entries: entries(term, indexes),
        ..LogSection::default()
    }
}

fn create(group: GroupId, replica: u64) -> LogSection {
    let replica = ReplicaId(replica);
    LogSection {
        group,
        lifecycle: Some(Lifecycle::Create { replica }),
        ..LogSection::default()
    }
}

fn destroy(group: GroupId, next_replica: u64) -> LogSection {
    let next_replica = ReplicaId(next_replica);
    LogSection {
        group,
        lifecycle: Some(Lifecycle::Destroy { next_replica }),
        ..LogSection::default()
    }
}

fn hard_state(term: u64, vote: u64, commit: u64) -> Option<HardState> {
    Some(HardState {
        term: Term(term),
        vote: ReplicaId(vote),
        commit: Index(commit),
    })
}

fn write(engine: &impl LogEngine, sync: bool, sections: Vec<LogSection>) {
    let _receipt = engine
        .write(&LogBatch { sync, sections })
        .expect("there is room and no fault");
}

fn read(engine: &impl LogEngine, group: GroupId, low: u64, high: u64) -> Vec<Entry> {
    engine
        .read(group, Index(low), Index(high), ALL)
        .expect("the entries are there")
}

fn is_unavailable(engine: &impl LogEngine, group: GroupId, low: u64, high: u64) -> bool {
    let found = engine.read(group, Index(low), Index(high), ALL);
    matches!(found, Err(LogError::Unavailable { .. }))
}

/// An engine with the replica 3 of group 1 and its entries `[1, 9)` of term 2.
fn with_entries<S: LogSubject>(subject: &S) -> S::Engine {
    let engine = opened(subject);
    write(
        &engine,
        true,
        vec![
            create(ONE, 3),
            LogSection {
                hard_state: hard_state(2, 3, 4),
                ..append(ONE, 2, 1..9)
            },
        ],
    );
    engine
}

fn opened<S: LogSubject>(subject: &S) -> S::Engine {
    let engine = subject.open();
    engine.recover().expect("the log can be trusted");
    engine
}

fn recovered<S: LogSubject>(subject: &S) -> crate::env::Recovered {
    subject.open().recover().expect("the log can be trusted")
}

fn an_empty_log_has_nothing(subject: &impl LogSubject) {
    let engine = subject.open();
    let found = engine.recover().expect("an empty log is sound");
    assert_eq!(found, crate::env::Recovered::default());
    assert!(is_unavailable(&engine, ONE, 1, 2), "no such group");
    assert!(!engine.maintain().expect("nothing can go wrong"));
}

fn what_was_written_is_readable_at_once(subject: &impl LogSubject) {
    let engine = with_entries(subject);
    assert_eq!(read(&engine, ONE, 1, 9), entries(2, 1..9));
    write(&engine, false, vec![append(ONE, 2, 9..11)]);
    assert_eq!(
        read(&engine, ONE, 4, 11),
        entries(2, 4..11),
        "also without a sync"
    );
}

fn sections_take_effect_in_order(subject: &impl LogSubject) {
    let engine = opened(subject);
    let first = LogSection {
        reset: Some(EntryId::new(4, 10)),
        hard_state: hard_state(5, 2, 10),
        truncate: Some(EntryId::new(5, 12)),
        ..append(ONE, 5, 11..15)
    };
    let first = LogSection {
        lifecycle: create(ONE, 7).lifecycle,
        ..first
    };
    let second = LogSection {
        hard_state: hard_state(6, 7, 13),
        ..append(ONE, 6, 14..17)
    };
    write(&engine, true, vec![first, create(TWO, 1), second]);
    let all = [entries(5, 13..14), entries(6, 14..17)].concat();
    assert_eq!(read(&engine, ONE, 13, 17), all);
    drop(engine);
    let found = recovered(subject);
    let groups: Vec<_> = found.groups.iter().map(|found| found.group).collect();
    assert_eq!(groups, [ONE, TWO], "ascending");
    let one = &found.groups[0];
    assert_eq!(one.replica, ReplicaId(7));
    assert_eq!(Some(one.hard_state), hard_state(6, 7, 13));
    assert_eq!(one.truncated, EntryId::new(5, 12));
    assert_eq!(one.last, EntryId::new(6, 16));
    assert_eq!(one.terms, [(Term(5), Index(13)), (Term(6), Index(14))]);
}

fn a_conflict_replaces_the_tail(subject: &impl LogSubject) {
    let engine = with_entries(subject);
    write(&engine, true, vec![append(ONE, 3, 5..6)]);
    let check = |engine: &_| {
        let all = [entries(2, 1..5), entries(3, 5..6)].concat();
        assert_eq!(read(engine, ONE, 1, 6), all);
        assert!(
            is_unavailable(engine, ONE, 5, 7),
            "the old tail is gone, shorter log or not"
        );
    };
    check(&engine);
    drop(engine);
    let engine = subject.open();
    let found = engine.recover().expect("the log can be trusted");
    assert_eq!(found.groups[0].last, EntryId::new(3, 5));
    assert_eq!(
        found.groups[0].terms,
        [(Term(2), Index(1)), (Term(3), Index(5))]
    );
    assert_eq!(
        Some(found.groups[0].hard_state),
        hard_state(2, 3, 4),
        "not written, not changed"
    );
    check(&engine);
}

fn reads_are_bounded_and_never_empty(subject: &impl LogSubject) {
    let engine = with_entries(subject);
    let size = entries(2, 1..2)[0].size();
    let count = |max| {
        let found = engine.read(ONE, Index(2), Index(9), max);
        let found = found.expect("the entries are there");
        assert_eq!(found, entries(2, 2..2 + found.len() as u64), "consecutive");
        found.len() as u64
    };
    assert_eq!(count(0), 1, "never empty");
    assert_eq!(count(size), 1);
    assert_eq!(count(3 * size), 3);
    assert_eq!(count(4 * size - 1), 3);
    assert_eq!(count(ALL), 7);
    for (low, high) in [(0, 3), (8, 10), (9, 10), (20, 21)] {
        assert!(is_unavailable(&engine, ONE, low, high), "[{low}, {high})");
    }
}

fn truncation_forgets_the_front_only(subject: &impl LogSubject) {
    let engine = with_entries(subject);
    let truncate = |index| LogSection {
        group: ONE,
        truncate: Some(EntryId::new(2, index)),
        ..LogSection::default()
    };
    write(&engine, false, vec![truncate(5)]);
    write(&engine, true, vec![truncate(5), truncate(3)]);
    assert_eq!(
        read(&engine, ONE, 6, 9),
        entries(2, 6..9),
        "an older mark does not bring entries back"
    );
    assert!(is_unavailable(&engine, ONE, 5, 9));
    write(&engine, true, vec![truncate(8)]);
    drop(engine);
    let engine = subject.open();
    let found = engine.recover().expect("the log can be trusted");
    assert_eq!(found.groups[0].truncated, EntryId::new(2, 8));
    assert_eq!(
        found.groups[0].last,
        EntryId::new(2, 8),
        "all of it is gone"
    );
    assert_eq!(found.groups[0].terms, []);
    write(&engine, true, vec![append(ONE, 4, 9..11)]);
    assert_eq!(read(&engine, ONE, 9, 11), entries(4, 9..11), "it goes on");
}

fn a_reset_leaves_nothing_but_the_mark(subject: &impl LogSubject) {
    let engine = with_entries(subject);
    let reset = LogSection {
        group: ONE,
        reset: Some(EntryId::new(6, 40)),
        hard_state: hard_state(6, 0, 40),
        ..LogSection::default()
    };
    write(&engine, true, vec![reset]);
    assert!(is_unavailable(&engine, ONE, 3, 5));
    write(&engine, true, vec![append(ONE, 6, 41..43)]);
    drop(engine);
    let engine = subject.open();
    let found = engine.recover().expect("the log can be trusted").groups;
    assert_eq!(found[0].replica, ReplicaId(3), "it is the same replica");
    assert_eq!(Some(found[0].hard_state), hard_state(6, 0, 40));
    assert_eq!(found[0].truncated, EntryId::new(6, 40));
    assert_eq!(read(&engine, ONE, 41, 43), entries(6, 41..43));
}

fn a_tombstone_outlives_the_replica(subject: &impl LogSubject) {
    let engine = with_entries(subject);
    write(&engine, true, vec![destroy(ONE, 6), destroy(TWO, ALL)]);
    assert!(is_unavailable(&engine, ONE, 1, 3));
    drop(engine);
    let found = recovered(subject);
    assert_eq!(found.groups, []);
    let expected = [(ONE, ReplicaId(6)), (TWO, ReplicaId(u64::MAX))];
    assert_eq!(found.tombstones, expected);
    let engine = opened(subject);
    write(&engine, true, vec![create(ONE, 6), append(ONE, 1, 1..2)]);
    drop(engine);
    let found = recovered(subject);
    assert_eq!(found.tombstones, expected[1..]);
    assert_eq!(found.groups[0].replica, ReplicaId(6));
    assert_eq!(
        found.groups[0].hard_state,
        HardState::default(),
        "nothing of the one before"
    );
    assert_eq!(found.groups[0].last, EntryId::new(1, 1));
}

fn groups_do_not_see_each_other(subject: &impl LogSubject) {
    let engine = with_entries(subject);
    write(&engine, true, vec![create(TWO, 1), append(TWO, 9, 1..4)]);
    write(
        &engine,
        true,
        vec![append(TWO, 9, 2..3), append(ONE, 2, 9..10)],
    );
    write(&engine, true, vec![destroy(TWO, 2)]);
    assert_eq!(read(&engine, ONE, 1, 10), entries(2, 1..10));
    drop(engine);
    let engine = opened(subject);
    assert_eq!(read(&engine, ONE, 1, 10), entries(2, 1..10));
}

fn synced_writes_survive_a_power_cut<S: LogSubject>(new: &impl Fn() -> S) {
    let subject = new();
    let engine = with_entries(&subject);
    write(&engine, false, vec![append(ONE, 2, 9..10)]);
    write(&engine, true, vec![append(ONE, 2, 10..11)]);
    drop(engine);
    if !subject.power_cut(0) {
        return;
    }
    let engine = opened(&subject);
    assert_eq!(
        read(&engine, ONE, 1, 11),
        entries(2, 1..11),
        "what is synced, and what was written before it"
    );
}

fn unsynced_writes_survive_as_a_prefix<S: LogSubject>(new: &impl Fn() -> S) {
    for keep in 0..4 {
        let subject = new();
        let engine = with_entries(&subject);
        for index in 9..12 {
            write(&engine, false, vec![append(ONE, 2, index..index + 1)]);
        }
        drop(engine);
        if !subject.power_cut(keep) {
            return;
        }
        let engine = subject.open();
        let found = engine.recover().expect("the log can be trusted").groups;
        let last = found[0].last.index.0;
        assert!((8..12).contains(&last), "{last}");
        assert_eq!(read(&engine, ONE, 1, last + 1), entries(2, 1..last + 1));
    }
}

fn without_room_nothing_is_written(subject: &impl LogSubject) {
    let engine = with_entries(subject);
    if !subject.set_fault(Some(SeamFault::Full)) {
        return;
    }
    let batch = LogBatch {
        sync: true,
        sections: vec![create(TWO, 1), append(ONE, 3, 5..12)],
    };
    for _ in 0..2 {
        let result = engine.write(&batch);
        assert!(matches!(result, Err(LogError::DiskFull)), "{result:?}");
        assert_eq!(read(&engine, ONE, 1, 9), entries(2, 1..9));
        assert!(is_unavailable(&engine, ONE, 8, 10));
    }
    subject.set_fault(None);
    let _receipt = engine.write(&batch).expect("there is room again");
    drop(engine);
    let engine = subject.open();
    assert_eq!(
        engine
            .recover()
            .expect("the log can be trusted")
            .groups
            .len(),
        2
    );
    assert_eq!(read(&engine, ONE, 5, 12), entries(3, 5..12));
}

fn after_a_failed_sync_nothing_succeeds(subject: &impl LogSubject) {
    let engine = with_entries(subject);
    if !subject.set_fault(Some(SeamFault::SyncFails)) {
        return;
    }
    let batch = |sync| LogBatch {
        sync,
        sections: vec![append(ONE, 2, 9..10)],
    };
    let result = engine.write(&batch(true));
    assert!(matches!(result, Err(LogError::Fatal(_))), "{result:?}");
    subject.set_fault(None);
    for sync in [true, false] {
        let result = engine.write(&batch(sync));
        assert!(
            matches!(result, Err(LogError::Fatal(_))),
            "what the disk holds is not known any more: {result:?}"
        );
    }
}

/// Random batches, restarts and housekeeping, compared with the model after each restart.
fn it_does_what_the_model_does(subject: &impl LogSubject, seed: u64) {
    let (mut rng, mut model) = (Rng::new(seed), LogModel::default());
    let mut next_replica = 1;
    let mut engine = opened(subject);
    for _ in 0..120 {
        let sections = (0..=rng.below(3))
            .map(|_| random_section(&mut rng, &model, &mut next_replica))
            .collect();
        let batch = LogBatch {
            sync: rng.percent(70),
            sections,
        };
        // Sections are made for the state before the batch, so some batches cannot be.
        if model.clone().apply(&batch).is_err() {
            continue;
        }
        model.apply(&batch).expect("it was possible a moment ago");
        let _receipt = engine.write(&batch).expect("the model takes it");
        while rng.percent(20) && engine.maintain().expect("housekeeping is sound") {}
        if rng.percent(10) {
            drop(engine);
            engine = subject.open();
            let found = engine.recover().expect("the log can be trusted");
            assert_eq!(found, model.recovered(), "seed {seed}");
        }
        compare(&engine, &model, seed);
    }
}

fn random_section(rng: &mut Rng, model: &LogModel, next_replica: &mut u64) -> LogSection {
    let group = GroupId(1 + rng.below(5));
    let Some((_, state, last)) = model.replica(group) else {
        *next_replica += 1;
        return create(group, *next_replica);
    };
    let term = state.term.0.max(last.term.0) + rng.below(2);
    match rng.below(20) {
        0 => destroy(group, *next_replica + 1),
        1 => LogSection {
            group,
            reset: Some(EntryId::new(term, last.index.0 + rng.below(9))),
            hard_state: hard_state(term, 0, 0),
            ..LogSection::default()
        },
        2..5 => {
            let back = rng.below(4).min(last.index.0);
            let found = model.recovered();
            let found = found.groups.into_iter().find(|found| found.group == group);
            let truncate = found.and_then(|found| id_at(&found, last.index.0 - back));
            LogSection {
                group,
                truncate,
                ..LogSection::default()
            }
        }
        _ => {
            let from = (last.index.0 + 1).saturating_sub(rng.below(4)).max(1);
            LogSection {
                hard_state: hard_state(term, rng.below(3), 0),
                ..append(group, term, from..from + rng.below(6))
            }
        }
    }
}

fn id_at(found: &crate::env::RecoveredGroup, index: u64) -> Option<EntryId> {
    let run = found.terms.iter().rfind(|(_, first)| first.0 <= index)?;
    Some(EntryId::new(run.0.0, index))
}

fn compare(engine: &impl LogEngine, model: &LogModel, seed: u64) {
    for found in model.recovered().groups {
        let (low, high) = (found.truncated.index.next(), found.last.index.next());
        if low == high {
            continue;
        }
        let (ours, theirs) = (
            engine.read(found.group, low, high, ALL),
            model.read(found.group, low, high, ALL),
        );
        assert_eq!(ours.ok(), theirs.ok(), "seed {seed}, group {}", found.group);
    }
}
