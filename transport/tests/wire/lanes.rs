//! Lanes between stores that mean well.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use polyraft_core::Payload;
use polyraft_multiraft::env::{GroupMessage, Inbound, Lane, Lost, Transport};
use polyraft_multiraft::{GroupId, StoreId};
use polyraft_transport::proto::transport_server::{Transport as WireService, TransportServer};
use polyraft_transport::proto::{Frame, LaneReply, SnapshotChunk, SnapshotReply};
use polyraft_transport::{GrpcTransport, TransportConfig};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use crate::support::{
    CLUSTER, Notes, append, configured, connect, eventually, heartbeat, hello, node, node_on, raft,
};

#[tokio::test]
async fn messages_arrive_in_order_and_in_few_frames() {
    let (one, two) = (node(CLUSTER, 1, 1).await, node(CLUSTER, 2, 1).await);
    connect(&one, &two, 2);
    eventually("connected", || one.connected()).await;
    assert_eq!(one.notes.ups.lock()[..], [(StoreId(2), 1)]);
    for group in 0..1000 {
        one.transport
            .send(StoreId(2), Lane::Control, vec![heartbeat(group, group)]);
    }
    eventually("all arrived", || two.received().len() == 1000).await;
    let expected: Vec<GroupMessage> = (0..1000).map(|n| heartbeat(n, n)).collect();
    assert!(two.received() == expected);
    assert!(
        two.notes
            .messages
            .lock()
            .iter()
            .all(|(from, _)| *from == StoreId(1))
    );
    let stats = one.transport.stats();
    assert_eq!(stats.messages_out, 1000);
    assert!(stats.frames_out < 1000, "{stats:?}");
}

#[tokio::test]
async fn heartbeats_come_first_in_a_frame_and_nothing_else_overtakes() {
    let (one, two) = (node(CLUSTER, 1, 1).await, node(CLUSTER, 2, 1).await);
    connect(&one, &two, 2);
    eventually("connected", || one.connected()).await;
    let answer = |group| raft(group, Payload::HeartbeatResponse { read: 1 });
    let vote = |group| {
        let granted = Payload::VoteResponse {
            pre: true,
            reject: false,
            committed: Default::default(),
        };
        raft(group, granted)
    };
    let batch = |n: u64| {
        vec![
            vote(n),
            answer(n),
            heartbeat(n, n),
            vote(n + 1),
            heartbeat(n + 1, n),
        ]
    };
    // Sent at once without a pause in which a frame could leave: one frame.
    one.transport.send(StoreId(2), Lane::Control, batch(10));
    eventually("arrived", || two.received().len() == 5).await;
    let expected = [
        heartbeat(10, 10),
        heartbeat(11, 10),
        answer(10),
        vote(10),
        vote(11),
    ];
    assert_eq!(two.received(), expected);
    one.transport.send(StoreId(2), Lane::Control, batch(20));
    eventually("arrived", || two.received().len() == 10).await;
    let expected = [
        heartbeat(20, 20),
        heartbeat(21, 20),
        answer(20),
        vote(20),
        vote(21),
    ];
    assert_eq!(two.received()[5..], expected, "frames keep their order");
}

