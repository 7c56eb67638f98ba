//! The gRPC services `polyraft.directory.v1.Directory` and `DirectoryInternal`.

use std::sync::Arc;

use bytes::Bytes;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::command::Numbers;
use super::entry::{Entry, Limits, StoreEntry, StoreState};
use super::segments::{self, Held};
use super::state::{read_cluster, read_groups};
use super::{Look, not_begun};
use crate::failure::{Failure, Reason};
use crate::proto::directory as proto;
use crate::proto::directory::directory_client::DirectoryClient;
use crate::proto::directory::directory_internal_server::DirectoryInternal;
use crate::proto::directory::directory_server::Directory;
use crate::proto::directory::{
    DescribeRequest, DescribeResponse, ExecuteRequest, ExecuteResponse, ExplainRequest,
    ExplainResponse, ListGroupsRequest, ListGroupsResponse, ListRangesRequest, ListRangesResponse,
    LocateRequest, LocateResponse, NewStoreRequest, NewStoreResponse,
};
use crate::routing::Call;
use crate::server::Server;

/// A client that takes answers of any size: keys may be long.
pub(crate) fn client(channel: Channel) -> DirectoryClient<Channel> {
    DirectoryClient::new(channel).max_decoding_message_size(usize::MAX)
}

/// Groups of one page, if nothing else is asked for, and at most.
const PAGE: (usize, usize) = (256, 4096);

/// Both services of a store that has joined.
#[derive(Clone, Debug)]
pub(crate) struct DirectoryService(pub(crate) Arc<Server>);

#[tonic::async_trait]
impl Directory for DirectoryService {
    async fn list_ranges(
        &self,
        request: Request<ListRangesRequest>,
    ) -> Result<Response<ListRangesResponse>, Status> {
        let call = Call::new(request.metadata(), true);
        let answer = self
            .0
            .ranges_of_directory(request.into_inner(), call)
            .await?;
        Ok(Response::new(answer))
    }

    async fn list_groups(
        &self,
        request: Request<ListGroupsRequest>,
    ) -> Result<Response<ListGroupsResponse>, Status> {
        let call = Call::new(request.metadata(), true);
        let answer = self
            .0
            .groups_of_directory(request.into_inner(), call)
            .await?;
        Ok(Response::new(answer))
    }

    async fn describe(
        &self,
        request: Request<DescribeRequest>,
    ) -> Result<Response<DescribeResponse>, Status> {
        let call = Call::new(request.metadata(), true);
        let answer = self
            .0
            .describe_directory(request.into_inner(), call)
            .await?;
        Ok(Response::new(answer))
    }

    async fn explain(
        &self,
        request: Request<ExplainRequest>,
    ) -> Result<Response<ExplainResponse>, Status> {
        let call = Call::new(request.metadata(), true);
        Ok(Response::new(self.0.explain_balance(call).await?))
    }

    async fn new_store(
        &self,
        request: Request<NewStoreRequest>,
    ) -> Result<Response<NewStoreResponse>, Status> {
        let call = Call::new(request.metadata(), false);
        let store = self.0.take_numbers(Numbers::Stores, 1, call).await?;
        Ok(Response::new(NewStoreResponse { store }))
    }
}

#[tonic::async_trait]
impl DirectoryInternal for DirectoryService {
    async fn locate(&self, _: Request<LocateRequest>) -> Result<Response<LocateResponse>, Status> {
        Ok(Response::new(self.0.where_directory_is()))
    }

    async fn execute(
        &self,
        request: Request<ExecuteRequest>,
    ) -> Result<Response<ExecuteResponse>, Status> {
        let call = Call {
            once: true,
            ..Call::new(request.metadata(), false)
        };
        let command = request.into_inner().command;
        let reply = self.0.change_directory_here(command, call).await?;
        Ok(Response::new(ExecuteResponse { reply }))
    }
}

fn page(limit: u32) -> usize {
    match limit {
        0 => PAGE.0,
        limit => (limit as usize).min(PAGE.1),
    }
}

