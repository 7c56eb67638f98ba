//! What a transport is told at its start.

use std::time::Duration;

use polyraft_multiraft::StoreId;

/// Parameters of a transport. [`TransportConfig::new`] gives the defaults.
#[derive(Clone, Debug)]
pub struct TransportConfig {
    /// Which cluster; stores of others are refused.
    pub cluster: u64,
    /// Which store this is.
    pub store: StoreId,
    /// Differs after every restart.
    pub incarnation: u64,
    /// Where other stores can reach this one, `host:port`.
    pub address: String,
    /// Bytes in a frame, about and at most 4 MiB; a single larger message still goes alone.
    pub frame_bytes_max: usize,
    /// Bytes of messages that wait for one store on the append lane; beyond it the oldest are
    /// dropped.
    pub append_queue_bytes_max: usize,
    /// The same on the control lane.
    pub control_queue_bytes_max: usize,
    /// Time between pings on the control lane.
    pub ping_interval: Duration,
    /// Time without an answer after which a store counts as down, and after which one that connects
    /// and says nothing is disconnected. Covers half-open connections.
    pub dead_after: Duration,
    /// The longest pause between attempts to connect.
    pub backoff_max: Duration,
    /// Bytes in a chunk of a snapshot, about.
    pub snapshot_chunk_bytes: usize,
    /// Bytes per second of all snapshots that this store sends, together; 0: no limit.
    pub snapshot_bytes_per_second: u64,
    /// Snapshots taken in at once; more are refused and tried again later.
    pub snapshots_in_max: usize,
    /// Time without progress after which a snapshot is given up; also the time that the receiver
    /// has for its answer after the last chunk.
    pub snapshot_timeout: Duration,
}

impl TransportConfig {
    /// The defaults.
    #[must_use]
    pub const fn new(cluster: u64, store: StoreId, incarnation: u64, address: String) -> Self {
        Self {
            cluster,
            store,
            incarnation,
            address,
            frame_bytes_max: 1 << 20,
            append_queue_bytes_max: 64 << 20,
            control_queue_bytes_max: 4 << 20,
            ping_interval: Duration::from_millis(500),
            dead_after: Duration::from_secs(2),
            backoff_max: Duration::from_secs(1),
            snapshot_chunk_bytes: 256 << 10,
            snapshot_bytes_per_second: 0,
            snapshots_in_max: 4,
            snapshot_timeout: Duration::from_secs(30),
        }
    }
}

/// The versions of the protocol that this build speaks.
pub const PROTOCOL_MIN: u32 = 1;
/// See [`PROTOCOL_MIN`].
pub const PROTOCOL_MAX: u32 = 1;
/// Bytes in a gRPC message at most.
pub(crate) const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// Bytes of a frame with more than one message at most, as [`size`](crate::codec::size) counts
/// them. Receivers refuse more; it belongs to the protocol.
pub(crate) const FRAME_BYTES_MAX: usize = 4 << 20;
/// Bytes of one message at most, as [`size`](crate::codec::size) counts them: whatever its entries
/// are like, a frame of this size stays below [`MESSAGE_BYTES_MAX`].
pub(crate) const SINGLE_BYTES_MAX: usize = MESSAGE_BYTES_MAX / 2;
