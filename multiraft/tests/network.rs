//! The network in memory: it keeps the contract of a transport, and what a simulator does with it.

use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use polyraft_core::{Message, Payload, ReplicaId, SnapshotOutcome, Term};
use polyraft_multiraft::env::conformance::{
    MemoryNetwork, MemoryTransport, Transit, TransitKind, TransportSubject, transport,
};
use polyraft_multiraft::env::{
    Body, GroupMessage, Inbound, Lane, Lost, SnapshotHeader, SnapshotReceiver, SnapshotRefusal,
    SnapshotSource, StateMachineError, Transport,
};
use polyraft_multiraft::{AppliedState, GroupId, Responder, StoreId};

const ROOM: usize = 1000;

struct Subject(MemoryNetwork);

impl TransportSubject for Subject {
    fn start(
        &mut self,
        store: StoreId,
        incarnation: u64,
        inbound: Arc<dyn Inbound>,
    ) -> Arc<dyn Transport> {
        Arc::new(self.0.join(store, incarnation, inbound))
    }

    fn stop(&mut self, store: StoreId) {
        self.0.leave(store);
    }

    fn go_on(&mut self) {
        self.0.run();
    }

    fn too_many(&self) -> u64 {
        2 * ROOM as u64
    }
}

#[test]
fn the_network_in_memory_keeps_the_contract() {
    transport(|| Subject(MemoryNetwork::new(ROOM)));
}

/// Does with the network what a sound one does not.
struct Flawed(Subject, fn(&MemoryNetwork));

impl TransportSubject for Flawed {
    fn start(
        &mut self,
        store: StoreId,
        incarnation: u64,
        inbound: Arc<dyn Inbound>,
    ) -> Arc<dyn Transport> {
        self.0.start(store, incarnation, inbound)
    }

    fn stop(&mut self, store: StoreId) {
        self.0.stop(store);
    }

    fn go_on(&mut self) {
        (self.1)(&self.0.0);
        self.0.go_on();
    }

    fn too_many(&self) -> u64 {
        self.0.too_many()
    }
}

/// Numbers of the frames and the snapshots under way.
fn frames_and_snapshots(network: &MemoryNetwork) -> (Vec<u64>, Vec<u64>) {
    let mut all = network.under_way();
    all.retain(|transit| !matches!(transit.kind, TransitKind::News(_)));
    let (frames, snapshots): (Vec<_>, Vec<_>) = all
        .into_iter()
        .partition(|transit| transit.kind != TransitKind::Snapshot);
    let number = |transits: Vec<Transit>| transits.iter().map(|transit| transit.number).collect();
    (number(frames), number(snapshots))
}

#[test]
fn the_suite_notices_what_is_not_sound() {
    let flaws: [fn(&MemoryNetwork); 4] = [
        |network| {
            for frame in frames_and_snapshots(network).0.iter().rev() {
                network.arrive(*frame);
            }
        },
        |network| {
            for frame in frames_and_snapshots(network).0.iter().take(1) {
                network.double(*frame);
            }
        },
        |network| {
            for frame in frames_and_snapshots(network).0.iter().take(1) {
                network.lose(*frame);
            }
        },
        |network| {
            for snapshot in frames_and_snapshots(network).1 {
                network.lose(snapshot);
            }
        },
    ];
    for (number, flaw) in flaws.into_iter().enumerate() {
        let suite = || transport(|| Flawed(Subject(MemoryNetwork::new(ROOM)), flaw));
        assert!(std::panic::catch_unwind(suite).is_err(), "flaw {number}");
    }
}

/// What a store was told, in words, and how often it sends when it is told something.
#[derive(Default)]
struct Notes {
    told: Mutex<Vec<String>>,
    answers_by: Mutex<Option<MemoryTransport>>,
}

impl Notes {
    fn tell(&self, what: String) {
        self.told.lock().expect("nobody panics with it").push(what);
    }

    fn told(&self) -> Vec<String> {
        std::mem::take(&mut *self.told.lock().expect("nobody panics with it"))
    }

    fn answers_by(&self) -> MutexGuard<'_, Option<MemoryTransport>> {
        self.answers_by.lock().expect("nobody panics with it")
    }
}

struct Receiver(Arc<Notes>);

