//! What every state machine must keep of its promises.

use std::sync::Arc;

use bytes::Bytes;
use polyraft_core::{ConfState, EntryId, Index, ReplicaId, Term};

use super::{Rng, SeamFault};
use crate::env::{ApplyItem, Command, StagedSnapshot, StateMachine, StateMachineError};
use crate::group::{AppliedState, GroupDescriptor, GroupId, KeyRange, Member, StoreId};

/// A state machine with keys and values that can be opened again and hurt.
pub trait DataSubject {
    /// What is tested.
    type Machine: StateMachine;
    /// Opens what is there; the one opened before has been dropped.
    fn open(&self) -> Self::Machine;
    /// A crash: what is applied and not flushed is gone. False: it cannot be done here, and
    /// nothing happened.
    fn crash(&self) -> bool;
    /// Sets or takes away a fault. False: it cannot be done here.
    fn set_fault(&self, fault: Option<SeamFault>) -> bool;
    /// The command that gives a key a value; its reply must be the value before, or nothing.
    fn put(&self, key: &[u8], value: &[u8]) -> Bytes;
    /// Everything that a group holds, in the order of the keys.
    fn contents(
        &self,
        machine: &Self::Machine,
        descriptor: &GroupDescriptor,
    ) -> Vec<(Bytes, Bytes)>;
}

/// The whole suite; `new` makes one without any group.
pub fn state_machine<S: DataSubject>(new: impl Fn() -> S) {
    it_begins_with_nothing(&new());
    a_created_group_is_there_after_a_crash(&new());
    a_turn_gives_a_reply_per_command(&new());
    a_turn_without_commands_moves_the_index(&new());
    data_and_index_are_one(&new);
    what_is_flushed_survives(&new());
    a_snapshot_is_of_one_moment(&new(), &new());
    a_snapshot_replaces_what_was_there(&new(), &new());
    unfinished_and_unwanted_snapshots_leave_nothing(&new(), &new());
    a_damaged_snapshot_is_refused(&new(), &new());
    nothing_of_a_destroyed_group_remains(&new());
    without_room_nothing_is_applied(&new());
}

pub(super) fn descriptor(group: u64) -> GroupDescriptor {
    let member = |id| Member {
        replica: ReplicaId(id),
        store: StoreId(id + 10),
    };
    GroupDescriptor {
        group: GroupId(group),
        range: Some(KeyRange {
            start: Bytes::from(format!("{group:03}/")),
            end: Some(Bytes::from(format!("{group:03}0"))),
        }),
        members: (1..=3).map(member).collect(),
        next_replica: ReplicaId(4),
        ..GroupDescriptor::default()
    }
}

pub(super) fn state(group: u64, index: u64) -> AppliedState {
    let voters = (1..=3).map(ReplicaId).collect();
    AppliedState {
        last: EntryId::new(2, index),
        conf_state: Arc::new(ConfState {
            voters,
            ..ConfState::default()
        }),
        descriptor: Arc::new(descriptor(group)),
    }
}

pub(super) fn key(group: u64, name: &str) -> Bytes {
    Bytes::from(format!("{group:03}/{name}"))
}

pub(super) fn item<S: DataSubject>(
    s: &S,
    group: u64,
    after: u64,
    puts: &[(&str, &str)],
) -> ApplyItem {
    let command = |(at, (name, value)): (u64, &(&str, &str))| Command {
        id: EntryId {
            term: Term(2),
            index: Index(at),
        },
        data: s.put(&key(group, name), value.as_bytes()),
    };
    ApplyItem {
        group: GroupId(group),
        commands: (after + 1..).zip(puts).map(command).collect(),
        state: state(group, after + puts.len() as u64),
        membership_changed: false,
        replies: Vec::new(),
        range_change: None,
    }
}

/// Applies puts to one group, whose last applied index was `after`.
pub(super) fn turn<S: DataSubject>(
    s: &S,
    machine: &S::Machine,
    group: u64,
    after: u64,
    puts: &[(&str, &str)],
) {
    let mut items = [item(s, group, after, puts)];
    machine.apply(&mut items).expect("there is room");
    assert_eq!(items[0].replies.len(), puts.len());
}

pub(super) fn created<S: DataSubject>(s: &S, groups: &[u64]) -> S::Machine {
    let machine = opened(s);
    for group in groups {
        machine.create(&state(*group, 2)).expect("there is room");
    }
    machine
}

fn opened<S: DataSubject>(s: &S) -> S::Machine {
    let machine = s.open();
    machine.recover().expect("the data can be trusted");
    machine
}

/// The state of a group as of now.
pub(super) fn live<S: DataSubject>(machine: &S::Machine, group: u64) -> Option<AppliedState> {
    match machine.snapshot(GroupId(group)) {
        Ok(source) => Some(source.state().clone()),
        Err(StateMachineError::Group { .. }) => None,
        Err(error) => panic!("a group that is not there is its own matter: {error}"),
    }
}

