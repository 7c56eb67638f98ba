//! The logs of one store as they are after some of its writes: what the contract of
//! [`polyraft_multiraft::env::LogEngine`] makes of sections, with a hash in place of each payload.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use polyraft_core::{Entry, EntryId, EntryKind, HardState, Index, ReplicaId, Term};
use polyraft_multiraft::env::{Lifecycle, LogSection, Recovered, RecoveredGroup};
use polyraft_multiraft::{GroupId, GroupMap};

/// What an entry is to the state machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nothing: a new leader's entry.
    #[default]
    Empty,
    /// A command.
    Command,
    /// A change of membership.
    Change,
    /// A change of the range.
    Host,
}

/// What is kept of an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) term: Term,
    /// Of kind and payload.
    pub(crate) hash: u64,
    pub(crate) kind: Kind,
}

impl Slot {
    pub(crate) fn of(entry: &Entry) -> Self {
        let kind = match entry.kind {
            EntryKind::Normal if entry.data.is_empty() => Kind::Empty,
            EntryKind::Normal => Kind::Command,
            EntryKind::Host => Kind::Host,
            EntryKind::ConfChange | EntryKind::ConfChangeV2 => Kind::Change,
        };
        Self {
            term: entry.term,
            hash: content_hash(entry.kind, &entry.data),
            kind,
        }
    }
}

/// Equal for equal contents; one multiplication for eight bytes, since all of the world's payloads pass here
/// several times.
pub(crate) fn content_hash(kind: EntryKind, data: &[u8]) -> u64 {
    let fold = |hash: u64, word: u64| {
        let product = u128::from(hash ^ word) * 0x9E37_79B9_7F4A_7C15;
        product as u64 ^ (product >> 64) as u64
    };
    let kind = match kind {
        EntryKind::Normal => 1,
        EntryKind::ConfChange => 2,
        EntryKind::ConfChangeV2 => 3,
        EntryKind::Host => 4,
    };
    let (words, rest) = data.as_chunks::<8>();
    let hash = fold(kind, data.len() as u64);
    let hash = words
        .iter()
        .fold(hash, |hash, word| fold(hash, u64::from_le_bytes(*word)));
    rest.iter()
        .fold(hash, |hash, byte| fold(hash, u64::from(*byte)))
}

/// The log of one replica.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log {
    pub(crate) replica: ReplicaId,
    pub(crate) hard_state: HardState,
    /// The entry before the first slot.
    pub(crate) truncated: EntryId,
    slots: VecDeque<Slot>,
}

impl Log {
    pub(crate) fn last(&self) -> EntryId {
        match self.slots.back() {
            None => self.truncated,
            Some(slot) => EntryId {
                term: slot.term,
                index: Index(self.truncated.index.0 + self.slots.len() as u64),
            },
        }
    }

    pub(crate) fn slot(&self, index: Index) -> Option<&Slot> {
        let at = index.0.checked_sub(self.truncated.index.0 + 1)?;
        self.slots.get(usize::try_from(at).ok()?)
    }

    /// The term at an index, if the log still knows it.
    pub(crate) fn term(&self, index: Index) -> Option<Term> {
        if index == self.truncated.index {
            return Some(self.truncated.term);
        }
        self.slot(index).map(|slot| slot.term)
    }

    /// Whether an entry is there, or was there and is contained in what the log begins behind.
    pub(crate) fn holds(&self, id: EntryId) -> bool {
        id.index < self.truncated.index || self.term(id.index) == Some(id.term)
    }

    /// The last entry of a term, if there is one.
    pub(crate) fn last_of(&self, term: Term) -> Option<Index> {
        let count = self.slots.partition_point(|slot| slot.term <= term);
        let index = Index(self.truncated.index.0 + count as u64);
        (self.term(index) == Some(term)).then_some(index)
    }

    pub(crate) fn brief(&self) -> Brief {
        Brief {
            replica: self.replica,
            hard_state: self.hard_state,
            truncated: self.truncated,
            last: self.last(),
        }
    }

