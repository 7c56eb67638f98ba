//! The key-value interface: what is replicated, and the gRPC service in front of it.

mod application;
mod command;
mod scan;
mod service;

pub use application::Kv;
pub use command::{Command, Pair, Reply, decode_reply};
pub(crate) use service::{KEY_BYTES_MAX, KvService};
