//! What is committed once stays: state machine safety and leader completeness (thesis sections 3.6.3, 3.6.4).
//!
//! * What any store applies at an index of a group every store applies there, once, in order, without a gap, and
//!   as it stands in its log.
//! * A replica never cuts from its log what it knows to be committed.
//! * Whoever leads in a term has everything that was committed in earlier ones.
//!
//! In which term an entry was committed is not seen. Whoever committed it had a durable vote of that term, so it
//! was at most the highest term that anybody had written when the entry was applied first: only terms above
//! that bound are judged.

use polyraft_core::{EntryId, EntryKind, Index, ReplicaId, RoleName, Term};
use polyraft_multiraft::env::ApplyItem;
use polyraft_multiraft::{AppliedState, GroupId, GroupMap, StoreId};

use super::Property;
use super::books::{Books, Kind, Log, Section, Slot, content_hash, is_of_leader, raft};
use crate::observe::Observation;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct CommittedStays {
    groups: GroupMap<Chosen>,
}

/// What was applied of one group, anywhere.
#[derive(Debug, Default)]
struct Chosen {
    /// By index; none where nothing was ever applied (before the first entry).
    entries: Vec<Option<Applied>>,
    /// The highest term whose leader was looked at.
    led: Term,
}

#[derive(Clone, Copy, Debug)]
struct Applied {
    slot: Slot,
    /// It was committed in this term or an earlier one.
    bound: Term,
}

impl Chosen {
    fn get(&self, index: Index) -> Option<&Applied> {
        let at = usize::try_from(index.0).ok()?;
        self.entries.get(at)?.as_ref()
    }

    /// Notes what is applied at an index.
    fn apply(&mut self, index: Index, applied: Applied) -> Result<(), String> {
        if let Some(known) = self.get(index) {
            if known.slot == applied.slot {
                return Ok(());
            }
            return Err(format!(
                "applied as {} is {:?}, elsewhere {:?}",
                index, applied.slot, known.slot
            ));
        }
        let at = usize::try_from(index.0).map_err(|_| format!("index {index}"))?;
        if at >= self.entries.len() {
            self.entries.resize(at + 1, None);
        }
        self.entries[at] = Some(applied);
        Ok(())
    }

    /// The last entry that was certainly committed in a term before `term`. Bounds grow with indexes, since each
    /// is the highest term of its time.
    fn last_before(&self, term: Term) -> Option<EntryId> {
        let before = |entry: &Option<Applied>| entry.is_none_or(|entry| entry.bound < term);
        let end = self.entries.partition_point(before);
        let index = Index(end.checked_sub(1)? as u64);
        let term = self.get(index)?.slot.term;
        Some(EntryId { term, index })
    }
}

impl CommittedStays {
    fn applied(
        &mut self,
        item: &ApplyItem,
        before: &AppliedState,
        books: &Books,
        store: StoreId,
    ) -> Result<(), String> {
        let (from, to) = (before.last, item.state.last);
        if to.index <= from.index {
            return Err(format!("applied up to {} behind {}", to.index, from.index));
        }
        let bound = books.term(item.group);
        let book = books.store(store);
        let log = book.and_then(|book| book.written.latest(item.group));
        let log = log.ok_or("applied without a log")?;
        let chosen = self.groups.entry(item.group).or_default();
        let mut commands = item.commands.iter();
        for index in (from.index.0 + 1..=to.index.0).map(Index) {
            let Some(slot) = log.slot(index).copied() else {
                return Err(format!("applied entry {index}, which is not in the log"));
            };
            if slot.kind == Kind::Command {
                let term = slot.term;
                let hash = |data: &[u8]| content_hash(EntryKind::Normal, data);
                let same = commands.next().is_some_and(|command| {
                    command.id == EntryId { term, index } && hash(&command.data) == slot.hash
                });
                if !same {
                    return Err(format!(
                        "entry {index} is left out, or not what is in the log"
                    ));
                }
            }
            chosen.apply(index, Applied { slot, bound })?;
        }
        if let Some(command) = commands.next() {
            return Err(format!("applied {:?}, which is not in the log", command.id));
        }
        if log.term(to.index) != Some(to.term) {
            return Err(format!("applied up to {to:?}, which is not in the log"));
        }
        Ok(())
    }

