//! Which group has which keys, as the directory keeps it beside the entries of the groups.
//!
//! Leaders publish what they know in any order, late and twice. Every change of a range gives each group
//! that comes out of it a generation above those of all that went in, so of two entries for a key
//! the one of the higher generation is the later one.
//!
//! Invariants: segments do not overlap; the generation of a key's segment never falls; a segment that
//! names an entry names the one that its group has now, and contains only keys of its range.
//! What a group has left behind, and what was destroyed, stays as the *mark* of its generation,
//! until a later owner is heard of: so nothing that comes late brings an old owner back. A group whose
//! first key has a later owner was merged, since it owns that key all its life.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use polyraft_multiraft::KeyRange;
use polyraft_store::GroupTxn;
use polyraft_store::disk::{DiskError, Pair};

use super::codec::{put_bytes, take_bytes};
use super::entry::Entry;

/// What the names of segments begin with, and what is behind them.
const SEGMENT: u8 = b'k';
const BEHIND: [u8; 1] = [SEGMENT + 1];
/// What the names of groups begin with.
pub(super) const GROUP: u8 = b'g';

const VERSION: u8 = 1;
/// Segments read at once.
const PAGE: usize = 16;

/// Keys for which the same entry is the latest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) start: Bytes,
    /// None: to the last key.
    pub(crate) end: Option<Bytes>,
    pub(crate) held: Held,
}

/// Who has the keys of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    /// A group.
    By(Entry),
    /// Nobody who is known, but not a group of this generation or a lower one.
    Mark(u64),
}

/// What is known of a group by its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    Known(Entry),
    /// For ever.
    Destroyed,
}

impl Held {
    const fn generation(&self) -> u64 {
        match self {
            Self::By(entry) => entry.generation,
            Self::Mark(generation) => *generation,
        }
    }

    fn is_of(&self, group: u64) -> bool {
        matches!(self, Self::By(entry) if entry.group == group)
    }
}

/// A segment is named by its end, so that the first name behind a key is that of the key's segment.
fn name(end: Option<&Bytes>) -> Bytes {
    let mut name = BytesMut::new();
    name.put_u8(SEGMENT);
    match end {
        Some(end) => {
            name.put_u8(0);
            name.put_slice(end);
        }
        None => name.put_u8(1),
    }
    name.freeze()
}

/// The first name that a segment with `key` may have.
fn first_with(key: &[u8]) -> Bytes {
    let mut name = BytesMut::new();
    name.put_slice(&[SEGMENT, 0]);
    name.put_slice(key);
    name.put_u8(0);
    name.freeze()
}

fn encode(segment: &Segment) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(VERSION);
    put_bytes(&mut out, &segment.start);
    match &segment.held {
        Held::Mark(generation) => {
            out.put_u8(0);
            out.put_u64(*generation);
        }
        Held::By(entry) => {
            out.put_u8(1);
            entry.put(&mut out);
        }
    }
    out.freeze()
}

fn decode(name: &Bytes, value: &Bytes) -> Option<Segment> {
    let (mut name, mut rest) = (name.clone(), value.clone());
    let (SEGMENT, VERSION) = (name.try_get_u8().ok()?, rest.try_get_u8().ok()?) else {
        return None;
    };
    let end = match name.try_get_u8().ok()? {
        0 => Some(name),
        1 => None,
        _ => return None,
    };
    let start = take_bytes(&mut rest)?;
    let held = match rest.try_get_u8().ok()? {
        0 => Held::Mark(rest.try_get_u64().ok()?),
        1 => Held::By(Entry::take(&mut rest)?),
        _ => return None,
    };
    let sound = !rest.has_remaining() && end.as_ref().is_none_or(|end| start < *end);
    sound.then_some(Segment { start, end, held })
}

fn damaged() -> DiskError {
    DiskError::Fatal("what the directory keeps of ranges is malformed".to_owned())
}

