//! Stores without a host: what arrives is noted.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use polyraft_core::{
    Entry, EntryId, Index, Message, Payload, ReplicaId, Snapshot, SnapshotMeta, Term,
};
use polyraft_multiraft::env::{
    Body, GroupMessage, Inbound, Lost, SnapshotHeader, SnapshotReceiver, SnapshotRefusal,
};
use polyraft_multiraft::{AppliedState, GroupId, StoreId};
use polyraft_transport::proto::transport_client::TransportClient;
use polyraft_transport::proto::{Frame, Hello};
use polyraft_transport::{GrpcTransport, TransportConfig};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tonic::transport::{Channel, Endpoint};

/// The cluster of all tests.
pub(crate) const CLUSTER: u64 = 7;
/// Snapshots of this group are refused.
pub(crate) const UNWANTED: u64 = 99;

/// Notes everything that arrives.
#[derive(Default)]
pub(crate) struct Notes {
    pub(crate) messages: Mutex<Vec<(StoreId, GroupMessage)>>,
    pub(crate) ups: Mutex<Vec<(StoreId, u64)>>,
    pub(crate) downs: Mutex<Vec<StoreId>>,
    pub(crate) lost: Mutex<Vec<(StoreId, Lost)>>,
    pub(crate) snapshots: Arc<Mutex<Snapshots>>,
}

/// What came of snapshots.
#[derive(Default)]
pub(crate) struct Snapshots {
    pub(crate) begun: usize,
    pub(crate) finished: usize,
    /// Dropped before they were finished.
    pub(crate) abandoned: usize,
    /// The data of the last one.
    pub(crate) data: Vec<u8>,
}

struct Receiver {
    notes: Arc<Mutex<Snapshots>>,
    finished: bool,
}

impl SnapshotReceiver for Receiver {
    fn write(&mut self, chunk: Bytes) -> Result<(), SnapshotRefusal> {
        self.notes.lock().data.extend_from_slice(&chunk);
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<(), SnapshotRefusal> {
        self.finished = true;
        self.notes.lock().finished += 1;
        Ok(())
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if !self.finished {
            self.notes.lock().abandoned += 1;
        }
    }
}

impl Inbound for Notes {
    fn deliver(&self, from: StoreId, messages: Vec<GroupMessage>) {
        self.messages
            .lock()
            .extend(messages.into_iter().map(|message| (from, message)));
    }

    fn store_up(&self, store: StoreId, incarnation: u64) {
        self.ups.lock().push((store, incarnation));
    }

    fn store_down(&self, store: StoreId) {
        self.downs.lock().push(store);
    }

    fn lost(&self, to: StoreId, messages: Lost) {
        self.lost.lock().push((to, messages));
    }

    fn begin_snapshot(
        &self,
        _from: StoreId,
        header: SnapshotHeader,
    ) -> Result<Box<dyn SnapshotReceiver>, SnapshotRefusal> {
        if header.group == GroupId(UNWANTED) {
            return Err(SnapshotRefusal::NotWanted("for the test".to_owned()));
        }
        let mut snapshots = self.snapshots.lock();
        snapshots.begun += 1;
        snapshots.data.clear();
        Ok(Box::new(Receiver {
            notes: Arc::clone(&self.snapshots),
            finished: false,
        }))
    }
}

/// A store with a transport that serves by itself.
pub(crate) struct Node {
    pub(crate) transport: Arc<GrpcTransport>,
    pub(crate) notes: Arc<Notes>,
    pub(crate) address: String,
}

impl Node {
    pub(crate) fn connected(&self) -> bool {
        self.transport.peers().iter().all(|peer| peer.connected)
    }

    pub(crate) fn refused(&self) -> u64 {
        self.transport.stats().refused
    }

