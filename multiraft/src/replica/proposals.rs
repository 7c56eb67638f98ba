//! Proposals of this replica that wait for their outcome. Each is answered exactly once.

use std::collections::VecDeque;

use bytes::Bytes;
use polyraft_core::{EntryId, Index};

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

#[derive(Debug, Default)]
pub(crate) struct Proposals {
    waiting: VecDeque<Pending>,
}

impl Proposals {
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
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

    /// Whoever still waits may or may not succeed.
    pub(crate) fn give_up(&mut self) {
        for pending in self.waiting.drain(..) {
            pending.respond.answer(Err(Reject::Ambiguous));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::budget::Budget;

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
