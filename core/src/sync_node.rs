//! The synchronous face: one [`SyncReady`] at a time, stored and applied by the caller before
//! [`SyncNode::advance`]. For small hosts and transcripts; a thin wrapper around [`RaftNode`].

use alloc::vec::Vec;

use crate::config::Config;
use crate::entry::Entry;
use crate::error::Error;
use crate::event::Event;
use crate::log::Appliable;
use crate::message::Message;
use crate::node::RaftNode;
use crate::ready::{Durable, Fetch, HardState, Persisted, ReadState, Snapshot, SoftState};
use crate::storage::Storage;
use crate::types::Index;

/// A replica whose host stores everything before it sends, applies or advances.
#[derive(Debug)]
pub struct SyncNode<S> {
    node: RaftNode<S>,
    pending: Option<(Persisted, Option<(Index, u64)>)>,
}

/// What is to be done: store `hard_state`, `entries` and `snapshot`; then send, apply, advance.
#[must_use]
#[derive(Debug, Default)]
pub struct SyncReady {
    /// Present if changed.
    pub soft_state: Option<SoftState>,
    /// Present if changed.
    pub hard_state: Option<HardState>,
    /// To append.
    pub entries: Vec<Entry>,
    /// To install first.
    pub snapshot: Option<Snapshot>,
    /// Committed entries to apply, after storing.
    pub committed: Vec<Entry>,
    /// To send, after storing.
    pub messages: Vec<Message>,
    /// Reads that may be served.
    pub reads: Vec<ReadState>,
    /// Log ranges that are not in memory and are needed; each is to be answered by
    /// [`RaftNode::on_fetched`] of [`SyncNode::node`], before or after advancing.
    pub fetches: Vec<Fetch>,
    /// Entries, term or vote must reach the disk before anything is sent.
    pub must_sync: bool,
    /// What happened.
    pub events: Vec<Event>,
}

impl<S: Storage> SyncNode<S> {
    /// As [`RaftNode::new`].
    ///
    /// # Errors
    /// As [`RaftNode::new`].
    pub fn new(config: Config, storage: S) -> Result<Self, Error> {
        Ok(Self {
            node: RaftNode::new(config, storage)?,
            pending: None,
        })
    }

    /// Whether [`ready`](Self::ready) would return anything.
    #[must_use]
    pub fn has_ready(&self) -> bool {
        self.node.has_ready_of(Appliable::All)
    }

    /// Takes what is to be done. [`advance`](Self::advance) must be called before the next.
    ///
    /// # Errors
    /// As [`RaftNode::ready`]; also if the last one was not advanced.
    pub fn ready(&mut self) -> Result<SyncReady, Error> {
        if self.pending.is_some() {
            return Err(Error::Invariant("ready without advance"));
        }
        let ready = self.node.ready_of(Appliable::All)?;
        let mut out = SyncReady {
            soft_state: ready.soft_state,
            committed: ready.committed,
            messages: ready.messages,
            reads: ready.reads,
            fetches: ready.fetches,
            events: ready.events,
            ..SyncReady::default()
        };
        let applied = out
            .committed
            .last()
            .map(|last| (last.index, out.committed.iter().map(Entry::size).sum()));
        let mut persisted = Persisted::default();
        if let Some(mut append) = ready.append {
            out.hard_state = append.hard_state;
            out.must_sync = append.must_sync;
            out.entries = append.take_entries();
            out.snapshot = append.snapshot.take().map(|snapshot| *snapshot);
            // By contract the caller stores before it sends.
            let (send, token) = append.persisted(&Durable::attest());
            out.messages.extend(send);
            persisted = token;
        }
        self.pending = Some((persisted, applied));
        Ok(out)
    }

    /// What [`ready`](Self::ready) returned is stored, sent and applied.
    ///
    /// # Errors
    /// As [`RaftNode::on_persisted`] and [`RaftNode::on_applied`].
    pub fn advance(&mut self) -> Result<(), Error> {
        let Some((persisted, applied)) = self.pending.take() else {
            return Ok(());
        };
        self.node.on_persisted(persisted)?;
        match applied {
            Some((index, bytes)) => self.node.on_applied(index, bytes),
            None => Ok(()),
        }
    }

    /// The replica inside, for everything else.
    pub const fn node(&mut self) -> &mut RaftNode<S> {
        &mut self.node
    }
}
