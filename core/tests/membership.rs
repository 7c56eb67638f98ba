//! Changes of membership as a running group makes them: guards against two at once, what a change of
//! the quorum sets free, joint configurations entered and left, members that come and go.
//!
//! The situations that etcd's interaction files do not notice come first.

mod common;

use bytes::Bytes;
use common::{
    Cluster, ELECTION, Peer, accepted, append, bootstrapped, conf_state, config, entry, heartbeat,
    ids, message, storage,
};
use polyraft_core::{
    ConfChange, ConfChangeKind, ConfChangeRefusal, ConfChangeV2, ConfState, Config, Entry, EntryId,
    EntryKind, Error, Event, Index, MembershipError, MessageKind, Payload, ProgressState,
    ProposeError, ReplicaId, RoleName, Snapshot, SnapshotMeta, StepError, Transition,
};

const V: ConfChangeKind = ConfChangeKind::AddVoter;
const L: ConfChangeKind = ConfChangeKind::AddLearner;
const R: ConfChangeKind = ConfChangeKind::Remove;
const U: ConfChangeKind = ConfChangeKind::Update;

fn change(transition: Transition, changes: &[(ConfChangeKind, u64)]) -> ConfChangeV2 {
    ConfChangeV2 {
        transition,
        changes: changes.iter().map(|(k, id)| (*k, ReplicaId(*id))).collect(),
        context: Bytes::new(),
    }
}

fn auto(changes: &[(ConfChangeKind, u64)]) -> ConfChangeV2 {
    change(Transition::Auto, changes)
}

fn refusals(peer: &mut Peer) -> Vec<ConfChangeRefusal> {
    peer.settle();
    let ignored = peer.events.iter().filter_map(|event| match event {
        Event::ConfChangeIgnored { reason, .. } => Some(*reason),
        _ => None,
    });
    ignored.collect()
}

fn kinds(peer: &Peer) -> Vec<EntryKind> {
    peer.node.storage().all().iter().map(|e| e.kind).collect()
}

/// A leader of `voters`, all entries so far committed and applied, that may be fed by hand.
fn leader_of(voters: &[u64]) -> Peer {
    let mut peer = Peer::new(config(1), storage(conf_state(voters, &[]), &[]));
    peer.lead(&voters[1..]);
    acknowledge(&mut peer, &voters[1..]);
    peer
}

/// `from` have everything that `peer` has.
fn acknowledge(peer: &mut Peer, from: &[u64]) {
    peer.settle();
    for id in from {
        let (to, term, last) = (peer.node.id().0, peer.term(), peer.node.last_index().0);
        let _ = peer.node.step(message(*id, to, term, accepted(last)));
        peer.settle();
    }
}

// One change at a time.

#[test]
fn a_second_change_is_refused_while_one_is_pending() {
    for first in [EntryKind::ConfChange, EntryKind::ConfChangeV2] {
        let mut peer = leader_of(&[1, 2, 3]);
        match first {
            EntryKind::ConfChange => {
                let one = ConfChange {
                    kind: V,
                    replica: ReplicaId(4),
                    context: Bytes::new(),
                };
                peer.node.propose_conf_change_v1(&one).unwrap();
            }
            _ => {
                peer.node.propose_conf_change(&auto(&[(V, 4)])).unwrap();
            }
        }
        let second = peer.node.propose_conf_change(&auto(&[(V, 5)])).unwrap();
        assert_eq!(second, Some(EntryId::new(1, 3)), "it became an empty entry");
        let pending = ConfChangeRefusal::Pending {
            index: Index(2),
            applied: Index(1),
        };
        assert_eq!(refusals(&mut peer), [pending]);
        assert_eq!(kinds(&peer), [EntryKind::Normal, first, EntryKind::Normal]);

        acknowledge(&mut peer, &[2, 3]);
        assert_eq!(peer.conf_state().voters, ids(&[1, 2, 3, 4]));
        peer.node.propose_conf_change(&auto(&[(V, 5)])).unwrap();
        assert_eq!(refusals(&mut peer).len(), 1, "the way is free");
    }
}

