//! The network of a world: it behaves as the real transport does, and worse.
//!
//! As in the transport, a store has two lanes to each other one, each on a connection of its own
//! that it makes itself, and a connection per snapshot. Frames keep their order on a lane and carry
//! what waited; heartbeats come first in them. Only the sender's end of a connection says
//! something: `store_up` when the control lane is welcomed, `store_down` when it ends, `lost` when
//! the append lane ends or when too much waits.
//!
//! # Who notices what, and when
//! * A process that crashes resets its connections: peers know within one delay. A machine that
//!   loses its power says nothing: peers know when pings stay unanswered (control lane) or the
//!   keepalive does (others), or when it is back and resets what it does not know. Which of the two
//!   it was is drawn.
//! * What is on a connection when nothing gets through any more waits, as TCP repeats it, and
//!   arrives in order if the way is open again before an end has noticed. Else it is lost with the
//!   connection.
//! * If only one way is cut, the acknowledgements of the other way are what is lost: messages on it
//!   still arrive until the window is full. Both ends hear nothing sooner or later, for pings go
//!   both ways, and none can connect again, for that takes both ways too.
//!
//! # Contract
//! Nothing is invented or altered, and every snapshot's sender is answered once, unless it is gone.
//! Stores are called only by [`Network::arrive`], one in each call, and by the destructors of
//! snapshots that [`Network::stopped`] drops. Equal calls with equal sources of randomness have
//! equal effects.

mod faults;
mod lanes;
mod link;
mod port;
mod snapshot;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use polyraft_multiraft::env::{GroupMessage, Inbound, Lane, Lost, Transport};
use polyraft_multiraft::{GroupId, StoreId};

pub use self::faults::NetworkFaults;
use self::link::Link;
use self::port::{Handed, Outbox, Port, What};
use self::snapshot::{Step, Transfer};
use crate::observe::{Observation, Observer};
use crate::rng::Rng;
use crate::time::Nanos;

/// See the module.
pub struct Network {
    rng: Rng,
    faults: NetworkFaults,
    observer: Observer,
    outbox: Arc<Outbox>,
    /// Room for what is taken from the outbox; empty between calls.
    taken: Vec<Handed>,
    slots: BTreeMap<StoreId, usize>,
    members: Vec<Member>,
    /// Two for each pair of stores, see [`pair`].
    links: Vec<Link>,
    /// Ways on which nothing gets through.
    cuts: Vec<bool>,
    transfers: BTreeMap<u64, Transfer>,
    next_transfer: u64,
    /// What is to be scheduled at the end of the call, or of the next one that can.
    later: Vec<(When, Arrival)>,
    now: Nanos,
    stats: NetworkStats,
}

/// A store, whether it runs or not.
struct Member {
    store: StoreId,
    incarnation: u64,
    /// None: it does not run.
    inbound: Option<Arc<dyn Inbound>>,
    /// When it may send the next bytes of a snapshot.
    pace_free_at: Nanos,
}

enum When {
    In(Nanos),
    At(Nanos),
}

/// What will happen on the network at some time: the world keeps it until then.
#[derive(Debug)]
pub struct Arrival(Event);

#[derive(Debug)]
enum Event {
    /// The next frame of a lane.
    Frame { link: usize, epoch: u32 },
    /// Messages that have left their place on a lane.
    Late(Box<Late>),
    /// A connection comes about, or not.
    Attempt { link: usize, epoch: u32 },
    /// The sender learns that its connection is gone.
    Notice { link: usize, epoch: u32 },
    /// The sender has heard nothing for too long, if nothing has changed since.
    Silence { link: usize, epoch: u32, doubt: u32 },
    /// The sender learns whose messages had no room.
    NoRoom(Box<NoRoom>),
    /// A part of a snapshot, or what becomes of it.
    Snapshot { transfer: u64, step: Step },
}

#[derive(Debug)]
struct Late {
    link: usize,
    epoch: u32,
    /// The sender's.
    incarnation: u64,
    messages: Vec<GroupMessage>,
}

#[derive(Debug)]
struct NoRoom {
    link: usize,
    /// The sender's.
    incarnation: u64,
    groups: Vec<GroupId>,
}

/// What has happened so far. Of messages: `sent + doubled - delivered - no_room - nowhere - lost`
/// are under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetworkStats {
    /// Messages taken from hosts.
    pub sent: u64,
    /// Messages given to hosts.
    pub delivered: u64,
    /// Calls of `deliver`.
    pub frames: u64,
    /// Messages made by duplication, and late ones that are copies.
    pub doubled: u64,
    /// Messages dropped because too many waited.
    pub no_room: u64,
    /// Messages to or from stores that do not run or that are not connected.
    pub nowhere: u64,
    /// Messages lost on the way, with their connection or without.
    pub lost: u64,
    /// Connections that came about.
    pub connected: u64,
    /// Connections whose end their sender has noticed.
    pub disconnected: u64,
    /// Connections reset in the middle of a frame.
    pub resets: u64,
    /// Snapshots whose sender was told that they are there.
    pub snapshots_sent: u64,
    /// Snapshots whose sender was told that they are not.
    pub snapshots_failed: u64,
    /// Bytes of snapshots given to hosts.
    pub snapshot_bytes: u64,
}

