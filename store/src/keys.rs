//! The keys of all column families. Integers are big-endian, so that the order of bytes is theirs.
//!
//! | column family | key | value |
//! |---|---|---|
//! | `log` | sequence u64 | a batch record |
//! | `state` | group u64 | settled state of a replica, or a tombstone |
//! | `settled` | group u64, index u64 | one log entry |
//! | `data` | 0, group u64, kind u8, rest | what a group keeps for itself |
//! | `data` | 1, user key | user data of groups with a range |
//! | `meta` | name | what the store itself is |

use bytes::{BufMut, Bytes, BytesMut};
use polyraft_core::Index;
use polyraft_multiraft::GroupId;

use crate::disk::Change;

pub(crate) fn record(sequence: u64) -> Bytes {
    Bytes::copy_from_slice(&sequence.to_be_bytes())
}

pub(crate) fn parse_record(key: &[u8]) -> Option<u64> {
    key.try_into().ok().map(u64::from_be_bytes)
}

pub(crate) fn group(group: GroupId) -> Bytes {
    Bytes::copy_from_slice(&group.0.to_be_bytes())
}

pub(crate) fn parse_group(key: &[u8]) -> Option<GroupId> {
    key.try_into().ok().map(u64::from_be_bytes).map(GroupId)
}

pub(crate) fn entry(group: GroupId, index: Index) -> Bytes {
    let mut key = BytesMut::with_capacity(16);
    key.put_u64(group.0);
    key.put_u64(index.0);
    key.freeze()
}

/// Every settled entry of a group goes.
pub(crate) fn all_entries(group: GroupId) -> Change {
    Change::DeleteRange(entry(group, Index(0)), entry(group, Index(u64::MAX)))
}

/// The smallest key above `key`.
pub(crate) fn after(key: &[u8]) -> Bytes {
    let mut next = BytesMut::with_capacity(key.len() + 1);
    next.put_slice(key);
    next.put_u8(0);
    next.freeze()
}

/// What a group keeps for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Local {
    /// The last applied entry: term and index.
    Applied,
    /// Configuration and descriptor as of some entry.
    Membership,
    /// A snapshot that is being installed.
    Installing,
    /// What the application keeps beside its keys.
    Application,
    /// User data of a group without a range.
    Private,
    /// The sessions of the group's clients.
    Session,
    /// The group was merged into another one, and nothing else of it is left here.
    Merged,
}

impl Local {
    pub(crate) const fn tag(self) -> u8 {
        match self {
            Self::Applied => 1,
            Self::Membership => 2,
            Self::Installing => 3,
            Self::Application => 4,
            Self::Private => 5,
            Self::Session => 6,
            Self::Merged => 7,
        }
    }
}

const LOCAL: u8 = 0;
const USER: u8 = 1;

pub(crate) fn local(group: GroupId, kind: Local, rest: &[u8]) -> Bytes {
    let mut key = BytesMut::with_capacity(10 + rest.len());
    key.put_u8(LOCAL);
    key.put_u64(group.0);
    key.put_u8(kind.tag());
    key.put_slice(rest);
    key.freeze()
}

/// Past every key that a group keeps for itself under `kind`.
pub(crate) fn local_end(group: GroupId, kind: Local) -> Bytes {
    let mut key = BytesMut::with_capacity(10);
    key.put_u8(LOCAL);
    key.put_u64(group.0);
    key.put_u8(kind.tag() + 1);
    key.freeze()
}

/// Group and kind of a local key.
pub(crate) fn parse_local(key: &[u8]) -> Option<(GroupId, u8)> {
    let [LOCAL, rest @ ..] = key else { return None };
    let (group, rest) = rest.split_first_chunk::<8>()?;
    Some((GroupId(u64::from_be_bytes(*group)), *rest.first()?))
}

pub(crate) fn user(key: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(1 + key.len());
    out.put_u8(USER);
    out.put_slice(key);
    out.freeze()
}

/// Past every user key.
pub(crate) fn user_end() -> Bytes {
    Bytes::from_static(&[USER + 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        assert_eq!(&record(258)[..], b"\0\0\0\0\0\0\x01\x02");
        assert_eq!(&group(GroupId(3))[..], b"\0\0\0\0\0\0\0\x03");
        assert_eq!(
            &entry(GroupId(1), Index(2))[..],
            b"\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02"
        );
        assert_eq!(
            &local(GroupId(1), Local::Applied, b"")[..],
            b"\0\0\0\0\0\0\0\0\x01\x01"
        );
        assert_eq!(
            &local(GroupId(1), Local::Membership, b"")[..],
            b"\0\0\0\0\0\0\0\0\x01\x02"
        );
        assert_eq!(
            &local(GroupId(1), Local::Installing, b"")[..],
            b"\0\0\0\0\0\0\0\0\x01\x03"
        );
        assert_eq!(
            &local(GroupId(1), Local::Application, b"s")[..],
            b"\0\0\0\0\0\0\0\0\x01\x04s"
        );
        assert_eq!(
            &local(GroupId(1), Local::Private, b"k")[..],
            b"\0\0\0\0\0\0\0\0\x01\x05k"
        );
        assert_eq!(
            &local(GroupId(1), Local::Session, b"k")[..],
            b"\0\0\0\0\0\0\0\0\x01\x06k"
        );
        assert_eq!(
            &local(GroupId(1), Local::Merged, b"")[..],
            b"\0\0\0\0\0\0\0\0\x01\x07"
        );
        assert_eq!(&user(b"key")[..], b"\x01key");
        assert_eq!(parse_record(&record(258)), Some(258));
        assert_eq!(
            parse_local(&local(GroupId(7), Local::Private, b"x")),
            Some((GroupId(7), 5))
        );
    }

    #[test]
    fn order_of_bytes_is_order_of_numbers() {
        assert!(record(255) < record(256));
        assert!(entry(GroupId(1), Index(u64::MAX)) < entry(GroupId(2), Index(0)));
        assert!(local(GroupId(u64::MAX), Local::Merged, b"\xff") < user(b""));
    }
}
