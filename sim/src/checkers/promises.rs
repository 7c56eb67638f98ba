//! What a replica promises is durable before the promise leaves its store (thesis sections 3.4, 3.5, 3.8).
//!
//! * A granted vote: term and vote.
//! * An accepted append or snapshot: the term, and the log up to the index acknowledged, as the leader has it.
//! * Every other answer to a vote or an append: the term.
//! * Whatever a leader says: its own vote for itself.
//!
//! Promises may leave late: the write that they wait for may be one with writes of a later term, or with the
//! replica's tombstone. So a durable term above that of the message says that the promise was made before and
//! is void for the message's term; and dead replicas are looked at as they were last.

use polyraft_core::{EntryId, Index, Message, Payload, ReplicaId, Term};
use polyraft_multiraft::{GroupId, GroupMap, StoreId};

use super::Property;
use super::books::{Books, Log, entries, is_of_leader, raft, say};
use crate::observe::Observation;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Promises {
    /// Of the newest leader of each group: what it has said that its log contains.
    leaders: GroupMap<Claims>,
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
        let Observation::Sent { from, message, .. } = *seen else {
            return Ok(());
        };
        match raft(message) {
            Some(said) => self.sent(from, message.group, said, books),
            None => Ok(()),
        }
    }
}
