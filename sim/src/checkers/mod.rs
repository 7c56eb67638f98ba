//! One file per property. All of them look at the same [`books`], which are kept of what crosses the seams.

mod agreement;
mod books;
mod budgets;
mod commit_confirmed;
mod commit_rule;
mod committed_stays;
mod configurations;
mod durable_quorum;
mod elected_by_quorum;
mod election_safety;
mod frozen_is_frozen;
mod log_matching;
mod merge_atomic;
mod monotone;
mod no_crossing;
mod no_holes;
mod nothing_left_behind;
mod one_change;
mod one_owner;
mod promises;
mod ranges_disjoint;
mod read_rounds;
mod recovery;
mod replica_identity;
mod split_atomic;
#[cfg(test)]
mod testing;
mod truncation;

use self::books::Books;
pub use self::budgets::Limits;
use crate::observe::{Checker, End, Observation};

/// All of them, new, for stores whose budgets are as they may be.
#[must_use]
pub fn all() -> Vec<Box<dyn Checker>> {
    all_within(|_| Limits::default())
}

/// All of them, new; `limits` says what a store is configured to.
#[must_use]
pub fn all_within(
    limits: impl Fn(polyraft_multiraft::StoreId) -> Limits + Send + 'static,
) -> Vec<Box<dyn Checker>> {
    vec![Box::new(Panel::new(properties(Box::new(limits))))]
}

/// The names of all of them, as violations tell them.
#[must_use]
pub fn names() -> Vec<&'static str> {
    let all = properties(Box::new(|_| Limits::default()));
    all.iter().map(|property| property.name()).collect()
}

fn properties(limits: budgets::LimitsOf) -> Vec<Box<dyn Property>> {
    vec![
        Box::<recovery::Recovery>::default(),
        Box::<election_safety::ElectionSafety>::default(),
        Box::<elected_by_quorum::ElectedByQuorum>::default(),
        Box::<log_matching::LogMatching>::default(),
        Box::<no_crossing::NoCrossing>::default(),
        Box::<replica_identity::ReplicaIdentity>::default(),
        Box::<promises::Promises>::default(),
        Box::<committed_stays::CommittedStays>::default(),
        Box::<durable_quorum::DurableQuorum>::default(),
        Box::<commit_rule::CommitRule>::default(),
        Box::<commit_confirmed::CommitConfirmed>::default(),
        Box::<read_rounds::ReadRounds>::default(),
        Box::<one_change::OneChange>::default(),
        Box::<monotone::Monotone>::default(),
        Box::<truncation::Truncation>::default(),
        Box::<ranges_disjoint::RangesDisjoint>::default(),
        Box::<one_owner::OneOwner>::default(),
        Box::<split_atomic::SplitAtomic>::default(),
        Box::<merge_atomic::MergeAtomic>::default(),
        Box::<frozen_is_frozen::FrozenIsFrozen>::default(),
        Box::<nothing_left_behind::NothingLeftBehind>::default(),
        Box::new(budgets::Budgets::new(limits)),
        Box::<agreement::Agreement>::default(),
        Box::<no_holes::NoHoles>::default(),
    ]
}

/// Somebody who knows one property, and reads the books.
pub(crate) trait Property: Send {
    /// Lower case with hyphens.
    fn name(&self) -> &'static str;

    /// Looks at what happened, which the books contain already.
    ///
    /// # Errors
    /// What is wrong, in words that let a person find it.
    fn see(&mut self, seen: &Observation<'_>, books: &Books) -> Result<(), String>;

    /// Looks at what is left.
    ///
    /// # Errors
    /// What is wrong.
    fn finish(&mut self, _end: &End) -> Result<(), String> {
        Ok(())
    }
}

/// Properties over one set of books. To others it goes by the name of the one that is broken.
struct Panel {
    books: Books,
    properties: Vec<Box<dyn Property>>,
    broken: &'static str,
}

impl Panel {
    fn new(properties: Vec<Box<dyn Property>>) -> Self {
        Self {
            books: Books::default(),
            properties,
            broken: "all",
        }
    }

