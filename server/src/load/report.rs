//! Figures of a run: a line each second, a summary for people, the same as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{Options, Target};
use crate::cli::environment_json;
use crate::proto::admin::Environment as StoreEnvironment;

/// Longest latency that is told apart, in microseconds.
const LATENCY_MAX: u64 = 600_000_000;

/// A request sent so much later than intended is late: all clients waited for answers.
const LATE: Duration = Duration::from_millis(20);

/// Counts while the load runs.
#[derive(Debug)]
pub(super) struct Progress {
    inner: Mutex<Counts>,
}

#[derive(Debug)]
struct Counts {
    second: Histogram<u64>,
    all: Histogram<u64>,
    errors: BTreeMap<String, u64>,
    errors_second: u64,
    begun: u64,
    late: u64,
}

impl Default for Progress {
    fn default() -> Self {
        let histogram = || {
            Histogram::new_with_max(LATENCY_MAX, 3)
                .unwrap_or_else(|_| unreachable!("constant bounds"))
        };
        let inner = Counts {
            second: histogram(),
            all: histogram(),
            errors: BTreeMap::new(),
            errors_second: 0,
            begun: 0,
            late: 0,
        };
        Self {
            inner: Mutex::new(inner),
        }
    }
}

/// What was counted in all.
#[derive(Clone, Debug)]
pub(crate) struct Totals {
    latency: Histogram<u64>,
    errors: BTreeMap<String, u64>,
    begun: u64,
    late: u64,
}

impl Progress {
    pub(super) fn acknowledged(&self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros())
            .unwrap_or(u64::MAX)
            .clamp(1, LATENCY_MAX);
        self.inner.lock().second.saturating_record(micros);
    }

    /// A request is sent, so much later than intended.
    pub(super) fn begun(&self, lag: Duration) {
        let mut counts = self.inner.lock();
        counts.begun += 1;
        counts.late += u64::from(lag >= LATE);
    }

    /// Counts from 0 again.
    pub(super) fn forget(&self) {
        let mut counts = self.inner.lock();
        counts.roll();
        counts.all.reset();
        counts.errors.clear();
        (counts.begun, counts.late) = (0, 0);
    }

    pub(super) fn failed(&self, reason: &str) {
        let mut counts = self.inner.lock();
        *counts.errors.entry(reason.to_owned()).or_default() += 1;
        counts.errors_second += 1;
    }

    /// The last second as a line.
    pub(super) fn line(&self, elapsed: Duration) -> String {
        let mut counts = self.inner.lock();
        let (ok, errors) = (counts.second.len(), counts.errors_second);
        let at = |quantile| millis(counts.second.value_at_quantile(quantile));
        let line = format!(
            "{:4.0}s  {ok:>8} ok/s   p50 {:>8}   p99 {:>8}   errors {errors}",
            elapsed.as_secs_f64(),
            at(0.5),
            at(0.99)
        );
        counts.roll();
        line
    }

    pub(super) fn totals(&self) -> Totals {
        let mut counts = self.inner.lock();
        counts.roll();
        Totals {
            latency: counts.all.clone(),
            errors: counts.errors.clone(),
            begun: counts.begun,
            late: counts.late,
        }
    }
}

impl Counts {
    fn roll(&mut self) {
        let Self {
            second,
            all,
            errors_second,
            ..
        } = self;
        // Both have the same bounds, so nothing can be out of range.
        let added = all.add(&*second);
        debug_assert!(added.is_ok());
        second.reset();
        *errors_second = 0;
    }
}

impl Totals {
    /// Requests that succeeded.
    pub(crate) fn ok(&self) -> u64 {
        self.latency.len()
    }
}

fn millis(micros: u64) -> String {
    format!("{:.2}ms", micros as f64 / 1000.0)
}

/// Counters by store and name.
#[derive(Clone, Debug, Default)]
pub(super) struct StoreCounters(BTreeMap<(u64, String), u64>);

