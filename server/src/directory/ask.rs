//! The way to the directory: who has it, its commands, and reads of it.
//!
//! A command goes to the store that leads the directory, as a write to any group's leader does. A read
//! is linearizable there; or it is a hint from whoever has a replica, also when the directory has no
//! quorum. Every command may be sent again, since a copy changes nothing.

use std::time::Duration;

use bytes::Bytes;
use polyraft_multiraft::{GroupDescriptor, GroupId};
use polyraft_store::disk::{DiskError, Pair};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tonic::Status;
use tonic::transport::Channel;

use super::command::{Command, Numbers, Reply, Token};
use super::{DIRECTORY, Named};
use crate::client::Route;
use crate::failure::{Effect, Failure, Reason};
use crate::proto::directory::directory_internal_client::DirectoryInternalClient;
use crate::proto::directory::{ExecuteRequest, LocateRequest, LocateResponse};
use crate::routing::Call;
use crate::server::{Server, futures_join};

/// How long another store may take to say where the directory is.
const LOCATE_BOUND: Duration = Duration::from_millis(500);
/// Before a command is sent again that its leader has no room for.
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// This store's replica of the directory, to be read.
pub(crate) struct Look<'a> {
    server: &'a Server,
    descriptor: &'a GroupDescriptor,
    /// Nothing says that the replica's data is whole, and lately confirmed.
    stale: bool,
}

impl Look<'_> {
    /// Names of `[from, to)` in order with what they name, at most `limit` of them, all of one moment.
    ///
    /// # Errors
    /// The engine's.
    pub(crate) fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        limit: usize,
    ) -> Result<Vec<Pair>, DiskError> {
        let (data, descriptor) = (&self.server.data, self.descriptor);
        if !self.stale {
            return data.scan(descriptor, from, Some(to), limit);
        }
        let found = data.scan_whole(descriptor, from, Some(to), limit)?;
        found.ok_or_else(|| DiskError::Fatal("the directory's replica is not whole".to_owned()))
    }
}

impl Server {
    /// Replicates a command of the directory, at the store that leads it.
    pub(crate) async fn change_directory(
        &self,
        command: &Command,
        call: Call,
    ) -> Result<Reply, Failure> {
        self.find_directory(call).await?;
        let call = Call {
            reads: false,
            once: true,
            ..call
        };
        let command = command.encode();
        let local = || self.change_directory_here(command.clone(), call);
        let remote = |channel| {
            let command = command.clone();
            let request = call.forward(ExecuteRequest { command });
            async move {
                let mut client = DirectoryInternalClient::new(channel);
                Ok(client.execute(request).await?.into_inner().reply)
            }
        };
        let reply = loop {
            match self.at_leader(DIRECTORY, call, local, remote).await {
                // Nobody who waits for the directory can do better: its leader is handing over.
                Err(failure)
                    if failure.reason == Reason::Busy
                        && !call.forwarded
                        && Instant::now() + BUSY_PAUSE < call.deadline =>
                {
                    sleep(BUSY_PAUSE).await;
                }
                result => break result?,
            }
        };
        Reply::decode(&reply).ok_or_else(|| {
            let text = "the directory answered with something that this version does not know";
            Failure::new(Reason::Internal, text)
        })
    }

    /// The same if this store leads it.
    pub(crate) async fn change_directory_here(
        &self,
        command: Bytes,
        call: Call,
    ) -> Result<Bytes, Failure> {
        if Command::decode(&command).is_none() {
            let text = "a change of the directory that this version does not know";
            return Err(Failure::new(Reason::BadRequest, text));
        }
        let propose = |respond| self.handle.propose(GroupId(DIRECTORY), command, respond);
        self.ask(DIRECTORY, call, propose).await
    }

