//! How a leader comes to know that an entry is committed (thesis sections 3.5, 3.6.2), and what it
//! may say of it.
//!
//! * It counts only entries of its own term: when somebody shows for the first time that an entry
//!   is committed, the last one that a quorum has with the leader is of the leader's term.
//! * To a follower a heartbeat tells no more than that follower certainly has.
//!
//! What a leader knows it may have learned in another way: as a follower, as the leader of an
//! earlier term, or from those who refused it a vote. All of that shows before it leads: in what
//! others said, or in the hard state that it writes with its vote. So whatever shows there counts as known.

use polyraft_core::{EntryId, Index, Message, Payload, Term};
use polyraft_multiraft::{GroupId, GroupMap, StoreId};

use super::Property;
use super::books::{Books, Log, Section, raft};
use super::configurations::{Configurations, beginnings, has};
use crate::observe::Observation;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct CommitRule {
    configurations: Configurations,
    /// The highest index that was ever shown to be committed.
    known: GroupMap<Index>,
}

impl CommitRule {
    fn learn(&mut self, group: GroupId, index: Index) {
        let known = self.known.entry(group).or_default();
        *known = index.max(*known);
    }

    fn is_news(&self, group: GroupId, index: Index) -> bool {
        self.known.get(&group).is_none_or(|known| index > *known)
    }

    /// A leader of `term` shows that everything up to `index` is committed.
    fn commits(
        &mut self,
        store: StoreId,
        group: GroupId,
        term: Term,
        index: Index,
        books: &Books,
    ) -> Result<(), String> {
        if !self.is_news(group, index) {
            return Ok(());
        }
        self.learn(group, index);
        let book = books.store(store);
        let log = book.and_then(|book| book.written.logs.get(&group));
        // A message may leave late; a log that moved on tells nothing.
        let log = log.filter(|log| {
            let hard_state = log.hard_state;
            (hard_state.term, hard_state.vote) == (term, log.replica)
        });
        let Some(log) = log.filter(|_| self.configurations.knows(group)) else {
            return Ok(());
        };
        // Whoever has one entry of the term has the leader's log up to it.
        let has = |voter| {
            let log = books.durable(group, voter);
            log.is_some_and(|log| {
                log.truncated.index >= index || log.last_of(term).is_some_and(|to| to >= index)
            })
        };
        if self.configurations.quorum(group, has) {
            return Ok(());
        }
        let voters = self.configurations.tell(group, has);
        Err(format!(
            "group {group}: the leader of term {term} on store {store} shows that entry {index} of term \
             {:?} is committed; with one of its own term behind it that is durable at{voters}",
            log.term(index)
        ))
    }

