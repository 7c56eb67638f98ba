//! The Raft log of all groups as one record per synced batch.
//!
//! A write puts one value and deletes the records that nothing points into any more: one insert and a
//! few tombstones for any number of entries of any number of groups. Where entries are is known in
//! memory; after a restart it is learned again from the records, whose bytes are bounded: what keeps an
//! old record alive is moved out of it ("settled") by [`LogEngine::maintain`].
//!
//! # Why recovery is right
//! 1. A record is written atomically with the settled states that it makes void, and deleted atomically with
//!    the write that made it dead, so a crash leaves a prefix of what this code did.
//! 2. Replaying the records in order of their sequence numbers over the settled states gives the same index
//!    as writing them did: the same [`LogIndex::apply`] does both. Sections up to a state's "as of" are
//!    skipped: the state contains what they did.
//! 3. A record that was acknowledged is never passed over: damage is an error that names it.

mod index;
mod record;
mod state;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use bytes::{Bytes, BytesMut};
use polyraft_core::{Durable, Entry, EntryId, HardState, Index, ReplicaId, Term, planted};
use polyraft_multiraft::env::{
    Lifecycle, LogBatch, LogEngine, LogError, LogSection, LogStats, Recovered, RecoveredGroup,
};
use polyraft_multiraft::{GroupId, GroupMap};

use self::index::{GroupIndex, LogIndex, Place, Run};
use self::record::Section;
use self::state::Settled;
use crate::disk::{Batch, Cf, Change, Disk, DiskError, Durability};
use crate::keys;
use crate::sync::Mutex;

/// Sizes of a log.
#[derive(Clone, Copy, Debug)]
pub struct LogOptions {
    /// Bytes in hot records beyond which old ones are settled. Bounds the time of recovery.
    pub hot_bytes_max: u64,
    /// Groups settled in one step of maintenance.
    pub settle_groups_max: usize,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            hot_bytes_max: 256 << 20,
            settle_groups_max: 64,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct RaftLog<D> {
    disk: D,
    options: LogOptions,
    /// Held while the index and the disk change together; taken before `inner`. Readers go on meanwhile.
    writer: Mutex<()>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    index: LogIndex,
    next: u64,
    stats: LogStats,
    failed: Option<String>,
}

impl<D: Disk> RaftLog<D> {
    /// A log on `disk`; nothing is read before [`LogEngine::recover`].
    pub fn new(disk: D, options: LogOptions) -> Self {
        let inner = Inner {
            next: 1,
            ..Inner::default()
        };
        Self {
            disk,
            options,
            writer: Mutex::new(()),
            inner: Mutex::new(inner),
        }
    }

    fn read_run(
        &self,
        group: GroupId,
        run: &Run,
        low: Index,
        high: Index,
        max_bytes: u64,
    ) -> Result<Option<Vec<Entry>>, LogError> {
        let corrupt = |reason: String| LogError::Corrupt { group, reason };
        match run.place {
            Place::Hot { sequence, offset } => {
                let found = self
                    .disk
                    .get(Cf::Log, &keys::record(sequence))
                    .map_err(translate)?;
                let Some(bytes) = found else { return Ok(None) };
                let named = |why: &str| corrupt(format!("record {sequence}: {why}"));
                let mut at = record::verify(&bytes).map_err(named)?;
                if at.len() < offset as usize {
                    return Err(named("cut short"));
                }
                let mut at = at.split_off(offset as usize);
                let mut entries = Vec::new();
                let mut index = run.first;
                while index < high && index <= run.last {
                    let entry = record::take_entry(&mut at, index).map_err(named)?;
                    if entry.term != run.term {
                        return Err(named("an entry of another term"));
                    }
                    if index >= low {
                        entries.push(entry);
                    }
                    index = index.next();
                }
                Ok(Some(entries))
            }
            Place::Settled => self.read_settled(group, run, low, high, max_bytes),
        }
    }

