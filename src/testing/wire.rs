//! A connection of the in-memory network: what the kernels of both its sides have, and the packets
//! between them.
//!
//! It behaves as TCP on Linux does, as far as a server can tell:
//!
//! 1. Packets of one direction arrive in their order, also where they take their time.
//! 2. What was written counts as unacknowledged until the other side's kernel has it and says so.
//! 3. A side that is closed with input unread, or that gets input when it is closed, resets the other;
//!    what that one had not been able to receive is lost, and what it has received can still be read.
//! 4. A reset that comes behind the other's end leaves that end: reads go on to it, and writes fail.
//!
//! `tests/simulation/ends.rs` holds this against real sockets.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::task::{Poll, Waker};
use std::time::Duration;

use super::random::Random;
use super::timeline::Who;

/// The two sides of a wire, as indices.
pub(super) const SERVER: usize = 0;
pub(super) const PEER: usize = 1;

/// How much later a packet comes that was lost: TCP's shortest time-out.
const RETRANSMISSION: Duration = Duration::from_millis(200);

/// A connection, from the moment that its peer begins to connect.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) number: usize,
    pub(super) latency: Duration,
    pub(super) ends: [End; 2],
    pub(super) connect: Connect,
    /// The server has it, and a descriptor for it.
    pub(super) is_accepted: bool,
    /// When the last packet to each side arrives.
    last: [Duration; 2],
    pub(super) random: Random,
}

/// How far a connect has come.
#[derive(Debug)]
pub(super) enum Connect {
    Waits(Option<Waker>),
    Connected,
    Refused,
}

/// What the kernel of one side has.
#[derive(Debug, Default)]
pub(super) struct End {
    /// Written, and not in the other side's kernel yet.
    out: VecDeque<u8>,
    /// How much of `out` has arrived at the other side and found no room.
    stalled: usize,
    /// Written and not acknowledged.
    pub(super) unacknowledged: usize,
    pub(super) written: u64,
    pub(super) is_finished: bool,
    /// Received and not read.
    pub(super) inbox: VecDeque<u8>,
    pub(super) arrived: u64,
    /// The other side's end is received, or waits for room before it.
    fin_waits: bool,
    pub(super) is_ended: bool,
    /// The other side has reset the connection; the error is told once.
    pub(super) is_reset: bool,
    error: Option<io::ErrorKind>,
    /// The descriptor is closed.
    pub(super) is_closed: bool,
    /// When it was, and when its end was sent.
    pub(super) closed_at: Option<Duration>,
    pub(super) finished_at: Option<Duration>,
    /// This side's machine is gone.
    pub(super) is_gone: bool,
    pub(super) reader: Option<Waker>,
    pub(super) writer: Option<Waker>,
    pub(super) room_out: usize,
    pub(super) room_in: usize,
}

/// What travels.
#[derive(Clone, Copy, Debug)]
pub(super) enum Packet {
    Data(usize),
    Acknowledgment(usize),
    End,
    Reset,
}

/// What an operation on the network leaves to be done without its lock.
#[derive(Debug, Default)]
pub(super) struct Effects {
    pub(super) now: Duration,
    pub(super) wake: Vec<Waker>,
    /// Packets that arrive later: when, on which wire, at which side.
    pub(super) later: Vec<(Duration, usize, usize, Packet)>,
    pub(super) happened: Vec<(Who, &'static str, Option<u64>)>,
}

impl Effects {
    fn wake(&mut self, waker: &mut Option<Waker>) {
        self.wake.extend(waker.take());
    }

    pub(super) fn note(
        &mut self,
        wire: usize,
        side: usize,
        what: &'static str,
        count: impl Into<Option<u64>>,
    ) {
        let who = if side == SERVER {
            Who::Connection(wire)
        } else {
            Who::Peer(wire)
        };
        self.happened.push((who, what, count.into()));
    }
}

impl Wire {
    pub(super) fn new(number: usize, latency: Duration, rooms: [usize; 2], random: Random) -> Self {
        let end = || End {
            room_out: rooms[0],
            room_in: rooms[1],
            ..End::default()
        };
        Self {
            number,
            latency,
            ends: [end(), end()],
            connect: Connect::Waits(None),
            is_accepted: false,
            last: [Duration::ZERO; 2],
            random,
        }
    }

