//! One run of a program with a bound on its time.

use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// What a program that has ended left behind.
#[derive(Debug, Clone)]
pub struct Finished {
    /// The command line, for messages.
    pub line: String,
    /// How it ended.
    pub status: ExitStatus,
    /// All of its standard output.
    pub stdout: String,
    /// All of its standard error.
    pub stderr: String,
}

impl Finished {
    /// The exit code.
    ///
    /// # Panics
    ///
    /// A signal ended the program.
    #[track_caller]
    pub fn code(&self) -> i32 {
        self.status
            .code()
            .unwrap_or_else(|| panic!("ended by a signal: {self:?}"))
    }

    /// `Ok(self)` for exit code 0, else the command line with what it said.
    ///
    /// # Errors
    ///
    /// Another exit code or a signal.
    pub fn success(self) -> Result<Self, String> {
        if self.status.success() {
            return Ok(self);
        }
        Err(format!(
            "`{}`: {}: {}{}",
            self.line,
            self.status,
            self.stderr.trim(),
            self.stdout.trim()
        ))
    }

    /// The output as JSON.
    ///
    /// # Errors
    ///
    /// A text that says what is no JSON.
    pub fn json(&self) -> Result<serde_json::Value, String> {
        serde_json::from_str(&self.stdout)
            .map_err(|error| format!("`{}` printed no JSON ({error}): {}", self.line, self.stdout))
    }
}

/// Runs `command` to its end.
///
/// # Panics
///
/// It cannot be started, or has not ended after `bound`; then it is killed first.
#[track_caller]
pub fn run(command: &mut Command, bound: Duration) -> Finished {
    let line = line_of(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start `{line}`: {error}"));
    // Both pipes are read while the program runs: it would block on a full one.
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let status = wait(&mut child, bound);
    let stdout = stdout.join().expect("reading a pipe does not panic");
    let stderr = stderr.join().expect("reading a pipe does not panic");
    let Some(status) = status else {
        panic!("`{line}` did not end within {bound:?}; it said: {stdout}{stderr}");
    };
    Finished {
        line,
        status,
        stdout,
        stderr,
    }
}

/// Waits for `child`; after `bound` kills it and gives `None`.
pub(super) fn wait(child: &mut Child, bound: Duration) -> Option<ExitStatus> {
    let started = Instant::now();
    loop {
        match child.try_wait().expect("a child can be waited for") {
            Some(status) => return Some(status),
            None if started.elapsed() < bound => thread::sleep(Duration::from_millis(5)),
            None => {
                child
                    .kill()
                    .expect("a child that has not been waited for can be killed");
                child.wait().expect("a child can be waited for");
                return None;
            }
        }
    }
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    let mut pipe = pipe.expect("the pipe was asked for");
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let end = pipe.read_to_end(&mut bytes);
        let mut text = String::from_utf8_lossy(&bytes).into_owned();
        if let Err(error) = end {
            text.push_str(&format!("\n[the rest could not be read: {error}]"));
        }
        text
    })
}

fn line_of(command: &Command) -> String {
    let program = std::path::Path::new(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str());
    let words = std::iter::once(name).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn output_and_code_are_kept() {
        let finished = run(
            &mut shell("echo '{\"a\":1}'; echo why >&2; exit 3"),
            Duration::from_secs(60),
        );
        assert_eq!(finished.code(), 3);
        assert_eq!(finished.json().expect("JSON")["a"], 1);
        let error = finished.success().expect_err("exit code 3");
        assert!(
            error.contains("why") && error.starts_with("`sh -c"),
            "{error}"
        );
    }

    #[test]
    #[should_panic(expected = "did not end within")]
    fn a_program_that_hangs_is_killed() {
        run(&mut shell("exec sleep 600"), Duration::from_millis(50));
    }
}
