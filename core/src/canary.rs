//! Known bugs that can be planted, to show that simulations catch them. Only with `--cfg canary`.
//!
//! Each is a mistake that somebody could make, small, and stands in the code of core, multiraft or
//! store under the name that it has here. At most one is planted at a time, for the whole process.
//!
//! Invariant: numbers of bugs are their places in [`Canary::ALL`], from 1; 0 stands for none.

use core::fmt;
use core::sync::atomic::{AtomicU8, Ordering};

macro_rules! canaries {
    ($($variant:ident $name:literal $what:literal;)*) => {
        /// A known bug. See the module.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Canary {
            /// Stands for 0, so that every bug has another number.
            #[doc(hidden)]
            None,
            $(#[doc = $what] $variant,)*
        }

        impl Canary {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Its name: lower case with hyphens.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    Self::None => "none",
                    $(Self::$variant => $name,)*
                }
            }

            /// What is broken, in one line.
            #[must_use]
            pub const fn what(self) -> &'static str {
                match self {
                    Self::None => "nothing",
                    $(Self::$variant => $what,)*
                }
            }
        }
    };
}

canaries! {
    // core: promises and durability
    AckBeforeSync "ack-before-sync"
        "an append is acknowledged before it is synced";
    ForgottenVote "forgotten-vote"
        "a vote is not written with the hard state";
    LeadsBeforeOwnVote "leads-before-own-vote"
        "a candidate leads when others have agreed, while its own vote is not durable";
    ReceiptForWrongBatch "receipt-for-wrong-batch"
        "any receipt counts as one for the leader's whole log";
    SnapshotAckedEarly "snapshot-acked-early"
        "a snapshot is acknowledged when it is accepted, before it is installed";
    // core: what is committed
    OldTermCounted "old-term-counted"
        "an entry of an older term is committed by counting (figure 3.7 of the thesis)";
    HeartbeatCommitBeyondMatch "heartbeat-commit-beyond-match"
        "a heartbeat tells the commit index, also beyond what the follower is known to have";
    AppendCommitUnchecked "append-commit-unchecked"
        "a follower commits up to its last entry, also behind what the append has confirmed";
    ConflictKept "conflict-kept"
        "an entry that is there already is taken for the same, whatever its term";
    JointCommitHalf "joint-commit-half"
        "in a joint configuration only the incoming half is asked for commits";
    LearnerCounted "learner-counted"
        "whoever has an entry counts towards its quorum, also learners";
    TwoChangesAtOnce "two-changes-at-once"
        "a change of membership is accepted while another one is not applied";
    // core: elections and reads
    JointVoteHalf "joint-vote-half"
        "in a joint configuration only the incoming half is asked for votes";
    VoteToLogBehind "vote-to-log-behind"
        "a log counts as up to date by its length, whatever the term of its last entry";
    HigherTermLeads "higher-term-leads"
        "a leader that is answered with a higher term takes the term and goes on leading";
    StaleReadRound "stale-read-round"
        "any answer to a heartbeat confirms the newest read, also one to an older round";
    ReadWithoutQuorum "read-without-quorum"
        "a leader answers reads without a round of heartbeats";
    // multiraft: messages, writes, time
    AckOvertakesWrite "ack-overtakes-write"
        "an answer without entries leaves at once, also if the entries it speaks of are being written";
    SyncOfFirstOnly "sync-of-first-only"
        "a record is synced only if its first section asks for it";
    FullDiskAcknowledged "full-disk-acknowledged"
        "a write that finds no room gets a receipt";
    AckToWrongGroup "ack-to-wrong-group"
        "acknowledgements of one record all go to its first group";
    HeartbeatToWrongGroup "heartbeat-to-wrong-group"
        "a heartbeat that is coalesced with another message gets the group of that one";
    LostWakeUp "lost-wake-up"
        "a group that has slept counts as awake again but is not ticked";
    TruncatedPastApplied "truncated-past-applied"
        "the log is truncated up to what is committed";
    TruncatedPastFlushed "truncated-past-flushed"
        "a flush that finds no room counts as one, and the log is truncated behind it";
    OrphansNeverAnswered "orphans-never-answered"
        "proposals of a leadership that is over are never given up";
    BudgetLeaked "budget-leaked"
        "proposals that are given up keep their share of the budget";
    ReadBeforeApplied "read-before-applied"
        "a confirmed read begins before its index is applied";
    ReplyByPosition "reply-by-position"
        "replies are matched with those who wait by position and not by entry";
    // multiraft: replicas that come and go
    ReplicaIdReused "replica-id-reused"
        "a new member gets the lowest id above the present members', also if it was used";
    TombstoneForgotten "tombstone-forgotten"
        "until the next start nobody remembers that a replica was destroyed";
    DataBeforeTombstone "data-before-tombstone"
        "the data of a destroyed replica goes before its tombstone is durable";
    RangeReleasedEarly "range-released-early"
        "a destroyed group's range is free before its data is gone";
    RemovalNeverTold "removal-never-told"
        "a removed replica that speaks up is not told that it is gone";
    // multiraft: groups that split
    EpochNotChecked "epoch-not-checked"
        "a command is taken whatever the generation of the range that it was meant for";
    ProposalsNotHeldBack "proposals-not-held-back"
        "a leader proposes commands behind a split that is not applied";
    BornBeforeFlush "born-before-flush"
        "the new groups of a split begin when it is applied, before it is durable";
    BirthUnguarded "birth-unguarded"
        "until a new group begins, messages may create and end a replica of it";
    NewGroupFromTombstone "new-group-from-tombstone"
        "a split makes a group also where it was ended before";
    // multiraft: groups that merge
    MergeWithoutFreeze "merge-without-freeze"
        "a group that is about to be merged goes on taking and applying commands";
    FrozenRead "frozen-read"
        "a group that is about to be merged goes on permitting reads";
    MergeUnsettled "merge-unsettled"
        "groups are merged before all logs have the freeze";
    RightNotCaughtUp "right-not-caught-up"
        "the right group's replica stops for a merge before it has applied its freeze";
    SubsumedBeforeFlush "subsumed-before-flush"
        "the right group's replica ends when a merge is applied, before it is durable";
    SubsumedForgotten "subsumed-forgotten"
        "the right group's replica stays when a merge is durable";
    LockIgnored "lock-ignored"
        "a replica that its left neighbour has still to take over goes when its group is said to be dead";
    ThawWithoutLook "thaw-without-look"
        "who gives a merge up thaws the right group at once";
    MergeAfterFence "merge-after-fence"
        "a merge takes place whatever has become of the left group since it was decided on";
    SnapshotOverNeighbour "snapshot-over-neighbour"
        "a snapshot that covers the keys of other groups is installed without asking them to stop";
    // store: the log
    SnapshotKeepsOldLog "snapshot-keeps-old-log"
        "a log that is longer than the snapshot which voids it keeps its tail";
    LastRecordSkipped "last-record-skipped"
        "recovery stops one record too early";
    LiveRecordDeleted "live-record-deleted"
        "the newest state of a group does not keep its record if entries do";
    OverwrittenRunKept "overwritten-run-kept"
        "entries that are overwritten stay in the index";
    SettledTooNew "settled-too-new"
        "a settled state claims to know the record after it";
    SettledVoteLost "settled-vote-lost"
        "a settled state forgets the vote";
    // store: data
    IndexWithoutData "index-without-data"
        "the applied index goes through the write-ahead log and the data does not";
    DataWithoutIndex "data-without-index"
        "of a turn of many groups only the first one's applied index is written";
    SessionsOutsideBatch "sessions-outside-batch"
        "the session table goes through the write-ahead log, in a batch before that of the data";
    SplitNotAtomic "split-not-atomic"
        "the new groups of a split are written after the old one has shrunk";
    MergeNotAtomic "merge-not-atomic"
        "the right group of a merge goes after the left one has grown";
    SessionsNotMerged "sessions-not-merged"
        "a merge forgets the sessions of the right group";
    SessionsNotSplit "sessions-not-split"
        "the new groups of a split do not know the sessions of the old one";
    RestoreKeepsOldKeys "restore-keeps-old-keys"
        "a snapshot is installed over what was there";
}

