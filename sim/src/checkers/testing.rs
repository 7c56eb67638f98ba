//! Observations made by hand, for the tests of properties: one group with a replica on each of three
//! stores, whose id is that of its store.

use std::sync::Arc;

use bytes::Bytes;
use polyraft_core::{
    BasicStatus, ConfState, Entry, EntryId, HardState, Index, Message, Payload, ReplicaId,
    RoleName, SoftState, Term,
};
use polyraft_multiraft::env::{
    ApplyItem, Body, Command, GroupMessage, Lifecycle, LogBatch, LogSection, RangeChange,
    Recovered, SplitRight,
};
use polyraft_multiraft::{
    AppliedState, BOOTSTRAP, Frozen, GroupDescriptor, GroupId, HostStats, KeyRange, Member,
    ReplicaSummary, StoreId,
};

use super::books::Books;
use super::{Property, properties};
use crate::observe::Observation;

/// The group.
pub(super) const GROUP: GroupId = GroupId(7);

/// Books, and those who read them.
pub(super) struct Scene {
    pub(super) books: Books,
    properties: Vec<Box<dyn Property>>,
}

pub(super) type Seen = Result<(), String>;

/// Whether somebody complained, with these words.
#[track_caller]
pub(super) fn caught(seen: &Seen, words: &str) {
    match seen {
        Ok(()) => panic!("nobody says {words:?}"),
        Err(why) => assert!(why.contains(words), "{why:?} does not say {words:?}"),
    }
}

/// A command.
pub(super) fn entry(term: u64, index: u64, data: &'static str) -> Entry {
    Entry {
        term: Term(term),
        index: Index(index),
        data: Bytes::from_static(data.as_bytes()),
        ..Entry::default()
    }
}

pub(super) fn hard(term: u64, vote: u64, commit: u64) -> HardState {
    HardState {
        term: Term(term),
        vote: ReplicaId(vote),
        commit: Index(commit),
    }
}

pub(super) fn section() -> LogSection {
    LogSection {
        group: GROUP,
        ..LogSection::default()
    }
}

pub(super) fn hard_section(term: u64, vote: u64, commit: u64) -> LogSection {
    LogSection {
        hard_state: Some(hard(term, vote, commit)),
        ..section()
    }
}

pub(super) fn entries_section(entries: &[Entry]) -> LogSection {
    LogSection {
        entries: entries.to_vec(),
        ..section()
    }
}

pub(super) fn truncate_section(term: u64, index: u64) -> LogSection {
    LogSection {
        truncate: Some(EntryId::new(term, index)),
        ..section()
    }
}

pub(super) fn create_section(replica: u64) -> LogSection {
    LogSection {
        lifecycle: Some(Lifecycle::Create {
            replica: ReplicaId(replica),
        }),
        ..section()
    }
}

/// The first record of a replica whose data is there.
pub(super) fn begin_section(replica: u64) -> LogSection {
    LogSection {
        reset: Some(BOOTSTRAP),
        hard_state: Some(hard(1, 0, 2)),
        ..create_section(replica)
    }
}

pub(super) fn destroy_section(next: u64) -> LogSection {
    LogSection {
        lifecycle: Some(Lifecycle::Destroy {
            next_replica: ReplicaId(next),
        }),
        ..section()
    }
}

/// The state after an entry, in a configuration of these voters.
pub(super) fn state_of(voters: &[u64], term: u64, index: u64) -> AppliedState {
    let members = voters.iter().map(|id| Member {
        replica: ReplicaId(*id),
        store: StoreId(*id),
    });
    AppliedState {
        last: EntryId::new(term, index),
        conf_state: Arc::new(ConfState {
            voters: voters.iter().copied().map(ReplicaId).collect(),
            ..ConfState::default()
        }),
        descriptor: Arc::new(GroupDescriptor {
            group: GROUP,
            range: Some(KeyRange::default()),
            members: members.collect(),
            next_replica: ReplicaId(10),
            ..GroupDescriptor::default()
        }),
    }
}

pub(super) fn state(term: u64, index: u64) -> AppliedState {
    state_of(&[1, 2, 3], term, index)
}

/// A turn that applies these entries, the last of which decides what state is reached.
pub(super) fn turn(entries: &[Entry]) -> ApplyItem {
    let last = entries.last().unwrap().id();
    let commands = entries.iter().filter(|entry| !entry.data.is_empty());
    ApplyItem {
        group: GROUP,
        commands: commands
            .map(|entry| Command {
                id: entry.id(),
                data: entry.data.clone(),
            })
            .collect(),
        state: state(last.term.0, last.index.0),
        membership_changed: false,
        replies: Vec::new(),
        range_change: None,
    }
}

