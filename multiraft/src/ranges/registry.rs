//! Which replicas and ranges this store has, and which it may never have (again): what workers must agree
//! on although each owns its groups alone, because a split or a merge of one group makes or ends another
//! one, which may be on another worker.
//!
//! # Being born
//! A split that is applied gives data to new groups at once, but that is not durable yet: a crash takes it
//! back, and gives it to the old group again. So a new group begins when the split is flushed, and until then
//! it is *being born*: no message creates a replica of it here, ends one or speaks to it. Its keys stay
//! claimed by the old group meanwhile.
//!
//! # Invariants
//! Claimed ranges do not overlap. A group has at most one replica here, which is not below its tombstone.
//! Nothing of a group that is being born changes but by its birth.

use std::sync::atomic::Ordering;

use polyraft_core::{ReplicaId, planted};

use super::claims::Claims;
use crate::group::{GroupId, KeyRange};
use crate::group_map::GroupMap;
use crate::sync::{AtomicU64, Mutex};

/// See the module. Shared by the workers; locked only when groups begin, end or change their range, and while
/// one is being born.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    inner: Mutex<Inner>,
    /// Groups that are being born, so that nobody takes the lock for a message while there are none.
    births: AtomicU64,
}

#[derive(Debug, Default)]
struct Inner {
    claims: Claims,
    present: GroupMap<Presence>,
    /// The lowest replica id that may still be created, where it is known.
    lowest: GroupMap<ReplicaId>,
    /// Groups that are being born, with their replica here.
    births: GroupMap<ReplicaId>,
    /// What groups owned before a snapshot was offered to them, and those whose range it takes over.
    offered: GroupMap<Vec<(GroupId, KeyRange)>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Presence {
    replica: ReplicaId,
    standing: Standing,
}

/// How far a replica has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// It knows nothing but who it is.
    Uninitialised,
    /// It has data, or is being given some.
    Initialised,
    /// Its data is being removed.
    Ending,
}

/// Why a replica may not begin here, or not now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Taken {
    /// It is below the tombstone.
    #[error("it was destroyed here; a group or replica id is never used again")]
    Dead,
    /// Another replica of the group is here, or the group is being born or ended.
    #[error("another replica of it is here, or it is being created or destroyed")]
    Busy,
    /// This group owns some of the range.
    #[error("its range overlaps that of group {0}")]
    Range(GroupId),
}

/// Why a split cannot go on here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unready {
    /// An earlier replica of a new group is about to be gone.
    Wait,
    /// A new group exists already: the number was used before.
    Broken(String),
}

/// One of the new groups of a split: number, replica on this store, if there is to be one.
pub(crate) type Expected = (GroupId, Option<ReplicaId>);

/// See [`Registry::left_of`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LeftOf {
    pub(crate) touches: Option<GroupId>,
    pub(crate) expected: Option<GroupId>,
}

impl Registry {
    /// A replica begins, or begins again; `range` and more are its own when `initialised`. One that is
    /// here already, and uninitialised, may become initialised.
    ///
    /// # Errors
    /// Why not; nothing has changed then.
    pub(crate) fn enter(
        &self,
        group: GroupId,
        replica: ReplicaId,
        range: Option<&KeyRange>,
        initialised: bool,
    ) -> Result<(), Taken> {
        let mut inner = self.inner.lock();
        if inner.births.contains_key(&group) {
            return Err(Taken::Busy);
        }
        if replica < inner.lowest(group) {
            return Err(Taken::Dead);
        }
        let present = inner.present.get(&group);
        if present.is_some_and(|it| it.replica != replica || it.standing == Standing::Ending) {
            return Err(Taken::Busy);
        }
        inner.claims.claim(group, range).map_err(Taken::Range)?;
        inner.note(group, replica, initialised);
        Ok(())
    }

    /// A replica whose creation failed is not here after all.
    pub(crate) fn leave(&self, group: GroupId) {
        let mut inner = self.inner.lock();
        inner.present.remove(&group);
        inner.offered.remove(&group);
        inner.claims.release(group);
    }

    /// The replica of a group ends, or may never begin: no id below `next_replica` will. Its range stays
    /// claimed until [`Registry::gone`]. Returns the tombstone; none: the group is being born.
    pub(crate) fn end(&self, group: GroupId, next_replica: ReplicaId) -> Option<ReplicaId> {
        let mut inner = self.inner.lock();
        if inner.births.contains_key(&group) {
            return None;
        }
        let present = inner.present.get(&group).map(|it| it.replica);
        let above = present.map_or(ReplicaId::NONE, |id| ReplicaId(id.0.saturating_add(1)));
        let next_replica = next_replica.max(above).max(inner.lowest(group));
        if !planted!(TombstoneForgotten) {
            inner.lowest.insert(group, next_replica);
        }
        let presence = Presence {
            replica: present.unwrap_or_default(),
            standing: Standing::Ending,
        };
        inner.present.insert(group, presence);
        if planted!(RangeReleasedEarly) {
            inner.claims.release(group);
        }
        Some(next_replica)
    }

