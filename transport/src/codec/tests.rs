//! What goes through the gate comes out as it was, and what must not pass does not.

use proptest::prelude::*;
use prost::Message as _;

use super::*;

fn message(payload: Payload) -> GroupMessage {
    let (from, to, term) = (ReplicaId(1), ReplicaId(2), Term(9));
    let body = Body::Raft(Message {
        from,
        to,
        term,
        payload,
    });
    GroupMessage {
        group: GroupId(7),
        body,
    }
}

fn append() -> GroupMessage {
    let entry = |index, data: &'static [u8]| Entry {
        term: Term(9),
        index: Index(index),
        kind: EntryKind::Normal,
        data: Bytes::from_static(data),
    };
    let entries = vec![entry(6, b"a"), entry(7, &[1; 300])];
    message(Payload::Append {
        prev: EntryId::new(8, 5),
        entries,
        commit: Index(5),
    })
}

fn all() -> Vec<GroupMessage> {
    let context = Bytes::from_static(b"ctx");
    let reject = Some(RejectHint {
        index: Index(3),
        term: Term(2),
    });
    let heartbeat = Payload::Heartbeat {
        commit: Index(4),
        read: 5,
    };
    let GroupMessage {
        group,
        body: Body::Raft(sleepy),
    } = message(heartbeat.clone())
    else {
        unreachable!("made so above")
    };
    let tombstone = Body::Tombstone {
        replica: ReplicaId(3),
        next_replica: ReplicaId(4),
    };
    vec![
        message(heartbeat),
        GroupMessage {
            group,
            body: Body::Sleep(sleepy),
        },
        message(Payload::HeartbeatResponse { read: 5 }),
        append(),
        message(Payload::AppendResponse {
            index: Index(7),
            reject: None,
        }),
        message(Payload::AppendResponse {
            index: Index(7),
            reject,
        }),
        message(Payload::Vote {
            pre: true,
            last: EntryId::new(1, 2),
            transfer: false,
        }),
        message(Payload::VoteResponse {
            pre: false,
            reject: true,
            committed: EntryId::new(3, 4),
        }),
        message(Payload::TransferLeader),
        message(Payload::TimeoutNow),
        message(Payload::ReadIndex {
            context: context.clone(),
        }),
        message(Payload::ReadIndexResponse {
            index: Index(3),
            context,
        }),
        GroupMessage {
            group,
            body: tombstone,
        },
    ]
}

#[test]
fn everything_comes_back_as_it_was() {
    let mut frame = proto::Frame::default();
    for message in all() {
        encode(&mut frame, message);
    }
    let bytes = frame.encode_to_vec();
    let frame = proto::Frame::decode(&bytes[..]).unwrap();
    assert_eq!(decode(frame), Ok(all()));
}

#[test]
fn golden_bytes_of_a_heartbeat() {
    let mut frame = proto::Frame::default();
    encode(
        &mut frame,
        message(Payload::Heartbeat {
            commit: Index(4),
            read: 5,
        }),
    );
    let golden: &[u8] = &[
        0x1a, 0x15, 0x0a, 1, 7, 0x12, 1, 1, 0x1a, 1, 2, 0x22, 1, 9, 0x2a, 1, 4, 0x32, 1, 5, 0x3a,
        1, 0,
    ];
    assert_eq!(frame.encode_to_vec(), golden);
}

#[test]
fn what_contradicts_itself_is_refused() {
    let beats = proto::Beats {
        group: vec![1, 2],
        ..Default::default()
    };
    let frame = proto::Frame {
        heartbeats: Some(beats),
        ..Default::default()
    };
    assert_eq!(
        decode(frame),
        Err(CodecError("columns of different lengths"))
    );

    let mut frame = proto::Frame::default();
    encode(&mut frame, append());
    if let Some(Wire::Append(append)) = &mut frame.messages[0].payload {
        append.entries[1].term = 1;
    }
    assert_eq!(decode(frame), Err(CodecError("terms of entries fall")));

    let alone = proto::Envelope {
        from: 1,
        to: 2,
        payload: Some(Wire::Snapshot(proto::SnapshotMeta::default())),
        ..Default::default()
    };
    let frame = proto::Frame {
        messages: vec![alone],
        ..Default::default()
    };
    assert_eq!(
        decode(frame),
        Err(CodecError("a snapshot outside of its own stream"))
    );

    let nobody = proto::Envelope {
        to: 1,
        ..Default::default()
    };
    let frame = proto::Frame {
        messages: vec![nobody],
        ..Default::default()
    };
    assert_eq!(decode(frame), Err(CodecError("no payload")));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(frame) = proto::Frame::decode(&bytes[..]) {
            let _ = decode(frame);
        }
    }

    #[test]
    fn damaged_frames_never_panic(at in 0usize..400, with in any::<u8>()) {
        let mut frame = proto::Frame::default();
        for message in all() {
            encode(&mut frame, message);
        }
        let mut bytes = frame.encode_to_vec();
        let at = at % bytes.len();
        bytes[at] = with;
        if let Ok(frame) = proto::Frame::decode(&bytes[..]) {
            let _ = decode(frame);
        }
    }
}

