//! What every state machine must keep of its promises when ranges change: data of groups that split
//! and merge.

use std::sync::Arc;

use bytes::Bytes;

use super::SeamFault;
use super::state_machine::{
    DataSubject, created, descriptor, found, item, key, live, show_range, state, transfer, turn,
};
use crate::env::{ApplyItem, RangeChange, SplitRight, StateMachine, StateMachineError};
use crate::group::{AppliedState, GroupDescriptor, GroupId, KeyRange};
use crate::worker::BOOTSTRAP;

/// The suite of splits; `new` makes a state machine without any group.
pub fn splits<S: DataSubject>(new: impl Fn() -> S) {
    a_split_divides_keys_and_commands(&new());
    a_split_comes_and_goes_as_a_whole(&new());
    a_group_that_is_not_to_be_here_leaves_nothing(&new());
    groups_of_a_split_live_apart(&new(), &new());
    a_group_that_has_split_can_be_restored(&new(), &new());
    without_room_nothing_is_split(&new());
}

/// The suite of merges.
pub fn merges<S: DataSubject>(new: impl Fn() -> S) {
    a_merge_unites(&new());
    a_merge_comes_and_goes_as_a_whole(&new());
    what_was_split_can_be_merged_and_split_again(&new());
    a_snapshot_takes_its_neighbours_with_it(&new(), &new());
    what_a_snapshot_takes_and_does_not_keep_is_gone(&new(), &new());
}

/// Group 1 has three parts here: up to `k`, up to `p`, and the rest.
fn part(group: u64, from: &str, to: Option<&str>) -> GroupDescriptor {
    let whole = descriptor(1).range.unwrap_or_default();
    let range = KeyRange {
        start: match from {
            "" => whole.start,
            from => key(1, from),
        },
        end: to.map(|to| key(1, to)).or(whole.end),
    };
    let mut part = descriptor(1);
    part.group = GroupId(group);
    part.range = Some(range);
    part.epoch.range = 1;
    part
}

fn left() -> GroupDescriptor {
    part(1, "", Some("k"))
}

fn middle() -> GroupDescriptor {
    part(8, "k", Some("p"))
}

fn right() -> GroupDescriptor {
    part(9, "p", None)
}

/// The state of a group at an index.
fn at(descriptor: GroupDescriptor, index: u64) -> AppliedState {
    AppliedState {
        descriptor: Arc::new(descriptor),
        ..state(1, index)
    }
}

fn begun(descriptor: GroupDescriptor) -> AppliedState {
    AppliedState {
        last: BOOTSTRAP,
        ..at(descriptor, 2)
    }
}

/// Group 1 divides into its parts, after some commands.
fn split<S: DataSubject>(s: &S, after: u64, puts: &[(&str, &str)], keep: [bool; 2]) -> ApplyItem {
    let rights = [middle(), right()].into_iter().zip(keep);
    let rights = rights.map(|(descriptor, keep)| SplitRight {
        state: begun(descriptor),
        keep,
    });
    ApplyItem {
        state: at(left(), after + puts.len() as u64 + 1),
        membership_changed: true,
        range_change: Some(RangeChange::Split {
            rights: rights.collect(),
        }),
        ..item(s, 1, after, puts)
    }
}

/// Applies puts to a part of group 1, whose last applied index was `after`.
fn turn_of<S: DataSubject>(
    s: &S,
    machine: &S::Machine,
    part: &GroupDescriptor,
    after: u64,
    puts: &[(&str, &str)],
) {
    let mut items = [ApplyItem {
        group: part.group,
        state: at(part.clone(), after + puts.len() as u64),
        ..item(s, 1, after, puts)
    }];
    machine.apply(&mut items).expect("there is room");
    assert_eq!(items[0].replies.len(), puts.len());
}

fn merge<S: DataSubject>(
    s: &S,
    after: u64,
    into: GroupDescriptor,
    gone: AppliedState,
) -> ApplyItem {
    let (group, state) = (into.group, at(into, after + 1));
    ApplyItem {
        group,
        state,
        membership_changed: true,
        range_change: Some(RangeChange::Merge { right: gone }),
        ..item(s, 1, after, &[])
    }
}

/// What the parts hold.
fn parts<S: DataSubject>(s: &S, machine: &S::Machine) -> [String; 3] {
    [left(), middle(), right()].map(|part| show_range(s, machine, &part))
}

