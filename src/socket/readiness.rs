//! The one word that says all a read or a write has to know, and the wakers that a change of it
//! concerns.
//!
//! ```text
//! bit  0 … 31   flags: what was asked of the connection and what has become of it (`flag`)
//! bit 32        READ_CLOSED     the peer has ended, or the connection is broken
//! bit 33        WRITE_BLOCKED   the last write found no room
//! bit 34        WRITE_INTEREST  the driver reports room to write
//! bit 35 … 63   tick            counted up by every event of the driver
//! ```
//!
//! 1. A future that waits registers its waker first and looks at the word again afterwards; whoever
//!    changes the word changes it first and looks for wakers afterwards. Both sides put a `SeqCst`
//!    operation between the two acts, so one of them sees the other. With the acts swapped on either
//!    side, a change between them wakes nobody.
//! 2. The upper half is written by the driver's events and by the one write half; the flags by
//!    whoever has a reason to. All of it by read-modify-write operations: none overwrites another.

use std::task::Waker;

use crate::sync::OnceLock;
use crate::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use crate::sync::atomic::{AtomicU8, AtomicU64};

/// The flags, the lower half of the word.
pub(crate) mod flag {
    /// The connection was asked to come to an end, by a drain or by the connection's own limits.
    pub(crate) const DRAINING: u64 = 1;
    /// It was asked before its first byte came, and the grace for that byte is not over.
    pub(crate) const FIRST_BYTE_GRACE: u64 = 1 << 1;
    /// The connection is aborted: its handler is dropped, every operation fails.
    pub(crate) const ABORT: u64 = 1 << 2;
    /// A limit of time ended the connection's reads and writes.
    pub(crate) const EXPIRED: u64 = 1 << 3;
    /// The read half exists.
    pub(crate) const READER: u64 = 1 << 4;
    /// The write half exists.
    pub(crate) const WRITER: u64 = 1 << 5;
    /// The halves are apart and may be on two threads.
    pub(crate) const SPLIT: u64 = 1 << 6;
    /// A read has returned the peer's end.
    pub(crate) const PEER_ENDED: u64 = 1 << 7;
    /// A read was ended by the drain.
    pub(crate) const DRAIN_ENDED: u64 = 1 << 8;
    /// Our end was sent.
    pub(crate) const FINISHED: u64 = 1 << 9;
    /// Declared: never idle, so reads never end early.
    pub(crate) const NEVER_IDLE: u64 = 1 << 10;
    /// Declared: idle when no busy guard lives and all input is consumed.
    pub(crate) const UNGUARDED: u64 = 1 << 11;
    /// The task was last polled with another waker than its first.
    pub(crate) const TASK_OTHER_WAKER: u64 = 1 << 12;
    /// The handler has taken the socket out of the server.
    pub(crate) const DETACHED: u64 = 1 << 13;
    /// The connection's end is in the ledger; who ends it later does not count it again.
    pub(crate) const COUNTED: u64 = 1 << 14;
    /// The connection has no handler yet, for want of a permit.
    pub(crate) const QUEUED: u64 = 1 << 15;
    /// The handler is gone and the socket is being closed.
    pub(crate) const CLOSING: u64 = 1 << 16;
    /// The handler waits for its own server to close.
    pub(crate) const SELF_WAITER: u64 = 1 << 17;
    /// The connection is closed without the user's handler.
    pub(crate) const REJECTED: u64 = 1 << 18;
    /// The log has said that the handler blocks a thread.
    #[cfg(target_os = "linux")]
    pub(crate) const BLOCKED: u64 = 1 << 19;
    /// The socket needs nothing more.
    pub(crate) const CLOSED: u64 = 1 << 20;
    /// The connection counts against `max_per_peer`.
    pub(crate) const HAS_PEER_PERMIT: u64 = 1 << 21;
    /// The read half waits with the task's first waker.
    pub(crate) const READER_TASK_WAKER: u64 = 1 << 22;
    /// The read half waits with another waker.
    pub(crate) const READER_OTHER_WAKER: u64 = 1 << 23;
    /// The write half waits with the task's first waker.
    pub(crate) const WRITER_TASK_WAKER: u64 = 1 << 24;
    /// The write half waits with another waker.
    pub(crate) const WRITER_OTHER_WAKER: u64 = 1 << 25;
    /// The peer's IPv4 address came as one of IPv6, as to a dual-stack listener.
    pub(crate) const MAPPED: u64 = 1 << 26;
    /// Declared: idle when no byte has moved for a while.
    pub(crate) const QUIET: u64 = 1 << 27;
    /// When the connection is idle was declared, or need not be.
    pub(crate) const DECLARED: u64 = 1 << 28;
    /// When a byte moves is recorded.
    pub(crate) const WATCHED: u64 = 1 << 29;
    /// The connection is being closed and has given its permit to another.
    pub(crate) const APART: u64 = 1 << 30;

