//! Random bytes by seed, and damage to bytes. The generator is SplitMix64.

/// See the module.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// Begins a sequence.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `limit`, which is not 0.
    pub const fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// True once in `many`.
    pub const fn one_in(&mut self, many: usize) -> bool {
        self.below(many) == 0
    }

    /// So many bytes; in a third of all cases small ones, of which plausible numbers are made.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let small = self.one_in(3);
        let byte = |dice: &mut Self| {
            let byte = dice.next() as u8;
            if small { byte & 7 } else { byte }
        };
        (0..length).map(|_| byte(self)).collect()
    }

    /// A copy with one to four things done to it: bits flipped, bytes overwritten, a piece cut out,
    /// doubled, moved or put in.
    #[must_use]
    pub fn damage(&mut self, example: &[u8]) -> Vec<u8> {
        let mut bytes = example.to_vec();
        for _ in 0..=self.below(4) {
            self.damage_once(&mut bytes);
        }
        bytes.truncate(2 * example.len().max(32));
        bytes
    }

    fn damage_once(&mut self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            bytes.push(self.next() as u8);
            return;
        }
        let at = self.below(bytes.len());
        let most = if self.one_in(4) { bytes.len() } else { 9 };
        let piece = 1 + self.below(most);
        let end = bytes.len().min(at + piece);
        match self.below(8) {
            0 | 1 => bytes[at] ^= 1 << self.below(8),
            2 => bytes[at] = *[0, 1, 0x7f, 0x80, 0xff].get(self.below(5)).unwrap_or(&0),
            3 => bytes[at] = self.next() as u8,
            4 => bytes.truncate(at),
            5 => drop(bytes.drain(at..end)),
            6 => {
                let copy = bytes[at..end].to_vec();
                let to = self.below(bytes.len() + 1);
                bytes.splice(to..to, copy);
            }
            _ => {
                let length = self.below(16);
                let fresh = self.bytes(length);
                bytes.splice(at..at, fresh);
            }
        }
    }
}

/// FNV-1a.
pub(crate) fn hash(text: &str) -> u64 {
    text.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
    })
}
