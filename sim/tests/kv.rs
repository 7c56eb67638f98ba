//! The built-in subject: its state machine does what its specification says, and nothing else does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use polyraft_core::EntryId;
use polyraft_multiraft::env::{ApplyItem, Command};
use polyraft_multiraft::{AppliedState, GroupDescriptor, GroupId, KeyRange, StoreId};
use polyraft_sim::disk::{CrashKind, SimDisk};
use polyraft_sim::kv::Kv;
use polyraft_sim::rng::Rng;
use polyraft_sim::subject::{Operation, Request, Served, Subject};

const GROUP: GroupId = GroupId(7);

/// One group on one store, driven by hand.
struct One {
    disk: SimDisk,
    machine: Arc<dyn Served>,
    descriptor: GroupDescriptor,
    index: u64,
}

impl One {
    fn new(ranged: bool) -> Self {
        let key = |id: u64| Bytes::from(format!("g{id:08x}"));
        let range = ranged.then(|| KeyRange {
            start: key(GROUP.0),
            end: Some(key(GROUP.0 + 1)),
        });
        let disk = SimDisk::new();
        let one = Self {
            machine: Kv.open(StoreId(1), &disk),
            disk,
            descriptor: GroupDescriptor {
                group: GROUP,
                range,
                ..GroupDescriptor::default()
            },
            index: 1,
        };
        one.machine.create(&one.state(1)).unwrap();
        one
    }

    fn state(&self, index: u64) -> AppliedState {
        AppliedState {
            last: EntryId::new(1, index),
            descriptor: Arc::new(self.descriptor.clone()),
            ..AppliedState::default()
        }
    }

    fn apply(&mut self, commands: &[Bytes]) -> Vec<Bytes> {
        let command = |(index, data): (u64, &Bytes)| Command {
            id: EntryId::new(1, index),
            data: data.clone(),
        };
        let last = self.index + commands.len() as u64;
        let mut items = [ApplyItem {
            group: GROUP,
            commands: (self.index + 1..).zip(commands).map(command).collect(),
            state: self.state(last),
            membership_changed: false,
            replies: Vec::new(),
            range_change: None,
        }];
        self.machine.apply(&mut items).unwrap();
        self.index = last;
        std::mem::take(&mut items[0].replies)
    }

    fn perform(&mut self, operation: &Operation) -> Bytes {
        match &operation.request {
            Request::Command { data, .. } => self.apply(std::slice::from_ref(data)).remove(0),
            Request::Query(query) => self.machine.query(&self.descriptor, query).unwrap(),
        }
    }

    fn digest(&self) -> u64 {
        self.machine.digest(&self.descriptor).unwrap()
    }

    /// All values.
    fn values(&self) -> Bytes {
        let scan = Bytes::from_static(b"?s");
        self.machine.query(&self.descriptor, &scan).unwrap()
    }
}

/// What the specification says that the objects are.
#[derive(Default)]
struct Objects(BTreeMap<Bytes, Bytes>);

impl Objects {
    /// Whether the answer is the right one; if so the objects are what they become.
    fn take(&mut self, operation: &Operation, output: &Bytes) -> bool {
        let parts = Kv.parts(operation, output);
        let steps = parts.into_iter().map(|part| {
            let state = self.0.get(&part.object).cloned().unwrap_or_default();
            let after = Kv.step(&state, &part.input, Some(&part.output))?;
            Some((part.object, after))
        });
        let steps: Option<Vec<(Bytes, Bytes)>> = steps.collect();
        let right = steps.is_some();
        self.0.extend(steps.unwrap_or_default());
        right
    }
}

#[test]
fn the_state_machine_does_what_the_specification_says() {
    for ranged in [true, false] {
        let (mut one, mut objects) = (One::new(ranged), Objects::default());
        let (mut rng, mut memory) = (Rng::new(1), Bytes::new());
        let mut kinds = BTreeSet::new();
        for number in 1..3_000 {
            let operation = Kv.next(&mut rng, GROUP, 3, number, &memory);
            let output = one.perform(&operation);
            let text = Kv.show(&output);
            assert!(!text.starts_with('b'), "nobody can read {text}");
            kinds.extend(text.starts_with("[(0, ").then(|| "scan".to_owned()));
            kinds.insert(text.split([' ', '(']).next().unwrap().to_owned());
            kinds.extend(text.contains("swapped: true").then(|| "swap".to_owned()));
            let right = objects.take(&operation, &output);
            assert!(right, "{operation:?} gave {text}");
            memory = Kv.remember(&operation, &output, &memory);
        }
        for kind in ["Put", "Deleted", "Cas", "swap", "Added", "[None]", "scan"] {
            assert!(kinds.contains(kind), "{kind}: {kinds:?}");
        }
    }
}

#[test]
fn a_wrong_answer_is_wrong() {
    let mut one = One::new(true);
    let (mut rng, mut objects) = (Rng::new(2), Objects::default());
    for number in 1..400 {
        let operation = Kv.operation(&mut rng, GROUP, 1, number);
        let output = one.perform(&operation);
        // The last byte is of a value, or says what was done.
        let mut wrong = output.to_vec();
        *wrong.last_mut().unwrap() ^= 1;
        assert!(!objects.take(&operation, &wrong.into()));
        assert!(objects.take(&operation, &output));
    }
}

