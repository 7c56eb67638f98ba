//! What only a leader has, its clock, proposals, and answers of its followers.

use alloc::vec::Vec;

use super::follower::check_acknowledged;
use super::reads::ReadQueue;
use super::{Raft, Role, internal};
use crate::entry::{Entry, EntryKind};
use crate::error::{Error, ProposeError, StepError};
use crate::event::{ConfChangeRefusal, Event};
use crate::membership::{ConfChange, ConfChangeV2, Configuration};
use crate::message::{Message, Payload, RejectHint};
use crate::planted;
use crate::progress::{Feed, Progress};
use crate::quorum::VoteResult;
use crate::storage::Storage;
use crate::types::{EntryId, Index, ReplicaId};

/// The data that exists only while this replica leads.
#[derive(Debug)]
pub(crate) struct Leader {
    /// All members, also this replica, ascending by id.
    pub(crate) progress: Vec<Progress>,
    pub(crate) reads: ReadQueue,
    /// The target of a running transfer.
    pub(crate) transferee: Option<ReplicaId>,
    /// The last index that may hold a change of membership which is not applied yet.
    pub(crate) pending_conf_index: Index,
    /// The last entry for the host that was proposed in this term.
    host_index: Index,
    /// Payload bytes proposed in this term and not known to be applied.
    pub(crate) uncommitted_bytes: u64,
    heartbeat_elapsed: u32,
}

impl Leader {
    pub(super) fn new(id: ReplicaId, config: &Configuration, last: Index) -> Self {
        let progress = config
            .members()
            .into_iter()
            .map(|member| {
                let mut progress = Progress::new(member, last.next(), false);
                if member == id {
                    progress.matched = last;
                    progress.become_replicate();
                    progress.recently_active = true;
                }
                progress
            })
            .collect();
        Self {
            progress,
            reads: ReadQueue::default(),
            transferee: None,
            // Anything in the log may be a change that is not applied yet: better to wait for it
            // than to scan for it.
            pending_conf_index: last,
            host_index: Index(0),
            uncommitted_bytes: 0,
            heartbeat_elapsed: 0,
        }
    }

    pub(crate) fn progress(&self, id: ReplicaId) -> Option<&Progress> {
        self.progress.iter().find(|progress| progress.id == id)
    }

    pub(crate) fn progress_mut(&mut self, id: ReplicaId) -> Option<&mut Progress> {
        self.progress.iter_mut().find(|progress| progress.id == id)
    }
}

impl<S: Storage> Raft<S> {
    pub(crate) fn leader_data(&self) -> Option<&Leader> {
        match &self.role {
            Role::Leader(leader) => Some(leader),
            Role::Follower | Role::PreCandidate(_) | Role::Candidate(_) => None,
        }
    }

    pub(crate) fn leader_data_mut(&mut self) -> Option<&mut Leader> {
        match &mut self.role {
            Role::Leader(leader) => Some(leader),
            Role::Follower | Role::PreCandidate(_) | Role::Candidate(_) => None,
        }
    }

    pub(super) fn tick_leader(&mut self) -> Result<(), Error> {
        self.election_elapsed += 1;
        if self.election_elapsed >= self.params.election_ticks {
            self.election_elapsed = 0;
            if self.params.check_quorum && !self.check_quorum() {
                return Ok(());
            }
            // A target that could not take over within an election timeout will not.
            let gave_up = self
                .leader_data_mut()
                .and_then(|leader| leader.transferee.take());
            if gave_up.is_some() {
                // The transfer may have stood in the way of leaving a joint configuration, and there
                // may be no further entry whose application would try again.
                self.leave_joint_if_due(self.log.applied())?;
            }
        }
        let every = self.params.heartbeat_ticks;
        let Some(leader) = self.leader_data_mut() else {
            return Ok(());
        };
        leader.heartbeat_elapsed += 1;
        if leader.heartbeat_elapsed >= every {
            leader.heartbeat_elapsed = 0;
            self.broadcast_heartbeat();
        }
        Ok(())
    }

