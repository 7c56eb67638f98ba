//! What every disk must do, on all of them; and what only the model can show: what a crash keeps.

use bytes::Bytes;
use polyraft_store::MemoryDisk;
use polyraft_store::disk::{Batch, Cf, Change, Disk, Durability};

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn put(cf: Cf, key: &str, value: &str) -> (Cf, Change) {
    (cf, Change::Put(bytes(key), bytes(value)))
}

fn all(disk: &impl Disk, cf: Cf) -> String {
    show(disk.scan(cf, b"", None, usize::MAX).unwrap())
}

fn show(pairs: Vec<(Bytes, Bytes)>) -> String {
    let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    let pair = |(key, value): &(Bytes, Bytes)| format!("{}={}", text(key), text(value));
    pairs.iter().map(pair).collect::<Vec<_>>().join(" ")
}

fn suite(disk: &impl Disk) {
    for durability in [
        Durability::Synced,
        Durability::Buffered,
        Durability::Volatile,
    ] {
        changes_happen_in_order(disk, durability);
    }
    scans_are_bounded(disk);
    a_view_stands_still(disk);
    disk.write(Batch::new(), Durability::Synced).unwrap();
}

fn changes_happen_in_order(disk: &impl Disk, durability: Durability) {
    let batch = vec![
        put(Cf::Data, "a", "1"),
        put(Cf::Data, "b", "1"),
        put(Cf::Data, "c", "1"),
        put(Cf::Meta, "a", "meta"),
        (Cf::Data, Change::DeleteRange(bytes("a"), bytes("c"))),
        put(Cf::Data, "b", "2"),
        (Cf::Data, Change::Delete(bytes("c"))),
        put(Cf::Log, "b", ""),
        put(Cf::Data, "d", "4"),
    ];
    disk.write(batch, durability).unwrap();
    assert_eq!(all(disk, Cf::Data), "b=2 d=4", "{durability:?}");
    assert_eq!(disk.get(Cf::Data, b"a"), Ok(None));
    assert_eq!(disk.get(Cf::Data, b"b"), Ok(Some(bytes("2"))));
    assert_eq!(disk.get(Cf::Meta, b"a"), Ok(Some(bytes("meta"))));
    assert_eq!(disk.get(Cf::Log, b"b"), Ok(Some(Bytes::new())));
    disk.flush(Cf::Data).unwrap();
    assert_eq!(all(disk, Cf::Data), "b=2 d=4", "{durability:?}, flushed");
    let everything = Change::DeleteRange(bytes(""), bytes("z"));
    let batch = Cf::ALL.map(|cf| (cf, everything.clone())).to_vec();
    disk.write(batch, durability).unwrap();
    assert!(Cf::ALL.iter().all(|cf| all(disk, *cf).is_empty()));
}

fn scans_are_bounded(disk: &impl Disk) {
    let keys = ["a", "b", "b0", "c", "d"];
    let batch = keys.map(|key| put(Cf::Settled, key, key)).to_vec();
    disk.write(batch, Durability::Synced).unwrap();
    let scan = |start: &[u8], end, limit| show(disk.scan(Cf::Settled, start, end, limit).unwrap());
    assert_eq!(scan(b"b", Some(b"d".as_slice()), 9), "b=b b0=b0 c=c");
    assert_eq!(scan(b"b\0", Some(b"d"), 1), "b0=b0");
    assert_eq!(scan(b"b", None, 0), "");
    assert_eq!(scan(b"c", None, 9), "c=c d=d");
    assert_eq!(scan(b"c", Some(b"c"), 9), "");
    assert_eq!(scan(b"e", None, 9), "");
}

fn a_view_stands_still(disk: &impl Disk) {
    disk.write(
        vec![put(Cf::State, "k", "1"), put(Cf::Log, "k", "1")],
        Durability::Synced,
    )
    .unwrap();
    let view = disk.view();
    let batch = vec![
        put(Cf::State, "k", "2"),
        (Cf::Log, Change::Delete(bytes("k"))),
        put(Cf::Log, "l", "2"),
    ];
    disk.write(batch, Durability::Volatile).unwrap();
    disk.flush(Cf::State).unwrap();
    assert_eq!(view.get(Cf::State, b"k"), Ok(Some(bytes("1"))));
    assert_eq!(show(view.scan(Cf::Log, b"", None, 9).unwrap()), "k=1");
    drop(view);
    assert_eq!(disk.get(Cf::State, b"k"), Ok(Some(bytes("2"))));
    assert_eq!(all(disk, Cf::Log), "l=2");
}

#[test]
fn the_modelled_disk_does_what_a_disk_must() {
    suite(&MemoryDisk::new());
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
        suite(&RocksDisk::open(dir.path(), RocksOptions::default()).unwrap());
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
