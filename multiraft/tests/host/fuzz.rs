//! One store among liars: whatever other stores send, in any order, it neither panics nor stops, answers
//! everybody once, gives every byte of its budgets back, and can be started again.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use polyraft_core::{
    ConfChangeKind, ConfChangeV2, ConfState, Entry, EntryId, EntryKind, Fetch, Fetched, Index,
    Message, Payload, RejectHint, ReplicaId, RoleName, Snapshot, SnapshotMeta, SnapshotOutcome,
    StorageError, Term, Transition,
};
use polyraft_fuzz::{Fuzz, Source};
use polyraft_multiraft::env::conformance::Rng;
use polyraft_multiraft::env::{
    Body, GroupMessage, Inbound, Lost, SnapshotHeader, SnapshotReceiver,
};
use polyraft_multiraft::parts::Input;
use polyraft_multiraft::{
    AppliedState, Epoch, GroupDescriptor, GroupId, HostConfig, HostHandle, KeyRange, Member,
    MemberChange, Reject, ReplicaSummary, Responder, StoreId,
};

use crate::cluster::Promise;
use crate::log::LogDisk;
use crate::machine::{DataDisk, put};
use crate::network::Network;
use crate::node::Node;

#[test]
fn whatever_other_stores_send() {
    let fuzz = Fuzz::new("multiraft::host").runs(6000).length_max(2048);
    let reach = Cell::new(Reach::default());
    let runs = fuzz.check(|input| reach.set(reach.get().or(Store::new(input).run())));
    assert!(
        runs < 1000 || reach.get() == Reach::ALL,
        "{:?}",
        reach.get()
    );
}

/// What happened in some run: fuzzing that never gets anywhere finds nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Reach {
    led_with_others: bool,
    applied: bool,
    installed_snapshot: bool,
    changed_members: bool,
    refused_message: bool,
    destroyed: bool,
}

impl Reach {
    const ALL: Self = Self {
        led_with_others: true,
        applied: true,
        installed_snapshot: true,
        changed_members: true,
        refused_message: true,
        destroyed: true,
    };

    fn or(self, other: Self) -> Self {
        Self {
            led_with_others: self.led_with_others || other.led_with_others,
            applied: self.applied || other.applied,
            installed_snapshot: self.installed_snapshot || other.installed_snapshot,
            changed_members: self.changed_members || other.changed_members,
            refused_message: self.refused_message || other.refused_message,
            destroyed: self.destroyed || other.destroyed,
        }
    }

    /// What there is to be seen of a host now.
    fn look(self, handle: &HostHandle) -> Self {
        let (stats, list) = (handle.stats(), handle.list());
        let leads = |summary: &ReplicaSummary| {
            summary.group != GroupId(1) && summary.basic.soft_state.role == RoleName::Leader
        };
        let changed = |descriptor: &Arc<GroupDescriptor>| {
            let epoch = descriptor.epoch.membership;
            descriptor.group.0 <= 3 && (2..10).contains(&epoch)
        };
        let descriptors = handle.descriptors();
        for range in descriptors.iter().filter_map(|each| each.range.as_ref()) {
            assert!(range.end.as_ref().is_none_or(|end| range.start < *end));
        }
        self.or(Self {
            led_with_others: list.iter().any(leads),
            applied: stats.applied_commands > 0,
            installed_snapshot: stats.snapshots_installed > 0,
            changed_members: descriptors.iter().any(changed),
            refused_message: stats.messages_refused > 0,
            destroyed: (1..=3).any(|group| handle.summary(GroupId(group)).is_none()),
        })
    }
}

/// Somebody who waits for an answer, whatever its kind.
type Waiting = Box<dyn Fn() -> bool>;

struct Store<'a> {
    source: Source<'a>,
    rng: Rng,
    node: Node,
    network: Network,
    /// What it has sent lately, and to whom.
    sent: VecDeque<(StoreId, GroupMessage)>,
    waiting: Vec<Waiting>,
    receivers: Vec<Box<dyn SnapshotReceiver>>,
}

const OWN: StoreId = StoreId(1);

