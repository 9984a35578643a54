//! Waits for the end of a server from its own inside: by its handlers, and by work that it tracks.
//!
//! A server that waited for these to end first would never close. So as soon as nothing is left but
//! connections and tracked work that wait likewise, those waits are over, and all are given one
//! account, which counts them as `active` and `tracked`.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use futures_lite::future;

use super::Shared;
use super::work;
use crate::lifecycle::Phase;
use crate::report::Report;
use crate::sync::notify;

/// A wait for the end of a server, from wherever it is polled.
pub(crate) struct SelfWait {
    server: Arc<Shared>,
    /// The connection whose handler waits; `None` where none does, or its end is counted.
    connection: Option<u64>,
    /// The tracked work that it was last polled in.
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

    /// Waits for `ended`; gives the account instead where it waits from the server's inside, and
    /// nothing is left but such waits.
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
        // What is done until the next wait is no wait.
        self.leave();
        raced
    }

    /// Counts the tracked work that this is polled in as waiting, and what it was polled in before as
    /// waiting no longer.
    fn follow(&mut self) {
        let work = work::polled_work(self.server.registry.address());
        if work != self.work {
            self.leave();
            self.server.registry.begin_work_wait(&work);
            self.work = work;
        }
    }

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

/// Waits until nothing is left but waits for just that.
async fn only_self_waits(shared: &Shared) -> Report {
    loop {
        let empty = shared.registry.empty.listen();
        let changed = shared.latch.listen();
        if shared.latch.phase() == Phase::Closed {
            return shared.report();
        }
        // The account of the first to find it is everybody's.
        if shared.is_closed_to_peers() && shared.registry.only_self_waiters() {
            shared
                .report_for_self_waiters
                .get_or_init(|| shared.build_report());
            let drained_for = shared.drained_for().unwrap_or_default();
            shared.registry.mark_told(drained_for);
            notify(&shared.registry.empty);
        }
        if let Some(report) = shared.report_for_self_waiters.get() {
            return report.clone();
        }
        future::or(empty, changed).await;
    }
}
