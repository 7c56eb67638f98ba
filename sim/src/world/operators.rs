//! Operators: they create and destroy groups, change members, and move leaderships, as people and
//! balancers do.
//!
//! Creations and destructions go on until every store that is not lost has done its part, whatever befalls it
//! meanwhile. A change of membership is asked for once; what is not decided is looked at again by
//! the next one.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use polyraft_core::{ConfChangeKind, ReplicaId, Transition};
use polyraft_multiraft::{
    GroupDescriptor, GroupId, GroupStatus, KeyRange, Member, MemberChange, Reject, StoreId,
};

use super::merges::Driving;
use super::moves::Move;
use super::{Group, Phase, Stage, Told, World};
use crate::observe::Observation;
use crate::rng::Rng;
use crate::sometimes;
use crate::time::SECOND;

/// See the module.
#[derive(Debug)]
pub(super) struct Operators {
    pub(super) rng: Rng,
    pub(super) tasks: BTreeMap<u64, Task>,
    /// By task: the one alarm that counts; older ones are void.
    pub(super) alarms: BTreeMap<u64, u64>,
    pub(super) next_task: u64,
    pub(super) next_group: u64,
    /// A store is about to be lost: no changes of membership but those that replace it.
    pub(super) hold: bool,
}

/// Something that an operator wants done.
#[derive(Clone, Debug)]
pub(super) enum Task {
    /// A group, on these stores still.
    Create(GroupId, BTreeSet<StoreId>),
    /// The end of a family: of these groups on these stores still.
    Destroy(GroupId, BTreeSet<(GroupId, StoreId)>),
    /// A look at a group, to change its members then.
    Look(GroupId),
    /// A change of members is under way.
    Change,
    /// A split is under way; a stale one must not take place.
    Split { stale: bool },
    /// A merge is being driven.
    Merge(Box<Driving>),
    /// A look at a group, to move its replicas then.
    Move(Move),
    /// A step of that is under way.
    Moving(Move),
    /// A look at a group before a store is lost; see `loss.rs`.
    BeforeLoss(GroupId),
    /// A look at a group, to replace a lost store by another then.
    Replace(GroupId, StoreId, StoreId),
    /// That change is under way.
    Replacing(GroupId, StoreId, StoreId),
}

impl Operators {
    pub(super) fn new(rng: Rng) -> Self {
        Self {
            rng,
            tasks: BTreeMap::new(),
            alarms: BTreeMap::new(),
            next_task: 1,
            next_group: 1,
            hold: false,
        }
    }

    /// Whether a change of members or a split may be under way.
    pub(super) fn changing(&self) -> bool {
        self.changing_members() || self.splitting()
    }

    /// Whether a change of members may be under way.
    pub(super) fn changing_members(&self) -> bool {
        let mut tasks = self.tasks.values();
        tasks.any(|task| {
            matches!(
                task,
                Task::Look(_) | Task::Change | Task::Move(_) | Task::Moving(_)
            )
        })
    }

    /// Whether a split may be under way.
    pub(super) fn splitting(&self) -> bool {
        let mut tasks = self.tasks.values();
        tasks.any(|task| matches!(task, Task::Split { .. }))
    }

    /// Whether a lost store is being replaced in a group.
    pub(super) fn replacing(&self) -> bool {
        let mut tasks = self.tasks.values();
        tasks.any(|task| matches!(task, Task::Replace(..) | Task::Replacing(..)))
    }

    /// Whether groups are being made or ended.
    pub(super) fn making(&self) -> bool {
        let mut tasks = self.tasks.values();
        tasks.any(|task| matches!(task, Task::Create(..) | Task::Destroy(..)))
    }
}

/// The keys of a slot: `k` and the slot as eight hexadecimal digits, up to the next one.
fn range(slot: u64) -> KeyRange {
    let key = |slot: u64| Bytes::from(format!("k{slot:08x}"));
    KeyRange {
        start: key(slot),
        end: Some(key(slot + 1)),
    }
}

impl World {
    pub(super) fn begin_task(&mut self, task: Task) -> u64 {
        let number = self.operators.next_task;
        self.operators.next_task += 1;
        self.operators.tasks.insert(number, task);
        self.alarm(number, 0);
        number
    }

