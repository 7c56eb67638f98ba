//! A host for thousands of Raft groups in one process.
//!
//! # Contract
//! * Nothing leaves the store before the state that it speaks of is synced: acknowledgements and
//!   votes wait inside the write that makes them true. Appends to followers do not wait.
//! * Every caller is answered exactly once ([`Responder`]); [`Reject::Ambiguous`] is the only refusal that
//!   may have had an effect.
//! * What comes from outside is refused with an error or counted, never a panic. A replica whose log or data
//!   is damaged is quarantined; the other thousands go on.
//! * No call of [`HostHandle`] blocks, and nothing in a turn of a worker does: threads are thin shells around
//!   loop bodies which are functions of data ([`parts`]).
//!
//! # Threads and queues
//! Workers own replicas by value, each group on one worker. One log writer merges the appends of all
//! workers into one record and one sync. Appliers, a fetcher and a snapshot thread do what would block.
//!
//! | queue | bound | when full |
//! |---|---|---|
//! | proposals | [`HostConfig::proposal_bytes_max`] over the store, until answered | [`Reject::Busy`] |
//! | messages of other stores | [`HostConfig::inbound_bytes_max`] over the store | dropped, counted |
//! | completions | what is in flight | never refused |
//! | ticks | two | skipped |
//! | committed entries | 4 MiB per group that are not acknowledged | the core hands out no more |
//! | old entries for followers | one request per follower | - |
//! | snapshots | [`HostConfig::snapshot_sends_max`] at once | the follower waits |
//!
//! # Not here on purpose
//! No RocksDB, gRPC or async runtime: the store comes and goes through the four seams of [`mod@env`].
#![forbid(unsafe_code)]

pub mod env;
pub mod parts;
#[cfg(shuttle)]
pub mod sync;

mod apply;
mod budget;
mod changes;
mod codec;
mod config;
mod effects;
mod error;
mod fetch;
mod group;
mod group_map;
mod handle;
mod host;
mod input;
mod persist;
mod ranges;
mod replica;
mod responder;
mod router;
mod snapshots;
#[cfg(not(shuttle))]
mod sync;
mod threads;
mod worker;

pub use changes::Wake;
pub use codec::CodecError;
pub use config::HostConfig;
pub use error::{HostError, Reject};
pub use group::{AppliedState, Epoch, Frozen, GroupDescriptor, GroupId, KeyRange, Member, StoreId};
pub use group_map::{BuildGroupHasher, GroupHasher, GroupMap, GroupSet};
pub use handle::{GroupStatus, HostHandle, HostStats, MemberChange, ReadPermit, ReplicaSummary};
pub use host::{Host, HostEnv};
pub use ranges::{
    MergeAnswer, MergeFailure, MergeStep, Merging, RangeCommand, RangeRefusal, SPLIT_PIECES_MAX,
    SplitPiece,
};
pub use responder::Responder;
pub use worker::BOOTSTRAP;
