//! Splits per second from one range to many on three store processes, and what a steady load feels of it.
//!
//! `make bench-splits`. Splits are asked for as an operator does, by `polyraft range split` with some
//! keys at a time, halves first, then quarters, and so on. The load keeps a fixed rate, so that its latency
//! can be compared with that before and after.
#![allow(clippy::print_stdout)]

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use clap::Parser;
use polyraft_benches::processes::{Cluster, program};
use serde_json::Value;

#[derive(Debug, Parser)]
#[command(about = "Splits per second from one range to many, under a steady load")]
struct Arguments {
    /// Ranges at the end.
    #[arg(long, default_value_t = 10_000)]
    ranges: u64,
    /// Keys of one command.
    #[arg(long, default_value_t = 100)]
    batch: usize,
    /// Puts per second of the load.
    #[arg(long, default_value_t = 500)]
    rate: u64,
    /// Seconds of the load before and after, and of each of its reports.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Directory on the disk to use.
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    directory: PathBuf,
    /// The program [default: polyraft beside this one].
    #[arg(long)]
    bin: Option<PathBuf>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    ensure!(arguments.ranges > 1, "--ranges must be greater than 1");
    ensure!(arguments.batch > 0, "--batch must be greater than 0");
    let program = program(arguments.bin.as_deref())?;
    let mut cluster = Cluster::start(&program, &arguments.directory, 1)?;
    println!(
        "From 1 range to {}, {} keys a command, three replicas, fsync on, {} puts/s meanwhile:\n",
        arguments.ranges, arguments.batch, arguments.rate
    );
    println!(
        "| | seconds | splits/s | puts/s | p50 ms | p99 ms (median and worst of reports) | errors |"
    );
    println!("|---|---|---|---|---|---|---|");
    // Connections, caches and leaders are warm before anything counts.
    load(&cluster, &arguments)?;
    let before = load(&cluster, &arguments)?;
    row("before", None, &[before]);
    let (took, reports) = split(&cluster, &arguments)?;
    let rate = (arguments.ranges - 1) as f64 / took.as_secs_f64();
    row("splitting", Some((took, rate)), &reports);
    let after = load(&cluster, &arguments)?;
    row("after", None, &[after]);
    let megabytes = |usage: &polyraft_benches::processes::Usage| {
        format!("{:.0}", usage.rss_bytes as f64 / 1048576.0)
    };
    let usage: Vec<String> = cluster.usage()?.iter().map(megabytes).collect();
    println!("\nMiB resident of each store: {}", usage.join(", "));
    Ok(())
}

/// Splits until there are enough ranges, under load; what the load reported meanwhile.
fn split(cluster: &Cluster, arguments: &Arguments) -> Result<(Duration, Vec<Value>)> {
    let keys: Vec<String> = keys(arguments.ranges);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let loaded = scope.spawn(|| {
            let mut reports = Vec::new();
            while !done.load(Ordering::SeqCst) {
                reports.push(load(cluster, arguments)?);
            }
            Ok::<_, anyhow::Error>(reports)
        });
        let begun = Instant::now();
        let result = keys.chunks(arguments.batch).try_for_each(|chunk| {
            let mut command = vec!["range", "split", "--hex"];
            command.extend(chunk.iter().flat_map(|key| ["--at", key]));
            cluster.run(&command).map(drop)
        });
        let took = begun.elapsed();
        done.store(true, Ordering::SeqCst);
        let reports = loaded.join().map_err(|_| anyhow!("the load panicked"))??;
        result.context("a split failed")?;
        Ok((took, reports))
    })
}

/// First keys of so many ranges of equal size but the first, those in the middle of what is left first.
fn keys(ranges: u64) -> Vec<String> {
    let width = ranges.next_power_of_two();
    let bits = width.trailing_zeros();
    let in_order = (1..width).map(|n| n.reverse_bits() >> (64 - bits));
    // Of a number that is no power of two, the last level is there in part.
    let keys = in_order.take(usize::try_from(ranges - 1).unwrap_or(usize::MAX));
    keys.map(|n| format!("{:016x}", n << (64 - bits))).collect()
}

fn load(cluster: &Cluster, arguments: &Arguments) -> Result<Value> {
    cluster.run(&[
        "load",
        "--concurrency",
        "32",
        "--rate",
        &arguments.rate.to_string(),
        "--duration",
        &format!("{}s", arguments.seconds),
    ])
}

fn row(what: &str, split: Option<(Duration, f64)>, reports: &[Value]) {
    let numbers = |at: &dyn Fn(&Value) -> Option<f64>| -> Vec<f64> {
        let mut all: Vec<f64> = reports.iter().filter_map(at).collect();
        all.sort_by(f64::total_cmp);
        all
    };
    let median = |all: &[f64]| all.get(all.len() / 2).copied().unwrap_or(f64::NAN);
    let rate = numbers(&|report| report["ok_per_second"].as_f64());
    let p50 = numbers(&|report| report["latency_us"]["p50"].as_f64());
    let p99 = numbers(&|report| report["latency_us"]["p99"].as_f64());
    let errors: u64 = reports
        .iter()
        .filter_map(|report| report["errors"].as_object())
        .flat_map(|errors| errors.values().filter_map(Value::as_u64))
        .sum();
    let (seconds, splits) = split.map_or(("-".to_owned(), "-".to_owned()), |(took, rate)| {
        (format!("{:.1}", took.as_secs_f64()), format!("{rate:.0}"))
    });
    println!(
        "| {what} | {seconds} | {splits} | {:.0} | {:.2} | {:.2}, {:.2} | {errors} |",
        median(&rate),
        median(&p50) / 1e3,
        median(&p99) / 1e3,
        p99.last().copied().unwrap_or(f64::NAN) / 1e3,
    );
}
