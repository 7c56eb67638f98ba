//! Arbitrary bytes on the disk, and arbitrary chunks of snapshots: what was acknowledged is there as it
//! was, or there is an error; never a panic, and never something else.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use polyraft_core::{ConfState, Entry, EntryId, EntryKind, HardState, Index, ReplicaId, Term};
use polyraft_fuzz::{Fuzz, Meter, Source};
use polyraft_multiraft::env::{
    ApplyItem, Command, Lifecycle, LogBatch, LogEngine, LogSection, RangeChange, SplitRight,
    StateMachine,
};
use polyraft_multiraft::{
    AppliedState, Epoch, GroupDescriptor, GroupId, KeyRange, Member, StoreId,
};
use polyraft_store::disk::{Batch, Cf, Change, Disk, DiskError, Durability, Pair};
use polyraft_store::{
    Application, DataStateMachine, GroupTxn, Identity, LogOptions, MemoryDisk, RaftLog, Sessions,
    SnapshotOptions, StoreMeta,
};

#[global_allocator]
static METER: Meter = Meter;

fn put(disk: &MemoryDisk, cf: Cf, key: impl Into<Bytes>, value: impl Into<Bytes>) {
    let batch = vec![(cf, Change::Put(key.into(), value.into()))];
    disk.write(batch, Durability::Synced)
        .expect("there is room");
}

fn all(disk: &MemoryDisk, cf: Cf) -> Vec<Pair> {
    disk.scan(cf, b"", None, usize::MAX)
        .expect("it can be read")
}

fn open(disk: &MemoryDisk) -> RaftLog<MemoryDisk> {
    // Small, so that maintenance has something to do.
    let options = LogOptions {
        hot_bytes_max: 300,
        settle_groups_max: 2,
    };
    RaftLog::new(disk.clone(), options)
}

/// The checksum that everything but keys ends with.
fn sealed(mut body: Vec<u8>) -> Bytes {
    let checksum = crc32fast::hash(&body);
    body.extend_from_slice(&checksum.to_be_bytes());
    body.into()
}

/// A log as the host writes it: two groups that append, overwrite, truncate and settle, and a tombstone.
fn written(source: &mut Source<'_>) -> MemoryDisk {
    let disk = MemoryDisk::new();
    let log = open(&disk);
    log.recover().expect("an empty one");
    let mut lasts = BTreeMap::new();
    for group in 1..=3u64 {
        let create = LogSection {
            group: GroupId(group),
            lifecycle: Some(Lifecycle::Create {
                replica: ReplicaId(group),
            }),
            reset: Some(EntryId::new(1, 2)),
            hard_state: Some(HardState {
                term: Term(1),
                ..HardState::default()
            }),
            ..LogSection::default()
        };
        write(&log, vec![create]);
        lasts.insert(group, (2u64, 2u64, 1u64));
    }
    for _ in 0..6 + source.below(6) {
        let mut sections = Vec::new();
        for (group, (truncated, last, term)) in &mut lasts {
            if source.one_in(3) {
                continue;
            }
            *term += u64::from(source.one_in(3));
            let back = source.below(3) as u64;
            let first = (*last + 1).saturating_sub(back).max(*truncated + 1);
            let count = 1 + source.below(3) as u64;
            *last = first + count - 1;
            let entries = (first..=*last)
                .map(|index| entry(*term, index, *group))
                .collect();
            let truncate = source.one_in(3).then(|| {
                *truncated = first.max(*truncated);
                EntryId::new(*term, *truncated)
            });
            sections.push(LogSection {
                group: GroupId(*group),
                entries,
                truncate,
                hard_state: Some(HardState {
                    term: Term(*term),
                    vote: ReplicaId(1),
                    commit: Index(*truncated),
                }),
                ..LogSection::default()
            });
        }
        write(&log, sections);
        if source.one_in(2) {
            log.maintain().expect("it can be settled");
        }
    }
    if source.flag() {
        let destroy = LogSection {
            group: GroupId(3),
            lifecycle: Some(Lifecycle::Destroy {
                next_replica: ReplicaId(9),
            }),
            ..LogSection::default()
        };
        write(&log, vec![destroy]);
    }
    disk
}