impl StoreCounters {
    pub(super) async fn read(target: &Target) -> Self {
        let mut counters = BTreeMap::new();
        for status in target.status().await.unwrap_or_default() {
            // Figures of a moment cannot be subtracted.
            let counts = status.counters.into_iter();
            for (name, value) in counts.filter(|(name, _)| crate::metrics::is_counter(name)) {
                counters.insert((status.store, name), value);
            }
        }
        Self(counters)
    }

    /// A store that restarted counted from 0 again: what it did before its end is left out.
    pub(super) fn since(&self, before: &Self) -> Self {
        let since = |(key, now): (&(u64, String), &u64)| {
            let earlier = before.0.get(key).copied().unwrap_or(0);
            (key.clone(), now.checked_sub(earlier).unwrap_or(*now))
        };
        Self(self.0.iter().map(since).collect())
    }

    /// All stores together.
    fn sums(&self) -> BTreeMap<&str, u64> {
        let mut sums = BTreeMap::new();
        for ((_, name), value) in &self.0 {
            *sums.entry(name.as_str()).or_default() += value;
        }
        sums
    }

    fn ratio(&self, of: &str, per: &str) -> f64 {
        let sums = self.sums();
        let value = |name: &str| sums.get(name).copied().unwrap_or(0) as f64;
        if value(per) > 0.0 {
            value(of) / value(per)
        } else {
            0.0
        }
    }
}

/// Where the load generator ran.
#[derive(Clone, Debug)]
pub(super) struct Environment {
    processors: usize,
    model: String,
    kernel: String,
    /// Median of a small synced write in the temporary directory of this machine.
    fsync: Option<Duration>,
}

impl Environment {
    pub(super) async fn read() -> Self {
        // A disk may block for long, and a task must not.
        let fsync = tokio::task::spawn_blocking(measure_fsync).await;
        let file = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpu = file("/proc/cpuinfo");
        let model = cpu
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Self {
            processors: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            model: model.map_or_else(|| "unknown".to_owned(), |(_, name)| name.to_owned()),
            kernel: file("/proc/sys/kernel/osrelease").trim().to_owned(),
            fsync: fsync.ok().and_then(Result::ok),
        }
    }
}

/// The median of 32 appends of 4 KiB, each followed by fdatasync.
fn measure_fsync() -> std::io::Result<Duration> {
    let mut file = tempfile::tempfile()?;
    let mut times = Vec::new();
    for _ in 0..32 {
        let begun = Instant::now();
        file.write_all(&[7; 4096])?;
        file.sync_data()?;
        times.push(begun.elapsed());
    }
    times.sort();
    Ok(times[times.len() / 2])
}

/// A version with the revision of its source, if known.
fn version(version: &str, revision: &str) -> String {
    match revision {
        "" => version.to_owned(),
        revision => format!("{version}+{revision}"),
    }
}

/// The figures of one run.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) totals: Totals,
    pub(super) elapsed: Duration,
    pub(super) options: Options,
    pub(super) groups: usize,
    pub(super) per_group_min: u64,
    pub(super) per_group_max: u64,
    /// Groups without a single success.
    pub(super) per_group_zero: usize,
    pub(super) stores: StoreCounters,
    pub(super) leaders: BTreeMap<u64, u64>,
    pub(super) environment: Environment,
    /// Fewest and most replicas of a group.
    pub(super) replicas: (usize, usize),
    /// Version and environment of each store.
    pub(super) servers: BTreeMap<u64, (String, StoreEnvironment)>,
}

const QUANTILES: [(&str, f64); 6] = [
    ("p50", 0.5),
    ("p90", 0.9),
    ("p95", 0.95),
    ("p99", 0.99),
    ("p99.9", 0.999),
    ("max", 1.0),
];

impl Report {
    /// Requests of an open loop that were never sent: all clients waited for answers.
    fn unsent(&self) -> u64 {
        let intended = |rate: f64| (rate * self.elapsed.as_secs_f64()) as u64;
        // The last one or two of each second's share may fall outside by rounding.
        let unsent = |rate| intended(rate).saturating_sub(self.totals.begun + 2);
        self.options.rate.map_or(0, unsent)
    }

