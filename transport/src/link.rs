//! One lane to one store: connects, greets, sends frames, notices silence, and does it again.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use metrics::Gauge;
use polyraft_multiraft::StoreId;
use polyraft_multiraft::env::Lost;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use crate::config::{MESSAGE_BYTES_MAX, PROTOCOL_MAX, PROTOCOL_MIN, TransportConfig};
use crate::meters;
use crate::proto::transport_client::TransportClient;
use crate::proto::{Frame, Hello, LaneReply};
use crate::queue::Queue;
use crate::service::Hub;

/// What is known of another store.
pub(crate) struct Peer {
    pub(crate) store: StoreId,
    /// Where it is; both lanes connect again when this changes.
    pub(crate) address: watch::Sender<String>,
    pub(crate) control: Queue,
    pub(crate) append: Queue,
    pub(crate) connected: AtomicBool,
    pub(crate) reconnects: AtomicU64,
    connected_meter: Gauge,
}

impl Peer {
    pub(crate) fn new(store: StoreId, address: String, config: &TransportConfig) -> Self {
        let (control, append) = (
            config.control_queue_bytes_max,
            config.append_queue_bytes_max,
        );
        Self {
            store,
            address: watch::Sender::new(address),
            control: Queue::new(store, LaneKind::Control, control),
            append: Queue::new(store, LaneKind::Append, append),
            connected: AtomicBool::new(false),
            reconnects: AtomicU64::new(0),
            connected_meter: meters::connected(store),
        }
    }

    pub(crate) const fn queue(&self, lane: LaneKind) -> &Queue {
        match lane {
            LaneKind::Control => &self.control,
            LaneKind::Append => &self.append,
        }
    }

    fn welcomed(&self, hub: &Hub, incarnation: u64) {
        self.connected.store(true, Ordering::SeqCst);
        self.connected_meter.set(1.0);
        hub.store_up(self.store, incarnation);
        tracing::info!(store = %self.store, incarnation, "connected");
    }

    /// What waited was for a connection that is gone. `stood`: there was one.
    fn disconnected(&self, hub: &Hub, lane: LaneKind, stood: bool) {
        self.queue(lane).clear();
        match lane {
            LaneKind::Control => {
                if self.connected.swap(false, Ordering::SeqCst) {
                    self.connected_meter.set(0.0);
                    hub.store_down(self.store);
                }
            }
            // What the control lane has lost its end says; this lane's end would be no news.
            LaneKind::Append => {
                if stood {
                    hub.lost(self.store, Lost::Any);
                }
            }
        }
    }
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peer")
            .field("store", &self.store)
            .field("connected", &self.connected)
            .finish_non_exhaustive()
    }
}

/// Which of the two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LaneKind {
    Control,
    Append,
}

impl LaneKind {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Append => "append",
        }
    }
}

pub(crate) fn hello(config: &TransportConfig, to: StoreId, lane: LaneKind) -> Hello {
    Hello {
        cluster: config.cluster,
        from_store: config.store.0,
        to_store: to.0,
        incarnation: config.incarnation,
        protocol_min: PROTOCOL_MIN,
        protocol_max: PROTOCOL_MAX,
        control_lane: lane == LaneKind::Control,
        address: config.address.clone(),
    }
}

/// Runs for as long as the transport does.
pub(crate) async fn run(hub: Arc<Hub>, peer: Arc<Peer>, lane: LaneKind) {
    let mut stands = false;
    tokio::select! {
        never = keep_connected(&hub, &peer, lane, &mut stands) => match never {},
        () = hub.stopping() => {}
    }
    peer.disconnected(&hub, lane, stands);
}

async fn keep_connected(hub: &Hub, peer: &Peer, lane: LaneKind, stands: &mut bool) -> Infallible {
    // Before there is a host, nobody would hear that the store is up.
    hub.started().await;
    let mut backoff = BACKOFF_MIN;
    let mut complained = String::new();
    let mut news = peer.address.subscribe();
    loop {
        let begun = Instant::now();
        let address = news.borrow_and_update().clone();
        let ended = tokio::select! {
            ended = one_connection(hub, peer, lane, &address, stands) => ended,
            _ = news.changed() => "its address changed".to_owned(),
        };
        peer.disconnected(hub, lane, std::mem::take(stands));
        if begun.elapsed() >= SOUND {
            backoff = BACKOFF_MIN;
        }
        // Once for each new reason: a store that is down for a day is not news every second.
        if ended != complained {
            let lane = lane.name();
            tracing::info!(store = %peer.store, lane, reason = ended, "not connected");
            complained = ended;
        }
        peer.reconnects.fetch_add(1, Ordering::Relaxed);
        peer.queue(lane).meters.reconnects.increment(1);
        tokio::select! {
            () = sleep(backoff) => backoff = (backoff * 2).min(hub.config.backoff_max),
            _ = news.changed() => backoff = BACKOFF_MIN,
        }
    }
}

const BACKOFF_MIN: Duration = Duration::from_millis(20);
/// A connection that lasted so long was a good one: the next attempt comes at once.
const SOUND: Duration = Duration::from_secs(3);

/// How often HTTP/2 asks whether the other end is there, on connections that carry nothing too.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(2);

