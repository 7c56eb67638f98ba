//! The macro at the places where known bugs can be planted.
//!
//! It is the literal `false` unless the workspace is built with `--cfg canary`: what it guards is not
//! compiled into anything then, and a bug that is misspelt does not compile with it.

/// Whether the named known bug is planted in this run. See `canary` in this crate, which exists only
/// with `--cfg canary`.
#[cfg(canary)]
#[doc(hidden)]
#[macro_export]
macro_rules! planted {
    ($name:ident) => {
        $crate::canary::is($crate::canary::Canary::$name)
    };
}

/// `false`: this build has no known bugs.
#[cfg(not(canary))]
#[doc(hidden)]
#[macro_export]
macro_rules! planted {
    ($name:ident) => {
        false
    };
}
