//! A network in memory: frames are late, lost, doubled and out of order by seed; snapshots go chunk by
//! chunk and break off.
//!
//! On the way out it checks what a host says: no vote and no acknowledgement that is not synced, and one
//! leader in a term.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use polyraft_core::{Message, Payload, ReplicaId, SnapshotOutcome, Term};
use polyraft_multiraft::env::conformance::Rng;
use polyraft_multiraft::env::{
    Body, GroupMessage, Inbound, Lane, SnapshotHeader, SnapshotReceiver, SnapshotSource, Transport,
};
use polyraft_multiraft::{GroupId, HostHandle, Responder, StoreId};

use crate::log::LogDisk;

/// What may happen to a frame.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Weather {
    /// Steps that a frame takes at most, beside the one it takes anyway.
    pub(crate) delay_max: u64,
    /// Of 100 frames.
    pub(crate) lost: u64,
    /// Of 100 frames.
    pub(crate) doubled: u64,
    /// Of 100 steps of a snapshot.
    pub(crate) broken: u64,
    /// Of 100 snapshots that arrive, those of which the sender believes that they did not.
    pub(crate) doubted: u64,
    /// Snapshots get nowhere, and nobody hears of it.
    pub(crate) halted: bool,
}

/// See the module. Clones are the same network.
#[derive(Clone)]
pub(crate) struct Network {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    rng: Rng,
    weather: Weather,
    now: u64,
    sequence: u64,
    /// By when they arrive.
    frames: BTreeMap<(u64, u64), Frame>,
    streams: Vec<Stream>,
    /// Pairs that do not reach each other.
    cut: BTreeSet<(StoreId, StoreId)>,
    /// Stores that hear nothing of a group.
    deaf: BTreeSet<(StoreId, GroupId)>,
    disks: BTreeMap<StoreId, LogDisk>,
    leaders: BTreeMap<(GroupId, Term), ReplicaId>,
    messages: u64,
    /// Snapshots that were to be sent.
    snapshots: u64,
    /// What hosts say is checked.
    watches: bool,
}

#[derive(Clone)]
struct Frame {
    from: StoreId,
    to: StoreId,
    messages: Vec<GroupMessage>,
}

/// A snapshot on its way. Dropped, it has failed.
struct Stream {
    from: StoreId,
    to: StoreId,
    header: Option<SnapshotHeader>,
    source: Box<dyn SnapshotSource>,
    receiver: Option<Box<dyn SnapshotReceiver>>,
    done: Responder<SnapshotOutcome>,
}

/// One store's end.
pub(crate) struct Port {
    pub(crate) store: StoreId,
    pub(crate) network: Network,
}

