//! The data of groups: isolation, atomic turns, snapshots, and crashes at every write of an installation.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use polyraft_core::{EntryId, Index, Term};
use polyraft_multiraft::env::{
    ApplyItem, Command, StagedSnapshot, StateMachine, StateMachineError,
};
use polyraft_multiraft::{AppliedState, GroupDescriptor, GroupId, KeyRange};
use polyraft_store::conformance::{Around, Writes};
use polyraft_store::disk::{Batch, Cf, Change, Disk, DiskError, Durability, Pair};
use polyraft_store::{Application, DataStateMachine, GroupTxn, MemoryDisk};

/// Commands: `key=value` sets and replies the value before; `-key` removes; `#` counts in a local value;
/// `?N` replies the first N pairs from the key `b` on.
struct Toy;

impl Application for Toy {
    fn apply(&self, txn: &mut GroupTxn<'_>, command: &Command) -> Result<Bytes, DiskError> {
        let text = std::str::from_utf8(&command.data).unwrap();
        if text == "#" {
            let before = txn.local_get(b"count")?.map_or(0, |count| count[0]);
            txn.local_put(b"count", Bytes::copy_from_slice(&[before + 1]));
            return Ok(Bytes::copy_from_slice(&[before + 1]));
        }
        if let Some(limit) = text.strip_prefix('?') {
            let pairs = txn.scan(b"b", None, limit.parse().unwrap())?;
            return Ok(show(&pairs).into());
        }
        if let Some(key) = text.strip_prefix('-') {
            txn.delete(key.as_bytes())?;
            return Ok(Bytes::new());
        }
        let (key, value) = text.split_once('=').unwrap();
        let before = txn.get(key.as_bytes())?.unwrap_or_default();
        txn.put(key.as_bytes(), Bytes::copy_from_slice(value.as_bytes()))?;
        Ok(before)
    }
}

type Machine<D> = DataStateMachine<Toy, D>;

fn descriptor(group: u64, range: Option<(&'static str, &'static str)>) -> GroupDescriptor {
    #[cfg(canary)]
    polyraft_core::canary::plant(std::env::var("POLYRAFT_CANARY").ok().as_deref());
    GroupDescriptor {
        group: GroupId(group),
        range: range.map(|(start, end)| KeyRange {
            start: Bytes::from_static(start.as_bytes()),
            end: Some(Bytes::from_static(end.as_bytes())),
        }),
        ..GroupDescriptor::default()
    }
}

fn state(descriptor: &GroupDescriptor, index: u64) -> AppliedState {
    AppliedState {
        last: EntryId::new(1, index),
        descriptor: Arc::new(descriptor.clone()),
        ..AppliedState::default()
    }
}

fn item(descriptor: &GroupDescriptor, index: u64, commands: &[&str]) -> ApplyItem {
    let command = |(n, text): (u64, &&str)| Command {
        id: EntryId {
            term: Term(1),
            index: Index(index + 1 + n),
        },
        data: Bytes::copy_from_slice(text.as_bytes()),
    };
    ApplyItem {
        group: descriptor.group,
        commands: (0..).zip(commands).map(command).collect(),
        state: state(descriptor, index + commands.len() as u64),
        membership_changed: false,
        replies: Vec::new(),
        range_change: None,
    }
}

/// Applies one turn of one group, whose last applied index was `index`.
fn turn<D: Disk + Clone>(
    machine: &Machine<D>,
    descriptor: &GroupDescriptor,
    index: u64,
    commands: &[&str],
) -> Vec<Bytes> {
    let mut items = [item(descriptor, index, commands)];
    machine.apply(&mut items).unwrap();
    let [item] = items;
    item.replies
}

fn contents<D: Disk + Clone>(machine: &Machine<D>, descriptor: &GroupDescriptor) -> String {
    show(&machine.scan(descriptor, b"", None, usize::MAX).unwrap())
}

fn show(pairs: &[Pair]) -> String {
    let text = |(key, value): &Pair| {
        let (key, value) = (String::from_utf8_lossy(key), String::from_utf8_lossy(value));
        format!("{key}={value}")
    };
    pairs.iter().map(text).collect::<Vec<_>>().join(" ")
}

