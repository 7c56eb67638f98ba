//! The face of a replica. Nothing here decides about Raft; it only orders what comes in and out, and
//! stops a replica whose invariants broke.

use alloc::boxed::Box;
use alloc::vec::Vec;

use bytes::Bytes;

use crate::config::Config;
use crate::entry::{Entry, EntryKind};
use crate::error::{Error, ProposeError, StepError, StorageError};
use crate::event::Event;
use crate::log::{Appliable, Log};
use crate::membership::{ConfChange, ConfChangeV2, ConfState};
use crate::message::{Message, Payload};
use crate::planted;
use crate::raft::{Raft, Role};
use crate::ready::{
    Append, Fetch, Fetched, HardState, Persisted, Ready, Receipt, SnapshotOutcome, SoftState,
};
use crate::status::{BasicStatus, RoleName, Status};
use crate::storage::Storage;
use crate::types::{EntryId, Index, ReplicaId, Term};

/// One replica of one group. See the crate's documentation for the duties of its host.
#[derive(Debug)]
pub struct RaftNode<S> {
    pub(crate) raft: Raft<S>,
    // As last handed out.
    soft_state: SoftState,
    hard_state: HardState,
    poisoned: Option<&'static str>,
}

impl<S: Storage> RaftNode<S> {
    /// A replica that continues from what its storage holds.
    ///
    /// # Errors
    /// The configuration cannot work, or the storage contradicts itself.
    pub fn new(config: Config, storage: S) -> Result<Self, Error> {
        let raft = Raft::new(&config, storage)?;
        let (soft_state, hard_state) = (raft.soft_state(), raft.hard_state());
        Ok(Self {
            raft,
            soft_state,
            hard_state,
            poisoned: None,
        })
    }

    /// One unit of logical time has passed.
    ///
    /// # Errors
    /// A broken invariant or a storage that cannot be trusted; the replica stops for good.
    pub fn tick(&mut self) -> Result<(), Error> {
        self.guarded(Raft::tick)
    }

    /// Campaign now, if this replica may.
    ///
    /// # Errors
    /// As [`tick`](Self::tick).
    pub fn campaign(&mut self) -> Result<(), Error> {
        self.guarded(Raft::campaign_now)
    }

    /// Proposes normal entries, all or none. On a leader: the id of the first one appended (the
    /// others follow consecutively). On a follower that passed them on: `None`.
    ///
    /// # Errors
    /// The proposals were dropped; they certainly have no effect.
    pub fn propose(&mut self, payloads: Vec<Bytes>) -> Result<Option<EntryId>, ProposeError> {
        let entry = |data| Entry {
            data,
            ..Entry::default()
        };
        self.propose_entries(payloads.into_iter().map(entry).collect())
    }

    /// Proposes an entry of kind [`EntryKind::Host`].
    ///
    /// # Errors
    /// As [`propose`](Self::propose).
    pub fn propose_host(&mut self, data: Bytes) -> Result<Option<EntryId>, ProposeError> {
        let kind = EntryKind::Host;
        self.propose_entries(alloc::vec![Entry {
            kind,
            data,
            ..Entry::default()
        }])
    }

    /// Proposes a change of membership. A leader that may not do it now appends an empty entry
    /// instead and says so in an event; the id returned is then that of the empty entry.
    ///
    /// # Errors
    /// As [`propose`](Self::propose).
    pub fn propose_conf_change(
        &mut self,
        change: &ConfChangeV2,
    ) -> Result<Option<EntryId>, ProposeError> {
        let (kind, data) = (EntryKind::ConfChangeV2, change.encode());
        self.propose_entries(alloc::vec![Entry {
            kind,
            data,
            ..Entry::default()
        }])
    }

    /// The same in etcd's V1 form.
    ///
    /// # Errors
    /// As [`propose`](Self::propose).
    pub fn propose_conf_change_v1(
        &mut self,
        change: &ConfChange,
    ) -> Result<Option<EntryId>, ProposeError> {
        let (kind, data) = (EntryKind::ConfChange, change.encode());
        self.propose_entries(alloc::vec![Entry {
            kind,
            data,
            ..Entry::default()
        }])
    }

