//! A disk whose syncs take time and whose power can fail at any moment.
//!
//! It keeps every write in order until nothing can undo it. A crash replays what survives, by the contract of
//! [`polyraft_store::disk`]: everything that was synced or flushed, then of the write-ahead log a
//! prefix of the rest, never a part of a batch; of volatile writes a prefix, since an engine may
//! flush by itself at any time.
//!
//! Invariant: `certain` is what every crash would keep; `now` is what readers see; `pending` are the writes
//! between them, in order.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use polyraft_store::Tables;
use polyraft_store::bulk::{self, BulkFile, BulkFiles, BulkId, BulkWriter, MemoryBulk};
use polyraft_store::disk::{Batch, Cf, Disk, DiskError, Durability, Pair, View};

use crate::rng::Rng;

/// See the module. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct SimDisk {
    inner: Arc<Mutex<Inner>>,
    /// As of which start this handle writes; none: at any time.
    start: Option<u64>,
}

/// What writes run into until it is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskFault {
    /// No room.
    Full,
    /// The next sync fails, and with it everything later; ends with the next crash.
    SyncFails,
}

#[derive(Debug, Default)]
struct Inner {
    now: Arc<Tables>,
    certain: Tables,
    pending: VecDeque<Pending>,
    /// Writes so far; the number of the last one.
    written: u64,
    /// What went through the write-ahead log up to this write is certain.
    synced: u64,
    /// Synced writes are durable only when [`SimDisk::complete`] says so.
    deferring: bool,
    /// The last of them.
    sync_due: Option<u64>,
    fault: Option<DiskFault>,
    broken: bool,
    /// Grows with each crash: who has the disk from before writes nothing any more.
    start: u64,
    bulks: BulkFiles,
    /// So many more writes reach the disk before the process is killed.
    writes_left: Option<u64>,
}

#[derive(Debug)]
struct Pending {
    number: u64,
    batch: Batch,
    volatile: bool,
    /// Files that became part of a column family: certain at once.
    ingested: bool,
    /// Of volatile ones: nothing can undo it any more.
    flushed: bool,
}

/// What a power cut or a crash of the process leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashKind {
    /// The process: whatever went through the write-ahead log is kept.
    Process,
    /// The power: of what is not synced, a prefix is kept.
    Power,
}

