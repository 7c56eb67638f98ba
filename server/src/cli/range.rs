//! `polyraft range`.

use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::args::{Connection, Output, parse_group};
use super::error::Error;
use super::group::{bounds, group_json, leader, role, show_description, stores};
use super::output::{hex, parse_hex, quoted, say, show, table};
use crate::client::Client;
use crate::failure::{Failure, Reason};
use crate::proto::admin::{
    CheckRangeRequest, CheckRangeResponse, DescribeGroupRequest, Group, Hole, ListRangesRequest,
    ListRangesResponse, ListReplicasRequest, ListReplicasResponse, MemberRole, MergeRangesRequest,
    MovePhase, MoveReplicaRequest, MoveReplicaResponse, ReplicaStatus, SplitRangeRequest,
};

/// How long a merge may take, unless something else is asked for.
const MERGE_TIMEOUT: Duration = Duration::from_secs(30);
/// The same of a move: a snapshot may be large.
const MOVE_TIMEOUT: Duration = Duration::from_secs(600);
/// The same of the check of one range.
const CHECK_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause after a part of a move that failed.
const MOVE_PAUSE: Duration = Duration::from_millis(500);

#[derive(Debug, Subcommand)]
pub(super) enum RangeVerb {
    /// All ranges in the order of keys, and where none is known.
    #[command(after_help = "Examples:\n  polyraft range list\n  polyraft range list -o json")]
    List {
        #[command(flatten)]
        connection: Connection,
    },
    /// The group of a range as its leader sees it.
    #[command(
        after_help = "Examples:\n  polyraft range describe 7\n  polyraft range describe --key color"
    )]
    Describe {
        /// Number of the group.
        #[arg(required_unless_present = "key", conflicts_with = "key")]
        group: Option<u64>,
        /// A key in the range instead.
        #[arg(long, value_name = "KEY", allow_negative_numbers = true)]
        key: Option<String>,
        #[command(flatten)]
        form: KeyForm,
        #[command(flatten)]
        connection: Connection,
    },
    /// Split ranges, so that one begins at each of the keys; asked again it changes nothing.
    #[command(
        after_help = "Examples:\n  polyraft range split --at m\n  polyraft range split --at d --at m --at t\n  \
        polyraft range split --hex --at 80ff"
    )]
    Split {
        /// First key of a new range; may be given more than once.
        #[arg(
            long,
            value_name = "KEY",
            required = true,
            allow_negative_numbers = true
        )]
        at: Vec<String>,
        #[command(flatten)]
        form: KeyForm,
        #[command(flatten)]
        connection: Connection,
    },
    /// Merge a range with the one behind it, whose group is no more then.
    #[command(
        after_help = "Examples:\n  polyraft range merge --at m\n  polyraft range merge 7\n\n\
        Asked again, `--at` changes nothing; by number the next one is merged as well. Both groups must have \n\
        replicas on the same stores. What cannot be finished in time is undone."
    )]
    Merge {
        /// Number of the group that gets the keys of the one behind it.
        #[arg(required_unless_present = "at", conflicts_with = "at")]
        group: Option<u64>,
        /// Instead: no range is to begin at this key any more.
        #[arg(long, value_name = "KEY", allow_negative_numbers = true)]
        at: Option<String>,
        #[command(flatten)]
        form: KeyForm,
        #[command(flatten)]
        connection: Connection,
    },
    /// Move a voter to another store: it is added as a learner, catches up, and takes the other's vote.
    #[command(after_help = "Example:\n  polyraft range move 7 --from 1 --to 4\n\n\
        Interrupted at any time, it goes on when it is asked again, also at another store.")]
    Move {
        /// Number of the group, or `directory`.
        #[arg(value_parser = parse_group)]
        group: u64,
        /// Store of the member that goes.
        #[arg(long)]
        from: u64,
        /// Store of the member that comes.
        #[arg(long)]
        to: u64,
        #[command(flatten)]
        connection: Connection,
    },
    /// Compare what the replicas of a range hold; one that differs from most is taken out of service.
    #[command(after_help = "Examples:\n  polyraft range check 7\n  polyraft range check --all")]
    Check {
        /// Number of the group.
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        group: Option<u64>,
        /// All ranges, one after the other.
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        connection: Connection,
    },
    /// The replicas of a group, each as its own store and the leader see it.
    #[command(after_help = "Example:\n  polyraft range replicas 7")]
    Replicas {
        /// Number of the group, or `directory`.
        #[arg(value_parser = parse_group)]
        group: u64,
        #[command(flatten)]
        connection: Connection,
    },
}

