//! Messages that wait for one lane to one store, bounded in bytes.
//!
//! When full, the oldest go: they are the ones that Raft has most likely repeated already. The
//! newest message always stays, so that a large one cannot starve; one that no frame can carry is
//! dropped.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use polyraft_multiraft::env::GroupMessage;
use polyraft_multiraft::{GroupId, StoreId};
use tokio::sync::Notify;

use crate::codec;
use crate::config::{FRAME_BYTES_MAX, SINGLE_BYTES_MAX};
use crate::link::LaneKind;
use crate::meters::LaneOut;
use crate::proto;

pub(crate) struct Queue {
    bytes_max: usize,
    waiting: Mutex<Waiting>,
    pub(crate) news: Notify,
    pub(crate) dropped: AtomicU64,
    pub(crate) messages: AtomicU64,
    pub(crate) frames: AtomicU64,
    pub(crate) meters: LaneOut,
}

#[derive(Default)]
struct Waiting {
    messages: VecDeque<GroupMessage>,
    bytes: usize,
}

impl Queue {
    pub(crate) fn new(store: StoreId, lane: LaneKind, bytes_max: usize) -> Self {
        Self {
            bytes_max,
            waiting: Mutex::default(),
            news: Notify::new(),
            dropped: AtomicU64::new(0),
            messages: AtomicU64::new(0),
            frames: AtomicU64::new(0),
            meters: LaneOut::new(store, lane),
        }
    }

    /// Never blocks. Returns whose messages were dropped for it, ascending, each group once.
    #[must_use]
    pub(crate) fn push(&self, messages: Vec<GroupMessage>) -> Vec<GroupId> {
        let mut dropped = Vec::new();
        let mut waiting = self.waiting.lock();
        for message in messages {
            let size = codec::size(&message);
            if size > SINGLE_BYTES_MAX {
                tracing::error!(group = %message.group, size, "no frame can carry this message");
                dropped.push(message.group);
                continue;
            }
            waiting.bytes += size;
            waiting.messages.push_back(message);
        }
        while waiting.bytes > self.bytes_max && waiting.messages.len() > 1 {
            let Some(oldest) = waiting.messages.pop_front() else {
                break;
            };
            waiting.bytes -= codec::size(&oldest);
            dropped.push(oldest.group);
        }
        self.meters.waiting.set(waiting.bytes as f64);
        drop(waiting);
        self.count_dropped(dropped.len() as u64);
        self.news.notify_one();
        dropped.sort_unstable();
        dropped.dedup();
        dropped
    }

    /// The next frame: everything that waits, up to a size.
    pub(crate) fn take(&self, bytes_max: usize) -> Option<proto::Frame> {
        let bytes_max = bytes_max.min(FRAME_BYTES_MAX);
        let mut waiting = self.waiting.lock();
        let mut frame = proto::Frame::default();
        let (mut bytes, mut count) = (0, 0);
        while let Some(next) = waiting.messages.front() {
            let size = codec::size(next);
            if count > 0 && bytes + size > bytes_max {
                break;
            }
            let Some(message) = waiting.messages.pop_front() else {
                break;
            };
            waiting.bytes -= size;
            bytes += size;
            count += 1;
            codec::encode(&mut frame, message);
        }
        if waiting.messages.capacity() > KEEP_CAPACITY && waiting.messages.is_empty() {
            waiting.messages = VecDeque::new();
        }
        self.meters.waiting.set(waiting.bytes as f64);
        drop(waiting);
        if count == 0 {
            return None;
        }
        self.messages.fetch_add(count, Ordering::Relaxed);
        self.frames.fetch_add(1, Ordering::Relaxed);
        self.meters.frames.increment(1);
        self.meters.messages.increment(count);
        self.meters.bytes.increment(bytes as u64);
        Some(frame)
    }

    /// What waits is of no use any more: the connection it was for is gone.
    pub(crate) fn clear(&self) {
        let mut waiting = self.waiting.lock();
        let count = waiting.messages.len() as u64;
        *waiting = Waiting::default();
        self.meters.waiting.set(0.0);
        drop(waiting);
        self.count_dropped(count);
    }

