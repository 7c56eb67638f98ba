//! One replica and its host, driven by bytes. After every step the replica's own invariants hold, its
//! cursors have not gone back, and nothing that it wants sent or written contradicts what it says.

use std::cell::Cell;
use std::collections::VecDeque;

use bytes::Bytes;
use polyraft_core::{
    Append, ConfChange, ConfChangeV2, Config, Durable, Entry, EntryId, EntryKind, Error, Fetch,
    Fetched, Index, InitialState, MemoryStorage, Message, Payload, Persisted, RaftNode, ReadMode,
    Ready, RejectHint, ReplicaId, RoleName, Snapshot, SnapshotMeta, SnapshotOutcome, StepError,
    Storage, StorageError, Term,
};
use polyraft_fuzz::Source;

use super::common::{bootstrapped, conf_state, storage};
use super::plausible;

/// Who keeps to the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Honesty {
    /// The host; the others lie.
    Host,
    /// Nobody.
    Nobody,
}

/// A stable log whose entries are in memory or not, as the bytes have it.
#[derive(Clone)]
pub(crate) struct Disk {
    log: MemoryStorage,
    forgets: Cell<bool>,
}

impl Storage for Disk {
    fn initial_state(&self) -> Result<InitialState, StorageError> {
        self.log.initial_state()
    }
    fn entries(&self, low: Index, high: Index, max: u64) -> Result<Vec<Entry>, StorageError> {
        let entries = self.log.entries(low, high, max)?;
        if self.forgets.get() {
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
        if self.forgets.get() {
            return Err(StorageError::SnapshotTemporarilyUnavailable);
        }
        self.log.snapshot(to)
    }
}

/// What happened in some run: fuzzing that never gets anywhere finds nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reach {
    pub(crate) led: bool,
    pub(crate) committed_as_leader: bool,
    pub(crate) took_snapshot: bool,
    pub(crate) sent_snapshot: bool,
    pub(crate) changed_members: bool,
    pub(crate) was_joint: bool,
    pub(crate) answered_read: bool,
    pub(crate) fetched: bool,
    pub(crate) stopped: bool,
}

impl Reach {
    /// What happened in one of two runs.
    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            led: self.led || other.led,
            committed_as_leader: self.committed_as_leader || other.committed_as_leader,
            took_snapshot: self.took_snapshot || other.took_snapshot,
            sent_snapshot: self.sent_snapshot || other.sent_snapshot,
            changed_members: self.changed_members || other.changed_members,
            was_joint: self.was_joint || other.was_joint,
            answered_read: self.answered_read || other.answered_read,
            fetched: self.fetched || other.fetched,
            stopped: self.stopped || other.stopped,
        }
    }

    /// Everything that can be.
    pub(crate) const ALL: Self = Self {
        led: true,
        committed_as_leader: true,
        took_snapshot: true,
        sent_snapshot: true,
        changed_members: true,
        was_joint: true,
        answered_read: true,
        fetched: true,
        stopped: true,
    };
}

/// See the module.
pub(crate) struct Site<'a> {
    source: Source<'a>,
    honesty: Honesty,
    config: Config,
    node: RaftNode<Disk>,
    writes: VecDeque<Append>,
    tokens: VecDeque<Persisted>,
    applies: VecDeque<Vec<Entry>>,
    fetches: Vec<Fetch>,
    /// What it has sent lately, to be answered.
    sent: VecDeque<Message>,
    /// The last entry handed out to be applied.
    handed: Index,
    term: Term,
    committed: Index,
    reach: Reach,
}

