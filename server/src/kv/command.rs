//! The bytes of a key-value command in a log entry, and of its reply.
//!
//! ```text
//! command: version u8 = 1 | conditions u32 | pair * conditions | mutations u32 | pair * mutations
//! pair:    key length u32 | key | has value u8 | (value length u32 | value if it has one)
//! reply:   version u8 = 1 | outcome u8
//!
//! of a session:
//! command: version u8 = 2 | an envelope with a command of version 1
//! reply:   version u8 = 2 | a session's reply with a reply of version 1
//! ```
//!
//! What is of a session is encoded by [`polyraft_store::sessions`]. Integers are big-endian. A
//! command is decoded on every replica, years after it was written perhaps: an unknown version or a
//! malformed command gets the same reply everywhere and changes nothing.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use polyraft_multiraft::KeyRange;
use polyraft_store::sessions::{Envelope, Once, SessionReply};

const VERSION: u8 = 1;
const OF_A_SESSION: u8 = 2;

/// A key with a value or without one.
pub type Pair = (Bytes, Option<Bytes>);

/// One atomic write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Command {
    /// What must hold: keys with their values, or absent.
    pub conditions: Vec<Pair>,
    /// What is written: new values, or absent.
    pub mutations: Vec<Pair>,
}

/// What became of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// A condition did not hold; nothing was changed.
    ConditionFailed,
    /// Written.
    Applied,
    /// Not a command that this version knows; nothing was changed.
    Malformed,
    /// A key lies outside of the group's range; nothing was changed.
    OutOfRange,
}

impl Command {
    /// The bytes for an entry.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let pairs = self.conditions.iter().chain(&self.mutations);
        let size: usize = pairs
            .map(|(key, value)| 9 + key.len() + value.as_ref().map_or(0, Bytes::len))
            .sum();
        let mut out = BytesMut::with_capacity(9 + size);
        out.put_u8(VERSION);
        put_pairs(&mut out, &self.conditions);
        put_pairs(&mut out, &self.mutations);
        out.freeze()
    }

    /// The command in an entry; `None` if it is malformed or of another version.
    #[must_use]
    pub fn decode(bytes: &Bytes) -> Option<Self> {
        let mut rest = bytes.clone();
        if !rest.has_remaining() || rest.get_u8() != VERSION {
            return None;
        }
        let conditions = take_pairs(&mut rest)?;
        let mutations = take_pairs(&mut rest)?;
        (!rest.has_remaining()).then_some(Self {
            conditions,
            mutations,
        })
    }

    /// Whether the command in an entry names a key outside of `range`; a malformed one names none. It
    /// is asked of every command on every replica, so it allocates nothing.
    #[must_use]
    pub(super) fn is_outside(bytes: &[u8], range: &KeyRange) -> bool {
        let mut outside = false;
        let mut rest = bytes;
        let mut each = |key: &[u8]| outside |= !range.contains(key);
        let mut walk = || {
            (rest.try_get_u8().ok()? == VERSION).then_some(())?;
            walk_pairs(&mut rest, &mut each)?;
            walk_pairs(&mut rest, &mut each)
        };
        let walked = walk().is_some();
        walked && rest.is_empty() && outside
    }

    /// The bytes for an entry of a command that counts once.
    #[must_use]
    pub fn encode_once(&self, once: Once) -> Bytes {
        let envelope = Envelope {
            once: Some(once),
            command: self.encode(),
        };
        of_a_session(&envelope.encode())
    }

    /// All keys that it names.
    pub fn keys(&self) -> impl Iterator<Item = &Bytes> {
        self.conditions
            .iter()
            .chain(&self.mutations)
            .map(|(key, _)| key)
    }
}

impl Reply {
    /// The bytes of the reply.
    #[must_use]
    pub fn encode(self) -> Bytes {
        let outcome = match self {
            Self::ConditionFailed => 0,
            Self::Applied => 1,
            Self::Malformed => 2,
            Self::OutOfRange => 3,
        };
        Bytes::copy_from_slice(&[VERSION, outcome])
    }

    /// The reply in these bytes; `None` if they are none.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [VERSION, 0] => Some(Self::ConditionFailed),
            [VERSION, 1] => Some(Self::Applied),
            [VERSION, 2] => Some(Self::Malformed),
            [VERSION, 3] => Some(Self::OutOfRange),
            _ => None,
        }
    }
}

/// What became of a command of an entry with these bytes as its reply; `None` if they are none.
#[must_use]
pub fn decode_reply(bytes: &Bytes) -> Option<SessionReply> {
    match in_session(bytes) {
        Some(reply) => SessionReply::decode(&reply),
        None => Some(SessionReply::Applied(bytes.clone())),
    }
}

/// The envelope, or the reply, behind the version that says that it is of a session.
pub(super) fn in_session(bytes: &Bytes) -> Option<Bytes> {
    (bytes.first() == Some(&OF_A_SESSION)).then(|| bytes.slice(1..))
}

/// The other way round.
pub(super) fn of_a_session(bytes: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(1 + bytes.len());
    out.put_u8(OF_A_SESSION);
    out.put_slice(bytes);
    out.freeze()
}

