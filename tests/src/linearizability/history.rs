//! Reads the history format of `polyraft load --history`: one JSON object per line.
//!
//! Fields: `client`, `op` (`get`, `put`, `delete`, `cas`), `key`, `value`, `expected`, `result`,
//! `outcome` (`ok`, `fail`, `unknown`), `invoke_ns`, `return_ns`. A line that does not have the
//! fields of its `op` is an error: a checker that guesses finds nothing.

use std::fmt;
use std::io;
use std::path::Path;

use serde_json::Value;

use super::{Action, Operation, Outcome};

/// A history that cannot be read.
#[derive(Debug)]
pub enum HistoryError {
    /// The file cannot be read.
    File(io::Error),
    /// A line, numbered from 1, is not an operation.
    Line(usize, String),
}

impl fmt::Display for HistoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(error) => write!(f, "cannot read the history: {error}"),
            Self::Line(number, problem) => write!(f, "line {number}: {problem}"),
        }
    }
}

impl std::error::Error for HistoryError {}

/// Reads the history in the file at `path`.
///
/// # Errors
///
/// The file cannot be read, or a line is not an operation.
pub fn read_file(path: &Path) -> Result<Vec<Operation>, HistoryError> {
    parse(&std::fs::read_to_string(path).map_err(HistoryError::File)?)
}

/// Reads a history; empty lines are skipped.
///
/// # Errors
///
/// The first line that is not an operation.
pub fn parse(text: &str) -> Result<Vec<Operation>, HistoryError> {
    let mut history = Vec::new();
    for (number, line) in text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
    {
        history.push(operation(line).map_err(|problem| HistoryError::Line(number + 1, problem))?);
    }
    Ok(history)
}

fn operation(line: &str) -> Result<Operation, String> {
    let line: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
    let outcome = match text(&line, "outcome")?.as_str() {
        "ok" => Outcome::Ok,
        "fail" => Outcome::Fail,
        "unknown" => Outcome::Unknown,
        other => return Err(format!("unknown outcome {other:?}")),
    };
    let invoke_ns = number(&line, "invoke_ns")?;
    let return_ns = if outcome == Outcome::Ok {
        number(&line, "return_ns")?
    } else {
        invoke_ns
    };
    if return_ns < invoke_ns {
        return Err(format!(
            "returns at {return_ns} before it is invoked at {invoke_ns}"
        ));
    }
    Ok(Operation {
        client: number(&line, "client")?,
        key: text(&line, "key")?,
        action: action(&line, outcome)?,
        outcome,
        invoke_ns,
        return_ns,
    })
}

fn action(line: &Value, outcome: Outcome) -> Result<Action, String> {
    let known = outcome == Outcome::Ok;
    Ok(match text(line, "op")?.as_str() {
        "get" => Action::Get {
            result: if known {
                optional(line, "result")?
            } else {
                None
            },
        },
        "put" => Action::Put {
            value: text(line, "value")?,
        },
        "delete" => Action::Delete,
        "cas" => Action::Cas {
            expected: optional(line, "expected")?,
            value: text(line, "value")?,
            swapped: known && truth(line, "result")?,
        },
        other => return Err(format!("unknown op {other:?}")),
    })
}

fn text(line: &Value, field: &str) -> Result<String, String> {
    line[field]
        .as_str()
        .map(str::to_owned)
        .ok_or_else(|| format!("no text in `{field}`"))
}

/// A text or `null`; the field must be there, so that a forgotten one is not read as "absent".
fn optional(line: &Value, field: &str) -> Result<Option<String>, String> {
    match line.get(field) {
        Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        _ => Err(format!("neither text nor null in `{field}`")),
    }
}

fn number(line: &Value, field: &str) -> Result<u64, String> {
    line[field]
        .as_u64()
        .ok_or_else(|| format!("no whole number in `{field}`"))
}

fn truth(line: &Value, field: &str) -> Result<bool, String> {
    match line[field].as_str() {
        Some("true") => Ok(true),
        Some("false") => Ok(false),
        _ => Err(format!("neither \"true\" nor \"false\" in `{field}`")),
    }
}
