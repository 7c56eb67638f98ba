//! A node of the embedding interface comes back with what it had, and as nobody else.

use std::time::Duration;

use bytes::Bytes;
use polyraft_multiraft::Reject;
use polyraft_multiraft::env::Command;
use polyraft_server::embed::{Node, NodeConfig};
use polyraft_store::disk::DiskError;
use polyraft_store::{Application, GroupTxn};

/// Keeps the last command, replies with the one before.
struct Last;

impl Application for Last {
    fn apply(&self, txn: &mut GroupTxn<'_>, command: &Command) -> Result<Bytes, DiskError> {
        let before = txn.get(b"last")?.unwrap_or_default();
        txn.put(b"last", command.data.clone())?;
        Ok(before)
    }
}

async fn propose(node: &Node<Last>, command: &'static str) -> Bytes {
    loop {
        match node.propose(1, command).await {
            Ok(reply) => return reply,
            Err(Reject::NotLeader { .. }) => tokio::time::sleep(Duration::from_millis(5)).await,
            Err(other) => panic!("{other}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_comes_back_with_its_data_and_as_nobody_else() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = |store| NodeConfig::new(7, store, directory.path());
    let node = Node::start(config(1), Last).await.expect("starts");
    node.create_group(1, None, &[1]).await.expect("created");
    node.create_group(1, None, &[1])
        .await
        .expect("there already");
    assert_eq!(propose(&node, "one").await, "");
    assert_eq!(propose(&node, "two").await, "one");
    node.stop().await.expect("stops");

    let node = Node::start(config(1), Last).await.expect("starts again");
    assert_eq!(propose(&node, "three").await, "two");
    let permit = node.read(1).await.expect("leads");
    let last = node
        .data()
        .get(&permit.descriptor, b"last")
        .expect("a disk");
    assert_eq!(last, Some(Bytes::from_static(b"three")));
    node.stop().await.expect("stops");

    let other = Node::start(config(2), Last)
        .await
        .expect_err("store 1's directory");
    assert!(other.to_string().contains("belongs to store 1"), "{other}");
}
