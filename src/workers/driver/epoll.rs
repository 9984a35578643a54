//! Linux's epoll. A connection is registered once, for its whole life, and edge-triggered: each
//! event is reported once. A listener is level-triggered: it is reported as long as a peer is
//! queued.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::Waker;
use std::thread;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::Errno;

use super::listener::ListenerRegistration;
use super::registration::{NOT_A_CONNECTION, Registered, Registrations, Slab};
use crate::sync::{lock, wake_by_ref};

/// How many events one wait can bring.
const EVENTS: usize = 1024;

/// How long a wait takes in place of one that failed. The server's tasks are run until it has
/// ended.
const FAILED_WAIT: Duration = Duration::from_millis(10);

/// The key of the poller's own wake-up.
const WAKE: u64 = u64::MAX;

/// An epoll instance, and what is registered with it.
#[derive(Debug)]
pub(crate) struct Poller {
    epoll: OwnedFd,
    /// An eventfd: a write to it ends a wait.
    wake: OwnedFd,
    pub(super) registrations: Box<dyn Registrations>,
    listeners: Mutex<Vec<Arc<ListenerRegistration>>>,
    /// The error of a wait: there are no events any more.
    failure: OnceLock<Errno>,
}

/// What one wait brought. It is kept from wait to wait, so that nothing is allocated for one.
pub(crate) struct Batch {
    events: Vec<Event>,
    wakers: Vec<Waker>,
    has_wake: bool,
}

impl Batch {
    /// An empty batch with room for all events of a wait.
    pub(crate) fn new() -> Self {
        Self {
            events: Vec::with_capacity(EVENTS),
            wakers: Vec::with_capacity(EVENTS),
            has_wake: false,
        }
    }

    /// Whether one of the events was a [wake-up](Poller::wake), which no other wait brings then.
    pub(crate) fn has_wake(&self) -> bool {
        self.has_wake
    }
}

impl Poller {
    /// Makes a poller for connections of the type `R`.
    pub(crate) fn new<R: Registered>() -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let poller = Self {
            epoll,
            wake,
            registrations: Box::new(Slab::<R>::default()),
            listeners: Mutex::default(),
            failure: OnceLock::new(),
        };
        // Edge-triggered: each write is an event of its own, so the counter need never be read.
        poller.add(&poller.wake, WAKE, EventFlags::IN | EventFlags::ET)?;
        Ok(poller)
    }

    /// Ends the wait under way, or the next one if there is none.
    pub(crate) fn wake(&self) {
        // It fails only where 2^64 - 1 wake-ups are pending.
        let _ignored = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// How many wake-ups were written since this was asked last.
    #[cfg(test)]
    pub(crate) fn wakes(&self) -> u64 {
        let mut count = [0; 8];
        match rustix::io::read(&self.wake, &mut count) {
            Ok(_) => u64::from_ne_bytes(count),
            Err(_) => 0,
        }
    }

    /// Waits for events, for ever or, without `block`, not at all, and wakes the futures that they
    /// concern. Gives the number of events: none also where a signal ended the wait, or where it
    /// [failed](Self::failure).
    pub(crate) fn wait(&self, batch: &mut Batch, block: bool) -> usize {
        const NOT_AT_ALL: Timespec = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let Batch {
            events,
            wakers,
            has_wake,
        } = batch;
        events.clear();
        *has_wake = false;
        let timeout = (!block).then_some(&NOT_AT_ALL);
        match epoll::wait(&self.epoll, spare_capacity(events), timeout) {
            Ok(_) => {}
            Err(Errno::INTR) => return 0,
            Err(error) => {
                let _first = self.failure.set(error);
                if block {
                    // Without a pause the driver would spin.
                    thread::sleep(FAILED_WAIT);
                }
                return 0;
            }
        }
        if events.is_empty() {
            return 0;
        }
        self.registrations.on_events(events, wakers, &mut |key| {
            if key == WAKE {
                *has_wake = true;
                return None;
            }
            let index = key as u32 & !NOT_A_CONNECTION;
            lock(&self.listeners).get(index as usize)?.report(self)
        });
        // After the locks: a waker is code of others.
        for waker in wakers.drain(..) {
            wake_by_ref(&waker);
        }
        events.len()
    }

    /// The error because of which no event is reported any more, if there is one: other code of the
    /// process has closed the epoll's descriptor, or waiting for it was forbidden. There is nothing
    /// that a program can do about it.
    pub(crate) fn failure(&self) -> Option<io::Error> {
        self.failure.get().map(|&error| error.into())
    }

    /// Adds a listener to the table; `make` gets the key for its events.
    pub(super) fn add_listener(
        &self,
        make: impl FnOnce(u64) -> ListenerRegistration,
    ) -> Arc<ListenerRegistration> {
        let mut listeners = lock(&self.listeners);
        let index = listeners.len() as u32;
        let listener = Arc::new(make(u64::from(index | NOT_A_CONNECTION)));
        listeners.push(listener.clone());
        listener
    }

    /// A poller whose every wait fails, since its epoll is none.
    #[cfg(test)]
    pub(crate) fn broken<R: Registered>() -> Self {
        let epoll = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let working = Self::new::<R>().unwrap();
        Self { epoll, ..working }
    }

    /// Has events of a descriptor be reported with this key.
    pub(super) fn add(&self, fd: &impl AsFd, key: u64, flags: EventFlags) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, EventData::new_u64(key), flags)?)
    }

    /// Changes which events of a descriptor are reported.
    pub(super) fn modify(
        &self,
        fd: &(impl AsFd + ?Sized),
        key: u64,
        flags: EventFlags,
    ) -> io::Result<()> {
        Ok(epoll::modify(
            &self.epoll,
            fd,
            EventData::new_u64(key),
            flags,
        )?)
    }

    /// Has no more events of a descriptor be reported.
    pub(super) fn delete(&self, fd: &impl AsFd) {
        // It fails only where the descriptor is not registered any more.
        let _ignored = epoll::delete(&self.epoll, fd);
    }
}
