//! What can be seen of a world from outside of the hosts, and those who look at it.
//!
//! Checkers do not trust the code under test: they see what it writes, sends, applies and answers
//! at the seams, and keep their own books. Every event of a world gives rise to observations at
//! the moment at which it happens; a checker says at once what is wrong, and the world stops there.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use polyraft_core::ReplicaId;
use polyraft_multiraft::env::{ApplyItem, GroupMessage, LogBatch, Recovered};
use polyraft_multiraft::{
    AppliedState, GroupDescriptor, GroupId, HostStats, KeyRange, ReplicaSummary, StoreId,
};

use crate::time::Nanos;

/// Something that has just happened.
#[derive(Debug)]
pub enum Observation<'a> {
    /// A host is being started on what its disk has kept; recovery follows.
    Starting {
        /// Which store.
        store: StoreId,
        /// Grows with each start of this store.
        incarnation: u64,
    },
    /// A new store begins with an empty disk.
    Founded {
        /// Which store; its number was never used before.
        store: StoreId,
    },
    /// What the log of a store says at a start.
    RecoveredLog {
        /// Which store.
        store: StoreId,
        /// What was found.
        found: &'a Recovered,
    },
    /// What the state machine of a store says at a start.
    RecoveredData {
        /// Which store.
        store: StoreId,
        /// What was found.
        states: &'a [AppliedState],
    },
    /// A batch was written to the log; a power cut may still lose it.
    Written {
        /// Which store.
        store: StoreId,
        /// What.
        batch: &'a LogBatch,
    },
    /// Everything that the log of a store wrote so far survives a power cut from now on.
    Synced {
        /// Which store.
        store: StoreId,
    },
    /// A message has left a store.
    Sent {
        /// Who sends it.
        from: StoreId,
        /// To whom.
        to: StoreId,
        /// What.
        message: &'a GroupMessage,
    },
    /// A message is about to enter a store.
    Delivered {
        /// Who sent it.
        from: StoreId,
        /// Whom it reaches.
        to: StoreId,
        /// What.
        message: &'a GroupMessage,
    },
    /// A state machine has made a group; durable.
    Created {
        /// Which store.
        store: StoreId,
        /// Its first state.
        state: &'a AppliedState,
    },
    /// A state machine has applied a turn, replies filled in; a crash may lose it.
    Applied {
        /// Which store.
        store: StoreId,
        /// One per group.
        items: &'a [ApplyItem],
    },
    /// A state machine has replaced a group's data by a snapshot; durable.
    Restored {
        /// Which store.
        store: StoreId,
        /// What the snapshot contained.
        state: &'a AppliedState,
        /// Groups whose data went with that, since theirs is contained in it.
        subsumes: &'a [GroupDescriptor],
    },
    /// A state machine has removed a group's data; durable.
    Destroyed {
        /// Which store.
        store: StoreId,
        /// What of.
        descriptor: &'a GroupDescriptor,
    },
    /// Everything that a state machine applied so far survives a power cut from now on.
    Flushed {
        /// Which store.
        store: StoreId,
    },
    /// What a host publishes about its replicas, after a pass of one of its workers.
    Published {
        /// Which store.
        store: StoreId,
        /// Ascending by group.
        replicas: &'a [ReplicaSummary],
        /// Numbers.
        stats: &'a HostStats,
    },
    /// A client asks a store for leave to read.
    ReadAsked {
        /// Which store.
        store: StoreId,
        /// Who.
        client: u64,
        /// Tells what this client asks from what it asked before.
        token: u64,
    },
    /// It hears that it may.
    ReadPermitted {
        /// By which store.
        store: StoreId,
        /// To read which group.
        group: GroupId,
        /// Whose replica there is this.
        replica: ReplicaId,
        /// Who.
        client: u64,
        /// As when it asked.
        token: u64,
    },
    /// A host is gone, in the middle of everything.
    Crashed {
        /// Which store.
        store: StoreId,
        /// With it the power: only what was synced or flushed is certainly kept. Otherwise only the process
        /// went, and every write that went through the write-ahead log is kept.
        power: bool,
    },
    /// A store and its disk are gone for ever.
    Lost {
        /// Which store.
        store: StoreId,
    },
    /// A client proposes a command to a group.
    Proposed {
        /// Which.
        group: GroupId,
        /// Of the range for which the command is meant.
        generation: u64,
        /// The command.
        data: &'a Bytes,
    },
    /// A client has leave to read.
    Permitted {
        /// Who.
        client: u64,
        /// What the group is as of then.
        descriptor: &'a GroupDescriptor,
        /// The key that it is about to read.
        key: &'a Bytes,
    },
    /// A split was applied that nothing else was applied with: digests of all pairs of the range that the
    /// group had, before and after, without those of new groups that do not begin on this store.
    Divided {
        /// Which store.
        store: StoreId,
        /// Which group.
        group: GroupId,
        /// Before.
        before: u64,
        /// After.
        after: u64,
    },
    /// A merge was applied: digests of pairs on the store.
    United {
        /// Which store.
        store: StoreId,
        /// Which group.
        group: GroupId,
        /// The other one, as it was.
        right: &'a AppliedState,
        /// Of the keys of the right one, before.
        brought: u64,
        /// Of the keys of both, before.
        before: u64,
        /// Of the same afterwards; none if the group has applied commands in the same turn.
        after: Option<u64>,
    },
    /// Groups that a state machine names at a start as merged into others.
    RecoveredMerges {
        /// Which store.
        store: StoreId,
        /// Them.
        merged: &'a [GroupId],
    },
    /// An operator has asked for a group, or got rid of one.
    Group {
        /// Which.
        group: GroupId,
        /// Whether it is to be there.
        wanted: bool,
    },
}