    /// Page by page, since a slow follower's tail may be far larger than what is asked for at once.
    fn read_settled(
        &self,
        group: GroupId,
        run: &Run,
        low: Index,
        high: Index,
        max_bytes: u64,
    ) -> Result<Option<Vec<Entry>>, LogError> {
        let end = keys::entry(group, high);
        let (mut entries, mut bytes, mut index) = (Vec::new(), 0u64, low);
        // One entry beyond the limit is read, by which the caller sees where to stop.
        while index < high && bytes <= max_bytes {
            let start = keys::entry(group, index);
            let page = self
                .disk
                .scan(Cf::Settled, &start, Some(&end), SETTLED_PER_PAGE)
                .map_err(translate)?;
            if page.is_empty() {
                return Ok(None);
            }
            for (key, value) in page {
                if key != keys::entry(group, index) {
                    return Ok(None);
                }
                let entry = settled_entry(value, index).map_err(|why| LogError::Corrupt {
                    group,
                    reason: format!("settled entry {index}: {why}"),
                })?;
                if entry.term != run.term {
                    return Ok(None);
                }
                bytes = bytes.saturating_add(entry.size());
                entries.push(entry);
                index = index.next();
            }
        }
        Ok(Some(entries))
    }

    /// Moves groups out of the oldest hot record, in one batch with what makes their hot sections void.
    /// The caller holds `writer`.
    fn settle_oldest(&self) -> Result<bool, LogError> {
        let (groups, dead, as_of) = {
            let inner = self.inner.lock();
            let Some((&oldest, info)) = inner.index.records.live.first_key_value() else {
                return Ok(false);
            };
            let depending = info
                .groups
                .iter()
                .filter(|group| depends(&inner.index, **group, oldest))
                .filter_map(|group| Some((*group, inner.index.groups.get(group)?.clone())));
            let groups: Vec<(GroupId, GroupIndex)> =
                depending.take(self.options.settle_groups_max).collect();
            (groups, inner.index.records.dead.clone(), inner.next - 1)
        };
        let (mut batch, mut settled) = (Batch::new(), Vec::new());
        for (group, index) in groups {
            let mut runs: Vec<Run> = Vec::new();
            batch.push((Cf::Settled, keys::all_entries(group)));
            for run in &index.runs {
                let low = run.first.max(index.truncated.index.next());
                let entries = self
                    .read_run(group, run, low, run.last.next(), u64::MAX)?
                    .ok_or_else(|| missing(group, low, run.last.next()))?;
                for entry in &entries {
                    let value = settled_value(entry);
                    batch.push((
                        Cf::Settled,
                        Change::Put(keys::entry(group, entry.index), value),
                    ));
                }
                match runs.last_mut() {
                    Some(last) if last.term == run.term => last.last = run.last,
                    _ => runs.push(Run {
                        first: low,
                        place: Place::Settled,
                        ..*run
                    }),
                }
            }
            let mut brief = Brief::from(&index);
            if planted!(SettledVoteLost) {
                brief.hard_state.vote = ReplicaId::NONE;
            }
            let state = settled_state(brief, &runs, as_of + u64::from(planted!(SettledTooNew)));
            batch.push((Cf::State, Change::Put(keys::group(group), state.encode())));
            settled.push((group, runs));
        }
        let deleted = dead.iter().map(|dead| Change::Delete(keys::record(*dead)));
        batch.extend(deleted.map(|change| (Cf::Log, change)));
        // Synced: the next write may delete the records that this one empties.
        let written = self.disk.write(batch, Durability::Synced);
        let mut inner = self.inner.lock();
        if let Err(error) = written {
            return Err(inner.poison(error));
        }
        inner.index.records.dead.clear();
        for (group, runs) in settled {
            inner.index.settle(group, runs);
        }
        Ok(true)
    }
}

/// Whether something of `group` keeps a record alive.
fn depends(index: &LogIndex, group: GroupId, sequence: u64) -> bool {
    index.groups.get(&group).is_some_and(|group| {
        group.newest == Some(sequence)
            || group
                .runs
                .iter()
                .any(|run| matches!(run.place, Place::Hot { sequence: s, .. } if s == sequence))
    })
}

fn settled_state(index: Brief, runs: &[Run], as_of: u64) -> Settled {
    Settled::Replica {
        as_of,
        replica: index.replica,
        hard_state: index.hard_state,
        truncated: index.truncated,
        runs: runs
            .iter()
            .map(|run| (run.term, run.first, run.last))
            .collect(),
    }
}

fn settled_value(entry: &Entry) -> Bytes {
    let mut out = BytesMut::new();
    record::put_entry(&mut out, entry);
    let checksum = crc32fast::hash(&out);
    out.extend_from_slice(&checksum.to_be_bytes());
    out.freeze()
}

fn settled_entry(value: Bytes, index: Index) -> Result<Entry, &'static str> {
    let Some((body, checksum)) = value.split_last_chunk::<4>() else {
        return Err("cut short");
    };
    if crc32fast::hash(body).to_be_bytes() != *checksum {
        return Err("checksum does not match");
    }
    let mut at = value.slice(..value.len() - 4);
    record::take_entry(&mut at, index)
}

