//! The search for one key.
//!
//! Events (calls and returns) lie in one doubly linked list in the order of time. From its head the search
//! takes the first call that the register allows, lifts the call and its return out of the list and begins
//! at the head again; a return at the head means that its operation had to take effect by now and did
//! not, so the last choice is undone. An operation of unknown outcome has a call only: nothing forces it.
//! The search succeeds when every return has left the list.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use super::{Action, Limits, Operation, Outcome, Stuck, Verdict};

/// A value of the key as a small number; 0 is "absent".
type ValueId = u32;
const ABSENT: ValueId = 0;

/// What an operation does to the register, with values as numbers.
#[derive(Clone, Copy)]
enum Step {
    Read(ValueId),
    Write(ValueId),
    /// `None` for the result of an unknown outcome: both are possible.
    Cas {
        expected: ValueId,
        value: ValueId,
        swapped: Option<bool>,
    },
}

impl Step {
    /// The value after this step at `value`, or `None` if its result could not have been seen then.
    fn apply(self, at: ValueId) -> Option<ValueId> {
        match self {
            Self::Read(seen) => (seen == at).then_some(at),
            Self::Write(value) => Some(value),
            Self::Cas {
                expected,
                value,
                swapped,
            } => {
                let matches = expected == at;
                let possible = swapped.is_none_or(|swapped| swapped == matches);
                possible.then_some(if matches { value } else { at })
            }
        }
    }
}

/// Checks the operations of one key.
pub(super) fn check_key(operations: &[&Operation], limits: &Limits) -> Verdict {
    let relevant = relevant(operations);
    Search::new(&relevant).run(limits)
}

/// Leaves out what cannot matter: failed operations, reads without an answer, and writes of unknown outcome
/// whose value nobody saw. The latter could still explain one result: a compare-and-swap that found
/// another value than expected. So they stay if there is such a one.
fn relevant<'a>(operations: &[&'a Operation]) -> Vec<&'a Operation> {
    let mut seen: HashSet<Option<&str>> = HashSet::new();
    let mut refused_swap = false;
    for operation in operations.iter().filter(|o| o.outcome != Outcome::Fail) {
        match &operation.action {
            Action::Get { result } if operation.outcome == Outcome::Ok => {
                seen.insert(result.as_deref());
            }
            Action::Cas {
                expected, swapped, ..
            } => {
                seen.insert(expected.as_deref());
                refused_swap |= operation.outcome == Outcome::Ok && !swapped;
            }
            _ => {}
        }
    }
    let matters = |operation: &Operation| match (&operation.action, operation.outcome) {
        (_, Outcome::Ok) => true,
        (_, Outcome::Fail) | (Action::Get { .. }, Outcome::Unknown) => false,
        (Action::Put { value } | Action::Cas { value, .. }, Outcome::Unknown) => {
            refused_swap || seen.contains(&Some(value.as_str()))
        }
        (Action::Delete, Outcome::Unknown) => refused_swap || seen.contains(&None),
    };
    let mut relevant: Vec<&Operation> = operations.iter().copied().filter(|o| matters(o)).collect();
    // Certain operations first: then the set of those that took effect is mostly a run of ones.
    relevant.sort_by_key(|o| (o.outcome == Outcome::Unknown, o.invoke_ns, o.return_ns));
    relevant
}

#[derive(Clone, Copy)]
struct Event {
    operation: usize,
    /// The event of the return, if this is the call of an operation that has one; `None` for a return.
    returns: Option<usize>,
    is_call: bool,
    previous: usize,
    next: usize,
}

/// Index of the list's head; events follow from 1.
const HEAD: usize = 0;

struct Search<'a> {
    operations: &'a [&'a Operation],
    steps: Vec<Step>,
    values: Vec<Option<String>>,
    events: Vec<Event>,
    /// Operations that took effect.
    done: Bits,
    /// Returns still in the list.
    returns_left: usize,
    /// Choices made: the event of the call, and the value before it.
    chosen: Vec<(usize, ValueId)>,
    visited: HashSet<(Bits, ValueId)>,
    longest: Option<Stuck>,
    longest_len: usize,
}

