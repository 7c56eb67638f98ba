//! The tail of the log that is not known to be durable, and a snapshot on its way to the disk.
//!
//! Entries are here from the moment they are accepted until a receipt of the right term says that they
//! are durable. `[offset, next)` has been handed out to be written, `[next, ...)` has not.
//!
//! Invariant: `offset ≤ next ≤ offset + entries.len()`; entries are consecutive from `offset`.

use alloc::vec::Vec;

use crate::entry::Entry;
use crate::event::{Event, Events};
use crate::ready::Snapshot;
use crate::types::{EntryId, Index, Term};

#[derive(Debug)]
pub(crate) struct Unstable {
    snapshot: Option<Snapshot>,
    snapshot_handed_out: bool,
    entries: Vec<Entry>,
    offset: Index,
    next: Index,
}

impl Unstable {
    pub(crate) const fn new(offset: Index) -> Self {
        Self {
            snapshot: None,
            snapshot_handed_out: false,
            entries: Vec::new(),
            offset,
            next: offset,
        }
    }

    pub(crate) const fn offset(&self) -> Index {
        self.offset
    }

    pub(crate) const fn next(&self) -> Index {
        self.next
    }

    /// Past the last entry; entries that are not here and not before here are nowhere.
    pub(crate) const fn end(&self) -> Index {
        self.offset.plus(self.entries.len() as u64)
    }

    pub(crate) const fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) const fn snapshot(&self) -> Option<&Snapshot> {
        self.snapshot.as_ref()
    }

    pub(crate) fn last_index(&self) -> Option<Index> {
        match self.entries.last() {
            Some(entry) => Some(entry.index),
            None => self
                .snapshot
                .as_ref()
                .map(|snapshot| snapshot.meta.last.index),
        }
    }

    pub(crate) fn term(&self, index: Index) -> Option<Term> {
        if index < self.offset {
            let last = self.snapshot.as_ref()?.meta.last;
            return (last.index == index).then_some(last.term);
        }
        let at = usize::try_from(self.offset.until(index)).ok()?;
        self.entries.get(at).map(|entry| entry.term)
    }

    /// Entries of `[low, high)`, which must lie within.
    pub(crate) fn slice(&self, low: Index, high: Index) -> &[Entry] {
        let from = self.offset.until(low) as usize;
        &self.entries[from..from + low.until(high) as usize]
    }

    pub(crate) fn has_next_entries(&self) -> bool {
        self.next < self.end()
    }

    pub(crate) fn next_entries(&self) -> &[Entry] {
        &self.entries[self.offset.until(self.next) as usize..]
    }

    pub(crate) const fn next_snapshot(&self) -> Option<&Snapshot> {
        if self.snapshot_handed_out {
            None
        } else {
            self.snapshot.as_ref()
        }
    }

    /// Everything was handed out to be written.
    pub(crate) fn accept(&mut self) {
        self.next = self.end();
        self.snapshot_handed_out = self.snapshot.is_some();
    }

    /// Entries up to `receipt` are durable, if it speaks of what is waiting here: with several
    /// writes in flight an older one's receipt may name an index that was overwritten since.
    pub(crate) fn stable_to(&mut self, receipt: EntryId, events: &mut Events) {
        let Some(waiting) = self.term(receipt.index) else {
            events.push(Event::ReceiptMissing {
                index: receipt.index,
            });
            return;
        };
        if receipt.index < self.offset {
            // It names the snapshot, which has a receipt of its own.
            return;
        }
        if waiting != receipt.term {
            let waiting = EntryId {
                term: waiting,
                index: receipt.index,
            };
            events.push(Event::ReceiptMismatched { receipt, waiting });
            return;
        }
        let count = self.offset.until(receipt.index.next()) as usize;
        if count == self.entries.len() {
            self.entries.clear();
        } else {
            self.entries.drain(..count);
        }
        if self.entries.capacity() > KEEP_CAPACITY && self.entries.len() * 4 < KEEP_CAPACITY {
            self.entries.shrink_to(KEEP_CAPACITY);
        }
        self.offset = receipt.index.next();
        self.next = self.next.max(self.offset);
    }

    /// The snapshot at `index` is installed.
    pub(crate) fn stable_snapshot_to(&mut self, index: Index) {
        if self
            .snapshot
            .as_ref()
            .is_some_and(|snapshot| snapshot.meta.last.index == index)
        {
            self.snapshot = None;
            self.snapshot_handed_out = false;
        }
    }

    pub(crate) fn restore(&mut self, snapshot: Snapshot) {
        self.offset = snapshot.meta.last.index.next();
        self.next = self.offset;
        self.entries.clear();
        self.snapshot = Some(snapshot);
        self.snapshot_handed_out = false;
    }

    /// Appends consecutive entries, overwriting whatever is here from the first one's index on.
    pub(crate) fn append(&mut self, entries: Vec<Entry>, events: &mut Events) {
        let Some(from) = entries.first().map(|entry| entry.index) else {
            return;
        };
        if from == self.end() {
            if self.entries.is_empty() && self.entries.capacity() <= entries.capacity() {
                self.entries = entries;
            } else {
                self.entries.extend(entries);
            }
        } else if from <= self.offset {
            events.push(Event::UnstableReplaced { from });
            self.entries = entries;
            self.offset = from;
            self.next = from;
        } else {
            self.entries.truncate(self.offset.until(from) as usize);
            self.entries.extend(entries);
            self.next = self.next.min(from);
        }
    }
}

/// A drained tail keeps room for this many entries.
const KEEP_CAPACITY: usize = 64;
