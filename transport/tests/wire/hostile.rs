//! What must not come in: stores of the wrong kind, bytes that mean nothing, and silence.

use std::time::Duration;

use bytes::{BufMut, Bytes};
use polyraft_core::Payload;
use polyraft_multiraft::StoreId;
use polyraft_multiraft::env::{Lane, Lost, Transport};
use polyraft_transport::proto::{Beats, Envelope, Frame, Hello, LaneReply, Vote, envelope};
use prost::Message as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_stream::StreamExt;
use tonic::codec::{Codec, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::{ProstCodec, ProstDecoder};

use crate::support::{
    CLUSTER, Node, append, channel, client, configured, connect, ends, eventually, greeting,
    heartbeat, hello, node, raft,
};

/// Sends bytes as they are where messages are expected.
struct Raw;

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put(item);
        Ok(())
    }
}

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = LaneReply;
    type Encoder = Self;
    type Decoder = ProstDecoder<LaneReply>;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<LaneReply, LaneReply>::raw_decoder(tonic::codec::BufferSettings::default())
    }
}

/// Opens a lane and sends these messages on it, whatever they are; the lane stays open.
async fn lane(channel: &Channel, frames: Vec<Bytes>) -> Result<Streaming<LaneReply>, Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let path = PathAndQuery::from_static("/polyraft.raft.v1.Transport/Lane");
    let frames = tokio_stream::iter(frames).chain(tokio_stream::pending());
    let reply = ends(grpc.streaming(Request::new(frames), path, Raw)).await?;
    Ok(reply.into_inner())
}

fn bytes(frame: &Frame) -> Bytes {
    frame.encode_to_vec().into()
}

/// Makes a hello wrong.
type Change = fn(&mut Hello);

/// What one refused hello is told.
async fn refusal(two: &Node, change: impl FnOnce(&mut Hello)) -> Status {
    let mut wrong = hello();
    change(&mut wrong);
    let frames = vec![bytes(&greeting(wrong)), bytes(&vote_frame())];
    lane(&channel(two).await, frames).await.unwrap_err()
}

fn vote_frame() -> Frame {
    let envelope = Envelope {
        group: 5,
        from: 1,
        to: 2,
        term: 3,
        payload: Some(envelope::Payload::Vote(Vote::default())),
    };
    Frame {
        messages: vec![envelope],
        ..Frame::default()
    }
}

#[tokio::test]
async fn the_wrong_cluster_store_and_version_are_refused_with_the_reason() {
    let two = node(CLUSTER, 2, 1).await;
    let learned = std::sync::Arc::new(parking_lot::Mutex::new(Vec::new()));
    let note = std::sync::Arc::clone(&learned);
    two.transport
        .on_address(move |store, address| note.lock().push((store, address.to_owned())));
    let address = |hello: &mut Hello| hello.address = "elsewhere:1".to_owned();
    let cases: [(&str, Change); 7] = [
        ("belongs to cluster 0000000000000008", |h| h.cluster = 8),
        ("this is store 2, not store 3", |h| h.to_store = 3),
        ("another process claims to be store 2", |h| h.from_store = 2),
        ("another process claims to be store 0", |h| h.from_store = 0),
        ("an address of 300 bytes is none", |h| {
            h.address = "x".repeat(300)
        }),
        ("it speaks 2 to 9", |h| {
            (h.protocol_min, h.protocol_max) = (2, 9);
        }),
        ("it speaks 0 to 0", |h| {
            (h.protocol_min, h.protocol_max) = (0, 0);
        }),
    ];
    for (count, (reason, change)) in (1..).zip(cases) {
        let status = refusal(&two, |hello| {
            address(hello);
            change(hello);
        })
        .await;
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status.message().contains(reason), "{}", status.message());
        assert_eq!(two.refused(), count);
    }
    assert!(two.received().is_empty());
    assert!(
        learned.lock().is_empty(),
        "addresses of strangers are not learned"
    );

    // The same client with the right hello is welcome.
    let mut right = hello();
    address(&mut right);
    let frames = vec![bytes(&greeting(right)), bytes(&vote_frame())];
    let mut replies = lane(&channel(&two).await, frames).await.unwrap();
    let welcome = ends(replies.message())
        .await
        .unwrap()
        .unwrap()
        .welcome
        .unwrap();
    assert_eq!((welcome.cluster, welcome.from_store), (CLUSTER, 2));
    eventually("delivered", || two.received().len() == 1).await;
    assert_eq!(learned.lock()[..], [(StoreId(1), "elsewhere:1".to_owned())]);
}

