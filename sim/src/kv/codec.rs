//! What goes through the log of the built-in subject, what comes back, and what it means.
//!
//! ```text
//! command: '!' | 'p' key u8, value u64 | 'd' key u8 | 'c' key u8, expected, value u64
//!              | 'a' key u8, n u64
//! reply:   index u64 | 'P' | 'D' | 'C' swapped u8, seen | 'A' value u64 | 'M' (malformed)
//!              | 'E' (the key is elsewhere)
//! query:   '?' | 'g' key u8 | 's'
//! answer:  '=' value, for 'g' | '#' | key u8, value, for each key of the range, for 's'
//! ```
//!
//! `expected`, `seen` and values are `0`, or `1` and a u64.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use polyraft_store::sessions::Envelope;

use super::KEYS;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Put(u64),
    Delete,
    Cas { expected: Option<u64>, value: u64 },
    Add(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Command {
    pub(super) key: u8,
    pub(super) change: Change,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Put,
    Deleted,
    Cas { swapped: bool, seen: Option<u64> },
    Added(u64),
    Malformed,
    Elsewhere,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    /// Of the command that had the effect.
    pub(super) index: u64,
    pub(super) outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Query {
    Get(u8),
    Scan,
}

impl Change {
    /// What it makes of a value, and what is said of it: the whole specification.
    pub(super) const fn of(self, before: Option<u64>) -> (Option<u64>, Outcome) {
        match self {
            Self::Put(value) => (Some(value), Outcome::Put),
            Self::Delete => (None, Outcome::Deleted),
            Self::Cas { expected, value } => {
                let swapped = match (expected, before) {
                    (None, None) => true,
                    (Some(expected), Some(before)) => expected == before,
                    _ => false,
                };
                let seen = before;
                let after = if swapped { Some(value) } else { before };
                (after, Outcome::Cas { swapped, seen })
            }
            Self::Add(n) => {
                let before = match before {
                    Some(before) => before,
                    None => 0,
                };
                let after = before.wrapping_add(n);
                (Some(after), Outcome::Added(after))
            }
        }
    }
}

impl Command {
    pub(super) fn encode(self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(b'!');
        let tag = match self.change {
            Change::Put(_) => b'p',
            Change::Delete => b'd',
            Change::Cas { .. } => b'c',
            Change::Add(_) => b'a',
        };
        out.put_slice(&[tag, self.key]);
        match self.change {
            Change::Put(value) | Change::Add(value) => out.put_u64(value),
            Change::Delete => {}
            Change::Cas { expected, value } => {
                put_value(&mut out, expected);
                out.put_u64(value);
            }
        }
        out.freeze()
    }

    pub(super) fn decode(bytes: &Bytes) -> Option<Self> {
        let mut rest = bytes.clone();
        (rest.try_get_u8().ok()? == b'!').then_some(())?;
        let (tag, key) = (rest.try_get_u8().ok()?, rest.try_get_u8().ok()?);
        let change = match tag {
            b'p' => Change::Put(rest.try_get_u64().ok()?),
            b'd' => Change::Delete,
            b'c' => Change::Cas {
                expected: take_value(&mut rest)?,
                value: rest.try_get_u64().ok()?,
            },
            b'a' => Change::Add(rest.try_get_u64().ok()?),
            _ => return None,
        };
        (rest.is_empty() && key < KEYS).then_some(Self { key, change })
    }

    /// The command in a proposal.
    pub(super) fn of(data: &Bytes) -> Option<Self> {
        Self::decode(&Envelope::decode(data)?.command)
    }
}

impl Reply {
    pub(super) fn encode(self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u64(self.index);
        match self.outcome {
            Outcome::Put => out.put_u8(b'P'),
            Outcome::Deleted => out.put_u8(b'D'),
            Outcome::Cas { swapped, seen } => {
                out.put_slice(&[b'C', u8::from(swapped)]);
                put_value(&mut out, seen);
            }
            Outcome::Added(value) => {
                out.put_u8(b'A');
                out.put_u64(value);
            }
            Outcome::Malformed => out.put_u8(b'M'),
            Outcome::Elsewhere => out.put_u8(b'E'),
        }
        out.freeze()
    }

    pub(super) fn decode(bytes: &Bytes) -> Option<Self> {
        let mut rest = bytes.clone();
        let index = rest.try_get_u64().ok()?;
        let outcome = match rest.try_get_u8().ok()? {
            b'P' => Outcome::Put,
            b'D' => Outcome::Deleted,
            b'C' => Outcome::Cas {
                swapped: rest.try_get_u8().ok()? == 1,
                seen: take_value(&mut rest)?,
            },
            b'A' => Outcome::Added(rest.try_get_u64().ok()?),
            b'M' => Outcome::Malformed,
            b'E' => Outcome::Elsewhere,
            _ => return None,
        };
        rest.is_empty().then_some(Self { index, outcome })
    }
}

impl Query {
    pub(super) fn encode(self) -> Bytes {
        match self {
            Self::Get(key) => Bytes::copy_from_slice(&[b'?', b'g', key]),
            Self::Scan => Bytes::from_static(b"?s"),
        }
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        match *bytes {
            [b'?', b'g', key] if key < KEYS => Some(Self::Get(key)),
            [b'?', b's'] => Some(Self::Scan),
            _ => None,
        }
    }
}

pub(super) fn put_value(out: &mut BytesMut, value: Option<u64>) {
    out.put_u8(u8::from(value.is_some()));
    if let Some(value) = value {
        out.put_u64(value);
    }
}

pub(super) fn take_value(rest: &mut Bytes) -> Option<Option<u64>> {
    match rest.try_get_u8().ok()? {
        0 => Some(None),
        1 => Some(Some(rest.try_get_u64().ok()?)),
        _ => None,
    }
}

pub(super) fn answer(values: impl IntoIterator<Item = Option<u64>>) -> Bytes {
    let mut out = BytesMut::from(b"=".as_slice());
    for value in values {
        put_value(&mut out, value);
    }
    out.freeze()
}

pub(super) fn take_answer(output: &Bytes) -> Option<Vec<Option<u64>>> {
    let mut rest = output.clone();
    (rest.try_get_u8().ok()? == b'=').then_some(())?;
    let mut values = Vec::new();
    while !rest.is_empty() {
        values.push(take_value(&mut rest)?);
    }
    Some(values)
}

pub(super) fn scan_answer(values: impl IntoIterator<Item = (u8, Option<u64>)>) -> Bytes {
    let mut out = BytesMut::from(b"#".as_slice());
    for (key, value) in values {
        out.put_u8(key);
        put_value(&mut out, value);
    }
    out.freeze()
}

/// The keys of a range with their values, ascending.
pub(super) fn take_scan(output: &Bytes) -> Option<Vec<(u8, Option<u64>)>> {
    let mut rest = output.clone();
    (rest.try_get_u8().ok()? == b'#').then_some(())?;
    let mut values = Vec::new();
    while !rest.is_empty() {
        values.push((rest.try_get_u8().ok()?, take_value(&mut rest)?));
    }
    let keys = values.iter().map(|(key, _)| *key);
    let ascending = keys.clone().is_sorted_by(|one, next| one < next);
    (ascending && keys.max().is_none_or(|key| key < KEYS)).then_some(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded() {
        let key = 3;
        for change in [
            Change::Put(7),
            Change::Delete,
            Change::Cas {
                expected: None,
                value: 7,
            },
            Change::Cas {
                expected: Some(6),
                value: 7,
            },
            Change::Add(2),
        ] {
            let command = Command { key, change };
            let bytes = command.encode();
            assert_eq!(Command::decode(&bytes), Some(command));
            for length in 0..bytes.len() {
                assert_eq!(Command::decode(&bytes.slice(..length)), None);
            }
        }
        let seen = Some(9);
        for outcome in [
            Outcome::Put,
            Outcome::Deleted,
            Outcome::Cas {
                swapped: true,
                seen,
            },
            Outcome::Added(9),
            Outcome::Malformed,
            Outcome::Elsewhere,
        ] {
            let reply = Reply { index: 5, outcome };
            assert_eq!(Reply::decode(&reply.encode()), Some(reply));
        }
        for query in [Query::Get(key), Query::Scan] {
            assert_eq!(Query::decode(&query.encode()), Some(query));
        }
        let values = vec![None, Some(1)];
        assert_eq!(take_answer(&answer(values.clone())), Some(values));
        let values = vec![(0, None), (2, Some(1))];
        assert_eq!(take_scan(&scan_answer(values.clone())), Some(values));
        for wrong in [vec![(1, None), (1, None)], vec![(KEYS, None)]] {
            assert_eq!(take_scan(&scan_answer(wrong)), None);
        }
        let other_key = Command {
            key: KEYS,
            change: Change::Delete,
        };
        assert_eq!(Command::decode(&other_key.encode()), None);
        assert_eq!(Query::decode(&Query::Get(KEYS).encode()), None);
    }

    #[test]
    fn the_specification() {
        let cas = |expected, value| Change::Cas { expected, value };
        let swapped = |swapped, seen| Outcome::Cas { swapped, seen };
        let cases = [
            (Change::Put(3), Some(2), Some(3), Outcome::Put),
            (Change::Delete, Some(2), None, Outcome::Deleted),
            (Change::Delete, None, None, Outcome::Deleted),
            (cas(None, 3), None, Some(3), swapped(true, None)),
            (cas(None, 3), Some(2), Some(2), swapped(false, Some(2))),
            (cas(Some(2), 3), Some(2), Some(3), swapped(true, Some(2))),
            (cas(Some(2), 3), Some(1), Some(1), swapped(false, Some(1))),
            (cas(Some(2), 3), None, None, swapped(false, None)),
            (Change::Add(3), None, Some(3), Outcome::Added(3)),
            (Change::Add(3), Some(2), Some(5), Outcome::Added(5)),
            (Change::Add(3), Some(u64::MAX), Some(2), Outcome::Added(2)),
        ];
        for (change, before, after, outcome) in cases {
            assert_eq!(
                change.of(before),
                (after, outcome),
                "{change:?} of {before:?}"
            );
        }
    }
}
