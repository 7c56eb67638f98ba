//! What the network does to those who use it, as numbers that can change at any time.

use crate::rng::Rng;
use crate::time::{MICROSECOND, MILLISECOND, Nanos, SECOND};

/// Which faults the network has now. Rates are per million. [`NetworkFaults::default`] is a sound
/// LAN with the limits and deadlines that the real transport has by default; no field may stand in
/// the way of arriving at all but `loss` and the rates that break connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkFaults {
    /// One way takes so long at least.
    pub delay_min: Nanos,
    /// And at most.
    pub delay_max: Nanos,
    /// How many frames and parts of snapshots take longer, and with them everything behind them on
    /// the lane.
    pub spike: u64,
    /// By how much at most.
    pub spike_max: Nanos,
    /// How many messages are lost and nobody says so.
    pub loss: u64,
    /// How many frames arrive twice: some messages of them once more, within `late_max`.
    pub duplication: u64,
    /// How many frames are shuffled, or leave their place on the lane and arrive up to `late_max`
    /// later.
    pub reorder: u64,
    /// See `duplication` and `reorder`.
    pub late_max: Nanos,
    /// How many frames arrive only in part, because their connection is reset in the middle of
    /// them: the rest of them and everything under way on the lane is lost.
    pub reset: u64,
    /// How many frames arrive once more long after they were sent, and how many of those that went
    /// down with a connection or with their sender do so all the same; until then stores may have
    /// been restarted.
    pub stale: u64,
    /// How long after, at most.
    pub stale_max: Nanos,
    /// Messages that may wait on a lane; of more the oldest are dropped. The newest always stays.
    pub waiting_max: usize,
    /// Messages in a frame.
    pub frame_max: usize,
    /// Frames under way on a lane; what is sent meanwhile waits and then goes together.
    pub in_flight_max: usize,
    /// An end that hears nothing notices it after so long at least.
    pub silence_min: Nanos,
    /// And at most. The control lane notices in the first quarter of the time between.
    pub silence_max: Nanos,
    /// The longest pause between attempts to connect.
    pub backoff_max: Nanos,
    /// Bytes per second of all snapshots that a store sends, together; 0: no limit.
    pub snapshot_bytes_per_second: u64,
    /// Bytes of a chunk: drawn for each snapshot between this
    pub chunk_min: u64,
    /// and this.
    pub chunk_max: u64,
    /// How many parts of snapshots arrive damaged; the checksum tells.
    pub bad_chunk: u64,
    /// How many parts of snapshots are the last of theirs because the connection breaks.
    pub break_off: u64,
    /// How many parts of snapshots never arrive although the connection stands.
    pub stuck: u64,
    /// Time without progress after which a snapshot is given up.
    pub snapshot_timeout: Nanos,
    /// Snapshots that a store takes in at once.
    pub snapshots_in_max: usize,
}

impl Default for NetworkFaults {
    fn default() -> Self {
        Self {
            delay_min: 50 * MICROSECOND,
            delay_max: 500 * MICROSECOND,
            spike: 0,
            spike_max: 200 * MILLISECOND,
            loss: 0,
            duplication: 0,
            reorder: 0,
            late_max: 50 * MILLISECOND,
            reset: 0,
            stale: 0,
            stale_max: 20 * SECOND,
            waiting_max: 1 << 16,
            frame_max: 1 << 12,
            in_flight_max: 8,
            silence_min: 2 * SECOND,
            silence_max: 4 * SECOND,
            backoff_max: SECOND,
            snapshot_bytes_per_second: 0,
            chunk_min: 64,
            chunk_max: 64 << 10,
            bad_chunk: 0,
            break_off: 0,
            stuck: 0,
            snapshot_timeout: 30 * SECOND,
            snapshots_in_max: 4,
        }
    }
}

impl NetworkFaults {
    /// How long one way takes now.
    pub(super) fn delay(&self, rng: &mut Rng) -> Nanos {
        let delay = rng.between(self.delay_min, self.delay_max);
        match strikes(self.spike, rng) {
            true => delay + rng.between(0, self.spike_max),
            false => delay,
        }
    }

    /// When an end notices that it hears nothing any more. Pings find it out sooner than the
    /// keepalive of HTTP/2, which is all that other streams have.
    pub(super) fn silence(&self, pinged: bool, rng: &mut Rng) -> Nanos {
        let span = self.silence_max.saturating_sub(self.silence_min);
        let span = if pinged { span / 4 } else { span };
        self.silence_min + rng.between(0, span)
    }
}

/// Whether something that happens at a rate happens now.
pub(super) fn strikes(per_million: u64, rng: &mut Rng) -> bool {
    per_million > 0 && rng.chance(per_million)
}
