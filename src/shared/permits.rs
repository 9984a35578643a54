//! The permits under `max_connections`, and the connections that wait for one.
//!
//! 1. A permit is released, the limit raised or a pause ended first, and `released` is notified
//!    afterwards; a future that waits for a permit begins to listen first and looks for a permit
//!    afterwards. Swapped on either side, a change between the two acts would wake no future. The
//!    `SeqCst` loads and stores here are one side of that, with the fence in `sync::notify`.
//! 2. More permits may be in use than there are: a limit that is lowered takes none back, and a
//!    connection apart that needs its permit again takes one.
//! 3. A connection that is being closed and only waits for its peer's end gives its permit back and
//!    is counted apart, up to the limit once more: so there are never more than twice as many
//!    connections as the limit allows, and round trips keep no permit.

use std::collections::VecDeque;

use event_listener::Event;

use crate::sync::atomic::Ordering::SeqCst;
use crate::sync::atomic::{AtomicBool, AtomicUsize};
use crate::sync::{Mutex, lock, notify};

/// How many connections there may be, and how many there are with a permit.
#[derive(Debug)]
pub(crate) struct Permits {
    in_use: AtomicUsize,
    /// How many handshakes are under way, and how many of these connections have no permit.
    #[cfg(feature = "_handshake")]
    handshakes: AtomicUsize,
    #[cfg(feature = "_handshake")]
    handshakes_apart: AtomicUsize,
    /// How many connections are being closed and have given their permits back.
    apart: AtomicUsize,
    /// `usize::MAX` where there is no limit.
    max: AtomicUsize,
    /// No peer is accepted, whether or not there are permits.
    paused: AtomicBool,
    /// Notified when a permit may be free, when a pause begins or ends, and when a connection
    /// without a permit has ended.
    pub(crate) released: Event,
    /// Notified when a reservation came to nothing. Apart from `released`, which also ends the pause
    /// of an accept loop without descriptors: two such loops would wake each other without end.
    pub(super) returned: Event,
}

impl Permits {
    pub(super) fn new(max_connections: Option<usize>) -> Self {
        Self {
            in_use: AtomicUsize::new(0),
            #[cfg(feature = "_handshake")]
            handshakes: AtomicUsize::new(0),
            #[cfg(feature = "_handshake")]
            handshakes_apart: AtomicUsize::new(0),
            apart: AtomicUsize::new(0),
            max: AtomicUsize::new(max_connections.unwrap_or(usize::MAX)),
            paused: AtomicBool::new(false),
            released: Event::new(),
            returned: Event::new(),
        }
    }

    /// Whether all permits are in use.
    pub(super) fn is_full(&self) -> bool {
        self.in_use.load(SeqCst) >= self.max.load(SeqCst)
    }

    /// Whether there is a limit at all.
    pub(crate) fn is_limited(&self) -> bool {
        self.max.load(SeqCst) < usize::MAX
    }

    /// Changes the limit; connections that have a permit keep it.
    pub(crate) fn set_max(&self, max_connections: Option<usize>) {
        self.max
            .store(max_connections.unwrap_or(usize::MAX), SeqCst);
        notify(&self.released);
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused.load(SeqCst)
    }

    pub(super) fn set_paused(&self, paused: bool) {
        self.paused.store(paused, SeqCst);
        notify(&self.released);
    }

    /// Takes a permit; `false` where there is none.
    pub(super) fn acquire(&self) -> bool {
        let one_more = |in_use| (in_use < self.max.load(SeqCst)).then_some(in_use + 1);
        self.in_use.fetch_update(SeqCst, SeqCst, one_more).is_ok()
    }

    /// Gives a permit back, for the next connection.
    pub(super) fn release(&self) {
        self.end(true, false);
        notify(&self.released);
    }

    /// Exchanges a permit for a place among the connections apart; `false` where there is none. The
    /// caller notifies `released`.
    pub(crate) fn set_apart(&self) -> bool {
        let one_more = |apart| (apart < self.max.load(SeqCst)).then_some(apart + 1);
        let is_apart = self.apart.fetch_update(SeqCst, SeqCst, one_more).is_ok();
        if is_apart {
            self.in_use.fetch_sub(1, SeqCst);
        }
        is_apart
    }

