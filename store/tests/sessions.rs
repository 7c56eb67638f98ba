//! Sessions: one effect per command whatever arrives how often and how late, over crashes,
//! snapshots and eviction.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::Arc;

use bytes::Bytes;
use polyraft_core::EntryId;
use polyraft_multiraft::env::{ApplyItem, Command, StateMachine, StateMachineError};
use polyraft_multiraft::{AppliedState, GroupDescriptor, GroupId};
use polyraft_store::disk::{Cf, Change, Disk, DiskError, Durability, Pair};
use polyraft_store::sessions::{
    Envelope, Once, REPLY_BYTES_MAX, SESSIONS_MAX, Session, SessionId, SessionReply, WINDOW,
};
use polyraft_store::{Application, DataStateMachine, GroupTxn, MemoryDisk, Sessions};
use proptest::prelude::*;

/// A command names a key; the count there grows by one, and is the reply. `long...` has a reply too
/// long to keep.
#[derive(Clone, Copy)]
struct Count;

impl Application for Count {
    fn apply(&self, txn: &mut GroupTxn<'_>, command: &Command) -> Result<Bytes, DiskError> {
        let count = txn.get(&command.data)?.map_or(0, |count| number(&count)) + 1;
        txn.put(&command.data, Bytes::from(count.to_string()))?;
        // Values of its own are no part of the table, whatever they are called.
        txn.local_put(&[0], Bytes::from_static(b"mine"));
        if command.data.starts_with(b"long") {
            return Ok(vec![b'.'; REPLY_BYTES_MAX + 1].into());
        }
        Ok(Bytes::from(count.to_string()))
    }
}

fn number(text: &[u8]) -> u64 {
    std::str::from_utf8(text).unwrap().parse().unwrap()
}

type Machine<const MAX: u64> = DataStateMachine<Sessions<Count, MAX>, MemoryDisk>;

/// One group on one store.
struct Group<const MAX: u64> {
    disk: MemoryDisk,
    machine: Machine<MAX>,
    index: u64,
}

fn state(index: u64) -> AppliedState {
    let descriptor = GroupDescriptor {
        group: GroupId(1),
        ..GroupDescriptor::default()
    };
    AppliedState {
        last: EntryId::new(1, index),
        descriptor: Arc::new(descriptor),
        ..AppliedState::default()
    }
}

impl<const MAX: u64> Group<MAX> {
    fn new() -> Self {
        let group = Self::on(MemoryDisk::new(), 2);
        group.machine.create(&state(2)).unwrap();
        group
    }

    fn on(disk: MemoryDisk, index: u64) -> Self {
        let machine = DataStateMachine::new(Sessions::bounded(Count), disk.clone());
        Self {
            disk,
            machine,
            index,
        }
    }

    /// One turn.
    fn try_apply(&mut self, commands: &[Bytes]) -> Result<Vec<SessionReply>, StateMachineError> {
        let command = |(index, data): (u64, &Bytes)| Command {
            id: EntryId::new(1, index),
            data: data.clone(),
        };
        let last = self.index + commands.len() as u64;
        let mut items = [ApplyItem {
            group: GroupId(1),
            commands: (self.index + 1..).zip(commands).map(command).collect(),
            state: state(last),
            membership_changed: false,
            replies: Vec::new(),
            range_change: None,
        }];
        self.machine.apply(&mut items)?;
        self.index = last;
        let replies = items[0].replies.iter();
        Ok(replies.map(|r| SessionReply::decode(r).unwrap()).collect())
    }

    fn apply(&mut self, envelopes: &[Envelope]) -> Vec<SessionReply> {
        let commands: Vec<Bytes> = envelopes.iter().map(Envelope::encode).collect();
        self.try_apply(&commands).unwrap()
    }

    fn one(&mut self, envelope: &Envelope) -> SessionReply {
        self.apply(std::slice::from_ref(envelope)).remove(0)
    }