    fn ask(
        &mut self,
        mut ask: impl FnMut(&mut dyn Property, &Books) -> Result<(), String>,
    ) -> Result<(), String> {
        for property in &mut self.properties {
            if let Err(what) = ask(property.as_mut(), &self.books) {
                self.broken = property.name();
                return Err(what);
            }
        }
        Ok(())
    }
}

impl Checker for Panel {
    fn name(&self) -> &'static str {
        self.broken
    }

    fn see(&mut self, seen: &Observation<'_>) -> Result<(), String> {
        self.books.enter(seen);
        self.ask(|property, books| property.see(seen, books))
    }

    fn finish(&mut self, end: &End) -> Result<(), String> {
        self.ask(|property, _| property.finish(end))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use polyraft_core::{Index, Payload};

    use super::testing::{
        Scene, acknowledge, append, caught, entry, grant, hard_section, state, truncate_section,
        turn,
    };
    use super::*;

    #[test]
    fn names_are_as_the_canary_table_shows_them() {
        let names = names();
        let different: BTreeSet<_> = names.iter().collect();
        assert_eq!(different.len(), names.len());
        let fits = |name: &&str| name.bytes().all(|b| b == b'-' || b.is_ascii_lowercase());
        assert!(names.iter().all(fits), "{names:?}");
    }

    fn beat(commit: u64) -> Payload {
        Payload::Heartbeat {
            commit: Index(commit),
            read: 0,
        }
    }

    /// Two leaders, a crash, a snapshot and a truncation, as they should be.
    #[test]
    fn nobody_minds_a_good_run() {
        let mut scene = Scene::of_all().begun();
        scene.elect(1, 2, 2);
        let entries = [entry(2, 3, ""), entry(2, 4, "a"), entry(2, 5, "b")];
        scene.replicate(1, &[2], (1, 2), &entries);
        scene.apply(1, turn(&entries)).unwrap();
        scene.deliver(1, 2, 2, beat(4)).unwrap();
        scene.apply(2, turn(&entries[..2])).unwrap();
        scene.durable(2, hard_section(3, 2, 5));
        scene.durable(3, hard_section(3, 2, 2));
        scene.send(3, 2, 3, grant()).unwrap();
        scene.send(2, 3, 3, append((2, 5), &[])).unwrap();
        scene.flushed(2).unwrap();
        scene.write(2, vec![truncate_section(2, 4)]).unwrap();
        scene.restored(3, &state(2, 4)).unwrap();
        let mut reset = hard_section(3, 2, 4);
        reset.reset = Some(polyraft_core::EntryId::new(2, 4));
        scene.durable(3, reset);
        scene.send(3, 2, 3, acknowledge(4)).unwrap();
        scene.replicate(2, &[3], (2, 4), &[entry(2, 5, "b"), entry(3, 6, "")]);
        scene.deliver(2, 3, 3, beat(6)).unwrap();
        scene
            .apply(3, turn(&[entry(2, 5, "b"), entry(3, 6, "")]))
            .unwrap();
    }

    /// Who is broken gives the panel its name.
    #[test]
    fn a_violation_goes_by_the_name_of_its_property() {
        let observer = crate::observe::Observer::new(all());
        let mut scene = Scene::of_all().begun();
        scene.elect(1, 2, 2);
        caught(&scene.send(2, 1, 3, acknowledge(9)), "durable is");
        let batch = polyraft_multiraft::env::LogBatch {
            sync: true,
            sections: vec![hard_section(2, 1, 2)],
        };
        observer.see(&Observation::Written {
            store: polyraft_multiraft::StoreId(1),
            batch: &batch,
        });
        let violation = observer.violation().unwrap();
        assert_eq!(violation.checker, "recovery");
        assert!(violation.what.contains("written without a replica"));
    }
}
