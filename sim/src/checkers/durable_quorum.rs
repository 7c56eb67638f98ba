//! What is applied for the first time anywhere is durable at a quorum of voters, of both halves if the
//! configuration is joint.
//!
//! A change of membership counts from when it is applied, and the leader that commits an entry may have
//! applied less than the replica that applies it first. So a configuration is accepted until everybody has
//! certainly applied the one after it, and then for entries that had been seen before that. What a voter
//! that is dead by now has had counts, since its acknowledgement did.

use std::sync::Arc;

use polyraft_core::{ConfState, EntryId, Index, ReplicaId};
use polyraft_multiraft::env::ApplyItem;
use polyraft_multiraft::{AppliedState, GroupId, GroupMap, StoreId};

use super::Property;
use super::books::{Books, configurations};
use crate::observe::Observation;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct DurableQuorum {
    groups: GroupMap<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// The last index that was applied anywhere.
    applied: Index,
    /// Those that may be in force at some leader, in order.
    configurations: Vec<Configuration>,
}

#[derive(Debug)]
struct Configuration {
    /// It is in force from this entry on.
    from: Index,
    state: Arc<ConfState>,
    /// No entry above this is committed by it any more.
    until: Option<Index>,
}

impl Known {
    fn add(&mut self, from: Index, state: Arc<ConfState>) {
        self.configurations.push(Configuration {
            from,
            state,
            until: None,
        });
    }

    /// Takes leave of configurations that nobody can commit by any more.
    fn retire(&mut self, group: GroupId, books: &Books) {
        if self.configurations.len() < 2 {
            return;
        }
        let everywhere = books.flushed(group).min().unwrap_or_default();
        let next: Vec<Index> = self.configurations.iter().map(|c| c.from).skip(1).collect();
        for (configuration, next) in self.configurations.iter_mut().zip(next) {
            if next <= everywhere {
                configuration
                    .until
                    .get_or_insert_with(|| books.last_seen(group));
            }
        }
        let applied = self.applied;
        let over = |c: &Configuration| c.until.is_some_and(|until| until < applied);
        self.configurations
            .retain(|configuration| !over(configuration));
    }
}

impl DurableQuorum {
    fn applied(
        &mut self,
        store: StoreId,
        item: &ApplyItem,
        before: &AppliedState,
        books: &Books,
    ) -> Result<(), String> {
        let (group, last) = (item.group, item.state.last);
        let known = self.groups.entry(group).or_default();
        if last.index <= known.applied {
            return Ok(());
        }
        if known.configurations.is_empty() {
            known.add(before.last.index, Arc::clone(&before.conf_state));
        }
        let book = books.store(store);
        if let Some(log) = book.and_then(|book| book.written.latest(group))
            && item.membership_changed
        {
            for (index, state) in configurations(books, group, log, before, &item.state) {
                if index > known.applied {
                    known.add(index, state);
                }
            }
        }
        known.applied = last.index;
        known.retire(group, books);
        let mut accepted = known.configurations.iter();
        if accepted.any(|configuration| is_durable(books, group, last, &configuration.state)) {
            return Ok(());
        }
        Err(tell(books, group, last, store, &known.configurations))
    }
}

fn has(books: &Books, group: GroupId, id: EntryId, voter: ReplicaId) -> bool {
    books.durable(group, voter).is_some_and(|log| log.holds(id))
}

fn is_durable(books: &Books, group: GroupId, id: EntryId, in_force: &ConfState) -> bool {
    let majority = |voters: &[ReplicaId]| {
        let with = voters.iter().filter(|voter| has(books, group, id, **voter));
        voters.is_empty() || with.count() > voters.len() / 2
    };
    let known = !in_force.voters.is_empty();
    known && majority(&in_force.voters) && majority(&in_force.voters_outgoing)
}

fn tell(
    books: &Books,
    group: GroupId,
    last: EntryId,
    store: StoreId,
    configurations: &[Configuration],
) -> String {
    let mut text = format!("group {group}: store {store} is the first to apply {last:?}");
    for Configuration { state, .. } in configurations {
        let voters = state.voters.iter().chain(&state.voters_outgoing);
        let with: Vec<u64> = voters
            .filter(|voter| has(books, group, last, **voter))
            .map(|voter| voter.0)
            .collect();
        text += &format!("; of {state:?} it is durable at {with:?}");
    }
    text
}

