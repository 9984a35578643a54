//! The in-memory network: doors at which peers queue, and the wires of those that were let in.

use std::collections::VecDeque;
use std::io;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::fault::Fault;
use super::random::Random;
use super::timeline::Who;
use super::wire::{Connect, Effects, PEER, Packet, SERVER, Wire};

/// So many peers wait at a door; the next try again a second later.
const BACKLOG: usize = 128;
const SYN_PAUSE: Duration = Duration::from_secs(1);

/// So many errors of peers in a row an accept gives at most.
const ERRORS_IN_A_ROW: u64 = 3;

/// What a peer's or the network's error of accept may be.
const PEER_ERRORS: [i32; 6] = [
    libc::ECONNABORTED,
    libc::EPROTO,
    libc::ENETDOWN,
    libc::EHOSTUNREACH,
    libc::EPERM,
    libc::EINTR,
];

#[derive(Debug, Default)]
pub(super) struct Network {
    pub(super) doors: Vec<Door>,
    pub(super) wires: Vec<Wire>,
    /// How many connections the server may have open at once, where descriptors are short.
    pub(super) descriptors: Option<usize>,
    /// Peers that were queued when their listener was dropped.
    pub(super) lost_in_queue: Vec<usize>,
}

/// What a listener has in its kernel.
#[derive(Debug)]
pub(super) struct Door {
    queue: VecDeque<usize>,
    waker: Option<Waker>,
    /// New peers are refused.
    pub(super) is_shut: bool,
    is_closed: bool,
    /// Accepted in all.
    pub(super) accepted: u64,
    /// Errors of accept in all.
    pub(super) errors: u64,
    errors_left: u64,
    /// When accept begins to fail for good.
    dies_at: Option<Duration>,
    fails: bool,
    random: Random,
}

/// What happens by itself at a time.
#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    Arrives {
        wire: usize,
        to: usize,
        packet: Packet,
    },
    Connects {
        wire: usize,
        door: usize,
    },
    Answered {
        wire: usize,
        is_let_in: bool,
    },
    Dies {
        door: usize,
    },
}

impl Network {
    pub(super) fn open_door(
        &mut self,
        fails: bool,
        dies_at: Option<Duration>,
        random: Random,
    ) -> usize {
        self.doors.push(Door {
            queue: VecDeque::new(),
            waker: None,
            is_shut: false,
            is_closed: false,
            accepted: 0,
            errors: 0,
            errors_left: 0,
            dies_at,
            fails,
            random,
        });
        self.doors.len() - 1
    }

    /// A peer knocks at a door; gives what happens next, and when.
    pub(super) fn knock(
        &mut self,
        wire: usize,
        door: usize,
        fx: &mut Effects,
    ) -> Option<(Duration, Event)> {
        let latency = self.wires[wire].latency;
        let door_of = &mut self.doors[door];
        let is_let_in = !door_of.is_shut && !door_of.is_closed;
        if is_let_in && door_of.queue.len() >= BACKLOG {
            return Some((fx.now + SYN_PAUSE, Event::Connects { wire, door }));
        }
        if is_let_in {
            door_of.queue.push_back(wire);
            fx.wake.extend(door_of.waker.take());
            fx.note(wire, SERVER, "queued", None);
        }
        if latency.is_zero() {
            self.answer(wire, is_let_in, fx);
            return None;
        }
        Some((fx.now + latency, Event::Answered { wire, is_let_in }))
    }

    /// A peer learns whether it was let in.
    pub(super) fn answer(&mut self, wire: usize, is_let_in: bool, fx: &mut Effects) {
        let wire = &mut self.wires[wire];
        let next = if is_let_in {
            Connect::Connected
        } else {
            Connect::Refused
        };
        if !is_let_in {
            fx.note(wire.number, PEER, "is refused", None);
        }
        if let Connect::Waits(waker) = std::mem::replace(&mut wire.connect, next) {
            fx.wake.extend(waker);
        }
    }

    pub(super) fn happen(&mut self, event: Event, fx: &mut Effects) -> Option<(Duration, Event)> {
        match event {
            Event::Arrives { wire, to, packet } => self.wires[wire].arrive(to, packet, fx),
            Event::Connects { wire, door } => return self.knock(wire, door, fx),
            Event::Answered { wire, is_let_in } => self.answer(wire, is_let_in, fx),
            Event::Dies { door } => fx.wake.extend(self.doors[door].waker.take()),
        }
        None
    }

    /// Accepts the next peer of a door, and names the fault that came to pass.
    pub(super) fn poll_accept(
        &mut self,
        door: usize,
        cx: &mut Context<'_>,
        fx: &mut Effects,
    ) -> (Poll<io::Result<usize>>, Option<Fault>) {
        let open = self.open();
        let is_short = self.descriptors.is_some_and(|most| open >= most);
        let door = &mut self.doors[door];
        let fails = |code| Poll::Ready(Err(io::Error::from_raw_os_error(code)));
        if door.dies_at.is_some_and(|at| at <= fx.now) {
            door.errors += 1;
            return (fails(libc::EBADF), Some(Fault::DeadListener));
        }
        if is_short {
            door.errors += 1;
            return (fails(libc::EMFILE), Some(Fault::Shortage));
        }
        if door.queue.is_empty() {
            door.waker = Some(cx.waker().clone());
            return (Poll::Pending, None);
        }
        if door.fails && door.errors_left == 0 && door.random.once_in(3) {
            door.errors_left = door.random.between(1, ERRORS_IN_A_ROW);
        } else if door.errors_left > 0 {
            door.errors_left -= 1;
        }
        if door.errors_left > 0 {
            door.errors += 1;
            let code = PEER_ERRORS[door.random.below(PEER_ERRORS.len() as u64) as usize];
            return (fails(code), Some(Fault::AcceptError));
        }
        let Some(wire) = door.queue.pop_front() else {
            return (Poll::Pending, None);
        };
        door.accepted += 1;
        self.wires[wire].is_accepted = true;
        fx.note(wire, SERVER, "accepted", None);
        (Poll::Ready(Ok(wire)), None)
    }

    /// Closes a door: who is queued is reset.
    pub(super) fn close_door(&mut self, door: usize, fx: &mut Effects) {
        let is_short = self.descriptors.is_some_and(|most| self.open() >= most);
        let door = &mut self.doors[door];
        let is_dead = door.dies_at.is_some_and(|at| at <= fx.now);
        door.is_closed = true;
        door.waker = None;
        for wire in std::mem::take(&mut door.queue) {
            // Who could not be accepted any more is nobody's fault.
            if !is_short && !is_dead {
                self.lost_in_queue.push(wire);
            }
            self.wires[wire].reset(SERVER, fx);
        }
        fx.happened.push((Who::World, "a listener is closed", None));
    }

    pub(super) fn shut_door(&mut self, door: usize) {
        self.doors[door].is_shut = true;
    }

    /// The doors that are not closed.
    pub(super) fn open_doors(&self) -> Vec<usize> {
        let open = |(number, door): (usize, &Door)| (!door.is_closed).then_some(number);
        self.doors.iter().enumerate().filter_map(open).collect()
    }

    /// Whether a peer would be let in.
    pub(super) fn takes_peers(&self) -> bool {
        self.doors
            .iter()
            .any(|door| !door.is_shut && !door.is_closed)
    }

    /// How many connections the server has a descriptor for.
    fn open(&self) -> usize {
        let is_open = |wire: &&Wire| wire.is_accepted && !wire.ends[SERVER].is_closed;
        self.wires.iter().filter(is_open).count()
    }
}
