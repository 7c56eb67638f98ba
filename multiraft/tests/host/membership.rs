//! Members come and go.

use polyraft_core::{
    ConfChangeKind, EntryId, Index, Message, Payload, ReplicaId, Term, Transition,
};
use polyraft_multiraft::env::{Body, GroupMessage, Inbound};
use polyraft_multiraft::{GroupId, HostHandle, MemberChange, Reject, StoreId};

use crate::cluster::{Cluster, Promise};
use crate::network::Weather;

const ONE: GroupId = GroupId(1);

/// The leader that added it went down before it spoke to it, and nobody can lead without its vote.
#[test]
fn a_new_voter_that_was_never_spoken_to_can_vote() {
    let mut cluster = Cluster::new(1, 2, |_| {});
    cluster.create(1, &[1]);
    cluster.elect();
    cluster.set_cut(StoreId(1), StoreId(2), true);
    let added = cluster.change(ONE, &[(ConfChangeKind::AddVoter, 2)], Transition::Auto);
    assert_eq!(added.expect("one voter decides alone").members.len(), 2);
    cluster.crash(StoreId(1), false);
    cluster.set_cut(StoreId(1), StoreId(2), false);
    cluster.start(StoreId(1));
    cluster.settle_and_check();
    assert_eq!(
        cluster
            .handle(2)
            .summary(ONE)
            .map(|summary| summary.replica),
        Some(ReplicaId(2))
    );
}

/// Its log is empty, the leader's begins later, and writes go on all the time: entries come in right
/// behind the snapshot and are acknowledged, so they must be kept.
#[test]
fn a_learner_far_behind_is_given_a_snapshot_while_writes_go_on() {
    let mut snapshots = 0;
    for seed in 0..20 {
        let mut cluster = Cluster::new(seed, 3, |config| config.truncate_keep_entries = 0);
        cluster.create(1, &[1, 2]);
        cluster.elect();
        for _ in 0..20 {
            cluster.written(ONE);
        }
        for store in 1..=2 {
            cluster.node(store).flush();
        }
        cluster.ticks(2);
        cluster.pace = 30;
        let added = cluster.change(ONE, &[(ConfChangeKind::AddLearner, 3)], Transition::Auto);
        assert_eq!(added.expect("it is led").members.len(), 3);
        for _ in 0..60 {
            cluster.write(ONE);
            cluster.step();
        }
        cluster.crash(StoreId(3), true);
        cluster.start(StoreId(3));
        cluster.settle_and_check();
        snapshots += cluster.handle(3).stats().snapshots_installed;
        snapshots += [1, 2]
            .map(|store| cluster.handle(store).stats().snapshots_sent)
            .iter()
            .sum::<u64>();
    }
    assert!(snapshots >= 20, "{snapshots}");
}

/// It has heard of the leader that made it, but not got its snapshot, when that one goes down.
#[test]
fn a_new_voter_without_data_does_not_stand_by_a_leader_that_is_gone() {
    let mut cluster = Cluster::new(1, 2, |_| {});
    cluster.create(1, &[1]);
    cluster.elect();
    cluster.network.set_weather(Weather {
        broken: 100,
        ..Weather::default()
    });
    let added = cluster.change(ONE, &[(ConfChangeKind::AddVoter, 2)], Transition::Auto);
    assert_eq!(added.expect("one voter decides alone").members.len(), 2);
    cluster.until("the new replica knows the leader", 50, |cluster| {
        let summary = cluster.handle(2).summary(ONE);
        summary.is_some_and(|summary| !summary.basic.soft_state.leader.is_none())
    });
    cluster.crash(StoreId(1), false);
    cluster.network.set_weather(Weather::default());
    cluster.start(StoreId(1));
    cluster.settle_and_check();
}