    /// Steps down if no quorum of voters was heard of since the last look. Returns whether this
    /// replica still leads.
    fn check_quorum(&mut self) -> bool {
        let (id, config) = (self.id, &self.config);
        let Role::Leader(leader) = &mut self.role else {
            return false;
        };
        let heard = |id| Some(leader.progress(id).is_some_and(|p| p.recently_active));
        let active = config.tally(heard) == VoteResult::Won;
        if !active {
            self.events.push(Event::SteppedDownWithoutQuorum);
            self.become_follower(self.term, ReplicaId::NONE);
            return false;
        }
        for progress in leader
            .progress
            .iter_mut()
            .filter(|progress| progress.id != id)
        {
            progress.recently_active = false;
        }
        true
    }

    pub(super) fn step_leader(&mut self, message: Message) -> Result<(), StepError> {
        let from = message.from;
        match message.payload {
            Payload::Propose { entries } => self.propose_as_leader(entries).map_err(Into::into),
            Payload::ReadIndex { context } => {
                self.read_index_as_leader(from, context).map_err(internal)
            }
            // Two leaders of one term cannot be; whoever says so is broken, or lost its disk.
            Payload::Append { .. } | Payload::Heartbeat { .. } | Payload::Snapshot(_) => {
                Err(StepError::Malformed {
                    from,
                    reason: "another leader of the same term",
                })
            }
            Payload::AppendResponse { index, reject } => {
                check_acknowledged(&message, self.log.last_index())?;
                self.on_append_response(from, index, reject)
                    .map_err(internal)
            }
            Payload::HeartbeatResponse { read } => {
                self.on_heartbeat_response(from, read).map_err(internal)
            }
            Payload::TransferLeader => self.start_transfer(from).map_err(internal),
            // Late answers to the election, or nothing that a leader is told.
            Payload::ReadIndexResponse { .. }
            | Payload::TimeoutNow
            | Payload::Vote { .. }
            | Payload::VoteResponse { .. } => Ok(()),
        }
    }

    // Proposals.

    pub(crate) fn propose_as_leader(
        &mut self,
        mut entries: Vec<Entry>,
    ) -> Result<(), ProposeError> {
        let (last, applied) = (self.log.last_index(), self.log.applied());
        let validate = self.params.validate_conf_changes;
        let member = self.is_member(self.id);
        let Role::Leader(leader) = &mut self.role else {
            return Err(ProposeError::Dropped);
        };
        // A leader that is removed and has not stepped down must not add anything.
        if !member || leader.transferee.is_some() || entries.is_empty() {
            return Err(ProposeError::Dropped);
        }
        let (mut pending, mut host) = (leader.pending_conf_index, leader.host_index);
        for (at, entry) in entries.iter_mut().enumerate() {
            if entry.kind == EntryKind::Host {
                host = last.plus(at as u64 + 1);
            }
            let Some(change) = decode_change(entry)? else {
                continue;
            };
            let refusal = refuse_change(&change, &self.config, pending, applied);
            match refusal {
                Some(reason) if validate => {
                    self.events.push(Event::ConfChangeIgnored {
                        change,
                        kind: entry.kind,
                        config: self.config.clone(),
                        reason,
                    });
                    *entry = Entry::default();
                }
                _ => pending = last.plus(at as u64 + 1),
            }
        }
        if !self.append_as_leader(entries).map_err(proposal)? {
            return Err(ProposeError::UncommittedLimit);
        }
        // Only now: what was dropped must not stand in the way of the next change.
        if let Some(leader) = self.leader_data_mut() {
            leader.pending_conf_index = pending;
            leader.host_index = host;
        }
        self.broadcast_append().map_err(proposal)
    }

    /// Gives entries their place in the log. False: the uncommitted tail is at its limit.
    pub(super) fn append_as_leader(&mut self, mut entries: Vec<Entry>) -> Result<bool, Error> {
        let bytes: u64 = entries.iter().map(|entry| entry.data.len() as u64).sum();
        let limit = self.params.max_uncommitted_bytes;
        let Role::Leader(leader) = &mut self.role else {
            return Err(Error::Invariant("only a leader appends"));
        };
        let before = leader.uncommitted_bytes;
        // Empty payloads always pass (a new leader's entry, the way out of a joint configuration), and
        // so does one that is larger than the limit if it is alone.
        if before > 0 && bytes > 0 && before + bytes > limit {
            self.events.push(Event::ProposalLimit {
                uncommitted: before,
            });
            return Ok(false);
        }
        leader.uncommitted_bytes += bytes;
        let mut index = self.log.last_index();
        for entry in &mut entries {
            index = index.next();
            entry.term = self.term;
            entry.index = index;
        }
        self.log.append(entries, &mut self.events)?;
        // The leader counts itself when its own write is durable, like everybody else.
        self.send(
            self.id,
            Payload::AppendResponse {
                index,
                reject: None,
            },
        );
        Ok(true)
    }

