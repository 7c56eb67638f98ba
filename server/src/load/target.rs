//! The cluster as the load generator sees it: the groups that it began with, what became of their ranges,
//! channels to all stores.

use std::collections::BTreeMap;
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
            Some(GroupTarget {
                group: group.group,
                start: group.start?,
            })
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

    /// A key of group `group`: it begins with the range's first eight bytes, so that it lies in the range.
    pub(super) fn key(&self, group: usize, name: &str) -> Bytes {
        let start = &self.groups[group].start;
        let mut key = BytesMut::with_capacity(start.len().max(8) + name.len());
        key.put_slice(start);
        key.put_bytes(0, 8usize.saturating_sub(start.len()));
        key.put_slice(name.as_bytes());
        key.freeze()
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