    /// Writes at a side; `Pending` where there is no room.
    pub(super) fn write(
        &mut self,
        side: usize,
        buf: &[u8],
        fx: &mut Effects,
    ) -> Poll<io::Result<usize>> {
        let end = &mut self.ends[side];
        if end.is_reset || end.is_finished {
            let error = end.error.take().unwrap_or(io::ErrorKind::BrokenPipe);
            fx.note(self.number, side, "write fails", None);
            return Poll::Ready(Err(error.into()));
        }
        let count = buf
            .len()
            .min(end.room_out.saturating_sub(end.unacknowledged));
        if count == 0 && !buf.is_empty() {
            return Poll::Pending;
        }
        end.out.extend(&buf[..count]);
        end.unacknowledged += count;
        end.written += count as u64;
        fx.note(self.number, side, "wrote", count as u64);
        if count > 0 {
            self.send(1 - side, Packet::Data(count), fx);
        }
        Poll::Ready(Ok(count))
    }

    /// Reads at a side; `Pending` where there is nothing.
    pub(super) fn read(
        &mut self,
        side: usize,
        buf: &mut [u8],
        fx: &mut Effects,
    ) -> Poll<io::Result<usize>> {
        let end = &mut self.ends[side];
        if !end.inbox.is_empty() {
            let count = buf.len().min(end.inbox.len());
            for (to, from) in buf.iter_mut().zip(end.inbox.drain(..count)) {
                *to = from;
            }
            fx.note(self.number, side, "read", count as u64);
            self.receive(side, fx);
            return Poll::Ready(Ok(count));
        }
        if end.is_ended {
            fx.note(self.number, side, "read the end", None);
            return Poll::Ready(Ok(0));
        }
        if end.is_reset {
            // Told once, to a read or a write.
            let error = end.error.take();
            let what = if error.is_some() {
                "read fails"
            } else {
                "read the end"
            };
            fx.note(self.number, side, what, None);
            return Poll::Ready(error.map_or(Ok(0), |error| Err(error.into())));
        }
        Poll::Pending
    }

    /// Ends a side's output.
    pub(super) fn finish(&mut self, side: usize, fx: &mut Effects) {
        let end = &mut self.ends[side];
        if end.is_finished || end.is_reset {
            return;
        }
        end.is_finished = true;
        end.finished_at = Some(fx.now);
        fx.note(self.number, side, "sent its end", None);
        self.send(1 - side, Packet::End, fx);
    }

    /// Closes a side's descriptor.
    pub(super) fn close(&mut self, side: usize, fx: &mut Effects) {
        let end = &mut self.ends[side];
        if end.is_closed {
            return;
        }
        let unread = end.inbox.len();
        if unread > 0 && !end.is_reset {
            fx.note(
                self.number,
                side,
                "closed with input unread:",
                unread as u64,
            );
            return self.reset(side, fx);
        }
        fx.note(self.number, side, "closed", None);
        self.finish(side, fx);
        self.ends[side].shut_down(fx.now);
    }

    /// Closes a side's descriptor, and destroys what is under way.
    pub(super) fn reset(&mut self, side: usize, fx: &mut Effects) {
        let end = &mut self.ends[side];
        if end.is_closed {
            return;
        }
        let is_reset = end.is_reset;
        end.lose_output();
        end.inbox.clear();
        end.shut_down(fx.now);
        if !is_reset {
            fx.note(self.number, side, "resets the connection", None);
            self.send(1 - side, Packet::Reset, fx);
        }
    }

    /// Takes a side's machine away.
    pub(super) fn vanish(&mut self, side: usize, fx: &mut Effects) {
        fx.note(self.number, side, "vanishes", None);
        let now = fx.now;
        let end = &mut self.ends[side];
        end.shut_down(now);
        end.is_gone = true;
    }

