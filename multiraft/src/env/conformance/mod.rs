//! Suites that every implementation of a seam must pass, for its tests (feature `conformance`).
//!
//! A suite is a function over a *subject*: something that opens the implementation again and again over the
//! same storage, cuts its power, and lets it run into faults. What a subject cannot do (cut the power of a
//! real disk) it says, and those checks are left out. A broken promise is a panic that names it.
//!
//! [`LogModel`] is the contract of a log written down as plainly as possible: the oracle of the log suite,
//! and good enough to be the log of a simulated store. [`MemoryNetwork`] is a transport in which nothing
//! happens by itself: the network of a simulation.

mod log_engine;
mod log_model;
mod network;
mod range_changes;
mod state_machine;
mod transport;

pub use log_engine::{LogSubject, log_engine};
pub use log_model::LogModel;
pub use network::{MemoryNetwork, MemoryStats, MemoryTransport, Transit, TransitKind};
pub use range_changes::{merges, splits};
pub use state_machine::{DataSubject, state_machine};
pub use transport::{TransportSubject, transport};

/// What the next writes run into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeamFault {
    /// No room, until the fault is taken away.
    Full,
    /// The next sync fails, and with it everything later.
    SyncFails,
}

/// A small random source by seed (splitmix64), so that a failure can be repeated.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The source of a seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub const fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `limit`, which must not be 0.
    pub const fn below(&mut self, limit: u64) -> u64 {
        self.bits() % limit
    }

    /// True in `percent` of 100 cases.
    pub const fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of `items`, which must not be empty.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        let at = self.below(items.len() as u64);
        &items[usize::try_from(at).unwrap_or(0)]
    }
}
