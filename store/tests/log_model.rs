//! The log against a plain model: a `Vec` per group, with crashes at every step.

use std::collections::BTreeMap;

use bytes::Bytes;
use polyraft_core::{Entry, EntryId, EntryKind, HardState, Index, ReplicaId, Term};
use polyraft_multiraft::GroupId;
use polyraft_multiraft::env::{
    Lifecycle, LogBatch, LogEngine, LogError, LogSection, Recovered, RecoveredGroup,
};
use polyraft_store::disk::{Cf, Disk};
use polyraft_store::{Fault, LogOptions, MemoryDisk, RaftLog};
use proptest::prelude::*;

/// What a group's log is.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    replica: ReplicaId,
    hard_state: HardState,
    truncated: EntryId,
    entries: Vec<Entry>,
}

impl Model {
    fn last(&self) -> EntryId {
        self.entries.last().map_or(self.truncated, Entry::id)
    }

    fn recovered(&self, group: GroupId) -> RecoveredGroup {
        let mut terms: Vec<(Term, Index)> = Vec::new();
        for entry in &self.entries {
            if terms.last().is_none_or(|(term, _)| *term != entry.term) {
                terms.push((entry.term, entry.index));
            }
        }
        let (hard_state, truncated, last) = (self.hard_state, self.truncated, self.last());
        RecoveredGroup {
            group,
            replica: self.replica,
            hard_state,
            truncated,
            last,
            terms,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
struct World {
    groups: BTreeMap<GroupId, Model>,
    tombstones: BTreeMap<GroupId, ReplicaId>,
}

impl World {
    fn recovered(&self) -> Recovered {
        Recovered {
            groups: self
                .groups
                .iter()
                .map(|(group, model)| model.recovered(*group))
                .collect(),
            tombstones: self
                .tombstones
                .iter()
                .map(|(group, next)| (*group, *next))
                .collect(),
        }
    }

    fn apply(&mut self, section: &LogSection) {
        let group = section.group;
        match section.lifecycle {
            Some(Lifecycle::Create { replica }) => {
                self.tombstones.remove(&group);
                self.groups.insert(
                    group,
                    Model {
                        replica,
                        ..Model::default()
                    },
                );
            }
            Some(Lifecycle::Destroy { next_replica }) => {
                self.groups.remove(&group);
                self.tombstones.insert(group, next_replica);
                return;
            }
            None => {}
        }
        let model = self.groups.get_mut(&group).unwrap();
        if let Some(reset) = section.reset {
            model.truncated = reset;
            model.entries.clear();
        }
        if let Some(hard_state) = section.hard_state {
            model.hard_state = hard_state;
        }
        if let Some(first) = section.entries.first() {
            model.entries.retain(|entry| entry.index < first.index);
            model.entries.extend(section.entries.iter().cloned());
        }
        if let Some(truncate) = section.truncate {
            model.truncated = truncate;
            model.entries.retain(|entry| entry.index > truncate.index);
        }
    }
}

/// What is done next; numbers are cut to what is possible.
#[derive(Clone, Debug)]
enum Step {
    Append {
        group: u64,
        back: u64,
        count: u64,
        term: u64,
    },
    Truncate {
        group: u64,
        by: u64,
    },
    Reset {
        group: u64,
        ahead: u64,
    },
    Destroy {
        group: u64,
    },
    Settle,
    Crash {
        keep: usize,
    },
    /// What is written from here on waits to be one batch.
    Together {
        count: usize,
        sync: bool,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let append =
        (1u64..5, 0u64..4, 1u64..6, 0u64..2).prop_map(|(group, back, count, term)| Step::Append {
            group,
            back,
            count,
            term,
        });
    let step = prop_oneof![
        12 => append,
        4 => (1u64..5, 1u64..6).prop_map(|(group, by)| Step::Truncate { group, by }),
        1 => (1u64..5, 0u64..9).prop_map(|(group, ahead)| Step::Reset { group, ahead }),
        1 => (1u64..5).prop_map(|group| Step::Destroy { group }),
        4 => Just(Step::Settle),
        2 => (0usize..4).prop_map(|keep| Step::Crash { keep }),
        6 => (1usize..5, any::<bool>()).prop_map(|(count, sync)| Step::Together { count, sync }),
    ];
    prop::collection::vec(step, 1..80)
}

/// The section that a step writes, if it writes any.
fn section(step: &Step, world: &World, serial: u64) -> Option<LogSection> {
    let (Step::Append { group, .. }
    | Step::Truncate { group, .. }
    | Step::Reset { group, .. }
    | Step::Destroy { group }) = step
    else {
        return None;
    };
    let group = GroupId(*group);
    let next = world
        .tombstones
        .get(&group)
        .copied()
        .unwrap_or(ReplicaId(1));
    let Some(model) = world.groups.get(&group) else {
        let lifecycle = Some(Lifecycle::Create { replica: next });
        let reset = Some(EntryId::new(1, 2));
        let hard_state = Some(HardState {
            term: Term(1),
            ..HardState::default()
        });
        return Some(LogSection {
            group,
            lifecycle,
            reset,
            hard_state,
            ..LogSection::default()
        });
    };
    let mut section = LogSection {
        group,
        ..LogSection::default()
    };
    match step {
        Step::Append {
            back, count, term, ..
        } => {
            let first = (model.last().index.0 + 1).saturating_sub(*back);
            let first = first.max(model.truncated.index.0 + 1);
            let term = Term(model.last().term.0.max(1) + term);
            let entry = |index| Entry {
                term,
                index: Index(index),
                kind: EntryKind::Normal,
                data: Bytes::from(format!("{group}/{index}/{serial}")),
            };
            section.entries = (first..first + count).map(entry).collect();
            let vote = model.replica;
            section.hard_state = Some(HardState {
                term,
                vote,
                commit: model.truncated.index,
            });
        }
        Step::Truncate { by, .. } => {
            let entry = model
                .entries
                .get(*by as usize - 1)
                .or(model.entries.last())?;
            section.truncate = Some(entry.id());
        }
        Step::Reset { ahead, .. } => {
            section.reset = Some(EntryId::new(
                model.last().term.0.max(1),
                model.last().index.0 + ahead,
            ));
        }
        Step::Destroy { .. } => {
            let next_replica = ReplicaId(model.replica.0 + 1);
            section.lifecycle = Some(Lifecycle::Destroy { next_replica });
        }
        Step::Settle | Step::Crash { .. } | Step::Together { .. } => return None,
    }
    Some(section)
}

fn check_reads<D: Disk>(log: &RaftLog<D>, world: &World) {
    for (group, model) in &world.groups {
        let (Some(first), Some(last)) = (model.entries.first(), model.entries.last()) else {
            let next = model.truncated.index.next();
            let read = log.read(*group, next, next.next(), u64::MAX);
            assert!(
                matches!(read, Err(LogError::Unavailable { .. })),
                "{read:?}"
            );
            continue;
        };
        let all = log
            .read(*group, first.index, last.index.next(), u64::MAX)
            .unwrap();
        assert_eq!(all, model.entries);
        let one = log.read(*group, first.index, last.index.next(), 1).unwrap();
        assert_eq!(one[..], model.entries[..1]);
    }
}

/// So small that everything is settled again and again.
const OPTIONS: LogOptions = LogOptions {
    hot_bytes_max: 300,
    settle_groups_max: 2,
};

/// What happens to a disk when the power goes: how many of the writes that were not synced are kept.
trait Crash: Disk + Clone {
    /// The disk afterwards, and how many were kept.
    fn power_cut(self, keep: usize, unsynced: usize) -> (Self, usize);
}

impl Crash for MemoryDisk {
    fn power_cut(self, keep: usize, unsynced: usize) -> (Self, usize) {
        (self.crash(keep), keep.min(unsynced))
    }
}

/// A log, the model, and what a crash may go back to.
struct Run<D> {
    log: RaftLog<D>,
    world: World,
    /// Worlds since the last sync, which is the first: one for each write since.
    durable: Vec<World>,
    /// Sections that wait, for how many more, and whether they will be synced.
    waiting: (Vec<LogSection>, usize, bool),
}

impl<D: Crash> Run<D> {
    fn write(&mut self, section: LogSection) {
        let (sections, count, sync) = &mut self.waiting;
        self.world.apply(&section);
        sections.push(section);
        if sections.len() < *count {
            return;
        }
        let batch = LogBatch {
            sync: *sync,
            sections: std::mem::take(sections),
        };
        self.waiting.1 = 1;
        self.waiting.2 = true;
        let _receipt = self.log.write(&batch).unwrap();
        if batch.sync {
            self.durable.clear();
        }
        self.durable.push(self.world.clone());
        check_reads(&self.log, &self.world);
    }

    fn settle(&mut self) {
        let mut any = false;
        while self.log.maintain().unwrap() {
            any = true;
        }
        let written = self.durable.last().unwrap().clone();
        check_reads(&self.log, &written);
        if any {
            self.durable = vec![written];
        }
    }
}

fn run<D: Crash>(steps: &[Step], mut disk: D) {
    #[cfg(canary)]
    polyraft_core::canary::plant(std::env::var("POLYRAFT_CANARY").ok().as_deref());
    let open = |disk: &D, world: World| {
        let log = RaftLog::new(disk.clone(), OPTIONS);
        assert_eq!(log.recover().unwrap(), world.recovered());
        check_reads(&log, &world);
        Run {
            log,
            durable: vec![world.clone()],
            world,
            waiting: (Vec::new(), 1, true),
        }
    };
    let mut now = open(&disk, World::default());
    let last = Step::Crash { keep: 0 };
    for (serial, step) in (0..).zip(steps.iter().chain([&last])) {
        if let Some(section) = section(step, &now.world, serial) {
            now.write(section);
        }
        match step {
            Step::Settle => now.settle(),
            Step::Crash { keep } => {
                let durable = now.durable;
                drop(now.log);
                let kept;
                (disk, kept) = disk.power_cut(*keep, durable.len() - 1);
                now = open(&disk, durable[kept].clone());
            }
            Step::Together { count, sync } if now.waiting.0.is_empty() => {
                now.waiting = (Vec::new(), *count, *sync);
            }
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// A receipt is given only for what survives, and what survives is what was written.
    #[test]
    fn any_history_is_what_a_list_per_group_would_be(steps in steps()) {
        run(&steps, MemoryDisk::new());
    }
}

#[cfg(feature = "rocksdb")]
mod rocks {
    use std::sync::Arc;

    use polyraft_store::RocksDisk;
    use polyraft_store::conformance::{Around, Writes};
    use polyraft_store::disk::{Batch, DiskError, Durability};
    use tempfile::TempDir;

    use super::*;

    /// RocksDB that is closed and opened again in place of a crash; nothing is lost then.
    type Reopened = Around<RocksDisk, Dir>;

    #[derive(Clone)]
    struct Dir(Arc<TempDir>);

    impl Writes<RocksDisk> for Dir {
        fn write(
            &self,
            disk: &RocksDisk,
            batch: Batch,
            durability: Durability,
        ) -> Result<(), DiskError> {
            disk.write(batch, durability)
        }
    }

    fn open(dir: Dir) -> Reopened {
        let disk = RocksDisk::open(dir.0.path(), Default::default()).unwrap();
        Around(disk, dir)
    }

    impl Crash for Reopened {
        fn power_cut(self, _keep: usize, unsynced: usize) -> (Self, usize) {
            let dir = self.1.clone();
            drop(self);
            (open(dir), unsynced)
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            failure_persistence: None, cases: 12, ..ProptestConfig::default()
        })]

        #[test]
        fn any_history_on_rocksdb(steps in steps()) {
            run(&steps, open(Dir(Arc::new(tempfile::tempdir().unwrap()))));
        }
    }
}

fn created(log: &RaftLog<MemoryDisk>, groups: u64) {
    #[cfg(canary)]
    polyraft_core::canary::plant(std::env::var("POLYRAFT_CANARY").ok().as_deref());
    let sections = (1..=groups)
        .map(|group| LogSection {
            group: GroupId(group),
            lifecycle: Some(Lifecycle::Create {
                replica: ReplicaId(1),
            }),
            reset: Some(EntryId::new(1, 2)),
            ..LogSection::default()
        })
        .collect();
    let _receipt = log
        .write(&LogBatch {
            sync: true,
            sections,
        })
        .unwrap();
}

fn append(log: &RaftLog<MemoryDisk>, group: u64, index: u64, bytes: usize) {
    let entry = Entry {
        term: Term(1),
        index: Index(index),
        kind: EntryKind::Normal,
        data: Bytes::from(vec![7; bytes]),
    };
    let section = LogSection {
        group: GroupId(group),
        entries: vec![entry],
        ..LogSection::default()
    };
    let _receipt = log
        .write(&LogBatch {
            sync: true,
            sections: vec![section],
        })
        .unwrap();
}

fn fresh(hot_bytes_max: u64) -> (MemoryDisk, RaftLog<MemoryDisk>) {
    let disk = MemoryDisk::new();
    let options = LogOptions {
        hot_bytes_max,
        ..LogOptions::default()
    };
    let log = RaftLog::new(disk.clone(), options);
    log.recover().unwrap();
    (disk, log)
}

#[test]
fn no_group_keeps_records_alive_for_ever() {
    let (_disk, log) = fresh(10_000);
    created(&log, 2);
    // Group 1 writes once and is never truncated; group 2 writes on and on.
    append(&log, 1, 3, 10);
    for index in 3..2000 {
        append(&log, 2, index, 10);
        while log.maintain().unwrap() {}
        assert!(log.stats().hot_bytes <= 10_000 + 200);
    }
    assert_eq!(
        log.read(GroupId(1), Index(3), Index(4), 100).unwrap().len(),
        1
    );
}

#[test]
fn what_is_truncated_leaves_no_record_and_no_index() {
    let (disk, log) = fresh(u64::MAX);
    created(&log, 1);
    for index in 3..500 {
        append(&log, 1, index, 100);
    }
    let full = log.stats();
    let section = LogSection {
        group: GroupId(1),
        truncate: Some(EntryId::new(1, 499)),
        ..LogSection::default()
    };
    let _receipt = log
        .write(&LogBatch {
            sync: true,
            sections: vec![section],
        })
        .unwrap();
    assert_eq!(
        log.stats().hot_records,
        1,
        "only the newest state of the group"
    );
    assert!(log.stats().index_bytes * 20 < full.index_bytes);
    append(&log, 1, 500, 1);
    let records = disk.scan(Cf::Log, &[], None, usize::MAX).unwrap();
    assert!(records.len() <= 2, "{} records", records.len());
}

#[test]
fn an_unsynced_write_may_be_lost_and_a_synced_one_brings_it_along() {
    let (disk, log) = fresh(u64::MAX);
    created(&log, 1);
    let hard_state = |commit| LogSection {
        group: GroupId(1),
        hard_state: Some(HardState {
            commit: Index(commit),
            ..HardState::default()
        }),
        ..LogSection::default()
    };
    let commit = |disk: &MemoryDisk, keep| {
        let log = RaftLog::new(disk.crash(keep), LogOptions::default());
        log.recover().unwrap().groups[0].hard_state.commit.0
    };
    let _receipt = log
        .write(&LogBatch {
            sync: false,
            sections: vec![hard_state(7)],
        })
        .unwrap();
    assert_eq!((commit(&disk, 0), commit(&disk, 1)), (0, 7));
    let _receipt = log
        .write(&LogBatch {
            sync: true,
            sections: vec![hard_state(8)],
        })
        .unwrap();
    assert_eq!(commit(&disk, 0), 8);
}

#[test]
fn damage_is_refused_and_named() {
    for bit in [3, 50, 400, 800] {
        let (disk, log) = fresh(u64::MAX);
        created(&log, 1);
        append(&log, 1, 3, 100);
        append(&log, 1, 4, 100);
        let (key, _) = disk.scan(Cf::Log, &[], None, 9).unwrap().remove(1);
        disk.flip_bit(Cf::Log, &key, bit);
        let log = RaftLog::new(disk, LogOptions::default());
        let error = log.recover().unwrap_err().to_string();
        assert!(
            error.contains("log record") && error.contains("cannot be trusted"),
            "{error}"
        );
    }
}

#[test]
fn a_full_disk_loses_nothing_and_a_failed_sync_is_final() {
    let (disk, log) = fresh(u64::MAX);
    created(&log, 1);
    append(&log, 1, 3, 10);
    let section = LogSection {
        group: GroupId(1),
        ..LogSection::default()
    };
    let batch = LogBatch {
        sync: true,
        sections: vec![section],
    };
    disk.set_fault(Some(Fault::Full));
    assert!(matches!(log.write(&batch), Err(LogError::DiskFull)));
    disk.set_fault(None);
    append(&log, 1, 4, 10);
    disk.set_fault(Some(Fault::SyncFails));
    assert!(matches!(log.write(&batch), Err(LogError::Fatal(_))));
    disk.set_fault(None);
    assert!(
        matches!(log.write(&batch), Err(LogError::Fatal(_))),
        "never tried and trusted again"
    );
    let log = RaftLog::new(disk.crash(0), LogOptions::default());
    assert_eq!(log.recover().unwrap().groups[0].last, EntryId::new(1, 4));
}

#[test]
fn entries_that_do_not_connect_are_refused() {
    let (_disk, log) = fresh(u64::MAX);
    created(&log, 1);
    append(&log, 1, 3, 10);
    let entry = Entry {
        term: Term(1),
        index: Index(9),
        ..Entry::default()
    };
    let section = LogSection {
        group: GroupId(1),
        entries: vec![entry],
        ..LogSection::default()
    };
    let result = log.write(&LogBatch {
        sync: true,
        sections: vec![section],
    });
    assert!(
        matches!(result, Err(LogError::Corrupt { .. })),
        "{result:?}"
    );
}

#[test]
fn a_sync_that_fails_in_maintenance_is_final_too() {
    let (disk, log) = fresh(10);
    created(&log, 1);
    append(&log, 1, 3, 100);
    disk.set_fault(Some(Fault::Full));
    assert!(matches!(log.maintain(), Err(LogError::DiskFull)));
    disk.set_fault(None);
    append(&log, 1, 4, 100);
    disk.set_fault(Some(Fault::SyncFails));
    assert!(matches!(log.maintain(), Err(LogError::Fatal(_))));
    disk.set_fault(None);
    assert!(matches!(
        log.write(&LogBatch::default()),
        Err(LogError::Fatal(_))
    ));
    assert!(matches!(log.maintain(), Err(LogError::Fatal(_))));
    let log = RaftLog::new(disk.crash(0), LogOptions::default());
    assert_eq!(log.recover().unwrap().groups[0].last, EntryId::new(1, 4));
}

#[test]
fn a_read_of_a_long_settled_tail_stops_at_its_limit() {
    let (_disk, log) = fresh(10);
    created(&log, 1);
    for index in 3..403 {
        append(&log, 1, index, 100);
    }
    while log.maintain().unwrap() {}
    append(&log, 1, 403, 100);
    for (low, max_bytes, count) in [
        (3, 0, 1),
        (3, 124, 1),
        (3, 247, 1),
        (3, 248, 2),
        (3, 64 * 124, 64),
        (5, 100 * 124, 100),
        (300, u64::MAX, 104),
        (402, 248, 2),
        (403, 1, 1),
    ] {
        let found = log
            .read(GroupId(1), Index(low), Index(404), max_bytes)
            .unwrap();
        let indexes: Vec<u64> = found.iter().map(|entry| entry.index.0).collect();
        let expected: Vec<u64> = (low..low + count).collect();
        assert_eq!(indexes, expected, "from {low}, {max_bytes} bytes");
    }
}
