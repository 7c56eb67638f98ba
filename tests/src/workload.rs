//! Clients that read and write while a test breaks things, and remember what they were told.
//!
//! Every client is a thread that does one operation after the other and records it with its times
//! on one clock, so that the whole is a history for [`crate::linearizability`]. Written values are
//! unique. After an operation of unknown outcome a client goes on under a new number, since its old
//! operation may still be under way.
//!
//! To find lost writes, [`Workload::finish`] stops the clients and [`History::read_back`] then adds a read
//! of every key that was written: an acknowledged write that is gone makes the history not linearizable.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::linearizability::{Action, Limits, Operation, Outcome, check};
use crate::process::eventually;

/// What a client was told about one operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Done; with the value of a get.
    Done {
        /// A get's value; `None` for an absent key and for other operations.
        value: Option<String>,
        /// Whether a compare-and-swap wrote; `false` for other operations.
        swapped: bool,
    },
    /// Certainly without effect, with the reason.
    Refused(String),
    /// Perhaps done, now or later, with the reason.
    Unknown(String),
}

/// A connection to a key-value store, used by one thread.
pub trait KeyValue: Send {
    /// Runs one operation; the results inside `action` are not looked at.
    fn call(&mut self, key: &str, action: &Action) -> Answer;
}

/// Which operations on which keys.
#[derive(Debug, Clone, Copy)]
pub enum Mix {
    /// Puts only, each on a key of its own: the most acknowledged writes that could be lost.
    FreshKeys,
    /// Reads, writes, deletes and swaps on a few keys which all clients share.
    Contended {
        /// Number of keys.
        keys: u64,
    },
}

/// Running clients.
#[derive(Debug)]
pub struct Workload {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Vec<Operation>>>,
}

#[derive(Debug)]
struct Shared {
    begin: Instant,
    stop: AtomicBool,
    acknowledged: AtomicU64,
    refused: AtomicU64,
    unknown: AtomicU64,
    next_client: AtomicU64,
    mix: Mix,
    name: String,
    /// Pause between two operations of one client.
    pause: Duration,
}

impl Workload {
    /// Starts one thread for each of `clients`. `name` begins every key, so that two workloads of one cluster
    /// do not meet.
    pub fn start(name: &str, mix: Mix, clients: Vec<Box<dyn KeyValue>>) -> Self {
        let shared = Arc::new(Shared {
            begin: Instant::now(),
            stop: AtomicBool::new(false),
            acknowledged: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
            next_client: AtomicU64::new(0),
            mix,
            name: name.to_owned(),
            pause: Duration::from_millis(2),
        });
        let threads = clients.into_iter().enumerate().map(|(number, client)| {
            let shared = Arc::clone(&shared);
            thread::Builder::new()
                .name(format!("client {number}"))
                .spawn(move || shared.run(number as u64, client))
                .expect("a thread can be started")
        });
        let threads = threads.collect();
        Self { shared, threads }
    }

    /// Operations acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until `more` further operations have been acknowledged.
    ///
    /// # Panics
    ///
    /// They were not, within the harness's patience.
    #[track_caller]
    pub fn wait_for_progress(&self, more: u64) {
        let goal = self.acknowledged() + more;
        eventually("acknowledged operations", || match self.acknowledged() {
            now if now >= goal => Ok(()),
            now => Err(format!(
                "{now} of {goal} acknowledged, {} refused, {} of unknown outcome",
                self.shared.refused.load(Ordering::Relaxed),
                self.shared.unknown.load(Ordering::Relaxed)
            )),
        });
    }

    /// Stops the clients and gives their history.
    ///
    /// # Panics
    ///
    /// A client panicked.
    pub fn finish(mut self) -> History {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut operations = Vec::new();
        for thread in self.threads.drain(..) {
            operations.extend(thread.join().expect("no client panics"));
        }
        History {
            begin: self.shared.begin,
            operations,
        }
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn run(&self, number: u64, mut connection: Box<dyn KeyValue>) -> Vec<Operation> {
        let mut operations = Vec::new();
        let mut random = Random(number + 1);
        let mut client = self.next_client.fetch_add(1, Ordering::Relaxed);
        let mut last_seen = None;
        for turn in 0.. {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            let (key, action) = self.choose(number, turn, &mut random, &last_seen);
            let operation = perform(self.begin, client, key, action, connection.as_mut());
            match operation.outcome {
                Outcome::Ok => self.acknowledged.fetch_add(1, Ordering::Relaxed),
                Outcome::Fail => self.refused.fetch_add(1, Ordering::Relaxed),
                Outcome::Unknown => {
                    client = self.next_client.fetch_add(1, Ordering::Relaxed);
                    self.unknown.fetch_add(1, Ordering::Relaxed)
                }
            };
            if let Action::Get { result } = &operation.action {
                last_seen.clone_from(result);
            }
            operations.push(operation);
            thread::sleep(self.pause);
        }
        operations
    }

    fn choose(
        &self,
        number: u64,
        turn: u64,
        random: &mut Random,
        seen: &Option<String>,
    ) -> (String, Action) {
        let value = format!("{number}.{turn}");
        let Mix::Contended { keys } = self.mix else {
            // The bytes in front spread the keys over the whole key space, whatever its cuts.
            let key = format!("{:02x}-{}-{value}", random.below(256), self.name);
            return (key, Action::Put { value });
        };
        let key = random.below(keys);
        let key = format!("{:02x}-{}-{key}", key * 256 / keys, self.name);
        let action = match random.below(20) {
            0..8 => Action::Get { result: None },
            8..16 => Action::Put { value },
            16 => Action::Delete,
            _ => Action::Cas {
                expected: seen.clone(),
                value,
                swapped: false,
            },
        };
        (key, action)
    }
}

/// Runs one operation and records it.
fn perform(
    begin: Instant,
    client: u64,
    key: String,
    action: Action,
    connection: &mut dyn KeyValue,
) -> Operation {
    let now =
        || u64::try_from(begin.elapsed().as_nanos()).expect("a test takes less than 500 years");
    let invoke_ns = now();
    let answer = connection.call(&key, &action);
    let return_ns = now();
    let (outcome, value, swapped) = match answer {
        Answer::Done { value, swapped } => (Outcome::Ok, value, swapped),
        Answer::Refused(_) => (Outcome::Fail, None, false),
        Answer::Unknown(_) => (Outcome::Unknown, None, false),
    };
    let action = match action {
        Action::Get { .. } => Action::Get { result: value },
        Action::Cas {
            expected, value, ..
        } => Action::Cas {
            expected,
            value,
            swapped,
        },
        other => other,
    };
    Operation {
        client,
        key,
        action,
        outcome,
        invoke_ns,
        return_ns,
    }
}

/// What clients did and were told, with the clock it was recorded on.
#[derive(Debug)]
pub struct History {
    begin: Instant,
    operations: Vec<Operation>,
}

impl History {
    /// Number of acknowledged operations.
    pub fn acknowledged(&self) -> usize {
        self.operations
            .iter()
            .filter(|o| o.outcome == Outcome::Ok)
            .count()
    }

