//! What ranges there are, and splitting them.

use std::collections::BTreeMap;

use bytes::Bytes;
use polyraft_multiraft::{
    GroupDescriptor, GroupId, KeyRange, Reject, SPLIT_PIECES_MAX, SplitPiece,
};
use tokio::time::{Instant, sleep_until};

use super::merges::no_range;
use super::view;
use crate::client::{RangeCache, Route};
use crate::directory::command::Numbers;
use crate::failure::{Failure, Reason};
use crate::kv::KEY_BYTES_MAX;
use crate::owner::Aim;
use crate::proto::admin::admin_client::AdminClient;
use crate::proto::admin::{Group, Hole, ListRangesResponse, SplitRangeRequest, SplitRangeResponse};
use crate::routing::{Call, PAUSE};
use crate::server::Server;

impl Server {
    /// All ranges in the order of keys, as the stores that can be asked know them.
    pub(super) async fn list_ranges(&self) -> ListRangesResponse {
        let mut here = self.list_here();
        self.add_roles(&mut here).await;
        let (told, unreachable) = self.list_all(here).await;
        let (ranges, holes) = in_order(told);
        ListRangesResponse {
            ranges,
            holes,
            unreachable,
        }
    }

    /// Splits ranges so that one begins at each key.
    pub(super) async fn split_range(
        &self,
        request: SplitRangeRequest,
        call: Call,
    ) -> Result<SplitRangeResponse, Failure> {
        let mut keys = request.keys;
        if keys.is_empty() {
            return Err(Failure::new(Reason::BadRequest, "no key is named"));
        }
        if let Some(long) = keys.iter().find(|key| key.len() > KEY_BYTES_MAX) {
            let text = format!("a key of {} bytes; {KEY_BYTES_MAX} are allowed", long.len());
            return Err(Failure::new(Reason::BadRequest, text));
        }
        keys.sort_unstable();
        keys.dedup();
        // Asked again it finds ranges that begin there.
        let call = Call { once: true, ..call };
        if request.group != 0 {
            return self.split_led(request.group, keys, call).await;
        }
        let mut answer = SplitRangeResponse::default();
        let mut groups = BTreeMap::new();
        while let Some(first) = keys.first().cloned() {
            let some = self.split_owner(&first, &keys, call).await?;
            for group in some.groups {
                // A group that is split twice is as it is after the second time.
                groups.insert(group.group, group);
            }
            let begins = |key: &Bytes| {
                groups
                    .values()
                    .any(|group| group.start.as_ref() == Some(key))
            };
            let before = keys.len();
            keys.retain(|key| !some.already.contains(key) && !begins(key));
            if keys.len() == before {
                let text = "the group that holds the key did not split at it";
                return Err(Failure::new(Reason::Internal, text));
            }
            answer.already.extend(some.already);
        }
        answer.groups = groups.into_values().collect();
        answer
            .groups
            .sort_by(|one, other| one.start.cmp(&other.start));
        Ok(answer)
    }

    /// Splits the range that holds the first of the keys, at those that are in it.
    async fn split_owner(
        &self,
        first: &Bytes,
        keys: &[Bytes],
        call: Call,
    ) -> Result<SplitRangeResponse, Failure> {
        let local = |group| self.split_here(group, keys.to_vec(), call);
        let remote = |group, channel| {
            let keys = keys.to_vec();
            let request = call.forward(SplitRangeRequest { keys, group });
            async move {
                Ok(AdminClient::new(channel)
                    .split_range(request)
                    .await?
                    .into_inner())
            }
        };
        self.at_owner(Aim::Key(first), None, call, local, remote)
            .await
    }

    /// The same for a group that is named.
    async fn split_led(
        &self,
        group: u64,
        keys: Vec<Bytes>,
        call: Call,
    ) -> Result<SplitRangeResponse, Failure> {
        self.check_exists(group, call).await?;
        let local = || self.split_here(group, keys.clone(), call);
        let remote = |channel| {
            let keys = keys.clone();
            let request = call.forward(SplitRangeRequest { keys, group });
            async move {
                Ok(AdminClient::new(channel)
                    .split_range(request)
                    .await?
                    .into_inner())
            }
        };
        self.at_leader(group, call, local, remote).await
    }

