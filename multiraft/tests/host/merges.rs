//! Groups merge: driven step by step from the outside, while stores come and go.

use polyraft_core::{ConfChangeKind, EntryId, Message, Payload, ReplicaId, Term, Transition};
use polyraft_multiraft::env::{Body, GroupMessage, Inbound};
use polyraft_multiraft::{
    GroupDescriptor, GroupId, HostConfig, MergeAnswer, MergeFailure, MergeStep, Merging,
    RangeCommand, Reject, StoreId,
};

use crate::cluster::{Cluster, Promise};

pub(crate) const LEFT: GroupId = GroupId(1);
pub(crate) const RIGHT: GroupId = GroupId(101);

/// Somebody who drives a merge, as well as the cluster lets him.
pub(crate) struct Driver {
    pub(crate) merging: Merging,
    waits: Option<Waits>,
    pub(crate) done: Option<Result<GroupDescriptor, MergeFailure>>,
}

enum Waits {
    Look(Promise<std::sync::Arc<GroupDescriptor>>),
    Propose(Promise<Vec<GroupDescriptor>>),
    Settle(Promise<()>),
}

impl Driver {
    pub(crate) fn new(merging: Merging) -> Self {
        Self {
            merging,
            waits: None,
            done: None,
        }
    }

    /// Whether it may go on from one group to the next by itself.
    pub(crate) fn is_done(&self) -> bool {
        self.done.is_some()
    }

    /// What was looked at before does not count any more; what was proposed may still happen.
    pub(crate) fn give_up(&mut self) {
        self.merging.give_up();
        if !matches!(self.waits, Some(Waits::Propose(_))) {
            self.waits = None;
        }
    }

    /// Goes on if there is an answer, or nobody was asked yet.
    pub(crate) fn drive(&mut self, cluster: &Cluster) {
        let answer = match &self.waits {
            None => None,
            Some(Waits::Look(promise)) => match promise.take() {
                None => return,
                Some(Ok(seen)) => Some(MergeAnswer::Seen(GroupDescriptor::clone(&seen))),
                Some(Err(_)) => Some(MergeAnswer::Failed),
            },
            Some(Waits::Propose(promise)) => match promise.take() {
                None => return,
                Some(Ok(_)) => Some(MergeAnswer::Done),
                Some(Err(_)) => Some(MergeAnswer::Failed),
            },
            Some(Waits::Settle(promise)) => match promise.take() {
                None => return,
                Some(Ok(())) => Some(MergeAnswer::Done),
                Some(Err(_)) => Some(MergeAnswer::Failed),
            },
        };
        self.waits = None;
        if let Some(answer) = answer {
            self.merging.on(answer);
        }
        self.ask(cluster);
    }

    fn ask(&mut self, cluster: &Cluster) {
        match self.merging.next() {
            MergeStep::Done(result) => self.done = Some(result),
            MergeStep::Look(group) => self.look(cluster, group),
            MergeStep::LookBefore(start) => {
                let before = cluster.owner_before(&start);
                match before {
                    Some(group) => self.look(cluster, group),
                    None => self.merging.on(MergeAnswer::Failed),
                }
            }
            MergeStep::Propose { group, command } => match handle(cluster, group) {
                None => self.merging.on(MergeAnswer::Failed),
                Some(handle) => {
                    let (promise, respond) = Promise::new();
                    handle.change_range(group, command, respond);
                    self.waits = Some(Waits::Propose(promise));
                }
            },
            MergeStep::Settle { group, at } => match handle(cluster, group) {
                None => self.merging.on(MergeAnswer::Failed),
                Some(handle) => {
                    let (promise, respond) = Promise::new();
                    handle.settled(group, at, respond);
                    self.waits = Some(Waits::Settle(promise));
                }
            },
        }
    }

    fn look(&mut self, cluster: &Cluster, group: GroupId) {
        if let Some(handle) = handle(cluster, group) {
            let (promise, respond) = Promise::new();
            handle.look(group, respond);
            self.waits = Some(Waits::Look(promise));
        } else if cluster.is_gone(group) {
            self.merging.on(MergeAnswer::Gone);
        } else {
            self.merging.on(MergeAnswer::Failed);
        }
    }
}