#[test]
fn of_two_changes_in_one_proposal_the_first_stands() {
    let mut peer = leader_of(&[1, 2, 3]);
    let as_entry = |id| Entry {
        kind: EntryKind::ConfChangeV2,
        data: auto(&[(V, id)]).encode(),
        ..Entry::default()
    };
    let both = Payload::Propose {
        entries: vec![as_entry(4), as_entry(5)],
    };
    peer.say(message(2, 1, 0, both));
    assert_eq!(refusals(&mut peer).len(), 1);
    acknowledge(&mut peer, &[2, 3]);
    assert_eq!(peer.conf_state().voters, ids(&[1, 2, 3, 4]));
}

#[test]
fn a_new_leader_waits_until_its_whole_log_is_applied() {
    // Entry 1 may be a change; it is of an earlier term.
    let mut peer = Peer::new(config(1), storage(conf_state(&[1, 2, 3], &[]), &[1]));
    peer.lead(&[2]);
    peer.node.propose_conf_change(&auto(&[(V, 4)])).unwrap();
    let pending = ConfChangeRefusal::Pending {
        index: Index(1),
        applied: Index(0),
    };
    assert_eq!(refusals(&mut peer), [pending]);
    acknowledge(&mut peer, &[2]);
    peer.node.propose_conf_change(&auto(&[(V, 4)])).unwrap();
    assert_eq!(refusals(&mut peer).len(), 1);
}

#[test]
fn a_refused_change_does_not_stand_in_the_way() {
    let mut peer = leader_of(&[1, 2, 3]);
    // Nothing to leave: refused, and no reason to refuse the next one.
    peer.node.propose_conf_change(&auto(&[])).unwrap();
    assert_eq!(refusals(&mut peer), [ConfChangeRefusal::NotInJoint]);
    peer.node.propose_conf_change(&auto(&[(V, 4)])).unwrap();
    assert_eq!(refusals(&mut peer).len(), 1);
}

#[test]
fn validation_can_be_left_to_the_applier() {
    let mut config = config(1);
    config.disable_conf_change_validation = true;
    let mut peer = Peer::new(config, storage(conf_state(&[1, 2, 3], &[]), &[]));
    peer.lead(&[2]);
    peer.node.propose_conf_change(&auto(&[(V, 4)])).unwrap();
    peer.node.propose_conf_change(&auto(&[])).unwrap();
    assert_eq!(refusals(&mut peer), []);
    acknowledge(&mut peer, &[2, 3]);
    acknowledge(&mut peer, &[2, 3]);
    // The second one is impossible when it is applied: nothing changes, nobody stops.
    assert_eq!(peer.conf_state(), conf_state(&[1, 2, 3, 4], &[]));
    assert_eq!(peer.node.poisoned(), None);
    assert_eq!(peer.node.applied(), Index(3));
}

#[test]
fn impossible_changes_are_errors_and_change_nothing() {
    let mut peer = leader_of(&[1, 2, 3]);
    let before = peer.conf_state();
    let cases = [
        (auto(&[]), MembershipError::NotJoint),
        (
            change(Transition::JointExplicit, &[(R, 1), (R, 2), (R, 3)]),
            MembershipError::RemovedAllVoters,
        ),
    ];
    for (impossible, why) in cases {
        let result = peer.node.apply_conf_change(&impossible);
        assert_eq!(result, Err(Error::Membership(why)));
        assert_eq!(peer.conf_state(), before);
    }
    peer.node.check().expect("the invariants hold");
    assert!(peer.propose(b"x").is_ok(), "it goes on");
}

#[test]
fn bytes_that_are_no_change_are_not_appended() {
    let mut peer = leader_of(&[1, 2, 3]);
    for kind in [EntryKind::ConfChange, EntryKind::ConfChangeV2] {
        let bad = Entry {
            kind,
            data: Bytes::from_static(b"\x07nonsense"),
            ..Entry::default()
        };
        let payload = Payload::Propose { entries: vec![bad] };
        let result = peer.node.step(message(2, 1, 0, payload));
        assert_eq!(result, Err(StepError::Propose(ProposeError::Dropped)));
        assert_eq!(peer.node.last_index(), Index(1));
    }
}

