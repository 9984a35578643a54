//! A peer: the client's side of a connection of the in-memory network.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_io::{AsyncRead, AsyncWrite};
use futures_lite::AsyncReadExt;

use super::clock::Sleep;
use super::fault::Fault;
use super::listener::Pieces;
use super::network::Event;
use super::plan::stream;
use super::random::Random;
use super::wire::{Connect, Effects, PEER, SERVER, Wire};
use super::world::{Timed, World};

/// A peer that never pauses: the least that a packet of its takes. On a clock that stands still while
/// there is something to do its talk would take no time at all, and no deadline ever come.
const NEVER_AT_ONCE: Duration = Duration::from_millis(20);
const LONGEST_LATENCY: Duration = Duration::from_millis(60);

/// A peer of the server's, connected.
///
/// It reads and writes as a socket does. What its [manner](Self::manner) is comes between: a peer that
/// resets its connection in the middle of its script does so in one of these operations, which then
/// fails. Dropping it closes its side as a program does: with input unread that is a reset.
pub struct Peer {
    world: Arc<World>,
    wire: usize,
    manner: Option<Fault>,
    pieces: Option<Pieces>,
    random: Random,
    /// How many bytes it moves until it resets its connection, or vanishes.
    left: Option<usize>,
    /// What it waits for before it goes on.
    pause: Option<Sleep>,
    has_begun: bool,
    /// What of a line was read.
    line: Vec<u8>,
}

impl Peer {
    /// Makes the wire of the next peer, so that peers are numbered in the order of the scenario.
    pub(super) fn enroll(
        world: &Arc<World>,
        manner: impl FnOnce(usize) -> Option<Fault>,
    ) -> (usize, Option<Fault>) {
        let plan = &world.plan;
        world.on_network(|network, _| {
            let number = network.wires.len();
            let manner = manner(number);
            let mut random = plan.random(stream::WIRES + number as u64);
            // As often on this machine as across a network.
            let is_far = plan.has(Fault::Latency) && random.once_in(2);
            let mut latency = random.span(LONGEST_LATENCY);
            if manner == Some(Fault::NeverPause) {
                latency = latency.max(NEVER_AT_ONCE);
            } else if !is_far {
                latency = Duration::ZERO;
            }
            let mut room = || match plan.has(Fault::Pieces) {
                true => random.between(8, 256) as usize,
                false => 64 * 1024,
            };
            let rooms = [room(), room()];
            network
                .wires
                .push(Wire::new(number, latency, rooms, random));
            (number, manner)
        })
    }