impl Network {
    pub(crate) fn new(seed: u64) -> Self {
        let inner = Inner {
            rng: Rng::new(seed),
            weather: Weather::default(),
            now: 0,
            sequence: 0,
            frames: BTreeMap::new(),
            streams: Vec::new(),
            cut: BTreeSet::new(),
            deaf: BTreeSet::new(),
            disks: BTreeMap::new(),
            leaders: BTreeMap::new(),
            messages: 0,
            snapshots: 0,
            watches: true,
        };
        Self {
            inner: Arc::new(Mutex::new(inner)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("nobody panics with it")
    }

    pub(crate) fn add(&self, store: StoreId, disk: LogDisk) {
        self.lock().disks.insert(store, disk);
    }

    /// Who is told that two lead in one term may well take back what it has promised to one of them.
    pub(crate) fn stop_watching(&self) {
        self.lock().watches = false;
    }

    /// What is on its way and not a snapshot, by whom it is for; it does not arrive any more.
    pub(crate) fn take_frames(&self) -> Vec<(StoreId, Vec<GroupMessage>)> {
        let frames = std::mem::take(&mut self.lock().frames).into_values();
        frames.map(|frame| (frame.to, frame.messages)).collect()
    }

    pub(crate) fn set_weather(&self, weather: Weather) {
        self.lock().weather = weather;
    }

    /// Messages that hosts have sent, whatever became of them.
    pub(crate) fn messages(&self) -> u64 {
        self.lock().messages
    }

    /// Snapshots that hosts were about to send, whatever became of them.
    pub(crate) fn snapshots_begun(&self) -> u64 {
        self.lock().snapshots
    }

    /// Cuts or mends the connection of two stores; what is on its way is lost.
    pub(crate) fn set_cut(&self, one: StoreId, two: StoreId, cut: bool) {
        let mut inner = self.lock();
        for pair in [(one, two), (two, one)] {
            if cut {
                inner.cut.insert(pair);
            } else {
                inner.cut.remove(&pair);
            }
        }
        let lost = |from, to| cut && (from == one && to == two || from == two && to == one);
        inner.frames.retain(|_, frame| !lost(frame.from, frame.to));
        let (broken, streams) = std::mem::take(&mut inner.streams)
            .into_iter()
            .partition(|stream| lost(stream.from, stream.to));
        inner.streams = streams;
        drop(inner);
        drop::<Vec<Stream>>(broken);
    }

    /// Whether a store hears nothing of a group but snapshots.
    pub(crate) fn set_deaf(&self, store: StoreId, group: GroupId, deaf: bool) {
        let mut inner = self.lock();
        if deaf {
            inner.deaf.insert((store, group));
        } else {
            inner.deaf.remove(&(store, group));
        }
    }

    pub(crate) fn is_cut(&self, one: StoreId, two: StoreId) -> bool {
        self.lock().cut.contains(&(one, two))
    }

    /// A store is gone: what it sent may still arrive, what was to reach it does not.
    pub(crate) fn forget(&self, store: StoreId) {
        let mut inner = self.lock();
        inner.frames.retain(|_, frame| frame.to != store);
        let (broken, streams) = std::mem::take(&mut inner.streams)
            .into_iter()
            .partition(|stream| stream.from == store || stream.to == store);
        inner.streams = streams;
        drop(inner);
        drop::<Vec<Stream>>(broken);
    }

    /// One step: delivers what is due.
    pub(crate) fn step(&self, hosts: &BTreeMap<StoreId, HostHandle>) {
        let (due, streams) = {
            let mut inner = self.lock();
            inner.now += 1;
            let next = inner.now + 1;
            let later = inner.frames.split_off(&(next, 0));
            let due = std::mem::replace(&mut inner.frames, later);
            (due, std::mem::take(&mut inner.streams))
        };
        let deaf = self.lock().deaf.clone();
        for mut frame in due.into_values() {
            let hears = |message: &GroupMessage| !deaf.contains(&(frame.to, message.group));
            frame.messages.retain(hears);
            if let Some(host) = hosts.get(&frame.to) {
                host.deliver(frame.from, frame.messages);
            }
        }
        for stream in streams {
            let (waits, breaks) = {
                let mut inner = self.lock();
                let Weather { broken, halted, .. } = inner.weather;
                (inner.rng.percent(30) || halted, inner.rng.percent(broken))
            };
            if breaks {
                continue;
            }
            let doubted = {
                let mut inner = self.lock();
                let doubted = inner.weather.doubted;
                inner.rng.percent(doubted)
            };
            let next = if waits {
                Some(stream)
            } else {
                advance(stream, hosts, doubted)
            };
            self.lock().streams.extend(next);
        }
    }
}

/// One part of a snapshot; none: it has ended.
fn advance(
    mut stream: Stream,
    hosts: &BTreeMap<StoreId, HostHandle>,
    doubted: bool,
) -> Option<Stream> {
    let host = hosts.get(&stream.to)?;
    let Some(mut receiver) = stream.receiver.take() else {
        let header = stream.header.take()?;
        stream.receiver = Some(host.begin_snapshot(stream.from, header).ok()?);
        return Some(stream);
    };
    match stream.source.next_chunk(SNAPSHOT_CHUNK).ok()? {
        Some(chunk) => {
            receiver.write(chunk).ok()?;
            stream.receiver = Some(receiver);
            Some(stream)
        }
        None => {
            receiver.finish().ok()?;
            if !doubted {
                stream.done.answer(SnapshotOutcome::Sent);
            }
            None
        }
    }
}

const SNAPSHOT_CHUNK: usize = 500;

impl Inner {
    fn send(&mut self, from: StoreId, to: StoreId, messages: Vec<GroupMessage>) {
        self.messages += messages.len() as u64;
        for message in &messages {
            if let Body::Raft(raft) | Body::Sleep(raft) = &message.body
                && self.watches
            {
                self.watch(from, message.group, raft);
            }
        }
        if self.cut.contains(&(from, to)) {
            return;
        }
        let frame = Frame { from, to, messages };
        let Weather { lost, doubled, .. } = self.weather;
        let copies = if self.rng.percent(lost) {
            0
        } else {
            1 + u64::from(self.rng.percent(doubled))
        };
        for _ in 0..copies {
            let delay = 1 + self.rng.below(self.weather.delay_max + 1);
            self.sequence += 1;
            self.frames
                .insert((self.now + delay, self.sequence), frame.clone());
        }
    }

    fn watch(&mut self, from: StoreId, group: GroupId, message: &Message) {
        match &message.payload {
            Payload::Append { .. } | Payload::Heartbeat { .. } => {
                let leader = self.leaders.entry((group, message.term));
                let leader = *leader.or_insert(message.from);
                assert_eq!(
                    leader, message.from,
                    "group {group}: two leaders in term {}",
                    message.term
                );
            }
            Payload::VoteResponse { .. } | Payload::AppendResponse { .. } => {
                self.watch_promise(from, group, message);
            }
            _ => {}
        }
    }

    /// Acknowledgements and votes leave a store only when what they speak of is synced.
    fn watch_promise(&self, from: StoreId, group: GroupId, message: &Message) {
        let durable = self.disks.get(&from).and_then(|disk| disk.durable(group));
        let Some((replica, state, last)) = durable else {
            return;
        };
        if replica != message.from {
            return;
        }
        let named = format!("store {from}, group {group}: {message:?}, on disk {state:?} {last:?}");
        match message.payload {
            Payload::VoteResponse {
                pre: false,
                reject: false,
                ..
            } => {
                assert!(state.term >= message.term, "{named}");
                let same = state.term == message.term;
                assert!(!same || state.vote == message.to, "{named}");
            }
            Payload::AppendResponse {
                index,
                reject: None,
            } => {
                assert!(state.term >= message.term, "{named}");
                let same = state.term == message.term;
                assert!(!same || last.index >= index, "{named}");
            }
            _ => {}
        }
    }
}

impl Transport for Port {
    fn send(&self, to: StoreId, _lane: Lane, messages: Vec<GroupMessage>) {
        self.network.lock().send(self.store, to, messages);
    }

    fn send_snapshot(
        &self,
        to: StoreId,
        header: SnapshotHeader,
        source: Box<dyn SnapshotSource>,
        done: Responder<SnapshotOutcome>,
    ) {
        let mut inner = self.network.lock();
        inner.messages += 1;
        inner.snapshots += 1;
        if inner.cut.contains(&(self.store, to)) {
            drop(inner);
            return done.answer(SnapshotOutcome::Failed);
        }
        inner.streams.push(Stream {
            from: self.store,
            to,
            header: Some(header),
            source,
            receiver: None,
            done,
        });
    }
}