#[test]
fn without_an_answer_any_would_do() {
    let mut one = One::new(true);
    let (mut rng, mut objects) = (Rng::new(3), Objects::default());
    for number in 1..300 {
        let operation = Kv.operation(&mut rng, GROUP, 1, number);
        let output = one.perform(&operation);
        for part in Kv.parts(&operation, &output) {
            let state = objects.0.get(&part.object).cloned().unwrap_or_default();
            let known = Kv.step(&state, &part.input, Some(&part.output));
            assert!(known.is_some());
            assert_eq!(known, Kv.step(&state, &part.input, None));
        }
        objects.take(&operation, &output);
    }
}

#[test]
fn a_client_with_a_memory_outlives_its_sessions() {
    const CLIENTS: usize = 50;
    let mut one = One::new(false);
    let (mut rng, mut objects) = (Rng::new(4), Objects::default());
    let (mut memories, mut numbers) = (vec![Bytes::new(); CLIENTS], [0; CLIENTS]);
    let mut expired = 0;
    let mut sent: Vec<(Operation, Bytes)> = Vec::new();
    for _ in 0..6_000 {
        // A copy of something old changes nothing.
        if let Some((old, first)) = rng.pick(&sent).cloned() {
            let values = one.values();
            let again = one.perform(&old);
            let text = Kv.show(&again);
            assert_eq!(one.values(), values, "{text}");
            let refused = text.starts_with("Expired") || text == "Acknowledged";
            assert!(again == first || refused, "{text}");
        }
        let at = usize::try_from(rng.below(CLIENTS as u64)).unwrap();
        let (client, memory) = (at as u64 + 1, &mut memories[at]);
        numbers[at] += 1;
        let operation = Kv.next(&mut rng, GROUP, client, numbers[at], memory);
        let output = one.perform(&operation);
        let is_expired = Kv.show(&output).starts_with("Expired");
        assert!(Kv.tells(&operation, &output, false));
        assert_eq!(Kv.tells(&operation, &output, true), !is_expired);
        expired += u64::from(is_expired);
        assert!(objects.take(&operation, &output));
        *memory = Kv.remember(&operation, &output, memory);
        if matches!(operation.request, Request::Command { repeatable, .. } if repeatable) {
            sent.push((operation, output));
            sent.drain(..sent.len().saturating_sub(300));
        }
    }
    assert!((100..2_000).contains(&expired), "{expired}");
}

#[test]
fn equal_contents_have_equal_digests() {
    let (mut one, mut two) = (One::new(true), One::new(true));
    let empty = one.digest();
    let mut rng = Rng::new(5);
    let operations = (1..200).map(|number| Kv.operation(&mut rng, GROUP, 1, number));
    let commands = operations.filter_map(|operation| match operation.request {
        Request::Command { data, .. } => Some(data),
        Request::Query(_) => None,
    });
    let commands: Vec<Bytes> = commands.collect();
    one.apply(&commands);
    for commands in commands.chunks(3) {
        two.apply(commands);
    }
    assert_ne!(one.digest(), empty);
    assert_eq!(one.digest(), two.digest());
    // The applied index is no part of it.
    one.index += 1;
    one.apply(&[]);
    assert_eq!(one.digest(), two.digest());
    // The sessions are: a copy of a command changes nothing else.
    let no_session = [0; 8];
    let copy = commands.iter().rfind(|data| data[1..9] != no_session);
    one.apply(&[copy.unwrap().clone()]);
    assert_eq!(one.values(), two.values());
    assert_ne!(one.digest(), two.digest());
}

#[test]
fn what_a_crash_keeps_is_what_was_flushed() {
    let mut one = One::new(true);
    let mut rng = Rng::new(6);
    for number in 1..100 {
        one.perform(&Kv.operation(&mut rng, GROUP, 1, number));
    }
    one.machine.flush().unwrap();
    let (index, digest) = (one.index, one.digest());
    one.disk.crash(CrashKind::Power, &mut Rng::new(1));
    one.machine = Kv.open(StoreId(1), &one.disk);
    assert_eq!(one.machine.recover().unwrap(), [one.state(index)]);
    assert_eq!(one.digest(), digest);
}

#[test]
fn a_group_that_is_not_there_answers_nothing_nor_does_a_malformed_query() {
    let one = One::new(true);
    for bad in [b"".as_slice(), b"?g\xff", b"?x"] {
        let bad = Bytes::copy_from_slice(bad);
        assert!(one.machine.query(&one.descriptor, &bad).is_err(), "{bad:?}");
    }
    one.machine.destroy(&one.descriptor).unwrap();
    for query in [b"?s".as_slice(), b"?g\0"] {
        let query = Bytes::copy_from_slice(query);
        assert!(one.machine.query(&one.descriptor, &query).is_err());
    }
    assert!(one.machine.digest(&one.descriptor).is_err());
}

#[test]
fn equal_seeds_give_equal_operations() {
    let draw = |seed| {
        let mut rng = Rng::new(seed);
        let each = (1..100).map(|number| Kv.operation(&mut rng, GROUP, 2, number));
        each.collect::<Vec<Operation>>()
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
}
