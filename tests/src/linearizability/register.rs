//! The specification of one key: a register whose values are small numbers.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use polyraft_sim::linearizability::{self, Call, Limit, Place, Specification};

use super::{Action, Limits, Operation, Outcome, Stuck, Verdict};

/// A value of the key as a small number; 0 is "absent".
type ValueId = u32;
const ABSENT: ValueId = 0;

struct Register;

/// What is asked of the register.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Input {
    Read,
    Write(ValueId),
    Cas { expected: ValueId, value: ValueId },
}

/// What it answers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Output {
    Read(ValueId),
    Written,
    Swapped(bool),
}

impl Specification for Register {
    type State = ValueId;
    type Input = Input;
    type Output = Output;

    fn initial(&self) -> ValueId {
        ABSENT
    }

    fn step(&self, at: &ValueId, input: &Input, output: Option<&Output>) -> Option<ValueId> {
        let (after, answer) = match *input {
            Input::Read => (*at, Output::Read(*at)),
            Input::Write(value) => (value, Output::Written),
            Input::Cas { expected, value } if expected == *at => (value, Output::Swapped(true)),
            Input::Cas { .. } => (*at, Output::Swapped(false)),
        };
        output
            .is_none_or(|output| *output == answer)
            .then_some(after)
    }

    fn is_read(&self, _: &Input, output: &Output) -> bool {
        matches!(output, Output::Read(_) | Output::Swapped(false))
    }
}

/// Checks the operations of one key.
pub(super) fn check_key(operations: &[&Operation], limits: &Limits) -> Verdict {
    let relevant = relevant(operations);
    let (calls, values) = calls(&relevant);
    let started = Instant::now();
    let limits = linearizability::Limits {
        configurations: limits.configurations,
        steps: u64::MAX,
        give_up: Some(&|| started.elapsed() > limits.time),
    };
    match linearizability::check(&Register, &calls, &[], &limits) {
        linearizability::Verdict::Linearizable => Verdict::Linearizable,
        linearizability::Verdict::Violation(stuck) => {
            let operation = |place: &Place| match place {
                Place::Call(at) => relevant[*at].clone(),
                Place::Lagging(_) => unreachable!("there are no lagging reads here"),
            };
            Verdict::Violation(Stuck {
                order: stuck.order.iter().map(operation).collect(),
                value: values[stuck.state as usize].clone(),
                blocked: operation(&stuck.blocked),
            })
        }
        linearizability::Verdict::Unknown(limit) => Verdict::Unknown {
            limit: match limit {
                Limit::Configurations => "the limit of configurations",
                Limit::Steps => "the limit of steps",
                Limit::GivenUp => "the limit of time",
            },
        },
    }
}

/// Leaves out what cannot matter: failed operations, reads without an answer, and writes of unknown
/// outcome whose value nobody saw. The latter could still explain one result: a compare-and-swap that
/// found another value than expected. So they stay if there is such a one.
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
    operations.iter().copied().filter(|o| matters(o)).collect()
}

/// The operations as calls, and every distinct value at its number.
fn calls(operations: &[&Operation]) -> (Vec<Call<Input, Output>>, Vec<Option<String>>) {
    let mut values = vec![None];
    let mut ids: HashMap<String, ValueId> = HashMap::new();
    let mut id = |value: &str| {
        *ids.entry(value.to_owned()).or_insert_with(|| {
            values.push(Some(value.to_owned()));
            ValueId::try_from(values.len() - 1).expect("fewer than 2^32 values in memory")
        })
    };
    let mut call = |operation: &Operation| {
        let (input, output) = match &operation.action {
            Action::Get { result } => {
                let seen = result.as_deref().map_or(ABSENT, &mut id);
                (Input::Read, Output::Read(seen))
            }
            Action::Put { value } => (Input::Write(id(value)), Output::Written),
            Action::Delete => (Input::Write(ABSENT), Output::Written),
            Action::Cas {
                expected,
                value,
                swapped,
            } => {
                let expected = expected.as_deref().map_or(ABSENT, &mut id);
                let value = id(value);
                (Input::Cas { expected, value }, Output::Swapped(*swapped))
            }
        };
        Call {
            input,
            output: (operation.outcome == Outcome::Ok).then_some(output),
            invoked: operation.invoke_ns,
            returned: operation.return_ns,
        }
    };
    let calls = operations.iter().map(|operation| call(operation)).collect();
    (calls, values)
}