#[tokio::test]
async fn a_restarted_store_is_met_again() {
    let (one, two) = (node(CLUSTER, 1, 1).await, node(CLUSTER, 2, 1).await);
    connect(&one, &two, 2);
    eventually("connected", || one.connected()).await;
    let address = two.address.clone();
    two.transport.shutdown();
    eventually("noticed", || !one.notes.downs.lock().is_empty()).await;
    let mut listener = TcpListener::bind(&address).await;
    while listener.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
        listener = TcpListener::bind(&address).await;
    }
    let again = node_on(listener.unwrap(), CLUSTER, 2, 2, |_| ());
    eventually("up again", || {
        one.notes.ups.lock().contains(&(StoreId(2), 2))
    })
    .await;
    eventually("delivered", || {
        one.transport
            .send(StoreId(2), Lane::Append, vec![heartbeat(5, 5)]);
        !again.received().is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_store_that_moved_is_followed() {
    let (one, two) = (node(CLUSTER, 1, 1).await, node(CLUSTER, 2, 1).await);
    connect(&one, &two, 2);
    eventually("connected", || one.connected()).await;
    let moved = node(CLUSTER, 2, 2).await;
    connect(&one, &moved, 2);
    eventually("met there", || {
        one.notes.ups.lock().contains(&(StoreId(2), 2))
    })
    .await;
    assert_eq!(one.notes.downs.lock()[..], [StoreId(2)]);
    eventually("delivered there", || {
        one.transport
            .send(StoreId(2), Lane::Append, vec![append(5, 5)]);
        !moved.received().is_empty()
    })
    .await;
}

#[tokio::test]
async fn an_address_that_is_known_before_the_start_is_used_after_it() {
    let two = node(CLUSTER, 2, 4).await;
    let config = TransportConfig::new(CLUSTER, StoreId(1), 1, String::new());
    let one = GrpcTransport::new(config, Handle::current());
    one.set_address(StoreId(2), two.address.clone());
    // Time enough to connect, if it did.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(
        !one.peers()[0].connected,
        "there is nobody who could be told"
    );
    let notes = Arc::new(Notes::default());
    one.start(Arc::clone(&notes) as Arc<dyn Inbound>);
    eventually("up", || notes.ups.lock().contains(&(StoreId(2), 4))).await;
}

#[tokio::test]
async fn a_store_that_did_not_start_yet_lets_nobody_in() {
    let one = node(CLUSTER, 1, 1).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let config = TransportConfig::new(CLUSTER, StoreId(2), 1, address.clone());
    let two = GrpcTransport::new(config, Handle::current());
    two.serve(listener).unwrap();
    one.transport.set_address(StoreId(2), address);
    eventually("turned away", || one.transport.peers()[0].reconnects > 2).await;
    assert!(one.notes.ups.lock().is_empty());
    let notes = Arc::new(Notes::default());
    two.start(Arc::clone(&notes) as Arc<dyn Inbound>);
    eventually("up", || one.notes.ups.lock().contains(&(StoreId(2), 1))).await;
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
    let quick = |config: &mut TransportConfig| config.dead_after = Duration::from_millis(100);
    let one = configured(CLUSTER, 1, 1, quick).await;
    one.transport.set_address(StoreId(2), address);
    eventually("given up", || one.transport.peers()[0].reconnects > 0).await;
    assert!(!one.connected());
    silent.abort();
}

/// Welcomes everybody as the store of this number, and then neither answers pings nor looks at
/// anything.
struct Mute(u64);

#[tonic::async_trait]
impl WireService for Mute {
    type LaneStream = Pin<Box<dyn Stream<Item = Result<LaneReply, Status>> + Send>>;

    async fn lane(
        &self,
        request: Request<Streaming<Frame>>,
    ) -> Result<Response<Self::LaneStream>, Status> {
        let unread = request.into_inner();
        let mut welcome = hello();
        (welcome.from_store, welcome.to_store) = (self.0, 1);
        let first = LaneReply {
            welcome: Some(welcome),
            pong: 0,
        };
        let silence = tokio_stream::pending().map(move |reply| {
            let _held = &unread;
            reply
        });
        let replies = tokio_stream::once(Ok(first)).chain(silence);
        Ok(Response::new(Box::pin(replies)))
    }

    async fn snapshot(
        &self,
        _request: Request<Streaming<SnapshotChunk>>,
    ) -> Result<Response<SnapshotReply>, Status> {
        std::future::pending().await
    }
}

/// Serves until the runtime of the test ends.
async fn mute(store: u64) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let incoming = TcpListenerStream::new(listener);
    let service = TransportServer::new(Mute(store));
    tokio::spawn(
        Server::builder()
            .add_service(service)
            .serve_with_incoming(incoming),
    );
    address
}

