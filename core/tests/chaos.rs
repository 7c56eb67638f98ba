//! A group under everything at once, by seed: messages lost, doubled and out of order; writes and
//! applying in flight; fetches answered late; crashes that lose whatever was not durable; changes of
//! membership, transfers, snapshots and truncation. After each step it must hold that no term has two
//! leaders, no index is applied with two different entries, no read gets an index below what was
//! committed when it was asked, and every replica's own invariants; when the weather clears, the
//! group must go on. `POLYRAFT_CHAOS_SEEDS` runs more seeds than the usual ones.

mod common;

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use common::{bootstrapped, conf_state, config};
use polyraft_core::{
    Append, ConfChangeKind, ConfChangeV2, ConfState, Config, Durable, Entry, EntryId, EntryKind,
    Error, Fetch, Fetched, HardState, Index, InitialState, MemoryStorage, Message, Payload,
    Persisted, RaftNode, ReplicaId, RoleName, Snapshot, SnapshotMeta, SnapshotOutcome, StepError,
    Storage, StorageError, Term, Transition,
};

/// SplitMix64.
#[derive(Clone)]
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    fn below(&mut self, below: usize) -> usize {
        (self.next() % below as u64) as usize
    }
    fn one_in(&mut self, many: usize) -> bool {
        self.below(many) == 0
    }
}

/// What is durable. Entries are in memory or not as the dice have it.
#[derive(Clone)]
struct Disk {
    log: MemoryStorage,
    dice: RefCell<Dice>,
    forgets: bool,
}

impl Storage for Disk {
    fn initial_state(&self) -> Result<InitialState, StorageError> {
        self.log.initial_state()
    }
    fn entries(&self, low: Index, high: Index, max: u64) -> Result<Vec<Entry>, StorageError> {
        let entries = self.log.entries(low, high, max)?;
        if self.forgets && self.dice.borrow_mut().one_in(3) {
            return Err(StorageError::TemporarilyUnavailable);
        }
        Ok(entries)
    }
    fn term(&self, index: Index) -> Result<Term, StorageError> {
        self.log.term(index)
    }
    fn first_index(&self) -> Index {
        self.log.first_index()
    }
    fn last_index(&self) -> Index {
        self.log.last_index()
    }
    fn snapshot(&self, to: ReplicaId) -> Result<Snapshot, StorageError> {
        if self.forgets && self.dice.borrow_mut().one_in(4) {
            return Err(StorageError::SnapshotTemporarilyUnavailable);
        }
        self.log.snapshot(to)
    }
}

/// One replica and the queues of its host.
struct Site {
    node: RaftNode<Disk>,
    config: Config,
    writes: VecDeque<Append>,
    receipts: VecDeque<Persisted>,
    applies: VecDeque<Vec<Entry>>,
    fetches: Vec<(Fetch, Option<Fetched>)>,
    /// As of the last sync.
    synced: HardState,
    applied: Index,
    conf_state: ConfState,
}

struct World {
    dice: Dice,
    sites: BTreeMap<u64, Site>,
    network: Vec<Message>,
    leaders: BTreeMap<Term, u64>,
    applied: BTreeMap<Index, Entry>,
    conf_states: BTreeMap<Index, ConfState>,
    /// By context: what was committed somewhere when it was asked.
    reads: BTreeMap<u64, Index>,
    served: usize,
    number: u64,
    /// The larger, the rarer are crashes, cuts and campaigns.
    mildness: usize,
}

const SITES: u64 = 5;

