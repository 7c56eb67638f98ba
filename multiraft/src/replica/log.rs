//! The stable log of one replica as its core sees it: terms and bounds always, recent entries from
//! memory, everything else "not now".
//!
//! Entries are here from the moment they are handed to the log writer. That is before they are
//! durable, but the core looks here only for what it believes durable, and cuts first what it
//! overwrites.

use std::collections::VecDeque;
use std::sync::Arc;

use polyraft_core::{
    ConfState, Entry, EntryId, EntryKind, HardState, Index, InitialState, ReplicaId, Snapshot,
    SnapshotMeta, Storage, StorageError, Term,
};

use crate::env::RecoveredGroup;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct ReplicaLog {
    hard_state: HardState,
    conf_state: Arc<ConfState>,
    /// The entry before the first one in the log.
    truncated: EntryId,
    last: EntryId,
    /// The first index of each run of entries of one term.
    terms: Vec<(Term, Index)>,
    /// The newest entries, consecutive up to `last`; may be empty.
    cache: VecDeque<Entry>,
    cache_bytes: u64,
    /// What a snapshot taken now would contain at least.
    applied: EntryId,
    /// No entry behind it is for the host.
    last_command: Index,
    /// No entry behind it changes the membership.
    last_change: Index,
}

impl ReplicaLog {
    /// The log of a replica that was found at the start, or of a new one.
    pub(crate) fn new(
        recovered: &RecoveredGroup,
        applied: EntryId,
        conf_state: Arc<ConfState>,
    ) -> Self {
        let mut hard_state = recovered.hard_state;
        // A commit index need not be durable; what is applied was committed.
        hard_state.commit = hard_state
            .commit
            .max(applied.index)
            .min(recovered.last.index);
        Self {
            hard_state,
            conf_state,
            truncated: recovered.truncated,
            last: recovered.last,
            terms: recovered.terms.clone(),
            cache: VecDeque::new(),
            cache_bytes: 0,
            applied,
            // What was there before nobody has looked at.
            last_command: recovered.last.index,
            last_change: recovered.last.index,
        }
    }

    /// The last entry, or one behind it, that is for the host.
    pub(crate) const fn last_command(&self) -> Index {
        self.last_command
    }

    /// The last entry, or one behind it, that changes the membership.
    pub(crate) const fn last_change(&self) -> Index {
        self.last_change
    }

    pub(crate) const fn applied(&self) -> EntryId {
        self.applied
    }

    pub(crate) const fn conf_state(&self) -> &Arc<ConfState> {
        &self.conf_state
    }

    pub(crate) const fn truncated(&self) -> EntryId {
        self.truncated
    }

    pub(crate) const fn last(&self) -> EntryId {
        self.last
    }

    pub(crate) const fn cache_bytes(&self) -> u64 {
        self.cache_bytes
    }

    pub(crate) fn set_applied(&mut self, applied: EntryId, conf_state: Option<Arc<ConfState>>) {
        self.applied = applied;
        if let Some(conf_state) = conf_state {
            self.conf_state = conf_state;
        }
    }

    /// Entries were handed to the log writer; what was there from the first one's index on is cut.
    pub(crate) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        if first.index <= self.last.index {
            self.cut(first.index);
        }
        for entry in entries {
            if self
                .terms
                .last()
                .is_none_or(|(term, _)| *term != entry.term)
            {
                self.terms.push((entry.term, entry.index));
            }
            match entry.kind {
                EntryKind::Normal => {}
                EntryKind::Host => self.last_command = entry.index,
                EntryKind::ConfChange | EntryKind::ConfChangeV2 => self.last_change = entry.index,
            }
            self.cache_bytes += entry.size();
            self.cache.push_back(entry.clone());
        }
        if let Some(last) = entries.last() {
            self.last = last.id();
        }
    }

    fn cut(&mut self, from: Index) {
        self.terms.retain(|(_, first)| *first < from);
        let before = Index(from.0.saturating_sub(1));
        self.last_command = self.last_command.min(before);
        self.last_change = self.last_change.min(before);
        while let Some(entry) = self.cache.pop_back_if(|entry| entry.index >= from) {
            self.cache_bytes -= entry.size();
        }
    }

    /// The log is empty and goes on behind `at`.
    pub(crate) fn reset(&mut self, at: EntryId, conf_state: Arc<ConfState>) {
        let hard_state = self.hard_state;
        *self = Self {
            hard_state,
            conf_state,
            truncated: at,
            last: at,
            applied: at,
            ..Self::default()
        };
    }

    /// Entries up to `to` are not needed any more; returns the mark for the log, if that is news.
    pub(crate) fn truncate(&mut self, to: Index) -> Option<EntryId> {
        if to <= self.truncated.index || to > self.last.index {
            return None;
        }
        let term = self.term(to).ok()?;
        self.truncated = EntryId { term, index: to };
        let runs = self.terms.partition_point(|(_, first)| *first <= to.next());
        if runs > 0 {
            self.terms.drain(..runs - 1);
            self.terms[0].1 = self.terms[0].1.max(to.next());
        }
        if self.truncated.index == self.last.index {
            self.terms = Vec::new();
        }
        self.evict(to);
        Some(self.truncated)
    }

    /// Drops cached entries up to `to`; they can be fetched.
    pub(crate) fn evict(&mut self, to: Index) {
        while let Some(entry) = self.cache.pop_front_if(|entry| entry.index <= to) {
            self.cache_bytes -= entry.size();
        }
        if self.cache.is_empty() {
            self.cache = VecDeque::new();
        }
    }
}

