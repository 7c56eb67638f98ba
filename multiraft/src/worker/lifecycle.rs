//! Begin and end of replicas: recovery, creation, snapshots that give a replica its first state, removal,
//! tombstones.
//!
//! The order that makes a crash anywhere harmless: data before the log's record of a new replica, so that a
//! replica that is known has data; tombstone before the removal of data, so that a removal that was
//! cut short is finished at the next start; data of a snapshot before the log is reset to it, so that the
//! next start finds data that the log does not go on from, and resets the log then.

use std::sync::Arc;

use polyraft_core::{Append, EntryId, HardState, RaftNode, ReplicaId, planted};

use super::collect::discard_snapshot;
use super::{Counters, Shared, Worker};
use crate::effects::{ApplyTask, DestroyData, Effects, WriteItem};
use crate::env::{Lifecycle, LogSection, RecoveredGroup};
use crate::error::{HostError, Reject};
use crate::group::{AppliedState, GroupDescriptor, GroupId, KeyRange, Member, StoreId};
use crate::input::{Applied, Input};
use crate::ranges::registry::Taken;
use crate::replica::{Install, PendingChange, Replica, ReplicaLog};
use crate::responder::Responder;

/// Where the log of a new group begins. Above 1, so that a replica that joins with an empty log is
/// given a snapshot and not a log without the first state.
pub const BOOTSTRAP: EntryId = EntryId::new(1, 2);

impl Worker {
    /// A replica found at the start.
    pub(crate) fn recover(
        &mut self,
        recovered: &RecoveredGroup,
        state: Option<&AppliedState>,
    ) -> Result<(), HostError> {
        let group = recovered.group;
        let (applied, conf_state, descriptor) = match state {
            Some(state) => (
                state.last,
                Arc::clone(&state.conf_state),
                Arc::clone(&state.descriptor),
            ),
            None => (EntryId::default(), Arc::default(), uninitialised(group)),
        };
        let inconsistent = |reason: String| HostError::Inconsistent { group, reason };
        if applied.index < recovered.truncated.index {
            return Err(inconsistent(format!(
                "the log begins after {} but only {} is applied",
                recovered.truncated.index, applied.index
            )));
        }
        let log = ReplicaLog::new(recovered, applied, conf_state);
        let config = polyraft_core::Config {
            applied: applied.index,
            ..self.config.raft(group, recovered.replica)
        };
        let node = RaftNode::new(config, log).map_err(|error| inconsistent(error.to_string()))?;
        let (range, initialised) = (descriptor.range.as_ref(), state.is_some());
        let registry = &self.shared.registry;
        let entered = registry.enter(group, recovered.replica, range, initialised);
        entered.map_err(|taken| inconsistent(taken.to_string()))?;
        let earlier = earlier_owner(&descriptor, self.config.store, recovered.replica);
        self.insert(Replica::new(recovered.replica, node, descriptor));
        if let Some(earlier) = earlier {
            let why = format!("its data is that of an earlier replica, {earlier}");
            self.quarantine(group, &why);
        }
        Ok(())
    }

    fn insert(&mut self, mut replica: Replica) {
        let group = replica.group;
        drop(replica.node.take_events());
        replica.published = replica.summary();
        let router = &self.shared.router;
        router.publish(self.index, replica.published, &replica.descriptor);
        self.replicas.insert(group, Box::new(replica));
        self.wake(group);
    }

    pub(super) fn create(
        &mut self,
        descriptor: GroupDescriptor,
        respond: Responder<Result<(), Reject>>,
        effects: &mut Effects,
    ) {
        let group = descriptor.group;
        match self.check_create(&descriptor) {
            Ok(Some(replica)) => {
                let conf_state = polyraft_core::ConfState {
                    voters: descriptor
                        .members
                        .iter()
                        .map(|member| member.replica)
                        .collect(),
                    ..polyraft_core::ConfState::default()
                };
                let state = AppliedState {
                    last: BOOTSTRAP,
                    conf_state: Arc::new(conf_state),
                    descriptor: Arc::new(descriptor),
                };
                self.creating.insert(group, Some(respond));
                effects.applies.push(ApplyTask::Create {
                    worker: self.index,
                    state,
                    replica,
                });
            }
            Ok(None) => self.confirm_create(group, respond, effects),
            Err(reject) => respond.answer(Err(reject)),
        }
    }

