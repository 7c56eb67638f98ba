//! A store that does not know its cluster yet.
//!
//! It waits until a store that it knows says which cluster it belongs to, or until `Init` begins a
//! new one. A new cluster begins only when all its stores wait and were started with the same list
//! of stores; then the lowest of them, the *founder*, draws the cluster's number. Since every store
//! of the list has the same list, there cannot be two founders among them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::failure::{Failure, Reason};
use crate::instances::Instance;
use crate::peers::Peers;
use crate::proto::admin::internal_client::InternalClient;
use crate::proto::admin::{BeginRequest, HelloRequest, HelloResponse, StoreStatus};
use crate::server::{futures_join, status_of};

/// How often the other stores are asked whether they know the cluster.
const ASK_INTERVAL: Duration = Duration::from_millis(200);
/// How long the founder may take to ask the others and draw the number.
const BEGIN_BOUND: Duration = Duration::from_secs(5);

/// Which cluster a store has been told that it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Membership {
    /// The cluster's number.
    pub(crate) cluster: u64,
    /// The store that drew it.
    pub(crate) founder: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Joining {
    pub(crate) me: u64,
    pub(crate) peers: Arc<Peers>,
    instance: u64,
    /// What the command line says: the stores of the cluster, this one among them.
    configured: BTreeSet<u64>,
    started: Instant,
    outcome: Mutex<Option<Result<Membership, String>>>,
    known: Notify,
}

impl Joining {
    pub(crate) fn new(
        me: u64,
        instance: u64,
        configured: BTreeSet<u64>,
        peers: Arc<Peers>,
    ) -> Self {
        Self {
            me,
            peers,
            instance,
            configured,
            started: Instant::now(),
            outcome: Mutex::new(None),
            known: Notify::new(),
        }
    }

    /// Waits until the cluster is known.
    ///
    /// # Errors
    /// A store of the cluster refuses this one.
    pub(crate) async fn wait(&self) -> Result<Membership, String> {
        loop {
            let known = self.known.notified();
            if let Some(outcome) = self.outcome.lock().clone() {
                return outcome;
            }
            tokio::select! {
                () = known => {}
                () = sleep(ASK_INTERVAL) => self.ask_others().await,
            }
        }
    }

    /// All that can be reached: one refusal is enough.
    async fn ask_others(&self) {
        let hellos = self.greet_others().await;
        let mut found = None;
        for hello in hellos.into_iter().filter_map(|(_, hello)| hello) {
            for (store, address) in &hello.addresses {
                // A store that waits itself tells of whoever has greeted it, also of one that is long gone.
                if hello.cluster != 0 || self.configured.contains(store) {
                    self.peers.learn(*store, address);
                }
            }
            if !hello.refused.is_empty() {
                return self.decide(Err(hello.refused));
            }
            if hello.cluster != 0 {
                found = Some(membership(&hello));
            }
        }
        if let Some(membership) = found {
            self.decide(Ok(membership));
        }
    }

    async fn greet_others(&self) -> Vec<(u64, Option<HelloResponse>)> {
        let greeting = self.greeting();
        let others = self.peers.others();
        let hellos = others
            .iter()
            .map(|store| say_hello(&self.peers, *store, &greeting));
        let hellos = futures_join(hellos).await;
        others.into_iter().zip(hellos).collect()
    }

    fn greeting(&self) -> HelloRequest {
        HelloRequest {
            store: self.me,
            cluster: 0,
            address: self.peers.address(self.me).unwrap_or_default(),
            instance: self.instance,
            incarnation: 0,
        }
    }

    /// What this store says to one that introduces itself. Of its cluster it says nothing before that is
    /// kept, and then it does not answer here any more: if a founder told a number and crashed before
    /// it kept it, it would draw another one, and the store that was told would be lost.
    pub(super) fn answer(&self, hello: &HelloRequest) -> HelloResponse {
        self.peers.learn(hello.store, &hello.address);
        HelloResponse {
            store: self.me,
            cluster: 0,
            founder: 0,
            addresses: self.peers.addresses().into_iter().collect(),
            instance: self.instance,
            incarnation: 0,
            peers: self.configured.iter().copied().collect(),
            refused: String::new(),
        }
    }