impl SimDisk {
    /// An empty disk.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The disk as a process has it: of no use after the next [`SimDisk::fence`].
    #[must_use]
    pub fn opened(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            start: Some(self.inner.lock().start),
        }
    }

    /// The process that has the disk open is no more. What is left of it may still be taken apart,
    /// but does not reach the disk.
    pub fn fence(&self) {
        self.inner.lock().start += 1;
    }

    /// Sets or takes away a fault.
    pub fn set_fault(&self, fault: Option<DiskFault>) {
        self.inner.lock().fault = fault;
    }

    /// The fault that is set.
    #[must_use]
    pub fn fault(&self) -> Option<DiskFault> {
        self.inner.lock().fault
    }

    /// The process will be killed in the middle of what it does: only so many more writes of it
    /// reach the disk.
    pub fn kill_after(&self, writes: u64) {
        self.inner.lock().writes_left = Some(writes);
    }

    /// It will not be, if it was not yet.
    pub fn spare(&self) {
        let mut inner = self.inner.lock();
        inner.writes_left = inner.writes_left.filter(|left| *left == 0);
    }

    /// Whether that has happened.
    #[must_use]
    pub fn is_killed(&self) -> bool {
        self.inner.lock().writes_left == Some(0)
    }

    /// Whether a sync has failed since the last crash.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.inner.lock().broken
    }

    /// Runs something whose synced writes take a while: they return at once, and are durable when
    /// [`SimDisk::complete`] is called with the mark that this returns beside the result; none: nothing of
    /// it asked for a sync.
    pub fn deferred<T>(&self, run: impl FnOnce() -> T) -> (T, Option<u64>) {
        self.inner.lock().deferring = true;
        let result = run();
        let mut inner = self.inner.lock();
        inner.deferring = false;
        (result, inner.sync_due.take())
    }

    /// The sync of all writes up to a mark is done.
    pub fn complete(&self, mark: u64) {
        self.inner.lock().sync(mark);
    }

    /// The disk as a crash leaves it: what it keeps of what is not certain is drawn.
    pub fn crash(&self, kind: CrashKind, rng: &mut Rng) {
        let mut inner = self.inner.lock();
        let synced = inner.synced;
        let is_certain = |p: &Pending| p.is_certain(synced);
        let logged = inner
            .pending
            .iter()
            .filter(|p| !p.volatile && !is_certain(p));
        let mut keep_logged = match kind {
            CrashKind::Process => u64::MAX,
            CrashKind::Power => rng.below(logged.count() as u64 + 1),
        };
        let volatile = inner
            .pending
            .iter()
            .filter(|p| p.volatile && !is_certain(p));
        // Half of the time nothing was flushed by itself, as usual.
        let mut keep_volatile = match rng.percent(50) {
            true => 0,
            false => rng.below(volatile.count() as u64 + 1),
        };
        let mut tables = std::mem::take(&mut inner.certain);
        for pending in inner.pending.drain(..) {
            let left = match pending.volatile {
                true => &mut keep_volatile,
                false => &mut keep_logged,
            };
            let certain = is_certain(&pending);
            let survives = certain || *left > 0;
            if !certain {
                *left = left.saturating_sub(1);
            }
            if survives {
                apply(&mut tables, &pending.batch);
            }
        }
        inner.synced = inner.written;
        inner.now = Arc::new(tables.clone());
        inner.certain = tables;
        inner.broken = false;
        inner.deferring = false;
        inner.sync_due = None;
        inner.writes_left = None;
        if inner.fault == Some(DiskFault::SyncFails) {
            inner.fault = None;
        }
    }

    /// Flips one bit of a value, drawn from those in a column family, as a failing medium would;
    /// says of which key.
    pub fn flip_bit(&self, cf: Cf, rng: &mut Rng) -> Option<Bytes> {
        let mut inner = self.inner.lock();
        inner.settle_all();
        let table = inner.certain.table_mut(cf);
        let at = usize::try_from(rng.below(table.len() as u64)).ok()?;
        let (key, value) = table.iter_mut().nth(at)?;
        let mut bytes = value.to_vec();
        let byte = usize::try_from(rng.below(bytes.len() as u64)).ok()?;
        *bytes.get_mut(byte)? ^= 1 << rng.below(8);
        *value = bytes.into();
        let key = key.clone();
        inner.now = Arc::new(inner.certain.clone());
        Some(key)
    }

    /// Everything that is readable in a column family now.
    #[must_use]
    pub fn contents(&self, cf: Cf) -> Vec<Pair> {
        Tables::scan(&self.inner.lock().now, cf, b"", None, usize::MAX)
    }
}

impl SimDisk {
    /// Something is about to happen to a file.
    fn bulk_step(&self, inner: &mut Inner) -> Result<(), DiskError> {
        self.check(inner)?;
        inner.writes_left = inner.writes_left.map(|left| left - 1);
        match inner.fault {
            Some(DiskFault::Full) => Err(DiskError::Full),
            Some(DiskFault::SyncFails) => {
                inner.broken = true;
                Err(DiskError::Fatal("sync failed".to_owned()))
            }
            None => Ok(()),
        }
    }

    fn check(&self, inner: &Inner) -> Result<(), DiskError> {
        if self.start.is_some_and(|start| start != inner.start) {
            return Err(DiskError::Fatal("the process is gone".to_owned()));
        }
        if inner.writes_left == Some(0) {
            return Err(DiskError::Fatal("the process is killed here".to_owned()));
        }
        if inner.broken {
            return Err(DiskError::Fatal("an earlier sync failed".to_owned()));
        }
        Ok(())
    }
}

impl Inner {
    /// Whatever went through the write-ahead log up to a write is certain.
    fn sync(&mut self, upto: u64) {
        self.synced = self.synced.max(upto);
        self.settle();
    }

    /// Moves the certain beginning of what is pending.
    fn settle(&mut self) {
        let synced = self.synced;
        while self
            .pending
            .front()
            .is_some_and(|first| first.is_certain(synced))
        {
            if let Some(first) = self.pending.pop_front() {
                apply(&mut self.certain, &first.batch);
            }
        }
    }

    fn settle_all(&mut self) {
        for pending in &mut self.pending {
            pending.flushed = true;
        }
        let upto = self.written;
        self.sync(upto);
    }
}

impl Pending {
    const fn is_certain(&self, synced: u64) -> bool {
        if self.volatile {
            self.flushed
        } else {
            self.ingested || self.number <= synced
        }
    }
}

