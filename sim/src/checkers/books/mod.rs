//! Books of everything that crosses the seams of all stores, kept once for all checkers.
//!
//! The log of each store is kept twice: as written, and as it would certainly be after a power cut. What
//! may be lost is the journal between the two. Of the state machines, what is applied and how much of it is
//! certain.
//!
//! Invariants: nothing here was ever asked of the code under test, but for the parsing of changes of
//! membership and of ranges; after an observation was entered the books are as of after it, and what it
//! changed is beside them.

mod facts;
mod view;

use std::collections::BTreeMap;
use std::sync::Arc;

use polyraft_core::{
    ConfChange, ConfChangeV2, ConfState, Entry, EntryId, EntryKind, HardState, Index, Message,
    Payload, ReplicaId, Term,
};
use polyraft_multiraft::env::{
    ApplyItem, Body, GroupMessage, Lifecycle, LogBatch, RangeChange, Recovered, SplitRight,
};
use polyraft_multiraft::{AppliedState, GroupDescriptor, GroupId, GroupMap, RangeCommand, StoreId};

use self::facts::Facts;
use self::view::{Found, View};
pub(crate) use self::view::{Kind, Log, Section, Slot, content_hash, entries};
use crate::observe::Observation;

/// What a state machine holds of one group.
#[derive(Clone, Debug, Default)]
pub(crate) struct Data {
    pub(crate) applied: AppliedState,
    /// As much of it is certain.
    pub(crate) flushed: EntryId,
}

/// One store.
#[derive(Debug, Default)]
pub(crate) struct StoreBook {
    pub(crate) written: View,
    /// What every power cut would keep.
    pub(crate) durable: View,
    pub(crate) data: GroupMap<Data>,
    /// What is another group's by now, since a merge or a snapshot of that one has taken it over: as it was.
    pub(crate) absorbed: GroupMap<Data>,
    /// Batches that were written and are not certain, in order.
    journal: Vec<Written>,
    /// The power went; the log has not been found since.
    cut_off: bool,
    /// It is gone for ever; what it promised still counts.
    lost: bool,
}

/// A batch.
#[derive(Debug)]
struct Written {
    /// Whether it asked for a sync.
    sync: bool,
    sections: Vec<Section>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Books {
    stores: BTreeMap<StoreId, StoreBook>,
    facts: GroupMap<Facts>,
    /// The highest term that a hard state of the group was written with, on any store.
    terms: GroupMap<Term>,
    /// Where each replica was created.
    owners: BTreeMap<(GroupId, ReplicaId), StoreId>,
    /// Changes of membership, and of ranges, in entries.
    changes: Changes,
    /// What the last observation was about.
    latest: Latest,
}

/// What entries say that are not commands.
#[derive(Debug, Default)]
struct Changes {
    members: BTreeMap<(GroupId, Index, Term), ConfChangeV2>,
    ranges: BTreeMap<(GroupId, Index, Term), RangeCommand>,
}

/// What an observation changed, and what was before.
#[derive(Debug, Default)]
pub(crate) struct Latest {
    /// Data of the groups in `Applied` (in its order), `Restored`, or `Destroyed`.
    pub(crate) before: Vec<Option<Data>>,
    /// Data of groups that were taken over: by the merge in each item of `Applied` (none if it has none), or
    /// by `Restored` in the order of `subsumes`.
    pub(crate) absorbed: Vec<Option<Data>>,
    /// A group that a split in `Applied` has made where its data was already.
    pub(crate) overwritten: Option<GroupId>,
    /// What the data was before `RecoveredData`.
    pub(crate) lost: GroupMap<Data>,
    /// Entries in an `Append` that was sent.
    pub(crate) sent: Vec<Slot>,
    /// An entry that contradicts what was seen of it before.
    pub(crate) conflict: Option<String>,
    /// Entries that were written by somebody who neither made them nor could have been sent them.
    pub(crate) from_nowhere: Option<String>,
    /// Something was lost that was certain, or written that does not fit.
    pub(crate) impossible: Option<String>,
    /// Where the batch was written.
    written_on: StoreId,
}

/// The new groups of a split.
pub(crate) fn rights(item: &ApplyItem) -> impl Iterator<Item = &SplitRight> {
    let rights = match &item.range_change {
        Some(RangeChange::Split { rights }) => rights.as_slice(),
        _ => &[],
    };
    rights.iter()
}

/// The group that a merge takes over.
pub(crate) fn absorbed(item: &ApplyItem) -> Option<&AppliedState> {
    match &item.range_change {
        Some(RangeChange::Merge { right }) => Some(right),
        _ => None,
    }
}

/// The message of the core within one between stores.
pub(crate) fn raft(message: &GroupMessage) -> Option<&Message> {
    match &message.body {
        Body::Raft(message) | Body::Sleep(message) => Some(message),
        Body::Tombstone { .. } => None,
    }
}

/// Whether only a leader says so.
pub(crate) fn is_of_leader(message: &Message) -> bool {
    matches!(
        message.payload,
        Payload::Append { .. }
            | Payload::Heartbeat { .. }
            | Payload::Snapshot(_)
            | Payload::TimeoutNow
            | Payload::ReadIndexResponse { .. }
    )
}

impl Books {
    /// A store, if it ever did anything.
    pub(crate) fn store(&self, store: StoreId) -> Option<&StoreBook> {
        self.stores.get(&store)
    }

