//! Leadership transfer (thesis section 3.10): proposals pause, the target is brought up to date and told
//! to campaign at once; after an election timeout without success the leader goes on.

use super::{Raft, Role};
use crate::error::Error;
use crate::event::Event;
use crate::message::Payload;
use crate::storage::Storage;
use crate::types::ReplicaId;

impl<S: Storage> Raft<S> {
    pub(crate) fn start_transfer(&mut self, to: ReplicaId) -> Result<(), Error> {
        let (own, last, voter) = (self.id, self.log.last_index(), self.config.is_voter(to));
        let Role::Leader(leader) = &mut self.role else {
            return Ok(());
        };
        let Some(progress) = leader.progress(to) else {
            return Ok(());
        };
        let caught_up = progress.matched == last;
        // A learner may not lead; the same wish twice is one wish.
        if !voter || leader.transferee == Some(to) {
            return Ok(());
        }
        leader.transferee = None;
        if to == own {
            return Ok(());
        }
        leader.transferee = Some(to);
        // It has one election timeout from now.
        self.election_elapsed = 0;
        self.events.push(Event::TransferStarted {
            to,
            term: self.term,
        });
        if caught_up {
            self.send_timeout_now(to, true);
            Ok(())
        } else {
            self.send_append(to)
        }
    }

    pub(super) fn send_timeout_now(&mut self, to: ReplicaId, at_once: bool) {
        self.send(to, Payload::TimeoutNow);
        self.events.push(Event::TimeoutNowSent { to, at_once });
    }
}