/// Group 1 with a key in each part, and its neighbour.
fn filled<S: DataSubject>(s: &S) -> S::Machine {
    let machine = created(s, &[1, 2]);
    turn(s, &machine, 1, 2, &[("a", "1"), ("k", "2"), ("p", "3")]);
    turn(s, &machine, 2, 2, &[("a", "neighbour")]);
    machine
}

/// After indexes 3 to 5: two commands, and the split at 8.
fn divided<S: DataSubject>(s: &S, keep: [bool; 2]) -> S::Machine {
    let machine = filled(s);
    let mut items = [split(s, 5, &[("b", "4"), ("p", "5")], keep)];
    machine.apply(&mut items).expect("there is room");
    let expected: [&[u8]; 2] = [b"", b"3"];
    assert_eq!(items[0].replies, expected, "commands come before the split");
    machine
}

fn reopened<S: DataSubject>(s: &S, machine: S::Machine) -> (S::Machine, Vec<AppliedState>) {
    drop(machine);
    s.crash();
    let machine = s.open();
    let states = found::<S>(&machine);
    (machine, states)
}

fn a_split_divides_keys_and_commands<S: DataSubject>(s: &S) {
    let machine = divided(s, [true, true]);
    assert_eq!(parts(s, &machine), ["a=1 b=4", "k=2", "p=5"]);
    let states = [1, 8, 9].map(|group| live::<S>(&machine, group));
    let expected = [at(left(), 8), begun(middle()), begun(right())];
    assert_eq!(states, expected.map(Some));
    turn_of(s, &machine, &left(), 8, &[("c", "6")]);
    turn_of(s, &machine, &middle(), 2, &[("k", "7"), ("m", "8")]);
    turn_of(s, &machine, &right(), 2, &[("q", "9")]);
    assert_eq!(parts(s, &machine), ["a=1 b=4 c=6", "k=7 m=8", "p=5 q=9"]);
    machine.flush().expect("there is room");
    let (machine, states) = reopened(s, machine);
    let expected = [at(left(), 9), state(2, 3), at(middle(), 4), at(right(), 3)];
    assert_eq!(states, expected);
    assert_eq!(parts(s, &machine), ["a=1 b=4 c=6", "k=7 m=8", "p=5 q=9"]);
}

fn a_split_comes_and_goes_as_a_whole<S: DataSubject>(s: &S) {
    let machine = filled(s);
    machine.flush().expect("there is room");
    let mut items = [split(s, 5, &[("b", "4")], [true, true])];
    machine.apply(&mut items).expect("there is room");
    let (machine, states) = reopened(s, machine);
    if states.len() == 2 {
        assert_eq!(states, [state(1, 5), state(2, 3)], "nothing of it is there");
        assert_eq!(parts(s, &machine), ["a=1", "k=2", "p=3"]);
        assert_eq!(live::<S>(&machine, 8), None);
        // The host applies it again.
        let mut items = [split(s, 5, &[("b", "4")], [true, true])];
        machine.apply(&mut items).expect("there is room");
        machine.flush().expect("there is room");
        let (machine, states) = reopened(s, machine);
        whole(s, &machine, &states);
    } else {
        whole(s, &machine, &states);
    }
}

fn whole<S: DataSubject>(s: &S, machine: &S::Machine, states: &[AppliedState]) {
    let expected = [at(left(), 7), state(2, 3), begun(middle()), begun(right())];
    assert_eq!(states, expected);
    assert_eq!(parts(s, machine), ["a=1 b=4", "k=2", "p=3"]);
}

fn a_group_that_is_not_to_be_here_leaves_nothing<S: DataSubject>(s: &S) {
    let machine = divided(s, [false, true]);
    assert_eq!(parts(s, &machine), ["a=1 b=4", "", "p=5"]);
    assert_eq!(live::<S>(&machine, 8), None);
    machine.flush().expect("there is room");
    let (machine, states) = reopened(s, machine);
    assert_eq!(states, [at(left(), 8), state(2, 3), begun(right())]);
    assert_eq!(parts(s, &machine), ["a=1 b=4", "", "p=5"]);
    // A later replica of it may come.
    let first = begun(middle());
    machine.create(&first).expect("there is room");
    turn_of(s, &machine, &middle(), 2, &[("k", "7")]);
    assert_eq!(parts(s, &machine), ["a=1 b=4", "k=7", "p=5"]);
}

