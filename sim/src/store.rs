//! One store: a host in parts, a disk that outlives it, and the shell that moves values between them.
//!
//! The shell is what `threads.rs` is in production: it decides nothing. What a thread would do when it is
//! scheduled is a [`Step`] that the world's queue holds; a part has at most one step under way, as
//! a thread has.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use polyraft_multiraft::env::{LogError, StateMachine, StateMachineError, Transport};
use polyraft_multiraft::parts::{
    ApplyTask, Effects, FetchTask, HostParts, Input, SnapshotTask, WriteItem, Written, fetch,
    send_snapshot,
};
use polyraft_multiraft::{
    GroupId, GroupStatus, HostConfig, HostEnv, HostError, HostHandle, Reject, Responder, StoreId,
};
use polyraft_store::{LogOptions, RaftLog};

use crate::disk::SimDisk;
use crate::observe::{Observation, Observer};
use crate::rng::Rng;
use crate::seams::{WatchedLog, WatchedMachine};
use crate::subject::Served;
use crate::time::{MICROSECOND, MILLISECOND, Nanos, SECOND};

/// What a part of a host does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A worker takes a turn.
    Pass(usize),
    /// The log writer writes what waits.
    Write,
    /// Its sync is done.
    Written,
    /// An applier applies what waits.
    Apply(usize),
    /// Applied data is flushed, because somebody waits for that.
    Flush,
    /// The fetcher reads one range.
    Fetch,
    /// The snapshot sender begins one.
    Snapshot,
    /// A tick.
    Tick,
    /// Housekeeping.
    Maintain,
}

/// How slow the parts of a store are at the moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slowness {
    /// A sync takes between so much and so much.
    pub(crate) sync: (Nanos, Nanos),
    /// So does a turn of an applier.
    pub(crate) apply: (Nanos, Nanos),
}

impl Default for Slowness {
    fn default() -> Self {
        Self {
            sync: (50 * MICROSECOND, 3 * MILLISECOND),
            apply: (5 * MICROSECOND, 200 * MICROSECOND),
        }
    }
}

/// See the module.
pub(crate) struct SimStore {
    pub(crate) id: StoreId,
    pub(crate) disk: SimDisk,
    pub(crate) config: HostConfig,
    pub(crate) log_options: LogOptions,
    /// Grows with each start.
    pub(crate) incarnation: u64,
    /// Nothing of it moves before.
    pub(crate) paused_until: Nanos,
    /// The length of its tick, in thousandths of what it should be.
    pub(crate) drift: u64,
    pub(crate) slowness: Slowness,
    /// Its disk cannot be trusted, or is gone.
    pub(crate) lost: bool,
    pub(crate) running: Option<Running>,
    pass_inputs_max: usize,
    rng: Rng,
    observer: Observer,
}

/// A host that runs.
pub(crate) struct Running {
    pub(crate) parts: HostParts,
    pub(crate) machine: Arc<dyn Served>,
    env: HostEnv,
    writes: VecDeque<WriteItem>,
    /// A batch whose sync is not done, with the disk's mark.
    writing: Option<(Written, Option<u64>)>,
    applies: Vec<VecDeque<ApplyTask>>,
    /// By applier: its last write found no room.
    full: Vec<bool>,
    fetches: VecDeque<FetchTask>,
    snapshots: VecDeque<SnapshotTask>,
    sending: Arc<AtomicUsize>,
    /// Somebody waits for a flush.
    flush: bool,
    /// Steps that are in the queue already, by part.
    due: Due,
    since_flush: Nanos,
}

#[derive(Default)]
struct Due {
    passes: Vec<bool>,
    applies: Vec<bool>,
    write: bool,
    fetch: bool,
    snapshot: bool,
    flush: bool,
}

/// What has become of a step.
#[derive(Debug)]
pub(crate) enum Stepped {
    /// Done.
    Done,
    /// The write has begun; answers given during it count only when it is durable.
    Writing,
    /// The host cannot go on.
    Failed(HostError),
}

/// Time between two rounds of housekeeping, at most.
const MAINTENANCE: Nanos = 500 * MILLISECOND;
/// Time after which a write that found no room is tried again.
const RETRY: Nanos = 200 * MILLISECOND;

