//! What threads share, each piece by itself, under schedules that shuttle chooses. Whole hosts are
//! in `tests/interleavings`.

#[path = "../../tests/interleavings/check.rs"]
mod check;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use polyraft_core::{BasicStatus, HardState, ReplicaId, Term};
use shuttle::thread;

use self::check::check;
use crate::budget::Budget;
use crate::error::HostError;
use crate::group::{GroupDescriptor, GroupId, KeyRange};
use crate::handle::ReplicaSummary;
use crate::host::OnFatal;
use crate::ranges::registry::Registry;
use crate::responder::Responder;
use crate::router::Router;
use crate::sync::AtomicU64;
use crate::threads::channel;
use crate::worker::Shared;

/// Runs all of them beside each other, to their end.
fn beside(threads: Vec<Box<dyn FnOnce() + Send>>) {
    let threads: Vec<_> = threads.into_iter().map(thread::spawn).collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

/// Never more than there is; what is larger than all there is, alone; and everything comes back.
#[test]
fn a_budget_is_kept() {
    const LIMIT: u64 = 100;
    check(2_000, || {
        let budget = Budget::new(LIMIT);
        let held = Arc::new(AtomicU64::new(0));
        let user = |bytes: u64| -> Box<dyn FnOnce() + Send> {
            let (budget, held) = (budget.clone(), Arc::clone(&held));
            Box::new(move || {
                for _ in 0..3 {
                    let Some(permit) = budget.try_acquire(bytes) else {
                        continue;
                    };
                    // Counted later than taken and uncounted before it is given back.
                    let now = held.fetch_add(bytes, Ordering::SeqCst) + bytes;
                    assert!(now <= LIMIT.max(bytes), "{now} bytes are in use");
                    held.fetch_sub(bytes, Ordering::SeqCst);
                    drop(permit);
                }
            })
        };
        beside([30, 40, 60, 150].into_iter().map(user).collect());
        assert_eq!(budget.used(), 0, "a share of the budget leaked");
    });
}

fn summary(group: GroupId, term: u64) -> ReplicaSummary {
    ReplicaSummary {
        group,
        basic: BasicStatus {
            hard_state: HardState {
                term: Term(term),
                ..HardState::default()
            },
            ..BasicStatus::default()
        },
        ..ReplicaSummary::default()
    }
}

/// Workers publish and remove while others look: a group is always with its worker, whether it is
/// there or not, and what is seen of it never goes back.
#[test]
fn groups_are_found_where_they_are() {
    const GROUPS: [GroupId; 4] = [GroupId(1), GroupId(2), GroupId(3), GroupId(4)];
    check(1_000, || {
        let router = Arc::new(Router::new(2));
        let worker = |worker: usize| -> Box<dyn FnOnce() + Send> {
            let router = Arc::clone(&router);
            Box::new(move || {
                let mine = |group: &GroupId| router.home_of(*group) == worker;
                for term in 1..4 {
                    for group in GROUPS.into_iter().filter(mine) {
                        let descriptor = Arc::new(GroupDescriptor {
                            group,
                            ..GroupDescriptor::default()
                        });
                        router.publish(worker, summary(group, term), &descriptor);
                        if term == 2 && group.0 % 2 == 0 {
                            router.remove(group);
                        }
                    }
                }
            })
        };
        let reader = || -> Box<dyn FnOnce() + Send> {
            let router = Arc::clone(&router);
            Box::new(move || {
                let mut seen = [Term(0); GROUPS.len()];
                for _ in 0..3 {
                    for group in GROUPS {
                        assert_eq!(router.worker_of(group), router.home_of(group));
                    }
                    let list = router.list();
                    assert!(list.is_sorted_by(|a, b| a.group < b.group), "{list:?}");
                    for summary in list {
                        let (term, at) = (summary.basic.hard_state.term, summary.group.0 - 1);
                        let before = std::mem::replace(&mut seen[at as usize], term);
                        assert!(term >= before, "{term} after {before}");
                    }
                    let descriptors = router.descriptors();
                    assert!(descriptors.is_sorted_by(|a, b| a.group < b.group));
                }
            })
        };
        beside(vec![worker(0), reader(), worker(1), reader()]);
        assert_eq!(router.list().len(), GROUPS.len());
    });
}

/// Of those who want the same keys one has them at a time.
#[test]
fn a_range_has_one_owner_at_a_time() {
    check(1_000, || {
        let registry = Arc::new(Registry::default());
        let owners = Arc::new(AtomicU64::new(0));
        let group = |number: u8| -> Box<dyn FnOnce() + Send> {
            let (registry, owners) = (Arc::clone(&registry), Arc::clone(&owners));
            Box::new(move || {
                let group = GroupId(u64::from(number));
                let range = KeyRange {
                    start: Bytes::copy_from_slice(&[number]),
                    end: None,
                };
                for _ in 0..3 {
                    if registry
                        .enter(group, ReplicaId(1), Some(&range), true)
                        .is_err()
                    {
                        continue;
                    }
                    assert_eq!(owners.fetch_add(1, Ordering::SeqCst), 0, "two owners");
                    owners.fetch_sub(1, Ordering::SeqCst);
                    registry.leave(group);
                }
            })
        };
        beside((1..=3).map(group).collect());
        let all = KeyRange::default();
        let entered = registry.enter(GroupId(9), ReplicaId(1), Some(&all), true);
        assert_eq!(entered, Ok(()));
    });
}

/// In whichever thread a request ends, taken, left in a channel, or given back by one that is
/// closed: its caller hears of it once.
#[test]
fn a_caller_hears_once() {
    check(1_000, || {
        let (answers, dropped) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (sender, receiver) = channel::<Responder<bool>>();
        let mut threads: Vec<Box<dyn FnOnce() + Send>> = Vec::new();
        for _ in 0..3 {
            let sender = sender.clone();
            let (answers, dropped) = (Arc::clone(&answers), Arc::clone(&dropped));
            threads.push(Box::new(move || {
                for _ in 0..2 {
                    let (answers, dropped) = (Arc::clone(&answers), Arc::clone(&dropped));
                    let count = move |answered| {
                        let count = if answered { answers } else { dropped };
                        count.fetch_add(1, Ordering::SeqCst);
                    };
                    drop(sender.send(Responder::new(|| false, count)));
                }
            }));
        }
        drop(sender);
        threads.push(Box::new(move || {
            for _ in 0..3 {
                if let Ok(responder) = receiver.try_recv() {
                    responder.answer(true);
                }
            }
        }));
        beside(threads);
        let (answers, dropped) = (
            answers.load(Ordering::SeqCst),
            dropped.load(Ordering::SeqCst),
        );
        assert!(answers <= 3, "{answers} answers");
        assert_eq!(answers + dropped, 6);
    });
}

/// The first error that is final is told, and no other.
#[test]
fn the_store_fails_once() {
    check(1_000, || {
        let told = Arc::new(AtomicU64::new(0));
        let shared = Arc::new(Shared::new(1));
        let fatal = OnFatal({
            let told = Arc::clone(&told);
            Arc::new(move |_| {
                told.fetch_add(1, Ordering::SeqCst);
            })
        });
        let fails = |_| -> Box<dyn FnOnce() + Send> {
            let (fatal, shared) = (fatal.clone(), Arc::clone(&shared));
            Box::new(move || {
                fatal.raise(&shared, HostError::Config("a test".to_owned()));
                assert!(shared.is_over());
            })
        };
        beside((0..3).map(fails).collect());
        assert_eq!(told.load(Ordering::SeqCst), 1);
    });
}