    /// Number of operations with an outcome other than acknowledged.
    pub fn not_acknowledged(&self) -> usize {
        self.operations.len() - self.acknowledged()
    }

    /// The value of each acknowledged put, for histories with one put per key.
    pub fn acknowledged_puts(&self) -> impl Iterator<Item = (&str, &str)> {
        self.operations
            .iter()
            .filter(|o| o.outcome == Outcome::Ok)
            .filter_map(|o| match &o.action {
                Action::Put { value } => Some((o.key.as_str(), value.as_str())),
                _ => None,
            })
    }

    /// Adds a read of every key that was written.
    ///
    /// # Panics
    ///
    /// A key cannot be read within the harness's patience.
    #[track_caller]
    pub fn read_back(&mut self, connection: &mut dyn KeyValue) {
        let written = self
            .operations
            .iter()
            .filter(|o| o.outcome != Outcome::Fail);
        let keys: BTreeSet<String> = written.map(|o| o.key.clone()).collect();
        for key in keys {
            let read = eventually("a read of a written key", || {
                let action = Action::Get { result: None };
                let operation = perform(
                    self.begin,
                    u64::MAX,
                    key.clone(),
                    action.clone(),
                    connection,
                );
                match operation.outcome {
                    Outcome::Ok => Ok(operation),
                    _ => Err(format!("{:?}", connection.call(&key, &action))),
                }
            });
            self.operations.push(read);
        }
    }

    /// Fails unless every key is linearizable.
    ///
    /// # Panics
    ///
    /// With the keys that are not, and where the search got stuck.
    #[track_caller]
    pub fn assert_linearizable(&self) {
        let report = check(&self.operations, &Limits::default());
        assert!(report.is_linearizable(), "{report}");
    }
}

/// A generator with a fixed seed (Steele's SplitMix64): which operations a client does is the same
/// in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Mutex;

    use super::*;

    /// A correct store, which can be told to forget one acknowledged write in `forgets`.
    struct Memory {
        data: Arc<Mutex<HashMap<String, String>>>,
        forgets: Option<u64>,
        writes: u64,
    }

    impl KeyValue for Memory {
        fn call(&mut self, key: &str, action: &Action) -> Answer {
            let mut data = self.data.lock().expect("not poisoned");
            let old = data.get(key).cloned();
            let mut swapped = false;
            match action {
                Action::Get { .. } => {}
                Action::Put { value } => {
                    self.writes += 1;
                    if self.forgets.is_none_or(|n| !self.writes.is_multiple_of(n)) {
                        data.insert(key.to_owned(), value.clone());
                    }
                }
                Action::Delete => {
                    data.remove(key);
                }
                Action::Cas {
                    expected, value, ..
                } => {
                    swapped = *expected == old;
                    if swapped {
                        data.insert(key.to_owned(), value.clone());
                    }
                }
            }
            let value = if matches!(action, Action::Get { .. }) {
                old
            } else {
                None
            };
            Answer::Done { value, swapped }
        }
    }

    fn history(mix: Mix, forgets: Option<u64>) -> History {
        let data = Arc::default();
        let connection = || Memory {
            data: Arc::clone(&data),
            forgets,
            writes: 0,
        };
        let clients = (0..3)
            .map(|_| Box::new(connection()) as Box<dyn KeyValue>)
            .collect();
        let workload = Workload::start("test", mix, clients);
        workload.wait_for_progress(300);
        let mut history = workload.finish();
        history.read_back(&mut connection());
        history
    }

    #[test]
    fn a_correct_store_passes() {
        history(Mix::FreshKeys, None).assert_linearizable();
        history(Mix::Contended { keys: 3 }, None).assert_linearizable();
    }

    #[test]
    #[should_panic(expected = "NOT linearizable")]
    fn a_store_that_forgets_writes_is_caught() {
        history(Mix::FreshKeys, Some(20)).assert_linearizable();
    }

    #[test]
    #[should_panic(expected = "NOT linearizable")]
    fn a_store_that_forgets_contended_writes_is_caught() {
        history(Mix::Contended { keys: 3 }, Some(20)).assert_linearizable();
    }
}
