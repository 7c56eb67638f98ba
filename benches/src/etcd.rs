//! Three etcd processes and a closed-loop generator of puts, to measure beside.
//!
//! The messages are the few fields of etcd's gRPC API (`rpc.proto`) that a put and a look for the leader
//! need.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

use crate::processes::{Processes, free_addresses, words};

/// Connections to the leader: as many as our own generator has to all stores together.
const CONNECTIONS: usize = 12;

/// `etcdserverpb.PutRequest`
#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// `etcdserverpb.PutResponse`; its header is not needed.
#[derive(Clone, PartialEq, prost::Message)]
struct PutResponse {}

/// `etcdserverpb.StatusRequest`
#[derive(Clone, PartialEq, prost::Message)]
struct StatusRequest {}

/// `etcdserverpb.ResponseHeader`
#[derive(Clone, PartialEq, prost::Message)]
struct Header {
    #[prost(uint64, tag = "2")]
    member_id: u64,
}

/// `etcdserverpb.StatusResponse`
#[derive(Clone, PartialEq, prost::Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<Header>,
    #[prost(uint64, tag = "4")]
    leader: u64,
}

/// Three members on loopback.
#[derive(Debug)]
pub struct Etcd {
    processes: Processes,
    clients: Vec<String>,
}

/// Puts per second, and latencies in microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// Acknowledged puts per second.
    pub per_second: f64,
    /// Median, in microseconds.
    pub p50: u64,
    /// 99 of 100 are faster, in microseconds.
    pub p99: u64,
    /// Puts that failed.
    pub failed: u64,
}

impl Etcd {
    /// Starts `etcd` from `PATH`, below `parent`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(parent: &Path) -> Result<Self> {
        let mut processes = Processes::new(parent)?;
        let (clients, peers) = (free_addresses(3)?, free_addresses(3)?);
        let members: Vec<String> = (0..3)
            .map(|i| format!("m{i}=http://{}", peers[i]))
            .collect();
        for i in 0..3 {
            let (client, peer) = (
                format!("http://{}", clients[i]),
                format!("http://{}", peers[i]),
            );
            let data = processes
                .directory()
                .join(format!("m{i}"))
                .display()
                .to_string();
            let name = format!("m{i}");
            let arguments = words(&[
                "--name",
                &name,
                "--data-dir",
                &data,
                "--listen-client-urls",
                &client,
                "--advertise-client-urls",
                &client,
                "--listen-peer-urls",
                &peer,
                "--initial-advertise-peer-urls",
                &peer,
                "--initial-cluster",
                &members.join(","),
                "--log-level",
                "error",
            ]);
            processes.spawn(Path::new("etcd"), &arguments)?;
        }
        Ok(Self { processes, clients })
    }

    /// Puts of `value_bytes` to the leader by `clients` at once, each waiting for its answer.
    ///
    /// # Errors
    /// There is no leader within a minute.
    pub async fn puts(
        &mut self,
        clients: usize,
        value_bytes: usize,
        duration: Duration,
    ) -> Result<Figures> {
        let leader = self.leader().await?;
        let channels: Result<Vec<Channel>> = (0..CONNECTIONS).map(|_| connect(&leader)).collect();
        let channels = channels?;
        let end = Instant::now() + duration;
        let begun = Instant::now();
        let tasks: Vec<_> = (0..clients)
            .map(|client| {
                tokio::spawn(put_until(
                    channels[client % CONNECTIONS].clone(),
                    client,
                    value_bytes,
                    end,
                ))
            })
            .collect();
        let (mut all, mut failed) = (Histogram::<u64>::new(3)?, 0);
        for task in tasks {
            let (latencies, errors) = task.await??;
            all.add(&latencies)?;
            failed += errors;
        }
        let per_second = all.len() as f64 / begun.elapsed().as_secs_f64();
        Ok(Figures {
            per_second,
            p50: all.value_at_quantile(0.5),
            p99: all.value_at_quantile(0.99),
            failed,
        })
    }

    async fn leader(&mut self) -> Result<String> {
        let deadline = Instant::now() + Duration::from_secs(60);
        while Instant::now() < deadline {
            self.processes.check()?;
            for address in &self.clients {
                let path = "/etcdserverpb.Maintenance/Status";
                let status: Result<StatusResponse, Status> =
                    call(connect(address)?, path, StatusRequest {}).await;
                let leads = |status: &StatusResponse| {
                    status.leader != 0
                        && status
                            .header
                            .as_ref()
                            .is_some_and(|header| header.member_id == status.leader)
                };
                if status.is_ok_and(|status| leads(&status)) {
                    return Ok(address.clone());
                }
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        bail!("etcd has no leader")
    }
}

async fn put_until(
    channel: Channel,
    client: usize,
    value_bytes: usize,
    end: Instant,
) -> Result<(Histogram<u64>, u64)> {
    let (mut latencies, mut failed, mut turn) = (Histogram::new(3)?, 0, 0u64);
    while Instant::now() < end {
        // A thousand keys per client, with values that do not compress, as our own generator writes them.
        let key = format!("{client}.{}", turn % 1000).into_bytes();
        let mut state = (client as u64) << 32 | turn;
        let value: Vec<u8> = (0..value_bytes).map(|_| letter(&mut state)).collect();
        turn += 1;
        let begun = Instant::now();
        let put: Result<PutResponse, Status> = call(
            channel.clone(),
            "/etcdserverpb.KV/Put",
            PutRequest { key, value },
        )
        .await;
        match put {
            Ok(_) => latencies.record(u64::try_from(begun.elapsed().as_micros())?.max(1))?,
            Err(_) => failed += 1,
        }
    }
    Ok((latencies, failed))
}

/// The next letter of a cheap random sequence (Steele, Lea, Flood: SplitMix, 2014).
fn letter(state: &mut u64) -> u8 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    b'a' + ((z >> 40) % 26) as u8
}

async fn call<Q, A>(channel: Channel, path: &'static str, message: Q) -> Result<A, Status>
where
    Q: prost::Message + Send + Sync + 'static,
    A: prost::Message + Default + Send + Sync + 'static,
{
    let mut grpc = Grpc::new(channel);
    grpc.ready()
        .await
        .map_err(|error| Status::unavailable(error.to_string()))?;
    let codec = ProstCodec::<Q, A>::default();
    Ok(grpc
        .unary(
            Request::new(message),
            PathAndQuery::from_static(path),
            codec,
        )
        .await?
        .into_inner())
}

fn connect(address: &str) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).context("an address")?;
    Ok(endpoint.tcp_nodelay(true).connect_lazy())
}
