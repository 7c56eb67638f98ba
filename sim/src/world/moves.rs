//! Operators who move replicas: a new member learns what there is, votes in the place of an old one, and the
//! old one is removed. They look at the group before each step, so anybody could go on.

use std::collections::BTreeSet;

use polyraft_core::{ConfChangeKind, ConfState, ReplicaId, Transition};
use polyraft_multiraft::{GroupDescriptor, GroupId, GroupStatus, MemberChange, StoreId};

use super::operators::Task;
use super::{Phase, World};
use crate::sometimes;

/// A move under way.
#[derive(Clone, Debug)]
pub(super) struct Move {
    pub(super) group: GroupId,
    /// Where its voters are to be.
    goal: BTreeSet<StoreId>,
    /// Steps until whoever does it forgets about it.
    left: u64,
}

/// What is next on the way to the goal; none: it is reached.
fn step(
    descriptor: &GroupDescriptor,
    conf: &ConfState,
    goal: &BTreeSet<StoreId>,
) -> Option<Vec<MemberChange>> {
    let on = |ids: &[ReplicaId]| -> BTreeSet<StoreId> {
        let members = descriptor.members.iter();
        let members = members.filter(|it| ids.contains(&it.replica));
        members.map(|it| it.store).collect()
    };
    let change = |kind, store| MemberChange { kind, store };
    let all = |kind, stores: Vec<StoreId>| stores.into_iter().map(move |store| change(kind, store));
    if conf.is_joint() {
        return Some(Vec::new());
    }
    let (voters, learners) = (on(&conf.voters), on(&conf.learners));
    let new = goal
        .iter()
        .find(|it| !voters.contains(it) && !learners.contains(it));
    if let Some(new) = new {
        return Some(vec![change(ConfChangeKind::AddLearner, *new)]);
    }
    let promoted: Vec<StoreId> = learners.intersection(goal).copied().collect();
    let demoted: Vec<StoreId> = voters.difference(goal).copied().collect();
    if !promoted.is_empty() || !demoted.is_empty() {
        let promoted = all(ConfChangeKind::AddVoter, promoted);
        return Some(
            promoted
                .chain(all(ConfChangeKind::AddLearner, demoted))
                .collect(),
        );
    }
    let strange: Vec<StoreId> = learners.difference(goal).copied().collect();
    let removals: Vec<_> = all(ConfChangeKind::Remove, strange).collect();
    (!removals.is_empty()).then_some(removals)
}

impl World {
    /// A replica of some group is moved to another store.
    pub(super) fn move_some_replica(&mut self) {
        let live = self.live();
        let group = self.nemesis.rng.pick(&live).copied();
        let Some((group, leader)) = group.and_then(|group| Some((group, self.leader(group)?)))
        else {
            return;
        };
        let Some(descriptor) = self.stores[&leader]
            .handle()
            .and_then(|it| it.descriptor(group))
        else {
            return;
        };
        let mut goal: BTreeSet<StoreId> = descriptor.members.iter().map(|it| it.store).collect();
        let free: Vec<StoreId> = self.present().difference(&goal).copied().collect();
        let here: Vec<StoreId> = goal.iter().copied().collect();
        let rng = &mut self.nemesis.rng;
        if let (Some(from), Some(to)) = (rng.pick(&here), rng.pick(&free)) {
            goal.remove(from);
            goal.insert(*to);
            self.begin_move(group, goal);
        }
    }

    /// The voters of a group are to be on these stores and nowhere else.
    pub(super) fn begin_move(&mut self, group: GroupId, goal: BTreeSet<StoreId>) {
        if self.operators.hold || goal.iter().any(|store| self.is_lost(*store)) {
            return;
        }
        let rng = &mut self.nemesis.rng;
        // Most are brought to their end.
        let left = if rng.percent(25) {
            rng.between(1, 6)
        } else {
            60
        };
        self.begin_task(Task::Move(Move { group, goal, left }));
    }

    /// The next step, from what the leader says.
    pub(super) fn go_on_moving(
        &mut self,
        number: u64,
        mut moving: Move,
        leader: StoreId,
        status: &GroupStatus,
    ) {
        let over = self.operators.hold || self.phase != Phase::Chaos || moving.left == 0;
        let next = step(&status.descriptor, &status.raft.conf_state, &moving.goal);
        sometimes!(next.is_none(), "world: replicas moved");
        let Some(changes) = next.filter(|_| !over) else {
            self.operators.tasks.remove(&number);
            return;
        };
        moving.left -= 1;
        let (group, epoch) = (moving.group, status.descriptor.epoch.membership);
        let transition = match changes.len() {
            0 | 1 => Transition::Auto,
            _ if self.operators.rng.percent(30) => Transition::JointExplicit,
            _ => Transition::JointImplicit,
        };
        self.ask_for_change(
            Task::Moving(moving),
            Some(number),
            leader,
            group,
            epoch,
            changes,
            transition,
        );
    }

    /// A step that is done, or refused: the next look tells.
    pub(super) fn moved(&mut self, number: u64, moving: Move) {
        self.operators.tasks.insert(number, Task::Move(moving));
        self.again(number);
    }
}

#[cfg(test)]
mod tests {
    use polyraft_multiraft::Member;

    use super::*;

    fn group(voters: &[u64], learners: &[u64]) -> (GroupDescriptor, ConfState) {
        let ids = |stores: &[u64]| stores.iter().map(|it| ReplicaId(*it)).collect::<Vec<_>>();
        let members = voters.iter().chain(learners).map(|store| Member {
            replica: ReplicaId(*store),
            store: StoreId(*store),
        });
        let descriptor = GroupDescriptor {
            members: members.collect(),
            ..GroupDescriptor::default()
        };
        let conf = ConfState {
            voters: ids(voters),
            learners: ids(learners),
            ..ConfState::default()
        };
        (descriptor, conf)
    }

    fn next(voters: &[u64], learners: &[u64], goal: &[u64]) -> Option<Vec<(char, u64)>> {
        let (descriptor, conf) = group(voters, learners);
        let goal = goal.iter().copied().map(StoreId).collect();
        let changes = step(&descriptor, &conf, &goal)?;
        let letter = |kind| match kind {
            ConfChangeKind::AddVoter => 'v',
            ConfChangeKind::AddLearner => 'l',
            ConfChangeKind::Remove => '-',
            other => panic!("{other:?}"),
        };
        let changes = changes.iter().map(|it| (letter(it.kind), it.store.0));
        Some(changes.collect())
    }

    #[test]
    fn a_replica_learns_votes_and_another_one_goes() {
        let goal = [1, 2, 4];
        assert_eq!(next(&[1, 2, 3], &[], &goal), Some(vec![('l', 4)]));
        let swap = vec![('v', 4), ('l', 3)];
        assert_eq!(next(&[1, 2, 3], &[4], &goal), Some(swap));
        assert_eq!(next(&[1, 2, 4], &[3], &goal), Some(vec![('-', 3)]));
        assert_eq!(next(&[1, 2, 4], &[], &goal), None);
    }

    #[test]
    fn a_joint_configuration_is_left_first() {
        let (descriptor, mut conf) = group(&[1, 2, 4], &[]);
        conf.voters_outgoing = vec![ReplicaId(1), ReplicaId(2), ReplicaId(3)];
        let goal = [1, 2, 4].map(StoreId).into();
        assert_eq!(step(&descriptor, &conf, &goal), Some(Vec::new()));
    }
}