impl SimStore {
    pub(crate) fn new(
        config: HostConfig,
        pass_inputs_max: usize,
        log_options: LogOptions,
        rng: Rng,
        observer: Observer,
    ) -> Self {
        Self {
            id: config.store,
            disk: SimDisk::new(),
            config,
            log_options,
            incarnation: 0,
            paused_until: 0,
            drift: 1000,
            slowness: Slowness::default(),
            lost: false,
            running: None,
            pass_inputs_max,
            rng,
            observer,
        }
    }

    pub(crate) fn handle(&self) -> Option<&HostHandle> {
        self.running.as_ref().map(|running| &running.parts.handle)
    }

    /// Recovers what the disk has kept.
    pub(crate) fn start(
        &mut self,
        disk: &SimDisk,
        machine: Arc<dyn Served>,
        transport: Arc<dyn Transport>,
    ) -> Result<(), HostError> {
        let (store, observer) = (self.id, &self.observer);
        let log = WatchedLog {
            store,
            log: RaftLog::new(disk.clone(), self.log_options),
            observer: observer.clone(),
        };
        let watched = WatchedMachine {
            store,
            machine: Arc::clone(&machine),
            disk: disk.clone(),
            observer: observer.clone(),
        };
        let env = HostEnv {
            log: Arc::new(log),
            state_machine: Arc::new(watched),
            transport,
            on_fatal: Arc::new(|error| panic!("no thread runs that could raise {error}")),
        };
        let parts = HostParts::assemble(self.config.clone(), &env)?;
        // What recovery writes it syncs.
        observer.see(&Observation::Synced { store });
        self.running = Some(Running {
            due: Due {
                passes: vec![false; parts.workers.len()],
                applies: vec![false; parts.appliers.len()],
                ..Due::default()
            },
            applies: parts.appliers.iter().map(|_| VecDeque::new()).collect(),
            full: vec![false; parts.appliers.len()],
            parts,
            machine,
            env,
            writes: VecDeque::new(),
            writing: None,
            fetches: VecDeque::new(),
            snapshots: VecDeque::new(),
            sending: Arc::default(),
            flush: false,
            since_flush: 0,
        });
        Ok(())
    }

