//! Locks, events and wakers, as the whole crate uses them.
//!
//! No code of others runs under a lock of this crate: such code may call this crate, which would
//! wait for a lock that its own thread holds, and such code may block, and with it all threads that
//! want the lock. Code of others are handlers, wakers, loggers, a user's runtime with its clock, a
//! user's listeners, and all of their destructors. In debug builds a machine checks this: each
//! thread counts the locks that it holds, and [`assert_unlocked`] stands wherever code of others is
//! about to run.

use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::PoisonError;
#[cfg(any(target_os = "linux", test))]
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::task::Waker;
use std::time::Duration;

use event_listener::{Event, EventListener};

use self::atomic::{Ordering::SeqCst, fence};

/// What the files use that are also compiled against a model of memory, in `tests/models`: there,
/// other types have these names.
pub(crate) use std::sync::{Mutex, OnceLock, atomic};

/// The guard of a lock, which is counted in debug builds.
#[derive(Debug)]
pub(crate) struct Guard<G> {
    guard: G,
    _counted: Counted,
}

pub(crate) type MutexGuard<'a, T> = Guard<std::sync::MutexGuard<'a, T>>;

/// Locks, whether or not a thread panicked under this lock before: nothing that this crate guards
/// is left half changed by a panic.
#[inline]
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    Guard::new(mutex.lock().unwrap_or_else(PoisonError::into_inner))
}

/// As [`lock`], of a lock that many may read under at once.
#[inline]
#[cfg(any(target_os = "linux", test))]
pub(crate) fn read<T: ?Sized>(lock: &RwLock<T>) -> Guard<RwLockReadGuard<'_, T>> {
    Guard::new(lock.read().unwrap_or_else(PoisonError::into_inner))
}

/// As [`lock`], of a lock that many may read under at once.
#[inline]
#[cfg(any(target_os = "linux", test))]
pub(crate) fn write<T: ?Sized>(lock: &RwLock<T>) -> Guard<RwLockWriteGuard<'_, T>> {
    Guard::new(lock.write().unwrap_or_else(PoisonError::into_inner))
}

/// Locks something of the user's own, to run its code: the exception to the rule above, so this
/// lock is not counted. Nothing of this crate's is guarded by it, and only another operation on the
/// same connection waits for it.
#[inline]
pub(crate) fn lock_for_user<T: ?Sized>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    assert_unlocked();
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Called before code of others runs. In debug builds this panics where the thread holds a lock of
/// this crate.
#[inline]
#[track_caller]
pub(crate) fn assert_unlocked() {
    // A panic during a panic would end the process.
    debug_assert!(
        Counted::count() == 0 || std::thread::panicking(),
        "code of others would run under a lock"
    );
}

impl<G> Guard<G> {
    #[inline]
    fn new(guard: G) -> Self {
        Self {
            guard,
            _counted: Counted::new(),
        }
    }
}

impl<G: Deref> Deref for Guard<G> {
    type Target = G::Target;

    #[inline]
    fn deref(&self) -> &G::Target {
        &self.guard
    }
}

impl<G: DerefMut> DerefMut for Guard<G> {
    #[inline]
    fn deref_mut(&mut self) -> &mut G::Target {
        &mut self.guard
    }
}

use counted::Counted;

/// The locks that this thread holds.
#[cfg(debug_assertions)]
mod counted {
    use std::cell::Cell;

    thread_local! {
        static COUNT: Cell<usize> = const { Cell::new(0) };
    }

    /// One lock, counted on the thread that this was made on: a guard never leaves its thread.
    #[derive(Debug)]
    pub(super) struct Counted;

    impl Counted {
        pub(super) fn new() -> Self {
            COUNT.set(COUNT.get() + 1);
            Self
        }

        pub(super) fn count() -> usize {
            COUNT.get()
        }
    }

    impl Drop for Counted {
        fn drop(&mut self) {
            COUNT.set(COUNT.get() - 1);
        }
    }
}

