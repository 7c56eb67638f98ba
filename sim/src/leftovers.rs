//! Keys on a disk that nobody owns any more.
//!
//! After a destroyed replica nothing may be left but its tombstone: no data of its own, no user
//! key outside of the ranges of the groups that are here, no settled entry, no staged snapshot.

use std::collections::BTreeMap;

use bytes::Bytes;
use polyraft_multiraft::{GroupId, KeyRange};
use polyraft_store::disk::Cf;

use crate::disk::SimDisk;

/// Groups that have a replica on the store, with their ranges.
pub(crate) type Owners = BTreeMap<GroupId, Option<KeyRange>>;

/// The leading byte of keys that groups keep for themselves; the format is in `store`'s documentation.
const LOCAL: u8 = 0;

/// What is left of others than `owners`, as text.
pub(crate) fn of(disk: &SimDisk, owners: &Owners) -> Vec<String> {
    let mut left = Vec::new();
    let group_of = |bytes: Option<&[u8]>| {
        let bytes: [u8; 8] = bytes?.try_into().ok()?;
        Some(GroupId(u64::from_be_bytes(bytes)))
    };
    for (key, _) in disk.contents(Cf::Data) {
        let owned = match key.first() {
            Some(&LOCAL) => {
                group_of(key.get(1..9)).is_some_and(|group| owners.contains_key(&group))
            }
            _ => is_in_a_range(&key.slice(1..), owners),
        };
        if !owned {
            left.push(format!("data {key:?}"));
        }
    }
    for (key, _) in disk.contents(Cf::Settled) {
        if !group_of(key.get(..8)).is_some_and(|group| owners.contains_key(&group)) {
            left.push(format!("settled entry {key:?}"));
        }
    }
    for (key, _) in disk.contents(Cf::Meta) {
        if key.starts_with(b"staged") {
            left.push(format!("staged snapshot {key:?}"));
        }
    }
    left
}

fn is_in_a_range(key: &Bytes, owners: &Owners) -> bool {
    let mut ranges = owners.values().flatten();
    ranges.any(|range| range.contains(key))
}
