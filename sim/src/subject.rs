//! What the groups of a world run, and how clients use it: the built-in key-value map, or a state machine
//! of yours.

use std::sync::Arc;

use bytes::Bytes;
use polyraft_multiraft::env::StateMachine;
use polyraft_multiraft::{GroupDescriptor, GroupId, KeyRange, StoreId};

use crate::disk::SimDisk;
use crate::rng::Rng;

/// A state machine of one store, and the way to read it.
pub trait Served: StateMachine {
    /// Answers a query from what is applied here now.
    ///
    /// # Errors
    /// Why it cannot, for example because a snapshot of the group is being installed: the client asks
    /// again.
    fn query(&self, descriptor: &GroupDescriptor, query: &Bytes) -> Result<Bytes, String>;

    /// A digest of everything that the group contains: equal for equal contents.
    ///
    /// # Errors
    /// Why it cannot be read.
    fn digest(&self, descriptor: &GroupDescriptor) -> Result<u64, String>;
}

/// What a client does: one operation on one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// On what. Objects are independent: each is checked on its own.
    pub object: Bytes,
    /// What.
    pub request: Request,
}

/// How an operation reaches the state machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Proposed; answered with the state machine's reply.
    Command {
        /// What is proposed.
        data: Bytes,
        /// Whether it may be proposed again when nobody knows what became of it: the state machine sees
        /// to it that it has its effect once. Otherwise its outcome then stays unknown.
        repeatable: bool,
    },
    /// Read, linearizably, from the leader.
    Query(Bytes),
}

impl Request {
    /// What is sent.
    #[must_use]
    pub const fn bytes(&self) -> &Bytes {
        match self {
            Self::Command { data, .. } | Self::Query(data) => data,
        }
    }
}

impl Operation {
    /// A command. Nobody proposes it again when its outcome is unknown.
    #[must_use]
    pub fn command(object: impl Into<Bytes>, data: impl Into<Bytes>) -> Self {
        Self {
            object: object.into(),
            request: Request::Command {
                data: data.into(),
                repeatable: false,
            },
        }
    }

    /// A query.
    #[must_use]
    pub fn query(object: impl Into<Bytes>, query: impl Into<Bytes>) -> Self {
        Self {
            object: object.into(),
            request: Request::Query(query.into()),
        }
    }
}

/// What an operation was on one object, for the checker: see [`Subject::step`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// On what.
    pub object: Bytes,
    /// What was asked.
    pub input: Bytes,
    /// What was answered.
    pub output: Bytes,
}

/// See the module.
pub trait Subject: Send + Sync + 'static {
    /// The state machine of a store, on its disk, at each start. What it keeps anywhere but on this disk
    /// is not lost in a crash, as that of a process would be.
    fn open(&self, store: StoreId, disk: &SimDisk) -> Arc<dyn Served>;

    /// Whether each group has a range of keys of its own, in which all its keys must lie. By default
    /// groups have none, and their keys are any.
    fn ranges(&self) -> bool {
        false
    }

    /// For groups that have ranges: the key that an operation is about, where `range` is that of the group
    /// that was asked for, before any split; an operation on many keys goes to the group with this one.
    fn key(&self, operation: &Operation, range: &KeyRange) -> Bytes {
        let _ = operation;
        range.start.clone()
    }

    /// The keys at which a range may be split, ascending. By default it may not be.
    fn split_keys(&self, range: &KeyRange) -> Vec<Bytes> {
        let _ = range;
        Vec::new()
    }

    /// What a client asks of a group next. `number` counts what this client has asked so far.
    fn operation(&self, rng: &mut Rng, group: GroupId, client: u64, number: u64) -> Operation;

    /// As [`Self::operation`], for a client that remembers what [`Self::remember`] has made of the
    /// answers of this group; the memory begins empty.
    fn next(
        &self,
        rng: &mut Rng,
        group: GroupId,
        client: u64,
        number: u64,
        memory: &Bytes,
    ) -> Operation {
        let _ = memory;
        self.operation(rng, group, client, number)
    }

    /// What a client remembers of a group after an answer.
    fn remember(&self, operation: &Operation, output: &Bytes, memory: &Bytes) -> Bytes {
        let _ = (operation, output);
        memory.clone()
    }

    /// Whether an answer says what became of the operation. One that does not, such as "your session
    /// is not known any more", leaves the outcome open, as if there were no answer. `in_doubt`: an
    /// earlier attempt of the same operation may have had its effect.
    fn tells(&self, operation: &Operation, output: &Bytes, in_doubt: bool) -> bool {
        let _ = (operation, output, in_doubt);
        true
    }

    /// An answered operation as steps on single objects. A read of many objects is one step on each.
    fn parts(&self, operation: &Operation, output: &Bytes) -> Vec<Part> {
        let input = match &operation.request {
            Request::Command { data, .. } => data.clone(),
            Request::Query(query) => query.clone(),
        };
        vec![Part {
            object: operation.object.clone(),
            input,
            output: output.clone(),
        }]
    }

    /// The sequential specification of one object: its state after `input`, if `output` is the right
    /// answer to it in `state`; none if it is not. No `output`: the answer is not known, and any would
    /// do. The first state is empty.
    fn step(&self, state: &Bytes, input: &Bytes, output: Option<&Bytes>) -> Option<Bytes>;

    /// Looks at all steps on one object, inputs with outputs, in the order of their invocations, before
    /// an order is searched for: whatever no order can explain, such as a value read that nobody ever
    /// wrote, is found at once here where the search would have to try every order. Optional.
    ///
    /// # Errors
    /// What cannot be.
    fn screen(
        &self,
        _steps: &mut dyn Iterator<Item = (&Bytes, Option<&Bytes>)>,
    ) -> Result<(), String> {
        Ok(())
    }

    /// An input, output, state or object as text, for people.
    fn show(&self, bytes: &Bytes) -> String {
        format!("{bytes:?}")
    }
}
