//! A leader makes no change of membership while one before it is not applied.
//!
//! Two changes at once may lead to a configuration whose quorums share nobody with those of the one
//! that other replicas still know (thesis section 4.1). What a leader sends of its own term it made
//! itself, and what it has applied only grows while it leads: so a change that is sent beside an
//! earlier one that is not applied there was made too early, whenever it is seen.

use polyraft_core::{Entry, Index, Message, Payload};
use polyraft_multiraft::{GroupId, StoreId};

use super::Property;
use super::books::{Books, Kind, raft};
use crate::observe::Observation;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct OneChange;

fn is_change(entry: &Entry) -> bool {
    entry.kind.changes_membership()
}

fn sent(from: StoreId, group: GroupId, message: &Message, books: &Books) -> Result<(), String> {
    let Payload::Append { prev, entries, .. } = &message.payload else {
        return Ok(());
    };
    let own = |entry: &&Entry| is_change(entry) && entry.term == message.term;
    let Some(last) = entries.iter().rfind(own) else {
        return Ok(());
    };
    let book = books.store(from);
    let applied = book.and_then(|book| Some(book.data.get(&group)?.applied.last.index));
    let log = book.and_then(|book| book.written.log_of(group, message.from));
    let (Some(applied), Some(log)) = (applied, log) else {
        return Ok(());
    };
    let before = (applied.0 + 1..=prev.index.0).map(Index);
    let in_log = |index: &Index| {
        log.slot(*index)
            .is_some_and(|slot| slot.kind == Kind::Change)
    };
    let with_it = entries.iter().filter(|entry| is_change(entry));
    let with_it = with_it
        .map(|entry| entry.index)
        .filter(|index| *index > applied);
    let first = before.filter(in_log).chain(with_it).next();
    match first {
        Some(first) if first < last.index => Err(format!(
            "group {group}: the leader on store {from} sends a change of membership at {} of its own \
             term {}, while it has applied entries up to {applied} only and there is another change \
             at {first}",
            last.index, message.term
        )),
        _ => Ok(()),
    }
}

impl Property for OneChange {
    fn name(&self) -> &'static str {
        "one-change-at-a-time"
    }

    fn see(&mut self, seen: &Observation<'_>, books: &Books) -> Result<(), String> {
        match *seen {
            Observation::Sent { from, message, .. } => match raft(message) {
                Some(inner) => sent(from, message.group, inner, books),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use polyraft_core::{ConfChangeKind, ConfChangeV2, EntryKind, ReplicaId};

    use super::super::testing::{Scene, append, caught, entries_section, entry, turn};
    use super::*;

    fn change(term: u64, index: u64) -> Entry {
        let change = ConfChangeV2 {
            changes: vec![(ConfChangeKind::AddLearner, ReplicaId(index))],
            ..ConfChangeV2::default()
        };
        Entry {
            kind: EntryKind::ConfChangeV2,
            data: change.encode(),
            ..entry(term, index, "")
        }
    }

    fn scene() -> Scene {
        let mut scene = Scene::of(OneChange).begun();
        scene.elect(1, 2, 2);
        scene
    }

    #[test]
    fn one_after_the_other_is_well() {
        let mut scene = scene();
        scene
            .send(1, 2, 2, append((1, 2), &[change(2, 3)]))
            .unwrap();
        scene.durable(1, entries_section(&[change(2, 3)]));
        scene.apply(1, turn(&[entry(2, 3, "")])).unwrap();
        let second = append((2, 3), &[change(2, 4)]);
        scene.send(1, 2, 2, second).unwrap();
        // Both to somebody who lags.
        let both = append((1, 2), &[change(2, 3), change(2, 4)]);
        scene.send(1, 3, 2, both).unwrap();
    }

    #[test]
    fn two_at_once_are_seen() {
        let mut scene = scene();
        let both = append((1, 2), &[change(2, 3), entry(2, 4, "a"), change(2, 5)]);
        caught(&scene.send(1, 2, 2, both), "another change at 3");
    }

    #[test]
    fn the_first_may_be_in_the_log_only() {
        let mut scene = scene();
        scene.durable(1, entries_section(&[change(2, 3)]));
        let second = append((2, 3), &[change(2, 4)]);
        caught(&scene.send(1, 2, 2, second), "another change at 3");
    }

    /// They may be of leaders that were followed by others before they were applied.
    #[test]
    fn changes_of_older_terms_say_nothing() {
        let mut scene = scene();
        let older = append((1, 2), &[change(1, 3), change(1, 4), entry(2, 5, "")]);
        scene.send(1, 2, 2, older).unwrap();
    }
}
