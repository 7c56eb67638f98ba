//! One store: a host over seams in memory, with callers whose answers are counted.
//!
//! The seams do not wait for anything, but before and after each of their writes anybody may go
//! on.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use polyraft_core::{Durable, Entry, Index, ReplicaId, SnapshotOutcome};
use polyraft_multiraft::env::{
    ApplyItem, GroupMessage, Lane, LogBatch, LogEngine, LogError, LogStats, Recovered,
    SnapshotHeader, SnapshotSink, SnapshotSource, StagedSnapshot, StateMachine, StateMachineError,
    Transport,
};
use polyraft_multiraft::sync::time;
use polyraft_multiraft::{
    AppliedState, GroupDescriptor, GroupId, Host, HostConfig, HostEnv, HostHandle, Member, Reject,
    Responder, StoreId,
};
use shuttle::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use shuttle::sync::{Condvar, Mutex};
use shuttle::thread;

use crate::log::LogDisk;
use crate::machine::DataDisk;

pub(crate) const STORE: StoreId = StoreId(1);
pub(crate) const OTHER: StoreId = StoreId(2);

/// Everything of a store but its host.
pub(crate) struct Store {
    pub(crate) config: HostConfig,
    pub(crate) log: LogDisk,
    pub(crate) data: DataDisk,
    /// The next turn of the state machine fails for good.
    pub(crate) data_fails: Arc<AtomicBool>,
    pub(crate) network: Arc<Network>,
    /// Fatal errors raised.
    pub(crate) fatal: Arc<AtomicU64>,
}

impl Store {
    pub(crate) fn new(workers: usize) -> Self {
        let config = HostConfig {
            workers,
            election_ticks: 3,
            heartbeat_ticks: 1,
            sleep_after_ticks: 0,
            ..HostConfig::new(STORE)
        };
        Self {
            config,
            log: LogDisk::new(STORE, Arc::default()),
            data: DataDisk::new(Arc::default()),
            data_fails: Arc::default(),
            network: Arc::default(),
            fatal: Arc::default(),
        }
    }

    pub(crate) fn start(&self) -> Host {
        let log = Log {
            disk: self.log.clone(),
            steps: Steps::default(),
        };
        let machine = Machine {
            disk: self.data.clone(),
            fails: Arc::clone(&self.data_fails),
            steps: Steps::default(),
        };
        let fatal = Arc::clone(&self.fatal);
        let env = HostEnv {
            log: Arc::new(log),
            state_machine: Arc::new(machine),
            transport: Arc::clone(&self.network) as Arc<dyn Transport>,
            on_fatal: Arc::new(move |_error| {
                fatal.fetch_add(1, Ordering::SeqCst);
            }),
        };
        Host::start(self.config.clone(), env).expect("nothing is wrong with the disk")
    }
}

/// A descriptor of a new group; this store has replica 1 of it.
pub(crate) fn descriptor(group: u64, stores: &[StoreId]) -> GroupDescriptor {
    let member = |(replica, store): (u64, &StoreId)| Member {
        replica: ReplicaId(replica),
        store: *store,
    };
    GroupDescriptor {
        group: GroupId(group),
        members: (1..).zip(stores).map(member).collect(),
        next_replica: ReplicaId(stores.len() as u64 + 1),
        ..GroupDescriptor::default()
    }
}

/// What a caller waits for.
pub(crate) struct Answer<T>(Arc<Slot<T>>);

type Slot<T> = (Mutex<Option<T>>, Condvar);

impl<T: Clone + Send + 'static> Answer<T> {
    pub(crate) fn wait(&self) -> T {
        let (slot, changed) = &*self.0;
        let mut slot = slot.lock().unwrap();
        loop {
            if let Some(answer) = &*slot {
                return answer.clone();
            }
            slot = changed.wait(slot).unwrap();
        }
    }

    /// What is there now.
    pub(crate) fn now(&self) -> Option<T> {
        self.0.0.lock().unwrap().clone()
    }
}

/// Hands a responder out; a second answer is a panic.
pub(crate) fn ask<T: Send + 'static>(
    request: impl FnOnce(Responder<Result<T, Reject>>),
) -> Answer<Result<T, Reject>> {
    let slot: Arc<Slot<_>> = Arc::default();
    let answered = Arc::clone(&slot);
    request(Responder::new(
        || Err(Reject::Ambiguous),
        move |answer| {
            let (slot, changed) = &*answered;
            let before = slot.lock().unwrap().replace(answer);
            assert!(before.is_none(), "answered twice");
            changed.notify_all();
        },
    ));
    Answer(slot)
}

/// Creates a group of this store alone and lets it lead. No time passes.
pub(crate) fn lead(handle: &HostHandle, group: u64) {
    let created = ask(|respond| handle.create_group(descriptor(group, &[STORE]), respond));
    created.wait().expect("nothing is in the way");
    let group = GroupId(group);
    let campaigns = ask(|respond| handle.campaign(group, respond));
    campaigns.wait().expect("it is here");
    // What is asked before the vote is durable is refused; what comes then waits for the term's
    // first entry.
    while ask(|respond| handle.read(group, respond)).wait().is_err() {
        thread::yield_now();
    }
}

/// Time that passes until it is stopped: any timeout may come at any moment.
pub(crate) struct Clock {
    over: Arc<AtomicBool>,
    thread: thread::JoinHandle<()>,
}

