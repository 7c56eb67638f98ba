//! Instructions per proposal: this program again, under valgrind, with a fixed amount of work.
//!
//! Each side is counted with some rounds and with twice as many. The difference is what the added
//! rounds took, so starting, electing and growing to the usual sizes do not count.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{BATCHES, PAYLOAD_BYTES};

/// Proposals in the shorter of two runs, about; a multiple of 64 rounds, after which logs are cut.
const PROPOSALS: usize = 4096;

#[expect(clippy::print_stdout, reason = "a benchmark prints its figures")]
pub(crate) fn compare() -> Result<()> {
    let peers = cfg!(feature = "peers");
    println!("3 replicas in memory, {PAYLOAD_BYTES}-byte proposals, instructions per proposal");
    println!("| batch | ours | raft 0.7 | ratio |");
    println!("|---|---|---|---|");
    for batch in BATCHES {
        let ours = per_proposal("ours", batch)?;
        if peers {
            let peer = per_proposal("peer", batch)?;
            let ratio = peer / ours;
            println!("| {batch} | {ours:.0} | {peer:.0} | {ratio:.2} |");
        } else {
            println!("| {batch} | {ours:.0} | (build with --features peers) | |");
        }
    }
    Ok(())
}

fn per_proposal(side: &str, batch: usize) -> Result<f64> {
    let rounds = (PROPOSALS / batch).next_multiple_of(64);
    let (one, two) = (count(side, rounds, batch)?, count(side, 2 * rounds, batch)?);
    ensure!(two > one, "twice the rounds took no more instructions");
    Ok((two - one) as f64 / (rounds * batch) as f64)
}

/// Instructions of one whole run.
fn count(side: &str, rounds: usize, batch: usize) -> Result<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe()?)
        .args(["--only", side])
        .args(["--rounds", &rounds.to_string()])
        .args(["--batch", &batch.to_string()])
        .output()
        .context("valgrind does not start (apt install valgrind)")?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the counted run failed: {text}");
    collected(&text).with_context(|| format!("valgrind gave no count: {text}"))
}

/// `==123== Collected : 4567`
fn collected(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.contains("Collected"))?;
    line.split_whitespace().last()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::collected;

    #[test]
    fn valgrinds_words_are_understood() {
        let text = "==7== Events    : Ir\n==7== Collected : 83008687\n==7==\n";
        assert_eq!(collected(text), Some(83_008_687));
        assert_eq!(collected("==7== no such tool"), None);
    }
}