impl World {
    fn new(seed: u64) -> Self {
        let mut dice = Dice(seed);
        let (pre_vote, check_quorum) = (!dice.one_in(3), !dice.one_in(3));
        let (step_down_on_removal, forgets) = (!dice.one_in(3), dice.one_in(2));
        let lazy_commit = dice.one_in(2);
        let max_message_bytes = [0, 100, 1 << 20][dice.below(3)];
        let max_inflight_messages = [1, 3, 256][dice.below(3)];
        let max_committed_bytes = [1, 200, 1 << 20][dice.below(3)];
        let first = conf_state(&[1, 2, 3], &[]);
        let mut sites = BTreeMap::new();
        for id in 1..=SITES {
            let config = Config {
                pre_vote,
                check_quorum,
                step_down_on_removal,
                lazy_commit,
                max_message_bytes,
                max_inflight_messages,
                max_committed_bytes,
                max_uncommitted_bytes: 4000,
                applied: Index(10),
                seed: dice.next(),
                ..config(id)
            };
            let disk = Disk {
                log: bootstrapped(first.clone()),
                dice: RefCell::new(Dice(dice.next())),
                forgets,
            };
            let site = Site {
                node: RaftNode::new(config.clone(), disk).expect("a start"),
                config,
                writes: VecDeque::new(),
                receipts: VecDeque::new(),
                applies: VecDeque::new(),
                fetches: Vec::new(),
                synced: HardState::default(),
                applied: Index(10),
                conf_state: first.clone(),
            };
            sites.insert(id, site);
        }
        let mildness = [1, 3, 10][dice.below(3)];
        Self {
            mildness,
            dice,
            sites,
            network: Vec::new(),
            leaders: BTreeMap::new(),
            applied: BTreeMap::new(),
            conf_states: BTreeMap::from([(Index(10), first)]),
            reads: BTreeMap::new(),
            served: 0,
            number: 0,
        }
    }

    fn site(&mut self, id: u64) -> &mut Site {
        self.sites.get_mut(&id).expect("a site")
    }

    /// One random thing happens.
    fn step(&mut self) {
        let id = 1 + self.dice.next() % SITES;
        match self.dice.below(100) {
            0..40 => {
                for _ in 0..4 {
                    self.deliver();
                }
            }
            40..50 => self.write(id),
            50..60 => self.receipt(id),
            60..68 => self.apply(id),
            68..74 => self.answer_fetch(id),
            74..82 => self.site(id).node.tick().expect("a tick"),
            82..90 => self.propose(id),
            90 => self.change(id),
            91..95 => self.read(id),
            95 if self.dice.one_in(self.mildness) => self.nudge(id),
            96 => self.truncate(id),
            97 if self.dice.one_in(self.mildness) => self.crash(id),
            98 if self.dice.one_in(self.mildness) => self.lose_some(),
            _ => {}
        }
        self.collect(id);
        self.look();
    }

    /// Takes what a replica wants done into the queues of its host.
    fn collect(&mut self, id: u64) {
        while self.site(id).node.has_ready() {
            let ready = self.site(id).node.ready().expect("a ready");
            self.network.extend(ready.messages);
            let site = self.sites.get_mut(&id).expect("a site");
            site.writes.extend(ready.append);
            for fetch in ready.fetches {
                // Read now and answered late, or read late.
                let now = self.dice.one_in(2).then(|| read(&site.node, fetch));
                site.fetches.push((fetch, now));
            }
            if !ready.committed.is_empty() {
                site.applies.push_back(ready.committed);
            }
            for state in ready.reads {
                let context = state.context[..].try_into().expect("eight bytes");
                let asked = self.reads[&u64::from_be_bytes(context)];
                assert!(state.index >= asked, "a stale read");
                self.served += 1;
            }
        }
    }

    fn look(&mut self) {
        for (id, site) in &self.sites {
            site.node.check().expect("the invariants hold");
            assert_eq!(site.node.poisoned(), None);
            if site.node.role() == RoleName::Leader {
                let first = *self.leaders.entry(site.node.term()).or_insert(*id);
                assert_eq!(first, *id, "two leaders of a term");
            }
        }
    }

    fn deliver(&mut self) {
        if self.network.is_empty() {
            return;
        }
        // Mostly the oldest ones.
        let at = self.dice.below(self.network.len().min(8));
        let message = if self.dice.one_in(10) {
            self.network[at].clone()
        } else {
            self.network.remove(at)
        };
        let lost = self.dice.one_in(15);
        self.arrive(message, lost);
    }

