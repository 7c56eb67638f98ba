//! What an application sees of its group while it applies a command: its keys, with everything that
//! this turn has already changed.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use polyraft_multiraft::{GroupDescriptor, GroupId};

use crate::disk::{Batch, Cf, Change, Disk, DiskError, Pair};
use crate::keys::{self, Local};

/// Pairs of the session table read at once.
const SESSION_PAGE: usize = 8;

/// A group's keys during one turn of applying. Changes become visible to others, and durable,
/// together with the index of the last command.
pub struct GroupTxn<'a> {
    disk: &'a dyn Disk,
    descriptor: &'a GroupDescriptor,
    changes: Changes,
}

/// New values by key; none: it is removed.
pub(super) type Changes = BTreeMap<Bytes, Option<Bytes>>;

impl<'a> GroupTxn<'a> {
    pub(crate) fn new(disk: &'a dyn Disk, descriptor: &'a GroupDescriptor) -> Self {
        Self {
            disk,
            descriptor,
            changes: BTreeMap::new(),
        }
    }

    /// The group's descriptor. Where turns begin differs from store to store: of what may change with any
    /// entry, such as the members, an application must make nothing.
    #[must_use]
    pub const fn descriptor(&self) -> &GroupDescriptor {
        self.descriptor
    }

    /// The group's range, members or epoch have changed.
    pub(super) const fn set_descriptor(&mut self, descriptor: &'a GroupDescriptor) {
        self.descriptor = descriptor;
    }

    /// What the turn has changed of the keys of another group's range: it is not this group's any more.
    pub(super) fn take_keys(&mut self, descriptor: &GroupDescriptor) -> Changes {
        let (start, end, _) = user_bounds(descriptor);
        let mut taken = self.changes.split_off(&start);
        let mut above = taken.split_off(&end);
        self.changes.append(&mut above);
        taken
    }

    /// What [`Self::take_keys`] of another group gave.
    pub(super) fn give_keys(&mut self, mut taken: Changes) {
        self.changes.append(&mut taken);
    }

    /// The value of a key.
    ///
    /// # Errors
    /// The engine's, or the key is outside of the group's range.
    pub fn get(&self, key: &[u8]) -> Result<Option<Bytes>, DiskError> {
        self.read(&user_key(self.descriptor, key)?)
    }

