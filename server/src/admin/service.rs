//! The gRPC service `polyraft.admin.v1.Admin`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use polyraft_core::{ConfChangeKind, RoleName, Transition};
use polyraft_multiraft::{GroupId, GroupStatus, MemberChange, StoreId};
use tonic::{Request, Response, Status};

use super::merges::holds;
use super::view;
use crate::directory::{DIRECTORY, Named};
use crate::failure::{Failure, Reason};
use crate::owner::Aim;
use crate::proto::admin::admin_client::AdminClient;
use crate::proto::admin::admin_server::Admin;
use crate::proto::admin::{
    ChangeKind, ChangeMembersRequest, ChangeMembersResponse, CheckRangeRequest, CheckRangeResponse,
    CreateGroupRequest, CreateGroupResponse, DecommissionStoreRequest, DecommissionStoreResponse,
    DescribeGroupRequest, DescribeGroupResponse, DestroyGroupRequest, DestroyGroupResponse, Group,
    InitRequest, InitResponse, ListGroupsRequest, ListGroupsResponse, ListRangesRequest,
    ListRangesResponse, ListReplicasRequest, ListReplicasResponse, MergeRangesRequest,
    MergeRangesResponse, MoveReplicaRequest, MoveReplicaResponse, SplitRangeRequest,
    SplitRangeResponse, StatusRequest, StatusResponse, StoreStatus, TransferLeaderRequest,
    TransferLeaderResponse,
};
use crate::routing::Call;
use crate::server::{Server, futures_join, status_of};

/// How long workers may take to say who votes in groups whose members have changed.
const ROLES_BOUND: Duration = Duration::from_millis(500);

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct AdminService(pub(crate) Arc<Server>);

#[tonic::async_trait]
impl Admin for AdminService {
    async fn init(&self, request: Request<InitRequest>) -> Result<Response<InitResponse>, Status> {
        let call = Call::new(request.metadata(), false);
        Ok(Response::new(
            self.0.init(request.into_inner(), call).await?,
        ))
    }

    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        let mut stores = vec![self.0.status_here()];
        if request.into_inner().all {
            let others = self.0.peers.others();
            stores.extend(
                futures_join(others.iter().map(|store| status_of(&self.0.peers, *store))).await,
            );
        }
        stores.sort_by_key(|status| status.store);
        Ok(Response::new(StatusResponse { stores }))
    }

    async fn list_groups(
        &self,
        request: Request<ListGroupsRequest>,
    ) -> Result<Response<ListGroupsResponse>, Status> {
        let mut here = self.0.list_here();
        self.0.add_roles(&mut here).await;
        let list = if request.into_inner().local {
            ListGroupsResponse {
                groups: here,
                unreachable: Vec::new(),
            }
        } else {
            self.0.list_everywhere(here).await
        };
        Ok(Response::new(list))
    }

    async fn describe_group(
        &self,
        request: Request<DescribeGroupRequest>,
    ) -> Result<Response<DescribeGroupResponse>, Status> {
        let call = Call::new(request.metadata(), true);
        let request = request.into_inner();
        Ok(Response::new(self.0.describe(request, call).await?))
    }

    async fn create_group(
        &self,
        request: Request<CreateGroupRequest>,
    ) -> Result<Response<CreateGroupResponse>, Status> {
        let call = Call::new(request.metadata(), false);
        let group = self
            .0
            .create_group(&request.into_inner().stores, call)
            .await?;
        Ok(Response::new(CreateGroupResponse { group: Some(group) }))
    }

    async fn destroy_group(
        &self,
        request: Request<DestroyGroupRequest>,
    ) -> Result<Response<DestroyGroupResponse>, Status> {
        let call = Call::new(request.metadata(), false);
        let later = self.0.destroy_group(request.into_inner(), call).await?;
        Ok(Response::new(DestroyGroupResponse { later }))
    }

    async fn change_members(
        &self,
        request: Request<ChangeMembersRequest>,
    ) -> Result<Response<ChangeMembersResponse>, Status> {
        let call = Call::new(request.metadata(), false);
        Ok(Response::new(
            self.0.change_members(request.into_inner(), call).await?,
        ))
    }

    async fn transfer_leader(
        &self,
        request: Request<TransferLeaderRequest>,
    ) -> Result<Response<TransferLeaderResponse>, Status> {
        let call = Call::new(request.metadata(), false);
        Ok(Response::new(
            self.0.transfer(request.into_inner(), call).await?,
        ))
    }

    async fn list_ranges(
        &self,
        _: Request<ListRangesRequest>,
    ) -> Result<Response<ListRangesResponse>, Status> {
        Ok(Response::new(self.0.list_ranges().await))
    }

    async fn split_range(
        &self,
        request: Request<SplitRangeRequest>,
    ) -> Result<Response<SplitRangeResponse>, Status> {
        let call = Call::new(request.metadata(), false);
        let answer = self.0.split_range(request.into_inner(), call).await?;
        Ok(Response::new(answer))
    }

    async fn merge_ranges(
        &self,
        request: Request<MergeRangesRequest>,
    ) -> Result<Response<MergeRangesResponse>, Status> {
        let call = Call::new(request.metadata(), false);
        let answer = self.0.merge_ranges(request.into_inner(), call).await?;
        Ok(Response::new(answer))
    }

    async fn move_replica(
        &self,
        request: Request<MoveReplicaRequest>,
    ) -> Result<Response<MoveReplicaResponse>, Status> {
        let call = Call::new(request.metadata(), false);
        let answer = self.0.move_replica(request.into_inner(), call).await?;
        Ok(Response::new(answer))
    }

    async fn decommission_store(
        &self,
        request: Request<DecommissionStoreRequest>,
    ) -> Result<Response<DecommissionStoreResponse>, Status> {
        let call = Call::new(request.metadata(), false);
        let answer = self.0.decommission(request.into_inner(), call).await?;
        Ok(Response::new(answer))
    }

    async fn check_range(
        &self,
        request: Request<CheckRangeRequest>,
    ) -> Result<Response<CheckRangeResponse>, Status> {
        let call = Call::new(request.metadata(), false);
        let answer = self.0.check_range(request.into_inner(), call).await?;
        Ok(Response::new(answer))
    }

    async fn list_replicas(
        &self,
        request: Request<ListReplicasRequest>,
    ) -> Result<Response<ListReplicasResponse>, Status> {
        let call = Call::new(request.metadata(), true);
        let answer = self.0.list_replicas(request.into_inner(), call).await?;
        Ok(Response::new(answer))
    }
}

