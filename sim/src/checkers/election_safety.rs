//! At most one replica of a group leads in a term (thesis section 3.2), and nobody votes for two in one term.
//!
//! Who leads shows by what only leaders say, and by what hosts publish.

use std::collections::BTreeMap;

use polyraft_core::{Message, Payload, ReplicaId, RoleName, Term};
use polyraft_multiraft::{GroupId, GroupMap, StoreId};

use super::Property;
use super::books::{Books, is_of_leader, raft};
use crate::observe::Observation;

/// A replica and the store that it speaks from.
type Who = (ReplicaId, StoreId);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct ElectionSafety {
    groups: GroupMap<Elections>,
}

#[derive(Debug, Default)]
struct Elections {
    /// The leader of the highest term, since it is asked about for nearly every message.
    newest: (Term, Who),
    leaders: BTreeMap<Term, Who>,
    /// For whom each voter voted in each term.
    votes: BTreeMap<(Term, ReplicaId), ReplicaId>,
}

impl ElectionSafety {
    fn leads(&mut self, group: GroupId, term: Term, who: Who) -> Result<(), String> {
        let known = self.groups.entry(group).or_default();
        if known.newest == (term, who) {
            return Ok(());
        }
        let leader = *known.leaders.entry(term).or_insert(who);
        if term >= known.newest.0 {
            known.newest = (term, leader);
        }
        if leader == who {
            return Ok(());
        }
        Err(format!(
            "group {group} has two leaders of term {term}: replica {} on store {}, \
             and replica {} on store {}",
            leader.0, leader.1, who.0, who.1
        ))
    }

    fn votes(&mut self, group: GroupId, message: &Message) -> Result<(), String> {
        let Payload::VoteResponse {
            pre: false,
            reject: false,
            ..
        } = message.payload
        else {
            return Ok(());
        };
        let known = self.groups.entry(group).or_default();
        let (term, voter, candidate) = (message.term, message.from, message.to);
        let before = *known.votes.entry((term, voter)).or_insert(candidate);
        if before == candidate {
            return Ok(());
        }
        Err(format!(
            "group {group}: replica {voter} has voted for {before} and for {candidate} in term {term}"
        ))
    }
}

impl Property for ElectionSafety {
    fn name(&self) -> &'static str {
        "election-safety"
    }

    fn see(&mut self, seen: &Observation<'_>, _books: &Books) -> Result<(), String> {
        match *seen {
            Observation::Sent { from, message, .. } => {
                let Some(said) = raft(message) else {
                    return Ok(());
                };
                if is_of_leader(said) {
                    return self.leads(message.group, said.term, (said.from, from));
                }
                self.votes(message.group, said)
            }
            Observation::Published {
                store, replicas, ..
            } => replicas
                .iter()
                .filter(|replica| replica.basic.soft_state.role == RoleName::Leader)
                .try_for_each(|replica| {
                    let term = replica.basic.hard_state.term;
                    self.leads(replica.group, term, (replica.replica, store))
                }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use polyraft_core::RoleName;

    use super::super::testing::{Scene, caught, grant, hard, heartbeat, summary};
    use super::*;

    fn scene() -> Scene {
        Scene::of(ElectionSafety::default()).begun()
    }

    #[test]
    fn leaders_of_different_terms_are_no_harm() {
        let mut scene = scene();
        scene.send(1, 2, 2, heartbeat()).unwrap();
        scene.send(2, 1, 3, heartbeat()).unwrap();
        // The older one does not know it yet.
        scene.send(1, 3, 2, heartbeat()).unwrap();
        scene.send(3, 1, 3, grant()).unwrap();
        scene.send(3, 1, 3, grant()).unwrap();
        let says = summary(2, RoleName::Leader, hard(3, 2, 2));
        scene.publish(2, says).unwrap();
    }

    #[test]
    fn two_leaders_of_a_term_are_seen() {
        let mut scene = scene();
        scene.send(1, 2, 2, heartbeat()).unwrap();
        scene.send(2, 1, 3, heartbeat()).unwrap();
        caught(&scene.send(3, 1, 2, heartbeat()), "two leaders of term 2");
    }

    #[test]
    fn one_that_only_says_so_is_seen() {
        let mut scene = scene();
        scene.send(1, 2, 2, heartbeat()).unwrap();
        let says = summary(2, RoleName::Leader, hard(2, 2, 2));
        caught(&scene.publish(2, says), "two leaders");
    }

    #[test]
    fn one_replica_on_two_stores_is_seen() {
        let mut scene = scene();
        let says = summary(1, RoleName::Leader, hard(2, 1, 2));
        scene.publish(1, says).unwrap();
        caught(&scene.publish(2, says), "two leaders");
    }

    #[test]
    fn two_votes_in_a_term_are_seen_over_crashes() {
        let mut scene = scene();
        scene.send(3, 1, 2, grant()).unwrap();
        scene.crash(3, true).unwrap();
        caught(&scene.send(3, 2, 2, grant()), "has voted for 1 and for 2");
    }
}
