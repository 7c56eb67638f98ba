//! What the groups of the ready server replicate: a map of bytes to bytes; and, in a group of the system's,
//! the directory.

use bytes::Bytes;
use polyraft_core::EntryId;
use polyraft_multiraft::{GroupDescriptor, env};
use polyraft_store::disk::DiskError;
use polyraft_store::{Application, GroupTxn, Sessions, SplitAt};

use super::command::{Command, Reply, in_session, of_a_session};
use crate::directory::{DIRECTORY, state};

/// The key-value application. It has no state of its own: all is in the group's keys, and in its
/// sessions.
#[derive(Clone, Copy, Debug, Default)]
pub struct Kv;

impl Application for Kv {
    fn apply(&self, txn: &mut GroupTxn<'_>, command: &env::Command) -> Result<Bytes, DiskError> {
        if txn.descriptor().group.0 == DIRECTORY {
            return state::apply(txn, &command.data);
        }
        let Some(data) = in_session(&command.data) else {
            return Plain.apply(txn, command);
        };
        let id = command.id;
        let reply = Sessions::new(Plain).apply(txn, &env::Command { id, data })?;
        Ok(of_a_session(&reply))
    }

    /// A command of a session may have been applied when its keys were here: the sessions know.
    fn refuse(&self, descriptor: &GroupDescriptor, command: &env::Command) -> Option<Bytes> {
        match in_session(&command.data) {
            Some(_) => None,
            None => Plain.refuse(descriptor, command),
        }
    }

    fn split(
        &self,
        at: SplitAt,
        left: &mut GroupTxn<'_>,
        right: &mut GroupTxn<'_>,
    ) -> Result<(), DiskError> {
        Sessions::new(Plain).split(at, left, right)
    }

    fn merge(
        &self,
        at: EntryId,
        left: &mut GroupTxn<'_>,
        right: &GroupTxn<'_>,
    ) -> Result<(), DiskError> {
        Sessions::new(Plain).merge(at, left, right)
    }
}

/// The commands themselves.
#[derive(Clone, Copy, Debug)]
struct Plain;

impl Application for Plain {
    fn apply(&self, txn: &mut GroupTxn<'_>, command: &env::Command) -> Result<Bytes, DiskError> {
        let Some(command) = Command::decode(&command.data) else {
            return Ok(Reply::Malformed.encode());
        };
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

    /// The range is the replicated one, so every replica decides alike. A key outside comes from a
    /// router that was behind; it must not reach the transaction, which treats it as a bug.
    fn refuse(&self, descriptor: &GroupDescriptor, command: &env::Command) -> Option<Bytes> {
        let range = descriptor.range.as_ref()?;
        Command::is_outside(&command.data, range).then(|| Reply::OutOfRange.encode())
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;
    use std::sync::Arc;

    use polyraft_multiraft::env::{ApplyItem, StateMachine};
    use polyraft_multiraft::{AppliedState, GroupId, KeyRange};
    use polyraft_store::sessions::{Session, SessionReply};
    use polyraft_store::{DataStateMachine, MemoryDisk};

    use super::super::command::decode_reply;
    use super::*;

    fn apply(machine: &DataStateMachine<Kv, MemoryDisk>, commands: &[Bytes]) -> Vec<SessionReply> {
        apply_to(machine, None, commands)
    }

    fn apply_to(
        machine: &DataStateMachine<Kv, MemoryDisk>,
        range: Option<KeyRange>,
        commands: &[Bytes],
    ) -> Vec<SessionReply> {
        let descriptor = GroupDescriptor {
            group: GroupId(1),
            range,
            ..GroupDescriptor::default()
        };
        let command = |(index, data): (u64, &Bytes)| env::Command {
            id: EntryId::new(1, index),
            data: data.clone(),
        };
        let mut items = [ApplyItem {
            group: GroupId(1),
            commands: (1..).zip(commands).map(command).collect(),
            state: AppliedState {
                last: EntryId::new(1, commands.len() as u64),
                descriptor: Arc::new(descriptor),
                ..AppliedState::default()
            },
            membership_changed: false,
            replies: Vec::new(),
            range_change: None,
        }];
        machine.apply(&mut items).unwrap();
        let replies = items[0].replies.iter();
        replies.map(|reply| decode_reply(reply).unwrap()).collect()
    }

    #[test]
    fn commands_with_and_without_a_session_live_together() {
        let machine = DataStateMachine::new(Kv, MemoryDisk::new());
        let key = Bytes::from_static(b"k");
        let cas = |before: Option<&'static str>, after: &'static str| Command {
            conditions: vec![(
                key.clone(),
                before.map(|text| Bytes::from_static(text.as_bytes())),
            )],
            mutations: vec![(key.clone(), Some(Bytes::from_static(after.as_bytes())))],
        };
        let mut session = Session::new(NonZeroU64::MIN, 0);
        let (first, second) = (session.number().unwrap(), session.number().unwrap());
        let replies = apply(
            &machine,
            &[
                cas(None, "1").encode(),
                cas(Some("1"), "2").encode_once(first),
                cas(Some("1"), "2").encode_once(first),
                cas(Some("1"), "2").encode(),
                cas(Some("1"), "2").encode_once(second),
                Bytes::from_static(b"\x02\x01"),
                Bytes::from_static(b"\x03"),
            ],
        );
        let applied = |reply: Reply| SessionReply::Applied(reply.encode());
        let expected = [
            applied(Reply::Applied),
            applied(Reply::Applied),
            applied(Reply::Applied),
            applied(Reply::ConditionFailed),
            applied(Reply::ConditionFailed),
            SessionReply::Malformed,
            applied(Reply::Malformed),
        ];
        assert_eq!(replies, expected);
    }

    #[test]
    fn keys_that_are_not_here_are_refused_and_leave_no_trace() {
        let machine = DataStateMachine::new(Kv, MemoryDisk::new());
        let put = |key: &'static [u8]| Command {
            conditions: Vec::new(),
            mutations: vec![(Bytes::from_static(key), Some(Bytes::from_static(b"v")))],
        };
        let range = |end: &'static [u8]| {
            Some(KeyRange {
                start: Bytes::from_static(b"b"),
                end: Some(Bytes::from_static(end)),
            })
        };
        let once = Session::new(NonZeroU64::MIN, 0).number().unwrap();
        let commands = [
            put(b"a").encode(),
            put(b"c").encode_once(once),
            put(b"c").encode(),
        ];
        let replies = apply_to(&machine, range(b"c"), &commands);
        let refusal = Reply::OutOfRange.encode();
        let expected = [
            SessionReply::Applied(refusal.clone()),
            SessionReply::Refused(refusal.clone()),
            SessionReply::Applied(refusal),
        ];
        assert_eq!(replies, expected);
        // The same write, where its key is; and once more, where it is not any more.
        let applied = SessionReply::Applied(Reply::Applied.encode());
        for end in [b"d".as_slice(), b"c"] {
            let again = apply_to(&machine, range(end), &commands[1..2]);
            assert_eq!(again, std::slice::from_ref(&applied));
        }
    }
}