fn handle(cluster: &Cluster, group: GroupId) -> Option<polyraft_multiraft::HostHandle> {
    cluster.nodes[&cluster.leader(group)?].handle()
}

/// Two neighbours on three stores, with keys.
pub(crate) fn neighbours(seed: u64, adjust: impl Fn(&mut HostConfig)) -> Cluster {
    let mut cluster = Cluster::new(seed, 3, adjust);
    cluster.create_ranged(1, &[1, 2, 3]);
    cluster.elect();
    for _ in 0..6 {
        cluster.written(LEFT);
    }
    cluster.split(LEFT, &[(100, 101)]).expect("it is possible");
    cluster.elect();
    for _ in 0..4 {
        cluster.written(LEFT);
        cluster.written(RIGHT);
    }
    cluster
}

pub(crate) fn driver(cluster: &Cluster) -> Driver {
    let leader = cluster.leader(RIGHT).expect("it has a leader");
    let right = cluster.handle(leader.0).descriptor(RIGHT);
    let range = right.expect("it is here").range.clone();
    let start = range.expect("it has a range").start;
    Driver::new(Merging::new(LEFT, RIGHT, start))
}

/// To the end, whatever it takes.
#[track_caller]
pub(crate) fn finish(
    cluster: &mut Cluster,
    driver: &mut Driver,
) -> Result<GroupDescriptor, MergeFailure> {
    for _ in 0..4_000 {
        driver.drive(cluster);
        if let Some(done) = driver.done.take() {
            return done;
        }
        cluster.step();
    }
    panic!("it does not end: {:?}", driver.merging);
}

/// Until the left one has the keys; some store may still have the right one's replica.
#[track_caller]
pub(crate) fn unite(cluster: &mut Cluster, driver: &mut Driver) {
    unite_at(cluster, driver, LEFT, &[1, 100]);
}

/// The same for any two neighbours with a border at `key`.
#[track_caller]
pub(crate) fn unite_at(cluster: &mut Cluster, driver: &mut Driver, group: GroupId, key: &[u8]) {
    for _ in 0..4_000 {
        driver.drive(cluster);
        cluster.step();
        let leader = cluster
            .leader(group)
            .and_then(|at| cluster.nodes[&at].handle());
        let left = leader.and_then(|handle| handle.descriptor(group));
        let range = left.and_then(|descriptor| descriptor.range.clone());
        if range.is_some_and(|range| range.contains(key)) {
            return;
        }
    }
    panic!("they are not united: {:?}", driver.merging);
}

/// Until everything is ready for the command that merges them.
#[track_caller]
pub(crate) fn until_merge(cluster: &mut Cluster, driver: &mut Driver) {
    for _ in 0..4_000 {
        driver.drive(cluster);
        cluster.step();
        if let MergeStep::Propose {
            command: RangeCommand::Merge { .. },
            ..
        } = driver.merging.next()
        {
            return;
        }
    }
    panic!("it does not get there: {:?}", driver.merging);
}

/// The right one is nowhere any more, also after a restart.
pub(crate) fn check_gone(cluster: &mut Cluster) {
    cluster.groups.remove(&RIGHT);
    cluster.settle_and_check();
    cluster.until("nothing is left", 400, |cluster| cluster.is_gone(RIGHT));
    for store in 1..=3 {
        cluster.crash(StoreId(store), store % 2 == 0);
        cluster.start(StoreId(store));
        assert!(cluster.handle(store).summary(RIGHT).is_none());
        let handle = cluster.handle(store);
        let again = Cluster::descriptor(RIGHT, &[store]);
        let again = cluster.answer(|respond| handle.create_group(again, respond));
        assert!(
            matches!(again, Err(Reject::Refused(_))),
            "for ever: {again:?}"
        );
        handle.deliver(StoreId(1 + store % 3), vec![late_vote(store)]);
        cluster.ticks(2);
        assert!(cluster.handle(store).summary(RIGHT).is_none());
    }
    cluster.settle_and_check();
}

