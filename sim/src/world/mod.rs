//! The world: stores, a network between them, clients and operators, and what befalls them, one
//! event at a time.
//!
//! A world first lives through a time of faults, then through a time of calm in which everything
//! must work again within a bound. The checkers see every event; the first violation ends it.
//!
//! Invariant: all that happens follows from the [`Plan`]. An event of a store's earlier
//! incarnation does nothing.

mod calm;
mod clients;
mod families;
mod loss;
mod merges;
mod moves;
mod nemesis;
mod operators;
mod peek;
mod splits;
mod tasks;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use polyraft_core::RoleName;
use polyraft_multiraft::env::StateMachineError;
use polyraft_multiraft::{
    GroupDescriptor, GroupId, GroupStatus, HostError, HostHandle, MergeAnswer, ReadPermit, Reject,
    StoreId,
};
use polyraft_store::LogOptions;

use self::clients::Clients;
pub(crate) use self::families::untiled;
use self::nemesis::Nemesis;
use self::operators::Operators;
use crate::disk::CrashKind;
use crate::history::History;
use crate::network::{Arrival, Network};
use crate::observe::{Checker, Observation, Observer, Violation};
use crate::plan::Plan;
use crate::queue::EventQueue;
use crate::rng::Rng;
use crate::sometimes;
use crate::store::{SimStore, Step, Stepped};
use crate::subject::Subject;
use crate::time::{MILLISECOND, Nanos, SECOND};
use crate::trace::Trace;

/// See the module.
pub struct World {
    plan: Plan,
    subject: Arc<dyn Subject>,
    rng: Rng,
    queue: EventQueue<Event>,
    network: Network,
    stores: BTreeMap<StoreId, SimStore>,
    observer: Observer,
    history: History,
    counts: Counts,
    answers: Answers,
    /// Answers that count only when a store's write is durable.
    held: BTreeMap<StoreId, Vec<Answer>>,
    /// Families, by the group that they began with.
    groups: BTreeMap<GroupId, Group>,
    /// The family of each number that was given out for a split.
    parents: BTreeMap<GroupId, GroupId>,
    clients: Clients,
    operators: Operators,
    nemesis: Nemesis,
    /// Draws of those who read copies.
    peeks: Rng,
    phase: Phase,
    /// The number of the next new store.
    next_store: u64,
    events: u64,
    hash: u64,
    trace: Option<Trace>,
    progress: Arc<Progress>,
}

/// What clients have heard so far.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    answered: u64,
    unknown: u64,
    undecided: u64,
}

/// How far a world is.
#[derive(Debug, Default)]
pub struct Progress {
    /// Events so far.
    pub events: AtomicU64,
    /// Virtual time.
    pub now: AtomicU64,
}

/// What has happened in a world, in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Events.
    pub events: u64,
    /// Virtual time that has passed.
    pub elapsed: Nanos,
    /// Over everything that happened, in order.
    pub hash: u64,
    /// Operations of clients that were answered.
    pub answered: u64,
    /// Operations of which nobody knows the outcome.
    pub unknown: u64,
    /// Objects whose history was too hard to check.
    pub undecided: u64,
    /// What was wrong, if anything.
    pub violation: Option<Violation>,
}

/// What will happen.
#[derive(Debug)]
enum Event {
    /// A part of a store is scheduled.
    Step(StoreId, u64, Step),
    /// Something comes out of the network.
    Arrival(Box<Arrival>),
    /// A client does something; the number tells whether it still wants to.
    Client(usize, u64),
    /// An operator goes on with a task; the number tells whether it still wants to.
    Task(u64, u64),
    /// Misfortune strikes.
    Strike,
    /// A misfortune ends.
    Relief(nemesis::Relief),
    /// A store is started.
    Start(StoreId, u64),
    /// The faults are over.
    Calm,
    /// Whether everything works again.
    Look,
    /// Somebody reads a replica's own copy.
    Peek,
}

