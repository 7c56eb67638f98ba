//! The gRPC service `polyraft.kv.v1.Kv`.

use std::num::NonZeroU64;
use std::sync::Arc;

use bytes::Bytes;
use polyraft_multiraft::{GroupDescriptor, GroupId, KeyRange, ReadPermit};
use polyraft_store::sessions::{Once, SessionId, SessionReply};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::command::{Command, Reply, decode_reply};
use crate::failure::{Failure, Reason};
use crate::proto::kv::kv_client::KvClient;
use crate::proto::kv::kv_server::Kv;
use crate::proto::kv::{
    Consistency, DeleteRequest, DeleteResponse, GetRequest, GetResponse, PutRequest, PutResponse,
    ResponseHeader, ScanRequest, ScanResponse, Session, WriteRequest, WriteResponse,
};
use crate::routing::Call;
use crate::server::Server;

/// Longest key, in bytes.
pub(super) const KEY_BYTES_MAX: usize = 4096;

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct KvService(pub(crate) Arc<Server>);

#[tonic::async_trait]
impl Kv for KvService {
    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let call = Call::new(request.metadata(), true);
        Ok(Response::new(self.0.get(request.into_inner(), call).await?))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let call = Call::new(request.metadata(), false);
        let PutRequest {
            key,
            value,
            group,
            session,
        } = request.into_inner();
        let command = Command {
            mutations: vec![(key, Some(value))],
            ..Command::default()
        };
        let (_, header) = self.0.write(command, session, group, call).await?;
        Ok(Response::new(PutResponse {
            header: Some(header),
        }))
    }

    async fn delete(
        &self,
        request: Request<DeleteRequest>,
    ) -> Result<Response<DeleteResponse>, Status> {
        let call = Call::new(request.metadata(), false);
        let DeleteRequest {
            key,
            group,
            session,
        } = request.into_inner();
        let command = Command {
            mutations: vec![(key, None)],
            ..Command::default()
        };
        let (_, header) = self.0.write(command, session, group, call).await?;
        Ok(Response::new(DeleteResponse {
            header: Some(header),
        }))
    }

    async fn write(
        &self,
        request: Request<WriteRequest>,
    ) -> Result<Response<WriteResponse>, Status> {
        let call = Call::new(request.metadata(), false);
        let WriteRequest {
            conditions,
            mutations,
            group,
            session,
        } = request.into_inner();
        let command = Command {
            conditions: conditions.into_iter().map(|c| (c.key, c.value)).collect(),
            mutations: mutations.into_iter().map(|m| (m.key, m.value)).collect(),
        };
        let (applied, header) = self.0.write(command, session, group, call).await?;
        Ok(Response::new(WriteResponse {
            applied,
            header: Some(header),
        }))
    }

    async fn scan(&self, request: Request<ScanRequest>) -> Result<Response<ScanResponse>, Status> {
        let call = Call::new(request.metadata(), true);
        let answer = self.0.scan(request.into_inner(), call).await?;
        Ok(Response::new(answer))
    }
}

impl Server {
    async fn get(&self, request: GetRequest, call: Call) -> Result<GetResponse, Failure> {
        check_key(&request.key)?;
        let group = self
            .find(request.group, std::iter::once(&request.key), call)
            .await?;
        let key = &request.key;
        if request.consistency() == Consistency::Stale {
            return self.get_stale(group, key);
        }
        let local = || self.get_here(group, key, call);
        // The group goes along: the leader need not look the key up again, and refuses what is not its own.
        let remote = |channel| {
            let request = call.forward(GetRequest {
                group,
                ..request.clone()
            });
            async move { Ok(kv_client(channel).get(request).await?.into_inner()) }
        };
        self.at_leader(group, call, local, remote).await
    }

    async fn get_here(&self, group: u64, key: &Bytes, call: Call) -> Result<GetResponse, Failure> {
        let permit = self
            .ask(group, call, |respond| {
                self.handle.read(GroupId(group), respond)
            })
            .await?;
        check_range(permit.descriptor.range.as_ref(), key)?;
        let value = tokio::task::block_in_place(|| self.data.get(&permit.descriptor, key));
        let value = value.map_err(|error| Failure::new(Reason::Internal, error.to_string()))?;
        self.check_permit(&permit)?;
        Ok(GetResponse {
            value,
            header: Some(self.leader_header(group, permit.applied.0)),
        })
    }

