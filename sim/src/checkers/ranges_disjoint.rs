//! No two groups that have data on a store have a key in common.

use polyraft_multiraft::{GroupDescriptor, StoreId};

use super::Property;
use super::books::{Books, rights};
use crate::observe::Observation;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct RangesDisjoint;

fn alone(store: StoreId, new: &GroupDescriptor, books: &Books) -> Result<(), String> {
    let (Some(range), Some(book)) = (&new.range, books.store(store)) else {
        return Ok(());
    };
    let others = book.data.iter().filter(|(group, _)| **group != new.group);
    for (group, data) in others {
        let other = data.applied.descriptor.range.as_ref();
        if let Some(other) = other.filter(|other| other.overlaps(range)) {
            return Err(format!(
                "store {store}: group {} with {range:?} lies over group {group} with {other:?}",
                new.group
            ));
        }
    }
    Ok(())
}

impl Property for RangesDisjoint {
    fn name(&self) -> &'static str {
        "ranges-disjoint"
    }

    fn see(&mut self, seen: &Observation<'_>, books: &Books) -> Result<(), String> {
        match *seen {
            Observation::Created { store, state } | Observation::Restored { store, state, .. } => {
                alone(store, &state.descriptor, books)
            }
            Observation::Applied { store, items } => {
                let changed = items.iter().filter(|item| item.membership_changed);
                let descriptors = changed.map(|item| &item.state.descriptor);
                let kept = items.iter().flat_map(rights).filter(|right| right.keep);
                let mut descriptors = descriptors.chain(kept.map(|it| &it.state.descriptor));
                descriptors.try_for_each(|descriptor| alone(store, descriptor, books))
            }
            Observation::RecoveredData { store, states } => states
                .iter()
                .try_for_each(|state| alone(store, &state.descriptor, books)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use polyraft_multiraft::{AppliedState, GroupId, KeyRange};

    use super::super::testing::{Scene, caught, state};
    use super::*;

    fn with_range(group: u64, start: &'static str, end: Option<&'static str>) -> AppliedState {
        let mut state = state(1, 2);
        let mut descriptor = (*state.descriptor).clone();
        descriptor.group = GroupId(group);
        descriptor.range = Some(KeyRange {
            start: Bytes::from_static(start.as_bytes()),
            end: end.map(|end| Bytes::from_static(end.as_bytes())),
        });
        state.descriptor = descriptor.into();
        state
    }

    fn scene() -> Scene {
        let mut scene = Scene::of(RangesDisjoint);
        scene.created(1, &with_range(1, "b", Some("d"))).unwrap();
        scene
    }

    #[test]
    fn neighbours_and_other_stores_are_no_harm() {
        let mut scene = scene();
        scene.created(1, &with_range(2, "", Some("b"))).unwrap();
        scene.restored(1, &with_range(3, "d", None)).unwrap();
        scene.restored(1, &with_range(1, "b", Some("d"))).unwrap();
        scene.created(2, &with_range(4, "", None)).unwrap();
    }

    #[test]
    fn overlaps_are_seen_however_they_come() {
        for overlapping in [with_range(2, "c", None), with_range(2, "", None)] {
            caught(&scene().created(1, &overlapping), "group 2 with");
            caught(&scene().restored(1, &overlapping), "lies over group 1");
            let both = [overlapping, with_range(1, "b", Some("d"))];
            caught(&scene().found_data(1, &both), "lies over");
        }
    }

    #[test]
    fn a_range_is_free_when_its_data_is_gone() {
        let mut scene = scene();
        scene
            .destroyed_group(1, &with_range(1, "b", Some("d")))
            .unwrap();
        scene.created(1, &with_range(2, "c", None)).unwrap();
    }
}