/// A request of the right one's that was on its way for long.
fn late_vote(to: u64) -> GroupMessage {
    let vote = Message {
        from: ReplicaId(1 + to % 3),
        to: ReplicaId(to),
        term: Term(9),
        payload: Payload::Vote {
            pre: false,
            last: EntryId::new(9, 999),
            transfer: true,
        },
    };
    GroupMessage {
        group: RIGHT,
        body: Body::Raft(vote),
    }
}

#[test]
fn two_neighbours_become_one() {
    for seed in 0..6 {
        let mut cluster = neighbours(seed, |config| {
            config.workers = 1 + (seed % 2) as usize;
            config.appliers = 1 + (seed / 2 % 2) as usize;
            config.sleep_after_ticks = 5 * (seed % 3) as u32;
        });
        let mut driver = driver(&cluster);
        let united = finish(&mut cluster, &mut driver).expect("nothing is in the way");
        assert_eq!(united.group, LEFT);
        let range = united.range.clone().expect("it has a range");
        assert_eq!(
            (&range.start[..], range.end.as_deref()),
            (&[1][..], Some(&[2][..]))
        );
        assert_eq!(
            cluster.leader(RIGHT).map(|_| ()),
            cluster.leader(RIGHT).map(|_| ())
        );
        check_gone(&mut cluster);
        // And apart again, and once more.
        cluster.split(LEFT, &[(100, 102)]).expect("it is possible");
        cluster.settle_and_check();
        let again = Merging::new(LEFT, GroupId(102), vec![1, 100].into());
        let mut again = Driver::new(again);
        assert!(finish(&mut cluster, &mut again).is_ok());
        cluster.groups.remove(&GroupId(102));
        cluster.settle_and_check();
    }
}

#[test]
fn a_frozen_group_serves_nobody_until_it_is_thawed() {
    let mut cluster = neighbours(3, |_| {});
    let leader = cluster.leader(RIGHT).expect("it has a leader");
    let handle = cluster.handle(leader.0);
    let seen = cluster.answer(|respond| handle.look(RIGHT, respond));
    let seen = seen.expect("it is led");
    let (expected, into, target) = (seen.epoch, LEFT, polyraft_multiraft::Epoch::default());
    let freeze = RangeCommand::Freeze {
        expected,
        into,
        target,
    };
    let frozen = cluster.answer(|respond| handle.change_range(RIGHT, freeze, respond));
    let frozen = frozen.expect("it is possible").remove(0);
    let at = frozen.frozen.expect("it is frozen").at;
    let refused = Err(Reject::Frozen { into });
    let write = crate::machine::put(b"\x01\xffk", b"late");
    let written = cluster.answer(|respond| handle.propose(RIGHT, write, respond));
    assert_eq!(written, refused);
    let read = cluster.answer(|respond| handle.read(RIGHT, respond));
    assert_eq!(read.map(drop), Err(Reject::Frozen { into }));
    let changed = cluster.change(RIGHT, &[(ConfChangeKind::Remove, 3)], Transition::Auto);
    assert_eq!(changed.map(drop), Err(Reject::Frozen { into }));
    let split = cluster.split(RIGHT, &[(200, 103)]);
    assert_eq!(split.map(drop), Err(Reject::Frozen { into }));
    let next = ReplicaId(u64::MAX);
    let gone = cluster.answer(|respond| handle.destroy_replica(RIGHT, next, respond));
    assert_eq!(gone, Err(Reject::Frozen { into }));
    for _ in 0..50 {
        let settled = cluster.answer(|respond| handle.settled(RIGHT, at, respond));
        if settled == Ok(()) {
            break;
        }
        assert!(matches!(settled, Err(Reject::Busy(_))), "{settled:?}");
        cluster.ticks(1);
    }
    // It has a leader all the same, also another one, and says what it is.
    let other = 1 + leader.0 % 3;
    let moved = cluster.answer(|respond| handle.transfer_leader(RIGHT, StoreId(other), respond));
    assert_eq!(moved, Ok(()));
    cluster.until("it has another leader", 50, |cluster| {
        cluster.leader(RIGHT) == Some(StoreId(other))
    });
    let handle = cluster.handle(other);
    let seen = cluster.answer(|respond| handle.look(RIGHT, respond));
    assert_eq!(seen.expect("it is led").frozen, frozen.frozen);
    let write = crate::machine::put(b"\x01\xffk", b"late");
    let written = cluster.answer(|respond| handle.propose(RIGHT, write, respond));
    assert_eq!(written, refused, "nor does the next leader");
    let read = cluster.answer(|respond| handle.read(RIGHT, respond));
    assert_eq!(read.map(drop), Err(Reject::Frozen { into }));
    for store in 1..=3 {
        cluster.node(store).flush();
    }
    cluster.crash(StoreId(leader.0), true);
    cluster.start(StoreId(leader.0));
    let thaw = RangeCommand::Thaw {
        expected: frozen.epoch,
    };
    let thawed = cluster.answer(|respond| handle.change_range(RIGHT, thaw, respond));
    assert_eq!(thawed.expect("it is possible")[0].frozen, None);
    cluster.settle_and_check();
}

