//! The only place that spawns. Each loop waits, drains what is there, and performs; nothing here decides.
//!
//! A thread ends when the senders of its channel are gone or the host is over; what is still in the
//! channels is dropped then, and every caller in it is answered by that.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use polyraft_core::planted;

use crate::apply::{Applier, Outcome};
use crate::effects::{ApplyTask, Effects, FetchTask, SnapshotTask, WriteItem};
use crate::env::{LogEngine, LogError, StateMachine, StateMachineError, Transport};
use crate::error::HostError;
use crate::fetch;
use crate::group::GroupId;
use crate::handle::HostHandle;
use crate::host::OnFatal;
use crate::input::Input;
use crate::parts::{Inbox, applier_of};
use crate::persist::{LogWriter, Written};
use crate::snapshots;
use crate::sync::{
    AtomicU32, Builder, JoinHandle, Receiver, RecvTimeoutError, Sender, bounded, select, sleep,
    unbounded,
};
use crate::worker::{Shared, Worker};

/// Inputs taken into one pass at most; more wait for the next, so that effects are not held back.
const PASS_INPUTS_MAX: usize = 4096;
/// How long a thread waits before it looks whether the disk has room again, or the host is over.
const RETRY: Duration = Duration::from_millis(200);

/// The channels into the pools.
#[derive(Clone)]
pub(crate) struct Pools {
    pub(crate) writes: Sender<Vec<WriteItem>>,
    pub(crate) applies: Vec<Sender<ApplyTask>>,
    pub(crate) fetches: Sender<FetchTask>,
    pub(crate) snapshots: Sender<SnapshotTask>,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) handle: HostHandle,
    /// Room for one: whoever asks while a flush runs is served by the next.
    pub(crate) flushes: Sender<()>,
}

impl Pools {
    fn perform(&self, effects: Effects) {
        for ((store, lane), messages) in effects.sends {
            self.transport.send(store, lane.into(), messages);
        }
        if !effects.writes.is_empty() {
            drop(self.writes.send(effects.writes));
        }
        for task in effects.applies {
            self.apply(task);
        }
        for task in effects.fetches {
            let _ = self.fetches.send(task);
        }
        for task in effects.snapshots {
            drop(self.snapshots.send(task));
        }
        for (worker, input) in effects.inputs {
            self.handle.complete(worker, input);
        }
        if effects.flush {
            // Without room somebody has asked already.
            let _ = self.flushes.try_send(());
        }
    }

    fn apply(&self, task: ApplyTask) {
        let at = applier_of(task.group(), self.applies.len());
        drop(self.applies[at].send(task));
    }
}

