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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::eventually;

    /// A shell script in the place of a store.
    fn script(directory: &Path, script: &str) -> Store {
        let arguments = vec!["-c".to_owned(), script.to_owned()];
        let file = |name: &str| directory.join(name);
        Store::new(
            1,
            String::new(),
            PathBuf::from("sh"),
            arguments,
            file("data"),
            file("log"),
        )
    }

    fn wait_for_log(store: &Store, words: &str) {
        eventually("the log", || match store.log() {
            log if log.contains(words) => Ok(()),
            log => Err(log),
        });
    }

    #[test]
    fn a_store_leaves_when_asked_and_comes_back_with_its_log() {
        let directory = tempfile::tempdir().expect("a directory");
        let waits = "trap 'echo bye; exit 7' TERM; echo up >&2; while :; do sleep 0.05; done";
        let mut store = script(directory.path(), waits);
        for log in ["up\n", "up\nbye\nup\n"] {
            store.start();
            wait_for_log(&store, log);
            assert!(store.is_running());
            assert_eq!(store.terminate().code(), Some(7));
            assert!(!store.is_running());
        }
        assert_eq!(store.log(), "up\nbye\nup\nbye\n");
        assert_eq!(store.log_tail(2), "up\nbye");
    }

    #[test]
    fn a_killed_store_says_nothing_more_and_a_paused_one_waits() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut store = script(directory.path(), "while :; do echo tick; sleep 0.01; done");
        store.start();
        wait_for_log(&store, "tick\ntick\n");
        store.pause();
        // The signal is taken at once; what was under way is in the file after one more look.
        let id = store.child.as_ref().expect("runs").id();
        eventually("the process to stop", || {
            match fs::read_to_string(format!("/proc/{id}/stat")) {
                Ok(stat) if stat.contains(") T ") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        let ticks = store.log().len();
        assert!(store.is_running(), "a paused process is there");
        store.resume();
        eventually("ticks to go on", || {
            if store.log().len() > ticks {
                Ok(())
            } else {
                Err(store.log())
            }
        });
        store.kill();
        assert!(!store.is_running());
    }

    #[test]
    #[should_panic(expected = "ended by itself before it was killed")]
    fn a_store_that_died_by_itself_is_noticed() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut store = script(directory.path(), "echo out of luck; exit 3");
        store.start();
        eventually("the end", || {
            if store.is_running() {
                Err("runs".to_owned())
            } else {
                Ok(())
            }
        });
        store.kill();
    }

    #[test]
    fn a_dropped_store_is_stopped() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut store = script(directory.path(), "exec sleep 600");
        store.start();
        let id = store.child.as_ref().expect("runs").id();
        drop(store);
        assert!(!Path::new(&format!("/proc/{id}")).exists());
    }
}
