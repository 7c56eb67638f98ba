//! What disks in memory are made of: column families of ordered bytes, without a word about what
//! survives what.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use crate::disk::{Cf, Change, DiskError, Pair, View};

/// See the module. Behind an [`Arc`] it is a [`View`]: whoever changes it then changes a copy of its own.
#[derive(Clone, Debug, Default)]
pub struct Tables(BTreeMap<Cf, BTreeMap<Bytes, Bytes>>);

impl Tables {
    /// Makes one change.
    pub fn apply(&mut self, cf: Cf, change: &Change) {
        let table = self.table_mut(cf);
        match change {
            Change::Put(key, value) => {
                table.insert(key.clone(), value.clone());
            }
            Change::Delete(key) => {
                table.remove(key);
            }
            Change::DeleteRange(start, end) => {
                while let Some((key, _)) = table.range(start.clone()..end.clone()).next() {
                    let key = key.clone();
                    table.remove(&key);
                }
            }
        }
    }

    /// The pairs of a column family, for those who damage them.
    pub fn table_mut(&mut self, cf: Cf) -> &mut BTreeMap<Bytes, Bytes> {
        self.0.entry(cf).or_default()
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, cf: Cf, key: &[u8]) -> Option<Bytes> {
        self.0.get(&cf).and_then(|table| table.get(key)).cloned()
    }

    /// Pairs of `[start, end)` in order, at most `limit` of them; no `end`: to the last.
    #[must_use]
    pub fn scan(&self, cf: Cf, start: &[u8], end: Option<&[u8]>, limit: usize) -> Vec<Pair> {
        let Some(table) = self.0.get(&cf) else {
            return Vec::new();
        };
        let start = Bytes::copy_from_slice(start);
        table
            .range(start..)
            .take_while(|(key, _)| end.is_none_or(|end| key < &end))
            .take(limit)
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    }

    /// The last pairs of `[start, end)`, at most `limit` of them, the last one first; no `end`: from the
    /// very last.
    #[must_use]
    pub fn scan_reverse(
        &self,
        cf: Cf,
        start: &[u8],
        end: Option<&[u8]>,
        limit: usize,
    ) -> Vec<Pair> {
        let Some(table) = self.0.get(&cf) else {
            return Vec::new();
        };
        let below = end.map_or(Bound::Unbounded, Bound::Excluded);
        table
            .range::<[u8], _>((Bound::Unbounded, below))
            .rev()
            .take_while(|(key, _)| *key >= start)
            .take(limit)
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    }
}

impl View for Arc<Tables> {
    fn get(&self, cf: Cf, key: &[u8]) -> Result<Option<Bytes>, DiskError> {
        Ok(Tables::get(self, cf, key))
    }

    fn scan(
        &self,
        cf: Cf,
        start: &[u8],
        end: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Pair>, DiskError> {
        Ok(Tables::scan(self, cf, start, end, limit))
    }

    fn scan_reverse(
        &self,
        cf: Cf,
        start: &[u8],
        end: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Pair>, DiskError> {
        Ok(Tables::scan_reverse(self, cf, start, end, limit))
    }
}