    /// To be called after the data was read: while this task waited for its turn the replica may have
    /// been removed, and its data with it.
    pub(super) fn check_permit(&self, permit: &ReadPermit) -> Result<(), Failure> {
        if permit.still_holds(&self.handle) {
            return Ok(());
        }
        let text = "the replica stopped leading, or its range changed, while it was read";
        Err(Failure::new(Reason::NotLeader, text))
    }

    /// What this store holds, or the truth that it holds nothing of the group.
    fn get_stale(&self, group: u64, key: &Bytes) -> Result<GetResponse, Failure> {
        let descriptor = self.replica_here(group)?;
        let applied = self.applied_here(group);
        check_range(descriptor.range.as_ref(), key)?;
        let value = tokio::task::block_in_place(|| self.data.get_whole(&descriptor, key));
        let value = value.map_err(|error| Failure::new(Reason::Internal, error.to_string()))?;
        Ok(GetResponse {
            value: value.ok_or_else(|| self.not_whole(group))?,
            header: Some(self.header(group, applied)),
        })
    }

    /// What this store's replica of a group is about.
    pub(super) fn replica_here(&self, group: u64) -> Result<Arc<GroupDescriptor>, Failure> {
        self.handle.descriptor(GroupId(group)).ok_or_else(|| {
            let text = format!(
                "store {} holds no replica of group {group} to read from",
                self.me
            );
            Failure::new(Reason::NoGroup, text)
        })
    }

    /// The last index that this store's replica of a group has applied.
    pub(super) fn applied_here(&self, group: u64) -> u64 {
        let summary = self.handle.summary(GroupId(group)).unwrap_or_default();
        summary.basic.applied.0
    }

    pub(super) fn not_whole(&self, group: u64) -> Failure {
        let text = format!(
            "the replica of group {group} on store {} is being replaced by a snapshot or removed; \
             try again",
            self.me
        );
        Failure::new(Reason::Stale, text)
    }

    /// Whether the command was applied (its conditions held).
    async fn write(
        &self,
        command: Command,
        session: Option<Session>,
        group: u64,
        call: Call,
    ) -> Result<(bool, ResponseHeader), Failure> {
        if command.mutations.is_empty() {
            return Err(Failure::new(
                Reason::BadRequest,
                "a write without any change",
            ));
        }
        command.keys().try_for_each(check_key)?;
        let once = session.map(once).transpose()?;
        let call = Call {
            once: once.is_some(),
            ..call
        };
        let bytes = match once {
            Some(once) => command.encode_once(once),
            None => command.encode(),
        };
        let group = self.find(group, command.keys(), call).await?;
        let local = || self.write_here(group, bytes.clone(), call);
        let remote = |channel| {
            let request = call.forward(to_request(&command, session, group));
            async move {
                let response = kv_client(channel).write(request).await?.into_inner();
                Ok((response.applied, response.header.unwrap_or_default()))
            }
        };
        self.at_leader(group, call, local, remote).await
    }

    async fn write_here(
        &self,
        group: u64,
        bytes: Bytes,
        call: Call,
    ) -> Result<(bool, ResponseHeader), Failure> {
        let propose = |respond| self.handle.propose(GroupId(group), bytes, respond);
        let reply = self.ask(group, call, propose).await?;
        let applied = match applied(&reply)? {
            Reply::Applied => true,
            Reply::ConditionFailed => false,
            Reply::OutOfRange => {
                self.directory.forget(group);
                return Err(Failure::new(
                    Reason::Stale,
                    "the keys moved to another group; try again",
                ));
            }
            Reply::Malformed => return Err(unknown_answer()),
        };
        let header = self.leader_header(group, self.applied_here(group));
        Ok((applied, header))
    }