/// How keys are written.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct KeyForm {
    /// Keys are hexadecimal.
    #[arg(long)]
    hex: bool,
}

impl KeyForm {
    fn bytes(self, text: &str) -> Result<Bytes, Error> {
        if !self.hex {
            return Ok(Bytes::copy_from_slice(text.as_bytes()));
        }
        parse_hex(text).map(Bytes::from).map_err(Error::bad_request)
    }
}

impl RangeVerb {
    pub(super) const fn connection(&self) -> &Connection {
        match self {
            Self::List { connection }
            | Self::Describe { connection, .. }
            | Self::Split { connection, .. }
            | Self::Merge { connection, .. }
            | Self::Move { connection, .. }
            | Self::Check { connection, .. }
            | Self::Replicas { connection, .. } => connection,
        }
    }
}

pub(super) async fn run(verb: RangeVerb) -> Result<(), Error> {
    match verb {
        RangeVerb::List { connection } => list(&connection).await,
        RangeVerb::Describe {
            group,
            key,
            form,
            connection,
        } => {
            let request = DescribeGroupRequest {
                group: group.unwrap_or(0),
                local: false,
                key: key.map(|key| form.bytes(&key)).transpose()?,
            };
            show_description(request, &connection).await
        }
        RangeVerb::Split {
            at,
            form,
            connection,
        } => {
            let keys = at
                .iter()
                .map(|key| form.bytes(key))
                .collect::<Result<_, _>>()?;
            split(keys, &connection).await
        }
        RangeVerb::Merge {
            group,
            at,
            form,
            connection,
        } => {
            let request = MergeRangesRequest {
                left: group.unwrap_or(0),
                at: at.map(|key| form.bytes(&key)).transpose()?,
            };
            merge(request, &connection).await
        }
        RangeVerb::Move {
            group,
            from,
            to,
            connection,
        } => {
            let request = MoveReplicaRequest {
                group,
                from_store: from,
                to_store: to,
            };
            move_replica(request, &connection).await
        }
        RangeVerb::Check {
            group, connection, ..
        } => check(group, &connection).await,
        RangeVerb::Replicas { group, connection } => replicas(group, &connection).await,
    }
}

async fn list(connection: &Connection) -> Result<(), Error> {
    let client = connection.client()?;
    let list = client.admin(true, ListRangesRequest {}, |mut c, r| async move {
        c.list_ranges(r).await
    });
    let list = list.await?;
    let json = json!({
        "ranges": list.ranges.iter().map(group_json).collect::<Vec<_>>(),
        "holes": list.holes.iter().map(hole_json).collect::<Vec<_>>(),
        "unreachable": list.unreachable,
    });
    show(connection.output, &json, || list_table(&list))
}

fn hole_json(hole: &Hole) -> Value {
    json!({
        "start_hex": hex(&hole.start),
        "end_hex": hole.end.as_ref().map(|end| hex(end)),
    })
}

fn list_table(list: &ListRangesResponse) -> String {
    let mut text = ranges_table(&list.ranges);
    for hole in &list.holes {
        let (start, end) = bounds(&Group {
            start: Some(hole.start.clone()),
            end: hole.end.clone(),
            ..Group::default()
        });
        text.push_str(&format!(
            "\nNOT KNOWN: {start} .. {end}: no store that was asked knows the range of these keys"
        ));
    }
    if !list.unreachable.is_empty() {
        text.push_str(&format!(
            "\nnot asked, since they cannot be reached: stores {:?}",
            list.unreachable
        ));
    }
    text
}

