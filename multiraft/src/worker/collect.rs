//! The second half of a pass: what the touched groups want done becomes effects.

use std::sync::Arc;

use polyraft_core::{
    Append, Durable, Entry, EntryId, Event, Message, Payload, Persisted, ProposeError, Ready,
    RoleName, planted,
};

use super::ranges::{applied_or_void, hand_out, holds_back};
use super::{Shared, Worker};
use crate::config::HostConfig;
use crate::effects::{ApplyTask, Effects, FetchTask, LaneKey, SnapshotTask, WriteItem};
use crate::env::{Body, GroupMessage, LogSection};
use crate::error::Reject;
use crate::group::Frozen;
use crate::handle::ReadPermit;
use crate::input::Input;
use crate::replica::{Install, Pending, Replica};

impl Worker {
    pub(super) fn collect(&mut self, effects: &mut Effects) {
        let budget = self.config.entry_cache_bytes_max / self.config.workers as u64;
        while let Some(group) = self.touched.pop() {
            let Some(replica) = self.replicas.get_mut(&group) else {
                continue;
            };
            replica.touched = false;
            let drained = match replica.quarantined {
                None => drain(replica, self.index, &self.config, &self.shared, effects),
                Some(_) => {
                    let _discarded = discard_snapshot(replica, &self.shared, effects);
                    Ok(())
                }
            };
            // Beside what was counted last: truncation and snapshots change it between collections.
            let after = settle_cache(replica, self.cache_bytes > budget);
            let before = std::mem::replace(&mut replica.cached, after);
            self.cache_bytes = (self.cache_bytes + after).saturating_sub(before);
            let summary = replica.summary();
            if summary != replica.published {
                replica.published = summary;
                let router = &self.shared.router;
                router.publish(self.index, summary, &replica.descriptor);
            }
            if let Err(reason) = drained {
                self.quarantine(group, &reason);
            }
        }
    }
}

/// Keeps in memory what somebody is still to be sent, and more only within the budget. Returns what is
/// kept.
fn settle_cache(replica: &mut Replica, over_budget: bool) -> u64 {
    let applied = replica.node.applied();
    let needed_from = match replica.node.matched_by_all() {
        // Over budget whoever lags is fed from the disk.
        Some(matched) if !over_budget => matched.min(applied),
        _ => applied,
    };
    let log = replica.node.storage_mut();
    log.evict(needed_from);
    log.cache_bytes()
}

/// Takes everything that one replica wants done.
fn drain(
    replica: &mut Replica,
    worker: usize,
    config: &HostConfig,
    shared: &Shared,
    effects: &mut Effects,
) -> Result<(), String> {
    hand_out(replica, worker, shared, config, effects)?;
    if !holds_back(replica) || planted!(ProposalsNotHeldBack) {
        refuse_outdated(replica);
        propose_queued(replica, config.message_bytes_max);
    }
    ask_for_reads(replica);
    // A Ready that needs no disk may be answered at once and give rise to another.
    while !replica.is_installing() && replica.node.has_ready() {
        let ready = replica.node.ready().map_err(|error| error.to_string())?;
        perform(replica, worker, ready, shared, effects)?;
        hand_out(replica, worker, shared, config, effects)?;
    }
    // One that the core did not take.
    if discard_snapshot(replica, shared, effects) {
        hand_out(replica, worker, shared, config, effects)?;
    }
    if !replica.leads() {
        for transfer in replica.transfers.drain(..) {
            transfer.answer(Ok(()));
        }
    }
    if !replica.reads.is_empty() {
        settle_reads(replica);
    }
    Ok(())
}

/// Commands that were meant for the group as it was before its range changed.
fn refuse_outdated(replica: &mut Replica) {
    if !replica.leads() {
        return;
    }
    let current = &replica.descriptor;
    replica.proposals.refuse_queued(|command| {
        let frozen = current.frozen.filter(|_| !planted!(MergeWithoutFreeze));
        if let Some(Frozen { into, .. }) = frozen {
            return Some(Reject::Frozen { into });
        }
        let outdated = command
            .expected
            .is_some_and(|expected| expected != current.epoch.range && !planted!(EpochNotChecked));
        outdated.then(|| Reject::RangeChanged {
            current: Arc::clone(current),
        })
    });
}

