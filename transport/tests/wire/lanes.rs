//! Real transports on loopback.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use polyraft_core::{
    ConfState, EntryId, Message, Payload, ReplicaId, Snapshot, SnapshotMeta, SnapshotOutcome, Term,
};
use polyraft_multiraft::env::{
    Body, GroupMessage, Inbound, Lane, SnapshotHeader, SnapshotReceiver, SnapshotRefusal,
    SnapshotSource, StateMachineError, Transport,
};
use polyraft_multiraft::{AppliedState, GroupId, Responder, StoreId};
use polyraft_transport::{GrpcTransport, TransportConfig};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// Notes everything that arrives.
#[derive(Default)]
struct Notes {
    messages: Mutex<Vec<(StoreId, GroupMessage)>>,
    ups: Mutex<Vec<(StoreId, u64)>>,
    downs: Mutex<Vec<StoreId>>,
    snapshot: Arc<Mutex<(Vec<u8>, bool)>>,
}

struct Receiver(Arc<Mutex<(Vec<u8>, bool)>>);

impl SnapshotReceiver for Receiver {
    fn write(&mut self, chunk: Bytes) -> Result<(), SnapshotRefusal> {
        self.0.lock().0.extend_from_slice(&chunk);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(), SnapshotRefusal> {
        self.0.lock().1 = true;
        Ok(())
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

    fn begin_snapshot(
        &self,
        _from: StoreId,
        header: SnapshotHeader,
    ) -> Result<Box<dyn SnapshotReceiver>, SnapshotRefusal> {
        if header.group == GroupId(99) {
            return Err(SnapshotRefusal::NotWanted("for the test".to_owned()));
        }
        Ok(Box::new(Receiver(Arc::clone(&self.snapshot))))
    }
}

struct Node {
    transport: Arc<GrpcTransport>,
    notes: Arc<Notes>,
    address: String,
}

async fn node(cluster: u64, store: u64, incarnation: u64) -> Node {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    node_on(listener, cluster, store, incarnation)
}

fn node_on(listener: TcpListener, cluster: u64, store: u64, incarnation: u64) -> Node {
    let address = listener.local_addr().unwrap().to_string();
    let config = TransportConfig::new(cluster, StoreId(store), incarnation, address.clone());
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

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..3000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

fn heartbeat(group: u64, read: u64) -> GroupMessage {
    let payload = Payload::Heartbeat {
        commit: polyraft_core::Index(1),
        read,
    };
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

fn connect(one: &Node, other: &Node, store: u64) {
    one.transport
        .set_address(StoreId(store), other.address.clone());
}

fn connected(node: &Node) -> bool {
    node.transport.peers().iter().all(|peer| peer.connected)
}

#[tokio::test]
async fn messages_arrive_in_order_and_in_few_frames() {
    let (one, two) = (node(7, 1, 1).await, node(7, 2, 1).await);
    connect(&one, &two, 2);
    eventually("connected", || connected(&one)).await;
    assert_eq!(one.notes.ups.lock()[..], [(StoreId(2), 1)]);
    for group in 0..1000 {
        one.transport
            .send(StoreId(2), Lane::Control, vec![heartbeat(group, group)]);
    }
    eventually("all arrived", || two.notes.messages.lock().len() == 1000).await;
    let messages = two.notes.messages.lock();
    assert!(messages.iter().enumerate().all(|(n, (from, message))| {
        *from == StoreId(1) && *message == heartbeat(n as u64, n as u64)
    }));
    let stats = one.transport.stats();
    assert_eq!(stats.messages_out, 1000);
    assert!(stats.frames_out < 1000, "{stats:?}");
}

#[tokio::test]
async fn a_store_of_another_cluster_is_refused() {
    let (one, two) = (node(7, 1, 1).await, node(8, 2, 1).await);
    connect(&one, &two, 2);
    eventually("refused", || two.transport.stats().refused > 0).await;
    one.transport
        .send(StoreId(2), Lane::Control, vec![heartbeat(1, 1)]);
    assert!(!connected(&one));
    assert!(two.notes.messages.lock().is_empty());
}

#[tokio::test]
async fn a_store_with_another_id_is_refused() {
    let (one, two) = (node(7, 1, 1).await, node(7, 2, 1).await);
    connect(&one, &two, 3);
    eventually("refused", || two.transport.stats().refused > 0).await;
    assert!(!connected(&one));
}

#[tokio::test]
async fn a_restarted_store_is_met_again() {
    let (one, two) = (node(7, 1, 1).await, node(7, 2, 1).await);
    connect(&one, &two, 2);
    eventually("connected", || connected(&one)).await;
    let address = two.address.clone();
    two.transport.shutdown();
    eventually("noticed", || !one.notes.downs.lock().is_empty()).await;
    let mut listener = TcpListener::bind(&address).await;
    while listener.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
        listener = TcpListener::bind(&address).await;
    }
    let again = node_on(listener.unwrap(), 7, 2, 2);
    eventually("up again", || {
        one.notes.ups.lock().contains(&(StoreId(2), 2))
    })
    .await;
    one.transport
        .send(StoreId(2), Lane::Append, vec![heartbeat(5, 5)]);
    let resend = || {
        one.transport
            .send(StoreId(2), Lane::Append, vec![heartbeat(5, 5)]);
        !again.notes.messages.lock().is_empty()
    };
    eventually("delivered", resend).await;
}

#[tokio::test]
async fn a_silent_store_is_down() {
    // Takes connections and never says anything, like a machine that has lost power.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let silent = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            held.push(stream);
        }
    });
    let one = node(7, 1, 1).await;
    one.transport.set_address(StoreId(2), address);
    eventually("given up", || one.transport.peers()[0].reconnects > 0).await;
    assert!(!connected(&one));
    silent.abort();
}

