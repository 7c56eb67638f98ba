//! The data of all groups, as a [`StateMachine`] around an application of the user's.
//!
//! What many groups apply in one turn is one batch, with the index of each group's last entry. It goes
//! past the write-ahead log: the Raft log is the log. After a crash a prefix of the turns is gone, and
//! the host applies again from the log, which it truncates only behind a [`StateMachine::flush`].
//!
//! # Why batches with and without write-ahead log may share a column family
//! 1. Turns are volatile; `create`, `restore` and `destroy` go through the write-ahead log and are synced.
//! 2. A crash may bring back a synced batch without the volatile ones before it. A created group has none
//!    before it; a destroyed or restored one starts from deleting whatever it had, so that what came
//!    before does not matter.
//! 3. It may lose the volatile ones after it. Each of them carries its group's applied index, so that what
//!    is lost is applied again.
//! 4. The engine never brings back a synced batch over newer flushed data: a flush covers everything before
//!    it, and recovery starts behind it.

mod pages;
mod reads;
pub mod sessions;
mod snapshot;
mod txn;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use polyraft_core::{EntryId, planted};
use polyraft_multiraft::env::{
    ApplyItem, Command, SnapshotSink, SnapshotSource, StagedSnapshot, StateMachine,
    StateMachineError,
};
use polyraft_multiraft::{AppliedState, GroupDescriptor, GroupId};

pub use self::pages::{Page, Room, Span, pair_bytes};
use self::snapshot::{
    Sink, Source, damaged, remove_staged, staged_chunk, staged_state, staged_tokens, translate,
};
pub use self::txn::GroupTxn;
use self::txn::user_bounds;
use crate::disk::{Batch, Cf, Change, Disk, DiskError, Durability};
use crate::keys::{self, Local};

/// What a user replicates: a deterministic function of a group's keys and a command.
pub trait Application: Send + Sync + 'static {
    /// Applies one committed command; the bytes returned go to whoever proposed it. Must depend on
    /// nothing but the transaction and the command.
    ///
    /// # Errors
    /// Only what the transaction returned: it stops the store. What is wrong with a command is said
    /// in the reply.
    fn apply(&self, txn: &mut GroupTxn<'_>, command: &Command) -> Result<Bytes, DiskError>;
}

/// See the module.
#[derive(Debug)]
pub struct DataStateMachine<A, D> {
    application: A,
    disk: D,
    next_token: AtomicU64,
}

impl<A: Application, D: Disk + Clone> DataStateMachine<A, D> {
    /// A state machine on `disk`.
    pub fn new(application: A, disk: D) -> Self {
        Self {
            application,
            disk,
            next_token: AtomicU64::new(1),
        }
    }

    fn load(&self, group: GroupId) -> Result<Option<AppliedState>, StateMachineError> {
        let get = |kind| self.disk.get(Cf::Data, &keys::local(group, kind, b""));
        read_state(group, get)
    }

    /// Removes everything of a group but the marker of an installation.
    fn clear(descriptor: &GroupDescriptor, batch: &mut Batch) {
        let group = descriptor.group;
        for kind in [Local::Applied, Local::Membership] {
            batch.push((Cf::Data, Change::Delete(keys::local(group, kind, b""))));
        }
        let (start, end, _) = user_bounds(descriptor);
        batch.push((Cf::Data, Change::DeleteRange(start, end)));
        // What the application and the sessions keep, and the keys of a group without a range: one
        // after the other.
        let (start, end) = (
            keys::local(group, Local::Application, b""),
            keys::local_end(group, Local::Session),
        );
        batch.push((Cf::Data, Change::DeleteRange(start, end)));
    }

    /// Replaces the group's data by what is staged under `token`. Can be repeated from the start at
    /// any moment until the last batch, which makes the new state known and removes the marker.
    fn install(&self, token: u64) -> Result<AppliedState, StateMachineError> {
        let Some((chunks, state)) = staged_state(&self.disk, token).map_err(translate)? else {
            return Err(StateMachineError::Fatal(format!(
                "staged snapshot {token} is not there"
            )));
        };
        let group = state.descriptor.group;
        let mut batch = Batch::new();
        if let Some(before) = self.load(group)? {
            Self::clear(&before.descriptor, &mut batch);
        }
        Self::clear(&state.descriptor, &mut batch);
        if planted!(RestoreKeepsOldKeys) {
            batch.clear();
        }
        self.disk
            .write(batch, Durability::Buffered)
            .map_err(translate)?;
        for chunk in 0..chunks {
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
            snapshot::decode(&bytes, &state.descriptor, &mut batch)
                .map_err(|why| damaged(group, format!("chunk {chunk} of a snapshot: {why}")))?;
            self.disk
                .write(batch, Durability::Buffered)
                .map_err(translate)?;
        }
        let mut batch = Batch::new();
        put_state(&state, true, &mut batch);
        batch.push((
            Cf::Data,
            Change::Delete(keys::local(group, Local::Installing, b"")),
        ));
        batch.push(remove_staged(token));
        self.disk
            .write(batch, Durability::Synced)
            .map_err(translate)?;
        Ok(state)
    }

