//! An [`Application`] of a user's, as a world runs it: around it is the state machine of `store`, the real
//! one, on the disk of the world.

use std::sync::Arc;

use bytes::Bytes;
use polyraft_multiraft::GroupDescriptor;
use polyraft_multiraft::env::StateMachine;
use polyraft_store::disk::{DiskError, Pair};
use polyraft_store::{Application, DataStateMachine, Sessions, SnapshotOptions};

use crate::disk::SimDisk;
use crate::subject::Served;

/// An application that clients of a world can read.
pub trait Readable: Application {
    /// Answers a query from a group's keys.
    ///
    /// # Errors
    /// Those of the view, or what is wrong with the query: the client asks again.
    fn query(view: &GroupView<'_>, query: &Bytes) -> Result<Bytes, String>;
}

impl<A: Readable, const MAX: u64> Readable for Sessions<A, MAX> {
    fn query(view: &GroupView<'_>, query: &Bytes) -> Result<Bytes, String> {
        A::query(view, query)
    }
}

/// The keys of a group on one store, as of one moment. While a snapshot of the group is being installed
/// there, it cannot be read.
pub struct GroupView<'a> {
    descriptor: &'a GroupDescriptor,
    data: &'a dyn WholeData,
}

impl GroupView<'_> {
    /// What the group is, as far as this store knows.
    #[must_use]
    pub const fn descriptor(&self) -> &GroupDescriptor {
        self.descriptor
    }

    /// The value of a key.
    ///
    /// # Errors
    /// The group's data is not whole here now, or the key lies outside of its range.
    pub fn get(&self, key: &[u8]) -> Result<Option<Bytes>, String> {
        whole(self.data.get(self.descriptor, key))
    }

    /// Pairs of `[start, end)` in order, at most `limit` of them; no `end`: to the end of the group's
    /// range.
    ///
    /// # Errors
    /// The group's data is not whole here now.
    pub fn scan(
        &self,
        start: &[u8],
        end: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Pair>, String> {
        whole(self.data.scan(self.descriptor, start, end, limit))
    }
}

fn whole<T>(found: Result<Option<T>, DiskError>) -> Result<T, String> {
    let found = found.map_err(|error| error.to_string())?;
    found.ok_or_else(|| "the group's data is not whole".to_owned())
}

/// [`DataStateMachine`], whatever its application; `None` while the group's data is not whole.
trait WholeData {
    fn get(
        &self,
        descriptor: &GroupDescriptor,
        key: &[u8],
    ) -> Result<Option<Option<Bytes>>, DiskError>;

    fn scan(
        &self,
        descriptor: &GroupDescriptor,
        start: &[u8],
        end: Option<&[u8]>,
        limit: usize,
    ) -> Result<Option<Vec<Pair>>, DiskError>;
}

impl<A: Application> WholeData for DataStateMachine<A, SimDisk> {
    fn get(
        &self,
        descriptor: &GroupDescriptor,
        key: &[u8],
    ) -> Result<Option<Option<Bytes>>, DiskError> {
        self.get_whole(descriptor, key)
    }

    fn scan(
        &self,
        descriptor: &GroupDescriptor,
        start: &[u8],
        end: Option<&[u8]>,
        limit: usize,
    ) -> Result<Option<Vec<Pair>>, DiskError> {
        self.scan_whole(descriptor, start, end, limit)
    }
}

/// The state machine of a store around an application: what [`Subject::open`](crate::subject::Subject::open)
/// returns. Make the application anew at each call: what it has in memory is gone with its process.
pub fn serve<A: Readable>(application: A, disk: &SimDisk) -> Arc<dyn Served> {
    let machine = DataStateMachine::with_snapshots(application, disk.clone(), SNAPSHOTS);
    Arc::new(machine)
}

/// Both ways in which snapshots wait, and more than one file, with the few keys that groups have.
const SNAPSHOTS: SnapshotOptions = SnapshotOptions {
    small_bytes_max: 150,
    file_bytes: 20,
};

impl<A: Readable> Served for DataStateMachine<A, SimDisk> {
    fn query(&self, descriptor: &GroupDescriptor, query: &Bytes) -> Result<Bytes, String> {
        let data: &dyn WholeData = self;
        A::query(&GroupView { descriptor, data }, query)
    }

    fn digest(&self, descriptor: &GroupDescriptor) -> Result<u64, String> {
        digest(self, descriptor)
    }
}

/// A digest of a group's snapshot, good for [`Served::digest`] wherever equal contents give equal
/// snapshots. Those of [`DataStateMachine`] hold all that there is but the applied index and the
/// membership.
///
/// # Errors
/// The state machine's.
pub fn digest(machine: &dyn StateMachine, descriptor: &GroupDescriptor) -> Result<u64, String> {
    let source = machine.snapshot(descriptor.group);
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
