//! Which group holds a key, and on which stores it lives: what this store keeps in mind of it, and what all
//! stores keep together.
//!
//! The truth is the descriptor that each group replicates. A hint that is out of date leads to a
//! store that says so, and the router asks again; nothing is ever decided by a hint alone.
//!
//! What all stores keep together is a group of the system, the *directory*: where every group is, which
//! stores there are, and which numbers are taken. It is a group as the others, with a number that no
//! user's group gets, no range, and commands of its own ([`command`], [`state`]).

mod ask;
mod codec;
pub(crate) mod command;
pub(crate) mod entry;
mod hint;
pub(crate) mod lead;
pub(crate) mod publish;
pub(crate) mod segments;
mod service;
pub(crate) mod state;

use std::fmt;
use std::sync::Arc;

use parking_lot::RwLock;

pub(crate) use self::ask::{Look, not_begun};
pub(crate) use self::service::{DirectoryService, client};

use crate::client::RangeCache;
pub(crate) use crate::client::Route;

/// Groups with this number or a higher one are the system's.
pub(crate) const FIRST_OF_THE_SYSTEM: u64 = 1 << 63;
/// The group that is the directory.
pub(crate) const DIRECTORY: u64 = FIRST_OF_THE_SYSTEM;

/// A group as people know it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Named(pub(crate) u64);

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            DIRECTORY => f.write_str("directory"),
            group => write!(f, "{group}"),
        }
    }
}

/// What this store keeps in mind.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    inner: RwLock<RangeCache>,
}

impl Directory {
    /// The group that holds `key`.
    #[must_use]
    pub(crate) fn of_key(&self, key: &[u8]) -> Option<Arc<Route>> {
        self.inner.read().of_key(key)
    }

    /// The group that holds the last keys before `end`; none: the last ones of all.
    #[must_use]
    pub(crate) fn before(&self, end: Option<&[u8]>) -> Option<Arc<Route>> {
        self.inner.read().before(end)
    }

    /// Whether any group with a range is known.
    #[must_use]
    pub(crate) fn has_ranges(&self) -> bool {
        self.inner.read().has_ranges()
    }

    /// Where `group` is.
    #[must_use]
    pub(crate) fn of_group(&self, group: u64) -> Option<Arc<Route>> {
        self.inner.read().of_group(group)
    }

    /// Takes a route over, unless a later one is known. The usual case, that it is no news, takes no
    /// turn with others.
    pub(crate) fn learn(&self, route: Route) {
        let known = self.of_group(route.group);
        let same = known.is_some_and(|known| {
            let leader = [0, known.leader].contains(&route.leader);
            let epoch = (known.generation, known.membership);
            leader && epoch == (route.generation, route.membership) && known.range == route.range
        });
        if !same {
            self.inner.write().learn(route);
        }
    }

    /// The group is not where it was thought to be, or is no more.
    pub(crate) fn forget(&self, group: u64) {
        self.inner.write().forget(group);
    }
}
