//! What stores ask of each other, and what a store answers before it has joined a cluster.

use std::sync::Arc;

use polyraft_core::EntryId;
use polyraft_multiraft::{GroupDescriptor, RangeCommand, StoreId};
use tonic::{Request, Response, Status};

use super::groups::requested_descriptor;
use super::joining::Joining;
use crate::failure::{Failure, Reason};
use crate::instances::Instance;
use crate::owner::Aim;
use crate::peers::encode_addresses;
use crate::proto::admin::admin_server::Admin;
use crate::proto::admin::internal_server::Internal;
use crate::proto::admin::{
    BeginRequest, BeginResponse, ChangeMembersRequest, ChangeMembersResponse, ChangeRangeRequest,
    ChangeRangeResponse, CheckRangeRequest, CheckRangeResponse, CreateGroupRequest,
    CreateGroupResponse, CreateReplicaRequest, CreateReplicaResponse, DecommissionStoreRequest,
    DecommissionStoreResponse, DescribeGroupRequest, DescribeGroupResponse, DestroyGroupRequest,
    DestroyGroupResponse, DestroyReplicaRequest, DestroyReplicaResponse, DigestRangeRequest,
    DigestRangeResponse, HelloRequest, HelloResponse, InitRequest, InitResponse, ListGroupsRequest,
    ListGroupsResponse, ListRangesRequest, ListRangesResponse, ListReplicasRequest,
    ListReplicasResponse, LookAtRangeRequest, LookAtRangeResponse, MergeRangesRequest,
    MergeRangesResponse, MoveReplicaRequest, MoveReplicaResponse, QuarantineReplicaRequest,
    QuarantineReplicaResponse, SettleRangeRequest, SettleRangeResponse, SplitRangeRequest,
    SplitRangeResponse, StatusRequest, StatusResponse, TransferLeaderRequest,
    TransferLeaderResponse,
};
use crate::routing::Call;
use crate::server::Server;

/// Under this name `meta` keeps the addresses of all stores.
pub(crate) const ADDRESSES: &[u8] = b"addresses";
/// Under this name `meta` keeps what each store has shown of its directory.
pub(crate) const INSTANCES: &[u8] = b"instances";

/// The gRPC service `polyraft.admin.v1.Internal` of a store that has joined.
#[derive(Clone, Debug)]
pub(crate) struct InternalService(pub(crate) Arc<Server>);

#[tonic::async_trait]
impl Internal for InternalService {
    async fn hello(
        &self,
        request: Request<HelloRequest>,
    ) -> Result<Response<HelloResponse>, Status> {
        Ok(Response::new(self.0.hello(&request.into_inner())))
    }

    async fn begin(&self, _: Request<BeginRequest>) -> Result<Response<BeginResponse>, Status> {
        // The cluster has begun.
        Ok(Response::new(BeginResponse {}))
    }

    async fn create_replica(
        &self,
        request: Request<CreateReplicaRequest>,
    ) -> Result<Response<CreateReplicaResponse>, Status> {
        let call = Call::new(request.metadata(), false);
        let request = request.into_inner();
        let descriptor = requested_descriptor(&request)?;
        self.0
            .create_replica(descriptor, request.campaign, call)
            .await?;
        Ok(Response::new(CreateReplicaResponse {}))
    }

    async fn destroy_replica(
        &self,
        request: Request<DestroyReplicaRequest>,
    ) -> Result<Response<DestroyReplicaResponse>, Status> {
        let call = Call::new(request.metadata(), false);
        self.0
            .destroy_replica(request.into_inner().group, call)
            .await?;
        Ok(Response::new(DestroyReplicaResponse {}))
    }

    async fn look_at_range(
        &self,
        request: Request<LookAtRangeRequest>,
    ) -> Result<Response<LookAtRangeResponse>, Status> {
        let call = Call::new(request.metadata(), true);
        let group = request.into_inner().group;
        let look = self.0.look_here(Aim::Group(group), group, call).await?;
        Ok(Response::new(look.to_response()))
    }

    async fn change_range(
        &self,
        request: Request<ChangeRangeRequest>,
    ) -> Result<Response<ChangeRangeResponse>, Status> {
        let call = Call::new(request.metadata(), false);
        let ChangeRangeRequest { group, command } = request.into_inner();
        let command = RangeCommand::decode(&command);
        let command =
            command.map_err(|error| Failure::new(Reason::BadRequest, error.to_string()))?;
        let groups = self.0.change_range_here(group, &command, call).await?;
        let descriptors = groups.iter().map(GroupDescriptor::encode).collect();
        Ok(Response::new(ChangeRangeResponse { descriptors }))
    }

