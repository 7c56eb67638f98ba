//! The batch record: everything that one sync makes durable, as one value.
//!
//! ```text
//! version u8 = 1 | sections u32 | section * | crc32 u32 over all before it
//! section: group u64 | hard state (term u64, vote u64, commit u64) | truncated (term u64, index u64)
//!        | last (term u64, index u64) | first index u64 | count u32
//!        | (term u64 | kind u8 | length u32 | payload) * count
//! ```
//! Integers are big-endian. A section always carries the whole small state of its group, so that the
//! newest section of a group is all that is needed of its state, and older records only hold entries.

use std::borrow::Cow;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use polyraft_core::{Entry, EntryId, EntryKind, HardState, Index, ReplicaId, Term};
use polyraft_multiraft::GroupId;

pub(crate) const VERSION: u8 = 1;
/// Bytes of a section before its entries.
const SECTION_HEADER: usize = 9 * 8 + 4;
/// Bytes of an entry beside its payload.
pub(crate) const ENTRY_HEADER: usize = 8 + 1 + 4;

/// No log comes near it; beyond it numbers would overflow when entries are counted from them.
pub(crate) const LARGEST: Index = Index(u64::MAX >> 1);

/// What a record says of one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Section<'a> {
    pub(crate) group: GroupId,
    pub(crate) hard_state: HardState,
    pub(crate) truncated: EntryId,
    /// The last entry of the log after this section.
    pub(crate) last: EntryId,
    pub(crate) entries: Cow<'a, [Entry]>,
    /// Where the entries begin in the record; filled when encoded or decoded.
    pub(crate) offset: usize,
}

/// Writes sections into one record.
pub(crate) fn encode(sections: &mut [Section<'_>]) -> Bytes {
    let payload: usize = sections
        .iter()
        .flat_map(|section| &*section.entries)
        .map(|entry| ENTRY_HEADER + entry.data.len())
        .sum();
    let mut out = BytesMut::with_capacity(9 + payload + sections.len() * SECTION_HEADER);
    out.put_u8(VERSION);
    out.put_u32(u32::try_from(sections.len()).expect("a batch is bounded"));
    for section in sections {
        out.put_u64(section.group.0);
        out.put_u64(section.hard_state.term.0);
        out.put_u64(section.hard_state.vote.0);
        out.put_u64(section.hard_state.commit.0);
        out.put_u64(section.truncated.term.0);
        out.put_u64(section.truncated.index.0);
        out.put_u64(section.last.term.0);
        out.put_u64(section.last.index.0);
        out.put_u64(section.entries.first().map_or(0, |entry| entry.index.0));
        out.put_u32(u32::try_from(section.entries.len()).expect("a batch is bounded"));
        section.offset = out.len();
        for entry in &*section.entries {
            put_entry(&mut out, entry);
        }
    }
    let checksum = crc32fast::hash(&out);
    out.put_u32(checksum);
    out.freeze()
}

pub(crate) fn put_entry(out: &mut BytesMut, entry: &Entry) {
    out.put_u64(entry.term.0);
    out.put_u8(match entry.kind {
        EntryKind::Normal => 0,
        EntryKind::ConfChange => 1,
        EntryKind::ConfChangeV2 => 2,
        EntryKind::Host => 3,
    });
    out.put_u32(u32::try_from(entry.data.len()).expect("a command is bounded"));
    out.put_slice(&entry.data);
}

/// Checks version and checksum; the sections' bytes without them.
pub(crate) fn verify(record: &Bytes) -> Result<Bytes, &'static str> {
    if record.len() < 9 {
        return Err("cut short");
    }
    if record[0] != VERSION {
        return Err("unknown version");
    }
    let (body, mut checksum) = record.split_at(record.len() - 4);
    if crc32fast::hash(body) != checksum.get_u32() {
        return Err("checksum does not match");
    }
    Ok(record.slice(..record.len() - 4))
}

