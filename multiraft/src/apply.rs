//! Appliers: committed entries of many groups become one write of the state machine.
//!
//! An applier owns the applied state (last entry, configuration, descriptor) of its groups and computes
//! what changes of membership make of it by the same pure functions as the core. Everything of one
//! group goes through one applier in order, also snapshots and removal.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use polyraft_core::{
    ConfChange, ConfChangeV2, ConfState, Entry, EntryKind, Index, ReplicaId, planted,
};

use crate::codec::decode_members;
use crate::effects::{ApplyTask, DestroyData, RangeTask};
use crate::env::{ApplyItem, Command, StateMachine, StateMachineError};
use crate::error::Reject;
use crate::group::{AppliedState, GroupDescriptor, GroupId};
use crate::group_map::GroupMap;
use crate::input::{Applied, AppliedItem};
use crate::replica::Pending;
use crate::worker::{Counters, Shared};

/// See the module.
pub struct Applier {
    state_machine: Arc<dyn StateMachine>,
    shared: Arc<Shared>,
    states: GroupMap<AppliedState>,
    /// Of the write that is being gathered, or that found no room.
    turns: Vec<Turn>,
    /// Where in `turns` each group is.
    turn_of: GroupMap<usize>,
}

/// Results by worker, and groups that are damaged.
#[must_use]
#[derive(Debug, Default)]
pub struct Outcome {
    /// By worker.
    pub applied: BTreeMap<usize, Vec<AppliedItem>>,
    /// Worker, group, reason.
    pub quarantined: Vec<(usize, GroupId, String)>,
}

/// Groups in one write of the state machine.
const TURN_GROUPS_MAX: usize = 4096;

/// One group's share of a turn.
struct Turn {
    item: ApplyItem,
    rest: Rest,
}

/// What the state machine does not see of it.
struct Rest {
    worker: usize,
    replica: ReplicaId,
    pending: Vec<Pending>,
    bytes: u64,
    changes: Vec<(Index, ConfChangeV2)>,
    /// The inspection that is due at its end.
    inspect: Option<u64>,
}

impl Turn {
    fn split(self) -> (ApplyItem, Rest) {
        (self.item, self.rest)
    }
}

impl Applier {
    pub(crate) fn new(state_machine: Arc<dyn StateMachine>, shared: Arc<Shared>) -> Self {
        Self {
            state_machine,
            shared,
            states: GroupMap::default(),
            turns: Vec::new(),
            turn_of: GroupMap::default(),
        }
    }

    pub(crate) fn load(&mut self, state: AppliedState) {
        self.states.insert(state.descriptor.group, state);
    }

    /// Performs tasks in order; entries of different groups become one write. On an error the
    /// tasks not performed are still there: [`StateMachineError::DiskFull`] may be tried again,
    /// [`StateMachineError::Fatal`] means that the store must stop.
    pub fn drain(
        &mut self,
        tasks: &mut VecDeque<ApplyTask>,
    ) -> (Outcome, Result<(), StateMachineError>) {
        let mut outcome = Outcome::default();
        let result = self.perform(tasks, &mut outcome);
        self.shared.data_disk_full.store(
            matches!(result, Err(StateMachineError::DiskFull)),
            Ordering::Relaxed,
        );
        (outcome, result)
    }

    fn perform(
        &mut self,
        tasks: &mut VecDeque<ApplyTask>,
        outcome: &mut Outcome,
    ) -> Result<(), StateMachineError> {
        while let Some(task) = tasks.pop_front() {
            // Whatever is not entries happens between turns; so does what follows a turn as full as one
            // write of the state machine should be, or a change of the group's range.
            let entries = matches!(task, ApplyTask::Entries { .. } | ApplyTask::Range(_));
            if (!entries || self.turns.len() >= TURN_GROUPS_MAX || self.is_complete(task.group()))
                && let Err(error) = self.apply(outcome)
            {
                tasks.push_front(task);
                return Err(error);
            }
            match task {
                ApplyTask::Entries {
                    worker,
                    group,
                    replica,
                    entries,
                    pending,
                } => {
                    if let Err(reason) = self.gather(worker, group, replica, entries, pending) {
                        outcome.quarantined.push((worker, group, reason));
                    }
                }
                ApplyTask::Range(task) => {
                    let (worker, group) = (task.worker, task.group);
                    if let Err(reason) = self.gather_command(*task) {
                        outcome.quarantined.push((worker, group, reason));
                    }
                }
                other => self.special(other, tasks, outcome)?,
            }
        }
        self.apply(outcome)
    }

