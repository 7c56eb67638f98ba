//! Changes of a range: from the wish to the entry, from the committed entry to its effect, and the birth of
//! the groups that a split makes.
//!
//! The order that makes a crash anywhere harmless: the data of all groups of a split changes in one write,
//! which a crash may take back; the new groups' records are written when it cannot any more. So nobody has
//! heard anything of a new group here that a restart does not know, and a crash between the two leaves
//! data without a record, for which the next start writes it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use polyraft_core::{
    Entry, EntryId, EntryKind, HardState, Index, ProposeError, ReplicaId, planted,
};

use super::collect::apply;
use super::merges::{Neighbour, stop_neighbour};
use super::{BOOTSTRAP, Shared, Worker, followers};
use crate::config::HostConfig;
use crate::effects::{ApplyTask, Effects, RangeTask, WriteItem};
use crate::env::{Lifecycle, LogSection, RangeChange, RecoveredGroup, SplitRight};
use crate::error::Reject;
use crate::group::{AppliedState, GroupDescriptor, GroupId};
use crate::input::Input;
use crate::ranges::registry::Unready;
use crate::ranges::{RangeCommand, RangeOutcome, RangeRefusal};
use crate::replica::{Ask, Doom, Install, Replica, Shift, Step};
use crate::responder::Responder;

/// The answer to who asked for a change of a range: all groups that came out of it, by range.
pub(crate) type RangeResponder = Responder<Result<Vec<GroupDescriptor>, Reject>>;

impl Worker {
    /// Proposes a command, if it would have its effect now.
    pub(super) fn change_range(
        &mut self,
        group: GroupId,
        command: &RangeCommand,
        respond: RangeResponder,
    ) {
        if let RangeCommand::Split { pieces, .. } = command
            && let Some(used) = pieces
                .iter()
                .find(|piece| !self.shared.registry.is_unused(piece.group))
        {
            let why = format!("group {} is or was here: take another number", used.group);
            return respond.answer(Err(Reject::Refused(why)));
        }
        let config = Arc::clone(&self.config);
        let replica = match self.leading(group) {
            Ok(replica) => replica,
            Err(reject) => return respond.answer(Err(reject)),
        };
        match propose_range(replica, command, &config) {
            Ok(id) => {
                replica.ranges.proposed = id;
                replica.ranges.asked.push(Ask { id, respond });
                self.wake(group);
            }
            Err(reject) => respond.answer(Err(reject)),
        }
    }

    /// Entries up to `applied` have their effect, commands for the host among them: publishes what came out
    /// of those, and answers.
    pub(super) fn finish_range_steps(
        &mut self,
        group: GroupId,
        id: ReplicaId,
        applied: Index,
        effects: &mut Effects,
    ) {
        let worker = self.index;
        let Some(replica) = self.replicas.get_mut(&group).filter(|it| it.id == id) else {
            return;
        };
        let ranges = &mut replica.ranges;
        if ranges.steps.is_empty() && ranges.asked.is_empty() {
            return;
        }
        let done = |step: &mut Step| step.id.index <= applied;
        let mut steps = Vec::new();
        while let Some(step) = ranges.steps.pop_front_if(|step| done(step)) {
            steps.push(step);
        }
        let own = |step: &Step| step.result.as_ref().ok()?.first().cloned();
        if replica.quarantined.is_some()
            && let Some(own) = steps.iter().rev().find_map(own)
        {
            // What it does not own any more must not go with it.
            replica.set_descriptor(own);
        }
        if !steps.is_empty() {
            // Whoever is answered finds it.
            let (router, summary) = (&self.shared.router, replica.summary());
            replica.published = summary;
            router.publish(worker, summary, &replica.descriptor);
        }
        let mut early = Vec::new();
        for mut step in steps {
            tracing::info!(%group, at = %step.id.index, result = ?step.result, "range command");
            early.extend(step.shift.take_if(|shift| match shift.absorbs {
                None => planted!(BornBeforeFlush),
                Some(_) => planted!(SubsumedBeforeFlush),
            }));
            if let Some(mut shift) = step.shift.take() {
                shift.after_flush = self.shared.flushes.load(Ordering::SeqCst);
                replica.ranges.shifts.push(shift);
                self.unsettled.insert(group);
                effects.flush = true;
            }
            answer(replica, &step);
        }
        answer_overwritten(replica, applied);
        for shift in early {
            match shift.absorbs {
                Some(right) => self.bury_neighbour(group, right, &shift, effects),
                None => self.give_birth(group, shift, effects),
            }
        }
    }

