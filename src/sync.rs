//! Locks, events and wakers, as the whole crate uses them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{Ordering::SeqCst, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use event_listener::Event;

/// Locks, whether or not a thread panicked under this lock before: nothing that this crate guards is
/// left half changed by a panic.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notifies all who listen, if anybody does: without a listener `Event` allocates a list to find it
/// empty. A waker that panics is its owner's affair, and the others are notified all the same.
pub(crate) fn notify(event: &Event) {
    // Who begins to listen looks afterwards at what was changed before this. Either that look sees
    // it, or this one the listener.
    fence(SeqCst);
    if event.total_listeners() > 0 {
        // A second call goes on behind the listener whose waker has panicked.
        while catch_unwind(AssertUnwindSafe(|| event.notify(usize::MAX))).is_err() {
            log::error!(target: "gracious", "a waker panicked");
        }
    }
}

/// Wakes; a waker that panics is its owner's affair, and the others are woken all the same.
#[inline]
pub(crate) fn wake_by_ref(waker: &Waker) {
    if catch_unwind(AssertUnwindSafe(|| waker.wake_by_ref())).is_err() {
        log::error!(target: "gracious", "a waker panicked");
    }
}

pub(crate) fn nanos(uptime: Duration) -> u64 {
    u64::try_from(uptime.as_nanos()).unwrap_or(u64::MAX)
}