    /// The first decision counts.
    fn decide(&self, outcome: Result<Membership, String>) {
        self.outcome.lock().get_or_insert(outcome);
        self.known.notify_waiters();
    }

    /// `Init` has reached this store: it sees to it that the cluster gets its number. The ranges are
    /// created by whoever asks again, once the store has joined.
    pub(super) async fn init(&self) -> Failure {
        match self.begin().await {
            Ok(()) => Failure::new(Reason::Stale, "the store is joining its cluster; try again"),
            Err(failure) => failure,
        }
    }

    /// Draws the cluster's number if that is this store's part, else asks the store whose part it is.
    pub(super) async fn begin(&self) -> Result<(), Failure> {
        for (store, hello) in self.greet_others().await {
            let answers = hello.as_ref().is_some_and(|hello| hello.store == store);
            if !answers && !self.configured.contains(&store) {
                // It greeted this store once, is not on its list and gone: nobody needs to wait for it.
                self.peers.forget(store);
                continue;
            }
            if let Some(found) = self.check(store, hello)? {
                self.decide(Ok(found));
                return Ok(());
            }
        }
        let founder = self.configured.first().copied().unwrap_or(self.me);
        if founder == self.me {
            let cluster = rand::random::<u64>().max(1);
            self.decide(Ok(Membership { cluster, founder }));
            return Ok(());
        }
        let Some(channel) = self.peers.channel(founder) else {
            return Err(Failure::new(
                Reason::NotInitialised,
                self.unreachable(founder),
            ));
        };
        let mut client = InternalClient::new(channel);
        match timeout(BEGIN_BOUND, client.begin(BeginRequest {})).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(status)) => Err(Failure::from_status(&status, true)),
            Err(_) => Err(Failure::new(
                Reason::NotInitialised,
                self.unreachable(founder),
            )),
        }
    }

    /// Whether `store` lets a new cluster begin; the cluster that it belongs to, if it has one.
    fn check(
        &self,
        store: u64,
        hello: Option<HelloResponse>,
    ) -> Result<Option<Membership>, Failure> {
        let Some(hello) = hello else {
            return Err(Failure::new(
                Reason::NotInitialised,
                self.unreachable(store),
            ));
        };
        let refused = |text| Err(Failure::new(Reason::Refused, text));
        if !hello.refused.is_empty() {
            return refused(hello.refused);
        }
        if hello.store != store {
            let address = self.peers.address(store).unwrap_or_default();
            return refused(format!(
                "store {} answers at {address}, where store {store} should be: check --peers, --store-id \
                 and --advertise",
                hello.store
            ));
        }
        if hello.cluster != 0 {
            return Ok(Some(membership(&hello)));
        }
        let theirs: BTreeSet<u64> = hello.peers.iter().copied().collect();
        if theirs != self.configured {
            return refused(different(self.me, &self.configured, store, &theirs));
        }
        Ok(None)
    }

    fn unreachable(&self, store: u64) -> String {
        let address = self.peers.address(store).unwrap_or_default();
        format!("store {store} at {address} cannot be reached: start all stores, then init")
    }

    /// What can be said of this store, and with `all` of the others.
    pub(super) async fn status(&self, all: bool) -> Vec<StoreStatus> {
        let mut stores = vec![StoreStatus {
            store: self.me,
            address: self.peers.address(self.me).unwrap_or_default(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: self.started.elapsed().as_secs(),
            ..StoreStatus::default()
        }];
        if all {
            let others = self.peers.others();
            stores.extend(futures_join(others.iter().map(|s| status_of(&self.peers, *s))).await);
        }
        stores.sort_by_key(|status| status.store);
        stores
    }
}

fn membership(hello: &HelloResponse) -> Membership {
    Membership {
        cluster: hello.cluster,
        founder: hello.founder,
    }
}

