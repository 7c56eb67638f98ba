//! Sessions of groups that split and merge: one effect per command, whichever group its copies reach, and
//! however late; nothing is refused for ever, and no table grows beyond its bound.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::Arc;

use bytes::Bytes;
use polyraft_core::EntryId;
use polyraft_multiraft::env::{ApplyItem, Command, RangeChange, SplitRight, StateMachine};
use polyraft_multiraft::{AppliedState, Epoch, Frozen, GroupDescriptor, GroupId, KeyRange};
use polyraft_store::disk::{Cf, Disk, DiskError};
use polyraft_store::sessions::{Envelope, Session, SessionId, SessionReply, WINDOW};
use polyraft_store::{Application, DataStateMachine, GroupTxn, MemoryDisk, Sessions};
use proptest::prelude::*;

/// A command names a key; the count there grows by one, and is the reply.
#[derive(Clone, Copy)]
struct Count;

const REFUSAL: &[u8] = b"not here";

impl Application for Count {
    fn apply(&self, txn: &mut GroupTxn<'_>, command: &Command) -> Result<Bytes, DiskError> {
        let count = txn.get(&command.data)?.map_or(0, |count| number(&count)) + 1;
        let count = Bytes::from(count.to_string());
        txn.put(&command.data, count.clone())?;
        Ok(count)
    }

    fn refuse(&self, descriptor: &GroupDescriptor, command: &Command) -> Option<Bytes> {
        let range = descriptor.range.as_ref()?;
        (!range.contains(&command.data)).then(|| Bytes::from_static(REFUSAL))
    }
}

fn number(text: &[u8]) -> u64 {
    std::str::from_utf8(text).unwrap().parse().unwrap()
}

/// Sessions that a group knows.
const KNOWN: usize = 3;
const CLIENTS: usize = 5;
const BEGIN: EntryId = EntryId::new(1, 2);

type Machine = DataStateMachine<Sessions<Count, { KNOWN as u64 }>, MemoryDisk>;

/// What a group should know, written down in the plainest way.
#[derive(Clone, Default)]
struct Model {
    sessions: Vec<(SessionId, ModelSession)>,
    horizon: u64,
    offset: u64,
}

#[derive(Clone, Default)]
struct ModelSession {
    last: u64,
    acknowledged: u64,
    replies: BTreeMap<u64, SessionReply>,
}

impl Model {
    fn find(&self, id: SessionId) -> Option<&ModelSession> {
        let found = self.sessions.iter().find(|(known, _)| *known == id);
        found.map(|(_, session)| session)
    }

    /// Who was not used for longest goes, until there is room for `room` more.
    fn evict(&mut self, room: usize) {
        self.sessions
            .sort_by_key(|(id, session)| (session.last, *id));
        while self.sessions.len() + room > KNOWN {
            let (_, session) = self.sessions.remove(0);
            self.horizon = self.horizon.max(session.last);
        }
    }

    fn apply(
        &mut self,
        index: u64,
        here: bool,
        envelope: &Envelope,
        effects: &mut BTreeMap<Bytes, u64>,
    ) -> SessionReply {
        let once = envelope.once.unwrap();
        let clock = index + self.offset;
        let known = self.find(once.session).cloned();
        let is_new = known.is_none();
        let mut session = known.unwrap_or_default();
        if !session.replies.contains_key(&once.sequence) {
            if !here {
                return SessionReply::Refused(Bytes::from_static(REFUSAL));
            }
            let since = once.session.since;
            if is_new && (since < self.horizon || since >= clock) {
                return SessionReply::Expired { index: clock };
            }
        }
        session.acknowledged = session.acknowledged.max(once.acknowledged);
        if once.sequence < session.acknowledged {
            return SessionReply::Acknowledged;
        }
        if once.sequence - session.acknowledged >= WINDOW {
            return SessionReply::TooFarAhead;
        }
        let reply = session.replies.entry(once.sequence).or_insert_with(|| {
            let count = effects.entry(envelope.command.clone()).or_default();
            *count += 1;
            SessionReply::Applied(count.to_string().into())
        });
        let reply = reply.clone();
        session.last = clock;
        let acknowledged = session.acknowledged;
        session
            .replies
            .retain(|sequence, _| *sequence >= acknowledged);
        self.sessions.retain(|(known, _)| *known != once.session);
        if is_new {
            self.evict(1);
        }
        self.sessions.push((once.session, session));
        reply
    }

