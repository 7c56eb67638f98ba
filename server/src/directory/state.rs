//! The directory as a state machine: what its log makes of the keys of its group.
//!
//! | name | what |
//! |---|---|
//! | `m` | what there is once: the next numbers, and how the cluster may change by itself |
//! | `g` group | what is known of a group |
//! | `k` end | a segment of keys: see [`segments`](super::segments) |
//! | `s` store | what is known of a store |
//! | `t` store | the last request of a store for numbers, and what it was granted |
//!
//! Invariants: a number is granted once, whatever comes twice or late, and lies above all that were taken
//! before; nothing depends on anything but the keys and the command.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use polyraft_store::GroupTxn;
use polyraft_store::disk::DiskError;

use super::FIRST_OF_THE_SYSTEM;
use super::codec::take_flag;
use super::command::{Command, Grant, Numbers, Reply, Token};
use super::entry::{Entry, Limits, StoreEntry};
use super::segments;

const META: &[u8] = b"m";
const STORE: u8 = b's';
const GRANT: u8 = b't';

const VERSION: u8 = 1;
/// Numbers granted at once.
pub(crate) const NUMBERS_MAX: u64 = 1 << 20;

/// What there is once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) next_group: u64,
    pub(crate) next_store: u64,
    /// The cluster does not change by itself.
    pub(crate) paused: bool,
    pub(crate) limits: Limits,
}

impl Meta {
    fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(VERSION);
        out.put_u64(self.next_group);
        out.put_u64(self.next_store);
        out.put_u8(u8::from(self.paused));
        self.limits.put(&mut out);
        out.freeze()
    }

    fn decode(bytes: &Bytes) -> Result<Self, DiskError> {
        let mut rest = bytes.clone();
        let mut take = || {
            (rest.try_get_u8().ok()? == VERSION).then_some(())?;
            let meta = Self {
                next_group: rest.try_get_u64().ok()?,
                next_store: rest.try_get_u64().ok()?,
                paused: take_flag(&mut rest)?,
                limits: Limits::take(&mut rest)?,
            };
            (!rest.has_remaining()).then_some(meta)
        };
        take().ok_or_else(damaged)
    }
}

fn damaged() -> DiskError {
    DiskError::Fatal("what the directory keeps is malformed".to_owned())
}

fn name(kind: u8, store: u64) -> Bytes {
    let mut name = BytesMut::with_capacity(9);
    name.put_u8(kind);
    name.put_u64(store);
    name.freeze()
}

/// Applies a command.
///
/// # Errors
/// Only the transaction's, and that what was kept is malformed: either stops the store.
pub(crate) fn apply(txn: &mut GroupTxn<'_>, command: &Bytes) -> Result<Bytes, DiskError> {
    let reply = match Command::decode(command) {
        Some(command) => run(txn, command)?,
        None => Reply::Malformed,
    };
    Ok(reply.encode())
}

fn run(txn: &mut GroupTxn<'_>, command: Command) -> Result<Reply, DiskError> {
    match command {
        Command::Begin { groups, stores } => begin(txn, groups, stores),
        Command::Publish(entries) => {
            for entry in entries {
                segments::publish(txn, entry)?;
            }
            Ok(Reply::Done)
        }
        Command::Destroyed(groups) => {
            // The system's are never destroyed.
            for group in groups.into_iter().filter(|g| *g < FIRST_OF_THE_SYSTEM) {
                segments::destroyed(txn, group)?;
            }
            Ok(Reply::Done)
        }
        Command::Allocate { token, of, count } => allocate(txn, token, of, count),
        Command::Store { store, address } => met(txn, store, address),
        Command::Heard {
            store,
            silent_since,
        } => change_store(txn, store, |entry| entry.silent_since = silent_since),
        Command::SetState { store, state } => change_store(txn, store, |entry| entry.state = state),
        Command::Settings { paused, limits } => {
            let Some(meta) = meta(txn)? else {
                return Ok(Reply::NotBegun);
            };
            let meta = Meta {
                paused: paused.unwrap_or(meta.paused),
                limits: limits.unwrap_or(meta.limits),
                ..meta
            };
            txn.put(META, meta.encode())?;
            Ok(Reply::Done)
        }
    }
}

fn meta(txn: &GroupTxn<'_>) -> Result<Option<Meta>, DiskError> {
    let kept = txn.get(META)?;
    kept.map(|kept| Meta::decode(&kept)).transpose()
}

fn begin(
    txn: &mut GroupTxn<'_>,
    groups: u64,
    stores: Vec<(u64, String)>,
) -> Result<Reply, DiskError> {
    if meta(txn)?.is_some() {
        return Ok(Reply::Done);
    }
    if groups >= FIRST_OF_THE_SYSTEM - NUMBERS_MAX {
        return Ok(Reply::TooMany);
    }
    let meta = Meta {
        next_group: groups + 1,
        next_store: 1,
        ..Meta::default()
    };
    txn.put(META, meta.encode())?;
    for (store, address) in stores {
        met(txn, store, address)?;
    }
    Ok(Reply::Done)
}

/// A store is there. Its number is taken, whoever gave it.
fn met(txn: &mut GroupTxn<'_>, store: u64, address: String) -> Result<Reply, DiskError> {
    let Some(meta) = meta(txn)? else {
        return Ok(Reply::NotBegun);
    };
    if store == 0 || store >= FIRST_OF_THE_SYSTEM {
        return Ok(Reply::Malformed);
    }
    if store >= meta.next_store {
        let next_store = store + 1;
        txn.put(META, Meta { next_store, ..meta }.encode())?;
    }
    let known = store_entry(txn, store)?;
    let entry = StoreEntry {
        store,
        address,
        ..known.unwrap_or_default()
    };
    put_store(txn, &entry)?;
    Ok(Reply::Done)
}