    /// The groups that have anything here, ascending.
    fn groups(&self) -> Result<Vec<GroupId>, StateMachineError> {
        let (mut groups, mut start) = (Vec::new(), keys::local(GroupId(0), Local::Applied, b""));
        let end = keys::user(b"");
        loop {
            let page = self
                .disk
                .scan(Cf::Data, &start, Some(&end), 1)
                .map_err(translate)?;
            let Some((key, _)) = page.first() else {
                return Ok(groups);
            };
            let Some((group, _)) = keys::parse_local(key) else {
                let text = "a key in the column family data is malformed".to_owned();
                return Err(StateMachineError::Fatal(text));
            };
            groups.push(group);
            if group.0 == u64::MAX {
                return Ok(groups);
            }
            start = keys::local(GroupId(group.0 + 1), Local::Applied, b"");
        }
    }
}

impl<A: Application, D: Disk + Clone> StateMachine for DataStateMachine<A, D> {
    fn recover(&self) -> Result<Vec<AppliedState>, StateMachineError> {
        let groups = self.groups()?;
        for group in &groups {
            let marker = keys::local(*group, Local::Installing, b"");
            if let Some(mut token) = self.disk.get(Cf::Data, &marker).map_err(translate)? {
                if token.len() != 8 {
                    return Err(damaged(
                        *group,
                        "the marker of an installation is malformed",
                    ));
                }
                tracing::info!(%group, "finishing the installation of a snapshot");
                self.install(token.get_u64())?;
            }
        }
        // Whatever else is staged was never offered to a replica that still waits for it.
        let mut batch = Batch::new();
        for token in staged_tokens(&self.disk).map_err(translate)? {
            batch.push(remove_staged(token));
            let after = token.saturating_add(1);
            self.next_token.fetch_max(after, Ordering::Relaxed);
        }
        if !batch.is_empty() {
            self.disk
                .write(batch, Durability::Buffered)
                .map_err(translate)?;
        }
        let mut states = Vec::new();
        for group in groups {
            states.extend(self.load(group)?);
        }
        Ok(states)
    }

    fn merged(&self) -> Result<Vec<GroupId>, StateMachineError> {
        Ok(Vec::new())
    }

    fn forget(&self, _group: GroupId) -> Result<(), StateMachineError> {
        Ok(())
    }

    fn create(&self, state: &AppliedState) -> Result<(), StateMachineError> {
        let mut batch = Batch::new();
        Self::clear(&state.descriptor, &mut batch);
        put_state(state, true, &mut batch);
        self.disk
            .write(batch, Durability::Synced)
            .map_err(translate)
    }

    fn apply(&self, items: &mut [ApplyItem]) -> Result<(), StateMachineError> {
        let mut batch = Batch::new();
        let mut replies: Vec<Vec<Bytes>> = Vec::with_capacity(items.len());
        for item in items.iter() {
            let mut txn = GroupTxn::new(&self.disk, &item.state.descriptor);
            let mut each = Vec::with_capacity(item.commands.len());
            for command in &item.commands {
                each.push(
                    self.application
                        .apply(&mut txn, command)
                        .map_err(translate)?,
                );
            }
            txn.finish(&mut batch);
            if !planted!(DataWithoutIndex) || replies.is_empty() {
                put_state(&item.state, item.membership_changed, &mut batch);
            }
            replies.push(each);
        }
        order(&mut batch);
        if planted!(SessionsOutsideBatch) {
            let is_table = |(_, change): &mut (Cf, Change)| {
                let local = change.key().and_then(|key| keys::parse_local(key));
                local.is_some_and(|(_, kind)| kind == Local::Session.tag())
            };
            let table: Batch = batch.extract_if(.., is_table).collect();
            self.disk
                .write(table, Durability::Buffered)
                .map_err(translate)?;
        }
        if planted!(IndexWithoutData) {
            let mut indexes = Batch::new();
            for item in items.iter() {
                put_state(&item.state, item.membership_changed, &mut indexes);
            }
            self.disk
                .write(indexes, Durability::Buffered)
                .map_err(translate)?;
        }
        self.disk
            .write(batch, Durability::Volatile)
            .map_err(translate)?;
        for (item, replies) in items.iter_mut().zip(replies) {
            item.replies = replies;
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), StateMachineError> {
        self.disk.flush(Cf::Data).map_err(translate)
    }

    fn snapshot(&self, group: GroupId) -> Result<Box<dyn SnapshotSource>, StateMachineError> {
        let view = self.disk.view();
        let get = |kind| view.get(Cf::Data, &keys::local(group, kind, b""));
        match read_state(group, get)? {
            Some(state) => Ok(Box::new(Source::new(view, state))),
            None => Err(damaged(group, "no such group")),
        }
    }

    fn stage(&self, state: &AppliedState) -> Result<Box<dyn SnapshotSink>, StateMachineError> {
        let token = self.next_token.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(Sink {
            disk: self.disk.clone(),
            token,
            state: state.clone(),
            chunks: 0,
            bytes: 0,
            finished: false,
        }))
    }

