//! A host for thousands of Raft groups in one process.

pub mod env;
mod error;
mod group;
mod handle;
mod responder;

pub use error::{HostError, Reject};
pub use group::{AppliedState, Epoch, GroupDescriptor, GroupId, KeyRange, Member, StoreId};
pub use handle::{GroupStatus, HostHandle, MemberChange, ReadPermit, ReplicaSummary};
pub use responder::Responder;
