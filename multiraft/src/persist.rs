//! The log writer: what many groups want to write becomes one record and one sync.
//!
//! Takes everything that is queued, up to a size, so that batches grow with the load and nothing ever
//! waits for company. Messages that wait for the disk are sent from here, against the receipt.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use polyraft_core::{Durable, Message, planted};

use crate::config::HostConfig;
use crate::effects::{DestroyData, LaneKey, WriteItem};
use crate::env::{Body, GroupMessage, LogBatch, LogEngine, LogError};
use crate::group::StoreId;
use crate::input::PersistedItem;
use crate::worker::{Counters, Shared, lane_of};

/// See the module.
pub struct LogWriter {
    engine: Arc<dyn LogEngine>,
    config: Arc<HostConfig>,
    shared: Arc<Shared>,
}

/// What one write gives rise to.
#[must_use]
#[derive(Debug, Default)]
pub struct Written {
    /// Messages that promise what is durable now.
    pub sends: BTreeMap<(StoreId, LaneKey), Vec<GroupMessage>>,
    /// Receipts, by worker.
    pub persisted: BTreeMap<usize, Vec<PersistedItem>>,
    /// Replicas whose tombstone is durable now, with their worker.
    pub destroyed: Vec<(usize, polyraft_core::ReplicaId, DestroyData)>,
}

impl LogWriter {
    pub(crate) fn new(
        engine: Arc<dyn LogEngine>,
        config: Arc<HostConfig>,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            engine,
            config,
            shared,
        }
    }

    /// Whether a batch of so many groups and bytes is large enough.
    #[must_use]
    pub fn is_full(&self, groups: usize, bytes: u64) -> bool {
        groups >= self.config.write_groups_max || bytes >= self.config.write_bytes_max
    }

    /// Writes all of `items` as one record.
    ///
    /// # Errors
    /// Nothing was acknowledged; `items` are as before. [`LogError::DiskFull`] may be tried again.
    pub fn drain(&self, items: &mut Vec<WriteItem>) -> Result<Written, LogError> {
        let sync = if planted!(SyncOfFirstOnly) {
            items.first().is_some_and(|item| item.sync)
        } else {
            items.iter().any(|item| item.sync)
        };
        let sections = items
            .iter_mut()
            .map(|item| std::mem::take(&mut item.section))
            .collect();
        let batch = LogBatch { sync, sections };
        let mut result = self.engine.write(&batch);
        self.shared
            .disk_full
            .store(matches!(result, Err(LogError::DiskFull)), Ordering::Relaxed);
        if planted!(FullDiskAcknowledged) && matches!(result, Err(LogError::DiskFull)) {
            result = Ok(Durable::attest());
        }
        let receipt = match result {
            Ok(receipt) => receipt,
            Err(error) => {
                for (item, section) in items.iter_mut().zip(batch.sections) {
                    item.section = section;
                }
                return Err(error);
            }
        };
        let entries: usize = batch
            .sections
            .iter()
            .map(|section| section.entries.len())
            .sum();
        let counters = &self.shared.counters;
        Counters::add(&counters.writes, 1);
        Counters::add(&counters.synced_writes, u64::from(sync));
        Counters::add(&counters.written_entries, entries as u64);

        let mut written = Written::default();
        for (item, section) in items.drain(..).zip(batch.sections) {
            let (worker, replica, group) = (item.worker, item.replica, section.group);
            let begins = section.reset.is_some() && item.append.is_none();
            if begins {
                let receipts = written.persisted.entry(worker).or_default();
                receipts.push(PersistedItem {
                    group,
                    replica,
                    persisted: None,
                });
            }
            if let Some(append) = item.append {
                let (messages, persisted) = append.persisted(&receipt);
                for message in messages {
                    let group = if planted!(AckToWrongGroup) {
                        let mut before = written.persisted.values().flatten();
                        before.next().map_or(group, |first| first.group)
                    } else {
                        group
                    };
                    send(&mut written, &item.routes, group, message);
                }
                let persisted = Some(persisted);
                let receipts = written.persisted.entry(worker).or_default();
                receipts.push(PersistedItem {
                    group,
                    replica,
                    persisted,
                });
            }
            if let Some(respond) = item.created {
                respond.answer(Ok(()));
            }
            if let Some(data) = item.destroyed {
                written.destroyed.push((worker, replica, data));
            }
        }
        Ok(written)
    }
}

fn send(
    written: &mut Written,
    routes: &[crate::group::Member],
    group: crate::group::GroupId,
    message: Message,
) {
    let Some(to) = routes.iter().find(|member| member.replica == message.to) else {
        return;
    };
    let key = (to.store, lane_of(&message));
    let message = GroupMessage {
        group,
        body: Body::Raft(message),
    };
    written.sends.entry(key).or_default().push(message);
}

impl std::fmt::Debug for LogWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogWriter").finish_non_exhaustive()
    }
}
