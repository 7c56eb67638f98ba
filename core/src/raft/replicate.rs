//! What a leader sends: appends, heartbeats, and snapshots to those whose next entry is truncated.

use alloc::boxed::Box;

use super::{Raft, Role};
use crate::error::{Error, StorageError};
use crate::event::{Event, MessageKind};
use crate::message::Payload;
use crate::planted;
use crate::ready::{Fetch, SnapshotOutcome};
use crate::storage::Storage;
use crate::types::{EntryId, Index, ReplicaId};

impl<S: Storage> Raft<S> {
    /// Everybody gets what it lacks, or at least the commit index. In ascending order of ids.
    pub(super) fn broadcast_append(&mut self) -> Result<(), Error> {
        self.each_follower(|this, to| this.maybe_send_append(to, true).map(|_| ()))
    }

    /// Those who lack something get it.
    pub(super) fn broadcast_missing(&mut self) -> Result<(), Error> {
        self.each_follower(|this, to| this.maybe_send_append(to, false).map(|_| ()))
    }

    pub(super) fn each_follower(
        &mut self,
        mut visit: impl FnMut(&mut Self, ReplicaId) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut at = 0;
        while let Some(to) = self
            .leader_data()
            .and_then(|leader| leader.progress.get(at))
            .map(|p| p.id)
        {
            at += 1;
            if to != self.id {
                visit(self, to)?;
            }
        }
        Ok(())
    }

    pub(super) fn send_append(&mut self, to: ReplicaId) -> Result<(), Error> {
        self.maybe_send_append(to, true).map(|_| ())
    }

    /// Sends `to` what comes next for it, unless it is paused. Without anything to send only if
    /// `even_empty`. Returns whether anything was sent.
    pub(super) fn maybe_send_append(
        &mut self,
        to: ReplicaId,
        even_empty: bool,
    ) -> Result<bool, Error> {
        let limits = self.params.inflights;
        let Role::Leader(leader) = &mut self.role else {
            return Ok(false);
        };
        let Some(progress) = leader.progress_mut(to) else {
            return Ok(false);
        };
        if progress.is_paused() || (!even_empty && progress.next > self.log.last_index()) {
            return Ok(false);
        }
        let prev_index = progress.next.prev();
        let Ok(prev_term) = self.log.term(prev_index) else {
            // Truncated at or behind the next index.
            return self.maybe_send_snapshot(to);
        };
        let entries = if progress.may_carry_entries(limits) {
            let max = self.params.max_message_bytes;
            match self.log.entries_from(progress.next, max, to) {
                Ok(entries) => entries,
                Err(StorageError::TemporarilyUnavailable) => {
                    // Sent when it is there; nothing empty goes ahead of it, since it would count
                    // as a probe.
                    let (low, high) = (progress.next, self.log.unstable.offset());
                    self.fetch(Fetch {
                        low,
                        high,
                        max_bytes: max,
                        replica: to,
                    });
                    return Ok(false);
                }
                Err(StorageError::Compacted) => return self.maybe_send_snapshot(to),
                Err(error) => return Err(error.into()),
            }
        } else {
            alloc::vec::Vec::new()
        };
        if entries.is_empty() && !even_empty {
            return Ok(false);
        }
        let commit = self.log.committed();
        let count = entries.len() as u64;
        let bytes = entries.iter().map(|entry| entry.data.len() as u64).sum();
        progress.sent_entries(count, bytes, limits);
        progress.sent_commit(commit);
        let prev = EntryId {
            term: prev_term,
            index: prev_index,
        };
        self.send(
            to,
            Payload::Append {
                prev,
                entries,
                commit,
            },
        );
        Ok(true)
    }

