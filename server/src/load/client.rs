//! One client: chooses a request, sends it to the leader, counts the answer.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::history::Line;
use super::request::{Action, Answer, send};
use super::{Shared, Target};
use crate::failure::{Effect, Failure};

/// A write that was acknowledged.
#[derive(Clone, Debug)]
pub(crate) struct Acknowledged {
    group: usize,
    name: String,
    value: Bytes,
}

pub(super) struct Client {
    shared: Arc<Shared>,
    number: u64,
    turn: u64,
    random: StdRng,
    filler: Bytes,
    /// The last value seen of each contended key.
    seen: Vec<Option<Bytes>>,
    acknowledged: Vec<Acknowledged>,
}

impl Client {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let number = shared.clients.fetch_add(1, Ordering::Relaxed);
        let options = &shared.options;
        let mut random = StdRng::seed_from_u64(options.seed.wrapping_add(number));
        let filler: Vec<u8> = (0..options.value_bytes)
            .map(|_| random.random_range(b'a'..=b'z'))
            .collect();
        let contended = if options.history.is_some() {
            options.keys as usize
        } else {
            0
        };
        Self {
            number,
            turn: 0,
            random,
            filler: filler.into(),
            seen: vec![None; contended],
            acknowledged: Vec::new(),
            shared,
        }
    }

    pub(super) async fn run(mut self) -> Vec<Acknowledged> {
        let shared = Arc::clone(&self.shared);
        let end = shared.end();
        let mut stop = shared.stop.subscribe();
        loop {
            let mut begun = Instant::now();
            let n = shared.sequence.fetch_add(1, Ordering::Relaxed);
            if shared.options.ops.is_some_and(|ops| n >= ops) {
                return self.acknowledged;
            }
            if let Some(rate) = shared.options.rate {
                begun = shared.begin + Duration::from_secs_f64(n as f64 / rate);
                tokio::select! {
                    () = tokio::time::sleep_until(begun.min(end).into()) => {}
                    // An error says that the run itself is over.
                    _ = stop.changed() => {}
                }
            }
            if begun.max(Instant::now()) >= end || *stop.borrow() {
                return self.acknowledged;
            }
            shared.progress.begun(begun.elapsed());
            self.turn += 1;
            if shared.history.is_some() {
                self.contend(begun).await;
            } else {
                self.write_or_read(begun).await;
            }
        }
    }

    async fn write_or_read(&mut self, begun: Instant) {
        let options = &self.shared.options;
        let group = pick(
            &mut self.random,
            self.shared.target.groups.len(),
            options.zipf,
        );
        let dice = match options.remember {
            true => 100,
            false => self.random.random_range(0..100),
        };
        let (reads, scans) = (options.reads_percent, options.scans_percent);
        let name = if options.remember {
            format!("{}.{}", self.number, self.turn)
        } else {
            self.random.random_range(0..options.keys.max(1)).to_string()
        };
        // A write that is to be found again differs from every other.
        let value = match options.remember {
            true => distinct(&name, &self.filler),
            false => self.filler.clone(),
        };
        let action = match dice {
            dice if dice < reads => Action::Get,
            dice if dice < reads + scans => Action::Scan,
            _ => Action::Put(value.clone()),
        };
        let result = self.send(group, &name, action).await;
        self.count(group, begun, &result);
        if options.remember && result.is_ok() {
            self.acknowledged.push(Acknowledged { group, name, value });
        }
    }

    /// One operation on one of the contended keys, recorded.
    async fn contend(&mut self, begun: Instant) {
        let Some(history) = &self.shared.history else {
            return;
        };
        let key = self.random.random_range(0..self.seen.len());
        let group = key % self.shared.target.groups.len();
        // Keys of their own for every run: a checker takes it that they are absent at the beginning.
        let name = format!("{:016x}.k{key}", self.shared.run);
        let value = Bytes::from(format!("{}.{}", self.number, self.turn));
        let action = match self.random.random_range(0..20) {
            0..8 => Action::Get,
            8..15 => Action::Put(value),
            15 => Action::Delete,
            _ => Action::Cas {
                expected: self.seen[key].clone(),
                value,
            },
        };
        let clock =
            |at: Instant| u64::try_from((at - self.shared.begin).as_nanos()).unwrap_or(u64::MAX);
        let invoke_ns = clock(Instant::now());
        let result = self.send(group, &name, action.clone()).await;
        let return_ns = clock(Instant::now());
        let outcome = match &result {
            Ok(_) => "ok",
            Err(failure) if failure.effect == Effect::None => "fail",
            Err(_) => "unknown",
        };
        let text = |bytes: &Option<Bytes>| {
            bytes
                .as_ref()
                .map(|b| String::from_utf8_lossy(b).into_owned())
        };
        let (op, value, expected) = match &action {
            Action::Get | Action::Scan => ("get", None, None),
            Action::Put(value) => ("put", Some(value.clone()), None),
            Action::Delete => ("delete", None, None),
            Action::Cas { expected, value } => ("cas", Some(value.clone()), expected.clone()),
        };
        let answered = match (&action, &result) {
            (Action::Get, Ok(answer)) => text(&answer.value),
            (Action::Cas { .. }, Ok(answer)) => Some(answer.applied.to_string()),
            _ => None,
        };
        history.write(&Line {
            client: self.number,
            op,
            key: &name,
            value: text(&value).as_deref(),
            expected: text(&expected).as_deref(),
            result: answered.as_deref(),
            outcome,
            invoke_ns,
            return_ns,
        });
        if let (Action::Get, Ok(answer)) = (&action, &result) {
            self.seen[key].clone_from(&answer.value);
        }
        if outcome == "unknown" {
            self.number = self.shared.clients.fetch_add(1, Ordering::Relaxed);
        }
        self.count(group, begun, &result);
    }

    async fn send(&self, group: usize, name: &str, action: Action) -> Result<Answer, Failure> {
        let target = &self.shared.target;
        let result = send(target, group, name, action, self.shared.options.timeout).await;
        if let Err(failure) = &result {
            // Nobody gains by asking a store that does not answer again and again.
            target.failed(&target.key(group, name), failure);
            if failure.is_worth_another_try() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        result
    }

    fn count(&self, group: usize, begun: Instant, result: &Result<Answer, Failure>) {
        match result {
            Ok(_) => {
                self.shared.progress.acknowledged(begun.elapsed());
                self.shared.per_group[group].fetch_add(1, Ordering::Relaxed);
            }
            Err(failure) => self.shared.progress.failed(&describe(failure)),
        }
    }
}

