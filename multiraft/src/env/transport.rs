//! Messages between stores.
//!
//! # Contract
//! * A transport may lose, duplicate and reorder messages, and never invents or alters one. A host
//!   is correct under all of that; the order below only spares it repairs.
//! * Within one lane of one connection: heartbeats ([`Body::Sleep`] among them), answers to
//!   heartbeats, and everything else each keep their own order. A heartbeat may overtake the other
//!   two, an answer everything else, and nothing is overtaken otherwise: what is sent after a
//!   heartbeat arrives after it. Heartbeats may stand together at the front of what is delivered at
//!   once, because they travel in columns.
//! * Between lanes, and between a connection and the next, there is no order.
//! * [`Transport::send`] never blocks and never fails: what cannot be sent is dropped and counted,
//!   [`Inbound::lost`] says so where nothing else does, and Raft repairs it.

use bytes::Bytes;
use polyraft_core::{Message, ReplicaId, SnapshotOutcome};

use super::{SnapshotSource, StateMachineError};
use crate::group::{AppliedState, GroupId, StoreId};
use crate::responder::Responder;

/// Which of the streams between two stores a message takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Heartbeats, votes and what else must not wait behind bulk.
    Control,
    /// Appends and their answers, forwarded proposals.
    Append,
}

/// A message of one group on its way between stores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupMessage {
    /// Which group.
    pub group: GroupId,
    /// What is said.
    pub body: Body,
}

/// What a message between stores can be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// A message of the core.
    Raft(Message),
    /// A heartbeat after which the leader goes to sleep; so may a follower that has everything.
    Sleep(Message),
    /// "There is no such replica here or there any more": the replica addressed is below
    /// `next_replica`, collects itself, and leaves a tombstone.
    Tombstone {
        /// Who is meant.
        replica: ReplicaId,
        /// The lowest id that may still exist; `u64::MAX`: the group is dead for ever.
        next_replica: ReplicaId,
    },
}

/// What comes before the chunks of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotHeader {
    /// Which group.
    pub group: GroupId,
    /// The message that Raft sends, its snapshot's `meta` set to what is really sent.
    pub message: Message,
    /// What the snapshot contains.
    pub state: AppliedState,
}

/// Why a snapshot is not taken.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotRefusal {
    /// Too many are coming in already.
    #[error("too many snapshots in flight")]
    Busy,
    /// Not for this store, not for this replica, or not newer than what is there.
    #[error("snapshot not wanted: {0}")]
    NotWanted(String),
    /// It could not be stored.
    #[error(transparent)]
    StateMachine(#[from] StateMachineError),
}

/// Whose messages to a store were lost on the way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lost {
    /// Messages of these groups, ascending, each once.
    Of(Vec<GroupId>),
    /// Whatever was under way when a lane broke: messages of any group.
    Any,
}

/// The way out.
pub trait Transport: Send + Sync + 'static {
    /// Sends messages to one store; never blocks. May call [`Inbound::lost`] before it returns.
    fn send(&self, to: StoreId, lane: Lane, messages: Vec<GroupMessage>);
    /// Sends a snapshot on a stream of its own; `done` is answered exactly once.
    fn send_snapshot(
        &self,
        to: StoreId,
        header: SnapshotHeader,
        source: Box<dyn SnapshotSource>,
        done: Responder<SnapshotOutcome>,
    );
}

/// The way in; a host's handle implements it. May be called from any thread.
pub trait Inbound: Send + Sync + 'static {
    /// Messages from one store. Never blocks; what does not fit is dropped and counted.
    fn deliver(&self, from: StoreId, messages: Vec<GroupMessage>);
    /// A store answers on the control lane to it; `incarnation` differs after each restart of it.
    fn store_up(&self, store: StoreId, incarnation: u64);
    /// Nothing has been heard of a store for too long, or its connection broke; what was under way
    /// on the control lane is lost.
    fn store_down(&self, store: StoreId);
    /// Messages to a store that is up were dropped because too many wait, or went down with a lane
    /// other than the control lane. Never blocks and sends nothing before it returns.
    fn lost(&self, to: StoreId, messages: Lost);
    /// A snapshot wants to come in. May write to disk, as may the receiver: call it where blocking
    /// is allowed.
    fn begin_snapshot(
        &self,
        from: StoreId,
        header: SnapshotHeader,
    ) -> Result<Box<dyn SnapshotReceiver>, SnapshotRefusal>;
}

/// A snapshot coming in. Dropped unfinished, it leaves nothing behind.
pub trait SnapshotReceiver: Send {
    /// The next chunk, in order, its checksum verified.
    fn write(&mut self, chunk: Bytes) -> Result<(), SnapshotRefusal>;
    /// All is there and the checksum over all is right; the snapshot goes to its replica.
    fn finish(self: Box<Self>) -> Result<(), SnapshotRefusal>;
}
