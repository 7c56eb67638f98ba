//! Histories of counters whose commands are text, good and bad.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::disk::SimDisk;
use crate::rng::Rng;
use crate::subject::{Part, Served};
use crate::time::MILLISECOND;

/// `put 7`, `add 2`, `cas 7 8` (`-`: absent) and `get` on one counter, `scan` on all of `a` and `b`.
struct Counters;

impl Counters {
    /// The state after a command, and its answer.
    fn apply(state: &str, command: &str) -> (String, String) {
        let words: Vec<&str> = command.split(' ').collect();
        let shown = if state.is_empty() { "-" } else { state };
        match words.as_slice() {
            ["get"] => (state.to_owned(), shown.to_owned()),
            ["put", value] => ((*value).to_owned(), "ok".to_owned()),
            ["add", n] => {
                let before = state.parse::<u64>().unwrap_or(0);
                let after = before + n.parse::<u64>().expect("a number");
                (after.to_string(), after.to_string())
            }
            ["cas", old, new] if *old == shown => ((*new).to_owned(), "true".to_owned()),
            ["cas", ..] => (state.to_owned(), "false".to_owned()),
            other => panic!("no command {other:?}"),
        }
    }
}

fn text(bytes: &Bytes) -> &str {
    std::str::from_utf8(bytes).expect("text")
}

impl Subject for Counters {
    fn open(&self, _: StoreId, _: &SimDisk) -> Arc<dyn Served> {
        unreachable!("no store runs here")
    }

    fn operation(&self, rng: &mut Rng, _: GroupId, client: u64, number: u64) -> Operation {
        let object = format!("k{}", rng.below(20));
        let value = (client << 32) + (number << 8);
        match rng.below(10) {
            0..5 => query(&object, "get"),
            5..7 => command(&object, &format!("put {value}")),
            7..9 => command(&object, &format!("add {}", rng.between(1, 3))),
            _ => command(&object, &format!("cas - {value}")),
        }
    }

    fn parts(&self, operation: &Operation, output: &Bytes) -> Vec<Part> {
        let (input, object) = match &operation.request {
            Request::Command { data, .. } => (data, &operation.object),
            Request::Query(query) => (query, &operation.object),
        };
        let part = |object: &Bytes, input: &Bytes, output: Bytes| Part {
            object: object.clone(),
            input: input.clone(),
            output,
        };
        if text(input) != "scan" {
            return vec![part(object, input, output.clone())];
        }
        let values = text(output).split(' ').map(str::to_owned);
        let get = Bytes::from_static(b"get");
        ["a", "b"]
            .into_iter()
            .zip(values)
            .map(|(object, value)| part(&object.into(), &get, value.into()))
            .collect()
    }

    fn step(&self, state: &Bytes, input: &Bytes, output: Option<&Bytes>) -> Option<Bytes> {
        let (after, right) = Self::apply(text(state), text(input));
        output
            .is_none_or(|output| text(output) == right)
            .then(|| after.into())
    }

    fn screen(
        &self,
        steps: &mut dyn Iterator<Item = (&Bytes, Option<&Bytes>)>,
    ) -> Result<(), String> {
        for (input, output) in steps {
            if text(input) == "get" && output.is_some_and(|output| text(output) == "nonsense") {
                return Err("nobody wrote nonsense".to_owned());
            }
        }
        Ok(())
    }

    fn show(&self, bytes: &Bytes) -> String {
        text(bytes).to_owned()
    }
}

fn command(object: &str, what: &str) -> Operation {
    let (data, repeatable) = (what.to_owned().into(), false);
    Operation {
        object: object.to_owned().into(),
        request: Request::Command { data, repeatable },
    }
}

fn query(object: &str, what: &str) -> Operation {
    Operation {
        object: object.to_owned().into(),
        request: Request::Query(what.to_owned().into()),
    }
}

/// Operations one after the other, ten milliseconds each.
#[derive(Default)]
struct Script {
    history: History,
    now: Nanos,
}

impl Script {
    fn run(&mut self, operation: Operation, outcome: Outcome) -> &mut Self {
        self.run_in(1, operation, outcome)
    }

    fn run_in(&mut self, group: u64, operation: Operation, outcome: Outcome) -> &mut Self {
        let ticket = self.history.invoke(self.now, 3, GroupId(group), operation);
        self.now += 10 * MILLISECOND;
        self.history.returned(self.now, ticket, outcome);
        self.now += MILLISECOND;
        self
    }

