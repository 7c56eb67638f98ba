//! The directory against a model of a cluster whose ranges change, with news that come late, in any order
//! and more than once.

use std::collections::BTreeMap;
use std::sync::Arc;

use polyraft_core::EntryId;
use polyraft_fuzz::{Fuzz, Source};
use polyraft_multiraft::env::{self, ApplyItem, StateMachine};
use polyraft_multiraft::{AppliedState, GroupDescriptor, GroupId, KeyRange};
use polyraft_store::{DataStateMachine, MemoryDisk};

use super::super::entry::StoreState;
use super::super::segments::{Held, Record, Segment, decode_record, group_name};
use super::*;
use crate::directory::DIRECTORY;
use crate::kv::Kv;

/// Bounds are letters; keys are what lies between two of them.
const LETTERS: &[u8] = b"abcdefgh";

fn bound(at: usize) -> Bytes {
    match at.checked_sub(1) {
        None => Bytes::new(),
        Some(at) => Bytes::copy_from_slice(&LETTERS[at..=at]),
    }
}

fn range(from: usize, to: usize) -> KeyRange {
    KeyRange {
        start: bound(from),
        end: (to <= LETTERS.len()).then(|| bound(to)),
    }
}

/// A directory on a disk in memory.
struct One {
    machine: DataStateMachine<Kv, MemoryDisk>,
    descriptor: GroupDescriptor,
    applied: u64,
}

impl One {
    fn new() -> Self {
        let descriptor = GroupDescriptor {
            group: GroupId(DIRECTORY),
            ..GroupDescriptor::default()
        };
        Self {
            machine: DataStateMachine::new(Kv, MemoryDisk::new()),
            descriptor,
            applied: 0,
        }
    }

    fn apply_all(&mut self, commands: &[Bytes]) -> Vec<Reply> {
        let first = self.applied + 1;
        self.applied += commands.len() as u64;
        let command = |(index, data): (u64, &Bytes)| env::Command {
            id: EntryId::new(1, index),
            data: data.clone(),
        };
        let mut items = [ApplyItem {
            group: GroupId(DIRECTORY),
            commands: (first..).zip(commands).map(command).collect(),
            state: AppliedState {
                last: EntryId::new(1, self.applied),
                descriptor: Arc::new(self.descriptor.clone()),
                ..AppliedState::default()
            },
            membership_changed: false,
            replies: Vec::new(),
            range_change: None,
        }];
        self.machine.apply(&mut items).expect("the disk is sound");
        let reply = |reply| Reply::decode(reply).expect("a reply");
        items[0].replies.iter().map(reply).collect()
    }