impl SnapshotReceiver for Receiver {
    fn write(&mut self, chunk: Bytes) -> Result<(), SnapshotRefusal> {
        self.0.tell(format!("chunk of {}", chunk.len()));
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(), SnapshotRefusal> {
        self.0.tell("finished".to_owned());
        Ok(())
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.0.tell("gone".to_owned());
    }
}

/// An end of the network that can hand itself out.
struct End(Arc<Notes>);

impl Inbound for End {
    fn deliver(&self, from: StoreId, messages: Vec<GroupMessage>) {
        let groups: Vec<u64> = messages.iter().map(|message| message.group.0).collect();
        self.0.tell(format!("{from}: {groups:?}"));
        // Calls back into the network, as a host on one thread may.
        if let Some(transport) = &*self.0.answers_by() {
            transport.send(from, Lane::Append, messages);
        }
    }

    fn store_up(&self, store: StoreId, incarnation: u64) {
        self.0.tell(format!("{store} up as {incarnation}"));
    }

    fn store_down(&self, store: StoreId) {
        self.0.tell(format!("{store} down"));
    }

    fn lost(&self, to: StoreId, messages: Lost) {
        self.0.tell(format!("lost to {to}: {messages:?}"));
    }

    fn begin_snapshot(
        &self,
        _from: StoreId,
        _header: SnapshotHeader,
    ) -> Result<Box<dyn SnapshotReceiver>, SnapshotRefusal> {
        Ok(Box::new(Receiver(Arc::clone(&self.0))))
    }
}

fn join(network: &MemoryNetwork, store: u64, incarnation: u64) -> (MemoryTransport, Arc<Notes>) {
    let notes = Arc::new(Notes::default());
    let inbound = Arc::new(End(Arc::clone(&notes)));
    let transport = network.join(StoreId(store), incarnation, inbound);
    (transport, notes)
}

fn message(group: u64) -> GroupMessage {
    let message = Message {
        from: ReplicaId(1),
        to: ReplicaId(2),
        term: Term(1),
        payload: Payload::TimeoutNow,
    };
    GroupMessage {
        group: GroupId(group),
        body: Body::Raft(message),
    }
}

fn send(transport: &MemoryTransport, to: u64, groups: &[u64]) {
    let messages = groups.iter().copied().map(message).collect();
    transport.send(StoreId(to), Lane::Append, messages);
}

/// Two stores, and nothing under way between them.
fn pair() -> (MemoryNetwork, [(MemoryTransport, Arc<Notes>); 2]) {
    let network = MemoryNetwork::new(ROOM);
    let ends = [join(&network, 1, 1), join(&network, 2, 1)];
    network.run();
    assert_eq!(ends[0].1.told(), ["2 up as 1"]);
    assert_eq!(ends[1].1.told(), ["1 up as 1"]);
    (network, ends)
}

#[test]
fn what_is_under_way_arrives_in_any_order_twice_or_never() {
    let (network, [(one, _), (_two, told)]) = pair();
    for group in 1..=4 {
        send(&one, 2, &[group, 10 * group]);
    }
    let all = network.under_way();
    assert!(
        all.iter()
            .all(|transit| transit.kind == TransitKind::Frame(Lane::Append, 2))
    );
    let numbers: Vec<u64> = all.iter().map(|transit| transit.number).collect();
    assert!(told.told().is_empty(), "nothing happens by itself");
    assert!(network.arrive(numbers[2]));
    let again = network.double(numbers[0]).expect("it is a frame");
    assert!(network.lose(numbers[3]));
    assert!(network.arrive(again));
    assert_eq!(network.run(), 2);
    assert_eq!(
        told.told(),
        ["1: [3, 30]", "1: [1, 10]", "1: [1, 10]", "1: [2, 20]"]
    );
    assert!(!network.arrive(numbers[0]) && !network.lose(again));
    assert_eq!(network.double(numbers[0]), None);
    let stats = network.stats();
    assert_eq!((stats.sent, stats.delivered, stats.dropped), (8, 8, 2));
}

#[test]
fn a_cut_is_one_way_for_messages_and_both_for_who_is_up() {
    let (network, [(one, told_one), (two, told_two)]) = pair();
    send(&one, 2, &[1]);
    send(&two, 1, &[2]);
    network.cut(StoreId(1), StoreId(2));
    network.cut(StoreId(1), StoreId(2));
    send(&one, 2, &[3]);
    send(&two, 1, &[4]);
    network.run();
    assert_eq!(told_one.told(), ["2: [2]", "2 down", "2: [4]"]);
    assert_eq!(told_two.told(), ["1 down"]);
    network.mend(StoreId(1), StoreId(2));
    send(&one, 2, &[5]);
    network.run();
    assert_eq!(told_one.told(), ["2 up as 1"]);
    assert_eq!(told_two.told(), ["1 up as 1", "1: [5]"]);
    assert_eq!(network.stats().dropped, 2);
}

#[test]
fn what_an_earlier_incarnation_has_sent_may_arrive_and_it_sends_no_more() {
    let (network, [(one, _), (_two, told)]) = pair();
    send(&one, 2, &[1]);
    let (again, told_again) = join(&network, 1, 2);
    send(&one, 2, &[2]);
    send(&again, 2, &[3]);
    network.run();
    assert_eq!(told.told(), ["1: [1]", "1 down", "1 up as 2", "1: [3]"]);
    assert_eq!(told_again.told(), ["2 up as 1"]);
}

#[test]
fn the_oldest_go_where_there_is_no_room() {
    let network = MemoryNetwork::new(3);
    let ((one, told), (_two, told_two)) = (join(&network, 1, 1), join(&network, 2, 1));
    network.run();
    told.told();
    told_two.told();
    send(&one, 2, &[5, 4]);
    send(&one, 2, &[3, 2]);
    assert_eq!(told.told(), ["lost to 2: Of([GroupId(5)])"]);
    send(&one, 2, &[1, 1, 1, 1]);
    assert_eq!(
        told.told(),
        ["lost to 2: Of([GroupId(1), GroupId(2), GroupId(3), GroupId(4)])"]
    );
    network.run();
    assert_eq!(told_two.told(), ["1: [1, 1, 1]"]);
    assert_eq!(network.stats().dropped, 5);
}

#[test]
fn a_host_may_send_while_it_is_given_something() {
    let (network, [(one, told_one), (two, told_two)]) = pair();
    *told_two.answers_by() = Some(two);
    send(&one, 2, &[1]);
    assert_eq!(network.run(), 1);
    assert_eq!(network.run(), 1);
    assert_eq!(told_one.told(), ["2: [1]"]);
    assert_eq!(told_two.told(), ["1: [1]"]);
    *told_two.answers_by() = None;
}

struct Chunks(AppliedState, usize);

impl SnapshotSource for Chunks {
    fn state(&self) -> &AppliedState {
        &self.0
    }