fn groups_of_a_split_live_apart<S: DataSubject>(one: &S, two: &S) {
    let machine = divided(one, [true, true]);
    machine.flush().expect("there is room");
    machine.destroy(&middle()).expect("there is room");
    assert_eq!(parts(one, &machine), ["a=1 b=4", "", "p=5"]);
    let other = created(two, &[2]);
    for group in [1, 9] {
        let (staged, _) = transfer::<S>(&machine, &other, group, 100);
        assert_eq!(staged.subsumes, []);
        other.restore(&staged).expect("there is room");
    }
    assert_eq!(parts(two, &other), ["a=1 b=4", "", "p=5"]);
    machine.destroy(&left()).expect("there is room");
    assert_eq!(parts(one, &machine), ["", "", "p=5"]);
    let (machine, states) = reopened(one, machine);
    assert_eq!(states, [state(2, 3), begun(right())]);
    assert_eq!(parts(one, &machine), ["", "", "p=5"]);
}

/// A replica that missed the split is given a snapshot from behind it: what it does not own any more goes.
fn a_group_that_has_split_can_be_restored<S: DataSubject>(one: &S, two: &S) {
    let (from, to) = (divided(one, [true, true]), filled(two));
    let (staged, _) = transfer::<S>(&from, &to, 1, 100);
    to.restore(&staged).expect("there is room");
    assert_eq!(parts(two, &to), ["a=1 b=4", "", ""], "only its own keys");
    let (staged, _) = transfer::<S>(&from, &to, 9, 100);
    to.restore(&staged).expect("there is room");
    let (to, states) = reopened(two, to);
    assert!(states.contains(&at(left(), 8)) && states.contains(&begun(right())));
    assert_eq!(parts(two, &to), ["a=1 b=4", "", "p=5"]);
}

fn without_room_nothing_is_split<S: DataSubject>(s: &S) {
    let machine = filled(s);
    if !s.set_fault(Some(SeamFault::Full)) {
        return;
    }
    let mut items = [split(s, 5, &[("b", "4")], [true, false])];
    let full = machine.apply(&mut items);
    assert!(matches!(full, Err(StateMachineError::DiskFull)), "{full:?}");
    assert_eq!(parts(s, &machine), ["a=1", "k=2", "p=3"]);
    assert_eq!(live::<S>(&machine, 8), None);
    s.set_fault(None);
    machine.apply(&mut items).expect("there is room again");
    assert_eq!(items[0].replies, [b"".as_slice()]);
    assert_eq!(parts(s, &machine), ["a=1 b=4", "k=2", ""]);
}

/// Left and middle become one.
fn united() -> GroupDescriptor {
    let mut united = part(1, "", Some("p"));
    united.epoch.range = 2;
    united
}

fn a_merge_unites<S: DataSubject>(s: &S) {
    let machine = divided(s, [true, true]);
    turn_of(s, &machine, &middle(), 2, &[("m", "6")]);
    let mut items = [merge(s, 8, united(), at(middle(), 3))];
    machine.apply(&mut items).expect("there is room");
    assert_eq!(live::<S>(&machine, 8), None, "nothing under its number");
    assert_eq!(live::<S>(&machine, 1), Some(at(united(), 9)));
    assert_eq!(show_range(s, &machine, &united()), "a=1 b=4 k=2 m=6");
    turn_of(s, &machine, &united(), 9, &[("m", "7")]);
    machine.flush().expect("there is room");
    let (machine, states) = reopened(s, machine);
    assert_eq!(states, [at(united(), 10), state(2, 3), begun(right())]);
    assert_eq!(machine.merged().ok(), Some(vec![GroupId(8)]));
    machine.forget(GroupId(8)).expect("there is room");
    machine.flush().expect("there is room");
    let (machine, _) = reopened(s, machine);
    assert_eq!(machine.merged().ok(), Some(vec![]));
    assert_eq!(show_range(s, &machine, &united()), "a=1 b=4 k=2 m=7");
    let (machine, _) = reopened(s, {
        machine.destroy(&united()).expect("there is room");
        machine
    });
    assert_eq!(parts(s, &machine), ["", "", "p=5"]);
}

