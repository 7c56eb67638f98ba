//! What stores ask of each other, and what a store answers before it has joined a cluster.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::groups::requested_descriptor;
use super::init::Joining;
use crate::failure::{Failure, Reason};
use crate::peers::encode_addresses;
use crate::proto::admin::admin_server::Admin;
use crate::proto::admin::internal_server::Internal;
use crate::proto::admin::{
    ChangeMembersRequest, ChangeMembersResponse, CreateGroupRequest, CreateGroupResponse,
    CreateReplicaRequest, CreateReplicaResponse, DescribeGroupRequest, DescribeGroupResponse,
    DestroyGroupRequest, DestroyGroupResponse, DestroyReplicaRequest, DestroyReplicaResponse,
    HelloRequest, HelloResponse, InitRequest, InitResponse, ListGroupsRequest, ListGroupsResponse,
    ReserveGroupRequest, ReserveGroupResponse, StatusRequest, StatusResponse,
    TransferLeaderRequest, TransferLeaderResponse,
};
use crate::routing::Call;
use crate::server::Server;

/// Under this name `meta` keeps the addresses of all stores.
pub(crate) const ADDRESSES: &[u8] = b"addresses";

/// The gRPC service `polyraft.admin.v1.Internal` of a store that has joined.
#[derive(Clone, Debug)]
pub(crate) struct InternalService(pub(crate) Arc<Server>);

#[tonic::async_trait]
impl Internal for InternalService {
    async fn hello(
        &self,
        request: Request<HelloRequest>,
    ) -> Result<Response<HelloResponse>, Status> {
        let HelloRequest {
            store,
            cluster,
            address,
        } = request.into_inner();
        let server = &self.0;
        if (cluster == 0 || cluster == server.cluster) && server.peers.learn(store, &address) {
            let all = encode_addresses(&server.peers.addresses());
            if let Err(error) = server.meta.put_server(ADDRESSES, all) {
                tracing::warn!(%error, "the address of a store could not be kept");
            }
        }
        Ok(Response::new(HelloResponse {
            store: server.me,
            cluster: server.cluster,
            addresses: server.peers.addresses().into_iter().collect(),
        }))
    }

    async fn reserve_group(
        &self,
        request: Request<ReserveGroupRequest>,
    ) -> Result<Response<ReserveGroupResponse>, Status> {
        Ok(Response::new(self.0.reserve(request.into_inner().group)?))
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
        let HelloRequest { store, address, .. } = request.into_inner();
        self.0.peers.learn(store, &address);
        let greeting = self.0.greeting();
        Ok(Response::new(HelloResponse {
            store: greeting.store,
            cluster: greeting.cluster,
            addresses: self.0.peers.addresses().into_iter().collect(),
        }))
    }

    async fn reserve_group(
        &self,
        _: Request<ReserveGroupRequest>,
    ) -> Result<Response<ReserveGroupResponse>, Status> {
        not_joined()
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
}

#[tonic::async_trait]
impl Admin for BeforeJoining {
    async fn init(&self, _: Request<InitRequest>) -> Result<Response<InitResponse>, Status> {
        Err(self.0.init().await.into())
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        not_joined()
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
}