#[tokio::test]
async fn a_store_at_the_address_of_another_is_not_met() {
    let (one, three) = (node(CLUSTER, 1, 1).await, node(CLUSTER, 3, 1).await);
    connect(&one, &three, 2);
    eventually("refused", || three.refused() > 0).await;
    one.transport
        .send(StoreId(2), Lane::Append, vec![append(1, 1)]);
    eventually("refused again", || three.refused() > 4).await;
    assert!(!one.connected());
    assert!(one.notes.ups.lock().is_empty());
    assert!(three.received().is_empty());
}

#[tokio::test]
async fn a_first_frame_that_is_no_hello_is_refused() {
    let two = node(CLUSTER, 2, 1).await;
    let channel = channel(&two).await;
    let mut with_messages = vote_frame();
    with_messages.hello = Some(hello());
    let garbage = Bytes::from_static(&[0xff, 0xff, 0xff]);
    let cases = [
        (Code::InvalidArgument, bytes(&vote_frame())),
        (Code::InvalidArgument, Bytes::new()),
        (Code::InvalidArgument, bytes(&with_messages)),
        (Code::Internal, garbage),
        // Before anybody has looked at its hello.
        (Code::Internal, Bytes::from([0x12, 0].repeat(100_000))),
    ];
    for (count, (code, first)) in (1..).zip(cases) {
        let status = lane(&channel, vec![first]).await.unwrap_err();
        assert_eq!(status.code(), code, "{}", status.message());
        assert_eq!(two.refused(), count);
    }
    assert!(two.received().is_empty());
}

fn malformed_frames() -> Vec<(&'static str, Bytes)> {
    let beats = |change: fn(&mut Beats)| {
        let mut beats = Beats {
            group: vec![1, 2],
            from: vec![1, 1],
            to: vec![2, 2],
            term: vec![3, 3],
            commit: vec![0, 0],
            read: vec![0, 0],
            sleep: vec![false, false],
        };
        change(&mut beats);
        let frame = Frame {
            heartbeats: Some(beats),
            ..Frame::default()
        };
        bytes(&frame)
    };
    let vote = |change: fn(&mut Envelope)| {
        let mut frame = vote_frame();
        change(&mut frame.messages[0]);
        bytes(&frame)
    };
    let whole = bytes(&vote_frame());
    vec![
        ("bytes that mean nothing", Bytes::from_static(&[0xff; 9])),
        ("a cut frame", whole.slice(..whole.len() - 1)),
        // Field 2, and a length of 2^63.
        (
            "an oversized count",
            Bytes::from_static(&[
                0x12, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01,
            ]),
        ),
        ("an oversized frame", Bytes::from(vec![0; (64 << 20) + 1])),
        (
            "more messages than anybody sends",
            Bytes::from([0x12, 0].repeat(100_000)),
        ),
        ("a short column", beats(|beats| beats.term.truncate(1))),
        ("a long column", beats(|beats| beats.commit.push(1))),
        ("nobody in a column", beats(|beats| beats.from[1] = 0)),
        ("an impossible term", vote(|vote| vote.term = u64::MAX)),
        ("nobody sends", vote(|vote| vote.from = 0)),
        ("nothing said", vote(|vote| vote.payload = None)),
        ("a second hello", bytes(&greeting(hello()))),
    ]
}

