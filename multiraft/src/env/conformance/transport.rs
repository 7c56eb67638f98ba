//! What every transport must keep of its promises.
//!
//! All checks are made on a network without faults, where even a transport that may lose things
//! does not: what is lost, doubled or reordered there is so by mistake.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use polyraft_core::{
    ConfState, Entry, EntryId, EntryKind, Index, Message, Payload, RejectHint, ReplicaId, Snapshot,
    SnapshotMeta, SnapshotOutcome, Term,
};

use crate::env::{
    Body, GroupMessage, Inbound, Lane, Lost, SnapshotHeader, SnapshotReceiver, SnapshotRefusal,
    SnapshotSource, StateMachineError, Transport,
};
use crate::group::{AppliedState, GroupId, StoreId};
use crate::responder::Responder;

/// Stores that are joined by the transport under test.
pub trait TransportSubject {
    /// Starts a store that reaches all others and is reached by them.
    fn start(
        &mut self,
        store: StoreId,
        incarnation: u64,
        inbound: Arc<dyn Inbound>,
    ) -> Arc<dyn Transport>;
    /// Ends a store, as a crash does.
    fn stop(&mut self, store: StoreId);
    /// Lets the network work for a moment.
    fn go_on(&mut self);
    /// Appends of a kilobyte which are certainly more than may wait for a store.
    fn too_many(&self) -> u64;
}

/// The whole suite; `new` makes a network without stores.
pub fn transport<S: TransportSubject>(new: impl Fn() -> S) {
    every_kind_arrives_unaltered(new());
    a_lane_keeps_its_three_orders(new());
    senders_are_told_apart(new());
    what_does_not_fit_is_reported(new());
    what_is_sent_to_nobody_does_no_harm(new());
    stores_come_and_go(new());
    a_snapshot_arrives_whole(new());
    a_snapshot_that_is_refused_fails(new());
    a_source_that_fails_leaves_nothing(new());
    a_snapshot_does_not_stand_in_the_way(new());
    a_snapshot_ends_with_its_receiver(new());
    a_snapshot_ends_with_its_sender(new());
}

const ONE: StoreId = StoreId(1);
const TWO: StoreId = StoreId(2);
const THREE: StoreId = StoreId(3);
const NOBODY: StoreId = StoreId(9);

/// A store without a host: it notes what it is told.
struct Store {
    notes: Arc<Notes>,
    transport: Arc<dyn Transport>,
}

#[derive(Default)]
struct Notes {
    messages: Mutex<Vec<(StoreId, GroupMessage)>>,
    ups: Mutex<Vec<(StoreId, u64)>>,
    downs: Mutex<Vec<StoreId>>,
    lost: Mutex<Vec<(StoreId, Lost)>>,
    snapshots: Arc<Mutex<Snapshots>>,
}

/// What has become of the snapshots that came in.
#[derive(Default)]
struct Snapshots {
    headers: Vec<(StoreId, SnapshotHeader)>,
    data: Vec<u8>,
    finished: usize,
    abandoned: usize,
}

/// Snapshots of these groups are refused: at their beginning, their first chunk, their end.
const UNWANTED: [GroupId; 3] = [GroupId(101), GroupId(102), GroupId(103)];

struct Receiver {
    group: GroupId,
    notes: Arc<Mutex<Snapshots>>,
    finished: bool,
}

fn refuse(group: GroupId, unwanted: GroupId) -> Result<(), SnapshotRefusal> {
    if group == unwanted {
        return Err(SnapshotRefusal::NotWanted("for the check".to_owned()));
    }
    Ok(())
}

