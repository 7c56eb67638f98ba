//! What every disk must do, on all of them; and what only the model can show: what a crash keeps.

use bytes::Bytes;
use polyraft_store::disk::{Cf, Change, Disk, Durability};
use polyraft_store::{MemoryDisk, conformance};

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn put(cf: Cf, key: &str, value: &str) -> (Cf, Change) {
    (cf, Change::Put(bytes(key), bytes(value)))
}

fn all(disk: &impl Disk, cf: Cf) -> String {
    let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    let pairs = disk.scan(cf, b"", None, usize::MAX).unwrap();
    let pairs = pairs
        .iter()
        .map(|(key, value)| format!("{}={}", text(key), text(value)));
    pairs.collect::<Vec<_>>().join(" ")
}

#[test]
fn the_modelled_disk_does_what_a_disk_must() {
    conformance::disk(&MemoryDisk::new());
    for seed in 0..500 {
        conformance::power_cuts(
            MemoryDisk::new,
            |disk, rng| disk.crash(usize::try_from(rng.below(9)).unwrap()),
            seed,
        );
    }
}

#[test]
fn a_power_cut_keeps_what_is_synced_and_a_prefix_of_the_rest() {
    let disk = MemoryDisk::new();
    let write = |n: &str, durability| {
        disk.write(vec![put(Cf::Log, n, ""), put(Cf::State, n, "")], durability)
            .unwrap();
    };
    write("1", Durability::Buffered);
    write("2", Durability::Synced);
    write("3", Durability::Buffered);
    write("4", Durability::Volatile);
    write("5", Durability::Buffered);
    let after = |keep| {
        let disk = disk.crash(keep);
        assert_eq!(all(&disk, Cf::Log), all(&disk, Cf::State));
        all(&disk, Cf::Log)
    };
    assert_eq!(after(0), "1= 2=");
    assert_eq!(after(1), "1= 2= 3=");
    assert_eq!(after(9), "1= 2= 3= 5=");
}

#[test]
fn a_flush_keeps_volatile_writes_before_it() {
    let disk = MemoryDisk::new();
    let write = |n: &str| {
        disk.write(vec![put(Cf::Data, n, "")], Durability::Volatile)
            .unwrap();
    };
    write("1");
    disk.flush(Cf::Meta).unwrap();
    assert_eq!(all(&disk.crash(9), Cf::Data), "");
    disk.flush(Cf::Data).unwrap();
    write("2");
    assert_eq!(all(&disk.crash(9), Cf::Data), "1=");
}

#[cfg(feature = "rocksdb")]
mod rocks {
    use polyraft_store::disk::DiskError;
    use polyraft_store::{RocksDisk, RocksOptions, Store, StoreOptions};

    use super::*;

    #[test]
    fn rocksdb_does_what_a_disk_must() {
        let dir = tempfile::tempdir().unwrap();
        conformance::disk(&RocksDisk::open(dir.path(), RocksOptions::default()).unwrap());
    }

    #[test]
    fn what_was_written_is_there_after_a_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RocksDisk::open(dir.path(), RocksOptions::default()).unwrap();
        disk.write(vec![put(Cf::Data, "v", "1")], Durability::Volatile)
            .unwrap();
        disk.flush(Cf::Data).unwrap();
        disk.write(vec![put(Cf::Data, "b", "1")], Durability::Buffered)
            .unwrap();
        disk.write(vec![put(Cf::Log, "s", "1")], Durability::Synced)
            .unwrap();
        drop(disk);
        let disk = RocksDisk::open(dir.path(), RocksOptions::default()).unwrap();
        assert_eq!(all(&disk, Cf::Data), "b=1 v=1");
        assert_eq!(all(&disk, Cf::Log), "s=1");
    }

    #[test]
    fn a_directory_in_use_is_refused_and_said_to_be() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), StoreOptions::default()).unwrap();
        let error = Store::open(dir.path(), StoreOptions::default()).unwrap_err();
        assert!(
            error.to_string().contains("in use by another process"),
            "{error}"
        );
        drop(store);
        Store::open(dir.path(), StoreOptions::default()).unwrap();
    }

    /// Media that decay: the store refuses to open or to read, or returns what was written.
    #[test]
    fn a_flipped_bit_in_a_file_is_never_read_as_data() {
        let dir = tempfile::tempdir().unwrap();
        let value = "v".repeat(5000);
        {
            let disk = RocksDisk::open(dir.path(), RocksOptions::default()).unwrap();
            disk.write(vec![put(Cf::Data, "k", &value)], Durability::Volatile)
                .unwrap();
            disk.flush(Cf::Data).unwrap();
        }
        let file = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|path| path.extension().is_some_and(|extension| extension == "sst"))
            .unwrap();
        let good = std::fs::read(&file).unwrap();
        let mut noticed = 0;
        for at in [1, good.len() / 3, good.len() / 2, good.len() - 9] {
            let mut bad = good.clone();
            bad[at] ^= 4;
            std::fs::write(&file, bad).unwrap();
            let found = RocksDisk::open(dir.path(), RocksOptions::default())
                .and_then(|disk| disk.get(Cf::Data, b"k"));
            match found {
                Ok(found) => assert_eq!(found, Some(bytes(&value)), "byte {at}"),
                Err(DiskError::Corrupt(text) | DiskError::Fatal(text)) => {
                    assert!(!text.contains("in use"), "byte {at}: {text}");
                    noticed += 1;
                }
                Err(error) => panic!("byte {at}: {error}"),
            }
        }
        assert!(noticed > 0);
    }
}
