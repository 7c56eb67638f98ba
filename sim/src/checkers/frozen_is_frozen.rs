//! A frozen group does nothing until it is thawed: no command behind its freeze is applied, whatever its log
//! has there, nor anything at all unless a thaw follows; and nobody is given leave to read. And it is either
//! thawed or merged, never both, wherever that is.

use std::collections::BTreeMap;

use polyraft_core::{EntryId, Index};
use polyraft_multiraft::env::ApplyItem;
use polyraft_multiraft::{
    AppliedState, Frozen, GroupDescriptor, GroupId, GroupMap, RangeCommand, StoreId,
};

use super::Property;
use super::books::{Books, absorbed};
use crate::observe::Observation;
use crate::sometimes;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct FrozenIsFrozen {
    /// The generation with which each group was merged into another one.
    merged: GroupMap<u64>,
    /// The highest generation that each group was ever seen with.
    seen: GroupMap<u64>,
    /// Stores on which a group has come to its freeze.
    arrived: BTreeMap<(GroupId, EntryId), Vec<StoreId>>,
}

/// The entry that ends a freeze, among those up to `last`.
fn thaw(
    store: StoreId,
    group: GroupId,
    (before, frozen): (&GroupDescriptor, Frozen),
    last: Index,
    books: &Books,
) -> Option<Index> {
    let log = books.store(store)?.written.latest(group)?;
    let expected = before.epoch;
    let mut behind = (frozen.at.index.0 + 1..=last.0).map(Index);
    behind.find(|index| {
        let term = log.slot(*index).map(|slot| slot.term);
        let id = term.map(|term| EntryId {
            term,
            index: *index,
        });
        let command = id.and_then(|id| books.range_command(group, id));
        command == Some(&RangeCommand::Thaw { expected })
    })
}

impl FrozenIsFrozen {
    fn applied(
        &mut self,
        store: StoreId,
        item: &ApplyItem,
        before: &AppliedState,
        books: &Books,
    ) -> Result<(), String> {
        self.lives(&item.state.descriptor)?;
        if let Some(right) = absorbed(item) {
            self.ends(&right.descriptor)?;
        }
        let (was, is) = (before.descriptor.frozen, item.state.descriptor.frozen);
        let (group, last) = (item.group, item.state.last);
        let first = item.commands.first().map(|command| command.id.index);
        match (was, is) {
            (None, None) => Ok(()),
            (None, Some(frozen)) => {
                let late = item.commands.last().map(|command| command.id.index);
                if frozen.at != last || late.is_some_and(|late| late >= frozen.at.index) {
                    return Err(format!(
                        "{frozen:?}, and it is applied up to {last:?}, with a command at {late:?}"
                    ));
                }
                let stores = self.arrived.entry((group, frozen.at)).or_default();
                stores.push(store);
                sometimes!(
                    self.merged.contains_key(&group),
                    "world: freeze applied after the merge elsewhere"
                );
                Ok(())
            }
            (Some(frozen), Some(_)) => {
                // A thaw that is committed behind them lets entries pass that have no effect.
                let log = books.store(store).and_then(|it| it.written.latest(group));
                let end = log.map(|log| log.last().index).unwrap_or_default();
                let known = (&*before.descriptor, frozen);
                let thaw = thaw(store, group, known, end, books);
                match thaw.is_some_and(|thaw| last.index < thaw) && first.is_none() {
                    true => Ok(()),
                    false => Err(format!("{frozen:?}, and {last:?} is applied")),
                }
            }
            (Some(frozen), None) => {
                sometimes!(true, "world: group thawed");
                let known = (&*before.descriptor, frozen);
                match thaw(store, group, known, last.index, books) {
                    None => Err(format!("{frozen:?}, and nothing thaws it up to {last:?}")),
                    Some(thaw) if first.is_some_and(|first| first <= thaw) => Err(format!(
                        "{frozen:?}, and a command at {first:?} is applied, thawed at {thaw}"
                    )),
                    Some(thaw) => {
                        let behind = frozen.at.index.next() < thaw;
                        sometimes!(behind, "world: entries between a freeze and its thaw");
                        Ok(())
                    }
                }
            }
        }
    }

    /// A group is there with a generation.
    fn lives(&mut self, descriptor: &GroupDescriptor) -> Result<(), String> {
        let (group, generation) = (descriptor.group, descriptor.epoch.range);
        let seen = self.seen.entry(group).or_default();
        *seen = generation.max(*seen);
        match self.merged.get(&group) {
            Some(merged) if generation > *merged => Err(format!(
                "it is there with generation {generation}, and was merged with {merged}"
            )),
            _ => Ok(()),
        }
    }

    /// A group is merged into its left neighbour.
    fn ends(&mut self, right: &GroupDescriptor) -> Result<(), String> {
        let (group, generation) = (right.group, right.epoch.range);
        self.merged.insert(group, generation);
        match self.seen.get(&group) {
            Some(seen) if *seen > generation => Err(format!(
                "group {group} is merged with generation {generation}, and was seen with {seen}"
            )),
            _ => Ok(()),
        }
    }
}

