//! Who a replica is: its id is created on one store, once, and never again after its end.
//!
//! A tombstone is never taken back: not by a later one that is lower, not by a restart, not by a replica below it.
//! What a power cut has undone did not happen.

use polyraft_core::ReplicaId;
use polyraft_multiraft::StoreId;
use polyraft_multiraft::env::Lifecycle;

use super::Property;
use super::books::{Books, Section};
use crate::observe::Observation;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct ReplicaIdentity;

fn written(store: StoreId, section: &Section, books: &Books) -> Result<(), String> {
    let group = section.group;
    let present = section.before.map(|log| log.replica);
    match section.lifecycle {
        Some(Lifecycle::Create { replica }) => {
            if let Some(present) = present {
                return Err(format!("replica {replica} begins beside replica {present}"));
            }
            if replica.is_none() || replica < section.bound {
                let bound = section.bound;
                return Err(format!(
                    "replica {replica} begins below the tombstone at {bound}"
                ));
            }
            match books.owner(group, replica) {
                Some(owner) if owner != store => Err(format!(
                    "replica {replica} begins, which was created on store {owner} before"
                )),
                _ => Ok(()),
            }
        }
        Some(Lifecycle::Destroy { next_replica }) => {
            let least = present.map_or(ReplicaId::NONE, |id| ReplicaId(id.0.saturating_add(1)));
            let least = least.max(section.bound);
            if next_replica < least {
                return Err(format!(
                    "a tombstone at {next_replica}, it must not be below {least}"
                ));
            }
            Ok(())
        }
        None => Ok(()),
    }
}

impl Property for ReplicaIdentity {
    fn name(&self) -> &'static str {
        "replica-identity"
    }

    fn see(&mut self, seen: &Observation<'_>, books: &Books) -> Result<(), String> {
        let Observation::Written { store, .. } = *seen else {
            return Ok(());
        };
        books.batch().iter().try_for_each(|section| {
            let group = section.group;
            let result = written(store, section, books);
            result.map_err(|why| format!("store {store}, group {group}: {why}"))
        })
    }
}
