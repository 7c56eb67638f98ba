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
//! 5. A turn that changes ranges is flushed before the next batch that is logged (`sweep::Unflushed`): what
//!    came before it does matter to other groups than that batch's own.

mod application;
mod inspect;
mod install;
mod pages;
mod ranges;
mod reads;
pub mod sessions;
mod snapshot;
mod staging;
mod state;
mod sweep;
mod txn;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use polyraft_core::planted;
use polyraft_multiraft::env::{
    ApplyItem, RangeChange, SnapshotSink, SnapshotSource, SplitRight, StagedSnapshot, StateMachine,
    StateMachineError,
};
use polyraft_multiraft::{AppliedState, GroupDescriptor, GroupId};

pub use self::application::{Application, SplitAt};
use self::inspect::Inspections;
pub use self::pages::{Page, Room, Span, pair_bytes};
use self::ranges::{Changing, Turn};
use self::snapshot::{Source, damaged, translate};
pub use self::staging::SnapshotOptions;
use self::staging::{Sink, Staged};
use self::state::{put_state, read_state};
use self::sweep::{Past, Unflushed};
pub use self::txn::GroupTxn;
use crate::disk::{Batch, Cf, Change, Disk, Durability};
use crate::keys::{self, Local};

/// See the module.
#[derive(Debug)]
pub struct DataStateMachine<A, D> {
    application: A,
    disk: D,
    next_token: AtomicU64,
    unflushed: Unflushed,
    snapshots: SnapshotOptions,
    inspections: Inspections,
}

impl<A: Application, D: Disk + Clone> DataStateMachine<A, D> {
    /// A state machine on `disk`.
    pub fn new(application: A, disk: D) -> Self {
        Self::with_snapshots(application, disk, SnapshotOptions::default())
    }

    /// A state machine on `disk` whose snapshots wait as `snapshots` says.
    pub fn with_snapshots(application: A, disk: D, snapshots: SnapshotOptions) -> Self {
        Self {
            application,
            disk,
            next_token: AtomicU64::new(1),
            unflushed: Unflushed::default(),
            snapshots,
            inspections: Inspections::default(),
        }
    }

    /// What a group consisted of when it came to the inspection of this name
    /// ([`StateMachine::inspect`]), once; none: it did not come there yet, or it is not kept any more.
    pub fn take_inspection(&self, group: GroupId, id: u64) -> Option<Box<dyn SnapshotSource>> {
        self.inspections.take(group, id)
    }

    /// Inspections that nobody has taken, from the oldest one to the latest.
    pub fn inspections(&self) -> Vec<(GroupId, u64)> {
        self.inspections.names()
    }

    fn load(&self, group: GroupId) -> Result<Option<AppliedState>, StateMachineError> {
        let get = |kind| self.disk.get(Cf::Data, &keys::local(group, kind, b""));
        read_state(group, get)
    }

    /// No snapshot is staged under `token` from now on: it is taken.
    fn above_token(&self, token: u64) {
        let after = token.saturating_add(1);
        self.next_token.fetch_max(after, Ordering::Relaxed);
    }

    /// Before anything is logged that must not be kept without a change of ranges before it.
    fn settle_ranges(&self) -> Result<(), StateMachineError> {
        match self.unflushed.has_changes() {
            true => self.flush(),
            false => Ok(()),
        }
    }

    /// The groups that have anything here, ascending, with the first kind of what they have.
    fn groups(&self) -> Result<Vec<(GroupId, u8)>, StateMachineError> {
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
            let Some((group, kind)) = keys::parse_local(key) else {
                let text = "a key in the column family data is malformed".to_owned();
                return Err(StateMachineError::Fatal(text));
            };
            groups.push((group, kind));
            if group.0 == u64::MAX {
                return Ok(groups);
            }
            start = keys::local(GroupId(group.0 + 1), Local::Applied, b"");
        }
    }

    /// One group's share of a turn; its replies.
    fn apply_item(
        &self,
        item: &ApplyItem,
        turn: &mut Turn,
    ) -> Result<Vec<Bytes>, StateMachineError> {
        let before = match &item.range_change {
            None => None,
            Some(_) => Some(self.load(item.group)?.ok_or_else(|| {
                let text = format!("group {} changes its range and is not here", item.group);
                StateMachineError::Fatal(text)
            })?),
        };
        let descriptor = &before.as_ref().unwrap_or(&item.state).descriptor;
        let mut txn = GroupTxn::new(&self.disk, descriptor);
        let mut replies = Vec::with_capacity(item.commands.len());
        for command in &item.commands {
            let refused = self.application.refuse(descriptor, command);
            replies.push(match refused {
                Some(refusal) => refusal,
                None => self
                    .application
                    .apply(&mut txn, command)
                    .map_err(translate)?,
            });
        }
        if let (Some(change), Some(before)) = (&item.range_change, &before) {
            let changing = Changing {
                application: &self.application,
                disk: &self.disk,
                before,
                item,
            };
            changing.change(change, &mut txn, |group| self.load(group), turn)?;
        }
        txn.finish(turn.points());
        Ok(replies)
    }
}

/// What a known bug writes later than the rest of a turn.
fn torn_off(items: &[ApplyItem], batch: &mut Batch) -> Batch {
    let (splits, merges) = (planted!(SplitNotAtomic), planted!(MergeNotAtomic));
    if !splits && !merges {
        return Batch::new();
    }
    let changes = items.iter().filter_map(|item| item.range_change.as_ref());
    let is_torn = |group: GroupId, change: &RangeChange| match change {
        RangeChange::Split { rights } => {
            let new = |right: &SplitRight| right.state.descriptor.group == group;
            splits && rights.iter().any(new)
        }
        RangeChange::Merge { right } => planted!(MergeNotAtomic) && right.descriptor.group == group,
    };
    let of_torn = |(_, change): &mut (Cf, Change)| {
        let local = change.key().and_then(|key| keys::parse_local(key));
        local.is_some_and(|(group, _)| changes.clone().any(|it| is_torn(group, it)))
    };
    batch.extract_if(.., of_torn).collect()
}