impl SnapshotReceiver for Receiver {
    fn write(&mut self, chunk: Bytes) -> Result<(), SnapshotRefusal> {
        refuse(self.group, UNWANTED[1])?;
        self.notes.lock().data.extend_from_slice(&chunk);
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<(), SnapshotRefusal> {
        refuse(self.group, UNWANTED[2])?;
        self.finished = true;
        self.notes.lock().finished += 1;
        Ok(())
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if !self.finished {
            self.notes.lock().abandoned += 1;
        }
    }
}

impl Inbound for Notes {
    fn deliver(&self, from: StoreId, messages: Vec<GroupMessage>) {
        let messages = messages.into_iter().map(|message| (from, message));
        self.messages.lock().extend(messages);
    }

    fn store_up(&self, store: StoreId, incarnation: u64) {
        self.ups.lock().push((store, incarnation));
    }

    fn store_down(&self, store: StoreId) {
        self.downs.lock().push(store);
    }

    fn lost(&self, to: StoreId, messages: Lost) {
        self.lost.lock().push((to, messages));
    }

    fn begin_snapshot(
        &self,
        from: StoreId,
        header: SnapshotHeader,
    ) -> Result<Box<dyn SnapshotReceiver>, SnapshotRefusal> {
        let group = header.group;
        refuse(group, UNWANTED[0])?;
        let receiver = Receiver {
            group,
            notes: Arc::clone(&self.snapshots),
            finished: false,
        };
        self.snapshots.lock().headers.push((from, header));
        Ok(Box::new(receiver))
    }
}

fn start(subject: &mut impl TransportSubject, store: StoreId, incarnation: u64) -> Store {
    let notes = Arc::new(Notes::default());
    let inbound = Arc::clone(&notes) as Arc<dyn Inbound>;
    let transport = subject.start(store, incarnation, inbound);
    Store { notes, transport }
}

/// Stores 1 and 2, which have heard of each other.
fn pair(subject: &mut impl TransportSubject) -> (Store, Store) {
    let (one, two) = (start(subject, ONE, 1), start(subject, TWO, 1));
    until(subject, "both stores are up", || {
        one.notes.ups.lock().contains(&(TWO, 1)) && two.notes.ups.lock().contains(&(ONE, 1))
    });
    (one, two)
}

/// Lets the network work until something has come true, and fails if it never does.
fn until(subject: &mut impl TransportSubject, what: &str, condition: impl Fn() -> bool) {
    for _ in 0..PATIENCE {
        if condition() {
            return;
        }
        subject.go_on();
    }
    panic!("it should be so and never was: {what}");
}

/// Turns in which a sound network certainly does what it is asked for.
const PATIENCE: usize = 20_000;

impl Notes {
    fn received(&self) -> Vec<GroupMessage> {
        let messages = self.messages.lock();
        messages
            .iter()
            .map(|(_, message)| message.clone())
            .collect()
    }
}

fn raft(group: u64, payload: Payload) -> GroupMessage {
    let body = Body::Raft(message(payload));
    GroupMessage {
        group: GroupId(group),
        body,
    }
}

fn message(payload: Payload) -> Message {
    Message {
        from: ReplicaId(11),
        to: ReplicaId(u64::MAX),
        term: Term(7),
        payload,
    }
}

fn heartbeat(group: u64, read: u64) -> GroupMessage {
    let commit = Index(5);
    raft(group, Payload::Heartbeat { commit, read })
}

fn append(group: u64, bytes: usize) -> GroupMessage {
    let entry = |index: u64, kind, data: Vec<u8>| Entry {
        term: Term(7),
        index: Index(index),
        kind,
        data: data.into(),
    };
    let entries = vec![
        entry(4, EntryKind::Normal, vec![0x5a; bytes]),
        entry(5, EntryKind::ConfChangeV2, vec![]),
    ];
    let (prev, commit) = (EntryId::new(6, 3), Index(3));
    let payload = Payload::Append {
        prev,
        entries,
        commit,
    };
    raft(group, payload)
}

/// One of every kind that may go over a lane.
fn every_kind() -> Vec<GroupMessage> {
    let context = Bytes::from_static(b"context");
    let last = EntryId::new(6, 9);
    let hint = RejectHint {
        index: Index(3),
        term: Term(2),
    };
    let sleep = message(Payload::Heartbeat {
        commit: Index(9),
        read: 0,
    });
    let response = |reject| Payload::AppendResponse {
        index: Index(9),
        reject,
    };
    let vote = |pre, transfer| Payload::Vote {
        pre,
        last,
        transfer,
    };
    let proposal = Entry {
        data: Bytes::from_static(b"proposal"),
        ..Entry::default()
    };
    let entries = vec![proposal];
    let group = GroupId(u64::MAX);
    let mut all = vec![
        GroupMessage {
            group,
            body: Body::Sleep(sleep),
        },
        GroupMessage {
            group,
            body: Body::Tombstone {
                replica: ReplicaId(3),
                next_replica: ReplicaId(u64::MAX),
            },
        },
        heartbeat(1, u64::MAX),
        append(1, 0),
        append(1, 100_000),
    ];
    let payloads = [
        Payload::HeartbeatResponse { read: 3 },
        response(None),
        response(Some(hint)),
        vote(false, true),
        vote(true, false),
        Payload::VoteResponse {
            pre: true,
            reject: true,
            committed: EntryId::new(2, 3),
        },
        Payload::Propose { entries },
        Payload::TransferLeader,
        Payload::TimeoutNow,
        Payload::ReadIndex {
            context: context.clone(),
        },
        Payload::ReadIndexResponse {
            index: Index(9),
            context,
        },
    ];
    all.extend(payloads.into_iter().map(|payload| raft(2, payload)));
    all
}

fn every_kind_arrives_unaltered(mut subject: impl TransportSubject) {
    let (one, two) = pair(&mut subject);
    for lane in [Lane::Control, Lane::Append] {
        for (sender, to, receiver) in [(&one, TWO, &two), (&two, ONE, &one)] {
            receiver.notes.messages.lock().clear();
            for message in every_kind() {
                sender.transport.send(to, lane, vec![message.clone()]);
                until(&mut subject, "a message arrives", || {
                    !receiver.notes.messages.lock().is_empty()
                });
                let received = std::mem::take(&mut *receiver.notes.messages.lock());
                let from = if to == ONE { TWO } else { ONE };
                assert_eq!(received, [(from, message)]);
            }
        }
    }
}

/// 0: heartbeats, 1: their answers, 2: the rest. Only a lower kind overtakes a higher one.
fn kind(message: &GroupMessage) -> u8 {
    match &message.body {
        Body::Sleep(_) => 0,
        Body::Raft(message) => match message.payload {
            Payload::Heartbeat { .. } => 0,
            Payload::HeartbeatResponse { .. } => 1,
            _ => 2,
        },
        Body::Tombstone { .. } => 2,
    }
}

fn a_lane_keeps_its_three_orders(mut subject: impl TransportSubject) {
    const MESSAGES: u64 = 600;
    let (one, two) = pair(&mut subject);
    // By group: which place among what was sent a message has. Lots of one to a few messages.
    let numbered = |n: u64| match n * 7 % 5 {
        0 | 3 => heartbeat(n, n),
        1 => raft(n, Payload::HeartbeatResponse { read: n }),
        2 => raft(n, Payload::TimeoutNow),
        _ => append(n, 10),
    };
    let mut next = 0;
    while next < MESSAGES {
        let lot = (next..(next + 1 + next % 4).min(MESSAGES)).map(numbered);
        let lot: Vec<GroupMessage> = lot.collect();
        next += lot.len() as u64;
        one.transport.send(TWO, Lane::Control, lot);
        if next.is_multiple_of(3) {
            subject.go_on();
        }
    }
    until(&mut subject, "everything arrives", || {
        two.notes.messages.lock().len() as u64 >= MESSAGES
    });
    let received = two.notes.received();
    for (at, late) in received.iter().enumerate() {
        for early in &received[..at] {
            assert_ne!(early.group, late.group, "doubled");
            let overtook = early.group > late.group;
            assert!(
                !overtook || kind(early) < kind(late),
                "{early:?} has overtaken {late:?}"
            );
        }
    }
}

fn senders_are_told_apart(mut subject: impl TransportSubject) {
    let stores: Vec<(StoreId, Store)> = [ONE, TWO, THREE]
        .map(|id| (id, start(&mut subject, id, id.0)))
        .into();
    until(&mut subject, "all are up", || {
        stores
            .iter()
            .all(|(_, store)| store.notes.ups.lock().len() == 2)
    });
    for (from, store) in &stores {
        for (to, _) in stores.iter().filter(|(to, _)| to != from) {
            let message = heartbeat(from.0, to.0);
            store.transport.send(*to, Lane::Control, vec![message]);
        }
    }
    for (to, store) in &stores {
        until(&mut subject, "both messages arrive", || {
            store.notes.messages.lock().len() == 2
        });
        let ups = store.notes.ups.lock();
        assert!(
            ups.iter()
                .all(|(up, incarnation)| up != to && up.0 == *incarnation)
        );
        for (from, message) in &*store.notes.messages.lock() {
            assert_eq!(*message, heartbeat(from.0, to.0));
        }
    }
}

fn what_does_not_fit_is_reported(mut subject: impl TransportSubject) {
    let (one, two) = pair(&mut subject);
    let groups = subject.too_many();
    let flood = (0..groups).map(|group| append(group, 1024)).collect();
    one.transport.send(TWO, Lane::Append, flood);
    one.transport
        .send(TWO, Lane::Control, vec![heartbeat(groups, 0)]);
    let accounted = || {
        let mut groups: Vec<GroupId> = two.notes.received().iter().map(|m| m.group).collect();
        for (to, lost) in &*one.notes.lost.lock() {
            assert_eq!(*to, TWO);
            let Lost::Of(lost) = lost else {
                panic!("no lane broke");
            };
            assert!(lost.is_sorted_by(|a, b| a < b), "{lost:?}");
            groups.extend(lost);
        }
        groups.sort_unstable();
        groups
    };
    until(&mut subject, "each is delivered or reported", || {
        accounted().len() as u64 > groups
    });
    assert!(
        accounted().into_iter().eq((0..=groups).map(GroupId)),
        "each once"
    );
    assert!(!one.notes.lost.lock().is_empty(), "not all have room");
    let received = two.notes.received();
    assert!(
        received.contains(&append(groups - 1, 1024)),
        "the newest has room"
    );
    assert!(
        received.contains(&heartbeat(groups, 0)),
        "lanes do not share their room"
    );
}

fn what_is_sent_to_nobody_does_no_harm(mut subject: impl TransportSubject) {
    let (one, two) = pair(&mut subject);
    one.transport.send(NOBODY, Lane::Append, every_kind());
    one.transport.send(NOBODY, Lane::Control, vec![]);
    one.transport.send(TWO, Lane::Control, vec![]);
    let sending = send_snapshot(&one, NOBODY, 1, Source::of(vec![]));
    until(&mut subject, "it is answered", || {
        sending.outcome().is_some()
    });
    assert_eq!(sending.outcome(), Some(SnapshotOutcome::Failed));
    one.transport.send(TWO, Lane::Append, vec![heartbeat(1, 1)]);
    until(&mut subject, "others are not concerned", || {
        !two.notes.messages.lock().is_empty()
    });
    assert_eq!(two.notes.received(), [heartbeat(1, 1)]);
}

fn stores_come_and_go(mut subject: impl TransportSubject) {
    let (one, two) = pair(&mut subject);
    for incarnation in 2..4 {
        one.notes.downs.lock().clear();
        subject.stop(TWO);
        until(&mut subject, "it is down", || {
            !one.notes.downs.lock().is_empty()
        });
        assert_eq!(one.notes.downs.lock()[..], [TWO]);
        one.transport.send(TWO, Lane::Append, vec![append(1, 1)]);
        let again = start(&mut subject, TWO, incarnation);
        until(&mut subject, "it is up again", || {
            one.notes.ups.lock().contains(&(TWO, incarnation))
                && again.notes.ups.lock().contains(&(ONE, 1))
        });
        flows(&mut subject, &one, TWO, &again);
        flows(&mut subject, &again, ONE, &one);
    }
    assert!(
        two.notes.received().is_empty(),
        "it was gone before anything was sent"
    );
}

/// A lane may come up later than the store is announced; Raft says things again too.
fn flows(subject: &mut impl TransportSubject, from: &Store, to: StoreId, at: &Store) {
    at.notes.messages.lock().clear();
    until(subject, "messages flow", || {
        from.transport.send(to, Lane::Append, vec![heartbeat(8, 8)]);
        at.notes.received().contains(&heartbeat(8, 8))
    });
}

/// Gives chunks, and then ends, fails, or goes on for ever.
struct Source {
    state: AppliedState,
    chunks: Vec<Bytes>,
    then: Then,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    End,
    Fail,
    Repeat,
}

impl Source {
    fn of(chunks: Vec<Bytes>) -> Self {
        Self {
            state: AppliedState::default(),
            chunks,
            then: Then::End,
        }
    }

