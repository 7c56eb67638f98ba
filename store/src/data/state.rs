//! The bytes of what a group keeps of its own state: the last applied entry, written with every turn, and
//! the rest, written when it changes.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use polyraft_core::EntryId;
use polyraft_multiraft::env::StateMachineError;
use polyraft_multiraft::{AppliedState, GroupId};

use super::snapshot::{damaged, translate};
use crate::disk::{Batch, Cf, Change, DiskError};
use crate::keys::{self, Local};

const VERSION: u8 = 1;

pub(super) fn put_state(state: &AppliedState, membership: bool, batch: &mut Batch) {
    let group = state.descriptor.group;
    let mut applied = BytesMut::with_capacity(17);
    applied.put_u8(VERSION);
    applied.put_u64(state.last.term.0);
    applied.put_u64(state.last.index.0);
    let key = keys::local(group, Local::Applied, b"");
    batch.push((Cf::Data, Change::Put(key, applied.freeze())));
    if membership {
        let key = keys::local(group, Local::Membership, b"");
        batch.push((Cf::Data, Change::Put(key, state.encode())));
    }
}

pub(super) fn read_state(
    group: GroupId,
    get: impl Fn(Local) -> Result<Option<Bytes>, DiskError>,
) -> Result<Option<AppliedState>, StateMachineError> {
    let (applied, membership) = (
        get(Local::Applied).map_err(translate)?,
        get(Local::Membership).map_err(translate)?,
    );
    let (Some(mut applied), Some(membership)) = (applied, membership) else {
        return Ok(None);
    };
    if applied.len() != 17 || applied.get_u8() != VERSION {
        return Err(damaged(
            group,
            "the applied index is malformed or of an unknown version",
        ));
    }
    let last = EntryId::new(applied.get_u64(), applied.get_u64());
    let state =
        AppliedState::decode(&membership).map_err(|error| damaged(group, error.to_string()))?;
    Ok(Some(AppliedState { last, ..state }))
}