fn missing(group: GroupId, low: Index, high: Index) -> LogError {
    LogError::Corrupt {
        group,
        reason: format!("entries [{low}, {high}) are not where they were"),
    }
}

fn translate(error: DiskError) -> LogError {
    match error {
        DiskError::Full => LogError::DiskFull,
        DiskError::Fatal(text) | DiskError::Corrupt(text) => LogError::Fatal(text),
    }
}

/// A batch in the form in which it is written.
#[derive(Default)]
struct Plan<'a> {
    sections: Vec<Section<'a>>,
    /// States written beside the record, by group; they void what hot records say of the group.
    states: BTreeMap<GroupId, Settled>,
    /// Replicas as they are after the batch.
    after: GroupMap<Brief>,
    /// Groups whose hot sections up to this record are void.
    detached: BTreeSet<GroupId>,
}

/// As much of a replica's log as decides about the next section.
#[derive(Clone, Copy, Default)]
struct Brief {
    replica: ReplicaId,
    hard_state: HardState,
    truncated: EntryId,
    last: EntryId,
}

impl From<&GroupIndex> for Brief {
    fn from(index: &GroupIndex) -> Self {
        Self {
            replica: index.replica,
            hard_state: index.hard_state,
            truncated: index.truncated,
            last: index.last(),
        }
    }
}

impl<'a> Plan<'a> {
    fn add(
        &mut self,
        index: &LogIndex,
        section: &'a LogSection,
        sequence: u64,
    ) -> Result<(), LogError> {
        let group = section.group;
        let refuse = |reason: &str| {
            Err(LogError::Corrupt {
                group,
                reason: format!("refused to write: {reason}"),
            })
        };
        match section.lifecycle {
            Some(Lifecycle::Create { replica }) => {
                let brief = Brief {
                    replica,
                    ..Brief::default()
                };
                self.begin(group, brief, sequence);
            }
            Some(Lifecycle::Destroy { next_replica }) => {
                self.void(group);
                self.after.remove(&group);
                self.states.insert(
                    group,
                    Settled::Tombstone {
                        as_of: sequence,
                        next_replica,
                    },
                );
                return Ok(());
            }
            None => {}
        }
        let known = match self.after.get(&group) {
            Some(known) => Some(*known),
            None if self.states.contains_key(&group) => None,
            None => index.groups.get(&group).map(Brief::from),
        };
        let Some(mut next) = known else {
            return refuse("no such replica");
        };
        if let Some(reset) = section.reset
            && planted!(SnapshotKeepsOldLog)
            && reset.index < next.last.index
        {
            next.truncated = reset;
        } else if let Some(reset) = section.reset {
            (next.truncated, next.last) = (reset, reset);
            self.begin(group, next, sequence);
        }
        if let Some(hard_state) = section.hard_state {
            next.hard_state = hard_state;
        }
        if let (Some(first), Some(last)) = (section.entries.first(), section.entries.last()) {
            if first.index <= next.truncated.index || first.index > next.last.index.next() {
                return refuse("entries do not connect");
            }
            next.last = last.id();
        }
        if let Some(truncate) = section.truncate
            && truncate.index > next.truncated.index
        {
            if truncate.index > next.last.index {
                return refuse("truncation beyond the last entry");
            }
            next.truncated = truncate;
        }
        self.sections.push(Section {
            group,
            hard_state: next.hard_state,
            truncated: next.truncated,
            last: next.last,
            entries: Cow::Borrowed(&section.entries),
            offset: 0,
        });
        self.after.insert(group, next);
        Ok(())
    }

