//! A group in one process: replicas with their stable logs, and a network that can be cut.
//!
//! [`Peer`] is one replica whose host stores and applies at once; what it wants sent is returned, so
//! that a test can play the other side by hand. [`Cluster`] delivers between peers until nothing
//! moves, and checks after each step what must hold always: the invariants of each replica, one
//! leader per term, and that no index is ever applied with two different entries.

#![allow(dead_code, reason = "each test file uses the part that it needs")]

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};

use bytes::Bytes;
use polyraft_core::{
    ConfChange, ConfChangeV2, ConfState, Config, Durable, Entry, EntryId, EntryKind, Error, Event,
    HardState, Index, MemoryStorage, Message, MessageKind, Payload, ProposeError, RaftNode,
    ReadState, ReplicaId, RoleName, Snapshot, SnapshotMeta, StepError, Storage, Term,
};

/// Ticks before an election timeout in these tests; the drawn timeout is below twice of it.
pub(crate) const ELECTION: u32 = 10;

/// A configuration with everything optional switched off.
pub(crate) fn config(id: u64) -> Config {
    Config {
        check_quorum: false,
        pre_vote: false,
        step_down_on_removal: false,
        election_ticks: ELECTION,
        ..Config::new(ReplicaId(id))
    }
}

pub(crate) fn ids(ids: &[u64]) -> Vec<ReplicaId> {
    ids.iter().copied().map(ReplicaId).collect()
}

/// A simple configuration.
pub(crate) fn conf_state(voters: &[u64], learners: &[u64]) -> ConfState {
    ConfState {
        voters: ids(voters),
        learners: ids(learners),
        ..ConfState::default()
    }
}

/// A stable log with these members and one empty entry for each of `terms`, from index 1.
pub(crate) fn storage(conf_state: ConfState, terms: &[u64]) -> MemoryStorage {
    let mut storage = MemoryStorage::with_conf_state(conf_state);
    let entries: Vec<Entry> = terms
        .iter()
        .zip(1..)
        .map(|(term, index)| entry(*term, index, b""))
        .collect();
    storage.append(&entries).expect("consecutive");
    let term = Term(terms.last().copied().unwrap_or_default());
    storage.set_hard_state(HardState {
        term,
        ..HardState::default()
    });
    storage
}

/// A stable log that begins behind a snapshot at index 10, term 1, so that members to come get their
/// configuration from there.
pub(crate) fn bootstrapped(conf_state: ConfState) -> MemoryStorage {
    let mut storage = MemoryStorage::new();
    let meta = SnapshotMeta {
        last: EntryId::new(1, 10),
        conf_state,
    };
    let data = Bytes::new();
    storage
        .apply_snapshot(Snapshot { meta, data })
        .expect("the first one");
    storage
}

pub(crate) fn entry(term: u64, index: u64, data: &'static [u8]) -> Entry {
    Entry {
        term: Term(term),
        index: Index(index),
        kind: EntryKind::Normal,
        data: Bytes::from_static(data),
    }
}

pub(crate) fn message(from: u64, to: u64, term: u64, payload: Payload) -> Message {
    Message {
        from: ReplicaId(from),
        to: ReplicaId(to),
        term: Term(term),
        payload,
    }
}

pub(crate) fn append(prev: EntryId, entries: Vec<Entry>, commit: u64) -> Payload {
    Payload::Append {
        prev,
        entries,
        commit: Index(commit),
    }
}

pub(crate) fn accepted(index: u64) -> Payload {
    Payload::AppendResponse {
        index: Index(index),
        reject: None,
    }
}

pub(crate) fn heartbeat(commit: u64) -> Payload {
    Payload::Heartbeat {
        commit: Index(commit),
        read: 0,
    }
}

pub(crate) fn vote(last: EntryId) -> Payload {
    Payload::Vote {
        pre: false,
        last,
        transfer: false,
    }
}

pub(crate) fn pre_vote(last: EntryId) -> Payload {
    Payload::Vote {
        pre: true,
        last,
        transfer: false,
    }
}

