//! Ranges that split and merge: who has which keys afterwards, what a crash leaves of it, and what the
//! engine must carry for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use bytes::Bytes;
use polyraft_core::EntryId;
use polyraft_multiraft::env::{
    ApplyItem, Command, RangeChange, SplitRight, StagedSnapshot, StateMachine, StateMachineError,
};
use polyraft_multiraft::{AppliedState, GroupDescriptor, GroupId, KeyRange};
use polyraft_store::conformance::{Around, Writes};
use polyraft_store::disk::{Batch, Cf, Change, Disk, DiskError, Durability, Pair};
use polyraft_store::{
    Application, DataStateMachine, GroupTxn, MemoryDisk, SnapshotOptions, SplitAt,
};

/// Commands: `key=value` sets, `-key` removes, `#` counts in a local value. What is split off, or taken
/// in, says in a local value which keys the hook saw.
struct Toy;

impl Application for Toy {
    fn apply(&self, txn: &mut GroupTxn<'_>, command: &Command) -> Result<Bytes, DiskError> {
        let text = std::str::from_utf8(&command.data).unwrap();
        if text == "#" {
            let before = txn.local_get(b"count")?.map_or(0, |count| count[0]);
            txn.local_put(b"count", Bytes::copy_from_slice(&[before + 1]));
        } else if let Some(key) = text.strip_prefix('-') {
            txn.delete(key.as_bytes())?;
        } else {
            let (key, value) = text.split_once('=').unwrap();
            txn.put(key.as_bytes(), Bytes::copy_from_slice(value.as_bytes()))?;
        }
        Ok(Bytes::new())
    }

    fn split(
        &self,
        at: SplitAt,
        left: &mut GroupTxn<'_>,
        right: &mut GroupTxn<'_>,
    ) -> Result<(), DiskError> {
        for (name, value) in left.local_scan(b"", None, 9)? {
            right.local_put(&name, value);
        }
        let seen = format!("{}: {} | {}", at.left.index, seen(left)?, seen(right)?);
        left.local_put(b"split", seen.clone().into());
        right.local_put(b"split", seen.into());
        Ok(())
    }

    fn merge(
        &self,
        at: EntryId,
        left: &mut GroupTxn<'_>,
        right: &GroupTxn<'_>,
    ) -> Result<(), DiskError> {
        let count = |txn: &GroupTxn<'_>| -> Result<u8, DiskError> {
            Ok(txn.local_get(b"count")?.map_or(0, |count| count[0]))
        };
        let sum = count(left)? + count(right)?;
        left.local_put(b"count", Bytes::copy_from_slice(&[sum]));
        let seen = format!("{}: {} | {}", at.index, seen(left)?, seen(right)?);
        left.local_put(b"merged", seen.into());
        left.local_delete(b"split");
        Ok(())
    }
}

fn seen(txn: &GroupTxn<'_>) -> Result<String, DiskError> {
    Ok(show(&txn.scan(b"", None, 99)?))
}

fn show(pairs: &[Pair]) -> String {
    let text = |(key, value): &Pair| {
        let (key, value) = (String::from_utf8_lossy(key), String::from_utf8_lossy(value));
        format!("{key}={value}")
    };
    pairs.iter().map(text).collect::<Vec<_>>().join(" ")
}

type Machine<D> = DataStateMachine<Toy, D>;

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// A group with the keys `[start, end)`, in a generation, at an index.
fn state(group: u64, start: &str, end: &str, generation: u64, index: u64) -> AppliedState {
    let mut descriptor = GroupDescriptor {
        group: GroupId(group),
        range: Some(KeyRange {
            start: bytes(start),
            end: Some(bytes(end)),
        }),
        ..GroupDescriptor::default()
    };
    descriptor.epoch.range = generation;
    AppliedState {
        last: EntryId::new(1, index),
        descriptor: Arc::new(descriptor),
        ..AppliedState::default()
    }
}

