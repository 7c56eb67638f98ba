//! Reads of a group's keys beside the state machine.
//!
//! Nothing here knows whether a read may be served: that is a matter of leases and read indexes, above.

use bytes::Bytes;
use polyraft_multiraft::GroupDescriptor;

use super::txn::{scan_user, user_key};
use super::{Application, DataStateMachine};
use crate::disk::{Cf, Disk, DiskError, Pair, View};
use crate::keys::{self, Local};

impl<A: Application, D: Disk + Clone> DataStateMachine<A, D> {
    /// The value of a key of a group, as of now.
    ///
    /// # Errors
    /// The engine's, or the key is outside of the range.
    pub fn get(
        &self,
        descriptor: &GroupDescriptor,
        key: &[u8],
    ) -> Result<Option<Bytes>, DiskError> {
        self.disk.get(Cf::Data, &user_key(descriptor, key)?)
    }

    /// The same for a reader whom no leadership protects; `None` while the group's data is not
    /// whole here. A snapshot is installed in several steps, and between them a key is absent that
    /// never was.
    ///
    /// # Errors
    /// Those of [`Self::get`].
    pub fn get_whole(
        &self,
        descriptor: &GroupDescriptor,
        key: &[u8],
    ) -> Result<Option<Option<Bytes>>, DiskError> {
        let Some(view) = self.whole(descriptor)? else {
            return Ok(None);
        };
        Ok(Some(view.get(Cf::Data, &user_key(descriptor, key)?)?))
    }

    /// A state of the disk in which the group's data is whole; none while it is not.
    pub(super) fn whole(
        &self,
        descriptor: &GroupDescriptor,
    ) -> Result<Option<Box<dyn View>>, DiskError> {
        let view = self.disk.view();
        let has = |kind| {
            let found = view.get(Cf::Data, &keys::local(descriptor.group, kind, b""));
            found.map(|found| found.is_some())
        };
        let whole = !has(Local::Installing)? && has(Local::Applied)?;
        Ok(whole.then_some(view))
    }

    /// Pairs of `[start, end)` of a group's keys in order, as of now.
    ///
    /// # Errors
    /// The engine's.
    pub fn scan(
        &self,
        descriptor: &GroupDescriptor,
        start: &[u8],
        end: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Pair>, DiskError> {
        scan_user(descriptor, start, end, limit, |from, to, limit| {
            self.disk.scan(Cf::Data, from, Some(to), limit)
        })
    }

    /// [`Self::scan`] for a reader as that of [`Self::get_whole`].
    ///
    /// # Errors
    /// The engine's.
    pub fn scan_whole(
        &self,
        descriptor: &GroupDescriptor,
        start: &[u8],
        end: Option<&[u8]>,
        limit: usize,
    ) -> Result<Option<Vec<Pair>>, DiskError> {
        let Some(view) = self.whole(descriptor)? else {
            return Ok(None);
        };
        let pairs = scan_user(descriptor, start, end, limit, |from, to, limit| {
            view.scan(Cf::Data, from, Some(to), limit)
        })?;
        Ok(Some(pairs))
    }

    /// The last pairs of `[start, end)` of a group's keys, the last one first, as of now.
    ///
    /// # Errors
    /// The engine's.
    pub fn scan_reverse(
        &self,
        descriptor: &GroupDescriptor,
        start: &[u8],
        end: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Pair>, DiskError> {
        scan_user(descriptor, start, end, limit, |from, to, limit| {
            self.disk.scan_reverse(Cf::Data, from, Some(to), limit)
        })
    }

    /// [`Self::scan_reverse`] for a reader as that of [`Self::get_whole`].
    ///
    /// # Errors
    /// The engine's.
    pub fn scan_reverse_whole(
        &self,
        descriptor: &GroupDescriptor,
        start: &[u8],
        end: Option<&[u8]>,
        limit: usize,
    ) -> Result<Option<Vec<Pair>>, DiskError> {
        let Some(view) = self.whole(descriptor)? else {
            return Ok(None);
        };
        let pairs = scan_user(descriptor, start, end, limit, |from, to, limit| {
            view.scan_reverse(Cf::Data, from, Some(to), limit)
        })?;
        Ok(Some(pairs))
    }
}
