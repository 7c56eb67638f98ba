//! A state machine in memory: keys and values per group, and what of it is flushed.
//!
//! A put replies the value before. What a group has applied, in order, is kept by the witness, which
//! also sees that all stores apply the same.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use polyraft_core::{EntryId, Index};
use polyraft_multiraft::env::conformance::{DataSubject, SeamFault};
use polyraft_multiraft::env::{
    ApplyItem, RangeChange, SnapshotSink, SnapshotSource, StagedSnapshot, StateMachine,
    StateMachineError,
};
use polyraft_multiraft::{AppliedState, GroupDescriptor, GroupId, KeyRange};

type Keys = BTreeMap<Bytes, Bytes>;

/// What survives restarts of the host. Clones share one disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct DataDisk {
    inner: Arc<Mutex<Inner>>,
    /// What all stores have applied, by group and index: it must be the same everywhere. None: nobody
    /// watches.
    witness: Option<Witness>,
}

/// See [`DataDisk::witness`].
pub(crate) type Witness = Arc<Mutex<Seen>>;

/// What all stores have applied.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// By group and index.
    pub(crate) applied: BTreeMap<(GroupId, Index), (EntryId, Bytes)>,
    /// Groups that splits have made, with the one that was split, and where.
    pub(crate) parents: BTreeMap<GroupId, (GroupId, Index)>,
    /// Groups that have merged into others, by those and where, with what they had applied then.
    pub(crate) merged: BTreeMap<(GroupId, Index), (GroupId, Index)>,
}

impl Seen {
    /// The keys that a group has written or been given up to an index, as far as they are in `range`.
    pub(crate) fn keys(
        &self,
        group: GroupId,
        upto: Index,
        range: Option<&KeyRange>,
    ) -> BTreeSet<Bytes> {
        let own = self.applied.range((group, Index(0))..=(group, upto));
        let own = own.map(|(_, (_, command))| key_of(command));
        let within = |key: &Bytes| range.is_none_or(|range| range.contains(key));
        let mut keys: BTreeSet<Bytes> = own.filter(within).collect();
        if let Some((parent, at)) = self.parents.get(&group) {
            keys.extend(self.keys(*parent, *at, range));
        }
        for (other, at) in self
            .merged
            .range((group, Index(0))..=(group, upto))
            .map(|(_, gone)| gone)
        {
            keys.extend(self.keys(*other, *at, range));
        }
        keys
    }

    fn watch(&mut self, item: &ApplyItem) {
        for command in &item.commands {
            let applied = (command.id, command.data.clone());
            let known = self
                .applied
                .entry((item.group, command.id.index))
                .or_insert_with(|| applied.clone());
            assert_eq!(*known, applied, "group {}: two histories", item.group);
        }
        let at = (item.group, item.state.last.index);
        match &item.range_change {
            None => {}
            Some(RangeChange::Split { rights }) => {
                for right in rights {
                    let group = right.state.descriptor.group;
                    let known = *self.parents.entry(group).or_insert(at);
                    assert_eq!(known, at, "group {group}: two origins");
                }
            }
            Some(RangeChange::Merge { right }) => {
                let gone = (right.descriptor.group, right.last.index);
                let known = *self.merged.entry(at).or_insert(gone);
                assert_eq!(known, gone, "{at:?}: two merges");
            }
        }
    }
}

/// One group's data.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Data {
    pub(crate) state: AppliedState,
    pub(crate) keys: Keys,
}

#[derive(Debug, Default)]
struct Inner {
    flushed: BTreeMap<GroupId, Data>,
    now: BTreeMap<GroupId, Data>,
    staged: BTreeMap<u64, Data>,
    next_token: u64,
    /// Groups that were merged and are not forgotten: as of now, and flushed.
    merged: [BTreeSet<GroupId>; 2],
    fault: Option<SeamFault>,
    /// By name: what was there at each inspection.
    inspected: BTreeMap<u64, Data>,
    /// Groups whose data is damaged.
    failing: BTreeSet<GroupId>,
}

