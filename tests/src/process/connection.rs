//! A key-value connection for [`crate::workload`] that calls the command line for each operation.
//!
//! What is not acknowledged counts as unknown unless the error says that nothing was done, so a vague error
//! makes the check weaker but never wrong.

use std::process::Command;
use std::time::Duration;

use super::{Cluster, Finished, binary, run};
use crate::linearizability::Action;
use crate::workload::{Answer, KeyValue};

/// Bound for one operation, far above the client's own deadline.
const CALL_BOUND: Duration = Duration::from_secs(60);

/// See the module.
///
/// The keys of workloads begin with two hexadecimal digits, which become the first byte of the real
/// key: so they lie in all ranges, however the key space is cut.
#[derive(Debug, Clone)]
pub struct Connection {
    endpoints: String,
    stale: bool,
    patient: bool,
}

impl Cluster {
    /// A connection that may use every store.
    pub fn connect(&self) -> Connection {
        Connection {
            endpoints: self.endpoints().join(","),
            stale: false,
            patient: false,
        }
    }

    /// A connection that reads what the store of this number holds itself.
    pub fn connect_stale(&mut self, store: u64) -> Connection {
        Connection {
            endpoints: self.store(store).address().to_owned(),
            stale: true,
            patient: false,
        }
    }

    /// So many connections, for a workload.
    pub fn clients(&self, count: usize) -> Vec<Box<dyn KeyValue>> {
        (0..count)
            .map(|_| Box::new(self.connect()) as Box<dyn KeyValue>)
            .collect()
    }
}

impl Connection {
    /// The same, with time for more than one election per operation.
    #[must_use]
    pub fn patient(self) -> Self {
        Self {
            patient: true,
            ..self
        }
    }

    fn run(&self, verb: &str, key: &str, more: &[&str]) -> Finished {
        let (first, rest) = key.split_at(2);
        let key = format!("{first}{}", hex(rest));
        let mut command = Command::new(binary());
        command.args(["kv", verb, &key]).args(more);
        command.args(["--hex", "--endpoints", &self.endpoints, "-o", "json"]);
        if self.patient {
            command.args(["--timeout", "50s"]);
        }
        run(&mut command, CALL_BOUND)
    }
}

impl KeyValue for Connection {
    fn call(&mut self, key: &str, action: &Action) -> Answer {
        let finished = match action {
            Action::Get { .. } if self.stale => self.run("get", key, &["--stale"]),
            Action::Get { .. } => self.run("get", key, &[]),
            Action::Put { value } => self.run("put", key, &[&hex(value)]),
            Action::Delete => self.run("delete", key, &[]),
            Action::Cas {
                expected, value, ..
            } => match expected {
                Some(expected) => {
                    self.run("cas", key, &["--expected", &hex(expected), &hex(value)])
                }
                None => self.run("cas", key, &["--absent", &hex(value)]),
            },
        };
        let said = match finished.success().and_then(|finished| finished.json()) {
            Ok(said) => said,
            Err(reason) => return Answer::Unknown(reason),
        };
        let value = match said["value_hex"].as_str().map(from_hex) {
            Some(Err(problem)) => return Answer::Unknown(problem),
            Some(Ok(value)) => Some(value),
            None => None,
        };
        Answer::Done {
            value,
            swapped: said["swapped"] == true,
        }
    }
}

fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(hex: &str) -> Result<String, String> {
    let pairs = hex.as_bytes().chunks(2);
    let bytes: Option<Vec<u8>> = pairs
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect();
    let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    text.ok_or_else(|| format!("the value is no text of ours: {hex}"))
}
