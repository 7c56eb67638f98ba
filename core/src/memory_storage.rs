//! A [`Storage`] in memory: for tests, transcripts and as a pattern for real ones.

use alloc::vec::Vec;

use crate::entry::Entry;
use crate::error::StorageError;
use crate::log::cut;
use crate::membership::ConfState;
use crate::ready::{HardState, Snapshot};
use crate::storage::{InitialState, Storage};
use crate::types::{EntryId, Index, ReplicaId, Term};

/// A stable log in memory.
#[derive(Clone, Debug, Default)]
pub struct MemoryStorage {
    hard_state: HardState,
    conf_state: ConfState,
    snapshot: Snapshot,
    /// The entry before the first one present.
    truncated: EntryId,
    entries: Vec<Entry>,
}

impl MemoryStorage {
    /// An empty log without members.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty log whose members are known.
    #[must_use]
    pub fn with_conf_state(conf_state: ConfState) -> Self {
        Self {
            conf_state,
            ..Self::default()
        }
    }

    /// Stores term, vote and commit.
    pub const fn set_hard_state(&mut self, hard_state: HardState) {
        self.hard_state = hard_state;
    }

    /// As last stored.
    #[must_use]
    pub const fn hard_state(&self) -> HardState {
        self.hard_state
    }

    /// The configuration that the next start begins with.
    pub fn set_conf_state(&mut self, conf_state: ConfState) {
        self.conf_state = conf_state;
    }

    /// The snapshot that [`Storage::snapshot`] answers with; the log stays as it is.
    pub fn set_snapshot(&mut self, snapshot: Snapshot) {
        self.snapshot = snapshot;
    }

    /// Appends consecutive entries; whatever is stored from the first one's index on goes.
    ///
    /// # Errors
    /// [`StorageError::Unavailable`]: there would be a gap.
    pub fn append(&mut self, entries: &[Entry]) -> Result<(), StorageError> {
        let skip = entries
            .iter()
            .take_while(|entry| entry.index <= self.truncated.index)
            .count();
        let entries = &entries[skip..];
        let Some(first) = entries.first() else {
            return Ok(());
        };
        if first.index > self.last_index().next() {
            return Err(StorageError::Unavailable);
        }
        self.entries
            .truncate(self.truncated.index.next().until(first.index) as usize);
        self.entries.extend_from_slice(entries);
        Ok(())
    }

    /// Replaces everything by a snapshot.
    ///
    /// # Errors
    /// [`StorageError::SnapshotOutOfDate`]: a newer one is there.
    pub fn apply_snapshot(&mut self, snapshot: Snapshot) -> Result<(), StorageError> {
        let present = self.snapshot.meta.last.index;
        if present > Index(0) && snapshot.meta.last.index <= present {
            return Err(StorageError::SnapshotOutOfDate);
        }
        self.truncated = snapshot.meta.last;
        self.entries.clear();
        self.conf_state = snapshot.meta.conf_state.clone();
        self.snapshot = snapshot;
        Ok(())
    }

    /// Drops entries up to and including `index`.
    ///
    /// # Errors
    /// [`StorageError::Compacted`] if they are gone already, [`StorageError::Unavailable`] if they are
    /// not there yet.
    pub fn truncate_to(&mut self, index: Index) -> Result<(), StorageError> {
        if index <= self.truncated.index {
            return Err(StorageError::Compacted);
        }
        let term = self.term(index)?;
        self.entries
            .drain(..self.truncated.index.until(index) as usize);
        self.truncated = EntryId { term, index };
        Ok(())
    }

    /// All entries present.
    #[must_use]
    pub fn all(&self) -> &[Entry] {
        &self.entries
    }
}

impl Storage for MemoryStorage {
    fn initial_state(&self) -> Result<InitialState, StorageError> {
        Ok(InitialState {
            hard_state: self.hard_state,
            conf_state: self.conf_state.clone(),
        })
    }

    fn entries(&self, low: Index, high: Index, max_bytes: u64) -> Result<Vec<Entry>, StorageError> {
        if low <= self.truncated.index {
            return Err(StorageError::Compacted);
        }
        if high > self.last_index().next() {
            return Err(StorageError::Unavailable);
        }
        let first = self.first_index();
        let run = &self.entries[first.until(low) as usize..first.until(high) as usize];
        Ok(cut(run, max_bytes).to_vec())
    }

    fn term(&self, index: Index) -> Result<Term, StorageError> {
        if index < self.truncated.index {
            return Err(StorageError::Compacted);
        }
        if index == self.truncated.index {
            return Ok(self.truncated.term);
        }
        let at = self.first_index().until(index) as usize;
        self.entries
            .get(at)
            .map(|entry| entry.term)
            .ok_or(StorageError::Unavailable)
    }

    fn first_index(&self) -> Index {
        self.truncated.index.next()
    }

    fn last_index(&self) -> Index {
        self.truncated.index.plus(self.entries.len() as u64)
    }

    fn snapshot(&self, _to: ReplicaId) -> Result<Snapshot, StorageError> {
        Ok(self.snapshot.clone())
    }
}
