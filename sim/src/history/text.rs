//! A history as text: for people, one operation per line, and for `lincheck`, one JSON object per line.

use std::fmt::Write as _;

use bytes::Bytes;
use polyraft_multiraft::GroupId;

use super::{Asked, History, Object, Steps};
use crate::linearizability::{Call, Place, Stuck};
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

impl Steps {
    /// Tells of an object that the subject refused without a search.
    pub(super) fn tell_screened(
        &self,
        subject: &dyn Subject,
        object: &Object,
        why: &str,
    ) -> String {
        let mut text = format!(
            "object {} cannot be explained: {why}. Its operations begin with\n",
            name(subject, object)
        );
        for call in (0..self.calls.len()).take(2 * AROUND) {
            let _ = writeln!(text, "    {}", self.line(subject, Place::Call(call)));
        }
        text
    }

    /// Tells where a search got stuck. Writing to a `String` cannot fail.
    pub(super) fn tell_stuck(
        &self,
        subject: &dyn Subject,
        object: &Object,
        stuck: &Stuck<Bytes>,
    ) -> String {
        let mut text = format!(
            "object {} cannot be explained: the longest order has {} of {} operations and ends with\n",
            name(subject, object),
            stuck.placed,
            self.calls.len() + self.lagging.len()
        );
        for place in &stuck.order {
            let _ = writeln!(text, "    {}", self.line(subject, *place));
        }
        let state = subject.show(&stuck.state);
        let _ = writeln!(
            text,
            "  the state is then {state}, and this has no place any more:"
        );
        let _ = writeln!(text, "    {}", self.line(subject, stuck.blocked));
        let _ = writeln!(
            text,
            "  around it, in the order of invocations and local reads:"
        );
        for place in self.around(stuck.blocked) {
            let mark = if place == stuck.blocked { ">" } else { " " };
            let _ = writeln!(text, "  {mark} {}", self.line(subject, place));
        }
        text
    }

    /// What happened around an operation, and this one, in the order of time.
    fn around(&self, blocked: Place) -> Vec<Place> {
        let calls = self.calls.iter().enumerate();
        let reads = self.lagging.iter().enumerate();
        let mut all: Vec<(Nanos, Place)> = calls
            .map(|(at, call)| (call.invoked, Place::Call(at)))
            .chain(reads.map(|(at, read)| (read.at, Place::Lagging(at))))
            .collect();
        all.sort_by_key(|(at, _)| *at);
        let middle = all.iter().position(|(_, place)| *place == blocked);
        let middle = middle.unwrap_or(0);
        let upto = all.len().min(middle + AROUND + 1);
        let shown = &all[middle.saturating_sub(AROUND)..upto];
        shown.iter().map(|(_, place)| *place).collect()
    }

    /// `client 3: put 7 -> ok [1.000250, 1.000900] s`
    fn line(&self, subject: &dyn Subject, place: Place) -> String {
        let show = |bytes: &Bytes| subject.show(bytes);
        match place {
            Place::Call(at) => {
                let (client, call) = (self.clients[at], &self.calls[at]);
                let (input, from) = (show(&call.input.input), seconds(call.invoked));
                match &call.output {
                    Some(output) => {
                        let (output, upto) = (show(output), seconds(call.returned));
                        format!("client {client}: {input} -> {output} [{from}, {upto}] s")
                    }
                    None => format!("client {client}: {input} -> unknown [{from}, ...] s"),
                }
            }
            Place::Lagging(at) => {
                let (copy, read) = (self.copies[at], &self.lagging[at]);
                let (input, output) = (show(&read.input.input), show(&read.output));
                let (replica, at) = (copy.replica, seconds(read.at));
                let store = format!("store {}.{}", copy.store, copy.incarnation);
                let group = copy.group;
                format!("group {group}, replica {replica} on {store}: {input} -> {output} [{at}] s")
            }
        }
    }
}

impl History {
    /// What clients heard, as `lincheck` reads it. `describe` tells what an input with its output (none:
    /// unknown) is on a register; objects with an operation that is nothing on a register are left out,
    /// and their number is returned beside the text.
    #[must_use]
    pub fn json_lines(
        &self,
        subject: &dyn Subject,
        describe: &dyn Fn(&Bytes, Option<&Bytes>) -> Option<Register>,
    ) -> (String, usize) {
        let (mut text, mut left_out) = (String::new(), 0);
        for (object, steps) in self.steps(subject) {
            let line = |(call, client): (&Call<Asked, Bytes>, &u64)| {
                let register = describe(&call.input.input, call.output.as_ref())?;
                Some(json_line(*client, &name(subject, &object), &register, call))
            };
            let calls = steps.calls.iter().zip(&steps.clients);
            match calls.map(line).collect::<Option<String>>() {
                Some(lines) => text.push_str(&lines),
                None => left_out += 1,
            }
        }
        (text, left_out)
    }
}

/// An object with its group, so that it is one of a kind.
fn name(subject: &dyn Subject, (GroupId(group), object): &Object) -> String {
    format!("{group}/{}", subject.show(object))
}

/// Virtual time, to the microsecond.
fn seconds(at: Nanos) -> String {
    format!("{}.{:06}", at / SECOND, at % SECOND / MICROSECOND)
}

fn json_line(client: u64, key: &str, register: &Register, call: &Call<Asked, Bytes>) -> String {
    let known = call.output.is_some();
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
        true => ("ok", result, call.returned),
        false => ("unknown", none(), call.invoked),
    };
    let key = quoted(key);
    format!(
        "{{\"client\":{client},\"op\":\"{op}\",\"key\":{key},\"value\":{value},\
         \"expected\":{expected},\"result\":{result},\"outcome\":\"{outcome}\",\
         \"invoke_ns\":{},\"return_ns\":{returned}}}\n",
        call.invoked
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
