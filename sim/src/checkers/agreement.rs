//! When faults are over and everything has come to rest, every group that is wanted has one leader, its
//! members are all there, have applied the same, and hold the same; nobody is out of service.

use std::collections::BTreeMap;

use polyraft_core::RoleName;
use polyraft_multiraft::{AppliedState, GroupId, ReplicaSummary, StoreId};

use super::Property;
use super::books::Books;
use crate::observe::{End, Observation};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Agreement;

/// What a store says and holds of a group.
#[derive(Clone, Copy, Default)]
struct Part<'a> {
    says: Option<&'a ReplicaSummary>,
    holds: Option<&'a (AppliedState, u64)>,
}

type Parts<'a> = BTreeMap<StoreId, Part<'a>>;

fn parts(end: &End) -> BTreeMap<GroupId, Parts<'_>> {
    let mut all: BTreeMap<GroupId, Parts<'_>> = BTreeMap::new();
    for store in &end.stores {
        let id = store.store;
        for replica in &store.replicas {
            let parts = all.entry(replica.group).or_default();
            parts.entry(id).or_default().says = Some(replica);
        }
        for data in &store.data {
            let parts = all.entry(data.0.descriptor.group).or_default();
            parts.entry(id).or_default().holds = Some(data);
        }
    }
    all
}

fn agree(parts: &Parts<'_>) -> Result<(), String> {
    let leads = |part: &Part<'_>| {
        let role = part.says.map(|says| says.basic.soft_state.role);
        role == Some(RoleName::Leader)
    };
    let leaders: Vec<StoreId> = parts
        .iter()
        .filter(|(_, part)| leads(part))
        .map(|(store, _)| *store)
        .collect();
    let [leader] = leaders[..] else {
        return Err(format!("leaders on stores {leaders:?}, there must be one"));
    };
    let Some((state, digest)) = parts[&leader].holds else {
        return Err(format!("the leader on store {leader} has no data"));
    };
    for member in &state.descriptor.members {
        let part = parts.get(&member.store).copied().unwrap_or_default();
        let (Some(says), Some((there, other))) = (part.says, part.holds) else {
            return Err(format!("{member:?} is missing"));
        };
        if says.replica != member.replica {
            return Err(format!("{member:?} is replica {} there", says.replica));
        }
        if there != state {
            return Err(format!("{member:?} holds {there:?}, the leader {state:?}"));
        }
        if says.basic.applied != state.last.index {
            let (says, holds) = (says.basic.applied, state.last.index);
            return Err(format!(
                "{member:?} says applied {says}, its data is at {holds}"
            ));
        }
        if other != digest {
            return Err(format!(
                "{member:?} has other contents than store {leader}: {other:x}, {digest:x}; applied {:?}",
                state.last
            ));
        }
    }
    Ok(())
}

impl Property for Agreement {
    fn name(&self) -> &'static str {
        "agreement-at-the-end"
    }

    fn see(&mut self, _seen: &Observation<'_>, _books: &Books) -> Result<(), String> {
        Ok(())
    }

    fn finish(&mut self, end: &End) -> Result<(), String> {
        if let Some((store, group, why)) = end.quarantined.first() {
            return Err(format!(
                "store {store}: group {group} is out of service: {why}"
            ));
        }
        let parts = parts(end);
        let none = Parts::new();
        for group in &end.groups {
            let of_group = parts.get(group).unwrap_or(&none);
            agree(of_group).map_err(|why| format!("group {group}: {why}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use polyraft_core::Index;
    use polyraft_multiraft::HostStats;

    use super::super::testing::{GROUP, Scene, caught, hard, state, summary};
    use super::*;
    use crate::observe::StoreEnd;

    fn store(id: u64, role: RoleName) -> StoreEnd {
        let mut says = summary(id, role, hard(2, 1, 5));
        says.basic.applied = Index(5);
        StoreEnd {
            store: StoreId(id),
            replicas: vec![says],
            stats: HostStats::default(),
            data: vec![(state(2, 5), 77)],
            leftovers: Vec::new(),
        }
    }

    fn end() -> End {
        End {
            stores: vec![
                store(1, RoleName::Leader),
                store(2, RoleName::Follower),
                store(3, RoleName::Follower),
            ],
            groups: vec![GROUP],
            ..End::default()
        }
    }

    #[test]
    fn everybody_agrees() {
        Scene::of(Agreement).finish(&end()).unwrap();
    }

    #[test]
    fn every_disagreement_is_seen() {
        type Spoil = (&'static str, fn(&mut End));
        let spoils: [Spoil; 10] = [
            ("there must be one", |end| {
                end.stores[0].replicas[0].basic.soft_state.role = RoleName::Follower;
            }),
            ("there must be one", |end| {
                end.stores[2].replicas[0].basic.soft_state.role = RoleName::Leader;
            }),
            ("there must be one", |end| end.groups.push(GroupId(99))),
            ("the leader on store 1 has no data", |end| {
                end.stores[0].data.clear()
            }),
            ("is missing", |end| end.stores[1].data.clear()),
            ("is missing", |end| end.stores.truncate(2)),
            ("is replica 9 there", |end| {
                end.stores[1].replicas[0].replica = polyraft_core::ReplicaId(9);
            }),
            ("the leader AppliedState", |end| {
                end.stores[1].data[0].0.last.index = Index(4);
            }),
            ("says applied 4", |end| {
                end.stores[1].replicas[0].basic.applied = Index(4);
            }),
            ("has other contents", |end| end.stores[2].data[0].1 = 78),
        ];
        for (words, spoil) in spoils {
            let mut end = end();
            spoil(&mut end);
            caught(&Scene::of(Agreement).finish(&end), words);
        }
    }

    #[test]
    fn nobody_is_out_of_service() {
        let mut end = end();
        end.quarantined
            .push((StoreId(3), GroupId(5), "damaged".to_owned()));
        caught(
            &Scene::of(Agreement).finish(&end),
            "group 5 is out of service: damaged",
        );
    }
}
