//! Arbitrary frames, and streams of them, against the side of the transport that takes them in.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes};
use http_body_util::{BodyExt, Full};
use parking_lot::Mutex;
use polyraft_core::{
    ConfState, Entry, EntryId, EntryKind, Index, Message, Payload, RejectHint, ReplicaId, Snapshot,
    SnapshotMeta, Term,
};
use polyraft_fuzz::{Fuzz, Meter, Source};
use polyraft_multiraft::env::{
    Body, GroupMessage, Inbound, Lost, SnapshotHeader, SnapshotReceiver, SnapshotRefusal,
};
use polyraft_multiraft::{AppliedState, GroupId, StoreId};
use prost::Message as _;
use tokio::runtime::Runtime;
use tonic::codegen::{Service, http};

use crate::bounded::unpack;
use crate::codec;
use crate::config::{PROTOCOL_MAX, PROTOCOL_MIN, TransportConfig};
use crate::proto::{self, Frame, SnapshotChunk};
use crate::{GrpcTransport, TransportService};

#[global_allocator]
static METER: Meter = Meter;

/// What lies under the limits of the gate.
fn number(source: &mut Source<'_>) -> u64 {
    source.number() % (1 << 62)
}

fn replica(source: &mut Source<'_>) -> ReplicaId {
    ReplicaId(source.number().max(1))
}

fn id(source: &mut Source<'_>) -> EntryId {
    EntryId::new(number(source), number(source) % (1 << 61))
}

fn entries(source: &mut Source<'_>, mut last: EntryId) -> Vec<Entry> {
    let count = source.below(4);
    let one = |_| {
        last.index = last.index.next();
        if source.one_in(4) {
            last.term = Term((last.term.0 + 1).min((1 << 62) - 1));
        }
        // Some are larger than what is copied out of a frame.
        let mut data = source.bytes(20).to_vec();
        if source.one_in(8) {
            data.resize(300, 7);
        }
        Entry {
            term: last.term,
            index: last.index,
            kind: source.pick(&[
                EntryKind::Normal,
                EntryKind::ConfChange,
                EntryKind::ConfChangeV2,
                EntryKind::Host,
            ]),
            data: data.into(),
        }
    };
    (0..count).map(one).collect()
}

fn payload(source: &mut Source<'_>) -> Payload {
    let context = |source: &mut Source<'_>| Bytes::copy_from_slice(source.bytes(30));
    match source.below(11) {
        0 | 1 => {
            let prev = id(source);
            Payload::Append {
                prev,
                entries: entries(source, prev),
                commit: Index(number(source)),
            }
        }
        2 => {
            let EntryId { term, index } = id(source);
            let hint = RejectHint { index, term };
            Payload::AppendResponse {
                index: Index(number(source)),
                reject: source.flag().then_some(hint),
            }
        }
        3 => Payload::Vote {
            pre: source.flag(),
            last: id(source),
            transfer: source.flag(),
        },
        4 => Payload::VoteResponse {
            pre: source.flag(),
            reject: source.flag(),
            committed: id(source),
        },
        5 => Payload::Heartbeat {
            commit: Index(number(source)),
            read: source.number(),
        },
        6 => Payload::HeartbeatResponse {
            read: source.number(),
        },
        7 => Payload::TimeoutNow,
        8 => Payload::TransferLeader,
        9 => Payload::ReadIndex {
            context: context(source),
        },
        _ => Payload::ReadIndexResponse {
            index: Index(number(source)),
            context: context(source),
        },
    }
}

fn group_message(source: &mut Source<'_>) -> GroupMessage {
    let group = GroupId(source.number());
    let to = replica(source);
    if source.one_in(8) {
        let next_replica = ReplicaId(source.number());
        let body = Body::Tombstone {
            replica: to,
            next_replica,
        };
        return GroupMessage { group, body };
    }
    let message = Message {
        from: replica(source),
        to,
        term: Term(number(source)),
        payload: payload(source),
    };
    let sleeps = matches!(message.payload, Payload::Heartbeat { .. }) && source.flag();
    let body = if sleeps {
        Body::Sleep(message)
    } else {
        Body::Raft(message)
    };
    GroupMessage { group, body }
}

/// In the order in which a frame gives them back.
fn in_order(mut messages: Vec<GroupMessage>) -> Vec<GroupMessage> {
    messages.sort_by_key(|message| match &message.body {
        Body::Raft(message) | Body::Sleep(message) => match message.payload {
            Payload::Heartbeat { .. } => 0,
            Payload::HeartbeatResponse { .. } => 1,
            _ => 2,
        },
        Body::Tombstone { .. } => 2,
    });
    messages
}