    /// Effects of the commands that name a key.
    fn count(&self, key: &str) -> u64 {
        let found = self.machine.get(&state(0).descriptor, key.as_bytes());
        found.unwrap().map_or(0, |count| number(&count))
    }

    fn contents(&self) -> Vec<Pair> {
        self.disk.scan(Cf::Data, b"", None, usize::MAX).unwrap()
    }
}

fn session(client: u64, since: u64) -> Session {
    Session::new(NonZeroU64::new(client).unwrap(), since)
}

fn envelope(client: u64, since: u64, sequence: u64, acknowledged: u64, key: &str) -> Envelope {
    let client = NonZeroU64::new(client).unwrap();
    Envelope {
        once: Some(Once {
            session: SessionId { client, since },
            sequence,
            acknowledged,
        }),
        command: Bytes::copy_from_slice(key.as_bytes()),
    }
}

fn applied(count: u64) -> SessionReply {
    SessionReply::Applied(count.to_string().into())
}

#[test]
fn a_repeated_command_has_one_effect_and_the_first_reply() {
    let mut group = Group::<SESSIONS_MAX>::new();
    let mut session = session(7, 0);
    let mut next = |key: &'static str| session.begin(Bytes::from_static(key.as_bytes())).unwrap();
    let (a, b) = (next("k"), next("k"));
    // In one turn, in another one, and in any order.
    assert_eq!(
        group.apply(&[b.clone(), b.clone()]),
        [applied(1), applied(1)]
    );
    assert_eq!(group.apply(&[a.clone(), b]), [applied(2), applied(1)]);
    assert_eq!(group.one(&a), applied(2));
    assert_eq!(group.count("k"), 2);
    // Another client's command with the same number is another command.
    assert_eq!(group.one(&envelope(8, 0, 1, 1, "k")), applied(3));
    // So is the same client's in another session.
    assert_eq!(group.one(&envelope(7, 1, 1, 1, "k")), applied(4));
}

#[test]
fn without_a_session_every_copy_is_a_command() {
    let mut group = Group::<SESSIONS_MAX>::new();
    let plain = Envelope {
        once: None,
        command: Bytes::from_static(b"k"),
    };
    let before = group.contents().len();
    assert_eq!(
        group.apply(&[plain.clone(), plain]),
        [applied(1), applied(2)]
    );
    // The key and the application's own value.
    assert_eq!(group.contents().len() - before, 2);
}

#[test]
fn what_is_acknowledged_is_refused_and_forgotten() {
    let mut group = Group::<SESSIONS_MAX>::new();
    let late = envelope(7, 0, 2, 1, "late");
    assert_eq!(group.one(&envelope(7, 0, 1, 1, "k")), applied(1));
    assert_eq!(group.one(&envelope(7, 0, 3, 3, "k")), applied(2));
    assert_eq!(
        group.one(&envelope(7, 0, 1, 1, "k")),
        SessionReply::Acknowledged
    );
    assert_eq!(group.one(&late), SessionReply::Acknowledged);
    assert_eq!((group.count("k"), group.count("late")), (2, 0));
    // An older word on what is acknowledged takes nothing back.
    assert_eq!(group.one(&envelope(7, 0, 4, 1, "k")), applied(3));
    assert_eq!(group.one(&late), SessionReply::Acknowledged);
    let size = |group: &Group<SESSIONS_MAX>| -> usize {
        group.contents().iter().map(|(_, value)| value.len()).sum()
    };
    let before = size(&group);
    for sequence in 5..9 {
        group.one(&envelope(7, 0, sequence, sequence, "k"));
    }
    assert!(size(&group) <= before, "replies are kept for nobody");
}

