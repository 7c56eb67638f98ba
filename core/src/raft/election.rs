//! When to campaign, whom to grant a vote, how answers are counted (thesis sections 3.4, 3.6.1, 9.6).

use super::{Raft, Role, internal};
use crate::error::{Error, StepError};
use crate::event::Event;
use crate::message::{Message, Payload};
use crate::planted;
use crate::quorum::VoteResult;
use crate::storage::Storage;
use crate::types::{EntryId, ReplicaId, Term};

/// Why and how a campaign is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Campaign {
    /// A trial first.
    PreVote,
    /// For real.
    Vote,
    /// For real, because the leader asked for it: leases do not stand against it.
    Transfer,
}

impl<S: Storage> Raft<S> {
    /// Whether this replica may lead: a voter whose state is complete.
    pub(crate) fn is_promotable(&self) -> bool {
        self.config.is_voter(self.id) && !self.log.has_pending_snapshot()
    }

    /// Campaigns as an election timeout would make it.
    pub(crate) fn campaign_now(&mut self) -> Result<(), Error> {
        let pre = self.params.pre_vote;
        self.campaign_if_allowed(if pre {
            Campaign::PreVote
        } else {
            Campaign::Vote
        })
    }

    /// The one way into a campaign, so that every kind of it passes the same checks.
    pub(crate) fn campaign_if_allowed(&mut self, kind: Campaign) -> Result<(), Error> {
        if matches!(self.role, Role::Leader(_)) {
            return Ok(());
        }
        if !self.is_promotable() {
            self.events.push(Event::Unpromotable);
            return Ok(());
        }
        // A committed change that is not applied yet may have made others voters: a quorum of
        // the configuration known here might not be one any more.
        if self.has_unapplied_conf_change()? {
            self.events
                .push(Event::CampaignBlockedByConfChange { term: self.term });
            return Ok(());
        }
        self.events.push(Event::CampaignStarted { term: self.term });
        self.campaign(kind)
    }

    fn campaign(&mut self, kind: Campaign) -> Result<(), Error> {
        let pre = kind == Campaign::PreVote;
        let term = if pre {
            self.become_pre_candidate();
            Term(self.term.0 + 1)
        } else {
            self.become_candidate();
            self.term
        };
        let last = self.last_id()?;
        for to in self.config.voters() {
            if to == self.id {
                // The own vote counts when it is durable: it comes back with the receipt.
                self.send_at(to, term, granted(pre));
                continue;
            }
            self.events.push(Event::VoteRequested {
                pre,
                to,
                last,
                term: self.term,
            });
            let transfer = kind == Campaign::Transfer;
            self.send_at(
                to,
                term,
                Payload::Vote {
                    pre,
                    last,
                    transfer,
                },
            );
        }
        Ok(())
    }

    /// A vote is given once a term, to a candidate whose log holds everything committed. Learners
    /// vote too: one may have been promoted without knowing it yet.
    pub(super) fn decide_vote(
        &mut self,
        from: ReplicaId,
        term: Term,
        pre: bool,
        candidate: EntryId,
    ) -> Result<(), StepError> {
        let may = self.vote == from
            || (self.vote.is_none() && self.leader.is_none())
            || (pre && term > self.term);
        let granted = may && self.log.is_up_to_date(candidate).map_err(internal)?;
        self.events.push(Event::VoteDecided {
            pre,
            granted,
            from,
            candidate,
            last: self.last_id().map_err(internal)?,
            vote: self.vote,
            term: self.term,
        });
        // A grant carries the term of the request: for a trial that is a term not entered yet.
        if granted {
            self.send_at(from, term, self::granted(pre));
        } else {
            self.refuse_vote(from, pre, candidate);
        }
        if granted && !pre {
            self.election_elapsed = 0;
            self.vote = from;
        }
        Ok(())
    }

    /// Refuses a vote. A configuration counts from when it is applied, so a candidate that does not know
    /// how far its own log is committed may ask members for votes who are none any more, and whose logs
    /// may be longer for ever: they tell it what is committed.
    pub(super) fn refuse_vote(&mut self, from: ReplicaId, pre: bool, candidate: EntryId) {
        let mut committed = EntryId::default();
        if self.params.commit_by_vote {
            let index = self.log.committed().min(candidate.index);
            // What is truncated here cannot be named; then the candidate needs a snapshot.
            if let Ok(term) = self.log.term(index) {
                committed = EntryId { term, index };
            }
        }
        let reject = true;
        let answer = Payload::VoteResponse {
            pre,
            reject,
            committed,
        };
        self.send_at(from, self.term, answer);
    }

