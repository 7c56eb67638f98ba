//! What every [`Disk`] must keep of its promises, for its tests (feature `conformance`).
//!
//! [`disk`] is for all of them; [`power_cuts`] for those whose power can be cut. A broken promise
//! is a panic that names it. [`Around`] is a disk around another one, for tests that do something
//! more with each write.

use std::collections::BTreeSet;

use bytes::Bytes;
use polyraft_multiraft::env::conformance::Rng;

use crate::bulk::{BulkId, BulkWriter};
use crate::disk::{Batch, Cf, Change, Disk, DiskError, Durability, Pair, View};

/// What is seen of writes, scans and views on an empty disk.
pub fn disk<D: Disk>(disk: &D) {
    for durability in [
        Durability::Synced,
        Durability::Buffered,
        Durability::Volatile,
    ] {
        changes_happen_in_order(disk, durability);
    }
    scans_are_bounded(disk);
    scans_go_backwards(disk);
    a_view_stands_still(disk);
    files_come_in_at_once(disk);
    write(disk, Batch::new(), Durability::Synced);
}

/// What a power cut keeps of arbitrary writes, drawn from `seed`. `cut` is given a disk and a
/// source of randomness, and gives back the disk as it is found when the power is back.
pub fn power_cuts<D: Disk>(new: impl Fn() -> D, cut: impl Fn(D, &mut Rng) -> D, seed: u64) {
    let mut rng = Rng::new(seed);
    let mut disk = new();
    let mut past = Past::default();
    for _ in 0..4 {
        for _ in 0..rng.below(24) {
            past.next(&disk, &mut rng);
        }
        disk = cut(disk, &mut rng);
        past.check(&disk);
    }
}

/// One write under its number: to one column family, or to two at once.
#[derive(Clone, Debug)]
struct Written {
    number: u64,
    cfs: &'static [Cf],
    durability: Durability,
    /// A sync or a flush was acknowledged that covers it.
    certain: bool,
}

/// What was written to a disk and may be found on it.
#[derive(Debug, Default)]
struct Past {
    writes: Vec<Written>,
    number: u64,
}

/// A key that each write to a column family sets to its number.
const LAST: &str = "last";

impl Past {
    fn next<D: Disk>(&mut self, disk: &D, rng: &mut Rng) {
        if rng.below(8) == 0 {
            disk.flush(Cf::Data).expect("a flush of a healthy disk");
            let of_data = |written: &&mut Written| written.cfs == [Cf::Data];
            self.writes
                .iter_mut()
                .filter(of_data)
                .for_each(|w| w.certain = true);
            return;
        }
        if rng.below(8) == 0 {
            self.ingest(disk);
            return;
        }
        // What goes past the write-ahead log is of one column family.
        let (cfs, durability): (&[Cf], Durability) = match rng.below(6) {
            0 => (&[Cf::Data], Durability::Synced),
            1 => (&[Cf::Log, Cf::State], Durability::Synced),
            2 => (&[Cf::Data], Durability::Buffered),
            3 => (&[Cf::Log, Cf::State], Durability::Buffered),
            _ => (&[Cf::Data], Durability::Volatile),
        };
        self.number += 1;
        let (name, value) = (format!("{:06}", self.number), self.number.to_string());
        let each = cfs
            .iter()
            .flat_map(|cf| [put(*cf, &name, ""), put(*cf, LAST, &value)]);
        write(disk, each.collect(), durability);
        if durability == Durability::Synced {
            let logged = |written: &&mut Written| written.durability != Durability::Volatile;
            self.writes
                .iter_mut()
                .filter(logged)
                .for_each(|w| w.certain = true);
        }
        self.writes.push(Written {
            number: self.number,
            cfs,
            durability,
            certain: durability == Durability::Synced,
        });
    }

    /// One file, which is certain at once; that of the time before is gone, or not.
    fn ingest<D: Disk>(&mut self, disk: &D) {
        self.number += 1;
        let id = BulkId {
            set: self.number,
            number: 0,
        };
        let file = disk.begin_bulk(Cf::Data, id);
        let mut file = file.expect("a file on a healthy disk");
        let (name, value) = (format!("{:06}", self.number), self.number.to_string());
        for (key, value) in [(name.as_str(), ""), (LAST, value.as_str())] {
            let put = file.put(key.as_bytes(), value.as_bytes());
            put.expect("a pair of a file");
        }
        file.finish().expect("a file on a healthy disk");
        let ingested = disk.ingest(Cf::Data, &[id]);
        ingested.expect("a file on a healthy disk");
        self.writes.push(Written {
            number: self.number,
            cfs: &[Cf::Data],
            durability: Durability::Synced,
            certain: true,
        });
    }