#[test]
fn a_session_is_bounded() {
    let mut group = Group::<SESSIONS_MAX>::new();
    assert_eq!(group.one(&envelope(7, 0, WINDOW, 1, "k")), applied(1));
    let far = envelope(7, 0, WINDOW + 1, 1, "k");
    assert_eq!(group.one(&far), SessionReply::TooFarAhead);
    // As the first command of a session it does not even begin one.
    let first = envelope(8, 0, WINDOW + 1, 1, "k");
    let before = group.contents().len();
    assert_eq!(group.one(&first), SessionReply::TooFarAhead);
    assert_eq!(group.contents().len(), before);
    let nearer = envelope(7, 0, WINDOW + 1, 2, "k");
    assert_eq!(group.one(&nearer), applied(2));
    assert_eq!(
        group.one(&envelope(9, 0, u64::MAX, u64::MAX, "k")),
        applied(3)
    );
    assert_eq!(
        group.one(&envelope(9, 0, u64::MAX, u64::MAX, "k")),
        applied(3)
    );
}

#[test]
fn a_long_reply_is_not_kept_but_its_effect_is_known() {
    let mut group = Group::<SESSIONS_MAX>::new();
    let long = envelope(7, 0, 1, 1, "long");
    assert!(
        matches!(group.one(&long), SessionReply::Applied(reply) if reply.len() > REPLY_BYTES_MAX)
    );
    assert_eq!(group.one(&long), SessionReply::AppliedBefore);
    assert_eq!(group.count("long"), 1);
    // Short ones beside it are.
    assert_eq!(group.one(&envelope(7, 0, 2, 1, "k")), applied(1));
    assert_eq!(group.one(&envelope(7, 0, 2, 1, "k")), applied(1));
}

#[test]
fn a_late_copy_from_an_evicted_session_is_never_a_first_one() {
    let mut group = Group::<3>::new();
    let (done, lost) = (envelope(1, 0, 1, 1, "done"), envelope(1, 0, 2, 1, "lost"));
    assert_eq!(group.one(&done), applied(1));
    for client in 2..=4 {
        assert_eq!(
            group.one(&envelope(client, 0, 1, 1, "k")),
            applied(client - 1)
        );
    }
    // Client 1 is evicted. Neither a copy of what was applied nor one of what was not has any
    // effect, ever.
    for copy in [&done, &lost, &done] {
        let index = group.index + 1;
        assert_eq!(group.one(copy), SessionReply::Expired { index });
    }
    assert_eq!((group.count("done"), group.count("lost")), (1, 0));
    // It begins anew since the index of the refusal, and evicts client 2, which was not heard for
    // longest.
    let since = group.index;
    assert_eq!(group.one(&envelope(1, since, 3, 3, "new")), applied(1));
    assert!(matches!(
        group.one(&envelope(2, 0, 1, 1, "k")),
        SessionReply::Expired { .. }
    ));
    assert_eq!(group.one(&envelope(3, 0, 1, 1, "k")), applied(2));
    assert!(matches!(group.one(&done), SessionReply::Expired { .. }));
    // A new client that knows nothing is refused and told what to say; one that knows a recent
    // index is not.
    let index = group.index + 1;
    assert_eq!(
        group.one(&envelope(9, 0, 1, 1, "k")),
        SessionReply::Expired { index }
    );
    assert_eq!(group.one(&envelope(9, index, 1, 1, "k")), applied(4));
    // Nobody can be in the future: such a session could come back after its eviction.
    let index = group.index + 1;
    let future = envelope(9, index, 1, 1, "future");
    assert_eq!(group.one(&future), SessionReply::Expired { index });
    assert_eq!(group.count("future"), 0);
}

