//! Commands that are applied once, however often they are proposed.
//!
//! Whoever gets no answer does not know what became of a command, and proposes it again.
//! [`Sessions`] around an application recognise it: a command comes in an [`Envelope`] that says of
//! which session it is and its number there; what was applied, with the reply, is kept in a table
//! of the group, changed in the same batch as the keys and carried by snapshots. (Ongaro's thesis,
//! 6.3; RIFL, SOSP 2015.)
//!
//! # Contract
//! * A command of a session has its effect at most once, in whatever order and however late its
//!   copies arrive. The copies after the first get the first one's reply.
//! * Whatever is not applied gets an answer that says so ([`SessionReply`]); it has no effect.
//! * It holds as long as no two sessions have the same [`SessionId`] and a client gives a number to
//!   one command only: [`Session`] sees to the latter.
//!
//! # How an evicted session stays evicted
//! The table of a group is bounded: the session whose last command is oldest makes room. A late
//! copy of one of its commands must not be taken for the first command of a new session. So there
//! is no such thing as a first command by itself: a session says since which index of the group's
//! log it exists ([`SessionId::since`]), which must lie below the command's own, and the table
//! keeps the *horizon*, the highest index at which an evicted session was last used. A session that
//! is not in the table is let in only if it exists since the horizon or later. An evicted one had a
//! command after it began, and that at or below the horizon: it is never let in again. No
//! registration is needed, and a client that knows an index among the last [`SESSIONS_MAX`] of the
//! log is always let in; others learn one from the refusal. For the same reason a session cannot be
//! closed: forgetting it early would need a horizon of its own.
//!
//! # How it stays so when groups split and merge
//! What is said of an index above is said of the group's *clock*: the index of its log plus an offset that
//! is 0 at first. A split gives each new group a copy of the table, and a clock that goes on from that of
//! the old one. What a group knows is then enough for its keys: *a session that is in its table had no
//! effect on them that the table does not know of, and one that is not there had none at all, or exists
//! for longer than since the horizon.* A command for keys that went elsewhere is refused by the
//! application ([`Application::refuse`]) and leaves no trace, so that its next copy may find them.
//!
//! For the whole of two groups that merge, it holds of a session that is in both tables, if the replies of
//! both are kept; of one that is in neither, if the higher horizon counts; and of one that is in one of
//! them and exists since the other's horizon or later. Whoever is in one of them and exists for longer
//! may have been in the other and had effects there: it goes, and is not let in again, since the
//! horizon is above it. Then, as ever, those go that were not used for longest until the rest has room.
//! The clock is above both clocks, or at least above all that the tables name. Nobody is refused for
//! ever: a refusal says what the clock is, and a session since then is let in.
//!
//! All of this follows from the log alone, so all replicas decide alike. The limits are part of the
//! format: to change them takes a new version of the envelope.

mod client;
mod envelope;
mod ranges;
mod table;

use bytes::Bytes;
use polyraft_core::EntryId;
use polyraft_multiraft::GroupDescriptor;
use polyraft_multiraft::env::Command;

pub use self::client::Session;
pub use self::envelope::{Envelope, Once, SessionId, SessionReply};
use self::table::{Entry, Table};
use super::{Application, GroupTxn, SplitAt};
use crate::disk::DiskError;

/// Sessions that a group knows.
pub const SESSIONS_MAX: u64 = 4096;
/// Numbers that a session may be ahead of the lowest one that it has not been answered.
pub const WINDOW: u64 = 32;
/// Bytes of replies that are kept for a session. A reply that finds no room is not kept; that its
/// command was applied is.
pub const REPLY_BYTES_MAX: usize = 8192;

/// An application whose commands come in envelopes; see the module. `MAX` is how many sessions a
/// group knows: it must be the same on all replicas, for ever.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sessions<A, const MAX: u64 = SESSIONS_MAX>(A);

impl<A: Application> Sessions<A> {
    /// Around an application.
    pub const fn new(application: A) -> Self {
        Self::bounded(application)
    }
}

impl<A: Application, const MAX: u64> Sessions<A, MAX> {
    /// As [`Sessions::new`], with another bound than [`SESSIONS_MAX`].
    pub const fn bounded(application: A) -> Self {
        const { assert!(MAX > 0, "a table without room for one session") };
        Self(application)
    }

    fn apply_once(
        &self,
        txn: &mut GroupTxn<'_>,
        once: &Once,
        command: &Command,
    ) -> Result<SessionReply, DiskError> {
        let known = Entry::load(txn, once.session)?;
        let is_new = known.is_none();
        let mut entry = known.unwrap_or_default();
        if !entry.replies.contains_key(&once.sequence)
            && let Some(refusal) = self.0.refuse(txn.descriptor(), command)
        {
            return Ok(SessionReply::Refused(refusal));
        }
        let index = Table::clock(txn, command.id.index)?;
        let since = once.session.since;
        // A session of an index that is not there yet, if let in, would not be behind the horizon
        // when it is evicted. It was one of an earlier group with the same number perhaps.
        if is_new && (since >= index || since < Table::load(txn)?.horizon) {
            return Ok(SessionReply::Expired { index });
        }
        let acknowledged = entry.acknowledged.max(once.acknowledged);
        if once.sequence < acknowledged {
            return Ok(SessionReply::Acknowledged);
        }
        if once.sequence - acknowledged >= WINDOW {
            return Ok(SessionReply::TooFarAhead);
        }
        let reply = match entry.replies.get(&once.sequence) {
            Some(Some(reply)) => SessionReply::Applied(reply.clone()),
            Some(None) => SessionReply::AppliedBefore,
            None => {
                let reply = self.0.apply(txn, command)?;
                entry.keep(once.sequence, &reply);
                SessionReply::Applied(reply)
            }
        };
        entry.touch(index, acknowledged);
        if is_new {
            Table::admit(txn, once.session, index, MAX)?;
        }
        entry.store(txn, once.session);
        Ok(reply)
    }
}

impl<A: Application, const MAX: u64> Application for Sessions<A, MAX> {
    fn apply(&self, txn: &mut GroupTxn<'_>, command: &Command) -> Result<Bytes, DiskError> {
        let Some(Envelope {
            once,
            command: data,
        }) = Envelope::decode(&command.data)
        else {
            return Ok(SessionReply::Malformed.encode());
        };
        let inner = Command {
            id: command.id,
            data,
        };
        let reply = match once {
            None => match self.0.refuse(txn.descriptor(), &inner) {
                Some(refusal) => SessionReply::Refused(refusal),
                None => SessionReply::Applied(self.0.apply(txn, &inner)?),
            },
            Some(once) => self.apply_once(txn, &once, &inner)?,
        };
        Ok(reply.encode())
    }

    /// Which keys a command is for is asked only if it has not been applied before.
    fn refuse(&self, _descriptor: &GroupDescriptor, _command: &Command) -> Option<Bytes> {
        None
    }

    fn split(
        &self,
        at: SplitAt,
        left: &mut GroupTxn<'_>,
        right: &mut GroupTxn<'_>,
    ) -> Result<(), DiskError> {
        ranges::split(at, left, right)?;
        self.0.split(at, left, right)
    }

    fn merge(
        &self,
        at: EntryId,
        left: &mut GroupTxn<'_>,
        right: &GroupTxn<'_>,
    ) -> Result<(), DiskError> {
        ranges::merge(at, left, right, MAX)?;
        self.0.merge(at, left, right)
    }
}