pub(crate) fn voted(granted: bool) -> Payload {
    Payload::VoteResponse {
        pre: false,
        reject: !granted,
        committed: EntryId::default(),
    }
}

pub(crate) fn pre_voted(granted: bool) -> Payload {
    Payload::VoteResponse {
        pre: true,
        reject: !granted,
        committed: EntryId::default(),
    }
}

/// One replica whose host stores and applies everything at once.
pub(crate) struct Peer {
    pub(crate) node: RaftNode<MemoryStorage>,
    config: Config,
    pub(crate) applied: Vec<Entry>,
    pub(crate) reads: Vec<ReadState>,
    pub(crate) events: Vec<Event>,
    /// While set, committed entries are left unapplied: taken from the replica, not acknowledged.
    pub(crate) holds_applying: bool,
    held: Vec<Entry>,
}

impl Peer {
    pub(crate) fn new(config: Config, storage: MemoryStorage) -> Self {
        let node = RaftNode::new(config.clone(), storage).expect("a replica starts");
        Self {
            node,
            config,
            applied: Vec::new(),
            reads: Vec::new(),
            events: Vec::new(),
            holds_applying: false,
            held: Vec::new(),
        }
    }

    /// A crash: only the stable log and what was applied are left.
    pub(crate) fn restart(&mut self) {
        let applied = self.applied.last().map_or(Index(0), |entry| entry.index);
        let storage = self.node.storage().clone();
        self.config.applied = applied.max(storage.first_index().prev());
        self.held.clear();
        self.node = RaftNode::new(self.config.clone(), storage).expect("a replica restarts");
    }

    /// Stores, applies and acknowledges until there is nothing to do; returns what is to be sent.
    pub(crate) fn settle(&mut self) -> Vec<Message> {
        let mut out = Vec::new();
        while self.node.has_ready() {
            let mut ready = self.node.ready().expect("a ready");
            out.append(&mut ready.messages);
            self.reads.append(&mut ready.reads);
            self.events.append(&mut ready.events);
            if let Some(mut append) = ready.append.take() {
                let storage = self.node.storage_mut();
                if let Some(snapshot) = append.snapshot().cloned() {
                    storage.apply_snapshot(snapshot).expect("newer");
                }
                if let Some(state) = append.hard_state() {
                    storage.set_hard_state(state);
                }
                storage.append(&append.take_entries()).expect("no gap");
                let (send, token) = append.persisted(&Durable::attest());
                out.extend(send);
                self.node.on_persisted(token).expect("a receipt");
            }
            self.held.append(&mut ready.committed);
            if !self.holds_applying {
                self.apply_held();
            }
            self.node.check().expect("the invariants hold");
        }
        self.events.extend(self.node.take_events());
        out
    }

