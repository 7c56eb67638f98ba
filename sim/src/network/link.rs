//! One lane from one store to another: the sender's end of a connection of its own.
//!
//! Invariants: frames arrive in the order in which they are in `in_flight`, whatever the order of
//! their arrivals; per frame there is one arrival, which is scheduled or counted in `stalled`; an
//! arrival or timer that was made for an earlier phase (`epoch`) does nothing.

use std::collections::VecDeque;

use polyraft_core::{Message, Payload};
use polyraft_multiraft::GroupId;
use polyraft_multiraft::env::{Body, GroupMessage, Lane};

use crate::time::{MILLISECOND, Nanos, SECOND};

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// There is none, and trying is of no use now. What is sent is dropped.
    Down,
    /// It is being made. What is sent waits.
    Connecting,
    /// It stands.
    Up,
    /// It is gone, and the sender does not know. What is sent is lost.
    Broken,
}

/// See the module.
pub(super) struct Link {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) lane: Lane,
    pub(super) phase: Phase,
    /// Grows with each change of the phase.
    pub(super) epoch: u32,
    /// Grows whenever an end begins or ceases to hear nothing: an alarm that was set for an earlier
    /// time is void.
    pub(super) doubt: u32,
    /// When the last frame will arrive.
    pub(super) last_due: Nanos,
    pub(super) in_flight: VecDeque<Frame>,
    /// Arrivals that came while nothing gets through, and will be repeated when it does.
    pub(super) stalled: usize,
    /// While nothing comes back: frames that still get through before the window is full.
    pub(super) unacknowledged: Option<u32>,
    pub(super) waiting: VecDeque<GroupMessage>,
    /// Since when it stands.
    up_since: Nanos,
    backoff: Nanos,
}

/// Messages that travel together.
pub(super) struct Frame {
    pub(super) due: Nanos,
    pub(super) messages: Vec<GroupMessage>,
}

/// A connection that lasted so long was a good one: the next attempt comes at once.
const SOUND: Nanos = 3 * SECOND;
const BACKOFF_MIN: Nanos = 20 * MILLISECOND;

impl Link {
    pub(super) const fn new(from: usize, to: usize, lane: Lane) -> Self {
        Self {
            from,
            to,
            lane,
            phase: Phase::Down,
            epoch: 0,
            doubt: 0,
            last_due: 0,
            in_flight: VecDeque::new(),
            stalled: 0,
            unacknowledged: None,
            waiting: VecDeque::new(),
            up_since: 0,
            backoff: BACKOFF_MIN,
        }
    }

    /// Enters a phase, in which nothing is under way at first. Returns what was.
    pub(super) fn enter(&mut self, phase: Phase, now: Nanos) -> VecDeque<Frame> {
        if phase == Phase::Up {
            self.up_since = now;
        }
        self.phase = phase;
        self.epoch += 1;
        self.doubt += 1;
        self.last_due = now;
        self.stalled = 0;
        self.unacknowledged = None;
        std::mem::take(&mut self.in_flight)
    }

    /// How long the sender waits before it tries again after a connection that has ended.
    pub(super) fn pause(&mut self, now: Nanos, longest: Nanos) -> Nanos {
        if now.saturating_sub(self.up_since) >= SOUND {
            self.backoff = BACKOFF_MIN;
        }
        let pause = self.backoff.min(longest);
        self.backoff = (2 * self.backoff).min(longest.max(BACKOFF_MIN));
        pause
    }

    /// Appends messages, at the cost of the oldest if there is no room: returns whose those were,
    /// ascending, each once, and how many they were.
    pub(super) fn push(
        &mut self,
        messages: Vec<GroupMessage>,
        waiting_max: usize,
    ) -> (Vec<GroupId>, usize) {
        self.waiting.extend(messages);
        let excess = self.waiting.len().saturating_sub(waiting_max.max(1));
        let oldest = self.waiting.drain(..excess);
        let mut groups: Vec<GroupId> = oldest.map(|message| message.group).collect();
        groups.sort_unstable();
        groups.dedup();
        (groups, excess)
    }

    /// What travels next.
    pub(super) fn take(&mut self, frame_max: usize) -> Vec<GroupMessage> {
        let count = self.waiting.len().min(frame_max.max(1));
        self.waiting.drain(..count).collect()
    }

    /// Whether messages that are sent now can travel as they are.
    pub(super) fn is_free(&self, messages: usize, frame_max: usize, in_flight_max: usize) -> bool {
        self.waiting.is_empty() && messages <= frame_max && self.has_room(in_flight_max)
    }

    /// Whether one more frame may travel.
    pub(super) fn has_room(&self, in_flight_max: usize) -> bool {
        self.phase == Phase::Up && self.in_flight.len() < in_flight_max.max(1)
    }
}

/// Orders a frame as its columns do: heartbeats, their answers, the rest.
pub(super) fn as_over_a_wire(messages: &mut [GroupMessage]) {
    if !messages.is_sorted_by_key(column) {
        messages.sort_by_key(column);
    }
}

const fn column(message: &GroupMessage) -> u8 {
    match &message.body {
        Body::Sleep(_)
        | Body::Raft(Message {
            payload: Payload::Heartbeat { .. },
            ..
        }) => 0,
        Body::Raft(Message {
            payload: Payload::HeartbeatResponse { .. },
            ..
        }) => 1,
        Body::Raft(_) | Body::Tombstone { .. } => 2,
    }
}
