//! Whole hosts on one thread, driven through their parts, with everything around them in memory: each run is
//! a function of its seed.
#![allow(clippy::print_stdout, reason = "how a failure can be seen again")]

mod adversity;
mod basics;
mod chaos;
mod cluster;
mod conformance;
mod faults;
mod fuzz;
mod history;
mod log;
mod machine;
mod membership;
mod merges;
mod merges_amid;
mod network;
mod node;
mod reads;
mod snapshots;
mod splits;
mod unreachable;