    /// A new group for a slot, on stores that are there.
    pub(super) fn create_group(&mut self, slot: u64) {
        let mut stores: Vec<StoreId> = self.present().into_iter().collect();
        let rng = &mut self.operators.rng;
        let wanted = usize::try_from(self.plan.members)
            .unwrap_or(1)
            .clamp(1, stores.len().max(1));
        while stores.len() > wanted {
            let out = usize::try_from(rng.below(stores.len() as u64)).unwrap_or(0);
            stores.remove(out);
        }
        let group = GroupId(self.operators.next_group);
        self.operators.next_group += 1;
        let member = |(replica, store): (u64, &StoreId)| Member {
            replica: ReplicaId(replica),
            store: *store,
        };
        let descriptor = GroupDescriptor {
            group,
            range: self.subject.ranges().then(|| range(slot)),
            members: (1..).zip(&stores).map(member).collect(),
            next_replica: ReplicaId(stores.len() as u64 + 1),
            ..GroupDescriptor::default()
        };
        let first = descriptor.range.clone().unwrap_or_default().start;
        self.groups.insert(
            group,
            Group {
                descriptor,
                slot,
                stage: Stage::Creating,
                numbers: [group].into(),
                seen: [(group, (first, 0))].into(),
                merged: BTreeSet::new(),
            },
        );
        self.begin_task(Task::Create(group, stores.into_iter().collect()));
    }

    /// Ends a family on every store: all groups that it has, and those that a split which is under way would
    /// make. Its slot is free for another one then.
    pub(super) fn destroy_family(&mut self, family: GroupId) {
        let stores = self.present();
        let Some(known) = self.groups.get_mut(&family) else {
            return;
        };
        known.stage = Stage::Destroying;
        for group in &known.numbers {
            let (group, wanted) = (*group, false);
            self.observer.see(&Observation::Group { group, wanted });
        }
        let of = |group: &GroupId| {
            let group = *group;
            stores.iter().map(move |store| (group, *store))
        };
        let (slot, left) = (known.slot, known.numbers.iter().flat_map(of).collect());
        self.begin_task(Task::Destroy(family, left));
        // Some do not wait for the end of the old group: stores refuse the new one until its keys are free.
        if self.operators.rng.percent(40) {
            sometimes!(true, "world: a group is wanted where another one still is");
            self.create_group(slot);
        }
    }

    /// The next step of a task, unless another alarm was set since.
    pub(super) fn go_on(&mut self, number: u64, alarm: u64) {
        if self.operators.alarms.get(&number) != Some(&alarm) {
            return;
        }
        let Some(task) = self.operators.tasks.get(&number).cloned() else {
            return;
        };
        match task {
            Task::Create(group, left) => self.go_on_creating(number, group, &left),
            Task::Destroy(_, left) => self.go_on_destroying(number, &left),
            Task::BeforeLoss(group) => self.confirm_before_loss(number, group),
            Task::Merge(driving) => self.go_on_merging(number, *driving),
            Task::Look(group) | Task::Replace(group, ..) | Task::Move(Move { group, .. }) => {
                let leader = self.leader(group);
                let handle = leader.and_then(|store| self.stores[&store].handle().cloned());
                let (Some(store), Some(handle)) = (leader, handle) else {
                    return self.retry_or_drop(number);
                };
                let respond = self.respond(number, store, |told| Told::Described(Box::new(told)));
                handle.describe(group, respond);
                self.kick(store);
            }
            Task::Change | Task::Split { .. } => {
                // Nobody has answered for a long time.
                self.operators.tasks.remove(&number);
            }
            Task::Moving(moving) => self.moved(number, moving),
            Task::Replacing(group, lost, new) => {
                let again = Task::Replace(group, lost, new);
                self.operators.tasks.insert(number, again);
                self.again(number);
            }
        }
    }

    /// A look that cannot be had now: replacements wait, others are given up.
    pub(super) fn retry_or_drop(&mut self, number: u64) {
        match self.operators.tasks.get(&number) {
            Some(Task::Replace(group, ..)) if self.is_live(*group) => {
                self.again(number);
            }
            Some(Task::BeforeLoss(_)) => {
                self.operators.tasks.remove(&number);
                self.not_ready_for_loss();
            }
            // It has no members any more.
            Some(Task::Replace(group, ..)) if self.is_merged(*group) => {
                let group = *group;
                self.operators.tasks.remove(&number);
                self.replaced(group);
            }
            _ => {
                self.operators.tasks.remove(&number);
            }
        }
    }

    fn go_on_creating(&mut self, number: u64, group: GroupId, left: &BTreeSet<StoreId>) {
        let descriptor = self.groups[&group].descriptor.clone();
        for store in left {
            if let Some(handle) = self.stores[store].handle().cloned() {
                let respond = self.respond(number, *store, Told::Done);
                handle.create_group(descriptor.clone(), respond);
                self.kick(*store);
            }
        }
        self.again(number);
    }

