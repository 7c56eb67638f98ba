//! What a replica promises is durable before the promise leaves its store (thesis sections 3.4, 3.5, 3.8).
//!
//! * A granted vote: term and vote; and the candidate's log is as up to date as the voter's.
//! * An accepted append or snapshot: the term, and the log up to the index acknowledged, as the leader has
//!   it.
//! * Every other answer to a vote or an append: the term.
//! * Whatever a leader says: its own vote for itself.
//!
//! Promises may leave late: the write that they wait for may be one with writes of a later term, or with the
//! replica's tombstone. So a durable term above that of the message says that the promise was made before and
//! is void for the message's term; and dead replicas are looked at as they were last.

use std::collections::BTreeMap;

use polyraft_core::{EntryId, Index, Message, Payload, ReplicaId, Term};
use polyraft_multiraft::{GroupId, GroupMap, StoreId};

use super::Property;
use super::books::{Books, Log, Section, entries, is_of_leader, raft, say};
use crate::observe::Observation;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Promises {
    /// Of the newest leader of each group: what it has said that its log contains.
    leaders: GroupMap<Claims>,
    /// The last entry of each candidate, with the term in which it asked for votes last.
    candidates: BTreeMap<(GroupId, ReplicaId), (Term, EntryId)>,
}

/// The term of a leader, and runs of entries that it has named: first and last index, and their term.
#[derive(Debug, Default)]
struct Claims {
    term: Term,
    runs: Vec<(Index, Index, Term)>,
}

impl Claims {
    fn note(&mut self, id: EntryId) {
        let EntryId { term, index } = id;
        let at = self.runs.partition_point(|(first, ..)| *first <= index);
        if let Some((_, last, of)) = at.checked_sub(1).map(|at| &mut self.runs[at]) {
            if index <= *last {
                return;
            }
            if *last == index.prev() && *of == term {
                *last = index;
                return;
            }
        }
        self.runs.insert(at, (index, index, term));
    }

    fn term_at(&self, index: Index) -> Option<Term> {
        let at = self.runs.partition_point(|(first, ..)| *first <= index);
        let (_, last, term) = self.runs.get(at.checked_sub(1)?)?;
        (index <= *last).then_some(*term)
    }
}

impl Promises {
    fn note_append(&mut self, group: GroupId, term: Term, prev: EntryId, books: &Books) {
        let claims = self.leaders.entry(group).or_default();
        if term < claims.term {
            return;
        }
        if term > claims.term {
            let runs = Vec::new();
            *claims = Claims { term, runs };
        }
        claims.note(prev);
        let sent = &books.latest().sent;
        for (index, _, slot) in entries(prev.index.next(), prev.term, sent) {
            let term = slot.term;
            claims.note(EntryId { term, index });
        }
    }

    fn acknowledges(
        &self,
        group: GroupId,
        message: &Message,
        index: Index,
        log: &Log,
    ) -> Result<(), String> {
        let last = log.last().index;
        if index > last {
            return Err(format!(
                "{} acknowledges entries up to {index} in term {}, durable is its log up to {last}",
                sender(group, message),
                message.term
            ));
        }
        let leader = self.leaders.get(&group);
        let claims = leader.filter(|claims| claims.term == message.term);
        let claimed = claims.and_then(|claims| claims.term_at(index));
        match (claimed, log.term(index)) {
            (Some(claimed), Some(durable)) if claimed != durable => Err(format!(
                "{} acknowledges entry {index} in term {}, durable there is one of term {durable}, \
                 the leader has one of term {claimed}",
                sender(group, message),
                message.term
            )),
            _ => Ok(()),
        }
    }

    /// A vote that is written by itself is for a log that is as up to date as the one it is written beside.
    fn written(&self, section: &Section) -> Result<(), String> {
        let (Some(before), Some(after)) = (section.before, section.after) else {
            return Ok(());
        };
        let (old, new) = (before.hard_state, after.hard_state);
        let alone = section.slots.is_empty() && section.reset.is_none();
        if !alone || (old.term, old.vote) == (new.term, new.vote) {
            return Ok(());
        }
        match self.candidates.get(&(section.group, new.vote)) {
            Some((term, last)) if *term == new.term && *last < before.last => Err(format!(
                "group {}: replica {} votes in term {term} for replica {}, whose last entry is {last:?}; \
                 its own is {:?}",
                section.group, after.replica, new.vote, before.last
            )),
            _ => Ok(()),
        }
    }

