//! Start and stop of a host: recovery, then threads.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use polyraft_core::{EntryId, HardState, ReplicaId};

use crate::apply::Applier;
use crate::config::HostConfig;
use crate::env::{
    Lifecycle, LogBatch, LogEngine, LogSection, Recovered, RecoveredGroup, StateMachine, Transport,
};
use crate::error::HostError;
use crate::group::{AppliedState, GroupId};
use crate::handle::HostHandle;
use crate::parts::{HostParts, applier_of};
use crate::sync::{AtomicU32, JoinHandle, Receiver, Sender, bounded};
use crate::threads::{self, Pools, channel, spawn};
use crate::worker::{BOOTSTRAP, Shared, Worker};

/// The implementations of the seams that a host runs on.
#[derive(Clone)]
pub struct HostEnv {
    /// The durable log.
    pub log: Arc<dyn LogEngine>,
    /// What the groups replicate.
    pub state_machine: Arc<dyn StateMachine>,
    /// The way to other stores.
    pub transport: Arc<dyn Transport>,
    /// Called once when the store cannot go on: nothing is acknowledged any more. A process should
    /// say so and exit.
    pub on_fatal: Arc<dyn Fn(HostError) + Send + Sync>,
}

/// A running host. Stops when told to, or when dropped.
pub struct Host {
    handle: HostHandle,
    threads: Vec<JoinHandle<()>>,
    stop: Vec<Sender<()>>,
}

/// Called at the first fatal error.
#[derive(Clone)]
pub(crate) struct OnFatal(pub(crate) Arc<dyn Fn(HostError) + Send + Sync>);

impl OnFatal {
    pub(crate) fn raise(&self, shared: &Shared, error: HostError) {
        if !shared.failed.swap(true, Ordering::SeqCst) {
            tracing::error!(%error, "the store cannot go on");
            (self.0)(error);
        }
    }
}

impl Host {
    /// Recovers every replica and starts the threads.
    ///
    /// # Errors
    /// The configuration cannot work, or what is on the disk cannot be trusted.
    pub fn start(config: HostConfig, env: HostEnv) -> Result<Self, HostError> {
        let parts = HostParts::assemble(config, &env)?;
        launch(parts, &env)
    }

    /// The way to talk to it.
    #[must_use]
    pub fn handle(&self) -> HostHandle {
        self.handle.clone()
    }

    /// Stops all threads. What was not decided is answered "ambiguous".
    pub fn stop(mut self) {
        self.shut_down();
    }

    fn shut_down(&mut self) {
        self.handle
            .inner
            .shared
            .stopping
            .store(true, Ordering::SeqCst);
        self.stop.clear();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the host panicked");
            }
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.shut_down();
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host")
            .field("store", &self.handle.inner.config.store)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for HostEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostEnv").finish_non_exhaustive()
    }
}

/// Puts log and data of every replica together, and finishes what a crash cut short.
pub(crate) fn recover(
    env: &HostEnv,
    config: &HostConfig,
    shared: &Shared,
    workers: &mut [Worker],
    appliers: &mut [Applier],
) -> Result<(), HostError> {
    let mut found = env.log.recover()?;
    let mut states: BTreeMap<GroupId, AppliedState> = BTreeMap::new();
    for state in env.state_machine.recover()? {
        states.insert(state.descriptor.group, state);
    }
    // An earlier host may have used the same state machine: what that has applied must be durable
    // before anybody relies on which group has which keys.
    let merged = env.state_machine.merged()?;
    env.state_machine.flush()?;
    bury_merged(env, &mut found, &merged)?;
    settle_orphans(env, config, &mut found, &mut states)?;
    reset_overtaken(env, &mut found, &states)?;
    for (group, next_replica) in &found.tombstones {
        shared.registry.recover_tombstone(*group, *next_replica);
    }
    for replica in &found.groups {
        let state = states.get(&replica.group);
        workers[shared.router.home_of(replica.group)].recover(replica, state)?;
    }
    let count = appliers.len();
    for (group, state) in states {
        appliers[applier_of(group, count)].load(state);
    }
    Ok(())
}

