//! The built-in subject: a few counters per group, written, compared, counted up and read by
//! clients that keep sessions for some of what they do.
//!
//! It is the ready application of a user: sessions around an [`Application`], over the real code of
//! `store`. The keys of a group lie in its range, or are its own if it has none. A command travels
//! in an [`Envelope`](polyraft_store::sessions::Envelope), its reply in a
//! [`SessionReply`](polyraft_store::sessions::SessionReply).

mod codec;
mod explain;
mod machine;

use std::fmt::Write as _;
use std::num::NonZeroU64;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use polyraft_multiraft::{GroupId, KeyRange, StoreId};
use polyraft_store::sessions::{Envelope, Once, SessionId, SessionReply, Sessions};

use self::codec::{
    Change, Command, Outcome, Query, Reply, answer, put_value, take_answer, take_scan, take_value,
};
use self::machine::{KvApplication, place_from, value, value_bytes};
use crate::disk::SimDisk;
use crate::history::Register;
use crate::kit;
use crate::rng::Rng;
use crate::subject::{Operation, Part, Request, Served, Subject};

/// Keys of a group.
pub const KEYS: u8 = 4;
/// Sessions that a group knows: so few that clients that begin new ones evict each other.
pub const SESSIONS: u64 = 6;
/// Commands after which a client with a memory begins a new session.
const SESSION_USES: u64 = 4;

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub struct Kv;

/// What a client remembers of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Memory {
    /// When its session began, and how often it was used.
    since: u64,
    uses: u64,
    /// The highest index that an answer named.
    index: u64,
    /// A key, and what it held when last heard of.
    seen: Option<(u8, Option<u64>)>,
}

impl Memory {
    fn encode(self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u64(self.since);
        out.put_u64(self.uses);
        out.put_u64(self.index);
        if let Some((key, value)) = self.seen {
            out.put_u8(key);
            put_value(&mut out, value);
        }
        out.freeze()
    }

    /// What is in these bytes; nothing in those of somebody who has not heard anything.
    fn decode(bytes: &Bytes) -> Self {
        let mut rest = bytes.clone();
        let mut number = || rest.try_get_u64().unwrap_or_default();
        Self {
            since: number(),
            uses: number(),
            index: number(),
            seen: rest
                .try_get_u8()
                .ok()
                .and_then(|key| Some((key, take_value(&mut rest)?))),
        }
    }
}

impl Kv {
    /// What an input with its output (none: unknown) is on a register whose values are text, for
    /// [`History::json_lines`](crate::history::History::json_lines). Counting up is a write over what was
    /// there, once it is answered. Nothing if it does not tell what a register would have to do.
    #[must_use]
    pub fn register(input: &Bytes, output: Option<&Bytes>) -> Option<Register> {
        explain::register(input, output)
    }

    /// A value that nobody else writes, also after some counting up.
    const fn unique(client: u64, number: u64) -> u64 {
        (client << 48) | (number << 16)
    }

    fn change(rng: &mut Rng, client: u64, number: u64, seen: Option<Option<u64>>) -> Change {
        let value = Self::unique(client, number);
        match rng.below(20) {
            0..6 => Change::Put(value),
            6..8 => Change::Delete,
            8..14 => {
                let own = Self::unique(client, number.saturating_sub(rng.between(1, 3)));
                let guess = if rng.percent(40) { None } else { Some(own) };
                let expected = seen.filter(|_| rng.percent(80)).unwrap_or(guess);
                Change::Cas { expected, value }
            }
            _ => Change::Add(rng.between(1, 3)),
        }
    }

