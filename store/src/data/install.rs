//! The installation of a staged snapshot: several writes, which a marker makes one.
//!
//! The marker is there from before the first removal until the last write, which makes the new state known.
//! A start that finds it repeats the installation from its beginning, so that a crash in between is of
//! no importance; nobody else reads the group's data while it is there.
//!
//! ```text
//! marker: version u8 = 1 | token u64 | groups u32 | group u64 * (those that the snapshot subsumes)
//! before: token u64
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};
use polyraft_core::planted;
use polyraft_multiraft::env::{StagedSnapshot, StateMachineError};
use polyraft_multiraft::{AppliedState, GroupDescriptor, GroupId, KeyRange};

use super::application::Application;
use super::snapshot::{damaged, decode, translate};
use super::staging::{self, Staged, staged_chunk};
use super::state::put_state;
use super::sweep::{self, Past};
use super::{DataStateMachine, ranges};
use crate::disk::{Batch, Cf, Change, Disk, Durability};
use crate::keys::{self, Local};

const VERSION: u8 = 1;

/// A snapshot that is being installed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Marker {
    /// Under which it is staged.
    token: u64,
    /// Groups whose keys it contains.
    subsumes: Vec<GroupId>,
}

impl Marker {
    fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(13 + 8 * self.subsumes.len());
        out.put_u8(VERSION);
        out.put_u64(self.token);
        out.put_u32(u32::try_from(self.subsumes.len()).expect("fewer groups than that"));
        for group in &self.subsumes {
            out.put_u64(group.0);
        }
        out.freeze()
    }

    fn decode(mut bytes: Bytes) -> Option<Self> {
        if bytes.len() == 8 {
            let token = bytes.get_u64();
            let subsumes = Vec::new();
            return Some(Self { token, subsumes });
        }
        if bytes.try_get_u8().ok()? != VERSION {
            return None;
        }
        let token = bytes.try_get_u64().ok()?;
        let groups = usize::try_from(bytes.try_get_u32().ok()?).ok()?;
        if bytes.len() != groups.checked_mul(8)? {
            return None;
        }
        let subsumes = (0..groups).map(|_| GroupId(bytes.get_u64())).collect();
        Some(Self { token, subsumes })
    }
}

impl<A: Application, D: Disk + Clone> DataStateMachine<A, D> {
    /// Installs a staged snapshot.
    pub(super) fn begin_install(&self, staged: &StagedSnapshot) -> Result<(), StateMachineError> {
        self.settle_ranges()?;
        let group = staged.state.descriptor.group;
        let subsumes = staged.subsumes.iter().map(|right| right.group).collect();
        let marker = Marker {
            token: staged.token,
            subsumes,
        };
        let key = keys::local(group, Local::Installing, b"");
        let batch = vec![(Cf::Data, Change::Put(key, marker.encode()))];
        self.disk
            .write(batch, Durability::Synced)
            .map_err(translate)?;
        self.install(group, &marker)
    }

    /// Finishes the installation in which a crash found the group, if any.
    pub(super) fn finish_install(&self, group: GroupId) -> Result<(), StateMachineError> {
        let key = keys::local(group, Local::Installing, b"");
        let Some(marker) = self.disk.get(Cf::Data, &key).map_err(translate)? else {
            return Ok(());
        };
        let Some(marker) = Marker::decode(marker) else {
            let what = "the marker of an installation is malformed or of an unknown version";
            return Err(damaged(group, what));
        };
        tracing::info!(%group, "finishing the installation of a snapshot");
        self.install(group, &marker)
    }

    /// Removes whatever is staged; nobody waits for it.
    pub(super) fn remove_leftovers(&self) -> Result<(), StateMachineError> {
        for token in staging::tokens(&self.disk).map_err(translate)? {
            staging::remove_leftover(&self.disk, token).map_err(translate)?;
            self.above_token(token);
        }
        Ok(())
    }

    /// Replaces the group's data by what is staged. Can be repeated from the start at any moment until
    /// the last batch, which makes the new state known and removes the marker.
    fn install(&self, group: GroupId, marker: &Marker) -> Result<(), StateMachineError> {
        let token = marker.token;
        let Some(staged) = Staged::load(&self.disk, token).map_err(translate)? else {
            return Err(StateMachineError::Fatal(format!(
                "staged snapshot {token} is not there"
            )));
        };
        let state = &staged.state;
        if state.descriptor.group != group {
            return Err(damaged(group, "what is staged is of another group"));
        }
        let mut batch = self.removals(&staged, &marker.subsumes)?;
        if planted!(RestoreKeepsOldKeys) {
            batch.clear();
        }
        self.disk
            .write(batch, Durability::Buffered)
            .map_err(translate)?;
        if staged.files > 0 {
            let ids = staged.ids(&self.disk, token).map_err(translate)?;
            let ids = ids.ok_or_else(|| damaged(group, "a file of a snapshot is gone"))?;
            self.disk.ingest(Cf::Data, &ids).map_err(translate)?;
        }
        for chunk in 0..staged.chunks {
            self.install_chunk(token, chunk.into(), &state.descriptor)?;
        }
        let mut batch = Batch::new();
        put_state(state, true, &mut batch);
        batch.push((
            Cf::Data,
            Change::Delete(keys::local(group, Local::Installing, b"")),
        ));
        batch.extend(marker.subsumes.iter().map(|right| ranges::merged(*right)));
        batch.extend(staged.removal(token));
        self.disk
            .write(batch, Durability::Synced)
            .map_err(translate)?;
        if staged.files > 0 {
            staging::forget_files(&self.disk, token);
        }
        Ok(())
    }

