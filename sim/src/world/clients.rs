//! Clients: each does one operation after another, looks for the group that has the key and for its leader,
//! tries again, and at some time gives up. What they know of groups and leaders may be old; they look again
//! when they are refused.
//!
//! What a client may conclude is the contract of [`Reject`]: everything but `Ambiguous` certainly
//! had no effect. No answer in time is as good as `Ambiguous`. An operation whose outcome is
//! unknown is tried again only if the state machine sees to it that it has its effect once.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use polyraft_multiraft::{GroupDescriptor, GroupId, ReadPermit, Reject, Responder, StoreId};

use super::families::{Route, has};
use super::{Answer, Event, Phase, World};
use crate::history::{Outcome, Ticket};
use crate::observe::Observation;
use crate::plan::Plan;
use crate::rng::Rng;
use crate::sometimes;
use crate::subject::{Operation, Request};
use crate::time::{MILLISECOND, Nanos, SECOND};

/// Operations that are drawn at most until one is about a key that is wanted.
const DRAWS: usize = 64;

/// All clients.
#[derive(Debug)]
pub(super) struct Clients {
    each: Vec<Client>,
    /// Groups that have served somebody since the faults are over.
    pub(super) served: std::collections::BTreeSet<GroupId>,
    /// No new operations any more.
    pub(super) closed: bool,
}

#[derive(Debug)]
struct Client {
    rng: Rng,
    /// What it has asked so far.
    number: u64,
    /// Grows with everything it waits for, so that late answers and alarms are told from awaited ones.
    token: u64,
    doing: Option<Doing>,
    /// Which group it thinks has a key of a family.
    routes: BTreeMap<(GroupId, Bytes), Route>,
    /// Where it thinks the leaders are.
    leaders: BTreeMap<GroupId, StoreId>,
    /// What the subject has it remember of each family.
    memories: BTreeMap<GroupId, Bytes>,
    patience: Nanos,
}

#[derive(Debug)]
struct Doing {
    id: Ticket,
    family: GroupId,
    /// What it is about.
    key: Bytes,
    /// Whom it asks.
    route: Route,
    operation: Operation,
    since: Nanos,
    /// An attempt whose outcome nobody knows: it may still have its effect.
    in_doubt: bool,
    waiting: Waiting,
    at: StoreId,
}

#[derive(Debug)]
enum Waiting {
    /// For the time of the next attempt.
    Pause,
    /// For an answer, on a store in an incarnation.
    Answer(u64),
    /// To read on a store in an incarnation, with leave to.
    Reading(u64, Box<ReadPermit>),
}

impl Clients {
    pub(super) fn new(plan: &Plan, rng: &mut Rng) -> Self {
        let client = |_| Client {
            patience: rng.magnitude(SECOND / 2, 30 * SECOND),
            rng: rng.fork(),
            number: 0,
            token: 0,
            doing: None,
            routes: BTreeMap::new(),
            leaders: BTreeMap::new(),
            memories: BTreeMap::new(),
        };
        Self {
            each: (0..plan.clients).map(client).collect(),
            served: std::collections::BTreeSet::new(),
            closed: false,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.each.len()
    }

    pub(super) fn are_done(&self) -> bool {
        self.each.iter().all(|client| client.doing.is_none())
    }
}

impl World {
    /// An alarm of a client: it begins something, tries again, reads, or has waited too long.
    pub(super) fn client(&mut self, at: usize, token: u64) {
        let now = self.queue.now();
        let client = &mut self.clients.each[at];
        if client.token != token {
            return;
        }
        match client.doing.take() {
            None => self.invoke(at),
            Some(mut doing) => match doing.waiting {
                Waiting::Pause => {
                    if now.saturating_sub(doing.since) > client.patience {
                        return self.give_up(at, doing);
                    }
                    self.attempt(at, doing, 0);
                }
                Waiting::Answer(_) => {
                    sometimes!(true, "world: client heard nothing");
                    doing.in_doubt |= matches!(doing.operation.request, Request::Command { .. });
                    self.after_doubt(at, doing);
                }
                Waiting::Reading(incarnation, permit) => {
                    doing.waiting = Waiting::Pause;
                    self.read(at, doing, incarnation, &permit);
                }
            },
        }
    }