    /// The connection's bytes go through TLS, whose state is in its cold data.
    pub(crate) const TLS: u64 = 1 << 31;

    /// Operations fail: the server has ended the connection.
    pub(crate) const ENDED_BY_SERVER: u64 = ABORT | EXPIRED;
}

/// The peer has ended, or the connection is broken: reads go on to an end.
#[cfg(target_os = "linux")]
pub(crate) const READ_CLOSED: u64 = 1 << 32;
/// The last write found no room.
#[cfg(target_os = "linux")]
const WRITE_BLOCKED: u64 = 1 << 33;
/// The driver reports room to write.
#[cfg(target_os = "linux")]
pub(crate) const WRITE_INTEREST: u64 = 1 << 34;
/// One event.
#[cfg(target_os = "linux")]
const TICK: u64 = 1 << 35;

/// How many events the driver has reported, modulo 2^29.
#[cfg(target_os = "linux")]
pub(crate) fn ticks(word: u64) -> u32 {
    (word / TICK) as u32
}

/// Whether a write found no room, as of this word.
#[cfg(target_os = "linux")]
pub(crate) fn is_write_blocked(word: u64) -> bool {
    word & WRITE_BLOCKED != 0
}

/// Whether the bytes go through TLS, as of this word; without the feature the compiler knows.
pub(crate) fn is_tls(word: u64) -> bool {
    cfg!(feature = "_tls") && word & flag::TLS != 0
}

/// A future that a connection may have to wake.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Waiter {
    Reader,
    Writer,
    Task,
}

impl Waiter {
    /// The flag that this waiter waits with the task's first waker. The task itself does so as long
    /// as it has no other.
    pub(crate) const fn task_waker_flag(self) -> u64 {
        match self {
            Self::Reader => flag::READER_TASK_WAKER,
            Self::Writer => flag::WRITER_TASK_WAKER,
            Self::Task => 0,
        }
    }

    /// The flag that this waiter waits with another waker.
    pub(crate) const fn other_waker_flag(self) -> u64 {
        match self {
            Self::Reader => flag::READER_OTHER_WAKER,
            Self::Writer => flag::WRITER_OTHER_WAKER,
            Self::Task => flag::TASK_OTHER_WAKER,
        }
    }

    /// Whether this waiter waits with the task's first waker, by this word.
    const fn has_task_waker(self, word: u64) -> bool {
        let flags = self.task_waker_flag() | self.other_waker_flag();
        word & flags == self.task_waker_flag()
    }
}

/// A connection's word and its task's first waker.
///
/// Most tasks are polled with one waker all their life, and most halves with their task's: so one
/// waker and two flags serve all three waiters. Other wakers are few, and in the connection's cold
/// data: room for them here would cost every connection 8 bytes.
#[derive(Debug)]
pub(crate) struct Readiness {
    /// The connection's id, by which the driver tells this connection from an earlier one in the
    /// same slot.
    pub(crate) id: u64,
    word: AtomicU64,
    task_waker: OnceLock<Waker>,
}

impl Readiness {
    pub(crate) fn new(id: u64, flags: u64) -> Self {
        Self {
            id,
            word: AtomicU64::new(flags),
            task_waker: OnceLock::new(),
        }
    }

    #[inline]
    pub(crate) fn word(&self) -> u64 {
        self.word.load(SeqCst)
    }

    #[inline]
    pub(crate) fn has(&self, flags: u64) -> bool {
        self.word() & flags != 0
    }

    /// Sets flags; gives the word as it was.
    pub(crate) fn set(&self, flags: u64) -> u64 {
        self.word.fetch_or(flags, SeqCst)
    }

    /// Clears flags; gives the word as it was.
    pub(crate) fn clear(&self, flags: u64) -> u64 {
        self.word.fetch_and(!flags, SeqCst)
    }

    /// Marks the connection as detached, unless it was aborted before; `false` then. One operation:
    /// an abort either finds the mark, and leaves the socket alone, or has shut it down.
    pub(crate) fn detach(&self) -> bool {
        let mark = |word| (word & flag::ABORT == 0).then_some(word | flag::DETACHED);
        self.word.fetch_update(SeqCst, SeqCst, mark).is_ok()
    }

