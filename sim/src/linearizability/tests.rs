//! Histories of one counter, checked against all orders; and longer ones that really happened, or that a
//! counter with a fault made.

use proptest::prelude::*;

use super::*;
use crate::rng::Rng;

/// A number that may be absent.
struct Counter;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Input {
    Get,
    Put(u64),
    /// Counts up from 0 if absent.
    Add(u64),
    Cas(Option<u64>, u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Output {
    Value(Option<u64>),
    Done,
    Swapped(bool),
}

type CounterCall = Call<Input, Output>;
type CounterRead = Lagging<Input, Output>;

fn apply(state: Option<u64>, input: Input) -> (Option<u64>, Output) {
    match input {
        Input::Get => (state, Output::Value(state)),
        Input::Put(value) => (Some(value), Output::Done),
        Input::Add(n) => {
            let after = Some(state.unwrap_or(0) + n);
            (after, Output::Value(after))
        }
        Input::Cas(expected, value) if expected == state => (Some(value), Output::Swapped(true)),
        Input::Cas(..) => (state, Output::Swapped(false)),
    }
}

impl Specification for Counter {
    type State = Option<u64>;
    type Input = Input;
    type Output = Output;

    fn initial(&self) -> Option<u64> {
        None
    }

    fn step(
        &self,
        state: &Option<u64>,
        input: &Input,
        output: Option<&Output>,
    ) -> Option<Option<u64>> {
        let (after, right) = apply(*state, *input);
        output
            .is_none_or(|output| *output == right)
            .then_some(after)
    }

    fn is_read(&self, input: &Input, output: &Output) -> bool {
        *input == Input::Get || *output == Output::Swapped(false)
    }
}

fn verdict(calls: &[CounterCall], lagging: &[CounterRead]) -> Verdict<Option<u64>> {
    check(&Counter, calls, lagging, &Limits::default())
}

fn call(input: Input, output: Option<Output>, invoked: u64, returned: u64) -> CounterCall {
    Call {
        input,
        output,
        invoked,
        returned,
    }
}

fn read(reader: u64, value: Option<u64>, at: u64) -> CounterRead {
    let (input, output) = (Input::Get, Output::Value(value));
    Lagging {
        reader,
        input,
        output,
        at,
    }
}

/// An operation as the definition has it.
#[derive(Debug, Clone, Copy)]
struct Plain {
    input: Input,
    output: Option<Output>,
    invoked: u64,
    returned: u64,
    /// The reader, and which of its reads.
    lagging: Option<(u64, usize)>,
}

/// The definition, word for word: tries every order of every choice of unanswered operations.
fn has_an_order(left: &[Plain], state: Option<u64>) -> bool {
    if left.iter().all(|o| o.output.is_none()) {
        return true;
    }
    (0..left.len()).any(|at| {
        let next = left[at];
        let too_late = |o: &Plain| o.output.is_some() && o.returned < next.invoked;
        let out_of_turn = |o: &Plain| match (o.lagging, next.lagging) {
            (Some((one, before)), Some((other, now))) => one == other && before < now,
            _ => false,
        };
        if left.iter().any(|o| too_late(o) || out_of_turn(o)) {
            return false;
        }
        let mut rest = left.to_vec();
        rest.remove(at);
        let (after, right) = apply(state, next.input);
        next.output.is_none_or(|output| output == right) && has_an_order(&rest, after)
    })
}

fn plain(calls: &[CounterCall], lagging: &[CounterRead]) -> Vec<Plain> {
    let of_call = |call: &CounterCall| Plain {
        input: call.input,
        output: call.output,
        invoked: call.invoked,
        returned: call.returned,
        lagging: None,
    };
    let of_read = |(number, read): (usize, &CounterRead)| Plain {
        input: read.input,
        output: Some(read.output),
        invoked: 0,
        returned: read.at,
        lagging: Some((read.reader, number)),
    };
    let calls = calls.iter().map(of_call);
    calls
        .chain(lagging.iter().enumerate().map(of_read))
        .collect()
}

fn any_value() -> impl Strategy<Value = Option<u64>> {
    prop_oneof![Just(None), (1u64..4).prop_map(Some)]
}

/// Any operation with any answer.
fn any_call() -> impl Strategy<Value = CounterCall> {
    let what = prop_oneof![
        3 => any_value().prop_map(|seen| (Input::Get, Output::Value(seen))),
        2 => (1u64..4).prop_map(|value| (Input::Put(value), Output::Done)),
        2 => (1u64..3, any_value()).prop_map(|(n, seen)| (Input::Add(n), Output::Value(seen))),
        2 => (any_value(), 1u64..4, any::<bool>())
            .prop_map(|(old, new, swapped)| (Input::Cas(old, new), Output::Swapped(swapped))),
    ];
    (what, 0u64..12, 0u64..6, 0..3).prop_map(|((input, output), invoked, length, answered)| {
        let output = (answered > 0).then_some(output);
        call(input, output, invoked, invoked + length)
    })
}

fn any_reads() -> impl Strategy<Value = Vec<CounterRead>> {
    let one =
        (0u64..2, any_value(), 0u64..20).prop_map(|(reader, value, at)| read(reader, value, at));
    let mut reads = proptest::collection::vec(one, 0..3).boxed();
    reads = reads
        .prop_map(|mut reads| {
            reads.sort_by_key(|read| read.at);
            reads
        })
        .boxed();
    reads
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn agrees_with_trying_every_order(
        calls in proptest::collection::vec(any_call(), 1..6),
        lagging in any_reads(),
    ) {
        let expected = has_an_order(&plain(&calls, &lagging), None);
        let found = verdict(&calls, &lagging);
        prop_assert_eq!(found == Verdict::Linearizable, expected, "{:?}", found);
    }

}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn what_really_happened_is_accepted(seed: u64) {
        let happened = Happened::draw(&mut Rng::new(seed), Fault::None);
        prop_assert_eq!(verdict(&happened.calls, &happened.lagging), Verdict::Linearizable);
    }

    #[test]
    fn small_parts_of_what_happened_agree_with_trying_every_order(seed: u64) {
        let mut rng = Rng::new(seed);
        let faults = [Fault::None, Fault::StaleRead, Fault::LostWrite, Fault::DoubledAdd];
        let fault = *rng.pick(&faults).expect("there are some");
        let mut happened = Happened::draw(&mut rng, fault);
        happened.calls.truncate(6);
        let expected = has_an_order(&plain(&happened.calls, &[]), None);
        let found = verdict(&happened.calls, &[]);
        prop_assert_eq!(found == Verdict::Linearizable, expected, "{:?}", found);
    }

}

proptest! {
    // A fault takes all orders to find.
    #![proptest_config(ProptestConfig::with_cases(30))]

    #[test]
    fn faults_are_found(seed: u64) {
        for fault in [
            Fault::StaleRead,
            Fault::LostWrite,
            Fault::DoubledAdd,
            Fault::ImpossibleCas,
            Fault::CopyGoesBack,
            Fault::CopyAhead,
        ] {
            let happened = Happened::draw(&mut Rng::new(seed), fault);
            let found = verdict(&happened.calls, &happened.lagging);
            let is_violation = matches!(found, Verdict::Violation(_));
            prop_assert!(is_violation, "{:?}: {:?}", fault, found);
        }
    }
}

/// What goes wrong in the middle of a history. After it the counter rests a while, so that nothing else
/// can explain what clients then see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// A read returns what was overwritten before it began.
    StaleRead,
    /// An answered write has no effect.
    LostWrite,
    /// An operation has its effect twice.
    DoubledAdd,
    /// A comparison succeeds with what was never there.
    ImpossibleCas,
    /// A lagging copy shows an earlier state than before.
    CopyGoesBack,
    /// A lagging copy shows what is written only later.
    CopyAhead,
}

