//! A host for thousands of Raft groups in one process.

pub mod env;

mod apply;
mod budget;
mod codec;
mod config;
mod effects;
mod error;
mod fetch;
mod group;
mod handle;
mod host;
mod input;
mod persist;
mod replica;
mod responder;
mod router;
mod snapshots;
mod threads;
mod worker;

pub use codec::CodecError;
pub use config::HostConfig;
pub use error::{HostError, Reject};
pub use group::{AppliedState, Epoch, GroupDescriptor, GroupId, KeyRange, Member, StoreId};
pub use handle::{GroupStatus, HostHandle, HostStats, MemberChange, ReadPermit, ReplicaSummary};
pub use host::{Host, HostEnv};
pub use responder::Responder;
pub use worker::BOOTSTRAP;

/// The loop bodies of a host as functions of data, for shells other than the threads of [`Host`]: a
/// simulator calls these in an order of its own.
pub mod parts {
    pub use crate::apply::{Applier, Outcome};
    pub use crate::budget::Permit;
    pub use crate::effects::{
        ApplyTask, DestroyData, Effects, FetchTask, LaneKey, SnapshotTask, WriteItem,
    };
    pub use crate::input::{Admin, Applied, AppliedItem, Input, PersistedItem};
    pub use crate::persist::{LogWriter, Written};
    pub use crate::replica::Pending;
    pub use crate::worker::Worker;
}