    /// Nothing is left of a replica that has ended.
    pub(crate) fn gone(&self, group: GroupId) {
        self.leave(group);
    }

    /// A tombstone that was found at the start.
    pub(crate) fn recover_tombstone(&self, group: GroupId, next_replica: ReplicaId) {
        self.inner.lock().lowest.insert(group, next_replica);
    }

    /// The lowest id that a replica of the group may still have here.
    pub(crate) fn lowest(&self, group: GroupId) -> ReplicaId {
        self.inner.lock().lowest(group)
    }

    /// A snapshot waits to be installed. What the group owns, and what it is to own, is its own until then:
    /// a crash may bring either back. `subsumed` are groups whose ranges it takes over; they have stopped.
    ///
    /// # Errors
    /// As [`Registry::enter`]; nothing has changed then.
    pub(crate) fn offer(
        &self,
        group: GroupId,
        offered: Option<&KeyRange>,
        subsumed: &[GroupId],
    ) -> Result<(), Taken> {
        let mut inner = self.inner.lock();
        if inner.births.contains_key(&group) {
            return Err(Taken::Busy);
        }
        let mut before: Vec<(GroupId, KeyRange)> = Vec::new();
        for owner in subsumed.iter().copied().chain([group]) {
            let range = inner.claims.of(owner).cloned();
            before.extend(range.map(|range| (owner, range)));
        }
        for owner in subsumed {
            inner.claims.release(*owner);
        }
        let owned = before.iter().map(|(_, range)| range);
        let all = offered.map(|offered| owned.fold(offered.clone(), |all, owned| all.hull(owned)));
        let claimed = inner.claims.claim(group, all.as_ref());
        if let Err(owner) = claimed {
            inner.restore(group, before);
            return Err(Taken::Range(owner));
        }
        inner.offered.insert(group, before);
        Ok(())
    }

    /// The snapshot is not going to be installed.
    pub(crate) fn withdraw(&self, group: GroupId) {
        let mut inner = self.inner.lock();
        if let Some(before) = inner.offered.remove(&group) {
            inner.restore(group, before);
        }
    }

    /// The snapshot is installed: from now on the group owns this and nothing else.
    ///
    /// # Errors
    /// As [`Registry::enter`]; this cannot happen to who has claimed it.
    pub(crate) fn settle(
        &self,
        group: GroupId,
        replica: ReplicaId,
        range: Option<&KeyRange>,
    ) -> Result<(), Taken> {
        let mut inner = self.inner.lock();
        inner.offered.remove(&group);
        if range.is_none() {
            inner.claims.release(group);
        }
        inner.claims.claim(group, range).map_err(Taken::Range)?;
        inner.note(group, replica, true);
        Ok(())
    }

    /// Other groups that own some of `range`, from the last one to the first.
    pub(crate) fn overlapping(&self, group: GroupId, range: Option<&KeyRange>) -> Vec<GroupId> {
        let inner = self.inner.lock();
        let owners = range.map(|range| inner.claims.all_overlapping(group, range));
        owners.into_iter().flatten().collect()
    }

    /// Whether nothing may reach a group. Costs nothing while no group is being born. Who looks just before
    /// that changes may still reach an uninitialised replica, which is no harm: what it promises its birth
    /// keeps, and [`Registry::offer`] looks again.
    pub(crate) fn is_being_born(&self, group: GroupId) -> bool {
        self.births.load(Ordering::Acquire) > 0 && self.inner.lock().births.contains_key(&group)
    }

    /// Whether there never was anything of a group here.
    pub(crate) fn is_unused(&self, group: GroupId) -> bool {
        let inner = self.inner.lock();
        !inner.births.contains_key(&group)
            && !inner.present.contains_key(&group)
            && !inner.lowest.contains_key(&group)
    }