    async fn settle_range(
        &self,
        request: Request<SettleRangeRequest>,
    ) -> Result<Response<SettleRangeResponse>, Status> {
        let call = Call::new(request.metadata(), true);
        let SettleRangeRequest { group, term, index } = request.into_inner();
        let at = EntryId::new(term, index);
        self.0.settled_here(group, at, call).await?;
        Ok(Response::new(SettleRangeResponse {}))
    }

    async fn digest_range(
        &self,
        request: Request<DigestRangeRequest>,
    ) -> Result<Response<DigestRangeResponse>, Status> {
        let call = Call::new(request.metadata(), true);
        let DigestRangeRequest { group, id } = request.into_inner();
        Ok(Response::new(self.0.digest_here(group, id, call).await?))
    }

    async fn quarantine_replica(
        &self,
        request: Request<QuarantineReplicaRequest>,
    ) -> Result<Response<QuarantineReplicaResponse>, Status> {
        let call = Call::new(request.metadata(), false);
        self.0.quarantine_here(request.into_inner(), call).await?;
        Ok(Response::new(QuarantineReplicaResponse {}))
    }
}

impl Server {
    /// A store introduces itself. One that must not take part is told so, and nothing is learned from it.
    fn hello(&self, hello: &HelloRequest) -> HelloResponse {
        let answer = HelloResponse {
            store: self.me,
            cluster: self.cluster,
            founder: self.founder,
            addresses: self.peers.confirmed().into_iter().collect(),
            instance: self.instance.id,
            incarnation: self.instance.incarnation,
            ..HelloResponse::default()
        };
        // Who shows nothing of itself may ask, but nothing is learned from it.
        if hello.instance == 0 || (hello.cluster != 0 && hello.cluster != self.cluster) {
            return answer;
        }
        if let Err(refused) = self.meet(hello.store, shown_by(hello), hello.cluster != 0) {
            tracing::error!(
                store = hello.store,
                address = hello.address,
                "refused: {refused}"
            );
            return HelloResponse { refused, ..answer };
        }
        let news = self.peers.learn(hello.store, &hello.address);
        // One that waits for a cluster may still join another one.
        if hello.cluster != 0 && (self.peers.confirm(hello.store) || news) {
            self.keep_addresses();
        }
        answer
    }

    /// Compares what a store shows of its directory with what is known, and keeps what is new.
    pub(crate) fn meet(&self, store: u64, shown: Instance, joined: bool) -> Result<(), String> {
        let on = |descriptor: &GroupDescriptor| descriptor.replica_on(StoreId(store)).is_some();
        let member = !joined && self.handle.descriptors().iter().any(|d| on(d));
        let shown = match store {
            _ if store == self.me && shown.id == self.instance.id => return Ok(()),
            _ if store == self.me => return Err(twice(store)),
            _ => shown,
        };
        if self.instances.meet(store, shown, member)? {
            // An older state of it must not be kept over a newer one.
            let _guard = self.reservations.lock();
            let kept = self.meta.put_server(INSTANCES, self.instances.encode());
            if let Err(error) = kept {
                tracing::warn!(%error, "what a store shows of itself could not be kept");
            }
        }
        Ok(())
    }

    /// Addresses as they are now, for the next start.
    pub(crate) fn keep_addresses(&self) {
        let _guard = self.reservations.lock();
        let all = encode_addresses(&self.peers.confirmed());
        if let Err(error) = self.meta.put_server(ADDRESSES, all) {
            tracing::warn!(%error, "the addresses of the stores could not be kept");
        }
    }
}

/// What a store shows that introduces itself. One that knows its cluster has joined, and counts as started:
/// of two directories that join under one number at the same time only one may go on.
fn shown_by(hello: &HelloRequest) -> Instance {
    Instance {
        id: hello.instance,
        incarnation: hello.incarnation.max(u64::from(hello.cluster != 0)),
    }
}

fn twice(store: u64) -> String {
    format!("store {store} runs already, on another data directory: check --store-id")
}

/// Both admin services of a store that has not joined: it greets, and it can be initialised.
#[derive(Clone, Debug)]
pub(crate) struct BeforeJoining(pub(crate) Arc<Joining>);

fn not_joined<T>() -> Result<Response<T>, Status> {
    let text =
        "this store belongs to no cluster yet: run `polyraft init` once all stores are started";
    Err(Failure::new(Reason::NotInitialised, text).into())
}

#[tonic::async_trait]
impl Internal for BeforeJoining {
    async fn hello(
        &self,
        request: Request<HelloRequest>,
    ) -> Result<Response<HelloResponse>, Status> {
        Ok(Response::new(self.0.answer(&request.into_inner())))
    }

    async fn begin(&self, _: Request<BeginRequest>) -> Result<Response<BeginResponse>, Status> {
        self.0.begin().await?;
        Ok(Response::new(BeginResponse {}))
    }

