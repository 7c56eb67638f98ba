//! The load generator: clients that write and read as fast as they can, or at a given rate.
//!
//! Each request goes straight to the store that leads its group, as a client that keeps the leader
//! in mind would do. In the closed loop every client waits for its answer before the next request.
//! In the open loop requests have intended times, and latency counts from those: a server that
//! stalls is charged for all who waited ("coordinated omission").

mod client;
mod history;
mod report;
mod request;
mod target;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;

use self::client::{Acknowledged, Client};
use self::history::History;
pub(crate) use self::report::Report;
use self::report::{Environment, Progress, StoreCounters};
pub(crate) use self::target::{Shape, Target};
use crate::cli::Error;

/// What to do.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// How long, after the warm-up.
    pub(crate) duration: Duration,
    /// End after so many operations.
    pub(crate) ops: Option<u64>,
    /// Of this program, for the report.
    pub(crate) revision: Option<&'static str>,
    /// For so long nothing counts.
    pub(crate) warmup: Duration,
    /// Of the random choices.
    pub(crate) seed: u64,
    /// Clients; in the open loop the most requests under way.
    pub(crate) concurrency: usize,
    /// Requests per second of the open loop; none: closed loop.
    pub(crate) rate: Option<f64>,
    /// Bytes of a value.
    pub(crate) value_bytes: usize,
    /// Of a hundred requests so many are reads.
    pub(crate) reads_percent: u32,
    /// And so many are scans of up to a hundred pairs.
    pub(crate) scans_percent: u32,
    /// Exponent of the distribution over groups; 0: uniform.
    pub(crate) zipf: f64,
    /// Keys in each group; with a history: keys in all that are contended for.
    pub(crate) keys: u64,
    /// Every operation is recorded here.
    pub(crate) history: Option<PathBuf>,
    /// Acknowledged writes, each on a key of its own, are remembered for [`Outcome::verify`].
    pub(crate) remember: bool,
    /// Bound of one request.
    pub(crate) timeout: Duration,
}

/// What the clients of one run share.
#[derive(Debug)]
struct Shared {
    options: Options,
    target: Arc<Target>,
    /// Names this run among all.
    run: u64,
    /// True: the clients are to end.
    stop: watch::Sender<bool>,
    begin: Instant,
    /// Requests begun, for the open loop and for a number of operations.
    sequence: AtomicU64,
    /// Numbers of clients; one whose outcome is unknown goes on under a new one.
    clients: AtomicU64,
    progress: Progress,
    per_group: Vec<AtomicU64>,
    history: Option<History>,
}

impl Shared {
    fn end(&self) -> Instant {
        self.begin + self.options.warmup + self.options.duration
    }

    /// What was counted so far is forgotten.
    fn forget(&self) {
        self.progress.forget();
        for count in &self.per_group {
            count.store(0, Ordering::Relaxed);
        }
    }
}

/// However a run ends, its clients end: one whose calls fail at once, as they do when the runtime
/// goes down, never gives a task back to be aborted.
struct StopClients(Arc<Shared>);

impl Drop for StopClients {
    fn drop(&mut self) {
        self.0.stop.send_replace(true);
    }
}

/// What came of a run.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The figures.
    pub(crate) report: Report,
    target: Arc<Target>,
    acknowledged: Vec<Acknowledged>,
}

/// Runs the load; `each_second` gets a line of progress. Ctrl-C ends it early.
///
/// # Errors
/// The history cannot be written, or `each_second` says that nobody listens any more.
pub(crate) async fn run(
    options: Options,
    target: Arc<Target>,
    mut each_second: impl FnMut(&str) -> Result<(), Error>,
) -> Result<Outcome, Error> {
    let history = options
        .history
        .as_ref()
        .map(|path| History::create(path))
        .transpose()?;
    let environment = Environment::read().await;
    let mut before = StoreCounters::read(&target).await;
    let shared = Arc::new(Shared {
        run: rand::random(),
        stop: watch::Sender::new(false),
        begin: Instant::now(),
        sequence: AtomicU64::new(0),
        clients: AtomicU64::new(0),
        progress: Progress::default(),
        per_group: target.groups.iter().map(|_| AtomicU64::new(0)).collect(),
        target: Arc::clone(&target),
        history,
        options,
    });
    let _stop = StopClients(Arc::clone(&shared));
    let mut clients = JoinSet::new();
    for _ in 0..shared.options.concurrency {
        let client = Client::new(Arc::clone(&shared));
        clients.spawn(client.run());
    }
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    ticks.tick().await;
    let mut acknowledged = Vec::new();
    let mut counts_from = shared.begin;
    let warm = tokio::time::sleep(shared.options.warmup);
    tokio::pin!(warm);
    loop {
        tokio::select! {
            () = &mut warm, if counts_from == shared.begin && !shared.options.warmup.is_zero() => {
                before = StoreCounters::read(&target).await;
                shared.forget();
                counts_from = Instant::now();
            }
            interrupted = tokio::signal::ctrl_c() => {
                interrupted.map_err(|error| format!("cannot wait for Ctrl-C: {error}"))?;
                shared.stop.send_replace(true);
            }
            _ = ticks.tick() => each_second(&shared.progress.line(shared.begin.elapsed()))?,
            ended = clients.join_next() => match ended {
                Some(ended) => acknowledged.extend(ended.map_err(|error| format!("a client failed: {error}"))?),
                None => break,
            },
        }
    }
    let elapsed = counts_from.elapsed();
    if let Some(history) = &shared.history {
        history.finish()?;
    }
    let after = StoreCounters::read(&target).await;
    let per_group: Vec<u64> = shared
        .per_group
        .iter()
        .map(|count| count.load(Ordering::Relaxed))
        .collect();
    let report = Report {
        totals: shared.progress.totals(),
        elapsed,
        options: shared.options.clone(),
        per_group_min: per_group.iter().copied().min().unwrap_or(0),
        per_group_max: per_group.iter().copied().max().unwrap_or(0),
        per_group_zero: per_group.iter().filter(|count| **count == 0).count(),
        groups: per_group.len(),
        stores: after.since(&before),
        leaders: target.leaders().await,
        environment,
        replicas: target.replicas(),
        servers: target.environments().await,
    };
    Ok(Outcome {
        report,
        target,
        acknowledged,
    })
}

impl Outcome {
    /// Number of acknowledged writes that were remembered.
    pub(crate) fn remembered(&self) -> usize {
        self.acknowledged.len()
    }

    /// Reads every remembered write again; how many were there. The first that is not is an error.
    ///
    /// # Errors
    /// A write that was acknowledged is gone or has another value, or cannot be read within `bound`.
    pub(crate) async fn verify(&self, bound: Duration) -> Result<usize, String> {
        let deadline = Instant::now() + bound;
        let mut checks = JoinSet::new();
        let readers = 64;
        for reader in 0..readers {
            let mine: Vec<Acknowledged> = self
                .acknowledged
                .iter()
                .skip(reader)
                .step_by(readers)
                .cloned()
                .collect();
            let target = Arc::clone(&self.target);
            checks.spawn(async move {
                for write in &mine {
                    write.check(&target, deadline).await?;
                }
                Ok::<usize, String>(mine.len())
            });
        }
        let mut verified = 0;
        while let Some(checked) = checks.join_next().await {
            verified += checked.map_err(|error| format!("a reader failed: {error}"))??;
        }
        Ok(verified)
    }
}
