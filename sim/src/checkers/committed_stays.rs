//! What is committed once stays: state machine safety and leader completeness (thesis sections 3.6.3, 3.6.4).
//!
//! * What any store applies at an index of a group every store applies there, once, in order, without a
//!   gap, and as it stands in its log.
//! * A replica never cuts from its log what it knows to be committed.
//! * Whoever leads in a term has everything that was committed in earlier ones.
//!
//! In which term an entry was committed is not seen. Whoever committed it had a durable vote of that term,
//! so it was at most the highest term that anybody had written when the entry was applied first: only terms
//! above that bound are judged.

use std::collections::BTreeMap;

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
    /// Terms of entries that somebody took for committed without having applied them yet, by index.
    claimed: BTreeMap<Index, Term>,
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
        let term = applied.slot.term;
        if let Some(claimed) = self
            .claimed
            .remove(&index)
            .filter(|claimed| *claimed != term)
        {
            return Err(format!(
                "applied as {index} is an entry of term {term}, one of term {claimed} was committed"
            ));
        }
        let at = usize::try_from(index.0).map_err(|_| format!("index {index}"))?;
        if at >= self.entries.len() {
            self.entries.resize(at + 1, None);
        }
        self.entries[at] = Some(applied);
        Ok(())
    }

    /// Somebody knows that an entry of this term is committed.
    fn claim(&mut self, id: EntryId) -> Result<(), String> {
        let EntryId { term, index } = id;
        let known = match self.get(index) {
            Some(applied) => applied.slot.term,
            None => *self.claimed.entry(index).or_insert(term),
        };
        if known == term {
            return Ok(());
        }
        Err(format!(
            "takes entry {index} of term {term} for committed, and that is one of term {known}"
        ))
    }

    /// The last entry that was certainly committed in a term before `term`. Bounds grow with indexes, since
    /// each is the highest term of its time.
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
            // Data of a snapshot is in place before the log is reset to it: until then the log may lack
            // what is applied, and be cut.
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

    /// Who writes a commit index has the entry there.
    fn claims(&mut self, section: &Section, log: Option<&Log>) -> Result<(), String> {
        let (Some(state), Some(log)) = (section.hard_state, log) else {
            return Ok(());
        };
        let index = state.commit;
        match log.term(index).filter(|_| index > log.truncated.index) {
            Some(term) => {
                let chosen = self.groups.entry(section.group).or_default();
                chosen.claim(EntryId { term, index })
            }
            None => Ok(()),
        }
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
            "replica {replica} leads in term {term} without {last:?}, which was committed before; \
             its log: {:?}",
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
            Observation::Restored { store, state, .. } => {
                let result = self.restored(state);
                result.map_err(|why| told(state.descriptor.group, store, &why))
            }
            Observation::RecoveredData { store, states } => states.iter().try_for_each(|state| {
                let result = self.restored(state);
                result.map_err(|why| told(state.descriptor.group, store, &why))
            }),
            Observation::Written { store, .. } => books.batch().iter().try_for_each(|section| {
                let book = books.store(store);
                let log = book.and_then(|book| book.written.logs.get(&section.group));
                self.written(section, books, store)
                    .and_then(|()| self.claims(section, log))
                    .map_err(|why| told(section.group, store, &why))
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

#[cfg(test)]
mod tests {
    use super::super::testing::{
        GROUP, Scene, append, caught, destroy_section, entries_section, entry, hard, hard_section,
        heartbeat, state, summary, turn,
    };
    use super::*;

    /// Replica 1 leads in term 2; entries 3 (of the leader), 4 and 5 are on stores 1 and 2.
    fn scene() -> Scene {
        let mut scene = Scene::of(CommittedStays::default()).begun();
        scene.elect(1, 2, 2);
        scene.replicate(1, &[2], (1, 2), &three());
        scene
    }

    fn three() -> [polyraft_core::Entry; 3] {
        [entry(2, 3, ""), entry(2, 4, "a"), entry(2, 5, "b")]
    }

    #[test]
    fn everybody_applies_the_same_and_again_after_a_crash() {
        let mut scene = scene();
        scene.apply(1, turn(&three()[..2])).unwrap();
        scene.apply(1, turn(&three()[2..])).unwrap();
        scene.apply(2, turn(&three())).unwrap();
        scene.crash(1, true).unwrap();
        scene.found_data(1, &[state(2, 4)]).unwrap();
        scene.apply(1, turn(&three()[2..])).unwrap();
        scene.restored(3, &state(2, 5)).unwrap();
    }

    #[test]
    fn different_entries_applied_are_seen() {
        let mut scene = scene();
        scene.apply(1, turn(&three())).unwrap();
        let other = [entry(2, 3, ""), entry(3, 4, "x"), entry(3, 5, "y")];
        scene.durable(3, hard_section(3, 3, 2));
        scene.durable(3, entries_section(&other));
        caught(&scene.apply(3, turn(&other)), "elsewhere");
    }

    #[test]
    fn other_terms_are_seen_even_if_nobody_sees_the_commands() {
        let mut scene = scene();
        scene.apply(1, turn(&three()[..1])).unwrap();
        scene.durable(3, entries_section(&[entry(3, 3, "")]));
        caught(&scene.apply(3, turn(&[entry(3, 3, "")])), "elsewhere");
    }

    #[test]
    fn what_is_not_in_the_log_is_not_applied() {
        for (wrong, words) in [
            (
                vec![entry(2, 3, ""), entry(2, 4, "x")],
                "not what is in the log",
            ),
            (vec![entry(2, 4, "a"), entry(2, 4, "a")], "not in the log"),
            (vec![entry(2, 4, ""), entry(2, 5, "b")], "is left out"),
            (vec![entry(2, 6, "c")], "not what is in the log"),
            (vec![entry(1, 3, "")], "not in the log"),
        ] {
            caught(&scene().apply(2, turn(&wrong)), words);
        }
    }

    #[test]
    fn nothing_is_applied_twice() {
        let mut scene = scene();
        scene.apply(1, turn(&three())).unwrap();
        caught(&scene.apply(1, turn(&three())), "applied up to 5 behind 5");
    }

    #[test]
    fn what_was_committed_is_applied_after_the_tombstone_too() {
        let mut scene = scene();
        scene.apply(1, turn(&three())).unwrap();
        scene.durable(2, destroy_section(9));
        caught(
            &scene.apply(2, turn(&[entry(2, 3, ""), entry(2, 4, "x")])),
            "not what",
        );
        let mut scene = self::scene();
        scene.durable(2, destroy_section(9));
        scene.apply(2, turn(&three())).unwrap();
        scene.restored(3, &state(2, 5)).unwrap();
    }

    #[test]
    fn data_that_nobody_made_is_seen() {
        let mut scene = scene();
        scene.apply(1, turn(&three())).unwrap();
        caught(&scene.restored(3, &state(2, 6)), "which nobody applied");
        caught(
            &scene.restored(3, &state(3, 5)),
            "elsewhere that entry is of term 2",
        );
        caught(&scene.found_data(3, &[state(2, 9)]), "which nobody applied");
    }

    #[test]
    fn what_is_known_to_be_committed_is_not_cut() {
        let mut scene = scene();
        scene.durable(2, hard_section(3, 0, 4));
        // Entry 5 is not known to be.
        let free = [entries_section(&[entry(3, 5, "z")])];
        scene.write(2, free.to_vec()).unwrap();
        let seen = scene.write(2, vec![entries_section(&[entry(3, 4, "z")])]);
        caught(&seen, "cuts entry 4");
    }

    #[test]
    fn what_is_applied_is_not_cut_not_even_for_less_of_the_same() {
        let mut scene = scene();
        scene.apply(2, turn(&three())).unwrap();
        let seen = scene.write(2, vec![entries_section(&three()[..2])]);
        caught(&seen, "cuts entry 5");
    }

    #[test]
    fn the_same_written_again_cuts_nothing() {
        let mut scene = scene();
        scene.apply(2, turn(&three())).unwrap();
        scene.write(2, vec![entries_section(&three())]).unwrap();
    }

    #[test]
    fn what_others_committed_is_not_cut_for_a_later_leader() {
        let mut scene = scene();
        scene.apply(1, turn(&three())).unwrap();
        let seen = scene.write(2, vec![entries_section(&[entry(3, 4, "z")])]);
        caught(&seen, "which was committed, for entries up to term 3");
    }

    #[test]
    fn a_log_may_be_cut_below_a_snapshot_that_it_is_still_to_be_reset_to() {
        let mut scene = scene();
        scene.durable(
            3,
            entries_section(&[entry(1, 3, "junk"), entry(1, 4, "junk")]),
        );
        scene.apply(1, turn(&three())).unwrap();
        scene.restored(3, &state(2, 5)).unwrap();
        scene
            .write(3, vec![entries_section(&three()[..1])])
            .unwrap();
    }

    #[test]
    fn an_entry_taken_for_committed_that_is_not_is_seen_sooner_or_later() {
        let stale = || {
            let mut scene = scene();
            scene.durable(3, entries_section(&[entry(1, 3, "z"), entry(1, 4, "z")]));
            scene
        };
        let mut sooner = stale();
        sooner.apply(1, turn(&three())).unwrap();
        let seen = sooner.write(3, vec![hard_section(2, 1, 4)]);
        caught(&seen, "takes entry 4 of term 1 for committed");
        let mut later = stale();
        later.durable(3, hard_section(2, 1, 4));
        caught(
            &later.write(2, vec![hard_section(2, 1, 4)]),
            "that is one of term 1",
        );
        let mut applied = stale();
        applied.durable(3, hard_section(2, 1, 4));
        caught(
            &applied.apply(1, turn(&three())),
            "one of term 1 was committed",
        );
    }

    #[test]
    fn a_leader_without_what_was_committed_is_seen() {
        let mut scene = scene();
        scene.apply(1, turn(&three())).unwrap();
        scene.durable(2, hard_section(3, 2, 2));
        scene.send(2, 1, 3, heartbeat()).unwrap();
        scene.durable(3, hard_section(4, 3, 2));
        caught(
            &scene.send(3, 1, 4, append((1, 2), &[])),
            "leads in term 4 without",
        );
    }

    #[test]
    fn one_that_is_only_published_is_seen_too() {
        let mut scene = scene();
        scene.apply(1, turn(&three()[..1])).unwrap();
        scene.durable(3, hard_section(4, 3, 2));
        let says = summary(3, RoleName::Leader, hard(4, 3, 2));
        caught(&scene.publish(3, says), "leads in term 4 without");
    }

    #[test]
    fn a_leader_of_an_old_term_need_not_have_what_later_ones_committed() {
        let mut scene = scene();
        scene.durable(3, hard_section(3, 3, 2));
        scene.durable(2, hard_section(4, 2, 2));
        scene.apply(1, turn(&three())).unwrap();
        assert_eq!(scene.books.term(GROUP), Term(4));
        // Elected long ago, it speaks up now.
        scene.send(3, 1, 3, heartbeat()).unwrap();
    }
}