/// Commands that came in during this pass travel together: one append per follower for as many as fit,
/// one answer from each.
fn propose_queued(replica: &mut Replica, bytes_max: u64) {
    loop {
        let batch = replica.proposals.next_batch(bytes_max);
        if batch.is_empty() {
            return;
        }
        let commands = batch.iter().map(|command| command.data.clone()).collect();
        let refusal = match replica.node.propose(commands) {
            Ok(Some(first)) => {
                for (command, after) in batch.into_iter().zip(0..) {
                    replica.proposals.push(Pending {
                        id: EntryId {
                            index: first.index.plus(after),
                            ..first
                        },
                        respond: command.respond,
                        permit: command.permit,
                    });
                }
                continue;
            }
            Ok(None) => replica.not_leader(),
            Err(ProposeError::Dropped) if replica.leads() => {
                Reject::Busy("leadership is being transferred")
            }
            Err(ProposeError::Dropped) => replica.not_leader(),
            Err(ProposeError::UncommittedLimit) => {
                Reject::Busy("too much of this group is uncommitted")
            }
            // Nothing of it leaves the replica, which goes out of service at once.
            Err(error) => Reject::Refused(error.to_string()),
        };
        for command in batch {
            command.respond.answer(Err(refusal.clone()));
        }
    }
}

/// Reads whose index is applied begin; of one who leads no more none does.
fn settle_reads(replica: &mut Replica) {
    if !replica.leads() {
        let reject = replica.not_leader();
        replica.reads.reject_all(|| reject.clone());
        return;
    }
    let applied = applied_or_void(replica);
    let descriptor = &replica.descriptor;
    let (id, term) = (replica.id, replica.node.basic_status().hard_state.term);
    let frozen = descriptor.frozen.map(|frozen| frozen.into);
    let frozen = frozen.filter(|_| !planted!(FrozenRead));
    replica.reads.release(applied, frozen, || ReadPermit {
        applied,
        descriptor: Arc::clone(descriptor),
        replica: id,
        term,
    });
}

/// Everything that was asked for in this pass shares one round of heartbeats.
fn ask_for_reads(replica: &mut Replica) {
    if replica.reads.queued.is_empty() {
        return;
    }
    let context = replica.reads.ask();
    if replica.node.read_index(context).is_err() {
        let reject = replica.not_leader();
        replica.reads.refused(|| reject.clone());
    }
}

fn perform(
    replica: &mut Replica,
    worker: usize,
    ready: Ready,
    shared: &Shared,
    effects: &mut Effects,
) -> Result<(), String> {
    let group = replica.group;
    for event in &ready.events {
        observe(replica, event)?;
    }
    for message in ready.messages {
        send(replica, worker, message, effects);
    }
    for fetch in ready.fetches {
        effects.fetches.push(FetchTask {
            worker,
            group,
            replica: replica.id,
            fetch,
        });
    }
    for read in &ready.reads {
        replica.reads.confirm(read);
    }
    replica.ranges.held.extend(ready.committed);
    match ready.append {
        Some(append) => write(replica, worker, append, shared, effects),
        None => Ok(()),
    }
}

/// Hands committed entries of the state machine and changes of membership to the applier.
pub(super) fn apply(
    replica: &mut Replica,
    worker: usize,
    entries: Vec<Entry>,
    effects: &mut Effects,
) {
    let leader = replica.leader_member();
    let ids = entries.iter().map(Entry::id);
    let lost = || Reject::NotLeader { leader };
    let pending = replica.proposals.committed(ids, lost);
    if let Some(last) = entries.last() {
        replica.ranges.handed = last.index;
    }
    let (group, id) = (replica.group, replica.id);
    effects.applies.push(ApplyTask::Entries {
        worker,
        group,
        replica: id,
        entries,
        pending,
    });
}

