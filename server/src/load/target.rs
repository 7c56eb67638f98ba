//! The cluster as the load generator sees it: groups, their leaders, channels to all stores.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use tonic::transport::Channel;

use crate::client::Client;
use crate::peers::connect_lazily;
use crate::proto::admin::{ListGroupsRequest, StatusRequest, StoreStatus};

/// Connections to each store: one alone is limited by its window and one task's time.
const CONNECTIONS: usize = 4;

/// See the module.
#[derive(Debug)]
pub(crate) struct Target {
    pub(super) groups: Vec<GroupTarget>,
    stores: BTreeMap<u64, Vec<Channel>>,
    admin: Client,
    next: AtomicUsize,
}

/// A group with a range.
#[derive(Debug)]
pub(super) struct GroupTarget {
    pub(super) group: u64,
    start: Bytes,
    pub(super) leader: AtomicU64,
}

impl Target {
    /// Asks the cluster at `endpoints` for its groups and stores.
    ///
    /// # Errors
    /// It cannot be asked, or has no groups.
    pub(crate) async fn find(endpoints: &[String], timeout: Duration) -> Result<Self, String> {
        let admin = Client::new(endpoints, timeout)?;
        let request = ListGroupsRequest { local: false };
        let list = admin
            .admin(
                true,
                request,
                |mut c, r| async move { c.list_groups(r).await },
            )
            .await;
        let groups: Vec<GroupTarget> = list
            .map_err(|failure| failure.message)?
            .groups
            .into_iter()
            .filter_map(|group| {
                let leader = AtomicU64::new(group.leader_store);
                Some(GroupTarget {
                    group: group.group,
                    start: group.start?,
                    leader,
                })
            })
            .collect();
        if groups.is_empty() {
            return Err("the cluster has no groups: run `polyraft init` first".to_owned());
        }
        let mut stores = BTreeMap::new();
        for status in status_of_all(&admin).await? {
            let channels: Vec<Channel> = (0..CONNECTIONS)
                .filter_map(|_| connect_lazily(&status.address))
                .collect();
            if !channels.is_empty() {
                stores.insert(status.store, channels);
            }
        }
        Ok(Self {
            groups,
            stores,
            admin,
            next: AtomicUsize::new(0),
        })
    }

    /// A channel to the leader of a group as far as known, else to any store.
    pub(super) fn channel(&self, group: usize) -> Option<Channel> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let leader = self.groups[group].leader.load(Ordering::Relaxed);
        let any = || {
            self.stores
                .values()
                .nth(turn / CONNECTIONS % self.stores.len().max(1))
        };
        let channels = self.stores.get(&leader).or_else(any)?;
        channels.get(turn % channels.len()).cloned()
    }

    /// The leader as an answer or an error named it; 0: unknown.
    pub(super) fn learn_leader(&self, group: usize, leader: u64) {
        self.groups[group].leader.store(leader, Ordering::Relaxed);
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
    pub(super) async fn status(&self) -> Result<Vec<StoreStatus>, String> {
        status_of_all(&self.admin).await
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

async fn status_of_all(admin: &Client) -> Result<Vec<StoreStatus>, String> {
    let request = StatusRequest { all: true };
    let status = admin
        .admin(true, request, |mut c, r| async move { c.status(r).await })
        .await;
    Ok(status.map_err(|failure| failure.message)?.stores)
}
