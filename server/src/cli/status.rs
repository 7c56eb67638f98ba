//! `polyraft init` and `polyraft status`.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::args::Connection;
use super::error::Error;
use super::output::{show, table};
use crate::failure::Reason;
use crate::proto::admin::{Environment, InitRequest, StatusRequest, StoreStatus};

/// How long `init` tries if nothing else is asked for: stores may still be starting.
const INIT_BOUND: Duration = Duration::from_secs(30);
/// Between two attempts.
const INIT_PAUSE: Duration = Duration::from_millis(200);

/// Asks until all stores have joined, or the time is over.
pub(super) async fn init(
    groups: u64,
    replicas: Option<u32>,
    connection: &Connection,
) -> Result<(), Error> {
    let bound = connection.timeout.unwrap_or(INIT_BOUND);
    let deadline = Instant::now() + bound;
    let mut client = connection.client()?;
    let request = InitRequest {
        groups,
        replicas: replicas.unwrap_or(0),
    };
    let mut before = None;
    let answer = loop {
        client.set_timeout(deadline.saturating_duration_since(Instant::now()));
        let answer = client
            .admin(false, request, |mut c, r| async move { c.init(r).await })
            .await;
        match answer {
            Ok(answer) => break answer,
            Err(failure) => {
                // A store that joins restarts its services: the call may break and is safe to repeat.
                let passing = !matches!(failure.reason, Reason::BadRequest | Reason::Refused);
                if !passing {
                    return Err(failure.into());
                }
                // The last attempt is short, and may not have come to all endpoints.
                let told = match before.take() {
                    Some(before) if failure.reason == Reason::Unreachable => before,
                    _ => failure,
                };
                if Instant::now() + INIT_PAUSE >= deadline {
                    return Err(told.into());
                }
                before = (told.reason == Reason::Unreachable).then_some(told);
                tokio::time::sleep(INIT_PAUSE).await;
            }
        }
    };
    let json = json!({ "groups": answer.groups, "already": answer.already });
    show(connection.output, &json, || match answer.already {
        true => format!("the cluster has its {} groups already", answer.groups),
        false => format!("created {} groups", answer.groups),
    })
}

pub(super) async fn status(connection: &Connection) -> Result<(), Error> {
    let client = connection.client()?;
    let request = StatusRequest { all: true };
    let answer = client
        .admin(true, request, |mut c, r| async move { c.status(r).await })
        .await?;
    let stores = answer.stores;
    let initialised = stores.iter().any(|store| store.replicas > 0);
    let each: Vec<Value> = stores.iter().map(store_json).collect();
    let json = json!({ "initialised": initialised, "stores": each });
    show(connection.output, &json, || {
        let mut text = table(HEAD, stores.iter().map(row));
        if !initialised {
            text.push_str(
                "\nnot initialised: once all stores are started, run `polyraft init --groups N`",
            );
        }
        text
    })
}

const HEAD: [&str; 9] = [
    "STORE",
    "ADDRESS",
    "STATE",
    "UPTIME",
    "REPLICAS",
    "LEADERS",
    "ASLEEP",
    "DIRECTORY",
    "CONNECTED",
];

/// In a word or two.
fn state(store: &StoreStatus) -> &'static str {
    match () {
        () if !store.error.is_empty() => "down",
        () if store.cluster == 0 => "not initialised",
        () if store.disk_full => "disk full",
        () if store.draining => "draining",
        () => "up",
    }
}

/// What it is for the directory.
fn directory(store: &StoreStatus) -> Option<&'static str> {
    let is = |name: &str| store.counters.get(name).is_some_and(|value| *value > 0);
    match (is("directory_leader"), is("directory_replica")) {
        (true, _) => Some("leader"),
        (_, true) => Some("member"),
        _ => None,
    }
}

fn row(store: &StoreStatus) -> [String; 9] {
    let state = match state(store) {
        "down" => format!("DOWN: {}", store.error),
        "disk full" => "DISK FULL".to_owned(),
        other => other.to_owned(),
    };
    let connected: Vec<String> = store.connected.iter().map(u64::to_string).collect();
    [
        store.store.to_string(),
        store.address.clone(),
        state,
        format!("{}s", store.uptime_seconds),
        store.replicas.to_string(),
        store.leaders.to_string(),
        store.asleep.to_string(),
        directory(store).unwrap_or("-").to_owned(),
        connected.join(","),
    ]
}

fn store_json(store: &StoreStatus) -> Value {
    json!({
        "store": store.store,
        "address": store.address,
        "state": state(store),
        "error": (!store.error.is_empty()).then_some(&store.error),
        "version": store.version,
        "cluster": (store.cluster != 0).then(|| format!("{:016x}", store.cluster)),
        "incarnation": store.incarnation,
        "uptime_seconds": store.uptime_seconds,
        "replicas": store.replicas,
        "leaders": store.leaders,
        "asleep": store.asleep,
        "directory": directory(store),
        "connected": store.connected,
        "counters": store.counters,
        "draining": store.draining,
        "disk_full": store.disk_full,
        "environment": store.environment.as_ref().map(environment_json),
    })
}

/// Where a store runs.
pub(crate) fn environment_json(environment: &Environment) -> Value {
    json!({
        "revision": environment.revision,
        "profile": environment.profile,
        "rocksdb": environment.rocksdb,
        "data_dir": environment.data_dir,
        "filesystem": environment.filesystem,
        "sync_policy": environment.sync_policy,
        "processors": environment.processors,
        "processor_model": environment.processor_model,
        "memory_bytes": environment.memory_bytes,
        "kernel": environment.kernel,
    })
}