// What a change sets free.

/// A smaller quorum may have what the larger one lacked.
#[test]
fn removing_a_member_commits_what_waited_for_it() {
    let mut peer = leader_of(&[1, 2]);
    peer.node.propose_conf_change(&auto(&[(R, 2)])).unwrap();
    peer.settle();
    peer.propose(b"x").unwrap();
    peer.settle();
    assert_eq!(peer.committed(), 1);
    peer.say(message(2, 1, 1, accepted(2)));
    assert_eq!(peer.conf_state(), conf_state(&[1], &[]));
    assert_eq!(peer.committed(), 3, "alone it is enough");
    assert_eq!(peer.values(), [Bytes::from_static(b"x")]);
}

/// A read that waited for a member that is gone now is answered.
#[test]
fn removing_a_member_answers_reads_that_waited_for_it() {
    let mut peer = leader_of(&[1, 2]);
    peer.node.propose_conf_change(&auto(&[(R, 2)])).unwrap();
    peer.settle();
    peer.node.read_index(Bytes::from_static(b"r")).unwrap();
    peer.settle();
    assert_eq!(peer.reads, []);
    peer.say(message(2, 1, 1, accepted(2)));
    assert_eq!(peer.reads.len(), 1);
    assert_eq!(peer.reads[0].index, Index(1));
}

#[test]
fn a_new_member_counts_as_active() {
    let mut config = config(1);
    config.check_quorum = true;
    let mut peer = Peer::new(config, storage(conf_state(&[1], &[]), &[]));
    peer.campaign();
    peer.tick(ELECTION - 1);
    peer.node.propose_conf_change(&auto(&[(V, 2)])).unwrap();
    peer.settle();
    assert_eq!(peer.conf_state().voters, ids(&[1, 2]));
    // The next look at the quorum comes before 2 could answer.
    peer.tick(2);
    assert_eq!(peer.role(), RoleName::Leader);
    peer.tick(2 * ELECTION);
    assert_eq!(
        peer.role(),
        RoleName::Follower,
        "but it has to answer at last"
    );
}

#[test]
fn a_new_member_is_probed_at_once() {
    let mut peer = leader_of(&[1]);
    peer.node.propose_conf_change(&auto(&[(V, 2)])).unwrap();
    let sent = peer.settle();
    let last = peer.node.last_index();
    let to_new: Vec<_> = sent.iter().filter(|m| m.to == ReplicaId(2)).collect();
    assert_eq!(to_new.len(), 1, "{sent:?}");
    assert!(matches!(
        &to_new[0].payload,
        Payload::Append { prev, entries, .. }
            if prev.index.next() == last && entries.len() == 1
    ));
    let progress = peer.node.status().progress;
    let new = progress.iter().find(|p| p.id == ReplicaId(2)).unwrap();
    assert_eq!((new.matched, new.next), (Index(0), last));
    assert_eq!(new.state, ProgressState::Probe);
    assert!(new.recently_active && new.matched < new.next);
}

#[test]
fn a_transfer_to_a_member_that_leaves_is_given_up() {
    for gone in [(R, 3), (L, 3)] {
        let mut peer = leader_of(&[1, 2, 3]);
        peer.node.propose_conf_change(&auto(&[gone])).unwrap();
        peer.settle();
        peer.node.transfer_leader(ReplicaId(3)).unwrap();
        assert_eq!(peer.propose(b"x"), Err(ProposeError::Dropped));
        peer.say(message(2, 1, 1, accepted(2)));
        let status = peer.node.basic_status();
        assert_eq!(status.transfer_target, ReplicaId::NONE, "{gone:?}");
        assert!(peer.propose(b"x").is_ok());
    }
}

// Joint configurations.

/// Each change, from which members, by which way, and what comes of it: (voters, learners).
type Outcome<'a> = (&'a [u64], &'a [u64]);