fn entry(term: u64, index: u64, group: u64) -> Entry {
    Entry {
        term: Term(term),
        index: Index(index),
        kind: EntryKind::Normal,
        data: Bytes::from(format!("{group}/{term}/{index}")),
    }
}

fn write(log: &RaftLog<MemoryDisk>, sections: Vec<LogSection>) {
    let batch = LogBatch {
        sync: true,
        sections,
    };
    log.write(&batch).expect("there is room");
}

/// Everything that a log says, or none: it says that it is damaged, in whatever it is asked.
fn content(disk: &MemoryDisk) -> Option<Vec<String>> {
    let log = open(disk);
    let recovered = log.recover().ok()?;
    let mut said = vec![format!("{:?}", recovered.tombstones)];
    for group in recovered.groups {
        let low = group.truncated.index.next();
        let mut next = low;
        while next <= group.last.index {
            let high = group.last.index.next();
            let entries = log.read(group.group, next, high, u64::MAX).ok()?;
            // An entry that is not there is not nothing: it must be an error.
            let last = entries.last().expect("a range that is there is not empty");
            assert_eq!((entries[0].index, last.index < high), (next, true));
            next = last.index.next();
            said.push(format!("{entries:?}"));
        }
        said.push(format!("{group:?}"));
    }
    Some(said)
}

/// Everything that [`content`] does, and what a host may do next.
fn use_it(disk: &MemoryDisk) {
    let said = content(disk);
    let log = open(disk);
    let Ok(recovered) = log.recover() else {
        assert_eq!(said, None);
        return;
    };
    for group in recovered.groups {
        let next = group.last.index.0.checked_add(1);
        let (Some(next), term) = (next, group.last.term.0) else {
            continue;
        };
        let section = LogSection {
            group: group.group,
            entries: vec![entry(term, next, 0)],
            truncate: Some(group.last),
            ..LogSection::default()
        };
        let batch = LogBatch {
            sync: true,
            sections: vec![section],
        };
        let _ = log.write(&batch);
        let _ = log.maintain();
        let low = group.truncated.index;
        let _ = log.read(group.group, low, Index(u64::MAX), 100);
    }
}

/// A bit that flips in any value of the log is noticed, or changes nothing that anybody is told.
#[test]
fn flipped_bits_are_noticed() {
    let fuzz = Fuzz::new("store::flips").runs(4000).length_max(128);
    fuzz.check(|input| {
        let mut source = Source::new(input);
        let disk = written(&mut source);
        let before = content(&disk).expect("nothing is wrong yet");
        let cf = source.pick(&[Cf::Log, Cf::Settled, Cf::State]);
        let pairs = all(&disk, cf);
        let Some((key, value)) = pairs.get(source.word() as usize % pairs.len().max(1)) else {
            return;
        };
        let mut damaged = value.to_vec();
        match source.below(4) {
            // Whatever hits a medium hits few bits: a checksum of 32 sees up to three of them.
            0..3 => {
                for _ in 0..=source.below(3) {
                    let bit = source.word() as usize % (8 * damaged.len());
                    damaged[bit / 8] ^= 1 << (bit % 8);
                }
            }
            _ => damaged.truncate(source.word() as usize % damaged.len()),
        }
        put(&disk, cf, key.clone(), damaged);
        if let Some(after) = content(&disk) {
            assert_eq!(before, after, "damage of {cf:?} at {key:?} is not noticed");
        }
    });
}

