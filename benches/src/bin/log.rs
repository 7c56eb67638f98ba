//! Synced entries per second of the durable log: one writer, 1,024 groups, 256-byte payloads,
//! truncation as the log moves on. Ours on RocksDB, beside `raft-engine` (feature `peers`) and
//! beside the floor: an append and an `fdatasync` of as many bytes.
//!
//! Sketch: the sync of a small batch costs about 100 us here, so that one entry per batch is bound
//! by the disk and all sides are alike; from 64 entries on, what counts is the work per entry
//! beside its bytes.
//!
//! The processor's time of the writing thread is printed as well: it says what an engine costs even
//! when others use the same disk or processor. Linux only.
//!
//! ```text
//! log [DIRECTORY]            on the disk that holds DIRECTORY (default: that of temporary files)
//! ```

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use bytes::Bytes;
use polyraft_core::{Entry, EntryId, EntryKind, Index, ReplicaId, Term};
use polyraft_multiraft::GroupId;
use polyraft_multiraft::env::{Lifecycle, LogBatch, LogEngine, LogSection};
use polyraft_store::{RaftLog, RocksDisk, Store, StoreOptions};

/// Groups that take turns; a batch has one entry of each of the next few.
const GROUPS: u64 = 1024;
/// Bytes of one entry's payload.
const PAYLOAD_BYTES: usize = 256;
/// Entries per batch, measured in turn.
const BATCHES: [u64; 4] = [1, 8, 64, 512];
/// How long one measurement lasts.
const ROUND: Duration = Duration::from_secs(2);
/// Measurements of each side; an odd number, so that there is a median.
const ROUNDS: usize = 5;
/// A group that has more entries than this is truncated ...
const ENTRIES_MAX: u64 = 64;
/// ... to the last so many.
const ENTRIES_KEPT: u64 = 32;
/// Batches between two steps of housekeeping, which counts as part of the batch before it.
const HOUSEKEEPING_EVERY: u64 = 1000;

/// What one entry of a batch is: its group, its index, and up to where its group is truncated with it.
struct Item {
    group: u64,
    index: u64,
    truncate: Option<u64>,
}

/// A durable log under test.
trait Side {
    fn name(&self) -> &'static str;
    /// Makes the entries durable; returns after the sync.
    fn write(&mut self, items: &[Item]) -> Result<()>;
    /// What a background thread would do now and then.
    fn housekeeping(&mut self) -> Result<()>;
}

struct Ours {
    log: std::sync::Arc<RaftLog<RocksDisk>>,
    payload: Bytes,
}

impl Ours {
    fn open(path: &Path) -> Result<Self> {
        let log = Store::open(path, StoreOptions::default())?.log();
        log.recover()?;
        let sections = (0..GROUPS)
            .map(|group| LogSection {
                group: GroupId(group),
                lifecycle: Some(Lifecycle::Create {
                    replica: ReplicaId(1),
                }),
                ..LogSection::default()
            })
            .collect();
        let _receipt = log.write(&LogBatch {
            sync: true,
            sections,
        })?;
        let payload = Bytes::from(vec![b'x'; PAYLOAD_BYTES]);
        Ok(Self { log, payload })
    }
}

impl Side for Ours {
    fn name(&self) -> &'static str {
        "polyraft-store"
    }

    fn write(&mut self, items: &[Item]) -> Result<()> {
        let section = |item: &Item| LogSection {
            group: GroupId(item.group),
            entries: vec![Entry {
                term: Term(1),
                index: Index(item.index),
                kind: EntryKind::Normal,
                data: self.payload.clone(),
            }],
            truncate: item.truncate.map(|index| EntryId::new(1, index)),
            ..LogSection::default()
        };
        let sections = items.iter().map(section).collect();
        let _receipt = self.log.write(&LogBatch {
            sync: true,
            sections,
        })?;
        Ok(())
    }

    fn housekeeping(&mut self) -> Result<()> {
        self.log.maintain()?;
        Ok(())
    }
}

