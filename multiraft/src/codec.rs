//! The bytes of a descriptor and of what else is replicated or stored with it: a version byte, then the
//! fields, integers big-endian, lists and strings behind a `u32` length.
//!
//! Used in applied state, in snapshots and between stores; golden bytes are in the tests.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use polyraft_core::{ConfState, EntryId, ReplicaId};

use crate::group::{
    AppliedState, Epoch, Frozen, GroupDescriptor, GroupId, KeyRange, Member, StoreId,
};
use crate::ranges::{RangeCommand, SplitPiece};

/// The bytes are not what this version knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed {what}: {reason}")]
pub struct CodecError {
    /// What was to be read.
    pub what: &'static str,
    /// What is wrong.
    pub reason: &'static str,
}

const VERSION: u8 = 1;
/// Of a descriptor that is frozen or has a border: whoever knows neither must not take it for one that
/// serves, nor write it back without. All others are of the first version.
const VERSION_BORDER: u8 = 2;

impl GroupDescriptor {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        put_descriptor(&mut out, self);
        out.freeze()
    }

    /// From its bytes.
    ///
    /// # Errors
    /// See [`CodecError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut reader = Reader {
            bytes,
            what: "group descriptor",
        };
        let descriptor = reader.descriptor()?;
        reader.end()?;
        Ok(descriptor)
    }
}

impl AppliedState {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(VERSION);
        out.put_u64(self.last.term.0);
        out.put_u64(self.last.index.0);
        put_conf_state(&mut out, &self.conf_state);
        put_descriptor(&mut out, &self.descriptor);
        out.freeze()
    }

    /// From its bytes.
    ///
    /// # Errors
    /// See [`CodecError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut reader = Reader {
            bytes,
            what: "applied state",
        };
        reader.version()?;
        let last = EntryId::new(reader.u64()?, reader.u64()?);
        let conf_state = Arc::new(reader.conf_state()?);
        let descriptor = Arc::new(reader.descriptor()?);
        reader.end()?;
        Ok(Self {
            last,
            conf_state,
            descriptor,
        })
    }
}

/// The context of a change of membership: where the new replicas live.
pub(crate) fn encode_members(members: &[Member]) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(VERSION);
    put_members(&mut out, members);
    out.freeze()
}

pub(crate) fn decode_members(bytes: &[u8]) -> Result<Vec<Member>, CodecError> {
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    let mut reader = Reader {
        bytes,
        what: "member list",
    };
    reader.version()?;
    let members = reader.members()?;
    reader.end()?;
    Ok(members)
}

impl RangeCommand {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(VERSION);
        out.put_u8(match self {
            Self::Split { .. } => SPLIT,
            Self::Freeze { .. } => FREEZE,
            Self::Thaw { .. } => THAW,
            Self::Fence { .. } => FENCE,
            Self::Inspect { .. } => INSPECT,
            Self::Merge { .. } => MERGE,
        });
        put_epoch(&mut out, self.expected());
        match self {
            Self::Split { pieces, .. } => {
                put_len(&mut out, pieces.len());
                for piece in pieces {
                    out.put_u64(piece.group.0);
                    put_bytes(&mut out, &piece.start);
                }
            }
            Self::Freeze { into, target, .. } => {
                out.put_u64(into.0);
                put_epoch(&mut out, *target);
            }
            Self::Merge { right, .. } => put_descriptor(&mut out, right),
            Self::Inspect { id, .. } => out.put_u64(*id),
            Self::Thaw { .. } | Self::Fence { .. } => {}
        }
        out.freeze()
    }

    /// From its bytes.
    ///
    /// # Errors
    /// See [`CodecError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut reader = Reader {
            bytes,
            what: "range command",
        };
        reader.version()?;
        let kind = reader.u8()?;
        let expected = reader.epoch()?;
        let command = match kind {
            SPLIT => Self::Split {
                expected,
                pieces: reader.pieces()?,
            },
            FREEZE => Self::Freeze {
                expected,
                into: GroupId(reader.u64()?),
                target: reader.epoch()?,
            },
            THAW => Self::Thaw { expected },
            FENCE => Self::Fence { expected },
            INSPECT => Self::Inspect {
                expected,
                id: reader.u64()?,
            },
            MERGE => Self::Merge {
                expected,
                right: reader.descriptor()?,
            },
            _ => return Err(reader.error("unknown kind of command")),
        };
        reader.end()?;
        Ok(command)
    }
}