    /// A replica begins anew: its state is written at once, and what came before is void.
    fn begin(&mut self, group: GroupId, brief: Brief, sequence: u64) {
        self.void(group);
        let state = settled_state(brief, &[], sequence - 1);
        self.states.insert(group, state);
        self.after.insert(group, brief);
    }

    fn void(&mut self, group: GroupId) {
        self.detached.insert(group);
        self.sections.retain(|section| section.group != group);
    }
}

impl<D: Disk> LogEngine for RaftLog<D> {
    fn recover(&self) -> Result<Recovered, LogError> {
        let mut inner = self.inner.lock();
        let mut as_of: BTreeMap<GroupId, u64> = BTreeMap::new();
        let mut index = LogIndex::default();
        let mut next = 1;
        for (key, value) in self.scan_all(Cf::State)? {
            let group = keys::parse_group(&key).ok_or_else(|| {
                LogError::Fatal("a key in the column family state is malformed".to_owned())
            })?;
            let state = Settled::decode(&value).map_err(|why| LogError::Corrupt {
                group,
                reason: format!("settled state: {why}"),
            })?;
            next = next.max(after(state.as_of())?);
            as_of.insert(group, state.as_of());
            load(&mut index, group, state);
        }
        // First how each group's log ends up: records whose entries were truncated or overwritten may be
        // gone, so that in between the log need not be one, and an overwritten suffix may show again.
        let mut marks: BTreeMap<GroupId, (EntryId, EntryId)> = BTreeMap::new();
        self.each_record(|sequence, value| {
            next = next.max(after(sequence)?);
            for section in decode_live(sequence, value, &as_of)? {
                // The newest section says how the log is now.
                marks.insert(section.group, (section.truncated, section.last));
            }
            Ok(())
        })?;
        for (group, (truncated, _)) in &marks {
            index.truncate(*group, *truncated);
        }
        self.each_record(|sequence, value| replay(&mut index, sequence, value, &as_of))?;
        for (group, (_, last)) in marks {
            let damaged = |why: &str| {
                LogError::Fatal(format!(
                    "the log of group {group} cannot be trusted ({why}): \
                 this store must be rebuilt from the others"
                ))
            };
            index.finish(group, last).map_err(damaged)?;
        }
        let mut recovered = Recovered {
            groups: index
                .groups
                .iter()
                .map(|(group, found)| found_replica(*group, found))
                .collect(),
            tombstones: index
                .tombstones
                .iter()
                .map(|(group, next)| (*group, *next))
                .collect(),
        };
        recovered.groups.sort_by_key(|replica| replica.group);
        *inner = Inner {
            index,
            next,
            ..Inner::default()
        };
        Ok(recovered)
    }

    fn write(&self, batch: &LogBatch) -> Result<Durable, LogError> {
        let _turn = self.writer.lock();
        let mut plan = Plan::default();
        let (sequence, dead) = {
            let inner = self.inner.lock();
            if let Some(why) = &inner.failed {
                return Err(LogError::Fatal(why.clone()));
            }
            let sequence = inner.next;
            for section in &batch.sections {
                plan.add(&inner.index, section, sequence)?;
            }
            (sequence, inner.index.records.dead.clone())
        };
        let mut changes = Batch::new();
        let record = record::encode(&mut plan.sections);
        let hot = !plan.sections.is_empty();
        if hot {
            changes.push((Cf::Log, Change::Put(keys::record(sequence), record.clone())));
        }
        for (group, state) in &plan.states {
            changes.push((Cf::State, Change::Put(keys::group(*group), state.encode())));
            changes.push((Cf::Settled, keys::all_entries(*group)));
        }
        let deleted = dead.iter().map(|dead| Change::Delete(keys::record(*dead)));
        changes.extend(deleted.map(|change| (Cf::Log, change)));
        let durability = if batch.sync {
            Durability::Synced
        } else {
            Durability::Buffered
        };
        // Nobody else changes the index meanwhile, and what is read of it stays true.
        let written = self.disk.write(changes, durability);
        let mut inner = self.inner.lock();
        if let Err(error) = written {
            return Err(inner.poison(error));
        }
        inner.next += 1;
        inner.index.records.dead.clear();
        inner.take(plan, sequence, record.len() as u64, hot)?;
        inner.stats.syncs += u64::from(batch.sync);
        inner.stats.bytes += record.len() as u64;
        inner.stats.entries += batch
            .sections
            .iter()
            .map(|s| s.entries.len() as u64)
            .sum::<u64>();
        Ok(Durable::attest())
    }

