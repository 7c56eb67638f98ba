//! The log's two locks under schedules that shuttle chooses: who reads sees the log as it was at
//! one moment of his reading, while it is written and settled. `make shuttle` runs it; see there.
#![cfg(shuttle)]

#[path = "../../multiraft/tests/interleavings/check.rs"]
mod check;

use std::sync::Arc;

use bytes::Bytes;
use polyraft_core::{Entry, EntryId, EntryKind, Index, ReplicaId, Term};
use polyraft_multiraft::GroupId;
use polyraft_multiraft::env::conformance::LogModel;
use polyraft_multiraft::env::{Lifecycle, LogBatch, LogEngine, LogError, LogSection};
use polyraft_store::bulk::{BulkId, BulkWriter};
use polyraft_store::disk::{Batch, Cf, Disk, DiskError, Durability, Pair, View};
use polyraft_store::{LogOptions, MemoryDisk, RaftLog};
use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use shuttle::thread;

use self::check::check;

/// A disk between whose operations anybody may go on.
#[derive(Clone, Default)]
struct Stepping {
    disk: MemoryDisk,
    steps: Arc<AtomicUsize>,
    /// The next write fails, and that one only: a disk that seems to be well again.
    fails: Arc<AtomicBool>,
}

impl Stepping {
    fn step(&self) {
        self.steps.fetch_add(1, Ordering::SeqCst);
    }
}

impl Disk for Stepping {
    fn write(&self, batch: Batch, durability: Durability) -> Result<(), DiskError> {
        self.step();
        if self.fails.swap(false, Ordering::SeqCst) {
            return Err(DiskError::Fatal("the sync failed".to_owned()));
        }
        let written = self.disk.write(batch, durability);
        self.step();
        written
    }

    fn get(&self, cf: Cf, key: &[u8]) -> Result<Option<Bytes>, DiskError> {
        self.step();
        self.disk.get(cf, key)
    }

