//! `crate::sync`, of loom's locks and atomics.

use std::fmt;
use std::task::Waker;
use std::time::Duration;

use event_listener::{Event, EventListener};
use loom::sync::atomic::AtomicBool;

pub(crate) use loom::sync::{Mutex, MutexGuard};

use self::atomic::{Ordering::Acquire, Ordering::Release, Ordering::SeqCst, fence};

/// Loom's atomics, with a fence beside each access that is `SeqCst`: see the head of the crate.
pub(crate) mod atomic {
    use std::cell::Cell;
    use std::fmt;

    pub(crate) use loom::sync::atomic::{Ordering, fence};

    std::thread_local! {
        /// Whether the fence is in front of the access, or behind it. Loom runs all threads of a test
        /// on one.
        pub(crate) static LEADING: Cell<bool> = const { Cell::new(true) };
    }

    /// Changed by every access to an atomic, in no order with anything else. Of each atomic loom keeps in
    /// mind the last access alone: where a thread loads and then stores, it forgets that another has
    /// loaded before, and never tries the store in front of that load.
    #[derive(Default)]
    struct Touched(loom::sync::atomic::AtomicUsize);

    fn access<T>(order: Ordering, touched: &Touched, access: impl FnOnce(Ordering) -> T) -> T {
        touched.0.fetch_add(1, Ordering::Relaxed);
        let (order, is_sequential) = match order {
            Ordering::SeqCst => (Ordering::AcqRel, true),
            order => (order, false),
        };
        let leading = LEADING.get();
        if is_sequential && leading {
            fence(Ordering::SeqCst);
        }
        let done = access(order);
        if is_sequential && !leading {
            fence(Ordering::SeqCst);
        }
        done
    }

    /// The order of a load, or of a store, in place of that of both.
    fn half(order: Ordering, half: Ordering) -> Ordering {
        match order {
            Ordering::AcqRel => half,
            order => order,
        }
    }

    macro_rules! atomics {
        ($($name:ident: $value:ty),*) => {$(
            #[derive(Default)]
            pub(crate) struct $name(loom::sync::atomic::$name, Touched);

            impl $name {
                pub(crate) fn new(value: $value) -> Self {
                    Self(loom::sync::atomic::$name::new(value), Touched::default())
                }

                pub(crate) fn load(&self, order: Ordering) -> $value {
                    access(order, &self.1, |order| self.0.load(half(order, Ordering::Acquire)))
                }

                pub(crate) fn store(&self, value: $value, order: Ordering) {
                    if order != Ordering::SeqCst {
                        return access(order, &self.1, |order| self.0.store(value, order));
                    }
                    // Loom leaves open which of a store and a concurrent swap comes first, and lets a
                    // later swap find either, though it comes after both. Of two swaps it knows.
                    access(order, &self.1, |_| self.0.swap(value, Ordering::Release));
                }

                pub(crate) fn swap(&self, value: $value, order: Ordering) -> $value {
                    access(order, &self.1, |order| self.0.swap(value, order))
                }

                pub(crate) fn fetch_or(&self, value: $value, order: Ordering) -> $value {
                    access(order, &self.1, |order| self.0.fetch_or(value, order))
                }

                pub(crate) fn fetch_and(&self, value: $value, order: Ordering) -> $value {
                    access(order, &self.1, |order| self.0.fetch_and(value, order))
                }

                pub(crate) fn compare_exchange_weak(
                    &self,
                    current: $value,
                    new: $value,
                    success: Ordering,
                    failure: Ordering,
                ) -> Result<$value, $value> {
                    access(success, &self.1, |success| {
                        // A failure that no reason has would double the orders of events.
                        self.0.compare_exchange(current, new, success, half(failure, Ordering::Acquire))
                    })
                }

                pub(crate) fn fetch_update(
                    &self,
                    success: Ordering,
                    _failure: Ordering,
                    update: impl FnMut($value) -> Option<$value>,
                ) -> Result<$value, $value> {
                    access(success, &self.1, |success| self.0.fetch_update(success, Ordering::Acquire, update))
                }
            }

            impl fmt::Debug for $name {
                fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str(stringify!($name))
                }
            }
        )*};
    }

    macro_rules! numbers {
        ($($name:ident: $value:ty),*) => {$(
            impl $name {
                pub(crate) fn fetch_add(&self, value: $value, order: Ordering) -> $value {
                    access(order, &self.1, |order| self.0.fetch_add(value, order))
                }

                pub(crate) fn fetch_sub(&self, value: $value, order: Ordering) -> $value {
                    access(order, &self.1, |order| self.0.fetch_sub(value, order))
                }

                pub(crate) fn fetch_max(&self, value: $value, order: Ordering) -> $value {
                    access(order, &self.1, |order| self.0.fetch_max(value, order))
                }
            }
        )*};
    }

    atomics!(AtomicBool: bool, AtomicU8: u8, AtomicU32: u32, AtomicU64: u64, AtomicUsize: usize);
    numbers!(AtomicU8: u8, AtomicU32: u32, AtomicU64: u64, AtomicUsize: usize);
}

/// As std's: what was set is seen with all that came before, or not at all.
pub(crate) struct OnceLock<T> {
    is_set: AtomicBool,
    setting: Mutex<()>,
    value: std::sync::OnceLock<T>,
}

impl<T> OnceLock<T> {
    pub(crate) fn new() -> Self {
        Self {
            is_set: AtomicBool::new(false),
            setting: Mutex::new(()),
            value: std::sync::OnceLock::new(),
        }
    }

    pub(crate) fn get(&self) -> Option<&T> {
        self.is_set.load(Acquire).then(|| self.value.get())?
    }

    pub(crate) fn set(&self, value: T) -> Result<(), T> {
        let _setting = lock(&self.setting);
        let set = self.value.set(value);
        self.is_set.store(true, Release);
        set
    }

    pub(crate) fn get_or_init(&self, init: impl FnOnce() -> T) -> &T {
        if let Some(value) = self.get() {
            return value;
        }
        let _setting = lock(&self.setting);
        let value = self.value.get_or_init(init);
        self.is_set.store(true, Release);
        value
    }
}

impl<T> fmt::Debug for OnceLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnceLock")
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap()
}

pub(crate) fn assert_unlocked() {}

pub(crate) fn listen(event: &Event) -> EventListener {
    let listener = event.listen();
    // Pairs with the fence in `notify`. The documentation of `Event::listen` promises one, and 5.4 has
    // none: the first listener of an event is stored with `AcqRel`, which orders no later load.
    fence(SeqCst);
    listener
}

pub(crate) fn notify(event: &Event) {
    assert_unlocked();
    // Pairs with the fence in `listen`: a future begins to listen first and looks afterwards at what
    // was changed before this call. Either its look sees the change, or this one sees its listener.
    fence(SeqCst);
    if event.total_listeners() > 0 {
        notify_listeners(event);
    }
}

fn notify_listeners(event: &Event) {
    event.notify(usize::MAX);
}

pub(crate) fn wake_by_ref(waker: &Waker) {
    waker.wake_by_ref();
}

pub(crate) fn nanos(uptime: Duration) -> u64 {
    uptime.as_nanos() as u64
}
