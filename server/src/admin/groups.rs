//! Groups that are created and destroyed while the stores run.
//!
//! The number of a group is never used twice: each store keeps, durably, the lowest number it would
//! still grant, and a number, or a row of them, is taken once a majority of the stores has granted it. Two
//! majorities have a store in common, and that store grants a number once.

use bytes::Bytes;
use polyraft_core::ReplicaId;
use polyraft_multiraft::{Epoch, GroupDescriptor, GroupId, KeyRange, Member, StoreId};
use tonic::Status;

use super::view;
use crate::embed::new_descriptor;
use crate::failure::{Failure, Reason};
use crate::proto::admin::internal_client::InternalClient;
use crate::proto::admin::{
    CreateReplicaRequest, DestroyGroupRequest, DestroyReplicaRequest, Group, MemberRole,
    ReserveGroupRequest, ReserveGroupResponse,
};
use crate::routing::Call;
use crate::server::{Server, futures_join};

/// Under this name `meta` keeps the lowest number that this store would grant.
const NEXT_GROUP: &[u8] = b"next-group";
/// No replica of a new group gets this id or a higher one: there is always a next one.
const REPLICA_MAX: u64 = 1 << 62;

/// The stores that could not do something, with why.
type Failures = Vec<(u64, Failure)>;

impl Server {
    /// Grants `count` numbers from `group` on if those and all higher ones are free as far as this
    /// store knows.
    pub(super) fn reserve(&self, group: u64, count: u64) -> Result<ReserveGroupResponse, Failure> {
        let _guard = self.reservations.lock();
        let internal =
            |error: &dyn std::fmt::Display| Failure::new(Reason::Internal, error.to_string());
        let kept = self
            .meta
            .get_server(NEXT_GROUP)
            .map_err(|error| internal(&error))?;
        let kept = kept
            .and_then(|kept| kept[..].try_into().ok())
            .map_or(1, u64::from_be_bytes);
        let highest = self
            .handle
            .list()
            .last()
            .map_or(0, |replica| replica.group.0);
        let next = kept.max(highest.saturating_add(1));
        if group < next {
            return Ok(ReserveGroupResponse {
                granted: false,
                next,
            });
        }
        let Some(after) = group.checked_add(count.max(1)) else {
            return Err(Failure::new(Reason::BadRequest, "no such group number"));
        };
        let value = Bytes::copy_from_slice(&after.to_be_bytes());
        self.meta
            .put_server(NEXT_GROUP, value)
            .map_err(|error| internal(&error))?;
        Ok(ReserveGroupResponse {
            granted: true,
            next: after,
        })
    }

    /// `count` numbers for new groups, of which the first, at least `at_least`, is returned.
    pub(super) async fn take_numbers(
        &self,
        at_least: u64,
        count: u64,
        call: Call,
    ) -> Result<u64, Failure> {
        let stores: Vec<u64> = self.peers.addresses().into_keys().collect();
        let mut number = at_least;
        loop {
            let answers = futures_join(
                stores
                    .iter()
                    .map(|store| self.reserve_at(*store, number, count, call)),
            )
            .await;
            let answers: Vec<_> = answers.into_iter().flatten().collect();
            let granted = answers.iter().filter(|answer| answer.granted).count();
            if granted > stores.len() / 2 {
                return Ok(number);
            }
            if answers.len() <= stores.len() / 2 || tokio::time::Instant::now() >= call.deadline {
                let text = format!(
                    "no quorum: a new group needs a majority of the stores {stores:?}, and {} answered",
                    answers.len()
                );
                return Err(Failure::new(Reason::NoQuorum, text));
            }
            let next = answers.iter().map(|answer| answer.next).max();
            number = next.unwrap_or(0).max(number + 1);
        }
    }

    async fn reserve_at(
        &self,
        store: u64,
        group: u64,
        count: u64,
        call: Call,
    ) -> Option<ReserveGroupResponse> {
        if store == self.me {
            return self.reserve(group, count).ok();
        }
        let mut client = InternalClient::new(self.peers.channel(store)?);
        let request = call.forward(ReserveGroupRequest { group, count });
        client
            .reserve_group(request)
            .await
            .ok()
            .map(tonic::Response::into_inner)
    }

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
        let number = self.take_numbers(1, 1, call).await?;
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
    if request.group == 0 || request.members.is_empty() || !increasing || !valid {
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