impl DataDisk {
    pub(crate) fn new(witness: Witness) -> Self {
        Self {
            witness: Some(witness),
            ..Self::default()
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("nobody panics with it")
    }

    pub(crate) fn set_fault(&self, fault: Option<SeamFault>) {
        self.lock().fault = fault;
    }

    /// What was there at the inspection of this name.
    pub(crate) fn inspected(&self, id: u64) -> Option<Data> {
        self.lock().inspected.get(&id).cloned()
    }

    /// From now on every turn of a group fails.
    pub(crate) fn damage(&self, group: GroupId) {
        self.lock().failing.insert(group);
    }

    /// What is not flushed is gone.
    pub(crate) fn crash(&self) {
        let mut inner = self.lock();
        inner.now = inner.flushed.clone();
        inner.merged[0] = inner.merged[1].clone();
        inner.staged.clear();
        inner.fault = None;
    }

    fn watch(&self, item: &ApplyItem) {
        let Some(witness) = &self.witness else { return };
        witness.lock().expect("nobody panics with it").watch(item);
    }

    /// A group's data as of now.
    pub(crate) fn data(&self, group: GroupId) -> Option<Data> {
        self.lock().now.get(&group).cloned()
    }

    /// Snapshots that wait to be installed or discarded.
    #[cfg(shuttle)]
    pub(crate) fn staged(&self) -> usize {
        self.lock().staged.len()
    }

    /// The groups that have data.
    pub(crate) fn groups(&self) -> Vec<GroupId> {
        self.lock().now.keys().copied().collect()
    }
}

/// The command that puts a value under a key.
pub(crate) fn put(key: &[u8], value: &[u8]) -> Bytes {
    let mut command = BytesMut::new();
    put_pair(&mut command, key, value);
    command.freeze()
}

fn put_pair(out: &mut BytesMut, key: &[u8], value: &[u8]) {
    for part in [key, value] {
        out.put_u32(u32::try_from(part.len()).expect("parts are small"));
        out.put_slice(part);
    }
}

/// None: cut short.
fn take_pair(at: &mut Bytes) -> Option<(Bytes, Bytes)> {
    let mut part = || {
        let len = at.try_get_u32().ok()? as usize;
        (len <= at.len()).then(|| at.split_to(len))
    };
    Some((part()?, part()?))
}

fn damaged(group: GroupId, reason: &str) -> StateMachineError {
    let reason = reason.to_owned();
    StateMachineError::Group { group, reason }
}

impl Inner {
    fn check_room(&self) -> Result<(), StateMachineError> {
        match self.fault {
            Some(SeamFault::Full) => Err(StateMachineError::DiskFull),
            _ => Ok(()),
        }
    }

    /// No two groups have a key in common, now or after a crash.
    fn check_ranges(&self) {
        for (groups, when) in [(&self.now, "now"), (&self.flushed, "flushed")] {
            let mut ranges: Vec<_> = groups
                .iter()
                .filter_map(|(group, data)| Some((data.state.descriptor.range.clone()?, group)))
                .collect();
            ranges.sort_by(|(one, _), (two, _)| one.start.cmp(&two.start));
            for pair in ranges.windows(2) {
                let ((one, _), (two, _)) = (&pair[0], &pair[1]);
                assert!(!one.overlaps(two), "{when}: {pair:?}");
            }
            for (group, data) in groups {
                let Some(range) = &data.state.descriptor.range else {
                    continue;
                };
                let outside = data.keys.keys().find(|key| !range.contains(key));
                assert_eq!(outside, None, "group {group} with {range:?}");
            }
        }
    }

    /// The changes that a turn makes to the groups.
    fn change(&mut self, item: &ApplyItem, mut data: Data) {
        match &item.range_change {
            None => {}
            Some(RangeChange::Split { rights }) => {
                for right in rights {
                    let range = right.state.descriptor.range.as_ref();
                    let range = range.expect("what is split has a range");
                    let moves = |key: &Bytes, _: &mut Bytes| range.contains(key);
                    let keys: Keys = data.keys.extract_if(.., moves).collect();
                    let state = right.state.clone();
                    if right.keep {
                        let group = state.descriptor.group;
                        let before = self.now.insert(group, Data { state, keys });
                        assert_eq!(before, None, "group {group} is there already");
                    }
                }
            }
            Some(RangeChange::Merge { right }) => {
                let group = right.descriptor.group;
                let gone = self.now.remove(&group).expect("it is there");
                assert_eq!(gone.state, *right, "it has moved on");
                data.keys.extend(gone.keys);
                self.merged[0].insert(group);
            }
        }
        self.now.insert(item.group, data);
    }