/// A turn of a group: commands, the last of which, or what comes after them, is at the index of `after`.
fn item(after: &AppliedState, commands: &[&str], change: Option<RangeChange>) -> ApplyItem {
    let behind = u64::from(change.is_some());
    let first = after.last.index.0 + 1 - behind - commands.len() as u64;
    let command = |(index, text): (u64, &&str)| Command {
        id: EntryId::new(1, index),
        data: bytes(text),
    };
    ApplyItem {
        group: after.descriptor.group,
        commands: (first..).zip(commands).map(command).collect(),
        state: after.clone(),
        membership_changed: false,
        range_change: change,
        replies: Vec::new(),
    }
}

fn apply<D: Disk + Clone>(machine: &Machine<D>, items: Vec<ApplyItem>) {
    let mut items = items;
    machine.apply(&mut items).unwrap();
}

fn contents<D: Disk + Clone>(machine: &Machine<D>, state: &AppliedState) -> String {
    let found = machine.scan(&state.descriptor, b"", None, usize::MAX);
    show(&found.unwrap())
}

/// What a group keeps beside its keys.
fn local(disk: &impl Disk, group: u64, name: &str) -> Option<String> {
    let key = [
        b"\0".as_slice(),
        &group.to_be_bytes(),
        b"\x04",
        name.as_bytes(),
    ]
    .concat();
    let value = disk.get(Cf::Data, &key).unwrap()?;
    Some(String::from_utf8_lossy(&value).into_owned())
}

/// Everything that is kept under a group's number.
fn rows(disk: &impl Disk, group: u64) -> usize {
    let start = [b"\0".as_slice(), &group.to_be_bytes()].concat();
    let end = [b"\0".as_slice(), &(group + 1).to_be_bytes()].concat();
    let found = disk.scan(Cf::Data, &start, Some(&end), usize::MAX);
    found.unwrap().len()
}

fn into_rights(rights: &[(AppliedState, bool)]) -> Option<RangeChange> {
    let right = |(state, keep): &(AppliedState, bool)| SplitRight {
        state: state.clone(),
        keep: *keep,
    };
    let rights = rights.iter().map(right).collect();
    Some(RangeChange::Split { rights })
}

fn taking_in(right: &AppliedState) -> Option<RangeChange> {
    let right = right.clone();
    Some(RangeChange::Merge { right })
}

/// A group with the keys `a` to `f` from `a` to `z`, all of them durable.
fn whole<D: Disk + Clone>(machine: &Machine<D>) -> AppliedState {
    machine.create(&state(1, "a", "z", 0, 2)).unwrap();
    let after = state(1, "a", "z", 0, 9);
    let puts = ["a=1", "b=1", "c=1", "d=1", "e=1", "f=1", "#"];
    apply(machine, vec![item(&after, &puts, None)]);
    machine.flush().unwrap();
    after
}

#[test]
fn each_part_of_a_split_has_its_keys_and_knows_what_the_whole_knew() {
    let disk = MemoryDisk::new();
    let machine = DataStateMachine::new(Toy, disk.clone());
    whole(&machine);
    let other = state(7, "z", "zz", 0, 2);
    machine.create(&other).unwrap();
    let left = state(1, "a", "c", 1, 13);
    let (middle, gone, last) = (
        state(2, "c", "d", 1, 2),
        state(3, "d", "f", 1, 2),
        state(4, "f", "z", 1, 2),
    );
    let rights = [
        (middle.clone(), true),
        (gone.clone(), false),
        (last.clone(), true),
    ];
    // Commands of the same turn see the whole, and another group writes at the same time.
    let commands = ["c=2", "e=2", "-f"];
    let others = state(7, "z", "zz", 0, 3);
    apply(
        &machine,
        vec![
            item(&left, &commands, into_rights(&rights)),
            item(&others, &["z=1"], None),
        ],
    );
    assert_eq!(contents(&machine, &left), "a=1 b=1");
    assert_eq!(contents(&machine, &middle), "c=2");
    assert_eq!(contents(&machine, &gone), "");
    assert_eq!(contents(&machine, &last), "");
    assert_eq!(contents(&machine, &others), "z=1");
    let expected = [left, middle, last, others];
    assert_eq!(machine.recover().unwrap(), expected);
    assert_eq!(rows(&disk, 3), 0);
    // The hook saw what each has, for the one that is not here as well.
    let said = |group, name| local(&disk, group, name);
    assert_eq!(said(1, "split"), Some("13: a=1 b=1 | ".to_owned()));
    assert_eq!(said(2, "split"), Some("13: a=1 b=1 | c=2".to_owned()));
    assert_eq!(said(4, "split"), Some("13: a=1 b=1 | ".to_owned()));
    for group in [1, 2, 4] {
        assert_eq!(said(group, "count"), Some("\u{1}".to_owned()), "{group}");
    }
    // A crash before the flush takes all of it back; after it, nothing.
    let crashed = DataStateMachine::new(Toy, disk.crash(9));
    assert_eq!(
        crashed.recover().unwrap(),
        [state(1, "a", "z", 0, 9), other]
    );
    machine.flush().unwrap();
    let crashed = DataStateMachine::new(Toy, disk.crash(0));
    assert_eq!(crashed.recover().unwrap(), expected);
    assert_eq!(
        contents(&crashed, &state(9, "a", "zz", 0, 0)),
        "a=1 b=1 c=2 z=1"
    );
}