    fn split(&self, at: u64) -> Self {
        let offset = at + self.offset - BEGIN.index.0;
        let model = self.clone();
        Self { offset, ..model }
    }

    fn merge(&mut self, at: u64, right: &Self, frozen: u64) {
        let mut all: BTreeMap<SessionId, ModelSession> = BTreeMap::new();
        for (one, other) in [(&*self, right), (right, &*self)] {
            for (id, session) in &one.sessions {
                if other.find(*id).is_none() && id.since < other.horizon {
                    continue;
                }
                let united = all.entry(*id).or_default();
                united.last = united.last.max(session.last);
                united.acknowledged = united.acknowledged.max(session.acknowledged);
                for (sequence, reply) in &session.replies {
                    let before = united.replies.insert(*sequence, reply.clone());
                    assert!(before.is_none_or(|before| before == *reply));
                }
            }
        }
        let clock = (at + self.offset).max(frozen + right.offset);
        self.horizon = self.horizon.max(right.horizon);
        self.sessions = all.into_iter().collect();
        self.evict(0);
        let mut last = self.horizon;
        for (_, session) in &mut self.sessions {
            let acknowledged = session.acknowledged;
            session
                .replies
                .retain(|sequence, _| *sequence >= acknowledged);
            session.last = session.last.max(last + 1);
            last = session.last;
        }
        self.offset = clock.max(last) - at;
    }
}

/// One group, and what it should know.
#[derive(Clone)]
struct Group {
    state: AppliedState,
    model: Model,
}

impl Group {
    fn range(&self) -> &KeyRange {
        self.state.descriptor.range.as_ref().unwrap()
    }

    fn holds(&self, key: &[u8]) -> bool {
        self.range().contains(key)
    }

    /// Its state one entry later, after a change.
    fn after(&self, change: impl FnOnce(&mut GroupDescriptor)) -> AppliedState {
        let mut state = self.state.clone();
        state.last = EntryId::new(1, state.last.index.0 + 1);
        let mut descriptor = GroupDescriptor::clone(&state.descriptor);
        change(&mut descriptor);
        state.descriptor = Arc::new(descriptor);
        state
    }
}

/// What was applied, to be applied again after a crash, and what came of it.
#[derive(Clone)]
struct Logged {
    state: AppliedState,
    data: Option<Bytes>,
    change: Option<RangeChange>,
    reply: Option<Bytes>,
}

struct World {
    disk: MemoryDisk,
    machine: Machine,
    /// In the order of their keys.
    groups: Vec<Group>,
    next_group: u64,
    effects: BTreeMap<Bytes, u64>,
    clients: Vec<Session>,
    open: Vec<Vec<u64>>,
    sent: Vec<Envelope>,
    /// Since the last flush.
    log: Vec<Logged>,
}

impl World {
    fn new() -> Self {
        let disk = MemoryDisk::new();
        let machine = Machine::new(Sessions::bounded(Count), disk.clone());
        let range = KeyRange {
            start: Bytes::from_static(b"a"),
            end: Some(Bytes::from_static(b"q")),
        };
        let descriptor = GroupDescriptor {
            group: GroupId(1),
            range: Some(range),
            ..GroupDescriptor::default()
        };
        let state = AppliedState {
            last: BEGIN,
            descriptor: Arc::new(descriptor),
            ..AppliedState::default()
        };
        machine.create(&state).unwrap();
        let model = Model::default();
        let client = |client| Session::new(NonZeroU64::new(client).unwrap(), 0);
        Self {
            disk,
            machine,
            groups: vec![Group { state, model }],
            next_group: 2,
            effects: BTreeMap::new(),
            clients: (1..=CLIENTS as u64).map(client).collect(),
            open: vec![Vec::new(); CLIENTS],
            sent: Vec::new(),
            log: Vec::new(),
        }
    }

    /// One turn of one group; the reply, if there was a command.
    fn apply(&self, logged: &Logged) -> Option<Bytes> {
        let command = |data: &Bytes| Command {
            id: logged.state.last,
            data: data.clone(),
        };
        let mut items = [ApplyItem {
            group: logged.state.descriptor.group,
            commands: logged.data.iter().map(command).collect(),
            state: logged.state.clone(),
            membership_changed: false,
            range_change: logged.change.clone(),
            replies: Vec::new(),
        }];
        self.machine.apply(&mut items).unwrap();
        items[0].replies.pop()
    }

