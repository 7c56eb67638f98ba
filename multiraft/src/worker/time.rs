//! Ticks of awake groups, sleep and wake, and truncation behind what is durable.
//!
//! A leader whose group has nothing to do says so with its last heartbeat and is not ticked any more;
//! a follower that has everything does the same. Safe, because sleep only leaves out ticks: a reader
//! still needs a round of heartbeats, a candidate still needs votes. Live, because whatever comes in
//! wakes the group, and so does the news that a store went or came.

use polyraft_core::{Index, Message, Payload, ReplicaId, Term, planted};

use super::admin::is_settled;
use super::messages::tell_gone;
use super::{Worker, followers};
use crate::config::HostConfig;
use crate::effects::{Effects, LaneKey, WriteItem};
use crate::env::{Body, GroupMessage, LogSection};
use crate::error::Reject;
use crate::group::{GroupId, Member, StoreId};
use crate::replica::Replica;

impl Worker {
    pub(super) fn tick(&mut self, effects: &mut Effects) {
        let mut groups: Vec<GroupId> = self.awake.iter().copied().collect();
        groups.sort_unstable();
        for group in groups {
            self.tick_group(group, effects);
        }
    }

    fn tick_group(&mut self, group: GroupId, effects: &mut Effects) {
        let (limit, sleep_after) = (
            self.config.election_ticks * 2,
            self.config.sleep_after_ticks,
        );
        let Some(replica) = self.replicas.get_mut(&group) else {
            return;
        };
        if replica.is_installing() {
            return;
        }
        if !replica.ranges.held.is_empty() {
            // What it waits for may be another group's.
            replica.touch(&mut self.touched);
        }
        give_up_orphans(replica, limit);
        followers::tick(replica);
        end_failed_transfers(replica);
        speak_up(replica, limit * 2, effects);
        if sleep_after > 0 && may_sleep(replica) {
            replica.idle_ticks += 1;
            if replica.idle_ticks >= sleep_after {
                send_to_sleep(replica, effects);
                self.awake.remove(&group);
                self.touch(group);
                return;
            }
        } else if replica.leads() {
            replica.idle_ticks = 0;
        }
        let result = replica.node.tick();
        // Most ticks of a busy group give rise to nothing.
        if replica.node.has_ready() {
            replica.touch(&mut self.touched);
        }
        if let Err(error) = result {
            self.quarantine(group, &error.to_string());
        }
    }

    /// A store is heard again that may have missed what was said meanwhile, and a group that sleeps
    /// repeats nothing: a replica that was removed in its sleep would sleep on for ever, and keep its range
    /// from others. So those who know of its removal tell it, and sleepers show themselves, which wakes
    /// nobody.
    pub(super) fn greet(&self, store: StoreId, effects: &mut Effects) {
        let mut replicas: Vec<&Replica> = self.replicas.values().map(Box::as_ref).collect();
        replicas.sort_unstable_by_key(|replica| replica.group);
        for replica in replicas {
            if replica.quarantined.is_some() || replica.is_installing() {
                continue;
            }
            let lowest = replica.descriptor.lowest_on(store);
            for gone in replica.departed.iter().filter(|gone| gone.store == store) {
                tell_gone(replica.group, store, gone.replica, lowest, effects);
            }
            if !replica.asleep || replica.leads() {
                continue;
            }
            let there = |member: &&Member| member.store == store && member.replica != replica.id;
            for member in replica.routes.iter().filter(there) {
                let message = Message {
                    from: replica.id,
                    to: member.replica,
                    term: replica.node.term(),
                    payload: Payload::HeartbeatResponse { read: 0 },
                };
                let (group, body) = (replica.group, Body::Raft(message));
                effects.send(store, LaneKey::Control, GroupMessage { group, body });
            }
        }
    }

    /// Groups that have a member on a store that went or came look around.
    pub(super) fn on_store_change(&mut self, store: StoreId) {
        let concerns = |replica: &Replica| {
            let leader = replica.leader_member();
            replica.leads() && replica.descriptor.replica_on(store).is_some()
                || leader.is_none_or(|leader| leader.store == store)
        };
        let mut groups: Vec<GroupId> = self
            .replicas
            .values()
            .filter(|r| concerns(r))
            .map(|r| r.group)
            .collect();
        groups.sort_unstable();
        for group in groups {
            self.wake(group);
        }
    }

    /// What is durable in the state machine need not be in the log, but for followers that lag a
    /// little.
    pub(super) fn on_flushed(
        &mut self,
        indexes: &[(GroupId, ReplicaId, Index)],
        effects: &mut Effects,
    ) {
        for &(group, id, flushed) in indexes {
            let Some(replica) = self.replicas.get_mut(&group) else {
                continue;
            };
            // The flush may have taken longer than the replica lived of which it speaks.
            if replica.id != id || replica.quarantined.is_some() || replica.is_installing() {
                continue;
            }
            replica.flushed = replica.flushed.max(flushed.min(replica.applied()));
            let Some(to) = truncation_point(replica, &self.config) else {
                continue;
            };
            let Some(truncate) = replica.node.storage_mut().truncate(to) else {
                continue;
            };
            let section = LogSection {
                group,
                truncate: Some(truncate),
                ..LogSection::default()
            };
            effects.writes.push(WriteItem {
                worker: self.index,
                replica: replica.id,
                section,
                sync: false,
                append: None,
                routes: std::sync::Arc::clone(&replica.routes),
                created: None,
                destroyed: None,
            });
            self.touch(group);
        }
    }
}

