//! The sessions of a group, beside its keys.
//!
//! | name | value |
//! |---|---|
//! | 0 | [`Table`]: version u8 = 1 or 2, sessions u64, horizon u64, in version 2 offset u64 |
//! | 1, client u64, since u64 | [`Entry`]: version u8 = 1, last u64, acknowledged u64, (ahead u8, length u16, reply) * |
//! | 2, index u64 | queue for eviction: client u64, since u64 |
//!
//! `ahead` counts from `acknowledged`; the length 65535 stands for a reply that was not kept. Indexes are
//! those of the group's clock: of its log, plus the offset. A head without an offset is of version 1.
//!
//! Invariants: every session has one place in the queue, at or below the index at which it was last
//! used, and both lie above the horizon. A place is brought up to date only when it comes to the
//! front: a command writes one value, and who is evicted is still the one that was not used for
//! longest.

use std::collections::BTreeMap;
use std::num::NonZeroU64;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use polyraft_core::Index;

use super::{GroupTxn, REPLY_BYTES_MAX, SessionId};
use crate::disk::DiskError;

const VERSION: u8 = 1;
/// Of a head with an offset.
const VERSION_OFFSET: u8 = 2;
const TABLE: &[u8] = &[0];
const ENTRY: u8 = 1;
const QUEUE: u8 = 2;
const NOT_KEPT: u16 = u16::MAX;
const _: () = assert!(REPLY_BYTES_MAX < NOT_KEPT as usize && super::WINDOW <= u8::MAX as u64);

/// What a group knows of its sessions as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Table {
    /// How many there are.
    pub(super) sessions: u64,
    /// The highest index at which a session was last used that was evicted; 0: none was.
    pub(super) horizon: u64,
    /// How far the group's clock is ahead of its log.
    pub(super) offset: u64,
}

/// What a group knows of one session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    /// The index of the last command that was applied, or recognised.
    pub(super) last: u64,
    /// The lowest number that may still come.
    pub(super) acknowledged: u64,
    /// By number; none: it was not kept.
    pub(super) replies: BTreeMap<u64, Option<Bytes>>,
}

impl Table {
    pub(super) fn load(txn: &GroupTxn<'_>) -> Result<Self, DiskError> {
        match txn.session_get(TABLE)? {
            None => Ok(Self::default()),
            Some(bytes) => Self::decode(bytes).ok_or_else(|| damaged(txn, "the head")),
        }
    }

    pub(super) fn store(self, txn: &mut GroupTxn<'_>) {
        txn.session_put(TABLE, self.encode());
    }

    /// What the group's clock is at an index of its log.
    pub(super) const fn at(self, index: Index) -> u64 {
        index.0.saturating_add(self.offset)
    }

    /// The same, of the group's table.
    pub(super) fn clock(txn: &GroupTxn<'_>, index: Index) -> Result<u64, DiskError> {
        // A group whose range has never changed has none that is ahead: nothing is read for it.
        match txn.descriptor().epoch.range {
            0 => Ok(index.0),
            _ => Ok(Self::load(txn)?.at(index)),
        }
    }

    /// Gives a session a place in the queue that is nobody's.
    pub(super) fn place(txn: &mut GroupTxn<'_>, index: u64, session: SessionId) {
        txn.session_put(&place(index), session_bytes(session));
    }

    /// Whoever has a place in the queue leaves it.
    pub(super) fn leave(txn: &mut GroupTxn<'_>, index: u64) {
        txn.session_delete(&place(index));
    }

    /// Makes room for a session that is used at `index`, and gives it a place in the queue.
    pub(super) fn admit(
        txn: &mut GroupTxn<'_>,
        session: SessionId,
        index: u64,
        max: u64,
    ) -> Result<(), DiskError> {
        let mut table = Self::load(txn)?;
        while table.sessions >= max {
            table.evict(txn)?;
        }
        table.sessions += 1;
        table.store(txn);
        Self::place(txn, index, session);
        Ok(())
    }

    /// The session that was not used for longest goes.
    fn evict(&mut self, txn: &mut GroupTxn<'_>) -> Result<(), DiskError> {
        let mut from = self.horizon;
        loop {
            let first = txn.session_first(&place(from))?;
            let first = first.and_then(|(name, session)| Some((index(&name)?, parse(session)?)));
            let (at, session) = first.ok_or_else(|| damaged(txn, "the queue"))?;
            let entry = Entry::load(txn, session)?;
            let entry = entry.ok_or_else(|| damaged(txn, "a place in the queue"))?;
            Self::leave(txn, at);
            if entry.last > at {
                // Used since it got its place. That index is no other session's.
                Self::place(txn, entry.last, session);
                from = at;
                continue;
            }
            Entry::remove(txn, session);
            self.horizon = entry.last;
            self.sessions -= 1;
            return Ok(());
        }
    }

