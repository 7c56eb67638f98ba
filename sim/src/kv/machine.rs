//! The state machine of the built-in subject: what the groups replicate, and how it is read.

use bytes::Bytes;
use polyraft_multiraft::GroupDescriptor;
use polyraft_multiraft::env::{self, StateMachine};
use polyraft_store::disk::DiskError;
use polyraft_store::{Application, DataStateMachine, GroupTxn, Sessions};

use super::codec::{Command, Outcome, Query, Reply, answer};
use super::{KEYS, SESSIONS};
use crate::disk::SimDisk;
use crate::subject::Served;

/// What the groups replicate: the application under the sessions.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct KvApplication;

pub(super) type Machine = DataStateMachine<Sessions<KvApplication, SESSIONS>, SimDisk>;

/// Where a key of the group stands.
pub(super) fn place(descriptor: &GroupDescriptor, key: u8) -> Vec<u8> {
    let mut place = Vec::new();
    if let Some(range) = &descriptor.range {
        place.extend_from_slice(&range.start);
    }
    place.extend_from_slice(&[b'/', b'k', b'0' + key]);
    place
}

pub(super) fn value(bytes: &[u8]) -> Result<u64, DiskError> {
    let bytes = bytes.try_into().map(u64::from_be_bytes);
    bytes.map_err(|_| DiskError::Corrupt("a value that is no counter".to_owned()))
}

pub(super) fn value_bytes(value: u64) -> Bytes {
    Bytes::copy_from_slice(&value.to_be_bytes())
}

impl Application for KvApplication {
    fn apply(&self, txn: &mut GroupTxn<'_>, command: &env::Command) -> Result<Bytes, DiskError> {
        let index = command.id.index.0;
        let reply = |outcome| Ok(Reply { index, outcome }.encode());
        let Some(Command { key, change }) = Command::decode(&command.data) else {
            return reply(Outcome::Malformed);
        };
        let key = place(txn.descriptor(), key);
        let range = txn.descriptor().range.as_ref();
        if range.is_some_and(|range| !range.contains(&key)) {
            return reply(Outcome::Malformed);
        }
        let before = txn.get(&key)?.map(|bytes| value(&bytes)).transpose()?;
        let (after, outcome) = change.of(before);
        match after {
            Some(after) if before != Some(after) => txn.put(&key, value_bytes(after))?,
            None if before.is_some() => txn.delete(&key)?,
            _ => {}
        }
        reply(outcome)
    }
}

impl Served for Machine {
    fn query(&self, descriptor: &GroupDescriptor, query: &Bytes) -> Result<Bytes, String> {
        let query = Query::decode(query).ok_or("a malformed query")?;
        let unreadable = |error: DiskError| error.to_string();
        let not_whole = "the group's data is not whole";
        match query {
            Query::Get(key) => {
                let found = self.get_whole(descriptor, &place(descriptor, key));
                let found = found.map_err(unreadable)?.ok_or(not_whole)?;
                let found = found.map(|bytes| value(&bytes)).transpose();
                Ok(answer([found.map_err(unreadable)?]))
            }
            Query::Scan => {
                let (first, limit) = (place(descriptor, 0), usize::from(KEYS) + 1);
                let pairs = self.scan_whole(descriptor, &first, None, limit);
                let mut values = [None; KEYS as usize];
                for (name, bytes) in pairs.map_err(unreadable)?.ok_or(not_whole)? {
                    let key = (0..KEYS).find(|key| place(descriptor, *key) == name);
                    let key = key.ok_or_else(|| format!("a key that nobody wrote: {name:?}"))?;
                    values[usize::from(key)] = Some(value(&bytes).map_err(unreadable)?);
                }
                Ok(answer(values))
            }
        }
    }

    /// Of the chunks of a snapshot: they hold all that there is but the applied index and the
    /// membership.
    fn digest(&self, descriptor: &GroupDescriptor) -> Result<u64, String> {
        let source = self.snapshot(descriptor.group);
        let mut source = source.map_err(|error| error.to_string())?;
        let mut digest = 0xcbf2_9ce4_8422_2325_u64;
        while let Some(chunk) = source
            .next_chunk(1 << 16)
            .map_err(|error| error.to_string())?
        {
            for byte in chunk {
                digest = (digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
        Ok(digest)
    }
}