    /// The replica to create; none if it exists already, so that a repeated request succeeds.
    fn check_create(&self, descriptor: &GroupDescriptor) -> Result<Option<ReplicaId>, Reject> {
        let group = descriptor.group;
        let refused = |why: &str| Err(Reject::Refused(format!("group {group}: {why}")));
        let Some(replica) = descriptor.replica_on(self.config.store) else {
            return refused("this store is not among the members");
        };
        if descriptor
            .members
            .iter()
            .any(|member| member.replica >= descriptor.next_replica)
        {
            return refused("next_replica must be above every member's replica id");
        }
        let members = &descriptor.members;
        let twice = |at: usize, one: &Member| {
            let others = &members[..at];
            others
                .iter()
                .any(|other| other.store == one.store || other.replica == one.replica)
        };
        if members
            .iter()
            .enumerate()
            .any(|(at, member)| twice(at, member))
        {
            return refused("a store or a replica id is among the members twice");
        }
        if descriptor.range.as_ref().is_some_and(KeyRange::is_empty) {
            return refused("its range contains no key: the end must be above the start");
        }
        if replica < self.shared.registry.lowest(group) {
            return refused(&Taken::Dead.to_string());
        }
        if self.dying.contains(&group) || self.creating.contains_key(&group) {
            return Err(Reject::Busy("the group is being created or destroyed"));
        }
        if let Some(present) = self.replicas.get(&group) {
            if present.id != replica {
                return refused("another replica of it exists on this store");
            }
            if present.is_initialised() {
                let known = &present.descriptor;
                if known.epoch == descriptor.epoch && **known != *descriptor {
                    return refused("another group of this number exists here");
                }
                return Ok(None);
            }
        }
        // A vote may have come before this request and made the replica: its leader feeds it by snapshot.
        let present = self.replicas.contains_key(&group);
        let (range, registry) = (descriptor.range.as_ref(), &self.shared.registry);
        match registry.enter(group, replica, range, !present) {
            Ok(()) => Ok((!present).then_some(replica)),
            Err(Taken::Busy) => Err(Reject::Busy("the group is being created or destroyed")),
            Err(taken) => refused(&taken.to_string()),
        }
    }

    /// The replica is here already, but its record may still be on its way to the disk. Nothing that
    /// is written after it is durable before it. One that a vote has made is not the group as asked for
    /// before it has its first state: until then the group may depend on a single other store.
    fn confirm_create(
        &mut self,
        group: GroupId,
        respond: Responder<Result<(), Reject>>,
        effects: &mut Effects,
    ) {
        let Some(replica) = self.replicas.get_mut(&group) else {
            return respond.answer(Err(Reject::NoGroup(group)));
        };
        if !replica.is_initialised() || replica.is_installing() {
            return replica.creators.push(respond);
        }
        let id = replica.id;
        let nothing_new = LogSection {
            group,
            ..LogSection::default()
        };
        effects.writes.push(WriteItem {
            created: Some(respond),
            ..self.write(group, id, nothing_new)
        });
    }

    /// The data of a new group could not be written: it is as if nobody had asked.
    pub(super) fn abandon_create(&mut self, group: GroupId, reason: &str) {
        if let Some(respond) = self.creating.remove(&group) {
            self.shared.registry.leave(group);
            if let Some(respond) = respond {
                respond.answer(Err(Reject::Refused(reason.to_owned())));
            }
        }
    }

    /// The data of a new group exists: now its log does.
    fn on_created(
        &mut self,
        group: GroupId,
        id: ReplicaId,
        state: AppliedState,
        effects: &mut Effects,
    ) {
        let Some(respond) = self.creating.remove(&group) else {
            return;
        };
        let hard_state = HardState {
            term: BOOTSTRAP.term,
            vote: ReplicaId::NONE,
            commit: BOOTSTRAP.index,
        };
        let recovered = RecoveredGroup {
            group,
            replica: id,
            hard_state,
            truncated: BOOTSTRAP,
            last: BOOTSTRAP,
            terms: Vec::new(),
        };
        if let Err(error) = self.recover(&recovered, Some(&state)) {
            if let Some(respond) = respond {
                respond.answer(Err(Reject::Refused(error.to_string())));
            }
            return;
        }
        if let Some(replica) = self.replicas.get_mut(&group) {
            replica.writes_in_flight += 1;
        }
        let section = LogSection {
            group,
            lifecycle: Some(Lifecycle::Create { replica: id }),
            reset: Some(BOOTSTRAP),
            hard_state: Some(hard_state),
            ..LogSection::default()
        };
        effects.writes.push(WriteItem {
            created: respond,
            ..self.write(group, id, section)
        });
    }

