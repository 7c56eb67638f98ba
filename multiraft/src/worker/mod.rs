//! A worker owns replicas by value and turns inputs into effects, one pass at a time.
//!
//! A pass steps every group that has input, then takes what each of them wants done. It reads no clock,
//! blocks on nothing and touches no other worker's state, so it can be run by a thread or by a
//! simulator alike.
//!
//! Invariants: a replica is in `awake` exactly if it is ticked; what a pass touches it collects before
//! it ends; a group that is being destroyed takes no input until its data is gone.

mod admin;
mod collect;
mod followers;
mod lifecycle;
mod members;
mod merges;
mod messages;
mod ranges;
mod time;

pub(crate) use collect::lane_of;
pub use lifecycle::BOOTSTRAP;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use polyraft_core::{ReplicaId, SnapshotOutcome, planted};

use crate::config::HostConfig;
use crate::effects::Effects;
use crate::env::{GroupMessage, Lost};
use crate::error::Reject;
use crate::group::{GroupDescriptor, GroupId, StoreId};
use crate::group_map::{GroupMap, GroupSet};
use crate::input::{AppliedItem, Input, PersistedItem};
use crate::ranges::registry::Registry;
use crate::replica::{Queued, Replica, Waiter};
use crate::responder::Responder;
use crate::router::Router;
use crate::sync::AtomicBool;

/// What all threads of a host see.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) router: Router,
    /// Flushes that have begun.
    pub(crate) flushes: AtomicU64,
    pub(crate) registry: Registry,
    /// The disk was full at the last write: proposals are refused until it is not.
    pub(crate) disk_full: AtomicBool,
    /// The same at the last write of an applier.
    pub(crate) data_disk_full: AtomicBool,
    /// The store cannot go on.
    pub(crate) failed: AtomicBool,
    pub(crate) stopping: AtomicBool,
    pub(crate) counters: Counters,
}

impl Shared {
    pub(crate) fn new(workers: usize) -> Self {
        Self {
            router: Router::new(workers),
            flushes: AtomicU64::new(0),
            registry: Registry::default(),
            disk_full: AtomicBool::new(false),
            data_disk_full: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            counters: Counters::default(),
        }
    }

    /// Whether a write found no room lately; each writer speaks for itself.
    pub(crate) fn is_disk_full(&self) -> bool {
        self.disk_full.load(Ordering::Relaxed) || self.data_disk_full.load(Ordering::Relaxed)
    }

    /// Whether a group here, other than `others`, may still have to take the replica of `right` over,
    /// as it is known here, to follow its own log: then that replica is a lock on its keys, and if it
    /// went the left one could not follow.
    ///
    /// It may if it stands at an epoch at which the merge can come, or if it has the border to `right` that
    /// there was when `right` began: a younger one was drawn after they were merged.
    pub(crate) fn is_lock(&self, right: &GroupDescriptor, others: &[GroupId]) -> bool {
        let into = right.frozen.map(|frozen| frozen.into);
        let left = self.registry.left_of(right.group, into);
        let known =
            |group: GroupId| (!others.contains(&group)).then(|| self.router.descriptor(group));
        let expects = |known: Option<Arc<GroupDescriptor>>| {
            let target = right.frozen.map(|frozen| frozen.target.range);
            known.is_none_or(|known| target.is_some_and(|target| known.epoch.range <= target))
        };
        let touches = |known: Option<Arc<GroupDescriptor>>| {
            // Where claims and descriptors differ the range is changing.
            let end = |known: &GroupDescriptor| known.range.as_ref().and_then(|it| it.end.clone());
            let start = right.range.as_ref().map(|range| &range.start);
            known.is_none_or(|known| {
                end(&known).as_ref() != start || known.border <= right.epoch.range
            })
        };
        left.expected.and_then(known).is_some_and(expects)
            || left.touches.and_then(known).is_some_and(touches)
    }

    /// Stopped or about to be: nothing new is taken.
    pub(crate) fn is_over(&self) -> bool {
        self.stopping.load(Ordering::Relaxed) || self.failed.load(Ordering::Relaxed)
    }
}

