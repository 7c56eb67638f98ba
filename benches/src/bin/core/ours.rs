//! `polyraft-core` in the loop that its documentation teaches, every write durable at once.

use anyhow::Result;
use bytes::Bytes;
use polyraft_core::{
    ConfState, Config, Durable, Entry, Index, MemoryStorage, Message, RaftNode, ReplicaId,
};

use crate::{Group, PAYLOAD_BYTES};

pub(crate) struct Ours {
    nodes: Vec<RaftNode<MemoryStorage>>,
    inbox: Vec<Message>,
    payload: Bytes,
    rounds: u64,
}

impl Ours {
    pub(crate) fn new() -> Result<Self> {
        let voters: Vec<ReplicaId> = (1..=3).map(ReplicaId).collect();
        let mut nodes = Vec::new();
        for &id in &voters {
            let state = ConfState {
                voters: voters.clone(),
                ..ConfState::default()
            };
            let config = Config {
                pre_vote: false,
                ..Config::new(id)
            };
            nodes.push(RaftNode::new(
                config,
                MemoryStorage::with_conf_state(state),
            )?);
        }
        let payload = Bytes::from(vec![7; PAYLOAD_BYTES]);
        let mut this = Self {
            nodes,
            inbox: Vec::new(),
            payload,
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
                let to = message.to.0 as usize - 1;
                self.nodes[to]
                    .step(message)
                    .expect("a member's message is accepted");
            }
        }
    }
}

fn handle_ready(node: &mut RaftNode<MemoryStorage>, outbox: &mut Vec<Message>) {
    let ready = node.ready().expect("a ready");
    outbox.extend(ready.messages);
    if let Some(append) = ready.append {
        let storage = node.storage_mut();
        storage
            .append(append.entries())
            .expect("memory storage appends");
        if let Some(hard_state) = append.hard_state() {
            storage.set_hard_state(hard_state);
        }
        let (held, persisted) = append.persisted(&Durable::attest());
        outbox.extend(held);
        node.on_persisted(persisted).expect("a receipt is accepted");
    }
    if let Some(last) = ready.committed.last() {
        std::hint::black_box(&ready.committed);
        let bytes = ready.committed.iter().map(Entry::size).sum();
        node.on_applied(last.index, bytes).expect("applied");
    }
}

impl Group for Ours {
    fn round(&mut self, batch: usize) {
        // One at a time, as the other side does, for a fair loop.
        for _ in 0..batch {
            self.nodes[0]
                .propose(vec![self.payload.clone()])
                .expect("the leader accepts");
        }
        self.pump();
        self.rounds += 1;
        if self.rounds.is_multiple_of(64) {
            for node in &mut self.nodes {
                let applied = node.applied();
                node.storage_mut()
                    .truncate_to(Index(applied.0 - 1))
                    .expect("applied entries go");
            }
        }
    }
}
