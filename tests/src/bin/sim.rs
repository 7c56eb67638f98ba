//! Simulated worlds from the command line: one seed, many, a corpus, a trace, a smaller failing one.
//!
//! Exit codes: 0 nothing was wrong, 1 a property was violated, 2 the arguments make no sense.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use polyraft_sim::kv::Kv;
use polyraft_sim::observe::Violation;
use polyraft_sim::plan::{Fault, Plan};
use polyraft_sim::run::{Many, Sum, run, run_many, run_twice, shrink};
use polyraft_sim::subject::Subject;
use polyraft_sim::trace::Trace;
use polyraft_sim::{marks, time};

/// Worlds are made of small things that come and go.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Runs whole Polyraft hosts in simulated worlds, under faults, watched by checkers.
///
/// A seed and a commit determine everything that happens in a world. Without further options the
/// world of one seed is run; with --minutes or --count, those of the seeds from it on.
#[derive(Debug, Parser)]
#[command(name = "sim")]
struct Args {
    /// The seed, or the first of many. By default it is derived from the commit, so that a rerun repeats it.
    #[arg(long)]
    seed: Option<u64>,
    /// Print every event, and what the checkers saw of it.
    #[arg(long)]
    trace: bool,
    /// Make a failing world smaller: fewer faults, groups, stores, clients, and less time.
    #[arg(long)]
    shrink: bool,
    /// Run worlds for so long.
    #[arg(long, value_name = "M")]
    minutes: Option<f64>,
    /// Run so many worlds.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Run the plans of a file first: lines of arguments as this command prints them.
    #[arg(long, value_name = "FILE")]
    corpus: Option<PathBuf>,
    /// Run each world twice, and compare.
    #[arg(long)]
    twice: bool,
    /// Go on after a failure.
    #[arg(long)]
    keep_going: bool,
    /// Worlds at once; by default one per core.
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    /// Print which rare states were reached, and how often.
    #[arg(long)]
    marks: bool,
    #[command(flatten)]
    change: Change,
}

/// What is different from the plan of a seed.
#[derive(Clone, Debug, Default, Parser)]
struct Change {
    /// Only these faults, separated by commas; "none" for none.
    #[arg(long, value_delimiter = ',', value_name = "FAULT")]
    faults: Option<Vec<String>>,
    /// These besides those that are drawn, separated by commas.
    #[arg(long, value_delimiter = ',', value_name = "FAULT")]
    also: Vec<String>,
    /// Stores at the beginning.
    #[arg(long)]
    stores: Option<u64>,
    /// Groups at the beginning.
    #[arg(long)]
    groups: Option<u64>,
    /// Members of a group at the beginning.
    #[arg(long)]
    members: Option<u64>,
    /// Clients.
    #[arg(long)]
    clients: Option<u64>,
    /// Time between two operations of a client, in milliseconds.
    #[arg(long, value_name = "MS")]
    think: Option<u64>,
    /// Milliseconds of faults.
    #[arg(long, value_name = "MS")]
    chaos: Option<u64>,
    /// Milliseconds between two strokes of misfortune.
    #[arg(long, value_name = "MS")]
    pace: Option<u64>,
}

/// A line of a corpus.
#[derive(Debug, Parser)]
struct Line {
    #[arg(long)]
    seed: u64,
    #[command(flatten)]
    change: Change,
}

impl Change {
    fn plan(&self, seed: u64) -> Result<Plan, String> {
        let mut plan = Plan::drawn(seed);
        let known = |name: &String| {
            let all = || Fault::ALL.map(Fault::name).join(", ");
            Fault::named(name).ok_or_else(|| format!("no fault {name:?}; there are: {}", all()))
        };
        if let Some(names) = &self.faults {
            let names = names.iter().filter(|name| *name != "none");
            plan.faults = names.map(known).collect::<Result<_, _>>()?;
        }
        let also = self.also.iter().map(known);
        plan.faults.extend(also.collect::<Result<Vec<_>, _>>()?);
        let set = |field: &mut u64, value: Option<u64>, unit: u64| {
            *field = value.map_or(*field, |value| value.saturating_mul(unit));
        };
        set(&mut plan.stores, self.stores, 1);
        set(&mut plan.groups, self.groups, 1);
        set(&mut plan.members, self.members, 1);
        set(&mut plan.clients, self.clients, 1);
        set(&mut plan.think, self.think, time::MILLISECOND);
        set(&mut plan.chaos, self.chaos, time::MILLISECOND);
        set(&mut plan.pace, self.pace, time::MILLISECOND);
        for (value, name) in [
            (plan.stores, "stores"),
            (plan.members, "members"),
            (plan.clients, "clients"),
        ] {
            if value == 0 {
                return Err(format!("--{name} must not be 0"));
            }
        }
        Ok(plan)
    }
}