    /// What is found must be what a power cut may leave; it is certain from now on.
    fn check<D: Disk>(&mut self, disk: &D) {
        let of = |cf| -> BTreeSet<u64> {
            let pairs = pairs(disk, cf).into_iter();
            pairs.filter_map(|(key, _)| number(&key)).collect()
        };
        let (data, log, state) = (of(Cf::Data), of(Cf::Log), of(Cf::State));
        assert_eq!(log, state, "a part of a batch was kept: {self:?}");
        let kept = |written: &Written| match written.cfs {
            [Cf::Data] => data.contains(&written.number),
            _ => log.contains(&written.number),
        };
        for written in self.writes.iter().filter(|written| written.certain) {
            assert!(kept(written), "{written:?} is gone: {self:?}");
        }
        for volatile in [false, true] {
            let alike = |written: &&Written| {
                !written.certain && (written.durability == Durability::Volatile) == volatile
            };
            let found: Vec<bool> = self.writes.iter().filter(alike).map(kept).collect();
            assert!(
                found.is_sorted_by(|one, two| one >= two),
                "a later write was kept without an earlier one: {found:?} of {self:?}"
            );
        }
        for (cf, found) in [(Cf::Data, &data), (Cf::Log, &log), (Cf::State, &state)] {
            let last = disk.get(cf, LAST.as_bytes()).expect("a healthy disk");
            let last = last.and_then(|value| number(&value));
            assert_eq!(
                last,
                found.last().copied(),
                "writes changed places: {self:?}"
            );
        }
        self.writes.retain(kept);
        self.writes
            .iter_mut()
            .for_each(|written| written.certain = true);
    }
}

fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn write<D: Disk>(disk: &D, batch: Batch, durability: Durability) {
    let result = disk.write(batch, durability);
    assert_eq!(result, Ok(()), "a {durability:?} write to a healthy disk");
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn put(cf: Cf, key: &str, value: &str) -> (Cf, Change) {
    (cf, Change::Put(bytes(key), bytes(value)))
}

fn pairs(disk: &impl Disk, cf: Cf) -> Vec<Pair> {
    let pairs = disk.scan(cf, b"", None, usize::MAX);
    pairs.expect("a scan of a healthy disk")
}

fn all(disk: &impl Disk, cf: Cf) -> String {
    show(pairs(disk, cf))
}

fn show(pairs: Vec<Pair>) -> String {
    let text = String::from_utf8_lossy;
    let pair = |(key, value): &Pair| format!("{}={}", text(key), text(value));
    pairs.iter().map(pair).collect::<Vec<_>>().join(" ")
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
    write(disk, batch, durability);
    assert_eq!(all(disk, Cf::Data), "b=2 d=4", "{durability:?}");
    assert_eq!(disk.get(Cf::Data, b"a"), Ok(None));
    assert_eq!(disk.get(Cf::Data, b"b"), Ok(Some(bytes("2"))));
    assert_eq!(disk.get(Cf::Meta, b"a"), Ok(Some(bytes("meta"))));
    assert_eq!(disk.get(Cf::Log, b"b"), Ok(Some(Bytes::new())));
    disk.flush(Cf::Data).expect("a flush of a healthy disk");
    assert_eq!(all(disk, Cf::Data), "b=2 d=4", "{durability:?}, flushed");
    let everything = Change::DeleteRange(bytes(""), bytes("z"));
    let batch = Cf::ALL.map(|cf| (cf, everything.clone())).to_vec();
    write(disk, batch, durability);
    assert!(Cf::ALL.iter().all(|cf| all(disk, *cf).is_empty()));
}

fn scans_are_bounded(disk: &impl Disk) {
    let keys = ["a", "b", "b0", "c", "d"];
    let batch = keys.map(|key| put(Cf::Settled, key, key)).to_vec();
    write(disk, batch, Durability::Synced);
    let scan = |start: &[u8], end, limit| {
        let pairs = disk.scan(Cf::Settled, start, end, limit);
        show(pairs.expect("a scan of a healthy disk"))
    };
    assert_eq!(scan(b"b", Some(b"d".as_slice()), 9), "b=b b0=b0 c=c");
    assert_eq!(scan(b"b\0", Some(b"d"), 1), "b0=b0");
    assert_eq!(scan(b"b", None, 0), "");
    assert_eq!(scan(b"c", None, 9), "c=c d=d");
    assert_eq!(scan(b"c", Some(b"c"), 9), "");
    assert_eq!(scan(b"e", None, 9), "");
}

fn scans_go_backwards(disk: &impl Disk) {
    let keys = ["a", "b", "b0", "c", "d"];
    let batch = keys.map(|key| put(Cf::Settled, key, key)).to_vec();
    write(disk, batch, Durability::Synced);
    let view = disk.view();
    let scan = |start: &[u8], end: Option<&[u8]>, limit| {
        let pairs = disk.scan_reverse(Cf::Settled, start, end, limit);
        let pairs = pairs.expect("a scan of a healthy disk");
        let seen = view.scan_reverse(Cf::Settled, start, end, limit);
        assert_eq!(seen, Ok(pairs.clone()), "a view shows something else");
        show(pairs)
    };
    assert_eq!(scan(b"b", Some(b"d"), 9), "c=c b0=b0 b=b");
    assert_eq!(scan(b"b", Some(b"d"), 2), "c=c b0=b0");
    assert_eq!(scan(b"a\0", Some(b"b0\0"), 9), "b0=b0 b=b");
    assert_eq!(scan(b"b", Some(b"bz"), 9), "b0=b0 b=b");
    assert_eq!(scan(b"c", None, 9), "d=d c=c");
    assert_eq!(scan(b"", None, 1), "d=d");
    assert_eq!(scan(b"", None, 0), "");
    assert_eq!(scan(b"", Some(b"a"), 9), "");
    assert_eq!(scan(b"c", Some(b"c"), 9), "");
    assert_eq!(scan(b"c", Some(b"b"), 9), "");
    assert_eq!(scan(b"e", None, 9), "");
    // Other column families end elsewhere.
    assert_eq!(disk.scan_reverse(Cf::State, b"", None, 9), Ok(Vec::new()));
}

fn a_view_stands_still(disk: &impl Disk) {
    let batch = vec![put(Cf::State, "k", "1"), put(Cf::Log, "k", "1")];
    write(disk, batch, Durability::Synced);
    let view = disk.view();
    let batch = vec![
        put(Cf::State, "k", "2"),
        (Cf::Log, Change::Delete(bytes("k"))),
        put(Cf::Log, "l", "2"),
    ];
    write(disk, batch, Durability::Volatile);
    disk.flush(Cf::State).expect("a flush of a healthy disk");
    assert_eq!(view.get(Cf::State, b"k"), Ok(Some(bytes("1"))));
    let pairs = view.scan(Cf::Log, b"", None, 9);
    assert_eq!(show(pairs.expect("a scan of a view")), "k=1");
    drop(view);
    assert_eq!(disk.get(Cf::State, b"k"), Ok(Some(bytes("2"))));
    assert_eq!(all(disk, Cf::Log), "l=2");
}

fn files_come_in_at_once(disk: &impl Disk) {
    let id = |set, number| BulkId { set, number };
    let begin = |id| {
        let file = disk.begin_bulk(Cf::Data, id);
        file.expect("a file on a healthy disk")
    };
    let batch = ["a", "b", "c", "d", "e", "f"].map(|key| put(Cf::Data, key, "old"));
    write(disk, batch.to_vec(), Durability::Volatile);
    let view = disk.view();
    for (number, keys, removed) in [(1, ["b", "bb"], ("b", "d")), (2, ["d", "e"], ("d", "e"))] {
        let mut file = begin(id(7, number));
        file.remove_range(removed.0.as_bytes(), removed.1.as_bytes())
            .expect("a range that goes");
        for key in keys {
            file.put(key.as_bytes(), b"new").expect("a pair of a file");
        }
        file.finish().expect("a file on a healthy disk");
    }
    drop(begin(id(7, 3)));
    assert!(begin(id(7, 3)).finish().is_err(), "a file of nothing");
    let left = disk.bulks().expect("a list of files");
    assert_eq!(left, [id(7, 1), id(7, 2)], "a file that was given up");
    let before = "a=old b=old c=old d=old e=old f=old";
    assert_eq!(all(disk, Cf::Data), before, "before it is ingested");
    disk.remove_bulk(id(8, 1)).expect("none is there");
    // Twice: a start that finds it half done does it again.
    for again in ["x", "b"] {
        let ingested = disk.ingest(Cf::Data, &[id(7, 1), id(7, 2)]);
        assert_eq!(ingested, Ok(()), "files on a healthy disk");
        let after = "a=old b=new bb=new d=new e=new f=old";
        assert_eq!(all(disk, Cf::Data), after, "{again}");
        write(
            disk,
            vec![put(Cf::Data, "bc", "newer")],
            Durability::Buffered,
        );
        let after = "a=old b=new bb=new bc=newer d=new e=new f=old";
        assert_eq!(all(disk, Cf::Data), after, "{again}");
    }
    let pairs = view.scan(Cf::Data, b"", None, 9);
    assert_eq!(show(pairs.expect("a scan of a view")), before);
    assert!(disk.ingest(Cf::Data, &[id(7, 1), id(7, 9)]).is_err());
    for number in [1, 2] {
        disk.remove_bulk(id(7, number)).expect("a healthy disk");
    }
    assert_eq!(disk.bulks(), Ok(Vec::new()));
    assert_eq!(disk.get(Cf::Data, b"bb"), Ok(Some(bytes("new"))));
    let everything = Change::DeleteRange(bytes(""), bytes("z"));
    write(disk, vec![(Cf::Data, everything)], Durability::Synced);
}

/// A disk around another one: reads go to that; what happens to a write is up to the second part.
#[derive(Clone, Debug)]
pub struct Around<D, W>(pub D, pub W);

/// See [`Around`].
pub trait Writes<D>: Send + Sync + 'static {
    /// A write on its way to `disk`.
    ///
    /// # Errors
    /// The disk's, or those that a test wants.
    fn write(&self, disk: &D, batch: Batch, durability: Durability) -> Result<(), DiskError>;
    /// A file is about to be begun, finished, given up, ingested or removed.
    ///
    /// # Errors
    /// Those that a test wants.
    fn bulk(&self) -> Result<(), DiskError> {
        Ok(())
    }
}

