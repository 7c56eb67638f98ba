//! What clients asked for and were told, and whether that can be true.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use polyraft_core::Index;
use polyraft_multiraft::{GroupId, HostHandle, KeyRange, ReadPermit, Reject, Responder};

use crate::machine::{self, DataDisk, Witness};

/// What was asked for, by when.
#[derive(Clone, Debug)]
pub(crate) struct Operation {
    pub(crate) group: GroupId,
    pub(crate) invoked: u64,
    pub(crate) answer: Option<(u64, Answer)>,
    write: bool,
}

/// What was told.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Answer {
    /// The write is applied.
    Written,
    /// The state machine was read at this index.
    Read(Index),
    /// See [`Reject`].
    Rejected(Reject),
}

/// All operations of a run. Clones share one.
#[derive(Clone, Default)]
pub(crate) struct History {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    clock: u64,
    operations: Vec<Operation>,
}

/// How the operations of a run ended.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Summary {
    pub(crate) written: usize,
    pub(crate) read: usize,
    pub(crate) ambiguous: usize,
    pub(crate) refused: usize,
    pub(crate) open: usize,
}

impl History {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("nobody panics with it")
    }

    fn invoke(&self, group: GroupId, write: bool) -> usize {
        let mut inner = self.lock();
        inner.clock += 1;
        let invoked = inner.clock;
        inner.operations.push(Operation {
            group,
            invoked,
            answer: None,
            write,
        });
        inner.operations.len() - 1
    }

    fn answered(&self, id: usize, answer: Answer) {
        let mut inner = self.lock();
        inner.clock += 1;
        let now = inner.clock;
        let before = inner.operations[id].answer.replace((now, answer));
        assert!(before.is_none(), "operation {id} was answered twice");
    }

    /// Proposes a write with a value of its own; returns its number.
    pub(crate) fn write(&self, host: &HostHandle, group: GroupId) -> usize {
        self.write_bytes(host, group, 8)
    }

    /// As [`History::write`], with a value of so many bytes.
    pub(crate) fn write_bytes(&self, host: &HostHandle, group: GroupId, bytes: usize) -> usize {
        let id = self.invoke(group, true);
        let history = self.clone();
        let answer = move |result: Result<Bytes, Reject>| {
            let answer = match result {
                Ok(before) => {
                    assert!(before.is_empty(), "operation {id} was applied twice");
                    Answer::Written
                }
                Err(reject) => Answer::Rejected(reject),
            };
            history.answered(id, answer);
        };
        let respond = Responder::new(|| Err(Reject::Ambiguous), answer);
        let descriptor = host.descriptor(group);
        let ranged = descriptor.filter(|descriptor| descriptor.range.is_some());
        let range = ranged.as_ref().and_then(|it| it.range.as_ref());
        let command = machine::put(&key(id, range), &vec![b'v'; bytes]);
        match ranged {
            Some(known) => host.propose_if(group, known.epoch.range, command, respond),
            None => host.propose(group, command, respond),
        }
        id
    }

    /// Reads what a store's state machine holds as soon as it may.
    pub(crate) fn read(&self, host: &HostHandle, data: &DataDisk, group: GroupId) -> usize {
        let id = self.invoke(group, false);
        let (history, data) = (self.clone(), data.clone());
        let answer = move |result: Result<ReadPermit, Reject>| {
            let answer = match result {
                Ok(permit) => {
                    let held = data.data(group).expect("a permit is for data that exists");
                    let seen = held.state.last.index;
                    assert!(seen >= permit.applied, "less is applied than promised");
                    Answer::Read(seen)
                }
                Err(reject) => Answer::Rejected(reject),
            };
            history.answered(id, answer);
        };
        host.read(group, Responder::new(|| Err(Reject::Stopped), answer));
        id
    }

    pub(crate) fn answer(&self, id: usize) -> Option<Answer> {
        let inner = self.lock();
        let (_, answer) = inner.operations[id].answer.as_ref()?;
        Some(answer.clone())
    }

    pub(crate) fn summary(&self) -> Summary {
        let mut summary = Summary::default();
        for operation in &self.lock().operations {
            let count = match &operation.answer {
                None => &mut summary.open,
                Some((_, Answer::Written)) => &mut summary.written,
                Some((_, Answer::Read(_))) => &mut summary.read,
                Some((_, Answer::Rejected(Reject::Ambiguous))) => &mut summary.ambiguous,
                Some((_, Answer::Rejected(_))) => &mut summary.refused,
            };
            *count += 1;
        }
        summary
    }

    /// Everybody has an answer; what was acknowledged is in the history of its group, what was refused
    /// is not; and everything happened between its invocation and its answer.
    pub(crate) fn check(&self, witness: &Witness) {
        let inner = self.lock();
        let places = places(witness);
        for (id, operation) in inner.operations.iter().enumerate() {
            let Some((_, answer)) = &operation.answer else {
                panic!("operation {id} was never answered: {operation:?}");
            };
            let applied = places.contains_key(&id);
            match answer {
                Answer::Written => assert!(applied, "operation {id} is lost: {operation:?}"),
                Answer::Rejected(Reject::Ambiguous) | Answer::Read(_) => {}
                Answer::Rejected(_) => {
                    assert!(!applied, "operation {id} was refused: {operation:?}");
                }
            }
        }
        check_order(&inner.operations, &places);
    }
}