#[test]
fn a_member_comes_is_promoted_and_goes() {
    let mut cluster = Cluster::new(2, 4, |_| {});
    cluster.create(1, &[1, 2, 3]);
    cluster.settle_and_check();
    let learner = cluster.change(ONE, &[(ConfChangeKind::AddLearner, 4)], Transition::Auto);
    let learner = learner.expect("it is possible");
    assert_eq!(learner.replica_on(StoreId(4)), Some(ReplicaId(4)));
    cluster.settle_and_check();
    let leader = cluster.leader(ONE).expect("it has a leader").0;
    let leaving = 1 + leader % 3;
    let swap = [
        (ConfChangeKind::AddVoter, 4),
        (ConfChangeKind::AddLearner, leaving),
    ];
    let swapped = cluster.change(ONE, &swap, Transition::JointImplicit);
    assert_eq!(swapped.expect("it is possible").members.len(), 4);
    let status = cluster.describe(leader, ONE).expect("it is there");
    assert!(
        !status.raft.conf_state.is_joint(),
        "answered when it has been left"
    );
    assert_eq!(status.raft.conf_state.learners, [ReplicaId(leaving)]);
    cluster.settle_and_check();
    let removed = cluster.change(ONE, &[(ConfChangeKind::Remove, leaving)], Transition::Auto);
    let removed = removed.expect("it is possible");
    assert_eq!(removed.members.len(), 3);
    cluster.until("it has collected itself", 100, |cluster| {
        cluster.handle(leaving).summary(ONE).is_none()
            && cluster.nodes[&StoreId(leaving)].data.data(ONE).is_none()
    });
    for power in [false, true] {
        speak_to_the_dead(&mut cluster, leader, leaving);
        cluster.crash(StoreId(leaving), power);
        cluster.start(StoreId(leaving));
    }
    speak_to_the_dead(&mut cluster, leader, leaving);
    let again = cluster.change(
        ONE,
        &[(ConfChangeKind::AddVoter, leaving)],
        Transition::Auto,
    );
    let again = again.expect("it is possible");
    let id = again.replica_on(StoreId(leaving));
    assert_eq!(id, Some(ReplicaId(5)), "an id is never used again");
    cluster.settle_and_check();
}

/// A heartbeat that was on its way for a long time must not bring a replica back.
#[track_caller]
fn speak_to_the_dead(cluster: &mut Cluster, leader: u64, leaving: u64) {
    let status = cluster.describe(leader, ONE).expect("it is there");
    let message = Message {
        from: status.raft.basic.id,
        to: ReplicaId(leaving),
        term: status.raft.basic.hard_state.term,
        payload: Payload::Heartbeat {
            commit: Index(3),
            read: 0,
        },
    };
    let late = GroupMessage {
        group: ONE,
        body: Body::Raft(message),
    };
    cluster.handle(leaving).deliver(StoreId(leader), vec![late]);
    cluster.ticks(5);
    assert_eq!(cluster.handle(leaving).summary(ONE), None);
}

/// It was away when it was removed and hears of it from those that it bothers.
#[test]
fn a_member_that_was_removed_while_away_is_told() {
    let mut cluster = Cluster::new(3, 4, |config| config.sleep_after_ticks = 5);
    cluster.create(1, &[1, 2, 3, 4]);
    cluster.settle_and_check();
    let leader = cluster.leader(ONE).expect("it has a leader").0;
    let away = 1 + leader % 4;
    cluster.crash(StoreId(away), false);
    for kind in [ConfChangeKind::AddLearner, ConfChangeKind::Remove] {
        let changed = cluster.change(ONE, &[(kind, away)], Transition::Auto);
        changed.expect("it is possible");
    }
    cluster.ticks(50);
    cluster.start(StoreId(away));
    cluster.until("it has collected itself", 300, |cluster| {
        cluster.handle(away).summary(ONE).is_none()
    });
    cluster.settle_and_check();
}

/// Whoever tells it that it is gone knows its successor on the same store, which must not go with it.
#[test]
fn a_store_that_is_added_again_while_away_gets_its_new_replica() {
    for seed in 0..10 {
        let mut cluster = Cluster::new(seed, 4, |config| config.sleep_after_ticks = 5);
        cluster.create(1, &[1, 2, 3, 4]);
        cluster.settle_and_check();
        let leader = cluster.leader(ONE).expect("it has a leader").0;
        let away = 1 + leader % 4;
        for other in (1..=4).filter(|other| *other != away) {
            cluster.set_cut(StoreId(away), StoreId(other), true);
        }
        for kind in [
            ConfChangeKind::AddLearner,
            ConfChangeKind::Remove,
            ConfChangeKind::AddVoter,
        ] {
            let changed = cluster.change(ONE, &[(kind, away)], Transition::Auto);
            changed.expect("it is possible");
        }
        cluster.ticks(40);
        // First those that have nothing to tell its successor.
        for other in (1..=4).filter(|other| *other != away && *other != leader) {
            cluster.set_cut(StoreId(away), StoreId(other), false);
        }
        cluster.ticks(40);
        cluster.set_cut(StoreId(away), StoreId(leader), false);
        cluster.settle_and_check();
        let summary = cluster.handle(away).summary(ONE);
        assert_eq!(summary.map(|summary| summary.replica), Some(ReplicaId(5)));
    }
}