#[tokio::test]
async fn malformed_frames_are_refused_and_counted_and_the_connection_recovers() {
    let two = node(CLUSTER, 2, 1).await;
    let channel = channel(&two).await;
    for (count, (what, malformed)) in (1..).zip(malformed_frames()) {
        let frames = vec![bytes(&greeting(hello())), malformed, bytes(&vote_frame())];
        let mut replies = lane(&channel, frames).await.unwrap();
        let welcome = ends(replies.message()).await.unwrap();
        assert!(welcome.is_some_and(|reply| reply.welcome.is_some()));
        let status = ends(replies.message()).await.expect_err(what);
        assert!(!status.message().is_empty());
        assert_eq!(two.refused(), count, "{what}");
        assert!(two.received().is_empty(), "{what}: nothing of it is taken");
    }
    // Other lanes of the same connection are not concerned.
    let frames = vec![bytes(&greeting(hello())), bytes(&vote_frame())];
    let _replies = lane(&channel, frames).await.unwrap();
    eventually("delivered", || two.received().len() == 1).await;
}

#[tokio::test]
async fn a_sender_whose_frame_was_refused_connects_again() {
    let (one, two) = (node(CLUSTER, 1, 1).await, node(CLUSTER, 2, 1).await);
    connect(&one, &two, 2);
    eventually("connected", || one.connected()).await;
    one.transport
        .send(StoreId(2), Lane::Append, vec![append(1, 10)]);
    eventually("delivered", || two.received().len() == 1).await;
    // A snapshot has no business on a lane, and with it the whole frame is refused.
    let astray = raft(1, Payload::Snapshot(Box::default()));
    one.transport
        .send(StoreId(2), Lane::Append, vec![append(2, 10), astray]);
    eventually("refused", || two.refused() == 1).await;
    eventually("reported", || {
        one.notes.lost.lock().contains(&(StoreId(2), Lost::Any))
    })
    .await;
    eventually("delivered again", || {
        one.transport
            .send(StoreId(2), Lane::Append, vec![append(3, 10)]);
        two.received().contains(&append(3, 10))
    })
    .await;
    assert!(!two.received().contains(&append(2, 10)));
    assert_eq!(
        one.notes.downs.lock().len(),
        0,
        "the control lane stood all the time"
    );
}

#[tokio::test]
async fn a_lane_that_says_nothing_is_closed() {
    let quick = |config: &mut polyraft_transport::TransportConfig| {
        config.dead_after = Duration::from_millis(50);
    };
    let two = configured(CLUSTER, 2, 1, quick).await;
    let channel = channel(&two).await;
    let status = lane(&channel, vec![]).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    let mut client = client(&two).await;
    let status = ends(client.snapshot(tokio_stream::pending()))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(two.refused(), 2);
    assert_eq!(two.notes.snapshots.lock().begun, 0);
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed() {
    let quick = |config: &mut polyraft_transport::TransportConfig| {
        config.dead_after = Duration::from_millis(50);
    };
    let two = configured(CLUSTER, 2, 1, quick).await;
    for said in [&b""[..], b"PRI * HTTP/2.0\r\n"] {
        let mut silent = TcpStream::connect(&two.address).await.unwrap();
        silent.write_all(said).await.unwrap();
        // What the server said before is of no interest, only that it ends.
        let mut rest = Vec::new();
        let _ = ends(silent.read_to_end(&mut rest)).await;
    }
}

#[tokio::test]
async fn what_is_not_even_http2_is_closed_and_does_no_harm() {
    let two = node(CLUSTER, 2, 1).await;
    for said in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0xa5; 512]] {
        let mut stranger = TcpStream::connect(&two.address).await.unwrap();
        stranger.write_all(said).await.unwrap();
        let mut rest = Vec::new();
        let _ = ends(stranger.read_to_end(&mut rest)).await;
    }
    let one = node(CLUSTER, 1, 1).await;
    connect(&one, &two, 2);
    eventually("connected", || one.connected()).await;
    one.transport
        .send(StoreId(2), Lane::Control, vec![heartbeat(1, 1)]);
    eventually("delivered", || two.received().len() == 1).await;
}
