//! Puts per second through gRPC: three store processes on this machine, fsync on, by clients and groups.
//!
//! `make bench-puts`; with `BENCH_ARGS=--etcd` beside etcd's three processes in the same run. Clients,
//! stores and etcd share the machine's cores; each cluster runs alone.
#![allow(clippy::print_stdout)]

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Parser;
use polyraft_benches::etcd::Etcd;
use polyraft_benches::processes::{Cluster, program};

#[derive(Debug, Parser)]
#[command(about = "Puts per second of three processes, by clients and groups")]
struct Arguments {
    /// Numbers of clients, each with one request under way.
    #[arg(long, value_delimiter = ',', default_value = "1,16,64,256,1000")]
    clients: Vec<usize>,
    /// Numbers of groups.
    #[arg(long, value_delimiter = ',', default_value = "1,100,1000")]
    groups: Vec<u64>,
    /// Bytes of a value.
    #[arg(long, default_value_t = 128)]
    value_bytes: usize,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Measure etcd too (from PATH).
    #[arg(long)]
    etcd: bool,
    /// Directory on the disk to use.
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    directory: PathBuf,
    /// The program [default: polyraft beside this one].
    #[arg(long)]
    bin: Option<PathBuf>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let program = program(arguments.bin.as_deref())?;
    println!(
        "Values of {} bytes, three replicas, fsync on, {} s each:\n",
        arguments.value_bytes, arguments.seconds
    );
    println!(
        "| system | groups | clients | puts/s | p50 ms | p99 ms | entries per fsync | of etcd | errors |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    let etcd = if arguments.etcd {
        measure_etcd(&arguments)?
    } else {
        Vec::new()
    };
    for &groups in &arguments.groups {
        let cluster = Cluster::start(&program, &arguments.directory, groups)?;
        // Connections, caches and leaders are warm before anything counts.
        load(&cluster, &arguments, 64, 2)?;
        for &clients in &arguments.clients {
            let report = load(&cluster, &arguments, clients, arguments.seconds)?;
            let number = |value: &serde_json::Value| value.as_f64().unwrap_or(f64::NAN);
            let per_second = number(&report["ok_per_second"]);
            let errors: u64 = report["errors"]
                .as_object()
                .map_or(0, |e| e.values().filter_map(|n| n.as_u64()).sum());
            let other = etcd.iter().find(|(others, _)| *others == clients);
            println!(
                "| polyraft | {groups} | {clients} | {per_second:.0} | {:.2} | {:.2} | {:.1} | {} | {errors} |",
                number(&report["latency_us"]["p50"]) / 1e3,
                number(&report["latency_us"]["p99"]) / 1e3,
                number(&report["entries_per_fsync"]),
                other.map_or("-".to_owned(), |(_, etcd)| format!(
                    "{:.2}",
                    per_second / etcd
                )),
            );
        }
    }
    Ok(())
}

fn load(
    cluster: &Cluster,
    arguments: &Arguments,
    clients: usize,
    seconds: u64,
) -> Result<serde_json::Value> {
    cluster.run(&[
        "load",
        "--concurrency",
        &clients.to_string(),
        "--duration",
        &format!("{seconds}s"),
        "--value-bytes",
        &arguments.value_bytes.to_string(),
    ])
}

/// Clients and puts per second.
fn measure_etcd(arguments: &Arguments) -> Result<Vec<(usize, f64)>> {
    ensure!(arguments.seconds > 0, "--seconds must be greater than 0");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut etcd = Etcd::start(&arguments.directory)?;
        etcd.puts(64, arguments.value_bytes, Duration::from_secs(2))
            .await?;
        let mut all = Vec::new();
        for &clients in &arguments.clients {
            let duration = Duration::from_secs(arguments.seconds);
            let figures = etcd.puts(clients, arguments.value_bytes, duration).await?;
            println!(
                "| etcd | 1 | {clients} | {:.0} | {:.2} | {:.2} | - | 1 | {} |",
                figures.per_second,
                figures.p50 as f64 / 1e3,
                figures.p99 as f64 / 1e3,
                figures.failed
            );
            all.push((clients, figures.per_second));
        }
        Ok(all)
    })
}