fn frame_of(messages: &[GroupMessage]) -> Frame {
    let mut frame = Frame::default();
    for message in messages {
        codec::encode(&mut frame, message.clone());
    }
    frame
}

/// One frame with a message of each kind that there is.
fn example() -> Vec<u8> {
    let mut messages = Vec::new();
    for kind in 0..11u8 {
        let bytes = [
            kind, 1, 7, 2, 9, kind, 3, 4, 2, 5, 0, 8, 6, 2, 1, 3, 2, 9, 9,
        ];
        messages.push(group_message(&mut Source::new(&bytes)));
    }
    frame_of(&messages).encode_to_vec()
}

#[test]
fn messages_come_back_as_they_were() {
    let fuzz = Fuzz::new("transport::messages")
        .runs(30_000)
        .length_max(512);
    fuzz.check(|input| {
        let mut source = Source::new(input);
        let mut messages = Vec::new();
        while !source.is_empty() {
            messages.push(group_message(&mut source));
        }
        let bytes = frame_of(&messages).encode_to_vec();
        let frame: Frame = unpack(bytes.into()).expect("a frame as this store sends it");
        assert_eq!(codec::decode(frame), Ok(in_order(messages)));
    });
}

/// Whatever is understood of a frame can be said again, and is understood as the same.
#[test]
fn frames_of_anything() {
    let fuzz = Fuzz::new("transport::frames")
        .runs(90_000)
        .example(example());
    let taken = Cell::new(0);
    let runs = fuzz.memory_max(1 << 20).check(|input| {
        let Ok(frame) = unpack::<Frame>(Bytes::copy_from_slice(input)) else {
            return;
        };
        let Ok(messages) = codec::decode(frame) else {
            return;
        };
        taken.set(taken.get() + u32::from(messages.len() > 1));
        let again = frame_of(&messages).encode_to_vec();
        let again: Frame = unpack(again.into()).expect("a frame as this store sends it");
        assert_eq!(codec::decode(again), Ok(messages));
    });
    assert!(
        runs < 1000 || taken.get() > 100,
        "{} are taken",
        taken.get()
    );
}

const CLUSTER: u64 = 77;

fn hello(source: &mut Source<'_>) -> proto::Hello {
    let mut hello = proto::Hello {
        cluster: CLUSTER,
        from_store: 2,
        to_store: 1,
        incarnation: 1,
        protocol_min: PROTOCOL_MIN,
        protocol_max: PROTOCOL_MAX,
        ..proto::Hello::default()
    };
    if source.one_in(24) {
        let wrong = source.byte() | 16;
        match source.below(5) {
            0 => hello.cluster = u64::from(wrong),
            // Nobody, and this store.
            1 => hello.from_store = u64::from(wrong & 1),
            2 => hello.to_store = u64::from(wrong),
            3 => hello.protocol_min = u32::from(wrong),
            _ => hello.address = "x".repeat(20 * usize::from(wrong) + 1000),
        }
    }
    hello
}

/// A message of gRPC: not compressed, its length, its bytes.
fn framed(out: &mut Vec<u8>, message: &[u8]) {
    out.put_u8(0);
    out.put_u32(message.len() as u32);
    out.extend_from_slice(message);
}

/// What a transport delivers. A snapshot must end whole or be dropped.
#[derive(Default)]
struct Notes {
    messages: Mutex<Vec<GroupMessage>>,
    data: Mutex<Vec<Vec<u8>>>,
    finished: Mutex<Vec<Vec<u8>>>,
    open: Mutex<usize>,
}

struct Receiver(Arc<Notes>, Vec<u8>);

impl SnapshotReceiver for Receiver {
    fn write(&mut self, chunk: Bytes) -> Result<(), SnapshotRefusal> {
        self.1.extend_from_slice(&chunk);
        self.0.data.lock().push(chunk.to_vec());
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(), SnapshotRefusal> {
        self.0.finished.lock().push(self.1.clone());
        Ok(())
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        *self.0.open.lock() -= 1;
    }
}

struct End(Arc<Notes>);

impl Inbound for End {
    fn deliver(&self, from: StoreId, messages: Vec<GroupMessage>) {
        assert_eq!(from, StoreId(2), "from who said hello");
        self.0.messages.lock().extend(messages);
    }

    fn store_up(&self, _store: StoreId, _incarnation: u64) {}

    fn store_down(&self, _store: StoreId) {}

