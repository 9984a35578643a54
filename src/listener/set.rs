//! The listeners of one accept loop: those of a server, or of one shard of it.

use std::io;
use std::net::SocketAddr;
#[cfg(feature = "systemd")]
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Mutex;
use std::task::{Context, Poll};

use super::{AnyListener, ErasedListener, RawListener};
use crate::address::Address;
use crate::log;
use crate::socket::Incoming;
use crate::socket::owner::Owner;
use crate::sync::{assert_unlocked, lock};

/// The listeners of one accept loop.
///
/// Sockets are asked for peers under the set's lock, for the length of a system call. (A reactor
/// registers the accept loop's waker meanwhile, under a lock of its own.) Listeners of the user's
/// own are asked without the lock.
#[derive(Default)]
pub(crate) struct ListenerSet(Mutex<Listeners>);

#[derive(Default)]
struct Listeners {
    /// Empty once they are closed.
    all: Vec<BoundListener>,
    /// Which listener is asked first.
    next: usize,
}

/// A listener, and what is to be known of its peers.
struct BoundListener {
    listener: AnyListener,
    origin: Origin,
}

/// Where a peer comes from.
#[derive(Clone, Copy)]
struct Origin {
    /// The number, among the server's addresses, of the one that the listener is bound to.
    address: u16,
    /// Every shard has a socket of its own for this address.
    is_sharded: bool,
    /// The process that bound the listener: another one, forked from it, would shut it for its
    /// parent.
    owner: Owner,
}

