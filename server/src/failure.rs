//! The one table from what went wrong to a gRPC status.
//!
//! | reason | code | effect | what to do |
//! |---|---|---|---|
//! | `not-leader`, `no-group` | UNAVAILABLE | none | ask the store named, or another one |
//! | `unreachable` | UNAVAILABLE | none | see whether the store runs; ask another one |
//! | `no-quorum` | UNAVAILABLE | none or unknown | bring stores back |
//! | `timeout` | DEADLINE_EXCEEDED | none or unknown | try again |
//! | `busy` | RESOURCE_EXHAUSTED | none | slow down and try again |
//! | `disk-full` | RESOURCE_EXHAUSTED | none | free space on the store's device |
//! | `too-large` | INVALID_ARGUMENT | none | send less at once |
//! | `bad-request` | INVALID_ARGUMENT | none | correct the request |
//! | `refused` | FAILED_PRECONDITION | none | see the message |
//! | `stale` | UNAVAILABLE | none | try again |
//! | `range-changed` | UNAVAILABLE | none | look at the ranges that come along, and ask the group that has the key now |
//! | `stopping` | UNAVAILABLE | none | ask another store |
//! | `not-initialised` | FAILED_PRECONDITION | none | `polyraft init` |
//! | `session-expired` | FAILED_PRECONDITION | none or unknown | begin a new session |
//! | `ambiguous` | ABORTED | unknown | read before writing again |
//! | `internal` | INTERNAL | unknown | a bug or a broken disk: see the store's log |

use polyraft_multiraft::Reject;
use prost::Message;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

use crate::client::Route;
use crate::proto::kv::{Range, Ranges};

/// Metadata key: whether the request had an effect.
pub const OUTCOME: &str = "polyraft-outcome";
/// Metadata key: one word of the table.
pub const REASON: &str = "polyraft-reason";
/// Metadata key: the leader's store.
pub const LEADER: &str = "polyraft-leader";
/// Metadata key: where a new session may begin.
pub const INDEX: &str = "polyraft-index";
/// Metadata key: an encoded [`Ranges`], what is known of the ranges in question.
pub const RANGES: &str = "polyraft-ranges-bin";

/// Bytes of [`RANGES`] at most: connections take some kilobytes of metadata, and keys may be long.
const RANGES_BYTES_MAX: usize = 4096;

/// Whether a failed request had an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Certainly none.
    None,
    /// Perhaps, or later.
    Unknown,
}

/// Rows of the table in the module's documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Reason {
    NotLeader,
    NoGroup,
    Unreachable,
    NoQuorum,
    Timeout,
    Busy,
    DiskFull,
    TooLarge,
    BadRequest,
    Refused,
    Stale,
    RangeChanged,
    Stopping,
    NotInitialised,
    SessionExpired,
    Ambiguous,
    Internal,
}

const TABLE: [(Reason, &str, Code); 17] = [
    (Reason::NotLeader, "not-leader", Code::Unavailable),
    (Reason::NoGroup, "no-group", Code::Unavailable),
    (Reason::Unreachable, "unreachable", Code::Unavailable),
    (Reason::NoQuorum, "no-quorum", Code::Unavailable),
    (Reason::Timeout, "timeout", Code::DeadlineExceeded),
    (Reason::Busy, "busy", Code::ResourceExhausted),
    (Reason::DiskFull, "disk-full", Code::ResourceExhausted),
    (Reason::TooLarge, "too-large", Code::InvalidArgument),
    (Reason::BadRequest, "bad-request", Code::InvalidArgument),
    (Reason::Refused, "refused", Code::FailedPrecondition),
    (Reason::Stale, "stale", Code::Unavailable),
    (Reason::RangeChanged, "range-changed", Code::Unavailable),
    (Reason::Stopping, "stopping", Code::Unavailable),
    (
        Reason::NotInitialised,
        "not-initialised",
        Code::FailedPrecondition,
    ),
    (
        Reason::SessionExpired,
        "session-expired",
        Code::FailedPrecondition,
    ),
    (Reason::Ambiguous, "ambiguous", Code::Aborted),
    (Reason::Internal, "internal", Code::Internal),
];

/// Why a request failed.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// The row of the table.
    pub reason: Reason,
    /// Whether it had an effect.
    pub effect: Effect,
    /// The store that leads the group, if known.
    pub leader: Option<u64>,
    /// Where a new session may begin, if the one of the request has expired.
    pub index: Option<u64>,
    /// What is known of the ranges in question, if the request was for a wrong one.
    pub ranges: Vec<Range>,
    /// For people.
    pub message: String,
}

