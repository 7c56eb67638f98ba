//! A whole host, its threads and all, under schedules that shuttle chooses: what a simulator on
//! one thread cannot see. `make shuttle` runs them; without `--cfg shuttle` nothing is here.
//!
//! Each run is a function of its schedule. One that fails is kept in a file, whose name is
//! printed, and happens again with `REPLAY=that-file` and the name of its test;
//! `SHUTTLE_RANDOM_SEED` gives other schedules and `TIMES` more of them.
#![cfg(shuttle)]

mod answers;
mod check;
mod groups;
#[path = "../host/log.rs"]
#[allow(dead_code, reason = "for simulated hosts first of all")]
mod log;
#[path = "../host/machine.rs"]
#[allow(dead_code, reason = "for simulated hosts first of all")]
mod machine;
mod snapshots;
mod store;
mod wakeups;
