//! Messages on their way out, until a Ready takes them.
//!
//! The list goes away with the Ready, so each one would grow from nothing: copied half a dozen times
//! on the way where a busy leader fills it with hundreds of messages.

use alloc::vec::Vec;

use crate::message::Message;

#[derive(Debug, Default)]
pub(crate) struct Outbox {
    list: Vec<Message>,
    /// How many the last Ready took: as many will do for the next.
    usual: usize,
    /// Where the newest round of heartbeats begins.
    heartbeats: Option<usize>,
}

impl Outbox {
    pub(crate) fn push(&mut self, message: Message) {
        if self.list.capacity() == 0 {
            self.list.reserve_exact(self.usual.max(2));
        }
        self.list.push(message);
    }

    pub(crate) fn take(&mut self) -> Vec<Message> {
        self.heartbeats = None;
        if !self.list.is_empty() {
            self.usual = self.list.len();
        }
        core::mem::take(&mut self.list)
    }

    /// What is pushed next is a round of heartbeats.
    pub(crate) const fn begin_heartbeats(&mut self) {
        self.heartbeats = Some(self.list.len());
    }

    /// The newest round of `count` heartbeats, if it was not taken yet.
    pub(crate) fn heartbeats(&mut self, count: usize) -> Option<&mut [Message]> {
        let from = self.heartbeats?;
        self.list.get_mut(from..from + count)
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}