    /// A replica that knows nothing yet but who it is: it may vote, never campaigns, and waits for a
    /// snapshot. Its record is written before anything that it promises.
    pub(super) fn create_uninitialised(
        &mut self,
        group: GroupId,
        id: ReplicaId,
        effects: &mut Effects,
    ) -> bool {
        if let Err(taken) = self.shared.registry.enter(group, id, None, false) {
            tracing::debug!(%group, replica = %id, %taken, "no replica is created");
            return false;
        }
        let recovered = RecoveredGroup {
            group,
            replica: id,
            ..RecoveredGroup::default()
        };
        if let Err(error) = self.recover(&recovered, None) {
            tracing::error!(%group, %error, "cannot create a replica");
            return false;
        }
        let section = LogSection {
            group,
            lifecycle: Some(Lifecycle::Create { replica: id }),
            ..LogSection::default()
        };
        let write = self.write(group, id, section);
        effects.writes.push(write);
        true
    }

    pub(super) fn write(
        &self,
        group: GroupId,
        replica: ReplicaId,
        section: LogSection,
    ) -> WriteItem {
        let routes = self.replicas.get(&group).map(|r| Arc::clone(&r.routes));
        WriteItem {
            worker: self.index,
            replica,
            section,
            sync: true,
            append: None,
            routes: routes.unwrap_or_default(),
            created: None,
            destroyed: None,
        }
    }

    /// Ends the replica here. Messages of it that are still on their way find a tombstone.
    pub(super) fn destroy(
        &mut self,
        group: GroupId,
        next_replica: ReplicaId,
        respond: Option<Responder<Result<(), Reject>>>,
        effects: &mut Effects,
    ) {
        let mut respond = respond;
        if let Some(reject) = self.keeps(group, respond.is_some()) {
            if let Some(respond) = respond {
                respond.answer(Err(reject));
            }
            return;
        }
        if self.put_off_end(group, next_replica, &mut respond) {
            return;
        }
        let busy = self.creating.contains_key(&group) || self.dying.contains(&group);
        let ended = match busy {
            true => None,
            false => self.shared.registry.end(group, next_replica),
        };
        let Some(next_replica) = ended else {
            if let Some(respond) = respond {
                respond.answer(Err(Reject::Busy("the group is being created or destroyed")));
            }
            return;
        };
        self.remove(group, next_replica, respond, false, effects);
    }

    /// Why a replica cannot end now: its left neighbour is about to take it over. By hand it may not even
    /// if that is only possible.
    fn keeps(&self, group: GroupId, by_hand: bool) -> Option<Reject> {
        let replica = self.replicas.get(&group)?;
        let into = replica.ranges.subsumer.as_ref().map(|it| it.left);
        let lock = by_hand && self.is_lock(group);
        let frozen = replica.descriptor.frozen.filter(|_| lock);
        let into = into.or(frozen.map(|frozen| frozen.into))?;
        Some(Reject::Frozen { into })
    }

    /// The replica was taken over by its left neighbour.
    pub(super) fn end_merged(&mut self, group: GroupId, effects: &mut Effects) {
        let never = ReplicaId(u64::MAX);
        match self.shared.registry.end(group, never) {
            Some(next_replica) => self.remove(group, next_replica, None, true, effects),
            None => tracing::error!(%group, "a merged group is being born"),
        }
    }

