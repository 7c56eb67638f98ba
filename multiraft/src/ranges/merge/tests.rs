//! Several who drive and undo merges at once, over groups that split and change meanwhile, some of whose
//! replicas have not heard that they are merged.

use std::collections::BTreeMap;
use std::sync::Arc;

use polyraft_core::{ConfState, ReplicaId};
use proptest::prelude::*;

use super::*;
use crate::group::{AppliedState, Epoch, KeyRange, Member, StoreId};
use crate::ranges::{RangeOutcome, SplitPiece};

const LEFT: GroupId = GroupId(1);
const RIGHT: GroupId = GroupId(2);
const LAST: GroupId = GroupId(3);

fn group(number: GroupId, start: &'static str, end: Option<&'static str>) -> AppliedState {
    AppliedState {
        last: EntryId::new(1, 2),
        conf_state: Arc::new(ConfState {
            voters: vec![ReplicaId(1)],
            ..ConfState::default()
        }),
        descriptor: Arc::new(GroupDescriptor {
            group: number,
            range: Some(KeyRange {
                start: start.into(),
                end: end.map(Bytes::from),
            }),
            members: vec![Member {
                replica: ReplicaId(1),
                store: StoreId(1),
            }],
            next_replica: ReplicaId(2),
            ..GroupDescriptor::default()
        }),
    }
}

fn start(state: &AppliedState) -> &Bytes {
    &state.descriptor.range.as_ref().expect("all have one").start
}

struct Groups {
    live: BTreeMap<GroupId, AppliedState>,
    /// Those that were merged, as a quorum that has not heard of it still sees them.
    ghosts: BTreeMap<GroupId, AppliedState>,
    /// What may be applied at any time.
    proposed: Vec<(GroupId, RangeCommand)>,
    next_group: u64,
    merges: u32,
    thaws: u32,
    /// Merges whose border was drawn again.
    redrawn: u32,
}

impl Groups {
    fn new() -> Self {
        let live = [
            group(LEFT, "a", Some("g")),
            group(RIGHT, "g", Some("m")),
            group(LAST, "m", None),
        ];
        Self {
            live: live.map(|state| (state.descriptor.group, state)).into(),
            ghosts: BTreeMap::new(),
            proposed: Vec::new(),
            next_group: 4,
            merges: 0,
            thaws: 0,
            redrawn: 0,
        }
    }

    fn apply(&mut self, number: GroupId, command: &RangeCommand) {
        if let Some(ghost) = self.ghosts.get(&number) {
            // Its keys are somebody else's.
            let after = ghost.after(command, EntryId::new(1, ghost.last.index.0 + 1));
            assert!(after.is_err(), "{ghost:?} serves again by {command:?}");
            return;
        }
        let Some(state) = self.live.get(&number) else {
            return;
        };
        match state.after(command, EntryId::new(1, state.last.index.0 + 1)) {
            Err(_) => {}
            Ok(RangeOutcome::Changed(after)) => {
                self.thaws += u32::from(matches!(command, RangeCommand::Thaw { .. }));
                self.live.insert(number, after);
            }
            Ok(RangeOutcome::Split { left, rights }) => {
                let again = |state: &AppliedState| {
                    let same = |ghost: &AppliedState| start(ghost) == start(state);
                    self.ghosts.values().any(same)
                };
                self.redrawn += u32::from(rights.iter().any(again));
                for state in rights.into_iter().chain([left]) {
                    self.live.insert(state.descriptor.group, state);
                }
            }
            Ok(RangeOutcome::Merged { left, right }) => {
                // It is still there and frozen, exactly as it was when it was seen.
                let gone = self.live.remove(&right.group);
                let gone = gone.expect("keys are not taken over twice");
                assert_eq!(*gone.descriptor, right, "it serves, or changed, meanwhile");
                self.merges += 1;
                self.ghosts.insert(right.group, gone);
                self.live.insert(number, left);
            }
        }
    }

