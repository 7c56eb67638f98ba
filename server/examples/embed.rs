//! A state machine of one's own in three stores: each group is a counter. Everything is real: three
//! RocksDB directories, three gRPC transports on loopback, one process.
//!
//! `scripts/with-rocksdb cargo run -p polyraft-server --example embed`

use std::time::Duration;

use bytes::Bytes;
use polyraft_multiraft::Reject;
use polyraft_multiraft::env::Command;
use polyraft_server::embed::{Node, NodeConfig};
use polyraft_store::disk::DiskError;
use polyraft_store::{Application, GroupTxn};

/// What is replicated: a command is a number to add, the reply is the sum.
struct Counter;

impl Application for Counter {
    fn apply(&self, txn: &mut GroupTxn<'_>, command: &Command) -> Result<Bytes, DiskError> {
        let before = txn.get(b"sum")?.map_or(0, |bytes| number(&bytes));
        let sum = Bytes::copy_from_slice(&(before + number(&command.data)).to_be_bytes());
        txn.put(b"sum", sum.clone())?;
        Ok(sum)
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.try_into().map(u64::from_be_bytes).unwrap_or(0)
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "an example shows what it does")]
async fn main() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let mut nodes = Vec::new();
    for store in 1..=3 {
        let data = directory.path().join(store.to_string());
        nodes.push(Node::start(NodeConfig::new(42, store, data), Counter).await?);
    }
    for node in &nodes {
        for (store, other) in (1..).zip(&nodes) {
            node.connect(store, other.address());
        }
        // A hundred groups, each with a replica on every store.
        for group in 1..=100 {
            node.create_group(group, None, &[1, 2, 3]).await?;
        }
    }
    for round in 1..=3 {
        for group in 1..=100 {
            anyhow::ensure!(add(&nodes, group, group).await? == group * round);
        }
        println!("round {round}: group 100 is at {}", 100 * round);
    }
    // A read sees every sum that was replied before it.
    for node in &nodes {
        let sum = node.read_with(100, |data, group| data.get(group, b"sum"));
        if let Ok(sum) = sum.await {
            println!("its leader reads {:?}", sum.map(|bytes| number(&bytes)));
        }
    }
    for node in nodes {
        node.stop().await?;
    }
    Ok(())
}

/// Proposes on whichever store leads the group.
async fn add(nodes: &[Node<Counter>], group: u64, add: u64) -> Result<u64, Reject> {
    for node in nodes.iter().cycle() {
        match node.propose(group, add.to_be_bytes().to_vec()).await {
            Ok(sum) => return Ok(number(&sum)),
            // There is no leader yet, or it is another store.
            Err(Reject::NotLeader { .. }) => tokio::time::sleep(Duration::from_millis(5)).await,
            Err(other) => return Err(other),
        }
    }
    unreachable!("the stores are asked in turn until one leads")
}