#[test]
fn changes_lead_where_they_should() {
    type Case<'a> = (Outcome<'a>, &'a [(ConfChangeKind, u64)], Outcome<'a>);
    let cases: [Case<'_>; 9] = [
        ((&[1], &[]), &[(V, 2)], (&[1, 2], &[])),
        ((&[1], &[]), &[(L, 2)], (&[1], &[2])),
        ((&[1], &[]), &[(V, 2), (V, 3)], (&[1, 2, 3], &[])),
        ((&[1], &[]), &[(V, 2), (L, 3)], (&[1, 2], &[3])),
        ((&[1, 2, 3], &[]), &[(R, 2), (R, 3)], (&[1], &[])),
        ((&[1, 2, 3], &[]), &[(L, 2), (L, 3)], (&[1], &[2, 3])),
        ((&[1, 2], &[3]), &[(V, 3), (L, 2)], (&[1, 3], &[2])),
        ((&[1, 2], &[3]), &[(R, 3), (V, 4)], (&[1, 2, 4], &[])),
        ((&[1, 2, 3], &[]), &[(U, 2)], (&[1, 2, 3], &[])),
    ];
    for ((voters, learners), changes, (after, after_learners)) in cases {
        for transition in [
            Transition::Auto,
            Transition::JointImplicit,
            Transition::JointExplicit,
        ] {
            let start = conf_state(voters, learners);
            let mut cluster = Cluster::default();
            for id in voters.iter().chain(learners) {
                cluster.add(Peer::new(config(*id), bootstrapped(start.clone())));
            }
            for id in 1..=4 {
                if !start.contains(ReplicaId(id)) {
                    cluster.add(Peer::new(config(id), storage(ConfState::default(), &[])));
                }
            }
            cluster.campaign(1);
            let change = change(transition, changes);
            cluster.change(1, &change).unwrap();
            if transition == Transition::JointExplicit {
                let joint = cluster.peer(1).conf_state();
                assert_eq!(joint.voters_outgoing, ids(voters), "{change:?}");
                assert!(!joint.auto_leave);
                cluster.tick(1, 5);
                assert_eq!(cluster.peer(1).conf_state(), joint, "left only on demand");
                cluster.change(1, &auto(&[])).unwrap();
            }
            let wanted = conf_state(after, after_learners);
            assert_eq!(cluster.peer(1).conf_state(), wanted, "{change:?}");
            cluster.tick(1, 1);
            cluster.propose(1, b"after").unwrap();
            for id in after.iter().chain(after_learners) {
                assert_eq!(
                    cluster.peer(*id).conf_state(),
                    wanted,
                    "{id} after {change:?}"
                );
                assert_eq!(cluster.peer(*id).values(), [Bytes::from_static(b"after")]);
            }
            assert_eq!(
                cluster
                    .refused
                    .iter()
                    .filter(|(_, e)| !matches!(e, StepError::PeerNotFound))
                    .count(),
                0
            );
        }
    }
}

/// While joint, both majorities must have an entry.
#[test]
fn a_joint_configuration_commits_by_both_halves() {
    let joint = ConfState {
        voters: ids(&[1, 2, 3]),
        voters_outgoing: ids(&[1, 4, 5]),
        ..ConfState::default()
    };
    for (half, other) in [([2, 3], 4), ([4, 5], 2)] {
        let mut peer = Peer::new(config(1), storage(joint.clone(), &[]));
        peer.lead(&[2, 3, 4, 5]);
        for from in half {
            peer.say(message(from, 1, 1, accepted(1)));
        }
        assert_eq!(peer.committed(), 0, "all of one half");
        peer.say(message(other, 1, 1, accepted(1)));
        assert_eq!(peer.committed(), 1, "majorities of both");
    }
}