    /// Splits a group that this store leads at those of the keys, ascending, that are in its range.
    async fn split_here(
        &self,
        group: u64,
        keys: Vec<Bytes>,
        call: Call,
    ) -> Result<SplitRangeResponse, Failure> {
        let reads = Call {
            reads: true,
            ..call
        };
        let Some(first) = keys.first() else {
            return Err(Failure::new(Reason::BadRequest, "no key is named"));
        };
        let seen = self
            .look_here(Aim::Group(group), group, reads)
            .await?
            .descriptor;
        let Some(range) = &seen.range else {
            return Err(no_range(seen.group));
        };
        let mut inside: Vec<Bytes> = keys
            .iter()
            .filter(|key| range.contains(key))
            .cloned()
            .collect();
        if inside.is_empty() {
            return Err(self.range_changed(&seen, Aim::Key(first)));
        }
        if let Some(frozen) = seen.frozen {
            return Err(Reject::Frozen { into: frozen.into }.into());
        }
        let already = inside.extract_if(.., |key| *key == range.start).collect();
        inside.truncate(SPLIT_PIECES_MAX);
        if inside.is_empty() {
            return Ok(SplitRangeResponse {
                groups: Vec::new(),
                already,
            });
        }
        let count = inside.len() as u64;
        let number = self.take_numbers(Numbers::Groups, count, call).await?;
        let pieces = (number..).zip(inside).map(|(group, start)| SplitPiece {
            start,
            group: GroupId(group),
        });
        let pieces: Vec<SplitPiece> = pieces.collect();
        let groups = self.split_when_free(&seen, &pieces, call).await?;
        for descriptor in &groups {
            self.directory.learn(Route::from(descriptor));
        }
        let groups = groups.iter().map(|descriptor| Group {
            leader_store: if descriptor.group.0 == group {
                self.me
            } else {
                0
            },
            ..view::group(descriptor, None)
        });
        Ok(SplitRangeResponse {
            groups: groups.collect(),
            already,
        })
    }

    /// Splits a group that this store leads once no other change of it is under way.
    async fn split_when_free(
        &self,
        seen: &GroupDescriptor,
        pieces: &[SplitPiece],
        call: Call,
    ) -> Result<Vec<GroupDescriptor>, Failure> {
        let (group, mut pause) = (seen.group, PAUSE.0);
        loop {
            let split = |respond| {
                let pieces = pieces.to_vec();
                self.handle.split(group, seen.epoch, pieces, respond);
            };
            match self.ask(group.0, call, split).await {
                // Nothing was proposed: the numbers are still good.
                Err(failure) if failure.reason == Reason::Busy => {
                    let next = Instant::now() + pause;
                    if next >= call.deadline {
                        return Err(failure);
                    }
                    sleep_until(next).await;
                    pause = (pause * 2).min(PAUSE.1);
                }
                result => return result,
            }
        }
    }
}

/// The ranges that stores tell of, each once, and where none is known. Stores may be behind: of two ranges
/// that overlap the one of the higher generation is the later one.
fn in_order(told: Vec<(u64, Vec<Group>)>) -> (Vec<Group>, Vec<Hole>) {
    let mut newest: BTreeMap<u64, Group> = BTreeMap::new();
    let mut leaders: BTreeMap<u64, (bool, u64, Group)> = BTreeMap::new();
    for (store, group) in told
        .into_iter()
        .flat_map(|(store, list)| list.into_iter().map(move |group| (store, group)))
    {
        let (leads, term) = (group.leader_store == store, group.term);
        let best = leaders.get(&group.group);
        if best.is_none_or(|(led, latest, _)| (*led, *latest) < (leads, term)) {
            leaders.insert(group.group, (leads, term, group.clone()));
        }
        let age = |group: &Group| (group.range_epoch, group.membership_epoch);
        let known = newest.get(&group.group);
        if known.is_none_or(|known| age(known) < age(&group)) {
            newest.insert(group.group, group);
        }
    }
    // Who leads knows best how far it is; what it is, whoever has applied most.
    for (number, (.., told)) in leaders {
        if let Some(group) = newest.get_mut(&number) {
            group.leader_store = told.leader_store;
            group.term = told.term;
            group.commit_index = told.commit_index;
            group.applied_index = told.applied_index;
            group.asleep = told.asleep;
        }
    }
    let mut cache = RangeCache::default();
    for group in newest.values().filter(|group| group.start.is_some()) {
        cache.learn(Route::from(group));
    }
    let (mut ranges, mut holes) = (Vec::new(), Vec::new());
    // Where the next range must begin; none: past the last key.
    let mut at = Some(Bytes::new());
    for KnownRange { range, group } in known_ranges(&cache) {
        if let Some(begin) = at.filter(|begin| *begin < range.start) {
            holes.push(Hole {
                start: begin,
                end: Some(range.start.clone()),
            });
        }
        at = range.end;
        ranges.extend(newest.remove(&group));
    }
    if let Some(start) = at {
        holes.push(Hole { start, end: None });
    }
    (ranges, holes)
}