    /// The applier has given the group up: what it had not applied it never will.
    pub(super) fn abandon_range_steps(&mut self, group: GroupId) {
        let Some(replica) = self.replicas.get_mut(&group) else {
            return;
        };
        let mut absorbed = Vec::new();
        for step in replica.ranges.steps.drain(..) {
            if let Some(shift) = step.shift {
                self.shared.registry.abandon(shift.kept());
                absorbed.extend(shift.absorbs);
            }
        }
        replica.ranges.held.clear();
        if !replica.ranges.subsuming.is_empty() {
            absorbed.append(&mut replica.ranges.subsuming);
            self.shared.registry.withdraw(group);
        }
        for right in absorbed {
            self.release(group, right);
        }
    }

    /// The flush of this number is done: splits that were applied before it began are durable.
    pub(super) fn on_durable(&mut self, flush: u64, effects: &mut Effects) {
        let waiting: Vec<GroupId> = self.unsettled.iter().copied().collect();
        for group in waiting {
            let Some(replica) = self.replicas.get_mut(&group) else {
                self.unsettled.remove(&group);
                continue;
            };
            let durable = |shift: &mut Shift| shift.after_flush < flush;
            let shifts: Vec<Shift> = replica.ranges.shifts.extract_if(.., durable).collect();
            if replica.ranges.shifts.is_empty() {
                self.unsettled.remove(&group);
            } else {
                effects.flush = true;
            }
            self.answer_subsumer(group);
            for shift in shifts {
                match shift.absorbs {
                    Some(right) => self.bury_neighbour(group, right, &shift, effects),
                    None => self.give_birth(group, shift, effects),
                }
            }
        }
        self.end_doomed(effects);
    }

    /// The new groups begin, each on its own worker.
    fn give_birth(&mut self, group: GroupId, split: Shift, effects: &mut Effects) {
        let Some(replica) = self.replicas.get(&group) else {
            return;
        };
        let campaign = replica.leads() && replica.quarantined.is_none();
        let (registry, router) = (&self.shared.registry, &self.shared.router);
        let kept = split
            .rights
            .into_iter()
            .filter_map(|(state, id)| Some((state, id?)));
        let kept: Vec<(AppliedState, ReplicaId)> = kept.collect();
        let ranges = kept.iter().map(|(state, _)| {
            let descriptor = &state.descriptor;
            (descriptor.group, descriptor.range.as_ref())
        });
        let divided = registry.divide((group, split.left.as_ref()), ranges);
        for (state, replica) in kept {
            let worker = router.worker_of(state.descriptor.group);
            let state = Box::new(state);
            let birth = Input::Born {
                state,
                replica,
                campaign,
            };
            effects.inputs.push((worker, birth));
        }
        if let Err(owner) = divided {
            let reason = format!("after a split its range overlaps that of group {owner}");
            self.quarantine(group, &reason);
        }
    }

    /// What the right neighbour had is the left one's for good.
    fn bury_neighbour(
        &mut self,
        group: GroupId,
        right: GroupId,
        shift: &Shift,
        effects: &mut Effects,
    ) {
        let (registry, router) = (&self.shared.registry, &self.shared.router);
        let united = registry.unite(group, shift.left.as_ref(), right);
        if !planted!(SubsumedForgotten) {
            let buried = (router.worker_of(right), Input::Subsumed(right));
            effects.inputs.push(buried);
        }
        if let Err(owner) = united {
            let reason = format!("after a merge its range overlaps that of group {owner}");
            self.quarantine(group, &reason);
        }
    }

