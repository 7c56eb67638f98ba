//! Log entries.

use bytes::Bytes;

use crate::types::{EntryId, Index, Term};

/// What an entry's payload is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// The user's bytes; empty for the entry that a new leader appends.
    #[default]
    Normal,
    /// An encoded [`ConfChange`](crate::ConfChange): one change.
    ConfChange,
    /// An encoded [`ConfChangeV2`](crate::ConfChangeV2): several changes, maybe joint. Empty
    /// bytes stand for "leave the joint configuration".
    ConfChangeV2,
    /// A command for whoever hosts the group, and not for its state machine; never looked at here.
    Host,
}

impl EntryKind {
    /// Whether it changes who is a member.
    #[must_use]
    pub const fn changes_membership(self) -> bool {
        matches!(self, Self::ConfChange | Self::ConfChangeV2)
    }
}

/// One entry of the replicated log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// The term in which a leader created it.
    pub term: Term,
    /// Its place in the log.
    pub index: Index,
    /// What the payload is.
    pub kind: EntryKind,
    /// The payload.
    pub data: Bytes,
}

impl Entry {
    /// Term and index.
    #[must_use]
    pub const fn id(&self) -> EntryId {
        EntryId {
            term: self.term,
            index: self.index,
        }
    }

    /// What the entry counts for in all limits on bytes that concern messages and applying: its
    /// payload and a fixed allowance for the rest.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.data.len() as u64 + Self::OVERHEAD
    }

    /// Bytes that every entry counts for beside its payload (term, index, kind, length).
    pub const OVERHEAD: u64 = 24;
}
