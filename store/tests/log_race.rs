//! A read of the log that meets a write between the disk and the index.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use polyraft_core::{Entry, EntryId, EntryKind, Index, ReplicaId, Term};
use polyraft_multiraft::GroupId;
use polyraft_multiraft::env::{Lifecycle, LogBatch, LogEngine, LogError, LogSection};
use polyraft_store::conformance::{Around, Writes};
use polyraft_store::disk::{Batch, Disk, DiskError, Durability};
use polyraft_store::{LogOptions, MemoryDisk, RaftLog};

/// Stops the next write when it has happened, says so, and lets it return when told to.
type Gate = Arc<Mutex<Option<(SyncSender<()>, Receiver<()>)>>>;

#[derive(Clone, Default)]
struct Slow(Gate);

impl Writes<MemoryDisk> for Slow {
    fn write(
        &self,
        disk: &MemoryDisk,
        batch: Batch,
        durability: Durability,
    ) -> Result<(), DiskError> {
        disk.write(batch, durability)?;
        if let Some((written, go_on)) = self.0.lock().take() {
            written.send(()).unwrap();
            go_on.recv().unwrap();
        }
        Ok(())
    }
}

fn batch(section: LogSection) -> LogBatch {
    let section = LogSection {
        group: GroupId(1),
        ..section
    };
    LogBatch {
        sync: true,
        sections: vec![section],
    }
}

/// A replica is reset to a snapshot while somebody reads its settled entries: they are not there any more,
/// which is no damage, however long the writer takes.
#[test]
fn a_reset_is_not_taken_for_damage() {
    let slow = Slow::default();
    let gate = Arc::clone(&slow.0);
    let options = LogOptions {
        hot_bytes_max: 0,
        ..LogOptions::default()
    };
    let log = RaftLog::new(Around(MemoryDisk::new(), slow), options);
    log.recover().unwrap();
    let create = Lifecycle::Create {
        replica: ReplicaId(1),
    };
    log.write(&batch(LogSection {
        lifecycle: Some(create),
        ..LogSection::default()
    }))
    .unwrap();
    let entry = |index| Entry {
        term: Term(1),
        index: Index(index),
        kind: EntryKind::Normal,
        data: Bytes::from_static(b"data"),
    };
    log.write(&batch(LogSection {
        entries: (1..=3).map(entry).collect(),
        ..LogSection::default()
    }))
    .unwrap();
    while log.maintain().unwrap() {}
    let read = || log.read(GroupId(1), Index(1), Index(4), u64::MAX);
    assert_eq!(read().unwrap().len(), 3);

    let (written, is_written) = sync_channel(1);
    let (go_on, told) = sync_channel(1);
    *gate.lock() = Some((written, told));
    std::thread::scope(|scope| {
        let reset = batch(LogSection {
            reset: Some(EntryId::new(2, 10)),
            ..LogSection::default()
        });
        let log = &log;
        let writer = scope.spawn(move || log.write(&reset).map(drop));
        is_written.recv().unwrap();
        let (answer, answered) = sync_channel(1);
        scope.spawn(move || answer.send(read()).unwrap());
        // Whoever does not wait for the writer answers now.
        let early = answered.recv_timeout(Duration::from_millis(200)).ok();
        go_on.send(()).unwrap();
        let answer = early.unwrap_or_else(|| answered.recv().unwrap());
        assert!(
            matches!(answer, Err(LogError::Unavailable { .. })),
            "{answer:?}"
        );
        writer.join().unwrap().unwrap();
    });
}
