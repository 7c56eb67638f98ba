//! Leaderships spread over the stores again, after crashes and restarts have piled them up.
//!
//! Each store for itself compares, now and then, what it leads with its share: of all leaderships the
//! part that corresponds to its part of all replicas. One that leads too many hands a few over to stores
//! that lead too few, those only that have been up for a while and do not drain. [`plan`] decides, from
//! counts alone; nothing is asked of any group and none is woken before a transfer is decided.
//!
//! It rests once everybody is near its share: a transfer is worth its while only if one side is more
//! than the slack away, and never takes anybody past its share by a whole leadership. Since all who give
//! at the same time take their parts of what is missing, they do not overshoot together.

pub(crate) mod decide;
mod explain;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use polyraft_multiraft::{GroupId, StoreId};
use rand::seq::SliceRandom;
use tokio::time::Instant;

use crate::directory::FIRST_OF_THE_SYSTEM;
use crate::routing::Call;
use crate::server::{Server, futures_join, status_of};

/// What one store leads and holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Load {
    store: u64,
    leaders: u64,
    replicas: u64,
    /// It has been up for a while, can be heard, and stays.
    takes: bool,
}

/// Transfers of one turn at most: clients of a group that moves wait for a moment.
const TRANSFERS: usize = 32;
/// So many leaderships more or fewer than the share are no reason to move one, or [`SLACK_PART`] of it.
const SLACK: f64 = 1.0;
const SLACK_PART: f64 = 0.05;
/// A store that came back is left alone for so long: it may be behind, or go again.
const SETTLED_SECONDS: u64 = 5;
/// How long one transfer may take.
const TRANSFER_BOUND: Duration = Duration::from_secs(2);

/// Balances every `interval` until this task is ended.
pub(crate) async fn run(server: Arc<Server>, interval: Duration) {
    loop {
        // Stores that were started together do not act together.
        let jitter = 0.75 + 0.5 * rand::random::<f64>();
        tokio::time::sleep(interval.mul_f64(jitter)).await;
        if !server.draining.load(Ordering::SeqCst) {
            server.balance().await;
        }
    }
}

impl Server {
    async fn balance(&self) {
        let stats = self.stats_of_ranges();
        let connected = self.peers.connected();
        if stats.leaders == 0 || connected.is_empty() {
            return;
        }
        let mut loads = vec![Load {
            store: self.me,
            leaders: stats.leaders,
            replicas: stats.replicas,
            takes: false,
        }];
        let others = self.peers.others();
        let asked = others.iter().filter(|store| connected.contains(store));
        for status in futures_join(asked.map(|store| status_of(&self.peers, *store))).await {
            // Who cannot be asked leads something that is not known: better no decision than a wrong one.
            if !status.error.is_empty() || status.cluster != self.cluster {
                return;
            }
            loads.push(Load {
                store: status.store,
                leaders: status.leaders,
                replicas: status.replicas,
                takes: !status.draining
                    && !status.disk_full
                    && status.uptime_seconds >= SETTLED_SECONDS,
            });
        }
        let plan = plan(self.me, &loads);
        if plan.is_empty() {
            return;
        }
        let chosen = self.choose(&plan);
        let moved = futures_join(chosen.iter().map(|(group, to)| self.hand_over(*group, *to)));
        let moved = moved.await.into_iter().filter(|moved| *moved).count();
        tracing::info!(
            leaders = stats.leaders,
            moved,
            "leaderships handed to stores with fewer"
        );
    }

    /// Groups that this store leads, as many for each store as it is to get.
    fn choose(&self, plan: &[(u64, usize)]) -> Vec<(GroupId, u64)> {
        let mut led = self.led();
        led.retain(|group| group.0 < FIRST_OF_THE_SYSTEM);
        // A fair sample of busy and idle ones, and another one each time: some may not be able to move.
        led.shuffle(&mut rand::rng());
        let mut wanted = plan.to_vec();
        let mut chosen = Vec::new();
        for group in led {
            let Some(descriptor) = self.handle.descriptor(group) else {
                continue;
            };
            let to = wanted.iter_mut().find(|(store, count)| {
                *count > 0 && descriptor.replica_on(StoreId(*store)).is_some()
            });
            if let Some((store, count)) = to {
                *count -= 1;
                chosen.push((group, *store));
            }
        }
        chosen
    }

    async fn hand_over(&self, group: GroupId, to: u64) -> bool {
        if self.draining.load(Ordering::SeqCst) {
            return false;
        }
        let call = Call {
            deadline: Instant::now() + TRANSFER_BOUND,
            forwarded: true,
            reads: false,
            once: false,
        };
        let moved = self.ask(group.0, call, |respond| {
            self.handle.transfer_leader(group, StoreId(to), respond);
        });
        match moved.await {
            Ok(()) => true,
            Err(failure) => {
                // A learner does not lead, say; the next turn tries others.
                tracing::debug!(%group, to, why = failure.message, "a leadership did not move");
                false
            }
        }
    }
}