/// The same bytes appended to a file and synced: what the disk alone allows.
struct Floor {
    file: File,
    buffer: Vec<u8>,
}

impl Floor {
    fn open(path: &Path) -> Result<Self> {
        let (file, buffer) = (File::create(path)?, Vec::new());
        Ok(Self { file, buffer })
    }
}

impl Side for Floor {
    fn name(&self) -> &'static str {
        "fdatasync"
    }

    fn write(&mut self, items: &[Item]) -> Result<()> {
        self.buffer.resize(items.len() * PAYLOAD_BYTES, b'x');
        self.file.write_all(&self.buffer)?;
        Ok(self.file.sync_data()?)
    }

    fn housekeeping(&mut self) -> Result<()> {
        Ok(())
    }
}

#[cfg(feature = "peers")]
mod peer {
    //! `raft-engine` 0.4.2 with its default settings.

    use raft::eraftpb;
    use raft_engine::{Config, Engine, MessageExt};

    use super::{Item, PAYLOAD_BYTES, Path, Result, Side};

    pub(super) struct Peer {
        engine: Engine,
        batch: raft_engine::LogBatch,
    }

    struct Typed;

    impl MessageExt for Typed {
        type Entry = eraftpb::Entry;

        fn index(entry: &Self::Entry) -> u64 {
            entry.index
        }
    }

    impl Peer {
        pub(super) fn open(path: &Path) -> Result<Self> {
            let dir = path.display().to_string();
            let engine = Engine::open(Config {
                dir,
                ..Config::default()
            })?;
            let batch = raft_engine::LogBatch::default();
            Ok(Self { engine, batch })
        }
    }

    impl Side for Peer {
        fn name(&self) -> &'static str {
            "raft-engine 0.4.2"
        }

        fn write(&mut self, items: &[Item]) -> Result<()> {
            for item in items {
                let entry = eraftpb::Entry {
                    term: 1,
                    index: item.index,
                    data: vec![b'x'; PAYLOAD_BYTES].into(),
                    ..eraftpb::Entry::default()
                };
                // Group 0 is not allowed there.
                self.batch.add_entries::<Typed>(item.group + 1, &[entry])?;
                if let Some(index) = item.truncate {
                    // Exclusive there.
                    let compact = raft_engine::Command::Compact { index: index + 1 };
                    self.batch.add_command(item.group + 1, compact);
                }
            }
            self.engine.write(&mut self.batch, true)?;
            Ok(())
        }

        fn housekeeping(&mut self) -> Result<()> {
            self.engine.purge_expired_files()?;
            Ok(())
        }
    }
}

/// One side with the position of each of its groups.
struct Runner {
    side: Box<dyn Side>,
    /// Per group: the last index and the truncation mark.
    groups: Vec<(u64, u64)>,
    turn: u64,
    batches: u64,
}

/// What one measurement found.
#[derive(Clone, Copy)]
struct Figures {
    entries_per_second: f64,
    p50: Duration,
    p99: Duration,
    /// Of the writing thread, per entry.
    cpu: Duration,
}

/// How long this thread has been on a processor.
fn cpu_time() -> Result<Duration> {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanos = stat.split(' ').next().unwrap_or_default();
    Ok(Duration::from_nanos(nanos.parse()?))
}

impl Runner {
    fn new(side: Box<dyn Side>) -> Self {
        let groups = vec![(0, 0); usize::try_from(GROUPS).expect("few")];
        Self {
            side,
            groups,
            turn: 0,
            batches: 0,
        }
    }