    /// Its replica goes back and forth between two stores.
    fn change_members(&mut self, number: GroupId) {
        if let Some(state) = self.live.get_mut(&number)
            && state.descriptor.frozen.is_none()
        {
            let descriptor = Arc::make_mut(&mut state.descriptor);
            descriptor.epoch.membership += 1;
            let store = &mut descriptor.members[0].store;
            store.0 = 3 - store.0;
        }
    }

    /// Splits whichever group has the key within.
    fn split(&mut self, at: &'static str) {
        let at = Bytes::from(at);
        let within = |state: &&AppliedState| {
            let range = state.descriptor.range.as_ref();
            range.is_some_and(|range| range.start < at && range.contains(&at))
        };
        let Some(state) = self.live.values().find(within) else {
            return;
        };
        let group = GroupId(self.next_group);
        self.next_group += 1;
        let command = RangeCommand::Split {
            expected: state.descriptor.epoch,
            pieces: vec![SplitPiece { start: at, group }],
        };
        self.apply(state.descriptor.group, &command);
    }

    fn neighbours(&self) -> Vec<Merging> {
        let mut all: Vec<&AppliedState> = self.live.values().collect();
        all.sort_by_key(|state| start(state));
        let pair = |pair: &[&AppliedState]| {
            let [left, right] = [pair[0], pair[1]];
            let (one, two) = (left.descriptor.group, right.descriptor.group);
            Merging::new(one, two, start(right).clone())
        };
        all.windows(2).map(pair).collect()
    }

    /// Everybody who says that he has the keys before `key`.
    fn before(&self, key: &Bytes, ghosts: bool) -> Vec<&AppliedState> {
        let fits = |state: &&AppliedState| {
            let range = state.descriptor.range.as_ref().expect("all have one");
            range.end.as_ref() == Some(key) || range.start < *key && range.contains(key)
        };
        let ghosts = self.ghosts.values().filter(|_| ghosts);
        self.live.values().chain(ghosts).filter(fits).collect()
    }

    /// Takes one step; what is proposed may be applied at any later time, or at once.
    fn drive(&mut self, merging: &mut Merging, luck: u8, ghosts: bool) {
        let seen =
            |state: &AppliedState| MergeAnswer::Seen(GroupDescriptor::clone(&state.descriptor));
        let answer = match merging.next() {
            MergeStep::Done(_) => return,
            _ if luck == 0 => MergeAnswer::Failed,
            MergeStep::Look(number) => {
                let ghost = self.ghosts.get(&number).filter(|_| ghosts);
                match self.live.get(&number).or(ghost) {
                    Some(state) => seen(state),
                    None => MergeAnswer::Gone,
                }
            }
            MergeStep::LookBefore(key) => {
                let found = self.before(&key, ghosts);
                match found.get(usize::from(luck) % found.len().max(1)) {
                    Some(state) => seen(state),
                    None => MergeAnswer::Failed,
                }
            }
            MergeStep::Propose { group, command } => {
                self.proposed.push((group, command.clone()));
                if luck.is_multiple_of(2) {
                    MergeAnswer::Failed
                } else {
                    self.apply(group, &command);
                    MergeAnswer::Done
                }
            }
            MergeStep::Settle { .. } => MergeAnswer::Done,
        };
        merging.on(answer);
    }
}

fn new() -> Merging {
    Merging::new(LEFT, RIGHT, Bytes::from("g"))
}

fn finish(groups: &mut Groups, merging: &mut Merging) -> Result<GroupDescriptor, MergeFailure> {
    for _ in 0..50 {
        if let MergeStep::Done(result) = merging.next() {
            return result;
        }
        groups.drive(merging, 1, false);
    }
    panic!("it goes round in circles: {merging:?}");
}

#[test]
fn two_neighbours_become_one() {
    let mut groups = Groups::new();
    let merged = finish(&mut groups, &mut new()).expect("nothing is in the way");
    assert_eq!(merged.range.expect("it has one").end, Some("m".into()));
    assert_eq!((groups.live.len(), groups.merges), (2, 1));
    // Whoever comes later finds it done.
    assert!(finish(&mut groups, &mut new()).is_ok());
}