    fn sent(
        &mut self,
        from: StoreId,
        group: GroupId,
        message: &Message,
        books: &Books,
    ) -> Result<(), String> {
        if let Payload::Append { prev, .. } = message.payload {
            self.note_append(group, message.term, prev, books);
        }
        if let Payload::Vote {
            pre: false, last, ..
        } = message.payload
        {
            let asked = (message.term, last);
            self.candidates.insert((group, message.from), asked);
        }
        if !promises(message) {
            return Ok(());
        }
        let store = books.store(from);
        let log = store.and_then(|store| store.durable.log_of(group, message.from));
        let Some(log) = log else {
            return Err(format!(
                "{} says {:?} to replica {}, but its beginning is not durable on store {from}",
                sender(group, message),
                message.payload.kind(),
                message.to
            ));
        };
        let durable = log.hard_state;
        if durable.term < message.term {
            return Err(format!(
                "{} says {:?} in term {}, durable is {}",
                sender(group, message),
                message.payload.kind(),
                message.term,
                say(durable)
            ));
        }
        if durable.term > message.term {
            return Ok(());
        }
        match message.payload {
            Payload::AppendResponse {
                index,
                reject: None,
            } => self.acknowledges(group, message, index, log),
            Payload::VoteResponse { reject: false, .. } => votes(group, message, message.to, log),
            _ if is_of_leader(message) => votes(group, message, message.from, log),
            _ => Ok(()),
        }
    }
}

/// Whether what it says must be durable first.
fn promises(message: &Message) -> bool {
    match message.payload {
        Payload::AppendResponse { .. } => true,
        // The grant of a trial is of a term that nobody has entered.
        Payload::VoteResponse { pre, reject, .. } => !pre || reject,
        _ => is_of_leader(message),
    }
}

fn votes(group: GroupId, message: &Message, candidate: ReplicaId, log: &Log) -> Result<(), String> {
    if log.hard_state.vote == candidate {
        return Ok(());
    }
    Err(format!(
        "{} says {:?}, which takes its vote for {candidate} in term {}; durable is {}",
        sender(group, message),
        message.payload.kind(),
        message.term,
        say(log.hard_state)
    ))
}

fn sender(group: GroupId, message: &Message) -> String {
    format!("group {group}: replica {}", message.from)
}

