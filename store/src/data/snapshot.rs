//! Snapshots of a group's data: read from a consistent view, in chunks.
//!
//! A chunk is `version u8 = 1 | (space u8 | key length u32 | key | value length u32 | value) * |
//! crc32`, where space 1 is the user's keys, 2 what the application keeps beside them and 3 the
//! sessions of clients. A chunk stands for itself: damage is found in the chunk that has it.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use polyraft_multiraft::env::{SnapshotSource, StateMachineError};
use polyraft_multiraft::{AppliedState, GroupDescriptor, GroupId};

use super::txn::user_bounds;
use crate::disk::{Batch, Cf, Change, DiskError, View};
use crate::keys::{self, Local};

const VERSION: u8 = 1;
const USER: u8 = 1;
const APPLICATION: u8 = 2;
const SESSION: u8 = 3;
/// Pairs read from the view at once.
const PAGE: usize = 256;

/// See the module.
pub(super) struct Source {
    view: Box<dyn View>,
    state: AppliedState,
    /// The spaces still to be read: tag, where to go on, end, bytes of a key that are not its own.
    spaces: Vec<(u8, Bytes, Bytes, usize)>,
}

impl Source {
    pub(super) fn new(view: Box<dyn View>, state: AppliedState) -> Self {
        let group = state.descriptor.group;
        let (start, end, prefix) = user_bounds(&state.descriptor);
        let local = |space, kind| {
            let first = keys::local(group, kind, b"");
            let prefix = first.len();
            (space, first, keys::local_end(group, kind), prefix)
        };
        let spaces = vec![
            local(SESSION, Local::Session),
            local(APPLICATION, Local::Application),
            (USER, start, end, prefix),
        ];
        Self {
            view,
            state,
            spaces,
        }
    }
}

impl SnapshotSource for Source {
    fn state(&self) -> &AppliedState {
        &self.state
    }

    fn next_chunk(&mut self, max_bytes: usize) -> Result<Option<Bytes>, StateMachineError> {
        let mut chunk = Chunk::default();
        while chunk.len() < max_bytes {
            let Some((space, start, end, prefix)) = self.spaces.last_mut() else {
                break;
            };
            let page = self
                .view
                .scan(Cf::Data, start, Some(end), PAGE)
                .map_err(translate)?;
            let full = page.len() == PAGE;
            let mut read_all = true;
            for (key, value) in page {
                if chunk.len() >= max_bytes {
                    read_all = false;
                    break;
                }
                chunk.put_pair(*space, &key[*prefix..], &value);
                *start = keys::after(&key);
            }
            if read_all && !full {
                self.spaces.pop();
            }
        }
        Ok(chunk.finish())
    }
}

/// A chunk that is being written.
#[derive(Debug, Default)]
pub(super) struct Chunk(BytesMut);

impl Chunk {
    fn len(&self) -> usize {
        self.0.len().max(1)
    }

    pub(super) fn put(&mut self, item: &Item) {
        self.put_pair(item.space, &item.name, &item.value);
    }

    fn put_pair(&mut self, space: u8, name: &[u8], value: &[u8]) {
        let out = &mut self.0;
        if out.is_empty() {
            out.put_u8(VERSION);
        }
        out.put_u8(space);
        out.put_u32(u32::try_from(name.len()).expect("keys are bounded"));
        out.put_slice(name);
        out.put_u32(u32::try_from(value.len()).expect("values are bounded"));
        out.put_slice(value);
    }

    /// None if nothing is in it.
    pub(super) fn finish(mut self) -> Option<Bytes> {
        if self.0.is_empty() {
            return None;
        }
        let checksum = crc32fast::hash(&self.0);
        self.0.put_u32(checksum);
        Some(self.0.freeze())
    }
}

/// A pair in a chunk.
#[derive(Debug)]
pub(super) struct Item {
    space: u8,
    /// Its key as it is in the chunk.
    name: Bytes,
    /// Where it stands in the column family.
    pub(super) key: Bytes,
    pub(super) value: Bytes,
}

impl Item {
    /// Whether it is one of the user's keys.
    pub(super) const fn is_user(&self) -> bool {
        self.space == USER
    }
}

/// The changes that a chunk makes to the data of its group.
pub(super) fn decode(
    chunk: &Bytes,
    descriptor: &GroupDescriptor,
    batch: &mut Batch,
) -> Result<(), &'static str> {
    let puts = items(chunk, descriptor)?.into_iter();
    batch.extend(puts.map(|item| (Cf::Data, Change::Put(item.key, item.value))));
    Ok(())
}

/// The pairs in a chunk.
pub(super) fn items(
    chunk: &Bytes,
    descriptor: &GroupDescriptor,
) -> Result<Vec<Item>, &'static str> {
    let Some((body, checksum)) = chunk.split_last_chunk::<4>() else {
        return Err("cut short");
    };
    if crc32fast::hash(body).to_be_bytes() != *checksum {
        return Err("checksum does not match");
    }
    let mut at = chunk.slice(..body.len());
    if !at.has_remaining() || at.get_u8() != VERSION {
        return Err("unknown version");
    }
    let mut items = Vec::new();
    while at.has_remaining() {
        let space = at.get_u8();
        let (name, value) = (take(&mut at)?, take(&mut at)?);
        let key = match (space, &descriptor.range) {
            (SESSION, _) => keys::local(descriptor.group, Local::Session, &name),
            (APPLICATION, _) => keys::local(descriptor.group, Local::Application, &name),
            (USER, None) => keys::local(descriptor.group, Local::Private, &name),
            (USER, Some(range)) if range.contains(&name) => keys::user(&name),
            (USER, Some(_)) => return Err("a key outside of the range"),
            _ => return Err("unknown key space"),
        };
        items.push(Item {
            space,
            name,
            key,
            value,
        });
    }
    Ok(items)
}

fn take(at: &mut Bytes) -> Result<Bytes, &'static str> {
    if at.remaining() < 4 {
        return Err("cut short");
    }
    let len = at.get_u32() as usize;
    if at.remaining() < len {
        Err("cut short")
    } else {
        Ok(at.split_to(len))
    }
}

pub(super) fn translate(error: DiskError) -> StateMachineError {
    match error {
        DiskError::Full => StateMachineError::DiskFull,
        DiskError::Fatal(text) | DiskError::Corrupt(text) => StateMachineError::Fatal(text),
    }
}

/// A group's data is damaged.
pub(super) fn damaged(group: GroupId, reason: impl Into<String>) -> StateMachineError {
    StateMachineError::Group {
        group,
        reason: reason.into(),
    }
}
