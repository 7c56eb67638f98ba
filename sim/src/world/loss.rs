//! A store that is gone for ever, and the one that takes its place.
//!
//! Raft survives the loss of a minority of a group's voters, so that is all a world may take away:
//! before a store is lost, every group is looked at, and no change of membership may be under way
//! that could shrink a quorum. The same holds for a store whose disk begins to lie: from then on
//! its data counts as gone, whatever it may still say.

use std::collections::BTreeSet;

use polyraft_multiraft::{GroupId, GroupStatus, Reject, StoreId};
use polyraft_store::disk::Cf;

use super::nemesis::Relief;
use super::operators::Task;
use super::{Told, World};
use crate::disk::CrashKind;
use crate::observe::Observation;
use crate::sometimes;
use crate::time::{MILLISECOND, Nanos, SECOND};

/// A leader that is not confirmed by then is asked again.
const CONFIRMED_WITHIN: Nanos = 20 * SECOND;

/// Where the loss of a store stands; one at a time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Loss {
    /// None.
    #[default]
    None,
    /// Groups are looked at first.
    Wanted {
        victim: StoreId,
        flip: bool,
        left: BTreeSet<GroupId>,
        /// All groups that there were.
        all: BTreeSet<GroupId>,
    },
    /// A bit has flipped; it will be taken away.
    Suspect { victim: StoreId },
    /// Groups where it is not replaced yet.
    Replacing { left: BTreeSet<GroupId> },
}

impl World {
    /// Begins to lose a store, if nothing else is changing.
    pub(super) fn want_loss(&mut self, flip: bool) {
        let busy = self.operators.changing() || self.operators.making() || self.operators.hold;
        let stores: Vec<StoreId> = self.present().into_iter().collect();
        let Some(&victim) = self.nemesis.rng.pick(&stores) else {
            return;
        };
        if busy || stores.len() < 3 || self.nemesis.loss != Loss::None {
            return;
        }
        self.discover();
        let groups = self.live();
        self.operators.hold = true;
        let all: BTreeSet<GroupId> = groups.iter().copied().collect();
        self.nemesis.loss = Loss::Wanted {
            victim,
            flip,
            left: all.clone(),
            all,
        };
        for group in groups {
            self.begin_task(Task::BeforeLoss(group));
        }
    }

    /// A leader that was deposed in its sleep would speak of members that are none any more, and its group
    /// would lose a quorum: only one that others confirm is asked.
    pub(super) fn confirm_before_loss(&mut self, number: u64, group: GroupId) {
        let leader = self.leader(group);
        let handle = leader.and_then(|store| self.stores[&store].handle().cloned());
        let (Some(store), Some(handle)) = (leader, handle) else {
            return self.retry_or_drop(number);
        };
        let respond = self.respond(number, store, |told: Result<_, Reject>| {
            Told::Confirmed(told.map(|_| ()))
        });
        handle.look(group, respond);
        self.alarm(number, CONFIRMED_WITHIN);
        self.kick(store);
    }

    pub(super) fn confirmed_before_loss(
        &mut self,
        number: u64,
        group: GroupId,
        store: StoreId,
        result: Result<(), Reject>,
    ) {
        let handle = self.stores[&store].handle().cloned();
        let (Ok(()), Some(handle)) = (result, handle) else {
            return self.retry_or_drop(number);
        };
        let respond = self.respond(number, store, |told| Told::Described(Box::new(told)));
        handle.describe(group, respond);
        self.kick(store);
    }

    pub(super) fn looked_before_loss(
        &mut self,
        group: GroupId,
        status: Result<GroupStatus, Reject>,
    ) {
        let Loss::Wanted { victim, flip, .. } = self.nemesis.loss else {
            return;
        };
        let whole = |status: GroupStatus| {
            let mut stores = status.descriptor.members.iter().map(|member| member.store);
            survives(&status, victim) && !stores.any(|store| self.is_lost(store))
        };
        if !status.is_ok_and(whole) {
            return self.not_ready_for_loss();
        }
        let Loss::Wanted { left, .. } = &mut self.nemesis.loss else {
            return;
        };
        left.remove(&group);
        if !left.is_empty() {
            return;
        }
        if !self.knows_all_groups() {
            return self.not_ready_for_loss();
        }
        if flip {
            self.flip(victim);
        } else {
            self.lose(victim);
        }
    }

