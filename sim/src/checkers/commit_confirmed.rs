//! A follower learns only by what it was told that entries are committed (figure 3.1 of the thesis): an
//! append that fits commits up to its own last entry, whatever lies behind that one.
//!
//! What lies behind may be of a leader deposed, or may be right: a leader that finds the last common entry
//! at once never meets the first. So this does not wait for a commit that turns out wrong.
//!
//! An append fits if its `prev` is in the log as written or among what is about to be. Where that cannot be
//! known it counts as fitting. Who is merged is told by its left neighbour on the same store, which has a
//! committed entry that says so, that its freeze is committed. A leader learns by counting: see
//! [`commit_rule`](super::commit_rule).

use std::collections::{BTreeMap, BTreeSet};

use polyraft_core::{Entry, EntryId, Index, Message, Payload};
use polyraft_multiraft::{GroupId, StoreId};

use super::Property;
use super::books::{Books, Log, Section, raft, rights};
use crate::observe::Observation;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct CommitConfirmed {
    replicas: BTreeMap<(StoreId, GroupId), Replica>,
}

/// What a replica of a group on a store may have heard.
#[derive(Debug, Default)]
struct Replica {
    /// Up to here it may know that entries are committed.
    commit: Index,
    /// Entries that it was sent or has sent itself, and that were not written yet.
    pending: BTreeSet<EntryId>,
}

impl Replica {
    fn learn(&mut self, commit: Index) {
        self.commit = self.commit.max(commit);
    }

    fn expect(&mut self, entries: &[Entry], log: Option<&Log>) {
        let new = entries.iter().map(Entry::id);
        let new = new.filter(|id| log.is_none_or(|log| !log.holds(*id)));
        self.pending.extend(new);
    }

    fn fits(&self, prev: EntryId, log: Option<&Log>) -> bool {
        prev.index <= self.commit
            || self.pending.contains(&prev)
            || log.is_none_or(|log| log.holds(prev))
    }

    fn hear(&mut self, message: &Message, log: Option<&Log>) {
        match &message.payload {
            Payload::Append {
                prev,
                entries,
                commit,
            } if self.fits(*prev, log) => {
                let last = Index(prev.index.0 + entries.len() as u64);
                self.learn(last.min(*commit));
                self.expect(entries, log);
            }
            Payload::Heartbeat { commit, .. } => self.learn(*commit),
            Payload::Snapshot(snapshot) => {
                self.learn(snapshot.meta.last.index);
                self.pending.insert(snapshot.meta.last);
            }
            Payload::VoteResponse { committed, .. } => self.learn(committed.index),
            _ => {}
        }
    }
}

impl CommitConfirmed {
    fn replica(&mut self, store: StoreId, group: GroupId) -> &mut Replica {
        self.replicas.entry((store, group)).or_default()
    }

    /// A replica shows that it knows entries up to `index` to be committed. Whoever may lead may know
    /// more than it was told.
    fn shows(
        &mut self,
        store: StoreId,
        group: GroupId,
        index: Index,
        may_lead: bool,
        books: &Books,
    ) -> Result<(), String> {
        let replica = self.replica(store, group);
        let told = replica.commit;
        replica.learn(index);
        if may_lead || index <= told || self.is_told_by_left(store, group, index, books) {
            return Ok(());
        }
        Err(format!(
            "group {group}: store {store} takes entry {index} for committed, and whatever it was told of entries \
             that it has ends at {told}"
        ))
    }

    /// Whether the left neighbour of a group on this store may know its merge to be committed.
    fn is_told_by_left(&self, store: StoreId, right: GroupId, index: Index, books: &Books) -> bool {
        let mut merges = books.merges_of(right);
        merges.any(|(left, merge, frozen)| {
            let log = books.store(store).and_then(|it| it.written.latest(left));
            let known = self.replicas.get(&(store, left));
            let told = known.is_some_and(|known| known.commit >= merge.index);
            let leads = log.is_some_and(|log| log.hard_state.vote == log.replica);
            let holds = log.is_some_and(|log| log.holds(merge));
            frozen.index >= index && holds && (told || leads)
        })
    }

    fn written(&mut self, store: StoreId, section: &Section, books: &Books) -> Result<(), String> {
        let Some(after) = section.after else {
            self.replicas.remove(&(store, section.group));
            return Ok(());
        };
        let replica = self.replica(store, section.group);
        for (index, _, slot) in section.entries() {
            let term = slot.term;
            replica.pending.remove(&EntryId { term, index });
        }
        if section.hard_state.is_none() {
            return Ok(());
        }
        let may_lead = section.before.is_none_or(|before| {
            before.hard_state.vote == before.replica || after.hard_state.vote == after.replica
        });
        let commit = after.hard_state.commit;
        self.shows(store, section.group, commit, may_lead, books)
    }
}

