//! A world in one thread: whole hosts, simulated, under faults, watched.
//!
//! # Contract
//! * A seed and a commit determine everything that happens: run twice, a world does the same twice.
//! * The code of `core`, `multiraft` and `store` that runs here is the code that runs in
//!   production; only what is behind the seams (disk, network, time) is another one.
//! * Checkers see what crosses the seams and keep their own books; the first thing that must never
//!   be ends the world, and is told with the seed.
//!
//! # Where entropy could come in, and what closes it
//!
//! | source | closed by |
//! |---|---|
//! | time | [`queue::EventQueue`]; hosts know ticks only |
//! | order of threads | there is one; who is next is drawn from the seed |
//! | randomness | [`rng::Rng`]; the core's own is seeded by group, replica and store |
//! | order in hash maps | a hasher with a fixed seed in the hosts; `BTreeMap` here |
//! | disk and network | [`disk::SimDisk`], the network of the world |
#![forbid(unsafe_code)]

pub mod checkers;
pub mod disk;
pub mod history;
pub mod kv;
mod leftovers;
pub mod linearizability;
pub mod marks;
pub mod network;
pub mod observe;
pub mod plan;
pub mod queue;
pub mod rng;
pub mod run;
mod seams;
mod store;
pub mod subject;
pub mod time;
pub mod trace;
pub mod world;
