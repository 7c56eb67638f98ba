//! The search for an order.
//!
//! Calls and returns of answered operations lie in one doubly linked list in the order of time. From its
//! head the search takes the first call that the specification allows, lifts the call and its return out
//! of the list and begins at the head again. A return at the head means that its operation had to take
//! effect by now and did not: then unanswered operations are tried, and if none helps, the last choice is
//! undone. The search succeeds when every return has left the list.
//!
//! Four rules keep it small. All orders that they skip are worse than one that is left, where better
//! means: fewer unanswered operations; these later; then these in the order of their invocations.
//!
//! * An unanswered operation followed by B is skipped if B without it leads to the same state, or if B
//!   may as well come first.
//! * Of unanswered operations with equal input the one invoked first is used first.
//! * A read that fits now takes effect now.
//! * A configuration is answered operations done, state, and unanswered operations used. One that has
//!   been visited with the same two and a subset of the third had more to go on with, and failed.
//!
//! Only configurations right after an answered operation are remembered: what may follow an unanswered
//! one depends on how it was reached, by the first rule.
//!
//! How many unanswered operations may take effect in a row is bounded by 1, then 2, then 4, then not at
//! all: in what really happened there are answered operations between most of them.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{BuildHasherDefault, Hash};

use super::bits::Bits;
use super::{Call, Limit, Limits, Specification, Stuck, Verdict};

/// Hashes equally in every run.
type Map<K, V> = HashMap<K, V, BuildHasherDefault<DefaultHasher>>;

/// Bounds of unanswered operations in a row, one pass after the other.
const ROWS: [usize; 4] = [1, 2, 4, usize::MAX];

/// A state as a small number.
type StateId = u32;

/// Index of the list's head; events follow from 1.
const HEAD: usize = 0;

#[derive(Clone, Copy)]
struct Event {
    /// A place in `answered`.
    operation: usize,
    at: u64,
    /// The event of the return if this is a call; `None` for a return.
    returns: Option<usize>,
    previous: usize,
    next: usize,
}

/// What to try next.
#[derive(Clone, Copy)]
enum Cursor {
    /// The call or return at this event.
    Event(usize),
    /// Unanswered operations from this place, if invoked until then.
    Unanswered { from: usize, until: u64 },
}

/// What took effect.
#[derive(Clone, Copy)]
enum Choice {
    /// The call at an event; with whether it is a read, so that there is no alternative to it.
    Answered { call: usize, forced: bool },
    /// A place in `unanswered`, and until when those tried with it are invoked.
    Unanswered { place: usize, until: u64 },
}

/// What came of trying an operation.
enum Tried {
    Taken(StateId),
    Refused,
    /// This operation could come next without loss, and leads nowhere: nothing else does either.
    DeadEnd,
}

pub(super) struct Search<'a, S: Specification> {
    specification: &'a S,
    calls: &'a [Call<S::Input, S::Output>],
    /// Calls with an answer, by invocation.
    answered: Vec<usize>,
    /// Calls without, by invocation.
    unanswered: Vec<usize>,
    /// For each unanswered operation the one before it with equal input.
    twins: Vec<Option<usize>>,
    events: Vec<Event>,
    states: Vec<S::State>,
    ids: Map<S::State, StateId>,
    /// Answered operations that took effect.
    done: Bits,
    /// Unanswered operations that took effect.
    used: Bits,
    /// Returns still in the list.
    returns_left: usize,
    /// Choices made, each with the state before it.
    chosen: Vec<(Choice, StateId)>,
    /// Unanswered operations at the end of `chosen`.
    row: usize,
    longest_row: usize,
    /// Whether an operation was skipped because of the bound of this pass.
    bounded: bool,
    visited: Map<(Bits, StateId), Vec<Bits>>,
    configurations: usize,
    steps: u64,
    longest: Option<Stuck<StateId>>,
}

