//! `polyraft directory`.

use std::time::{SystemTime, UNIX_EPOCH};

use clap::Subcommand;
use serde_json::{Value, json};

use super::args::Connection;
use super::error::Error;
use super::output::{hex, quoted, show, table};
use crate::directory::Named;
use crate::directory::client as directory_client;
use crate::proto::directory::{
    DescribeRequest, Entry, ListGroupsRequest, ListRangesRequest, NewStoreRequest, Store,
    StoreState,
};

/// Groups asked for at once.
const PAGE: u32 = 1000;

#[derive(Debug, Subcommand)]
pub(super) enum DirectoryVerb {
    /// Every group as its leader published it last, by range; then those without a range.
    #[command(
        after_help = "Examples:\n  polyraft directory list\n  polyraft directory list --stale"
    )]
    List {
        /// From any store that has the directory: perhaps not the latest, but also without a quorum.
        #[arg(long)]
        stale: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// The stores, which of them are heard, and the next free numbers.
    #[command(after_help = "Example:\n  polyraft directory stores -o json")]
    Stores {
        /// From any store that has the directory: perhaps not the latest, but also without a quorum.
        #[arg(long)]
        stale: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// A number for a new store, which nobody else gets.
    #[command(after_help = "Example:\n  polyraft directory new-store")]
    NewStore {
        #[command(flatten)]
        connection: Connection,
    },
}

impl DirectoryVerb {
    pub(super) const fn connection(&self) -> &Connection {
        match self {
            Self::List { connection, .. }
            | Self::Stores { connection, .. }
            | Self::NewStore { connection } => connection,
        }
    }
}

pub(super) async fn run(verb: DirectoryVerb) -> Result<(), Error> {
    match verb {
        DirectoryVerb::List { stale, connection } => list(stale, &connection).await,
        DirectoryVerb::Stores { stale, connection } => stores(stale, &connection).await,
        DirectoryVerb::NewStore { connection } => new_store(&connection).await,
    }
}

async fn list(stale: bool, connection: &Connection) -> Result<(), Error> {
    let client = connection.client()?;
    let (mut ranges, mut start) = (Vec::new(), Some(bytes::Bytes::new()));
    while let Some(from) = start {
        let request = ListRangesRequest {
            start: from,
            end: None,
            limit: PAGE,
            stale,
        };
        let list =
            |channel, request| async move { directory_client(channel).list_ranges(request).await };
        let page = client.call(true, request, list).await?;
        ranges.extend(page.ranges);
        start = page.next;
    }
    let (mut others, mut from) = (Vec::new(), 1);
    while from != 0 {
        let limit = PAGE;
        let request = ListGroupsRequest { from, limit, stale };
        let list =
            |channel, request| async move { directory_client(channel).list_groups(request).await };
        let page = client.call(true, request, list).await?;
        others.extend(
            page.groups
                .into_iter()
                .filter(|entry| entry.start.is_none()),
        );
        from = page.next;
    }
    let json = json!({
        "ranges": ranges.iter().map(entry_json).collect::<Vec<_>>(),
        "others": others.iter().map(entry_json).collect::<Vec<_>>(),
    });
    show(connection.output, &json, || {
        let head = ["GROUP", "START", "END", "STORES", "LEADER", "GENERATION"];
        table(head, ranges.iter().chain(&others).map(row))
    })
}

fn row(entry: &Entry) -> [String; 6] {
    let start = match &entry.start {
        None => "own keys".to_owned(),
        Some(start) if start.is_empty() => "-inf".to_owned(),
        Some(start) => quoted(start),
    };
    let end = entry.end.as_ref().map(|end| quoted(end));
    let open = if entry.start.is_some() { "+inf" } else { "" };
    let mut stores: Vec<u64> = entry.members.iter().map(|member| member.store).collect();
    stores.sort_unstable();
    let stores: Vec<String> = stores.iter().map(u64::to_string).collect();
    [
        Named(entry.group).to_string(),
        start,
        end.unwrap_or_else(|| open.to_owned()),
        stores.join(","),
        format!("store {}", entry.leader_store),
        entry.generation.to_string(),
    ]
}

fn entry_json(entry: &Entry) -> Value {
    let member = |member: &crate::proto::directory::Member| json!({ "replica": member.replica, "store": member.store });
    json!({
        "group": entry.group,
        "name": Named(entry.group).to_string(),
        "start_hex": entry.start.as_ref().map(|start| hex(start)),
        "end_hex": entry.end.as_ref().map(|end| hex(end)),
        "members": entry.members.iter().map(member).collect::<Vec<_>>(),
        "epoch": { "membership": entry.membership_epoch, "range": entry.generation },
        "leader_store": entry.leader_store,
        "term": entry.term,
        "frozen_into": (entry.frozen_into != 0).then_some(entry.frozen_into),
    })
}

async fn stores(stale: bool, connection: &Connection) -> Result<(), Error> {
    let client = connection.client()?;
    let describe =
        |channel, request| async move { directory_client(channel).describe(request).await };
    let d = client
        .call(true, DescribeRequest { stale }, describe)
        .await?;
    let limits = d.limits.unwrap_or_default();
    let json = json!({
        "stores": d.stores.iter().map(store_json).collect::<Vec<_>>(),
        "next_group": d.next_group,
        "next_store": d.next_store,
        "paused": d.paused,
        "limits": {
            "dead_after_ms": limits.dead_after,
            "moves": limits.moves,
            "moves_of_a_store": limits.moves_of_a_store,
            "range_changes": limits.range_changes,
            "transfers": limits.transfers,
            "range_bytes_max": limits.range_bytes_max,
            "range_bytes_min": limits.range_bytes_min,
        },
        "directory": { "stores": d.on_stores, "leader_store": d.leader_store },
    });
    show(connection.output, &json, || {
        let rows = d.stores.iter().map(|store| {
            let (number, address) = (store.store.to_string(), store.address.clone());
            [number, address, state(store).to_owned(), heard(store)]
        });
        let mut text = table(["STORE", "ADDRESS", "STATE", "HEARD"], rows);
        let on: Vec<String> = d.on_stores.iter().map(u64::to_string).collect();
        let leader = match d.leader_store {
            0 => "nobody leads it".to_owned(),
            store => format!("store {store} leads it"),
        };
        text.push_str(&format!(
            "\nthe directory is on stores {}; {leader}; the next group is {}, the next store {}",
            on.join(","),
            d.next_group,
            d.next_store
        ));
        text
    })
}

fn state(store: &Store) -> &'static str {
    match store.state() {
        StoreState::Up => "up",
        StoreState::Decommissioning => "decommissioning",
        StoreState::Dead => "dead",
        StoreState::Unspecified => "unknown",
    }
}

/// How long the directory's leader has heard nothing of a store.
fn heard(store: &Store) -> String {
    if store.silent_since == 0 {
        return "yes".to_owned();
    }
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let seconds = now.as_secs().saturating_sub(store.silent_since / 1000);
    format!("not for {seconds}s")
}

fn store_json(store: &Store) -> Value {
    json!({
        "store": store.store,
        "address": store.address,
        "state": state(store),
        "silent_since_ms": (store.silent_since != 0).then_some(store.silent_since),
    })
}

async fn new_store(connection: &Connection) -> Result<(), Error> {
    let client = connection.client()?;
    let ask = |channel, request| async move { directory_client(channel).new_store(request).await };
    let answer = client.call(false, NewStoreRequest {}, ask).await?;
    show(connection.output, &json!({ "store": answer.store }), || {
        answer.store.to_string()
    })
}