impl Server {
    pub(crate) fn status_here(&self) -> StoreStatus {
        let stats = self.stats_of_ranges();
        let counters = self.counters();
        StoreStatus {
            store: self.me,
            address: self.peers.address(self.me).unwrap_or_default(),
            error: String::new(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cluster: self.cluster,
            uptime_seconds: self.started.elapsed().as_secs(),
            replicas: stats.replicas,
            leaders: stats.leaders,
            asleep: stats.asleep,
            connected: self.peers.connected().into_iter().collect(),
            counters: counters
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
            draining: self.draining.load(Ordering::SeqCst),
            disk_full: stats.disk_full,
            incarnation: self.instance.incarnation,
            environment: Some(self.environment.clone()),
        }
    }

    pub(super) fn list_here(&self) -> Vec<Group> {
        let replicas = self.handle.list().into_iter();
        let described = replicas.filter_map(|summary| {
            let descriptor = self.handle.descriptor(summary.group)?;
            Some(view::replica(&descriptor, &summary))
        });
        described.collect()
    }

    /// Says who of the members votes. Only groups whose members have changed since the last time are asked.
    pub(super) async fn add_roles(&self, groups: &mut [Group]) {
        let call = Call {
            deadline: tokio::time::Instant::now() + ROLES_BOUND,
            forwarded: true,
            reads: true,
            once: false,
        };
        let stale: Vec<u64> = {
            let known = self.roles.lock();
            let is_stale = |group: &&Group| {
                let known = known.get(&group.group);
                known.is_none_or(|(epoch, _)| *epoch != group.membership_epoch)
            };
            groups
                .iter()
                .filter(is_stale)
                .map(|group| group.group)
                .collect()
        };
        let asked = futures_join(stale.iter().map(|group| {
            self.ask(*group, call, |respond| {
                self.handle.describe(GroupId(*group), respond)
            })
        }));
        let asked = asked.await;
        let mut known = self.roles.lock();
        for status in asked.into_iter().flatten() {
            let descriptor = &status.descriptor;
            let entry = (descriptor.epoch.membership, status.raft.conf_state);
            known.insert(descriptor.group.0, entry);
        }
        for group in &mut *groups {
            if let Some((epoch, state)) = known.get(&group.group)
                && *epoch == group.membership_epoch
            {
                view::add_roles(group, state);
            }
        }
        let here: BTreeSet<u64> = groups.iter().map(|group| group.group).collect();
        known.retain(|group, _| here.contains(group));
    }

    /// Every group once, as told by its leader's store, or by the one that has seen the latest term.
    pub(super) async fn list_everywhere(&self, here: Vec<Group>) -> ListGroupsResponse {
        let (told, unreachable) = self.list_all(here).await;
        let mut best: BTreeMap<u64, (bool, u64, Group)> = BTreeMap::new();
        for (store, group) in told
            .into_iter()
            .flat_map(|(store, list)| list.into_iter().map(move |g| (store, g)))
        {
            let rank = (group.leader_store == store, group.term);
            match best.get(&group.group) {
                Some((leads, term, _)) if (*leads, *term) >= rank => {}
                _ => drop(best.insert(group.group, (rank.0, rank.1, group))),
            }
        }
        ListGroupsResponse {
            groups: best.into_values().map(|(.., group)| group).collect(),
            unreachable,
        }
    }

    /// What each store that can be asked says of its replicas, and those that cannot.
    pub(super) async fn list_all(&self, here: Vec<Group>) -> (Vec<(u64, Vec<Group>)>, Vec<u64>) {
        let others = self.peers.others();
        let lists = futures_join(others.iter().map(|store| self.list_of(*store))).await;
        let mut unreachable = Vec::new();
        let mut told = vec![(self.me, here)];
        for (store, list) in others.into_iter().zip(lists) {
            match list {
                Ok(groups) => told.push((store, groups)),
                Err(_) => unreachable.push(store),
            }
        }
        (told, unreachable)
    }

    pub(super) async fn describe(
        &self,
        request: DescribeGroupRequest,
        call: Call,
    ) -> Result<DescribeGroupResponse, Failure> {
        let aim = match &request.key {
            Some(key) if request.group == 0 => Aim::Key(key),
            _ => Aim::Group(request.group),
        };
        if request.local {
            let group = match aim {
                Aim::Group(group) => group,
                key => self.route(call, key).await?.group,
            };
            return self.describe_here(group, call).await;
        }
        let key = request.key.as_ref();
        let local = |group| self.describe_led(group, key, call);
        let remote = |group, channel| {
            let request = call.forward(DescribeGroupRequest {
                group,
                ..request.clone()
            });
            async move {
                Ok(AdminClient::new(channel)
                    .describe_group(request)
                    .await?
                    .into_inner())
            }
        };
        self.at_owner(aim, None, call, local, remote).await
    }

    /// A group that this store leads, and that holds the key if one is named.
    async fn describe_led(
        &self,
        group: u64,
        key: Option<&Bytes>,
        call: Call,
    ) -> Result<DescribeGroupResponse, Failure> {
        let describe = |respond| self.handle.describe(GroupId(group), respond);
        let status = self.ask(group, call, describe).await?;
        let described = view::described(&status, self.me);
        if described.role != "leader" {
            let leader = described.group.as_ref().map_or(0, |g| g.leader_store);
            let failure = Failure::new(Reason::NotLeader, "this replica does not lead the group");
            return Err(Failure {
                leader: (leader != 0).then_some(leader),
                ..failure
            });
        }
        let aim = key.map(|key| Aim::Key(key));
        if let Some(aim) = aim.filter(|aim| !holds(&status.descriptor, *aim)) {
            return Err(self.range_changed(&status.descriptor, aim));
        }
        Ok(described)
    }

    pub(super) async fn describe_here(
        &self,
        group: u64,
        call: Call,
    ) -> Result<DescribeGroupResponse, Failure> {
        let status = self
            .ask(group, call, |respond| {
                self.handle.describe(GroupId(group), respond)
            })
            .await?;
        Ok(view::described(&status, self.me))
    }

    /// A group that no store knows is an error at once, not at the deadline.
    pub(crate) async fn check_exists(&self, group: u64, call: Call) -> Result<(), Failure> {
        if call.forwarded || self.route_of_group(group).is_some() {
            return Ok(());
        }
        match group {
            DIRECTORY => self.locate_directory(call).await,
            _ => self.refresh_routes(call).await,
        }
        match self.route_of_group(group) {
            Some(_) => Ok(()),
            None => Err(Failure::new(
                Reason::BadRequest,
                format!(
                    "no store that can be reached knows group {}; `polyraft group list` shows all",
                    Named(group)
                ),
            )),
        }
    }

    pub(super) async fn change_members(
        &self,
        request: ChangeMembersRequest,
        call: Call,
    ) -> Result<ChangeMembersResponse, Failure> {
        let group = request.group;
        let wanted = &request.changes;
        let changes: Vec<MemberChange> = wanted.iter().map(to_change).collect::<Result<_, _>>()?;
        if changes.is_empty() {
            return Err(Failure::new(Reason::BadRequest, "no change is asked for"));
        }
        for change in &changes {
            if self.peers.address(change.store.0).is_none() && !call.forwarded {
                let text = format!("store {} is not known: start it first", change.store);
                return Err(Failure::new(Reason::BadRequest, text));
            }
        }
        self.check_exists(group, call).await?;
        let local = || {
            let changes = changes.clone();
            async move {
                let id = GroupId(group);
                let describe = |respond| self.handle.describe(id, respond);
                let looking = Call {
                    reads: true,
                    once: false,
                    ..call
                };
                let status = self.ask(group, looking, describe).await?;
                check_changes(&status, wanted)?;
                let epoch = status.descriptor.epoch.membership;
                let change = |respond| {
                    let how = Transition::Auto;
                    self.handle
                        .change_members_if(id, epoch, changes, how, respond);
                };
                let descriptor = self.ask(group, call, change).await?;
                let mut changed = view::group(&descriptor, None);
                // The change is done, whether or not anybody can say who votes now.
                if let Ok(status) = self.ask(group, looking, describe).await
                    && status.descriptor.epoch == descriptor.epoch
                {
                    view::add_roles(&mut changed, &status.raft.conf_state);
                }
                Ok(ChangeMembersResponse {
                    group: Some(changed),
                })
            }
        };
        let remote = |channel| {
            let request = call.forward(request.clone());
            async move {
                Ok(AdminClient::new(channel)
                    .change_members(request)
                    .await?
                    .into_inner())
            }
        };
        self.at_leader(group, call, local, remote).await
    }

    async fn transfer(
        &self,
        request: TransferLeaderRequest,
        call: Call,
    ) -> Result<TransferLeaderResponse, Failure> {
        let TransferLeaderRequest { group, to_store } = request;
        self.check_exists(group, call).await?;
        let local = || async move {
            let summary = self.handle.summary(GroupId(group));
            let leads = summary.is_some_and(|s| s.basic.soft_state.role == RoleName::Leader);
            if !(leads && to_store == self.me) {
                let transfer = |respond| {
                    self.handle
                        .transfer_leader(GroupId(group), StoreId(to_store), respond);
                };
                self.ask(group, call, transfer).await?;
            }
            Ok(TransferLeaderResponse {
                leader_store: to_store,
            })
        };
        let remote = |channel| {
            let request = call.forward(request);
            async move {
                Ok(AdminClient::new(channel)
                    .transfer_leader(request)
                    .await?
                    .into_inner())
            }
        };
        self.at_leader(group, call, local, remote).await
    }
}

/// Refuses what Raft would do but nobody means: a vote that is lost by adding, a group that shrinks by
/// replacing.
fn check_changes(
    status: &GroupStatus,
    changes: &[crate::proto::admin::MemberChange],
) -> Result<(), Failure> {
    let (group, several) = (status.descriptor.group, changes.len() > 1);
    for change in changes {
        let store = change.store;
        let replica = status.descriptor.replica_on(StoreId(store));
        let votes = replica.is_some_and(|id| status.raft.conf_state.voters.contains(&id));
        let why = match change.kind() {
            ChangeKind::AddLearner if votes => format!(
                "store {store} is a voter of group {group} already; \
                 `polyraft group demote` would take its vote"
            ),
            ChangeKind::Demote if replica.is_none() => {
                format!("store {store} has no replica of group {group}")
            }
            ChangeKind::AddVoter if votes && several => format!(
                "store {store} is a voter of group {group} already, so that the group would only shrink"
            ),
            _ => continue,
        };
        return Err(Failure::new(Reason::BadRequest, why));
    }
    Ok(())
}

fn to_change(change: &crate::proto::admin::MemberChange) -> Result<MemberChange, Failure> {
    let kind = match change.kind() {
        ChangeKind::AddVoter => ConfChangeKind::AddVoter,
        ChangeKind::AddLearner | ChangeKind::Demote => ConfChangeKind::AddLearner,
        ChangeKind::Remove => ConfChangeKind::Remove,
        ChangeKind::Unspecified => {
            return Err(Failure::new(Reason::BadRequest, "a change without a kind"));
        }
    };
    if change.store == 0 {
        return Err(Failure::new(Reason::BadRequest, "a change without a store"));
    }
    Ok(MemberChange {
        kind,
        store: StoreId(change.store),
    })
}