/// Whoever ends two groups that were to be merged must not be left with one that nobody may end.
#[test]
fn a_frozen_group_without_its_left_neighbour_can_be_destroyed() {
    let mut cluster = neighbours(8, |_| {});
    let leader = cluster.leader(RIGHT).expect("it has a leader");
    let handle = cluster.handle(leader.0);
    let seen = cluster.answer(|respond| handle.look(RIGHT, respond));
    let freeze = RangeCommand::Freeze {
        expected: seen.expect("it is led").epoch,
        into: LEFT,
        target: polyraft_multiraft::Epoch::default(),
    };
    let frozen = cluster.answer(|respond| handle.change_range(RIGHT, freeze, respond));
    assert!(frozen.is_ok(), "{frozen:?}");
    cluster.ticks(20);
    let destroy = |cluster: &mut Cluster, group| {
        let gone = (1..=3).map(|store| {
            let (handle, next) = (cluster.handle(store), ReplicaId(u64::MAX));
            cluster.answer(|respond| handle.destroy_replica(group, next, respond))
        });
        gone.collect::<Result<Vec<()>, Reject>>().map(drop)
    };
    let refused = Err(Reject::Frozen { into: LEFT });
    assert_eq!(destroy(&mut cluster, RIGHT), refused);
    assert_eq!(destroy(&mut cluster, LEFT), Ok(()));
    assert_eq!(destroy(&mut cluster, RIGHT), Ok(()));
    assert!(cluster.is_gone(LEFT) && cluster.is_gone(RIGHT));
}

/// Nobody may come for it for a long time, and every leader adds an entry to its log.
#[test]
fn a_frozen_group_sleeps() {
    let mut cluster = neighbours(11, |config| config.sleep_after_ticks = 5);
    let leader = cluster.leader(RIGHT).expect("it has a leader");
    let handle = cluster.handle(leader.0);
    let seen = cluster.answer(|respond| handle.look(RIGHT, respond));
    let freeze = RangeCommand::Freeze {
        expected: seen.expect("it is led").epoch,
        into: LEFT,
        target: polyraft_multiraft::Epoch::default(),
    };
    let frozen = cluster.answer(|respond| handle.change_range(RIGHT, freeze, respond));
    let frozen = frozen.expect("it is possible").remove(0);
    let other = StoreId(1 + leader.0 % 3);
    let moved = cluster.answer(|respond| handle.transfer_leader(RIGHT, other, respond));
    assert_eq!(moved, Ok(()));
    cluster.until("it sleeps everywhere", 200, |cluster| {
        let mut asleep = (1..=3).map(|store| cluster.handle(store).summary(RIGHT));
        asleep.all(|summary| summary.is_some_and(|summary| summary.asleep))
    });
    let leader = cluster.leader(RIGHT).expect("it has a leader");
    assert_eq!(leader, other);
    let handle = cluster.handle(leader.0);
    let thaw = RangeCommand::Thaw {
        expected: frozen.epoch,
    };
    let thawed = cluster.answer(|respond| handle.change_range(RIGHT, thaw, respond));
    assert_eq!(thawed.expect("it is possible")[0].frozen, None);
    cluster.settle_and_check();
}