/// Counts since the start.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) passes: AtomicU64,
    pub(crate) proposals: AtomicU64,
    pub(crate) reads: AtomicU64,
    pub(crate) messages_in: AtomicU64,
    pub(crate) messages_dropped: AtomicU64,
    pub(crate) messages_refused: AtomicU64,
    pub(crate) writes: AtomicU64,
    pub(crate) synced_writes: AtomicU64,
    pub(crate) written_entries: AtomicU64,
    pub(crate) applied_commands: AtomicU64,
    pub(crate) apply_batches: AtomicU64,
    pub(crate) snapshots_sent: AtomicU64,
    pub(crate) snapshots_installed: AtomicU64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }
}

/// See the module.
#[derive(Debug)]
pub struct Worker {
    index: usize,
    config: Arc<HostConfig>,
    shared: Arc<Shared>,
    replicas: GroupMap<Box<Replica>>,
    /// Those that are ticked.
    awake: GroupSet,
    /// Groups whose first state is being written.
    creating: GroupMap<Option<Responder<Result<(), Reject>>>>,
    /// Groups whose data is being removed.
    dying: GroupSet,
    /// Groups with splits or merges that are applied and not durable.
    unsettled: BTreeSet<GroupId>,
    /// Groups whose end waits for that.
    doomed: BTreeSet<GroupId>,
    /// Snapshots that wait for the groups that they take over.
    arriving: GroupMap<merges::Arriving>,
    /// For this and other workers.
    outbox: Vec<(usize, Input)>,
    /// Requests for votes of groups that are being born.
    early: VecDeque<(StoreId, GroupMessage)>,
    /// Stores of which it will be heard when they go.
    up: BTreeSet<StoreId>,
    /// Those with input in this pass.
    touched: Vec<GroupId>,
    /// Bytes of entries cached by replicas of this worker.
    cache_bytes: u64,
}

impl Worker {
    pub(crate) fn new(index: usize, config: Arc<HostConfig>, shared: Arc<Shared>) -> Self {
        Self {
            index,
            config,
            shared,
            replicas: GroupMap::default(),
            awake: GroupSet::default(),
            creating: GroupMap::default(),
            dying: GroupSet::default(),
            unsettled: BTreeSet::new(),
            doomed: BTreeSet::new(),
            arriving: GroupMap::default(),
            outbox: Vec::new(),
            early: VecDeque::new(),
            up: BTreeSet::new(),
            touched: Vec::new(),
            cache_bytes: 0,
        }
    }

    /// One turn: every input, in order, then what the groups want done.
    pub fn pass(&mut self, inputs: impl IntoIterator<Item = Input>) -> Effects {
        let mut effects = Effects::default();
        for input in inputs {
            self.take(input, &mut effects);
        }
        self.collect(&mut effects);
        effects.inputs.append(&mut self.outbox);
        Counters::add(&self.shared.counters.passes, 1);
        effects
    }

    fn take(&mut self, input: Input, effects: &mut Effects) {
        match input {
            Input::Propose {
                group,
                data,
                expected,
                permit,
                respond,
            } => {
                let command = Queued {
                    data,
                    expected,
                    respond,
                    permit,
                };
                self.propose(group, command);
            }
            Input::Read {
                group,
                even_frozen,
                respond,
            } => self.read(
                group,
                Waiter {
                    even_frozen,
                    respond,
                },
            ),
            Input::Messages {
                from,
                messages,
                permit,
            } => {
                for message in messages {
                    self.on_message(from, message, effects);
                }
                drop(permit);
            }
            Input::Admin(admin) => self.admin(admin, effects),
            Input::Persisted(items) => {
                for item in items {
                    self.on_persisted(item);
                }
            }
            Input::Applied(items) => {
                for item in items {
                    self.on_applied(item, effects);
                }
            }
            Input::Fetched {
                group,
                replica,
                fetched,
            } => {
                self.with(group, Some(replica), |replica| {
                    replica
                        .node
                        .on_fetched(fetched)
                        .map_err(|error| error.to_string())
                });
            }
            Input::SnapshotReceived {
                from,
                header,
                staged,
            } => {
                self.on_snapshot(from, *header, staged, effects);
            }
            Input::SnapshotSent {
                group,
                replica,
                to,
                outcome,
            } => {
                self.with(group, Some(replica), |replica| {
                    if outcome == SnapshotOutcome::Sent {
                        followers::snapshot_arrived(replica, to);
                    }
                    replica.node.report_snapshot(to, outcome);
                    Ok(())
                });
            }
            Input::Quarantine {
                group,
                reason,
                by_applier,
            } => {
                self.abandon_create(group, &reason);
                self.quarantine(group, &reason);
                if by_applier {
                    self.abandon_range_steps(group);
                    self.end_doomed(effects);
                }
            }
            Input::Born {
                state,
                replica,
                campaign,
            } => self.on_born(&state, replica, campaign, effects),
            Input::Subsume { subsumer, right } => self.on_subsume(subsumer, &right),
            Input::Subsumable {
                left,
                right,
                result,
            } => self.on_subsumable(left, right, result, effects),
            Input::Released { left, right } => self.on_released(left, right),
            Input::Subsumed(group) => self.on_subsumed(group, effects),
            Input::Durable(flush) => self.on_durable(flush, effects),
            Input::Flushed(indexes) => self.on_flushed(&indexes, effects),
            Input::Tick => self.tick(effects),
            Input::StoreUp(store) => {
                self.up.insert(store);
                self.greet(store, effects);
                self.on_store_change(store);
            }
            Input::StoreDown(store) => {
                self.up.remove(&store);
                self.on_store_change(store);
                self.report_unreachable(store, &Lost::Any);
            }
            Input::Lost(store, lost) => self.report_unreachable(store, &lost),
        }
    }

