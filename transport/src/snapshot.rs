//! Snapshots: a stream and a connection of their own, so that bulk never stands before messages.
//!
//! Every chunk has a number and a checksum, the last one a checksum over all. Disk work is done
//! where blocking is allowed, the cleaning up after a snapshot that broke off too. Both ends give
//! up when there is no progress and when the transport stops.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use metrics::Counter;
use parking_lot::Mutex;
use polyraft_core::{Payload, SnapshotOutcome};
use polyraft_multiraft::env::{SnapshotHeader, SnapshotReceiver, SnapshotRefusal, SnapshotSource};
use polyraft_multiraft::{AppliedState, Responder, StoreId};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::codec;
use crate::config::MESSAGE_BYTES_MAX;
use crate::link::{LaneKind, connect, hello};
use crate::meters;
use crate::proto::transport_client::TransportClient;
use crate::proto::{SnapshotChunk, SnapshotHeader as WireHeader};
use crate::service::{Hub, is_malformed};

/// Sends one snapshot and says how it ended.
pub(crate) async fn send(
    hub: Arc<Hub>,
    to: StoreId,
    address: String,
    header: SnapshotHeader,
    source: Box<dyn SnapshotSource>,
    done: Responder<SnapshotOutcome>,
) {
    let group = header.group;
    let sent = tokio::select! {
        sent = try_send(&hub, to, &address, header, source) => sent,
        () = hub.stopping() => Err("shutting down".to_owned()),
    };
    meters::snapshot_sent(to, sent.is_ok());
    match sent {
        Ok(()) => done.answer(SnapshotOutcome::Sent),
        Err(reason) => {
            tracing::warn!(%group, store = %to, reason, "snapshot not sent");
            done.answer(SnapshotOutcome::Failed);
        }
    }
}

async fn try_send(
    hub: &Hub,
    to: StoreId,
    address: &str,
    header: SnapshotHeader,
    source: Box<dyn SnapshotSource>,
) -> Result<(), String> {
    if !matches!(header.message.payload, Payload::Snapshot(_)) {
        return Err("its message is not about a snapshot".to_owned());
    }
    let config = &hub.config;
    let channel = connect(address, config.dead_after).await?;
    let mut client = TransportClient::new(channel).max_encoding_message_size(MESSAGE_BYTES_MAX);
    let (chunks, outgoing) = mpsc::channel(2);
    let first = SnapshotChunk {
        header: Some(WireHeader {
            hello: Some(hello(config, to, LaneKind::Append)),
            state: header.state.encode(),
            message: Some(codec::encode_one(header.group, header.message)),
        }),
        ..SnapshotChunk::default()
    };
    if chunks.send(first).await.is_err() {
        return Err("the stream broke".to_owned());
    }
    let call = client.snapshot(ReceiverStream::new(outgoing));
    tokio::pin!(call);
    let mut feeding = std::pin::pin!(feed(hub, to, source, chunks));
    let (answer, fed) = tokio::select! {
        // An answer before the end is a refusal, and nothing more needs to be read.
        answer = &mut call => (answer, Fed::Partly),
        fed = &mut feeding => {
            let fed = fed?;
            let answer = timeout(config.snapshot_timeout, call).await;
            (answer.map_err(|_| "no answer after the last chunk".to_owned())?, fed)
        }
    };
    match (answer, fed) {
        (Ok(_), Fed::Whole) => Ok(()),
        (Ok(_), Fed::Partly) => Err("it was accepted before its end".to_owned()),
        (Err(status), _) => Err(format!("{}: {}", status.code(), status.message())),
    }
}

/// How much of a snapshot the stream has taken.
enum Fed {
    Whole,
    /// The receiver gave up; its answer to the call says why.
    Partly,
}

