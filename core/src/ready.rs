//! What a replica wants done, as a value, and the receipts by which it learns that it was done.

use alloc::boxed::Box;
use alloc::vec::Vec;

use bytes::Bytes;

use crate::entry::Entry;
use crate::error::StorageError;
use crate::event::Event;
use crate::membership::ConfState;
use crate::message::Message;
use crate::status::RoleName;
use crate::types::{EntryId, Index, ReplicaId, Term};

/// What must survive a restart beside the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// The current term.
    pub term: Term,
    /// Who got the vote of this term.
    pub vote: ReplicaId,
    /// The largest index known to be committed.
    pub commit: Index,
}

/// What may be forgotten: who leads, and what this replica is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SoftState {
    /// The leader known; none: nobody.
    pub leader: ReplicaId,
    /// This replica's role.
    pub role: RoleName,
}

/// What a snapshot stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotMeta {
    /// The last entry it contains.
    pub last: EntryId,
    /// The configuration as of that entry.
    pub conf_state: ConfState,
}

/// A snapshot: what it stands for, and, where the host carries it inside, its data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// What it stands for.
    pub meta: SnapshotMeta,
    /// The state itself; empty where the host moves it on a stream of its own.
    pub data: Bytes,
}

/// The answer to a [`RaftNode::read_index`](crate::RaftNode::read_index).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadState {
    /// A state at or above this index may be read.
    pub index: Index,
    /// As in the request.
    pub context: Bytes,
}

/// Everything one replica wants done now.
#[must_use]
#[derive(Debug, Default)]
pub struct Ready {
    /// Present if changed since the last one.
    pub soft_state: Option<SoftState>,
    /// Messages that may leave before anything is written.
    pub messages: Vec<Message>,
    /// What must become durable, and what may leave only then.
    pub append: Option<Append>,
    /// Committed entries to apply, in order, each once.
    pub committed: Vec<Entry>,
    /// Reads that may be served.
    pub reads: Vec<ReadState>,
    /// Log ranges that are not in memory and are needed.
    pub fetches: Vec<Fetch>,
    /// What happened; the newest 512 to 1,024, if it was more since they were taken last.
    pub events: Vec<Event>,
}

/// One durable write of one replica. Messages that depend on it are locked inside.
#[must_use]
#[derive(Debug, Default)]
pub struct Append {
    pub(crate) hard_state: Option<HardState>,
    pub(crate) entries: Vec<Entry>,
    /// Boxed, since it is rare and every Ready would carry its size.
    pub(crate) snapshot: Option<Box<Snapshot>>,
    /// Entries, a term or a vote are to be written.
    pub(crate) must_sync: bool,
    /// Messages that wait, in order; those to this replica itself among them.
    pub(crate) held: Vec<Message>,
    pub(crate) receipt: Option<Receipt>,
}

impl Append {
    /// To store with or after the entries, if changed.
    #[must_use]
    pub const fn hard_state(&self) -> Option<HardState> {
        self.hard_state
    }

    /// Entries to append; whatever is stored at or above the first one's index is overwritten.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Takes the entries out, to be moved into the write.
    #[must_use]
    pub fn take_entries(&mut self) -> Vec<Entry> {
        core::mem::take(&mut self.entries)
    }

    /// A snapshot to install first; entries, if any, go on behind it.
    #[must_use]
    pub fn snapshot(&self) -> Option<&Snapshot> {
        self.snapshot.as_deref()
    }

    /// False if nothing of it needs to survive a power cut (only the commit index moved, or only
    /// messages wait for writes before this one): then the write may stay unsynced.
    #[must_use]
    pub const fn must_sync(&self) -> bool {
        self.must_sync || self.snapshot.is_some()
    }

    /// Gives out what was locked up, against the receipt of a finished sync: messages to send,
    /// and the token for [`RaftNode::on_persisted`](crate::RaftNode::on_persisted). Appends of one
    /// replica are written, and their tokens given back, in the order in which they were handed out.
    pub fn persisted(self, _receipt: &Durable) -> (Vec<Message>, Persisted) {
        let is_own = |message: &Message| message.from == message.to;
        // A leader holds only answers to itself, a follower only answers to others.
        let (own, send) = match self.held.iter().filter(|message| is_own(message)).count() {
            0 => (Vec::new(), self.held),
            all if all == self.held.len() => (self.held, Vec::new()),
            _ => self.held.into_iter().partition(is_own),
        };
        (
            send,
            Persisted {
                receipt: self.receipt,
                own,
            },
        )
    }

    /// The parts one by one, for transcripts that deliver each by itself: everything that waits,
    /// and the token without the answers to this replica itself.
    #[doc(hidden)]
    #[must_use]
    pub fn into_parts(self) -> (Vec<Message>, Option<Persisted>) {
        let token = self.receipt.map(|receipt| Persisted {
            receipt: Some(receipt),
            own: Vec::new(),
        });
        (self.held, token)
    }

    /// What waits, and what the token will say: term, last entry.
    #[doc(hidden)]
    #[must_use]
    pub fn inspect(&self) -> (&[Message], Option<(Term, Option<EntryId>)>) {
        (
            &self.held,
            self.receipt.map(|receipt| (receipt.term, receipt.last)),
        )
    }

    /// Whether entries, term or vote are to be written, which is what etcd calls `MustSync`.
    #[doc(hidden)]
    #[must_use]
    pub const fn entries_or_vote(&self) -> bool {
        self.must_sync
    }
}

/// Proof that a sync has returned. Only the code that called the sync may make one.
#[derive(Debug)]
pub struct Durable(());

impl Durable {
    /// To be called directly after a successful sync (or after an unsynced write that
    /// [`Append::must_sync`] allows), nowhere else.
    #[must_use]
    pub const fn attest() -> Self {
        Self(())
    }
}

/// What of a replica is durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Receipt {
    /// The term in which the write was handed out.
    pub(crate) term: Term,
    /// The last entry of the log then.
    pub(crate) last: Option<EntryId>,
    /// The snapshot in the write.
    pub(crate) snapshot: Option<Index>,
}

/// The token by which a replica learns that one of its appends is durable.
#[must_use]
#[derive(Debug, Default)]
pub struct Persisted {
    pub(crate) receipt: Option<Receipt>,
    /// Answers of this replica to itself (its vote, its append) that waited for the write.
    pub(crate) own: Vec<Message>,
}

impl Persisted {
    /// Whether giving it back would change nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.receipt.is_none() && self.own.is_empty()
    }
}

/// A log range that a replica needs and that is not in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// First index.
    pub low: Index,
    /// Past the last index.
    pub high: Index,
    /// Bytes after which to stop; at least one entry is returned.
    pub max_bytes: u64,
    /// The follower it is for; none: for applying or for this replica itself.
    pub replica: ReplicaId,
}

/// The answer to a [`Fetch`].
#[derive(Clone, Debug)]
pub struct Fetched {
    /// What was asked for.
    pub fetch: Fetch,
    /// Consecutive entries from `fetch.low`, or why not.
    pub entries: Result<Vec<Entry>, StorageError>,
}

/// How the sending of a snapshot ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotOutcome {
    /// It reached the follower.
    Sent,
    /// It did not; probe and try again.
    Failed,
}
