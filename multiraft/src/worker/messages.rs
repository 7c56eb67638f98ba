//! Requests of clients and messages of other stores, on their way into replicas.

use std::collections::VecDeque;

use polyraft_core::{EntryId, Message, Payload, ReplicaId, StepError, planted};

use super::{BOOTSTRAP, Counters, Worker};
use crate::effects::{ApplyTask, Effects, LaneKey};
use crate::env::{Body, GroupMessage, Lost, SnapshotHeader, StagedSnapshot};
use crate::error::Reject;
use crate::group::{GroupId, StoreId};
use crate::replica::{Install, Queued, Replica, Subsumer, Waiter};

impl Worker {
    pub(super) fn propose(&mut self, group: GroupId, command: Queued) {
        let replica = match self.leading(group) {
            Ok(replica) => replica,
            Err(reject) => return command.respond.answer(Err(reject)),
        };
        replica.proposals.queue(command);
        Counters::add(&self.shared.counters.proposals, 1);
        self.wake(group);
    }

    pub(super) fn read(&mut self, group: GroupId, waiter: Waiter) {
        match self.leading(group) {
            Ok(replica) => {
                replica.reads.queued.push(waiter);
                Counters::add(&self.shared.counters.reads, 1);
                self.wake(group);
            }
            Err(reject) => waiter.respond.answer(Err(reject)),
        }
    }

    /// The replica of a group that can take requests, if it leads. Else it is woken: a leader that sleeps is
    /// woken by the request when it gets there, but if only its replica is gone and not its store,
    /// nothing but this tells a sleeping follower so.
    pub(super) fn leading(&mut self, group: GroupId) -> Result<&mut Replica, Reject> {
        let replica = self.serving(group)?;
        if !replica.leads() {
            let (reject, asleep) = (replica.not_leader(), replica.asleep);
            if asleep {
                self.wake(group);
            }
            return Err(reject);
        }
        self.serving(group)
    }

    /// The replica of a group that can take requests.
    pub(super) fn serving(&mut self, group: GroupId) -> Result<&mut Replica, Reject> {
        let Some(replica) = self.replicas.get_mut(&group) else {
            return Err(Reject::NoGroup(group));
        };
        if let Some(reason) = &replica.quarantined {
            let why = format!("the replica is out of service: {reason}");
            return Err(Reject::Refused(why));
        }
        if let Some(Subsumer { left, .. }) = replica.ranges.subsumer {
            return Err(Reject::Frozen { into: left });
        }
        Ok(replica)
    }

    pub(super) fn on_message(
        &mut self,
        from: StoreId,
        message: GroupMessage,
        effects: &mut Effects,
    ) {
        Counters::add(&self.shared.counters.messages_in, 1);
        let group = message.group;
        if self.shared.registry.is_being_born(group) {
            return self.keep_early(from, message);
        }
        let (message, sleep) = match message.body {
            Body::Raft(message) => (message, false),
            Body::Sleep(message) => (message, true),
            Body::Tombstone {
                replica,
                next_replica,
            } => {
                return self.on_tombstone(group, replica, next_replica, effects);
            }
        };
        if !self.admit(from, group, &message, effects) {
            return;
        }
        let Some(replica) = self.replicas.get_mut(&group) else {
            return;
        };
        if let Payload::Snapshot(snapshot) = &message.payload
            && snapshot.meta.last.index > replica.node.committed()
        {
            // It was refused because all of it was here; if it is not any more, its data is needed.
            return;
        }
        replica.learn_route(message.from, from);
        replica.silent_ticks = 0;
        let (sender, term) = (message.from, message.term);
        let heartbeat = match message.payload {
            Payload::Heartbeat { commit, .. } => Some(commit),
            _ => None,
        };
        let answer = matches!(message.payload, Payload::HeartbeatResponse { .. });
        if heartbeat.is_some()
            && let Some(message) = first_state(replica, &message)
        {
            let body = Body::Raft(message);
            effects.send(from, LaneKey::Control, GroupMessage { group, body });
        }
        match replica.node.step(message) {
            Ok(()) => {}
            Err(StepError::Poisoned(why)) => return self.quarantine(group, why),
            Err(StepError::Storage(error)) => {
                return self.quarantine(group, &error.to_string());
            }
            Err(StepError::PeerNotFound | StepError::Propose(_)) => {}
            Err(error) => {
                Counters::add(&self.shared.counters.messages_refused, 1);
                tracing::warn!(%group, %from, %error, "message refused");
            }
        }
        // A follower that has everything and knows that it is committed may sleep with its leader, also
        // if it hears so only now: it is applied in its sleep. A sleeping leader need not wake for the
        // answers to its last heartbeat. Everything else is work. The leader's store may be gone by now:
        // news of that overtake messages, and nobody would bring them again.
        let caught_up = sleep
            && self.up.contains(&from)
            && heartbeat == Some(replica.node.last_index())
            && replica.node.term() == term
            && replica.node.leader() == sender
            && !replica.leads()
            && replica.node.committed() == replica.node.last_index();
        if caught_up && !replica.has_work() {
            replica.asleep = true;
            self.awake.remove(&group);
            self.touch(group);
        } else if answer && replica.asleep {
            self.touch(group);
        } else {
            self.wake_for_message(group, heartbeat.is_some() || answer);
        }
    }