/// Two voters become one while writes go on, and both crash after so many steps. Who is left may not
/// know that the change is committed, and must not wait for the other's vote for ever: its log may be
/// longer.
#[test]
fn a_change_of_voters_survives_crashes_anywhere() {
    for (seed, kind) in [ConfChangeKind::AddLearner, ConfChangeKind::Remove]
        .into_iter()
        .cycle()
        .take(8)
        .enumerate()
    {
        for steps in 0..40 {
            let mut cluster = Cluster::new(seed as u64, 2, |_| {});
            cluster.create(1, &[1, 2]);
            cluster.elect();
            cluster.written(ONE);
            let leader = cluster.leader(ONE).expect("it has a leader");
            // The leader itself, or the other one.
            let leaves = if seed < 4 { leader.0 } else { 3 - leader.0 };
            let handle = cluster.handle(leader.0);
            let change = MemberChange {
                kind,
                store: StoreId(leaves),
            };
            let (_promise, respond) = Promise::new();
            handle.change_members(ONE, vec![change], Transition::Auto, respond);
            cluster.pace = 60;
            for step in 0..steps {
                if step % 3 == 0 {
                    cluster.history.write(&handle, ONE);
                }
                cluster.step();
            }
            for store in [1, 2] {
                cluster.crash(StoreId(store), false);
            }
            for store in [1, 2] {
                cluster.start(StoreId(store));
            }
            cluster.settle_and_check();
        }
    }
}

/// The stream breaks after its last chunk and the acknowledgement is lost: the leader sends again what
/// the follower has, and must learn that.
#[test]
fn a_snapshot_that_arrived_without_the_leader_knowing_is_no_end() {
    let mut cluster = Cluster::new(1, 2, |config| config.truncate_keep_entries = 0);
    cluster.create(1, &[1]);
    cluster.elect();
    cluster.written(ONE);
    cluster.network.set_weather(Weather {
        doubted: 100,
        ..Weather::default()
    });
    let added = cluster.change(ONE, &[(ConfChangeKind::AddVoter, 2)], Transition::Auto);
    added.expect("one voter decides alone");
    cluster.node(1).flush();
    cluster.until("the data is there", 100, |cluster| {
        cluster.nodes[&StoreId(2)].data.data(ONE).is_some()
    });
    cluster.network.set_weather(Weather {
        lost: 100,
        doubted: 100,
        ..Weather::default()
    });
    cluster.ticks(5);
    cluster.network.set_weather(Weather::default());
    let (one, two) = (cluster.handle(1), cluster.handle(2));
    let known = |handle: &HostHandle| handle.summary(ONE).map(|s| s.basic.hard_state.commit);
    assert_eq!(known(&one), known(&two), "it has everything");
    cluster.settle_and_check();
}

/// Who leads cannot take the second step of its own removal.
#[test]
fn a_leader_that_is_to_go_hands_over_first() {
    let mut cluster = Cluster::new(5, 3, |_| {});
    cluster.create(1, &[1, 2, 3]);
    cluster.settle_and_check();
    let old = cluster.leader(ONE).expect("it has a leader");
    let remove = [(ConfChangeKind::Remove, old.0)];
    let named = match cluster.change(ONE, &remove, Transition::Auto) {
        Err(Reject::NotLeader { leader: Some(next) }) => next.store,
        other => panic!("{other:?}"),
    };
    assert_ne!(named, old);
    // Much less than an election timeout.
    cluster.until("its successor leads", 6, |cluster| {
        cluster.leader(ONE) == Some(named)
    });
    let members = cluster
        .describe(named.0, ONE)
        .expect("it leads")
        .descriptor
        .members;
    assert_eq!(members.len(), 3, "nothing else has happened yet");
    let removed = cluster.change(ONE, &remove, Transition::Auto);
    assert_eq!(removed.expect("it is possible").members.len(), 2);
    cluster.until("the old one has collected itself", 100, |cluster| {
        cluster.handle(old.0).summary(ONE).is_none()
    });
    cluster.settle_and_check();
}

/// Two look at the same descriptor and want different things: the second has to look again.
#[test]
fn a_change_decided_on_an_older_descriptor_is_refused() {
    let mut cluster = Cluster::new(6, 5, |_| {});
    cluster.create(1, &[1, 2, 3]);
    cluster.settle_and_check();
    let leader = cluster.leader(ONE).expect("it has a leader").0;
    let handle = cluster.handle(leader);
    let seen = handle.descriptor(ONE).expect("it is here").epoch.membership;
    let add = |store| {
        vec![MemberChange {
            kind: ConfChangeKind::AddLearner,
            store: StoreId(store),
        }]
    };
    let first = cluster.answer(|respond| {
        handle.change_members_if(ONE, seen, add(4), Transition::Auto, respond);
    });
    assert_eq!(
        first.expect("nothing has changed").epoch.membership,
        seen + 1
    );
    let second = cluster.answer(|respond| {
        handle.change_members_if(ONE, seen, add(5), Transition::Auto, respond);
    });
    assert!(matches!(second, Err(Reject::Refused(_))), "{second:?}");
    let again = cluster.answer(|respond| {
        handle.change_members_if(ONE, seen + 1, add(5), Transition::Auto, respond);
    });
    assert_eq!(again.expect("it has looked again").members.len(), 5);
    cluster.settle_and_check();
}