const SPLIT: u8 = 1;
const FREEZE: u8 = 2;
const THAW: u8 = 3;
const FENCE: u8 = 4;
const MERGE: u8 = 5;
const INSPECT: u8 = 6;

fn put_epoch(out: &mut BytesMut, epoch: Epoch) {
    out.put_u64(epoch.membership);
    out.put_u64(epoch.range);
}

fn put_descriptor(out: &mut BytesMut, descriptor: &GroupDescriptor) {
    let simple = descriptor.border == 0 && descriptor.frozen.is_none();
    out.put_u8(if simple { VERSION } else { VERSION_BORDER });
    out.put_u64(descriptor.group.0);
    match &descriptor.range {
        None => out.put_u8(0),
        Some(KeyRange { start, end: None }) => {
            out.put_u8(1);
            put_bytes(out, start);
        }
        Some(KeyRange {
            start,
            end: Some(end),
        }) => {
            out.put_u8(2);
            put_bytes(out, start);
            put_bytes(out, end);
        }
    }
    put_members(out, &descriptor.members);
    out.put_u64(descriptor.next_replica.0);
    put_epoch(out, descriptor.epoch);
    if simple {
        return;
    }
    out.put_u64(descriptor.border);
    out.put_u8(u8::from(descriptor.frozen.is_some()));
    if let Some(Frozen { into, target, at }) = descriptor.frozen {
        out.put_u64(into.0);
        put_epoch(out, target);
        out.put_u64(at.term.0);
        out.put_u64(at.index.0);
    }
}

fn put_members(out: &mut BytesMut, members: &[Member]) {
    put_len(out, members.len());
    for member in members {
        out.put_u64(member.replica.0);
        out.put_u64(member.store.0);
    }
}

fn put_conf_state(out: &mut BytesMut, state: &ConfState) {
    for list in [
        &state.voters,
        &state.learners,
        &state.voters_outgoing,
        &state.learners_next,
    ] {
        put_len(out, list.len());
        for id in list {
            out.put_u64(id.0);
        }
    }
    out.put_u8(u8::from(state.auto_leave));
}

fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    put_len(out, bytes.len());
    out.put_slice(bytes);
}

fn put_len(out: &mut BytesMut, len: usize) {
    out.put_u32(u32::try_from(len).expect("lists and keys are far below 4 GiB"));
}

struct Reader<'a> {
    bytes: &'a [u8],
    what: &'static str,
}