    fn turn(&mut self, state: AppliedState, data: Option<Bytes>, change: Option<RangeChange>) {
        let mut logged = Logged {
            state,
            data,
            change,
            reply: None,
        };
        logged.reply = self.apply(&logged);
        self.log.push(logged);
    }

    fn owner(&self, key: &[u8]) -> usize {
        self.groups
            .iter()
            .position(|group| group.holds(key))
            .unwrap()
    }

    fn arrive(&mut self, envelope: &Envelope, at: usize) -> SessionReply {
        let state = self.groups[at].after(|_| {});
        let index = state.last.index.0;
        self.groups[at].state = state.clone();
        self.turn(state, Some(envelope.encode()), None);
        let reply = self.log.last().unwrap().reply.clone().unwrap();
        let reply = SessionReply::decode(&reply).unwrap();
        let group = &mut self.groups[at];
        let here = group.holds(&envelope.command);
        let expected = group.model.apply(index, here, envelope, &mut self.effects);
        assert_eq!(reply, expected, "{envelope:?}");
        let effects = self.count(&envelope.command);
        assert!(effects <= 1, "{envelope:?} had {effects} effects");
        let once = envelope.once.unwrap();
        match reply {
            SessionReply::Applied(_) => assert_eq!(effects, 1, "{envelope:?}"),
            SessionReply::Expired { index } => {
                let client = usize::try_from(once.session.client.get() - 1).unwrap();
                if self.clients[client].id() == once.session {
                    self.open[client].clear();
                }
                self.clients[client].renew(once.session, index);
            }
            _ => {}
        }
        reply
    }

    /// Effects of the command that names a key, wherever it is now.
    fn count(&self, key: &[u8]) -> u64 {
        let descriptor = &self.groups[self.owner(key)].state.descriptor;
        let found = self.machine.get(descriptor, key).unwrap();
        found.map_or(0, |count| number(&count))
    }

    fn split(&mut self, at: usize, key: Bytes) {
        let group = self.groups[at].clone();
        if !group.holds(&key) || group.range().start == key {
            return;
        }
        let left = group.after(|left| {
            left.range.as_mut().unwrap().end = Some(key.clone());
            left.epoch.range += 1;
        });
        let mut right = GroupDescriptor::clone(&left.descriptor);
        right.group = GroupId(self.next_group);
        right.range = Some(KeyRange {
            start: key,
            end: group.range().end.clone(),
        });
        self.next_group += 1;
        let right = AppliedState {
            last: BEGIN,
            descriptor: Arc::new(right),
            ..AppliedState::default()
        };
        let rights = vec![SplitRight {
            state: right.clone(),
            keep: true,
        }];
        self.turn(left.clone(), None, Some(RangeChange::Split { rights }));
        let model = group.model.split(left.last.index.0);
        self.groups[at].state = left;
        let right = Group {
            state: right,
            model,
        };
        self.groups.insert(at + 1, right);
    }

    fn merge(&mut self, at: usize, behind: u64) {
        if at + 1 >= self.groups.len() {
            return;
        }
        let into = self.groups[at].state.descriptor.group;
        let mut right = self.groups.remove(at + 1);
        let mut frozen = right.after(|right| right.epoch.range += 1);
        let freeze = frozen.last;
        Arc::make_mut(&mut frozen.descriptor).frozen = Some(Frozen {
            into,
            target: Epoch::default(),
            at: freeze,
        });
        right.state = frozen;
        self.turn(right.state.clone(), None, None);
        // What comes behind the freeze differs from store to store.
        if behind > 0 {
            right.state.last.index.0 += behind;
            self.turn(right.state.clone(), None, None);
        }
        let generation = right.state.descriptor.epoch.range;
        let left = self.groups[at].after(|left| {
            left.range
                .as_mut()
                .unwrap()
                .end
                .clone_from(&right.range().end);
            left.epoch.range = generation.max(left.epoch.range) + 1;
        });
        let change = RangeChange::Merge {
            right: right.state.clone(),
        };
        self.turn(left.clone(), None, Some(change));
        let model = &mut self.groups[at].model;
        model.merge(left.last.index.0, &right.model, freeze.index.0);
        self.groups[at].state = left;
    }

