//! Snapshots: each on a connection of its own, part by part, with an end at the sender and one at
//! the receiver that live and die independently.
//!
//! Invariant: a transfer is forgotten when neither end is left. Until then something is scheduled
//! that ends it, or waits in `stalled` for a way to open again beside alarms that end it.

use polyraft_core::SnapshotOutcome;
use polyraft_multiraft::Responder;
use polyraft_multiraft::env::{SnapshotHeader, SnapshotReceiver, SnapshotSource};

use super::faults::strikes;
use super::port::{Parcel, as_message};
use super::{Event, Network};
use crate::observe::Observation;
use crate::sometimes;
use crate::time::{MILLISECOND, Nanos, SECOND};

/// TCP repeats what was not acknowledged after so long at most, once it can be.
const RETRANSMIT_MAX: Nanos = 500 * MILLISECOND;

/// See the module.
pub(super) struct Transfer {
    from: usize,
    to: usize,
    /// Until it has arrived.
    header: Option<SnapshotHeader>,
    /// Until it was read to its end, or the sender gave up.
    source: Option<Box<dyn SnapshotSource>>,
    /// The sender's end, until it is answered.
    done: Option<Responder<SnapshotOutcome>>,
    /// The receiver's end, while it takes in.
    receiver: Option<Box<dyn SnapshotReceiver>>,
    chunk_bytes: usize,
    /// What came while nothing gets through.
    stalled: Option<Step>,
    /// A part is lost, and only deadlines end it.
    stuck: bool,
    /// The receiver has it.
    taken: bool,
    /// Grows whenever an end begins or ceases to hear nothing.
    doubt: u32,
}

/// What happens to a snapshot next.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// The header arrives.
    Begin,
    /// A chunk arrives.
    Chunk,
    /// The end arrives.
    End,
    /// The receiver's answer arrives.
    Answer(SnapshotOutcome),
    /// The sender gives up, if nothing has changed since this was set.
    SenderGivesUp { doubt: u32 },
    /// The receiver does.
    ReceiverGivesUp { doubt: u32 },
}

impl Transfer {
    const fn is_between(&self, one: usize, other: usize) -> bool {
        let (from, to) = (self.from, self.to);
        (from == one && to == other) || (from == other && to == one)
    }
}

impl Network {
    /// A host has handed over a snapshot.
    pub(super) fn begin(&mut self, from: usize, to: Option<usize>, parcel: Parcel) {
        let Parcel {
            header,
            source,
            done,
        } = parcel;
        let chunk_bytes = self
            .rng
            .magnitude(self.faults.chunk_min, self.faults.chunk_max);
        let id = self.next_transfer;
        self.next_transfer += 1;
        self.transfers.insert(
            id,
            Transfer {
                from,
                to: to.unwrap_or(from),
                header: Some(header),
                source: Some(source),
                done: Some(done),
                receiver: None,
                chunk_bytes: usize::try_from(chunk_bytes).unwrap_or(usize::MAX),
                stalled: None,
                stuck: false,
                taken: false,
                doubt: 0,
            },
        );
        let Some(to) = to else {
            return self.go_on(id, 0, Step::SenderGivesUp { doubt: 0 });
        };
        // Three ways: the connection and the header.
        let delay = self.delay() + self.delay() + self.delay();
        self.go_on(id, delay, Step::Begin);
        if !self.is_open(from, to) {
            self.sender_waits(id);
        }
    }

    fn go_on(&mut self, transfer: u64, delay: Nanos, step: Step) {
        self.later(delay, Event::Snapshot { transfer, step });
    }

    /// Lets a step happen. Returns the store that it happens to.
    pub(super) fn step(&mut self, id: u64, step: Step) -> Option<usize> {
        let Transfer {
            from, to, doubt, ..
        } = *self.transfers.get(&id)?;
        match step {
            Step::SenderGivesUp { doubt: set } => {
                return (set == doubt).then(|| self.answer(id, SnapshotOutcome::Failed))?;
            }
            Step::ReceiverGivesUp { doubt: set } => {
                return (set == doubt).then(|| self.drop_receiver(id))?;
            }
            // A connection takes both ways.
            Step::Begin if !self.is_open(from, to) => return self.stall(id, step),
            Step::Chunk | Step::End if self.is_cut(from, to) => return self.stall(id, step),
            Step::Answer(_) if self.is_cut(to, from) => return self.stall(id, step),
            Step::Answer(outcome) => return self.answer(id, outcome),
            Step::Begin | Step::Chunk | Step::End => {}
        }
        if strikes(self.faults.stuck, &mut self.rng) {
            return self.stick(id);
        }
        if strikes(self.faults.break_off, &mut self.rng) {
            return self.break_off(id);
        }
        match step {
            Step::Begin => self.header(id),
            Step::Chunk => self.chunk(id),
            _ => self.finish(id),
        }
    }

    fn stall(&mut self, id: u64, step: Step) -> Option<usize> {
        self.transfers.get_mut(&id)?.stalled = Some(step);
        None
    }