pub(crate) fn spawn(
    name: String,
    run: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, HostError> {
    let spawned = Builder::new().name(name).spawn(run);
    spawned.map_err(|error| HostError::Config(format!("cannot start a thread: {error}")))
}

pub(crate) fn run_worker(
    mut worker: Worker,
    inbox: &Inbox,
    pools: &Pools,
    shared: &Shared,
    ticks: &AtomicU32,
) {
    let mut inputs = Vec::new();
    loop {
        select! {
            recv(inbox.completions) -> input => inputs.extend(input),
            recv(inbox.requests) -> input => inputs.extend(input),
            default(RETRY) => {}
        }
        if shared.is_over() {
            return;
        }
        inbox.take(&mut inputs, PASS_INPUTS_MAX);
        if inputs.is_empty() {
            continue;
        }
        let due = inputs
            .iter()
            .filter(|input| matches!(input, Input::Tick))
            .count();
        ticks.fetch_sub(u32::try_from(due).unwrap_or(0), Ordering::Relaxed);
        pools.perform(worker.pass(inputs.drain(..)));
    }
}

/// The log writer. An error that is not "no room" is final: nothing more is acknowledged.
pub(crate) fn run_log_writer(
    writer: &LogWriter,
    tasks: &Receiver<Vec<WriteItem>>,
    pools: &Pools,
    handle: &HostHandle,
    fatal: &OnFatal,
) {
    let shared = &handle.inner.shared;
    let mut items: Vec<WriteItem> = Vec::new();
    loop {
        if items.is_empty() {
            match tasks.recv_timeout(RETRY) {
                Ok(more) => items.extend(more),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
        if shared.is_over() {
            return;
        }
        let mut bytes: u64 = items.iter().map(size).sum();
        while !writer.is_full(items.len(), bytes) {
            let Ok(more) = tasks.try_recv() else { break };
            bytes += more.iter().map(size).sum::<u64>();
            items.extend(more);
        }
        if items.is_empty() {
            continue;
        }
        let mut written = match writer.drain(&mut items) {
            Ok(written) => written,
            Err(LogError::DiskFull) => {
                tracing::error!(
                    "no space left on the device: proposals are refused until there is"
                );
                sleep(RETRY);
                continue;
            }
            Err(error) => return fatal.raise(shared, error.into()),
        };
        for ((store, lane), messages) in std::mem::take(&mut written.sends) {
            pools.transport.send(store, lane.into(), messages);
        }
        for task in return_receipts(handle, &mut written) {
            pools.apply(task);
        }
    }
}

/// Receipts go to the workers; replicas whose tombstone is durable, to the appliers.
pub(crate) fn return_receipts(handle: &HostHandle, written: &mut Written) -> Vec<ApplyTask> {
    for (worker, persisted) in std::mem::take(&mut written.persisted) {
        handle.complete(worker, Input::Persisted(persisted));
    }
    let destroyed = written.destroyed.drain(..);
    destroyed
        .map(|(worker, replica, data)| ApplyTask::Destroy {
            worker,
            replica,
            data,
        })
        .collect()
}

fn size(item: &WriteItem) -> u64 {
    item.section
        .entries
        .iter()
        .map(polyraft_core::Entry::size)
        .sum()
}

pub(crate) fn run_applier(
    mut applier: Applier,
    tasks: &Receiver<ApplyTask>,
    handle: &HostHandle,
    fatal: &OnFatal,
) {
    let shared = &handle.inner.shared;
    let mut queue = VecDeque::new();
    let mut full = false;
    loop {
        if full {
            sleep(RETRY);
        } else if queue.is_empty() {
            match tasks.recv_timeout(RETRY) {
                Ok(task) => queue.push_back(task),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
        if shared.is_over() {
            return;
        }
        queue.extend(tasks.try_iter().take(PASS_INPUTS_MAX));
        if queue.is_empty() && !full {
            continue;
        }
        let (outcome, result) = applier.drain(&mut queue);
        return_results(handle, outcome);
        full = match result {
            Ok(()) => false,
            Err(StateMachineError::DiskFull) => true,
            Err(error) => return fatal.raise(shared, error.into()),
        };
    }
}

pub(crate) fn return_results(handle: &HostHandle, outcome: Outcome) {
    for (worker, items) in outcome.applied {
        handle.complete(worker, Input::Applied(items));
    }
    for (worker, group, reason) in outcome.quarantined {
        let by_applier = true;
        let quarantine = Input::Quarantine {
            group,
            reason,
            by_applier,
        };
        handle.complete(worker, quarantine);
    }
}

pub(crate) fn run_fetcher(
    engine: &Arc<dyn LogEngine>,
    tasks: &Receiver<FetchTask>,
    handle: &HostHandle,
    fatal: &OnFatal,
) {
    while let Some(task) = next(tasks, &handle.inner.shared) {
        match fetch::fetch(engine, task) {
            Ok(input) => handle.complete(task.worker, input),
            Err(error) => return fatal.raise(&handle.inner.shared, error.into()),
        }
    }
}

pub(crate) fn run_snapshots(
    state_machine: &Arc<dyn StateMachine>,
    transport: &Arc<dyn Transport>,
    tasks: &Receiver<SnapshotTask>,
    handle: &HostHandle,
) {
    let slots = handle.inner.config.snapshot_sends_max;
    let (give_back, free) = bounded::<()>(slots);
    for _ in 0..slots {
        let _ = give_back.send(());
    }
    while let Some(task) = next(tasks, &handle.inner.shared) {
        // So many at once; the others wait here, their followers in the snapshot state.
        if next(&free, &handle.inner.shared).is_none() {
            return;
        }
        let slot = give_back.clone();
        let finished = move || {
            let _ = slot.try_send(());
        };
        snapshots::send(state_machine, transport, handle, task, finished);
    }
}

/// Waits for a task; none: the host is over.
fn next<T>(tasks: &Receiver<T>, shared: &Shared) -> Option<T> {
    loop {
        match tasks.recv_timeout(RETRY) {
            Ok(task) if !shared.is_over() => return Some(task),
            Err(RecvTimeoutError::Timeout) if !shared.is_over() => {}
            _ => return None,
        }
    }
}

/// Ticks, capped: a worker that could not keep up does not get them all at once afterwards.
pub(crate) fn run_ticker(handle: &HostHandle, ticks: &[Arc<AtomicU32>], stop: &Receiver<()>) {
    let length = handle.inner.config.tick;
    while let Err(RecvTimeoutError::Timeout) = stop.recv_timeout(length) {
        for (worker, pending) in ticks.iter().enumerate() {
            if pending.load(Ordering::Relaxed) < PENDING_TICKS_MAX {
                pending.fetch_add(1, Ordering::Relaxed);
                handle.complete(worker, Input::Tick);
            }
        }
    }
}

const PENDING_TICKS_MAX: u32 = 2;

/// Housekeeping: flushes applied data when the log has grown, time has passed or somebody waits for it, lets
/// the workers truncate behind it, and lets the log tidy up.
pub(crate) fn run_maintenance(
    engine: &Arc<dyn LogEngine>,
    state_machine: &Arc<dyn StateMachine>,
    handle: &HostHandle,
    fatal: &OnFatal,
    stop: &Receiver<()>,
    asked: &Receiver<()>,
) {
    let config = &handle.inner.config;
    let (mut since_flush, mut flushed_log_bytes) = (Duration::ZERO, engine.stats().bytes);
    let mut wanted = false;
    loop {
        select! {
            recv(stop) -> _over => return,
            recv(asked) -> ask => match ask {
                Ok(()) => wanted = true,
                Err(_) => return,
            },
            default(MAINTENANCE) => { since_flush += MAINTENANCE; }
        }
        if handle.inner.shared.failed.load(Ordering::Relaxed) {
            return;
        }
        let stats = engine.stats();
        let grown = stats.bytes.saturating_sub(flushed_log_bytes) >= config.flush_log_bytes;
        let due = since_flush >= config.flush_interval && stats.bytes > flushed_log_bytes;
        if grown || due || wanted {
            (since_flush, flushed_log_bytes) = (Duration::ZERO, stats.bytes);
            match flush(state_machine, handle) {
                // Without room whoever waits goes on waiting.
                Ok(flushed) => wanted = wanted && !flushed,
                Err(error) => return fatal.raise(&handle.inner.shared, error),
            }
        }
        match engine.maintain() {
            Ok(_) | Err(LogError::DiskFull) => {}
            Err(error) => return fatal.raise(&handle.inner.shared, error.into()),
        }
    }
}

const MAINTENANCE: Duration = Duration::from_millis(500);

/// Makes applied data durable and tells the workers. False: there was no room for it.
pub(crate) fn flush(
    state_machine: &Arc<dyn StateMachine>,
    handle: &HostHandle,
) -> Result<bool, HostError> {
    let number = handle.inner.shared.flushes.fetch_add(1, Ordering::SeqCst) + 1;
    // What is applied as far as published is certainly in what is flushed.
    let list = handle.list();
    let flushed = match state_machine.flush() {
        Ok(()) => true,
        Err(StateMachineError::DiskFull) => {
            if !planted!(TruncatedPastFlushed) {
                return Ok(false);
            }
            false
        }
        Err(error) => return Err(error.into()),
    };
    let workers = handle.inner.completions.len();
    let mut applied: Vec<Vec<_>> = vec![Vec::new(); workers];
    for summary in list {
        let group: GroupId = summary.group;
        let worker = handle.inner.shared.router.worker_of(group);
        applied[worker].push((group, summary.replica, summary.basic.applied));
    }
    for (worker, indexes) in applied.into_iter().enumerate() {
        handle.complete(worker, Input::Flushed(indexes));
        if flushed {
            handle.complete(worker, Input::Durable(number));
        }
    }
    Ok(flushed)
}

pub(crate) fn channel<T>() -> (Sender<T>, Receiver<T>) {
    unbounded()
}
