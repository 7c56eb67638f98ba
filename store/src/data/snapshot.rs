//! Snapshots of a group's data: read from a consistent view, staged, installed.
//!
//! A chunk is `version u8 = 1 | (space u8 | key length u32 | key | value length u32 | value) * |
//! crc32`, where space 1 is the user's keys, 2 what the application keeps beside them and 3 the
//! sessions of clients. A chunk stands for itself: damage is found in the chunk that has it.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use polyraft_multiraft::env::{SnapshotSink, SnapshotSource, StagedSnapshot, StateMachineError};
use polyraft_multiraft::{AppliedState, GroupDescriptor, GroupId};

use super::txn::user_bounds;
use crate::disk::{Batch, Cf, Change, Disk, DiskError, Durability, View};
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
        let mut out = BytesMut::new();
        out.put_u8(VERSION);
        while out.len() < max_bytes {
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
                if out.len() >= max_bytes {
                    read_all = false;
                    break;
                }
                put_pair(&mut out, *space, &key[*prefix..], &value);
                *start = keys::after(&key);
            }
            if read_all && !full {
                self.spaces.pop();
            }
        }
        if out.len() == 1 {
            return Ok(None);
        }
        let checksum = crc32fast::hash(&out);
        out.put_u32(checksum);
        Ok(Some(out.freeze()))
    }
}

fn put_pair(out: &mut BytesMut, space: u8, key: &[u8], value: &[u8]) {
    out.put_u8(space);
    out.put_u32(u32::try_from(key.len()).expect("keys are bounded"));
    out.put_slice(key);
    out.put_u32(u32::try_from(value.len()).expect("values are bounded"));
    out.put_slice(value);
}

/// The changes that a chunk makes to the data of its group.
pub(super) fn decode(
    chunk: &Bytes,
    descriptor: &GroupDescriptor,
    batch: &mut Batch,
) -> Result<(), &'static str> {
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
    while at.has_remaining() {
        let space = at.get_u8();
        let (key, value) = (take(&mut at)?, take(&mut at)?);
        let key = match (space, &descriptor.range) {
            (SESSION, _) => keys::local(descriptor.group, Local::Session, &key),
            (APPLICATION, _) => keys::local(descriptor.group, Local::Application, &key),
            (USER, None) => keys::local(descriptor.group, Local::Private, &key),
            (USER, Some(range)) if range.contains(&key) => keys::user(&key),
            (USER, Some(_)) => return Err("a key outside of the range"),
            _ => return Err("unknown key space"),
        };
        batch.push((Cf::Data, Change::Put(key, value)));
    }
    Ok(())
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

/// Receives chunks into the column family `meta`, where they wait under a token.
pub(super) struct Sink<D: Disk> {
    pub(super) disk: D,
    pub(super) token: u64,
    pub(super) state: AppliedState,
    pub(super) chunks: u64,
    pub(super) bytes: u64,
    pub(super) finished: bool,
}

impl<D: Disk> SnapshotSink for Sink<D> {
    fn write(&mut self, chunk: Bytes) -> Result<(), StateMachineError> {
        let group = self.state.descriptor.group;
        // Refused now rather than when the old data is gone.
        decode(&chunk, &self.state.descriptor, &mut Batch::new()).map_err(|why| {
            StateMachineError::Group {
                group,
                reason: format!("chunk: {why}"),
            }
        })?;
        self.bytes += chunk.len() as u64;
        let key = staged_chunk(self.token, self.chunks);
        self.chunks += 1;
        let change = vec![(Cf::Meta, Change::Put(key, chunk))];
        self.disk
            .write(change, Durability::Buffered)
            .map_err(translate)
    }

    fn finish(mut self: Box<Self>) -> Result<StagedSnapshot, StateMachineError> {
        let mut value = BytesMut::new();
        value.put_u64(self.chunks);
        value.put_slice(&self.state.encode());
        let key = staged_chunk(self.token, u64::MAX);
        let change = vec![(Cf::Meta, Change::Put(key, value.freeze()))];
        self.disk
            .write(change, Durability::Synced)
            .map_err(translate)?;
        self.finished = true;
        let (token, state, bytes) = (self.token, self.state.clone(), self.bytes);
        Ok(StagedSnapshot {
            token,
            state,
            bytes,
            subsumes: Vec::new(),
        })
    }
}

impl<D: Disk> Drop for Sink<D> {
    fn drop(&mut self) {
        if self.finished || self.chunks == 0 {
            return;
        }
        // Else transfers that break off again and again fill the disk until the next start.
        let batch = vec![remove_staged(self.token)];
        if let Err(error) = self.disk.write(batch, Durability::Buffered) {
            tracing::warn!(token = self.token, %error, "cannot remove an unfinished snapshot");
        }
    }
}

const STAGED: &[u8] = b"staged/";
/// Past every key that begins with it.
const STAGED_END: &[u8] = b"staged0";

/// The key of a chunk; the last possible one holds the number of chunks and the state.
pub(super) fn staged_chunk(token: u64, chunk: u64) -> Bytes {
    let mut key = BytesMut::from(STAGED);
    key.put_u64(token);
    key.put_u64(chunk);
    key.freeze()
}

/// Everything under a token goes.
pub(super) fn remove_staged(token: u64) -> (Cf, Change) {
    let after = token.checked_add(1);
    let end = after.map_or(Bytes::from_static(STAGED_END), |after| {
        staged_chunk(after, 0)
    });
    (Cf::Meta, Change::DeleteRange(staged_chunk(token, 0), end))
}

/// The tokens of everything that is staged.
pub(super) fn staged_tokens(disk: &impl Disk) -> Result<Vec<u64>, DiskError> {
    let (mut tokens, mut start) = (Vec::new(), staged_chunk(0, 0));
    while let Some((key, _)) = disk.scan(Cf::Meta, &start, Some(STAGED_END), 1)?.pop() {
        let Some(token) = key
            .get(STAGED.len()..)
            .and_then(|rest| rest.first_chunk::<8>())
        else {
            return Err(DiskError::Corrupt(
                "a staged snapshot has a malformed key".to_owned(),
            ));
        };
        let token = u64::from_be_bytes(*token);
        tokens.push(token);
        let Some(after) = token.checked_add(1) else {
            break;
        };
        start = staged_chunk(after, 0);
    }
    Ok(tokens)
}

/// What is staged under a token: the number of chunks and the state; none if it is not complete.
pub(super) fn staged_state(
    disk: &impl Disk,
    token: u64,
) -> Result<Option<(u64, AppliedState)>, DiskError> {
    let Some(mut value) = disk.get(Cf::Meta, &staged_chunk(token, u64::MAX))? else {
        return Ok(None);
    };
    if value.len() < 8 {
        return Err(DiskError::Corrupt(
            "a staged snapshot is cut short".to_owned(),
        ));
    }
    let chunks = value.get_u64();
    let state = AppliedState::decode(&value)
        .map_err(|error| DiskError::Corrupt(format!("a staged snapshot: {error}")))?;
    Ok(Some((chunks, state)))
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