    /// Has a packet arrive, now or later.
    fn send(&mut self, to: usize, packet: Packet, fx: &mut Effects) {
        if self.ends[1 - to].is_gone {
            return;
        }
        if self.latency.is_zero() {
            return self.arrive(to, packet, fx);
        }
        let mut delay = self.latency + self.random.span(self.latency / 4);
        if self.random.once_in(24) {
            delay += RETRANSMISSION + self.latency * 2;
        }
        let at = (fx.now + delay).max(self.last[to]);
        self.last[to] = at;
        fx.later.push((at, self.number, to, packet));
    }

    /// A packet arrives at a side.
    pub(super) fn arrive(&mut self, to: usize, packet: Packet, fx: &mut Effects) {
        if self.ends[to].is_gone {
            return;
        }
        match packet {
            Packet::Data(count) => {
                let refuses = self.ends[to].is_closed;
                let from = &mut self.ends[1 - to];
                let count = count.min(from.out.len() - from.stalled);
                if count == 0 {
                    return;
                }
                if refuses {
                    from.out.drain(..count);
                    return self.send(1 - to, Packet::Reset, fx);
                }
                from.stalled += count;
                self.receive(to, fx);
            }
            Packet::Acknowledgment(count) => {
                let end = &mut self.ends[to];
                end.unacknowledged = end.unacknowledged.saturating_sub(count);
                fx.wake(&mut end.writer);
            }
            Packet::End => {
                self.ends[to].fin_waits = true;
                self.receive(to, fx);
            }
            Packet::Reset => {
                let end = &mut self.ends[to];
                if end.is_reset {
                    return;
                }
                fx.note(self.number, to, "is reset", None);
                end.is_reset = true;
                end.error = Some(match end.is_ended {
                    true => io::ErrorKind::BrokenPipe,
                    false => io::ErrorKind::ConnectionReset,
                });
                end.out.clear();
                (end.stalled, end.unacknowledged) = (0, 0);
                fx.wake(&mut end.reader);
                fx.wake(&mut end.writer);
            }
        }
    }

    /// Takes in what has arrived at a side, as far as there is room.
    fn receive(&mut self, to: usize, fx: &mut Effects) {
        let [server, peer] = &mut self.ends;
        let (end, from) = if to == SERVER {
            (server, peer)
        } else {
            (peer, server)
        };
        let count = from
            .stalled
            .min(end.room_in.saturating_sub(end.inbox.len()));
        if count > 0 {
            end.inbox.extend(from.out.drain(..count));
            from.stalled -= count;
            end.arrived += count as u64;
            fx.wake(&mut end.reader);
        }
        if end.fin_waits && from.stalled == 0 && from.out.is_empty() && !end.is_ended {
            end.is_ended = true;
            fx.wake(&mut end.reader);
        }
        if count > 0 {
            fx.note(self.number, to, "received", count as u64);
            self.send(1 - to, Packet::Acknowledgment(count), fx);
        }
    }
}

impl End {
    fn shut_down(&mut self, now: Duration) {
        self.is_closed = true;
        self.closed_at = Some(now);
        (self.reader, self.writer) = (None, None);
    }

    /// What the other side has no room for will never be sent.
    fn lose_output(&mut self) {
        if self.stalled > 0 {
            self.out.clear();
            self.stalled = 0;
        }
    }
}

/// How long a peer may have to be silent until nothing of it is under way: TCP's time-out and a round
/// trip, as the server asks a real socket.
pub(super) fn quiet(latency: Duration) -> Duration {
    RETRANSMISSION + latency * 5
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self {
            Self { is_gone: true, .. } => "gone",
            Self {
                is_closed: true, ..
            } => "closed",
            Self { is_reset: true, .. } => "reset",
            Self {
                is_finished: true,
                is_ended: true,
                ..
            } => "ended both ways",
            Self {
                is_finished: true, ..
            } => "has sent its end",
            Self { is_ended: true, .. } => "has the other's end",
            _ => "open",
        };
        let (written, arrived, unread) = (self.written, self.arrived, self.inbox.len());
        let line = format!("{state}, wrote {written}, got {arrived}, unread {unread}");
        f.pad(&line)
    }
}
