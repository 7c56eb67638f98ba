//! Into how many ranges the key space was cut, as the founder of the cluster decided once.
//!
//! Every `Init` ends at the founder, the store that drew the cluster's number. The first one is kept,
//! synced, before anything is created; every later one must ask for the same. So inits that are sent
//! at the same time, to whichever stores, cannot create two sets of ranges.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::failure::{Failure, Reason};

/// Under this name `meta` keeps it.
pub(super) const PLAN: &[u8] = b"init-plan";

const VERSION: u8 = 1;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Ranges.
    pub(super) groups: u64,
    /// Replicas of each.
    pub(super) replicas: u32,
    /// The stores that they are spread over, ascending.
    pub(super) stores: Vec<u64>,
    /// All of them have been created.
    pub(super) done: bool,
}

impl Plan {
    /// Replicas by a request; 0 stands for three, or as many as there are stores.
    ///
    /// # Errors
    /// There are fewer stores than that.
    pub(super) fn replicas(asked: u32, stores: usize) -> Result<u32, Failure> {
        let stores = u32::try_from(stores).unwrap_or(u32::MAX);
        match asked {
            0 => Ok(stores.min(3)),
            asked if asked <= stores => Ok(asked),
            asked => {
                let text = format!("{asked} replicas need as many stores; there are {stores}");
                Err(Failure::new(Reason::BadRequest, text))
            }
        }
    }

    /// Whether a later request asks for the same.
    ///
    /// # Errors
    /// It does not.
    pub(super) fn must_match(&self, groups: u64, replicas: u32) -> Result<(), Failure> {
        let replicas = Self::replicas(replicas, self.stores.len())?;
        if (groups, replicas) == (self.groups, self.replicas) {
            return Ok(());
        }
        let how = if self.done { "has been" } else { "is being" };
        let text = format!(
            "the cluster {how} initialised with {} groups of {} replicas by another init; this one asks for \
             {groups} of {replicas}, and a cluster is initialised once",
            self.groups, self.replicas
        );
        Err(Failure::new(Reason::Refused, text))
    }

    pub(super) fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::new();
        bytes.put_u8(VERSION);
        bytes.put_u8(u8::from(self.done));
        bytes.put_u64(self.groups);
        bytes.put_u32(self.replicas);
        self.stores.iter().for_each(|store| bytes.put_u64(*store));
        bytes.freeze()
    }

    /// `None` if these bytes are no plan of this version.
    pub(super) fn decode(mut bytes: &[u8]) -> Option<Self> {
        if bytes.try_get_u8().ok()? != VERSION {
            return None;
        }
        let done = match bytes.try_get_u8().ok()? {
            0 => false,
            1 => true,
            _ => return None,
        };
        let groups = bytes.try_get_u64().ok()?;
        let replicas = bytes.try_get_u32().ok()?;
        if !bytes.len().is_multiple_of(8) {
            return None;
        }
        let count = bytes.len() / 8;
        let stores: Vec<u64> = (0..count).map(|_| bytes.get_u64()).collect();
        let sound = groups > 0 && replicas > 0 && replicas as usize <= count;
        sound.then_some(Self {
            groups,
            replicas,
            stores,
            done,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            groups: 8,
            replicas: 2,
            stores: vec![1, 3],
            done: false,
        }
    }

    #[test]
    fn golden_bytes() {
        let golden = b"\x01\0\0\0\0\0\0\0\0\x08\0\0\0\x02\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x03";
        assert_eq!(&plan().encode()[..], golden);
        assert_eq!(Plan::decode(golden), Some(plan()));
        for length in [0, 1, 2, 13, 14, 21, 29] {
            assert_eq!(
                Plan::decode(&golden[..length]),
                None,
                "cut to {length} bytes"
            );
        }
    }

    #[test]
    fn only_the_same_init_may_follow() {
        let plan = plan();
        plan.must_match(8, 2).expect("the same");
        plan.must_match(8, 0)
            .expect("the default is two of two stores");
        for (groups, replicas) in [(9, 2), (8, 1)] {
            let refused = plan.must_match(groups, replicas).expect_err("another one");
            assert_eq!(refused.reason, Reason::Refused);
            assert!(
                refused.message.contains("8 groups of 2"),
                "{}",
                refused.message
            );
        }
        let many = plan.must_match(8, 3).expect_err("more than stores");
        assert_eq!(many.reason, Reason::BadRequest);
    }
}
