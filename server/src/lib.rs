//! The ready server: thousands of Raft groups behind a key-value and an admin interface over gRPC.
//!
//! The one place where core, host, store and transport meet. It decides nothing about consensus: it
//! turns requests into calls of a [`HostHandle`](polyraft_multiraft::HostHandle), forwards them to
//! the store that leads, and turns refusals into gRPC statuses by one table ([`failure`]).
//!
//! # Contract
//! * Any store answers any request; it forwards what another store leads, until the client's deadline.
//! * A request is tried again only if it certainly had no effect. Every failure says whether it had one.
//! * A linearizable read sees every write acknowledged before it; a write is acknowledged after a
//!   majority has synced it and the leader has applied it.
//! * SIGTERM moves leaderships away, flushes, and ends the process with 0.
//!
//! # Where things are
//! | module | what |
//! |---|---|
//! | [`kv`], `admin` | the two interfaces, and what is replicated |
//! | `owner`, `routing`, `peers` | from a key to its group, and to the store that leads that |
//! | `directory` | what a store keeps in mind of groups, and the replicated directory of all of them |
//! | `instances`, `environment` | which directory each store has; where a store runs |
//! | `node` | start, join, drain, stop |
//! | `balance` | leaderships spread over the stores; what else should change, and why |
//! | `metrics`, `scrape` | what the store does, for any recorder of the `metrics` crate; for Prometheus |
//! | `load`, `demo` | load generator; three stores on one machine, with a crash |
//! | [`cli`] | what the user typed; [`client`] for programs |
//! | [`embed`] | a store for a state machine of one's own |
#![forbid(unsafe_code)]

pub mod cli;
pub mod client;
pub mod embed;
pub mod failure;
pub mod kv;
pub mod peers;
pub mod proto;

mod admin;
mod balance;
mod demo;
mod directory;
mod environment;
#[cfg(test)]
mod fuzz;
mod instances;
mod load;
mod metrics;
mod node;
mod owner;
mod routing;
mod scrape;
mod server;
