//! A turn: how much a task may read and write before the other tasks of its thread have their
//! turns.
//!
//! 1. A turn is 32 operations or 64 KiB, whichever is less; the operation that reaches the limit is
//!    the last. What a read takes from the connection's own buffer is no operation.
//! 2. A read or a write that finds the turn used up does nothing, wakes its task and is pending.
//!    With that wake-up the next turn begins. So a turn needs nothing of the executor: a future
//!    that is polled by `block_on` inside another task goes on, too.
//! 3. All that one thread polls shares a turn, whichever connections it is for. A handler's task
//!    begins a new turn whenever it is polled, so that it does not yield for what other tasks have
//!    done.

use std::cell::Cell;
use std::task::{Context, Poll};

/// How many bytes a turn has, and how many one operation moves at most.
pub(crate) const TURN: usize = 64 * 1024;

/// How many bytes of a turn an operation takes that moves fewer.
const OPERATION: usize = TURN / 32;

thread_local! {
    /// What is left of this thread's turn, in bytes.
    static LEFT: Cell<isize> = const { Cell::new(TURN as isize) };
    /// A turn was used up since [`take_yield`] was asked.
    #[cfg(target_os = "linux")]
    static YIELDED: Cell<bool> = const { Cell::new(false) };
}

/// Begins a turn.
#[inline]
pub(crate) fn begin_turn() {
    LEFT.set(TURN as isize);
}

/// Whether the turn is used up: the next operation has to [yield](yield_turn).
#[inline]
pub(crate) fn is_used_up() -> bool {
    LEFT.get() <= 0
}

/// Ends the turn, in place of an operation: the task is woken for the next one.
#[cold]
pub(crate) fn yield_turn<T>(cx: &Context<'_>) -> Poll<T> {
    begin_turn();
    #[cfg(target_os = "linux")]
    YIELDED.set(true);
    cx.waker().wake_by_ref();
    Poll::Pending
}

/// Takes an operation off the turn, which has moved so many bytes.
#[inline]
pub(crate) fn spend(bytes: usize) {
    LEFT.set(LEFT.get() - bytes.max(OPERATION) as isize);
}

/// Whether a turn was used up on this thread since this was asked last.
#[cfg(target_os = "linux")]
#[inline]
pub(crate) fn take_yield() -> bool {
    YIELDED.get() && YIELDED.replace(false)
}
