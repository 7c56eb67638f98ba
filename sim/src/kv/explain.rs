//! What can be told about a key without looking for an order, and a key as a register whose values are
//! text, for `lincheck`.

use std::collections::BTreeSet;

use bytes::Bytes;
use polyraft_store::sessions::SessionReply;

use super::codec::{Change, Command, Outcome, Query, Reply, take_answer};
use crate::history::Register;

/// Refuses a value that is seen, but neither was written nor is reached by counting up from one that was.
/// It counts whatever was asked for, at any time, answered or not: an order is not looked for.
pub(super) fn screen(
    steps: &mut dyn Iterator<Item = (&Bytes, Option<&Bytes>)>,
) -> Result<(), String> {
    let mut written = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let mut added = 0u64;
    for (input, output) in steps {
        match Command::of(input).map(|command| command.change) {
            Some(Change::Put(value) | Change::Cas { value, .. }) => {
                written.insert(value);
            }
            Some(Change::Add(n)) => {
                written.insert(0);
                added = added.saturating_add(n);
            }
            Some(Change::Delete) | None => {}
        }
        seen.extend(output.into_iter().flat_map(values));
    }
    // Sums start again from 0 beyond the highest number, so the next one below may be the highest of all.
    let reached = |value: u64| {
        let below = written.range(..=value).next_back();
        let below = below.or_else(|| written.last());
        below.is_some_and(|from| value.wrapping_sub(*from) <= added)
    };
    match seen.into_iter().find(|value| !reached(*value)) {
        Some(value) => Err(format!(
            "nothing that was asked for makes the value {value:x}"
        )),
        None => Ok(()),
    }
}

/// The values of the key that an answer tells.
fn values(output: &Bytes) -> Vec<u64> {
    if let Some(values) = take_answer(output) {
        return values.into_iter().flatten().collect();
    }
    let Some(SessionReply::Applied(reply)) = SessionReply::decode(output) else {
        return Vec::new();
    };
    match Reply::decode(&reply).map(|reply| reply.outcome) {
        Some(Outcome::Added(value)) => vec![value],
        Some(Outcome::Cas { seen, .. }) => seen.into_iter().collect(),
        _ => Vec::new(),
    }
}

