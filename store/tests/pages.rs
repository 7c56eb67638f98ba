//! Pages of a group's pairs: whole, bounded, in both directions, of one moment.

use std::sync::Arc;

use bytes::Bytes;
use polyraft_core::{EntryId, Index, Term};
use polyraft_multiraft::env::{ApplyItem, Command, StateMachine};
use polyraft_multiraft::{AppliedState, GroupDescriptor, GroupId, KeyRange};
use polyraft_store::disk::{DiskError, Pair};
use polyraft_store::{
    Application, DataStateMachine, GroupTxn, MemoryDisk, Page, Room, Span, pair_bytes,
};

/// A command is `key`, 0, `value`.
struct Puts;

impl Application for Puts {
    fn apply(&self, txn: &mut GroupTxn<'_>, command: &Command) -> Result<Bytes, DiskError> {
        let at = command.data.iter().position(|byte| *byte == 0).unwrap();
        txn.put(&command.data[..at], command.data.slice(at + 1..))?;
        Ok(Bytes::new())
    }
}

type Machine = DataStateMachine<Puts, MemoryDisk>;

const EVERYTHING: Room = Room {
    pairs: usize::MAX,
    bytes: usize::MAX,
};

fn group(range: Option<KeyRange>) -> GroupDescriptor {
    GroupDescriptor {
        group: GroupId(7),
        range,
        ..GroupDescriptor::default()
    }
}

fn between(start: &'static str, end: &'static str) -> KeyRange {
    KeyRange {
        start: start.into(),
        end: Some(end.into()),
    }
}

/// A group that holds `pairs`.
fn filled(descriptor: &GroupDescriptor, pairs: &[Pair]) -> Machine {
    let machine = DataStateMachine::new(Puts, MemoryDisk::new());
    let state = |index| AppliedState {
        last: EntryId::new(1, index),
        descriptor: Arc::new(descriptor.clone()),
        ..AppliedState::default()
    };
    machine.create(&state(2)).unwrap();
    let command = |(n, (key, value)): (u64, &Pair)| Command {
        id: EntryId {
            term: Term(1),
            index: Index(3 + n),
        },
        data: [key, b"\0".as_slice(), value].concat().into(),
    };
    let mut items = [ApplyItem {
        group: descriptor.group,
        commands: (0..).zip(pairs).map(command).collect(),
        state: state(2 + pairs.len() as u64),
        membership_changed: false,
        replies: Vec::new(),
        range_change: None,
    }];
    machine.apply(&mut items).unwrap();
    machine
}

/// `n` pairs in order, with values of very different sizes.
fn pairs(n: usize) -> Vec<Pair> {
    let value = |i: usize| vec![b'v'; (i * 37) % 11 * if i.is_multiple_of(50) { 5000 } else { 3 }];
    (0..n)
        .map(|i| (Bytes::from(format!("k{i:04}")), Bytes::from(value(i))))
        .collect()
}

fn span(start: &'static str, end: Option<&'static str>, reverse: bool) -> Span {
    Span {
        start: start.into(),
        end: end.map(Bytes::from),
        reverse,
    }
}

/// All pages of a span, one after the other.
fn pages(machine: &Machine, descriptor: &GroupDescriptor, span: &Span, room: Room) -> Vec<Page> {
    let (mut rest, mut pages) = (span.clone(), Vec::new());
    loop {
        let page = machine.page(descriptor, &rest, room).unwrap();
        let page = page.expect("the data is whole");
        if let Some((last, _)) = page.pairs.last() {
            rest.advance(last);
        }
        let more = page.more;
        pages.push(page);
        if !more {
            return pages;
        }
    }
}

#[test]
fn pages_of_any_size_make_up_the_whole() {
    let descriptor = group(Some(between("k", "l")));
    let all = pairs(300);
    let machine = filled(&descriptor, &all);
    for reverse in [false, true] {
        let mut expected = all.clone();
        if reverse {
            expected.reverse();
        }
        for pairs in [1, 2, 7, 100, 300, 301, usize::MAX] {
            for bytes in [1, 50, 1000, 60_000, usize::MAX] {
                let room = Room { pairs, bytes };
                let pages = pages(&machine, &descriptor, &span("", None, reverse), room);
                for page in &pages {
                    let sum: usize = page.pairs.iter().map(|(k, v)| pair_bytes(k, v)).sum();
                    assert_eq!(page.bytes, sum);
                    assert!(page.pairs.len() <= pairs);
                    assert!(sum <= bytes || page.pairs.len() == 1, "{sum} of {bytes}");
                }
                // A page ends only where the next pair has no room.
                for (page, next) in pages.iter().zip(&pages[1..]) {
                    let (key, value) = &next.pairs[0];
                    let one_more = page.bytes.saturating_add(pair_bytes(key, value));
                    assert!(page.pairs.len() == pairs || one_more > bytes, "{room:?}");
                }
                let whole: Vec<Pair> = pages.into_iter().flat_map(|page| page.pairs).collect();
                assert_eq!(whole, expected, "{room:?}, reverse: {reverse}");
            }
        }
    }
}

#[test]
fn a_page_stays_within_span_and_range() {
    let keys = |descriptor: &GroupDescriptor, span: Span| -> String {
        let inside = |(key, _): &Pair| descriptor.range.as_ref().is_none_or(|r| r.contains(key));
        let machine = filled(
            descriptor,
            &pairs(10).into_iter().filter(inside).collect::<Vec<_>>(),
        );
        let page = machine.page(descriptor, &span, EVERYTHING).unwrap();
        let page = page.expect("the data is whole");
        assert!(!page.more);
        let digit = |(key, _): &Pair| char::from(key[key.len() - 1]);
        page.pairs.iter().map(digit).collect()
    };
    let ranged = group(Some(between("k0002", "k0007")));
    assert_eq!(keys(&ranged, span("", None, false)), "23456");
    assert_eq!(keys(&ranged, span("", None, true)), "65432");
    assert_eq!(keys(&ranged, span("k0004", Some("k0009"), true)), "654");
    assert_eq!(keys(&ranged, span("k0004", Some("k0006"), false)), "45");
    assert_eq!(keys(&ranged, span("k0004", Some("k0004"), false)), "");
    assert_eq!(keys(&ranged, span("k0008", None, false)), "");
    assert_eq!(keys(&ranged, span("k0006", Some("k0003"), true)), "");
    let private = group(None);
    assert_eq!(keys(&private, span("k0008", None, false)), "89");
    assert_eq!(keys(&private, span("", Some("k0002"), true)), "10");
}

#[test]
fn data_that_is_not_whole_has_no_pages() {
    let descriptor = group(Some(between("k", "l")));
    let machine = filled(&descriptor, &pairs(3));
    machine.destroy(&descriptor).unwrap();
    let page = machine.page(&descriptor, &span("", None, false), EVERYTHING);
    assert_eq!(page.unwrap(), None);
}