impl<'a, S: Specification> Search<'a, S> {
    pub(super) fn new(specification: &'a S, calls: &'a [Call<S::Input, S::Output>]) -> Self {
        let pick = |wanted: bool| {
            let mut places: Vec<usize> = (0..calls.len())
                .filter(|at| calls[*at].output.is_some() == wanted)
                .collect();
            let answer = |at: usize| if wanted { calls[at].returned } else { 0 };
            places.sort_by_key(|at| (calls[*at].invoked, answer(*at)));
            places
        };
        let (answered, unanswered) = (pick(true), pick(false));
        let inputs = unanswered.iter().map(|at| &calls[*at].input);
        Self {
            specification,
            calls,
            twins: twins(inputs),
            events: events(&answered, calls),
            returns_left: answered.len(),
            answered,
            unanswered,
            states: Vec::new(),
            ids: Map::default(),
            done: Bits::default(),
            used: Bits::default(),
            chosen: Vec::new(),
            row: 0,
            longest_row: 0,
            bounded: false,
            visited: Map::default(),
            configurations: 0,
            steps: 0,
            longest: None,
        }
    }

    pub(super) fn run(mut self, limits: &Limits<'_>) -> Verdict<S::State> {
        let initial = self.specification.initial();
        let initial = self.id(initial);
        for row in ROWS {
            self.longest_row = row;
            self.bounded = false;
            self.visited.clear();
            match self.pass(initial, limits) {
                Ok(true) => return Verdict::Linearizable,
                Ok(false) if self.bounded => {}
                Ok(false) => break,
                Err(limit) => return Verdict::Unknown(limit),
            }
        }
        let stuck = self
            .longest
            .expect("the search got stuck at least at the return that ended it");
        Verdict::Violation(Stuck {
            placed: stuck.placed,
            order: stuck.order,
            state: self.states[stuck.state as usize].clone(),
            blocked: stuck.blocked,
        })
    }

    /// Whether there is an order within the bound; if there is none, nothing is chosen in the end.
    fn pass(&mut self, initial: StateId, limits: &Limits<'_>) -> Result<bool, Limit> {
        let mut state = initial;
        let mut cursor = Cursor::Event(self.events[HEAD].next);
        let mut turns = 0u64;
        while self.returns_left > 0 {
            turns += 1;
            self.check_limits(turns, limits)?;
            let next = match cursor {
                Cursor::Event(at) => match self.events[at].returns {
                    Some(_) => match self.take_answered(at, state) {
                        Tried::Taken(after) => {
                            state = after;
                            Some(Cursor::Event(self.events[HEAD].next))
                        }
                        Tried::Refused => Some(Cursor::Event(self.events[at].next)),
                        Tried::DeadEnd => None,
                    },
                    None => {
                        let Event { operation, at, .. } = self.events[at];
                        self.remember_longest(self.answered[operation], state);
                        Some(Cursor::Unanswered { from: 0, until: at })
                    }
                },
                Cursor::Unanswered { from, until } => match self.candidate(from, until) {
                    Some(place) => match self.take_unanswered(place, until, state) {
                        Some(after) => {
                            state = after;
                            Some(Cursor::Event(self.events[HEAD].next))
                        }
                        None => Some(Cursor::Unanswered {
                            from: place + 1,
                            until,
                        }),
                    },
                    None => None,
                },
            };
            cursor = match next {
                Some(cursor) => cursor,
                None => match self.undo() {
                    Some((cursor, before)) => {
                        state = before;
                        cursor
                    }
                    None => return Ok(false),
                },
            };
        }
        Ok(true)
    }

    fn check_limits(&self, turns: u64, limits: &Limits<'_>) -> Result<(), Limit> {
        if self.configurations > limits.configurations {
            return Err(Limit::Configurations);
        }
        if self.steps > limits.steps {
            return Err(Limit::Steps);
        }
        if turns.is_multiple_of(1024) && limits.give_up.is_some_and(|give_up| give_up()) {
            return Err(Limit::GivenUp);
        }
        Ok(())
    }