/// A file of a disk around another one.
struct AroundBulk<F: Fn() -> Result<(), DiskError> + Send> {
    /// None: it is finished.
    inner: Option<Box<dyn BulkWriter>>,
    step: F,
}

impl<F: Fn() -> Result<(), DiskError> + Send> BulkWriter for AroundBulk<F> {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), DiskError> {
        self.inner.as_mut().map_or(Ok(()), |to| to.put(key, value))
    }

    fn remove_range(&mut self, start: &[u8], end: &[u8]) -> Result<(), DiskError> {
        let inner = self.inner.as_mut();
        inner.map_or(Ok(()), |to| to.remove_range(start, end))
    }

    fn finish(mut self: Box<Self>) -> Result<(), DiskError> {
        (self.step)()?;
        self.inner.take().map_or(Ok(()), BulkWriter::finish)
    }
}

impl<F: Fn() -> Result<(), DiskError> + Send> Drop for AroundBulk<F> {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.take()
            && (self.step)().is_err()
        {
            // Whoever is dead removes nothing.
            std::mem::forget(inner);
        }
    }
}

impl<D: Disk, W: Writes<D> + Clone> Disk for Around<D, W> {
    fn begin_bulk(&self, cf: Cf, id: BulkId) -> Result<Box<dyn BulkWriter>, DiskError> {
        self.1.bulk()?;
        let inner = Some(self.0.begin_bulk(cf, id)?);
        let writes = self.1.clone();
        let step = move || writes.bulk();
        Ok(Box::new(AroundBulk { inner, step }))
    }

    fn ingest(&self, cf: Cf, ids: &[BulkId]) -> Result<(), DiskError> {
        self.1.bulk()?;
        self.0.ingest(cf, ids)
    }

    fn remove_bulk(&self, id: BulkId) -> Result<(), DiskError> {
        self.1.bulk()?;
        self.0.remove_bulk(id)
    }

    fn bulks(&self) -> Result<Vec<BulkId>, DiskError> {
        self.0.bulks()
    }

    fn write(&self, batch: Batch, durability: Durability) -> Result<(), DiskError> {
        self.1.write(&self.0, batch, durability)
    }

    fn get(&self, cf: Cf, key: &[u8]) -> Result<Option<Bytes>, DiskError> {
        self.0.get(cf, key)
    }

    fn scan(
        &self,
        cf: Cf,
        start: &[u8],
        end: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Pair>, DiskError> {
        self.0.scan(cf, start, end, limit)
    }

    fn scan_reverse(
        &self,
        cf: Cf,
        start: &[u8],
        end: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Pair>, DiskError> {
        self.0.scan_reverse(cf, start, end, limit)
    }

    fn view(&self) -> Box<dyn View> {
        self.0.view()
    }

    fn flush(&self, cf: Cf) -> Result<(), DiskError> {
        self.0.flush(cf)
    }
}