    fn arrive(&mut self, message: Message, lost: bool) {
        let (from, to) = (message.from, message.to.0);
        let is_snapshot = matches!(message.payload, Payload::Snapshot(_));
        if !lost {
            let text = format!("{message:?}");
            match self.site(to).node.step(message) {
                Ok(()) | Err(StepError::PeerNotFound | StepError::Propose(_)) => {}
                Err(error) => panic!("{error}: {text}"),
            }
            self.collect(to);
        }
        if is_snapshot {
            let outcome = if lost {
                SnapshotOutcome::Failed
            } else {
                SnapshotOutcome::Sent
            };
            let sender = &mut self.site(from.0).node;
            sender.report_snapshot(ReplicaId(to), outcome);
            self.collect(from.0);
        }
    }

    /// The oldest write becomes durable; what waited for it leaves.
    fn write(&mut self, id: u64) {
        let site = self.sites.get_mut(&id).expect("a site");
        let Some(append) = site.writes.pop_front() else {
            return;
        };
        let log = &mut site.node.storage_mut().log;
        if let Some(snapshot) = append.snapshot().cloned() {
            let SnapshotMeta { last, conf_state } = snapshot.meta.clone();
            assert_eq!(self.conf_states.get(&last.index), Some(&conf_state));
            log.apply_snapshot(snapshot).expect("newer");
            site.applied = last.index;
            site.conf_state = conf_state;
        }
        log.append(append.entries()).expect("no gap");
        if let Some(state) = append.hard_state() {
            log.set_hard_state(state);
        }
        if append.must_sync() {
            site.synced = log.hard_state();
        }
        let (send, token) = append.persisted(&Durable::attest());
        self.network.extend(send);
        site.receipts.push_back(token);
    }

    fn receipt(&mut self, id: u64) {
        let site = self.site(id);
        if let Some(token) = site.receipts.pop_front() {
            site.node.on_persisted(token).expect("a receipt");
        }
    }

    fn apply(&mut self, id: u64) {
        let site = self.sites.get_mut(&id).expect("a site");
        let Some(batch) = site.applies.pop_front() else {
            return;
        };
        let bytes = batch.iter().map(Entry::size).sum();
        let last = batch.last().expect("not empty").id();
        // What a snapshot that was installed meanwhile contains has no effect any more.
        let news: Vec<Entry> = batch
            .into_iter()
            .filter(|entry| entry.index > site.applied)
            .collect();
        for entry in news {
            assert_eq!(entry.index, site.applied.next(), "each once, in order");
            let first = self.applied.entry(entry.index).or_insert(entry.clone());
            assert_eq!(*first, entry, "{id} applies something else");
            site.applied = entry.index;
            if entry.kind == EntryKind::ConfChangeV2 {
                let change = ConfChangeV2::decode(&entry.data).expect("a change");
                let expected = site.conf_state.apply(&change);
                let installs = site.writes.iter().any(|write| write.snapshot().is_some());
                match site.node.apply_conf_change(&change) {
                    // Overtaken by a snapshot that contains it.
                    Ok(_) if installs => {}
                    Ok(state) => assert_eq!(Ok(&state), expected.as_ref(), "core and applier"),
                    Err(Error::Membership(_)) => assert!(expected.is_err()),
                    Err(error) => panic!("{error}"),
                }
                if let Ok(state) = expected {
                    site.conf_state = state;
                }
            }
            let state = self.conf_states.entry(entry.index);
            let state = state.or_insert(site.conf_state.clone());
            assert_eq!(*state, site.conf_state);
        }
        if last.index == site.applied {
            let conf_state = site.conf_state.clone();
            let log = &mut site.node.storage_mut().log;
            log.set_conf_state(conf_state.clone());
            log.set_snapshot(Snapshot {
                meta: SnapshotMeta { last, conf_state },
                data: Bytes::new(),
            });
        }
        site.node.on_applied(last.index, bytes).expect("applied");
    }

    fn answer_fetch(&mut self, id: u64) {
        let at = self.dice.next() as usize;
        let site = self.site(id);
        if site.fetches.is_empty() {
            return;
        }
        let at = at % site.fetches.len();
        let (fetch, early) = site.fetches.swap_remove(at);
        let fetched = early.unwrap_or_else(|| read(&site.node, fetch));
        site.node.on_fetched(fetched).expect("fetched");
    }

