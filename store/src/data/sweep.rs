//! The removal of all keys of a span at least cost.
//!
//! A removal by range stays in the engine until it is compacted away, and every read near it looks at it:
//! a store that removes thousands of small groups must not be full of them. A few keys are removed one by
//! one, and of nothing nothing remains.
//!
//! # What a crash brings back
//! What goes past the write-ahead log may be gone after a crash, also a removal: then a key is there again
//! that nobody sees now. If the removal of the span is logged it would stay, so it must be by range,
//! unless it is known that there is no such key:
//! 1. nothing that was applied waits for a flush; or
//! 2. nobody has had the span since whoever had it gave it up. Who gives up keys removes them by range or
//!    as in 1; or the keys go over to another group, or are removed by a split, and a flush comes
//!    before the next logged change (see [`Unflushed`]).

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use polyraft_multiraft::{GroupDescriptor, GroupId};

use super::txn::user_bounds;
use crate::disk::{Batch, Cf, Change, Disk, DiskError};
use crate::keys::{self, Local};

/// Keys that are removed one by one rather than by range.
const POINTS_MAX: usize = 32;

/// What a crash can bring back of a span; see the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Past {
    /// No key that is not there now.
    Seen,
    /// Any key.
    Unseen,
}

/// How much of what was applied waits for a flush.
///
/// Invariant: a change of ranges is flushed before anything is logged that a crash would keep without it: a
/// group that is destroyed right after a merge must not leave its neighbour's state behind without keys.
#[derive(Debug, Default)]
pub(super) struct Unflushed {
    /// Volatile writes that have returned.
    written: AtomicU64,
    /// The last one of them that changed ranges.
    changed: AtomicU64,
    /// So many of them are durable.
    flushed: AtomicU64,
}

impl Unflushed {
    /// A volatile write has returned.
    pub(super) fn wrote(&self, changes_ranges: bool) {
        let number = self.written.fetch_add(1, Ordering::AcqRel) + 1;
        if changes_ranges {
            self.changed.fetch_max(number, Ordering::AcqRel);
        }
    }

    /// A flush that begins now covers so many.
    pub(super) fn begin(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    /// It has returned.
    pub(super) fn end(&self, covered: u64) {
        self.flushed.fetch_max(covered, Ordering::AcqRel);
    }

    /// Whether a change of ranges waits for a flush.
    pub(super) fn has_changes(&self) -> bool {
        self.changed.load(Ordering::Acquire) > self.flushed.load(Ordering::Acquire)
    }

    /// What a crash can bring back of a group that has been here for a while.
    pub(super) fn past(&self) -> Past {
        match self.written.load(Ordering::Acquire) > self.flushed.load(Ordering::Acquire) {
            true => Past::Unseen,
            false => Past::Seen,
        }
    }
}

/// Removes the user's keys of a group with a range.
pub(super) fn remove_keys(
    disk: &impl Disk,
    descriptor: &GroupDescriptor,
    past: Past,
    batch: &mut Batch,
) -> Result<(), DiskError> {
    if descriptor.range.is_none() {
        // They are among those of `remove_local`.
        return Ok(());
    }
    let (start, end, _) = user_bounds(descriptor);
    remove(disk, start, end, past, batch)
}

/// Removes what the application and the sessions keep, and the keys of a group without a range.
pub(super) fn remove_local(
    disk: &impl Disk,
    group: GroupId,
    past: Past,
    batch: &mut Batch,
) -> Result<(), DiskError> {
    // One kind after the other.
    let (start, end) = (
        keys::local(group, Local::Application, b""),
        keys::local_end(group, Local::Session),
    );
    remove(disk, start, end, past, batch)
}

/// Removes what says that there is a group.
pub(super) fn remove_state(group: GroupId, batch: &mut Batch) {
    for kind in [Local::Applied, Local::Membership, Local::Installing] {
        batch.push((Cf::Data, Change::Delete(keys::local(group, kind, b""))));
    }
}

fn remove(
    disk: &impl Disk,
    start: Bytes,
    end: Bytes,
    past: Past,
    batch: &mut Batch,
) -> Result<(), DiskError> {
    if past == Past::Seen {
        let found = disk.scan(Cf::Data, &start, Some(&end), POINTS_MAX + 1)?;
        if found.len() <= POINTS_MAX {
            let each = found.into_iter().map(|(key, _)| Change::Delete(key));
            batch.extend(each.map(|change| (Cf::Data, change)));
            return Ok(());
        }
    }
    batch.push((Cf::Data, Change::DeleteRange(start, end)));
    Ok(())
}
