//! Pages: as many of a group's pairs as somebody has room for, all of one moment.
//!
//! Values may be large, so a page is read in chunks that are sized by what the page has held so far; all
//! of them from one view of the disk, so that a batch is in the page as a whole or not at all.

use bytes::Bytes;
use polyraft_multiraft::GroupDescriptor;

use super::txn::scan_user;
use super::{Application, DataStateMachine};
use crate::disk::{Cf, Disk, DiskError, Pair, View};
use crate::keys;

/// What a pair counts for beside its key and value.
const PAIR_OVERHEAD: usize = 16;
/// Pairs that are read at once: at the beginning, when nothing is known of their size, and at most.
const CHUNK: (usize, usize) = (4, 1024);

/// Which keys, in which order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// First key.
    pub start: Bytes,
    /// Past the last key; none: to the end of the group's keys.
    pub end: Option<Bytes>,
    /// From the last key to the first one.
    pub reverse: bool,
}

/// Room for a page. The first pair always finds some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Pairs at most.
    pub pairs: usize,
    /// Bytes at most, see [`pair_bytes`].
    pub bytes: usize,
}

/// Some pairs, and whether there are more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// In the order that was asked for.
    pub pairs: Vec<Pair>,
    /// What they take, see [`pair_bytes`].
    pub bytes: usize,
    /// There was no room for the next one.
    pub more: bool,
}

/// What a pair takes of a page: its bytes, and some for what goes with them.
#[must_use]
pub const fn pair_bytes(key: &[u8], value: &[u8]) -> usize {
    PAIR_OVERHEAD + key.len() + value.len()
}

impl Page {
    /// Takes a pair in; false: there is no room.
    fn take(&mut self, pair: Pair, room: Room) -> bool {
        let bytes = self.bytes.saturating_add(pair_bytes(&pair.0, &pair.1));
        let full = self.pairs.len() >= room.pairs || bytes > room.bytes;
        if full && !self.pairs.is_empty() {
            self.more = true;
            return false;
        }
        self.bytes = bytes;
        self.pairs.push(pair);
        true
    }

    /// How many pairs to read next: about as many as there is room for, and one to know whether there
    /// are more, but never many more than have shown how large they are.
    fn next_chunk(&self, room: Room) -> usize {
        let known = self.pairs.len();
        let left = room.bytes.saturating_sub(self.bytes);
        let average = self.bytes.checked_div(known).unwrap_or(usize::MAX).max(1);
        let fit = left / average + 1;
        let wanted = room.pairs.saturating_sub(known).saturating_add(1);
        fit.min(wanted).clamp(1, known.clamp(CHUNK.0, CHUNK.1))
    }
}

impl<A: Application, D: Disk + Clone> DataStateMachine<A, D> {
    /// The first pairs of a span of a group's keys, all as of one moment; `None` while the group's data
    /// is not whole here, see [`Self::get_whole`].
    ///
    /// # Errors
    /// The engine's.
    pub fn page(
        &self,
        descriptor: &GroupDescriptor,
        span: &Span,
        room: Room,
    ) -> Result<Option<Page>, DiskError> {
        let Some(view) = self.whole(descriptor)? else {
            return Ok(None);
        };
        let mut page = Page::default();
        let mut rest = span.clone();
        loop {
            let chunk = page.next_chunk(room);
            let found = read(&*view, descriptor, &rest, chunk)?;
            let all = found.len() < chunk;
            if let Some((last, _)) = found.last() {
                rest.advance(last);
            }
            for pair in found {
                if !page.take(pair, room) {
                    return Ok(Some(page));
                }
            }
            if all {
                return Ok(Some(page));
            }
        }
    }
}

impl Span {
    /// Goes on behind `key`.
    pub fn advance(&mut self, key: &Bytes) {
        if self.reverse {
            self.end = Some(key.clone());
        } else {
            self.start = keys::after(key);
        }
    }
}

fn read(
    view: &dyn View,
    descriptor: &GroupDescriptor,
    span: &Span,
    limit: usize,
) -> Result<Vec<Pair>, DiskError> {
    let end = span.end.as_deref();
    scan_user(descriptor, &span.start, end, limit, |from, to, limit| {
        if span.reverse {
            view.scan_reverse(Cf::Data, from, Some(to), limit)
        } else {
            view.scan(Cf::Data, from, Some(to), limit)
        }
    })
}
