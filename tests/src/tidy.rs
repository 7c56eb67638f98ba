//! The repository checks itself: rules about files that neither rustfmt nor clippy knows.
//!
//! A rule is a function of one file's path and text and gives [`Finding`]s; nothing here prints or
//! fails. The rules:
//!
//! * **Rust**: a file begins with `//!`; at most [`PRODUCTION_LINES_MAX`] lines outside tests, or an entry
//!   with a reason in the list of allowances, which only shrinks; no unfinished code; a note about later work
//!   names its issue as `(#12)`; at most [`COLUMNS_MAX`] columns; a crate root says what its crate promises.
//! * **Layers**: only `store` names RocksDB; only `transport` and `server` (and tests, benches) name tonic;
//!   `core` names no `std`; `multiraft` reads the clock, spawns and locks only behind its doors.
//! * **Markdown**: exactly one title; every relative link leads to a file and a heading that exist.
//! * **All text**: no control characters and no characters that change the direction of text.

mod markdown;
mod rust;

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub use rust::{Allowance, COLUMNS_MAX, PRODUCTION_LINES_MAX};

/// A text file of the repository.
#[derive(Debug, Clone)]
pub struct SourceFile {
    /// Path from the root of the repository, with `/`.
    pub path: String,
    /// Its whole content.
    pub text: String,
}

/// One broken rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Path from the root of the repository.
    pub path: String,
    /// Line number from 1; 0 if the finding is about the whole file.
    pub line: usize,
    /// What is wrong, and what to do.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.message)
    }
}

/// Directories that hold no source: build output, caches, virtual environments.
const SKIPPED_DIRECTORIES: [&str; 6] = [
    "target",
    ".git",
    ".venv",
    "__pycache__",
    "node_modules",
    ".cache",
];

/// Endings of the files that are read as text.
const TEXT_ENDINGS: [&str; 11] = [
    "rs", "md", "toml", "proto", "py", "sh", "txt", "yml", "yaml", "json", "lock",
];

/// Every text file below `root`, in the order of their paths.
///
/// # Errors
///
/// A directory or file that cannot be read, or a text file that is not UTF-8.
pub fn read_repository(root: &Path) -> io::Result<Vec<SourceFile>> {
    let mut files = Vec::new();
    let mut pending = vec![root.to_path_buf()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let kind = entry.file_type()?;
            if kind.is_dir() && !SKIPPED_DIRECTORIES.iter().any(|skip| name == *skip) {
                pending.push(entry.path());
            } else if kind.is_file() && is_text(&entry.path()) {
                files.push(read_text(root, entry.path())?);
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

fn is_text(path: &Path) -> bool {
    match path.extension() {
        Some(ending) => TEXT_ENDINGS.iter().any(|text| ending == *text),
        None => {
            path.parent()
                .is_some_and(|folder| folder.ends_with("scripts"))
                || path.ends_with("Makefile")
        }
    }
}

fn read_text(root: &Path, path: PathBuf) -> io::Result<SourceFile> {
    let text = fs::read_to_string(&path)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
    let relative = path.strip_prefix(root).unwrap_or(&path);
    Ok(SourceFile {
        path: relative.to_string_lossy().replace('\\', "/"),
        text,
    })
}

/// All findings about `files`, with the files that may be longer than the limit in `allowances`.
pub fn check(files: &[SourceFile], allowances: &[Allowance]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files {
        characters(file, &mut findings);
        if file.path.ends_with(".rs") {
            rust::check(file, allowances, &mut findings);
        } else if file.path.ends_with(".md") {
            markdown::check(file, files, &mut findings);
        }
    }
    rust::stale_allowances(files, allowances, &mut findings);
    findings
}

impl SourceFile {
    fn finding(&self, line: usize, message: impl Into<String>) -> Finding {
        Finding {
            path: self.path.clone(),
            line,
            message: message.into(),
        }
    }
}

/// Characters that a reader does not see but a compiler or terminal obeys ("Trojan Source", CVE-2021-42574).
fn characters(file: &SourceFile, findings: &mut Vec<Finding>) {
    for (number, line) in file.text.split('\n').enumerate() {
        if let Some(c) = line.chars().find(|c| is_hidden(*c)) {
            let message = format!(
                "hidden character U+{:04X}; write an escape instead",
                u32::from(c)
            );
            findings.push(file.finding(number + 1, message));
        }
    }
}

fn is_hidden(c: char) -> bool {
    let control = c.is_control() && c != '\t';
    let direction = matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}');
    control || direction
}

#[cfg(test)]
mod tests;