impl<'a> Site<'a> {
    pub(crate) fn new(input: &'a [u8], honesty: Honesty) -> Self {
        let mut source = Source::new(input);
        let flags = source.byte();
        let flag = |bit: u8| flags >> bit & 1 == 1;
        let voters: &[u64] =
            source.pick(&[&[1, 2, 3][..], &[1], &[1, 2], &[2, 3], &[1, 2, 3, 4, 5]]);
        let members = conf_state(voters, if voters.contains(&1) { &[] } else { &[1] });
        let log = if flag(0) {
            bootstrapped(members)
        } else {
            storage(members, source.pick(&[&[][..], &[1, 1], &[1, 2, 2]]))
        };
        let applied = log.first_index().prev();
        let config = Config {
            pre_vote: flag(1),
            check_quorum: flag(2) || flag(3),
            read_mode: if flag(3) {
                ReadMode::LeaseBased
            } else {
                ReadMode::Safe
            },
            step_down_on_removal: flag(4),
            commit_by_vote: flag(5),
            lazy_commit: flag(6),
            disable_conf_change_validation: flag(7),
            disable_proposal_forwarding: source.one_in(8),
            max_message_bytes: source.pick(&[0, 60, 1 << 20]),
            max_committed_bytes: source.pick(&[0, 1, 100]),
            max_uncommitted_bytes: source.pick(&[0, 50]),
            max_inflight_messages: source.pick(&[256, 1, 3]),
            max_pending_reads: 4,
            election_ticks: 4,
            applied,
            ..Config::new(ReplicaId(1))
        };
        let disk = Disk {
            log,
            forgets: Cell::new(false),
        };
        let node = RaftNode::new(config.clone(), disk).expect("a replica starts");
        Self {
            source,
            honesty,
            config,
            handed: applied,
            term: node.term(),
            committed: node.committed(),
            node,
            writes: VecDeque::new(),
            tokens: VecDeque::new(),
            applies: VecDeque::new(),
            fetches: Vec::new(),
            sent: VecDeque::new(),
            reach: Reach::default(),
        }
    }

    /// Does what the bytes say, until they end or the replica stops.
    pub(crate) fn run(mut self) -> Reach {
        while !self.source.is_empty() && self.node.poisoned().is_none() {
            match self.source.below(32) {
                0..7 => self.message(),
                7..10 => self.answer(),
                10..12 => self.own_wish(),
                12 => self.lie(),
                13..15 => self.disturb(),
                15 => self.restart(),
                16..18 => self.tick(),
                18..20 => self.settle(),
                20..24 => self.write(),
                24..27 => self.receipt(),
                27..29 => self.apply(),
                29 => self.answer_fetch(),
                _ => self.collect(),
            }
            self.look();
        }
        let mut reach = self.reach;
        if let Some(why) = self.node.poisoned() {
            reach.stopped = true;
            self.stopped(why);
        }
        reach
    }

    fn message(&mut self) {
        let message = plausible::message(&mut self.source, &self.node);
        let before = self.node.basic_status().hard_state;
        match self.node.step(message.clone()) {
            Err(StepError::Malformed { reason, .. }) if reason.starts_with("address") => {
                assert_eq!(before, self.node.basic_status().hard_state, "{message:?}");
            }
            _ => {}
        }
    }

    /// An answer to something that was sent, as a replica that knows little could give it.
    fn answer(&mut self) {
        if self.sent.is_empty() {
            return;
        }
        let at = self.source.below(self.sent.len());
        let message = self.sent[at].clone();
        let small = Index(u64::from(self.source.byte() & 7));
        let payload = match message.payload {
            Payload::Append { prev, .. } if small > Index(5) => Payload::AppendResponse {
                index: prev.index,
                reject: Some(RejectHint {
                    index: Index(small.0 & 1),
                    term: Term(0),
                }),
            },
            Payload::Append { prev, entries, .. } => Payload::AppendResponse {
                index: prev.index.plus(entries.len() as u64),
                reject: None,
            },
            Payload::Snapshot(snapshot) => Payload::AppendResponse {
                index: snapshot.meta.last.index,
                reject: None,
            },
            Payload::Vote { pre, .. } => Payload::VoteResponse {
                pre,
                reject: small == Index(7),
                committed: EntryId::default(),
            },
            Payload::Heartbeat { read, .. } => Payload::HeartbeatResponse { read },
            _ => return,
        };
        // Refusals included: they are part of what must not do harm.
        let _ = self.node.step(Message {
            from: message.to,
            to: message.from,
            term: message.term,
            payload,
        });
    }