    /// Whether the groups that were looked at are all there are: a split may have been applied where its new
    /// groups have not begun yet, and then there are keys that no group has.
    fn knows_all_groups(&mut self) -> bool {
        self.discover();
        let live: BTreeSet<GroupId> = self.live().into_iter().collect();
        let looked_at = matches!(&self.nemesis.loss, Loss::Wanted { all, .. } if *all == live);
        looked_at
            && self
                .families()
                .into_iter()
                .all(|it| self.holes(it).is_none())
    }

    /// A group that nobody knew of has a member on a lost store.
    pub(super) fn replace_late(&mut self, group: GroupId) {
        self.not_ready_for_loss();
        match &mut self.nemesis.loss {
            Loss::Replacing { left } => drop(left.insert(group)),
            loss @ Loss::None => {
                let left = [group].into();
                *loss = Loss::Replacing { left };
                self.operators.hold = true;
            }
            Loss::Wanted { .. } | Loss::Suspect { .. } => {}
        }
    }

    pub(super) fn not_ready_for_loss(&mut self) {
        if matches!(self.nemesis.loss, Loss::Wanted { .. }) {
            self.nemesis.loss = Loss::None;
            self.operators.hold = false;
            let tasks = &mut self.operators.tasks;
            tasks.retain(|_, task| !matches!(task, Task::BeforeLoss(_)));
        }
    }

    fn flip(&mut self, victim: StoreId) {
        self.nemesis.loss = Loss::Suspect { victim };
        let rng = &mut self.nemesis.rng;
        let cf = match rng.below(4) {
            0 => Cf::State,
            1 => Cf::Settled,
            _ => Cf::Log,
        };
        let flipped = self.stores[&victim].disk.flip_bit(cf, rng);
        sometimes!(flipped.is_some(), "world: bit flipped");
        if rng.percent(50) {
            self.crash(victim, CrashKind::Process);
            self.start_later(victim);
        }
        let rng = &mut self.nemesis.rng;
        let after = rng.magnitude(100 * MILLISECOND, 20 * SECOND);
        self.queue
            .push(after, super::Event::Relief(Relief::Lose(victim)));
    }

    /// The store and its disk are gone; an empty one with a number of its own takes its place everywhere.
    pub(super) fn lose(&mut self, victim: StoreId) {
        sometimes!(true, "world: store lost");
        self.crash(victim, CrashKind::Power);
        if let Some(store) = self.stores.get_mut(&victim) {
            store.lost = true;
        }
        self.observer.see(&Observation::Lost { store: victim });
        let new = self.found();
        self.start_later(new);
        self.nemesis.replacements.insert(victim, new);
        let left: BTreeSet<GroupId> = self.live().into_iter().collect();
        self.nemesis.loss = Loss::Replacing { left: left.clone() };
        for group in left {
            self.begin_task(Task::Replace(group, victim, new));
        }
        self.end_replacing();
    }

    pub(super) fn replaced(&mut self, group: GroupId) {
        if let Loss::Replacing { left } = &mut self.nemesis.loss {
            left.remove(&group);
        }
        self.end_replacing();
    }

    fn end_replacing(&mut self) {
        if let Loss::Replacing { left } = &self.nemesis.loss
            && left.is_empty()
        {
            self.nemesis.loss = Loss::None;
            self.operators.hold = false;
        }
    }

    /// Faults are over: what is not decided yet is called off, what has begun is ended.
    pub(super) fn end_loss(&mut self) {
        match self.nemesis.loss.clone() {
            Loss::None | Loss::Replacing { .. } => {}
            Loss::Wanted { .. } => self.not_ready_for_loss(),
            Loss::Suspect { victim } => self.lose(victim),
        }
    }

    /// Whether a group still has to be repaired.
    pub(super) fn is_whole(&self, group: GroupId) -> bool {
        let left = match &self.nemesis.loss {
            Loss::Replacing { left } => left.contains(&group),
            _ => false,
        };
        !left && self.is_live(group)
    }
}

/// Whether a group can do without a store, by what its leader says: nothing is undecided, and
/// those that stay are a quorum of voters. That every member of an acknowledged group has its
/// state is a promise of the host.
fn survives(status: &GroupStatus, victim: StoreId) -> bool {
    let (raft, last) = (&status.raft, status.last);
    let decided = raft.basic.applied == last.index && raft.basic.hard_state.term == last.term;
    let Some(replica) = status.descriptor.replica_on(victim) else {
        return decided && !raft.conf_state.is_joint();
    };
    decided
        && !raft.conf_state.is_joint()
        && (raft.conf_state.voters.len() > 2 || !raft.conf_state.voters.contains(&replica))
}
