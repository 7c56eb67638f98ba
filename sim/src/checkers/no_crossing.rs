//! Nothing crosses from one group, replica or store into another.
//!
//! * A message names as its sender a replica that lives on the store it comes from, and goes to the store on which
//!   the replica lives that it is for.
//! * What a replica writes to its log it was sent in its group, or made as the leader of the entry's term.
//! * Data and changes of membership of a group name that group.

use polyraft_core::{Payload, ReplicaId};
use polyraft_multiraft::env::{Body, Lifecycle};
use polyraft_multiraft::{AppliedState, GroupId, GroupMap, StoreId};

use super::Property;
use super::books::Books;
use crate::observe::Observation;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct NoCrossing {
    /// Where replicas live, by what was first said of them. Groups have few.
    homes: GroupMap<Vec<(ReplicaId, StoreId)>>,
}

impl NoCrossing {
    fn lives(&mut self, group: GroupId, replica: ReplicaId, store: StoreId) -> Result<(), String> {
        let homes = self.homes.entry(group).or_default();
        let Some((_, home)) = homes.iter().find(|(known, _)| *known == replica) else {
            homes.push((replica, store));
            return Ok(());
        };
        if *home == store {
            return Ok(());
        }
        Err(format!(
            "group {group}: replica {replica} lives on store {home}, and store {store} was taken for its"
        ))
    }

    fn sent(
        &mut self,
        from: StoreId,
        to: StoreId,
        group: GroupId,
        body: &Body,
    ) -> Result<(), String> {
        let message = match body {
            Body::Raft(message) | Body::Sleep(message) => message,
            Body::Tombstone { replica, .. } => return self.lives(group, *replica, to),
        };
        // A wish to lead is passed on in the name of the one who is to lead.
        if !matches!(message.payload, Payload::TransferLeader) {
            self.lives(group, message.from, from)?;
        }
        self.lives(group, message.to, to)
    }

    fn members(&mut self, state: &AppliedState) -> Result<(), String> {
        let descriptor = &state.descriptor;
        for member in &descriptor.members {
            self.lives(descriptor.group, member.replica, member.store)?;
        }
        Ok(())
    }
}

impl Property for NoCrossing {
    fn name(&self) -> &'static str {
        "no-crossing"
    }

    fn see(&mut self, seen: &Observation<'_>, books: &Books) -> Result<(), String> {
        match *seen {
            Observation::Sent { from, to, message } => {
                self.sent(from, to, message.group, &message.body)
            }
            Observation::Written { store, .. } => {
                for section in books.batch() {
                    if let Some(Lifecycle::Create { replica }) = section.lifecycle {
                        self.lives(section.group, replica, store)?;
                    }
                }
                let strange = books.latest().from_nowhere.clone();
                strange.map_or(Ok(()), Err)
            }
            Observation::Created { state, .. } | Observation::Restored { state, .. } => {
                self.members(state)
            }
            Observation::Applied { store, items } => {
                for item in items {
                    let group = item.group;
                    if item.state.descriptor.group != group {
                        let other = item.state.descriptor.group;
                        return Err(format!(
                            "store {store}: group {group} was given the descriptor of {other}"
                        ));
                    }
                    if item.membership_changed {
                        self.members(&item.state)?;
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