fn ranges_table(ranges: &[Group]) -> String {
    let head = [
        "GROUP",
        "START",
        "END",
        "GENERATION",
        "STORES",
        "LEADER",
        "STATE",
    ];
    let rows = ranges.iter().map(|group| {
        let (start, end) = bounds(group);
        let state = match group.frozen {
            Some(frozen) => format!("frozen, into {}", frozen.into_group),
            None if group.asleep => "asleep".to_owned(),
            None => "awake".to_owned(),
        };
        [
            group.group.to_string(),
            start,
            end,
            group.range_epoch.to_string(),
            stores(group),
            leader(group),
            state,
        ]
    });
    table(head, rows)
}

async fn split(keys: Vec<Bytes>, connection: &Connection) -> Result<(), Error> {
    let client = connection.client()?;
    let request = SplitRangeRequest { keys, group: 0 };
    let answer = client.admin(
        false,
        request,
        |mut c, r| async move { c.split_range(r).await },
    );
    let answer = answer.await?;
    let already: Vec<String> = answer.already.iter().map(|key| hex(key)).collect();
    let json = json!({
        "groups": answer.groups.iter().map(group_json).collect::<Vec<_>>(),
        "already_hex": already,
    });
    show(connection.output, &json, || {
        let before = answer
            .already
            .iter()
            .map(|key| format!("a range began at {} before\n", quoted(key)));
        let mut text: String = before.collect();
        if !answer.groups.is_empty() {
            let head = ["GROUP", "START", "END", "GENERATION", "STORES"];
            let rows = answer.groups.iter().map(|group| {
                let (start, end) = bounds(group);
                let generation = group.range_epoch.to_string();
                [
                    group.group.to_string(),
                    start,
                    end,
                    generation,
                    stores(group),
                ]
            });
            text.push_str(&table(head, rows));
        }
        text
    })
}

async fn merge(request: MergeRangesRequest, connection: &Connection) -> Result<(), Error> {
    let mut client = connection.client()?;
    client.set_timeout(connection.timeout.unwrap_or(MERGE_TIMEOUT));
    let answer = client.admin(
        false,
        request,
        |mut c, r| async move { c.merge_ranges(r).await },
    );
    let answer = answer.await?;
    let group = answer.group.unwrap_or_default();
    let merged = (answer.merged != 0).then_some(answer.merged);
    let json = json!({ "group": group_json(&group), "merged": merged });
    show(connection.output, &json, || {
        let (start, end) = bounds(&group);
        match merged {
            Some(merged) => format!(
                "group {} has {start} .. {end} now; group {merged} is no more",
                group.group
            ),
            None => format!(
                "no range begins at this key: group {} has {start} .. {end}",
                group.group
            ),
        }
    })
}

async fn move_replica(request: MoveReplicaRequest, connection: &Connection) -> Result<(), Error> {
    let MoveReplicaRequest {
        group,
        from_store: from,
        to_store: to,
    } = request;
    let mut client = connection.client()?;
    let (begun, bound) = (Instant::now(), connection.timeout.unwrap_or(MOVE_TIMEOUT));
    client.set_timeout(bound.min(Duration::from_secs(10)));
    let mut told = String::new();
    loop {
        let now = match step(&client, request).await {
            Ok(answer) if answer.phase() == MovePhase::Done => break,
            Ok(answer) => progress(&answer),
            // Whatever became of it, the group says so the next time.
            Err(failure) if failure.is_worth_a_copy() => {
                tokio::time::sleep(MOVE_PAUSE).await;
                format!("trying again: {}", failure.message)
            }
            Err(failure) => return Err(failure.into()),
        };
        if begun.elapsed() >= bound {
            let text = format!(
                "group {group} is not moved yet: {now}; asked again, this goes on where it is"
            );
            return Err(Failure::new(Reason::Timeout, text)
                .of_unknown_effect()
                .into());
        }
        if connection.output == Output::Table && now != told {
            say(&now)?;
        }
        told = now;
    }
    let json = json!({ "group": group, "from_store": from, "to_store": to, "done": true });
    show(connection.output, &json, || {
        format!("group {group} has a voter on store {to}, and no replica on store {from}")
    })
}

