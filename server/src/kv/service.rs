//! The gRPC service `polyraft.kv.v1.Kv`.

use std::num::NonZeroU64;
use std::sync::Arc;

use bytes::Bytes;
use polyraft_multiraft::{GroupDescriptor, GroupId, ReadPermit};
use polyraft_store::sessions::{Once, SessionId, SessionReply};
use tonic::{Request, Response, Status};

use super::command::{Command, Reply, decode_reply};
use crate::client::kv_client;
use crate::directory::{FIRST_OF_THE_SYSTEM, Named};
use crate::failure::{Failure, Reason};
use crate::owner::Aim;
use crate::proto::kv::kv_server::Kv;
use crate::proto::kv::{
    Consistency, DeleteRequest, DeleteResponse, GetRequest, GetResponse, PutRequest, PutResponse,
    RangeHint, ResponseHeader, ScanRequest, ScanResponse, Session, WriteRequest, WriteResponse,
};
use crate::routing::Call;
use crate::server::Server;

/// Longest key, in bytes.
pub(crate) const KEY_BYTES_MAX: usize = 4096;

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
            hint,
        } = request.into_inner();
        let command = Command {
            mutations: vec![(key, Some(value))],
            ..Command::default()
        };
        let wanted = Wanted { group, hint };
        let (_, header) = self.0.write(command, session, wanted, call).await?;
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
            hint,
        } = request.into_inner();
        let command = Command {
            mutations: vec![(key, None)],
            ..Command::default()
        };
        let wanted = Wanted { group, hint };
        let (_, header) = self.0.write(command, session, wanted, call).await?;
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
            hint,
        } = request.into_inner();
        let command = Command {
            conditions: conditions.into_iter().map(|c| (c.key, c.value)).collect(),
            mutations: mutations.into_iter().map(|m| (m.key, m.value)).collect(),
        };
        let wanted = Wanted { group, hint };
        let (applied, header) = self.0.write(command, session, wanted, call).await?;
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

/// The group that a client names, if any, and what it believes of the range of its keys.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    group: u64,
    hint: Option<RangeHint>,
}

impl Server {
    async fn get(&self, request: GetRequest, call: Call) -> Result<GetResponse, Failure> {
        check_key(&request.key)?;
        check_group(request.group)?;
        let (key, group, hint) = (&request.key, request.group, request.hint);
        let aim = Aim::of(group, key);
        if request.consistency() == Consistency::Stale {
            let here = self.group_here(aim, call).await?;
            let answer = self.get_stale(here, key, hint);
            return answer.map_err(|failure| as_asked(failure, group, call));
        }
        let local = |group| self.get_here(group, key, hint, call);
        // The group goes along: the leader need not look the key up again, and refuses what is not its own.
        let remote = |group, channel| {
            let request = call.forward(GetRequest {
                group,
                ..request.clone()
            });
            async move { Ok(kv_client(channel).get(request).await?.into_inner()) }
        };
        let answer = self.at_owner(aim, hint, call, local, remote).await;
        let answer = answer.map_err(|failure| as_asked(failure, group, call))?;
        self.learn_header(answer.header.as_ref());
        Ok(answer)
    }

    async fn get_here(
        &self,
        group: u64,
        key: &Bytes,
        hint: Option<RangeHint>,
        call: Call,
    ) -> Result<GetResponse, Failure> {
        let ask = |respond| self.handle.read(GroupId(group), respond);
        let permit = self.ask(group, call, ask).await?;
        let descriptor = &*permit.descriptor;
        self.check_keys(descriptor, std::iter::once(key))?;
        let value = tokio::task::block_in_place(|| self.data.get(descriptor, key));
        let value = value.map_err(|error| Failure::new(Reason::Internal, error.to_string()))?;
        self.check_permit(&permit)?;
        Ok(GetResponse {
            value,
            header: Some(self.leader_header(descriptor, permit.applied.0, hint)),
        })
    }

    /// The group to read from here, whoever leads it.
    pub(super) async fn group_here(&self, aim: Aim<'_>, call: Call) -> Result<u64, Failure> {
        if let Aim::Group(group) = aim {
            self.check_exists(group, call).await?;
            return Ok(group);
        }
        let route = self.route(call, aim).await?;
        Ok(route.group)
    }

