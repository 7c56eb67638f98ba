//! What happens on lanes: frames, connections that come and go, and what breaks them.

use std::collections::VecDeque;

use polyraft_multiraft::GroupId;
use polyraft_multiraft::env::{GroupMessage, Lane, Lost};

use super::faults::strikes;
use super::link::{Frame, Link, Phase, as_over_a_wire};
use super::{Event, Late, Network, News, NoRoom, lane_between};
use crate::sometimes;
use crate::time::{MILLISECOND, Nanos};

/// TCP repeats what was not acknowledged after so long at most, once it can be.
const RETRANSMIT_MAX: Nanos = 500 * MILLISECOND;
/// Frames that fit into a window at most.
const WINDOW_MAX: u64 = 1000;

/// Both lanes from one store to another.
const fn lanes(from: usize, to: usize) -> [usize; 2] {
    [
        lane_between(from, to, Lane::Control),
        lane_between(from, to, Lane::Append),
    ]
}

const fn is_pinged(link: &Link) -> bool {
    matches!(link.lane, Lane::Control)
}

impl Network {
    /// A host has sent something.
    pub(super) fn send(&mut self, at: usize, messages: Vec<GroupMessage>) {
        let faults = &self.faults;
        let link = &mut self.links[at];
        let count = messages.len();
        match link.phase {
            Phase::Down => self.stats.nowhere += count as u64,
            Phase::Broken => self.stats.lost += count as u64,
            _ if count <= faults.waiting_max
                && link.is_free(count, faults.frame_max, faults.in_flight_max) =>
            {
                self.launch(at, messages);
            }
            _ => {
                let (groups, count) = link.push(messages, faults.waiting_max);
                if count > 0 {
                    self.stats.no_room += count as u64;
                    self.report_no_room(at, groups);
                }
                self.pump(at);
            }
        }
    }

    fn report_no_room(&mut self, link: usize, groups: Vec<GroupId>) {
        sometimes!(true, "network: no room on a lane");
        let incarnation = self.members[self.links[link].from].incarnation;
        let no_room = NoRoom {
            link,
            incarnation,
            groups,
        };
        self.later(0, Event::NoRoom(Box::new(no_room)));
    }

    /// What waits travels as far as there is room.
    fn pump(&mut self, at: usize) {
        loop {
            let link = &mut self.links[at];
            if link.waiting.is_empty() || !link.has_room(self.faults.in_flight_max) {
                return;
            }
            let messages = link.take(self.faults.frame_max);
            self.launch(at, messages);
        }
    }

    /// A frame sets out, if the faults leave something of it on the lane.
    fn launch(&mut self, at: usize, mut messages: Vec<GroupMessage>) {
        as_over_a_wire(&mut messages);
        if self.faults.loss > 0 {
            let (loss, rng) = (self.faults.loss, &mut self.rng);
            let before = messages.len();
            messages.retain(|_| !rng.chance(loss));
            self.stats.lost += (before - messages.len()) as u64;
            if messages.is_empty() {
                return;
            }
        }
        if strikes(self.faults.duplication, &mut self.rng) {
            self.double(at, &messages);
        }
        if strikes(self.faults.stale, &mut self.rng) {
            self.stats.doubled += messages.len() as u64;
            let delay = self.rng.between(0, self.faults.stale_max);
            self.set_out_late(at, messages.clone(), delay);
        }
        let delay = self.delay();
        if strikes(self.faults.reorder, &mut self.rng) {
            if messages.len() == 1 || self.rng.percent(50) {
                let delay = delay + self.rng.between(0, self.faults.late_max);
                return self.set_out_late(at, messages, delay);
            }
            self.shuffle(&mut messages);
        }
        let link = &mut self.links[at];
        let due = (self.now + delay).max(link.last_due);
        link.last_due = due;
        link.in_flight.push_back(Frame { due, messages });
        let epoch = link.epoch;
        self.at(due, Event::Frame { link: at, epoch });
    }

    /// Some messages of a frame will arrive twice.
    fn double(&mut self, at: usize, messages: &[GroupMessage]) {
        let first = self.index(messages.len());
        let count = 1 + self.index(messages.len() - first);
        let again = messages[first..first + count].to_vec();
        self.stats.doubled += again.len() as u64;
        let delay = self.delay() + self.rng.between(0, self.faults.late_max);
        self.set_out_late(at, again, delay);
    }

    fn shuffle(&mut self, messages: &mut [GroupMessage]) {
        for last in (1..messages.len()).rev() {
            let other = self.index(last + 1);
            messages.swap(last, other);
        }
    }