/// What a start finds; once after each opening.
pub(super) fn found<S: DataSubject>(machine: &S::Machine) -> Vec<AppliedState> {
    let mut found = machine.recover().expect("the data can be trusted");
    found.sort_by_key(|state| state.descriptor.group);
    found
}

/// What a group holds, as text without the group's prefix.
fn show<S: DataSubject>(s: &S, machine: &S::Machine, group: u64) -> String {
    show_range(s, machine, &descriptor(group))
}

/// What a group with this descriptor holds, in the same way.
pub(super) fn show_range<S: DataSubject>(
    s: &S,
    machine: &S::Machine,
    descriptor: &GroupDescriptor,
) -> String {
    let text = |(key, value): &(Bytes, Bytes)| {
        let (key, value) = (String::from_utf8_lossy(key), String::from_utf8_lossy(value));
        let name = key.rsplit('/').next().unwrap_or_default().to_owned();
        format!("{name}={value}")
    };
    let pairs = s.contents(machine, descriptor);
    pairs.iter().map(text).collect::<Vec<_>>().join(" ")
}

fn it_begins_with_nothing<S: DataSubject>(s: &S) {
    let machine = s.open();
    assert_eq!(found::<S>(&machine), []);
    assert_eq!(live::<S>(&machine, 1), None);
    machine.flush().expect("nothing to do");
}

fn a_created_group_is_there_after_a_crash<S: DataSubject>(s: &S) {
    let machine = created(s, &[1, 2]);
    drop(machine);
    s.crash();
    let machine = s.open();
    assert_eq!(found::<S>(&machine), [state(1, 2), state(2, 2)]);
    assert_eq!(show(s, &machine, 1), "");
}

fn a_turn_gives_a_reply_per_command<S: DataSubject>(s: &S) {
    let machine = created(s, &[1, 2, 3]);
    let mut items = [
        item(s, 1, 2, &[("a", "1"), ("b", "2"), ("a", "3")]),
        item(s, 2, 2, &[("a", "other")]),
    ];
    machine.apply(&mut items).expect("there is room");
    let expected: [&[u8]; 3] = [b"", b"", b"1"];
    assert_eq!(items[0].replies, expected, "each sees the ones before");
    assert_eq!(items[1].replies, [b"".as_slice()], "groups are apart");
    let shown: Vec<_> = (1..=3).map(|group| show(s, &machine, group)).collect();
    assert_eq!(shown, ["a=3 b=2", "a=other", ""]);
    machine.flush().expect("there is room");
    drop(machine);
    assert_eq!(
        found::<S>(&s.open()),
        [state(1, 5), state(2, 3), state(3, 2)]
    );
}

fn a_turn_without_commands_moves_the_index<S: DataSubject>(s: &S) {
    let machine = created(s, &[1]);
    let mut next = state(1, 7);
    let mut descriptor = descriptor(1);
    descriptor.members.pop();
    descriptor.epoch.membership = 1;
    next.descriptor = Arc::new(descriptor);
    let item = ApplyItem {
        state: next.clone(),
        membership_changed: true,
        ..item(s, 1, 7, &[])
    };
    machine.apply(&mut [item]).expect("there is room");
    machine.flush().expect("there is room");
    drop(machine);
    s.crash();
    assert_eq!(found::<S>(&s.open()), [next], "with the new membership");
}

/// Random turns, flushes and a crash: what is there is what the applied index says.
fn data_and_index_are_one<S: DataSubject>(new: &impl Fn() -> S) {
    for seed in 0..12 {
        let (s, mut rng) = (new(), Rng::new(seed));
        let machine = created(&s, &[1, 2]);
        // What each group held, by applied index; and the index that is durable.
        let mut history = [vec![(2, String::new())], vec![(2, String::new())]];
        let mut durable = [2, 2];
        for step in 0..rng.below(20) {
            let value = step.to_string();
            let names = ["a", "b", "c"];
            let (one, two) = (*rng.pick(&names), *rng.pick(&names));
            let mut items = Vec::new();
            for (at, name) in [(0, one), (1, two)] {
                let after = history[at].last().map_or(2, |(index, _)| *index);
                items.push(item(&s, at as u64 + 1, after, &[(name, &value)]));
            }
            machine.apply(&mut items).expect("there is room");
            for (at, held) in history.iter_mut().enumerate() {
                let index = items[at].state.last.index.0;
                held.push((index, show(&s, &machine, at as u64 + 1)));
            }
            if rng.percent(20) {
                machine.flush().expect("there is room");
                durable = [0, 1].map(|at| history[at].last().map_or(2, |(index, _)| *index));
            }
        }
        drop(machine);
        s.crash();
        let machine = s.open();
        for (at, state) in found::<S>(&machine).into_iter().enumerate() {
            let index = state.last.index.0;
            assert!(index >= durable[at], "seed {seed}: flushed data is gone");
            let held = history[at].iter().find(|(known, _)| *known == index);
            let (_, held) = held.expect("an index that there was");
            assert_eq!(&show(&s, &machine, at as u64 + 1), held, "seed {seed}");
        }
    }
}