/// Says how two lists of stores differ.
fn different(me: u64, mine: &BTreeSet<u64>, store: u64, theirs: &BTreeSet<u64>) -> String {
    let text = |stores: Vec<&u64>| {
        let stores: Vec<String> = stores.into_iter().map(u64::to_string).collect();
        stores.join(",")
    };
    let mut only = Vec::new();
    for (who, these, those) in [(me, mine, theirs), (store, theirs, mine)] {
        let alone = text(these.difference(those).collect());
        if !alone.is_empty() {
            only.push(format!("only store {who} lists {alone}"));
        }
    }
    format!(
        "store {me} was started for stores {}, and store {store} for stores {} ({}): start all stores of a \
         new cluster with the same --peers; a store that is to come later is started after init",
        text(mine.iter().collect()),
        text(theirs.iter().collect()),
        only.join(", ")
    )
}

/// Introduces this store to another one; `None` if that cannot be reached.
pub(crate) async fn say_hello(
    peers: &Peers,
    store: u64,
    greeting: &HelloRequest,
) -> Option<HelloResponse> {
    let mut client = InternalClient::new(peers.channel(store)?);
    let answer = timeout(Duration::from_secs(1), client.hello(greeting.clone())).await;
    answer.ok()?.ok().map(tonic::Response::into_inner)
}

/// What the directory of a store that answered shows.
pub(crate) fn shown(hello: &HelloResponse) -> Instance {
    Instance {
        id: hello.instance,
        incarnation: hello.incarnation,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn joining() -> Joining {
        let addresses = BTreeMap::from([(1, "a:1".to_owned()), (2, "b:1".to_owned())]);
        let peers = Arc::new(Peers::new(1, addresses));
        Joining::new(1, 7, BTreeSet::from([1, 2]), peers)
    }

    fn waits(store: u64, peers: &[u64]) -> HelloResponse {
        HelloResponse {
            store,
            peers: peers.to_vec(),
            ..HelloResponse::default()
        }
    }

    #[test]
    fn a_cluster_begins_only_where_all_stores_name_the_same() {
        let joining = joining();
        assert_eq!(joining.check(2, Some(waits(2, &[1, 2]))), Ok(None));
        let other = joining
            .check(2, Some(waits(2, &[2, 3])))
            .expect_err("another list");
        assert_eq!(other.reason, Reason::Refused);
        for words in [
            "for stores 1,2",
            "for stores 2,3",
            "store 1 lists 1",
            "store 2 lists 3",
        ] {
            assert!(other.message.contains(words), "{}", other.message);
        }
        let wrong = joining
            .check(2, Some(waits(3, &[1, 2])))
            .expect_err("another store");
        assert!(
            wrong.message.contains("store 3 answers at b:1"),
            "{}",
            wrong.message
        );
        assert!(joining.check(2, None).is_err());
    }

    #[test]
    fn a_cluster_that_exists_is_joined_whatever_the_lists() {
        let there = HelloResponse {
            cluster: 9,
            founder: 2,
            ..waits(2, &[])
        };
        let membership = Membership {
            cluster: 9,
            founder: 2,
        };
        assert_eq!(joining().check(2, Some(there)), Ok(Some(membership)));
    }

    #[tokio::test]
    async fn the_first_decision_counts_and_is_not_told_before_it_is_kept() {
        let joining = joining();
        let first = Membership {
            cluster: 9,
            founder: 1,
        };
        joining.decide(Ok(first));
        joining.decide(Ok(Membership {
            cluster: 8,
            founder: 2,
        }));
        let hello = joining.answer(&HelloRequest::default());
        assert_eq!((hello.cluster, hello.founder), (0, 0));
        assert_eq!(joining.wait().await, Ok(first));
    }

    #[tokio::test]
    async fn who_greeted_once_and_is_gone_is_not_waited_for() {
        // A port that was free a moment ago and is not listened on.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let gone = listener.local_addr().expect("an address").to_string();
        drop(listener);
        let addresses = BTreeMap::from([(1, "a:1".to_owned())]);
        let peers = Arc::new(Peers::new(1, addresses));
        let joining = Joining::new(1, 7, BTreeSet::from([1]), peers);
        joining.answer(&HelloRequest {
            store: 4,
            address: gone,
            instance: 8,
            ..HelloRequest::default()
        });
        assert_eq!(joining.peers.others(), [4]);
        joining
            .begin()
            .await
            .expect("all stores of the list are here");
        assert!(joining.wait().await.is_ok());
        assert!(joining.peers.others().is_empty());
    }
}
