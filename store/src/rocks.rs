//! RocksDB as a [`Disk`]. The only file that names it.
//!
//! Every option that is not RocksDB's default has its reason beside it. Facts in the project's design
//! notes: a full disk either fails a write or blocks it for as long as it stays full, hence the writer
//! has a thread of its own; after a failed sync the engine refuses every write until it is reopened.

mod bulk;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use rocksdb::{
    BlockBasedOptions, BoundColumnFamily, Cache, ColumnFamilyDescriptor, DB, DBCompressionType,
    DBRecoveryMode, Direction, ErrorKind, IteratorMode, Options, ReadOptions, WriteBatch,
    WriteOptions,
};

use self::bulk::BulkDir;
use crate::bulk::{BulkId, BulkWriter};
use crate::disk::{Batch, Cf, Change, Disk, DiskError, Durability, Pair, View};

/// Sizes of a RocksDB instance.
#[derive(Clone, Copy, Debug)]
pub struct RocksOptions {
    /// Bytes of the block cache, shared by all column families.
    pub block_cache_bytes: usize,
    /// Bytes of a memtable of the log. Records that are deleted before it is full never reach a file.
    pub log_memtable_bytes: usize,
    /// Bytes of a memtable of the data.
    pub data_memtable_bytes: usize,
    /// Threads for flushes and compactions.
    pub background_jobs: i32,
}

impl Default for RocksOptions {
    fn default() -> Self {
        Self {
            block_cache_bytes: 64 << 20,
            log_memtable_bytes: 64 << 20,
            data_memtable_bytes: 64 << 20,
            background_jobs: 2,
        }
    }
}

/// See the module.
#[derive(Clone)]
pub struct RocksDisk {
    db: Arc<DB>,
    bulks: BulkDir,
}

impl std::fmt::Debug for RocksDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RocksDisk")
            .field("path", &self.db.path())
            .finish()
    }
}

/// Reads look at all range tombstones of a memtable, and sort them anew after each one that comes: so many
/// and it is written out.
const RANGES_MAX: [(&str, &str); 1] = [("memtable_max_range_deletions", "1000")];

impl RocksDisk {
    /// Opens or creates the database in `path`.
    ///
    /// # Errors
    /// It is open elsewhere, damaged, or cannot be created.
    pub fn open(path: &Path, options: RocksOptions) -> Result<Self, DiskError> {
        let cache = Cache::new_lru_cache(options.block_cache_bytes);
        let families = Cf::ALL
            .map(|cf| ColumnFamilyDescriptor::new(cf.name(), cf_options(cf, options, &cache)));
        let db = DB::open_cf_descriptors(&db_options(options), path, families).map_err(|error| {
            // Not any error that mentions a "block".
            if error.kind() == ErrorKind::IOError && error.to_string().contains("/LOCK:") {
                let path = path.display();
                return DiskError::Fatal(format!(
                    "{path} is in use by another process; stop it or choose another directory ({error})"
                ));
            }
            translate(&error)
        })?;
        let this = Self {
            db: Arc::new(db),
            bulks: BulkDir::open(path)?,
        };
        // No setter: what is set by name can be changed at any time.
        let family = this.family(Cf::Data)?;
        let set = this.db.set_options_cf(&family, &RANGES_MAX);
        set.map_err(|error| translate(&error))?;
        drop(family);
        Ok(this)
    }

    fn family(&self, cf: Cf) -> Result<Arc<BoundColumnFamily<'_>>, DiskError> {
        family(&self.db, cf)
    }
}

fn family(db: &DB, cf: Cf) -> Result<Arc<BoundColumnFamily<'_>>, DiskError> {
    db.cf_handle(cf.name())
        .ok_or_else(|| DiskError::Fatal(format!("no column family {}", cf.name())))
}

impl Drop for RocksDisk {
    fn drop(&mut self) {
        if Arc::strong_count(&self.db) == 1 {
            // Else the close waits for compactions to finish.
            self.db.cancel_all_background_work(true);
        }
    }
}

fn db_options(options: RocksOptions) -> Options {
    let mut db = Options::default();
    db.create_if_missing(true);
    db.create_missing_column_families(true);
    db.set_max_background_jobs(options.background_jobs);
    // A record that was acknowledged must not be forgotten because of damage before it: only an
    // incomplete last record is tolerated, anything else refuses to open.
    db.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    db.set_track_and_verify_wals_in_manifest(true);
    // The log's own memtables decide when it is flushed; a rarely written family must not pin
    // write-ahead files for ever.
    db.set_max_total_wal_size(1 << 30);
    // Range tombstones are looked up in every file: all stay open.
    db.set_max_open_files(-1);
    // Dirty pages leave steadily and not all at the sync.
    db.set_bytes_per_sync(1 << 20);
    db.set_keep_log_file_num(4);
    db.set_avoid_unnecessary_blocking_io(true);
    db
}

