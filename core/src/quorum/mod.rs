//! Majorities: what a configuration has committed and how a vote in it stands.
//!
//! Pure functions over sorted id lists; nothing here allocates for groups of up to seven voters.

mod joint;
mod majority;

pub(crate) use joint::{committed, tally};

/// How a vote stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VoteResult {
    /// A quorum may still go either way.
    Pending,
    /// No quorum can agree any more.
    Lost,
    /// A quorum has agreed.
    Won,
}

/// The faces of this module that property tests and the conformance runner look at.
#[doc(hidden)]
pub mod inspect {
    use super::VoteResult;
    use crate::types::{Index, ReplicaId};

    /// The committed index of a joint configuration; `None` for an empty one (infinite).
    pub fn committed(
        incoming: &[ReplicaId],
        outgoing: &[ReplicaId],
        acked: impl Fn(ReplicaId) -> Option<Index>,
    ) -> Option<Index> {
        super::committed(incoming, outgoing, |id| acked(id).unwrap_or_default())
    }

    /// The outcome of a vote in a joint configuration.
    pub fn tally(
        incoming: &[ReplicaId],
        outgoing: &[ReplicaId],
        vote: impl Fn(ReplicaId) -> Option<bool>,
    ) -> VoteResult {
        super::tally(incoming, outgoing, vote)
    }
}