    fn tick(&mut self) {
        for _ in 0..=self.source.below(6) {
            self.allow(RaftNode::tick);
        }
    }

    /// What the host or its callers may ask for at any time.
    fn own_wish(&mut self) {
        let source = &mut self.source;
        match source.below(9) {
            0 | 1 => {
                let count = source.below(3);
                let data = |_| Bytes::copy_from_slice(source.bytes(40));
                let data = (0..count).map(data).collect();
                let _ = self.node.propose(data);
            }
            2 => {
                let change = plausible::change(source);
                let _ = self.node.propose_conf_change(&change);
            }
            3 => {
                let change = plausible::change_v1(source);
                let _ = self.node.propose_conf_change_v1(&change);
            }
            4 => drop(
                self.node
                    .read_index(Bytes::copy_from_slice(source.bytes(8))),
            ),
            5 => {
                let to = plausible::replica(source);
                self.allow(|node| node.transfer_leader(to));
            }
            6 => self.node.forget_leader(),
            _ => self.allow(RaftNode::campaign),
        }
    }

    /// What may become of connections, snapshots, memory and the log at any time.
    fn disturb(&mut self) {
        let to = plausible::replica(&mut self.source);
        match self.source.below(6) {
            0 => self.node.report_unreachable(to),
            1 => self.node.report_snapshot(to, SnapshotOutcome::Sent),
            2 => self.node.report_snapshot(to, SnapshotOutcome::Failed),
            3 => {
                let disk = self.node.storage();
                disk.forgets.set(!disk.forgets.get());
            }
            _ => {
                // Behind what is applied, and a snapshot of that is to be had.
                let index = self.node.applied();
                let conf_state = self.node.status().conf_state;
                let log = &mut self.node.storage_mut().log;
                if let Ok(term) = log.term(index)
                    && log.truncate_to(index).is_ok()
                {
                    let last = EntryId { term, index };
                    let meta = SnapshotMeta { last, conf_state };
                    let data = Bytes::new();
                    log.set_snapshot(Snapshot { meta, data });
                }
            }
        }
    }

    /// A host that has lost its mind.
    fn lie(&mut self) {
        if self.honesty == Honesty::Host {
            return;
        }
        let (source, node) = (&mut self.source, &mut self.node);
        match source.below(8) {
            0 => {
                let (index, bytes) = (plausible::index(source, node), source.number());
                let _ = node.on_applied(index, bytes);
            }
            1 => {
                let fetch = Fetch {
                    low: plausible::index(source, node),
                    high: plausible::index(source, node),
                    max_bytes: source.number(),
                    replica: plausible::replica(source),
                };
                let prev = EntryId {
                    term: plausible::term(source, node),
                    index: fetch.low.prev(),
                };
                let term = plausible::term(source, node);
                let entries = match source.below(6) {
                    0 => Err(StorageError::Compacted),
                    1 => Err(StorageError::Unavailable),
                    2 => Err(StorageError::TemporarilyUnavailable),
                    _ => Ok(plausible::entries(source, prev, term)),
                };
                let _ = node.on_fetched(Fetched { fetch, entries });
            }
            2 => {
                let _ = node.apply_conf_change(&plausible::change(source));
            }
            3 => {
                let _ = node.on_persisted(Persisted::default());
            }
            4 => self
                .writes
                .rotate_left(usize::from(!self.writes.is_empty())),
            5 => self
                .tokens
                .rotate_left(usize::from(!self.tokens.is_empty())),
            6 => drop(self.writes.pop_front()),
            _ => {
                // Its own messages, and others' in its name.
                let mut message = plausible::message(source, node);
                message.from = node.id();
                let _ = node.step_any(message);
            }
        }
    }

    /// Everything that waits is done, in order.
    fn settle(&mut self) {
        for _ in 0..50 {
            self.collect();
            let idle = self.writes.is_empty() && self.tokens.is_empty() && self.applies.is_empty();
            if idle || self.node.poisoned().is_some() {
                return;
            }
            self.write();
            self.receipt();
            self.apply();
            self.look();
        }
    }

