//! How fast snapshots come in and are installed, in chunks and in files, by their size:
//!
//! ```text
//! scripts/with-rocksdb cargo run --profile sim -p polyraft-store --example snapshots -- [directory]
//! ```
//!
//! `fresh`: nothing was in the range; `again`: an older state of the same keys.

#![expect(clippy::print_stdout, reason = "a report")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use polyraft_core::EntryId;
use polyraft_multiraft::env::{ApplyItem, Command, StateMachine, StateMachineError};
use polyraft_multiraft::{AppliedState, GroupDescriptor, GroupId, KeyRange};
use polyraft_store::disk::DiskError;
use polyraft_store::{
    Application, DataStateMachine, GroupTxn, MemoryDisk, RocksDisk, SnapshotOptions,
};

/// A command sets so many keys as its first four bytes say.
struct Fill;

const VALUE: usize = 400;

impl Application for Fill {
    fn apply(&self, txn: &mut GroupTxn<'_>, command: &Command) -> Result<Bytes, DiskError> {
        let count = command
            .data
            .first_chunk()
            .map_or(0, |n| u32::from_be_bytes(*n));
        let start = txn.descriptor().range.as_ref().map(|r| r.start.clone());
        let start = start.unwrap_or_default();
        for key in 0..count {
            // Half of it is as good as random.
            let mut value = vec![b'v'; VALUE];
            let mut seed = u64::from(key) + 1;
            for byte in value.iter_mut().take(VALUE / 2) {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                *byte = (seed >> 56) as u8;
            }
            let key = [&start[..], &key.to_be_bytes()].concat();
            txn.put(&key, value.into())?;
        }
        Ok(Bytes::new())
    }
}

fn state(group: u64, index: u64) -> AppliedState {
    let descriptor = GroupDescriptor {
        group: GroupId(group),
        range: Some(KeyRange {
            start: Bytes::copy_from_slice(&group.to_be_bytes()),
            end: Some(Bytes::copy_from_slice(&(group + 1).to_be_bytes())),
        }),
        ..GroupDescriptor::default()
    };
    AppliedState {
        last: EntryId::new(1, index),
        descriptor: Arc::new(descriptor),
        ..AppliedState::default()
    }
}

/// The chunks of a group of about so many bytes.
fn chunks(group: u64, bytes: usize) -> Result<Vec<Bytes>, StateMachineError> {
    let from = DataStateMachine::new(Fill, MemoryDisk::new());
    from.create(&state(group, 2))?;
    let count = u32::try_from(bytes / (VALUE + 12)).unwrap_or(u32::MAX);
    from.apply(&mut [ApplyItem {
        group: GroupId(group),
        commands: vec![Command {
            id: EntryId::new(1, 3),
            data: Bytes::copy_from_slice(&count.to_be_bytes()),
        }],
        state: state(group, 3),
        membership_changed: false,
        range_change: None,
        replies: Vec::new(),
    }])?;
    let mut source = from.snapshot(GroupId(group))?;
    let mut chunks = Vec::new();
    while let Some(chunk) = source.next_chunk(64 << 10)? {
        chunks.push(chunk);
    }
    Ok(chunks)
}

/// Receives and installs snapshots of groups; bytes per second.
fn run<D: polyraft_store::disk::Disk + Clone>(
    to: &DataStateMachine<Fill, D>,
    groups: &[(u64, Vec<Bytes>)],
) -> Result<f64, StateMachineError> {
    let (start, mut bytes) = (Instant::now(), 0);
    for (group, chunks) in groups {
        let mut sink = to.stage(&state(*group, 3))?;
        for chunk in chunks {
            bytes += chunk.len();
            sink.write(chunk.clone())?;
        }
        to.restore(&sink.finish()?)?;
    }
    Ok(bytes as f64 / start.elapsed().as_secs_f64())
}

fn measure(directory: &Path, bytes: usize, count: u64) -> Result<(), StateMachineError> {
    let all = 0..count;
    let groups: Result<Vec<_>, _> = all.map(|n| Ok((n + 1, chunks(n + 1, bytes)?))).collect();
    let groups = groups?;
    for (name, small_bytes_max) in [("chunks", usize::MAX), ("files", 0)] {
        let path = directory.join(format!("{bytes}-{name}"));
        let fatal = |error: DiskError| StateMachineError::Fatal(error.to_string());
        let disk = RocksDisk::open(&path, Default::default()).map_err(fatal)?;
        let options = SnapshotOptions {
            small_bytes_max,
            ..SnapshotOptions::default()
        };
        let to = DataStateMachine::with_snapshots(Fill, disk, options);
        let (fresh, again) = (run(&to, &groups)?, run(&to, &groups)?);
        println!(
            "{:>9} KiB x {count:<4} {name:<7} fresh {:>6.1} MB/s {:>8.2} ms   again {:>6.1} MB/s {:>8.2} ms",
            bytes >> 10,
            fresh / 1e6,
            bytes as f64 / fresh * 1e3,
            again / 1e6,
            bytes as f64 / again * 1e3,
        );
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = std::env::args_os().nth(1).map(PathBuf::from);
    let directory = directory.unwrap_or_else(|| std::env::temp_dir().join("polyraft-snapshots"));
    for (kib, count) in [
        (4, 400),
        (64, 200),
        (256, 100),
        (1024, 50),
        (16 << 10, 8),
        (256 << 10, 1),
    ] {
        measure(&directory, kib << 10, count)?;
    }
    std::fs::remove_dir_all(&directory)?;
    Ok(())
}
