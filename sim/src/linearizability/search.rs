//! The search for an order.
//!
//! From the head of the [list](super::entries) of calls and returns the search takes the first call that
//! the specification allows, lifts its operation out of the list and begins at the head again. A return
//! at the head means that its operation had to take effect by now and did not: then unanswered operations
//! are tried, and if none helps, the last choice is undone. The search succeeds when the list is empty.
//!
//! Four rules keep it small. All orders that they skip are worse than one that is left, where better
//! means: fewer unanswered operations; these later; then these in the order of their invocations.
//!
//! * An unanswered operation followed by B is skipped if B without it leads to the same state, or if B
//!   may as well come first.
//! * Of unanswered operations with equal input the one invoked first is used first.
//! * A read that fits now takes effect now, a lagging one, too, if it is the next of its reader.
//! * A configuration is answered operations done, state, unanswered operations used, and lagging reads
//!   done. One that has been visited with the same two, a subset of the third and a superset of the
//!   fourth was no worse to go on from, and failed.
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
use super::entries::{Entries, Event, Kind};
use super::{Call, Lagging, Limit, Limits, Place, Specification, Stuck, Verdict};

/// Hashes equally in every run.
type Map<K, V> = HashMap<K, V, BuildHasherDefault<DefaultHasher>>;

/// Bounds of unanswered operations in a row, one pass after the other.
const ROWS: [usize; 4] = [1, 2, 4, usize::MAX];

/// A state as a small number.
type StateId = u32;

/// What to try next.
#[derive(Clone, Copy)]
enum Cursor {
    /// The next lagging read of readers from this one on.
    Reader(usize),
    /// The call or return at this event.
    Event(usize),
    /// Unanswered operations from this place, if invoked until then.
    Unanswered { from: usize, until: u64 },
}

/// What took effect.
#[derive(Clone, Copy)]
enum Choice {
    /// The call at an event, a place in `answered`; with whether it is a read, so that there is no
    /// alternative to it.
    Answered {
        call: usize,
        operation: usize,
        forced: bool,
    },
    /// A place in `unanswered`, and until when those tried with it are invoked.
    Unanswered { place: usize, until: u64 },
    /// The next lagging read of a reader. There is no alternative to it.
    Lagging { reader: usize, read: usize },
}

/// What came of trying an operation.
enum Tried {
    Taken(StateId),
    Refused,
    /// This operation could come next without loss, and leads nowhere: nothing else does either.
    DeadEnd,
}

/// The reads of one lagging copy.
struct Reader {
    /// Places in `lagging`.
    reads: Vec<usize>,
    /// How many took effect.
    done: usize,
}

/// What a configuration has besides answered operations and state.
struct Rest {
    used: Bits,
    read: Vec<usize>,
}

impl Rest {
    /// Whether everything that can follow `other` can follow this.
    fn is_no_worse(&self, other: &Self) -> bool {
        let read_more = self.read.iter().zip(&other.read).all(|(a, b)| a >= b);
        read_more && self.used.is_subset(&other.used)
    }
}

pub(super) struct Search<'a, S: Specification> {
    specification: &'a S,
    calls: &'a [Call<S::Input, S::Output>],
    lagging: &'a [Lagging<S::Input, S::Output>],
    /// Calls with an answer, by invocation.
    answered: Vec<usize>,
    /// Calls without, by invocation.
    unanswered: Vec<usize>,
    /// For each unanswered operation the one before it with equal input.
    twins: Vec<Option<usize>>,
    readers: Vec<Reader>,
    entries: Entries,
    states: Vec<S::State>,
    ids: Map<S::State, StateId>,
    /// Answered operations that took effect.
    done: Bits,
    /// Unanswered operations that took effect.
    used: Bits,
    /// Choices made, each with the state before it.
    chosen: Vec<(Choice, StateId)>,
    /// Unanswered operations at the end of `chosen`.
    row: usize,
    longest_row: usize,
    /// Whether an operation was skipped because of the bound of this pass.
    bounded: bool,
    visited: Map<(Bits, StateId), Vec<Rest>>,
    configurations: usize,
    steps: u64,
    longest: Option<Stuck<StateId>>,
}

