//! Snapshots that arrive whole, and those that break off or are damaged on the way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use polyraft_core::SnapshotOutcome;
use polyraft_multiraft::env::{SnapshotSource, StateMachineError, Transport};
use polyraft_multiraft::{AppliedState, Responder, StoreId};
use polyraft_transport::proto::{
    Append, Envelope, SnapshotChunk, SnapshotHeader, SnapshotMeta, envelope,
};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use crate::support::{
    CLUSTER, Node, UNWANTED, client, configured, connect, ends, eventually, hello, node,
    snapshot_header,
};

/// Gives chunks, and then ends or fails. Says when it is dropped.
struct Chunks {
    state: AppliedState,
    chunks: Vec<Bytes>,
    then: Option<StateMachineError>,
    dropped: Arc<AtomicBool>,
}

impl SnapshotSource for Chunks {
    fn state(&self) -> &AppliedState {
        &self.state
    }

    fn next_chunk(&mut self, _max: usize) -> Result<Option<Bytes>, StateMachineError> {
        if !self.chunks.is_empty() {
            return Ok(Some(self.chunks.remove(0)));
        }
        self.then.take().map_or(Ok(None), Err)
    }
}

impl Drop for Chunks {
    fn drop(&mut self) {
        self.dropped.store(true, Ordering::SeqCst);
    }
}

/// A snapshot on its way out.
struct Sending {
    outcome: oneshot::Receiver<SnapshotOutcome>,
    source_dropped: Arc<AtomicBool>,
}

fn begin(one: &Node, group: u64, chunks: Vec<Bytes>, then: Option<StateMachineError>) -> Sending {
    let header = snapshot_header(group);
    let source_dropped = Arc::new(AtomicBool::new(false));
    let source = Chunks {
        state: header.state.clone(),
        chunks,
        then,
        dropped: Arc::clone(&source_dropped),
    };
    let (answer, outcome) = oneshot::channel();
    let done = Responder::new(
        || SnapshotOutcome::Failed,
        move |outcome| {
            let _ = answer.send(outcome);
        },
    );
    one.transport
        .send_snapshot(StoreId(2), header, Box::new(source), done);
    Sending {
        outcome,
        source_dropped,
    }
}

async fn send(one: &Node, group: u64, chunks: Vec<Bytes>) -> SnapshotOutcome {
    ends(begin(one, group, chunks, None).outcome).await.unwrap()
}

async fn pair() -> (Node, Node) {
    let (one, two) = (node(CLUSTER, 1, 1).await, node(CLUSTER, 2, 1).await);
    connect(&one, &two, 2);
    (one, two)
}

/// Nothing is under way there and nothing was taken; what was begun is gone.
async fn is_clean(node: &Node) {
    eventually("cleaned up", || {
        let snapshots = node.notes.snapshots.lock();
        snapshots.finished == 0 && snapshots.begun == snapshots.abandoned
    })
    .await;
}

#[tokio::test]
async fn a_snapshot_arrives_whole() {
    let (one, two) = pair().await;
    let mut chunks: Vec<Bytes> = (0..20u8).map(|n| Bytes::from(vec![n; 100_000])).collect();
    chunks.insert(3, Bytes::new());
    let expected: Vec<u8> = chunks.concat();
    assert_eq!(send(&one, 1, chunks).await, SnapshotOutcome::Sent);
    let received = two.notes.snapshots.lock();
    assert_eq!((received.finished, received.abandoned), (1, 0));
    assert!(received.data == expected);
}

#[tokio::test]
async fn a_snapshot_that_is_not_wanted_fails() {
    let (one, two) = pair().await;
    // More than fits into the stream: what is refused is not read to its end.
    let chunks = vec![Bytes::from(vec![1; 1 << 20]); 64];
    assert_eq!(send(&one, UNWANTED, chunks).await, SnapshotOutcome::Failed);
    assert_eq!(two.notes.snapshots.lock().begun, 0);
}

#[tokio::test]
async fn a_snapshot_to_nowhere_fails() {
    let one = node(CLUSTER, 1, 1).await;
    assert_eq!(send(&one, 1, vec![]).await, SnapshotOutcome::Failed);
    one.transport.shutdown();
    assert_eq!(send(&one, 1, vec![]).await, SnapshotOutcome::Failed);
}

#[tokio::test]
async fn a_source_that_fails_leaves_the_receiver_clean() {
    let (one, two) = pair().await;
    let error = StateMachineError::Fatal("for the test".to_owned());
    let sending = begin(&one, 1, vec![Bytes::from_static(b"part")], Some(error));
    assert_eq!(
        ends(sending.outcome).await.unwrap(),
        SnapshotOutcome::Failed
    );
    is_clean(&two).await;
}