    fn install_chunk(
        &self,
        token: u64,
        chunk: u64,
        descriptor: &GroupDescriptor,
    ) -> Result<(), StateMachineError> {
        let group = descriptor.group;
        let found = self
            .disk
            .get(Cf::Meta, &staged_chunk(token, chunk))
            .map_err(translate)?;
        let Some(bytes) = found else {
            return Err(damaged(
                group,
                format!("chunk {chunk} of a snapshot is gone"),
            ));
        };
        let mut batch = Batch::new();
        decode(&bytes, descriptor, &mut batch)
            .map_err(|why| damaged(group, format!("chunk {chunk} of a snapshot: {why}")))?;
        self.disk
            .write(batch, Durability::Buffered)
            .map_err(translate)
    }

    /// Everything that must be gone before the new data comes, but the marker.
    fn removals(&self, staged: &Staged, subsumes: &[GroupId]) -> Result<Batch, StateMachineError> {
        let (state, mut batch) = (&staged.state, Batch::new());
        let group = state.descriptor.group;
        let after = &state.descriptor.range;
        // Files replace what is in the range of the snapshot, and nothing else.
        let replaced = |before: &AppliedState| {
            let range = &before.descriptor.range;
            staged.files > 0 && within(range.as_ref(), after.as_ref())
        };
        let before = self.load(group)?;
        let keys = before.as_ref().filter(|before| !replaced(before));
        self.remove_group(group, keys, &mut batch)?;
        let same = before.is_some_and(|before| before.descriptor.range == *after);
        if staged.files == 0 && !same {
            // What nobody has had is as it looks.
            sweep::remove_keys(&self.disk, &state.descriptor, Past::Seen, &mut batch)
                .map_err(translate)?;
        }
        for right in subsumes {
            let before = self.load(*right)?;
            let keys = before.as_ref().filter(|before| !replaced(before));
            self.remove_group(*right, keys, &mut batch)?;
            batch.push((
                Cf::Data,
                Change::Delete(keys::local(*right, Local::Installing, b"")),
            ));
        }
        Ok(batch)
    }

    /// Removes everything of a group that is there, or of one that is not quite, but the marker of an
    /// installation. Without a state its keys stay.
    pub(super) fn remove_group(
        &self,
        group: GroupId,
        state: Option<&AppliedState>,
        batch: &mut Batch,
    ) -> Result<(), StateMachineError> {
        let past = self.unflushed.past();
        if let Some(state) = state {
            sweep::remove_keys(&self.disk, &state.descriptor, past, batch).map_err(translate)?;
        }
        sweep::remove_local(&self.disk, group, past, batch).map_err(translate)?;
        for kind in [Local::Applied, Local::Membership] {
            batch.push((Cf::Data, Change::Delete(keys::local(group, kind, b""))));
        }
        Ok(())
    }
}

/// Whether all keys of a range lie in another one.
fn within(range: Option<&KeyRange>, whole: Option<&KeyRange>) -> bool {
    let (Some(range), Some(whole)) = (range, whole) else {
        return false;
    };
    let ends = match (&range.end, &whole.end) {
        (_, None) => true,
        (None, Some(_)) => false,
        (Some(end), Some(last)) => end <= last,
    };
    whole.start <= range.start && ends
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let marker = Marker {
            token: 258,
            subsumes: vec![GroupId(3), GroupId(4)],
        };
        let golden: &[u8] =
            b"\x01\0\0\0\0\0\0\x01\x02\0\0\0\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x04";
        assert_eq!(marker.encode(), golden);
        assert_eq!(Marker::decode(marker.encode()), Some(marker));
        let old = Bytes::from_static(b"\0\0\0\0\0\0\x01\x02");
        let marker = Marker {
            token: 258,
            subsumes: Vec::new(),
        };
        assert_eq!(Marker::decode(old), Some(marker.clone()));
        assert_eq!(Marker::decode(marker.encode()), Some(marker));
        for length in (0..golden.len()).filter(|length| *length != 8) {
            assert_eq!(Marker::decode(Bytes::from_static(&golden[..length])), None);
        }
        let mut version = golden.to_vec();
        version[0] = 2;
        assert_eq!(Marker::decode(version.into()), None);
    }
}
