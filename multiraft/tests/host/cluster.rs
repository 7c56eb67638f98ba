//! Many stores, one thread, one seed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use polyraft_core::{ConfChangeKind, ReplicaId, RoleName, Transition};
use polyraft_multiraft::env::conformance::Rng;
use polyraft_multiraft::{
    GroupDescriptor, GroupId, GroupStatus, HostConfig, HostHandle, KeyRange, Member, MemberChange,
    Reject, Responder, SplitPiece, StoreId,
};

use crate::history::History;
use crate::log::{LogDisk, Registry};
use crate::machine::{DataDisk, Witness};
use crate::network::Network;
use crate::node::Node;

/// Steps of a cluster in a tick of its stores.
const STEPS_PER_TICK: u64 = 4;

/// See the module.
pub(crate) struct Cluster {
    pub(crate) rng: Rng,
    pub(crate) network: Network,
    pub(crate) nodes: BTreeMap<StoreId, Node>,
    pub(crate) history: History,
    pub(crate) witness: Witness,
    /// How often a part does something, of 100 steps.
    pub(crate) pace: u64,
    /// Groups that were created and are not to be destroyed.
    pub(crate) groups: BTreeSet<GroupId>,
    steps: u64,
}

/// What somebody was told, as soon as he is.
pub(crate) struct Promise<T>(Arc<Mutex<Option<Result<T, Reject>>>>);

impl<T: Send + 'static> Promise<T> {
    pub(crate) fn new() -> (Self, Responder<Result<T, Reject>>) {
        let slot = Arc::new(Mutex::new(None));
        let filled = Arc::clone(&slot);
        let respond = Responder::new(
            || Err(Reject::Ambiguous),
            move |result| {
                let before = filled
                    .lock()
                    .expect("nobody panics with it")
                    .replace(result);
                assert!(before.is_none(), "answered twice");
            },
        );
        (Self(slot), respond)
    }

    pub(crate) fn is_kept(&self) -> bool {
        self.0.lock().expect("nobody panics with it").is_some()
    }

    pub(crate) fn take(&self) -> Option<Result<T, Reject>> {
        self.0.lock().expect("nobody panics with it").take()
    }
}

impl Cluster {
    /// Stores 1 to `stores`, running; `adjust` sees the configuration of each.
    pub(crate) fn new(seed: u64, stores: u64, adjust: impl Fn(&mut HostConfig)) -> Self {
        #[cfg(canary)]
        polyraft_core::canary::plant(std::env::var("POLYRAFT_CANARY").ok().as_deref());
        let mut rng = Rng::new(seed);
        let network = Network::new(rng.bits());
        let (registry, witness) = (Registry::default(), Witness::default());
        let mut nodes = BTreeMap::new();
        for store in (1..=stores).map(StoreId) {
            let mut config = HostConfig::new(store);
            adjust(&mut config);
            let log = LogDisk::new(store, Arc::clone(&registry));
            let data = DataDisk::new(Arc::clone(&witness));
            nodes.insert(store, Node::new(config, &network, log, data));
        }
        let mut cluster = Self {
            rng,
            network,
            nodes,
            history: History::default(),
            witness,
            pace: 100,
            groups: BTreeSet::new(),
            steps: 0,
        };
        for store in (1..=stores).map(StoreId) {
            cluster.start(store);
        }
        cluster
    }

    pub(crate) fn node(&mut self, store: u64) -> &mut Node {
        self.nodes
            .get_mut(&StoreId(store))
            .expect("there is such a store")
    }

    pub(crate) fn handle(&self, store: u64) -> HostHandle {
        let node = &self.nodes[&StoreId(store)];
        let handle = node.handle();
        handle.unwrap_or_else(|| panic!("store {store} does not run: {:?}", node.fatal))
    }

    fn handles(&self) -> BTreeMap<StoreId, HostHandle> {
        let nodes = self.nodes.iter();
        nodes
            .filter_map(|(store, node)| Some((*store, node.handle()?)))
            .collect()
    }

    /// Recovers a store and connects it to those that run.
    pub(crate) fn start(&mut self, store: StoreId) {
        let node = self.nodes.get_mut(&store).expect("there is such a store");
        node.start().expect("what a host wrote can be recovered");
        for other in self.handles().into_keys() {
            if other != store && !self.network.is_cut(store, other) {
                self.connect(store, other, true);
            }
        }
    }

    fn connect(&self, one: StoreId, two: StoreId, up: bool) {
        use polyraft_multiraft::env::Inbound;
        for (host, peer) in [(one, two), (two, one)] {
            if let Some(host) = self.nodes[&host].handle() {
                if up {
                    host.store_up(peer, self.steps);
                } else {
                    host.store_down(peer);
                }
            }
        }
    }

