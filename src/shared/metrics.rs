//! What a server tells through the facade `metrics`. No request pays for it: the counts are those that the
//! server keeps anyway, and are read now and then.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ::metrics::Key;
use futures_lite::future;

use super::Shared;
use super::connection::ConnectionState;
use crate::lifecycle::{Phase, State};
use crate::log;
use crate::metrics::{Metrics, Snapshot, Told, tell_handler};
use crate::socket::readiness::flag;
use crate::sync::{assert_unlocked, lock};

/// What has been told, and what need not be made again.
pub(crate) struct MetricsState {
    told: Mutex<Told>,
    handler_seconds: Key,
}

impl MetricsState {
    pub(super) fn new(metrics: &Metrics) -> Self {
        Self {
            told: Mutex::default(),
            handler_seconds: metrics.handler_seconds(),
        }
    }
}

impl Shared {
    /// Tells what everything means, and for the first time what it is.
    pub(crate) fn begin_metrics(&self) {
        if let Some(metrics) = &self.config.metrics {
            in_recorder(|| metrics.describe());
            self.record_metrics();
        }
    }

    /// Tells what has changed since the last time.
    pub(crate) fn record_metrics(&self) {
        self.record_metrics_as(self.state());
    }

    /// Tells what has changed, with the state that the server is in or is about to come into.
    pub(super) fn record_metrics_as(&self, state: State) {
        let (Some(metrics), Some(own)) = (&self.config.metrics, &self.metrics) else {
            return;
        };
        if self.is_forked() {
            return;
        }
        let snapshot = Snapshot {
            busy: self.registry.busy(),
            stats: self.stats(),
            state,
            drain: Some(self.draining_for()),
        };
        let changes = lock(&own.told).advance(&snapshot);
        in_recorder(|| metrics.tell(&changes));
    }

    /// How long the drain has taken.
    fn draining_for(&self) -> Duration {
        if let Some(report) = self.report.get() {
            return report.drain;
        }
        let asked = self.latch.request().asked;
        asked.map_or(Duration::ZERO, |asked| {
            self.clock.now().saturating_duration_since(asked)
        })
    }
}

/// Tells now and then, and at each change of the state, until the server is closed, which tells the last.
pub(crate) async fn keep_recording(shared: Arc<Shared>) {
    let Some(every) = shared.config.metrics.as_ref().and_then(|it| it.every) else {
        return;
    };
    loop {
        let changed = shared.latch.listen();
        shared.record_metrics();
        if shared.latch.phase() == Phase::Closed {
            return;
        }
        future::or(shared.clock.sleep(every), changed).await;
    }
}

impl ConnectionState {
    /// Tells how long this connection's handler has taken, which has ended.
    pub(crate) fn record_handler(&self) {
        let Some(state) = self.server.metrics.as_ref() else {
            return;
        };
        if !self.has(flag::REJECTED) {
            let took = self.server.uptime().saturating_sub(self.begun());
            in_recorder(|| tell_handler(&state.handler_seconds, took));
        }
    }
}

/// Calls a recorder, which is code of others; its panic is the end of nothing.
fn in_recorder(tell: impl FnOnce()) {
    assert_unlocked();
    if catch_unwind(AssertUnwindSafe(tell)).is_err() {
        log::error!(target: "gracious", "the recorder of metrics panicked");
    }
}
