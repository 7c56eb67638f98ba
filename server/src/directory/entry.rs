//! What the directory holds of a group and of a store, and the bytes of that.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use polyraft_multiraft::{GroupDescriptor, KeyRange};

use super::codec::{
    put_list, put_option, put_range, put_text, take_list, take_option, take_range, take_text,
};
use crate::client::Route;

/// A group as its leader published it.
///
/// It comes from two sources that grow each for itself: the descriptor, whose epoch says how late it is,
/// and the leadership, of which the term says that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Which group.
    pub(crate) group: u64,
    /// The keys it serves; none: it has keys of its own.
    pub(crate) range: Option<KeyRange>,
    /// Counts changes of the range.
    pub(crate) generation: u64,
    /// Counts changes of membership.
    pub(crate) membership: u64,
    /// Replicas with the stores that they live on.
    pub(crate) members: Vec<(u64, u64)>,
    /// The left neighbour that it is being merged into; 0: it is not.
    pub(crate) frozen_into: u64,
    /// The store that leads.
    pub(crate) leader: u64,
    /// Since which term.
    pub(crate) term: u64,
}

impl Entry {
    /// A group that `leader` leads in `term`.
    pub(crate) fn new(descriptor: &GroupDescriptor, leader: u64, term: u64) -> Self {
        let members = descriptor.members.iter();
        Self {
            group: descriptor.group.0,
            range: descriptor.range.clone(),
            generation: descriptor.epoch.range,
            membership: descriptor.epoch.membership,
            members: members.map(|m| (m.replica.0, m.store.0)).collect(),
            frozen_into: descriptor.frozen.map_or(0, |frozen| frozen.into.0),
            leader,
            term,
        }
    }

    /// The later of what is known and what comes in, each source for itself; none: nothing is news.
    pub(crate) fn later(known: &Self, news: &Self) -> Option<Self> {
        let age = |entry: &Self| (entry.generation, entry.membership);
        let mut later = if age(news) > age(known) {
            news.clone()
        } else {
            known.clone()
        };
        let leads = if news.term > known.term { news } else { known };
        (later.leader, later.term) = (leads.leader, leads.term);
        (later != *known).then_some(later)
    }

    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u64(self.group);
        put_option(out, self.range.as_ref(), put_range);
        out.put_u64(self.generation);
        out.put_u64(self.membership);
        put_list(out, &self.members, |out, (replica, store)| {
            out.put_u64(*replica);
            out.put_u64(*store);
        });
        out.put_u64(self.frozen_into);
        out.put_u64(self.leader);
        out.put_u64(self.term);
    }

    pub(super) fn take(rest: &mut Bytes) -> Option<Self> {
        let entry = Self {
            group: rest.try_get_u64().ok()?,
            range: take_option(rest, take_range)?,
            generation: rest.try_get_u64().ok()?,
            membership: rest.try_get_u64().ok()?,
            members: take_list(rest, |rest| {
                Some((rest.try_get_u64().ok()?, rest.try_get_u64().ok()?))
            })?,
            frozen_into: rest.try_get_u64().ok()?,
            leader: rest.try_get_u64().ok()?,
            term: rest.try_get_u64().ok()?,
        };
        (entry.group != 0).then_some(entry)
    }
}

impl From<&Entry> for Route {
    fn from(entry: &Entry) -> Self {
        Self {
            group: entry.group,
            range: entry.range.clone(),
            generation: entry.generation,
            membership: entry.membership,
            stores: entry.members.iter().map(|(_, store)| *store).collect(),
            leader: entry.leader,
            leader_address: String::new(),
        }
    }
}

/// What is meant to become of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum StoreState {
    /// It takes part.
    #[default]
    Up,
    /// Everything is to be moved away from it.
    Decommissioning,
    /// It was silent for so long that what it held is to be made anew elsewhere.
    Dead,
}

/// A store, as the directory knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct StoreEntry {
    pub(crate) store: u64,
    /// Where it listens, as `HOST:PORT`.
    pub(crate) address: String,
    pub(crate) state: StoreState,
    /// Since when the directory's leader has not heard it, in milliseconds since 1970; 0: it hears it.
    pub(crate) silent_since: u64,
}

impl StoreState {
    pub(super) const fn number(self) -> u8 {
        match self {
            Self::Up => 0,
            Self::Decommissioning => 1,
            Self::Dead => 2,
        }
    }

    pub(super) const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Up),
            1 => Some(Self::Decommissioning),
            2 => Some(Self::Dead),
            _ => None,
        }
    }
}

impl StoreEntry {
    pub(super) fn put(&self, out: &mut BytesMut) {
        out.put_u64(self.store);
        put_text(out, &self.address);
        out.put_u8(self.state.number());
        out.put_u64(self.silent_since);
    }

    pub(super) fn take(rest: &mut Bytes) -> Option<Self> {
        let entry = Self {
            store: rest.try_get_u64().ok()?,
            address: take_text(rest)?,
            state: StoreState::from_number(rest.try_get_u8().ok()?)?,
            silent_since: rest.try_get_u64().ok()?,
        };
        (entry.store != 0).then_some(entry)
    }
}

/// How fast the cluster may be changed by itself, and from when on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// A store that is silent for so many milliseconds is taken for dead.
    pub(crate) dead_after: u64,
    /// Replicas under way to another store at once.
    pub(crate) moves: u64,
    /// Of them, to or from one store.
    pub(crate) moves_of_a_store: u64,
    /// Splits and merges at once.
    pub(crate) range_changes: u64,
    /// Leaderships handed over at once.
    pub(crate) transfers: u64,
    /// A range with more bytes is split.
    pub(crate) range_bytes_max: u64,
    /// Neighbours with fewer bytes together are merged.
    pub(crate) range_bytes_min: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            dead_after: 5 * 60 * 1000,
            moves: 16,
            moves_of_a_store: 4,
            range_changes: 8,
            transfers: 32,
            range_bytes_max: 128 << 20,
            range_bytes_min: 32 << 20,
        }
    }
}

impl Limits {
    pub(super) fn put(&self, out: &mut BytesMut) {
        for limit in [
            self.dead_after,
            self.moves,
            self.moves_of_a_store,
            self.range_changes,
            self.transfers,
            self.range_bytes_max,
            self.range_bytes_min,
        ] {
            out.put_u64(limit);
        }
    }

    pub(super) fn take(rest: &mut Bytes) -> Option<Self> {
        let mut next = || rest.try_get_u64().ok();
        Some(Self {
            dead_after: next()?,
            moves: next()?,
            moves_of_a_store: next()?,
            range_changes: next()?,
            transfers: next()?,
            range_bytes_max: next()?,
            range_bytes_min: next()?,
        })
    }
}
