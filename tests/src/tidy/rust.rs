//! Rules for Rust files: shape, unfinished work, and what each layer must not name.

use super::{Finding, SourceFile};
use crate::rust_source::{Masked, test_lines};

/// Longest file, in lines outside tests.
pub const PRODUCTION_LINES_MAX: usize = 800;
/// Widest line, in characters. rustfmt holds code to 100; this bounds comments, which it does not wrap.
pub const COLUMNS_MAX: usize = 110;
/// A crate root with fewer lines of documentation cannot be a contract.
const ROOT_DOC_LINES_MIN: usize = 8;

/// Leave for one file to be longer than [`PRODUCTION_LINES_MAX`].
#[derive(Debug, Clone, Copy)]
pub struct Allowance {
    /// Path from the root of the repository.
    pub path: &'static str,
    /// Its limit instead: the length it had when it was last looked at.
    pub lines_max: usize,
    /// Why cutting it would make it worse.
    pub reason: &'static str,
}

/// Checks one Rust file.
pub(super) fn check(file: &SourceFile, allowances: &[Allowance], findings: &mut Vec<Finding>) {
    if is_generated(file) {
        return;
    }
    let masked = Masked::split(&file.text);
    if !file.text.starts_with("//!") {
        findings.push(file.finding(
            1,
            "begin the file with `//!`: what it is for, and its invariants",
        ));
    }
    length(file, &masked, allowances, findings);
    columns(file, &masked, findings);
    unfinished(file, &masked, findings);
    layers(file, &masked, findings);
    crate_root(file, &masked, findings);
}

/// Code that a generator wrote says so in its first lines.
fn is_generated(file: &SourceFile) -> bool {
    file.text
        .lines()
        .take(5)
        .any(|line| line.contains("@generated"))
}

/// Tests beside a crate, in a file of their own, or a crate's examples: no production code.
fn is_test_file(path: &str) -> bool {
    let in_package = path.split_once('/').map_or(path, |(_, rest)| rest);
    in_package.starts_with("tests/") || path.ends_with("/tests.rs") || path.contains("/tests/")
}

fn production_lines(file: &SourceFile, masked: &Masked) -> usize {
    if is_test_file(&file.path) {
        return 0;
    }
    test_lines(&masked.code)
        .iter()
        .filter(|test| !**test)
        .count()
}

fn length(
    file: &SourceFile,
    masked: &Masked,
    allowances: &[Allowance],
    findings: &mut Vec<Finding>,
) {
    let lines = production_lines(file, masked);
    let allowance = allowances.iter().find(|a| a.path == file.path);
    let max = allowance.map_or(PRODUCTION_LINES_MAX, |a| a.lines_max);
    if lines > max {
        let message =
            format!("{lines} lines outside tests, at most {max}: split it by what it does");
        findings.push(file.finding(0, message));
    }
}

/// The list of allowances only shrinks: an entry that is no longer needed, or has no reason, is a finding.
pub(super) fn stale_allowances(
    files: &[SourceFile],
    allowances: &[Allowance],
    findings: &mut Vec<Finding>,
) {
    for allowance in allowances {
        let lines = files
            .iter()
            .find(|f| f.path == allowance.path)
            .map_or(0, |f| production_lines(f, &Masked::split(&f.text)));
        let message = if lines <= PRODUCTION_LINES_MAX {
            format!("has {lines} lines and needs no allowance any more: take it off the list")
        } else if allowance.reason.is_empty() {
            "an allowance without a reason".to_owned()
        } else {
            continue;
        };
        findings.push(Finding {
            path: allowance.path.to_owned(),
            line: 0,
            message,
        });
    }
}

/// Lines with text in quotes are left alone: breaking an expected output or a table of cases makes it worse.
fn columns(file: &SourceFile, masked: &Masked, findings: &mut Vec<Finding>) {
    let lines = file.text.lines().zip(masked.literals.lines());
    for (number, (line, literal)) in lines.enumerate() {
        let width = line.chars().count();
        let unbreakable = !literal.trim().is_empty() || line.contains("://") || is_table_row(line);
        if width > COLUMNS_MAX && !unbreakable {
            findings.push(file.finding(
                number + 1,
                format!("{width} columns, at most {COLUMNS_MAX}"),
            ));
        }
    }
}

/// A row of a Markdown table in a comment, which cannot be broken.
fn is_table_row(line: &str) -> bool {
    let text = line
        .trim_start()
        .trim_start_matches(['/', '!'])
        .trim_start();
    text.starts_with('|') && text.ends_with('|')
}

const UNFINISHED_MACROS: [&str; 3] = ["todo!", "unimplemented!", "dbg!"];
const LATER_MARKS: [&str; 3] = ["TODO", "FIXME", "XXX"];

fn unfinished(file: &SourceFile, masked: &Masked, findings: &mut Vec<Finding>) {
    for (number, line) in masked.code.lines().enumerate() {
        if let Some(name) = UNFINISHED_MACROS.iter().find(|name| has_word(line, name)) {
            findings.push(file.finding(number + 1, format!("`{name}` is unfinished code")));
        }
    }
    for (number, line) in masked.comments.lines().enumerate() {
        for mark in LATER_MARKS {
            if has_word(line, mark) && !names_issue(line, mark) {
                let message =
                    format!("`{mark}` without an issue: do it, or write `{mark}(#12): …`");
                findings.push(file.finding(number + 1, message));
            }
        }
    }
}

