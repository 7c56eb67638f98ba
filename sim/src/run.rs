//! Running worlds: one guarded against panics, many on all cores, and a failing one made smaller.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Once};

use parking_lot::Mutex;

use crate::checkers::{self, Limits};
use crate::observe::{Checker, Violation};
use crate::plan::{Fault, Plan};
use crate::subject::Subject;
use crate::time::{MILLISECOND, Nanos};
use crate::trace::Trace;
use crate::world::{Outcome, World};

thread_local! {
    /// What the last panic on this thread said, while a world runs on it.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
    static GUARDED: RefCell<bool> = const { RefCell::new(false) };
}

/// Runs the world of a plan, with all checkers. A panic in it is a violation like any other.
#[must_use]
pub fn run(plan: &Plan, subject: &Arc<dyn Subject>, trace: Option<&Trace>) -> Outcome {
    run_with(plan, subject, Vec::new(), trace)
}

/// [`run`] with some more checkers.
#[must_use]
pub fn run_with(
    plan: &Plan,
    subject: &Arc<dyn Subject>,
    more: Vec<Box<dyn Checker>>,
    trace: Option<&Trace>,
) -> Outcome {
    hear_panics();
    let limits = plan.clone();
    let mut all = checkers::all_within(move |store| Limits::of(&limits.host_config(store)));
    all.extend(more);
    all.extend(trace.map(Trace::checker));
    GUARDED.set(true);
    let subject = Arc::clone(subject);
    let progress = RefCell::new(None);
    let result = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(plan.clone(), subject, all, trace.cloned());
        progress.replace(Some(world.progress()));
        world.run()
    }));
    GUARDED.set(false);
    result.unwrap_or_else(|_| {
        let reached = progress.into_inner().unwrap_or_default();
        let elapsed = reached.now.load(Ordering::Relaxed);
        let what = PANIC.take().unwrap_or_else(|| "it said nothing".to_owned());
        let violation = Violation {
            checker: "panic",
            at: elapsed,
            what,
        };
        Outcome {
            events: reached.events.load(Ordering::Relaxed),
            elapsed,
            violation: Some(violation),
            ..Outcome::default()
        }
    })
}

impl Plan {
    /// Runs the world of this plan, with all checkers: see [`run`].
    #[must_use]
    pub fn run(&self, subject: &Arc<dyn Subject>) -> Outcome {
        run(self, subject, None)
    }
}

/// Panics of guarded worlds are not printed but kept.
fn hear_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if GUARDED.with_borrow(|guarded| *guarded) {
                PANIC.set(Some(info.to_string()));
            } else {
                before(info);
            }
        }));
    });
}

/// What many worlds came to.
#[derive(Clone, Debug, Default)]
pub struct Sum {
    /// Worlds.
    pub worlds: u64,
    /// Events in them.
    pub events: u64,
    /// Virtual time in them.
    pub elapsed: Nanos,
    /// Operations of clients that were answered.
    pub answered: u64,
    /// Operations of clients of which nobody knows the outcome.
    pub unknown: u64,
    /// Objects whose history was too hard to check.
    pub undecided: u64,
    /// Plans whose worlds failed, with how.
    pub failures: Vec<(Plan, Violation)>,
}

/// How many worlds are run.
#[derive(Clone, Copy, Debug)]
pub struct Many {
    /// At once.
    pub threads: usize,
    /// Whether new worlds begin after one has failed.
    pub keep_going: bool,
    /// Run each twice, and compare: a difference is a violation of `determinism`.
    pub twice: bool,
}

/// The outcome of a world, or how it differed the second time.
#[must_use]
pub fn run_twice(plan: &Plan, subject: &Arc<dyn Subject>) -> Outcome {
    let (mut one, two) = (run(plan, subject, None), run(plan, subject, None));
    if one != two {
        one.violation = Some(Violation {
            checker: "determinism",
            at: one.elapsed.min(two.elapsed),
            what: format!("one seed gave two worlds: {one:?} and {two:?}"),
        });
    }
    one
}

