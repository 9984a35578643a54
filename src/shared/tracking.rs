//! Tracked work in the registry, and what waits there for the end of its own server.

use std::sync::Arc;
use std::time::Duration;

use super::connection::ConnectionState;
use super::registry::Registry;
use super::work::{self, Name, WorkWaker};
use crate::log;
use crate::report::TrackedWork;
use crate::socket::readiness::flag;
use crate::sync::notify;

impl Registry {
    /// Once no connection is left: names in the log, the first time, the tracked work that is waited
    /// for, and where none is left but what waits for this server, or reads its events, has the events
    /// end. `drained_for` says how long ago the drain began.
    pub(super) fn attend_to_work(&self, drained_for: impl FnOnce() -> Duration) {
        let mut inner = self.inner();
        if !inner.ledger.is_disconnected() {
            return;
        }
        let names = inner.ledger.work.names_to_log();
        if inner.ledger.only_dependents() {
            // Outside the lock: the clock is somebody else's code.
            drop(inner);
            let drained_for = drained_for();
            inner = self.inner();
            inner.ledger.work.mark_released(drained_for);
            inner.events.end_for_work();
        }
        self.unlock_and_deliver(inner);
        if let Some(names) = names {
            log::info!(target: "gracious", "waiting for tracked work: {names}");
        }
    }

    /// Tracked work that waits for the end of the server is told of it.
    pub(super) fn mark_released(&self, drained_for: Duration) {
        self.inner().ledger.work.mark_released(drained_for);
    }

    /// Begins to track work: a drain waits for it, and it is counted apart. Gives its id.
    pub(crate) fn track(&self, name: Name) -> u64 {
        self.inner().ledger.work.add(name)
    }

    /// Counts the end of tracked work, and logs it where it is `is_dropped`. `waited` is how long
    /// after the beginning of the drain that is; `None` where there is no drain.
    pub(super) fn untrack(&self, id: u64, is_dropped: bool, waited: Option<Duration>) {
        let mut inner = self.inner();
        let name = inner.ledger.work.remove(id, is_dropped, waited);
        let is_disconnected = inner.ledger.is_disconnected();
        drop(inner);
        if let Some(name) = name.filter(|_| is_dropped) {
            log::warn!(target: "gracious", "dropped tracked work: {name}");
        }
        if is_disconnected {
            notify(&self.empty);
        }
    }

    /// Polls tracked work: what it waits for is known from here on.
    pub(crate) fn poll_work<T>(&self, id: u64, poll: impl FnOnce() -> T) -> T {
        work::polling((self.address(), id), poll)
    }

    /// The waker to poll tracked work with.
    pub(crate) fn work_waker(&self, id: u64) -> Arc<WorkWaker> {
        WorkWaker::new((self.address(), id))
    }

    /// Futures of tracked work begin to wait for the end of the server.
    pub(super) fn begin_work_wait(&self, work: &[u64]) {
        let mut inner = self.inner();
        work.iter().for_each(|id| inner.ledger.work.begin_wait(*id));
        drop(inner);
        notify(&self.empty);
    }

    pub(super) fn end_work_wait(&self, work: &[u64]) {
        let mut inner = self.inner();
        work.iter().for_each(|id| inner.ledger.work.end_wait(*id));
    }

    pub(super) fn outlasting_work(&self) -> Vec<TrackedWork> {
        self.inner().ledger.work.outlasted()
    }

    /// A handler begins to wait for its own server; `false` where its connection is no more.
    pub(crate) fn begin_self_wait(&self, connection: &ConnectionState) -> bool {
        let mut inner = self.inner();
        let word = connection.set(flag::SELF_WAITER);
        if word & flag::COUNTED != 0 {
            return false;
        }
        connection.count_self_waits(|waits| waits + 1);
        if word & flag::SELF_WAITER == 0 {
            inner.ledger.self_waiters += 1;
            inner.ledger.last_self_waiters += u64::from(connection.is_last());
        }
        drop(inner);
        notify(&self.empty);
        true
    }

    pub(crate) fn end_self_wait(&self, connection: &ConnectionState) {
        let mut inner = self.inner();
        if connection.count_self_waits(|waits| waits - 1) > 0 {
            return;
        }
        // Where the connection's end was counted in between, `Ledger::close` counts it off.
        if connection.clear(flag::SELF_WAITER) & flag::COUNTED == 0 {
            inner.ledger.self_waiters -= 1;
            inner.ledger.last_self_waiters -= u64::from(connection.is_last());
        }
    }

    /// The address of this registry, by which tracked work knows its server.
    pub(super) fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }
}
