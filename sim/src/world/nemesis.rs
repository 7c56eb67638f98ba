//! Misfortune: what befalls a world, by the faults of its plan, one stroke after another.

use std::collections::BTreeMap;

use polyraft_multiraft::StoreId;

use super::loss::Loss;
use super::operators::Task;
use super::{Event, Phase, World};
use crate::disk::{CrashKind, DiskFault};
use crate::network::NetworkFaults;
use crate::plan::Fault;
use crate::rng::Rng;
use crate::sometimes;
use crate::time::{MICROSECOND, MILLISECOND, Nanos, SECOND};

/// See the module.
#[derive(Debug)]
pub(super) struct Nemesis {
    pub(super) rng: Rng,
    pub(super) loss: Loss,
    /// Who took the place of each lost store.
    pub(super) replacements: BTreeMap<StoreId, StoreId>,
}

/// The end of a misfortune.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Relief {
    /// Two stores hear each other again, in this direction.
    Mend(StoreId, StoreId),
    /// A disk has room again.
    Room(StoreId),
    /// Syncs are as fast as ever.
    Sync(StoreId),
    /// So is applying.
    Apply(StoreId),
    /// A store whose disk lies is taken away.
    Lose(StoreId),
    /// Whoever looks after a process that nobody heard of starts it again.
    Restart(StoreId),
}

impl Nemesis {
    pub(super) fn new(rng: Rng) -> Self {
        Self {
            rng,
            loss: Loss::None,
            replacements: BTreeMap::new(),
        }
    }

    /// Whether a store's disk has been damaged.
    pub(super) fn is_suspect(&self, store: StoreId) -> bool {
        matches!(self.loss, Loss::Suspect { victim } if victim == store)
    }
}

/// Faults of the network, whose rates are set anew by one stroke.
const NETWORK: [Fault; 8] = [
    Fault::Delay,
    Fault::Loss,
    Fault::Duplication,
    Fault::Reorder,
    Fault::Reset,
    Fault::Stale,
    Fault::Narrow,
    Fault::BadChunk,
];

/// Snapshots of a world are small: only in small parts and at a low rate do they take long enough
/// for something to happen meanwhile.
fn slow_snapshots(faults: &mut NetworkFaults, rng: &mut Rng) {
    faults.chunk_max = rng.magnitude(64, 4096);
    if rng.percent(40) {
        faults.snapshot_bytes_per_second = rng.magnitude(100, 100_000);
    }
    if rng.percent(30) {
        faults.snapshots_in_max = usize::try_from(rng.between(1, 2)).unwrap_or(1);
    }
}

impl World {
    /// One stroke; the next one follows.
    pub(super) fn strike(&mut self) {
        if self.phase != Phase::Chaos {
            return;
        }
        self.discover();
        let faults: Vec<Fault> = self.plan.faults.iter().copied().collect();
        let rng = &mut self.nemesis.rng;
        let mut fault = rng.pick(&faults).copied();
        // What splits and merges meet is worth more than their share.
        for worth in [Fault::Split, Fault::Merge] {
            if self.plan.has(worth) && rng.percent(15) {
                fault = Some(worth);
            }
        }
        let next = rng.magnitude(self.plan.pace / 4 + 1, self.plan.pace * 2);
        self.queue.push(next, Event::Strike);
        if let Some(fault) = fault {
            self.strike_with(fault);
        }
    }