    fn ok(&mut self, operation: Operation, output: &'static str) -> &mut Self {
        self.run(operation, Outcome::Ok(output.into()))
    }

    fn copy(&mut self, incarnation: u64, query: Operation, output: &'static str) -> &mut Self {
        let store = StoreId(4);
        let copy = LocalCopy {
            group: GroupId(1),
            store,
            incarnation,
            replica: ReplicaId(2),
        };
        let history = &mut self.history;
        history.local_read(self.now, copy, GroupId(1), query, output.into());
        self.now += MILLISECOND;
        self
    }

    fn check(&self) -> Result<HistoryStats, Violation> {
        self.history.check(&Counters, &Limits::default())
    }
}

#[test]
fn outcomes_count_as_they_say() {
    let mut script = Script::default();
    script
        .ok(command("a", "put 1"), "ok")
        .run(command("a", "put 2"), Outcome::Failed)
        .run(command("a", "put 3"), Outcome::Unknown)
        .run(query("a", "get"), Outcome::Unknown)
        .ok(query("a", "get"), "1")
        .ok(query("a", "get"), "3");
    let open = command("b", "put 9");
    script.history.invoke(script.now, 4, GroupId(1), open);
    script.ok(query("b", "get"), "-").ok(query("b", "get"), "9");
    let stats = HistoryStats {
        operations: 9,
        answered: 5,
        failed: 1,
        unknown: 3,
        objects: 2,
        ..HistoryStats::default()
    };
    assert_eq!(script.check(), Ok(stats));
    let failed_has_effect = script.ok(query("a", "get"), "2");
    assert_eq!(
        failed_has_effect.check().expect_err("wrong").checker,
        LINEARIZABILITY
    );
}

#[test]
fn objects_and_groups_are_independent() {
    let mut script = Script::default();
    let ok = || Outcome::Ok("ok".into());
    script.run_in(1, command("a", "put 1"), ok());
    script.run_in(2, command("a", "put 2"), ok());
    script.run_in(1, query("a", "get"), Outcome::Ok("1".into()));
    script.run_in(1, query("a", "scan"), Outcome::Ok("1 -".into()));
    assert_eq!(script.check().expect("right").objects, 3);
    script.run_in(2, query("a", "get"), Outcome::Ok("1".into()));
    let what = script.check().expect_err("of the other group").what;
    assert!(what.starts_with("object 2/a cannot"), "{what}");
}

#[test]
fn a_scan_is_a_read_of_each_object() {
    let mut script = Script::default();
    script
        .ok(command("a", "put 1"), "ok")
        .ok(command("b", "add 2"), "2")
        .ok(query("all", "scan"), "1 2");
    assert_eq!(script.check().expect("right").objects, 2);
    let what = script.ok(query("all", "scan"), "1 -").check();
    let what = what.expect_err("b was written").what;
    assert!(what.starts_with("object 1/b cannot"), "{what}");
}

#[test]
fn a_violation_shows_where_it_got_stuck() {
    let mut script = Script::default();
    script
        .ok(command("a", "put 1"), "ok")
        .ok(command("b", "put 1"), "ok")
        .run(command("a", "add 5"), Outcome::Unknown)
        .ok(query("a", "get"), "7");
    let violation = script.check().expect_err("1 and 5 is not 7");
    let expected = "object 1/a cannot be explained: \
        the longest order has 2 of 3 operations and ends with\n    \
        client 3: put 1 -> ok [0.000000, 0.010000] s\n    \
        client 3: add 5 -> unknown [0.022000, ...] s\n  \
        the state is then 6, and this has no place any more:\n    \
        client 3: get -> 7 [0.033000, 0.043000] s\n  \
        around it, in the order of invocations and local reads:\n    \
        client 3: put 1 -> ok [0.000000, 0.010000] s\n    \
        client 3: add 5 -> unknown [0.022000, ...] s\n  \
        > client 3: get -> 7 [0.033000, 0.043000] s\n";
    assert_eq!(violation.what, expected);
    assert_eq!(violation.at, 43 * MILLISECOND);
}

