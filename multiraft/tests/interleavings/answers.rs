//! Every request is answered exactly once, however its host ends beside it; and what was refused
//! has had no effect.

use std::sync::Arc;

use bytes::Bytes;
use polyraft_multiraft::env::conformance::SeamFault;
use polyraft_multiraft::{GroupId, HostHandle, Reject};
use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::atomic::Ordering;
use shuttle::thread;

use crate::check::check;
use crate::store::{Answer, Clock, STORE, Store, ask, command, descriptor, lead};

/// What a caller asked for.
enum Asked {
    Command(Bytes, Answer<Result<Bytes, Reject>>),
    Other(&'static str, Box<dyn Fn() -> bool + Send>),
}

fn other<T: Clone + Send + 'static>(what: &'static str, answer: Answer<T>) -> Asked {
    Asked::Other(what, Box::new(move || answer.now().is_some()))
}

/// Some requests of every kind, without waiting.
fn call(handle: &HostHandle, caller: u64) -> Vec<Asked> {
    let group = GroupId(1);
    let mut asked = Vec::new();
    for number in 0..5 {
        asked.push(match thread_rng().gen_range(0..8) {
            0 => other("read", ask(|respond| handle.read(group, respond))),
            1 => other("describe", ask(|respond| handle.describe(group, respond))),
            2 => {
                let descriptor = descriptor(10 + caller, &[STORE]);
                other(
                    "create",
                    ask(|respond| handle.create_group(descriptor, respond)),
                )
            }
            3 => {
                let (group, next) = (GroupId(10 + caller), polyraft_core::ReplicaId(2));
                let destroy = |respond| handle.destroy_replica(group, next, respond);
                other("destroy", ask(destroy))
            }
            _ => {
                let (key, command) = command(caller, number);
                Asked::Command(key, ask(|respond| handle.propose(group, command, respond)))
            }
        });
    }
    asked
}

/// Callers beside `end`, after which the host is stopped; time passes all the while.
fn everybody_is_answered(end: impl FnOnce(&Store)) -> Arc<Store> {
    let store = Arc::new(Store::new(2));
    let host = store.start();
    let handle = host.handle();
    lead(&handle, 1);
    let clock = Clock::start();
    let callers: Vec<_> = (0..2)
        .map(|caller| {
            let handle = handle.clone();
            thread::spawn(move || call(&handle, caller))
        })
        .collect();
    end(&store);
    if thread_rng().gen_range(0..2) == 0 {
        host.stop();
    } else {
        drop(host);
    }
    clock.stop();
    let asked = callers
        .into_iter()
        .flat_map(|caller| caller.join().unwrap());
    let data = store.data.data(GroupId(1)).expect("it was created");
    for asked in asked {
        let (key, answer) = match asked {
            Asked::Command(key, answer) => (key, answer),
            Asked::Other(what, answered) => {
                assert!(answered(), "nobody answered: {what}");
                continue;
            }
        };
        match answer.now().expect("nobody answered: propose") {
            Ok(_) => assert!(data.keys.contains_key(&key), "acknowledged and not there"),
            Err(Reject::Ambiguous) => {}
            Err(refused) => assert!(!data.keys.contains_key(&key), "{refused} but it is there"),
        }
    }
    let (_, command) = command(9, 9);
    let late = ask(|respond| handle.propose(GroupId(1), command, respond));
    assert_eq!(late.now(), Some(Err(Reject::Stopped)));
    assert_eq!(
        handle.stats().proposal_bytes,
        0,
        "a share of the budget leaked"
    );
    store
}

#[test]
fn beside_a_stop() {
    check(1000, || {
        let store = everybody_is_answered(|_| {});
        assert_eq!(store.fatal.load(Ordering::SeqCst), 0);
    });
}

#[test]
fn beside_a_log_that_fails() {
    check(1000, || {
        let store = everybody_is_answered(|store| store.log.set_fault(Some(SeamFault::SyncFails)));
        assert!(store.fatal.load(Ordering::SeqCst) <= 1);
    });
}

#[test]
fn beside_a_state_machine_that_fails() {
    check(1000, || {
        let store = everybody_is_answered(|store| store.data_fails.store(true, Ordering::SeqCst));
        assert!(store.fatal.load(Ordering::SeqCst) <= 1);
    });
}

/// Both at once: whoever is first says so, and nobody else.
#[test]
fn beside_two_failures() {
    check(1000, || {
        let store = everybody_is_answered(|store| {
            store.data_fails.store(true, Ordering::SeqCst);
            store.log.set_fault(Some(SeamFault::SyncFails));
        });
        assert!(store.fatal.load(Ordering::SeqCst) <= 1);
    });
}

/// No room for the log, for the data, or for both, and again some, at any moment.
#[test]
fn beside_a_disk_that_is_full() {
    check(1000, || {
        let store = everybody_is_answered(|store| {
            store.log.set_fault(Some(SeamFault::Full));
            thread::yield_now();
            store.data.set_fault(Some(SeamFault::Full));
            thread::yield_now();
            if thread_rng().gen_range(0..2) == 0 {
                store.log.set_fault(None);
                thread::yield_now();
                store.data.set_fault(None);
            }
        });
        assert_eq!(store.fatal.load(Ordering::SeqCst), 0);
    });
}
