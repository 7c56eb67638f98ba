//! What happened, for people: every event, and under it what the checkers saw.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use polyraft_multiraft::env::{Body, GroupMessage};

use crate::observe::{Checker, Observation};
use crate::time::Nanos;

/// See the module. Clones are the same trace.
#[derive(Clone)]
pub struct Trace {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    now: Nanos,
    lines: VecDeque<String>,
    keep: usize,
    print: Option<fn(&str)>,
}

impl Trace {
    /// The last `keep` lines are kept.
    #[must_use]
    pub fn last(keep: usize) -> Self {
        Self::new(keep, None)
    }

    /// Every line is given to `print` as soon as it is there.
    #[must_use]
    pub fn printing(print: fn(&str)) -> Self {
        Self::new(0, Some(print))
    }

    fn new(keep: usize, print: Option<fn(&str)>) -> Self {
        let inner = Inner {
            now: 0,
            lines: VecDeque::new(),
            keep,
            print,
        };
        Self {
            inner: Arc::new(Mutex::new(inner)),
        }
    }

    pub(crate) fn begin(&self, now: Nanos, event: &impl fmt::Debug) {
        self.inner.lock().now = now;
        self.line(&format!("{event:?}"));
    }

    pub(crate) fn line(&self, what: &str) {
        let mut inner = self.inner.lock();
        let at = inner.now;
        let line = format!("{:>5}.{:09} {what}", at / 1_000_000_000, at % 1_000_000_000);
        if let Some(print) = inner.print {
            print(&line);
        }
        if inner.keep > 0 {
            if inner.lines.len() == inner.keep {
                inner.lines.pop_front();
            }
            inner.lines.push_back(line);
        }
    }

    /// The lines that were kept.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.inner.lock().lines.iter().cloned().collect()
    }

    /// The checker that finds nothing wrong and writes everything down.
    #[must_use]
    pub fn checker(&self) -> Box<dyn Checker> {
        Box::new(Writer(self.clone()))
    }
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trace").finish_non_exhaustive()
    }
}

struct Writer(Trace);

impl Checker for Writer {
    fn name(&self) -> &'static str {
        "trace"
    }

    fn see(&mut self, seen: &Observation<'_>) -> Result<(), String> {
        match seen {
            // Too much, and nothing new.
            Observation::Published { .. } => {}
            Observation::Sent { from, to, message } => {
                self.0
                    .line(&format!("    s{from} -> s{to} {}", said(message)));
            }
            Observation::Delivered { from, to, message } => {
                self.0
                    .line(&format!("    s{to} hears s{from} {}", said(message)));
            }
            other => self.0.line(&format!("    {other:?}")),
        }
        Ok(())
    }
}

fn said(message: &GroupMessage) -> String {
    let group = message.group;
    match &message.body {
        Body::Raft(raft) => format!(
            "group {group}: {} to {} term {} {:?}",
            raft.from, raft.to, raft.term, raft.payload
        ),
        Body::Sleep(raft) => {
            format!(
                "group {group}: {} to {} term {} sleep",
                raft.from, raft.to, raft.term
            )
        }
        Body::Tombstone {
            replica,
            next_replica,
        } => format!("group {group}: no replica {replica} any more, next is {next_replica}"),
    }
}