/// A counter, the order in which everything happened to it, and the history that clients saw.
struct Happened {
    state: Option<u64>,
    /// All states so far.
    states: Vec<Option<u64>>,
    now: u64,
    next_value: u64,
    calls: Vec<CounterCall>,
    lagging: Vec<CounterRead>,
    /// How far each of two copies is.
    copies: [usize; 2],
}

impl Happened {
    fn draw(rng: &mut Rng, fault: Fault) -> Self {
        let mut happened = Self {
            state: None,
            states: vec![None],
            now: 100,
            next_value: 0,
            calls: Vec::new(),
            lagging: Vec::new(),
            copies: [0; 2],
        };
        let length = rng.between(3, 60);
        happened.go_on(rng, length);
        happened.goes_wrong(rng, fault);
        happened.go_on(rng, length);
        happened
    }

    /// Operations with intervals of random length around the moments of their effects; some lose their
    /// answers, and some of those their effects.
    fn go_on(&mut self, rng: &mut Rng, length: u64) {
        for _ in 0..length {
            self.now += rng.between(1, 10);
            let input = self.input(rng);
            let (before, after) = (rng.below(40), rng.below(40));
            if rng.percent(12) {
                // It had its effect, or will have it later, or never: here the former and the last.
                if rng.percent(50) {
                    self.happen(input);
                }
                self.calls
                    .push(call(input, None, self.now.saturating_sub(before), 0));
            } else {
                let output = self.happen(input);
                let (invoked, returned) = (self.now.saturating_sub(before), self.now + after);
                self.calls
                    .push(call(input, Some(output), invoked, returned));
            }
            if rng.percent(20) {
                self.look_at_a_copy(rng);
            }
        }
        // Until everybody has returned.
        self.now += 100;
    }