/// Groups whose data is another one's since a merge: their replicas end.
fn bury_merged(env: &HostEnv, found: &mut Recovered, merged: &[GroupId]) -> Result<(), HostError> {
    let next_replica = ReplicaId(u64::MAX);
    let mut sections = Vec::new();
    for group in merged.iter().copied() {
        if found.tombstones.contains(&(group, next_replica)) {
            continue;
        }
        found.groups.retain(|replica| replica.group != group);
        found.tombstones.retain(|(dead, _)| *dead != group);
        found.tombstones.push((group, next_replica));
        sections.push(LogSection {
            group,
            lifecycle: Some(Lifecycle::Destroy { next_replica }),
            ..LogSection::default()
        });
    }
    write_sections(env, sections)?;
    for group in merged {
        tracing::info!(%group, "was merged into its left neighbour");
        env.state_machine.forget(*group)?;
    }
    Ok(())
}

/// Data without a replica. A removal was cut short after its tombstone, or a first snapshot was
/// installed before the replica's record was durable: both are removed, since nothing was promised
/// to anybody. Or a group's beginning, by creation or split, was cut short before its record was
/// written: that is finished, since the other members count on the data that all of them began
/// with.
fn settle_orphans(
    env: &HostEnv,
    config: &HostConfig,
    found: &mut Recovered,
    states: &mut BTreeMap<GroupId, AppliedState>,
) -> Result<(), HostError> {
    let known: BTreeSet<GroupId> = found.groups.iter().map(|replica| replica.group).collect();
    let dead: BTreeMap<GroupId, ReplicaId> = found.tombstones.iter().copied().collect();
    let mut sections = Vec::new();
    let orphans: Vec<GroupId> = states
        .keys()
        .copied()
        .filter(|group| !known.contains(group))
        .collect();
    for group in orphans {
        let Some(state) = states.get(&group) else {
            continue;
        };
        let lowest = dead.get(&group).copied().unwrap_or_default();
        match state.descriptor.replica_on(config.store) {
            Some(replica) if replica >= lowest && state.last == BOOTSTRAP => {
                sections.push(begin(group, replica, found));
            }
            _ => {
                tracing::info!(%group, "removing data of a replica that is no more");
                env.state_machine.destroy(&state.descriptor)?;
                states.remove(&group);
            }
        }
    }
    write_sections(env, sections)
}

/// The record of a replica whose data is there.
fn begin(group: GroupId, replica: ReplicaId, found: &mut Recovered) -> LogSection {
    tracing::info!(%group, %replica, "a replica begins whose data was here already");
    let hard_state = HardState {
        term: BOOTSTRAP.term,
        vote: ReplicaId::NONE,
        commit: BOOTSTRAP.index,
    };
    found.tombstones.retain(|(dead, _)| *dead != group);
    found.groups.push(RecoveredGroup {
        group,
        replica,
        hard_state,
        truncated: BOOTSTRAP,
        last: BOOTSTRAP,
        terms: Vec::new(),
    });
    LogSection {
        group,
        lifecycle: Some(Lifecycle::Create { replica }),
        reset: Some(BOOTSTRAP),
        hard_state: Some(hard_state),
        ..LogSection::default()
    }
}

fn write_sections(env: &HostEnv, sections: Vec<LogSection>) -> Result<(), HostError> {
    if !sections.is_empty() {
        let _receipt = env.log.write(&LogBatch {
            sync: true,
            sections,
        })?;
    }
    Ok(())
}

/// Data beside the log: a snapshot was installed and the crash came before the log was reset to it. What
/// a snapshot contains is committed, so whatever the log says otherwise is void; it may also be longer, with
/// entries of a leader that never got them committed.
fn reset_overtaken(
    env: &HostEnv,
    found: &mut Recovered,
    states: &BTreeMap<GroupId, AppliedState>,
) -> Result<(), HostError> {
    let mut sections = Vec::new();
    for replica in &mut found.groups {
        let Some(state) = states.get(&replica.group) else {
            continue;
        };
        if has(replica, state.last) {
            continue;
        }
        let group = replica.group;
        tracing::info!(%group, index = %state.last.index, "log reset to an installed snapshot");
        let term = replica.hard_state.term.max(state.last.term);
        // A vote stands for its term only.
        let vote = if term == replica.hard_state.term {
            replica.hard_state.vote
        } else {
            ReplicaId::NONE
        };
        replica.hard_state = HardState {
            term,
            vote,
            commit: state.last.index,
        };
        replica.truncated = state.last;
        replica.last = state.last;
        replica.terms.clear();
        sections.push(LogSection {
            group,
            reset: Some(state.last),
            hard_state: Some(replica.hard_state),
            ..LogSection::default()
        });
    }
    write_sections(env, sections)
}

