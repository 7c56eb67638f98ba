//! The way to talk to a host: cheap to clone, callable from any thread, never blocking.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use polyraft_core::{
    ConfChangeKind, EntryId, Index, Message, Payload, ReplicaId, RoleName, Status, Term, Transition,
};

use crate::budget::Budget;
use crate::config::HostConfig;
use crate::env::{
    Body, GroupMessage, Inbound, Lost, SnapshotHeader, SnapshotReceiver, SnapshotRefusal,
    SnapshotSink, StateMachine,
};
use crate::error::Reject;
use crate::group::{Epoch, GroupDescriptor, GroupId, KeyRange, StoreId};
use crate::input::{Admin, Input};
use crate::ranges::{RangeCommand, SplitPiece};
use crate::responder::Responder;
use crate::sync::Sender;
use crate::worker::{Counters, Shared};

/// Leave to read: the local state machine contains every write acknowledged before the request.
///
/// It says what held when it was given. Until the data is read the replica may have been removed or fed by
/// snapshot, or its keys may have moved, so that a key is absent that is not: what was read counts only if
/// [`ReadPermit::still_holds`] says so *afterwards*.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadPermit {
    /// The index the state machine has reached at least.
    pub applied: Index,
    /// The descriptor as of then.
    pub descriptor: Arc<GroupDescriptor>,
    /// The replica that leads the group here.
    pub replica: ReplicaId,
    /// The term in which it does.
    pub term: Term,
}

impl ReadPermit {
    /// Whether what was read since the permit was given may be answered: the replica is here and has led all
    /// the time, and the group has the range that it had. Else nothing can be said of what was read, and
    /// whoever wants to know asks again, perhaps another group.
    ///
    /// What ends a replica, its leadership or its range is made known before its data is touched, and nobody
    /// leads twice in a term; therefore it is enough to look once, after the read.
    #[must_use]
    pub fn still_holds(&self, host: &HostHandle) -> bool {
        let group = self.descriptor.group;
        let router = &host.inner.shared.router;
        let (Some(summary), Some(generation)) = (router.summary(group), router.generation(group))
        else {
            return false;
        };
        let basic = &summary.basic;
        let leads = basic.soft_state.role == RoleName::Leader && basic.hard_state.term == self.term;
        let range = generation == self.descriptor.epoch.range;
        leads && range && summary.replica == self.replica
    }
}

/// One wanted change of membership, by store; the host picks and looks up replica ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberChange {
    /// What.
    pub kind: ConfChangeKind,
    /// On which store.
    pub store: StoreId,
}

/// What costs nothing to say about a replica; published by its worker at the end of a pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplicaSummary {
    /// Which group.
    pub group: GroupId,
    /// Which replica.
    pub replica: ReplicaId,
    /// Role, leader, term, commit, applied.
    pub basic: polyraft_core::BasicStatus,
    /// The store of the leader, if known.
    pub leader_store: Option<StoreId>,
    /// Not ticked at the moment.
    pub asleep: bool,
}

/// Everything about a replica.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupStatus {
    /// As of the applied index.
    pub descriptor: GroupDescriptor,
    /// As the core says it; progress only on the leader.
    pub raft: Status,
    /// The entry before the first one in the log.
    pub truncated: EntryId,
    /// The last entry of the log.
    pub last: EntryId,
    /// Bytes of log entries kept in memory.
    pub cached_log_bytes: u64,
    /// Applied and durable.
    pub flushed: Index,
    /// Not ticked at the moment.
    pub asleep: bool,
    /// Why the replica is out of service, if it is.
    pub quarantined: Option<String>,
}

/// The way to talk to a host.
#[derive(Clone, Debug)]
pub struct HostHandle {
    pub(crate) inner: Arc<Mailboxes>,
}

/// Where inputs wait: per worker a lane of requests, bounded by the budgets, and a lane of
/// completions, bounded by what is in flight.
#[derive(Debug)]
pub(crate) struct Mailboxes {
    pub(crate) config: Arc<HostConfig>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) requests: Vec<Sender<Input>>,
    pub(crate) completions: Vec<Sender<Input>>,
    pub(crate) proposals: Budget,
    pub(crate) inbound: Budget,
    pub(crate) state_machine: StateMachineRef,
}

/// A state machine that can be shown in debug output.
#[derive(Clone)]
pub(crate) struct StateMachineRef(pub(crate) Arc<dyn StateMachine>);

impl fmt::Debug for StateMachineRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StateMachine")
    }
}

