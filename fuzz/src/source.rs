//! Bytes as numbers and choices. When the bytes are at their end everything is 0: every input says
//! something, and what is cut off it makes it say less.

/// See the module.
#[derive(Clone, Debug)]
pub struct Source<'a> {
    bytes: &'a [u8],
}

impl<'a> Source<'a> {
    /// Reads from the first byte on.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// Whether nothing is left.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// One byte.
    pub const fn byte(&mut self) -> u8 {
        match self.bytes {
            [first, rest @ ..] => {
                self.bytes = rest;
                *first
            }
            [] => 0,
        }
    }

    /// Yes or no.
    pub const fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    /// True once in `many`, by one byte; false at the end of the bytes.
    pub const fn one_in(&mut self, many: u8) -> bool {
        self.byte() % many == many - 1
    }

    /// A number below `limit`, which is neither 0 nor above 256, by one byte.
    pub fn below(&mut self, limit: usize) -> usize {
        usize::from(self.byte()) % limit
    }

    /// One of `choices`, which has at least one and at most 256.
    ///
    /// # Panics
    /// There is nothing to choose from.
    pub fn pick<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())].clone()
    }

    /// Eight bytes.
    pub const fn word(&mut self) -> u64 {
        let (mut word, mut count) = (0, 0);
        while count < 8 {
            word = word << 8 | self.byte() as u64;
            count += 1;
        }
        word
    }

    /// A number as Raft has them: small in most cases, sometimes at an edge, rarely anything.
    pub const fn number(&mut self) -> u64 {
        match self.byte() {
            0xFF => u64::MAX,
            0xFE => u64::MAX - 1,
            0xFD => u64::MAX >> 1,
            0xFC => 1 << 62,
            0xFB => (1 << 62) - 1,
            0xFA => self.word(),
            0xF9 => u32::MAX as u64,
            small => small as u64 & 15,
        }
    }

    /// At most `max` bytes, and not above 255; how many says a byte before them.
    pub fn bytes(&mut self, max: usize) -> &'a [u8] {
        let length = self.below(max.min(255) + 1);
        let (taken, rest) = self.bytes.split_at(length.min(self.bytes.len()));
        self.bytes = rest;
        taken
    }

    /// What is left, without taking it.
    #[must_use]
    pub const fn rest(&self) -> &'a [u8] {
        self.bytes
    }
}
