//! The time after the faults: everything must work again within a bound, and then everything must agree.

use polyraft_multiraft::{GroupDescriptor, GroupId, HostHandle, StoreId};

use super::{Event, Phase, World};
use crate::linearizability::Limits;
use crate::observe::{End, StoreEnd};
use crate::time::{MILLISECOND, SECOND};

impl World {
    /// The faults are over.
    pub(super) fn calm(&mut self) {
        self.phase = Phase::Calm(self.queue.now());
        self.end_faults();
        self.queue.push(SECOND, Event::Look);
    }

    /// Whether everything works again; if so, the world is over.
    pub(super) fn look(&mut self) {
        let Phase::Calm(since) = self.phase else {
            return;
        };
        let lacks = self.lacks().map(|what| ("liveness", what));
        let Some((checker, lack)) = lacks.or_else(|| Some(("budgets", self.owes()?))) else {
            self.phase = Phase::Over;
            return;
        };
        if self.queue.now().saturating_sub(since) > self.plan.calm {
            let what = format!("{} s after the last fault: {lack}", self.plan.calm / SECOND);
            return self.observer.report(checker, what);
        }
        self.queue.push(500 * MILLISECOND, Event::Look);
    }

    /// What is still missing, in words; in the order in which it is waited for.
    fn lacks(&mut self) -> Option<String> {
        for (id, store) in &self.stores {
            if !store.lost && store.running.is_none() {
                return Some(format!("store {id} does not run"));
            }
        }
        if self.operators.making() {
            return Some(format!(
                "groups are not made or ended: {:?}",
                self.operators.tasks
            ));
        }
        if self.operators.splitting() {
            return Some("splits are under way".to_owned());
        }
        self.discover();
        if let Some(group) = self.end_merges() {
            return Some(format!("group {group} is frozen: {}", self.explain(group)));
        }
        if let Some(lack) = self.remains() {
            return Some(lack);
        }
        let live = self.live();
        for group in &live {
            if self.operators.replacing() || !self.is_whole(*group) {
                return Some(format!("group {group} is not rid of a lost store"));
            }
        }
        for family in self.families() {
            if let Some(hole) = self.holes(family) {
                return Some(format!("family {family} has not all of its keys: {hole}"));
            }
        }
        let mut unserved = live
            .iter()
            .filter(|group| !self.clients.served.contains(group));
        if let Some(group) = unserved.next() {
            return Some(format!(
                "group {group} serves nobody: {}",
                self.explain(*group)
            ));
        }
        self.clients.closed = true;
        if !self.clients.are_done() {
            return Some("clients have no answers".to_owned());
        }
        for group in &live {
            if let Some(lack) = self.disagreement(*group) {
                return Some(lack);
            }
        }
        let mut stores = self.stores.iter();
        let busy = stores.find(|(_, s)| s.running.as_ref().is_some_and(|r| !r.is_idle()));
        // Awake groups have heartbeats under way now and then.
        busy.map(|(id, _)| format!("store {id} is not at rest"))
    }

    /// What is left of a group that was merged into another one.
    fn remains(&self) -> Option<String> {
        let families = self.groups.values();
        let merged = families.flat_map(|family| &family.merged);
        let is_here = |(_, handle): &(StoreId, &HostHandle), group: &GroupId| {
            let known = handle.descriptor(*group);
            known.is_some_and(|it| !it.members.is_empty())
        };
        for group in merged {
            if let Some((store, _)) = self.running().find(|it| is_here(it, group)) {
                let explained = self.explain(*group);
                return Some(format!(
                    "group {group} was merged, and is on store {store} still: {explained}"
                ));
            }
        }
        None
    }

    /// A store with proposals that nobody was answered for. Whoever is overtaken while it waits
    /// hears so after two election timeouts at the latest.
    fn owes(&self) -> Option<String> {
        let mut running = self.running();
        let owes = running.find(|(_, handle)| handle.stats().proposal_bytes > 0);
        owes.map(|(id, _)| format!("store {id} has proposals that nobody was answered for"))
    }