    fn apply(&mut self, command: Command) -> Reply {
        self.apply_all(&[command.encode()])[0]
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>, DiskError> {
        self.machine.scan(&self.descriptor, from, Some(to), limit)
    }

    fn segments(&self) -> Vec<Segment> {
        let scan = |from: &[u8], to: &[u8], limit| self.scan(from, to, limit);
        segments::read(scan, b"", None, usize::MAX).expect("they are sound")
    }

    fn groups(&self) -> Vec<Entry> {
        let scan = |from: &[u8], to: &[u8], limit| self.scan(from, to, limit);
        let (groups, next) = read_groups(scan, 0, usize::MAX).expect("they are sound");
        assert_eq!(next, None);
        groups
    }

    fn record(&self, group: u64) -> Option<Record> {
        let kept = self.machine.get(&self.descriptor, &group_name(group));
        let kept = kept.expect("the disk is sound")?;
        Some(decode_record(&kept).expect("it is sound"))
    }

    fn cluster(&self) -> Option<(Meta, Vec<StoreEntry>)> {
        let scan = |from: &[u8], to: &[u8], limit| self.scan(from, to, limit);
        read_cluster(scan).expect("it is sound")
    }

    /// By key: the generation, and the group if there is one.
    fn view(&self) -> Vec<Option<(u64, Option<u64>)>> {
        let segments = self.segments();
        let of = |at: usize| {
            let key = Bytes::from([&*bound(at), b"0"].concat());
            let has = |s: &&Segment| s.start <= key && s.end.as_ref().is_none_or(|end| key < *end);
            let mut found = segments.iter().filter(has);
            let first = found.next()?;
            assert_eq!(found.next(), None, "segments overlap");
            Some(match &first.held {
                Held::By(entry) => (entry.generation, Some(entry.group)),
                Held::Mark(generation) => (*generation, None),
            })
        };
        (0..=LETTERS.len()).map(of).collect()
    }

    /// What the segments name is what is known of the groups, and nothing else.
    fn check(&self) {
        let segments = self.segments();
        for pair in segments.windows(2) {
            let end = pair[0].end.as_ref();
            assert!(end.is_some_and(|end| *end <= pair[1].start), "{segments:?}");
        }
        for segment in &segments {
            assert!(segment.end.as_ref().is_none_or(|end| *end > segment.start));
            let Held::By(entry) = &segment.held else {
                continue;
            };
            assert_eq!(self.record(entry.group), Some(Record::Known(entry.clone())));
            let range = entry.range.as_ref().expect("it has keys");
            assert!(range.start <= segment.start, "{segment:?}");
            let last = range.end.as_ref();
            assert!(last.is_none_or(|last| segment.end.as_ref().is_some_and(|end| end <= last)));
        }
        for entry in self.groups() {
            let own = |s: &Segment| matches!(&s.held, Held::By(by) if by.group == entry.group);
            let start = entry.range.as_ref().map(|range| &range.start);
            let first = segments.iter().find(|segment| own(segment));
            assert_eq!(first.map(|segment| &segment.start), start, "{entry:?}");
        }
    }
}

/// A cluster as it is, and everything that its leaders have ever said of it.
struct Model {
    living: BTreeMap<u64, (usize, usize, Entry)>,
    said: Vec<Command>,
    next: u64,
}

impl Model {
    fn new() -> Self {
        let mut model = Self {
            living: BTreeMap::new(),
            said: Vec::new(),
            next: 2,
        };
        let entry = Entry {
            group: 1,
            generation: 1,
            membership: 1,
            members: vec![(1, 1), (2, 2), (3, 3)],
            leader: 1,
            term: 1,
            ..Entry::default()
        };
        model.set(0, LETTERS.len() + 1, entry);
        model
    }

    fn set(&mut self, from: usize, to: usize, entry: Entry) {
        let range = Some(range(from, to));
        let entry = Entry { range, ..entry };
        self.said.push(Command::Publish(vec![entry.clone()]));
        self.living.insert(entry.group, (from, to, entry));
    }

    fn pick(&self, source: &mut Source<'_>) -> Option<(usize, usize, Entry)> {
        let all: Vec<_> = self.living.values().cloned().collect();
        (!all.is_empty()).then(|| source.pick(&all))
    }

    fn step(&mut self, source: &mut Source<'_>) {
        let Some((from, to, entry)) = self.pick(source) else {
            return;
        };
        let generation = entry.generation + 1;
        match source.below(10) {
            0..3 if to - from > 1 => {
                let at = from + 1 + source.below(to - from - 1);
                let group = self.next;
                self.next += 1;
                self.set(
                    from,
                    at,
                    Entry {
                        generation,
                        ..entry.clone()
                    },
                );
                let (leader, term) = (1 + source.below(3) as u64, 1);
                let right = Entry {
                    group,
                    generation,
                    leader,
                    term,
                    ..entry
                };
                self.set(at, to, right);
            }
            3..6 => {
                let behind = |(start, ..): &&(usize, usize, Entry)| *start == to;
                let Some((_, end, right)) = self.living.values().find(behind).cloned() else {
                    return;
                };
                // What is said of the right one while it is frozen comes late, too.
                let frozen = Entry {
                    generation: right.generation + 1,
                    frozen_into: entry.group,
                    ..right.clone()
                };
                self.said.push(Command::Publish(vec![frozen]));
                self.living.remove(&right.group);
                let generation = entry.generation.max(right.generation + 1) + 1;
                self.set(
                    from,
                    end,
                    Entry {
                        generation,
                        ..entry
                    },
                );
            }
            6..8 => {
                let (leader, term) = (1 + source.below(3) as u64, entry.term + 1);
                self.set(
                    from,
                    to,
                    Entry {
                        leader,
                        term,
                        ..entry
                    },
                );
            }
            8 => {
                let membership = entry.membership + 1;
                let mut members = entry.members.clone();
                members.push((membership + 10, 4));
                self.set(
                    from,
                    to,
                    Entry {
                        membership,
                        members,
                        ..entry
                    },
                );
            }
            _ if source.below(4) == 0 => {
                self.living.remove(&entry.group);
                self.said.push(Command::Destroyed(vec![entry.group]));
            }
            _ => {}
        }
    }

