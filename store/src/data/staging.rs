//! Snapshots on their way in: what has come of one waits under a token until it is installed.
//!
//! A small one waits as it came, in chunks in the column family `meta`. Of a large one the user's keys go
//! into files ([`bulk`](crate::bulk)), which become part of the data all at once and replace whatever was
//! in the range; only the rest waits in chunks.
//!
//! ```text
//! staged/, token u64, chunk u64:    a chunk
//! staged/, token u64, u64::MAX:     files u32 | chunks u32 | state (written last)
//! ```
//!
//! The files have the token as their set, and count from 0. Before there were any, the count of chunks was a
//! u64, which is the same if there are none.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use polyraft_core::planted;
use polyraft_multiraft::AppliedState;
use polyraft_multiraft::env::{SnapshotSink, StagedSnapshot, StateMachineError};

use super::snapshot::{Chunk, Item, damaged, items, translate};
use super::txn::user_bounds;
use crate::bulk::{BulkId, BulkWriter};
use crate::disk::{Batch, Cf, Change, Disk, DiskError, Durability};
use crate::keys;

/// How snapshots wait.
#[derive(Clone, Copy, Debug)]
pub struct SnapshotOptions {
    /// Bytes up to which a snapshot waits in chunks. It is in memory while it comes.
    pub small_bytes_max: usize,
    /// Bytes of the user's pairs after which the next file is begun.
    pub file_bytes: usize,
}

impl Default for SnapshotOptions {
    /// Files cost some syncs more than they save writing until they hold a few megabytes
    /// (`examples/snapshots.rs` measures it), and leave the engine with as many of its own; but their
    /// bytes are written once, those of chunks some four times.
    fn default() -> Self {
        Self {
            small_bytes_max: 1 << 20,
            file_bytes: 64 << 20,
        }
    }
}

/// Receives the chunks of one snapshot.
pub(super) struct Sink<D: Disk> {
    disk: D,
    options: SnapshotOptions,
    token: u64,
    state: AppliedState,
    /// Chunks that came, while they are few.
    held: Vec<Bytes>,
    held_bytes: usize,
    /// None: the snapshot is small so far, or something failed.
    files: Option<Files>,
    /// Files that are there, or were to be.
    begun: u32,
    /// Written to the column family `meta`.
    chunks: u32,
    bytes: u64,
    finished: bool,
}

/// The files of a large snapshot.
struct Files {
    writer: Box<dyn BulkWriter>,
    /// Bytes in the one that is being written.
    written: usize,
    /// Where its part of the range begins.
    from: Bytes,
    /// The last key.
    last: Option<Bytes>,
}

impl<D: Disk> Sink<D> {
    pub(super) const fn new(
        disk: D,
        options: SnapshotOptions,
        token: u64,
        state: AppliedState,
    ) -> Self {
        Self {
            disk,
            options,
            token,
            state,
            held: Vec::new(),
            held_bytes: 0,
            files: None,
            begun: 0,
            chunks: 0,
            bytes: 0,
            finished: false,
        }
    }

    fn refused(&self, why: &str) -> StateMachineError {
        damaged(self.state.descriptor.group, format!("chunk: {why}"))
    }

    /// What is in a chunk goes where it waits.
    fn take(&mut self, items: Vec<Item>) -> Result<(), StateMachineError> {
        let mut rest = Chunk::default();
        for item in items {
            match item.is_user() {
                true => self.put(&item)?,
                false => rest.put(&item),
            }
        }
        let Some(chunk) = rest.finish() else {
            return Ok(());
        };
        let change = vec![self.put_chunk(chunk)];
        self.disk
            .write(change, Durability::Buffered)
            .map_err(translate)
    }

    fn put_chunk(&mut self, chunk: Bytes) -> (Cf, Change) {
        let key = staged_chunk(self.token, self.chunks.into());
        self.chunks += 1;
        (Cf::Meta, Change::Put(key, chunk))
    }

    fn put(&mut self, item: &Item) -> Result<(), StateMachineError> {
        let Some(mut files) = self.files.take() else {
            return Err(self.refused("an earlier one failed"));
        };
        if files.last.as_ref().is_some_and(|last| *last >= item.key) {
            return Err(self.refused("the keys do not ascend"));
        }
        if files.written >= self.options.file_bytes {
            close(files, &item.key)?;
            files = self.begin(item.key.clone())?;
        }
        files
            .writer
            .put(&item.key, &item.value)
            .map_err(translate)?;
        files.written += item.key.len() + item.value.len();
        files.last = Some(item.key.clone());
        self.files = Some(files);
        Ok(())
    }

