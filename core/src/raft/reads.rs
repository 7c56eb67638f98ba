//! Linearizable reads without writing (thesis section 6.4).
//!
//! A leader notes the commit index, confirms by a round of heartbeats that it still leads, and then the
//! state at that index may be read. Heartbeats carry the leader's own running number of the newest
//! read, never the client's context: an answer to number `n` confirms every read up to `n` and, since
//! numbers are used once per leadership and answers carry the term, no other. The numbers that the
//! voters have confirmed form an index like any other: its quorum is what is confirmed.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use bytes::Bytes;

use super::{Raft, Role};
use crate::config::ReadMode;
use crate::error::Error;
use crate::message::Payload;
use crate::planted;
use crate::ready::ReadState;
use crate::storage::Storage;
use crate::types::{Index, ReplicaId};

/// Reads that wait at a leader. Gone with the leadership.
#[derive(Debug, Default)]
pub(crate) struct ReadQueue {
    /// The number given last.
    number: u64,
    /// Waiting for a quorum to confirm their number; ascending.
    waiting: VecDeque<Waiting>,
    /// Waiting for the first commit of the term: before it the commit index may be out of date.
    postponed: Vec<Request>,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    index: Index,
    request: Request,
}

#[derive(Debug)]
struct Request {
    from: ReplicaId,
    context: Bytes,
}

impl ReadQueue {
    /// The number of the newest read that waits; 0: none does.
    pub(super) fn newest(&self) -> u64 {
        self.waiting.back().map_or(0, |waiting| waiting.number)
    }

    /// `number`, if it was given to a read already; else the largest that was.
    pub(super) fn given(&self, number: u64) -> u64 {
        number.min(self.number)
    }

    fn len(&self) -> usize {
        self.waiting.len() + self.postponed.len()
    }
}

impl<S: Storage> Raft<S> {
    /// A read asked for by `from` (this replica or a follower). Dropped silently when too many wait:
    /// whoever asked asks again.
    pub(crate) fn read_index_as_leader(
        &mut self,
        from: ReplicaId,
        context: Bytes,
    ) -> Result<(), Error> {
        let request = Request { from, context };
        let committed = self.log.committed();
        if self.config.is_singleton(self.id) && self.committed_in_term() {
            self.answer_read(committed, request);
            return Ok(());
        }
        let ready = self.committed_in_term();
        let limit = self.params.max_pending_reads;
        let safe = self.params.read_mode == ReadMode::Safe && !planted!(ReadWithoutQuorum);
        let Role::Leader(leader) = &mut self.role else {
            return Ok(());
        };
        if leader.reads.len() >= limit {
            return Ok(());
        }
        if !ready {
            leader.reads.postponed.push(request);
        } else if safe {
            leader.reads.number += 1;
            let number = leader.reads.number;
            leader.reads.waiting.push_back(Waiting {
                number,
                index: committed,
                request,
            });
            if !self.join_heartbeats(number) {
                self.broadcast_heartbeat();
            }
            self.release_confirmed_reads();
        } else {
            self.answer_read(committed, request);
        }
        Ok(())
    }

    /// Whether a read asked for now would not be dropped.
    pub(crate) fn has_room_for_read(&self) -> bool {
        match &self.role {
            Role::Leader(leader) => leader.reads.len() < self.params.max_pending_reads,
            Role::Follower => !self.leader.is_none(),
            Role::PreCandidate(_) | Role::Candidate(_) => false,
        }
    }

    fn committed_in_term(&self) -> bool {
        self.log.term(self.log.committed()) == Ok(self.term)
    }

    /// An entry of this term is committed: reads that waited for that can begin.
    pub(super) fn release_postponed_reads(&mut self) -> Result<(), Error> {
        if !self.committed_in_term() {
            return Ok(());
        }
        let Role::Leader(leader) = &mut self.role else {
            return Ok(());
        };
        for Request { from, context } in core::mem::take(&mut leader.reads.postponed) {
            self.read_index_as_leader(from, context)?;
        }
        Ok(())
    }

    /// Answers what a quorum has confirmed. Also after a change of membership, which may have made
    /// the quorum smaller.
    pub(super) fn release_confirmed_reads(&mut self) {
        let own = self.id;
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        if leader.reads.waiting.is_empty() {
            return;
        }
        let confirmed = self.config.committed(|id| {
            if id == own {
                Index(u64::MAX)
            } else {
                Index(
                    leader
                        .progress(id)
                        .map_or(0, |progress| progress.read_acked),
                )
            }
        });
        let Some(Index(confirmed)) = confirmed else {
            return;
        };
        let ready = leader
            .reads
            .waiting
            .partition_point(|waiting| waiting.number <= confirmed);
        let released: Vec<Waiting> = leader.reads.waiting.drain(..ready).collect();
        for Waiting { index, request, .. } in released {
            self.answer_read(index, request);
        }
    }

    fn answer_read(&mut self, index: Index, request: Request) {
        let Request { from, context } = request;
        if from == self.id || from.is_none() {
            self.reads.push(ReadState { index, context });
        } else {
            self.send(from, Payload::ReadIndexResponse { index, context });
        }
    }
}