#[test]
fn what_is_given_up_serves_again() {
    let mut groups = Groups::new();
    let mut merging = new();
    // Up to the freeze.
    for _ in 0..3 {
        groups.drive(&mut merging, 1, false);
    }
    assert!(groups.live[&RIGHT].descriptor.frozen.is_some());
    merging.give_up();
    let result = finish(&mut groups, &mut merging);
    assert_eq!(result, Err(MergeFailure::GivenUp));
    assert_eq!((groups.live.len(), groups.thaws), (3, 1));
    assert_eq!(groups.live[&RIGHT].descriptor.frozen, None);
}

/// Whoever gives up while he looks still waits for what he looked at: it is no answer to another look.
#[test]
fn a_look_under_way_stays_what_it_is() {
    let mut groups = Groups::new();
    let mut merging = new();
    for _ in 0..4 {
        groups.drive(&mut merging, 1, false);
    }
    assert!(matches!(merging.next(), MergeStep::LookBefore(_)));
    merging.give_up();
    let left = GroupDescriptor::clone(&groups.live[&LEFT].descriptor);
    merging.on(MergeAnswer::Seen(left));
    let MergeStep::Propose { group, command } = merging.next() else {
        panic!("{merging:?}");
    };
    assert_eq!(group, LEFT);
    assert!(matches!(command, RangeCommand::Fence { .. }), "{command:?}");
    // Not what was about to happen.
    merging.give_up();
    assert_eq!(merging.next(), MergeStep::Look(RIGHT));
    let result = finish(&mut groups, &mut merging);
    assert_eq!(result, Err(MergeFailure::GivenUp));
}

#[test]
fn groups_on_different_stores_are_not_merged() {
    let mut groups = Groups::new();
    groups.change_members(RIGHT);
    let differ = Err(MergeFailure::Members {
        left: vec![1],
        right: vec![2],
    });
    assert_eq!(finish(&mut groups, &mut new()), differ);
    assert_eq!(groups.live[&RIGHT].descriptor.frozen, None);
    groups.change_members(RIGHT);
    // Frozen by somebody who did not look, or before they came apart.
    let (left, right) = (&groups.live[&LEFT], &groups.live[&RIGHT]);
    let freeze = RangeCommand::Freeze {
        expected: right.descriptor.epoch,
        into: LEFT,
        target: Epoch {
            membership: left.descriptor.epoch.membership + 1,
            ..left.descriptor.epoch
        },
    };
    groups.apply(RIGHT, &freeze);
    groups.change_members(LEFT);
    let differ = Err(MergeFailure::Members {
        left: vec![2],
        right: vec![1],
    });
    assert_eq!(finish(&mut groups, &mut new()), differ);
    assert_eq!((groups.merges, groups.thaws), (0, 1));
}

#[test]
fn others_see_a_frozen_group_and_finish() {
    let mut groups = Groups::new();
    let mut dead = new();
    for _ in 0..3 {
        groups.drive(&mut dead, 1, false);
    }
    let right = GroupDescriptor::clone(&groups.live[&RIGHT].descriptor);
    let mut merging = Merging::of_frozen(&right).expect("it is frozen");
    assert!(finish(&mut groups, &mut merging).is_ok());
    assert!(Merging::of_frozen(&group(RIGHT, "g", None).descriptor).is_none());
}

#[test]
fn strangers_do_not_merge() {
    let mut groups = Groups::new();
    let mut merging = Merging::new(LAST, RIGHT, Bytes::from("g"));
    let result = finish(&mut groups, &mut merging);
    assert_eq!(result, Err(MergeFailure::NotNeighbours));
    groups.live.remove(&RIGHT);
    let result = finish(&mut groups, &mut new());
    assert_eq!(result, Err(MergeFailure::Gone(RIGHT)));
}

/// Whoever is wrong about where the right group begins sees that one's own neighbours, which tell nothing of
/// its left one.
#[test]
fn who_names_another_first_key_thaws_nothing() {
    let mut groups = Groups::new();
    let mut first = new();
    for _ in 0..3 {
        groups.drive(&mut first, 1, false);
    }
    assert!(groups.live[&RIGHT].descriptor.frozen.is_some());
    let mut wrong = Merging::new(LAST, RIGHT, Bytes::from("m"));
    let result = finish(&mut groups, &mut wrong);
    assert_eq!(result, Err(MergeFailure::NotNeighbours));
    assert!(groups.live[&RIGHT].descriptor.frozen.is_some());
    assert!(finish(&mut groups, &mut first).is_ok());
}