    /// Whoever made the group elsewhere wants to lead it. Its candidate does not ask again before an election
    /// timeout has passed, so it waits for the birth here. Everything else Raft repeats by itself.
    fn keep_early(&mut self, from: StoreId, message: GroupMessage) {
        let Body::Raft(raft) = &message.body else {
            return;
        };
        if !matches!(raft.payload, Payload::Vote { .. }) {
            return;
        }
        self.early.push_back((from, message));
        if self.early.len() > EARLY_VOTES_MAX {
            self.early.pop_front();
        }
    }

    /// A group is here of which votes were wanted before.
    pub(super) fn take_early(&mut self, group: GroupId, effects: &mut Effects) {
        let all = std::mem::take(&mut self.early).into_iter();
        let (mine, others) = all.partition(|(_, message)| message.group == group);
        self.early = others;
        let mine: VecDeque<_> = mine;
        for (from, message) in mine {
            self.on_message(from, message, effects);
        }
    }

    /// Heartbeats and their answers keep an awake group going without counting as work.
    fn wake_for_message(&mut self, group: GroupId, routine: bool) {
        let Some(replica) = self.replicas.get(&group) else {
            return;
        };
        if routine && !replica.asleep && self.awake.contains(&group) {
            self.touch(group);
        } else {
            self.wake(group);
        }
    }

    /// Whether a message may reach a replica here; creates one, or tells the sender that it is gone.
    fn admit(
        &mut self,
        from: StoreId,
        group: GroupId,
        message: &Message,
        effects: &mut Effects,
    ) -> bool {
        if self.dying.contains(&group) || self.creating.contains_key(&group) {
            return false;
        }
        if self.shared.registry.is_being_born(group) {
            return false;
        }
        // Hosts pass no proposals on: what is proposed belongs to the range that it was taken for.
        if matches!(message.payload, Payload::Propose { .. }) {
            Counters::add(&self.shared.counters.messages_refused, 1);
            return false;
        }
        if let Some(replica) = self.replicas.get(&group) {
            if replica.quarantined.is_some() || replica.ranges.subsumer.is_some() {
                return false;
            }
            let known = &replica.descriptor;
            let removed = replica.is_initialised()
                && message.from < known.next_replica
                && known.store_of(message.from).is_none();
            if removed {
                // It was a member once and does not know that it is none any more.
                let next_replica = known.lowest_on(from);
                tell_gone(group, from, message.from, next_replica, effects);
                return false;
            }
            if message.to == replica.id {
                return true;
            }
            if message.to < replica.id {
                return false;
            }
            // A newer incarnation is wanted here: the older one is certainly no member any more.
            self.destroy(group, message.to, None, effects);
            return false;
        }
        let dead = self.shared.registry.lowest(group);
        if message.to < dead {
            if dead.0 == u64::MAX {
                tell_gone(group, from, message.from, dead, effects);
            }
            return false;
        }
        let creates = matches!(
            message.payload,
            Payload::Append { .. }
                | Payload::Heartbeat { .. }
                | Payload::Snapshot(_)
                | Payload::Vote { .. }
        );
        creates && self.create_uninitialised(group, message.to, effects)
    }