    /// A group that a split has made here is durable: its replica begins. There may be one already, which
    /// a vote has made; what it has promised still counts.
    pub(super) fn on_born(
        &mut self,
        state: &AppliedState,
        id: ReplicaId,
        campaign: bool,
        effects: &mut Effects,
    ) {
        let group = state.descriptor.group;
        let known = self.replicas.remove(&group);
        let promised = known.as_ref().map_or_else(HardState::default, |replica| {
            replica.node.basic_status().hard_state
        });
        let hard_state = first_hard_state(promised);
        let recovered = RecoveredGroup {
            group,
            replica: id,
            hard_state,
            truncated: BOOTSTRAP,
            last: BOOTSTRAP,
            terms: Vec::new(),
        };
        self.shared.registry.born(group);
        if let Err(error) = self.recover(&recovered, Some(state)) {
            tracing::error!(%group, %error, "a new group cannot begin before the next start");
            return;
        }
        let lifecycle = known.is_none().then_some(Lifecycle::Create { replica: id });
        let section = LogSection {
            group,
            lifecycle,
            reset: Some(BOOTSTRAP),
            hard_state: Some(hard_state),
            ..LogSection::default()
        };
        let created = known.and_then(|known| self.inherit(group, *known));
        if let Some(replica) = self.replicas.get_mut(&group) {
            replica.writes_in_flight += 1;
        }
        effects.applies.push(ApplyTask::Load(state.clone()));
        effects.writes.push(WriteItem {
            created,
            ..self.write(group, id, section)
        });
        tracing::info!(%group, replica = %id, campaign, "a split has made a group");
        self.take_early(group, effects);
        if campaign {
            self.with(group, Some(id), |replica| {
                replica.node.campaign().map_err(|error| error.to_string())
            });
        }
    }

    /// What a replica without data leaves to the one that takes its place under the same id.
    fn inherit(&mut self, group: GroupId, known: Replica) -> Option<Responder<Result<(), Reject>>> {
        self.cache_bytes = self.cache_bytes.saturating_sub(known.cached);
        let replica = self.replicas.get_mut(&group)?;
        // Receipts of what it wrote are still to come; they mean nothing to the new one.
        replica.void_receipts = known.writes_in_flight + known.void_receipts;
        let creators = known.creators;
        let answer_all = move |result: Result<(), Reject>| {
            for creator in creators {
                creator.answer(result.clone());
            }
        };
        Some(Responder::new(|| Err(Reject::Ambiguous), answer_all))
    }

    /// Puts the end of a replica off while its data is about to change hands: while groups wait for
    /// what it gave them, or a snapshot of another range is being installed. False: nothing of
    /// that.
    pub(super) fn put_off_end(
        &mut self,
        group: GroupId,
        next_replica: ReplicaId,
        respond: &mut Option<Responder<Result<(), Reject>>>,
    ) -> bool {
        let Some(replica) = self.replicas.get_mut(&group) else {
            return false;
        };
        if !replica.is_in_between() {
            return false;
        }
        let doom = replica.ranges.doomed.get_or_insert_with(|| Doom {
            next_replica,
            asked: Vec::new(),
        });
        doom.next_replica = doom.next_replica.max(next_replica);
        doom.asked.extend(respond.take());
        self.doomed.insert(group);
        true
    }

