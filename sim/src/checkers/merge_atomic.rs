//! A merge happens at once or not at all, on each store. What arrives is the right group as it was at its
//! freeze, which is the same everywhere; it is gone in the write in which the left one grows, no key of
//! either changes, and a crash takes back all of it or nothing.
//!
//! A snapshot that takes groups over does so only with groups whose first key it has, of a later generation.

use std::collections::BTreeMap;

use polyraft_core::Index;
use polyraft_multiraft::env::ApplyItem;
use polyraft_multiraft::{AppliedState, GroupDescriptor, GroupId, GroupMap, StoreId};

use super::Property;
use super::books::{Books, Data, absorbed};
use crate::observe::Observation;
use crate::sometimes;
use crate::world::untiled;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct MergeAtomic {
    /// Merges that a crash may take back, by store.
    volatile: BTreeMap<StoreId, Vec<Volatile>>,
    /// What has arrived first, by right group.
    arrived: GroupMap<Arrived>,
}

#[derive(Debug)]
struct Volatile {
    left: GroupId,
    /// The entry of the merge.
    at: Index,
    right: GroupId,
}

#[derive(Debug)]
struct Arrived {
    left: GroupId,
    at: Index,
    right: AppliedState,
    /// A digest of its keys.
    brought: Option<u64>,
}

/// The two make up what comes out, and the right one is as it was here.
fn united(
    item: &ApplyItem,
    right: &AppliedState,
    before: &AppliedState,
    here: Option<&Data>,
) -> Result<(), String> {
    let (left, after) = (&before.descriptor, &item.state.descriptor);
    let Some(here) = here else {
        return Err("its right neighbour has no data here".to_owned());
    };
    if here.applied != *right {
        return Err(format!("{right:?} arrives, and here is {:?}", here.applied));
    }
    let frozen = right.descriptor.frozen;
    let meant = frozen.is_some_and(|it| it.into == item.group && it.target == left.epoch);
    if !meant || frozen.is_some_and(|it| it.at != right.last) {
        return Err(format!("{right:?} is not frozen for {:?}", left.epoch));
    }
    let generation = after.epoch.range;
    if generation <= left.epoch.range || generation <= right.descriptor.epoch.range {
        return Err(format!("its generation does not grow: {generation}"));
    }
    let range = |descriptor: &GroupDescriptor| descriptor.range.clone();
    let (Some(one), Some(two), Some(whole)) = (range(left), range(&right.descriptor), range(after))
    else {
        return Err("merged without a range".to_owned());
    };
    let parts = vec![(item.group, one), (right.descriptor.group, two)];
    untiled(&whole, parts).map_or(Ok(()), Err)
}

impl MergeAtomic {
    fn applied(
        &mut self,
        store: StoreId,
        item: &ApplyItem,
        before: &AppliedState,
        here: Option<&Data>,
    ) -> Result<(), String> {
        let Some(right) = absorbed(item) else {
            return Ok(());
        };
        sometimes!(true, "world: merge by log");
        let (left, at) = (item.group, item.state.last.index);
        let group = right.descriptor.group;
        let volatile = self.volatile.entry(store).or_default();
        volatile.push(Volatile {
            left,
            at,
            right: group,
        });
        let known = self.arrived.entry(group).or_insert_with(|| Arrived {
            left,
            at,
            right: right.clone(),
            brought: None,
        });
        if known.right != *right || (known.left, known.at) != (left, at) {
            return Err(format!(
                "group {left} takes over {right:?} at {at}, elsewhere group {} at {} took over {:?}",
                known.left, known.at, known.right
            ));
        }
        united(item, right, before, here)
            .map_err(|why| format!("group {left} takes over group {group}: {why}"))
    }

    /// The keys that arrive are the same everywhere.
    fn brought(&mut self, right: GroupId, digest: u64) -> Result<(), String> {
        let Some(known) = self.arrived.get_mut(&right) else {
            return Ok(());
        };
        match *known.brought.get_or_insert(digest) {
            known if known != digest => Err(format!(
                "group {right} brings other keys than elsewhere: {digest:x}, {known:x}"
            )),
            _ => Ok(()),
        }
    }

