//! What a world consists of and what happens to it: drawn from the seed, readable, and changeable by hand.
//!
//! Swarm testing (Groce and others, 2012): each seed switches on a random subset of the faults,
//! since faults hide each other's effects when all of them are always on. Everything that
//! shrinking takes away is a field here.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use polyraft_multiraft::{HostConfig, StoreId};

use crate::rng::Rng;
use crate::time::{MILLISECOND, Nanos, SECOND};

/// A kind of misfortune, or of work, that a world may know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Messages take long now and then.
    Delay,
    /// Messages are lost.
    Loss,
    /// Messages come twice.
    Duplication,
    /// Messages overtake each other within a lane.
    Reorder,
    /// Connections break in the middle of a batch.
    Reset,
    /// Messages of an earlier incarnation or of an old connection arrive.
    Stale,
    /// Stores cannot reach each other, both ways.
    Partition,
    /// The same, one way only.
    OneWay,
    /// A store that leads is cut off for about as long as it takes to lead no more; clients may press it for
    /// answers meanwhile, and it may be restarted afterwards.
    Isolate,
    /// Lanes hold few messages.
    Narrow,
    /// A process is killed and started again.
    Crash,
    /// The power of one store fails, sometimes of all.
    PowerCut,
    /// Syncs take up to seconds.
    SlowSync,
    /// A sync fails: the store stops, and starts again on what the disk has kept.
    FailedSync,
    /// A disk is full for a while.
    DiskFull,
    /// A bit of the log flips; the store is replaced later.
    BitFlip,
    /// A store is gone for ever, and a new one takes its place.
    LostStore,
    /// Applying takes long.
    SlowApply,
    /// Chunks of snapshots are damaged on the way.
    BadChunk,
    /// Clocks run at different speeds.
    Drift,
    /// Clocks jump: many ticks at once.
    Jump,
    /// A process stands still for a while.
    Pause,
    /// Members come and go.
    Membership,
    /// Leadership is handed over, and taken.
    Transfer,
    /// Groups are created and destroyed.
    Groups,
    /// Groups are split.
    Split,
    /// Groups are merged, or split if there are no neighbours.
    Merge,
    /// Replicas are moved to other stores.
    Move,
    /// Applied data is flushed and logs truncated all the time.
    Truncation,
    /// Every limit is as small as it can be.
    Limits,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 30] = [
        Self::Delay,
        Self::Loss,
        Self::Duplication,
        Self::Reorder,
        Self::Reset,
        Self::Stale,
        Self::Partition,
        Self::OneWay,
        Self::Isolate,
        Self::Narrow,
        Self::Crash,
        Self::PowerCut,
        Self::SlowSync,
        Self::FailedSync,
        Self::DiskFull,
        Self::BitFlip,
        Self::LostStore,
        Self::SlowApply,
        Self::BadChunk,
        Self::Drift,
        Self::Jump,
        Self::Pause,
        Self::Membership,
        Self::Transfer,
        Self::Groups,
        Self::Split,
        Self::Truncation,
        Self::Limits,
        Self::Merge,
        Self::Move,
    ];

    /// Its name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Delay => "delay",
            Self::Loss => "loss",
            Self::Duplication => "duplication",
            Self::Reorder => "reorder",
            Self::Reset => "reset",
            Self::Stale => "stale",
            Self::Partition => "partition",
            Self::OneWay => "one-way",
            Self::Isolate => "isolate",
            Self::Narrow => "narrow",
            Self::Crash => "crash",
            Self::PowerCut => "power-cut",
            Self::SlowSync => "slow-sync",
            Self::FailedSync => "failed-sync",
            Self::DiskFull => "disk-full",
            Self::BitFlip => "bit-flip",
            Self::LostStore => "lost-store",
            Self::SlowApply => "slow-apply",
            Self::BadChunk => "bad-chunk",
            Self::Drift => "drift",
            Self::Jump => "jump",
            Self::Pause => "pause",
            Self::Membership => "membership",
            Self::Transfer => "transfer",
            Self::Groups => "groups",
            Self::Split => "split",
            Self::Merge => "merge",
            Self::Move => "move",
            Self::Truncation => "truncation",
            Self::Limits => "limits",
        }
    }

    /// The fault of a name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|fault| fault.name() == name)
    }
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Where all further draws come from.
    pub seed: u64,
    /// Stores at the beginning, numbered from 1.
    pub stores: u64,
    /// Groups at the beginning.
    pub groups: u64,
    /// Members of a group at the beginning, at most `stores`.
    pub members: u64,
    /// Clients.
    pub clients: u64,
    /// Time between two operations of a client, about.
    pub think: Nanos,
    /// How long faults go on.
    pub chaos: Nanos,
    /// After the end of faults everything must work again within this time.
    pub calm: Nanos,
    /// What may happen.
    pub faults: BTreeSet<Fault>,
    /// Time between two strokes of misfortune, about.
    pub pace: Nanos,
    /// Stop after so many events, for shrinking; the world is then not looked at as a whole.
    pub events_max: u64,
}