/// Segments with keys in `[start, end)`, in order, at most `limit`, from whatever `scan` reads: names of
/// `[from, to)` in order, at most so many.
pub(crate) fn read(
    scan: impl Fn(&[u8], &[u8], usize) -> Result<Vec<Pair>, DiskError>,
    start: &[u8],
    end: Option<&[u8]>,
    limit: usize,
) -> Result<Vec<Segment>, DiskError> {
    let mut found = Vec::new();
    for (name, value) in scan(&first_with(start), &BEHIND, limit)? {
        let segment = decode(&name, &value).ok_or_else(damaged)?;
        if end.is_some_and(|end| *segment.start >= *end) {
            break;
        }
        found.push(segment);
    }
    Ok(found)
}

fn overlapping(txn: &GroupTxn<'_>, range: &KeyRange) -> Result<Vec<Segment>, DiskError> {
    let scan = |from: &[u8], to: &[u8], limit| txn.scan(from, Some(to), limit);
    let (mut all, mut start) = (Vec::new(), range.start.clone());
    loop {
        let page = read(scan, &start, range.end.as_deref(), PAGE)?;
        let full = page.len() == PAGE;
        all.extend(page);
        match all.last().and_then(|last: &Segment| last.end.clone()) {
            Some(end) if full => start = end,
            _ => return Ok(all),
        }
    }
}

fn put(txn: &mut GroupTxn<'_>, segment: &Segment) -> Result<(), DiskError> {
    txn.put(&name(segment.end.as_ref()), encode(segment))
}

/// The name of a group's record.
pub(crate) fn group_name(group: u64) -> Bytes {
    let mut name = BytesMut::with_capacity(9);
    name.put_u8(GROUP);
    name.put_u64(group);
    name.freeze()
}

/// What a group's record says.
pub(crate) fn decode_record(value: &Bytes) -> Result<Record, DiskError> {
    let mut rest = value.clone();
    let mut take = || {
        (rest.try_get_u8().ok()? == VERSION).then_some(())?;
        let record = match rest.try_get_u8().ok()? {
            0 => Record::Destroyed,
            1 => Record::Known(Entry::take(&mut rest)?),
            _ => return None,
        };
        (!rest.has_remaining()).then_some(record)
    };
    take().ok_or_else(damaged)
}

fn record(txn: &GroupTxn<'_>, group: u64) -> Result<Option<Record>, DiskError> {
    let kept = txn.get(&group_name(group))?;
    kept.map(|kept| decode_record(&kept)).transpose()
}

fn put_record(txn: &mut GroupTxn<'_>, group: u64, record: &Record) -> Result<(), DiskError> {
    let mut out = BytesMut::new();
    out.put_u8(VERSION);
    match record {
        Record::Destroyed => out.put_u8(0),
        Record::Known(entry) => {
            out.put_u8(1);
            entry.put(&mut out);
        }
    }
    txn.put(&group_name(group), out.freeze())
}

/// A leader says what it knows of its group.
pub(super) fn publish(txn: &mut GroupTxn<'_>, news: Entry) -> Result<(), DiskError> {
    let known = match record(txn, news.group)? {
        Some(Record::Destroyed) => {
            // Nobody has these keys, but neither have those who had them before.
            return match &news.range {
                Some(range) => place(txn, range, &Held::Mark(news.generation)),
                None => Ok(()),
            };
        }
        Some(Record::Known(known)) => Some(known),
        None => None,
    };
    let entry = match &known {
        Some(known) => match Entry::later(known, &news) {
            Some(later) => later,
            None => return Ok(()),
        },
        None => news,
    };
    let mut same = false;
    if let Some(known) = known {
        same = known.generation == entry.generation && known.range == entry.range;
        let held = if same {
            Held::By(entry.clone())
        } else {
            Held::Mark(known.generation)
        };
        replace(txn, &known, &held)?;
    }
    let range = match &entry.range {
        Some(range) if !same => range,
        _ => return put_record(txn, entry.group, &Record::Known(entry)),
    };
    if first_key_has_later_owner(txn, range, &entry)? {
        return txn.delete(&group_name(entry.group));
    }
    put_record(txn, entry.group, &Record::Known(entry.clone()))?;
    place(txn, range, &Held::By(entry.clone()))
}