    fn propose_entries(&mut self, entries: Vec<Entry>) -> Result<Option<EntryId>, ProposeError> {
        if let Some(why) = self.poisoned {
            return Err(ProposeError::Poisoned(why));
        }
        let id = EntryId {
            term: self.raft.term,
            index: self.raft.log.last_index().next(),
        };
        match self.raft.role {
            Role::Leader(_) => {
                let result = self.raft.propose_as_leader(entries);
                if let Err(error) = &result {
                    self.stop_if_broken(*error);
                }
                result.map(|()| Some(id))
            }
            Role::Follower => match self.raft.forward_proposal(entries) {
                Ok(()) => Ok(None),
                Err(_) => Err(ProposeError::Dropped),
            },
            Role::PreCandidate(_) | Role::Candidate(_) => {
                self.raft.events.push(Event::NoLeaderForProposal {
                    term: self.raft.term,
                });
                Err(ProposeError::Dropped)
            }
        }
    }

    /// An internal error met half way through a proposal stops the replica, so that what is
    /// appended already goes nowhere and the proposal certainly has no effect.
    const fn stop_if_broken(&mut self, error: ProposeError) {
        match error {
            ProposeError::Storage(_) => self.poisoned = Some("storage failed"),
            ProposeError::Poisoned(why) => self.poisoned = Some(why),
            ProposeError::Dropped | ProposeError::UncommittedLimit => {}
        }
    }

    /// A message from another replica.
    ///
    /// # Errors
    /// The message was refused; only [`StepError::Poisoned`] and [`StepError::Storage`] concern
    /// this replica itself and stop it.
    pub fn step(&mut self, message: Message) -> Result<(), StepError> {
        let from = message.from;
        if from.is_none() || from == self.raft.id {
            return Err(StepError::Malformed {
                from,
                reason: "impossible sender",
            });
        }
        if message.to != self.raft.id {
            return Err(StepError::Malformed {
                from,
                reason: "addressed to another replica",
            });
        }
        self.step_any(message)
    }

    /// As [`step`](Self::step), also for what this replica says to itself.
    #[doc(hidden)]
    pub fn step_any(&mut self, message: Message) -> Result<(), StepError> {
        if let Some(why) = self.poisoned {
            return Err(StepError::Poisoned(why));
        }
        if message.payload.is_response() && !self.raft.is_member(message.from) {
            return Err(StepError::PeerNotFound);
        }
        let result = self.raft.step(message);
        match &result {
            Err(StepError::Poisoned(why)) => self.poisoned = Some(why),
            Err(StepError::Storage(_)) => self.poisoned = Some("storage failed"),
            Err(StepError::Propose(error)) => self.stop_if_broken(*error),
            Err(StepError::PeerNotFound | StepError::Malformed { .. }) | Ok(()) => {}
        }
        result
    }

    /// Whether [`ready`](Self::ready) would return anything.
    #[must_use]
    pub fn has_ready(&self) -> bool {
        self.has_ready_of(Appliable::Durable)
    }

    pub(crate) fn has_ready_of(&self, which: Appliable) -> bool {
        let raft = &self.raft;
        self.poisoned.is_none()
            && (!raft.messages.is_empty()
                || !raft.held.is_empty()
                || raft.log.unstable.has_next_entries()
                || (raft.has_committed(which) && !raft.waits_to_apply())
                || !raft.reads.is_empty()
                || !raft.fetches.is_empty()
                || raft.hard_state() != self.hard_state
                || raft.soft_state() != self.soft_state
                || raft.log.unstable.next_snapshot().is_some())
    }

    /// Takes all that is to be done; it counts as handed out from now on.
    ///
    /// # Errors
    /// As [`tick`](Self::tick).
    pub fn ready(&mut self) -> Result<Ready, Error> {
        self.ready_of(Appliable::Durable)
    }

