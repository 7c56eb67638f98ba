//! All replicas of a store move to others, so that it can leave for good.
//!
//! Nothing is kept of this anywhere: each call looks which groups have a replica there and goes on with
//! a few of them, by the steps of a single move. Where a learner has been added before, that is where
//! the group goes; else the store with the fewest replicas takes it.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use crate::directory::{DIRECTORY, Named};
use crate::failure::{Failure, Reason};
use crate::proto::admin::{
    Blocked, ChangeKind, ChangeMembersRequest, DecommissionStoreRequest, DecommissionStoreResponse,
    Group, Member, MemberChange, MemberRole, MovePhase, MoveReplicaRequest, Moving,
};
use crate::routing::Call;
use crate::server::{Server, futures_join, status_of};

/// Groups that move at the same time.
const AT_ONCE: usize = 4;

/// Replicas of the directory that it keeps while stores leave.
const DIRECTORY_MIN: usize = 3;

/// What is to become of the replica of one group.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Plan {
    Move {
        to: u64,
    },
    /// It has no vote.
    Remove,
    Blocked(String),
}

impl Server {
    /// `DecommissionStore` as any store answers it.
    pub(super) async fn decommission(
        &self,
        request: DecommissionStoreRequest,
        call: Call,
    ) -> Result<DecommissionStoreResponse, Failure> {
        let store = request.store;
        if self.peers.address(store).is_none() {
            let text = format!("store {store} is not known");
            return Err(Failure::new(Reason::BadRequest, text));
        }
        let mut here = self.list_here();
        self.add_roles(&mut here).await;
        let (told, unreachable) = self.list_all(here).await;
        let groups = newest(told);
        let is_there = |group: &&Group| group.members.iter().any(|it| it.store == store);
        let concerned: Vec<Group> = groups.values().filter(is_there).cloned().collect();
        let mut answer = DecommissionStoreResponse {
            left: concerned.len() as u64,
            unreachable,
            ..DecommissionStoreResponse::default()
        };
        let mut replicas = self.takers(store, &groups).await;
        let mut plans = Vec::new();
        for group in &concerned {
            match plan(group, store, &replicas) {
                Plan::Blocked(why) => answer.blocked.push(Blocked {
                    group: group.group,
                    why,
                }),
                plan if plans.len() < AT_ONCE => {
                    if let Plan::Move { to } = plan {
                        replicas.entry(to).and_modify(|count| *count += 1);
                    }
                    plans.push((group.group, plan));
                }
                _ => {}
            }
        }
        let steps = plans.into_iter().map(|(group, plan)| async move {
            let step = self.leave(group, store, &plan, call).await;
            (group, step)
        });
        for (group, step) in futures_join(steps).await {
            match step {
                Ok(moving) if moving.phase() == MovePhase::Done => answer.left -= 1,
                Ok(moving) => answer.moving.push(moving),
                Err(failure) => answer.blocked.push(Blocked {
                    group,
                    why: failure.message,
                }),
            }
        }
        Ok(answer)
    }

    /// One step of one group.
    async fn leave(
        &self,
        group: u64,
        store: u64,
        plan: &Plan,
        call: Call,
    ) -> Result<Moving, Failure> {
        let moving = |to_store, phase: MovePhase| Moving {
            group,
            to_store,
            phase: phase.into(),
        };
        match *plan {
            Plan::Move { to } => {
                let request = MoveReplicaRequest {
                    group,
                    from_store: store,
                    to_store: to,
                };
                let step = self.move_replica(request, call).await?;
                Ok(moving(to, step.phase()))
            }
            Plan::Remove => {
                let remove = MemberChange {
                    kind: ChangeKind::Remove.into(),
                    store,
                };
                let request = ChangeMembersRequest {
                    group,
                    changes: vec![remove],
                };
                self.change_members(request, call).await?;
                Ok(moving(0, MovePhase::Done))
            }
            // Not a step.
            Plan::Blocked(ref why) => Err(Failure::new(Reason::Refused, why.clone())),
        }
    }