    fn ask(rng: &mut Rng, group: GroupId, client: u64, number: u64, memory: &Memory) -> Operation {
        let name = format!("g{:08x}", group.0);
        if rng.percent(8) {
            return Operation {
                object: name.into(),
                request: Request::Query(Query::Scan.encode()),
            };
        }
        let mut key = u8::try_from(rng.below(u64::from(KEYS))).unwrap_or(0);
        let read = rng.percent(30);
        // What was seen is good for a comparison only if it is used soon.
        if let Some((seen, _)) = memory.seen
            && !read
            && rng.percent(50)
        {
            key = seen;
        }
        let object = of_key(&name, key);
        if read {
            let request = Request::Query(Query::Get(key).encode());
            return Operation { object, request };
        }
        let seen = memory.seen.filter(|(seen, _)| *seen == key);
        let change = Self::change(rng, client, number, seen.map(|(_, value)| value));
        let client = NonZeroU64::new(client).filter(|_| rng.percent(75));
        let once = client.map(|client| Once {
            session: SessionId {
                client,
                since: memory.since,
            },
            // A client does one thing after another: what it did before is answered or given up.
            sequence: number,
            acknowledged: number.saturating_sub(rng.below(4)),
        });
        let command = Command { key, change }.encode();
        Operation {
            object,
            request: Request::Command {
                data: Envelope { once, command }.encode(),
                repeatable: once.is_some(),
            },
        }
    }
}

fn of_key(group: &str, key: u8) -> Bytes {
    format!("{group}/k{key}").into()
}

impl Subject for Kv {
    fn open(&self, _store: StoreId, disk: &SimDisk) -> Arc<dyn Served> {
        kit::serve(Sessions::<_, SESSIONS>::bounded(KvApplication), disk)
    }

    fn ranges(&self) -> bool {
        true
    }

    fn key(&self, operation: &Operation, range: &KeyRange) -> Bytes {
        let key = match &operation.request {
            Request::Command { data, .. } => Command::of(data).map(|command| command.key),
            Request::Query(query) => match Query::decode(query) {
                Some(Query::Get(key)) => Some(key),
                Some(Query::Scan) | None => None,
            },
        };
        match key {
            Some(key) => place_from(&range.start, key).into(),
            None => range.start.clone(),
        }
    }

    fn split_keys(&self, range: &KeyRange) -> Vec<Bytes> {
        let keys = (0..KEYS).map(|key| Bytes::from(place_from(&range.start, key)));
        keys.filter(|key| *key > range.start && range.contains(key))
            .collect()
    }

    fn operation(&self, rng: &mut Rng, group: GroupId, client: u64, number: u64) -> Operation {
        Self::ask(rng, group, client, number, &Memory::default())
    }

    fn next(
        &self,
        rng: &mut Rng,
        group: GroupId,
        client: u64,
        number: u64,
        memory: &Bytes,
    ) -> Operation {
        Self::ask(rng, group, client, number, &Memory::decode(memory))
    }

    fn remember(&self, operation: &Operation, output: &Bytes, memory: &Bytes) -> Bytes {
        let mut memory = Memory::decode(memory);
        match &operation.request {
            Request::Query(query) => {
                if let (Some(Query::Get(key)), Some(values)) =
                    (Query::decode(query), take_answer(output))
                {
                    memory.seen = values.first().map(|value| (key, *value));
                }
            }
            Request::Command { data, repeatable } => match SessionReply::decode(output) {
                Some(SessionReply::Expired { index }) => {
                    memory.since = index;
                    memory.uses = 0;
                }
                Some(SessionReply::Applied(reply)) => {
                    memory.uses += u64::from(*repeatable);
                    let (command, reply) = (Command::of(data), Reply::decode(&reply));
                    if let (Some(Command { key, change }), Some(reply)) = (command, reply) {
                        memory.index = memory.index.max(reply.index);
                        memory.seen = after(change, reply.outcome).map(|value| (key, value));
                    }
                    if memory.uses >= SESSION_USES && memory.index > memory.since {
                        memory.since = memory.index;
                        memory.uses = 0;
                    }
                }
                _ => {}
            },
        }
        memory.encode()
    }

    fn tells(&self, _operation: &Operation, output: &Bytes, in_doubt: bool) -> bool {
        let not_applied = matches!(
            SessionReply::decode(output),
            Some(SessionReply::Expired { .. } | SessionReply::Refused(_))
        );
        !(not_applied && in_doubt)
    }

