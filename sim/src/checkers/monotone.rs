//! What only grows: term, vote within a term, commit, applied and truncated index, of each replica.
//!
//! As written, as published, and over restarts: a restart may fall back to what is durable, and from there
//! on it only grows again. What is published is never behind what was written.

use polyraft_core::{HardState, Index, ReplicaId};
use polyraft_multiraft::{GroupMap, ReplicaSummary, StoreId};

use super::Property;
use super::books::{Books, Section, say};
use crate::observe::Observation;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Monotone {
    /// What was published last, by store and group.
    published: std::collections::BTreeMap<StoreId, GroupMap<Said>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Said {
    replica: ReplicaId,
    hard_state: HardState,
    applied: Index,
}

/// What goes back from one hard state to the next.
fn goes_back(old: HardState, new: HardState) -> Option<&'static str> {
    let revoted = new.term == old.term && !old.vote.is_none() && new.vote != old.vote;
    if new.term < old.term {
        Some("the term")
    } else if revoted {
        Some("the vote")
    } else if new.commit < old.commit {
        Some("the commit index")
    } else {
        None
    }
}

fn written(section: &Section) -> Result<(), String> {
    let (Some(before), Some(after)) = (section.before, section.after) else {
        return Ok(());
    };
    if before.replica != after.replica {
        return Ok(());
    }
    if let Some(what) = goes_back(before.hard_state, after.hard_state) {
        let (before, after) = (say(before.hard_state), say(after.hard_state));
        return Err(format!("{what} goes back from {before} to {after}"));
    }
    let back = section
        .reset
        .is_some_and(|reset| reset.index < before.truncated.index)
        || section
            .truncate
            .is_some_and(|to| to.index < before.truncated.index);
    if back {
        let (old, reset, truncate) = (before.truncated, section.reset, section.truncate);
        return Err(format!(
            "the log's begin goes back from {old:?}: reset {reset:?}, truncate {truncate:?}"
        ));
    }
    Ok(())
}

impl Monotone {
    fn published(
        &mut self,
        store: StoreId,
        replica: &ReplicaSummary,
        books: &Books,
    ) -> Result<(), String> {
        let now = Said {
            replica: replica.replica,
            hard_state: replica.basic.hard_state,
            applied: replica.basic.applied,
        };
        let of_store = self.published.entry(store).or_default();
        let before = of_store.insert(replica.group, now);
        if let Some(before) = before.filter(|before| before.replica == now.replica) {
            if before.hard_state == now.hard_state && before.applied == now.applied {
                return Ok(());
            }
            if let Some(what) = goes_back(before.hard_state, now.hard_state) {
                let (before, now) = (say(before.hard_state), say(now.hard_state));
                return Err(format!("{what} goes back from {before} to {now}"));
            }
            if now.applied < before.applied {
                let before = before.applied;
                return Err(format!(
                    "applied goes back from {before} to {}",
                    now.applied
                ));
            }
        }
        let book = books.store(store);
        let log = book.and_then(|book| book.written.logs.get(&replica.group));
        if let Some(log) = log.filter(|log| log.replica == now.replica)
            && let Some(what) = goes_back(log.hard_state, now.hard_state)
        {
            let (written, now) = (say(log.hard_state), say(now.hard_state));
            return Err(format!(
                "{what} is behind what was written: {written}; {now}"
            ));
        }
        let data = book.and_then(|book| book.data.get(&replica.group));
        let applied = data.map(|data| data.applied.last.index).unwrap_or_default();
        // What is behind a freeze is as good as applied.
        let frozen = data.is_some_and(|data| data.applied.descriptor.frozen.is_some());
        if data.is_some() && !frozen && now.applied > applied {
            let said = now.applied;
            return Err(format!("says that {said} is applied, and {applied} is"));
        }
        Ok(())
    }
}

