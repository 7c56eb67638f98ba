//! The state machine: what all roles share, the gate that looks at terms, and the only place where
//! roles change.
//!
//! What a role alone knows lives in its variant of [`Role`]; `election`, `follower` and `leader`
//! hold the behaviour. Messages go to one of two lists by their type: promises about this replica's
//! disk wait in `held` for the write they speak of, everything else may leave at once.

mod election;
mod follower;
mod leader;
mod membership;
mod outbox;
mod reads;
mod replicate;
mod restore;
mod transfer;

use alloc::vec::Vec;

pub(crate) use leader::Leader;
use outbox::Outbox;

use crate::config::{Config, ReadMode};
use crate::entry::Entry;
use crate::error::{Error, StepError, StorageError};
use crate::event::{Event, Events, MessageKind};
use crate::log::{Appliable, Log};
use crate::membership::Configuration;
use crate::message::{Message, Payload};
use crate::planted;
use crate::progress::InflightLimits;
use crate::ready::{Fetch, Fetched, HardState, ReadState, Receipt, SoftState};
use crate::rng::Rng;
use crate::status::RoleName;
use crate::storage::Storage;
use crate::types::{EntryId, Index, ReplicaId, Term};

/// What a replica is, with the data that only this role has.
#[derive(Debug)]
pub(crate) enum Role {
    Follower,
    PreCandidate(Votes),
    Candidate(Votes),
    Leader(alloc::boxed::Box<Leader>),
}

/// Answers to a vote request, by voter.
pub(crate) type Votes = Vec<(ReplicaId, bool)>;

#[derive(Debug)]
pub(crate) struct Raft<S> {
    pub(crate) id: ReplicaId,
    pub(crate) params: Params,
    pub(crate) log: Log<S>,
    pub(crate) term: Term,
    pub(crate) vote: ReplicaId,
    pub(crate) leader: ReplicaId,
    pub(crate) role: Role,
    pub(crate) config: Configuration,
    /// Ticks since a leader was heard of, or, on a leader, since the last look at the quorum.
    pub(crate) election_elapsed: u32,
    /// In `[election_ticks, 2 * election_ticks - 1]`, drawn anew at every reset.
    pub(crate) election_timeout: u32,
    rng: Rng,
    /// Messages that may leave now.
    pub(crate) messages: Outbox,
    /// Messages, also to this replica itself, that may leave when what is accepted so far is durable.
    pub(crate) held: Outbox,
    pub(crate) reads: Vec<ReadState>,
    pub(crate) fetches: Vec<Fetch>,
    /// For whom a range is being fetched.
    fetching: Vec<ReplicaId>,
    pub(crate) events: Events,
}

/// The part of [`Config`] that is needed after the start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Params {
    pub(crate) election_ticks: u32,
    pub(crate) heartbeat_ticks: u32,
    pub(crate) max_message_bytes: u64,
    pub(crate) max_uncommitted_bytes: u64,
    pub(crate) inflights: InflightLimits,
    pub(crate) check_quorum: bool,
    pub(crate) pre_vote: bool,
    pub(crate) read_mode: ReadMode,
    pub(crate) forward_proposals: bool,
    pub(crate) validate_conf_changes: bool,
    pub(crate) step_down_on_removal: bool,
    pub(crate) commit_by_vote: bool,
    pub(crate) lazy_commit: bool,
    pub(crate) max_pending_reads: usize,
}

impl<S: Storage> Raft<S> {
    pub(crate) fn new(config: &Config, storage: S) -> Result<Self, Error> {
        config.validate()?;
        let initial = storage.initial_state()?;
        let log = Log::new(storage, config.committed_bytes_max());
        let mut this = Self {
            id: config.id,
            params: config.params(),
            log,
            term: Term(0),
            vote: ReplicaId::NONE,
            leader: ReplicaId::NONE,
            role: Role::Follower,
            config: Configuration::default(),
            election_elapsed: 0,
            election_timeout: config.election_ticks,
            rng: Rng::new(config.seed),
            messages: Outbox::default(),
            held: Outbox::default(),
            reads: Vec::new(),
            fetches: Vec::new(),
            fetching: Vec::new(),
            events: Events::default(),
        };
        this.switch_config(Configuration::restore(&initial.conf_state)?)?;
        let HardState { term, vote, commit } = initial.hard_state;
        this.term = term;
        this.vote = vote;
        // The commit index need not have reached the disk, but what is applied was committed.
        this.log.commit_to(commit.max(config.applied))?;
        if config.applied > Index(0) {
            this.log.applied_to(config.applied, 0)?;
        }
        this.become_follower(term, ReplicaId::NONE);
        this.events.push(Event::NodeCreated {
            hard_state: this.hard_state(),
            config: this.config.clone(),
            applied: this.log.applied(),
            last: this.log.last_id()?,
        });
        Ok(this)
    }