    /// What a snapshot contains was applied by somebody; where a new group begins, by its creation.
    fn restored(&mut self, state: &AppliedState) -> Result<(), String> {
        let chosen = self.groups.entry(state.descriptor.group).or_default();
        let (known, at) = (chosen.get(state.last.index), state.last);
        match known {
            Some(known) if known.slot.term == at.term => Ok(()),
            Some(known) => Err(format!(
                "holds what was applied up to {at:?}, elsewhere that entry is of term {}",
                known.slot.term
            )),
            None if chosen.entries.len() as u64 > at.index.0 => Ok(()),
            None if at == polyraft_multiraft::BOOTSTRAP => Ok(()),
            None => Err(format!(
                "holds what was applied up to {at:?}, which nobody applied"
            )),
        }
    }

    fn written(&self, section: &Section, books: &Books, store: StoreId) -> Result<(), String> {
        let (Some((first, _)), Some(before)) = (section.cut.first(), section.before) else {
            return Ok(());
        };
        let data = books
            .store(store)
            .and_then(|store| store.data.get(&section.group));
        let applied = data.map(|data| data.applied.last.index).unwrap_or_default();
        let commit = before.hard_state.commit;
        let chosen = self.groups.get(&section.group);
        let by = section
            .slots
            .last()
            .map(|slot| slot.term)
            .unwrap_or_default();
        let mut new = section.slots.iter();
        for (index, old) in &section.cut {
            if new.next() == Some(old) {
                continue;
            }
            let chosen = chosen.and_then(|chosen| chosen.get(*index));
            // Data of a snapshot is in place before the log is reset to it: until then the log may lack what is
            // applied, and be cut.
            let other = chosen.is_some_and(|chosen| chosen.slot != *old);
            if *index <= commit || (*index <= applied && !other) {
                return Err(format!(
                    "cuts entry {index} and what follows from {first} on, and knew it to be committed"
                ));
            }
            if chosen.is_some_and(|chosen| chosen.slot == *old && chosen.bound < by) {
                return Err(format!(
                    "cuts entry {index} of term {}, which was committed, for entries up to term {by}",
                    old.term
                ));
            }
        }
        Ok(())
    }

    fn leads(
        &mut self,
        group: GroupId,
        term: Term,
        replica: ReplicaId,
        log: Option<&Log>,
    ) -> Result<(), String> {
        let Some(chosen) = self.groups.get_mut(&group) else {
            return Ok(());
        };
        if term <= chosen.led {
            return Ok(());
        }
        chosen.led = term;
        // A message may leave late; a log that moved on tells nothing.
        let log = log.filter(|log| log.replica == replica && log.hard_state.term == term);
        let (Some(log), Some(last)) = (log, chosen.last_before(term)) else {
            return Ok(());
        };
        if log.holds(last) {
            return Ok(());
        }
        Err(format!(
            "replica {replica} leads in term {term} without {last:?}, which was committed before; its log: {:?}",
            log.brief()
        ))
    }
}

impl Property for CommittedStays {
    fn name(&self) -> &'static str {
        "committed-stays"
    }

    fn see(&mut self, seen: &Observation<'_>, books: &Books) -> Result<(), String> {
        match *seen {
            Observation::Applied { store, items } => {
                for (item, before) in items.iter().zip(&books.latest().before) {
                    let Some(before) = before else { continue };
                    let result = self.applied(item, &before.applied, books, store);
                    result.map_err(|why| told(item.group, store, &why))?;
                }
                Ok(())
            }
            Observation::Restored { store, state } => {
                let result = self.restored(state);
                result.map_err(|why| told(state.descriptor.group, store, &why))
            }
            Observation::RecoveredData { store, states } => states.iter().try_for_each(|state| {
                let result = self.restored(state);
                result.map_err(|why| told(state.descriptor.group, store, &why))
            }),
            Observation::Written { store, .. } => books.batch().iter().try_for_each(|section| {
                let result = self.written(section, books, store);
                result.map_err(|why| told(section.group, store, &why))
            }),
            Observation::Sent { from, message, .. } => {
                let Some(said) = raft(message).filter(|said| is_of_leader(said)) else {
                    return Ok(());
                };
                let group = message.group;
                let log = books.store(from).and_then(|s| s.written.logs.get(&group));
                let result = self.leads(group, said.term, said.from, log);
                result.map_err(|why| told(group, from, &why))
            }
            Observation::Published {
                store, replicas, ..
            } => {
                let leaders = replicas
                    .iter()
                    .filter(|r| r.basic.soft_state.role == RoleName::Leader);
                for leader in leaders {
                    let (group, term) = (leader.group, leader.basic.hard_state.term);
                    let log = books.store(store).and_then(|s| s.written.logs.get(&group));
                    let result = self.leads(group, term, leader.replica, log);
                    result.map_err(|why| told(group, store, &why))?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

fn told(group: GroupId, store: StoreId, why: &str) -> String {
    format!("group {group}, store {store}: {why}")
}
