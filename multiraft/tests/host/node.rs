//! One store: a host in parts, its queues, and disks that outlive it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use polyraft_multiraft::env::conformance::Rng;
use polyraft_multiraft::env::{LogError, StateMachine, StateMachineError, Transport};
use polyraft_multiraft::parts::{
    ApplyTask, Effects, FetchTask, HostParts, Input, SnapshotTask, WriteItem, fetch, send_snapshot,
};
use polyraft_multiraft::{HostConfig, HostEnv, HostError, HostHandle};

use crate::log::LogDisk;
use crate::machine::DataDisk;
use crate::network::{Network, Port};

/// See the module.
pub(crate) struct Node {
    pub(crate) log: LogDisk,
    pub(crate) data: DataDisk,
    pub(crate) config: HostConfig,
    network: Network,
    running: Option<Running>,
    /// Why it stopped by itself.
    pub(crate) fatal: Option<HostError>,
    /// The others know.
    pub(crate) mourned: bool,
    /// Nobody gets the flush that he waits for.
    pub(crate) never_flushes: bool,
}

struct Running {
    parts: HostParts,
    env: HostEnv,
    writes: VecDeque<WriteItem>,
    applies: Vec<VecDeque<ApplyTask>>,
    /// By applier: its last write found no room, and is gathered still.
    full: Vec<bool>,
    fetches: VecDeque<FetchTask>,
    snapshots: VecDeque<SnapshotTask>,
    sending: Arc<AtomicUsize>,
    /// Somebody waits for a flush.
    flush: bool,
}

impl Node {
    pub(crate) fn new(config: HostConfig, network: &Network, log: LogDisk, data: DataDisk) -> Self {
        network.add(config.store, log.clone());
        Self {
            log,
            data,
            config,
            network: network.clone(),
            running: None,
            fatal: None,
            mourned: false,
            never_flushes: false,
        }
    }

    /// Recovers what is on the disks.
    pub(crate) fn start(&mut self) -> Result<(), HostError> {
        self.log.reopen();
        let env = HostEnv {
            log: Arc::new(self.log.clone()),
            state_machine: Arc::new(self.data.clone()),
            transport: Arc::new(Port {
                store: self.config.store,
                network: self.network.clone(),
            }),
            on_fatal: Arc::new(|error| panic!("no thread runs that could raise {error}")),
        };
        let parts = HostParts::assemble(self.config.clone(), &env)?;
        self.fatal = None;
        self.mourned = false;
        self.running = Some(Running {
            applies: parts.appliers.iter().map(|_| VecDeque::new()).collect(),
            full: vec![false; parts.appliers.len()],
            parts,
            env,
            writes: VecDeque::new(),
            fetches: VecDeque::new(),
            snapshots: VecDeque::new(),
            sending: Arc::default(),
            flush: false,
        });
        Ok(())
    }

    pub(crate) fn handle(&self) -> Option<HostHandle> {
        let running = self.running.as_ref()?;
        Some(running.parts.handle.clone())
    }

    /// Stops in the middle of everything. Sometimes the last write has reached the disk and nobody heard.
    pub(crate) fn crash(&mut self, rng: &mut Rng) {
        if let Some(mut running) = self.running.take() {
            let mut last: Vec<WriteItem> = running.writes.drain(..).collect();
            if !last.is_empty() && rng.percent(50) {
                let _unheard = running.parts.writer.drain(&mut last);
            }
            if rng.percent(50) {
                let queue = &mut running.applies[0];
                let _unheard = running.parts.appliers[0].drain(queue);
            }
        }
        self.network.forget(self.config.store);
    }

    /// [`Node::crash`], and the power is cut: only what is synced and flushed is certainly kept.
    pub(crate) fn power_cut(&mut self, rng: &mut Rng) {
        self.crash(rng);
        let keep = usize::try_from(rng.below(4)).unwrap_or(0);
        self.log.power_cut(keep);
        self.data.crash();
    }

    pub(crate) fn tick(&self) {
        if let Some(running) = &self.running {
            running.parts.tick();
        }
    }

    /// Flushes applied data, and truncates logs behind it.
    pub(crate) fn flush(&mut self) {
        if let Some(running) = &mut self.running
            && let Err(error) = running.flush()
        {
            self.fail(error);
        }
    }

    /// Gives an input to the worker of every group.
    pub(crate) fn complete(&self, input: Input) {
        let running = self.running.as_ref().expect("it runs");
        running.parts.complete(0, input);
    }

    /// The workers take what waits for them; nothing else happens.
    pub(crate) fn pass(&mut self) {
        let running = self.running.as_mut().expect("it runs");
        let workers = running.parts.inboxes.iter().zip(&mut running.parts.workers);
        let mut all = Vec::new();
        for (inbox, worker) in workers {
            let mut inputs = Vec::new();
            inbox.take(&mut inputs, usize::MAX);
            all.push(worker.pass(inputs));
        }
        all.into_iter().for_each(|effects| running.perform(effects));
    }