    /// The tombstone is known; now it is written, and the data goes if it is not another group's.
    fn remove(
        &mut self,
        group: GroupId,
        next_replica: ReplicaId,
        respond: Option<Responder<Result<(), Reject>>>,
        merged: bool,
        effects: &mut Effects,
    ) {
        self.give_up_merging(group);
        self.turn_away(group, effects);
        let removed = self.replicas.remove(&group);
        let (id, descriptor) = match removed {
            Some(mut replica) => {
                tracing::debug!(%group, replica = %replica.id, %next_replica, "destroying replica");
                self.cache_bytes = self.cache_bytes.saturating_sub(replica.cached);
                replica.proposals.give_up();
                replica.reads.reject_all(|| Reject::NoGroup(group));
                replica.ranges.give_up();
                let _discarded = discard_snapshot(&mut replica, &self.shared, effects);
                (replica.id, Arc::clone(&replica.descriptor))
            }
            None => (ReplicaId::NONE, uninitialised(group)),
        };
        self.awake.remove(&group);
        self.shared.router.remove(group);
        self.dying.insert(group);
        let section = LogSection {
            group,
            lifecycle: Some(Lifecycle::Destroy { next_replica }),
            ..LogSection::default()
        };
        let data = DestroyData {
            descriptor,
            merged,
            respond,
        };
        if planted!(DataBeforeTombstone) {
            effects.applies.push(ApplyTask::Destroy {
                worker: self.index,
                replica: id,
                data,
            });
            return effects.writes.push(self.write(group, id, section));
        }
        effects.writes.push(WriteItem {
            destroyed: Some(data),
            ..self.write(group, id, section)
        });
    }

    pub(super) fn on_tombstone(
        &mut self,
        group: GroupId,
        replica: ReplicaId,
        next_replica: ReplicaId,
        effects: &mut Effects,
    ) {
        let here = self.replicas.get(&group).map(|replica| replica.id);
        // Others have been merged; this one is to be by its own left neighbour.
        let lock = next_replica.0 == u64::MAX && self.is_lock(group) && !planted!(LockIgnored);
        if here == Some(replica) && replica < next_replica && !lock {
            self.destroy(group, next_replica, None, effects);
        }
    }

    pub(super) fn applied(
        &mut self,
        group: GroupId,
        id: ReplicaId,
        what: Applied,
        effects: &mut Effects,
    ) {
        match what {
            Applied::Destroyed { respond } => {
                self.dying.remove(&group);
                self.shared.registry.gone(group);
                // Not earlier: whoever hears of it may want a group in its place at once.
                if let Some(respond) = respond {
                    respond.answer(Ok(()));
                }
            }
            Applied::Created(state) => self.on_created(group, id, state, effects),
            Applied::Restored(state) => self.on_restored(group, id, &state, effects),
            Applied::Entries {
                last,
                bytes,
                changes,
                state,
            } => {
                let mut gone = false;
                self.with(group, Some(id), |replica| {
                    for (index, change) in &changes {
                        replica
                            .node
                            .apply_conf_change(change)
                            .map_err(|e| e.to_string())?;
                        tracing::debug!(%group, %index, "membership changed");
                    }
                    // Behind a freeze it has been passed over already.
                    if last.index > replica.node.applied() {
                        replica
                            .node
                            .on_applied(last.index, bytes)
                            .map_err(|e| e.to_string())?;
                    }
                    let conf_state = state.as_ref().map(|state| Arc::clone(&state.conf_state));
                    replica.node.storage_mut().set_applied(last, conf_state);
                    if let Some(state) = state {
                        replica.set_descriptor(state.descriptor);
                        gone = replica.descriptor.store_of(replica.id).is_none();
                    }
                    Ok(())
                });
                self.finish_range_steps(group, id, last.index, effects);
                self.answer_subsumer(group);
                self.finish_changes(group, id, &changes);
                if gone {
                    // If it was added again meanwhile, its successor may come.
                    let store = self.config.store;
                    let next = self
                        .replicas
                        .get(&group)
                        .map(|r| r.descriptor.lowest_on(store));
                    self.destroy(group, next.unwrap_or_default(), None, effects);
                } else if !changes.is_empty() {
                    self.wake(group);
                }
            }
        }
    }

