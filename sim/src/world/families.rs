//! Families: a group that operators have created, and all that it was split into since, but for what was
//! merged again.
//!
//! Clients know keys of a family and find the group that has them; what is checked of their operations is
//! checked per key of the family, whichever group served it. A number for a new group is written down before
//! anybody is asked to use it: so when a family ends, every number ever given out for it is ended, and a
//! split that is applied late finds the tombstones of its new groups.
//!
//! A group keeps its first key for as long as it lives: whoever has that key at a later generation has merged
//! the group into itself.
//!
//! Invariant: each number belongs to one family for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use polyraft_multiraft::{GroupDescriptor, GroupId, HostHandle, KeyRange, StoreId};

use super::operators::Task;
use super::{Stage, World};
use crate::observe::FamilyEnd;

/// The group that has a key, as far as somebody knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) group: GroupId,
    /// Of its range.
    pub(super) generation: u64,
}

/// Whether the descriptor says that the group has a key. Groups without a range have every key.
pub(super) fn has(descriptor: &GroupDescriptor, key: &[u8]) -> bool {
    let range = descriptor.range.as_ref();
    range.is_none_or(|range| range.contains(key))
}

impl World {
    /// Families that serve, ascending.
    pub(super) fn families(&self) -> Vec<GroupId> {
        let families = self.groups.iter();
        let live = families.filter(|(_, family)| family.stage == Stage::Live);
        live.map(|(id, _)| *id).collect()
    }

    /// Groups of families that serve, as far as anybody has seen them, ascending.
    pub(super) fn live(&self) -> Vec<GroupId> {
        let families = self.groups.values();
        let live = families.filter(|family| family.stage == Stage::Live);
        let seen = live.flat_map(|family| {
            let seen = family.seen.keys();
            seen.filter(|group| !family.merged.contains(group))
        });
        let seen: BTreeSet<GroupId> = seen.copied().collect();
        seen.into_iter().collect()
    }

    /// The family that a group belongs to.
    pub(super) fn family_of(&self, group: GroupId) -> GroupId {
        self.parents.get(&group).copied().unwrap_or(group)
    }

    /// Whether the family of a group serves.
    pub(super) fn is_live_family(&self, group: GroupId) -> bool {
        let family = self.groups.get(&self.family_of(group));
        family.is_some_and(|family| family.stage == Stage::Live)
    }

    /// Whether a group serves: its family does, and it was not merged into another one.
    pub(super) fn is_live(&self, group: GroupId) -> bool {
        self.is_live_family(group) && !self.is_merged(group)
    }

    /// Whether a group is known to have been merged into another one.
    pub(super) fn is_merged(&self, group: GroupId) -> bool {
        let family = self.groups.get(&self.family_of(group));
        family.is_some_and(|family| family.merged.contains(&group))
    }

    /// The keys of a family, before any split.
    pub(super) fn keys_of(&self, family: GroupId) -> KeyRange {
        let known = self.groups.get(&family);
        let range = known.and_then(|known| known.descriptor.range.clone());
        range.unwrap_or_default()
    }

    /// New numbers for groups that a family may be split into.
    pub(super) fn numbers(&mut self, family: GroupId, count: usize) -> Vec<GroupId> {
        let Some(known) = self.groups.get_mut(&family) else {
            return Vec::new();
        };
        let first = self.operators.next_group;
        let numbers: Vec<GroupId> = (first..).take(count).map(GroupId).collect();
        self.operators.next_group += count as u64;
        known.numbers.extend(&numbers);
        self.parents
            .extend(numbers.iter().map(|number| (*number, family)));
        numbers
    }

    /// Groups that splits have made become known, and those that merges have ended.
    pub(super) fn discover(&mut self) {
        let mut new: BTreeMap<GroupId, Arc<GroupDescriptor>> = BTreeMap::new();
        let all = self.running().flat_map(|(_, handle)| handle.descriptors());
        let all: Vec<Arc<GroupDescriptor>> = all.collect();
        for descriptor in &all {
            let group = descriptor.group;
            let family = self.parents.get(&group).and_then(|it| self.groups.get(it));
            let known = family.is_none_or(|family| family.seen.contains_key(&group));
            if !known && !descriptor.members.is_empty() {
                new.entry(group).or_insert_with(|| Arc::clone(descriptor));
            }
        }
        for (group, descriptor) in &new {
            let family = self.family_of(*group);
            if let Some(family) = self.groups.get_mut(&family) {
                let range = descriptor.range.clone().unwrap_or_default();
                let first = (range.start, descriptor.epoch.range);
                family.seen.insert(*group, first);
            }
        }
        self.notice_merges(&all);
        for (group, descriptor) in new {
            if self.is_live(group) {
                self.mend(&descriptor);
            }
        }
    }

    /// Groups whose first key is another one's by now are no more.
    fn notice_merges(&mut self, all: &[Arc<GroupDescriptor>]) {
        for descriptor in all {
            let (group, generation) = (descriptor.group, descriptor.epoch.range);
            let family = self.family_of(group);
            let known = self.groups.get_mut(&family);
            let (Some(known), Some(range)) = (known, &descriptor.range) else {
                continue;
            };
            for (other, (start, since)) in &known.seen {
                if *other != group && generation > *since && range.contains(start) {
                    known.merged.insert(*other);
                }
            }
        }
    }

