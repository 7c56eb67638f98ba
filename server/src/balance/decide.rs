//! What should change in a cluster so that nothing is lost and no store has too much: decisions, each with
//! its reason, from what the directory knows.
//!
//! A function of its input alone: asking twice decides twice the same, and a dry run is asking without
//! doing. What matters most comes first: replicas on stores that are dead or leave, then replicas, then
//! leaderships, then sizes. A group gets one decision at a time and none while it is changing. The
//! system's groups are rescued as all others, and count for nothing else.
//!
//! It comes to rest: a replica or leadership moves only from who is more than the slack above another one
//! to that, and stays below it there; what was split is larger than what is merged.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use polyraft_multiraft::KeyRange;

use crate::directory::FIRST_OF_THE_SYSTEM;
use crate::directory::entry::{Limits, StoreState};

/// A difference of so many is no reason to move anything, or of [`SLACK_PART`] of the average.
const SLACK: f64 = 1.0;
const SLACK_PART: f64 = 0.05;

/// The cluster as the directory and the stores describe it.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    pub(crate) limits: Limits,
    pub(crate) stores: Vec<StoreView>,
    pub(crate) groups: Vec<GroupView>,
}

/// One store.
#[derive(Clone, Debug, Default)]
pub(crate) struct StoreView {
    pub(crate) store: u64,
    pub(crate) state: StoreState,
    /// It is heard now.
    pub(crate) heard: bool,
    /// It has room, stays, and has been up for a while.
    pub(crate) takes: bool,
}

/// One group.
#[derive(Clone, Debug, Default)]
pub(crate) struct GroupView {
    pub(crate) group: u64,
    pub(crate) range: Option<KeyRange>,
    pub(crate) stores: Vec<u64>,
    pub(crate) leader: u64,
    /// Of its data; none: nobody has said.
    pub(crate) bytes: Option<u64>,
    /// Its members or its range are changing already.
    pub(crate) changes: bool,
}

impl GroupView {
    const fn is_of_users(&self) -> bool {
        self.group < FIRST_OF_THE_SYSTEM
    }
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// A replica moves.
    Move { group: u64, from: u64, to: u64 },
    /// A leadership moves.
    Transfer { group: u64, from: u64, to: u64 },
    /// A range becomes two.
    Split { group: u64 },
    /// Two ranges become one.
    Merge { left: u64, right: u64 },
    /// Something should be done with a group, and cannot.
    Blocked { group: u64 },
}

/// What is to be done, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Decision {
    pub(crate) action: Action,
    pub(crate) why: String,
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.action {
            Action::Move { group, from, to } => {
                write!(f, "move group {group} from store {from} to {to}")
            }
            Action::Transfer { group, from, to } => {
                write!(f, "hand group {group} from store {from} to {to}")
            }
            Action::Split { group } => write!(f, "split group {group}"),
            Action::Merge { left, right } => write!(f, "merge group {right} into {left}"),
            Action::Blocked { group } => write!(f, "nothing with group {group}"),
        }?;
        write!(f, ": {}", self.why)
    }
}

/// What should be done now, the most urgent first, within the limits.
pub(crate) fn decide(view: &View) -> Vec<Decision> {
    let mut turn = Turn::new(view);
    turn.rescue();
    turn.even_out_replicas();
    turn.even_out_leaders();
    turn.split();
    turn.merge();
    turn.decisions
}

/// A turn of deciding: the view with what was decided so far.
struct Turn<'a> {
    view: &'a View,
    decisions: Vec<Decision>,
    /// Replicas and leaderships of each store, as if all were done.
    replicas: BTreeMap<u64, u64>,
    leaders: BTreeMap<u64, u64>,
    /// Groups that change already, or will.
    busy: BTreeSet<u64>,
    /// Of what the limits allow.
    moves: u64,
    moves_of: BTreeMap<u64, u64>,
    range_changes: u64,
    transfers: u64,
    /// Neighbours that are to be merged, with their bytes. Nothing else moves them, so that they come
    /// together.
    pairs: Vec<(&'a GroupView, &'a GroupView, u64)>,
}