    fn go_on_destroying(&mut self, number: u64, left: &BTreeSet<(GroupId, StoreId)>) {
        for (group, store) in left {
            if let Some(handle) = self.stores[store].handle().cloned() {
                let group = *group;
                let told = move |told| Told::Destroyed(group, told);
                let respond = self.respond(number, *store, told);
                handle.destroy_replica(group, ReplicaId(u64::MAX), respond);
                self.kick(*store);
            }
        }
        self.again(number);
    }

    pub(super) fn task_told(&mut self, number: u64, store: StoreId, told: Told) {
        let Some(task) = self.operators.tasks.get_mut(&number) else {
            return;
        };
        match (task, told) {
            (Task::Create(group, left), Told::Done(Ok(()))) => {
                let group = *group;
                left.remove(&store);
                if left.is_empty() {
                    self.created(number, group);
                }
            }
            (Task::Destroy(family, left), Told::Destroyed(group, Ok(()))) => {
                let family = *family;
                left.remove(&(group, store));
                if left.is_empty() {
                    self.destroyed(number, family);
                }
            }
            (Task::Merge(_), Told::Merge(token, answer)) => {
                self.merge_told(number, store, token, *answer);
            }
            (Task::Split { stale }, Told::Split(told)) => {
                let stale = *stale;
                self.operators.tasks.remove(&number);
                self.split_told(store, stale, &told);
            }
            (Task::Look(group), Told::Described(status)) => {
                let group = *group;
                self.operators.tasks.remove(&number);
                if let Ok(status) = *status {
                    self.change(group, store, &status);
                }
            }
            (Task::BeforeLoss(group), Told::Confirmed(result)) => {
                let group = *group;
                self.confirmed_before_loss(number, group, store, result);
            }
            (Task::BeforeLoss(group), Told::Described(status)) => {
                let group = *group;
                self.operators.tasks.remove(&number);
                self.looked_before_loss(group, *status);
            }
            (Task::Replace(group, lost, new), Told::Described(status)) => {
                let (group, lost, new) = (*group, *lost, *new);
                match *status {
                    Ok(status) => self.replace(number, group, store, lost, new, &status),
                    Err(_) => self.again(number),
                }
            }
            (Task::Move(moving), Told::Described(status)) => {
                let moving = moving.clone();
                match *status {
                    Ok(status) => self.go_on_moving(number, moving, store, &status),
                    Err(_) => self.moved(number, moving),
                }
            }
            (Task::Moving(moving), Told::Changed(_)) => {
                let moving = moving.clone();
                self.moved(number, moving);
            }
            (Task::Change, Told::Changed(result)) => {
                sometimes!(result.is_ok(), "world: membership changed");
                sometimes!(
                    result == Err(Reject::Ambiguous),
                    "world: membership ambiguous"
                );
                self.operators.tasks.remove(&number);
            }
            (Task::Replacing(group, lost, new), Told::Changed(_)) => {
                let again = Task::Replace(*group, *lost, *new);
                self.operators.tasks.insert(number, again);
                self.again(number);
            }
            _ => {}
        }
    }

    fn created(&mut self, number: u64, group: GroupId) {
        self.operators.tasks.remove(&number);
        if let Some(known) = self.groups.get_mut(&group) {
            known.stage = Stage::Live;
        }
        self.observer.see(&Observation::Group {
            group,
            wanted: true,
        });
    }

    fn destroyed(&mut self, number: u64, group: GroupId) {
        self.operators.tasks.remove(&number);
        sometimes!(true, "world: group destroyed");
        let Some(known) = self.groups.get_mut(&group) else {
            return;
        };
        known.stage = Stage::Gone;
        let slot = known.slot;
        let taken = |other: &Group| other.slot == slot && other.stage != Stage::Gone;
        if !self.groups.values().any(taken) {
            self.create_group(slot);
        }
    }

