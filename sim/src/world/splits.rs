//! Operators who split groups: at one key or at many, on an epoch that has passed, or twice since they do
//! not know what became of the first wish. Where processes or the power fail anyway, they may do so in the
//! short time between the effect of a split and the flush that makes it certain.

use bytes::Bytes;
use polyraft_multiraft::{Epoch, GroupDescriptor, GroupId, Reject, SplitPiece, StoreId};

use super::operators::Task;
use super::{Phase, Told, World};
use crate::disk::CrashKind;
use crate::plan::Fault;
use crate::sometimes;
use crate::time::SECOND;

/// Changes that no group lives through while somebody wishes it to split.
const FAR: u64 = 1 << 32;

/// What a wish to split names.
#[derive(Clone, Debug)]
struct Wish {
    group: GroupId,
    expected: Epoch,
    pieces: Vec<SplitPiece>,
    /// The epoch is another one than the group's: the wish must not come true.
    stale: bool,
}

impl World {
    /// Some groups are asked to split.
    pub(super) fn split_some_groups(&mut self) {
        if self.operators.hold {
            return;
        }
        self.discover();
        let live = self.live();
        let some = 1 + self.nemesis.rng.below(3);
        for _ in 0..some {
            let group = self.nemesis.rng.pick(&live).copied();
            let Some(leader) = group.and_then(|group| self.leader(group)) else {
                continue;
            };
            let Some(wish) = group.and_then(|group| self.wish_to_split(leader, group)) else {
                continue;
            };
            self.ask_for_split(leader, &wish);
            let stores = self.present();
            let rng = &mut self.nemesis.rng;
            if rng.percent(15) {
                let stores: Vec<StoreId> = stores.into_iter().collect();
                let again = if rng.percent(50) {
                    Some(leader)
                } else {
                    rng.pick(&stores).copied()
                };
                if let Some(again) = again {
                    self.ask_for_split(again, &wish);
                }
            }
        }
    }

    /// A split that makes sense to a store, at keys that are drawn; its numbers are given out.
    fn wish_to_split(&mut self, store: StoreId, group: GroupId) -> Option<Wish> {
        let descriptor = self.stores.get(&store)?.handle()?.descriptor(group)?;
        let keys = self.subject.split_keys(descriptor.range.as_ref()?);
        let rng = &mut self.nemesis.rng;
        let percent = if rng.percent(60) { 1 } else { 60 };
        let one = rng.pick(&keys).cloned()?;
        let chosen = |key: &Bytes| *key == one || rng.percent(percent);
        let keys: Vec<Bytes> = keys.into_iter().filter(chosen).collect();
        let mut expected = descriptor.epoch;
        let stale = rng.percent(10);
        if stale {
            match rng.below(3) {
                0 => expected.range = expected.range.checked_sub(1)?,
                1 => expected.range += FAR,
                _ => expected.membership += FAR,
            }
        }
        let numbers = self.numbers(self.family_of(group), keys.len());
        let piece = |(start, group)| SplitPiece { start, group };
        let pieces = keys.into_iter().zip(numbers).map(piece).collect();
        Some(Wish {
            group,
            expected,
            pieces,
            stale,
        })
    }

    fn ask_for_split(&mut self, store: StoreId, wish: &Wish) {
        let Some(handle) = self.stores.get(&store).and_then(|s| s.handle().cloned()) else {
            return;
        };
        sometimes!(wish.pieces.len() > 1, "world: batch split asked for");
        let task = self.begin_task(Task::Split { stale: wish.stale });
        // Until somebody answers, or for so long.
        self.alarm(task, 20 * SECOND);
        let told = |told| Told::Split(Box::new(told));
        let respond = self.respond(task, store, told);
        handle.split(wish.group, wish.expected, wish.pieces.clone(), respond);
        self.kick(store);
        self.endanger(store, wish.group);
    }

    /// A member may be killed between two of the writes that follow, those of the split among them.
    pub(super) fn endanger(&mut self, store: StoreId, group: GroupId) {
        if !self.plan.has(Fault::Crash) || !self.nemesis.rng.percent(20) {
            return;
        }
        let handle = self.stores.get(&store).and_then(|store| store.handle());
        let Some(descriptor) = handle.and_then(|handle| handle.descriptor(group)) else {
            return;
        };
        let rng = &mut self.nemesis.rng;
        let writes = rng.magnitude(2, 40);
        if let Some(member) = rng.pick(&descriptor.members) {
            self.stores[&member.store].disk.kill_after(writes);
        }
    }

    /// The leader has applied a split or a merge, and said so, and may not have flushed it: there it may end.
    pub(super) fn end_before_the_flush(&mut self, store: StoreId) {
        let kind = match (self.plan.has(Fault::Crash), self.plan.has(Fault::PowerCut)) {
            (_, true) => CrashKind::Power,
            (true, false) => CrashKind::Process,
            (false, false) => return,
        };
        if self.phase == Phase::Chaos && self.nemesis.rng.percent(15) {
            self.crash(store, kind);
            self.start_later(store);
        }
    }

    /// What became of a wish.
    pub(super) fn split_told(
        &mut self,
        store: StoreId,
        stale: bool,
        told: &Result<Vec<GroupDescriptor>, Reject>,
    ) {
        match told {
            Ok(groups) if stale => {
                let what = format!("a split on another epoch took place: {groups:?}");
                self.observer.report("one-owner", what);
            }
            Ok(groups) => {
                sometimes!(true, "world: group split");
                sometimes!(groups.len() > 2, "world: group split into many");
                self.end_before_the_flush(store);
            }
            Err(Reject::StaleEpoch { .. }) => {
                sometimes!(true, "world: split refused for its epoch");
            }
            Err(Reject::Busy(_)) => sometimes!(true, "world: split refused busy"),
            Err(Reject::Ambiguous) => sometimes!(true, "world: split ambiguous"),
            Err(_) => {}
        }
    }
}
