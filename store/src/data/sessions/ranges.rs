//! The sessions of groups that split and merge. The module above says why this is right.

use std::collections::{BTreeMap, BTreeSet};

use polyraft_core::{EntryId, planted};

use super::table::{Entry, Row, Table};
use super::{GroupTxn, SessionId};
use crate::data::SplitAt;
use crate::disk::DiskError;
use crate::keys;

/// Rows of a table that are read at once.
const PAGE: usize = 64;

/// The new group knows what the old one knows, and its clock goes on from the old one's.
pub(super) fn split(
    at: SplitAt,
    left: &GroupTxn<'_>,
    right: &mut GroupTxn<'_>,
) -> Result<(), DiskError> {
    let table = Table::load(left)?;
    rows(left, |row| {
        match row {
            Row::Head => {}
            _ if planted!(SessionsNotSplit) => {}
            Row::Session(session, entry) => entry.store(right, session),
            Row::Place(index, session) => Table::place(right, index, session),
        }
        Ok(())
    })?;
    let clock = table.at(at.left.index);
    let offset = clock.saturating_sub(at.right.index.0);
    Table { offset, ..table }.store(right);
    Ok(())
}

/// Everything that a group knows of sessions.
#[derive(Debug, Default)]
struct Known {
    entries: BTreeMap<SessionId, Entry>,
    places: BTreeMap<SessionId, u64>,
}

impl Known {
    fn load(txn: &GroupTxn<'_>) -> Result<Self, DiskError> {
        let mut known = Self::default();
        rows(txn, |row| {
            match row {
                Row::Head => {}
                Row::Session(session, entry) => {
                    known.entries.insert(session, entry);
                }
                Row::Place(index, session) => {
                    known.places.insert(session, index);
                }
            }
            Ok(())
        })?;
        Ok(known)
    }
}

fn rows(
    txn: &GroupTxn<'_>,
    mut each: impl FnMut(Row) -> Result<(), DiskError>,
) -> Result<(), DiskError> {
    let mut start = Vec::new();
    loop {
        let page = txn.session_scan(&start, PAGE)?;
        let Some((last, _)) = page.last() else {
            return Ok(());
        };
        start = keys::after(last).to_vec();
        for (name, value) in page {
            each(Row::parse(txn, &name, value)?)?;
        }
    }
}

/// `left` knows of its own sessions and of those of `right`, at most `max` of them.
pub(super) fn merge(
    at: EntryId,
    left: &mut GroupTxn<'_>,
    right: &GroupTxn<'_>,
    max: u64,
) -> Result<(), DiskError> {
    let (left_table, right_table) = (Table::load(left)?, Table::load(right)?);
    let before = Known::load(left)?;
    let mut entries = before.entries.clone();
    let mut theirs = Known::load(right)?.entries;
    if planted!(SessionsNotMerged) {
        theirs.clear();
    }
    // Who is known on one side and exists for longer than what the other side has forgotten may be among
    // that: it had effects there perhaps.
    entries
        .retain(|session, _| session.since >= right_table.horizon || theirs.contains_key(session));
    theirs.retain(|session, _| {
        session.since >= left_table.horizon || before.entries.contains_key(session)
    });
    for (session, theirs) in theirs {
        let united = match entries.remove(&session) {
            Some(ours) => ours.unite(theirs),
            None => theirs,
        };
        entries.insert(session, united);
    }
    let mut table = Table {
        horizon: left_table.horizon.max(right_table.horizon),
        ..left_table
    };
    let order = stamp(&mut entries, &mut table, max);
    table.sessions = entries.len() as u64;
    // Not what `right` has applied behind its freeze: that differs from store to store.
    let frozen = right.descriptor().frozen;
    let clock = [
        left_table.at(at.index),
        frozen.map_or(0, |frozen| right_table.at(frozen.at.index)),
        order.last().map_or(table.horizon, |(last, _)| *last),
    ];
    let clock = clock.into_iter().max().unwrap_or_default();
    table.offset = clock.saturating_sub(at.index.0);
    table.store(left);
    write(left, &before, &entries, order);
    Ok(())
}

/// Whoever has no room goes, and no two of the others were last used at the same index: each gets its own
/// place in the queue. Returns them in the order of their last use.
fn stamp(
    entries: &mut BTreeMap<SessionId, Entry>,
    table: &mut Table,
    max: u64,
) -> Vec<(u64, SessionId)> {
    let mut order: Vec<(u64, SessionId)> = entries
        .iter()
        .map(|(id, entry)| (entry.last, *id))
        .collect();
    order.sort_unstable();
    let max = usize::try_from(max).unwrap_or(usize::MAX);
    for (last, session) in order.drain(..order.len().saturating_sub(max)) {
        entries.remove(&session);
        table.horizon = table.horizon.max(last);
    }
    let mut previous = table.horizon;
    for (last, session) in &mut order {
        *last = (*last).max(previous.saturating_add(1));
        previous = *last;
        if let Some(entry) = entries.get_mut(session) {
            entry.last = *last;
        }
    }
    order
}

/// Makes the rows of a table what they should be.
fn write(
    txn: &mut GroupTxn<'_>,
    before: &Known,
    entries: &BTreeMap<SessionId, Entry>,
    order: Vec<(u64, SessionId)>,
) {
    let gone = before.entries.keys().filter(|id| !entries.contains_key(id));
    for session in gone {
        Entry::remove(txn, *session);
    }
    for (session, entry) in entries {
        if before.entries.get(session) != Some(entry) {
            entry.store(txn, *session);
        }
    }
    let places: BTreeSet<(u64, SessionId)> = order.into_iter().collect();
    for (session, index) in &before.places {
        if !places.contains(&(*index, *session)) {
            Table::leave(txn, *index);
        }
    }
    // After that: the place that one leaves may be another one's from now on.
    for (index, session) in places {
        if before.places.get(&session) != Some(&index) {
            Table::place(txn, index, session);
        }
    }
}