/// A frame that is right but for one envelope.
fn frame_of(envelope: proto::Envelope) -> proto::Frame {
    proto::Frame {
        messages: vec![envelope],
        ..Default::default()
    }
}

fn envelope(payload: Wire) -> proto::Envelope {
    proto::Envelope {
        group: 7,
        from: 1,
        to: 2,
        term: 9,
        payload: Some(payload),
    }
}

#[test]
fn numbers_and_names_that_cannot_be_are_refused() {
    let vote = |vote: proto::Vote| envelope(Wire::Vote(vote));
    let entry = |entry: proto::Entry| {
        let entries = vec![entry];
        envelope(Wire::Append(proto::Append {
            entries,
            ..Default::default()
        }))
    };
    let with = |change: fn(&mut proto::Envelope)| {
        let mut envelope = vote(proto::Vote::default());
        change(&mut envelope);
        envelope
    };
    let cases = [
        (with(|e| e.from = 0), "replica id 0"),
        (with(|e| e.to = 0), "replica id 0"),
        (with(|e| e.term = NUMBER_MAX), "impossible term"),
        (
            vote(proto::Vote {
                last_index: u64::MAX,
                ..Default::default()
            }),
            "impossible index",
        ),
        (
            vote(proto::Vote {
                last_term: u64::MAX,
                ..Default::default()
            }),
            "impossible term",
        ),
        (
            entry(proto::Entry {
                kind: 4,
                ..Default::default()
            }),
            "unknown kind of entry",
        ),
        (
            entry(proto::Entry {
                term: NUMBER_MAX,
                ..Default::default()
            }),
            "impossible term",
        ),
    ];
    for (envelope, why) in cases {
        assert_eq!(decode(frame_of(envelope)), Err(CodecError(why)));
    }
    let hello = Some(proto::Hello::default());
    let frame = proto::Frame {
        hello,
        ..Default::default()
    };
    assert_eq!(decode(frame), Err(CodecError("a second hello")));
}

#[test]
fn every_column_must_be_as_long_as_the_others() {
    let whole = {
        let mut frame = proto::Frame::default();
        for message in all() {
            encode(&mut frame, message);
        }
        frame
    };
    assert!(decode(whole.clone()).is_ok());
    let cuts: [fn(&mut proto::Beats); 7] = [
        |beats| beats.group.clear(),
        |beats| beats.from.clear(),
        |beats| beats.to.clear(),
        |beats| beats.term.clear(),
        |beats| beats.read.clear(),
        |beats| beats.commit.clear(),
        |beats| beats.sleep.clear(),
    ];
    let different = Err(CodecError("columns of different lengths"));
    for cut in cuts {
        let mut frame = whole.clone();
        cut(frame.heartbeats.get_or_insert_default());
        assert_eq!(decode(frame), different);
    }
    // Answers have neither of the last two.
    for cut in &cuts[..5] {
        let mut frame = whole.clone();
        cut(frame.responses.get_or_insert_default());
        assert_eq!(decode(frame), different);
    }
    let mut frame = whole;
    frame.responses.get_or_insert_default().commit.push(1);
    assert_eq!(decode(frame), different);
}

fn bytes_of(most: usize) -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..most).prop_map(Bytes::from)
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0..10u64, 0..NUMBER_MAX]
}

fn entries() -> impl Strategy<Value = (EntryId, Vec<Entry>)> {
    let kind = prop::sample::select(vec![
        EntryKind::Normal,
        EntryKind::ConfChange,
        EntryKind::ConfChangeV2,
    ]);
    let steps = prop::collection::vec((0..3u64, kind, bytes_of(600)), 0..5);
    (0..1u64 << 61, 0..1u64 << 61, steps).prop_map(|(term, index, steps)| {
        let mut last = EntryId::new(term, index);
        let prev = last;
        let entries = steps.into_iter().map(|(step, kind, data)| {
            last = EntryId {
                term: Term(last.term.0 + step),
                index: last.index.next(),
            };
            Entry {
                term: last.term,
                index: last.index,
                kind,
                data,
            }
        });
        (prev, entries.collect())
    })
}

