//! The way in: lanes and snapshots that other stores open.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use polyraft_multiraft::StoreId;
use polyraft_multiraft::env::{Inbound, Lost};
use tokio::sync::{Semaphore, SetOnce, mpsc, watch};
use tokio::time::timeout;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::codec;
use crate::config::{PROTOCOL_MAX, PROTOCOL_MIN, TransportConfig};
use crate::link::{LaneKind, hello};
use crate::meters::{self, LaneIn};
use crate::proto::transport_server::Transport as TransportService;
use crate::proto::{Frame, Hello, LaneReply, SnapshotChunk, SnapshotReply};
use crate::snapshot::{self, Pace};

/// Bytes of a host name at most, and a port.
const ADDRESS_BYTES_MAX: usize = 253 + 6;

/// Called with store and address when a store says where it is.
type OnAddress = Arc<dyn Fn(StoreId, &str) + Send + Sync>;

/// What lanes, services and the transport share.
pub(crate) struct Hub {
    pub(crate) config: TransportConfig,
    inbound: SetOnce<Arc<dyn Inbound>>,
    on_address: Mutex<Option<OnAddress>>,
    stop: watch::Sender<bool>,
    pub(crate) snapshots_in: Arc<Semaphore>,
    pub(crate) snapshot_pace: Pace,
    pub(crate) frames_in: AtomicU64,
    pub(crate) messages_in: AtomicU64,
    /// Messages to stores of which no address is known.
    pub(crate) nowhere: AtomicU64,
    pub(crate) refused: AtomicU64,
}

impl Hub {
    pub(crate) fn new(config: TransportConfig) -> Self {
        Self {
            snapshots_in: Arc::new(Semaphore::new(config.snapshots_in_max)),
            snapshot_pace: Pace::new(config.snapshot_bytes_per_second),
            config,
            inbound: SetOnce::new(),
            on_address: Mutex::new(None),
            stop: watch::Sender::new(false),
            frames_in: AtomicU64::new(0),
            messages_in: AtomicU64::new(0),
            nowhere: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    pub(crate) fn set_inbound(&self, inbound: Arc<dyn Inbound>) {
        // Only the first counts; there is one host.
        let _ = self.inbound.set(inbound);
    }

    pub(crate) fn set_on_address(&self, on_address: OnAddress) {
        *self.on_address.lock() = Some(on_address);
    }

    pub(crate) fn inbound(&self) -> Result<Arc<dyn Inbound>, Status> {
        self.inbound
            .get()
            .cloned()
            .ok_or_else(|| Status::unavailable("the store is starting"))
    }

    /// Returns once there is somebody to deliver to.
    pub(crate) async fn started(&self) {
        self.inbound.wait().await;
    }

    pub(crate) fn store_up(&self, store: StoreId, incarnation: u64) {
        if let Some(inbound) = self.inbound.get() {
            inbound.store_up(store, incarnation);
        }
    }

    pub(crate) fn store_down(&self, store: StoreId) {
        if let Some(inbound) = self.inbound.get() {
            inbound.store_down(store);
        }
    }

    pub(crate) fn lost(&self, to: StoreId, messages: Lost) {
        if let Some(inbound) = self.inbound.get() {
            inbound.lost(to, messages);
        }
    }

    /// Counts a refusal; `what` is a `stream`, a `frame` or a `snapshot`.
    pub(crate) fn count_refusal(&self, what: &'static str) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        meters::refused(what).increment(1);
    }

    pub(crate) fn stop(&self) {
        self.stop.send_replace(true);
    }

    pub(crate) fn is_stopping(&self) -> bool {
        *self.stop.borrow()
    }

    pub(crate) async fn stopping(&self) {
        // The sender lives as long as this does.
        let _ = self.stop.subscribe().wait_for(|stop| *stop).await;
    }

    /// Whether a store may come in.
    pub(crate) fn check(&self, hello: &Hello) -> Result<StoreId, Status> {
        let config = &self.config;
        let refuse = |why: String| {
            self.count_refusal("stream");
            tracing::warn!(store = hello.from_store, why, "connection refused");
            Err(Status::failed_precondition(why))
        };
        if hello.cluster != config.cluster {
            return refuse(format!(
                "store {} belongs to cluster {:016x}, this is store {} of cluster {:016x}: \
                 check the addresses",
                hello.from_store, hello.cluster, config.store, config.cluster
            ));
        }
        if hello.to_store != config.store.0 {
            return refuse(format!(
                "this is store {}, not store {}: check the addresses",
                config.store, hello.to_store
            ));
        }
        if hello.from_store == config.store.0 || hello.from_store == 0 {
            return refuse(format!(
                "another process claims to be store {}",
                hello.from_store
            ));
        }
        if hello.protocol_max < PROTOCOL_MIN || hello.protocol_min > PROTOCOL_MAX {
            return refuse(format!(
                "no common protocol version: it speaks {} to {}, this store {PROTOCOL_MIN} to \
                 {PROTOCOL_MAX}: upgrade one of them",
                hello.protocol_min, hello.protocol_max
            ));
        }
        if hello.address.len() > ADDRESS_BYTES_MAX {
            return refuse(format!(
                "an address of {} bytes is none",
                hello.address.len()
            ));
        }
        // Before anything of it is taken in: a store that is starting learns nothing yet.
        self.inbound()?;
        let store = StoreId(hello.from_store);
        let on_address = self.on_address.lock().clone();
        if let Some(on_address) = on_address
            && !hello.address.is_empty()
        {
            on_address(store, &hello.address);
        }
        Ok(store)
    }
}

impl Hub {
    /// Whether the store that answered is the one that was called.
    pub(crate) fn check_welcome(&self, welcome: &Hello, called: StoreId) -> Result<(), String> {
        if (welcome.cluster, welcome.from_store) == (self.config.cluster, called.0) {
            return Ok(());
        }
        self.count_refusal("stream");
        Err(format!(
            "store {} of cluster {:016x} answers there",
            welcome.from_store, welcome.cluster
        ))
    }
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub")
            .field("store", &self.config.store)
            .finish_non_exhaustive()
    }
}

/// The gRPC service of a transport.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub(crate) hub: Arc<Hub>,
}

