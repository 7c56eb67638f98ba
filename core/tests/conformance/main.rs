//! Runs data files against the real core, byte for byte: etcd's own suites and this project's
//! transcripts, which use the same grammar.
//!
//! etcd's files are looked for in `POLYRAFT_CONFORMANCE_DIR`, else in `../shared/conformance/etcd-raft`
//! beside the checkout. Without them the run fails, unless `POLYRAFT_CONFORMANCE_SKIP=1` says that
//! this is known. With `POLYRAFT_TRANSCRIPTS_REWRITE=1` the project's own transcripts are rewritten
//! with what the core does now; the diff is then to be read.

#![expect(clippy::print_stdout, reason = "a test runner reports what it ran")]

mod commands;
mod confchange;
mod env;
mod quorum;
mod reader;
mod ready;
mod text;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use reader::{Case, parse};

/// What runs the cases of one file, against one environment made for it.
type Suite = fn() -> Box<dyn FnMut(&Case) -> String>;

fn main() -> ExitCode {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    let rewrite = std::env::var_os("POLYRAFT_TRANSCRIPTS_REWRITE").is_some();
    let (own_passed, own_failed) = run_dir(&own, interaction, rewrite);
    println!("transcripts: {own_passed} passed, {own_failed} failed");
    if own_passed + own_failed == 0 {
        println!("no transcripts found in {}", own.display());
        return ExitCode::FAILURE;
    }

    let given = std::env::var_os("POLYRAFT_CONFORMANCE_DIR").map(PathBuf::from);
    let root = given.unwrap_or_else(|| {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/conformance/etcd-raft")
    });
    let suites: [(&str, Suite); 3] = [
        ("raft", interaction),
        ("confchange", confchange::suite),
        ("quorum", quorum::suite),
    ];
    let (mut passed, mut failed) = (0, 0);
    for (folder, suite) in suites {
        let (p, f) = run_dir(&root.join(folder), suite, false);
        if p + f == 0 {
            println!("NO CONFORMANCE FILES in {}", root.join(folder).display());
            println!(
                "set POLYRAFT_CONFORMANCE_DIR to the directory with raft/, confchange/, quorum/"
            );
            if std::env::var_os("POLYRAFT_CONFORMANCE_SKIP").is_none() {
                return ExitCode::FAILURE;
            }
            println!("SKIPPED because POLYRAFT_CONFORMANCE_SKIP is set");
        }
        passed += p;
        failed += f;
    }
    println!("conformance: {passed} passed, {failed} failed");
    if failed + own_failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn interaction() -> Box<dyn FnMut(&Case) -> String> {
    let mut env = env::Env::default();
    Box::new(move |case| commands::run(&mut env, case))
}

/// Runs every `.txt` file below `dir`; returns how many passed and failed.
fn run_dir(dir: &Path, suite: Suite, rewrite: bool) -> (usize, usize) {
    let mut files = Vec::new();
    collect(dir, &mut files);
    files.sort();
    let (mut passed, mut failed) = (0, 0);
    for file in files {
        let text = fs::read_to_string(&file).expect("a data file is readable text");
        let name = file
            .strip_prefix(dir)
            .unwrap_or(&file)
            .display()
            .to_string();
        if rewrite {
            fs::write(&file, rewritten(&text, suite)).expect("a transcript is writable");
        } else if let Err(difference) = run_caught(&text, suite) {
            println!("FAIL {name}\n{difference}");
            failed += 1;
            continue;
        }
        println!("ok   {name}");
        passed += 1;
    }
    (passed, failed)
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "txt") {
            files.push(path);
        }
    }
}

/// A panic fails its file, not the files after it.
fn run_caught(text: &str, suite: Suite) -> Result<(), String> {
    std::panic::catch_unwind(|| run_file(text, suite))
        .unwrap_or_else(|_| Err("  the run panicked, see above".to_owned()))
}

fn run_file(text: &str, suite: Suite) -> Result<(), String> {
    let mut run = suite();
    let cases = parse(text)?;
    if cases.is_empty() {
        return Err("no cases".to_owned());
    }
    for case in cases {
        let actual = actual_output(&mut run, &case);
        if actual != case.expected {
            return Err(difference(&case, &actual));
        }
    }
    Ok(())
}

fn actual_output(run: &mut Box<dyn FnMut(&Case) -> String>, case: &Case) -> String {
    let mut actual = run(case);
    if !actual.is_empty() && !actual.ends_with('\n') {
        actual.push('\n');
    }
    actual
}

fn difference(case: &Case, actual: &str) -> String {
    let mut out = format!("  line {}: {}\n", case.line, case.directive);
    let (expected, actual): (Vec<_>, Vec<_>) =
        (case.expected.lines().collect(), actual.lines().collect());
    for at in 0..expected.len().max(actual.len()) {
        match (expected.get(at), actual.get(at)) {
            (Some(e), Some(a)) if e == a => out.push_str(&format!("    {e}\n")),
            (e, a) => {
                if let Some(e) = e {
                    out.push_str(&format!("  - {e}\n"));
                }
                if let Some(a) = a {
                    out.push_str(&format!("  + {a}\n"));
                }
            }
        }
    }
    out
}

/// The file with its expectations replaced by what comes out now; comments and blank lines stay.
fn rewritten(text: &str, suite: Suite) -> String {
    let mut run = suite();
    let cases = parse(text).expect("a transcript can be parsed");
    let lines: Vec<&str> = text.lines().collect();
    let (mut out, mut at) = (String::new(), 0);
    for case in cases {
        while at < case.output_line {
            out.push_str(lines[at]);
            out.push('\n');
            at += 1;
        }
        out.push_str(&actual_output(&mut run, &case));
        at += case.expected.lines().count();
    }
    for line in &lines[at..] {
        out.push_str(line);
        out.push('\n');
    }
    out
}