    /// Exchanges a place among the connections apart for a permit, also above the limit.
    pub(crate) fn take_back(&self) {
        self.in_use.fetch_add(1, SeqCst);
        self.apart.fetch_sub(1, SeqCst);
    }

    /// How many connections are apart.
    pub(super) fn apart(&self) -> usize {
        self.apart.load(SeqCst)
    }

    /// A connection has ended that had a permit, or was apart, or neither. As
    /// [`release`](Self::release), under a lock: the caller notifies `released` afterwards.
    pub(super) fn end(&self, had_permit: bool, was_apart: bool) {
        if had_permit {
            self.in_use.fetch_sub(1, SeqCst);
        }
        if was_apart {
            self.apart.fetch_sub(1, SeqCst);
        }
    }

    /// A handshake begins; gives whether its connection may do without a permit.
    #[cfg(feature = "_handshake")]
    pub(crate) fn begin_handshake(&self) -> bool {
        self.handshakes.fetch_add(1, SeqCst);
        let one_more = |apart| (apart < self.max.load(SeqCst)).then_some(apart + 1);
        let apart = &self.handshakes_apart;
        apart.fetch_update(SeqCst, SeqCst, one_more).is_ok()
    }

    /// A handshake has ended, after its connection was launched, queued or closed.
    #[cfg(feature = "_handshake")]
    pub(crate) fn end_handshake(&self, is_apart: bool) {
        if is_apart {
            self.handshakes_apart.fetch_sub(1, SeqCst);
        }
        self.handshakes.fetch_sub(1, SeqCst);
        notify(&self.released);
    }

    /// How many handshakes are under way.
    #[cfg(feature = "_handshake")]
    pub(crate) fn handshakes(&self) -> u64 {
        self.handshakes.load(SeqCst) as u64
    }

    /// Takes a permit for a peer that is still to be found; `None` where there is none.
    pub(crate) fn reserve(&self) -> Option<Reservation<'_>> {
        // Made only with a permit: a reservation that is dropped returns one.
        self.acquire().then(|| Reservation(self))
    }
}

/// A permit for a peer that is still to be found. It is returned when this is dropped.
#[derive(Debug)]
pub(crate) struct Reservation<'a>(&'a Permits);

impl Reservation<'_> {
    /// The peer was found, and has the permit.
    pub(super) fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.0.in_use.fetch_sub(1, SeqCst);
        notify(&self.0.returned);
    }
}

/// Connections that wait for a permit, in the order in which they came.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    waiting: Mutex<VecDeque<T>>,
    /// The length of `waiting`, stored under its lock and loaded without: it is 0 nearly always,
    /// and then no lock is taken. The loads are `SeqCst` like the stores: `launch_queued` looks for
    /// accept loops, which push, before it looks here.
    len: AtomicUsize,
}

impl<T> Queue<T> {
    pub(crate) fn is_empty(&self) -> bool {
        self.len.load(SeqCst) == 0
    }

    /// Adds a connection behind all others.
    pub(crate) fn push(&self, connection: T) {
        let mut waiting = lock(&self.waiting);
        waiting.push_back(connection);
        self.len.store(waiting.len(), SeqCst);
    }

    /// Takes the first connection, if `may` is true of it.
    pub(super) fn pop_if(&self, may: impl FnOnce(&T) -> bool) -> Option<T> {
        if self.is_empty() {
            return None;
        }
        let mut waiting = lock(&self.waiting);
        if !may(waiting.front()?) {
            return None;
        }
        let first = waiting.pop_front();
        self.len.store(waiting.len(), SeqCst);
        first
    }

    /// Takes all connections.
    pub(crate) fn take_all(&self) -> VecDeque<T> {
        let mut waiting = lock(&self.waiting);
        self.len.store(0, SeqCst);
        std::mem::take(&mut *waiting)
    }
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self {
            waiting: Mutex::default(),
            len: AtomicUsize::new(0),
        }
    }
}

// Not where the permits are compiled against a model of memory: `tests/models`.
#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_reservation_is_returned_once_if_it_was_made() {
        let permits = Permits::new(Some(1));
        let reservation = permits.reserve().unwrap();
        for _ in 0..2 {
            assert!(permits.reserve().is_none());
            assert!(permits.is_full());
        }
        drop(reservation);
        assert!(!permits.is_full());
        permits.reserve().unwrap().keep();
        assert!(permits.is_full());
        permits.release();
        assert!(!permits.is_full());
    }
}