fn what_is_flushed_survives<S: DataSubject>(s: &S) {
    let machine = created(s, &[1, 2]);
    turn(s, &machine, 1, 2, &[("a", "1")]);
    turn(s, &machine, 2, 2, &[("a", "2")]);
    machine.flush().expect("there is room");
    turn(s, &machine, 1, 3, &[("a", "3")]);
    drop(machine);
    let lost = s.crash();
    let machine = s.open();
    let states = found::<S>(&machine);
    assert_eq!(states[1], state(2, 3));
    assert_eq!(show(s, &machine, 2), "a=2");
    if lost && states[0] == state(1, 3) {
        assert_eq!(show(s, &machine, 1), "a=1");
        // The host applies again what is lost.
        turn(s, &machine, 1, 3, &[("a", "3")]);
    }
    assert_eq!(show(s, &machine, 1), "a=3");
}

/// Sends a snapshot of a group from one to another, up to where it is staged.
pub(super) fn transfer<S: DataSubject>(
    from: &S::Machine,
    to: &S::Machine,
    group: u64,
    chunk_bytes: usize,
) -> (StagedSnapshot, usize) {
    let mut source = from.snapshot(GroupId(group)).expect("the group is there");
    let mut sink = to.stage(source.state()).expect("there is room");
    let mut chunks = 0;
    while let Some(chunk) = source.next_chunk(chunk_bytes).expect("it can be read") {
        assert!(!chunk.is_empty());
        sink.write(chunk).expect("there is room");
        chunks += 1;
    }
    (sink.finish().expect("there is room"), chunks)
}

fn filled<S: DataSubject>(s: &S, group: u64, value: &str) -> S::Machine {
    let machine = created(s, &[group, group + 1]);
    let names: Vec<String> = (10..50).map(|n| format!("k{n}")).collect();
    let puts: Vec<_> = names.iter().map(|name| (name.as_str(), value)).collect();
    turn(s, &machine, group, 2, &puts);
    turn(s, &machine, group + 1, 2, &[("k", "neighbour")]);
    machine
}

fn a_snapshot_is_of_one_moment<S: DataSubject>(one: &S, two: &S) {
    let (from, to) = (filled(one, 1, "before"), opened(two));
    let expected = show(one, &from, 1);
    let mut source = from.snapshot(GroupId(1)).expect("the group is there");
    assert_eq!(source.state(), &state(1, 42));
    let mut sink = to.stage(source.state()).expect("there is room");
    let mut after = 42;
    while let Some(chunk) = source.next_chunk(100).expect("it can be read") {
        turn(one, &from, 1, after, &[("k30", "after"), ("new", "after")]);
        after += 2;
        sink.write(chunk).expect("there is room");
    }
    assert!(after > 44, "40 pairs are more than one chunk of 100 bytes");
    let staged = sink.finish().expect("there is room");
    assert_eq!(staged.state, state(1, 42));
    assert_eq!(live::<S>(&to, 1), None, "staged is not installed");
    to.restore(&staged).expect("there is room");
    assert_eq!(live::<S>(&to, 1), Some(state(1, 42)));
    assert_eq!(show(two, &to, 1), expected, "nothing of what came later");
}

fn a_snapshot_replaces_what_was_there<S: DataSubject>(one: &S, two: &S) {
    let from = filled(one, 1, "new");
    let to = created(two, &[1, 2]);
    turn(two, &to, 1, 2, &[("gone", "old"), ("k10", "old")]);
    turn(two, &to, 2, 2, &[("mine", "2")]);
    let (staged, chunks) = transfer::<S>(&from, &to, 1, 100);
    assert!(chunks > 1);
    assert_eq!(
        show(two, &to, 1),
        "gone=old k10=old",
        "staging changes nothing"
    );
    to.restore(&staged).expect("there is room");
    to.flush().expect("there is room");
    drop(to);
    two.crash();
    let to = two.open();
    assert_eq!(found::<S>(&to), [state(1, 42), state(2, 3)]);
    assert_eq!(show(two, &to, 1), show(one, &from, 1));
    assert_eq!(show(two, &to, 2), "mine=2", "the neighbour is as before");
    // A group without a pair is also a snapshot; installed over one that has some.
    from.create(&state(7, 2)).expect("there is room");
    turn(two, &to, 1, 42, &[("k10", "newer")]);
    let (staged, _) = transfer::<S>(&from, &to, 7, 100);
    to.restore(&staged).expect("there is room");
    drop(to);
    two.crash();
    let to = two.open();
    assert_eq!(show(two, &to, 7), "");
    assert_eq!(
        found::<S>(&to).last(),
        Some(&state(7, 2)),
        "durable at once"
    );
}

