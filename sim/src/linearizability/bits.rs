//! A set of small numbers that is nearly a prefix of all numbers most of the time.
//!
//! Invariant: one set has one representation, on which equality and hash depend. The full words at its
//! front are only counted, and empty words at its end are not kept, so that a set which is nearly a
//! prefix takes a few bytes however long the history is.

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Bits {
    full_words: usize,
    words: Vec<u64>,
}

impl Bits {
    pub(super) fn set(&mut self, at: usize, on: bool) {
        let word = at / 64;
        let mask = 1u64 << (at % 64);
        if word < self.full_words {
            if on {
                return;
            }
            // A word inside the counted front loses a bit: write the front out from there on.
            self.words
                .splice(0..0, vec![u64::MAX; self.full_words - word]);
            self.full_words = word;
        }
        let place = word - self.full_words;
        if place >= self.words.len() {
            self.words.resize(place + 1, 0);
        }
        if on {
            self.words[place] |= mask;
        } else {
            self.words[place] &= !mask;
        }
        self.normalize();
    }

    pub(super) fn contains(&self, at: usize) -> bool {
        self.word(at / 64) >> (at % 64) & 1 == 1
    }

    pub(super) fn is_subset(&self, of: &Self) -> bool {
        let end = self.full_words + self.words.len();
        let begin = self.full_words.min(of.full_words);
        (begin..end).all(|at| self.word(at) & !of.word(at) == 0)
    }

    fn word(&self, at: usize) -> u64 {
        match at.checked_sub(self.full_words) {
            None => u64::MAX,
            Some(place) => self.words.get(place).copied().unwrap_or(0),
        }
    }

    fn normalize(&mut self) {
        let full = self
            .words
            .iter()
            .take_while(|word| **word == u64::MAX)
            .count();
        if full > 0 {
            self.words.drain(..full);
            self.full_words += full;
        }
        while self.words.last() == Some(&0) {
            self.words.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Bits;

    fn of(members: impl IntoIterator<Item = usize>) -> Bits {
        let mut bits = Bits::default();
        members.into_iter().for_each(|at| bits.set(at, true));
        bits
    }

    #[test]
    fn one_set_has_one_representation() {
        let mut forward = of(0..200);
        let backward = of((0..200).rev());
        assert_eq!(forward, backward);
        assert_eq!(forward.words.len(), 1, "three full words are only counted");
        forward.set(10, false);
        forward.set(10, true);
        assert_eq!(forward, backward);
        (0..200).for_each(|i| forward.set(i, false));
        assert_eq!(forward, Bits::default());
    }

    #[test]
    fn subsets_across_counted_fronts() {
        let (all, most, few) = (of(0..200), of(1..200), of([5, 150]));
        assert!(few.is_subset(&all) && few.is_subset(&most) && most.is_subset(&all));
        assert!(!all.is_subset(&most) && !all.is_subset(&few) && !most.is_subset(&few));
        assert!(Bits::default().is_subset(&few) && !of([201]).is_subset(&all));
        assert!(all.contains(199) && !all.contains(200) && !most.contains(0));
    }
}
