//! Which group holds a key, and on which stores it lives: a cache of hints.
//!
//! The truth is the descriptor that each group replicates. A hint that is out of date leads to a
//! store that says so, and the router asks again; nothing is ever decided by a hint alone.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Included, Unbounded};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;
use polyraft_multiraft::{GroupDescriptor, KeyRange};

/// Where one group is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Route {
    /// Which group.
    pub(crate) group: u64,
    /// Its keys; none: it has keys of its own.
    pub(crate) range: Option<KeyRange>,
    /// Where its members live.
    pub(crate) stores: Vec<u64>,
    /// The store that leads, if known; 0: unknown.
    pub(crate) leader: u64,
    /// Counts changes of membership: a route of a later epoch replaces an earlier one.
    pub(crate) epoch: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    inner: RwLock<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    groups: BTreeMap<u64, Arc<Route>>,
    by_start: BTreeMap<Bytes, u64>,
}

impl Directory {
    /// The group that holds `key`.
    #[must_use]
    pub(crate) fn of_key(&self, key: &[u8]) -> Option<Arc<Route>> {
        let inner = self.inner.read();
        let (_, group) = inner
            .by_start
            .range::<[u8], _>((Unbounded, Included(key)))
            .next_back()?;
        let route = inner.groups.get(group)?;
        let holds = route
            .range
            .as_ref()
            .is_some_and(|range| range.contains(key));
        holds.then(|| Arc::clone(route))
    }

    /// The group that holds the last keys before `end`; none: the last ones of all.
    #[must_use]
    pub(crate) fn before(&self, end: Option<&[u8]>) -> Option<Arc<Route>> {
        let inner = self.inner.read();
        let bound = end.map_or(Unbounded, Excluded);
        let (_, group) = inner
            .by_start
            .range::<[u8], _>((Unbounded, bound))
            .next_back()?;
        let route = inner.groups.get(group)?;
        let last = route.range.as_ref()?.end.as_ref();
        let holds = last.is_none_or(|last| end.is_some_and(|end| end <= last));
        holds.then(|| Arc::clone(route))
    }

    /// Whether any group with a range is known.
    #[must_use]
    pub(crate) fn has_ranges(&self) -> bool {
        !self.inner.read().by_start.is_empty()
    }

    /// Where `group` is.
    #[must_use]
    pub(crate) fn of_group(&self, group: u64) -> Option<Arc<Route>> {
        self.inner.read().groups.get(&group).cloned()
    }

    /// Takes a route over, unless a later one is known.
    pub(crate) fn learn(&self, route: Route) {
        let mut inner = self.inner.write();
        if let Some(known) = inner.groups.get(&route.group) {
            if known.epoch > route.epoch || **known == route {
                return;
            }
            if let Some(range) = known.range.clone() {
                inner.by_start.remove(&range.start);
            }
        }
        if let Some(range) = &route.range {
            inner.by_start.insert(range.start.clone(), route.group);
        }
        inner.groups.insert(route.group, Arc::new(route));
    }

    /// The group is not where it was thought to be, or is no more.
    pub(crate) fn forget(&self, group: u64) {
        let mut inner = self.inner.write();
        if let Some(route) = inner.groups.remove(&group)
            && let Some(range) = &route.range
        {
            inner.by_start.remove(&range.start);
        }
    }
}

impl From<&GroupDescriptor> for Route {
    fn from(descriptor: &GroupDescriptor) -> Self {
        Self {
            group: descriptor.group.0,
            range: descriptor.range.clone(),
            stores: descriptor
                .members
                .iter()
                .map(|member| member.store.0)
                .collect(),
            leader: 0,
            epoch: descriptor.epoch.membership,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(group: u64, start: &'static str, end: Option<&'static str>, epoch: u64) -> Route {
        let range = KeyRange {
            start: Bytes::from(start),
            end: end.map(Bytes::from),
        };
        Route {
            group,
            range: Some(range),
            epoch,
            ..Route::default()
        }
    }

    #[test]
    fn keys_are_found_in_their_range_only() {
        let directory = Directory::default();
        directory.learn(route(1, "", Some("m"), 1));
        directory.learn(route(2, "p", None, 1));
        let group = |key: &str| directory.of_key(key.as_bytes()).map(|route| route.group);
        assert_eq!(
            [group(""), group("lz"), group("m"), group("p"), group("zz")],
            [Some(1), Some(1), None, Some(2), Some(2)]
        );
        let before = |end: Option<&'static str>| {
            directory
                .before(end.map(str::as_bytes))
                .map(|route| route.group)
        };
        assert_eq!(
            [
                before(Some("a")),
                before(Some("m")),
                before(Some("n")),
                before(Some("p"))
            ],
            [Some(1), Some(1), None, None]
        );
        assert_eq!([before(Some("pa")), before(None)], [Some(2), Some(2)]);
        assert_eq!(before(Some("")), None);
        directory.forget(2);
        assert_eq!([group("p"), before(None)], [None, None]);
    }

    #[test]
    fn a_later_epoch_wins() {
        let directory = Directory::default();
        directory.learn(Route {
            stores: vec![1],
            ..route(1, "", None, 2)
        });
        directory.learn(Route {
            stores: vec![2],
            ..route(1, "", None, 1)
        });
        assert_eq!(directory.of_group(1).unwrap().stores, [1]);
        directory.learn(Route {
            stores: vec![3],
            ..route(1, "", None, 3)
        });
        assert_eq!(directory.of_key(b"x").unwrap().stores, [3]);
    }
}