    fn recovered(&mut self, store: StoreId, states: &[AppliedState]) -> Result<(), String> {
        let found = |group: GroupId| states.iter().find(|it| it.descriptor.group == group);
        for merge in self.volatile.remove(&store).unwrap_or_default() {
            let (left, at, right) = (merge.left, merge.at, merge.right);
            let stands = found(left).is_some_and(|left| left.last.index >= at);
            sometimes!(!stands, "world: merge taken back by a crash");
            sometimes!(stands, "world: merge kept over a crash");
            if found(right).is_some() == stands {
                return Err(format!(
                    "of the merge of groups {left} and {right} at {at} a crash has left {}",
                    match stands {
                        true => "both, and the first one has it",
                        false => "neither the merge nor the second one",
                    }
                ));
            }
        }
        Ok(())
    }
}

/// A snapshot takes over what is here of groups that were merged into its own.
fn taken_over(
    state: &AppliedState,
    subsumes: &[GroupDescriptor],
    here: &[Option<Data>],
) -> Result<(), String> {
    for (gone, here) in subsumes.iter().zip(here) {
        let (group, whole) = (gone.group, &state.descriptor);
        sometimes!(
            gone.frozen.is_some(),
            "world: merge by snapshot over a frozen group"
        );
        sometimes!(
            gone.frozen.is_none(),
            "world: merge by snapshot over a group that serves"
        );
        let has = match (&whole.range, &gone.range) {
            (Some(whole), Some(gone)) => whole.contains(&gone.start),
            _ => false,
        };
        let later = whole.epoch.range > gone.epoch.range;
        let same = here
            .as_ref()
            .is_some_and(|it| *it.applied.descriptor == *gone);
        if !has || !later || !same {
            return Err(format!(
                "the snapshot {state:?} takes over group {group}, {gone:?}; here is {here:?}"
            ));
        }
    }
    Ok(())
}

