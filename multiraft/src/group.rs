//! Stores, groups, ranges, and the descriptor of a group, which is replicated in the group itself.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use polyraft_core::{ConfState, EntryId, ReplicaId};

/// One engine and all that it hosts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreId(pub u64);

/// One Raft group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u64);

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The keys `[start, end)`; no `end` means no upper bound.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct KeyRange {
    /// First key.
    pub start: Bytes,
    /// Past the last key.
    pub end: Option<Bytes>,
}

/// Counters by which a decision made on an older descriptor is recognised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Epoch {
    /// Grows with every change of membership that is applied.
    pub membership: u64,
    /// The generation: grows with every change of the range, above those of all groups that took part.
    pub range: u64,
}

/// One member: which replica lives on which store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Member {
    /// The replica.
    pub replica: ReplicaId,
    /// Where it lives.
    pub store: StoreId,
}

/// Range, members and epoch of a group. Its single source of truth is the applied state of the
/// group's replicas; everybody else's copy is a hint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupDescriptor {
    /// Which group.
    pub group: GroupId,
    /// The keys it serves; none: it serves no keys by range.
    pub range: Option<KeyRange>,
    /// All voters (of both halves) and learners, ascending by replica.
    pub members: Vec<Member>,
    /// The id the next new replica gets; ids are never reused.
    pub next_replica: ReplicaId,
    /// When this is from.
    pub epoch: Epoch,
    /// The generation at which the range got its present end: a split sets it, a merge takes over that of
    /// the right neighbour. If a neighbour that was to be merged is still found behind the end, this tells
    /// whether it was merged and split off again meanwhile.
    pub border: u64,
    /// Whether it is about to be merged into its left neighbour, and serves nobody meanwhile.
    pub frozen: Option<Frozen>,
}

/// Why and since when a group serves nobody: see
/// [`RangeCommand::Freeze`](crate::RangeCommand::Freeze).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Frozen {
    /// The left neighbour.
    pub into: GroupId,
    /// Its epoch that the merge expects.
    pub target: Epoch,
    /// The entry since which the group is frozen.
    pub at: EntryId,
}

/// What the state machine of a group has durably seen, written in one atomic batch with the
/// data it covers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppliedState {
    /// The last applied entry.
    pub last: EntryId,
    /// The configuration as of that entry.
    pub conf_state: Arc<ConfState>,
    /// The descriptor as of that entry.
    pub descriptor: Arc<GroupDescriptor>,
}

impl KeyRange {
    /// Whether `key` lies within.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        self.start <= key && self.end.as_ref().is_none_or(|end| key < *end)
    }

    /// Whether no key lies within: it ends where it begins, or before.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| *end <= self.start)
    }

    /// From the first key of both to the end of both.
    #[must_use]
    pub(crate) fn hull(&self, other: &Self) -> Self {
        Self {
            start: self.start.clone().min(other.start.clone()),
            end: match (&self.end, &other.end) {
                (Some(one), Some(two)) => Some(one.clone().max(two.clone())),
                _ => None,
            },
        }
    }

    /// Whether any key lies within both.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let below = |a: &Self, b: &Self| a.end.as_ref().is_some_and(|end| *end <= b.start);
        !below(self, other) && !below(other, self)
    }
}

impl GroupDescriptor {
    /// The store on which `replica` lives.
    #[must_use]
    pub fn store_of(&self, replica: ReplicaId) -> Option<StoreId> {
        self.members
            .iter()
            .find(|member| member.replica == replica)
            .map(|member| member.store)
    }

    /// The replica on `store`.
    #[must_use]
    pub fn replica_on(&self, store: StoreId) -> Option<ReplicaId> {
        self.members
            .iter()
            .find(|member| member.store == store)
            .map(|member| member.replica)
    }

    /// Whether this group shows that the other one, as it was known last, is no more. The owners of
    /// a key follow each other by generation, and a group owns its first key for all its life: if
    /// that has a later owner, it was merged. This group has its data then, but for what it has
    /// split off since.
    #[must_use]
    pub(crate) fn has_subsumed(&self, other: &Self) -> bool {
        let (Some(range), Some(gone)) = (&self.range, &other.range) else {
            return false;
        };
        self.group != other.group
            && range.contains(&gone.start)
            && self.epoch.range > other.epoch.range
    }

    /// The lowest id that a replica on `store` may still have: what is below it there is gone.
    #[must_use]
    pub(crate) fn lowest_on(&self, store: StoreId) -> ReplicaId {
        self.replica_on(store).unwrap_or(self.next_replica)
    }

    /// The descriptor after a change of membership: `new` says where replicas live that were not
    /// known before, `conf_state` who is a member now. Deterministic: every replica computes it.
    pub(crate) fn after_change(&self, conf_state: &ConfState, new: &[Member]) -> Self {
        let mut members = self.members.clone();
        for &member in new {
            if !members.iter().any(|known| known.replica == member.replica) {
                members.push(member);
            }
        }
        let highest = members
            .iter()
            .map(|member| member.replica.0)
            .max()
            .unwrap_or(0);
        members.retain(|member| conf_state.contains(member.replica));
        members.sort_by_key(|member| member.replica);
        Self {
            group: self.group,
            range: self.range.clone(),
            members,
            next_replica: ReplicaId(self.next_replica.0.max(highest.saturating_add(1))),
            epoch: Epoch {
                // Whatever another store may have claimed it to be: all replicas must get past it.
                membership: self.epoch.membership.saturating_add(1),
                range: self.epoch.range,
            },
            border: self.border,
            frozen: self.frozen,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_at_its_end_stays_there() {
        let descriptor = GroupDescriptor {
            epoch: Epoch {
                membership: u64::MAX,
                range: 1,
            },
            ..GroupDescriptor::default()
        };
        let next = descriptor.after_change(&ConfState::default(), &[]);
        assert_eq!(next.epoch, descriptor.epoch);
    }

    #[test]
    fn who_owns_the_first_key_later_has_subsumed_a_group() {
        let group = |group, start: &'static str, end: &'static str, generation| GroupDescriptor {
            group: GroupId(group),
            range: Some(KeyRange {
                start: Bytes::from_static(start.as_bytes()),
                end: Some(Bytes::from_static(end.as_bytes())),
            }),
            epoch: Epoch {
                membership: 0,
                range: generation,
            },
            ..GroupDescriptor::default()
        };
        let gone = group(2, "m", "z", 4);
        let subsumes = |later: GroupDescriptor| later.has_subsumed(&gone);
        assert!(subsumes(group(1, "a", "z", 5)) && subsumes(group(1, "a", "p", 5)));
        assert!(
            subsumes(group(3, "m", "p", 6)),
            "split again at the same key"
        );
        assert!(!subsumes(group(1, "a", "z", 4)) && !subsumes(group(1, "a", "m", 5)));
        assert!(
            !subsumes(group(3, "p", "z", 9)),
            "its own right part, maybe"
        );
        assert!(!subsumes(group(2, "m", "n", 9)) && !subsumes(GroupDescriptor::default()));
    }

    #[test]
    fn a_range_that_ends_before_it_begins_is_empty() {
        let range = |start: &'static str, end: Option<&'static str>| KeyRange {
            start: Bytes::from_static(start.as_bytes()),
            end: end.map(|end| Bytes::from_static(end.as_bytes())),
        };
        assert!(range("b", Some("a")).is_empty() && range("b", Some("b")).is_empty());
        assert!(!range("b", Some("ba")).is_empty() && !range("b", None).is_empty());
    }
}
