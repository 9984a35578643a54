//! The listeners of one accept loop: those of a server, or of one shard of it.

use std::io;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};

use super::{AnyListener, ErasedListener, RawListener};
use crate::address::Address;
use crate::log;
use crate::socket::Incoming;
use crate::socket::owner::Owner;
#[cfg(feature = "_ready")]
use crate::sync::Flag;
use crate::sync::{assert_unlocked, lock};

#[cfg(feature = "_ready")]
mod began;
#[cfg(any(feature = "systemd", feature = "health"))]
mod lent;

/// The listeners of one accept loop.
///
/// Sockets are asked for peers under the set's lock, for the length of a system call. (A reactor
/// registers the accept loop's waker meanwhile, under a lock of its own.) Listeners of the user's
/// own are asked without the lock.
pub(crate) struct ListenerSet {
    pub(super) listeners: Mutex<Listeners>,
    /// They stay open through a drain, until nothing else is left.
    pub(crate) keeps_open: bool,
    /// The accept loop has asked its listeners, or would have but for a limit or a pause: peers are
    /// queued from then on.
    #[cfg(feature = "_ready")]
    pub(crate) began: Flag,
}

#[derive(Default)]
pub(super) struct Listeners {
    pub(super) all: Vec<BoundListener>,
    /// Which listener is asked first.
    next: usize,
    /// All were shut, and none is taken in any more.
    pub(super) is_shut: bool,
    pub(super) is_closed: bool,
    /// Of the accept loop, while it may wait: to be woken where a listener is added, or is to be
    /// closed. Dropped at the close, since the loop's task has the set.
    pub(super) acceptor: Option<Waker>,
}

/// A listener, and what is to be known of its peers.
pub(super) struct BoundListener {
    pub(super) listener: AnyListener,
    pub(super) origin: Origin,
    /// It was shut while the others go on: see [`change`](super::change).
    pub(super) ending: Option<Ending>,
}

/// How far a listener is on its way to its end, while the others go on.
#[derive(Clone, Copy)]
pub(super) struct Ending {
    /// How many peers are still accepted: of a listener that could not be shut as many as its queue may
    /// have had, since new ones come all the while.
    pub(super) left: u32,
    /// No handshake is under way any more: it is closed as soon as its queue is empty.
    pub(super) is_last: bool,
}

/// Where a peer comes from.
#[derive(Clone, Copy)]
pub(super) struct Origin {
    /// The number, among the server's addresses, of the one that the listener is bound to.
    pub(super) address: u16,
    /// Every shard has a socket of its own for this address.
    is_sharded: bool,
    /// The process that bound the listener: another one, forked from it, would shut it for its
    /// parent.
    pub(super) owner: Owner,
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
    /// Deals the sockets of each address out to sets, of which there are as many as the address with
    /// the most sockets has, and no more than `shards`; and one more, the last, of those that stay open
    /// through a drain, if there are any.
    pub(crate) fn all(
        listeners: impl Iterator<Item = (Vec<AnyListener>, bool)>,
        shards: usize,
    ) -> Vec<Self> {
        let mut sets: Vec<Listeners> = vec![Listeners::default()];
        let mut kept_open = Listeners::default();
        for (address, (sockets, keeps_open)) in listeners.enumerate() {
            let count = sockets.len().min(shards);
            sets.resize_with(sets.len().max(count), Listeners::default);
            // Of a predecessor's there may be more, or less, than there are shards.
            let is_sharded = shards > 1 && count == shards;
            for (number, listener) in sockets.into_iter().enumerate() {
                let set = match keeps_open {
                    true => &mut kept_open,
                    false => &mut sets[number % shards],
                };
                let address = address as u16;
                set.all
                    .push(BoundListener::new(listener, address, is_sharded));
            }
        }
        let new = |listeners: Listeners, keeps_open| Self {
            listeners: Mutex::new(listeners),
            keeps_open,
            #[cfg(feature = "_ready")]
            began: Flag::default(),
        };
        let kept_open = (!kept_open.all.is_empty()).then(|| new(kept_open, true));
        let sets = sets.into_iter().map(|set| new(set, false));
        sets.chain(kept_open).collect()
    }