    fn next_chunk(&mut self, _max_bytes: usize) -> Result<Option<Bytes>, StateMachineError> {
        let left = self.1;
        self.1 = left.saturating_sub(1);
        Ok((left > 0).then(|| Bytes::from(vec![0; left])))
    }
}

fn send_snapshot(one: &MemoryTransport) -> Arc<Mutex<Option<SnapshotOutcome>>> {
    let answer = Arc::new(Mutex::new(None));
    let note = Arc::clone(&answer);
    let done = Responder::new(
        || SnapshotOutcome::Failed,
        move |outcome| *note.lock().expect("nobody panics with it") = Some(outcome),
    );
    let payload = Payload::Snapshot(Box::default());
    let GroupMessage { group, body } = message(1);
    let Body::Raft(message) = body else {
        unreachable!("made so");
    };
    let header = SnapshotHeader {
        group,
        message: Message { payload, ..message },
        state: AppliedState::default(),
    };
    let source = Box::new(Chunks(AppliedState::default(), 2));
    one.send_snapshot(StoreId(2), header, source, done);
    answer
}

#[test]
fn a_snapshot_goes_part_by_part_and_may_break_off_at_each() {
    let outcome =
        |answer: &Mutex<Option<SnapshotOutcome>>| *answer.lock().expect("nobody panics with it");
    let parts = ["chunk of 2", "chunk of 1", "finished", "gone"];
    for turns in 0..=4 {
        let (network, [(one, _), (_two, told)]) = pair();
        let answer = send_snapshot(&one);
        let transit = network.under_way();
        assert_eq!(transit[0].kind, TransitKind::Snapshot);
        for _ in 0..turns {
            assert_eq!(outcome(&answer), None);
            assert!(network.arrive(transit[0].number));
        }
        if turns == 4 {
            assert_eq!(outcome(&answer), Some(SnapshotOutcome::Sent));
            assert_eq!(told.told(), parts);
            assert!(network.under_way().is_empty());
            continue;
        }
        // Lost, cut off, or without one of its ends: it has failed, and nothing is left.
        match turns {
            0 | 3 => assert!(network.lose(transit[0].number)),
            1 => network.cut(StoreId(1), StoreId(2)),
            _ => network.leave(StoreId(1)),
        }
        assert_eq!(outcome(&answer), Some(SnapshotOutcome::Failed));
        let told = told.told();
        let begun = turns > 0;
        assert_eq!(told.last().map(String::as_str), begun.then_some("gone"));
        assert_eq!(told.len(), usize::from(begun) * turns);
    }
}