    fn strike_with(&mut self, fault: Fault) {
        match fault {
            fault if NETWORK.contains(&fault) => self.worsen_network(),
            Fault::Partition => self.partition(),
            Fault::OneWay => self.cut_one_way(),
            Fault::Isolate => self.isolate_leader(),
            Fault::Crash => self.strike_store(Self::kill),
            Fault::PowerCut => self.cut_power(),
            Fault::SlowSync => self.strike_store(Self::slow_sync),
            Fault::FailedSync => self.strike_store(|world, store| {
                world.stores[&store]
                    .disk
                    .set_fault(Some(DiskFault::SyncFails));
            }),
            Fault::DiskFull => self.strike_store(Self::fill_disk),
            Fault::BitFlip => self.want_loss(true),
            Fault::LostStore => self.want_loss(false),
            Fault::SlowApply => self.strike_store(Self::slow_apply),
            Fault::Drift => self.strike_store(|world, store| {
                let drift = world.nemesis.rng.between(500, 2000);
                world.with_store(store, |store| store.drift = drift);
            }),
            Fault::Jump => self.strike_store(Self::jump),
            Fault::Pause => self.strike_store(Self::pause_store),
            Fault::Membership => self.change_some_group(),
            Fault::Transfer => self.move_some_leader(),
            Fault::Groups => self.end_some_family(),
            Fault::Split => self.split_some_groups(),
            Fault::Merge => self.merge_some_groups(),
            Fault::Move => self.move_some_replica(),
            _ => {}
        }
    }

    fn with_store(&mut self, id: StoreId, change: impl FnOnce(&mut crate::store::SimStore)) {
        if let Some(store) = self.stores.get_mut(&id) {
            change(store);
        }
    }

    /// Something happens to a store, drawn from those that are not lost.
    fn strike_store(&mut self, happens: impl FnOnce(&mut Self, StoreId)) {
        let stores: Vec<StoreId> = self.present().into_iter().collect();
        if let Some(&store) = self.nemesis.rng.pick(&stores) {
            happens(self, store);
        }
    }

    /// New rates for everything that the network may do; sometimes all is well for a while.
    fn worsen_network(&mut self) {
        let (plan, rng) = (&self.plan, &mut self.nemesis.rng);
        let mut faults = NetworkFaults::default();
        if rng.percent(75) {
            let mut rate = |fault, most: u64| match plan.has(fault) && rng.percent(70) {
                true => rng.magnitude(100, most),
                false => 0,
            };
            faults.spike = rate(Fault::Delay, 200_000);
            faults.loss = rate(Fault::Loss, 200_000);
            faults.duplication = rate(Fault::Duplication, 200_000);
            faults.reorder = rate(Fault::Reorder, 300_000);
            faults.reset = rate(Fault::Reset, 20_000);
            faults.stale = rate(Fault::Stale, 100_000);
            faults.bad_chunk = rate(Fault::BadChunk, 200_000);
            faults.break_off = rate(Fault::BadChunk, 100_000);
            faults.stuck = rate(Fault::BadChunk, 50_000);
            faults.spike_max = rng.magnitude(MILLISECOND, 5 * SECOND);
            if plan.has(Fault::Narrow) && rng.percent(50) {
                faults.waiting_max = usize::try_from(rng.between(2, 20)).unwrap_or(2);
                faults.in_flight_max = usize::try_from(rng.between(1, 4)).unwrap_or(1);
            }
        }
        slow_snapshots(&mut faults, rng);
        *self.network.faults_mut() = faults;
    }

    /// Now, or between two writes of whatever it will be doing, be that its recovery.
    fn kill(&mut self, store: StoreId) {
        let rng = &mut self.nemesis.rng;
        let (now, recovery) = (rng.percent(60), rng.percent(50));
        let writes = rng.magnitude(1, 60);
        if now {
            self.crash(store, CrashKind::Process);
            self.start_later(store);
        }
        if !now || recovery {
            self.stores[&store].disk.kill_after(writes);
        }
    }

    fn duration(&mut self) -> Nanos {
        self.nemesis.rng.magnitude(50 * MILLISECOND, 20 * SECOND)
    }