impl Clock {
    pub(crate) fn start() -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&over);
        let thread = thread::spawn(move || {
            while !told.load(Ordering::SeqCst) {
                time::pass_for_one();
                thread::yield_now();
            }
        });
        Self { over, thread }
    }

    pub(crate) fn stop(self) {
        self.over.store(true, Ordering::SeqCst);
        self.thread.join().unwrap();
    }
}

/// Stops a host while time passes.
pub(crate) fn stop(host: Host) {
    let clock = Clock::start();
    host.stop();
    clock.stop();
}

/// Moments at which somebody else may go on.
#[derive(Default)]
struct Steps(AtomicU64);

impl Steps {
    fn step(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

struct Log {
    disk: LogDisk,
    steps: Steps,
}

impl LogEngine for Log {
    fn recover(&self) -> Result<Recovered, LogError> {
        self.disk.recover()
    }

    fn write(&self, batch: &LogBatch) -> Result<Durable, LogError> {
        self.steps.step();
        let written = self.disk.write(batch);
        self.steps.step();
        written
    }

    fn read(
        &self,
        group: GroupId,
        low: Index,
        high: Index,
        max_bytes: u64,
    ) -> Result<Vec<Entry>, LogError> {
        self.steps.step();
        self.disk.read(group, low, high, max_bytes)
    }

    fn maintain(&self) -> Result<bool, LogError> {
        self.disk.maintain()
    }

    fn stats(&self) -> LogStats {
        self.disk.stats()
    }
}

struct Machine {
    disk: DataDisk,
    fails: Arc<AtomicBool>,
    steps: Steps,
}

impl Machine {
    fn check(&self) -> Result<(), StateMachineError> {
        if self.fails.load(Ordering::SeqCst) {
            return Err(StateMachineError::Fatal("it is to fail".to_owned()));
        }
        Ok(())
    }
}

impl StateMachine for Machine {
    fn recover(&self) -> Result<Vec<AppliedState>, StateMachineError> {
        self.disk.recover()
    }

    fn merged(&self) -> Result<Vec<GroupId>, StateMachineError> {
        self.disk.merged()
    }

    fn forget(&self, group: GroupId) -> Result<(), StateMachineError> {
        self.disk.forget(group)
    }

    fn create(&self, state: &AppliedState) -> Result<(), StateMachineError> {
        self.check()?;
        let created = self.disk.create(state);
        self.steps.step();
        created
    }

    fn apply(&self, items: &mut [ApplyItem]) -> Result<(), StateMachineError> {
        self.check()?;
        let applied = self.disk.apply(items);
        self.steps.step();
        applied
    }

    fn flush(&self) -> Result<(), StateMachineError> {
        self.check()?;
        let flushed = self.disk.flush();
        self.steps.step();
        flushed
    }

    fn snapshot(&self, group: GroupId) -> Result<Box<dyn SnapshotSource>, StateMachineError> {
        self.disk.snapshot(group)
    }

    fn stage(&self, state: &AppliedState) -> Result<Box<dyn SnapshotSink>, StateMachineError> {
        self.disk.stage(state)
    }

    fn restore(&self, staged: &StagedSnapshot) -> Result<(), StateMachineError> {
        self.disk.restore(staged)
    }

    fn discard(&self, staged: &StagedSnapshot) {
        self.disk.discard(staged);
    }

    fn destroy(&self, descriptor: &GroupDescriptor) -> Result<(), StateMachineError> {
        self.check()?;
        let destroyed = self.disk.destroy(descriptor);
        self.steps.step();
        destroyed
    }
}

/// The way to stores that are not there: a test says what they do.
#[derive(Default)]
pub(crate) struct Network {
    leaving: Mutex<Leaving>,
    changed: Condvar,
}

/// What has been sent and nobody has taken yet.
#[derive(Default)]
pub(crate) struct Leaving {
    pub(crate) messages: VecDeque<(StoreId, GroupMessage)>,
    pub(crate) snapshots: VecDeque<Responder<SnapshotOutcome>>,
}

impl Network {
    /// Takes something, as soon as it is there.
    pub(crate) fn take<T>(&self, take: impl Fn(&mut Leaving) -> Option<T>) -> T {
        let mut leaving = self.leaving.lock().unwrap();
        loop {
            if let Some(taken) = take(&mut leaving) {
                return taken;
            }
            leaving = self.changed.wait(leaving).unwrap();
        }
    }

    fn put(&self, put: impl FnOnce(&mut Leaving)) {
        put(&mut self.leaving.lock().unwrap());
        self.changed.notify_all();
    }
}

impl Transport for Network {
    fn send(&self, to: StoreId, _lane: Lane, messages: Vec<GroupMessage>) {
        let messages = messages.into_iter().map(|message| (to, message));
        self.put(|leaving| leaving.messages.extend(messages));
    }

    fn send_snapshot(
        &self,
        _to: StoreId,
        _header: SnapshotHeader,
        _source: Box<dyn SnapshotSource>,
        done: Responder<SnapshotOutcome>,
    ) {
        self.put(|leaving| leaving.snapshots.push_back(done));
    }
}

/// A command that nobody else proposes.
pub(crate) fn command(caller: u64, number: u64) -> (Bytes, Bytes) {
    let key = Bytes::from(format!("{caller}-{number}"));
    let command = crate::machine::put(&key, b"value");
    (key, command)
}