    /// What the last observation changed.
    pub(crate) const fn latest(&self) -> &Latest {
        &self.latest
    }

    /// The batch of the last `Written`.
    pub(crate) fn batch(&self) -> &[Section] {
        let store = self.stores.get(&self.latest.written_on);
        let batch = store.and_then(|store| store.journal.last());
        batch.map_or(&[], |batch| batch.sections.as_slice())
    }

    /// The highest term that anybody has written for a group.
    pub(crate) fn term(&self, group: GroupId) -> Term {
        self.terms.get(&group).copied().unwrap_or_default()
    }

    /// The store on which a replica was created.
    pub(crate) fn owner(&self, group: GroupId, replica: ReplicaId) -> Option<StoreId> {
        self.owners.get(&(group, replica)).copied()
    }

    /// The highest index at which an entry of a group was ever seen.
    pub(crate) fn last_seen(&self, group: GroupId) -> Index {
        self.facts.get(&group).map(Facts::last).unwrap_or_default()
    }

    /// How far the data of every replica of a group is certain, on every store that is not lost.
    pub(crate) fn flushed(&self, group: GroupId) -> impl Iterator<Item = Index> + '_ {
        let stores = self.stores.values().filter(|store| !store.lost);
        stores.filter_map(move |store| Some(store.data.get(&group)?.flushed.index))
    }

    /// The change of membership in an entry.
    pub(crate) fn change(&self, group: GroupId, id: EntryId) -> Option<&ConfChangeV2> {
        self.changes.members.get(&(group, id.index, id.term))
    }

    /// The change of the range in an entry.
    pub(crate) fn range_command(&self, group: GroupId, id: EntryId) -> Option<&RangeCommand> {
        self.changes.ranges.get(&(group, id.index, id.term))
    }

