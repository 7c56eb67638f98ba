//! The window of append messages that a follower has not acknowledged.
//!
//! Bounded by messages and by bytes. The byte bound is soft: one message may cross it, so that a
//! large entry can be sent at all. Memory grows with what is in flight and is given back when the
//! window empties, since a host has one of these per follower of each of thousands of groups.

use alloc::collections::VecDeque;

use crate::types::Index;

#[derive(Clone, Debug, Default)]
pub(crate) struct Inflights {
    window: VecDeque<(Index, u64)>,
    bytes: u64,
}

/// The bounds of a window; they are the same for all followers of a replica.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InflightLimits {
    pub(crate) messages: usize,
    /// 0: no limit.
    pub(crate) bytes: u64,
}

impl Inflights {
    /// A message whose last entry is `last` was sent.
    pub(crate) fn add(&mut self, last: Index, bytes: u64) {
        debug_assert!(self.window.back().is_none_or(|&(index, _)| index < last));
        self.window.push_back((last, bytes));
        self.bytes += bytes;
    }

    /// Everything up to `index` was acknowledged.
    pub(crate) fn free_to(&mut self, index: Index) {
        while let Some(&(last, bytes)) = self.window.front() {
            if last > index {
                return;
            }
            self.window.pop_front();
            self.bytes -= bytes;
        }
        if self.window.capacity() > KEEP_CAPACITY {
            self.window = VecDeque::new();
        }
    }

    pub(crate) fn is_full(&self, limits: InflightLimits) -> bool {
        self.window.len() >= limits.messages || (limits.bytes > 0 && self.bytes >= limits.bytes)
    }

    pub(crate) fn messages(&self) -> usize {
        self.window.len()
    }

    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// An empty window larger than this is given back.
const KEEP_CAPACITY: usize = 32;

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a plain list: sent and not acknowledged is in flight, nothing else.
        #[test]
        fn agrees_with_a_list(steps in prop::collection::vec((0u64..3, 1u64..50), 0..200)) {
            let limits = InflightLimits { messages: 8, bytes: 100 };
            let (mut window, mut list) = (Inflights::default(), Vec::new());
            let mut next = 1;
            for (what, size) in steps {
                if what == 0 {
                    let upto = next - size.min(next);
                    window.free_to(Index(upto));
                    list.retain(|&(index, _)| index > upto);
                } else {
                    window.add(Index(next), size);
                    list.push((next, size));
                    next += 1;
                }
                let bytes: u64 = list.iter().map(|&(_, size)| size).sum();
                prop_assert_eq!(window.messages(), list.len());
                prop_assert_eq!(window.bytes(), bytes);
                prop_assert_eq!(window.is_full(limits), list.len() >= 8 || bytes >= 100);
            }
        }
    }

    #[test]
    fn one_message_may_cross_the_byte_limit() {
        let limits = InflightLimits {
            messages: 10,
            bytes: 100,
        };
        let mut window = Inflights::default();
        window.add(Index(1), 99);
        assert!(!window.is_full(limits));
        window.add(Index(2), 1000);
        assert!(window.is_full(limits));
        window.free_to(Index(2));
        assert_eq!(window.bytes(), 0);
    }
}