impl Plan {
    /// The plan of a seed: small worlds often, large ones sometimes.
    #[must_use]
    pub fn drawn(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x706c_616e);
        let stores = rng.between(3, 5);
        // Half of the seeds know few kinds of faults, so that progress is made between them.
        let percent = if rng.percent(50) { 25 } else { 60 };
        let faults = Fault::ALL.into_iter().filter(|_| rng.percent(percent));
        let mut faults: BTreeSet<Fault> = faults.collect();
        if rng.percent(30) {
            faults.insert(Fault::Split);
        }
        let groups = match rng.below(4) {
            0 => rng.between(1, 3),
            1 | 2 => rng.between(2, 12),
            _ => rng.between(10, 50),
        };
        Self {
            seed,
            stores,
            groups,
            members: if rng.percent(80) {
                3
            } else {
                rng.between(1, stores)
            },
            clients: rng.between(2, 8),
            think: rng.magnitude(4, 400) * MILLISECOND,
            chaos: rng.between(10, 90) * SECOND,
            calm: 240 * SECOND,
            faults,
            pace: rng.magnitude(150, 5000) * MILLISECOND,
            events_max: u64::MAX,
        }
    }

    /// Whether something may happen.
    #[must_use]
    pub fn has(&self, fault: Fault) -> bool {
        self.faults.contains(&fault)
    }

    /// How a store is configured: drawn once per store, so that stores differ.
    #[must_use]
    pub fn host_config(&self, store: StoreId) -> HostConfig {
        let mut rng = Rng::new(self.seed ^ store.0.rotate_left(32) ^ 0x636f_6e66);
        let mut config = HostConfig::new(store);
        config.workers = 1 + usize::try_from(rng.below(3)).unwrap_or(0);
        config.appliers = 1 + usize::try_from(rng.below(2)).unwrap_or(0);
        // The same on all stores: an election lasts as long everywhere.
        let mut same = Rng::new(self.seed ^ 0x7469_636b);
        config.tick = Duration::from_millis(same.between(20, 100));
        config.sleep_after_ticks = match same.below(3) {
            0 => 2,
            1 => 30,
            _ => 0,
        };
        config.flush_interval = Duration::from_secs(rng.between(1, 30));
        config.truncate_keep_entries = rng.magnitude(1, 64);
        if self.has(Fault::Truncation) {
            config.truncate_keep_entries = rng.below(6);
            config.flush_interval = Duration::from_millis(rng.between(100, 500));
        }
        if self.has(Fault::Limits) {
            let small = |rng: &mut Rng| rng.percent(60);
            if small(&mut rng) {
                config.inflight_messages_max = 1;
            }
            if small(&mut rng) {
                config.message_bytes_max = rng.below(40);
            }
            if small(&mut rng) {
                config.write_groups_max = 1;
            }
            if small(&mut rng) {
                config.command_bytes_max = 4096;
                config.proposal_bytes_max = 4096 + rng.below(4096);
            }
            if small(&mut rng) {
                config.inbound_bytes_max = 2_000 + rng.below(8_000);
            }
            if small(&mut rng) {
                config.entry_cache_bytes_max = rng.below(512);
            }
            if small(&mut rng) {
                config.snapshot_sends_max = 1;
            }
        }
        config
    }

    /// Inputs that a worker takes in one pass.
    #[must_use]
    pub fn pass_inputs_max(&self) -> usize {
        if self.has(Fault::Limits) { 2 } else { 4096 }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.faults.iter().map(|fault| fault.name()).collect();
        write!(
            f,
            "seed {}: {} stores, {} groups of {}, {} clients thinking {} ms, {} s of faults every {} ms: {}",
            self.seed,
            self.stores,
            self.groups,
            self.members,
            self.clients,
            self.think / MILLISECOND,
            self.chaos / SECOND,
            self.pace / MILLISECOND,
            names.join(" "),
        )
    }
}
