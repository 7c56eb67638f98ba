//! What a replica makes of what it finds on its disk.

mod common;

use common::{Cluster, Peer, append, conf_state, config, entry, message, storage, vote};
use polyraft_core::{
    Config, EntryId, HardState, Index, MemoryStorage, Payload, RaftNode, ReplicaId, RoleName, Term,
};

/// Four entries of terms 1 and 2; a vote for 2 in term 3; `commit` committed.
fn disk(commit: u64) -> MemoryStorage {
    let mut storage = storage(conf_state(&[1, 2, 3], &[]), &[1, 1, 2, 2]);
    storage.set_hard_state(HardState {
        term: Term(3),
        vote: ReplicaId(2),
        commit: Index(commit),
    });
    storage
}

fn start(applied: u64, commit: u64) -> Result<RaftNode<MemoryStorage>, polyraft_core::Error> {
    let config = Config {
        applied: Index(applied),
        ..config(1)
    };
    RaftNode::new(config, disk(commit))
}

#[test]
fn term_vote_and_commit_are_those_of_the_disk() {
    let mut peer = Peer::new(config(1), disk(3));
    let found = HardState {
        term: Term(3),
        vote: ReplicaId(2),
        commit: Index(3),
    };
    assert_eq!(peer.hard_state(), found);
    assert_eq!((peer.role(), peer.leader()), (RoleName::Follower, 0));
    let answers = peer.say(message(3, 1, 3, vote(EntryId::new(2, 9))));
    let refused = Payload::VoteResponse {
        pre: false,
        reject: true,
        committed: EntryId::default(),
    };
    assert_eq!(answers, [message(1, 3, 3, refused)]);
}

#[test]
fn a_restart_writes_nothing_by_itself() {
    let node = start(3, 3).unwrap();
    assert!(!node.has_ready());
}

#[test]
fn what_is_applied_is_not_handed_out_again() {
    for applied in 0..=3 {
        let mut node = start(applied, 3).unwrap();
        let indexes: Vec<u64> = if node.has_ready() {
            let ready = node.ready().unwrap();
            assert!(ready.append.is_none());
            ready.committed.iter().map(|e| e.index.0).collect()
        } else {
            Vec::new()
        };
        let expected: Vec<u64> = (applied + 1..=3).collect();
        assert_eq!(indexes, expected);
    }
}

/// The commit index is not synced by itself; what the state machine has applied was committed.
#[test]
fn a_lost_commit_index_is_learned_from_what_is_applied() {
    let node = start(4, 1).unwrap();
    assert_eq!((node.committed(), node.applied()), (Index(4), Index(4)));
}

#[test]
fn a_disk_that_contradicts_itself_is_an_error() {
    assert!(start(0, 5).is_err(), "committed beyond the log");
    assert!(start(5, 4).is_err(), "applied beyond the log");
    let mut truncated = disk(3);
    truncated.truncate_to(Index(3)).unwrap();
    let config = Config {
        applied: Index(2),
        ..config(1)
    };
    let node = RaftNode::new(config, truncated);
    assert!(node.is_err(), "the entry to be applied next is gone");
}

#[test]
fn a_configuration_that_cannot_work_is_an_error() {
    let base = config(1);
    let broken = [
        Config {
            id: ReplicaId::NONE,
            ..base.clone()
        },
        Config {
            heartbeat_ticks: 0,
            ..base.clone()
        },
        Config {
            heartbeat_ticks: base.election_ticks,
            ..base.clone()
        },
        Config {
            max_inflight_messages: 0,
            ..base.clone()
        },
        Config {
            max_inflight_bytes: base.max_message_bytes - 1,
            ..base.clone()
        },
        Config {
            max_pending_reads: 0,
            ..base
        },
    ];
    for config in broken {
        assert!(
            RaftNode::new(config.clone(), disk(0)).is_err(),
            "{config:?}"
        );
    }
}

/// Written but not acknowledged to anybody: it is there after the restart, and counts.
#[test]
fn an_uncommitted_tail_survives() {
    let mut peer = Peer::new(config(1), disk(0));
    let tail = vec![entry(3, 5, b"x")];
    peer.say(message(2, 1, 3, append(EntryId::new(2, 4), tail, 0)));
    peer.restart();
    assert_eq!(peer.terms(), [1, 1, 2, 2, 3]);
    peer.lead(&[2]);
    assert_eq!(peer.node.last_index(), Index(6));
}

#[test]
fn a_group_survives_the_restart_of_everybody() {
    let mut group = Cluster::new(3);
    group.campaign(1);
    for value in [b"a", b"b", b"c"] {
        group.propose(1, value).unwrap();
    }
    for id in 1..=3 {
        group.peer(id).restart();
    }
    assert_eq!(group.leader(), None);
    group.campaign(2);
    group.propose(2, b"d").unwrap();
    group.assert_agreed();
    assert_eq!(group.peer(3).values(), ["a", "b", "c", "d"]);
}
