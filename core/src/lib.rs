//! One replica of one Raft group, as a pure state machine.
//!
//! The crate reads no clock, spawns nothing, does no I/O, prints nothing and draws no randomness
//! but from the seed in its [`Config`]. Everything it wants done comes out as a value ([`Ready`]);
//! everything that happened comes in by a method of [`RaftNode`].
//!
//! # The host's duties
//!
//! 1. Call [`RaftNode::tick`] at a steady pace, [`RaftNode::step`] for each message that arrives, and
//!    after any call take [`RaftNode::ready`] while [`RaftNode::has_ready`] says so.
//! 2. Send [`Ready::messages`] at once, in any order; the network may lose, double and reorder them.
//! 3. Write [`Ready::append`]: install its snapshot, then append its entries over whatever is stored from
//!    the first one's index on, and store its hard state. Sync if [`Append::must_sync`]. Writes of one
//!    replica happen in the order of the Readys; several may be in flight.
//! 4. Only when that is durable open it with [`Append::persisted`], send what comes out, and give the
//!    token to [`RaftNode::on_persisted`], in the same order. By then [`Storage`] must show the
//!    entries; it may do so earlier.
//! 5. Apply [`Ready::committed`] in order. For a change of membership call
//!    [`RaftNode::apply_conf_change`], then for each batch [`RaftNode::on_applied`]. Keep the
//!    configuration together with the applied index: a restart begins with both.
//! 6. Answer each of [`Ready::fetches`] by [`RaftNode::on_fetched`], also if it failed.
//! 7. Serve a read of [`Ready::reads`] when its index is applied. Reads that were asked for are
//!    forgotten when leadership changes; ask again.
//! 8. Tell what became of snapshots ([`RaftNode::report_snapshot`]) and of lost connections
//!    ([`RaftNode::report_unreachable`]).
//! 9. Never use a [`ReplicaId`] twice in a group, also not after the loss of a disk.
//! 10. After an [`Error`] other than [`Error::Membership`], and after [`StepError::Poisoned`] or
//!     [`StepError::Storage`], the replica has stopped: take this one group out of service.
//!
//! A group of one, from the election to the applied value:
//!
//! ```
//! use polyraft_core::{ConfState, Config, Durable, Entry, MemoryStorage, RaftNode, ReplicaId};
//!
//! let members = ConfState { voters: vec![ReplicaId(1)], ..ConfState::default() };
//! let storage = MemoryStorage::with_conf_state(members);
//! let mut node = RaftNode::new(Config::new(ReplicaId(1)), storage)?;
//! node.campaign()?;
//! let (mut applied, mut proposed) = (Vec::new(), false);
//! while node.has_ready() {
//!     let mut ready = node.ready()?;
//!     assert!(ready.messages.is_empty(), "there is nobody to send to");
//!     if let Some(append) = ready.append.take() {
//!         let disk = node.storage_mut();
//!         disk.append(append.entries())?;
//!         if let Some(state) = append.hard_state() {
//!             disk.set_hard_state(state);
//!         }
//!         // A real host syncs here.
//!         let (messages, token) = append.persisted(&Durable::attest());
//!         assert!(messages.is_empty());
//!         node.on_persisted(token)?;
//!     }
//!     if let Some(last) = ready.committed.last() {
//!         node.on_applied(last.index, ready.committed.iter().map(Entry::size).sum())?;
//!         applied.extend(ready.committed.into_iter().map(|entry| entry.data));
//!     }
//!     if !proposed && node.leader() == ReplicaId(1) {
//!         node.propose(vec!["hello".into()])?;
//!         proposed = true;
//!     }
//! }
//! assert_eq!(applied, ["", "hello"], "the entry of the new leader goes first");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What is not here, on purpose
//!
//! Clocks, threads, sockets, files, serialisation of messages, quiescence, snapshots' data, retries of
//! proposals, and sessions of clients: all of them are the host's, who has thousands of groups to do
//! them for at once. The simulated worst case of all this is in `tests/chaos.rs`.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

#[cfg(canary)]
#[doc(hidden)]
pub mod canary;
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
mod planted;
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
