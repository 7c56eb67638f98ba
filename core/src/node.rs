//! The face of a replica. Nothing here decides.

use alloc::vec::Vec;

use bytes::Bytes;

use crate::config::Config;
use crate::error::{Error, ProposeError, StepError};
use crate::membership::{ConfChangeV2, ConfState};
use crate::message::Message;
use crate::ready::{Fetched, Persisted, Ready, SnapshotOutcome};
use crate::status::{BasicStatus, Status};
use crate::storage::Storage;
use crate::types::{EntryId, Index, ReplicaId};

/// One replica of one group.
#[derive(Debug)]
pub struct RaftNode<S> {
    storage: S,
}

impl<S: Storage> RaftNode<S> {
    /// A replica that continues from what its storage holds.
    pub fn new(_config: Config, _storage: S) -> Result<Self, Error> {
        todo!()
    }
    /// One unit of logical time has passed.
    pub fn tick(&mut self) -> Result<(), Error> {
        todo!()
    }
    /// Campaign now, if this replica may.
    pub fn campaign(&mut self) -> Result<(), Error> {
        todo!()
    }
    /// Proposes normal entries, all or none. On a leader: the id of the first one appended (the
    /// others follow consecutively). On a follower that forwards: `None`.
    pub fn propose(&mut self, _payloads: Vec<Bytes>) -> Result<Option<EntryId>, ProposeError> {
        todo!()
    }
    /// Proposes a change of membership. A leader that may not do it now appends an empty entry
    /// instead and says so in an event; the id returned is then that of the empty entry.
    pub fn propose_conf_change(
        &mut self,
        _change: ConfChangeV2,
    ) -> Result<Option<EntryId>, ProposeError> {
        todo!()
    }
    /// A message from another replica.
    pub fn step(&mut self, _message: Message) -> Result<(), StepError> {
        todo!()
    }
    /// Whether [`ready`](Self::ready) would return anything.
    #[must_use]
    pub fn has_ready(&self) -> bool {
        todo!()
    }
    /// Takes all that is to be done; it counts as handed out from now on.
    pub fn ready(&mut self) -> Result<Ready, Error> {
        todo!()
    }
    /// An [`Append`](crate::Append) is durable.
    pub fn on_persisted(&mut self, _persisted: Persisted) -> Result<(), Error> {
        todo!()
    }
    /// Entries up to `index`, `bytes` of [`Entry::size`](crate::Entry::size) together, are applied.
    pub fn on_applied(&mut self, _index: Index, _bytes: u64) -> Result<(), Error> {
        todo!()
    }
    /// A [`Fetch`](crate::Fetch) is answered.
    pub fn on_fetched(&mut self, _fetched: Fetched) -> Result<(), Error> {
        todo!()
    }
    /// A committed change of membership takes effect. To be called before
    /// [`on_applied`](Self::on_applied) for its index. Refused changes change nothing.
    pub fn apply_conf_change(&mut self, _change: &ConfChangeV2) -> Result<ConfState, Error> {
        todo!()
    }
    /// Hand leadership to `to`.
    pub fn transfer_leader(&mut self, _to: ReplicaId) -> Result<(), Error> {
        todo!()
    }
    /// Forget the leader without campaigning, so that pre-votes may be granted.
    pub fn forget_leader(&mut self) -> Result<(), Error> {
        todo!()
    }
    /// Ask for an index at which a read is linearizable; answered in
    /// [`Ready::reads`](crate::Ready::reads) with the same context.
    pub fn read_index(&mut self, _context: Bytes) -> Result<(), ProposeError> {
        todo!()
    }
    /// The last messages to `replica` may be lost.
    pub fn report_unreachable(&mut self, _replica: ReplicaId) {
        todo!()
    }
    /// How the sending of a snapshot ended.
    pub fn report_snapshot(&mut self, _replica: ReplicaId, _outcome: SnapshotOutcome) {
        todo!()
    }
    /// What costs nothing to say.
    #[must_use]
    pub fn basic_status(&self) -> BasicStatus {
        todo!()
    }
    /// Everything, by value.
    #[must_use]
    pub fn status(&self) -> Status {
        todo!()
    }
    /// The storage.
    #[must_use]
    pub const fn storage(&self) -> &S {
        &self.storage
    }
    /// The storage, for the host to update.
    pub const fn storage_mut(&mut self) -> &mut S {
        &mut self.storage
    }
}