    /// Adds to the group's share of the turn.
    ///
    /// # Errors
    /// Why the entries cannot be applied; nothing of them is gathered.
    fn gather(
        &mut self,
        worker: usize,
        group: GroupId,
        replica: ReplicaId,
        entries: Vec<Entry>,
        pending: Vec<Pending>,
    ) -> Result<(), String> {
        let last = self.gathered(group)?;
        let expected = (1..).map(|after| last.plus(after));
        if let Some((entry, _)) = entries.iter().zip(expected).find(|(e, at)| e.index != *at) {
            return Err(format!("entry {} after {last}", entry.index));
        }
        let at = self.turn(worker, group, replica)?;
        let Turn { item, rest } = &mut self.turns[at];
        rest.pending.extend(pending);
        item.commands.reserve(entries.len());
        for entry in entries {
            rest.bytes += entry.size();
            item.state.last = entry.id();
            match entry.kind {
                EntryKind::Normal if entry.data.is_empty() => {}
                // No leader proposes anything behind a freeze.
                _ if item.state.descriptor.frozen.is_some() => {}
                EntryKind::Normal => {
                    let (id, data) = (entry.id(), entry.data);
                    item.commands.push(Command { id, data });
                }
                EntryKind::Host => {
                    return Err("a command for the host among those of the group".to_owned());
                }
                EntryKind::ConfChange | EntryKind::ConfChangeV2 => {
                    if let Some((change, next)) = changed(&item.state, &entry) {
                        item.state.conf_state = Arc::new(next.0);
                        item.state.descriptor = Arc::new(next.1);
                        item.membership_changed = true;
                        rest.changes.push((entry.index, change));
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether nothing more can be added to the group's share of the turn.
    fn is_complete(&self, group: GroupId) -> bool {
        let at = self.turn_of.get(&group);
        at.is_some_and(|at| {
            let Turn { item, rest } = &self.turns[*at];
            item.range_change.is_some() || rest.inspect.is_some()
        })
    }

    /// Adds a command for the host to the group's share of the turn, which is complete if data moves or is to
    /// be inspected.
    ///
    /// # Errors
    /// Why it cannot be applied; nothing of it is gathered.
    fn gather_command(&mut self, task: RangeTask) -> Result<(), String> {
        let last = self.gathered(task.group)?;
        if task.id.index != last.next() {
            return Err(format!("entry {} after {last}", task.id.index));
        }
        let at = self.turn(task.worker, task.group, task.replica)?;
        let Turn { item, rest } = &mut self.turns[at];
        rest.bytes += task.bytes;
        rest.inspect = task.inspect;
        item.state.last = task.id;
        if let Some((descriptor, change)) = task.outcome {
            item.state.descriptor = descriptor;
            item.membership_changed = true;
            item.range_change = change;
        }
        Ok(())
    }

    /// The last entry of a group that is applied or gathered.
    fn gathered(&self, group: GroupId) -> Result<Index, String> {
        if let Some(at) = self.turn_of.get(&group) {
            return Ok(self.turns[*at].item.state.last.index);
        }
        let state = self.states.get(&group);
        let state = state.ok_or("entries for a group without state")?;
        Ok(state.last.index)
    }

    /// The group's share of the turn.
    fn turn(&mut self, worker: usize, group: GroupId, replica: ReplicaId) -> Result<usize, String> {
        match self.turn_of.get(&group) {
            Some(at) => Ok(*at),
            None => self.begin(worker, group, replica),
        }
    }

    /// The group takes part in the turn.
    fn begin(
        &mut self,
        worker: usize,
        group: GroupId,
        replica: ReplicaId,
    ) -> Result<usize, String> {
        let state = self.states.get(&group);
        let state = state.ok_or("entries for a group without state")?.clone();
        let item = ApplyItem {
            group,
            commands: Vec::new(),
            state,
            membership_changed: false,
            replies: Vec::new(),
            range_change: None,
        };
        let rest = Rest {
            worker,
            replica,
            pending: Vec::new(),
            bytes: 0,
            changes: Vec::new(),
            inspect: None,
        };
        let at = self.turns.len();
        self.turns.push(Turn { item, rest });
        self.turn_of.insert(group, at);
        Ok(at)
    }

    /// Writes what is gathered. Without room it stays gathered.
    fn apply(&mut self, outcome: &mut Outcome) -> Result<(), StateMachineError> {
        let (mut items, mut rest): (Vec<ApplyItem>, Vec<Rest>) =
            self.turns.drain(..).map(Turn::split).unzip();
        self.turn_of.clear();
        while !items.is_empty() {
            match self.state_machine.apply(&mut items) {
                Ok(()) => break,
                Err(StateMachineError::Group { group, reason }) => {
                    // Nothing was written: the others go on without it.
                    let Some(at) = items.iter().position(|item| item.group == group) else {
                        return Err(StateMachineError::Fatal(reason));
                    };
                    items.remove(at);
                    let Rest { worker, .. } = rest.remove(at);
                    outcome.quarantined.push((worker, group, reason));
                }
                Err(error) => {
                    let each = items.into_iter().zip(rest);
                    self.turns = each.map(|(item, rest)| Turn { item, rest }).collect();
                    let groups = self.turns.iter().map(|turn| turn.item.group);
                    self.turn_of = groups.zip(0..).collect();
                    return Err(error);
                }
            }
        }
        if items.is_empty() {
            return Ok(());
        }
        Counters::add(&self.shared.counters.apply_batches, 1);
        for (item, rest) in items.into_iter().zip(rest) {
            let Rest {
                worker,
                replica,
                pending,
                bytes,
                changes,
                inspect,
            } = rest;
            let commands = item.commands.len() as u64;
            Counters::add(&self.shared.counters.applied_commands, commands);
            answer(&item, pending);
            let state = item.membership_changed.then(|| item.state.clone());
            let last = item.state.last;
            let group = item.group;
            self.states.insert(group, item.state);
            if let Some(id) = inspect {
                self.state_machine.inspect(group, id);
            }
            let what = Applied::Entries {
                last,
                bytes,
                changes,
                state,
            };
            let results = outcome.applied.entry(worker).or_default();
            results.push(AppliedItem {
                group,
                replica,
                what,
            });
        }
        Ok(())
    }

    fn special(
        &mut self,
        task: ApplyTask,
        tasks: &mut VecDeque<ApplyTask>,
        outcome: &mut Outcome,
    ) -> Result<(), StateMachineError> {
        let group = task.group();
        let (worker, replica, result) = match task {
            ApplyTask::Entries { .. } | ApplyTask::Range(_) => {
                unreachable!("entries are applied in turns")
            }
            ApplyTask::Load(state) => {
                self.load(state);
                return Ok(());
            }
            ApplyTask::Discard(staged) => {
                self.state_machine.discard(&staged);
                return Ok(());
            }
            ApplyTask::Create {
                worker,
                state,
                replica,
            } => match self.state_machine.create(&state) {
                Ok(()) => (worker, replica, Ok(self.loaded(state, Applied::Created))),
                Err(StateMachineError::DiskFull) => {
                    tasks.push_front(ApplyTask::Create {
                        worker,
                        state,
                        replica,
                    });
                    return Err(StateMachineError::DiskFull);
                }
                Err(error) => (worker, replica, Err(error)),
            },
            ApplyTask::Restore {
                worker,
                replica,
                staged,
            } => match self.state_machine.restore(&staged) {
                Ok(()) => (
                    worker,
                    replica,
                    Ok(self.loaded(staged.state, Applied::Restored)),
                ),
                Err(StateMachineError::DiskFull) => {
                    tasks.push_front(ApplyTask::Restore {
                        worker,
                        replica,
                        staged,
                    });
                    return Err(StateMachineError::DiskFull);
                }
                Err(error) => (worker, replica, Err(error)),
            },
            ApplyTask::Destroy {
                worker,
                replica,
                data,
            } => match self.remove(&data) {
                Ok(()) => {
                    self.states.remove(&group);
                    let respond = data.respond;
                    (worker, replica, Ok(Applied::Destroyed { respond }))
                }
                Err(StateMachineError::DiskFull) => {
                    tasks.push_front(ApplyTask::Destroy {
                        worker,
                        replica,
                        data,
                    });
                    return Err(StateMachineError::DiskFull);
                }
                Err(error) => (worker, replica, Err(error)),
            },
        };
        match result {
            Ok(what) => {
                let results = outcome.applied.entry(worker).or_default();
                results.push(AppliedItem {
                    group,
                    replica,
                    what,
                });
                Ok(())
            }
            Err(StateMachineError::Group { group, reason }) => {
                outcome.quarantined.push((worker, group, reason));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn remove(&self, data: &DestroyData) -> Result<(), StateMachineError> {
        if data.merged {
            return self.state_machine.forget(data.descriptor.group);
        }
        self.state_machine.destroy(&data.descriptor)
    }

    fn loaded(&mut self, state: AppliedState, what: fn(AppliedState) -> Applied) -> Applied {
        self.states.insert(state.descriptor.group, state.clone());
        what(state)
    }
}

/// Replies go to those who proposed the commands here.
fn answer(item: &ApplyItem, pending: Vec<Pending>) {
    let mut replies = item.commands.iter().zip(&item.replies);
    for pending in pending {
        match replies.find(|(command, _)| command.id == pending.id || planted!(ReplyByPosition)) {
            Some((_, reply)) => pending.respond.answer(Ok(reply.clone())),
            // A state machine that gives fewer replies than commands leaves callers in doubt.
            None => pending.respond.answer(Err(Reject::Ambiguous)),
        }
    }
}

/// What a change makes of configuration and descriptor; none if it is not possible, in which case it
/// changes nothing, here as in the core.
fn changed(
    state: &AppliedState,
    entry: &Entry,
) -> Option<(ConfChangeV2, (ConfState, GroupDescriptor))> {
    let change = match entry.kind {
        EntryKind::ConfChange => ConfChange::decode(&entry.data).ok()?.into_v2(),
        _ => ConfChangeV2::decode(&entry.data).ok()?,
    };
    let new = decode_members(&change.context).ok()?;
    let conf_state = state.conf_state.apply(&change).ok()?;
    let descriptor = state.descriptor.after_change(&conf_state, &new);
    Some((change, (conf_state, descriptor)))
}

impl std::fmt::Debug for Applier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Applier")
            .field("groups", &self.states.len())
            .finish_non_exhaustive()
    }
}