#[test]
fn a_full_table_forgets_the_session_used_least_recently() {
    let mut group = Group::<SESSIONS_MAX>::new();
    let all: Vec<Envelope> = (1..=SESSIONS_MAX)
        .map(|client| envelope(client, 0, 1, 1, "k"))
        .collect();
    for (at, reply) in (1..).zip(group.apply(&all)) {
        assert_eq!(reply, applied(at));
    }
    // All but client 3 are used again: whoever comes to the front of the queue has moved since.
    let again: Vec<Envelope> = all
        .iter()
        .enumerate()
        .filter(|(at, _)| *at != 2)
        .map(|(_, e)| e.clone())
        .collect();
    group.apply(&again);
    assert_eq!(group.count("k"), SESSIONS_MAX);
    let before = group.contents().len();
    assert_eq!(group.one(&envelope(9999, 0, 1, 1, "new")), applied(1));
    assert_eq!(
        group.one(&envelope(10000, group.index, 1, 1, "new")),
        applied(2)
    );
    // One key more; as many sessions and places as before.
    assert_eq!(group.contents().len(), before + 1);
    for (at, reply) in group.apply(&all).into_iter().enumerate() {
        let gone = at == 2 || at == 0;
        assert_eq!(
            matches!(reply, SessionReply::Expired { .. }),
            gone,
            "client {}",
            at + 1
        );
    }
    assert_eq!(group.count("k"), SESSIONS_MAX);
}

#[test]
fn malformed_envelopes_get_an_answer_and_change_nothing() {
    let mut group = Group::<SESSIONS_MAX>::new();
    let whole = envelope(7, 0, 1, 1, "k").encode();
    let mut bad: Vec<Bytes> = (1..whole.len())
        .map(|length| whole.slice(..length))
        .collect();
    bad.push(Bytes::from_static(b"\x02whatever that will mean"));
    bad.push(envelope(7, 0, 1, 2, "k").encode());
    let before = group.contents().len();
    for (reply, bytes) in group.try_apply(&bad).unwrap().into_iter().zip(&bad) {
        assert_eq!(reply, SessionReply::Malformed, "{bytes:?}");
    }
    assert_eq!(group.contents().len(), before);
}

#[test]
fn a_crash_loses_effect_and_record_together() {
    let mut group = Group::<2>::new();
    group.one(&envelope(1, 0, 1, 1, "a"));
    group.machine.flush().unwrap();
    let flushed = group.index;
    let turn = [
        envelope(1, 0, 2, 1, "b"),
        envelope(2, 0, 1, 1, "b"),
        envelope(3, 0, 1, 1, "b"),
    ];
    let replies = group.apply(&turn);
    assert_eq!(replies, [applied(1), applied(2), applied(3)]);
    let mut after = Group::<2>::on(group.disk.crash(0), flushed);
    assert_eq!(after.machine.recover().unwrap(), [state(flushed)]);
    assert_eq!((after.count("a"), after.count("b")), (1, 0));
    // From the log the same comes out, also who is evicted.
    assert_eq!(after.apply(&turn), replies);
    assert_eq!(after.contents(), group.contents());
    for group in [&mut group, &mut after] {
        let index = group.index + 1;
        assert_eq!(group.one(&turn[0]), SessionReply::Expired { index });
        assert_eq!(group.one(&turn[1]), applied(2));
    }
}

#[test]
fn a_snapshot_carries_the_sessions_and_destruction_takes_them() {
    let mut group = Group::<2>::new();
    for client in 1..=3 {
        group.one(&envelope(client, 0, 1, 1, "k"));
    }
    let mut other = Group::<2>::new();
    other.one(&envelope(8, 0, 1, 1, "stale"));
    let mut source = group.machine.snapshot(GroupId(1)).unwrap();
    let mut sink = other.machine.stage(source.state()).unwrap();
    while let Some(chunk) = source.next_chunk(40).unwrap() {
        sink.write(chunk).unwrap();
    }
    other.machine.restore(&sink.finish().unwrap()).unwrap();
    other.index = group.index;
    // Behind the applied index and the membership.
    assert_eq!(other.contents()[2..], group.contents()[2..]);
    let index = other.index + 1;
    assert_eq!(
        other.one(&envelope(1, 0, 1, 1, "k")),
        SessionReply::Expired { index }
    );
    assert_eq!(
        other.one(&envelope(8, 0, 1, 1, "k")),
        SessionReply::Expired { index: index + 1 }
    );
    assert_eq!(other.one(&envelope(2, 0, 1, 1, "k")), applied(2));
    other.machine.destroy(&state(0).descriptor).unwrap();
    assert_eq!(other.contents(), []);
}

