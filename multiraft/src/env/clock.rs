//! Time.

use std::time::Duration;

/// The only source of time of a host.
pub trait Clock: Send + Sync + 'static {
    /// Monotonic time since some fixed point.
    fn now(&self) -> Duration;
}
