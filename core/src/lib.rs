//! One replica of one Raft group, as a pure state machine.
//!
//! The crate reads no clock, spawns nothing, does no I/O, prints nothing and draws no randomness
//! but from the seed in its [`Config`]. Everything it wants done comes out as a value ([`Ready`]);
//! everything that happened comes in by a method of [`RaftNode`].
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod config;
mod entry;
mod error;
mod event;
mod membership;
mod message;
mod node;
mod ready;
mod status;
mod storage;
mod types;

pub use config::{Config, ReadMode};
pub use entry::{Entry, EntryKind};
pub use error::{ConfigError, Error, MembershipError, ProposeError, StepError, StorageError};
pub use event::Event;
pub use membership::{ConfChange, ConfChangeKind, ConfChangeV2, ConfState, Transition};
pub use message::{Message, Payload, RejectHint};
pub use node::RaftNode;
pub use ready::{
    Append, Durable, Fetch, Fetched, HardState, Persisted, ReadState, Ready, Snapshot,
    SnapshotMeta, SnapshotOutcome, SoftState,
};
pub use status::{BasicStatus, ProgressState, ProgressStatus, RoleName, Status};
pub use storage::{InitialState, Storage};
pub use types::{EntryId, Index, ReplicaId, Term};
