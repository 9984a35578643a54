//! Self-waiters: handlers of a server, and work that it tracks, that wait for the server's own end.
//!
//! A server that waited for them to end first would never close. So as soon as only self-waiters
//! are left, their waits are over. All of them are given the same report, which counts their
//! connections as `active` and their work as `tracked`.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use futures_lite::future;

use super::Shared;
use super::work;
use crate::lifecycle::Phase;
use crate::report::Report;
use crate::sync::{listen, notify};

/// A wait for the end of a server, which may be a self-waiter's: that depends on where it is
/// polled.
pub(crate) struct SelfWait {
    server: Arc<Shared>,
    /// The connection whose handler waits; `None` where none does, or its end is counted already.
    connection: Option<u64>,
    /// The tracked work in which the wait was last polled.
    work: Vec<u64>,
}

impl SelfWait {
    /// `connection` is the one whose handler waits, if one does.
    pub(crate) fn new(server: &Arc<Shared>, connection: Option<u64>) -> Self {
        let waits = |id: &u64| {
            let connection = server.registry.find(*id);
            connection.is_some_and(|it| server.registry.begin_self_wait(&it))
        };
        Self {
            connection: connection.filter(waits),
            server: server.clone(),
            work: Vec::new(),
        }
    }

    /// Whether a handler waits.
    pub(crate) fn is_handler(&self) -> bool {
        self.connection.is_some()
    }

    /// Waits for `ended`; where this is a self-waiter's wait, and only self-waiters are left, gives
    /// their report instead.
    pub(crate) async fn race<T>(&mut self, ended: impl Future<Output = T>) -> Result<T, Report> {
        let server = self.server.clone();
        let (mut ended, mut only_waits) = (pin!(ended), pin!(only_self_waits(&server)));
        let raced = poll_fn(|cx| {
            self.follow();
            if self.is_handler() || !self.work.is_empty() {
                if let Poll::Ready(report) = only_waits.as_mut().poll(cx) {
                    return Poll::Ready(Err(report));
                }
            }
            ended.as_mut().poll(cx).map(Ok)
        })
        .await;
        // Until the next wait the work does something else.
        self.leave();
        raced
    }

    /// Counts the tracked work in which this wait is polled as waiting; work in which it was polled
    /// before waits no longer.
    fn follow(&mut self) {
        let work = work::polled_work(self.server.registry.address());
        if work != self.work {
            self.leave();
            self.server.registry.begin_work_wait(&work);
            self.work = work;
        }
    }

    /// Counts no tracked work as waiting any more.
    fn leave(&mut self) {
        if !self.work.is_empty() {
            self.server.registry.end_work_wait(&self.work);
            self.work.clear();
        }
    }
}

impl Drop for SelfWait {
    fn drop(&mut self) {
        self.leave();
        let connection = self.connection.and_then(|id| self.server.registry.find(id));
        if let Some(connection) = connection {
            self.server.registry.end_self_wait(&connection);
        }
    }
}

/// Waits until only self-waiters are left; gives their report.
async fn only_self_waits(shared: &Shared) -> Report {
    loop {
        let empty = listen(&shared.registry.empty);
        let changed = shared.latch.listen();
        if shared.latch.phase() == Phase::Closed {
            return shared.report();
        }
        // The report of the first to come here is the report of all. Once only self-waiters are
        // left it stays so, since no peer is accepted any more.
        if shared.is_closed_to_peers() && shared.registry.only_self_waiters() {
            shared
                .report_for_self_waiters
                .get_or_init(|| shared.build_report());
            let drained_for = shared.drained_for().unwrap_or_default();
            shared.registry.mark_released(drained_for);
            notify(&shared.registry.empty);
        }
        if let Some(report) = shared.report_for_self_waiters.get() {
            return report.clone();
        }
        future::or(empty, changed).await;
    }
}