    /// Ends replicas whose end was put off and need not be any more.
    pub(super) fn end_doomed(&mut self, effects: &mut Effects) {
        let doomed: Vec<GroupId> = self.doomed.iter().copied().collect();
        for group in doomed {
            let Some(replica) = self.replicas.get_mut(&group) else {
                self.doomed.remove(&group);
                continue;
            };
            if replica.is_in_between() {
                continue;
            }
            self.doomed.remove(&group);
            let Some(doom) = replica.ranges.doomed.take() else {
                continue;
            };
            let asked = doom.asked;
            let answer_all = move |result: Result<(), Reject>| {
                for responder in asked {
                    responder.answer(result.clone());
                }
            };
            let respond = Responder::new(|| Err(Reject::Ambiguous), answer_all);
            self.destroy(group, doom.next_replica, Some(respond), effects);
        }
    }
}

/// The first hard state of a group that a split makes: the term of its first state, or what was promised
/// before it came.
fn first_hard_state(promised: HardState) -> HardState {
    let term = promised.term.max(BOOTSTRAP.term);
    HardState {
        term,
        vote: promised.vote,
        commit: BOOTSTRAP.index,
    }
}

/// Whether a leader has a command for the host in its log that is not applied: what it proposed meanwhile
/// would be applied to another range than it was taken for.
pub(super) fn holds_back(replica: &Replica) -> bool {
    let log = replica.node.storage();
    let proposed = replica.ranges.proposed;
    let own = if proposed.term == replica.node.term() {
        proposed.index
    } else {
        Index(0)
    };
    replica.leads() && applied_or_void(replica) < log.last_command().max(own)
}

/// Whether a leader has a change of membership in its log that is not applied.
fn is_changing(replica: &Replica) -> bool {
    let log = replica.node.storage();
    !replica.changes.is_empty() || applied_or_void(replica) < log.last_change()
}

/// The state as of the last entry that is applied.
pub(super) fn applied_state(replica: &Replica) -> AppliedState {
    let log = replica.node.storage();
    AppliedState {
        last: log.applied(),
        conf_state: Arc::clone(log.conf_state()),
        descriptor: Arc::clone(&replica.descriptor),
    }
}

/// The last entry that is applied, or has no effect because the group is frozen.
pub(super) fn applied_or_void(replica: &Replica) -> Index {
    if replica.descriptor.frozen.is_some() && is_frozen(replica) {
        return replica.node.applied();
    }
    replica.applied()
}

/// What is behind a freeze is as good as applied: the core hands out more, among which may be a thaw.
fn pass_over(replica: &mut Replica) -> Result<(), String> {
    let void = replica.descriptor.frozen.is_some() && replica.ranges.steps.is_empty();
    if !void || !is_frozen(replica) {
        return Ok(());
    }
    let applied = replica.node.applied();
    let held = replica.ranges.held.iter();
    let new = held.filter(|entry| entry.index > applied);
    let (mut last, mut bytes) = (applied, 0);
    for entry in new {
        last = entry.index;
        bytes += entry.size();
    }
    if last == applied {
        return Ok(());
    }
    let passed = replica.node.on_applied(last, bytes);
    passed.map_err(|error| error.to_string())
}

/// Whether the entries that wait behind a freeze end it. Nothing else behind it has any effect, and is not
/// even applied, so that all replicas are frozen with the same state.
fn is_thawed(replica: &Replica) -> bool {
    let expected = replica.descriptor.epoch;
    let thaw = RangeCommand::Thaw { expected };
    let held = replica.ranges.held.iter();
    let mut commands = held.filter(|entry| entry.kind == EntryKind::Host);
    commands.any(|entry| RangeCommand::decode(&entry.data).as_ref() == Ok(&thaw))
}

/// Whether nothing may be handed to the applier at the moment.
fn is_frozen(replica: &Replica) -> bool {
    let freezes = |step: &Step| {
        let after = step.result.as_ref().ok().and_then(|groups| groups.first());
        after.is_some_and(|after| after.frozen.is_some())
    };
    let about_to = replica.ranges.steps.iter().any(freezes);
    let subsumer = replica.ranges.subsumer.as_ref();
    let subsumed = subsumer.is_some_and(|subsumer| subsumer.at.is_none());
    if planted!(MergeWithoutFreeze) {
        return subsumer.is_some_and(|subsumer| subsumer.answered);
    }
    about_to || subsumed || replica.descriptor.frozen.is_some() && !is_thawed(replica)
}