    /// Applies what was held back; the next [`settle`](Self::settle) shows what came of it.
    pub(crate) fn apply_held(&mut self) {
        let entries = std::mem::take(&mut self.held);
        let Some(last) = entries.last().map(Entry::id) else {
            return;
        };
        let bytes = entries.iter().map(Entry::size).sum();
        for entry in &entries {
            let change = match entry.kind {
                EntryKind::Normal | EntryKind::Host => continue,
                EntryKind::ConfChange => ConfChange::decode(&entry.data).map(ConfChange::into_v2),
                EntryKind::ConfChangeV2 => ConfChangeV2::decode(&entry.data),
            };
            match self
                .node
                .apply_conf_change(&change.expect("a valid change"))
            {
                Ok(state) => self.node.storage_mut().set_conf_state(state),
                Err(Error::Membership(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
        self.applied.extend(entries);
        self.keep_snapshot(last);
        self.node.on_applied(last.index, bytes).expect("applied");
    }

    /// Steps one message and returns the answers.
    pub(crate) fn say(&mut self, message: Message) -> Vec<Message> {
        self.node.step(message).expect("accepted");
        self.settle()
    }

    pub(crate) fn tick(&mut self, times: u32) -> Vec<Message> {
        let mut out = Vec::new();
        for _ in 0..times {
            self.node.tick().expect("a tick");
            out.extend(self.settle());
        }
        out
    }

    pub(crate) fn campaign(&mut self) -> Vec<Message> {
        self.node.campaign().expect("a campaign");
        self.settle()
    }

    pub(crate) fn propose(&mut self, data: &'static [u8]) -> Result<Option<EntryId>, ProposeError> {
        self.node.propose(vec![Bytes::from_static(data)])
    }

    /// Makes it the leader of the next term, with the votes of `voters`.
    pub(crate) fn lead(&mut self, voters: &[u64]) -> Vec<Message> {
        let mut out = self.campaign();
        let (id, term) = (self.node.id().0, self.node.term().0);
        for voter in voters {
            if self.role() != RoleName::Leader {
                out = self.say(message(*voter, id, term, voted(true)));
            }
        }
        assert_eq!(self.role(), RoleName::Leader, "the votes should be enough");
        out
    }

    /// Throws the log away up to what is applied; the snapshot is there already.
    pub(crate) fn truncate(&mut self) {
        let index = self.node.applied();
        let storage = self.node.storage_mut();
        storage.truncate_to(index).expect("present");
    }

    /// Followers that need a snapshot get the state as it is applied here.
    fn keep_snapshot(&mut self, last: EntryId) {
        let conf_state = self.conf_state();
        self.node.storage_mut().set_snapshot(Snapshot {
            meta: SnapshotMeta { last, conf_state },
            data: Bytes::new(),
        });
    }

    pub(crate) fn role(&self) -> RoleName {
        self.node.role()
    }

    pub(crate) fn term(&self) -> u64 {
        self.node.term().0
    }

    pub(crate) fn leader(&self) -> u64 {
        self.node.leader().0
    }

    pub(crate) fn committed(&self) -> u64 {
        self.node.committed().0
    }

    pub(crate) fn hard_state(&self) -> HardState {
        self.node.basic_status().hard_state
    }

    pub(crate) fn conf_state(&self) -> ConfState {
        self.node.status().conf_state
    }

    /// Terms of the whole stable log.
    pub(crate) fn terms(&self) -> Vec<u64> {
        self.node.storage().all().iter().map(|e| e.term.0).collect()
    }

    /// Payloads applied so far, without the empty ones of new leaders.
    pub(crate) fn values(&self) -> Vec<Bytes> {
        let normal = self.applied.iter().filter(|e| e.kind == EntryKind::Normal);
        normal
            .map(|e| e.data.clone())
            .filter(|data| !data.is_empty())
            .collect()
    }
}

/// Replicas and the network between them, which delivers in order and at once.
#[derive(Default)]
pub(crate) struct Cluster {
    peers: BTreeMap<u64, Peer>,
    in_flight: VecDeque<Message>,
    cut: BTreeSet<(u64, u64)>,
    lost: HashSet<MessageKind>,
    /// What was refused, and by whom.
    pub(crate) refused: Vec<(u64, StepError)>,
    leaders: BTreeMap<u64, u64>,
    applied: BTreeMap<Index, Entry>,
}

impl Cluster {
    /// Voters 1 to `count`.
    pub(crate) fn new(count: u64) -> Self {
        Self::with(count, |_| {})
    }

    /// Voters 1 to `count`, each with a configuration changed by `adjust`.
    pub(crate) fn with(count: u64, adjust: impl Fn(&mut Config)) -> Self {
        let all: Vec<u64> = (1..=count).collect();
        let mut cluster = Self::default();
        for &id in &all {
            let mut config = config(id);
            adjust(&mut config);
            cluster.add(Peer::new(config, storage(conf_state(&all, &[]), &[])));
        }
        cluster
    }

    pub(crate) fn of(peers: impl IntoIterator<Item = Peer>) -> Self {
        let mut cluster = Self::default();
        for peer in peers {
            cluster.add(peer);
        }
        cluster
    }

    pub(crate) fn add(&mut self, peer: Peer) {
        self.peers.insert(peer.node.id().0, peer);
    }

    pub(crate) fn peer(&mut self, id: u64) -> &mut Peer {
        self.peers.get_mut(&id).expect("a peer")
    }

    /// Nothing passes between `a` and `b` from now on.
    pub(crate) fn cut(&mut self, a: u64, b: u64) {
        self.cut.extend([(a, b), (b, a)]);
    }

    pub(crate) fn isolate(&mut self, id: u64) {
        let others: Vec<u64> = self.peers.keys().copied().collect();
        for other in others.into_iter().filter(|other| *other != id) {
            self.cut(id, other);
        }
    }

    /// Messages of this kind get lost from now on.
    pub(crate) fn lose(&mut self, kind: MessageKind) {
        self.lost.insert(kind);
    }

    /// Everything passes again.
    pub(crate) fn heal(&mut self) {
        self.cut.clear();
        self.lost.clear();
    }

    pub(crate) fn campaign(&mut self, id: u64) {
        self.peer(id).node.campaign().expect("a campaign");
        self.settle();
    }

    pub(crate) fn tick(&mut self, id: u64, times: u32) {
        for _ in 0..times {
            self.peer(id).node.tick().expect("a tick");
            self.settle();
        }
    }

    /// Ticks all replicas in turn.
    pub(crate) fn tick_all(&mut self, times: u32) {
        let all: Vec<u64> = self.peers.keys().copied().collect();
        for _ in 0..times {
            for &id in &all {
                self.tick(id, 1);
            }
        }
    }

    pub(crate) fn propose(&mut self, id: u64, data: &'static [u8]) -> Result<(), ProposeError> {
        let result = self.peer(id).propose(data);
        self.settle();
        result.map(|_| ())
    }

    pub(crate) fn change(&mut self, id: u64, change: &ConfChangeV2) -> Result<(), ProposeError> {
        let result = self.peer(id).node.propose_conf_change(change);
        self.settle();
        result.map(|_| ())
    }

    pub(crate) fn send(&mut self, message: Message) {
        self.in_flight.push_back(message);
        self.settle();
    }

    /// Stores, applies and delivers until nothing moves.
    pub(crate) fn settle(&mut self) {
        for _ in 0..100_000 {
            self.collect();
            let Some(message) = self.in_flight.pop_front() else {
                return;
            };
            let (from, to) = (message.from.0, message.to.0);
            if self.cut.contains(&(from, to)) || self.lost.contains(&message.payload.kind()) {
                continue;
            }
            if let Some(peer) = self.peers.get_mut(&to)
                && let Err(error) = peer.node.step(message)
            {
                self.refused.push((to, error));
            }
        }
        panic!("the group never comes to rest");
    }

    fn collect(&mut self) {
        for (id, peer) in &mut self.peers {
            let known = peer.applied.len();
            self.in_flight.extend(peer.settle());
            if peer.role() == RoleName::Leader {
                let first = *self.leaders.entry(peer.term()).or_insert(*id);
                assert_eq!(first, *id, "two leaders of term {}", peer.term());
            }
            for entry in &peer.applied[known..] {
                let first = self.applied.entry(entry.index).or_insert(entry.clone());
                assert_eq!(first, entry, "{id} applied something else than others did");
            }
        }
    }

    /// The roles in order of the ids.
    pub(crate) fn roles(&self) -> Vec<RoleName> {
        self.peers.values().map(Peer::role).collect()
    }

    /// The terms in order of the ids.
    pub(crate) fn terms(&self) -> Vec<u64> {
        self.peers.values().map(Peer::term).collect()
    }

    /// The leader of the highest term.
    pub(crate) fn leader(&self) -> Option<u64> {
        let leaders = self
            .peers
            .iter()
            .filter(|(_, p)| p.role() == RoleName::Leader);
        leaders.max_by_key(|(_, p)| p.term()).map(|(id, _)| *id)
    }

    /// Everybody has the same log and has applied all of it.
    pub(crate) fn assert_agreed(&self) {
        let mut peers = self.peers.values();
        let first = peers.next().expect("a peer");
        for peer in peers {
            assert_eq!(first.node.last_index(), peer.node.last_index());
            assert_eq!(first.committed(), peer.committed());
            assert_eq!(peer.node.applied(), peer.node.committed());
            assert_eq!(first.terms(), peer.terms());
        }
    }
}
