//! A world in one thread: whole hosts, simulated, under faults, watched. A test kit for whoever embeds
//! Polyraft, and the one Polyraft tests itself with.
//!
//! # Contract
//! * A seed and a commit determine everything that happens: run twice, a world does the same twice.
//! * The code of `core`, `multiraft` and `store` that runs here is the code that runs in
//!   production; only what is behind the seams (disk, network, time) is another one.
//! * Checkers see what crosses the seams and keep their own books; the first thing that must never
//!   be ends the world, and is told with the seed.
//!
//! # Your state machine in a world
//! A world needs to know what its groups run and how clients use it. That is a
//! [`Subject`](subject::Subject): it *opens* the state machine of a store on the store's disk, it draws
//! the next *operation* of a client, and it says in one *step* what a single copy of an object would answer.
//! An [`Application`](polyraft_store::Application) needs a way to be read, and is ready:
//!
//! ```
//! use std::sync::Arc;
//!
//! use bytes::Bytes;
//! use polyraft_multiraft::{GroupId, StoreId, env::Command};
//! use polyraft_sim::disk::SimDisk;
//! use polyraft_sim::kit::{self, GroupView, Readable};
//! use polyraft_sim::plan::{Fault, Plan};
//! use polyraft_sim::rng::Rng;
//! use polyraft_sim::subject::{Operation, Served, Subject};
//! use polyraft_store::{Application, GroupTxn, disk::DiskError};
//!
//! /// What you run in production: here the length of a text.
//! struct Length;
//!
//! fn number(bytes: Option<Bytes>) -> u8 {
//!     bytes.map_or(0, |bytes| bytes[0])
//! }
//!
//! impl Application for Length {
//!     fn apply(&self, txn: &mut GroupTxn<'_>, command: &Command) -> Result<Bytes, DiskError> {
//!         let length = number(txn.get(b"length")?).wrapping_add(command.data.len() as u8);
//!         txn.put(b"length", Bytes::from(vec![length]))?;
//!         Ok(Bytes::from(vec![length]))
//!     }
//! }
//!
//! impl Readable for Length {
//!     fn query(view: &GroupView<'_>, _query: &Bytes) -> Result<Bytes, String> {
//!         Ok(Bytes::from(vec![number(view.get(b"length")?)]))
//!     }
//! }
//!
//! /// What the world has to know of it.
//! struct Lengths;
//!
//! impl Subject for Lengths {
//!     fn open(&self, _store: StoreId, disk: &SimDisk) -> Arc<dyn Served> {
//!         kit::serve(Length, disk)
//!     }
//!
//!     fn operation(&self, rng: &mut Rng, _group: GroupId, _client: u64, _number: u64) -> Operation {
//!         match rng.percent(30) {
//!             true => Operation::query("it", ""),
//!             false => Operation::command("it", &b"xxx"[..rng.between(1, 3) as usize]),
//!         }
//!     }
//!
//!     fn step(&self, state: &Bytes, input: &Bytes, output: Option<&Bytes>) -> Option<Bytes> {
//!         let length = number(state.first().map(|n| vec![*n].into()));
//!         let after = Bytes::from(vec![length.wrapping_add(input.len() as u8)]);
//!         output.is_none_or(|output| *output == after).then_some(after)
//!     }
//! }
//!
//! let subject: Arc<dyn Subject> = Arc::new(Lengths);
//! let small = Plan {
//!     groups: 1,
//!     clients: 2,
//!     chaos: 3_000_000_000,
//!     faults: [Fault::Crash, Fault::Partition].into(),
//!     ..Plan::drawn(1)
//! };
//! assert_eq!(small.run(&subject).violation, None);
//! ```
//!
//! In a test of yours run `Plan::drawn(seed)` for as many seeds as you have time for, with
//! [`run::run_many`] on all cores, in a build with optimisation and debug assertions.
//! `examples/bank.rs` is a whole program with a mistake and the test that catches it.
//!
//! * **Commands that may be sent again.** If the application counts a repeated command once (it is inside
//!   [`Sessions`](polyraft_store::Sessions)), say so with `repeatable`: clients then try until they have an
//!   answer. [`kv`] is an example, with clients that remember sessions. A command that is not repeatable
//!   is given up when nobody knows its outcome, and the checker allows for both.
//! * **Objects** are what is checked separately, each within its group. Small ones make the search for an
//!   order fast; a read of many is told as [parts](subject::Subject::parts). An object with too many
//!   unknown outcomes can be too hard: [`Outcome::undecided`](world::Outcome::undecided) counts these.
//! * **Queries** are also asked of replicas that do not lead, as of their own copy: it may lag, but never go
//!   back. Those that [`Subject::operation`](subject::Subject::operation) draws are taken.
//! * **Ranges.** Groups have none, unless [`Subject::ranges`](subject::Subject::ranges) says so. Those that
//!   have some are split at the keys that [`Subject::split_keys`](subject::Subject::split_keys) names, and an
//!   operation goes to the group that has its [key](subject::Subject::key): no object may lie across a split.
//! * **A state machine of your own.** What implements
//!   [`StateMachine`](polyraft_multiraft::env::StateMachine) and [`Served`](subject::Served) can be opened.
//!   It must keep its state on the [`SimDisk`](disk::SimDisk) that it is given and nowhere else, or crashes
//!   are not what they would be; and it must take in no clock, randomness or order of a hash map.
//!
//! # What befalls it, and what is checked
//! [`plan::Fault`] lists the faults; a seed draws a subset of them, and a [`Plan`](plan::Plan) can be changed
//! by hand. After a time of faults comes one of calm, in which every group must serve again.
//!
//! | checkers | what must be so |
//! |---|---|
//! | [`checkers`] (`names()` lists them) | the promises of Raft and of the host: one leader per term, logs that match, nothing acknowledged before it is durable, nothing committed lost, nothing left of destroyed replicas, limits that are kept; one owner of each key at a time, splits that happen at once or not at all; in the end equal contents on all members, and no key without a group |
//! | `linearizability`, `stale-reads` ([`history`]) | one single copy of each object could have given all answers |
//! | `liveness` | all groups serve, and all members have everything, within [`Plan::calm`](plan::Plan::calm) after the last fault |
//! | `recovery`, `host-error`, `panic` | a store starts and goes on unless its disk has failed |
//! | yours | a [`Checker`](observe::Checker) given to [`run::run_with`] |
//!
//! [`marks`] count how often rare states were reached: a world that never saw a state says nothing about it.
//!
//! # Again, closer, smaller
//! Run the plan that failed again, with a [`Trace`](trace::Trace): the last lines of it before the
//! violation, or all of it, printed as it happens. [`run::shrink`] takes away faults, groups, clients and
//! time for as long as the same checker complains. What comes out is a plan, and can become a test.
//!
//! # Where entropy could come in, and what closes it
//!
//! | source | closed by |
//! |---|---|
//! | time | [`queue::EventQueue`]; hosts know ticks only |
//! | order of threads | there is one; who is next is drawn from the seed |
//! | randomness | [`rng::Rng`]; the core's own is seeded by group, replica and store |
//! | order in hash maps | a hasher with a fixed seed in the hosts; `BTreeMap` here |
//! | disk and network | [`disk::SimDisk`], the [`network`] of the world |
//! | your state machine | you; `tests/determinism.rs` shows how to look |
#![forbid(unsafe_code)]

pub mod checkers;
pub mod disk;
pub mod history;
pub mod kit;
pub mod kv;
mod leftovers;
pub mod linearizability;
pub mod marks;
pub mod network;
pub mod observe;
pub mod plan;
pub mod queue;
pub mod rng;
pub mod run;
mod seams;
mod store;
pub mod subject;
pub mod time;
pub mod trace;
pub mod world;