#[test]
fn a_damaged_table_is_an_error() {
    let used = || {
        let mut group = Group::<2>::new();
        group.apply(&[envelope(1, 0, 1, 1, "k"), envelope(2, 0, 1, 1, "k")]);
        group
    };
    let of_sessions = |(key, _): &Pair| key.starts_with(b"\0\0\0\0\0\0\0\0\x01\x06");
    let table: Vec<Pair> = used().contents().into_iter().filter(of_sessions).collect();
    assert_eq!(
        table.len(),
        5,
        "a head, and a session and a place in the queue for each"
    );
    // The first client moves in the queue, the second makes room: all that is there is read.
    let commands = [
        envelope(1, 0, 1, 1, "k").encode(),
        envelope(3, 0, 1, 1, "k").encode(),
    ];
    assert!(used().try_apply(&commands).is_ok());
    for (key, value) in table {
        let short = value.slice(..value.len() - 1);
        for bad in [Bytes::new(), Bytes::from_static(b"\x09"), short] {
            let mut group = used();
            let change = Change::Put(key.clone(), bad);
            let batch = vec![(Cf::Data, change)];
            group.disk.write(batch, Durability::Synced).unwrap();
            let result = group.try_apply(&commands);
            assert!(
                matches!(result, Err(StateMachineError::Fatal(_))),
                "{key:?}: {result:?}"
            );
        }
    }
}

/// What happens next to a group with few sessions and its clients.
#[derive(Clone, Debug)]
enum Step {
    /// A client has a new command: a copy of it arrives, or is lost.
    Begin { client: usize, arrives: bool },
    /// A copy of an old command arrives.
    Late { which: prop::sample::Index },
    /// A client needs one of its open commands no more.
    End {
        client: usize,
        which: prop::sample::Index,
    },
    /// All that was applied survives a crash from now on.
    Flush,
    /// The store crashes, and applies again from the log.
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    let client = 0..CLIENTS;
    let index = any::<prop::sample::Index>;
    prop_oneof![
        6 => (client.clone(), any::<bool>()).prop_map(|(client, arrives)| Step::Begin { client, arrives }),
        6 => index().prop_map(|which| Step::Late { which }),
        3 => (client, index()).prop_map(|(client, which)| Step::End { client, which }),
        1 => Just(Step::Flush),
        1 => Just(Step::Crash),
    ]
}

const CLIENTS: usize = 5;
const KNOWN: u64 = 3;

/// What a group should know, written down in the plainest way.
#[derive(Clone, Default)]
struct Model {
    sessions: Vec<(SessionId, ModelSession)>,
    horizon: u64,
    effects: BTreeMap<Bytes, u64>,
}

#[derive(Clone, Default)]
struct ModelSession {
    last: u64,
    acknowledged: u64,
    replies: BTreeMap<u64, SessionReply>,
}