    pub(crate) const fn hard_state(&self) -> HardState {
        HardState {
            term: self.term,
            vote: self.vote,
            commit: self.log.committed(),
        }
    }

    pub(crate) const fn soft_state(&self) -> SoftState {
        SoftState {
            leader: self.leader,
            role: self.role_name(),
        }
    }

    pub(crate) const fn role_name(&self) -> RoleName {
        match self.role {
            Role::Follower => RoleName::Follower,
            Role::PreCandidate(_) => RoleName::PreCandidate,
            Role::Candidate(_) => RoleName::Candidate,
            Role::Leader(_) => RoleName::Leader,
        }
    }

    /// Whether messages of `from` can be answered by role code: it is a member.
    pub(crate) fn is_member(&self, id: ReplicaId) -> bool {
        self.config.contains(id)
    }

    // Roles. Every change goes through one of these.

    pub(crate) fn become_follower(&mut self, term: Term, leader: ReplicaId) {
        self.reset(term);
        self.leader = leader;
        self.role = Role::Follower;
        self.events.push(Event::BecameRole {
            role: RoleName::Follower,
            term,
        });
    }

    /// Trial elections change neither term nor vote, and forget the leader, so that a quorum of
    /// trial candidates is not held back by each other's lease.
    fn become_pre_candidate(&mut self) {
        self.leader = ReplicaId::NONE;
        self.role = Role::PreCandidate(Votes::new());
        self.events.push(Event::BecameRole {
            role: RoleName::PreCandidate,
            term: self.term,
        });
    }

    fn become_candidate(&mut self) {
        self.reset(Term(self.term.0 + 1));
        self.vote = self.id;
        self.role = Role::Candidate(Votes::new());
        self.events.push(Event::BecameRole {
            role: RoleName::Candidate,
            term: self.term,
        });
    }

    fn become_leader(&mut self) -> Result<(), Error> {
        self.reset(self.term);
        self.leader = self.id;
        let last = self.log.last_index();
        self.role = Role::Leader(alloc::boxed::Box::new(Leader::new(
            self.id,
            &self.config,
            last,
        )));
        // An entry of the new term, by which everything before it can be committed (thesis
        // section 3.6.2). Empty, so that no limit refuses it.
        let appended = self.append_as_leader(alloc::vec![Entry::default()])?;
        debug_assert!(appended, "an empty entry passes every limit");
        self.events.push(Event::BecameRole {
            role: RoleName::Leader,
            term: self.term,
        });
        Ok(())
    }

    fn reset(&mut self, term: Term) {
        if self.term != term {
            self.term = term;
            self.vote = ReplicaId::NONE;
        }
        self.leader = ReplicaId::NONE;
        self.election_elapsed = 0;
        self.election_timeout =
            self.params.election_ticks + self.rng.below(self.params.election_ticks);
        // What was asked for to feed followers belongs to what this replica was.
        self.fetches.retain(|fetch| fetch.replica.is_none());
        self.fetching.retain(|replica| replica.is_none());
    }

    // Time.

    pub(crate) fn tick(&mut self) -> Result<(), Error> {
        if matches!(self.role, Role::Leader(_)) {
            return self.tick_leader();
        }
        // Who may not campaign waits without end; the clock stops where it can tell nothing more.
        let end = self.election_timeout.max(2 * self.params.election_ticks);
        self.election_elapsed = end.min(self.election_elapsed + 1);
        if self.is_promotable() && self.election_elapsed >= self.election_timeout {
            self.election_elapsed = 0;
            self.campaign_now()?;
        }
        Ok(())
    }

    // Messages.

    pub(crate) fn send(&mut self, to: ReplicaId, payload: Payload) {
        let term = match payload {
            Payload::Propose { .. } | Payload::ReadIndex { .. } => Term(0),
            _ => self.term,
        };
        self.send_at(to, term, payload);
    }

    fn send_at(&mut self, to: ReplicaId, term: Term, payload: Payload) {
        let early = planted!(AckBeforeSync)
            && to != self.id
            && payload.kind() == MessageKind::AppendResponse;
        let list = if payload.waits_for_disk() && !early {
            &mut self.held
        } else {
            &mut self.messages
        };
        list.push(Message {
            from: self.id,
            to,
            term,
            payload,
        });
    }