    fn partition(&mut self) {
        let stores: Vec<StoreId> = self.present().into_iter().collect();
        let rng = &mut self.nemesis.rng;
        let sides: Vec<bool> = stores.iter().map(|_| rng.percent(40)).collect();
        let lasts = self.duration();
        for (one, side) in stores.iter().zip(&sides) {
            for (two, other) in stores.iter().zip(&sides) {
                if side != other {
                    self.cut(*one, *two, lasts);
                }
            }
        }
        sometimes!(
            sides.contains(&true) && sides.contains(&false),
            "world: partition"
        );
    }

    fn cut_one_way(&mut self) {
        let stores: Vec<StoreId> = self.present().into_iter().collect();
        let rng = &mut self.nemesis.rng;
        let (from, to) = (rng.pick(&stores).copied(), rng.pick(&stores).copied());
        let lasts = self.duration();
        if let (Some(from), Some(to)) = (from, to)
            && from != to
        {
            self.cut(from, to, lasts);
        }
    }

    /// A leader that nobody hears goes on for a while: what it appends meanwhile must not survive. That
    /// may be much, if clients press it for answers; where processes die, it may be restarted afterwards.
    fn isolate_leader(&mut self) {
        let (live, stores) = (self.live(), self.present());
        let group = self.nemesis.rng.pick(&live).copied();
        let Some((group, leader)) = group.and_then(|group| Some((group, self.leader(group)?)))
        else {
            return;
        };
        let config = &self.stores[&leader].config;
        let tick = u64::try_from(config.tick.as_nanos()).unwrap_or(SECOND);
        let timeout = tick * u64::from(config.election_ticks);
        // Not in all worlds: where all clients press, few are left to write or read elsewhere meanwhile.
        let hard = self.plan.has(Fault::Crash);
        let longest = if hard { timeout * 8 } else { timeout * 4 };
        let lasts = self.nemesis.rng.between(timeout, longest);
        for other in stores.into_iter().filter(|store| *store != leader) {
            self.cut(leader, other, lasts);
            self.cut(other, leader, lasts);
        }
        if hard {
            let rng = &mut self.nemesis.rng;
            let (copies, later) = (rng.between(8, 60), rng.magnitude(timeout / 8, timeout * 8));
            let (pressed, restarted) = (rng.percent(80), rng.percent(70));
            if pressed {
                self.press(group, leader, copies);
            }
            if restarted {
                let restart = Event::Relief(Relief::Restart(leader));
                self.queue.push(lasts + later, restart);
            }
        }
    }

    fn cut(&mut self, from: StoreId, to: StoreId, lasts: Nanos) {
        self.network.set_cut(from, to, true);
        self.queue
            .push(lasts, Event::Relief(Relief::Mend(from, to)));
    }

    fn cut_power(&mut self) {
        let stores: Vec<StoreId> = self.present().into_iter().collect();
        let all = self.nemesis.rng.percent(15);
        sometimes!(all, "world: power cut everywhere");
        let one = self.nemesis.rng.pick(&stores).copied();
        for store in stores {
            if all || Some(store) == one {
                self.crash(store, CrashKind::Power);
                self.start_later(store);
            }
        }
    }

    fn slow_sync(&mut self, store: StoreId) {
        let slow = self.nemesis.rng.magnitude(10 * MILLISECOND, 5 * SECOND);
        self.with_store(store, |store| store.slowness.sync = (MILLISECOND, slow));
        let lasts = self.duration();
        self.queue.push(lasts, Event::Relief(Relief::Sync(store)));
    }

    fn slow_apply(&mut self, store: StoreId) {
        let slow = self.nemesis.rng.magnitude(MILLISECOND, 2 * SECOND);
        self.with_store(store, |store| {
            store.slowness.apply = (100 * MICROSECOND, slow)
        });
        let lasts = self.duration();
        self.queue.push(lasts, Event::Relief(Relief::Apply(store)));
    }

    fn fill_disk(&mut self, store: StoreId) {
        let disk = &self.stores[&store].disk;
        if disk.fault().is_none() {
            disk.set_fault(Some(DiskFault::Full));
            let lasts = self.duration() / 4;
            self.queue.push(lasts, Event::Relief(Relief::Room(store)));
        }
    }