    fn parts(&self, operation: &Operation, output: &Bytes) -> Vec<Part> {
        let input = match &operation.request {
            Request::Command { data, .. } => data,
            Request::Query(query) => query,
        };
        let part = |object: Bytes, input: Bytes, output: Bytes| Part {
            object,
            input,
            output,
        };
        if Query::decode(input) != Some(Query::Scan) {
            return vec![part(
                operation.object.clone(),
                input.clone(),
                output.clone(),
            )];
        }
        let group = String::from_utf8_lossy(&operation.object);
        match take_scan(output) {
            Some(values) => values
                .into_iter()
                .map(|(key, value)| {
                    let (object, query) = (of_key(&group, key), Query::Get(key).encode());
                    part(object, query, answer([value]))
                })
                .collect(),
            // A malformed answer is the right one to nothing.
            None => vec![part(
                of_key(&group, 0),
                Query::Get(0).encode(),
                output.clone(),
            )],
        }
    }

    fn step(&self, state: &Bytes, input: &Bytes, output: Option<&Bytes>) -> Option<Bytes> {
        let before = match state.is_empty() {
            true => None,
            false => Some(value(state).ok()?),
        };
        if let Some(query) = Query::decode(input) {
            let right = output.is_none_or(|output| *output == answer([before]));
            return (right && query != Query::Scan).then(|| state.clone());
        }
        let (after, expected) = Command::of(input)?.change.of(before);
        let after = after.map_or_else(Bytes::new, value_bytes);
        let Some(output) = output else {
            return Some(after);
        };
        match SessionReply::decode(output)? {
            SessionReply::Applied(reply) => {
                (Reply::decode(&reply)?.outcome == expected).then_some(after)
            }
            SessionReply::AppliedBefore => Some(after),
            // Not in doubt: this was the only attempt.
            SessionReply::Expired { .. } | SessionReply::Refused(_) => Some(state.clone()),
            // A client that waits for an answer has not acknowledged it, nor is it ahead of itself.
            SessionReply::Acknowledged | SessionReply::TooFarAhead | SessionReply::Malformed => {
                None
            }
        }
    }

    fn screen(
        &self,
        steps: &mut dyn Iterator<Item = (&Bytes, Option<&Bytes>)>,
    ) -> Result<(), String> {
        explain::screen(steps)
    }

    fn show(&self, bytes: &Bytes) -> String {
        shown(bytes)
            .or_else(|| shown_state(bytes))
            .unwrap_or_else(|| String::from_utf8_lossy(bytes).escape_debug().to_string())
    }
}

/// What a key holds after a change, if the outcome says it.
const fn after(change: Change, outcome: Outcome) -> Option<Option<u64>> {
    match (change, outcome) {
        (Change::Put(value), Outcome::Put) => Some(Some(value)),
        (Change::Delete, Outcome::Deleted) => Some(None),
        (Change::Cas { value, .. }, Outcome::Cas { swapped: true, .. }) => Some(Some(value)),
        (Change::Cas { .. }, Outcome::Cas { seen, .. }) => Some(seen),
        (Change::Add(_), Outcome::Added(value)) => Some(Some(value)),
        _ => None,
    }
}

/// What a key holds, as text.
fn shown_state(bytes: &Bytes) -> Option<String> {
    match bytes.is_empty() {
        true => Some("nothing".to_owned()),
        false => Some(format!("{:x}", value(bytes).ok()?)),
    }
}

fn shown(bytes: &Bytes) -> Option<String> {
    if let Some(query) = Query::decode(bytes) {
        return Some(format!("{query:?}"));
    }
    if let Some(values) = take_answer(bytes) {
        return Some(format!("{values:x?}"));
    }
    if let Some(values) = take_scan(bytes) {
        return Some(format!("{values:x?}"));
    }
    if let Some(command) = Command::of(bytes) {
        let mut text = format!("k{} {:x?}", command.key, command.change);
        if let Some(once) = Envelope::decode(bytes)?.once {
            let SessionId { client, since } = once.session;
            let _ = write!(text, " (client {client} since {since}: {})", once.sequence);
        }
        return Some(text);
    }
    match SessionReply::decode(bytes)? {
        SessionReply::Applied(reply) => {
            let Reply { index, outcome } = Reply::decode(&reply)?;
            Some(format!("{outcome:x?} at {index}"))
        }
        other => Some(format!("{other:?}")),
    }
}
