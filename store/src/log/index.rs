//! Where every live entry is, in memory: runs of entries that stand one after the other in one place.
//!
//! Invariants: the runs of a group are consecutive, from behind `truncated`; a record is alive exactly
//! while a run points into it or it holds the newest state of a group (`holds` counts both).

use std::collections::{BTreeMap, HashMap};

use polyraft_core::{Entry, EntryId, HardState, Index, ReplicaId, Term};
use polyraft_multiraft::GroupId;

use super::record::{ENTRY_HEADER, Section};

/// Where a run of entries stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the hot record with this sequence number; its first entry at this offset.
    Hot { sequence: u64, offset: u32 },
    /// In the column family `settled`.
    Settled,
}

/// Consecutive entries of one term in one place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) first: Index,
    pub(crate) last: Index,
    pub(crate) term: Term,
    pub(crate) place: Place,
}

/// What is known of one replica.
#[derive(Clone, Debug, Default)]
pub(crate) struct GroupIndex {
    pub(crate) replica: ReplicaId,
    pub(crate) hard_state: HardState,
    pub(crate) truncated: EntryId,
    pub(crate) runs: Vec<Run>,
    /// The record with the newest state; none: it is settled.
    pub(crate) newest: Option<u64>,
}

impl GroupIndex {
    pub(crate) fn last(&self) -> EntryId {
        match self.runs.last() {
            Some(run) => EntryId {
                term: run.term,
                index: run.last,
            },
            None => self.truncated,
        }
    }

    /// Where each run of one term begins.
    pub(crate) fn terms(&self) -> Vec<(Term, Index)> {
        let mut terms: Vec<(Term, Index)> = Vec::new();
        for run in &self.runs {
            if terms.last().is_none_or(|(term, _)| *term != run.term) {
                terms.push((run.term, run.first));
            }
        }
        terms
    }
}

/// One hot record.
#[derive(Clone, Debug, Default)]
pub(crate) struct RecordInfo {
    pub(crate) bytes: u64,
    /// Runs and newest states in it.
    pub(crate) holds: u32,
    /// Whose sections are in it.
    pub(crate) groups: Vec<GroupId>,
}

#[derive(Debug, Default)]
pub(crate) struct LogIndex {
    pub(crate) groups: HashMap<GroupId, GroupIndex>,
    pub(crate) tombstones: BTreeMap<GroupId, ReplicaId>,
    pub(crate) records: BTreeMap<u64, RecordInfo>,
    /// Records that nothing holds any more; deleted with the next write.
    pub(crate) dead: Vec<u64>,
    pub(crate) hot_bytes: u64,
    pub(crate) runs: u64,
}