    fn collect(&mut self) {
        if !self.node.has_ready() {
            return;
        }
        let Ok(Ready {
            messages,
            append,
            committed,
            reads,
            fetches,
            events,
            ..
        }) = self.node.ready()
        else {
            return;
        };
        for message in &messages {
            self.check_sent(message);
            self.reach.sent_snapshot |= matches!(message.payload, Payload::Snapshot(_));
        }
        self.reach.answered_read |= !reads.is_empty();
        self.sent.extend(messages);
        while self.sent.len() > 16 {
            self.sent.pop_front();
        }
        assert!(
            reads.len() <= 64 && events.len() <= 1024,
            "queues are bounded"
        );
        for entry in &committed {
            let honest = self.honesty == Honesty::Host;
            assert!(
                !honest || entry.index == self.handed.next(),
                "handed out in order"
            );
            self.handed = entry.index;
        }
        if let Some(append) = append {
            self.check_write(&append);
            if let Some(snapshot) = append.snapshot() {
                // What comes next goes on behind it.
                self.handed = snapshot.meta.last.index;
                self.reach.took_snapshot = true;
            }
            self.writes.push_back(append);
        }
        if !committed.is_empty() {
            self.applies.push_back(committed);
        }
        self.fetches.extend(fetches);
    }

    fn check_sent(&self, message: &Message) {
        let own = self.node.term();
        assert!(!message.to.is_none(), "sent to nobody: {message:?}");
        match &message.payload {
            // In the name of who is to lead.
            Payload::TransferLeader => {}
            _ => assert_eq!(message.from, self.node.id(), "{message:?}"),
        }
        match &message.payload {
            Payload::Vote { pre: true, .. } => assert!(message.term <= Term(own.0 + 1)),
            // The grant of a trial carries the term that was asked for.
            Payload::VoteResponse {
                pre: true,
                reject: false,
                ..
            } => {}
            _ => assert!(message.term <= own, "term above its own: {message:?}"),
        }
        if let Payload::Append { prev, entries, .. } = &message.payload {
            let mut last = *prev;
            for entry in entries {
                assert_eq!(entry.index, last.index.next(), "{message:?}");
                assert!(
                    entry.term >= last.term && entry.term <= message.term,
                    "{message:?}"
                );
                last = entry.id();
            }
        }
    }

    fn check_write(&self, append: &Append) {
        let (held, _) = append.inspect();
        for message in held {
            self.check_sent(message);
        }
        for pair in append.entries().windows(2) {
            assert_eq!(pair[1].index, pair[0].index.next());
            assert!(pair[0].term <= pair[1].term);
        }
        if let Some(state) = append.hard_state() {
            assert_eq!(state, self.node.basic_status().hard_state);
        }
    }

    fn write(&mut self) {
        let Some(mut append) = self.writes.pop_front() else {
            return;
        };
        let honest = self.honesty == Honesty::Host;
        let log = &mut self.node.storage_mut().log;
        if let Some(snapshot) = append.snapshot().cloned() {
            let done = log.apply_snapshot(snapshot);
            assert!(!honest || done.is_ok(), "a snapshot that is older");
        }
        if let Some(state) = append.hard_state() {
            log.set_hard_state(state);
        }
        let done = log.append(&append.take_entries());
        assert!(!honest || done.is_ok(), "a write that leaves a gap");
        let (_, token) = append.persisted(&Durable::attest());
        self.tokens.push_back(token);
    }

    fn receipt(&mut self) {
        if let Some(token) = self.tokens.pop_front() {
            self.allow(|node| node.on_persisted(token));
        }
    }

