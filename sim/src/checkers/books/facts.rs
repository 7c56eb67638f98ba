//! What is known of the entries of a group, wherever they were seen: in messages and in logs.

use std::collections::BTreeMap;

use polyraft_core::{Index, Term};

use super::view::Slot;

/// What is known of one entry.
#[derive(Clone, Copy, Debug, Default)]
struct Fact {
    slot: Slot,
    prev_term: Term,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    /// By index: the first entry that was seen there. Term 0: none.
    first: Vec<Fact>,
    /// Entries of other terms.
    others: BTreeMap<(Index, Term), Fact>,
}

impl Facts {
    /// Notes an entry. Says whether it was known before.
    ///
    /// # Errors
    /// It was known otherwise.
    pub(crate) fn note(
        &mut self,
        index: Index,
        prev_term: Term,
        slot: Slot,
    ) -> Result<bool, String> {
        let new = Fact { slot, prev_term };
        let at = usize::try_from(index.0).map_err(|_| format!("index {index}"))?;
        if at >= self.first.len() {
            self.first.resize(at + 1, Fact::default());
        }
        let known = match &mut self.first[at] {
            free if free.slot.term == Term(0) => {
                *free = new;
                return Ok(false);
            }
            known if known.slot.term == slot.term => known,
            _ => match self.others.entry((index, slot.term)) {
                std::collections::btree_map::Entry::Vacant(free) => {
                    free.insert(new);
                    return Ok(false);
                }
                std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
            },
        };
        if known.slot != slot {
            let term = slot.term;
            return Err(format!("two different entries {index} of term {term}"));
        }
        if known.prev_term != prev_term {
            return Err(format!(
                "entry {index} of term {} stands behind one of term {} and one of term {prev_term}",
                slot.term, known.prev_term
            ));
        }
        Ok(true)
    }

    /// The highest index at which an entry was ever seen.
    pub(crate) fn last(&self) -> Index {
        Index((self.first.len() as u64).saturating_sub(1))
    }
}
