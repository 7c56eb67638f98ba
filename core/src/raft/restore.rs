//! A snapshot arrives (thesis section 5.3).

use super::{Raft, Role, internal};
use crate::error::{Error, StepError};
use crate::event::Event;
use crate::membership::Configuration;
use crate::message::{Message, Payload};
use crate::planted;
use crate::ready::Snapshot;
use crate::storage::Storage;
use crate::types::ReplicaId;

impl<S: Storage> Raft<S> {
    pub(super) fn handle_snapshot(
        &mut self,
        from: ReplicaId,
        snapshot: Snapshot,
    ) -> Result<(), StepError> {
        let last = snapshot.meta.last;
        let config = Configuration::restore(&snapshot.meta.conf_state).map_err(|_| {
            StepError::Malformed {
                from,
                reason: "snapshot configuration",
            }
        })?;
        let index = if self.restore(snapshot, config).map_err(internal)? {
            self.log.last_index()
        } else {
            self.events.push(Event::SnapshotIgnored {
                snapshot: last,
                commit: self.log.committed(),
            });
            self.log.committed()
        };
        let answer = Payload::AppendResponse {
            index,
            reject: None,
        };
        if planted!(SnapshotAckedEarly) {
            self.messages.push(Message {
                from: self.id,
                to: from,
                term: self.term,
                payload: answer,
            });
            return Ok(());
        }
        self.send(from, answer);
        Ok(())
    }

    /// Takes the snapshot in place of the log, if that brings anything.
    fn restore(&mut self, snapshot: Snapshot, config: Configuration) -> Result<bool, Error> {
        let last = snapshot.meta.last;
        if last.index <= self.log.committed() {
            return Ok(false);
        }
        if !matches!(self.role, Role::Follower) {
            return Err(Error::Invariant("only a follower restores a snapshot"));
        }
        // In any half, or as a learner: a voter may well find itself a learner, and a member on its
        // way out still needs the state. A snapshot that does not know this replica is not for it.
        if !config.contains(self.id) {
            return Ok(false);
        }
        if self.log.matches(last) {
            // Everything is here already; only the commit index lagged behind.
            self.log.commit_to(last.index)?;
            return Ok(false);
        }
        self.events.push(Event::RestoreStarted {
            snapshot: last,
            cursors: self.log.cursors(),
        });
        self.log.restore(snapshot);
        self.switch_config(config)?;
        self.events.push(Event::Restored {
            snapshot: last,
            commit: self.log.committed(),
            last: self.log.last_id()?,
        });
        Ok(true)
    }
}