    /// A change that is durable at once; what is only applied of other groups stays as it is.
    fn set(&mut self, group: GroupId, data: Option<Data>) {
        for groups in [&mut self.now, &mut self.flushed] {
            match &data {
                Some(data) => groups.insert(group, data.clone()),
                None => groups.remove(&group),
            };
        }
    }

    fn turn(&self, item: &ApplyItem) -> Result<(Data, Vec<Bytes>), StateMachineError> {
        let group = item.group;
        if self.failing.contains(&group) {
            return Err(damaged(group, "damaged on purpose"));
        }
        let Some(mut data) = self.now.get(&group).cloned() else {
            return Err(damaged(group, "no such group"));
        };
        let mut replies = Vec::new();
        for command in &item.commands {
            assert!(
                command.id.index > data.state.last.index,
                "group {group}: {:?} is applied already",
                command.id
            );
            let pair = take_pair(&mut command.data.clone());
            let (key, value) = pair.expect("a committed command is one that was proposed");
            let range = data.state.descriptor.range.as_ref();
            assert!(
                range.is_none_or(|range| range.contains(&key)),
                "group {group}: {key:?} is not within {range:?}"
            );
            let before = data.keys.insert(key, value).unwrap_or_default();
            replies.push(before);
        }
        data.state = item.state.clone();
        Ok((data, replies))
    }
}

impl StateMachine for DataDisk {
    fn recover(&self) -> Result<Vec<AppliedState>, StateMachineError> {
        let inner = self.lock();
        Ok(inner.now.values().map(|data| data.state.clone()).collect())
    }

    fn merged(&self) -> Result<Vec<GroupId>, StateMachineError> {
        Ok(self.lock().merged[0].iter().copied().collect())
    }

    fn forget(&self, group: GroupId) -> Result<(), StateMachineError> {
        let mut inner = self.lock();
        inner.check_room()?;
        inner.merged[0].remove(&group);
        Ok(())
    }

    fn create(&self, state: &AppliedState) -> Result<(), StateMachineError> {
        let mut inner = self.lock();
        inner.check_room()?;
        let data = Data {
            state: state.clone(),
            ..Data::default()
        };
        inner.set(state.descriptor.group, Some(data));
        Ok(())
    }

    fn apply(&self, items: &mut [ApplyItem]) -> Result<(), StateMachineError> {
        let mut inner = self.lock();
        inner.check_room()?;
        let turns: Result<Vec<_>, _> = items.iter().map(|item| inner.turn(item)).collect();
        for (item, (data, replies)) in items.iter_mut().zip(turns?) {
            self.watch(item);
            inner.change(item, data);
            item.replies = replies;
        }
        inner.check_ranges();
        Ok(())
    }

    fn flush(&self) -> Result<(), StateMachineError> {
        let mut inner = self.lock();
        inner.check_room()?;
        inner.flushed = inner.now.clone();
        inner.merged[1] = inner.merged[0].clone();
        Ok(())
    }

    fn snapshot(&self, group: GroupId) -> Result<Box<dyn SnapshotSource>, StateMachineError> {
        let inner = self.lock();
        let data = inner.now.get(&group).cloned();
        let data = data.ok_or_else(|| damaged(group, "no such group"))?;
        Ok(Box::new(Source {
            rest: data.keys.clone(),
            state: data.state,
        }))
    }

    fn inspect(&self, group: GroupId, id: u64) {
        let mut inner = self.lock();
        if let Some(data) = inner.now.get(&group).cloned() {
            inner.inspected.insert(id, data);
        }
    }

    fn stage(&self, state: &AppliedState) -> Result<Box<dyn SnapshotSink>, StateMachineError> {
        let mut inner = self.lock();
        inner.check_room()?;
        inner.next_token += 1;
        Ok(Box::new(Sink {
            disk: self.clone(),
            token: inner.next_token,
            bytes: 0,
            data: Data {
                state: state.clone(),
                ..Data::default()
            },
        }))
    }

