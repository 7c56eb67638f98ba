//! What is written into the directory's log, and what becomes of it.
//!
//! ```text
//! command: version u8 = 16 | kind u8 | what belongs to the kind
//! reply:   version u8 = 16 | kind u8 | what belongs to the kind
//! ```
//!
//! The version is none of a key-value command's: what goes astray between the directory and other
//! groups is malformed there, and changes nothing. Every command may come twice, or late.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::codec::{put_list, put_option, put_text, take_flag, take_list, take_option, take_text};
use super::entry::{Entry, Limits, StoreState};

const VERSION: u8 = 16;

/// A change of the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// The first one: these are the stores, and the numbers of groups up to this one are taken. Changes
    /// nothing if there was one before.
    Begin {
        /// The last number of a group of the first init.
        groups: u64,
        /// The stores that the cluster begins with.
        stores: Vec<(u64, String)>,
    },
    /// What leaders know of their groups.
    Publish(Vec<Entry>),
    /// These groups are no more, for ever.
    Destroyed(Vec<u64>),
    /// Numbers that were never given before.
    Allocate {
        /// By this a copy is known.
        token: Token,
        /// Of what.
        of: Numbers,
        /// How many.
        count: u64,
    },
    /// A store, or its new address.
    Store {
        /// Which.
        store: u64,
        /// Where it listens.
        address: String,
    },
    /// What the directory's leader hears of a store: since when (milliseconds since 1970) nothing; 0: it
    /// hears it.
    Heard {
        /// Which.
        store: u64,
        /// See above.
        silent_since: u64,
    },
    /// What is meant to become of a store.
    SetState {
        /// Which.
        store: u64,
        /// What.
        state: StoreState,
    },
    /// How the cluster may change by itself; what is none stays as it is.
    Settings {
        /// Not at all.
        paused: Option<bool>,
        /// How fast.
        limits: Option<Limits>,
    },
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Numbers {
    /// Groups.
    Groups,
    /// Stores.
    Stores,
}

/// Names one request of a store for numbers. A store asks for one thing at a time, so that of each store
/// only the last request has to be remembered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Token {
    /// Who asks.
    pub(crate) store: u64,
    /// Which of its starts.
    pub(crate) incarnation: u64,
    /// Counts its requests since then.
    pub(crate) sequence: u64,
}

/// What became of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// It has its effect, or had it before.
    Done,
    /// The numbers `first..first + count`, now or when the first copy came.
    Granted {
        /// The lowest.
        first: u64,
        /// How many.
        count: u64,
    },
    /// A later request of the same store came first: this one has no effect any more.
    Expired,
    /// There was no [`Command::Begin`] yet.
    NotBegun,
    /// So many numbers are not given at once, or not left.
    TooMany,
    /// No such store.
    NoStore,
    /// Not a command that this version knows; nothing was changed.
    Malformed,
}

impl Token {
    fn put(&self, out: &mut BytesMut) {
        out.put_u64(self.store);
        out.put_u64(self.incarnation);
        out.put_u64(self.sequence);
    }

    fn take(rest: &mut Bytes) -> Option<Self> {
        Some(Self {
            store: rest.try_get_u64().ok()?,
            incarnation: rest.try_get_u64().ok()?,
            sequence: rest.try_get_u64().ok()?,
        })
    }
}

