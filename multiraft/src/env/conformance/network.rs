//! A network in memory in which nothing happens by itself.
//!
//! What is sent waits under a number until somebody lets it arrive, loses it or doubles it, in
//! whatever order: a simulator plays the network, [`MemoryNetwork::run`] a sound one. There is no
//! thread, clock or randomness in it, and equal calls have equal effects. [`Inbound`] is never
//! called with a lock held.
//!
//! A frame arrives as over a wire: heartbeats first, then their answers, then the rest. A snapshot
//! is one thing under way that takes a turn for its header, for each chunk and for its end. News
//! that a store went or came are under way too.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;
use polyraft_core::{Message, Payload, SnapshotOutcome};

use crate::env::{
    Body, GroupMessage, Inbound, Lane, Lost, SnapshotHeader, SnapshotReceiver, SnapshotSource,
    Transport,
};
use crate::group::{GroupId, StoreId};
use crate::responder::Responder;

/// See the module. Clones are the same network.
#[derive(Clone)]
pub struct MemoryNetwork {
    inner: Arc<Mutex<Inner>>,
}

/// One store's end of a network.
pub struct MemoryTransport {
    store: StoreId,
    incarnation: u64,
    network: MemoryNetwork,
}

/// What is under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transit {
    /// Its number; later things have greater ones.
    pub number: u64,
    /// Who sent it.
    pub from: StoreId,
    /// Whom it will reach.
    pub to: StoreId,
    /// What it is.
    pub kind: TransitKind,
}

/// What can be under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransitKind {
    /// So many messages.
    Frame(Lane, usize),
    /// A snapshot, whatever of it has arrived.
    Snapshot,
    /// The news that the sender can be reached, or cannot.
    News(bool),
}

/// What happened to messages so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryStats {
    /// Taken from hosts.
    pub sent: u64,
    /// Given to hosts, doubles too.
    pub delivered: u64,
    /// Lost: no room, no store, or by order.
    pub dropped: u64,
}

struct Inner {
    stores: BTreeMap<StoreId, Member>,
    /// Ways on which nothing gets through.
    cut: BTreeSet<(StoreId, StoreId)>,
    under_way: BTreeMap<u64, Thing>,
    next_number: u64,
    waiting_max: usize,
    stats: MemoryStats,
}

#[derive(Clone)]
struct Member {
    incarnation: u64,
    inbound: Arc<dyn Inbound>,
}

struct Thing {
    from: StoreId,
    to: StoreId,
    what: What,
}

enum What {
    Frame(Lane, Vec<GroupMessage>),
    Snapshot(Box<Transfer>),
    Up(u64),
    Down,
}

/// A snapshot; dropped, it has failed.
struct Transfer {
    header: Option<SnapshotHeader>,
    source: Box<dyn SnapshotSource>,
    receiver: Option<Box<dyn SnapshotReceiver>>,
    done: Responder<SnapshotOutcome>,
}

/// Bytes in a chunk of a snapshot, about.
const CHUNK_BYTES: usize = 4096;

impl MemoryNetwork {
    /// A network without stores, on whose lanes `waiting_max` messages may wait each.
    #[must_use]
    pub fn new(waiting_max: usize) -> Self {
        let inner = Inner {
            stores: BTreeMap::new(),
            cut: BTreeSet::new(),
            under_way: BTreeMap::new(),
            next_number: 0,
            waiting_max,
            stats: MemoryStats::default(),
        };
        Self {
            inner: Arc::new(Mutex::new(inner)),
        }
    }

    /// A store comes, for the first time or again; the news of it is under way to and from all
    /// others.
    pub fn join(
        &self,
        store: StoreId,
        incarnation: u64,
        inbound: Arc<dyn Inbound>,
    ) -> MemoryTransport {
        self.leave(store);
        let mut inner = self.inner.lock();
        let member = Member {
            incarnation,
            inbound,
        };
        inner.stores.insert(store, member);
        for other in inner.others(store) {
            inner.announce(store, other);
        }
        drop(inner);
        MemoryTransport {
            store,
            incarnation,
            network: self.clone(),
        }
    }

    /// A store is gone, as by a crash: what was to reach it is lost and its snapshots break off;
    /// what it has sent may still arrive.
    pub fn leave(&self, store: StoreId) {
        let mut inner = self.inner.lock();
        if inner.stores.remove(&store).is_none() {
            return;
        }
        let lost = inner.lose(|thing| {
            let snapshot = matches!(thing.what, What::Snapshot(_));
            thing.to == store || snapshot && thing.from == store
        });
        for other in inner.others(store) {
            inner.push(store, other, What::Down);
        }
        drop(inner);
        drop(lost);
    }

    /// Nothing gets from one store to another any more, and what is under way does not either.
    /// Pings need both ways, so each will hear that the other is down.
    pub fn cut(&self, from: StoreId, to: StoreId) {
        let mut inner = self.inner.lock();
        let sound = !inner.is_cut(from, to);
        inner.cut.insert((from, to));
        let lost = inner.lose(|thing| {
            let news = matches!(thing.what, What::Up(_) | What::Down);
            !news && (thing.from, thing.to) == (from, to)
        });
        if sound && inner.has_both(from, to) {
            inner.push(from, to, What::Down);
            inner.push(to, from, What::Down);
        }
        drop(inner);
        drop(lost);
    }

