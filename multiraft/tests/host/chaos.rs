//! Everything at once, by seed: crashes, power cuts, full disks, failed syncs, a bad network, changes of
//! membership, groups that come, split, merge and go. Then peace, and every promise is checked.
//!
//! `POLYRAFT_CHAOS_SEEDS=1000` runs so many seeds; `POLYRAFT_CHAOS_FIRST=17` begins with that one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use polyraft_core::{ConfChangeKind, ReplicaId, RoleName, Transition};
use polyraft_multiraft::env::conformance::{Rng, SeamFault};
use polyraft_multiraft::{
    GroupDescriptor, GroupId, HostConfig, MemberChange, Merging, Reject, Responder, SplitPiece,
    StoreId,
};

use crate::cluster::Cluster;
use crate::merges::Driver;
use crate::network::Weather;

const STORES: u64 = 5;
const GROUPS: u64 = 6;
const ROUNDS: u64 = 160;

fn number(variable: &str, default: u64) -> u64 {
    let text = std::env::var(variable).ok();
    text.map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn chaos_keeps_every_promise() {
    let first = number("POLYRAFT_CHAOS_FIRST", 0);
    let mut total = [0; 6];
    for seed in first..first + number("POLYRAFT_CHAOS_SEEDS", 50) {
        let (summary, splits, merges) = Chaos::new(seed).run();
        let counts = [
            summary.written,
            summary.read,
            summary.ambiguous,
            summary.refused,
            splits,
            merges,
        ];
        for (sum, count) in total.iter_mut().zip(counts) {
            *sum += count;
        }
    }
    let [written, read, ambiguous, refused, splits, merges] = total;
    println!(
        "{written} written, {read} read, {ambiguous} ambiguous, {refused} refused, \
         {splits} splits, {merges} merges"
    );
    assert!(
        total.iter().all(|count| *count > 0),
        "everything has happened"
    );
}

struct Chaos {
    seed: u64,
    rng: Rng,
    cluster: Cluster,
    down: BTreeSet<StoreId>,
    /// Groups that come and go, with the stores on which they were created.
    passing: BTreeMap<GroupId, Vec<u64>>,
    gone: BTreeSet<GroupId>,
    next_group: u64,
    /// Splits that were made, as far as was heard.
    splits: Arc<AtomicU64>,
    merges: Vec<Driver>,
}

impl Drop for Chaos {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!(
                "to see it again: POLYRAFT_CHAOS_FIRST={} POLYRAFT_CHAOS_SEEDS=1",
                self.seed
            );
        }
    }
}

fn adjust(config: &mut HostConfig, seed: u64) {
    let mut rng = Rng::new(seed);
    config.workers = 1 + (seed % 2) as usize;
    config.appliers = 1 + (seed / 2 % 2) as usize;
    config.sleep_after_ticks = *rng.pick(&[0, 5, 15]);
    config.truncate_keep_entries = rng.below(10);
    config.entry_cache_bytes_max = rng.below(2_000);
    config.message_bytes_max = 100 + rng.below(500);
    config.inflight_messages_max = 1 + rng.below(8) as usize;
    config.write_groups_max = 1 + rng.below(10) as usize;
}