/// A settled entry that disappears is noticed. Of a whole record nobody can tell: they go when they are
/// dead, and that one is alive only it knows.
#[test]
fn lost_entries_are_noticed() {
    let fuzz = Fuzz::new("store::losses").runs(3000).length_max(128);
    fuzz.check(|input| {
        let mut source = Source::new(input);
        let disk = written(&mut source);
        let before = content(&disk).expect("nothing is wrong yet");
        let pairs = all(&disk, Cf::Settled);
        let Some((key, _)) = pairs.get(source.word() as usize % pairs.len().max(1)) else {
            return;
        };
        let batch = vec![(Cf::Settled, Change::Delete(key.clone()))];
        disk.write(batch, Durability::Synced)
            .expect("there is room");
        if let Some(after) = content(&disk) {
            assert_eq!(before, after, "the loss of {key:?} is not noticed");
        }
    });
}

/// Any values under any keys, with and without checksums that are right.
#[test]
fn a_log_of_anything() {
    let disk = written(&mut Source::new(&[1; 64]));
    let mut fuzz = Fuzz::new("store::log").runs(12_000).memory_max(4 << 20);
    for (tag, cf) in [Cf::Log, Cf::Settled, Cf::State].into_iter().enumerate() {
        for (key, value) in all(&disk, cf).into_iter().take(3) {
            let mut example = vec![tag as u8, 3];
            put_part(&mut example, &key);
            put_part(&mut example, &value[..value.len() - 4]);
            fuzz = fuzz.example(example);
        }
    }
    fuzz.check(|input| {
        let mut source = Source::new(input);
        let disk = written(&mut Source::new(&[]));
        while !source.is_empty() {
            let cf = source.pick(&[Cf::Log, Cf::Settled, Cf::State]);
            let flags = source.byte();
            let key = match flags & 3 {
                // One that is there, one that could be, and any.
                0 => {
                    let pairs = all(&disk, cf);
                    pairs
                        .get(source.below(8))
                        .map_or(Bytes::new(), |pair| pair.0.clone())
                }
                1 => Bytes::copy_from_slice(&source.number().to_be_bytes()),
                2 => {
                    let (group, index) = (source.number(), source.number());
                    [group.to_be_bytes(), index.to_be_bytes()].concat().into()
                }
                _ => Bytes::copy_from_slice(take_part(&mut source)),
            };
            let value = take_part(&mut source).to_vec();
            let value = if flags & 64 == 0 {
                sealed(value)
            } else {
                value.into()
            };
            put(&disk, cf, key, value);
        }
        use_it(&disk);
    });
}

fn put_part(out: &mut Vec<u8>, part: &[u8]) {
    out.push(u8::try_from(part.len().min(255)).expect("it is cut"));
    out.extend_from_slice(&part[..part.len().min(255)]);
}

fn take_part<'a>(source: &mut Source<'a>) -> &'a [u8] {
    source.bytes(255)
}

/// Commands are keys to put; the key is the value.
struct Echo;

impl Application for Echo {
    fn apply(&self, txn: &mut GroupTxn<'_>, command: &Command) -> Result<Bytes, DiskError> {
        let known = txn.descriptor().range.clone();
        if known.is_none_or(|range| range.contains(&command.data)) {
            txn.put(&command.data, command.data.clone())?;
        }
        Ok(Bytes::new())
    }
}

fn descriptor(group: u64, range: Option<(&[u8], Option<&[u8]>)>) -> GroupDescriptor {
    GroupDescriptor {
        group: GroupId(group),
        range: range.map(|(start, end)| KeyRange {
            start: Bytes::copy_from_slice(start),
            end: end.map(Bytes::copy_from_slice),
        }),
        members: vec![Member {
            replica: ReplicaId(1),
            store: StoreId(1),
        }],
        next_replica: ReplicaId(2),
        epoch: Epoch::default(),
        border: 0,
        frozen: None,
    }
}

fn state(descriptor: GroupDescriptor, index: u64) -> AppliedState {
    AppliedState {
        last: EntryId::new(1, index),
        conf_state: Arc::new(ConfState {
            voters: vec![ReplicaId(1)],
            ..ConfState::default()
        }),
        descriptor: Arc::new(descriptor),
    }
}

