//! What a store does, in numbers: for `polyraft status`, and for any recorder of the `metrics` crate.
//!
//! Names, units and meaning are in one table. The host and the transport count in atomics of their
//! own, which cost nothing to read; once a second [`publish`] hands them over. Without a recorder
//! that does nothing.

use std::sync::atomic::Ordering;

use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};
use polyraft_core::RoleName;
use polyraft_multiraft::{GroupId, HostStats};

use crate::directory::DIRECTORY;
use crate::server::Server;

/// Counters since the start of the store: name, unit, meaning.
const COUNTERS: [(&str, Unit, &str); 19] = [
    (
        "frames_out",
        Unit::Count,
        "frames with messages sent to other stores",
    ),
    (
        "messages_out",
        Unit::Count,
        "messages in them, of all groups",
    ),
    ("frames_in", Unit::Count, "frames with messages received"),
    (
        "wire_dropped",
        Unit::Count,
        "messages dropped before they were sent",
    ),
    (
        "wire_refused",
        Unit::Count,
        "connections and frames refused",
    ),
    ("passes", Unit::Count, "turns of workers"),
    ("proposals", Unit::Count, "commands proposed here"),
    ("reads", Unit::Count, "linearizable reads asked for here"),
    ("messages_in", Unit::Count, "messages of other stores"),
    (
        "messages_dropped",
        Unit::Count,
        "of them dropped, since the budget was used up",
    ),
    (
        "messages_refused",
        Unit::Count,
        "of them refused as malformed",
    ),
    ("writes", Unit::Count, "records written to the log"),
    ("apply_batches", Unit::Count, "writes of the state machine"),
    ("synced_writes", Unit::Count, "synced records of the log"),
    (
        "written_entries",
        Unit::Count,
        "entries in records of the log",
    ),
    ("applied_commands", Unit::Count, "commands applied"),
    ("snapshots_sent", Unit::Count, "snapshots sent"),
    ("snapshots_installed", Unit::Count, "snapshots installed"),
    (
        "directory_updates",
        Unit::Count,
        "news of groups that the directory took from this store",
    ),
];

/// Figures of this moment.
const GAUGES: [(&str, Unit, &str); 10] = [
    (
        "replicas",
        Unit::Count,
        "replicas on this store, but that of the directory",
    ),
    ("leaders", Unit::Count, "of them, those that lead"),
    ("asleep", Unit::Count, "of them, those that are not ticked"),
    (
        "directory_replica",
        Unit::Count,
        "1: the store has a replica of the directory",
    ),
    (
        "directory_leader",
        Unit::Count,
        "1: the store leads the directory",
    ),
    ("connected", Unit::Count, "other stores that can be heard"),
    ("disk_full", Unit::Count, "1: the last write found no room"),
    (
        "draining",
        Unit::Count,
        "1: the store moves its leaderships away, to leave",
    ),
    (
        "proposal_bytes",
        Unit::Bytes,
        "proposals that are not answered yet",
    ),
    (
        "inbound_bytes",
        Unit::Bytes,
        "messages that wait for a worker",
    ),
];

/// Whether `name` counts since the start of the store, so that a difference means something.
pub(crate) fn is_counter(name: &str) -> bool {
    COUNTERS.iter().any(|(known, ..)| *known == name)
}

/// Tells the recorder what the names mean.
pub(crate) fn describe() {
    for (name, unit, meaning) in COUNTERS {
        describe_counter!(full(name), unit, meaning);
    }
    for (name, unit, meaning) in GAUGES {
        describe_gauge!(full(name), unit, meaning);
    }
}

/// Hands all figures to the recorder.
pub(crate) fn publish(server: &Server) {
    let values = server.counters();
    let value = |name: &str| {
        values
            .iter()
            .find(|(known, _)| *known == name)
            .map_or(0, |(_, value)| *value)
    };
    for (name, ..) in COUNTERS {
        counter!(full(name)).absolute(value(name));
    }
    for (name, ..) in GAUGES {
        gauge!(full(name)).set(value(name) as f64);
    }
}

fn full(name: &str) -> String {
    format!("polyraft_{name}")
}

impl Server {
    /// What the host does; of its replicas those that users have made.
    pub(crate) fn stats_of_ranges(&self) -> HostStats {
        let mut stats = self.handle.stats();
        if let Some(summary) = self.handle.summary(GroupId(DIRECTORY)) {
            let leads = summary.basic.soft_state.role == RoleName::Leader;
            // Each figure is of a moment of its own.
            let less = |count: u64, by: bool| count.saturating_sub(u64::from(by));
            stats.replicas = less(stats.replicas, true);
            stats.leaders = less(stats.leaders, leads);
            stats.asleep = less(stats.asleep, summary.asleep);
        }
        stats
    }

    /// Every figure by its name.
    pub(crate) fn counters(&self) -> [(&'static str, u64); 29] {
        let (host, wire) = (self.stats_of_ranges(), self.peers.transport_stats());
        let directory = self.handle.summary(GroupId(DIRECTORY));
        [
            ("frames_out", wire.frames_out),
            ("messages_out", wire.messages_out),
            ("frames_in", wire.frames_in),
            ("wire_dropped", wire.dropped),
            ("wire_refused", wire.refused),
            ("replicas", host.replicas),
            ("leaders", host.leaders),
            ("asleep", host.asleep),
            ("directory_replica", u64::from(directory.is_some())),
            ("directory_leader", u64::from(self.leads(DIRECTORY))),
            (
                "directory_updates",
                self.publishing.published.load(Ordering::Relaxed),
            ),
            ("connected", self.peers.connected().len() as u64),
            ("disk_full", u64::from(host.disk_full)),
            ("draining", u64::from(self.draining.load(Ordering::SeqCst))),
            ("passes", host.passes),
            ("proposals", host.proposals),
            ("proposal_bytes", host.proposal_bytes),
            ("reads", host.reads),
            ("inbound_bytes", host.inbound_bytes),
            ("messages_in", host.messages_in),
            ("messages_dropped", host.messages_dropped),
            ("messages_refused", host.messages_refused),
            ("writes", host.writes),
            ("synced_writes", host.synced_writes),
            ("written_entries", host.written_entries),
            ("applied_commands", host.applied_commands),
            ("apply_batches", host.apply_batches),
            ("snapshots_sent", host.snapshots_sent),
            ("snapshots_installed", host.snapshots_installed),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_subtracted_is_told_from_what_cannot() {
        assert!(is_counter("synced_writes"));
        assert!(GAUGES.iter().all(|(name, ..)| !is_counter(name)));
    }
}