    fn invoke(&mut self, at: usize) {
        if self.clients.closed {
            return;
        }
        let (families, unserved) = (self.families(), self.unserved());
        let client = &mut self.clients.each[at];
        let wanted = client.rng.pick(&unserved).cloned();
        let family = wanted.as_ref().map(|descriptor| descriptor.group);
        let family = family.map(|group| self.parents.get(&group).copied().unwrap_or(group));
        let family = family.or_else(|| client.rng.pick(&families).copied());
        let Some(family) = family else {
            client.token += 1;
            return self.queue.push(SECOND, Event::Client(at, client.token));
        };
        self.invoke_on(at, family, wanted.as_deref(), 0);
    }

    /// Clients that have nothing to do ask this leader all at once, and do not wait for answers before
    /// they ask again: of what may be repeated it gets so many copies.
    pub(super) fn press(&mut self, group: GroupId, leader: StoreId, copies: u64) {
        if self.clients.closed {
            return;
        }
        let handle = self.stores.get(&leader).and_then(|store| store.handle());
        let wanted = handle.and_then(|handle| handle.descriptor(group));
        let family = self.family_of(group);
        for at in 0..self.clients.len() {
            let client = &mut self.clients.each[at];
            if client.doing.is_none() {
                client.leaders.insert(group, leader);
                self.invoke_on(at, family, wanted.as_deref(), copies);
            }
        }
    }

    /// A new operation on a family, in a wanted group if there is one; see [`Self::press`] for `copies`.
    fn invoke_on(
        &mut self,
        at: usize,
        family: GroupId,
        wanted: Option<&GroupDescriptor>,
        copies: u64,
    ) {
        let now = self.queue.now();
        self.clients.each[at].number += 1;
        let (operation, key) = self.draw(at, family, wanted);
        let id = self
            .history
            .invoke(now, at as u64 + 1, family, operation.clone());
        let doing = Doing {
            id,
            family,
            key,
            route: Route {
                group: family,
                generation: 0,
            },
            operation,
            since: now,
            in_doubt: false,
            waiting: Waiting::Pause,
            at: StoreId(0),
        };
        self.attempt(at, doing, copies);
    }

    /// Groups that have served nobody since the faults are over.
    fn unserved(&self) -> Vec<Arc<GroupDescriptor>> {
        if !matches!(self.phase, Phase::Calm(_)) {
            return Vec::new();
        }
        let families = self.families().into_iter();
        let groups = families.flat_map(|family| self.newest(family));
        let unserved = groups.filter(|(group, _)| !self.clients.served.contains(group));
        unserved.map(|(_, descriptor)| descriptor).collect()
    }

    /// What a client does next, and the key that it is about; in a wanted group, if some draw is.
    fn draw(
        &mut self,
        at: usize,
        family: GroupId,
        wanted: Option<&GroupDescriptor>,
    ) -> (Operation, Bytes) {
        let range = self.keys_of(family);
        let client = &mut self.clients.each[at];
        let (name, memory) = (at as u64 + 1, client.memories.get(&family));
        let memory = memory.cloned().unwrap_or_default();
        let mut draws = 0;
        loop {
            let (rng, number) = (&mut client.rng, client.number);
            let operation = self.subject.next(rng, family, name, number, &memory);
            let key = self.subject.key(&operation, &range);
            draws += 1;
            if draws >= DRAWS || wanted.is_none_or(|wanted| has(wanted, &key)) {
                return (operation, key);
            }
        }
    }

    /// Finds the group that has the key: what it knows, or what some store says.
    fn find(&mut self, at: usize, family: GroupId, key: &Bytes) -> Option<Route> {
        let known = (family, key.clone());
        if let Some(route) = self.clients.each[at].routes.get(&known) {
            return Some(*route);
        }
        let running: Vec<StoreId> = self.running().map(|(store, _)| store).collect();
        let store = self.clients.each[at].rng.pick(&running).copied()?;
        let route = self.route(self.stores[&store].handle()?, family, key)?;
        self.clients.each[at].routes.insert(known, route);
        Some(route)
    }

