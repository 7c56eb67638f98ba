//! No two groups that have data on a store have a key in common.

use polyraft_multiraft::{GroupDescriptor, StoreId};

use super::Property;
use super::books::Books;
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
            Observation::Created { store, state } | Observation::Restored { store, state } => {
                alone(store, &state.descriptor, books)
            }
            Observation::Applied { store, items } => {
                let changed = items.iter().filter(|item| item.membership_changed);
                let mut descriptors = changed.map(|item| &item.state.descriptor);
                descriptors.try_for_each(|descriptor| alone(store, descriptor, books))
            }
            Observation::RecoveredData { store, states } => states
                .iter()
                .try_for_each(|state| alone(store, &state.descriptor, books)),
            _ => Ok(()),
        }
    }
}