#[test]
fn what_the_subject_can_tell_is_told_without_a_search() {
    let mut script = Script::default();
    let violation = script.ok(query("a", "get"), "nonsense").check();
    let violation = violation.expect_err("nobody wrote it");
    assert_eq!(violation.at, 10 * MILLISECOND);
    assert!(violation.what.contains("nobody wrote nonsense"));
}

#[test]
fn a_copy_never_goes_back_and_is_never_ahead() {
    let mut script = Script::default();
    script
        .ok(command("a", "put 1"), "ok")
        .ok(command("a", "put 2"), "ok")
        .copy(1, query("a", "get"), "-")
        .copy(1, query("a", "get"), "2")
        .copy(2, query("a", "get"), "1");
    assert_eq!(script.check().expect("right").local_reads, 3);
    script.copy(1, query("a", "get"), "1");
    let violation = script.check().expect_err("the copy goes back");
    assert_eq!(violation.checker, STALE_READS);
    let line = "> group 1, replica 2 on store 4.1: get -> 1 [0.025000] s";
    assert!(violation.what.contains(line), "{}", violation.what);

    let mut script = Script::default();
    script
        .copy(1, query("all", "scan"), "- 8")
        .ok(command("b", "put 8"), "ok");
    assert_eq!(
        script.check().expect_err("not yet written").checker,
        STALE_READS
    );
}

#[test]
fn limits_leave_objects_undecided() {
    let mut script = Script::default();
    script
        .ok(command("a", "put 1"), "ok")
        .ok(query("a", "get"), "1")
        .ok(command("b", "put 1"), "ok")
        .ok(query("b", "get"), "1")
        .copy(1, query("b", "get"), "1");
    let limits = Limits {
        steps: 0,
        ..Limits::default()
    };
    let stats = script.history.check(&Counters, &limits).expect("nothing");
    assert_eq!((stats.undecided, stats.locally_undecided), (2, 1));
}

#[test]
#[should_panic(expected = "returns twice")]
fn nothing_returns_twice() {
    let mut history = History::new();
    let ticket = history.invoke(1, 1, GroupId(1), query("a", "get"));
    history.returned(2, ticket, Outcome::Unknown);
    history.returned(3, ticket, Outcome::Unknown);
}

#[test]
fn objects_that_are_registers_become_lines() {
    let mut script = Script::default();
    script
        .ok(command("a", "put \"1\\\n"), "ok")
        .run(command("a", "cas 7 8"), Outcome::Unknown)
        .ok(query("a", "get"), "-")
        .ok(command("b", "add 1"), "1");
    let describe = |input: &Bytes, output: Option<&Bytes>| {
        let input: Vec<&str> = text(input).split(' ').collect();
        match input.as_slice() {
            ["put", value] => Some(Register::Put {
                value: (*value).to_owned(),
            }),
            ["cas", old, new] => Some(Register::Cas {
                expected: Some((*old).to_owned()),
                value: (*new).to_owned(),
                swapped: output.is_some_and(|output| output == "true"),
            }),
            ["get"] => Some(Register::Get {
                result: output.map(text).filter(|v| *v != "-").map(str::to_owned),
            }),
            _ => None,
        }
    };
    let (lines, left_out) = script.history.json_lines(&Counters, &describe);
    assert_eq!(left_out, 1, "{lines}");
    let expected = [
        r#"{"client":3,"op":"put","key":"1/a","value":"\"1\\\u000a","expected":null,"result":null,"#,
        r#""outcome":"ok","invoke_ns":0,"return_ns":10000000}"#,
        "\n",
        r#"{"client":3,"op":"cas","key":"1/a","value":"8","expected":"7","result":null,"#,
        r#""outcome":"unknown","invoke_ns":11000000,"return_ns":11000000}"#,
        "\n",
        r#"{"client":3,"op":"get","key":"1/a","value":null,"expected":null,"result":null,"#,
        r#""outcome":"ok","invoke_ns":22000000,"return_ns":32000000}"#,
        "\n",
    ];
    assert_eq!(lines, expected.concat());
}

/// What a client is waiting for, and what will be heard.
type Open = (Ticket, Operation, Outcome);