/// The leader leaves by itself, once, and no other change slips in between.
#[test]
fn leaving_automatically_counts_as_a_pending_change() {
    let mut peer = leader_of(&[1, 2, 3]);
    peer.node
        .propose_conf_change(&change(Transition::JointImplicit, &[(V, 4)]))
        .unwrap();
    acknowledge(&mut peer, &[2, 3]);
    assert!(peer.conf_state().is_joint() && peer.conf_state().auto_leave);
    let leave = peer.node.last_index();
    assert_eq!(leave, Index(3), "the way out is on its way");
    assert_eq!(kinds(&peer)[2], EntryKind::ConfChangeV2);
    assert!(peer.node.storage().all()[2].data.is_empty());

    // It is pending: another change, or another way out, must wait for it.
    for wish in [auto(&[(V, 5)]), auto(&[])] {
        peer.node.propose_conf_change(&wish).unwrap();
    }
    let pending = ConfChangeRefusal::Pending {
        index: leave,
        applied: Index(2),
    };
    assert_eq!(refusals(&mut peer), [pending, pending]);
    acknowledge(&mut peer, &[2, 3, 4]);
    acknowledge(&mut peer, &[2, 3, 4]);
    assert_eq!(peer.conf_state(), conf_state(&[1, 2, 3, 4], &[]));
    let changes = kinds(&peer)
        .iter()
        .filter(|k| **k != EntryKind::Normal)
        .count();
    assert_eq!(changes, 2, "in and out, each once");
}

/// A leader that dies in a joint configuration leaves the way out to the next one.
#[test]
fn the_next_leader_leaves_a_joint_configuration() {
    let joint = ConfState {
        voters: ids(&[1, 2, 3]),
        voters_outgoing: ids(&[1, 2]),
        auto_leave: true,
        ..ConfState::default()
    };
    let mut cluster =
        Cluster::of((1..=3).map(|id| Peer::new(config(id), storage(joint.clone(), &[1]))));
    cluster.campaign(2);
    assert_eq!(cluster.leader(), Some(2));
    cluster.tick(2, 1);
    for id in 1..=3 {
        assert_eq!(cluster.peer(id).conf_state(), conf_state(&[1, 2, 3], &[]));
    }
}

#[test]
fn only_leaving_is_allowed_while_joint() {
    let mut peer = leader_of(&[1, 2, 3]);
    peer.node
        .propose_conf_change(&change(Transition::JointExplicit, &[(V, 4)]))
        .unwrap();
    acknowledge(&mut peer, &[2, 3]);
    peer.node.propose_conf_change(&auto(&[(V, 5)])).unwrap();
    assert_eq!(refusals(&mut peer), [ConfChangeRefusal::InJoint]);
    assert!(peer.conf_state().is_joint());
    peer.node.propose_conf_change(&auto(&[])).unwrap();
    acknowledge(&mut peer, &[2, 3, 4]);
    assert_eq!(peer.conf_state(), conf_state(&[1, 2, 3, 4], &[]));
}

/// A demoted voter votes on in the outgoing half and learns only when that is gone.
#[test]
fn a_demoted_voter_learns_when_joint_is_left() {
    let mut peer = leader_of(&[1, 2, 3]);
    peer.node
        .propose_conf_change(&change(Transition::JointExplicit, &[(L, 3), (V, 4)]))
        .unwrap();
    acknowledge(&mut peer, &[2, 3]);
    let joint = peer.conf_state();
    assert_eq!(joint.learners_next, ids(&[3]));
    assert_eq!(joint.learners, []);
    let three = peer.node.status().progress[2];
    assert!(!three.learner);
    peer.node.propose_conf_change(&auto(&[])).unwrap();
    acknowledge(&mut peer, &[2, 3, 4]);
    assert_eq!(peer.conf_state(), conf_state(&[1, 2, 4], &[3]));
    let status = peer.node.status();
    let after = status
        .progress
        .iter()
        .find(|p| p.id == ReplicaId(3))
        .unwrap();
    assert!(after.learner);
    assert!(
        after.matched >= three.matched,
        "what is known of it is kept"
    );
}

// Members that come and go.

#[test]
fn learners_do_not_count_for_commits() {
    let mut peer = Peer::new(config(1), storage(conf_state(&[1, 2, 3], &[4, 5]), &[]));
    peer.lead(&[2]);
    for from in [4, 5] {
        peer.say(message(from, 1, 1, accepted(1)));
    }
    assert_eq!(peer.committed(), 0);
    peer.say(message(3, 1, 1, accepted(1)));
    assert_eq!(peer.committed(), 1);
}