// Lengths fit: the host refuses commands far below 4 GiB.
fn length(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn put_pairs(out: &mut BytesMut, pairs: &[Pair]) {
    out.put_u32(length(pairs.len()));
    for (key, value) in pairs {
        out.put_u32(length(key.len()));
        out.put_slice(key);
        out.put_u8(u8::from(value.is_some()));
        if let Some(value) = value {
            out.put_u32(length(value.len()));
            out.put_slice(value);
        }
    }
}

fn take_pairs(rest: &mut Bytes) -> Option<Vec<Pair>> {
    let count = rest.try_get_u32().ok()?;
    // A pair takes five bytes at least: a false count cannot make this allocate more than there is.
    if u64::from(count) * 5 > rest.remaining() as u64 {
        return None;
    }
    (0..count).map(|_| take_pair(rest)).collect()
}

/// The keys of pairs.
fn walk_pairs(rest: &mut &[u8], each: &mut impl FnMut(&[u8])) -> Option<()> {
    for _ in 0..rest.try_get_u32().ok()? {
        each(walk_bytes(rest)?);
        match rest.try_get_u8().ok()? {
            0 => {}
            1 => {
                walk_bytes(rest)?;
            }
            _ => return None,
        }
    }
    Some(())
}

fn walk_bytes<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = rest.try_get_u32().ok()? as usize;
    rest.split_off(..length)
}

fn take_pair(rest: &mut Bytes) -> Option<Pair> {
    let key = take_bytes(rest)?;
    let value = match rest.try_get_u8().ok()? {
        0 => None,
        1 => Some(take_bytes(rest)?),
        _ => return None,
    };
    Some((key, value))
}

fn take_bytes(rest: &mut Bytes) -> Option<Bytes> {
    let length = rest.try_get_u32().ok()? as usize;
    (length <= rest.remaining()).then(|| rest.split_to(length))
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use polyraft_store::sessions::SessionId;

    use super::*;

    fn command() -> Command {
        let bytes = Bytes::from_static;
        Command {
            conditions: vec![(bytes(b"a"), None)],
            mutations: vec![(bytes(b"b"), Some(bytes(b"cd"))), (bytes(b""), None)],
        }
    }

    #[test]
    fn golden_bytes() {
        let golden: &[u8] =
            b"\x01\0\0\0\x01\0\0\0\x01a\0\0\0\0\x02\0\0\0\x01b\x01\0\0\0\x02cd\0\0\0\0\0";
        assert_eq!(command().encode(), golden);
        assert_eq!(Command::decode(&command().encode()), Some(command()));
    }

    #[test]
    fn malformed_commands_are_none() {
        let whole = command().encode();
        for length in 0..whole.len() {
            assert_eq!(
                Command::decode(&whole.slice(..length)),
                None,
                "cut to {length} bytes"
            );
        }
        let mut longer = whole.to_vec();
        longer.push(0);
        assert_eq!(Command::decode(&longer.into()), None);
        let mut version = whole.to_vec();
        version[0] = 2;
        assert_eq!(Command::decode(&version.into()), None);
        assert_eq!(
            Command::decode(&Bytes::from_static(b"\x01\xff\xff\xff\xff")),
            None
        );
    }

    #[test]
    fn who_looks_for_keys_outside_sees_those_of_the_command() {
        let range = |start: &'static str, end: Option<&'static str>| KeyRange {
            start: Bytes::from_static(start.as_bytes()),
            end: end.map(|end| Bytes::from_static(end.as_bytes())),
        };
        let ranges = [
            range("", None),
            range("", Some("b")),
            range("a", None),
            range("", Some("ba")),
            range("b", Some("c")),
        ];
        let whole = command().encode();
        let mut cases: Vec<Bytes> = (0..=whole.len()).map(|n| whole.slice(..n)).collect();
        for at in 0..whole.len() {
            for bits in [1, 2, 0xff] {
                let mut other = whole.to_vec();
                other[at] ^= bits;
                cases.push(other.into());
            }
        }
        let mut outside = [0, 0];
        for (case, range) in cases
            .iter()
            .flat_map(|c| ranges.iter().map(move |r| (c, r)))
        {
            let command = Command::decode(case);
            let expected = command.is_some_and(|c| c.keys().any(|key| !range.contains(key)));
            assert_eq!(
                Command::is_outside(case, range),
                expected,
                "{case:?} {range:?}"
            );
            outside[usize::from(expected)] += 1;
        }
        assert!(outside[0] > 9 && outside[1] > 9, "{outside:?}");
    }

    #[test]
    fn golden_bytes_of_a_session() {
        let session = SessionId {
            client: NonZeroU64::new(258).unwrap(),
            since: 3,
        };
        let once = Once {
            session,
            sequence: 7,
            acknowledged: 5,
        };
        let bytes = command().encode_once(once);
        let golden: &[u8] =
            b"\x02\x01\0\0\0\0\0\0\x01\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\x05";
        assert_eq!(bytes, [golden, &command().encode()].concat());
        assert_eq!(Command::decode(&bytes), None);
        let envelope = Envelope::decode(&in_session(&bytes).unwrap()).unwrap();
        assert_eq!(envelope.once, Some(once));
        assert_eq!(Command::decode(&envelope.command), Some(command()));
    }

    #[test]
    fn replies_with_and_without_a_session() {
        let plain = Reply::Applied.encode();
        let applied = SessionReply::Applied(plain.clone());
        assert_eq!(decode_reply(&plain), Some(applied.clone()));
        let reply = of_a_session(&applied.encode());
        assert_eq!(reply, b"\x02\x01\0\x01\x01".as_slice());
        assert_eq!(decode_reply(&reply), Some(applied));
        assert_eq!(decode_reply(&Bytes::from_static(b"\x02")), None);
    }

    #[test]
    fn replies() {
        for reply in [
            Reply::ConditionFailed,
            Reply::Applied,
            Reply::Malformed,
            Reply::OutOfRange,
        ] {
            assert_eq!(Reply::decode(&reply.encode()), Some(reply));
        }
        assert_eq!(Reply::decode(b"\x02\x01"), None);
        assert_eq!(Reply::decode(b""), None);
    }
}