/// A leader knows what its followers have; a sleeping group has everything everywhere; any other
/// replica keeps a tail, in case it is to lead. What a follower is going to need behind a snapshot is kept.
fn truncation_point(replica: &mut Replica, config: &HostConfig) -> Option<Index> {
    let keep = config.truncate_keep_entries;
    let tail = Index(replica.node.last_index().0.saturating_sub(keep));
    let needed = if replica.asleep {
        replica.node.last_index()
    } else {
        match replica.node.matched_by_all() {
            Some(matched) => matched.max(tail),
            None if replica.leads() => replica.node.last_index(),
            None => tail,
        }
    };
    let to = if planted!(TruncatedPastApplied) {
        needed.min(replica.node.committed())
    } else {
        needed.min(replica.flushed)
    };
    let truncated = replica.node.storage().truncated().index;
    if to <= truncated {
        return None;
    }
    let behind = followers::awaited(replica, config).behind;
    let to = behind.map_or(to, |behind| to.min(behind));
    (to > truncated).then_some(to)
}

fn may_sleep(replica: &Replica) -> bool {
    let last = replica.node.last_index();
    replica.leads()
        && is_settled(replica)
        && !replica.has_work()
        && replica.node.applied() == last
        && replica.node.committed() == last
        && replica
            .node
            .matched_by_all()
            .is_none_or(|matched| matched == last)
}

fn send_to_sleep(replica: &mut Replica, effects: &mut Effects) {
    replica.asleep = true;
    let (id, term, commit) = (replica.id, replica.node.term(), replica.node.committed());
    for member in replica
        .descriptor
        .members
        .iter()
        .filter(|member| member.replica != id)
    {
        let payload = Payload::Heartbeat { commit, read: 0 };
        let message = Message {
            from: id,
            to: member.replica,
            term,
            payload,
        };
        let body = Body::Sleep(message);
        effects.send(
            member.store,
            LaneKey::Control,
            GroupMessage {
                group: replica.group,
                body,
            },
        );
    }
}

/// Proposals of a leadership that is over are decided by the next leader; after two election timeouts
/// without word of it, whoever waits is told that nobody knows. That next leader may be this replica, after
/// another one has cut the proposals off its log: then they are not in it when all of it is applied.
fn give_up_orphans(replica: &mut Replica, limit: u32) {
    let asked = !replica.ranges.asked.is_empty();
    if replica.proposals.is_empty() && replica.changes.is_empty() && !asked {
        replica.orphan_ticks = 0;
        return;
    }
    if replica.leads() {
        replica.orphan_ticks = 0;
        if replica.node.applied() == replica.node.last_index() && !planted!(OrphansNeverAnswered) {
            replica.proposals.cut_off();
            replica.ranges.give_up();
            for change in replica.changes.extract_if(.., |change| !change.applied) {
                change.respond.answer(Err(Reject::Ambiguous));
            }
        }
        return;
    }
    replica.orphan_ticks += 1;
    if replica.orphan_ticks > limit && !planted!(OrphansNeverAnswered) {
        replica.proposals.give_up();
        replica.ranges.give_up();
        for change in replica.changes.drain(..) {
            change.respond.answer(Err(Reject::Ambiguous));
        }
    }
}

/// A voter that hears nothing campaigns, and is told if it is none any more. Others never speak up by
/// themselves, so who missed its removal would stay for ever, and its range with it; and who missed the
/// last heartbeat of a leader that sleeps would never hear of the last commit. Such a replica repeats what it
/// has, which is true whoever hears it: what is committed is in the log of every leader to come.
fn speak_up(replica: &mut Replica, after: u32, effects: &mut Effects) {
    replica.silent_ticks = replica.silent_ticks.saturating_add(1);
    // What it says must be durable.
    if replica.silent_ticks < after || replica.leads() || replica.writes_in_flight > 0 {
        return;
    }
    replica.silent_ticks = 0;
    let (id, group, term) = (replica.id, replica.group, replica.node.term());
    let voters = replica.node.status().conf_state.voters;
    if voters.contains(&id) {
        return;
    }
    // One that a trial vote made is in no term yet, and has nothing: it says no more than that it is here.
    let (term, payload) = match term {
        Term(0) => (Term(1), Payload::HeartbeatResponse { read: 0 }),
        term => {
            let index = replica.node.committed();
            let reject = None;
            (term, Payload::AppendResponse { index, reject })
        }
    };
    for member in replica.routes.iter().filter(|member| member.replica != id) {
        let message = Message {
            from: id,
            to: member.replica,
            term,
            payload: payload.clone(),
        };
        let body = Body::Raft(message);
        effects.send(member.store, LaneKey::Control, GroupMessage { group, body });
    }
}

/// The core gives a transfer up after an election timeout.
fn end_failed_transfers(replica: &mut Replica) {
    let running = !replica.node.basic_status().transfer_target.is_none();
    if replica.leads() && !running {
        for transfer in replica.transfers.drain(..) {
            let why = "the target did not take over within an election timeout";
            transfer.answer(Err(Reject::Refused(why.to_owned())));
        }
    }
}