    fn cut_from(&mut self, index: Index) -> Vec<(Index, Slot)> {
        let keep = index.0.saturating_sub(self.truncated.index.0 + 1);
        let keep = usize::try_from(keep).unwrap_or(usize::MAX);
        if keep >= self.slots.len() {
            return Vec::new();
        }
        let numbers = (index.0..).map(Index);
        numbers.zip(self.slots.split_off(keep)).collect()
    }

    fn truncate(&mut self, to: EntryId) {
        let gone = to.index.0.saturating_sub(self.truncated.index.0);
        self.slots.drain(..usize::try_from(gone).unwrap_or(0));
        self.truncated = to;
    }

    fn is(&self, found: &RecoveredGroup) -> bool {
        let same = self.replica == found.replica
            && self.hard_state == found.hard_state
            && self.truncated == found.truncated
            && self.last() == found.last;
        if !same {
            return false;
        }
        let mut runs = found.terms.iter().peekable();
        let (mut index, mut term) = (self.truncated.index, None);
        self.slots.iter().all(|slot| {
            index = index.next();
            while let Some((next, _)) = runs.next_if(|(_, first)| *first <= index) {
                term = Some(*next);
            }
            term == Some(slot.term)
        })
    }
}

/// A log without its entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Brief {
    pub(crate) replica: ReplicaId,
    pub(crate) hard_state: HardState,
    pub(crate) truncated: EntryId,
    pub(crate) last: EntryId,
}

/// A section as it was written, with what it found and what it made of it.
#[derive(Debug, Default)]
pub(crate) struct Section {
    pub(crate) group: GroupId,
    pub(crate) lifecycle: Option<Lifecycle>,
    pub(crate) reset: Option<EntryId>,
    pub(crate) hard_state: Option<HardState>,
    /// The index of the first slot.
    pub(crate) first: Index,
    pub(crate) slots: Vec<Slot>,
    pub(crate) truncate: Option<EntryId>,
    /// The replica before; none: there was none.
    pub(crate) before: Option<Brief>,
    /// The same after it.
    pub(crate) after: Option<Brief>,
    /// The lowest id that could be created before.
    pub(crate) bound: ReplicaId,
    /// The term of the entry before the first slot.
    pub(crate) prev_term: Term,
    /// Slots that were there and fell: from `first` on.
    pub(crate) cut: Vec<(Index, Slot)>,
}

impl Section {
    pub(crate) fn new(section: &LogSection) -> Self {
        Self {
            group: section.group,
            lifecycle: section.lifecycle,
            reset: section.reset,
            hard_state: section.hard_state,
            first: section.entries.first().map(|e| e.index).unwrap_or_default(),
            slots: section.entries.iter().map(Slot::of).collect(),
            truncate: section.truncate,
            ..Self::default()
        }
    }

    /// The slots with their indexes and the term before each.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (Index, Term, Slot)> + '_ {
        entries(self.first, self.prev_term, &self.slots)
    }
}

/// Slots with their indexes and the term before each.
pub(crate) fn entries(
    first: Index,
    prev: Term,
    slots: &[Slot],
) -> impl Iterator<Item = (Index, Term, Slot)> + '_ {
    let before = std::iter::once(prev).chain(slots.iter().map(|slot| slot.term));
    let numbers = (first.0..).map(Index);
    numbers
        .zip(before)
        .zip(slots)
        .map(|((index, prev), slot)| (index, prev, *slot))
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    pub(crate) logs: GroupMap<Log>,
    /// Of groups without a replica: the lowest id that may be created.
    pub(crate) tombstones: GroupMap<ReplicaId>,
    /// Replicas that were destroyed, as they were last. What they promised before still counts.
    graves: BTreeMap<(GroupId, ReplicaId), Log>,
}

impl View {
    /// The log of a replica, dead or alive.
    pub(crate) fn log_of(&self, group: GroupId, replica: ReplicaId) -> Option<&Log> {
        match self.logs.get(&group) {
            Some(log) if log.replica == replica => Some(log),
            _ => self.graves.get(&(group, replica)),
        }
    }

    /// The log of the newest replica of a group, dead or alive: what was committed before its end is applied
    /// after it.
    pub(crate) fn latest(&self, group: GroupId) -> Option<&Log> {
        let all = (group, ReplicaId::NONE)..=(group, ReplicaId(u64::MAX));
        let dead = || self.graves.range(all).next_back().map(|(_, log)| log);
        self.logs.get(&group).or_else(dead)
    }

