//! Where everything that is drawn comes from: one seed.
//!
//! Invariant: no other source of randomness exists in a world. Independent parts take a source of their own
//! with [`Rng::fork`], so that one more draw in one part does not shift the draws of all others.

pub use polyraft_multiraft::env::conformance::Rng as Source;

/// Draws of the kinds that a world needs, from one seed.
#[derive(Clone, Debug)]
pub struct Rng(Source);

impl Rng {
    /// The source of a seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(Source::new(seed))
    }

    /// A source for one part of the world, independent of what this one draws later.
    #[must_use]
    pub const fn fork(&mut self) -> Self {
        Self::new(self.0.bits())
    }

    /// The next 64 bits.
    pub const fn bits(&mut self) -> u64 {
        self.0.bits()
    }

    /// A number below `limit`; 0 if `limit` is.
    pub const fn below(&mut self, limit: u64) -> u64 {
        if limit == 0 { 0 } else { self.0.below(limit) }
    }

    /// A number of `[low, high]`.
    pub const fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low).saturating_add(1))
    }

    /// A number of `[low, high]` whose magnitude is even: small ones are as likely as large ones.
    pub fn magnitude(&mut self, low: u64, high: u64) -> u64 {
        let (from, to) = (
            u64::BITS - low.leading_zeros(),
            u64::BITS - high.leading_zeros(),
        );
        let bits = self.between(u64::from(from), u64::from(to));
        let top = 1u64
            .checked_shl(u32::try_from(bits).unwrap_or(63))
            .map_or(u64::MAX, |t| t - 1);
        self.between(top / 2, top).clamp(low, high)
    }

    /// True in `per_million` of a million cases.
    pub const fn chance(&mut self, per_million: u64) -> bool {
        self.0.below(1_000_000) < per_million
    }

    /// True in `percent` of a hundred cases.
    pub const fn percent(&mut self, percent: u64) -> bool {
        self.0.percent(percent)
    }

    /// One of `items`; none if there are none.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        let at = self.below(items.len() as u64);
        items.get(usize::try_from(at).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_stay_within_their_bounds() {
        let mut rng = Rng::new(1);
        for _ in 0..10_000 {
            assert!((3..=9).contains(&rng.between(3, 9)));
            assert!((1_000..=5_000_000).contains(&rng.magnitude(1_000, 5_000_000)));
        }
        assert_eq!(rng.below(0), 0);
        assert_eq!(rng.pick::<u8>(&[]), None);
    }

    #[test]
    fn a_fork_is_not_shifted_by_later_draws() {
        let (mut one, mut two) = (Rng::new(7), Rng::new(7));
        let (mut a, mut b) = (one.fork(), two.fork());
        one.bits();
        assert_eq!(a.bits(), b.bits());
    }
}
