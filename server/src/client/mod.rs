//! A client for programs: calls any store of a cluster, and the next one if that cannot be reached.
//!
//! A call is tried at another store only if it certainly had no effect at the first, or if it
//! counts once however often it arrives ([`Client::write_once`]).
//!
//! Any store answers any request, but the one that leads the key's range need not forward it: a client
//! keeps in mind what answers say of ranges ([`RangeCache`]) and goes straight there.

mod cache;
mod connection;
mod memory;
mod requests;
mod scan;

use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use tonic::transport::Channel;

pub use self::cache::{RangeCache, Route};
use self::memory::Memory;
pub(crate) use self::requests::kv_client;
pub use self::requests::{cas_request, put_request};
pub use self::scan::{Scan, ScanOptions, prefix_end};
use crate::peers::connect_lazily;

/// A connection to a cluster. Cheap to share by reference between tasks.
#[derive(Debug)]
pub struct Client {
    endpoints: Vec<(String, Channel)>,
    next: AtomicUsize,
    timeout: Duration,
    memory: Memory,
}

impl Client {
    /// A client of the stores at `endpoints` (`HOST:PORT`); connects when it is used. Each call may
    /// take `timeout`.
    ///
    /// # Errors
    /// No endpoint is given, or one is no address.
    pub fn new(endpoints: &[String], timeout: Duration) -> Result<Self, String> {
        if endpoints.is_empty() {
            return Err("no endpoint is given".to_owned());
        }
        let connect = |endpoint: &String| {
            let channel =
                connect_lazily(endpoint).ok_or_else(|| format!("{endpoint:?} is no HOST:PORT"))?;
            Ok((endpoint.clone(), channel))
        };
        let endpoints = endpoints
            .iter()
            .map(connect)
            .collect::<Result<_, String>>()?;
        Ok(Self {
            endpoints,
            next: AtomicUsize::new(0),
            timeout,
            memory: Memory::default(),
        })
    }

    /// From now on each call may take `timeout`.
    pub const fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }
}