    pub(crate) fn ready_of(&mut self, which: Appliable) -> Result<Ready, Error> {
        if let Some(why) = self.poisoned {
            return Err(Error::Invariant(why));
        }
        let committed = self.take_committed(which)?;
        let append = self.take_append();
        let raft = &mut self.raft;
        let before = core::mem::replace(&mut self.soft_state, raft.soft_state());
        Ok(Ready {
            soft_state: (before != self.soft_state).then_some(self.soft_state),
            messages: raft.messages.take(),
            append,
            committed,
            reads: core::mem::take(&mut raft.reads),
            fetches: core::mem::take(&mut raft.fetches),
            events: raft.events.take(),
        })
    }

    fn take_append(&mut self) -> Option<Append> {
        let raft = &mut self.raft;
        let (before, now) = (self.hard_state, raft.hard_state());
        let entries = raft.log.unstable.next_entries().to_vec();
        let snapshot = raft.log.unstable.next_snapshot().cloned().map(Box::new);
        let held = raft.held.take();
        if entries.is_empty() && snapshot.is_none() && held.is_empty() && before == now {
            return None;
        }
        let waiting = raft.log.unstable.len() > 0;
        let receipt = (waiting || snapshot.is_some()).then(|| Receipt {
            term: raft.term,
            // For the whole tail, not only what is in this write: if an earlier write's receipt
            // comes too late to count, this one makes up for it.
            last: waiting.then(|| raft.log.last_id().unwrap_or_default()),
            snapshot: snapshot.as_ref().map(|snapshot| snapshot.meta.last.index),
        });
        raft.log.unstable.accept();
        self.hard_state = now;
        Some(Append {
            hard_state: if planted!(ForgottenVote) && before.vote != now.vote {
                let vote = ReplicaId::NONE;
                Some(HardState { vote, ..now })
            } else {
                (before != now).then_some(now)
            },
            must_sync: !entries.is_empty() || before.term != now.term || before.vote != now.vote,
            entries,
            snapshot,
            held,
            receipt,
        })
    }

    fn take_committed(&mut self, which: Appliable) -> Result<Vec<Entry>, Error> {
        let log = &mut self.raft.log;
        match log.next_committed(which) {
            Ok(entries) => {
                if let Some(last) = entries.last() {
                    let bytes = entries.iter().map(Entry::size).sum();
                    log.accept_applying(last.index, bytes, which);
                }
                Ok(entries)
            }
            Err(StorageError::TemporarilyUnavailable) => {
                let (low, high, max_bytes) = log.applying_range(which);
                let high = high.min(log.unstable.offset());
                self.raft.fetch(Fetch {
                    low,
                    high,
                    max_bytes,
                    replica: ReplicaId::NONE,
                });
                Ok(Vec::new())
            }
            Err(error) => {
                self.poisoned = Some("committed entries cannot be read");
                Err(error.into())
            }
        }
    }

    /// Takes the events so far, without waiting for the next [`ready`](Self::ready).
    pub fn take_events(&mut self) -> Vec<Event> {
        self.raft.events.take()
    }

    /// An [`Append`] is durable.
    ///
    /// # Errors
    /// As [`tick`](Self::tick).
    pub fn on_persisted(&mut self, persisted: Persisted) -> Result<(), Error> {
        let mut own = persisted.own.into_iter().peekable();
        while let Some(message) = own.next() {
            // A leader answers itself once per proposal; the last answer says it all.
            if !own.peek().is_some_and(|next| next.supersedes(&message)) {
                self.step_own(message)?;
            }
        }
        match persisted.receipt {
            Some(receipt) => self.guarded(|raft| raft.on_receipt(receipt)),
            None => Ok(()),
        }
    }

    fn step_own(&mut self, message: Message) -> Result<(), Error> {
        match self.step_any(message) {
            Err(StepError::Poisoned(why)) => Err(Error::Invariant(why)),
            Err(StepError::Storage(error)) => Err(error.into()),
            // Not a member any more, or overtaken by a later term: of no consequence.
            Err(StepError::PeerNotFound | StepError::Malformed { .. } | StepError::Propose(_))
            | Ok(()) => Ok(()),
        }
    }