    fn lost(&self, _to: StoreId, _messages: Lost) {}

    fn begin_snapshot(
        &self,
        _from: StoreId,
        header: SnapshotHeader,
    ) -> Result<Box<dyn SnapshotReceiver>, SnapshotRefusal> {
        let payload = &header.message.payload;
        assert!(matches!(payload, Payload::Snapshot(_)), "{header:?}");
        *self.0.open.lock() += 1;
        Ok(Box::new(Receiver(Arc::clone(&self.0), Vec::new())))
    }
}

struct Endpoint {
    runtime: Runtime,
    service: TransportService,
    // Its tasks end with it.
    _transport: Arc<GrpcTransport>,
    notes: Arc<Notes>,
}

impl Endpoint {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_time().build().expect("a runtime");
        let mut config = TransportConfig::new(CLUSTER, StoreId(1), 1, "here:1".to_owned());
        // Nothing here takes time; what hangs is to be seen.
        config.dead_after = Duration::from_secs(20);
        let transport = GrpcTransport::new(config, runtime.handle().clone());
        let notes = Arc::new(Notes::default());
        transport.start(Arc::new(End(Arc::clone(&notes))));
        Self {
            service: transport.service(),
            runtime,
            _transport: transport,
            notes,
        }
    }

    /// Calls a method with these bytes as the whole stream; whether it ended well.
    fn call(&self, method: &str, stream: Vec<u8>) -> bool {
        let request = http::Request::post(format!("/polyraft.raft.v1.Transport/{method}"))
            .header("content-type", "application/grpc")
            .body(Full::new(Bytes::from(stream)))
            .expect("a request");
        let mut service = self.service.clone();
        self.runtime.block_on(async move {
            let response = service.call(request).await.expect("it cannot fail");
            let (head, body) = response.into_parts();
            let body = body.collect().await;
            let trailers = body.ok().and_then(|body| body.trailers().cloned());
            let status = head.headers.get("grpc-status").cloned();
            let status = status.or_else(|| trailers?.get("grpc-status").cloned());
            status.is_some_and(|status| status == "0")
        })
    }
}

/// A stream of frames: all up to the first that is malformed are delivered, and none behind it.
#[test]
fn lanes_of_anything() {
    let fuzz = Fuzz::new("transport::lanes").runs(4500);
    fuzz.check(|input| {
        let mut source = Source::new(input);
        let (mut stream, mut expected) = (Vec::new(), Vec::new());
        let greeting = hello(&mut source);
        let mut first = Frame {
            hello: Some(greeting.clone()),
            ..Frame::default()
        };
        if source.one_in(24) {
            first.ping = 3;
        }
        // Who is not welcome is not listened to.
        let mut well = first.ping == 0 && greeting == hello(&mut Source::new(&[]));
        framed(&mut stream, &first.encode_to_vec());
        while !source.is_empty() {
            let bytes = match source.below(8) {
                0 => source.bytes(60).to_vec(),
                1 => Frame {
                    ping: source.number(),
                    ..Frame::default()
                }
                .encode_to_vec(),
                _ => frame_of(&[group_message(&mut source)]).encode_to_vec(),
            };
            let taken = unpack::<Frame>(Bytes::from(bytes.clone())).ok();
            match taken.and_then(|frame| codec::decode(frame).ok()) {
                Some(messages) if well => expected.extend(messages),
                Some(_) => {}
                None => well = false,
            }
            framed(&mut stream, &bytes);
        }
        if source.rest().is_empty() && input.len() % 7 == 3 {
            stream.pop();
        }
        let endpoint = Endpoint::new();
        endpoint.call("Lane", stream);
        let delivered = endpoint.notes.messages.lock();
        let cut = expected.len() - usize::from(delivered.len() < expected.len());
        assert_eq!(delivered[..], expected[..cut.min(delivered.len())]);
        assert!(
            delivered.len() >= cut || !well,
            "{} of {cut}",
            delivered.len()
        );
    });
}

