//! Groups that begin and end beside everything else: what is acknowledged about them is so, and
//! who was removed stays it.

use bytes::Bytes;
use polyraft_core::{EntryId, Message, Payload, ReplicaId, Term};
use polyraft_multiraft::env::{Body, GroupMessage, Inbound};
use polyraft_multiraft::{GroupDescriptor, GroupId, KeyRange, Member};
use shuttle::thread;

use crate::check::check;
use crate::store::{OTHER, STORE, Store, ask, command, descriptor, lead, stop};

/// Several ask for the same group. Whoever hears that it is there can rely on it: it would be
/// there after a crash.
#[test]
fn what_is_created_would_be_there_after_a_crash() {
    check(1_000, || {
        let store = Store::new(1);
        let host = store.start();
        let creators: Vec<_> = (0..3)
            .map(|_| {
                let (handle, log, data) = (host.handle(), store.log.clone(), store.data.clone());
                thread::spawn(move || {
                    let wanted = descriptor(1, &[STORE]);
                    let created = ask(|respond| handle.create_group(wanted, respond));
                    // Busy: it is being created.
                    if created.wait().is_ok() {
                        assert!(log.durable(GroupId(1)).is_some(), "not in the log");
                        assert!(data.data(GroupId(1)).is_some(), "no data");
                        assert!(handle.summary(GroupId(1)).is_some(), "not known");
                    }
                })
            })
            .collect();
        for creator in creators {
            creator.join().unwrap();
        }
        stop(host);
    });
}

/// Whoever hears that nothing is left of a group can put others in its place.
#[test]
fn the_place_of_what_is_destroyed_is_free() {
    check(500, || {
        let store = Store::new(2);
        let host = store.start();
        let handle = host.handle();
        let range = KeyRange {
            start: Bytes::from_static(b"a"),
            end: None,
        };
        let ranged = |group| GroupDescriptor {
            range: Some(range.clone()),
            ..descriptor(group, &[STORE])
        };
        let created = ask(|respond| handle.create_group(ranged(1), respond));
        created.wait().expect("nothing is in the way");
        lead(&handle, 3);
        let beside = thread::spawn({
            let handle = handle.clone();
            move || {
                for number in 0..3 {
                    let (_, command) = command(1, number);
                    ask(|respond| handle.propose(GroupId(3), command, respond)).wait()?;
                }
                Ok::<_, polyraft_multiraft::Reject>(())
            }
        });
        let destroy = |respond| handle.destroy_replica(GroupId(1), ReplicaId(2), respond);
        ask(destroy).wait().expect("it is here");
        assert_eq!(store.data.data(GroupId(1)), None);
        assert_eq!(store.log.durable(GroupId(1)), None);
        assert_eq!(handle.summary(GroupId(1)), None);
        let successor = ask(|respond| handle.create_group(ranged(2), respond));
        successor.wait().expect("its range is free");
        let again = GroupDescriptor {
            members: vec![Member {
                replica: ReplicaId(2),
                store: STORE,
            }],
            next_replica: ReplicaId(3),
            ..descriptor(1, &[STORE])
        };
        let again = ask(|respond| handle.create_group(again, respond));
        again.wait().expect("its number is free");
        beside.join().unwrap().expect("the group leads");
        stop(host);
    });
}

/// A candidate on the other store asks for votes.
fn vote(group: u64, term: u64) -> GroupMessage {
    let message = Message {
        from: ReplicaId(2),
        to: ReplicaId(1),
        term: Term(term),
        payload: Payload::Vote {
            pre: false,
            last: EntryId::new(9, 9),
            transfer: false,
        },
    };
    GroupMessage {
        group: GroupId(group),
        body: Body::Raft(message),
    }
}

/// Messages come for groups that begin and end meanwhile, on both workers: each reaches the worker
/// that knows what became of the group, so that nobody comes back (the log watches that) and the
/// last word is right.
#[test]
fn messages_meet_beginnings_and_ends() {
    check(500, || {
        let store = Store::new(2);
        let host = store.start();
        let handle = host.handle();
        let stays_or_goes: Vec<_> = (1..=4)
            .map(|group| {
                let handle = handle.clone();
                thread::spawn(move || {
                    let wanted = descriptor(group, &[STORE, OTHER]);
                    let created = ask(|respond| handle.create_group(wanted, respond));
                    let there = ask(|respond| handle.describe(GroupId(group), respond)).wait();
                    // One that a vote has made waits for its first state, and with it whoever
                    // wants the group.
                    if !there.is_ok_and(|status| status.descriptor.members.is_empty()) {
                        created.wait().expect("nothing is in its way");
                    }
                    if group % 2 == 0 {
                        return;
                    }
                    let (group, never) = (GroupId(group), ReplicaId(u64::MAX));
                    let destroy = |respond| handle.destroy_replica(group, never, respond);
                    ask(destroy).wait().expect("it is here, or about to be");
                })
            })
            .collect();
        for term in 2..4 {
            handle.deliver(OTHER, (1..=4).map(|group| vote(group, term)).collect());
            let list = handle.list();
            assert!(list.is_sorted_by(|a, b| a.group < b.group), "{list:?}");
        }
        for thread in stays_or_goes {
            thread.join().unwrap();
        }
        handle.deliver(OTHER, (1..=4).map(|group| vote(group, 9)).collect());
        for group in [1, 3] {
            let told = (
                OTHER,
                GroupMessage {
                    group: GroupId(group),
                    body: Body::Tombstone {
                        replica: ReplicaId(2),
                        next_replica: ReplicaId(u64::MAX),
                    },
                },
            );
            store
                .network
                .take(|leaving| leaving.messages.iter().find(|m| **m == told).cloned());
            assert_eq!(handle.summary(GroupId(group)), None);
        }
        for group in [2, 4] {
            store.network.take(|leaving| {
                leaving.messages.iter().find(|(to, message)| {
                    let Body::Raft(answer) = &message.body else {
                        return false;
                    };
                    let voted = matches!(answer.payload, Payload::VoteResponse { .. });
                    let last = answer.term == Term(9);
                    *to == OTHER && message.group == GroupId(group) && voted && last
                })?;
                Some(())
            });
            assert!(handle.summary(GroupId(group)).is_some());
        }
        assert_eq!(
            handle.stats().inbound_bytes,
            0,
            "a share of the budget leaked"
        );
        stop(host);
    });
}