async fn step(
    client: &Client,
    request: MoveReplicaRequest,
) -> Result<MoveReplicaResponse, Failure> {
    let step = client.admin(
        false,
        request,
        |mut c, r| async move { c.move_replica(r).await },
    );
    step.await
}

fn progress(answer: &MoveReplicaResponse) -> String {
    let what = match answer.phase() {
        MovePhase::Adding => "adding a learner".to_owned(),
        MovePhase::CatchingUp => format!(
            "the learner catches up: it has {} of {} entries",
            answer.match_index, answer.last_index
        ),
        MovePhase::Swapping => "the learner gets the vote".to_owned(),
        MovePhase::Removing => "removing the old replica".to_owned(),
        MovePhase::Done => "done".to_owned(),
        MovePhase::Unspecified => "going on".to_owned(),
    };
    match answer.waits_for.is_empty() {
        true => what,
        false => format!("{what}; it waits for {}", answer.waits_for),
    }
}

/// One range, or all of them. That replicas differ is a failure.
async fn check(group: Option<u64>, connection: &Connection) -> Result<(), Error> {
    let mut client = connection.client()?;
    client.set_timeout(connection.timeout.unwrap_or(CHECK_TIMEOUT));
    let groups = match group {
        Some(group) => vec![group],
        None => {
            let list = client.admin(true, ListRangesRequest {}, |mut c, r| async move {
                c.list_ranges(r).await
            });
            list.await?.ranges.iter().map(|range| range.group).collect()
        }
    };
    let mut checked = Vec::new();
    for group in groups {
        let request = CheckRangeRequest { group };
        let answer = client.admin(
            false,
            request,
            |mut c, r| async move { c.check_range(r).await },
        );
        checked.push(answer.await?);
    }
    let json = checked.iter().map(checked_json).collect::<Vec<_>>();
    show(connection.output, &json!({ "ranges": json }), || {
        let each = checked.iter().map(checked_text);
        each.collect::<Vec<_>>().join("\n")
    })?;
    let differ = checked.iter().filter(|it| !it.same).map(|it| it.group);
    match differ.collect::<Vec<_>>()[..] {
        [] => Ok(()),
        ref groups => Err(Error::Other(format!(
            "replicas of groups {groups:?} differ"
        ))),
    }
}

fn checked_json(checked: &CheckRangeResponse) -> Value {
    let replicas = checked.replicas.iter().map(|replica| {
        let told = replica.error.is_empty();
        json!({
            "replica": replica.replica, "store": replica.store,
            "error": (!told).then_some(&replica.error),
            "index": told.then_some(replica.index), "bytes": told.then_some(replica.bytes),
            "digest_hex": told.then(|| format!("{:016x}", replica.digest)),
            "quarantined": replica.quarantined,
        })
    });
    json!({
        "group": checked.group, "same": checked.same,
        "replicas": replicas.collect::<Vec<_>>(),
    })
}

fn checked_text(checked: &CheckRangeResponse) -> String {
    let told = || checked.replicas.iter().filter(|it| it.error.is_empty());
    let mut text = match checked.same {
        true => format!(
            "group {}: {} replicas hold the same",
            checked.group,
            told().count()
        ),
        false => format!("group {}: REPLICAS DIFFER", checked.group),
    };
    for replica in checked.replicas.iter().filter(|it| !it.error.is_empty()) {
        text.push_str(&format!(
            "\n  not compared: store {}: {}",
            replica.store, replica.error
        ));
    }
    if checked.same {
        return text;
    }
    for replica in told() {
        let quarantined = match replica.quarantined {
            true => "; differs from most: OUT OF SERVICE",
            false => "",
        };
        text.push_str(&format!(
            "\n  store {}: {:016x}, {} bytes at entry {}{quarantined}",
            replica.store, replica.digest, replica.bytes, replica.index
        ));
    }
    text
}

