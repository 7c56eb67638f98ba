//! What the transport counts for the `metrics` facade.
//!
//! Handles are taken once, per lane or snapshot, so that a frame costs a few additions. A process
//! that exports metrics therefore installs its recorder before it makes a transport. Bytes of
//! messages are counted as the queues do it: payloads exactly, headers by estimate.
//!
//! Labels: `peer`, the other store (`store` is what an exporter may call this one), and `lane`,
//! `control` or `append`; few enough for any cluster.

use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};
use polyraft_multiraft::StoreId;

use crate::link::LaneKind;

macro_rules! names {
    ($($name:ident = $text:literal, $describe:ident, $help:literal;)*) => {
        $(const $name: &str = concat!("polyraft_transport_", $text);)*
        /// Tells the recorder what each name means.
        pub(crate) fn describe() {
            $($describe!($name, $help);)*
        }
    };
}

names! {
    FRAMES_SENT = "frames_sent_total", describe_counter, "Frames with messages given to a lane";
    MESSAGES_SENT = "messages_sent_total", describe_counter, "Messages in frames given to a lane";
    BYTES_SENT = "bytes_sent_total", describe_counter, "Bytes of messages given to a lane, about";
    DROPPED = "messages_dropped_total", describe_counter, "Messages dropped before they were sent";
    QUEUE = "queue_bytes", describe_gauge, "Bytes of messages that wait for a lane, about";
    RECONNECTS = "reconnects_total", describe_counter, "Connections that ended or were not made";
    CONNECTED = "connected", describe_gauge, "1 while a store answers on the control lane, else 0";
    FRAMES_RECEIVED = "frames_received_total", describe_counter, "Frames with messages received";
    MESSAGES_RECEIVED = "messages_received_total", describe_counter, "Messages received";
    BYTES_RECEIVED = "bytes_received_total", describe_counter, "Bytes of messages received, about";
    REFUSED = "refused_total", describe_counter, "Streams, frames and snapshots refused";
    SNAPSHOT_BYTES_SENT = "snapshot_bytes_sent_total", describe_counter, "Bytes of snapshots sent";
    SNAPSHOT_BYTES_RECEIVED = "snapshot_bytes_received_total", describe_counter,
        "Bytes of snapshots received";
    SNAPSHOTS_SENT = "snapshots_sent_total", describe_counter, "Snapshots sent, by how it ended";
    SNAPSHOTS_RECEIVED = "snapshots_received_total", describe_counter,
        "Snapshots received, by how it ended";
}

/// One lane to one store.
pub(crate) struct LaneOut {
    pub(crate) frames: Counter,
    pub(crate) messages: Counter,
    pub(crate) bytes: Counter,
    pub(crate) dropped: Counter,
    pub(crate) waiting: Gauge,
    pub(crate) reconnects: Counter,
}

impl LaneOut {
    pub(crate) fn new(store: StoreId, lane: LaneKind) -> Self {
        let (store, lane) = (store.0.to_string(), lane.name());
        Self {
            frames: counter!(FRAMES_SENT, "peer" => store.clone(), "lane" => lane),
            messages: counter!(MESSAGES_SENT, "peer" => store.clone(), "lane" => lane),
            bytes: counter!(BYTES_SENT, "peer" => store.clone(), "lane" => lane),
            dropped: counter!(DROPPED, "peer" => store.clone(), "lane" => lane),
            waiting: gauge!(QUEUE, "peer" => store.clone(), "lane" => lane),
            reconnects: counter!(RECONNECTS, "peer" => store, "lane" => lane),
        }
    }
}

/// One lane from one store.
pub(crate) struct LaneIn {
    pub(crate) frames: Counter,
    pub(crate) messages: Counter,
    pub(crate) bytes: Counter,
}

impl LaneIn {
    pub(crate) fn new(store: StoreId, lane: LaneKind) -> Self {
        let (store, lane) = (store.0.to_string(), lane.name());
        Self {
            frames: counter!(FRAMES_RECEIVED, "peer" => store.clone(), "lane" => lane),
            messages: counter!(MESSAGES_RECEIVED, "peer" => store.clone(), "lane" => lane),
            bytes: counter!(BYTES_RECEIVED, "peer" => store, "lane" => lane),
        }
    }
}

/// Whether a store can be heard.
pub(crate) fn connected(store: StoreId) -> Gauge {
    gauge!(CONNECTED, "peer" => store.0.to_string())
}

/// What was refused: a `stream` at its beginning, a `frame`, or a `snapshot`.
pub(crate) fn refused(what: &'static str) -> Counter {
    counter!(REFUSED, "what" => what)
}

/// Bytes of snapshots to a store.
pub(crate) fn snapshot_bytes_sent(to: StoreId) -> Counter {
    counter!(SNAPSHOT_BYTES_SENT, "peer" => to.0.to_string())
}

/// Bytes of snapshots from a store.
pub(crate) fn snapshot_bytes_received(from: StoreId) -> Counter {
    counter!(SNAPSHOT_BYTES_RECEIVED, "peer" => from.0.to_string())
}

/// One more snapshot to a store ended.
pub(crate) fn snapshot_sent(to: StoreId, complete: bool) {
    counter!(SNAPSHOTS_SENT, "peer" => to.0.to_string(), "outcome" => outcome(complete))
        .increment(1);
}

/// One more snapshot from a store ended.
pub(crate) fn snapshot_received(from: StoreId, complete: bool) {
    counter!(SNAPSHOTS_RECEIVED, "peer" => from.0.to_string(), "outcome" => outcome(complete))
        .increment(1);
}

const fn outcome(complete: bool) -> &'static str {
    if complete { "complete" } else { "failed" }
}