    fn jump(&mut self, store: StoreId) {
        let ticks = self.nemesis.rng.between(1, 40);
        if let Some(running) = self.stores.get(&store).and_then(|s| s.running.as_ref()) {
            for _ in 0..ticks {
                running.extra_tick();
            }
        }
        self.kick(store);
    }

    fn pause_store(&mut self, store: StoreId) {
        let until = self.queue.now() + self.duration();
        self.with_store(store, |store| {
            store.paused_until = store.paused_until.max(until)
        });
    }

    fn change_some_group(&mut self) {
        let live = self.live();
        let some = 1 + self.nemesis.rng.below(3);
        for _ in 0..some {
            let group = self.nemesis.rng.pick(&live).copied();
            if let Some(group) = group
                && !self.operators.hold
            {
                self.begin_task(Task::Look(group));
                // Two operators who do not know of each other.
                if self.nemesis.rng.percent(20) {
                    self.begin_task(Task::Look(group));
                }
            }
        }
    }

    /// Leadership is handed to another member, or somebody campaigns who should not.
    fn move_some_leader(&mut self) {
        let live = self.live();
        let rng = &mut self.nemesis.rng;
        let Some(&group) = rng.pick(&live) else {
            return;
        };
        let (campaigns, leader) = (rng.percent(40), self.leader(group));
        let rng = &mut self.nemesis.rng;
        let stores: Vec<StoreId> = self.stores.keys().copied().collect();
        let (Some(&to), Some(leader)) = (rng.pick(&stores), leader) else {
            return;
        };
        let at = if campaigns { to } else { leader };
        let Some(handle) = self.stores[&at].handle().cloned() else {
            return;
        };
        let respond = self.respond(0, at, super::Told::Done);
        if campaigns {
            handle.campaign(group, respond);
        } else {
            handle.transfer_leader(group, to, respond);
        }
        self.kick(at);
    }

    /// A split may be under way, of this family, too.
    fn end_some_family(&mut self) {
        if self.operators.hold || self.operators.changing_members() {
            return;
        }
        let families = self.families();
        if let Some(&family) = self.nemesis.rng.pick(&families) {
            self.destroy_family(family);
        }
    }

    pub(super) fn relieve(&mut self, relief: Relief) {
        match relief {
            Relief::Mend(from, to) => self.network.set_cut(from, to, false),
            Relief::Room(store) => {
                let disk = &self.stores[&store].disk;
                if disk.fault() == Some(DiskFault::Full) {
                    disk.set_fault(None);
                }
            }
            Relief::Sync(store) => self.with_store(store, |store| {
                store.slowness.sync = crate::store::Slowness::default().sync;
            }),
            Relief::Apply(store) => self.with_store(store, |store| {
                store.slowness.apply = crate::store::Slowness::default().apply;
            }),
            Relief::Lose(store) => {
                if self.nemesis.is_suspect(store) {
                    self.lose(store);
                }
            }
            Relief::Restart(store) => {
                if self.phase == Phase::Chaos {
                    sometimes!(true, "world: leader restarted after it was cut off");
                    self.crash(store, CrashKind::Process);
                    self.start_later(store);
                }
            }
        }
    }

    /// No misfortune any more.
    pub(super) fn end_faults(&mut self) {
        *self.network.faults_mut() = NetworkFaults::default();
        self.network.heal();
        let now = self.queue.now();
        for store in self.stores.values_mut() {
            store.disk.set_fault(None);
            store.disk.spare();
            store.slowness = crate::store::Slowness::default();
            store.drift = 1000;
            store.paused_until = now;
        }
        self.end_loss();
        let stores: Vec<StoreId> = self.present().into_iter().collect();
        for store in stores {
            if self.stores[&store].running.is_none() {
                self.start_later(store);
            }
        }
    }
}
