//! The settled state of one group: its value in the column family `state`.
//!
//! ```text
//! replica:   version u8 = 1 | 1 u8 | as of u64 | replica u64 | hard state 3 * u64 | truncated 2 * u64
//!          | runs u32 | (term u64 | first u64 | last u64) * runs | crc32
//! tombstone: version u8 = 1 | 2 u8 | as of u64 | next replica u64 | crc32
//! ```
//! "As of" is a sequence number: what hot records up to it say of the group is void. The runs are those of
//! entries in the column family `settled`.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use polyraft_core::{EntryId, HardState, Index, ReplicaId, Term};

use super::record::LARGEST;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    Replica {
        as_of: u64,
        replica: ReplicaId,
        hard_state: HardState,
        truncated: EntryId,
        runs: Vec<(Term, Index, Index)>,
    },
    Tombstone {
        as_of: u64,
        next_replica: ReplicaId,
    },
}

const VERSION: u8 = 1;

impl Settled {
    pub(crate) const fn as_of(&self) -> u64 {
        match self {
            Self::Replica { as_of, .. } | Self::Tombstone { as_of, .. } => *as_of,
        }
    }

    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(VERSION);
        match self {
            Self::Replica {
                as_of,
                replica,
                hard_state,
                truncated,
                runs,
            } => {
                out.put_u8(1);
                out.put_u64(*as_of);
                out.put_u64(replica.0);
                out.put_u64(hard_state.term.0);
                out.put_u64(hard_state.vote.0);
                out.put_u64(hard_state.commit.0);
                out.put_u64(truncated.term.0);
                out.put_u64(truncated.index.0);
                out.put_u32(u32::try_from(runs.len()).expect("runs are few"));
                for (term, first, last) in runs {
                    out.put_u64(term.0);
                    out.put_u64(first.0);
                    out.put_u64(last.0);
                }
            }
            Self::Tombstone {
                as_of,
                next_replica,
            } => {
                out.put_u8(2);
                out.put_u64(*as_of);
                out.put_u64(next_replica.0);
            }
        }
        let checksum = crc32fast::hash(&out);
        out.put_u32(checksum);
        out.freeze()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let Some((body, mut checksum)) = bytes.split_at_checked(bytes.len().saturating_sub(4))
        else {
            return Err("cut short");
        };
        if checksum.len() != 4 || crc32fast::hash(body) != checksum.get_u32() {
            return Err("checksum does not match");
        }
        let [VERSION, kind, rest @ ..] = body else {
            return Err("unknown version");
        };
        let mut at = rest;
        match kind {
            1 if at.len() >= 60 => {
                let as_of = at.get_u64();
                let replica = ReplicaId(at.get_u64());
                let hard_state = HardState {
                    term: Term(at.get_u64()),
                    vote: ReplicaId(at.get_u64()),
                    commit: Index(at.get_u64()),
                };
                let truncated = EntryId::new(at.get_u64(), at.get_u64());
                let count = at.get_u32() as usize;
                if at.len() != count * 24 {
                    return Err("cut short");
                }
                let runs: Vec<_> = (0..count)
                    .map(|_| (Term(at.get_u64()), Index(at.get_u64()), Index(at.get_u64())))
                    .collect();
                check_runs(truncated, &runs)?;
                Ok(Self::Replica {
                    as_of,
                    replica,
                    hard_state,
                    truncated,
                    runs,
                })
            }
            2 if at.len() == 16 => {
                let as_of = at.get_u64();
                Ok(Self::Tombstone {
                    as_of,
                    next_replica: ReplicaId(at.get_u64()),
                })
            }
            _ => Err("unknown kind of state"),
        }
    }
}

/// Runs follow each other from behind the truncation mark; of which terms is not the log's business.
fn check_runs(truncated: EntryId, runs: &[(Term, Index, Index)]) -> Result<(), &'static str> {
    let mut before = truncated.index;
    for &(_, first, last) in runs {
        if before > LARGEST || last > LARGEST {
            return Err("an index out of range");
        }
        if first != before.next() || last < first {
            return Err("runs that do not follow each other");
        }
        before = last;
    }
    if before > LARGEST {
        return Err("an index out of range");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes_of_a_tombstone() {
        let state = Settled::Tombstone {
            as_of: 3,
            next_replica: ReplicaId(4),
        };
        let bytes = state.encode();
        let golden: &[u8] = b"\x01\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x04";
        assert_eq!(&bytes[..bytes.len() - 4], golden);
        assert_eq!(Settled::decode(&bytes), Ok(state));
    }

    #[test]
    fn golden_bytes_of_a_replica() {
        let state = Settled::Replica {
            as_of: 9,
            replica: ReplicaId(1),
            hard_state: HardState {
                term: Term(2),
                vote: ReplicaId(1),
                commit: Index(3),
            },
            truncated: EntryId::new(1, 2),
            runs: vec![(Term(2), Index(3), Index(4))],
        };
        let bytes = state.encode();
        let golden: &[u8] = b"\x01\x01\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0\x01\
            \0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x03\
            \0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\x01\
            \0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x04";
        assert_eq!(&bytes[..bytes.len() - 4], golden);
        assert_eq!(Settled::decode(&bytes), Ok(state));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Settled::decode(&damaged).is_err(), "bit {bit}");
        }
    }
    #[test]
    fn runs_that_are_no_log_are_refused() {
        let decoded = |truncated: u64, runs: &[(u64, u64, u64)]| {
            let run =
                |&(term, first, last): &(u64, u64, u64)| (Term(term), Index(first), Index(last));
            let state = Settled::Replica {
                as_of: 1,
                replica: ReplicaId(1),
                hard_state: HardState::default(),
                truncated: EntryId::new(1, truncated),
                runs: runs.iter().map(run).collect(),
            };
            Settled::decode(&state.encode()).map(|found| assert_eq!(found, state))
        };
        assert_eq!(decoded(2, &[(1, 3, 4), (2, 5, 5)]), Ok(()));
        let no_log = Err("runs that do not follow each other");
        assert_eq!(decoded(2, &[(1, 4, 4)]), no_log, "a gap");
        assert_eq!(decoded(2, &[(1, 2, 4)]), no_log, "what is truncated");
        assert_eq!(decoded(2, &[(1, 3, 2)]), no_log, "an empty one");
        let out_of_range = Err("an index out of range");
        assert_eq!(decoded(u64::MAX, &[]), out_of_range);
        assert_eq!(decoded(u64::MAX, &[(1, 0, 1)]), out_of_range);
        assert_eq!(decoded(2, &[(1, 3, u64::MAX)]), out_of_range);
    }
}
