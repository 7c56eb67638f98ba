//! Nothing crosses from one group, replica or store into another.
//!
//! * A message names as its sender a replica that lives on the store it comes from, and goes to the store
//!   on which the replica lives that it is for.
//! * What a replica writes to its log it was sent in its group, or made as the leader of the entry's term.
//! * Data and changes of membership of a group name that group.

use polyraft_core::{Payload, ReplicaId};
use polyraft_multiraft::env::{Body, Lifecycle};
use polyraft_multiraft::{AppliedState, GroupId, GroupMap, StoreId};

use super::Property;
use super::books::{Books, rights};
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
                    rights(item).try_for_each(|right| self.members(&right.state))?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use polyraft_core::Message;

    use super::super::testing::{
        GROUP, Scene, append, caught, create_section, entries_section, entry, grant, hard_section,
        heartbeat, state, turn,
    };
    use super::*;

    fn scene() -> Scene {
        let mut scene = Scene::of(NoCrossing::default()).begun();
        scene.elect(1, 2, 2);
        scene.replicate(1, &[2], (1, 2), &[entry(2, 3, "a")]);
        scene
    }

    fn message(from: u64, to: u64, payload: Payload) -> Body {
        Body::Raft(Message {
            from: ReplicaId(from),
            to: ReplicaId(to),
            term: polyraft_core::Term(2),
            payload,
        })
    }

    #[test]
    fn messages_between_homes_are_no_harm() {
        let mut scene = scene();
        scene.send(3, 2, 2, grant()).unwrap();
        scene.send(1, 3, 2, append((2, 3), &[])).unwrap();
        // In the name of replica 3, by way of store 2.
        scene
            .post(2, 1, message(3, 1, Payload::TransferLeader))
            .unwrap();
        let gone = Body::Tombstone {
            replica: ReplicaId(3),
            next_replica: ReplicaId(9),
        };
        scene.post(1, 3, gone).unwrap();
    }

    #[test]
    fn a_sender_from_elsewhere_is_seen() {
        let seen = scene().post(2, 1, message(3, 1, heartbeat()));
        caught(&seen, "replica 3 lives on store 3, and store 2");
    }

    #[test]
    fn a_target_elsewhere_is_seen() {
        let seen = scene().post(1, 2, message(1, 3, heartbeat()));
        caught(&seen, "replica 3 lives on store 3, and store 2");
        let gone = Body::Tombstone {
            replica: ReplicaId(3),
            next_replica: ReplicaId(9),
        };
        caught(&scene().post(1, 2, gone), "replica 3 lives on store 3");
    }

    #[test]
    fn a_replica_that_begins_elsewhere_is_seen() {
        let mut scene = Scene::of(NoCrossing::default());
        scene.send(1, 2, 2, heartbeat()).unwrap();
        caught(
            &scene.write(3, vec![create_section(2)]),
            "lives on store 2, and store 3",
        );
    }

    #[test]
    fn entries_of_nobody_are_seen() {
        let mut scene = scene();
        // A leader makes entries without sending them first.
        scene.durable(1, entries_section(&[entry(2, 4, "b")]));
        let seen = scene.write(2, vec![entries_section(&[entry(2, 4, "b")])]);
        assert_eq!(seen, Ok(()), "what the leader wrote may come from it");
        let seen = scene.write(2, vec![entries_section(&[entry(2, 5, "of another group")])]);
        caught(
            &seen,
            "store 2 has written entry 5 of term 2, which nobody has ever sent",
        );
    }

    #[test]
    fn a_leader_that_is_none_any_more_may_have_made_entries() {
        let mut scene = scene();
        let mut section = hard_section(3, 0, 2);
        section.entries = vec![entry(2, 4, "b")];
        scene.write(1, vec![section]).unwrap();
    }

    #[test]
    fn a_descriptor_of_another_group_or_with_members_elsewhere_is_seen() {
        let with = |change: &dyn Fn(&mut polyraft_multiraft::GroupDescriptor)| {
            let mut item = turn(&[entry(2, 3, "a")]);
            let mut descriptor = (*item.state.descriptor).clone();
            change(&mut descriptor);
            item.state.descriptor = descriptor.into();
            item.membership_changed = true;
            item
        };
        let mut scene = scene();
        scene.apply(1, with(&|_| {})).unwrap();
        let other = with(&|descriptor| descriptor.group = GroupId(GROUP.0 + 1));
        caught(&scene.apply(2, other), "was given the descriptor of");
        let moved = with(&|descriptor| descriptor.members[2].store = StoreId(1));
        caught(
            &scene.apply(2, moved),
            "replica 3 lives on store 3, and store 1",
        );
        let mut elsewhere = state(2, 3);
        let mut descriptor = (*elsewhere.descriptor).clone();
        descriptor.members[0].store = StoreId(4);
        elsewhere.descriptor = descriptor.into();
        caught(
            &scene.restored(3, &elsewhere),
            "replica 1 lives on store 1, and store 4",
        );
    }
}