/// What was meant for a replica that is gone changes nothing for the one in its place; what is meant for a
/// later one ends it.
#[test]
fn replicas_of_one_store_are_told_apart() {
    let mut cluster = Cluster::new(7, 3, |_| {});
    cluster.create(1, &[1, 2, 3]);
    cluster.settle_and_check();
    let leader = cluster.leader(ONE).expect("it has a leader").0;
    let moving = 1 + leader % 3;
    for kind in [ConfChangeKind::Remove, ConfChangeKind::AddVoter] {
        let changed = cluster.change(ONE, &[(kind, moving)], Transition::Auto);
        changed.expect("it is possible");
    }
    cluster.settle_and_check();
    let status = cluster.describe(leader, ONE).expect("it leads");
    let (from, term) = (status.raft.basic.id, status.raft.basic.hard_state.term);
    let vote = |to: u64| GroupMessage {
        group: ONE,
        body: Body::Raft(Message {
            from,
            to: ReplicaId(to),
            term: Term(term.0 + 7),
            payload: Payload::Vote {
                pre: false,
                last: EntryId::new(term.0 + 7, 1 << 20),
                transfer: true,
            },
        }),
    };
    let state = |cluster: &Cluster| {
        let summary = cluster.handle(moving).summary(ONE);
        summary.map(|it| (it.replica, it.basic.hard_state.term))
    };
    assert_eq!(state(&cluster), Some((ReplicaId(4), term)));
    let early = vec![vote(moving), vote(3), vote(0)];
    cluster.handle(moving).deliver(StoreId(leader), early);
    cluster.ticks(5);
    assert_eq!(state(&cluster), Some((ReplicaId(4), term)));

    // Nobody has made such a one, but the store cannot know that.
    cluster.network.set_deaf(StoreId(moving), ONE, true);
    cluster
        .handle(moving)
        .deliver(StoreId(leader), vec![vote(9)]);
    cluster.until("the older one is gone", 50, |cluster| {
        let data = cluster.nodes[&StoreId(moving)].data.data(ONE);
        data.is_none() && state(cluster).is_none()
    });
    cluster
        .handle(moving)
        .deliver(StoreId(leader), vec![vote(9)]);
    cluster.until("the later one is here", 50, |cluster| {
        state(cluster).is_some_and(|(id, _)| id == ReplicaId(9))
    });
    for power in [false, true] {
        cluster.crash(StoreId(moving), power);
        cluster.start(StoreId(moving));
        assert_eq!(state(&cluster).map(|(id, _)| id), Some(ReplicaId(9)));
    }
}

/// It campaigns without end and would depose every leader, if anybody listened.
#[test]
fn who_was_removed_is_told_and_not_heard() {
    let mut cluster = Cluster::new(8, 3, |_| {});
    cluster.create(1, &[1, 2, 3]);
    cluster.settle_and_check();
    let leader = cluster.leader(ONE).expect("it has a leader").0;
    let gone = 1 + leader % 3;
    let removed = cluster.change(ONE, &[(ConfChangeKind::Remove, gone)], Transition::Auto);
    removed.expect("it is possible");
    cluster.settle_and_check();
    let status = cluster.describe(leader, ONE).expect("it leads");
    let term = status.raft.basic.hard_state.term;
    let vote = Message {
        from: ReplicaId(gone),
        to: status.raft.basic.id,
        term: Term(term.0 + 1),
        payload: Payload::Vote {
            pre: false,
            last: EntryId::new(term.0, 1 << 20),
            transfer: true,
        },
    };
    let vote = GroupMessage {
        group: ONE,
        body: Body::Raft(vote),
    };
    drop(cluster.network.take_frames());
    cluster.handle(leader).deliver(StoreId(gone), vec![vote]);
    let mut told = false;
    for _ in 0..20 {
        cluster.node(leader).pass();
        for (to, messages) in cluster.network.take_frames() {
            let is_tombstone = |message: &GroupMessage| match message.body {
                Body::Tombstone { replica, .. } => replica == ReplicaId(gone),
                _ => false,
            };
            told |= to == StoreId(gone) && messages.iter().any(is_tombstone);
        }
    }
    assert!(told, "it hears that it is gone");
    let after = cluster.describe(leader, ONE).expect("it leads");
    assert_eq!(after.raft.basic.hard_state.term, term);
    cluster.settle_and_check();
}

