//! A leader lets a read begin only when a quorum has answered a heartbeat that left after the read was
//! asked for (thesis, section 6.4): whoever answered an earlier one may have followed somebody else since.
//!
//! The heartbeats that count are told by the number of the newest read in them, which a leader gives
//! out once: an answer to a number is one to the first heartbeat with it, or to a later one.

use std::collections::{BTreeMap, HashMap};

use polyraft_core::{Message, Payload, ReplicaId, Term};
use polyraft_multiraft::{GroupId, StoreId};

use super::Property;
use super::books::{Books, raft};
use super::configurations::Configurations;
use crate::observe::Observation;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct ReadRounds {
    configurations: Configurations,
    /// What has been seen so far, as a clock.
    now: u64,
    leaders: BTreeMap<(StoreId, GroupId), Rounds>,
    /// When reads were asked for, by store and who asks.
    asked: BTreeMap<(StoreId, u64, u64), u64>,
}

/// The rounds of heartbeats of a replica.
#[derive(Debug, Default)]
struct Rounds {
    /// When a number first left.
    sent: HashMap<(Term, u64), u64>,
    /// By replica: when that left which it has answered; of several the latest.
    answered: BTreeMap<ReplicaId, u64>,
}

impl Rounds {
    fn hear(&mut self, message: &Message) {
        if let Payload::HeartbeatResponse { read } = message.payload
            && let Some(sent) = self.sent.get(&(message.term, read))
        {
            let answered = self.answered.entry(message.from).or_default();
            *answered = (*answered).max(*sent);
        }
    }
}

impl ReadRounds {
    fn rounds(&mut self, store: StoreId, group: GroupId) -> &mut Rounds {
        self.leaders.entry((store, group)).or_default()
    }

    fn begins(
        &self,
        store: StoreId,
        group: GroupId,
        replica: ReplicaId,
        asked: u64,
    ) -> Result<(), String> {
        if !self.configurations.knows(group) {
            return Ok(());
        }
        let rounds = self.leaders.get(&(store, group));
        let answered = |voter: ReplicaId| {
            let answered = rounds.and_then(|rounds| rounds.answered.get(&voter));
            voter == replica || answered.is_some_and(|sent| *sent > asked)
        };
        if self.configurations.quorum(group, answered) {
            return Ok(());
        }
        let voters = self.configurations.tell(group, answered);
        Err(format!(
            "group {group}: a read begins on store {store}, and heartbeats that left after it was asked for \
             were answered by{voters}"
        ))
    }
}

impl Property for ReadRounds {
    fn name(&self) -> &'static str {
        "read-rounds"
    }

    fn see(&mut self, seen: &Observation<'_>, books: &Books) -> Result<(), String> {
        self.now += 1;
        let now = self.now;
        self.configurations.see(seen, books);
        match *seen {
            Observation::Sent { from, message, .. } => {
                if let Some(said) = raft(message)
                    && let Payload::Heartbeat { read, .. } = said.payload
                    && read > 0
                {
                    let rounds = self.rounds(from, message.group);
                    rounds.sent.entry((said.term, read)).or_insert(now);
                }
            }
            Observation::Delivered { to, message, .. } => {
                if let Some(said) = raft(message) {
                    self.rounds(to, message.group).hear(said);
                }
            }
            Observation::ReadAsked {
                store,
                client,
                token,
            } => {
                self.asked.insert((store, client, token), now);
            }
            Observation::ReadPermitted {
                store,
                group,
                replica,
                client,
                token,
            } => {
                if let Some(asked) = self.asked.remove(&(store, client, token)) {
                    return self.begins(store, group, replica, asked);
                }
            }
            Observation::Crashed { store, .. } => {
                self.leaders.retain(|(at, _), _| *at != store);
                self.asked.retain(|(at, ..), _| *at != store);
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use polyraft_core::Index;

    use super::super::testing::{GROUP, Scene, Seen, caught};
    use super::*;

    fn beat(scene: &mut Scene, to: u64, read: u64) {
        let commit = Index(2);
        let beat = Payload::Heartbeat { commit, read };
        scene.send(1, to, 2, beat).unwrap();
    }

    fn answer(scene: &mut Scene, from: u64, read: u64) {
        let answer = Payload::HeartbeatResponse { read };
        scene.deliver(from, 1, 2, answer).unwrap();
    }

    fn ask(scene: &mut Scene, token: u64) {
        let asked = Observation::ReadAsked {
            store: StoreId(1),
            client: 7,
            token,
        };
        scene.see(&asked).unwrap();
    }

    fn begin(scene: &mut Scene, token: u64) -> Seen {
        scene.see(&Observation::ReadPermitted {
            store: StoreId(1),
            group: GROUP,
            replica: ReplicaId(1),
            client: 7,
            token,
        })
    }

    #[test]
    fn a_read_begins_when_a_quorum_has_answered_its_round() {
        let mut scene = Scene::of(ReadRounds::default()).begun();
        ask(&mut scene, 1);
        for to in [2, 3] {
            beat(&mut scene, to, 1);
        }
        answer(&mut scene, 3, 1);
        begin(&mut scene, 1).unwrap();
        // A later round confirms it as well.
        ask(&mut scene, 2);
        beat(&mut scene, 2, 2);
        beat(&mut scene, 2, 3);
        answer(&mut scene, 2, 3);
        begin(&mut scene, 2).unwrap();
    }

    #[test]
    fn answers_to_an_earlier_round_do_not_count() {
        let mut scene = Scene::of(ReadRounds::default()).begun();
        beat(&mut scene, 2, 1);
        ask(&mut scene, 1);
        beat(&mut scene, 2, 2);
        answer(&mut scene, 2, 1);
        caught(&begin(&mut scene, 1), "left after it was asked for");
        // Nor do those that were heard before a crash.
        let mut scene = Scene::of(ReadRounds::default()).begun();
        ask(&mut scene, 1);
        beat(&mut scene, 2, 1);
        scene.crash(1, false).unwrap();
        answer(&mut scene, 2, 1);
        ask(&mut scene, 1);
        caught(&begin(&mut scene, 1), "a read begins on store 1");
    }

    #[test]
    fn nobody_confirms_a_read_alone() {
        let mut scene = Scene::of(ReadRounds::default()).begun();
        ask(&mut scene, 1);
        caught(&begin(&mut scene, 1), "a read begins on store 1");
    }
}
