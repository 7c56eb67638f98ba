//! What is applied for the first time anywhere is durable at a quorum of voters, of both halves if the
//! configuration is joint. What a voter that is dead by now has had counts, since its acknowledgement did.

use super::Property;
use super::books::Books;
use super::configurations::{Configurations, has};
use crate::observe::Observation;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct DurableQuorum {
    configurations: Configurations,
}

impl Property for DurableQuorum {
    fn name(&self) -> &'static str {
        "durable-quorum"
    }

    fn see(&mut self, seen: &Observation<'_>, books: &Books) -> Result<(), String> {
        self.configurations.see(seen, books);
        let Observation::Applied { store, .. } = *seen else {
            return Ok(());
        };
        for (group, last) in self.configurations.news().iter().copied() {
            let durable = |voter| has(books, group, last, voter);
            if !self.configurations.quorum(group, durable) {
                let voters = self.configurations.tell(group, durable);
                return Err(format!(
                    "group {group}: store {store} is the first to apply {last:?}; it is durable at{voters}"
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use polyraft_core::{
        ConfChangeKind, ConfChangeV2, ConfState, Entry, EntryKind, Index, ReplicaId, Transition,
    };
    use polyraft_multiraft::AppliedState;
    use polyraft_multiraft::env::ApplyItem;

    use super::super::testing::{
        GROUP, Scene, begin_section, caught, destroy_section, entries_section, entry, state,
        state_of, turn,
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
        caught(&scene.apply(1, turn(&entries[1..])), "these: [1]");
    }

    /// Whose creation failed at a sync: the data is there at the next start, which finishes it.
    #[test]
    fn a_group_that_a_start_finds_at_its_beginning_has_begun() {
        let mut scene = Scene::of(DurableQuorum::default());
        for store in 1..=3 {
            scene.found_data(store, &[state(1, 2)]).unwrap();
            scene.durable(store, begin_section(store));
        }
        scene.elect(1, 2, 2);
        let entries = [entry(2, 3, "a"), entry(2, 4, "b")];
        scene.replicate(1, &[2], (1, 2), &entries[..1]);
        scene.apply(1, turn(&entries[..1])).unwrap();
        scene.durable(1, entries_section(&entries[1..]));
        caught(&scene.apply(1, turn(&entries[1..])), "these: [1]");
    }

    /// Data that is further on says nothing of the configuration that it began with.
    #[test]
    fn data_behind_the_beginning_of_a_group_tells_nothing() {
        let mut scene = Scene::of(DurableQuorum::default());
        scene.found_data(1, &[state(2, 3)]).unwrap();
        scene.durable(1, begin_section(1));
        scene.durable(1, entries_section(&[entry(2, 3, "a"), entry(2, 4, "b")]));
        caught(&scene.apply(1, turn(&[entry(2, 4, "b")])), "durable at");
    }

    #[test]
    fn written_is_not_durable() {
        let mut scene = scene();
        let entries = [entry(2, 3, "a")];
        scene.durable(1, entries_section(&entries));
        scene.write(2, vec![entries_section(&entries)]).unwrap();
        caught(&scene.apply(1, turn(&entries)), "these: [1]");
    }

    #[test]
    fn another_entry_there_does_not_count() {
        let mut scene = scene();
        scene.durable(1, entries_section(&[entry(2, 3, "a")]));
        scene.durable(2, entries_section(&[entry(1, 3, "z"), entry(1, 4, "z")]));
        caught(&scene.apply(1, turn(&[entry(2, 3, "a")])), "these: [1]");
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
        caught(&scene.apply(1, later(5)), "these: [1, 4, 1]");
        assert_eq!(scene.books.last_seen(GROUP), Index(5));
    }
}