#[test]
fn a_learner_is_promoted_and_can_lead() {
    let state = conf_state(&[1], &[2]);
    let mut cluster =
        Cluster::of((1..=2).map(|id| Peer::new(config(id), storage(state.clone(), &[]))));
    cluster.campaign(1);
    cluster.propose(1, b"a").unwrap();
    cluster.change(1, &auto(&[(V, 2)])).unwrap();
    cluster.tick(1, 1);
    cluster.campaign(2);
    assert_eq!(cluster.leader(), Some(2));
    cluster.assert_agreed();
}

#[test]
fn a_removed_leader_steps_down_if_it_is_told_to() {
    for (step_down, demote) in [(true, R), (true, L), (false, R), (false, L)] {
        let mut cluster = Cluster::with(3, |config| config.step_down_on_removal = step_down);
        cluster.campaign(1);
        cluster.change(1, &auto(&[(demote, 1)])).unwrap();
        let role = if step_down {
            RoleName::Follower
        } else {
            RoleName::Leader
        };
        let peer = cluster.peer(1);
        assert_eq!((peer.role(), peer.term()), (role, 1), "{demote:?}");
        if demote == R {
            let drop = Err(ProposeError::Dropped);
            assert_eq!(cluster.propose(1, b"x"), drop, "it adds nothing any more");
        }
        // The others go on without it.
        cluster.campaign(2);
        assert_eq!(cluster.leader(), Some(2));
        cluster.propose(2, b"y").unwrap();
        assert_eq!(cluster.peer(3).values(), [Bytes::from_static(b"y")]);
    }
}

#[test]
fn a_removed_leader_does_not_count_itself() {
    let mut peer = leader_of(&[1, 2, 3]);
    peer.node.propose_conf_change(&auto(&[(R, 1)])).unwrap();
    peer.settle();
    peer.propose(b"x").unwrap();
    peer.settle();
    peer.say(message(2, 1, 1, accepted(2)));
    assert_eq!(peer.conf_state().voters, ids(&[2, 3]));
    peer.say(message(2, 1, 1, accepted(3)));
    assert_eq!(peer.committed(), 2, "2 alone is no majority of 2 and 3");
    peer.say(message(3, 1, 1, accepted(3)));
    assert_eq!(peer.committed(), 3);
}

#[test]
fn a_removed_member_is_not_heard_any_more() {
    let mut cluster = Cluster::new(3);
    cluster.campaign(1);
    cluster.change(1, &auto(&[(R, 3)])).unwrap();
    cluster.send(message(3, 1, 1, accepted(2)));
    assert_eq!(cluster.refused.last(), Some(&(1, StepError::PeerNotFound)));
    cluster.propose(1, b"x").unwrap();
    assert_eq!(cluster.peer(2).values().len(), 1);
    assert_eq!(cluster.peer(3).values().len(), 0);
}

#[test]
fn a_removed_and_returning_member_starts_anew() {
    let mut peer = leader_of(&[1, 2, 3]);
    for wish in [(R, 3), (V, 3)] {
        peer.node.propose_conf_change(&auto(&[wish])).unwrap();
        acknowledge(&mut peer, &[2]);
    }
    let status = peer.node.status();
    assert_eq!(status.conf_state, conf_state(&[1, 2, 3], &[]));
    let three = status
        .progress
        .iter()
        .find(|p| p.id == ReplicaId(3))
        .unwrap();
    assert_eq!(three.matched, Index(0), "its disk may be another one");
    assert_eq!(three.state, ProgressState::Probe);
}

// Configurations that come with a snapshot.

fn snapshot(index: u64, conf_state: ConfState) -> Payload {
    Payload::Snapshot(Box::new(Snapshot {
        meta: SnapshotMeta {
            last: EntryId::new(1, index),
            conf_state,
        },
        data: Bytes::new(),
    }))
}

