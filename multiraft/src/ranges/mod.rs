//! Ranges: which group owns which keys of this store, and the commands by which ranges change.
//!
//! A group splits, merges with its right neighbour, or is frozen for that, by entries of its own log, so
//! that all its replicas do it at the same place. What such an entry makes of a group is one pure
//! function ([`AppliedState::after`](crate::AppliedState)): worker and applier ask the same one.
//!
//! # Generations
//! Each group that comes out of a change has a generation ([`Epoch::range`](crate::Epoch)) above those of
//! all groups that went in. So the generations of the successive owners of a key strictly grow, and of
//! two descriptors that overlap the one with the higher generation is the later one. Bounds alone do
//! not tell: after a split and a merge they are what they were.

mod claims;
mod command;
mod merge;
pub(crate) mod registry;

pub(crate) use command::RangeOutcome;
pub use command::{RangeCommand, RangeRefusal, SPLIT_PIECES_MAX, SplitPiece};
pub use merge::{MergeAnswer, MergeFailure, MergeStep, Merging};