/// A group is no more.
pub(super) fn destroyed(txn: &mut GroupTxn<'_>, group: u64) -> Result<(), DiskError> {
    if let Some(Record::Known(known)) = record(txn, group)? {
        replace(txn, &known, &Held::Mark(known.generation))?;
    }
    put_record(txn, group, &Record::Destroyed)
}

/// Puts something else into all segments that an entry has.
fn replace(txn: &mut GroupTxn<'_>, entry: &Entry, held: &Held) -> Result<(), DiskError> {
    let Some(range) = &entry.range else {
        return Ok(());
    };
    for segment in overlapping(txn, range)? {
        if segment.held.is_of(entry.group) {
            let held = held.clone();
            put(txn, &Segment { held, ..segment })?;
        }
    }
    Ok(())
}

fn first_key_has_later_owner(
    txn: &GroupTxn<'_>,
    range: &KeyRange,
    entry: &Entry,
) -> Result<bool, DiskError> {
    let scan = |from: &[u8], to: &[u8], limit| txn.scan(from, Some(to), limit);
    let found = read(scan, &range.start, None, 1)?;
    let has = |segment: &&Segment| segment.start <= range.start;
    let held = found.iter().find(has).map(|segment| &segment.held);
    Ok(held.is_some_and(|held| stays(held, entry.generation, entry.group)))
}

/// Whether what is known stays where news of a generation come in.
fn stays(known: &Held, generation: u64, group: u64) -> bool {
    match known.generation().cmp(&generation) {
        std::cmp::Ordering::Greater => true,
        // No two owners of a key are of one generation: the first one stays. A mark is no owner's.
        std::cmp::Ordering::Equal => matches!(known, Held::By(entry) if entry.group != group),
        std::cmp::Ordering::Less => false,
    }
}

/// Puts news into the segments of their keys, where nothing later is known. Groups that lose their first
/// key by that are no more.
fn place(txn: &mut GroupTxn<'_>, range: &KeyRange, held: &Held) -> Result<(), DiskError> {
    let group = match held {
        Held::By(entry) => entry.group,
        Held::Mark(_) => 0,
    };
    let mut gone = Vec::new();
    // Where the next segment of the news begins; none: past the last key.
    let mut at = Some(range.start.clone());
    for known in overlapping(txn, range)? {
        txn.delete(&name(known.end.as_ref()))?;
        let (start, end) = (known.start.clone(), known.end.clone());
        if start < range.start {
            let end = Some(range.start.clone());
            put(
                txn,
                &Segment {
                    end,
                    ..known.clone()
                },
            )?;
        }
        if let Some(bound) = &range.end
            && end.as_ref().is_none_or(|end| end > bound)
        {
            let start = bound.clone();
            put(
                txn,
                &Segment {
                    start,
                    ..known.clone()
                },
            )?;
        }
        if !stays(&known.held, held.generation(), group) {
            if let Held::By(entry) = known.held
                && entry.group != group
                && entry
                    .range
                    .as_ref()
                    .is_some_and(|r| range.contains(&r.start))
            {
                gone.push(entry);
            }
            continue;
        }
        let first = start.max(range.start.clone());
        if let Some(start) = at.take_if(|at| *at < first) {
            let (end, held) = (Some(first.clone()), held.clone());
            put(txn, &Segment { start, end, held })?;
        }
        let last = earlier(end.as_ref(), range.end.as_ref()).cloned();
        let (start, end) = (first, last.clone());
        put(
            txn,
            &Segment {
                start,
                end,
                held: known.held,
            },
        )?;
        at = last;
    }
    if let Some(start) = at
        && range.end.as_ref().is_none_or(|end| start < *end)
    {
        let (end, held) = (range.end.clone(), held.clone());
        put(txn, &Segment { start, end, held })?;
    }
    for entry in gone {
        let first = entry.range.clone().unwrap_or_default();
        if first_key_has_later_owner(txn, &first, &entry)? {
            replace(txn, &entry, &Held::Mark(entry.generation))?;
            txn.delete(&group_name(entry.group))?;
        }
    }
    Ok(())
}

/// The lower one of two upper bounds; none: there is no bound.
fn earlier<'a>(one: Option<&'a Bytes>, other: Option<&'a Bytes>) -> Option<&'a Bytes> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}
