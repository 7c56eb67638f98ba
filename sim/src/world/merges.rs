//! Operators who merge neighbours: each drives one merge, a step at a time, and may stop in the middle,
//! change his mind, or drive what others drive, too. Whoever finds a frozen group takes its merge over.
//!
//! When the faults are over every frozen group is taken over by somebody who brings it to an end.

use std::sync::Arc;

use bytes::Bytes;
use polyraft_multiraft::{
    GroupDescriptor, GroupId, HostHandle, MergeAnswer, MergeFailure, MergeStep, Merging,
    RangeCommand, Reject, StoreId,
};

use super::operators::Task;
use super::{Phase, Told, World};
use crate::rng::Rng;
use crate::sometimes;
use crate::time::{MICROSECOND, MILLISECOND, Nanos, SECOND};

/// Steps that nobody ever takes.
const NEVER: u64 = u64::MAX;
/// Steps after which somebody who ends a merge undoes it instead: its groups may not fit together.
const PATIENCE: u64 = 60;

/// A merge under way, as the one who drives it sees it.
#[derive(Clone, Debug)]
pub(super) struct Driving {
    merging: Merging,
    right: GroupId,
    /// It was frozen when this one began.
    taken_over: bool,
    /// It ends in any case.
    certain: bool,
    /// Steps so far.
    steps: u64,
    abandoned_at: u64,
    given_up_at: u64,
    /// What it waits for: answers to anything else come too late.
    waits: Option<Waits>,
    /// Grows with everything it waits for.
    token: u64,
    /// The left group was fenced by this one.
    fenced: bool,
}

/// See [`Driving::waits`].
#[derive(Clone, Debug)]
struct Waits {
    token: u64,
    /// The command that may or may not have its effect.
    proposed: Option<RangeCommand>,
}

/// Why nobody is asked for the next step.
#[derive(Clone, Copy, Debug)]
enum Unasked {
    /// The group is nowhere any more.
    Gone,
    /// Nobody is there to ask.
    Failed,
}

impl Waits {
    fn merges(&self) -> bool {
        matches!(self.proposed, Some(RangeCommand::Merge { .. }))
    }
}

impl Driving {
    fn new(merging: Merging, right: GroupId, rng: &mut Rng) -> Self {
        let mut sometime = |percent, most| match rng.percent(percent) {
            true => rng.between(1, most),
            false => NEVER,
        };
        let (given_up_at, abandoned_at) = (sometime(25, 14), sometime(35, 14));
        Self {
            merging,
            right,
            taken_over: false,
            certain: false,
            steps: 0,
            abandoned_at: abandoned_at.min(400),
            given_up_at: given_up_at.min(rng.between(30, 120)),
            waits: None,
            token: 0,
            fenced: false,
        }
    }

    /// Somebody brings it to an end, whatever that is.
    fn certain(merging: Merging, right: GroupId, rng: &mut Rng) -> Self {
        let mut driving = Self::new(merging, right, rng);
        driving.taken_over = true;
        driving.certain = true;
        driving.abandoned_at = NEVER;
        driving.given_up_at = if rng.percent(50) { 1 } else { PATIENCE };
        driving
    }

    /// From now on it is to be undone, if it can be. What was seen before does not count any more.
    fn give_up(&mut self) {
        self.merging.give_up();
        if self.waits.as_ref().is_some_and(|it| it.proposed.is_none()) {
            self.waits = None;
        }
    }

    fn answer(&mut self, answer: MergeAnswer) {
        let waits = self.waits.take();
        if let (Some(command), MergeAnswer::Done) = (waits.and_then(|it| it.proposed), &answer) {
            let thaws = matches!(command, RangeCommand::Thaw { .. });
            sometimes!(
                thaws && self.fenced,
                "world: group thawed after the left one was fenced"
            );
            self.fenced |= matches!(command, RangeCommand::Fence { .. });
        }
        self.merging.on(answer);
    }
}

/// The stores of a group's members, ascending.
fn stores(descriptor: &GroupDescriptor) -> Vec<StoreId> {
    let mut stores: Vec<_> = descriptor.members.iter().map(|it| it.store).collect();
    stores.sort_unstable();
    stores
}