    /// Runs something on a replica, if it is here and in service; an error takes only that replica
    /// out of service.
    fn with(
        &mut self,
        group: GroupId,
        id: Option<ReplicaId>,
        run: impl FnOnce(&mut Replica) -> Result<(), String>,
    ) {
        let Some(replica) = self.replicas.get_mut(&group) else {
            return;
        };
        if replica.quarantined.is_some() || id.is_some_and(|id| id != replica.id) {
            return;
        }
        let result = run(replica);
        replica.touch(&mut self.touched);
        if let Err(reason) = result {
            self.quarantine(group, &reason);
        }
    }

    /// Notes that a group has something to collect, and wakes it.
    fn touch(&mut self, group: GroupId) {
        if let Some(replica) = self.replicas.get_mut(&group) {
            replica.touch(&mut self.touched);
        }
    }

    /// A group with work is ticked. So is a replica that waits for its first snapshot: only time tells
    /// it that the leader that made it is gone, and until then it refuses its vote to everybody else.
    fn wake(&mut self, group: GroupId) {
        let Some(replica) = self.replicas.get_mut(&group) else {
            return;
        };
        replica.idle_ticks = 0;
        if replica.quarantined.is_none() && replica.ranges.subsumer.is_none() {
            let lost = planted!(LostWakeUp) && replica.asleep;
            replica.asleep = false;
            if !lost {
                self.awake.insert(group);
            }
        }
        replica.touch(&mut self.touched);
    }

    fn on_persisted(&mut self, item: PersistedItem) {
        let PersistedItem {
            group,
            replica,
            persisted,
        } = item;
        self.with(group, Some(replica), |replica| {
            if let Some(left) = replica.void_receipts.checked_sub(1) {
                replica.void_receipts = left;
                return Ok(());
            }
            replica.writes_in_flight = replica.writes_in_flight.saturating_sub(1);
            let Some(persisted) = persisted else {
                return Ok(());
            };
            replica
                .node
                .on_persisted(persisted)
                .map_err(|error| error.to_string())
        });
        self.finish_install(group);
    }

    /// Takes one replica out of service; the others go on.
    pub(crate) fn quarantine(&mut self, group: GroupId, reason: &str) {
        let Some(replica) = self.replicas.get_mut(&group) else {
            return;
        };
        if replica.quarantined.is_some() {
            return;
        }
        tracing::error!(%group, replica = %replica.id, reason, "replica is out of service");
        replica.quarantined = Some(reason.to_owned());
        replica.proposals.give_up();
        let why = || Reject::Refused(format!("the replica is out of service: {reason}"));
        replica.reads.reject_all(why);
        replica.ranges.give_up();
        for change in replica.changes.drain(..) {
            change.respond.answer(Err(Reject::Ambiguous));
        }
        for waiting in replica
            .transfers
            .drain(..)
            .chain(replica.creators.drain(..))
        {
            waiting.answer(Err(why()));
        }
        self.awake.remove(&group);
        self.touch(group);
        self.give_up_merging(group);
        self.answer_subsumer(group);
    }

    fn on_applied(&mut self, item: AppliedItem, effects: &mut Effects) {
        let AppliedItem {
            group,
            replica,
            what,
        } = item;
        self.applied(group, replica, what, effects);
    }
}
