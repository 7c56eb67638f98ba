//! A split happens at once or not at all, on each store: its new groups lie where the old one has
//! ended, their data is there in the same write in which the old one shrinks, and a crash takes back all
//! of it or nothing.

use std::collections::BTreeMap;

use polyraft_core::Index;
use polyraft_multiraft::env::ApplyItem;
use polyraft_multiraft::{AppliedState, BOOTSTRAP, GroupId, StoreId};

use super::Property;
use super::books::{Books, rights};
use crate::observe::Observation;
use crate::sometimes;
use crate::world::untiled;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct SplitAtomic {
    /// Splits that a crash may take back, by store.
    volatile: BTreeMap<StoreId, Vec<Volatile>>,
}

#[derive(Debug)]
struct Volatile {
    left: GroupId,
    /// The entry of the split.
    at: Index,
    /// New groups that have begun on this store.
    kept: Vec<GroupId>,
}

/// The parts make up the whole, at one generation, and none is there already.
fn divided(
    store: StoreId,
    item: &ApplyItem,
    before: &AppliedState,
    books: &Books,
) -> Result<(), String> {
    let (Some(whole), Some(left)) = (&before.descriptor.range, &item.state.descriptor.range) else {
        return Err("split without a range".to_owned());
    };
    let generation = item.state.descriptor.epoch.range;
    if generation <= before.descriptor.epoch.range {
        return Err(format!("its generation does not grow: {generation}"));
    }
    let mut parts = vec![(item.group, left.clone())];
    for right in rights(item) {
        let descriptor = &right.state.descriptor;
        if descriptor.epoch.range != generation || right.state.last != BOOTSTRAP {
            return Err(format!("a new group begins as {:?}", right.state));
        }
        parts.extend(descriptor.range.clone().map(|it| (descriptor.group, it)));
        let member = descriptor.replica_on(store);
        sometimes!(member.is_some() && !right.keep, "world: new group not kept");
        if member.is_none() && right.keep {
            let group = descriptor.group;
            return Err(format!("group {group} begins here and has no replica here"));
        }
    }
    if let Some(group) = books.latest().overwritten {
        return Err(format!("group {group} begins over data of its own"));
    }
    untiled(whole, parts).map_or(Ok(()), Err)
}

impl SplitAtomic {
    fn applied(
        &mut self,
        store: StoreId,
        item: &ApplyItem,
        before: &AppliedState,
        books: &Books,
    ) -> Result<(), String> {
        if rights(item).next().is_none() {
            return Ok(());
        }
        let kept = rights(item).filter(|right| right.keep);
        self.volatile.entry(store).or_default().push(Volatile {
            left: item.group,
            at: item.state.last.index,
            kept: kept.map(|it| it.state.descriptor.group).collect(),
        });
        divided(store, item, before, books)
            .map_err(|why| format!("store {store}, group {}: {why}", item.group))
    }

    fn recovered(
        &mut self,
        store: StoreId,
        states: &[AppliedState],
        books: &Books,
    ) -> Result<(), String> {
        let found = |group: GroupId| states.iter().find(|it| it.descriptor.group == group);
        let book = books.store(store);
        for state in states.iter().filter(|state| state.last == BOOTSTRAP) {
            let group = state.descriptor.group;
            let log = book.and_then(|book| book.written.logs.get(&group));
            let begun = log.is_some_and(|log| log.truncated == BOOTSTRAP);
            sometimes!(!begun, "world: birth finished by a start");
        }
        for split in self.volatile.remove(&store).unwrap_or_default() {
            let left = found(split.left);
            let stands = left.is_some_and(|left| left.last.index >= split.at);
            sometimes!(!stands, "world: split taken back by a crash");
            for group in split.kept {
                if found(group).is_some() != stands {
                    return Err(format!(
                        "store {store}: of the split of group {} at {} a crash has left {}",
                        split.left,
                        split.at,
                        match stands {
                            true => format!("the smaller group and not group {group}"),
                            false => format!("group {group} beside the whole one"),
                        }
                    ));
                }
            }
        }
        Ok(())
    }
}