    fn propose(&mut self, id: u64) {
        self.number += 1;
        let data = Bytes::from(format!("value {}", self.number));
        // Dropped without a leader, which is an answer like any other.
        let _: Result<_, _> = self.site(id).node.propose(vec![data]);
    }

    fn change(&mut self, id: u64) {
        let kinds = [
            ConfChangeKind::AddVoter,
            ConfChangeKind::AddVoter,
            ConfChangeKind::AddLearner,
            ConfChangeKind::Remove,
        ];
        let transition = [
            Transition::Auto,
            Transition::JointImplicit,
            Transition::JointExplicit,
        ][self.dice.below(3)];
        let count = self.dice.below(4);
        let changes = (0..count).map(|_| {
            let kind = kinds[self.dice.below(kinds.len())];
            (kind, ReplicaId(1 + self.dice.next() % SITES))
        });
        let mut change = ConfChangeV2 {
            transition,
            changes: changes.collect(),
            context: Bytes::new(),
        };
        if change.changes.is_empty() {
            change = ConfChangeV2::default();
        }
        let _: Result<_, _> = self.site(id).node.propose_conf_change(&change);
    }

    fn read(&mut self, id: u64) {
        self.number += 1;
        let number = self.number;
        let committed = self.sites.values().map(|site| site.node.committed());
        self.reads.insert(number, committed.max().expect("sites"));
        let context = Bytes::copy_from_slice(&number.to_be_bytes());
        let _: Result<_, _> = self.site(id).node.read_index(context);
    }

    fn nudge(&mut self, id: u64) {
        let other = ReplicaId(1 + self.dice.next() % SITES);
        let what = self.dice.below(4);
        let node = &mut self.site(id).node;
        match what {
            0 => node.campaign().expect("a campaign"),
            1 => node.transfer_leader(other).expect("a transfer"),
            2 => node.forget_leader(),
            _ => node.report_unreachable(other),
        }
    }

    fn truncate(&mut self, id: u64) {
        let back = self.dice.next() % 4;
        let site = self.site(id);
        let log = &mut site.node.storage_mut().log;
        // Not beyond what the snapshot at hand contains.
        let kept = log.snapshot(ReplicaId::NONE).expect("one").meta.last.index;
        let to = Index(site.applied.min(kept).0.saturating_sub(back));
        if to >= log.first_index() && to <= log.last_index() {
            log.truncate_to(to).expect("present");
        }
    }

    /// Everything that is not durable is gone; maybe also a commit index that was not synced.
    fn crash(&mut self, id: u64) {
        let (reverts, seed) = (self.dice.one_in(2), self.dice.next());
        let site = self.site(id);
        let mut disk = site.node.storage().clone();
        let mut state = disk.log.hard_state();
        if reverts {
            state.commit = site.synced.commit;
        }
        disk.log.set_hard_state(state);
        disk.log.set_conf_state(site.conf_state.clone());
        site.writes.clear();
        site.receipts.clear();
        site.applies.clear();
        site.fetches.clear();
        site.config.applied = site.applied;
        site.config.seed = seed;
        site.node = RaftNode::new(site.config.clone(), disk).expect("a restart");
    }

    fn lose_some(&mut self) {
        let victim = ReplicaId(1 + self.dice.next() % SITES);
        let (mine, others) = std::mem::take(&mut self.network)
            .into_iter()
            .partition(|m| m.to == victim || m.from == victim);
        self.network = others;
        for message in mine {
            self.arrive(message, true);
        }
    }

    /// Everything works and everybody gets its turn.
    fn calm(&mut self) {
        for id in 1..=SITES {
            self.site(id).node.tick().expect("a tick");
        }
        for _ in 0..30 {
            for id in 1..=SITES {
                self.collect(id);
                while !self.site(id).writes.is_empty() {
                    self.write(id);
                }
                while !self.site(id).receipts.is_empty() {
                    self.receipt(id);
                }
                while !self.site(id).applies.is_empty() {
                    self.apply(id);
                }
                while !self.site(id).fetches.is_empty() {
                    self.answer_fetch(id);
                }
                self.collect(id);
            }
            for message in std::mem::take(&mut self.network) {
                self.arrive(message, false);
            }
            self.look();
        }
    }

