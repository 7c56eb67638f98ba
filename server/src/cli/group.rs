//! `polyraft group`.

use serde_json::{Value, json};

use super::args::{Connection, GroupVerb, OneMember};
use super::error::Error;
use super::output::{hex, quoted, show, table};
use crate::directory::{FIRST_OF_THE_SYSTEM, Named};
use crate::failure::{Failure, Reason};
use crate::proto::admin::{
    ChangeKind, ChangeMembersRequest, CreateGroupRequest, DescribeGroupRequest,
    DescribeGroupResponse, DestroyGroupRequest, Group, ListGroupsRequest, MemberChange, MemberRole,
    TransferLeaderRequest,
};

pub(super) async fn run(verb: GroupVerb) -> Result<(), Error> {
    match verb {
        GroupVerb::List { connection } => list(&connection).await,
        GroupVerb::Describe {
            group,
            local,
            connection,
        } => describe(group, local, &connection).await,
        GroupVerb::Create { stores, connection } => create(stores, &connection).await,
        GroupVerb::Destroy {
            group,
            force,
            connection,
        } => destroy(group, force, &connection).await,
        GroupVerb::AddLearner(member) => change_one(ChangeKind::AddLearner, member).await,
        GroupVerb::Promote(member) => change_one(ChangeKind::AddVoter, member).await,
        GroupVerb::Demote(member) => change_one(ChangeKind::Demote, member).await,
        GroupVerb::Remove(member) => change_one(ChangeKind::Remove, member).await,
        GroupVerb::Replace {
            group,
            from,
            to,
            connection,
        } => {
            let changes = vec![(ChangeKind::AddVoter, to), (ChangeKind::Remove, from)];
            change(group, changes, &connection).await
        }
        GroupVerb::Transfer {
            group,
            to,
            connection,
        } => transfer(group, to, &connection).await,
    }
}

async fn list(connection: &Connection) -> Result<(), Error> {
    let request = ListGroupsRequest { local: false };
    let client = connection.client()?;
    let answer = client
        .admin(
            true,
            request,
            |mut c, r| async move { c.list_groups(r).await },
        )
        .await?;
    let of_users = |group: &&Group| group.group < FIRST_OF_THE_SYSTEM;
    let (users, system): (Vec<&Group>, Vec<&Group>) = answer.groups.iter().partition(of_users);
    let each = |groups: Vec<&Group>| groups.into_iter().map(group_json).collect::<Vec<_>>();
    let json = json!({
        "groups": each(users),
        "system": each(system),
        "unreachable": answer.unreachable,
    });
    show(connection.output, &json, || {
        let head = [
            "GROUP", "START", "END", "STORES", "LEADER", "TERM", "COMMIT", "APPLIED", "STATE",
        ];
        let rows = answer.groups.iter().map(|group| {
            let (start, end) = bounds(group);
            [
                Named(group.group).to_string(),
                start,
                end,
                stores(group),
                leader(group),
                group.term.to_string(),
                group.commit_index.to_string(),
                group.applied_index.to_string(),
                if group.asleep { "asleep" } else { "awake" }.to_owned(),
            ]
        });
        let mut text = table(head, rows);
        if !answer.unreachable.is_empty() {
            text.push_str(&format!(
                "\nnot asked, since they cannot be reached: stores {:?}",
                answer.unreachable
            ));
        }
        text
    })
}

async fn describe(group: u64, local: bool, connection: &Connection) -> Result<(), Error> {
    let request = DescribeGroupRequest {
        group,
        local,
        key: None,
    };
    show_description(request, connection).await
}

/// One group as its leader, or the first endpoint, sees it.
pub(super) async fn show_description(
    request: DescribeGroupRequest,
    connection: &Connection,
) -> Result<(), Error> {
    let local = request.local;
    let client = connection.client()?;
    let d = client
        .admin(true, request, |mut c, r| async move {
            c.describe_group(r).await
        })
        .await
        .map_err(|failure| hint_at_local(failure, local))?;
    show(connection.output, &describe_json(&d), || describe_table(&d))
}

/// Without a leader there is still something to look at.
fn hint_at_local(failure: Failure, local: bool) -> Failure {
    let hint = "; --local shows what the store at the first of --endpoints holds";
    match failure.reason {
        Reason::NoQuorum | Reason::Timeout if !local => Failure {
            message: failure.message + hint,
            ..failure
        },
        _ => failure,
    }
}