#[tokio::test]
async fn more_snapshots_than_allowed_are_refused() {
    let none = |config: &mut polyraft_transport::TransportConfig| config.snapshots_in_max = 0;
    let (one, two) = (
        node(CLUSTER, 1, 1).await,
        configured(CLUSTER, 2, 1, none).await,
    );
    connect(&one, &two, 2);
    assert_eq!(send(&one, 1, vec![]).await, SnapshotOutcome::Failed);
    assert_eq!(two.notes.snapshots.lock().begun, 0);
}

/// A byte a second: the second chunk of a transfer would come after days.
fn slow(config: &mut polyraft_transport::TransportConfig) {
    config.snapshot_bytes_per_second = 1;
    patient(config);
}

/// Nobody gives up for want of progress.
fn patient(config: &mut polyraft_transport::TransportConfig) {
    config.snapshot_timeout = std::time::Duration::from_secs(3600);
}

#[tokio::test]
async fn a_sender_that_stops_gives_up_its_snapshots() {
    let (one, two) = (
        configured(CLUSTER, 1, 1, slow).await,
        configured(CLUSTER, 2, 1, patient).await,
    );
    connect(&one, &two, 2);
    let sending = begin(&one, 1, vec![Bytes::from(vec![1; 1 << 20]); 3], None);
    eventually("begun", || !two.notes.snapshots.lock().data.is_empty()).await;
    one.transport.shutdown();
    assert_eq!(
        ends(sending.outcome).await.unwrap(),
        SnapshotOutcome::Failed
    );
    eventually("let go", || sending.source_dropped.load(Ordering::SeqCst)).await;
    is_clean(&two).await;
}

#[tokio::test]
async fn a_receiver_that_stops_gives_up_its_snapshots() {
    let (one, two) = (
        configured(CLUSTER, 1, 1, slow).await,
        configured(CLUSTER, 2, 1, patient).await,
    );
    connect(&one, &two, 2);
    let sending = begin(&one, 1, vec![Bytes::from(vec![1; 1 << 20]); 3], None);
    eventually("begun", || !two.notes.snapshots.lock().data.is_empty()).await;
    two.transport.shutdown();
    is_clean(&two).await;
    assert_eq!(
        ends(sending.outcome).await.unwrap(),
        SnapshotOutcome::Failed
    );
}

#[tokio::test]
async fn the_byte_rate_is_one_for_all_snapshots_of_a_store() {
    let (one, two) = (
        configured(CLUSTER, 1, 1, slow).await,
        configured(CLUSTER, 2, 1, patient).await,
    );
    connect(&one, &two, 2);
    let first = begin(&one, 1, vec![Bytes::from(vec![1; 1 << 20])], None);
    // One chunk is sent ahead, and the end of the snapshot costs nothing.
    assert_eq!(ends(first.outcome).await.unwrap(), SnapshotOutcome::Sent);
    let mut second = begin(&one, 1, vec![Bytes::from_static(b"x")], None);
    eventually("begun", || two.notes.snapshots.lock().begun == 2).await;
    assert!(two.notes.snapshots.lock().data.is_empty());
    assert!(
        second.outcome.try_recv().is_err(),
        "it waits for the first one's time"
    );
    one.transport.shutdown();
    assert_eq!(ends(second.outcome).await.unwrap(), SnapshotOutcome::Failed);
}

/// The chunk that begins a snapshot.
fn header() -> SnapshotChunk {
    let meta = SnapshotMeta {
        last_term: 3,
        last_index: 9,
        voters: vec![1],
        ..SnapshotMeta::default()
    };
    let message = Envelope {
        group: 1,
        from: 1,
        to: 2,
        term: 3,
        payload: Some(envelope::Payload::Snapshot(meta)),
    };
    SnapshotChunk {
        header: Some(SnapshotHeader {
            hello: Some(hello()),
            message: Some(message),
            state: snapshot_header(1).state.encode(),
        }),
        ..SnapshotChunk::default()
    }
}

fn chunk(sequence: u64, data: &'static [u8]) -> SnapshotChunk {
    SnapshotChunk {
        sequence,
        data: Bytes::from_static(data),
        checksum: crc32fast::hash(data),
        ..SnapshotChunk::default()
    }
}

fn last(sequence: u64, all: &[u8]) -> SnapshotChunk {
    SnapshotChunk {
        sequence,
        checksum: crc32fast::hash(all),
        last: true,
        ..SnapshotChunk::default()
    }
}

/// A right chunk, made wrong.
fn wrong(mut chunk: SnapshotChunk, change: fn(&mut SnapshotChunk)) -> SnapshotChunk {
    change(&mut chunk);
    chunk
}