    /// Payload of applied entries counts no longer. May have been proposed in an earlier term, so
    /// the sum is only a lower bound of what waits.
    pub(crate) fn reduce_uncommitted(&mut self, bytes: u64) {
        if let Some(leader) = self.leader_data_mut() {
            leader.uncommitted_bytes = leader.uncommitted_bytes.saturating_sub(bytes);
        }
    }

    // Answers.

    fn on_append_response(
        &mut self,
        from: ReplicaId,
        index: Index,
        reject: Option<RejectHint>,
    ) -> Result<(), Error> {
        match reject {
            Some(hint) => self.on_rejection(from, index, hint),
            None => self.on_acknowledged(from, index),
        }
    }

    fn on_rejection(
        &mut self,
        from: ReplicaId,
        index: Index,
        hint: RejectHint,
    ) -> Result<(), Error> {
        let Some(progress) = self
            .leader_data_mut()
            .and_then(|leader| leader.progress_mut(from))
        else {
            return Ok(());
        };
        progress.recently_active = true;
        let hint = EntryId {
            term: hint.term,
            index: hint.index,
        };
        self.events
            .push(Event::RejectionReceived { from, index, hint });
        let mut probe = hint.index;
        if hint.term.0 > 0 {
            // Everything of a later term than the hint's cannot be what the follower has there.
            probe = self.log.find_conflict_by_term(hint.index, hint.term).index;
        }
        let (limits, learner) = (self.params.inflights, self.config.is_learner(from));
        let Role::Leader(leader) = &mut self.role else {
            return Ok(());
        };
        let Some(progress) = leader.progress_mut(from) else {
            return Ok(());
        };
        if !progress.maybe_decrease(index, probe) {
            return Ok(());
        }
        let decreased = progress.status(learner, limits);
        if matches!(progress.feed, Feed::Replicate { .. }) {
            progress.become_probe();
        }
        self.events.push(Event::ProgressDecreased {
            progress: decreased,
        });
        self.send_append(from)
    }

    fn on_acknowledged(&mut self, from: ReplicaId, index: Index) -> Result<(), Error> {
        let own = self.id;
        let index = if planted!(ReceiptForWrongBatch) && from == own {
            self.log.last_index()
        } else {
            index
        };
        let Role::Leader(leader) = &mut self.role else {
            return Ok(());
        };
        let Some(progress) = leader.progress_mut(from) else {
            return Ok(());
        };
        progress.recently_active = true;
        let was_probing = matches!(progress.feed, Feed::Probe { .. });
        // An answer that tells nothing new still ends the probing of a follower that was reported
        // unreachable and is caught up.
        let news = progress.maybe_update(index);
        let ends_probe = was_probing && progress.matched == index;
        if !news && !ends_probe {
            return Ok(());
        }
        match progress.feed {
            Feed::Probe { .. } => progress.become_replicate(),
            // Whatever snapshot brought it back into the log will do, also an older one than the
            // one asked for.
            Feed::Snapshot { .. } if progress.matched.next() >= self.log.first_index() => {
                let learner = self.config.is_learner(from);
                let recovered = progress.status(learner, self.params.inflights);
                self.events.push(Event::SnapshotRecovered {
                    progress: recovered,
                });
                progress.become_replicate();
            }
            Feed::Snapshot { .. } => {}
            Feed::Replicate { .. } => progress.free_inflights(index),
        }
        let (bump, matched) = (
            progress.can_bump_commit(self.log.committed()),
            progress.matched,
        );
        let committed = self.maybe_commit()?;
        if committed {
            self.release_postponed_reads()?;
        }
        if self.tells_commit() {
            if committed {
                self.broadcast_append()?;
            } else if from != own && bump {
                self.send_append(from)?;
            }
        }
        if from != own {
            // The window has room again: fill it.
            while self.maybe_send_append(from, false)? {}
        }
        let transferee = self.leader_data().and_then(|leader| leader.transferee);
        if transferee == Some(from) && matched == self.log.last_index() {
            self.send_timeout_now(from, false);
        }
        Ok(())
    }

