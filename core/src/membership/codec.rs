//! The bytes of a configuration change in an entry: a version, then the fields, integers
//! big-endian.
//!
//! ```text
//! V1: 1 | kind u8 | replica u64 | context...
//! V2: 2 | transition u8 | count u32 | (kind u8 | replica u64) * count | context...
//! ```
//! A V2 change with nothing in it is the empty string (it leaves a joint configuration).

use alloc::vec::Vec;

use bytes::Bytes;

use super::{ConfChange, ConfChangeKind, ConfChangeV2, Transition};
use crate::error::MembershipError;
use crate::types::ReplicaId;

const VERSION_1: u8 = 1;
const VERSION_2: u8 = 2;
const CHANGE_BYTES: usize = 9;

impl ConfChange {
    /// The bytes that go into an entry.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(2 + 8 + self.context.len());
        out.push(VERSION_1);
        put_change(&mut out, self.kind, self.replica);
        out.extend_from_slice(&self.context);
        out.into()
    }

    /// The change in an entry of kind [`EntryKind::ConfChange`](crate::EntryKind::ConfChange).
    ///
    /// # Errors
    /// [`MembershipError::Malformed`]: the bytes are not a change that this version knows.
    pub fn decode(bytes: &Bytes) -> Result<Self, MembershipError> {
        let [VERSION_1, rest @ ..] = &bytes[..] else {
            return Err(MembershipError::Malformed("not a version 1 change"));
        };
        let Some((change, _)) = rest.split_first_chunk::<CHANGE_BYTES>() else {
            return Err(MembershipError::Malformed("cut short"));
        };
        let (kind, replica) = take_change(change)?;
        Ok(Self {
            kind,
            replica,
            context: bytes.slice(1 + CHANGE_BYTES..),
        })
    }
}

impl ConfChangeV2 {
    /// The bytes that go into an entry; a change with nothing in it is the empty string.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        if *self == Self::default() {
            return Bytes::new();
        }
        let mut out =
            Vec::with_capacity(6 + CHANGE_BYTES * self.changes.len() + self.context.len());
        out.push(VERSION_2);
        out.push(match self.transition {
            Transition::Auto => 0,
            Transition::JointImplicit => 1,
            Transition::JointExplicit => 2,
        });
        let count = u32::try_from(self.changes.len()).expect("a change has few members");
        out.extend_from_slice(&count.to_be_bytes());
        for &(kind, replica) in &self.changes {
            put_change(&mut out, kind, replica);
        }
        out.extend_from_slice(&self.context);
        out.into()
    }

    /// The change in an entry of kind [`EntryKind::ConfChangeV2`](crate::EntryKind::ConfChangeV2).
    ///
    /// # Errors
    /// [`MembershipError::Malformed`]: the bytes are not a change that this version knows.
    pub fn decode(bytes: &Bytes) -> Result<Self, MembershipError> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        let [VERSION_2, transition, rest @ ..] = &bytes[..] else {
            return Err(MembershipError::Malformed("not a version 2 change"));
        };
        let transition = match transition {
            0 => Transition::Auto,
            1 => Transition::JointImplicit,
            2 => Transition::JointExplicit,
            _ => return Err(MembershipError::Malformed("unknown transition")),
        };
        let Some((count, mut rest)) = rest.split_first_chunk::<4>() else {
            return Err(MembershipError::Malformed("cut short"));
        };
        let count = u32::from_be_bytes(*count) as usize;
        if rest.len() / CHANGE_BYTES < count {
            return Err(MembershipError::Malformed("cut short"));
        }
        let mut changes = Vec::with_capacity(count);
        for _ in 0..count {
            let Some((change, tail)) = rest.split_first_chunk::<CHANGE_BYTES>() else {
                return Err(MembershipError::Malformed("cut short"));
            };
            changes.push(take_change(change)?);
            rest = tail;
        }
        let context = bytes.slice(bytes.len() - rest.len()..);
        Ok(Self {
            transition,
            changes,
            context,
        })
    }
}

fn put_change(out: &mut Vec<u8>, kind: ConfChangeKind, replica: ReplicaId) {
    out.push(match kind {
        ConfChangeKind::AddVoter => 0,
        ConfChangeKind::Remove => 1,
        ConfChangeKind::Update => 2,
        ConfChangeKind::AddLearner => 3,
    });
    out.extend_from_slice(&replica.0.to_be_bytes());
}

fn take_change(bytes: &[u8; CHANGE_BYTES]) -> Result<(ConfChangeKind, ReplicaId), MembershipError> {
    let [kind, replica @ ..] = bytes;
    let kind = match kind {
        0 => ConfChangeKind::AddVoter,
        1 => ConfChangeKind::Remove,
        2 => ConfChangeKind::Update,
        3 => ConfChangeKind::AddLearner,
        _ => return Err(MembershipError::Malformed("unknown kind of change")),
    };
    Ok((kind, ReplicaId(u64::from_be_bytes(*replica))))
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    #[test]
    fn golden_bytes_of_version_1() {
        let change = ConfChange {
            kind: ConfChangeKind::AddLearner,
            replica: ReplicaId(0x0102),
            context: Bytes::from_static(b"ctx"),
        };
        let bytes = change.encode();
        assert_eq!(&bytes[..], b"\x01\x03\x00\x00\x00\x00\x00\x00\x01\x02ctx");
        assert_eq!(ConfChange::decode(&bytes), Ok(change));
    }

    #[test]
    fn golden_bytes_of_version_2() {
        let change = ConfChangeV2 {
            transition: Transition::JointExplicit,
            changes: vec![
                (ConfChangeKind::AddVoter, ReplicaId(4)),
                (ConfChangeKind::Remove, ReplicaId(1)),
            ],
            context: Bytes::from_static(b"x"),
        };
        let bytes = change.encode();
        let golden: &[u8] = b"\x02\x02\x00\x00\x00\x02\
            \x00\x00\x00\x00\x00\x00\x00\x00\x04\
            \x01\x00\x00\x00\x00\x00\x00\x00\x01x";
        assert_eq!(&bytes[..], golden);
        assert_eq!(ConfChangeV2::decode(&bytes), Ok(change));
    }

    #[test]
    fn the_empty_string_leaves_joint() {
        assert!(ConfChangeV2::default().encode().is_empty());
        assert!(ConfChangeV2::decode(&Bytes::new()).unwrap().leaves_joint());
    }

    #[test]
    fn malformed_bytes_are_refused() {
        for bytes in [
            &b"\x02"[..],
            b"\x09\x00",
            b"\x02\x07\0\0\0\0",
            b"\x02\0\xff\xff\xff\xff\0",
        ] {
            assert!(
                ConfChangeV2::decode(&Bytes::copy_from_slice(bytes)).is_err(),
                "{bytes:?}"
            );
        }
        for bytes in [&b""[..], b"\x01\x00\x00", b"\x01\x09\0\0\0\0\0\0\0\x01"] {
            assert!(
                ConfChange::decode(&Bytes::copy_from_slice(bytes)).is_err(),
                "{bytes:?}"
            );
        }
    }
}
