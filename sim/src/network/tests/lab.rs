//! A network with an event queue, stores without hosts, and what they send.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use polyraft_core::{EntryId, Message, Payload, ReplicaId, SnapshotOutcome, Term};
use polyraft_multiraft::env::{
    Body, GroupMessage, Inbound, Lane, Lost, SnapshotHeader, SnapshotReceiver, SnapshotRefusal,
    SnapshotSource, StateMachineError, Transport,
};
use polyraft_multiraft::{AppliedState, GroupId, Responder, StoreId};

use super::super::*;
use crate::queue::EventQueue;
use crate::time::SECOND;

/// A network, and what will happen on it.
pub(super) struct Lab {
    pub(super) network: Network,
    pub(super) queue: EventQueue<Happening>,
    /// What stores were told, in words, with the time.
    pub(super) notes: Notes,
    pub(super) incarnations: u64,
}

pub(super) enum Happening {
    Arrival(Arrival),
    /// Somebody waits until then.
    Pause,
}

pub(super) type Notes = Arc<Mutex<Vec<(Nanos, StoreId, String)>>>;

impl Lab {
    pub(super) fn new(seed: u64) -> Self {
        Self::watched(seed, Observer::default())
    }

    pub(super) fn watched(seed: u64, observer: Observer) -> Self {
        let mut rng = Rng::new(seed);
        Self {
            queue: EventQueue::new(rng.fork()),
            network: Network::new(rng, observer),
            notes: Notes::default(),
            incarnations: 0,
        }
    }

    /// Stores 1 to `count`, connected.
    pub(super) fn of(seed: u64, count: u64) -> (Self, Vec<Arc<dyn Transport>>) {
        let mut lab = Self::new(seed);
        let ports = (1..=count).map(|store| lab.start(store)).collect();
        lab.run(3 * SECOND);
        lab.told();
        (lab, ports)
    }

    pub(super) fn start(&mut self, store: u64) -> Arc<dyn Transport> {
        self.incarnations += 1;
        let (id, incarnation) = (StoreId(store), self.incarnations);
        let port = self.network.port(id, incarnation);
        let end = End {
            store: id,
            notes: Arc::clone(&self.notes),
        };
        self.network.started(id, incarnation, Arc::new(end));
        port
    }

    pub(super) fn collect(&mut self) {
        let queue = &mut self.queue;
        let now = queue.now();
        let mut schedule = |at, arrival| queue.push_at(at, Happening::Arrival(arrival));
        self.network.collect(now, &mut schedule);
    }

    /// Lets one thing happen; false: nothing will, or a pause is over.
    pub(super) fn turn(&mut self) -> bool {
        self.collect();
        let Some(Happening::Arrival(arrival)) = self.queue.pop() else {
            return false;
        };
        let now = self.queue.now();
        let before = self.notes.lock().len();
        let queue = &mut self.queue;
        let mut schedule = |at, arrival| queue.push_at(at, Happening::Arrival(arrival));
        let reached = self.network.arrive(now, arrival, &mut schedule);
        for (at, store, _) in &mut self.notes.lock()[before..] {
            *at = now;
            assert_eq!(reached, Some(*store), "the one that was told is named");
        }
        true
    }

    /// Lets so much time pass.
    pub(super) fn run(&mut self, time: Nanos) {
        self.queue.push(time, Happening::Pause);
        while self.turn() {}
    }

    /// Whatever stores were told since the last call.
    pub(super) fn told(&self) -> Vec<String> {
        let notes = std::mem::take(&mut *self.notes.lock());
        let words = |(_, store, what): (Nanos, StoreId, String)| format!("{}: {what}", store.0);
        notes.into_iter().map(words).collect()
    }

    /// The numbers of the groups whose messages a store has got since the last call of `told`.
    pub(super) fn got(&self, store: u64) -> Vec<u64> {
        let notes = self.notes.lock();
        let its = notes.iter().filter(|(_, at, _)| at.0 == store);
        let groups = its.filter_map(|(_, _, what)| what.strip_prefix("group "));
        groups.filter_map(|group| group.parse().ok()).collect()
    }

    pub(super) fn cut(&mut self, from: u64, to: u64, cut: bool) {
        self.network.set_cut(StoreId(from), StoreId(to), cut);
        self.collect();
    }
}

/// A store without a host: it notes what it is told. Snapshots of group 99 are refused.
pub(super) struct End {
    store: StoreId,
    pub(super) notes: Notes,
}

impl End {
    fn note(&self, what: String) {
        self.notes.lock().push((0, self.store, what));
    }
}