fn write(
    replica: &mut Replica,
    worker: usize,
    mut append: Append,
    shared: &Shared,
    effects: &mut Effects,
) -> Result<(), String> {
    if append.snapshot().is_some() {
        return Worker::begin_install(replica, worker, append, shared, effects);
    }
    let sync = append.must_sync();
    if let Some(hard_state) = append.hard_state() {
        replica.unsaved = Some(hard_state);
    }
    if !sync && (replica.writes_in_flight == 0 || planted!(AckOvertakesWrite)) {
        // Everything that its messages speak of is durable already, and the commit index need not
        // be: it rides along with the next write.
        let (messages, persisted) = append.persisted(&Durable::attest());
        for message in messages {
            send(replica, worker, message, effects);
        }
        return acknowledge(replica, persisted);
    }
    let entries = append.take_entries();
    replica.node.storage_mut().append(&entries);
    replica.writes_in_flight += 1;
    let hard_state = replica.unsaved.take();
    let section = LogSection {
        group: replica.group,
        hard_state,
        entries,
        ..LogSection::default()
    };
    effects.writes.push(WriteItem {
        worker,
        replica: replica.id,
        section,
        sync,
        append: Some(append),
        routes: Arc::clone(&replica.routes),
        created: None,
        destroyed: None,
    });
    Ok(())
}

fn acknowledge(replica: &mut Replica, persisted: Persisted) -> Result<(), String> {
    if persisted.is_empty() {
        return Ok(());
    }
    replica
        .node
        .on_persisted(persisted)
        .map_err(|error| error.to_string())
}

fn send(replica: &Replica, worker: usize, message: Message, effects: &mut Effects) {
    // Whoever is not in the descriptor any more cannot be found, nor needs to be.
    let Some(to) = replica.store_of(message.to) else {
        return;
    };
    let group = replica.group;
    if matches!(message.payload, Payload::Snapshot(_)) {
        effects.snapshots.push(SnapshotTask {
            worker,
            group,
            to,
            message,
        });
        return;
    }
    let lane = lane_of(&message);
    effects.send(
        to,
        lane,
        GroupMessage {
            group,
            body: Body::Raft(message),
        },
    );
}

/// What must not wait behind bulk data has a lane of its own.
pub(crate) const fn lane_of(message: &Message) -> LaneKey {
    match message.payload {
        Payload::Heartbeat { .. }
        | Payload::HeartbeatResponse { .. }
        | Payload::Vote { .. }
        | Payload::VoteResponse { .. }
        | Payload::TimeoutNow
        | Payload::TransferLeader
        | Payload::ReadIndex { .. }
        | Payload::ReadIndexResponse { .. } => LaneKey::Control,
        Payload::Append { .. }
        | Payload::AppendResponse { .. }
        | Payload::Propose { .. }
        | Payload::Snapshot(_) => LaneKey::Append,
    }
}

/// A staged snapshot that is not going to be installed is removed. False: there is none.
pub(super) fn discard_snapshot(
    replica: &mut Replica,
    shared: &Shared,
    effects: &mut Effects,
) -> bool {
    if let Install::Offered(_) = replica.install
        && let Install::Offered(staged) = std::mem::take(&mut replica.install)
    {
        shared.registry.withdraw(replica.group);
        for right in &staged.subsumes {
            let (left, right) = (replica.group, right.group);
            let worker = shared.router.worker_of(right);
            effects
                .inputs
                .push((worker, Input::Released { left, right }));
        }
        effects.applies.push(ApplyTask::Discard(staged));
        return true;
    }
    false
}

/// # Errors
/// Something that only a replica meets which has lost what it had promised to keep.
fn observe(replica: &Replica, event: &Event) -> Result<(), String> {
    let (group, id) = (replica.group, replica.id);
    match event {
        Event::BecameRole {
            role: RoleName::Leader,
            term,
        } => {
            tracing::debug!(%group, replica = %id, %term, "became leader");
        }
        Event::SteppedDownWithoutQuorum => {
            tracing::debug!(%group, replica = %id, "stepped down: no contact to a quorum");
        }
        // A leader tells each member no more than that has acknowledged, and acknowledgements are durable.
        Event::HeartbeatCommitIgnored { commit, last } => {
            return Err(format!(
                "it has acknowledged entry {commit}, and its log ends at {last}: entries were lost"
            ));
        }
        other => tracing::trace!(%group, replica = %id, event = ?other, "raft"),
    }
    Ok(())
}
