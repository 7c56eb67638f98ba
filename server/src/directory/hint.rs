//! What the directory says, as a hint for routing: asked before everybody is.
//!
//! It is read from any replica, also without a quorum of them, and bounded in time: who gets nothing
//! here asks all stores, as if there were no directory.

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use super::DIRECTORY;
use super::service::{route_of, shortly_before};
use crate::owner::Aim;
use crate::proto::directory::{ListGroupsRequest, ListRangesRequest};
use crate::routing::Call;
use crate::server::Server;

/// How long a hint may take.
const BOUND: Duration = Duration::from_millis(500);
/// Ranges asked for at once.
const RANGES: u32 = 64;
/// Until something is known, or nobody knows anything.
type Refreshing<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// Behind most keys that anybody has.
const LATE: [u8; 16] = [0xff; 16];

impl Server {
    /// Takes over what the directory says of a key or a group. Nothing is known afterwards that was not
    /// before if the directory does not answer, or knows no better.
    pub(crate) async fn learn_from_directory(&self, aim: Aim<'_>, call: Call) {
        if call.forwarded || matches!(aim, Aim::Group(DIRECTORY)) {
            return;
        }
        let call = Call {
            deadline: call.deadline.min(Instant::now() + BOUND),
            reads: true,
            ..call
        };
        let (start, end) = match aim {
            Aim::Group(group) => return self.learn_group(group, call).await,
            Aim::Key(key) => (
                Bytes::copy_from_slice(key),
                Some([key, &[0]].concat().into()),
            ),
            Aim::Before(Some(end)) => (shortly_before(end), Some(Bytes::copy_from_slice(end))),
            Aim::Before(None) => (Bytes::from_static(&LATE), None),
        };
        let request = ListRangesRequest {
            start,
            end,
            limit: RANGES,
            stale: true,
        };
        match self.ranges_of_directory(request, call).await {
            Ok(answer) => {
                let routes = answer.ranges.into_iter().map(route_of);
                routes.for_each(|route| self.directory.learn(route));
            }
            Err(failure) => tracing::debug!(why = failure.message, "no hint of the directory"),
        }
    }

    async fn learn_group(&self, group: u64, call: Call) {
        let request = ListGroupsRequest {
            from: group,
            limit: 1,
            stale: true,
        };
        match self.groups_of_directory(request, call).await {
            Ok(answer) => {
                let found = answer.groups.into_iter().find(|entry| entry.group == group);
                if let Some(entry) = found {
                    self.directory.learn(route_of(entry));
                }
            }
            Err(failure) => tracing::debug!(why = failure.message, "no hint of the directory"),
        }
    }

    /// Nobody who was thought to have the group answers: the directory is asked where it is, and all stores
    /// if that knows no better.
    pub(crate) fn refresh_group<'a>(&'a self, group: u64, call: Call) -> Refreshing<'a> {
        // Who asks the directory looks for its leader perhaps, and then comes here again.
        Box::pin(async move {
            let refresh = async {
                if group == DIRECTORY {
                    return self.locate_directory(call).await;
                }
                let before = self.route_of_group(group);
                self.learn_from_directory(Aim::Group(group), call).await;
                if self.route_of_group(group) == before {
                    self.refresh_routes(call).await;
                }
            };
            // Whoever waits is told in time why there is no answer, and not what is known too late.
            if timeout_at(call.deadline, refresh).await.is_err() {
                tracing::debug!(group, "nobody has said in time where it is");
            }
        })
    }
}