    fn crash(&mut self) {
        self.disk = self.disk.crash(0);
        self.machine = Machine::new(Sessions::bounded(Count), self.disk.clone());
        self.machine.recover().unwrap();
        for logged in &self.log {
            assert_eq!(self.apply(logged), logged.reply);
        }
    }

    /// As many sessions as the model has, and a place for each.
    fn check_tables(&self) {
        for group in &self.groups {
            let id = group.state.descriptor.group.0.to_be_bytes();
            let rows = |kind: &[u8]| {
                let start = [b"\0".as_slice(), &id, b"\x06", kind].concat();
                let end = [b"\0".as_slice(), &id, b"\x06", &[kind[0] + 1]].concat();
                let rows = self.disk.scan(Cf::Data, &start, Some(&end), usize::MAX);
                rows.unwrap().len()
            };
            let known = group.model.sessions.len();
            assert!(known <= KNOWN);
            assert_eq!((rows(b"\x01"), rows(b"\x02")), (known, known));
        }
        let live: Vec<GroupId> = self.machine.merged().unwrap();
        let is_dead = |id: &GroupId| {
            let mut groups = self.groups.iter().map(|group| group.state.descriptor.group);
            groups.all(|group| group != *id)
        };
        assert!(live.iter().all(is_dead));
        assert_eq!(
            live.len() as u64 + self.groups.len() as u64 + 1,
            self.next_group
        );
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Begin {
                client,
                key,
                arrives,
            } => {
                let key = Bytes::from(format!("{}{}", char::from(key), self.sent.len()));
                let owner = self.owner(&key);
                let Some(envelope) = self.clients[client].begin(key) else {
                    return;
                };
                self.open[client].extend(envelope.once.map(|once| once.sequence));
                self.sent.push(envelope.clone());
                if arrives {
                    self.arrive(&envelope, owner);
                }
            }
            Step::Late { which, at } if !self.sent.is_empty() => {
                let envelope = self.sent[which.index(self.sent.len())].clone();
                let owner = self.owner(&envelope.command);
                let at = at.map_or(owner, |at| at.index(self.groups.len()));
                self.arrive(&envelope, at);
            }
            Step::End { client, which } if !self.open[client].is_empty() => {
                let at = which.index(self.open[client].len());
                let sequence = self.open[client].remove(at);
                self.clients[client].end(sequence);
            }
            Step::Late { .. } | Step::End { .. } => {}
            Step::Split { key } => {
                let key = Bytes::copy_from_slice(&[key]);
                self.split(self.owner(&key), key);
            }
            Step::Merge { at, behind } => self.merge(at.index(self.groups.len()), behind),
            Step::Flush => {
                self.machine.flush().unwrap();
                self.log.clear();
            }
            Step::Crash => self.crash(),
        }
        self.check_tables();
    }

    /// Whoever is refused because of his session is let in with the next one.
    fn nobody_is_refused_for_ever(&mut self) {
        for client in 0..CLIENTS {
            for key in [b'a', b'h', b'p'] {
                let name = Bytes::from(format!("{}last{client}", char::from(key)));
                let mut attempts = 0;
                loop {
                    // What is open is given up: the window is free.
                    for sequence in self.open[client].drain(..) {
                        self.clients[client].end(sequence);
                    }
                    let envelope = self.clients[client].begin(name.clone()).unwrap();
                    let owner = self.owner(&name);
                    match self.arrive(&envelope, owner) {
                        SessionReply::Applied(_) => break,
                        SessionReply::Expired { .. } => attempts += 1,
                        other => panic!("{other:?}"),
                    }
                    assert!(attempts < 2, "client {client} is refused at {owner}");
                }
                let sequence = self.clients[client].number().unwrap().sequence;
                self.clients[client].end(sequence - 1);
                self.clients[client].end(sequence);
            }
        }
    }
}