/// Connects to a store.
pub(crate) async fn connect(address: &str, patience: Duration) -> Result<Channel, String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| format!("address {address}: {error}"))?
        .connect_timeout(patience)
        .tcp_nodelay(true)
        .initial_stream_window_size(8 << 20)
        .initial_connection_window_size(16 << 20)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(patience)
        .keep_alive_while_idle(true);
    endpoint
        .connect()
        .await
        .map_err(|error| format!("{address}: {}", deepest(&error)))
}

/// The cause says more than the wrapping.
fn deepest(error: &dyn std::error::Error) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

/// One connection from beginning to end; `stands` once it is welcomed. Returns why it ended.
async fn one_connection(
    hub: &Hub,
    peer: &Peer,
    lane: LaneKind,
    address: &str,
    stands: &mut bool,
) -> String {
    let config = &hub.config;
    let channel = match connect(address, config.dead_after).await {
        Ok(channel) => channel,
        Err(error) => return error,
    };
    let mut client = TransportClient::new(channel).max_encoding_message_size(MESSAGE_BYTES_MAX);
    let (frames, outgoing) = mpsc::channel::<Frame>(FRAMES_IN_FLIGHT);
    let greeting = Frame {
        hello: Some(hello(config, peer.store, lane)),
        ..Frame::default()
    };
    if frames.send(greeting).await.is_err() {
        return "the stream broke".to_owned();
    }
    let opened = timeout(
        config.dead_after,
        client.lane(ReceiverStream::new(outgoing)),
    )
    .await;
    let mut replies = match opened {
        Ok(Ok(reply)) => reply.into_inner(),
        Ok(Err(status)) => return refused(&status),
        Err(_) => return "no answer".to_owned(),
    };
    let welcome = match timeout(config.dead_after, replies.message()).await {
        Ok(Ok(Some(reply))) => reply.welcome,
        Ok(Err(status)) => return refused(&status),
        _ => None,
    };
    let Some(welcome) = welcome else {
        return "no welcome".to_owned();
    };
    if let Err(reason) = hub.check_welcome(&welcome, peer.store) {
        return reason;
    }
    *stands = true;
    if lane == LaneKind::Control {
        peer.welcomed(hub, welcome.incarnation);
    }
    pump(config, peer.queue(lane), lane, &frames, &mut replies).await
}

/// A store that has not joined its cluster yet does not have this service, and gives no reason.
fn refused(status: &tonic::Status) -> String {
    match (status.code(), status.message()) {
        (tonic::Code::Unimplemented, _) => "it takes part in no cluster yet".to_owned(),
        (code, "") => format!("refused: {code:?}"),
        (_, why) => format!("refused: {why}"),
    }
}

/// Frames that a lane may have given to HTTP/2 and not seen off.
const FRAMES_IN_FLIGHT: usize = 4;

async fn pump(
    config: &TransportConfig,
    queue: &Queue,
    lane: LaneKind,
    frames: &mpsc::Sender<Frame>,
    replies: &mut Streaming<LaneReply>,
) -> String {
    let mut pings = interval(config.ping_interval);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let patience = pings_unanswered_max(config);
    let (mut number, mut unanswered) = (0, 0);
    // What waited for the connection is sent now.
    queue.news.notify_one();
    loop {
        tokio::select! {
            // What was heard before what was not: a stall of this process is no silence of the
            // peer.
            biased;
            reply = replies.message() => match reply {
                Ok(Some(_)) => unanswered = 0,
                Ok(None) => return "it closed the stream".to_owned(),
                Err(status) => return format!("the stream broke: {}", status.message()),
            },
            _ = pings.tick(), if lane == LaneKind::Control => {
                if unanswered >= patience {
                    return "no answer to pings".to_owned();
                }
                number += 1;
                unanswered += 1;
                let ping = Frame { ping: number, ..Frame::default() };
                if frames.try_send(ping).is_err() && frames.is_closed() {
                    return "the stream broke".to_owned();
                }
            }
            () = queue.news.notified() => {
                // One frame a turn, so that pongs and pings have theirs under any load.
                let Some(frame) = queue.take(config.frame_bytes_max) else { continue };
                // A peer that does not take what it is sent looks like one that is gone.
                match timeout(config.dead_after, frames.send(frame)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return "the stream broke".to_owned(),
                    Err(_) => return "it does not take what it is sent".to_owned(),
                }
                if queue.bytes() > 0 {
                    queue.news.notify_one();
                }
            }
        }
    }
}

/// Silence is counted in pings, not read from a clock: while this process stands still it sends
/// none, and so blames nobody.
fn pings_unanswered_max(config: &TransportConfig) -> u32 {
    let pings = config.dead_after.as_nanos() / config.ping_interval.as_nanos().max(1);
    u32::try_from(pings).unwrap_or(u32::MAX).max(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_always_has_a_reason() {
        use tonic::Status;
        assert_eq!(refused(&Status::unavailable("why")), "refused: why");
        assert_eq!(refused(&Status::internal("")), "refused: Internal");
        let waits = refused(&Status::unimplemented(""));
        assert_eq!(waits, "it takes part in no cluster yet");
    }
}
