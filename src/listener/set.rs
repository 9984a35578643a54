//! The listeners of a server, by the accept loop that takes their peers: each shard has a set of its
//! own.

use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll};

use super::RawListener;
use crate::address::Address;
use crate::socket::Incoming;

/// The listeners of one accept loop.
#[derive(Default)]
pub(crate) struct ListenerSet {
    /// Empty once they are closed.
    pub(crate) listeners: Vec<BoundListener>,
    /// Which listener is asked first.
    next: usize,
}

/// A listener, and which of the server's addresses it is bound to.
pub(crate) struct BoundListener {
    raw: Box<dyn RawListener>,
    pub(crate) address: u16,
    /// Every shard has a socket of its own for this address.
    is_sharded: bool,
}

/// A peer, straight from its listener.
pub(crate) struct Accepted {
    pub(crate) incoming: Incoming,
    pub(crate) peer: Address,
    pub(crate) address: u16,
    pub(crate) is_sharded: bool,
}

impl ListenerSet {
    /// Deals the sockets of each address out: as many sets as an address has sockets at most.
    pub(crate) fn all(listeners: Vec<Vec<Box<dyn RawListener>>>) -> Vec<Self> {
        let mut sets: Vec<Self> = Vec::new();
        for (address, sockets) in listeners.into_iter().enumerate() {
            let is_sharded = sockets.len() > 1;
            sets.resize_with(sets.len().max(sockets.len()), Self::default);
            for (set, raw) in sets.iter_mut().zip(sockets) {
                set.listeners.push(BoundListener {
                    raw,
                    address: address as u16,
                    is_sharded,
                });
            }
        }
        sets
    }

    /// The next peer of any listener; they are asked in turn.
    pub(crate) fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Accepted>> {
        self.in_turn(|listener| {
            let accepted = listener.raw.poll_accept(cx);
            accepted.map(|accepted| listener.accepted(accepted))
        })
    }

    /// The next peer that is queued; `Pending` where none is, and nothing will be woken.
    pub(crate) fn try_accept(&mut self) -> Poll<io::Result<Accepted>> {
        self.in_turn(|listener| match listener.try_accept() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
            accepted => Poll::Ready(accepted),
        })
    }

    fn in_turn<T>(&mut self, mut ask: impl FnMut(&mut BoundListener) -> Poll<T>) -> Poll<T> {
        let count = self.listeners.len();
        for step in 0..count {
            let index = (self.next + step) % count;
            if let Poll::Ready(answer) = ask(&mut self.listeners[index]) {
                self.next = index + 1;
                return Poll::Ready(answer);
            }
        }
        Poll::Pending
    }
}

impl BoundListener {
    pub(crate) fn try_accept(&mut self) -> io::Result<Accepted> {
        let accepted = self.raw.try_accept();
        self.accepted(accepted)
    }

    /// Takes no new peers from here on; those queued can still be accepted.
    pub(crate) fn shut(&mut self) {
        self.raw.shut();
    }

    /// Whether new peers are kept out, so that the queue comes to an end.
    pub(crate) fn is_shut(&self) -> bool {
        self.raw.is_shut()
    }

    /// Where the system has to be asked for handshakes under way.
    pub(crate) fn handshakes_at(&self) -> Option<SocketAddr> {
        self.raw.handshakes_at()
    }

    pub(crate) fn queued(&self) -> Option<u32> {
        self.raw.queued()
    }

    fn accepted(&self, accepted: io::Result<(Incoming, Address)>) -> io::Result<Accepted> {
        let (incoming, peer) = accepted?;
        Ok(Accepted {
            incoming,
            peer,
            address: self.address,
            is_sharded: self.is_sharded,
        })
    }
}
