//! Log ranges that are not in memory: they are asked for once, used when they come, and never trusted
//! further than the log itself. All under a storage that has forgotten every entry but knows all terms.

mod common;

use std::cell::Cell;

use bytes::Bytes;
use common::{accepted, append, conf_state, config, entry, message, storage, vote, voted};
use polyraft_core::{
    Durable, Entry, EntryId, Fetch, Fetched, Index, InitialState, MemoryStorage, Message, Payload,
    RaftNode, RejectHint, ReplicaId, RoleName, Snapshot, Storage, StorageError, SyncNode, Term,
};

/// A stable log whose entries have to be fetched.
struct Evicted {
    disk: MemoryStorage,
    /// Reads that were answered "not now".
    refused: Cell<usize>,
}

impl Storage for Evicted {
    fn initial_state(&self) -> Result<InitialState, StorageError> {
        self.disk.initial_state()
    }
    fn entries(&self, low: Index, high: Index, max: u64) -> Result<Vec<Entry>, StorageError> {
        // Bounds are always known.
        self.disk.entries(low, high, max)?;
        self.refused.set(self.refused.get() + 1);
        Err(StorageError::TemporarilyUnavailable)
    }
    fn term(&self, index: Index) -> Result<Term, StorageError> {
        self.disk.term(index)
    }
    fn first_index(&self) -> Index {
        self.disk.first_index()
    }
    fn last_index(&self) -> Index {
        self.disk.last_index()
    }
    fn snapshot(&self, to: ReplicaId) -> Result<Snapshot, StorageError> {
        self.disk.snapshot(to)
    }
}

/// Replica 1 of three, everything it asked for, and what it applied.
struct Host {
    node: RaftNode<Evicted>,
    fetches: Vec<Fetch>,
    applied: Vec<Entry>,
}

impl Host {
    fn new(terms: &[u64], commit: u64) -> Self {
        let mut disk = storage(conf_state(&[1, 2, 3], &[]), terms);
        let mut state = disk.hard_state();
        state.commit = Index(commit);
        disk.set_hard_state(state);
        let refused = Cell::new(0);
        let node = RaftNode::new(config(1), Evicted { disk, refused }).unwrap();
        Self {
            node,
            fetches: Vec::new(),
            applied: Vec::new(),
        }
    }

    /// Stores and applies all there is; returns what is to be sent.
    fn settle(&mut self) -> Vec<Message> {
        let mut out = Vec::new();
        while self.node.has_ready() {
            let mut ready = self.node.ready().unwrap();
            out.append(&mut ready.messages);
            self.fetches.append(&mut ready.fetches);
            if let Some(append) = ready.append.take() {
                let disk = &mut self.node.storage_mut().disk;
                disk.append(append.entries()).unwrap();
                if let Some(state) = append.hard_state() {
                    disk.set_hard_state(state);
                }
                let (send, token) = append.persisted(&Durable::attest());
                out.extend(send);
                self.node.on_persisted(token).unwrap();
            }
            if let Some(last) = ready.committed.last() {
                let bytes = ready.committed.iter().map(Entry::size).sum();
                self.node.on_applied(last.index, bytes).unwrap();
                self.applied.append(&mut ready.committed);
            }
            self.node.check().unwrap();
        }
        out
    }

    fn say(&mut self, from: u64, term: u64, payload: Payload) -> Vec<Message> {
        self.node.step(message(from, 1, term, payload)).unwrap();
        self.settle()
    }

    /// What the disk holds for `fetch`.
    fn read(&self, fetch: Fetch) -> Fetched {
        let disk = &self.node.storage().disk;
        Fetched {
            fetch,
            entries: disk.entries(fetch.low, fetch.high, fetch.max_bytes),
        }
    }

    fn answer(&mut self, fetched: Fetched) -> Vec<Message> {
        self.node.on_fetched(fetched).unwrap();
        self.settle()
    }

    fn lead(&mut self) {
        self.node.campaign().unwrap();
        self.settle();
        let term = self.node.term().0;
        self.say(2, term, voted(true));
        assert_eq!(self.node.role(), RoleName::Leader);
    }