    /// Each part does something in `percent` of the steps.
    pub(crate) fn step(&mut self, rng: &mut Rng, percent: u64) {
        let Some(running) = &mut self.running else {
            return;
        };
        let mut result = running.step(rng, percent);
        if result.is_ok() && running.flush && !self.never_flushes && rng.percent(percent / 4) {
            result = running.flush();
        }
        if let Err(error) = result {
            self.fail(error);
        }
    }

    /// Nothing waits anywhere.
    pub(crate) fn is_idle(&self) -> bool {
        self.running.as_ref().is_none_or(|running| {
            running.parts.inboxes.iter().all(|inbox| inbox.is_empty())
                && running.writes.is_empty()
                && running.applies.iter().all(VecDeque::is_empty)
                && !running.full.contains(&true)
                && running.fetches.is_empty()
                && running.snapshots.is_empty()
                && !running.flush
        })
    }

    fn fail(&mut self, error: HostError) {
        if let Some(running) = self.running.take() {
            running.parts.close();
        }
        self.network.forget(self.config.store);
        self.fatal = Some(error);
    }
}

impl Running {
    fn step(&mut self, rng: &mut Rng, percent: u64) -> Result<(), HostError> {
        for worker in 0..self.parts.workers.len() {
            if rng.percent(percent) {
                let mut inputs = Vec::new();
                let max = 1 + rng.below(40);
                self.parts.inboxes[worker].take(&mut inputs, usize::try_from(max).unwrap_or(1));
                if !inputs.is_empty() {
                    let effects = self.parts.workers[worker].pass(inputs);
                    self.perform(effects);
                }
            }
        }
        if rng.percent(percent) {
            self.write(rng)?;
        }
        for applier in 0..self.applies.len() {
            if rng.percent(percent) {
                self.apply(applier, rng)?;
            }
        }
        if rng.percent(percent)
            && let Some(task) = self.fetches.pop_front()
        {
            let input = fetch(&self.env.log, task)?;
            self.parts.complete(task.worker, input);
        }
        if rng.percent(percent) {
            self.send_snapshot();
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), HostError> {
        if self.parts.flush(&self.env.state_machine)? {
            self.flush = false;
        }
        Ok(())
    }

    fn perform(&mut self, effects: Effects) {
        for ((store, lane), messages) in effects.sends {
            self.env.transport.send(store, lane.into(), messages);
        }
        self.writes.extend(effects.writes);
        for task in effects.applies {
            let applier = self.parts.applier_of(task.group());
            self.applies[applier].push_back(task);
        }
        self.fetches.extend(effects.fetches);
        self.snapshots.extend(effects.snapshots);
        for (worker, input) in effects.inputs {
            self.parts.complete(worker, input);
        }
        self.flush |= effects.flush;
    }

    fn write(&mut self, rng: &mut Rng) -> Result<(), HostError> {
        if self.writes.is_empty() {
            return Ok(());
        }
        let count = 1 + rng.below(self.writes.len() as u64);
        let count = usize::try_from(count).unwrap_or(1);
        let mut items: Vec<WriteItem> = self.writes.drain(..count).collect();
        let mut written = match self.parts.writer.drain(&mut items) {
            Ok(written) => written,
            Err(LogError::DiskFull) => {
                for item in items.into_iter().rev() {
                    self.writes.push_front(item);
                }
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        for ((store, lane), messages) in std::mem::take(&mut written.sends) {
            self.env.transport.send(store, lane.into(), messages);
        }
        for task in self.parts.written(&mut written) {
            let applier = self.parts.applier_of(task.group());
            self.applies[applier].push_back(task);
        }
        Ok(())
    }

    fn apply(&mut self, applier: usize, rng: &mut Rng) -> Result<(), HostError> {
        let queue = &mut self.applies[applier];
        let count = rng.below(queue.len() as u64 + 1);
        if count == 0 && !self.full[applier] {
            return Ok(());
        }
        let mut tasks: VecDeque<ApplyTask> =
            queue.drain(..usize::try_from(count).unwrap_or(0)).collect();
        let (outcome, result) = self.parts.appliers[applier].drain(&mut tasks);
        for task in tasks.into_iter().rev() {
            self.applies[applier].push_front(task);
        }
        self.parts.applied(outcome);
        self.full[applier] = matches!(result, Err(StateMachineError::DiskFull));
        match result {
            Ok(()) | Err(StateMachineError::DiskFull) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn send_snapshot(&mut self) {
        let slots = self.sending.load(Ordering::SeqCst);
        if slots >= 2 {
            return;
        }
        let Some(task) = self.snapshots.pop_front() else {
            return;
        };
        let sending = Arc::clone(&self.sending);
        sending.fetch_add(1, Ordering::SeqCst);
        let finished = move || {
            sending.fetch_sub(1, Ordering::SeqCst);
        };
        let machine: &Arc<dyn StateMachine> = &self.env.state_machine;
        let transport: &Arc<dyn Transport> = &self.env.transport;
        send_snapshot(machine, transport, &self.parts.handle, task, finished);
    }
}