    fn sent(
        &mut self,
        from: StoreId,
        group: GroupId,
        message: &Message,
        books: &Books,
    ) -> Result<(), String> {
        match message.payload {
            Payload::Append { commit, .. } => {
                self.commits(from, group, message.term, commit, books)
            }
            Payload::Heartbeat { commit, .. } => {
                within_match(from, group, message, commit, books)?;
                self.commits(from, group, message.term, commit, books)
            }
            Payload::VoteResponse { committed, .. } => {
                self.learn(group, committed.index);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn written(&mut self, store: StoreId, section: &Section, books: &Books) -> Result<(), String> {
        let (Some(before), Some(after)) = (section.before, section.after) else {
            if let Some(after) = section.after {
                self.learn(section.group, after.hard_state.commit);
            }
            return Ok(());
        };
        let (old, new) = (before.hard_state, after.hard_state);
        if old.term == new.term && new.vote == after.replica && section.reset.is_none() {
            return self.commits(store, section.group, new.term, new.commit, books);
        }
        self.learn(section.group, new.commit);
        Ok(())
    }
}

/// What a heartbeat tells to be committed its receiver has.
fn within_match(
    from: StoreId,
    group: GroupId,
    message: &Message,
    commit: Index,
    books: &Books,
) -> Result<(), String> {
    let book = books.store(from);
    let log = book.and_then(|book| book.written.log_of(group, message.from));
    // Only the leader's own log tells the term; behind its begin everything is committed everywhere it is.
    let Some(term) = log
        .and_then(|log| log.term(commit))
        .filter(|_| commit.0 > 0)
    else {
        return Ok(());
    };
    let id = EntryId {
        term,
        index: commit,
    };
    let follower = message.to;
    if books.owner(group, follower).is_none() || has(books, group, id, follower) {
        return Ok(());
    }
    let last = books.durable(group, follower).map(Log::last);
    Err(format!(
        "group {group}: a heartbeat of term {} tells replica {follower} that {id:?} is committed, which it \
         does not have; the last that it has is {last:?}",
        message.term
    ))
}

impl Property for CommitRule {
    fn name(&self) -> &'static str {
        "commit-rule"
    }

    fn see(&mut self, seen: &Observation<'_>, books: &Books) -> Result<(), String> {
        self.configurations.see(seen, books);
        for state in beginnings(seen) {
            self.learn(state.descriptor.group, state.last.index);
        }
        match *seen {
            Observation::Restored { state, .. } => {
                self.learn(state.descriptor.group, state.last.index);
                Ok(())
            }
            Observation::Applied { store, items } => {
                for (item, before) in items.iter().zip(&books.latest().before) {
                    if before.is_none() {
                        continue;
                    }
                    let (group, last) = (item.group, item.state.last.index);
                    let log = books
                        .store(store)
                        .and_then(|book| book.written.logs.get(&group));
                    let term = log.map(|log| log.hard_state.term).unwrap_or_default();
                    self.commits(store, group, term, last, books)?;
                }
                Ok(())
            }
            Observation::Sent { from, message, .. } => match raft(message) {
                Some(said) => self.sent(from, message.group, said, books),
                None => Ok(()),
            },
            Observation::Written { store, .. } => books
                .batch()
                .iter()
                .filter(|section| section.hard_state.is_some())
                .try_for_each(|section| self.written(store, section, books)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{
        Scene, append, caught, entries_section, entry, grant, hard_section, turn,
    };
    use super::*;

    /// Store 1 led in term 2 and left two entries on stores 1 and 2, store 2 leads in term 3.
    fn scene() -> Scene {
        let mut scene = Scene::of(CommitRule::default()).begun();
        scene.elect(1, 2, 2);
        scene.replicate(1, &[2], (1, 2), &[entry(2, 3, "a"), entry(2, 4, "b")]);
        scene.elect(2, 3, 2);
        scene
    }

    fn with_commit(commit: u64) -> Payload {
        let Payload::Append { prev, entries, .. } = append((2, 4), &[]) else {
            unreachable!("an append");
        };
        Payload::Append {
            prev,
            entries,
            commit: Index(commit),
        }
    }

    fn beat(commit: u64) -> Payload {
        Payload::Heartbeat {
            commit: Index(commit),
            read: 0,
        }
    }

    #[test]
    fn entries_of_old_terms_come_with_one_of_the_leaders_own() {
        let mut scene = scene();
        scene.durable(2, entries_section(&[entry(3, 5, "")]));
        scene.durable(1, entries_section(&[entry(3, 5, "")]));
        scene.send(2, 1, 3, with_commit(4)).unwrap();
        scene
            .apply(
                2,
                turn(&[entry(2, 3, "a"), entry(2, 4, "b"), entry(3, 5, "")]),
            )
            .unwrap();
    }

    #[test]
    fn counting_entries_of_an_old_term_is_seen_however_it_shows() {
        let mut told = scene();
        caught(
            &told.send(2, 1, 3, with_commit(4)),
            "entry 4 of term Some(Term(2))",
        );
        let mut applied = scene();
        let entries = [entry(2, 3, "a"), entry(2, 4, "b")];
        caught(&applied.apply(2, turn(&entries)), "shows that entry 4");
        let mut written = scene();
        caught(
            &written.write(2, vec![hard_section(3, 2, 4)]),
            "shows that entry 4",
        );
        let mut alone = scene();
        alone.durable(2, entries_section(&[entry(3, 5, "")]));
        caught(
            &alone.send(2, 1, 3, with_commit(5)),
            "durable at; of ConfState",
        );
    }

    #[test]
    fn what_was_known_before_may_be_told() {
        // As the leader of the term before, who did not tell anybody.
        let mut scene = Scene::of(CommitRule::default()).begun();
        scene.elect(1, 2, 2);
        scene.replicate(1, &[2], (1, 2), &[entry(2, 3, "a"), entry(2, 4, "b")]);
        scene.elect(1, 3, 4);
        scene.send(1, 2, 3, with_commit(4)).unwrap();
        // From one who refused a vote.
        let mut scene = self::scene();
        let refusal = Payload::VoteResponse {
            pre: false,
            reject: true,
            committed: EntryId::new(2, 4),
        };
        scene.send(1, 2, 3, refusal).unwrap();
        scene.send(1, 2, 3, grant()).unwrap();
        scene
            .apply(2, turn(&[entry(2, 3, "a"), entry(2, 4, "b")]))
            .unwrap();
        scene.send(2, 1, 3, with_commit(4)).unwrap();
    }

    #[test]
    fn a_heartbeat_tells_what_its_receiver_has() {
        let mut scene = scene();
        scene.send(2, 1, 3, beat(2)).unwrap();
        caught(&scene.send(2, 3, 3, beat(3)), "which it does not have");
        scene
            .write(3, vec![entries_section(&[entry(2, 3, "a")])])
            .unwrap();
        caught(&scene.send(2, 3, 3, beat(3)), "which it does not have");
    }
}
