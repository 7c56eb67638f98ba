//! From keys to the group that owns them, and on to the next owner when that has changed.
//!
//! What is known here of ranges is a hint. The leader of a group knows its own range, and refuses a request
//! for keys that are not in it with what it knows instead; then the new owner is asked, until the
//! client's deadline. Nothing is tried again that may have had an effect, unless it counts once.

use std::future::Future;
use std::sync::Arc;

use polyraft_multiraft::{GroupDescriptor, GroupId};
use tokio::time::{Instant, sleep_until};
use tonic::Status;
use tonic::transport::Channel;

use crate::directory::Route;
use crate::failure::{Effect, Failure, Reason};
use crate::proto::kv::{Range, RangeHint, ResponseHeader};
use crate::routing::{Call, PAUSE, doubtful};
use crate::server::Server;

/// What a request is about.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Aim<'a> {
    /// A group that the client named.
    Group(u64),
    /// A key.
    Key(&'a [u8]),
    /// The last keys before this one; none: the last ones of all.
    Before(Option<&'a [u8]>),
}

impl<'a> Aim<'a> {
    /// The group if it is named (not 0), else a key.
    pub(crate) const fn of(group: u64, key: &'a [u8]) -> Self {
        match group {
            0 => Self::Key(key),
            _ => Self::Group(group),
        }
    }
}

/// Who is taken for the owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Owner {
    group: u64,
    /// Of the range that it is known by; 0: it was named.
    generation: u64,
}

impl Server {
    /// Runs `local` with the group that owns what the request is about if this store leads that, else
    /// `remote` at the store that does.
    pub(crate) async fn at_owner<T, L, R>(
        &self,
        aim: Aim<'_>,
        mut hint: Option<RangeHint>,
        call: Call,
        local: impl Fn(u64) -> L,
        remote: impl Fn(u64, Channel) -> R,
    ) -> Result<T, Failure>
    where
        L: Future<Output = Result<T, Failure>>,
        R: Future<Output = Result<T, Status>>,
    {
        let mut before = None;
        let mut pause = PAUSE.0;
        // An attempt may have had its effect.
        let mut in_doubt = false;
        loop {
            let owner = self.find_owner(aim, hint.take(), call).await;
            let owner = owner.map_err(|failure| doubtful(failure, in_doubt))?;
            let result = self
                .at_leader_unless(
                    owner.group,
                    || self.has_later_owner(aim, owner),
                    call,
                    || local(owner.group),
                    |channel| remote(owner.group, channel),
                )
                .await;
            let failure = match result {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            in_doubt |= !call.reads && failure.effect == Effect::Unknown;
            let harmless = call.reads || call.once || !in_doubt;
            let elsewhere = failure.reason == Reason::RangeChanged && !call.forwarded && harmless;
            if !elsewhere || matches!(aim, Aim::Group(_)) {
                return Err(doubtful(failure, in_doubt));
            }
            if before == Some(owner) {
                // Nothing was to be learned from the refusal.
                let next = Instant::now() + pause;
                if next >= call.deadline {
                    return Err(doubtful(failure, in_doubt));
                }
                sleep_until(next).await;
                pause = (pause * 2).min(PAUSE.1);
                self.learn_from_directory(aim, call).await;
                if self
                    .owner_known_here(aim)
                    .is_none_or(|known| known.group == owner.group)
                {
                    self.refresh_routes(call).await;
                }
            }
            before = Some(owner);
        }
    }

    /// What this store knows; what the client believes, if that is of a later generation; else what
    /// the other stores know.
    async fn find_owner(
        &self,
        aim: Aim<'_>,
        hint: Option<RangeHint>,
        call: Call,
    ) -> Result<Owner, Failure> {
        if let Aim::Group(group) = aim {
            self.check_exists(group, call).await?;
            let generation = 0;
            return Ok(Owner { group, generation });
        }
        let known = self.owner_known_here(aim);
        if let Some(hint) = hint.filter(|hint| hint.group != 0) {
            let later = known.is_none_or(|known| known.generation < hint.generation);
            if later && self.route_of_group(hint.group).is_some() {
                return Ok(Owner {
                    group: hint.group,
                    generation: hint.generation,
                });
            }
        }
        let route = self.route(call, aim).await?;
        Ok(Owner {
            group: route.group,
            generation: route.generation,
        })
    }

    /// The owner of what a request is about, as far as this store has in mind.
    pub(crate) fn owner_known_here(&self, aim: Aim<'_>) -> Option<Arc<Route>> {
        match aim {
            Aim::Group(group) => self.route_of_group(group),
            Aim::Key(key) => self.directory.of_key(key),
            Aim::Before(end) => self.directory.before(end),
        }
    }

    fn has_later_owner(&self, aim: Aim<'_>, owner: Owner) -> bool {
        let later =
            |route: Arc<Route>| route.group != owner.group && route.generation > owner.generation;
        let by_key = !matches!(aim, Aim::Group(_));
        by_key && self.owner_known_here(aim).is_some_and(later)
    }

    /// The refusal of a group that does not own what it was asked for: who does instead, as far as is
    /// known here, and what the group itself owns.
    pub(crate) fn range_changed(&self, descriptor: &GroupDescriptor, aim: Aim<'_>) -> Failure {
        let own = Route::from(descriptor);
        let owner = || {
            let route = self.owner_known_here(aim)?;
            (route.group != own.group).then_some(route)
        };
        let owner = owner().or_else(|| {
            // Groups that came out of a split of this one are here, too.
            self.refresh_local_routes();
            owner()
        });
        let text = format!(
            "the key is outside of the range of group {}, or not in it any more",
            own.group
        );
        let ranges = owner.iter().map(|route| &**route).chain([&own]);
        Failure {
            ranges: ranges.filter_map(|route| self.news_of(route)).collect(),
            ..Failure::new(Reason::RangeChanged, text)
        }
    }

    /// A route with the leader as known here.
    fn news_of(&self, route: &Route) -> Option<Range> {
        let summary = self.handle.summary(GroupId(route.group));
        let leader = summary.and_then(|summary| summary.leader_store);
        let leader = leader.map_or(route.leader, |store| store.0);
        Some(Range {
            leader_store: leader,
            leader_address: self.peers.address(leader).unwrap_or_default(),
            ..route.to_range()?
        })
    }

    /// Takes over what a refusal says of ranges.
    pub(crate) fn learn_ranges(&self, ranges: &[Range]) {
        for range in ranges {
            self.directory.learn(Route::from(range.clone()));
        }
    }

    /// Where an answer of this store comes from, and what is true instead of what the client believes.
    pub(crate) fn header(
        &self,
        descriptor: &GroupDescriptor,
        leader: u64,
        applied_index: u64,
        hint: Option<RangeHint>,
    ) -> ResponseHeader {
        let (group, generation) = (descriptor.group.0, descriptor.epoch.range);
        let truth = RangeHint {
            group,
            generation,
            leader_store: leader,
        };
        let news = hint.filter(|hint| *hint != truth);
        let news = news.and_then(|_| self.news_of(&Route::from(descriptor)));
        ResponseHeader {
            group,
            leader_store: leader,
            store: self.me,
            applied_index,
            generation,
            ranges: news.into_iter().collect(),
        }
    }

    /// The same while this store serves as the group's leader.
    pub(crate) fn leader_header(
        &self,
        descriptor: &GroupDescriptor,
        applied_index: u64,
        hint: Option<RangeHint>,
    ) -> ResponseHeader {
        self.header(descriptor, self.me, applied_index, hint)
    }
}