impl<'a> Turn<'a> {
    fn new(view: &'a View) -> Self {
        let count = |store: u64, of: &dyn Fn(&GroupView) -> bool| {
            let groups = view
                .groups
                .iter()
                .filter(|group| of(group) && group.is_of_users());
            (store, groups.count() as u64)
        };
        let stores = || view.stores.iter().map(|store| store.store);
        let changing = view.groups.iter().filter(|group| group.changes);
        let mut turn = Self {
            view,
            decisions: Vec::new(),
            replicas: stores()
                .map(|s| count(s, &|group| group.stores.contains(&s)))
                .collect(),
            leaders: stores()
                .map(|s| count(s, &|group| group.leader == s))
                .collect(),
            busy: changing.clone().map(|group| group.group).collect(),
            moves: 0,
            moves_of: BTreeMap::new(),
            range_changes: 0,
            transfers: 0,
            pairs: small_neighbours(view),
        };
        // Nobody says what of the two it is: it counts for both.
        for group in changing {
            turn.moves += 1;
            turn.range_changes += 1;
            for store in &group.stores {
                *turn.moves_of.entry(*store).or_default() += 1;
            }
        }
        turn
    }

    fn store(&self, store: u64) -> Option<&'a StoreView> {
        self.view.stores.iter().find(|view| view.store == store)
    }

    /// Whether replicas are to leave a store, and why.
    fn leaves(&self, store: u64) -> Option<&'static str> {
        match self.store(store)?.state {
            StoreState::Up => None,
            StoreState::Decommissioning => Some("is to leave"),
            StoreState::Dead => Some("is dead"),
        }
    }

    fn takes(&self, store: u64) -> bool {
        self.store(store)
            .is_some_and(|view| view.takes && view.heard && view.state == StoreState::Up)
    }

    fn is_heard(&self, store: u64) -> bool {
        self.store(store).is_some_and(|view| view.heard)
    }

    fn is_paired(&self, group: u64) -> bool {
        let of = |(left, right, _): &(&GroupView, &GroupView, u64)| {
            left.group == group || right.group == group
        };
        self.pairs.iter().any(of)
    }

    fn has_quorum(&self, group: &GroupView) -> bool {
        let heard = group.stores.iter().filter(|store| self.is_heard(**store));
        heard.count() * 2 > group.stores.len()
    }

    fn may_move(&self, from: u64, to: u64) -> bool {
        let limits = &self.view.limits;
        let of = |store| self.moves_of.get(&store).copied().unwrap_or(0);
        // Who is dead does nothing.
        let from_free = !self.is_heard(from) || of(from) < limits.moves_of_a_store;
        self.moves < limits.moves && from_free && of(to) < limits.moves_of_a_store
    }

    fn decide(&mut self, action: Action, why: String) {
        match action {
            Action::Move { group, from, to } => {
                self.moves += 1;
                for (store, change) in [(from, -1), (to, 1)] {
                    *self.moves_of.entry(store).or_default() += 1;
                    let counts = group < FIRST_OF_THE_SYSTEM;
                    let count = self.replicas.entry(store).or_default();
                    *count = count.saturating_add_signed(if counts { change } else { 0 });
                }
                self.busy.insert(group);
            }
            Action::Transfer { group, from, to } => {
                self.transfers += 1;
                for (store, change) in [(from, -1), (to, 1)] {
                    let count = self.leaders.entry(store).or_default();
                    *count = count.saturating_add_signed(change);
                }
                self.busy.insert(group);
            }
            Action::Split { group } => {
                self.range_changes += 1;
                self.busy.insert(group);
            }
            Action::Merge { left, right } => {
                self.range_changes += 1;
                self.busy.extend([left, right]);
            }
            Action::Blocked { .. } => {}
        }
        self.decisions.push(Decision { action, why });
    }

    /// Replicas on stores that are dead or leave are made anew elsewhere; those of the group that can
    /// bear least first.
    fn rescue(&mut self) {
        let mut endangered: Vec<(usize, &GroupView, u64, &str)> = Vec::new();
        for group in &self.view.groups {
            let lost = |store: &u64| Some((*store, self.leaves(*store)?));
            let Some((from, why)) = group.stores.iter().find_map(lost) else {
                continue;
            };
            let heard = group.stores.iter().filter(|store| self.is_heard(**store));
            endangered.push((heard.count(), group, from, why));
        }
        endangered.sort_by_key(|(heard, group, ..)| (*heard, group.group));
        for (heard, group, from, leaves) in endangered {
            if self.busy.contains(&group.group) {
                continue;
            }
            let blocked = Action::Blocked { group: group.group };
            if !self.has_quorum(group) {
                let of = group.stores.len();
                let why =
                    format!("store {from} {leaves}, and {heard} of its {of} stores are heard");
                self.decide(blocked, why);
                continue;
            }
            let takers = self.view.stores.iter().map(|view| view.store);
            let takers = takers.filter(|to| self.takes(*to) && !group.stores.contains(to));
            let takers: Vec<u64> = takers.collect();
            if takers.is_empty() {
                let why = format!("store {from} {leaves}, and no other store takes a replica");
                self.decide(blocked, why);
                continue;
            }
            let free = takers.into_iter().filter(|to| self.may_move(from, *to));
            // The limits of this turn: the next one goes on.
            if let Some(to) = free.min_by_key(|to| (self.replicas[to], *to)) {
                let group = group.group;
                self.decide(
                    Action::Move { group, from, to },
                    format!("store {from} {leaves}"),
                );
            }
        }
    }

    /// From the store with most replicas to that with fewest, as long as that is worth its while.
    fn even_out_replicas(&mut self) {
        loop {
            let mut stores: Vec<(u64, u64)> = self.counts(&self.replicas);
            stores.sort_unstable();
            let (few, many) = match &stores[..] {
                [few, .., many] => (*few, *many),
                _ => return,
            };
            let slack = slack(&stores);
            if (many.0 as f64) - (few.0 as f64) <= slack + 1.0 {
                return;
            }
            let ((less, to), (more, from)) = (few, many);
            if !self.may_move(from, to) {
                return;
            }
            let movable = |group: &&GroupView| {
                let here = group.stores.contains(&from) && !group.stores.contains(&to);
                let free = !self.busy.contains(&group.group) && !self.is_paired(group.group);
                here && free && group.is_of_users() && self.has_quorum(group)
            };
            let candidates = self.view.groups.iter().filter(movable);
            // One that another store leads costs its clients nothing.
            let best = candidates.min_by_key(|group| (group.leader == from, group.group));
            let Some(group) = best.map(|group| group.group) else {
                return;
            };
            let why = format!("store {from} has {more} replicas, and store {to} has {less}");
            self.decide(Action::Move { group, from, to }, why);
        }
    }

    /// Leaderships in proportion to replicas.
    fn even_out_leaders(&mut self) {
        while self.transfers < self.view.limits.transfers {
            let replicas = self.counts(&self.replicas);
            let all: u64 = replicas.iter().map(|(count, _)| count).sum();
            let led: u64 = replicas.iter().map(|(_, store)| self.leaders[store]).sum();
            let share = |count: u64| led as f64 * count as f64 / all.max(1) as f64;
            let over = |(count, store): &(u64, u64)| self.leaders[store] as f64 - share(*count);
            let slack = |(count, _): &(u64, u64)| SLACK.max(SLACK_PART * share(*count));
            let by = |a: &&(u64, u64), b: &&(u64, u64)| over(a).total_cmp(&over(b));
            let mut best = None;
            let mut from: Vec<&(u64, u64)> = replicas.iter().filter(|s| over(s) >= 0.5).collect();
            from.sort_by(|a, b| by(b, a));
            for giver in from {
                let takes = |taker: &&(u64, u64)| {
                    let worth = over(giver) > slack(giver) || -over(taker) > slack(taker);
                    worth && over(taker) < 0.0 && over(giver) - over(taker) > 1.0
                };
                let mut to: Vec<&(u64, u64)> = replicas.iter().filter(takes).collect();
                to.sort_by(by);
                let pair = to.into_iter().find_map(|taker| {
                    Some((self.group_to_transfer(giver.1, taker.1)?, giver.1, taker.1))
                });
                if pair.is_some() {
                    best = pair;
                    break;
                }
            }
            let Some((group, from, to)) = best else {
                return;
            };
            let (more, less) = (self.leaders[&from], self.leaders[&to]);
            let why = format!("store {from} leads {more} groups, and store {to} leads {less}");
            self.decide(Action::Transfer { group, from, to }, why);
        }
    }

    fn group_to_transfer(&self, from: u64, to: u64) -> Option<u64> {
        let fits = |group: &&GroupView| {
            let led = group.leader == from && group.stores.contains(&to);
            led && group.is_of_users() && !self.busy.contains(&group.group)
        };
        self.view.groups.iter().find(fits).map(|group| group.group)
    }

    /// Counts of the stores that take part.
    fn counts(&self, of: &BTreeMap<u64, u64>) -> Vec<(u64, u64)> {
        let taking = of.iter().filter(|(store, _)| self.takes(**store));
        taking.map(|(store, count)| (*count, *store)).collect()
    }

    fn split(&mut self) {
        let max = self.view.limits.range_bytes_max;
        for group in &self.view.groups {
            let bytes = group
                .bytes
                .filter(|bytes| group.range.is_some() && *bytes > max);
            let Some(bytes) = bytes else { continue };
            if self.range_changes >= self.view.limits.range_changes {
                return;
            }
            if !self.busy.contains(&group.group) {
                let why = format!("its {bytes} bytes are more than {max}");
                self.decide(Action::Split { group: group.group }, why);
            }
        }
    }

    /// Neighbours on the same stores that are small together. Where they are not on the same stores one is
    /// moved first.
    fn merge(&mut self) {
        let limits = self.view.limits;
        for (left, right, bytes) in self.pairs.clone() {
            if [left, right]
                .iter()
                .any(|group| self.busy.contains(&group.group))
            {
                continue;
            }
            let on = |group: &GroupView| group.stores.iter().copied().collect::<BTreeSet<u64>>();
            let (there, here) = (on(left), on(right));
            if there == here {
                if self.range_changes < limits.range_changes && self.has_quorum(left) {
                    let (left, right) = (left.group, right.group);
                    let why = format!("together they have only {bytes} bytes");
                    self.decide(Action::Merge { left, right }, why);
                }
                continue;
            }
            let from = here.difference(&there).next();
            let to = there.difference(&here).next();
            if let (Some(&from), Some(&to)) = (from, to)
                && self.takes(to)
                && self.may_move(from, to)
                && self.has_quorum(right)
            {
                let group = right.group;
                let why = format!("it is small, and to be merged into group {}", left.group);
                self.decide(Action::Move { group, from, to }, why);
            }
        }
    }
}