async fn replicas(group: u64, connection: &Connection) -> Result<(), Error> {
    let client = connection.client()?;
    let request = ListReplicasRequest { group };
    let answer = client.admin(
        true,
        request,
        |mut c, r| async move { c.list_replicas(r).await },
    );
    let answer = answer.await?;
    let json = json!({
        "group": answer.group.as_ref().map(group_json),
        "replicas": answer.replicas.iter().map(replica_json).collect::<Vec<_>>(),
        "unreachable": answer.unreachable,
    });
    show(connection.output, &json, || replicas_table(&answer))
}

fn replica_json(replica: &ReplicaStatus) -> Value {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    json!({
        "replica": replica.replica, "store": replica.store, "role": role_of(replica),
        "error": some(&replica.error), "state": some(&replica.state), "term": replica.term,
        "last_index": replica.last_index, "commit_index": replica.commit_index,
        "applied_index": replica.applied_index, "asleep": replica.asleep,
        "quarantined": some(&replica.quarantined), "progress": some(&replica.progress),
        "match_index": replica.match_index, "recently_active": replica.recently_active,
    })
}

fn role_of(replica: &ReplicaStatus) -> &'static str {
    match replica.role() {
        MemberRole::Unspecified => "no member",
        other => role(other),
    }
}

fn replicas_table(answer: &ListReplicasResponse) -> String {
    let group = answer.group.clone().unwrap_or_default();
    let (start, end) = bounds(&group);
    let mut text = format!(
        "group {}: {start} .. {end}, led by {}\n",
        group.group,
        leader(&group)
    );
    let head = [
        "REPLICA", "STORE", "ROLE", "STATE", "TERM", "LAST", "COMMIT", "APPLIED", "PROGRESS",
        "MATCH",
    ];
    let rows = answer.replicas.iter().map(|replica| {
        let own = |value: u64| match replica.error.is_empty() {
            true => value.to_string(),
            false => "-".to_owned(),
        };
        let (progress, matched) = match replica.progress.is_empty() {
            true => ("-".to_owned(), "-".to_owned()),
            false => (replica.progress.clone(), replica.match_index.to_string()),
        };
        [
            replica.replica.to_string(),
            replica.store.to_string(),
            role_of(replica).to_owned(),
            state_of(replica),
            own(replica.term),
            own(replica.last_index),
            own(replica.commit_index),
            own(replica.applied_index),
            progress,
            matched,
        ]
    });
    text.push_str(&table(head, rows));
    for replica in &answer.replicas {
        for why in [&replica.error, &replica.quarantined] {
            if !why.is_empty() {
                text.push_str(&format!("\nstore {}: {why}", replica.store));
            }
        }
    }
    if !answer.unreachable.is_empty() {
        text.push_str(&format!(
            "\nnot asked, since they cannot be reached: stores {:?}",
            answer.unreachable
        ));
    }
    text
}

fn state_of(replica: &ReplicaStatus) -> String {
    if !replica.error.is_empty() {
        return "unknown".to_owned();
    }
    if !replica.quarantined.is_empty() {
        return "OUT OF SERVICE".to_owned();
    }
    match replica.asleep {
        true => format!("{}, asleep", replica.state),
        false => replica.state.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_says_where_no_range_is_known() {
        let group = Group {
            group: 7,
            start: Some(Bytes::from_static(b"g")),
            range_epoch: 3,
            frozen: Some(crate::proto::admin::Frozen {
                into_group: 6,
                index: 90,
            }),
            ..Group::default()
        };
        let text = list_table(&ListRangesResponse {
            ranges: vec![group],
            holes: vec![Hole {
                start: Bytes::new(),
                end: Some(Bytes::from_static(b"g")),
            }],
            unreachable: vec![3],
        });
        for words in ["frozen, into 6", "NOT KNOWN: -inf .. \"g\"", "stores [3]"] {
            assert!(text.contains(words), "no {words}: {text}");
        }
    }

    #[test]
    fn progress_says_what_it_waits_for() {
        let text = progress(&MoveReplicaResponse {
            phase: MovePhase::CatchingUp.into(),
            match_index: 5,
            last_index: 90,
            waits_for: "a snapshot".to_owned(),
        });
        assert!(
            text.contains("5 of 90") && text.ends_with("a snapshot"),
            "{text}"
        );
    }
}