fn store_entry(txn: &GroupTxn<'_>, store: u64) -> Result<Option<StoreEntry>, DiskError> {
    let kept = txn.get(&name(STORE, store))?;
    kept.map(|kept| decode_store(&kept)).transpose()
}

fn put_store(txn: &mut GroupTxn<'_>, entry: &StoreEntry) -> Result<(), DiskError> {
    let mut out = BytesMut::new();
    out.put_u8(VERSION);
    entry.put(&mut out);
    txn.put(&name(STORE, entry.store), out.freeze())
}

fn decode_store(value: &Bytes) -> Result<StoreEntry, DiskError> {
    let mut rest = value.clone();
    let mut take = || {
        (rest.try_get_u8().ok()? == VERSION).then_some(())?;
        let entry = StoreEntry::take(&mut rest)?;
        (!rest.has_remaining()).then_some(entry)
    };
    take().ok_or_else(damaged)
}

fn change_store(
    txn: &mut GroupTxn<'_>,
    store: u64,
    change: impl FnOnce(&mut StoreEntry),
) -> Result<Reply, DiskError> {
    let Some(mut entry) = store_entry(txn, store)? else {
        return Ok(Reply::NoStore);
    };
    change(&mut entry);
    put_store(txn, &entry)?;
    Ok(Reply::Done)
}

fn allocate(
    txn: &mut GroupTxn<'_>,
    token: Token,
    of: Numbers,
    count: u64,
) -> Result<Reply, DiskError> {
    let Some(mut meta) = meta(txn)? else {
        return Ok(Reply::NotBegun);
    };
    if !(1..=NUMBERS_MAX).contains(&count) {
        return Ok(Reply::TooMany);
    }
    if let Some(kept) = txn.get(&name(GRANT, token.store))? {
        let last = decode_grant(&kept)?;
        if last.token == token && (last.of, last.count) == (of, count) {
            let Grant { first, count, .. } = last;
            return Ok(Reply::Granted { first, count });
        }
        if last.token >= token {
            return Ok(Reply::Expired);
        }
    }
    let next = match of {
        Numbers::Groups => &mut meta.next_group,
        Numbers::Stores => &mut meta.next_store,
    };
    let first = *next;
    match first.checked_add(count) {
        Some(after) if after <= FIRST_OF_THE_SYSTEM => *next = after,
        _ => return Ok(Reply::TooMany),
    }
    txn.put(META, meta.encode())?;
    let mut out = BytesMut::new();
    out.put_u8(VERSION);
    let grant = Grant {
        token,
        of,
        first,
        count,
    };
    grant.put(&mut out);
    txn.put(&name(GRANT, token.store), out.freeze())?;
    Ok(Reply::Granted { first, count })
}

fn decode_grant(value: &Bytes) -> Result<Grant, DiskError> {
    let mut rest = value.clone();
    let mut take = || {
        (rest.try_get_u8().ok()? == VERSION).then_some(())?;
        let grant = Grant::take(&mut rest)?;
        (!rest.has_remaining()).then_some(grant)
    };
    take().ok_or_else(damaged)
}

/// What there is once and the stores, from whatever `scan` reads: names of `[from, to)` in order, at most
/// so many. None: there was no [`Command::Begin`] yet.
///
/// # Errors
/// Those of `scan`, and that what was kept is malformed.
pub(crate) fn read_cluster(
    scan: impl Fn(&[u8], &[u8], usize) -> Result<Vec<(Bytes, Bytes)>, DiskError>,
) -> Result<Option<(Meta, Vec<StoreEntry>)>, DiskError> {
    // One look at all names from the one to the other sees one moment.
    let found = scan(META, &[STORE + 1], usize::MAX)?;
    let mut cluster: Option<(Meta, Vec<StoreEntry>)> = None;
    for (name, value) in found {
        match (name.first(), &mut cluster) {
            (Some(b'm'), _) => cluster = Some((Meta::decode(&value)?, Vec::new())),
            (Some(_), Some((_, stores))) => stores.push(decode_store(&value)?),
            _ => return Err(damaged()),
        }
    }
    Ok(cluster)
}

/// Groups with numbers from `from` on, with or without a range, at most `limit` of them; from whatever
/// `scan` reads. What was destroyed is left out. And where to go on; none: these were the last.
///
/// # Errors
/// Those of `scan`, and that what was kept is malformed.
pub(crate) fn read_groups(
    scan: impl Fn(&[u8], &[u8], usize) -> Result<Vec<(Bytes, Bytes)>, DiskError>,
    from: u64,
    limit: usize,
) -> Result<(Vec<Entry>, Option<u64>), DiskError> {
    let found = scan(&segments::group_name(from), &[segments::GROUP + 1], limit)?;
    let full = found.len() == limit;
    let (mut entries, mut last) = (Vec::new(), None);
    for (name, value) in found {
        let number = name.get(1..).and_then(|number| number.try_into().ok());
        last = Some(u64::from_be_bytes(number.ok_or_else(damaged)?));
        if let segments::Record::Known(entry) = segments::decode_record(&value)? {
            entries.push(entry);
        }
    }
    let next = last.filter(|_| full).and_then(|last| last.checked_add(1));
    Ok((entries, next))
}

/// How one may think of a store that has been silent since `silent_since`.
pub(crate) const fn is_dead_by(entry: &StoreEntry, limits: &Limits, now: u64) -> bool {
    entry.silent_since != 0 && now.saturating_sub(entry.silent_since) >= limits.dead_after
}

#[cfg(test)]
mod tests;
