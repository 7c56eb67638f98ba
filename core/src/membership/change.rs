//! How a change turns one configuration into the next (thesis section 4.3; the order of checks and
//! their texts are etcd's, pinned by its data files).

use super::configuration::{Configuration, has, insert, remove};
use super::{ConfChangeKind, ConfChangeV2};
use crate::error::MembershipError;
use crate::types::ReplicaId;

impl Configuration {
    /// The configuration after `change`, whatever kind of change it is.
    ///
    /// # Errors
    /// The change is not possible here.
    pub fn apply(&self, change: &ConfChangeV2) -> Result<Self, MembershipError> {
        if change.leaves_joint() {
            self.leave_joint()
        } else if let Some(auto_leave) = change.enters_joint() {
            self.enter_joint(auto_leave, &change.changes)
        } else {
            self.simple(&change.changes)
        }
    }

    /// A change that moves one voter at most and needs no second majority.
    ///
    /// # Errors
    /// The configuration is joint, would lose all voters, or would change more than one.
    pub fn simple(&self, changes: &[(ConfChangeKind, ReplicaId)]) -> Result<Self, MembershipError> {
        if self.is_joint() {
            return Err(MembershipError::SimpleInJoint);
        }
        let next = self.with_each(changes)?;
        let gone = self
            .incoming
            .iter()
            .filter(|&&id| !has(&next.incoming, id))
            .count();
        let new = next
            .incoming
            .iter()
            .filter(|&&id| !has(&self.incoming, id))
            .count();
        if gone + new > 1 {
            return Err(MembershipError::MoreThanOneVoter);
        }
        Ok(next)
    }

    /// The incoming half becomes the outgoing one too, then the changes are made to the incoming.
    ///
    /// # Errors
    /// The configuration is joint already, has no voters, or would lose all of them.
    pub fn enter_joint(
        &self,
        auto_leave: bool,
        changes: &[(ConfChangeKind, ReplicaId)],
    ) -> Result<Self, MembershipError> {
        if self.is_joint() {
            return Err(MembershipError::AlreadyJoint);
        }
        if self.incoming.is_empty() {
            return Err(MembershipError::ZeroVoterJoint);
        }
        let joint = Self {
            outgoing: self.incoming.clone(),
            ..self.clone()
        };
        let mut next = joint.with_each(changes)?;
        next.auto_leave = auto_leave;
        Ok(next)
    }

    /// The outgoing half goes; those who were to become learners do.
    ///
    /// # Errors
    /// The configuration is not joint.
    pub fn leave_joint(&self) -> Result<Self, MembershipError> {
        if !self.is_joint() {
            return Err(MembershipError::NotJoint);
        }
        let mut next = self.clone();
        for id in core::mem::take(&mut next.learners_next) {
            insert(&mut next.learners, id);
        }
        next.outgoing.clear();
        next.auto_leave = false;
        next.check()?;
        Ok(next)
    }

    fn with_each(&self, changes: &[(ConfChangeKind, ReplicaId)]) -> Result<Self, MembershipError> {
        let mut next = self.clone();
        for &(kind, id) in changes {
            // Id 0 stands for a change that its proposer withdrew.
            if id.is_none() {
                continue;
            }
            match kind {
                ConfChangeKind::AddVoter => next.make_voter(id),
                ConfChangeKind::AddLearner => next.make_learner(id),
                ConfChangeKind::Remove => next.take_out(id),
                ConfChangeKind::Update => {}
            }
        }
        if next.incoming.is_empty() {
            return Err(MembershipError::RemovedAllVoters);
        }
        next.check()?;
        Ok(next)
    }

    fn make_voter(&mut self, id: ReplicaId) {
        remove(&mut self.learners, id);
        remove(&mut self.learners_next, id);
        insert(&mut self.incoming, id);
    }

    fn make_learner(&mut self, id: ReplicaId) {
        remove(&mut self.incoming, id);
        // A voter of the outgoing half cannot learn before that half is gone.
        if has(&self.outgoing, id) {
            insert(&mut self.learners_next, id);
        } else {
            insert(&mut self.learners, id);
        }
    }

    fn take_out(&mut self, id: ReplicaId) {
        remove(&mut self.incoming, id);
        remove(&mut self.learners, id);
        remove(&mut self.learners_next, id);
    }
}