#[test]
fn a_snapshot_brings_its_configuration() {
    let joint = ConfState {
        voters: ids(&[2, 3, 4]),
        voters_outgoing: ids(&[1, 2, 3]),
        learners_next: ids(&[1]),
        auto_leave: true,
        ..ConfState::default()
    };
    let cases = [
        (
            "a voter",
            conf_state(&[1, 2], &[]),
            conf_state(&[1, 2, 3], &[]),
        ),
        (
            "a voter that learns now",
            conf_state(&[1, 2], &[]),
            conf_state(&[2, 3], &[1]),
        ),
        (
            "a learner that votes now",
            conf_state(&[2], &[1]),
            conf_state(&[1, 2], &[]),
        ),
        ("a newcomer", ConfState::default(), conf_state(&[1, 2], &[])),
        ("a voter on its way out", conf_state(&[1, 2, 3], &[]), joint),
    ];
    for (who, before, after) in cases {
        let mut peer = Peer::new(config(1), storage(before, &[]));
        let answer = peer.say(message(2, 1, 1, snapshot(11, after.clone())));
        assert_eq!(answer, [message(1, 2, 1, accepted(11))], "{who}");
        assert_eq!(peer.conf_state(), after, "{who}");
        assert_eq!((peer.committed(), peer.node.applied()), (11, Index(11)));
        peer.restart();
        assert_eq!(peer.conf_state(), after, "{who} after a restart");
    }
}

#[test]
fn a_snapshot_for_others_is_not_taken() {
    let mut peer = Peer::new(config(1), storage(conf_state(&[1, 2], &[]), &[]));
    let answer = peer.say(message(2, 1, 1, snapshot(11, conf_state(&[2, 3], &[]))));
    assert_eq!(answer, [message(1, 2, 1, accepted(0))]);
    assert_eq!(peer.conf_state(), conf_state(&[1, 2], &[]));
    assert_eq!(peer.committed(), 0);
}

#[test]
fn a_snapshot_of_an_impossible_configuration_is_refused() {
    let mut peer = Peer::new(config(1), storage(conf_state(&[1, 2], &[]), &[]));
    let bad = message(2, 1, 1, snapshot(11, conf_state(&[1, 2], &[2])));
    let result = peer.node.step(bad);
    assert!(
        matches!(result, Err(StepError::Malformed { .. })),
        "{result:?}"
    );
    assert_eq!(peer.node.poisoned(), None);
    assert_eq!(peer.conf_state(), conf_state(&[1, 2], &[]));
}

// Restarts.

#[test]
fn a_joint_configuration_survives_a_restart() {
    let start = conf_state(&[1, 2, 3], &[]);
    let mut cluster =
        Cluster::of((1..=3).map(|id| Peer::new(config(id), bootstrapped(start.clone()))));
    cluster.campaign(1);
    let explicit = change(Transition::JointExplicit, &[(L, 3), (V, 4)]);
    cluster.change(1, &explicit).unwrap();
    let joint = cluster.peer(1).conf_state();
    assert!(joint.is_joint());
    for id in 1..=3 {
        cluster.tick(1, 1);
        cluster.peer(id).restart();
        assert_eq!(cluster.peer(id).conf_state(), joint);
    }
    cluster.campaign(2);
    assert_eq!(cluster.leader(), Some(2));
    cluster.add(Peer::new(config(4), storage(ConfState::default(), &[])));
    cluster.change(2, &auto(&[])).unwrap();
    cluster.tick(2, 1);
    for id in 1..=4 {
        assert_eq!(cluster.peer(id).conf_state(), conf_state(&[1, 2, 4], &[3]));
    }
}

#[test]
fn an_impossible_configuration_on_the_disk_is_an_error() {
    let bad = storage(conf_state(&[1, 2], &[2]), &[]);
    let result = polyraft_core::RaftNode::new(config(1), bad);
    assert!(matches!(result.err(), Some(Error::Membership(_))));
}

/// A follower's forwarded change is as good as the leader's own.
#[test]
fn a_change_can_be_proposed_on_a_follower() {
    let mut cluster = Cluster::new(3);
    cluster.campaign(1);
    cluster.change(2, &auto(&[(R, 3)])).unwrap();
    assert_eq!(cluster.peer(1).conf_state(), conf_state(&[1, 2], &[]));
    cluster.lose(MessageKind::Propose);
    cluster.change(2, &auto(&[(V, 4)])).unwrap();
    assert_eq!(cluster.peer(1).conf_state(), conf_state(&[1, 2], &[]));
}