    /// Connects to a door.
    pub(super) async fn connect(
        world: &Arc<World>,
        (wire, manner): (usize, Option<Fault>),
        door: Option<usize>,
    ) -> io::Result<Self> {
        let Some(door) = door else {
            world.on_network(|network, _| network.wires[wire].connect = Connect::Refused);
            return Err(io::ErrorKind::ConnectionRefused.into());
        };
        let latency = world.on_network(|network, _| network.wires[wire].latency);
        if latency > Duration::ZERO {
            world.fired(Fault::Latency);
        }
        let event = Event::Connects { wire, door };
        if latency.is_zero() {
            world.happen(event);
        } else {
            world.set_timer(world.now() + latency, Timed::Happen(event));
        }
        let mut this = Self::new(world, wire, manner);
        poll_fn(|cx| {
            world.on_network(|network, _| match &mut network.wires[wire].connect {
                Connect::Connected => Poll::Ready(Ok(())),
                Connect::Refused => Poll::Ready(Err(io::ErrorKind::ConnectionRefused.into())),
                Connect::Waits(waker) => {
                    *waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            })
        })
        .await
        .inspect_err(|_: &io::Error| this.left = None)?;
        Ok(this)
    }

    fn new(world: &Arc<World>, wire: usize, manner: Option<Fault>) -> Self {
        let mut random = world.plan.random(stream::PEERS + (1 << 10) + wire as u64);
        let breaks_off = matches!(manner, Some(Fault::Reset | Fault::Vanish));
        let left = breaks_off.then(|| random.magnitude(256) as usize);
        let pieces = Pieces::new(random.clone());
        Self {
            world: world.clone(),
            wire,
            manner,
            pieces: world.plan.has(Fault::Pieces).then_some(pieces),
            random,
            left,
            pause: None,
            has_begun: false,
            line: Vec::new(),
        }
    }

    /// The number of this peer in its world: 0 for the first. The server knows it as `custom:peer 0`.
    #[must_use]
    pub fn number(&self) -> usize {
        self.wire
    }

    /// What is wrong with this peer, if anything is.
    #[must_use]
    pub fn manner(&self) -> Option<Fault> {
        self.manner
    }

    /// Ends its output: the server reads to the end. It may go on reading.
    pub fn half_close(&mut self) {
        self.operate(|wire, fx| wire.finish(PEER, fx));
    }

    /// Resets the connection. Every later operation fails.
    pub fn reset(&mut self) {
        self.operate(|wire, fx| wire.reset(PEER, fx));
    }

    /// Is gone without a word: nothing of it comes any more, and nothing is acknowledged. Every later
    /// operation fails.
    pub fn vanish(&mut self) {
        self.operate(|wire, fx| wire.vanish(PEER, fx));
    }

    /// Reads a line, without its end; `None` where the server has ended the connection and nothing of a
    /// line came before.
    ///
    /// Dropping the future loses nothing: the next call goes on with what was read.
    ///
    /// # Errors
    /// That of a read; `UnexpectedEof` where the end comes in the middle of a line.
    pub async fn read_line(&mut self) -> io::Result<Option<String>> {
        let mut byte = [0];
        loop {
            if self.read(&mut byte).await? == 0 {
                return match self.line.is_empty() {
                    true => Ok(None),
                    false => Err(io::ErrorKind::UnexpectedEof.into()),
                };
            }
            if byte[0] == b'\n' {
                let line = std::mem::take(&mut self.line);
                return String::from_utf8(line).map(Some).map_err(io::Error::other);
            }
            self.line.push(byte[0]);
        }
    }

    /// Reads to the end, and gives what came.
    ///
    /// # Errors
    /// That of a read, a reset for instance; what came before is lost.
    pub async fn read_to_the_end(&mut self) -> io::Result<Vec<u8>> {
        let mut all = std::mem::take(&mut self.line);
        self.read_to_end(&mut all).await?;
        Ok(all)
    }

    /// Whether the server has ended the connection, as far as this peer's kernel knows.
    pub(super) fn is_over(&self) -> bool {
        self.operate(|wire, _| wire.ends[PEER].is_ended || wire.ends[PEER].is_reset)
    }

    pub(super) fn draw(&mut self) -> &mut Random {
        &mut self.random
    }

    /// Does what a manner does when the script is over.
    pub(super) async fn leave(mut self) {
        match self.manner {
            Some(Fault::HalfClose) => {
                self.world.fired(Fault::HalfClose);
                self.half_close();
                let _ends = self.read_to_the_end().await;
            }
            Some(Fault::SlowReader | Fault::Silent) => {
                let _ends = self.read_to_the_end().await;
            }
            Some(Fault::Reset | Fault::Vanish) => {
                let pause = self.random.span(Duration::from_secs(3));
                Sleep::new(&self.world, pause).await;
                self.break_off();
            }
            _ => {}
        }
    }

    /// Resets the connection, or vanishes, where that is its manner.
    fn break_off(&mut self) {
        let is_over =
            self.operate(|wire, _| wire.ends[PEER].is_closed || wire.ends[SERVER].is_closed);
        if !is_over {
            self.manner
                .into_iter()
                .for_each(|manner| self.world.fired(manner));
        }
        match self.manner {
            Some(Fault::Vanish) => self.vanish(),
            _ => self.reset(),
        }
    }

    fn operate<T>(&self, operate: impl FnOnce(&mut Wire, &mut Effects) -> T) -> T {
        self.world
            .on_network(|network, fx| operate(&mut network.wires[self.wire], fx))
    }

    /// How many of so many bytes may be moved, and waits where that is its manner; an error where it
    /// has broken off.
    fn poll_turn(
        &mut self,
        cx: &mut Context<'_>,
        count: usize,
        writes: bool,
    ) -> Poll<io::Result<usize>> {
        if let Some(pause) = &mut self.pause {
            ready!(Pin::new(pause).poll(cx));
            self.pause = None;
        } else if self.manner == Some(Fault::SlowStart) && writes && !self.has_begun {
            self.world.fired(Fault::SlowStart);
            let pause = self.random.span(Duration::from_secs(3));
            self.pause = Some(Sleep::new(&self.world, pause));
            self.has_begun = true;
            return self.poll_turn(cx, count, writes);
        }
        let mut most = count;
        if let Some(left) = self.left {
            if left == 0 {
                self.break_off();
                self.left = None;
            }
            most = most.min(left.max(1));
        }
        if self.operate(|wire, _| wire.ends[PEER].is_closed) {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        }
        if self.manner == Some(Fault::SlowReader) && !writes {
            self.world.fired(Fault::SlowReader);
            most = most.min(8);
        } else if let Some(pieces) = &mut self.pieces {
            most = pieces.some(most);
        }
        Poll::Ready(Ok(most))
    }

    fn moved(&mut self, moved: &Poll<io::Result<usize>>, writes: bool) {
        let Poll::Ready(Ok(count @ 1..)) = moved else {
            return;
        };
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(*count);
        }
        if self.manner == Some(Fault::SlowReader) && !writes && self.random.once_in(2) {
            let pause = self.random.span(Duration::from_millis(250));
            self.pause = Some(Sleep::new(&self.world, pause));
        }
    }
}

impl AsyncRead for Peer {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let most = ready!(this.poll_turn(cx, buf.len(), false))?;
        let read = this.operate(|wire, fx| {
            let read = wire.read(PEER, &mut buf[..most], fx);
            if read.is_pending() {
                wire.ends[PEER].reader = Some(cx.waker().clone());
            }
            read
        });
        this.moved(&read, false);
        read
    }
}

impl AsyncWrite for Peer {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let most = ready!(this.poll_turn(cx, buf.len(), true))?;
        let written = this.operate(|wire, fx| {
            let written = wire.write(PEER, &buf[..most], fx);
            if written.is_pending() {
                wire.ends[PEER].writer = Some(cx.waker().clone());
            }
            written
        });
        this.moved(&written, true);
        written
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.half_close();
        Poll::Ready(Ok(()))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.world.on_network(|network, fx| {
            // A world that is being taken down has no wires any more.
            if let Some(wire) = network.wires.get_mut(self.wire) {
                wire.close(PEER, fx);
            }
        });
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer")
            .field("number", &self.wire)
            .field("manner", &self.manner)
            .finish_non_exhaustive()
    }
}