    /// A group that became known late may have members on stores that were lost before.
    fn mend(&mut self, descriptor: &GroupDescriptor) {
        let members = descriptor.members.iter().map(|member| member.store);
        let lost: Vec<StoreId> = members.filter(|store| self.is_lost(*store)).collect();
        for store in lost {
            let mut new = store;
            while let Some(next) = self.nemesis.replacements.get(&new) {
                new = *next;
            }
            self.replace_late(descriptor.group);
            self.begin_task(Task::Replace(descriptor.group, store, new));
        }
    }

    pub(super) fn is_lost(&self, store: StoreId) -> bool {
        self.stores.get(&store).is_some_and(|store| store.lost)
    }

    /// The newest descriptor of each group of a family that any store has, but for those that are known to
    /// have been merged into others.
    pub(super) fn newest(&self, family: GroupId) -> BTreeMap<GroupId, Arc<GroupDescriptor>> {
        let mut newest: BTreeMap<GroupId, Arc<GroupDescriptor>> = BTreeMap::new();
        let Some(known) = self.groups.get(&family) else {
            return newest;
        };
        for (_, handle) in self.running() {
            for group in known.numbers.difference(&known.merged) {
                let found = handle.descriptor(*group);
                let Some(found) = found.filter(|found| !found.members.is_empty()) else {
                    continue;
                };
                let age = |it: &GroupDescriptor| (it.epoch.range, it.epoch.membership);
                let newer = newest.get(group).is_none_or(|it| age(it) < age(&found));
                if newer {
                    newest.insert(*group, found);
                }
            }
        }
        newest
    }

    /// What is wrong with the ranges of a family's groups, if they do not lie behind each other.
    pub(super) fn holes(&self, family: GroupId) -> Option<String> {
        let known = self.groups.get(&family)?;
        let whole = known.descriptor.range.as_ref()?;
        let newest = self.newest(family);
        let ranges = newest.iter();
        let ranges = ranges.filter_map(|(group, it)| Some((*group, it.range.clone()?)));
        untiled(whole, ranges.collect())
    }

    /// Families as they are at the end.
    pub(super) fn families_at_the_end(&self) -> Vec<FamilyEnd> {
        let live = self.families();
        let family = |family: &GroupId| {
            let known = self.groups.get(family)?;
            Some(FamilyEnd {
                range: known.descriptor.range.clone(),
                groups: known.numbers.iter().copied().collect(),
            })
        };
        live.iter().filter_map(family).collect()
    }

    /// The group of a family that has a key, as a store sees it.
    pub(super) fn route(&self, handle: &HostHandle, family: GroupId, key: &Bytes) -> Option<Route> {
        let all = handle.descriptors().into_iter();
        let of_family = all.filter(|it| self.family_of(it.group) == family);
        let with_key = of_family.filter(|it| !it.members.is_empty() && has(it, key));
        let newest = with_key.max_by_key(|it| (it.epoch.range, it.group));
        newest.map(|it| Route {
            group: it.group,
            generation: it.epoch.range,
        })
    }
}

/// What is wrong with ranges that ought to lie behind each other and make up the whole.
pub(crate) fn untiled(whole: &KeyRange, mut ranges: Vec<(GroupId, KeyRange)>) -> Option<String> {
    ranges.sort_by(|(_, one), (_, two)| one.start.cmp(&two.start));
    let mut next = Some(whole.start.clone());
    for (group, range) in &ranges {
        match &next {
            Some(next) if *next == range.start => {}
            _ => {
                let before =
                    next.map_or("the end of all keys".to_owned(), |key| format!("{key:?}"));
                return Some(format!(
                    "what is before group {group} ends at {before}, its range is {range:?}"
                ));
            }
        }
        next.clone_from(&range.end);
    }
    (next != whole.end).then(|| format!("the last range ends at {next:?}, all of them {whole:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: &'static str, end: &'static str) -> KeyRange {
        KeyRange {
            start: Bytes::from_static(start.as_bytes()),
            end: (!end.is_empty()).then(|| Bytes::from_static(end.as_bytes())),
        }
    }

    fn of(ranges: &[(&'static str, &'static str)]) -> Vec<(GroupId, KeyRange)> {
        let each = ranges.iter().map(|(start, end)| range(start, end));
        (1..).map(GroupId).zip(each).collect()
    }

    #[test]
    fn ranges_behind_each_other_make_up_the_whole() {
        let whole = range("b", "x");
        for good in [
            &[("b", "x")][..],
            &[("m", "x"), ("b", "m")],
            &[("b", "c"), ("p", "x"), ("c", "p")],
        ] {
            assert_eq!(untiled(&whole, of(good)), None);
        }
        assert_eq!(untiled(&range("", ""), of(&[("", "d"), ("d", "")])), None);
    }

    #[test]
    fn holes_and_overlaps_are_told() {
        let whole = range("b", "x");
        for (bad, words) in [
            (&[][..], "the last range ends at"),
            (&[("b", "m")], "the last range ends at"),
            (&[("c", "x")], "before group 1 ends at"),
            (&[("b", "m"), ("n", "x")], "before group 2 ends at"),
            (&[("b", "n"), ("m", "x")], "before group 2 ends at"),
            (&[("b", ""), ("m", "x")], "the end of all keys"),
            (&[("b", "")], "the last range ends at None"),
        ] {
            let told = untiled(&whole, of(bad)).expect("it is wrong");
            assert!(told.contains(words), "{told}");
        }
    }
}