fn describe_json(d: &DescribeGroupResponse) -> Value {
    let mut json = d.group.as_ref().map_or_else(|| json!({}), group_json);
    let followers = d.followers.iter().map(|f| {
        json!({
            "replica": f.replica, "store": f.store, "state": f.state,
            "match": f.match_index, "next": f.next_index,
            "inflight_messages": f.inflight_messages, "inflight_bytes": f.inflight_bytes,
            "recently_active": f.recently_active, "paused": f.paused, "learner": f.learner,
        })
    });
    let more = json!({
        "described_by_store": d.store, "role": d.role, "vote": d.vote,
        "truncated_index": d.truncated_index, "last_index": d.last_index, "last_term": d.last_term,
        "flushed_index": d.flushed_index, "cached_log_bytes": d.cached_log_bytes,
        "quarantined": (!d.quarantined.is_empty()).then_some(&d.quarantined),
        "transfer_target_store": d.transfer_target_store,
        "followers": followers.collect::<Vec<_>>(),
    });
    if let (Value::Object(json), Value::Object(more)) = (&mut json, more) {
        json.extend(more);
    }
    json
}

fn describe_table(d: &DescribeGroupResponse) -> String {
    let Some(group) = &d.group else {
        return String::new();
    };
    let (start, end) = bounds(group);
    let mut text = format!(
        "group {} as store {} ({}) sees it\n  range      {start} .. {end}\n  epoch      membership {}, range {}\n  \
         leader     {}   term {}   vote for replica {}\n  log        {}..{} (last term {}), {} bytes cached\n  \
         commit {}   applied {}   flushed {}\n",
        Named(group.group),
        d.store,
        d.role,
        group.membership_epoch,
        group.range_epoch,
        leader(group),
        group.term,
        d.vote,
        d.truncated_index + 1,
        d.last_index,
        d.last_term,
        d.cached_log_bytes,
        group.commit_index,
        group.applied_index,
        d.flushed_index,
    );
    if let Some(frozen) = group.frozen {
        let (into, index) = (frozen.into_group, frozen.index);
        text.push_str(&format!(
            "  FROZEN since entry {index}, to be merged into group {into}: it serves nobody meanwhile\n"
        ));
    }
    if !d.quarantined.is_empty() {
        text.push_str(&format!("  OUT OF SERVICE: {}\n", d.quarantined));
    }
    let head = [
        "REPLICA", "STORE", "ROLE", "STATE", "MATCH", "NEXT", "INFLIGHT", "ACTIVE",
    ];
    let rows = group.members.iter().map(|member| {
        let follower = d.followers.iter().find(|f| f.replica == member.replica);
        let of = |value: fn(&crate::proto::admin::Follower) -> String| {
            follower.map_or("-".to_owned(), value)
        };
        [
            member.replica.to_string(),
            member.store.to_string(),
            role(member.role()).to_owned(),
            of(|f| f.state.clone()),
            of(|f| f.match_index.to_string()),
            of(|f| f.next_index.to_string()),
            of(|f| format!("{} ({} B)", f.inflight_messages, f.inflight_bytes)),
            of(|f| if f.recently_active { "yes" } else { "no" }.to_owned()),
        ]
    });
    text.push_str(&table(head, rows));
    text
}

async fn create(stores: Vec<u64>, connection: &Connection) -> Result<(), Error> {
    let request = CreateGroupRequest { stores };
    let client = connection.client()?;
    let answer = client
        .admin(
            false,
            request,
            |mut c, r| async move { c.create_group(r).await },
        )
        .await?;
    let group = answer.group.unwrap_or_default();
    show(connection.output, &group_json(&group), || {
        format!("created group {}", group.group)
    })
}

async fn destroy(group: u64, force: bool, connection: &Connection) -> Result<(), Error> {
    let client = connection.client()?;
    let request = DestroyGroupRequest { group, force };
    let answer = client
        .admin(false, request, |mut c, r| async move {
            c.destroy_group(r).await
        })
        .await?;
    show(
        connection.output,
        &json!({ "group": group, "later": answer.later }),
        || match &answer.later[..] {
            [] => format!("destroyed group {group}"),
            later => {
                format!("destroyed group {group}; stores {later:?} follow when they can be reached")
            }
        },
    )
}

async fn change_one(kind: ChangeKind, member: OneMember) -> Result<(), Error> {
    change(member.group, vec![(kind, member.store)], &member.connection).await
}