fn apply(tables: &mut Tables, batch: &Batch) {
    for (cf, change) in batch {
        tables.apply(*cf, change);
    }
}

impl Disk for SimDisk {
    fn write(&self, batch: Batch, durability: Durability) -> Result<(), DiskError> {
        let mut inner = self.inner.lock();
        self.check(&inner)?;
        inner.writes_left = inner.writes_left.map(|left| left - 1);
        match inner.fault {
            Some(DiskFault::Full) => return Err(DiskError::Full),
            // What was written may or may not be on the disk.
            Some(DiskFault::SyncFails) if durability == Durability::Synced => {
                inner.push(batch, false, false);
                inner.broken = true;
                return Err(DiskError::Fatal("sync failed".to_owned()));
            }
            _ => {}
        }
        inner.push(batch, durability == Durability::Volatile, false);
        if durability == Durability::Synced {
            let upto = inner.written;
            if inner.deferring {
                inner.sync_due = Some(upto);
            } else {
                inner.sync(upto);
            }
        }
        Ok(())
    }

    fn get(&self, cf: Cf, key: &[u8]) -> Result<Option<Bytes>, DiskError> {
        self.inner.lock().now.get(cf, key)
    }

    fn scan(
        &self,
        cf: Cf,
        start: &[u8],
        end: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Pair>, DiskError> {
        self.inner.lock().now.scan(cf, start, end, limit)
    }

    fn scan_reverse(
        &self,
        cf: Cf,
        start: &[u8],
        end: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Pair>, DiskError> {
        self.inner.lock().now.scan_reverse(cf, start, end, limit)
    }

    fn begin_bulk(&self, cf: Cf, id: BulkId) -> Result<Box<dyn BulkWriter>, DiskError> {
        let mut inner = self.inner.lock();
        self.bulk_step(&mut inner)?;
        inner.bulks.insert(id, None);
        let disk = self.clone();
        let done = move |file: Option<BulkFile>| {
            let mut inner = disk.inner.lock();
            // Whoever is killed here leaves it behind as it is.
            disk.bulk_step(&mut inner)?;
            match file {
                Some(file) => inner.bulks.insert(id, Some(file)),
                None => inner.bulks.remove(&id),
            };
            Ok(())
        };
        Ok(Box::new(MemoryBulk::new(cf, done)))
    }

    /// The marks and records that were synced before are durable, also those whose sync takes a while.
    fn ingest(&self, cf: Cf, ids: &[BulkId]) -> Result<(), DiskError> {
        let mut inner = self.inner.lock();
        self.bulk_step(&mut inner)?;
        let batch = bulk::changes(&inner.bulks, cf, ids)?;
        if let Some(upto) = inner.sync_due {
            inner.sync(upto);
        }
        inner.push(batch, false, true);
        inner.settle();
        Ok(())
    }

    fn remove_bulk(&self, id: BulkId) -> Result<(), DiskError> {
        let mut inner = self.inner.lock();
        self.bulk_step(&mut inner)?;
        inner.bulks.remove(&id);
        Ok(())
    }

    fn bulks(&self) -> Result<Vec<BulkId>, DiskError> {
        Ok(self.inner.lock().bulks.keys().copied().collect())
    }

    fn view(&self) -> Box<dyn View> {
        Box::new(Arc::clone(&self.inner.lock().now))
    }

    /// Before a column family is flushed, the write-ahead log is synced up to the last batch that
    /// also changed others: else a crash could keep a part of it.
    fn flush(&self, cf: Cf) -> Result<(), DiskError> {
        let mut inner = self.inner.lock();
        self.check(&inner)?;
        if inner.fault == Some(DiskFault::Full) {
            return Err(DiskError::Full);
        }
        let touches = |pending: &Pending| pending.batch.iter().any(|(of, _)| *of == cf);
        let torn = inner
            .pending
            .iter()
            .rfind(|p| !p.volatile && !p.ingested && touches(p));
        if let Some(upto) = torn.map(|pending| pending.number) {
            inner.sync(upto);
        }
        for pending in &mut inner.pending {
            pending.flushed |= pending.volatile && touches(pending);
        }
        inner.settle();
        Ok(())
    }
}

impl Inner {
    fn push(&mut self, batch: Batch, volatile: bool, ingested: bool) {
        apply(Arc::make_mut(&mut self.now), &batch);
        self.written += 1;
        self.pending.push_back(Pending {
            number: self.written,
            batch,
            volatile,
            ingested,
            flushed: false,
        });
    }
}