    fn scan(
        &self,
        cf: Cf,
        start: &[u8],
        end: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Pair>, DiskError> {
        self.step();
        self.disk.scan(cf, start, end, limit)
    }

    fn scan_reverse(
        &self,
        cf: Cf,
        start: &[u8],
        end: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Pair>, DiskError> {
        self.step();
        self.disk.scan_reverse(cf, start, end, limit)
    }

    fn begin_bulk(&self, cf: Cf, id: BulkId) -> Result<Box<dyn BulkWriter>, DiskError> {
        self.disk.begin_bulk(cf, id)
    }

    fn ingest(&self, cf: Cf, ids: &[BulkId]) -> Result<(), DiskError> {
        self.disk.ingest(cf, ids)
    }

    fn remove_bulk(&self, id: BulkId) -> Result<(), DiskError> {
        self.disk.remove_bulk(id)
    }

    fn bulks(&self) -> Result<Vec<BulkId>, DiskError> {
        self.disk.bulks()
    }

    fn view(&self) -> Box<dyn View> {
        self.disk.view()
    }

    fn flush(&self, cf: Cf) -> Result<(), DiskError> {
        self.disk.flush(cf)
    }
}

const ONE: GroupId = GroupId(1);
const TWO: GroupId = GroupId(2);

fn create(group: GroupId, replica: u64) -> LogSection {
    LogSection {
        group,
        lifecycle: Some(Lifecycle::Create {
            replica: ReplicaId(replica),
        }),
        ..LogSection::default()
    }
}

/// Entries `[first, last]` of a term, whose data names group, term and index.
fn append(group: GroupId, term: u64, first: u64, last: u64) -> LogSection {
    let entry = |index| Entry {
        term: Term(term),
        index: Index(index),
        kind: EntryKind::Normal,
        data: Bytes::from(format!("{group}/{term}/{index}")),
    };
    LogSection {
        group,
        entries: (first..=last).map(entry).collect(),
        ..LogSection::default()
    }
}

fn truncate(group: GroupId, term: u64, index: u64) -> LogSection {
    LogSection {
        group,
        truncate: Some(EntryId::new(term, index)),
        ..LogSection::default()
    }
}

/// Everything that can happen to a log, in the order in which it does.
fn batches() -> Vec<LogBatch> {
    let reset = LogSection {
        group: TWO,
        reset: Some(EntryId::new(2, 10)),
        ..LogSection::default()
    };
    let destroy = LogSection {
        group: TWO,
        lifecycle: Some(Lifecycle::Destroy {
            next_replica: ReplicaId(2),
        }),
        ..LogSection::default()
    };
    let batches = [
        vec![create(ONE, 1), create(TWO, 1)],
        vec![append(ONE, 1, 1, 3), append(TWO, 1, 1, 3)],
        vec![append(ONE, 1, 4, 5)],
        vec![append(ONE, 2, 4, 6), truncate(TWO, 1, 2)],
        vec![reset, truncate(ONE, 1, 1)],
        vec![append(TWO, 2, 11, 12), append(ONE, 2, 7, 7)],
        vec![destroy],
        vec![create(TWO, 2)],
        vec![append(TWO, 3, 1, 2), append(ONE, 3, 6, 6)],
    ];
    let batch = |sections| LogBatch {
        sync: true,
        sections,
    };
    batches.into_iter().map(batch).collect()
}

/// Batches that are there before anybody reads.
const BEFORE: usize = 2;

/// The log after each number of batches.
fn versions(batches: &[LogBatch]) -> Vec<LogModel> {
    let mut versions = vec![LogModel::default()];
    for batch in batches {
        let mut next = versions[versions.len() - 1].clone();
        next.apply(batch).expect("a batch that can be");
        versions.push(next);
    }
    versions
}

fn open(disk: &Stepping) -> RaftLog<Stepping> {
    let options = LogOptions {
        hot_bytes_max: 0,
        settle_groups_max: 1,
    };
    let log = RaftLog::new(disk.clone(), options);
    log.recover().expect("nothing is wrong with the disk");
    log
}

struct World {
    log: RaftLog<Stepping>,
    versions: Vec<LogModel>,
    /// Batches that may be seen, and that must be.
    begun: AtomicUsize,
    done: AtomicUsize,
}

impl World {
    fn write(&self, batch: &LogBatch) {
        self.begun.fetch_add(1, Ordering::SeqCst);
        let _receipt = self.log.write(batch).expect("nothing is wrong with it");
        self.done.fetch_add(1, Ordering::SeqCst);
    }

    fn read(&self) {
        let mut random = thread_rng();
        let group = [ONE, TWO][random.gen_range(0..2)];
        let low = Index(random.gen_range(1..8) + if random.gen_range(0..4) == 0 { 8 } else { 0 });
        let high = low.plus(random.gen_range(1..4));
        let max_bytes = [20, u64::MAX][random.gen_range(0..2)];
        let oldest = self.done.load(Ordering::SeqCst);
        let found = self.log.read(group, low, high, max_bytes);
        let newest = self.begun.load(Ordering::SeqCst);
        let mut could_be = self.versions[oldest..=newest]
            .iter()
            .map(|version| version.read(group, low, high, max_bytes));
        let same = |expected: Result<Vec<Entry>, LogError>| match (&found, &expected) {
            (Ok(found), Ok(expected)) => found == expected,
            (Err(LogError::Unavailable { .. }), Err(_)) => true,
            _ => false,
        };
        assert!(
            could_be.any(same),
            "group {group}, [{low}, {high}): {found:?} between {oldest} and {newest} batches"
        );
    }
}

#[test]
fn a_reader_sees_the_log_of_one_moment() {
    check(1_500, || {
        let (disk, batches) = (Stepping::default(), batches());
        let world = Arc::new(World {
            log: open(&disk),
            versions: versions(&batches),
            begun: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
        });
        batches[..BEFORE]
            .iter()
            .for_each(|batch| world.write(batch));
        let mut threads = Vec::new();
        for _ in 0..2 {
            let world = Arc::clone(&world);
            threads.push(thread::spawn(move || (0..4).for_each(|_| world.read())));
        }
        let settling = Arc::clone(&world);
        threads.push(thread::spawn(move || {
            for _ in 0..5 {
                settling.log.maintain().expect("nothing is wrong with it");
            }
        }));
        batches[BEFORE..]
            .iter()
            .for_each(|batch| world.write(batch));
        for thread in threads {
            thread.join().unwrap();
        }
        let last = &world.versions[batches.len()];
        let found = RaftLog::new(disk, LogOptions::default()).recover();
        assert_eq!(found.expect("it was closed in peace"), last.recovered());
    });
}

/// Whoever begins to write or to settle after a sync has failed, fails too, whatever the disk says
/// then.
#[test]
fn nothing_succeeds_after_a_sync_that_failed() {
    check(500, || {
        let (disk, batches) = (Stepping::default(), batches());
        let log = Arc::new(open(&disk));
        for batch in &batches[..BEFORE] {
            let _receipt = log.write(batch).expect("nothing is wrong with it");
        }
        let failed = Arc::new(AtomicBool::new(false));
        let settling = {
            let (log, failed) = (Arc::clone(&log), Arc::clone(&failed));
            thread::spawn(move || {
                for _ in 0..4 {
                    let too_late = failed.load(Ordering::SeqCst);
                    let result = log.maintain();
                    assert!(!(too_late && result.is_ok()), "settled after it");
                    failed.fetch_or(result.is_err(), Ordering::SeqCst);
                }
            })
        };
        let breaking = thread::spawn(move || disk.fails.store(true, Ordering::SeqCst));
        for batch in &batches[BEFORE..] {
            let too_late = failed.load(Ordering::SeqCst);
            let result = log.write(batch);
            assert!(!(too_late && result.is_ok()), "written after it");
            failed.fetch_or(result.is_err(), Ordering::SeqCst);
        }
        breaking.join().unwrap();
        settling.join().unwrap();
    });
}