/// Two groups, the second of which begins where the first one ends.
type Pair = (Arc<GroupDescriptor>, Arc<GroupDescriptor>);

impl World {
    /// Neighbours of all families, as far as stores know them.
    fn neighbours(&self) -> Vec<Pair> {
        let mut pairs = Vec::new();
        for family in self.families() {
            let newest = self.newest(family).into_values();
            let mut groups: Vec<_> = newest
                .filter_map(|it| Some((it.range.clone()?, it)))
                .collect();
            groups.sort_by(|(one, _), (two, _)| one.start.cmp(&two.start));
            for pair in groups.windows(2) {
                let [(left, one), (right, two)] = pair else {
                    continue;
                };
                if left.end.as_ref() == Some(&right.start) {
                    pairs.push((Arc::clone(one), Arc::clone(two)));
                }
            }
        }
        pairs
    }

    /// Groups that wait for a merge, as far as stores know, ascending.
    pub(super) fn frozen(&self) -> Vec<Arc<GroupDescriptor>> {
        let families = self.families().into_iter();
        let groups = families.flat_map(|family| self.newest(family));
        let groups = groups.map(|(_, descriptor)| descriptor);
        groups.filter(|it| it.frozen.is_some()).collect()
    }

    /// Some neighbours are merged, or what others have left behind is taken over.
    pub(super) fn merge_some_groups(&mut self) {
        self.discover();
        let (pairs, frozen) = (self.neighbours(), self.frozen());
        if pairs.is_empty() {
            return self.split_some_groups();
        }
        let some = 1 + self.nemesis.rng.below(3);
        for _ in 0..some {
            let rng = &mut self.nemesis.rng;
            let left_behind = rng.pick(&frozen).cloned();
            match left_behind.filter(|_| self.nemesis.rng.percent(40)) {
                Some(right) => self.take_over(&right),
                None => self.merge_some_pair(&pairs),
            }
        }
        if self.nemesis.rng.percent(15) {
            self.change_some_mind();
        }
    }

    fn merge_some_pair(&mut self, pairs: &[Pair]) {
        let rng = &mut self.nemesis.rng;
        let Some((left, right)) = rng.pick(pairs) else {
            return;
        };
        let aligned = stores(left) == stores(right);
        if !aligned && rng.percent(85) {
            let (group, goal) = match rng.percent(50) {
                true => (left.group, stores(right)),
                false => (right.group, stores(left)),
            };
            sometimes!(true, "world: replicas moved for a merge");
            return self.begin_move(group, goal.into_iter().collect());
        }
        let Some(range) = right.range.clone() else {
            return;
        };
        let (mut one, mut two) = (left.group, right.group);
        // Somebody who has not understood who is whose neighbour.
        if rng.percent(5) {
            std::mem::swap(&mut one, &mut two);
        }
        let drivers = if rng.percent(25) { 2 } else { 1 };
        sometimes!(drivers > 1, "world: a merge driven by two");
        for _ in 0..drivers {
            let merging = Merging::new(one, two, range.start.clone());
            let driving = Driving::new(merging, two, &mut self.nemesis.rng);
            self.begin_task(Task::Merge(Box::new(driving)));
        }
    }

    fn take_over(&mut self, right: &GroupDescriptor) {
        if let Some(merging) = Merging::of_frozen(right) {
            let mut driving = Driving::new(merging, right.group, &mut self.nemesis.rng);
            driving.taken_over = true;
            self.begin_task(Task::Merge(Box::new(driving)));
        }
    }

    /// Somebody who drives a merge does not want it any more, whatever he is waiting for.
    fn change_some_mind(&mut self) {
        let tasks = self.operators.tasks.iter();
        let drives = tasks.filter(|(_, task)| matches!(task, Task::Merge(_)));
        let drives: Vec<u64> = drives.map(|(number, _)| *number).collect();
        let Some(&number) = self.nemesis.rng.pick(&drives) else {
            return;
        };
        if let Some(Task::Merge(driving)) = self.operators.tasks.get_mut(&number) {
            sometimes!(true, "world: a merge is not wanted any more");
            driving.give_up();
            if driving.waits.is_none() {
                self.alarm(number, MILLISECOND);
            }
        }
    }

