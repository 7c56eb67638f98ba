//! The seeded generator of the election jitter (SplitMix64, Steele, Lea and Flood 2014).
//!
//! Owned by each replica, so that groups that start alike do not campaign alike, and so that a
//! run can be repeated.

#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number in `[0, below)`; `below` must not be 0.
    pub(crate) const fn below(&mut self, below: u32) -> u32 {
        ((self.next() >> 32) % below as u64) as u32
    }

    const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}
