//! What the clients of a world asked and heard, and whether one single copy of the data could have
//! answered like that.
//!
//! How an operation counts follows from its [`Outcome`]; one that never returned counts as
//! [`Outcome::Unknown`]. Reads without an answer say nothing and are left out. What a client does again
//! because it does not know what became of it is still one operation here, from the first invocation to
//! the last answer: the subject promises that it has its effect once.
//!
//! Each object of each group, with all that it was split into, is checked on its own, by the
//! specification of the world's [`Subject`]:
//!
//! * [`LINEARIZABILITY`]: there is an order of the operations that respects real time and explains all
//!   answers.
//! * [`STALE_READS`]: there is one with a place for each read of a replica's own copy, too. So no copy
//!   shows what nobody had proposed by then, and none goes back.
//!
//! Invariants: an operation returns once, not before it is invoked. Equal histories give equal results,
//! on every machine: nothing here reads a clock.

mod text;

use std::collections::BTreeMap;

use bytes::Bytes;
use polyraft_core::ReplicaId;
use polyraft_multiraft::{GroupId, StoreId};

use crate::linearizability::{Call, Lagging, Limits, Place, Specification, Stuck, Verdict, check};
use crate::observe::Violation;
use crate::subject::{Operation, Request, Subject};
use crate::time::Nanos;

pub use text::Register;

/// The name of the property of what clients heard.
pub const LINEARIZABILITY: &str = "linearizability";
/// The name of the property of what replicas show.
pub const STALE_READS: &str = "stale-reads";

/// What a client knows of the effect of its operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It took effect before the return, with this answer.
    Ok(Bytes),
    /// It certainly had no effect and will have none.
    Failed,
    /// It may have taken effect, may do so later, or never.
    Unknown,
}

/// An operation that has been invoked: see [`History::invoke`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(usize);

/// One operation of one client.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Who asked.
    pub client: u64,
    /// Which group, or family of groups that were split from one.
    pub group: GroupId,
    /// What.
    pub operation: Operation,
    /// When.
    pub invoked: Nanos,
    /// When an outcome was known, and which; none as long as none is.
    pub returned: Option<(Nanos, Outcome)>,
}

/// A copy of a group's data that never goes back: a replica, from one start of its store to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LocalCopy {
    /// Where.
    pub store: StoreId,
    /// Grows with each start of the store.
    pub incarnation: u64,
    /// Of which group, among those of the family.
    pub group: GroupId,
    /// Which replica: another one if it was removed and came back.
    pub replica: ReplicaId,
}

/// A read of a replica's own copy.
#[derive(Clone, Debug)]
struct Local {
    copy: LocalCopy,
    group: GroupId,
    query: Operation,
    output: Bytes,
    at: Nanos,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct History {
    entries: Vec<Entry>,
    locals: Vec<Local>,
}

/// How much there was to check, and how much could be decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HistoryStats {
    /// Operations invoked.
    pub operations: usize,
    /// Those of them that were answered.
    pub answered: usize,
    /// Those that certainly had no effect.
    pub failed: usize,
    /// Those of which nobody knows.
    pub unknown: usize,
    /// Reads of replicas' own copies.
    pub local_reads: usize,
    /// Objects with at least one operation to check.
    pub objects: usize,
    /// Objects on which the search reached a limit before it knew: nothing is known about them.
    pub undecided: usize,
    /// Objects of which only what clients heard could be decided, not what replicas showed.
    pub locally_undecided: usize,
}

/// One object of one group.
type Object = (GroupId, Bytes);

/// What is asked of one object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Asked {
    input: Bytes,
    /// It is a query, and so changes nothing.
    reads: bool,
}

/// All that is to be explained about one object.
#[derive(Debug, Default)]
struct Steps {
    calls: Vec<Call<Asked, Bytes>>,
    /// Who asked each call.
    clients: Vec<u64>,
    lagging: Vec<Lagging<Asked, Bytes>>,
    /// Whose copy each lagging read is of.
    copies: Vec<LocalCopy>,
}

/// A subject as the specification of one object.
struct OneObject<'a>(&'a dyn Subject);

impl Specification for OneObject<'_> {
    type State = Bytes;
    type Input = Asked;
    type Output = Bytes;

    fn initial(&self) -> Bytes {
        Bytes::new()
    }

    fn step(&self, state: &Bytes, asked: &Asked, output: Option<&Bytes>) -> Option<Bytes> {
        self.0.step(state, &asked.input, output)
    }

    fn is_read(&self, asked: &Asked, _output: &Bytes) -> bool {
        asked.reads
    }
}

impl History {
    /// Nobody has asked anything yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A client asks, now.
    pub fn invoke(
        &mut self,
        now: Nanos,
        client: u64,
        group: GroupId,
        operation: Operation,
    ) -> Ticket {
        self.entries.push(Entry {
            client,
            group,
            operation,
            invoked: now,
            returned: None,
        });
        Ticket(self.entries.len() - 1)
    }

    /// A client hears what became of its operation, now.
    ///
    /// # Panics
    /// The ticket is not of this history, the operation has returned before, or time went back.
    pub fn returned(&mut self, now: Nanos, ticket: Ticket, outcome: Outcome) {
        let entry = &mut self.entries[ticket.0];
        assert!(entry.returned.is_none(), "{ticket:?} returns twice");
        assert!(
            entry.invoked <= now,
            "{ticket:?} returns before it is invoked"
        );
        entry.returned = Some((now, outcome));
    }