fn propose_range(
    replica: &mut Replica,
    command: &RangeCommand,
    config: &HostConfig,
) -> Result<EntryId, Reject> {
    if holds_back(replica) {
        return Err(Reject::Busy("another change of the range is under way"));
    }
    let joint = replica.node.storage().conf_state().is_joint();
    if is_changing(replica) || joint && !command.undoes() {
        return Err(Reject::Busy("a change of membership is under way"));
    }
    let state = applied_state(replica);
    state.after(command, state.last).map_err(refused)?;
    // It would need one of each part, and of the new ones only when it has the old one's.
    let splits = matches!(command, RangeCommand::Split { .. });
    if splits && followers::awaited(replica, config).snapshot {
        return Err(Reject::Busy("a follower waits for a snapshot"));
    }
    let data = command.encode();
    let (size, limit) = (data.len() as u64, config.command_bytes_max);
    if size > limit {
        return Err(Reject::TooLarge { size, limit });
    }
    match replica.node.propose_host(data) {
        Ok(Some(id)) => Ok(id),
        Ok(None) => Err(replica.not_leader()),
        Err(ProposeError::UncommittedLimit) => {
            Err(Reject::Busy("too much of this group is uncommitted"))
        }
        Err(_) if replica.leads() => Err(Reject::Busy("leadership is being transferred")),
        Err(_) => Err(replica.not_leader()),
    }
}

/// A command that has no effect, in the words of who asked for it.
fn refused(refusal: RangeRefusal) -> Reject {
    match refusal {
        RangeRefusal::StaleEpoch { current } => Reject::StaleEpoch { current },
        RangeRefusal::Frozen { into } => Reject::Frozen { into },
        other => Reject::Refused(other.to_string()),
    }
}

fn answer(replica: &mut Replica, step: &Step) {
    let asked = replica.ranges.asked.extract_if(.., |ask| ask.id == step.id);
    for ask in asked {
        let result = match &step.result {
            Ok(groups) => Ok(groups.iter().map(|it| GroupDescriptor::clone(it)).collect()),
            Err(refusal) => Err(refused(refusal.clone())),
        };
        ask.respond.answer(result);
    }
}

/// Those in whose entry's place another one was committed.
fn answer_overwritten(replica: &mut Replica, applied: Index) {
    let overwritten = |ask: &mut Ask| ask.id.index <= applied;
    let gone: Vec<Ask> = replica.ranges.asked.extract_if(.., overwritten).collect();
    for ask in gone {
        ask.respond.answer(Err(replica.not_leader()));
    }
}

/// Hands committed entries to the applier, up to the first command for the host before which not everything
/// is applied.
///
/// # Errors
/// A command that cannot be understood, or cannot have its effect here.
pub(super) fn hand_out(
    replica: &mut Replica,
    worker: usize,
    shared: &Shared,
    config: &HostConfig,
    effects: &mut Effects,
) -> Result<(), String> {
    if !matches!(replica.install, Install::None) {
        return Ok(());
    }
    while !is_frozen(replica)
        && let Some(first) = replica.ranges.held.front()
    {
        if first.kind != EntryKind::Host {
            let is_command = |entry: &Entry| entry.kind == EntryKind::Host;
            let held = &mut replica.ranges.held;
            let run = held.iter().position(is_command).unwrap_or(held.len());
            let entries = held.drain(..run).collect();
            apply(replica, worker, entries, effects);
            continue;
        }
        if replica.applied().next() != first.index {
            break;
        }
        let entry = first.clone();
        if !begin_command(replica, worker, &entry, shared, config, effects)? {
            break;
        }
        replica.ranges.held.pop_front();
    }
    pass_over(replica)
}