/// What is known of a family from outside: a group, and what it was split into.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    /// The first descriptor of the first group.
    descriptor: GroupDescriptor,
    /// Which part of the keys it has; one family at a time.
    slot: u64,
    stage: Stage,
    /// All numbers that its groups may ever have.
    numbers: BTreeSet<GroupId>,
    /// Those of them that somebody has seen: the first key, and a generation that the group had.
    seen: BTreeMap<GroupId, (Bytes, u64)>,
    /// Those of them that were merged into others.
    merged: BTreeSet<GroupId>,
}

/// See [`Group`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Creating,
    Live,
    Destroying,
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Chaos,
    /// Since when.
    Calm(Nanos),
    Over,
}

/// What somebody in the world was told.
#[derive(Debug)]
enum Answer {
    /// A client's command.
    Command(usize, u64, Result<Bytes, Reject>),
    /// A client's wish to read, on a store in an incarnation.
    Permit(usize, u64, Result<ReadPermit, Reject>),
    /// A step of an operator's task on a store.
    Task(u64, StoreId, Told),
}

/// See [`Answer::Task`].
#[derive(Debug)]
enum Told {
    Done(Result<(), Reject>),
    Destroyed(GroupId, Result<(), Reject>),
    Changed(Result<(), Reject>),
    Confirmed(Result<(), Reject>),
    Described(Box<Result<GroupStatus, Reject>>),
    Split(Box<Result<Vec<GroupDescriptor>, Reject>>),
    /// What came of a step of who drives a merge, by the number of his question.
    Merge(u64, Box<MergeAnswer>),
}

type Answers = Arc<Mutex<Vec<Answer>>>;

impl World {
    /// A world before its first event.
    #[must_use]
    pub fn new(
        plan: Plan,
        subject: Arc<dyn Subject>,
        checkers: Vec<Box<dyn Checker>>,
        trace: Option<Trace>,
    ) -> Self {
        let mut rng = Rng::new(plan.seed);
        let lots = rng.fork();
        let observer = Observer::new(checkers);
        let network = Network::new(rng.fork(), observer.clone());
        let clients = Clients::new(&plan, &mut rng);
        let mut world = Self {
            queue: EventQueue::new(lots),
            network,
            stores: BTreeMap::new(),
            observer,
            history: History::default(),
            counts: Counts::default(),
            answers: Answers::default(),
            held: BTreeMap::new(),
            groups: BTreeMap::new(),
            parents: BTreeMap::new(),
            clients,
            operators: Operators::new(rng.fork()),
            nemesis: Nemesis::new(rng.fork()),
            peeks: rng.fork(),
            phase: Phase::Chaos,
            next_store: 1,
            events: 0,
            hash: 0xcbf2_9ce4_8422_2325,
            trace,
            progress: Arc::default(),
            rng,
            subject,
            plan,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        for _ in 0..self.plan.stores {
            let store = self.found();
            self.start(store);
        }
        for slot in 0..self.plan.groups {
            self.create_group(slot);
        }
        for client in 0..self.clients.len() {
            let after = self.rng.below(SECOND);
            self.queue.push(after, Event::Client(client, 0));
        }
        self.queue.push(2 * SECOND, Event::Strike);
        self.queue.push(2 * SECOND, Event::Peek);
        self.queue.push(self.plan.chaos, Event::Calm);
    }

    /// Lets everything happen until it is over.
    pub fn run(&mut self) -> Outcome {
        while self.phase != Phase::Over && self.observer.is_content() {
            let Some(event) = self.queue.pop() else {
                break;
            };
            self.events += 1;
            if self.events > self.plan.events_max {
                break;
            }
            let now = self.queue.now();
            self.progress.events.store(self.events, Ordering::Relaxed);
            self.progress.now.store(now, Ordering::Relaxed);
            self.observer.set_now(now);
            self.happen(event);
        }
        if self.phase == Phase::Over && self.observer.is_content() {
            self.judge();
        }
        self.outcome()
    }

    /// How far it is, also after a panic in it.
    #[must_use]
    pub fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }

    /// What has happened so far.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        Outcome {
            events: self.events,
            elapsed: self.queue.now(),
            hash: self.hash,
            answered: self.counts.answered,
            unknown: self.counts.unknown,
            undecided: self.counts.undecided,
            violation: self.observer.violation(),
        }
    }

    fn happen(&mut self, event: Event) {
        self.note(&event);
        if let Some(trace) = &self.trace {
            trace.begin(self.queue.now(), &event);
        }
        match event {
            Event::Step(store, incarnation, step) => self.step(store, incarnation, step),
            Event::Arrival(arrival) => self.arrive(*arrival),
            Event::Client(client, token) => self.client(client, token),
            Event::Task(task, alarm) => self.go_on(task, alarm),
            Event::Strike => self.strike(),
            Event::Relief(relief) => self.relieve(relief),
            Event::Start(store, incarnation) => {
                if self.stores[&store].incarnation == incarnation {
                    self.start(store);
                }
            }
            Event::Calm => self.calm(),
            Event::Look => self.look(),
            Event::Peek => self.peek(),
        }
        self.settle();
    }

    /// After each event: what it has put into motion.
    fn settle(&mut self) {
        loop {
            let queue = &mut self.queue;
            let now = queue.now();
            self.network.collect(now, &mut |at, arrival| {
                queue.push_at(at, Event::Arrival(Box::new(arrival)));
            });
            let answers = std::mem::take(&mut *self.answers.lock());
            if answers.is_empty() {
                return;
            }
            for answer in answers {
                self.told(answer);
            }
        }
    }

    fn told(&mut self, answer: Answer) {
        if let Some(trace) = &self.trace {
            trace.line(&format!("    {answer:?}"));
        }
        match answer {
            Answer::Command(client, token, result) => self.client_told(client, token, result),
            Answer::Permit(client, token, result) => self.client_permitted(client, token, result),
            Answer::Task(task, store, told) => self.task_told(task, store, told),
        }
    }

    fn step(&mut self, id: StoreId, incarnation: u64, step: Step) {
        let now = self.queue.now();
        let Some(store) = self.stores.get_mut(&id) else {
            return;
        };
        if store.incarnation != incarnation || store.running.is_none() {
            return;
        }
        if now < store.paused_until {
            let until = store.paused_until;
            return self
                .queue
                .push_at(until, Event::Step(id, incarnation, step));
        }
        let queue = &mut self.queue;
        let mut push = |after, step| queue.push(after, Event::Step(id, incarnation, step));
        let stepped = store.step(step, &mut push);
        store.kick(&mut push);
        match stepped {
            Stepped::Done => {}
            // Whoever was answered during the write hears it when the sync is done.
            Stepped::Writing => {
                let answers = std::mem::take(&mut *self.answers.lock());
                self.held.entry(id).or_default().extend(answers);
            }
            Stepped::Failed(error) => return self.failed(id, &error),
        }
        if step == Step::Written
            && let Some(held) = self.held.remove(&id)
        {
            self.answers.lock().extend(held);
        }
    }

    fn arrive(&mut self, arrival: Arrival) {
        let queue = &mut self.queue;
        let now = queue.now();
        if let Some(to) = self.network.receiver(&arrival)
            && let Some(store) = self.stores.get(&to)
            && now < store.paused_until
        {
            let until = store.paused_until;
            return queue.push_at(until, Event::Arrival(Box::new(arrival)));
        }
        let reached = self.network.arrive(now, arrival, &mut |at, arrival| {
            queue.push_at(at, Event::Arrival(Box::new(arrival)));
        });
        if let Some(store) = reached {
            self.kick(store);
        }
    }

    /// Parts of a store that have something to do get a step in the queue.
    fn kick(&mut self, id: StoreId) {
        let Some(store) = self.stores.get_mut(&id) else {
            return;
        };
        let (queue, incarnation) = (&mut self.queue, store.incarnation);
        store.kick(|after, step| queue.push(after, Event::Step(id, incarnation, step)));
    }

    /// A new store with an empty disk, not running yet.
    fn found(&mut self) -> StoreId {
        let id = StoreId(self.next_store);
        self.next_store += 1;
        let settled_at_once = self.rng.below(8);
        // Logs of a world are small: with the usual sizes nothing would ever be settled.
        let options = LogOptions {
            hot_bytes_max: self.rng.magnitude(512, 1 << 20),
            settle_groups_max: 1 + usize::try_from(settled_at_once).unwrap_or(0),
        };
        let store = SimStore::new(
            self.plan.host_config(id),
            self.plan.pass_inputs_max(),
            options,
            self.rng.fork(),
            self.observer.clone(),
        );
        self.stores.insert(id, store);
        self.observer.see(&Observation::Founded { store: id });
        id
    }

    /// Starts a store on what its disk has kept.
    fn start(&mut self, id: StoreId) {
        let Some(store) = self.stores.get_mut(&id) else {
            return;
        };
        if store.lost || store.running.is_some() {
            return;
        }
        store.incarnation += 1;
        let incarnation = store.incarnation;
        self.observer.see(&Observation::Starting {
            store: id,
            incarnation,
        });
        let disk = store.disk.opened();
        let machine = self.subject.open(id, &disk);
        let transport = self.network.port(id, incarnation);
        if let Err(error) = store.start(&disk, machine, transport) {
            return self.cannot_start(id, &error);
        }
        sometimes!(incarnation > 1, "world: store restarted");
        let Some(handle) = store.handle().cloned() else {
            return;
        };
        self.network.started(id, incarnation, Arc::new(handle));
        let first_tick = self.rng.below(store.tick_length());
        self.queue
            .push(first_tick, Event::Step(id, incarnation, Step::Tick));
        let first = self.rng.below(SECOND / 2);
        self.queue
            .push(first, Event::Step(id, incarnation, Step::Maintain));
        self.kick(id);
    }

    fn cannot_start(&mut self, id: StoreId, error: &HostError) {
        let full = matches!(
            error,
            HostError::Log(polyraft_multiraft::env::LogError::DiskFull)
                | HostError::StateMachine(StateMachineError::DiskFull)
        );
        let suspect = self.nemesis.is_suspect(id);
        sometimes!(suspect, "world: damage refused at start");
        let disk = &self.stores[&id].disk;
        let killed = disk.is_killed();
        sometimes!(killed, "world: store killed within its recovery");
        let excused = full || killed || disk.fault().is_some();
        // A process that was there for a moment is gone; what it wrote may be there or not.
        self.lose_process(id, CrashKind::Power);
        if suspect {
            return;
        }
        if excused {
            sometimes!(full, "world: start without room");
            let incarnation = self.stores[&id].incarnation;
            return self.queue.push(SECOND, Event::Start(id, incarnation));
        }
        self.observer
            .report("recovery", format!("store {id} cannot start: {error}"));
    }

    /// A host that stopped by itself.
    fn failed(&mut self, id: StoreId, error: &HostError) {
        let disk = &self.stores[&id].disk;
        let killed = disk.is_killed();
        let expected = self.nemesis.is_suspect(id) || disk.is_broken() || killed;
        if !expected {
            let what = format!("store {id} stopped without a cause: {error}");
            return self.observer.report("host-error", what);
        }
        sometimes!(killed, "world: store killed between two writes");
        sometimes!(!killed, "world: store stopped by itself");
        // Nobody knows what of the last writes the disk has.
        self.crash(id, CrashKind::Power);
        self.start_later(id);
    }

    /// Stops a store in the middle of everything.
    fn crash(&mut self, id: StoreId, kind: CrashKind) {
        let Some(store) = self.stores.get_mut(&id) else {
            return;
        };
        if store.running.is_none() {
            return;
        }
        // First the disk: what is dropped now would clean up after itself.
        store.disk.fence();
        store.stop();
        self.network.stopped(id);
        self.lose_process(id, kind);
        for answer in self.held.remove(&id).unwrap_or_default() {
            let nobody_knows = match answer {
                Answer::Command(client, token, _) => {
                    Answer::Command(client, token, Err(Reject::Ambiguous))
                }
                Answer::Permit(client, token, _) => {
                    Answer::Permit(client, token, Err(Reject::Ambiguous))
                }
                Answer::Task(task, store, Told::Merge(token, _)) => {
                    let failed = Told::Merge(token, Box::new(MergeAnswer::Failed));
                    Answer::Task(task, store, failed)
                }
                Answer::Task(task, store, _) => {
                    Answer::Task(task, store, Told::Done(Err(Reject::Ambiguous)))
                }
            };
            self.answers.lock().push(nobody_knows);
        }
    }

    /// What is left of the disk of a process that is no more.
    fn lose_process(&mut self, id: StoreId, kind: CrashKind) {
        if let Some(store) = self.stores.get(&id) {
            store.disk.fence();
            store.disk.crash(kind, &mut self.rng);
            self.observer.see(&Observation::Crashed {
                store: id,
                power: kind == CrashKind::Power,
            });
        }
    }

    fn start_later(&mut self, id: StoreId) {
        let after = match self.phase {
            Phase::Chaos => self.rng.magnitude(5 * MILLISECOND, 10 * SECOND),
            _ => self.rng.between(MILLISECOND, 100 * MILLISECOND),
        };
        let incarnation = self.stores[&id].incarnation;
        self.queue.push(after, Event::Start(id, incarnation));
    }

    /// Stores that run, ascending.
    fn running(&self) -> impl Iterator<Item = (StoreId, &HostHandle)> {
        let stores = self.stores.iter();
        stores.filter_map(|(id, store)| Some((*id, store.handle()?)))
    }

    /// Stores that are not lost, ascending.
    fn present(&self) -> BTreeSet<StoreId> {
        let stores = self.stores.iter();
        stores.filter(|(_, s)| !s.lost).map(|(id, _)| *id).collect()
    }

    /// The store that leads a group in the highest term, as far as any store that runs says.
    fn leader(&self, group: GroupId) -> Option<StoreId> {
        self.leaders(group).pop()
    }

    /// The stores that say that they lead a group, ascending by term.
    fn leaders(&self, group: GroupId) -> Vec<StoreId> {
        let led = self.running().filter_map(|(store, handle)| {
            let summary = handle.summary(group)?;
            let leads = summary.basic.soft_state.role == RoleName::Leader;
            leads.then_some((summary.basic.hard_state.term, store))
        });
        let mut led: Vec<_> = led.collect();
        led.sort_unstable();
        led.into_iter().map(|(_, store)| store).collect()
    }

    /// What happened becomes a part of the trace's hash.
    fn note(&mut self, event: &Event) {
        let (kind, one, two) = match event {
            Event::Step(store, incarnation, step) => {
                let step = match step {
                    Step::Pass(worker) => 1 + 16 * *worker as u64,
                    Step::Write => 2,
                    Step::Written => 3,
                    Step::Apply(applier) => 4 + 16 * *applier as u64,
                    Step::Fetch => 5,
                    Step::Snapshot => 6,
                    Step::Tick => 7,
                    Step::Maintain => 8,
                    Step::Flush => 14,
                };
                (step, store.0, *incarnation)
            }
            Event::Arrival(_) => (9, 0, 0),
            Event::Client(client, token) => (10, *client as u64, *token),
            Event::Task(task, alarm) => (11, *task, *alarm),
            Event::Strike => (12, 0, 0),
            Event::Relief(_) => (13, 0, 0),
            Event::Start(store, incarnation) => (14, store.0, *incarnation),
            Event::Calm => (15, 0, 0),
            Event::Look => (15, 1, 0),
            Event::Peek => (16, 0, 0),
        };
        for part in [self.queue.now(), kind, one, two] {
            self.hash = (self.hash ^ part)
                .wrapping_mul(0x0000_0100_0000_01b3)
                .rotate_left(5);
        }
    }
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World")
            .field("plan", &self.plan)
            .finish_non_exhaustive()
    }
}