    /// Entries anywhere that merge a group into another one: that one, the entry, and the freeze.
    pub(crate) fn merges_of(
        &self,
        right: GroupId,
    ) -> impl Iterator<Item = (GroupId, EntryId, EntryId)> + '_ {
        let all = self.changes.ranges.iter();
        all.filter_map(move |((left, index, term), command)| match command {
            RangeCommand::Merge { right: gone, .. } if gone.group == right => {
                let (term, index) = (*term, *index);
                Some((*left, EntryId { term, index }, gone.frozen?.at))
            }
            _ => None,
        })
    }

    /// What is certain of the log of a replica, dead or alive, wherever it lives.
    pub(crate) fn durable(&self, group: GroupId, replica: ReplicaId) -> Option<&Log> {
        let store = self.stores.get(&self.owner(group, replica)?)?;
        store.durable.log_of(group, replica)
    }

    /// Enters what happened. What cannot be is told by [`Latest::impossible`].
    pub(crate) fn enter(&mut self, seen: &Observation<'_>) {
        self.latest.sent.clear();
        if let Err(why) = self.try_enter(seen) {
            self.latest.impossible.get_or_insert(why);
        }
    }

    fn try_enter(&mut self, seen: &Observation<'_>) -> Result<(), String> {
        match *seen {
            Observation::Sent { message, .. } => {
                self.note_sent(message);
                Ok(())
            }
            Observation::Written { store, batch } => self.write(store, batch),
            Observation::Synced { store } => self.book(store).sync(),
            Observation::Crashed { store, power } => {
                let book = self.book(store);
                book.cut_off = power;
                // Whatever went through the write-ahead log of a killed process is kept.
                if power {
                    Ok(())
                } else {
                    book.settle(book.journal.len())
                }
            }
            Observation::RecoveredLog { store, found } => {
                let name = |why: String| format!("store {store}: {why}");
                self.book(store).recover(found).map_err(name)
            }
            Observation::RecoveredData { store, states } => {
                let (result, lost) = self.book(store).recover_data(states);
                self.latest.lost = lost;
                result.map_err(|why| format!("store {store}: {why}"))
            }
            Observation::Created { store, state } => {
                self.load(store, state);
                Ok(())
            }
            Observation::Restored {
                store,
                state,
                subsumes,
            } => {
                self.load(store, state);
                let book = self.book(store);
                let gone = subsumes.iter().map(|gone| gone.group);
                let gone: Vec<_> = gone.map(|group| book.absorb(group)).collect();
                // It was durable, with everything before it.
                for data in book.absorbed.values_mut() {
                    data.flushed = data.applied.last;
                }
                self.latest.absorbed = gone;
                Ok(())
            }
            Observation::Applied { store, items } => {
                self.apply(store, items);
                Ok(())
            }
            Observation::Destroyed { store, descriptor } => {
                self.destroy(store, descriptor);
                Ok(())
            }
            Observation::Flushed { store } => {
                let book = self.book(store);
                for data in book.data.values_mut().chain(book.absorbed.values_mut()) {
                    data.flushed = data.applied.last;
                }
                Ok(())
            }
            Observation::Lost { store } => {
                self.book(store).lost = true;
                Ok(())
            }
            Observation::Starting { .. }
            | Observation::Founded { .. }
            | Observation::Delivered { .. }
            | Observation::Published { .. }
            | Observation::ReadAsked { .. }
            | Observation::ReadPermitted { .. }
            | Observation::Proposed { .. }
            | Observation::Permitted { .. }
            | Observation::Divided { .. }
            | Observation::United { .. }
            | Observation::RecoveredMerges { .. }
            | Observation::Group { .. } => Ok(()),
        }
    }

    fn book(&mut self, store: StoreId) -> &mut StoreBook {
        self.stores.entry(store).or_default()
    }

    fn note_sent(&mut self, message: &GroupMessage) {
        let group = message.group;
        let Some(Payload::Append { prev, entries, .. }) = raft(message).map(|m| &m.payload) else {
            return;
        };
        let facts = self.facts.entry(group).or_default();
        let (mut before, mut index) = (prev.term, prev.index);
        for entry in entries {
            let slot = Slot::of(entry);
            index = index.next();
            if let Err(why) = facts.note(index, before, slot) {
                let conflict = format!("group {group}, append sent: {why}");
                self.latest.conflict.get_or_insert(conflict);
            }
            before = slot.term;
            self.latest.sent.push(slot);
            note_change(&mut self.changes, group, entry);
        }
    }

    fn write(&mut self, store: StoreId, batch: &LogBatch) -> Result<(), String> {
        let mut sections: Vec<Section> = batch.sections.iter().map(Section::new).collect();
        let book = self.stores.entry(store).or_default();
        let mut result = Ok(());
        for (section, written) in sections.iter_mut().zip(&batch.sections) {
            let group = section.group;
            result = result.and(book.written.apply(section));
            if let Some(Lifecycle::Create { replica }) = section.lifecycle {
                self.owners.entry((group, replica)).or_insert(store);
            }
            if let Some(hard_state) = section.hard_state {
                let term = self.terms.entry(group).or_default();
                *term = (*term).max(hard_state.term);
            }
            note_written(&mut self.facts, &mut self.latest, store, section);
            for entry in &written.entries {
                note_change(&mut self.changes, group, entry);
            }
        }
        book.journal.push(Written {
            sync: batch.sync,
            sections,
        });
        self.latest.written_on = store;
        result.map_err(|why| format!("store {store}: {why}"))
    }

    fn load(&mut self, store: StoreId, state: &AppliedState) {
        let data = Data {
            applied: state.clone(),
            flushed: state.last,
        };
        let group = state.descriptor.group;
        let before = self.book(store).data.insert(group, data);
        self.latest.before.clear();
        self.latest.before.push(before);
    }

    fn apply(&mut self, store: StoreId, items: &[ApplyItem]) {
        self.latest.before.clear();
        self.latest.absorbed.clear();
        self.latest.overwritten = None;
        let book = self.stores.entry(store).or_default();
        for item in items {
            let data = book.data.get_mut(&item.group);
            self.latest
                .before
                .push(data.as_ref().map(|data| Data::clone(data)));
            if let Some(data) = data {
                data.applied = item.state.clone();
            }
            for right in rights(item).filter(|right| right.keep) {
                let group = right.state.descriptor.group;
                let data = Data {
                    applied: right.state.clone(),
                    flushed: EntryId::default(),
                };
                if book.data.insert(group, data).is_some() {
                    self.latest.overwritten.get_or_insert(group);
                }
            }
            let gone = absorbed(item).map(|right| right.descriptor.group);
            let gone = gone.and_then(|right| book.absorb(right));
            self.latest.absorbed.push(gone);
        }
    }

    fn destroy(&mut self, store: StoreId, descriptor: &GroupDescriptor) {
        let before = self.book(store).data.remove(&descriptor.group);
        self.latest.before.clear();
        self.latest.before.push(before);
    }
}

