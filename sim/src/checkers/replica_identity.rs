//! Who a replica is: its id is created on one store, once, and never again after its end.
//!
//! A tombstone is never taken back: not by a later one that is lower, not by a restart, not by a replica
//! below it. What a power cut has undone did not happen.

use polyraft_core::ReplicaId;
use polyraft_multiraft::StoreId;
use polyraft_multiraft::env::Lifecycle;

use super::Property;
use super::books::{Books, Section};
use crate::observe::Observation;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct ReplicaIdentity;

fn written(store: StoreId, section: &Section, books: &Books) -> Result<(), String> {
    let group = section.group;
    let present = section.before.map(|log| log.replica);
    match section.lifecycle {
        Some(Lifecycle::Create { replica }) => {
            if let Some(present) = present {
                return Err(format!("replica {replica} begins beside replica {present}"));
            }
            if replica.is_none() || replica < section.bound {
                let bound = section.bound;
                return Err(format!(
                    "replica {replica} begins below the tombstone at {bound}"
                ));
            }
            match books.owner(group, replica) {
                Some(owner) if owner != store => Err(format!(
                    "replica {replica} begins, which was created on store {owner} before"
                )),
                _ => Ok(()),
            }
        }
        Some(Lifecycle::Destroy { next_replica }) => {
            let least = present.map_or(ReplicaId::NONE, |id| ReplicaId(id.0.saturating_add(1)));
            let least = least.max(section.bound);
            if next_replica < least {
                return Err(format!(
                    "a tombstone at {next_replica}, it must not be below {least}"
                ));
            }
            Ok(())
        }
        None => Ok(()),
    }
}

impl Property for ReplicaIdentity {
    fn name(&self) -> &'static str {
        "replica-identity"
    }

    fn see(&mut self, seen: &Observation<'_>, books: &Books) -> Result<(), String> {
        let Observation::Written { store, .. } = *seen else {
            return Ok(());
        };
        books.batch().iter().try_for_each(|section| {
            let group = section.group;
            let result = written(store, section, books);
            result.map_err(|why| format!("store {store}, group {group}: {why}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Scene, caught, create_section, destroy_section};
    use super::*;

    fn scene() -> Scene {
        Scene::of(ReplicaIdentity).begun()
    }

    #[test]
    fn a_newer_replica_follows_an_older_one() {
        let mut scene = scene();
        scene.durable(2, destroy_section(5));
        scene.durable(2, create_section(5));
        scene
            .write(2, vec![destroy_section(8), create_section(9)])
            .unwrap();
        scene.write(2, vec![destroy_section(u64::MAX)]).unwrap();
    }

    #[test]
    fn nobody_comes_back_from_below_the_tombstone() {
        let mut scene = scene();
        scene.durable(2, destroy_section(5));
        caught(
            &scene.write(2, vec![create_section(2)]),
            "below the tombstone at 5",
        );
        let mut scene = self::scene();
        scene.durable(2, destroy_section(u64::MAX));
        caught(
            &scene.write(2, vec![create_section(6)]),
            "below the tombstone",
        );
        let mut scene = self::scene();
        scene.durable(2, destroy_section(5));
        scene.durable(2, create_section(6));
        caught(
            &scene.write(2, vec![destroy_section(7), create_section(5)]),
            "below",
        );
    }

    #[test]
    fn tombstones_survive_restarts_even_if_the_disk_does_not_say_so() {
        let mut scene = scene();
        scene.durable(2, destroy_section(5));
        scene.crash(2, true).unwrap();
        caught(
            &scene.write(2, vec![create_section(4)]),
            "below the tombstone",
        );
    }

    #[test]
    fn one_id_lives_on_one_store() {
        let mut scene = scene();
        scene.durable(2, destroy_section(3));
        caught(
            &scene.write(2, vec![create_section(3)]),
            "created on store 3 before",
        );
    }

    #[test]
    fn two_replicas_of_a_group_on_a_store_are_seen() {
        caught(
            &scene().write(2, vec![create_section(5)]),
            "begins beside replica 2",
        );
    }

    #[test]
    fn a_tombstone_that_tells_less_is_seen() {
        caught(
            &scene().write(2, vec![destroy_section(2)]),
            "must not be below 3",
        );
        let mut scene = scene();
        scene.durable(2, destroy_section(9));
        caught(
            &scene.write(2, vec![destroy_section(8)]),
            "must not be below 9",
        );
        scene.write(2, vec![destroy_section(9)]).unwrap();
    }

    #[test]
    fn what_a_power_cut_undid_may_be_done_again() {
        let mut scene = Scene::of(ReplicaIdentity);
        scene.write(2, vec![create_section(2)]).unwrap();
        scene.crash(2, true).unwrap();
        scene
            .found_log(2, &polyraft_multiraft::env::Recovered::default())
            .unwrap();
        scene.write(2, vec![create_section(2)]).unwrap();
    }
}
