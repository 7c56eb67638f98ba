//! What a running store shares between its services.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use polyraft_core::RoleName;
use polyraft_multiraft::{GroupId, HostHandle, StoreId};
use polyraft_store::{RocksDisk, SharedData, StoreMeta};
use tokio::time::timeout;

use crate::directory::Route;
use crate::kv::Kv;
use crate::peers::Peers;
use crate::proto::admin::admin_client::AdminClient;
use crate::proto::admin::{Group, ListGroupsRequest};
use crate::routing::Call;

/// Bound for one question to another store that is asked on behalf of many.
const PEER_BOUND: Duration = Duration::from_secs(1);

/// One running store, seen from its services.
pub(crate) struct Server {
    pub(crate) me: u64,
    pub(crate) cluster: u64,
    pub(crate) handle: HostHandle,
    pub(crate) data: SharedData<Kv, RocksDisk>,
    pub(crate) meta: StoreMeta<RocksDisk>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) directory: crate::directory::Directory,
    pub(crate) started: Instant,
    pub(crate) draining: AtomicBool,
    /// Serialises changes of what the server keeps in `meta`.
    pub(crate) reservations: parking_lot::Mutex<()>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("me", &self.me)
            .finish_non_exhaustive()
    }
}

impl Server {
    /// Takes over what this store's replicas say, then, if there are groups it does not hold, what
    /// the other stores say.
    pub(crate) async fn refresh_routes(&self, call: Call) {
        self.refresh_local_routes();
        if call.forwarded {
            return;
        }
        for store in self.peers.others() {
            if let Ok(groups) = self.list_of(store).await {
                groups.iter().for_each(|group| self.learn_group(group));
            }
        }
    }

    /// Takes over what this store's replicas say.
    pub(crate) fn refresh_local_routes(&self) {
        for descriptor in self.handle.descriptors() {
            self.directory.learn(Route::from(&*descriptor));
        }
    }

    /// The replicas of another store.
    pub(crate) async fn list_of(&self, store: u64) -> Result<Vec<Group>, String> {
        let channel = self
            .peers
            .channel(store)
            .ok_or("its address is not known")?;
        let request = ListGroupsRequest { local: true };
        let mut client = AdminClient::new(channel);
        match timeout(PEER_BOUND, client.list_groups(request)).await {
            Ok(Ok(list)) => Ok(list.into_inner().groups),
            Ok(Err(status)) => Err(status.message().to_owned()),
            Err(_) => Err("it did not answer in time".to_owned()),
        }
    }

    fn learn_group(&self, group: &Group) {
        let range = group
            .start
            .clone()
            .map(|start| polyraft_multiraft::KeyRange {
                start,
                end: group.end.clone(),
            });
        self.directory.learn(Route {
            group: group.group,
            range,
            stores: group.members.iter().map(|member| member.store).collect(),
            leader: group.leader_store,
            epoch: group.membership_epoch,
        });
    }

    /// Moves every leadership to another store; whether none is left. Gives up after `bound`: a group whose
    /// other members are away keeps its leader until the end.
    pub(crate) async fn drain(&self, bound: Duration) -> bool {
        self.draining.store(true, Ordering::SeqCst);
        let deadline = Instant::now() + bound;
        loop {
            let led: Vec<GroupId> = self.led();
            if led.is_empty() {
                return true;
            }
            if self.peers.connected().is_empty() || Instant::now() >= deadline {
                tracing::warn!(
                    groups = led.len(),
                    "leaving while leading: no other store can take over"
                );
                return false;
            }
            let moved = led.iter().map(|group| self.move_away(*group));
            futures_join(moved).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Groups that this store leads and that another store could lead.
    fn led(&self) -> Vec<GroupId> {
        let list = self.handle.list().into_iter();
        let led = list.filter(|replica| replica.basic.soft_state.role == RoleName::Leader);
        let shared = led.filter(|replica| {
            self.handle
                .descriptor(replica.group)
                .is_some_and(|descriptor| descriptor.members.len() > 1)
        });
        shared.map(|replica| replica.group).collect()
    }

    async fn move_away(&self, group: GroupId) {
        let Some(descriptor) = self.handle.descriptor(group) else {
            return;
        };
        let connected = self.peers.connected();
        let mut others: Vec<u64> = descriptor
            .members
            .iter()
            .map(|member| member.store.0)
            .collect();
        others.retain(|store| *store != self.me && connected.contains(store));
        // Groups are spread over those who stay.
        let Some(to) = others.get(group.0 as usize % others.len().max(1)).copied() else {
            return;
        };
        let call = Call {
            deadline: tokio::time::Instant::now() + Duration::from_secs(2),
            forwarded: true,
            reads: false,
        };
        let moved = self
            .ask(group.0, call, |respond| {
                self.handle.transfer_leader(group, StoreId(to), respond)
            })
            .await;
        if let Err(failure) = moved {
            tracing::debug!(%group, to, why = failure.message, "leadership did not move; trying again");
        }
    }
}

/// Waits for all of `futures`, run at the same time.
pub(crate) async fn futures_join<F: Future<Output = T>, T>(
    futures: impl Iterator<Item = F>,
) -> Vec<T> {
    let mut running: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|context| {
        let mut waiting = false;
        for (future, output) in &mut running {
            if output.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(value) => *output = Some(value),
                    std::task::Poll::Pending => waiting = true,
                }
            }
        }
        if waiting {
            std::task::Poll::Pending
        } else {
            std::task::Poll::Ready(())
        }
    })
    .await;
    running
        .into_iter()
        .filter_map(|(_, output)| output)
        .collect()
}