impl LogIndex {
    /// A section of the record `sequence` takes effect.
    ///
    /// # Errors
    /// Says why the section cannot belong here.
    pub(crate) fn apply(&mut self, sequence: u64, section: &Section) -> Result<(), &'static str> {
        let Some(group) = self.groups.get_mut(&section.group) else {
            return Err("a section of a replica that does not exist");
        };
        group.hard_state = section.hard_state;
        let before = group.newest.replace(sequence);
        self.hold(sequence);
        if let Some(before) = before {
            self.release(before);
        }
        // The mark first: after a restart it may be all that is left of the entries before these.
        self.truncate(section.group, section.truncated);
        self.append(sequence, section)?;
        Ok(())
    }

    /// Overwrites whatever is there from the first entry on. Entries up to the truncation mark are not
    /// needed any more and get no run, but they overwrite too.
    fn append(&mut self, sequence: u64, section: &Section) -> Result<(), &'static str> {
        let Some(from) = section.entries.first().map(|entry| entry.index) else {
            return Ok(());
        };
        self.cut(section.group, from);
        self.prune(section.group);
        let Some(group) = self.groups.get_mut(&section.group) else {
            return Ok(());
        };
        let needed_from = group.truncated.index.next();
        let needed = |entry: &&Entry| needed_from <= entry.index;
        let Some(first) = section.entries.iter().find(needed).map(|entry| entry.index) else {
            return Ok(());
        };
        let (mut offset, mut added) = (section.offset, 0);
        for entry in &section.entries {
            let at = u32::try_from(offset).map_err(|_| "a record is too large")?;
            offset += ENTRY_HEADER + entry.data.len();
            if entry.index < first {
                continue;
            }
            match group.runs.last_mut() {
                Some(run) if added > 0 && run.term == entry.term => run.last = entry.index,
                _ => {
                    let place = Place::Hot {
                        sequence,
                        offset: at,
                    };
                    let (first, last, term) = (entry.index, entry.index, entry.term);
                    group.runs.push(Run {
                        first,
                        last,
                        term,
                        place,
                    });
                    added += 1;
                }
            }
        }
        self.runs += added;
        for _ in 0..added {
            self.hold(sequence);
        }
        Ok(())
    }

    /// Entries from `from` on are overwritten.
    fn cut(&mut self, group: GroupId, from: Index) {
        let Some(index) = self.groups.get_mut(&group) else {
            return;
        };
        let mut gone = Vec::new();
        while let Some(run) = index.runs.last_mut() {
            if run.last < from {
                break;
            }
            if run.first < from {
                run.last = from.prev();
                break;
            }
            gone.extend(index.runs.pop());
        }
        self.forget(&gone);
    }

    /// Entries up to `to` are not needed any more.
    pub(crate) fn truncate(&mut self, group: GroupId, to: EntryId) {
        let Some(index) = self.groups.get_mut(&group) else {
            return;
        };
        if to.index <= index.truncated.index {
            return;
        }
        index.truncated = to;
        self.prune(group);
    }

    /// Forgets runs of which nothing is needed any more.
    fn prune(&mut self, group: GroupId) {
        let Some(index) = self.groups.get_mut(&group) else {
            return;
        };
        let to = index.truncated;
        let dead = index.runs.partition_point(|run| run.last <= to.index);
        let gone: Vec<Run> = index.runs.drain(..dead).collect();
        if index.runs.is_empty() {
            index.runs = Vec::new();
        }
        // The first run may reach back behind the mark: its offset is that of its own first entry.
        self.forget(&gone);
    }

    /// Everything of a group that stands in hot records is void.
    pub(crate) fn detach(&mut self, group: GroupId) {
        let Some(index) = self.groups.get_mut(&group) else {
            return;
        };
        let gone = std::mem::take(&mut index.runs);
        let newest = index.newest.take();
        self.forget(&gone);
        if let Some(newest) = newest {
            self.release(newest);
        }
    }

    /// Cuts what an overwritten suffix left behind whose overwriting is not to be seen any more, and checks
    /// that what remains is one log.
    ///
    /// # Errors
    /// It is not.
    pub(crate) fn finish(&mut self, group: GroupId, last: EntryId) -> Result<(), &'static str> {
        self.cut(group, last.index.next());
        self.prune(group);
        let Some(index) = self.groups.get(&group) else {
            return Err("a section of a replica that does not exist");
        };
        let mut next = index.truncated.index.next();
        for run in &index.runs {
            if next < run.first {
                return Err("a gap between entries");
            }
            next = run.last.next();
        }
        if index.last() == last {
            Ok(())
        } else {
            Err("the last entry is missing")
        }
    }

    pub(crate) fn settle(&mut self, group: GroupId, runs: Vec<Run>) {
        self.detach(group);
        self.runs += runs.len() as u64;
        if let Some(index) = self.groups.get_mut(&group) {
            index.runs = runs;
        }
    }

    fn forget(&mut self, runs: &[Run]) {
        for run in runs {
            self.runs -= 1;
            if let Place::Hot { sequence, .. } = run.place {
                self.release(sequence);
            }
        }
    }

    pub(crate) fn hold(&mut self, sequence: u64) {
        if let Some(record) = self.records.get_mut(&sequence) {
            record.holds += 1;
        }
    }

    pub(crate) fn release(&mut self, sequence: u64) {
        let Some(record) = self.records.get_mut(&sequence) else {
            return;
        };
        record.holds -= 1;
        if record.holds == 0 {
            self.hot_bytes -= record.bytes;
            self.records.remove(&sequence);
            self.dead.push(sequence);
        }
    }

    /// Bytes of this index, about.
    pub(crate) fn bytes(&self) -> u64 {
        let group = size_of::<GroupId>() + size_of::<GroupIndex>();
        let record = size_of::<u64>() + size_of::<RecordInfo>();
        self.groups.len() as u64 * group as u64
            + self.runs * size_of::<Run>() as u64
            + self.records.len() as u64 * record as u64
    }
}