    fn encode(self) -> Bytes {
        let mut out = BytesMut::with_capacity(25);
        let version = if self.offset == 0 {
            VERSION
        } else {
            VERSION_OFFSET
        };
        out.put_u8(version);
        out.put_u64(self.sessions);
        out.put_u64(self.horizon);
        if self.offset != 0 {
            out.put_u64(self.offset);
        }
        out.freeze()
    }

    fn decode(mut bytes: Bytes) -> Option<Self> {
        let version = bytes.try_get_u8().ok()?;
        let table = Self {
            sessions: bytes.try_get_u64().ok()?,
            horizon: bytes.try_get_u64().ok()?,
            offset: match version {
                VERSION => 0,
                VERSION_OFFSET => bytes.try_get_u64().ok()?,
                _ => return None,
            },
        };
        bytes.is_empty().then_some(table)
    }
}

impl Entry {
    pub(super) fn load(txn: &GroupTxn<'_>, session: SessionId) -> Result<Option<Self>, DiskError> {
        match txn.session_get(&name(session))? {
            None => Ok(None),
            Some(bytes) => match Self::decode(bytes) {
                Some(entry) => Ok(Some(entry)),
                None => Err(damaged(txn, "a session")),
            },
        }
    }

    pub(super) fn store(&self, txn: &mut GroupTxn<'_>, session: SessionId) {
        txn.session_put(&name(session), self.encode());
    }

    pub(super) fn remove(txn: &mut GroupTxn<'_>, session: SessionId) {
        txn.session_delete(&name(session));
    }

    /// What two groups know of a session, as one.
    pub(super) fn unite(mut self, other: Self) -> Self {
        let theirs = other.replies.into_iter();
        for (sequence, reply) in theirs {
            let ours = self.replies.entry(sequence).or_default();
            // Both have it from a group that both come from, or one of them did not keep it.
            *ours = ours.take().or(reply);
        }
        let (last, acknowledged) = (
            self.last.max(other.last),
            self.acknowledged.max(other.acknowledged),
        );
        self.touch(last, acknowledged);
        let mut kept = 0;
        for reply in self.replies.values_mut() {
            let length = reply.as_ref().map_or(0, Bytes::len);
            match kept + length <= REPLY_BYTES_MAX {
                true => kept += length,
                false => *reply = None,
            }
        }
        self
    }

    /// The reply to a command that has just been applied.
    pub(super) fn keep(&mut self, sequence: u64, reply: &Bytes) {
        let kept: usize = self.replies.values().flatten().map(Bytes::len).sum();
        let fits = kept + reply.len() <= REPLY_BYTES_MAX;
        self.replies.insert(sequence, fits.then(|| reply.clone()));
    }

    /// Used at `index` by a client that needs nothing below `acknowledged`.
    pub(super) fn touch(&mut self, index: u64, acknowledged: u64) {
        self.last = index;
        self.acknowledged = acknowledged;
        self.replies = self.replies.split_off(&acknowledged);
    }

    fn encode(&self) -> Bytes {
        let kept = self.replies.values().flatten().map(Bytes::len);
        let size = 17 + 3 * self.replies.len() + kept.sum::<usize>();
        let mut out = BytesMut::with_capacity(size);
        out.put_u8(VERSION);
        out.put_u64(self.last);
        out.put_u64(self.acknowledged);
        for (sequence, reply) in &self.replies {
            let ahead = u8::try_from(sequence - self.acknowledged);
            out.put_u8(ahead.expect("the window is smaller"));
            match reply {
                None => out.put_u16(NOT_KEPT),
                Some(reply) => {
                    out.put_u16(u16::try_from(reply.len()).expect("longer ones are not kept"));
                    out.put_slice(reply);
                }
            }
        }
        out.freeze()
    }

    fn decode(mut bytes: Bytes) -> Option<Self> {
        if bytes.try_get_u8().ok()? != VERSION {
            return None;
        }
        let last = bytes.try_get_u64().ok()?;
        let acknowledged = bytes.try_get_u64().ok()?;
        let mut replies = BTreeMap::new();
        while bytes.has_remaining() {
            let sequence = acknowledged.checked_add(u64::from(bytes.get_u8()))?;
            let reply = match bytes.try_get_u16().ok()? {
                NOT_KEPT => None,
                length if usize::from(length) > bytes.len() => return None,
                length => Some(bytes.split_to(usize::from(length))),
            };
            replies.insert(sequence, reply);
        }
        Some(Self {
            last,
            acknowledged,
            replies,
        })
    }
}

