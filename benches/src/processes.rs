//! Server processes on this machine, with directories and ports of their own; dropping them ends them.

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

/// How long a cluster may take to begin.
const PATIENCE: Duration = Duration::from_secs(120);

/// Some processes and the directory they write to.
#[derive(Debug)]
pub struct Processes {
    children: Vec<Child>,
    directory: TempDir,
}

impl Processes {
    /// None yet; their directory is made below `parent`.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new(parent: &Path) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("polyraft-bench-")
            .tempdir_in(parent);
        let directory =
            directory.with_context(|| format!("a directory below {}", parent.display()))?;
        Ok(Self {
            children: Vec::new(),
            directory,
        })
    }

    /// Where they write.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Starts one more; what it says goes to a file.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(&mut self, program: &Path, arguments: &[String]) -> Result<()> {
        let log = self
            .directory()
            .join(format!("{}.log", self.children.len()));
        let log = File::create(&log).with_context(|| log.display().to_string())?;
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        self.children.push(child);
        Ok(())
    }

    /// An error with the end of the log if one has ended by itself.
    ///
    /// # Errors
    /// See above.
    pub fn check(&mut self) -> Result<()> {
        for (number, child) in self.children.iter_mut().enumerate() {
            if let Some(status) = child.try_wait()? {
                let log =
                    std::fs::read_to_string(self.directory.path().join(format!("{number}.log")))?;
                bail!(
                    "process {number} ended ({status}): {}",
                    log.lines().last().unwrap_or("it said nothing")
                );
            }
        }
        Ok(())
    }

    /// What each has used so far.
    ///
    /// # Errors
    /// One of them has ended.
    pub fn usage(&mut self) -> Result<Vec<Usage>> {
        self.check()?;
        self.children
            .iter()
            .map(|child| Usage::of(child.id()))
            .collect()
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for child in &mut self.children {
            // One that cannot be killed has ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What a process has used since its start.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Processor time, in seconds.
    pub cpu_seconds: f64,
    /// Resident memory now, in bytes.
    pub rss_bytes: u64,
}

impl Usage {
    /// From `/proc` (fields: proc(5)). The kernel counts in hundredths of a second for user space.
    fn of(process: u32) -> Result<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
        let (_, fields) = stat
            .rsplit_once(") ")
            .context("/proc/PID/stat without a name")?;
        let fields: Vec<&str> = fields.split(' ').collect();
        // The name was field 2, so the first here is field 3: utime is 14 and stime 15.
        let ticks = |at: usize| -> Result<f64> {
            Ok(fields.get(at).context("/proc/PID/stat is short")?.parse()?)
        };
        let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
        let rss = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
        let rss_bytes = rss.context("no VmRSS")?.trim().parse::<u64>()? * 1024;
        Ok(Self {
            cpu_seconds: (ticks(11)? + ticks(12)?) / 100.0,
            rss_bytes,
        })
    }
}

/// Three stores of Polyraft.
#[derive(Debug)]
pub struct Cluster {
    processes: Processes,
    program: PathBuf,
    endpoints: String,
}

impl Cluster {
    /// Starts three stores, creates `groups` groups and waits for their leaders.
    ///
    /// # Errors
    /// The program cannot be started, or the cluster does not begin within two minutes.
    pub fn start(program: &Path, parent: &Path, groups: u64) -> Result<Self> {
        let mut processes = Processes::new(parent)?;
        let addresses = free_addresses(3)?;
        let numbered = || (1..).zip(&addresses);
        let peers: Vec<String> = numbered()
            .map(|(store, address)| format!("{store}={address}"))
            .collect();
        for (store, address) in numbered() {
            let data = processes.directory().join(format!("store-{store}"));
            let mut arguments = words(&[
                "start",
                "--listen",
                address,
                "--peers",
                &peers.join(","),
                "--log",
                "warn",
            ]);
            arguments.extend(["--store-id".to_owned(), store.to_string()]);
            arguments.extend(["--data-dir".to_owned(), data.display().to_string()]);
            processes.spawn(program, &arguments)?;
        }
        let endpoints = addresses.join(",");
        let mut cluster = Self {
            processes,
            program: program.to_owned(),
            endpoints,
        };
        cluster.init(groups)?;
        Ok(cluster)
    }

    fn init(&mut self, groups: u64) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut created = false;
        loop {
            self.processes.check()?;
            if !created {
                created = self.run(&["init", "--groups", &groups.to_string()]).is_ok();
            }
            let status = self.run(&["status"]);
            let leaders = status.as_ref().map(|status| sum(status, "leaders"));
            if created && leaders.as_ref().is_ok_and(|leaders| *leaders >= groups) {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "the cluster did not begin: {leaders:?} of {groups} groups have a leader"
            );
            sleep(Duration::from_millis(200));
        }
    }

    /// Runs a command of the same program against this cluster and gives what it prints as JSON.
    ///
    /// # Errors
    /// It failed, or printed something else.
    pub fn run(&self, arguments: &[&str]) -> Result<Value> {
        let output = Command::new(&self.program)
            .args(arguments)
            .args(["--endpoints", &self.endpoints, "-o", "json"])
            .stdin(Stdio::null())
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "polyraft {}: {}",
            arguments.join(" "),
            said.trim()
        );
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("polyraft {} printed no JSON", arguments.join(" ")))
    }

    /// What each store has used so far.
    ///
    /// # Errors
    /// One of them has ended.
    pub fn usage(&mut self) -> Result<Vec<Usage>> {
        self.processes.usage()
    }
}

fn sum(status: &Value, field: &str) -> u64 {
    let stores = status["stores"].as_array().map_or(&[][..], Vec::as_slice);
    stores
        .iter()
        .filter_map(|store| store[field].as_u64())
        .sum()
}

/// Addresses on loopback that nobody listened on just now; bound all at once, so that they differ.
///
/// # Errors
/// There are none.
pub fn free_addresses(count: usize) -> Result<Vec<String>> {
    let listeners: std::io::Result<Vec<TcpListener>> = (0..count)
        .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
        .collect();
    listeners?
        .iter()
        .map(|listener| Ok(listener.local_addr()?.to_string()))
        .collect()
}

/// The program `polyraft`: as given, or beside the running one.
///
/// # Errors
/// There is no such file; the message says how to make it.
pub fn program(given: Option<&Path>) -> Result<PathBuf> {
    let beside = || -> Result<PathBuf> { Ok(std::env::current_exe()?.with_file_name("polyraft")) };
    let program = given.map_or_else(beside, |given| Ok(given.to_owned()))?;
    ensure!(
        program.is_file(),
        "{} is missing: run `make release` first, or give --bin",
        program.display()
    );
    Ok(program)
}

/// Some words as arguments.
#[must_use]
pub fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}