impl Reason {
    /// Its word in the metadata.
    #[must_use]
    pub fn word(self) -> &'static str {
        TABLE
            .iter()
            .find(|(reason, ..)| *reason == self)
            .map_or("internal", |(_, word, _)| word)
    }

    fn code(self) -> Code {
        TABLE
            .iter()
            .find(|(reason, ..)| *reason == self)
            .map_or(Code::Internal, |(_, _, code)| *code)
    }
}

impl Failure {
    /// A failure that certainly had no effect.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            effect: Effect::None,
            leader: None,
            index: None,
            ranges: Vec::new(),
            message: message.into(),
        }
    }

    /// The same, with an effect that nobody knows.
    #[must_use]
    pub fn of_unknown_effect(self) -> Self {
        Self {
            effect: Effect::Unknown,
            ..self
        }
    }

    /// Whether another store, or this one a little later, may do better, and trying does no harm.
    #[must_use]
    pub fn is_worth_another_try(&self) -> bool {
        let passing = matches!(
            self.reason,
            Reason::NotLeader
                | Reason::NoGroup
                | Reason::Unreachable
                | Reason::Stale
                | Reason::RangeChanged
                | Reason::Stopping
        );
        passing && self.effect == Effect::None
    }

    /// Whether another copy of the request may do better, if copies do no harm.
    #[must_use]
    pub fn is_worth_a_copy(&self) -> bool {
        let certain = Self {
            effect: Effect::None,
            ..self.clone()
        };
        let passing = matches!(
            self.reason,
            Reason::Ambiguous | Reason::Timeout | Reason::NoQuorum
        );
        passing || certain.is_worth_another_try()
    }

    /// What a status says; one without our metadata comes from the connection or a foreign server.
    /// `reads` says that the request changes nothing, so that it had no effect in any case.
    #[must_use]
    pub fn from_status(status: &Status, reads: bool) -> Self {
        let text = |key| {
            status
                .metadata()
                .get(key)
                .and_then(|value| value.to_str().ok())
        };
        let word = text(REASON);
        let reason = TABLE
            .iter()
            .find(|(_, w, _)| Some(*w) == word)
            .map(|(reason, ..)| *reason);
        let effect = match text(OUTCOME) {
            Some("none") => Effect::None,
            // A method that a server does not have did nothing.
            _ if reads || status.code() == Code::Unimplemented => Effect::None,
            _ if never_sent(status) => Effect::None,
            _ => Effect::Unknown,
        };
        let fallback = match status.code() {
            Code::InvalidArgument | Code::Unimplemented | Code::OutOfRange => Reason::BadRequest,
            Code::DeadlineExceeded | Code::Cancelled => Reason::Timeout,
            // The connection broke or could not be made: another store may do better.
            _ if effect == Effect::None => Reason::Unreachable,
            _ => Reason::Ambiguous,
        };
        Self {
            reason: reason.unwrap_or(fallback),
            effect,
            leader: text(LEADER).and_then(|leader| leader.parse().ok()),
            index: text(INDEX).and_then(|index| index.parse().ok()),
            ranges: ranges_of(status),
            message: status.message().to_owned(),
        }
    }
}

/// The ranges that a status names. They are hints: none if they cannot be read.
fn ranges_of(status: &Status) -> Vec<Range> {
    let value = status.metadata().get_bin(RANGES);
    let bytes = value.and_then(|value| value.to_bytes().ok());
    let ranges = bytes.and_then(|bytes| Ranges::decode(bytes).ok());
    ranges.unwrap_or_default().ranges
}

/// As many of `ranges` as may come along.
fn encode_ranges(ranges: Vec<Range>) -> Vec<u8> {
    let mut some = Ranges::default();
    for range in ranges {
        some.ranges.push(range);
        if some.encoded_len() > RANGES_BYTES_MAX {
            some.ranges.pop();
        }
    }
    some.encode_to_vec()
}

