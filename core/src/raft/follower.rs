//! What a follower does with what a leader says (thesis section 3.5).

use alloc::vec::Vec;

use super::election::Campaign;
use super::{Raft, internal, malformed};
use crate::config::ReadMode;
use crate::entry::Entry;
use crate::error::{ProposeError, StepError};
use crate::event::Event;
use crate::message::{Message, Payload, RejectHint};
use crate::ready::ReadState;
use crate::storage::Storage;
use crate::types::{EntryId, Index, ReplicaId, Term};

impl<S: Storage> Raft<S> {
    pub(super) fn step_follower(&mut self, message: Message) -> Result<(), StepError> {
        let from = message.from;
        match message.payload {
            Payload::Append {
                prev,
                entries,
                commit,
            } => {
                self.heard_of_leader(from);
                self.handle_append(from, prev, entries, commit)
            }
            Payload::Heartbeat { commit, read } => {
                self.heard_of_leader(from);
                self.handle_heartbeat(from, commit, read)
            }
            Payload::Snapshot(snapshot) => {
                self.heard_of_leader(from);
                self.handle_snapshot(from, *snapshot)
            }
            Payload::Propose { entries } => self.forward_proposal(entries),
            // A read is passed on once only, by whoever was asked for it: the answer goes to the one
            // who sends, and means nothing to a replica in between but what its own reads would
            // take it for. Whoever asked the wrong replica asks again.
            Payload::ReadIndex { .. } => Ok(()),
            Payload::ReadIndexResponse { index, context } => {
                if self.reads.len() < self.params.max_pending_reads {
                    self.reads.push(ReadState { index, context });
                }
                Ok(())
            }
            Payload::TimeoutNow => {
                self.events.push(Event::TimeoutNowReceived {
                    from,
                    term: self.term,
                });
                // Never with a trial: the leader itself wants this, and waits.
                self.campaign_if_allowed(Campaign::Transfer)
                    .map_err(internal)
            }
            Payload::TransferLeader => {
                if !self.leader.is_none() {
                    let forwarded = Message {
                        from,
                        to: self.leader,
                        term: self.term,
                        payload: Payload::TransferLeader,
                    };
                    self.messages.push(forwarded);
                }
                Ok(())
            }
            // Answers to what this replica asked in another role.
            Payload::AppendResponse { .. }
            | Payload::HeartbeatResponse { .. }
            | Payload::Vote { .. }
            | Payload::VoteResponse { .. } => Ok(()),
        }
    }

    fn heard_of_leader(&mut self, from: ReplicaId) {
        self.election_elapsed = 0;
        self.leader = from;
    }

    pub(crate) fn forward_proposal(&mut self, entries: Vec<Entry>) -> Result<(), StepError> {
        if self.leader.is_none() {
            return self.drop_proposal_without_leader();
        }
        if !self.params.forward_proposals {
            return Err(ProposeError::Dropped.into());
        }
        self.send(self.leader, Payload::Propose { entries });
        Ok(())
    }

    pub(super) fn drop_proposal_without_leader(&mut self) -> Result<(), StepError> {
        self.events
            .push(Event::NoLeaderForProposal { term: self.term });
        Err(ProposeError::Dropped.into())
    }

    pub(super) fn handle_append(
        &mut self,
        from: ReplicaId,
        prev: EntryId,
        entries: Vec<Entry>,
        commit: Index,
    ) -> Result<(), StepError> {
        check_slice(from, prev, &entries, self.term)?;
        if prev.index < self.log.committed() {
            // Everything up to there is settled already: say so and save the comparison.
            let index = self.log.committed();
            self.send(
                from,
                Payload::AppendResponse {
                    index,
                    reject: None,
                },
            );
            return Ok(());
        }
        let appended = self
            .log
            .maybe_append(prev, entries, commit, &mut self.events)
            .map_err(internal)?;
        if let Some(index) = appended {
            self.send(
                from,
                Payload::AppendResponse {
                    index,
                    reject: None,
                },
            );
            return Ok(());
        }
        self.events.push(Event::AppendRejected {
            from,
            own_term: self.log.term(prev.index).unwrap_or_default(),
            prev,
        });
        // Skip back over everything here that is of a later term than the entry asked for: none of
        // it can match, and the leader need not ask entry by entry.
        let hint = self
            .log
            .find_conflict_by_term(prev.index.min(self.log.last_index()), prev.term);
        let reject = Some(RejectHint {
            index: hint.index,
            term: hint.term,
        });
        self.send(
            from,
            Payload::AppendResponse {
                index: prev.index,
                reject,
            },
        );
        Ok(())
    }

    pub(super) fn handle_heartbeat(
        &mut self,
        from: ReplicaId,
        commit: Index,
        read: u64,
    ) -> Result<(), StepError> {
        let last = self.log.last_index();
        if commit <= last {
            self.log.commit_to(commit).map_err(internal)?;
        } else {
            // The leader believes that this replica acknowledged more than it has. Nothing can be
            // made of that here; committing up to `last` would be a guess.
            self.events
                .push(Event::HeartbeatCommitIgnored { commit, last });
        }
        self.send(from, Payload::HeartbeatResponse { read });
        Ok(())
    }

    /// Drops the leader without campaigning, so that pre-votes may be granted.
    pub(crate) fn forget_leader(&mut self) {
        if !matches!(self.role, super::Role::Follower) {
            return;
        }
        if self.params.read_mode == ReadMode::LeaseBased {
            // The leader's lease counts on this replica's loyalty.
            self.events.push(Event::ForgetLeaderRefused);
            return;
        }
        if !self.leader.is_none() {
            self.events.push(Event::LeaderForgotten {
                leader: self.leader,
                term: self.term,
            });
            self.leader = ReplicaId::NONE;
        }
    }
}

/// The gate for entries from outside: behind it they are consecutive and of sane terms.
fn check_slice(
    from: ReplicaId,
    prev: EntryId,
    entries: &[Entry],
    term: Term,
) -> Result<(), StepError> {
    let mut last = prev;
    for entry in entries {
        if entry.index != last.index.next() {
            return Err(StepError::Malformed {
                from,
                reason: "entries are not consecutive",
            });
        }
        if entry.term < last.term || entry.term > term {
            return Err(StepError::Malformed {
                from,
                reason: "entry terms are out of order",
            });
        }
        last = entry.id();
    }
    Ok(())
}

/// Used by the roles that must refuse what only a leader can be told.
pub(super) fn check_acknowledged(message: &Message, last: Index) -> Result<(), StepError> {
    if let Payload::AppendResponse {
        index,
        reject: None,
    } = message.payload
        && index > last
    {
        return Err(malformed(message, "acknowledges more than there is"));
    }
    Ok(())
}
