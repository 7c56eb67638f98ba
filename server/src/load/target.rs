//! The cluster as the load generator sees it: the groups that it began with, what became of their ranges,
//! channels to all stores.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::RwLock;
use tonic::transport::Channel;

use crate::cli::Error;
use crate::client::{Client, RangeCache, Route};
use crate::failure::{Failure, Reason};
use crate::peers::connect_lazily;
use crate::proto::admin::{Environment, Group, ListGroupsRequest, StatusRequest, StoreStatus};
use crate::proto::kv::{Range, RangeHint};

/// What of a cluster is put under load, and through how many connections.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    /// To each store: one alone is limited by its window and one task's time.
    pub(crate) connections: usize,
    /// Only these groups; empty: all that have a range.
    pub(crate) groups: Vec<RangeInclusive<u64>>,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            connections: 4,
            groups: Vec::new(),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Target {
    /// Where keys are drawn from. Their ranges may have changed since.
    pub(super) groups: Vec<GroupTarget>,
    ranges: RwLock<RangeCache>,
    stores: BTreeMap<u64, Vec<Channel>>,
    admin: Client,
    next: AtomicUsize,
    /// Fewest and most replicas of a group.
    replicas: (usize, usize),
}

/// A group with a range.
#[derive(Debug)]
pub(super) struct GroupTarget {
    pub(super) group: u64,
    start: Bytes,
    /// The first of the eight-byte prefixes whose keys all lie in the range, and how many there are.
    prefixes: (u64, u64),
}

impl GroupTarget {
    fn new(group: u64, start: Bytes, end: Option<&Bytes>) -> Self {
        let first = head(&start);
        // Below a prefix that the range's first key goes on after there may be keys of the one before.
        let low = u128::from(first) + u128::from(start.len() > 8);
        let high = end.map_or(1 << 64, |end| u128::from(head(end)));
        // All of them are one more than fit: that one is left out.
        let count = u64::try_from(high.saturating_sub(low)).unwrap_or(u64::MAX);
        Self {
            group,
            start,
            prefixes: (u64::try_from(low).unwrap_or(u64::MAX), count),
        }
    }

    /// A key with this name somewhere in the range, always at the same place.
    fn key(&self, name: &str) -> Bytes {
        let (low, count) = self.prefixes;
        let mut key = BytesMut::with_capacity(self.start.len().max(8) + name.len());
        if count == 0 {
            // A narrow range: all behind its first key.
            key.put_slice(&self.start);
        } else {
            let mut hasher = DefaultHasher::new();
            name.hash(&mut hasher);
            let part = (u128::from(hasher.finish()) * u128::from(count)) >> 64;
            key.put_u64(low + u64::try_from(part).unwrap_or(0));
        }
        key.put_slice(name.as_bytes());
        key.freeze()
    }
}

/// The first eight bytes of a key, zeros where it ends.
fn head(key: &[u8]) -> u64 {
    let mut head = [0; 8];
    let len = key.len().min(8);
    head[..len].copy_from_slice(&key[..len]);
    u64::from_be_bytes(head)
}

impl Target {
    /// Asks the cluster at `endpoints` for its groups and stores.
    ///
    /// # Errors
    /// It cannot be asked, or has no groups.
    pub(crate) async fn find(
        endpoints: &[String],
        timeout: Duration,
        shape: &Shape,
    ) -> Result<Self, Error> {
        let admin = Client::new(endpoints, timeout).map_err(Error::bad_request)?;
        let request = ListGroupsRequest { local: false };
        let list = admin
            .admin(
                true,
                request,
                |mut c, r| async move { c.list_groups(r).await },
            )
            .await?;
        let list = list.groups;
        if !list.iter().any(|group| group.start.is_some()) {
            let text = "the cluster has no groups: run `polyraft init` first";
            return Err(Failure::new(Reason::NotInitialised, text).into());
        }
        let wanted = |group: &Group| {
            let asked = shape
                .groups
                .iter()
                .any(|range| range.contains(&group.group));
            group.start.is_some() && (shape.groups.is_empty() || asked)
        };
        let list: Vec<Group> = list.into_iter().filter(wanted).collect();
        let members = || list.iter().map(|group| group.members.len());
        let replicas = (members().min().unwrap_or(0), members().max().unwrap_or(0));
        let mut ranges = RangeCache::default();
        for group in &list {
            ranges.learn(Route::from(group));
        }
        let groups = list.into_iter().filter_map(|group| {
            let start = group.start?;
            Some(GroupTarget::new(group.group, start, group.end.as_ref()))
        });
        let groups: Vec<GroupTarget> = groups.collect();
        if groups.is_empty() {
            return Err(Error::bad_request(
                "none of the groups asked for has a range",
            ));
        }
        let mut stores = BTreeMap::new();
        for status in status_of_all(&admin).await? {
            let channels: Vec<Channel> = (0..shape.connections)
                .filter_map(|_| connect_lazily(&status.address))
                .collect();
            if !channels.is_empty() {
                stores.insert(status.store, channels);
            }
        }
        Ok(Self {
            groups,
            ranges: RwLock::new(ranges),
            stores,
            admin,
            next: AtomicUsize::new(0),
            replicas,
        })
    }

