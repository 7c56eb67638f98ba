//! One command at a time, and random ones on a whole key space.

use std::collections::BTreeMap;

use polyraft_core::{ConfState, ReplicaId};
use proptest::prelude::*;

use super::*;
use crate::group::{Member, StoreId};

fn key(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn range(start: &str, end: &str) -> KeyRange {
    KeyRange {
        start: key(start),
        end: (!end.is_empty()).then(|| key(end)),
    }
}

fn group(number: u64, start: &str, end: &str) -> AppliedState {
    let members = (1..=3).map(|n| Member {
        replica: ReplicaId(n),
        store: StoreId(n),
    });
    AppliedState {
        last: EntryId::new(1, 9),
        conf_state: Arc::new(ConfState {
            voters: (1..=3).map(ReplicaId).collect(),
            ..ConfState::default()
        }),
        descriptor: Arc::new(GroupDescriptor {
            group: GroupId(number),
            range: Some(range(start, end)),
            members: members.collect(),
            next_replica: ReplicaId(4),
            epoch: Epoch {
                membership: 2,
                range: 5,
            },
            border: 0,
            frozen: None,
        }),
    }
}

fn edited(state: &AppliedState, edit: impl FnOnce(&mut GroupDescriptor)) -> AppliedState {
    let mut state = state.clone();
    edit(Arc::make_mut(&mut state.descriptor));
    state
}

fn piece(start: &str, group: u64) -> SplitPiece {
    SplitPiece {
        start: key(start),
        group: GroupId(group),
    }
}

fn split(state: &AppliedState, pieces: Vec<SplitPiece>) -> RangeCommand {
    RangeCommand::Split {
        expected: state.descriptor.epoch,
        pieces,
    }
}

fn freeze(state: &AppliedState, into: &AppliedState) -> RangeCommand {
    RangeCommand::Freeze {
        expected: state.descriptor.epoch,
        into: into.descriptor.group,
        target: into.descriptor.epoch,
    }
}

fn merge(left: &AppliedState, right: &AppliedState) -> RangeCommand {
    RangeCommand::Merge {
        expected: left.descriptor.epoch,
        right: GroupDescriptor::clone(&right.descriptor),
    }
}

const AT: EntryId = EntryId::new(3, 10);

fn changed(state: &AppliedState, command: &RangeCommand) -> AppliedState {
    match state.after(command, AT) {
        Ok(RangeOutcome::Changed(state)) => state,
        other => panic!("{command:?} made {other:?}"),
    }
}

#[test]
fn a_split_keeps_the_left_part_and_makes_groups_of_the_rest() {
    let whole = group(1, "b", "y");
    let command = split(&whole, vec![piece("f", 7), piece("m", 8)]);
    let Ok(RangeOutcome::Split { left, rights }) = whole.after(&command, AT) else {
        panic!("it is possible");
    };
    let ranges: Vec<_> = std::iter::once(&left)
        .chain(&rights)
        .map(|state| state.descriptor.range.clone().expect("it has one"))
        .collect();
    assert_eq!(ranges, [range("b", "f"), range("f", "m"), range("m", "y")]);
    assert_eq!((left.last, left.descriptor.group), (AT, GroupId(1)));
    for (right, number) in rights.iter().zip([7, 8]) {
        assert_eq!(right.last, BOOTSTRAP);
        assert_eq!(right.descriptor.group, GroupId(number));
        assert_eq!(right.descriptor.members, whole.descriptor.members);
        assert_eq!(right.descriptor.next_replica, ReplicaId(4));
        assert_eq!(right.conf_state, whole.conf_state);
        assert_eq!(right.descriptor.epoch, left.descriptor.epoch);
    }
    let grown = Epoch {
        membership: 2,
        range: 6,
    };
    assert_eq!(left.descriptor.epoch, grown);
}

#[test]
fn the_last_range_is_split_too() {
    let command = split(&group(1, "", ""), vec![piece("m", 2)]);
    let Ok(RangeOutcome::Split { rights, .. }) = group(1, "", "").after(&command, AT) else {
        panic!("it is possible");
    };
    assert_eq!(rights[0].descriptor.range, Some(range("m", "")));
}

#[test]
fn pieces_that_make_no_sense_are_refused() {
    let whole = group(1, "b", "y");
    for pieces in [
        vec![],
        vec![piece("b", 2)],
        vec![piece("a", 2)],
        vec![piece("y", 2)],
        vec![piece("m", 2), piece("m", 3)],
        vec![piece("m", 2), piece("c", 3)],
        vec![piece("m", 1)],
        vec![piece("c", 2), piece("m", 2)],
        (0..=SPLIT_PIECES_MAX as u64)
            .map(|n| piece(&format!("c{n:05}"), n + 2))
            .collect(),
    ] {
        let refusal = whole.after(&split(&whole, pieces.clone()), AT);
        let refused = matches!(refusal, Err(RangeRefusal::Pieces(_)));
        assert!(refused, "{pieces:?}: {refusal:?}");
    }
}

#[test]
fn nothing_happens_to_a_group_that_has_changed_since() {
    let state = group(1, "a", "m");
    let right = changed(&group(2, "m", ""), &freeze(&group(2, "m", ""), &state));
    let commands = [
        split(&state, vec![piece("c", 3)]),
        freeze(&state, &right),
        RangeCommand::Fence {
            expected: state.descriptor.epoch,
        },
        merge(&state, &right),
    ];
    for later in [
        edited(&state, |descriptor| descriptor.epoch.membership += 1),
        edited(&state, |descriptor| descriptor.epoch.range += 1),
    ] {
        let current = later.descriptor.epoch;
        for command in &commands {
            assert!(state.after(command, AT).is_ok(), "{command:?}");
            let refused = later.after(command, AT);
            assert_eq!(refused, Err(RangeRefusal::StaleEpoch { current }));
        }
    }
}

#[test]
fn a_frozen_group_can_only_be_thawed() {
    let left = group(1, "a", "m");
    let state = group(2, "m", "");
    let frozen = changed(&state, &freeze(&state, &left));
    let expected = frozen.descriptor.epoch;
    assert_eq!(expected.range, state.descriptor.epoch.range + 1);
    let since = frozen.descriptor.frozen.expect("it is frozen");
    let into = GroupId(1);
    assert_eq!(
        since,
        Frozen {
            into,
            target: left.descriptor.epoch,
            at: AT
        }
    );
    for command in [
        split(&frozen, vec![piece("p", 3)]),
        freeze(&frozen, &left),
        RangeCommand::Fence { expected },
    ] {
        assert_eq!(
            frozen.after(&command, AT),
            Err(RangeRefusal::Frozen { into })
        );
    }
    let thawed = changed(&frozen, &RangeCommand::Thaw { expected });
    assert_eq!(thawed.descriptor.frozen, None);
    assert_eq!(thawed.descriptor.epoch.range, expected.range + 1);
    let again = RangeCommand::Thaw {
        expected: thawed.descriptor.epoch,
    };
    assert_eq!(thawed.after(&again, AT), Err(RangeRefusal::NotFrozen));
}

#[test]
fn a_merge_wants_neighbours_on_the_same_stores() {
    let left = group(1, "a", "m");
    let right = edited(&group(2, "m", "t"), |right| right.epoch.range = 40);
    let frozen = changed(&right, &freeze(&right, &left));
    let Ok(RangeOutcome::Merged { left: whole, .. }) = left.after(&merge(&left, &frozen), AT)
    else {
        panic!("it is possible");
    };
    assert_eq!(whole.descriptor.range, Some(range("a", "t")));
    assert_eq!(whole.descriptor.epoch.range, 42);
    assert_eq!(whole.descriptor.members, left.descriptor.members);
    for unfit in [
        right,
        edited(&frozen, |right| right.range = None),
        edited(&frozen, |right| right.range = Some(range("n", "t"))),
        edited(&frozen, |right| {
            right.frozen.as_mut().expect("it is").into = GroupId(9);
        }),
        edited(&frozen, |right| {
            right.frozen.as_mut().expect("it is").target.range += 1;
        }),
        edited(&frozen, |right| right.members.truncate(2)),
        edited(&frozen, |right| right.members[0].store = StoreId(9)),
    ] {
        let refused = left.after(&merge(&left, &unfit), AT);
        let wrong = matches!(refused, Err(RangeRefusal::Neighbours(_)));
        assert!(wrong, "{unfit:?}: {refused:?}");
    }
}

#[test]
fn changing_members_and_learners_stand_in_the_way() {
    let with = |edit: fn(&mut ConfState)| {
        let mut state = group(1, "a", "m");
        edit(Arc::make_mut(&mut state.conf_state));
        state
    };
    let joint = with(|conf| conf.voters_outgoing = vec![ReplicaId(1)]);
    let fence = RangeCommand::Fence {
        expected: joint.descriptor.epoch,
    };
    for command in [
        split(&joint, vec![piece("c", 3)]),
        freeze(&joint, &group(2, "m", "")),
    ] {
        assert_eq!(joint.after(&command, AT), Err(RangeRefusal::Joint));
    }
    // Somebody may have frozen its neighbour, and wants to undo that.
    assert!(matches!(
        joint.after(&fence, AT),
        Ok(RangeOutcome::Changed(_))
    ));
    let learning = with(|conf| conf.learners = vec![ReplicaId(3)]);
    let right = group(2, "m", "");
    let frozen = changed(&right, &freeze(&right, &learning));
    for command in [freeze(&learning, &right), merge(&learning, &frozen)] {
        assert_eq!(learning.after(&command, AT), Err(RangeRefusal::Learners));
    }
    assert!(
        learning
            .after(&split(&learning, vec![piece("c", 3)]), AT)
            .is_ok()
    );
    let none = edited(&group(1, "", ""), |descriptor| descriptor.range = None);
    let fence = RangeCommand::Fence {
        expected: none.descriptor.epoch,
    };
    assert_eq!(none.after(&fence, AT), Err(RangeRefusal::NoRange));
}

#[test]
fn an_inspection_changes_nothing() {
    let state = group(1, "a", "m");
    let expected = state.descriptor.epoch;
    let after = changed(&state, &RangeCommand::Inspect { expected, id: 7 });
    assert_eq!((&after.descriptor, after.last), (&state.descriptor, AT));
    let stale = RangeCommand::Inspect {
        expected: Epoch::default(),
        id: 7,
    };
    assert_eq!(
        state.after(&stale, AT),
        Err(RangeRefusal::StaleEpoch { current: expected })
    );
}

#[test]
fn generations_end() {
    let last = edited(&group(1, "a", "m"), |descriptor| {
        descriptor.epoch.range = u64::MAX;
    });
    let fence = RangeCommand::Fence {
        expected: last.descriptor.epoch,
    };
    assert_eq!(last.after(&fence, AT), Err(RangeRefusal::Exhausted));
}

/// All groups of a key space, and who has owned each of a few keys so far.
struct Space {
    groups: BTreeMap<u64, AppliedState>,
    /// By key: the generation of its present owner.
    owners: BTreeMap<u8, u64>,
    next_group: u64,
    /// Commands, by group, that may come (again) at any time.
    late: Vec<(u64, RangeCommand)>,
}

impl Space {
    fn new() -> Self {
        Self {
            groups: BTreeMap::from([(1, group(1, "", ""))]),
            owners: (0..=u8::MAX).map(|key| (key, 5)).collect(),
            next_group: 2,
            late: Vec::new(),
        }
    }

    fn neighbour(&self, left: u64) -> Option<u64> {
        let end = self.groups[&left].descriptor.range.as_ref()?.end.clone()?;
        let begins = |state: &AppliedState| {
            state.descriptor.range.as_ref().map(|range| &range.start) == Some(&end)
        };
        self.groups
            .iter()
            .find(|(_, state)| begins(state))
            .map(|(number, _)| *number)
    }

    fn perform(&mut self, number: u64, command: &RangeCommand) {
        let Some(state) = self.groups.get(&number) else {
            return;
        };
        let before = state.descriptor.epoch.range;
        match state.after(command, EntryId::new(2, state.last.index.0 + 1)) {
            Err(_) => return,
            Ok(RangeOutcome::Changed(after)) => {
                assert!(after.descriptor.epoch.range > before);
                self.groups.insert(number, after);
            }
            Ok(RangeOutcome::Split { left, rights }) => {
                for state in rights.into_iter().chain([left]) {
                    self.groups.insert(state.descriptor.group.0, state);
                }
            }
            Ok(RangeOutcome::Merged { left, right }) => {
                // Whoever sees the neighbour's freeze sees it as it is: it can only be thawed, and
                // only by those who know that this merge has no effect.
                let gone = self.groups.remove(&right.group.0).expect("it is there");
                assert_eq!(*gone.descriptor, right);
                self.groups.insert(number, left);
            }
        }
        self.check();
    }

    /// Every key has one owner, and owners follow each other by generation.
    fn check(&mut self) {
        for (key, last) in &mut self.owners {
            let owns = |state: &&AppliedState| {
                let range = state.descriptor.range.as_ref();
                range.is_some_and(|range| range.contains(&[*key]))
            };
            let owners: Vec<_> = self.groups.values().filter(owns).collect();
            assert_eq!(owners.len(), 1, "owners of {key}");
            let generation = owners[0].descriptor.epoch.range;
            assert!(generation >= *last, "{key} went back");
            *last = generation;
        }
    }
}

proptest! {
    /// Commands decided on at any time and applied at any later one, in any order, also twice.
    #[test]
    fn a_key_space_stays_one_whatever_comes_when(
        steps in proptest::collection::vec((0u8..8, any::<prop::sample::Index>(), any::<u8>()), 1..120),
    ) {
        let mut space = Space::new();
        space.check();
        for (kind, which, byte) in steps {
            let numbers: Vec<u64> = space.groups.keys().copied().collect();
            let number = numbers[which.index(numbers.len())];
            let state = space.groups[&number].clone();
            let expected = state.descriptor.epoch;
            let neighbour = space.neighbour(number);
            let command = match (kind, neighbour) {
                (0 | 1, _) => {
                    let start = Bytes::copy_from_slice(&[byte]);
                    let piece = SplitPiece { start, group: GroupId(space.next_group) };
                    space.next_group += 1;
                    Some((number, split(&state, vec![piece])))
                }
                (2, Some(right)) => {
                    let right = space.groups[&right].clone();
                    Some((right.descriptor.group.0, freeze(&right, &state)))
                }
                (3, Some(right)) => Some((number, merge(&state, &space.groups[&right]))),
                (4, _) => Some((number, RangeCommand::Fence { expected })),
                (5, _) => match state.descriptor.frozen {
                    // The rule of a thaw: the left neighbour can never apply the merge any more.
                    Some(frozen) => {
                        let left = space.groups.get(&frozen.into.0);
                        let fenced = left.is_none_or(|left| left.descriptor.epoch != frozen.target);
                        fenced.then_some((number, RangeCommand::Thaw { expected }))
                    }
                    None => None,
                },
                (6, _) if !space.late.is_empty() => {
                    let late = space.late[which.index(space.late.len())].clone();
                    space.perform(late.0, &late.1);
                    None
                }
                _ => None,
            };
            if let Some((number, command)) = command {
                space.late.push((number, command.clone()));
                if byte % 2 == 0 {
                    space.perform(number, &command);
                }
            }
        }
    }
}