    /// The part is lost, and nobody hears of it: deadlines end it.
    fn stick(&mut self, id: u64) -> Option<usize> {
        sometimes!(true, "network: a snapshot came to a standstill");
        let transfer = self.transfers.get_mut(&id)?;
        transfer.stuck = true;
        let (doubt, begun) = (transfer.doubt, transfer.receiver.is_some());
        let timeout = self.faults.snapshot_timeout;
        if begun {
            self.go_on(id, timeout, Step::ReceiverGivesUp { doubt });
        }
        // The receiver's answer, or the sender's own deadline.
        let delay = self.delay();
        let step = Step::SenderGivesUp { doubt };
        self.go_on(id, timeout + delay, step);
        None
    }

    /// The connection breaks; each end hears of it.
    fn break_off(&mut self, id: u64) -> Option<usize> {
        let delay = self.delay();
        let reached = self.drop_receiver(id);
        sometimes!(reached.is_some(), "network: a snapshot broke in the middle");
        if let Some(Transfer { doubt, .. }) = self.transfers.get(&id) {
            let doubt = *doubt;
            self.go_on(id, delay, Step::SenderGivesUp { doubt });
        }
        reached
    }

    /// What the receiver says goes back to the sender.
    fn say(&mut self, id: u64, outcome: SnapshotOutcome) {
        let delay = self.delay();
        self.go_on(id, delay, Step::Answer(outcome));
    }

    fn header(&mut self, id: u64) -> Option<usize> {
        let taken_in = |transfer: &&Transfer| transfer.receiver.is_some();
        let to = self.transfers.get(&id)?.to;
        let to_it = self.transfers.values().filter(|other| other.to == to);
        let full = to_it.filter(taken_in).count() >= self.faults.snapshots_in_max.max(1);
        let transfer = self.transfers.get_mut(&id)?;
        let header = transfer.header.take()?;
        let from = transfer.from;
        let Some(inbound) = self.members[to].inbound.as_ref().filter(|_| !full) else {
            sometimes!(full, "network: too many snapshots at once");
            self.say(id, SnapshotOutcome::Failed);
            return None;
        };
        let (sender, store) = (self.members[from].store, self.members[to].store);
        let message = as_message(&header);
        self.observer.see(&Observation::Delivered {
            from: sender,
            to: store,
            message: &message,
        });
        match inbound.begin_snapshot(sender, header) {
            Ok(receiver) => {
                transfer.receiver = Some(receiver);
                let delay = self.delay();
                self.go_on(id, delay, Step::Chunk);
            }
            Err(_) => {
                sometimes!(true, "network: a snapshot was refused");
                self.say(id, SnapshotOutcome::Failed);
            }
        }
        Some(to)
    }

    fn chunk(&mut self, id: u64) -> Option<usize> {
        let bad = strikes(self.faults.bad_chunk, &mut self.rng);
        let transfer = self.transfers.get_mut(&id)?;
        let receiver = transfer.receiver.as_mut()?;
        let source = transfer.source.as_mut()?;
        let (from, to) = (transfer.from, transfer.to);
        let Ok(chunk) = source.next_chunk(transfer.chunk_bytes) else {
            sometimes!(true, "network: a snapshot could not be read");
            return self.break_off(id);
        };
        let Some(data) = chunk else {
            transfer.source = None;
            let delay = self.delay();
            self.go_on(id, delay, Step::End);
            return None;
        };
        let bytes = data.len() as u64;
        // Nothing to send: the sender reads on.
        let taken = bytes == 0 || !bad && receiver.write(data).is_ok();
        if !taken {
            sometimes!(bad, "network: a chunk of a snapshot was bad");
            self.say(id, SnapshotOutcome::Failed);
            return self.drop_receiver(id);
        }
        self.stats.snapshot_bytes += bytes;
        let delay = self.delay() + self.pace(from, bytes);
        self.go_on(id, delay, Step::Chunk);
        Some(to)
    }

    /// How long a store has to wait after it has sent so many bytes of snapshots.
    fn pace(&mut self, from: usize, bytes: u64) -> Nanos {
        let per_second = self.faults.snapshot_bytes_per_second;
        if per_second == 0 {
            return 0;
        }
        let takes = bytes.saturating_mul(SECOND) / per_second;
        let free_at = &mut self.members[from].pace_free_at;
        *free_at = (*free_at).max(self.now).saturating_add(takes);
        *free_at - self.now
    }

    fn finish(&mut self, id: u64) -> Option<usize> {
        let bad = strikes(self.faults.bad_chunk, &mut self.rng);
        let transfer = self.transfers.get_mut(&id)?;
        let receiver = transfer.receiver.take()?;
        let to = transfer.to;
        let taken = !bad && receiver.finish().is_ok();
        transfer.taken = taken;
        let outcome = match taken {
            true => SnapshotOutcome::Sent,
            false => SnapshotOutcome::Failed,
        };
        sometimes!(bad, "network: the end of a snapshot was bad");
        self.say(id, outcome);
        self.forget_if_over(id);
        Some(to)
    }

