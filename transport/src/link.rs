//! One lane to one store: connects, greets, sends frames, notices silence, and does it again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use polyraft_multiraft::StoreId;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use crate::config::{MESSAGE_BYTES_MAX, PROTOCOL_MAX, PROTOCOL_MIN, TransportConfig};
use crate::proto::transport_client::TransportClient;
use crate::proto::{Frame, Hello, LaneReply};
use crate::queue::Queue;
use crate::service::Hub;

/// What is known of another store.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) store: StoreId,
    pub(crate) address: Mutex<String>,
    /// The address changed: connect again.
    pub(crate) moved: Notify,
    pub(crate) control: Queue,
    pub(crate) append: Queue,
    pub(crate) connected: AtomicBool,
    pub(crate) reconnects: AtomicU64,
}

impl Peer {
    pub(crate) fn new(store: StoreId, address: String, config: &TransportConfig) -> Self {
        Self {
            store,
            address: Mutex::new(address),
            moved: Notify::new(),
            control: Queue::new(config.control_queue_bytes_max),
            append: Queue::new(config.append_queue_bytes_max),
            connected: AtomicBool::new(false),
            reconnects: AtomicU64::new(0),
        }
    }
}

/// Which of the two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LaneKind {
    Control,
    Append,
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
    let mut backoff = BACKOFF_MIN;
    let mut complained = String::new();
    loop {
        let begun = Instant::now();
        let ended = one_connection(&hub, &peer, lane).await;
        if begun.elapsed() >= SOUND {
            backoff = BACKOFF_MIN;
        }
        let queue = queue(&peer, lane);
        queue.clear();
        if lane == LaneKind::Control && peer.connected.swap(false, Ordering::SeqCst) {
            hub.store_down(peer.store);
        }
        // Once for each new reason: a store that is down for a day is not news every second.
        if ended != complained {
            tracing::info!(store = %peer.store, ?lane, reason = ended, "not connected");
            complained = ended;
        }
        peer.reconnects.fetch_add(1, Ordering::Relaxed);
        tokio::select! {
            () = sleep(backoff) => backoff = (backoff * 2).min(hub.config.backoff_max),
            () = peer.moved.notified() => backoff = BACKOFF_MIN,
        }
        if hub.is_stopping() {
            return;
        }
    }
}

const BACKOFF_MIN: Duration = Duration::from_millis(20);
/// A connection that lasted so long was a good one: the next attempt comes at once.
const SOUND: Duration = Duration::from_secs(3);

fn queue(peer: &Peer, lane: LaneKind) -> &Queue {
    match lane {
        LaneKind::Control => &peer.control,
        LaneKind::Append => &peer.append,
    }
}

/// Connects to a store.
pub(crate) async fn connect(address: &str, patience: Duration) -> Result<Channel, String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| format!("address {address}: {error}"))?
        .connect_timeout(patience)
        .tcp_nodelay(true)
        .initial_stream_window_size(8 << 20)
        .initial_connection_window_size(16 << 20)
        .http2_keep_alive_interval(Duration::from_secs(2))
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

/// One connection from beginning to end. Returns why it ended.
async fn one_connection(hub: &Arc<Hub>, peer: &Arc<Peer>, lane: LaneKind) -> String {
    let config = &hub.config;
    let address = peer.address.lock().clone();
    let channel = match connect(&address, config.dead_after).await {
        Ok(channel) => channel,
        Err(error) => return error,
    };
    let mut client = TransportClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
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
        Ok(Err(status)) => return format!("refused: {}", status.message()),
        Err(_) => return "no answer".to_owned(),
    };
    let incarnation = match timeout(config.dead_after, replies.message()).await {
        Ok(Ok(Some(LaneReply {
            welcome: Some(welcome),
            ..
        }))) => welcome.incarnation,
        Ok(Err(status)) => return format!("refused: {}", status.message()),
        _ => return "no welcome".to_owned(),
    };
    if lane == LaneKind::Control {
        peer.connected.store(true, Ordering::SeqCst);
        hub.store_up(peer.store, incarnation);
        tracing::info!(store = %peer.store, incarnation, "connected");
    }
    pump(hub, peer, lane, &frames, &mut replies).await
}

/// Frames that a lane may have given to HTTP/2 and not seen off.
const FRAMES_IN_FLIGHT: usize = 4;

async fn pump(
    hub: &Arc<Hub>,
    peer: &Arc<Peer>,
    lane: LaneKind,
    frames: &mpsc::Sender<Frame>,
    replies: &mut Streaming<LaneReply>,
) -> String {
    let (config, queue) = (&hub.config, queue(peer, lane));
    let mut pings = interval(config.ping_interval);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut number, mut heard) = (0, Instant::now());
    loop {
        tokio::select! {
            // What was heard before what was not: a stall of this process is no silence of the peer.
            biased;
            reply = replies.message() => match reply {
                Ok(Some(_)) => heard = Instant::now(),
                Ok(None) => return "it closed the stream".to_owned(),
                Err(status) => return format!("the stream broke: {}", status.message()),
            },
            _ = pings.tick(), if lane == LaneKind::Control => {
                if heard.elapsed() >= config.dead_after {
                    return "no answer to pings".to_owned();
                }
                number += 1;
                let ping = Frame { ping: number, ..Frame::default() };
                if frames.try_send(ping).is_err() && frames.is_closed() {
                    return "the stream broke".to_owned();
                }
            }
            () = peer.moved.notified() => return "its address changed".to_owned(),
            () = hub.stopping() => return "shutting down".to_owned(),
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