    /// Asks the store that it takes for the leader's; so many times more if it may.
    fn attempt(&mut self, at: usize, mut doing: Doing, copies: u64) {
        let Some(route) = self.find(at, doing.family, &doing.key) else {
            return self.pause(at, doing);
        };
        doing.route = route;
        let Route { group, generation } = route;
        let members: Vec<StoreId> = self.stores.keys().copied().collect();
        let client = &mut self.clients.each[at];
        let guess = client.leaders.get(&group).copied();
        let guess = guess.or_else(|| client.rng.pick(&members).copied());
        let store = guess.unwrap_or_default();
        let running = self.stores.get(&store);
        let running = running.and_then(|s| Some((s.handle()?.clone(), s.incarnation)));
        let Some((handle, incarnation)) = running else {
            client.leaders.remove(&group);
            return self.pause(at, doing);
        };
        client.token += 1;
        let (token, answers) = (client.token, Arc::clone(&self.answers));
        doing.waiting = Waiting::Answer(incarnation);
        doing.at = store;
        if let Some(trace) = &self.trace {
            let request = self.subject.show(doing.operation.request.bytes());
            trace.line(&format!(
                "    client {at} ({token}) asks s{store}, group {group}: {request}"
            ));
        }
        match &doing.operation.request {
            Request::Command { data, repeatable } => {
                let copies = if *repeatable { copies } else { 0 };
                // Whatever the first answer says, it says it of one of them only.
                doing.in_doubt |= copies > 0;
                sometimes!(copies > 0, "world: leader pressed for answers");
                self.observer.see(&Observation::Proposed {
                    group,
                    generation,
                    data,
                });
                for _ in 0..=copies {
                    let answers = Arc::clone(&answers);
                    let respond = Responder::new(
                        || Err(Reject::Ambiguous),
                        move |result| answers.lock().push(Answer::Command(at, token, result)),
                    );
                    handle.propose_if(group, generation, data.clone(), respond);
                }
            }
            Request::Query(_) => {
                self.observer.see(&Observation::ReadAsked {
                    store,
                    client: at as u64,
                    token,
                });
                let respond = Responder::new(
                    || Err(Reject::Ambiguous),
                    move |result| answers.lock().push(Answer::Permit(at, token, result)),
                );
                handle.read(group, respond);
            }
        }
        let limit = client.rng.magnitude(200 * MILLISECOND, 10 * SECOND);
        self.queue.push(limit, Event::Client(at, token));
        client.doing = Some(doing);
        self.kick(store);
    }

    /// A while later it tries again.
    fn pause(&mut self, at: usize, mut doing: Doing) {
        let client = &mut self.clients.each[at];
        doing.waiting = Waiting::Pause;
        client.doing = Some(doing);
        client.token += 1;
        let after = client.rng.magnitude(MILLISECOND, 300 * MILLISECOND);
        self.queue.push(after, Event::Client(at, client.token));
    }

    pub(super) fn client_told(&mut self, at: usize, token: u64, result: Result<Bytes, Reject>) {
        let client = &mut self.clients.each[at];
        if client.token != token {
            return;
        }
        let Some(mut doing) = client.doing.take() else {
            return;
        };
        match result {
            Ok(output) => self.answered(at, doing, output),
            Err(Reject::Ambiguous) => {
                sometimes!(true, "world: command ambiguous");
                doing.in_doubt = true;
                self.after_doubt(at, doing);
            }
            Err(reject) => self.refused(at, doing, &reject),
        }
    }

    pub(super) fn client_permitted(
        &mut self,
        at: usize,
        token: u64,
        result: Result<ReadPermit, Reject>,
    ) {
        let client = &mut self.clients.each[at];
        if client.token != token {
            return;
        }
        let Some(mut doing) = client.doing.take() else {
            return;
        };
        match result {
            Ok(permit) => {
                let Waiting::Answer(incarnation) = doing.waiting else {
                    return;
                };
                if let Some(replica) = permit.descriptor.replica_on(doing.at) {
                    self.observer.see(&Observation::ReadPermitted {
                        store: doing.at,
                        group: doing.route.group,
                        replica,
                        client: at as u64,
                        token,
                    });
                }
                self.observer.see(&Observation::Permitted {
                    client: at as u64,
                    descriptor: &permit.descriptor,
                    key: &doing.key,
                });
                doing.waiting = Waiting::Reading(incarnation, Box::new(permit));
                client.doing = Some(doing);
                client.token += 1;
                // Between leave and read the store goes on.
                let after = client.rng.magnitude(1_000, 20 * MILLISECOND);
                self.queue.push(after, Event::Client(at, client.token));
            }
            Err(reject) => self.refused(at, doing, &reject),
        }
    }

