//! Entries that were fetched from the disk for somebody and wait to be used, at most one run each.
//!
//! Invariant: what is here equals what is durable; an overwritten suffix is cut at once.

use alloc::vec::Vec;

use super::cut;
use crate::entry::Entry;
use crate::types::{Index, ReplicaId};

#[derive(Debug, Default)]
pub(crate) struct Window {
    runs: Vec<(ReplicaId, Vec<Entry>)>,
}

impl Window {
    pub(crate) fn get(
        &self,
        replica: ReplicaId,
        low: Index,
        high: Index,
        max_bytes: u64,
    ) -> Option<Vec<Entry>> {
        let (_, run) = self.runs.iter().find(|(id, _)| *id == replica)?;
        let first = run.first()?.index;
        let from = usize::try_from(low.0.checked_sub(first.0)?).ok()?;
        let to = usize::try_from(first.until(high)).ok()?.min(run.len());
        let run = run.get(from..to).filter(|run| !run.is_empty())?;
        Some(cut(run, max_bytes).to_vec())
    }

    /// Keeps `entries`, which the log has on disk, in place of what was kept for `replica`.
    pub(crate) fn put(&mut self, replica: ReplicaId, entries: Vec<Entry>) {
        self.release(replica);
        if !entries.is_empty() {
            self.runs.push((replica, entries));
        }
    }

    pub(crate) fn release(&mut self, replica: ReplicaId) {
        self.runs.retain(|(id, _)| *id != replica);
    }

    /// Everything from `index` on is being overwritten.
    pub(crate) fn cut(&mut self, index: Index) {
        for (_, run) in &mut self.runs {
            run.retain(|entry| entry.index < index);
        }
        self.runs.retain(|(_, run)| !run.is_empty());
    }
}
