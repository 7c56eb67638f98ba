//! Groups that are created and destroyed while the stores run.
//!
//! The number of a group is never used twice: the directory grants them, each once. Those of the system's
//! groups are above all that it grants, and no request of a user's ends one of these groups.

use polyraft_core::ReplicaId;
use polyraft_multiraft::{Epoch, GroupDescriptor, GroupId, KeyRange, Member, StoreId};
use tonic::Status;

use super::view;
use crate::directory::command::Numbers;
use crate::directory::{DIRECTORY, FIRST_OF_THE_SYSTEM, Named};
use crate::embed::new_descriptor;
use crate::failure::{Failure, Reason};
use crate::proto::admin::internal_client::InternalClient;
use crate::proto::admin::{
    CreateReplicaRequest, DestroyGroupRequest, DestroyReplicaRequest, Group, MemberRole,
};
use crate::routing::Call;
use crate::server::{Server, futures_join};

/// No replica of a new group gets this id or a higher one: there is always a next one.
const REPLICA_MAX: u64 = 1 << 62;

/// The stores that could not do something, with why.
type Failures = Vec<(u64, Failure)>;

impl Server {
    pub(super) async fn create_group(&self, stores: &[u64], call: Call) -> Result<Group, Failure> {
        let mut distinct = stores.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        if distinct.is_empty() || distinct.len() != stores.len() || distinct[0] == 0 {
            let text = "name the stores of the new group's members, each once";
            return Err(Failure::new(Reason::BadRequest, text));
        }
        if let Some(unknown) = stores
            .iter()
            .find(|store| self.peers.address(**store).is_none())
        {
            return Err(Failure::new(
                Reason::BadRequest,
                format!("store {unknown} is not known"),
            ));
        }
        // The ranges come first: their numbers follow from the plan of the first init.
        if !self.has_ranges(call).await {
            let text = "the cluster has no ranges yet: run `polyraft init` first";
            return Err(Failure::new(Reason::NotInitialised, text));
        }
        let number = self.take_numbers(Numbers::Groups, 1, call).await?;
        let descriptor = new_descriptor(number, None, stores);
        let failures = self.create_replicas(&descriptor, call).await;
        let created = stores.len() - failures.len();
        if created <= stores.len() / 2 {
            let (store, why) = failures
                .into_iter()
                .next()
                .unwrap_or_else(|| (0, Failure::new(Reason::Internal, "no store answered")));
            let text = format!(
                "group {number} was not created: store {store}: {}",
                why.message
            );
            return Err(Failure {
                message: text,
                ..why
            }
            .of_unknown_effect());
        }
        self.directory.learn((&descriptor).into());
        Ok(view::all_voters(&descriptor))
    }

    /// Creates the replicas of a new group, that of the first member last: it campaigns, and the
    /// others can vote.
    pub(super) async fn create_replicas(
        &self,
        descriptor: &GroupDescriptor,
        call: Call,
    ) -> Failures {
        let stores: Vec<u64> = descriptor
            .members
            .iter()
            .map(|member| member.store.0)
            .collect();
        let Some((first, others)) = stores.split_first() else {
            return Vec::new();
        };
        let create = |store: u64, campaign: bool| async move {
            (
                store,
                self.create_replica_at(store, descriptor, campaign, call)
                    .await,
            )
        };
        let mut results = futures_join(others.iter().map(|store| create(*store, false))).await;
        results.push(create(*first, true).await);
        results
            .into_iter()
            .filter_map(|(store, result)| Some((store, result.err()?)))
            .collect()
    }

    async fn create_replica_at(
        &self,
        store: u64,
        descriptor: &GroupDescriptor,
        campaign: bool,
        call: Call,
    ) -> Result<(), Failure> {
        if store == self.me {
            return self
                .create_replica(descriptor.clone(), campaign, call)
                .await;
        }
        let (start, end) = view::bounds(descriptor);
        let request = CreateReplicaRequest {
            group: descriptor.group.0,
            start,
            end,
            members: view::group(descriptor, None).members,
            campaign,
        };
        let mut client = InternalClient::new(self.channel_to(store)?);
        let created = client.create_replica(call.forward(request)).await;
        created
            .map(drop)
            .map_err(|status| Failure::from_status(&status, false))
    }

    /// Creates this store's replica of a group; no error if it is there.
    pub(super) async fn create_replica(
        &self,
        descriptor: GroupDescriptor,
        campaign: bool,
        call: Call,
    ) -> Result<(), Failure> {
        let group = descriptor.group;
        self.ask(group.0, call, |respond| {
            self.handle.create_group(descriptor, respond)
        })
        .await?;
        if campaign {
            let started = self
                .ask(group.0, call, |respond| {
                    self.handle.campaign(group, respond)
                })
                .await;
            if let Err(failure) = started {
                // It will after its election timeout.
                tracing::debug!(%group, why = failure.message, "a new group did not campaign at once");
            }
        }
        Ok(())
    }

