//! A history as text: for people, one operation per line, and for `lincheck`, one JSON object per line.

use std::fmt::Write as _;

use bytes::Bytes;
use polyraft_multiraft::GroupId;

use super::{History, Object, Step};
use crate::linearizability::{Call, Stuck};
use crate::subject::Subject;
use crate::time::{MICROSECOND, Nanos, SECOND};

/// Operations shown before and after the one that has no place.
const AROUND: usize = 12;

/// An operation on a register whose values are text, as `lincheck` reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Register {
    /// A read.
    Get {
        /// What was seen, nothing if the key is absent; of no meaning without an answer.
        result: Option<String>,
    },
    /// A write.
    Put {
        /// Of what.
        value: String,
    },
    /// Makes the key absent.
    Delete,
    /// A write if the value is as expected.
    Cas {
        /// What must be there; nothing if the key must be absent.
        expected: Option<String>,
        /// What is written then.
        value: String,
        /// Whether it was written; of no meaning without an answer.
        swapped: bool,
    },
}

impl History {
    /// Tells of an object that the subject refused without a search.
    pub(super) fn tell_screened(
        &self,
        subject: &dyn Subject,
        object: &Object,
        why: &str,
        steps: &[Step],
    ) -> String {
        let mut text = head(subject, object);
        let _ = writeln!(text, "{why}. Its operations begin with");
        for step in steps.iter().take(2 * AROUND) {
            let _ = writeln!(text, "    {}", self.line(subject, step));
        }
        text
    }

    /// Tells where a search got stuck. Writing to a `String` cannot fail.
    pub(super) fn tell_stuck(
        &self,
        subject: &dyn Subject,
        object: &Object,
        stuck: &Stuck<Bytes>,
        steps: &[Step],
    ) -> String {
        let mut text = head(subject, object);
        let _ = writeln!(
            text,
            "the longest order has {} of {} operations and ends with",
            stuck.placed,
            steps.len()
        );
        for place in &stuck.order {
            let _ = writeln!(text, "    {}", self.line(subject, &steps[*place]));
        }
        let state = subject.show(&stuck.state);
        let _ = writeln!(
            text,
            "  the state is then {state}, and this has no place any more:"
        );
        let _ = writeln!(text, "    {}", self.line(subject, &steps[stuck.blocked]));
        let _ = writeln!(text, "  in the order of invocations, around it:");
        let from = stuck.blocked.saturating_sub(AROUND);
        let upto = steps.len().min(stuck.blocked + AROUND + 1);
        for (place, step) in (from..).zip(&steps[from..upto]) {
            let mark = if place == stuck.blocked { ">" } else { " " };
            let _ = writeln!(text, "  {mark} {}", self.line(subject, step));
        }
        text
    }

    /// `client 3: put 7 -> ok [1.000250, 1.000900] s`
    fn line(&self, subject: &dyn Subject, step: &Step) -> String {
        let Call {
            input,
            output,
            invoked,
            returned,
        } = &step.call;
        let client = self.entries[step.entry].client;
        let (input, invoked) = (subject.show(&input.input), seconds(*invoked));
        match output {
            Some(output) => format!(
                "client {client}: {input} -> {} [{invoked}, {}] s",
                subject.show(output),
                seconds(*returned)
            ),
            None => format!("client {client}: {input} -> unknown [{invoked}, ...] s"),
        }
    }

    /// The history as `lincheck` reads it. `describe` tells what an input with its output (none: unknown)
    /// is on a register; objects with an operation that is nothing on a register are left out, and their
    /// number is returned beside the text.
    #[must_use]
    pub fn json_lines(
        &self,
        subject: &dyn Subject,
        describe: &dyn Fn(&Bytes, Option<&Bytes>) -> Option<Register>,
    ) -> (String, usize) {
        let (mut text, mut left_out) = (String::new(), 0);
        for (object, steps) in self.steps(subject) {
            let line = |step: &Step| {
                let register = describe(&step.call.input.input, step.call.output.as_ref())?;
                let client = self.entries[step.entry].client;
                Some(json_line(client, &key(subject, &object), &register, step))
            };
            match steps.iter().map(line).collect::<Option<String>>() {
                Some(lines) => text.push_str(&lines),
                None => left_out += 1,
            }
        }
        (text, left_out)
    }
}

fn head(subject: &dyn Subject, object: &Object) -> String {
    format!("object {} is not linearizable: ", key(subject, object))
}

/// An object with its group, so that it is one of a kind.
fn key(subject: &dyn Subject, (GroupId(group), object): &Object) -> String {
    format!("{group}/{}", subject.show(object))
}

/// Virtual time, to the microsecond.
fn seconds(at: Nanos) -> String {
    format!("{}.{:06}", at / SECOND, at % SECOND / MICROSECOND)
}

fn json_line(client: u64, key: &str, register: &Register, step: &Step) -> String {
    let known = step.call.output.is_some();
    let none = || "null".to_owned();
    let optional = |text: &Option<String>| text.as_deref().map_or_else(none, quoted);
    let (op, value, expected, result) = match register {
        Register::Get { result } => ("get", none(), none(), optional(result)),
        Register::Put { value } => ("put", quoted(value), none(), none()),
        Register::Delete => ("delete", none(), none(), none()),
        Register::Cas {
            expected,
            value,
            swapped,
        } => (
            "cas",
            quoted(value),
            optional(expected),
            quoted(if *swapped { "true" } else { "false" }),
        ),
    };
    let (outcome, result, returned) = match known {
        true => ("ok", result, step.call.returned),
        false => ("unknown", none(), step.call.invoked),
    };
    let key = quoted(key);
    format!(
        "{{\"client\":{client},\"op\":\"{op}\",\"key\":{key},\"value\":{value},\
         \"expected\":{expected},\"result\":{result},\"outcome\":\"{outcome}\",\
         \"invoke_ns\":{},\"return_ns\":{returned}}}\n",
        step.call.invoked
    )
}

/// A text as JSON.
fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c < ' ' => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}