impl<'a> Search<'a> {
    fn new(operations: &'a [&'a Operation]) -> Self {
        let mut values = vec![None];
        let steps = steps(operations, &mut values);
        Self {
            operations,
            steps,
            values,
            events: events(operations),
            done: Bits::default(),
            returns_left: operations
                .iter()
                .filter(|o| o.outcome == Outcome::Ok)
                .count(),
            chosen: Vec::new(),
            visited: HashSet::new(),
            longest: None,
            longest_len: 0,
        }
    }

    fn run(mut self, limits: &Limits) -> Verdict {
        let started = Instant::now();
        let mut value = ABSENT;
        let mut at = self.events[HEAD].next;
        let mut turns = 0u64;
        while self.returns_left > 0 {
            turns += 1;
            if turns.is_multiple_of(1024) && started.elapsed() > limits.time {
                return Verdict::Unknown {
                    limit: "the limit of time",
                };
            }
            if self.visited.len() > limits.configurations {
                return Verdict::Unknown {
                    limit: "the limit of configurations",
                };
            }
            let event = self.events[at];
            if event.is_call {
                match self.choose(at, value) {
                    Some(after) => {
                        value = after;
                        at = self.events[HEAD].next;
                    }
                    None => at = event.next,
                }
            } else {
                self.remember_longest(event.operation, value);
                let Some((call, before)) = self.chosen.pop() else {
                    let stuck = self
                        .longest
                        .expect("the search got stuck at least at this return");
                    return Verdict::Violation(stuck);
                };
                self.put_back(call);
                value = before;
                at = self.events[call].next;
            }
        }
        Verdict::Linearizable
    }

    /// Lets the operation of `call` take effect, if its result fits and the outcome is new.
    fn choose(&mut self, call: usize, value: ValueId) -> Option<ValueId> {
        let operation = self.events[call].operation;
        let after = self.steps[operation].apply(value)?;
        self.done.set(operation, true);
        if !self.visited.insert((self.done.clone(), after)) {
            self.done.set(operation, false);
            return None;
        }
        self.chosen.push((call, value));
        self.unlink(call);
        if let Some(returns) = self.events[call].returns {
            self.unlink(returns);
            self.returns_left -= 1;
        }
        Some(after)
    }

    /// Undoes the last choice. Links are restored in the opposite order of their removal, so each finds
    /// its neighbours as it left them (Knuth's dancing links).
    fn put_back(&mut self, call: usize) {
        let event = self.events[call];
        if let Some(returns) = event.returns {
            self.relink(returns);
            self.returns_left += 1;
        }
        self.relink(call);
        self.done.set(event.operation, false);
    }

    fn unlink(&mut self, at: usize) {
        let Event { previous, next, .. } = self.events[at];
        self.events[previous].next = next;
        self.events[next].previous = previous;
    }

    fn relink(&mut self, at: usize) {
        let Event { previous, next, .. } = self.events[at];
        self.events[previous].next = at;
        self.events[next].previous = at;
    }

    fn remember_longest(&mut self, blocked: usize, value: ValueId) {
        if self.longest.is_some() && self.chosen.len() <= self.longest_len {
            return;
        }
        self.longest_len = self.chosen.len();
        let from = self.chosen.len().saturating_sub(10);
        let order = self.chosen[from..]
            .iter()
            .map(|(call, _)| self.events[*call].operation);
        self.longest = Some(Stuck {
            order: order
                .map(|operation| self.operations[operation].clone())
                .collect(),
            value: self.values[value as usize].clone(),
            blocked: self.operations[blocked].clone(),
        });
    }
}

