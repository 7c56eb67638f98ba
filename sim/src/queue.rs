//! What will happen, ordered by time; what happens at the same time is ordered by lot.
//!
//! Invariant: time never goes back. The lot comes from the seed, so that equal seeds give equal orders.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use crate::rng::Rng;
use crate::time::Nanos;

/// See the module.
#[derive(Debug)]
pub struct EventQueue<E> {
    heap: BinaryHeap<Reverse<Due<E>>>,
    now: Nanos,
    lots: Rng,
    /// Tells events apart whose time and lot are equal.
    next: u64,
}

#[derive(Debug)]
struct Due<E> {
    at: Nanos,
    lot: u32,
    number: u64,
    event: E,
}

impl<E> Due<E> {
    const fn key(&self) -> (Nanos, u32, u64) {
        (self.at, self.lot, self.number)
    }
}

impl<E> PartialEq for Due<E> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl<E> Eq for Due<E> {}

impl<E> PartialOrd for Due<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Due<E> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

impl<E> EventQueue<E> {
    /// Nothing will happen yet.
    #[must_use]
    pub const fn new(lots: Rng) -> Self {
        Self {
            heap: BinaryHeap::new(),
            now: 0,
            lots,
            next: 0,
        }
    }

    /// The time of the last event taken.
    #[must_use]
    pub const fn now(&self) -> Nanos {
        self.now
    }

    /// An event in `delay` from now.
    pub fn push(&mut self, delay: Nanos, event: E) {
        self.push_at(self.now.saturating_add(delay), event);
    }

    /// An event at a time; one that is over means now.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the lower bits are as good a lot as any"
    )]
    pub fn push_at(&mut self, at: Nanos, event: E) {
        self.next += 1;
        self.heap.push(Reverse(Due {
            at: at.max(self.now),
            lot: self.lots.bits() as u32,
            number: self.next,
            event,
        }));
    }

    /// The next event; time moves to it.
    pub fn pop(&mut self) -> Option<E> {
        let Reverse(due) = self.heap.pop()?;
        self.now = due.at;
        Some(due.event)
    }

    /// How much will happen, as known now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// Whether nothing will ever happen.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_order_of_time_and_ties_by_lot() {
        let order = |seed| {
            let mut queue = EventQueue::new(Rng::new(seed));
            queue.push(20, 100);
            for event in 0..10 {
                queue.push(10, event);
            }
            let order: Vec<i32> = std::iter::from_fn(|| queue.pop()).collect();
            assert_eq!(queue.now(), 20);
            order
        };
        let first = order(1);
        assert_eq!(first.last(), Some(&100));
        assert_eq!(first, order(1));
        assert_ne!(first, order(2));
    }
}