    /// A change of members that makes sense in the present state, drawn.
    fn change(&mut self, group: GroupId, leader: StoreId, status: &GroupStatus) {
        if self.operators.hold || self.phase != Phase::Chaos {
            return;
        }
        let conf = &status.raft.conf_state;
        let members = &status.descriptor.members;
        let present = self.present();
        let free: Vec<StoreId> = {
            let taken: BTreeSet<StoreId> = members.iter().map(|member| member.store).collect();
            present.difference(&taken).copied().collect()
        };
        let on = |ids: &[ReplicaId]| -> Vec<StoreId> {
            let of = members
                .iter()
                .filter(|member| ids.contains(&member.replica));
            of.map(|member| member.store).collect()
        };
        let (voters, learners) = (on(&conf.voters), on(&conf.learners));
        let rng = &mut self.operators.rng;
        let mut changes: Vec<(ConfChangeKind, Option<StoreId>)> = Vec::new();
        let mut transition = Transition::Auto;
        if conf.is_joint() {
            sometimes!(true, "world: joint left by hand");
        } else {
            match rng.below(8) {
                0 => changes.push((ConfChangeKind::AddVoter, rng.pick(&free).copied())),
                1 => changes.push((ConfChangeKind::AddLearner, rng.pick(&free).copied())),
                2 => changes.push((ConfChangeKind::AddVoter, rng.pick(&learners).copied())),
                3 => changes.push((ConfChangeKind::Remove, rng.pick(&learners).copied())),
                4 if voters.len() > 2 => {
                    changes.push((ConfChangeKind::Remove, rng.pick(&voters).copied()));
                }
                5 if voters.len() > 2 => {
                    changes.push((ConfChangeKind::AddLearner, rng.pick(&voters).copied()));
                    if rng.percent(30) {
                        transition = Transition::JointExplicit;
                    }
                }
                6 if voters.len() > 2 && free.len() > 1 => {
                    // Halves that have little in common, for a while.
                    let skip = usize::try_from(rng.below(2)).unwrap_or(0);
                    for (new, old) in free.iter().zip(voters.iter().skip(skip)).take(2) {
                        changes.push((ConfChangeKind::AddVoter, Some(*new)));
                        changes.push((ConfChangeKind::AddLearner, Some(*old)));
                    }
                    transition = match rng.below(2) {
                        0 => Transition::JointExplicit,
                        _ => Transition::JointImplicit,
                    };
                }
                _ => {
                    changes.push((ConfChangeKind::AddVoter, rng.pick(&free).copied()));
                    changes.push((ConfChangeKind::Remove, rng.pick(&voters).copied()));
                    if rng.percent(50) {
                        transition = Transition::JointImplicit;
                    }
                }
            }
            if changes.is_empty() || changes.iter().any(|(_, store)| store.is_none()) {
                return;
            }
        }
        let changes = changes.into_iter().filter_map(|(kind, store)| {
            Some(MemberChange {
                kind,
                store: store?,
            })
        });
        let changes = changes.collect();
        let epoch = status.descriptor.epoch.membership;
        self.ask_for_change(
            Task::Change,
            None,
            leader,
            group,
            epoch,
            changes,
            transition,
        );
    }

    /// Sends a change to the leader's store; the task is told what came of it.
    #[expect(clippy::too_many_arguments, reason = "all of them are the change")]
    pub(super) fn ask_for_change(
        &mut self,
        task: Task,
        number: Option<u64>,
        leader: StoreId,
        group: GroupId,
        epoch: u64,
        changes: Vec<MemberChange>,
        transition: Transition,
    ) {
        let number = number.unwrap_or_else(|| {
            let number = self.operators.next_task;
            self.operators.next_task += 1;
            number
        });
        let Some(handle) = self.stores[&leader].handle().cloned() else {
            return;
        };
        self.operators.tasks.insert(number, task);
        let respond = self.respond(number, leader, |told: Result<GroupDescriptor, Reject>| {
            Told::Changed(told.map(|_| ()))
        });
        handle.change_members_if(group, epoch, changes, transition, respond);
        // Until somebody answers, or for so long.
        self.alarm(number, 20 * SECOND);
        self.kick(leader);
    }

    /// Takes a lost store out of a group, and puts another one in.
    fn replace(
        &mut self,
        number: u64,
        group: GroupId,
        leader: StoreId,
        lost: StoreId,
        new: StoreId,
        status: &GroupStatus,
    ) {
        let descriptor = &status.descriptor;
        let (gone, here) = (descriptor.replica_on(lost), descriptor.replica_on(new));
        let conf = &status.raft.conf_state;
        let mut changes = Vec::new();
        if !conf.is_joint() {
            let Some(replica) = gone else {
                sometimes!(true, "world: lost store replaced");
                self.operators.tasks.remove(&number);
                return self.replaced(group);
            };
            if conf.voters.contains(&replica) && here.is_none() {
                changes.push(MemberChange {
                    kind: ConfChangeKind::AddVoter,
                    store: new,
                });
            }
            changes.push(MemberChange {
                kind: ConfChangeKind::Remove,
                store: lost,
            });
        }
        let epoch = descriptor.epoch.membership;
        self.ask_for_change(
            Task::Replacing(group, lost, new),
            Some(number),
            leader,
            group,
            epoch,
            changes,
            Transition::Auto,
        );
    }
}
