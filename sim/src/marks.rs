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
pub const ALL: &[&str] = &[];

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
