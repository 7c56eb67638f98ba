//! One store: a process that may or may not run, with a directory and an address that stay.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use super::command::wait;

/// How long a store may take to leave after SIGTERM: it moves its leaders away first.
const EXIT_BOUND: Duration = Duration::from_secs(60);

/// One store of a cluster.
#[derive(Debug)]
pub struct Store {
    id: u64,
    address: String,
    arguments: Vec<String>,
    program: PathBuf,
    data: PathBuf,
    log: PathBuf,
    child: Option<Child>,
}

impl Store {
    /// A store that does not run yet. `arguments` follow the name of `program`; `log` gets its output.
    pub fn new(
        id: u64,
        address: String,
        program: PathBuf,
        arguments: Vec<String>,
        data: PathBuf,
        log: PathBuf,
    ) -> Self {
        Self {
            id,
            address,
            arguments,
            program,
            data,
            log,
            child: None,
        }
    }

    /// Its number in the cluster.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Where it listens, as `HOST:PORT`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Its data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Starts the process; what it prints is appended to the log.
    ///
    /// # Panics
    ///
    /// It runs already, or cannot be started.
    pub fn start(&mut self) {
        assert!(self.child.is_none(), "store {} runs already", self.id);
        let log = self.open_log();
        let errors = log.try_clone().expect("a file can be opened twice");
        let child = Command::new(&self.program)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start store {}: {error}", self.id));
        self.child = Some(child);
    }

    fn open_log(&self) -> File {
        let file = OpenOptions::new().create(true).append(true).open(&self.log);
        file.unwrap_or_else(|error| panic!("cannot open {}: {error}", self.log.display()))
    }

    /// The arguments it is started with.
    pub fn arguments(&self) -> &[String] {
        &self.arguments
    }

    /// Starts the process with other arguments than before.
    ///
    /// # Panics
    ///
    /// It runs already, or cannot be started.
    pub fn restart_with(&mut self, arguments: Vec<String>) {
        self.arguments = arguments;
        self.start();
    }

    /// Whether the process runs (a paused one does).
    pub fn is_running(&mut self) -> bool {
        let child = self.child.as_mut();
        child.is_some_and(|child| {
            child
                .try_wait()
                .expect("a child can be waited for")
                .is_none()
        })
    }

    /// Ends the process as a crash would: `kill -9`, nothing is flushed.
    ///
    /// # Panics
    ///
    /// It does not run.
    pub fn kill(&mut self) {
        let mut child = self
            .child
            .take()
            .unwrap_or_else(|| panic!("store {} does not run", self.id));
        if let Ok(Some(status)) = child.try_wait() {
            panic!(
                "store {} ended by itself before it was killed: {status}\n{}",
                self.id,
                self.log_tail(40)
            );
        }
        child.kill().expect("a running child can be killed");
        child.wait().expect("a child can be waited for");
    }

    /// Asks the process to leave and waits until it has.
    ///
    /// # Panics
    ///
    /// It does not run, or has not left after a minute.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.wait_for_exit()
    }

    /// Waits until the process has ended by itself.
    ///
    /// # Panics
    ///
    /// It was not started, or has not ended after a minute.
    pub fn wait_for_exit(&mut self) -> ExitStatus {
        let mut child = self
            .child
            .take()
            .unwrap_or_else(|| panic!("store {} does not run", self.id));
        let status = wait(&mut child, EXIT_BOUND);
        status.unwrap_or_else(|| panic!("store {} did not end within {EXIT_BOUND:?}", self.id))
    }

    /// Stops the process in its tracks (SIGSTOP): its sockets stay open and nothing answers.
    pub fn pause(&self) {
        self.signal("STOP");
    }

    /// Lets a paused process go on.
    pub fn resume(&self) {
        self.signal("CONT");
    }

    /// Sends a signal by the shell's own `kill`: the standard library sends none but SIGKILL.
    pub fn signal(&self, name: &str) {
        let child = self
            .child
            .as_ref()
            .unwrap_or_else(|| panic!("store {} does not run", self.id));
        let status = Command::new("sh")
            .args(["-c", &format!("kill -{name} {}", child.id())])
            .status();
        assert!(
            status.is_ok_and(|status| status.success()),
            "cannot send {name} to store {}",
            self.id
        );
    }

    /// All that the process has printed, over all its runs.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_else(|error| format!("[no log: {error}]"))
    }

    /// The last `lines` lines of the log.
    pub fn log_tail(&self, lines: usize) -> String {
        let log = self.log();
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself; a child that cannot be killed has.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