    /// Does what the section says, and notes in it what it found.
    ///
    /// # Errors
    /// It does not fit.
    pub(crate) fn apply(&mut self, section: &mut Section) -> Result<(), String> {
        let group = section.group;
        section.before = self.logs.get(&group).map(Log::brief);
        let dead = self.tombstones.get(&group).copied();
        section.bound = dead.unwrap_or_default();
        if let Some(before) = section.before {
            section.bound = section.bound.max(before.replica);
        }
        match section.lifecycle {
            Some(Lifecycle::Create { replica }) => {
                self.bury(group);
                self.tombstones.remove(&group);
                let log = Log {
                    replica,
                    ..Log::default()
                };
                self.logs.insert(group, log);
            }
            Some(Lifecycle::Destroy { next_replica }) => {
                self.bury(group);
                self.tombstones.insert(group, next_replica);
                section.after = None;
                return Ok(());
            }
            None => {}
        }
        let Some(log) = self.logs.get_mut(&group) else {
            return Err(format!("group {group}: written without a replica"));
        };
        change(log, section).map_err(|why| format!("group {group}: {why}"))?;
        section.after = Some(log.brief());
        Ok(())
    }

    fn bury(&mut self, group: GroupId) {
        if let Some(log) = self.logs.remove(&group) {
            self.graves.insert((group, log.replica), log);
        }
    }

    /// Whether a group was found as it is here.
    pub(crate) fn is_found(&self, group: GroupId, found: &Found<'_>) -> bool {
        let logs = match (self.logs.get(&group), found.logs.get(&group)) {
            (Some(log), Some(found)) => log.is(found),
            (None, None) => true,
            _ => false,
        };
        logs && self.tombstones.get(&group) == found.tombstones.get(&group)
    }

    /// Groups that were not found as they are here.
    pub(crate) fn differences(&self, found: &Found<'_>) -> BTreeSet<GroupId> {
        let known = self.logs.keys().chain(self.tombstones.keys());
        let all = known
            .chain(found.logs.keys())
            .chain(found.tombstones.keys());
        all.copied()
            .filter(|group| !self.is_found(*group, found))
            .collect()
    }

    /// What was found of a group and what is here, for people.
    pub(crate) fn tell(&self, group: GroupId, found: &Found<'_>, why: &str) -> String {
        format!(
            "the log of group {group} was found, and {why}: found {:?}, tombstone {:?}; \
             known {:?}, tombstone {:?}",
            found.logs.get(&group),
            found.tombstones.get(&group),
            self.logs.get(&group).map(Log::brief),
            self.tombstones.get(&group),
        )
    }
}

fn change(log: &mut Log, section: &mut Section) -> Result<(), String> {
    if let Some(reset) = section.reset {
        log.slots.clear();
        log.truncated = reset;
    }
    if let Some(hard_state) = section.hard_state {
        log.hard_state = hard_state;
    }
    if !section.slots.is_empty() {
        let (first, last) = (section.first, log.last().index);
        if first <= log.truncated.index || first > last.next() {
            return Err(format!("entries from {first} on written behind {last}"));
        }
        section.prev_term = log.term(first.prev()).unwrap_or_default();
        section.cut = log.cut_from(first);
        log.slots.extend(&section.slots);
    }
    if let Some(truncate) = section.truncate
        && truncate.index > log.truncated.index
    {
        if log.term(truncate.index) != Some(truncate.term) {
            return Err(format!(
                "truncated to {truncate:?}, which is not in the log"
            ));
        }
        log.truncate(truncate);
    }
    Ok(())
}

/// What a start has found, by group.
pub(crate) struct Found<'a> {
    pub(crate) logs: GroupMap<&'a RecoveredGroup>,
    pub(crate) tombstones: GroupMap<ReplicaId>,
}

impl<'a> Found<'a> {
    pub(crate) fn new(found: &'a Recovered) -> Self {
        let logs = found.groups.iter().map(|log| (log.group, log));
        Self {
            logs: logs.collect(),
            tombstones: found.tombstones.iter().copied().collect(),
        }
    }
}
