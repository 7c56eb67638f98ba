//! The environment of one interaction file: nodes, messages in flight, output and its log level.

use std::collections::VecDeque;

use polyraft_core::{
    Append, Config, Entry, Event, Index, InitialState, MemoryStorage, Message, Persisted, RaftNode,
    ReplicaId, Snapshot, Storage, StorageError, SyncNode, Term,
};

use crate::text::{self, Written};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    #[default]
    Debug,
    Info,
    Warn,
    Error,
    Fatal,
    None,
}

impl Level {
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Some(match name.to_ascii_uppercase().as_str() {
            "DEBUG" => Self::Debug,
            "INFO" => Self::Info,
            "WARN" => Self::Warn,
            "ERROR" => Self::Error,
            "FATAL" => Self::Fatal,
            "NONE" => Self::None,
            _ => return None,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Debug => "DEBUG",
            Self::Info => "INFO",
            Self::Warn => "WARN",
            Self::Error => "ERROR",
            Self::Fatal => "FATAL",
            Self::None => "NONE",
        }
    }
}

/// A stable log whose snapshots come from the application's history.
pub(crate) struct NodeStorage {
    pub(crate) log: MemoryStorage,
    pub(crate) history: Vec<Snapshot>,
}

impl Storage for NodeStorage {
    fn initial_state(&self) -> Result<InitialState, StorageError> {
        self.log.initial_state()
    }

    fn entries(&self, low: Index, high: Index, max: u64) -> Result<Vec<Entry>, StorageError> {
        self.log.entries(low, high, max)
    }

    fn term(&self, index: Index) -> Result<Term, StorageError> {
        self.log.term(index)
    }

    fn first_index(&self) -> Index {
        self.log.first_index()
    }

    fn last_index(&self) -> Index {
        self.log.last_index()
    }

    fn snapshot(&self, _to: ReplicaId) -> Result<Snapshot, StorageError> {
        Ok(self.history.last().cloned().unwrap_or_default())
    }
}

pub(crate) enum Face {
    Sync(Box<SyncNode<NodeStorage>>),
    Async(Box<RaftNode<NodeStorage>>),
}

pub(crate) struct Node {
    pub(crate) face: Face,
    pub(crate) config: Config,
    pub(crate) append_work: VecDeque<Append>,
    pub(crate) apply_work: VecDeque<Vec<Entry>>,
}

impl Node {
    pub(crate) fn raft(&mut self) -> &mut RaftNode<NodeStorage> {
        match &mut self.face {
            Face::Sync(node) => node.node(),
            Face::Async(node) => node,
        }
    }

    pub(crate) fn has_ready(&self) -> bool {
        match &self.face {
            Face::Sync(node) => node.has_ready(),
            Face::Async(node) => node.has_ready(),
        }
    }
}

/// What is on its way to a node: a message, or a receipt from one of the storage threads.
pub(crate) struct Parcel {
    pub(crate) to: u64,
    pub(crate) text: Written,
    pub(crate) what: What,
}

pub(crate) enum What {
    Message(Message),
    Persisted(Persisted),
    Applied(Index, u64),
}

impl Parcel {
    pub(crate) fn message(message: Message) -> Self {
        Self {
            to: message.to.0,
            text: text::message(&message),
            what: What::Message(message),
        }
    }

    /// From or to a storage thread, or to the node itself: never lost on the network.
    pub(crate) fn is_local(&self) -> bool {
        self.text.from == self.text.to || self.text.from >= text::APPLY_THREAD
    }
}

#[derive(Default)]
pub(crate) struct Env {
    pub(crate) nodes: Vec<Node>,
    pub(crate) messages: Vec<Parcel>,
    pub(crate) level: Level,
    pub(crate) output: String,
}

impl Env {
    pub(crate) fn node(&mut self, id: u64) -> &mut Node {
        &mut self.nodes[id as usize - 1]
    }

    pub(crate) fn write(&mut self, text: &str) {
        if self.level != Level::None {
            self.output.push_str(text);
        }
    }

    pub(crate) fn line(&mut self, text: &str) {
        self.write(text);
        self.write("\n");
    }

    /// Runs something whose output is indented by two spaces.
    pub(crate) fn indented(
        &mut self,
        run: impl FnOnce(&mut Self) -> Result<(), String>,
    ) -> Result<(), String> {
        let outer = std::mem::take(&mut self.output);
        let result = run(self);
        let inner = std::mem::replace(&mut self.output, outer);
        for line in inner.lines() {
            self.line(&format!("  {line}"));
        }
        result
    }

    /// Calls into a node, then writes what it had to say.
    pub(crate) fn with<T>(
        &mut self,
        id: u64,
        call: impl FnOnce(&mut RaftNode<NodeStorage>) -> T,
    ) -> T {
        let node = self.node(id).raft();
        let result = call(node);
        let events = node.take_events();
        node.check().expect("the invariants hold");
        self.log_events(id, &events);
        result
    }

    pub(crate) fn log_events(&mut self, id: u64, events: &[Event]) {
        for event in events {
            for (level, text) in text::event(ReplicaId(id), event) {
                if self.level <= level {
                    self.line(&format!("{} {text}", level.name()));
                }
            }
        }
    }
}
