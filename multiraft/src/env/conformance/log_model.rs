//! The contract of a log as a `Vec` of entries per group.

use std::collections::BTreeMap;

use polyraft_core::{Entry, EntryId, HardState, Index, ReplicaId, Term};

use crate::env::{Lifecycle, LogBatch, LogError, LogSection, Recovered, RecoveredGroup};
use crate::group::GroupId;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogModel {
    replicas: BTreeMap<GroupId, Replica>,
    tombstones: BTreeMap<GroupId, ReplicaId>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Replica {
    id: ReplicaId,
    hard_state: HardState,
    truncated: EntryId,
    entries: Vec<Entry>,
}

impl Replica {
    fn last(&self) -> EntryId {
        self.entries.last().map_or(self.truncated, Entry::id)
    }

    fn terms(&self) -> Vec<(Term, Index)> {
        let mut terms: Vec<(Term, Index)> = Vec::new();
        for entry in &self.entries {
            if terms.last().is_none_or(|(term, _)| *term != entry.term) {
                terms.push((entry.term, entry.index));
            }
        }
        terms
    }
}

impl LogModel {
    /// Applies a batch as a whole.
    ///
    /// # Errors
    /// A section that cannot be: nothing of the batch is applied.
    pub fn apply(&mut self, batch: &LogBatch) -> Result<(), LogError> {
        let mut next = self.clone();
        for section in &batch.sections {
            next.apply_section(section)?;
        }
        *self = next;
        Ok(())
    }

    fn apply_section(&mut self, section: &LogSection) -> Result<(), LogError> {
        let group = section.group;
        let refused = |reason: &str| LogError::Corrupt {
            group,
            reason: format!("refused to write: {reason}"),
        };
        match section.lifecycle {
            Some(Lifecycle::Create { replica: id }) => {
                self.tombstones.remove(&group);
                let replica = Replica {
                    id,
                    ..Replica::default()
                };
                self.replicas.insert(group, replica);
            }
            Some(Lifecycle::Destroy { next_replica }) => {
                self.replicas.remove(&group);
                self.tombstones.insert(group, next_replica);
                return Ok(());
            }
            None => {}
        }
        let replica = self
            .replicas
            .get_mut(&group)
            .ok_or_else(|| refused("no such replica"))?;
        if let Some(reset) = section.reset {
            replica.truncated = reset;
            replica.entries.clear();
        }
        if let Some(hard_state) = section.hard_state {
            replica.hard_state = hard_state;
        }
        if let Some(first) = section.entries.first() {
            if first.index <= replica.truncated.index || first.index > replica.last().index.next() {
                return Err(refused("entries do not connect"));
            }
            replica.entries.retain(|entry| entry.index < first.index);
            replica.entries.extend(section.entries.iter().cloned());
        }
        if let Some(truncate) = section.truncate
            && truncate.index > replica.truncated.index
        {
            if truncate.index > replica.last().index {
                return Err(refused("truncation beyond the last entry"));
            }
            replica.truncated = truncate;
            replica.entries.retain(|entry| entry.index > truncate.index);
        }
        Ok(())
    }

    /// What a start would find.
    #[must_use]
    pub fn recovered(&self) -> Recovered {
        let found = |(group, replica): (&GroupId, &Replica)| RecoveredGroup {
            group: *group,
            replica: replica.id,
            hard_state: replica.hard_state,
            truncated: replica.truncated,
            last: replica.last(),
            terms: replica.terms(),
        };
        Recovered {
            groups: self.replicas.iter().map(found).collect(),
            tombstones: self
                .tombstones
                .iter()
                .map(|(group, next)| (*group, *next))
                .collect(),
        }
    }

    /// The replica of a group: id, hard state and last entry.
    #[must_use]
    pub fn replica(&self, group: GroupId) -> Option<(ReplicaId, HardState, EntryId)> {
        let replica = self.replicas.get(&group)?;
        Some((replica.id, replica.hard_state, replica.last()))
    }

    /// As [`LogEngine::read`](crate::env::LogEngine::read).
    ///
    /// # Errors
    /// The range is not all present.
    pub fn read(
        &self,
        group: GroupId,
        low: Index,
        high: Index,
        max_bytes: u64,
    ) -> Result<Vec<Entry>, LogError> {
        let unavailable = LogError::Unavailable { group, low, high };
        let Some(replica) = self.replicas.get(&group) else {
            return Err(unavailable);
        };
        if low <= replica.truncated.index || high > replica.last().index.next() {
            return Err(unavailable);
        }
        let (mut bytes, mut entries) = (0u64, Vec::new());
        let wanted = |entry: &&Entry| entry.index >= low && entry.index < high;
        for entry in replica.entries.iter().filter(wanted) {
            bytes = bytes.saturating_add(entry.size());
            if bytes > max_bytes && !entries.is_empty() {
                break;
            }
            entries.push(entry.clone());
        }
        Ok(entries)
    }
}
