//! Messages, entries and changes from bytes: numbers near those of the replica that they are for, so
//! that they are not all refused at the door, and sometimes any.

use bytes::Bytes;
use polyraft_core::{
    ConfChange, ConfChangeKind, ConfChangeV2, ConfState, Entry, EntryId, EntryKind, Index, Message,
    Payload, RaftNode, RejectHint, ReplicaId, Snapshot, SnapshotMeta, Storage, Term, Transition,
};
use polyraft_fuzz::Source;

/// Ids of members, of one to come, and of nobody.
pub(crate) fn replica(source: &mut Source<'_>) -> ReplicaId {
    ReplicaId(match source.below(16) {
        15 => source.number(),
        14 => 0,
        small => small as u64 % 5 + 1,
    })
}

pub(crate) fn term<S: Storage>(source: &mut Source<'_>, node: &RaftNode<S>) -> Term {
    let own = node.term().0;
    Term(match source.below(16) {
        0..8 => own,
        8..11 => own.saturating_add(1),
        11 => own.saturating_sub(1),
        12 => own.saturating_add(2),
        13 => 0,
        _ => source.number(),
    })
}

pub(crate) fn index<S: Storage>(source: &mut Source<'_>, node: &RaftNode<S>) -> Index {
    let (last, committed) = (node.last_index().0, node.committed().0);
    Index(match source.below(16) {
        0..5 => last,
        5..7 => last.saturating_add(1),
        7..9 => committed,
        9 => committed.saturating_add(1),
        10 => last.saturating_sub(1),
        11 => node.applied().0,
        12 => node.storage().first_index().0.saturating_sub(1),
        13 => node.storage().last_index().0,
        _ => source.number(),
    })
}

/// An entry of the log in most cases, as far as the storage knows it.
pub(crate) fn id<S: Storage>(source: &mut Source<'_>, node: &RaftNode<S>) -> EntryId {
    let index = index(source, node);
    let term = match node.storage().term(index) {
        Ok(term) if !source.one_in(5) => term,
        _ => term(source, node),
    };
    EntryId { term, index }
}

fn data(source: &mut Source<'_>) -> Bytes {
    Bytes::copy_from_slice(source.bytes(40))
}

pub(crate) fn conf_state(source: &mut Source<'_>) -> ConfState {
    let mut list = |max: usize| {
        let count = source.below(max + 1);
        (0..count).map(|_| replica(source)).collect::<Vec<_>>()
    };
    let (voters, learners) = (list(4), list(2));
    let (voters_outgoing, learners_next) = (list(3), list(1));
    ConfState {
        voters,
        learners,
        voters_outgoing,
        learners_next,
        auto_leave: source.flag(),
    }
}

pub(crate) fn change(source: &mut Source<'_>) -> ConfChangeV2 {
    let transition = source.pick(&[
        Transition::Auto,
        Transition::JointImplicit,
        Transition::JointExplicit,
    ]);
    let count = source.below(4);
    let one = |_| (kind(source), replica(source));
    ConfChangeV2 {
        transition,
        changes: (0..count).map(one).collect(),
        context: Bytes::new(),
    }
}

fn kind(source: &mut Source<'_>) -> ConfChangeKind {
    source.pick(&[
        ConfChangeKind::AddVoter,
        ConfChangeKind::AddLearner,
        ConfChangeKind::Remove,
        ConfChangeKind::Update,
    ])
}

pub(crate) fn change_v1(source: &mut Source<'_>) -> ConfChange {
    ConfChange {
        kind: kind(source),
        replica: replica(source),
        context: Bytes::new(),
    }
}

/// A payload of an entry with the kind that it claims, which it need not be.
fn content(source: &mut Source<'_>) -> (EntryKind, Bytes) {
    match source.below(8) {
        0 => (EntryKind::ConfChangeV2, change(source).encode()),
        1 => (EntryKind::ConfChange, change_v1(source).encode()),
        2 => (EntryKind::ConfChangeV2, data(source)),
        _ => (EntryKind::Normal, data(source)),
    }
}

/// Entries behind `prev`, mostly consecutive and of terms that do not fall.
pub(crate) fn entries(source: &mut Source<'_>, prev: EntryId, top: Term) -> Vec<Entry> {
    let mut last = prev;
    let count = source.below(5);
    let one = |_| {
        last.index = Index(last.index.0.saturating_add(1));
        if source.one_in(3) {
            last.term = top;
        }
        if source.one_in(24) {
            last = EntryId::new(source.number(), source.number());
        }
        let (kind, data) = content(source);
        Entry {
            term: last.term,
            index: last.index,
            kind,
            data,
        }
    };
    (0..count).map(one).collect()
}

/// A message to the node, of any kind.
pub(crate) fn message<S: Storage>(source: &mut Source<'_>, node: &RaftNode<S>) -> Message {
    let to = match source.below(64) {
        63 => replica(source),
        _ => node.id(),
    };
    let (from, term) = (replica(source), term(source, node));
    Message {
        from,
        to,
        term,
        payload: payload(source, node, term),
    }
}

fn payload<S: Storage>(source: &mut Source<'_>, node: &RaftNode<S>, term: Term) -> Payload {
    match source.below(20) {
        0..4 => {
            let prev = id(source, node);
            let entries = entries(source, prev, term);
            let commit = index(source, node);
            Payload::Append {
                prev,
                entries,
                commit,
            }
        }
        4..8 => {
            let index = index(source, node);
            let reject = source.one_in(3).then(|| {
                let EntryId { term, index } = id(source, node);
                RejectHint { index, term }
            });
            Payload::AppendResponse { index, reject }
        }
        8 | 9 => Payload::Vote {
            pre: source.flag(),
            last: id(source, node),
            transfer: source.one_in(4),
        },
        10..13 => Payload::VoteResponse {
            pre: source.flag(),
            reject: source.one_in(3),
            committed: if source.one_in(4) {
                id(source, node)
            } else {
                EntryId::default()
            },
        },
        13 => Payload::Heartbeat {
            commit: index(source, node),
            read: source.number(),
        },
        14 => Payload::HeartbeatResponse {
            read: source.number(),
        },
        15 => {
            let last = id(source, node);
            let conf_state = match source.below(3) {
                0 => conf_state(source),
                _ => node.status().conf_state,
            };
            let meta = SnapshotMeta { last, conf_state };
            let data = data(source);
            Payload::Snapshot(Box::new(Snapshot { meta, data }))
        }
        16 => Payload::Propose {
            entries: entries(source, EntryId::default(), Term(0)),
        },
        17 if source.flag() => Payload::TransferLeader,
        17 => Payload::TimeoutNow,
        18 => Payload::ReadIndex {
            context: data(source),
        },
        _ => Payload::ReadIndexResponse {
            index: index(source, node),
            context: data(source),
        },
    }
}
