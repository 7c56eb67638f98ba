//! Which group serves a key, and where: what a client and a store keep in mind of it.
//!
//! The truth is the descriptor that each group replicates; all that is here is hints, which are out of date
//! sooner or later. They come in any order. Every change of a range gives each group that comes out of it
//! a generation above those of all that went in, so for each key the generations of its successive owners
//! grow: of two routes for a key the one of the higher generation is the later one.
//!
//! Invariants: segments do not overlap; in each key's segment is the route of the highest generation ever
//! heard for that key since the group was last forgotten, so that late news never hide newer ones. A route
//! that its own group has left behind answers no look-up, but stays as the mark of its generation.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::{Excluded, Included, Unbounded};
use std::sync::Arc;

use bytes::Bytes;
use polyraft_multiraft::{GroupDescriptor, KeyRange};

use crate::proto::admin::Group;
use crate::proto::kv::{Range, RangeHint};

/// Where one group is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// Which group.
    pub group: u64,
    /// The keys it serves; none: it has keys of its own.
    pub range: Option<KeyRange>,
    /// Counts changes of the range.
    pub generation: u64,
    /// Counts changes of membership.
    pub membership: u64,
    /// Where its members live.
    pub stores: Vec<u64>,
    /// The store that leads; 0: unknown.
    pub leader: u64,
    /// Where that listens, as `HOST:PORT`; empty: unknown.
    pub leader_address: String,
}

/// See the module.
#[derive(Debug, Default)]
pub struct RangeCache {
    /// The newest route of each group.
    groups: BTreeMap<u64, Arc<Route>>,
    /// By first key.
    segments: BTreeMap<Bytes, Segment>,
}

/// Keys for which the same route is the newest.
#[derive(Clone, Debug)]
struct Segment {
    end: Option<Bytes>,
    route: Arc<Route>,
}

impl RangeCache {
    /// Takes a route over for those of its keys for which none of a higher generation is known. Whether
    /// it is news of its group.
    pub fn learn(&mut self, mut route: Route) -> bool {
        if route.range.as_ref().is_some_and(is_empty) {
            return false;
        }
        let mut newest = true;
        if let Some(known) = self.groups.get(&route.group) {
            let age = |route: &Route| (route.generation, route.membership);
            newest = age(&route) >= age(known);
            let leads_still = route.leader == 0 && route.stores.contains(&known.leader);
            if newest && leads_still {
                route.leader = known.leader;
                route.leader_address.clone_from(&known.leader_address);
            }
            let same = route.generation == known.generation;
            // Nothing but its generation says which range is the later one: the first stays.
            if **known == route || same && (!newest || known.range != route.range) {
                return false;
            }
        }
        let route = Arc::new(route);
        if newest {
            self.groups.insert(route.group, Arc::clone(&route));
        }
        if let Some(range) = &route.range {
            let mut touched = self.place(range, &route);
            touched.insert(route.group);
            for group in touched {
                self.drop_if_nowhere(group);
            }
        }
        newest && self.groups.contains_key(&route.group)
    }

    /// Puts a route into the segments of its keys; returns other groups that it took some of.
    fn place(&mut self, range: &KeyRange, route: &Arc<Route>) -> BTreeSet<u64> {
        let mut displaced = BTreeSet::new();
        // Where the next segment of the route begins; none: past the last key.
        let mut at = Some(range.start.clone());
        for (start, segment) in self.take_overlapping(range) {
            let known = &segment.route;
            let stays = known.generation > route.generation
                || known.generation == route.generation && known.group != route.group;
            if start < range.start {
                self.insert(&start, Some(range.start.clone()), known);
            }
            if let Some(end) = &range.end
                && segment.end.as_ref().is_none_or(|last| last > end)
            {
                self.insert(end, segment.end.clone(), known);
            }
            if !stays {
                displaced.insert(known.group);
                continue;
            }
            let first = start.max(range.start.clone());
            if let Some(at) = at.take_if(|at| *at < first) {
                self.insert(&at, Some(first.clone()), route);
            }
            let last = earlier(segment.end.as_ref(), range.end.as_ref()).cloned();
            self.insert(&first, last.clone(), known);
            at = last;
        }
        if let Some(at) = at
            && range.end.as_ref().is_none_or(|end| at < *end)
        {
            self.insert(&at, range.end.clone(), route);
        }
        displaced
    }

    fn insert(&mut self, start: &Bytes, end: Option<Bytes>, route: &Arc<Route>) {
        let route = Arc::clone(route);
        self.segments.insert(start.clone(), Segment { end, route });
    }

    /// Removes and returns the segments with a key in `range`, in order.
    fn take_overlapping(&mut self, range: &KeyRange) -> Vec<(Bytes, Segment)> {
        let before = self.segments.range(..range.start.clone()).next_back();
        let reaches = |(_, segment): &(&Bytes, &Segment)| {
            segment.end.as_ref().is_none_or(|end| *end > range.start)
        };
        let first = before.filter(reaches).map(|(start, _)| start.clone());
        let from = first.unwrap_or_else(|| range.start.clone());
        let to = range.end.clone().map_or(Unbounded, Excluded);
        self.segments
            .extract_if((Included(from), to), |_, _| true)
            .collect()
    }

    /// A group none of whose keys are its own any more, as far as is known, was merged away.
    fn drop_if_nowhere(&mut self, group: u64) {
        let Some(newest) = self.groups.get(&group) else {
            return;
        };
        if self.starts_of(newest).next().is_none() {
            self.groups.remove(&group);
        }
    }

