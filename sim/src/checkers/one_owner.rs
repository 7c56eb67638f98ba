//! A key has one owner at a time. Of a family (a group and what it was split into, and merged from) the
//! generations of a key's successive owners grow, and an owner serves nobody any more when a later one has
//! begun to.
//!
//! * Two groups never have a key at the same generation, and a group at a generation has one range.
//! * What is applied is applied under the generation for which it was proposed.
//! * When a command of a later owner was applied anywhere, no command of an earlier one is applied for
//!   the first time, and nobody who asks from then on is given leave to read from the earlier one.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use polyraft_core::{EntryKind, Index};
use polyraft_multiraft::env::ApplyItem;
use polyraft_multiraft::{AppliedState, GroupDescriptor, GroupId, GroupMap, KeyRange};

use super::Property;
use super::books::{Books, content_hash, rights};
use crate::observe::Observation;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct OneOwner {
    /// Grows with everything that happens here.
    clock: u64,
    /// The family of each group that a split has made.
    families: GroupMap<GroupId>,
    /// By family.
    owners: GroupMap<Vec<Owner>>,
    /// For which generations each command was proposed to a group.
    proposed: HashMap<(GroupId, u64), Vec<u64>>,
    /// When clients have asked for leave to read.
    asked: BTreeMap<u64, u64>,
    /// The last entry of each group that was applied anywhere.
    applied: GroupMap<Index>,
}

/// A group with a range of a generation.
#[derive(Clone, Debug)]
struct Owner {
    group: GroupId,
    generation: u64,
    range: KeyRange,
    /// When it has served somebody.
    served: Option<u64>,
}

fn hash(data: &Bytes) -> u64 {
    content_hash(EntryKind::Normal, data)
}

impl OneOwner {
    fn family(&self, group: GroupId) -> GroupId {
        self.families.get(&group).copied().unwrap_or(group)
    }

    /// A group has a range.
    fn owns(&mut self, descriptor: &GroupDescriptor) -> Result<(), String> {
        let Some(range) = &descriptor.range else {
            return Ok(());
        };
        let (group, generation) = (descriptor.group, descriptor.epoch.range);
        let family = self.family(group);
        let owners = self.owners.entry(family).or_default();
        for known in owners.iter().filter(|it| it.generation == generation) {
            if known.group == group && known.range == *range {
                return Ok(());
            }
            if known.group == group || known.range.overlaps(range) {
                return Err(format!(
                    "group {group} has {range:?} at generation {generation}, and group {} has {:?}",
                    known.group, known.range
                ));
            }
        }
        owners.push(Owner {
            group,
            generation,
            range: range.clone(),
            served: None,
        });
        Ok(())
    }

    fn applied(&mut self, item: &ApplyItem, before: &AppliedState) -> Result<(), String> {
        let family = self.family(item.group);
        for right in rights(item) {
            let group = right.state.descriptor.group;
            self.families.insert(group, family);
            self.owns(&right.state.descriptor)?;
        }
        self.owns(&item.state.descriptor)?;
        let first = before.descriptor.epoch.range;
        // What comes with a change of the keys comes before it.
        let last = match item.range_change.is_some() {
            true => first,
            false => item.state.descriptor.epoch.range,
        };
        for command in &item.commands {
            let meant = self.proposed.get(&(item.group, hash(&command.data)));
            let fits = |meant: &u64| (first..=last).contains(meant);
            if let Some(meant) = meant.filter(|meant| !meant.iter().any(fits)) {
                return Err(format!(
                    "group {}: {:?} was proposed for generation {meant:?} and is applied under {first}",
                    item.group, command.id
                ));
            }
        }
        let known = self.applied.entry(item.group).or_default();
        let news = item.commands.iter().any(|it| it.id.index > *known);
        *known = item.state.last.index.max(*known);
        if news {
            self.serves(family, &before.descriptor)?;
        }
        Ok(())
    }

