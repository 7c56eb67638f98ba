//! Changes of membership as they take effect: when they are applied (thesis chapter 4; etcd's rule,
//! not the paper's, with the guards that it needs).

use super::{Raft, Role};
use crate::entry::{Entry, EntryKind};
use crate::error::{Error, ProposeError, StorageError};
use crate::event::Event;
use crate::membership::{ConfChangeV2, ConfState, Configuration};
use crate::progress::Progress;
use crate::ready::Fetch;
use crate::storage::Storage;
use crate::types::{Index, ReplicaId};

impl<S: Storage> Raft<S> {
    /// A committed change takes effect.
    pub(crate) fn apply_conf_change(&mut self, change: &ConfChangeV2) -> Result<ConfState, Error> {
        // With the arrival of a snapshot its configuration is in force already. It contains every change
        // that was handed out before, so one of these that is only now applied must not be made again,
        // on top of others that came after it.
        if !self.log.has_pending_snapshot() {
            let next = self.config.apply(change)?;
            self.switch_config(next)?;
        }
        Ok(self.config.to_conf_state())
    }

    pub(super) fn switch_config(&mut self, config: Configuration) -> Result<(), Error> {
        self.config = config;
        self.events.push(Event::ConfigSwitched {
            config: self.config.clone(),
        });
        let last = self.log.last_index();
        let Role::Leader(leader) = &mut self.role else {
            return Ok(());
        };

        let members = self.config.members();
        leader
            .progress
            .retain(|progress| members.binary_search(&progress.id).is_ok());
        for id in members {
            if let Err(at) = leader
                .progress
                .binary_search_by_key(&id, |progress| progress.id)
            {
                // Probing from the end of the log, and active, so that a new member neither gets a
                // snapshot it does not need nor counts as lost before it could answer.
                let next = Index(last.0.max(1));
                leader.progress.insert(at, Progress::new(id, next, true));
            }
        }

        if !self.config.contains(self.id) || self.config.is_learner(self.id) {
            // Leading on would mean to send heartbeats and drop every proposal.
            if self.params.step_down_on_removal {
                self.become_follower(self.term, ReplicaId::NONE);
            }
            return Ok(());
        }
        if self.maybe_commit()? {
            // A smaller quorum may have what the larger one lacked.
            self.release_postponed_reads()?;
            self.broadcast_append()?;
        } else {
            self.broadcast_missing()?;
        }
        self.release_confirmed_reads();
        let config = &self.config;
        if let Role::Leader(leader) = &mut self.role
            && leader.transferee.is_some_and(|id| !config.is_voter(id))
        {
            leader.transferee = None;
        }
        Ok(())
    }

    /// The leader leaves a joint configuration that is to be left automatically, as soon as the
    /// change that entered it is applied. By a normal proposal, empty so that no limit stops it.
    pub(super) fn leave_joint_if_due(&mut self, applied: Index) -> Result<(), Error> {
        let Role::Leader(leader) = &self.role else {
            return Ok(());
        };
        if !self.config.auto_leave || applied < leader.pending_conf_index {
            return Ok(());
        }
        let leave = Entry {
            kind: EntryKind::ConfChangeV2,
            ..Entry::default()
        };
        match self.propose_as_leader(alloc::vec![leave]) {
            Ok(()) => self.events.push(Event::AutoLeaveInitiated {
                config: self.config.clone(),
            }),
            // A transfer that runs drops it; the next entry that is applied tries again.
            Err(ProposeError::Dropped | ProposeError::UncommittedLimit) => {}
            Err(ProposeError::Storage(error)) => return Err(error.into()),
            Err(ProposeError::Poisoned(why)) => return Err(Error::Invariant(why)),
        }
        Ok(())
    }
}

/// Whether a committed change of membership waits to be applied. Pages through the range; what is not
/// in memory is asked for, and counts as a change until it is known.
pub(super) fn has_unapplied_conf_change<S: Storage>(raft: &mut Raft<S>) -> Result<bool, Error> {
    let (mut low, high) = (raft.log.applied().next(), raft.log.committed().next());
    while low < high {
        let page = match raft.log.slice(low, high, PAGE_BYTES, ReplicaId::NONE) {
            Ok(page) => page,
            Err(StorageError::TemporarilyUnavailable) => {
                let high = high.min(raft.log.unstable.offset());
                raft.fetch(Fetch {
                    low,
                    high,
                    max_bytes: PAGE_BYTES,
                    replica: ReplicaId::NONE,
                });
                return Ok(true);
            }
            // Applied and truncated by a snapshot that is being installed: not promotable anyway.
            Err(StorageError::Compacted) => return Ok(true),
            Err(error) => return Err(error.into()),
        };
        if page.iter().any(|entry| entry.kind.changes_membership()) {
            return Ok(true);
        }
        match page.last() {
            Some(last) => low = last.index.next(),
            None => return Err(Error::Invariant("an empty page of committed entries")),
        }
    }
    Ok(false)
}

/// Entries looked at together.
const PAGE_BYTES: u64 = 1 << 20;
