//! Where every live entry is, in memory: runs of entries that stand one after the other in one place.
//!
//! Invariants: the runs of a group are consecutive, from behind `truncated`; a record is alive exactly
//! while a run points into it or it holds the newest state of a group (`holds` counts both).

use std::collections::BTreeMap;

use polyraft_core::{EntryId, HardState, Index, ReplicaId, Term, planted};
use polyraft_multiraft::{GroupId, GroupMap};

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

/// The hot records that something points into.
#[derive(Debug, Default)]
pub(crate) struct Records {
    pub(crate) live: BTreeMap<u64, RecordInfo>,
    /// Records that nothing holds any more; deleted with the next write.
    pub(crate) dead: Vec<u64>,
    /// Of the live ones.
    pub(crate) bytes: u64,
}

impl Records {
    /// A record that holds itself once, until its sections have taken effect.
    pub(crate) fn begin(&mut self, sequence: u64, bytes: u64, groups: Vec<GroupId>) {
        let holds = 1;
        let info = RecordInfo {
            bytes,
            holds,
            groups,
        };
        self.live.insert(sequence, info);
        self.bytes += bytes;
    }

    fn hold(&mut self, sequence: u64, times: u32) {
        if let Some(record) = self.live.get_mut(&sequence) {
            record.holds += times;
        }
    }

    pub(crate) fn release(&mut self, sequence: u64) {
        let Some(record) = self.live.get_mut(&sequence) else {
            return;
        };
        record.holds -= 1;
        if record.holds == 0 {
            self.bytes -= record.bytes;
            self.live.remove(&sequence);
            self.dead.push(sequence);
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct LogIndex {
    pub(crate) groups: GroupMap<GroupIndex>,
    pub(crate) tombstones: BTreeMap<GroupId, ReplicaId>,
    pub(crate) records: Records,
    pub(crate) runs: u64,
}

impl GroupIndex {
    /// Entries from `from` on are overwritten; gives up the runs of which nothing remains.
    fn cut(&mut self, from: Index, mut gone: impl FnMut(Run)) {
        while let Some(run) = self.runs.last_mut() {
            if run.last < from {
                break;
            }
            if run.first < from {
                run.last = from.prev();
                break;
            }
            self.runs.pop().into_iter().for_each(&mut gone);
        }
    }

    /// Gives up the runs of which nothing is needed any more.
    fn prune(&mut self, gone: impl FnMut(Run)) {
        let to = self.truncated.index;
        // Most often there is none: the whole list need not be searched to know that.
        if self.runs.first().is_none_or(|run| run.last > to) {
            return;
        }
        let dead = self.runs.partition_point(|run| run.last <= to);
        self.runs.drain(..dead).for_each(gone);
        if self.runs.is_empty() {
            self.runs = Vec::new();
        }
        // The first run may reach back behind the mark: its offset is that of its own first entry.
    }

    /// Entries follow those that are there. Entries up to the truncation mark are not needed any more
    /// and get no run. Returns how many runs were added.
    fn append(&mut self, sequence: u64, section: &Section<'_>) -> Result<u32, &'static str> {
        let needed_from = self.truncated.index.next();
        let (mut offset, mut added) = (section.offset, 0);
        for entry in &*section.entries {
            let at = u32::try_from(offset).map_err(|_| "a record is too large")?;
            offset += ENTRY_HEADER + entry.data.len();
            if entry.index < needed_from {
                continue;
            }
            match self.runs.last_mut() {
                Some(run) if added > 0 && run.term == entry.term => run.last = entry.index,
                _ => {
                    let offset = at;
                    self.runs.push(Run {
                        first: entry.index,
                        last: entry.index,
                        term: entry.term,
                        place: Place::Hot { sequence, offset },
                    });
                    added += 1;
                }
            }
        }
        Ok(added)
    }
}

impl LogIndex {
    /// A section of the record `sequence` takes effect: overwrites whatever is there from its first
    /// entry on.
    ///
    /// # Errors
    /// Says why the section cannot belong here.
    pub(crate) fn apply(
        &mut self,
        sequence: u64,
        section: &Section<'_>,
    ) -> Result<(), &'static str> {
        let (records, runs) = (&mut self.records, &mut self.runs);
        let Some(group) = self.groups.get_mut(&section.group) else {
            return Err("a section of a replica that does not exist");
        };
        group.hard_state = section.hard_state;
        let before = group.newest.replace(sequence);
        let mut gone = |run: Run| forget(records, runs, run);
        // The mark first: after a restart it may be all that is left of the entries before these.
        if section.truncated.index > group.truncated.index {
            group.truncated = section.truncated;
            group.prune(&mut gone);
        }
        let mut added = 0;
        if let Some(first) = section.entries.first() {
            if !planted!(OverwrittenRunKept) {
                group.cut(first.index, &mut gone);
            }
            group.prune(&mut gone);
            added = group.append(sequence, section)?;
        }
        *runs += u64::from(added);
        // The newest state is one more hold. Only now may the one before it go: until then it keeps this
        // record alive if both are in it.
        let state = u32::from(!planted!(LiveRecordDeleted) || added == 0);
        records.hold(sequence, added + state);
        if let Some(before) = before {
            records.release(before);
        }
        Ok(())
    }

    /// Entries up to `to` are not needed any more.
    pub(crate) fn truncate(&mut self, group: GroupId, to: EntryId) {
        let (records, runs) = (&mut self.records, &mut self.runs);
        let Some(index) = self.groups.get_mut(&group) else {
            return;
        };
        if to.index > index.truncated.index {
            index.truncated = to;
            index.prune(|run| forget(records, runs, run));
        }
    }

    /// Everything of a group that stands in hot records is void.
    pub(crate) fn detach(&mut self, group: GroupId) {
        let (records, runs) = (&mut self.records, &mut self.runs);
        let Some(index) = self.groups.get_mut(&group) else {
            return;
        };
        for run in std::mem::take(&mut index.runs) {
            forget(records, runs, run);
        }
        if let Some(newest) = index.newest.take() {
            records.release(newest);
        }
    }

    /// Cuts what an overwritten suffix left behind whose overwriting is not to be seen any more, and checks
    /// that what remains is one log.
    ///
    /// # Errors
    /// It is not.
    pub(crate) fn finish(&mut self, group: GroupId, last: EntryId) -> Result<(), &'static str> {
        let (records, runs) = (&mut self.records, &mut self.runs);
        let Some(index) = self.groups.get_mut(&group) else {
            return Err("a section of a replica that does not exist");
        };
        let mut gone = |run: Run| forget(records, runs, run);
        index.cut(last.index.next(), &mut gone);
        index.prune(&mut gone);
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

    /// Bytes of this index, about.
    pub(crate) fn bytes(&self) -> u64 {
        let group = size_of::<GroupId>() + size_of::<GroupIndex>();
        let record = size_of::<u64>() + size_of::<RecordInfo>();
        self.groups.len() as u64 * group as u64
            + self.runs * size_of::<Run>() as u64
            + self.records.live.len() as u64 * record as u64
    }
}

/// A run is not needed any more.
fn forget(records: &mut Records, runs: &mut u64, run: Run) {
    *runs -= 1;
    if let Place::Hot { sequence, .. } = run.place {
        records.release(sequence);
    }
}
