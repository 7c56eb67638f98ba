//! Snapshots: a stream and a connection of their own, so that bulk never stands before messages.
//!
//! Every chunk has a number and a checksum, the last one a checksum over all. Disk work is done where
//! blocking is allowed.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use polyraft_core::SnapshotOutcome;
use polyraft_multiraft::env::{SnapshotHeader, SnapshotReceiver, SnapshotRefusal, SnapshotSource};
use polyraft_multiraft::{AppliedState, Responder, StoreId};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::codec;
use crate::config::MESSAGE_BYTES_MAX;
use crate::link::{LaneKind, connect, hello};
use crate::proto::transport_client::TransportClient;
use crate::proto::{SnapshotChunk, SnapshotHeader as WireHeader};
use crate::service::Hub;

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
    match try_send(&hub, to, &address, header, source).await {
        Ok(()) => done.answer(SnapshotOutcome::Sent),
        Err(reason) => {
            tracing::warn!(%group, store = %to, reason, "snapshot not sent");
            done.answer(SnapshotOutcome::Failed);
        }
    }
}

async fn try_send(
    hub: &Arc<Hub>,
    to: StoreId,
    address: &str,
    header: SnapshotHeader,
    source: Box<dyn SnapshotSource>,
) -> Result<(), String> {
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
    let feeding = tokio::spawn(feed(Arc::clone(hub), source, chunks));
    let call = client.snapshot(ReceiverStream::new(outgoing)).await;
    let fed = feeding.await.map_err(|error| error.to_string())?;
    match call {
        Ok(_) => fed,
        Err(status) => Err(format!("{}: {}", status.code(), status.message())),
    }
}

/// Reads chunks and sends them, no faster than allowed.
async fn feed(
    hub: Arc<Hub>,
    mut source: Box<dyn SnapshotSource>,
    chunks: mpsc::Sender<SnapshotChunk>,
) -> Result<(), String> {
    let config = &hub.config;
    let (mut all, mut sequence, mut pace) = (
        crc32fast::Hasher::new(),
        0,
        Pace::new(config.snapshot_bytes_per_second),
    );
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
        all.update(&data);
        pace.wait(data.len() as u64).await;
        sequence += 1;
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
            Ok(Ok(())) if last => return Ok(()),
            Ok(Ok(())) => {}
            // The receiver gave up; its answer to the call says why.
            Ok(Err(_)) => return Err("the receiver closed the stream".to_owned()),
            Err(_) => return Err("no progress".to_owned()),
        }
    }
}

/// So many bytes per second.
struct Pace {
    bytes_per_second: u64,
    free_at: Instant,
}

impl Pace {
    fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second,
            free_at: Instant::now(),
        }
    }

    async fn wait(&mut self, bytes: u64) {
        if self.bytes_per_second == 0 {
            return;
        }
        sleep_until(self.free_at).await;
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        self.free_at = self.free_at.max(Instant::now()) + takes;
    }
}

/// Takes one snapshot in.
pub(crate) async fn receive(
    hub: &Arc<Hub>,
    mut chunks: Streaming<SnapshotChunk>,
) -> Result<(), Status> {
    let patience = hub.config.snapshot_timeout;
    let first = next(&mut chunks, patience).await?;
    let header = first
        .header
        .ok_or_else(|| malformed("the first chunk has no header"))?;
    let greeting = header.hello.ok_or_else(|| malformed("no hello"))?;
    let from = hub.check(&greeting)?;
    let state =
        AppliedState::decode(&header.state).map_err(|error| malformed(error.to_string()))?;
    let message = header.message.ok_or_else(|| malformed("no message"))?;
    let (group, message) =
        codec::decode_one(message).map_err(|error| malformed(error.to_string()))?;
    let _slot = hub
        .snapshots_in
        .try_acquire()
        .map_err(|_| Status::resource_exhausted("too many snapshots are coming in; try later"))?;
    let inbound = hub.inbound()?;
    let header = SnapshotHeader {
        group,
        message,
        state,
    };
    let mut receiver = blocking(move || inbound.begin_snapshot(from, header)).await?;
    let (mut all, mut sequence) = (crc32fast::Hasher::new(), 0);
    loop {
        let chunk = next(&mut chunks, patience).await?;
        sequence += 1;
        if chunk.sequence != sequence {
            return Err(malformed("a chunk is missing"));
        }
        if chunk.last {
            if chunk.checksum != all.finalize() {
                return Err(malformed("the checksum over all does not match"));
            }
            return blocking(move || receiver.finish()).await;
        }
        if chunk.checksum != crc32fast::hash(&chunk.data) {
            return Err(malformed("the checksum of a chunk does not match"));
        }
        all.update(&chunk.data);
        receiver = write(receiver, chunk.data).await?;
    }
}

async fn write(
    mut receiver: Box<dyn SnapshotReceiver>,
    data: Bytes,
) -> Result<Box<dyn SnapshotReceiver>, Status> {
    blocking(move || receiver.write(data).map(|()| receiver)).await
}

async fn next(
    chunks: &mut Streaming<SnapshotChunk>,
    patience: Duration,
) -> Result<SnapshotChunk, Status> {
    match timeout(patience, chunks.message()).await {
        Ok(chunk) => chunk?.ok_or_else(|| malformed("it ended before its last chunk")),
        Err(_) => Err(Status::deadline_exceeded("no progress")),
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

fn malformed(why: impl Into<String>) -> Status {
    Status::invalid_argument(why)
}
