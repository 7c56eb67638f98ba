//! The bytes of an envelope in a log entry, and of the reply.
//!
//! ```text
//! envelope: version u8 = 1 | client u64 | (since u64 | sequence u64 | acknowledged u64) | command
//! reply:    version u8 = 1 | outcome u8 | (index u64 if expired, a reply if applied or refused)
//! ```
//!
//! Without a session the client is 0, and what is in brackets is not there. Integers are
//! big-endian. An envelope is decoded on every replica, years after it was written perhaps: a
//! malformed one or one of another version gets the same reply everywhere and changes nothing.

use std::num::NonZeroU64;

use bytes::{Buf, BufMut, Bytes, BytesMut};

const VERSION: u8 = 1;

/// Which session; no two sessions may have the same, whatever the groups that they are with: groups split
/// and merge, and their sessions with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId {
    /// Drawn by the client; no two clients may draw the same.
    pub client: NonZeroU64,
    /// What the group's clock had reached before the session's first command was proposed, or less; 0 is
    /// always true, and enough for a group that never evicted a session. An index of its log will do.
    pub since: u64,
}

/// Which command of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Once {
    /// Which session.
    pub session: SessionId,
    /// Its number, never given to another command of the session.
    pub sequence: u64,
    /// The client has been answered, or has given up, all commands with lower numbers: none of them
    /// will be applied any more. Not above `sequence`.
    pub acknowledged: u64,
}

/// A command on its way to an application with sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Of which session it is; none: every copy of it is a command of its own.
    pub once: Option<Once>,
    /// What the application applies; not empty.
    pub command: Bytes,
}

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionReply {
    /// Applied, now or by an earlier copy: the application's reply.
    Applied(Bytes),
    /// An earlier copy was applied; its reply was too long to keep.
    AppliedBefore,
    /// The session is not known here, or not any more. This copy was not applied and none will be,
    /// from now on; what became of earlier ones is not known. A new session may say that it exists
    /// since `index`.
    Expired {
        /// What the group's clock was at this command.
        index: u64,
    },
    /// The client said that it needs no answer. This copy was not applied; what became of earlier
    /// ones is not known.
    Acknowledged,
    /// The number is [`WINDOW`](super::WINDOW) or more ahead of the lowest one that is not
    /// acknowledged. This copy was not applied.
    TooFarAhead,
    /// Not an envelope that this version knows. Not applied.
    Malformed,
    /// The keys are not this group's: the application's refusal. This copy was not applied, and no
    /// earlier one by this group; the same command may go to the group that has the keys.
    Refused(Bytes),
}

impl Envelope {
    /// The bytes for an entry.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(33 + self.command.len());
        out.put_u8(VERSION);
        match &self.once {
            None => out.put_u64(0),
            Some(once) => {
                out.put_u64(once.session.client.get());
                out.put_u64(once.session.since);
                out.put_u64(once.sequence);
                out.put_u64(once.acknowledged);
            }
        }
        out.put_slice(&self.command);
        out.freeze()
    }

    /// The envelope in an entry; `None` if it is malformed or of another version.
    #[must_use]
    pub fn decode(bytes: &Bytes) -> Option<Self> {
        let mut rest = bytes.clone();
        if rest.try_get_u8().ok()? != VERSION {
            return None;
        }
        let once = match NonZeroU64::new(rest.try_get_u64().ok()?) {
            None => None,
            Some(client) => {
                let since = rest.try_get_u64().ok()?;
                let once = Once {
                    session: SessionId { client, since },
                    sequence: rest.try_get_u64().ok()?,
                    acknowledged: rest.try_get_u64().ok()?,
                };
                (once.acknowledged <= once.sequence).then_some(())?;
                Some(once)
            }
        };
        (!rest.is_empty()).then_some(Self {
            once,
            command: rest,
        })
    }
}

