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
#[derive(Debug, Clone)]
pub struct Connection {
    endpoints: String,
}

impl Cluster {
    /// A connection that may use every store.
    pub fn connect(&self) -> Connection {
        Connection {
            endpoints: self.endpoints().join(","),
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
    fn run(&self, arguments: &[&str]) -> Finished {
        let mut command = Command::new(binary());
        command
            .args(arguments)
            .args(["--endpoints", &self.endpoints, "-o", "json"]);
        run(&mut command, CALL_BOUND)
    }
}

impl KeyValue for Connection {
    fn call(&mut self, key: &str, action: &Action) -> Answer {
        let finished = match action {
            Action::Get { .. } => self.run(&["kv", "get", key]),
            Action::Put { value } => self.run(&["kv", "put", key, value]),
            Action::Delete => self.run(&["kv", "delete", key]),
            Action::Cas {
                expected: Some(expected),
                value,
                ..
            } => self.run(&["kv", "cas", key, "--expected", expected, value]),
            Action::Cas {
                expected: None,
                value,
                ..
            } => self.run(&["kv", "cas", key, "--absent", value]),
        };
        let said = match finished.success().and_then(|finished| finished.json()) {
            Ok(said) => said,
            Err(reason) => return Answer::Unknown(reason),
        };
        let value = said["value"].as_str().map(str::to_owned);
        Answer::Done {
            value,
            swapped: said["swapped"] == true,
        }
    }
}