/// What a store does, in numbers since its start (but for the first three).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostStats {
    /// Replicas on this store.
    pub replicas: u64,
    /// Of them, those that lead.
    pub leaders: u64,
    /// Of them, those that sleep.
    pub asleep: u64,
    /// Bytes of proposals that are not answered yet.
    pub proposal_bytes: u64,
    /// Bytes of messages that wait for a worker.
    pub inbound_bytes: u64,
    /// Turns of workers.
    pub passes: u64,
    /// Commands proposed here.
    pub proposals: u64,
    /// Linearizable reads asked for here.
    pub reads: u64,
    /// Messages of other stores.
    pub messages_in: u64,
    /// Of them dropped because the budget was used up.
    pub messages_dropped: u64,
    /// Of them refused as malformed.
    pub messages_refused: u64,
    /// Records written to the log.
    pub writes: u64,
    /// Of them synced.
    pub synced_writes: u64,
    /// Entries in them.
    pub written_entries: u64,
    /// Commands applied.
    pub applied_commands: u64,
    /// Writes of the state machine.
    pub apply_batches: u64,
    /// Snapshots sent.
    pub snapshots_sent: u64,
    /// Snapshots installed.
    pub snapshots_installed: u64,
    /// The disk was full at the last write.
    pub disk_full: bool,
}

impl HostHandle {
    /// Proposes a command; answered with the state machine's reply after it is applied.
    pub fn propose(&self, group: GroupId, data: Bytes, respond: Responder<Result<Bytes, Reject>>) {
        self.ask_for_command(group, None, data, respond);
    }

    /// The same for a command whose group was found by its key: refused if the group's range is not of the
    /// generation ([`Epoch::range`](crate::Epoch::range)) `expected` any more. What is not refused is
    /// applied while the group has the range of that generation.
    pub fn propose_if(
        &self,
        group: GroupId,
        expected: u64,
        data: Bytes,
        respond: Responder<Result<Bytes, Reject>>,
    ) {
        self.ask_for_command(group, Some(expected), data, respond);
    }

    fn ask_for_command(
        &self,
        group: GroupId,
        expected: Option<u64>,
        data: Bytes,
        respond: Responder<Result<Bytes, Reject>>,
    ) {
        let inner = &self.inner;
        let (size, limit) = (data.len() as u64, inner.config.command_bytes_max);
        if data.is_empty() {
            let why = "a command must not be empty".to_owned();
            return respond.answer(Err(Reject::Refused(why)));
        }
        if size > limit {
            return respond.answer(Err(Reject::TooLarge { size, limit }));
        }
        if inner.shared.is_over() {
            return respond.answer(Err(Reject::Stopped));
        }
        if inner.shared.is_disk_full() {
            return respond.answer(Err(Reject::DiskFull));
        }
        match inner.proposals.try_acquire(size + PROPOSAL_OVERHEAD) {
            Some(permit) => {
                self.request(
                    group,
                    Input::Propose {
                        group,
                        data,
                        expected,
                        permit,
                        respond,
                    },
                );
            }
            None => respond.answer(Err(Reject::Busy("too many proposals on this store"))),
        }
    }

    /// Asks for leave to read linearizably (ReadIndex; batched per group).
    pub fn read(&self, group: GroupId, respond: Responder<Result<ReadPermit, Reject>>) {
        let even_frozen = false;
        self.request(
            group,
            Input::Read {
                group,
                even_frozen,
                respond,
            },
        );
    }

    /// The descriptor of a group, frozen or not, linearizably (leader only): it is not older than
    /// the request.
    pub fn look(&self, group: GroupId, respond: Responder<Result<Arc<GroupDescriptor>, Reject>>) {
        let answer = move |result: Result<ReadPermit, Reject>| {
            respond.answer(result.map(|permit| permit.descriptor));
        };
        let read = Input::Read {
            group,
            even_frozen: true,
            respond: Responder::new(|| Err(Reject::Stopped), answer),
        };
        self.request(group, read);
    }

    /// Whether the logs of all members of a frozen group have its freeze, `at` (leader only): then, and not
    /// before, it can be merged. [`Reject::Busy`]: not yet.
    pub fn settled(&self, group: GroupId, at: EntryId, respond: Responder<Result<(), Reject>>) {
        self.request(group, Input::Admin(Admin::Settled { group, at, respond }));
    }