async fn offer(node: &Node, chunks: Vec<SnapshotChunk>) -> Result<(), Status> {
    let mut client = client(node).await;
    let call = client.snapshot(tokio_stream::iter(chunks));
    ends(call).await.map(drop)
}

fn in_header(change: fn(&mut SnapshotHeader)) -> SnapshotChunk {
    let mut chunk = header();
    change(chunk.header.get_or_insert_default());
    chunk
}

#[tokio::test]
async fn damaged_snapshots_are_refused_and_counted_and_leave_nothing() {
    let two = node(CLUSTER, 2, 1).await;
    let (a, b) = (|| chunk(1, b"ab"), || chunk(2, b"cd"));
    let cases = [
        (
            "the checksum of a chunk",
            vec![header(), wrong(a(), |c| c.checksum ^= 1), b()],
        ),
        (
            "the checksum of a chunk",
            vec![header(), wrong(a(), |c| c.data = Bytes::from_static(b"aB"))],
        ),
        (
            "the checksum over all",
            vec![header(), a(), b(), last(3, b"abcD")],
        ),
        (
            "the checksum over all",
            vec![
                header(),
                a(),
                wrong(last(2, b"ab"), |c| c.data = Bytes::from_static(b"x")),
            ],
        ),
        ("a chunk is missing", vec![header(), b()]),
        ("a chunk is missing", vec![header(), a(), a()]),
        ("a chunk is missing", vec![header(), header()]),
        ("it ended before its last chunk", vec![header(), a()]),
        ("it ended before its last chunk", vec![]),
        ("the first chunk must be a header", vec![a()]),
        (
            "the first chunk must be a header",
            vec![wrong(header(), |c| c.data = Bytes::from_static(b"x"))],
        ),
        ("no hello", vec![in_header(|header| header.hello = None)]),
        (
            "no message",
            vec![in_header(|header| header.message = None)],
        ),
        (
            "",
            vec![in_header(|header| header.state = Bytes::from_static(b"?"))],
        ),
        (
            "its message is not about a snapshot",
            vec![in_header(|header| {
                let append = envelope::Payload::Append(Append::default());
                header.message.get_or_insert_default().payload = Some(append);
            })],
        ),
        (
            "replica id 0",
            vec![in_header(|header| {
                header.message.get_or_insert_default().to = 0
            })],
        ),
    ];
    for (count, (reason, chunks)) in (1..).zip(cases) {
        let status = offer(&two, chunks).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(reason), "{reason}: {status}");
        assert_eq!(two.refused(), count, "{reason}");
        is_clean(&two).await;
    }
    let stranger = in_header(|header| header.hello.get_or_insert_default().cluster = 8);
    let status = offer(&two, vec![stranger]).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    is_clean(&two).await;

    // And the right one is taken.
    offer(&two, vec![header(), a(), b(), last(3, b"abcd")])
        .await
        .unwrap();
    assert_eq!(two.notes.snapshots.lock().finished, 1);
    assert_eq!(two.notes.snapshots.lock().data, b"abcd");
}

#[tokio::test]
async fn a_sender_that_dies_in_the_middle_leaves_the_receiver_clean() {
    let one_at_once =
        |config: &mut polyraft_transport::TransportConfig| config.snapshots_in_max = 1;
    let two = configured(CLUSTER, 2, 1, one_at_once).await;
    for round in 1..=3 {
        let (chunks, stream) = mpsc::channel(4);
        let mut client = client(&two).await;
        let stream = ReceiverStream::new(stream).chain(tokio_stream::pending());
        let call = tokio::spawn(async move { client.snapshot(stream).await.map(drop) });
        chunks.send(header()).await.unwrap();
        chunks.send(chunk(1, b"ab")).await.unwrap();
        eventually("under way", || {
            let snapshots = two.notes.snapshots.lock();
            snapshots.begun == round && snapshots.data == b"ab"
        })
        .await;
        // With the call goes its connection, as when the process ends.
        call.abort();
        is_clean(&two).await;
    }
    // Its place is free again.
    offer(&two, vec![header(), chunk(1, b"ab"), last(2, b"ab")])
        .await
        .unwrap();
    assert_eq!(two.notes.snapshots.lock().finished, 1);
    assert_eq!(two.notes.snapshots.lock().begun, 4);
}

#[tokio::test]
async fn a_sender_that_falls_silent_in_the_middle_is_given_up() {
    let quick = |config: &mut polyraft_transport::TransportConfig| {
        config.snapshot_timeout = std::time::Duration::from_millis(100);
    };
    let two = configured(CLUSTER, 2, 1, quick).await;
    let mut client = client(&two).await;
    let chunks = tokio_stream::iter([header(), chunk(1, b"ab")]).chain(tokio_stream::pending());
    let status = ends(client.snapshot(chunks)).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(two.refused(), 1);
    is_clean(&two).await;
}