/// Decides what a command does, and has it done. False: not yet.
fn begin_command(
    replica: &mut Replica,
    worker: usize,
    entry: &Entry,
    shared: &Shared,
    config: &HostConfig,
    effects: &mut Effects,
) -> Result<bool, String> {
    let id = entry.id();
    let command = RangeCommand::decode(&entry.data).map_err(|error| error.to_string())?;
    let inspect = match command {
        RangeCommand::Inspect { id, .. } => Some(id),
        _ => None,
    };
    let (result, shift, outcome) = match applied_state(replica).after(&command, id) {
        Err(refusal) => (Err(refusal), None, None),
        Ok(RangeOutcome::Changed(state)) => {
            let after = Arc::clone(&state.descriptor);
            (Ok(vec![Arc::clone(&after)]), None, Some((after, None)))
        }
        Ok(RangeOutcome::Split { left, rights }) => {
            let on_store = |right: &AppliedState| right.descriptor.replica_on(config.store);
            let expected: Vec<_> = rights
                .iter()
                .map(|right| (right.descriptor.group, on_store(right)))
                .collect();
            let keeps = match shared.registry.conceive(&expected) {
                Ok(keeps) => keeps,
                Err(Unready::Wait) => return Ok(false),
                Err(Unready::Broken(reason)) => return Err(reason),
            };
            let after = Arc::clone(&left.descriptor);
            let all = rights.iter().map(|right| &right.descriptor);
            let all = [&after].into_iter().chain(all).map(Arc::clone).collect();
            let (shift, change) = divided(&after, rights, &expected, &keeps);
            (Ok(all), Some(shift), Some((after, Some(change))))
        }
        Ok(RangeOutcome::Merged { left, right }) => {
            if replica.ranges.awaits_snapshot {
                return Ok(false);
            }
            let right_worker = shared.router.worker_of(right.group);
            let stopped = stop_neighbour(replica, worker, id, &right, right_worker, effects)?;
            let Neighbour::Stopped(right) = stopped else {
                return Ok(false);
            };
            let after = Arc::clone(&left.descriptor);
            let shift = Shift {
                left: after.range.clone(),
                rights: Vec::new(),
                absorbs: Some(right.descriptor.group),
                after_flush: u64::MAX,
            };
            let change = RangeChange::Merge { right: *right };
            let outcome = (Arc::clone(&after), Some(change));
            (Ok(vec![after]), Some(shift), Some(outcome))
        }
    };
    if let Some((after, _)) = &outcome {
        // Before its data moves: who reads it now must not take what is gone for what never was.
        shared.router.announce(replica.group, after.epoch.range);
    }
    replica.ranges.handed = id.index;
    replica.ranges.steps.push_back(Step { id, result, shift });
    let lost = replica.not_leader();
    let _none = replica
        .proposals
        .committed([id].into_iter(), || lost.clone());
    effects.applies.push(ApplyTask::Range(Box::new(RangeTask {
        worker,
        group: replica.group,
        replica: replica.id,
        id,
        bytes: entry.size(),
        inspect: inspect.filter(|_| outcome.is_some()),
        outcome,
    })));
    Ok(true)
}

/// A split, for this worker and for the applier.
fn divided(
    left: &GroupDescriptor,
    rights: Vec<AppliedState>,
    expected: &[(GroupId, Option<ReplicaId>)],
    keeps: &[bool],
) -> (Shift, RangeChange) {
    let each = rights.iter().zip(keeps);
    let changes = each.map(|(state, keep)| SplitRight {
        state: state.clone(),
        keep: *keep,
    });
    let change = RangeChange::Split {
        rights: changes.collect(),
    };
    let replicas = expected.iter().zip(keeps);
    let replicas = replicas.map(|((_, replica), keep)| replica.filter(|_| *keep));
    let split = Shift {
        left: left.range.clone(),
        rights: rights.into_iter().zip(replicas).collect(),
        absorbs: None,
        after_flush: u64::MAX,
    };
    (split, change)
}
