//! The simulated disk keeps the promises of every disk, and shows what only a disk under a
//! simulation can show.

use std::collections::BTreeSet;

use bytes::Bytes;
use polyraft_sim::disk::{CrashKind, DiskFault, SimDisk};
use polyraft_sim::rng::Rng;
use polyraft_store::conformance;
use polyraft_store::disk::{Cf, Change, Disk, DiskError, Durability};

fn write(disk: &SimDisk, name: &str, durability: Durability) -> Result<(), DiskError> {
    let name = Bytes::copy_from_slice(name.as_bytes());
    let change = Change::Put(name, Bytes::new());
    disk.write(vec![(Cf::Log, change)], durability)
}

fn names(disk: &SimDisk) -> String {
    let pairs = disk.contents(Cf::Log);
    let keys = pairs.iter().flat_map(|(key, _)| key.to_vec());
    String::from_utf8(keys.collect()).unwrap()
}

/// What power cuts of disks with the same past leave.
fn outcomes(past: impl Fn(&SimDisk)) -> BTreeSet<String> {
    let crashed = (0..300).map(|seed| {
        let disk = SimDisk::new();
        past(&disk);
        disk.crash(CrashKind::Power, &mut Rng::new(seed));
        names(&disk)
    });
    crashed.collect()
}

fn texts<const N: usize>(texts: [&str; N]) -> BTreeSet<String> {
    texts.map(str::to_owned).into()
}

#[test]
fn it_does_what_a_disk_must() {
    conformance::disk(&SimDisk::new());
    for kind in [CrashKind::Power, CrashKind::Process] {
        for seed in 0..500 {
            conformance::power_cuts(
                SimDisk::new,
                |disk, rng| {
                    disk.crash(kind, &mut Rng::new(rng.bits()));
                    disk
                },
                seed,
            );
        }
    }
}

#[test]
fn a_power_cut_keeps_any_prefix_of_what_is_not_synced() {
    let found = outcomes(|disk| {
        write(disk, "a", Durability::Buffered).unwrap();
        write(disk, "b", Durability::Synced).unwrap();
        write(disk, "c", Durability::Buffered).unwrap();
        write(disk, "d", Durability::Buffered).unwrap();
    });
    assert_eq!(found, texts(["ab", "abc", "abcd"]));
    let found = outcomes(|disk| {
        write(disk, "a", Durability::Volatile).unwrap();
        write(disk, "b", Durability::Volatile).unwrap();
    });
    assert_eq!(found, texts(["", "a", "ab"]));
}

#[test]
fn the_crash_of_a_process_keeps_what_went_through_the_log() {
    for seed in 0..50 {
        let disk = SimDisk::new();
        write(&disk, "a", Durability::Buffered).unwrap();
        write(&disk, "b", Durability::Buffered).unwrap();
        disk.crash(CrashKind::Process, &mut Rng::new(seed));
        assert_eq!(names(&disk), "ab");
    }
}

#[test]
fn a_sync_that_takes_a_while_is_certain_when_it_is_complete() {
    let begin = |disk: &SimDisk| {
        let ((), mark) = disk.deferred(|| write(disk, "a", Durability::Synced).unwrap());
        write(disk, "b", Durability::Buffered).unwrap();
        mark
    };
    let found = outcomes(|disk| {
        begin(disk);
    });
    assert_eq!(found, texts(["", "a", "ab"]));
    let found = outcomes(|disk| {
        let mark = begin(disk);
        disk.complete(mark.expect("it asked for a sync"));
    });
    assert_eq!(found, texts(["a", "ab"]));
    // One that does not wait covers those before it.
    let found = outcomes(|disk| {
        begin(disk);
        write(disk, "c", Durability::Synced).unwrap();
    });
    assert_eq!(found, texts(["abc"]));
}

#[test]
fn faults_do_what_they_say() {
    let found = outcomes(|disk| {
        write(disk, "a", Durability::Synced).unwrap();
        disk.set_fault(Some(DiskFault::Full));
        for durability in [Durability::Synced, Durability::Volatile] {
            assert_eq!(write(disk, "b", durability), Err(DiskError::Full));
        }
        disk.set_fault(None);
        write(disk, "c", Durability::Synced).unwrap();
    });
    assert_eq!(found, texts(["ac"]));
    let found = outcomes(|disk| {
        write(disk, "a", Durability::Synced).unwrap();
        disk.set_fault(Some(DiskFault::SyncFails));
        write(disk, "b", Durability::Buffered).unwrap();
        // It is told that it failed; nobody knows what is on the disk.
        assert!(matches!(
            write(disk, "c", Durability::Synced),
            Err(DiskError::Fatal(_))
        ));
        assert!(matches!(
            write(disk, "d", Durability::Buffered),
            Err(DiskError::Fatal(_))
        ));
        assert!(matches!(disk.flush(Cf::Log), Err(DiskError::Fatal(_))));
    });
    assert_eq!(found, texts(["a", "ab", "abc"]));
}

#[test]
fn a_flipped_bit_is_one_bit_and_stays() {
    let disk = SimDisk::new();
    let change = Change::Put(Bytes::from_static(b"k"), Bytes::from_static(b"value"));
    disk.write(vec![(Cf::Log, change)], Durability::Synced)
        .unwrap();
    let key = disk.flip_bit(Cf::Log, &mut Rng::new(1));
    assert_eq!(key.as_deref(), Some(b"k".as_slice()));
    let different = || {
        let found = disk.get(Cf::Log, b"k").unwrap().unwrap();
        let pairs = found.iter().zip(b"value");
        pairs
            .map(|(one, two)| (one ^ two).count_ones())
            .sum::<u32>()
    };
    assert_eq!(different(), 1);
    disk.crash(CrashKind::Power, &mut Rng::new(1));
    assert_eq!(different(), 1);
    assert_eq!(disk.flip_bit(Cf::Meta, &mut Rng::new(1)), None);
}