/// Sends a snapshot of a group from one machine to another.
fn transfer<A: Disk + Clone, B: Disk + Clone>(
    from: &Machine<A>,
    to: &Machine<B>,
    group: GroupId,
    chunk_bytes: usize,
) -> (StagedSnapshot, usize) {
    let mut source = from.snapshot(group).unwrap();
    let mut sink = to.stage(source.state()).unwrap();
    let mut chunks = 0;
    while let Some(chunk) = source.next_chunk(chunk_bytes).unwrap() {
        sink.write(chunk).unwrap();
        chunks += 1;
    }
    (sink.finish().unwrap(), chunks)
}

fn staged_keys(disk: &impl Disk) -> usize {
    let (start, end) = (b"staged/".as_slice(), b"staged0".as_slice());
    disk.scan(Cf::Meta, start, Some(end), usize::MAX)
        .unwrap()
        .len()
}

/// What any disk must make of it.
fn suite<D: Disk + Clone>(new_disk: impl Fn() -> D) {
    turns_are_seen_and_groups_are_apart(new_disk());
    a_scan_sees_what_the_turn_has_changed(new_disk());
    a_bad_turn_writes_nothing(new_disk());
    a_snapshot_is_of_one_moment(&new_disk(), &new_disk());
    nothing_of_a_destroyed_group_remains(&new_disk());
}

fn turns_are_seen_and_groups_are_apart<D: Disk + Clone>(disk: D) {
    let machine = DataStateMachine::new(Toy, disk.clone());
    assert_eq!(machine.recover().unwrap(), []);
    let groups = [
        descriptor(1, None),
        descriptor(2, None),
        descriptor(3, Some(("a", "m"))),
        descriptor(4, Some(("m", "z"))),
    ];
    for group in &groups {
        machine.create(&state(group, 2)).unwrap();
    }
    let replies = turn(
        &machine,
        &groups[0],
        2,
        &["k=1", "k=2", "-k", "k=3", "#", "#"],
    );
    let expected: [&[u8]; 6] = [b"", b"1", b"", b"", &[1], &[2]];
    assert_eq!(replies, expected);
    let mut items = [
        item(&groups[0], 8, &["k=4"]),
        item(&groups[1], 2, &["k=other", "#"]),
        item(&groups[2], 2, &["b=1", "c=2"]),
        item(&groups[3], 2, &["m=3"]),
    ];
    machine.apply(&mut items).unwrap();
    assert_eq!(items[0].replies, [b"3".as_slice()]);
    assert_eq!(items[1].replies, [b"".as_slice(), &[1]]);
    let found: Vec<String> = groups.iter().map(|g| contents(&machine, g)).collect();
    assert_eq!(found, ["k=4", "k=other", "b=1 c=2", "m=3"]);
    assert_eq!(
        machine.scan(&groups[2], b"b", Some(b"c"), 9).unwrap().len(),
        1
    );
    assert_eq!(machine.scan(&groups[2], b"", None, 1).unwrap().len(), 1);
    // Backwards, from the end of the range or before, never out of it.
    for group in &groups[1..3] {
        let last = |end, limit| {
            let pairs = machine.scan_reverse(group, b"", end, limit).unwrap();
            let whole = machine.scan_reverse_whole(group, b"", end, limit);
            assert_eq!(whole.unwrap(), Some(pairs.clone()));
            show(&pairs)
        };
        let ranged = group.range.is_some();
        assert_eq!(last(None, 9), if ranged { "c=2 b=1" } else { "k=other" });
        assert_eq!(last(Some(b"c"), 9), if ranged { "b=1" } else { "" });
        assert_eq!(last(None, 1), if ranged { "c=2" } else { "k=other" });
    }
    assert_eq!(machine.get(&groups[3], b"m").unwrap().unwrap()[..], *b"3");
    // Another one on the same disk finds the same.
    let found = DataStateMachine::new(Toy, disk).recover().unwrap();
    let expected = [(0, 9), (1, 4), (2, 4), (3, 3)].map(|(at, index)| state(&groups[at], index));
    assert_eq!(found, expected);
}