    /// Polls for the next peer of any listener, in the accept loop of this set. The listeners are
    /// asked in turn, and keep the loop's waker.
    pub(crate) fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Accepted>> {
        self.in_turn(Some(cx.waker()), |listener| match listener {
            Asked::Socket(listener) => listener.poll_accept(cx),
            Asked::Custom(listener) => listener.poll_accept(cx),
        })
    }

    /// The next peer that is queued, for the accept loop of another set; `Pending` where there is
    /// none, and no waker is kept.
    pub(crate) fn try_accept(&self) -> Poll<io::Result<Accepted>> {
        self.in_turn(None, |listener| {
            pending_if_empty(match listener {
                Asked::Socket(listener) => listener.try_accept(),
                Asked::Custom(listener) => listener.try_accept(),
            })
        })
    }

    /// Asks the listeners for a peer, beginning behind the one that gave the last. `acceptor` is the
    /// waker of this set's accept loop.
    #[inline]
    fn in_turn(
        &self,
        acceptor: Option<&Waker>,
        mut ask: impl FnMut(Asked<'_>) -> Poll<io::Result<(Incoming, Address)>>,
    ) -> Poll<io::Result<Accepted>> {
        // Dropped after the lock.
        let _old_acceptor;
        let mut listeners = lock(&self.listeners);
        // Before any listener is looked at: what is added, or is to be closed, from here on wakes it.
        _old_acceptor = acceptor.and_then(|waker| listeners.keep_acceptor(waker));
        let (first, mut count) = (listeners.next, listeners.all.len());
        let mut step = 0;
        while step < count {
            let index = (first + step) % count;
            step += 1;
            let Some(BoundListener {
                listener,
                origin,
                ending,
            }) = listeners.all.get_mut(index)
            else {
                // The listeners were closed while one of the user's own was asked.
                return Poll::Pending;
            };
            let (origin, is_ending) = (*origin, ending.is_some());
            let is_last = ending.is_some_and(|ending| ending.is_last);
            let accepted = match listener {
                AnyListener::Socket(_) if ending.is_some_and(|ending| ending.left == 0) => {
                    Poll::Pending
                }
                // A worker's listener that is pending has waited for news, and not looked.
                AnyListener::Socket(listener) if is_last => pending_if_empty(listener.try_accept()),
                AnyListener::Socket(listener) => ask(Asked::Socket(&mut **listener)),
                AnyListener::Custom(listener) => {
                    let listener = listener.clone();
                    drop(listeners);
                    let accepted = match is_last {
                        true => pending_if_empty(listener.sweep()),
                        false => ask(Asked::Custom(&*listener)),
                    };
                    // Outside the lock: if the set was closed meanwhile, this is the last owner.
                    drop(listener);
                    listeners = lock(&self.listeners);
                    accepted
                }
            };
            if let Poll::Ready(accepted) = accepted {
                let is_closed = listeners.is_closed;
                listeners.next = index + 1;
                // Only a listener that was asked under the lock has an end that counts.
                if is_ending {
                    listeners.count_down(index, origin.address);
                }
                drop(listeners);
                // Without the lock: a peer that comes when the set is closed is dropped here.
                return match is_closed {
                    true => Poll::Pending,
                    false => Poll::Ready(origin.accepted(accepted)),
                };
            }
            if is_last {
                let closed = listeners.take(index, origin.address);
                drop(listeners);
                drop(closed);
                listeners = lock(&self.listeners);
                // From the beginning: the numbers of those behind it have changed.
                (count, step) = (listeners.all.len(), 0);
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
        let mut listeners = lock(&self.listeners);
        let BoundListener {
            listener, origin, ..
        } = listeners.all.get_mut(index)?;
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
        let listeners = lock(&self.listeners);
        let addresses = listeners
            .all
            .iter()
            .filter_map(BoundListener::handshakes_at);
        addresses.collect()
    }

    /// Shuts all listeners: new peers are refused, and queued ones can still be accepted.
    pub(crate) fn shut(&self) {
        let (mut custom, mut errors) = (Vec::new(), Vec::new());
        {
            let mut listeners = lock(&self.listeners);
            listeners.is_shut = true;
            for BoundListener {
                listener, origin, ..
            } in &mut listeners.all
            {
                match listener {
                    _ if !origin.owner.is_this_process() => {}
                    AnyListener::Socket(listener) => errors.extend(listener.shut().err()),
                    AnyListener::Custom(listener) => custom.push(listener.clone()),
                }
            }
        }
        custom.iter().for_each(|listener| listener.shut());
        errors.iter().for_each(log_not_shut);
    }

    /// Closes all listeners, or those at which no handshake can be under way.
    pub(crate) fn close(&self, keeps_handshakes: bool) {
        let closed: Vec<_> = {
            let mut listeners = lock(&self.listeners);
            let all = std::mem::take(&mut listeners.all).into_iter();
            let is_done = |it: &BoundListener| !keeps_handshakes || it.handshakes_at().is_none();
            let (mut closed, kept): (Vec<_>, _) = all.partition(is_done);
            listeners.all = kept;
            closed.iter_mut().for_each(BoundListener::end);
            let mut acceptor = None;
            if listeners.all.is_empty() {
                listeners.is_closed = true;
                acceptor = listeners.acceptor.take();
            }
            drop(listeners);
            drop(acceptor);
            closed
        };
        assert_unlocked();
        drop(closed);
    }

    /// Closes the descriptors and does nothing else, in a process that was forked from the owner's.
    /// A listener of the user's own may do anything when it is dropped, so it stays as it is.
    pub(crate) fn leave(&self) {
        // A thread that had it locked is not in this process.
        let Ok(mut listeners) = self.listeners.try_lock() else {
            return;
        };
        let all = std::mem::take(&mut listeners.all);
        listeners.is_closed = true;
        // Its task is the owner's, too.
        std::mem::forget(listeners.acceptor.take());
        drop(listeners);
        for BoundListener { listener, .. } in all {
            match listener {
                AnyListener::Socket(listener) => listener.leave(),
                AnyListener::Custom(listener) => std::mem::forget(listener),
            }
        }
    }

    /// Whether all listeners are closed.
    pub(crate) fn is_closed(&self) -> bool {
        lock(&self.listeners).is_closed
    }

    /// Calls `each` with the number of each listener's address, whether it is shut, and how many peers
    /// are queued at it, where the system tells.
    pub(crate) fn for_each(&self, mut each: impl FnMut(u16, bool, Option<u32>)) {
        let listeners = lock(&self.listeners);
        for it in &listeners.all {
            let queued = match &it.listener {
                AnyListener::Socket(listener) => listener.queued(),
                AnyListener::Custom(_) => None,
            };
            let is_shut = listeners.is_shut || it.ending.is_some();
            each(it.origin.address, is_shut, queued);
        }
    }
}

impl BoundListener {
    pub(super) fn new(listener: AnyListener, address: u16, is_sharded: bool) -> Self {
        Self {
            listener,
            origin: Origin {
                address,
                is_sharded,
                owner: Owner::this_process(),
            },
            ending: None,
        }
    }

    /// Ends the listening, before the descriptor is closed.
    pub(super) fn end(&mut self) {
        if let AnyListener::Socket(listener) = &mut self.listener {
            if self.origin.owner.is_this_process() {
                listener.end();
            }
        }
    }

    pub(super) fn handshakes_at(&self) -> Option<SocketAddr> {
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

fn pending_if_empty<T>(accepted: io::Result<T>) -> Poll<io::Result<T>> {
    match accepted {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
        accepted => Poll::Ready(accepted),
    }
}

pub(super) fn log_not_shut(error: &io::Error) {
    log::warn!(target: "gracious", "cannot shut a listener as it should be: {error}");
}