impl Network {
    /// A sound network without stores.
    #[must_use]
    pub fn new(rng: Rng, observer: Observer) -> Self {
        Self {
            rng,
            faults: NetworkFaults::default(),
            observer,
            outbox: Arc::default(),
            taken: Vec::new(),
            slots: BTreeMap::new(),
            members: Vec::new(),
            links: Vec::new(),
            cuts: Vec::new(),
            transfers: BTreeMap::new(),
            next_transfer: 0,
            later: Vec::new(),
            now: 0,
            stats: NetworkStats::default(),
        }
    }

    /// What the network does from now on; what is under way already is not concerned by delays.
    pub const fn faults_mut(&mut self) -> &mut NetworkFaults {
        &mut self.faults
    }

    /// What has happened so far.
    #[must_use]
    pub const fn stats(&self) -> NetworkStats {
        self.stats
    }

    /// The way out for a host that is being started. What it sends before [`Network::started`] is
    /// lost.
    pub fn port(&mut self, store: StoreId, incarnation: u64) -> Arc<dyn Transport> {
        Arc::new(Port {
            store,
            slot: self.slot(store),
            incarnation,
            outbox: Arc::clone(&self.outbox),
            observer: self.observer.clone(),
        })
    }

    /// A store runs from now on: it connects to the others and they to it.
    pub fn started(&mut self, store: StoreId, incarnation: u64, inbound: Arc<dyn Inbound>) {
        self.stopped(store);
        let slot = self.slot(store);
        let member = &mut self.members[slot];
        member.incarnation = incarnation;
        member.inbound = Some(inbound);
        member.pace_free_at = 0;
        for other in self.others(slot) {
            self.lanes_begin(slot, other);
        }
    }

    /// A store is gone, as by a crash. Snapshots that it was taking in are dropped, and their
    /// destructors would clean up on its disk, which a crash does not do: see to it that nothing
    /// can be written there any more.
    pub fn stopped(&mut self, store: StoreId) {
        let slot = self.slot(store);
        if self.members[slot].inbound.take().is_none() {
            return;
        }
        for other in self.others(slot) {
            // Whether its peers hear of it at once.
            let resets = self.rng.percent(50);
            self.lanes_end(slot, other, resets);
            self.snapshots_end(slot, other, resets);
        }
    }

    /// Cuts the way from one store to another, or opens it again.
    pub fn set_cut(&mut self, from: StoreId, to: StoreId, cut: bool) {
        let (from, to) = (self.slot(from), self.slot(to));
        if from == to || self.cuts[pair(from, to)] == cut {
            return;
        }
        self.cuts[pair(from, to)] = cut;
        match cut {
            true => {
                self.lanes_doubt(from, to);
                self.snapshots_doubt(from, to);
            }
            false => {
                self.lanes_mend(from, to);
                self.snapshots_mend(from, to);
            }
        }
    }

    /// Opens all ways.
    pub fn heal(&mut self) {
        let stores: Vec<StoreId> = self.members.iter().map(|member| member.store).collect();
        for from in &stores {
            for to in &stores {
                self.set_cut(*from, *to, false);
            }
        }
    }

    /// Takes what hosts have handed over since the last call, and says what arrives when. To be
    /// called after every event and every other call.
    pub fn collect(&mut self, now: Nanos, schedule: &mut impl FnMut(Nanos, Arrival)) {
        self.now = now;
        let mut taken = std::mem::take(&mut self.taken);
        std::mem::swap(&mut taken, &mut *self.outbox.lock());
        for handed in taken.drain(..) {
            self.take(handed);
        }
        self.taken = taken;
        self.settle(schedule);
    }

    /// Lets something happen that is due. Returns the store that was called, if one was.
    pub fn arrive(
        &mut self,
        now: Nanos,
        arrival: Arrival,
        schedule: &mut impl FnMut(Nanos, Arrival),
    ) -> Option<StoreId> {
        self.now = now;
        let reached = match arrival.0 {
            Event::Frame { link, epoch } => self.frame(link, epoch),
            Event::Late(late) => self.late(*late),
            Event::Attempt { link, epoch } => self.attempt(link, epoch),
            Event::Notice { link, epoch } => self.notice(link, epoch),
            Event::Silence { link, epoch, doubt } => self.silence(link, epoch, doubt),
            Event::NoRoom(no_room) => self.no_room(*no_room),
            Event::Snapshot { transfer, step } => self.step(transfer, step),
        };
        self.settle(schedule);
        reached.map(|slot| self.members[slot].store)
    }

    /// The store whose process must move for an arrival to come in: one that stands still takes it
    /// later. News of connections, and what senders learn, come from elsewhere.
    #[must_use]
    pub fn receiver(&self, arrival: &Arrival) -> Option<StoreId> {
        let slot = match &arrival.0 {
            Event::Frame { link, .. } => self.links.get(*link)?.to,
            Event::Late(late) => self.links.get(late.link)?.to,
            _ => return None,
        };
        Some(self.members.get(slot)?.store)
    }

