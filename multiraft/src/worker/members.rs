//! Changes of membership, from the wish to the answer.
//!
//! A replica destroys itself when it applies its removal, so by then nobody may need its vote any more. A
//! configuration counts from when it is applied, though, and who restarts may know less to be committed than
//! it has: it would ask the removed one for its vote, and for ever. So a voter is removed in two steps. The
//! first makes it a learner; it can still say what is committed. The second removes the learner, and is
//! proposed when the first is applied: whoever holds its entry knows, durably, that the first is committed.

use polyraft_core::{
    ConfChangeKind, ConfChangeV2, EntryId, Event, Index, ReplicaId, Storage, Transition, planted,
};

use super::Worker;
use super::messages::last_of;
use super::ranges::holds_back;
use crate::codec::encode_members;
use crate::error::Reject;
use crate::group::{Frozen, GroupDescriptor, GroupId, Member};
use crate::handle::MemberChange;
use crate::replica::{PendingChange, Replica};
use crate::responder::Responder;

impl Worker {
    pub(super) fn change_members(
        &mut self,
        group: GroupId,
        changes: &[MemberChange],
        transition: Transition,
        respond: Responder<Result<GroupDescriptor, Reject>>,
    ) {
        let replica = match self.leading(group) {
            Ok(replica) => replica,
            Err(reject) => return respond.answer(Err(reject)),
        };
        match propose_change(replica, changes, transition) {
            Ok((id, remove)) => {
                let wait_for_leave = transition != Transition::JointExplicit;
                let pending = PendingChange {
                    id,
                    applied: false,
                    wait_for_leave,
                    remove,
                    respond,
                };
                replica.changes.push(pending);
                self.wake(group);
            }
            Err(reject) => {
                respond.answer(Err(reject));
                self.wake(group);
            }
        }
    }

    /// Entries of a group were applied, `changes` among them: answers those that waited for it.
    pub(super) fn finish_changes(
        &mut self,
        group: GroupId,
        id: ReplicaId,
        changes: &[(Index, ConfChangeV2)],
    ) {
        let Some(replica) = self.replicas.get_mut(&group) else {
            return;
        };
        if replica.changes.is_empty() || replica.id != id {
            return;
        }
        let (applied, joint) = (
            replica.node.applied(),
            replica.node.status().conf_state.is_joint(),
        );
        let mut waiting = Vec::new();
        for mut pending in std::mem::take(&mut replica.changes) {
            if !pending.applied && pending.id.index <= applied {
                // Another leader's change may stand in its place.
                let log = replica.node.storage();
                pending.applied = log.term(pending.id.index) == Ok(pending.id.term)
                    && changes.iter().any(|(index, _)| *index == pending.id.index);
                if !pending.applied {
                    let why = "the change was overtaken or is not possible any more";
                    pending.respond.answer(Err(Reject::Refused(why.to_owned())));
                    continue;
                }
            }
            if !pending.applied || pending.wait_for_leave && joint {
                waiting.push(pending);
            } else if pending.remove.is_empty() {
                let descriptor = GroupDescriptor::clone(&replica.descriptor);
                pending.respond.answer(Ok(descriptor));
            } else {
                waiting.extend(remove_learners(replica, pending));
            }
        }
        replica.changes = waiting;
    }
}

/// The second step of a removal. Whoever asked hears that nobody knows if it cannot be made here: it may ask
/// again, and what is a learner by then is removed in one step.
fn remove_learners(replica: &mut Replica, pending: PendingChange) -> Option<PendingChange> {
    let remove = pending.remove.iter();
    let change = ConfChangeV2 {
        transition: Transition::Auto,
        changes: remove.map(|id| (ConfChangeKind::Remove, *id)).collect(),
        context: encode_members(&[]),
    };
    match submit(replica, &change) {
        Ok(id) => Some(PendingChange {
            id,
            applied: false,
            remove: Vec::new(),
            ..pending
        }),
        Err(_) => {
            pending.respond.answer(Err(Reject::Ambiguous));
            None
        }
    }
}

