//! A host's way out: what it sends waits here until the world lets the network take it.
//!
//! Invariant: nothing happens inside a host's call but that something is appended, so that what a
//! pass does cannot depend on the network.

use std::sync::Arc;

use parking_lot::Mutex;
use polyraft_core::SnapshotOutcome;
use polyraft_multiraft::env::{
    Body, GroupMessage, Lane, SnapshotHeader, SnapshotSource, Transport,
};
use polyraft_multiraft::{Responder, StoreId};

use crate::observe::{Observation, Observer};

/// What hosts have handed over and the network has not taken yet, in order.
pub(super) type Outbox = Mutex<Vec<Handed>>;

/// Something handed over.
pub(super) struct Handed {
    /// By whom.
    pub(super) from: usize,
    /// By which incarnation of it; an earlier one sends nothing any more.
    pub(super) incarnation: u64,
    pub(super) to: StoreId,
    pub(super) what: What,
}

pub(super) enum What {
    Messages(Lane, Vec<GroupMessage>),
    Snapshot(Box<Parcel>),
}

/// A snapshot as it is handed over.
pub(super) struct Parcel {
    pub(super) header: SnapshotHeader,
    pub(super) source: Box<dyn SnapshotSource>,
    pub(super) done: Responder<SnapshotOutcome>,
}

/// See the module.
pub(super) struct Port {
    pub(super) store: StoreId,
    pub(super) slot: usize,
    pub(super) incarnation: u64,
    pub(super) outbox: Arc<Outbox>,
    pub(super) observer: Observer,
}

impl Port {
    fn hand_over(&self, to: StoreId, what: What) {
        self.outbox.lock().push(Handed {
            from: self.slot,
            incarnation: self.incarnation,
            to,
            what,
        });
    }

    fn show(&self, to: StoreId, message: &GroupMessage) {
        let from = self.store;
        self.observer.see(&Observation::Sent { from, to, message });
    }
}

impl Transport for Port {
    fn send(&self, to: StoreId, lane: Lane, messages: Vec<GroupMessage>) {
        for message in &messages {
            self.show(to, message);
        }
        if !messages.is_empty() {
            self.hand_over(to, What::Messages(lane, messages));
        }
    }

    fn send_snapshot(
        &self,
        to: StoreId,
        header: SnapshotHeader,
        source: Box<dyn SnapshotSource>,
        done: Responder<SnapshotOutcome>,
    ) {
        self.show(to, &as_message(&header));
        let parcel = Parcel {
            header,
            source,
            done,
        };
        self.hand_over(to, What::Snapshot(Box::new(parcel)));
    }
}

/// The message that a snapshot is.
pub(super) fn as_message(header: &SnapshotHeader) -> GroupMessage {
    GroupMessage {
        group: header.group,
        body: Body::Raft(header.message.clone()),
    }
}