    /// A number below a length, which must not be 0.
    fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.rng.below(length as u64)).unwrap_or(0)
    }

    /// Messages that are on no lane any more.
    fn set_out_late(&mut self, link: usize, messages: Vec<GroupMessage>, delay: Nanos) {
        let late = self.of_link(link, messages);
        self.later(delay, Event::Late(late));
    }

    fn of_link(&self, link: usize, messages: Vec<GroupMessage>) -> Box<Late> {
        let Link { from, epoch, .. } = self.links[link];
        let incarnation = self.members[from].incarnation;
        Box::new(Late {
            link,
            epoch,
            incarnation,
            messages,
        })
    }

    /// The next frame of a lane is due.
    pub(super) fn frame(&mut self, at: usize, epoch: u32) -> Option<usize> {
        let link = &mut self.links[at];
        if link.epoch != epoch {
            return None;
        }
        let (from, to) = (link.from, link.to);
        if self.is_cut(from, to) || self.links[at].unacknowledged == Some(0) {
            self.links[at].stalled += 1;
            return None;
        }
        let link = &mut self.links[at];
        let Frame { mut messages, .. } = link.in_flight.pop_front()?;
        if let Some(window) = &mut link.unacknowledged {
            *window -= 1;
            sometimes!(true, "network: a message arrived while nothing came back");
        }
        if strikes(self.faults.reset, &mut self.rng) {
            let arrives = self.index(messages.len());
            self.stats.lost += (messages.len() - arrives) as u64;
            messages.truncate(arrives);
            self.stats.resets += 1;
            sometimes!(arrives > 0, "network: a connection was reset in a batch");
            let heard = self.delay();
            self.break_link(at, heard);
        } else {
            self.pump(at);
        }
        if messages.is_empty() {
            return None;
        }
        self.deliver(from, to, messages)
    }

    pub(super) fn late(&mut self, late: Late) -> Option<usize> {
        let Link {
            from, to, epoch, ..
        } = self.links[late.link];
        if self.is_cut(from, to) {
            self.stats.lost += late.messages.len() as u64;
            return None;
        }
        let reached = self.deliver(from, to, late.messages)?;
        let earlier = self.members[from].incarnation > late.incarnation;
        sometimes!(earlier, "network: a message of an earlier incarnation");
        let gone = epoch != late.epoch;
        sometimes!(gone, "network: a message of a connection long gone");
        Some(reached)
    }

    pub(super) fn no_room(&self, no_room: NoRoom) -> Option<usize> {
        let Link { from, to, .. } = self.links[no_room.link];
        if self.members[from].incarnation != no_room.incarnation {
            return None;
        }
        self.tell(from, to, News::Lost(Lost::Of(no_room.groups)))
    }
}

/// Connections.
impl Network {
    /// A store has started: lanes to and from another one.
    pub(super) fn lanes_begin(&mut self, slot: usize, other: usize) {
        for at in lanes(slot, other).into_iter().chain(lanes(other, slot)) {
            let Link {
                from, phase, epoch, ..
            } = self.links[at];
            match phase {
                // It has nothing to wait for; others are in the middle of a pause.
                Phase::Down if from == slot => self.connect(at, 0),
                Phase::Down => {
                    let pause = self.rng.between(0, self.faults.backoff_max);
                    self.connect(at, pause);
                }
                // Whoever did not notice that it was gone is told now, at the next ping.
                Phase::Broken => {
                    sometimes!(true, "network: a store came back unnoticed");
                    let delay = self.delay() + self.rng.between(0, RETRANSMIT_MAX);
                    self.later(delay, Event::Notice { link: at, epoch });
                }
                Phase::Connecting | Phase::Up => {}
            }
        }
    }

    /// A store is gone: lanes to and from another one.
    pub(super) fn lanes_end(&mut self, slot: usize, other: usize, resets: bool) {
        for at in lanes(slot, other) {
            // What it had given to the network may arrive, up to some point.
            let under_way = self.close(at, Phase::Down);
            let mut arrives = match self.is_cut(slot, other) {
                true => 0,
                false => self.rng.below(under_way.len() as u64 + 1),
            };
            let mut due = 0;
            for frame in under_way {
                if arrives > 0 {
                    arrives -= 1;
                    // Equal times would let the queue choose their order.
                    due = frame.due.max(due + 1);
                    let late = self.of_link(at, frame.messages);
                    self.at(due, Event::Late(late));
                } else {
                    self.lose(at, frame);
                }
            }
        }
        for at in lanes(other, slot) {
            if self.links[at].phase == Phase::Up {
                let pinged = is_pinged(&self.links[at]);
                let heard = self.end_heard(slot, other, resets, pinged);
                self.break_link(at, heard);
            }
        }
    }

    /// A way was cut: ends that hear nothing any more will notice.
    pub(super) fn lanes_doubt(&mut self, from: usize, to: usize) {
        for at in lanes(to, from) {
            self.links[at].unacknowledged = Some(self.window());
        }
        if self.is_cut(to, from) {
            return;
        }
        for at in lanes(from, to).into_iter().chain(lanes(to, from)) {
            let link = &mut self.links[at];
            if link.phase == Phase::Up {
                link.doubt += 1;
                let (epoch, doubt, pinged) = (link.epoch, link.doubt, is_pinged(link));
                let heard = self.faults.silence(pinged, &mut self.rng);
                let link = at;
                self.later(heard, Event::Silence { link, epoch, doubt });
            }
        }
    }

