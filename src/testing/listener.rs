//! The server's side of the in-memory network: a listener, and the streams it accepts.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_io::{AsyncRead, AsyncWrite};

use super::fault::Fault;
use super::network::{Event, Network};
use super::plan::stream;
use super::random::Random;
use super::wire::{Effects, SERVER, Wire, quiet};
use super::world::{Timed, World};
use crate::address::Address;
use crate::listener::Listener;

/// A listener of the in-memory network, from [`Sim::listener`](super::Sim::listener).
pub struct SimListener {
    world: Arc<World>,
    door: usize,
}

impl SimListener {
    pub(super) fn open(world: &Arc<World>) -> Self {
        let plan = &world.plan;
        let now = world.now();
        let (door, dies_at) = world.on_network(|network, _| {
            let number = network.doors.len();
            let mut random = plan.random(stream::DOORS + number as u64);
            let dies_at = now + random.span(Duration::from_secs(4));
            let dies_at = plan.has(Fault::DeadListener).then_some(dies_at);
            let door = network.open_door(plan.has(Fault::AcceptError), dies_at, random);
            (door, dies_at)
        });
        if let Some(at) = dies_at {
            world.set_timer(at, Timed::Happen(Event::Dies { door }));
        }
        Self {
            world: world.clone(),
            door,
        }
    }
}

impl Listener for SimListener {
    type Io = SimStream;

    async fn accept(&mut self) -> io::Result<(SimStream, Address)> {
        let wire = poll_fn(|cx| {
            let accept =
                |network: &mut Network, fx: &mut Effects| network.poll_accept(self.door, cx, fx);
            let (accepted, fault) = self.world.on_network(accept);
            fault.into_iter().for_each(|fault| self.world.fired(fault));
            accepted
        });
        let wire = wire.await?;
        let stream = SimStream::new(&self.world, wire);
        Ok((stream, peer_address(wire)))
    }

    fn local_addr(&self) -> io::Result<Address> {
        Ok(Address::Custom(format!("listener {}", self.door)))
    }

    fn unacknowledged(io: &SimStream) -> Option<usize> {
        let unacknowledged = |wire: &Wire| wire.ends[SERVER].unacknowledged;
        Some(
            io.world
                .on_network(|network, _| unacknowledged(&network.wires[io.wire])),
        )
    }

    fn quiet(io: &SimStream) -> Option<Duration> {
        let latency = io
            .world
            .on_network(|network, _| network.wires[io.wire].latency);
        Some(quiet(latency))
    }

    fn shut(&mut self) {
        self.world
            .on_network(|network, _| network.shut_door(self.door));
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        self.world
            .on_network(|network, fx| network.close_door(self.door, fx));
    }
}

impl fmt::Debug for SimListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimListener")
            .field("door", &self.door)
            .finish_non_exhaustive()
    }
}

/// A peer's address, by the number of its wire.
pub(super) fn peer_address(wire: usize) -> Address {
    Address::Custom(format!("peer {wire}"))
}

/// A connection of the in-memory network, at the server's side.
pub struct SimStream {
    world: Arc<World>,
    wire: usize,
    pieces: Option<Pieces>,
}

impl SimStream {
    fn new(world: &Arc<World>, wire: usize) -> Self {
        let random = world.plan.random(stream::WIRES + wire as u64);
        Self {
            world: world.clone(),
            wire,
            pieces: world.plan.has(Fault::Pieces).then(|| Pieces::new(random)),
        }
    }
}

/// How a stream gives less than it could.
#[derive(Debug)]
pub(super) struct Pieces {
    random: Random,
    /// The last operation waited for nothing.
    has_waited: bool,
}

impl Pieces {
    pub(super) fn new(random: Random) -> Self {
        Self {
            random,
            has_waited: false,
        }
    }

    /// How much of so many bytes is moved at once.
    pub(super) fn some(&mut self, count: usize) -> usize {
        match self.random.below(4) {
            0 => 1.min(count),
            1 if count > 1 => self.random.between(1, count as u64) as usize,
            _ => count,
        }
    }

    /// Whether an operation waits for nothing: it is tried again at once. Never a read, whose `Pending`
    /// says that there is nothing.
    pub(super) fn waits(&mut self, cx: &Context<'_>) -> bool {
        self.has_waited = !self.has_waited && self.random.once_in(4);
        if self.has_waited {
            cx.waker().wake_by_ref();
        }
        self.has_waited
    }
}

impl AsyncRead for SimStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let most = match &mut this.pieces {
            Some(pieces) if !buf.is_empty() => pieces.some(buf.len().min(64)),
            _ => buf.len(),
        };
        if this.pieces.is_some() && most < buf.len() {
            this.world.fired(Fault::Pieces);
        }
        let read = this.world.on_network(|network, fx| {
            let wire = &mut network.wires[this.wire];
            let read = wire.read(SERVER, &mut buf[..most], fx);
            if read.is_pending() {
                wire.ends[SERVER].reader = Some(cx.waker().clone());
            }
            read
        });
        if read.is_pending() {
            this.world
                .watch()
                .reader_waits(this.wire, this.world.step());
        }
        read
    }
}

impl AsyncWrite for SimStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let mut most = buf.len();
        if let Some(pieces) = &mut this.pieces {
            if pieces.waits(cx) {
                return Poll::Pending;
            }
            most = pieces.some(buf.len());
        }
        this.world.on_network(|network, fx| {
            let wire = &mut network.wires[this.wire];
            let written = wire.write(SERVER, &buf[..most], fx);
            if written.is_pending() {
                wire.ends[SERVER].writer = Some(cx.waker().clone());
            }
            written
        })
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.pieces.as_mut().is_some_and(|pieces| pieces.waits(cx)) {
            return Poll::Pending;
        }
        this.world
            .on_network(|network, fx| network.wires[this.wire].finish(SERVER, fx));
        Poll::Ready(Ok(()))
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        self.world.on_network(|network, fx| {
            // A world that is being taken down has no wires any more.
            if let Some(wire) = network.wires.get_mut(self.wire) {
                wire.close(SERVER, fx);
            }
        });
    }
}

impl fmt::Debug for SimStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimStream")
            .field("peer", &peer_address(self.wire))
            .finish_non_exhaustive()
    }
}