/// What is left at the end, when faults are over and everything has come to rest.
#[derive(Debug, Default)]
pub struct End {
    /// Of every store that runs: its number, what it publishes, numbers, and what its disk
    /// contains of each group.
    pub stores: Vec<StoreEnd>,
    /// Groups that operators have created and not destroyed, and what they were split into, but for those
    /// that were merged into others.
    pub groups: Vec<GroupId>,
    /// Those with a range, by family.
    pub families: Vec<FamilyEnd>,
    /// Replicas that are out of service, and why.
    pub quarantined: Vec<(StoreId, GroupId, String)>,
}

/// A group with all that it was split into. See [`End`].
#[derive(Clone, Debug, Default)]
pub struct FamilyEnd {
    /// The keys of all of them; none if they have none in common with others.
    pub range: Option<KeyRange>,
    /// All numbers that were given out for them; not every one has come to be a group.
    pub groups: Vec<GroupId>,
}

/// See [`End`].
#[derive(Debug)]
pub struct StoreEnd {
    /// Which store.
    pub store: StoreId,
    /// What its host publishes.
    pub replicas: Vec<ReplicaSummary>,
    /// Numbers of its host.
    pub stats: HostStats,
    /// What its state machine holds of each group that has a replica here: the state, and a digest
    /// of all keys.
    pub data: Vec<(AppliedState, u64)>,
    /// Keys on its disk of groups that have no replica here, as text; there must not be any.
    pub leftovers: Vec<String>,
}

/// Something that must never be, and was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The name of the checker that saw it.
    pub checker: &'static str,
    /// When.
    pub at: Nanos,
    /// What.
    pub what: String,
}

/// Somebody who knows one property and looks whether it holds.
pub trait Checker: Send {
    /// The property's name: lower case with hyphens, as the canary table shows it.
    fn name(&self) -> &'static str;

    /// Looks at what happened.
    ///
    /// # Errors
    /// What is wrong, in words that let a person find it.
    fn see(&mut self, seen: &Observation<'_>) -> Result<(), String>;

    /// Looks at what is left.
    ///
    /// # Errors
    /// What is wrong.
    fn finish(&mut self, _end: &End) -> Result<(), String> {
        Ok(())
    }
}

/// All checkers of a world. Clones share them.
#[derive(Clone, Default)]
pub struct Observer {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    now: Nanos,
    checkers: Vec<Box<dyn Checker>>,
    violation: Option<Violation>,
}

impl Observer {
    /// Those who look.
    #[must_use]
    pub fn new(checkers: Vec<Box<dyn Checker>>) -> Self {
        let inner = Inner {
            checkers,
            ..Inner::default()
        };
        Self {
            inner: Arc::new(Mutex::new(inner)),
        }
    }

    /// Says what time it is.
    pub fn set_now(&self, now: Nanos) {
        self.inner.lock().now = now;
    }

    /// Shows everybody what happened.
    pub fn see(&self, seen: &Observation<'_>) {
        self.inner.lock().ask(|checker| checker.see(seen));
    }

    /// Shows everybody what is left.
    pub fn finish(&self, end: &End) {
        self.inner.lock().ask(|checker| checker.finish(end));
    }

    /// Something that the world itself saw.
    pub fn report(&self, checker: &'static str, what: String) {
        let mut inner = self.inner.lock();
        let at = inner.now;
        inner
            .violation
            .get_or_insert(Violation { checker, at, what });
    }

    /// The first thing that was wrong.
    #[must_use]
    pub fn violation(&self) -> Option<Violation> {
        self.inner.lock().violation.clone()
    }

    /// Whether nothing was wrong so far.
    #[must_use]
    pub fn is_content(&self) -> bool {
        self.inner.lock().violation.is_none()
    }
}

impl Inner {
    fn ask(&mut self, mut ask: impl FnMut(&mut dyn Checker) -> Result<(), String>) {
        if self.violation.is_some() {
            return;
        }
        for checker in &mut self.checkers {
            if let Err(what) = ask(checker.as_mut()) {
                let (checker, at) = (checker.name(), self.now);
                self.violation = Some(Violation { checker, at, what });
                return;
            }
        }
    }
}

impl std::fmt::Debug for Observer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Observer").finish_non_exhaustive()
    }
}
