//! After the data of a replica is destroyed nothing is applied to it or restored for it, and in the end
//! nothing of it is on the disk; nor is anything of a group that was destroyed everywhere, or merged into
//! another one anywhere.

use std::collections::{BTreeMap, BTreeSet};

use polyraft_core::ReplicaId;
use polyraft_multiraft::env::ApplyItem;
use polyraft_multiraft::{AppliedState, GroupId, StoreId};

use super::Property;
use super::books::{Books, absorbed, rights};
use crate::observe::{End, Observation};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct NothingLeftBehind {
    /// Where data was destroyed: replicas below this are gone.
    dead: BTreeMap<(StoreId, GroupId), ReplicaId>,
    /// Groups that nobody wants any more.
    unwanted: BTreeSet<GroupId>,
    /// Groups that were merged into others.
    merged: BTreeSet<GroupId>,
    /// Groups whose merge a crash may take back, by store.
    merging: BTreeMap<StoreId, Vec<GroupId>>,
}

impl NothingLeftBehind {
    /// A replica that ends while its snapshot is being installed takes the data with it, so only what comes
    /// after its data was destroyed is wrong.
    fn made(&self, store: StoreId, state: &AppliedState) -> Result<(), String> {
        let descriptor = &state.descriptor;
        let dead = self.dead.get(&(store, descriptor.group)).copied();
        match (descriptor.replica_on(store), dead) {
            (Some(replica), Some(dead)) if replica < dead => Err(format!(
                "store {store}: data of group {} for replica {replica}; those below {dead} are gone",
                descriptor.group
            )),
            _ => Ok(()),
        }
    }

    /// A group that a split makes begins only where none of it was ended.
    fn begins(&self, store: StoreId, state: &AppliedState, books: &Books) -> Result<(), String> {
        let group = state.descriptor.group;
        let book = books.store(store);
        let tombstone = book.and_then(|book| book.written.tombstones.get(&group));
        match (state.descriptor.replica_on(store), tombstone) {
            (Some(replica), Some(next)) if replica < *next => Err(format!(
                "store {store}: a split makes group {group} for replica {replica}; those below {next} \
                 are gone"
            )),
            _ => self.made(store, state),
        }
    }

    /// The data of a group is another one's.
    fn merges(&mut self, store: StoreId, items: &[ApplyItem]) {
        let gone = items.iter().filter_map(absorbed);
        for right in gone.map(|right| right.descriptor.group) {
            self.merged.insert(right);
            self.merging.entry(store).or_default().push(right);
        }
    }

    /// It is so for good.
    fn buried(&mut self, store: StoreId, groups: impl IntoIterator<Item = GroupId>) {
        for group in groups {
            self.merged.insert(group);
            self.dead.insert((store, group), ReplicaId(u64::MAX));
        }
    }

    fn destroyed(&mut self, store: StoreId, group: GroupId, books: &Books) {
        let book = books.store(store);
        let tombstone = book.and_then(|book| book.written.tombstones.get(&group));
        if let Some(tombstone) = tombstone {
            self.dead.insert((store, group), *tombstone);
        }
    }
}