impl Property for Promises {
    fn name(&self) -> &'static str {
        "promises-are-durable"
    }

    fn see(&mut self, seen: &Observation<'_>, books: &Books) -> Result<(), String> {
        match *seen {
            Observation::Sent { from, message, .. } => match raft(message) {
                Some(said) => self.sent(from, message.group, said, books),
                None => Ok(()),
            },
            Observation::Written { .. } => books
                .batch()
                .iter()
                .try_for_each(|section| self.written(section)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use polyraft_core::RejectHint;

    use super::super::testing::{
        GROUP, Scene, acknowledge, append, caught, create_section, destroy_section,
        entries_section, entry, grant, hard_section, heartbeat, section, state,
    };
    use super::*;

    fn scene() -> Scene {
        let mut scene = Scene::of(Promises::default()).begun();
        scene.elect(1, 2, 2);
        scene.replicate(1, &[2], (1, 2), &[entry(2, 3, "a")]);
        scene
    }

    const fn refusal(pre: bool) -> Payload {
        Payload::VoteResponse {
            pre,
            reject: true,
            committed: EntryId::new(0, 0),
        }
    }

    #[test]
    fn what_is_durable_may_be_promised_again() {
        let mut scene = scene();
        scene.send(2, 1, 2, acknowledge(3)).unwrap();
        scene.send(2, 1, 2, acknowledge(2)).unwrap();
        scene.send(2, 1, 2, grant()).unwrap();
        scene.send(2, 3, 2, refusal(false)).unwrap();
        // A trial says nothing of the disk if it is granted.
        let trial = Payload::VoteResponse {
            pre: true,
            reject: false,
            committed: EntryId::default(),
        };
        scene.send(2, 3, 9, trial).unwrap();
        assert_eq!(scene.books.term(GROUP), Term(2));
    }

    #[test]
    fn an_acknowledgement_ahead_of_the_sync_is_seen() {
        let mut scene = scene();
        let entries = [entry(2, 3, "a")];
        scene.write(3, vec![entries_section(&entries)]).unwrap();
        caught(
            &scene.send(3, 1, 2, acknowledge(3)),
            "durable is its log up to 2",
        );
        scene.sync(3).unwrap();
        scene.send(3, 1, 2, acknowledge(3)).unwrap();
    }

    #[test]
    fn what_did_not_ask_for_a_sync_is_not_synced() {
        let mut scene = scene();
        scene
            .write_lazily(3, vec![entries_section(&[entry(2, 3, "a")])])
            .unwrap();
        scene.sync(3).unwrap();
        caught(
            &scene.send(3, 1, 2, acknowledge(3)),
            "durable is its log up to 2",
        );
        scene.durable(3, hard_section(2, 1, 3));
        scene.send(3, 1, 2, acknowledge(3)).unwrap();
    }

    #[test]
    fn an_acknowledgement_of_what_the_leader_does_not_have_is_seen() {
        let mut scene = scene();
        scene.durable(3, hard_section(2, 1, 2));
        scene.durable(3, entries_section(&[entry(1, 3, "old")]));
        caught(
            &scene.send(3, 1, 2, acknowledge(3)),
            "the leader has one of term 2",
        );
    }

    #[test]
    fn a_vote_that_is_not_durable_is_seen() {
        let mut scene = scene();
        scene.write(2, vec![hard_section(3, 3, 2)]).unwrap();
        caught(
            &scene.send(2, 3, 3, grant()),
            "durable is term 2, vote for 1",
        );
        scene.sync(2).unwrap();
        scene.send(2, 3, 3, grant()).unwrap();
        caught(&scene.send(2, 1, 3, grant()), "takes its vote for 1");
    }

    #[test]
    fn a_vote_for_a_log_that_is_behind_is_seen() {
        let ask = |term, index| Payload::Vote {
            pre: false,
            last: EntryId::new(term, index),
            transfer: false,
        };
        for (term, index) in [(1, 9), (2, 2)] {
            let mut scene = scene();
            scene.send(3, 2, 3, ask(term, index)).unwrap();
            caught(
                &scene.write(2, vec![hard_section(3, 3, 2)]),
                "last entry is",
            );
        }
        let mut scene = scene();
        scene.send(3, 2, 3, ask(2, 3)).unwrap();
        scene.durable(2, hard_section(3, 3, 2));
        // It may have got an entry of its new leader meanwhile.
        scene.durable(2, entries_section(&[entry(3, 4, "")]));
        scene.send(2, 3, 3, grant()).unwrap();
    }

    #[test]
    fn a_vote_lost_in_a_crash_is_not_there_any_more() {
        let mut scene = scene();
        scene.write(2, vec![hard_section(3, 3, 2)]).unwrap();
        scene.crash(2, false).unwrap();
        scene.send(2, 3, 3, grant()).unwrap();
        scene.write(1, vec![hard_section(3, 3, 2)]).unwrap();
        scene.crash(1, true).unwrap();
        caught(&scene.send(1, 3, 3, grant()), "durable is term 2");
    }

    #[test]
    fn a_term_that_is_not_durable_is_seen_in_every_answer() {
        let mut scene = scene();
        let reject = Some(RejectHint::default());
        let index = Index(9);
        for answer in [
            Payload::AppendResponse { index, reject },
            acknowledge(0),
            refusal(false),
            refusal(true),
        ] {
            caught(&scene.send(2, 3, 3, answer), "in term 3, durable is term 2");
        }
    }

    #[test]
    fn a_leader_without_its_own_vote_is_seen() {
        let mut scene = scene();
        caught(&scene.send(3, 1, 3, heartbeat()), "durable is term 2");
        scene.durable(3, hard_section(3, 1, 2));
        let seen = scene.send(3, 1, 3, append((2, 3), &[]));
        caught(&seen, "takes its vote for 3");
        scene.durable(1, hard_section(4, 1, 2));
        scene.send(1, 3, 4, heartbeat()).unwrap();
    }

    #[test]
    fn what_was_promised_before_a_later_term_may_leave_late() {
        let mut scene = scene();
        // One record: the entry of term 2 is written and cut again.
        let sections = vec![
            entries_section(&[entry(2, 4, "b"), entry(2, 5, "c")]),
            hard_section(3, 3, 2),
            entries_section(&[entry(3, 4, "d")]),
        ];
        scene.write(2, sections).unwrap();
        scene.sync(2).unwrap();
        scene.send(2, 1, 2, acknowledge(5)).unwrap();
        scene.send(2, 3, 3, acknowledge(4)).unwrap();
        caught(&scene.send(2, 3, 3, acknowledge(5)), "up to 4");
    }

    #[test]
    fn the_dead_have_kept_their_promises() {
        let mut scene = scene();
        scene.durable(2, destroy_section(9));
        scene.send(2, 1, 2, acknowledge(3)).unwrap();
        caught(&scene.send(2, 1, 2, acknowledge(4)), "up to 3");
    }

    #[test]
    fn a_replica_that_has_not_begun_promises_nothing() {
        let mut scene = Scene::of(Promises::default());
        scene.write(2, vec![create_section(2)]).unwrap();
        caught(
            &scene.send(2, 1, 0, refusal(false)),
            "its beginning is not durable",
        );
        scene.sync(2).unwrap();
        scene.send(2, 1, 0, refusal(false)).unwrap();
    }

    #[test]
    fn a_snapshot_is_acknowledged_when_the_log_begins_behind_it() {
        let mut scene = scene();
        scene.restored(3, &state(2, 3)).unwrap();
        caught(&scene.send(3, 1, 2, acknowledge(3)), "up to 2");
        let mut reset = section();
        reset.reset = Some(EntryId::new(2, 3));
        scene.durable(3, reset);
        scene.send(3, 1, 2, acknowledge(3)).unwrap();
    }

    #[test]
    fn claims_of_a_leader_are_runs_of_terms() {
        let mut claims = Claims::default();
        for (term, index) in [(1, 5), (1, 6), (2, 7), (2, 9), (2, 8), (1, 4)] {
            claims.note(EntryId::new(term, index));
        }
        let known: Vec<_> = (3..=10)
            .map(|at| claims.term_at(Index(at)).map(|t| t.0))
            .collect();
        let (one, two) = (Some(1), Some(2));
        assert_eq!(known, [None, one, one, one, two, two, two, None]);
    }
}
