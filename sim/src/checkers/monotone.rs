//! What only grows: term, vote within a term, commit, applied and truncated index, of each replica.
//!
//! As written, as published, and over restarts: a restart may fall back to what is durable, and from there on it
//! only grows again. What is published is never behind what was written.

use polyraft_core::{HardState, Index, ReplicaId};
use polyraft_multiraft::{GroupMap, ReplicaSummary, StoreId};

use super::Property;
use super::books::{Books, Section, say};
use crate::observe::Observation;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Monotone {
    /// What was published last, by store and group.
    published: std::collections::BTreeMap<StoreId, GroupMap<Said>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Said {
    replica: ReplicaId,
    hard_state: HardState,
    applied: Index,
}

/// What goes back from one hard state to the next.
fn goes_back(old: HardState, new: HardState) -> Option<&'static str> {
    let revoted = new.term == old.term && !old.vote.is_none() && new.vote != old.vote;
    if new.term < old.term {
        Some("the term")
    } else if revoted {
        Some("the vote")
    } else if new.commit < old.commit {
        Some("the commit index")
    } else {
        None
    }
}

fn written(section: &Section) -> Result<(), String> {
    let (Some(before), Some(after)) = (section.before, section.after) else {
        return Ok(());
    };
    if before.replica != after.replica {
        return Ok(());
    }
    if let Some(what) = goes_back(before.hard_state, after.hard_state) {
        let (before, after) = (say(before.hard_state), say(after.hard_state));
        return Err(format!("{what} goes back from {before} to {after}"));
    }
    let back = section
        .reset
        .is_some_and(|reset| reset.index < before.truncated.index)
        || section
            .truncate
            .is_some_and(|to| to.index < before.truncated.index);
    if back {
        let (old, reset, truncate) = (before.truncated, section.reset, section.truncate);
        return Err(format!(
            "the log's begin goes back from {old:?}: reset {reset:?}, truncate {truncate:?}"
        ));
    }
    Ok(())
}

impl Monotone {
    fn published(
        &mut self,
        store: StoreId,
        replica: &ReplicaSummary,
        books: &Books,
    ) -> Result<(), String> {
        let now = Said {
            replica: replica.replica,
            hard_state: replica.basic.hard_state,
            applied: replica.basic.applied,
        };
        let of_store = self.published.entry(store).or_default();
        let before = of_store.insert(replica.group, now);
        if let Some(before) = before.filter(|before| before.replica == now.replica) {
            if before.hard_state == now.hard_state && before.applied == now.applied {
                return Ok(());
            }
            if let Some(what) = goes_back(before.hard_state, now.hard_state) {
                let (before, now) = (say(before.hard_state), say(now.hard_state));
                return Err(format!("{what} goes back from {before} to {now}"));
            }
            if now.applied < before.applied {
                let before = before.applied;
                return Err(format!(
                    "applied goes back from {before} to {}",
                    now.applied
                ));
            }
        }
        let book = books.store(store);
        let log = book.and_then(|book| book.written.logs.get(&replica.group));
        if let Some(log) = log.filter(|log| log.replica == now.replica)
            && let Some(what) = goes_back(log.hard_state, now.hard_state)
        {
            let (written, now) = (say(log.hard_state), say(now.hard_state));
            return Err(format!(
                "{what} is behind what was written: {written}; {now}"
            ));
        }
        let data = book.and_then(|book| book.data.get(&replica.group));
        let applied = data.map(|data| data.applied.last.index).unwrap_or_default();
        if data.is_some() && now.applied > applied {
            let said = now.applied;
            return Err(format!("says that {said} is applied, and {applied} is"));
        }
        Ok(())
    }
}

impl Property for Monotone {
    fn name(&self) -> &'static str {
        "monotone"
    }

    fn see(&mut self, seen: &Observation<'_>, books: &Books) -> Result<(), String> {
        match *seen {
            Observation::Written { store, .. } => books.batch().iter().try_for_each(|section| {
                let group = section.group;
                written(section).map_err(|why| format!("store {store}, group {group}: {why}"))
            }),
            Observation::Published {
                store, replicas, ..
            } => replicas.iter().try_for_each(|replica| {
                let group = replica.group;
                let result = self.published(store, replica, books);
                result.map_err(|why| format!("store {store}, group {group}: {why}"))
            }),
            Observation::Restored { store, state } => {
                let before = books.latest().before.first().and_then(Option::as_ref);
                let at = before
                    .map(|data| data.applied.last.index)
                    .unwrap_or_default();
                if at < state.last.index {
                    return Ok(());
                }
                let (group, to) = (state.descriptor.group, state.last.index);
                Err(format!(
                    "store {store}, group {group}: restored to {to}, applied was {at}"
                ))
            }
            Observation::Starting { store, .. } | Observation::Lost { store } => {
                self.published.remove(&store);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
