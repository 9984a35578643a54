//! Whether a connection is idle or busy, by what it has declared and by what moves.
//!
//! Three counts decide where nothing else is declared: what was received, what of it the handler has
//! consumed, and what had been consumed when the last completed write began, which is what is
//! answered. Each is stored by one half alone, so no operation of either needs a read-modify-write.

use std::time::Duration;

use super::connection::ConnectionState;
use crate::config::Config;
use crate::idle::IdleWhen;
use crate::socket::readiness::{HalfState, Waiter, flag};
use crate::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use crate::sync::atomic::fence;
use crate::sync::nanos;

/// What the word of a new connection says of the server's configuration.
pub(super) fn declared_flags(config: &Config) -> u64 {
    let declared = config
        .idle_when
        .map_or(0, |when| idle_flags(when) | flag::DECLARED);
    let watched = if config.watches_idle() {
        flag::WATCHED
    } else {
        0
    };
    declared | watched
}

/// What the word says of a declaration.
fn idle_flags(when: IdleWhen) -> u64 {
    match when {
        IdleWhen::Answered => 0,
        IdleWhen::Unguarded => flag::UNGUARDED,
        IdleWhen::Quiet(_) => flag::QUIET | flag::WATCHED,
        IdleWhen::Never => flag::NEVER_IDLE,
    }
}

impl ConnectionState {
    /// A busy guard is made.
    pub(crate) fn begin_busy(&self) {
        self.cold().guards.fetch_add(1, SeqCst);
    }

    /// A busy guard is dropped.
    pub(crate) fn end_busy(&self) {
        // `SeqCst`, as the flag is: either the load below sees DRAINING, or the reader, which looks
        // after that was set, sees that the guard is gone.
        self.cold().guards.fetch_sub(1, SeqCst);
        if self.has(flag::DRAINING) {
            self.wake(Waiter::Reader);
        }
    }

    fn has_guards(&self) -> bool {
        self.cold
            .get()
            .is_some_and(|cold| cold.guards.load(SeqCst) > 0)
    }

    /// Declares when this connection is idle.
    pub(crate) fn idle_when(&self, when: IdleWhen) {
        if let IdleWhen::Quiet(span) = when {
            self.cold_locked().quiet = Some(span);
            self.set(flag::WATCHED);
            self.mark_activity();
        }
        self.clear(flag::NEVER_IDLE | flag::UNGUARDED | flag::QUIET);
        self.set(idle_flags(when) | flag::DECLARED);
        if self.has(flag::DRAINING) {
            self.wake(Waiter::Reader);
            self.wake_task();
        }
    }

    /// How long no byte has to move until a connection that declared `Quiet` is idle.
    pub(crate) fn quiet_span(&self) -> Duration {
        let own = self.existing_cold().and_then(|cold| cold.quiet);
        own.unwrap_or(match self.server.config.idle_when {
            Some(IdleWhen::Quiet(span)) => span,
            _ => Duration::ZERO,
        })
    }

    /// Called by the read half, which waits no longer: `bytes` were received.
    #[inline]
    pub(crate) fn mark_received(&self, bytes: usize) {
        // Before the count is stored: `is_busy` loads the count first, so whoever sees these bytes
        // counted sees that they are unread.
        self.reader.change(HalfState::WAITING, HalfState::UNREAD);
        let total = self.received.load(Relaxed) + bytes as u64;
        self.received.store(total, Release);
        self.mark_activity();
    }

    /// Called by the read half: the handler has consumed all that was received.
    #[inline]
    pub(crate) fn mark_consumed(&self) {
        self.reader.clear(HalfState::UNREAD);
    }

    /// Called by the write half when it begins to write: up to which received byte that write
    /// answers.
    #[inline]
    pub(crate) fn answerable(&self) -> u64 {
        // Loaded before the write: bytes that arrive later are not answered by it.
        let received = self.received.load(Acquire);
        if self.reader.has(HalfState::UNREAD) {
            return self.answered.load(Relaxed);
        }
        received
    }

    /// Called by the write half before it waits.
    pub(crate) fn before_wait(&self, answerable: u64) {
        self.writer.set(HalfState::WAITING);
        self.begin_answer(answerable);
    }

    /// Called by the write half when its write waits, or has been done in part. `UNANSWERED` is set
    /// before `answered` is raised: until the write is completed nothing counts as answered. Swapped,
    /// a drain between the two would take the connection for idle.
    pub(crate) fn begin_answer(&self, answerable: u64) {
        if self.answered.load(Relaxed) < answerable {
            self.writer.set(HalfState::UNANSWERED);
        }
        self.mark_answered(answerable);
    }

    /// Called by the write half: its write has answered what was received up to `answerable`.
    #[inline]
    pub(crate) fn mark_answered(&self, answerable: u64) {
        self.answered.store(answerable, Release);
    }

    /// Called by the write half after a write, with whether bytes moved: at a drain the read half may
    /// wait for just that.
    #[inline]
    pub(crate) fn after_write(&self, have_moved: bool) {
        // One look at the word for all that may concern others. A connection whose halves are together
        // has its reader on this thread: what that has seen of a drain is seen here.
        if self.has(flag::WATCHED | flag::SPLIT | flag::DRAINING) {
            self.tell_of_write(have_moved);
        }
    }

    #[inline(never)]
    fn tell_of_write(&self, have_moved: bool) {
        if have_moved {
            self.mark_activity();
        }
        // Pairs with the `SeqCst` read-modify-write that sets DRAINING: either this load sees the
        // flag, or the reader, which loads the counts after it was woken by whoever set the flag,
        // sees the answer.
        fence(SeqCst);
        if self.has(flag::DRAINING) {
            self.wake(Waiter::Reader);
        }
    }

    /// Whether the connection is inside a message, not between two.
    pub(crate) fn is_busy(&self) -> bool {
        // In this order: a write marks what it could not send first, and counts as an answer
        // afterwards.
        self.is_inside_message() || self.is_inside_tls() || self.is_handshaking()
    }

    fn is_inside_message(&self) -> bool {
        let word = self.word();
        let is_guarded = self.has_guards();
        if is_guarded || self.writer.has(HalfState::WAITING) {
            return true;
        }
        if word & (flag::UNGUARDED | flag::NEVER_IDLE) != 0 {
            return self.reader.has(HalfState::UNREAD);
        }
        if word & flag::QUIET != 0 {
            let quiet = self.server.uptime().saturating_sub(self.last_activity());
            return self.reader.has(HalfState::UNREAD) || quiet < self.quiet_span();
        }
        let received = self.received.load(Acquire);
        self.answered.load(Acquire) < received || self.writer.has(HalfState::UNANSWERED)
    }

    /// A byte moved, or a wait for one began.
    #[inline]
    pub(crate) fn mark_activity(&self) {
        if self.has(flag::WATCHED) {
            self.record_activity();
        }
    }

    #[inline(never)]
    fn record_activity(&self) {
        let now = nanos(self.server.uptime());
        self.cold().last_activity.store(now, Relaxed);
    }

    /// The uptime at which a byte last moved.
    pub(crate) fn last_activity(&self) -> Duration {
        Duration::from_nanos(self.cold().last_activity.load(Relaxed))
    }

    /// Whether either half waits for its peer.
    pub(crate) fn is_waiting(&self) -> bool {
        self.reader.has(HalfState::WAITING) || self.writer.has(HalfState::WAITING)
    }
}
