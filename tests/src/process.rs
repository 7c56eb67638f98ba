//! Real `polyraft` processes for tests: a cluster on loopback that can be killed, paused and restarted.
//!
//! A test makes a [`Cluster`], breaks its [`Store`]s, and talks to it through the command line.
//! What the harness promises:
//!
//! * Nothing outlives the test: dropping a cluster kills its processes and removes its directory.
//!   After a panic the end of every store's log is printed first.
//! * A store keeps its directory and its ports over restarts, as a machine would.
//! * [`eventually`] waits for conditions, never for a length of time. Its bound is for a machine that is busy
//!   with other things; a test that fails by it says what it saw last.
//! * At most [`CLUSTERS_MAX`] clusters run at a time, however many threads the test runner has.

mod cluster;
mod command;
mod connection;
mod ports;
mod store;
mod view;

use std::path::PathBuf;
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

pub use cluster::{Cluster, Options};
pub use command::{Finished, run};
pub use connection::Connection;
pub use ports::free_port;
pub use store::Store;
pub use view::GroupView;

/// How long a condition may take to come true before the test fails.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Clusters that run at the same time: three debug processes each keep a 2-core machine busy.
pub const CLUSTERS_MAX: usize = 2;

/// The binary under test: `POLYRAFT_BIN`, or what `make build` left in the target directory of this test.
///
/// # Panics
///
/// There is no such file; the message says how to make it.
pub fn binary() -> PathBuf {
    if let Some(given) = std::env::var_os("POLYRAFT_BIN") {
        let path = PathBuf::from(given);
        assert!(
            path.is_file(),
            "POLYRAFT_BIN names no file: {}",
            path.display()
        );
        return path;
    }
    let test = std::env::current_exe().expect("a running program knows its path");
    // target/debug/deps/process-0123 → target/debug/polyraft
    let profile = test
        .parent()
        .and_then(|deps| deps.parent())
        .expect("tests run from target/PROFILE/deps");
    let path = profile.join("polyraft");
    assert!(
        path.is_file(),
        "{} is missing: run `make build` first (or set POLYRAFT_BIN)",
        path.display()
    );
    path
}

/// Calls `attempt` until it gives a value, and returns that.
///
/// # Panics
///
/// After [`PATIENCE`], with `what` and the last reason `attempt` gave.
#[track_caller]
pub fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Result<T, String>) -> T {
    let started = Instant::now();
    let mut pause = Duration::from_millis(20);
    loop {
        let reason = match attempt() {
            Ok(value) => return value,
            Err(reason) => reason,
        };
        let waited = started.elapsed();
        assert!(
            waited < PATIENCE,
            "waited {waited:.0?} in vain for: {what}; last seen: {reason}"
        );
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(500));
    }
}

static RUNNING: Mutex<usize> = Mutex::new(0);
static ENDED: Condvar = Condvar::new();

/// Leave to run one cluster; dropping it lets the next one start.
#[derive(Debug)]
struct Permit;

impl Permit {
    fn wait() -> Self {
        let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |running: &mut usize| *running >= CLUSTERS_MAX;
        let mut running = ENDED
            .wait_while(running, full)
            .unwrap_or_else(PoisonError::into_inner);
        *running += 1;
        Self
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        ENDED.notify_one();
    }
}