    fn next_batch(&mut self, entries: u64, items: &mut Vec<Item>) {
        items.clear();
        for _ in 0..entries {
            let group = self.turn % GROUPS;
            self.turn += 1;
            let (last, truncated) = &mut self.groups[usize::try_from(group).expect("few")];
            *last += 1;
            let mut truncate = None;
            if *last - *truncated > ENTRIES_MAX {
                *truncated = *last - ENTRIES_KEPT;
                truncate = Some(*truncated);
            }
            items.push(Item {
                group,
                index: *last,
                truncate,
            });
        }
    }

    fn measure(&mut self, entries: u64) -> Result<Figures> {
        let (mut items, mut times) = (Vec::new(), Vec::new());
        let (start, cpu_start) = (Instant::now(), cpu_time()?);
        while start.elapsed() < ROUND {
            self.next_batch(entries, &mut items);
            let before = Instant::now();
            self.side.write(&items)?;
            self.batches += 1;
            if self.batches.is_multiple_of(HOUSEKEEPING_EVERY) {
                self.side.housekeeping()?;
            }
            times.push(before.elapsed());
        }
        let seconds = start.elapsed().as_secs_f64();
        let cpu = cpu_time()?.saturating_sub(cpu_start);
        let count = times.len();
        times.sort_unstable();
        Ok(Figures {
            entries_per_second: (count as u64 * entries) as f64 / seconds,
            p50: times[count / 2],
            p99: times[count * 99 / 100],
            cpu: cpu.div_f64((count as u64 * entries) as f64),
        })
    }
}

fn sides(dir: &Path) -> Result<Vec<Runner>> {
    let mut sides: Vec<Box<dyn Side>> = vec![
        Box::new(Ours::open(&dir.join("ours"))?),
        Box::new(Floor::open(&dir.join("floor"))?),
    ];
    #[cfg(feature = "peers")]
    sides.insert(1, Box::new(peer::Peer::open(&dir.join("peer"))?));
    Ok(sides.drain(..).map(Runner::new).collect())
}

/// The median and the spread of one figure over the rounds.
fn summary(rounds: &[Figures], figure: impl Fn(&Figures) -> f64) -> (f64, f64, f64) {
    let mut found: Vec<f64> = rounds.iter().map(figure).collect();
    found.sort_by(f64::total_cmp);
    (found[found.len() / 2], found[0], found[found.len() - 1])
}

#[expect(clippy::print_stdout, reason = "a benchmark prints its figures")]
fn main() -> Result<()> {
    let args: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let parent = match args.as_slice() {
        [] => std::env::temp_dir(),
        [directory] => directory.clone(),
        _ => bail!("usage: log [DIRECTORY]"),
    };
    println!(
        "one writer, every batch synced, {GROUPS} groups, {PAYLOAD_BYTES}-byte payloads, {ROUNDS} rounds of {ROUND:?} in turn"
    );
    println!(
        "| entries per batch | log | entries/s (min..max) | p50 us | p99 us (min..max) | CPU ns/entry |"
    );
    println!("|---|---|---|---|---|---|");
    for entries in BATCHES {
        let dir = tempfile::tempdir_in(&parent)?;
        let mut sides = sides(dir.path())?;
        let mut figures = vec![Vec::new(); sides.len()];
        for _ in 0..ROUNDS {
            for (side, figures) in sides.iter_mut().zip(&mut figures) {
                figures.push(side.measure(entries)?);
            }
        }
        for (side, figures) in sides.iter().zip(&figures) {
            let (rate, low, high) = summary(figures, |f| f.entries_per_second);
            let (p50, _, _) = summary(figures, |f| f.p50.as_secs_f64() * 1e6);
            let (p99, best, worst) = summary(figures, |f| f.p99.as_secs_f64() * 1e6);
            let (cpu, _, _) = summary(figures, |f| f.cpu.as_secs_f64() * 1e9);
            println!(
                "| {entries} | {} | {rate:.0} ({low:.0}..{high:.0}) | {p50:.0} | {p99:.0} ({best:.0}..{worst:.0}) | {cpu:.0} |",
                side.side.name()
            );
        }
    }
    Ok(())
}