struct KnownRange {
    range: KeyRange,
    group: u64,
}

/// Ranges that are known as a whole: of others a part has a later owner, and the rest may have as well.
fn known_ranges(cache: &RangeCache) -> Vec<KnownRange> {
    let mut ranges: Vec<(KnownRange, Option<KeyRange>)> = Vec::new();
    for (start, end, route) in cache.segments() {
        let group = route.group;
        match ranges.last_mut() {
            // One range may be several segments.
            Some((last, _)) if last.group == group && last.range.end.as_ref() == Some(&start) => {
                last.range.end = end;
            }
            _ => {
                let range = KeyRange { start, end };
                ranges.push((KnownRange { range, group }, route.range.clone()));
            }
        }
    }
    let whole = ranges
        .into_iter()
        .filter(|(known, all)| all.as_ref() == Some(&known.range));
    whole.map(|(known, _)| known).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(number: u64, start: &'static str, end: &'static str, generation: u64) -> Group {
        Group {
            group: number,
            start: Some(start.into()),
            end: (!end.is_empty()).then(|| end.into()),
            range_epoch: generation,
            ..Group::default()
        }
    }

    fn shown(told: Vec<(u64, Vec<Group>)>) -> (Vec<u64>, Vec<(Bytes, Option<Bytes>)>) {
        let (ranges, holes) = in_order(told);
        let holes = holes.into_iter().map(|hole| (hole.start, hole.end));
        let groups = ranges.into_iter().map(|group| group.group);
        (groups.collect(), holes.collect())
    }

    #[test]
    fn stores_that_are_behind_do_not_count() {
        let new = vec![
            group(1, "", "g", 2),
            group(3, "g", "m", 2),
            group(2, "m", "", 1),
        ];
        let old = vec![group(1, "", "m", 1), group(2, "m", "", 1)];
        let both = shown(vec![(1, old), (2, new.clone())]);
        assert_eq!(both, (vec![1, 3, 2], vec![]));
        // Merged, which the third has not heard of.
        let merged = vec![group(1, "", "m", 3), group(2, "m", "", 1)];
        assert_eq!(shown(vec![(1, merged), (3, new)]), (vec![1, 2], vec![]));
    }

    #[test]
    fn what_nobody_knows_is_a_hole() {
        let hole = |start: &'static str, end: &'static str| {
            let end = (!end.is_empty()).then(|| Bytes::from(end));
            (Bytes::from(start), end)
        };
        assert_eq!(shown(vec![(1, vec![])]), (vec![], vec![hole("", "")]));
        let some = vec![group(1, "b", "g", 1), group(2, "m", "p", 1)];
        let holes = vec![hole("", "b"), hole("g", "m"), hole("p", "")];
        assert_eq!(shown(vec![(1, some)]), (vec![1, 2], holes));
        // A part of it is somebody else's by now; nobody says whose the rest is.
        let part = vec![group(1, "", "", 1), group(2, "g", "m", 5)];
        let holes = vec![hole("", "g"), hole("m", "")];
        assert_eq!(shown(vec![(1, part)]), (vec![2], holes));
    }

    #[test]
    fn the_leader_is_who_says_so() {
        let follower = Group {
            leader_store: 2,
            term: 4,
            applied_index: 7,
            ..group(1, "", "", 3)
        };
        let leader = Group {
            range_epoch: 2,
            applied_index: 6,
            ..follower.clone()
        };
        let (ranges, _) = in_order(vec![(1, vec![follower]), (2, vec![leader])]);
        assert_eq!((ranges[0].range_epoch, ranges[0].applied_index), (3, 6));
    }
}
