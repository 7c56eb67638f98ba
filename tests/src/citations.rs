//! Pages that map rules to where they are kept cite files, functions and tests: what they cite exists.
//!
//! A page like `docs/ranges.md` is of use only as long as it is true, and code is renamed and removed
//! without anybody thinking of it. What this checks of such a page:
//!
//! * **Citations**: code in backticks that ends with `.rs` or `.txt` is the end of the path of exactly one
//!   file; `file.rs::name` is a function of that file.
//! * **Tables**: each has the [`COLUMNS`]. The first cell of a row begins with the number of a rule and a
//!   dot, or is words. What the last cell cites are tests; if it cites none, it says why with one of the
//!   [`EXCUSES`]. What the third cell cites are checkers of the simulator.
//! * **Numbers**: those of all tables together are 1, 2, 3, ... up to a given one, each once.
//!
//! It cannot see whether a test shows what it is cited for: people have to read it.

use crate::rust_source::Masked;
use crate::tidy::{Finding, SourceFile};

/// The heads of the columns of every table.
pub const COLUMNS: [&str; 4] = ["rule or situation", "kept by", "watched by", "shown by"];
const WATCHED: usize = 2;
const SHOWN: usize = 3;

/// Words of which one stands in the last cell of a row that cites no test.
pub const EXCUSES: [&str; 3] = ["not yet", "does not apply", "in part"];

/// Where checkers of the simulator live.
const CHECKERS: &str = "sim/src/checkers/";

/// All findings about `page`, whose tables number the rules up to `last`; `files` are all of the repository.
#[must_use]
pub fn check(page: &SourceFile, last: usize, files: &[SourceFile]) -> Vec<Finding> {
    let mut checker = Checker {
        page,
        files,
        findings: Vec::new(),
        numbers: Vec::new(),
    };
    checker.run();
    let expected: Vec<usize> = (1..=last).collect();
    if checker.numbers != expected {
        let missing: Vec<_> = expected
            .iter()
            .filter(|number| !checker.numbers.contains(number))
            .collect();
        let what = format!(
            "the numbers of the rules are not 1 to {last}, each once and in order; missing: {missing:?}"
        );
        checker.find(0, what);
    }
    checker.findings
}

struct Checker<'a> {
    page: &'a SourceFile,
    files: &'a [SourceFile],
    findings: Vec<Finding>,
    numbers: Vec<usize>,
}

/// A file, and maybe a function in it.
#[derive(Debug, PartialEq, Eq)]
struct Citation<'a> {
    path: &'a str,
    function: Option<&'a str>,
}

impl<'a> Citation<'a> {
    /// What a piece of code in backticks cites, if anything.
    fn read(code: &'a str) -> Option<Self> {
        let (path, function) = match code.split_once("::") {
            Some((path, function)) => (path, Some(function)),
            None => (code, None),
        };
        let is_file = path.ends_with(".rs") || path.ends_with(".txt");
        is_file.then_some(Self { path, function })
    }
}

impl<'a> Checker<'a> {
    fn find(&mut self, line: usize, message: String) {
        self.findings.push(Finding {
            path: self.page.path.clone(),
            line,
            message,
        });
    }

    fn run(&mut self) {
        let mut in_table = false;
        let mut is_fenced = false;
        for (at, line) in self.page.text.lines().enumerate() {
            let number = at + 1;
            is_fenced ^= line.starts_with("```");
            if is_fenced {
                continue;
            }
            let Some(cells) = cells(line) else {
                in_table = false;
                self.cited(number, line);
                continue;
            };
            if !in_table {
                in_table = true;
                if cells != COLUMNS {
                    self.find(number, format!("a table whose columns are not {COLUMNS:?}"));
                }
            } else if !cells.iter().all(|cell| is_rule(cell)) {
                self.row(number, &cells);
            }
        }
    }

    fn row(&mut self, line: usize, cells: &[&str]) {
        if cells.len() != COLUMNS.len() {
            let what = format!(
                "a row of {} cells instead of {}",
                cells.len(),
                COLUMNS.len()
            );
            return self.find(line, what);
        }
        let digits = cells[0].split_once('.').map_or("", |(number, _)| number);
        self.numbers.extend(digits.parse::<usize>());
        let mut shown = false;
        for (column, cell) in cells.iter().enumerate() {
            for (citation, file) in self.cited(line, cell) {
                if column == WATCHED && !file.path.starts_with(CHECKERS) {
                    self.find(line, format!("no checker of the simulator: {}", file.path));
                }
                let test = column == SHOWN && file.path.ends_with(".rs");
                let Some(function) = citation.function.filter(|_| test) else {
                    shown |= column == SHOWN;
                    continue;
                };
                shown = true;
                if !is_test(&file.text, function) {
                    self.find(line, format!("{} in {} is no test", function, file.path));
                }
            }
        }
        if !shown && !EXCUSES.iter().any(|excuse| cells[SHOWN].contains(excuse)) {
            let what = format!("a row that cites no test and says none of {EXCUSES:?}");
            self.find(line, what);
        }
    }

    /// What a piece of text cites, with the files; says what is not there.
    fn cited<'t>(&mut self, line: usize, text: &'t str) -> Vec<(Citation<'t>, &'a SourceFile)> {
        let pieces = text.split('`').skip(1).step_by(2);
        let mut all = Vec::new();
        for citation in pieces.filter_map(Citation::read) {
            let fits = |file: &&SourceFile| {
                let rest = file.path.strip_suffix(citation.path);
                rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('/'))
            };
            let found: Vec<&SourceFile> = self.files.iter().filter(fits).collect();
            let [file] = found[..] else {
                let what = format!("{} files end with {}", found.len(), citation.path);
                self.find(line, what);
                continue;
            };
            if let Some(function) = citation.function
                && functions(&file.text, function).is_empty()
            {
                let what = format!("there is no function {function} in {}", file.path);
                self.find(line, what);
                continue;
            }
            all.push((citation, file));
        }
        all
    }
}

/// The cells of a line, if it is one of a table.
fn cells(line: &str) -> Option<Vec<&str>> {
    let inner = line.trim().strip_prefix('|')?.strip_suffix('|')?;
    Some(inner.split('|').map(str::trim).collect())
}

/// The line between the head of a table and its body.
fn is_rule(cell: &str) -> bool {
    !cell.is_empty() && cell.chars().all(|c| matches!(c, '-' | ':'))
}

/// The lines on which functions of a name begin.
fn functions(source: &str, name: &str) -> Vec<usize> {
    let head = format!("fn {name}");
    let begins = |line: &str| {
        let after = line.split_once(&head).map(|(_, after)| after);
        after.is_some_and(|after| after.starts_with(['(', '<']))
    };
    let code = Masked::split(source).code;
    let lines = code.lines().enumerate();
    lines
        .filter(|(_, line)| begins(line))
        .map(|(at, _)| at)
        .collect()
}

/// Whether a function of that name is one that the test harness calls.
fn is_test(source: &str, name: &str) -> bool {
    let code = Masked::split(source).code;
    let lines: Vec<&str> = code.lines().map(str::trim).collect();
    let has_mark = |at: usize| {
        let above = lines[..at].iter().rev();
        // Attributes may take several lines; an item before it ends with one of these.
        let mut attributes = above.take_while(|line| !line.ends_with(['}', ';', '{']));
        attributes.any(|line| line.starts_with("#[test]") || line.starts_with("#[tokio::test"))
    };
    functions(source, name).into_iter().any(has_mark)
}

#[cfg(test)]
mod tests;
