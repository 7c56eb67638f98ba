//! One view over the stable log (in [`Storage`]) and the tail that is not durable yet.
//!
//! ```text
//! first-1 ≤ applied ≤ applying ≤ committed ≤ last
//! ```
//! `applied`, `applying` and `committed` only go forward. With several writes in flight only the
//! locally durable part is handed out to be applied, unless the synchronous wrapper is in use, which
//! stores before it applies.

mod unstable;
mod window;

use alloc::vec::Vec;

pub(crate) use unstable::Unstable;
use window::Window;

use crate::entry::Entry;
use crate::error::{Error, StorageError};
use crate::event::{Event, Events, LogCursors};
use crate::planted;
use crate::ready::Snapshot;
use crate::storage::Storage;
use crate::types::{EntryId, Index, ReplicaId, Term};

#[derive(Debug)]
pub(crate) struct Log<S> {
    pub(crate) storage: S,
    pub(crate) unstable: Unstable,
    window: Window,
    committed: Index,
    applying: Index,
    applied: Index,
    /// Bytes handed out to be applied and not acknowledged.
    applying_bytes: u64,
    applying_bytes_max: u64,
    applying_paused: bool,
}

/// Which committed entries may be applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Appliable {
    /// Only locally durable ones.
    Durable,
    /// All: the caller stores before it applies.
    All,
}

impl<S: Storage> Log<S> {
    pub(crate) fn new(storage: S, applying_bytes_max: u64) -> Self {
        let start = storage.first_index().prev();
        let unstable = Unstable::new(storage.last_index().next());
        Self {
            storage,
            unstable,
            window: Window::default(),
            committed: start,
            applying: start,
            applied: start,
            applying_bytes: 0,
            applying_bytes_max,
            applying_paused: false,
        }
    }

    pub(crate) const fn storage_ref(&self) -> &S {
        &self.storage
    }

    pub(crate) const fn committed(&self) -> Index {
        self.committed
    }

    pub(crate) const fn applied(&self) -> Index {
        self.applied
    }

    /// Handed out to be applied.
    pub(crate) const fn applying(&self) -> Index {
        self.applying
    }

    pub(crate) fn cursors(&self) -> LogCursors {
        LogCursors {
            committed: self.committed,
            applied: self.applied,
            applying: self.applying,
            unstable_offset: self.unstable.offset(),
            unstable_next: self.unstable.next(),
            unstable_len: self.unstable.len(),
        }
    }

    pub(crate) fn first_index(&self) -> Index {
        match self.unstable.snapshot() {
            Some(snapshot) => snapshot.meta.last.index.next(),
            None => self.storage.first_index(),
        }
    }

    pub(crate) fn last_index(&self) -> Index {
        self.unstable
            .last_index()
            .unwrap_or_else(|| self.storage.last_index())
    }

    pub(crate) fn last_id(&self) -> Result<EntryId, Error> {
        let index = self.last_index();
        let term = self
            .term(index)
            .map_err(|_| Error::Invariant("the term of the last entry is unknown"))?;
        Ok(EntryId { term, index })
    }

    /// The term at `index`, for `[first - 1, last]`; an error says on which side it lies outside.
    pub(crate) fn term(&self, index: Index) -> Result<Term, StorageError> {
        if let Some(term) = self.unstable.term(index) {
            return Ok(term);
        }
        if index.next() < self.first_index() {
            return Err(StorageError::Compacted);
        }
        if index > self.last_index() {
            return Err(StorageError::Unavailable);
        }
        self.storage.term(index)
    }

    pub(crate) fn matches(&self, id: EntryId) -> bool {
        self.term(id.index) == Ok(id.term)
    }

    /// Thesis section 3.6.1.
    pub(crate) fn is_up_to_date(&self, candidate: EntryId) -> Result<bool, Error> {
        if planted!(VoteToLogBehind) {
            return Ok(self.last_index() <= candidate.index);
        }
        Ok(self.last_id()? <= candidate)
    }

    /// Accepts a leader's entries if they connect. `None`: they do not; else the last new index.
    /// The caller guarantees that `entries` are consecutive behind `prev`.
    pub(crate) fn maybe_append(
        &mut self,
        prev: EntryId,
        mut entries: Vec<Entry>,
        commit: Index,
        events: &mut Events,
    ) -> Result<Option<Index>, Error> {
        if !self.matches(prev) {
            return Ok(None);
        }
        let last_new = prev.index.plus(entries.len() as u64);
        if let Some(at) = self.find_conflict(&entries, events) {
            if entries[at].index <= self.committed {
                return Err(Error::Invariant("a leader contradicts a committed entry"));
            }
            if at > 0 {
                entries.drain(..at);
            }
            self.append(entries, events)?;
        }
        // Not the leader's commit alone: what lies behind the last new entry may not match.
        if planted!(AppendCommitUnchecked) {
            self.commit_to(commit.min(self.last_index()))?;
        }
        self.commit_to(commit.min(last_new))?;
        Ok(Some(last_new))
    }