    /// A split is about to be applied. Says for each new group whether it begins on this store: not if it
    /// is to have no replica here, or if that was removed, or replaced by a later one, before this store got
    /// to the split. Those that do are being born from now on.
    ///
    /// # Errors
    /// Nothing has changed then.
    pub(crate) fn conceive(&self, rights: &[Expected]) -> Result<Vec<bool>, Unready> {
        let mut inner = self.inner.lock();
        let mut keeps = Vec::new();
        for (group, replica) in rights {
            keeps.push(inner.keeps(*group, *replica)?);
        }
        for ((group, replica), keep) in rights.iter().zip(&keeps) {
            if let Some(replica) = replica.filter(|_| *keep && !planted!(BirthUnguarded)) {
                inner.births.insert(*group, replica);
            }
        }
        self.count(&inner);
        Ok(keeps)
    }

    /// The split did not happen here: its new groups may come by themselves.
    pub(crate) fn abandon(&self, rights: impl IntoIterator<Item = GroupId>) {
        let mut inner = self.inner.lock();
        for right in rights {
            inner.births.remove(&right);
        }
        self.count(&inner);
    }

    /// The split is durable: each group owns what is its own now.
    ///
    /// # Errors
    /// Somebody else owns some of it.
    pub(crate) fn divide<'a>(
        &self,
        left: (GroupId, Option<&'a KeyRange>),
        rights: impl IntoIterator<Item = (GroupId, Option<&'a KeyRange>)>,
    ) -> Result<(), GroupId> {
        let mut inner = self.inner.lock();
        inner.claims.claim(left.0, left.1)?;
        for (group, range) in rights {
            inner.claims.claim(group, range)?;
        }
        Ok(())
    }

    /// The merge is durable: the keys of the right group are the left one's.
    ///
    /// # Errors
    /// Somebody else owns some of it.
    pub(crate) fn unite(
        &self,
        left: GroupId,
        range: Option<&KeyRange>,
        right: GroupId,
    ) -> Result<(), GroupId> {
        let mut inner = self.inner.lock();
        inner.claims.release(right);
        inner.claims.claim(left, range)
    }

    /// Groups here that may be about to take `right` over: the one whose range ends where that of
    /// `right` begins, and the one that is `expected` to, although it has no such range yet.
    pub(crate) fn left_of(&self, right: GroupId, expected: Option<GroupId>) -> LeftOf {
        let inner = self.inner.lock();
        let range = inner.claims.of(right);
        let touches = range.and_then(|range| inner.claims.ends_at(range));
        LeftOf {
            touches: touches.filter(|group| inner.is_here(*group)),
            expected: expected.filter(|group| inner.is_here(*group)),
        }
    }

    /// A group that was being born is here.
    pub(crate) fn born(&self, group: GroupId) {
        let mut inner = self.inner.lock();
        if let Some(replica) = inner.births.remove(&group) {
            inner.note(group, replica, true);
        }
        self.count(&inner);
    }

    fn count(&self, inner: &Inner) {
        let births = inner.births.len() as u64;
        self.births.store(births, Ordering::Release);
    }
}

impl Inner {
    /// What was owned until now by one is owned by several again.
    fn restore(&mut self, group: GroupId, before: Vec<(GroupId, KeyRange)>) {
        self.claims.release(group);
        for (owner, range) in before {
            // Nobody else can own any of it.
            let _disjoint = self.claims.claim(owner, Some(&range));
        }
    }

    fn is_here(&self, group: GroupId) -> bool {
        let present = self.present.get(&group);
        let stays = present.is_some_and(|it| it.standing != Standing::Ending);
        // Between the end of a split and the birth of its groups their ranges are claimed already.
        stays || self.births.contains_key(&group)
    }

    fn lowest(&self, group: GroupId) -> ReplicaId {
        self.lowest.get(&group).copied().unwrap_or_default()
    }

    fn note(&mut self, group: GroupId, replica: ReplicaId, initialised: bool) {
        let standing = if initialised {
            Standing::Initialised
        } else {
            Standing::Uninitialised
        };
        let presence = Presence { replica, standing };
        let known = self.present.entry(group).or_insert(presence);
        if initialised {
            *known = presence;
        }
    }