impl<A: Application, D: Disk + Clone> StateMachine for DataStateMachine<A, D> {
    fn recover(&self) -> Result<Vec<AppliedState>, StateMachineError> {
        let groups = self.groups()?;
        for (group, _) in &groups {
            self.finish_install(*group)?;
        }
        self.remove_leftovers()?;
        let mut states = Vec::new();
        for (group, _) in groups {
            states.extend(self.load(group)?);
        }
        Ok(states)
    }

    fn merged(&self) -> Result<Vec<GroupId>, StateMachineError> {
        // The marker comes last: in front it is all that there is.
        let only_marker = |(group, kind)| (kind == Local::Merged.tag()).then_some(group);
        Ok(self.groups()?.into_iter().filter_map(only_marker).collect())
    }

    fn forget(&self, group: GroupId) -> Result<(), StateMachineError> {
        let batch = vec![ranges::forget(group)];
        self.disk
            .write(batch, Durability::Volatile)
            .map_err(translate)?;
        self.unflushed.wrote(false);
        Ok(())
    }

    fn create(&self, state: &AppliedState) -> Result<(), StateMachineError> {
        self.settle_ranges()?;
        let mut batch = Batch::new();
        let group = state.descriptor.group;
        // What nobody has had is as it looks.
        sweep::remove_local(&self.disk, group, Past::Seen, &mut batch).map_err(translate)?;
        sweep::remove_keys(&self.disk, &state.descriptor, Past::Seen, &mut batch)
            .map_err(translate)?;
        put_state(state, true, &mut batch);
        self.disk
            .write(batch, Durability::Synced)
            .map_err(translate)
    }

    fn apply(&self, items: &mut [ApplyItem]) -> Result<(), StateMachineError> {
        let mut turn = Turn::default();
        let mut replies: Vec<Vec<Bytes>> = Vec::with_capacity(items.len());
        for item in items.iter() {
            let each = self.apply_item(item, &mut turn)?;
            let changed = item.membership_changed || item.range_change.is_some();
            if !planted!(DataWithoutIndex) || replies.is_empty() {
                put_state(&item.state, changed, turn.points());
            }
            replies.push(each);
        }
        let changes_ranges = turn.changes_ranges;
        let mut batch = turn.into_batch();
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
        let later = torn_off(items, &mut batch);
        self.disk
            .write(batch, Durability::Volatile)
            .map_err(translate)?;
        if !later.is_empty() {
            self.disk
                .write(later, Durability::Volatile)
                .map_err(translate)?;
        }
        self.unflushed.wrote(changes_ranges);
        for (item, replies) in items.iter_mut().zip(replies) {
            item.replies = replies;
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), StateMachineError> {
        let covered = self.unflushed.begin();
        self.disk.flush(Cf::Data).map_err(translate)?;
        self.unflushed.end(covered);
        Ok(())
    }

    fn snapshot(&self, group: GroupId) -> Result<Box<dyn SnapshotSource>, StateMachineError> {
        let view = self.disk.view();
        let get = |kind| view.get(Cf::Data, &keys::local(group, kind, b""));
        match read_state(group, get)? {
            Some(state) => Ok(Box::new(Source::new(view, state))),
            None => Err(damaged(group, "no such group")),
        }
    }

    fn inspect(&self, group: GroupId, id: u64) {
        match self.snapshot(group) {
            Ok(source) => self.inspections.keep(group, id, source),
            // Whoever waits for it hears that there is none.
            Err(error) => tracing::warn!(%group, %error, "cannot be inspected"),
        }
    }

    fn stage(&self, state: &AppliedState) -> Result<Box<dyn SnapshotSink>, StateMachineError> {
        let token = self.next_token.fetch_add(1, Ordering::Relaxed);
        let sink = Sink::new(self.disk.clone(), self.snapshots, token, state.clone());
        Ok(Box::new(sink))
    }

    fn restore(&self, staged: &StagedSnapshot) -> Result<(), StateMachineError> {
        self.begin_install(staged)
    }

    fn discard(&self, staged: &StagedSnapshot) {
        match Staged::load(&self.disk, staged.token) {
            Ok(Some(found)) => {
                found.remove_chunks(&self.disk, staged.token);
                if found.files > 0 {
                    staging::forget_files(&self.disk, staged.token);
                }
            }
            Ok(None) => {}
            Err(error) => {
                // It is removed at the next start.
                let token = staged.token;
                tracing::warn!(token, %error, "cannot remove a staged snapshot");
            }
        }
    }

    fn destroy(&self, descriptor: &GroupDescriptor) -> Result<(), StateMachineError> {
        self.settle_ranges()?;
        let (group, mut batch) = (descriptor.group, Batch::new());
        let state = self.load(group)?;
        if state.is_none() {
            // An installation that failed half-way leaves data without a state.
            let past = self.unflushed.past();
            sweep::remove_keys(&self.disk, descriptor, past, &mut batch).map_err(translate)?;
        }
        self.remove_group(group, state.as_ref(), &mut batch)?;
        let marker = keys::local(group, Local::Installing, b"");
        batch.push((Cf::Data, Change::Delete(marker)));
        self.disk
            .write(batch, Durability::Synced)
            .map_err(translate)
    }
}

/// Shared by reads beside the state machine.
pub type SharedData<A, D> = Arc<DataStateMachine<A, D>>;
