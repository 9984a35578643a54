//! The listeners of a server, by the accept loop that takes their peers: each shard has a set of its
//! own.

use std::io;
use std::task::{Context, Poll};

use super::RawListener;
use crate::address::Address;
use crate::socket::Incoming;
use crate::socket::owner::Owner;

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
    owner: Owner,
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
                    owner: Owner::this_process(),
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

    /// Takes no new peers from here on; those queued can still be accepted. A process that was forked
    /// from the owner's would keep them out of the owner's.
    pub(crate) fn shut(&mut self) {
        if self.owner.is_this_process() {
            self.raw.shut();
        }
    }

    /// Closes the descriptor and does nothing else.
    pub(crate) fn leave(self) {
        self.raw.leave();
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
