//! As much of crossbeam's channels as is used here: many senders, one receiver, a bound or none, a
//! choice between two.
//!
//! What is kept of the original: a value is either in the channel or given back; when the receiver
//! goes, what is still in the channel is dropped then; when the last sender goes, what is in the
//! channel can still be received; who waits is woken by whatever could end the wait.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use shuttle::rand::{Rng, thread_rng};

use super::lock::Mutex;
use super::time::{self, Waiter, Woken};

struct Channel<T> {
    state: Mutex<State<T>>,
}

struct State<T> {
    queue: VecDeque<T>,
    room: usize,
    senders: usize,
    receiver: bool,
    /// Whoever waits for news of this channel; each once, forgotten when it is woken.
    waiting: Vec<Arc<Waiter>>,
}

/// Nobody will receive it.
#[derive(Debug)]
pub(crate) struct SendError<T>(pub(crate) T);

/// Nothing is there, or nothing will ever be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecvError;

/// Why nothing was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RecvTimeoutError {
    Timeout,
    Disconnected,
}

/// The end into which values go.
pub(crate) struct Sender<T>(Arc<Channel<T>>);

/// The end out of which they come.
pub(crate) struct Receiver<T>(Arc<Channel<T>>);

pub(crate) fn unbounded<T>() -> (Sender<T>, Receiver<T>) {
    bounded(usize::MAX)
}

/// With no room at all nothing can be sent, as little as nobody does: such a channel tells only
/// that its sender is gone.
pub(crate) fn bounded<T>(room: usize) -> (Sender<T>, Receiver<T>) {
    let state = State {
        queue: VecDeque::new(),
        room,
        senders: 1,
        receiver: true,
        waiting: Vec::new(),
    };
    let channel = Arc::new(Channel {
        state: Mutex::new(state),
    });
    (Sender(Arc::clone(&channel)), Receiver(channel))
}

impl<T> Channel<T> {
    /// Changes the state, and tells all who wait.
    fn change<R>(&self, change: impl FnOnce(&mut State<T>) -> R) -> R {
        let mut state = self.state.lock();
        let result = change(&mut state);
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        for waiter in waiting {
            waiter.wake(Woken::News);
        }
        result
    }
}

impl<T> Sender<T> {
    /// Waits for room if there is none.
    pub(crate) fn send(&self, value: T) -> Result<(), SendError<T>> {
        let mut value = value;
        loop {
            value = match self.0.change(|state| state.push(value)) {
                Pushed::In => return Ok(()),
                Pushed::Gone(value) => return Err(SendError(value)),
                Pushed::Full(value) => value,
            };
            let waiter = Arc::new(Waiter::default());
            let mut state = self.0.state.lock();
            assert!(state.room > 0, "nobody sends into a channel without room");
            if state.receiver && state.queue.len() >= state.room {
                state.waiting.push(Arc::clone(&waiter));
                drop(state);
                waiter.wait();
            }
        }
    }

    pub(crate) fn try_send(&self, value: T) -> Result<(), SendError<T>> {
        match self.0.change(|state| state.push(value)) {
            Pushed::In => Ok(()),
            Pushed::Gone(value) | Pushed::Full(value) => Err(SendError(value)),
        }
    }
}

enum Pushed<T> {
    In,
    Gone(T),
    Full(T),
}

impl<T> State<T> {
    fn push(&mut self, value: T) -> Pushed<T> {
        if !self.receiver {
            return Pushed::Gone(value);
        }
        if self.queue.len() >= self.room {
            return Pushed::Full(value);
        }
        self.queue.push_back(value);
        Pushed::In
    }

    fn is_ready(&self) -> bool {
        !self.queue.is_empty() || self.senders == 0
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.state.lock().senders += 1;
        Self(Arc::clone(&self.0))
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.change(|state| state.senders -= 1);
    }
}

impl<T> Receiver<T> {
    /// The next value, or that there will be none; nothing: not yet.
    fn next(&self) -> Option<Result<T, RecvError>> {
        let mut state = self.0.state.lock();
        let value = state.queue.pop_front();
        if value.is_none() {
            return (state.senders == 0).then_some(Err(RecvError));
        }
        // Somebody may wait for the room.
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        for waiter in waiting {
            waiter.wake(Woken::News);
        }
        value.map(Ok)
    }

    /// From now on `waiter` is woken by news; false: there are some.
    fn watch(&self, waiter: &Arc<Waiter>) -> bool {
        let mut state = self.0.state.lock();
        let ready = state.is_ready();
        if !ready {
            state.waiting.push(Arc::clone(waiter));
        }
        !ready
    }

    fn forget(&self, waiter: &Arc<Waiter>) {
        let mut state = self.0.state.lock();
        state.waiting.retain(|other| !Arc::ptr_eq(other, waiter));
    }

    pub(crate) fn try_recv(&self) -> Result<T, RecvError> {
        self.next().unwrap_or(Err(RecvError))
    }

    pub(crate) fn try_iter(&self) -> impl Iterator<Item = T> + '_ {
        std::iter::from_fn(|| self.try_recv().ok())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.state.lock().queue.is_empty()
    }

    pub(crate) fn recv_timeout(&self, length: Duration) -> Result<T, RecvTimeoutError> {
        loop {
            if let Some(result) = self.next() {
                return result.map_err(|RecvError| RecvTimeoutError::Disconnected);
            }
            let waiter = Arc::default();
            if !self.watch(&waiter) {
                continue;
            }
            let woken = time::wait(&waiter, length);
            self.forget(&waiter);
            if woken == Woken::TimeOut {
                return Err(RecvTimeoutError::Timeout);
            }
        }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let left = self.0.change(|state| {
            state.receiver = false;
            std::mem::take(&mut state.queue)
        });
        drop(left);
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").finish_non_exhaustive()
    }
}

/// What came of a choice between two channels.
pub(crate) enum Selected<A, B> {
    First(Result<A, RecvError>),
    Second(Result<B, RecvError>),
    Neither,
}

/// The next value of either; if both have one, the schedule says whose.
pub(crate) fn select_two<A, B>(
    first: &Receiver<A>,
    second: &Receiver<B>,
    length: Duration,
) -> Selected<A, B> {
    loop {
        let swapped = thread_rng().gen_range(0..2) == 1;
        for second_now in [swapped, !swapped] {
            if second_now {
                if let Some(result) = second.next() {
                    return Selected::Second(result);
                }
            } else if let Some(result) = first.next() {
                return Selected::First(result);
            }
        }
        let waiter = Arc::default();
        let woken = if first.watch(&waiter) && second.watch(&waiter) {
            time::wait(&waiter, length)
        } else {
            Woken::News
        };
        first.forget(&waiter);
        second.forget(&waiter);
        if woken == Woken::TimeOut {
            return Selected::Neither;
        }
    }
}

/// The form in which crossbeam's `select!` is used here.
macro_rules! select {
    (
        recv($first:expr) -> $one:ident => $on_first:expr,
        recv($second:expr) -> $two:ident => $on_second:expr,
        default($length:expr) => $otherwise:block
    ) => {
        match $crate::sync::select_two(&$first, &$second, $length) {
            $crate::sync::Selected::First($one) => $on_first,
            $crate::sync::Selected::Second($two) => $on_second,
            $crate::sync::Selected::Neither => $otherwise,
        }
    };
}
pub(crate) use select;