#[test]
fn a_merge_that_is_given_up_leaves_two_that_serve() {
    for steps in 0..12 {
        let mut cluster = neighbours(4, |_| {});
        let mut driver = driver(&cluster);
        for _ in 0..steps * 3 {
            driver.drive(&cluster);
            cluster.step();
        }
        driver.give_up();
        match finish(&mut cluster, &mut driver) {
            Ok(_) => check_gone(&mut cluster),
            Err(why) => {
                assert_eq!(why, MergeFailure::GivenUp);
                cluster.settle_and_check();
            }
        }
    }
}

/// At every moment, on every store, with the power or without.
#[test]
fn a_store_that_goes_down_during_a_merge_has_all_of_it_or_nothing() {
    for seed in 0..90u64 {
        let mut cluster = neighbours(seed, |config| {
            config.workers = 1 + (seed % 2) as usize;
            config.appliers = 1 + (seed / 2 % 2) as usize;
            config.truncate_keep_entries = 100;
        });
        let mut driver = driver(&cluster);
        cluster.pace = 60;
        for _ in 0..seed {
            driver.drive(&cluster);
            cluster.write(LEFT);
            cluster.step();
        }
        let store = StoreId(1 + seed % 3);
        cluster.crash(store, seed % 2 == 0);
        for _ in 0..seed % 7 * 10 {
            driver.drive(&cluster);
            cluster.step();
        }
        cluster.start(store);
        cluster.pace = 100;
        assert!(finish(&mut cluster, &mut driver).is_ok(), "seed {seed}");
        check_gone(&mut cluster);
    }
}

/// It hears nothing of either group while they merge; the others have forgotten the right one by then.
#[test]
fn who_was_away_follows_by_its_log() {
    for both in [false, true] {
        let mut cluster = neighbours(5, |config| config.truncate_keep_entries = 100);
        let leader = cluster.leader(LEFT).expect("it has a leader").0;
        let away = 1 + leader % 3;
        let mut driver = driver(&cluster);
        until_merge(&mut cluster, &mut driver);
        for group in [LEFT, RIGHT] {
            if both || group == LEFT {
                cluster.network.set_deaf(StoreId(away), group, true);
            }
        }
        unite(&mut cluster, &mut driver);
        // The right one's replica here campaigns, and is told that its group is dead; but the left one here
        // cannot follow without it.
        cluster.ticks(100);
        assert!(cluster.handle(away).summary(RIGHT).is_some());
        for group in [LEFT, RIGHT] {
            cluster.network.set_deaf(StoreId(away), group, false);
        }
        check_gone(&mut cluster);
        assert_eq!(cluster.handle(away).stats().snapshots_installed, 0);
    }
}

/// It slept through the merge, and maybe through a split behind it; logs are truncated by then, so
/// the left one's snapshot takes over what is here of the right one.
#[test]
fn who_was_away_follows_by_a_snapshot() {
    for seed in 0..12u64 {
        let mut cluster = neighbours(seed, |config| {
            config.workers = 1 + (seed % 2) as usize;
            config.appliers = 1 + (seed / 2 % 2) as usize;
            config.truncate_keep_entries = 0;
        });
        let leader = cluster.leader(LEFT).expect("it has a leader").0;
        let away = StoreId(1 + leader % 3);
        let mut driver = driver(&cluster);
        until_merge(&mut cluster, &mut driver);
        cluster.crash(away, seed % 3 == 0);
        unite(&mut cluster, &mut driver);
        cluster.groups.remove(&RIGHT);
        // Not at all, before, at, or behind the border that was.
        let border = [None, Some(50), Some(100), Some(150)][(seed % 4) as usize];
        if let Some(border) = border {
            cluster
                .split(LEFT, &[(border, 103)])
                .expect("it is possible");
            cluster.elect();
        }
        for _ in 0..5 {
            cluster.written(LEFT);
        }
        for store in 1..=3 {
            cluster.node(store).flush();
        }
        cluster.ticks(5);
        cluster.start(away);
        assert!(cluster.handle(away.0).summary(RIGHT).is_some());
        if seed % 4 == 1 {
            for _ in 0..seed * 3 {
                cluster.step();
            }
            cluster.crash(away, true);
            cluster.start(away);
        }
        check_gone(&mut cluster);
    }
}

