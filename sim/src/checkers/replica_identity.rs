//! Who a replica is: its id is created on one store, once, and never again after its end.
//!
//! A tombstone is never taken back: not by a later one that is lower, not by a restart, not by a replica
//! below it. What a power cut has undone did not happen.

use polyraft_core::ReplicaId;
use polyraft_multiraft::env::Lifecycle;
use polyraft_multiraft::{GroupDescriptor, StoreId};

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

/// Who is new among the members has an id that was not given before.
fn renewed(old: &GroupDescriptor, new: &GroupDescriptor) -> Result<(), String> {
    let known = |id: ReplicaId| old.members.iter().any(|member| member.replica == id);
    for member in &new.members {
        let id = member.replica;
        if !known(id) && id < old.next_replica {
            let next = old.next_replica;
            return Err(format!(
                "{member:?} is a new member, the next one was to be {next}"
            ));
        }
        if id >= new.next_replica {
            let next = new.next_replica;
            return Err(format!(
                "{member:?} is a member, the next new one is to be {next}"
            ));
        }
    }
    if new.next_replica < old.next_replica {
        let (old, new) = (old.next_replica, new.next_replica);
        return Err(format!("the next new id goes back from {old} to {new}"));
    }
    Ok(())
}

impl Property for ReplicaIdentity {
    fn name(&self) -> &'static str {
        "replica-identity"
    }

    fn see(&mut self, seen: &Observation<'_>, books: &Books) -> Result<(), String> {
        match *seen {
            Observation::Written { store, .. } => books.batch().iter().try_for_each(|section| {
                let group = section.group;
                let result = written(store, section, books);
                result.map_err(|why| format!("store {store}, group {group}: {why}"))
            }),
            Observation::Applied { store, items } => {
                let each = items.iter().zip(&books.latest().before);
                for (item, before) in each.filter(|(item, _)| item.membership_changed) {
                    let Some(before) = before else { continue };
                    let old = &before.applied.descriptor;
                    let group = item.group;
                    renewed(old, &item.state.descriptor)
                        .map_err(|why| format!("store {store}, group {group}: {why}"))?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Scene, caught, create_section, destroy_section, entry, turn};
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

    #[test]
    fn new_members_have_new_ids() {
        let with = |change: &dyn Fn(&mut GroupDescriptor)| {
            let mut item = turn(&[entry(2, 3, "a")]);
            let mut descriptor = (*item.state.descriptor).clone();
            change(&mut descriptor);
            item.state.descriptor = descriptor.into();
            item.membership_changed = true;
            let mut scene = scene();
            scene.apply(1, item)
        };
        with(&|new| {
            new.members[0].replica = ReplicaId(10);
            new.next_replica = ReplicaId(11);
        })
        .unwrap();
        let reused = with(&|new| new.members[0].replica = ReplicaId(4));
        caught(&reused, "the next one was to be 10");
        let ahead = with(&|new| new.members[0].replica = ReplicaId(10));
        caught(&ahead, "the next new one is to be 10");
        caught(
            &with(&|new| new.next_replica = ReplicaId(9)),
            "goes back from 10 to 9",
        );
    }
}