    /// What is believed of the range of a key, and a channel to the store that leads it as far as known, else
    /// to any.
    pub(super) fn way(&self, key: &[u8]) -> Option<(RangeHint, Channel)> {
        let route = self.ranges.read().of_key(key);
        let hint = route.as_deref().map(Route::hint).unwrap_or_default();
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let any = || {
            // Each of its connections before the next store.
            let each = self.stores.values().next().map_or(1, Vec::len);
            self.stores
                .values()
                .nth(turn / each % self.stores.len().max(1))
        };
        let channels = self.stores.get(&hint.leader_store).or_else(any)?;
        let channel = channels.get(turn % channels.len())?;
        Some((hint, channel.clone()))
    }

    /// What an answer says of ranges.
    pub(super) fn learn(&self, news: &[Range]) {
        if !news.is_empty() {
            let mut ranges = self.ranges.write();
            for range in news {
                ranges.learn(Route::from(range.clone()));
            }
        }
    }

    /// The same of a refusal. Whoever was asked is not taken for the leader any more.
    pub(super) fn failed(&self, key: &[u8], failure: &Failure) {
        self.learn(&failure.ranges);
        let mut ranges = self.ranges.write();
        if let Some(route) = ranges.of_key(key)
            && failure.reason != Reason::RangeChanged
        {
            ranges.set_leader(route.group, failure.leader.unwrap_or(0), "");
        }
    }

    /// The key of this name in the range that group `group` had at the beginning: names are spread over
    /// it, so that its parts are under load alike once it is split.
    pub(super) fn key(&self, group: usize, name: &str) -> Bytes {
        self.groups[group].key(name)
    }

    /// What every store says of itself.
    pub(super) async fn status(&self) -> Result<Vec<StoreStatus>, Failure> {
        status_of_all(&self.admin).await
    }

    /// Fewest and most replicas of a group.
    pub(super) const fn replicas(&self) -> (usize, usize) {
        self.replicas
    }

    /// Where each store runs, as far as it can be asked.
    pub(super) async fn environments(&self) -> BTreeMap<u64, (String, Environment)> {
        let stores = self.status().await.unwrap_or_default();
        let told = |s: StoreStatus| Some((s.store, (s.version, s.environment?)));
        stores.into_iter().filter_map(told).collect()
    }

    /// Groups led by each store.
    pub(super) async fn leaders(&self) -> BTreeMap<u64, u64> {
        let stores = self.status().await.unwrap_or_default();
        stores
            .into_iter()
            .filter(|s| s.error.is_empty())
            .map(|s| (s.store, s.leaders))
            .collect()
    }
}

async fn status_of_all(admin: &Client) -> Result<Vec<StoreStatus>, Failure> {
    let request = StatusRequest { all: true };
    let status = admin
        .admin(true, request, |mut c, r| async move { c.status(r).await })
        .await?;
    Ok(status.stores)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn keys(start: &[u8], end: Option<&[u8]>) -> BTreeSet<Bytes> {
        let end = end.map(Bytes::copy_from_slice);
        let target = GroupTarget::new(1, Bytes::copy_from_slice(start), end.as_ref());
        (0..1000).map(|n| target.key(&format!("{n}"))).collect()
    }

    #[test]
    fn keys_lie_in_the_range_and_differ() {
        for (start, end) in [
            (&b""[..], None),
            (b"", Some(&b"m"[..])),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (b"abcdefgh1", Some(b"abcdefgh2")),
            (b"abcdefgh1", Some(b"abcdefgj")),
            (b"a", Some(b"b")),
        ] {
            let keys = keys(start, end);
            assert_eq!(keys.len(), 1000);
            for key in &keys {
                assert!(key[..] >= *start, "{key:?} of {start:?}..{end:?}");
                assert!(
                    end.is_none_or(|end| key[..] < *end),
                    "{key:?} of {start:?}..{end:?}"
                );
            }
        }
    }

    #[test]
    fn keys_are_spread_over_a_wide_range() {
        let firsts: BTreeSet<u8> = keys(b"", None).iter().map(|key| key[0] >> 3).collect();
        assert_eq!(firsts.len(), 32, "each part of the range has some");
    }
}
