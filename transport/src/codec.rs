//! Between what replicas say and what goes over the wire; the gate where what comes in is looked
//! at.
//!
//! Behind [`decode`] every message has a sender and a receiver, entries that are consecutive and of
//! terms that do not fall, and numbers that cannot overflow. Small payloads are copied out of the
//! frame, so that a cached entry of a few bytes does not keep a frame of a megabyte alive.

use bytes::Bytes;
use polyraft_core::{
    ConfState, Entry, EntryId, EntryKind, Index, Message, Payload, RejectHint, ReplicaId, Snapshot,
    SnapshotMeta, Term,
};
use polyraft_multiraft::GroupId;
use polyraft_multiraft::env::{Body, GroupMessage};

use crate::proto::{self, envelope::Payload as Wire};

/// What is wrong with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed frame: {0}")]
pub(crate) struct CodecError(pub(crate) &'static str);

/// Payloads below this are copied out of the frame.
const COPY_BELOW: usize = 256;
/// No term or index reaches this: additions behind the gate cannot overflow.
const NUMBER_MAX: u64 = 1 << 62;

/// Adds a message to a frame.
pub(crate) fn encode(frame: &mut proto::Frame, message: GroupMessage) {
    let group = message.group.0;
    let (message, sleep) = match message.body {
        Body::Raft(message) => (message, false),
        Body::Sleep(message) => (message, true),
        Body::Tombstone {
            replica,
            next_replica,
        } => {
            let payload = Wire::Tombstone(proto::Tombstone {
                next_replica: next_replica.0,
            });
            let payload = Some(payload);
            let envelope = proto::Envelope {
                group,
                to: replica.0,
                payload,
                ..Default::default()
            };
            return frame.messages.push(envelope);
        }
    };
    let (from, to, term) = (message.from.0, message.to.0, message.term.0);
    match message.payload {
        Payload::Heartbeat { commit, read } => {
            let beats = frame.heartbeats.get_or_insert_default();
            push_beat(beats, [group, from, to, term, read]);
            beats.commit.push(commit.0);
            beats.sleep.push(sleep);
        }
        Payload::HeartbeatResponse { read } => {
            let beats = frame.responses.get_or_insert_default();
            push_beat(beats, [group, from, to, term, read]);
        }
        payload => {
            let payload = Some(encode_payload(payload));
            frame.messages.push(proto::Envelope {
                group,
                from,
                to,
                term,
                payload,
            });
        }
    }
}

fn push_beat(beats: &mut proto::Beats, row: [u64; 5]) {
    let [group, from, to, term, read] = row;
    beats.group.push(group);
    beats.from.push(from);
    beats.to.push(to);
    beats.term.push(term);
    beats.read.push(read);
}

/// A single message by itself, as it goes before a snapshot.
pub(crate) fn encode_one(group: GroupId, message: Message) -> proto::Envelope {
    proto::Envelope {
        group: group.0,
        from: message.from.0,
        to: message.to.0,
        term: message.term.0,
        payload: Some(encode_payload(message.payload)),
    }
}

fn encode_payload(payload: Payload) -> Wire {
    match payload {
        Payload::Append {
            prev,
            entries,
            commit,
        } => Wire::Append(proto::Append {
            prev_term: prev.term.0,
            prev_index: prev.index.0,
            commit: commit.0,
            entries: entries.into_iter().map(encode_entry).collect(),
        }),
        Payload::AppendResponse { index, reject } => {
            let hint = reject.unwrap_or_default();
            Wire::AppendResponse(proto::AppendResponse {
                index: index.0,
                reject: reject.is_some(),
                hint_index: hint.index.0,
                hint_term: hint.term.0,
            })
        }
        Payload::Vote {
            pre,
            last,
            transfer,
        } => Wire::Vote(proto::Vote {
            pre,
            last_term: last.term.0,
            last_index: last.index.0,
            transfer,
        }),
        Payload::VoteResponse {
            pre,
            reject,
            committed,
        } => Wire::VoteResponse(proto::VoteResponse {
            pre,
            reject,
            committed_term: committed.term.0,
            committed_index: committed.index.0,
        }),
        Payload::Propose { entries } => Wire::Propose(proto::Propose {
            entries: entries.into_iter().map(encode_entry).collect(),
        }),
        Payload::TransferLeader => Wire::TransferLeader(proto::Empty {}),
        Payload::TimeoutNow => Wire::TimeoutNow(proto::Empty {}),
        Payload::ReadIndex { context } => Wire::ReadIndex(proto::ReadIndex { context }),
        Payload::ReadIndexResponse { index, context } => {
            Wire::ReadIndexResponse(proto::ReadIndexResponse {
                index: index.0,
                context,
            })
        }
        Payload::Snapshot(snapshot) => Wire::Snapshot(encode_meta(snapshot.meta)),
        // Heartbeats go in columns; a single one can always go as an empty append would, but no
        // caller sends one here.
        Payload::Heartbeat { .. } | Payload::HeartbeatResponse { .. } => {
            unreachable!("heartbeats are encoded in columns")
        }
    }
}

fn encode_entry(entry: Entry) -> proto::Entry {
    let kind = match entry.kind {
        EntryKind::Normal => 0,
        EntryKind::ConfChange => 1,
        EntryKind::ConfChangeV2 => 2,
        EntryKind::Host => 3,
    };
    proto::Entry {
        term: entry.term.0,
        kind,
        data: entry.data,
    }
}

fn encode_meta(meta: SnapshotMeta) -> proto::SnapshotMeta {
    let ids = |ids: Vec<ReplicaId>| ids.into_iter().map(|id| id.0).collect();
    let state = meta.conf_state;
    proto::SnapshotMeta {
        last_term: meta.last.term.0,
        last_index: meta.last.index.0,
        voters: ids(state.voters),
        learners: ids(state.learners),
        voters_outgoing: ids(state.voters_outgoing),
        learners_next: ids(state.learners_next),
        auto_leave: state.auto_leave,
    }
}

/// Everything in a frame: heartbeats first, then their answers, then the rest, each in the order
/// in which they were sent.
///
/// # Errors
/// The frame is refused as a whole: whoever sends such a thing cannot be trusted with half of it.
pub(crate) fn decode(frame: proto::Frame) -> Result<Vec<GroupMessage>, CodecError> {
    if frame.hello.is_some() {
        return Err(CodecError("a second hello"));
    }
    let mut out = Vec::with_capacity(frame.messages.len());
    if let Some(beats) = frame.heartbeats {
        decode_beats(&beats, true, &mut out)?;
    }
    if let Some(beats) = frame.responses {
        decode_beats(&beats, false, &mut out)?;
    }
    for envelope in frame.messages {
        if matches!(envelope.payload, Some(Wire::Snapshot(_))) {
            // Without its data it claims a state that nobody would have.
            return Err(CodecError("a snapshot outside of its own stream"));
        }
        out.push(decode_envelope(envelope)?);
    }
    Ok(out)
}

fn decode_beats(
    beats: &proto::Beats,
    requests: bool,
    out: &mut Vec<GroupMessage>,
) -> Result<(), CodecError> {
    let rows = beats.group.len();
    let same = [&beats.from, &beats.to, &beats.term, &beats.read]
        .iter()
        .all(|c| c.len() == rows);
    let extra = if requests { rows } else { 0 };
    if !same || beats.commit.len() != extra || beats.sleep.len() != extra {
        return Err(CodecError("columns of different lengths"));
    }
    for row in 0..rows {
        let read = beats.read[row];
        let payload = if requests {
            Payload::Heartbeat {
                commit: index(beats.commit[row])?,
                read,
            }
        } else {
            Payload::HeartbeatResponse { read }
        };
        let message = Message {
            from: replica(beats.from[row])?,
            to: replica(beats.to[row])?,
            term: term(beats.term[row])?,
            payload,
        };
        let sleeps = requests && beats.sleep[row];
        let body = if sleeps {
            Body::Sleep(message)
        } else {
            Body::Raft(message)
        };
        out.push(GroupMessage {
            group: GroupId(beats.group[row]),
            body,
        });
    }
    Ok(())
}

fn decode_envelope(envelope: proto::Envelope) -> Result<GroupMessage, CodecError> {
    let group = GroupId(envelope.group);
    let to = replica(envelope.to)?;
    let payload = match envelope.payload.ok_or(CodecError("no payload"))? {
        Wire::Tombstone(tombstone) => {
            let next_replica = ReplicaId(tombstone.next_replica);
            return Ok(GroupMessage {
                group,
                body: Body::Tombstone {
                    replica: to,
                    next_replica,
                },
            });
        }
        wire => decode_payload(wire)?,
    };
    let from = replica(envelope.from)?;
    let message = Message {
        from,
        to,
        term: term(envelope.term)?,
        payload,
    };
    Ok(GroupMessage {
        group,
        body: Body::Raft(message),
    })
}

/// A message that came by itself.
///
/// # Errors
/// As [`decode`].
pub(crate) fn decode_one(envelope: proto::Envelope) -> Result<(GroupId, Message), CodecError> {
    match decode_envelope(envelope)? {
        GroupMessage {
            group,
            body: Body::Raft(message),
        } => Ok((group, message)),
        _ => Err(CodecError("not a message of a replica")),
    }
}

fn decode_payload(wire: Wire) -> Result<Payload, CodecError> {
    Ok(match wire {
        Wire::Append(append) => {
            let prev = id(append.prev_term, append.prev_index)?;
            let entries = decode_entries(append.entries, prev)?;
            Payload::Append {
                prev,
                entries,
                commit: index(append.commit)?,
            }
        }
        Wire::AppendResponse(answer) => Payload::AppendResponse {
            index: index(answer.index)?,
            reject: if answer.reject {
                let (index, term) = (index(answer.hint_index)?, term(answer.hint_term)?);
                Some(RejectHint { index, term })
            } else {
                None
            },
        },
        Wire::Vote(vote) => Payload::Vote {
            pre: vote.pre,
            last: id(vote.last_term, vote.last_index)?,
            transfer: vote.transfer,
        },
        Wire::VoteResponse(answer) => Payload::VoteResponse {
            pre: answer.pre,
            reject: answer.reject,
            committed: id(answer.committed_term, answer.committed_index)?,
        },
        Wire::Propose(propose) => {
            let unplaced = |entry: proto::Entry| {
                Ok(Entry {
                    kind: kind(entry.kind)?,
                    data: own(entry.data),
                    ..Entry::default()
                })
            };
            let entries = propose.entries.into_iter().map(unplaced);
            Payload::Propose {
                entries: entries.collect::<Result<_, CodecError>>()?,
            }
        }
        Wire::TransferLeader(_) => Payload::TransferLeader,
        Wire::TimeoutNow(_) => Payload::TimeoutNow,
        Wire::ReadIndex(read) => Payload::ReadIndex {
            context: own(read.context),
        },
        Wire::ReadIndexResponse(answer) => Payload::ReadIndexResponse {
            index: index(answer.index)?,
            context: own(answer.context),
        },
        Wire::Snapshot(meta) => {
            let meta = decode_meta(meta)?;
            Payload::Snapshot(Box::new(Snapshot {
                meta,
                data: Bytes::new(),
            }))
        }
        Wire::Tombstone(_) => return Err(CodecError("a tombstone is no message of a replica")),
    })
}

fn decode_entries(wire: Vec<proto::Entry>, prev: EntryId) -> Result<Vec<Entry>, CodecError> {
    let mut last = prev;
    let mut entries = Vec::with_capacity(wire.len());
    for entry in wire {
        let term = term(entry.term)?;
        if term < last.term {
            return Err(CodecError("terms of entries fall"));
        }
        last = EntryId {
            term,
            index: last.index.next(),
        };
        let (kind, data) = (kind(entry.kind)?, own(entry.data));
        entries.push(Entry {
            term,
            index: last.index,
            kind,
            data,
        });
    }
    Ok(entries)
}

fn decode_meta(meta: proto::SnapshotMeta) -> Result<SnapshotMeta, CodecError> {
    let ids = |ids: Vec<u64>| ids.into_iter().map(replica).collect::<Result<_, _>>();
    Ok(SnapshotMeta {
        last: id(meta.last_term, meta.last_index)?,
        conf_state: ConfState {
            voters: ids(meta.voters)?,
            learners: ids(meta.learners)?,
            voters_outgoing: ids(meta.voters_outgoing)?,
            learners_next: ids(meta.learners_next)?,
            auto_leave: meta.auto_leave,
        },
    })
}

fn own(data: Bytes) -> Bytes {
    if data.len() < COPY_BELOW {
        Bytes::copy_from_slice(&data)
    } else {
        data
    }
}

fn kind(kind: u32) -> Result<EntryKind, CodecError> {
    match kind {
        0 => Ok(EntryKind::Normal),
        1 => Ok(EntryKind::ConfChange),
        2 => Ok(EntryKind::ConfChangeV2),
        3 => Ok(EntryKind::Host),
        _ => Err(CodecError("unknown kind of entry")),
    }
}

fn replica(id: u64) -> Result<ReplicaId, CodecError> {
    if id == 0 {
        Err(CodecError("replica id 0"))
    } else {
        Ok(ReplicaId(id))
    }
}

fn term(term: u64) -> Result<Term, CodecError> {
    if term < NUMBER_MAX {
        Ok(Term(term))
    } else {
        Err(CodecError("impossible term"))
    }
}

fn index(index: u64) -> Result<Index, CodecError> {
    if index < NUMBER_MAX {
        Ok(Index(index))
    } else {
        Err(CodecError("impossible index"))
    }
}

fn id(entry_term: u64, entry_index: u64) -> Result<EntryId, CodecError> {
    Ok(EntryId {
        term: term(entry_term)?,
        index: index(entry_index)?,
    })
}

/// Bytes that a message takes in a frame, about.
pub(crate) fn size(message: &GroupMessage) -> usize {
    const FIXED: usize = 48;
    let (Body::Raft(message) | Body::Sleep(message)) = &message.body else {
        return FIXED;
    };
    match &message.payload {
        Payload::Append { entries, .. } | Payload::Propose { entries } => {
            FIXED
                + entries
                    .iter()
                    .map(|entry| entry.data.len() + 16)
                    .sum::<usize>()
        }
        Payload::ReadIndex { context } | Payload::ReadIndexResponse { context, .. } => {
            FIXED + context.len()
        }
        _ => FIXED,
    }
}

#[cfg(test)]
mod tests;