/// A peer that was accepted.
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
    /// Deals the sockets of each address out to sets. There are as many sets as the address with
    /// the most sockets has.
    pub(crate) fn all(listeners: Vec<Vec<AnyListener>>) -> Vec<Self> {
        let mut sets: Vec<Listeners> = Vec::new();
        for (address, sockets) in listeners.into_iter().enumerate() {
            let origin = Origin {
                address: address as u16,
                is_sharded: sockets.len() > 1,
                owner: Owner::this_process(),
            };
            sets.resize_with(sets.len().max(sockets.len()), Listeners::default);
            for (set, listener) in sets.iter_mut().zip(sockets) {
                set.all.push(BoundListener { listener, origin });
            }
        }
        sets.into_iter().map(|set| Self(Mutex::new(set))).collect()
    }

    /// Polls for the next peer of any listener, in the accept loop of this set. The listeners are
    /// asked in turn, and keep the loop's waker.
    pub(crate) fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Accepted>> {
        self.in_turn(|listener| match listener {
            Asked::Socket(listener) => listener.poll_accept(cx),
            Asked::Custom(listener) => listener.poll_accept(cx),
        })
    }

    /// The next peer that is queued, for the accept loop of another set; `Pending` where there is
    /// none, and no waker is kept.
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

    /// Asks the listeners for a peer, beginning behind the one that gave the last.
    #[inline]
    fn in_turn(
        &self,
        mut ask: impl FnMut(Asked<'_>) -> Poll<io::Result<(Incoming, Address)>>,
    ) -> Poll<io::Result<Accepted>> {
        let mut listeners = lock(&self.0);
        let (first, count) = (listeners.next, listeners.all.len());
        for step in 0..count {
            let index = (first + step) % count;
            let Some(BoundListener { listener, origin }) = listeners.all.get_mut(index) else {
                // The listeners were closed while one of the user's own was asked.
                return Poll::Pending;
            };
            let origin = *origin;
            let accepted = match listener {
                AnyListener::Socket(listener) => ask(Asked::Socket(&mut **listener)),
                AnyListener::Custom(listener) => {
                    let listener = listener.clone();
                    drop(listeners);
                    let accepted = ask(Asked::Custom(&*listener));
                    // Outside the lock: if the set was closed meanwhile, this is the last owner.
                    drop(listener);
                    listeners = lock(&self.0);
                    accepted
                }
            };
            if let Poll::Ready(accepted) = accepted {
                let is_closed = listeners.all.is_empty();
                listeners.next = index + 1;
                drop(listeners);
                // Without the lock: a peer that comes when the set is closed is dropped here.
                return match is_closed {
                    true => Poll::Pending,
                    false => Poll::Ready(origin.accepted(accepted)),
                };
            }
        }
        Poll::Pending
    }

    /// The next peer that is queued at the listener of this index, for a sweep; `None` where there
    /// is no such listener. `accepted` is how many the sweep has accepted there: at a listener that
    /// could not be shut it accepts no more than `backlog`, since new peers come all the while.
    pub(crate) fn sweep(
        &self,
        index: usize,
        accepted: u32,
        backlog: u32,
    ) -> Option<io::Result<Accepted>> {
        let mut listeners = lock(&self.0);
        let BoundListener { listener, origin } = listeners.all.get_mut(index)?;
        let origin = *origin;
        let accepted = match listener {
            // Its queue is a successor's.
            AnyListener::Socket(listener) if listener.is_kept() => {
                Err(io::ErrorKind::WouldBlock.into())
            }
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
        Some(origin.accepted(accepted))
    }

    /// The addresses of the listeners whose handshakes under way the kernel has to be asked for.
    #[cfg(target_os = "linux")]
    pub(crate) fn handshakes_at(&self) -> Vec<SocketAddr> {
        let listeners = lock(&self.0);
        let addresses = listeners
            .all
            .iter()
            .filter_map(BoundListener::handshakes_at);
        addresses.collect()
    }

    /// Shuts all listeners: new peers are refused, and queued ones can still be accepted.
    pub(crate) fn shut(&self) {
        let (mut custom, mut errors) = (Vec::new(), Vec::new());
        for BoundListener { listener, origin } in &mut lock(&self.0).all {
            match listener {
                _ if !origin.owner.is_this_process() => {}
                AnyListener::Socket(listener) => errors.extend(listener.shut().err()),
                AnyListener::Custom(listener) => custom.push(listener.clone()),
            }
        }
        custom.iter().for_each(|listener| listener.shut());
        for error in errors {
            log::warn!(target: "gracious", "cannot shut a listener as it should be: {error}");
        }
    }

    /// Closes all listeners, or those at which no handshake can be under way.
    pub(crate) fn close(&self, keeps_handshakes: bool) {
        let closed: Vec<_> = {
            let mut listeners = lock(&self.0);
            let all = std::mem::take(&mut listeners.all).into_iter();
            let is_done = |it: &BoundListener| !keeps_handshakes || it.handshakes_at().is_none();
            let (mut closed, kept): (Vec<_>, _) = all.partition(is_done);
            listeners.all = kept;
            for BoundListener { listener, origin } in &mut closed {
                if let AnyListener::Socket(listener) = listener {
                    if origin.owner.is_this_process() {
                        listener.end();
                    }
                }
            }
            closed
        };
        assert_unlocked();
        drop(closed);
    }

    /// Closes the descriptors and does nothing else, in a process that was forked from the owner's.
    /// A listener of the user's own may do anything when it is dropped, so it stays as it is.
    pub(crate) fn leave(&self) {
        // A thread that had it locked is not in this process.
        let Ok(mut listeners) = self.0.try_lock() else {
            return;
        };
        let all = std::mem::take(&mut listeners.all);
        drop(listeners);
        for BoundListener { listener, .. } in all {
            match listener {
                AnyListener::Socket(listener) => listener.leave(),
                AnyListener::Custom(listener) => std::mem::forget(listener),
            }
        }
    }

    /// Copies of the sockets that a supervisor may hold for a successor, each with the number of its
    /// address, and its descriptor here.
    #[cfg(feature = "systemd")]
    pub(crate) fn lend(&self) -> Vec<(u16, RawFd, io::Result<OwnedFd>)> {
        let listeners = lock(&self.0);
        let lent = |it: &BoundListener| match &it.listener {
            AnyListener::Socket(listener) => listener.lend().map(|fd| {
                let copy = fd.try_clone_to_owned();
                (it.origin.address, fd.as_raw_fd(), copy)
            }),
            AnyListener::Custom(_) => None,
        };
        listeners.all.iter().filter_map(lent).collect()
    }

    /// A supervisor holds the socket of this descriptor for a successor.
    #[cfg(feature = "systemd")]
    pub(crate) fn keep(&self, descriptor: RawFd) {
        for BoundListener { listener, .. } in &mut lock(&self.0).all {
            if let AnyListener::Socket(listener) = listener {
                if listener
                    .lend()
                    .is_some_and(|it| it.as_raw_fd() == descriptor)
                {
                    listener.keep();
                }
            }
        }
    }

    /// Whether a peer is queued at a socket of this set.
    #[cfg(feature = "health")]
    pub(crate) fn has_queued(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let listeners = lock(&self.0);
        let sockets = listeners.all.iter().filter_map(|it| match &it.listener {
            AnyListener::Socket(listener) => listener.lend(),
            AnyListener::Custom(_) => None,
        });
        let mut polled: Vec<_> = sockets
            .map(|socket| PollFd::from_borrowed_fd(socket, PollFlags::IN))
            .collect();
        poll(&mut polled, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }

    /// Has nobody accept at a socket of this set, until what this gives is dropped.
    #[cfg(feature = "health")]
    pub(crate) fn hold(&self) -> impl Sized + '_ {
        lock(&self.0)
    }

    /// Whether all listeners are closed.
    pub(crate) fn is_closed(&self) -> bool {
        lock(&self.0).all.is_empty()
    }

    /// Calls `each` with the number of each listener's address, and how many peers are queued at
    /// it, where the system tells.
    pub(crate) fn for_each_queue(&self, mut each: impl FnMut(u16, Option<u32>)) {
        for BoundListener { listener, origin } in &lock(&self.0).all {
            let queued = match listener {
                AnyListener::Socket(listener) => listener.queued(),
                AnyListener::Custom(_) => None,
            };
            each(origin.address, queued);
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

impl Origin {
    #[inline]
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
