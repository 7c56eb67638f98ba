//! Arbitrary bytes where commands, replies, and what a store keeps of others are read.

use bytes::Bytes;
use polyraft_fuzz::{Fuzz, Meter, Source};

use crate::directory::command as directory;
use crate::instances::Instances;
use crate::kv::{Command, Pair, Reply, decode_reply};
use crate::peers::{decode_addresses, encode_addresses, parse_peer};

#[global_allocator]
static METER: Meter = Meter;

fn pairs(source: &mut Source<'_>) -> Vec<Pair> {
    let bytes = |source: &mut Source<'_>| Bytes::copy_from_slice(source.bytes(20));
    let count = source.below(4);
    let pair = |source: &mut Source<'_>| {
        let key = bytes(source);
        (key, source.flag().then(|| bytes(source)))
    };
    (0..count).map(|_| pair(source)).collect()
}

fn command(source: &mut Source<'_>) -> Command {
    Command {
        conditions: pairs(source),
        mutations: pairs(source),
    }
}

/// Every replica must read a command alike: what is understood means those bytes and no others.
#[test]
fn commands_from_bytes() {
    let mut fuzz = Fuzz::new("server::commands")
        .runs(60_000)
        .memory_max(1 << 20);
    for seed in 0..4u8 {
        let bytes: Vec<u8> = (0..60).map(|at| seed.wrapping_mul(37) ^ at).collect();
        fuzz = fuzz.example(command(&mut Source::new(&bytes)).encode());
    }
    fuzz.check(|input| {
        let bytes = Bytes::copy_from_slice(input);
        if let Some(command) = Command::decode(&bytes) {
            assert_eq!(command.encode(), bytes);
            let named = command.conditions.len() + command.mutations.len();
            assert_eq!(command.keys().count(), named);
        }
        if let Some(reply) = Reply::decode(input) {
            assert_eq!(reply.encode(), bytes);
        }
        let _ = decode_reply(&bytes);
        let command = command(&mut Source::new(input));
        assert_eq!(Command::decode(&command.encode()), Some(command));
    });
}

/// The same of the directory's commands.
#[test]
fn commands_of_the_directory_from_bytes() {
    use crate::directory::entry::{Entry, Limits, StoreState};
    let entry = Entry {
        group: 7,
        range: Some(polyraft_multiraft::KeyRange {
            start: Bytes::from_static(b"a"),
            end: Some(Bytes::from_static(b"m")),
        }),
        members: vec![(1, 1), (2, 2)],
        ..Entry::default()
    };
    let alone = Entry {
        range: None,
        ..entry.clone()
    };
    let (groups, store, address) = (8, 3, "host:1".to_owned());
    let examples = [
        directory::Command::Begin {
            groups,
            stores: vec![(1, address.clone())],
        },
        directory::Command::Publish(vec![entry, alone]),
        directory::Command::Destroyed(vec![1, 2]),
        directory::Command::Allocate {
            token: directory::Token::default(),
            of: directory::Numbers::Stores,
            count: 9,
        },
        directory::Command::Store { store, address },
        directory::Command::Heard {
            store,
            silent_since: 5,
        },
        directory::Command::SetState {
            store,
            state: StoreState::Dead,
        },
        directory::Command::Settings {
            paused: Some(true),
            limits: Some(Limits::default()),
        },
    ];
    let mut fuzz = Fuzz::new("server::directory::commands")
        .runs(30_000)
        .memory_max(1 << 20);
    for example in examples {
        let bytes = example.encode();
        assert_eq!(directory::Command::decode(&bytes), Some(example));
        // What is of another version, or goes on, is none.
        let longer: Bytes = [&*bytes, &[0]].concat().into();
        assert_eq!(directory::Command::decode(&longer), None);
        fuzz = fuzz.example(bytes);
    }
    fuzz.check(|input| {
        let bytes = Bytes::copy_from_slice(input);
        if let Some(command) = directory::Command::decode(&bytes) {
            assert_eq!(command.encode(), bytes);
        }
        if let Some(reply) = directory::Reply::decode(&bytes) {
            assert_eq!(reply.encode(), bytes);
        }
        // No command of one kind of group is one of the other.
        let both =
            Command::decode(&bytes).is_some() && directory::Command::decode(&bytes).is_some();
        assert!(!both);
    });
}

/// What a store has kept of the others is read at its start: nothing in it may stop that.
#[test]
fn what_is_kept_of_other_stores_from_bytes() {
    let fuzz = Fuzz::new("server::peers").runs(30_000).memory_max(1 << 20);
    let fuzz = fuzz.example(*b"1=127.0.0.1:7101\n22=[::1]:7102\n3=a.example:7");
    let mut kept = vec![1];
    kept.extend((1..=9u64).flat_map(u64::to_be_bytes));
    fuzz.example(kept).check(|input| {
        let addresses = decode_addresses(input);
        assert!(addresses.keys().all(|store| *store > 0));
        assert_eq!(decode_addresses(&encode_addresses(&addresses)), addresses);
        if let Ok((store, address)) = parse_peer(&String::from_utf8_lossy(input)) {
            assert_eq!(
                parse_peer(&format!("{store}={address}")),
                Ok((store, address))
            );
        }
        if let Some(instances) = Instances::decode(input) {
            let bytes = instances.encode();
            assert!(bytes.len() <= input.len(), "a store twice counts once");
            let again = Instances::decode(&bytes).expect("what is kept can be read");
            assert_eq!(again.encode(), bytes);
        }
    });
}