    /// The faults are over: whatever is frozen is taken over by somebody who brings it to an end. Says which
    /// group is still frozen.
    pub(super) fn end_merges(&mut self) -> Option<GroupId> {
        let frozen = self.frozen();
        for right in &frozen {
            let taken = |task: &Task| match task {
                Task::Merge(driving) => driving.certain && driving.right == right.group,
                _ => false,
            };
            if self.operators.tasks.values().any(taken) {
                continue;
            }
            if let Some(merging) = Merging::of_frozen(right) {
                let rng = &mut self.nemesis.rng;
                let driving = Driving::certain(merging, right.group, rng);
                self.begin_task(Task::Merge(Box::new(driving)));
            }
        }
        frozen.first().map(|right| right.group)
    }

    /// The next step of who drives a merge, or the end of his waiting.
    pub(super) fn go_on_merging(&mut self, number: u64, mut driving: Driving) {
        if driving.waits.is_some() {
            driving.answer(MergeAnswer::Failed);
        }
        driving.steps += 1;
        if driving.steps >= driving.abandoned_at || !self.is_live_family(driving.right) {
            sometimes!(true, "world: merge abandoned");
            self.operators.tasks.remove(&number);
            return;
        }
        if driving.steps == driving.given_up_at {
            driving.give_up();
        }
        let step = driving.merging.next();
        if let MergeStep::Done(result) = &step {
            self.operators.tasks.remove(&number);
            return merged(&driving, result);
        }
        driving.token += 1;
        let token = driving.token;
        let proposed = match &step {
            MergeStep::Propose { command, .. } => Some(command.clone()),
            _ => None,
        };
        driving.waits = Some(Waits { token, proposed });
        match self.take_step(number, token, &driving, step) {
            Ok(()) => {
                let patience = self.operators.rng.magnitude(SECOND, 20 * SECOND);
                self.alarm(number, patience);
            }
            Err(unasked) => {
                driving.answer(match unasked {
                    Unasked::Gone => MergeAnswer::Gone,
                    Unasked::Failed => MergeAnswer::Failed,
                });
                let after = self.operators.rng.magnitude(MILLISECOND, SECOND);
                self.alarm(number, after);
            }
        }
        let task = Task::Merge(Box::new(driving));
        self.operators.tasks.insert(number, task);
    }

    /// Asks for what is next; or says what comes of it at once.
    fn take_step(
        &mut self,
        number: u64,
        token: u64,
        driving: &Driving,
        step: MergeStep,
    ) -> Result<(), Unasked> {
        let done = move |told: Result<(), Reject>| match told {
            Ok(()) => Told::Merge(token, Box::new(MergeAnswer::Done)),
            Err(_) => Told::Merge(token, Box::new(MergeAnswer::Failed)),
        };
        match step {
            MergeStep::Look(group) if self.is_nowhere(group) => Err(Unasked::Gone),
            MergeStep::Look(group) => self.look_at(number, token, group),
            MergeStep::LookBefore(start) => {
                let before = self.before(driving.right, &start);
                self.look_at(number, token, before.ok_or(Unasked::Failed)?)
            }
            MergeStep::Propose { group, command } => {
                let (store, handle) = self.ask_of(group)?;
                let told = move |told: Result<Vec<GroupDescriptor>, Reject>| done(told.map(drop));
                let respond = self.respond(number, store, told);
                let merges = matches!(command, RangeCommand::Merge { .. });
                handle.change_range(group, command, respond);
                self.kick(store);
                if merges && self.phase == Phase::Chaos {
                    self.endanger(store, group);
                }
                Ok(())
            }
            MergeStep::Settle { group, at } => {
                let (store, handle) = self.ask_of(group)?;
                let respond = self.respond(number, store, done);
                handle.settled(group, at, respond);
                self.kick(store);
                Ok(())
            }
            MergeStep::Done(_) => Ok(()),
        }
    }

    fn look_at(&mut self, number: u64, token: u64, group: GroupId) -> Result<(), Unasked> {
        let (store, handle) = self.ask_of(group)?;
        let seen = move |told: Result<Arc<GroupDescriptor>, Reject>| {
            let answer = match told {
                Ok(seen) => MergeAnswer::Seen(GroupDescriptor::clone(&seen)),
                Err(_) => MergeAnswer::Failed,
            };
            Told::Merge(token, Box::new(answer))
        };
        let respond = self.respond(number, store, seen);
        handle.look(group, respond);
        self.kick(store);
        Ok(())
    }

