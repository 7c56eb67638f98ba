//! One replica of one Raft group, as a pure state machine.
//!
//! The crate reads no clock, spawns nothing, does no I/O, prints nothing and draws no randomness
//! but from the seed in its [`Config`]. Everything it wants done comes out as a value ([`Ready`]);
//! everything that happened comes in by a method of [`RaftNode`].
//!
//! # The host's duties
//! 1. Send the messages of a [`Ready`] at once; write its append durably; hand the token back only against
//!    the receipt. The messages that wait for the disk come out of the append then, and not before.
//! 2. Apply committed entries in order, and say so.
//! 3. Call `tick` at a steady pace, and `step` with what other replicas send; an error of either is about
//!    this one message or this one group.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod config;
mod entry;
mod error;
mod event;
mod invariants;
mod log;
mod membership;
mod memory_storage;
mod message;
mod node;
mod progress;
mod quorum;
mod raft;
mod ready;
mod rng;
mod status;
mod storage;
mod sync_node;
mod types;

pub use config::{Config, ReadMode};
pub use entry::{Entry, EntryKind};
pub use error::{ConfigError, Error, MembershipError, ProposeError, StepError, StorageError};
pub use event::{ConfChangeRefusal, Event, LogCursors, MessageKind};
pub use membership::{
    ConfChange, ConfChangeKind, ConfChangeV2, ConfState, Configuration, Transition,
};
pub use memory_storage::MemoryStorage;
pub use message::{Message, Payload, RejectHint};
pub use node::RaftNode;
pub use quorum::VoteResult;
#[doc(hidden)]
pub use quorum::inspect as quorum_inspect;
pub use ready::{
    Append, Durable, Fetch, Fetched, HardState, Persisted, ReadState, Ready, Snapshot,
    SnapshotMeta, SnapshotOutcome, SoftState,
};
pub use status::{BasicStatus, ProgressState, ProgressStatus, RoleName, Status};
pub use storage::{InitialState, Storage};
pub use sync_node::{SyncNode, SyncReady};
pub use types::{EntryId, Index, ReplicaId, Term};