struct Chunks(AppliedState, Vec<Bytes>);

impl SnapshotSource for Chunks {
    fn state(&self) -> &AppliedState {
        &self.0
    }

    fn next_chunk(&mut self, _max: usize) -> Result<Option<Bytes>, StateMachineError> {
        Ok(if self.1.is_empty() {
            None
        } else {
            Some(self.1.remove(0))
        })
    }
}

fn snapshot(group: u64) -> (SnapshotHeader, AppliedState) {
    let last = EntryId::new(3, 9);
    let state = AppliedState {
        last,
        ..AppliedState::default()
    };
    let conf_state = ConfState {
        voters: vec![ReplicaId(1)],
        ..ConfState::default()
    };
    let meta = SnapshotMeta { last, conf_state };
    let payload = Payload::Snapshot(Box::new(Snapshot {
        meta,
        data: Bytes::new(),
    }));
    let message = Message {
        from: ReplicaId(1),
        to: ReplicaId(2),
        term: Term(3),
        payload,
    };
    (
        SnapshotHeader {
            group: GroupId(group),
            message,
            state: state.clone(),
        },
        state,
    )
}

async fn send_snapshot(one: &Node, group: u64, chunks: Vec<Bytes>) -> SnapshotOutcome {
    let (header, state) = snapshot(group);
    let (answer, outcome) = oneshot::channel();
    let done = Responder::new(
        || SnapshotOutcome::Failed,
        move |outcome| {
            let _ = answer.send(outcome);
        },
    );
    one.transport
        .send_snapshot(StoreId(2), header, Box::new(Chunks(state, chunks)), done);
    outcome.await.unwrap()
}

#[tokio::test]
async fn a_snapshot_arrives_whole_or_not_at_all() {
    let (one, two) = (node(7, 1, 1).await, node(7, 2, 1).await);
    connect(&one, &two, 2);
    let chunks: Vec<Bytes> = (0..20u8).map(|n| Bytes::from(vec![n; 100_000])).collect();
    let expected: Vec<u8> = chunks.concat();
    assert_eq!(send_snapshot(&one, 1, chunks).await, SnapshotOutcome::Sent);
    let received = two.notes.snapshot.lock();
    assert!(received.1);
    assert!(received.0 == expected);
}

#[tokio::test]
async fn a_snapshot_that_is_not_wanted_fails() {
    let (one, two) = (node(7, 1, 1).await, node(7, 2, 1).await);
    connect(&one, &two, 2);
    let outcome = send_snapshot(&one, 99, vec![Bytes::from_static(b"x")]).await;
    assert_eq!(outcome, SnapshotOutcome::Failed);
    assert!(!two.notes.snapshot.lock().1);
}
