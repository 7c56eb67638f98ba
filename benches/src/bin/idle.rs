//! What three stores cost that have nothing to do: processor time and memory by number of groups.
//!
//! `make bench-idle`, or with other numbers `make bench-idle BENCH_ARGS="--groups 1,1000,10000 --window 60"`.
#![allow(clippy::print_stdout)]

use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Parser;
use polyraft_benches::processes::{Cluster, program};

#[derive(Debug, Parser)]
#[command(about = "Processor time and memory of three idle stores")]
struct Arguments {
    /// Numbers of groups; the first is what the others are compared with.
    #[arg(long, value_delimiter = ',', default_value = "1,100,1000", value_parser = clap::value_parser!(u64).range(1..))]
    groups: Vec<u64>,
    /// Seconds of rest before the measurement: leaders settle, groups fall asleep.
    #[arg(long, default_value_t = 15)]
    settle: u64,
    /// Seconds of the measurement.
    #[arg(long, default_value_t = 20)]
    window: u64,
    /// Directory on the disk to use.
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    directory: PathBuf,
    /// The program [default: polyraft beside this one].
    #[arg(long)]
    bin: Option<PathBuf>,
}

/// Means over the three stores.
#[derive(Clone, Copy, Debug)]
struct Figures {
    /// Seconds of processor time per second.
    cpu: f64,
    /// Bytes.
    rss: f64,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let program = program(arguments.bin.as_deref())?;
    println!("Each of three idle stores, over {} s:\n", arguments.window);
    println!(
        "| groups | CPU, % of one core | RSS, MiB | CPU per added group, us/s | RSS per added group, KiB |"
    );
    println!("|---|---|---|---|---|");
    let mut first = None;
    for &groups in &arguments.groups {
        let mut cluster = Cluster::start(&program, &arguments.directory, groups)?;
        sleep(Duration::from_secs(arguments.settle));
        let figures = measure(&mut cluster, Duration::from_secs(arguments.window))?;
        let (base_groups, base) = *first.get_or_insert((groups, figures));
        let added = groups.saturating_sub(base_groups);
        let per_group = |of: fn(&Figures) -> f64, unit: f64| match added {
            0 => "-".to_owned(),
            _ => format!("{:.2}", (of(&figures) - of(&base)) / added as f64 * unit),
        };
        println!(
            "| {groups} | {:.2} | {:.1} | {} | {} |",
            figures.cpu * 100.0,
            figures.rss / f64::from(1 << 20),
            per_group(|f| f.cpu, 1e6),
            per_group(|f| f.rss, 1.0 / 1024.0),
        );
    }
    Ok(())
}

fn measure(cluster: &mut Cluster, window: Duration) -> Result<Figures> {
    let (begun, before) = (Instant::now(), cluster.usage()?);
    sleep(window);
    let (after, seconds) = (cluster.usage()?, begun.elapsed().as_secs_f64());
    let stores = after.len() as f64;
    let cpu: f64 = before
        .iter()
        .zip(&after)
        .map(|(before, after)| after.cpu_seconds - before.cpu_seconds)
        .sum();
    let rss: f64 = after.iter().map(|usage| usage.rss_bytes as f64).sum();
    Ok(Figures {
        cpu: cpu / seconds / stores,
        rss: rss / stores,
    })
}