    /// The host is gone, whatever it was doing.
    pub(crate) fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.parts.close();
        }
    }

    /// What must come next because time passes.
    pub(crate) fn tick_length(&self) -> Nanos {
        let tick = u64::try_from(self.config.tick.as_nanos()).unwrap_or(SECOND);
        (tick / 1000).saturating_mul(self.drift)
    }

    /// Parts with something to do get a step in the queue.
    pub(crate) fn kick(&mut self, mut push: impl FnMut(Nanos, Step)) {
        let Some(running) = &mut self.running else {
            return;
        };
        let (due, rng) = (&mut running.due, &mut self.rng);
        for (worker, inbox) in running.parts.inboxes.iter().enumerate() {
            if !due.passes[worker] && !inbox.is_empty() {
                due.passes[worker] = true;
                push(
                    rng.between(MICROSECOND, 60 * MICROSECOND),
                    Step::Pass(worker),
                );
            }
        }
        if !due.write && !running.writes.is_empty() {
            due.write = true;
            push(rng.between(MICROSECOND, 20 * MICROSECOND), Step::Write);
        }
        let (low, high) = self.slowness.apply;
        for (applier, queue) in running.applies.iter().enumerate() {
            if !due.applies[applier] && !queue.is_empty() {
                due.applies[applier] = true;
                push(rng.magnitude(low, high), Step::Apply(applier));
            }
        }
        if !due.fetch && !running.fetches.is_empty() {
            due.fetch = true;
            push(rng.magnitude(5 * MICROSECOND, 5 * MILLISECOND), Step::Fetch);
        }
        if !due.flush && running.flush {
            due.flush = true;
            let takes = rng.magnitude(100 * MICROSECOND, 200 * MILLISECOND);
            push(takes, Step::Flush);
        }
        let slots = running.sending.load(Ordering::Relaxed) < self.config.snapshot_sends_max;
        if !due.snapshot && slots && !running.snapshots.is_empty() {
            due.snapshot = true;
            push(
                rng.magnitude(50 * MICROSECOND, 50 * MILLISECOND),
                Step::Snapshot,
            );
        }
    }

    /// One step of one part.
    pub(crate) fn step(&mut self, step: Step, mut push: impl FnMut(Nanos, Step)) -> Stepped {
        let Some(running) = &mut self.running else {
            return Stepped::Done;
        };
        match step {
            Step::Pass(worker) => {
                running.pass(worker, self.pass_inputs_max);
                if self.rng.percent(10) {
                    self.publish();
                }
                Stepped::Done
            }
            Step::Write => self.write(push),
            Step::Written => {
                running.written(&self.disk, &self.observer, self.id);
                Stepped::Done
            }
            Step::Apply(applier) => running.apply(applier, push),
            Step::Flush => running.flush(push),
            Step::Fetch => running.fetch(),
            Step::Snapshot => {
                running.send_snapshot();
                Stepped::Done
            }
            Step::Tick => {
                running.parts.tick();
                push(self.tick_length(), Step::Tick);
                Stepped::Done
            }
            Step::Maintain => {
                let interval = u64::try_from(self.config.flush_interval.as_nanos());
                let interval = interval.unwrap_or(SECOND).min(MAINTENANCE);
                push(interval, Step::Maintain);
                self.publish();
                self.maintain(interval)
            }
        }
    }

    /// What the host says of itself to everybody.
    pub(crate) fn publish(&self) {
        if let Some(handle) = self.handle() {
            let (replicas, stats) = (handle.list(), handle.stats());
            self.observer.see(&Observation::Published {
                store: self.id,
                replicas: &replicas,
                stats: &stats,
            });
        }
    }

    fn write(&mut self, mut push: impl FnMut(Nanos, Step)) -> Stepped {
        let Some(running) = &mut self.running else {
            return Stepped::Done;
        };
        let (mut items, mut bytes) = (Vec::new(), 0);
        while !running.parts.writer.is_full(items.len(), bytes) {
            let Some(item) = running.writes.pop_front() else {
                break;
            };
            let entries = item.section.entries.iter();
            bytes += entries.map(polyraft_core::Entry::size).sum::<u64>();
            items.push(item);
        }
        let writer = &running.parts.writer;
        let (result, mark) = self.disk.deferred(|| writer.drain(&mut items));
        match result {
            Ok(written) => {
                running.writing = Some((written, mark));
                let (low, high) = self.slowness.sync;
                let takes = match mark {
                    Some(_) => self.rng.magnitude(low, high),
                    None => MICROSECOND,
                };
                push(takes, Step::Written);
                Stepped::Writing
            }
            Err(LogError::DiskFull) => {
                for item in items.into_iter().rev() {
                    running.writes.push_front(item);
                }
                push(RETRY, Step::Write);
                Stepped::Done
            }
            Err(error) => Stepped::Failed(error.into()),
        }
    }

    fn maintain(&mut self, passed: Nanos) -> Stepped {
        let interval = u64::try_from(self.config.flush_interval.as_nanos()).unwrap_or(SECOND);
        let Some(running) = &mut self.running else {
            return Stepped::Done;
        };
        running.since_flush += passed;
        if running.since_flush >= interval {
            running.since_flush = 0;
            match running.parts.flush(&running.env.state_machine) {
                Ok(flushed) => running.flush &= !flushed,
                Err(error) => return Stepped::Failed(error),
            }
        }
        match running.env.log.maintain() {
            Ok(_) | Err(LogError::DiskFull) => Stepped::Done,
            Err(error) => Stepped::Failed(error.into()),
        }
    }
}

impl Running {
    fn pass(&mut self, worker: usize, max: usize) {
        self.due.passes[worker] = false;
        let mut inputs: Vec<Input> = Vec::new();
        self.parts.inboxes[worker].take(&mut inputs, max);
        if !inputs.is_empty() {
            let effects = self.parts.workers[worker].pass(inputs);
            self.perform(effects);
        }
    }

    fn perform(&mut self, effects: Effects) {
        for ((store, lane), messages) in effects.sends {
            self.env.transport.send(store, lane.into(), messages);
        }
        self.writes.extend(effects.writes);
        for task in effects.applies {
            self.enqueue(task);
        }
        self.fetches.extend(effects.fetches);
        self.snapshots.extend(effects.snapshots);
        for (worker, input) in effects.inputs {
            self.parts.complete(worker, input);
        }
        self.flush |= effects.flush;
    }