/// It was added, and removed before anybody had reached it; then a late message makes a replica of it
/// after all. That knows nothing but who has spoken to it, and asks there when it has heard nothing
/// for long.
#[test]
fn who_was_removed_before_it_was_reached_asks_and_goes() {
    // The second is a trial vote, which makes a replica in no term.
    for trial in [false, true] {
        let mut cluster = Cluster::new(9, 4, |config| config.sleep_after_ticks = 5);
        cluster.create(1, &[1, 2, 3]);
        cluster.settle_and_check();
        for other in 1..=3 {
            cluster.set_cut(StoreId(4), StoreId(other), true);
        }
        for kind in [ConfChangeKind::AddLearner, ConfChangeKind::Remove] {
            let changed = cluster.change(ONE, &[(kind, 4)], Transition::Auto);
            changed.expect("it is possible");
        }
        cluster.ticks(40);
        let leader = cluster.leader(ONE).expect("it has a leader").0;
        let status = cluster.describe(leader, ONE).expect("it leads");
        let payload = match trial {
            false => Payload::Heartbeat {
                commit: Index(0),
                read: 0,
            },
            true => Payload::Vote {
                pre: true,
                last: status.last,
                transfer: false,
            },
        };
        let late = Message {
            from: status.raft.basic.id,
            to: ReplicaId(4),
            term: status.raft.basic.hard_state.term,
            payload,
        };
        let late = GroupMessage {
            group: ONE,
            body: Body::Raft(late),
        };
        cluster.handle(4).deliver(StoreId(leader), vec![late]);
        cluster.until("it is there", 10, |cluster| {
            cluster.handle(4).summary(ONE).is_some()
        });
        let summary = cluster.handle(4).summary(ONE).expect("it is there");
        assert_eq!(summary.basic.hard_state.term == Term(0), trial);
        // Its answer is lost.
        cluster.ticks(2);
        for other in 1..=3 {
            cluster.set_cut(StoreId(4), StoreId(other), false);
        }
        cluster.until("it has collected itself", 200, |cluster| {
            cluster.handle(4).summary(ONE).is_none()
        });
        cluster.settle_and_check();
    }
}

/// It slept under a leader that others have replaced since, and nobody has anything to say to it.
#[test]
fn a_member_that_was_removed_in_its_sleep_is_told_when_stores_meet_again() {
    let mut cluster = Cluster::new(3, 3, |config| config.sleep_after_ticks = 10);
    cluster.create(1, &[1, 2, 3]);
    cluster.elect();
    let asleep = |cluster: &Cluster, store: StoreId| {
        let summary = cluster.handle(store.0).summary(ONE);
        summary.is_some_and(|summary| summary.asleep)
    };
    let all = [1, 2, 3].map(StoreId);
    cluster.until("all sleep", 200, |cluster| {
        all.iter().all(|store| asleep(cluster, *store))
    });
    let first = cluster.leader(ONE).expect("it is led");
    let others: Vec<StoreId> = all.into_iter().filter(|store| *store != first).collect();
    let (away, next) = (others[0], others[1]);
    cluster.network.set_deaf(away, ONE, true);
    let handle = cluster.handle(first.0);
    let moved = cluster.answer(|respond| handle.transfer_leader(ONE, next, respond));
    assert_eq!(moved, Ok(()));
    cluster.until("the other one leads", 200, |cluster| {
        cluster.leader(ONE) == Some(next)
    });
    let removed = cluster.change(ONE, &[(ConfChangeKind::Remove, away.0)], Transition::Auto);
    assert_eq!(removed.expect("two of three decide").members.len(), 2);
    cluster.until("those who stay sleep", 200, |cluster| {
        asleep(cluster, first) && asleep(cluster, next)
    });
    cluster.ticks(5);
    cluster.network.set_deaf(away, ONE, false);
    assert!(asleep(&cluster, away), "it has heard nothing");
    cluster.set_cut(away, next, true);
    cluster.ticks(5);
    assert!(asleep(&cluster, away), "its leader is heard");
    cluster.set_cut(away, next, false);
    cluster.until("it is told", 100, |cluster| {
        cluster.handle(away.0).summary(ONE).is_none()
    });
    assert!(
        asleep(&cluster, first) && asleep(&cluster, next),
        "nobody woke"
    );
    cluster.settle_and_check();
}