/// In release builds nothing is counted, and a [`Guard`] is no more than the guard in it.
#[cfg(not(debug_assertions))]
mod counted {
    #[derive(Debug)]
    pub(super) struct Counted;

    impl Counted {
        #[inline]
        pub(super) fn new() -> Self {
            Self
        }

        #[inline]
        pub(super) fn count() -> usize {
            0
        }
    }
}

/// Begins to listen. What the caller looks at afterwards it sees as it is then, or is notified of.
pub(crate) fn listen(event: &Event) -> EventListener {
    let listener = event.listen();
    // Pairs with the fence in `notify`. The documentation of `Event::listen` promises one, and 5.4 has
    // none: the first listener of an event is stored with `AcqRel`, which orders no later load.
    fence(SeqCst);
    listener
}

/// What happens once, and may be waited for.
#[cfg(feature = "_ready")]
#[derive(Debug, Default)]
pub(crate) struct Flag {
    is_set: std::sync::atomic::AtomicBool,
    event: Event,
}

// No feature uses all of it.
#[cfg(feature = "_ready")]
#[allow(dead_code)]
impl Flag {
    pub(crate) fn set(&self) {
        self.is_set.store(true, SeqCst);
        notify(&self.event);
    }

    pub(crate) fn is_set(&self) -> bool {
        self.is_set.load(SeqCst)
    }

    pub(crate) async fn wait(&self) {
        while !self.is_set() {
            let set = listen(&self.event);
            if self.is_set() {
                return;
            }
            set.await;
        }
    }
}

/// Notifies all listeners, if there are any: without a listener `Event` allocates a list to find it
/// empty.
///
/// `Event` wakes under a lock of its own, which `Event::listen` and the end of an `EventListener`
/// take as well. So neither is done under a lock of this crate: a waker that asks for that lock
/// would wait for the thread that holds it, and this thread for the waker. A waker that panics is
/// its owner's affair, and the others are notified all the same.
#[inline]
pub(crate) fn notify(event: &Event) {
    assert_unlocked();
    // Pairs with the fence in `listen`: a future begins to listen first and looks afterwards at what
    // was changed before this call. Either its look sees the change, or this one sees its listener.
    fence(SeqCst);
    if event.total_listeners() > 0 {
        notify_listeners(event);
    }
}

#[cold]
fn notify_listeners(event: &Event) {
    // A second call goes on behind the listener whose waker has panicked.
    while catch_unwind(AssertUnwindSafe(|| event.notify(usize::MAX))).is_err() {
        log::error!(target: "gracious", "a waker panicked");
    }
}

/// Calls a waker. One that panics is its owner's affair: the waiters after it are woken all the
/// same.
#[inline]
pub(crate) fn wake_by_ref(waker: &Waker) {
    assert_unlocked();
    if catch_unwind(AssertUnwindSafe(|| waker.wake_by_ref())).is_err() {
        log::error!(target: "gracious", "a waker panicked");
    }
}

/// A span in nanoseconds, as atomics store it.
pub(crate) fn nanos(uptime: Duration) -> u64 {
    u64::try_from(uptime.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_of_others_runs_where_no_lock_is_held() {
        let mutex = Mutex::new(0);
        *lock(&mutex) += 1;
        assert_unlocked();
        drop((lock(&mutex), read(&RwLock::new(0)), write(&RwLock::new(0))));
        assert_unlocked();
        // Its own thread's locks are what counts.
        let _held = lock(&mutex);
        std::thread::spawn(assert_unlocked).join().unwrap();
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "code of others would run under a lock")]
    fn under_a_lock_it_does_not() {
        let mutex = Mutex::new(());
        let _held = lock(&mutex);
        wake_by_ref(Waker::noop());
    }

    /// A transport of the user's own is polled under its lock, and may call this crate from there.
    #[test]
    fn a_lock_of_the_users_own_does_not_count() {
        let (theirs, ours) = (Mutex::new(()), Mutex::new(()));
        let _held = lock_for_user(&theirs);
        drop(lock(&ours));
        assert_unlocked();
    }
}
