//! Whether all replicas of a range hold the same, at an entry of its log that all of them come to.
//!
//! A command in the group's log that changes nothing makes every replica keep a view of its data as of
//! then; each store digests its own and says what came out. So writes go on meanwhile, and a replica
//! that is behind is waited for. One that differs from most is taken out of service: it neither votes
//! nor serves until its store starts again, and whoever operates the cluster gives the group another
//! one in its place.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use polyraft_core::ReplicaId;
use polyraft_multiraft::env::{SnapshotSource, StateMachineError};
use polyraft_multiraft::{GroupDescriptor, GroupId, Member, RangeCommand, StoreId};
use tokio::time::{Instant, sleep};

use super::merges::no_range;
use crate::failure::{Failure, Reason};
use crate::owner::Aim;
use crate::proto::admin::internal_client::InternalClient;
use crate::proto::admin::{
    CheckRangeRequest, CheckRangeResponse, DigestRangeRequest, DigestRangeResponse,
    QuarantineReplicaRequest, ReplicaDigest,
};
use crate::routing::Call;
use crate::server::{Server, futures_join};

/// Pause between two looks for a view.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Bytes read at once.
const CHUNK_BYTES: usize = 64 << 10;
/// The part of a caller's time in which replicas have to come to the inspection and be digested.
const PATIENT_PART: f64 = 0.8;

/// What a view consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Digest {
    index: u64,
    digest: u64,
    bytes: u64,
}

impl Server {
    /// `CheckRange` as any store answers it.
    pub(super) async fn check_range(
        &self,
        request: CheckRangeRequest,
        call: Call,
    ) -> Result<CheckRangeResponse, Failure> {
        let group = request.group;
        let id = rand::random();
        let seen = self.begin_check(group, id, call).await?;
        let patience = call.deadline.saturating_duration_since(Instant::now());
        let asking = Call {
            deadline: Instant::now() + patience.mul_f64(PATIENT_PART),
            reads: true,
            ..call
        };
        let members = seen.members.iter();
        let digests = members.map(|member| async move {
            let digest = self.digest_on(*member, group, id, asking).await;
            (*member, digest)
        });
        let mut replicas: Vec<ReplicaDigest> =
            futures_join(digests).await.into_iter().map(told).collect();
        let wrong = minority(&replicas);
        for replica in replicas.iter_mut().filter(|it| wrong.contains(&it.store)) {
            let put = self.put_out_of_service(group, replica, call).await;
            replica.quarantined = put.is_ok();
            if let Err(failure) = put {
                let store = replica.store;
                tracing::error!(group, store, why = failure.message, "still in service");
            }
        }
        let compared = replicas.iter().filter(|it| it.error.is_empty());
        let distinct: BTreeSet<Digest> = compared.map(Digest::of).collect();
        Ok(CheckRangeResponse {
            group,
            same: distinct.len() <= 1,
            replicas,
        })
    }