impl<'a> Store<'a> {
    fn new(input: &'a [u8]) -> Self {
        let mut source = Source::new(input);
        let mut config = HostConfig::new(OWN);
        config.workers = 1 + source.below(2);
        config.election_ticks = 4;
        config.heartbeat_ticks = 1;
        config.sleep_after_ticks = source.pick(&[0, 3]);
        config.command_bytes_max = 200;
        config.proposal_bytes_max = source.pick(&[400, 4000]);
        config.inbound_bytes_max = source.pick(&[500, 1 << 20]);
        config.truncate_keep_entries = source.pick(&[0, 3]);
        config.entry_cache_bytes_max = source.pick(&[0, 1 << 20]);
        let network = Network::new(1);
        network.stop_watching();
        let mut node = Node::new(config, &network, LogDisk::default(), DataDisk::default());
        node.start().expect("an empty store starts");
        let mut this = Self {
            rng: Rng::new(source.word()),
            source,
            node,
            network,
            sent: VecDeque::new(),
            waiting: Vec::new(),
            receivers: Vec::new(),
        };
        // Alone, together with two others, and as one of two.
        for (group, stores) in [(1, &[1][..]), (2, &[1, 2, 3]), (3, &[2, 1])] {
            let respond = this.ask();
            this.handle()
                .create_group(descriptor(group, stores), respond);
        }
        this.settle();
        this
    }

    fn handle(&self) -> HostHandle {
        self.node.handle().expect("it runs")
    }