/// The operations as steps, with every distinct value numbered in `values`.
fn steps(operations: &[&Operation], values: &mut Vec<Option<String>>) -> Vec<Step> {
    let mut ids: HashMap<String, ValueId> = HashMap::new();
    let mut id = |value: &str| {
        *ids.entry(value.to_owned()).or_insert_with(|| {
            values.push(Some(value.to_owned()));
            ValueId::try_from(values.len() - 1).expect("fewer than 2^32 values in memory")
        })
    };
    let mut step = |operation: &Operation| match &operation.action {
        Action::Get { result } => Step::Read(result.as_deref().map_or(ABSENT, &mut id)),
        Action::Put { value } => Step::Write(id(value)),
        Action::Delete => Step::Write(ABSENT),
        Action::Cas {
            expected,
            value,
            swapped,
        } => Step::Cas {
            expected: expected.as_deref().map_or(ABSENT, &mut id),
            value: id(value),
            swapped: (operation.outcome == Outcome::Ok).then_some(*swapped),
        },
    };
    operations.iter().map(|operation| step(operation)).collect()
}

/// Calls and returns in the order of time as a ring through [`HEAD`]. At one instant calls come first:
/// operations that touch count as concurrent, so a coarse clock raises no false alarm.
fn events(operations: &[&Operation]) -> Vec<Event> {
    let mut moments: Vec<(u64, bool, usize)> = Vec::with_capacity(operations.len() * 2);
    for (number, operation) in operations.iter().enumerate() {
        moments.push((operation.invoke_ns, false, number));
        if operation.outcome == Outcome::Ok {
            moments.push((operation.return_ns, true, number));
        }
    }
    moments.sort_unstable();
    let ring = moments.len() + 1;
    let head = Event {
        operation: usize::MAX,
        returns: None,
        is_call: false,
        previous: ring - 1,
        next: 1 % ring,
    };
    let mut events = vec![head];
    let mut calls = vec![HEAD; operations.len()];
    for (at, (_, is_return, operation)) in moments.into_iter().enumerate().map(|(i, m)| (i + 1, m))
    {
        if is_return {
            events[calls[operation]].returns = Some(at);
        } else {
            calls[operation] = at;
        }
        let event = Event {
            operation,
            returns: None,
            is_call: !is_return,
            previous: at - 1,
            next: (at + 1) % ring,
        };
        events.push(event);
    }
    events
}

/// A set of operations. The full words at its front are only counted, and empty words at its end are not
/// kept, so that a set which is nearly a prefix takes a few bytes however long the history is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Bits {
    full_words: usize,
    words: Vec<u64>,
}

impl Bits {
    fn set(&mut self, at: usize, on: bool) {
        let word = at / 64;
        let mask = 1u64 << (at % 64);
        if word < self.full_words {
            if on {
                return;
            }
            // A word inside the counted front loses a bit: write the front out from there on.
            self.words
                .splice(0..0, vec![u64::MAX; self.full_words - word]);
            self.full_words = word;
        }
        let place = word - self.full_words;
        if place >= self.words.len() {
            self.words.resize(place + 1, 0);
        }
        if on {
            self.words[place] |= mask;
        } else {
            self.words[place] &= !mask;
        }
        self.normalize();
    }

    /// One set has one representation: equality and hash depend on it.
    fn normalize(&mut self) {
        let full = self
            .words
            .iter()
            .take_while(|word| **word == u64::MAX)
            .count();
        if full > 0 {
            self.words.drain(..full);
            self.full_words += full;
        }
        while self.words.last() == Some(&0) {
            self.words.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Bits;

    #[test]
    fn one_set_has_one_representation() {
        let mut forward = Bits::default();
        (0..200).for_each(|i| forward.set(i, true));
        let mut backward = Bits::default();
        (0..200).rev().for_each(|i| backward.set(i, true));
        assert_eq!(forward, backward);
        assert_eq!(forward.words.len(), 1, "three full words are only counted");
        forward.set(10, false);
        forward.set(10, true);
        assert_eq!(forward, backward);
        (0..200).for_each(|i| forward.set(i, false));
        assert_eq!(forward, Bits::default());
    }
}
