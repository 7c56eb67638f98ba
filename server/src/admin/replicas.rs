//! The replicas of a group, each as its own store sees it.

use std::time::Duration;

use polyraft_multiraft::GroupId;
use tokio::time::timeout;

use crate::failure::{Failure, Reason};
use crate::proto::admin::admin_client::AdminClient;
use crate::proto::admin::{
    DescribeGroupRequest, DescribeGroupResponse, Group, ListReplicasRequest, ListReplicasResponse,
    MemberRole, ReplicaStatus,
};
use crate::routing::Call;
use crate::server::{Server, futures_join};

/// Bound for one store.
const STORE_BOUND: Duration = Duration::from_secs(1);

impl Server {
    /// Asks every store that is known: one may have a replica that is no member any more.
    pub(super) async fn list_replicas(
        &self,
        request: ListReplicasRequest,
        call: Call,
    ) -> Result<ListReplicasResponse, Failure> {
        let group = request.group;
        self.check_exists(group, call).await?;
        let stores: Vec<u64> = self.peers.addresses().into_keys().collect();
        let asked = stores
            .iter()
            .map(|store| self.replica_on(*store, group, call));
        let told = futures_join(asked).await;
        let told: Vec<(u64, Result<DescribeGroupResponse, Failure>)> =
            stores.into_iter().zip(told).collect();
        let described = told.iter().filter_map(|(_, told)| told.as_ref().ok());
        // Who leads in the latest term; else who has applied most.
        let best = described.max_by_key(|it| {
            let known = it.group.as_ref();
            let (term, applied) = known.map_or((0, 0), |it| (it.term, it.applied_index));
            (it.role == "leader", term, applied)
        });
        let Some(best) = best.cloned() else {
            let text = format!("no store that can be reached has a replica of group {group}");
            return Err(Failure::new(Reason::NoGroup, text));
        };
        let known = best.group.clone().unwrap_or_default();
        let mut replicas = Vec::new();
        let mut unreachable = Vec::new();
        for (store, told) in told {
            match status_of(store, &known, &best, told) {
                Seen::Replica(status) => replicas.push(*status),
                Seen::Nothing => {}
                Seen::Unknown => unreachable.push(store),
            }
        }
        replicas.sort_by_key(|replica| (replica.replica, replica.store));
        Ok(ListReplicasResponse {
            group: Some(known),
            replicas,
            unreachable,
        })
    }

    async fn replica_on(
        &self,
        store: u64,
        group: u64,
        call: Call,
    ) -> Result<DescribeGroupResponse, Failure> {
        if store == self.me {
            return match self.handle.summary(GroupId(group)) {
                Some(_) => self.describe_here(group, call).await,
                None => Err(Failure::new(Reason::NoGroup, "no replica here")),
            };
        }
        let request = DescribeGroupRequest {
            group,
            local: true,
            key: None,
        };
        let mut client = AdminClient::new(self.channel_to(store)?);
        let unanswered = || Failure::new(Reason::Unreachable, "it did not answer in time");
        let described = timeout(STORE_BOUND, client.describe_group(request)).await;
        let described = described.map_err(|_| unanswered())?;
        let described = described.map_err(|status| Failure::from_status(&status, true))?;
        Ok(described.into_inner())
    }
}

enum Seen {
    Replica(Box<ReplicaStatus>),
    Nothing,
    /// It could not be asked, and is no member.
    Unknown,
}

/// What is known of the replica on a store: from there, and from the leader.
fn status_of(
    store: u64,
    known: &Group,
    best: &DescribeGroupResponse,
    told: Result<DescribeGroupResponse, Failure>,
) -> Seen {
    let member = known.members.iter().find(|member| member.store == store);
    let follower = best.followers.iter().find(|it| it.store == store);
    let mut status = ReplicaStatus {
        replica: member.map_or(0, |member| member.replica),
        store,
        role: member
            .map_or(MemberRole::Unspecified, |it| it.role())
            .into(),
        progress: follower.map_or(String::new(), |it| it.state.clone()),
        match_index: follower.map_or(0, |it| it.match_index),
        recently_active: follower.is_some_and(|it| it.recently_active),
        ..ReplicaStatus::default()
    };
    match told {
        Ok(own) => {
            let group = own.group.unwrap_or_default();
            if member.is_none() {
                let itself = group.members.iter().find(|member| member.store == store);
                status.replica = itself.map_or(0, |member| member.replica);
            }
            status.state = own.role;
            status.term = group.term;
            status.last_index = own.last_index;
            status.commit_index = group.commit_index;
            status.applied_index = group.applied_index;
            status.asleep = group.asleep;
            status.quarantined = own.quarantined;
        }
        Err(failure) => match (member, failure.reason) {
            (None, Reason::NoGroup) => return Seen::Nothing,
            (None, _) => return Seen::Unknown,
            (Some(_), Reason::NoGroup) => "it has no replica (yet)".clone_into(&mut status.error),
            (Some(_), _) => status.error = failure.message,
        },
    }
    Seen::Replica(Box::new(status))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::admin::{Follower, Member};

    #[test]
    fn what_the_leader_and_the_store_know_comes_together() {
        let known = Group {
            group: 7,
            members: vec![Member {
                replica: 5,
                store: 2,
                role: MemberRole::Learner.into(),
            }],
            ..Group::default()
        };
        let best = DescribeGroupResponse {
            followers: vec![Follower {
                store: 2,
                state: "snapshot".to_owned(),
                match_index: 9,
                ..Follower::default()
            }],
            ..DescribeGroupResponse::default()
        };
        let failed = |reason| Err(Failure::new(reason, "why"));
        let Seen::Replica(away) = status_of(2, &known, &best, failed(Reason::Unreachable)) else {
            panic!("a member");
        };
        assert_eq!((away.replica, &*away.progress), (5, "snapshot"));
        assert_eq!((away.match_index, &*away.error), (9, "why"));
        let stranger = status_of(3, &known, &best, failed(Reason::NoGroup));
        assert!(matches!(stranger, Seen::Nothing));
        let unknown = status_of(3, &known, &best, failed(Reason::Unreachable));
        assert!(matches!(unknown, Seen::Unknown));
        let left = DescribeGroupResponse {
            group: Some(Group {
                members: vec![Member {
                    replica: 4,
                    store: 3,
                    ..Member::default()
                }],
                applied_index: 6,
                ..Group::default()
            }),
            quarantined: "broken".to_owned(),
            ..DescribeGroupResponse::default()
        };
        let Seen::Replica(left) = status_of(3, &known, &best, Ok(left)) else {
            panic!("it is there");
        };
        assert_eq!((left.replica, left.applied_index), (4, 6));
        assert_eq!(left.role(), MemberRole::Unspecified);
        assert_eq!(left.quarantined, "broken");
    }
}
