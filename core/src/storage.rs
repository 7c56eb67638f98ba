//! The stable log as the core sees it: answered from memory, never from a disk.

use alloc::vec::Vec;

use crate::entry::Entry;
use crate::error::StorageError;
use crate::membership::ConfState;
use crate::ready::{HardState, Snapshot};
use crate::types::{Index, ReplicaId, Term};

/// What a replica starts from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InitialState {
    /// Term, vote and commit as last stored.
    pub hard_state: HardState,
    /// The configuration as of the applied index.
    pub conf_state: ConfState,
}

/// The stable log of one replica.
///
/// Must answer from memory. What is not in memory is answered by
/// [`StorageError::TemporarilyUnavailable`]; the core then asks for it in
/// [`Ready::fetches`](crate::Ready::fetches). Terms and bounds are always known.
pub trait Storage {
    /// What to start from.
    fn initial_state(&self) -> Result<InitialState, StorageError>;
    /// Entries of `[low, high)`, cut after `max_bytes` of [`Entry::size`] but never empty.
    fn entries(&self, low: Index, high: Index, max_bytes: u64) -> Result<Vec<Entry>, StorageError>;
    /// The term at `index`, for `index` in `[first_index - 1, last_index]`.
    fn term(&self, index: Index) -> Result<Term, StorageError>;
    /// The first index still present; the one before it has a known term.
    fn first_index(&self) -> Index;
    /// The last index present, or `first_index - 1`.
    fn last_index(&self) -> Index;
    /// A snapshot for `to`. May carry no data if the host moves data by itself.
    fn snapshot(&self, to: ReplicaId) -> Result<Snapshot, StorageError>;
}