    /// Somebody reads from a replica's own copy, now. The operation is a query, as clients ask the
    /// leader.
    pub fn local_read(
        &mut self,
        now: Nanos,
        copy: LocalCopy,
        group: GroupId,
        query: Operation,
        output: Bytes,
    ) {
        let at = now;
        self.locals.push(Local {
            copy,
            group,
            query,
            output,
            at,
        });
    }

    /// All operations of clients, in the order of their invocations.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Checks every object.
    ///
    /// # Errors
    /// The first object that cannot be explained, in the order of groups and objects, as text: where the
    /// search got stuck, and the operations around; the time is that of the answer that has no place.
    pub fn check(
        &self,
        subject: &dyn Subject,
        limits: &Limits<'_>,
    ) -> Result<HistoryStats, Violation> {
        let mut stats = self.count();
        for (object, steps) in self.steps(subject) {
            stats.objects += 1;
            steps.screen(subject, &object)?;
            let of_clients = check(&OneObject(subject), &steps.calls, &[], limits);
            stats.undecided += steps.judge(subject, &object, LINEARIZABILITY, of_clients)?;
            if !steps.lagging.is_empty() {
                let all = check(&OneObject(subject), &steps.calls, &steps.lagging, limits);
                stats.locally_undecided += steps.judge(subject, &object, STALE_READS, all)?;
            }
        }
        Ok(stats)
    }

    fn count(&self) -> HistoryStats {
        let mut stats = HistoryStats {
            operations: self.entries.len(),
            local_reads: self.locals.len(),
            ..HistoryStats::default()
        };
        for entry in &self.entries {
            match &entry.returned {
                Some((_, Outcome::Ok(_))) => stats.answered += 1,
                Some((_, Outcome::Failed)) => stats.failed += 1,
                Some((_, Outcome::Unknown)) | None => stats.unknown += 1,
            }
        }
        stats
    }

    /// What is to be explained about each object, in the order of the invocations.
    fn steps(&self, subject: &dyn Subject) -> BTreeMap<Object, Steps> {
        let mut objects: BTreeMap<Object, Steps> = BTreeMap::new();
        for entry in &self.entries {
            for (object, call) in calls(subject, entry) {
                let steps = objects.entry((entry.group, object)).or_default();
                steps.calls.push(call);
                steps.clients.push(entry.client);
            }
        }
        let mut readers: BTreeMap<(GroupId, LocalCopy), u64> = BTreeMap::new();
        for local in &self.locals {
            let next = readers.len() as u64;
            let reader = *readers.entry((local.group, local.copy)).or_insert(next);
            for part in subject.parts(&local.query, &local.output) {
                let steps = objects.entry((local.group, part.object)).or_default();
                let (input, reads) = (part.input, true);
                steps.copies.push(local.copy);
                steps.lagging.push(Lagging {
                    reader,
                    input: Asked { input, reads },
                    output: part.output,
                    at: local.at,
                });
            }
        }
        objects
    }
}

/// What a client's operation was, on each object.
fn calls(subject: &dyn Subject, entry: &Entry) -> Vec<(Bytes, Call<Asked, Bytes>)> {
    let Entry {
        operation, invoked, ..
    } = entry;
    let call = |input, output, returned| Call {
        input: Asked {
            input,
            reads: matches!(operation.request, Request::Query(_)),
        },
        output,
        invoked: *invoked,
        returned,
    };
    match (&entry.returned, &operation.request) {
        (Some((at, Outcome::Ok(output))), _) => subject
            .parts(operation, output)
            .into_iter()
            .map(|part| (part.object, call(part.input, Some(part.output), *at)))
            .collect(),
        (Some((_, Outcome::Failed)), _) | (_, Request::Query(_)) => Vec::new(),
        (Some((_, Outcome::Unknown)) | None, Request::Command { data, .. }) => {
            let unanswered = call(data.clone(), None, Nanos::MAX);
            vec![(operation.object.clone(), unanswered)]
        }
    }
}

impl Steps {
    /// What the subject can tell without any search.
    fn screen(&self, subject: &dyn Subject, object: &Object) -> Result<(), Violation> {
        let mut seen = self
            .calls
            .iter()
            .map(|call| (&call.input.input, call.output.as_ref()));
        subject.screen(&mut seen).map_err(|why| Violation {
            checker: LINEARIZABILITY,
            at: self.last_answer(),
            what: self.tell_screened(subject, object, &why),
        })
    }

    /// A verdict as an error, or as 1 if there is none.
    fn judge(
        &self,
        subject: &dyn Subject,
        object: &Object,
        checker: &'static str,
        verdict: Verdict<Bytes>,
    ) -> Result<usize, Violation> {
        match verdict {
            Verdict::Linearizable => Ok(0),
            Verdict::Unknown(_) => Ok(1),
            Verdict::Violation(stuck) => Err(Violation {
                checker,
                at: self.answered(&stuck),
                what: self.tell_stuck(subject, object, &stuck),
            }),
        }
    }

    fn last_answer(&self) -> Nanos {
        let answered = self.calls.iter().filter(|call| call.output.is_some());
        answered.map(|call| call.returned).max().unwrap_or(0)
    }

    /// When the answer came that has no place.
    fn answered(&self, stuck: &Stuck<Bytes>) -> Nanos {
        match stuck.blocked {
            Place::Call(at) => self.calls[at].returned,
            Place::Lagging(at) => self.lagging[at].at,
        }
    }
}

#[cfg(test)]
mod tests;