    /// Lets the operation of a call take effect, if its answer fits and the outcome is new.
    fn take_answered(&mut self, call: usize, state: StateId) -> Tried {
        let operation = self.events[call].operation;
        let Some(after) = self.step(self.answered[operation], state) else {
            return Tried::Refused;
        };
        if self.is_worse(self.answered[operation], None, after) {
            return Tried::Refused;
        }
        let forced = after == state && self.is_read(self.answered[operation]);
        self.done.set(operation, true);
        if !self.remember(after) {
            self.done.set(operation, false);
            return match forced {
                true => Tried::DeadEnd,
                false => Tried::Refused,
            };
        }
        self.push(Choice::Answered { call, forced }, state);
        self.unlink(call);
        if let Some(returns) = self.events[call].returns {
            self.unlink(returns);
        }
        self.returns_left -= 1;
        Tried::Taken(after)
    }

    /// The first unanswered operation from a place on that may take effect.
    fn candidate(&self, from: usize, until: u64) -> Option<usize> {
        let invoked = |place: &usize| self.calls[self.unanswered[*place]].invoked <= until;
        (from..self.unanswered.len())
            .take_while(invoked)
            .find(|place| {
                let first_of_twins = self.twins[*place].is_none_or(|twin| self.used.contains(twin));
                first_of_twins && !self.used.contains(*place)
            })
    }

    fn take_unanswered(&mut self, place: usize, until: u64, state: StateId) -> Option<StateId> {
        if self.row >= self.longest_row {
            self.bounded = true;
            return None;
        }
        let operation = self.unanswered[place];
        let after = self.step(operation, state).filter(|s| *s != state)?;
        if self.is_worse(operation, Some(place), after) {
            return None;
        }
        self.used.set(place, true);
        self.push(Choice::Unanswered { place, until }, state);
        Some(after)
    }

    /// Whether an order is better in which the last choice, if it was an unanswered operation, does not
    /// come right before this one; `place` is set if this one is unanswered, too.
    fn is_worse(&mut self, operation: usize, place: Option<usize>, after: StateId) -> bool {
        let Some((Choice::Unanswered { place: last, .. }, before)) = self.chosen.last().copied()
        else {
            return false;
        };
        let Some(without) = self.step(operation, before) else {
            return false;
        };
        if without == after {
            return true;
        }
        let may_swap = place.is_none_or(|place| place < last);
        may_swap && self.step(self.unanswered[last], without) == Some(after)
    }

    fn push(&mut self, choice: Choice, before: StateId) {
        self.row = match choice {
            Choice::Answered { .. } => 0,
            Choice::Unanswered { .. } => self.row + 1,
        };
        self.chosen.push((choice, before));
    }

    /// Undoes the last choice that had an alternative: what to try instead, and in which state.
    fn undo(&mut self) -> Option<(Cursor, StateId)> {
        while let Some((choice, before)) = self.chosen.pop() {
            let cursor = match choice {
                Choice::Answered { call, forced } => {
                    self.put_back(call);
                    if forced {
                        continue;
                    }
                    Cursor::Event(self.events[call].next)
                }
                Choice::Unanswered { place, until } => {
                    self.used.set(place, false);
                    let from = place + 1;
                    Cursor::Unanswered { from, until }
                }
            };
            let unanswered =
                |(choice, _): &&(Choice, StateId)| matches!(choice, Choice::Unanswered { .. });
            self.row = self.chosen.iter().rev().take_while(unanswered).count();
            return Some((cursor, before));
        }
        self.row = 0;
        None
    }

    /// Links are restored in the opposite order of their removal, so each finds its neighbours as it left
    /// them (Knuth's dancing links).
    fn put_back(&mut self, call: usize) {
        let event = self.events[call];
        if let Some(returns) = event.returns {
            self.relink(returns);
        }
        self.relink(call);
        self.returns_left += 1;
        self.done.set(event.operation, false);
    }