    fn restore(&self, staged: &StagedSnapshot) -> Result<(), StateMachineError> {
        let mut inner = self.lock();
        inner.check_room()?;
        let Some(data) = inner.staged.remove(&staged.token) else {
            return Err(StateMachineError::Fatal("nothing is staged".to_owned()));
        };
        for subsumed in &staged.subsumes {
            inner.set(subsumed.group, None);
            for merged in &mut inner.merged {
                merged.insert(subsumed.group);
            }
        }
        inner.set(staged.state.descriptor.group, Some(data));
        inner.check_ranges();
        Ok(())
    }

    fn discard(&self, staged: &StagedSnapshot) {
        self.lock().staged.remove(&staged.token);
    }

    fn destroy(&self, descriptor: &GroupDescriptor) -> Result<(), StateMachineError> {
        let mut inner = self.lock();
        inner.check_room()?;
        inner.set(descriptor.group, None);
        inner.failing.remove(&descriptor.group);
        Ok(())
    }
}

struct Source {
    state: AppliedState,
    rest: Keys,
}

impl SnapshotSource for Source {
    fn state(&self) -> &AppliedState {
        &self.state
    }

    fn next_chunk(&mut self, max_bytes: usize) -> Result<Option<Bytes>, StateMachineError> {
        let (mut pairs, mut count) = (BytesMut::new(), 0);
        while count == 0 || pairs.len() < max_bytes {
            let Some((key, value)) = self.rest.pop_first() else {
                break;
            };
            put_pair(&mut pairs, &key, &value);
            count += 1;
        }
        let mut chunk = BytesMut::new();
        chunk.put_u64(count);
        chunk.put_slice(&pairs);
        Ok((count > 0).then(|| chunk.freeze()))
    }
}

struct Sink {
    disk: DataDisk,
    token: u64,
    bytes: u64,
    data: Data,
}

impl SnapshotSink for Sink {
    fn write(&mut self, mut chunk: Bytes) -> Result<(), StateMachineError> {
        self.disk.lock().check_room()?;
        self.bytes += chunk.len() as u64;
        let cut_short = || damaged(self.data.state.descriptor.group, "cut short");
        for _ in 0..chunk.try_get_u64().map_err(|_| cut_short())? {
            let (key, value) = take_pair(&mut chunk).ok_or_else(cut_short)?;
            let range = self.data.state.descriptor.range.as_ref();
            if range.is_some_and(|range| !range.contains(&key)) {
                let group = self.data.state.descriptor.group;
                return Err(damaged(group, "a key outside of its range"));
            }
            self.data.keys.insert(key, value);
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<StagedSnapshot, StateMachineError> {
        let mut inner = self.disk.lock();
        inner.check_room()?;
        let (token, state, bytes) = (self.token, self.data.state.clone(), self.bytes);
        inner.staged.insert(token, self.data.clone());
        Ok(StagedSnapshot {
            token,
            state,
            bytes,
            subsumes: Vec::new(),
        })
    }
}

impl DataSubject for DataDisk {
    type Machine = Self;

    fn open(&self) -> Self {
        self.clone()
    }

    fn crash(&self) -> bool {
        Self::crash(self);
        true
    }

    fn set_fault(&self, fault: Option<SeamFault>) -> bool {
        Self::set_fault(self, fault);
        true
    }

    fn put(&self, key: &[u8], value: &[u8]) -> Bytes {
        put(key, value)
    }

    fn contents(&self, machine: &Self, descriptor: &GroupDescriptor) -> Vec<(Bytes, Bytes)> {
        // Its range may be that of a group under another number.
        let Some(range) = &descriptor.range else {
            return Vec::new();
        };
        let inner = machine.lock();
        let all = inner.now.values().flat_map(|data| &data.keys);
        let within = all.filter(|(key, _)| range.contains(key));
        let mut pairs: Vec<_> = within
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        pairs.sort();
        pairs
    }
}

/// The key of a command made by [`put`].
pub(crate) fn key_of(command: &Bytes) -> Bytes {
    let pair = take_pair(&mut command.clone());
    pair.expect("a committed command is one that was proposed")
        .0
}
