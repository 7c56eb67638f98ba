//! The admin interface, and what stores ask of each other.

mod groups;
mod init;
mod internal;
mod service;
mod view;

pub(crate) use init::{Joining, say_hello};
pub(crate) use internal::{ADDRESSES, BeforeJoining, InternalService};
pub(crate) use service::AdminService;