    /// Where the segments of this very route begin.
    fn starts_of(&self, route: &Arc<Route>) -> impl Iterator<Item = &Bytes> {
        let bounds = route.range.clone().map(|range| {
            let to = range.end.map_or(Unbounded, Excluded);
            (Included(range.start), to)
        });
        let segments = bounds
            .into_iter()
            .flat_map(|bounds| self.segments.range(bounds));
        let own = segments.filter(|(_, segment)| Arc::ptr_eq(&segment.route, route));
        own.map(|(start, _)| start)
    }

    /// The route of a key.
    #[must_use]
    pub fn of_key(&self, key: &[u8]) -> Option<Arc<Route>> {
        let up_to = (Unbounded, Included(key));
        let (_, segment) = self.segments.range::<[u8], _>(up_to).next_back()?;
        let within = segment.end.as_ref().is_none_or(|end| key < &**end);
        self.newest(segment).filter(|_| within)
    }

    /// The route of the last keys before `end`; none: of the last ones of all.
    #[must_use]
    pub fn before(&self, end: Option<&[u8]>) -> Option<Arc<Route>> {
        let below = (Unbounded, end.map_or(Unbounded, Excluded));
        let (_, segment) = self.segments.range::<[u8], _>(below).next_back()?;
        let last = segment.end.as_ref();
        let within = last.is_none_or(|last| end.is_some_and(|end| end <= &**last));
        self.newest(segment).filter(|_| within)
    }

    fn newest(&self, segment: &Segment) -> Option<Arc<Route>> {
        let newest = self.groups.get(&segment.route.group)?;
        Arc::ptr_eq(newest, &segment.route).then(|| Arc::clone(newest))
    }

    /// What is known, by first key: from there to where, or to the end, the newest route is which. A
    /// route may be the newest for a part of its range only.
    pub fn segments(&self) -> impl Iterator<Item = (Bytes, Option<Bytes>, Arc<Route>)> {
        self.segments.iter().filter_map(|(start, segment)| {
            let route = self.newest(segment)?;
            Some((start.clone(), segment.end.clone(), route))
        })
    }

    /// The newest route of a group.
    #[must_use]
    pub fn of_group(&self, group: u64) -> Option<Arc<Route>> {
        self.groups.get(&group).cloned()
    }

    /// Whether any group with a range is known.
    #[must_use]
    pub fn has_ranges(&self) -> bool {
        !self.segments.is_empty()
    }

    /// Another store leads the group, or (0) it is not known any more which one does.
    pub fn set_leader(&mut self, group: u64, leader: u64, address: &str) {
        let Some(known) = self.groups.get(&group).cloned() else {
            return;
        };
        if known.leader == leader && known.leader_address == address {
            return;
        }
        let starts: Vec<Bytes> = self.starts_of(&known).cloned().collect();
        let route = Arc::new(Route {
            leader,
            leader_address: address.to_owned(),
            ..(*known).clone()
        });
        for start in starts {
            if let Some(segment) = self.segments.get_mut(&start) {
                segment.route = Arc::clone(&route);
            }
        }
        self.groups.insert(group, route);
    }

    /// The group is not what or where it was thought to be, or is no more.
    pub fn forget(&mut self, group: u64) {
        self.groups.remove(&group);
        self.segments
            .retain(|_, segment| segment.route.group != group);
    }
}

fn is_empty(range: &KeyRange) -> bool {
    range.end.as_ref().is_some_and(|end| *end <= range.start)
}

/// The lower one of two upper bounds; none: there is no bound.
fn earlier<'a>(one: Option<&'a Bytes>, other: Option<&'a Bytes>) -> Option<&'a Bytes> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

impl From<&GroupDescriptor> for Route {
    fn from(descriptor: &GroupDescriptor) -> Self {
        let stores = descriptor.members.iter().map(|member| member.store.0);
        Self {
            group: descriptor.group.0,
            range: descriptor.range.clone(),
            generation: descriptor.epoch.range,
            membership: descriptor.epoch.membership,
            stores: stores.collect(),
            leader: 0,
            leader_address: String::new(),
        }
    }
}

impl From<Range> for Route {
    fn from(range: Range) -> Self {
        Self {
            group: range.group,
            range: Some(KeyRange {
                start: range.start,
                end: range.end,
            }),
            generation: range.generation,
            membership: range.membership_epoch,
            stores: range.stores,
            leader: range.leader_store,
            leader_address: range.leader_address,
        }
    }
}

impl From<&Group> for Route {
    fn from(group: &Group) -> Self {
        let end = group.end.clone();
        let start = group.start.clone();
        Self {
            group: group.group,
            range: start.map(|start| KeyRange { start, end }),
            generation: group.range_epoch,
            membership: group.membership_epoch,
            stores: group.members.iter().map(|member| member.store).collect(),
            leader: group.leader_store,
            leader_address: String::new(),
        }
    }
}

impl Route {
    /// It as what a client believes.
    #[must_use]
    pub const fn hint(&self) -> RangeHint {
        RangeHint {
            group: self.group,
            generation: self.generation,
            leader_store: self.leader,
        }
    }

    /// The same as a message; none: the group has no range.
    #[must_use]
    pub fn to_range(&self) -> Option<Range> {
        let KeyRange { start, end } = self.range.clone()?;
        Some(Range {
            group: self.group,
            start,
            end,
            generation: self.generation,
            membership_epoch: self.membership,
            stores: self.stores.clone(),
            leader_store: self.leader,
            leader_address: self.leader_address.clone(),
        })
    }
}

#[cfg(test)]
mod tests;
