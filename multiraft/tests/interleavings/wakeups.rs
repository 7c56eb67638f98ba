//! Nobody waits for a timeout: work alone gets work done. And where time is the work, it goes on
//! for ever.

use polyraft_core::RoleName;
use polyraft_multiraft::GroupId;
use shuttle::thread;

use crate::check::check;
use crate::store::{Clock, STORE, Store, ask, command, descriptor, lead, stop};

/// Callers beside each other, groups on both workers, and no timeout comes: if a wake-up were
/// lost, everybody would wait for somebody else in the end.
#[test]
fn without_timeouts_every_command_is_done() {
    check(300, || {
        let store = Store::new(2);
        let host = store.start();
        let handle = host.handle();
        lead(&handle, 1);
        lead(&handle, 2);
        let callers: Vec<_> = (0..3u64)
            .map(|caller| {
                let handle = handle.clone();
                thread::spawn(move || {
                    for number in 0..3 {
                        let group = GroupId(1 + (caller + number) % 2);
                        let (_, command) = command(caller, number);
                        let answer = ask(|respond| handle.propose(group, command, respond));
                        answer.wait().expect("the group leads");
                        let permit = ask(|respond| handle.read(group, respond)).wait();
                        permit.expect("the group leads");
                    }
                })
            })
            .collect();
        for caller in callers {
            caller.join().unwrap();
        }
        assert_eq!(handle.stats().applied_commands, 9);
        assert_eq!(handle.stats().proposal_bytes, 0);
        stop(host);
    });
}

/// A group that nobody asks to campaign does it by its ticks, and they go on afterwards, however
/// many of them a pass has taken at once.
#[test]
fn ticks_go_on() {
    check(200, || {
        let store = Store::new(1);
        let host = store.start();
        let handle = host.handle();
        let clock = Clock::start();
        let create = |respond| handle.create_group(descriptor(1, &[STORE]), respond);
        ask(create).wait().expect("nothing is in the way");
        let leads = || {
            let summary = handle.summary(GroupId(1)).expect("it is here");
            summary.basic.soft_state.role == RoleName::Leader
        };
        while !leads() {
            thread::yield_now();
        }
        // Nothing but ticks makes a pass now, and each one some.
        let enough = handle.stats().passes + 30;
        while handle.stats().passes < enough {
            thread::yield_now();
        }
        host.stop();
        clock.stop();
    });
}