    /// The leader's store of a group; now and then another one that says so.
    fn ask_of(&mut self, group: GroupId) -> Result<(StoreId, HostHandle), Unasked> {
        let leaders = self.leaders(group);
        let newest = leaders.last().copied();
        let any = self.operators.rng.pick(&leaders).copied();
        let chosen = match self.operators.rng.percent(85) {
            true => newest,
            false => any,
        };
        let store = chosen.ok_or(Unasked::Failed)?;
        let handle = self.stores[&store].handle().cloned();
        Ok((store, handle.ok_or(Unasked::Failed)?))
    }

    /// The group of the family that has the keys right before this one, as one store sees it, or all
    /// together.
    fn before(&mut self, right: GroupId, start: &Bytes) -> Option<GroupId> {
        let family = self.family_of(right);
        let running: Vec<StoreId> = self.running().map(|(store, _)| store).collect();
        let rng = &mut self.operators.rng;
        let (one, alone) = (rng.pick(&running).copied()?, rng.percent(40));
        let asked = self.running().filter(|(id, _)| !alone || *id == one);
        let all = asked.flat_map(|(_, handle)| handle.descriptors());
        let before = all.filter(|it| {
            let reaches = it.range.as_ref().is_some_and(|range| {
                range.start < *start && range.end.as_ref().is_none_or(|end| end >= start)
            });
            reaches && self.family_of(it.group) == family
        });
        let latest = before.max_by_key(|it| (it.epoch.range, it.group))?;
        Some(latest.group)
    }

    /// All stores run, and none has a replica of the group.
    fn is_nowhere(&self, group: GroupId) -> bool {
        let mut stores = self.stores.values().filter(|store| !store.lost);
        stores.all(|store| {
            let handle = store.handle();
            handle.is_some_and(|handle| handle.summary(group).is_none())
        })
    }

    pub(super) fn merge_told(
        &mut self,
        number: u64,
        store: StoreId,
        token: u64,
        answer: MergeAnswer,
    ) {
        let Some(Task::Merge(driving)) = self.operators.tasks.get_mut(&number) else {
            return;
        };
        if driving.waits.as_ref().is_none_or(|it| it.token != token) {
            return;
        }
        let failed = answer == MergeAnswer::Failed;
        let merges = driving.waits.as_ref().is_some_and(Waits::merges);
        driving.answer(answer);
        let after = self.until_the_next_step(failed);
        self.alarm(number, after);
        if merges && !failed {
            self.end_before_the_flush(store);
        }
    }

    /// At once, or after others have done something meanwhile.
    fn until_the_next_step(&mut self, failed: bool) -> Nanos {
        let calm = self.phase != Phase::Chaos;
        let rng = &mut self.operators.rng;
        match (failed, calm) {
            (true, true) => rng.magnitude(20 * MILLISECOND, 500 * MILLISECOND),
            (true, false) => rng.magnitude(5 * MILLISECOND, SECOND),
            (false, true) => rng.magnitude(10 * MICROSECOND, 20 * MILLISECOND),
            (false, false) if rng.percent(10) => rng.magnitude(100 * MILLISECOND, 10 * SECOND),
            (false, false) => rng.magnitude(10 * MICROSECOND, 200 * MILLISECOND),
        }
    }
}

/// What became of a merge.
fn merged(driving: &Driving, result: &Result<GroupDescriptor, MergeFailure>) {
    sometimes!(
        driving.taken_over && !driving.certain,
        "world: a merge taken over came to its end"
    );
    match result {
        Ok(_) => sometimes!(true, "world: groups merged"),
        Err(MergeFailure::GivenUp) => sometimes!(true, "world: merge undone"),
        Err(MergeFailure::NotNeighbours) => {
            sometimes!(true, "world: merge of groups that are not neighbours");
        }
        Err(MergeFailure::LeftFrozen(_)) => {
            sometimes!(true, "world: merge into a group that is being merged");
        }
        Err(_) => sometimes!(true, "world: merge of a group that is no more"),
    }
}
