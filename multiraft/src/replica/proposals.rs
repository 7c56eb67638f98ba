//! Proposals of this replica that wait for their outcome. Each is answered exactly once.

use std::collections::VecDeque;

use bytes::Bytes;
use polyraft_core::{EntryId, Index, planted};

use crate::budget::Permit;
use crate::error::Reject;
use crate::responder::Responder;

/// The right to answer one proposal, with its share of the budget.
#[derive(Debug)]
pub struct Pending {
    /// The entry that carries it.
    pub id: EntryId,
    /// Whom to answer.
    pub respond: Responder<Result<Bytes, Reject>>,
    /// Held until then.
    pub permit: Permit,
}

/// A command that the core has not seen yet.
#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) data: Bytes,
    /// Only if the group's range is still of this generation.
    pub(crate) expected: Option<u64>,
    pub(crate) respond: Responder<Result<Bytes, Reject>>,
    pub(crate) permit: Permit,
}

#[derive(Debug, Default)]
pub(crate) struct Proposals {
    /// Came in during this pass; they are proposed together at its end.
    queued: Vec<Queued>,
    waiting: VecDeque<Pending>,
}

impl Proposals {
    pub(crate) fn is_empty(&self) -> bool {
        self.queued.is_empty() && self.waiting.is_empty()
    }

    pub(crate) fn queue(&mut self, command: Queued) {
        self.queued.push(command);
    }

    /// Takes commands of up to `bytes_max` out of the queue, at least one if there is any.
    pub(crate) fn next_batch(&mut self, bytes_max: u64) -> Vec<Queued> {
        let mut bytes = 0u64;
        let mut fits = |command: &Queued| {
            bytes = bytes.saturating_add(command.data.len() as u64);
            bytes <= bytes_max
        };
        let count = self
            .queued
            .iter()
            .take_while(|command| fits(command))
            .count();
        if count == self.queued.len() {
            return std::mem::take(&mut self.queued);
        }
        self.queued.drain(..count.max(1)).collect()
    }

    /// Answers those whom `reject` has an answer for; the core has not seen them.
    pub(crate) fn refuse_queued(&mut self, reject: impl Fn(&Queued) -> Option<Reject>) {
        for command in std::mem::take(&mut self.queued) {
            match reject(&command) {
                Some(reject) => command.respond.answer(Err(reject)),
                None => self.queued.push(command),
            }
        }
    }

    /// What the core has not seen has certainly no effect.
    pub(crate) fn reject_queued(&mut self, reject: impl Fn() -> Reject) {
        for command in self.queued.drain(..) {
            command.respond.answer(Err(reject()));
        }
    }

    /// Entries are proposed in the order of their ids, except that a new leadership may overwrite the
    /// tail of an old one here. That does not decide about the old entries: another member may still
    /// hold them, win later, and commit them.
    pub(crate) fn push(&mut self, pending: Pending) {
        while let Some(old) = self
            .waiting
            .pop_back_if(|old| old.id.index >= pending.id.index)
        {
            old.respond.answer(Err(Reject::Ambiguous));
        }
        self.waiting.push_back(pending);
    }

    /// The entries up to `last` are committed: takes out those of them that were proposed here, and
    /// answers those in whose place something else was committed.
    pub(crate) fn committed(
        &mut self,
        entries: impl Iterator<Item = EntryId>,
        lost: impl Fn() -> Reject,
    ) -> Vec<Pending> {
        let mut taken = Vec::new();
        for id in entries {
            while let Some(pending) = self
                .waiting
                .pop_front_if(|pending| pending.id.index <= id.index)
            {
                if pending.id == id {
                    taken.push(pending);
                } else {
                    pending.respond.answer(Err(lost()));
                }
            }
            if self.waiting.is_empty() {
                break;
            }
        }
        taken
    }

    /// Everything up to `index` went by in a snapshot: nobody here saw what became of it.
    pub(crate) fn skipped_to(&mut self, index: Index) {
        while let Some(pending) = self
            .waiting
            .pop_front_if(|pending| pending.id.index <= index)
        {
            pending.respond.answer(Err(Reject::Ambiguous));
        }
    }