    fn maybe_send_snapshot(&mut self, to: ReplicaId) -> Result<bool, Error> {
        let (limits, learner) = (self.params.inflights, self.config.is_learner(to));
        let Role::Leader(leader) = &mut self.role else {
            return Ok(false);
        };
        let Some(progress) = leader.progress_mut(to) else {
            return Ok(false);
        };
        if !progress.recently_active {
            // A snapshot is too dear to be sent to the dead.
            self.events.push(Event::InactivePeerNotSent { to });
            return Ok(false);
        }
        let snapshot = match self.log.snapshot(to) {
            Ok(snapshot) if snapshot.meta.last.index > Index(0) => snapshot,
            Ok(_) => return Err(Error::Invariant("the storage gave an empty snapshot")),
            Err(StorageError::SnapshotTemporarilyUnavailable) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let before = progress.status(learner, limits);
        progress.become_snapshot(snapshot.meta.last.index);
        let after = progress.status(learner, limits);
        self.events.push(Event::SnapshotSent {
            first: self.log.first_index(),
            commit: self.log.committed(),
            snapshot: snapshot.meta.last,
            before,
            after,
        });
        self.send(to, Payload::Snapshot(Box::new(snapshot)));
        Ok(true)
    }

    pub(super) fn broadcast_heartbeat(&mut self) {
        let committed = self.log.committed();
        let own = self.id;
        let term = self.term;
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        let read = leader.reads.newest();
        self.messages.begin_heartbeats();
        for progress in leader
            .progress
            .iter_mut()
            .filter(|progress| progress.id != own)
        {
            // Not beyond what the follower is known to have: it may hold anything there.
            let commit = if planted!(HeartbeatCommitBeyondMatch) {
                committed
            } else {
                progress.matched.min(committed)
            };
            progress.sent_commit(commit);
            self.messages.push(crate::message::Message {
                from: own,
                to: progress.id,
                term,
                payload: Payload::Heartbeat { commit, read },
            });
        }
    }

    /// A new read joins the heartbeats that wait to be sent: they leave after it was asked for, so
    /// the answers to them confirm it too. Returns false if none wait, or not for everybody.
    pub(super) fn join_heartbeats(&mut self, number: u64) -> bool {
        let (own, term) = (self.id, self.term);
        let Role::Leader(leader) = &self.role else {
            return false;
        };
        let others = leader.progress.iter().filter(|other| other.id != own);
        let Some(waiting) = self.messages.heartbeats(others.clone().count()) else {
            return false;
        };
        let for_all = waiting.iter().zip(others).all(|(message, other)| {
            message.to == other.id
                && message.term == term
                && message.payload.kind() == MessageKind::Heartbeat
        });
        if for_all {
            for message in waiting {
                if let Payload::Heartbeat { read, .. } = &mut message.payload {
                    *read = number;
                }
            }
        }
        for_all
    }

    /// The last messages to `replica` may be lost: stop streaming, look where it stands.
    pub(crate) fn report_unreachable(&mut self, replica: ReplicaId) {
        let (limits, learner) = (self.params.inflights, self.config.is_learner(replica));
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        let Some(progress) = leader.progress_mut(replica) else {
            return;
        };
        if matches!(progress.feed, crate::progress::Feed::Replicate { .. }) {
            progress.become_probe();
        }
        let progress = progress.status(learner, limits);
        self.events.push(Event::Unreachable { progress });
    }

    pub(crate) fn report_snapshot(&mut self, replica: ReplicaId, outcome: SnapshotOutcome) {
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        let Some(progress) = leader.progress_mut(replica) else {
            return;
        };
        if !matches!(progress.feed, crate::progress::Feed::Snapshot { .. }) {
            return;
        }
        match outcome {
            SnapshotOutcome::Sent => {
                progress.become_probe();
                // Its answer to the snapshot, or the next heartbeat, sets it going.
                progress.pause();
            }
            SnapshotOutcome::Failed => progress.snapshot_failed(),
        }
    }

    /// Entries for `replica` are in memory now.
    pub(crate) fn resume_fetched(&mut self, replica: ReplicaId) -> Result<(), Error> {
        while self.maybe_send_append(replica, false)? {}
        self.log.release_fetched(replica);
        Ok(())
    }
}