/// Reads chunks and sends them, no faster than allowed.
async fn feed(
    hub: &Hub,
    to: StoreId,
    mut source: Box<dyn SnapshotSource>,
    chunks: mpsc::Sender<SnapshotChunk>,
) -> Result<Fed, String> {
    let config = &hub.config;
    let sent = meters::snapshot_bytes_sent(to);
    let (mut all, mut sequence) = (crc32fast::Hasher::new(), 0);
    loop {
        let bytes = config.snapshot_chunk_bytes;
        let read = spawn_blocking(move || {
            let chunk = source.next_chunk(bytes);
            (source, chunk)
        });
        let (back, chunk) = read.await.map_err(|error| error.to_string())?;
        source = back;
        let chunk = chunk.map_err(|error| error.to_string())?;
        let last = chunk.is_none();
        let data = chunk.unwrap_or_default();
        if data.is_empty() && !last {
            continue;
        }
        all.update(&data);
        hub.snapshot_pace.wait(data.len() as u64).await;
        sequence += 1;
        sent.increment(data.len() as u64);
        let checksum = if last {
            all.clone().finalize()
        } else {
            crc32fast::hash(&data)
        };
        let chunk = SnapshotChunk {
            header: None,
            sequence,
            data,
            checksum,
            last,
        };
        match timeout(config.snapshot_timeout, chunks.send(chunk)).await {
            Ok(Ok(())) if last => return Ok(Fed::Whole),
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Ok(Fed::Partly),
            Err(_) => return Err("no progress".to_owned()),
        }
    }
}

/// So many bytes per second over all snapshots of a store: each chunk books the time that it takes,
/// one after the other.
pub(crate) struct Pace {
    bytes_per_second: u64,
    free_at: Mutex<Option<Instant>>,
}

impl Pace {
    pub(crate) const fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second,
            free_at: Mutex::new(None),
        }
    }

    pub(crate) async fn wait(&self, bytes: u64) {
        if self.bytes_per_second == 0 || bytes == 0 {
            return;
        }
        sleep_until(self.book(Instant::now(), bytes)).await;
    }

    /// When these bytes may go.
    fn book(&self, now: Instant, bytes: u64) -> Instant {
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let mut free_at = self.free_at.lock();
        let begin = free_at.map_or(now, |free_at| free_at.max(now));
        *free_at = Some(begin + takes);
        begin
    }
}

/// Takes one snapshot in.
pub(crate) async fn receive(
    hub: &Arc<Hub>,
    mut chunks: Streaming<SnapshotChunk>,
) -> Result<(), Status> {
    let patience = hub.config.dead_after;
    let (from, staging) = tokio::select! {
        begun = begin(hub, &mut chunks, patience) => begun?,
        () = hub.stopping() => return Err(stopping()),
    };
    let taken = tokio::select! {
        taken = take_in(hub, from, staging, &mut chunks) => taken,
        () = hub.stopping() => Err(stopping()),
    };
    meters::snapshot_received(from, taken.is_ok());
    taken
}

/// Looks at the header, and asks whether the snapshot is wanted.
async fn begin(
    hub: &Arc<Hub>,
    chunks: &mut Streaming<SnapshotChunk>,
    patience: Duration,
) -> Result<(StoreId, Staging), Status> {
    let first = next(hub, chunks, patience).await?;
    let malformed = |why: String| malformed(hub, why);
    let nothing_else = first.data.is_empty() && first.sequence == 0 && !first.last;
    let header = first.header.filter(|_| nothing_else);
    let header = header.ok_or_else(|| malformed("the first chunk must be a header".to_owned()))?;
    let greeting = header
        .hello
        .ok_or_else(|| malformed("no hello".to_owned()))?;
    let from = hub.check(&greeting)?;
    let state =
        AppliedState::decode(&header.state).map_err(|error| malformed(error.to_string()))?;
    let message = header
        .message
        .ok_or_else(|| malformed("no message".to_owned()))?;
    let (group, message) =
        codec::decode_one(message).map_err(|error| malformed(error.to_string()))?;
    if !matches!(message.payload, Payload::Snapshot(_)) {
        return Err(malformed("its message is not about a snapshot".to_owned()));
    }
    let slot = Arc::clone(&hub.snapshots_in)
        .try_acquire_owned()
        .map_err(|_| Status::resource_exhausted("too many snapshots are coming in; try later"))?;
    let inbound = hub.inbound()?;
    let header = SnapshotHeader {
        group,
        message,
        state,
    };
    let staging = blocking(move || {
        let receiver = inbound.begin_snapshot(from, header)?;
        Ok(Staging(Some((receiver, slot))))
    });
    Ok((from, staging.await?))
}