    /// What members of a group lack.
    fn disagreement(&self, group: GroupId) -> Option<String> {
        let leaders = self.leaders(group);
        if leaders.len() > 1 {
            return Some(format!("group {group} has leaders on stores {leaders:?}"));
        }
        let leader = leaders.first().copied();
        let descriptor = leader.and_then(|store| self.stores[&store].handle()?.descriptor(group));
        let (Some(leader), Some(descriptor)) = (leader, descriptor) else {
            return Some(format!(
                "group {group} has no leader: {}",
                self.explain(group)
            ));
        };
        let applied = |store: StoreId| {
            let handle = self.stores.get(&store)?.handle()?;
            let summary = handle.summary(group)?;
            Some((summary.replica, summary.basic.applied))
        };
        let strange = |store: StoreId| descriptor.replica_on(store).is_none();
        // One that a vote made and that has forgotten over a restart who spoke to it stays: it has
        // no data and no range, and nobody whom it could ask (ARCHITECTURE.md, known gaps).
        let has_state = |d: std::sync::Arc<GroupDescriptor>| !d.members.is_empty();
        let stray = |handle: &HostHandle| handle.descriptor(group).is_some_and(has_state);
        let mut running = self.running();
        if let Some((store, _)) = running.find(|(id, host)| strange(*id) && stray(host)) {
            return Some(format!(
                "group {group}: store {store} keeps a replica that is no member: {}",
                self.explain(group)
            ));
        }
        let lead = applied(leader)?.1;
        for member in &descriptor.members {
            let there = applied(member.store);
            if there != Some((member.replica, lead)) {
                return Some(format!(
                    "group {group}: {member:?} has {there:?}, its leader {lead}: {}",
                    self.explain(group)
                ));
            }
        }
        None
    }

    /// How every replica of a group sees itself.
    fn explain(&self, group: GroupId) -> String {
        let mut lines = Vec::new();
        for (store, handle) in self.running() {
            if let Some(summary) = handle.summary(group) {
                let basic = summary.basic;
                lines.push(format!(
                    "store {store}: replica {} {:?} of term {} knows leader {}, commit {}, applied {}, asleep {}",
                    summary.replica,
                    basic.soft_state.role,
                    basic.hard_state.term,
                    basic.soft_state.leader,
                    basic.hard_state.commit,
                    basic.applied,
                    summary.asleep,
                ));
            }
        }
        lines.join("; ")
    }

    /// Everything has come to rest: the checkers look at what is left, and at what clients saw.
    pub(super) fn judge(&mut self) {
        let mut end = End {
            groups: self.live(),
            families: self.families_at_the_end(),
            ..End::default()
        };
        let mut broken = Vec::new();
        for (id, store) in &mut self.stores {
            let Some(running) = &mut store.running else {
                continue;
            };
            let handle = running.parts.handle.clone();
            let (replicas, stats) = (handle.list(), handle.stats());
            let mut data = Vec::new();
            match running.machine.recover() {
                Ok(states) => {
                    for state in states {
                        match running.machine.digest(&state.descriptor) {
                            Ok(digest) => data.push((state, digest)),
                            Err(error) => broken.push(format!("store {id}: {error}")),
                        }
                    }
                }
                Err(error) => broken.push(format!("store {id}: {error}")),
            }
            let owner = |group: GroupId| Some(handle.descriptor(group)?.range.clone());
            let owners = replicas
                .iter()
                .map(|replica| (replica.group, owner(replica.group).flatten()));
            let owners = owners.collect();
            let out_of_service = running.quarantined().into_iter();
            end.quarantined
                .extend(out_of_service.map(|(group, why)| (*id, group, why)));
            end.stores.push(StoreEnd {
                store: *id,
                stats,
                leftovers: crate::leftovers::of(&store.disk, &owners),
                replicas,
                data,
            });
        }
        if let Some(what) = broken.into_iter().next() {
            return self.observer.report("agreement-at-the-end", what);
        }
        self.observer.finish(&end);
        match self
            .history
            .check(self.subject.as_ref(), &Limits::default())
        {
            Ok(stats) => {
                self.counts.undecided = (stats.undecided + stats.locally_undecided) as u64;
            }
            Err(wrong) => self.observer.report(wrong.checker, wrong.what),
        }
    }
}