    /// An owner has its first effect, or another one, for the first time anywhere.
    fn serves(&mut self, family: GroupId, descriptor: &GroupDescriptor) -> Result<(), String> {
        let Some(range) = &descriptor.range else {
            return Ok(());
        };
        let (group, generation) = (descriptor.group, descriptor.epoch.range);
        let owners = self.owners.entry(family).or_default();
        let later = |it: &&Owner| {
            let over = it.served.is_some() && it.range.overlaps(range);
            it.group != group && it.generation > generation && over
        };
        if let Some(later) = owners.iter().find(later) {
            return Err(format!(
                "group {group} applies commands of generation {generation}, and group {} has served its \
                 keys at generation {} already",
                later.group, later.generation
            ));
        }
        let own = |it: &&mut Owner| (it.group, it.generation) == (group, generation);
        if let Some(own) = owners.iter_mut().find(own) {
            own.served.get_or_insert(self.clock);
        }
        Ok(())
    }

    fn permitted(
        &self,
        client: u64,
        descriptor: &GroupDescriptor,
        key: &Bytes,
    ) -> Result<(), String> {
        let range = descriptor.range.as_ref();
        let Some(asked) = self.asked.get(&client) else {
            return Ok(());
        };
        if !range.is_some_and(|range| range.contains(key)) {
            return Ok(());
        }
        let (group, generation) = (descriptor.group, descriptor.epoch.range);
        let owners = self.owners.get(&self.family(group));
        let mut owners = owners.into_iter().flatten();
        let later = owners.find(|it| {
            let before = it.served.is_some_and(|served| served < *asked);
            it.group != group && it.generation > generation && before && it.range.contains(key)
        });
        later.map_or(Ok(()), |later| {
            Err(format!(
                "group {group} of generation {generation} permits to read {key:?}, which group {} of \
                 generation {} had served before anybody asked",
                later.group, later.generation
            ))
        })
    }
}

