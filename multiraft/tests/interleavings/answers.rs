//! Every request is answered exactly once, however its host ends beside it; and what was refused
//! has had no effect.

use bytes::Bytes;
use polyraft_core::ReplicaId;
use polyraft_multiraft::env::conformance::SeamFault;
use polyraft_multiraft::{GroupId, HostHandle, Reject};
use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::atomic::Ordering;
use shuttle::thread;

use crate::check::check;
use crate::machine::Data;
use crate::store::{Answer, Clock, STORE, Store, ask, command, descriptor, lead};

/// What a caller asked for.
enum Asked {
    Command(Bytes, Answer<Result<Bytes, Reject>>),
    /// Waits for the answer if told to; false: there is none.
    Other(&'static str, Box<dyn Fn(bool) -> bool + Send>),
}

impl Asked {
    fn other<T: Clone + Send + 'static>(what: &'static str, answer: Answer<T>) -> Self {
        let answered = move |wait| {
            if wait {
                answer.wait();
            }
            answer.now().is_some()
        };
        Self::Other(what, Box::new(answered))
    }

    fn wait(&self) {
        match self {
            Self::Command(_, answer) => drop(answer.wait()),
            Self::Other(_, answered) => assert!(answered(true)),
        }
    }

    /// Once nothing can happen any more.
    fn check(&self, data: &Data) {
        let (key, answer) = match self {
            Self::Command(key, answer) => (key, answer),
            Self::Other(what, answered) => {
                return assert!(answered(false), "nobody answered: {what}");
            }
        };
        let there = data.keys.contains_key(key);
        match answer.now().expect("nobody answered: propose") {
            Ok(_) => assert!(there, "acknowledged and not there"),
            Err(Reject::Ambiguous) => {}
            Err(refused) => assert!(!there, "{refused} but it is there"),
        }
    }
}

/// Some requests of every kind, without waiting.
fn call(handle: &HostHandle, caller: u64) -> Vec<Asked> {
    let group = GroupId(1);
    let mut asked = Vec::new();
    for number in 0..5 {
        asked.push(match thread_rng().gen_range(0..8) {
            0 => Asked::other("read", ask(|respond| handle.read(group, respond))),
            1 => Asked::other("describe", ask(|respond| handle.describe(group, respond))),
            2 => {
                let wanted = descriptor(10 + caller, &[STORE]);
                let created = ask(|respond| handle.create_group(wanted, respond));
                Asked::other("create", created)
            }
            3 => {
                let (group, next) = (GroupId(10 + caller), ReplicaId(2));
                let destroy = |respond| handle.destroy_replica(group, next, respond);
                Asked::other("destroy", ask(destroy))
            }
            _ => {
                let (key, command) = command(caller, number);
                Asked::Command(key, ask(|respond| handle.propose(group, command, respond)))
            }
        });
    }
    asked
}

/// When callers must have their answers.
#[derive(Clone, Copy, PartialEq)]
enum Answered {
    /// Before anybody stops the host.
    ByThemselves,
    /// When it is stopped.
    InTheEnd,
}

/// Callers beside `end`, after which the host is stopped; time passes all the while.
fn everybody_is_answered(when: Answered, end: impl FnOnce(&Store, &HostHandle)) -> Store {
    let store = Store::new(2);
    let host = store.start();
    let handle = host.handle();
    lead(&handle, 1);
    let clock = Clock::start();
    let callers: Vec<_> = (0..2)
        .map(|caller| {
            let handle = handle.clone();
            thread::spawn(move || {
                let asked = call(&handle, caller);
                if when == Answered::ByThemselves {
                    asked.iter().for_each(Asked::wait);
                }
                asked
            })
        })
        .collect();
    end(&store, &handle);
    let join = || callers.into_iter().map(|caller| caller.join().unwrap());
    let asked: Vec<_> = if when == Answered::ByThemselves {
        let asked = join().collect();
        drop(host);
        asked
    } else {
        host.stop();
        join().collect()
    };
    clock.stop();
    let data = store.data.data(GroupId(1)).expect("it was created");
    for asked in asked.iter().flatten() {
        asked.check(&data);
    }
    let (_, command) = command(9, 9);
    let late = ask(|respond| handle.propose(GroupId(1), command, respond));
    assert_eq!(late.now(), Some(Err(Reject::Stopped)));
    let leaked = handle.stats().proposal_bytes;
    assert_eq!(leaked, 0, "a share of the budget leaked");
    store
}

#[test]
fn beside_a_stop() {
    check(1_000, || {
        let store = everybody_is_answered(Answered::InTheEnd, |_, _| {});
        assert_eq!(store.fatal.load(Ordering::SeqCst), 0);
    });
}

#[test]
fn beside_a_log_that_fails() {
    check(1_000, || {
        let store = everybody_is_answered(Answered::ByThemselves, |store, _| {
            store.log.set_fault(Some(SeamFault::SyncFails));
        });
        assert!(store.fatal.load(Ordering::SeqCst) <= 1);
    });
}

#[test]
fn beside_a_state_machine_that_fails() {
    check(1_000, || {
        let store = everybody_is_answered(Answered::ByThemselves, |store, _| {
            store.data_fails.store(true, Ordering::SeqCst);
        });
        assert!(store.fatal.load(Ordering::SeqCst) <= 1);
    });
}

/// Both at once: whoever is first says so, and nobody else.
#[test]
fn beside_two_failures() {
    check(1_000, || {
        let store = everybody_is_answered(Answered::ByThemselves, |store, _| {
            store.data_fails.store(true, Ordering::SeqCst);
            store.log.set_fault(Some(SeamFault::SyncFails));
        });
        assert!(store.fatal.load(Ordering::SeqCst) <= 1);
    });
}

/// No room for the log, for the data, or for both, at any moment, and a stop then.
#[test]
fn beside_a_disk_that_is_full() {
    check(1_000, || {
        let store = everybody_is_answered(Answered::InTheEnd, |store, _| {
            store.log.set_fault(Some(SeamFault::Full));
            thread::yield_now();
            store.data.set_fault(Some(SeamFault::Full));
        });
        assert_eq!(store.fatal.load(Ordering::SeqCst), 0);
    });
}

/// As soon as there is room again the host goes on by itself, and takes new commands.
#[test]
fn beside_a_disk_that_was_full() {
    check(500, || {
        let store = everybody_is_answered(Answered::ByThemselves, |store, handle| {
            store.log.set_fault(Some(SeamFault::Full));
            store.data.set_fault(Some(SeamFault::Full));
            thread::yield_now();
            store.log.set_fault(None);
            thread::yield_now();
            store.data.set_fault(None);
            for number in 10.. {
                let (_, command) = command(7, number);
                match ask(|respond| handle.propose(GroupId(1), command, respond)).wait() {
                    Ok(_) => return,
                    Err(Reject::DiskFull) => thread::yield_now(),
                    Err(other) => panic!("{other}"),
                }
            }
        });
        assert_eq!(store.fatal.load(Ordering::SeqCst), 0);
    });
}