    pub(crate) fn step(&mut self, message: Message) -> Result<(), StepError> {
        check_numbers(&message)?;
        if let Payload::VoteResponse { committed, .. } = message.payload {
            self.learn_committed(committed).map_err(internal)?;
        }
        let kind = message.payload.kind();
        if message.term == Term(0) {
            // Forwarded proposals and reads are of no term; nothing else may claim that.
            if !matches!(kind, MessageKind::Propose | MessageKind::ReadIndex) {
                return Err(malformed(&message, "term 0"));
            }
        } else if message.term > self.term {
            if !self.enter_higher_term(&message)? {
                return Ok(());
            }
        } else if message.term < self.term {
            self.answer_lower_term(message)?;
            return Ok(());
        }
        if let Payload::Vote { pre, last, .. } = message.payload {
            self.decide_vote(message.from, message.term, pre, last)?;
            return Ok(());
        }
        match self.role {
            Role::Leader(_) => self.step_leader(message),
            Role::Follower => self.step_follower(message),
            Role::PreCandidate(_) | Role::Candidate(_) => self.step_candidate(message),
        }
    }

    /// Returns false if the message is to be ignored.
    fn enter_higher_term(&mut self, message: &Message) -> Result<bool, StepError> {
        let kind = message.payload.kind();
        if let Payload::Vote {
            pre,
            last,
            transfer,
        } = message.payload
        {
            let in_lease = self.params.check_quorum
                && !self.leader.is_none()
                && self.election_elapsed < self.params.election_ticks;
            if in_lease && !transfer {
                // A leader is alive as far as known: a candidate that cannot hear it must not
                // disturb the group (thesis section 4.2.3).
                self.events.push(Event::VoteIgnoredInLease {
                    pre,
                    from: message.from,
                    candidate: last,
                    last: self.log.last_id().map_err(internal)?,
                    vote: self.vote,
                    term: self.term,
                    remaining_ticks: self.params.election_ticks - self.election_elapsed,
                });
                return Ok(false);
            }
        }
        match message.payload {
            // A trial never moves a term; its grant carries the term it asked for.
            Payload::Vote { pre: true, .. }
            | Payload::VoteResponse {
                pre: true,
                reject: false,
                ..
            } => {}
            _ if planted!(HigherTermLeads)
                && self.leader == self.id
                && message.payload.is_response() =>
            {
                self.term = message.term;
                self.vote = ReplicaId::NONE;
            }
            _ => {
                self.events.push(Event::HigherTerm {
                    from: message.from,
                    kind,
                    own: self.term,
                    term: message.term,
                });
                let leader = match message.payload {
                    Payload::Append { .. } | Payload::Heartbeat { .. } | Payload::Snapshot(_) => {
                        message.from
                    }
                    _ => ReplicaId::NONE,
                };
                self.become_follower(message.term, leader);
            }
        }
        Ok(true)
    }

    fn answer_lower_term(&mut self, message: Message) -> Result<(), StepError> {
        let from = message.from;
        match message.payload {
            Payload::Append { .. } | Payload::Heartbeat { .. }
                if self.params.check_quorum || self.params.pre_vote =>
            {
                // A leader of an older term learns of the newer one, so that a replica which
                // campaigned while it was cut off, and is refused votes now, comes back.
                self.send(
                    from,
                    Payload::AppendResponse {
                        index: Index(0),
                        reject: None,
                    },
                );
            }
            Payload::Vote {
                pre: true, last, ..
            } => {
                // Tell the trial candidate the term, else two of different terms that may not
                // win could wait for each other for ever.
                self.events.push(Event::VoteDecided {
                    pre: true,
                    granted: false,
                    from,
                    candidate: last,
                    last: self.log.last_id().map_err(internal)?,
                    vote: self.vote,
                    term: self.term,
                });
                self.refuse_vote(from, true, last);
            }
            payload => self.events.push(Event::LowerTermIgnored {
                from,
                kind: payload.kind(),
                own: self.term,
                term: message.term,
            }),
        }
        Ok(())
    }

    // Receipts.

    /// The write that `receipt` speaks of is durable.
    pub(crate) fn on_receipt(&mut self, receipt: Receipt) -> Result<(), Error> {
        if let Some(last) = receipt.last {
            if receipt.term == self.term {
                self.log.unstable.stable_to(last, &mut self.events);
            } else {
                // Entries of that write may have been overwritten since by a write with the same
                // index and term pair in flight twice (the "ABA" case); a later receipt speaks
                // for the whole tail, so nothing is lost by waiting for it.
                self.events.push(Event::LowerTermReceiptIgnored {
                    own: self.term,
                    term: receipt.term,
                });
            }
        }
        if let Some(index) = receipt.snapshot {
            self.log.unstable.stable_snapshot_to(index);
            self.applied_to(index, 0)?;
        }
        Ok(())
    }