fn a_scan_sees_what_the_turn_has_changed<D: Disk + Clone>(disk: D) {
    let machine = DataStateMachine::new(Toy, disk);
    for group in [descriptor(1, None), descriptor(2, Some(("a", "y")))] {
        machine.create(&state(&group, 2)).unwrap();
        let before = ["a=1", "b=1", "c=1", "d=1", "e=1", "f=1"];
        turn(&machine, &group, 2, &before);
        let now = [
            "?2", "-b", "-c", "?1", "?2", "c=2", "d=2", "x=2", "?9", "-x", "?4", "?0",
        ];
        let replies = turn(&machine, &group, 8, &now);
        let replies: Vec<&[u8]> = [0, 3, 4, 8, 10, 11].map(|at| &replies[at][..]).to_vec();
        let expected: [&[u8]; 6] = [
            b"b=1 c=1",
            b"d=1",
            b"d=1 e=1",
            b"c=2 d=2 e=1 f=1 x=2",
            b"c=2 d=2 e=1 f=1",
            b"",
        ];
        assert_eq!(replies, expected);
    }
}

fn a_bad_turn_writes_nothing<D: Disk + Clone>(disk: D) {
    let machine = DataStateMachine::new(Toy, disk);
    let (good, ranged) = (descriptor(1, None), descriptor(2, Some(("a", "m"))));
    machine.create(&state(&good, 2)).unwrap();
    machine.create(&state(&ranged, 2)).unwrap();
    let mut items = [item(&good, 2, &["k=1"]), item(&ranged, 2, &["z=1"])];
    let result = machine.apply(&mut items);
    assert!(
        matches!(result, Err(StateMachineError::Fatal(_))),
        "{result:?}"
    );
    assert!(machine.get(&ranged, b"z").is_err());
    assert_eq!(contents(&machine, &good), "");
    assert_eq!(
        machine.recover().unwrap(),
        [state(&good, 2), state(&ranged, 2)]
    );
}