static PLANTED: AtomicU8 = AtomicU8::new(0);

/// Plants a bug in place of the one that was; none: the code is as it should be.
pub fn set(canary: Option<Canary>) {
    PLANTED.store(canary.unwrap_or(Canary::None) as u8, Ordering::Relaxed);
}

/// Plants the bug of that name, for tests that are told one in their environment; without a name
/// nothing.
///
/// # Panics
/// Nothing has that name.
pub fn plant(name: Option<&str>) {
    let named = |name| Canary::named(name).expect("the name of a known bug");
    set(name.map(named));
}

/// Whether this one is planted.
#[must_use]
pub fn is(canary: Canary) -> bool {
    PLANTED.load(Ordering::Relaxed) == canary as u8
}

impl Canary {
    /// The bug of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let mut all = Self::ALL.iter().copied();
        all.find(|canary| canary.name() == name)
    }
}

impl fmt::Display for Canary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_told_apart() {
        let names: BTreeSet<&str> = Canary::ALL.iter().map(|canary| canary.name()).collect();
        assert_eq!(names.len(), Canary::ALL.len());
        for canary in Canary::ALL {
            assert_eq!(Canary::named(canary.name()), Some(*canary));
            assert_ne!(*canary as u8, 0);
        }
        assert_eq!(Canary::named("no-such-bug"), None);
    }
}
