//! What operators and embedders wish for.

use polyraft_core::RoleName;

use super::Worker;
use crate::effects::Effects;
use crate::error::Reject;
use crate::group::{GroupDescriptor, GroupId, StoreId};
use crate::handle::GroupStatus;
use crate::input::Admin;
use crate::replica::Replica;
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
            Admin::ChangeRange {
                group,
                command,
                respond,
            } => self.change_range(group, &command, respond),
            Admin::Settled { group, at, respond } => self.settled(group, at, respond),
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
            Admin::Quarantine {
                group,
                replica,
                reason,
                respond,
            } => match self.replicas.get(&group).filter(|it| it.id == replica) {
                Some(_) => {
                    self.quarantine(group, &reason);
                    respond.answer(Ok(()));
                }
                None => respond.answer(Err(Reject::NoGroup(group))),
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

    fn transfer(&mut self, group: GroupId, to: StoreId, respond: Responder<Result<(), Reject>>) {
        let replica = match self.leading(group) {
            Ok(replica) => replica,
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