/// Merged, and split at the same key again; a quorum of the merged group knows nothing of either.
#[test]
fn a_border_that_was_drawn_again_is_not_the_old_one() {
    let mut groups = Groups::new();
    assert!(finish(&mut groups, &mut new()).is_ok());
    groups.split("g");
    assert_eq!(groups.redrawn, 1);
    let ghost = GroupDescriptor::clone(&groups.ghosts[&RIGHT].descriptor);
    let mut merging = Merging::of_frozen(&ghost).expect("it is frozen");
    for _ in 0..10 {
        groups.drive(&mut merging, 2, true);
    }
    assert_eq!(
        merging.next(),
        MergeStep::Done(Err(MergeFailure::Gone(RIGHT)))
    );
}

/// What happened in all runs of the test below: rare things must have.
static SEEN: [std::sync::atomic::AtomicU32; 3] =
    [const { std::sync::atomic::AtomicU32::new(0) }; 3];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Some drive merges, some give up, what they propose comes late or twice, and the groups change
    /// beside it. The keys have one owner at any time (`Groups::apply`), and in the end nobody is frozen.
    #[test]
    fn whoever_drives_it_when(
        steps in proptest::collection::vec((0u8..13, any::<u8>()), 1..250),
    ) {
        let mut groups = Groups::new();
        let mut merges = [new(), new(), Merging::new(RIGHT, LAST, Bytes::from("m"))];
        for (kind, luck) in steps {
            let some = usize::from(luck) % merges.len();
            match kind {
                0..=5 => groups.drive(&mut merges[some], luck / 4, luck % 4 == 0),
                6 if !groups.proposed.is_empty() => {
                    let at = usize::from(luck) % groups.proposed.len();
                    let (number, command) = groups.proposed[at].clone();
                    groups.apply(number, &command);
                }
                7 if luck < 60 => merges[some].give_up(),
                8 if luck < 40 => groups.change_members(GroupId(u64::from(luck) % groups.next_group)),
                9 => groups.split(if luck % 2 == 0 { "g" } else { "m" }),
                10 => {
                    let neighbours = groups.neighbours();
                    if let Some(pair) = neighbours.get(usize::from(luck) % neighbours.len().max(1)) {
                        merges[some] = pair.clone();
                    }
                }
                11 | 12 => {
                    let all = groups.live.values().chain(groups.ghosts.values());
                    let frozen: Vec<_> =
                        all.filter_map(|state| Merging::of_frozen(&state.descriptor)).collect();
                    if let Some(merging) = frozen.get(usize::from(luck / 2) % frozen.len().max(1)) {
                        merges[some] = merging.clone();
                        if kind == 12 {
                            merges[some].give_up();
                        }
                    }
                }
                _ => {}
            }
        }
        for (seen, count) in SEEN.iter().zip([groups.merges, groups.thaws, groups.redrawn]) {
            seen.fetch_add(count, std::sync::atomic::Ordering::Relaxed);
        }
        for _ in 0..groups.live.len() {
            let live = groups.live.values();
            let frozen: Vec<_> = live.filter_map(|s| Merging::of_frozen(&s.descriptor)).collect();
            for mut merging in frozen {
                merging.give_up();
                let _ = finish(&mut groups, &mut merging);
            }
        }
        for state in groups.live.values() {
            prop_assert!(state.descriptor.frozen.is_none());
        }
    }
}

#[test]
fn the_random_ones_reach_what_is_rare() {
    whoever_drives_it_when();
    for (seen, what) in SEEN.iter().zip(["merges", "thaws", "borders drawn again"]) {
        let count = seen.load(std::sync::atomic::Ordering::Relaxed);
        assert!(count > 100, "{what}: {count}");
    }
}