    fn read(
        &self,
        group: GroupId,
        low: Index,
        high: Index,
        max_bytes: u64,
    ) -> Result<Vec<Entry>, LogError> {
        let unavailable = || LogError::Unavailable { group, low, high };
        // Entries may be moved while they are read: look again where they are, a few times. Who moves
        // them may be between disk and index for longer than that, so the last look waits its turn.
        for attempt in 1..=READ_ATTEMPTS {
            let _turn = (attempt == READ_ATTEMPTS).then(|| self.writer.lock());
            let runs: Vec<Run> = {
                let inner = self.inner.lock();
                let index = inner.index.groups.get(&group).ok_or_else(unavailable)?;
                if low <= index.truncated.index || high > index.last().index.next() {
                    return Err(unavailable());
                }
                let from = index.runs.partition_point(|run| run.last < low);
                let to = index.runs.partition_point(|run| run.first < high);
                index.runs[from..to].to_vec()
            };
            if let Some(entries) = self.read_runs(group, &runs, low, high, max_bytes)? {
                return Ok(entries);
            }
        }
        Err(missing(group, low, high))
    }

    fn maintain(&self) -> Result<bool, LogError> {
        let _turn = self.writer.lock();
        {
            let inner = self.inner.lock();
            if let Some(why) = &inner.failed {
                return Err(LogError::Fatal(why.clone()));
            }
            if inner.index.records.bytes <= self.options.hot_bytes_max {
                return Ok(false);
            }
        }
        self.settle_oldest()
    }

    fn stats(&self) -> LogStats {
        let inner = self.inner.lock();
        LogStats {
            hot_bytes: inner.index.records.bytes,
            hot_records: inner.index.records.live.len() as u64,
            index_bytes: inner.index.bytes(),
            ..inner.stats
        }
    }
}

const RECORDS_PER_PAGE: usize = 256;
const SETTLED_PER_PAGE: usize = 64;
const READ_ATTEMPTS: usize = 8;

impl<D: Disk> RaftLog<D> {
    fn scan_all(&self, cf: Cf) -> Result<Vec<(Bytes, Bytes)>, LogError> {
        self.disk.scan(cf, &[], None, usize::MAX).map_err(translate)
    }

    /// Every hot record in order.
    fn each_record(
        &self,
        mut visit: impl FnMut(u64, &Bytes) -> Result<(), LogError>,
    ) -> Result<(), LogError> {
        let mut start = keys::record(0);
        loop {
            let mut page = self
                .disk
                .scan(Cf::Log, &start, None, RECORDS_PER_PAGE)
                .map_err(translate)?;
            let Some((last, _)) = page.last() else {
                return Ok(());
            };
            start = keys::after(last);
            if planted!(LastRecordSkipped) && page.len() < RECORDS_PER_PAGE {
                page.pop();
            }
            for (key, value) in page {
                let sequence = keys::parse_record(&key).ok_or_else(|| {
                    LogError::Fatal("a key in the column family log is malformed".to_owned())
                })?;
                visit(sequence, &value)?;
            }
        }
    }

    fn read_runs(
        &self,
        group: GroupId,
        runs: &[Run],
        low: Index,
        high: Index,
        max_bytes: u64,
    ) -> Result<Option<Vec<Entry>>, LogError> {
        let (mut entries, mut bytes): (Vec<Entry>, u64) = (Vec::new(), 0);
        for run in runs {
            let from = low.max(run.first);
            let to = high.min(run.last.next());
            let left = max_bytes.saturating_sub(bytes);
            let Some(part) = self.read_run(group, run, from, to, left)? else {
                return Ok(None);
            };
            for entry in part {
                bytes = bytes.saturating_add(entry.size());
                if bytes > max_bytes && !entries.is_empty() {
                    return Ok(Some(entries));
                }
                if entry.index != low.plus(entries.len() as u64) {
                    return Err(missing(group, low, high));
                }
                entries.push(entry);
            }
        }
        Ok(Some(entries))
    }
}

