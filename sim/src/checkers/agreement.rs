//! When faults are over and everything has come to rest, every group that is wanted has one leader, its members are
//! all there, have applied the same, and hold the same; nobody is out of service.

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