    fn refused(&mut self, at: usize, doing: Doing, reject: &Reject) {
        let client = &mut self.clients.each[at];
        match reject {
            Reject::NotLeader {
                leader: Some(leader),
            } if leader.store != doing.at => {
                client.leaders.insert(doing.route.group, leader.store);
            }
            Reject::NoGroup(_) | Reject::RangeChanged { .. } | Reject::Frozen { .. } => {
                let changed = matches!(reject, Reject::RangeChanged { .. });
                sometimes!(changed, "world: command for a range that has changed");
                return self.look_again(at, doing);
            }
            Reject::Busy(_) | Reject::DiskFull => {
                sometimes!(
                    matches!(reject, Reject::Busy(_)),
                    "world: proposal refused busy"
                );
                sometimes!(
                    matches!(reject, Reject::DiskFull),
                    "world: proposal refused disk full"
                );
            }
            _ => {
                client.leaders.remove(&doing.route.group);
            }
        }
        self.pause(at, doing);
    }

    /// What it knows of the group is not so any more.
    fn look_again(&mut self, at: usize, doing: Doing) {
        let client = &mut self.clients.each[at];
        client.leaders.remove(&doing.route.group);
        client.routes.remove(&(doing.family, doing.key.clone()));
        self.pause(at, doing);
    }

    /// The read itself, as the server does it: the permit must still hold after it.
    fn read(&mut self, at: usize, doing: Doing, incarnation: u64, permit: &ReadPermit) {
        let store = self.stores.get(&doing.at);
        let store = store.filter(|store| store.incarnation == incarnation);
        let running = store.and_then(|store| store.running.as_ref());
        let (Some(running), Request::Query(query)) = (running, &doing.operation.request) else {
            return self.pause(at, doing);
        };
        if !has(&permit.descriptor, &doing.key) {
            sometimes!(true, "world: read of a key that has moved");
            return self.look_again(at, doing);
        }
        let output = running.machine.query(&permit.descriptor, query);
        let holds = permit.still_holds(&running.parts.handle);
        match output {
            Ok(output) if holds => self.answered(at, doing, output),
            Ok(_) => {
                sometimes!(true, "world: read after leadership");
                self.pause(at, doing);
            }
            Err(_) => self.pause(at, doing),
        }
    }

    fn answered(&mut self, at: usize, doing: Doing, output: Bytes) {
        let now = self.queue.now();
        let client = &mut self.clients.each[at];
        client.leaders.insert(doing.route.group, doing.at);
        let memory = client.memories.entry(doing.family).or_default();
        *memory = self.subject.remember(&doing.operation, &output, memory);
        if !self
            .subject
            .tells(&doing.operation, &output, doing.in_doubt)
        {
            sometimes!(true, "world: answer that tells nothing");
            self.counts.unknown += 1;
            self.history.returned(now, doing.id, Outcome::Unknown);
            return self.rest(at);
        }
        sometimes!(doing.in_doubt, "world: command answered at a later attempt");
        self.history.returned(now, doing.id, Outcome::Ok(output));
        self.counts.answered += 1;
        if self.phase != Phase::Chaos {
            self.clients.served.insert(doing.route.group);
        }
        self.rest(at);
    }

    /// Nobody knows what became of an attempt.
    fn after_doubt(&mut self, at: usize, doing: Doing) {
        self.clients.each[at].leaders.remove(&doing.route.group);
        match doing.operation.request {
            Request::Command {
                repeatable: false, ..
            } => self.give_up(at, doing),
            _ => self.pause(at, doing),
        }
    }

    fn give_up(&mut self, at: usize, doing: Doing) {
        let now = self.queue.now();
        let outcome = match doing.in_doubt {
            true => Outcome::Unknown,
            false => Outcome::Failed,
        };
        self.counts.unknown += u64::from(doing.in_doubt);
        self.history.returned(now, doing.id, outcome);
        self.rest(at);
    }

    /// It thinks, then does the next thing.
    fn rest(&mut self, at: usize) {
        let client = &mut self.clients.each[at];
        client.doing = None;
        client.token += 1;
        let after = client
            .rng
            .magnitude(self.plan.think / 8 + 1, self.plan.think * 2);
        self.queue.push(after, Event::Client(at, client.token));
    }
}