/// Turns wishes about stores into a change of replicas, and proposes it. Returns its entry, and the
/// replicas that are to be removed when it is applied.
fn propose_change(
    replica: &mut Replica,
    changes: &[MemberChange],
    transition: Transition,
) -> Result<(EntryId, Vec<ReplicaId>), Reject> {
    if holds_back(replica) {
        return Err(Reject::Busy("the group's range is changing"));
    }
    let descriptor = &replica.descriptor;
    if let Some(Frozen { into, .. }) = descriptor.frozen {
        return Err(Reject::Frozen { into });
    }
    let voters = replica.node.status().conf_state.voters;
    let (mut next, mut new) = (descriptor.next_replica, Vec::new());
    if planted!(ReplicaIdReused)
        && let Some(last) = descriptor.members.last()
    {
        next = ReplicaId(last.replica.0 + 1);
    }
    let (mut each, mut remove) = (Vec::new(), Vec::new());
    for (at, change) in changes.iter().enumerate() {
        if changes[..at]
            .iter()
            .any(|other| other.store == change.store)
        {
            let why = format!("store {} is named twice", change.store);
            return Err(Reject::Refused(why));
        }
        let present = descriptor.replica_on(change.store);
        let id = match (change.kind, present) {
            (_, Some(id)) => id,
            (ConfChangeKind::AddVoter | ConfChangeKind::AddLearner, None) => {
                let id = next;
                let after = next.0.checked_add(1);
                next = ReplicaId(after.ok_or_else(|| {
                    Reject::Refused("the group has no replica ids left".to_owned())
                })?);
                new.push(Member {
                    replica: id,
                    store: change.store,
                });
                id
            }
            (ConfChangeKind::Remove | ConfChangeKind::Update, None) => {
                let why = format!("store {} has no replica of the group", change.store);
                return Err(Reject::Refused(why));
            }
        };
        let kind = match change.kind {
            ConfChangeKind::Remove if voters.contains(&id) => {
                remove.push(id);
                ConfChangeKind::AddLearner
            }
            kind => kind,
        };
        each.push((kind, id));
    }
    if transition == Transition::JointExplicit && !remove.is_empty() {
        let why = "a voter is not removed in one step; make it a learner first";
        return Err(Reject::Refused(why.to_owned()));
    }
    let change = ConfChangeV2 {
        transition,
        changes: each,
        context: encode_members(&new),
    };
    // What cannot be applied later is better refused now, with the reason.
    replica.node.status().conf_state.apply(&change)?;
    if remove.contains(&replica.id)
        && let Some(successor) = successor(replica, &remove)
    {
        return Err(hand_over(replica, successor));
    }
    Ok((submit(replica, &change)?, remove))
}

/// The voter that has most, of those that stay.
fn successor(replica: &Replica, leaving: &[ReplicaId]) -> Option<ReplicaId> {
    let status = replica.node.status();
    let stays = |id: ReplicaId| status.conf_state.voters.contains(&id) && !leaving.contains(&id);
    let staying = status.progress.iter().filter(|member| stays(member.id));
    let best = staying.max_by_key(|member| (member.recently_active, member.matched));
    best.map(|member| member.id)
}

/// Who leads cannot take the second step of its own removal: its successor is to do both.
fn hand_over(replica: &mut Replica, successor: ReplicaId) -> Reject {
    match replica.node.transfer_leader(successor) {
        Ok(()) => {
            let store = replica.store_of(successor);
            let leader = store.map(|store| Member {
                replica: successor,
                store,
            });
            Reject::NotLeader { leader }
        }
        Err(_) => Reject::Busy("leadership cannot be handed over"),
    }
}

fn submit(replica: &mut Replica, change: &ConfChangeV2) -> Result<EntryId, Reject> {
    let id = match replica.node.propose_conf_change(change) {
        Ok(Some(_)) => last_of(replica),
        Ok(None) => return Err(replica.not_leader()),
        Err(_) => return Err(Reject::Busy("leadership is being transferred")),
    };
    let ignored = |event: &Event| match event {
        Event::ConfChangeIgnored { reason, .. } => Some(*reason),
        _ => None,
    };
    match replica.node.take_events().iter().find_map(ignored) {
        Some(reason) => Err(Reject::Refused(format!(
            "another change of membership is still under way ({reason:?}); try again"
        ))),
        None => Ok(id),
    }
}