#[tonic::async_trait]
impl TransportService for Service {
    type LaneStream = Pin<Box<dyn Stream<Item = Result<LaneReply, Status>> + Send>>;

    async fn lane(
        &self,
        request: Request<Streaming<Frame>>,
    ) -> Result<Response<Self::LaneStream>, Status> {
        let mut frames = request.into_inner();
        let patience = self.hub.config.dead_after;
        let Ok(first) = timeout(patience, frames.message()).await else {
            self.hub.count_refusal("stream");
            return Err(Status::deadline_exceeded("it connected and said nothing"));
        };
        let first = first.inspect_err(|status| {
            if is_malformed(status) {
                self.hub.count_refusal("stream");
            }
        })?;
        let Some(greeting) = only_hello(first.unwrap_or_default()) else {
            self.hub.count_refusal("stream");
            let why = "the first frame must be a hello and nothing else";
            return Err(Status::invalid_argument(why));
        };
        let from = self.hub.check(&greeting)?;
        let lane = if greeting.control_lane {
            LaneKind::Control
        } else {
            LaneKind::Append
        };
        let (replies, outgoing) = mpsc::channel(16);
        let welcome = Some(hello(&self.hub.config, from, lane));
        // There is room: it is the first.
        let _ = replies.send(Ok(LaneReply { welcome, pong: 0 })).await;
        tokio::spawn(receive(Arc::clone(&self.hub), from, lane, frames, replies));
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<SnapshotChunk>>,
    ) -> Result<Response<SnapshotReply>, Status> {
        snapshot::receive(&self.hub, request.into_inner()).await?;
        Ok(Response::new(SnapshotReply {}))
    }
}

/// The hello of a first frame, if there is nothing else in it.
fn only_hello(mut frame: Frame) -> Option<Hello> {
    let hello = frame.hello.take();
    hello.filter(|_| frame == Frame::default())
}

/// Whether a stream ended for what came over it, rather than for a connection that broke: those
/// have an error of HTTP/2 or of the socket behind them.
pub(crate) fn is_malformed(status: &Status) -> bool {
    use std::error::Error as _;
    let code = matches!(
        status.code(),
        Code::Internal | Code::OutOfRange | Code::Unimplemented
    );
    code && status.source().is_none()
}

/// Hands over what comes in, until the stream ends or brings something malformed.
async fn receive(
    hub: Arc<Hub>,
    from: StoreId,
    lane: LaneKind,
    mut frames: Streaming<Frame>,
    replies: mpsc::Sender<Result<LaneReply, Status>>,
) {
    let meters = LaneIn::new(from, lane);
    let refused = tokio::select! {
        refused = take_in(&hub, from, &meters, &mut frames, &replies) => refused,
        () = hub.stopping() => None,
    };
    let Some(status) = refused else { return };
    hub.count_refusal("frame");
    tracing::warn!(store = %from, reason = status.message(), "frame refused, stream closed");
    // A peer that does not read its pongs does not read this either.
    let patience = hub.config.dead_after;
    let _ = timeout(patience, replies.send(Err(status))).await;
}

/// Returns what is wrong with the last frame; nothing if the stream just ended.
async fn take_in(
    hub: &Hub,
    from: StoreId,
    meters: &LaneIn,
    frames: &mut Streaming<Frame>,
    replies: &mpsc::Sender<Result<LaneReply, Status>>,
) -> Option<Status> {
    loop {
        let frame = match frames.message().await {
            Ok(Some(frame)) => frame,
            Ok(None) => return None,
            Err(status) => return is_malformed(&status).then_some(status),
        };
        let ping = frame.ping;
        let messages = match codec::decode(frame) {
            Ok(messages) => messages,
            Err(error) => return Some(Status::invalid_argument(error.to_string())),
        };
        if !messages.is_empty() {
            let count = messages.len() as u64;
            hub.frames_in.fetch_add(1, Ordering::Relaxed);
            hub.messages_in.fetch_add(count, Ordering::Relaxed);
            meters.frames.increment(1);
            meters.messages.increment(count);
            let bytes: usize = messages.iter().map(codec::size).sum();
            meters.bytes.increment(bytes as u64);
            // No lane is welcomed before there is somebody to deliver to.
            hub.inbound().ok()?.deliver(from, messages);
        }
        // Not waited for: a peer that does not read its pongs must not stop its messages.
        if ping > 0
            && replies
                .try_send(Ok(LaneReply {
                    pong: ping,
                    ..LaneReply::default()
                }))
                .is_err()
            && replies.is_closed()
        {
            return None;
        }
    }
}
