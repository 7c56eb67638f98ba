//! Everything that threads share, wait with or are started by, from one place.
//!
//! Normally these are names of others and nothing more. Built with `--cfg shuttle` they are models
//! of the same things for the checker of that name, which runs all threads of a test as coroutines
//! of one, chooses at every operation on anything from here who goes on, and can repeat each of
//! its choices. So the code of this crate uses what is named here and nothing else of its kind;
//! but [`Arc`](std::sync::Arc), with which nobody waits, and the counters of
//! [`Shared`](crate::worker), on which nobody acts.
//!
//! What the models cannot show: orderings of memory (every atomic operation is sequentially
//! consistent there), and what happens inside of crossbeam, dashmap and parking_lot themselves.

#[cfg(not(shuttle))]
pub(crate) use {
    crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, select, unbounded},
    dashmap::{DashMap, Entry},
    parking_lot::Mutex,
    std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64},
    std::thread::{Builder, JoinHandle, sleep},
};

#[cfg(shuttle)]
mod channel;
#[cfg(shuttle)]
mod lock;
#[cfg(shuttle)]
mod map;
#[cfg(all(test, shuttle))]
mod tests;
#[cfg(shuttle)]
pub mod time;

#[cfg(shuttle)]
pub use lock::{Guard, Mutex};
#[cfg(shuttle)]
pub(crate) use {
    channel::{
        Receiver, RecvTimeoutError, Selected, Sender, bounded, select, select_two, unbounded,
    },
    map::{DashMap, Entry},
    shuttle::sync::atomic::{AtomicBool, AtomicU32, AtomicU64},
    shuttle::thread::{Builder, JoinHandle},
    time::sleep,
};
