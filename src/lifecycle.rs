//! The states of a server, and the latch that stops it: a phase that only rises, the first reason,
//! the earliest deadline.
//!
//! 1. `Latch::advance` raises the phase first and notifies the event afterwards; a future that
//!    waits begins to listen first and looks at the phase afterwards. Swapped on either side, a
//!    rise between the two acts would wake no future.
//! 2. The phase never falls, so of any number of threads that raise it to the same height exactly
//!    one is told by `advance` that it has.
//! 3. Only futures wait. A request for a shutdown takes one lock for a few instructions, so it can
//!    be made from any thread, and from a handler.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use event_listener::{Event, EventListener};

use crate::sync::atomic::{AtomicBool, AtomicU8, Ordering::SeqCst};
use crate::sync::{Mutex, MutexGuard, listen, lock, notify};

/// Why a server stopped. The first reason is kept; later ones are ignored.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// [`Handle::shutdown`](crate::Handle::shutdown), or another of the handle's methods.
    Requested,
    /// [`Handle::shutdown_because`](crate::Handle::shutdown_because), in the caller's words.
    Because(String),
    /// A signal, by its name (`SIGTERM`).
    Signal(&'static str),
    /// The work given to [`Server::serve_until`](crate::Server::serve_until) came to its end.
    WorkEnded,
    /// The future of [`Server::serve`](crate::Server::serve), the
    /// [`Running`](crate::Running) or the [`Server`](crate::Server) itself was dropped.
    Dropped,
    /// The runtime dropped the server's task.
    RuntimeGone,
    /// A listener could not go on, with the error it met.
    Listener(String),
    /// A successor has taken the listening sockets over.
    #[cfg(all(feature = "handover", target_os = "linux"))]
    HandedOver,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Requested => f.write_str("requested"),
            Self::Because(reason) => f.write_str(reason),
            Self::Signal(name) => f.write_str(name),
            Self::WorkEnded => f.write_str("its work ended"),
            Self::Dropped => f.write_str("dropped"),
            Self::RuntimeGone => f.write_str("the runtime is gone"),
            Self::Listener(error) => write!(f, "a listener failed: {error}"),
            #[cfg(all(feature = "handover", target_os = "linux"))]
            Self::HandedOver => f.write_str("handed over"),
        }
    }
}

impl From<&str> for Reason {
    fn from(reason: &str) -> Self {
        Self::Because(reason.to_owned())
    }
}

impl From<String> for Reason {
    fn from(reason: String) -> Self {
        Self::Because(reason)
    }
}

/// Where a server is in its life. It never goes back, except between `Serving` and `Paused`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum State {
    /// Listening, and not yet accepting.
    Bound,
    /// Accepting.
    Serving,
    /// Serving the open connections; new peers wait in the kernel's queue.
    Paused,
    /// Asked to stop; the open connections finish.
    Draining,
    /// Every handler is being dropped, every socket closed.
    Aborting,
    /// Nothing is left; the report is there.
    Closed,
}

impl State {
    /// How far this state is on the way to the end; of two states the one with the higher rank is
    /// the later.
    pub(crate) fn rank(self) -> u8 {
        match self {
            Self::Bound => 0,
            Self::Serving | Self::Paused => 1,
            Self::Draining => 2,
            Self::Aborting => 3,
            Self::Closed => 4,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bound => "bound",
            Self::Serving => "serving",
            Self::Paused => "paused",
            Self::Draining => "draining",
            Self::Aborting => "aborting",
            Self::Closed => "closed",
        })
    }
}

/// A [`State`] without what can change back: a paused server is `Serving`, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Phase {
    Bound,
    Serving,
    Draining,
    Aborting,
    Closed,
}

impl Phase {
    /// All phases, each at the index that is its number.
    const ALL: [Self; 5] = [
        Self::Bound,
        Self::Serving,
        Self::Draining,
        Self::Aborting,
        Self::Closed,
    ];
}

/// Where a server is in its life, and what has been asked of it.
#[derive(Debug, Default)]
pub(crate) struct Latch {
    /// A `Phase`, by its number.
    phase: AtomicU8,
    /// A drain has come to the listeners that stay open through it.
    last: AtomicBool,
    /// For each phase, at its number: notified once, when the phase has risen to it or above.
    reached: [Event; Phase::ALL.len()],
    /// Notified at every rise of the phase, and at every change of the request that moves a
    /// deadline.
    changed: Event,
    request: Mutex<Request>,
}

/// What has been asked of a server, and when the steps of its stop were made.
#[derive(Clone, Debug, Default)]
pub(crate) struct Request {
    pub(crate) reason: Option<Reason>,
    /// When the first request to stop came.
    pub(crate) asked: Option<Instant>,
    /// The earliest instant that a `shutdown_within` named.
    pub(crate) before: Option<Instant>,
    /// When all listeners had stopped taking new peers; the configured deadline runs from here.
    pub(crate) shut: Option<Instant>,
    /// When all connections were aborted.
    pub(crate) aborted: Option<Instant>,
}

impl Request {
    /// The earliest of the deadlines that were given: the configured `span` after the listeners
    /// were `shut`, and the instant that a `shutdown_within` named.
    pub(crate) fn deadline(
        &self,
        span: Option<Duration>,
        shut: Option<Instant>,
    ) -> Option<Instant> {
        let configured = shut
            .zip(span)
            .and_then(|(shut, span)| shut.checked_add(span));
        earliest(configured, self.before)
    }
}