async fn change(
    group: u64,
    changes: Vec<(ChangeKind, u64)>,
    connection: &Connection,
) -> Result<(), Error> {
    let client = connection.client()?;
    let changes = changes.into_iter().map(|(kind, store)| MemberChange {
        kind: kind.into(),
        store,
    });
    let request = ChangeMembersRequest {
        group,
        changes: changes.collect(),
    };
    let answer = client
        .admin(false, request, |mut c, r| async move {
            c.change_members(r).await
        })
        .await
        .map_err(|failure| hint_at_destroy(group, failure))?;
    let changed = answer.group.unwrap_or_default();
    show(connection.output, &group_json(&changed), || {
        format!(
            "group {} now has members on stores {}",
            Named(group),
            stores(&changed)
        )
    })
}

/// Who takes the last voter away wants the group to end.
fn hint_at_destroy(group: u64, failure: Failure) -> Failure {
    if !failure.message.contains("removed all voters") {
        return failure;
    }
    let message =
        format!("group {group} would have no voter left; `polyraft group destroy {group}` ends it");
    Failure { message, ..failure }
}

async fn transfer(group: u64, to: u64, connection: &Connection) -> Result<(), Error> {
    let client = connection.client()?;
    let request = TransferLeaderRequest {
        group,
        to_store: to,
    };
    let answer = client
        .admin(false, request, |mut c, r| async move {
            c.transfer_leader(r).await
        })
        .await?;
    let json = json!({ "group": group, "leader_store": answer.leader_store });
    show(connection.output, &json, || {
        format!(
            "group {} is handed to store {}",
            Named(group),
            answer.leader_store
        )
    })
}

pub(super) fn group_json(group: &Group) -> Value {
    let members = group.members.iter().map(|member| {
        json!({ "replica": member.replica, "store": member.store, "role": role(member.role()) })
    });
    json!({
        "group": group.group,
        "name": Named(group.group).to_string(),
        "start_hex": group.start.as_ref().map(|start| hex(start)),
        "end_hex": group.end.as_ref().map(|end| hex(end)),
        "members": members.collect::<Vec<_>>(),
        "epoch": { "membership": group.membership_epoch, "range": group.range_epoch },
        "leader_store": (group.leader_store != 0).then_some(group.leader_store),
        "term": group.term,
        "commit_index": group.commit_index,
        "applied_index": group.applied_index,
        "asleep": group.asleep,
        "frozen": group.frozen.map(|frozen| {
            json!({ "into_group": frozen.into_group, "index": frozen.index })
        }),
    })
}

pub(super) fn bounds(group: &Group) -> (String, String) {
    match &group.start {
        None => ("own keys".to_owned(), String::new()),
        Some(start) => (
            if start.is_empty() {
                "-inf".to_owned()
            } else {
                quoted(start)
            },
            group
                .end
                .as_ref()
                .map_or("+inf".to_owned(), |end| quoted(end)),
        ),
    }
}

/// The stores of the members; who is no simple voter is marked.
pub(super) fn stores(group: &Group) -> String {
    let mut members: Vec<_> = group.members.iter().collect();
    members.sort_unstable_by_key(|member| member.store);
    let text = members.into_iter().map(|member| match member.role() {
        MemberRole::Voter | MemberRole::Unspecified => member.store.to_string(),
        other => format!("{}({})", member.store, role(other)),
    });
    text.collect::<Vec<_>>().join(",")
}

pub(super) fn leader(group: &Group) -> String {
    match group.leader_store {
        0 => "none".to_owned(),
        store => format!("store {store}"),
    }
}

pub(super) fn role(role: MemberRole) -> &'static str {
    match role {
        MemberRole::Voter => "voter",
        MemberRole::Learner => "learner",
        MemberRole::Outgoing => "outgoing",
        MemberRole::Incoming => "incoming",
        MemberRole::Unspecified => "member",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_leader_there_is_still_something_to_look_at() {
        let hinted = |reason, local| {
            let failure = Failure::new(reason, "no");
            hint_at_local(failure, local).message.contains("--local")
        };
        assert!(hinted(Reason::NoQuorum, false));
        assert!(hinted(Reason::Timeout, false));
        assert!(!hinted(Reason::NoQuorum, true));
        assert!(!hinted(Reason::BadRequest, false));
    }
}