fn note_change(changes: &mut Changes, group: GroupId, entry: &Entry) {
    let change = match entry.kind {
        EntryKind::Normal => return,
        EntryKind::Host => {
            if let Ok(command) = RangeCommand::decode(&entry.data) {
                let at = (group, entry.index, entry.term);
                changes.ranges.insert(at, command);
            }
            return;
        }
        EntryKind::ConfChange => ConfChange::decode(&entry.data).map(ConfChange::into_v2),
        EntryKind::ConfChangeV2 => ConfChangeV2::decode(&entry.data),
    };
    if let Ok(change) = change {
        let at = (group, entry.index, entry.term);
        changes.members.insert(at, change);
    }
}

/// Enters the entries of a section; who writes one that was never sent must have made it, as the leader of
/// its term.
fn note_written(
    facts: &mut GroupMap<Facts>,
    latest: &mut Latest,
    store: StoreId,
    section: &Section,
) {
    if section.slots.is_empty() {
        return;
    }
    let group = section.group;
    let facts = facts.entry(group).or_default();
    let leads = |term: Term| {
        let own =
            |log: &view::Brief| log.hard_state.term == term && log.hard_state.vote == log.replica;
        section.before.iter().chain(&section.after).any(own)
    };
    for (index, prev, slot) in section.entries() {
        match facts.note(index, prev, slot) {
            Ok(true) => {}
            Ok(false) if leads(slot.term) => {}
            Ok(false) => {
                let term = slot.term;
                latest.from_nowhere.get_or_insert(format!(
                    "group {group}: store {store} has written entry {index} of term {term}, which \
                     nobody has ever sent in this group, and which it did not make itself"
                ));
            }
            Err(why) => {
                let conflict = format!("group {group}, log of store {store}: {why}");
                latest.conflict.get_or_insert(conflict);
            }
        }
    }
}

impl StoreBook {
    /// What asked for a sync is certain, and everything before it.
    fn sync(&mut self) -> Result<(), String> {
        let asked = self.journal.iter().rposition(|batch| batch.sync);
        self.settle(asked.map_or(0, |last| last + 1))
    }

    /// So many batches are certain.
    fn settle(&mut self, count: usize) -> Result<(), String> {
        let mut result = Ok(());
        for mut section in self.journal.drain(..count).flat_map(|batch| batch.sections) {
            result = result.and(self.durable.apply(&mut section));
        }
        result
    }