    /// Splits a group's range (leader only): the keys from each piece's start on belong to a new
    /// group, with replicas on the same stores. Refused if the group's epoch is not `expected` any
    /// more. Answered when the group has given the keys up, with its new descriptor and those of
    /// the new groups, by range; those begin a little later, when that is durable.
    ///
    /// Numbers of new groups must never have been used before: a store on which one was is left without that
    /// range.
    pub fn split(
        &self,
        group: GroupId,
        expected: Epoch,
        pieces: Vec<SplitPiece>,
        respond: Responder<Result<Vec<GroupDescriptor>, Reject>>,
    ) {
        self.change_range(group, RangeCommand::Split { expected, pieces }, respond);
    }

    /// Proposes a command that changes a group's range (leader only). Answered when it has its
    /// effect, with the descriptors of all groups that came out of it, by range, or with why it has
    /// none.
    pub fn change_range(
        &self,
        group: GroupId,
        command: RangeCommand,
        respond: Responder<Result<Vec<GroupDescriptor>, Reject>>,
    ) {
        let change = Admin::ChangeRange {
            group,
            command,
            respond,
        };
        self.request(group, Input::Admin(change));
    }

    /// Creates this store's replica of a new group whose first members the descriptor names, all
    /// voters. Succeeds if it is there already. Answered when that would survive a power cut; where
    /// a vote has made the replica before, when its leader has brought it the group's first state.
    pub fn create_group(
        &self,
        descriptor: GroupDescriptor,
        respond: Responder<Result<(), Reject>>,
    ) {
        let group = descriptor.group;
        self.request(
            group,
            Input::Admin(Admin::Create {
                descriptor,
                respond,
            }),
        );
    }

    /// Destroys this store's replica; with `next_replica` `u64::MAX` the group is dead here for ever.
    /// Answered when nothing of it is left and its key range is free.
    pub fn destroy_replica(
        &self,
        group: GroupId,
        next_replica: ReplicaId,
        respond: Responder<Result<(), Reject>>,
    ) {
        self.request(
            group,
            Input::Admin(Admin::Destroy {
                group,
                next_replica,
                respond,
            }),
        );
    }

    /// Changes membership (leader only); answered when the change is applied (a joint one: when
    /// it has been left, unless `transition` is explicit), with the new descriptor.
    ///
    /// A voter is removed in two steps: it becomes a learner first. If only the first could be made,
    /// the answer is [`Reject::Ambiguous`]; ask again. A leader that is to remove itself hands leadership
    /// over instead, if another voter stays, and names its successor: ask that one.
    pub fn change_members(
        &self,
        group: GroupId,
        changes: Vec<MemberChange>,
        transition: Transition,
        respond: Responder<Result<GroupDescriptor, Reject>>,
    ) {
        self.ask_for_change(group, None, changes, transition, respond);
    }

    /// The same for a change that was decided on by looking at a descriptor: refused if
    /// [`Epoch::membership`](crate::Epoch::membership) is not `expected` any more.
    pub fn change_members_if(
        &self,
        group: GroupId,
        expected: u64,
        changes: Vec<MemberChange>,
        transition: Transition,
        respond: Responder<Result<GroupDescriptor, Reject>>,
    ) {
        self.ask_for_change(group, Some(expected), changes, transition, respond);
    }

    fn ask_for_change(
        &self,
        group: GroupId,
        expected: Option<u64>,
        changes: Vec<MemberChange>,
        transition: Transition,
        respond: Responder<Result<GroupDescriptor, Reject>>,
    ) {
        let change = Admin::ChangeMembers {
            group,
            changes,
            transition,
            expected,
            respond,
        };
        self.request(group, Input::Admin(change));
    }

    /// Hands leadership to the replica on `to`; answered when this replica no longer leads.
    pub fn transfer_leader(
        &self,
        group: GroupId,
        to: StoreId,
        respond: Responder<Result<(), Reject>>,
    ) {
        self.request(group, Input::Admin(Admin::Transfer { group, to, respond }));
    }

    /// Campaigns now.
    pub fn campaign(&self, group: GroupId, respond: Responder<Result<(), Reject>>) {
        self.request(group, Input::Admin(Admin::Campaign { group, respond }));
    }

    /// Takes one replica out of service until this store starts again: it neither votes nor serves, and its
    /// group goes on without it. For who has found out that its data is wrong.
    pub fn quarantine(
        &self,
        group: GroupId,
        replica: ReplicaId,
        reason: String,
        respond: Responder<Result<(), Reject>>,
    ) {
        let quarantine = Admin::Quarantine {
            group,
            replica,
            reason,
            respond,
        };
        self.request(group, Input::Admin(quarantine));
    }