/// A turn that splits the group at keys into groups with these numbers.
pub(super) fn divide(index: u64, pieces: &[(&'static str, u64)]) -> ApplyItem {
    let mut item = turn(&[entry(2, index, "")]);
    let key = |key: &'static str| Bytes::from_static(key.as_bytes());
    let ends = pieces.iter().skip(1).map(|(next, _)| Some(key(next)));
    let part = |state: AppliedState, group, start, end| {
        let mut descriptor = (*state.descriptor).clone();
        descriptor.group = group;
        descriptor.epoch.range = 1;
        descriptor.range = Some(KeyRange { start, end });
        AppliedState {
            descriptor: descriptor.into(),
            ..state
        }
    };
    let rights = pieces.iter().zip(ends.chain([None]));
    let rights = rights.map(|((start, group), end)| SplitRight {
        state: part(state(1, 2), GroupId(*group), key(start), end),
        keep: true,
    });
    item.range_change = Some(RangeChange::Split {
        rights: rights.collect(),
    });
    item.state = part(item.state, GROUP, Bytes::new(), Some(key(pieces[0].0)));
    item.membership_changed = true;
    item
}

/// A turn that merges the group that [`divide`] has made at `m` back into the one that it came from, which
/// has then seen three generations.
pub(super) fn unite(index: u64, right: AppliedState) -> ApplyItem {
    let mut item = turn(&[entry(2, index, "")]);
    let mut descriptor = (*item.state.descriptor).clone();
    descriptor.epoch.range = right.descriptor.epoch.range + 1;
    item.state.descriptor = descriptor.into();
    item.range_change = Some(RangeChange::Merge { right });
    item.membership_changed = true;
    item
}

/// The group that [`divide`] has made at `m`, frozen by its third entry.
pub(super) fn frozen_right() -> AppliedState {
    let split = divide(3, &[("m", 8)]);
    let right = super::books::rights(&split).next();
    let mut right = right.expect("a split makes one").state.clone();
    right.last = EntryId::new(1, 3);
    let mut descriptor = (*right.descriptor).clone();
    descriptor.epoch.range += 1;
    descriptor.frozen = Some(Frozen {
        into: GROUP,
        target: split.state.descriptor.epoch,
        at: right.last,
    });
    right.descriptor = descriptor.into();
    right
}

pub(super) fn append(prev: (u64, u64), entries: &[Entry]) -> Payload {
    Payload::Append {
        prev: EntryId::new(prev.0, prev.1),
        entries: entries.to_vec(),
        commit: Index(0),
    }
}

pub(super) fn acknowledge(index: u64) -> Payload {
    Payload::AppendResponse {
        index: Index(index),
        reject: None,
    }
}

pub(super) fn grant() -> Payload {
    Payload::VoteResponse {
        pre: false,
        reject: false,
        committed: EntryId::default(),
    }
}

pub(super) fn heartbeat() -> Payload {
    Payload::Heartbeat {
        commit: Index(0),
        read: 0,
    }
}

pub(super) fn summary(replica: u64, role: RoleName, hard_state: HardState) -> ReplicaSummary {
    ReplicaSummary {
        group: GROUP,
        replica: ReplicaId(replica),
        basic: BasicStatus {
            id: ReplicaId(replica),
            hard_state,
            soft_state: SoftState {
                role,
                ..SoftState::default()
            },
            ..BasicStatus::default()
        },
        ..ReplicaSummary::default()
    }
}

impl Scene {
    pub(super) fn of(property: impl Property + 'static) -> Self {
        Self {
            books: Books::default(),
            properties: vec![Box::new(property)],
        }
    }

    /// With all properties.
    pub(super) fn of_all() -> Self {
        Self {
            books: Books::default(),
            properties: properties(Box::new(|_| super::Limits::default())),
        }
    }

    pub(super) fn see(&mut self, seen: &Observation<'_>) -> Seen {
        self.books.enter(seen);
        let mut each = self.properties.iter_mut();
        each.try_for_each(|property| property.see(seen, &self.books))
    }

    pub(super) fn finish(&mut self, end: &crate::observe::End) -> Seen {
        let mut each = self.properties.iter_mut();
        each.try_for_each(|property| property.finish(end))
    }

    pub(super) fn write(&mut self, store: u64, sections: Vec<LogSection>) -> Seen {
        self.write_batch(store, true, sections)
    }

    /// Without asking for a sync.
    pub(super) fn write_lazily(&mut self, store: u64, sections: Vec<LogSection>) -> Seen {
        self.write_batch(store, false, sections)
    }

    fn write_batch(&mut self, store: u64, sync: bool, sections: Vec<LogSection>) -> Seen {
        let batch = LogBatch { sync, sections };
        self.see(&Observation::Written {
            store: StoreId(store),
            batch: &batch,
        })
    }

    pub(super) fn sync(&mut self, store: u64) -> Seen {
        self.see(&Observation::Synced {
            store: StoreId(store),
        })
    }

    /// Written and durable, and nobody minds.
    #[track_caller]
    pub(super) fn durable(&mut self, store: u64, section: LogSection) {
        self.write(store, vec![section]).unwrap();
        self.sync(store).unwrap();
    }

    pub(super) fn created(&mut self, store: u64, state: &AppliedState) -> Seen {
        self.see(&Observation::Created {
            store: StoreId(store),
            state,
        })
    }

    /// The group is created on a store.
    #[track_caller]
    pub(super) fn begin(&mut self, store: u64) {
        self.created(store, &state(1, 2)).unwrap();
        self.durable(store, begin_section(store));
    }

    /// The group is created everywhere.
    #[track_caller]
    pub(super) fn begun(mut self) -> Self {
        (1..=3).for_each(|store| self.begin(store));
        self
    }

    pub(super) fn send(&mut self, from: u64, to: u64, term: u64, payload: Payload) -> Seen {
        let message = Message {
            from: ReplicaId(from),
            to: ReplicaId(to),
            term: Term(term),
            payload,
        };
        self.post(from, to, Body::Raft(message))
    }

    pub(super) fn deliver(&mut self, from: u64, to: u64, term: u64, payload: Payload) -> Seen {
        let body = Body::Raft(Message {
            from: ReplicaId(from),
            to: ReplicaId(to),
            term: Term(term),
            payload,
        });
        let message = GroupMessage { group: GROUP, body };
        self.see(&Observation::Delivered {
            from: StoreId(from),
            to: StoreId(to),
            message: &message,
        })
    }

    pub(super) fn post(&mut self, from: u64, to: u64, body: Body) -> Seen {
        let message = GroupMessage { group: GROUP, body };
        self.see(&Observation::Sent {
            from: StoreId(from),
            to: StoreId(to),
            message: &message,
        })
    }

    /// Everybody votes for a candidate, who then leads.
    #[track_caller]
    pub(super) fn elect(&mut self, leader: u64, term: u64, commit: u64) {
        for store in 1..=3 {
            self.durable(store, hard_section(term, leader, commit));
            if store != leader {
                self.send(store, leader, term, grant()).unwrap();
            }
        }
    }

    /// A leader sends entries and writes them; so do those who follow, and acknowledge them.
    #[track_caller]
    pub(super) fn replicate(
        &mut self,
        leader: u64,
        followers: &[u64],
        prev: (u64, u64),
        entries: &[Entry],
    ) {
        let last = entries.last().unwrap();
        for follower in followers {
            let term = last.term.0;
            self.send(leader, *follower, term, append(prev, entries))
                .unwrap();
        }
        self.durable(leader, entries_section(entries));
        for follower in followers {
            self.durable(*follower, entries_section(entries));
            let (term, index) = (last.term.0, last.index.0);
            self.send(*follower, leader, term, acknowledge(index))
                .unwrap();
        }
    }

    pub(super) fn apply(&mut self, store: u64, item: ApplyItem) -> Seen {
        self.see(&Observation::Applied {
            store: StoreId(store),
            items: &[item],
        })
    }

    pub(super) fn restored(&mut self, store: u64, state: &AppliedState) -> Seen {
        self.restored_over(store, state, &[])
    }

    pub(super) fn restored_over(
        &mut self,
        store: u64,
        state: &AppliedState,
        subsumes: &[GroupDescriptor],
    ) -> Seen {
        self.see(&Observation::Restored {
            store: StoreId(store),
            state,
            subsumes,
        })
    }

    pub(super) fn destroyed(&mut self, store: u64) -> Seen {
        self.destroyed_group(store, &state(1, 2))
    }

    pub(super) fn destroyed_group(&mut self, store: u64, state: &AppliedState) -> Seen {
        self.see(&Observation::Destroyed {
            store: StoreId(store),
            descriptor: &state.descriptor,
        })
    }

    pub(super) fn flushed(&mut self, store: u64) -> Seen {
        self.see(&Observation::Flushed {
            store: StoreId(store),
        })
    }

    pub(super) fn crash(&mut self, store: u64, power: bool) -> Seen {
        self.see(&Observation::Crashed {
            store: StoreId(store),
            power,
        })
    }

    pub(super) fn found_log(&mut self, store: u64, found: &Recovered) -> Seen {
        self.see(&Observation::RecoveredLog {
            store: StoreId(store),
            found,
        })
    }

    pub(super) fn found_data(&mut self, store: u64, states: &[AppliedState]) -> Seen {
        self.see(&Observation::RecoveredData {
            store: StoreId(store),
            states,
        })
    }

    pub(super) fn publish(&mut self, store: u64, replica: ReplicaSummary) -> Seen {
        self.publish_stats(store, replica, &HostStats::default())
    }

    pub(super) fn publish_stats(
        &mut self,
        store: u64,
        replica: ReplicaSummary,
        stats: &HostStats,
    ) -> Seen {
        self.see(&Observation::Published {
            store: StoreId(store),
            replicas: &[replica],
            stats,
        })
    }
}