fn a_snapshot_is_of_one_moment<D: Disk + Clone>(here: &D, there: &D) {
    let (from, to) = (
        DataStateMachine::new(Toy, here.clone()),
        DataStateMachine::new(Toy, there.clone()),
    );
    let (group, other) = (descriptor(1, None), descriptor(2, None));
    from.create(&state(&group, 2)).unwrap();
    let many: Vec<String> = (0..600).map(|n| format!("key{n:04}=v{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    turn(&from, &group, 2, &many);
    turn(&from, &group, 602, &["#"]);
    let mut source = from.snapshot(group.group).unwrap();
    // Not part of it, although written before the first chunk is read.
    turn(&from, &group, 603, &["-key0000", "new=1"]);

    for range in [&group, &other] {
        to.create(&state(range, 2)).unwrap();
        turn(&to, range, 2, &["stale=1"]);
    }
    let mut sink = to.stage(source.state()).unwrap();
    let mut chunks = 0;
    while let Some(chunk) = source.next_chunk(1000).unwrap() {
        assert!(chunk.len() < 1100);
        sink.write(chunk).unwrap();
        chunks += 1;
    }
    assert!(chunks > 9);
    let staged = sink.finish().unwrap();
    assert_eq!(staged.state, state(&group, 603));
    assert_eq!(
        contents(&to, &group),
        "stale=1",
        "nothing before it is wanted"
    );
    to.restore(&staged).unwrap();
    let found = contents(&to, &group);
    assert!(found.starts_with("key0000=v0 ") && !found.contains("stale") && !found.contains("new"));
    assert_eq!(found.split(' ').count(), 600);
    assert_eq!(contents(&to, &other), "stale=1");
    assert_eq!(turn(&to, &group, 603, &["#"]), [[2u8].as_slice()]);
    assert_eq!(staged_keys(there), 0);
    // Discarded or given up half-way, nothing is left either.
    let (staged, _) = transfer(&from, &to, group.group, 1 << 20);
    to.discard(&staged);
    assert_eq!(staged_keys(there), 0);
    let mut source = from.snapshot(group.group).unwrap();
    let mut sink = to.stage(source.state()).unwrap();
    sink.write(source.next_chunk(100).unwrap().unwrap())
        .unwrap();
    drop(sink);
    assert_eq!(staged_keys(there), 0);
}

fn nothing_of_a_destroyed_group_remains<D: Disk + Clone>(disk: &D) {
    let machine = DataStateMachine::new(Toy, disk.clone());
    let (group, neighbour) = (
        descriptor(1, Some(("a", "m"))),
        descriptor(2, Some(("m", "z"))),
    );
    for each in [&group, &neighbour] {
        machine.create(&state(each, 2)).unwrap();
        machine.flush().unwrap();
    }
    turn(&machine, &group, 2, &["a=1", "l=2", "#"]);
    turn(&machine, &neighbour, 2, &["m=1", "#"]);
    let before = disk.scan(Cf::Data, &[], None, usize::MAX).unwrap().len();
    machine.destroy(&group).unwrap();
    let after = disk.scan(Cf::Data, &[], None, usize::MAX).unwrap();
    // Applied index, membership, two keys, one local value.
    assert_eq!(before - after.len(), 5);
    assert_eq!(contents(&machine, &neighbour), "m=1");
    assert_eq!(machine.recover().unwrap(), [state(&neighbour, 4)]);
    assert!(machine.snapshot(group.group).is_err());
}

#[test]
fn on_the_modelled_disk() {
    suite(MemoryDisk::new);
}

#[cfg(feature = "rocksdb")]
#[test]
fn on_rocksdb() {
    let dirs = std::cell::RefCell::new(Vec::new());
    suite(|| {
        let dir = tempfile::tempdir().unwrap();
        let disk = polyraft_store::RocksDisk::open(dir.path(), Default::default()).unwrap();
        dirs.borrow_mut().push(dir);
        disk
    });
}

#[test]
fn damaged_chunks_are_refused_when_they_come() {
    let machine = DataStateMachine::new(Toy, MemoryDisk::new());
    let group = descriptor(1, None);
    machine.create(&state(&group, 2)).unwrap();
    turn(&machine, &group, 2, &["k=1"]);
    let mut source = machine.snapshot(group.group).unwrap();
    let chunk = source.next_chunk(1000).unwrap().unwrap();
    let mut sink = machine.stage(source.state()).unwrap();
    for bit in 0..chunk.len() * 8 {
        let mut damaged = chunk.to_vec();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let result = sink.write(damaged.into());
        assert!(
            matches!(result, Err(StateMachineError::Group { .. })),
            "bit {bit}: {result:?}"
        );
    }
    sink.write(chunk).unwrap();
}

#[test]
fn a_crash_keeps_what_was_flushed_and_the_index_agrees() {
    let disk = MemoryDisk::new();
    let machine = DataStateMachine::new(Toy, disk.clone());
    let group = descriptor(1, None);
    machine.create(&state(&group, 2)).unwrap();
    turn(&machine, &group, 2, &["a=1"]);
    machine.flush().unwrap();
    turn(&machine, &group, 3, &["a=2", "b=2"]);
    assert_eq!(contents(&machine, &group), "a=2 b=2");
    let machine = DataStateMachine::new(Toy, disk.crash(9));
    assert_eq!(machine.recover().unwrap(), [state(&group, 3)]);
    assert_eq!(contents(&machine, &group), "a=1");
    // Applied again from the log.
    turn(&machine, &group, 3, &["a=2", "b=2"]);
    assert_eq!(contents(&machine, &group), "a=2 b=2");
}

#[test]
fn a_group_destroyed_and_created_again_has_nothing_of_its_past() {
    let disk = MemoryDisk::new();
    let machine = DataStateMachine::new(Toy, disk.clone());
    let group = descriptor(1, None);
    machine.create(&state(&group, 2)).unwrap();
    turn(&machine, &group, 2, &["a=1", "#"]);
    machine.flush().unwrap();
    // Removed only in memory: the crash brings it back unless what follows removes it again.
    turn(&machine, &group, 4, &["-a"]);
    machine.destroy(&group).unwrap();
    let crashed = DataStateMachine::new(Toy, disk.crash(0));
    assert_eq!(crashed.recover().unwrap(), []);
    machine.create(&state(&group, 2)).unwrap();
    for machine in [machine, DataStateMachine::new(Toy, disk.crash(0))] {
        assert_eq!(machine.recover().unwrap(), [state(&group, 2)]);
        assert_eq!(contents(&machine, &group), "");
        assert_eq!(turn(&machine, &group, 2, &["#"]), [[1u8].as_slice()]);
    }
}

/// Fails every write after the first few.
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
        match self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less)
        {
            Ok(_) => disk.write(batch, durability),
            Err(_) => Err(DiskError::Fatal("the power is gone".to_owned())),
        }
    }
}