    /// What an answer says of ranges is news for this store, too, if it comes from another one.
    pub(super) fn learn_header(&self, header: Option<&ResponseHeader>) {
        if let Some(header) = header.filter(|header| header.store != self.me) {
            self.learn_ranges(&header.ranges);
        }
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
    fn get_stale(
        &self,
        group: u64,
        key: &Bytes,
        hint: Option<RangeHint>,
    ) -> Result<GetResponse, Failure> {
        let descriptor = self.replica_here(group)?;
        let header = self.stale_header(&descriptor, hint);
        self.check_keys(&descriptor, std::iter::once(key))?;
        let value = tokio::task::block_in_place(|| self.data.get_whole(&descriptor, key));
        let value = value.map_err(|error| Failure::new(Reason::Internal, error.to_string()))?;
        Ok(GetResponse {
            value: value.ok_or_else(|| self.not_whole(group))?,
            header: Some(header),
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

    /// Where an answer comes from that says what this store's replica holds.
    pub(super) fn stale_header(
        &self,
        descriptor: &GroupDescriptor,
        hint: Option<RangeHint>,
    ) -> ResponseHeader {
        let summary = self.handle.summary(descriptor.group).unwrap_or_default();
        let leader = summary.leader_store.map_or(0, |store| store.0);
        self.header(descriptor, leader, summary.basic.applied.0, hint)
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
        wanted: Wanted,
        call: Call,
    ) -> Result<(bool, ResponseHeader), Failure> {
        if command.mutations.is_empty() {
            return Err(Failure::new(
                Reason::BadRequest,
                "a write without any change",
            ));
        }
        command.keys().try_for_each(check_key)?;
        check_group(wanted.group)?;
        let once = session.map(once).transpose()?;
        let call = Call {
            once: once.is_some(),
            ..call
        };
        let bytes = match once {
            Some(once) => command.encode_once(once),
            None => command.encode(),
        };
        let Wanted { group, hint } = wanted;
        let aim = Aim::of(group, &command.mutations[0].0);
        let local = |group| self.write_here(group, &command, bytes.clone(), hint, call);
        let remote = |group, channel| {
            let request = call.forward(to_request(&command, session, Wanted { group, hint }));
            async move {
                let response = kv_client(channel).write(request).await?.into_inner();
                Ok((response.applied, response.header.unwrap_or_default()))
            }
        };
        let answer = self.at_owner(aim, hint, call, local, remote).await;
        let (applied, header) = answer.map_err(|failure| as_asked(failure, group, call))?;
        self.learn_header(Some(&header));
        Ok((applied, header))
    }

    async fn write_here(
        &self,
        group: u64,
        command: &Command,
        bytes: Bytes,
        hint: Option<RangeHint>,
        call: Call,
    ) -> Result<(bool, ResponseHeader), Failure> {
        self.check_owner(group, command, call).await?;
        let propose = |respond| self.handle.propose(GroupId(group), bytes, respond);
        let reply = self.ask(group, call, propose).await?;
        // What was read or proposed is of the group as it is now, or was a moment ago.
        let descriptor = self.replica_here(group);
        let applied = match applied(&reply)? {
            Reply::Applied => true,
            Reply::ConditionFailed => false,
            Reply::OutOfRange => {
                let aim = Aim::Key(&command.mutations[0].0);
                return Err(self.range_changed(&*descriptor?, aim));
            }
            Reply::Malformed => return Err(unknown_answer()),
        };
        let header = match descriptor {
            Ok(descriptor) => {
                let summary = self.handle.summary(GroupId(group)).unwrap_or_default();
                self.leader_header(&descriptor, summary.basic.applied.0, hint)
            }
            // It was applied, and then the replica was removed.
            Err(_) => ResponseHeader {
                group,
                store: self.me,
                ..ResponseHeader::default()
            },
        };
        Ok((applied, header))
    }

    /// Refuses what is not this group's before anything is written into its log. What is known here of
    /// its range may be late: before it counts against a request the group itself is asked.
    async fn check_owner(&self, group: u64, command: &Command, call: Call) -> Result<(), Failure> {
        let descriptor = self.replica_here(group)?;
        if self.check_keys(&descriptor, command.keys()).is_ok() {
            return Ok(());
        }
        let call = Call {
            reads: true,
            ..call
        };
        let ask = |respond| self.handle.read(GroupId(group), respond);
        let permit = self.ask(group, call, ask).await?;
        let keys = command.mutations.iter().chain(&command.conditions);
        self.check_keys(&permit.descriptor, keys.map(|(key, _)| key))
    }

    /// Whether all keys lie in the group's range. It is decided by the first one whether the request has come
    /// to the wrong group; the others must lie where that does.
    fn check_keys<'a>(
        &self,
        descriptor: &GroupDescriptor,
        mut keys: impl Iterator<Item = &'a Bytes>,
    ) -> Result<(), Failure> {
        let (Some(range), Some(first)) = (&descriptor.range, keys.next()) else {
            return Ok(());
        };
        if !range.contains(first) {
            return Err(self.range_changed(descriptor, Aim::Key(first)));
        }
        if !keys.all(|key| range.contains(key)) {
            let text = "the keys of one write must lie in one range: `polyraft group list` shows the ranges";
            return Err(Failure::new(Reason::BadRequest, text));
        }
        Ok(())
    }
}

/// Who names a group is told that it is the wrong one. Who is another store finds the right one itself.
pub(super) fn as_asked(failure: Failure, group: u64, call: Call) -> Failure {
    if group == 0 || call.forwarded || failure.reason != Reason::RangeChanged {
        return failure;
    }
    let text = format!(
        "the key is outside of the range of group {group}; leave the group away, and the one that holds \
         the key is found"
    );
    Failure {
        reason: Reason::BadRequest,
        message: text,
        ..failure
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

/// The system's groups hold no keys of users'.
pub(super) fn check_group(group: u64) -> Result<(), Failure> {
    if group < FIRST_OF_THE_SYSTEM {
        return Ok(());
    }
    let text = format!(
        "group {} belongs to the system and holds no keys of users'; leave the group away, and the one \
         that holds the key is found",
        Named(group)
    );
    Err(Failure::new(Reason::BadRequest, text))
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

fn to_request(command: &Command, session: Option<Session>, wanted: Wanted) -> WriteRequest {
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
        group: wanted.group,
        session,
        hint: wanted.hint,
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