async fn take_in(
    hub: &Hub,
    from: StoreId,
    mut staging: Staging,
    chunks: &mut Streaming<SnapshotChunk>,
) -> Result<(), Status> {
    let received: Counter = meters::snapshot_bytes_received(from);
    let (mut all, mut sequence) = (crc32fast::Hasher::new(), 0);
    let malformed = |why: &str| Err(malformed(hub, why.to_owned()));
    loop {
        let chunk = next(hub, chunks, hub.config.snapshot_timeout).await?;
        sequence += 1;
        if chunk.sequence != sequence || chunk.header.is_some() {
            return malformed("a chunk is missing");
        }
        if chunk.last {
            if chunk.checksum != all.finalize() || !chunk.data.is_empty() {
                return malformed("the checksum over all does not match");
            }
            return blocking(move || staging.finish()).await;
        }
        if chunk.checksum != crc32fast::hash(&chunk.data) {
            return malformed("the checksum of a chunk does not match");
        }
        all.update(&chunk.data);
        received.increment(chunk.data.len() as u64);
        staging = blocking(move || staging.write(chunk.data)).await?;
    }
}

/// A snapshot that is coming in and its place among them. Dropped anywhere, what was stored of it
/// is removed where blocking is allowed.
struct Staging(Option<(Box<dyn SnapshotReceiver>, OwnedSemaphorePermit)>);

impl Staging {
    fn write(mut self, data: Bytes) -> Result<Self, SnapshotRefusal> {
        if let Some((receiver, _)) = &mut self.0 {
            receiver.write(data)?;
        }
        Ok(self)
    }

    fn finish(mut self) -> Result<(), SnapshotRefusal> {
        match self.0.take() {
            Some((receiver, _slot)) => receiver.finish(),
            None => Ok(()),
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let Some(unfinished) = self.0.take() else {
            return;
        };
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || drop(unfinished))),
            Err(_) => drop(unfinished),
        }
    }
}

async fn next(
    hub: &Hub,
    chunks: &mut Streaming<SnapshotChunk>,
    patience: Duration,
) -> Result<SnapshotChunk, Status> {
    match timeout(patience, chunks.message()).await {
        Ok(Ok(Some(chunk))) => Ok(chunk),
        Ok(Ok(None)) => Err(malformed(hub, "it ended before its last chunk".to_owned())),
        Ok(Err(status)) if is_malformed(&status) => {
            Err(malformed(hub, status.message().to_owned()))
        }
        Ok(Err(status)) => Err(status),
        Err(_) => {
            hub.count_refusal("snapshot");
            Err(Status::deadline_exceeded("no progress"))
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SnapshotRefusal> + Send + 'static,
) -> Result<T, Status> {
    match spawn_blocking(work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(refusal @ SnapshotRefusal::Busy)) => {
            Err(Status::resource_exhausted(refusal.to_string()))
        }
        Ok(Err(refusal)) => Err(Status::failed_precondition(refusal.to_string())),
        Err(error) => Err(Status::internal(error.to_string())),
    }
}

fn malformed(hub: &Hub, why: String) -> Status {
    hub.count_refusal("snapshot");
    tracing::warn!(why, "snapshot refused");
    Status::invalid_argument(why)
}

fn stopping() -> Status {
    Status::unavailable("the store is shutting down")
}
