//! What a running store shares between its services.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use polyraft_core::{ConfState, RoleName};
use polyraft_multiraft::{GroupId, HostHandle, StoreId};
use polyraft_store::{RocksDisk, SharedData, StoreMeta};
use tokio::time::timeout;

use crate::directory::Route;
use crate::directory::publish::Publishing;
use crate::instances::{Instance, Instances};
use crate::kv::Kv;
use crate::peers::Peers;
use crate::proto::admin::admin_client::AdminClient;
use crate::proto::admin::{Environment, Group, ListGroupsRequest, StatusRequest, StoreStatus};
use crate::routing::Call;

/// Bound for one question to another store that is asked on behalf of many.
const PEER_BOUND: Duration = Duration::from_secs(1);

/// One running store, seen from its services.
pub(crate) struct Server {
    pub(crate) me: u64,
    pub(crate) cluster: u64,
    /// The store that drew the cluster's number and decides on its ranges.
    pub(crate) founder: u64,
    /// This store's own directory, and what the others have shown of theirs.
    pub(crate) instance: Instance,
    pub(crate) instances: Instances,
    pub(crate) environment: Environment,
    pub(crate) handle: HostHandle,
    pub(crate) data: SharedData<Kv, RocksDisk>,
    pub(crate) meta: StoreMeta<RocksDisk>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) directory: crate::directory::Directory,
    /// What the directory that all stores keep together is to be told.
    pub(crate) publishing: Publishing,
    pub(crate) started: Instant,
    pub(crate) draining: AtomicBool,
    /// Serialises changes of what the server keeps in `meta`.
    pub(crate) reservations: parking_lot::Mutex<()>,
    /// Who votes in each group here, as of a membership epoch.
    pub(crate) roles: parking_lot::Mutex<BTreeMap<u64, (u64, ConfState)>>,
    /// Who drives merges of groups that this store leads.
    pub(crate) merges: crate::admin::Driven,
    /// One init at a time creates groups.
    pub(crate) init_turn: tokio::sync::Mutex<()>,
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
                groups
                    .iter()
                    .for_each(|group| self.directory.learn(Route::from(group)));
            }
        }
    }

    /// Whether the key space has been cut into ranges, as far as any store can tell.
    pub(crate) async fn has_ranges(&self, call: Call) -> bool {
        if !self.directory.has_ranges() {
            self.refresh_routes(call).await;
        }
        self.directory.has_ranges()
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
        let mut client = AdminClient::new(channel).max_decoding_message_size(usize::MAX);
        match timeout(PEER_BOUND, client.list_groups(request)).await {
            Ok(Ok(list)) => Ok(list.into_inner().groups),
            Ok(Err(status)) => Err(status.message().to_owned()),
            Err(_) => Err("it did not answer in time".to_owned()),
        }
    }

    /// Moves every leadership to another store; whether none is left. Gives up after `bound`: a group whose
    /// other members are away keeps its leader until the end.
    pub(crate) async fn drain(&self, bound: Duration) -> bool {
        self.draining.store(true, Ordering::SeqCst);
        let deadline = Instant::now() + bound;
        for turn in 0.. {
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
            let moved = led
                .iter()
                .map(|group| self.move_away(*group, turn, deadline));
            futures_join(moved).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        false
    }

    /// Groups that this store leads and that another store could lead.
    pub(crate) fn led(&self) -> Vec<GroupId> {
        let list = self.handle.list().into_iter();
        let led = list.filter(|replica| replica.basic.soft_state.role == RoleName::Leader);
        let shared = led.filter(|replica| {
            self.handle
                .descriptor(replica.group)
                .is_some_and(|descriptor| descriptor.members.len() > 1)
        });
        shared.map(|replica| replica.group).collect()
    }

    async fn move_away(&self, group: GroupId, turn: usize, deadline: Instant) {
        if Instant::now() >= deadline {
            return;
        }
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
        // Groups are spread over those who stay; the next turn asks another: this one may have no vote.
        let at = (group.0 as usize).wrapping_add(turn) % others.len().max(1);
        let Some(to) = others.get(at).copied() else {
            return;
        };
        let call = Call {
            deadline: tokio::time::Instant::now() + Duration::from_secs(2),
            forwarded: true,
            reads: false,
            once: false,
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

/// What another store says of itself, or why it could not be asked.
pub(crate) async fn status_of(peers: &Peers, store: u64) -> StoreStatus {
    let address = peers.address(store).unwrap_or_default();
    let failed = |error: String| StoreStatus {
        store,
        address: address.clone(),
        error,
        ..Default::default()
    };
    let Some(channel) = peers.channel(store) else {
        return failed("its address is not known".to_owned());
    };
    let mut client = AdminClient::new(channel);
    match timeout(PEER_BOUND, client.status(StatusRequest { all: false })).await {
        Ok(Ok(status)) => {
            let own = status.into_inner().stores.into_iter().next();
            own.unwrap_or_else(|| failed("it says nothing of itself".to_owned()))
        }
        Ok(Err(status)) => failed(status.message().to_owned()),
        Err(_) => failed("it did not answer in time".to_owned()),
    }
}

/// Futures that [`futures_join`] polls at the same time: each wake-up visits all of them.
const AT_ONCE: usize = 64;

/// Waits for all of `futures` and gives what they gave, in their order. At most [`AT_ONCE`] run at the
/// same time, so that thousands cost a multiple of their number and not its square.
pub(crate) async fn futures_join<F: Future<Output = T>, T>(
    futures: impl Iterator<Item = F>,
) -> Vec<T> {
    let mut coming = futures.enumerate();
    let mut running: Vec<(usize, Pin<Box<F>>)> = Vec::new();
    let mut outputs: Vec<Option<T>> = Vec::new();
    std::future::poll_fn(|context| {
        loop {
            let mut at = 0;
            while at < running.len() {
                let (number, future) = &mut running[at];
                match future.as_mut().poll(context) {
                    Poll::Ready(value) => {
                        outputs[*number] = Some(value);
                        drop(running.swap_remove(at));
                    }
                    Poll::Pending => at += 1,
                }
            }
            // What starts now must be polled now, or nothing would wake this task for it.
            let free = AT_ONCE - running.len();
            let before = running.len();
            running.extend(
                coming
                    .by_ref()
                    .take(free)
                    .map(|(n, future)| (n, Box::pin(future))),
            );
            outputs.resize_with(outputs.len() + running.len() - before, || None);
            if running.is_empty() {
                return Poll::Ready(());
            }
            if running.len() == before {
                return Poll::Pending;
            }
        }
    })
    .await;
    outputs.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn all_futures_are_joined_in_order_and_few_run_at_once() {
        let (running, most) = (Cell::new(0), Cell::new(0));
        let futures = (0..1000u64).map(|n| {
            let (running, most) = (&running, &most);
            async move {
                running.set(running.get() + 1);
                most.set(most.get().max(running.get()));
                for _ in 0..n % 7 {
                    tokio::task::yield_now().await;
                }
                running.set(running.get() - 1);
                n
            }
        });
        let outputs = futures_join(futures).await;
        assert_eq!(outputs, (0..1000).collect::<Vec<_>>());
        assert!(most.get() > 1 && most.get() <= AT_ONCE, "{}", most.get());
        assert_eq!(
            futures_join(std::iter::empty::<std::future::Ready<()>>()).await,
            []
        );
    }
}