    /// What was found must be what was certain and, if the power went, a prefix of the rest; else all of it.
    fn recover(&mut self, found: &Recovered) -> Result<(), String> {
        let found = Found::new(found);
        if !std::mem::take(&mut self.cut_off) {
            let differ = self.written.differences(&found);
            return differ.first().map_or(Ok(()), |group| {
                Err(self
                    .written
                    .tell(*group, &found, "it is not what was written"))
            });
        }
        let mut differ = self.durable.differences(&found);
        for batch in std::mem::take(&mut self.journal) {
            if differ.is_empty() {
                break;
            }
            for mut section in batch.sections {
                self.durable.apply(&mut section)?;
                let group = section.group;
                match self.durable.is_found(group, &found) {
                    true => differ.remove(&group),
                    false => differ.insert(group),
                };
            }
        }
        self.written = self.durable.clone();
        let why =
            "it is neither what was certain nor that with a beginning of what was written since";
        let differ = differ.first();
        differ.map_or(Ok(()), |group| Err(self.durable.tell(*group, &found, why)))
    }

    /// The data of a group is another one's from now on.
    fn absorb(&mut self, group: GroupId) -> Option<Data> {
        let data = self.data.remove(&group)?;
        self.absorbed.insert(group, data.clone());
        Some(data)
    }

    /// How much of a group's data is certain; of one that was taken over, how much of it was.
    pub(crate) fn certain(&self, group: GroupId) -> Option<EntryId> {
        let data = self.data.get(&group);
        Some(data.or_else(|| self.absorbed.get(&group))?.flushed)
    }

    /// Whether there is a log of a group that goes on from its data.
    fn has_begun(&self, group: GroupId) -> bool {
        let log = self.durable.logs.get(&group);
        log.is_some_and(|log| log.truncated != EntryId::default())
    }

    /// Data may only be as old as what was flushed, and may only be gone if its replica is.
    fn recover_data(&mut self, states: &[AppliedState]) -> (Result<(), String>, GroupMap<Data>) {
        let lost = std::mem::take(&mut self.data);
        self.absorbed.clear();
        for state in states {
            let data = Data {
                applied: state.clone(),
                flushed: state.last,
            };
            self.data.insert(state.descriptor.group, data);
        }
        let mut result = Ok(());
        for (group, old) in &lost {
            let (flushed, at) = (old.flushed, old.applied.last);
            match self.data.get(group) {
                Some(new) if new.flushed.index >= flushed.index => {}
                Some(new) => {
                    let found = new.flushed.index;
                    result = Err(format!(
                        "group {group} is applied up to {found}, and was flushed up to {}",
                        flushed.index
                    ));
                }
                // A split that was taken back; a vote may have made a log without data.
                None if flushed == EntryId::default() && !self.has_begun(*group) => {}
                None if self.durable.logs.contains_key(group) => {
                    result = Err(format!(
                        "the data of group {group}, applied to {at:?}, is gone"
                    ));
                }
                None => {}
            }
        }
        (result, lost)
    }
}

/// The configurations after each change among the entries of `(from, to]`, as far as they are known, with the
/// index of the change.
pub(crate) fn changes_of_membership(
    books: &Books,
    group: GroupId,
    log: &Log,
    from: &AppliedState,
    to: &AppliedState,
) -> Vec<(Index, Arc<ConfState>)> {
    let (mut all, mut last) = (Vec::new(), Arc::clone(&from.conf_state));
    for index in (from.last.index.0 + 1..=to.last.index.0).map(Index) {
        let Some(slot) = log.slot(index).filter(|slot| slot.kind == Kind::Change) else {
            continue;
        };
        let term = slot.term;
        let change = books.change(group, EntryId { term, index });
        if let Some(next) = change.and_then(|change| last.apply(change).ok()) {
            last = Arc::new(next);
            all.push((index, Arc::clone(&last)));
        }
    }
    if last != to.conf_state {
        all.push((to.last.index, Arc::clone(&to.conf_state)));
    }
    all
}

/// What a hard state says, for people.
pub(crate) fn say(state: HardState) -> String {
    let HardState { term, vote, commit } = state;
    format!("term {term}, vote for {vote}, commit {commit}")
}
