//! Which groups this store has news of as their leader: that it leads them, or what they are now.
//!
//! For those who tell others, such as a directory of all groups, and do not want to look at thousands
//! of groups again and again to find the few that have changed. Nothing is noted until somebody
//! watches, and then a group once, whatever happens to it until it is taken.
//!
//! Invariants: what is news is visible through [`HostHandle`] before it is noted, so that whoever takes
//! a group and then looks misses nothing; every group that this store leads when the watch begins
//! is noted then.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use polyraft_core::RoleName;

use crate::group::GroupId;
use crate::handle::HostHandle;
use crate::sync::{AtomicBool, Mutex};

/// Called when the first group is noted since the last taking, by a worker in the middle of its turn: it
/// must not block.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// What workers note and the watcher takes.
#[derive(Default)]
pub(crate) struct Changes {
    watched: AtomicBool,
    noted: Mutex<Noted>,
}

#[derive(Default)]
struct Noted {
    groups: BTreeSet<GroupId>,
    wake: Option<Wake>,
}

impl Changes {
    /// There is news of a group that this store leads.
    pub(crate) fn note(&self, group: GroupId) {
        if !self.watched.load(Ordering::SeqCst) {
            return;
        }
        let wake = {
            let mut noted = self.noted.lock();
            let first = noted.groups.is_empty();
            noted.groups.insert(group);
            noted.wake.clone().filter(|_| first)
        };
        if let Some(wake) = wake {
            wake();
        }
    }

    fn watch(&self, wake: Wake) {
        self.noted.lock().wake = Some(wake);
        self.watched.store(true, Ordering::SeqCst);
    }

    fn take(&self) -> BTreeSet<GroupId> {
        std::mem::take(&mut self.noted.lock().groups)
    }
}

impl fmt::Debug for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Changes")
    }
}

impl HostHandle {
    /// From now on a group is noted, and `wake` called, when this store begins to lead it, in every term
    /// anew, and when it leads it and its descriptor changes. All groups that it leads now are
    /// noted at once. There is one watcher: whoever comes later takes its place.
    pub fn watch_led(&self, wake: Wake) {
        let router = &self.inner.shared.router;
        router.changes.watch(wake);
        // Who begins to lead meanwhile is noted twice at worst.
        for summary in self.list() {
            if summary.basic.soft_state.role == RoleName::Leader {
                router.changes.note(summary.group);
            }
        }
    }

    /// The groups that were noted since this was called last.
    #[must_use]
    pub fn take_led(&self) -> BTreeSet<GroupId> {
        self.inner.shared.router.changes.take()
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use polyraft_core::{BasicStatus, HardState, SoftState, Term};

    use super::*;
    use crate::group::GroupDescriptor;
    use crate::handle::ReplicaSummary;
    use crate::router::Router;

    fn summary(group: u64, role: RoleName, term: u64) -> ReplicaSummary {
        ReplicaSummary {
            group: GroupId(group),
            basic: BasicStatus {
                hard_state: HardState {
                    term: Term(term),
                    ..HardState::default()
                },
                soft_state: SoftState {
                    role,
                    ..SoftState::default()
                },
                ..BasicStatus::default()
            },
            ..ReplicaSummary::default()
        }
    }

    #[test]
    fn a_group_is_noted_when_its_leader_has_news_of_it() {
        let router = Router::new(1);
        let wakes = Arc::new(AtomicUsize::new(0));
        let one = Arc::new(GroupDescriptor::default());
        let other = Arc::new(GroupDescriptor::default());
        let taken = || {
            let groups = router.changes.take();
            groups.into_iter().map(|group| group.0).collect::<Vec<_>>()
        };
        let publish = |group, role, term, descriptor| {
            router.publish(0, summary(group, role, term), descriptor);
        };
        publish(1, RoleName::Leader, 1, &one);
        assert_eq!(taken(), [0; 0], "nobody watches");
        let count = Arc::clone(&wakes);
        let wake = move || {
            count.fetch_add(1, Ordering::SeqCst);
        };
        router.changes.watch(Arc::new(wake));
        publish(2, RoleName::Follower, 1, &one);
        publish(2, RoleName::Follower, 2, &other);
        publish(1, RoleName::Leader, 1, &one);
        assert_eq!(taken(), [0; 0], "it only follows, or nothing has changed");
        publish(2, RoleName::Leader, 3, &other);
        publish(3, RoleName::Leader, 1, &one);
        publish(3, RoleName::Leader, 1, &other);
        assert_eq!(wakes.load(Ordering::SeqCst), 1, "once for all of them");
        assert_eq!(taken(), [2, 3]);
        publish(3, RoleName::Follower, 2, &other);
        assert_eq!(taken(), [0; 0], "whoever leads it now has the news");
        publish(3, RoleName::Leader, 3, &other);
        publish(1, RoleName::Leader, 1, &other);
        assert_eq!(taken(), [1, 3]);
        router.remove(GroupId(1));
        publish(1, RoleName::Leader, 1, &other);
        assert_eq!((taken(), wakes.load(Ordering::SeqCst)), (vec![1], 3));
    }
}
