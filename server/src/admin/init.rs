//! The beginning of a cluster: its number, and the ranges that its key space is cut into.
//!
//! A new store does not know its cluster. It waits until `Init` reaches it, or until a store that
//! it knows says which cluster it belongs to. Of the stores that wait for each other, only the one
//! with the lowest number draws the cluster's number, so that there cannot be two.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use polyraft_multiraft::KeyRange;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::groups::new_descriptor;
use crate::failure::{Failure, Reason};
use crate::peers::Peers;
use crate::proto::admin::internal_client::InternalClient;
use crate::proto::admin::{HelloRequest, HelloResponse, InitRequest, InitResponse};
use crate::routing::Call;
use crate::server::{Server, futures_join};

/// More groups than this in one request are taken for a mistake.
const GROUPS_MAX: u64 = 1_000_000;
/// Groups whose creation is under way at once.
const CREATIONS: usize = 64;

/// A store that does not know its cluster yet.
#[derive(Debug)]
pub(crate) struct Joining {
    pub(crate) me: u64,
    pub(crate) peers: Arc<Peers>,
    cluster: Mutex<u64>,
    known: Notify,
}

impl Joining {
    pub(crate) fn new(me: u64, peers: Arc<Peers>) -> Self {
        Self {
            me,
            peers,
            cluster: Mutex::new(0),
            known: Notify::new(),
        }
    }

    /// Waits until the number of the cluster is known.
    pub(crate) async fn wait(&self) -> u64 {
        loop {
            let known = self.known.notified();
            let cluster = *self.cluster.lock();
            if cluster != 0 {
                return cluster;
            }
            tokio::select! {
                () = known => {}
                () = sleep(Duration::from_millis(200)) => self.ask_others().await,
            }
        }
    }

    async fn ask_others(&self) {
        let greeting = self.greeting();
        for store in self.peers.others() {
            if let Some(hello) = say_hello(&self.peers, store, &greeting).await {
                hello.addresses.iter().for_each(|(store, address)| {
                    self.peers.learn(*store, address);
                });
                if hello.cluster != 0 {
                    return self.decide(hello.cluster);
                }
            }
        }
    }

    pub(super) fn greeting(&self) -> HelloRequest {
        let address = self.peers.address(self.me).unwrap_or_default();
        HelloRequest {
            store: self.me,
            cluster: *self.cluster.lock(),
            address,
        }
    }

    fn decide(&self, cluster: u64) {
        let mut known = self.cluster.lock();
        if *known == 0 {
            *known = cluster;
        }
        drop(known);
        self.known.notify_waiters();
    }

    /// `Init` has reached this store: it draws the number if that is its part. The ranges are created by
    /// whoever asks again, once the store has joined.
    pub(super) async fn init(&self) -> Failure {
        let greeting = self.greeting();
        for store in self.peers.others() {
            let Some(hello) = say_hello(&self.peers, store, &greeting).await else {
                let address = self.peers.address(store).unwrap_or_default();
                let text = format!(
                    "store {store} at {address} cannot be reached: start all stores, then init"
                );
                return Failure::new(Reason::NotInitialised, text);
            };
            if hello.cluster != 0 {
                self.decide(hello.cluster);
                return Failure::new(Reason::Stale, "the store is joining its cluster; try again");
            }
        }
        let lowest = self.peers.addresses().into_keys().next().unwrap_or(self.me);
        if lowest == self.me {
            self.decide(rand::random::<u64>().max(1));
        } else if let Some(channel) = self.peers.channel(lowest) {
            let request = InitRequest {
                groups: 1,
                replicas: 0,
            };
            let mut client = crate::proto::admin::admin_client::AdminClient::new(channel);
            // It answers as this store does: joining. What counts is that it has been told.
            let _ = client.init(request).await;
        }
        Failure::new(Reason::Stale, "the store is joining its cluster; try again")
    }
}

/// Introduces this store to another one; `None` if that cannot be reached.
pub(crate) async fn say_hello(
    peers: &Peers,
    store: u64,
    greeting: &HelloRequest,
) -> Option<HelloResponse> {
    let mut client = InternalClient::new(peers.channel(store)?);
    let answer = tokio::time::timeout(Duration::from_secs(1), client.hello(greeting.clone())).await;
    answer.ok()?.ok().map(tonic::Response::into_inner)
}