fn cf_options(cf: Cf, options: RocksOptions, cache: &Cache) -> Options {
    let mut family = Options::default();
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(cache);
    match cf {
        Cf::Log => {
            family.set_write_buffer_size(options.log_memtable_bytes);
            // Two memtables are merged before they are written, so that what was deleted
            // meanwhile is not written at all.
            family.set_max_write_buffer_number(4);
            family.set_min_write_buffer_number_to_merge(2);
            // Records live shortly and are read whole.
            family.set_compression_type(DBCompressionType::None);
            blocks.set_block_size(64 << 10);
        }
        Cf::Data | Cf::Settled => {
            family.set_write_buffer_size(options.data_memtable_bytes);
            family.set_max_write_buffer_number(4);
            family.set_compression_type(DBCompressionType::Lz4);
            blocks.set_bloom_filter(10.0, false);
        }
        Cf::State | Cf::Meta => {
            family.set_write_buffer_size(8 << 20);
            family.set_compression_type(DBCompressionType::None);
        }
    }
    family.set_block_based_table_factory(&blocks);
    family
}

fn translate(error: &rocksdb::Error) -> DiskError {
    let text = error.to_string();
    match error.kind() {
        ErrorKind::IOError if text.contains("No space left") => DiskError::Full,
        ErrorKind::Corruption => DiskError::Corrupt(text),
        _ => DiskError::Fatal(text),
    }
}

fn pairs(
    iterator: impl Iterator<Item = Result<(Box<[u8]>, Box<[u8]>), rocksdb::Error>>,
    limit: usize,
) -> Result<Vec<Pair>, DiskError> {
    iterator
        .take(limit)
        .map(|pair| {
            pair.map(|(key, value)| (key.into(), value.into()))
                .map_err(|e| translate(&e))
        })
        .collect()
}

fn bounds(end: Option<&[u8]>) -> ReadOptions {
    let mut read = ReadOptions::default();
    if let Some(end) = end {
        read.set_iterate_upper_bound(end.to_vec());
    }
    read
}

/// The bounds for a way back from the end; none: there is nothing between them.
fn bounds_reverse(start: &[u8], end: Option<&[u8]>) -> Option<ReadOptions> {
    if end.is_some_and(|end| end <= start) {
        return None;
    }
    let mut read = bounds(end);
    read.set_iterate_lower_bound(start.to_vec());
    Some(read)
}

impl Disk for RocksDisk {
    fn write(&self, batch: Batch, durability: Durability) -> Result<(), DiskError> {
        let mut out = WriteBatch::default();
        // A look-up takes a lock and compares names: once per run of one family, not once per change.
        for changes in batch.chunk_by(|(a, _), (b, _)| a == b) {
            let family = self.family(changes[0].0)?;
            for (_, change) in changes {
                match change {
                    Change::Put(key, value) => out.put_cf(&family, key, value),
                    Change::Delete(key) => out.delete_cf(&family, key),
                    Change::DeleteRange(start, end) => out.delete_range_cf(&family, start, end),
                }
            }
        }
        let mut write = WriteOptions::default();
        write.set_sync(durability == Durability::Synced);
        write.disable_wal(durability == Durability::Volatile);
        self.db
            .write_opt(out, &write)
            .map_err(|error| translate(&error))
    }

    fn get(&self, cf: Cf, key: &[u8]) -> Result<Option<Bytes>, DiskError> {
        let value = self
            .db
            .get_cf(&self.family(cf)?, key)
            .map_err(|error| translate(&error))?;
        Ok(value.map(Bytes::from))
    }