/// Two groups with a range and one without, each with keys.
fn machine() -> (MemoryDisk, DataStateMachine<Echo, MemoryDisk>) {
    let disk = MemoryDisk::new();
    let machine = DataStateMachine::new(Echo, disk.clone());
    let ranges = [Some((&b"a"[..], Some(&b"m"[..]))), Some((b"m", None)), None];
    for (group, range) in (1..).zip(ranges) {
        let begin = state(descriptor(group, range), 2);
        machine.create(&begin).expect("there is room");
        let command = |(n, key): (u64, &[u8])| Command {
            id: EntryId::new(1, 3 + n),
            data: Bytes::copy_from_slice(key),
        };
        let keys: [&[u8]; 4] = [b"b", b"bb", b"n", b"nn"];
        let mut items = [ApplyItem {
            group: GroupId(group),
            commands: (0..).zip(keys).map(command).collect(),
            state: state(descriptor(group, range), 6),
            membership_changed: false,
            replies: Vec::new(),
            range_change: None,
        }];
        machine.apply(&mut items).expect("there is room");
    }
    machine.flush().expect("there is room");
    (disk, machine)
}

/// A chunk of a snapshot as it should be.
fn chunk(pairs: &[(u8, &[u8], &[u8])]) -> Vec<u8> {
    let mut out = vec![1];
    for (space, key, value) in pairs {
        out.push(*space);
        for part in [key, value] {
            out.put_u32(part.len() as u32);
            out.extend_from_slice(part);
        }
    }
    out
}

/// Any chunks for any state: what is refused leaves nothing behind, what is taken stays within the
/// group, and a crash in between is finished by the next start.
#[test]
fn snapshots_of_anything() {
    let good = chunk(&[(1, b"c", b"value"), (2, b"name", b"local"), (1, b"d", b"")]);
    let mut example = vec![0, 0, 0, 1];
    put_part(&mut example, &good);
    let fuzz = Fuzz::new("store::snapshots").runs(8000).memory_max(4 << 20);
    fuzz.example(example).check(|input| {
        let mut source = Source::new(input);
        let (disk, _) = machine();
        let others = |group: u64| {
            let each = [
                (1, Some((&b"a"[..], Some(&b"m"[..])))),
                (2, Some((b"m", None))),
                (3, None),
            ];
            let rest = each.into_iter().filter(|(other, _)| *other != group);
            let data = rest.map(|(other, range)| {
                let reader = DataStateMachine::new(Echo, disk.clone());
                reader
                    .scan(&descriptor(other, range), b"", None, usize::MAX)
                    .expect("readable")
            });
            data.collect::<Vec<_>>()
        };
        let group = 1 + source.below(4) as u64;
        let own = match group {
            1 => Some((&b"a"[..], Some(&b"m"[..]))),
            2 => Some((&b"m"[..], None)),
            _ => None,
        };
        let before = others(group);
        let target = state(descriptor(group, own), 7 + source.below(9) as u64);
        // In chunks, or in files of a pair or two.
        let snapshots = match target.last.index.0 % 2 {
            0 => SnapshotOptions::default(),
            _ => SnapshotOptions {
                small_bytes_max: 8,
                file_bytes: 8,
            },
        };
        let machine = DataStateMachine::with_snapshots(Echo, disk.clone(), snapshots);
        let mut sink = machine.stage(&target).expect("there is room");
        let mut refused = false;
        while !source.is_empty() && !refused {
            let flags = source.byte();
            let body = take_part(&mut source).to_vec();
            let bytes = if flags & 64 == 0 {
                sealed(body)
            } else {
                body.into()
            };
            refused = sink.write(bytes).is_err();
        }
        if refused {
            drop(sink);
            assert_eq!(staged(&disk), 0, "what was refused is left behind");
        } else {
            let staged = sink.finish().expect("there is room");
            if source.rest().len() % 2 == 1 {
                machine.discard(&staged);
            } else {
                machine
                    .restore(&staged)
                    .expect("what was taken can be installed");
                let states = DataStateMachine::new(Echo, disk.crash(0)).recover();
                let states = states.expect("what was installed can be recovered");
                assert!(states.contains(&target), "{states:?}");
            }
        }
        assert_eq!(before, others(group), "other groups are as they were");
        assert_eq!(staged(&disk), 0);
    });
}