    /// Entries up to `index`, together `bytes` of [`Entry::size`], are applied. For the limit on
    /// uncommitted bytes the payload is taken to be that without [`Entry::OVERHEAD`] each.
    ///
    /// # Errors
    /// As [`tick`](Self::tick); also if the index was not handed out.
    pub fn on_applied(&mut self, index: Index, bytes: u64) -> Result<(), Error> {
        let count = self.raft.log.applied().until(index);
        self.guarded(|raft| {
            if index > raft.log.applying() {
                return Err(Error::Invariant("applied what was not handed out"));
            }
            raft.applied_to(index, bytes)?;
            let overhead = count.saturating_mul(Entry::OVERHEAD);
            raft.reduce_uncommitted(bytes.saturating_sub(overhead));
            Ok(())
        })
    }

    /// An entry is known to be committed, and not from a leader of this group: what it says was
    /// done elsewhere could not have been done otherwise. False: it is not in the log, and nothing
    /// has changed.
    ///
    /// # Errors
    /// As [`tick`](Self::tick).
    pub fn learn_committed(&mut self, id: EntryId) -> Result<bool, Error> {
        self.guarded(|raft| {
            let known = id.index <= raft.log.committed();
            if known || !raft.log.matches(id) {
                return Ok(known);
            }
            raft.log.commit_to(id.index)?;
            Ok(true)
        })
    }

    /// A [`Fetch`] is answered.
    ///
    /// # Errors
    /// As [`tick`](Self::tick).
    pub fn on_fetched(&mut self, fetched: Fetched) -> Result<(), Error> {
        self.guarded(|raft| raft.on_fetched(fetched))
    }

    /// A committed change of membership takes effect. To be called before
    /// [`on_applied`](Self::on_applied) for its index, and not for changes that are part of a snapshot
    /// whose installation was acknowledged. While a snapshot is being installed, which contains all
    /// changes handed out before, nothing happens, and its configuration is returned.
    ///
    /// # Errors
    /// [`Error::Membership`]: the change is not possible, and changed nothing; the replica goes on.
    /// Else as [`tick`](Self::tick).
    pub fn apply_conf_change(&mut self, change: &ConfChangeV2) -> Result<ConfState, Error> {
        self.guarded(|raft| raft.apply_conf_change(change))
    }

    /// Hand leadership to `to`.
    ///
    /// # Errors
    /// As [`tick`](Self::tick).
    pub fn transfer_leader(&mut self, to: ReplicaId) -> Result<(), Error> {
        self.guarded(|raft| {
            match raft.role {
                Role::Leader(_) => raft.start_transfer(to)?,
                Role::Follower if !raft.leader.is_none() && raft.leader != to => {
                    // Asked for in the name of the one who is to lead.
                    let (leader, term) = (raft.leader, raft.term);
                    let payload = Payload::TransferLeader;
                    raft.messages.push(Message {
                        from: to,
                        to: leader,
                        term,
                        payload,
                    });
                }
                Role::Follower | Role::PreCandidate(_) | Role::Candidate(_) => {}
            }
            Ok(())
        })
    }

    /// Forget the leader without campaigning, so that pre-votes may be granted.
    pub fn forget_leader(&mut self) {
        self.raft.forget_leader();
    }

    /// Ask for an index at which a read is linearizable; answered in
    /// [`Ready::reads`] with the same context, or never if leadership changes: ask again then.
    ///
    /// # Errors
    /// [`ProposeError::Dropped`]: nobody to ask, or too many reads wait.
    pub fn read_index(&mut self, context: Bytes) -> Result<(), ProposeError> {
        if self.poisoned.is_some() || !self.raft.has_room_for_read() {
            return Err(ProposeError::Dropped);
        }
        match self.raft.role {
            Role::Leader(_) => self
                .guarded(|raft| raft.read_index_as_leader(raft.id, context))
                .map_err(|_| ProposeError::Dropped),
            Role::Follower | Role::PreCandidate(_) | Role::Candidate(_) => {
                self.raft
                    .send(self.raft.leader, Payload::ReadIndex { context });
                Ok(())
            }
        }
    }

    /// The last messages to `replica` may be lost.
    pub fn report_unreachable(&mut self, replica: ReplicaId) {
        self.raft.report_unreachable(replica);
    }