/// Whether `mark` is followed by `(#` and a number.
fn names_issue(line: &str, mark: &str) -> bool {
    let rest = line.split_once(mark).map_or("", |(_, rest)| rest);
    rest.strip_prefix("(#")
        .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// Whether `line` has `needle` with no letter, digit or underscore before it (or after, if it ends in one).
fn has_word(line: &str, needle: &str) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(needle).any(|(at, _)| {
        let before = line[..at].chars().next_back().is_some_and(word);
        let after = needle.ends_with(word) && line[at + needle.len()..].starts_with(word);
        !before && !after
    })
}

/// Names that only some folders may use in code (not in comments or strings).
struct Door {
    names: &'static [&'static str],
    /// Folders the rule is about; empty for all.
    within: &'static [&'static str],
    /// Folders and files below them that may use the names.
    allowed: &'static [&'static str],
    /// Whether tests may use the names too.
    tests_may: bool,
    why: &'static str,
}

const DOORS: &[Door] = &[
    Door {
        names: &["rocksdb::", "librocksdb_sys", "use rocksdb"],
        within: &[],
        allowed: &["store/"],
        tests_may: false,
        why: "only `store` names RocksDB",
    },
    Door {
        names: &["tonic::", "tonic_prost", "use tonic"],
        within: &[],
        allowed: &["transport/", "server/", "tests/", "benches/"],
        tests_may: false,
        why: "only `transport` and `server` name tonic",
    },
    Door {
        names: &["tokio::", "use tokio"],
        within: &["core/", "multiraft/", "store/"],
        allowed: &[],
        tests_may: false,
        why: "an async runtime stays in `transport` and `server`",
    },
    Door {
        names: &[
            "Instant::now",
            "SystemTime::now",
            "thread::spawn",
            "thread::Builder",
            "thread::sleep",
        ],
        within: &["multiraft/src/"],
        allowed: &[
            "multiraft/src/env/",
            "multiraft/src/threads/",
            "multiraft/src/threads.rs",
            "multiraft/src/sync.rs",
        ],
        tests_may: true,
        why: "a pass reads no clock and spawns nothing; that is done behind the doors of `env` and `threads`",
    },
    Door {
        names: &[
            "crossbeam_channel",
            "dashmap",
            "parking_lot",
            "std::sync::Condvar",
            "std::sync::Mutex",
            "std::sync::RwLock",
            "std::sync::mpsc",
        ],
        within: &["multiraft/src/"],
        allowed: &[
            "multiraft/src/env/",
            "multiraft/src/sync/",
            "multiraft/src/sync.rs",
        ],
        tests_may: true,
        why: "what threads share and wait with comes from `crate::sync`, where schedules can be chosen",
    },
    Door {
        names: &["std::", "extern crate std", "unsafe", "println!", "HashMap"],
        within: &["core/src/"],
        allowed: &[],
        tests_may: true,
        why: "`core` has no I/O, clock, thread, log output, unordered map or unsafe code",
    },
];

fn layers(file: &SourceFile, masked: &Masked, findings: &mut Vec<Finding>) {
    let below = |folders: &[&str]| folders.iter().any(|folder| file.path.starts_with(folder));
    let test = test_lines(&masked.code);
    for door in DOORS {
        let in_scope = door.within.is_empty() || below(door.within);
        if !in_scope || below(door.allowed) || (door.tests_may && is_test_file(&file.path)) {
            continue;
        }
        for (number, line) in masked.code.lines().enumerate() {
            if door.tests_may && test[number] {
                continue;
            }
            if let Some(name) = door.names.iter().find(|name| has_word(line, name)) {
                findings.push(file.finding(number + 1, format!("`{name}` here: {}", door.why)));
            }
        }
    }
}

/// Crates that promise in their root that they have no unsafe code.
const WITHOUT_UNSAFE: [&str; 2] = ["core/src/lib.rs", "multiraft/src/lib.rs"];

fn crate_root(file: &SourceFile, masked: &Masked, findings: &mut Vec<Finding>) {
    // Nobody depends on the benches, so there is nothing to promise.
    let root = file.path.split('/').count() == 3 && file.path.ends_with("/src/lib.rs");
    if root && !file.path.starts_with("benches/") {
        let docs = file
            .text
            .lines()
            .take_while(|line| line.starts_with("//!"))
            .count();
        if docs < ROOT_DOC_LINES_MIN {
            let message = format!(
                "a crate root is the contract of its crate; {docs} lines of it are too few"
            );
            findings.push(file.finding(1, message));
        }
    }
    if WITHOUT_UNSAFE.contains(&file.path.as_str())
        && !masked.code.contains("#![forbid(unsafe_code)]")
    {
        findings.push(file.finding(1, "this crate root must say `#![forbid(unsafe_code)]`"));
    }
    if file.path == "core/src/lib.rs" && !masked.code.contains("#![no_std]") {
        findings.push(file.finding(1, "`core` must say `#![no_std]`"));
    }
}