/// Neighbours that are small together, no group twice. What a merge makes is far from being split.
fn small_neighbours(view: &View) -> Vec<(&GroupView, &GroupView, u64)> {
    let min = view
        .limits
        .range_bytes_min
        .min(view.limits.range_bytes_max / 2);
    let mut ranges: Vec<(&KeyRange, &GroupView)> = Vec::new();
    for group in &view.groups {
        ranges.extend(group.range.as_ref().map(|range| (range, group)));
    }
    ranges.sort_by(|one, other| one.0.start.cmp(&other.0.start));
    let mut pairs = Vec::new();
    let mut taken = None;
    for pair in ranges.windows(2) {
        let [(one, left), (other, right)] = pair else {
            continue;
        };
        let (Some(a), Some(b)) = (left.bytes, right.bytes) else {
            continue;
        };
        let together = a.saturating_add(b);
        let touch = one.end.as_ref() == Some(&other.start);
        if touch && together < min && taken != Some(left.group) {
            taken = Some(right.group);
            pairs.push((*left, *right, together));
        }
    }
    pairs
}

fn slack(counts: &[(u64, u64)]) -> f64 {
    let all: u64 = counts.iter().map(|(count, _)| count).sum();
    let average = all as f64 / counts.len().max(1) as f64;
    SLACK.max(SLACK_PART * average)
}

#[cfg(test)]
mod tests;