/// Two neighbours, the right one with its last words not flushed.
fn neighbours<D: Disk + Clone>(machine: &Machine<D>) -> (AppliedState, AppliedState) {
    for (group, start, end) in [(1, "a", "m"), (2, "m", "z")] {
        machine.create(&state(group, start, end, 0, 2)).unwrap();
    }
    let (left, right) = (state(1, "a", "m", 0, 5), state(2, "m", "z", 0, 6));
    apply(
        machine,
        vec![
            item(&left, &["a=1", "b=1", "#"], None),
            item(&right, &["m=1", "n=1", "#", "#"], None),
        ],
    );
    machine.flush().unwrap();
    let right = state(2, "m", "z", 0, 8);
    apply(machine, vec![item(&right, &["-n", "o=1"], None)]);
    (left, right)
}

#[test]
fn a_merge_leaves_nothing_of_the_neighbour_but_a_marker() {
    let disk = MemoryDisk::new();
    let machine = DataStateMachine::new(Toy, disk.clone());
    let (before, right) = neighbours(&machine);
    let left = state(1, "a", "z", 1, 7);
    apply(&machine, vec![item(&left, &["b=2"], taking_in(&right))]);
    assert_eq!(contents(&machine, &left), "a=1 b=2 m=1 o=1");
    let merged = local(&disk, 1, "merged").unwrap();
    assert_eq!(merged, "7: a=1 b=2 m=1 o=1 | m=1 o=1");
    assert_eq!(local(&disk, 1, "count"), Some("\u{3}".to_owned()));
    assert_eq!(machine.recover().unwrap(), std::slice::from_ref(&left));
    assert_eq!(machine.merged().unwrap(), [GroupId(2)]);
    assert_eq!(rows(&disk, 2), 1);
    // Not flushed, nothing has happened, and it can happen again.
    let crashed = DataStateMachine::new(Toy, disk.crash(9));
    assert_eq!(crashed.merged().unwrap(), []);
    assert_eq!(
        crashed.recover().unwrap(),
        [before, state(2, "m", "z", 0, 6)]
    );
    apply(&crashed, vec![item(&right, &["-n", "o=1"], None)]);
    apply(&crashed, vec![item(&left, &["b=2"], taking_in(&right))]);
    assert_eq!(contents(&crashed, &left), "a=1 b=2 m=1 o=1");
    // Flushed, the marker is there until it is forgotten, which a crash may undo.
    machine.flush().unwrap();
    let crashed = disk.crash(0);
    let machine = DataStateMachine::new(Toy, crashed.clone());
    assert_eq!(machine.recover().unwrap(), std::slice::from_ref(&left));
    assert_eq!(machine.merged().unwrap(), [GroupId(2)]);
    machine.forget(GroupId(2)).unwrap();
    assert_eq!(machine.merged().unwrap(), []);
    assert_eq!(rows(&crashed, 2), 0);
    machine.forget(GroupId(2)).unwrap();
    let machine = DataStateMachine::new(Toy, crashed.crash(9));
    assert!(machine.merged().unwrap().len() <= 1);
    assert_eq!(contents(&machine, &left), "a=1 b=2 m=1 o=1");
}