    fn leader(&self) -> Option<u64> {
        let leaders = self.sites.iter();
        let leaders = leaders.filter(|(_, site)| site.node.role() == RoleName::Leader);
        let newest = leaders.max_by_key(|(_, site)| site.node.term());
        newest.map(|(id, _)| *id)
    }

    /// After the storm: a value is proposed and every member applies it. False: it cannot be, since a
    /// voter of the newest configuration does not know it.
    ///
    /// That is the gap of changes that take effect when they are applied (etcd-io/etcd#12359): voter 1
    /// commits that 2 and 3 are no voters any more, tells them, and crashes before it knows that
    /// after the restart; it asks them for votes, they refuse because entries that they have never
    /// reached its disk, and as learners they do not campaign. Rare, and safe.
    fn goes_on(&mut self) -> bool {
        for _ in 0..400 {
            self.calm();
            let Some(leader) = self.leader() else {
                continue;
            };
            if !self.site(leader).conf_state.contains(ReplicaId(leader)) {
                // Removed, and not told to step down by itself: its host has to stop it.
                self.crash(leader);
                continue;
            }
            let marker = Bytes::from_static(b"after the storm");
            let Ok(Some(EntryId { index, .. })) =
                self.site(leader).node.propose(vec![marker.clone()])
            else {
                continue;
            };
            for _ in 0..10 {
                self.calm();
            }
            let members = self.site(leader).conf_state.clone();
            let mut voters = members.voters.iter().chain(&members.learners);
            let taken = self.applied.get(&index).is_some_and(|e| e.data == marker);
            if taken && voters.all(|id| self.sites[&id.0].applied >= index) {
                return true;
            }
        }
        let newest = self.sites.values().max_by_key(|site| site.applied);
        let newest = newest.expect("sites").conf_state.clone();
        let knows = |id: &ReplicaId| self.sites[&id.0].conf_state == newest;
        if !newest.voters.iter().all(knows) {
            return false;
        }
        let states = self.sites.values().map(|site| site.node.status());
        let states: Vec<_> = states.collect();
        panic!("the group does not go on: {states:#?}");
    }
}

fn read(node: &RaftNode<Disk>, fetch: Fetch) -> Fetched {
    let log = &node.storage().log;
    let high = fetch.high.min(log.last_index().next());
    let entries = if fetch.low < high {
        log.entries(fetch.low, high, fetch.max_bytes)
    } else {
        Err(StorageError::Compacted)
    };
    Fetched { fetch, entries }
}

#[test]
fn nothing_breaks_and_the_group_goes_on() {
    #[cfg(canary)]
    polyraft_core::canary::plant(std::env::var("POLYRAFT_CANARY").ok().as_deref());
    let seeds = std::env::var("POLYRAFT_CHAOS_SEEDS").ok();
    let seeds: u64 = seeds.map_or(40, |count| count.parse().expect("a number"));
    let (mut applied, mut served, mut leaders, mut stuck) = (0, 0, 0, 0);
    for seed in 0..seeds {
        let run = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            for _ in 0..4000 {
                world.step();
            }
            let went_on = world.goes_on();
            let World {
                applied,
                leaders,
                served,
                ..
            } = world;
            (applied.len(), served, leaders.len(), went_on)
        });
        let Ok(run) = run else {
            panic!("seed {seed} breaks");
        };
        applied += run.0;
        served += run.1;
        leaders += run.2;
        stuck += u64::from(!run.3);
    }
    // The test tests something.
    assert!(applied as u64 > 20 * seeds, "{applied} entries applied");
    assert!(served as u64 > 5 * seeds, "{served} reads served");
    assert!(leaders as u64 > 2 * seeds, "{leaders} leaders");
    assert!(stuck * 100 <= seeds, "{stuck} groups did not go on");
    println!("{applied} entries, {served} reads, {leaders} leaders, {stuck} stuck");
}
