//! From the host's types to those of the admin interface.

use bytes::Bytes;
use polyraft_core::{ConfState, ProgressState, ReplicaId, RoleName};
use polyraft_multiraft::{GroupDescriptor, GroupStatus, ReplicaSummary};

use crate::proto::admin::{DescribeGroupResponse, Follower, Frozen, Group, Member, MemberRole};

/// First key and the end of a group's range, as messages name them; none: it has no range, or no end.
pub(super) fn bounds(descriptor: &GroupDescriptor) -> (Option<Bytes>, Option<Bytes>) {
    match &descriptor.range {
        Some(range) => (Some(range.start.clone()), range.end.clone()),
        None => (None, None),
    }
}

/// A group from its descriptor alone.
pub(super) fn group(descriptor: &GroupDescriptor, conf_state: Option<&ConfState>) -> Group {
    let members = descriptor.members.iter().map(|member| Member {
        replica: member.replica.0,
        store: member.store.0,
        role: conf_state
            .map_or(MemberRole::Unspecified, |state| {
                role_of(state, member.replica)
            })
            .into(),
    });
    let (start, end) = bounds(descriptor);
    Group {
        group: descriptor.group.0,
        start,
        end,
        members: members.collect(),
        membership_epoch: descriptor.epoch.membership,
        range_epoch: descriptor.epoch.range,
        frozen: descriptor.frozen.map(|frozen| Frozen {
            into_group: frozen.into.0,
            index: frozen.at.index.0,
        }),
        ..Group::default()
    }
}

/// A group that was just created: all its members vote.
pub(super) fn all_voters(descriptor: &GroupDescriptor) -> Group {
    let voters = descriptor.members.iter().map(|member| member.replica);
    let state = ConfState {
        voters: voters.collect(),
        ..ConfState::default()
    };
    group(descriptor, Some(&state))
}

/// The same with what a replica of the store knows.
pub(super) fn replica(descriptor: &GroupDescriptor, summary: &ReplicaSummary) -> Group {
    Group {
        leader_store: summary.leader_store.map_or(0, |store| store.0),
        term: summary.basic.hard_state.term.0,
        commit_index: summary.basic.hard_state.commit.0,
        applied_index: summary.basic.applied.0,
        asleep: summary.asleep,
        ..group(descriptor, None)
    }
}

/// Adds to each member whether it votes.
pub(super) fn add_roles(group: &mut Group, state: &ConfState) {
    for member in &mut group.members {
        member.role = role_of(state, ReplicaId(member.replica)).into();
    }
}

pub(super) fn role_of(state: &ConfState, replica: ReplicaId) -> MemberRole {
    let joint = !state.voters_outgoing.is_empty();
    let (new, old) = (
        state.voters.contains(&replica),
        state.voters_outgoing.contains(&replica),
    );
    match (new, old) {
        (true, true) => MemberRole::Voter,
        (true, false) if joint => MemberRole::Incoming,
        (true, false) => MemberRole::Voter,
        (false, true) => MemberRole::Outgoing,
        (false, false) => MemberRole::Learner,
    }
}

/// Everything about a replica.
pub(super) fn described(status: &GroupStatus, me: u64) -> DescribeGroupResponse {
    let descriptor = &status.descriptor;
    let basic = &status.raft.basic;
    let store_of = |replica| descriptor.store_of(replica).map_or(0, |store| store.0);
    let followers = status.raft.progress.iter().map(|progress| Follower {
        replica: progress.id.0,
        store: store_of(progress.id),
        state: progress_name(progress.state).to_owned(),
        match_index: progress.matched.0,
        next_index: progress.next.0,
        inflight_messages: progress.inflight_messages as u64,
        inflight_bytes: progress.inflight_bytes,
        recently_active: progress.recently_active,
        paused: progress.paused,
        learner: progress.learner,
    });
    DescribeGroupResponse {
        group: Some(Group {
            leader_store: store_of(basic.soft_state.leader),
            term: basic.hard_state.term.0,
            commit_index: basic.hard_state.commit.0,
            applied_index: basic.applied.0,
            asleep: status.asleep,
            ..group(descriptor, Some(&status.raft.conf_state))
        }),
        store: me,
        role: role_name(basic.soft_state.role).to_owned(),
        vote: basic.hard_state.vote.0,
        truncated_index: status.truncated.index.0,
        last_index: status.last.index.0,
        last_term: status.last.term.0,
        flushed_index: status.flushed.0,
        cached_log_bytes: status.cached_log_bytes,
        quarantined: status.quarantined.clone().unwrap_or_default(),
        transfer_target_store: store_of(basic.transfer_target),
        followers: followers.collect(),
    }
}

fn progress_name(state: ProgressState) -> &'static str {
    match state {
        ProgressState::Probe => "probe",
        ProgressState::Replicate => "replicate",
        ProgressState::Snapshot(_) => "snapshot",
    }
}

fn role_name(role: RoleName) -> &'static str {
    match role {
        RoleName::Follower => "follower",
        RoleName::PreCandidate => "pre-candidate",
        RoleName::Candidate => "candidate",
        RoleName::Leader => "leader",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_in_simple_and_joint_configurations() {
        let ids = |ids: &[u64]| ids.iter().copied().map(ReplicaId).collect::<Vec<_>>();
        let simple = ConfState {
            voters: ids(&[1, 2]),
            learners: ids(&[3]),
            ..ConfState::default()
        };
        let joint = ConfState {
            voters: ids(&[1, 4]),
            voters_outgoing: ids(&[1, 2]),
            learners: ids(&[3]),
            learners_next: ids(&[2]),
            ..ConfState::default()
        };
        let roles = |state: &ConfState| [1, 2, 3, 4].map(|id| role_of(state, ReplicaId(id)));
        use MemberRole::{Incoming, Learner, Outgoing, Voter};
        assert_eq!(roles(&simple)[..3], [Voter, Voter, Learner]);
        assert_eq!(roles(&joint), [Voter, Outgoing, Learner, Incoming]);
    }
}