    /// Destroys a group for ever; the members that could not be reached.
    pub(super) async fn destroy_group(
        &self,
        request: DestroyGroupRequest,
        call: Call,
    ) -> Result<Vec<u64>, Failure> {
        let group = request.group;
        not_of_the_system(group)?;
        // What was known of a group that lives elsewhere may name stores that it left long ago: they would
        // agree, and its members go on.
        if self.handle.descriptor(GroupId(group)).is_none() {
            self.refresh_routes(call).await;
        }
        self.check_exists(group, call).await?;
        let route = self.route_of_group(group);
        if !request.force && route.as_ref().is_some_and(|route| route.range.is_some()) {
            let text = format!(
                "group {group} holds a range of keys, which no group would hold any more: \
                 if that is meant, force it (`polyraft group destroy {group} --force`)"
            );
            return Err(Failure::new(Reason::Refused, text));
        }
        let route = route.map(|route| route.stores.clone()).unwrap_or_default();
        let destroy =
            |store: u64| async move { (store, self.destroy_replica_at(store, group, call).await) };
        let results = futures_join(route.iter().map(|store| destroy(*store))).await;
        let failed: Failures = results
            .into_iter()
            .filter_map(|(store, r)| Some((store, r.err()?)))
            .collect();
        if route.len() - failed.len() <= route.len() / 2 {
            let why: Vec<String> = failed
                .iter()
                .map(|(store, failure)| format!("store {store}: {}", failure.message))
                .collect();
            let text = format!(
                "no quorum: a majority of the group's stores must agree; {}",
                why.join("; ")
            );
            return Err(Failure::new(Reason::NoQuorum, text).of_unknown_effect());
        }
        self.directory.forget(group);
        self.publishing.destroyed(group);
        Ok(failed.into_iter().map(|(store, _)| store).collect())
    }

    async fn destroy_replica_at(&self, store: u64, group: u64, call: Call) -> Result<(), Failure> {
        if store == self.me {
            return self.destroy_replica(group, call).await;
        }
        let mut client = InternalClient::new(self.channel_to(store)?);
        let destroyed = client
            .destroy_replica(call.forward(DestroyReplicaRequest { group }))
            .await;
        destroyed
            .map(drop)
            .map_err(|status| Failure::from_status(&status, false))
    }

    /// Destroys this store's replica and lets none come back.
    pub(super) async fn destroy_replica(&self, group: u64, call: Call) -> Result<(), Failure> {
        not_of_the_system(group)?;
        let forever = ReplicaId(u64::MAX);
        let destroy = |respond| {
            self.handle
                .destroy_replica(GroupId(group), forever, respond)
        };
        self.ask(group, call, destroy).await?;
        self.directory.forget(group);
        Ok(())
    }

    pub(super) fn channel_to(&self, store: u64) -> Result<tonic::transport::Channel, Failure> {
        let unknown = || {
            Failure::new(
                Reason::NoGroup,
                format!("the address of store {store} is not known"),
            )
        };
        self.peers.channel(store).ok_or_else(unknown)
    }
}

/// Refuses what would end one of the groups that the cluster itself lives by.
///
/// # Errors
/// It is one.
fn not_of_the_system(group: u64) -> Result<(), Failure> {
    if group < FIRST_OF_THE_SYSTEM {
        return Ok(());
    }
    let text = format!(
        "group {} belongs to the system: the cluster lives by it, and it is never destroyed",
        Named(group)
    );
    Err(Failure::new(Reason::Refused, text))
}

/// The descriptor in a request of another store.
pub(super) fn requested_descriptor(
    request: &CreateReplicaRequest,
) -> Result<GroupDescriptor, Status> {
    let malformed = |why: &str| Status::from(Failure::new(Reason::BadRequest, why));
    let increasing = request
        .members
        .windows(2)
        .all(|pair| pair[0].replica < pair[1].replica);
    let valid = request.members.iter().all(|m| {
        (1..REPLICA_MAX).contains(&m.replica) && m.store > 0 && m.role() != MemberRole::Learner
    });
    let known = (1..FIRST_OF_THE_SYSTEM).contains(&request.group) || request.group == DIRECTORY;
    if !known || request.members.is_empty() || !increasing || !valid {
        return Err(malformed("a new group with a malformed description"));
    }
    let range = request.start.clone().map(|start| KeyRange {
        start,
        end: request.end.clone(),
    });
    if range
        .as_ref()
        .is_some_and(|range| range.end.as_ref().is_some_and(|end| *end <= range.start))
    {
        return Err(malformed("a new group with an empty range"));
    }
    let last = request.members.last().map_or(0, |member| member.replica);
    Ok(GroupDescriptor {
        group: GroupId(request.group),
        range,
        members: request
            .members
            .iter()
            .map(|m| Member {
                replica: ReplicaId(m.replica),
                store: StoreId(m.store),
            })
            .collect(),
        next_replica: ReplicaId(last.saturating_add(1)),
        epoch: Epoch {
            membership: 1,
            range: 1,
        },
        border: 0,
        frozen: None,
    })
}
