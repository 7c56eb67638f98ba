//! What a leader knows of one member, and how it feeds it (thesis section 3.5, 10.2.1).
//!
//! Invariant: `matched < next`; `matched` never falls within a term.

mod inflights;

pub(crate) use inflights::{InflightLimits, Inflights};

use crate::status::{ProgressState, ProgressStatus};
use crate::types::{Index, ReplicaId};

/// How a follower is fed; each way owns only its own data.
#[derive(Clone, Debug)]
pub(crate) enum Feed {
    /// Looks for the last common entry; paused after each message with entries.
    Probe { paused: bool },
    /// Streams through a window; paused when it is full.
    Replicate { paused: bool, inflights: Inflights },
    /// Waits until the snapshot at `pending` has arrived.
    Snapshot { pending: Index },
}

#[derive(Clone, Debug)]
pub(crate) struct Progress {
    pub(crate) id: ReplicaId,
    pub(crate) matched: Index,
    pub(crate) next: Index,
    /// The largest commit index this member may know from us; saves repeated empty appends.
    sent_commit: Index,
    pub(crate) feed: Feed,
    pub(crate) recently_active: bool,
    /// The newest read number it has confirmed.
    pub(crate) read_acked: u64,
}

impl Progress {
    /// A member about which nothing is known.
    pub(crate) const fn new(id: ReplicaId, next: Index, recently_active: bool) -> Self {
        Self {
            id,
            matched: Index(0),
            next,
            sent_commit: Index(0),
            feed: Feed::Probe { paused: false },
            recently_active,
            read_acked: 0,
        }
    }

    pub(crate) fn become_probe(&mut self) {
        // A pending snapshot counts as arrived when the probe begins behind it.
        self.next = match self.feed {
            Feed::Snapshot { pending } => self.matched.next().max(pending.next()),
            Feed::Probe { .. } | Feed::Replicate { .. } => self.matched.next(),
        };
        self.feed = Feed::Probe { paused: false };
        self.lower_sent_commit();
    }

    /// A probe that starts from `matched` whatever snapshot was pending, and waits for the next
    /// heartbeat.
    pub(crate) fn snapshot_failed(&mut self) {
        self.feed = Feed::Probe { paused: false };
        self.become_probe();
        self.pause();
    }

    pub(crate) fn become_replicate(&mut self) {
        self.next = self.matched.next();
        self.feed = Feed::Replicate {
            paused: false,
            inflights: Inflights::default(),
        };
    }

    pub(crate) fn become_snapshot(&mut self, pending: Index) {
        self.next = pending.next();
        self.sent_commit = pending;
        self.feed = Feed::Snapshot { pending };
    }

    pub(crate) const fn is_paused(&self) -> bool {
        match self.feed {
            Feed::Probe { paused } | Feed::Replicate { paused, .. } => paused,
            Feed::Snapshot { .. } => true,
        }
    }

    pub(crate) const fn pause(&mut self) {
        self.set_paused(true);
    }

    pub(crate) const fn resume(&mut self) {
        self.set_paused(false);
    }

    const fn set_paused(&mut self, to: bool) {
        match &mut self.feed {
            Feed::Probe { paused } | Feed::Replicate { paused, .. } => *paused = to,
            Feed::Snapshot { .. } => {}
        }
    }

    /// Whether an append to it may carry entries: with a full window only empty ones go out, so
    /// that a window whose messages were all lost does not stall for ever.
    pub(crate) fn may_carry_entries(&self, limits: InflightLimits) -> bool {
        match &self.feed {
            Feed::Replicate { inflights, .. } => !inflights.is_full(limits),
            Feed::Probe { .. } | Feed::Snapshot { .. } => true,
        }
    }

    /// An append with `count` entries of `bytes` payload was sent.
    pub(crate) fn sent_entries(&mut self, count: u64, bytes: u64, limits: InflightLimits) {
        match &mut self.feed {
            Feed::Replicate { paused, inflights } => {
                if count > 0 {
                    self.next = self.next.plus(count);
                    inflights.add(self.next.prev(), bytes);
                }
                *paused = inflights.is_full(limits);
            }
            Feed::Probe { paused } => *paused |= count > 0,
            Feed::Snapshot { .. } => {}
        }
    }

    pub(crate) const fn sent_commit(&mut self, commit: Index) {
        self.sent_commit = commit;
    }

    /// Whether an empty append would tell it of a commit index that it can use and does not know.
    pub(crate) fn can_bump_commit(&self, commit: Index) -> bool {
        commit > self.sent_commit && self.sent_commit < self.next.prev()
    }

    /// It has everything up to `index`. Returns whether that is news.
    pub(crate) fn maybe_update(&mut self, index: Index) -> bool {
        if index <= self.matched {
            return false;
        }
        self.matched = index;
        self.next = self.next.max(index.next());
        self.resume();
        true
    }

    pub(crate) fn free_inflights(&mut self, index: Index) {
        if let Feed::Replicate { inflights, .. } = &mut self.feed {
            inflights.free_to(index);
        }
    }

    /// It refused an append behind `rejected` and may match at `hint`. Returns false if that is
    /// an answer to something older, which changes nothing.
    pub(crate) fn maybe_decrease(&mut self, rejected: Index, hint: Index) -> bool {
        if matches!(self.feed, Feed::Replicate { .. }) {
            if rejected <= self.matched {
                return false;
            }
            self.next = self.matched.next();
            self.lower_sent_commit();
            return true;
        }
        if self.next.prev() != rejected {
            return false;
        }
        self.next = rejected.min(hint.next()).max(self.matched.next());
        self.lower_sent_commit();
        self.resume();
        true
    }

    fn lower_sent_commit(&mut self) {
        self.sent_commit = self.sent_commit.min(self.next.prev());
    }

    pub(crate) fn status(&self, learner: bool, limits: InflightLimits) -> ProgressStatus {
        let (state, inflights) = match &self.feed {
            Feed::Probe { .. } => (ProgressState::Probe, None),
            Feed::Replicate { inflights, .. } => (ProgressState::Replicate, Some(inflights)),
            Feed::Snapshot { pending } => (ProgressState::Snapshot(*pending), None),
        };
        ProgressStatus {
            id: self.id,
            matched: self.matched,
            next: self.next,
            state,
            recently_active: self.recently_active,
            paused: self.is_paused(),
            inflight_messages: inflights.map_or(0, Inflights::messages),
            inflight_bytes: inflights.map_or(0, Inflights::bytes),
            inflight_full: inflights.is_some_and(|window| window.is_full(limits)),
            learner,
        }
    }
}