    /// Follower 3 turns out to match only up to `index`.
    fn reject_down_to(&mut self, rejected: u64, index: u64, hint_term: u64) -> Vec<Message> {
        let term = self.node.term().0;
        let reject = Some(RejectHint {
            index: Index(index),
            term: Term(hint_term),
        });
        let index = Index(rejected);
        self.say(3, term, Payload::AppendResponse { index, reject })
    }
}

fn appends(messages: &[Message]) -> Vec<(EntryId, Vec<EntryId>)> {
    let each = messages
        .iter()
        .filter_map(|message| match &message.payload {
            Payload::Append { prev, entries, .. } => {
                Some((*prev, entries.iter().map(Entry::id).collect()))
            }
            _ => None,
        });
    each.collect()
}

#[test]
fn a_follower_behind_is_fed_from_the_disk() {
    let mut host = Host::new(&[1, 1, 1, 1], 0);
    host.lead();
    let sent = host.reject_down_to(4, 1, 1);
    assert_eq!(
        appends(&sent),
        [],
        "nothing empty goes ahead of the entries"
    );
    let [fetch] = host.fetches[..] else {
        panic!("one fetch, not {:?}", host.fetches);
    };
    assert_eq!((fetch.replica, fetch.low), (ReplicaId(3), Index(2)));
    let fetched = host.read(fetch);
    let sent = host.answer(fetched);
    let [(prev, ids)] = &appends(&sent)[..] else {
        panic!("one append, not {sent:?}");
    };
    assert_eq!(*prev, EntryId::new(1, 1));
    assert_eq!(ids[0], EntryId::new(1, 2));
}

#[test]
fn a_range_is_asked_for_once() {
    let mut host = Host::new(&[1, 1, 1, 1], 0);
    host.lead();
    host.reject_down_to(4, 1, 1);
    for _ in 0..5 {
        host.say(3, 2, Payload::HeartbeatResponse { read: 0 });
    }
    assert_eq!(host.fetches.len(), 1);
    assert!(!host.node.has_ready(), "nothing to do but wait");
}

#[test]
fn a_range_that_could_not_be_had_is_asked_for_again() {
    let mut host = Host::new(&[1, 1, 1, 1], 0);
    host.lead();
    host.reject_down_to(4, 1, 1);
    let fetch = host.fetches.remove(0);
    let entries = Err(StorageError::TemporarilyUnavailable);
    host.answer(Fetched { fetch, entries });
    assert_eq!(host.fetches.len(), 1, "asked for again");
}

/// The core's answer to reads that are overtaken by writes: replica 1 asks as the leader of term 2, is
/// overwritten by the leader of term 3, leads again in term 4 and only then gets the old answer.
#[test]
fn what_was_overwritten_meanwhile_is_never_sent() {
    let mut host = Host::new(&[1, 1, 1, 1], 0);
    host.lead();
    host.reject_down_to(4, 1, 1);
    let stale_fetch = host.fetches.remove(0);
    let stale = host.read(stale_fetch);

    let newer = vec![entry(3, 3, b"x"), entry(3, 4, b"y"), entry(3, 5, b"z")];
    host.say(2, 3, append(EntryId::new(1, 2), newer, 0));
    host.lead();
    assert_eq!(host.node.term(), Term(4));
    let sent = host.reject_down_to(5, 1, 1);
    assert_eq!(appends(&sent), [], "the range must be fetched anew");
    let fresh_fetch = host.fetches.remove(0);

    let mut sent = host.answer(stale);
    host.say(3, 4, Payload::HeartbeatResponse { read: 0 });
    let fresh = host.read(fresh_fetch);
    sent.extend(host.answer(fresh));
    let sent = appends(&sent);
    assert!(!sent.is_empty(), "the follower is fed in the end");
    for (prev, ids) in sent {
        for id in [&[prev], &ids[..]].concat() {
            assert_eq!(host.node.storage().term(id.index), Ok(id.term), "{id:?}");
        }
    }
}

