//! Files of pairs as RocksDB has them, in a directory within its own, which it leaves alone.
//!
//! A file is ingested by a hard link of it, which the engine takes away when it is done: the file itself
//! stays until it is removed, and costs nothing, since the engine never changes a file.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rocksdb::{
    BoundColumnFamily, DB, DBCompressionType, IngestExternalFileOptions, Options, SstFileWriter,
};

use super::translate;
use crate::bulk::{BulkId, BulkWriter};
use crate::disk::DiskError;

const DIRECTORY: &str = "bulk";
const FILE: &str = "sst";
/// On its way into the database.
const LINK: &str = "link";

/// Where the files are.
#[derive(Clone, Debug)]
pub(super) struct BulkDir(Arc<PathBuf>);

impl BulkDir {
    /// The directory within that of a database.
    pub(super) fn open(database: &Path) -> Result<Self, DiskError> {
        let path = database.join(DIRECTORY);
        fs::create_dir_all(&path).map_err(|error| refused(&path, &error))?;
        sync_dir(database)?;
        let this = Self(Arc::new(path));
        for path in this.paths()? {
            if path.extension().is_some_and(|extension| extension == LINK) {
                remove(&path)?;
            }
        }
        Ok(this)
    }

    pub(super) fn begin(&self, id: BulkId) -> Result<Box<dyn BulkWriter>, DiskError> {
        let path = self.path(id, FILE);
        let writer = SstFileWriter::create(options());
        writer.open(&path).map_err(|error| translate(&error))?;
        Ok(Box::new(RocksBulk {
            writer: Some(writer),
            path,
            directory: self.clone(),
        }))
    }

    pub(super) fn ingest(
        &self,
        database: &DB,
        family: &Arc<BoundColumnFamily<'_>>,
        ids: &[BulkId],
    ) -> Result<(), DiskError> {
        let links: Vec<PathBuf> = ids.iter().map(|id| self.path(*id, LINK)).collect();
        let result = self.link(ids).and_then(|()| {
            let mut options = IngestExternalFileOptions::default();
            options.set_move_files(true);
            let paths = links.iter().collect();
            let ingested = database.ingest_external_file_cf_opts(family, &options, paths);
            ingested.map_err(|error| translate(&error))
        });
        if result.is_err() {
            for link in links {
                remove(&link)?;
            }
        }
        result
    }

    fn link(&self, ids: &[BulkId]) -> Result<(), DiskError> {
        for id in ids {
            let (file, link) = (self.path(*id, FILE), self.path(*id, LINK));
            remove(&link)?;
            fs::hard_link(&file, &link).map_err(|error| refused(&file, &error))?;
        }
        Ok(())
    }

    pub(super) fn remove(&self, id: BulkId) -> Result<(), DiskError> {
        remove(&self.path(id, FILE))
    }

    pub(super) fn list(&self) -> Result<Vec<BulkId>, DiskError> {
        let mut ids: Vec<BulkId> = self.paths()?.iter().filter_map(|path| id(path)).collect();
        ids.sort_unstable();
        Ok(ids)
    }

    fn paths(&self) -> Result<Vec<PathBuf>, DiskError> {
        let entries = fs::read_dir(self.0.as_path());
        let paths = entries.and_then(|entries| entries.map(|e| Ok(e?.path())).collect());
        paths.map_err(|error| refused(&self.0, &error))
    }

    fn path(&self, id: BulkId, extension: &str) -> PathBuf {
        let BulkId { set, number } = id;
        self.0.join(format!("{set:016x}-{number:08x}.{extension}"))
    }
}

/// The file that has this name.
fn id(path: &Path) -> Option<BulkId> {
    if path.extension()? != FILE {
        return None;
    }
    let (set, number) = path.file_stem()?.to_str()?.split_once('-')?;
    Some(BulkId {
        set: u64::from_str_radix(set, 16).ok()?,
        number: u32::from_str_radix(number, 16).ok()?,
    })
}

fn remove(path: &Path) -> Result<(), DiskError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(refused(path, &error)),
        _ => Ok(()),
    }
}

/// Names in a directory are durable when it is synced.
fn sync_dir(path: &Path) -> Result<(), DiskError> {
    let synced = File::open(path).and_then(|directory| directory.sync_all());
    synced.map_err(|error| refused(path, &error))
}

fn refused(path: &Path, error: &io::Error) -> DiskError {
    match error.kind() {
        io::ErrorKind::StorageFull => DiskError::Full,
        _ => DiskError::Fatal(format!("{}: {error}", path.display())),
    }
}

/// What is written looks as the engine's own files do.
fn options() -> &'static Options {
    static OPTIONS: OnceLock<Options> = OnceLock::new();
    OPTIONS.get_or_init(|| {
        let mut options = Options::default();
        let mut blocks = rocksdb::BlockBasedOptions::default();
        blocks.set_bloom_filter(10.0, false);
        options.set_block_based_table_factory(&blocks);
        options.set_compression_type(DBCompressionType::Lz4);
        options
    })
}

/// A file that is being written.
struct RocksBulk {
    /// None: it is finished.
    writer: Option<SstFileWriter<'static>>,
    path: PathBuf,
    directory: BulkDir,
}

impl RocksBulk {
    fn with(
        &mut self,
        write: impl FnOnce(&mut SstFileWriter<'static>) -> Result<(), rocksdb::Error>,
    ) -> Result<(), DiskError> {
        let writer = self.writer.as_mut();
        let written = writer.map_or(Ok(()), write);
        written.map_err(|error| translate(&error))
    }
}

impl BulkWriter for RocksBulk {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), DiskError> {
        self.with(|writer| writer.put(key, value))
    }

    fn remove_range(&mut self, start: &[u8], end: &[u8]) -> Result<(), DiskError> {
        self.with(|writer| writer.delete_range(start, end))
    }

    /// The engine syncs the file, but not its name.
    fn finish(mut self: Box<Self>) -> Result<(), DiskError> {
        self.with(SstFileWriter::finish)?;
        sync_dir(&self.directory.0)?;
        self.writer = None;
        Ok(())
    }
}

impl Drop for RocksBulk {
    fn drop(&mut self) {
        // It closes the file.
        if self.writer.take().is_some()
            && let Err(error) = remove(&self.path)
        {
            tracing::warn!(%error, "a file that was given up is still there");
        }
    }
}
