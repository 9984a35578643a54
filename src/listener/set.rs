//! The listeners of a server, by the accept loop that takes their peers: each shard has a set of its
//! own.

use std::io;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::task::{Context, Poll};

use super::{AnyListener, ErasedListener, RawListener};
use crate::address::Address;
use crate::log;
use crate::socket::Incoming;
use crate::sync::{assert_unlocked, lock};

/// The listeners of one accept loop.
///
/// Sockets are asked under its lock, for the length of a system call. (A reactor takes the accept
/// loop's waker down meanwhile, as it does under a lock of its own.) Listeners of the user's own are
/// asked without it.
#[derive(Default)]
pub(crate) struct ListenerSet(Mutex<Listeners>);

#[derive(Default)]
struct Listeners {
    /// Empty once they are closed.
    all: Vec<BoundListener>,
    /// Which listener is asked first.
    next: usize,
}

/// A listener, and which of the server's addresses it is bound to.
struct BoundListener {
    listener: AnyListener,
    place: Place,
}

#[derive(Clone, Copy)]
struct Place {
    address: u16,
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

/// A listener that is being asked for a peer.
enum Asked<'a> {
    Socket(&'a mut dyn RawListener),
    Custom(&'a dyn ErasedListener),
}

impl ListenerSet {
    /// Deals the sockets of each address out: as many sets as an address has sockets at most.
    pub(crate) fn all(listeners: Vec<Vec<AnyListener>>) -> Vec<Self> {
        let mut sets: Vec<Listeners> = Vec::new();
        for (address, sockets) in listeners.into_iter().enumerate() {
            let place = Place {
                address: address as u16,
                is_sharded: sockets.len() > 1,
            };
            sets.resize_with(sets.len().max(sockets.len()), Listeners::default);
            for (set, listener) in sets.iter_mut().zip(sockets) {
                set.all.push(BoundListener { listener, place });
            }
        }
        sets.into_iter().map(|set| Self(Mutex::new(set))).collect()
    }

    /// The next peer of any listener; they are asked in turn.
    pub(crate) fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Accepted>> {
        self.in_turn(|listener| match listener {
            Asked::Socket(listener) => listener.poll_accept(cx),
            Asked::Custom(listener) => listener.poll_accept(cx),
        })
    }

    /// The next peer that is queued; `Pending` where none is, and nothing will be woken.
    pub(crate) fn try_accept(&self) -> Poll<io::Result<Accepted>> {
        self.in_turn(|listener| {
            let accepted = match listener {
                Asked::Socket(listener) => listener.try_accept(),
                Asked::Custom(listener) => listener.try_accept(),
            };
            match accepted {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
                accepted => Poll::Ready(accepted),
            }
        })
    }

    fn in_turn(
        &self,
        mut ask: impl FnMut(Asked<'_>) -> Poll<io::Result<(Incoming, Address)>>,
    ) -> Poll<io::Result<Accepted>> {
        let mut listeners = lock(&self.0);
        let (first, count) = (listeners.next, listeners.all.len());
        for step in 0..count {
            let index = (first + step) % count;
            let Some(BoundListener { listener, place }) = listeners.all.get_mut(index) else {
                // They were closed while one of the user's own was asked.
                return Poll::Pending;
            };
            let place = *place;
            let accepted = match listener {
                AnyListener::Socket(listener) => ask(Asked::Socket(&mut **listener)),
                AnyListener::Custom(listener) => {
                    let listener = listener.clone();
                    drop(listeners);
                    let accepted = ask(Asked::Custom(&*listener));
                    // If the set was closed meanwhile, this drops the listener; outside the lock.
                    drop(listener);
                    listeners = lock(&self.0);
                    accepted
                }
            };
            if let Poll::Ready(accepted) = accepted {
                let is_closed = listeners.all.is_empty();
                listeners.next = index + 1;
                drop(listeners);
                // A peer that comes when the set is closed is dropped here, without a lock.
                return match is_closed {
                    true => Poll::Pending,
                    false => Poll::Ready(place.accepted(accepted)),
                };
            }
        }
        Poll::Pending
    }

    /// The next peer that is queued at one listener; `None` where there is no such listener. For a
    /// sweep, which has `accepted` so many there: where new peers still come it takes no more than
    /// the `backlog`, since the rest are for others who hold the socket, too.
    pub(crate) fn sweep(
        &self,
        index: usize,
        accepted: u32,
        backlog: u32,
    ) -> Option<io::Result<Accepted>> {
        let mut listeners = lock(&self.0);
        let BoundListener { listener, place } = listeners.all.get_mut(index)?;
        let place = *place;
        let accepted = match listener {
            AnyListener::Socket(listener) if !listener.is_shut() && accepted >= backlog => {
                Err(io::ErrorKind::WouldBlock.into())
            }
            AnyListener::Socket(listener) => listener.try_accept(),
            AnyListener::Custom(listener) => {
                let listener = listener.clone();
                drop(listeners);
                listener.sweep()
            }
        };
        Some(place.accepted(accepted))
    }

    /// The addresses whose handshakes under way the kernel has to be asked for.
    pub(crate) fn handshakes_at(&self) -> Vec<SocketAddr> {
        let listeners = lock(&self.0);
        let addresses = listeners
            .all
            .iter()
            .filter_map(BoundListener::handshakes_at);
        addresses.collect()
    }

    /// Takes no new peers from here on; those queued can still be accepted.
    pub(crate) fn shut(&self) {
        let (mut custom, mut errors) = (Vec::new(), Vec::new());
        for BoundListener { listener, .. } in &mut lock(&self.0).all {
            match listener {
                AnyListener::Socket(listener) => errors.extend(listener.shut().err()),
                AnyListener::Custom(listener) => custom.push(listener.clone()),
            }
        }
        custom.iter().for_each(|listener| listener.shut());
        for error in errors {
            log::warn!(target: "gracious", error:%; "cannot shut a listener as it should be: {error}");
        }
    }

    /// Closes all listeners, or those at which no handshake can be under way.
    pub(crate) fn close(&self, keeps_handshakes: bool) {
        let closed: Vec<_> = {
            let mut listeners = lock(&self.0);
            let all = std::mem::take(&mut listeners.all).into_iter();
            let is_done = |it: &BoundListener| !keeps_handshakes || it.handshakes_at().is_none();
            let (closed, kept) = all.partition(is_done);
            listeners.all = kept;
            closed
        };
        assert_unlocked();
        drop(closed);
    }

    pub(crate) fn is_closed(&self) -> bool {
        lock(&self.0).all.is_empty()
    }

    /// Calls `tell` with each listener's address, by its number, and how many peers are queued at it,
    /// where the system tells.
    pub(crate) fn tell_queued(&self, mut tell: impl FnMut(u16, Option<u32>)) {
        for BoundListener { listener, place } in &lock(&self.0).all {
            let queued = match listener {
                AnyListener::Socket(listener) => listener.queued(),
                AnyListener::Custom(_) => None,
            };
            tell(place.address, queued);
        }
    }
}

impl BoundListener {
    fn handshakes_at(&self) -> Option<SocketAddr> {
        match &self.listener {
            AnyListener::Socket(listener) => listener.handshakes_at(),
            AnyListener::Custom(_) => None,
        }
    }
}

impl Place {
    fn accepted(self, accepted: io::Result<(Incoming, Address)>) -> io::Result<Accepted> {
        let (incoming, peer) = accepted?;
        Ok(Accepted {
            incoming,
            peer,
            address: self.address,
            is_sharded: self.is_sharded,
        })
    }
}
