//! Messages of thousands of groups over few streams: one per other store and lane, and one per
//! snapshot.
//!
//! # Contract
//! * May lose and reorder; never invents or alters. Within a lane of one connection frames keep
//!   their order; inside a frame heartbeats come first, then their answers, then everything else,
//!   each in order.
//! * [`Transport::send`](polyraft_multiraft::env::Transport::send) never blocks: what does not fit
//!   is dropped, oldest first, counted, and reported through
//!   [`Inbound::lost`](polyraft_multiraft::env::Inbound::lost).
//! * A frame carries everything that waits, up to a size: batches grow with the load and nothing
//!   waits for company. Heartbeats of all groups to one store are columns of one frame.
//! * A store that answers no ping for a while is reported down, also behind a half-open connection,
//!   and up again when it is welcomed anew.
//! * Stores of another cluster, with another id, or of no common protocol version are refused with
//!   the reason, at the beginning; one that says nothing is disconnected. What is malformed is
//!   refused and counted, and never a panic.
//! * Snapshots take connections of their own and share one limit of bytes per second. A transfer
//!   that makes no progress is given up, and one that breaks off anywhere leaves nothing behind.
//! * Everything is counted as `polyraft_transport_*` through the `metrics` facade; a recorder must
//!   be installed before the transport is made.

mod bounded;
mod codec;
mod config;
#[cfg(test)]
mod fuzz;
mod incoming;
mod link;
mod meters;
pub mod proto;
mod queue;
mod service;
mod snapshot;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::RwLock;
use polyraft_core::SnapshotOutcome;
use polyraft_multiraft::env::{
    GroupMessage, Inbound, Lane, Lost, SnapshotHeader, SnapshotSource, Transport,
};
use polyraft_multiraft::{Responder, StoreId};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tonic::transport::Server;

pub use bounded::TransportService;
pub use config::{PROTOCOL_MAX, PROTOCOL_MIN, TransportConfig};
use incoming::Incoming;
use link::{LaneKind, Peer};
use service::{Hub, Service};

/// See the crate's documentation.
#[derive(Debug)]
pub struct GrpcTransport {
    hub: Arc<Hub>,
    runtime: Handle,
    peers: RwLock<HashMap<StoreId, Arc<Peer>>>,
}

/// How the way to another store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// Which store.
    pub store: StoreId,
    /// Where it is looked for.
    pub address: String,
    /// Welcomed there, and it answers pings.
    pub connected: bool,
    /// Bytes of messages that wait.
    pub queued_bytes: u64,
    /// Messages dropped.
    pub dropped: u64,
    /// Connections that ended or did not come about.
    pub reconnects: u64,
}

/// What a transport did since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransportStats {
    /// Frames with messages sent.
    pub frames_out: u64,
    /// Messages in them.
    pub messages_out: u64,
    /// Frames with messages received.
    pub frames_in: u64,
    /// Messages in them.
    pub messages_in: u64,
    /// Messages dropped before they were sent.
    pub dropped: u64,
    /// Connections and frames refused.
    pub refused: u64,
}

impl GrpcTransport {
    /// A transport whose tasks run on `runtime`. Nothing is connected or delivered before
    /// [`start`](Self::start).
    #[must_use]
    pub fn new(config: TransportConfig, runtime: Handle) -> Arc<Self> {
        meters::describe();
        let hub = Arc::new(Hub::new(config));
        Arc::new(Self {
            hub,
            runtime,
            peers: RwLock::default(),
        })
    }

    /// The service that other stores call, to be added to a server; see [`serve`](Self::serve).
    #[must_use]
    pub fn service(&self) -> TransportService {
        TransportService::new(Service {
            hub: Arc::clone(&self.hub),
        })
    }

    /// Serves nothing but this transport on a listener, for hosts without a server of their own.
    ///
    /// # Errors
    /// The listener has no address.
    pub fn serve(&self, listener: TcpListener) -> std::io::Result<SocketAddr> {
        let address = listener.local_addr()?;
        let (service, hub) = (self.service(), Arc::clone(&self.hub));
        let stopped = Arc::clone(&self.hub);
        self.runtime.spawn(async move {
            let stop = async move { stopped.stopping().await };
            let patience = hub.config.dead_after;
            let served = Server::builder()
                .http2_keepalive_interval(Some(link::KEEP_ALIVE))
                .http2_keepalive_timeout(Some(patience))
                .initial_stream_window_size(8 << 20)
                .initial_connection_window_size(16 << 20)
                .add_service(service)
                .serve_with_incoming_shutdown(Incoming::new(listener, patience), stop)
                .await;
            if let Err(error) = served {
                tracing::error!(%error, "the transport's server ended");
            }
        });
        Ok(address)
    }