impl Property for Monotone {
    fn name(&self) -> &'static str {
        "monotone"
    }

    fn see(&mut self, seen: &Observation<'_>, books: &Books) -> Result<(), String> {
        match *seen {
            Observation::Written { store, .. } => books.batch().iter().try_for_each(|section| {
                let group = section.group;
                written(section).map_err(|why| format!("store {store}, group {group}: {why}"))
            }),
            Observation::Published {
                store, replicas, ..
            } => replicas.iter().try_for_each(|replica| {
                let group = replica.group;
                let result = self.published(store, replica, books);
                result.map_err(|why| format!("store {store}, group {group}: {why}"))
            }),
            Observation::Restored { store, state, .. } => {
                let before = books.latest().before.first().and_then(Option::as_ref);
                let at = before
                    .map(|data| data.applied.last.index)
                    .unwrap_or_default();
                if at < state.last.index {
                    return Ok(());
                }
                let (group, to) = (state.descriptor.group, state.last.index);
                Err(format!(
                    "store {store}, group {group}: restored to {to}, applied was {at}"
                ))
            }
            Observation::Starting { store, .. } | Observation::Lost { store } => {
                self.published.remove(&store);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use polyraft_core::{EntryId, RoleName};
    use polyraft_multiraft::env::LogSection;

    use super::super::testing::{
        Scene, caught, entries_section, entry, hard, hard_section, section, state, summary,
        truncate_section, turn,
    };
    use super::*;

    fn scene() -> Scene {
        let mut scene = Scene::of(Monotone::default()).begun();
        scene.elect(1, 2, 2);
        scene.replicate(1, &[2], (1, 2), &[entry(2, 3, "a"), entry(2, 4, "b")]);
        scene
    }

    fn says(hard_state: HardState, applied: u64) -> ReplicaSummary {
        let mut summary = summary(2, RoleName::Follower, hard_state);
        summary.basic.applied = Index(applied);
        summary
    }

    #[test]
    fn forward_is_no_harm() {
        let mut scene = scene();
        scene.durable(2, hard_section(2, 1, 3));
        scene.durable(2, hard_section(3, 0, 3));
        scene.durable(2, hard_section(3, 3, 4));
        scene.publish(2, says(hard(3, 3, 4), 2)).unwrap();
        scene.publish(2, says(hard(4, 0, 4), 2)).unwrap();
        scene.durable(2, truncate_section(2, 3));
    }

    #[test]
    fn every_way_back_is_seen_as_written() {
        for (old, new, words) in [
            (hard(3, 1, 3), hard(2, 1, 3), "the term goes back"),
            (hard(3, 1, 3), hard(3, 2, 3), "the vote goes back"),
            (hard(3, 1, 3), hard(3, 0, 3), "the vote goes back"),
            (hard(3, 1, 3), hard(4, 2, 2), "the commit index goes back"),
        ] {
            let with = |hard_state| LogSection {
                hard_state: Some(hard_state),
                ..section()
            };
            let mut scene = scene();
            scene.durable(2, with(old));
            caught(&scene.write(2, vec![with(new)]), words);
        }
    }

    #[test]
    fn a_begin_that_goes_back_is_seen() {
        let mut scene = scene();
        scene.durable(2, truncate_section(2, 4));
        caught(
            &scene.write(2, vec![truncate_section(2, 3)]),
            "begin goes back",
        );
        let mut reset = section();
        reset.reset = Some(EntryId::new(1, 2));
        caught(&scene.write(2, vec![reset]), "begin goes back");
    }

    #[test]
    fn every_way_back_is_seen_as_published() {
        let before = says(hard(5, 1, 4), 2);
        for (now, words) in [
            (says(hard(4, 1, 4), 2), "the term goes back"),
            (says(hard(5, 2, 4), 2), "the vote goes back"),
            (says(hard(6, 2, 3), 2), "the commit index goes back"),
            (says(hard(5, 1, 4), 1), "applied goes back from 2 to 1"),
        ] {
            let mut scene = scene();
            scene.publish(2, before).unwrap();
            caught(&scene.publish(2, now), words);
        }
    }

    #[test]
    fn nobody_is_behind_what_was_written_nor_ahead_of_what_is_applied() {
        let mut scene = scene();
        scene.durable(2, hard_section(3, 3, 4));
        caught(
            &scene.publish(2, says(hard(2, 1, 4), 2)),
            "is behind what was written",
        );
        caught(
            &scene.publish(2, says(hard(3, 3, 4), 3)),
            "says that 3 is applied, and 2 is",
        );
        scene.apply(2, turn(&[entry(2, 3, "a")])).unwrap();
        scene.publish(2, says(hard(3, 3, 4), 3)).unwrap();
    }

    #[test]
    fn a_restart_may_fall_back_to_what_is_durable_and_no_further() {
        let mut scene = scene();
        scene.durable(2, hard_section(3, 3, 3));
        scene.publish(2, says(hard(3, 3, 4), 2)).unwrap();
        let starting = |scene: &mut Scene| {
            let store = StoreId(2);
            let incarnation = 2;
            scene.see(&Observation::Starting { store, incarnation })
        };
        starting(&mut scene).unwrap();
        scene.publish(2, says(hard(3, 3, 3), 2)).unwrap();
        starting(&mut scene).unwrap();
        caught(
            &scene.publish(2, says(hard(3, 3, 2), 2)),
            "is behind what was written",
        );
    }

    #[test]
    fn a_snapshot_never_takes_back_what_is_applied() {
        let mut scene = scene();
        scene.apply(2, turn(&[entry(2, 3, "a")])).unwrap();
        scene.durable(2, entries_section(&[entry(2, 5, "c")]));
        caught(
            &scene.restored(2, &state(2, 3)),
            "restored to 3, applied was 3",
        );
        scene.restored(3, &state(2, 4)).unwrap();
    }
}