    /// Somebody knows that an entry is committed; true in any term. A campaign ends if that may
    /// have changed who is to be asked.
    pub(super) fn learn_committed(&mut self, id: EntryId) -> Result<(), Error> {
        let leads = matches!(self.role, Role::Leader(_));
        if leads || self.log.has_pending_snapshot() || !self.log.maybe_commit(id.index, id.term)? {
            return Ok(());
        }
        self.events.push(Event::CommitLearned { id });
        let campaigns = matches!(self.role, Role::PreCandidate(_) | Role::Candidate(_));
        if campaigns && self.has_unapplied_conf_change()? {
            self.become_follower(self.term, ReplicaId::NONE);
        }
        Ok(())
    }

    pub(super) fn step_candidate(&mut self, message: Message) -> Result<(), StepError> {
        let Message {
            from,
            term,
            payload,
            ..
        } = message;
        match payload {
            Payload::Append {
                prev,
                entries,
                commit,
            } => {
                self.become_follower(term, from);
                self.handle_append(from, prev, entries, commit)
            }
            Payload::Heartbeat { commit, read } => {
                self.become_follower(term, from);
                self.handle_heartbeat(from, commit, read)
            }
            Payload::Snapshot(snapshot) => {
                self.become_follower(term, from);
                self.handle_snapshot(from, *snapshot)
            }
            Payload::VoteResponse { pre, reject, .. } => self.count_vote(from, pre, !reject),
            Payload::Propose { .. } => self.drop_proposal_without_leader(),
            // Nobody leads as far as this replica knows; the rest is for leaders or stale.
            Payload::AppendResponse { .. }
            | Payload::HeartbeatResponse { .. }
            | Payload::ReadIndex { .. }
            | Payload::ReadIndexResponse { .. }
            | Payload::TimeoutNow
            | Payload::TransferLeader
            | Payload::Vote { .. } => Ok(()),
        }
    }

    fn count_vote(&mut self, from: ReplicaId, pre: bool, granted: bool) -> Result<(), StepError> {
        let votes = match &mut self.role {
            Role::PreCandidate(votes) if pre => votes,
            Role::Candidate(votes) if !pre => votes,
            // An answer to the other phase: late, and of no weight in this one.
            _ => return Ok(()),
        };
        // The first answer counts.
        if !votes.iter().any(|(id, _)| *id == from) {
            votes.push((from, granted));
        }
        let config = &self.config;
        let counted = |wanted: bool| {
            votes
                .iter()
                .filter(|(id, vote)| *vote == wanted && config.is_voter(*id))
                .count()
        };
        let (yes, no) = (counted(true), counted(false));
        let outcome = config.tally(|id| {
            votes
                .iter()
                .find(|(from, _)| *from == id)
                .map(|(_, vote)| *vote)
        });
        // Others may have agreed before the own vote is durable. Who led already then, and crashed, would
        // not know the term after the restart, campaign in it again, be granted the same votes, and
        // put other entries under the same term and index.
        let own_vote = votes.iter().any(|(id, _)| *id == self.id);
        let term = self.term;
        self.events.push(Event::VoteReceived {
            pre,
            granted,
            from,
            term,
        });
        self.events.push(Event::VoteCounted {
            pre,
            granted: yes,
            rejected: no,
        });
        match outcome {
            VoteResult::Won if pre => self.campaign(Campaign::Vote).map_err(internal),
            VoteResult::Won if !own_vote && !planted!(LeadsBeforeOwnVote) => Ok(()),
            VoteResult::Won => {
                self.become_leader().map_err(internal)?;
                self.broadcast_append().map_err(internal)
            }
            VoteResult::Lost => {
                self.become_follower(term, ReplicaId::NONE);
                Ok(())
            }
            VoteResult::Pending => Ok(()),
        }
    }
}

const fn granted(pre: bool) -> Payload {
    Payload::VoteResponse {
        pre,
        reject: false,
        committed: EntryId::new(0, 0),
    }
}