    /// Reads the directory: linearizably at its leader, or `stale` from any replica, this store's own if
    /// it has one.
    pub(crate) async fn read_directory<T, R>(
        &self,
        stale: bool,
        call: Call,
        look: impl Fn(&Look<'_>) -> Result<T, DiskError>,
        remote: impl Fn(Channel) -> R,
    ) -> Result<T, Failure>
    where
        R: Future<Output = Result<T, Status>>,
    {
        let call = Call {
            reads: true,
            ..call
        };
        if stale {
            return self.read_directory_stale(call, look, remote).await;
        }
        self.find_directory(call).await?;
        let local = || async {
            let ask = |respond| self.handle.read(GroupId(DIRECTORY), respond);
            let permit = self.ask(DIRECTORY, call, ask).await?;
            let found = self.look(&permit.descriptor, false, &look)?;
            if permit.still_holds(&self.handle) {
                return Ok(found);
            }
            let text = "the replica stopped leading the directory while it was read";
            Err(Failure::new(Reason::NotLeader, text))
        };
        self.at_leader(DIRECTORY, call, local, remote).await
    }

    async fn read_directory_stale<T, R>(
        &self,
        call: Call,
        look: impl Fn(&Look<'_>) -> Result<T, DiskError>,
        remote: impl Fn(Channel) -> R,
    ) -> Result<T, Failure>
    where
        R: Future<Output = Result<T, Status>>,
    {
        let here = self.handle.descriptor(GroupId(DIRECTORY));
        if let Some(descriptor) = here.filter(|here| !here.members.is_empty()) {
            match self.look(&descriptor, true, &look) {
                Ok(found) => return Ok(found),
                // Another replica may be whole.
                Err(failure) => tracing::debug!(why = failure.message, "no look at the directory"),
            }
        }
        let nobody = || {
            Failure::new(
                Reason::Unreachable,
                "no store that has the directory answers",
            )
        };
        if call.forwarded {
            return Err(nobody());
        }
        self.find_directory(call).await?;
        let route = self.route_of_group(DIRECTORY).ok_or_else(nobody)?;
        let connected = self.peers.connected();
        let mut stores = route.stores.clone();
        stores.retain(|store| *store != self.me && connected.contains(store));
        for store in stores {
            match self.ask_store(store, call, &remote).await {
                Ok(found) => return Ok(found),
                Err(failure) => tracing::debug!(store, why = failure.message, "no hint"),
            }
        }
        Err(nobody())
    }

    /// Whatever this store's replica holds, leader or not.
    pub(crate) fn look<T>(
        &self,
        descriptor: &GroupDescriptor,
        stale: bool,
        look: impl Fn(&Look<'_>) -> Result<T, DiskError>,
    ) -> Result<T, Failure> {
        let server = self;
        let at = Look {
            server,
            descriptor,
            stale,
        };
        let found = tokio::task::block_in_place(|| look(&at));
        found.map_err(|error| Failure::new(Reason::Internal, error.to_string()))
    }

    /// Numbers that were never given before: the first of `count`.
    pub(crate) async fn take_numbers(
        &self,
        of: Numbers,
        count: u64,
        call: Call,
    ) -> Result<u64, Failure> {
        let busy = || Failure::new(Reason::Busy, "this store asks for other numbers already");
        let turn = timeout_at(call.deadline, self.publishing.requests.lock()).await;
        let mut requests = turn.map_err(|_| busy())?;
        // Also if nobody waits for the answer any more: a copy of this request must not be taken for
        // the next one.
        *requests += 1;
        let token = Token {
            store: self.me,
            incarnation: self.instance.incarnation,
            sequence: *requests,
        };
        let command = Command::Allocate { token, of, count };
        // Whoever sent the request here, this one is of this store's own.
        let call = Call {
            forwarded: false,
            ..call
        };
        let reply = self.change_directory(&command, call).await;
        let refused = |reason, text: String| Err(Failure::new(reason, text));
        match reply {
            Ok(Reply::Granted { first, .. }) => Ok(first),
            Ok(Reply::NotBegun) => refused(Reason::NotInitialised, not_begun()),
            Ok(Reply::TooMany) => {
                let text = format!("{count} numbers are not given at once, or are not left");
                refused(Reason::BadRequest, text)
            }
            Ok(other) => refused(
                Reason::Internal,
                format!("asked for numbers, the directory answered {other:?}"),
            ),
            // Numbers that were given and never heard of are lost, and nothing else has changed.
            Err(failure) => Err(Failure {
                effect: Effect::None,
                ..failure
            }),
        }
    }

    /// The directory is found, or an error says that it is not.
    async fn find_directory(&self, call: Call) -> Result<(), Failure> {
        if call.forwarded || self.route_of_group(DIRECTORY).is_some() {
            return Ok(());
        }
        self.locate_directory(call).await;
        match self.route_of_group(DIRECTORY) {
            Some(_) => Ok(()),
            None => Err(Failure::new(Reason::NotInitialised, not_begun())),
        }
    }

    /// Asks the other stores where the directory is.
    pub(crate) async fn locate_directory(&self, call: Call) {
        if call.forwarded {
            return;
        }
        let bound = LOCATE_BOUND.min(call.deadline.saturating_duration_since(Instant::now()));
        let others = self.peers.others();
        let asked = others.iter().filter_map(|store| {
            let mut client = DirectoryInternalClient::new(self.peers.channel(*store)?);
            Some(async move { timeout(bound, client.locate(LocateRequest {})).await })
        });
        // Who does not answer says nothing.
        for answer in futures_join(asked).await.into_iter().flatten().flatten() {
            let LocateResponse {
                stores,
                membership_epoch,
                leader_store,
                generation,
            } = answer.into_inner();
            if !stores.is_empty() {
                self.directory.learn(Route {
                    group: DIRECTORY,
                    generation,
                    membership: membership_epoch,
                    stores,
                    leader: leader_store,
                    ..Route::default()
                });
            }
        }
    }

    /// What this store knows of where the directory is.
    pub(crate) fn where_directory_is(&self) -> LocateResponse {
        let Some(route) = self.route_of_group(DIRECTORY) else {
            return LocateResponse::default();
        };
        let summary = self.handle.summary(GroupId(DIRECTORY));
        let leader = summary.and_then(|summary| summary.leader_store);
        LocateResponse {
            stores: route.stores.clone(),
            membership_epoch: route.membership,
            generation: route.generation,
            leader_store: leader.map_or(route.leader, |store| store.0),
        }
    }
}

pub(crate) fn not_begun() -> String {
    format!(
        "no store that can be reached knows the cluster's {}: either nobody has run `polyraft init`, or \
         the cluster was made by a build that had none; such a one gets no new groups",
        Named(DIRECTORY)
    )
}