/// A stream of chunks in any order: a snapshot is finished only if it is whole and its checksums are
/// right, and nothing of one that breaks off stays open.
#[test]
fn snapshot_streams_of_anything() {
    let fuzz = Fuzz::new("transport::snapshots").runs(4500).length_max(256);
    let finished = Cell::new(0);
    let runs = fuzz.check(|input| {
        let mut source = Source::new(input);
        let (stream, data) = snapshot_stream(&mut source);
        let endpoint = Endpoint::new();
        let well = endpoint.call("Snapshot", stream);
        // Cleaning up goes on where blocking is allowed, and ends with the runtime.
        let Endpoint { runtime, notes, .. } = endpoint;
        drop(runtime);
        let done = notes.finished.lock();
        assert_eq!((well, done.first()), (data.is_some(), data.as_ref()));
        assert!(done.len() <= 1, "finished twice");
        assert_eq!(*notes.open.lock(), 0, "a snapshot that is never dropped");
        finished.set(finished.get() + done.len());
    });
    assert!(
        runs < 1000 || finished.get() > 50,
        "{} are whole",
        finished.get()
    );
}

/// The stream, and the data in it if it is as it should be.
fn snapshot_stream(source: &mut Source<'_>) -> (Vec<u8>, Option<Vec<u8>>) {
    let greeting = hello(source);
    let mut whole = greeting == hello(&mut Source::new(&[]));
    let meta = SnapshotMeta {
        last: id(source),
        conf_state: ConfState {
            voters: vec![replica(source)],
            ..ConfState::default()
        },
    };
    let data = Bytes::new();
    let message = Message {
        from: ReplicaId(2),
        to: ReplicaId(1),
        term: Term(number(source)),
        payload: Payload::Snapshot(Box::new(Snapshot { meta, data })),
    };
    let mut state = AppliedState::default().encode().to_vec();
    if source.one_in(12) {
        state = source.bytes(80).to_vec();
        whole &= AppliedState::decode(&state).is_ok();
    }
    let mut envelope = codec::encode_one(GroupId(7), message);
    if source.one_in(12) {
        envelope.payload = Some(proto::envelope::Payload::TimeoutNow(proto::Empty {}));
        whole = false;
    }
    let header = proto::SnapshotHeader {
        hello: Some(greeting),
        state: state.into(),
        message: Some(envelope),
    };
    let mut chunks = vec![SnapshotChunk {
        header: Some(header),
        ..SnapshotChunk::default()
    }];
    let (mut sent, mut sequence) = (Vec::new(), 0);
    for _ in 0..source.below(4) {
        let data = source.bytes(40).to_vec();
        sent.extend_from_slice(&data);
        sequence += 1;
        chunks.push(SnapshotChunk {
            sequence,
            checksum: crc32fast::hash(&data),
            data: data.into(),
            ..SnapshotChunk::default()
        });
    }
    chunks.push(SnapshotChunk {
        sequence: sequence + 1,
        checksum: crc32fast::hash(&sent),
        last: true,
        ..SnapshotChunk::default()
    });
    let header = chunks[0].header.clone();
    for _ in 0..source.below(4).saturating_sub(1) {
        disorder(source, &mut chunks);
    }
    let data = data_of(&chunks).filter(|_| whole && chunks[0].header == header);
    let mut stream = Vec::new();
    for chunk in &chunks {
        framed(&mut stream, &chunk.encode_to_vec());
    }
    (stream, data)
}

/// The data of a stream, if it has an end and all before it is as it should be.
fn data_of(chunks: &[SnapshotChunk]) -> Option<Vec<u8>> {
    let (first, rest) = chunks.split_first()?;
    if first.header.is_none() || !first.data.is_empty() || first.sequence > 0 || first.last {
        return None;
    }
    let mut data = Vec::new();
    for (sequence, chunk) in (1..).zip(rest) {
        if chunk.sequence != sequence || chunk.header.is_some() {
            return None;
        }
        if chunk.last {
            let right = chunk.data.is_empty() && chunk.checksum == crc32fast::hash(&data);
            return right.then_some(data);
        }
        if chunk.checksum != crc32fast::hash(&chunk.data) {
            return None;
        }
        data.extend_from_slice(&chunk.data);
    }
    None
}

/// One thing goes wrong with a list of chunks, if the bytes do not undo it.
fn disorder(source: &mut Source<'_>, chunks: &mut Vec<SnapshotChunk>) {
    if chunks.is_empty() {
        return;
    }
    let (at, to) = (source.below(chunks.len()), source.below(chunks.len()));
    match source.below(8) {
        0 => chunks.swap(at, to),
        1 => drop(chunks.remove(at)),
        2 => chunks.insert(to, chunks[at].clone()),
        3 => chunks[at].sequence = source.number(),
        4 => chunks[at].checksum ^= 1 << source.below(32),
        5 => chunks[at].last ^= true,
        6 => chunks[at].data = Bytes::copy_from_slice(source.bytes(20)),
        _ => chunks[at].header = chunks[to].header.clone(),
    }
}