fn staged(disk: &MemoryDisk) -> usize {
    let found = disk.scan(Cf::Meta, b"staged/", Some(b"staged0"), usize::MAX);
    let files = disk.bulks().expect("it can be read");
    found.expect("it can be read").len() + files.len()
}

/// Any session tables of two groups that merge, and of what comes out of it when it splits: what is
/// wrong with them is an error.
#[test]
fn session_tables_of_anything() {
    let fuzz = Fuzz::new("store::session-tables")
        .runs(8000)
        .memory_max(4 << 20);
    fuzz.check(|input| {
        let mut source = Source::new(input);
        let disk = MemoryDisk::new();
        let machine = DataStateMachine::new(Sessions::<_, 3>::bounded(Echo), disk.clone());
        let part = |group, start: &[u8], end: &[u8], generation, index| {
            let mut descriptor = descriptor(group, Some((start, Some(end))));
            descriptor.epoch.range = generation;
            state(descriptor, index)
        };
        let (left, right) = (part(1, b"a", b"m", 1, 9), part(2, b"m", b"z", 1, 9));
        for group in [&left, &right] {
            machine.create(group).expect("there is room");
        }
        let rows = source.below(12);
        for _ in 0..rows {
            let (name, value) = session_row(&mut source);
            let group = 1 + source.below(2) as u64;
            let key = [b"\0".as_slice(), &group.to_be_bytes(), b"\x06", &name].concat();
            put(&disk, Cf::Data, key, value);
        }
        let turn = |state: &AppliedState, data: Option<Bytes>, range_change| {
            let id = state.last;
            let mut items = [ApplyItem {
                group: state.descriptor.group,
                commands: data.into_iter().map(|data| Command { id, data }).collect(),
                state: state.clone(),
                membership_changed: false,
                replies: Vec::new(),
                range_change,
            }];
            // What is damaged stops the store.
            let _ = machine.apply(&mut items);
        };
        turn(
            &part(1, b"a", b"z", 2, 10),
            None,
            Some(RangeChange::Merge { right }),
        );
        let merged = machine.merged().expect("readable") == [GroupId(2)];
        assert!(merged || rows > 0, "nothing is wrong with no table");
        for index in 11..13 {
            let envelope = source.bytes(40);
            turn(
                &part(1, b"a", b"z", 2, index),
                Some(Bytes::copy_from_slice(envelope)),
                None,
            );
        }
        let rights = vec![SplitRight {
            state: part(3, b"k", b"z", 3, 2),
            keep: true,
        }];
        let split = RangeChange::Split { rights };
        turn(&part(1, b"a", b"k", 3, 13), None, Some(split));
    });
}

/// A row of a session table: often one that could be.
fn session_row(source: &mut Source<'_>) -> (Vec<u8>, Bytes) {
    let kind = source.below(4) as u8;
    let mut name = vec![kind];
    let mut value = vec![1];
    let (client, since) = (1 + source.below(3) as u64, source.below(4) as u64);
    match kind {
        0 => {
            value[0] = 1 + source.below(2) as u8;
            (0..3).for_each(|_| value.put_u64(source.number()));
        }
        1 => {
            name.put_u64(client);
            name.put_u64(since);
            value.put_u64(source.number());
            value.put_u64(source.number());
            value.extend_from_slice(source.bytes(8));
        }
        2 => {
            name.put_u64(source.number());
            value.clear();
            value.put_u64(client);
            value.put_u64(since);
        }
        _ => name.extend_from_slice(source.bytes(20)),
    }
    (name, value.into())
}

