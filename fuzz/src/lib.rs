//! Arbitrary bytes against a function that must not panic: for the tests of every crate.
//!
//! A target is a function of bytes. [`Fuzz`] feeds it inputs that depend on nothing but the target's
//! name and a seed, so that a rerun repeats them: random ones, and examples of the target's with damage
//! done to them. What fails is made smaller, and the failure says how to repeat it. [`Source`] turns bytes
//! into numbers and choices, for targets that want more structure than bytes have.
//!
//! | variable | meaning |
//! |---|---|
//! | `POLYRAFT_FUZZ_SECONDS` | run each target for so long, from a seed drawn at the start |
//! | `POLYRAFT_FUZZ_SEED` | begin at this seed instead |
//! | `POLYRAFT_FUZZ_INPUT` | run only this input, in hexadecimal |
//!
//! Invariants: without these variables the number of runs and every input are fixed; a run that asks
//! for more memory than the target's limit fails like one that panics, if the test binary has
//! [`Meter`] as its allocator.

mod dice;
mod meter;
mod shrink;
mod source;

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;
use std::time::{Duration, Instant};

pub use dice::Dice;
pub use meter::Meter;
pub use source::Source;

/// One target and how it is run.
#[derive(Clone, Debug)]
pub struct Fuzz {
    name: &'static str,
    runs: u64,
    length_max: usize,
    memory_max: Option<usize>,
    examples: Vec<Vec<u8>>,
}

/// What is to be done, by the environment.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Plan {
    /// So many inputs from a seed on.
    Runs(u64, u64),
    /// Inputs from a seed on, for so long.
    Time(u64, Duration),
    /// This input.
    One(Vec<u8>),
}