/// Whether the connection was never made, so that the request cannot have arrived.
fn never_sent(status: &Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

impl From<Reject> for Failure {
    fn from(reject: Reject) -> Self {
        let message = reject.to_string();
        let mut ranges = Vec::new();
        let (reason, effect, leader) = match reject {
            Reject::RangeChanged { current } => {
                ranges.extend(Route::from(&*current).to_range());
                (Reason::RangeChanged, Effect::None, None)
            }
            // It is over soon, one way or the other.
            Reject::Frozen { .. } => (Reason::Stale, Effect::None, None),
            Reject::NotLeader { leader } => (
                Reason::NotLeader,
                Effect::None,
                leader.map(|member| member.store.0),
            ),
            Reject::NoGroup(_) => (Reason::NoGroup, Effect::None, None),
            Reject::Busy(_) => (Reason::Busy, Effect::None, None),
            Reject::DiskFull => (Reason::DiskFull, Effect::None, None),
            Reject::TooLarge { .. } => (Reason::TooLarge, Effect::None, None),
            Reject::StaleEpoch { .. } => (Reason::Stale, Effect::None, None),
            Reject::Refused(_) | Reject::Membership(_) => (Reason::Refused, Effect::None, None),
            Reject::Stopped => (Reason::Stopping, Effect::None, None),
            Reject::Ambiguous => (Reason::Ambiguous, Effect::Unknown, None),
            _ => (Reason::Internal, Effect::Unknown, None),
        };
        Self {
            reason,
            effect,
            leader,
            index: None,
            ranges,
            message,
        }
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let outcome = match failure.effect {
            Effect::None => "none",
            Effect::Unknown => "unknown",
        };
        let mut metadata = MetadataMap::new();
        metadata.insert(OUTCOME, MetadataValue::from_static(outcome));
        metadata.insert(REASON, MetadataValue::from_static(failure.reason.word()));
        if let Some(leader) = failure.leader {
            metadata.insert(LEADER, MetadataValue::from(leader));
        }
        if let Some(index) = failure.index {
            metadata.insert(INDEX, MetadataValue::from(index));
        }
        if !failure.ranges.is_empty() {
            let ranges = encode_ranges(failure.ranges);
            metadata.insert_bin(RANGES, MetadataValue::from_bytes(&ranges));
        }
        Self::with_metadata(failure.reason.code(), failure.message, metadata)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use polyraft_multiraft::{Epoch, GroupDescriptor, GroupId, KeyRange};

    use super::*;

    #[test]
    fn a_failure_survives_the_wire() {
        for (reason, word, code) in TABLE {
            for effect in [Effect::None, Effect::Unknown] {
                let failure = Failure {
                    reason,
                    effect,
                    leader: Some(3),
                    index: Some(9),
                    ranges: vec![range(7, 10), range(8, 0)],
                    message: "why".to_owned(),
                };
                assert_eq!(reason.word(), word);
                let status = Status::from(failure.clone());
                assert_eq!(status.code(), code);
                assert_eq!(Failure::from_status(&status, false), failure);
            }
        }
    }

    fn range(group: u64, key_bytes: usize) -> Range {
        Range {
            group,
            start: vec![b'k'; key_bytes].into(),
            leader_address: "host:1".to_owned(),
            ..Range::default()
        }
    }

    #[test]
    fn a_host_that_refuses_for_its_range_says_what_that_is() {
        let current = GroupDescriptor {
            group: GroupId(7),
            range: Some(KeyRange::default()),
            epoch: Epoch {
                membership: 2,
                range: 5,
            },
            ..GroupDescriptor::default()
        };
        let current = Arc::new(current);
        let failure = Failure::from(Reject::RangeChanged { current });
        assert!(failure.is_worth_another_try());
        assert_eq!(failure.reason, Reason::RangeChanged);
        let range = &failure.ranges[0];
        assert_eq!((range.group, range.generation), (7, 5));
        let frozen = Failure::from(Reject::Frozen { into: GroupId(6) });
        assert!(frozen.is_worth_another_try() && frozen.ranges.is_empty());
    }

    #[test]
    fn ranges_with_long_keys_stay_behind() {
        let failure = Failure {
            ranges: vec![range(1, 10), range(2, 4090), range(3, 4000), range(4, 4000)],
            ..Failure::new(Reason::RangeChanged, "why")
        };
        let got = Failure::from_status(&failure.into(), true);
        let groups: Vec<u64> = got.ranges.iter().map(|range| range.group).collect();
        assert_eq!(groups, [1, 3]);
        let mut status = Status::from(Failure::new(Reason::RangeChanged, "why"));
        let garbage = MetadataValue::from_bytes(b"\xff\xff");
        status.metadata_mut().insert_bin(RANGES, garbage);
        assert_eq!(Failure::from_status(&status, true).ranges, []);
    }

    #[test]
    fn a_foreign_status_is_not_trusted_with_a_write() {
        let broken = Status::unavailable("connection reset");
        assert_eq!(Failure::from_status(&broken, false).effect, Effect::Unknown);
        assert!(!Failure::from_status(&broken, false).is_worth_another_try());
        assert!(Failure::from_status(&broken, true).is_worth_another_try());
    }
}
