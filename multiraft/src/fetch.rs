//! The fetcher: log ranges that are not in memory any more, read off the worker threads.

use std::sync::Arc;

use polyraft_core::{Fetched, StorageError};

use crate::effects::FetchTask;
use crate::env::{LogEngine, LogError};
use crate::group::GroupId;
use crate::input::Input;

/// Reads one range. A log that is damaged is reported as such, so that the replica is taken out of
/// service; what was truncated meanwhile is no damage.
///
/// # Errors
/// The engine cannot be trusted any more.
pub fn fetch(engine: &Arc<dyn LogEngine>, task: FetchTask) -> Result<Input, LogError> {
    let FetchTask {
        group,
        replica,
        fetch,
        ..
    } = task;
    let entries = match engine.read(group, fetch.low, fetch.high, fetch.max_bytes) {
        Ok(entries) => Ok(entries),
        Err(LogError::Unavailable { .. }) => Err(StorageError::Compacted),
        Err(LogError::Corrupt { group, reason }) => return Ok(damaged(group, reason)),
        Err(error) => return Err(error),
    };
    Ok(Input::Fetched {
        group,
        replica,
        fetched: Fetched { fetch, entries },
    })
}

fn damaged(group: GroupId, reason: String) -> Input {
    Input::Quarantine {
        group,
        reason,
        by_applier: false,
    }
}