/// See [`super::Kv::register`].
pub(super) fn register(input: &Bytes, output: Option<&Bytes>) -> Option<Register> {
    let text = |value: u64| (value > 0).then(|| value.to_string());
    if let Some(Query::Get(_)) = Query::decode(input) {
        let [value] = take_answer(output?)?.try_into().ok()?;
        let result = match value {
            Some(value) => Some(text(value)?),
            None => None,
        };
        return Some(Register::Get { result });
    }
    let change = Command::of(input)?.change;
    let outcome = match output.map(SessionReply::decode) {
        None => None,
        Some(Some(SessionReply::Applied(reply))) => Some(Reply::decode(&reply)?.outcome),
        Some(_) => return None,
    };
    match (change, outcome) {
        (Change::Put(value), None | Some(Outcome::Put)) => Some(Register::Put {
            value: text(value)?,
        }),
        (Change::Delete, None | Some(Outcome::Deleted)) => Some(Register::Delete),
        (Change::Cas { expected, value }, None | Some(Outcome::Cas { .. })) => {
            let expected = match expected {
                Some(expected) => Some(text(expected)?),
                None => None,
            };
            let swapped = matches!(outcome, Some(Outcome::Cas { swapped: true, .. }));
            let value = text(value)?;
            Some(Register::Cas {
                expected,
                value,
                swapped,
            })
        }
        (Change::Add(n), Some(Outcome::Added(after))) => Some(Register::Cas {
            expected: text(after.wrapping_sub(n)),
            value: text(after)?,
            swapped: true,
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use polyraft_store::sessions::Envelope;

    use super::super::Kv;
    use super::super::codec::answer;
    use super::*;
    use crate::subject::Subject;

    fn asked(change: Change) -> Bytes {
        let command = Command { key: 1, change }.encode();
        let once = None;
        Envelope { once, command }.encode()
    }

    fn told(outcome: Outcome) -> Bytes {
        let reply = Reply { index: 9, outcome }.encode();
        SessionReply::Applied(reply).encode()
    }

    fn screened(steps: &[(Bytes, Option<Bytes>)]) -> Result<(), String> {
        screen(&mut steps.iter().map(|(input, output)| (input, output.as_ref())))
    }

    #[test]
    fn only_values_that_can_be_pass() {
        let get = Query::Get(1).encode();
        let sees = |value| (get.clone(), Some(answer([value])));
        let put = (asked(Change::Put(100)), None);
        let add = (asked(Change::Add(5)), None);
        assert_eq!(screened(&[sees(None)]), Ok(()));
        assert_eq!(screened(&[sees(Some(100)), put.clone()]), Ok(()));
        assert!(screened(&[sees(Some(101)), put.clone()]).is_err());
        assert!(screened(&[sees(Some(5)), put.clone()]).is_err());
        let both = [put, add.clone(), sees(Some(105)), sees(Some(5))];
        assert_eq!(screened(&both), Ok(()));
        assert!(screened(&[add.clone(), sees(Some(6))]).is_err());
        let high = (asked(Change::Put(u64::MAX)), None);
        assert_eq!(screened(&[high, add, sees(Some(4))]), Ok(()));
        let (swapped, seen) = (false, Some(7));
        let cas = asked(Change::Cas {
            expected: None,
            value: 8,
        });
        let saw = (cas, Some(told(Outcome::Cas { swapped, seen })));
        assert!(screened(&[saw]).is_err());
        assert!(screened(&[(asked(Change::Add(2)), Some(told(Outcome::Added(3))))]).is_err());
    }

    #[test]
    fn people_can_read_it() {
        let shows = |bytes: &[u8]| Kv.show(&Bytes::copy_from_slice(bytes));
        assert_eq!(shows(b""), "nothing");
        assert_eq!(shows(b"g00000001/k0"), "g00000001/k0");
        let state = Kv.step(&Bytes::new(), &asked(Change::Put(0xab)), None);
        assert_eq!(shows(&state.expect("a write is possible")), "ab");
        assert_eq!(shows(&Query::Get(1).encode()), "Get(1)");
        assert_eq!(shows(&answer([None])), "[None]");
    }

    #[test]
    fn what_a_register_can_do_is_translated() {
        let cas = |expected: Option<&str>, value: &str, swapped| {
            let (expected, value) = (expected.map(str::to_owned), value.to_owned());
            Some(Register::Cas {
                expected,
                value,
                swapped,
            })
        };
        let put = Register::Put {
            value: "7".to_owned(),
        };
        assert_eq!(register(&asked(Change::Put(7)), None), Some(put));
        let deleted = told(Outcome::Deleted);
        let delete = register(&asked(Change::Delete), Some(&deleted));
        assert_eq!(delete, Some(Register::Delete));
        let swap = asked(Change::Cas {
            expected: Some(6),
            value: 7,
        });
        let seen = Some(6);
        let swapped = told(Outcome::Cas {
            swapped: true,
            seen,
        });
        assert_eq!(register(&swap, Some(&swapped)), cas(Some("6"), "7", true));
        let add = asked(Change::Add(2));
        let added = |value| told(Outcome::Added(value));
        assert_eq!(register(&add, Some(&added(9))), cas(Some("7"), "9", true));
        assert_eq!(register(&add, Some(&added(2))), cas(None, "2", true));
        assert_eq!(register(&add, None), None);
        assert_eq!(register(&asked(Change::Put(0)), None), None);
        let get = Query::Get(1).encode();
        let result = Some("7".to_owned());
        let sees = answer([Some(7)]);
        assert_eq!(register(&get, Some(&sees)), Some(Register::Get { result }));
        let expired = SessionReply::Expired { index: 3 }.encode();
        assert_eq!(register(&asked(Change::Delete), Some(&expired)), None);
    }
}
