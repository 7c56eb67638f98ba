//! The numbers of Raft as types of their own, so that a term cannot be passed for an index.

use core::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

number! {
    /// A Raft term (thesis section 3.3): a logical clock; each has at most one leader.
    Term
}

number! {
    /// A position in the log, from 1. 0 stands for "before the first entry".
    Index
}

number! {
    /// One member of a group on one store. Never reused; 0 stands for "nobody".
    ReplicaId
}

impl ReplicaId {
    /// "Nobody": no leader known, no vote given.
    pub const NONE: Self = Self(0);

    /// Whether this names nobody.
    #[must_use]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }
}

impl Index {
    /// The index after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The index before this one; 0 stays 0.
    #[must_use]
    pub const fn prev(self) -> Self {
        Self(self.0.saturating_sub(1))
    }

    /// How many indexes lie in `[self, end)`; 0 if `end` is not above `self`.
    #[must_use]
    pub const fn until(self, end: Self) -> u64 {
        end.0.saturating_sub(self.0)
    }

    /// The index `count` above this one.
    #[must_use]
    pub const fn plus(self, count: u64) -> Self {
        Self(self.0 + count)
    }
}

/// What names an entry in all of Raft: no two different entries of a group share it.
///
/// Ordered by term, then index, which is the "more up to date" of thesis section 3.6.1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId {
    /// The term in which a leader created the entry.
    pub term: Term,
    /// Its place in the log.
    pub index: Index,
}

impl EntryId {
    /// An entry id from plain numbers.
    #[must_use]
    pub const fn new(term: u64, index: u64) -> Self {
        Self {
            term: Term(term),
            index: Index(index),
        }
    }
}