    /// Pairs of `[start, end)` in order, at most `limit` of them; no `end`: to the end of the
    /// group's range.
    ///
    /// # Errors
    /// The engine's.
    pub fn scan(
        &self,
        start: &[u8],
        end: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Pair>, DiskError> {
        scan_user(self.descriptor, start, end, limit, |from, to, limit| {
            self.merged(from, to, limit)
        })
    }

    /// Sets a key.
    ///
    /// # Errors
    /// The key is outside of the group's range.
    pub fn put(&mut self, key: &[u8], value: Bytes) -> Result<(), DiskError> {
        self.changes
            .insert(user_key(self.descriptor, key)?, Some(value));
        Ok(())
    }

    /// Removes a key.
    ///
    /// # Errors
    /// The key is outside of the group's range.
    pub fn delete(&mut self, key: &[u8]) -> Result<(), DiskError> {
        self.changes.insert(user_key(self.descriptor, key)?, None);
        Ok(())
    }

    /// A value that the application keeps for the group beside its keys.
    ///
    /// # Errors
    /// The engine's.
    pub fn local_get(&self, name: &[u8]) -> Result<Option<Bytes>, DiskError> {
        self.read(&keys::local(
            self.descriptor.group,
            Local::Application,
            name,
        ))
    }

    /// Sets such a value.
    pub fn local_put(&mut self, name: &[u8], value: Bytes) {
        let key = keys::local(self.descriptor.group, Local::Application, name);
        self.changes.insert(key, Some(value));
    }

    /// Removes such a value.
    pub fn local_delete(&mut self, name: &[u8]) {
        let key = keys::local(self.descriptor.group, Local::Application, name);
        self.changes.insert(key, None);
    }

    /// Such values with names of `[start, end)` in order, at most `limit` of them; no `end`: to the last.
    ///
    /// # Errors
    /// The engine's.
    pub fn local_scan(
        &self,
        start: &[u8],
        end: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Pair>, DiskError> {
        self.local_pairs(Local::Application, start, end, limit)
    }

    /// A value of the session table.
    pub(super) fn session_get(&self, name: &[u8]) -> Result<Option<Bytes>, DiskError> {
        self.read(&keys::local(self.descriptor.group, Local::Session, name))
    }

    /// Sets a value of the session table.
    pub(super) fn session_put(&mut self, name: &[u8], value: Bytes) {
        let key = keys::local(self.descriptor.group, Local::Session, name);
        self.changes.insert(key, Some(value));
    }

    /// Removes a value of the session table.
    pub(super) fn session_delete(&mut self, name: &[u8]) {
        let key = keys::local(self.descriptor.group, Local::Session, name);
        self.changes.insert(key, None);
    }

    /// Values of the session table from `start` on, at most `limit` of them.
    pub(super) fn session_scan(&self, start: &[u8], limit: usize) -> Result<Vec<Pair>, DiskError> {
        self.local_pairs(Local::Session, start, None, limit)
    }

    /// The first value of the session table from `name` on, with its name.
    pub(super) fn session_first(&self, name: &[u8]) -> Result<Option<Pair>, DiskError> {
        let group = self.descriptor.group;
        let mut from = keys::local(group, Local::Session, name);
        let prefix = from.len() - name.len();
        let end = keys::local_end(group, Local::Session);
        let bounds = (Bound::Included(from.clone()), Bound::Excluded(end.clone()));
        let mut changes = self.changes.range(bounds);
        let changed = changes.find_map(|(key, value)| Some((key.clone(), value.clone()?)));
        let stored = loop {
            let page = self.disk.scan(Cf::Data, &from, Some(&end), SESSION_PAGE)?;
            let last = page.last().map(|(key, _)| key.clone());
            // What this turn has changed is in its changes, or gone.
            let mut kept = page.into_iter();
            let kept = kept.find(|(key, _)| !self.changes.contains_key(key));
            match (kept, last) {
                (None, Some(last)) => from = keys::after(&last),
                (kept, _) => break kept,
            }
        };
        let first = changed
            .into_iter()
            .chain(stored)
            .min_by(|one, two| one.0.cmp(&two.0));
        Ok(first.map(|(key, value)| (key.slice(prefix..), value)))
    }

    /// What is there with everything that the turn has changed.
    fn merged(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Pair>, DiskError> {
        let bounds = (Bound::Included(from), Bound::Excluded(to));
        let changes = || self.changes.range::<[u8], _>(bounds);
        // So many that enough remain when every changed key is a removed one.
        let enough = limit.saturating_add(changes().count());
        let found = self.disk.scan(Cf::Data, from, Some(to), enough)?;
        let mut merged: BTreeMap<Bytes, Bytes> = found.into_iter().collect();
        for (key, value) in changes() {
            match value {
                Some(value) => merged.insert(key.clone(), value.clone()),
                None => merged.remove(key),
            };
        }
        Ok(merged.into_iter().take(limit).collect())
    }

    /// Pairs of one kind of what the group keeps beside its keys, with their names.
    fn local_pairs(
        &self,
        kind: Local,
        start: &[u8],
        end: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Pair>, DiskError> {
        let group = self.descriptor.group;
        let from = keys::local(group, kind, start);
        let to = end.map_or_else(
            || keys::local_end(group, kind),
            |end| keys::local(group, kind, end),
        );
        if from >= to {
            return Ok(Vec::new());
        }
        let prefix = from.len() - start.len();
        let found = self.merged(&from, &to, limit)?;
        let named = |(key, value): Pair| (key.slice(prefix..), value);
        Ok(found.into_iter().map(named).collect())
    }

    fn read(&self, key: &Bytes) -> Result<Option<Bytes>, DiskError> {
        match self.changes.get(key) {
            Some(changed) => Ok(changed.clone()),
            None => self.disk.get(Cf::Data, key),
        }
    }

    pub(crate) fn finish(self, batch: &mut Batch) {
        for (key, value) in self.changes {
            let change = match value {
                Some(value) => Change::Put(key, value),
                None => Change::Delete(key),
            };
            batch.push((Cf::Data, change));
        }
    }
}

impl std::fmt::Debug for GroupTxn<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupTxn")
            .field("group", &self.descriptor.group)
            .finish_non_exhaustive()
    }
}

/// Where a key of the group stands.
pub(crate) fn user_key(descriptor: &GroupDescriptor, key: &[u8]) -> Result<Bytes, DiskError> {
    match &descriptor.range {
        None => Ok(keys::local(descriptor.group, Local::Private, key)),
        Some(range) if range.contains(key) => Ok(keys::user(key)),
        Some(_) => Err(DiskError::Fatal(format!(
            "group {} touched a key outside of its range: a bug in the application",
            descriptor.group
        ))),
    }
}

/// The bounds of all user keys of a group, and how much of a key is not the user's.
pub(crate) fn user_bounds(descriptor: &GroupDescriptor) -> (Bytes, Bytes, usize) {
    let group: GroupId = descriptor.group;
    match &descriptor.range {
        None => {
            let start = keys::local(group, Local::Private, b"");
            let prefix = start.len();
            (start, keys::local_end(group, Local::Private), prefix)
        }
        Some(range) => {
            let start = keys::user(&range.start);
            let end = range
                .end
                .as_ref()
                .map_or_else(keys::user_end, |end| keys::user(end));
            // A range that ends before it begins holds no key; no engine takes such bounds.
            let end = end.max(start.clone());
            (start, end, 1)
        }
    }
}

/// Pairs of `[start, end)` of a group's keys, in order, as the user knows them.
pub(crate) fn scan_user(
    descriptor: &GroupDescriptor,
    start: &[u8],
    end: Option<&[u8]>,
    limit: usize,
    scan: impl Fn(&[u8], &[u8], usize) -> Result<Vec<Pair>, DiskError>,
) -> Result<Vec<Pair>, DiskError> {
    let (low, high, prefix) = user_bounds(descriptor);
    let placed = |key: &[u8]| {
        let mut out = low[..prefix].to_vec();
        out.extend_from_slice(key);
        Bytes::from(out)
    };
    let from = placed(start).max(low.clone());
    let to = end.map_or(high.clone(), |end| placed(end).min(high.clone()));
    if from >= to {
        return Ok(Vec::new());
    }
    let found = scan(&from, &to, limit)?;
    Ok(found
        .into_iter()
        .map(|(key, value)| (key.slice(prefix..), value))
        .collect())
}