    fn per_second(&self) -> f64 {
        self.totals.ok() as f64 / self.elapsed.as_secs_f64().max(0.001)
    }

    /// For people.
    pub(crate) fn summary(&self) -> String {
        let (o, e) = (&self.options, &self.environment);
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{name:<20}{value}");
        };
        let shape = o.rate.map_or("closed loop".to_owned(), |rate| {
            format!("open loop at {rate}/s")
        });
        line(
            "load",
            format!(
                "{shape}, {} clients, {} B values, {} groups of {} replicas",
                o.concurrency,
                o.value_bytes,
                self.groups,
                self.replication_factor()
            ),
        );
        line(
            "throughput",
            format!(
                "{:.0} ok/s ({} in {:.1} s)",
                self.per_second(),
                self.totals.ok(),
                self.elapsed.as_secs_f64()
            ),
        );
        let quantiles: Vec<String> = QUANTILES
            .iter()
            .map(|(name, q)| {
                format!(
                    "{name} {}",
                    millis(self.totals.latency.value_at_quantile(*q))
                )
            })
            .collect();
        line("latency", quantiles.join("  "));
        if o.rate.is_some() {
            let (late, begun) = (self.totals.late, self.totals.begun);
            let keeps_up = match self.unsent() {
                0 => String::new(),
                unsent => format!("; could not keep up: {unsent} were never sent"),
            };
            line(
                "schedule",
                format!("{late} of {begun} requests were sent late{keeps_up}"),
            );
        }
        line(
            "errors",
            match self.totals.errors.is_empty() {
                true => "none".to_owned(),
                false => self
                    .totals
                    .errors
                    .iter()
                    .map(|(k, n)| format!("{k} {n}"))
                    .collect::<Vec<_>>()
                    .join("  "),
            },
        );
        line(
            "entries per fsync",
            format!(
                "{:.1}",
                self.stores.ratio("written_entries", "synced_writes")
            ),
        );
        line(
            "messages per frame",
            format!("{:.1}", self.stores.ratio("messages_out", "frames_out")),
        );
        line(
            "per group",
            format!(
                "min {}  max {}  without progress {}",
                self.per_group_min, self.per_group_max, self.per_group_zero
            ),
        );
        let leaders: Vec<String> = self
            .leaders
            .iter()
            .map(|(s, n)| format!("store {s}: {n}"))
            .collect();
        line("leaders", leaders.join("  "));
        let fsync = e.fsync.map_or("unknown".to_owned(), |time| {
            millis(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
        });
        for (stores, environment) in self.servers_alike() {
            line(&format!("store {stores}"), environment);
        }
        line(
            "client",
            format!(
                "{} x {}, Linux {}, fdatasync p50 {fsync} (its temporary directory), polyraft {}",
                e.processors,
                e.model,
                e.kernel,
                version(env!("CARGO_PKG_VERSION"), o.revision.unwrap_or_default())
            ),
        );
        line("seed", o.seed.to_string());
        text
    }

    fn replication_factor(&self) -> String {
        match self.replicas {
            (fewest, most) if fewest == most => most.to_string(),
            (fewest, most) => format!("{fewest} to {most}"),
        }
    }

    /// Stores that run alike share a line.
    fn servers_alike(&self) -> Vec<(String, String)> {
        let mut alike: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (store, (of, e)) in &self.servers {
            let text = format!(
                "polyraft {} ({}), RocksDB {}, {}, {} x {}, {:.1} GiB, Linux {}; {}",
                version(of, &e.revision),
                e.profile,
                e.rocksdb,
                e.filesystem,
                e.processors,
                e.processor_model,
                e.memory_bytes as f64 / f64::from(1 << 30),
                e.kernel,
                e.sync_policy
            );
            alike.entry(text).or_default().push(store.to_string());
        }
        alike
            .into_iter()
            .map(|(text, stores)| (stores.join(","), text))
            .collect()
    }

