//! As much of dashmap as is used here.
//!
//! A lock around the whole, so each call is a moment of its own. A walk takes the lock for every
//! value anew and sees what happens meanwhile, more so than the original, which locks a shard at a
//! time. What is found is given as a copy: nobody holds a guard across another call.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::ops::{Bound, Deref};

use super::lock::{Guard, Mutex};

/// See the module. The hasher is only there for the name.
#[derive(Debug)]
pub(crate) struct DashMap<K, V, S> {
    values: Mutex<BTreeMap<K, V>>,
    hasher: PhantomData<fn() -> S>,
}

impl<K, V, S> Default for DashMap<K, V, S> {
    fn default() -> Self {
        Self {
            values: Mutex::new(BTreeMap::new()),
            hasher: PhantomData,
        }
    }
}

/// What was found.
pub(crate) struct Ref<V>(V);

impl<V> Deref for Ref<V> {
    type Target = V;

    fn deref(&self) -> &V {
        &self.0
    }
}

/// The place of a key, locked.
pub(crate) enum Entry<'a, K, V> {
    Occupied(Occupied<'a, K, V>),
    Vacant(Vacant<'a, K, V>),
}

pub(crate) struct Occupied<'a, K, V> {
    values: Guard<'a, BTreeMap<K, V>>,
    key: K,
}

pub(crate) struct Vacant<'a, K, V> {
    values: Guard<'a, BTreeMap<K, V>>,
    key: K,
}

impl<K: Ord + Copy, V: Clone, S> DashMap<K, V, S> {
    pub(crate) fn get(&self, key: &K) -> Option<Ref<V>> {
        self.values.lock().get(key).cloned().map(Ref)
    }

    pub(crate) fn entry(&self, key: K) -> Entry<'_, K, V> {
        let values = self.values.lock();
        if values.contains_key(&key) {
            Entry::Occupied(Occupied { values, key })
        } else {
            Entry::Vacant(Vacant { values, key })
        }
    }

    pub(crate) fn remove(&self, key: &K) -> Option<(K, V)> {
        self.values.lock().remove_entry(key)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Ref<V>> + '_ {
        let mut from = Bound::Unbounded;
        std::iter::from_fn(move || {
            let values = self.values.lock();
            let (key, value) = values.range((from, Bound::Unbounded)).next()?;
            from = Bound::Excluded(*key);
            Some(Ref(value.clone()))
        })
    }
}

impl<K: Ord + Copy, V> Occupied<'_, K, V> {
    pub(crate) fn get_mut(&mut self) -> &mut V {
        let found = self.values.get_mut(&self.key);
        found.expect("it was there when the lock was taken")
    }
}

impl<K: Ord + Copy, V> Vacant<'_, K, V> {
    pub(crate) fn insert(mut self, value: V) {
        self.values.insert(self.key, value);
    }
}