    /// The sender's end is over.
    fn answer(&mut self, id: u64, outcome: SnapshotOutcome) -> Option<usize> {
        let transfer = self.transfers.get_mut(&id)?;
        let done = transfer.done.take()?;
        let from = transfer.from;
        transfer.source = None;
        let unheard = transfer.taken && outcome == SnapshotOutcome::Failed;
        sometimes!(
            unheard,
            "network: a snapshot arrived and its sender cannot know"
        );
        match outcome {
            SnapshotOutcome::Sent => self.stats.snapshots_sent += 1,
            SnapshotOutcome::Failed => self.stats.snapshots_failed += 1,
        }
        done.answer(outcome);
        self.forget_if_over(id);
        Some(from)
    }

    /// The receiver's end is over, unfinished.
    fn drop_receiver(&mut self, id: u64) -> Option<usize> {
        let transfer = self.transfers.get_mut(&id)?;
        let receiver = transfer.receiver.take()?;
        let to = transfer.to;
        drop(receiver);
        self.forget_if_over(id);
        Some(to)
    }

    fn forget_if_over(&mut self, id: u64) {
        let over = |t: &Transfer| t.done.is_none() && t.receiver.is_none();
        if self.transfers.get(&id).is_some_and(over) {
            self.transfers.remove(&id);
        }
    }
}

/// What happens to the connections of snapshots.
impl Network {
    fn between(&self, one: usize, other: usize) -> Vec<u64> {
        let all = self.transfers.iter();
        let between = all.filter(|(_, transfer)| transfer.is_between(one, other));
        between.map(|(id, _)| *id).collect()
    }

    /// A store is gone: snapshots between it and another one.
    pub(super) fn snapshots_end(&mut self, slot: usize, other: usize, resets: bool) {
        for id in self.between(slot, other) {
            let heard = self.end_heard(slot, other, resets, false);
            let Some(transfer) = self.transfers.get_mut(&id) else {
                continue;
            };
            let doubt = transfer.doubt;
            if transfer.from == slot {
                // Whoever waited for the answer is gone.
                transfer.source = None;
                drop(transfer.done.take());
                let begun = transfer.receiver.is_some();
                sometimes!(begun, "network: a sender was gone within a snapshot");
                self.go_on(id, heard, Step::ReceiverGivesUp { doubt });
                self.forget_if_over(id);
            } else if transfer.header.is_none() {
                let begun = transfer.receiver.take().is_some();
                sometimes!(begun, "network: a receiver was gone within a snapshot");
                if matches!(transfer.stalled, Some(Step::Answer(_))) {
                    transfer.stalled = None;
                }
                self.go_on(id, heard, Step::SenderGivesUp { doubt });
                self.forget_if_over(id);
            }
        }
    }

    /// A way was cut: both ends will notice, as keepalives go both ways.
    pub(super) fn snapshots_doubt(&mut self, from: usize, to: usize) {
        if self.is_cut(to, from) {
            return;
        }
        for id in self.between(from, to) {
            if let Some(transfer) = self.transfers.get_mut(&id) {
                transfer.doubt += 1;
            }
            self.sender_waits(id);
            self.receiver_waits(id);
        }
    }

    fn sender_waits(&mut self, id: u64) {
        if let Some(transfer) = self.transfers.get(&id) {
            let doubt = transfer.doubt;
            let heard = self.faults.silence(false, &mut self.rng);
            self.go_on(id, heard, Step::SenderGivesUp { doubt });
        }
    }

    fn receiver_waits(&mut self, id: u64) {
        if let Some(transfer) = self.transfers.get(&id) {
            let doubt = transfer.doubt;
            let heard = self.faults.silence(false, &mut self.rng);
            self.go_on(id, heard, Step::ReceiverGivesUp { doubt });
        }
    }

    /// A way was opened. Where both ends are left it goes on; else the one that is left is told.
    pub(super) fn snapshots_mend(&mut self, from: usize, to: usize) {
        if !self.is_open(from, to) {
            return;
        }
        for id in self.between(from, to) {
            let delay = self.rng.between(0, RETRANSMIT_MAX);
            let Some(transfer) = self.transfers.get_mut(&id) else {
                continue;
            };
            transfer.doubt += 1;
            let doubt = transfer.doubt;
            let (sender, receiver) = (transfer.done.is_some(), transfer.receiver.is_some());
            match transfer.stalled.take() {
                // What was said, or is not begun, needs no receiver that waits.
                Some(step @ (Step::Answer(_) | Step::Begin)) => self.go_on(id, delay, step),
                Some(step) if sender && receiver => {
                    sometimes!(true, "network: a snapshot went on after a cut");
                    self.go_on(id, delay, step);
                }
                _ if sender && receiver && transfer.stuck => {
                    self.stick(id);
                }
                _ if sender && receiver => {}
                _ => {
                    self.go_on(id, delay, Step::SenderGivesUp { doubt });
                    self.go_on(id, delay, Step::ReceiverGivesUp { doubt });
                }
            }
        }
    }
}
