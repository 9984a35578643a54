//! The account of a server: the end of each connection and of tracked work, the end of all, and the
//! report.

use std::time::Duration;

use super::Shared;
use super::ledger::{CloseKind, Closing};
use crate::lifecycle::{Phase, Reason, State};
use crate::log;
use crate::report::{Cause, Report};
use crate::sync::{listen, notify};

impl Shared {
    /// Counts the end of a connection, whose socket is closed.
    pub(crate) fn close_connection(&self, closing: Closing, kind: CloseKind, cause: Cause) {
        let (had_permit, was_apart) = (closing.has_permit, closing.is_apart);
        let give_back = || self.permits.end(had_permit, was_apart);
        let uptime = || self.uptime();
        let closed = self.registry.close(closing, kind, cause, uptime, give_back);
        // Also where it had none: an accept loop that pauses for want of descriptors tries again.
        notify(&self.permits.released);
        if closed {
            self.close();
        }
    }

    /// Waits until no connection and no tracked work is left.
    pub(crate) async fn emptied(&self) {
        loop {
            let empty = listen(&self.registry.empty);
            if self.registry.is_empty() {
                return;
            }
            let drained_for = || self.drained_for().unwrap_or_default();
            self.registry.attend_to_work(drained_for);
            empty.await;
        }
    }

    /// Waits until no connection and no tracked work is left, but the connections of listeners that
    /// stay open through a drain.
    pub(crate) async fn emptied_but_last(&self) {
        loop {
            let empty = listen(&self.registry.empty);
            if self.registry.only_last() {
                return;
            }
            empty.await;
        }
    }

    /// Counts the end of tracked work, whose future is dropped.
    pub(crate) fn untrack(&self, id: u64, is_dropped: bool) {
        self.registry.untrack(id, is_dropped, self.drained_for());
        self.close_if_abandoned();
    }

    /// How long ago the drain began; `None` where it has not.
    pub(crate) fn drained_for(&self) -> Option<Duration> {
        let request = self.latch.request().clone();
        // Until the listeners are shut, when they are to be.
        let due = || request.asked?.checked_add(self.lame_duck());
        let begun = request.shut.or_else(due)?;
        self.clock.now().checked_duration_since(begun)
    }

    /// Closes the server if its task is gone and nothing is left.
    pub(crate) fn close_if_abandoned(&self) {
        if self.registry.is_abandoned() {
            self.close();
        }
    }

    /// Closes the books, once: there is a report.
    pub(crate) fn close(&self) {
        // First: who waits for the end of the server may bind the address again.
        #[cfg(feature = "health")]
        if let Some(health) = self.health.get() {
            health.close();
        }
        let is_first = self.report.set(self.build_report()).is_ok();
        // Before anybody is told that the server is closed: they may look.
        #[cfg(feature = "metrics")]
        if is_first {
            self.record_metrics_as(State::Closed);
        }
        // Even if another thread set the report first: our caller looks at the phase next, and a
        // report exists.
        self.latch.advance(Phase::Closed);
        if !is_first {
            return;
        }
        notify(&self.registry.empty);
        log::info!(target: "gracious", "{}", self.report());
        self.lingering.end();
        self.registry.publish(State::Closed);
        #[cfg(target_os = "linux")]
        if let Some(pools) = self.pools() {
            pools.stop();
        }
    }

    /// The final report, or the account as of now.
    pub(crate) fn report(&self) -> Report {
        self.report
            .get()
            .cloned()
            .unwrap_or_else(|| self.build_report())
    }

    pub(crate) fn build_report(&self) -> Report {
        let request = self.latch.request().clone();
        let now = self.clock.now();
        Report {
            reason: request.reason.unwrap_or(Reason::Requested),
            stats: self.stats(),
            elapsed: now.saturating_duration_since(self.bound_at),
            drain: request
                .asked
                .map_or(Duration::ZERO, |asked| now.saturating_duration_since(asked)),
            stragglers: self.registry.recorded_stragglers(),
            tracked_work: self.registry.outlasting_work(),
        }
    }
}
