//! A bank with a mistake that only shows under misfortune, and the world that finds it.
//!
//! To be fast, it keeps balances in memory beside the transaction. All is well through any number of
//! transfers and restarts, until a snapshot or a repeated turn changes the keys behind its back:
//!
//! ```sh
//! cargo run --profile sim -p polyraft-sim --example bank            # the mistake is caught
//! cargo run --profile sim -p polyraft-sim --example bank -- sound   # without it nothing is wrong
//! ```

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use polyraft_multiraft::env::Command;
use polyraft_multiraft::{GroupId, StoreId};
use polyraft_sim::disk::SimDisk;
use polyraft_sim::kit::{self, GroupView, Readable};
use polyraft_sim::observe::Violation;
use polyraft_sim::plan::Plan;
use polyraft_sim::rng::Rng;
use polyraft_sim::subject::{Operation, Served, Subject};
use polyraft_store::disk::DiskError;
use polyraft_store::{Application, GroupTxn};

const ACCOUNTS: u8 = 4;
/// Of each account, at first. All of them fit into one byte.
const BALANCE: u8 = 60;

/// The application: each group is a bank of a few accounts, whose keys are their numbers.
struct Bank {
    cache: Option<Mutex<BTreeMap<(GroupId, u8), u8>>>,
}

impl Bank {
    fn balance(&self, txn: &GroupTxn<'_>, account: u8) -> Result<u8, DiskError> {
        let place = (txn.descriptor().group, account);
        let cached = self.cache.as_ref().map(|cache| cache.lock());
        match cached.and_then(|cache| cache.get(&place).copied()) {
            Some(balance) => Ok(balance),
            None => Ok(txn.get(&[account])?.map_or(BALANCE, |value| value[0])),
        }
    }

    fn set(&self, txn: &mut GroupTxn<'_>, account: u8, balance: u8) -> Result<(), DiskError> {
        if let Some(cache) = &self.cache {
            // The mistake: what is not in the transaction does not belong to the state.
            let place = (txn.descriptor().group, account);
            cache.lock().insert(place, balance);
        }
        txn.put(&[account], Bytes::copy_from_slice(&[balance]))
    }
}

impl Application for Bank {
    /// A transfer, answered with what remains; nothing if there is too little.
    fn apply(&self, txn: &mut GroupTxn<'_>, command: &Command) -> Result<Bytes, DiskError> {
        let [from, to, amount] = command.data[..] else {
            return Ok(Bytes::new());
        };
        let Some(rest) = self.balance(txn, from)?.checked_sub(amount) else {
            return Ok(Bytes::new());
        };
        self.set(txn, from, rest)?;
        let received = self.balance(txn, to)?.saturating_add(amount);
        self.set(txn, to, received)?;
        Ok(Bytes::copy_from_slice(&[rest]))
    }
}

impl Readable for Bank {
    /// All balances.
    fn query(view: &GroupView<'_>, _query: &Bytes) -> Result<Bytes, String> {
        let balance = |account| Ok(view.get(&[account])?.map_or(BALANCE, |value| value[0]));
        (0..ACCOUNTS).map(balance).collect()
    }
}

/// What the world has to know of it.
struct Banks {
    cached: bool,
}

impl Subject for Banks {
    fn open(&self, _store: StoreId, disk: &SimDisk) -> Arc<dyn Served> {
        let cache = self.cached.then(Mutex::default);
        kit::serve(Bank { cache }, disk)
    }

    fn operation(&self, rng: &mut Rng, _group: GroupId, _client: u64, _number: u64) -> Operation {
        if rng.percent(30) {
            return Operation::query("bank", "balances");
        }
        let (from, offset) = (rng.below(ACCOUNTS.into()), rng.between(1, 3));
        let to = (from + offset) % u64::from(ACCOUNTS);
        Operation::command(
            "bank",
            [from, to, rng.between(1, 30)].map(|n| n as u8).to_vec(),
        )
    }

    fn step(&self, state: &Bytes, input: &Bytes, output: Option<&Bytes>) -> Option<Bytes> {
        let first = || vec![BALANCE; ACCOUNTS.into()];
        let mut balances = if state.is_empty() {
            first()
        } else {
            state.to_vec()
        };
        let mut answer = Bytes::new();
        if input == "balances" {
            answer = Bytes::from(balances.clone());
        } else if let [from, to, amount] = input[..]
            && let Some(rest) = balances[usize::from(from)].checked_sub(amount)
        {
            balances[usize::from(from)] = rest;
            balances[usize::from(to)] += amount;
            answer = vec![rest].into();
        }
        output
            .is_none_or(|output| *output == answer)
            .then(|| balances.into())
    }
}

/// The first plan whose world goes wrong, and how.
fn find(cached: bool, mut plans: impl Iterator<Item = Plan>) -> Option<(Plan, Violation)> {
    let subject: Arc<dyn Subject> = Arc::new(Banks { cached });
    plans
        .find_map(|plan| Some((plan.run(&subject).violation?, plan)))
        .map(|(v, plan)| (plan, v))
}

#[expect(clippy::print_stdout, reason = "it is for people")]
fn main() -> ExitCode {
    let cached = std::env::args().nth(1).as_deref() != Some("sound");
    let found = find(cached, (1..=30).map(Plan::drawn));
    match &found {
        Some((plan, Violation { checker, what, .. })) => println!("{plan}\n{checker}: {what}"),
        None => println!("30 worlds, and nothing is wrong"),
    }
    ExitCode::from(u8::from(found.is_some()))
}

#[cfg(test)]
mod tests {
    use polyraft_sim::plan::Fault;
    use polyraft_sim::time::SECOND;

    use super::*;

    /// Small worlds, quick also without optimisation.
    fn plans() -> impl Iterator<Item = Plan> {
        let faults = [Fault::PowerCut, Fault::Truncation, Fault::DiskFull];
        (1..=6).map(move |seed| Plan {
            groups: 2,
            clients: 3,
            chaos: 10 * SECOND,
            pace: SECOND / 2,
            faults: faults.into(),
            ..Plan::drawn(seed)
        })
    }

    #[test]
    fn the_mistake_is_caught_and_nothing_else_is() {
        let (_, violation) = find(true, plans()).expect("a mistake that nobody sees");
        let seen = ["agreement-at-the-end", "linearizability"];
        assert!(seen.contains(&violation.checker), "{violation:?}");
        assert_eq!(find(false, plans()), None);
    }
}
