//! The client's side of a session: numbers for commands, and what has been answered. No I/O.

use std::collections::BTreeSet;
use std::num::NonZeroU64;

use bytes::Bytes;

use super::{Envelope, Once, SessionId, WINDOW};

/// A session as its client keeps it: of one client with one group, and with whatever groups come out of
/// that or take it in.
///
/// [`Session::begin`] makes a command of it, which may be proposed as often as needed until it is
/// answered. [`Session::end`] says that it was answered, or that nobody waits for it any more.
/// [`SessionReply::Expired`](super::SessionReply::Expired) ends the session: [`Session::renew`]
/// begins the next one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    id: SessionId,
    next: u64,
    /// Begun and not ended.
    open: BTreeSet<u64>,
}

impl Session {
    /// A new session. No other client may have drawn `client`, and a client draws one for each session
    /// that it has at the same time: the groups that they are with may become one. `since` is an index
    /// that the group's log has reached, from any answer of the group, or 0 if none is known.
    #[must_use]
    pub const fn new(client: NonZeroU64, since: u64) -> Self {
        Self {
            id: SessionId { client, since },
            next: 1,
            open: BTreeSet::new(),
        }
    }

    /// Which session it is.
    #[must_use]
    pub const fn id(&self) -> SessionId {
        self.id
    }

    /// The number of the next command; `None` while [`WINDOW`] numbers lie between it and the lowest open
    /// one, so that the group would refuse it.
    pub fn number(&mut self) -> Option<Once> {
        let sequence = self.next;
        let acknowledged = self.open.first().copied().unwrap_or(sequence);
        if sequence - acknowledged >= WINDOW {
            return None;
        }
        self.next += 1;
        self.open.insert(sequence);
        Some(Once {
            session: self.id,
            sequence,
            acknowledged,
        })
    }

    /// The next command under its number, as [`Session::number`] gives it.
    pub fn begin(&mut self, command: Bytes) -> Option<Envelope> {
        let once = Some(self.number()?);
        Some(Envelope { once, command })
    }

    /// The command with this number was answered, or its outcome matters to nobody any more: once a
    /// later command has been applied, copies of this one are refused.
    pub fn end(&mut self, sequence: u64) {
        self.open.remove(&sequence);
    }

    /// A command of session `refused` was refused as expired, with this index: begins the next
    /// session, unless that has happened. Returns the numbers of the commands that were open:
    /// whether they were applied is not known, unless the refusal answered the only copy.
    pub fn renew(&mut self, refused: SessionId, index: u64) -> BTreeSet<u64> {
        if refused != self.id {
            return BTreeSet::new();
        }
        self.id.since = index;
        std::mem::take(&mut self.open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> Session {
        Session::new(NonZeroU64::new(7).unwrap(), 5)
    }

    fn begin(session: &mut Session) -> Option<(u64, u64)> {
        let envelope = session.begin(Bytes::from_static(b"c"))?;
        envelope.once.map(|once| (once.sequence, once.acknowledged))
    }

    #[test]
    fn what_has_ended_is_acknowledged() {
        let mut session = session();
        assert_eq!(begin(&mut session), Some((1, 1)));
        assert_eq!(begin(&mut session), Some((2, 1)));
        session.end(2);
        assert_eq!(begin(&mut session), Some((3, 1)));
        session.end(1);
        assert_eq!(begin(&mut session), Some((4, 3)));
        session.end(3);
        session.end(4);
        session.end(4);
        assert_eq!(begin(&mut session), Some((5, 5)));
    }

    #[test]
    fn the_window_is_kept() {
        let mut session = session();
        for sequence in 1..=WINDOW {
            assert_eq!(begin(&mut session), Some((sequence, 1)));
        }
        assert_eq!(begin(&mut session), None);
        session.end(2);
        assert_eq!(begin(&mut session), None);
        session.end(1);
        assert_eq!(begin(&mut session), Some((WINDOW + 1, 3)));
    }

    #[test]
    fn a_renewed_session_is_another_one() {
        let mut session = session();
        begin(&mut session);
        begin(&mut session);
        session.end(1);
        let before = session.id();
        assert_eq!(session.renew(before, 9), BTreeSet::from([2]));
        let client = before.client;
        assert_eq!(session.id(), SessionId { client, since: 9 });
        assert_eq!(begin(&mut session), Some((3, 3)));
        // The refusal of another command of the session before.
        assert_eq!(session.renew(before, 10), BTreeSet::new());
        assert_eq!(session.id().since, 9);
    }
}
