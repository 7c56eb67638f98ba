//! The `raft` crate 0.7 in the loop that its documentation teaches: step, ready, store, send, apply, advance.

use anyhow::Result;
use raft::prelude::*;
use raft::storage::MemStorage;
use raft::{Config, RawNode};
use slog::{Logger, o};

use crate::{Group, PAYLOAD_BYTES};

pub(crate) struct Peer {
    nodes: Vec<RawNode<MemStorage>>,
    inbox: Vec<Message>,
    payload: Vec<u8>,
    rounds: u64,
}

impl Peer {
    pub(crate) fn new() -> Result<Self> {
        let logger = Logger::root(slog::Discard, o!());
        let mut nodes = Vec::new();
        for id in 1..=3 {
            let config = Config {
                id,
                election_tick: 10,
                heartbeat_tick: 3,
                max_inflight_msgs: 256,
                max_size_per_msg: 1 << 20,
                ..Default::default()
            };
            let storage = MemStorage::new_with_conf_state((vec![1, 2, 3], vec![]));
            nodes.push(RawNode::new(&config, storage, &logger)?);
        }
        let mut this = Self {
            nodes,
            inbox: Vec::new(),
            payload: vec![7; PAYLOAD_BYTES],
            rounds: 0,
        };
        this.nodes[0].campaign()?;
        this.pump();
        Ok(this)
    }

    fn pump(&mut self) {
        loop {
            let mut idle = true;
            for node in &mut self.nodes {
                while node.has_ready() {
                    idle = false;
                    handle_ready(node, &mut self.inbox);
                }
            }
            if self.inbox.is_empty() && idle {
                return;
            }
            for message in std::mem::take(&mut self.inbox) {
                let to = message.to as usize - 1;
                self.nodes[to]
                    .step(message)
                    .expect("a member's message is accepted");
            }
        }
    }
}

fn handle_ready(node: &mut RawNode<MemStorage>, outbox: &mut Vec<Message>) {
    let mut ready = node.ready();
    outbox.extend(ready.take_messages());
    apply(ready.take_committed_entries());
    let store = node.raft.raft_log.store.clone();
    if !ready.entries().is_empty() {
        store
            .wl()
            .append(ready.entries())
            .expect("memory storage appends");
    }
    if let Some(hard_state) = ready.hs() {
        store.wl().set_hardstate(hard_state.clone());
    }
    outbox.extend(ready.take_persisted_messages());
    let mut light = node.advance(ready);
    if let Some(commit) = light.commit_index() {
        store.wl().mut_hard_state().set_commit(commit);
    }
    outbox.extend(light.take_messages());
    apply(light.take_committed_entries());
    node.advance_apply();
}

fn apply(entries: Vec<Entry>) {
    std::hint::black_box(&entries);
}

impl Group for Peer {
    fn round(&mut self, batch: usize) {
        for _ in 0..batch {
            self.nodes[0]
                .propose(vec![], self.payload.clone())
                .expect("the leader accepts");
        }
        self.pump();
        self.rounds += 1;
        if self.rounds.is_multiple_of(64) {
            for node in &mut self.nodes {
                let applied = node.raft.raft_log.applied;
                node.raft
                    .raft_log
                    .store
                    .wl()
                    .compact(applied - 1)
                    .expect("applied entries go");
            }
        }
    }
}
