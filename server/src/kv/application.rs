//! What the groups of the ready server replicate: a map of bytes to bytes.

use bytes::Bytes;
use polyraft_multiraft::env;
use polyraft_store::disk::DiskError;
use polyraft_store::{Application, GroupTxn};

use super::command::{Command, Reply};

/// The key-value application. It has no state of its own: all is in the group's keys.
#[derive(Clone, Copy, Debug, Default)]
pub struct Kv;

impl Application for Kv {
    fn apply(&self, txn: &mut GroupTxn<'_>, command: &env::Command) -> Result<Bytes, DiskError> {
        let Some(command) = Command::decode(&command.data) else {
            return Ok(Reply::Malformed.encode());
        };
        // The range is the replicated one, so every replica decides alike. A key outside comes from
        // a router that was behind; it must not reach the transaction, which treats it as a bug.
        if let Some(range) = &txn.descriptor().range
            && !command.keys().all(|key| range.contains(key))
        {
            return Ok(Reply::OutOfRange.encode());
        }
        for (key, expected) in &command.conditions {
            if txn.get(key)? != *expected {
                return Ok(Reply::ConditionFailed.encode());
            }
        }
        for (key, value) in command.mutations {
            match value {
                Some(value) => txn.put(&key, value)?,
                None => txn.delete(&key)?,
            }
        }
        Ok(Reply::Applied.encode())
    }
}
