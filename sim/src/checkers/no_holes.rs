//! In the end every key of a family (a group and what it was split into) is in the range of one of
//! its groups, and of one only, by the newest state of each that any disk holds.

use std::collections::BTreeMap;

use polyraft_multiraft::{GroupDescriptor, GroupId};

use super::Property;
use super::books::Books;
use crate::observe::{End, FamilyEnd, Observation};
use crate::world::untiled;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct NoHoles;

fn whole(family: &FamilyEnd, end: &End) -> Result<(), String> {
    let Some(range) = &family.range else {
        return Ok(());
    };
    let mut newest: BTreeMap<GroupId, &GroupDescriptor> = BTreeMap::new();
    let states = end.stores.iter().flat_map(|store| &store.data);
    for descriptor in states.map(|(state, _)| &state.descriptor) {
        let known = newest.entry(descriptor.group).or_insert(descriptor);
        if known.epoch.range < descriptor.epoch.range {
            *known = descriptor;
        }
    }
    let groups = family.groups.iter().filter_map(|group| {
        let descriptor = newest.get(group)?;
        Some((*group, descriptor.range.clone()?))
    });
    untiled(range, groups.collect()).map_or(Ok(()), Err)
}

impl Property for NoHoles {
    fn name(&self) -> &'static str {
        "no-holes"
    }

    fn see(&mut self, _seen: &Observation<'_>, _books: &Books) -> Result<(), String> {
        Ok(())
    }

    fn finish(&mut self, end: &End) -> Result<(), String> {
        end.families
            .iter()
            .try_for_each(|family| whole(family, end))
    }
}

#[cfg(test)]
mod tests {
    use polyraft_multiraft::{AppliedState, HostStats, KeyRange, StoreId};

    use super::super::books::rights;
    use super::super::testing::{GROUP, Scene, caught, divide, state};
    use super::*;
    use crate::observe::StoreEnd;

    fn store(id: u64, states: Vec<AppliedState>) -> StoreEnd {
        StoreEnd {
            store: StoreId(id),
            replicas: Vec::new(),
            stats: HostStats::default(),
            data: states.into_iter().map(|state| (state, 0)).collect(),
            leftovers: Vec::new(),
        }
    }

    fn end(stores: Vec<StoreEnd>) -> End {
        let family = FamilyEnd {
            range: Some(KeyRange::default()),
            groups: vec![GROUP, GroupId(8), GroupId(9), GroupId(10)],
        };
        End {
            stores,
            families: vec![family],
            ..End::default()
        }
    }

    #[test]
    fn groups_that_make_up_the_family() {
        let split = divide(3, &[("h", 8), ("m", 9)]);
        let new: Vec<AppliedState> = rights(&split).map(|right| right.state.clone()).collect();
        // One store has not heard of the split.
        let one = store(1, vec![split.state, new[0].clone()]);
        let two = store(2, vec![state(1, 2), new[1].clone()]);
        let mut scene = Scene::of(NoHoles);
        scene.finish(&end(vec![one, two])).unwrap();
    }

    #[test]
    fn holes_are_seen() {
        let split = divide(3, &[("h", 8), ("m", 9)]);
        let new: Vec<AppliedState> = rights(&split).map(|right| right.state.clone()).collect();
        let one = store(1, vec![split.state, new[1].clone()]);
        caught(
            &Scene::of(NoHoles).finish(&end(vec![one])),
            "before group 9 ends at",
        );
        let one = store(1, vec![state(1, 2), new[1].clone()]);
        caught(
            &Scene::of(NoHoles).finish(&end(vec![one])),
            "the end of all keys",
        );
    }
}
