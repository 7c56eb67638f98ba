//! `polyraft demo`: store processes on loopback, load, a `kill -9`, and the proof that
//! nothing was lost.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{DemoArguments, Error, say};
use crate::client::Client;
use crate::failure::Reason;
use crate::load::{self, Options, Shape, Target};
use crate::proto::admin::{InitRequest, ListGroupsRequest};

/// How long the cluster may take to begin, and to be whole again after the crash.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs the demonstration.
pub(crate) async fn run(
    arguments: DemoArguments,
    revision: Option<&'static str>,
) -> Result<(), Error> {
    let listen = |kind| signal(kind).map_err(|error| format!("cannot listen for signals: {error}"));
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    // The terminal was closed. Under nohup that is not to matter.
    let mut hangup = match ignores_hangup() {
        true => None,
        false => Some(listen(SignalKind::hangup())?),
    };
    let demo = Demo::start(&arguments)?;
    let hung_up = async {
        match &mut hangup {
            Some(hangup) => drop(hangup.recv().await),
            None => std::future::pending().await,
        }
    };
    let result = tokio::select! {
        result = demo.perform(&arguments, revision) => result,
        _ = interrupt.recv() => Err(Error::Interrupted),
        _ = terminate.recv() => Err(Error::Interrupted),
        () = hung_up => Err(Error::Interrupted),
    };
    demo.end().await;
    match result {
        // The summary has been shown, and the cluster was there to be ended like that.
        Err(Error::Interrupted) if demo.waits.load(Ordering::SeqCst) => Ok(()),
        result => result,
    }
}

/// Whether this program was started with SIGHUP ignored, as `nohup` does.
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    // Bit 0 is signal 1.
    ignored.is_some_and(|mask| mask & 1 == 1)
}

/// The processes; ended when this is dropped, and their directory removed if it is a temporary one.
struct Demo {
    children: tokio::sync::Mutex<Vec<Child>>,
    endpoints: Vec<String>,
    directory: Directory,
    /// The store that is killed.
    victim: u64,
    /// All is done, and the cluster is there to be played with.
    waits: AtomicBool,
}

enum Directory {
    Temporary(TempDir),
    Kept(PathBuf),
}

impl Directory {
    fn new(kept: Option<&Path>) -> Result<Self, String> {
        let Some(path) = kept else {
            let directory = tempfile::Builder::new().prefix("polyraft-demo-").tempdir();
            return directory
                .map(Self::Temporary)
                .map_err(|error| format!("cannot make a temporary directory: {error}"));
        };
        std::fs::create_dir_all(path)
            .and_then(|()| std::fs::canonicalize(path))
            .map(Self::Kept)
            .map_err(|error| format!("cannot create {}: {error}", path.display()))
    }

    fn path(&self) -> &Path {
        match self {
            Self::Temporary(directory) => directory.path(),
            Self::Kept(path) => path,
        }
    }
}

impl Demo {
    fn start(arguments: &DemoArguments) -> Result<Self, String> {
        let directory = Directory::new(arguments.data_dir.as_deref())?;
        let endpoints =
            free_addresses(arguments.stores).map_err(|error| format!("no free port: {error}"))?;
        let children: Result<Vec<Child>, String> = (1..=arguments.stores)
            .map(|store| start_store(store, &endpoints, directory.path()))
            .collect();
        Ok(Self {
            children: tokio::sync::Mutex::new(children?),
            endpoints,
            directory,
            victim: arguments.stores.min(2),
            waits: AtomicBool::new(false),
        })
    }

    async fn perform(
        &self,
        arguments: &DemoArguments,
        revision: Option<&'static str>,
    ) -> Result<(), Error> {
        let path = self.directory.path().display();
        say(&format!(
            "{} stores at {}",
            arguments.stores,
            self.endpoints.join(", ")
        ))?;
        say(&format!(
            "data and logs in {path}/store-N and {path}/store-N.log"
        ))?;
        let begun = Instant::now();
        self.init(arguments.groups).await?;
        say(&format!(
            "{} groups of {} replicas, each with a leader, after {:.1?}\n",
            arguments.groups,
            arguments.stores.min(3),
            begun.elapsed()
        ))?;

        let target = Arc::new(Target::find(&self.endpoints, PATIENCE, &Shape::default()).await?);
        let options = Options {
            duration: arguments.duration,
            ops: None,
            revision,
            warmup: Duration::ZERO,
            seed: rand::random(),
            concurrency: arguments.concurrency as usize,
            rate: None,
            value_bytes: 128,
            reads_percent: 0,
            scans_percent: 0,
            zipf: 0.0,
            keys: 1,
            history: None,
            remember: true,
            timeout: Duration::from_secs(5),
        };
        let load = load::run(options, target, say);
        let (outcome, ()) = tokio::try_join!(load, self.crash(arguments.duration))?;
        say(&format!("\n{}", outcome.report.summary()))?;
        self.wait_for_leaders(arguments.groups).await?;
        let verified = outcome.verify(PATIENCE).await?;
        say(&format!(
            "verified after the crash: {verified} of {} acknowledged writes, none is lost",
            outcome.remembered()
        ))?;
        if !arguments.no_wait {
            self.waits.store(true, Ordering::SeqCst);
            self.invite()?;
            std::future::pending::<()>().await;
        }
        Ok(())
    }