    /// From now on stores are connected to and what comes in is delivered. Only the first call
    /// counts.
    pub fn start(&self, inbound: Arc<dyn Inbound>) {
        self.hub.set_inbound(inbound);
    }

    /// `on_address` is called with store and address whenever a store says where it is.
    pub fn on_address(&self, on_address: impl Fn(StoreId, &str) + Send + Sync + 'static) {
        self.hub.set_on_address(Arc::new(on_address));
    }

    /// Where a store is. A new store is connected to at once; one that moved, again.
    pub fn set_address(&self, store: StoreId, address: String) {
        if store == self.hub.config.store || self.hub.is_stopping() {
            return;
        }
        let mut peers = self.peers.write();
        if let Some(peer) = peers.get(&store) {
            peer.address.send_if_modified(|present| {
                let moved = *present != address;
                *present = address;
                moved
            });
            return;
        }
        let peer = Arc::new(Peer::new(store, address, &self.hub.config));
        peers.insert(store, Arc::clone(&peer));
        for lane in [LaneKind::Control, LaneKind::Append] {
            self.runtime
                .spawn(link::run(Arc::clone(&self.hub), Arc::clone(&peer), lane));
        }
    }

    /// Where a store is, if that is known.
    #[must_use]
    pub fn address(&self, store: StoreId) -> Option<String> {
        self.peers
            .read()
            .get(&store)
            .map(|peer| peer.address.borrow().clone())
    }

    /// All other stores, ascending.
    #[must_use]
    pub fn peers(&self) -> Vec<PeerStatus> {
        let mut all: Vec<PeerStatus> = self
            .peers
            .read()
            .values()
            .map(|peer| status(peer))
            .collect();
        all.sort_by_key(|peer| peer.store);
        all
    }

    /// What was done since the start.
    #[must_use]
    pub fn stats(&self) -> TransportStats {
        let peers = self.peers.read();
        let sum = |count: fn(&Peer) -> u64| peers.values().map(|peer| count(peer)).sum();
        let load = Ordering::Relaxed;
        TransportStats {
            frames_out: sum(|p| {
                p.control.frames.load(Ordering::Relaxed) + p.append.frames.load(Ordering::Relaxed)
            }),
            messages_out: sum(|p| {
                let (control, append) = (&p.control.messages, &p.append.messages);
                control.load(Ordering::Relaxed) + append.load(Ordering::Relaxed)
            }),
            frames_in: self.hub.frames_in.load(load),
            messages_in: self.hub.messages_in.load(load),
            dropped: sum(dropped) + self.hub.nowhere.load(load),
            refused: self.hub.refused.load(load),
        }
    }

    /// Ends every task. Messages that wait are lost, as they may be at any time.
    pub fn shutdown(&self) {
        self.hub.stop();
    }
}

impl Drop for GrpcTransport {
    fn drop(&mut self) {
        self.hub.stop();
    }
}

fn dropped(peer: &Peer) -> u64 {
    peer.control.dropped.load(Ordering::Relaxed) + peer.append.dropped.load(Ordering::Relaxed)
}

fn status(peer: &Peer) -> PeerStatus {
    PeerStatus {
        store: peer.store,
        address: peer.address.borrow().clone(),
        connected: peer.connected.load(Ordering::SeqCst),
        queued_bytes: (peer.control.bytes() + peer.append.bytes()) as u64,
        dropped: dropped(peer),
        reconnects: peer.reconnects.load(Ordering::Relaxed),
    }
}

impl Transport for GrpcTransport {
    fn send(&self, to: StoreId, lane: Lane, messages: Vec<GroupMessage>) {
        let peers = self.peers.read();
        let Some(peer) = peers.get(&to).map(Arc::clone) else {
            let count = messages.len() as u64;
            self.hub.nowhere.fetch_add(count, Ordering::Relaxed);
            return;
        };
        drop(peers);
        let dropped = match lane {
            Lane::Control => peer.control.push(messages),
            Lane::Append => peer.append.push(messages),
        };
        if !dropped.is_empty() {
            self.hub.lost(to, Lost::Of(dropped));
        }
    }

    fn send_snapshot(
        &self,
        to: StoreId,
        header: SnapshotHeader,
        source: Box<dyn SnapshotSource>,
        done: Responder<SnapshotOutcome>,
    ) {
        match self.address(to).filter(|_| !self.hub.is_stopping()) {
            Some(address) => {
                let hub = Arc::clone(&self.hub);
                self.runtime
                    .spawn(snapshot::send(hub, to, address, header, source, done));
            }
            None => done.answer(SnapshotOutcome::Failed),
        }
    }
}