    fn ask<T: Send + 'static>(&mut self) -> Responder<Result<T, Reject>> {
        let (promise, respond) = Promise::new();
        self.waiting.push(Box::new(move || promise.is_kept()));
        respond
    }

    fn run(mut self) -> Reach {
        let mut reach = Reach::default();
        while !self.source.is_empty() {
            match self.source.below(24) {
                0..6 => self.messages(),
                6..10 => self.answer(),
                10..12 => self.snapshot(),
                12 => self.chunk(),
                13..15 => self.request(),
                15 => self.news(),
                16 => self.stray_completion(),
                17 => self.node.flush(),
                18..20 => (0..self.source.below(9)).for_each(|_| self.node.tick()),
                20 => self.restart(),
                21 => self.settle(),
                _ => self.node.step(&mut self.rng, 60),
            }
            assert!(self.node.fatal.is_none(), "stopped: {:?}", self.node.fatal);
            reach = reach.look(&self.handle());
        }
        self.receivers.clear();
        self.settle();
        assert_eq!(
            self.handle().stats().inbound_bytes,
            0,
            "all messages are taken"
        );
        let handle = self.handle();
        self.node.crash(&mut self.rng);
        assert!(
            self.waiting.iter().all(|kept| kept()),
            "somebody is not answered"
        );
        let stats = handle.stats();
        assert_eq!((stats.proposal_bytes, stats.inbound_bytes), (0, 0));
        self.node.start().expect("what it wrote can be recovered");
        reach
    }

    /// Until nothing waits; groups without a quorum have nothing to wait for in the parts.
    fn settle(&mut self) {
        for _ in 0..400 {
            if self.node.is_idle() {
                return;
            }
            self.node.step(&mut self.rng, 100);
        }
        panic!("the host never comes to rest");
    }

    fn restart(&mut self) {
        if self.source.flag() {
            self.node.crash(&mut self.rng);
        } else {
            self.node.power_cut(&mut self.rng);
        }
        // Of these nothing may be left.
        self.receivers.clear();
        self.node.start().expect("what it wrote can be recovered");
    }

    fn group(&mut self) -> GroupId {
        GroupId(match self.source.below(16) {
            15 => self.source.number(),
            small => small as u64 % 6 + 1,
        })
    }

    fn store(&mut self) -> StoreId {
        StoreId(match self.source.below(16) {
            15 => self.source.number(),
            small => small as u64 % 4 + 1,
        })
    }

    /// A replica id as the group here has it, or another.
    fn replica(&mut self) -> ReplicaId {
        ReplicaId(match self.source.below(16) {
            // What the gate of a transport lets through.
            15 => self.source.number().max(1),
            small => small as u64 % 5 + 1,
        })
    }

    fn own(&mut self, group: GroupId) -> ReplicaId {
        match self.handle().summary(group) {
            Some(summary) if !self.source.one_in(6) => summary.replica,
            _ => self.replica(),
        }
    }

    fn term(&mut self, group: GroupId) -> Term {
        let summary = self.handle().summary(group).unwrap_or_default();
        let known = summary.basic.hard_state.term.0;
        Term(match self.source.below(8) {
            0..5 => known,
            5 | 6 => known.saturating_add(1),
            _ => self.source.number(),
        })
    }

    fn index(&mut self, group: GroupId) -> Index {
        let summary = self.handle().summary(group).unwrap_or_default();
        let commit = summary.basic.hard_state.commit.0;
        Index(match self.source.below(10) {
            0..5 => commit,
            5 | 6 => commit.saturating_add(1),
            7 => commit.saturating_add(2),
            8 => summary.basic.applied.0,
            _ => self.source.number(),
        })
    }

    fn id(&mut self, group: GroupId) -> EntryId {
        let (term, index) = (self.term(group), self.index(group));
        EntryId { term, index }
    }

    fn messages(&mut self) {
        let from = self.store();
        let count = 1 + self.source.below(3);
        let messages = (0..count).map(|_| self.message()).collect();
        self.handle().deliver(from, messages);
    }

    /// An answer to something that was sent, as a store that knows little could give it.
    fn answer(&mut self) {
        for (to, messages) in self.network.take_frames() {
            self.sent
                .extend(messages.into_iter().map(|message| (to, message)));
        }
        while self.sent.len() > 32 {
            self.sent.pop_front();
        }
        if self.sent.is_empty() {
            return;
        }
        let at = self.source.below(self.sent.len());
        let (from, GroupMessage { group, body }) = self.sent[at].clone();
        let Body::Raft(message) = body else {
            return;
        };
        let payload = match message.payload {
            Payload::Append { prev, entries, .. } => Payload::AppendResponse {
                index: prev.index.plus(entries.len() as u64),
                reject: None,
            },
            Payload::Vote { pre, .. } => Payload::VoteResponse {
                pre,
                reject: self.source.one_in(8),
                committed: EntryId::default(),
            },
            Payload::Heartbeat { read, .. } => Payload::HeartbeatResponse { read },
            _ => return,
        };
        let body = Body::Raft(Message {
            from: message.to,
            to: message.from,
            term: message.term,
            payload,
        });
        self.handle()
            .deliver(from, vec![GroupMessage { group, body }]);
    }

    /// A snapshot as a leader could send it: it goes on behind what is here.
    fn sound_snapshot(&mut self) {
        let group = GroupId(1 + self.source.below(6) as u64);
        let basic = self.handle().summary(group).unwrap_or_default().basic;
        let term = Term(basic.hard_state.term.0.saturating_add(1));
        let ahead = 1 + self.source.below(8) as u64;
        let index = Index(basic.hard_state.commit.0.saturating_add(ahead));
        let mut descriptor = self.descriptor(group);
        descriptor.group = group;
        let to = descriptor.replica_on(OWN).unwrap_or(ReplicaId(1));
        let voters = descriptor.members.iter().map(|member| member.replica);
        let conf_state = ConfState {
            voters: voters.collect(),
            ..ConfState::default()
        };
        let last = EntryId { term, index };
        let meta = SnapshotMeta {
            last,
            conf_state: conf_state.clone(),
        };
        let data = Bytes::new();
        let header = SnapshotHeader {
            group,
            message: Message {
                from: self.replica(),
                to,
                term,
                payload: Payload::Snapshot(Box::new(Snapshot { meta, data })),
            },
            state: AppliedState {
                last,
                conf_state: Arc::new(conf_state),
                descriptor: Arc::new(descriptor),
            },
        };
        let from = self.store();
        self.begin(from, header);
    }

    fn begin(&mut self, from: StoreId, header: SnapshotHeader) {
        if let Ok(receiver) = self.handle().begin_snapshot(from, header) {
            self.receivers.push(receiver);
            self.receivers.truncate(4);
        }
    }

    fn message(&mut self) -> GroupMessage {
        let group = self.group();
        let body = match self.source.below(12) {
            0 => Body::Tombstone {
                replica: self.own(group),
                next_replica: self.replica(),
            },
            1 => Body::Sleep(self.raft(group)),
            _ => Body::Raft(self.raft(group)),
        };
        GroupMessage { group, body }
    }

    fn raft(&mut self, group: GroupId) -> Message {
        Message {
            from: self.replica(),
            to: self.own(group),
            term: self.term(group),
            payload: self.payload(group),
        }
    }

    fn payload(&mut self, group: GroupId) -> Payload {
        match self.source.below(16) {
            0..4 => {
                let prev = self.id(group);
                Payload::Append {
                    prev,
                    entries: self.entries(prev),
                    commit: self.index(group),
                }
            }
            4..6 => {
                let EntryId { term, index } = self.id(group);
                let hint = RejectHint { index, term };
                Payload::AppendResponse {
                    index: self.index(group),
                    reject: self.source.one_in(3).then_some(hint),
                }
            }
            6 => Payload::Vote {
                pre: self.source.flag(),
                last: self.id(group),
                transfer: self.source.one_in(3),
            },
            7..10 => Payload::VoteResponse {
                pre: self.source.flag(),
                reject: self.source.one_in(3),
                committed: self.id(group),
            },
            10 | 11 => Payload::Heartbeat {
                commit: self.index(group),
                read: self.source.number(),
            },
            12 => Payload::HeartbeatResponse {
                read: self.source.number(),
            },
            13 => {
                let meta = SnapshotMeta {
                    last: self.id(group),
                    conf_state: self.conf_state(),
                };
                let data = Bytes::new();
                Payload::Snapshot(Box::new(Snapshot { meta, data }))
            }
            14 if self.source.flag() => Payload::TimeoutNow,
            14 => Payload::TransferLeader,
            _ => Payload::ReadIndex {
                context: Bytes::copy_from_slice(self.source.bytes(20)),
            },
        }
    }

    fn entries(&mut self, prev: EntryId) -> Vec<Entry> {
        let (mut term, mut index) = (prev.term, prev.index);
        let count = self.source.below(4);
        let mut entries = Vec::new();
        for _ in 0..count {
            index = Index(index.0.saturating_add(1));
            if self.source.one_in(4) {
                term = Term(term.0.saturating_add(1));
            }
            let (kind, data) = match self.source.below(5) {
                0 => (EntryKind::ConfChangeV2, self.change().encode()),
                1 => (EntryKind::Normal, Bytes::new()),
                2 => {
                    let kind = self
                        .source
                        .pick(&[EntryKind::ConfChange, EntryKind::ConfChangeV2]);
                    (kind, Bytes::copy_from_slice(self.source.bytes(30)))
                }
                _ => (EntryKind::Normal, put(self.source.bytes(3), b"value")),
            };
            entries.push(Entry {
                term,
                index,
                kind,
                data,
            });
        }
        entries
    }

    /// A change of membership whose context names stores, as the host's own do, or is anything.
    fn change(&mut self) -> ConfChangeV2 {
        let mut context = BytesMut::new();
        if self.source.one_in(4) {
            context.put_slice(self.source.bytes(40));
        } else {
            let members = self.members();
            context.put_u8(1);
            context.put_u32(members.len() as u32);
            for member in members {
                context.put_u64(member.replica.0);
                context.put_u64(member.store.0);
            }
        }
        let count = self.source.below(3);
        let changes = (0..count).map(|_| (self.kind(), self.replica())).collect();
        ConfChangeV2 {
            transition: self.transition(),
            changes,
            context: context.freeze(),
        }
    }

    fn kind(&mut self) -> ConfChangeKind {
        self.source.pick(&[
            ConfChangeKind::AddVoter,
            ConfChangeKind::AddLearner,
            ConfChangeKind::Remove,
            ConfChangeKind::Update,
        ])
    }

    fn transition(&mut self) -> Transition {
        self.source.pick(&[
            Transition::Auto,
            Transition::JointImplicit,
            Transition::JointExplicit,
        ])
    }

    fn members(&mut self) -> Vec<Member> {
        let count = self.source.below(4);
        let member = |this: &mut Self| Member {
            replica: this.replica(),
            store: this.store(),
        };
        (0..count).map(|_| member(self)).collect()
    }

    fn conf_state(&mut self) -> ConfState {
        let count = 1 + self.source.below(3);
        ConfState {
            voters: (0..count).map(|_| self.replica()).collect(),
            ..ConfState::default()
        }
    }

    /// A descriptor that may be of a group as it could be, or anything.
    fn descriptor(&mut self, group: GroupId) -> GroupDescriptor {
        let key = |this: &mut Self| Bytes::copy_from_slice(this.source.bytes(2));
        let mut descriptor = descriptor(group.0, &[1, 2, 3]);
        if self.source.one_in(3) {
            descriptor.members = self.members();
        }
        if self.source.one_in(3) {
            let start = key(self);
            let end = self.source.flag().then(|| key(self));
            descriptor.range = Some(KeyRange { start, end });
        }
        if self.source.one_in(4) {
            descriptor.next_replica = self.replica();
            descriptor.epoch = Epoch {
                membership: self.source.number(),
                range: self.source.number(),
            };
        }
        if self.source.one_in(12) {
            descriptor.group = self.group();
        }
        descriptor
    }

    /// A snapshot begins; header, message and state agree or not.
    fn snapshot(&mut self) {
        if self.source.flag() {
            return self.sound_snapshot();
        }
        let group = self.group();
        let last = self.id(group);
        let descriptor = self.descriptor(group);
        let conf_state = if self.source.one_in(3) {
            self.conf_state()
        } else {
            let voters = descriptor.members.iter().map(|member| member.replica);
            ConfState {
                voters: voters.collect(),
                ..ConfState::default()
            }
        };
        let meta = SnapshotMeta {
            last: if self.source.one_in(8) {
                self.id(group)
            } else {
                last
            },
            conf_state: conf_state.clone(),
        };
        let data = Bytes::new();
        let payload = match self.source.below(16) {
            0 => self.payload(group),
            _ => Payload::Snapshot(Box::new(Snapshot { meta, data })),
        };
        let header = SnapshotHeader {
            group,
            message: Message {
                payload,
                ..self.raft(group)
            },
            state: AppliedState {
                last,
                conf_state: Arc::new(conf_state),
                descriptor: Arc::new(descriptor),
            },
        };
        let from = self.store();
        self.begin(from, header);
    }

    fn chunk(&mut self) {
        let Some(mut receiver) = self.receivers.pop() else {
            return;
        };
        if self.source.flag() {
            let mut chunk = BytesMut::new();
            chunk.put_u64(self.source.number());
            chunk.put_slice(&put(self.source.bytes(3), b"value"));
            if receiver.write(chunk.freeze()).is_err() {
                return;
            }
        }
        match self.source.below(4) {
            0 => drop(receiver),
            1 => self.receivers.push(receiver),
            _ => receiver.finish().expect("there is room"),
        }
    }

    fn request(&mut self) {
        let (group, handle) = (self.group(), self.handle());
        match self.source.below(10) {
            0..4 => {
                let command = match self.source.below(8) {
                    0 => Bytes::new(),
                    1 => Bytes::from(vec![0; 201]),
                    _ => put(self.source.bytes(3), b"value"),
                };
                let respond = self.ask();
                handle.propose(group, command, respond);
            }
            4 => handle.read(group, self.ask()),
            5 => {
                let count = self.source.below(3);
                let change = |this: &mut Self| MemberChange {
                    kind: this.kind(),
                    store: this.store(),
                };
                let changes = (0..count).map(|_| change(self)).collect();
                let transition = self.transition();
                handle.change_members(group, changes, transition, self.ask());
            }
            6 => {
                let to = self.store();
                handle.transfer_leader(group, to, self.ask());
            }
            7 => handle.campaign(group, self.ask()),
            8 if self.source.flag() => {
                let next = self.replica();
                handle.destroy_replica(group, next, self.ask());
            }
            8 => handle.describe(group, self.ask()),
            _ => {
                let descriptor = self.descriptor(group);
                handle.create_group(descriptor, self.ask());
            }
        }
    }

    fn news(&mut self) {
        let (store, handle) = (self.store(), self.handle());
        match self.source.below(4) {
            0 => handle.store_up(store, 1),
            1 => handle.store_down(store),
            2 => handle.lost(store, Lost::Any),
            _ => {
                let groups = vec![self.group(), self.group()];
                handle.lost(store, Lost::Of(groups));
            }
        }
    }

    /// What the pools say of what is over already, or of groups that are not here.
    fn stray_completion(&mut self) {
        let (group, to) = (self.group(), self.replica());
        let input = match self.source.below(3) {
            0 => Input::SnapshotSent {
                group,
                replica: self.own(group),
                to,
                outcome: self
                    .source
                    .pick(&[SnapshotOutcome::Sent, SnapshotOutcome::Failed]),
            },
            1 => Input::Fetched {
                group,
                replica: self.own(group),
                fetched: Fetched {
                    fetch: Fetch {
                        low: self.index(group),
                        high: self.index(group),
                        max_bytes: 100,
                        replica: to,
                    },
                    entries: Err(StorageError::Compacted),
                },
            },
            _ => Input::Flushed(vec![(group, self.own(group), Index(0))]),
        };
        self.node.complete(input);
    }
}

fn descriptor(group: u64, stores: &[u64]) -> GroupDescriptor {
    let member = |(replica, store): (u64, &u64)| Member {
        replica: ReplicaId(replica),
        store: StoreId(*store),
    };
    GroupDescriptor {
        group: GroupId(group),
        range: None,
        members: (1..).zip(stores).map(member).collect(),
        next_replica: ReplicaId(stores.len() as u64 + 1),
        epoch: Epoch {
            membership: 1,
            range: 1,
        },
        border: 0,
        frozen: None,
    }
}