fn unfinished_and_unwanted_snapshots_leave_nothing<S: DataSubject>(one: &S, two: &S) {
    let (from, to) = (filled(one, 1, "new"), created(two, &[1]));
    turn(two, &to, 1, 2, &[("a", "1")]);
    let mut source = from.snapshot(GroupId(1)).expect("the group is there");
    let mut sink = to.stage(source.state()).expect("there is room");
    let chunk = source.next_chunk(100).expect("it can be read");
    sink.write(chunk.expect("there are pairs"))
        .expect("there is room");
    drop(sink);
    let (staged, _) = transfer::<S>(&from, &to, 1, 1000);
    to.discard(&staged);
    let (again, _) = transfer::<S>(&from, &to, 1, 1000);
    assert_ne!(again.token, staged.token, "a name of its own");
    assert_eq!(live::<S>(&to, 1), Some(state(1, 3)));
    assert_eq!(show(two, &to, 1), "a=1");
    drop(to);
    two.crash();
    let to = two.open();
    assert!(found::<S>(&to).len() == 1);
}

fn a_damaged_snapshot_is_refused<S: DataSubject>(one: &S, two: &S) {
    let (from, to) = (filled(one, 1, "new"), created(two, &[1]));
    turn(two, &to, 1, 2, &[("a", "1")]);
    let mut source = from.snapshot(GroupId(1)).expect("the group is there");
    let mut sink = to.stage(source.state()).expect("there is room");
    let chunk = source.next_chunk(1000).expect("it can be read");
    let mut bytes = chunk.expect("there are pairs").to_vec();
    bytes.truncate(bytes.len() / 2);
    let refused = match sink.write(bytes.into()) {
        Err(error) => error,
        Ok(()) => sink.finish().expect_err("half a chunk is not whole"),
    };
    assert!(
        matches!(refused, StateMachineError::Group { .. }),
        "a matter of this group: {refused}"
    );
    assert_eq!(show(two, &to, 1), "a=1");
    machine_still_works(two, &to);
}

fn machine_still_works<S: DataSubject>(s: &S, machine: &S::Machine) {
    turn(s, machine, 1, 3, &[("z", "9")]);
    assert!(show(s, machine, 1).ends_with("z=9"));
}

fn nothing_of_a_destroyed_group_remains<S: DataSubject>(s: &S) {
    let machine = filled(s, 1, "x");
    machine.destroy(&descriptor(1)).expect("there is room");
    machine
        .destroy(&descriptor(1))
        .expect("a removal that was cut short is done again");
    machine
        .destroy(&descriptor(5))
        .expect("so is one of data that never was");
    assert_eq!(show(s, &machine, 1), "");
    machine.flush().expect("there is room");
    drop(machine);
    s.crash();
    let machine = s.open();
    assert_eq!(found::<S>(&machine), [state(2, 3)]);
    assert_eq!(show(s, &machine, 1), "");
    assert_eq!(show(s, &machine, 2), "k=neighbour");
    machine.create(&state(1, 2)).expect("there is room");
    assert_eq!(show(s, &machine, 1), "", "a new one begins with nothing");
    turn(s, &machine, 1, 2, &[("a", "1")]);
    assert_eq!(show(s, &machine, 1), "a=1");
}

fn without_room_nothing_is_applied<S: DataSubject>(s: &S) {
    let machine = created(s, &[1, 2]);
    turn(s, &machine, 1, 2, &[("a", "1")]);
    if !s.set_fault(Some(SeamFault::Full)) {
        return;
    }
    let mut items = [item(s, 1, 3, &[("a", "2")]), item(s, 2, 2, &[("a", "2")])];
    let full = |result: Result<(), StateMachineError>| {
        assert!(
            matches!(result, Err(StateMachineError::DiskFull)),
            "{result:?}"
        );
    };
    full(machine.apply(&mut items));
    full(machine.create(&state(3, 2)));
    full(machine.flush());
    full(machine.destroy(&descriptor(1)));
    let shown: Vec<_> = (1..=3).map(|group| show(s, &machine, group)).collect();
    assert_eq!(shown, ["a=1", "", ""]);
    let states: Vec<_> = (1..=3).map(|group| live::<S>(&machine, group)).collect();
    assert_eq!(states, [Some(state(1, 3)), Some(state(2, 2)), None]);
    s.set_fault(None);
    machine.apply(&mut items).expect("there is room again");
    assert_eq!(items[0].replies, [b"1".as_slice()]);
    assert_eq!(items[1].replies, [b"".as_slice()]);
    assert_eq!(show(s, &machine, 1), "a=2");
}
