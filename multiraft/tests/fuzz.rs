//! Arbitrary bytes where descriptors, applied states and range commands are read: what is
//! understood means those bytes and no others, and nothing needs more memory than it has bytes for.

use std::sync::Arc;

use bytes::Bytes;
use polyraft_core::{ConfState, EntryId, ReplicaId};
use polyraft_fuzz::{Fuzz, Meter, Source};
use polyraft_multiraft::{
    AppliedState, Epoch, Frozen, GroupDescriptor, GroupId, KeyRange, Member, RangeCommand,
    SplitPiece, StoreId,
};

#[global_allocator]
static METER: Meter = Meter;

fn key(source: &mut Source<'_>) -> Bytes {
    Bytes::copy_from_slice(source.bytes(20))
}

fn replicas(source: &mut Source<'_>) -> Vec<ReplicaId> {
    let count = source.below(5);
    (0..count).map(|_| ReplicaId(source.number())).collect()
}

fn descriptor(source: &mut Source<'_>) -> GroupDescriptor {
    let range = source.flag().then(|| KeyRange {
        start: key(source),
        end: source.flag().then(|| key(source)),
    });
    let count = source.below(5);
    let member = |source: &mut Source<'_>| Member {
        replica: ReplicaId(source.number()),
        store: StoreId(source.number()),
    };
    GroupDescriptor {
        group: GroupId(source.number()),
        range,
        members: (0..count).map(|_| member(source)).collect(),
        next_replica: ReplicaId(source.number()),
        epoch: epoch(source),
        border: source.below(3) as u64,
        frozen: source.flag().then(|| Frozen {
            into: GroupId(source.number()),
            target: epoch(source),
            at: EntryId::new(source.number(), source.number()),
        }),
    }
}

fn epoch(source: &mut Source<'_>) -> Epoch {
    Epoch {
        membership: source.number(),
        range: source.number(),
    }
}

fn command(source: &mut Source<'_>) -> RangeCommand {
    let expected = epoch(source);
    match source.below(6) {
        0 => {
            let count = source.below(5);
            let piece = |source: &mut Source<'_>| SplitPiece {
                start: key(source),
                group: GroupId(source.number()),
            };
            let pieces = (0..count).map(|_| piece(source)).collect();
            RangeCommand::Split { expected, pieces }
        }
        1 => RangeCommand::Freeze {
            expected,
            into: GroupId(source.number()),
            target: epoch(source),
        },
        2 => RangeCommand::Thaw { expected },
        3 => RangeCommand::Fence { expected },
        4 => RangeCommand::Inspect {
            expected,
            id: source.number(),
        },
        _ => RangeCommand::Merge {
            expected,
            right: descriptor(source),
        },
    }
}

fn state(source: &mut Source<'_>) -> AppliedState {
    let conf_state = ConfState {
        voters: replicas(source),
        learners: replicas(source),
        voters_outgoing: replicas(source),
        learners_next: replicas(source),
        auto_leave: source.flag(),
    };
    AppliedState {
        last: EntryId::new(source.number(), source.number()),
        conf_state: Arc::new(conf_state),
        descriptor: Arc::new(descriptor(source)),
    }
}

#[test]
fn states_come_back_as_they_were() {
    let fuzz = Fuzz::new("multiraft::states").runs(60_000).length_max(256);
    fuzz.check(|input| {
        let state = state(&mut Source::new(input));
        assert_eq!(AppliedState::decode(&state.encode()), Ok(state.clone()));
        let descriptor = GroupDescriptor::clone(&state.descriptor);
        let bytes = descriptor.encode();
        assert_eq!(GroupDescriptor::decode(&bytes), Ok(descriptor));
        let command = command(&mut Source::new(input));
        assert_eq!(RangeCommand::decode(&command.encode()), Ok(command));
    });
}

#[test]
fn states_from_bytes() {
    let mut fuzz = Fuzz::new("multiraft::bytes")
        .runs(120_000)
        .memory_max(1 << 20);
    for seed in 0..8u8 {
        let bytes: Vec<u8> = (0..120).map(|at| seed.wrapping_mul(31) ^ at).collect();
        let state = state(&mut Source::new(&bytes));
        fuzz = fuzz
            .example(state.encode())
            .example(state.descriptor.encode())
            .example(command(&mut Source::new(&bytes)).encode());
    }
    fuzz.check(|input| {
        if let Ok(state) = AppliedState::decode(input) {
            assert_eq!(state.encode(), input);
        }
        if let Ok(descriptor) = GroupDescriptor::decode(input) {
            assert_eq!(descriptor.encode(), input);
        }
        if let Ok(command) = RangeCommand::decode(input) {
            assert_eq!(command.encode(), input);
        }
    });
}