impl Property for NothingLeftBehind {
    fn name(&self) -> &'static str {
        "nothing-left-behind"
    }

    fn see(&mut self, seen: &Observation<'_>, books: &Books) -> Result<(), String> {
        match *seen {
            Observation::Applied { store, items } => {
                let mut each = items.iter().zip(&books.latest().before);
                if let Some((item, _)) = each.find(|(_, before)| before.is_none()) {
                    let group = item.group;
                    return Err(format!(
                        "store {store}: applied to group {group}, which has no data"
                    ));
                }
                self.merges(store, items);
                let mut kept = items.iter().flat_map(rights).filter(|right| right.keep);
                kept.try_for_each(|right| self.begins(store, &right.state, books))
            }
            Observation::Created { store, state } => self.made(store, state),
            Observation::Restored {
                store,
                state,
                subsumes,
            } => {
                self.buried(store, subsumes.iter().map(|gone| gone.group));
                self.made(store, state)
            }
            Observation::Flushed { store } => {
                let durable = self.merging.remove(&store).unwrap_or_default();
                self.buried(store, durable);
                Ok(())
            }
            Observation::Crashed { store, .. } => {
                self.merging.remove(&store);
                Ok(())
            }
            Observation::Destroyed { store, descriptor } => {
                self.destroyed(store, descriptor.group, books);
                Ok(())
            }
            Observation::Group { group, wanted } => {
                if wanted {
                    self.unwanted.remove(&group);
                } else {
                    self.unwanted.insert(group);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn finish(&mut self, end: &End) -> Result<(), String> {
        for store in &end.stores {
            let id = store.store;
            if let Some(left) = store.leftovers.first() {
                let count = store.leftovers.len();
                return Err(format!(
                    "store {id}: {count} keys belong to nobody, as {left}"
                ));
            }
            let mut groups = store.data.iter().map(|(state, _)| state.descriptor.group);
            let of_group =
                |group: &GroupId| self.unwanted.contains(group) && !end.groups.contains(group);
            if let Some(group) = groups.find(of_group) {
                return Err(format!(
                    "store {id}: data of group {group}, which was destroyed"
                ));
            }
            let mut groups = store.data.iter().map(|(state, _)| state.descriptor.group);
            if let Some(group) = groups.find(|group| self.merged.contains(group)) {
                return Err(format!(
                    "store {id}: data of group {group}, which was merged into another one"
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{
        GROUP, Scene, caught, destroy_section, divide, entry, frozen_right, state, turn, unite,
    };
    use super::*;
    use crate::observe::StoreEnd;

    fn scene() -> Scene {
        let mut scene = Scene::of(NothingLeftBehind::default()).begun();
        scene.elect(1, 2, 2);
        scene.replicate(1, &[2], (1, 2), &[entry(2, 3, "a")]);
        scene
    }

    #[test]
    fn the_living_may_be_written_to_and_the_dying() {
        let mut scene = scene();
        scene.apply(1, turn(&[entry(2, 3, "a")])).unwrap();
        scene.durable(2, destroy_section(3));
        scene.apply(2, turn(&[entry(2, 3, "a")])).unwrap();
        scene.restored(2, &state(2, 3)).unwrap();
        scene.destroyed(2).unwrap();
    }

    #[test]
    fn the_dead_are_not_written_to() {
        let mut scene = scene();
        scene.durable(2, destroy_section(3));
        scene.destroyed(2).unwrap();
        caught(
            &scene.apply(2, turn(&[entry(2, 3, "a")])),
            "which has no data",
        );
        caught(&scene.restored(2, &state(2, 3)), "those below 3 are gone");
        caught(&scene.created(2, &state(1, 2)), "those below 3 are gone");
    }

    #[test]
    fn a_split_does_not_make_what_was_ended() {
        let mut scene = scene();
        scene.apply(1, divide(3, &[("m", 8)])).unwrap();
        let mut ended = destroy_section(u64::MAX);
        ended.group = GroupId(8);
        scene.durable(2, ended);
        let mut split = divide(3, &[("m", 8)]);
        caught(
            &scene.apply(2, divide(3, &[("m", 8)])),
            "a split makes group 8",
        );
        if let Some(polyraft_multiraft::env::RangeChange::Split { rights }) =
            &mut split.range_change
        {
            rights[0].keep = false;
        }
        scene.apply(2, split).unwrap();
    }

    /// On all stores, group 8 was made by a split, and has come to its freeze.
    fn apart() -> Scene {
        let mut scene = scene();
        for store in 1..=3 {
            scene.apply(store, divide(3, &[("m", 8)])).unwrap();
            scene.flushed(store).unwrap();
            let mut freeze = turn(&[entry(1, 3, "")]);
            freeze.group = GroupId(8);
            freeze.state = frozen_right();
            scene.apply(store, freeze).unwrap();
        }
        scene
    }

    #[test]
    fn a_merged_group_that_comes_back_is_seen() {
        let right = frozen_right();
        let mut scene = apart();
        scene.apply(1, unite(4, right.clone())).unwrap();
        scene.crash(1, true).unwrap();
        scene.restored(1, &right).unwrap();
        scene.apply(1, unite(4, right.clone())).unwrap();
        scene.flushed(1).unwrap();
        caught(&scene.restored(1, &right), "are gone");
        let whole = unite(4, right.clone()).state;
        let gone = std::slice::from_ref(&*right.descriptor);
        scene.restored_over(2, &whole, gone).unwrap();
        caught(&scene.restored(2, &right), "are gone");
    }

    #[test]
    fn a_merged_group_that_is_still_there_is_seen() {
        let mut scene = apart();
        scene.apply(1, unite(4, frozen_right())).unwrap();
        let mut end = end(Vec::new(), vec![GROUP]);
        scene.finish(&end).unwrap();
        end.stores[0].data.push((frozen_right(), 0));
        caught(&scene.finish(&end), "which was merged into another one");
    }

    fn end(leftovers: Vec<String>, groups: Vec<GroupId>) -> End {
        let store = StoreEnd {
            store: StoreId(1),
            replicas: Vec::new(),
            stats: polyraft_multiraft::HostStats::default(),
            data: vec![(state(2, 3), 0)],
            leftovers,
        };
        End {
            stores: vec![store],
            groups,
            ..End::default()
        }
    }

    #[test]
    fn what_is_left_in_the_end_is_seen() {
        let mut scene = scene();
        scene.finish(&end(Vec::new(), vec![GROUP])).unwrap();
        let left = end(vec!["data b\"x\"".to_owned()], vec![GROUP]);
        caught(&scene.finish(&left), "1 keys belong to nobody");
    }

    #[test]
    fn a_destroyed_group_that_is_still_there_is_seen() {
        let mut scene = scene();
        let unwanted = Observation::Group {
            group: GROUP,
            wanted: false,
        };
        scene.see(&unwanted).unwrap();
        caught(
            &scene.finish(&end(Vec::new(), Vec::new())),
            "which was destroyed",
        );
        scene.finish(&end(Vec::new(), vec![GROUP])).unwrap();
    }
}
