//! The admin interface, and what stores ask of each other.

mod check;
mod decommission;
mod groups;
mod init;
mod internal;
mod joining;
mod merges;
mod moves;
mod plan;
mod ranges;
mod replicas;
mod service;
mod view;

pub(crate) use internal::{ADDRESSES, BeforeJoining, INSTANCES, InternalService};
pub(crate) use joining::{Joining, Membership, say_hello, shown};
pub(crate) use merges::Driven;
pub(crate) use service::AdminService;