/// The arguments that make this plan again, also when plans are drawn otherwise some day.
fn arguments(plan: &Plan) -> String {
    let names: Vec<&str> = plan.faults.iter().map(|fault| fault.name()).collect();
    let names = match names.is_empty() {
        true => "none".to_owned(),
        false => names.join(","),
    };
    format!(
        "--seed {} --stores {} --groups {} --members {} --clients {} --think {} --chaos {} --pace {} \
         --faults {names}",
        plan.seed,
        plan.stores,
        plan.groups,
        plan.members,
        plan.clients,
        plan.think.div_ceil(time::MILLISECOND),
        plan.chaos.div_ceil(time::MILLISECOND),
        plan.pace.div_ceil(time::MILLISECOND),
    )
}

fn main() -> ExitCode {
    let args = Args::parse();
    match simulate(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(problem) => {
            say(&format!("error: {problem}"));
            ExitCode::from(2)
        }
    }
}

#[expect(clippy::print_stdout, reason = "this is what the command is for")]
fn say(line: &str) {
    println!("{line}");
}

/// Whether nothing was wrong.
fn simulate(args: &Args) -> Result<bool, String> {
    let subject: Arc<dyn Subject> = Arc::new(Kv);
    let (commit, derived) = commit();
    let first = args.seed.unwrap_or(derived);
    let mut good = true;
    if let Some(corpus) = &args.corpus {
        let plans = read_corpus(corpus)?;
        say(&format!("corpus: {} worlds", plans.len()));
        good &= many(args, plans.into_iter(), &subject, None, &commit);
    }
    if !good && !args.keep_going {
        return Ok(false);
    }
    match (args.minutes, args.count) {
        (None, None) if args.seed.is_some() || args.corpus.is_none() => {
            good &= one(args, &args.change.plan(first)?, &subject, &commit);
        }
        (None, None) => {}
        (minutes, count) => {
            args.change.plan(first)?;
            let last = count.map_or(u64::MAX, |count| first.saturating_add(count));
            say(&format!("seeds from {first} on, commit {commit}"));
            let plans = (first..last).filter_map(|seed| args.change.plan(seed).ok());
            let until = minutes.map(|m| Instant::now() + Duration::from_secs_f64(m * 60.0));
            good &= many(args, plans, &subject, until, &commit);
        }
    }
    if args.marks {
        show_marks();
    }
    Ok(good)
}

fn one(args: &Args, plan: &Plan, subject: &Arc<dyn Subject>, commit: &str) -> bool {
    say(&plan.to_string());
    let trace = args.trace.then(|| Trace::printing(say));
    let outcome = match args.twice {
        true => run_twice(plan, subject),
        false => run(plan, subject, trace.as_ref()),
    };
    say(&format!(
        "{} events in {:.1} virtual seconds; {} operations answered, {} unknown; \
         {} objects undecided; trace {:016x}",
        outcome.events,
        seconds(outcome.elapsed),
        outcome.answered,
        outcome.unknown,
        outcome.undecided,
        outcome.hash,
    ));
    let mut good = true;
    if let Some(violation) = &outcome.violation {
        explain(plan, violation, subject, commit);
        if args.shrink {
            make_smaller(plan, violation, subject, commit);
        }
        good = false;
    }
    good
}