/// All sections of a record.
pub(crate) fn decode(record: &Bytes) -> Result<Vec<Section<'static>>, &'static str> {
    let body = verify(record)?;
    let mut at = body.slice(1..);
    let count = at.get_u32();
    let mut sections = Vec::new();
    for _ in 0..count {
        if at.remaining() < SECTION_HEADER {
            return Err("cut short");
        }
        let group = GroupId(at.get_u64());
        let hard_state = HardState {
            term: Term(at.get_u64()),
            vote: ReplicaId(at.get_u64()),
            commit: Index(at.get_u64()),
        };
        let truncated = EntryId::new(at.get_u64(), at.get_u64());
        let last = EntryId::new(at.get_u64(), at.get_u64());
        let first = Index(at.get_u64());
        let entries_count = at.get_u32();
        if truncated.index.max(last.index).max(first) > LARGEST {
            return Err("an index out of range");
        }
        let offset = body.len() - at.remaining();
        let mut entries = Vec::new();
        for n in 0..u64::from(entries_count) {
            entries.push(take_entry(&mut at, first.plus(n))?);
        }
        sections.push(Section {
            group,
            hard_state,
            truncated,
            last,
            entries: Cow::Owned(entries),
            offset,
        });
    }
    if at.has_remaining() {
        return Err("bytes left over");
    }
    Ok(sections)
}

/// The next entry, whose index is known from where it stands.
pub(crate) fn take_entry(at: &mut Bytes, index: Index) -> Result<Entry, &'static str> {
    if at.remaining() < ENTRY_HEADER {
        return Err("cut short");
    }
    let term = Term(at.get_u64());
    let kind = match at.get_u8() {
        0 => EntryKind::Normal,
        1 => EntryKind::ConfChange,
        2 => EntryKind::ConfChangeV2,
        3 => EntryKind::Host,
        _ => return Err("unknown kind of entry"),
    };
    let len = at.get_u32() as usize;
    if at.remaining() < len {
        return Err("cut short");
    }
    Ok(Entry {
        term,
        index,
        kind,
        data: at.split_to(len),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section() -> Section<'static> {
        let data = Bytes::from_static(b"hi");
        let entry = Entry {
            term: Term(2),
            index: Index(7),
            kind: EntryKind::Normal,
            data,
        };
        Section {
            group: GroupId(1),
            hard_state: HardState {
                term: Term(2),
                vote: ReplicaId(3),
                commit: Index(6),
            },
            truncated: EntryId::new(1, 5),
            last: EntryId::new(2, 7),
            entries: Cow::Owned(vec![entry]),
            offset: 81,
        }
    }

    #[test]
    fn golden_bytes() {
        let bytes = encode(&mut [section()]);
        let golden: &[u8] = b"\x01\0\0\0\x01\
            \0\0\0\0\0\0\0\x01\
            \0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x06\
            \0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x05\
            \0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x07\
            \0\0\0\0\0\0\0\x07\0\0\0\x01\
            \0\0\0\0\0\0\0\x02\0\0\0\0\x02hi";
        assert_eq!(&bytes[..bytes.len() - 4], golden);
        assert_eq!(decode(&bytes), Ok(vec![section()]));
    }

    #[test]
    fn an_index_at_the_end_of_its_range_is_refused() {
        let edge = Index(u64::MAX);
        let with = |change: fn(&mut Section<'static>, Index)| {
            let mut damaged = section();
            change(&mut damaged, edge);
            decode(&encode(&mut [damaged]))
        };
        let refused = Err("an index out of range");
        assert_eq!(
            with(|section, edge| section.truncated.index = edge),
            refused
        );
        assert_eq!(with(|section, edge| section.last.index = edge), refused);
        let first = with(|section, edge| section.entries.to_mut()[0].index = edge);
        assert_eq!(first, refused);
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let bytes = encode(&mut [section()]);
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&damaged.into()).is_err(), "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert!(decode(&bytes.slice(..len)).is_err(), "length {len}");
        }
    }
}