    pub(crate) fn append(&mut self, entries: Vec<Entry>, events: &mut Events) -> Result<(), Error> {
        let Some(first) = entries.first() else {
            return Ok(());
        };
        if first.index <= self.committed {
            return Err(Error::Invariant("append below the commit index"));
        }
        // A storage that shows what it was never given does not fill a gap.
        if first.index > self.last_index().next().min(self.unstable.end()) {
            return Err(Error::Invariant("append leaves a gap"));
        }
        self.window.cut(first.index);
        self.unstable.append(entries, events);
        Ok(())
    }

    /// The first entry that this log lacks or contradicts.
    fn find_conflict(&self, entries: &[Entry], events: &mut Events) -> Option<usize> {
        let last = self.last_index();
        // The common case: everything is new.
        if entries.first().is_some_and(|entry| entry.index > last) {
            return Some(0);
        }
        for (at, entry) in entries.iter().enumerate() {
            if self.matches(entry.id()) || (planted!(ConflictKept) && entry.index <= last) {
                continue;
            }
            if entry.index <= last {
                events.push(Event::ConflictFound {
                    index: entry.index,
                    existing: self.term(entry.index).unwrap_or_default(),
                    conflicting: entry.term,
                });
            }
            return Some(at);
        }
        None
    }

    /// The largest index up to `index` whose term is not above `term`: the best guess of where two
    /// logs may still agree. Where the term is unknown the guess is that index, with term 0.
    pub(crate) fn find_conflict_by_term(&self, index: Index, term: Term) -> EntryId {
        let mut at = index;
        while at > Index(0) {
            match self.term(at) {
                Err(_) => {
                    return EntryId {
                        term: Term(0),
                        index: at,
                    };
                }
                Ok(own) if own <= term => {
                    return EntryId {
                        term: own,
                        index: at,
                    };
                }
                Ok(_) => at = at.prev(),
            }
        }
        EntryId::default()
    }

    pub(crate) fn commit_to(&mut self, index: Index) -> Result<(), Error> {
        if index <= self.committed {
            return Ok(());
        }
        if index > self.last_index() {
            return Err(Error::Invariant("commit index beyond the last entry"));
        }
        self.committed = index;
        Ok(())
    }

    /// A quorum has everything up to `index`. Only an entry of the current term may be committed by
    /// counting (thesis section 3.6.2, figure 3.7).
    pub(crate) fn maybe_commit(&mut self, index: Index, term: Term) -> Result<bool, Error> {
        if index <= self.committed || !self.matches(EntryId { term, index }) {
            return Ok(false);
        }
        self.commit_to(index)?;
        Ok(true)
    }

    pub(crate) fn restore(&mut self, snapshot: Snapshot) {
        self.window = Window::default();
        self.committed = self.committed.max(snapshot.meta.last.index);
        self.unstable.restore(snapshot);
    }

    pub(crate) const fn has_pending_snapshot(&self) -> bool {
        self.unstable.snapshot().is_some()
    }

    fn appliable_to(&self, which: Appliable) -> Index {
        match which {
            Appliable::All => self.committed,
            Appliable::Durable => self.committed.min(self.unstable.offset().prev()),
        }
    }

    pub(crate) fn has_committed(&self, which: Appliable) -> bool {
        !self.applying_paused
            && !self.has_pending_snapshot()
            && self.applying < self.appliable_to(which)
    }

    /// The next committed entries to apply; an error of `TemporarilyUnavailable` names nothing, the
    /// range missing is `[applying + 1, ...)`.
    pub(crate) fn next_committed(&self, which: Appliable) -> Result<Vec<Entry>, StorageError> {
        if !self.has_committed(which) {
            return Ok(Vec::new());
        }
        let room = self.applying_bytes_max - self.applying_bytes;
        self.slice(
            self.applying.next(),
            self.appliable_to(which).next(),
            room,
            ReplicaId::NONE,
        )
    }

    /// What [`next_committed`](Self::next_committed) would return was handed out.
    pub(crate) fn accept_applying(&mut self, last: Index, bytes: u64, which: Appliable) {
        debug_assert!(last <= self.committed);
        self.applying = last;
        self.applying_bytes += bytes;
        // Paused when the limit is reached, or when it is what cut the last hand-out short.
        self.applying_paused =
            self.applying_bytes >= self.applying_bytes_max || last < self.appliable_to(which);
        self.window.release(ReplicaId::NONE);
    }

    pub(crate) fn applied_to(&mut self, index: Index, bytes: u64) -> Result<(), Error> {
        if index > self.committed {
            return Err(Error::Invariant("applied beyond the commit index"));
        }
        if index < self.applied {
            return Err(Error::Invariant("applied index went backwards"));
        }
        self.applied = index;
        self.applying = self.applying.max(index);
        self.applying_bytes = self.applying_bytes.saturating_sub(bytes);
        self.applying_paused = self.applying_bytes >= self.applying_bytes_max;
        Ok(())
    }