/// What was merged is a group of its own again, at the same border, before this store hears of the merge: the
/// snapshot of that group must not take the right one over, which the left one's log still needs here.
#[test]
fn who_was_away_follows_before_what_was_split_off_again() {
    for seed in 0..12u64 {
        let mut cluster = neighbours(seed, |config| {
            config.workers = 1 + (seed % 2) as usize;
            config.appliers = 1 + (seed / 2 % 2) as usize;
            config.truncate_keep_entries = [100, 0][(seed / 4 % 2) as usize];
        });
        let leader = cluster.leader(LEFT).expect("it has a leader").0;
        let away = 1 + leader % 3;
        let mut driver = driver(&cluster);
        until_merge(&mut cluster, &mut driver);
        cluster.network.set_deaf(StoreId(away), LEFT, true);
        unite(&mut cluster, &mut driver);
        cluster.groups.remove(&RIGHT);
        cluster.split(LEFT, &[(100, 103)]).expect("it is possible");
        cluster.elect();
        for _ in 0..3 {
            cluster.written(LEFT);
            cluster.written(GroupId(103));
        }
        for store in 1..=3 {
            cluster.node(store).flush();
        }
        cluster.ticks(100);
        assert!(cluster.handle(away).summary(RIGHT).is_some(), "seed {seed}");
        if seed % 3 == 1 {
            cluster.crash(StoreId(away), seed % 2 == 0);
            cluster.start(StoreId(away));
        }
        cluster.network.set_deaf(StoreId(away), LEFT, false);
        check_gone(&mut cluster);
        assert_eq!(quarantined(&mut cluster, away), None, "seed {seed}");
    }
}

/// Why the left one's replica on a store is out of service, if it is.
fn quarantined(cluster: &mut Cluster, store: u64) -> Option<String> {
    let handle = cluster.handle(store);
    let status = cluster.answer(|respond| handle.describe(LEFT, respond));
    status.expect("it is here").quarantined
}

/// Whoever changes its members may have left that half done.
#[test]
fn a_merge_is_undone_while_the_left_one_is_joint() {
    let mut cluster = neighbours(10, |_| {});
    let mut driver = driver(&cluster);
    while cluster.leader(RIGHT).is_none_or(|at| {
        let right = cluster.handle(at.0).descriptor(RIGHT);
        right.is_none_or(|right| right.frozen.is_none())
    }) {
        driver.drive(&cluster);
        cluster.step();
    }
    let demoted = 1 + cluster.leader(LEFT).expect("it has a leader").0 % 3;
    let change = [(ConfChangeKind::AddLearner, demoted)];
    let joint = cluster.change(LEFT, &change, Transition::JointExplicit);
    assert!(joint.is_ok(), "{joint:?}");
    let leader = cluster.leader(LEFT).expect("it has a leader").0;
    let handle = cluster.handle(leader);
    let seen = cluster.answer(|respond| handle.look(LEFT, respond));
    let expected = seen.expect("it is led").epoch;
    let fence = RangeCommand::Fence { expected };
    let fenced = cluster.answer(|respond| handle.change_range(LEFT, fence, respond));
    assert!(fenced.is_ok(), "{fenced:?}");
    driver.give_up();
    let done = finish(&mut cluster, &mut driver);
    assert_eq!(done, Err(MergeFailure::GivenUp));
}

/// A replica that cannot follow up to the freeze would be lost, and the left one's with it: so they are not
/// merged, and the right one serves again.
#[test]
fn a_right_one_that_is_out_of_service_somewhere_is_not_merged() {
    let mut cluster = neighbours(6, |_| {});
    let leader = cluster.leader(RIGHT).expect("it has a leader").0;
    let bad = 1 + leader % 3;
    let mut driver = driver(&cluster);
    cluster.node(bad).data.damage(RIGHT);
    cluster.write(RIGHT);
    cluster.ticks(10);
    for _ in 0..400 {
        driver.drive(&cluster);
        cluster.step();
    }
    assert!(driver.done.is_none(), "{:?}", driver.done);
    driver.give_up();
    let done = finish(&mut cluster, &mut driver);
    assert_eq!(done, Err(MergeFailure::GivenUp));
    for group in [LEFT, RIGHT] {
        cluster.written(group);
    }
    cluster.groups.remove(&RIGHT);
    cluster.settle_and_check();
}
