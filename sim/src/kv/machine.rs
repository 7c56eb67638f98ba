//! The application of the built-in subject: what the groups replicate, and how it is read.

use bytes::Bytes;
use polyraft_multiraft::GroupDescriptor;
use polyraft_multiraft::env;
use polyraft_store::disk::DiskError;
use polyraft_store::{Application, GroupTxn};

use super::KEYS;
use super::codec::{Command, Outcome, Query, Reply, answer, scan_answer};
use crate::kit::{GroupView, Readable};

/// What the groups replicate: the application under the sessions.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct KvApplication;

/// Bytes in which all groups agree that a range was ever split into: their keys have the same names.
const FAMILY: usize = 9;

/// Where a key of the group, or of one that it was split from, stands.
fn place(descriptor: &GroupDescriptor, key: u8) -> Vec<u8> {
    let start = descriptor.range.as_ref().map(|range| range.start.as_ref());
    place_from(start.unwrap_or_default(), key)
}

/// The same, from the first key of any of these ranges.
pub(super) fn place_from(start: &[u8], key: u8) -> Vec<u8> {
    let mut place = start[..start.len().min(FAMILY)].to_vec();
    place.extend_from_slice(&[b'/', b'k', b'0' + key]);
    place
}

fn is_here(descriptor: &GroupDescriptor, place: &[u8]) -> bool {
    let range = descriptor.range.as_ref();
    range.is_none_or(|range| range.contains(place))
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
        // The host sees to it that no command comes here that was meant for another range.
        if !is_here(txn.descriptor(), &key) {
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

    fn refuse(&self, descriptor: &GroupDescriptor, command: &env::Command) -> Option<Bytes> {
        let range = descriptor.range.as_ref()?;
        let Command { key, .. } = Command::decode(&command.data)?;
        if range.contains(&place(descriptor, key)) {
            return None;
        }
        let (index, outcome) = (command.id.index.0, Outcome::Elsewhere);
        Some(Reply { index, outcome }.encode())
    }
}

impl Readable for KvApplication {
    fn query(view: &GroupView<'_>, query: &Bytes) -> Result<Bytes, String> {
        let query = Query::decode(query).ok_or("a malformed query")?;
        let counter = |bytes: &Bytes| value(bytes).map_err(|error| error.to_string());
        let place = |key| place(view.descriptor(), key);
        match query {
            Query::Get(key) if !is_here(view.descriptor(), &place(key)) => {
                Err("the key is in another range".to_owned())
            }
            Query::Get(key) => {
                let found = view.get(&place(key))?;
                Ok(answer([found.as_ref().map(counter).transpose()?]))
            }
            Query::Scan => {
                let here = (0..KEYS).filter(|key| is_here(view.descriptor(), &place(*key)));
                let mut values: Vec<(u8, Option<u64>)> = here.map(|key| (key, None)).collect();
                let limit = usize::from(KEYS) + 1;
                let start = values
                    .first()
                    .map(|(key, _)| place(*key))
                    .unwrap_or_default();
                for (name, bytes) in view.scan(&start, None, limit)? {
                    let known = values.iter_mut().find(|(key, _)| place(*key) == name);
                    let known =
                        known.ok_or_else(|| format!("nobody wrote such a key: {name:?}"))?;
                    known.1 = Some(counter(&bytes)?);
                }
                Ok(scan_answer(values))
            }
        }
    }
}