impl Model {
    fn apply(&mut self, index: u64, envelope: &Envelope) -> SessionReply {
        let once = envelope.once.unwrap();
        let at = self.sessions.iter().position(|(id, _)| *id == once.session);
        let since = once.session.since;
        if at.is_none() && (since < self.horizon || since >= index) {
            return SessionReply::Expired { index };
        }
        let mut session = at.map_or_else(ModelSession::default, |at| self.sessions[at].1.clone());
        session.acknowledged = session.acknowledged.max(once.acknowledged);
        if once.sequence < session.acknowledged {
            return SessionReply::Acknowledged;
        }
        if once.sequence - session.acknowledged >= WINDOW {
            return SessionReply::TooFarAhead;
        }
        let effects = &mut self.effects;
        let reply = session.replies.entry(once.sequence).or_insert_with(|| {
            let count = effects.entry(envelope.command.clone()).or_default();
            *count += 1;
            applied(*count)
        });
        let reply = reply.clone();
        session.last = index;
        if let Some(at) = at {
            self.sessions.remove(at);
        } else if self.sessions.len() as u64 == KNOWN {
            let oldest = self.sessions.iter().min_by_key(|(_, session)| session.last);
            let (id, last) = oldest.map(|(id, session)| (*id, session.last)).unwrap();
            self.sessions.retain(|(known, _)| *known != id);
            self.horizon = last;
        }
        self.sessions.push((once.session, session));
        reply
    }
}

/// A group, its log, its clients and what is expected of them.
struct World {
    group: Group<KNOWN>,
    log: Vec<(Bytes, SessionReply)>,
    flushed: u64,
    model: Model,
    clients: Vec<Session>,
    open: Vec<Vec<u64>>,
    sent: Vec<Envelope>,
}

impl World {
    fn new() -> Self {
        let clients = (1..=CLIENTS as u64).map(|client| session(client, 0));
        Self {
            group: Group::new(),
            log: Vec::new(),
            flushed: 2,
            model: Model::default(),
            clients: clients.collect(),
            open: vec![Vec::new(); CLIENTS],
            sent: Vec::new(),
        }
    }

    fn arrive(&mut self, envelope: &Envelope) {
        let reply = self.group.one(envelope);
        let expected = self.model.apply(self.group.index, envelope);
        assert_eq!(reply, expected, "{envelope:?}");
        let key = std::str::from_utf8(&envelope.command).unwrap();
        let effects = self.group.count(key);
        assert!(effects <= 1, "{envelope:?} had {effects} effects");
        let once = envelope.once.unwrap();
        match reply {
            SessionReply::Applied(_) => assert_eq!(effects, 1),
            SessionReply::Expired { index } => {
                let client = usize::try_from(once.session.client.get() - 1).unwrap();
                if self.clients[client].id() == once.session {
                    self.open[client].clear();
                }
                self.clients[client].renew(once.session, index);
            }
            _ => {}
        }
        self.log.push((envelope.encode(), expected));
    }

    fn crash(&mut self) {
        self.group = Group::on(self.group.disk.crash(0), self.flushed);
        let applied = usize::try_from(self.flushed - 2).unwrap();
        let again: Vec<Bytes> = self.log[applied..]
            .iter()
            .map(|(bytes, _)| bytes.clone())
            .collect();
        let replies = self.group.try_apply(&again).unwrap();
        let expected = self.log[applied..].iter().map(|(_, reply)| reply);
        assert!(replies.iter().eq(expected));
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Begin { client, arrives } => {
                let key = Bytes::from(format!("command {}", self.sent.len()));
                let Some(envelope) = self.clients[client].begin(key) else {
                    return;
                };
                self.open[client].extend(envelope.once.map(|once| once.sequence));
                self.sent.push(envelope.clone());
                if arrives {
                    self.arrive(&envelope);
                }
            }
            Step::Late { which } if !self.sent.is_empty() => {
                let envelope = self.sent[which.index(self.sent.len())].clone();
                self.arrive(&envelope);
            }
            Step::End { client, which } if !self.open[client].is_empty() => {
                let at = which.index(self.open[client].len());
                let sequence = self.open[client].remove(at);
                self.clients[client].end(sequence);
            }
            Step::Late { .. } | Step::End { .. } => {}
            Step::Flush => {
                self.group.machine.flush().unwrap();
                self.flushed = self.group.index;
            }
            Step::Crash => self.crash(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_command_has_two_effects(steps in prop::collection::vec(step(), 1..200)) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
    }
}
