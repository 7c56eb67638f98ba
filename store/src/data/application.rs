//! What a user replicates, and what becomes of it when ranges of keys change hands.

use bytes::Bytes;
use polyraft_core::EntryId;
use polyraft_multiraft::GroupDescriptor;
use polyraft_multiraft::env::Command;

use super::txn::GroupTxn;
use crate::disk::DiskError;

/// Values beside the keys that are read at once.
const PAGE: usize = 256;

/// What a user replicates: a deterministic function of a group's keys and a command.
///
/// An application around another one passes on all that it is asked, not only
/// [`Application::apply`].
pub trait Application: Send + Sync + 'static {
    /// Applies one committed command; the bytes returned go to whoever proposed it. Must depend on
    /// nothing but the transaction and the command.
    ///
    /// # Errors
    /// Only what the transaction returned: it stops the store. What is wrong with a command is said
    /// in the reply.
    fn apply(&self, txn: &mut GroupTxn<'_>, command: &Command) -> Result<Bytes, DiskError>;

    /// The reply to a command that is not for this group, since its keys are not in its range; none: it is
    /// for this group. Asked before [`Application::apply`], which then never sees such a command: it
    /// had been proposed when the keys were here still, or by somebody who knew no better. Nothing of
    /// it is remembered, so that another copy may be applied by the group that has the keys. Must
    /// depend on nothing but the range and the command.
    ///
    /// As provided: every command is for this group. Whoever gives a key outside of the range to the
    /// transaction stops the store.
    fn refuse(&self, descriptor: &GroupDescriptor, command: &Command) -> Option<Bytes> {
        let _ = (descriptor, command);
        None
    }

    /// The keys behind the end of `left` belong to the new group `right` from now on, which has nothing
    /// else yet: what is kept beside the keys is shared out, or copied. Both descriptors are those
    /// from now on. A split into many groups asks once for each, in the order of their ranges. Must
    /// depend on nothing but the transactions and `at`; on some stores what becomes of `right` is
    /// thrown away.
    ///
    /// As provided: a copy of every such value goes to `right`.
    ///
    /// # Errors
    /// Only what the transactions returned: it stops the store.
    fn split(
        &self,
        at: SplitAt,
        left: &mut GroupTxn<'_>,
        right: &mut GroupTxn<'_>,
    ) -> Result<(), DiskError> {
        let _ = at;
        copy_local(left, right)
    }

    /// All that belonged to `right` belongs to `left` from now on, by the entry `at` of its log: its keys
    /// are `left`'s already, what is kept beside them is brought together. What remains of `right` is
    /// removed. Must depend on nothing but the transactions and `at`.
    ///
    /// As provided: what `right` kept beside its keys is lost, and `left` keeps what it has.
    ///
    /// # Errors
    /// Only what the transactions returned: it stops the store.
    fn merge(
        &self,
        at: EntryId,
        left: &mut GroupTxn<'_>,
        right: &GroupTxn<'_>,
    ) -> Result<(), DiskError> {
        let _ = (at, left, right);
        Ok(())
    }
}

/// Where in the logs of the groups a split is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SplitAt {
    /// The entry of the group that was there before.
    pub left: EntryId,
    /// Where the log of the new group begins: its first command comes behind it.
    pub right: EntryId,
}

fn copy_local(from: &GroupTxn<'_>, to: &mut GroupTxn<'_>) -> Result<(), DiskError> {
    let mut start = Bytes::new();
    loop {
        let page = from.local_scan(&start, None, PAGE)?;
        let Some((last, _)) = page.last() else {
            return Ok(());
        };
        start = crate::keys::after(last);
        for (name, value) in page {
            to.local_put(&name, value);
        }
    }
}
