//! Maps by group. Group ids are chosen by the cluster and not by strangers, so the hash need not resist an
//! attacker: one multiplication instead of SipHash, and the same order in every run, which the simulator
//! relies on. Whoever iterates where order can be seen sorts first.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

use crate::group::GroupId;

/// A map by group.
pub type GroupMap<V> = HashMap<GroupId, V, BuildGroupHasher>;
/// A set of groups.
pub type GroupSet = HashSet<GroupId, BuildGroupHasher>;
/// See the module.
pub type BuildGroupHasher = BuildHasherDefault<GroupHasher>;

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub struct GroupHasher(u64);

impl Hasher for GroupHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        // Fibonacci hashing; folding the whole product mixes low and high bits of the id into both ends.
        let product = u128::from(self.0 ^ number) * 0x9E37_79B9_7F4A_7C15;
        self.0 = product as u64 ^ (product >> 64) as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::hash::BuildHasher;

    use super::*;

    /// Ids are mostly consecutive, or consecutive per store in the upper bits.
    #[test]
    fn usual_ids_spread_over_both_ends_of_the_hash() {
        let build = BuildGroupHasher::default();
        for shift in [0, 8, 32, 48] {
            let (mut low, mut high) = (BTreeMap::new(), BTreeMap::new());
            for id in 1..=4096u64 {
                let hash = build.hash_one(GroupId(id << shift));
                *low.entry(hash % 4096).or_insert(0u32) += 1;
                *high.entry(hash >> 57).or_insert(0u32) += 1;
            }
            let worst = |counts: &BTreeMap<u64, u32>| counts.values().copied().max();
            assert!(worst(&low) <= Some(16), "shift {shift}: {:?}", worst(&low));
            assert!(
                worst(&high) <= Some(128),
                "shift {shift}: {:?}",
                worst(&high)
            );
        }
    }
}