#[test]
fn a_group_that_goes_after_a_change_takes_no_neighbour_with_it() {
    // Merged, then destroyed, with no flush in between: the destruction is durable, so the merge must be.
    let disk = MemoryDisk::new();
    let machine = DataStateMachine::new(Toy, disk.clone());
    let (_, right) = neighbours(&machine);
    let left = state(1, "a", "z", 1, 6);
    apply(&machine, vec![item(&left, &[], taking_in(&right))]);
    machine.destroy(&left.descriptor).unwrap();
    let machine = DataStateMachine::new(Toy, disk.crash(0));
    assert_eq!(machine.recover().unwrap(), []);
    assert_eq!(machine.merged().unwrap(), [GroupId(2)]);
    assert_eq!(contents(&machine, &state(9, "a", "z", 0, 0)), "");

    // Split, then replaced by a snapshot of the part that is left.
    let disk = MemoryDisk::new();
    let machine = DataStateMachine::new(Toy, disk.clone());
    whole(&machine);
    let (left, right) = (state(1, "a", "c", 1, 10), state(2, "c", "z", 1, 2));
    apply(
        &machine,
        vec![item(&left, &[], into_rights(&[(right.clone(), true)]))],
    );
    let staged = snapshot_of(&state(1, "a", "c", 1, 12), &["a=new"], &machine);
    machine.restore(&staged).unwrap();
    let machine = DataStateMachine::new(Toy, disk.crash(0));
    assert_eq!(machine.recover().unwrap(), [staged.state, right.clone()]);
    assert_eq!(contents(&machine, &right), "c=1 d=1 e=1 f=1");
}

/// A snapshot of a group elsewhere that did what the commands say, staged on `to`.
fn snapshot_of<D: Disk + Clone>(
    state: &AppliedState,
    commands: &[&str],
    to: &Machine<D>,
) -> StagedSnapshot {
    let from = DataStateMachine::new(Toy, MemoryDisk::new());
    from.create(state).unwrap();
    apply(&from, vec![item(state, commands, None)]);
    let mut source = from.snapshot(state.descriptor.group).unwrap();
    let mut sink = to.stage(source.state()).unwrap();
    while let Some(chunk) = source.next_chunk(12).unwrap() {
        sink.write(chunk).unwrap();
    }
    sink.finish().unwrap()
}

/// A disk that does so many writes.
#[derive(Clone)]
struct Dying(Arc<AtomicUsize>);

impl Writes<MemoryDisk> for Dying {
    fn write(
        &self,
        disk: &MemoryDisk,
        batch: Batch,
        durability: Durability,
    ) -> Result<(), DiskError> {
        let one_less = |left: usize| left.checked_sub(1);
        match self.0.fetch_update(Relaxed, Relaxed, one_less) {
            Ok(_) => disk.write(batch, durability),
            Err(_) => Err(DiskError::Fatal("the power is gone".to_owned())),
        }
    }

    fn bulk(&self) -> Result<(), DiskError> {
        let one_less = |left: usize| left.checked_sub(1);
        match self.0.fetch_update(Relaxed, Relaxed, one_less) {
            Ok(_) => Ok(()),
            Err(_) => Err(DiskError::Fatal("the power is gone".to_owned())),
        }
    }
}

fn dying(disk: MemoryDisk, writes: usize) -> Around<MemoryDisk, Dying> {
    Around(disk, Dying(Arc::new(writes.into())))
}

/// Three neighbours, and a snapshot of the first that contains them all.
fn about_to_subsume(snapshots: SnapshotOptions) -> (MemoryDisk, StagedSnapshot, [AppliedState; 3]) {
    let disk = MemoryDisk::new();
    let machine = DataStateMachine::with_snapshots(Toy, disk.clone(), snapshots);
    let (left, right) = neighbours(&machine);
    machine.create(&state(3, "z", "zz", 0, 2)).unwrap();
    let third = state(3, "z", "zz", 0, 4);
    apply(&machine, vec![item(&third, &["z=1", "#"], None)]);
    let whole = state(1, "a", "zz", 3, 40);
    let commands = ["a=new", "b=new", "m=new", "n=new", "z=new", "#"];
    let mut staged = snapshot_of(&whole, &commands, &machine);
    let gone = [&right, &third].map(|state| GroupDescriptor::clone(&state.descriptor));
    staged.subsumes = gone.to_vec();
    (disk, staged, [left, right, third])
}