/// A value of a table by its name.
#[derive(Debug)]
pub(super) enum Row {
    /// The head.
    Head,
    /// What is known of a session.
    Session(SessionId, Entry),
    /// A place in the queue, and whose it is.
    Place(u64, SessionId),
}

impl Row {
    pub(super) fn parse(txn: &GroupTxn<'_>, name: &Bytes, value: Bytes) -> Result<Self, DiskError> {
        let row = match name.first() {
            Some(&ENTRY) => parse(name.slice(1..))
                .and_then(|session| Some(Self::Session(session, Entry::decode(value)?))),
            Some(&QUEUE) => index(name).and_then(|index| Some(Self::Place(index, parse(value)?))),
            _ if name == TABLE => Table::decode(value).map(|_| Self::Head),
            _ => None,
        };
        row.ok_or_else(|| damaged(txn, "a row"))
    }
}

fn damaged(txn: &GroupTxn<'_>, what: &str) -> DiskError {
    let group = txn.descriptor().group;
    DiskError::Corrupt(format!(
        "the session table of group {group}: {what} is malformed, missing or of an unknown version"
    ))
}

fn name(session: SessionId) -> Vec<u8> {
    let mut name = Vec::with_capacity(17);
    name.push(ENTRY);
    name.put_u64(session.client.get());
    name.put_u64(session.since);
    name
}

fn place(index: u64) -> [u8; 9] {
    let mut name = [QUEUE; 9];
    name[1..].copy_from_slice(&index.to_be_bytes());
    name
}

/// The index of a place in the queue.
fn index(name: &[u8]) -> Option<u64> {
    match name.split_first()? {
        (&QUEUE, index) => Some(u64::from_be_bytes(index.try_into().ok()?)),
        _ => None,
    }
}

fn session_bytes(session: SessionId) -> Bytes {
    name(session).split_off(1).into()
}

fn parse(mut bytes: Bytes) -> Option<SessionId> {
    let client = NonZeroU64::new(bytes.try_get_u64().ok()?)?;
    let since = bytes.try_get_u64().ok()?;
    bytes.is_empty().then_some(SessionId { client, since })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let table = Table {
            sessions: 2,
            horizon: 258,
            offset: 0,
        };
        let golden: &[u8] = b"\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\x01\x02";
        assert_eq!(table.encode(), golden);
        assert_eq!(Table::decode(table.encode()), Some(table));
        let table = Table { offset: 3, ..table };
        let golden: &[u8] = b"\x02\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\x01\x02\0\0\0\0\0\0\0\x03";
        assert_eq!(table.encode(), golden);
        assert_eq!(Table::decode(table.encode()), Some(table));
        for length in 0..golden.len() {
            assert_eq!(Table::decode(Bytes::from_static(&golden[..length])), None);
        }
        let mut entry = Entry {
            last: 258,
            acknowledged: 3,
            replies: BTreeMap::new(),
        };
        entry.keep(4, &Bytes::from_static(b"abc"));
        entry.keep(5, &Bytes::from(vec![0; REPLY_BYTES_MAX - 2]));
        let golden: &[u8] = b"\x01\0\0\0\0\0\0\x01\x02\0\0\0\0\0\0\0\x03\x01\0\x03abc\x02\xff\xff";
        assert_eq!(entry.encode(), golden);
        assert_eq!(Entry::decode(entry.encode()), Some(entry));
        let session = SessionId {
            client: NonZeroU64::new(258).unwrap(),
            since: 3,
        };
        let golden: &[u8] = b"\x01\0\0\0\0\0\0\x01\x02\0\0\0\0\0\0\0\x03";
        assert_eq!(name(session), golden);
        assert_eq!(session_bytes(session), golden[1..]);
        assert_eq!(parse(session_bytes(session)), Some(session));
        assert_eq!(&place(258), b"\x02\0\0\0\0\0\0\x01\x02");
        assert_eq!(index(&place(258)), Some(258));
    }

    #[test]
    fn a_damaged_entry_is_none() {
        let mut entry = Entry {
            acknowledged: u64::MAX - 1,
            ..Entry::default()
        };
        entry.keep(u64::MAX, &Bytes::from_static(b"abc"));
        let whole = entry.encode();
        for length in (0..whole.len()).filter(|length| *length != 17) {
            assert_eq!(
                Entry::decode(whole.slice(..length)),
                None,
                "cut to {length}"
            );
        }
        let mut ahead = whole.to_vec();
        ahead[17] = 2;
        assert_eq!(Entry::decode(ahead.into()), None);
    }
}
