//! Stores on loopback that form one cluster, and the command line to talk to them.
//!
//! The only place that knows how `polyraft start` and `polyraft init` are called.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::command::{Finished, run};
use super::{Permit, Store, binary, eventually, free_port};

/// Bound for one call of the command line: its own deadline is far shorter, so a call that reaches
/// this hangs.
const CALL_BOUND: Duration = Duration::from_secs(60);

/// What a cluster begins as.
#[derive(Debug, Clone)]
pub struct Options {
    /// Ranges that `polyraft init` cuts the key space into.
    pub groups: u32,
    /// Stores that hold the groups at the beginning; numbered from 1.
    pub stores: u64,
    /// Further arguments for `polyraft start`.
    pub start: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            groups: 8,
            stores: 3,
            start: Vec::new(),
        }
    }
}

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    // Dropped in this order: first the processes, then their directory, then the leave to run.
    stores: Vec<Store>,
    directory: TempDir,
    _permit: Permit,
    options: Options,
}

impl Cluster {
    /// Starts the stores, initialises the cluster and waits until every group has a leader.
    ///
    /// # Panics
    ///
    /// Any of that fails.
    pub fn start(options: Options) -> Self {
        let mut cluster = Self::stopped(options);
        for id in 1..=cluster.options.stores {
            cluster.store(id).start();
        }
        let groups = cluster.options.groups.to_string();
        eventually("the cluster to be initialised", || {
            cluster.cli(&["init", "--groups", &groups]).success()
        });
        cluster.wait_for_leaders();
        cluster
    }

    /// The same with no store started and nothing initialised.
    pub fn stopped(options: Options) -> Self {
        let permit = Permit::wait();
        let directory = tempfile::Builder::new().prefix("polyraft-test-").tempdir();
        let directory = directory.expect("a temporary directory can be made");
        let mut cluster = Self {
            stores: Vec::new(),
            directory,
            _permit: permit,
            options,
        };
        let ids = 1..=cluster.options.stores;
        let addresses: Vec<(u64, String)> = ids
            .map(|id| (id, format!("127.0.0.1:{}", free_port())))
            .collect();
        for (id, address) in &addresses {
            cluster.push(*id, address.clone(), &addresses);
        }
        cluster
    }

    /// Adds a store that holds no group, and starts it.
    pub fn add_store(&mut self) -> u64 {
        let id = self.stores.iter().map(Store::id).max().unwrap_or(0) + 1;
        let address = format!("127.0.0.1:{}", free_port());
        let mut peers: Vec<(u64, String)> = self
            .stores
            .iter()
            .map(|store| (store.id(), store.address().to_owned()))
            .collect();
        peers.push((id, address.clone()));
        self.push(id, address, &peers);
        self.store(id).start();
        id
    }

    fn push(&mut self, id: u64, address: String, peers: &[(u64, String)]) {
        let data = self.directory.path().join(format!("store-{id}"));
        let log = self.directory.path().join(format!("store-{id}.log"));
        let arguments = start_arguments(id, &address, peers, &data, &self.options.start);
        self.stores
            .push(Store::new(id, address, binary(), arguments, data, log));
    }

    /// The store of this number.
    ///
    /// # Panics
    ///
    /// There is none.
    #[track_caller]
    pub fn store(&mut self, id: u64) -> &mut Store {
        self.stores
            .iter_mut()
            .find(|store| store.id() == id)
            .unwrap_or_else(|| panic!("no store {id}"))
    }

    /// Numbers of all stores.
    pub fn ids(&self) -> Vec<u64> {
        self.stores.iter().map(Store::id).collect()
    }

    /// A directory for the test's own files, removed with the cluster.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Addresses of all stores.
    pub fn endpoints(&self) -> Vec<String> {
        self.stores
            .iter()
            .map(|store| store.address().to_owned())
            .collect()
    }

    /// Runs `polyraft ARGUMENTS` with all stores as endpoints.
    #[track_caller]
    pub fn cli(&self, arguments: &[&str]) -> Finished {
        self.cli_at(&self.endpoints(), arguments)
    }

    /// Runs `polyraft ARGUMENTS` with these endpoints only.
    #[track_caller]
    pub fn cli_at(&self, endpoints: &[String], arguments: &[&str]) -> Finished {
        let mut command = Command::new(binary());
        command
            .args(arguments)
            .args(["--endpoints", &endpoints.join(",")]);
        run(&mut command, CALL_BOUND)
    }

    /// Runs `polyraft ARGUMENTS -o json`.
    ///
    /// # Errors
    ///
    /// It fails or prints no JSON.
    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> Result<Value, String> {
        let arguments = [arguments, &["-o", "json"]].concat();
        self.cli(&arguments).success()?.json()
    }

    /// Waits until every group has a leader that some store knows.
    #[track_caller]
    pub fn wait_for_leaders(&self) {
        eventually("a leader of every group", || {
            let groups = self.json(&["group", "list"])?;
            let groups = groups["groups"].as_array().ok_or("no list of groups")?;
            let without: Vec<&Value> = groups
                .iter()
                .filter(|g| g["leader_store"].as_u64().is_none())
                .collect();
            match (groups.len(), without.as_slice()) {
                (0, _) => Err("no groups".to_owned()),
                (_, []) => Ok(()),
                (all, some) => Err(format!("{} of {all} groups have no leader", some.len())),
            }
        });
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for store in &self.stores {
                report(store);
            }
        }
    }
}

/// Shows the end of a store's log beside the failure of the test.
#[allow(clippy::print_stderr)]
fn report(store: &Store) {
    eprintln!(
        "--- end of the log of store {} ({}) ---",
        store.id(),
        store.address()
    );
    eprintln!("{}", store.log_tail(40));
}

fn start_arguments(
    id: u64,
    address: &str,
    peers: &[(u64, String)],
    data: &Path,
    more: &[String],
) -> Vec<String> {
    let peers: Vec<String> = peers
        .iter()
        .map(|(id, address)| format!("{id}={address}"))
        .collect();
    let path = |path: PathBuf| path.to_string_lossy().into_owned();
    let mut arguments = vec![
        "start".to_owned(),
        "--store-id".to_owned(),
        id.to_string(),
        "--listen".to_owned(),
        address.to_owned(),
        "--peers".to_owned(),
        peers.join(","),
        "--data-dir".to_owned(),
        path(data.to_path_buf()),
    ];
    arguments.extend(more.iter().cloned());
    arguments
}
