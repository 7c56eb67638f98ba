//! Whoever leads has the votes of a quorum of voters, of both halves if the configuration is joint.
//!
//! A vote is what a replica has durably written. Who has gone on to a later term since may have
//! given its vote, and is not asked.

use polyraft_core::{ReplicaId, RoleName, Term};
use polyraft_multiraft::{GroupId, GroupMap};

use super::Property;
use super::books::{Books, is_of_leader, raft};
use super::configurations::Configurations;
use crate::observe::Observation;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct ElectedByQuorum {
    configurations: Configurations,
    /// The highest term whose leader was looked at.
    led: GroupMap<Term>,
}

impl ElectedByQuorum {
    fn leads(
        &mut self,
        group: GroupId,
        term: Term,
        leader: ReplicaId,
        books: &Books,
    ) -> Result<(), String> {
        let led = self.led.entry(group).or_default();
        if term <= *led || !self.configurations.knows(group) {
            return Ok(());
        }
        *led = term;
        let voted = |voter| {
            let log = books.durable(group, voter);
            log.is_some_and(|log| {
                let hard_state = log.hard_state;
                hard_state.term > term || (hard_state.term, hard_state.vote) == (term, leader)
            })
        };
        if self.configurations.quorum(group, voted) {
            return Ok(());
        }
        let voters = self.configurations.tell(group, voted);
        Err(format!(
            "group {group}: replica {leader} leads in term {term}, voted for by{voters}"
        ))
    }
}

impl Property for ElectedByQuorum {
    fn name(&self) -> &'static str {
        "elected-by-quorum"
    }

    fn see(&mut self, seen: &Observation<'_>, books: &Books) -> Result<(), String> {
        self.configurations.see(seen, books);
        match *seen {
            Observation::Sent { message, .. } => match raft(message) {
                Some(said) if is_of_leader(said) => {
                    self.leads(message.group, said.term, said.from, books)
                }
                _ => Ok(()),
            },
            Observation::Published { replicas, .. } => {
                let leaders = replicas
                    .iter()
                    .filter(|replica| replica.basic.soft_state.role == RoleName::Leader);
                leaders.into_iter().try_for_each(|leader| {
                    let term = leader.basic.hard_state.term;
                    self.leads(leader.group, term, leader.replica, books)
                })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use polyraft_core::RoleName;

    use super::super::testing::{
        Scene, caught, destroy_section, hard, hard_section, heartbeat, summary,
    };
    use super::*;

    fn scene() -> Scene {
        Scene::of(ElectedByQuorum::default()).begun()
    }

    #[test]
    fn a_majority_elects() {
        let mut scene = scene();
        scene.durable(1, hard_section(2, 1, 2));
        scene.durable(2, hard_section(2, 1, 2));
        scene.send(1, 2, 2, heartbeat()).unwrap();
    }

    #[test]
    fn less_does_not() {
        let mut scene = scene();
        scene.durable(1, hard_section(2, 1, 2));
        scene.write(2, vec![hard_section(2, 1, 2)]).unwrap();
        scene.durable(3, hard_section(2, 3, 2));
        caught(&scene.send(1, 2, 2, heartbeat()), "these: [1]");
        let mut scene = self::scene();
        scene.durable(1, hard_section(2, 1, 2));
        let says = summary(1, RoleName::Leader, hard(2, 1, 2));
        caught(&scene.publish(1, says), "leads in term 2, voted for by");
    }

    #[test]
    fn voters_that_went_on_or_died_may_have_voted() {
        let mut scene = scene();
        scene.durable(1, hard_section(2, 1, 2));
        scene.durable(2, hard_section(5, 0, 2));
        scene.send(1, 2, 2, heartbeat()).unwrap();
        let mut scene = self::scene();
        scene.durable(1, hard_section(2, 1, 2));
        scene.durable(2, hard_section(2, 1, 2));
        scene.durable(2, destroy_section(9));
        scene.send(1, 3, 2, heartbeat()).unwrap();
    }
}