impl Property for SplitAtomic {
    fn name(&self) -> &'static str {
        "split-atomic"
    }

    fn see(&mut self, seen: &Observation<'_>, books: &Books) -> Result<(), String> {
        match *seen {
            Observation::Applied { store, items } => {
                let mut each = items.iter().zip(&books.latest().before);
                each.try_for_each(|(item, before)| match before {
                    Some(before) => self.applied(store, item, &before.applied, books),
                    None => Ok(()),
                })
            }
            Observation::Divided {
                store,
                group,
                before,
                after,
            } if before != after => Err(format!(
                "store {store}: the split of group {group} has changed its keys: {before:x}, {after:x}"
            )),
            Observation::RecoveredData { store, states } => self.recovered(store, states, books),
            // What is durable on return is durable with what came before it.
            Observation::Flushed { store }
            | Observation::Created { store, .. }
            | Observation::Restored { store, .. }
            | Observation::Destroyed { store, .. }
            | Observation::Lost { store } => {
                self.volatile.remove(&store);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use polyraft_multiraft::env::RangeChange;

    use super::super::testing::{GROUP, Scene, caught, divide, state};
    use super::*;

    fn scene() -> Scene {
        Scene::of(SplitAtomic::default()).begun()
    }

    /// Entry 3 splits the group at `h` and `m`.
    fn split() -> ApplyItem {
        divide(3, &[("h", 8), ("m", 9)])
    }

    fn parts() -> Vec<AppliedState> {
        let split = split();
        let rights = rights(&split).map(|right| right.state.clone());
        [split.state.clone()].into_iter().chain(rights).collect()
    }

    #[test]
    fn all_of_it_or_nothing_survives_a_crash() {
        for found in [vec![state(1, 2)], parts()] {
            let mut scene = scene();
            scene.apply(1, split()).unwrap();
            scene.crash(1, true).unwrap();
            scene.found_data(1, &found).unwrap();
            scene.apply(2, split()).unwrap();
        }
    }

    #[test]
    fn half_of_it_is_seen() {
        let mut scene = scene();
        scene.apply(1, split()).unwrap();
        let seen = scene.found_data(1, &parts()[..2]);
        caught(&seen, "the smaller group and not group 9");
        let mut scene = self::scene();
        scene.apply(1, split()).unwrap();
        let seen = scene.found_data(1, &[state(1, 2), parts()[1].clone()]);
        caught(&seen, "group 8 beside the whole one");
    }

    #[test]
    fn what_is_flushed_may_end() {
        let mut scene = scene();
        scene.apply(1, split()).unwrap();
        scene.flushed(1).unwrap();
        scene.destroyed_group(1, &parts()[2]).unwrap();
        scene.found_data(1, &parts()[..2]).unwrap();
    }

    fn with(change: &dyn Fn(&mut Vec<polyraft_multiraft::env::SplitRight>)) -> Result<(), String> {
        let mut item = split();
        let Some(RangeChange::Split { rights }) = &mut item.range_change else {
            unreachable!("a split");
        };
        change(rights);
        scene().apply(1, item)
    }

    #[test]
    fn parts_that_do_not_make_up_the_whole_are_seen() {
        caught(&with(&|rights| drop(rights.remove(0))), "ends at");
        caught(&with(&|rights| drop(rights.pop())), "the last range ends");
        let later = with(&|rights| rights[1].state.last = state(1, 3).last);
        caught(&later, "a new group begins as");
        // What does not begin here is removed.
        with(&|rights| rights[0].keep = false).unwrap();
    }

    #[test]
    fn a_group_that_is_there_already_is_seen() {
        let mut scene = scene();
        scene.created(1, &parts()[1]).unwrap();
        caught(&scene.apply(1, split()), "group 8 begins over data");
    }

    #[test]
    fn keys_that_change_are_seen() {
        let divided = |before, after| Observation::Divided {
            store: StoreId(1),
            group: GROUP,
            before,
            after,
        };
        scene().see(&divided(5, 5)).unwrap();
        caught(&scene().see(&divided(5, 6)), "has changed its keys");
    }
}