impl Inner {
    /// After a write that failed for anything but lack of room, what the disk holds is not known: no later
    /// one may succeed.
    fn poison(&mut self, error: DiskError) -> LogError {
        let error = translate(error);
        if !matches!(error, LogError::DiskFull) {
            self.failed = Some(error.to_string());
        }
        error
    }

    /// What was written becomes the index's state; by the same function as recovery.
    fn take(
        &mut self,
        plan: Plan<'_>,
        sequence: u64,
        bytes: u64,
        hot: bool,
    ) -> Result<(), LogError> {
        let broken = |why: &str| LogError::Fatal(format!("log index: {why}"));
        for group in plan.detached {
            self.index.detach(group);
            self.index.groups.remove(&group);
        }
        for (group, state) in plan.states {
            load(&mut self.index, group, state);
        }
        if !hot {
            return Ok(());
        }
        // Held while its sections are taken, so that it cannot die in between.
        let groups = plan.sections.iter().map(|section| section.group).collect();
        self.index.records.begin(sequence, bytes, groups);
        for section in &plan.sections {
            self.index.apply(sequence, section).map_err(broken)?;
        }
        self.index.records.release(sequence);
        Ok(())
    }
}

fn load(index: &mut LogIndex, group: GroupId, state: Settled) {
    match state {
        Settled::Replica {
            replica,
            hard_state,
            truncated,
            runs,
            ..
        } => {
            let run = |(term, first, last): (Term, Index, Index)| Run {
                first,
                last,
                term,
                place: Place::Settled,
            };
            let runs: Vec<Run> = runs.into_iter().map(run).collect();
            index.runs += runs.len() as u64;
            let found = GroupIndex {
                replica,
                hard_state,
                truncated,
                runs,
                newest: None,
            };
            index.groups.insert(group, found);
            // From now on the replica's own id says which ids are gone.
            index.tombstones.remove(&group);
        }
        Settled::Tombstone { next_replica, .. } => {
            index.groups.remove(&group);
            index.tombstones.insert(group, next_replica);
        }
    }
}

/// The sequence number after one that is on the disk.
fn after(sequence: u64) -> Result<u64, LogError> {
    if sequence > record::LARGEST.0 {
        let why = "no log ever had so many records";
        return Err(cannot_trust(sequence, why));
    }
    Ok(sequence + 1)
}

fn cannot_trust(sequence: u64, why: &str) -> LogError {
    LogError::Fatal(format!(
        "log record {sequence} cannot be trusted ({why}): \
         this store must be rebuilt from the others"
    ))
}

/// The sections of a record that are not void.
fn decode_live(
    sequence: u64,
    value: &Bytes,
    as_of: &BTreeMap<GroupId, u64>,
) -> Result<Vec<Section<'static>>, LogError> {
    let mut sections = record::decode(value).map_err(|why| cannot_trust(sequence, why))?;
    sections.retain(|section| {
        as_of
            .get(&section.group)
            .is_none_or(|as_of| sequence > *as_of)
    });
    Ok(sections)
}

fn replay(
    index: &mut LogIndex,
    sequence: u64,
    value: &Bytes,
    as_of: &BTreeMap<GroupId, u64>,
) -> Result<(), LogError> {
    let live = decode_live(sequence, value, as_of)?;
    let groups = live.iter().map(|section| section.group).collect();
    let bytes = value.len() as u64;
    index.records.begin(sequence, bytes, groups);
    for section in &live {
        index
            .apply(sequence, section)
            .map_err(|why| cannot_trust(sequence, why))?;
    }
    index.records.release(sequence);
    Ok(())
}

fn found_replica(group: GroupId, found: &GroupIndex) -> RecoveredGroup {
    let mut terms = found.terms();
    // A first run may reach back behind the truncation mark.
    if let Some((_, first)) = terms.first_mut() {
        *first = (*first).max(found.truncated.index.next());
    }
    RecoveredGroup {
        group,
        replica: found.replica,
        hard_state: found.hard_state,
        truncated: found.truncated,
        last: found.last(),
        terms,
    }
}
