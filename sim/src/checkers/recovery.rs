//! What was certain is there after every start, and nothing is there that was not written.
//!
//! After a power cut a store may find, beyond what was synced, a beginning of what was written since; after
//! the death of its process all of it. The same for data: never older than the last flush. The
//! [books](super::books) compare while they enter what was found; this property says what they say.

use super::Property;
use super::books::Books;
use crate::observe::Observation;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Recovery;

impl Property for Recovery {
    fn name(&self) -> &'static str {
        "recovery"
    }

    fn see(&mut self, _seen: &Observation<'_>, books: &Books) -> Result<(), String> {
        books.latest().impossible.clone().map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use polyraft_core::{EntryId, HardState, Index, ReplicaId, Term};
    use polyraft_multiraft::BOOTSTRAP;
    use polyraft_multiraft::env::{Recovered, RecoveredGroup};

    use super::super::testing::{
        GROUP, Scene, caught, destroy_section, entries_section, entry, hard, hard_section, section,
        state, turn,
    };
    use super::*;

    fn found(hard_state: HardState, terms: &[(u64, u64)], last: u64) -> Recovered {
        let runs = terms
            .iter()
            .map(|(term, first)| (Term(*term), Index(*first)));
        let of_last = terms.last().map_or(1, |(term, _)| *term);
        let group = RecoveredGroup {
            group: GROUP,
            replica: ReplicaId(2),
            hard_state,
            truncated: BOOTSTRAP,
            last: EntryId::new(of_last, last),
            terms: runs.collect(),
        };
        Recovered {
            groups: vec![group],
            tombstones: Vec::new(),
        }
    }

    /// Entry 3 is certain; the term, entry 4 and another in its place are written.
    fn scene() -> Scene {
        let mut scene = Scene::of(Recovery).begun();
        scene.durable(2, entries_section(&[entry(2, 3, "a")]));
        scene.write(2, vec![hard_section(3, 3, 2)]).unwrap();
        scene
            .write(2, vec![entries_section(&[entry(3, 4, "b")])])
            .unwrap();
        scene
            .write(
                2,
                vec![entries_section(&[entry(4, 4, "c"), entry(4, 5, "d")])],
            )
            .unwrap();
        scene
    }

    #[test]
    fn a_power_cut_leaves_a_beginning_of_what_was_written() {
        for kept in [
            found(hard(1, 0, 2), &[(2, 3)], 3),
            found(hard(3, 3, 2), &[(2, 3)], 3),
            found(hard(3, 3, 2), &[(2, 3), (3, 4)], 4),
            found(hard(3, 3, 2), &[(2, 3), (4, 4)], 5),
            found(hard(3, 3, 2), &[(2, 3), (4, 4), (4, 5)], 5),
        ] {
            let mut scene = scene();
            scene.crash(2, true).unwrap();
            scene.found_log(2, &kept).unwrap();
            // From then on it is certain.
            scene.crash(2, true).unwrap();
            scene.found_log(2, &kept).unwrap();
        }
    }

    #[test]
    fn anything_else_is_seen() {
        let mut other = found(hard(1, 0, 2), &[(2, 3)], 3);
        other.groups[0].replica = ReplicaId(4);
        let mut truncated = found(hard(1, 0, 2), &[], 3);
        truncated.groups[0].truncated = EntryId::new(2, 3);
        truncated.groups[0].last = EntryId::new(2, 3);
        let mut buried = found(hard(1, 0, 2), &[(2, 3)], 3);
        buried.tombstones.push((GROUP, ReplicaId(1)));
        for wrong in [
            found(hard(1, 0, 2), &[], 2),
            found(hard(1, 0, 2), &[(2, 3), (3, 4)], 4),
            found(hard(3, 3, 2), &[(2, 3), (4, 4)], 4),
            found(hard(3, 3, 2), &[(3, 3)], 3),
            found(hard(9, 0, 2), &[(2, 3)], 3),
            Recovered::default(),
            other,
            truncated,
            buried,
        ] {
            let mut scene = scene();
            scene.crash(2, true).unwrap();
            caught(&scene.found_log(2, &wrong), "neither what was certain");
        }
    }

    #[test]
    fn a_dead_process_loses_nothing() {
        let mut scene = scene();
        scene.crash(2, false).unwrap();
        scene
            .found_log(2, &found(hard(3, 3, 2), &[(2, 3), (4, 4)], 5))
            .unwrap();
        let mut scene = self::scene();
        scene.crash(2, false).unwrap();
        let seen = scene.found_log(2, &found(hard(3, 3, 2), &[(2, 3), (3, 4)], 4));
        caught(&seen, "it is not what was written");
    }

    #[test]
    fn a_tombstone_that_was_certain_is_found() {
        let dead = Recovered {
            tombstones: vec![(GROUP, ReplicaId(5))],
            ..Recovered::default()
        };
        let mut scene = scene();
        scene.durable(2, destroy_section(5));
        scene.crash(2, true).unwrap();
        scene.found_log(2, &dead).unwrap();
        caught(&scene.found_log(2, &Recovered::default()), "tombstone None");
    }

    #[test]
    fn data_is_as_old_as_its_flush_at_most() {
        let mut scene = scene();
        scene.apply(2, turn(&[entry(2, 3, "a")])).unwrap();
        scene.found_data(2, &[state(1, 2)]).unwrap();
        scene.apply(2, turn(&[entry(2, 3, "a")])).unwrap();
        scene.flushed(2).unwrap();
        caught(&scene.found_data(2, &[state(1, 2)]), "was flushed up to 3");
    }

    #[test]
    fn data_is_gone_only_with_its_replica() {
        let mut scene = scene();
        caught(&scene.found_data(2, &[]), "is gone");
        let mut scene = self::scene();
        scene.durable(2, destroy_section(5));
        scene.found_data(2, &[]).unwrap();
    }

    #[test]
    fn writes_that_do_not_fit_are_seen() {
        let gap = entries_section(&[entry(4, 7, "e")]);
        caught(&scene().write(2, vec![gap]), "written behind 5");
        let mut unknown = section();
        unknown.group.0 += 1;
        caught(
            &scene().write(2, vec![unknown]),
            "written without a replica",
        );
    }
}