/// What happens next.
#[derive(Clone, Debug)]
enum Step {
    /// A client has a new command: a copy of it arrives where its key is, or is lost.
    Begin {
        client: usize,
        key: u8,
        arrives: bool,
    },
    /// A copy of an old command arrives, where its key is or (some) anywhere.
    Late {
        which: prop::sample::Index,
        at: Option<prop::sample::Index>,
    },
    /// A client needs one of its open commands no more.
    End {
        client: usize,
        which: prop::sample::Index,
    },
    Split {
        key: u8,
    },
    Merge {
        at: prop::sample::Index,
        behind: u64,
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
        8 => (client.clone(), b'a'..=b'p', prop::bool::weighted(0.7))
            .prop_map(|(client, key, arrives)| Step::Begin { client, key, arrives }),
        8 => (index(), prop::option::of(index())).prop_map(|(which, at)| Step::Late { which, at }),
        3 => (client, index()).prop_map(|(client, which)| Step::End { client, which }),
        2 => (b'b'..=b'p').prop_map(|key| Step::Split { key }),
        2 => (index(), 0..3u64).prop_map(|(at, behind)| Step::Merge { at, behind }),
        1 => Just(Step::Flush),
        1 => Just(Step::Crash),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_command_has_two_effects(steps in prop::collection::vec(step(), 1..250)) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        world.nobody_is_refused_for_ever();
    }
}

/// The client's number is part of the key.
fn begin(world: &mut World, client: usize, key: &str) -> Envelope {
    let key = Bytes::from(format!("{key}{client}"));
    world.clients[client].begin(key).unwrap()
}

fn applied(count: u64) -> SessionReply {
    SessionReply::Applied(count.to_string().into())
}

fn refused() -> SessionReply {
    SessionReply::Refused(Bytes::from_static(REFUSAL))
}

#[test]
fn a_retry_finds_the_group_that_has_its_keys_now() {
    let mut world = World::new();
    let (done, lost) = (begin(&mut world, 0, "h"), begin(&mut world, 0, "i"));
    assert_eq!(world.arrive(&done, 0), applied(1));
    world.split(0, Bytes::from_static(b"g"));
    // Both groups know what was applied; only one of them has the keys of the other command.
    assert_eq!(world.arrive(&done, 0), applied(1));
    assert_eq!(world.arrive(&done, 1), applied(1));
    assert_eq!(world.arrive(&lost, 0), refused());
    assert_eq!(world.arrive(&lost, 1), applied(1));
    assert_eq!(world.arrive(&lost, 0), refused());
    world.merge(0, 0);
    for envelope in [&lost, &done] {
        assert_eq!(world.arrive(envelope, 0), applied(1));
    }
    assert_eq!((world.count(b"h0"), world.count(b"i0")), (1, 1));
}

#[test]
fn who_was_forgotten_on_one_side_is_not_taken_for_new_by_the_whole() {
    let mut world = World::new();
    let left = begin(&mut world, 0, "a");
    world.arrive(&left, 0);
    world.split(0, Bytes::from_static(b"h"));
    let right = begin(&mut world, 0, "m");
    assert_eq!(world.arrive(&right, 1), applied(1));
    // The right group forgets the client, the left one does not.
    for client in 1..=KNOWN {
        let other = begin(&mut world, client, "n");
        world.arrive(&other, 1);
    }
    assert!(matches!(
        world.arrive(&right, 1),
        SessionReply::Expired { .. }
    ));
    // It is not the client that makes room for the others.
    for _ in 0..10 {
        assert_eq!(world.arrive(&left, 0), applied(1));
    }
    world.merge(0, 2);
    for late in [&left, &right] {
        let reply = world.arrive(late, 0);
        assert!(matches!(reply, SessionReply::Expired { .. }), "{reply:?}");
    }
    assert_eq!((world.count(b"a0"), world.count(b"m0")), (1, 1));
    world.nobody_is_refused_for_ever();
}

#[test]
fn the_clock_of_a_new_group_goes_on_from_the_old_one() {
    let mut world = World::new();
    for client in 0..CLIENTS {
        let envelope = begin(&mut world, client, "a");
        world.arrive(&envelope, 0);
    }
    world.split(0, Bytes::from_static(b"h"));
    let index = world.groups[0].state.last.index.0;
    // Its log has just begun; what it says is since when a session may exist.
    let envelope = begin(&mut world, 0, "m");
    let expected = SessionReply::Expired { index: index + 1 };
    assert_eq!(world.arrive(&envelope, 1), expected);
    let again = begin(&mut world, 0, "m");
    assert_eq!(again.once.unwrap().session.since, index + 1);
    assert_eq!(world.arrive(&again, 1), applied(1));
}
