//! The lock that threads wait for here: parking_lot's, or with `--cfg shuttle` the model of it that lets
//! a test choose who gets it.

#[cfg(not(shuttle))]
pub(crate) use parking_lot::Mutex;
#[cfg(shuttle)]
pub(crate) use polyraft_multiraft::sync::Mutex;