    /// Stops a store in the middle of everything; with the power if `power`.
    pub(crate) fn crash(&mut self, store: StoreId, power: bool) {
        let node = self.nodes.get_mut(&store).expect("there is such a store");
        if power {
            node.power_cut(&mut self.rng);
        } else {
            node.crash(&mut self.rng);
        }
        self.lost(store);
    }

    /// The others notice that a store is gone.
    pub(crate) fn lost(&self, store: StoreId) {
        for other in self.handles().into_keys() {
            if other != store {
                self.connect(store, other, false);
            }
        }
    }

    pub(crate) fn set_cut(&self, one: StoreId, two: StoreId, cut: bool) {
        if self.network.is_cut(one, two) != cut {
            self.network.set_cut(one, two, cut);
            self.connect(one, two, !cut);
        }
    }

    pub(crate) fn step(&mut self) {
        self.steps += 1;
        self.network.step(&self.handles());
        for node in self.nodes.values_mut() {
            node.step(&mut self.rng, self.pace);
        }
        if self.steps.is_multiple_of(STEPS_PER_TICK) {
            for node in self.nodes.values() {
                node.tick();
            }
        }
        self.notice_failures();
    }

    /// A store that stopped by itself is as gone as one that crashed.
    fn notice_failures(&mut self) {
        let mut gone = Vec::new();
        for (store, node) in &mut self.nodes {
            if node.fatal.is_some() && !std::mem::replace(&mut node.mourned, true) {
                gone.push(*store);
            }
        }
        for store in gone {
            self.lost(store);
        }
    }

    pub(crate) fn ticks(&mut self, ticks: u64) {
        for _ in 0..ticks * STEPS_PER_TICK {
            self.step();
        }
    }

    /// Goes on until something holds, for so many ticks at most.
    #[track_caller]
    pub(crate) fn until(&mut self, what: &str, ticks: u64, holds: impl Fn(&Self) -> bool) {
        for _ in 0..ticks * STEPS_PER_TICK {
            if holds(self) {
                return;
            }
            self.step();
        }
        if !holds(self) {
            self.explain();
            panic!("not within {ticks} ticks: {what}");
        }
    }

    /// How every replica sees itself, for a test that has failed.
    fn explain(&mut self) {
        let groups: BTreeSet<GroupId> = self.nodes.values().flat_map(|n| n.data.groups()).collect();
        for group in &groups {
            println!("group {group} lacks {:?}", self.lags(*group));
        }
        for (store, node) in &self.nodes {
            println!(
                "store {store}: failure {:?}, idle {}",
                node.fatal,
                node.is_idle()
            );
        }
        for group in groups {
            for store in self.nodes.keys().copied().collect::<Vec<_>>() {
                let Some(handle) = self.nodes[&store].handle() else {
                    continue;
                };
                let (promise, respond) = Promise::new();
                handle.describe(group, respond);
                for _ in 0..100 {
                    self.step();
                }
                let status = match promise.take() {
                    Some(Ok(status)) => status,
                    other => {
                        println!(
                            "group {group} on store {store}: {:?}",
                            other.and_then(Result::err)
                        );
                        continue;
                    }
                };
                println!(
                    "group {group} on store {store}: {:?} {:?}, last {:?}, truncated {:?}, asleep {}, \
                     quarantined {:?}, members {:?}, progress {:?}",
                    status.raft.basic,
                    status.raft.conf_state,
                    status.last,
                    status.truncated,
                    status.asleep,
                    status.quarantined,
                    status.descriptor.members,
                    status.raft.progress,
                );
            }
        }
    }

