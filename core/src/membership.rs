//! Group membership: configurations and changes of them (thesis chapter 4, joint consensus).

use alloc::vec::Vec;

use bytes::Bytes;

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
    /// Simple if one voter changes at most, else joint with automatic leave.
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
    /// The bytes that go into an entry. Versioned; golden bytes are in the tests.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        todo!()
    }
    /// The change in an entry of kind [`EntryKind::ConfChange`](crate::EntryKind::ConfChange).
    pub fn decode(_bytes: &Bytes) -> Result<Self, MembershipError> {
        todo!()
    }
    /// The same as a V2 change.
    #[must_use]
    pub fn into_v2(self) -> ConfChangeV2 {
        todo!()
    }
}

impl ConfChangeV2 {
    /// The bytes that go into an entry; a change with nothing in it is the empty string.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        todo!()
    }
    /// The change in an entry of kind [`EntryKind::ConfChangeV2`](crate::EntryKind::ConfChangeV2).
    pub fn decode(_bytes: &Bytes) -> Result<Self, MembershipError> {
        todo!()
    }
}

impl ConfState {
    /// The configuration after `change`: the one pure function that the state machine's applier
    /// and the core both use, so that they cannot disagree.
    pub fn apply(&self, _change: &ConfChangeV2) -> Result<Self, MembershipError> {
        todo!()
    }
    /// Whether two majorities are needed at the moment.
    #[must_use]
    pub fn is_joint(&self) -> bool {
        !self.voters_outgoing.is_empty()
    }
    /// Whether `replica` is a voter in either half or a learner.
    #[must_use]
    pub fn contains(&self, _replica: ReplicaId) -> bool {
        todo!()
    }
}
