//! What operators and embedders wish for.

use polyraft_core::{ConfChangeKind, ConfChangeV2, Event, ReplicaId, RoleName, Transition};

use super::Worker;
use super::messages::last_of;
use crate::codec::encode_members;
use crate::effects::Effects;
use crate::error::Reject;
use crate::group::{GroupDescriptor, GroupId, Member, StoreId};
use crate::handle::{GroupStatus, MemberChange};
use crate::input::Admin;
use crate::replica::{PendingChange, Replica};
use crate::responder::Responder;

impl Worker {
    pub(super) fn admin(&mut self, admin: Admin, effects: &mut Effects) {
        match admin {
            Admin::Create {
                descriptor,
                respond,
            } => self.create(descriptor, respond, effects),
            Admin::Destroy {
                group,
                next_replica,
                respond,
            } => {
                self.destroy(group, next_replica, Some(respond), effects);
            }
            Admin::ChangeMembers {
                group,
                changes,
                transition,
                expected,
                respond,
            } => {
                if let Err(reject) = self.check_epoch(group, expected) {
                    return respond.answer(Err(reject));
                }
                self.change_members(group, &changes, transition, respond);
            }
            Admin::Transfer { group, to, respond } => self.transfer(group, to, respond),
            Admin::Campaign { group, respond } => match self.serving(group) {
                Ok(replica) => {
                    let result = replica.node.campaign();
                    respond.answer(Ok(()));
                    match result {
                        Ok(()) => self.wake(group),
                        Err(error) => self.quarantine(group, &error.to_string()),
                    }
                }
                Err(reject) => respond.answer(Err(reject)),
            },
            Admin::Describe { group, respond } => match self.replicas.get(&group) {
                Some(replica) => respond.answer(Ok(describe(replica))),
                None => respond.answer(Err(Reject::NoGroup(group))),
            },
        }
    }

    fn check_epoch(&self, group: GroupId, expected: Option<u64>) -> Result<(), Reject> {
        let Some(replica) = self.replicas.get(&group) else {
            return Ok(());
        };
        let now = replica.descriptor.epoch.membership;
        match expected {
            Some(expected) if expected != now => Err(Reject::Refused(
                "the members changed meanwhile; look at the group and try again".to_owned(),
            )),
            _ => Ok(()),
        }
    }

    fn change_members(
        &mut self,
        group: GroupId,
        changes: &[MemberChange],
        transition: Transition,
        respond: Responder<Result<GroupDescriptor, Reject>>,
    ) {
        let replica = match self.serving(group) {
            Ok(replica) if replica.leads() => replica,
            Ok(replica) => {
                let reject = replica.not_leader();
                return respond.answer(Err(reject));
            }
            Err(reject) => return respond.answer(Err(reject)),
        };
        match propose_change(replica, changes, transition) {
            Ok(id) => {
                let wait_for_leave = transition != Transition::JointExplicit;
                let pending = PendingChange {
                    id,
                    applied: false,
                    wait_for_leave,
                    respond,
                };
                replica.changes.push(pending);
                self.wake(group);
            }
            Err(reject) => {
                respond.answer(Err(reject));
                self.touch(group);
            }
        }
    }

    fn transfer(&mut self, group: GroupId, to: StoreId, respond: Responder<Result<(), Reject>>) {
        let replica = match self.serving(group) {
            Ok(replica) if replica.leads() => replica,
            Ok(replica) => {
                let reject = replica.not_leader();
                return respond.answer(Err(reject));
            }
            Err(reject) => return respond.answer(Err(reject)),
        };
        let Some(target) = replica.descriptor.replica_on(to) else {
            let why = format!("store {to} has no replica of group {group}");
            return respond.answer(Err(Reject::Refused(why)));
        };
        if target == replica.id {
            return respond.answer(Ok(()));
        }
        if !replica.node.status().conf_state.voters.contains(&target) {
            let why = format!("the replica on store {to} is no voter; promote it first");
            return respond.answer(Err(Reject::Refused(why)));
        }
        match replica.node.transfer_leader(target) {
            Ok(()) => {
                replica.transfers.push(respond);
                self.wake(group);
            }
            Err(error) => {
                respond.answer(Err(Reject::Refused(error.to_string())));
                self.quarantine(group, &error.to_string());
            }
        }
    }
}

/// Turns wishes about stores into a change of replicas, and proposes it.
fn propose_change(
    replica: &mut Replica,
    changes: &[MemberChange],
    transition: Transition,
) -> Result<polyraft_core::EntryId, Reject> {
    let descriptor = &replica.descriptor;
    let (mut next, mut new, mut each) = (descriptor.next_replica, Vec::new(), Vec::new());
    for change in changes {
        let present = descriptor.replica_on(change.store);
        let id = match (change.kind, present) {
            (_, Some(id)) => id,
            (ConfChangeKind::AddVoter | ConfChangeKind::AddLearner, None) => {
                let id = next;
                next = ReplicaId(next.0 + 1);
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
        each.push((change.kind, id));
    }
    let change = ConfChangeV2 {
        transition,
        changes: each,
        context: encode_members(&new),
    };
    // What cannot be applied later is better refused now, with the reason.
    replica.node.status().conf_state.apply(&change)?;
    let id = match replica.node.propose_conf_change(&change) {
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

fn describe(replica: &Replica) -> GroupStatus {
    let log = replica.node.storage();
    GroupStatus {
        descriptor: GroupDescriptor::clone(&replica.descriptor),
        raft: replica.node.status(),
        truncated: log.truncated(),
        last: log.last(),
        cached_log_bytes: log.cache_bytes(),
        flushed: replica.flushed,
        asleep: replica.asleep,
        quarantined: replica.quarantined.clone(),
    }
}

/// Whether a replica is between elections as far as it knows.
pub(super) fn is_settled(replica: &Replica) -> bool {
    matches!(replica.node.role(), RoleName::Leader | RoleName::Follower)
}