#[test]
fn committed_entries_are_applied_from_the_disk() {
    let mut host = Host::new(&[1, 1, 1, 1], 3);
    assert_eq!(host.settle(), []);
    assert!(host.applied.is_empty());
    let [fetch] = host.fetches[..] else {
        panic!("one fetch, not {:?}", host.fetches);
    };
    assert!(fetch.replica.is_none());
    assert_eq!((fetch.low, fetch.high), (Index(1), Index(4)));
    let fetched = host.read(fetch);
    host.answer(fetched);
    let applied: Vec<Index> = host.applied.iter().map(|entry| entry.index).collect();
    assert_eq!(applied, [Index(1), Index(2), Index(3)]);
    assert_eq!(host.node.applied(), Index(3));
}

#[test]
fn a_short_answer_is_followed_by_a_second_question() {
    let mut host = Host::new(&[1, 1, 1, 1], 3);
    host.settle();
    let fetch = host.fetches.remove(0);
    let entries = Ok(vec![entry(1, 1, b"")]);
    host.answer(Fetched { fetch, entries });
    assert_eq!(host.node.applied(), Index(1));
    let fetch = host.fetches.remove(0);
    assert_eq!(fetch.low, Index(2));
    let fetched = host.read(fetch);
    host.answer(fetched);
    assert_eq!(host.node.applied(), Index(3));
}

/// Whether a change of membership waits in what is committed cannot be told without reading it.
#[test]
fn nobody_campaigns_over_entries_it_cannot_see() {
    let mut host = Host::new(&[1, 1, 1, 1], 3);
    host.node.campaign().unwrap();
    host.settle();
    assert_eq!(host.node.role(), RoleName::Follower);
    let fetch = host.fetches.remove(0);
    let fetched = host.read(fetch);
    host.answer(fetched);
    host.node.campaign().unwrap();
    host.settle();
    assert_eq!(host.node.role(), RoleName::Candidate);
}

#[test]
fn entries_that_do_not_belong_together_stop_the_replica() {
    let mut host = Host::new(&[1, 1, 1, 1], 3);
    host.settle();
    let fetch = host.fetches.remove(0);
    let entries = Ok(vec![entry(1, 1, b""), entry(1, 3, b"")]);
    host.node
        .on_fetched(Fetched { fetch, entries })
        .unwrap_err();
    assert!(host.node.poisoned().is_some());
    assert!(host.node.tick().is_err());
    assert!(host.node.propose(vec![Bytes::new()]).is_err());
    assert!(
        host.node
            .step(message(2, 1, 9, vote(EntryId::new(9, 9))))
            .is_err()
    );
}

/// Acknowledgements do not need the entries.
#[test]
fn commits_do_not_wait_for_fetches() {
    let mut host = Host::new(&[1, 1], 0);
    host.lead();
    host.say(2, 2, accepted(3));
    assert_eq!(host.node.committed(), Index(3));
}

/// The synchronous face hands fetches out as well: else a replica whose committed entries are not
/// in memory would never apply them.
#[test]
fn the_synchronous_face_fetches_too() {
    let mut disk = storage(conf_state(&[1, 2, 3], &[]), &[1, 1, 1]);
    let mut state = disk.hard_state();
    state.commit = Index(2);
    disk.set_hard_state(state);
    let refused = Cell::new(0);
    let mut node = SyncNode::new(config(1), Evicted { disk, refused }).unwrap();
    let (mut fetched, mut applied) = (0, Vec::new());
    while node.has_ready() {
        let ready = node.ready().unwrap();
        node.advance().unwrap();
        applied.extend(ready.committed.iter().map(Entry::id));
        for fetch in ready.fetches {
            fetched += 1;
            let disk = &node.node().storage().disk;
            let entries = disk.entries(fetch.low, fetch.high, fetch.max_bytes);
            node.node().on_fetched(Fetched { fetch, entries }).unwrap();
        }
    }
    assert_eq!(applied, [EntryId::new(1, 1), EntryId::new(1, 2)]);
    assert_eq!(fetched, 1);
}