    /// The whole log is applied, and whatever is waited for is not in it: another member may still hold it.
    pub(crate) fn cut_off(&mut self) {
        for pending in self.waiting.drain(..) {
            pending.respond.answer(Err(Reject::Ambiguous));
        }
    }

    /// Whoever still waits may or may not succeed.
    pub(crate) fn give_up(&mut self) {
        self.reject_queued(|| Reject::NotLeader { leader: None });
        for pending in self.waiting.drain(..) {
            pending.respond.answer(Err(Reject::Ambiguous));
            if planted!(BudgetLeaked) {
                std::mem::forget(pending.permit);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::budget::Budget;

    /// What was cut off is in doubt; what is not proposed yet goes on.
    #[test]
    fn a_proposal_that_is_cut_off_is_in_doubt() {
        let budget = Budget::new(100);
        let (answers, answered) = mpsc::channel();
        let mut proposals = Proposals::default();
        let responder = |answers: &mpsc::Sender<Result<Bytes, Reject>>| {
            let answers = answers.clone();
            let answer = move |result| answers.send(result).expect("the test listens");
            Responder::new(|| Err(Reject::Stopped), answer)
        };
        proposals.push(Pending {
            id: EntryId::new(2, 5),
            respond: responder(&answers),
            permit: budget.try_acquire(1).expect("there is room"),
        });
        proposals.queue(Queued {
            data: Bytes::from_static(b"x"),
            expected: None,
            respond: responder(&answers),
            permit: budget.try_acquire(1).expect("there is room"),
        });
        proposals.cut_off();
        assert_eq!(answered.try_recv(), Ok(Err(Reject::Ambiguous)));
        assert!(
            answered.try_recv().is_err(),
            "the other is not proposed yet"
        );
        assert_eq!((budget.used(), proposals.is_empty()), (1, false));
    }

    /// A snapshot took the place of some of what waits: nobody here saw what became of it.
    #[test]
    fn what_a_snapshot_skips_is_in_doubt() {
        let budget = Budget::new(100);
        let (answers, answered) = mpsc::channel();
        let mut proposals = Proposals::default();
        for index in 3..=6 {
            let answers = answers.clone();
            let answer = move |result| answers.send((index, result)).expect("the test listens");
            proposals.push(Pending {
                id: EntryId::new(2, index),
                respond: Responder::new(|| Err(Reject::Stopped), answer),
                permit: budget.try_acquire(1).expect("there is room"),
            });
        }
        proposals.skipped_to(Index(4));
        let told: Vec<_> = answered.try_iter().collect();
        let doubt = Err(Reject::Ambiguous);
        assert_eq!(told, [(3, doubt.clone()), (4, doubt)]);
        assert_eq!((budget.used(), proposals.is_empty()), (2, false));
    }

    /// Five members: A's entry 5 of term 2 is on B and D too when C overwrites it on A only; A leads
    /// again and proposes at 5. B may yet win and commit the old entry: nobody may say it had no effect.
    #[test]
    fn an_overwritten_proposal_is_in_doubt_and_not_refused() {
        let budget = Budget::new(100);
        let pending = |term, answers: &mpsc::Sender<Result<Bytes, Reject>>| {
            let answers = answers.clone();
            let answer = move |result| answers.send(result).expect("the test listens");
            Pending {
                id: EntryId::new(term, 5),
                respond: Responder::new(|| Err(Reject::Ambiguous), answer),
                permit: budget.try_acquire(1).expect("there is room"),
            }
        };
        let (old, old_answers) = mpsc::channel();
        let (new, new_answers) = mpsc::channel();
        let mut proposals = Proposals::default();
        proposals.push(pending(2, &old));
        proposals.push(pending(4, &new));
        assert_eq!(old_answers.try_recv(), Ok(Err(Reject::Ambiguous)));
        assert!(new_answers.try_recv().is_err(), "still waiting");
        let taken = proposals.committed([EntryId::new(5, 5)].into_iter(), || Reject::Stopped);
        assert!(taken.is_empty());
        assert_eq!(
            new_answers.try_recv(),
            Ok(Err(Reject::Stopped)),
            "another entry took its place"
        );
    }
}