impl Chaos {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0xC4A0_5000);
        let mut cluster = Cluster::new(seed, STORES, |config| adjust(config, seed));
        for group in 1..=GROUPS {
            let stores = some_stores(&mut rng, 3);
            if group > GROUPS / 2 {
                cluster.create_ranged(group, &stores);
            } else {
                cluster.create(group, &stores);
            }
        }
        cluster.pace = 40 + rng.below(61);
        cluster.network.set_weather(Weather {
            delay_max: rng.below(12),
            lost: rng.below(10),
            doubled: rng.below(10),
            broken: rng.below(10),
            doubted: rng.below(30),
            halted: false,
        });
        Self {
            seed,
            rng,
            cluster,
            down: BTreeSet::new(),
            passing: BTreeMap::new(),
            gone: BTreeSet::new(),
            next_group: GROUPS + 1,
            splits: Arc::default(),
            merges: Vec::new(),
        }
    }

    fn run(mut self) -> (crate::history::Summary, usize, usize) {
        for _ in 0..ROUNDS {
            self.round();
            let steps = self.rng.below(30);
            for _ in 0..steps {
                self.cluster.step();
                self.drive_merges();
            }
        }
        self.peace();
        self.finish_merges();
        self.settle();
        self.cluster.settle_and_check();
        self.check_gone();
        self.check_merged();
        let splits = self.splits.load(Ordering::SeqCst);
        let splits = usize::try_from(splits).expect("they are few");
        let merges = self.cluster.merged().len();
        (self.cluster.history.summary(), splits, merges)
    }

    fn round(&mut self) {
        for _ in 0..self.rng.below(6) {
            self.operate();
        }
        let store = StoreId(1 + self.rng.below(STORES));
        match self.rng.below(20) {
            0 | 1 => self.stop(store),
            2 => self.fault(store),
            3 => (1..=STORES).for_each(|store| self.mend(StoreId(store))),
            4 | 5 => self.revive(),
            6 => {
                let other = StoreId(1 + self.rng.below(STORES));
                if other != store {
                    let cut = self.rng.percent(50);
                    self.cluster.set_cut(store, other, cut);
                }
            }
            7..10 => {
                if let Some(node) = self.cluster.nodes.get_mut(&store) {
                    node.flush();
                }
            }
            10..13 => self.change_members(),
            13 => self.move_leader(store),
            14 => self.create(),
            15 => self.destroy(),
            16 | 17 => self.split(),
            18 => self.merge(),
            _ => {}
        }
    }

    /// A write or a read, mostly where the leader is believed to be.
    fn operate(&mut self) {
        let groups = if self.rng.percent(60) {
            GROUPS
        } else {
            self.next_group
        };
        let group = GroupId(1 + self.rng.below(groups));
        let any = StoreId(1 + self.rng.below(STORES));
        let leader = self.cluster.leader(group).unwrap_or(any);
        let store = if self.rng.percent(90) { leader } else { any };
        let node = &self.cluster.nodes[&store];
        if let Some(handle) = node.handle() {
            let history = &self.cluster.history;
            if self.rng.percent(70) {
                history.write(&handle, group);
            } else {
                history.read(&handle, &node.data, group);
            }
        }
    }

    fn stop(&mut self, store: StoreId) {
        if self.down.len() < 2 && self.down.insert(store) {
            let power = self.rng.percent(60);
            self.cluster.crash(store, power);
        }
    }

    fn revive(&mut self) {
        if let Some(store) = self.down.pop_first() {
            // A host does not start on a full disk; nor need it.
            self.mend(store);
            self.cluster.start(store);
        }
        self.restart_failed();
    }

    fn restart_failed(&mut self) {
        let failed: Vec<StoreId> = (1..=STORES)
            .map(StoreId)
            .filter(|store| self.cluster.nodes[store].fatal.is_some())
            .collect();
        for store in failed {
            self.cluster.crash(store, true);
            if !self.down.contains(&store) {
                self.cluster.start(store);
            }
        }
    }

    fn fault(&mut self, store: StoreId) {
        let node = &self.cluster.nodes[&store];
        match self.rng.below(4) {
            0 => node.log.set_fault(Some(SeamFault::SyncFails)),
            1 => node.log.set_fault(Some(SeamFault::Full)),
            2 => node.data.set_fault(Some(SeamFault::Full)),
            _ => {
                node.log.set_fault(Some(SeamFault::Full));
                node.data.set_fault(Some(SeamFault::Full));
            }
        }
    }

    fn mend(&self, store: StoreId) {
        let node = &self.cluster.nodes[&store];
        node.log.set_fault(None);
        node.data.set_fault(None);
    }

    /// A group that stays, or one that a split has made of it.
    fn some_group(&mut self) -> GroupId {
        let own = |group: &GroupId| !self.passing.contains_key(group) && !self.gone.contains(group);
        let groups: Vec<GroupId> = self.cluster.present().into_iter().filter(own).collect();
        match groups.is_empty() {
            true => GroupId(1 + self.rng.below(GROUPS)),
            false => *self.rng.pick(&groups),
        }
    }

    fn split(&mut self) {
        let group = self.some_group();
        let Some(handle) = self
            .cluster
            .leader(group)
            .and_then(|leader| self.cluster.nodes[&leader].handle())
        else {
            return;
        };
        let Some(descriptor) = handle.descriptor(group) else {
            return;
        };
        let Some(range) = &descriptor.range else {
            return;
        };
        let mut starts: Vec<u8> = (0..1 + self.rng.below(3))
            .map(|_| 1 + self.rng.below(255) as u8)
            .collect();
        starts.sort_unstable();
        let mut pieces = Vec::new();
        for second in starts {
            let start: bytes::Bytes = vec![range.start[0], second].into();
            if range.contains(&start) {
                let group = GroupId(self.next_group);
                self.next_group += 1;
                pieces.push(SplitPiece { start, group });
            }
        }
        if pieces.is_empty() {
            return;
        }
        let asked = Arc::clone(&self.splits);
        let count = move |result: Result<Vec<GroupDescriptor>, Reject>| {
            asked.fetch_add(u64::from(result.is_ok()), Ordering::SeqCst);
        };
        let respond = Responder::new(|| Err(Reject::Ambiguous), count);
        handle.split(group, descriptor.epoch, pieces, respond);
    }

    /// Begins to merge two neighbours, as somebody knows them, or gives up a merge.
    fn merge(&mut self) {
        if self.rng.percent(20)
            && let Some(driver) = self.merges.last_mut()
        {
            return driver.give_up();
        }
        let right = self.some_group();
        let handles = self.cluster.nodes.values().filter_map(|node| node.handle());
        let known: Vec<_> = handles.flat_map(|handle| handle.descriptors()).collect();
        let own = known.iter().find(|descriptor| descriptor.group == right);
        let Some(range) = own.and_then(|descriptor| descriptor.range.clone()) else {
            return;
        };
        let touches = |left: &&Arc<GroupDescriptor>| {
            let left = left.range.as_ref();
            left.is_some_and(|left| left.end.as_ref() == Some(&range.start))
        };
        if let Some(left) = known.iter().find(touches) {
            let merging = Merging::new(left.group, right, range.start.clone());
            self.merges.push(Driver::new(merging));
        }
    }

    fn drive_merges(&mut self) {
        for driver in &mut self.merges {
            driver.drive(&self.cluster);
        }
        self.merges.retain(|driver| !driver.is_done());
    }

    /// Nobody stays frozen: those who drove merges go on, and somebody takes over what nobody drives.
    fn finish_merges(&mut self) {
        let mut quiet = 0;
        for step in 0..12_000 {
            self.drive_merges();
            self.cluster.step();
            if step % 400 != 399 {
                continue;
            }
            let frozen = self.cluster.frozen();
            // Some ask for what cannot be said any more: who owned a border that is no more.
            self.merges.iter_mut().for_each(Driver::give_up);
            quiet = if frozen.is_empty() { quiet + 1 } else { 0 };
            if quiet > 2 {
                return self.merges.clear();
            }
            // Two may drive the same. Members may differ by now, so what can be merged no more is undone.
            for merging in frozen.iter().filter_map(Merging::of_frozen) {
                let mut driver = Driver::new(merging);
                driver.give_up();
                self.merges.push(driver);
            }
        }
        self.cluster
            .until("nobody is frozen", 1, |cluster| cluster.frozen().is_empty());
    }

    /// What was merged is nowhere, and the others have its keys.
    fn check_merged(&mut self) {
        for group in self.cluster.merged() {
            let name = format!("group {group} is gone");
            self.cluster
                .until(&name, 600, |cluster| cluster.is_gone(group));
        }
    }

    /// Groups that splits have made are groups as any other; one may still be under way.
    fn settle(&mut self) {
        loop {
            let merged = self.cluster.merged();
            let found = self.cluster.present();
            let found = found
                .into_iter()
                .filter(|group| !self.gone.contains(group) && !merged.contains(group));
            let found: BTreeSet<GroupId> = found.collect();
            if self.cluster.groups == found {
                return;
            }
            self.cluster.groups = found;
            self.cluster.settle();
        }
    }

    fn change_members(&mut self) {
        let group = self.some_group();
        let Some(leader) = self.cluster.leader(group) else {
            return;
        };
        let Some(handle) = self.cluster.nodes[&leader].handle() else {
            return;
        };
        let Some(descriptor) = handle.descriptor(group) else {
            return;
        };
        let count = 1 + self.rng.below(2);
        let mut changes = Vec::new();
        for store in some_stores(&mut self.rng, count) {
            let present = descriptor.replica_on(StoreId(store)).is_some();
            let kind = match self.rng.below(4) {
                0 | 1 if present => ConfChangeKind::Remove,
                2 => ConfChangeKind::AddLearner,
                _ => ConfChangeKind::AddVoter,
            };
            changes.push(MemberChange {
                kind,
                store: StoreId(store),
            });
        }
        let transition = *self
            .rng
            .pick(&[Transition::Auto, Transition::JointImplicit]);
        handle.change_members(group, changes, transition, unheard());
    }

    fn move_leader(&mut self, store: StoreId) {
        let group = self.some_group();
        if let Some(handle) = self.cluster.nodes[&store].handle() {
            let leads = handle
                .summary(group)
                .is_some_and(|summary| summary.basic.soft_state.role == RoleName::Leader);
            if leads {
                let to = StoreId(1 + self.rng.below(STORES));
                handle.transfer_leader(group, to, unheard());
            } else {
                handle.campaign(group, unheard());
            }
        }
    }

    fn create(&mut self) {
        let (group, stores) = (self.next_group, some_stores(&mut self.rng, 3));
        self.next_group += 1;
        let descriptor = Cluster::descriptor(GroupId(group), &stores);
        for store in &stores {
            if let Some(handle) = self.cluster.nodes[&StoreId(*store)].handle() {
                handle.create_group(descriptor.clone(), unheard());
            }
        }
        self.passing.insert(GroupId(group), stores);
    }

    fn destroy(&mut self) {
        if let Some((group, stores)) = self.passing.pop_first() {
            for store in stores {
                if let Some(handle) = self.cluster.nodes[&StoreId(store)].handle() {
                    handle.destroy_replica(group, ReplicaId(u64::MAX), unheard());
                }
            }
            self.gone.insert(group);
        }
    }

    fn peace(&mut self) {
        self.cluster.network.set_weather(Weather::default());
        for store in (1..=STORES).map(StoreId) {
            self.mend(store);
        }
        while !self.down.is_empty() {
            self.revive();
        }
        self.restart_failed();
        for one in 1..=STORES {
            for two in one + 1..=STORES {
                self.cluster.set_cut(StoreId(one), StoreId(two), false);
            }
        }
        self.gone
            .extend(std::mem::take(&mut self.passing).into_keys());
        for group in self.gone.clone() {
            for store in 1..=STORES {
                let handle = self.cluster.handle(store);
                loop {
                    let result = self.cluster.answer(|respond| {
                        handle.destroy_replica(group, ReplicaId(u64::MAX), respond);
                    });
                    match result {
                        Ok(()) => break,
                        Err(Reject::Busy(_)) => self.cluster.step(),
                        Err(other) => panic!("group {group}, store {store}: {other}"),
                    }
                }
            }
        }
    }

    /// A group that was destroyed everywhere is nowhere, and cannot come back.
    fn check_gone(&mut self) {
        for group in self.gone.clone() {
            for store in 1..=STORES {
                let node = &self.cluster.nodes[&StoreId(store)];
                assert_eq!(node.data.data(group), None, "store {store}, group {group}");
                let handle = self.cluster.handle(store);
                assert_eq!(handle.summary(group), None, "store {store}, group {group}");
                let descriptor = Cluster::descriptor(group, &[store]);
                let again = self
                    .cluster
                    .answer(|respond| handle.create_group(descriptor, respond));
                assert!(matches!(again, Err(Reject::Refused(_))), "{again:?}");
            }
        }
    }
}

fn some_stores(rng: &mut Rng, count: u64) -> Vec<u64> {
    let mut stores: Vec<u64> = (1..=STORES).collect();
    while stores.len() as u64 > count {
        let at = rng.below(stores.len() as u64);
        stores.remove(usize::try_from(at).expect("it is small"));
    }
    stores
}

/// Nobody cares what becomes of it, but it must be answered.
fn unheard<T: Send + 'static>() -> Responder<Result<T, Reject>> {
    Responder::new(|| Err(Reject::Ambiguous), drop)
}
