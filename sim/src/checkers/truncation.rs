//! `truncated <= flushed applied <= applied <= committed <= last`, for every replica, at all times.
//!
//! A log may begin only behind what its state machine has made certain: else a power cut leaves data that
//! the log does not go on from. That what is applied is committed and in the log other properties look at.

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
        let certain = book.and_then(|book| book.certain(section.group));
        return behind(after.truncated, certain);
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

#[cfg(test)]
mod tests {
    use polyraft_core::{HardState, Index, ReplicaId, Term};
    use polyraft_multiraft::env::RecoveredGroup;

    use super::super::testing::{
        GROUP, Scene, caught, entry, hard, hard_section, section, state, truncate_section, turn,
    };
    use super::*;

    fn scene() -> Scene {
        let mut scene = Scene::of(Truncation).begun();
        scene.elect(1, 2, 2);
        scene.replicate(1, &[2], (1, 2), &[entry(2, 3, "a"), entry(2, 4, "b")]);
        scene
            .apply(1, turn(&[entry(2, 3, "a"), entry(2, 4, "b")]))
            .unwrap();
        scene
    }

    #[test]
    fn truncation_follows_the_flush() {
        let mut scene = scene();
        caught(
            &scene.write(1, vec![truncate_section(2, 3)]),
            "certain up to",
        );
        let mut scene = self::scene();
        scene.flushed(1).unwrap();
        scene.write(1, vec![truncate_section(2, 3)]).unwrap();
        scene.write(1, vec![truncate_section(2, 4)]).unwrap();
    }

    #[test]
    fn a_log_is_reset_to_data_that_is_there() {
        let reset = || {
            let mut section = section();
            section.reset = Some(EntryId::new(2, 4));
            vec![section]
        };
        let mut scene = scene();
        caught(&scene.write(3, reset()), "the log begins behind");
        let mut scene = self::scene();
        scene.restored(3, &state(2, 4)).unwrap();
        scene.write(3, reset()).unwrap();
    }

    #[test]
    fn a_commit_index_beyond_the_log_is_seen() {
        let mut scene = scene();
        scene.write(2, vec![hard_section(2, 1, 4)]).unwrap();
        caught(
            &scene.write(2, vec![hard_section(2, 1, 5)]),
            "commit 5 is written",
        );
    }

    fn found(truncated: u64, hard_state: HardState) -> Recovered {
        let group = RecoveredGroup {
            group: GROUP,
            replica: ReplicaId(1),
            hard_state,
            truncated: EntryId::new(2, truncated),
            last: EntryId::new(2, 4),
            terms: vec![(Term(2), Index(truncated + 1))],
        };
        Recovered {
            groups: vec![group],
            tombstones: Vec::new(),
        }
    }

    #[test]
    fn a_start_finds_data_that_the_log_goes_on_from() {
        let mut scene = scene();
        scene.flushed(1).unwrap();
        scene.write(1, vec![truncate_section(2, 3)]).unwrap();
        scene.crash(1, false).unwrap();
        scene.found_log(1, &found(3, hard(2, 1, 2))).unwrap();
        caught(&scene.found_data(1, &[state(1, 2)]), "certain up to");
        scene.found_data(1, &[state(2, 3)]).unwrap();
        caught(
            &scene.found_log(1, &found(3, hard(2, 1, 5))),
            "commit 5, the log ends at 4",
        );
    }
}
