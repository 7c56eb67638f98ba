//! A voter moves from one store to another: a learner is added and catches up, gets its vote in the
//! same change in which the old member loses its, and that is removed.
//!
//! Nothing is kept of a move but in the group itself: what its leader says decides what is next, so any
//! store may go on with what another one began.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::failure::{Effect, Failure, Reason};
use crate::proto::admin::{
    ChangeKind, ChangeMembersRequest, DescribeGroupRequest, DescribeGroupResponse, Member,
    MemberChange, MemberRole, MovePhase, MoveReplicaRequest, MoveReplicaResponse,
};
use crate::routing::Call;
use crate::server::Server;

/// A learner that lacks so many entries has caught up: it gets the rest while its vote is decided on.
const CATCH_UP_ENTRIES: u64 = 128;
/// How long one call goes on without anything to tell.
const TELL_AFTER: Duration = Duration::from_secs(1);
/// Pause between two looks at the group.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What is next.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Next {
    AddLearner,
    /// Until the learner has what the leader has.
    CatchUp,
    /// Until a change under way is over.
    Settle,
    Swap,
    Remove,
    Done,
    Refused(String),
}

impl Server {
    /// `MoveReplica` as any store answers it.
    pub(super) async fn move_replica(
        &self,
        request: MoveReplicaRequest,
        call: Call,
    ) -> Result<MoveReplicaResponse, Failure> {
        let MoveReplicaRequest {
            group,
            from_store: from,
            to_store: to,
        } = request;
        self.check_move(from, to)?;
        let until = Instant::now() + TELL_AFTER;
        let mut told = None;
        let mut failed = None;
        loop {
            let seen = self.describe(leader_of(group), as_read(call)).await?;
            let next = next(&seen, from, to);
            let answer = self.progress(&seen, &next, to)?;
            let phase = *told.get_or_insert(answer.phase);
            let over = next == Next::Done || phase != answer.phase;
            if over || Instant::now() >= until.min(call.deadline) {
                return failed.filter(|_| !over).map_or(Ok(answer), Err);
            }
            let done = self.take_step(group, &next, from, to, call).await;
            if let Err(failure) = done {
                // Others may change the group at the same time; what is now is looked at again.
                if matches!(failure.reason, Reason::BadRequest | Reason::NotInitialised) {
                    return Err(failure);
                }
                let effect = Effect::None;
                failed = Some(Failure { effect, ..failure });
            } else {
                failed = None;
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    fn check_move(&self, from: u64, to: u64) -> Result<(), Failure> {
        let bad = |text: String| Err(Failure::new(Reason::BadRequest, text));
        if from == to || from == 0 || to == 0 {
            return bad("name two different stores".to_owned());
        }
        if self.peers.address(to).is_none() {
            return bad(format!("store {to} is not known: start it first"));
        }
        Ok(())
    }

    async fn take_step(
        &self,
        group: u64,
        next: &Next,
        from: u64,
        to: u64,
        call: Call,
    ) -> Result<(), Failure> {
        let change = |kind: ChangeKind, store| MemberChange {
            kind: kind.into(),
            store,
        };
        let changes = match next {
            Next::AddLearner => vec![change(ChangeKind::AddLearner, to)],
            Next::Swap => vec![
                change(ChangeKind::AddVoter, to),
                change(ChangeKind::Remove, from),
            ],
            Next::Remove => vec![change(ChangeKind::Remove, from)],
            Next::CatchUp | Next::Settle | Next::Done | Next::Refused(_) => return Ok(()),
        };
        tracing::info!(group, from, to, ?next, "a replica moves");
        let request = ChangeMembersRequest { group, changes };
        self.change_members(request, call).await.map(drop)
    }

    fn progress(
        &self,
        seen: &DescribeGroupResponse,
        next: &Next,
        to: u64,
    ) -> Result<MoveReplicaResponse, Failure> {
        let (phase, waits_for) = match next {
            Next::AddLearner => (MovePhase::Adding, String::new()),
            Next::CatchUp => (MovePhase::CatchingUp, self.waits_for(seen, to)),
            Next::Settle | Next::Swap => (MovePhase::Swapping, String::new()),
            Next::Remove => (MovePhase::Removing, String::new()),
            Next::Done => (MovePhase::Done, String::new()),
            Next::Refused(why) => return Err(Failure::new(Reason::Refused, why.clone())),
        };
        let follower = seen.followers.iter().find(|it| it.store == to);
        Ok(MoveReplicaResponse {
            phase: phase.into(),
            match_index: follower.map_or(0, |it| it.match_index),
            last_index: seen.last_index,
            waits_for,
        })
    }

    fn waits_for(&self, seen: &DescribeGroupResponse, to: u64) -> String {
        let heard = to == self.me || self.peers.connected().contains(&to);
        let follower = seen.followers.iter().find(|it| it.store == to);
        match follower.map(|it| &*it.state) {
            _ if !heard => format!("store {to}, which cannot be heard"),
            Some("snapshot") => "a snapshot".to_owned(),
            _ => String::new(),
        }
    }
}

fn leader_of(group: u64) -> DescribeGroupRequest {
    DescribeGroupRequest {
        group,
        ..DescribeGroupRequest::default()
    }
}

fn as_read(call: Call) -> Call {
    Call {
        reads: true,
        ..call
    }
}

/// What is next, as the group's leader sees it.
fn next(seen: &DescribeGroupResponse, from: u64, to: u64) -> Next {
    use MemberRole::{Incoming, Learner, Outgoing, Voter};
    let members = seen.group.as_ref().map_or(&[][..], |group| &group.members);
    let role = |store| {
        let member = members.iter().find(|member| member.store == store);
        member.map(Member::role)
    };
    let joint = |member: &Member| matches!(member.role(), Incoming | Outgoing);
    if members.iter().any(joint) {
        return Next::Settle;
    }
    let group = seen.group.as_ref().map_or(0, |group| group.group);
    match (role(to), role(from)) {
        (Some(Voter), None) => Next::Done,
        (Some(Voter), Some(Learner)) => Next::Remove,
        (Some(Voter), Some(_)) => Next::Refused(format!(
            "store {to} has a voter of group {group} already, so that the group would only shrink: \
             `polyraft group remove {group} --store {from}` if that is meant"
        )),
        (_, None) => Next::Refused(format!("store {from} has no replica of group {group}")),
        (_, Some(Learner)) => Next::Refused(format!(
            "store {from} has a learner of group {group}, which has no vote to move: \
             `polyraft group add-learner` and `remove` do that"
        )),
        (None, Some(_)) => Next::AddLearner,
        (Some(_), Some(_)) if has_caught_up(seen, to) => Next::Swap,
        (Some(_), Some(_)) => Next::CatchUp,
    }
}

fn has_caught_up(seen: &DescribeGroupResponse, to: u64) -> bool {
    let follower = seen.followers.iter().find(|it| it.store == to);
    follower.is_some_and(|it| {
        let near = it.match_index.saturating_add(CATCH_UP_ENTRIES) >= seen.last_index;
        it.state == "replicate" && it.match_index > 0 && near
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::admin::{Follower, Group};

    fn seen(members: &[(u64, MemberRole)], matched: u64, state: &str) -> DescribeGroupResponse {
        let each = members.iter().map(|(store, role)| Member {
            replica: *store,
            store: *store,
            role: (*role).into(),
        });
        DescribeGroupResponse {
            group: Some(Group {
                group: 7,
                members: each.collect(),
                ..Group::default()
            }),
            last_index: 1000,
            followers: vec![Follower {
                store: 4,
                match_index: matched,
                state: state.to_owned(),
                ..Follower::default()
            }],
            ..DescribeGroupResponse::default()
        }
    }

    #[test]
    fn each_state_of_the_group_says_what_is_next() {
        use MemberRole::{Incoming, Learner, Outgoing, Voter};
        let begun = [(1, Voter), (2, Voter), (3, Voter)];
        assert_eq!(next(&seen(&begun, 0, ""), 3, 4), Next::AddLearner);
        let added = [(1, Voter), (2, Voter), (3, Voter), (4, Learner)];
        assert_eq!(next(&seen(&added, 0, "probe"), 3, 4), Next::CatchUp);
        assert_eq!(next(&seen(&added, 990, "snapshot"), 3, 4), Next::CatchUp);
        assert_eq!(next(&seen(&added, 100, "replicate"), 3, 4), Next::CatchUp);
        assert_eq!(next(&seen(&added, 990, "replicate"), 3, 4), Next::Swap);
        let joint = [(1, Voter), (2, Voter), (3, Outgoing), (4, Incoming)];
        assert_eq!(next(&seen(&joint, 1000, "replicate"), 3, 4), Next::Settle);
        let swapped = [(1, Voter), (2, Voter), (3, Learner), (4, Voter)];
        assert_eq!(next(&seen(&swapped, 1000, "replicate"), 3, 4), Next::Remove);
        let moved = [(1, Voter), (2, Voter), (4, Voter)];
        assert_eq!(next(&seen(&moved, 1000, "replicate"), 3, 4), Next::Done);
    }

    #[test]
    fn what_would_cost_a_vote_is_refused() {
        use MemberRole::{Learner, Voter};
        let refused = |members: &[(u64, MemberRole)], from, to| match next(
            &seen(members, 1000, "replicate"),
            from,
            to,
        ) {
            Next::Refused(why) => why,
            other => panic!("{other:?}"),
        };
        let all = [(1, Voter), (2, Voter), (3, Voter), (4, Learner)];
        assert!(refused(&all, 1, 2).contains("only shrink"));
        assert!(refused(&all, 5, 4).contains("no replica"));
        assert!(refused(&all, 4, 5).contains("no vote to move"));
    }
}