impl Property for DurableQuorum {
    fn name(&self) -> &'static str {
        "durable-quorum"
    }

    fn see(&mut self, seen: &Observation<'_>, books: &Books) -> Result<(), String> {
        let Observation::Applied { store, items } = *seen else {
            return Ok(());
        };
        for (item, before) in items.iter().zip(&books.latest().before) {
            if let Some(before) = before {
                self.applied(store, item, &before.applied, books)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use polyraft_core::{ConfChangeKind, ConfChangeV2, Entry, EntryKind, Transition};

    use super::super::testing::{
        GROUP, Scene, caught, destroy_section, entries_section, entry, state, state_of, turn,
    };
    use super::*;

    fn scene() -> Scene {
        let mut scene = Scene::of(DurableQuorum::default()).begun();
        scene.elect(1, 2, 2);
        scene
    }

    fn change(index: u64, changes: &[(ConfChangeKind, u64)], transition: Transition) -> Entry {
        let changes = changes.iter().map(|(kind, id)| (*kind, ReplicaId(*id)));
        let change = ConfChangeV2 {
            transition,
            changes: changes.collect(),
            ..ConfChangeV2::default()
        };
        Entry {
            kind: EntryKind::ConfChangeV2,
            data: change.encode(),
            ..entry(2, index, "")
        }
    }

    /// A turn of one entry that leads to a configuration.
    fn turn_to(index: u64, state: AppliedState) -> ApplyItem {
        ApplyItem {
            state,
            membership_changed: true,
            commands: Vec::new(),
            ..turn(&[entry(2, index, "")])
        }
    }

    #[test]
    fn two_of_three_are_enough_and_one_is_not() {
        let mut scene = scene();
        let entries = [entry(2, 3, "a"), entry(2, 4, "b")];
        scene.replicate(1, &[2], (1, 2), &entries[..1]);
        scene.apply(1, turn(&entries[..1])).unwrap();
        scene.durable(1, entries_section(&entries[1..]));
        caught(&scene.apply(1, turn(&entries[1..])), "it is durable at [1]");
    }

    #[test]
    fn written_is_not_durable() {
        let mut scene = scene();
        let entries = [entry(2, 3, "a")];
        scene.durable(1, entries_section(&entries));
        scene.write(2, vec![entries_section(&entries)]).unwrap();
        caught(&scene.apply(1, turn(&entries)), "it is durable at [1]");
    }

    #[test]
    fn another_entry_there_does_not_count() {
        let mut scene = scene();
        scene.durable(1, entries_section(&[entry(2, 3, "a")]));
        scene.durable(2, entries_section(&[entry(1, 3, "z"), entry(1, 4, "z")]));
        caught(
            &scene.apply(1, turn(&[entry(2, 3, "a")])),
            "it is durable at [1]",
        );
    }

    #[test]
    fn who_follows_need_not_have_a_quorum_any_more() {
        let mut scene = scene();
        let entries = [entry(2, 3, "a")];
        scene.replicate(1, &[2], (1, 2), &entries);
        // What a dead voter had counted.
        scene.durable(2, destroy_section(9));
        scene.apply(1, turn(&entries)).unwrap();
        scene.durable(3, entries_section(&entries));
        scene.apply(3, turn(&entries)).unwrap();
    }

    #[test]
    fn a_voter_that_was_added_counts_from_when_everybody_knows() {
        let mut scene = scene();
        let add = change(3, &[(ConfChangeKind::AddVoter, 4)], Transition::Auto);
        scene.replicate(1, &[2, 3], (1, 2), &[add]);
        for store in 1..=3 {
            scene
                .apply(store, turn_to(3, state_of(&[1, 2, 3, 4], 2, 3)))
                .unwrap();
        }
        let later = |index| ApplyItem {
            state: state_of(&[1, 2, 3, 4], 2, index),
            ..turn(&[entry(2, index, "b")])
        };
        // Who committed this may not have known of the fourth.
        scene.replicate(1, &[2], (2, 3), &[entry(2, 4, "b")]);
        scene.apply(1, later(4)).unwrap();
        (1..=3).for_each(|store| scene.flushed(store).unwrap());
        scene.replicate(1, &[2], (2, 4), &[entry(2, 5, "b"), entry(2, 6, "b")]);
        scene.apply(1, later(5)).unwrap();
        scene.replicate(1, &[2], (2, 6), &[entry(2, 7, "b"), entry(2, 8, "b")]);
        caught(&scene.apply(1, later(7)), "ReplicaId(4)");
    }

    #[test]
    fn both_halves_are_asked() {
        let mut scene = scene();
        let kinds = [(ConfChangeKind::AddVoter, 4), (ConfChangeKind::Remove, 3)];
        let enter = change(3, &kinds, Transition::JointExplicit);
        scene.replicate(1, &[2, 3], (1, 2), &[enter]);
        let joint = |index| {
            let mut state = state_of(&[1, 2, 4], 2, index);
            let conf_state = ConfState {
                voters_outgoing: [1, 2, 3].map(ReplicaId).to_vec(),
                ..ConfState::clone(&state.conf_state)
            };
            state.conf_state = Arc::new(conf_state);
            state
        };
        for store in 1..=3 {
            scene.apply(store, turn_to(3, joint(3))).unwrap();
            scene.flushed(store).unwrap();
        }
        scene.created(4, &state(1, 2)).unwrap();
        scene.begin(4);
        scene.durable(
            4,
            entries_section(&[entry(2, 3, "q"), entry(2, 4, "a"), entry(2, 5, "b")]),
        );
        let later = |index| ApplyItem {
            state: joint(index),
            ..turn(&[entry(2, index, "a")])
        };
        scene.replicate(1, &[2], (2, 3), &[entry(2, 4, "a")]);
        scene.apply(1, later(4)).unwrap();
        scene.durable(1, entries_section(&[entry(2, 5, "b")]));
        // The incoming half has it, the outgoing has not.
        caught(&scene.apply(1, later(5)), "it is durable at [1, 4, 1]");
        assert_eq!(scene.books.last_seen(GROUP), Index(5));
    }
}
