//! What a host is told at its start.

use std::time::Duration;

use polyraft_core::{Config, ReplicaId};

use crate::error::HostError;
use crate::group::{GroupId, StoreId};

/// Parameters of a host. [`HostConfig::new`] gives the defaults.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// Which store this is; not 0.
    pub store: StoreId,
    /// Threads that own replicas.
    pub workers: usize,
    /// Threads that apply.
    pub appliers: usize,
    /// The length of a tick.
    pub tick: Duration,
    /// Ticks without a leader before a replica campaigns; randomised up to twice that.
    pub election_ticks: u32,
    /// Ticks between heartbeats of an awake group.
    pub heartbeat_ticks: u32,
    /// Ticks without work after which a group goes to sleep; 0: never.
    pub sleep_after_ticks: u32,
    /// Bytes of a command at most.
    pub command_bytes_max: u64,
    /// Bytes of proposals that are not answered yet, over all groups; beyond it: `Busy`.
    pub proposal_bytes_max: u64,
    /// Bytes of messages from other stores that wait for a worker; beyond it they are dropped.
    pub inbound_bytes_max: u64,
    /// Bytes of entries kept in memory beyond what is needed, over all groups.
    pub entry_cache_bytes_max: u64,
    /// Bytes of entries per append message.
    pub message_bytes_max: u64,
    /// Unacknowledged append messages per follower.
    pub inflight_messages_max: usize,
    /// Bytes in one record of the log, about.
    pub write_bytes_max: u64,
    /// Groups in one record of the log.
    pub write_groups_max: usize,
    /// Applied entries that an awake group keeps in its log for followers that lag.
    pub truncate_keep_entries: u64,
    /// Bytes in the hot log after which applied data is flushed, so that the log can be truncated.
    pub flush_log_bytes: u64,
    /// Applied data is flushed at least this often while there is any.
    pub flush_interval: Duration,
    /// Snapshots built and sent at once.
    pub snapshot_sends_max: usize,
}

impl HostConfig {
    /// The defaults for `store`.
    #[must_use]
    pub fn new(store: StoreId) -> Self {
        Self {
            store,
            workers: 1,
            appliers: 1,
            tick: Duration::from_millis(100),
            election_ticks: 10,
            heartbeat_ticks: 3,
            sleep_after_ticks: 30,
            command_bytes_max: 8 << 20,
            proposal_bytes_max: 256 << 20,
            inbound_bytes_max: 256 << 20,
            entry_cache_bytes_max: 256 << 20,
            message_bytes_max: 256 << 10,
            inflight_messages_max: 128,
            write_bytes_max: 256 << 10,
            write_groups_max: 512,
            truncate_keep_entries: 1024,
            flush_log_bytes: 128 << 20,
            flush_interval: Duration::from_secs(30),
            snapshot_sends_max: 2,
        }
    }

    /// Whether a host can work so.
    ///
    /// # Errors
    /// Which parameter is wrong, and how.
    pub fn validate(&self) -> Result<(), HostError> {
        let checks = [
            (self.store.0 > 0, "store must not be 0"),
            (
                self.workers > 0 && self.workers <= 256,
                "workers must be between 1 and 256",
            ),
            (
                self.appliers > 0 && self.appliers <= 256,
                "appliers must be between 1 and 256",
            ),
            (!self.tick.is_zero(), "tick must not be 0"),
            (self.heartbeat_ticks > 0, "heartbeat_ticks must not be 0"),
            (
                self.election_ticks > self.heartbeat_ticks,
                "election_ticks must be greater than heartbeat_ticks",
            ),
            (
                self.command_bytes_max > 0,
                "command_bytes_max must not be 0",
            ),
            (
                self.proposal_bytes_max >= self.command_bytes_max,
                "proposal_bytes_max must not be below command_bytes_max",
            ),
            (
                self.inflight_messages_max > 0,
                "inflight_messages_max must not be 0",
            ),
            (self.write_groups_max > 0, "write_groups_max must not be 0"),
            (
                self.snapshot_sends_max > 0,
                "snapshot_sends_max must not be 0",
            ),
        ];
        match checks.iter().find(|(holds, _)| !holds) {
            Some((_, broken)) => Err(HostError::Config((*broken).to_owned())),
            None => Ok(()),
        }
    }

    /// The core's parameters for one replica.
    pub(crate) fn raft(&self, group: GroupId, replica: ReplicaId) -> Config {
        Config {
            election_ticks: self.election_ticks,
            heartbeat_ticks: self.heartbeat_ticks,
            max_message_bytes: self.message_bytes_max,
            max_committed_bytes: 4 << 20,
            max_uncommitted_bytes: self.proposal_bytes_max,
            max_inflight_messages: self.inflight_messages_max,
            max_inflight_bytes: self.message_bytes_max.saturating_mul(16),
            disable_proposal_forwarding: true,
            commit_by_vote: true,
            // Followers serve no reads of their own, so that nobody waits for what they apply.
            lazy_commit: true,
            // Groups that start together must not campaign together.
            seed: group.0.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (replica.0 << 32) ^ self.store.0,
            ..Config::new(replica)
        }
    }
}