impl Property for OneOwner {
    fn name(&self) -> &'static str {
        "one-owner"
    }

    fn see(&mut self, seen: &Observation<'_>, books: &Books) -> Result<(), String> {
        self.clock += 1;
        match *seen {
            Observation::Created { state, .. } | Observation::Restored { state, .. } => {
                self.owns(&state.descriptor)
            }
            Observation::RecoveredData { states, .. } => {
                let mut descriptors = states.iter().map(|state| &state.descriptor);
                descriptors.try_for_each(|descriptor| self.owns(descriptor))
            }
            Observation::Applied { store, items } => {
                let mut each = items.iter().zip(&books.latest().before);
                each.try_for_each(|(item, before)| match before {
                    Some(before) => self.applied(item, &before.applied),
                    None => Ok(()),
                })
                .map_err(|why| format!("store {store}: {why}"))
            }
            Observation::Proposed {
                group,
                generation,
                data,
            } => {
                let meant = self.proposed.entry((group, hash(data))).or_default();
                if !meant.contains(&generation) {
                    meant.push(generation);
                }
                Ok(())
            }
            Observation::ReadAsked { client, .. } => {
                self.asked.insert(client, self.clock);
                Ok(())
            }
            Observation::Permitted {
                client,
                descriptor,
                key,
            } => self.permitted(client, descriptor, key),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use polyraft_multiraft::StoreId;

    use super::super::testing::{GROUP, Scene, caught, divide, entry, state, turn};
    use super::*;

    const RIGHT: GroupId = GroupId(8);

    fn scene() -> Scene {
        let mut scene = Scene::of(OneOwner::default()).begun();
        scene.elect(1, 2, 2);
        scene.replicate(1, &[2], (1, 2), &[entry(2, 3, "a"), entry(2, 4, "b")]);
        scene
    }

    /// Entry 3 splits the group at `m`.
    fn split() -> ApplyItem {
        divide(3, &[("m", RIGHT.0)])
    }

    /// A command of the right group.
    fn of_right() -> ApplyItem {
        let mut item = turn(&[entry(1, 3, "x")]);
        let right = rights(&split()).next().unwrap().state.clone();
        item.state.descriptor = right.descriptor;
        item.group = RIGHT;
        item
    }

    fn propose(scene: &mut Scene, generation: u64, data: &'static str) {
        let proposed = Observation::Proposed {
            group: GROUP,
            generation,
            data: &Bytes::from_static(data.as_bytes()),
        };
        scene.see(&proposed).unwrap();
    }

    fn ask(scene: &mut Scene) {
        let asked = Observation::ReadAsked {
            store: StoreId(1),
            client: 4,
            token: 1,
        };
        scene.see(&asked).unwrap();
    }

    fn permit(scene: &mut Scene, generation: u64, key: &'static str) -> Result<(), String> {
        let mut descriptor = (*state(1, 2).descriptor).clone();
        descriptor.epoch.range = generation;
        if generation > 0 {
            descriptor.range = split().state.descriptor.range.clone();
        }
        scene.see(&Observation::Permitted {
            client: 4,
            descriptor: &descriptor,
            key: &Bytes::from_static(key.as_bytes()),
        })
    }

    #[test]
    fn a_split_and_what_follows_is_no_harm() {
        let mut scene = scene();
        propose(&mut scene, 1, "b");
        scene.apply(1, split()).unwrap();
        let mut behind = turn(&[entry(2, 4, "b")]);
        behind.state.descriptor = split().state.descriptor;
        scene.apply(1, behind).unwrap();
        scene.apply(1, of_right()).unwrap();
        // Another store gets there later.
        scene.apply(2, split()).unwrap();
        scene.apply(2, of_right()).unwrap();
    }

    #[test]
    fn a_command_behind_the_split_that_was_meant_for_before_is_seen() {
        let mut scene = scene();
        propose(&mut scene, 0, "b");
        scene.apply(1, split()).unwrap();
        let mut behind = turn(&[entry(2, 4, "b")]);
        behind.state.descriptor = split().state.descriptor;
        caught(&scene.apply(1, behind), "proposed for generation [0]");
    }

    #[test]
    fn an_earlier_owner_that_goes_on_is_seen() {
        let mut scene = scene();
        scene.apply(1, split()).unwrap();
        scene.apply(1, of_right()).unwrap();
        let late = turn(&[entry(2, 3, "a"), entry(2, 4, "b")]);
        caught(&scene.apply(2, late), "has served its keys");
    }

    #[test]
    fn two_owners_at_one_generation_are_seen() {
        let mut scene = scene();
        scene.apply(1, split()).unwrap();
        let mut other = split();
        let mut descriptor = (*other.state.descriptor).clone();
        descriptor.range = Some(KeyRange::default());
        other.state.descriptor = descriptor.into();
        caught(&scene.apply(2, other), "at generation 1, and group");
    }

    #[test]
    fn reads_of_an_earlier_owner_count_from_when_they_were_asked_for() {
        let mut scene = scene();
        ask(&mut scene);
        scene.apply(1, split()).unwrap();
        scene.apply(1, of_right()).unwrap();
        permit(&mut scene, 0, "x").unwrap();
        ask(&mut scene);
        permit(&mut scene, 0, "a").unwrap();
        permit(&mut scene, 1, "x").unwrap();
        caught(
            &permit(&mut scene, 0, "x"),
            "had served before anybody asked",
        );
    }

    #[test]
    fn other_families_are_others() {
        let mut scene = scene();
        scene.apply(1, split()).unwrap();
        let mut foreign = state(1, 2);
        let mut descriptor = (*foreign.descriptor).clone();
        descriptor.group = GroupId(20);
        descriptor.epoch.range = 1;
        foreign.descriptor = descriptor.into();
        scene
            .see(&Observation::Created {
                store: StoreId(3),
                state: &foreign,
            })
            .unwrap();
    }
}