fn a_merge_comes_and_goes_as_a_whole<S: DataSubject>(s: &S) {
    let machine = divided(s, [true, true]);
    machine.flush().expect("there is room");
    let mut items = [merge(s, 8, united(), begun(middle()))];
    machine.apply(&mut items).expect("there is room");
    let (machine, states) = reopened(s, machine);
    if states.len() == 4 {
        assert!(states.contains(&begun(middle())) && states.contains(&at(left(), 8)));
        assert_eq!(
            machine.merged().ok(),
            Some(vec![]),
            "nothing of it is there"
        );
        machine.apply(&mut items).expect("there is room");
        machine.flush().expect("there is room");
    }
    let (machine, states) = reopened(s, machine);
    assert_eq!(states, [at(united(), 9), state(2, 3), begun(right())]);
    assert_eq!(machine.merged().ok(), Some(vec![GroupId(8)]));
    assert_eq!(show_range(s, &machine, &united()), "a=1 b=4 k=2");
}

fn what_was_split_can_be_merged_and_split_again<S: DataSubject>(s: &S) {
    let machine = divided(s, [true, true]);
    let mut items = [merge(s, 8, united(), begun(middle()))];
    machine.apply(&mut items).expect("there is room");
    let mut last = part(7, "k", Some("p"));
    last.epoch.range = 3;
    let mut kept = left();
    kept.epoch.range = 3;
    let again = ApplyItem {
        state: at(kept, 10),
        membership_changed: true,
        range_change: Some(RangeChange::Split {
            rights: vec![SplitRight {
                state: begun(last.clone()),
                keep: true,
            }],
        }),
        ..item(s, 1, 9, &[])
    };
    machine.apply(&mut [again]).expect("there is room");
    turn_of(s, &machine, &last, 2, &[("m", "6")]);
    assert_eq!(parts(s, &machine), ["a=1 b=4", "k=2 m=6", "p=5"]);
    let groups: Vec<_> = [1, 7, 8, 9]
        .map(|group| live::<S>(&machine, group).is_some())
        .to_vec();
    assert_eq!(groups, [true, true, false, true]);
}

/// The same from behind another split, by which a part of the neighbour's keys belongs to a third group.
fn what_a_snapshot_takes_and_does_not_keep_is_gone<S: DataSubject>(one: &S, two: &S) {
    let (from, to) = (divided(one, [true, true]), divided(two, [true, true]));
    turn_of(two, &to, &middle(), 2, &[("n", "old")]);
    let mut items = [merge(one, 8, united(), begun(middle()))];
    from.apply(&mut items).expect("there is room");
    let (mut kept, mut third) = (part(1, "", Some("m")), part(7, "m", Some("p")));
    (kept.epoch.range, third.epoch.range) = (3, 3);
    let again = ApplyItem {
        state: at(kept.clone(), 10),
        membership_changed: true,
        range_change: Some(RangeChange::Split {
            rights: vec![SplitRight {
                state: begun(third.clone()),
                keep: true,
            }],
        }),
        ..item(one, 1, 9, &[])
    };
    from.apply(&mut [again]).expect("there is room");
    let (mut staged, _) = transfer::<S>(&from, &to, 1, 100);
    staged.subsumes = vec![middle()];
    to.restore(&staged).expect("there is room");
    assert_eq!(show_range(two, &to, &kept), "a=1 b=4 k=2");
    assert_eq!(show_range(two, &to, &third), "", "nobody has it here now");
    let (to, states) = reopened(two, to);
    assert!(states.contains(&at(kept, 10)), "{states:?}");
    assert_eq!(show_range(two, &to, &third), "");
}

/// The left one's replica here missed the merge, and is given a snapshot from behind it.
fn a_snapshot_takes_its_neighbours_with_it<S: DataSubject>(one: &S, two: &S) {
    let (from, to) = (divided(one, [true, true]), divided(two, [true, true]));
    let mut items = [merge(one, 8, united(), begun(middle()))];
    from.apply(&mut items).expect("there is room");
    turn_of(one, &from, &united(), 9, &[("n", "6")]);
    let (mut staged, _) = transfer::<S>(&from, &to, 1, 100);
    staged.subsumes = vec![middle()];
    to.restore(&staged).expect("there is room");
    assert_eq!(live::<S>(&to, 8), None);
    let (to, states) = reopened(two, to);
    assert!(states.contains(&at(united(), 10)), "{states:?}");
    assert_eq!(to.merged().ok(), Some(vec![GroupId(8)]));
    assert_eq!(show_range(two, &to, &united()), "a=1 b=4 k=2 n=6");
    let names: Vec<Bytes> = two
        .contents(&to, &middle())
        .into_iter()
        .map(|(key, _)| key)
        .collect();
    assert_eq!(names, [key(1, "k"), key(1, "n")], "they are the left one's");
}