fn payload() -> impl Strategy<Value = Payload> {
    let id = || (number(), number()).prop_map(|(term, index)| EntryId::new(term, index));
    let hint = || {
        let hint = (number(), number()).prop_map(|(index, term)| RejectHint {
            index: Index(index),
            term: Term(term),
        });
        prop::option::of(hint)
    };
    let proposals = prop::collection::vec(bytes_of(600), 0..5).prop_map(|all| {
        let entry = |data| Entry {
            data,
            ..Entry::default()
        };
        all.into_iter().map(entry).collect()
    });
    prop_oneof![
        (number(), any::<u64>()).prop_map(|(commit, read)| Payload::Heartbeat {
            commit: Index(commit),
            read
        }),
        any::<u64>().prop_map(|read| Payload::HeartbeatResponse { read }),
        (entries(), number()).prop_map(|((prev, entries), commit)| Payload::Append {
            prev,
            entries,
            commit: Index(commit),
        }),
        (number(), hint()).prop_map(|(index, reject)| Payload::AppendResponse {
            index: Index(index),
            reject
        }),
        (any::<bool>(), id(), any::<bool>()).prop_map(|(pre, last, transfer)| Payload::Vote {
            pre,
            last,
            transfer
        }),
        (any::<bool>(), any::<bool>(), id()).prop_map(|(pre, reject, committed)| {
            Payload::VoteResponse {
                pre,
                reject,
                committed,
            }
        }),
        proposals.prop_map(|entries| Payload::Propose { entries }),
        Just(Payload::TransferLeader),
        Just(Payload::TimeoutNow),
        bytes_of(600).prop_map(|context| Payload::ReadIndex { context }),
        (number(), bytes_of(600)).prop_map(|(index, context)| Payload::ReadIndexResponse {
            index: Index(index),
            context,
        }),
    ]
}

fn any_message() -> impl Strategy<Value = GroupMessage> {
    let replica = || (1..=u64::MAX).prop_map(ReplicaId);
    let raft = (replica(), replica(), number(), payload(), any::<bool>()).prop_map(
        |(from, to, term, payload, sleep)| {
            let heartbeat = matches!(payload, Payload::Heartbeat { .. });
            let message = Message {
                from,
                to,
                term: Term(term),
                payload,
            };
            if heartbeat && sleep {
                Body::Sleep(message)
            } else {
                Body::Raft(message)
            }
        },
    );
    let tombstone = (replica(), any::<u64>()).prop_map(|(replica, next_replica)| Body::Tombstone {
        replica,
        next_replica: ReplicaId(next_replica),
    });
    (any::<u64>(), prop_oneof![9 => raft, 1 => tombstone]).prop_map(|(group, body)| GroupMessage {
        group: GroupId(group),
        body,
    })
}

/// Which of the three orders that a lane keeps a message is in.
fn place(message: &GroupMessage) -> u8 {
    match &message.body {
        Body::Raft(Message {
            payload: Payload::HeartbeatResponse { .. },
            ..
        }) => 1,
        Body::Sleep(_)
        | Body::Raft(Message {
            payload: Payload::Heartbeat { .. },
            ..
        }) => 0,
        Body::Raft(_) | Body::Tombstone { .. } => 2,
    }
}

proptest! {
    #[test]
    fn any_messages_come_back_unaltered_in_the_promised_order(
        messages in prop::collection::vec(any_message(), 0..20),
    ) {
        let mut frame = proto::Frame::default();
        for message in messages.clone() {
            encode(&mut frame, message);
        }
        let bytes = frame.encode_to_vec();
        let estimate: usize = messages.iter().map(size).sum();
        prop_assert!(bytes.len() <= 2 * estimate, "{} bytes, {estimate} estimated", bytes.len());
        let mut expected = messages;
        expected.sort_by_key(place);
        let back = decode(proto::Frame::decode(&bytes[..]).unwrap());
        prop_assert_eq!(back, Ok(expected));
    }

    #[test]
    fn a_cut_frame_never_panics_and_never_invents(at in 0usize..400) {
        let mut frame = proto::Frame::default();
        for message in all() {
            encode(&mut frame, message);
        }
        let bytes = frame.encode_to_vec();
        let cut = &bytes[..at % bytes.len()];
        let decoded = proto::Frame::decode(cut).ok().and_then(|frame| decode(frame).ok());
        if let Some(messages) = decoded {
            // A cut between two messages cannot be told from a shorter frame; gRPC counts the
            // bytes.
            prop_assert!(messages.iter().all(|message| all().contains(message)));
        }
    }
}
