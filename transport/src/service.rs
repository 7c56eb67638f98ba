//! The way in: lanes and snapshots that other stores open.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use polyraft_multiraft::StoreId;
use polyraft_multiraft::env::Inbound;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::codec;
use crate::config::{PROTOCOL_MAX, PROTOCOL_MIN, TransportConfig};
use crate::link::{LaneKind, hello};
use crate::proto::transport_server::Transport as TransportService;
use crate::proto::{Frame, Hello, LaneReply, SnapshotChunk, SnapshotReply};
use crate::snapshot;

/// Called with store and address when a store says where it is.
type OnAddress = Arc<dyn Fn(StoreId, &str) + Send + Sync>;

/// What lanes, services and the transport share.
pub(crate) struct Hub {
    pub(crate) config: TransportConfig,
    inbound: OnceLock<Arc<dyn Inbound>>,
    on_address: Mutex<Option<OnAddress>>,
    stop: watch::Sender<bool>,
    pub(crate) snapshots_in: Arc<Semaphore>,
    pub(crate) frames_in: AtomicU64,
    pub(crate) messages_in: AtomicU64,
    pub(crate) refused: AtomicU64,
}

impl Hub {
    pub(crate) fn new(config: TransportConfig) -> Self {
        Self {
            snapshots_in: Arc::new(Semaphore::new(config.snapshots_in_max)),
            config,
            inbound: OnceLock::new(),
            on_address: Mutex::new(None),
            stop: watch::Sender::new(false),
            frames_in: AtomicU64::new(0),
            messages_in: AtomicU64::new(0),
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
            self.refused.fetch_add(1, Ordering::Relaxed);
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

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub")
            .field("store", &self.config.store)
            .finish_non_exhaustive()
    }
}

/// The gRPC service of a transport.
#[derive(Clone, Debug)]
pub struct Service {
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
        let first = frames.message().await?;
        let greeting = first
            .and_then(|frame| frame.hello)
            .ok_or_else(|| Status::invalid_argument("the first frame must be a hello"))?;
        let from = self.hub.check(&greeting)?;
        let lane = if greeting.control_lane {
            LaneKind::Control
        } else {
            LaneKind::Append
        };
        let (replies, outgoing) = mpsc::channel(16);
        let welcome = Some(hello(&self.hub.config, from, lane));
        let _ = replies.send(Ok(LaneReply { welcome, pong: 0 })).await;
        tokio::spawn(receive(Arc::clone(&self.hub), from, frames, replies));
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

/// Hands over what comes in, until the stream ends or brings something malformed.
async fn receive(
    hub: Arc<Hub>,
    from: StoreId,
    mut frames: Streaming<Frame>,
    replies: mpsc::Sender<Result<LaneReply, Status>>,
) {
    loop {
        let frame = tokio::select! {
            frame = frames.message() => frame,
            () = hub.stopping() => return,
        };
        let Ok(Some(frame)) = frame else { return };
        let ping = frame.ping;
        let messages = match codec::decode(frame) {
            Ok(messages) => messages,
            Err(error) => {
                hub.refused.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(store = %from, %error, "frame refused, stream closed");
                let status = Status::invalid_argument(error.to_string());
                let _ = replies.send(Err(status)).await;
                return;
            }
        };
        if !messages.is_empty() {
            hub.frames_in.fetch_add(1, Ordering::Relaxed);
            hub.messages_in
                .fetch_add(messages.len() as u64, Ordering::Relaxed);
            match hub.inbound() {
                Ok(inbound) => inbound.deliver(from, messages),
                Err(status) => {
                    let _ = replies.send(Err(status)).await;
                    return;
                }
            }
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
            return;
        }
    }
}
