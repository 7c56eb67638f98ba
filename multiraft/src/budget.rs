//! Byte budgets of a store. A permit gives its bytes back when it is dropped, so none can leak.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::sync::AtomicU64;

/// So many bytes may be in use at once.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    used: Arc<AtomicU64>,
    limit: u64,
}

/// Leave to use some bytes.
#[derive(Debug)]
pub struct Permit {
    used: Arc<AtomicU64>,
    bytes: u64,
}

impl Budget {
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            used: Arc::default(),
            limit,
        }
    }

    /// Never blocks. What is larger than the whole budget passes when nothing else is in use.
    pub(crate) fn try_acquire(&self, bytes: u64) -> Option<Permit> {
        let fits = |used: u64| (used == 0 || used + bytes <= self.limit).then_some(used + bytes);
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits)
            .ok()?;
        Some(Permit {
            used: Arc::clone(&self.used),
            bytes,
        })
    }

    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_come_back_when_dropped() {
        let budget = Budget::new(10);
        let one = budget.try_acquire(6).unwrap();
        assert!(budget.try_acquire(6).is_none());
        let two = budget.try_acquire(4).unwrap();
        drop(one);
        assert_eq!(budget.used(), 4);
        drop(two);
        assert!(
            budget.try_acquire(100).is_some(),
            "one oversized request passes alone"
        );
        assert_eq!(budget.used(), 0);
    }
}