/// Every snapshot waits in several files.
const IN_FILES: SnapshotOptions = SnapshotOptions {
    small_bytes_max: 0,
    file_bytes: 12,
};

#[test]
fn a_snapshot_that_subsumes_neighbours_is_installed_as_one_at_any_crash() {
    subsumed_as_one(SnapshotOptions::default());
    subsumed_as_one(IN_FILES);
}

fn subsumed_as_one(snapshots: SnapshotOptions) {
    let mut outcomes = [0, 0];
    for writes in 0.. {
        let (disk, staged, before) = about_to_subsume(snapshots);
        assert_eq!(disk.bulks().unwrap().len() > 1, snapshots.file_bytes == 12);
        let done = DataStateMachine::new(Toy, dying(disk.clone(), writes))
            .restore(&staged)
            .is_ok();
        for keep in 0..=writes {
            let crashed = disk.crash(keep);
            // And once more in the middle of putting it right.
            for again in 0..=writes + 1 {
                let dying = dying(crashed.crash(0), again);
                // Its error is what is provoked here.
                let _unfinished = DataStateMachine::new(Toy, dying.clone()).recover();
                let disk = dying.0.crash(again);
                let machine = DataStateMachine::new(Toy, disk.clone());
                let found = machine.recover().unwrap();
                let new = found == std::slice::from_ref(&staged.state);
                let all = contents(&machine, &state(9, "a", "zz", 0, 0));
                if new {
                    assert_eq!(all, "a=new b=new m=new n=new z=new");
                    assert_eq!(machine.merged().unwrap(), [GroupId(2), GroupId(3)]);
                    assert_eq!((rows(&disk, 2), rows(&disk, 3)), (1, 1));
                    assert_eq!(local(&disk, 1, "count"), Some("\u{1}".to_owned()));
                } else {
                    assert!(!done && writes == 0, "{writes} {keep} {found:?}");
                    assert_eq!(found[0], before[0]);
                    assert_eq!(machine.merged().unwrap(), []);
                    assert_eq!(all, "a=1 b=1 m=1 n=1");
                }
                assert_eq!(disk.bulks().unwrap(), []);
                outcomes[usize::from(new)] += 1;
            }
        }
        if done {
            break;
        }
    }
    assert!(outcomes[0] > 0 && outcomes[1] > 0, "{outcomes:?}");
}

#[test]
fn who_is_subsumed_is_not_there_while_it_happens() {
    for writes in 3.. {
        let (disk, staged, [_, right, _]) = about_to_subsume(IN_FILES);
        let done = DataStateMachine::new(Toy, dying(disk.clone(), writes))
            .restore(&staged)
            .is_ok();
        let machine = DataStateMachine::new(Toy, disk);
        assert_eq!(machine.get_whole(&right.descriptor, b"m"), Ok(None));
        assert!(machine.snapshot(GroupId(2)).is_err());
        if done {
            break;
        }
    }
}

#[test]
fn a_change_that_makes_no_sense_stops_the_store_and_writes_nothing() {
    let disk = MemoryDisk::new();
    let machine = DataStateMachine::new(Toy, disk.clone());
    whole(&machine);
    machine.create(&state(2, "z", "zz", 0, 2)).unwrap();
    let before = disk.scan(Cf::Data, b"", None, usize::MAX);
    let right = state(3, "c", "z", 1, 2);
    let split = |left: AppliedState, rights: &[AppliedState]| {
        let rights: Vec<_> = rights.iter().map(|right| (right.clone(), true)).collect();
        item(&left, &["a=2"], into_rights(&rights))
    };
    let merge = |left: AppliedState, right: AppliedState| item(&left, &[], taking_in(&right));
    let left = state(1, "a", "c", 1, 11);
    let united = state(1, "a", "zz", 1, 10);
    let mut nowhere = right.clone();
    Arc::make_mut(&mut nowhere.descriptor).range = None;
    let cases = [
        split(left.clone(), &[]),
        split(left.clone(), &[state(3, "c", "y", 1, 2)]),
        split(left.clone(), &[state(3, "d", "z", 1, 2)]),
        split(left.clone(), &[right.clone(), state(4, "z", "zz", 1, 2)]),
        split(left.clone(), &[state(3, "c", "z", 0, 2)]),
        split(left, &[nowhere]),
        split(state(1, "a", "c", 0, 11), std::slice::from_ref(&right)),
        split(state(1, "b", "c", 1, 11), std::slice::from_ref(&right)),
        split(state(5, "a", "c", 1, 11), &[right]),
        merge(united.clone(), state(2, "z", "zz", 0, 3)),
        merge(united.clone(), state(4, "z", "zz", 0, 2)),
        merge(united, state(2, "y", "zz", 0, 2)),
        merge(state(1, "a", "zz", 0, 10), state(2, "z", "zz", 0, 2)),
        merge(state(1, "a", "zzz", 1, 10), state(2, "z", "zz", 0, 2)),
    ];
    for (at, case) in cases.into_iter().enumerate() {
        let result = machine.apply(&mut [case]);
        assert!(
            matches!(result, Err(StateMachineError::Fatal(_))),
            "case {at}: {result:?}"
        );
    }
    assert_eq!(disk.scan(Cf::Data, b"", None, usize::MAX), before);
}