    /// Goes on until somebody is answered.
    #[track_caller]
    pub(crate) fn answer<T: Send + 'static>(
        &mut self,
        ask: impl FnOnce(Responder<Result<T, Reject>>),
    ) -> Result<T, Reject> {
        let (promise, respond) = Promise::new();
        ask(respond);
        self.until("an answer", 400, |_| promise.is_kept());
        promise.take().expect("it is there")
    }

    /// The first descriptor of a group with a replica on each of `stores`.
    pub(crate) fn descriptor(group: GroupId, stores: &[u64]) -> GroupDescriptor {
        let member = |(replica, store): (u64, &u64)| Member {
            replica: ReplicaId(replica),
            store: StoreId(*store),
        };
        GroupDescriptor {
            group,
            members: (1..).zip(stores).map(member).collect(),
            next_replica: ReplicaId(stores.len() as u64 + 1),
            ..GroupDescriptor::default()
        }
    }

    /// The same for a group that serves all keys which begin with its number.
    pub(crate) fn ranged(group: GroupId, stores: &[u64]) -> GroupDescriptor {
        let first = u8::try_from(group.0).expect("few groups have a range");
        let range = KeyRange {
            start: vec![first].into(),
            end: Some(vec![first + 1].into()),
        };
        GroupDescriptor {
            range: Some(range),
            ..Self::descriptor(group, stores)
        }
    }

    /// Creates a group on stores that run.
    #[track_caller]
    pub(crate) fn create(&mut self, group: u64, stores: &[u64]) {
        self.create_as(Self::descriptor(GroupId(group), stores));
    }

    /// The same with a range.
    #[track_caller]
    pub(crate) fn create_ranged(&mut self, group: u64, stores: &[u64]) {
        self.create_as(Self::ranged(GroupId(group), stores));
    }

    #[track_caller]
    fn create_as(&mut self, descriptor: GroupDescriptor) {
        let group = descriptor.group;
        let stores: Vec<u64> = descriptor.members.iter().map(|it| it.store.0).collect();
        let stores = &stores;
        for store in stores {
            let handle = self.handle(*store);
            let created = self.answer(|respond| handle.create_group(descriptor.clone(), respond));
            assert_eq!(created, Ok(()), "store {store}, group {group}");
        }
        self.groups.insert(group);
    }

    /// The store that leads a group in the highest term, as far as any store that runs knows.
    pub(crate) fn leader(&self, group: GroupId) -> Option<StoreId> {
        let mut best = None;
        for (store, handle) in self.handles() {
            if let Some(summary) = handle.summary(group)
                && summary.basic.soft_state.role == RoleName::Leader
            {
                best = best.max(Some((summary.basic.hard_state.term, store)));
            }
        }
        best.map(|(_, store)| store)
    }

    #[track_caller]
    pub(crate) fn elect(&mut self) {
        self.until("every group has a leader", 200, |cluster| {
            let mut groups = cluster.groups.iter();
            groups.all(|group| cluster.leader(*group).is_some())
        });
    }

    /// Writes through the leader, if there is one.
    pub(crate) fn write(&self, group: GroupId) -> Option<usize> {
        let leader = self.leader(group)?;
        let handle = self.nodes[&leader].handle()?;
        Some(self.history.write(&handle, group))
    }

    /// Writes until somebody acknowledges it.
    #[track_caller]
    pub(crate) fn written(&mut self, group: GroupId) {
        for _ in 0..50 {
            if let Some(id) = self.write(group) {
                let history = self.history.clone();
                self.until("an answer", 200, |_| history.answer(id).is_some());
                if history.answer(id) == Some(crate::history::Answer::Written) {
                    return;
                }
            }
            self.ticks(5);
        }
        panic!("group {group} does not take writes");
    }

    /// Asks the leader for a change of membership.
    #[track_caller]
    pub(crate) fn change(
        &mut self,
        group: GroupId,
        changes: &[(ConfChangeKind, u64)],
        transition: Transition,
    ) -> Result<GroupDescriptor, Reject> {
        let leader = self.leader(group).expect("the group has a leader");
        let handle = self.nodes[&leader].handle().expect("it runs");
        let change = |(kind, store): &(ConfChangeKind, u64)| MemberChange {
            kind: *kind,
            store: StoreId(*store),
        };
        let changes = changes.iter().map(change).collect();
        self.answer(|respond| handle.change_members(group, changes, transition, respond))
    }

    /// Asks the leader to split a group: by second byte of the key, new group.
    #[track_caller]
    pub(crate) fn split(
        &mut self,
        group: GroupId,
        pieces: &[(u8, u64)],
    ) -> Result<Vec<GroupDescriptor>, Reject> {
        let (promise, respond) = Promise::new();
        self.ask_to_split(group, pieces, respond);
        self.until("an answer", 400, |_| promise.is_kept());
        let result = promise.take().expect("it is there");
        for new in result.iter().flatten() {
            self.groups.insert(new.group);
        }
        result
    }

    /// The same without waiting for the answer.
    pub(crate) fn ask_to_split(
        &self,
        group: GroupId,
        pieces: &[(u8, u64)],
        respond: Responder<Result<Vec<GroupDescriptor>, Reject>>,
    ) {
        let leader = self.leader(group).expect("the group has a leader");
        let handle = self.nodes[&leader].handle().expect("it runs");
        let descriptor = handle.descriptor(group).expect("it is there");
        let range = descriptor.range.as_ref().expect("it has a range");
        let first = range.start[0];
        let piece = |(second, new): &(u8, u64)| SplitPiece {
            start: vec![first, *second].into(),
            group: GroupId(*new),
        };
        let pieces = pieces.iter().map(piece).collect();
        handle.split(group, descriptor.epoch, pieces, respond);
    }

    #[track_caller]
    pub(crate) fn describe(&mut self, store: u64, group: GroupId) -> Result<GroupStatus, Reject> {
        let handle = self.handle(store);
        self.answer(|respond| handle.describe(group, respond))
    }

    /// All stores run, all networks work, everybody has everything: then every promise is checked.
    #[track_caller]
    pub(crate) fn settle_and_check(&mut self) {
        self.settle();
        self.history.check(&self.witness);
        self.check_data();
    }

    /// All stores run, all networks work, everybody has everything.
    #[track_caller]
    pub(crate) fn settle(&mut self) {
        self.elect();
        for group in self.groups.clone() {
            self.written(group);
        }
        let history = self.history.clone();
        self.until("everybody is answered", 200, |_| {
            history.summary().open == 0
        });
        self.until("all members have everything", 600, Self::is_converged);
    }

    /// The group that has the keys right before this one, by the latest of the descriptors that are known.
    pub(crate) fn owner_before(&self, start: &[u8]) -> Option<GroupId> {
        let all = self.handles().into_values().flat_map(|it| it.descriptors());
        let before = all.filter(|descriptor| {
            let Some(range) = &descriptor.range else {
                return false;
            };
            let reaches = range.end.as_ref().is_none_or(|end| &end[..] >= start);
            &range.start[..] < start && reaches
        });
        let latest = before.max_by_key(|descriptor| descriptor.epoch.range)?;
        Some(latest.group)
    }

    /// No store that runs has a replica of a group, and all run.
    pub(crate) fn is_gone(&self, group: GroupId) -> bool {
        let handles = self.handles();
        let here = |handle: &HostHandle| handle.summary(group).is_some();
        let data = self
            .nodes
            .values()
            .any(|node| node.data.data(group).is_some());
        handles.len() == self.nodes.len() && !data && !handles.values().any(here)
    }

    /// Groups that were merged into others.
    pub(crate) fn merged(&self) -> BTreeSet<GroupId> {
        let witness = self.witness.lock().expect("nobody panics with it");
        witness.merged.values().map(|(group, _)| *group).collect()
    }

    /// Groups that are frozen as the newest of their replicas knows it, and that are not merged.
    pub(crate) fn frozen(&self) -> Vec<GroupDescriptor> {
        let merged = self.merged();
        let mut newest: BTreeMap<GroupId, GroupDescriptor> = BTreeMap::new();
        for descriptor in self.handles().into_values().flat_map(|it| it.descriptors()) {
            let known = newest.entry(descriptor.group).or_default();
            if descriptor.epoch.range >= known.epoch.range {
                *known = GroupDescriptor::clone(&descriptor);
            }
        }
        let frozen = newest.into_values().filter(|it| it.frozen.is_some());
        frozen.filter(|it| !merged.contains(&it.group)).collect()
    }

    /// Groups that have data anywhere.
    pub(crate) fn present(&self) -> BTreeSet<GroupId> {
        let nodes = self.nodes.values();
        nodes.flat_map(|node| node.data.groups()).collect()
    }

    /// Every member of every group is there and has applied what its leader has.
    fn is_converged(&self) -> bool {
        self.groups.iter().all(|group| self.lags(*group).is_empty())
    }

    /// What members of a group lack, in words.
    fn lags(&self, group: GroupId) -> Vec<String> {
        let lead = self
            .leader(group)
            .and_then(|leader| self.nodes[&leader].data.data(group));
        let Some(lead) = lead else {
            return vec!["a leader".to_owned()];
        };
        let mut lags = Vec::new();
        for member in &lead.state.descriptor.members {
            let node = &self.nodes[&member.store];
            let data = node.data.data(group);
            if data.as_ref() != Some(&lead) {
                let applied = data.map(|data| data.state.last);
                lags.push(format!("{member:?}: {applied:?} of {:?}", lead.state.last));
            }
            let summary = node.handle().and_then(|handle| handle.summary(group));
            let replica = summary.map(|summary| summary.replica);
            if replica != Some(member.replica) {
                lags.push(format!("{member:?}: {replica:?} is there"));
            }
        }
        lags
    }

    /// What a store holds of a group is exactly the common history up to its applied index.
    pub(crate) fn check_data(&self) {
        let witness = self.witness.lock().expect("nobody panics with it");
        for (store, node) in &self.nodes {
            for group in node.data.groups() {
                let data = node.data.data(group).expect("it is listed");
                let range = data.state.descriptor.range.as_ref();
                let expected = witness.keys(group, data.state.last.index, range);
                let found: BTreeSet<_> = data.keys.keys().cloned().collect();
                assert_eq!(found, expected, "store {store}, group {group}");
            }
        }
    }
}