    fn count_dropped(&self, count: u64) {
        if count > 0 {
            self.dropped.fetch_add(count, Ordering::Relaxed);
            self.meters.dropped.increment(count);
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.waiting.lock().bytes
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue")
            .field("bytes", &self.bytes())
            .field("dropped", &self.dropped)
            .finish_non_exhaustive()
    }
}

const KEEP_CAPACITY: usize = 4096;

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use polyraft_core::{Entry, EntryId, Index, Message, Payload, ReplicaId, Term};
    use polyraft_multiraft::env::Body;

    use super::*;

    fn message(group: u64) -> GroupMessage {
        let body = Body::Tombstone {
            replica: ReplicaId(1),
            next_replica: ReplicaId(2),
        };
        GroupMessage {
            group: GroupId(group),
            body,
        }
    }

    fn append(group: u64, bytes: usize) -> GroupMessage {
        let entry = Entry {
            term: Term(1),
            index: Index(1),
            data: Bytes::from(vec![7; bytes]),
            ..Entry::default()
        };
        let body = Body::Raft(Message {
            from: ReplicaId(1),
            to: ReplicaId(2),
            term: Term(1),
            payload: Payload::Append {
                prev: EntryId::default(),
                entries: vec![entry],
                commit: Index(0),
            },
        });
        GroupMessage {
            group: GroupId(group),
            body,
        }
    }

    fn queue(bytes_max: usize) -> Queue {
        Queue::new(StoreId(2), LaneKind::Append, bytes_max)
    }

    fn groups(frame: &proto::Frame) -> Vec<u64> {
        frame.messages.iter().map(|message| message.group).collect()
    }

    #[test]
    fn the_oldest_are_dropped_counted_and_named_when_full() {
        let size = codec::size(&message(0));
        let queue = queue(size * 3);
        assert!(queue.push(vec![message(9), message(8)]).is_empty());
        let dropped = queue.push([8, 9, 3, 2].map(message).to_vec());
        assert_eq!(dropped, [GroupId(8), GroupId(9)]);
        assert_eq!(queue.dropped.load(Ordering::Relaxed), 3);
        assert_eq!(queue.bytes(), size * 3);
        assert_eq!(groups(&queue.take(usize::MAX).unwrap()), [9, 3, 2]);
        assert_eq!(queue.bytes(), 0);
        assert!(queue.take(usize::MAX).is_none());
    }

    #[test]
    fn a_large_message_gets_through_and_an_impossible_one_is_dropped() {
        let queue = queue(1000);
        let dropped = queue.push(vec![message(1), append(2, 5000)]);
        assert_eq!(dropped, [GroupId(1)]);
        assert_eq!(groups(&queue.take(100).unwrap()), [2]);
        let dropped = queue.push(vec![append(3, SINGLE_BYTES_MAX), message(4)]);
        assert_eq!(dropped, [GroupId(3)]);
        assert_eq!(groups(&queue.take(100).unwrap()), [4]);
        assert_eq!(queue.dropped.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn frames_are_bounded_and_keep_the_order() {
        let size = codec::size(&message(0));
        let queue = queue(usize::MAX);
        assert!(queue.push((0..5).map(message).collect()).is_empty());
        let mut all = Vec::new();
        while let Some(frame) = queue.take(size * 2) {
            assert!(frame.messages.len() <= 2);
            all.extend(groups(&frame));
        }
        assert_eq!(all, [0, 1, 2, 3, 4]);
        assert_eq!(queue.frames.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn what_waits_for_a_connection_that_is_gone_is_counted_as_dropped() {
        let queue = queue(usize::MAX);
        assert!(queue.push((0..5).map(message).collect()).is_empty());
        queue.clear();
        assert_eq!(queue.bytes(), 0);
        assert_eq!(queue.dropped.load(Ordering::Relaxed), 5);
        assert!(queue.take(usize::MAX).is_none());
    }
}
