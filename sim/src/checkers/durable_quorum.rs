//! What is applied for the first time anywhere is durable at a quorum of voters, of both halves if the
//! configuration is joint.
//!
//! A change of membership counts from when it is applied, and the leader that commits an entry may have applied
//! less than the replica that applies it first. So a configuration is accepted until everybody has certainly
//! applied the one after it, and then for entries that had been seen before that. What a voter that is dead by
//! now has had counts, since its acknowledgement did.

use std::sync::Arc;

use polyraft_core::{ConfState, EntryId, Index, ReplicaId};
use polyraft_multiraft::env::ApplyItem;
use polyraft_multiraft::{AppliedState, GroupId, GroupMap, StoreId};

use super::Property;
use super::books::{Books, configurations};
use crate::observe::Observation;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct DurableQuorum {
    groups: GroupMap<Known>,
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
        let next: Vec<Index> = self.configurations.iter().map(|c| c.from).skip(1).collect();
        for (configuration, next) in self.configurations.iter_mut().zip(next) {
            if next <= everywhere {
                configuration
                    .until
                    .get_or_insert_with(|| books.last_seen(group));
            }
        }
        let applied = self.applied;
        let over = |c: &Configuration| c.until.is_some_and(|until| until < applied);
        self.configurations
            .retain(|configuration| !over(configuration));
    }
}

impl DurableQuorum {
    fn applied(
        &mut self,
        store: StoreId,
        item: &ApplyItem,
        before: &AppliedState,
        books: &Books,
    ) -> Result<(), String> {
        let (group, last) = (item.group, item.state.last);
        let known = self.groups.entry(group).or_default();
        if last.index <= known.applied {
            return Ok(());
        }
        if known.configurations.is_empty() {
            known.add(before.last.index, Arc::clone(&before.conf_state));
        }
        let book = books.store(store);
        if let Some(log) = book.and_then(|book| book.written.latest(group))
            && item.membership_changed
        {
            for (index, state) in configurations(books, group, log, before, &item.state) {
                if index > known.applied {
                    known.add(index, state);
                }
            }
        }
        known.applied = last.index;
        known.retire(group, books);
        let mut accepted = known.configurations.iter();
        if accepted.any(|configuration| is_durable(books, group, last, &configuration.state)) {
            return Ok(());
        }
        Err(tell(books, group, last, store, &known.configurations))
    }
}

fn has(books: &Books, group: GroupId, id: EntryId, voter: ReplicaId) -> bool {
    books.durable(group, voter).is_some_and(|log| log.holds(id))
}

fn is_durable(books: &Books, group: GroupId, id: EntryId, in_force: &ConfState) -> bool {
    let majority = |voters: &[ReplicaId]| {
        let with = voters.iter().filter(|voter| has(books, group, id, **voter));
        voters.is_empty() || with.count() > voters.len() / 2
    };
    let known = !in_force.voters.is_empty();
    known && majority(&in_force.voters) && majority(&in_force.voters_outgoing)
}

fn tell(
    books: &Books,
    group: GroupId,
    last: EntryId,
    store: StoreId,
    configurations: &[Configuration],
) -> String {
    let mut text = format!("group {group}: store {store} is the first to apply {last:?}");
    for Configuration { state, .. } in configurations {
        let voters = state.voters.iter().chain(&state.voters_outgoing);
        let with: Vec<u64> = voters
            .filter(|voter| has(books, group, last, **voter))
            .map(|voter| voter.0)
            .collect();
        text += &format!("; of {state:?} it is durable at {with:?}");
    }
    text
}

impl Property for DurableQuorum {
    fn name(&self) -> &'static str {
        "durable-quorum"
    }

    fn see(&mut self, seen: &Observation<'_>, books: &Books) -> Result<(), String> {
        let Observation::Applied { store, items } = *seen else {
            return Ok(());
        };
        for (item, before) in items.iter().zip(&books.latest().before) {
            if let Some(before) = before {
                self.applied(store, item, &before.applied, books)?;
            }
        }
        Ok(())
    }
}