    pub(crate) fn received(&self) -> Vec<GroupMessage> {
        let messages = self.notes.messages.lock();
        messages
            .iter()
            .map(|(_, message)| message.clone())
            .collect()
    }
}

pub(crate) async fn node(cluster: u64, store: u64, incarnation: u64) -> Node {
    configured(cluster, store, incarnation, |_| ()).await
}

pub(crate) async fn configured(
    cluster: u64,
    store: u64,
    incarnation: u64,
    change: impl FnOnce(&mut TransportConfig),
) -> Node {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    node_on(listener, cluster, store, incarnation, change)
}

pub(crate) fn node_on(
    listener: TcpListener,
    cluster: u64,
    store: u64,
    incarnation: u64,
    change: impl FnOnce(&mut TransportConfig),
) -> Node {
    let address = listener.local_addr().unwrap().to_string();
    let mut config = TransportConfig::new(cluster, StoreId(store), incarnation, address.clone());
    change(&mut config);
    let transport = GrpcTransport::new(config, Handle::current());
    let notes = Arc::new(Notes::default());
    transport.start(Arc::clone(&notes) as Arc<dyn Inbound>);
    transport.serve(listener).unwrap();
    Node {
        transport,
        notes,
        address,
    }
}

pub(crate) fn connect(one: &Node, other: &Node, store: u64) {
    one.transport
        .set_address(StoreId(store), other.address.clone());
}

/// Waits for something that must come true; how long it takes is not judged.
pub(crate) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..6000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

/// What must end by itself; how long it takes is not judged.
pub(crate) async fn ends<T>(what: impl Future<Output = T>) -> T {
    let limit = Duration::from_secs(60);
    let ended = tokio::time::timeout(limit, what).await;
    ended.expect("it does not end by itself")
}

pub(crate) fn raft(group: u64, payload: Payload) -> GroupMessage {
    let message = Message {
        from: ReplicaId(1),
        to: ReplicaId(2),
        term: Term(1),
        payload,
    };
    GroupMessage {
        group: GroupId(group),
        body: Body::Raft(message),
    }
}

pub(crate) fn heartbeat(group: u64, read: u64) -> GroupMessage {
    let commit = Index(1);
    raft(group, Payload::Heartbeat { commit, read })
}

/// An append with one entry of so many bytes.
pub(crate) fn append(group: u64, bytes: usize) -> GroupMessage {
    let entry = Entry {
        term: Term(1),
        index: Index(1),
        data: Bytes::from(vec![5; bytes]),
        ..Entry::default()
    };
    let payload = Payload::Append {
        prev: EntryId::default(),
        entries: vec![entry],
        commit: Index(0),
    };
    raft(group, payload)
}

/// What a snapshot of a group contains, and the message it begins with.
pub(crate) fn snapshot_header(group: u64) -> SnapshotHeader {
    let last = EntryId::new(3, 9);
    let state = AppliedState {
        last,
        ..AppliedState::default()
    };
    let conf_state = polyraft_core::ConfState {
        voters: vec![ReplicaId(1)],
        ..polyraft_core::ConfState::default()
    };
    let meta = SnapshotMeta { last, conf_state };
    let payload = Payload::Snapshot(Box::new(Snapshot {
        meta,
        data: Bytes::new(),
    }));
    let GroupMessage {
        group,
        body: Body::Raft(message),
    } = raft(group, payload)
    else {
        unreachable!("made so above")
    };
    SnapshotHeader {
        group,
        message,
        state,
    }
}

/// What store 1 says to store 2 at first.
pub(crate) fn hello() -> Hello {
    Hello {
        cluster: CLUSTER,
        from_store: 1,
        to_store: 2,
        incarnation: 1,
        protocol_min: 1,
        protocol_max: 1,
        control_lane: true,
        address: String::new(),
    }
}

pub(crate) fn greeting(hello: Hello) -> Frame {
    Frame {
        hello: Some(hello),
        ..Frame::default()
    }
}

/// A connection of a client written by hand.
pub(crate) async fn channel(node: &Node) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{}", node.address)).unwrap();
    endpoint.connect().await.unwrap()
}

pub(crate) async fn client(node: &Node) -> TransportClient<Channel> {
    TransportClient::new(channel(node).await)
}
