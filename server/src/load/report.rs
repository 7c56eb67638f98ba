//! Figures of a run: a line each second, a summary for people, the same as JSON.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{Options, Target};

/// Longest latency that is told apart, in microseconds.
const LATENCY_MAX: u64 = 600_000_000;

/// Counts while the load runs.
#[derive(Debug)]
pub(super) struct Progress {
    inner: Mutex<Counts>,
}

#[derive(Debug)]
struct Counts {
    second: Histogram<u64>,
    all: Histogram<u64>,
    errors: BTreeMap<&'static str, u64>,
    errors_second: u64,
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
    errors: BTreeMap<&'static str, u64>,
}

impl Progress {
    pub(super) fn acknowledged(&self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros())
            .unwrap_or(u64::MAX)
            .clamp(1, LATENCY_MAX);
        self.inner.lock().second.saturating_record(micros);
    }

    pub(super) fn failed(&self, reason: &'static str) {
        let mut counts = self.inner.lock();
        *counts.errors.entry(reason).or_default() += 1;
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

/// Counters of all stores together.
#[derive(Clone, Debug, Default)]
pub(super) struct StoreCounters(BTreeMap<String, u64>);

impl StoreCounters {
    pub(super) async fn read(target: &Target) -> Self {
        let mut sum = BTreeMap::new();
        for status in target.status().await.unwrap_or_default() {
            for (name, value) in status.counters {
                *sum.entry(name).or_default() += value;
            }
        }
        Self(sum)
    }

    /// A store that restarted counts from 0 again: what it did before is left out.
    pub(super) fn since(&self, before: &Self) -> Self {
        let earlier = |name: &str| before.0.get(name).copied().unwrap_or(0);
        Self(
            self.0
                .iter()
                .map(|(name, now)| (name.clone(), now.saturating_sub(earlier(name))))
                .collect(),
        )
    }

    fn ratio(&self, of: &str, per: &str) -> f64 {
        let value = |name: &str| self.0.get(name).copied().unwrap_or(0) as f64;
        if value(per) > 0.0 {
            value(of) / value(per)
        } else {
            0.0
        }
    }
}

/// Where it ran.
#[derive(Clone, Debug)]
pub(super) struct Environment {
    processors: usize,
    model: String,
    kernel: String,
}

impl Environment {
    pub(super) fn read() -> Self {
        let file = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpu = file("/proc/cpuinfo");
        let model = cpu
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Self {
            processors: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            model: model.map_or_else(|| "unknown".to_owned(), |(_, name)| name.to_owned()),
            kernel: file("/proc/sys/kernel/osrelease").trim().to_owned(),
        }
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
    pub(super) stores: StoreCounters,
    pub(super) leaders: BTreeMap<u64, u64>,
    pub(super) environment: Environment,
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
    fn per_second(&self) -> f64 {
        self.totals.ok() as f64 / self.elapsed.as_secs_f64().max(0.001)
    }

    /// For people.
    pub(crate) fn summary(&self) -> String {
        let (o, e) = (&self.options, &self.environment);
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{name:<18}{value}");
        };
        let shape = o.rate.map_or("closed loop".to_owned(), |rate| {
            format!("open loop at {rate}/s")
        });
        line(
            "load",
            format!(
                "{shape}, {} clients, {} B values, {} groups",
                o.concurrency, o.value_bytes, self.groups
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
            format!(" {:.1}", self.stores.ratio("messages_out", "frames_out")),
        );
        line(
            "per group",
            format!("min {}  max {}", self.per_group_min, self.per_group_max),
        );
        let leaders: Vec<String> = self
            .leaders
            .iter()
            .map(|(s, n)| format!("store {s}: {n}"))
            .collect();
        line("leaders", leaders.join("  "));
        line(
            "environment",
            format!(
                "{} x {}, Linux {}, polyraft {}",
                e.processors,
                e.model,
                e.kernel,
                env!("CARGO_PKG_VERSION")
            ),
        );
        text
    }

    /// For programs.
    pub(crate) fn json(&self) -> Value {
        let latency: BTreeMap<&str, u64> = QUANTILES
            .iter()
            .map(|(name, q)| (*name, self.totals.latency.value_at_quantile(*q)))
            .collect();
        json!({
            "concurrency": self.options.concurrency,
            "rate": self.options.rate,
            "value_bytes": self.options.value_bytes,
            "reads_percent": self.options.reads_percent,
            "zipf": self.options.zipf,
            "groups": self.groups,
            "seconds": self.elapsed.as_secs_f64(),
            "ok": self.totals.ok(),
            "ok_per_second": self.per_second(),
            "latency_us": latency,
            "errors": self.totals.errors,
            "entries_per_fsync": self.stores.ratio("written_entries", "synced_writes"),
            "messages_per_frame": self.stores.ratio("messages_out", "frames_out"),
            "per_group": { "min": self.per_group_min, "max": self.per_group_max },
            "leaders": self.leaders.iter().map(|(s, n)| (s.to_string(), *n)).collect::<BTreeMap<_, _>>(),
            "counters": self.stores.0,
            "environment": {
                "processors": self.environment.processors,
                "model": self.environment.model,
                "kernel": self.environment.kernel,
                "version": env!("CARGO_PKG_VERSION"),
            },
        })
    }
}