/// Runs plans until there are no more or `stop` says so.
pub fn run_many(
    plans: impl Iterator<Item = Plan> + Send,
    subject: &Arc<dyn Subject>,
    many: Many,
    stop: impl Fn() -> bool + Sync,
) -> Sum {
    let plans = Mutex::new(plans);
    let sum = Mutex::new(Sum::default());
    let failed = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..many.threads.max(1) {
            scope.spawn(|| {
                while !stop() && (many.keep_going || !failed.load(Ordering::Relaxed)) {
                    let Some(plan) = plans.lock().next() else {
                        return;
                    };
                    let outcome = match many.twice {
                        true => run_twice(&plan, subject),
                        false => run(&plan, subject, None),
                    };
                    let mut sum = sum.lock();
                    sum.worlds += 1;
                    sum.events += outcome.events;
                    sum.elapsed += outcome.elapsed;
                    sum.answered += outcome.answered;
                    sum.unknown += outcome.unknown;
                    sum.undecided += outcome.undecided;
                    if let Some(violation) = outcome.violation {
                        failed.store(true, Ordering::Relaxed);
                        sum.failures.push((plan, violation));
                    }
                }
            });
        }
    });
    sum.into_inner()
}

/// A failing plan made smaller: whatever can be taken away such that the same checker still complains.
/// `say` hears of every step; at most `runs` worlds are run.
#[must_use]
pub fn shrink(
    plan: &Plan,
    found: &Violation,
    subject: &Arc<dyn Subject>,
    runs: u64,
    say: impl Fn(&Plan, &Violation) + Sync,
) -> (Plan, Violation) {
    let left = AtomicU64::new(runs);
    let (mut best, mut violation) = (plan.clone(), found.clone());
    let fails = |plan: &Plan| {
        let spent = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |l| l.checked_sub(1));
        spent.ok()?;
        let outcome = run(plan, subject, None);
        outcome.violation.filter(|v| v.checker == found.checker)
    };
    loop {
        let mut smaller = None;
        for candidate in candidates(&best, &violation) {
            if let Some(still) = fails(&candidate) {
                say(&candidate, &still);
                smaller = Some((candidate, still));
                break;
            }
        }
        match smaller {
            Some(next) => (best, violation) = next,
            None => return (best, violation),
        }
    }
}

/// Plans a little smaller, the boldest first.
fn candidates(plan: &Plan, violation: &Violation) -> Vec<Plan> {
    let mut all = Vec::new();
    let mut with = |change: &dyn Fn(&mut Plan)| {
        let mut next = plan.clone();
        change(&mut next);
        // As the command prints it.
        next.chaos = next.chaos.next_multiple_of(MILLISECOND);
        if next != *plan {
            all.push(next);
        }
    };
    // Up to there the world is the same, unless it failed after the faults.
    let cut = violation.at + MILLISECOND;
    if cut < plan.chaos {
        with(&|next| next.chaos = cut);
    }
    let faults: Vec<Fault> = plan.faults.iter().copied().collect();
    for half in faults.chunks(faults.len().div_ceil(2).max(1)) {
        with(&|next| next.faults.retain(|fault| !half.contains(fault)));
    }
    with(&|next| next.groups = (plan.groups / 2).max(1));
    for fault in &faults {
        with(&|next| {
            next.faults.remove(fault);
        });
    }
    with(&|next| next.chaos = plan.chaos / 2);
    with(&|next| next.groups = (plan.groups - 1).max(1));
    with(&|next| next.clients = (plan.clients / 2).max(1));
    with(&|next| next.clients = (plan.clients - 1).max(1));
    if plan.stores > plan.members {
        with(&|next| next.stores = plan.stores - 1);
    }
    with(&|next| next.chaos = plan.chaos - plan.chaos / 10);
    with(&|next| next.pace = plan.pace.saturating_mul(2));
    all
}