impl Inbound for End {
    fn deliver(&self, _from: StoreId, messages: Vec<GroupMessage>) {
        for message in messages {
            self.note(format!("group {}", message.group.0));
        }
    }

    fn store_up(&self, store: StoreId, incarnation: u64) {
        self.note(format!("{} up as {incarnation}", store.0));
    }

    fn store_down(&self, store: StoreId) {
        self.note(format!("{} down", store.0));
    }

    fn lost(&self, to: StoreId, messages: Lost) {
        self.note(format!("lost to {}: {messages:?}", to.0));
    }

    fn begin_snapshot(
        &self,
        _from: StoreId,
        header: SnapshotHeader,
    ) -> Result<Box<dyn SnapshotReceiver>, SnapshotRefusal> {
        if header.group == GroupId(99) {
            return Err(SnapshotRefusal::Busy);
        }
        self.note("begun".to_owned());
        Ok(Box::new(Taker {
            store: self.store,
            notes: Arc::clone(&self.notes),
            bytes: 0,
            finished: false,
        }))
    }
}

pub(super) struct Taker {
    store: StoreId,
    pub(super) notes: Notes,
    bytes: usize,
    finished: bool,
}

impl Taker {
    fn note(&self, what: String) {
        self.notes.lock().push((0, self.store, what));
    }
}

impl SnapshotReceiver for Taker {
    fn write(&mut self, chunk: Bytes) -> Result<(), SnapshotRefusal> {
        self.bytes += chunk.len();
        self.note("chunk".to_owned());
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<(), SnapshotRefusal> {
        self.finished = true;
        self.note(format!("finished with {}", self.bytes));
        Ok(())
    }
}

impl Drop for Taker {
    fn drop(&mut self) {
        if !self.finished {
            self.note("dropped".to_owned());
        }
    }
}

/// Gives so many bytes; with `fails`, never the end.
pub(super) struct Bulk {
    pub(super) state: AppliedState,
    pub(super) left: usize,
    pub(super) fails: bool,
}

impl SnapshotSource for Bulk {
    fn state(&self) -> &AppliedState {
        &self.state
    }

    fn next_chunk(&mut self, max_bytes: usize) -> Result<Option<Bytes>, StateMachineError> {
        let bytes = self.left.min(max_bytes);
        self.left -= bytes;
        match (bytes, self.fails) {
            (0, true) => Err(StateMachineError::Fatal("for the check".to_owned())),
            (0, false) => Ok(None),
            _ => Ok(Some(vec![7; bytes].into())),
        }
    }
}

pub(super) fn message(group: u64, payload: Payload) -> GroupMessage {
    let message = Message {
        from: ReplicaId(1),
        to: ReplicaId(2),
        term: Term(1),
        payload,
    };
    GroupMessage {
        group: GroupId(group),
        body: Body::Raft(message),
    }
}

pub(super) fn send(
    port: &Arc<dyn Transport>,
    to: u64,
    lane: Lane,
    groups: impl IntoIterator<Item = u64>,
) {
    let groups = groups.into_iter();
    let messages = groups.map(|group| message(group, Payload::TimeoutNow));
    port.send(StoreId(to), lane, messages.collect());
}

pub(super) type Outcome = Arc<Mutex<Vec<SnapshotOutcome>>>;

pub(super) fn send_snapshot(
    port: &Arc<dyn Transport>,
    to: u64,
    group: u64,
    left: usize,
) -> Outcome {
    send_source(
        port,
        to,
        group,
        Bulk {
            state: AppliedState::default(),
            left,
            fails: false,
        },
    )
}

pub(super) fn send_source(port: &Arc<dyn Transport>, to: u64, group: u64, source: Bulk) -> Outcome {
    let outcome = Outcome::default();
    let note = Arc::clone(&outcome);
    let done = Responder::new(
        || SnapshotOutcome::Failed,
        move |outcome| note.lock().push(outcome),
    );
    let payload = Payload::Snapshot(Box::default());
    let Body::Raft(message) = message(group, payload).body else {
        unreachable!("made so");
    };
    let header = SnapshotHeader {
        group: GroupId(group),
        message,
        state: AppliedState {
            last: EntryId::new(1, 1),
            ..AppliedState::default()
        },
    };
    port.send_snapshot(StoreId(to), header, Box::new(source), done);
    outcome
}

pub(super) fn conserves(stats: &NetworkStats) -> bool {
    stats.sent + stats.doubled == stats.delivered + stats.no_room + stats.nowhere + stats.lost
}
