//! Whether a history of reads and writes could have come from one single copy of the data.
//!
//! The search is that of [`polyraft_sim::linearizability`]; here are what it is asked about a register
//! that can be read, written, deleted and compared and swapped, the file format, and the report. The keys
//! of a key-value store are independent objects, so each key is searched on its own.
//!
//! How an operation counts follows from its [`Outcome`]:
//!
//! * `Ok`: takes effect at one moment between invocation and return, with the result given.
//! * `Fail`: certainly had no effect; it is left out.
//! * `Unknown`: takes effect at one moment after its invocation, however late, or never.
//!
//! Keys are absent at the beginning. The search may be exponential in the number of concurrent
//! operations, so it is [limited](Limits) and then says that it does not know.

mod history;
mod register;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

pub use history::{HistoryError, parse, read_file};

/// What a client asked for, with what it learned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Read; the value seen, `None` for an absent key.
    Get {
        /// Meaningful only with [`Outcome::Ok`].
        result: Option<String>,
    },
    /// Unconditional write.
    Put {
        /// The value written.
        value: String,
    },
    /// Makes the key absent.
    Delete,
    /// Write of `value` if the key has the value `expected` (`None`: is absent).
    Cas {
        /// The value that must be there.
        expected: Option<String>,
        /// The value written then.
        value: String,
        /// Whether it was written; meaningful only with [`Outcome::Ok`].
        swapped: bool,
    },
}

/// What the client knows of the effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Took effect before the return.
    Ok,
    /// Certainly did not and will not take effect.
    Fail,
    /// May have taken effect, may do so later, or never.
    Unknown,
}

/// One operation of one client on one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// Who issued it; for people only.
    pub client: u64,
    /// On which key.
    pub key: String,
    /// What was asked and learned.
    pub action: Action,
    /// What is known of its effect.
    pub outcome: Outcome,
    /// When it was issued, in nanoseconds on the clock of the history.
    pub invoke_ns: u64,
    /// When its answer came; meaningful only with [`Outcome::Ok`].
    pub return_ns: u64,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let absent = |value: &Option<String>| value.clone().unwrap_or_else(|| "absent".to_owned());
        write!(f, "client {} ", self.client)?;
        match &self.action {
            Action::Get { result } => write!(f, "get -> {}", absent(result))?,
            Action::Put { value } => write!(f, "put {value}")?,
            Action::Delete => write!(f, "delete")?,
            Action::Cas {
                expected,
                value,
                swapped,
            } => {
                write!(f, "cas {} -> {value}: {swapped}", absent(expected))?;
            }
        }
        match self.outcome {
            Outcome::Ok => write!(f, " [{}, {}] ns", self.invoke_ns, self.return_ns),
            Outcome::Fail => write!(f, " [{}, failed]", self.invoke_ns),
            Outcome::Unknown => write!(f, " [{}, unknown] ns", self.invoke_ns),
        }
    }
}

/// How much a search may take for one key.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Time for one key.
    pub time: Duration,
    /// Configurations remembered for one key; each takes about 100 bytes.
    pub configurations: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            time: Duration::from_secs(60),
            configurations: 5_000_000,
        }
    }
}

/// What the search found for one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// An order exists.
    Linearizable,
    /// No order exists; where the longest attempt got stuck.
    Violation(Stuck),
    /// The limits were reached first.
    Unknown {
        /// Which limit.
        limit: &'static str,
    },
}

/// The longest order that was found before no operation could follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stuck {
    /// The last operations of that order (at most ten), oldest first.
    pub order: Vec<Operation>,
    /// The value of the key after them.
    pub value: Option<String>,
    /// The operation that had to take effect next and could not.
    pub blocked: Operation,
}

/// The verdicts of a whole history.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Number of operations, failed ones among them.
    pub operations: usize,
    /// Number of operations whose outcome is unknown.
    pub unknown_outcomes: usize,
    /// The verdict of each key.
    pub keys: BTreeMap<String, Verdict>,
}

impl Report {
    /// Whether every key was found linearizable: a key that could not be decided is not.
    pub fn is_linearizable(&self) -> bool {
        self.keys
            .values()
            .all(|verdict| *verdict == Verdict::Linearizable)
    }

    /// Whether some key is certainly not linearizable.
    pub fn has_violation(&self) -> bool {
        self.keys
            .values()
            .any(|verdict| matches!(verdict, Verdict::Violation(_)))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |wanted: fn(&Verdict) -> bool| self.keys.values().filter(|v| wanted(v)).count();
        writeln!(
            f,
            "{} operations ({} of unknown outcome) on {} keys: {} linearizable, {} not, {} undecided",
            self.operations,
            self.unknown_outcomes,
            self.keys.len(),
            count(|v| *v == Verdict::Linearizable),
            count(|v| matches!(v, Verdict::Violation(_))),
            count(|v| matches!(v, Verdict::Unknown { .. })),
        )?;
        for (key, verdict) in &self.keys {
            match verdict {
                Verdict::Linearizable => {}
                Verdict::Unknown { limit } => writeln!(f, "key {key}: undecided, {limit} reached")?,
                Verdict::Violation(stuck) => {
                    writeln!(
                        f,
                        "key {key}: NOT linearizable. The longest order ends with"
                    )?;
                    for operation in &stuck.order {
                        writeln!(f, "    {operation}")?;
                    }
                    let value = stuck.value.as_deref().unwrap_or("absent");
                    writeln!(
                        f,
                        "  the value is then {value}, and this has no place any more:"
                    )?;
                    writeln!(f, "    {}", stuck.blocked)?;
                }
            }
        }
        Ok(())
    }
}

/// Checks every key of `history`.
pub fn check(history: &[Operation], limits: &Limits) -> Report {
    let mut by_key: BTreeMap<&str, Vec<&Operation>> = BTreeMap::new();
    for operation in history {
        by_key.entry(&operation.key).or_default().push(operation);
    }
    Report {
        operations: history.len(),
        unknown_outcomes: history
            .iter()
            .filter(|o| o.outcome == Outcome::Unknown)
            .count(),
        keys: by_key
            .into_iter()
            .map(|(key, operations)| (key.to_owned(), register::check_key(&operations, limits)))
            .collect(),
    }
}

#[cfg(test)]
mod tests;