    /// Makes all replicas look at what they have; the group as of then.
    async fn begin_check(
        &self,
        group: u64,
        id: u64,
        call: Call,
    ) -> Result<GroupDescriptor, Failure> {
        loop {
            let seen = self.look_at(Aim::Group(group), call).await?.descriptor;
            if seen.range.is_none() {
                return Err(no_range(seen.group));
            }
            let expected = seen.epoch;
            let command = RangeCommand::Inspect { expected, id };
            match self.change_range_at_leader(group, &command, call).await {
                Ok(()) => return Ok(seen),
                // Something else is being changed: looked at again.
                Err(failure)
                    if matches!(failure.reason, Reason::Busy | Reason::Stale)
                        && Instant::now() + LOOK_AGAIN < call.deadline =>
                {
                    sleep(LOOK_AGAIN).await;
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    async fn digest_on(
        &self,
        member: Member,
        group: u64,
        id: u64,
        call: Call,
    ) -> Result<DigestRangeResponse, Failure> {
        let store = member.store.0;
        if store == self.me {
            return self.digest_here(group, id, call).await;
        }
        let mut client = InternalClient::new(self.channel_to(store)?);
        let request = call.forward(DigestRangeRequest { group, id });
        let digest = client.digest_range(request).await;
        let digest = digest.map_err(|status| Failure::from_status(&status, true))?;
        Ok(digest.into_inner())
    }

    /// Waits until this store's replica has come to an inspection, and digests what it had there.
    pub(super) async fn digest_here(
        &self,
        group: u64,
        id: u64,
        call: Call,
    ) -> Result<DigestRangeResponse, Failure> {
        let group = GroupId(group);
        let source = loop {
            if let Some(source) = self.data.take_inspection(group, id) {
                break source;
            }
            if Instant::now() + LOOK_AGAIN >= call.deadline {
                let text = format!(
                    "the replica on store {} did not come so far in time",
                    self.me
                );
                return Err(Failure::new(Reason::Timeout, text));
            }
            sleep(LOOK_AGAIN).await;
        };
        let state = source.state().clone();
        let replica = state.descriptor.replica_on(StoreId(self.me));
        let digest = tokio::task::spawn_blocking(move || digest(source)).await;
        let internal = |error: String| Failure::new(Reason::Internal, error);
        let digest = digest.map_err(|error| internal(error.to_string()))?;
        let (digest, bytes) = digest.map_err(|error| internal(error.to_string()))?;
        Ok(DigestRangeResponse {
            replica: replica.map_or(0, |replica| replica.0),
            index: state.last.index.0,
            digest,
            bytes,
        })
    }

    async fn put_out_of_service(
        &self,
        group: u64,
        replica: &ReplicaDigest,
        call: Call,
    ) -> Result<(), Failure> {
        let reason = format!(
            "its data at entry {} is not what most replicas of the group have",
            replica.index
        );
        tracing::error!(
            group,
            store = replica.store,
            replica = replica.replica,
            "{reason}"
        );
        let request = QuarantineReplicaRequest {
            group,
            replica: replica.replica,
            reason,
        };
        if replica.store == self.me {
            return self.quarantine_here(request, call).await;
        }
        let mut client = InternalClient::new(self.channel_to(replica.store)?);
        let put = client.quarantine_replica(call.forward(request)).await;
        put.map(drop)
            .map_err(|status| Failure::from_status(&status, false))
    }

    /// Takes this store's replica of a group out of service.
    pub(super) async fn quarantine_here(
        &self,
        request: QuarantineReplicaRequest,
        call: Call,
    ) -> Result<(), Failure> {
        let QuarantineReplicaRequest {
            group,
            replica,
            reason,
        } = request;
        let (id, replica) = (GroupId(group), ReplicaId(replica));
        let quarantine = |respond| self.handle.quarantine(id, replica, reason, respond);
        self.ask(group, call, quarantine).await
    }

    /// Drops views that nobody has taken: whoever wanted them is gone. To be called now and then; `before` is
    /// what this returned the time before last.
    pub(crate) fn drop_inspections(&self, before: &BTreeSet<(u64, u64)>) -> BTreeSet<(u64, u64)> {
        let names = self.data.inspections();
        for (group, id) in &names {
            if before.contains(&(group.0, *id)) {
                drop(self.data.take_inspection(*group, *id));
            }
        }
        names.into_iter().map(|(group, id)| (group.0, id)).collect()
    }
}

impl Digest {
    fn of(replica: &ReplicaDigest) -> Self {
        Self {
            index: replica.index,
            digest: replica.digest,
            bytes: replica.bytes,
        }
    }
}

fn told((member, told): (Member, Result<DigestRangeResponse, Failure>)) -> ReplicaDigest {
    let (replica, store) = (member.replica.0, member.store.0);
    let silent = |error: String| ReplicaDigest {
        replica,
        store,
        error,
        ..ReplicaDigest::default()
    };
    match told {
        Err(failure) => silent(failure.message),
        Ok(told) if told.replica != replica => silent("another replica is there now".to_owned()),
        Ok(told) => ReplicaDigest {
            replica,
            store,
            index: told.index,
            digest: told.digest,
            bytes: told.bytes,
            ..ReplicaDigest::default()
        },
    }
}

/// The stores whose replica differs from what more than half of all replicas have.
fn minority(replicas: &[ReplicaDigest]) -> BTreeSet<u64> {
    let mut counts: BTreeMap<Digest, usize> = BTreeMap::new();
    let compared = || replicas.iter().filter(|it| it.error.is_empty());
    for replica in compared() {
        *counts.entry(Digest::of(replica)).or_default() += 1;
    }
    let most = counts
        .into_iter()
        .find(|(_, count)| *count > replicas.len() / 2);
    let Some((right, _)) = most else {
        return BTreeSet::new();
    };
    let wrong = compared().filter(|it| Digest::of(it) != right);
    wrong.map(|it| it.store).collect()
}

/// FNV-1a over all that a view consists of, and how much that is.
fn digest(mut source: Box<dyn SnapshotSource>) -> Result<(u64, u64), StateMachineError> {
    let (mut digest, mut bytes) = (0xcbf2_9ce4_8422_2325_u64, 0_u64);
    while let Some(chunk) = source.next_chunk(CHUNK_BYTES)? {
        bytes += chunk.len() as u64;
        for byte in chunk {
            digest = (digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    Ok((digest, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOBODY: [u64; 0] = [];

    fn replicas(digests: &[Option<u64>]) -> Vec<ReplicaDigest> {
        let each = (1..).zip(digests);
        let replica = |(store, digest): (u64, &Option<u64>)| ReplicaDigest {
            replica: store,
            store,
            digest: digest.unwrap_or(0),
            error: digest.map_or("away".to_owned(), |_| String::new()),
            ..ReplicaDigest::default()
        };
        each.map(replica).collect()
    }

    #[test]
    fn who_differs_from_most_is_wrong() {
        let wrong = |digests: &[Option<u64>]| -> Vec<u64> {
            minority(&replicas(digests)).into_iter().collect()
        };
        assert_eq!(wrong(&[Some(5), Some(5), Some(5)]), NOBODY);
        assert_eq!(wrong(&[Some(5), Some(6), Some(5)]), [2]);
        assert_eq!(
            wrong(&[Some(5), Some(6), Some(5), Some(7), Some(5)]),
            [2, 4]
        );
        // Who is right is not known.
        assert_eq!(wrong(&[Some(5), Some(6)]), NOBODY);
        assert_eq!(wrong(&[Some(5), Some(6), None]), NOBODY);
        assert_eq!(wrong(&[Some(5), None, Some(5)]), NOBODY);
        assert_eq!(wrong(&[]), NOBODY);
    }
}