    /// Stores that can take replicas now, with how many they have.
    async fn takers(&self, leaves: u64, groups: &BTreeMap<u64, Group>) -> BTreeMap<u64, usize> {
        let connected = self.peers.connected();
        let others = self.peers.others();
        let heard = others
            .iter()
            .filter(|it| **it != leaves && connected.contains(it));
        let asked = heard.map(|store| status_of(&self.peers, *store));
        let mut takers = BTreeMap::new();
        for status in futures_join(asked).await {
            let sound = status.error.is_empty() && status.cluster == self.cluster;
            if sound && !status.draining && !status.disk_full {
                takers.insert(status.store, 0);
            }
        }
        let full = self.handle.stats().disk_full;
        if self.me != leaves && !full && !self.draining.load(Ordering::SeqCst) {
            takers.insert(self.me, 0);
        }
        for member in groups.values().flat_map(|group| &group.members) {
            takers.entry(member.store).and_modify(|count| *count += 1);
        }
        takers
    }
}

/// Each group as the one that has applied most of it tells.
fn newest(told: Vec<(u64, Vec<Group>)>) -> BTreeMap<u64, Group> {
    let mut newest: BTreeMap<u64, Group> = BTreeMap::new();
    for group in told.into_iter().flat_map(|(_, groups)| groups) {
        let known = newest.get(&group.group);
        let age = |group: &Group| {
            (
                group.membership_epoch,
                group.range_epoch,
                group.applied_index,
            )
        };
        if known.is_none_or(|known| age(known) < age(&group)) {
            newest.insert(group.group, group);
        }
    }
    newest
}

fn plan(group: &Group, leaves: u64, takers: &BTreeMap<u64, usize>) -> Plan {
    let members = &group.members;
    let own = members.iter().find(|member| member.store == leaves);
    if own.is_some_and(|member| member.role() == MemberRole::Learner) {
        // If it was a voter until now, the vote is elsewhere already.
        return Plan::Remove;
    }
    // One that was added for this before, maybe by somebody else.
    let learner = |member: &&Member| member.role() == MemberRole::Learner;
    if let Some(learner) = members.iter().find(learner) {
        return Plan::Move { to: learner.store };
    }
    let free = |store: &u64| members.iter().all(|member| member.store != *store);
    let free = takers.iter().filter(|(store, _)| free(store));
    match free.min_by_key(|(store, count)| (**count, **store)) {
        Some((to, _)) => Plan::Move { to: *to },
        // It has more replicas where there are more stores.
        None if group.group == DIRECTORY && members.len() > DIRECTORY_MIN => Plan::Remove,
        None => Plan::Blocked(format!(
            "every other store that could take a replica has one: stores {:?}; add a store, or take the \
             vote away (`polyraft group remove {} --store {leaves}`)",
            members
                .iter()
                .map(|member| member.store)
                .collect::<Vec<_>>(),
            Named(group.group)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(members: &[(u64, MemberRole)]) -> Group {
        let members = members.iter().map(|(store, role)| Member {
            replica: *store,
            store: *store,
            role: (*role).into(),
        });
        Group {
            group: 7,
            members: members.collect(),
            ..Group::default()
        }
    }

    #[test]
    fn a_group_goes_where_few_are_or_where_it_was_going() {
        use MemberRole::{Learner, Voter};
        let takers = BTreeMap::from([(2, 9), (3, 9), (4, 5), (5, 3)]);
        let all = [(1, Voter), (2, Voter), (3, Voter)];
        assert_eq!(plan(&group(&all), 1, &takers), Plan::Move { to: 5 });
        let begun = [(1, Voter), (2, Voter), (3, Voter), (4, Learner)];
        assert_eq!(plan(&group(&begun), 1, &takers), Plan::Move { to: 4 });
        let swapped = [(1, Learner), (2, Voter), (3, Voter), (4, Voter)];
        assert_eq!(plan(&group(&swapped), 1, &takers), Plan::Remove);
        let few = BTreeMap::from([(2, 9), (3, 9)]);
        let Plan::Blocked(why) = plan(&group(&all), 1, &few) else {
            panic!("nobody can take it");
        };
        assert!(why.contains("add a store"), "{why}");
        // The directory has a replica less if it must.
        let five = [1, 2, 3, 4, 5].map(|store| (store, Voter));
        let directory = |members: &[(u64, MemberRole)]| Group {
            group: DIRECTORY,
            ..group(members)
        };
        assert_eq!(plan(&directory(&five), 1, &takers), Plan::Remove);
        assert_eq!(plan(&directory(&all), 1, &takers), Plan::Move { to: 5 });
        assert!(matches!(plan(&directory(&all), 1, &few), Plan::Blocked(_)));
    }
}
