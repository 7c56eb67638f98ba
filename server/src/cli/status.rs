//! `polyraft init` and `polyraft status`.

use std::time::{Duration, Instant};

use serde_json::json;

use super::args::Connection;
use super::output::{show, table};
use crate::failure::Reason;
use crate::proto::admin::{InitRequest, StatusRequest};

/// Asks until all stores have joined, or the time is over.
pub(super) async fn init(
    groups: u64,
    replicas: Option<u32>,
    connection: &Connection,
) -> Result<(), String> {
    let client = connection.client()?;
    let deadline = Instant::now() + connection.timeout.max(Duration::from_secs(30));
    let request = InitRequest {
        groups,
        replicas: replicas.unwrap_or(0),
    };
    let answer = loop {
        let answer = client
            .admin(false, request, |mut c, r| async move { c.init(r).await })
            .await;
        match answer {
            Ok(answer) => break answer,
            Err(failure) => {
                // A store that joins restarts its services: the call may break and is safe to repeat.
                let passing = !matches!(failure.reason, Reason::BadRequest | Reason::Refused);
                if !passing || Instant::now() >= deadline {
                    return Err(failure.message);
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    };
    let json = json!({ "groups": answer.groups, "already": answer.already });
    show(connection.output, &json, || match answer.already {
        true => format!("the cluster has its {} groups already", answer.groups),
        false => format!("created {} groups", answer.groups),
    });
    Ok(())
}

pub(super) async fn status(connection: &Connection) -> Result<(), String> {
    let client = connection.client()?;
    let request = StatusRequest { all: true };
    let answer = client
        .admin(true, request, |mut c, r| async move { c.status(r).await })
        .await;
    let stores = answer.map_err(|failure| failure.message)?.stores;
    let json = json!({ "stores": stores.iter().map(|s| json!({
        "store": s.store,
        "address": s.address,
        "error": (!s.error.is_empty()).then_some(&s.error),
        "version": s.version,
        "cluster": format!("{:016x}", s.cluster),
        "uptime_seconds": s.uptime_seconds,
        "replicas": s.replicas,
        "leaders": s.leaders,
        "asleep": s.asleep,
        "connected": s.connected,
        "counters": s.counters,
        "draining": s.draining,
        "disk_full": s.disk_full,
    })).collect::<Vec<_>>() });
    show(connection.output, &json, || {
        let head = [
            "STORE",
            "ADDRESS",
            "STATE",
            "UPTIME",
            "REPLICAS",
            "LEADERS",
            "ASLEEP",
            "CONNECTED",
        ];
        let rows = stores.iter().map(|s| {
            let state = match () {
                () if !s.error.is_empty() => format!("DOWN: {}", s.error),
                () if s.disk_full => "DISK FULL".to_owned(),
                () if s.draining => "draining".to_owned(),
                () => "up".to_owned(),
            };
            let connected: Vec<String> = s.connected.iter().map(u64::to_string).collect();
            [
                s.store.to_string(),
                s.address.clone(),
                state,
                format!("{}s", s.uptime_seconds),
                s.replicas.to_string(),
                s.leaders.to_string(),
                s.asleep.to_string(),
                connected.join(","),
            ]
        });
        table(head, rows)
    });
    Ok(())
}