impl<'a, S: Specification> Search<'a, S> {
    pub(super) fn new(
        specification: &'a S,
        calls: &'a [Call<S::Input, S::Output>],
        lagging: &'a [Lagging<S::Input, S::Output>],
    ) -> Self {
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
            lagging,
            twins: twins(inputs),
            readers: readers(lagging),
            entries: Entries::new(&answered, calls, lagging),
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
        let mut cursor = Cursor::Reader(0);
        let mut turns = 0u64;
        while !self.entries.is_empty() {
            turns += 1;
            self.check_limits(turns, limits)?;
            let (next, after) = match cursor {
                Cursor::Reader(from) => (Some(self.try_reader(from, state)), state),
                Cursor::Event(at) => self.try_event(at, state),
                Cursor::Unanswered { from, until } => self.try_unanswered(from, until, state),
            };
            (cursor, state) = match next {
                Some(cursor) => (cursor, after),
                None => match self.undo() {
                    Some(next) => next,
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

    /// Lets the next read of a reader take effect, if it fits. What fits fits before anything else.
    fn try_reader(&mut self, from: usize, state: StateId) -> Cursor {
        let Some(reader) = self.readers.get(from) else {
            return Cursor::Event(self.entries.first());
        };
        let Some(read) = reader.reads.get(reader.done).copied() else {
            return Cursor::Reader(from + 1);
        };
        let Lagging { input, output, .. } = &self.lagging[read];
        // The state stays, also if the specification writes it in another way after a read.
        if self.step_of(input, Some(output), state).is_none() {
            return Cursor::Reader(from + 1);
        }
        self.readers[from].done += 1;
        self.entries.lift_read(read);
        let reader = from;
        self.push(Choice::Lagging { reader, read }, state);
        Cursor::Reader(from)
    }

    /// Goes on at a call or return: what to try next (nothing: undo), and the state then.
    fn try_event(&mut self, at: usize, state: StateId) -> (Option<Cursor>, StateId) {
        let Event {
            at: until, kind, ..
        } = self.entries.get(at);
        let blocked = match kind {
            Kind::Call { operation, .. } => {
                return match self.take_answered(at, operation, state) {
                    Tried::Taken(after) => (Some(Cursor::Reader(0)), after),
                    Tried::Refused => (Some(Cursor::Event(self.entries.after(at))), state),
                    Tried::DeadEnd => (None, state),
                };
            }
            Kind::Return { operation } => Place::Call(self.answered[operation]),
            Kind::Lagging { read } => Place::Lagging(read),
            Kind::Head => unreachable!("what is left has a return, where the search turns"),
        };
        self.remember_longest(blocked, state);
        (Some(Cursor::Unanswered { from: 0, until }), state)
    }

    /// Lets the operation of a call take effect, if its answer fits and the outcome is new.
    fn take_answered(&mut self, call: usize, operation: usize, state: StateId) -> Tried {
        let place = self.answered[operation];
        let Some(after) = self.step(place, state) else {
            return Tried::Refused;
        };
        if self.is_worse(place, None, after) {
            return Tried::Refused;
        }
        let forced = after == state && self.is_read(place);
        self.done.set(operation, true);
        if !self.remember(after) {
            self.done.set(operation, false);
            return match forced {
                true => Tried::DeadEnd,
                false => Tried::Refused,
            };
        }
        self.entries.lift(call);
        let choice = Choice::Answered {
            call,
            operation,
            forced,
        };
        self.push(choice, state);
        Tried::Taken(after)
    }

    /// Tries the first unanswered operation from a place on that may take effect.
    fn try_unanswered(
        &mut self,
        from: usize,
        until: u64,
        state: StateId,
    ) -> (Option<Cursor>, StateId) {
        let invoked = |place: &usize| self.calls[self.unanswered[*place]].invoked <= until;
        let candidate = (from..self.unanswered.len())
            .take_while(invoked)
            .find(|place| {
                let first_of_twins = self.twins[*place].is_none_or(|twin| self.used.contains(twin));
                first_of_twins && !self.used.contains(*place)
            });
        let Some(place) = candidate else {
            return (None, state);
        };
        match self.take_unanswered(place, until, state) {
            Some(after) => (Some(Cursor::Reader(0)), after),
            None => {
                let from = place + 1;
                (Some(Cursor::Unanswered { from, until }), state)
            }
        }
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
            Choice::Answered { .. } | Choice::Lagging { .. } => 0,
            Choice::Unanswered { .. } => self.row + 1,
        };
        self.chosen.push((choice, before));
    }

    /// Undoes the last choice that had an alternative: what to try instead, and in which state.
    fn undo(&mut self) -> Option<(Cursor, StateId)> {
        while let Some((choice, before)) = self.chosen.pop() {
            let cursor = match choice {
                Choice::Answered {
                    call,
                    operation,
                    forced,
                } => {
                    self.entries.unlift(call);
                    self.done.set(operation, false);
                    if forced {
                        continue;
                    }
                    Cursor::Event(self.entries.after(call))
                }
                Choice::Unanswered { place, until } => {
                    self.used.set(place, false);
                    let from = place + 1;
                    Cursor::Unanswered { from, until }
                }
                Choice::Lagging { reader, read } => {
                    self.readers[reader].done -= 1;
                    self.entries.unlift_read(read);
                    continue;
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

    /// Remembers the configuration with this state; whether none was no worse.
    fn remember(&mut self, state: StateId) -> bool {
        let now = Rest {
            used: self.used.clone(),
            read: self.readers.iter().map(|reader| reader.done).collect(),
        };
        let seen = self.visited.entry((self.done.clone(), state)).or_default();
        self.steps += seen.len() as u64;
        if seen.iter().any(|rest| rest.is_no_worse(&now)) {
            return false;
        }
        let before = seen.len();
        seen.retain(|rest| !now.is_no_worse(rest));
        seen.push(now);
        self.configurations = self.configurations + seen.len() - before;
        true
    }

    fn step(&mut self, call: usize, state: StateId) -> Option<StateId> {
        let Call { input, output, .. } = &self.calls[call];
        self.step_of(input, output.as_ref(), state)
    }

    fn step_of(
        &mut self,
        input: &S::Input,
        output: Option<&S::Output>,
        state: StateId,
    ) -> Option<StateId> {
        self.steps += 1;
        let state = &self.states[state as usize];
        let after = self.specification.step(state, input, output)?;
        Some(self.id(after))
    }

    fn is_read(&self, call: usize) -> bool {
        let Call { input, output, .. } = &self.calls[call];
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

    fn remember_longest(&mut self, blocked: Place, state: StateId) {
        let longest = self.longest.as_ref();
        if longest.is_some_and(|longest| self.chosen.len() <= longest.placed) {
            return;
        }
        let shown = self.chosen.len().saturating_sub(Stuck::<()>::SHOWN);
        self.longest = Some(Stuck {
            placed: self.chosen.len(),
            order: self.chosen[shown..].iter().map(|c| self.place(c)).collect(),
            state,
            blocked,
        });
    }

    fn place(&self, (choice, _): &(Choice, StateId)) -> Place {
        match choice {
            Choice::Answered { operation, .. } => Place::Call(self.answered[*operation]),
            Choice::Unanswered { place, .. } => Place::Call(self.unanswered[*place]),
            Choice::Lagging { read, .. } => Place::Lagging(*read),
        }
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

fn readers<I, O>(lagging: &[Lagging<I, O>]) -> Vec<Reader> {
    let mut places: Map<u64, usize> = Map::default();
    let mut readers: Vec<Reader> = Vec::new();
    for (read, Lagging { reader, .. }) in lagging.iter().enumerate() {
        let place = *places.entry(*reader).or_insert(readers.len());
        if place == readers.len() {
            let (reads, done) = (Vec::new(), 0);
            readers.push(Reader { reads, done });
        }
        readers[place].reads.push(read);
    }
    readers
}