/// Clients that ask one thing after the other, 1 to 20 ms each, of counters that are right; some answers
/// are lost, half of them with their operations.
fn long_history(clients: u64, each: u64) -> History {
    let mut rng = Rng::new(7);
    let mut history = History::new();
    let mut states: BTreeMap<Bytes, String> = BTreeMap::new();
    // Next: invoke, take effect, return.
    let mut due: BTreeMap<(Nanos, u64), u8> = (0..clients).map(|c| ((c, c), 0)).collect();
    let mut asked: BTreeMap<u64, (u64, Option<Open>)> = BTreeMap::new();
    while let Some(((now, client), phase)) = due.pop_first() {
        let (number, open) = asked.entry(client).or_default();
        match (phase, open.as_mut()) {
            (1, Some((_, operation, outcome))) => {
                let input = match &operation.request {
                    Request::Command { data, .. } => data,
                    Request::Query(query) => query,
                };
                let lost = rng.chance(10_000);
                if !lost || rng.percent(50) {
                    let state = states.entry(operation.object.clone()).or_default();
                    let (after, output) = Counters::apply(state, text(input));
                    *state = after;
                    *outcome = Outcome::Ok(output.into());
                }
                if lost {
                    *outcome = Outcome::Unknown;
                }
            }
            (2, Some((ticket, _, outcome))) => {
                history.returned(now, *ticket, outcome.clone());
                *number += 1;
                *open = None;
            }
            _ if *number < each => {
                let operation = Counters.operation(&mut rng, GroupId(1), client, *number);
                let ticket = history.invoke(now, client, GroupId(1), operation.clone());
                *open = Some((ticket, operation, Outcome::Unknown));
            }
            _ => continue,
        }
        let wait = rng.between(MILLISECOND, 10 * MILLISECOND);
        due.insert((now + wait, client), (phase + 1) % 3);
    }
    history
}

#[test]
fn a_long_history_is_decided() {
    let history = long_history(5, 200);
    let stats = history.check(&Counters, &Limits::default()).expect("right");
    assert_eq!((stats.operations, stats.undecided), (1000, 0));
    assert!(stats.unknown > 0, "{stats:?}");
}

/// The last read of an object that can be given the answer of an earlier one, so that the reads show one
/// value, another, and the first again: values never come back. None if there is no such read.
fn go_back(history: &mut History, object: &str) -> Option<()> {
    let reads: Vec<(usize, Nanos, Nanos, Bytes)> = history
        .entries
        .iter()
        .enumerate()
        .filter(|(_, entry)| entry.operation == query(object, "get"))
        .filter_map(|(at, entry)| match &entry.returned {
            Some((returned, Outcome::Ok(value))) => {
                Some((at, entry.invoked, *returned, value.clone()))
            }
            _ => None,
        })
        .collect();
    let (at, invoked, returned, _) = reads.last()?;
    let before = |limit: Nanos| reads.iter().rev().filter(move |r| r.2 < limit);
    let (_, between, _, seen) = before(*invoked).next()?;
    let (.., earlier) = before(*between).find(|read| read.3 != *seen)?;
    history.entries[*at].returned = Some((*returned, Outcome::Ok(earlier.clone())));
    Some(())
}

#[test]
fn a_read_that_goes_back_is_found_in_a_long_history() {
    let history = long_history(5, 400);
    for object in 0..20 {
        let mut wrong = history.clone();
        let object = format!("k{object}");
        go_back(&mut wrong, &object).expect("there are enough reads");
        let found = wrong.check(&Counters, &Limits::default());
        let violation = found.expect_err(&object);
        let begins = format!("object 1/{object} cannot");
        assert!(violation.what.starts_with(&begins), "{}", violation.what);
    }
}

/// `cargo test --release -p polyraft-sim -- --ignored --nocapture how_fast`
#[test]
#[ignore = "prints a figure"]
fn how_fast_histories_are_checked() {
    for (clients, each) in [(5, 2_000), (5, 20_000), (20, 2_000)] {
        let history = long_history(clients, each);
        let begin = std::time::Instant::now();
        let stats = history.check(&Counters, &Limits::default()).expect("right");
        let took = begin.elapsed();
        #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
        let rate = stats.operations as f64 / took.as_secs_f64();
        println!("{clients} clients, {each} each: {rate:.0} operations/s; {stats:?}");
        let mut wrong = history;
        go_back(&mut wrong, "k7").expect("there are enough reads");
        let begin = std::time::Instant::now();
        let found = wrong.check(&Counters, &Limits::default());
        let found = found.map_err(|violation| violation.checker);
        println!(
            "  with a read that goes back: {:?}, {found:?}",
            begin.elapsed()
        );
    }
}
