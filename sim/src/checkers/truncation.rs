//! `truncated <= flushed applied <= applied <= committed <= last`, for every replica, at all times.
//!
//! A log may begin only behind what its state machine has made certain: else a power cut leaves data that the log
//! does not go on from. That what is applied is committed and in the log other properties look at.

use polyraft_core::EntryId;
use polyraft_multiraft::env::Recovered;
use polyraft_multiraft::{AppliedState, GroupId, StoreId};

use super::Property;
use super::books::{Books, Section};
use crate::observe::Observation;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Truncation;

fn written(store: StoreId, section: &Section, books: &Books) -> Result<(), String> {
    let Some(after) = section.after else {
        return Ok(());
    };
    let (commit, last) = (after.hard_state.commit, after.last.index);
    if commit > last {
        return Err(format!(
            "commit {commit} is written, the log ends at {last}"
        ));
    }
    if section.reset.is_some() || section.truncate.is_some() {
        let book = books.store(store);
        let data = book.and_then(|book| book.data.get(&section.group));
        return behind(after.truncated, data.map(|data| data.flushed));
    }
    Ok(())
}

/// A log that begins behind `truncated` goes on from data that is certain up to `flushed`.
fn behind(truncated: EntryId, flushed: Option<EntryId>) -> Result<(), String> {
    let to = flushed.unwrap_or_default();
    let same = truncated.index < to.index || truncated == to;
    if same {
        return Ok(());
    }
    Err(format!(
        "the log begins behind {truncated:?}, the data is certain up to {to:?}"
    ))
}

fn found_log(found: &Recovered) -> Result<(), (GroupId, String)> {
    for log in &found.groups {
        let (commit, last) = (log.hard_state.commit, log.last.index);
        if commit > last {
            return Err((
                log.group,
                format!("commit {commit}, the log ends at {last}"),
            ));
        }
    }
    Ok(())
}

/// Logs go on from the data that was found.
fn found_data(
    store: StoreId,
    states: &[AppliedState],
    books: &Books,
) -> Result<(), (GroupId, String)> {
    let Some(book) = books.store(store) else {
        return Ok(());
    };
    for state in states {
        let group = state.descriptor.group;
        if let Some(log) = book.written.logs.get(&group) {
            behind(log.truncated, Some(state.last)).map_err(|why| (group, why))?;
        }
    }
    Ok(())
}

impl Property for Truncation {
    fn name(&self) -> &'static str {
        "truncated-behind-flushed"
    }

    fn see(&mut self, seen: &Observation<'_>, books: &Books) -> Result<(), String> {
        let (store, result) = match *seen {
            Observation::Written { store, .. } => {
                let result = books.batch().iter().try_for_each(|section| {
                    written(store, section, books).map_err(|why| (section.group, why))
                });
                (store, result)
            }
            Observation::RecoveredLog { store, found } => (store, found_log(found)),
            Observation::RecoveredData { store, states } => {
                (store, found_data(store, states, books))
            }
            _ => return Ok(()),
        };
        result.map_err(|(group, why)| format!("store {store}, group {group}: {why}"))
    }
}