    fn take(&mut self, handed: Handed) {
        let (from, to) = (handed.from, self.slots.get(&handed.to).copied());
        let Member {
            inbound,
            incarnation,
            ..
        } = &self.members[from];
        let sends = inbound.is_some() && *incarnation == handed.incarnation;
        let gone = !sends && *incarnation >= handed.incarnation;
        let to = to.filter(|to| *to != from && sends);
        match handed.what {
            What::Messages(lane, messages) => {
                self.stats.sent += messages.len() as u64;
                match to {
                    Some(to) => self.send(lane_between(from, to, lane), messages),
                    None => self.stats.nowhere += messages.len() as u64,
                }
            }
            // Nobody waits for the answer.
            What::Snapshot(_) if gone => {}
            What::Snapshot(parcel) => self.begin(from, to, *parcel),
        }
    }

    fn settle(&mut self, schedule: &mut impl FnMut(Nanos, Arrival)) {
        for (when, arrival) in self.later.drain(..) {
            let at = match when {
                When::In(delay) => self.now + delay,
                When::At(at) => at.max(self.now),
            };
            schedule(at, arrival);
        }
    }

    fn later(&mut self, delay: Nanos, event: Event) {
        self.later.push((When::In(delay), Arrival(event)));
    }

    fn at(&mut self, at: Nanos, event: Event) {
        self.later.push((When::At(at), Arrival(event)));
    }

    /// The place of a store in all tables; made if it has none.
    fn slot(&mut self, store: StoreId) -> usize {
        if let Some(slot) = self.slots.get(&store) {
            return *slot;
        }
        let slot = self.members.len();
        self.slots.insert(store, slot);
        self.members.push(Member {
            store,
            incarnation: 0,
            inbound: None,
            pace_free_at: 0,
        });
        let from_it = (0..=slot).map(|other| (slot, other));
        let to_it = (0..slot).map(|other| (other, slot));
        for (from, to) in from_it.chain(to_it) {
            debug_assert_eq!(self.cuts.len(), pair(from, to));
            self.cuts.push(false);
            for lane in [Lane::Control, Lane::Append] {
                self.links.push(Link::new(from, to, lane));
            }
        }
        slot
    }

    fn others(&self, slot: usize) -> impl Iterator<Item = usize> + use<> {
        (0..self.members.len()).filter(move |other| *other != slot)
    }

    fn runs(&self, slot: usize) -> bool {
        self.members[slot].inbound.is_some()
    }

    fn is_cut(&self, from: usize, to: usize) -> bool {
        self.cuts[pair(from, to)]
    }

    /// Whether two stores can connect.
    fn is_open(&self, one: usize, other: usize) -> bool {
        !self.is_cut(one, other) && !self.is_cut(other, one)
    }

    /// How long one way takes now.
    fn delay(&mut self) -> Nanos {
        self.faults.delay(&mut self.rng)
    }

    /// When a peer hears that a store is gone: soon if its machine still answers and the way is
    /// open.
    fn end_heard(&mut self, gone: usize, by: usize, resets: bool, pinged: bool) -> Nanos {
        if resets && !self.is_cut(gone, by) {
            return self.delay();
        }
        self.faults.silence(pinged, &mut self.rng)
    }

    /// Gives messages to a store if it runs.
    fn deliver(&mut self, from: usize, to: usize, messages: Vec<GroupMessage>) -> Option<usize> {
        let count = messages.len() as u64;
        let sender = self.members[from].store;
        let Member { store, inbound, .. } = &self.members[to];
        let Some(inbound) = inbound else {
            self.stats.lost += count;
            return None;
        };
        for message in &messages {
            self.observer.see(&Observation::Delivered {
                from: sender,
                to: *store,
                message,
            });
        }
        inbound.deliver(sender, messages);
        self.stats.frames += 1;
        self.stats.delivered += count;
        Some(to)
    }

    /// Tells a store about another one, if it runs.
    fn tell(&self, told: usize, about: usize, news: News) -> Option<usize> {
        let inbound = self.members[told].inbound.as_ref()?;
        let about = &self.members[about];
        match news {
            News::Up => inbound.store_up(about.store, about.incarnation),
            News::Down => inbound.store_down(about.store),
            News::Lost(what) => inbound.lost(about.store, what),
        }
        Some(told)
    }
}

enum News {
    Up,
    Down,
    Lost(Lost),
}

/// Where a pair of stores is in the tables: those with a new store come behind all others.
const fn pair(from: usize, to: usize) -> usize {
    if from >= to {
        from * from + to
    } else {
        to * to + to + 1 + from
    }
}

/// Which of the links is a lane from one store to another.
const fn lane_between(from: usize, to: usize, lane: Lane) -> usize {
    2 * pair(from, to)
        + match lane {
            Lane::Control => 0,
            Lane::Append => 1,
        }
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Network")
            .field("stores", &self.slots.keys())
            .field("faults", &self.faults)
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}
