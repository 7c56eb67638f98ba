//! What a client keeps in mind: which range holds a key, who leads it, and the way there.
//!
//! All of it is hints. A request says what its client believes; answers and refusals say what is true
//! instead. Whatever is wrong costs an attempt: the endpoints are always asked in the end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tonic::transport::Channel;

use super::Client;
use super::cache::{RangeCache, Route};
use super::connection::Asking;
use crate::failure::{Failure, Reason};
use crate::peers::connect_lazily;
use crate::proto::kv::{
    Consistency, GetRequest, GetResponse, RangeHint, ResponseHeader, ScanRequest, ScanResponse,
    WriteRequest, WriteResponse,
};

/// For so long nobody goes straight to a store that could not be reached: clients may see other
/// addresses than stores do.
const AVOIDED: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Memory {
    ranges: Mutex<RangeCache>,
    channels: Mutex<BTreeMap<String, Channel>>,
    avoided: Mutex<BTreeMap<String, Instant>>,
}

/// A request for a key whose range may be known.
pub(super) trait Keyed: Clone {
    /// The route of the keys; none: it is not looked for, or not known.
    fn route(&self, ranges: &RangeCache) -> Option<Arc<Route>>;
    /// Whether it goes by key, to whoever leads.
    fn goes_by_key(&self) -> bool;
    fn set_hint(&mut self, hint: RangeHint);
}

/// An answer that says where it comes from.
pub(super) trait Headed {
    fn headers(&self) -> impl Iterator<Item = &ResponseHeader>;
}

/// A call by key.
pub(super) struct ByKey<'a, Q> {
    pub(super) client: &'a Client,
    pub(super) request: Q,
}

impl<Q: Keyed> ByKey<'_, Q> {
    fn route(&self) -> Option<Arc<Route>> {
        let memory = &self.client.memory;
        let by_key = self.request.goes_by_key();
        by_key.then(|| self.request.route(&memory.ranges.lock()))?
    }
}

impl<Q: Keyed, A: Headed> Asking<Q, A> for ByKey<'_, Q> {
    fn attempt(&self) -> (Option<(String, Channel)>, Q) {
        let mut request = self.request.clone();
        if !request.goes_by_key() {
            return (None, request);
        }
        let route = self.route();
        // Who knows nothing says so, and is told.
        request.set_hint(route.as_deref().map(Route::hint).unwrap_or_default());
        let straight = route.and_then(|route| self.client.way_to(&route.leader_address));
        (straight, request)
    }

    fn answered(&self, answer: &A) {
        let mut ranges = self.client.memory.ranges.lock();
        for range in answer.headers().flat_map(|header| &header.ranges) {
            ranges.learn(Route::from(range.clone()));
        }
    }

    fn failed(&self, failure: &Failure, straight: Option<&String>) {
        let memory = &self.client.memory;
        let believed = self.route();
        let mut ranges = memory.ranges.lock();
        for range in &failure.ranges {
            ranges.learn(Route::from(range.clone()));
        }
        let Some(believed) = believed else {
            return;
        };
        match failure.reason {
            // A refusal that says nothing better.
            Reason::RangeChanged if failure.ranges.is_empty() => ranges.forget(believed.group),
            _ if straight.is_some() && is_about_the_store(failure.reason) => {
                ranges.set_leader(believed.group, 0, "");
            }
            _ => {}
        }
        if let Some(address) = straight
            && failure.reason == Reason::Unreachable
        {
            let until = Instant::now() + AVOIDED;
            memory.avoided.lock().insert(address.clone(), until);
        }
    }
}

impl Client {
    /// What is known of the range that holds a key, from the answers so far.
    #[must_use]
    pub fn route_of(&self, key: &[u8]) -> Option<Arc<Route>> {
        self.memory.ranges.lock().of_key(key)
    }

    /// The connection to a store at this address, unless there was no way to it lately.
    fn way_to(&self, address: &str) -> Option<(String, Channel)> {
        if address.is_empty() {
            return None;
        }
        let mut avoided = self.memory.avoided.lock();
        if let Some(until) = avoided.get(address) {
            if Instant::now() < *until {
                return None;
            }
            avoided.remove(address);
        }
        drop(avoided);
        let endpoint = self.endpoints.iter().find(|(known, _)| known == address);
        if let Some((_, channel)) = endpoint {
            return Some((address.to_owned(), channel.clone()));
        }
        let mut channels = self.memory.channels.lock();
        if let Some(channel) = channels.get(address) {
            return Some((address.to_owned(), channel.clone()));
        }
        let channel = connect_lazily(address)?;
        channels.insert(address.to_owned(), channel.clone());
        Some((address.to_owned(), channel))
    }
}

/// Whether another store may do better, so that it is not gone to straight any more.
const fn is_about_the_store(reason: Reason) -> bool {
    match reason {
        Reason::NotLeader
        | Reason::NoGroup
        | Reason::Unreachable
        | Reason::NoQuorum
        | Reason::Timeout
        | Reason::Stale
        | Reason::Stopping
        | Reason::NotInitialised
        | Reason::Ambiguous
        | Reason::Internal => true,
        Reason::RangeChanged
        | Reason::Busy
        | Reason::DiskFull
        | Reason::TooLarge
        | Reason::BadRequest
        | Reason::Refused
        | Reason::SessionExpired => false,
    }
}

impl Keyed for GetRequest {
    fn route(&self, ranges: &RangeCache) -> Option<Arc<Route>> {
        ranges.of_key(&self.key)
    }

    fn goes_by_key(&self) -> bool {
        self.group == 0 && self.consistency() != Consistency::Stale
    }

    fn set_hint(&mut self, hint: RangeHint) {
        self.hint = Some(hint);
    }
}

impl Keyed for WriteRequest {
    fn route(&self, ranges: &RangeCache) -> Option<Arc<Route>> {
        ranges.of_key(&self.mutations.first()?.key)
    }

    fn goes_by_key(&self) -> bool {
        self.group == 0
    }

    fn set_hint(&mut self, hint: RangeHint) {
        self.hint = Some(hint);
    }
}

impl Keyed for ScanRequest {
    fn route(&self, ranges: &RangeCache) -> Option<Arc<Route>> {
        if self.reverse {
            ranges.before(self.end.as_deref())
        } else {
            ranges.of_key(&self.start)
        }
    }

    fn goes_by_key(&self) -> bool {
        self.group == 0 && self.consistency() != Consistency::Stale
    }

    fn set_hint(&mut self, hint: RangeHint) {
        self.hint = Some(hint);
    }
}

impl Headed for GetResponse {
    fn headers(&self) -> impl Iterator<Item = &ResponseHeader> {
        self.header.iter()
    }
}

impl Headed for WriteResponse {
    fn headers(&self) -> impl Iterator<Item = &ResponseHeader> {
        self.header.iter()
    }
}

impl Headed for ScanResponse {
    fn headers(&self) -> impl Iterator<Item = &ResponseHeader> {
        self.parts.iter().filter_map(|part| part.header.as_ref())
    }
}

#[cfg(test)]
mod tests;