    /// Everything about one replica.
    pub fn describe(&self, group: GroupId, respond: Responder<Result<GroupStatus, Reject>>) {
        self.request(group, Input::Admin(Admin::Describe { group, respond }));
    }

    /// A summary of all replicas of this store, ascending by group, without asking the workers.
    #[must_use]
    pub fn list(&self) -> Vec<ReplicaSummary> {
        self.inner.shared.router.list()
    }

    /// The summary of one replica, without asking its worker.
    #[must_use]
    pub fn summary(&self, group: GroupId) -> Option<ReplicaSummary> {
        self.inner.shared.router.summary(group)
    }

    /// The descriptor of a group as last applied here, without asking its worker.
    #[must_use]
    pub fn descriptor(&self, group: GroupId) -> Option<Arc<GroupDescriptor>> {
        self.inner.shared.router.descriptor(group)
    }

    /// The generation of a group's range, without asking its worker: known before the data of a change moves,
    /// and so before [`Self::descriptor`] says it. What was read from the group's data under a descriptor
    /// counts only if this is the descriptor's generation afterwards.
    #[must_use]
    pub fn generation(&self, group: GroupId) -> Option<u64> {
        self.inner.shared.router.generation(group)
    }

    /// All descriptors as last applied here, ascending by group.
    #[must_use]
    pub fn descriptors(&self) -> Vec<Arc<GroupDescriptor>> {
        self.inner.shared.router.descriptors()
    }

    /// What the store does, in numbers.
    #[must_use]
    pub fn stats(&self) -> HostStats {
        let list = self.list();
        let count = |wanted: fn(&ReplicaSummary) -> bool| {
            list.iter().filter(|summary| wanted(summary)).count() as u64
        };
        let (shared, inner) = (&self.inner.shared, &self.inner);
        let c = &shared.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        HostStats {
            replicas: list.len() as u64,
            leaders: count(|summary| summary.basic.soft_state.role == RoleName::Leader),
            asleep: count(|summary| summary.asleep),
            proposal_bytes: inner.proposals.used(),
            inbound_bytes: inner.inbound.used(),
            passes: read(&c.passes),
            proposals: read(&c.proposals),
            reads: read(&c.reads),
            messages_in: read(&c.messages_in),
            messages_dropped: read(&c.messages_dropped),
            messages_refused: read(&c.messages_refused),
            writes: read(&c.writes),
            synced_writes: read(&c.synced_writes),
            written_entries: read(&c.written_entries),
            applied_commands: read(&c.applied_commands),
            apply_batches: read(&c.apply_batches),
            snapshots_sent: read(&c.snapshots_sent),
            snapshots_installed: read(&c.snapshots_installed),
            disk_full: shared.is_disk_full(),
        }
    }

    /// An unanswered responder in an input that nobody takes answers by itself.
    fn request(&self, group: GroupId, input: Input) {
        let worker = self.inner.shared.router.worker_of(group);
        drop(self.inner.requests[worker].send(input));
    }

    pub(crate) fn complete(&self, worker: usize, input: Input) {
        drop(self.inner.completions[worker].send(input));
    }
}

/// What a proposal counts for beside its bytes.
const PROPOSAL_OVERHEAD: u64 = 128;
/// What a message counts for beside its entries.
const MESSAGE_OVERHEAD: u64 = 64;

impl Inbound for HostHandle {
    fn deliver(&self, from: StoreId, messages: Vec<GroupMessage>) {
        let inner = &self.inner;
        let workers = inner.requests.len();
        let mut lists: Vec<(u64, Vec<GroupMessage>)> = (0..workers).map(|_| (0, vec![])).collect();
        for message in messages {
            let (bytes, list) = &mut lists[inner.shared.router.worker_of(message.group)];
            *bytes += MESSAGE_OVERHEAD + payload_bytes(&message);
            list.push(message);
        }
        for (worker, (bytes, messages)) in lists.into_iter().enumerate() {
            if messages.is_empty() {
                continue;
            }
            match inner.inbound.try_acquire(bytes) {
                Some(permit) => {
                    let input = Input::Messages {
                        from,
                        messages,
                        permit,
                    };
                    drop(inner.requests[worker].send(input));
                }
                // Raft repairs what is lost.
                None => Counters::add(
                    &inner.shared.counters.messages_dropped,
                    messages.len() as u64,
                ),
            }
        }
    }

    fn store_up(&self, store: StoreId, _incarnation: u64) {
        for worker in 0..self.inner.completions.len() {
            self.complete(worker, Input::StoreUp(store));
        }
    }