    /// The way is open again.
    pub fn mend(&self, from: StoreId, to: StoreId) {
        let mut inner = self.inner.lock();
        let was_cut = inner.cut.remove(&(from, to));
        if was_cut && !inner.is_cut(from, to) && inner.has_both(from, to) {
            inner.announce(from, to);
        }
    }

    /// Everything under way, the oldest first.
    #[must_use]
    pub fn under_way(&self) -> Vec<Transit> {
        let inner = self.inner.lock();
        let transits = inner.under_way.iter().map(|(number, thing)| Transit {
            number: *number,
            from: thing.from,
            to: thing.to,
            kind: match &thing.what {
                What::Frame(lane, messages) => TransitKind::Frame(*lane, messages.len()),
                What::Snapshot(_) => TransitKind::Snapshot,
                What::Up(_) => TransitKind::News(true),
                What::Down => TransitKind::News(false),
            },
        });
        transits.collect()
    }

    /// Lets something arrive; of a snapshot the next part. False: nothing has this number.
    pub fn arrive(&self, number: u64) -> bool {
        let mut inner = self.inner.lock();
        let Some(thing) = inner.under_way.remove(&number) else {
            return false;
        };
        let Some(member) = inner.stores.get(&thing.to).cloned() else {
            inner.stats.dropped += thing.messages();
            return true;
        };
        inner.stats.delivered += thing.messages();
        drop(inner);
        let Thing { from, to, what } = thing;
        match what {
            What::Frame(_, messages) => member.inbound.deliver(from, as_over_a_wire(messages)),
            What::Up(incarnation) => member.inbound.store_up(from, incarnation),
            What::Down => member.inbound.store_down(from),
            What::Snapshot(transfer) => {
                if let Some(rest) = transfer.advance(from, &member.inbound) {
                    self.keep(number, from, to, rest);
                }
            }
        }
        true
    }

    /// What is left of a snapshot waits under its number again, if there is still a way for it.
    fn keep(&self, number: u64, from: StoreId, to: StoreId, rest: Box<Transfer>) {
        let what = What::Snapshot(rest);
        let mut inner = self.inner.lock();
        if inner.has_both(from, to) && !inner.is_cut(from, to) {
            inner.under_way.insert(number, Thing { from, to, what });
            return;
        }
        drop(inner);
        drop(what);
    }

    /// Loses something; a snapshot breaks off. False: nothing has this number.
    pub fn lose(&self, number: u64) -> bool {
        let mut inner = self.inner.lock();
        let lost = inner.under_way.remove(&number);
        if let Some(thing) = &lost {
            inner.stats.dropped += thing.messages();
        }
        drop(inner);
        lost.is_some()
    }

    /// Doubles a frame; the number of the second one. None: no frame has this number.
    pub fn double(&self, number: u64) -> Option<u64> {
        let mut inner = self.inner.lock();
        let thing = inner.under_way.get(&number)?;
        let What::Frame(lane, messages) = &thing.what else {
            return None;
        };
        let again = What::Frame(*lane, messages.clone());
        let (from, to) = (thing.from, thing.to);
        Some(inner.push(from, to, again))
    }

    /// Lets everything arrive that is under way now, the oldest first; of each snapshot one part.
    /// Returns how much that was.
    pub fn run(&self) -> usize {
        let numbers: Vec<u64> = self.inner.lock().under_way.keys().copied().collect();
        numbers
            .into_iter()
            .filter(|number| self.arrive(*number))
            .count()
    }

    /// What happened to messages so far.
    #[must_use]
    pub fn stats(&self) -> MemoryStats {
        self.inner.lock().stats
    }
}

impl std::fmt::Debug for MemoryNetwork {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let inner = self.inner.lock();
        f.debug_struct("MemoryNetwork")
            .field("stores", &inner.stores.keys())
            .field("under_way", &inner.under_way.len())
            .finish_non_exhaustive()
    }
}

impl Inner {
    fn others(&self, store: StoreId) -> Vec<StoreId> {
        let others = self.stores.keys().copied();
        others.filter(|other| *other != store).collect()
    }

    fn has_both(&self, one: StoreId, other: StoreId) -> bool {
        self.stores.contains_key(&one) && self.stores.contains_key(&other)
    }

    /// Whether pings between two stores get lost, on whichever way.
    fn is_cut(&self, one: StoreId, other: StoreId) -> bool {
        self.cut.contains(&(one, other)) || self.cut.contains(&(other, one))
    }