    /// Whether a new group of a split begins here.
    fn keeps(&self, group: GroupId, replica: Option<ReplicaId>) -> Result<bool, Unready> {
        let broken = |why: &str| Err(Unready::Broken(format!("new group {group}: {why}")));
        if self.births.contains_key(&group) {
            return broken("it is being born already");
        }
        let Some(replica) = replica else {
            return Ok(false);
        };
        match self.present.get(&group) {
            Some(here) if here.standing == Standing::Ending => return Err(Unready::Wait),
            Some(here) if here.standing == Standing::Initialised => {
                return broken("its number is in use");
            }
            Some(here) if here.replica > replica => return Ok(false),
            Some(here) if here.replica < replica => {
                return broken("an earlier replica of it is here, which never was a member");
            }
            _ => {}
        }
        Ok(self.lowest(group) <= replica || planted!(NewGroupFromTombstone))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const LEFT: GroupId = GroupId(1);
    const RIGHT: GroupId = GroupId(2);
    const ID: ReplicaId = ReplicaId(5);

    fn range(start: &'static str, end: &'static str) -> KeyRange {
        KeyRange {
            start: Bytes::from_static(start.as_bytes()),
            end: (!end.is_empty()).then(|| Bytes::from_static(end.as_bytes())),
        }
    }

    fn with_left() -> Registry {
        let registry = Registry::default();
        let entered = registry.enter(LEFT, ID, Some(&range("a", "z")), true);
        assert_eq!(entered, Ok(()));
        registry
    }

    #[test]
    fn while_a_group_is_being_born_nothing_else_happens_to_it() {
        let registry = with_left();
        assert!(!registry.is_being_born(RIGHT));
        assert_eq!(registry.conceive(&[(RIGHT, Some(ID))]), Ok(vec![true]));
        assert!(registry.is_being_born(RIGHT) && !registry.is_being_born(LEFT));
        let right = range("m", "z");
        let busy = Err(Taken::Busy);
        assert_eq!(registry.enter(RIGHT, ID, None, false), busy);
        assert_eq!(registry.enter(RIGHT, ReplicaId(9), None, false), busy);
        assert_eq!(registry.offer(RIGHT, Some(&right), &[]), busy);
        assert_eq!(registry.overlapping(RIGHT, Some(&right)), [LEFT]);
        assert_eq!(registry.end(RIGHT, ReplicaId(u64::MAX)), None);
        let again = registry.conceive(&[(RIGHT, Some(ID))]);
        assert!(matches!(again, Err(Unready::Broken(_))), "{again:?}");

        let left = range("a", "m");
        let divided = registry.divide((LEFT, Some(&left)), [(RIGHT, Some(&right))]);
        assert_eq!(divided, Ok(()));
        registry.born(RIGHT);
        assert!(!registry.is_being_born(RIGHT));
        assert_eq!(registry.enter(RIGHT, ID, Some(&right), true), Ok(()));
        assert_eq!(
            registry.enter(GroupId(3), ID, Some(&range("n", "o")), true),
            Err(Taken::Range(RIGHT))
        );
        assert_eq!(registry.end(RIGHT, ID), Some(ReplicaId(6)));
    }

    /// Whoever asks whether a group may go that its left neighbour might still take over must see
    /// that neighbour also while it is being born.
    #[test]
    fn a_left_neighbour_that_is_being_born_is_here() {
        let (registry, last) = (with_left(), GroupId(3));
        let entered = registry.enter(last, ID, Some(&range("z", "")), true);
        assert_eq!(entered, Ok(()));
        let touches = |registry: &Registry| registry.left_of(last, None).touches;
        assert_eq!(touches(&registry), Some(LEFT));
        assert_eq!(registry.conceive(&[(RIGHT, Some(ID))]), Ok(vec![true]));
        assert_eq!(touches(&registry), Some(LEFT));
        let (left, right) = (range("a", "m"), range("m", "z"));
        let divided = registry.divide((LEFT, Some(&left)), [(RIGHT, Some(&right))]);
        assert_eq!(divided, Ok(()));
        let both = LeftOf {
            touches: Some(RIGHT),
            expected: Some(RIGHT),
        };
        assert_eq!(
            registry.left_of(last, Some(RIGHT)),
            both,
            "its birth is certain"
        );
        registry.born(RIGHT);
        assert_eq!(registry.left_of(last, Some(RIGHT)), both);
        assert_eq!(registry.end(RIGHT, ID), Some(ReplicaId(6)));
        let nobody = LeftOf {
            touches: None,
            expected: None,
        };
        assert_eq!(registry.left_of(last, Some(RIGHT)), nobody);
    }

    #[test]
    fn who_was_removed_or_replaced_is_not_born() {
        let registry = with_left();
        let removed = GroupId(3);
        assert_eq!(registry.end(removed, ReplicaId(6)), Some(ReplicaId(6)));
        let rights = [(RIGHT, Some(ID)), (removed, Some(ID))];
        assert_eq!(registry.conceive(&rights), Err(Unready::Wait));
        assert!(!registry.is_being_born(RIGHT), "all or nothing");
        registry.gone(removed);
        let (replaced, elsewhere) = (GroupId(4), GroupId(5));
        assert_eq!(registry.enter(replaced, ReplicaId(8), None, false), Ok(()));
        let rights = [
            (RIGHT, Some(ID)),
            (removed, Some(ID)),
            (replaced, Some(ID)),
            (elsewhere, None),
        ];
        let keeps = registry.conceive(&rights);
        assert_eq!(keeps, Ok(vec![true, false, false, false]));
        assert_eq!(registry.enter(removed, ReplicaId(6), None, false), Ok(()));
        assert_eq!(registry.end(replaced, ReplicaId(9)), Some(ReplicaId(9)));
        registry.abandon([RIGHT]);
        assert_eq!(registry.enter(RIGHT, ID, None, false), Ok(()));
        assert_eq!(registry.conceive(&[(RIGHT, Some(ID))]), Ok(vec![true]));
    }

    #[test]
    fn a_number_that_is_in_use_breaks_the_split() {
        let registry = with_left();
        let broken = |rights| matches!(registry.conceive(rights), Err(Unready::Broken(_)));
        assert!(broken(&[(LEFT, Some(ID))]));
        assert_eq!(registry.enter(RIGHT, ReplicaId(4), None, false), Ok(()));
        assert!(broken(&[(RIGHT, Some(ID))]));
    }

    #[test]
    fn a_waiting_snapshot_owns_both_ranges() {
        let registry = with_left();
        let (old, new, right) = (range("a", "z"), range("a", "m"), range("m", "z"));
        let taken = Err(Taken::Range(LEFT));
        assert_eq!(registry.offer(LEFT, Some(&new), &[]), Ok(()));
        assert_eq!(registry.offer(RIGHT, Some(&right), &[]), taken);
        registry.withdraw(LEFT);
        assert_eq!(registry.offer(RIGHT, Some(&right), &[]), taken);
        assert_eq!(registry.offer(LEFT, Some(&new), &[]), Ok(()));
        assert_eq!(registry.settle(LEFT, ID, Some(&new)), Ok(()));
        assert_eq!(registry.offer(RIGHT, Some(&right), &[]), Ok(()));
        assert_eq!(
            registry.offer(LEFT, Some(&old), &[]),
            Err(Taken::Range(RIGHT))
        );
        // It is not installed after all: its replica had no range before.
        registry.withdraw(RIGHT);
        assert_eq!(registry.offer(LEFT, Some(&old), &[]), Ok(()));
    }

    #[test]
    fn a_snapshot_may_take_neighbours_over() {
        let registry = with_left();
        let (last, all) = (GroupId(3), range("a", ""));
        for (group, range) in [(RIGHT, range("z", "zz")), (last, range("zz", ""))] {
            assert_eq!(registry.enter(group, ID, Some(&range), true), Ok(()));
        }
        assert_eq!(registry.overlapping(LEFT, Some(&all)), [last, RIGHT]);
        let one = registry.offer(LEFT, Some(&all), &[RIGHT]);
        assert_eq!(one, Err(Taken::Range(last)));
        assert_eq!(registry.overlapping(LEFT, Some(&all)), [last, RIGHT]);
        assert_eq!(registry.offer(LEFT, Some(&all), &[RIGHT, last]), Ok(()));
        assert_eq!(registry.overlapping(LEFT, Some(&all)), []);
        registry.withdraw(LEFT);
        assert_eq!(registry.overlapping(LEFT, Some(&all)), [last, RIGHT]);
        assert_eq!(registry.offer(LEFT, Some(&all), &[RIGHT, last]), Ok(()));
        assert_eq!(registry.settle(LEFT, ID, Some(&all)), Ok(()));
        assert_eq!(
            registry.end(last, ReplicaId(u64::MAX)),
            Some(ReplicaId(u64::MAX))
        );
        registry.gone(last);
        assert_eq!(registry.overlapping(RIGHT, Some(&all)), [LEFT]);
    }

    #[test]
    fn who_ends_keeps_its_range_until_it_is_gone() {
        let registry = with_left();
        assert_eq!(registry.end(LEFT, ReplicaId(3)), Some(ReplicaId(6)));
        let inside = range("b", "c");
        let taken = Err(Taken::Range(LEFT));
        assert_eq!(registry.enter(RIGHT, ID, Some(&inside), true), taken);
        assert_eq!(
            registry.enter(LEFT, ReplicaId(7), None, false),
            Err(Taken::Busy)
        );
        registry.gone(LEFT);
        assert_eq!(registry.enter(RIGHT, ID, Some(&inside), true), Ok(()));
        assert_eq!(registry.enter(LEFT, ID, None, false), Err(Taken::Dead));
        assert_eq!(registry.lowest(LEFT), ReplicaId(6));
        assert_eq!(registry.enter(LEFT, ReplicaId(6), None, false), Ok(()));
    }
}
