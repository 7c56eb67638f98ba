//! What the store itself is: format, identity, and small things that the server keeps.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use polyraft_multiraft::StoreId;

use crate::disk::{Cf, Change, Disk, DiskError, Durability, Pair};

/// Which cluster and which store a directory belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Drawn at random when the cluster is made.
    pub cluster: u64,
    /// Chosen by the operator; never given to another directory.
    pub store: StoreId,
}

/// Access to the column family `meta`.
#[derive(Clone, Debug)]
pub struct StoreMeta<D> {
    disk: D,
}

/// The version of everything on disk.
pub const FORMAT: u32 = 1;

const FORMAT_KEY: &[u8] = b"format";
const IDENTITY_KEY: &[u8] = b"identity";
const INCARNATION_KEY: &[u8] = b"incarnation";
const SERVER: &[u8] = b"server/";

impl<D: Disk> StoreMeta<D> {
    /// Checks the format of what is on `disk`, or stamps an empty one.
    ///
    /// # Errors
    /// The format is of another version.
    pub fn open(disk: D) -> Result<Self, DiskError> {
        let this = Self { disk };
        match this.disk.get(Cf::Meta, FORMAT_KEY)? {
            None => this.put(FORMAT_KEY, Bytes::copy_from_slice(&FORMAT.to_be_bytes()))?,
            Some(found) if found[..] == FORMAT.to_be_bytes() => {}
            Some(found) => {
                return Err(DiskError::Fatal(format!(
                    "the directory has on-disk format {found:?}, this version reads {FORMAT}: \
                     start it with the version that wrote it"
                )));
            }
        }
        Ok(this)
    }

    /// Which cluster and store this is; none before it has been told.
    ///
    /// # Errors
    /// The engine's.
    pub fn identity(&self) -> Result<Option<Identity>, DiskError> {
        let Some(mut found) = self.disk.get(Cf::Meta, IDENTITY_KEY)? else {
            return Ok(None);
        };
        if found.len() != 16 {
            return Err(DiskError::Corrupt(
                "the store's identity is malformed".to_owned(),
            ));
        }
        Ok(Some(Identity {
            cluster: found.get_u64(),
            store: StoreId(found.get_u64()),
        }))
    }

    /// Says which cluster and store this is, for ever.
    ///
    /// # Errors
    /// It is another one already, or the engine's.
    pub fn set_identity(&self, identity: Identity) -> Result<(), DiskError> {
        match self.identity()? {
            Some(present) if present == identity => Ok(()),
            Some(present) => Err(DiskError::Fatal(format!(
                "the directory belongs to store {} of cluster {:016x}",
                present.store, present.cluster
            ))),
            None => {
                let mut value = BytesMut::with_capacity(16);
                value.put_u64(identity.cluster);
                value.put_u64(identity.store.0);
                self.put(IDENTITY_KEY, value.freeze())
            }
        }
    }

    /// Starts that were counted so far; 0: none.
    ///
    /// # Errors
    /// The number is malformed, or the engine's.
    pub fn incarnation(&self) -> Result<u64, DiskError> {
        match self.disk.get(Cf::Meta, INCARNATION_KEY)?.as_deref() {
            None => Ok(0),
            // Beginning again from 0 would make an old process of this store look newer than this one.
            Some(found) => found
                .try_into()
                .map(u64::from_be_bytes)
                .map_err(|_| DiskError::Corrupt("the store's incarnation is malformed".to_owned())),
        }
    }

    /// A number that grows with every start.
    ///
    /// # Errors
    /// Those of [`Self::incarnation`].
    pub fn next_incarnation(&self) -> Result<u64, DiskError> {
        let next = self.incarnation()?.checked_add(1).ok_or_else(|| {
            DiskError::Corrupt("the store's incarnation is the last that there is".to_owned())
        })?;
        self.put(INCARNATION_KEY, Bytes::copy_from_slice(&next.to_be_bytes()))?;
        Ok(next)
    }

    /// Something that the server keeps under a name.
    ///
    /// # Errors
    /// The engine's.
    pub fn get_server(&self, name: &[u8]) -> Result<Option<Bytes>, DiskError> {
        self.disk.get(Cf::Meta, &server(name))
    }

    /// Sets it, durably.
    ///
    /// # Errors
    /// The engine's.
    pub fn put_server(&self, name: &[u8], value: Bytes) -> Result<(), DiskError> {
        self.put(&server(name), value)
    }

    /// Everything that the server keeps, in order of names.
    ///
    /// # Errors
    /// The engine's.
    pub fn scan_server(&self) -> Result<Vec<Pair>, DiskError> {
        let found = self
            .disk
            .scan(Cf::Meta, SERVER, Some(b"server0"), usize::MAX)?;
        Ok(found
            .into_iter()
            .map(|(key, value)| (key.slice(SERVER.len()..), value))
            .collect())
    }

    fn put(&self, key: &[u8], value: Bytes) -> Result<(), DiskError> {
        let change = Change::Put(Bytes::copy_from_slice(key), value);
        self.disk
            .write(vec![(Cf::Meta, change)], Durability::Synced)
    }
}

fn server(name: &[u8]) -> Bytes {
    [SERVER, name].concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryDisk;

    #[test]
    fn identity_is_for_ever() {
        let meta = StoreMeta::open(MemoryDisk::new()).unwrap();
        assert_eq!(meta.identity(), Ok(None));
        let identity = Identity {
            cluster: 7,
            store: StoreId(1),
        };
        meta.set_identity(identity).unwrap();
        meta.set_identity(identity).unwrap();
        let other = Identity {
            cluster: 8,
            ..identity
        };
        assert!(
            meta.set_identity(other)
                .unwrap_err()
                .to_string()
                .contains("belongs to store 1")
        );
    }

    #[test]
    fn incarnations_grow_and_survive_a_power_cut() {
        let disk = MemoryDisk::new();
        let meta = StoreMeta::open(disk.clone()).unwrap();
        assert_eq!(meta.next_incarnation(), Ok(1));
        let meta = StoreMeta::open(disk.crash(0)).unwrap();
        assert_eq!(meta.next_incarnation(), Ok(2));
    }

    #[test]
    fn a_malformed_incarnation_is_refused() {
        let meta = StoreMeta::open(MemoryDisk::new()).unwrap();
        meta.put(INCARNATION_KEY, Bytes::from_static(b"short"))
            .unwrap();
        assert!(matches!(
            meta.next_incarnation(),
            Err(DiskError::Corrupt(_))
        ));
        meta.put(INCARNATION_KEY, Bytes::from_static(&[0xff; 8]))
            .unwrap();
        assert!(matches!(
            meta.next_incarnation(),
            Err(DiskError::Corrupt(_))
        ));
    }

    #[test]
    fn an_unknown_format_is_refused() {
        let disk = MemoryDisk::new();
        let change = Change::Put(
            Bytes::from_static(b"format"),
            Bytes::from_static(&[0, 0, 0, 9]),
        );
        disk.write(vec![(Cf::Meta, change)], Durability::Synced)
            .unwrap();
        let error = StoreMeta::open(disk).unwrap_err().to_string();
        assert!(error.contains("on-disk format"), "{error}");
    }
}