    fn push(&mut self, from: StoreId, to: StoreId, what: What) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        self.under_way.insert(number, Thing { from, to, what });
        number
    }

    /// Two stores that can reach each other will know.
    fn announce(&mut self, one: StoreId, other: StoreId) {
        if self.is_cut(one, other) {
            return;
        }
        for (from, to) in [(one, other), (other, one)] {
            if let Some(member) = self.stores.get(&from) {
                let up = What::Up(member.incarnation);
                self.push(from, to, up);
            }
        }
    }

    /// Takes away what is lost; to be dropped without the lock, since it answers.
    fn lose(&mut self, is_lost: impl Fn(&Thing) -> bool) -> Vec<Thing> {
        let all = std::mem::take(&mut self.under_way);
        let (lost, kept): (BTreeMap<u64, Thing>, BTreeMap<u64, Thing>) =
            all.into_iter().partition(|(_, thing)| is_lost(thing));
        self.under_way = kept;
        let lost: Vec<Thing> = lost.into_values().collect();
        self.stats.dropped += lost.iter().map(Thing::messages).sum::<u64>();
        lost
    }

    /// Makes room on a lane, at the cost of its oldest messages. Whose those were.
    fn make_room(&mut self, from: StoreId, to: StoreId, lane: Lane) -> Vec<GroupId> {
        let on_lane = |thing: &Thing| {
            let same = matches!(thing.what, What::Frame(of, _) if of == lane);
            same && (thing.from, thing.to) == (from, to)
        };
        let waiting = self.under_way.values().filter(|thing| on_lane(thing));
        let waiting: u64 = waiting.map(Thing::messages).sum();
        let mut excess = usize::try_from(waiting)
            .unwrap_or(usize::MAX)
            .saturating_sub(self.waiting_max);
        self.stats.dropped += excess as u64;
        let mut groups = BTreeSet::new();
        for thing in self.under_way.values_mut().filter(|thing| on_lane(thing)) {
            if let What::Frame(_, messages) = &mut thing.what {
                let oldest = messages.drain(..excess.min(messages.len()));
                excess -= oldest.len();
                groups.extend(oldest.map(|message| message.group));
            }
        }
        let empty = |thing: &Thing| matches!(&thing.what, What::Frame(_, all) if all.is_empty());
        self.under_way.retain(|_, thing| !empty(thing));
        groups.into_iter().collect()
    }
}

impl Thing {
    fn messages(&self) -> u64 {
        match &self.what {
            What::Frame(_, messages) => messages.len() as u64,
            What::Snapshot(_) | What::Up(_) | What::Down => 0,
        }
    }
}

impl Transfer {
    /// One part of a snapshot. None: it has ended, well or not.
    fn advance(
        mut self: Box<Self>,
        from: StoreId,
        inbound: &Arc<dyn Inbound>,
    ) -> Option<Box<Self>> {
        let Some(mut receiver) = self.receiver.take() else {
            self.receiver = Some(inbound.begin_snapshot(from, self.header.take()?).ok()?);
            return Some(self);
        };
        if let Some(chunk) = self.source.next_chunk(CHUNK_BYTES).ok()? {
            receiver.write(chunk).ok()?;
            self.receiver = Some(receiver);
            return Some(self);
        }
        receiver.finish().ok()?;
        self.done.answer(SnapshotOutcome::Sent);
        None
    }
}

fn as_over_a_wire(mut messages: Vec<GroupMessage>) -> Vec<GroupMessage> {
    messages.sort_by_key(|message| match &message.body {
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
    });
    messages
}

impl MemoryTransport {
    /// Whether this end belongs to the store as it is now, not to one that crashed.
    fn is_present(&self, inner: &Inner) -> bool {
        let member = inner.stores.get(&self.store);
        member.is_some_and(|member| member.incarnation == self.incarnation)
    }
}

impl std::fmt::Debug for MemoryTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryTransport")
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

impl Transport for MemoryTransport {
    fn send(&self, to: StoreId, lane: Lane, messages: Vec<GroupMessage>) {
        if messages.is_empty() {
            return;
        }
        let mut inner = self.network.inner.lock();
        let count = messages.len() as u64;
        inner.stats.sent += count;
        let way = inner.has_both(self.store, to) && !inner.cut.contains(&(self.store, to));
        if !way || !self.is_present(&inner) {
            inner.stats.dropped += count;
            return;
        }
        inner.push(self.store, to, What::Frame(lane, messages));
        let groups = inner.make_room(self.store, to, lane);
        let member = inner.stores.get(&self.store).cloned();
        drop(inner);
        if let Some(member) = member.filter(|_| !groups.is_empty()) {
            member.inbound.lost(to, Lost::Of(groups));
        }
    }

    fn send_snapshot(
        &self,
        to: StoreId,
        header: SnapshotHeader,
        source: Box<dyn SnapshotSource>,
        done: Responder<SnapshotOutcome>,
    ) {
        let transfer = Box::new(Transfer {
            header: Some(header),
            source,
            receiver: None,
            done: Responder::new(
                || SnapshotOutcome::Failed,
                move |outcome| done.answer(outcome),
            ),
        });
        let mut inner = self.network.inner.lock();
        let way = inner.has_both(self.store, to) && !inner.is_cut(self.store, to);
        if way && self.is_present(&inner) {
            inner.push(self.store, to, What::Snapshot(transfer));
            return;
        }
        drop(inner);
        drop(transfer);
    }
}