    fn on_heartbeat_response(&mut self, from: ReplicaId, read: u64) -> Result<(), Error> {
        let last = self.log.last_index();
        let Role::Leader(leader) = &mut self.role else {
            return Ok(());
        };
        // No number counts that was not given to a read yet.
        let read = if planted!(StaleReadRound) {
            leader.reads.newest()
        } else {
            leader.reads.given(read)
        };
        let Some(progress) = leader.progress_mut(from) else {
            return Ok(());
        };
        progress.recently_active = true;
        progress.resume();
        progress.read_acked = progress.read_acked.max(read);
        // Behind, or told unreachable: an append (empty if the window is full) gets it going.
        if progress.matched < last || matches!(progress.feed, Feed::Probe { .. }) {
            self.send_append(from)?;
        }
        if read > 0 {
            self.release_confirmed_reads();
        }
        Ok(())
    }

    /// Whether a new commit index is worth a message of its own.
    fn tells_commit(&self) -> bool {
        let changing =
            |leader: &Leader| leader.pending_conf_index.max(leader.host_index) > self.log.applied();
        !self.params.lazy_commit || self.leader_data().is_some_and(changing)
    }

    /// Commits what a quorum has, if its last entry is of this term.
    pub(super) fn maybe_commit(&mut self) -> Result<bool, Error> {
        let Role::Leader(leader) = &self.role else {
            return Ok(false);
        };
        // Whatever a quorum has, so many members have at least: most answers end here.
        let committed = self.log.committed();
        let ahead = leader.progress.iter().filter(|p| p.matched > committed);
        if ahead.count() < self.config.quorum_size() {
            return Ok(false);
        }
        let acked = |id| {
            leader
                .progress(id)
                .map_or(Index(0), |progress| progress.matched)
        };
        if planted!(LearnerCounted) {
            let mut matched: Vec<Index> = leader.progress.iter().map(|p| p.matched).collect();
            matched.sort_unstable();
            let index = matched[matched.len() - self.config.quorum_size()];
            return self.log.maybe_commit(index, self.term);
        }
        match self.config.committed(acked) {
            Some(index) if planted!(OldTermCounted) && index > committed => {
                self.log.commit_to(index).map(|()| true)
            }
            Some(index) => self.log.maybe_commit(index, self.term),
            None => Ok(false),
        }
    }
}

/// The change in a proposed entry, if it is one.
fn decode_change(entry: &Entry) -> Result<Option<ConfChangeV2>, ProposeError> {
    let change = match entry.kind {
        EntryKind::Normal | EntryKind::Host => return Ok(None),
        EntryKind::ConfChange => ConfChange::decode(&entry.data).map(ConfChange::into_v2),
        EntryKind::ConfChangeV2 => ConfChangeV2::decode(&entry.data),
    };
    change.map(Some).map_err(|_| ProposeError::Dropped)
}

/// Checks at proposal time are best effort: what counts is checked again when it is applied.
fn refuse_change(
    change: &ConfChangeV2,
    config: &Configuration,
    pending: Index,
    applied: Index,
) -> Option<ConfChangeRefusal> {
    let leaves = change.changes.is_empty();
    if pending > applied && !planted!(TwoChangesAtOnce) {
        Some(ConfChangeRefusal::Pending {
            index: pending,
            applied,
        })
    } else if config.is_joint() && !leaves {
        Some(ConfChangeRefusal::InJoint)
    } else if !config.is_joint() && leaves {
        Some(ConfChangeRefusal::NotInJoint)
    } else {
        None
    }
}

fn proposal(error: Error) -> ProposeError {
    match error {
        Error::Storage(error) => ProposeError::Storage(error),
        Error::Invariant(why) => ProposeError::Poisoned(why),
        Error::Config(_) => ProposeError::Poisoned("configuration"),
        Error::Membership(_) => ProposeError::Poisoned("membership"),
    }
}
