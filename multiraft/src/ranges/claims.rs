//! Which key ranges groups of this store own, or are about to.
//!
//! Data of groups with a range lies under the user's own keys, so two overlapping groups on one store
//! would write over each other and the removal of one would delete the other's data. A range is claimed
//! before the first byte of its data is written and stays claimed until the last one is gone: longer than
//! the replica is in the router, at both ends.
//!
//! Invariants: claimed ranges do not overlap; a group has at most one.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

use crate::group::{GroupId, KeyRange};

/// See the module. The [registry](super::registry) keeps it.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    /// By first key.
    by_start: BTreeMap<Bytes, GroupId>,
    by_group: HashMap<GroupId, KeyRange>,
}

impl Claims {
    /// The range is the group's until it is released, instead of the one that was before. A group without
    /// a range has keys of its own and claims nothing.
    ///
    /// # Errors
    /// The group that owns some of it; nothing has changed then.
    pub(crate) fn claim(
        &mut self,
        group: GroupId,
        range: Option<&KeyRange>,
    ) -> Result<(), GroupId> {
        let Some(range) = range else { return Ok(()) };
        if let Some(owner) = self.overlapping(group, range) {
            return Err(owner);
        }
        self.release(group);
        self.by_start.insert(range.start.clone(), group);
        self.by_group.insert(group, range.clone());
        Ok(())
    }

    /// The range of a group.
    pub(crate) fn of(&self, group: GroupId) -> Option<&KeyRange> {
        self.by_group.get(&group)
    }

    /// Another group that owns some of `range`.
    pub(crate) fn overlapping(&self, group: GroupId, range: &KeyRange) -> Option<GroupId> {
        self.all_overlapping(group, range).next()
    }

    /// All of them, from the last one to the first.
    pub(crate) fn all_overlapping<'a>(
        &'a self,
        group: GroupId,
        range: &'a KeyRange,
    ) -> impl Iterator<Item = GroupId> + 'a {
        // Claimed ranges are disjoint, so from the end backwards the first one that lies wholly below
        // ends the search.
        let below_end = self.by_start.iter().rev().filter(move |(start, _)| {
            let below = range.end.as_ref().is_none_or(|end| *start < end);
            below || **start == range.start
        });
        below_end
            .map(|(_, owner)| *owner)
            .filter(move |owner| *owner != group)
            .map_while(move |owner| {
                let owned = self.by_group.get(&owner)?;
                owned.overlaps(range).then_some(owner)
            })
    }

    /// The group whose range ends where this one begins.
    pub(crate) fn ends_at(&self, range: &KeyRange) -> Option<GroupId> {
        let (_, owner) = self.by_start.range(..range.start.clone()).next_back()?;
        let end = self.by_group.get(owner)?.end.as_ref();
        (end == Some(&range.start)).then_some(*owner)
    }

    pub(crate) fn release(&mut self, group: GroupId) {
        if let Some(range) = self.by_group.remove(&group) {
            self.by_start.remove(&range.start);
        }
    }
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

    #[test]
    fn a_range_has_one_owner_until_it_is_released() {
        let mut claims = Claims::default();
        let (one, two, three) = (GroupId(1), GroupId(2), GroupId(3));
        assert_eq!(claims.claim(one, Some(&range("b", "d"))), Ok(()));
        assert_eq!(claims.claim(one, Some(&range("b", "d"))), Ok(()));
        for overlap in [
            range("", ""),
            range("a", "c"),
            range("c", "e"),
            range("b", "d"),
            range("bb", "c"),
        ] {
            assert_eq!(claims.claim(two, Some(&overlap)), Err(one), "{overlap:?}");
        }
        assert_eq!(claims.claim(two, Some(&range("d", ""))), Ok(()));
        assert_eq!(claims.claim(three, Some(&range("", "b"))), Ok(()));
        assert_eq!(claims.claim(three, Some(&range("", "bb"))), Err(one));
        claims.release(one);
        assert_eq!(claims.claim(three, Some(&range("", "bb"))), Ok(()));
        assert_eq!(claims.claim(one, Some(&range("b", "d"))), Err(three));
        assert_eq!(claims.claim(one, Some(&range("bb", "d"))), Ok(()));
        assert_eq!(claims.claim(one, None), Ok(()));
    }

    proptest::proptest! {
        /// Beside a list that is searched from end to end.
        #[test]
        fn finds_what_a_full_search_finds(
            steps in proptest::collection::vec((0u64..6, 0u8..12, 0u8..14, proptest::bool::ANY), 1..60),
        ) {
            let mut claims = Claims::default();
            let mut twin: Vec<(GroupId, KeyRange)> = Vec::new();
            for (group, start, end, release) in steps {
                let group = GroupId(group);
                if release {
                    claims.release(group);
                    twin.retain(|(owner, _)| *owner != group);
                    continue;
                }
                let range = KeyRange {
                    start: Bytes::copy_from_slice(&[start]),
                    end: (end > start).then(|| Bytes::copy_from_slice(&[end])),
                };
                let free = !twin.iter().any(|(owner, owned)| *owner != group && owned.overlaps(&range));
                proptest::prop_assert_eq!(claims.claim(group, Some(&range)).is_ok(), free);
                if free {
                    twin.retain(|(owner, _)| *owner != group);
                    twin.push((group, range));
                }
            }
        }
    }
}
