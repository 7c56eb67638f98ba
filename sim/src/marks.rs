//! Rare states that a test must really reach: [`sometimes!`](crate::sometimes) notes each time that it does.
//!
//! A simulation that never sees a snapshot refused says nothing about refused snapshots. Marks count over all
//! worlds of the process; the report names those that were never hit.

use std::collections::BTreeMap;

use parking_lot::Mutex;

/// Marks by name, with how often they were hit.
static HITS: Mutex<BTreeMap<&'static str, u64>> = Mutex::new(BTreeMap::new());

/// Notes that a state was reached, if the condition holds. The name must be in the [list](crate::marks::ALL).
#[macro_export]
macro_rules! sometimes {
    ($condition:expr, $name:expr) => {
        if $condition {
            $crate::marks::hit($name, 1);
        }
    };
}

/// What long enough simulation must have seen.
pub const ALL: &[&str] = &[
    "network: a chunk of a snapshot was bad",
    "network: a connection was reset in a batch",
    "network: a cut of one way was noticed",
    "network: a message arrived while nothing came back",
    "network: a message of a connection long gone",
    "network: a message of an earlier incarnation",
    "network: a receiver was gone within a snapshot",
    "network: a sender was gone within a snapshot",
    "network: a short cut was bridged",
    "network: a snapshot arrived and its sender cannot know",
    "network: a snapshot broke in the middle",
    "network: a snapshot came to a standstill",
    "network: a snapshot could not be read",
    "network: a snapshot was refused",
    "network: a snapshot went on after a cut",
    "network: a store came back unnoticed",
    "network: no room on a lane",
    "network: the end of a snapshot was bad",
    "network: too many snapshots at once",
    "world: a group is wanted where another one still is",
    "world: a merge driven by two",
    "world: a merge is not wanted any more",
    "world: a merge taken over came to its end",
    "world: answer that tells nothing",
    "world: batch split asked for",
    "world: birth finished by a start",
    "world: bit flipped",
    "world: client heard nothing",
    "world: command ambiguous",
    "world: command answered at a later attempt",
    "world: command for a range that has changed",
    "world: damage refused at start",
    "world: entries between a freeze and its thaw",
    "world: freeze applied after the merge elsewhere",
    "world: group destroyed",
    "world: group split",
    "world: group split into many",
    "world: group thawed",
    "world: group thawed after the left one was fenced",
    "world: groups merged",
    "world: joint left by hand",
    "world: leader pressed for answers",
    "world: leader restarted after it was cut off",
    "world: lost store replaced",
    "world: membership ambiguous",
    "world: membership changed",
    "world: merge abandoned",
    "world: merge by log",
    "world: merge by snapshot over a frozen group",
    "world: merge by snapshot over a group that serves",
    "world: merge finished by a start",
    "world: merge into a group that is being merged",
    "world: merge kept over a crash",
    "world: merge of a group that is no more",
    "world: merge of groups that are not neighbours",
    "world: merge taken back by a crash",
    "world: merge undone",
    "world: new group not kept",
    "world: partition",
    "world: power cut everywhere",
    "world: proposal refused busy",
    "world: proposal refused disk full",
    "world: read after leadership",
    "world: read of a key that has moved",
    "world: replicas moved",
    "world: replicas moved for a merge",
    "world: split ambiguous",
    "world: split refused busy",
    "world: split refused for its epoch",
    "world: split taken back by a crash",
    "world: start without room",
    "world: store killed between two writes",
    "world: store killed within its recovery",
    "world: store lost",
    "world: store restarted",
    "world: store stopped by itself",
];

/// Counts a mark.
pub fn hit(name: &'static str, times: u64) {
    debug_assert!(ALL.contains(&name), "mark {name:?} is not in the list");
    *HITS.lock().entry(name).or_default() += times;
}

/// Every mark of the list, with how often it was hit; 0: never.
#[must_use]
pub fn report() -> Vec<(&'static str, u64)> {
    let hits = HITS.lock();
    let of = |name| hits.get(name).copied().unwrap_or(0);
    ALL.iter().map(|name| (*name, of(*name))).collect()
}
