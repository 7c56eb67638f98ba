//! After the data of a replica is destroyed nothing is applied to it or restored for it, and in the end nothing of
//! it is on the disk; nor is anything of a group that was destroyed everywhere.

use std::collections::{BTreeMap, BTreeSet};

use polyraft_core::ReplicaId;
use polyraft_multiraft::{AppliedState, GroupId, StoreId};

use super::Property;
use super::books::Books;
use crate::observe::{End, Observation};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct NothingLeftBehind {
    /// Where data was destroyed: replicas below this are gone.
    dead: BTreeMap<(StoreId, GroupId), ReplicaId>,
    /// Groups that nobody wants any more.
    unwanted: BTreeSet<GroupId>,
}

impl NothingLeftBehind {
    /// A replica that ends while its snapshot is being installed takes the data with it, so only what comes after
    /// its data was destroyed is wrong.
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
                match each.find(|(_, before)| before.is_none()) {
                    None => Ok(()),
                    Some((item, _)) => {
                        let group = item.group;
                        Err(format!(
                            "store {store}: applied to group {group}, which has no data"
                        ))
                    }
                }
            }
            Observation::Created { store, state } | Observation::Restored { store, state } => {
                self.made(store, state)
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
        }
        Ok(())
    }
}