    /// The next file, from a key on.
    fn begin(&mut self, from: Bytes) -> Result<Files, StateMachineError> {
        let id = BulkId {
            set: self.token,
            number: self.begun,
        };
        self.begun += 1;
        let writer = self.disk.begin_bulk(Cf::Data, id).map_err(translate)?;
        Ok(Files {
            writer,
            written: 0,
            from,
            last: None,
        })
    }
}

/// All of the file's part of the range is in it, up to `end`.
fn close(mut files: Files, end: &Bytes) -> Result<(), StateMachineError> {
    let only = keys::after(&files.from);
    let end = match planted!(RestoreKeepsOldKeys) {
        true => &only,
        false => end,
    };
    files
        .writer
        .remove_range(&files.from, end)
        .map_err(translate)?;
    files.writer.finish().map_err(translate)
}

impl<D: Disk> SnapshotSink for Sink<D> {
    fn write(&mut self, chunk: Bytes) -> Result<(), StateMachineError> {
        // Refused now rather than when the old data is gone.
        let items = items(&chunk, &self.state.descriptor).map_err(|why| self.refused(why))?;
        self.bytes += chunk.len() as u64;
        if self.begun > 0 {
            return self.take(items);
        }
        self.held_bytes += chunk.len();
        self.held.push(chunk);
        if self.held_bytes <= self.options.small_bytes_max {
            return Ok(());
        }
        let (start, _, _) = user_bounds(&self.state.descriptor);
        self.files = Some(self.begin(start)?);
        for chunk in std::mem::take(&mut self.held) {
            let again = super::snapshot::items(&chunk, &self.state.descriptor);
            self.take(again.map_err(|why| self.refused(why))?)?;
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<StagedSnapshot, StateMachineError> {
        let mut batch = Batch::new();
        for chunk in std::mem::take(&mut self.held) {
            batch.push(self.put_chunk(chunk));
        }
        let staged = Staged {
            files: self.begun,
            chunks: self.chunks,
            state: self.state.clone(),
        };
        if self.begun > 0 {
            let Some(files) = self.files.take() else {
                return Err(self.refused("an earlier one failed"));
            };
            let (_, end, _) = user_bounds(&self.state.descriptor);
            close(files, &end)?;
        }
        let key = staged_chunk(self.token, u64::MAX);
        batch.push((Cf::Meta, Change::Put(key, staged.encode())));
        self.disk
            .write(batch, Durability::Synced)
            .map_err(translate)?;
        self.finished = true;
        Ok(StagedSnapshot {
            token: self.token,
            state: staged.state,
            bytes: self.bytes,
            subsumes: Vec::new(),
        })
    }
}

impl<D: Disk> Drop for Sink<D> {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        // Else transfers that break off again and again fill the disk until the next start.
        self.files = None;
        if self.chunks > 0 {
            let staged = Staged {
                files: self.begun,
                chunks: self.chunks,
                state: self.state.clone(),
            };
            staged.remove_chunks(&self.disk, self.token);
        }
        if self.begun > 0 {
            forget_files(&self.disk, self.token);
        }
    }
}

/// Removes whatever is staged under a token, or was to be.
pub(super) fn remove_leftover(disk: &impl Disk, token: u64) -> Result<(), DiskError> {
    disk.write(vec![remove_all(token)], Durability::Buffered)?;
    remove_files(disk, token)
}

fn remove_files(disk: &impl Disk, token: u64) -> Result<(), DiskError> {
    let mut ids = files(disk, token)?.into_iter();
    ids.try_for_each(|id| disk.remove_bulk(id))
}

/// Removes the files of a token. What cannot be removed now is at the next start.
pub(super) fn forget_files(disk: &impl Disk, token: u64) {
    if let Err(error) = remove_files(disk, token) {
        tracing::warn!(token, %error, "cannot remove the files of a staged snapshot");
    }
}

/// The files of a token, in the order of their keys.
fn files(disk: &impl Disk, token: u64) -> Result<Vec<BulkId>, DiskError> {
    let ids = disk.bulks()?.into_iter();
    Ok(ids.filter(|id| id.set == token).collect())
}

/// The tokens of everything that is staged, or was to be.
pub(super) fn tokens(disk: &impl Disk) -> Result<Vec<u64>, DiskError> {
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
    tokens.extend(disk.bulks()?.into_iter().map(|id| id.set));
    tokens.sort_unstable();
    tokens.dedup();
    Ok(tokens)
}

/// Chunks that are removed one by one.
const POINTS_MAX: u32 = 32;
const STAGED: &[u8] = b"staged/";
/// Past every key that begins with it.
const STAGED_END: &[u8] = b"staged0";

/// The key of a chunk; the last possible one holds what is staged.
pub(super) fn staged_chunk(token: u64, chunk: u64) -> Bytes {
    let mut key = BytesMut::from(STAGED);
    key.put_u64(token);
    key.put_u64(chunk);
    key.freeze()
}

/// Everything under a token goes, but its files.
fn remove_all(token: u64) -> (Cf, Change) {
    let after = token.checked_add(1);
    let end = after.map_or(Bytes::from_static(STAGED_END), |after| {
        staged_chunk(after, 0)
    });
    (Cf::Meta, Change::DeleteRange(staged_chunk(token, 0), end))
}

/// A snapshot that has come as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Staged {
    pub(super) files: u32,
    pub(super) chunks: u32,
    pub(super) state: AppliedState,
}