    fn window(&mut self) -> u32 {
        u32::try_from(self.rng.magnitude(0, WINDOW_MAX)).unwrap_or(u32::MAX)
    }

    /// A way was opened: what waits for it goes on, and who gave up tries again.
    pub(super) fn lanes_mend(&mut self, from: usize, to: usize) {
        let open = self.is_open(from, to);
        for at in lanes(from, to).into_iter().chain(lanes(to, from)) {
            let onward = self.links[at].from == from;
            match self.links[at].phase {
                Phase::Up if open => {
                    self.links[at].doubt += 1;
                    self.links[at].unacknowledged = None;
                    self.resume(at);
                }
                // Nothing comes back from there.
                Phase::Up if onward => {
                    self.links[at].unacknowledged = Some(self.window());
                    self.resume(at);
                }
                Phase::Down if open => {
                    let pause = self.rng.between(0, self.faults.backoff_max);
                    self.connect(at, pause);
                }
                _ => {}
            }
        }
    }

    /// What could not arrive is repeated.
    fn resume(&mut self, at: usize) {
        let link = &mut self.links[at];
        let (count, epoch) = (std::mem::take(&mut link.stalled), link.epoch);
        let delay = self.rng.between(0, RETRANSMIT_MAX);
        sometimes!(count > 0, "network: a short cut was bridged");
        for _ in 0..count {
            self.later(delay, Event::Frame { link: at, epoch });
        }
    }

    /// Begins to connect if there is somebody and a way.
    fn connect(&mut self, at: usize, pause: Nanos) {
        let Link { from, to, .. } = self.links[at];
        if !self.runs(from) || !self.runs(to) || !self.is_open(from, to) {
            return;
        }
        self.close(at, Phase::Connecting);
        // Three ways: the connection, the greeting, the welcome.
        let delay = pause + self.delay() + self.delay() + self.delay();
        let epoch = self.links[at].epoch;
        self.later(delay, Event::Attempt { link: at, epoch });
    }

    pub(super) fn attempt(&mut self, at: usize, epoch: u32) -> Option<usize> {
        let Link {
            from,
            to,
            lane,
            epoch: present,
            ..
        } = self.links[at];
        if present != epoch {
            return None;
        }
        if !self.runs(to) || !self.is_open(from, to) {
            self.close(at, Phase::Down);
            return None;
        }
        self.links[at].enter(Phase::Up, self.now);
        self.stats.connected += 1;
        self.pump(at);
        match lane {
            Lane::Control => self.tell(from, to, News::Up),
            Lane::Append => None,
        }
    }

    /// A connection is gone, and its sender will hear of it.
    fn break_link(&mut self, at: usize, heard: Nanos) {
        for frame in self.links[at].enter(Phase::Broken, self.now) {
            self.lose(at, frame);
        }
        let epoch = self.links[at].epoch;
        self.later(heard, Event::Notice { link: at, epoch });
    }

    /// A frame that went down with its connection; some arrive all the same, when nobody expects
    /// them.
    fn lose(&mut self, at: usize, frame: Frame) {
        if strikes(self.faults.stale, &mut self.rng) {
            let delay = self.rng.between(0, self.faults.stale_max);
            return self.set_out_late(at, frame.messages, delay);
        }
        self.stats.lost += frame.messages.len() as u64;
    }

    /// Enters a phase in which nothing waits. Returns what was under way.
    fn close(&mut self, at: usize, phase: Phase) -> VecDeque<Frame> {
        let link = &mut self.links[at];
        self.stats.lost += link.waiting.len() as u64;
        link.waiting.clear();
        link.enter(phase, self.now)
    }

    pub(super) fn silence(&mut self, at: usize, epoch: u32, doubt: u32) -> Option<usize> {
        let link = &self.links[at];
        if (link.epoch, link.doubt) != (epoch, doubt) {
            return None;
        }
        let one_way = self.is_cut(link.from, link.to) != self.is_cut(link.to, link.from);
        sometimes!(one_way, "network: a cut of one way was noticed");
        self.end(at)
    }

    pub(super) fn notice(&mut self, at: usize, epoch: u32) -> Option<usize> {
        match self.links[at].epoch == epoch {
            true => self.end(at),
            false => None,
        }
    }

    /// The sender has noticed that a connection is gone.
    fn end(&mut self, at: usize) -> Option<usize> {
        for frame in self.close(at, Phase::Down) {
            self.lose(at, frame);
        }
        self.stats.disconnected += 1;
        let pause = self.links[at].pause(self.now, self.faults.backoff_max);
        self.connect(at, pause);
        let Link { from, to, lane, .. } = self.links[at];
        let news = match lane {
            Lane::Control => News::Down,
            Lane::Append => News::Lost(Lost::Any),
        };
        self.tell(from, to, news)
    }
}