    pub(super) fn on_snapshot(
        &mut self,
        from: StoreId,
        header: SnapshotHeader,
        staged: StagedSnapshot,
        effects: &mut Effects,
    ) {
        let group = header.group;
        let wanted = self.admit(from, group, &header.message, effects);
        let Some(replica) = self.replicas.get_mut(&group).filter(|_| wanted) else {
            return self.refuse_snapshot(group, staged, effects);
        };
        let ranges = &replica.ranges;
        let busy = ranges.is_unsettled() || ranges.merging.is_some();
        let busy = busy || self.arriving.contains_key(&group);
        if busy || !matches!(replica.install, Install::None) {
            return self.refuse_snapshot(group, staged, effects);
        }
        let range = staged.state.descriptor.range.as_ref();
        if staged.subsumes.is_empty() {
            let overlapping = self.shared.registry.overlapping(group, range);
            let router = &self.shared.router;
            let known = overlapping.iter().map(|other| router.descriptor(*other));
            let gone = known
                .flatten()
                .filter(|other| staged.state.descriptor.has_subsumed(other));
            let gone: Vec<_> = gone.collect();
            let taken: Vec<_> = gone.iter().map(|it| it.group).chain([group]).collect();
            let locked = gone.iter().any(|it| self.shared.is_lock(it, &taken));
            if !gone.is_empty()
                && gone.len() == overlapping.len()
                && !locked
                && !planted!(SnapshotOverNeighbour)
            {
                return self.stop_subsumed(from, header, staged, gone);
            }
        }
        let subsumed: Vec<GroupId> = staged.subsumes.iter().map(|it| it.group).collect();
        let free = self.shared.registry.offer(group, range, &subsumed);
        if let Err(taken) = free
            && !planted!(SnapshotOverNeighbour)
        {
            // Its data would lie over the other's. The leader tries again, and one of the two may
            // be gone by then.
            Counters::add(&self.shared.counters.messages_refused, 1);
            tracing::warn!(%group, %from, %taken, "snapshot refused");
            return self.refuse_snapshot(group, staged, effects);
        }
        replica.learn_route(header.message.from, from);
        replica.install = Install::Offered(staged);
        let result = replica.node.step(header.message);
        self.wake(group);
        self.touch(group);
        match result {
            Err(StepError::Poisoned(why)) => self.quarantine(group, why),
            Err(StepError::Storage(error)) => self.quarantine(group, &error.to_string()),
            Err(error) => tracing::warn!(%group, %from, %error, "snapshot refused"),
            Ok(()) => {}
        }
    }

    fn refuse_snapshot(&mut self, group: GroupId, staged: StagedSnapshot, effects: &mut Effects) {
        for right in &staged.subsumes {
            self.release(group, right.group);
        }
        effects.applies.push(ApplyTask::Discard(staged));
    }

    /// Leaders stop to send ahead of what a store acknowledges, until it answers again.
    pub(super) fn report_unreachable(&mut self, store: StoreId, lost: &Lost) {
        let groups: Vec<GroupId> = match lost {
            Lost::Of(groups) => groups.clone(),
            Lost::Any => self.replicas.keys().copied().collect(),
        };
        for group in groups {
            let Some(replica) = self.replicas.get_mut(&group) else {
                continue;
            };
            let concerned = replica.leads() && replica.quarantined.is_none();
            if let Some(id) = replica.descriptor.replica_on(store).filter(|_| concerned) {
                replica.node.report_unreachable(id);
                self.touch(group);
            }
        }
    }
}

/// A leader that has found nothing here would send everything, although a split has brought the state
/// since with which the leader's own log begins: so it hears of that, ahead of the answer to its heartbeat,
/// until it goes on from there.
fn first_state(replica: &Replica, heartbeat: &Message) -> Option<Message> {
    let only = replica.is_initialised() && replica.node.last_index() == BOOTSTRAP.index;
    // What it says must be durable, and so must the term.
    let durable = replica.writes_in_flight == 0 && !replica.node.has_ready();
    let follows = heartbeat.term == replica.node.term() && !replica.leads();
    let idle = matches!(replica.install, Install::None);
    (only && durable && follows && idle).then(|| Message {
        from: replica.id,
        to: heartbeat.from,
        term: heartbeat.term,
        payload: Payload::AppendResponse {
            index: BOOTSTRAP.index,
            reject: None,
        },
    })
}

/// Requests for votes that wait for groups to be born, over all groups of a worker.
const EARLY_VOTES_MAX: usize = 1024;

pub(super) fn tell_gone(
    group: GroupId,
    to: StoreId,
    replica: ReplicaId,
    next_replica: ReplicaId,
    effects: &mut Effects,
) {
    if planted!(RemovalNeverTold) {
        return;
    }
    let body = Body::Tombstone {
        replica,
        next_replica,
    };
    effects.send(to, LaneKey::Append, GroupMessage { group, body });
}

/// The id of an entry that is about to be proposed, for those who wait for it.
pub(super) fn last_of(replica: &Replica) -> EntryId {
    EntryId {
        term: replica.node.term(),
        index: replica.node.last_index(),
    }
}
