//! Which configurations may be in force in a group.
//!
//! A change of membership counts from when it is applied, and a leader may have applied less than
//! others. So a configuration is accepted until everybody has certainly applied the one after it,
//! and then for entries that had been seen before that.
//!
//! A group begins where an operator creates it or a split makes it. It is known, too, from data at the
//! beginning of a group that a start finds: creating may fail at a sync and leave the data all the same, and
//! the start then finishes what nobody has seen.

use std::sync::Arc;

use polyraft_core::{ConfState, EntryId, Index, ReplicaId};
use polyraft_multiraft::env::ApplyItem;
use polyraft_multiraft::{AppliedState, BOOTSTRAP, GroupId, GroupMap, StoreId};

use super::books::{Books, changes_of_membership, rights};
use crate::observe::Observation;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Configurations {
    groups: GroupMap<Known>,
    /// What the last observation applied for the first time anywhere.
    news: Vec<(GroupId, EntryId)>,
}

#[derive(Debug, Default)]
struct Known {
    /// The last index that was applied anywhere.
    applied: Index,
    /// Those that may be in force at some leader, in order.
    configurations: Vec<Configuration>,
}

#[derive(Debug)]
struct Configuration {
    /// It is in force from this entry on.
    from: Index,
    state: Arc<ConfState>,
    /// No entry above this is committed by it any more.
    until: Option<Index>,
}

impl Known {
    fn add(&mut self, from: Index, state: Arc<ConfState>) {
        self.configurations.push(Configuration {
            from,
            state,
            until: None,
        });
    }

    /// Takes leave of configurations that nobody can commit by any more.
    fn retire(&mut self, group: GroupId, books: &Books) {
        if self.configurations.len() < 2 {
            return;
        }
        let everywhere = books.flushed(group).min().unwrap_or_default();
        let next = self.configurations.iter().map(|known| known.from).skip(1);
        let next: Vec<Index> = next.collect();
        for (configuration, next) in self.configurations.iter_mut().zip(next) {
            if next <= everywhere {
                configuration
                    .until
                    .get_or_insert_with(|| books.last_seen(group));
            }
        }
        let applied = self.applied;
        let over = |known: &Configuration| known.until.is_some_and(|until| until < applied);
        self.configurations.retain(|known| !over(known));
    }
}

impl Configurations {
    /// Notes what begins and what is applied.
    pub(super) fn see(&mut self, seen: &Observation<'_>, books: &Books) {
        self.news.clear();
        for state in beginnings(seen) {
            self.begins(state);
        }
        if let Observation::Applied { store, items } = *seen {
            for (item, before) in items.iter().zip(&books.latest().before) {
                if let Some(before) = before {
                    self.applied(store, item, &before.applied, books);
                }
            }
        }
    }

    /// What the last observation applied for the first time anywhere, at most once per group.
    pub(super) fn news(&self) -> &[(GroupId, EntryId)] {
        &self.news
    }

    fn begins(&mut self, state: &AppliedState) {
        let known = self.groups.entry(state.descriptor.group).or_default();
        if known.configurations.is_empty() {
            known.add(state.last.index, Arc::clone(&state.conf_state));
        }
    }

    fn applied(&mut self, store: StoreId, item: &ApplyItem, before: &AppliedState, books: &Books) {
        let (group, last) = (item.group, item.state.last);
        let known = self.groups.entry(group).or_default();
        if last.index <= known.applied {
            return;
        }
        let book = books.store(store);
        if let Some(log) = book.and_then(|book| book.written.latest(group))
            && item.membership_changed
        {
            for (index, state) in changes_of_membership(books, group, log, before, &item.state) {
                if index > known.applied {
                    known.add(index, state);
                }
            }
        }
        known.applied = last.index;
        known.retire(group, books);
        self.news.push((group, last));
    }

    /// Whether something holds for a quorum of voters, of both halves where there are two, in any
    /// configuration that may be in force.
    pub(super) fn quorum(&self, group: GroupId, holds: impl Fn(ReplicaId) -> bool) -> bool {
        let known = self.groups.get(&group);
        let mut all = known.into_iter().flat_map(|known| &known.configurations);
        all.any(|configuration| is_quorum(&configuration.state, &holds))
    }

    /// Whether anything is known of a group.
    pub(super) fn knows(&self, group: GroupId) -> bool {
        let known = self.groups.get(&group);
        known.is_some_and(|known| !known.configurations.is_empty())
    }

    /// Configurations, and for which of their voters it holds, for people.
    pub(super) fn tell(&self, group: GroupId, holds: impl Fn(ReplicaId) -> bool) -> String {
        let known = self.groups.get(&group);
        let all = known.into_iter().flat_map(|known| &known.configurations);
        let each = all.map(|Configuration { state, .. }| {
            let voters = state.voters.iter().chain(&state.voters_outgoing);
            let with = voters.copied().filter(|voter| holds(*voter));
            let with: Vec<u64> = with.map(|voter| voter.0).collect();
            format!("; of {state:?} these: {with:?}")
        });
        each.collect()
    }
}

/// The first states of groups that have begun, or are found at their beginning.
pub(super) fn beginnings<'a>(seen: &Observation<'a>) -> Vec<&'a AppliedState> {
    match *seen {
        Observation::Created { state, .. } => vec![state],
        Observation::RecoveredData { states, .. } => {
            let first = states.iter().filter(|state| state.last == BOOTSTRAP);
            first.collect()
        }
        Observation::Applied { items, .. } => {
            let rights = items.iter().flat_map(rights);
            rights.map(|right| &right.state).collect()
        }
        _ => Vec::new(),
    }
}

fn is_quorum(in_force: &ConfState, holds: &impl Fn(ReplicaId) -> bool) -> bool {
    let majority = |voters: &[ReplicaId]| {
        let with = voters.iter().filter(|voter| holds(**voter));
        voters.is_empty() || with.count() > voters.len() / 2
    };
    let known = !in_force.voters.is_empty();
    known && majority(&in_force.voters) && majority(&in_force.voters_outgoing)
}

/// Whether an entry is durable in the log of a replica, dead or alive.
pub(super) fn has(books: &Books, group: GroupId, id: EntryId, voter: ReplicaId) -> bool {
    books.durable(group, voter).is_some_and(|log| log.holds(id))
}