    /// Waits until the processes are gone: one that still writes would keep its directory from being removed.
    async fn end(&self) {
        for child in self.children.lock().await.iter_mut() {
            // One that cannot be killed has ended by itself.
            let _ = child.kill().await;
        }
    }

    /// In the middle of the load one store is killed and started again.
    async fn crash(&self, duration: Duration) -> Result<(), Error> {
        let third = duration / 3;
        tokio::time::sleep(third).await;
        let mut children = self.children.lock().await;
        let victim = self.victim;
        let child = usize::try_from(victim - 1)
            .ok()
            .and_then(|at| children.get_mut(at))
            .ok_or("no store to kill")?;
        say(&format!("      kill -9 of store {victim}"))?;
        child
            .kill()
            .await
            .map_err(|error| format!("cannot kill store {victim}: {error}"))?;
        tokio::time::sleep(third).await;
        say(&format!("      store {victim} starts again"))?;
        *child = start_store(victim, &self.endpoints, self.directory.path())?;
        Ok(())
    }

    async fn init(&self, groups: u64) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        let client = Client::new(&self.endpoints, PATIENCE)?;
        let request = InitRequest {
            groups,
            replicas: 0,
        };
        while let Err(failure) = client
            .admin(false, request, |mut c, r| async move { c.init(r).await })
            .await
        {
            if failure.reason == Reason::Refused {
                return Err(failure.message);
            }
            self.check_children().await?;
            if Instant::now() >= deadline {
                return Err(format!("the cluster did not begin: {}", failure.message));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        self.wait_for_leaders(groups).await
    }

    async fn wait_for_leaders(&self, groups: u64) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        let client = Client::new(&self.endpoints, Duration::from_secs(10))?;
        loop {
            let request = ListGroupsRequest { local: false };
            let list = client
                .admin(
                    true,
                    request,
                    |mut c, r| async move { c.list_groups(r).await },
                )
                .await;
            let led = list.map(|list| {
                list.groups
                    .iter()
                    .filter(|group| group.start.is_some() && group.leader_store != 0)
                    .count() as u64
            });
            if led.as_ref().is_ok_and(|led| *led >= groups) {
                return Ok(());
            }
            self.check_children().await?;
            if Instant::now() >= deadline {
                return Err(format!("not every group has a leader: {led:?} of {groups}"));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// A store that ended by itself says why in its log.
    async fn check_children(&self) -> Result<(), String> {
        for (store, child) in (1..).zip(self.children.lock().await.iter_mut()) {
            if let Ok(Some(status)) = child.try_wait() {
                let log = std::fs::read_to_string(
                    self.directory.path().join(format!("store-{store}.log")),
                );
                let log = log.unwrap_or_default();
                let last = log.lines().last().unwrap_or("it said nothing");
                return Err(format!("store {store} ended ({status}): {last}"));
            }
        }
        Ok(())
    }

    fn invite(&self) -> Result<(), Error> {
        say("\nThe cluster runs until Ctrl-C. In another terminal:\n")?;
        // The same program, wherever it was built.
        if let Some(directory) = program()?.parent() {
            say(&format!("  export PATH=\"{}:$PATH\"", directory.display()))?;
        }
        say(&format!(
            "  export POLYRAFT_ENDPOINTS={}",
            self.endpoints.join(",")
        ))?;
        for command in [
            "status".to_owned(),
            "kv put hello world".to_owned(),
            "kv get hello".to_owned(),
            "group list".to_owned(),
            "group describe 1".to_owned(),
            format!("group transfer 1 --to {}", self.endpoints.len()),
            "load".to_owned(),
        ] {
            say(&format!("  polyraft {command}"))?;
        }
        // The interface takes bytes, which JSON has in base64: this is the key `hello`.
        say(&format!(
            "  grpcurl -plaintext -d '{{\"key\": \"aGVsbG8=\"}}' {} polyraft.kv.v1.Kv/Get",
            self.endpoints.first().map_or("", String::as_str)
        ))?;
        say(&format!(
            "\nWhat the stores say: {}/store-*.log",
            self.directory.path().display()
        ))
    }
}

fn program() -> Result<PathBuf, String> {
    std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))
}

fn start_store(store: u64, endpoints: &[String], directory: &Path) -> Result<Child, String> {
    let program = program()?;
    let log = directory.join(format!("store-{store}.log"));
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log);
    let log = log.map_err(|error| format!("cannot write a log: {error}"))?;
    let peers: Vec<String> = (1..)
        .zip(endpoints)
        .map(|(id, address)| format!("{id}={address}"))
        .collect();
    let own = usize::try_from(store - 1)
        .ok()
        .and_then(|at| endpoints.get(at))
        .ok_or("no such store")?;
    Command::new(program)
        .args([
            "start",
            "--store-id",
            &store.to_string(),
            "--listen",
            own,
            "--peers",
            &peers.join(","),
            "--end-with-stdin",
        ])
        .arg("--data-dir")
        .arg(directory.join(format!("store-{store}")))
        // Held open by this process: however it ends, its stores end with it.
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(log)
        // Ctrl-C in the terminal is for the demo, which ends its stores itself.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("cannot start store {store}: {error}"))
}

/// All at once, so that they differ.
fn free_addresses(stores: u64) -> std::io::Result<Vec<String>> {
    let listeners: std::io::Result<Vec<TcpListener>> = (0..stores)
        .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
        .collect();
    listeners?
        .iter()
        .map(|listener| Ok(listener.local_addr()?.to_string()))
        .collect()
}