    fn enqueue(&mut self, task: ApplyTask) {
        let applier = self.parts.applier_of(task.group());
        self.applies[applier].push_back(task);
    }

    fn written(&mut self, disk: &SimDisk, observer: &Observer, store: StoreId) {
        self.due.write = false;
        let Some((mut written, mark)) = self.writing.take() else {
            return;
        };
        if let Some(mark) = mark {
            disk.complete(mark);
            observer.see(&Observation::Synced { store });
        }
        for ((store, lane), messages) in std::mem::take(&mut written.sends) {
            self.env.transport.send(store, lane.into(), messages);
        }
        for task in self.parts.written(&mut written) {
            self.enqueue(task);
        }
    }

    fn apply(&mut self, applier: usize, mut push: impl FnMut(Nanos, Step)) -> Stepped {
        self.due.applies[applier] = false;
        let queue = &mut self.applies[applier];
        let (outcome, result) = self.parts.appliers[applier].drain(queue);
        self.parts.applied(outcome);
        match result {
            Ok(()) => {
                self.full[applier] = false;
                Stepped::Done
            }
            Err(StateMachineError::DiskFull) => {
                self.full[applier] = true;
                self.due.applies[applier] = true;
                push(RETRY, Step::Apply(applier));
                Stepped::Done
            }
            Err(error) => Stepped::Failed(error.into()),
        }
    }

    fn flush(&mut self, mut push: impl FnMut(Nanos, Step)) -> Stepped {
        self.due.flush = false;
        match self.parts.flush(&self.env.state_machine) {
            Ok(true) => self.flush = false,
            Ok(false) => {
                self.due.flush = true;
                push(RETRY, Step::Flush);
            }
            Err(error) => return Stepped::Failed(error),
        }
        Stepped::Done
    }

    fn fetch(&mut self) -> Stepped {
        self.due.fetch = false;
        let Some(task) = self.fetches.pop_front() else {
            return Stepped::Done;
        };
        match fetch(&self.env.log, task) {
            Ok(input) => {
                self.parts.complete(task.worker, input);
                Stepped::Done
            }
            Err(error) => Stepped::Failed(error.into()),
        }
    }

    fn send_snapshot(&mut self) {
        self.due.snapshot = false;
        let Some(task) = self.snapshots.pop_front() else {
            return;
        };
        let sending = Arc::clone(&self.sending);
        sending.fetch_add(1, Ordering::Relaxed);
        let finished = move || {
            sending.fetch_sub(1, Ordering::Relaxed);
        };
        let machine: &Arc<dyn StateMachine> = &self.env.state_machine;
        let transport: &Arc<dyn Transport> = &self.env.transport;
        send_snapshot(machine, transport, &self.parts.handle, task, finished);
    }

    /// Replicas that are out of service, with why. What the workers want done meanwhile is
    /// dropped: the world is over.
    pub(crate) fn quarantined(&mut self) -> Vec<(GroupId, String)> {
        let found = Arc::new(Mutex::new(Vec::new()));
        for replica in self.parts.handle.list() {
            let (group, found) = (replica.group, Arc::clone(&found));
            let note = move |status: Result<GroupStatus, Reject>| {
                let why = status.ok().and_then(|status| status.quarantined);
                found.lock().extend(why.map(|why| (group, why)));
            };
            let respond = Responder::new(|| Err(Reject::Stopped), note);
            self.parts.handle.describe(group, respond);
        }
        for (worker, inbox) in self.parts.workers.iter_mut().zip(&self.parts.inboxes) {
            let mut inputs = Vec::new();
            inbox.take(&mut inputs, usize::MAX);
            drop(worker.pass(inputs));
        }
        std::mem::take(&mut *found.lock())
    }

    /// A tick that the clock did not owe.
    pub(crate) fn extra_tick(&self) {
        self.parts.tick();
    }

    /// Nothing waits anywhere in the host.
    pub(crate) fn is_idle(&self) -> bool {
        self.parts.inboxes.iter().all(|inbox| inbox.is_empty())
            && self.writes.is_empty()
            && self.writing.is_none()
            && self.applies.iter().all(VecDeque::is_empty)
            && !self.full.contains(&true)
            && self.fetches.is_empty()
            && self.snapshots.is_empty()
            && !self.flush
    }
}