    fn scan(
        &self,
        cf: Cf,
        start: &[u8],
        end: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Pair>, DiskError> {
        let mode = IteratorMode::From(start, Direction::Forward);
        pairs(
            self.db
                .iterator_cf_opt(&self.family(cf)?, bounds(end), mode),
            limit,
        )
    }

    fn scan_reverse(
        &self,
        cf: Cf,
        start: &[u8],
        end: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Pair>, DiskError> {
        let Some(read) = bounds_reverse(start, end) else {
            return Ok(Vec::new());
        };
        let family = self.family(cf)?;
        let iterator = self.db.iterator_cf_opt(&family, read, IteratorMode::End);
        pairs(iterator, limit)
    }

    fn begin_bulk(&self, _cf: Cf, id: BulkId) -> Result<Box<dyn BulkWriter>, DiskError> {
        self.bulks.begin(id)
    }

    fn ingest(&self, cf: Cf, ids: &[BulkId]) -> Result<(), DiskError> {
        self.bulks.ingest(&self.db, &self.family(cf)?, ids)
    }

    fn remove_bulk(&self, id: BulkId) -> Result<(), DiskError> {
        self.bulks.remove(id)
    }

    fn bulks(&self) -> Result<Vec<BulkId>, DiskError> {
        self.bulks.list()
    }

    fn view(&self) -> Box<dyn View> {
        Box::new(RocksView::new(Arc::clone(&self.db)))
    }

    fn flush(&self, cf: Cf) -> Result<(), DiskError> {
        self.db
            .flush_cf(&self.family(cf)?)
            .map_err(|error| translate(&error))
    }
}

use snapshot::RocksView;

mod snapshot {
    //! A snapshot that owns its database, so that it can outlive the borrow. The one place with
    //! `unsafe` code.

    use std::mem::ManuallyDrop;
    use std::sync::Arc;

    use bytes::Bytes;
    use rocksdb::{DB, Direction, IteratorMode, Snapshot};

    use super::{bounds, bounds_reverse, family, pairs, translate};
    use crate::disk::{Cf, DiskError, Pair, View};

    pub(super) struct RocksView {
        // Dropped before `db`, in `Drop`.
        snapshot: ManuallyDrop<Snapshot<'static>>,
        db: Arc<DB>,
    }

    impl RocksView {
        pub(super) fn new(db: Arc<DB>) -> Self {
            // SAFETY: the reference is to the heap allocation of the `Arc` that is stored beside the
            // snapshot and not given up before the snapshot is dropped; the allocation does not
            // move when the `Arc` does.
            let borrowed: &'static DB = unsafe { &*Arc::as_ptr(&db) };
            Self {
                snapshot: ManuallyDrop::new(borrowed.snapshot()),
                db,
            }
        }
    }

    impl Drop for RocksView {
        fn drop(&mut self) {
            // SAFETY: called once, here, while `db` is alive; nothing uses the snapshot later.
            unsafe { ManuallyDrop::drop(&mut self.snapshot) };
        }
    }

    impl View for RocksView {
        fn get(&self, cf: Cf, key: &[u8]) -> Result<Option<Bytes>, DiskError> {
            let family = family(&self.db, cf)?;
            let value = self
                .snapshot
                .get_cf(&family, key)
                .map_err(|error| translate(&error))?;
            Ok(value.map(Bytes::from))
        }

        fn scan(
            &self,
            cf: Cf,
            start: &[u8],
            end: Option<&[u8]>,
            limit: usize,
        ) -> Result<Vec<Pair>, DiskError> {
            let family = family(&self.db, cf)?;
            let mode = IteratorMode::From(start, Direction::Forward);
            pairs(
                self.snapshot.iterator_cf_opt(&family, bounds(end), mode),
                limit,
            )
        }

        fn scan_reverse(
            &self,
            cf: Cf,
            start: &[u8],
            end: Option<&[u8]>,
            limit: usize,
        ) -> Result<Vec<Pair>, DiskError> {
            let Some(read) = bounds_reverse(start, end) else {
                return Ok(Vec::new());
            };
            let family = family(&self.db, cf)?;
            let iterator = self
                .snapshot
                .iterator_cf_opt(&family, read, IteratorMode::End);
            pairs(iterator, limit)
        }
    }
}

/// The version of the engine that last opened the directory at `path`, as the engine itself wrote it
/// down there; `None` if nothing was written or it cannot be read.
#[must_use]
pub fn engine_version(path: &Path) -> Option<String> {
    let files = std::fs::read_dir(path).ok()?.filter_map(Result::ok);
    // The numbers have a fixed width: the last name is the newest file.
    let newest = files
        .map(|file| file.path())
        .filter(|path| {
            path.file_name()
                .is_some_and(|n| n.to_string_lossy().starts_with("OPTIONS-"))
        })
        .filter(|path| path.extension().is_none())
        .max()?;
    let text = std::fs::read_to_string(newest).ok()?;
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("rocksdb_version="));
    line.map(str::to_owned)
}
