//! What the clients of a world asked and heard, and whether one single copy of the data could have
//! answered like that.
//!
//! How an operation counts follows from its [`Outcome`]; one that never returned counts as
//! [`Outcome::Unknown`]. Reads without an answer say nothing and are left out.
//!
//! Each object of each group is checked on its own, by the specification of the world's [`Subject`]. What
//! a client does again because it does not know what became of it is still one operation here, from the
//! first invocation to the last answer: the subject promises that it has its effect once.
//!
//! Invariants: an operation returns once, not before it is invoked. Equal histories give equal results,
//! on every machine: nothing here reads a clock.

mod text;

use std::collections::BTreeMap;

use bytes::Bytes;
use polyraft_multiraft::GroupId;

use crate::linearizability::{Call, Limits, Specification, Verdict, check};
use crate::subject::{Operation, Part, Request, Subject};
use crate::time::Nanos;

pub use text::Register;

/// The name of the property.
pub const CHECKER: &str = "linearizability";

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
    /// Which group.
    pub group: GroupId,
    /// What.
    pub operation: Operation,
    /// When.
    pub invoked: Nanos,
    /// When an outcome was known, and which; none as long as none is.
    pub returned: Option<(Nanos, Outcome)>,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct History {
    entries: Vec<Entry>,
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
    /// Objects with at least one operation to check.
    pub objects: usize,
    /// Objects on which the search reached a limit before it knew: nothing is known about them.
    pub undecided: usize,
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

/// A step on one object, with the operation it is a part of.
#[derive(Clone, Debug)]
struct Step {
    entry: usize,
    call: Call<Asked, Bytes>,
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

    /// All operations, in the order of their invocations.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Checks every object.
    ///
    /// # Errors
    /// The first object that no single copy could have been, in the order of groups and objects, as text:
    /// where the search got stuck, and the operations around.
    pub fn check(
        &self,
        subject: &dyn Subject,
        limits: &Limits<'_>,
    ) -> Result<HistoryStats, String> {
        let mut stats = self.count();
        for (object, steps) in self.steps(subject) {
            stats.objects += 1;
            if let Err(why) = screen(subject, &steps) {
                return Err(self.tell_screened(subject, &object, &why, &steps));
            }
            let calls: Vec<Call<Asked, Bytes>> = steps.iter().map(|s| s.call.clone()).collect();
            match check(&OneObject(subject), &calls, limits) {
                Verdict::Linearizable => {}
                Verdict::Unknown(_) => stats.undecided += 1,
                Verdict::Violation(stuck) => {
                    return Err(self.tell_stuck(subject, &object, &stuck, &steps));
                }
            }
        }
        Ok(stats)
    }

    fn count(&self) -> HistoryStats {
        let mut stats = HistoryStats {
            operations: self.entries.len(),
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

    /// The steps on each object, in the order of their invocations.
    fn steps(&self, subject: &dyn Subject) -> BTreeMap<Object, Vec<Step>> {
        let mut steps: BTreeMap<Object, Vec<Step>> = BTreeMap::new();
        for (number, entry) in self.entries.iter().enumerate() {
            let mut add = |object: Bytes, input, output, returned| {
                let reads = matches!(entry.operation.request, Request::Query(_));
                let call = Call {
                    input: Asked { input, reads },
                    output,
                    invoked: entry.invoked,
                    returned,
                };
                let step = Step {
                    entry: number,
                    call,
                };
                steps.entry((entry.group, object)).or_default().push(step);
            };
            match (&entry.returned, &entry.operation.request) {
                (Some((at, Outcome::Ok(output))), _) => {
                    let parts = subject.parts(&entry.operation, output);
                    for Part {
                        object,
                        input,
                        output,
                    } in parts
                    {
                        add(object, input, Some(output), *at);
                    }
                }
                (Some((_, Outcome::Failed)), _) | (_, Request::Query(_)) => {}
                (Some((_, Outcome::Unknown)) | None, Request::Command { data, .. }) => {
                    let object = entry.operation.object.clone();
                    add(object, data.clone(), None, Nanos::MAX);
                }
            }
        }
        steps
    }
}

/// What the subject can tell without any search.
fn screen(subject: &dyn Subject, steps: &[Step]) -> Result<(), String> {
    let mut seen = steps.iter().map(|step| {
        let Call { input, output, .. } = &step.call;
        (&input.input, output.as_ref())
    });
    subject.screen(&mut seen)
}