    /// Whether `waker` is the task's first; and if so, whether `waiter` is registered with it.
    #[inline]
    pub(crate) fn is_registered(&self, waiter: Waiter, waker: &Waker) -> (bool, bool) {
        let first = self.task_waker.get();
        let is_first = first.is_some_and(|first| first.will_wake(waker));
        (is_first, is_first && waiter.has_task_waker(self.word()))
    }

    /// Keeps `waker` as the task's first; `false` where there is one already.
    pub(crate) fn set_task_waker(&self, waker: &Waker) -> bool {
        self.task_waker.get().is_none() && self.task_waker.set(waker.clone()).is_ok()
    }

    /// The task's first waker, if `waiter` waits with that one.
    #[inline]
    pub(crate) fn task_waker(&self, waiter: Waiter) -> Option<&Waker> {
        if waiter.has_task_waker(self.word()) {
            self.task_waker.get()
        } else {
            None
        }
    }
}

#[cfg(target_os = "linux")]
impl Readiness {
    /// Records an event of the driver, and calls `concerns` with each waiter to wake.
    #[inline]
    pub(crate) fn on_event(
        &self,
        readable: bool,
        writable: bool,
        read_closed: bool,
        mut concerns: impl FnMut(Waiter),
    ) {
        let set = READ_CLOSED * u64::from(read_closed);
        let clear = WRITE_BLOCKED * u64::from(writable);
        let mut seen = self.word.load(Relaxed);
        while let Err(newer) = self.word.compare_exchange_weak(
            seen,
            (seen.wrapping_add(TICK) | set) & !clear,
            SeqCst,
            Relaxed,
        ) {
            seen = newer;
        }
        if readable {
            concerns(Waiter::Reader);
        }
        // Once the driver was asked for room it reports it with every input.
        if writable && seen & WRITE_BLOCKED != 0 {
            concerns(Waiter::Writer);
            // Its task may be what sends.
            if is_tls(seen) {
                concerns(Waiter::Task);
            }
        }
    }

    /// Records that a write found no room, unless there has been an event since `seen`; `false`
    /// then. An event that came between the write and this call may be the room itself, which no
    /// second event would report.
    pub(crate) fn mark_write_blocked(&self, seen: u64) -> bool {
        let mut now = seen;
        // A change of the flags is no event.
        while ticks(now) == ticks(seen) {
            match self.word.compare_exchange_weak(
                now,
                now | WRITE_BLOCKED | WRITE_INTEREST,
                SeqCst,
                Acquire,
            ) {
                Ok(_) => return true,
                Err(newer) => now = newer,
            }
        }
        false
    }

    /// Takes [`mark_write_blocked`](Self::mark_write_blocked) back: the driver could not be asked to
    /// report room, so that the next write has to try again.
    pub(crate) fn unmark_write_blocked(&self) {
        self.word
            .fetch_and(!(WRITE_BLOCKED | WRITE_INTEREST), SeqCst);
    }
}

/// What one half of a connection says of itself, stored by that half alone.
#[derive(Debug, Default)]
pub(crate) struct HalfState(AtomicU8);

impl HalfState {
    /// The half waits for its peer.
    pub(crate) const WAITING: u8 = 1;
    /// The reactor was asked to wake this half, and its answer has not been taken yet. Taking the
    /// answer first saves the call that would only find nothing, and a second one after a stale
    /// answer.
    pub(crate) const ARMED: u8 = 1 << 1;
    /// The handler has not consumed all that the read half received.
    pub(crate) const UNREAD: u8 = 1 << 2;
    /// `answered` was raised for a write that has not completed (it waits, or it failed), so the
    /// connection is still busy.
    pub(crate) const UNANSWERED: u8 = 1 << 3;
    /// The write half is dropped because it becomes a part of the whole again.
    pub(crate) const REUNITED: u8 = 1 << 4;

    #[inline]
    pub(crate) fn has(&self, bits: u8) -> bool {
        self.0.load(Acquire) & bits != 0
    }

    #[inline]
    pub(crate) fn set(&self, bits: u8) {
        self.change(0, bits);
    }

    #[inline]
    pub(crate) fn clear(&self, bits: u8) {
        self.change(bits, 0);
    }

    #[inline]
    pub(crate) fn change(&self, clear: u8, set: u8) {
        self.0.store(self.0.load(Relaxed) & !clear | set, Release);
    }
}