impl Server {
    pub(crate) async fn ranges_of_directory(
        &self,
        request: ListRangesRequest,
        call: Call,
    ) -> Result<ListRangesResponse, Failure> {
        let limit = page(request.limit);
        let look = |look: &Look<'_>| {
            let scan = |from: &[u8], to: &[u8], limit| look.scan(from, to, limit);
            let (start, end) = (&request.start, request.end.as_deref());
            let found = segments::read(scan, start, end, limit)?;
            let next = found.last().filter(|_| found.len() == limit);
            let next = next.and_then(|last| last.end.clone());
            Ok(ListRangesResponse {
                next: next.filter(|next| end.is_none_or(|end| **next < *end)),
                ranges: found.into_iter().filter_map(held).collect(),
                store: self.me,
            })
        };
        let remote = |channel| {
            let request = call.forward(request.clone());
            async move {
                let answer = client(channel).list_ranges(request).await?;
                Ok(answer.into_inner())
            }
        };
        self.read_directory(request.stale, call, look, remote).await
    }

    pub(crate) async fn groups_of_directory(
        &self,
        request: ListGroupsRequest,
        call: Call,
    ) -> Result<ListGroupsResponse, Failure> {
        let limit = page(request.limit);
        let look = |look: &Look<'_>| {
            let scan = |from: &[u8], to: &[u8], limit| look.scan(from, to, limit);
            let (found, next) = read_groups(scan, request.from, limit)?;
            Ok(ListGroupsResponse {
                groups: found.iter().map(proto::Entry::from).collect(),
                next: next.unwrap_or(0),
                store: self.me,
            })
        };
        let remote = |channel| {
            let request = call.forward(request);
            async move {
                let answer = client(channel).list_groups(request).await?;
                Ok(answer.into_inner())
            }
        };
        self.read_directory(request.stale, call, look, remote).await
    }

    pub(crate) async fn describe_directory(
        &self,
        request: DescribeRequest,
        call: Call,
    ) -> Result<DescribeResponse, Failure> {
        let look = |look: &Look<'_>| {
            let found = read_cluster(|from, to, limit| look.scan(from, to, limit))?;
            Ok(found.map(|(meta, stores)| {
                let place = self.where_directory_is();
                DescribeResponse {
                    stores: stores.iter().map(proto::Store::from).collect(),
                    next_group: meta.next_group,
                    next_store: meta.next_store,
                    paused: meta.paused,
                    limits: Some(proto::Limits::from(&meta.limits)),
                    on_stores: place.stores,
                    leader_store: place.leader_store,
                    store: self.me,
                }
            }))
        };
        let remote = |channel| {
            let request = call.forward(request);
            async move {
                let answer = client(channel).describe(request).await?;
                Ok(Some(answer.into_inner()))
            }
        };
        let found = self.read_directory(request.stale, call, look, remote);
        let nothing = || Failure::new(Reason::NotInitialised, not_begun());
        found.await?.ok_or_else(nothing)
    }
}

/// The entry of a segment, of its keys only.
fn held(segment: segments::Segment) -> Option<proto::Entry> {
    match segment.held {
        Held::By(entry) => Some(proto::Entry {
            start: Some(segment.start),
            end: segment.end,
            ..proto::Entry::from(&entry)
        }),
        Held::Mark(_) => None,
    }
}

impl From<&Entry> for proto::Entry {
    fn from(entry: &Entry) -> Self {
        let range = entry.range.as_ref();
        let member = |(replica, store): &(u64, u64)| proto::Member {
            replica: *replica,
            store: *store,
        };
        Self {
            group: entry.group,
            start: range.map(|range| range.start.clone()),
            end: range.and_then(|range| range.end.clone()),
            generation: entry.generation,
            membership_epoch: entry.membership,
            members: entry.members.iter().map(member).collect(),
            frozen_into: entry.frozen_into,
            leader_store: entry.leader,
            term: entry.term,
        }
    }
}

impl From<&StoreEntry> for proto::Store {
    fn from(entry: &StoreEntry) -> Self {
        let state = match entry.state {
            StoreState::Up => proto::StoreState::Up,
            StoreState::Decommissioning => proto::StoreState::Decommissioning,
            StoreState::Dead => proto::StoreState::Dead,
        };
        Self {
            store: entry.store,
            address: entry.address.clone(),
            state: state.into(),
            silent_since: entry.silent_since,
        }
    }
}

impl From<&Limits> for proto::Limits {
    fn from(limits: &Limits) -> Self {
        Self {
            dead_after: limits.dead_after,
            moves: limits.moves,
            moves_of_a_store: limits.moves_of_a_store,
            range_changes: limits.range_changes,
            transfers: limits.transfers,
            range_bytes_max: limits.range_bytes_max,
            range_bytes_min: limits.range_bytes_min,
        }
    }
}

/// A route by what the directory says.
pub(super) fn route_of(entry: proto::Entry) -> crate::client::Route {
    let end = entry.end;
    crate::client::Route {
        group: entry.group,
        range: entry
            .start
            .map(|start| polyraft_multiraft::KeyRange { start, end }),
        generation: entry.generation,
        membership: entry.membership_epoch,
        stores: entry.members.iter().map(|member| member.store).collect(),
        leader: entry.leader_store,
        leader_address: String::new(),
    }
}

/// Shorter than `key`, and before it: a range with a key from there on may contain those right before `key`.
pub(super) fn shortly_before(key: &[u8]) -> Bytes {
    let mut before = key.to_vec();
    // What ends with a zero comes right behind what lacks that.
    if let Some(last @ 1..) = before.pop() {
        before.push(last - 1);
    }
    before.into()
}
