//! Arbitrary input against a replica: any messages and requests in any order do not stop it, and the
//! worst of hosts makes it refuse, not panic. Lengths and fields come from bytes; see `polyraft_fuzz`.

mod common;

#[path = "fuzz/plausible.rs"]
mod plausible;
#[path = "fuzz/site.rs"]
mod site;

use std::cell::Cell;

use bytes::Bytes;
use polyraft_core::{
    ConfChange, ConfChangeKind, ConfChangeV2, ConfState, MembershipError, ReplicaId, Transition,
};
use polyraft_fuzz::{Fuzz, Meter, Source};
use site::{Honesty, Reach, Site};

#[global_allocator]
static METER: Meter = Meter;

/// Whoever sends lies, in all fields or in some; the host does its duty. Only a contradiction of what
/// is committed may stop the replica.
#[test]
fn messages_in_any_order() {
    let fuzz = Fuzz::new("core::messages")
        .runs(36_000)
        .length_max(2048)
        .memory_max(8 << 20);
    gets_everywhere(&fuzz, Honesty::Host);
}

/// Runs the target, and looks whether it got to every kind of state.
fn gets_everywhere(fuzz: &Fuzz, honesty: Honesty) {
    let reach = Cell::new(Reach::default());
    let runs = fuzz.check(|input| reach.set(reach.get().or(Site::new(input, honesty).run())));
    let reach = reach.get();
    let wanted = match honesty {
        // It takes luck to be told of two histories.
        Honesty::Host => Reach {
            stopped: reach.stopped,
            ..Reach::ALL
        },
        Honesty::Nobody => Reach::ALL,
    };
    assert!(runs < 1000 || reach == wanted, "{reach:?}");
}

/// The host lies, too: receipts, applied indexes, fetched ranges and changes that nobody asked for.
#[test]
fn a_host_that_breaks_every_duty() {
    let fuzz = Fuzz::new("core::host")
        .runs(36_000)
        .length_max(2048)
        .memory_max(8 << 20);
    gets_everywhere(&fuzz, Honesty::Nobody);
}

#[test]
fn changes_of_membership_from_bytes() {
    let change = ConfChangeV2 {
        transition: Transition::JointExplicit,
        changes: vec![
            (ConfChangeKind::AddVoter, ReplicaId(4)),
            (ConfChangeKind::Remove, ReplicaId(1)),
        ],
        context: Bytes::from_static(b"context"),
    };
    let one = ConfChange {
        kind: ConfChangeKind::AddLearner,
        replica: ReplicaId(7),
        context: Bytes::from_static(b"context"),
    };
    let fuzz = Fuzz::new("core::changes").runs(180_000).memory_max(1 << 20);
    let fuzz = fuzz.example(change.encode()).example(one.encode());
    fuzz.check(|input| {
        let input = Bytes::copy_from_slice(input);
        // What is understood means those bytes and no others.
        match ConfChange::decode(&input) {
            Ok(change) => {
                assert_eq!(change.encode(), input);
                let _: ConfChangeV2 = change.into_v2();
            }
            Err(error) => assert!(matches!(error, MembershipError::Malformed(_))),
        }
        match ConfChangeV2::decode(&input) {
            Ok(change) if change == ConfChangeV2::default() => {}
            Ok(change) => assert_eq!(change.encode(), input),
            Err(error) => assert!(matches!(error, MembershipError::Malformed(_))),
        }
    });
}

/// Any changes to any configuration: what comes out is a configuration that can be taken up again.
#[test]
fn configurations_after_any_changes() {
    let fuzz = Fuzz::new("core::configurations").runs(60_000);
    fuzz.length_max(128).check(|input| {
        let mut source = Source::new(input);
        let mut state = ConfState {
            voters: vec![ReplicaId(1), ReplicaId(2), ReplicaId(3)],
            ..ConfState::default()
        };
        if source.flag() {
            state = plausible::conf_state(&mut source);
        }
        while !source.is_empty() {
            let change = plausible::change(&mut source);
            let Ok(next) = state.apply(&change) else {
                continue;
            };
            // Behind one that was taken there is always a next one to be had.
            let same = next.apply(&ConfChangeV2 {
                transition: Transition::Auto,
                changes: vec![(ConfChangeKind::Update, ReplicaId(1))],
                context: Bytes::new(),
            });
            match same {
                Ok(same) => assert_eq!(same, next, "an update changes nothing"),
                Err(error) => assert!(
                    !next.voters_outgoing.is_empty(),
                    "{error}: {next:?} after {change:?}"
                ),
            }
            state = next;
        }
    });
}