/// A state whose descriptor says anything, as a snapshot may bring it along.
#[test]
fn descriptors_of_anything() {
    let fuzz = Fuzz::new("store::descriptors").runs(10_000).length_max(64);
    fuzz.check(|input| {
        let mut source = Source::new(input);
        let (disk, machine) = machine();
        let mut wanted = descriptor(1 + source.below(5) as u64, None);
        if source.flag() {
            let start = Bytes::copy_from_slice(source.bytes(2));
            let end = source
                .flag()
                .then(|| Bytes::copy_from_slice(source.bytes(2)));
            wanted.range = Some(KeyRange { start, end });
        }
        wanted.epoch.membership = source.number();
        let target = state(wanted.clone(), source.number());
        match source.below(3) {
            0 => {
                let _ = machine.create(&target);
            }
            1 => {
                let mut sink = machine.stage(&target).expect("there is room");
                let key = source.bytes(2);
                let _ = sink.write(sealed(chunk(&[(1, key, b"value")])));
                if let Ok(staged) = sink.finish() {
                    let _ = machine.restore(&staged);
                }
            }
            _ => {
                let _ = machine.destroy(&wanted);
            }
        }
        let _ = machine.scan(&wanted, source.bytes(2), Some(source.bytes(2)), 9);
        let _ = machine.get(&wanted, source.bytes(2));
        let _ = machine.snapshot(wanted.group);
        DataStateMachine::new(Echo, disk.crash(0))
            .recover()
            .expect("what it wrote can be recovered");
    });
}

/// Any keys and values in data and meta: a start says what is wrong with them.
#[test]
fn data_of_anything() {
    let fuzz = Fuzz::new("store::data").runs(10_000).memory_max(4 << 20);
    fuzz.check(|input| {
        let mut source = Source::new(input);
        let (disk, _) = machine();
        let mut batch = Batch::new();
        while !source.is_empty() {
            let cf = source.pick(&[Cf::Data, Cf::Data, Cf::Meta]);
            let key = match source.below(4) {
                0 => {
                    let pairs = all(&disk, cf);
                    pairs
                        .get(source.below(16))
                        .map_or(Bytes::new(), |pair| pair.0.clone())
                }
                1 => {
                    let (group, kind) = (source.number(), source.byte() % 8);
                    let mut key = BytesMut::from(&[0][..]);
                    key.put_u64(group);
                    key.put_u8(kind);
                    key.freeze()
                }
                2 => {
                    let mut key = BytesMut::from(&b"staged/"[..]);
                    key.put_u64(source.number());
                    key.put_u64(source.number());
                    key.put_slice(source.bytes(1));
                    key.freeze()
                }
                _ => Bytes::copy_from_slice(source.pick(&[
                    &b"format"[..],
                    b"identity",
                    b"incarnation",
                    b"server/x",
                    b"",
                ])),
            };
            let value = match source.below(4) {
                0 => state(descriptor(source.number(), None), 3).encode(),
                1 => Bytes::copy_from_slice(&source.number().to_be_bytes()),
                2 => {
                    let encoded = state(descriptor(source.number(), None), 3).encode();
                    [&source.number().to_be_bytes()[..], &encoded]
                        .concat()
                        .into()
                }
                _ => Bytes::copy_from_slice(source.bytes(40)),
            };
            batch.push((cf, Change::Put(key, value)));
        }
        disk.write(batch, Durability::Synced)
            .expect("there is room");
        let machine = DataStateMachine::new(Echo, disk.clone());
        if let Ok(states) = machine.recover() {
            for state in states {
                let group = state.descriptor.group;
                if let Ok(mut source) = machine.snapshot(group) {
                    while let Ok(Some(_)) = source.next_chunk(64) {}
                }
                let _ = machine.scan(&state.descriptor, b"", None, 9);
                let _ = machine.destroy(&state.descriptor);
            }
        }
        if let Ok(meta) = StoreMeta::open(disk) {
            let _ = meta.identity();
            let _ = meta.incarnation();
            let _ = meta.next_incarnation();
            let _ = meta.scan_server();
            let identity = Identity {
                cluster: 1,
                store: StoreId(1),
            };
            let _ = meta.set_identity(identity);
        }
    });
}
