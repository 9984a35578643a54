//! The connections that are being closed and wait for their peers: handed over by their tasks to the
//! closer of their shard (`connection::closer`).

use std::sync::{Arc, Mutex, OnceLock};
use std::task::Waker;

use super::connection::ConnectionState;
use super::ledger::CloseKind;
use crate::report::Cause;
use crate::socket::readiness::flag;
use crate::sync::{lock, wake_by_ref};

/// So many connections wake a closer that has set a timer: each keeps a descriptor until then, and
/// what was in use a moment ago is still in the processor's caches.
pub(crate) const MANY: usize = 64;

/// A connection whose end was sent, and whose peer a close may still harm.
#[derive(Debug)]
pub(crate) struct Lingering {
    pub(crate) state: Arc<ConnectionState>,
    /// How its end is counted. `None` where its handler goes on without it: the task counts it then.
    pub(crate) outcome: Option<(CloseKind, Cause)>,
}

/// One a shard; a server without pools has one.
#[derive(Debug, Default)]
pub(crate) struct LingeringQueues(OnceLock<Box<[LingeringQueue]>>);

impl LingeringQueues {
    /// Says how many shards there are; before any connection.
    #[cfg(target_os = "linux")]
    pub(super) fn set_shards(&self, count: u16) {
        let _first = self.0.set((0..count).map(|_| <_>::default()).collect());
    }

    fn all(&self) -> &[LingeringQueue] {
        self.0.get_or_init(|| Box::new([LingeringQueue::default()]))
    }

    pub(crate) fn shards(&self) -> u16 {
        self.all().len() as u16
    }

    /// Where the closer of a shard takes connections over.
    pub(crate) fn of(&self, shard: u16) -> &LingeringQueue {
        &self.all()[usize::from(shard)]
    }

    /// Has the closers look at all connections now: a drain waits for them.
    pub(crate) fn hurry(&self) {
        self.all().iter().for_each(LingeringQueue::hurry);
    }

    /// Has the closers end: nothing is left to be closed.
    pub(super) fn end(&self) {
        let end = |queue: &LingeringQueue| queue.change(|inner| inner.is_over = true);
        self.all().iter().for_each(end);
    }
}

/// What was handed over, and not taken by the closer yet.
#[derive(Debug, Default)]
pub(crate) struct LingeringQueue(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Those that keep a permit which another connection may wait for, and those over transports of
    /// the user's own, which wake the closer once it has polled them.
    urgent: Vec<Lingering>,
    others: Vec<Lingering>,
    /// The closer's, as long as nothing has woken it.
    waker: Option<Waker>,
    /// The closer has a timer that fires soon enough for what is handed over now.
    is_timed: bool,
    /// All connections are to be looked at now.
    in_a_hurry: bool,
    /// There is no closer any more.
    is_over: bool,
}

/// What the closer takes.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) urgent: Vec<Lingering>,
    pub(crate) others: Vec<Lingering>,
    pub(crate) in_a_hurry: bool,
    pub(crate) is_over: bool,
}

impl LingeringQueue {
    /// Hands a connection over to the closer; gives it back where there is none any more.
    pub(crate) fn push(&self, lingering: Lingering) -> Result<(), Lingering> {
        let state = &lingering.state;
        let keeps_permit = !state.has(flag::QUEUED | flag::APART);
        let is_urgent = !state.transport.finishes_at_once()
            || keeps_permit && state.server.permits.is_limited();
        let mut inner = lock(&self.0);
        if inner.is_over {
            return Err(lingering);
        }
        let wakes = if is_urgent {
            inner.urgent.push(lingering);
            true
        } else {
            inner.others.push(lingering);
            !inner.is_timed || inner.others.len() == MANY
        };
        let waker = if wakes { inner.waker.take() } else { None };
        drop(inner);
        if let Some(waker) = waker {
            wake_by_ref(&waker);
        }
        Ok(())
    }

    /// Has the closer look at all connections now: one was aborted, or a drain waits for them.
    pub(super) fn hurry(&self) {
        self.change(|inner| inner.in_a_hurry = true);
    }

    fn change(&self, change: impl FnOnce(&mut Inner)) {
        let mut inner = lock(&self.0);
        change(&mut inner);
        let waker = inner.waker.take();
        drop(inner);
        if let Some(waker) = waker {
            wake_by_ref(&waker);
        }
    }

    /// Takes what was handed over, and leaves `room` for what comes next, which wakes the closer: unless
    /// all is over, and the closer's task, which the waker would keep in memory, ends.
    pub(crate) fn take(&self, room: Vec<Lingering>, waker: Waker) -> Taken {
        let mut inner = lock(&self.0);
        let new = (!inner.is_over).then_some(waker);
        let old = std::mem::replace(&mut inner.waker, new);
        inner.is_timed = false;
        let taken = Taken {
            urgent: std::mem::take(&mut inner.urgent),
            others: std::mem::replace(&mut inner.others, room),
            in_a_hurry: std::mem::take(&mut inner.in_a_hurry),
            is_over: inner.is_over,
        };
        drop(inner);
        // Without the lock: the destructor of a waker is its executor's code.
        drop(old);
        taken
    }

    /// The closer has set a timer. What was handed over since it took has woken it.
    pub(crate) fn set_timed(&self) {
        lock(&self.0).is_timed = true;
    }

    /// Takes what was handed over for the last time: there is no closer from here on.
    pub(crate) fn close(&self) -> Vec<Lingering> {
        let mut inner = lock(&self.0);
        inner.is_over = true;
        let mut all = std::mem::take(&mut inner.urgent);
        all.append(&mut inner.others);
        all
    }
}