impl SessionReply {
    /// The bytes of the reply.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(VERSION);
        match self {
            Self::Applied(reply) => {
                out.reserve(1 + reply.len());
                out.put_u8(0);
                out.put_slice(reply);
            }
            Self::AppliedBefore => out.put_u8(1),
            Self::Expired { index } => {
                out.put_u8(2);
                out.put_u64(*index);
            }
            Self::Acknowledged => out.put_u8(3),
            Self::TooFarAhead => out.put_u8(4),
            Self::Malformed => out.put_u8(5),
            Self::Refused(refusal) => {
                out.reserve(1 + refusal.len());
                out.put_u8(6);
                out.put_slice(refusal);
            }
        }
        out.freeze()
    }

    /// The reply in these bytes; `None` if they are none.
    #[must_use]
    pub fn decode(bytes: &Bytes) -> Option<Self> {
        let mut rest = bytes.clone();
        if rest.try_get_u8().ok()? != VERSION {
            return None;
        }
        let reply = match rest.try_get_u8().ok()? {
            0 => return Some(Self::Applied(rest)),
            1 => Self::AppliedBefore,
            2 => Self::Expired {
                index: rest.try_get_u64().ok()?,
            },
            3 => Self::Acknowledged,
            4 => Self::TooFarAhead,
            5 => Self::Malformed,
            6 => return Some(Self::Refused(rest)),
            _ => return None,
        };
        rest.is_empty().then_some(reply)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope() -> Envelope {
        Envelope {
            once: Some(Once {
                session: SessionId {
                    client: NonZeroU64::new(258).unwrap(),
                    since: 3,
                },
                sequence: 7,
                acknowledged: 5,
            }),
            command: Bytes::from_static(b"cmd"),
        }
    }

    #[test]
    fn golden_bytes() {
        let golden: &[u8] =
            b"\x01\0\0\0\0\0\0\x01\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\x05cmd";
        assert_eq!(envelope().encode(), golden);
        assert_eq!(Envelope::decode(&envelope().encode()), Some(envelope()));
        let without = Envelope {
            once: None,
            ..envelope()
        };
        assert_eq!(without.encode(), b"\x01\0\0\0\0\0\0\0\0cmd".as_slice());
        assert_eq!(Envelope::decode(&without.encode()), Some(without));
    }

    #[test]
    fn malformed_envelopes_are_none() {
        let whole = envelope().encode();
        for length in 0..=whole.len() - b"cmd".len() {
            let cut = whole.slice(..length);
            assert_eq!(Envelope::decode(&cut), None, "cut to {length} bytes");
        }
        let mut version = whole.to_vec();
        version[0] = 2;
        assert_eq!(Envelope::decode(&version.into()), None);
        let mut acknowledged = whole.to_vec();
        acknowledged[32] = 8;
        assert_eq!(Envelope::decode(&acknowledged.into()), None);
    }

    #[test]
    fn replies() {
        let replies: [(SessionReply, &[u8]); 7] = [
            (SessionReply::Applied(Bytes::from_static(b"r")), b"\x01\0r"),
            (SessionReply::AppliedBefore, b"\x01\x01"),
            (
                SessionReply::Expired { index: 258 },
                b"\x01\x02\0\0\0\0\0\0\x01\x02",
            ),
            (SessionReply::Acknowledged, b"\x01\x03"),
            (SessionReply::TooFarAhead, b"\x01\x04"),
            (SessionReply::Malformed, b"\x01\x05"),
            (
                SessionReply::Refused(Bytes::from_static(b"r")),
                b"\x01\x06r",
            ),
        ];
        for (reply, golden) in replies {
            assert_eq!(reply.encode(), golden);
            assert_eq!(SessionReply::decode(&reply.encode()), Some(reply));
        }
        for bad in [
            b"".as_slice(),
            b"\x01",
            b"\x02\x01",
            b"\x01\x07",
            b"\x01\x01x",
            b"\x01\x02\0",
        ] {
            assert_eq!(
                SessionReply::decode(&Bytes::copy_from_slice(bad)),
                None,
                "{bad:?}"
            );
        }
    }
}