#[tokio::test]
async fn a_welcome_of_another_store_is_not_believed() {
    let one = node(CLUSTER, 1, 1).await;
    one.transport.set_address(StoreId(2), mute(3).await);
    eventually("refused", || one.refused() > 2).await;
    assert!(!one.connected());
    assert!(one.notes.ups.lock().is_empty());
}

#[tokio::test]
async fn a_store_that_answers_no_ping_is_down_and_what_was_under_way_is_reported() {
    let quick = |config: &mut TransportConfig| {
        config.ping_interval = Duration::from_millis(10);
        config.dead_after = Duration::from_millis(200);
    };
    let one = configured(CLUSTER, 1, 1, quick).await;
    one.transport.set_address(StoreId(2), mute(2).await);
    eventually("down", || one.notes.downs.lock().contains(&StoreId(2))).await;
    assert!(one.notes.ups.lock().contains(&(StoreId(2), 1)));
    // More than the windows of HTTP/2 hold: the lane stands, since nobody reads.
    let flood = || {
        let messages = (0..64).map(|group| append(group, 512 << 10)).collect();
        one.transport.send(StoreId(2), Lane::Append, messages);
        one.notes.lost.lock().contains(&(StoreId(2), Lost::Any))
    };
    eventually("reported", flood).await;
}

#[tokio::test]
async fn a_full_queue_drops_the_oldest_counts_them_and_reports_their_groups() {
    let small = |config: &mut TransportConfig| config.append_queue_bytes_max = 10_000;
    let one = configured(CLUSTER, 1, 1, small).await;
    // Nobody listens there any more.
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = gone.local_addr().unwrap().to_string();
    drop(gone);
    one.transport.set_address(StoreId(2), address);
    let messages = (0..100).map(|n| append(n / 2, 1000)).collect();
    one.transport.send(StoreId(2), Lane::Append, messages);
    let peer = &one.transport.peers()[0];
    assert!(peer.queued_bytes <= 10_000, "{peer:?}");
    assert!(peer.queued_bytes > 8_000, "{peer:?}");
    assert!(peer.dropped >= 90, "{peer:?}");
    let waiting = 100 - peer.dropped;
    let last_dropped = (99 - waiting) / 2;
    let groups = (0..=last_dropped).map(GroupId).collect();
    assert_eq!(one.notes.lost.lock()[..], [(StoreId(2), Lost::Of(groups))]);
    // The control lane has room of its own.
    one.transport
        .send(StoreId(2), Lane::Control, vec![heartbeat(1, 1)]);
    assert_eq!(one.notes.lost.lock().len(), 1);
    // What waits for a store that is not there is dropped and counted too.
    eventually("given up", || one.transport.stats().dropped == 101).await;
    assert_eq!(one.transport.peers()[0].queued_bytes, 0);
}

#[tokio::test]
async fn messages_to_a_store_without_address_are_counted_as_dropped() {
    let one = node(CLUSTER, 1, 1).await;
    let messages = vec![heartbeat(1, 1), heartbeat(2, 1)];
    one.transport.send(StoreId(2), Lane::Control, messages);
    assert_eq!(one.transport.stats().dropped, 2);
}

#[tokio::test]
async fn a_transport_that_is_stopped_says_goodbye_and_connects_no_more() {
    let (one, two) = (node(CLUSTER, 1, 1).await, node(CLUSTER, 2, 1).await);
    connect(&one, &two, 2);
    connect(&two, &one, 1);
    eventually("connected", || one.connected() && two.connected()).await;
    one.transport.shutdown();
    eventually("both know", || {
        !one.notes.downs.lock().is_empty() && !two.notes.downs.lock().is_empty()
    })
    .await;
    one.transport
        .send(StoreId(2), Lane::Append, vec![append(1, 1)]);
    connect(&one, &two, 2);
    eventually("two tries", || two.transport.peers()[0].reconnects > 2).await;
    assert_eq!(one.notes.ups.lock().len(), 1);
    assert!(two.received().is_empty());
}