impl Property for CommitConfirmed {
    fn name(&self) -> &'static str {
        "commit-confirmed"
    }

    fn see(&mut self, seen: &Observation<'_>, books: &Books) -> Result<(), String> {
        let log_of = |store, group: &GroupId| books.store(store)?.written.logs.get(group);
        match *seen {
            Observation::Created { store, state } | Observation::Restored { store, state, .. } => {
                let replica = self.replica(store, state.descriptor.group);
                replica.learn(state.last.index);
                replica.pending.insert(state.last);
            }
            Observation::RecoveredLog { store, found } => {
                let here = |(key, _): &(&(StoreId, GroupId), &mut Replica)| key.0 == store;
                for (_, replica) in self.replicas.iter_mut().filter(here) {
                    replica.pending.clear();
                }
                for group in &found.groups {
                    let replica = self.replica(store, group.group);
                    replica.learn(group.hard_state.commit.max(group.truncated.index));
                }
            }
            Observation::RecoveredData { store, states } => {
                for state in states {
                    let replica = self.replica(store, state.descriptor.group);
                    replica.learn(state.last.index);
                }
            }
            Observation::Delivered { to, message, .. } => {
                if let Some(said) = raft(message) {
                    let log = log_of(to, &message.group);
                    self.replica(to, message.group).hear(said, log);
                }
            }
            Observation::Sent { from, message, .. } => {
                if let Some(Payload::Append { entries, .. }) = raft(message).map(|m| &m.payload) {
                    let log = log_of(from, &message.group);
                    self.replica(from, message.group).expect(entries, log);
                }
            }
            Observation::Written { store, .. } => {
                let mut batch = books.batch().iter();
                return batch.try_for_each(|section| self.written(store, section, books));
            }
            Observation::Applied { store, items } => {
                for right in items.iter().flat_map(rights) {
                    let state = &right.state;
                    let replica = self.replica(store, state.descriptor.group);
                    replica.learn(state.last.index);
                    replica.pending.insert(state.last);
                }
                for item in items {
                    let log = log_of(store, &item.group);
                    let may_lead = log.is_none_or(|log| log.hard_state.vote == log.replica);
                    self.shows(store, item.group, item.state.last.index, may_lead, books)?;
                }
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use polyraft_multiraft::env::Recovered;

    use super::super::testing::{
        Scene, append, caught, entries_section, entry, hard_section, state, turn,
    };
    use super::*;

    /// Store 1 leads in term 2, store 2 has three of its entries.
    fn scene() -> Scene {
        let mut scene = Scene::of(CommitConfirmed::default()).begun();
        scene.elect(1, 2, 2);
        let entries = [entry(2, 3, "a"), entry(2, 4, "b"), entry(2, 5, "c")];
        scene.replicate(1, &[2], (1, 2), &entries);
        scene
    }

    fn told(prev: (u64, u64), entries: &[Entry], commit: u64) -> Payload {
        let Payload::Append { prev, entries, .. } = append(prev, entries) else {
            unreachable!("an append");
        };
        Payload::Append {
            prev,
            entries,
            commit: Index(commit),
        }
    }

    #[test]
    fn an_append_confirms_up_to_its_last_entry() {
        let mut scene = scene();
        let one = [entry(2, 3, "a")];
        scene.deliver(1, 2, 2, told((1, 2), &one, 5)).unwrap();
        scene.write(2, vec![hard_section(2, 1, 3)]).unwrap();
        scene.apply(2, turn(&one)).unwrap();
        caught(
            &scene.write(2, vec![hard_section(2, 1, 4)]),
            "takes entry 4 for committed, and whatever it was told of entries that it has ends at 3",
        );
        let mut applied = self::scene();
        applied.deliver(1, 2, 2, told((2, 4), &[], 5)).unwrap();
        let all = [entry(2, 3, "a"), entry(2, 4, "b"), entry(2, 5, "c")];
        caught(&applied.apply(2, turn(&all)), "takes entry 5");
    }

    #[test]
    fn an_append_that_does_not_fit_confirms_nothing() {
        let mut scene = scene();
        scene.deliver(1, 2, 3, told((3, 5), &[], 5)).unwrap();
        caught(&scene.write(2, vec![hard_section(3, 1, 5)]), "ends at 2");
        // Behind one that is about to be written it does.
        let mut scene = self::scene();
        let more = [entry(2, 6, "d")];
        scene.deliver(1, 2, 2, told((2, 5), &more, 2)).unwrap();
        scene.deliver(1, 2, 2, told((2, 6), &[], 6)).unwrap();
        scene.durable(2, entries_section(&more));
        scene.write(2, vec![hard_section(2, 1, 6)]).unwrap();
        // Not after a crash before it was.
        let mut scene = self::scene();
        scene.deliver(1, 2, 2, told((2, 5), &more, 2)).unwrap();
        scene.crash(2, false).unwrap();
        scene.found_log(2, &Recovered::default()).unwrap();
        scene.deliver(1, 2, 2, told((2, 6), &[], 6)).unwrap();
        caught(&scene.apply(2, turn(&more)), "ends at 2");
    }

    #[test]
    fn heartbeats_and_snapshots_confirm_and_leaders_count() {
        let mut scene = scene();
        let beat = Payload::Heartbeat {
            commit: Index(4),
            read: 0,
        };
        scene.deliver(1, 2, 2, beat).unwrap();
        scene.write(2, vec![hard_section(2, 1, 4)]).unwrap();
        scene.restored(3, &state(2, 5)).unwrap();
        scene.write(3, vec![hard_section(2, 1, 5)]).unwrap();
        scene.write(1, vec![hard_section(2, 1, 5)]).unwrap();
        // What it knew when it led it writes in the next term at the latest.
        scene.write(1, vec![hard_section(3, 2, 6)]).unwrap();
        caught(&scene.write(1, vec![hard_section(3, 2, 7)]), "ends at 6");
    }
}