impl Property for MergeAtomic {
    fn name(&self) -> &'static str {
        "merge-atomic"
    }

    fn see(&mut self, seen: &Observation<'_>, books: &Books) -> Result<(), String> {
        let on = |store: StoreId| move |why: String| format!("store {store}: {why}");
        match *seen {
            Observation::Applied { store, items } => {
                let latest = books.latest();
                let each = items.iter().zip(&latest.before).zip(&latest.absorbed);
                for ((item, before), here) in each {
                    if let Some(before) = before {
                        self.applied(store, item, &before.applied, here.as_ref())
                            .map_err(on(store))?;
                    }
                }
                Ok(())
            }
            Observation::United {
                store,
                group,
                right,
                brought,
                before,
                after,
            } => {
                if after.is_some_and(|after| after != before) {
                    return Err(format!(
                        "store {store}: the merge of group {group} has changed its keys: \
                         {before:x}, {after:x?}"
                    ));
                }
                self.brought(right.descriptor.group, brought)
                    .map_err(on(store))
            }
            Observation::RecoveredData { store, states } => {
                self.recovered(store, states).map_err(on(store))
            }
            Observation::RecoveredMerges { merged, .. } => {
                sometimes!(!merged.is_empty(), "world: merge finished by a start");
                Ok(())
            }
            Observation::Restored {
                store,
                state,
                subsumes,
            } => {
                self.volatile.remove(&store);
                taken_over(state, subsumes, &books.latest().absorbed).map_err(on(store))
            }
            // What is durable on return is durable with what came before it.
            Observation::Flushed { store }
            | Observation::Created { store, .. }
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
    use polyraft_core::EntryId;

    use super::super::testing::{GROUP, Scene, caught, divide, frozen_right, state, unite};
    use super::*;

    const RIGHT: GroupId = GroupId(8);

    /// Group 7 was split at `m`, and the new group is frozen, on all stores.
    fn scene() -> Scene {
        let mut scene = Scene::of(MergeAtomic::default()).begun();
        for store in 1..=3 {
            scene.apply(store, divide(3, &[("m", RIGHT.0)])).unwrap();
            scene.flushed(store).unwrap();
            let mut freeze = super::super::testing::turn(&[super::super::testing::entry(1, 3, "")]);
            freeze.group = RIGHT;
            freeze.state = frozen_right();
            scene.apply(store, freeze).unwrap();
        }
        scene
    }

    fn left() -> AppliedState {
        divide(3, &[("m", RIGHT.0)]).state
    }

    fn whole() -> AppliedState {
        unite(4, frozen_right()).state
    }

    #[test]
    fn all_of_it_or_nothing_survives_a_crash() {
        for found in [vec![left(), frozen_right()], vec![whole()]] {
            let mut scene = scene();
            scene.apply(1, unite(4, frozen_right())).unwrap();
            scene.crash(1, true).unwrap();
            scene.found_data(1, &found).unwrap();
            scene.apply(2, unite(4, frozen_right())).unwrap();
        }
    }

    #[test]
    fn half_of_it_is_seen() {
        let mut scene = scene();
        scene.apply(1, unite(4, frozen_right())).unwrap();
        let both = scene.found_data(1, &[whole(), frozen_right()]);
        caught(&both, "both, and the first one has it");
        let mut scene = self::scene();
        scene.apply(1, unite(4, frozen_right())).unwrap();
        caught(&scene.found_data(1, &[left()]), "neither the merge nor");
        let mut scene = self::scene();
        scene.apply(1, unite(4, frozen_right())).unwrap();
        scene.flushed(1).unwrap();
        scene.found_data(1, &[whole()]).unwrap();
    }

    #[test]
    fn another_state_of_the_right_one_is_seen() {
        let mut scene = scene();
        let mut early = frozen_right();
        early.last = EntryId::new(1, 2);
        caught(&scene.apply(1, unite(4, early)), "arrives, and here is");
        let mut scene = self::scene();
        scene.apply(1, unite(4, frozen_right())).unwrap();
        caught(
            &scene.apply(2, unite(5, frozen_right())),
            "elsewhere group 7 at 4",
        );
    }

    #[test]
    fn a_right_one_that_is_not_frozen_for_this_is_seen() {
        let mut scene = scene();
        let mut thawed = frozen_right();
        let mut descriptor = (*thawed.descriptor).clone();
        descriptor.frozen = None;
        thawed.descriptor = descriptor.into();
        scene.created(1, &thawed).unwrap();
        caught(&scene.apply(1, unite(4, thawed)), "is not frozen for");
    }

    #[test]
    fn what_does_not_make_up_the_whole_is_seen() {
        let mut scene = scene();
        let mut item = unite(4, frozen_right());
        let mut descriptor = (*item.state.descriptor).clone();
        descriptor.range = left().descriptor.range.clone();
        item.state.descriptor = descriptor.into();
        caught(&scene.apply(1, item), "the last range ends at");
        let mut item = unite(4, frozen_right());
        let mut descriptor = (*item.state.descriptor).clone();
        descriptor.epoch.range = 2;
        item.state.descriptor = descriptor.into();
        caught(&self::scene().apply(1, item), "does not grow");
    }

    #[test]
    fn keys_that_change_or_differ_are_seen() {
        let united = |store, brought, after| {
            let right = frozen_right();
            let seen = Observation::United {
                store: StoreId(store),
                group: GROUP,
                right: &right,
                brought,
                before: 5,
                after,
            };
            let mut scene = scene();
            scene.apply(1, unite(4, frozen_right())).unwrap();
            let first = Observation::United {
                store: StoreId(1),
                group: GROUP,
                right: &right,
                brought: 9,
                before: 4,
                after: Some(4),
            };
            scene.see(&first).unwrap();
            scene.see(&seen)
        };
        united(2, 9, Some(5)).unwrap();
        united(2, 9, None).unwrap();
        caught(&united(2, 9, Some(6)), "has changed its keys");
        caught(&united(2, 8, Some(5)), "brings other keys");
    }

    #[test]
    fn a_snapshot_takes_over_what_it_contains_and_nothing_else() {
        let right = frozen_right();
        let over = |state: &AppliedState, gone: &GroupDescriptor| {
            scene().restored_over(1, state, std::slice::from_ref(gone))
        };
        over(&whole(), &right.descriptor).unwrap();
        caught(&over(&left(), &right.descriptor), "takes over group 8");
        let mut old = whole();
        let mut descriptor = (*old.descriptor).clone();
        descriptor.epoch.range = 1;
        old.descriptor = descriptor.into();
        caught(&over(&old, &right.descriptor), "takes over group 8");
        let other = &divide(3, &[("m", 8)]).state.descriptor;
        caught(&over(&whole(), other), "takes over group 7");
        let gone = scene().restored_over(1, &state(2, 4), &[]);
        gone.unwrap();
    }
}