impl Fuzz {
    /// A target of that name with 1,000 runs of at most 1 KiB; the name takes part in the seed.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        Self {
            name,
            runs: 1000,
            length_max: 1 << 10,
            memory_max: None,
            examples: Vec::new(),
        }
    }

    /// How many inputs, unless the environment says for how long.
    #[must_use]
    pub fn runs(self, runs: u64) -> Self {
        Self { runs, ..self }
    }

    /// Bytes of the longest random input; damaged examples may be twice as long as they were.
    #[must_use]
    pub fn length_max(self, length_max: usize) -> Self {
        Self { length_max, ..self }
    }

    /// Bytes that the target may hold at once, beyond what its thread held before. Needs [`Meter`].
    #[must_use]
    pub fn memory_max(self, bytes: usize) -> Self {
        Self {
            memory_max: Some(bytes),
            ..self
        }
    }

    /// A valid input. Half of the runs take one of the examples and do damage to it.
    #[must_use]
    pub fn example(mut self, example: impl Into<Vec<u8>>) -> Self {
        self.examples.push(example.into());
        self
    }

    /// Runs the target, and says how often: a target that should have reached something in
    /// [`runs`](Self::runs) of them can look whether it has.
    ///
    /// # Panics
    /// With the smallest input found for which the target panics, and how to repeat that; or with a
    /// variable of the environment that makes no sense.
    pub fn check(&self, target: impl Fn(&[u8])) -> u64 {
        let variable = |name: &str| std::env::var(name).ok();
        let plan = match self.plan(variable) {
            Ok(plan) => plan,
            Err(why) => panic!("{}: {why}", self.name),
        };
        match plan {
            Plan::One(input) => {
                // Not caught, so that it panics with the backtrace of its own place.
                let gauge = meter::Gauge::begin();
                target(&input);
                self.check_appetite(gauge.end()).expect("memory");
                1
            }
            Plan::Runs(seed, runs) => {
                for example in &self.examples {
                    self.judge(&target, "an example", example);
                }
                for seed in (0..runs).map(|run| seed.wrapping_add(run)) {
                    self.run(&target, seed);
                }
                runs
            }
            Plan::Time(first, time) => {
                let (begin, mut runs) = (Instant::now(), 0);
                while begin.elapsed() < time {
                    self.run(&target, first.wrapping_add(runs));
                    runs += 1;
                }
                runs
            }
        }
    }

    fn plan(&self, variable: impl Fn(&str) -> Option<String>) -> Result<Plan, String> {
        let number = |name: &str| {
            let parse = |text: String| text.parse().map_err(|error| format!("{name}: {error}"));
            variable(name).map(parse).transpose()
        };
        if let Some(hex) = variable("POLYRAFT_FUZZ_INPUT") {
            let input = from_hex(&hex).ok_or("POLYRAFT_FUZZ_INPUT is not hexadecimal")?;
            return Ok(Plan::One(input));
        }
        let seed = number("POLYRAFT_FUZZ_SEED")?;
        Ok(match number("POLYRAFT_FUZZ_SECONDS")? {
            Some(seconds) => Plan::Time(seed.unwrap_or_else(draw), Duration::from_secs(seconds)),
            None => Plan::Runs(seed.unwrap_or(0), self.runs),
        })
    }

    fn run(&self, target: &impl Fn(&[u8]), seed: u64) {
        let input = self.input(seed);
        self.judge(target, &format!("POLYRAFT_FUZZ_SEED={seed}"), &input);
    }

    /// The input of a seed.
    fn input(&self, seed: u64) -> Vec<u8> {
        let mut dice = Dice::new(dice::hash(self.name) ^ seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        if !self.examples.is_empty() && dice.one_in(2) {
            let example = &self.examples[dice.below(self.examples.len())];
            return dice.damage(example);
        }
        // Short ones are quick and go wrong early, long ones go deep.
        let limit = self.length_max >> dice.below(6);
        let length = dice.below(limit + 1);
        dice.bytes(length)
    }

    fn judge(&self, target: &impl Fn(&[u8]), origin: &str, input: &[u8]) {
        let Err(first) = self.attempt(target, input) else {
            return;
        };
        let smaller = shrink::shrink(input, |candidate| self.attempt(target, candidate).is_err());
        let why = self.attempt(target, &smaller).err().unwrap_or(first);
        panic!(
            "{name}: {why}\n  found by {origin}, {length} bytes, made smaller to {small}\n  \
             to repeat it: POLYRAFT_FUZZ_INPUT={hex} and this test alone",
            name = self.name,
            length = input.len(),
            small = smaller.len(),
            hex = to_hex(&smaller),
        );
    }

    /// One run; what it panicked with, or how much memory it wanted.
    fn attempt(&self, target: &impl Fn(&[u8]), input: &[u8]) -> Result<(), String> {
        let gauge = meter::Gauge::begin();
        let result = quietly(|| target(input));
        let peak = gauge.end();
        result?;
        self.check_appetite(peak)
    }

    fn check_appetite(&self, peak: usize) -> Result<(), String> {
        match self.memory_max {
            Some(max) if peak > max => Err(format!("{peak} bytes held at once, {max} allowed")),
            _ => Ok(()),
        }
    }
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
    static LAST: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs something; a panic in it prints nothing and becomes its text and place.
fn quietly(run: impl FnOnce()) -> Result<(), String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if QUIET.get() {
                let place = info
                    .location()
                    .map(|at| format!(" at {}:{}", at.file(), at.line()));
                let text = text_of(info.payload()) + &place.unwrap_or_default();
                LAST.set(Some(text));
            } else {
                usual(info);
            }
        }));
    });
    QUIET.set(true);
    let result = panic::catch_unwind(AssertUnwindSafe(run));
    QUIET.set(false);
    result.map_err(|payload| LAST.take().unwrap_or_else(|| text_of(&*payload)))
}

fn text_of(payload: &(dyn Any + Send)) -> String {
    let text = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned());
    let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "a panic without a text".to_owned())
}

/// A seed that nobody has seen before.
fn draw() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    // Small enough to be typed.
    RandomState::new().hash_one(0) >> 24
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| match *pair {
            [high, low] => Some(digit(high)? << 4 | digit(low)?),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests;