impl Acknowledged {
    /// Reads the write until an answer comes.
    pub(super) async fn check(&self, target: &Target, deadline: Instant) -> Result<(), String> {
        loop {
            let bound = Duration::from_secs(5);
            match send(target, self.group, &self.name, Action::Get, bound).await {
                Ok(answer) if answer.value.as_ref() == Some(&self.value) => return Ok(()),
                Ok(answer) => {
                    return Err(format!(
                        "an acknowledged write is lost: key {} of group {} is {:?}",
                        self.name, target.groups[self.group].group, answer.value
                    ));
                }
                Err(failure) if Instant::now() >= deadline => return Err(failure.message),
                Err(failure) => {
                    target.failed(&target.key(self.group, &self.name), &failure);
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }
}

/// Reason and effect in a word or two.
fn describe(failure: &Failure) -> String {
    match failure.effect {
        Effect::None => failure.reason.word().to_owned(),
        Effect::Unknown => format!("{} (effect unknown)", failure.reason.word()),
    }
}

/// `name` followed by as much of `filler` as the value's length allows.
fn distinct(name: &str, filler: &[u8]) -> Bytes {
    let rest = filler.len().saturating_sub(name.len() + 1);
    [name.as_bytes(), b":", &filler[..rest]].concat().into()
}

/// A number below `n`: uniform, or small ones more often by a power law with exponent `zipf` (its continuous
/// form, inverted).
fn pick(random: &mut StdRng, n: usize, zipf: f64) -> usize {
    if zipf <= 0.0 {
        return random.random_range(0..n);
    }
    let u: f64 = random.random();
    let n = n as f64;
    let x = if (zipf - 1.0).abs() < 1e-9 {
        (n + 1.0).powf(u)
    } else {
        let power = 1.0 - zipf;
        (u * ((n + 1.0).powf(power) - 1.0) + 1.0).powf(power.recip())
    };
    (x as usize).clamp(1, n as usize) - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Reason;

    #[test]
    fn values_that_are_remembered_differ_and_keep_their_length() {
        let filler = [b'x'; 16];
        let (one, two) = (distinct("1.7", &filler), distinct("11.7", &filler));
        assert_eq!(one, "1.7:xxxxxxxxxxxx");
        assert_eq!(two, "11.7:xxxxxxxxxxx");
        assert_eq!(distinct("longer than that", b"xx"), "longer than that:");
    }

    #[test]
    fn an_error_says_whether_it_had_an_effect() {
        let busy = Failure::new(Reason::Busy, "");
        assert_eq!(describe(&busy), "busy");
        assert_eq!(describe(&busy.of_unknown_effect()), "busy (effect unknown)");
    }

    #[test]
    fn the_same_seed_gives_the_same_choices() {
        let choices = |seed| {
            let mut random = StdRng::seed_from_u64(seed);
            (0..100)
                .map(|_| pick(&mut random, 1000, 1.1))
                .collect::<Vec<_>>()
        };
        assert_eq!(choices(1), choices(1));
        assert_ne!(choices(1), choices(2));
    }

    #[test]
    fn zipf_prefers_small_numbers_and_stays_in_bounds() {
        let mut random = StdRng::seed_from_u64(7);
        for zipf in [0.0, 0.5, 1.0, 1.5] {
            let mut counts = [0u32; 100];
            for _ in 0..20_000 {
                counts[pick(&mut random, 100, zipf)] += 1;
            }
            let (first, last) = (
                counts[..10].iter().sum::<u32>(),
                counts[90..].iter().sum::<u32>(),
            );
            if zipf == 0.0 {
                assert!(first < 3 * last && last < 3 * first, "{counts:?}");
            } else {
                assert!(first > 2 * last, "exponent {zipf}: {counts:?}");
            }
        }
    }
}
