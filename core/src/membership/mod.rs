//! Group membership: configurations and changes of them (thesis chapter 4, joint consensus).
//!
//! [`ConfState`] is the form that is stored and sent, [`Configuration`] the one that is worked with.
//! [`ConfState::apply`] is the one pure function by which a change takes effect; the core and the
//! host's applier both use it, so they cannot disagree.

mod change;
mod codec;
mod configuration;

use alloc::vec::Vec;

use bytes::Bytes;

pub use configuration::Configuration;

use crate::error::MembershipError;
use crate::types::ReplicaId;

/// A configuration as it is stored and sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfState {
    /// Voters; in a joint configuration those of the incoming half.
    pub voters: Vec<ReplicaId>,
    /// Receive the log, have no vote that counts.
    pub learners: Vec<ReplicaId>,
    /// Voters of the outgoing half; not empty means the configuration is joint.
    pub voters_outgoing: Vec<ReplicaId>,
    /// Voters of the outgoing half that become learners when the joint configuration is left.
    pub learners_next: Vec<ReplicaId>,
    /// The leader leaves the joint configuration by itself.
    pub auto_leave: bool,
}

/// What is done to one member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConfChangeKind {
    /// Make it a voter.
    AddVoter,
    /// Make it a learner; demotes a voter.
    AddLearner,
    /// Take it out.
    Remove,
    /// Change nothing; carries a context to the state machine.
    Update,
}

/// How a change of several members is carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Transition {
    /// Simple if there is one change, else joint with automatic leave.
    #[default]
    Auto,
    /// Joint, left automatically.
    JointImplicit,
    /// Joint, left by an explicit empty change.
    JointExplicit,
}

/// A change of one member (etcd's V1 form).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfChange {
    /// What.
    pub kind: ConfChangeKind,
    /// To whom.
    pub replica: ReplicaId,
    /// The caller's bytes, carried along.
    pub context: Bytes,
}

/// A change of any number of members; empty leaves a joint configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfChangeV2 {
    /// How.
    pub transition: Transition,
    /// What to whom.
    pub changes: Vec<(ConfChangeKind, ReplicaId)>,
    /// The caller's bytes, carried along.
    pub context: Bytes,
}

impl ConfChange {
    /// The same as a V2 change.
    #[must_use]
    pub fn into_v2(self) -> ConfChangeV2 {
        ConfChangeV2 {
            transition: Transition::Auto,
            changes: alloc::vec![(self.kind, self.replica)],
            context: self.context,
        }
    }
}

impl ConfChangeV2 {
    /// Whether this leaves a joint configuration.
    #[must_use]
    pub fn leaves_joint(&self) -> bool {
        self.transition == Transition::Auto && self.changes.is_empty()
    }

    /// Whether this enters a joint configuration, and if so whether that is left automatically.
    #[must_use]
    pub fn enters_joint(&self) -> Option<bool> {
        match self.transition {
            Transition::Auto if self.changes.len() <= 1 => None,
            Transition::Auto | Transition::JointImplicit => Some(true),
            Transition::JointExplicit => Some(false),
        }
    }
}

impl ConfState {
    /// The configuration after `change`.
    ///
    /// # Errors
    /// The change is not possible in this configuration; nothing changes then.
    pub fn apply(&self, change: &ConfChangeV2) -> Result<Self, MembershipError> {
        Ok(Configuration::restore(self)?.apply(change)?.to_conf_state())
    }

    /// Whether two majorities are needed at the moment.
    #[must_use]
    pub const fn is_joint(&self) -> bool {
        !self.voters_outgoing.is_empty()
    }

    /// Whether `replica` is a voter in either half or a learner.
    #[must_use]
    pub fn contains(&self, replica: ReplicaId) -> bool {
        [&self.voters, &self.learners, &self.voters_outgoing]
            .iter()
            .any(|list| list.contains(&replica))
    }
}