impl Command {
    /// The bytes for an entry.
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(VERSION);
        out.put_u8(self.kind());
        self.put(&mut out);
        out.freeze()
    }

    const fn kind(&self) -> u8 {
        match self {
            Self::Begin { .. } => 1,
            Self::Publish(_) => 2,
            Self::Destroyed(_) => 3,
            Self::Allocate { .. } => 4,
            Self::Store { .. } => 5,
            Self::Heard { .. } => 6,
            Self::SetState { .. } => 7,
            Self::Settings { .. } => 8,
        }
    }

    fn put(&self, out: &mut BytesMut) {
        match self {
            Self::Begin { groups, stores } => {
                out.put_u64(*groups);
                put_list(out, stores, |out, (store, address)| {
                    out.put_u64(*store);
                    put_text(out, address);
                });
            }
            Self::Publish(entries) => put_list(out, entries, |out, entry| entry.put(out)),
            Self::Destroyed(groups) => put_list(out, groups, |out, group| out.put_u64(*group)),
            Self::Allocate { token, of, count } => {
                token.put(out);
                out.put_u8(match of {
                    Numbers::Groups => 0,
                    Numbers::Stores => 1,
                });
                out.put_u64(*count);
            }
            Self::Store { store, address } => {
                out.put_u64(*store);
                put_text(out, address);
            }
            Self::Heard {
                store,
                silent_since,
            } => {
                out.put_u64(*store);
                out.put_u64(*silent_since);
            }
            Self::SetState { store, state } => {
                out.put_u64(*store);
                out.put_u8(state.number());
            }
            Self::Settings { paused, limits } => {
                put_option(out, paused.as_ref(), |out, paused| {
                    out.put_u8(u8::from(*paused));
                });
                put_option(out, limits.as_ref(), |out, limits| limits.put(out));
            }
        }
    }

    /// The command in an entry; none: it is malformed, or of another version.
    pub(crate) fn decode(bytes: &Bytes) -> Option<Self> {
        let mut rest = bytes.clone();
        if rest.try_get_u8().ok()? != VERSION {
            return None;
        }
        let command = Self::take(&mut rest)?;
        (!rest.has_remaining()).then_some(command)
    }

    fn take(rest: &mut Bytes) -> Option<Self> {
        let number = |rest: &mut Bytes| rest.try_get_u64().ok();
        Some(match rest.try_get_u8().ok()? {
            1 => Self::Begin {
                groups: number(rest)?,
                stores: take_list(rest, |rest| Some((number(rest)?, take_text(rest)?)))?,
            },
            2 => Self::Publish(take_list(rest, Entry::take)?),
            3 => Self::Destroyed(take_list(rest, number)?),
            4 => Self::Allocate {
                token: Token::take(rest)?,
                of: match rest.try_get_u8().ok()? {
                    0 => Numbers::Groups,
                    1 => Numbers::Stores,
                    _ => return None,
                },
                count: number(rest)?,
            },
            5 => Self::Store {
                store: number(rest)?,
                address: take_text(rest)?,
            },
            6 => Self::Heard {
                store: number(rest)?,
                silent_since: number(rest)?,
            },
            7 => Self::SetState {
                store: number(rest)?,
                state: StoreState::from_number(rest.try_get_u8().ok()?)?,
            },
            8 => Self::Settings {
                paused: take_option(rest, take_flag)?,
                limits: take_option(rest, Limits::take)?,
            },
            _ => return None,
        })
    }
}

impl Reply {
    /// The bytes of the reply.
    pub(crate) fn encode(self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(VERSION);
        out.put_u8(match self {
            Self::Done => 0,
            Self::Granted { .. } => 1,
            Self::Expired => 2,
            Self::NotBegun => 3,
            Self::TooMany => 4,
            Self::NoStore => 5,
            Self::Malformed => 6,
        });
        if let Self::Granted { first, count } = self {
            out.put_u64(first);
            out.put_u64(count);
        }
        out.freeze()
    }

    /// The reply in these bytes; none: they are no reply of this version.
    pub(crate) fn decode(bytes: &Bytes) -> Option<Self> {
        let mut rest = bytes.clone();
        if rest.try_get_u8().ok()? != VERSION {
            return None;
        }
        let reply = match rest.try_get_u8().ok()? {
            0 => Self::Done,
            1 => Self::Granted {
                first: rest.try_get_u64().ok()?,
                count: rest.try_get_u64().ok()?,
            },
            2 => Self::Expired,
            3 => Self::NotBegun,
            4 => Self::TooMany,
            5 => Self::NoStore,
            6 => Self::Malformed,
            _ => return None,
        };
        (!rest.has_remaining()).then_some(reply)
    }
}

/// A request of a store, kept with what it was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) token: Token,
    pub(super) of: Numbers,
    pub(super) first: u64,
    pub(super) count: u64,
}

impl Grant {
    pub(super) fn put(&self, out: &mut BytesMut) {
        let Self {
            token,
            of,
            first,
            count,
        } = *self;
        Command::Allocate { token, of, count }.put(out);
        out.put_u64(first);
    }

    pub(super) fn take(rest: &mut Bytes) -> Option<Self> {
        let token = Token::take(rest)?;
        let of = match take_flag(rest)? {
            false => Numbers::Groups,
            true => Numbers::Stores,
        };
        Some(Self {
            token,
            of,
            count: rest.try_get_u64().ok()?,
            first: rest.try_get_u64().ok()?,
        })
    }
}
