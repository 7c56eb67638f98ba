//! Time that passes when a test says so.
//!
//! There are no lengths of time here but for [`Duration::MAX`], which is for ever: whoever waits
//! with a timeout waits until there is news or the test ends the wait. A test that lets no time
//! pass shows that nobody depends on a timeout: a wake-up that is lost leaves all threads waiting,
//! which the checker reports as a deadlock. A test that lets it pass beside everything else lets
//! any timeout come at any moment.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::{Condvar, Mutex};

use super::lock;

shuttle::lazy_static! {
    /// Who waits with a timeout; of one run.
    static ref TIMED: lock::Mutex<Vec<Arc<Waiter>>> = lock::Mutex::new(Vec::new());
}

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Woken {
    News,
    TimeOut,
}

/// One wait of one thread.
#[derive(Debug, Default)]
pub(super) struct Waiter {
    woken: Mutex<Option<Woken>>,
    changed: Condvar,
}

impl Waiter {
    /// The first reason counts.
    pub(super) fn wake(&self, why: Woken) {
        let mut woken = self.woken.lock().unwrap_or_else(PoisonError::into_inner);
        woken.get_or_insert(why);
        drop(woken);
        self.changed.notify_one();
    }

    pub(super) fn wait(&self) -> Woken {
        let mut woken = self.woken.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(why) = *woken {
                return why;
            }
            let waited = self.changed.wait(woken);
            woken = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Waits until `waiter`, who is known where news come from, is woken, or time passes.
pub(super) fn wait(waiter: &Arc<Waiter>, length: Duration) -> Woken {
    if length == Duration::MAX {
        return waiter.wait();
    }
    TIMED.lock().push(Arc::clone(waiter));
    let why = waiter.wait();
    TIMED.lock().retain(|timed| !Arc::ptr_eq(timed, waiter));
    why
}

/// As [`std::thread::sleep`]: until time passes.
pub(crate) fn sleep(length: Duration) {
    wait(&Arc::default(), length);
}

/// The timeouts of all who wait now come.
pub fn pass() {
    let timed = std::mem::take(&mut *TIMED.lock());
    for waiter in timed {
        waiter.wake(Woken::TimeOut);
    }
}

/// The timeout of somebody who waits now comes; the schedule says whose.
pub fn pass_for_one() {
    let mut timed = TIMED.lock();
    if timed.is_empty() {
        return;
    }
    let at = thread_rng().gen_range(0..timed.len());
    let waiter = timed.swap_remove(at);
    drop(timed);
    waiter.wake(Woken::TimeOut);
}
