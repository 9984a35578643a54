//! The listeners of a server, by who accepts at them: of shards each has a door of its own.

use std::io;
use std::task::{Context, Poll};

use crate::address::Address;
use crate::listener::{Bound, Incoming};

/// A set of listeners with one accept loop.
#[derive(Default)]
pub(crate) struct Door {
    /// Empty once it is closed.
    pub(crate) listeners: Vec<Listening>,
    /// Whose turn it is to be asked first.
    turn: usize,
}

/// A listener, and whose it is.
pub(crate) struct Listening {
    pub(crate) bound: Box<dyn Bound>,
    /// Which of the server's addresses it listens on.
    pub(crate) address: u16,
    /// Every shard has a socket of its own for this address.
    sharded: bool,
}

/// A peer, straight from its listener.
pub(crate) struct Accepted {
    pub(crate) incoming: Incoming,
    pub(crate) peer: Address,
    pub(crate) address: u16,
    pub(crate) sharded: bool,
}

impl Door {
    /// As many doors as an address has sockets at most, of the sockets for each address.
    pub(crate) fn all(listeners: Vec<Vec<Box<dyn Bound>>>) -> Vec<Self> {
        let mut doors: Vec<Self> = Vec::new();
        for (address, sockets) in listeners.into_iter().enumerate() {
            let sharded = sockets.len() > 1;
            doors.resize_with(doors.len().max(sockets.len()), Self::default);
            for (door, bound) in doors.iter_mut().zip(sockets) {
                door.listeners.push(Listening {
                    bound,
                    address: address as u16,
                    sharded,
                });
            }
        }
        doors
    }

    /// The next peer of any listener, who are asked in turn.
    pub(crate) fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Accepted>> {
        self.in_turn(|listening| {
            let accepted = listening.bound.poll_accept(cx);
            accepted.map(|accepted| listening.accepted(accepted))
        })
    }

    /// The same without a wait: `Pending` where nobody is queued, and nobody will be woken.
    pub(crate) fn try_accept(&mut self) -> Poll<io::Result<Accepted>> {
        self.in_turn(|listening| match listening.try_accept() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
            accepted => Poll::Ready(accepted),
        })
    }

    fn in_turn<T>(&mut self, mut ask: impl FnMut(&mut Listening) -> Poll<T>) -> Poll<T> {
        let count = self.listeners.len();
        for step in 0..count {
            let index = (self.turn + step) % count;
            if let Poll::Ready(answer) = ask(&mut self.listeners[index]) {
                self.turn = index + 1;
                return Poll::Ready(answer);
            }
        }
        Poll::Pending
    }
}

impl Listening {
    pub(crate) fn try_accept(&mut self) -> io::Result<Accepted> {
        let accepted = self.bound.try_accept();
        self.accepted(accepted)
    }

    fn accepted(&self, accepted: io::Result<(Incoming, Address)>) -> io::Result<Accepted> {
        let (incoming, peer) = accepted?;
        Ok(Accepted {
            incoming,
            peer,
            address: self.address,
            sharded: self.sharded,
        })
    }
}