    fn input(&mut self, rng: &mut Rng) -> Input {
        // Values so far apart that no sum of additions reaches from one to the next.
        self.next_value += 1_000_000;
        match rng.below(10) {
            0..4 => Input::Get,
            4..6 => Input::Put(self.next_value),
            6..8 => Input::Add(rng.between(1, 3)),
            _ => {
                let expected = if rng.percent(70) { self.state } else { None };
                Input::Cas(expected, self.next_value)
            }
        }
    }

    fn happen(&mut self, input: Input) -> Output {
        let (after, output) = apply(self.state, input);
        self.state = after;
        self.states.push(after);
        output
    }

    fn look_at_a_copy(&mut self, rng: &mut Rng) {
        let copy = rng.below(2);
        let seen = &mut self.copies[usize::try_from(copy).expect("small")];
        let newest = self.states.len() - 1;
        *seen += usize::try_from(rng.below((newest - *seen) as u64 + 1)).expect("small");
        let value = self.states[*seen];
        self.lagging.push(read(copy, value, self.now));
    }

    /// Something at rest: after everything before it, and before everything after it.
    fn at_rest(&mut self, input: Input) -> Output {
        let output = self.happen(input);
        self.shown(input, output);
        output
    }

    fn shown(&mut self, input: Input, output: Output) {
        self.now += 10;
        self.calls
            .push(call(input, Some(output), self.now - 5, self.now));
        self.now += 10;
    }

    fn goes_wrong(&mut self, rng: &mut Rng, fault: Fault) {
        self.next_value += 2_000_000;
        let (first, second) = (self.next_value - 1_000_000, self.next_value);
        match fault {
            Fault::None => {}
            Fault::StaleRead => {
                self.at_rest(Input::Put(first));
                self.at_rest(Input::Put(second));
                self.shown(Input::Get, Output::Value(Some(first)));
                self.at_rest(Input::Get);
            }
            Fault::LostWrite => {
                self.at_rest(Input::Put(first));
                self.shown(Input::Put(second), Output::Done);
                // Nobody else adds so much.
                self.at_rest(Input::Add(500));
            }
            Fault::DoubledAdd => {
                self.at_rest(Input::Put(first));
                self.at_rest(Input::Add(500));
                self.happen(Input::Add(500));
                self.at_rest(Input::Get);
            }
            Fault::ImpossibleCas => {
                self.at_rest(Input::Put(first));
                let cas = Input::Cas(Some(first + 500), second);
                self.shown(cas, Output::Swapped(true));
            }
            Fault::CopyGoesBack => {
                self.at_rest(Input::Put(first));
                self.at_rest(Input::Put(second));
                let reader = 2 + rng.below(2);
                self.lagging.push(read(reader, Some(second), self.now));
                self.lagging.push(read(reader, Some(first), self.now));
                self.copies = [self.states.len() - 1; 2];
            }
            Fault::CopyAhead => {
                self.lagging.push(read(2, Some(first), self.now));
                self.now += 10;
                self.at_rest(Input::Put(first));
            }
        }
    }
}

/// Additions that nobody heard of again, then writes each followed by a read; some of the reads see 2
/// more than was written.
fn additions_come_late(additions: u64, reads: u64, seen: u64) -> Vec<CounterCall> {
    let mut calls: Vec<CounterCall> = (0..additions)
        .map(|n| call(Input::Add(2), None, n, 0))
        .collect();
    for n in 0..reads {
        let at = 1000 + 10 * n;
        calls.push(call(Input::Put(n * 1000), Some(Output::Done), at, at + 3));
        let more = if n < seen { 2 } else { 0 };
        let value = Output::Value(Some(n * 1000 + more));
        calls.push(call(Input::Get, Some(value), at + 5, at + 9));
    }
    calls
}