    fn restore(&self, staged: &StagedSnapshot) -> Result<(), StateMachineError> {
        let marker = keys::local(staged.state.descriptor.group, Local::Installing, b"");
        let token = Bytes::copy_from_slice(&staged.token.to_be_bytes());
        let batch = vec![(Cf::Data, Change::Put(marker, token))];
        self.disk
            .write(batch, Durability::Synced)
            .map_err(translate)?;
        self.install(staged.token).map(|_| ())
    }

    fn discard(&self, staged: &StagedSnapshot) {
        let batch = vec![remove_staged(staged.token)];
        if let Err(error) = self.disk.write(batch, Durability::Buffered) {
            // It is removed at the next start.
            tracing::warn!(token = staged.token, %error, "cannot remove a staged snapshot");
        }
    }

    fn destroy(&self, descriptor: &GroupDescriptor) -> Result<(), StateMachineError> {
        let mut batch = Batch::new();
        match self.load(descriptor.group)? {
            Some(state) => Self::clear(&state.descriptor, &mut batch),
            // An installation that failed half-way leaves data without a state.
            None => Self::clear(descriptor, &mut batch),
        }
        let marker = keys::local(descriptor.group, Local::Installing, b"");
        batch.push((Cf::Data, Change::Delete(marker)));
        self.disk
            .write(batch, Durability::Synced)
            .map_err(translate)
    }
}

const VERSION: u8 = 1;

/// Keys in order are found close to each other, in the engine's tree as in the processor's cache.
/// What is done to one key stays in its order; a batch that deletes ranges is left as it is.
fn order(batch: &mut Batch) {
    let keys: Option<Vec<&Bytes>> = batch.iter().map(|(_, change)| change.key()).collect();
    if keys.is_some_and(|keys| !keys.is_sorted()) {
        batch.sort_by(|(_, one), (_, two)| one.key().cmp(&two.key()));
    }
}

fn put_state(state: &AppliedState, membership: bool, batch: &mut Batch) {
    let group = state.descriptor.group;
    let mut applied = BytesMut::with_capacity(17);
    applied.put_u8(VERSION);
    applied.put_u64(state.last.term.0);
    applied.put_u64(state.last.index.0);
    let key = keys::local(group, Local::Applied, b"");
    batch.push((Cf::Data, Change::Put(key, applied.freeze())));
    if membership {
        let key = keys::local(group, Local::Membership, b"");
        batch.push((Cf::Data, Change::Put(key, state.encode())));
    }
}

fn read_state(
    group: GroupId,
    get: impl Fn(Local) -> Result<Option<Bytes>, DiskError>,
) -> Result<Option<AppliedState>, StateMachineError> {
    let (applied, membership) = (
        get(Local::Applied).map_err(translate)?,
        get(Local::Membership).map_err(translate)?,
    );
    let (Some(mut applied), Some(membership)) = (applied, membership) else {
        return Ok(None);
    };
    if applied.len() != 17 || applied.get_u8() != VERSION {
        return Err(damaged(
            group,
            "the applied index is malformed or of an unknown version",
        ));
    }
    let last = EntryId::new(applied.get_u64(), applied.get_u64());
    let state =
        AppliedState::decode(&membership).map_err(|error| damaged(group, error.to_string()))?;
    Ok(Some(AppliedState { last, ..state }))
}

/// Shared by reads beside the state machine.
pub type SharedData<A, D> = Arc<DataStateMachine<A, D>>;