    /// The range that applying lacks.
    pub(crate) fn applying_range(&self, which: Appliable) -> (Index, Index, u64) {
        let room = self.applying_bytes_max.saturating_sub(self.applying_bytes);
        (self.applying.next(), self.appliable_to(which).next(), room)
    }

    /// Entries of `[low, last]` for `replica`, cut after `max_bytes`.
    pub(crate) fn entries_from(
        &self,
        low: Index,
        max_bytes: u64,
        replica: ReplicaId,
    ) -> Result<Vec<Entry>, StorageError> {
        self.slice(low, self.last_index().next(), max_bytes, replica)
    }

    /// Entries of `[low, high)`, cut after `max_bytes` but never empty if the range is not.
    pub(crate) fn slice(
        &self,
        low: Index,
        high: Index,
        max_bytes: u64,
        replica: ReplicaId,
    ) -> Result<Vec<Entry>, StorageError> {
        if low >= high {
            return Ok(Vec::new());
        }
        if low < self.first_index() {
            return Err(StorageError::Compacted);
        }
        if high > self.last_index().next().min(self.unstable.end()) {
            return Err(StorageError::Unavailable);
        }
        let offset = self.unstable.offset();
        if low >= offset {
            return Ok(cut(self.unstable.slice(low, high), max_bytes).to_vec());
        }
        let stable_high = high.min(offset);
        let mut entries = match self.storage.entries(low, stable_high, max_bytes) {
            Err(StorageError::TemporarilyUnavailable) => self
                .window
                .get(replica, low, stable_high, max_bytes)
                .ok_or(StorageError::TemporarilyUnavailable)?,
            other => other?,
        };
        let Some(last) = entries.last() else {
            return Err(StorageError::Corrupt(low));
        };
        if entries[0].index != low || last.index.next() > stable_high {
            return Err(StorageError::Corrupt(low));
        }
        if last.index.next() == stable_high && stable_high < high {
            let used: u64 = entries.iter().map(Entry::size).sum();
            let rest = self.unstable.slice(stable_high, high);
            // The first entry is there already, so here nothing is sent beyond the limit.
            let mut left = max_bytes.saturating_sub(used);
            let fits = rest
                .iter()
                .take_while(|entry| {
                    let size = entry.size();
                    let fits = size <= left;
                    left = left.saturating_sub(size);
                    fits
                })
                .count();
            entries.extend_from_slice(&rest[..fits]);
        }
        Ok(entries)
    }

    /// Entries that were fetched from the disk are kept until they have been used.
    ///
    /// The read may have overtaken a write, or the other way round: an entry may have been
    /// overwritten since, even by one leader and back under another. Only those that this log has are
    /// kept; their term tells, and terms are always known.
    pub(crate) fn keep_fetched(&mut self, replica: ReplicaId, mut entries: Vec<Entry>) {
        let (first, end) = (self.first_index(), self.unstable.offset());
        entries.retain(|entry| first <= entry.index && entry.index < end);
        let own = entries.iter().take_while(|entry| self.matches(entry.id()));
        let own = own.count();
        entries.truncate(own);
        self.window.put(replica, entries);
    }

    pub(crate) fn release_fetched(&mut self, replica: ReplicaId) {
        self.window.release(replica);
    }

    pub(crate) fn snapshot(&self, to: ReplicaId) -> Result<Snapshot, StorageError> {
        match self.unstable.snapshot() {
            Some(snapshot) => Ok(snapshot.clone()),
            None => self.storage.snapshot(to),
        }
    }
}

/// The longest prefix of at most `max_bytes`, but at least one entry.
pub(crate) fn cut(entries: &[Entry], max_bytes: u64) -> &[Entry] {
    let mut used = 0u64;
    for (at, entry) in entries.iter().enumerate() {
        used = used.saturating_add(entry.size());
        if used > max_bytes && at > 0 {
            return &entries[..at];
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory_storage::MemoryStorage;

    /// A term that is not known is an error and never 0, which would match whatever claims it.
    #[test]
    fn unknown_terms_are_errors() {
        let mut storage = MemoryStorage::new();
        let entries: Vec<Entry> = (1..=5)
            .map(|index| Entry {
                term: Term(index),
                index: Index(index),
                ..Entry::default()
            })
            .collect();
        storage.append(&entries).unwrap();
        storage.truncate_to(Index(3)).unwrap();
        let log = Log::new(storage, u64::MAX);
        let terms = [
            (2, Err(StorageError::Compacted)),
            (3, Ok(Term(3))),
            (5, Ok(Term(5))),
            (6, Err(StorageError::Unavailable)),
        ];
        for (index, term) in terms {
            assert_eq!(log.term(Index(index)), term);
            assert!(!log.matches(EntryId::new(0, index)));
        }
        assert!(!log.matches(EntryId::new(0, 0)));
    }
}