#[test]
fn unanswered_operations_do_not_multiply() {
    let limits = Limits {
        configurations: 2_000,
        steps: 200_000,
        give_up: None,
    };
    let enough = additions_come_late(40, 400, 40);
    assert_eq!(
        check(&Counter, &enough, &[], &limits),
        Verdict::Linearizable
    );
    // One addition fewer than was seen.
    let too_few = additions_come_late(39, 400, 40);
    let found = check(&Counter, &too_few, &[], &limits);
    assert!(matches!(found, Verdict::Violation(_)), "{found:?}");
}

#[test]
fn limits_end_the_search() {
    // Sixteen concurrent writes, each read, and a read of a value that nobody wrote.
    let mut calls = Vec::new();
    for n in 0..16 {
        calls.push(call(Input::Put(n), Some(Output::Done), 0, 100));
        calls.push(call(Input::Get, Some(Output::Value(Some(n))), 0, 100));
    }
    calls.push(call(Input::Get, Some(Output::Value(None)), 200, 201));
    let with = |configurations, steps, give_up| {
        let limits = Limits {
            configurations,
            steps,
            give_up,
        };
        check(&Counter, &calls, &[], &limits)
    };
    let (many, lots) = (usize::MAX, u64::MAX);
    assert_eq!(
        with(1000, lots, None),
        Verdict::Unknown(Limit::Configurations)
    );
    assert_eq!(with(many, 1000, None), Verdict::Unknown(Limit::Steps));
    assert_eq!(
        with(many, lots, Some(&|| true)),
        Verdict::Unknown(Limit::GivenUp)
    );
}

#[test]
fn where_it_got_stuck_is_told() {
    let calls = [
        call(Input::Put(1), Some(Output::Done), 0, 1),
        call(Input::Put(2), Some(Output::Done), 2, 3),
        call(Input::Get, Some(Output::Value(Some(1))), 4, 5),
    ];
    let stuck = Stuck {
        placed: 2,
        order: vec![Place::Call(0), Place::Call(1)],
        state: Some(2),
        blocked: Place::Call(2),
    };
    assert_eq!(verdict(&calls, &[]), Verdict::Violation(stuck));
    let lagging = [read(0, Some(2), 6), read(0, Some(1), 7)];
    let Verdict::Violation(stuck) = verdict(&calls[..2], &lagging) else {
        panic!("the copy goes back");
    };
    assert_eq!((stuck.placed, stuck.blocked), (3, Place::Lagging(1)));
}

#[test]
fn a_copy_may_lag_but_not_be_ahead() {
    let calls = [
        call(Input::Put(1), Some(Output::Done), 10, 11),
        call(Input::Put(2), Some(Output::Done), 20, 21),
    ];
    let good = [
        read(0, None, 90),
        read(0, Some(1), 91),
        read(1, Some(2), 20),
    ];
    assert_eq!(verdict(&calls, &good), Verdict::Linearizable);
    let ahead = [read(1, Some(2), 19)];
    assert!(matches!(verdict(&calls, &ahead), Verdict::Violation(_)));
    // What nobody heard of again happened if a copy shows it.
    let lost = [
        call(Input::Put(1), None, 10, 0),
        call(Input::Get, Some(Output::Value(None)), 30, 31),
    ];
    assert_eq!(
        verdict(&lost, &[read(0, Some(1), 40)]),
        Verdict::Linearizable
    );
    assert!(matches!(
        verdict(&lost, &[read(0, Some(1), 20)]),
        Verdict::Violation(_)
    ));
}

/// A specification of a read may write out a state that was only implied; the state is still the same.
#[test]
fn a_read_may_write_its_state_in_another_way() {
    struct FromZero;
    impl Specification for FromZero {
        type State = Option<u64>;
        type Input = ();
        type Output = u64;

        fn initial(&self) -> Option<u64> {
            None
        }

        fn step(&self, state: &Option<u64>, (): &(), output: Option<&u64>) -> Option<Option<u64>> {
            let value = state.unwrap_or(0);
            output
                .is_none_or(|output| *output == value)
                .then_some(Some(value))
        }

        fn is_read(&self, (): &(), _: &u64) -> bool {
            true
        }
    }
    let lagging = |output| Lagging {
        reader: 0,
        input: (),
        output,
        at: 5,
    };
    let verdict = |output| check(&FromZero, &[], &[lagging(output)], &Limits::default());
    assert_eq!(verdict(0), Verdict::Linearizable);
    assert!(matches!(verdict(1), Verdict::Violation(_)));
}