/// A group grows from one member to five and shrinks back, under writes, each time by the joint way.
#[test]
fn a_group_grows_and_shrinks_under_writes() {
    let tuned = |id| Config {
        check_quorum: true,
        pre_vote: true,
        step_down_on_removal: true,
        ..config(id)
    };
    let mut cluster = Cluster::of([Peer::new(tuned(1), bootstrapped(conf_state(&[1], &[])))]);
    for id in 2..=5 {
        cluster.add(Peer::new(tuned(id), storage(ConfState::default(), &[])));
    }
    cluster.campaign(1);
    cluster.propose(1, b"0").unwrap();
    cluster.change(1, &auto(&[(V, 2), (V, 3), (L, 4)])).unwrap();
    cluster.tick(1, 1);
    cluster.propose(1, b"1").unwrap();
    cluster.change(1, &auto(&[(V, 4), (V, 5), (L, 2)])).unwrap();
    cluster.tick(1, 1);
    assert_eq!(
        cluster.peer(5).conf_state(),
        conf_state(&[1, 3, 4, 5], &[2])
    );
    cluster.change(1, &auto(&[(R, 1), (R, 2), (R, 3)])).unwrap();
    assert_eq!(cluster.peer(1).role(), RoleName::Follower);
    // The leases end, and one of those who are left is elected.
    cluster.tick_all(5 * ELECTION);
    let leader = cluster.leader().expect("a leader");
    assert!([4, 5].contains(&leader), "{leader}");
    cluster.propose(leader, b"2").unwrap();
    cluster.tick(leader, 1);
    let values = ["0", "1", "2"].map(Bytes::from);
    for id in [4, 5] {
        assert_eq!(cluster.peer(id).conf_state(), conf_state(&[4, 5], &[]));
        // What was applied before it joined came in the snapshot.
        let seen = cluster.peer(id).values();
        assert!(
            !seen.is_empty() && values.ends_with(&seen),
            "{id}: {seen:?}"
        );
    }
}

/// etcd's rule, not the paper's: a change is in force when it is applied.
#[test]
fn a_follower_takes_changes_as_the_leader_sends_them() {
    let mut peer = Peer::new(config(2), storage(conf_state(&[1, 2], &[]), &[]));
    let added = Entry {
        kind: EntryKind::ConfChangeV2,
        data: auto(&[(V, 3)]).encode(),
        ..entry(1, 1, b"")
    };
    peer.say(message(1, 2, 1, append(EntryId::new(0, 0), vec![added], 0)));
    assert_eq!(
        peer.conf_state(),
        conf_state(&[1, 2], &[]),
        "not before it is applied"
    );
    peer.say(message(1, 2, 1, heartbeat(1)));
    assert_eq!(peer.conf_state(), conf_state(&[1, 2, 3], &[]));
}

/// A change that is out to be applied when a snapshot arrives is part of that snapshot, whose
/// configuration is in force at once; applied late, it must not be made a second time.
#[test]
fn a_change_overtaken_by_a_snapshot_is_not_made_again() {
    let mut peer = Peer::new(config(1), storage(conf_state(&[1, 2, 3], &[]), &[1]));
    peer.holds_applying = true;
    let kind = EntryKind::ConfChangeV2;
    let data = auto(&[(ConfChangeKind::Remove, 3)]).encode();
    let (term, index) = (polyraft_core::Term(1), Index(2));
    let removal = Entry {
        term,
        index,
        kind,
        data,
    };
    peer.say(message(
        2,
        1,
        1,
        append(EntryId::new(1, 1), vec![removal], 2),
    ));
    // Later changes brought 3 back; the snapshot contains the removal and that.
    let members = conf_state(&[1, 2, 3], &[]);
    peer.node
        .step(message(2, 1, 1, snapshot(20, members.clone())))
        .unwrap();
    peer.apply_held();
    assert_eq!(peer.conf_state(), members);
    peer.settle();
    assert_eq!(peer.conf_state(), members);
}