/// Whether a log goes on from `applied`. One that begins behind it does not, but that is no snapshot's doing.
fn has(replica: &RecoveredGroup, applied: EntryId) -> bool {
    if applied.index <= replica.truncated.index {
        return true;
    }
    let run = replica
        .terms
        .partition_point(|(_, first)| *first <= applied.index);
    let term = run.checked_sub(1).map(|run| replica.terms[run].0);
    applied.index <= replica.last.index && term == Some(applied.term)
}

fn launch(parts: HostParts, env: &HostEnv) -> Result<Host, HostError> {
    let HostParts {
        handle,
        workers,
        inboxes,
        writer,
        appliers,
    } = parts;
    let shared = Arc::clone(&handle.inner.shared);
    let (applies, apply_ends): (Vec<_>, Vec<_>) = appliers.iter().map(|_| channel()).unzip();
    let (writes, write_end) = channel();
    let (fetches, fetch_end) = channel();
    let (snapshots, snapshot_end) = channel();
    let (flushes, flush_end) = bounded(1);
    let transport = Arc::clone(&env.transport);
    let pools = Pools {
        writes,
        applies,
        fetches,
        snapshots,
        transport,
        handle: handle.clone(),
        flushes,
    };
    let fatal = OnFatal(Arc::clone(&env.on_fatal));
    let mut host = Host {
        handle: handle.clone(),
        threads: Vec::new(),
        stop: Vec::new(),
    };
    let store = handle.inner.config.store;

    let mut ticks = Vec::new();
    for (index, (worker, inbox)) in workers.into_iter().zip(inboxes).enumerate() {
        let pending = Arc::new(AtomicU32::new(0));
        ticks.push(Arc::clone(&pending));
        let (pools, shared) = (pools.clone(), Arc::clone(&shared));
        host.threads
            .push(spawn(format!("s{store}-worker-{index}"), move || {
                threads::run_worker(worker, &inbox, &pools, &shared, &pending);
            })?);
    }
    {
        let (pools, handle, fatal) = (pools, handle.clone(), fatal.clone());
        host.threads.push(spawn(format!("s{store}-log"), move || {
            threads::run_log_writer(&writer, &write_end, &pools, &handle, &fatal);
        })?);
    }
    for (index, (applier, tasks)) in appliers.into_iter().zip(apply_ends).enumerate() {
        let (handle, fatal) = (handle.clone(), fatal.clone());
        host.threads
            .push(spawn(format!("s{store}-apply-{index}"), move || {
                threads::run_applier(applier, &tasks, &handle, &fatal);
            })?);
    }
    spawn_rest(&mut host, env, &fatal, ticks, fetch_end, snapshot_end)?;
    spawn_maintenance(&mut host, env, fatal, flush_end)?;
    Ok(host)
}

fn spawn_rest(
    host: &mut Host,
    env: &HostEnv,
    fatal: &OnFatal,
    ticks: Vec<Arc<AtomicU32>>,
    fetch_end: Receiver<crate::effects::FetchTask>,
    snapshot_end: Receiver<crate::effects::SnapshotTask>,
) -> Result<(), HostError> {
    let store = host.handle.inner.config.store;
    {
        let (log, handle, fatal) = (Arc::clone(&env.log), host.handle.clone(), fatal.clone());
        host.threads.push(spawn(format!("s{store}-fetch"), move || {
            threads::run_fetcher(&log, &fetch_end, &handle, &fatal);
        })?);
    }
    {
        let (machine, transport) = (Arc::clone(&env.state_machine), Arc::clone(&env.transport));
        let handle = host.handle.clone();
        host.threads.push(spawn(format!("s{store}-snap"), move || {
            threads::run_snapshots(&machine, &transport, &snapshot_end, &handle);
        })?);
    }
    {
        let (stop, stopped) = bounded(0);
        host.stop.push(stop);
        let handle = host.handle.clone();
        host.threads.push(spawn(format!("s{store}-tick"), move || {
            threads::run_ticker(&handle, &ticks, &stopped);
        })?);
    }
    Ok(())
}

fn spawn_maintenance(
    host: &mut Host,
    env: &HostEnv,
    fatal: OnFatal,
    asked: Receiver<()>,
) -> Result<(), HostError> {
    let store = host.handle.inner.config.store;
    let (stop, stopped) = bounded(0);
    host.stop.push(stop);
    let (log, machine) = (Arc::clone(&env.log), Arc::clone(&env.state_machine));
    let handle = host.handle.clone();
    host.threads.push(spawn(format!("s{store}-tidy"), move || {
        threads::run_maintenance(&log, &machine, &handle, &fatal, &stopped, &asked);
    })?);
    Ok(())
}