/// How many leaderships store `me` hands over, and to whom.
fn plan(me: u64, loads: &[Load]) -> Vec<(u64, usize)> {
    let leaders: u64 = loads.iter().map(|load| load.leaders).sum();
    let replicas: u64 = loads.iter().map(|load| load.replicas).sum();
    let Some(own) = loads.iter().find(|load| load.store == me) else {
        return Vec::new();
    };
    if replicas == 0 {
        return Vec::new();
    }
    let share = |load: &Load| leaders as f64 * load.replicas as f64 / replicas as f64;
    let over = |load: &Load| load.leaders as f64 - share(load);
    let slack = |load: &Load| SLACK.max(SLACK_PART * share(load));
    let excess = over(own);
    if excess < 0.5 {
        return Vec::new();
    }
    let all: f64 = loads.iter().map(|load| over(load).max(0.0)).sum();
    let mut takers: Vec<(&Load, f64)> = loads
        .iter()
        .filter(|load| load.takes && load.store != me)
        .map(|load| (load, -over(load)))
        .filter(|(load, lacks)| *lacks > 0.0 && (excess > slack(own) || *lacks > slack(load)))
        .collect();
    takers.sort_by(|a, b| b.1.total_cmp(&a.1));
    // What is more than a whole leadership above the share, and one for a fraction.
    let mut left = (excess.round() as usize).clamp(1, TRANSFERS);
    let mut plan = Vec::new();
    for (load, lacks) in takers {
        let part = (lacks * excess / all).floor() as usize;
        let count = if plan.is_empty() { part.max(1) } else { part }.min(left);
        if count > 0 {
            plan.push((load.store, count));
            left -= count;
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loads(counts: &[u64]) -> Vec<Load> {
        let each = (1..).zip(counts);
        each.map(|(store, leaders)| Load {
            store,
            leaders: *leaders,
            replicas: 1000,
            takes: true,
        })
        .collect()
    }

    /// All stores act at the same time on the same view; turns until nobody moves anything.
    fn settle(counts: &[u64]) -> (Vec<u64>, usize) {
        let mut counts = counts.to_vec();
        for turn in 0..200 {
            let before = loads(&counts);
            let mut moved = false;
            for me in 1..=counts.len() as u64 {
                for (to, count) in plan(me, &before) {
                    counts[me as usize - 1] -= count as u64;
                    counts[to as usize - 1] += count as u64;
                    moved = true;
                }
            }
            if !moved {
                return (counts, turn);
            }
        }
        panic!("does not come to rest: {counts:?}");
    }

    #[test]
    fn what_is_balanced_stays_as_it_is() {
        for counts in [
            &[334, 333, 333][..],
            &[3, 3, 2],
            &[1, 0, 0],
            &[340, 330, 330],
            &[1],
            &[],
            &[0, 0],
        ] {
            for me in 1..=counts.len() as u64 {
                assert_eq!(plan(me, &loads(counts)), [], "{counts:?} by store {me}");
            }
        }
    }

    #[test]
    fn any_pile_is_spread_and_then_there_is_rest() {
        for counts in [
            &[500, 0, 500][..],
            &[1000, 0, 0],
            &[8, 0, 0],
            &[3, 3, 2, 0],
            &[4, 4, 0],
            &[2, 0],
            &[400, 300, 200, 100, 0],
            &[0, 0, 0, 0, 37],
        ] {
            let (settled, turns) = settle(counts);
            let share = counts.iter().sum::<u64>() as f64 / counts.len() as f64;
            let slack = SLACK.max(SLACK_PART * share);
            for leaders in &settled {
                let away = (*leaders as f64 - share).abs();
                assert!(away <= slack, "{counts:?} became {settled:?}");
            }
            assert!(turns <= 40, "{counts:?} took {turns} turns");
        }
    }

    #[test]
    fn a_turn_moves_few_and_only_to_who_takes() {
        let mut all = loads(&[1000, 0, 0]);
        all[1].takes = false;
        let moves = plan(1, &all);
        assert_eq!(moves, [(3, TRANSFERS)]);
        all[2].takes = false;
        assert_eq!(plan(1, &all), []);
        assert_eq!(plan(9, &all), [], "a store that is not among them");
    }

    #[test]
    fn a_store_with_few_replicas_has_a_small_share() {
        let mut all = loads(&[300, 300, 300, 0]);
        all[3].replicas = 10;
        for me in 1..=3 {
            assert!(plan(me, &all).len() <= 1);
        }
        all[3].leaders = 3;
        for me in 1..=4 {
            assert_eq!(plan(me, &all), []);
        }
    }
}