fn many(
    args: &Args,
    plans: impl Iterator<Item = Plan> + Send,
    subject: &Arc<dyn Subject>,
    until: Option<Instant>,
    commit: &str,
) -> bool {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let jobs = args.jobs.unwrap_or(cores);
    let began = Instant::now();
    let over = || until.is_some_and(|until| Instant::now() >= until);
    let mut good = true;
    let how = Many {
        threads: jobs,
        keep_going: args.keep_going,
        twice: args.twice,
    };
    let sum = run_many(plans, subject, how, over);
    report(&sum, began.elapsed(), jobs);
    for (plan, violation) in &sum.failures {
        good = false;
        explain(plan, violation, subject, commit);
        if args.shrink {
            make_smaller(plan, violation, subject, commit);
        }
    }
    good
}

fn report(sum: &Sum, took: Duration, jobs: usize) {
    let took = took.as_secs_f64().max(0.001);
    let simulated = seconds(sum.elapsed);
    say(&format!(
        "{} worlds, {} failed; {} events, {:.1} simulated hours, {} operations answered, {} unknown; \
         {} objects undecided",
        sum.worlds,
        sum.failures.len(),
        sum.events,
        simulated / 3600.0,
        sum.answered,
        sum.unknown,
        sum.undecided,
    ));
    say(&format!(
        "{took:.1} s on {jobs} threads: {:.0} events/s and {:.0} simulated seconds per second on each, {:.0} worlds/min",
        sum.events as f64 / took / jobs as f64,
        simulated / took / jobs as f64,
        sum.worlds as f64 * 60.0 / took,
    ));
}

/// What went wrong, and how to see it again.
fn explain(plan: &Plan, violation: &Violation, subject: &Arc<dyn Subject>, commit: &str) {
    let trace = Trace::last(60);
    let _again = run(plan, subject, Some(&trace));
    say("");
    for line in trace.lines() {
        say(line.get(..line.len().min(400)).unwrap_or(&line));
    }
    say("");
    say(&format!(
        "VIOLATION of {} at {:.6} s",
        violation.checker,
        seconds(violation.at)
    ));
    say(&violation.what);
    say(&format!("plan: {plan}"));
    say(&format!("commit: {commit}"));
    say(&format!(
        "again: cargo run --profile sim -p polyraft-tests --bin sim -- {}",
        arguments(plan)
    ));
}

fn make_smaller(plan: &Plan, violation: &Violation, subject: &Arc<dyn Subject>, commit: &str) {
    say("making it smaller ...");
    let step = |plan: &Plan, violation: &Violation| {
        say(&format!(
            "  {} ({:.3} s)",
            arguments(plan),
            seconds(violation.at)
        ));
    };
    let (small, violation) = shrink(plan, violation, subject, 400, step);
    explain(&small, &violation, subject, commit);
}

fn show_marks() {
    let (hit, never): (Vec<_>, Vec<_>) = marks::report().into_iter().partition(|(_, n)| *n > 0);
    for (name, times) in hit {
        say(&format!("{times:>12}  {name}"));
    }
    for (name, _) in never {
        say(&format!("       NEVER  {name}"));
    }
}

fn read_corpus(path: &Path) -> Result<Vec<Plan>, String> {
    let text = std::fs::read_to_string(path);
    let text = text.map_err(|error| format!("{}: {error}", path.display()))?;
    let lines = text.lines().enumerate();
    let plans = lines.filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
    let plans = plans.map(|(number, line)| {
        let words = std::iter::once("sim").chain(line.split_whitespace());
        let words = words.take_while(|word| !word.starts_with('#'));
        let at = |problem: String| format!("{}, line {}: {problem}", path.display(), number + 1);
        let line = Line::try_parse_from(words).map_err(|error| at(error.to_string()))?;
        line.change.plan(line.seed).map_err(at)
    });
    plans.collect()
}

fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

/// The commit's name, with a mark if the tree differs from it, and the seed that is derived from it.
fn commit() -> (String, u64) {
    let git = |args: &[&str]| {
        let output = std::process::Command::new("git").args(args).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    let Some(name) = git(&["rev-parse", "--short=12", "HEAD"]) else {
        return ("unknown".to_owned(), 1);
    };
    let seed = u64::from_str_radix(&name, 16).unwrap_or(1) >> 8;
    let dirty = git(&["status", "--porcelain", "--untracked-files=no"]);
    let mark = if dirty.is_some_and(|text| !text.is_empty()) {
        " (changed)"
    } else {
        ""
    };
    (format!("{name}{mark}"), seed)
}