    fn unlink(&mut self, at: usize) {
        let Event { previous, next, .. } = self.events[at];
        self.events[previous].next = next;
        self.events[next].previous = previous;
    }

    fn relink(&mut self, at: usize) {
        let Event { previous, next, .. } = self.events[at];
        self.events[previous].next = at;
        self.events[next].previous = at;
    }

    /// Remembers the configuration with this state; whether none was at least as good.
    fn remember(&mut self, state: StateId) -> bool {
        let seen = self.visited.entry((self.done.clone(), state)).or_default();
        self.steps += seen.len() as u64;
        if seen.iter().any(|used| used.is_subset(&self.used)) {
            return false;
        }
        let before = seen.len();
        seen.retain(|used| !self.used.is_subset(used));
        seen.push(self.used.clone());
        self.configurations = self.configurations + seen.len() - before;
        true
    }

    fn step(&mut self, operation: usize, state: StateId) -> Option<StateId> {
        self.steps += 1;
        let Call { input, output, .. } = &self.calls[operation];
        let state = &self.states[state as usize];
        let after = self.specification.step(state, input, output.as_ref())?;
        Some(self.id(after))
    }

    fn is_read(&self, operation: usize) -> bool {
        let Call { input, output, .. } = &self.calls[operation];
        let is_read = |output| self.specification.is_read(input, output);
        output.as_ref().is_some_and(is_read)
    }

    fn id(&mut self, state: S::State) -> StateId {
        if let Some(id) = self.ids.get(&state) {
            return *id;
        }
        let id = StateId::try_from(self.states.len()).expect("fewer than 2^32 states in memory");
        self.states.push(state.clone());
        self.ids.insert(state, id);
        id
    }

    fn remember_longest(&mut self, blocked: usize, state: StateId) {
        let longest = self.longest.as_ref();
        if longest.is_some_and(|longest| self.chosen.len() <= longest.placed) {
            return;
        }
        let operation = |(choice, _): &(Choice, StateId)| match choice {
            Choice::Answered { call, .. } => self.answered[self.events[*call].operation],
            Choice::Unanswered { place, .. } => self.unanswered[*place],
        };
        let shown = self.chosen.len().saturating_sub(Stuck::<()>::SHOWN);
        self.longest = Some(Stuck {
            placed: self.chosen.len(),
            order: self.chosen[shown..].iter().map(operation).collect(),
            state,
            blocked,
        });
    }
}

/// For each input the place of the last equal one before it.
fn twins<'a, I: Eq + Hash + 'a>(inputs: impl Iterator<Item = &'a I>) -> Vec<Option<usize>> {
    let mut last: Map<&I, usize> = Map::default();
    inputs
        .enumerate()
        .map(|(place, input)| last.insert(input, place))
        .collect()
}

/// Calls and returns in the order of time as a ring through [`HEAD`]. At one instant calls come first:
/// operations that touch count as concurrent, so a coarse clock raises no false alarm.
fn events<I, O>(answered: &[usize], calls: &[Call<I, O>]) -> Vec<Event> {
    let mut moments: Vec<(u64, bool, usize)> = Vec::with_capacity(answered.len() * 2);
    for (operation, at) in answered.iter().enumerate() {
        moments.push((calls[*at].invoked, false, operation));
        moments.push((calls[*at].returned, true, operation));
    }
    moments.sort_unstable();
    let ring = moments.len() + 1;
    let mut events = vec![Event {
        operation: usize::MAX,
        at: 0,
        returns: None,
        previous: ring - 1,
        next: 1 % ring,
    }];
    let mut begun = vec![HEAD; answered.len()];
    for (place, (at, is_return, operation)) in (1..).zip(moments) {
        if is_return {
            events[begun[operation]].returns = Some(place);
        } else {
            begun[operation] = place;
        }
        events.push(Event {
            operation,
            at,
            returns: None,
            previous: place - 1,
            next: (place + 1) % ring,
        });
    }
    events
}