impl Latch {
    pub(crate) fn phase(&self) -> Phase {
        // `SeqCst` pairs with the `fetch_max` in `advance`: a thread that began to listen before
        // this load sees the new phase here, or is notified of it (invariant 1).
        Phase::ALL[usize::from(self.phase.load(SeqCst))]
    }

    /// Raises the phase; `false` where it was as high already.
    pub(crate) fn advance(&self, to: Phase) -> bool {
        // `SeqCst` pairs with the load in `phase`.
        let from = self.phase.fetch_max(to as u8, SeqCst);
        let risen = from < to as u8;
        if risen {
            let passed = usize::from(from) + 1..=to as usize;
            self.reached[passed].iter().for_each(notify);
            notify(&self.changed);
        }
        risen
    }

    /// A drain comes to the listeners that stay open through it, and to their connections.
    pub(crate) fn come_to_the_last(&self) {
        // As a rise of the phase: see invariant 1.
        self.last.store(true, SeqCst);
        notify(&self.changed);
    }

    /// Whether it has, or all are aborted.
    pub(crate) fn has_come_to_the_last(&self) -> bool {
        self.last.load(SeqCst) || self.phase() >= Phase::Aborting
    }

    /// Waits until it has.
    pub(crate) async fn reached_the_last(&self) {
        while !self.has_come_to_the_last() {
            let changed = self.listen();
            if self.has_come_to_the_last() {
                return;
            }
            changed.await;
        }
    }

    /// Asks for a shutdown, over at the instant `before` if there is one; `true` for the first
    /// request of all.
    pub(crate) fn ask(&self, reason: Reason, now: Instant, before: Option<Instant>) -> bool {
        let first = self.note(reason, now, before);
        if !self.advance(Phase::Draining) && before.is_some() {
            // The drain is under way, and its deadline may be earlier now.
            notify(&self.changed);
        }
        first
    }

    /// Records a request, and leaves the phase as it is; `true` for the first request of all.
    pub(crate) fn note(&self, reason: Reason, now: Instant, before: Option<Instant>) -> bool {
        let mut request = self.request();
        request.before = earliest(request.before, before);
        let first = request.reason.is_none();
        if first {
            request.reason = Some(reason);
            request.asked = Some(now);
        }
        first
    }

    /// Records when the listeners were shut. The first call counts: the deadline runs from it.
    pub(crate) fn shut_at(&self, now: Instant) {
        self.request().shut.get_or_insert(now);
        notify(&self.changed);
    }

    pub(crate) fn request(&self) -> MutexGuard<'_, Request> {
        lock(&self.request)
    }

    /// Begins to listen for changes of the phase and of the request. The caller looks at both
    /// afterwards, not before: see invariant 1.
    pub(crate) fn listen(&self) -> EventListener {
        listen(&self.changed)
    }

    /// Waits until the phase is `phase` or above.
    ///
    /// An accept loop polls this for every peer, so a poll is mostly one look. Nothing notifies a
    /// phase's event before the phase is reached: as long as it is not, the listener is there still,
    /// with the waker of the poll that made it.
    pub(crate) async fn reached(&self, phase: Phase) {
        let mut last: Option<(Waker, EventListener)> = None;
        poll_fn(|cx| {
            if self.phase() >= phase {
                return Poll::Ready(());
            }
            if let Some((waker, _listener)) = &last {
                if waker.will_wake(cx.waker()) {
                    return Poll::Pending;
                }
            }
            let listener = listen(&self.reached[phase as usize]);
            let (_, listener) = last.insert((cx.waker().clone(), listener));
            // Invariant 1: the look comes after the listener has the waker.
            if Pin::new(listener).poll(cx).is_ready() || self.phase() >= phase {
                return Poll::Ready(());
            }
            Poll::Pending
        })
        .await;
    }
}

/// The earlier of two instants, each of which may be missing.
fn earliest(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    one.into_iter().chain(other).min()
}

// Not where the latch is compiled against a model of memory: `tests/models`.
#[cfg(all(test, not(loom)))]
mod tests {
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::task::{Context, Wake};

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    /// A wake-up for a lower phase would use the listener up, and a poll that only looks would not
    /// make another.
    #[test]
    fn a_future_is_woken_by_the_phase_that_it_waits_for() {
        let latch = Latch::default();
        let woken = Arc::new(Woken::default());
        let waker = woken.clone().into();
        let mut cx = Context::from_waker(&waker);
        let mut closed = pin!(latch.reached(Phase::Closed));
        assert!(closed.as_mut().poll(&mut cx).is_pending());
        latch.advance(Phase::Draining);
        assert_eq!(woken.0.load(SeqCst), 0);
        assert!(closed.as_mut().poll(&mut cx).is_pending());
        latch.advance(Phase::Closed);
        assert_eq!(woken.0.load(SeqCst), 1);
        assert!(closed.as_mut().poll(&mut cx).is_ready());
    }

    /// A task may go to another executor, and a future to another task.
    #[test]
    fn a_future_wakes_the_task_that_polled_it_last() {
        let latch = Latch::default();
        let wakers = [(); 2].map(|()| Arc::new(Woken::default()));
        let mut draining = pin!(latch.reached(Phase::Draining));
        for woken in &wakers {
            let waker = woken.clone().into();
            let mut cx = Context::from_waker(&waker);
            assert!(draining.as_mut().poll(&mut cx).is_pending());
        }
        latch.advance(Phase::Aborting);
        assert_eq!(wakers.map(|woken| woken.0.load(SeqCst)), [0, 1]);
    }
}