impl Storage for ReplicaLog {
    fn initial_state(&self) -> Result<InitialState, StorageError> {
        Ok(InitialState {
            hard_state: self.hard_state,
            conf_state: ConfState::clone(&self.conf_state),
        })
    }

    fn entries(&self, low: Index, high: Index, max_bytes: u64) -> Result<Vec<Entry>, StorageError> {
        if low <= self.truncated.index {
            return Err(StorageError::Compacted);
        }
        if high > self.last.index.next() {
            return Err(StorageError::Unavailable);
        }
        let first = self
            .cache
            .front()
            .map_or(self.last.index.next(), |entry| entry.index);
        if low < first {
            return Err(StorageError::TemporarilyUnavailable);
        }
        let (from, count) = (first.until(low) as usize, low.until(high) as usize);
        let (mut bytes, mut entries) = (0u64, Vec::new());
        for entry in self.cache.range(from..from + count) {
            bytes = bytes.saturating_add(entry.size());
            if bytes > max_bytes && !entries.is_empty() {
                break;
            }
            entries.push(entry.clone());
        }
        Ok(entries)
    }

    fn term(&self, index: Index) -> Result<Term, StorageError> {
        if index < self.truncated.index {
            return Err(StorageError::Compacted);
        }
        if index > self.last.index {
            return Err(StorageError::Unavailable);
        }
        if index == self.truncated.index {
            return Ok(self.truncated.term);
        }
        let run = self.terms.partition_point(|(_, first)| *first <= index);
        match run.checked_sub(1).and_then(|run| self.terms.get(run)) {
            Some((term, _)) => Ok(*term),
            None => Err(StorageError::Corrupt(index)),
        }
    }

    fn first_index(&self) -> Index {
        self.truncated.index.next()
    }

    fn last_index(&self) -> Index {
        self.last.index
    }

    /// What it stands for only: the host moves the data on a stream of its own.
    fn snapshot(&self, _to: ReplicaId) -> Result<Snapshot, StorageError> {
        if self.applied.index < self.truncated.index {
            return Err(StorageError::SnapshotTemporarilyUnavailable);
        }
        let conf_state = ConfState::clone(&self.conf_state);
        let meta = SnapshotMeta {
            last: self.applied,
            conf_state,
        };
        Ok(Snapshot {
            meta,
            data: bytes::Bytes::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(term: u64, index: u64) -> Entry {
        let data = bytes::Bytes::from(vec![0; 10]);
        Entry {
            term: Term(term),
            index: Index(index),
            data,
            ..Entry::default()
        }
    }

    fn log() -> ReplicaLog {
        let start = EntryId::new(1, 2);
        let recovered = RecoveredGroup {
            truncated: start,
            last: start,
            ..RecoveredGroup::default()
        };
        let mut log = ReplicaLog::new(&recovered, start, Arc::default());
        log.append(&[entry(1, 3), entry(1, 4), entry(2, 5), entry(3, 6)]);
        log
    }

    #[test]
    fn terms_are_known_without_entries() {
        let mut log = log();
        log.evict(Index(6));
        assert_eq!(log.cache_bytes(), 0);
        let terms: Vec<_> = (2..=6)
            .map(|index| log.term(Index(index)).unwrap().0)
            .collect();
        assert_eq!(terms, [1, 1, 1, 2, 3]);
        assert_eq!(log.term(Index(1)), Err(StorageError::Compacted));
        assert_eq!(log.term(Index(7)), Err(StorageError::Unavailable));
        let entries = log.entries(Index(3), Index(5), 1000);
        assert_eq!(entries, Err(StorageError::TemporarilyUnavailable));
    }

    #[test]
    fn a_conflict_cuts_terms_and_cache() {
        let mut log = log();
        log.append(&[entry(4, 5)]);
        assert_eq!(log.last(), EntryId::new(4, 5));
        assert_eq!(log.term(Index(5)), Ok(Term(4)));
        assert_eq!(log.term(Index(4)), Ok(Term(1)));
        assert_eq!(log.entries(Index(4), Index(6), 1000).unwrap().len(), 2);
    }

    #[test]
    fn truncation_keeps_the_terms_behind_it() {
        let mut log = log();
        assert_eq!(log.truncate(Index(4)), Some(EntryId::new(1, 4)));
        assert_eq!(log.truncate(Index(4)), None);
        assert_eq!(log.term(Index(4)), Ok(Term(1)));
        assert_eq!(log.term(Index(5)), Ok(Term(2)));
        assert_eq!(log.term(Index(6)), Ok(Term(3)));
        assert_eq!(
            log.entries(Index(4), Index(6), 1000),
            Err(StorageError::Compacted)
        );
        assert_eq!(log.truncate(Index(6)), Some(EntryId::new(3, 6)));
        assert_eq!(log.term(Index(6)), Ok(Term(3)));
        log.append(&[entry(3, 7)]);
        assert_eq!(log.term(Index(7)), Ok(Term(3)));
    }
}
