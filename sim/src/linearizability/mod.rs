//! Whether a history of operations on one object could have come from one single copy of it.
//!
//! The checker is Wing and Gong's search ("Testing and Verifying Concurrent Objects", 1993) with Lowe's
//! memory of visited configurations ("Testing for linearizability", 2017), over any [sequential
//! specification](Specification): it looks for an order of the operations that respects real time and in
//! which every answer is right. A history of many objects is linearizable if and only if its part for
//! each object is (Herlihy and Wing 1990, theorem 1), so callers ask for each object on its own.
//!
//! An operation without an answer takes effect at one moment after its invocation, however late, or
//! never. Operations that certainly had no effect do not belong into the calls at all.
//!
//! # Why long histories are cheap
//! Wherever no answered operation is open, whatever came before is one configuration per possible state
//! and per set of unanswered operations already used. The search remembers configurations by exactly
//! that, so what it costs is the sum over the stretches between such points, never the product; what
//! keeps unanswered operations from multiplying it is told in `search.rs`.
//!
//! Contract: equal calls give equal verdicts, however the machine is; nothing here reads a clock.

mod bits;
mod entries;
mod search;

use std::hash::Hash;

/// What one object may do, one operation at a time.
pub trait Specification {
    /// What the object remembers.
    type State: Clone + Eq + Hash;
    /// What is asked. Unanswered operations with equal inputs are taken to be interchangeable.
    type Input: Eq + Hash;
    /// What is answered.
    type Output;

    /// The state before the first operation.
    fn initial(&self) -> Self::State;

    /// The state after `input`, if `output` is the right answer to it in `state`; none if it is not. No
    /// output: the answer is not known, and any would do.
    fn step(
        &self,
        state: &Self::State,
        input: &Self::Input,
        output: Option<&Self::Output>,
    ) -> Option<Self::State>;

    /// Whether `input` with this answer leaves every state as it is in which the answer is right, as a
    /// read does. False is always right; true makes the search shorter.
    fn is_read(&self, _input: &Self::Input, _output: &Self::Output) -> bool {
        false
    }
}

/// One operation on the object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call<I, O> {
    /// What was asked.
    pub input: I,
    /// What was answered; none if nobody knows what became of the operation.
    pub output: Option<O>,
    /// When it was asked, on the clock of the history.
    pub invoked: u64,
    /// When it was answered; of no meaning without an answer. Operations that touch count as concurrent.
    pub returned: u64,
}

/// A read of a copy that may lag behind, and so may show any earlier state, but never goes back: reads by
/// the same reader show states in the order in which they were.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lagging<I, O> {
    /// Which copy. Reads of one copy are given in their order.
    pub reader: u64,
    /// What was asked; [reads](Specification::is_read) only.
    pub input: I,
    /// What was answered.
    pub output: O,
    /// When it was answered: no operation invoked later can have been seen.
    pub at: u64,
}

/// An operation of a history, by its place in what [`check`] was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// One of the calls.
    Call(usize),
    /// One of the lagging reads.
    Lagging(usize),
}

/// How much a search may take for one object.
#[derive(Clone, Copy)]
pub struct Limits<'a> {
    /// Configurations to remember; each takes about 150 bytes and what its state takes.
    pub configurations: usize,
    /// Steps of the specification and comparisons of configurations.
    pub steps: u64,
    /// Asked now and then whether to give up, for those who have a clock.
    pub give_up: Option<&'a dyn Fn() -> bool>,
}

impl Default for Limits<'_> {
    fn default() -> Self {
        Self {
            configurations: 300_000,
            steps: 5_000_000,
            give_up: None,
        }
    }
}

impl std::fmt::Debug for Limits<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Limits")
            .field("configurations", &self.configurations)
            .field("steps", &self.steps)
            .finish_non_exhaustive()
    }
}

/// Which limit ended a search before it knew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// [`Limits::configurations`].
    Configurations,
    /// [`Limits::steps`].
    Steps,
    /// [`Limits::give_up`] said so.
    GivenUp,
}

/// What the search found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict<S> {
    /// An order exists.
    Linearizable,
    /// No order exists.
    Violation(Stuck<S>),
    /// A limit was reached first.
    Unknown(Limit),
}

/// The longest order that was found before no operation could follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stuck<S> {
    /// How many operations it has.
    pub placed: usize,
    /// The last of them, at most [`Stuck::SHOWN`], oldest first.
    pub order: Vec<Place>,
    /// The state after it.
    pub state: S,
    /// The operation that had to take effect next and could not.
    pub blocked: Place,
}

impl<S> Stuck<S> {
    /// How much of an order is kept.
    pub const SHOWN: usize = 10;
}

/// Looks for an order of the calls on one object in which there is also a place for every lagging read.
/// Calls may be given in any order; none returns before it is invoked.
pub fn check<S: Specification>(
    specification: &S,
    calls: &[Call<S::Input, S::Output>],
    lagging: &[Lagging<S::Input, S::Output>],
    limits: &Limits<'_>,
) -> Verdict<S::State> {
    search::Search::new(specification, calls, lagging).run(limits)
}

#[cfg(test)]
mod tests;
