//! Histories written by hand, good and bad, and random ones of a real register, checked against all orders.

use std::time::Duration;

use super::*;

/// Reads `op key … @ invoke..return`, one operation per line: `put a 1 @ 0..10`, `get a -> 1 @
/// 5..7`, `cas a 1 2 -> true @ 1..2`; a return of `?` is an unknown outcome, of `!` a failure; `-`
/// is an absent value.
fn history(script: &str) -> Vec<Operation> {
    script
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .enumerate()
        .map(parse_line)
        .collect()
}

fn parse_line((number, line): (usize, &str)) -> Operation {
    let (what, when) = line.split_once(" @ ").expect("a time");
    let (invoke, returned) = when.split_once("..").expect("a span");
    let words: Vec<&str> = what.split(' ').filter(|word| *word != "->").collect();
    let value = |at: usize| {
        words
            .get(at)
            .filter(|word| **word != "-")
            .map(|word| (*word).to_owned())
    };
    let action = match words[0] {
        "get" => Action::Get { result: value(2) },
        "put" => Action::Put {
            value: value(2).expect("a value"),
        },
        "delete" => Action::Delete,
        "cas" => Action::Cas {
            expected: value(2),
            value: value(3).expect("a value"),
            swapped: words.get(4) == Some(&"true"),
        },
        other => panic!("no operation {other}"),
    };
    let outcome = match returned {
        "?" => Outcome::Unknown,
        "!" => Outcome::Fail,
        _ => Outcome::Ok,
    };
    let invoke_ns = invoke.parse().expect("a number");
    Operation {
        client: number as u64,
        key: words[1].to_owned(),
        action,
        outcome,
        invoke_ns,
        return_ns: returned.parse().unwrap_or(invoke_ns),
    }
}

#[track_caller]
fn good(script: &str) {
    let report = check(&history(script), &Limits::default());
    assert!(report.is_linearizable(), "{report}");
}

#[track_caller]
fn bad(script: &str) -> Report {
    let report = check(&history(script), &Limits::default());
    assert!(report.has_violation(), "{report}");
    report
}

#[test]
fn one_after_another() {
    good(
        "get a -> - @ 0..1\n put a 1 @ 2..3\n get a -> 1 @ 4..5\n delete a @ 6..7\n get a -> - @ 8..9",
    );
    bad("put a 1 @ 0..1\n get a -> - @ 2..3");
    bad("put a 1 @ 0..1\n put a 2 @ 2..3\n get a -> 1 @ 4..5");
    bad("get a -> 7 @ 0..1");
}

#[test]
fn a_lost_acknowledged_write_is_found() {
    let report = bad(
        "put a 1 @ 0..1\n put b 1 @ 0..1\n get a -> 1 @ 2..3\n get a -> - @ 4..5\n get b -> 1 @ 4..5",
    );
    assert!(matches!(report.keys["a"], Verdict::Violation(_)));
    assert_eq!(report.keys["b"], Verdict::Linearizable);
    let Verdict::Violation(stuck) = &report.keys["a"] else {
        unreachable!()
    };
    assert_eq!(stuck.value.as_deref(), Some("1"));
    assert_eq!(stuck.blocked.action, Action::Get { result: None });
    assert!(
        report.to_string().contains("the value is then 1"),
        "{report}"
    );
}

#[test]
fn concurrent_operations_take_any_order() {
    good("put a 1 @ 0..10\n put a 2 @ 0..10\n get a -> 1 @ 11..12");
    good("put a 1 @ 0..10\n put a 2 @ 0..10\n get a -> 2 @ 11..12");
    good("put a 1 @ 0..10\n get a -> 1 @ 1..2\n get a -> 1 @ 3..4");
    // A new value once read stays read.
    bad("put a 0 @ 0..1\n put a 1 @ 2..10\n get a -> 1 @ 3..4\n get a -> 0 @ 5..6");
}

#[test]
fn operations_that_touch_are_concurrent() {
    good("put a 1 @ 0..5\n get a -> - @ 5..6");
}

