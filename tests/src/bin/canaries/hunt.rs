//! The hunt itself: a parent that gives each bug a child, and the child that tries one bug.
//!
//! A child prints a line for each thing that happens, words separated by tabs: `begins SEED`,
//! `caught SEED CHECKER SECONDS WHAT`, `either SEED CHECKER` for a world that fails without the bug, too.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::Parser;
use polyraft_core::canary::{self, Canary};
use polyraft_sim::kv::Kv;
use polyraft_sim::observe::Violation;
use polyraft_sim::plan::Plan;
use polyraft_sim::run::run;
use polyraft_sim::subject::Subject;

use crate::table::{self, Fate};

/// Plants known bugs in simulated hosts, one at a time, and says which checker caught each, and how soon.
#[derive(Clone, Debug, Parser)]
#[command(name = "canaries")]
struct Args {
    /// Only these bugs; by default all.
    bugs: Vec<String>,
    /// The first seed.
    #[arg(long, default_value_t = 1, value_name = "SEED")]
    first: u64,
    /// Worlds in which a bug must be caught.
    #[arg(long, default_value_t = 1000, value_name = "N")]
    seeds: u64,
    /// Bugs at once; by default one per core.
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    /// A world that takes longer on the clock never ends: it is given up, and the next one tried.
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    patience: u64,
    /// Put what came out into the table of this document.
    #[arg(long, value_name = "FILE")]
    table: Option<PathBuf>,
    /// List the bugs and do nothing.
    #[arg(long)]
    list: bool,
    /// Try one bug in this process.
    #[arg(long, hide = true)]
    child: bool,
}

pub(crate) fn main() -> ExitCode {
    let args = Args::parse();
    match hunt(&args) {
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

/// Whether all were caught.
fn hunt(args: &Args) -> Result<bool, String> {
    let known = |name: &String| Canary::named(name).ok_or_else(|| format!("no bug {name:?}"));
    let mut bugs: Vec<Canary> = args.bugs.iter().map(known).collect::<Result<_, _>>()?;
    if bugs.is_empty() {
        bugs = Canary::ALL.to_vec();
    }
    if args.list {
        for bug in bugs {
            say(&format!("{:<30} {}", bug.name(), bug.what()));
        }
        return Ok(true);
    }
    if args.child {
        let [bug] = bugs[..] else {
            return Err("a child tries one bug".to_owned());
        };
        return Ok(attempt(bug, args.first, args.seeds));
    }
    let fates = all(args, bugs)?;
    let missed = fates
        .values()
        .filter(|fate| matches!(fate, Fate::Missed { .. }));
    let missed = missed.count();
    say(&format!(
        "{} of {} caught",
        fates.len() - missed,
        fates.len()
    ));
    if let Some(path) = &args.table {
        table::update(path, &fates)?;
    }
    Ok(missed == 0)
}

/// Every bug in a child of its own, several at once.
fn all(args: &Args, bugs: Vec<Canary>) -> Result<BTreeMap<Canary, Fate>, String> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let waiting = Mutex::new(bugs.into_iter());
    let fates = Mutex::new(Ok(BTreeMap::new()));
    std::thread::scope(|scope| {
        for _ in 0..args.jobs.unwrap_or(cores).max(1) {
            scope.spawn(|| {
                loop {
                    let Some(bug) = next(&waiting) else { return };
                    let result = pursue(args, bug);
                    let mut fates = fates.lock().expect("nobody panics with it");
                    match (&mut *fates, result) {
                        (Ok(fates), Ok(fate)) => drop(fates.insert(bug, fate)),
                        (Ok(_), Err(problem)) => *fates = Err(problem),
                        (Err(_), _) => return,
                    }
                }
            });
        }
    });
    fates.into_inner().expect("nobody panics with it")
}

fn next(waiting: &Mutex<std::vec::IntoIter<Canary>>) -> Option<Canary> {
    waiting.lock().expect("nobody panics with it").next()
}

/// One bug, in as many children as it takes: another one after each world that does not come back.
fn pursue(args: &Args, bug: Canary) -> Result<Fate, String> {
    let end = args.first.saturating_add(args.seeds);
    let mut seed = args.first;
    while seed < end {
        let mut child = spawn(bug, seed, end - seed)?;
        let lines = lines_of(&mut child);
        let told = listen(args, bug, &lines, &mut seed);
        // Gone already, or stuck.
        drop(child.kill());
        child.wait().map_err(|error| error.to_string())?;
        if let Some(fate) = told? {
            say(&table::row(bug, &fate));
            return Ok(fate);
        }
    }
    let fate = Fate::Missed { seeds: args.seeds };
    say(&table::row(bug, &fate));
    Ok(fate)
}

/// What a child says, until it is over or nothing comes any more; `seed` is where to go on then.
fn listen(
    args: &Args,
    bug: Canary,
    lines: &Receiver<String>,
    seed: &mut u64,
) -> Result<Option<Fate>, String> {
    let patience = Duration::from_secs(args.patience);
    loop {
        let Ok(line) = lines.recv_timeout(patience) else {
            say(&format!("{bug}: the world of seed {seed} does not end"));
            *seed += 1;
            return Ok(None);
        };
        let words: Vec<&str> = line.splitn(5, '\t').collect();
        let strange = || format!("{bug}: the child said {line:?}");
        let number = |word: &str| word.parse::<u64>().map_err(|_| strange());
        match words[..] {
            ["begins", at] => *seed = number(at)?,
            ["either", at, checker] => {
                say(&format!(
                    "{bug}: seed {at} fails without it, too: {checker}"
                ));
            }
            ["caught", at, checker, seconds, what] => {
                let at = number(at)?;
                say(&format!(
                    "{bug}: seed {at}, {checker} after {seconds} virtual s: {what}"
                ));
                let seeds = at - args.first + 1;
                let checker = checker.to_owned();
                return Ok(Some(Fate::Caught {
                    checker,
                    seeds,
                    seed: at,
                }));
            }
            ["over"] => {
                *seed = u64::MAX;
                return Ok(None);
            }
            _ => return Err(strange()),
        }
    }
}

fn spawn(bug: Canary, first: u64, seeds: u64) -> Result<Child, String> {
    let this = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new(this);
    command.args(["--child", bug.name()]);
    command.args(["--first", &first.to_string(), "--seeds", &seeds.to_string()]);
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped());
    command.spawn().map_err(|error| error.to_string())
}

fn lines_of(child: &mut Child) -> Receiver<String> {
    let (send, receive) = channel();
    if let Some(output) = child.stdout.take() {
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
    }
    receive
}

/// Tries one bug, world by world. Whether it was caught.
fn attempt(bug: Canary, first: u64, seeds: u64) -> bool {
    let subject: Arc<dyn Subject> = Arc::new(Kv);
    for seed in first..first.saturating_add(seeds) {
        say(&format!("begins\t{seed}"));
        let Some(found) = world(seed, Some(bug), &subject) else {
            continue;
        };
        if world(seed, None, &subject).is_some() {
            say(&format!("either\t{seed}\t{}", found.checker));
            continue;
        }
        let what = found.what.replace(['\n', '\t'], " ");
        let seconds = found.at as f64 / 1e9;
        say(&format!(
            "caught\t{seed}\t{}\t{seconds:.3}\t{what}",
            found.checker
        ));
        return true;
    }
    say("over");
    false
}

fn world(seed: u64, bug: Option<Canary>, subject: &Arc<dyn Subject>) -> Option<Violation> {
    canary::set(bug);
    run(&Plan::drawn(seed), subject, None).violation
}
