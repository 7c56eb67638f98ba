//! Messages that wait for one lane to one store, bounded in bytes.
//!
//! When full, the oldest go: they are the ones that Raft has most likely repeated already.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use polyraft_multiraft::env::GroupMessage;
use tokio::sync::Notify;

use crate::codec;
use crate::proto;

#[derive(Debug)]
pub(crate) struct Queue {
    bytes_max: usize,
    waiting: Mutex<Waiting>,
    pub(crate) news: Notify,
    pub(crate) dropped: AtomicU64,
    pub(crate) messages: AtomicU64,
    pub(crate) frames: AtomicU64,
}

#[derive(Debug, Default)]
struct Waiting {
    messages: VecDeque<GroupMessage>,
    bytes: usize,
}

impl Queue {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            waiting: Mutex::default(),
            news: Notify::new(),
            dropped: AtomicU64::new(0),
            messages: AtomicU64::new(0),
            frames: AtomicU64::new(0),
        }
    }

    /// Never blocks.
    pub(crate) fn push(&self, messages: Vec<GroupMessage>) {
        let mut waiting = self.waiting.lock();
        for message in messages {
            waiting.bytes += codec::size(&message);
            waiting.messages.push_back(message);
        }
        let mut dropped = 0;
        while waiting.bytes > self.bytes_max && waiting.messages.len() > 1 {
            let Some(oldest) = waiting.messages.pop_front() else {
                break;
            };
            waiting.bytes -= codec::size(&oldest);
            dropped += 1;
        }
        drop(waiting);
        self.dropped.fetch_add(dropped, Ordering::Relaxed);
        self.news.notify_one();
    }

    /// The next frame: everything that waits, up to a size.
    pub(crate) fn take(&self, bytes_max: usize) -> Option<proto::Frame> {
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
        drop(waiting);
        self.messages.fetch_add(count, Ordering::Relaxed);
        self.frames
            .fetch_add(u64::from(count > 0), Ordering::Relaxed);
        (count > 0).then_some(frame)
    }

    /// What waits is of no use any more: the connection it was for is gone.
    pub(crate) fn clear(&self) {
        let mut waiting = self.waiting.lock();
        let count = waiting.messages.len() as u64;
        *waiting = Waiting::default();
        drop(waiting);
        self.dropped.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn bytes(&self) -> usize {
        self.waiting.lock().bytes
    }
}

const KEEP_CAPACITY: usize = 4096;

#[cfg(test)]
mod tests {
    use polyraft_core::ReplicaId;
    use polyraft_multiraft::GroupId;
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

    #[test]
    fn the_oldest_are_dropped_and_counted_when_full() {
        let size = codec::size(&message(0));
        let queue = Queue::new(size * 3);
        queue.push((0..5).map(message).collect());
        assert_eq!(queue.dropped.load(Ordering::Relaxed), 2);
        let frame = queue.take(usize::MAX).unwrap();
        let groups: Vec<u64> = frame.messages.iter().map(|message| message.group).collect();
        assert_eq!(groups, [2, 3, 4]);
        assert_eq!(queue.bytes(), 0);
        assert!(queue.take(usize::MAX).is_none());
    }

    #[test]
    fn frames_are_bounded_and_keep_the_order() {
        let size = codec::size(&message(0));
        let queue = Queue::new(usize::MAX);
        queue.push((0..5).map(message).collect());
        let mut groups = Vec::new();
        while let Some(frame) = queue.take(size * 2) {
            assert!(frame.messages.len() <= 2);
            groups.extend(frame.messages.iter().map(|message| message.group));
        }
        assert_eq!(groups, [0, 1, 2, 3, 4]);
        assert_eq!(queue.frames.load(Ordering::Relaxed), 3);
    }
}