impl Reader<'_> {
    fn error(&self, reason: &'static str) -> CodecError {
        CodecError {
            what: self.what,
            reason,
        }
    }

    fn need(&self, count: usize) -> Result<(), CodecError> {
        if self.bytes.len() < count {
            Err(self.error("cut short"))
        } else {
            Ok(())
        }
    }

    fn u8(&mut self) -> Result<u8, CodecError> {
        self.need(1)?;
        Ok(self.bytes.get_u8())
    }

    fn u64(&mut self) -> Result<u64, CodecError> {
        self.need(8)?;
        Ok(self.bytes.get_u64())
    }

    /// A length whose items of `size` bytes each are all there.
    fn len(&mut self, size: usize) -> Result<usize, CodecError> {
        self.need(4)?;
        let len = self.bytes.get_u32() as usize;
        if self.bytes.len() / size < len {
            Err(self.error("cut short"))
        } else {
            Ok(len)
        }
    }

    fn version(&mut self) -> Result<(), CodecError> {
        if self.u8()? == VERSION {
            Ok(())
        } else {
            Err(self.error("unknown version"))
        }
    }

    fn key(&mut self) -> Result<Bytes, CodecError> {
        let len = self.len(1)?;
        let (key, rest) = self.bytes.split_at(len);
        self.bytes = rest;
        Ok(Bytes::copy_from_slice(key))
    }

    fn members(&mut self) -> Result<Vec<Member>, CodecError> {
        let count = self.len(16)?;
        let member = |this: &mut Self| {
            Ok(Member {
                replica: ReplicaId(this.u64()?),
                store: StoreId(this.u64()?),
            })
        };
        (0..count).map(|_| member(self)).collect()
    }

    fn conf_state(&mut self) -> Result<ConfState, CodecError> {
        let mut lists: [Vec<ReplicaId>; 4] = Default::default();
        for list in &mut lists {
            for _ in 0..self.len(8)? {
                list.push(ReplicaId(self.u64()?));
            }
        }
        let [voters, learners, voters_outgoing, learners_next] = lists;
        let auto_leave = self.flag()?;
        Ok(ConfState {
            voters,
            learners,
            voters_outgoing,
            learners_next,
            auto_leave,
        })
    }

    fn flag(&mut self) -> Result<bool, CodecError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.error("neither yes nor no")),
        }
    }

    fn epoch(&mut self) -> Result<Epoch, CodecError> {
        Ok(Epoch {
            membership: self.u64()?,
            range: self.u64()?,
        })
    }

    fn pieces(&mut self) -> Result<Vec<SplitPiece>, CodecError> {
        let count = self.len(12)?;
        let piece = |this: &mut Self| {
            Ok(SplitPiece {
                group: GroupId(this.u64()?),
                start: this.key()?,
            })
        };
        (0..count).map(|_| piece(self)).collect()
    }

    fn frozen(&mut self) -> Result<Frozen, CodecError> {
        Ok(Frozen {
            into: GroupId(self.u64()?),
            target: self.epoch()?,
            at: EntryId::new(self.u64()?, self.u64()?),
        })
    }

    fn descriptor(&mut self) -> Result<GroupDescriptor, CodecError> {
        let version = self.u8()?;
        if version != VERSION && version != VERSION_BORDER {
            return Err(self.error("unknown version"));
        }
        let group = GroupId(self.u64()?);
        let range = match self.u8()? {
            0 => None,
            1 => Some(KeyRange {
                start: self.key()?,
                end: None,
            }),
            2 => Some(KeyRange {
                start: self.key()?,
                end: Some(self.key()?),
            }),
            _ => return Err(self.error("unknown kind of range")),
        };
        let members = self.members()?;
        let next_replica = ReplicaId(self.u64()?);
        let epoch = self.epoch()?;
        let (border, frozen) = match version {
            VERSION_BORDER => (self.u64()?, self.flag()?),
            _ => (0, false),
        };
        let frozen = if frozen { Some(self.frozen()?) } else { None };
        if version == VERSION_BORDER && border == 0 && frozen.is_none() {
            return Err(self.error("of a version that it does not need"));
        }
        Ok(GroupDescriptor {
            group,
            range,
            members,
            next_replica,
            epoch,
            border,
            frozen,
        })
    }

    fn end(&self) -> Result<(), CodecError> {
        if self.bytes.is_empty() {
            Ok(())
        } else {
            Err(self.error("bytes left over"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor() -> GroupDescriptor {
        GroupDescriptor {
            group: GroupId(7),
            range: Some(KeyRange {
                start: Bytes::from_static(b"a"),
                end: None,
            }),
            members: vec![Member {
                replica: ReplicaId(1),
                store: StoreId(9),
            }],
            next_replica: ReplicaId(2),
            epoch: Epoch {
                membership: 3,
                range: 4,
            },
            border: 0,
            frozen: None,
        }
    }

    #[test]
    fn golden_bytes_of_a_descriptor() {
        let golden: &[u8] = b"\x01\0\0\0\0\0\0\0\x07\x01\0\0\0\x01a\
            \0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x09\
            \0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x04";
        assert_eq!(&descriptor().encode()[..], golden);
        assert_eq!(GroupDescriptor::decode(golden), Ok(descriptor()));
    }

    #[test]
    fn golden_bytes_of_a_frozen_descriptor() {
        let frozen = GroupDescriptor {
            border: 4,
            frozen: Some(Frozen {
                into: GroupId(5),
                target: Epoch {
                    membership: 6,
                    range: 7,
                },
                at: EntryId::new(8, 9),
            }),
            ..descriptor()
        };
        let mut golden = descriptor().encode().to_vec();
        golden[0] = 2;
        golden.extend(4u64.to_be_bytes());
        golden.push(1);
        for word in 5u64..=9 {
            golden.extend(word.to_be_bytes());
        }
        assert_eq!(&frozen.encode()[..], golden);
        assert_eq!(GroupDescriptor::decode(&golden), Ok(frozen));
        let mut needless = descriptor().encode().to_vec();
        needless[0] = 2;
        needless.extend([0; 9]);
        assert!(GroupDescriptor::decode(&needless).is_err());
    }

    #[test]
    fn golden_bytes_of_range_commands() {
        let expected = Epoch {
            membership: 1,
            range: 2,
        };
        let head = |kind| [&[1, kind][..], &1u64.to_be_bytes(), &2u64.to_be_bytes()].concat();
        let pieces = vec![SplitPiece {
            start: Bytes::from_static(b"k"),
            group: GroupId(3),
        }];
        let (into, target) = (GroupId(3), expected);
        let right = descriptor();
        let golden: [(RangeCommand, Vec<u8>); 6] = [
            (
                RangeCommand::Split { expected, pieces },
                [&head(1)[..], b"\0\0\0\x01\0\0\0\0\0\0\0\x03\0\0\0\x01k"].concat(),
            ),
            (
                RangeCommand::Freeze {
                    expected,
                    into,
                    target,
                },
                [&head(2)[..], &3u64.to_be_bytes(), &head(0)[2..]].concat(),
            ),
            (RangeCommand::Thaw { expected }, head(3)),
            (RangeCommand::Fence { expected }, head(4)),
            (
                RangeCommand::Inspect { expected, id: 9 },
                [&head(6)[..], &[0, 0, 0, 0, 0, 0, 0, 9]].concat(),
            ),
            (
                RangeCommand::Merge {
                    expected,
                    right: right.clone(),
                },
                [&head(5)[..], &right.encode()].concat(),
            ),
        ];
        for (command, bytes) in golden {
            assert_eq!(&command.encode()[..], bytes, "{command:?}");
            assert_eq!(RangeCommand::decode(&bytes), Ok(command));
            for cut in 0..bytes.len() {
                assert!(RangeCommand::decode(&bytes[..cut]).is_err(), "{cut}");
            }
        }
    }

    #[test]
    fn a_flag_is_yes_or_no() {
        let mut bytes = AppliedState::default().encode().to_vec();
        let flag = bytes.len() - AppliedState::default().descriptor.encode().len() - 1;
        bytes[flag] = 1;
        let state = AppliedState::decode(&bytes).expect("it is set");
        assert!(state.conf_state.auto_leave);
        bytes[flag] = 2;
        assert!(AppliedState::decode(&bytes).is_err());
    }

    #[test]
    fn applied_state_round_trips_and_refuses_every_prefix() {
        let state = AppliedState {
            last: EntryId::new(5, 6),
            conf_state: Arc::new(ConfState {
                voters: vec![ReplicaId(1)],
                learners: vec![ReplicaId(2)],
                ..ConfState::default()
            }),
            descriptor: Arc::new(descriptor()),
        };
        let bytes = state.encode();
        assert_eq!(AppliedState::decode(&bytes), Ok(state));
        for cut in 0..bytes.len() {
            assert!(AppliedState::decode(&bytes[..cut]).is_err(), "{cut}");
        }
    }
}
