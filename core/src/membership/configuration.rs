//! A configuration as it is worked with.
//!
//! Invariants (checked by [`Configuration::check`]): every list is ascending without repetition; a
//! learner is no voter of either half; `learners_next` is a part of `outgoing` and none of it is in
//! `incoming`; where there is an outgoing half there is an incoming one; without an outgoing half
//! there is no `learners_next` and no `auto_leave`.

use alloc::vec::Vec;
use core::fmt;

use super::ConfState;
use crate::error::MembershipError;
use crate::quorum::{self, VoteResult};
use crate::types::{Index, ReplicaId};

/// Who votes, who learns, and whether a change is on its way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configuration {
    pub(crate) incoming: Vec<ReplicaId>,
    pub(crate) outgoing: Vec<ReplicaId>,
    pub(crate) learners: Vec<ReplicaId>,
    pub(crate) learners_next: Vec<ReplicaId>,
    pub(crate) auto_leave: bool,
}

impl Configuration {
    /// The configuration that `state` describes.
    ///
    /// # Errors
    /// [`MembershipError::Malformed`]: `state` breaks an invariant.
    pub fn restore(state: &ConfState) -> Result<Self, MembershipError> {
        let config = Self {
            incoming: sorted(&state.voters),
            outgoing: sorted(&state.voters_outgoing),
            learners: sorted(&state.learners),
            learners_next: sorted(&state.learners_next),
            auto_leave: state.auto_leave,
        };
        config.check()?;
        Ok(config)
    }

    /// The form that is stored and sent, ascending.
    #[must_use]
    pub fn to_conf_state(&self) -> ConfState {
        ConfState {
            voters: self.incoming.clone(),
            learners: self.learners.clone(),
            voters_outgoing: self.outgoing.clone(),
            learners_next: self.learners_next.clone(),
            auto_leave: self.auto_leave,
        }
    }

    /// Whether two majorities are needed.
    #[must_use]
    pub const fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Whether `id` votes in either half.
    #[must_use]
    pub fn is_voter(&self, id: ReplicaId) -> bool {
        has(&self.incoming, id) || has(&self.outgoing, id)
    }

    /// Whether `id` only learns.
    #[must_use]
    pub fn is_learner(&self, id: ReplicaId) -> bool {
        has(&self.learners, id)
    }

    /// Whether `id` is voter or learner.
    #[must_use]
    pub fn contains(&self, id: ReplicaId) -> bool {
        self.is_voter(id) || self.is_learner(id)
    }

    /// Whether `id` is the only voter.
    #[must_use]
    pub fn is_singleton(&self, id: ReplicaId) -> bool {
        self.outgoing.is_empty() && self.incoming == [id]
    }

    /// Voters of both halves, ascending.
    #[must_use]
    pub fn voters(&self) -> Vec<ReplicaId> {
        let mut all = self.incoming.clone();
        for &id in &self.outgoing {
            insert(&mut all, id);
        }
        all
    }

    /// Voters of both halves and learners, ascending.
    #[must_use]
    pub fn members(&self) -> Vec<ReplicaId> {
        let mut all = self.voters();
        for &id in &self.learners {
            insert(&mut all, id);
        }
        all
    }

    /// How many voters it takes at least to commit anything.
    pub(crate) const fn quorum_size(&self) -> usize {
        self.incoming.len() / 2 + 1
    }

    pub(crate) fn committed(&self, acked: impl Fn(ReplicaId) -> Index) -> Option<Index> {
        quorum::committed(&self.incoming, &self.outgoing, acked)
    }

    pub(crate) fn tally(&self, vote: impl Fn(ReplicaId) -> Option<bool>) -> VoteResult {
        quorum::tally(&self.incoming, &self.outgoing, vote)
    }

    /// The module's invariants.
    ///
    /// # Errors
    /// [`MembershipError::Malformed`] names the one that is broken.
    pub fn check(&self) -> Result<(), MembershipError> {
        let lists = [
            &self.incoming,
            &self.outgoing,
            &self.learners,
            &self.learners_next,
        ];
        if lists
            .iter()
            .any(|list| list.first().is_some_and(|id| id.is_none()))
        {
            return Err(MembershipError::Malformed("replica id 0"));
        }
        if self.learners.iter().any(|&id| self.is_voter(id)) {
            return Err(MembershipError::Malformed("a learner is a voter too"));
        }
        if self
            .learners_next
            .iter()
            .any(|&id| !has(&self.outgoing, id))
        {
            return Err(MembershipError::Malformed(
                "a next learner is no outgoing voter",
            ));
        }
        if self.learners_next.iter().any(|&id| has(&self.incoming, id)) {
            return Err(MembershipError::Malformed(
                "a next learner is an incoming voter",
            ));
        }
        if self.incoming.is_empty() && !self.outgoing.is_empty() {
            return Err(MembershipError::Malformed("joint without incoming voters"));
        }
        if self.outgoing.is_empty() && self.auto_leave {
            return Err(MembershipError::Malformed(
                "leaves automatically but is not joint",
            ));
        }
        Ok(())
    }
}

/// `voters=(1 2)&&(1 2 3) learners=(4) autoleave`, ids in hex as etcd writes them.
impl fmt::Display for Configuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("voters=")?;
        write_ids(f, &self.incoming)?;
        if self.is_joint() {
            f.write_str("&&")?;
            write_ids(f, &self.outgoing)?;
        }
        for (name, ids) in [
            ("learners", &self.learners),
            ("learners_next", &self.learners_next),
        ] {
            if !ids.is_empty() {
                write!(f, " {name}=")?;
                write_ids(f, ids)?;
            }
        }
        if self.auto_leave {
            f.write_str(" autoleave")
        } else {
            Ok(())
        }
    }
}

fn write_ids(f: &mut fmt::Formatter<'_>, ids: &[ReplicaId]) -> fmt::Result {
    f.write_str("(")?;
    for (i, id) in ids.iter().enumerate() {
        if i > 0 {
            f.write_str(" ")?;
        }
        write!(f, "{:x}", id.0)?;
    }
    f.write_str(")")
}

fn sorted(ids: &[ReplicaId]) -> Vec<ReplicaId> {
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    ids.dedup();
    ids
}

pub(super) fn has(ids: &[ReplicaId], id: ReplicaId) -> bool {
    ids.binary_search(&id).is_ok()
}

pub(super) fn insert(ids: &mut Vec<ReplicaId>, id: ReplicaId) {
    if let Err(at) = ids.binary_search(&id) {
        ids.insert(at, id);
    }
}

pub(super) fn remove(ids: &mut Vec<ReplicaId>, id: ReplicaId) {
    if let Ok(at) = ids.binary_search(&id) {
        ids.remove(at);
    }
}
