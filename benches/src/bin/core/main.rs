//! Proposals per second of one group of three replicas in memory: our core beside the `raft` crate,
//! in the same loop. No disk, no network, no threads: what is measured is the state machine alone.
//!
//! Sketch: a proposal of 128 bytes costs an append on three replicas, two messages each way and
//! three applies; at batches of 128 the fixed cost of a round vanishes and what remains is a few
//! hundred nanoseconds of moving entries about.
//!
//! ```text
//! core                       rounds of both in turn, medians and spread
//! core --instructions        instructions per proposal of both, counted by valgrind
//! core --only ours --rounds 20000 --batch 16     a fixed amount of work, to be profiled
//! ```
//!
//! Instructions do not depend on what else the machine does, so they are the figure to compare
//! between days; a time is to be compared within one run only.

mod instructions;
mod ours;
#[cfg(feature = "peers")]
mod peer;

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Bytes per proposal.
const PAYLOAD_BYTES: usize = 128;
/// Batches measured.
const BATCHES: [usize; 3] = [1, 16, 128];
/// How long one measurement lasts.
const ROUND: Duration = Duration::from_millis(700);
/// Measurements of each side; an odd number, so that there is a median.
const ROUNDS: usize = 7;

/// A group of three replicas in one thread.
trait Group {
    /// Proposes `batch` payloads on the leader and moves messages until all are applied everywhere.
    fn round(&mut self, batch: usize);
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.as_slice() {
        [] => compare(),
        [only] if only == "--instructions" => instructions::compare(),
        [only, side, rounds, n, batch, m]
            if only == "--only" && rounds == "--rounds" && batch == "--batch" =>
        {
            fixed(side, n.parse()?, m.parse()?)
        }
        _ => bail!("usage: core [--instructions | --only ours|peer --rounds N --batch M]"),
    }
}

#[expect(clippy::print_stdout, reason = "a benchmark prints its figures")]
fn compare() -> Result<()> {
    println!(
        "3 replicas in memory, {PAYLOAD_BYTES}-byte proposals, {ROUNDS} rounds of {ROUND:?} in turn, \
         by time on the processor"
    );
    println!(
        "| batch | ours, proposals/s (min..max) | ns each | raft 0.7, proposals/s (min..max) | ratio |"
    );
    println!("|---|---|---|---|---|");
    for batch in BATCHES {
        let (mut ours, mut peers) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            ours.push(rate(&mut ours::Ours::new()?, batch));
            #[cfg(feature = "peers")]
            peers.push(rate(&mut peer::Peer::new()?, batch));
        }
        let (low, mid, high) = spread(&mut ours);
        let each = 1e9 / mid;
        if peers.is_empty() {
            println!(
                "| {batch} | {mid:.0} ({low:.0}..{high:.0}) | {each:.0} | (build with --features peers) | |"
            );
            continue;
        }
        let (peer_low, peer_mid, peer_high) = spread(&mut peers);
        println!(
            "| {batch} | {mid:.0} ({low:.0}..{high:.0}) | {each:.0} | {peer_mid:.0} ({peer_low:.0}..{peer_high:.0}) | {:.2} |",
            mid / peer_mid
        );
    }
    Ok(())
}

/// The same work every time, so that instructions can be counted.
fn fixed(side: &str, rounds: usize, batch: usize) -> Result<()> {
    let mut group: Box<dyn Group> = match side {
        "ours" => Box::new(ours::Ours::new()?),
        #[cfg(feature = "peers")]
        "peer" => Box::new(peer::Peer::new()?),
        _ => bail!("unknown side {side}"),
    };
    for _ in 0..rounds {
        group.round(batch);
    }
    Ok(())
}

fn rate(group: &mut impl Group, batch: usize) -> f64 {
    for _ in 0..200 {
        group.round(batch);
    }
    let (start, before) = (Instant::now(), processor_time());
    let mut proposals = 0usize;
    while start.elapsed() < ROUND {
        for _ in 0..16 {
            group.round(batch);
        }
        proposals += 16 * batch;
    }
    let took = match (before, processor_time()) {
        (Some(before), Some(after)) if after > before => after - before,
        _ => start.elapsed(),
    };
    proposals as f64 / took.as_secs_f64()
}

/// How long this thread has had a processor, where the system tells (Linux): what others do on the
/// machine is not in it, but for the caches.
fn processor_time() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    let nanos = text.split_whitespace().next()?.parse().ok()?;
    Some(Duration::from_nanos(nanos))
}

fn spread(values: &mut [f64]) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    (
        values[0],
        values[values.len() / 2],
        values[values.len() - 1],
    )
}