    async fn create_replica(
        &self,
        _: Request<CreateReplicaRequest>,
    ) -> Result<Response<CreateReplicaResponse>, Status> {
        not_joined()
    }

    async fn destroy_replica(
        &self,
        _: Request<DestroyReplicaRequest>,
    ) -> Result<Response<DestroyReplicaResponse>, Status> {
        not_joined()
    }

    async fn look_at_range(
        &self,
        _: Request<LookAtRangeRequest>,
    ) -> Result<Response<LookAtRangeResponse>, Status> {
        not_joined()
    }

    async fn change_range(
        &self,
        _: Request<ChangeRangeRequest>,
    ) -> Result<Response<ChangeRangeResponse>, Status> {
        not_joined()
    }

    async fn settle_range(
        &self,
        _: Request<SettleRangeRequest>,
    ) -> Result<Response<SettleRangeResponse>, Status> {
        not_joined()
    }

    async fn digest_range(
        &self,
        _: Request<DigestRangeRequest>,
    ) -> Result<Response<DigestRangeResponse>, Status> {
        not_joined()
    }

    async fn quarantine_replica(
        &self,
        _: Request<QuarantineReplicaRequest>,
    ) -> Result<Response<QuarantineReplicaResponse>, Status> {
        not_joined()
    }
}

#[tonic::async_trait]
impl Admin for BeforeJoining {
    async fn init(&self, _: Request<InitRequest>) -> Result<Response<InitResponse>, Status> {
        Err(self.0.init().await.into())
    }

    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        let stores = self.0.status(request.into_inner().all).await;
        Ok(Response::new(StatusResponse { stores }))
    }

    async fn list_groups(
        &self,
        _: Request<ListGroupsRequest>,
    ) -> Result<Response<ListGroupsResponse>, Status> {
        not_joined()
    }

    async fn describe_group(
        &self,
        _: Request<DescribeGroupRequest>,
    ) -> Result<Response<DescribeGroupResponse>, Status> {
        not_joined()
    }

    async fn create_group(
        &self,
        _: Request<CreateGroupRequest>,
    ) -> Result<Response<CreateGroupResponse>, Status> {
        not_joined()
    }

    async fn destroy_group(
        &self,
        _: Request<DestroyGroupRequest>,
    ) -> Result<Response<DestroyGroupResponse>, Status> {
        not_joined()
    }

    async fn change_members(
        &self,
        _: Request<ChangeMembersRequest>,
    ) -> Result<Response<ChangeMembersResponse>, Status> {
        not_joined()
    }

    async fn transfer_leader(
        &self,
        _: Request<TransferLeaderRequest>,
    ) -> Result<Response<TransferLeaderResponse>, Status> {
        not_joined()
    }

    async fn list_ranges(
        &self,
        _: Request<ListRangesRequest>,
    ) -> Result<Response<ListRangesResponse>, Status> {
        not_joined()
    }

    async fn split_range(
        &self,
        _: Request<SplitRangeRequest>,
    ) -> Result<Response<SplitRangeResponse>, Status> {
        not_joined()
    }

    async fn merge_ranges(
        &self,
        _: Request<MergeRangesRequest>,
    ) -> Result<Response<MergeRangesResponse>, Status> {
        not_joined()
    }

    async fn move_replica(
        &self,
        _: Request<MoveReplicaRequest>,
    ) -> Result<Response<MoveReplicaResponse>, Status> {
        not_joined()
    }

    async fn list_replicas(
        &self,
        _: Request<ListReplicasRequest>,
    ) -> Result<Response<ListReplicasResponse>, Status> {
        not_joined()
    }

    async fn check_range(
        &self,
        _: Request<CheckRangeRequest>,
    ) -> Result<Response<CheckRangeResponse>, Status> {
        not_joined()
    }

    async fn decommission_store(
        &self,
        _: Request<DecommissionStoreRequest>,
    ) -> Result<Response<DecommissionStoreResponse>, Status> {
        not_joined()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instances::Instances;

    #[test]
    fn of_two_directories_that_join_under_one_number_one_goes_on() {
        let greets = |instance, cluster| {
            shown_by(&HelloRequest {
                store: 2,
                cluster,
                instance,
                ..HelloRequest::default()
            })
        };
        let all = Instances::default();
        for waits in [7, 8] {
            assert_eq!(all.meet(2, greets(waits, 0), false), Ok(true));
        }
        assert_eq!(all.meet(2, greets(7, 9), false), Ok(true));
        let other = all.meet(2, greets(8, 9), false).expect_err("the second");
        assert!(other.contains("another data directory"), "{other}");
        assert_eq!(all.meet(2, greets(7, 9), false), Ok(false));
    }
}
