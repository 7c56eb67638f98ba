//! The Raft log and the data of all groups of a store, on one engine.
//!
//! # Contract
//! * [`RaftLog`] is a `LogEngine`: one record per synced batch; a receipt is given only for what survives a
//!   power cut; recovery refuses what it cannot trust.
//! * [`DataStateMachine`] is a `StateMachine` around an [`Application`] of the user's: one batch for many
//!   groups, each with its applied index. [`Sessions`] around an application apply a command once,
//!   however often it is proposed.
//! * Both share one engine behind the small seam [`Disk`](disk::Disk): RocksDB with the feature `rocksdb`
//!   (default), or [`MemoryDisk`], which models what a crash keeps.
//!
//! `log` knows nothing of the payload of entries, `data` nothing of Raft. Only `rocks` names RocksDB.

pub mod bulk;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod disk;

mod data;
#[cfg(feature = "rocksdb")]
mod engine;
mod keys;
mod log;
mod memory;
mod meta;
#[cfg(feature = "rocksdb")]
mod rocks;
mod sync;
mod tables;

pub use data::sessions::{self, Sessions};
pub use data::{
    Application, DataStateMachine, GroupTxn, Page, Room, SharedData, SnapshotOptions, Span,
    SplitAt, pair_bytes,
};
#[cfg(feature = "rocksdb")]
pub use engine::{Store, StoreOptions};
pub use log::{LogOptions, RaftLog};
pub use memory::{Fault, MemoryDisk};
pub use meta::{FORMAT, Identity, StoreMeta};
#[cfg(feature = "rocksdb")]
pub use rocks::{RocksDisk, RocksOptions, engine_version};
pub use tables::Tables;