    /// The snapshot's data is in place; now the log begins behind it.
    fn on_restored(
        &mut self,
        group: GroupId,
        id: ReplicaId,
        state: &AppliedState,
        effects: &mut Effects,
    ) {
        let worker = self.index;
        let Some(replica) = self
            .replicas
            .get_mut(&group)
            .filter(|replica| replica.id == id)
        else {
            return;
        };
        let Install::Restoring(mut append) =
            std::mem::replace(&mut replica.install, Install::Writing)
        else {
            return;
        };
        // Those that came in the same pass as the snapshot, and go on behind it.
        let entries = append.take_entries();
        let log = replica.node.storage_mut();
        log.reset(state.last, Arc::clone(&state.conf_state));
        log.append(&entries);
        replica.set_descriptor(Arc::clone(&state.descriptor));
        let (range, registry) = (state.descriptor.range.as_ref(), &self.shared.registry);
        let settled = registry.settle(group, id, range);
        for right in replica.ranges.subsuming.drain(..) {
            let worker = self.shared.router.worker_of(right);
            effects.inputs.push((worker, Input::Subsumed(right)));
        }
        replica.ranges.handed = state.last.index;
        replica.flushed = state.last.index;
        replica.proposals.skipped_to(state.last.index);
        replica.ranges.skipped_to(state.last.index);
        // Nobody here saw what became of these either.
        let skipped =
            |change: &mut PendingChange| !change.applied && change.id.index <= state.last.index;
        for change in replica.changes.extract_if(.., skipped) {
            change.respond.answer(Err(Reject::Ambiguous));
        }
        replica.writes_in_flight += 1;
        let hard_state = append.hard_state().or(replica.unsaved.take());
        let section = LogSection {
            group,
            reset: Some(state.last),
            hard_state,
            entries,
            ..LogSection::default()
        };
        let routes = Arc::clone(&replica.routes);
        effects.writes.push(WriteItem {
            worker,
            replica: id,
            section,
            sync: true,
            append: Some(*append),
            routes,
            created: None,
            destroyed: None,
        });
        Counters::add(&self.shared.counters.snapshots_installed, 1);
        tracing::debug!(%group, replica = %id, index = %state.last.index, "snapshot installed");
        if let Err(taken) = settled {
            self.quarantine(group, &taken.to_string());
        }
        self.end_doomed(effects);
    }

    /// The reset log is durable: the replica is back in service.
    pub(super) fn finish_install(&mut self, group: GroupId) {
        let Some(replica) = self.replicas.get_mut(&group) else {
            return;
        };
        if matches!(replica.install, Install::Writing) && replica.writes_in_flight == 0 {
            replica.install = Install::None;
            for creator in replica.creators.drain(..) {
                creator.answer(Ok(()));
            }
            self.wake(group);
            self.answer_subsumer(group);
        }
    }

    /// The core wants a snapshot installed: its data goes first.
    pub(super) fn begin_install(
        replica: &mut Replica,
        worker: usize,
        append: Append,
        shared: &Shared,
        effects: &mut Effects,
    ) -> Result<(), String> {
        let Install::Offered(staged) = std::mem::take(&mut replica.install) else {
            return Err("a snapshot is to be installed whose data never came".to_owned());
        };
        replica.install = Install::Restoring(Box::new(append));
        replica.ranges.held.clear();
        let subsumes = staged.subsumes.iter().map(|it| it.group);
        replica.ranges.subsuming = subsumes.collect();
        let generation = staged.state.descriptor.epoch.range;
        shared.router.announce(replica.group, generation);
        let replica = replica.id;
        effects.applies.push(ApplyTask::Restore {
            worker,
            replica,
            staged,
        });
        Ok(())
    }
}

/// The replica that data belongs to, if that is one from before `replica`, whose end takes all data with it.
/// Data may well speak of a later one: of who was added again behind a removal that is still to be seen to.
fn earlier_owner(
    descriptor: &GroupDescriptor,
    store: StoreId,
    replica: ReplicaId,
) -> Option<ReplicaId> {
    let owner = descriptor.replica_on(store)?;
    (owner < replica && descriptor.store_of(replica).is_none()).then_some(owner)
}

/// The descriptor of a replica that knows nothing but its group.
fn uninitialised(group: GroupId) -> Arc<GroupDescriptor> {
    Arc::new(GroupDescriptor {
        group,
        ..GroupDescriptor::default()
    })
}
