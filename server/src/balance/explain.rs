//! The dry run: what would be decided now, from what the directory and the stores say.
//!
//! Sizes of ranges are not known to anybody yet, so nothing is split or merged for its size.

use super::decide::{Action, Decision, GroupView, StoreView, View, decide};
use super::{SETTLED_SECONDS, TRANSFERS};
use crate::directory::entry::{Limits, StoreState};
use crate::failure::Failure;
use crate::proto::admin::StoreStatus;
use crate::proto::directory::{
    self as proto, DecisionKind, DescribeRequest, Entry, ExplainResponse, ListGroupsRequest, Store,
};
use crate::routing::Call;
use crate::server::{Server, futures_join, status_of};

/// Groups asked for at once.
const PAGE: u32 = 1000;

impl Server {
    /// What should be done now.
    pub(crate) async fn explain_balance(&self, call: Call) -> Result<ExplainResponse, Failure> {
        let stale = false;
        let cluster = self
            .describe_directory(DescribeRequest { stale }, call)
            .await?;
        let (mut groups, mut from) = (Vec::new(), 1);
        while from != 0 {
            let limit = PAGE;
            let request = ListGroupsRequest { from, limit, stale };
            let page = self.groups_of_directory(request, call).await?;
            groups.extend(page.groups.into_iter().map(group_view));
            from = page.next;
        }
        let others = cluster.stores.iter().filter(|store| store.store != self.me);
        let asked = others.map(|store| status_of(&self.peers, store.store));
        let mut statuses = futures_join(asked).await;
        statuses.push(self.status_here());
        let stores = cluster
            .stores
            .iter()
            .map(|store| store_view(store, &statuses));
        let view = View {
            limits: cluster.limits.map_or_else(Limits::default, limits),
            stores: stores.collect(),
            groups,
        };
        let decisions = decide(&view).into_iter().map(proto::Decision::from);
        Ok(ExplainResponse {
            decisions: decisions.collect(),
        })
    }
}

fn group_view(entry: Entry) -> GroupView {
    let end = entry.end;
    GroupView {
        group: entry.group,
        range: entry
            .start
            .map(|start| polyraft_multiraft::KeyRange { start, end }),
        stores: entry.members.iter().map(|member| member.store).collect(),
        leader: entry.leader_store,
        bytes: None,
        changes: entry.frozen_into != 0,
    }
}

fn store_view(store: &Store, statuses: &[StoreStatus]) -> StoreView {
    let status = statuses.iter().find(|status| status.store == store.store);
    let status = status.filter(|status| status.error.is_empty());
    let settled = |status: &StoreStatus| {
        !status.draining && !status.disk_full && status.uptime_seconds >= SETTLED_SECONDS
    };
    StoreView {
        store: store.store,
        state: match store.state() {
            proto::StoreState::Decommissioning => StoreState::Decommissioning,
            proto::StoreState::Dead => StoreState::Dead,
            proto::StoreState::Up | proto::StoreState::Unspecified => StoreState::Up,
        },
        heard: store.silent_since == 0 && status.is_some(),
        takes: status.is_some_and(settled),
    }
}

fn limits(limits: proto::Limits) -> Limits {
    Limits {
        dead_after: limits.dead_after,
        moves: limits.moves,
        moves_of_a_store: limits.moves_of_a_store,
        range_changes: limits.range_changes,
        transfers: limits.transfers.min(TRANSFERS as u64),
        range_bytes_max: limits.range_bytes_max,
        range_bytes_min: limits.range_bytes_min,
    }
}

impl From<Decision> for proto::Decision {
    fn from(decision: Decision) -> Self {
        let of = |kind: DecisionKind, group, from_store, to_store| Self {
            kind: kind.into(),
            group,
            from_store,
            to_store,
            ..Self::default()
        };
        let action = match decision.action {
            Action::Move { group, from, to } => of(DecisionKind::Move, group, from, to),
            Action::Transfer { group, from, to } => of(DecisionKind::Transfer, group, from, to),
            Action::Split { group } => of(DecisionKind::Split, group, 0, 0),
            Action::Merge { left, right } => Self {
                right_group: right,
                ..of(DecisionKind::Merge, left, 0, 0)
            },
            Action::Blocked { group } => of(DecisionKind::Blocked, group, 0, 0),
        };
        Self {
            why: decision.why,
            ..action
        }
    }
}