    fn apply(&mut self) {
        let Some(batch) = self.applies.pop_front() else {
            return;
        };
        let Some(last) = batch.last() else { return };
        let bytes = batch.iter().map(Entry::size).sum();
        for entry in &batch {
            let change = match entry.kind {
                EntryKind::Normal | EntryKind::Host => continue,
                EntryKind::ConfChange => ConfChange::decode(&entry.data).map(ConfChange::into_v2),
                EntryKind::ConfChangeV2 => ConfChangeV2::decode(&entry.data),
            };
            let Ok(change) = change else { continue };
            if entry.index <= self.node.applied() {
                // Part of a snapshot that was installed meanwhile.
                continue;
            }
            match self.node.apply_conf_change(&change) {
                Ok(state) => {
                    self.reach.changed_members = true;
                    self.reach.was_joint |= state.is_joint();
                    self.node.storage_mut().log.set_conf_state(state);
                }
                Err(Error::Membership(_)) => {}
                Err(_) => return,
            }
        }
        // A snapshot may have overtaken it.
        let index = last.index;
        self.allow(|node| node.on_applied(index, bytes));
    }

    fn answer_fetch(&mut self) {
        let Some(fetch) = self.fetches.pop() else {
            return;
        };
        self.reach.fetched = true;
        let log = &self.node.storage().log;
        let entries = log.entries(fetch.low, fetch.high, fetch.max_bytes);
        self.allow(|node| node.on_fetched(Fetched { fetch, entries }));
    }

    /// A crash: what was not written is gone.
    fn restart(&mut self) {
        if self.honesty == Honesty::Nobody {
            return;
        }
        let disk = self.node.storage().clone();
        // What was applied is as durable as the log here; a snapshot counts when it is written.
        let first = disk.first_index().prev();
        let applied = self.node.applied().max(first);
        if self.node.applied() > disk.last_index() {
            return;
        }
        self.config.applied = applied;
        let (term, commit) = {
            let state = disk.log.hard_state();
            (state.term, state.commit)
        };
        self.node = RaftNode::new(self.config.clone(), disk).expect("a replica restarts");
        self.writes.clear();
        self.tokens.clear();
        self.applies.clear();
        self.fetches.clear();
        self.handed = applied;
        (self.term, self.committed) = (term, commit.min(self.node.committed()));
    }

    /// Runs something that an honest host may do at any time.
    fn allow<T>(&mut self, run: impl FnOnce(&mut RaftNode<Disk>) -> Result<T, Error>) {
        if let Err(Error::Config(_)) = run(&mut self.node) {
            panic!("a configuration is not looked at after the start");
        }
    }

    fn look(&mut self) {
        let node = &self.node;
        if node.poisoned().is_some() {
            return;
        }
        if self.honesty == Honesty::Host {
            node.check().expect("the invariants hold");
        }
        assert!(node.term() >= self.term, "a term fell");
        assert!(node.committed() >= self.committed, "the commit index fell");
        // A host that loses writes takes away what was committed.
        let (applied, last) = (node.applied(), node.last_index());
        let honest = self.honesty == Honesty::Host;
        assert!(!honest || applied <= node.committed() && node.committed() <= last);
        assert!(node.role() != RoleName::Leader || node.leader() == node.id());
        let _ = node.status();
        if node.role() == RoleName::Leader {
            self.reach.led = true;
            self.reach.committed_as_leader |= node.committed() > self.committed;
        }
        (self.term, self.committed) = (node.term(), node.committed());
    }

    /// A replica that has stopped says so to everybody, and does nothing any more.
    fn stopped(mut self, why: &'static str) {
        if self.honesty == Honesty::Host {
            assert!(CONTRADICTIONS.contains(&why), "stopped by a message: {why}");
        }
        let before = self.node.basic_status().hard_state;
        assert!(self.node.tick().is_err() && self.node.ready().is_err());
        assert!(self.node.propose(vec![Bytes::new()]).is_err());
        assert!(!self.node.has_ready());
        let mut message = plausible::message(&mut self.source, &self.node);
        (message.from, message.to) = (ReplicaId(2), self.node.id());
        assert!(matches!(
            self.node.step(message),
            Err(StepError::Poisoned(_))
        ));
        assert_eq!(before, self.node.basic_status().hard_state);
    }
}

/// What a replica may stop for while its host is honest: others have said both that an entry is
/// committed and that it is not.
const CONTRADICTIONS: &[&str] = &["a leader contradicts a committed entry"];
