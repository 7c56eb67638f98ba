//! Views of groups as of an entry that all their replicas agree on, kept until somebody compares them.
//!
//! A view holds back what compaction could remove, so few are kept, the newest; whoever asked for one
//! has to take it soon, and drop it.

use std::collections::VecDeque;
use std::fmt;

use polyraft_multiraft::GroupId;
use polyraft_multiraft::env::SnapshotSource;

use crate::sync::Mutex;

/// More are not kept.
const KEPT_MAX: usize = 16;

/// See the module.
#[derive(Default)]
pub(super) struct Inspections {
    kept: Mutex<VecDeque<Kept>>,
}

struct Kept {
    group: GroupId,
    id: u64,
    source: Box<dyn SnapshotSource>,
}

impl Inspections {
    pub(super) fn keep(&self, group: GroupId, id: u64, source: Box<dyn SnapshotSource>) {
        let mut kept = self.kept.lock();
        if kept.len() >= KEPT_MAX {
            kept.pop_front();
        }
        kept.push_back(Kept { group, id, source });
    }

    pub(super) fn take(&self, group: GroupId, id: u64) -> Option<Box<dyn SnapshotSource>> {
        let mut kept = self.kept.lock();
        let at = kept
            .iter()
            .position(|it| (it.group, it.id) == (group, id))?;
        kept.remove(at).map(|it| it.source)
    }

    pub(super) fn names(&self) -> Vec<(GroupId, u64)> {
        let kept = self.kept.lock();
        kept.iter().map(|it| (it.group, it.id)).collect()
    }
}

impl fmt::Debug for Inspections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}