    /// For programs.
    pub(crate) fn json(&self) -> Value {
        let latency: BTreeMap<&str, u64> = QUANTILES
            .iter()
            .map(|(name, q)| (*name, self.totals.latency.value_at_quantile(*q)))
            .collect();
        json!({
            "concurrency": self.options.concurrency,
            "ops": self.options.ops,
            "rate": self.options.rate,
            "value_bytes": self.options.value_bytes,
            "reads_percent": self.options.reads_percent,
            "scans_percent": self.options.scans_percent,
            "zipf": self.options.zipf,
            "groups": self.groups,
            "seconds": self.elapsed.as_secs_f64(),
            "ok": self.totals.ok(),
            "ok_per_second": self.per_second(),
            "latency_us": latency,
            "errors": self.totals.errors,
            "entries_per_fsync": self.stores.ratio("written_entries", "synced_writes"),
            "messages_per_frame": self.stores.ratio("messages_out", "frames_out"),
            "seed": self.options.seed,
            "late": self.totals.late,
            "unsent": self.unsent(),
            "per_group": { "min": self.per_group_min, "max": self.per_group_max, "without_progress": self.per_group_zero },
            "leaders": self.leaders.iter().map(|(s, n)| (s.to_string(), *n)).collect::<BTreeMap<_, _>>(),
            "counters": self.stores.sums(),
            "environment": {
                "processors": self.environment.processors,
                "model": self.environment.model,
                "kernel": self.environment.kernel,
                "fdatasync_p50_us": self.environment.fsync.map(|time| time.as_micros() as u64),
                "version": env!("CARGO_PKG_VERSION"),
                "revision": self.options.revision,
            },
            "replication_factor": { "min": self.replicas.0, "max": self.replicas.1 },
            "stores": self.servers.iter().map(|(store, (version, environment))| json!({
                "store": store,
                "version": version,
                "environment": environment_json(environment),
            })).collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(counters: &[(u64, &str, u64)]) -> StoreCounters {
        let entry =
            |(store, name, value): &(u64, &str, u64)| ((*store, (*name).to_owned()), *value);
        StoreCounters(counters.iter().map(entry).collect())
    }

    #[test]
    fn a_store_that_restarted_counts_from_zero() {
        let before = counters(&[(1, "entries", 100), (1, "syncs", 10), (2, "entries", 50)]);
        let after = counters(&[
            (1, "entries", 160),
            (1, "syncs", 20),
            (2, "entries", 40),
            (2, "syncs", 10),
        ]);
        let since = after.since(&before);
        assert_eq!(
            since.sums(),
            BTreeMap::from([("entries", 100), ("syncs", 20)])
        );
        assert!((since.ratio("entries", "syncs") - 5.0).abs() < 1e-9);
        assert_eq!(since.ratio("entries", "nothing"), 0.0);
    }

    #[test]
    fn what_came_before_the_warm_up_ended_is_forgotten() {
        let progress = Progress::default();
        let count = || {
            progress.begun(Duration::ZERO);
            progress.begun(LATE);
            progress.acknowledged(Duration::from_millis(3));
            progress.failed("busy");
        };
        count();
        progress.forget();
        count();
        assert_eq!(
            progress.line(Duration::from_secs(1)),
            "   1s         1 ok/s   p50   3.00ms   p99   3.00ms   errors 1"
        );
        let totals = progress.totals();
        assert_eq!((totals.ok(), totals.begun, totals.late), (1, 2, 1));
        assert_eq!(totals.errors, BTreeMap::from([("busy".to_owned(), 1)]));
    }

    #[test]
    fn latencies_out_of_bounds_count() {
        let progress = Progress::default();
        progress.acknowledged(Duration::ZERO);
        progress.acknowledged(Duration::from_secs(100_000));
        assert_eq!(progress.totals().ok(), 2);
    }
}