#[test]
fn unknown_outcomes_take_effect_late_or_never() {
    good("put a 1 @ 0..?\n get a -> - @ 10..11\n get a -> 1 @ 20..21");
    good("put a 1 @ 0..?\n get a -> - @ 10..11");
    good("put a 0 @ 0..1\n delete a @ 2..?\n get a -> 0 @ 10..11\n get a -> - @ 12..13");
    // But not twice, and not before they were asked for.
    bad(
        "put a 1 @ 0..?\n put a 2 @ 1..2\n get a -> 1 @ 3..4\n get a -> 2 @ 5..6\n get a -> 1 @ 7..8",
    );
    bad("get a -> 1 @ 0..1\n put a 1 @ 2..?");
}

#[test]
fn failed_operations_have_no_effect() {
    good("put a 1 @ 0..!\n get a -> - @ 2..3");
    bad("put a 1 @ 0..!\n get a -> 1 @ 2..3");
}

#[test]
fn compare_and_swap() {
    good(
        "cas a - 1 -> true @ 0..1\n cas a - 2 -> false @ 2..3\n cas a 1 2 -> true @ 4..5\n get a -> 2 @ 6..7",
    );
    bad("put a 1 @ 0..1\n cas a 1 2 -> true @ 2..3\n cas a 1 3 -> true @ 4..5");
    bad("put a 1 @ 0..1\n cas a 1 2 -> false @ 2..3");
    good("put a 1 @ 0..1\n cas a 1 2 @ 2..?\n get a -> 2 @ 4..5");
    good("put a 1 @ 0..1\n cas a 5 2 @ 2..?\n get a -> 1 @ 4..5");
    bad("put a 1 @ 0..1\n cas a 5 2 @ 2..?\n get a -> 2 @ 4..5");
}

#[test]
fn an_unseen_write_of_unknown_outcome_explains_a_refused_swap() {
    good("put a 1 @ 0..1\n put a 9 @ 2..?\n cas a 1 2 -> false @ 4..5");
}

#[test]
fn limits_give_no_verdict() {
    // Sixteen concurrent writes and a read of a value nobody wrote: all orders are tried.
    let mut script: String = (0..16)
        .map(|i| format!("put a {i} @ 0..100\n get a -> {i} @ 0..100\n"))
        .collect();
    script.push_str("get a -> x @ 200..201");
    let few = Limits {
        configurations: 1000,
        ..Limits::default()
    };
    let report = check(&history(&script), &few);
    assert_eq!(
        report.keys["a"],
        Verdict::Unknown {
            limit: "the limit of configurations"
        }
    );
    assert!(!report.is_linearizable() && !report.has_violation());
    let short = Limits {
        time: Duration::ZERO,
        ..Limits::default()
    };
    let report = check(&history(&script), &short);
    assert_eq!(
        report.keys["a"],
        Verdict::Unknown {
            limit: "the limit of time"
        }
    );
}

#[test]
fn a_long_history_is_cheap() {
    let mut script = String::new();
    for i in 0..20_000 {
        let at = i * 10;
        script.push_str(&format!(
            "put a {i} @ {at}..{}\n get a -> {i} @ {}..{}\n",
            at + 6,
            at + 4,
            at + 9
        ));
    }
    good(&script);
}

/// A generator with a fixed seed (Steele's SplitMix64), so that a failure is found again.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

/// Random operations with random results: linearizable or not, as it falls.
fn random_history(random: &mut Random) -> Vec<Operation> {
    let value = |random: &mut Random| match random.below(4) {
        0 => None,
        n => Some(n.to_string()),
    };
    let operations = 1 + random.below(6);
    (0..operations)
        .map(|client| {
            let invoke_ns = random.below(12);
            let some = |random: &mut Random| (1 + random.below(3)).to_string();
            let action = match random.below(5) {
                0 | 1 => Action::Get {
                    result: value(random),
                },
                2 => Action::Put {
                    value: some(random),
                },
                3 => Action::Delete,
                _ => Action::Cas {
                    expected: value(random),
                    value: some(random),
                    swapped: random.below(2) == 0,
                },
            };
            let outcome = match random.below(6) {
                0 => Outcome::Unknown,
                1 => Outcome::Fail,
                _ => Outcome::Ok,
            };
            let return_ns = invoke_ns + random.below(6);
            Operation {
                client,
                key: "a".to_owned(),
                action,
                outcome,
                invoke_ns,
                return_ns,
            }
        })
        .collect()
}