    fn then(then: Then) -> Self {
        let chunks = vec![Bytes::from(vec![1; 1000])];
        Self {
            then,
            ..Self::of(chunks)
        }
    }
}

impl SnapshotSource for Source {
    fn state(&self) -> &AppliedState {
        &self.state
    }

    fn next_chunk(&mut self, _max_bytes: usize) -> Result<Option<Bytes>, StateMachineError> {
        if self.then == Then::Repeat {
            return Ok(self.chunks.first().cloned());
        }
        if !self.chunks.is_empty() {
            return Ok(Some(self.chunks.remove(0)));
        }
        match self.then {
            Then::Fail => Err(StateMachineError::Fatal("for the check".to_owned())),
            _ => Ok(None),
        }
    }
}

/// How a snapshot ended.
struct Sending(Arc<Mutex<Option<SnapshotOutcome>>>);

impl Sending {
    fn outcome(&self) -> Option<SnapshotOutcome> {
        *self.0.lock()
    }
}

fn header(group: u64) -> SnapshotHeader {
    let last = EntryId::new(7, 9);
    let conf_state = ConfState {
        voters: vec![ReplicaId(11), ReplicaId(12)],
        learners: vec![ReplicaId(u64::MAX)],
        ..ConfState::default()
    };
    let state = AppliedState {
        last,
        conf_state: Arc::new(conf_state.clone()),
        ..AppliedState::default()
    };
    let meta = SnapshotMeta { last, conf_state };
    let data = Bytes::new();
    SnapshotHeader {
        group: GroupId(group),
        message: message(Payload::Snapshot(Box::new(Snapshot { meta, data }))),
        state,
    }
}

fn send_snapshot(store: &Store, to: StoreId, group: u64, source: Source) -> Sending {
    let answer = Arc::new(Mutex::new(None));
    let sending = Sending(Arc::clone(&answer));
    let done = Responder::new(
        || SnapshotOutcome::Failed,
        move |outcome| *answer.lock() = Some(outcome),
    );
    let source = Box::new(source);
    store
        .transport
        .send_snapshot(to, header(group), source, done);
    sending
}

/// How many snapshots a store has taken, and how many have come to nothing.
fn taken(store: &Store) -> (usize, usize) {
    let snapshots = store.notes.snapshots.lock();
    (snapshots.finished, snapshots.abandoned)
}

fn a_snapshot_arrives_whole(mut subject: impl TransportSubject) {
    let (one, two) = pair(&mut subject);
    let chunks = (0..20u8).map(|n| Bytes::from(vec![n; 1000 * usize::from(n)]));
    for chunks in [chunks.collect(), vec![]] {
        *two.notes.snapshots.lock() = Snapshots::default();
        let expected = chunks.concat();
        let sending = send_snapshot(&one, TWO, 5, Source::of(chunks));
        until(&mut subject, "it is answered", || {
            sending.outcome().is_some()
        });
        assert_eq!(sending.outcome(), Some(SnapshotOutcome::Sent));
        assert_eq!(taken(&two), (1, 0));
        let snapshots = two.notes.snapshots.lock();
        assert_eq!(snapshots.headers, [(ONE, header(5))]);
        assert!(snapshots.data == expected, "its data is as it was");
    }
}

fn a_snapshot_that_is_refused_fails(mut subject: impl TransportSubject) {
    let (one, two) = pair(&mut subject);
    for (abandoned, group) in UNWANTED.into_iter().enumerate() {
        let sending = send_snapshot(&one, TWO, group.0, Source::then(Then::End));
        until(&mut subject, "it is answered", || {
            sending.outcome().is_some()
        });
        assert_eq!(sending.outcome(), Some(SnapshotOutcome::Failed));
        until(&mut subject, "nothing is left of it", || {
            taken(&two) == (0, abandoned)
        });
    }
}

fn a_source_that_fails_leaves_nothing(mut subject: impl TransportSubject) {
    let (one, two) = pair(&mut subject);
    let sending = send_snapshot(&one, TWO, 5, Source::then(Then::Fail));
    until(&mut subject, "it is answered", || {
        sending.outcome().is_some()
    });
    assert_eq!(sending.outcome(), Some(SnapshotOutcome::Failed));
    let begun = two.notes.snapshots.lock().headers.len();
    until(&mut subject, "nothing is left of it", || {
        taken(&two).1 == begun
    });
    assert_eq!(taken(&two).0, 0);
}

/// Begins a snapshot without an end, and waits until some of it has arrived.
fn endless(subject: &mut impl TransportSubject, one: &Store, two: &Store) -> Sending {
    let sending = send_snapshot(one, TWO, 5, Source::then(Then::Repeat));
    until(subject, "it arrives", || {
        !two.notes.snapshots.lock().data.is_empty()
    });
    sending
}

fn a_snapshot_does_not_stand_in_the_way(mut subject: impl TransportSubject) {
    let (one, two) = pair(&mut subject);
    let sending = endless(&mut subject, &one, &two);
    for n in 0..10 {
        one.transport.send(TWO, Lane::Append, vec![heartbeat(n, n)]);
        until(&mut subject, "messages arrive all the same", || {
            two.notes.received().last() == Some(&heartbeat(n, n))
        });
    }
    assert_eq!(sending.outcome(), None);
    subject.stop(ONE);
}

fn a_snapshot_ends_with_its_receiver(mut subject: impl TransportSubject) {
    let (one, two) = pair(&mut subject);
    let sending = endless(&mut subject, &one, &two);
    subject.stop(TWO);
    until(&mut subject, "it is answered", || {
        sending.outcome().is_some()
    });
    assert_eq!(sending.outcome(), Some(SnapshotOutcome::Failed));
    until(&mut subject, "nothing is left of it", || {
        taken(&two) == (0, 1)
    });
}

fn a_snapshot_ends_with_its_sender(mut subject: impl TransportSubject) {
    let (one, two) = pair(&mut subject);
    let sending = endless(&mut subject, &one, &two);
    subject.stop(ONE);
    until(&mut subject, "nothing is left of it", || {
        taken(&two) == (0, 1)
    });
    until(&mut subject, "it is answered", || {
        sending.outcome().is_some()
    });
    assert_eq!(sending.outcome(), Some(SnapshotOutcome::Failed));
}
