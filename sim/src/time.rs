//! Virtual time. Nothing in a world reads any other clock.

/// Nanoseconds since the beginning of the world, or a length of time.
pub type Nanos = u64;

/// A microsecond.
pub const MICROSECOND: Nanos = 1_000;
/// A millisecond.
pub const MILLISECOND: Nanos = 1_000_000;
/// A second.
pub const SECOND: Nanos = 1_000_000_000;