/// A disk that does so many writes.
fn dying(disk: MemoryDisk, writes: usize) -> Around<MemoryDisk, Dying> {
    Around(disk, Dying(Arc::new(AtomicUsize::new(writes))))
}

/// A disk with an old state of the group, and a newer snapshot of it staged.
fn about_to_restore(group: &GroupDescriptor) -> (MemoryDisk, StagedSnapshot) {
    let from = DataStateMachine::new(Toy, MemoryDisk::new());
    from.create(&state(group, 2)).unwrap();
    turn(&from, group, 2, &["a=new", "b=new", "c=new", "d=new"]);
    let disk = MemoryDisk::new();
    let machine = DataStateMachine::new(Toy, disk.clone());
    machine.create(&state(group, 2)).unwrap();
    turn(&machine, group, 2, &["a=old", "z=old"]);
    machine.flush().unwrap();
    turn(&machine, group, 4, &["y=lost"]);
    let (staged, chunks) = transfer(&from, &machine, group.group, 10);
    assert!(chunks > 2);
    (disk, staged)
}

#[test]
fn a_crash_at_any_write_of_an_installation_leaves_the_old_or_the_new() {
    let group = descriptor(1, None);
    let mut outcomes = [0, 0];
    for writes in 0.. {
        let (disk, staged) = about_to_restore(&group);
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
                let new = found == [state(&group, 6)];
                if new {
                    assert_eq!(contents(&machine, &group), "a=new b=new c=new d=new");
                } else {
                    assert!(!done && writes == 0, "{writes} {keep} {found:?}");
                    assert_eq!(found, [state(&group, 4)]);
                    assert_eq!(contents(&machine, &group), "a=old z=old");
                }
                assert_eq!(staged_keys(&disk.crash(usize::MAX)), 0);
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
fn who_reads_in_the_middle_of_an_installation_sees_nothing_half_done() {
    let group = descriptor(1, None);
    let (mut half_done, mut writes) = (0, 0);
    loop {
        let (disk, staged) = about_to_restore(&group);
        let dying = dying(disk.clone(), writes);
        let done = DataStateMachine::new(Toy, dying).restore(&staged).is_ok();
        let machine = DataStateMachine::new(Toy, disk);
        let seen = machine.get_whole(&group, b"a").unwrap();
        match seen {
            Some(ref value) => assert_eq!(*value, Some(if done { "new" } else { "old" }.into())),
            None => half_done += 1,
        }
        if done {
            assert!(seen.is_some());
            break;
        }
        writes += 1;
    }
    assert!(half_done > 2, "{half_done}");
}

#[test]
fn what_an_installation_left_half_done_is_destroyed_with_the_group() {
    let group = descriptor(1, None);
    let (disk, staged) = about_to_restore(&group);
    // The marker, the removal of the old data, one chunk.
    let dying = dying(disk.clone(), 3);
    assert!(DataStateMachine::new(Toy, dying).restore(&staged).is_err());
    assert!(!disk.scan(Cf::Data, &[], None, 9).unwrap().is_empty());
    let machine = DataStateMachine::new(Toy, disk.clone());
    machine.destroy(&group).unwrap();
    assert_eq!(disk.scan(Cf::Data, &[], None, 9).unwrap(), []);
}

#[test]
fn a_state_of_an_unknown_version_is_refused() {
    let disk = MemoryDisk::new();
    let machine = DataStateMachine::new(Toy, disk.clone());
    let group = descriptor(1, None);
    machine.create(&state(&group, 2)).unwrap();
    let (key, value) = disk.scan(Cf::Data, &[], None, 1).unwrap().remove(0);
    let mut value = value.to_vec();
    value[0] = 9;
    let batch = vec![(Cf::Data, Change::Put(key, value.into()))];
    disk.write(batch, Durability::Synced).unwrap();
    let error = machine.recover().unwrap_err().to_string();
    assert!(error.contains("unknown version"), "{error}");
}