    /// What is true at last.
    fn last(&self) -> Vec<Command> {
        let living = self.living.values();
        let publish = |(.., entry): &(usize, usize, Entry)| Command::Publish(vec![entry.clone()]);
        let destroyed = self
            .said
            .iter()
            .filter(|said| matches!(said, Command::Destroyed(_)));
        living.map(publish).chain(destroyed.cloned()).collect()
    }
}

fn shuffled(mut commands: Vec<Command>, source: &mut Source<'_>) -> Vec<Command> {
    for at in (1..commands.len()).rev() {
        commands.swap(at, source.below(at + 1));
    }
    commands
}

/// Generations never fall, nothing that is later is hidden by what is earlier, and in the end the directory
/// is the truth, whatever comes in which order and how often.
#[test]
fn news_in_any_order_become_the_truth() {
    let target = |input: &[u8]| {
        let source = &mut Source::new(input);
        let mut model = Model::new();
        for _ in 0..source.below(24) {
            model.step(source);
        }
        let mut coming = model.said.clone();
        for _ in 0..source.below(6) {
            coming.push(source.pick(&model.said));
        }
        coming.extend(model.last());
        let mut one = One::new();
        let mut before = one.view();
        for some in shuffled(coming, source).chunks(1 + source.below(4)) {
            let commands: Vec<Bytes> = some.iter().map(Command::encode).collect();
            assert!(one.apply_all(&commands).iter().all(|r| *r == Reply::Done));
            one.check();
            let now = one.view();
            for (before, now) in before.iter().zip(&now) {
                let generation = |of: &Option<(u64, Option<u64>)>| of.map(|(number, _)| number);
                assert!(generation(now) >= generation(before), "{before:?} {now:?}");
            }
            before = now;
        }
        let truth: Vec<Entry> = model.living.values().map(|(.., e)| e.clone()).collect();
        assert_eq!(one.groups(), truth);
        for (at, found) in one.view().into_iter().enumerate() {
            let has = |(from, to, _): &&(usize, usize, Entry)| (*from..*to).contains(&at);
            let owner = model
                .living
                .values()
                .find(has)
                .map(|(.., entry)| entry.group);
            assert_eq!(found.and_then(|(_, group)| group), owner, "at {at}");
        }
    };
    let fuzz = Fuzz::new("server::directory").runs(1_500).length_max(160);
    fuzz.memory_max(8 << 20).check(target);
}

fn entry(group: u64, generation: u64, from: usize, to: usize) -> Entry {
    Entry {
        group,
        range: Some(range(from, to)),
        generation,
        membership: 1,
        leader: 1,
        term: 1,
        ..Entry::default()
    }
}

#[test]
fn what_was_merged_or_destroyed_does_not_come_back() {
    let mut one = One::new();
    let publish = |one: &mut One, entry| {
        assert_eq!(one.apply(Command::Publish(vec![entry])), Reply::Done);
        one.check();
    };
    publish(&mut one, entry(1, 2, 0, 4));
    publish(&mut one, entry(2, 2, 4, 9));
    // Group 1 takes group 2 over; what group 2 said of itself comes too late.
    publish(&mut one, entry(1, 4, 0, 9));
    publish(&mut one, entry(2, 3, 4, 9));
    assert_eq!(one.view(), vec![Some((4, Some(1))); 9]);
    assert_eq!(one.record(2), None);
    // The same key begins a range again.
    publish(&mut one, entry(1, 5, 0, 4));
    publish(&mut one, entry(3, 5, 4, 9));
    assert_eq!(
        one.apply(Command::Destroyed(vec![3, DIRECTORY])),
        Reply::Done
    );
    publish(
        &mut one,
        Entry {
            term: 9,
            ..entry(3, 5, 4, 9)
        },
    );
    publish(&mut one, entry(2, 3, 4, 9));
    let view = one.view();
    assert_eq!((view[0], view[8]), (Some((5, Some(1))), Some((5, None))));
    assert_eq!(one.record(3), Some(Record::Destroyed));
    assert_eq!(one.record(DIRECTORY), None);
    // One without a range, by its number alone.
    let alone = Entry {
        range: None,
        ..entry(9, 1, 0, 1)
    };
    publish(&mut one, alone.clone());
    publish(
        &mut one,
        Entry {
            leader: 2,
            term: 3,
            membership: 0,
            ..alone.clone()
        },
    );
    let known = Entry {
        leader: 2,
        term: 3,
        ..alone
    };
    assert_eq!(one.record(9), Some(Record::Known(known)));
}

fn allocate(incarnation: u64, sequence: u64, count: u64) -> Command {
    let token = Token {
        store: 1,
        incarnation,
        sequence,
    };
    let of = Numbers::Groups;
    Command::Allocate { token, of, count }
}

#[test]
fn numbers_are_granted_once() {
    let mut one = One::new();
    let begin = |groups| Command::Begin {
        groups,
        stores: vec![(1, "a:1".to_owned()), (7, "b:1".to_owned())],
    };
    assert_eq!(one.apply(allocate(1, 1, 1)), Reply::NotBegun);
    assert_eq!(one.apply(begin(8)), Reply::Done);
    assert_eq!(one.apply(begin(50)), Reply::Done, "only the first counts");
    let granted = |first, count| Reply::Granted { first, count };
    assert_eq!(one.apply(allocate(1, 1, 2)), granted(9, 2));
    assert_eq!(one.apply(allocate(1, 1, 2)), granted(9, 2), "a copy");
    assert_eq!(one.apply(allocate(1, 1, 3)), Reply::Expired, "no copy");
    assert_eq!(one.apply(allocate(2, 1, 1)), granted(11, 1));
    assert_eq!(
        one.apply(allocate(1, 2, 1)),
        Reply::Expired,
        "of an earlier start"
    );
    let token = Token {
        store: 2,
        ..Token::default()
    };
    let of = Numbers::Stores;
    assert_eq!(
        one.apply(Command::Allocate {
            token,
            of,
            count: 1
        }),
        granted(8, 1)
    );
    let (store, address) = (12, "c:1".to_owned());
    assert_eq!(one.apply(Command::Store { store, address }), Reply::Done);
    let token = Token {
        sequence: 1,
        ..token
    };
    assert_eq!(
        one.apply(Command::Allocate {
            token,
            of,
            count: 1
        }),
        granted(13, 1)
    );
    for count in [0, NUMBERS_MAX + 1, u64::MAX] {
        assert_eq!(one.apply(allocate(3, 1, count)), Reply::TooMany);
    }
    let (meta, stores) = one.cluster().expect("it has begun");
    assert_eq!((meta.next_group, meta.next_store), (12, 14));
    let stores: Vec<u64> = stores.iter().map(|entry| entry.store).collect();
    assert_eq!(stores, [1, 7, 12]);
}

/// Copies in any order, of several stores: no number twice, and a copy gets what the first got, or nothing.
#[test]
fn no_order_of_copies_grants_a_number_twice() {
    let target = |input: &[u8]| {
        let source = &mut Source::new(input);
        let mut one = One::new();
        let stores = Vec::new();
        one.apply(Command::Begin { groups: 3, stores });
        let mut granted: BTreeMap<Token, (u64, u64)> = BTreeMap::new();
        for _ in 0..source.below(40) {
            let token = Token {
                store: source.below(3) as u64,
                incarnation: source.below(3) as u64,
                sequence: source.below(4) as u64,
            };
            let count = 1 + token.sequence % 3;
            let of = Numbers::Groups;
            match one.apply(Command::Allocate { token, of, count }) {
                Reply::Granted { first, count } => {
                    let before = granted.insert(token, (first, count));
                    assert!(before.is_none_or(|before| before == (first, count)));
                }
                other => assert_eq!(other, Reply::Expired),
            }
        }
        let mut all: Vec<(u64, u64)> = granted.into_values().collect();
        all.sort_unstable();
        assert!(all.first().is_none_or(|(first, _)| *first > 3));
        assert!(
            all.is_sorted_by(|(a, count), (b, _)| a + count <= *b),
            "{all:?}"
        );
    };
    let fuzz = Fuzz::new("server::directory::numbers").runs(500);
    fuzz.length_max(200).memory_max(8 << 20).check(target);
}

#[test]
fn stores_and_settings() {
    let mut one = One::new();
    let paused = Some(true);
    let pause = Command::Settings {
        paused,
        limits: None,
    };
    assert_eq!(one.apply(pause.clone()), Reply::NotBegun);
    assert_eq!(one.cluster(), None);
    let stores = vec![(1, "a:1".to_owned())];
    one.apply(Command::Begin { groups: 1, stores });
    assert_eq!(one.apply(pause), Reply::Done);
    let silent = |store| Command::Heard {
        store,
        silent_since: 1000,
    };
    assert_eq!(one.apply(silent(1)), Reply::Done);
    assert_eq!(one.apply(silent(2)), Reply::NoStore);
    let state = StoreState::Decommissioning;
    assert_eq!(
        one.apply(Command::SetState { store: 1, state }),
        Reply::Done
    );
    let (store, address) = (1, "a:2".to_owned());
    assert_eq!(one.apply(Command::Store { store, address }), Reply::Done);
    let (store, address) = (0, String::new());
    assert_eq!(
        one.apply(Command::Store { store, address }),
        Reply::Malformed
    );
    let (meta, stores) = one.cluster().expect("it has begun");
    assert!(meta.paused && meta.limits == Limits::default());
    let known = StoreEntry {
        store: 1,
        address: "a:2".to_owned(),
        state,
        silent_since: 1000,
    };
    assert_eq!(stores, std::slice::from_ref(&known));
    let limits = Limits {
        dead_after: 500,
        ..Limits::default()
    };
    assert!(is_dead_by(&known, &limits, 1500) && !is_dead_by(&known, &limits, 1499));
    assert!(!is_dead_by(
        &StoreEntry {
            silent_since: 0,
            ..known
        },
        &limits,
        u64::MAX
    ));
    let limits = Some(limits);
    one.apply(Command::Settings {
        paused: None,
        limits,
    });
    let (meta, _) = one.cluster().expect("it has begun");
    assert!(meta.paused && Some(meta.limits) == limits);
}

/// What is for other groups means nothing here.
#[test]
fn commands_of_the_key_value_interface_change_nothing() {
    let mut one = One::new();
    let write = crate::kv::Command {
        mutations: vec![(Bytes::from_static(b"m"), Some(Bytes::from_static(b"x")))],
        ..crate::kv::Command::default()
    };
    let replies = one.apply_all(&[write.encode(), Bytes::from_static(&[2, 1, 0, 0])]);
    assert_eq!(replies, [Reply::Malformed, Reply::Malformed]);
    assert_eq!((one.cluster(), one.groups()), (None, Vec::new()));
}

/// What is on disks and in logs stays readable.
#[test]
fn golden_bytes() {
    let entry = Entry {
        members: vec![(4, 5)],
        frozen_into: 6,
        ..entry(7, 2, 1, 3)
    };
    let bytes =
        b"\0\0\0\0\0\0\0\x07\x01\0\0\0\x01a\x01\0\0\0\x01c\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x01\
        \0\0\0\x01\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\x06\
        \0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x01";
    let command = Command::Publish(vec![entry]).encode();
    assert_eq!(command, [b"\x10\x02\0\0\0\x01", &bytes[..]].concat());
    let mut one = One::new();
    let stores = vec![(3, "a:1".to_owned())];
    let begin = Command::Begin { groups: 9, stores };
    assert_eq!(
        &begin.encode()[..],
        b"\x10\x01\0\0\0\0\0\0\0\x09\0\0\0\x01\0\0\0\0\0\0\0\x03\0\0\0\x03a:1"
    );
    one.apply_all(&[begin.encode(), command, allocate(1, 2, 3).encode()]);
    let kept = one.scan(b"", &[0xff], 99).expect("the disk is sound");
    let name = |name: &'static [u8]| Bytes::from_static(name);
    let names: Vec<Bytes> = kept.iter().map(|(name, _)| name.clone()).collect();
    let expected = [
        name(b"g\0\0\0\0\0\0\0\x07"),
        name(b"k\0c"),
        name(b"m"),
        name(b"s\0\0\0\0\0\0\0\x03"),
        name(b"t\0\0\0\0\0\0\0\x01"),
    ];
    assert_eq!(names, expected);
    let value = |at: usize| kept[at].1.clone();
    assert_eq!(value(0), [b"\x01\x01", &bytes[..]].concat());
    assert_eq!(value(1), [b"\x01\0\0\0\x01a\x01", &bytes[..]].concat());
    assert_eq!(
        &value(2)[..18],
        b"\x01\0\0\0\0\0\0\0\x0d\0\0\0\0\0\0\0\x04\0"
    );
    assert_eq!(value(2).len(), 18 + 7 * 8);
    assert_eq!(
        &value(3)[..],
        b"\x01\0\0\0\0\0\0\0\x03\0\0\0\x03a:1\0\0\0\0\0\0\0\0\0"
    );
    assert_eq!(
        &value(4)[..],
        b"\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\0\
        \0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x0a"
    );
}