/// The definition, word for word: tries every order of every choice of unknown operations.
fn has_an_order(left: &[&Operation], value: Option<&str>) -> bool {
    if left.iter().all(|o| o.outcome == Outcome::Unknown) {
        return true;
    }
    (0..left.len()).any(|i| {
        let next = left[i];
        let too_late = left
            .iter()
            .any(|o| o.outcome == Outcome::Ok && o.return_ns < next.invoke_ns);
        let mut rest = left.to_vec();
        rest.remove(i);
        let certain = next.outcome == Outcome::Ok;
        !too_late
            && match &next.action {
                Action::Get { result } => {
                    (!certain || result.as_deref() == value) && has_an_order(&rest, value)
                }
                Action::Put { value } => has_an_order(&rest, Some(value)),
                Action::Delete => has_an_order(&rest, None),
                Action::Cas {
                    expected,
                    value: new,
                    swapped,
                } => {
                    let matches = expected.as_deref() == value;
                    let after = if matches { Some(new.as_str()) } else { value };
                    (!certain || *swapped == matches) && has_an_order(&rest, after)
                }
            }
    })
}

#[test]
fn agrees_with_trying_every_order() {
    let mut random = Random(2026);
    let mut verdicts = [0; 2];
    for _ in 0..20_000 {
        let history = random_history(&mut random);
        let certain: Vec<&Operation> = history
            .iter()
            .filter(|o| o.outcome != Outcome::Fail)
            .collect();
        let expected = has_an_order(&certain, None);
        let report = check(&history, &Limits::default());
        assert_eq!(report.is_linearizable(), expected, "{history:#?}\n{report}");
        verdicts[usize::from(expected)] += 1;
    }
    assert!(
        verdicts.iter().all(|n| *n > 1000),
        "both verdicts must be well covered: {verdicts:?}"
    );
}

#[test]
fn the_file_format_is_read_strictly() {
    let line = r#"{"client":3,"op":"get","key":"k","value":null,"expected":null,"result":"v","outcome":"ok","invoke_ns":1,"return_ns":2}"#;
    let read = parse(&format!("{line}\n\n")).expect("well formed");
    assert_eq!(
        read,
        [Operation {
            client: 3,
            key: "k".to_owned(),
            action: Action::Get {
                result: Some("v".to_owned())
            },
            outcome: Outcome::Ok,
            invoke_ns: 1,
            return_ns: 2,
        }]
    );
    let cas = r#"{"client":1,"op":"cas","key":"k","value":"w","expected":null,"result":"true","outcome":"ok","invoke_ns":1,"return_ns":2}"#;
    let expected = Action::Cas {
        expected: None,
        value: "w".to_owned(),
        swapped: true,
    };
    assert_eq!(parse(cas).expect("well formed")[0].action, expected);

    for (from, to, problem) in [
        ("\"ok\"", "\"okay\"", "line 1: unknown outcome"),
        ("\"get\"", "\"scan\"", "line 1: unknown op"),
        (
            "\"result\":\"v\",",
            "",
            "line 1: neither text nor null in `result`",
        ),
        (
            "\"return_ns\":2",
            "\"return_ns\":0",
            "line 1: returns at 0 before",
        ),
        (
            "\"client\":3",
            "\"client\":-3",
            "line 1: no whole number in `client`",
        ),
        ("}", "", "line 1: "),
    ] {
        let error = parse(&line.replace(from, to))
            .expect_err("malformed")
            .to_string();
        assert!(error.starts_with(problem), "{error}");
    }
}