    fn store_down(&self, store: StoreId) {
        for worker in 0..self.inner.completions.len() {
            self.complete(worker, Input::StoreDown(store));
        }
    }

    fn lost(&self, to: StoreId, messages: Lost) {
        let workers = self.inner.completions.len();
        let Lost::Of(groups) = messages else {
            for worker in 0..workers {
                self.complete(worker, Input::Lost(to, Lost::Any));
            }
            return;
        };
        let mut lists: Vec<Vec<GroupId>> = vec![Vec::new(); workers];
        for group in groups {
            lists[self.inner.shared.router.worker_of(group)].push(group);
        }
        for (worker, groups) in lists.into_iter().enumerate() {
            if !groups.is_empty() {
                self.complete(worker, Input::Lost(to, Lost::Of(groups)));
            }
        }
    }

    fn begin_snapshot(
        &self,
        from: StoreId,
        header: SnapshotHeader,
    ) -> Result<Box<dyn SnapshotReceiver>, SnapshotRefusal> {
        let group = header.group;
        let not_wanted = |why: &str| Err(SnapshotRefusal::NotWanted(why.to_owned()));
        if self.inner.shared.is_over() {
            return not_wanted("the store is shutting down");
        }
        let snapshot = match &header.message.payload {
            Payload::Snapshot(snapshot) => snapshot.meta.last,
            _ => return not_wanted("the message is no snapshot"),
        };
        if snapshot != header.state.last || header.state.descriptor.group != group {
            return not_wanted("message and state disagree");
        }
        let range = header.state.descriptor.range.as_ref();
        if range.is_some_and(KeyRange::is_empty) {
            return not_wanted("its range contains no key");
        }
        if header.state.descriptor.store_of(header.message.to) != Some(self.inner.config.store) {
            return not_wanted("it does not know this replica as a member");
        }
        if header.message.to < self.inner.shared.registry.lowest(group) {
            return not_wanted("it is for a replica that was destroyed here");
        }
        if let Some(present) = self.summary(group) {
            if present.replica > header.message.to {
                return not_wanted("it is for a replica that was removed");
            }
            let commit = present.basic.hard_state.commit;
            if present.replica == header.message.to && snapshot.index <= commit {
                // Its leader does not know what is here, and would send it again and again: the
                // core says so.
                let body = Body::Raft(header.message);
                self.deliver(from, vec![GroupMessage { group, body }]);
                return not_wanted("it is not newer than what is here");
            }
        }
        let shared = &self.inner.shared;
        if shared.registry.is_being_born(group) {
            return not_wanted("the group is being born");
        }
        let overlapping = shared.registry.overlapping(group, range);
        let taken: Vec<GroupId> = overlapping.iter().copied().chain([group]).collect();
        for owner in overlapping {
            let known = shared.router.descriptor(owner);
            let Some(known) = known.filter(|it| header.state.descriptor.has_subsumed(it)) else {
                return not_wanted(&format!("its range overlaps that of group {owner}"));
            };
            if shared.is_lock(&known, &taken) {
                let why =
                    format!("the left neighbour of group {owner} has not merged with it here");
                return not_wanted(&why);
            }
        }
        let sink = self.inner.state_machine.0.stage(&header.state)?;
        Ok(Box::new(Receiver {
            handle: self.clone(),
            from,
            header,
            sink,
        }))
    }
}

struct Receiver {
    handle: HostHandle,
    from: StoreId,
    header: SnapshotHeader,
    sink: Box<dyn SnapshotSink>,
}

impl SnapshotReceiver for Receiver {
    fn write(&mut self, chunk: Bytes) -> Result<(), SnapshotRefusal> {
        Ok(self.sink.write(chunk)?)
    }

    fn finish(self: Box<Self>) -> Result<(), SnapshotRefusal> {
        let Self {
            handle,
            from,
            header,
            sink,
        } = *self;
        let staged = sink.finish()?;
        let worker = handle.inner.shared.router.worker_of(header.group);
        let header = Box::new(header);
        handle.complete(
            worker,
            Input::SnapshotReceived {
                from,
                header,
                staged,
            },
        );
        Ok(())
    }
}

fn payload_bytes(message: &GroupMessage) -> u64 {
    match &message.body {
        Body::Raft(Message {
            payload: Payload::Append { entries, .. },
            ..
        }) => entries.iter().map(polyraft_core::Entry::size).sum(),
        Body::Raft(_) | Body::Sleep(_) | Body::Tombstone { .. } => 0,
    }
}
