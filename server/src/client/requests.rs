//! One request and its answer.

use std::time::Instant;

use bytes::Bytes;
use polyraft_store::sessions::{Once, Session};
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::Client;
use super::connection::Again;
use super::memory::{ByKey, Headed, Keyed};
use crate::failure::{Effect, Failure, Reason};
use crate::proto::admin::admin_client::AdminClient;
use crate::proto::kv::kv_client::KvClient;
use crate::proto::kv::{
    self, Condition, Consistency, GetRequest, GetResponse, Mutation, ResponseHeader, ScanRequest,
    ScanResponse, WriteRequest, WriteResponse,
};

impl Client {
    /// Reads a key.
    ///
    /// # Errors
    /// See [`Client::call`].
    pub async fn get(&self, key: Bytes, stale: bool, group: u64) -> Result<GetResponse, Failure> {
        let consistency = if stale {
            Consistency::Stale
        } else {
            Consistency::Linearizable
        };
        let request = GetRequest {
            key,
            consistency: consistency.into(),
            group,
            hint: None,
        };
        self.call_by_key(Again::Reads, request, |channel, request| async move {
            kv_client(channel).get(request).await
        })
        .await
    }

    /// An atomic write that counts once: it is sent again, also when nobody knows what became of
    /// it, until there is an answer or the time of the call is over. `session` is one with the
    /// group that holds the keys; it is renewed if the group does not know it and the write had
    /// certainly no effect.
    ///
    /// # Errors
    /// See [`Client::call`]; [`Reason::Busy`]: too many writes of the session are open.
    pub async fn write_once(
        &self,
        session: &mut Session,
        request: WriteRequest,
    ) -> Result<WriteResponse, Failure> {
        let deadline = Instant::now() + self.timeout;
        loop {
            let once = session.number().ok_or_else(|| {
                Failure::new(Reason::Busy, "too many writes of the session are open")
            })?;
            let request = WriteRequest {
                session: Some(once.into()),
                ..request.clone()
            };
            let asking = ByKey {
                client: self,
                request,
            };
            let write = |channel, request| async move { kv_client(channel).write(request).await };
            let again = Again::CountsOnce;
            let result = self.call_until(deadline, again, &asking, write).await;
            session.end(once.sequence);
            let Err(failure) = result else { return result };
            match failure.index {
                Some(index) if failure.effect == Effect::None && Instant::now() < deadline => {
                    session.renew(once.session, index);
                }
                _ => return Err(failure),
            }
        }
    }

    /// Writes one key, or makes it absent.
    ///
    /// # Errors
    /// See [`Client::call`].
    pub async fn put(
        &self,
        key: Bytes,
        value: Option<Bytes>,
        group: u64,
    ) -> Result<ResponseHeader, Failure> {
        let request = put_request(key, value, group);
        Ok(self.write(request).await?.header.unwrap_or_default())
    }

    /// Writes `value` if the key has the value `expected` (none: is absent); whether it did.
    ///
    /// # Errors
    /// See [`Client::call`].
    pub async fn cas(
        &self,
        key: Bytes,
        expected: Option<Bytes>,
        value: Bytes,
        group: u64,
    ) -> Result<bool, Failure> {
        let request = cas_request(key, expected, value, group);
        Ok(self.write(request).await?.applied)
    }

    /// An atomic write.
    ///
    /// # Errors
    /// See [`Client::call`].
    pub async fn write(&self, request: WriteRequest) -> Result<WriteResponse, Failure> {
        let again = Again::WithoutEffect;
        self.call_by_key(again, request, |channel, request| async move {
            kv_client(channel).write(request).await
        })
        .await
    }

    /// [`Client::call`] for a request whose range may be known.
    async fn call_by_key<Q, A, F>(
        &self,
        again: Again,
        request: Q,
        call: impl Fn(Channel, Request<Q>) -> F,
    ) -> Result<A, Failure>
    where
        Q: Keyed,
        A: Headed,
        F: Future<Output = Result<tonic::Response<A>, Status>>,
    {
        let deadline = Instant::now() + self.timeout;
        let asking = ByKey {
            client: self,
            request,
        };
        self.call_until(deadline, again, &asking, call).await
    }

    /// One page of pairs; [`Client::scan`] gives one after the other.
    ///
    /// # Errors
    /// See [`Client::call`].
    pub async fn scan_page(&self, request: ScanRequest) -> Result<ScanResponse, Failure> {
        self.call_by_key(Again::Reads, request, |channel, request| async move {
            kv_client(channel).scan(request).await
        })
        .await
    }

    /// A call of the admin interface.
    ///
    /// # Errors
    /// See [`Client::call`].
    pub async fn admin<Q, A, F>(
        &self,
        reads: bool,
        message: Q,
        call: impl Fn(AdminClient<Channel>, Request<Q>) -> F,
    ) -> Result<A, Failure>
    where
        Q: Clone,
        F: Future<Output = Result<tonic::Response<A>, Status>>,
    {
        self.call(reads, message, |channel, request| {
            call(
                AdminClient::new(channel).max_decoding_message_size(usize::MAX),
                request,
            )
        })
        .await
    }
}

/// A client that takes answers of any size: a value may be larger than what gRPC takes by default.
pub(crate) fn kv_client(channel: Channel) -> KvClient<Channel> {
    KvClient::new(channel).max_decoding_message_size(usize::MAX)
}

/// The request of [`Client::put`].
#[must_use]
pub fn put_request(key: Bytes, value: Option<Bytes>, group: u64) -> WriteRequest {
    WriteRequest {
        mutations: vec![Mutation { key, value }],
        group,
        ..WriteRequest::default()
    }
}

/// The request of [`Client::cas`].
#[must_use]
pub fn cas_request(key: Bytes, expected: Option<Bytes>, value: Bytes, group: u64) -> WriteRequest {
    let condition = Condition {
        key: key.clone(),
        value: expected,
    };
    WriteRequest {
        conditions: vec![condition],
        ..put_request(key, Some(value), group)
    }
}

impl From<Once> for kv::Session {
    fn from(once: Once) -> Self {
        Self {
            client: once.session.client.get(),
            since: once.session.since,
            sequence: once.sequence,
            acknowledged: once.acknowledged,
        }
    }
}
