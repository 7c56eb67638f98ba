//! Reads that wait for leave: for a round of heartbeats, then for the state machine to get there.

use std::collections::VecDeque;

use bytes::Bytes;
use polyraft_core::{Index, ReadState, planted};

use crate::error::Reject;
use crate::group::GroupId;
use crate::handle::ReadPermit;
use crate::responder::Responder;

/// Somebody waits for leave.
#[derive(Debug)]
pub(crate) struct Waiter {
    /// He wants to know of the group and not of its data, so he may be told while it is frozen.
    pub(crate) even_frozen: bool,
    pub(crate) respond: Responder<Result<ReadPermit, Reject>>,
}

#[derive(Debug, Default)]
pub(crate) struct Reads {
    /// Came in during this pass; they share one round.
    pub(crate) queued: Vec<Waiter>,
    number: u64,
    asked: VecDeque<(u64, Vec<Waiter>)>,
    confirmed: Vec<(Index, Vec<Waiter>)>,
}

impl Reads {
    pub(crate) fn is_empty(&self) -> bool {
        self.queued.is_empty() && self.asked.is_empty() && self.confirmed.is_empty()
    }

    /// The context under which everything queued is asked for.
    pub(crate) fn ask(&mut self) -> Bytes {
        self.number += 1;
        self.asked
            .push_back((self.number, std::mem::take(&mut self.queued)));
        Bytes::copy_from_slice(&self.number.to_be_bytes())
    }

    /// The last [`ask`](Self::ask) was refused.
    pub(crate) fn refused(&mut self, reject: impl Fn() -> Reject) {
        for waiter in self
            .asked
            .pop_back()
            .into_iter()
            .flat_map(|(_, waiters)| waiters)
        {
            waiter.respond.answer(Err(reject()));
        }
    }

    /// A round is confirmed: so is every earlier one.
    pub(crate) fn confirm(&mut self, state: &ReadState) {
        let Ok(number) = <[u8; 8]>::try_from(&state.context[..]).map(u64::from_be_bytes) else {
            return;
        };
        while let Some((_, waiters)) = self.asked.pop_front_if(|(asked, _)| *asked <= number) {
            self.confirmed.push((state.index, waiters));
        }
    }

    /// Answers those whose index is applied; if the group is frozen, into which one.
    pub(crate) fn release(
        &mut self,
        applied: Index,
        frozen: Option<GroupId>,
        permit: impl Fn() -> ReadPermit,
    ) {
        for (_, waiters) in self.confirmed.extract_if(.., |(index, _)| {
            *index <= applied || planted!(ReadBeforeApplied)
        }) {
            for waiter in waiters {
                let result = match frozen {
                    Some(into) if !waiter.even_frozen => Err(Reject::Frozen { into }),
                    _ => Ok(permit()),
                };
                waiter.respond.answer(result);
            }
        }
    }

    /// This replica does not lead: reads have no effect, so they may simply be asked again.
    pub(crate) fn reject_all(&mut self, reject: impl Fn() -> Reject) {
        let asked = self.asked.drain(..).flat_map(|(_, waiters)| waiters);
        let confirmed = self.confirmed.drain(..).flat_map(|(_, waiters)| waiters);
        for waiter in self.queued.drain(..).chain(asked).chain(confirmed) {
            waiter.respond.answer(Err(reject()));
        }
    }
}
