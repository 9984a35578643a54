//! A connection's state, as far as its waiters and its counts go: from `shared/connection.rs`.

use std::task::{Context, Waker};
use std::time::Duration;

use crate::config::Config;
use crate::socket::readiness::{HalfState, Readiness, Waiter};
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst, fence};
use crate::sync::{Mutex, MutexGuard, OnceLock, assert_unlocked, lock, wake_by_ref};

pub(crate) struct ConnectionState {
    pub(super) readiness: Readiness,
    pub(crate) server: Server,
    pub(crate) received: AtomicU64,
    pub(super) answered: AtomicU64,
    pub(super) cold: OnceLock<Box<Cold>>,
    pub(crate) reader: HalfState,
    pub(crate) writer: HalfState,
}

#[derive(Default)]
pub(crate) struct Server {
    pub(crate) config: Config,
}

impl Server {
    pub(crate) fn uptime(&self) -> Duration {
        Duration::ZERO
    }
}

#[derive(Default)]
pub(super) struct Cold {
    pub(super) last_activity: AtomicU64,
    pub(super) guards: AtomicU32,
    locked: Mutex<ColdLocked>,
}

#[derive(Default)]
pub(super) struct ColdLocked {
    pub(super) other_wakers: [Option<Waker>; 3],
    pub(super) quiet: Option<Duration>,
}

impl ConnectionState {
    pub(crate) fn new(flags: u64) -> Self {
        Self {
            readiness: Readiness::new(1, flags),
            server: Server::default(),
            received: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            cold: OnceLock::new(),
            reader: HalfState::default(),
            writer: HalfState::default(),
        }
    }

    pub(super) fn cold(&self) -> &Cold {
        self.cold.get_or_init(Box::default)
    }

    pub(super) fn cold_locked(&self) -> MutexGuard<'_, ColdLocked> {
        lock(&self.cold().locked)
    }

    pub(super) fn existing_cold(&self) -> Option<MutexGuard<'_, ColdLocked>> {
        Some(lock(&self.cold.get()?.locked))
    }

    pub(super) fn is_inside_tls(&self) -> bool {
        false
    }

    pub(super) fn is_handshaking(&self) -> bool {
        false
    }

    /// As the implementation of `Registered`.
    pub(crate) fn waker_of(&self, waiter: Waiter) -> Option<Waker> {
        self.other_waker(waiter)
    }

    pub(crate) fn wake_task(&self) {
        self.wake(Waiter::Task);
    }
}

/// Word for word those of `shared/connection.rs`.
impl ConnectionState {
    #[inline]
    pub(crate) fn word(&self) -> u64 {
        self.readiness.word()
    }

    #[inline]
    pub(crate) fn has(&self, flags: u64) -> bool {
        self.readiness.has(flags)
    }

    pub(crate) fn set(&self, flags: u64) -> u64 {
        self.readiness.set(flags)
    }

    pub(crate) fn clear(&self, flags: u64) -> u64 {
        self.readiness.clear(flags)
    }

    /// Registers `cx`'s waker. If it is the task's first and registered already, nothing is written.
    #[inline]
    pub(crate) fn register(&self, waiter: Waiter, cx: &Context<'_>) {
        let (is_first, is_registered) = self.readiness.is_registered(waiter, cx.waker());
        if !is_registered {
            self.register_slow(waiter, cx.waker(), is_first);
        }
    }

    #[cold]
    fn register_slow(&self, waiter: Waiter, waker: &Waker, is_first: bool) {
        if is_first {
            self.set(waiter.task_waker_flag());
            self.clear_other_waker(waiter);
        } else if matches!(waiter, Waiter::Task) && self.readiness.set_task_waker(waker) {
        } else {
            // Cloned and dropped outside the lock: a waker is code of others, and to drop one can run
            // a task's destructor.
            let waker = waker.clone();
            let old = self.cold_locked().other_wakers[waiter as usize].replace(waker);
            self.set(waiter.other_waker_flag());
            assert_unlocked();
            drop(old);
        }
        // Pairs with the fence in `wake`: either `wake` sees this waker, or the caller's next look
        // sees what was changed before `wake`.
        fence(SeqCst);
    }

    /// Forgets the waker that differs from the task's first, of a waiter that is gone or is
    /// registered with the task's first from now on.
    #[inline]
    pub(crate) fn clear_other_waker(&self, waiter: Waiter) {
        if self.has(waiter.other_waker_flag()) {
            self.take_other_waker(waiter);
        }
    }

    #[cold]
    fn take_other_waker(&self, waiter: Waiter) {
        self.clear(waiter.other_waker_flag());
        let old = self.cold_locked().other_wakers[waiter as usize].take();
        assert_unlocked();
        drop(old);
    }

    /// Takes the waker of a waiter that is registered with another than the task's first, to wake it
    /// without a lock. A waiter that was woken registers anew when it is polled.
    fn other_waker(&self, waiter: Waiter) -> Option<Waker> {
        if self.has(waiter.other_waker_flag()) {
            self.cold_locked().other_wakers[waiter as usize].take()
        } else {
            None
        }
    }

    pub(crate) fn wake(&self, waiter: Waiter) {
        // Pairs with the fence in `register_slow`: a waiter that registers after this look for its
        // waker sees what was changed before it.
        fence(SeqCst);
        if let Some(waker) = self.readiness.task_waker(waiter) {
            wake_by_ref(waker);
        } else if let Some(waker) = self.other_waker(waiter) {
            wake_by_ref(&waker);
        }
    }
}