/// A key of an operation's own, somewhere in the range.
fn key(id: usize, range: Option<&KeyRange>) -> Vec<u8> {
    let number = (id as u64).to_be_bytes();
    let Some(range) = range else {
        return number.to_vec();
    };
    let first = range.start.first().copied().unwrap_or_default();
    let somewhere = [first, (id as u8).wrapping_mul(151)];
    let anywhere = [&somewhere[..], &number].concat();
    if range.contains(&anywhere) {
        return anywhere;
    }
    [&range.start[..], &number].concat()
}

/// Where in the history of its group each write stands.
fn places(witness: &Witness) -> BTreeMap<usize, Index> {
    let mut places = BTreeMap::new();
    let seen = witness.lock().expect("nobody panics with it");
    for ((group, index), (_, command)) in &seen.applied {
        let key = machine::key_of(command);
        let number = &key[key.len().saturating_sub(8)..];
        let id = u64::from_be_bytes(number.try_into().expect("keys end with 8 bytes"));
        let id = usize::try_from(id).expect("ids are small");
        let before = places.insert(id, *index);
        assert!(before.is_none(), "group {group}: {id} was applied twice");
    }
    places
}

/// Who begins after another one was answered comes after it, write or read.
fn check_order(operations: &[Operation], places: &BTreeMap<usize, Index>) {
    // What happened in order of time; an answer says where the operation stands.
    let mut events: Vec<(u64, usize, Option<Index>)> = Vec::new();
    for (id, operation) in operations.iter().enumerate() {
        events.push((operation.invoked, id, None));
        let answer = operation.answer.as_ref();
        let stands = match answer {
            Some((at, Answer::Written)) => Some((*at, places[&id])),
            Some((at, Answer::Read(index))) => Some((*at, *index)),
            _ => None,
        };
        events.extend(stands.map(|(at, index)| (at, id, Some(index))));
    }
    events.sort_unstable();
    let mut floors: BTreeMap<GroupId, Index> = BTreeMap::new();
    let mut at_least: BTreeMap<usize, Index> = BTreeMap::new();
    for (_, id, stands) in events {
        let operation = &operations[id];
        let floor = floors.entry(operation.group).or_default();
        let Some(index) = stands else {
            at_least.insert(id, *floor);
            continue;
        };
        let least = at_least[&id];
        let holds = if operation.write {
            index > least
        } else {
            index >= least
        };
        assert!(
            holds,
            "operation {id} stands at {index}, but {least} was seen before it began: {operation:?}"
        );
        *floor = index.max(*floor);
    }
    // A write whose outcome was not told may happen late, but not before it began.
    for (id, index) in places {
        let least = at_least[id];
        assert!(
            *index > least,
            "operation {id} stands at {index}, below {least}"
        );
    }
}