/// Counts removals by range, and by key.
#[derive(Clone, Default)]
struct Removals(Arc<Counts>);

#[derive(Default)]
struct Counts {
    ranges: AtomicUsize,
    keys: AtomicUsize,
}

impl Removals {
    /// Since the last time: by range, by key.
    fn take(&self) -> (usize, usize) {
        (self.0.ranges.swap(0, Relaxed), self.0.keys.swap(0, Relaxed))
    }
}

impl Writes<MemoryDisk> for Removals {
    fn write(
        &self,
        disk: &MemoryDisk,
        batch: Batch,
        durability: Durability,
    ) -> Result<(), DiskError> {
        for (_, change) in &batch {
            match change {
                Change::Put(..) => 0,
                Change::Delete(_) => self.0.keys.fetch_add(1, Relaxed),
                Change::DeleteRange(..) => self.0.ranges.fetch_add(1, Relaxed),
            };
        }
        disk.write(batch, durability)
    }
}

#[test]
fn small_groups_come_and_go_without_removals_by_range() {
    let removals = Removals::default();
    let disk = Around(MemoryDisk::new(), removals.clone());
    let machine = DataStateMachine::new(Toy, disk);
    let few: Vec<String> = (0..20).map(|n| format!("b{n:03}=1")).collect();
    let many: Vec<String> = (0..200).map(|n| format!("b{n:03}=1")).collect();
    for (puts, flushed, ranges) in [(&few, true, 0), (&many, true, 1), (&few, false, 2)] {
        machine.create(&state(1, "a", "z", 0, 2)).unwrap();
        assert_eq!(removals.take(), (0, 0), "nothing is removed of nothing");
        let after = state(1, "a", "z", 0, 2 + puts.len() as u64);
        let puts: Vec<&str> = puts.iter().map(String::as_str).collect();
        apply(&machine, vec![item(&after, &puts, None)]);
        if flushed {
            machine.flush().unwrap();
        }
        machine.destroy(&after.descriptor).unwrap();
        assert_eq!(removals.take().0, ranges, "{} keys", puts.len());
        assert_eq!(contents(&machine, &after), "");
    }
    // A split whose right part is not wanted here, of few keys and of many.
    for (puts, ranges) in [(&few, 0), (&many, 1)] {
        machine.create(&state(1, "a", "z", 0, 2)).unwrap();
        let after = state(1, "a", "z", 0, 2 + puts.len() as u64);
        let puts: Vec<&str> = puts.iter().map(String::as_str).collect();
        apply(&machine, vec![item(&after, &puts, None)]);
        let left = state(1, "a", "b", 1, after.last.index.0 + 1);
        let rights = into_rights(&[(state(2, "b", "z", 1, 2), false)]);
        removals.take();
        apply(&machine, vec![item(&left, &[], rights)]);
        assert_eq!(removals.take().0, ranges, "{} keys", puts.len());
        assert_eq!(contents(&machine, &after), "");
        machine.flush().unwrap();
        machine.destroy(&left.descriptor).unwrap();
    }
}