    /// The one group that holds all `keys`; a group given by number needs no range.
    async fn find<'a>(
        &self,
        group: u64,
        mut keys: impl Iterator<Item = &'a Bytes>,
        call: Call,
    ) -> Result<u64, Failure> {
        if group != 0 && call.forwarded {
            return Ok(group);
        }
        if group != 0 {
            self.check_exists(group, call).await?;
            let range = self.route_of_group(group).and_then(|r| r.range.clone());
            return match range {
                Some(range) if !keys.all(|key| range.contains(key)) => {
                    let text = format!(
                        "the key is outside of the range of group {group}; leave the group away, \
                         and the one that holds the key is found"
                    );
                    Err(Failure::new(Reason::BadRequest, text))
                }
                _ => Ok(group),
            };
        }
        let first = keys
            .next()
            .ok_or_else(|| Failure::new(Reason::BadRequest, "no key"))?;
        let route = self.route_of_key(first, call).await?;
        let holds = |key: &Bytes| {
            route
                .range
                .as_ref()
                .is_some_and(|range| range.contains(key))
        };
        if !keys.all(holds) {
            let text = "the keys of one write must lie in one range: `polyraft group list` shows the ranges";
            return Err(Failure::new(Reason::BadRequest, text));
        }
        Ok(route.group)
    }

    /// This store has just served as the group's leader.
    pub(super) const fn leader_header(&self, group: u64, applied_index: u64) -> ResponseHeader {
        ResponseHeader {
            group,
            leader_store: self.me,
            store: self.me,
            applied_index,
        }
    }

    pub(super) fn header(&self, group: u64, applied_index: u64) -> ResponseHeader {
        let summary = self.handle.summary(GroupId(group));
        let leader = summary.and_then(|summary| summary.leader_store);
        ResponseHeader {
            group,
            leader_store: leader.map_or(0, |store| store.0),
            store: self.me,
            applied_index,
        }
    }
}

/// The reply to a command that was applied, now or by an earlier copy.
fn applied(reply: &Bytes) -> Result<Reply, Failure> {
    match decode_reply(reply).ok_or_else(unknown_answer)? {
        SessionReply::Applied(reply) | SessionReply::Refused(reply) => {
            Reply::decode(&reply).ok_or_else(unknown_answer)
        }
        SessionReply::Expired { index } => Err(Failure {
            index: Some(index),
            ..Failure::new(
                Reason::SessionExpired,
                "the group does not know this session, or not any more; begin a new one",
            )
        }),
        SessionReply::Acknowledged => {
            let text = "the client has acknowledged this write: it is not applied any more";
            Err(Failure::new(Reason::Refused, text).of_unknown_effect())
        }
        SessionReply::TooFarAhead => Err(Failure::new(
            Reason::BadRequest,
            "too many writes of the session are not acknowledged",
        )),
        // Replies of this application are short enough to keep.
        SessionReply::AppliedBefore | SessionReply::Malformed => Err(unknown_answer()),
    }
}

fn unknown_answer() -> Failure {
    let text = "the group answered with something that this version does not know";
    Failure::new(Reason::Internal, text).of_unknown_effect()
}

fn check_key(key: &Bytes) -> Result<(), Failure> {
    if key.len() > KEY_BYTES_MAX {
        return Err(too_long(key));
    }
    Ok(())
}

pub(super) fn too_long(key: &Bytes) -> Failure {
    let text = format!(
        "a key of {} bytes exceeds the limit of {KEY_BYTES_MAX} bytes",
        key.len()
    );
    Failure::new(Reason::TooLarge, text)
}

fn check_range(range: Option<&KeyRange>, key: &Bytes) -> Result<(), Failure> {
    match range {
        Some(range) if !range.contains(key) => Err(moved()),
        _ => Ok(()),
    }
}

pub(super) fn moved() -> Failure {
    let text = "the key moved to another group; try again";
    Failure::new(Reason::Stale, text)
}

/// A client that takes answers of any size: a value may be larger than what gRPC takes by default.
pub(super) fn kv_client(channel: Channel) -> KvClient<Channel> {
    KvClient::new(channel).max_decoding_message_size(usize::MAX)
}

fn to_request(command: &Command, session: Option<Session>, group: u64) -> WriteRequest {
    use crate::proto::kv::{Condition, Mutation};
    let conditions = command.conditions.iter().cloned();
    let mutations = command.mutations.iter().cloned();
    WriteRequest {
        conditions: conditions
            .map(|(key, value)| Condition { key, value })
            .collect(),
        mutations: mutations
            .map(|(key, value)| Mutation { key, value })
            .collect(),
        group,
        session,
    }
}

/// Which write of which session it is.
fn once(session: Session) -> Result<Once, Failure> {
    let bad = |text: &str| Failure::new(Reason::BadRequest, text);
    let client = NonZeroU64::new(session.client);
    let client =
        client.ok_or_else(|| bad("the client of a session is 0: draw a number at random"))?;
    if session.acknowledged > session.sequence {
        return Err(bad(
            "a write that its client has acknowledged before it was answered",
        ));
    }
    let since = session.since;
    Ok(Once {
        session: SessionId { client, since },
        sequence: session.sequence,
        acknowledged: session.acknowledged,
    })
}