impl Property for FrozenIsFrozen {
    fn name(&self) -> &'static str {
        "frozen-is-frozen"
    }

    fn see(&mut self, seen: &Observation<'_>, books: &Books) -> Result<(), String> {
        match *seen {
            Observation::Applied { store, items } => {
                let each = items.iter().zip(&books.latest().before);
                for (item, before) in each {
                    if let Some(before) = before {
                        let group = item.group;
                        self.applied(store, item, &before.applied, books)
                            .map_err(|why| format!("store {store}, group {group}: {why}"))?;
                    }
                }
                Ok(())
            }
            Observation::Restored { store, state, .. } => {
                let group = state.descriptor.group;
                self.lives(&state.descriptor)
                    .map_err(|why| format!("store {store}, group {group}: {why}"))
            }
            Observation::Permitted { descriptor, .. } => match descriptor.frozen {
                None => Ok(()),
                Some(frozen) => Err(format!(
                    "group {} permits to read, {frozen:?}",
                    descriptor.group
                )),
            },
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use polyraft_core::{Entry, EntryKind};

    use super::super::testing::{Scene, caught, entry, state, turn, unite};
    use super::*;

    const AT: EntryId = EntryId::new(2, 4);

    /// The group as of an entry, of a generation; frozen at entry 4 if that is 1.
    fn as_of(index: u64, generation: u64) -> AppliedState {
        let mut state = state(2, index);
        let mut descriptor = (*state.descriptor).clone();
        descriptor.epoch.range = generation;
        descriptor.frozen = (generation == 1).then_some(Frozen {
            into: GroupId(3),
            target: descriptor.epoch,
            at: AT,
        });
        state.descriptor = descriptor.into();
        state
    }

    /// Entry 4 freezes, entry 6 thaws; 3, 5 and 7 are commands.
    fn scene() -> Scene {
        let mut scene = Scene::of(FrozenIsFrozen::default()).begun();
        scene.elect(1, 2, 2);
        let expected = as_of(4, 1).descriptor.epoch;
        let host = |index, command: &RangeCommand| Entry {
            kind: EntryKind::Host,
            data: command.encode(),
            ..entry(2, index, "")
        };
        let freeze = RangeCommand::Freeze {
            expected: as_of(3, 0).descriptor.epoch,
            into: GroupId(3),
            target: expected,
        };
        let thaw = RangeCommand::Thaw { expected };
        let (a, b, c) = (entry(2, 3, "a"), entry(2, 5, "b"), entry(2, 7, "c"));
        let entries = [a, host(4, &freeze), b, host(6, &thaw), c];
        scene.replicate(1, &[2, 3], (1, 2), &entries);
        scene
    }

    fn item(commands: &[u64], last: u64, generation: u64) -> ApplyItem {
        let commands: Vec<Entry> = commands.iter().map(|it| entry(2, *it, "x")).collect();
        let mut item = turn(&[entry(2, last, "")]);
        if !commands.is_empty() {
            item.commands = turn(&commands).commands;
        }
        item.state = as_of(last, generation);
        item
    }

    #[test]
    fn a_group_that_freezes_and_thaws_is_no_harm() {
        let mut scene = scene();
        scene.apply(1, item(&[3], 4, 1)).unwrap();
        scene.apply(1, item(&[7], 7, 2)).unwrap();
        scene.apply(2, item(&[3], 3, 0)).unwrap();
        scene.apply(2, item(&[], 4, 1)).unwrap();
        scene.apply(2, item(&[], 5, 1)).unwrap();
        scene.apply(2, item(&[], 6, 2)).unwrap();
        scene.apply(2, item(&[7], 7, 2)).unwrap();
    }

    #[test]
    fn what_is_applied_behind_a_freeze_is_seen() {
        caught(
            &scene().apply(1, item(&[3, 5], 5, 1)),
            "it is applied up to",
        );
        let mut scene = scene();
        scene.apply(1, item(&[3], 4, 1)).unwrap();
        caught(&scene.apply(1, item(&[5], 5, 1)), "is applied");
        let mut scene = self::scene();
        scene.apply(1, item(&[3], 4, 1)).unwrap();
        caught(&scene.apply(1, item(&[], 6, 1)), "is applied");
        let mut scene = self::scene();
        scene.apply(1, item(&[3], 4, 1)).unwrap();
        caught(&scene.apply(1, item(&[5, 7], 7, 2)), "thawed at 6");
        let mut scene = self::scene();
        scene.apply(1, item(&[3], 4, 1)).unwrap();
        caught(&scene.apply(1, item(&[], 5, 2)), "nothing thaws it");
    }

    #[test]
    fn reads_of_a_frozen_group_are_seen() {
        let permit = |generation| {
            let state = as_of(4, generation);
            scene().see(&Observation::Permitted {
                client: 1,
                descriptor: &state.descriptor,
                key: &Bytes::from_static(b"x"),
            })
        };
        permit(0).unwrap();
        caught(&permit(1), "group 7 permits to read");
    }

    #[test]
    fn who_is_merged_and_thawed_is_seen() {
        let merge = || {
            let mut left = as_of(2, 0);
            let mut descriptor = (*left.descriptor).clone();
            descriptor.group = GroupId(3);
            left.descriptor = descriptor.into();
            let mut item = unite(3, as_of(4, 1));
            item.group = left.descriptor.group;
            let mut descriptor = (*item.state.descriptor).clone();
            descriptor.group = item.group;
            item.state.descriptor = descriptor.into();
            (left, item)
        };
        let mut scene = scene();
        let (left, item) = merge();
        scene.created(1, &left).unwrap();
        scene.apply(1, item).unwrap();
        scene.apply(2, self::item(&[3], 4, 1)).unwrap();
        caught(&scene.apply(2, self::item(&[], 6, 2)), "was merged with 1");
        let mut scene = self::scene();
        scene.apply(2, self::item(&[3], 4, 1)).unwrap();
        scene.apply(2, self::item(&[], 6, 2)).unwrap();
        let (left, item) = merge();
        scene.created(1, &left).unwrap();
        caught(&scene.apply(1, item), "was seen with 2");
    }
}
