//! The calls and returns of answered operations in the order of time.
//!
//! They lie in one doubly linked ring through [`HEAD`], out of which an operation is lifted when it takes
//! effect. Invariant: operations are put back in the opposite order of their removal, so that each finds
//! its neighbours as it left them (Knuth's dancing links).

use super::{Call, Lagging};

/// Index of the list's head; events follow from 1.
pub(super) const HEAD: usize = 0;

/// A call or a return.
#[derive(Clone, Copy)]
pub(super) struct Event {
    /// When.
    pub(super) at: u64,
    pub(super) kind: Kind,
    previous: usize,
    next: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Head,
    /// The call of an answered operation; with the event of its return.
    Call {
        operation: usize,
        returns: usize,
    },
    /// The return of an answered operation.
    Return {
        operation: usize,
    },
    /// The end of a lagging read, which has no beginning.
    Lagging {
        read: usize,
    },
}

/// See the module.
pub(super) struct Entries {
    events: Vec<Event>,
    /// The event of each lagging read.
    lagging: Vec<usize>,
    /// Operations and lagging reads in the list.
    left: usize,
}

impl Entries {
    /// All of `answered`, which are places in `calls`, and all lagging reads. At one instant calls come
    /// first: operations that touch count as concurrent, so a coarse clock raises no false alarm.
    pub(super) fn new<I, O>(
        answered: &[usize],
        calls: &[Call<I, O>],
        lagging: &[Lagging<I, O>],
    ) -> Self {
        let mut moments: Vec<(u64, u8, usize)> = Vec::new();
        for (operation, at) in answered.iter().enumerate() {
            moments.push((calls[*at].invoked, 0, operation));
            moments.push((calls[*at].returned, 1, operation));
        }
        moments.extend(lagging.iter().enumerate().map(|(read, l)| (l.at, 2, read)));
        moments.sort_unstable();
        let ring = moments.len() + 1;
        let event = |place: usize, at, kind| Event {
            at,
            kind,
            previous: (place + ring - 1) % ring,
            next: (place + 1) % ring,
        };
        let mut events = vec![event(HEAD, 0, Kind::Head)];
        let mut begun = vec![HEAD; answered.len()];
        let mut reads = vec![HEAD; lagging.len()];
        for (place, (at, what, number)) in (1..).zip(moments) {
            let operation = number;
            let kind = match what {
                0 => {
                    begun[operation] = place;
                    let returns = HEAD;
                    Kind::Call { operation, returns }
                }
                1 => {
                    let returns = place;
                    events[begun[operation]].kind = Kind::Call { operation, returns };
                    Kind::Return { operation }
                }
                _ => {
                    reads[number] = place;
                    Kind::Lagging { read: number }
                }
            };
            events.push(event(place, at, kind));
        }
        Self {
            events,
            lagging: reads,
            left: answered.len() + lagging.len(),
        }
    }

    pub(super) fn get(&self, at: usize) -> Event {
        self.events[at]
    }

    pub(super) fn first(&self) -> usize {
        self.after(HEAD)
    }

    pub(super) fn after(&self, at: usize) -> usize {
        self.events[at].next
    }

    /// Whether everything that must have taken effect did.
    pub(super) const fn is_empty(&self) -> bool {
        self.left == 0
    }

    /// Takes out the operation of a call.
    pub(super) fn lift(&mut self, call: usize) {
        self.unlink(call);
        if let Kind::Call { returns, .. } = self.events[call].kind {
            self.unlink(returns);
        }
        self.left -= 1;
    }

    /// Puts back what was lifted last.
    pub(super) fn unlift(&mut self, call: usize) {
        if let Kind::Call { returns, .. } = self.events[call].kind {
            self.relink(returns);
        }
        self.relink(call);
        self.left += 1;
    }

    /// Takes out a lagging read.
    pub(super) fn lift_read(&mut self, read: usize) {
        self.unlink(self.lagging[read]);
        self.left -= 1;
    }

    /// Puts back the lagging read that was lifted last.
    pub(super) fn unlift_read(&mut self, read: usize) {
        self.relink(self.lagging[read]);
        self.left += 1;
    }

    fn unlink(&mut self, at: usize) {
        let Event { previous, next, .. } = self.events[at];
        self.events[previous].next = next;
        self.events[next].previous = previous;
    }

    fn relink(&mut self, at: usize) {
        let Event { previous, next, .. } = self.events[at];
        self.events[previous].next = at;
        self.events[next].previous = at;
    }
}