impl Server {
    /// Creates the groups of a new cluster. If there are groups, they must be those that are asked for.
    pub(super) async fn create_ranges(
        &self,
        request: InitRequest,
        call: Call,
    ) -> Result<InitResponse, Failure> {
        let InitRequest { groups, replicas } = request;
        if groups == 0 || groups > GROUPS_MAX {
            let text = format!("the number of groups must be between 1 and {GROUPS_MAX}");
            return Err(Failure::new(Reason::BadRequest, text));
        }
        let stores = self.wait_for_all(call).await?;
        let replicas = match replicas as usize {
            0 => stores.len().min(3),
            asked if asked <= stores.len() => asked,
            asked => {
                let text = format!(
                    "{asked} replicas need as many stores; there are {}",
                    stores.len()
                );
                return Err(Failure::new(Reason::BadRequest, text));
            }
        };
        let known = self.list_everywhere(self.list_here()).await.groups;
        let ranged = known.iter().filter(|group| group.start.is_some()).count() as u64;
        if ranged == groups {
            return Ok(InitResponse {
                groups,
                already: true,
            });
        }
        if ranged > groups || known.iter().any(|group| group.group > groups) {
            let text = format!("the cluster has been initialised with {ranged} groups before");
            return Err(Failure::new(Reason::Refused, text));
        }
        // Another cut would lay ranges over those that are there, on stores that do not know of them.
        let elsewhere = known.iter().find(|group| {
            let range = range_of(group.group.saturating_sub(1), groups);
            group.start.is_some()
                && (group.start.as_ref() != Some(&range.start) || group.end != range.end)
        });
        if let Some(group) = elsewhere {
            let text = format!(
                "group {} has another range than it would have among {groups}: an init with another \
                 number of groups came before; repeat it with that number",
                group.group
            );
            return Err(Failure::new(Reason::Refused, text));
        }
        // An init that was cut short is completed: numbers, ranges and members follow from the request.
        self.take_numbers_up_to(groups, call).await?;
        let numbers: Vec<u64> = (1..=groups).collect();
        for some in numbers.chunks(CREATIONS) {
            let each = some.iter().map(|number| {
                let range = range_of(*number - 1, groups);
                let members = members_of(*number - 1, &stores, replicas);
                let descriptor = new_descriptor(*number, Some(range), &members);
                async move { self.create_replicas(&descriptor, call).await }
            });
            if let Some((store, failure)) = futures_join(each).await.into_iter().flatten().next() {
                let text = format!("store {store}: {}; run init again", failure.message);
                return Err(Failure {
                    message: text,
                    ..failure
                });
            }
        }
        self.refresh_local_routes();
        Ok(InitResponse {
            groups,
            already: false,
        })
    }

    /// Later groups get higher numbers than the ranges, wherever they are created.
    async fn take_numbers_up_to(&self, last: u64, call: Call) -> Result<(), Failure> {
        if self.handle.list().is_empty() {
            self.take_number(last, call).await?;
        }
        Ok(())
    }

    /// All stores that are known, once each of them has joined.
    async fn wait_for_all(&self, call: Call) -> Result<Vec<u64>, Failure> {
        let greeting = self.greeting();
        loop {
            let others = self.peers.others();
            let hellos =
                futures_join(others.iter().map(|s| say_hello(&self.peers, *s, &greeting))).await;
            let missing = others.iter().zip(&hellos).find(|(_, hello)| {
                hello
                    .as_ref()
                    .is_none_or(|hello| hello.cluster != self.cluster)
            });
            let connected = self.peers.connected();
            let unheard = others.iter().find(|store| !connected.contains(store));
            match (missing, unheard) {
                (None, None) => return Ok(self.peers.addresses().into_keys().collect()),
                (found, unheard) if Instant::now() >= call.deadline => {
                    let store = found
                        .map(|(store, _)| store)
                        .or(unheard)
                        .copied()
                        .unwrap_or(0);
                    let address = self.peers.address(store).unwrap_or_default();
                    let text = format!(
                        "store {store} at {address} has not joined: start all stores, then init"
                    );
                    return Err(Failure::new(Reason::NotInitialised, text));
                }
                _ => sleep(Duration::from_millis(100)).await,
            }
        }
    }

    pub(crate) fn greeting(&self) -> HelloRequest {
        let address = self.peers.address(self.me).unwrap_or_default();
        HelloRequest {
            store: self.me,
            cluster: self.cluster,
            address,
        }
    }
}

/// Range `i` of `n` that cut the key space evenly by the first eight bytes of a key.
fn range_of(i: u64, n: u64) -> KeyRange {
    KeyRange {
        start: cut(i, n),
        end: (i + 1 < n).then(|| cut(i + 1, n)),
    }
}

fn cut(i: u64, n: u64) -> Bytes {
    let at = u64::try_from((u128::from(i) << 64) / u128::from(n))
        .unwrap_or(u64::MAX)
        .to_be_bytes();
    // Trailing zeros mean nothing in a lower bound, and short bounds are easier to read.
    let length = at
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last + 1);
    Bytes::copy_from_slice(&at[..length])
}

/// The stores of range `i`, its first leader first: both go round.
fn members_of(i: u64, stores: &[u64], replicas: usize) -> Vec<u64> {
    let begin = i as usize % stores.len();
    let mut members: Vec<u64> = (0..replicas)
        .map(|n| stores[(begin + n) % stores.len()])
        .collect();
    members.truncate(replicas);
    members
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cover_the_key_space_without_a_gap() {
        for n in [1, 2, 3, 8, 256, 1000, 70_000] {
            assert!(range_of(0, n).start.is_empty());
            assert_eq!(range_of(n - 1, n).end, None);
            for i in 1..n {
                assert_eq!(range_of(i - 1, n).end.as_ref(), Some(&range_of(i, n).start));
                assert!(range_of(i - 1, n).start < range_of(i, n).start);
            }
        }
        assert_eq!(&range_of(1, 2).start[..], [0x80]);
    }

    #[test]
    fn members_and_leaders_go_round() {
        assert_eq!(members_of(0, &[1, 2, 3], 3), [1, 2, 3]);
        assert_eq!(members_of(1, &[1, 2, 3], 3), [2, 3, 1]);
        assert_eq!(members_of(5, &[1, 2, 3, 4], 3), [2, 3, 4]);
        assert_eq!(members_of(3, &[1], 1), [1]);
    }
}