    /// How the sending of a snapshot ended.
    pub fn report_snapshot(&mut self, replica: ReplicaId, outcome: SnapshotOutcome) {
        self.raft.report_snapshot(replica, outcome);
    }

    /// What costs nothing to say.
    #[must_use]
    pub fn basic_status(&self) -> BasicStatus {
        BasicStatus {
            id: self.raft.id,
            hard_state: self.raft.hard_state(),
            soft_state: self.raft.soft_state(),
            applied: self.raft.log.applied(),
            transfer_target: self
                .raft
                .leader_data()
                .and_then(|leader| leader.transferee)
                .unwrap_or_default(),
        }
    }

    /// Everything, by value.
    #[must_use]
    pub fn status(&self) -> Status {
        let (raft, limits) = (&self.raft, self.raft.params.inflights);
        let progress = raft.leader_data().map_or_else(Vec::new, |leader| {
            let each = leader.progress.iter();
            each.map(|p| p.status(raft.config.is_learner(p.id), limits))
                .collect()
        });
        Status {
            basic: self.basic_status(),
            conf_state: raft.config.to_conf_state(),
            progress,
        }
    }

    /// Who this is.
    #[must_use]
    pub const fn id(&self) -> ReplicaId {
        self.raft.id
    }

    /// The current term.
    #[must_use]
    pub const fn term(&self) -> Term {
        self.raft.term
    }

    /// The role, without its data.
    #[must_use]
    pub const fn role(&self) -> RoleName {
        self.raft.role_name()
    }

    /// The leader known; none: nobody.
    #[must_use]
    pub const fn leader(&self) -> ReplicaId {
        self.raft.leader
    }

    /// The largest index known to be committed.
    #[must_use]
    pub const fn committed(&self) -> Index {
        self.raft.log.committed()
    }

    /// Acknowledged as applied.
    #[must_use]
    pub const fn applied(&self) -> Index {
        self.raft.log.applied()
    }

    /// The last entry of the log, durable or not.
    #[must_use]
    pub fn last_index(&self) -> Index {
        self.raft.log.last_index()
    }

    /// On a leader: the smallest index that all members other than itself are known to have. `None`
    /// without other members or on a follower.
    #[must_use]
    pub fn matched_by_all(&self) -> Option<Index> {
        let leader = self.raft.leader_data()?;
        let others = leader
            .progress
            .iter()
            .filter(|progress| progress.id != self.raft.id);
        others.map(|progress| progress.matched).min()
    }

    /// Why the replica has stopped, if it has.
    #[must_use]
    pub const fn poisoned(&self) -> Option<&'static str> {
        self.poisoned
    }

    /// The storage.
    #[must_use]
    pub const fn storage(&self) -> &S {
        self.log().storage_ref()
    }

    /// The storage, for the host to update.
    pub const fn storage_mut(&mut self) -> &mut S {
        &mut self.raft.log.storage
    }

    const fn log(&self) -> &Log<S> {
        &self.raft.log
    }

    /// Every internal invariant, for tests and simulations.
    ///
    /// # Errors
    /// Names the one that is broken.
    pub fn check(&self) -> Result<(), Error> {
        crate::invariants::check(&self.raft)
    }

    /// Replaces the drawn election timeout until the next reset, for transcripts.
    #[doc(hidden)]
    pub const fn set_randomized_election_timeout(&mut self, ticks: u32) {
        self.raft.election_timeout = ticks;
    }

    /// Runs one operation; an error that is not about the caller's wish stops the replica for good.
    fn guarded<T>(
        &mut self,
        operation: impl FnOnce(&mut Raft<S>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        if let Some(why) = self.poisoned {
            return Err(Error::Invariant(why));
        }
        let result = operation(&mut self.raft);
        match &result {
            Err(Error::Invariant(why)) => self.poisoned = Some(why),
            Err(Error::Storage(_)) => self.poisoned = Some("storage failed"),
            Err(Error::Config(_) | Error::Membership(_)) | Ok(_) => {}
        }
        result
    }
}
