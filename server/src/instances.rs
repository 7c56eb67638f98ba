//! Which data directory stands behind the number of each store.
//!
//! A store that comes back with an empty directory, or with an old copy of its own, has forgotten
//! votes and acknowledgements that others count on: two leaders in one term, and acknowledged
//! writes lost. So a directory draws a number of its own when it is made (its *instance*), counts
//! its starts (its *incarnation*), and shows both whenever it introduces itself. Every store keeps
//! what it was shown, durably, and refuses anything that does not follow from it.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use parking_lot::Mutex;

/// What a directory shows of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Instance {
    /// Drawn when the directory was made; 0: not told.
    pub(crate) id: u64,
    /// Starts since it joined; 0: it has not.
    pub(crate) incarnation: u64,
}

/// What each store has shown last.
#[derive(Debug, Default)]
pub(crate) struct Instances {
    known: Mutex<BTreeMap<u64, Instance>>,
}

const VERSION: u8 = 1;

impl Instances {
    /// What was kept over a restart; `None` if these bytes are nothing of the kind.
    pub(crate) fn decode(mut bytes: &[u8]) -> Option<Self> {
        if bytes.try_get_u8().ok()? != VERSION || !bytes.len().is_multiple_of(24) {
            return None;
        }
        let mut known = BTreeMap::new();
        while bytes.has_remaining() {
            let (store, id, incarnation) = (bytes.get_u64(), bytes.get_u64(), bytes.get_u64());
            known.insert(store, Instance { id, incarnation });
        }
        Some(Self {
            known: Mutex::new(known),
        })
    }

    /// For [`Instances::decode`].
    pub(crate) fn encode(&self) -> Bytes {
        let known = self.known.lock();
        let mut bytes = BytesMut::with_capacity(1 + 24 * known.len());
        bytes.put_u8(VERSION);
        for (store, instance) in known.iter() {
            bytes.put_u64(*store);
            bytes.put_u64(instance.id);
            bytes.put_u64(instance.incarnation);
        }
        bytes.freeze()
    }

    /// A store introduces itself; whether that is news. `member` says that replicas are known to live on
    /// this store, so that a directory which has joined nothing cannot be the one they live in.
    ///
    /// # Errors
    /// Why it must not take part, and what to do.
    pub(crate) fn meet(&self, store: u64, shown: Instance, member: bool) -> Result<bool, String> {
        if store == 0 || shown.id == 0 {
            return Ok(false);
        }
        let mut all = self.known.lock();
        let Some(known) = all.get(&store).copied() else {
            if member && shown.incarnation == 0 {
                return Err(replaced(store));
            }
            all.insert(store, shown);
            return Ok(true);
        };
        // What has never joined holds nothing that could be missed.
        let replaceable = known.incarnation == 0 && !member;
        if known.id != shown.id && !replaceable {
            return Err(replaced(store));
        }
        if shown.incarnation < known.incarnation {
            return Err(format!(
                "the data directory of store {store} is an old copy (start {} of it, and start {} has been \
                 seen): it forgot votes and acknowledged writes. Bring back the newest one; {}",
                shown.incarnation, known.incarnation, LOST
            ));
        }
        all.insert(store, shown);
        Ok(known != shown)
    }
}

/// What to do when a directory is gone.
const LOST: &str = "if it is lost, start an empty directory under a store number that was never used, and \
                    move the replicas with `polyraft group replace GROUP --from OLD --to NEW`";

fn replaced(store: u64) -> String {
    format!(
        "store {store} has had another data directory in this cluster: this one does not know what \
         that one voted for and acknowledged. Bring the old one back (check --data-dir and --store-id); {LOST}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn shown(id: u64, incarnation: u64) -> Instance {
        Instance { id, incarnation }
    }

    #[test]
    fn a_store_goes_on_with_its_own_directory_only() {
        let all = Instances::default();
        assert_eq!(all.meet(2, shown(7, 0), false), Ok(true));
        assert_eq!(all.meet(2, shown(7, 1), true), Ok(true));
        assert_eq!(all.meet(2, shown(7, 1), true), Ok(false));
        assert_eq!(all.meet(2, shown(7, 5), true), Ok(true));
        let older = all.meet(2, shown(7, 4), true).expect_err("an old copy");
        assert!(older.contains("old copy"), "{older}");
        let other = all
            .meet(2, shown(8, 9), true)
            .expect_err("another directory");
        assert!(other.contains("another data directory") && other.contains("group replace"));
        assert_eq!(
            all.meet(2, shown(7, 5), true),
            Ok(false),
            "refusing changes nothing"
        );
    }

    #[test]
    fn a_directory_that_never_joined_may_be_replaced() {
        let all = Instances::default();
        assert_eq!(all.meet(4, shown(7, 0), false), Ok(true));
        assert!(
            all.meet(4, shown(8, 0), true).is_err(),
            "replicas are on their way to it"
        );
        assert_eq!(all.meet(4, shown(8, 0), false), Ok(true));
        assert_eq!(all.meet(4, shown(8, 1), false), Ok(true));
        assert!(all.meet(4, shown(7, 0), false).is_err(), "it has joined");
    }

    #[test]
    fn an_empty_directory_cannot_hold_a_members_replicas() {
        let all = Instances::default();
        assert!(all.meet(2, shown(7, 0), true).is_err());
        assert_eq!(
            all.meet(2, shown(7, 3), true),
            Ok(true),
            "it has joined before"
        );
        assert_eq!(
            all.meet(3, shown(0, 0), true),
            Ok(false),
            "says nothing of itself"
        );
    }

    #[test]
    fn golden_bytes() {
        let all = Instances::default();
        all.meet(2, shown(7, 1), false).expect("new");
        let golden = b"\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\x01";
        assert_eq!(&all.encode()[..], golden);
        let read = Instances::decode(golden).expect("what was written");
        assert!(read.meet(2, shown(8, 2), false).is_err());
        for malformed in [&b""[..], b"\x02", b"\x01\0", &golden[..24]] {
            assert!(Instances::decode(malformed).is_none(), "{malformed:?}");
        }
    }
}
