//! Tells the directory what this store knows of the groups that it leads.
//!
//! The host notes a group when this store begins to lead it or has a new descriptor of it; nothing is
//! looked at again and again, and idle groups cost nothing. What was noted stays on the list until the
//! directory has applied it: one command for as many groups as are on the list, one after the
//! other, again if nobody knows what became of it. A store that restarts leads nothing; whoever
//! leads its groups then has news of them, itself perhaps, in a later term. So nothing is lost.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use polyraft_core::RoleName;
use polyraft_multiraft::GroupId;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::command::{Command, Reply};
use super::entry::Entry;
use crate::failure::{Failure, Reason};
use crate::routing::Call;
use crate::server::Server;

/// What comes within this time travels together.
const GATHER: Duration = Duration::from_millis(20);
/// Groups of one command, and keys of their bounds in bytes.
const GROUPS_AT_ONCE: usize = 256;
const BYTES_AT_ONCE: usize = 256 << 10;
/// How long one command may take.
const BOUND: Duration = Duration::from_secs(3);
/// First and last pause before a command is sent again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// What is to be told, and how often it was.
#[derive(Debug, Default)]
pub(crate) struct Publishing {
    wake: Arc<Notify>,
    /// Groups that are no more.
    destroyed: parking_lot::Mutex<BTreeSet<u64>>,
    /// Entries that the directory has taken from this store.
    pub(crate) published: AtomicU64,
    /// Requests for numbers since this start; one is under way at a time.
    pub(crate) requests: tokio::sync::Mutex<u64>,
}

impl Publishing {
    /// A group is no more, for ever.
    pub(crate) fn destroyed(&self, group: u64) {
        self.destroyed.lock().insert(group);
        self.wake.notify_one();
    }
}

/// Publishes until this task is ended.
pub(crate) async fn run(server: Arc<Server>) {
    let wake = Arc::clone(&server.publishing.wake);
    server.handle.watch_led(Arc::new(move || wake.notify_one()));
    let mut led = BTreeSet::new();
    let mut pause = PAUSE.0;
    loop {
        if led.is_empty() && server.publishing.destroyed.lock().is_empty() {
            server.publishing.wake.notified().await;
            sleep(GATHER).await;
        }
        led.extend(server.handle.take_led());
        match server.publish_some(&mut led).await {
            Ok(()) => pause = PAUSE.0,
            Err(failure) => {
                let (waiting, why) = (led.len(), failure.message);
                tracing::debug!(
                    waiting,
                    why,
                    "the directory does not take news; trying again"
                );
                sleep(pause).await;
                pause = (pause * 2).min(PAUSE.1);
            }
        }
    }
}

impl Server {
    /// Tells of some groups, and takes them from the list.
    async fn publish_some(&self, led: &mut BTreeSet<GroupId>) -> Result<(), Failure> {
        let destroyed: Vec<u64> = {
            let all = self.publishing.destroyed.lock();
            all.iter().take(GROUPS_AT_ONCE).copied().collect()
        };
        if !destroyed.is_empty() {
            self.tell(Command::Destroyed(destroyed.clone())).await?;
            let mut all = self.publishing.destroyed.lock();
            all.retain(|group| !destroyed.contains(group));
        }
        let (told, entries) = self.some_entries(led);
        if !entries.is_empty() {
            let count = entries.len() as u64;
            self.tell(Command::Publish(entries)).await?;
            self.publishing
                .published
                .fetch_add(count, Ordering::Relaxed);
        }
        led.retain(|group| !told.contains(group));
        Ok(())
    }

    /// The first groups of the list, and what is to be said of those of them that this store leads still.
    fn some_entries(&self, led: &BTreeSet<GroupId>) -> (BTreeSet<GroupId>, Vec<Entry>) {
        let (mut told, mut entries, mut bytes) = (BTreeSet::new(), Vec::new(), 0);
        for group in led.iter().copied().take(GROUPS_AT_ONCE) {
            if bytes >= BYTES_AT_ONCE {
                break;
            }
            told.insert(group);
            if let Some(entry) = self.entry_of_led(group) {
                let range = entry.range.iter();
                let keys =
                    range.map(|range| range.start.len() + range.end.as_ref().map_or(0, Bytes::len));
                bytes += keys.sum::<usize>();
                entries.push(entry);
            }
        }
        (told, entries)
    }

    /// None: another store leads it, and has the news.
    fn entry_of_led(&self, group: GroupId) -> Option<Entry> {
        let summary = self.handle.summary(group)?;
        let descriptor = self.handle.descriptor(group)?;
        let leads = summary.basic.soft_state.role == RoleName::Leader;
        let term = summary.basic.hard_state.term.0;
        leads.then(|| Entry::new(&descriptor, self.me, term))
    }

    async fn tell(&self, command: Command) -> Result<(), Failure> {
        let call = Call {
            deadline: Instant::now() + BOUND,
            forwarded: false,
            reads: false,
            once: true,
        };
        match self.change_directory(&command, call).await? {
            Reply::Done => Ok(()),
            other => {
                let text = format!("told of groups, the directory answered {other:?}");
                Err(Failure::new(Reason::Internal, text))
            }
        }
    }
}