impl Staged {
    /// What is staged under a token; none if it is not complete.
    pub(super) fn load(disk: &impl Disk, token: u64) -> Result<Option<Self>, DiskError> {
        let Some(value) = disk.get(Cf::Meta, &staged_chunk(token, u64::MAX))? else {
            return Ok(None);
        };
        Self::decode(value).map(Some)
    }

    /// Its files, in the order of their keys; none if some are missing.
    pub(super) fn ids(
        &self,
        disk: &impl Disk,
        token: u64,
    ) -> Result<Option<Vec<BulkId>>, DiskError> {
        let ids = files(disk, token)?;
        let whole = ids.iter().map(|id| id.number).eq(0..self.files);
        Ok(whole.then_some(ids))
    }

    /// That removal.
    pub(super) fn removal(&self, token: u64) -> Batch {
        if self.chunks > POINTS_MAX {
            return vec![remove_all(token)];
        }
        let chunks = (0..self.chunks).map(u64::from);
        let delete = |chunk| (Cf::Meta, Change::Delete(staged_chunk(token, chunk)));
        chunks.chain([u64::MAX]).map(delete).collect()
    }

    /// Removes what waits in the column family `meta`. What cannot be removed now is at the next start.
    pub(super) fn remove_chunks(&self, disk: &impl Disk, token: u64) {
        if let Err(error) = disk.write(self.removal(token), Durability::Buffered) {
            tracing::warn!(token, %error, "cannot remove a staged snapshot");
        }
    }

    fn encode(&self) -> Bytes {
        let mut value = BytesMut::new();
        value.put_u32(self.files);
        value.put_u32(self.chunks);
        value.put_slice(&self.state.encode());
        value.freeze()
    }

    fn decode(mut value: Bytes) -> Result<Self, DiskError> {
        if value.len() < 8 {
            return Err(DiskError::Corrupt(
                "a staged snapshot is cut short".to_owned(),
            ));
        }
        let (files, chunks) = (value.get_u32(), value.get_u32());
        let state = AppliedState::decode(&value)
            .map_err(|error| DiskError::Corrupt(format!("a staged snapshot: {error}")))?;
        Ok(Self {
            files,
            chunks,
            state,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let staged = Staged {
            files: 2,
            chunks: 258,
            state: AppliedState::default(),
        };
        let bytes = staged.encode();
        assert_eq!(bytes[..8], *b"\0\0\0\x02\0\0\x01\x02");
        assert_eq!(bytes[8..], staged.state.encode());
        assert_eq!(Staged::decode(bytes), Ok(staged));
        assert_eq!(
            &staged_chunk(1, 2)[..],
            b"staged/\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02"
        );
        for length in 0..8 {
            assert!(Staged::decode(Bytes::from(vec![0; length])).is_err());
        }
    }
}