    /// Entries up to `index` are applied.
    pub(crate) fn applied_to(&mut self, index: Index, bytes: u64) -> Result<(), Error> {
        let index = index.max(self.log.applied());
        self.log.applied_to(index, bytes)?;
        self.leave_joint_if_due(index)
    }

    pub(crate) fn has_unapplied_conf_change(&mut self) -> Result<bool, Error> {
        membership::has_unapplied_conf_change(self)
    }

    /// Asks for a log range that is not in memory; one range for each purpose at a time.
    pub(crate) fn fetch(&mut self, fetch: Fetch) {
        if fetch.low < fetch.high && !self.fetching.contains(&fetch.replica) {
            self.fetching.push(fetch.replica);
            self.fetches.push(fetch);
        }
    }

    /// Whether a range for applying is being fetched.
    pub(crate) fn waits_to_apply(&self) -> bool {
        self.fetching.contains(&ReplicaId::NONE)
    }

    /// A range that was asked for is there, or cannot be had.
    pub(crate) fn on_fetched(&mut self, fetched: Fetched) -> Result<(), Error> {
        let replica = fetched.fetch.replica;
        self.fetching.retain(|id| *id != replica);
        match fetched.entries {
            Ok(entries) => {
                check_run(fetched.fetch.low, &entries)?;
                self.log.keep_fetched(replica, entries);
            }
            // Truncated meanwhile: whoever needed it finds that out and gets a snapshot.
            Err(StorageError::Compacted | StorageError::TemporarilyUnavailable) => {}
            Err(error) => return Err(error.into()),
        }
        if replica.is_none() {
            Ok(())
        } else {
            self.resume_fetched(replica)
        }
    }

    pub(crate) fn last_id(&self) -> Result<EntryId, Error> {
        self.log.last_id()
    }

    pub(crate) fn has_committed(&self, which: Appliable) -> bool {
        self.log.has_committed(which)
    }
}

/// What comes from a disk is looked at as closely as what comes from the network.
fn check_run(low: Index, entries: &[Entry]) -> Result<(), Error> {
    let mut index = low;
    for entry in entries {
        if entry.index != index || index.0 > LARGEST_NUMBER {
            return Err(StorageError::Corrupt(index).into());
        }
        index = index.next();
    }
    Ok(())
}

/// No term or index of a group that works comes near this; what is larger would overflow.
const LARGEST_NUMBER: u64 = u64::MAX >> 1;

/// The gate for numbers from outside: behind it they can be added to without overflow.
fn check_numbers(message: &Message) -> Result<(), StepError> {
    let largest = match &message.payload {
        Payload::Append { prev, commit, .. } => prev.index.0.max(prev.term.0).max(commit.0),
        Payload::AppendResponse { index, reject } => {
            let hint = reject.unwrap_or_default();
            index.0.max(hint.index.0).max(hint.term.0)
        }
        Payload::Vote { last, .. } => last.index.0.max(last.term.0),
        Payload::Heartbeat { commit, .. } => commit.0,
        Payload::Snapshot(snapshot) => {
            let last = snapshot.meta.last;
            if last.term > message.term {
                return Err(malformed(message, "a snapshot of a future term"));
            }
            last.index.0
        }
        Payload::ReadIndexResponse { index, .. } => index.0,
        Payload::VoteResponse { committed, .. } => committed.index.0.max(committed.term.0),
        Payload::HeartbeatResponse { .. }
        | Payload::Propose { .. }
        | Payload::TransferLeader
        | Payload::TimeoutNow
        | Payload::ReadIndex { .. } => 0,
    };
    if largest.max(message.term.0) > LARGEST_NUMBER {
        return Err(malformed(message, "a number out of range"));
    }
    Ok(())
}

pub(crate) const fn malformed(message: &Message, reason: &'static str) -> StepError {
    StepError::Malformed {
        from: message.from,
        reason,
    }
}

/// An internal error met while stepping poisons the replica, not the sender.
pub(crate) fn internal(error: Error) -> StepError {
    match error {
        Error::Storage(error) => StepError::Storage(error),
        Error::Invariant(what) => StepError::Poisoned(what),
        Error::Config(_) => StepError::Poisoned("configuration"),
        Error::Membership(_) => StepError::Poisoned("membership"),
    }
}
