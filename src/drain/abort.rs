//! The acts of a stop that need no runtime: none of them waits for it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_lite::future;

use super::sweep::close_listeners_unserved;
use crate::accept::admission::reject_queue;
use crate::lifecycle::{Phase, Reason, State};
use crate::shared::Shared;

/// How long, after all connections were aborted, the next of them may take to be gone. Dropping a
/// handler takes microseconds; a handler that blocks its thread is not waited for.
const ABORT_STALL: Duration = Duration::from_millis(250);

/// Ends the server now, also where nobody has asked for it yet: no connection is told first.
pub(crate) fn abort(shared: &Shared, reason: Reason) {
    if shared.is_forked() {
        return;
    }
    let is_first = shared.latch.note(reason, shared.clock.now(), None);
    abort_now(shared);
    if is_first {
        shared.announce(None);
    }
}

/// Aborts all connections, once.
pub(crate) fn abort_now(shared: &Shared) {
    shared
        .latch
        .request()
        .aborted
        .get_or_insert(shared.clock.now());
    reject_queue(shared);
    if shared.latch.phase() < Phase::Aborting {
        let left = shared.registry.stragglers(shared.uptime());
        // Before the phase rises: the end, and with it the report, may come at any time from then on.
        shared.registry.record_stragglers(&left);
        shared.registry.publish(State::Aborting);
        if shared.latch.advance(Phase::Aborting) {
            for straggler in &left {
                log::warn!(
                    target: "gracious", conn = straggler.id, peer:% = straggler.peer;
                    "aborted connection {}: {straggler}", straggler.id,
                );
            }
        }
    }
    // Reject what was queued since the first pass. From here on `enqueue` sees `Phase::Aborting` and
    // rejects by itself.
    reject_queue(shared);
    shared.registry.abort_all();
}

/// Aborts all connections and waits until they are gone, but not for those whose handlers cannot be
/// dropped.
pub(super) async fn abort_and_close(shared: &Arc<Shared>) {
    abort_now(shared);
    let mut left = u64::MAX;
    loop {
        let gone = async {
            shared.emptied().await;
            true
        };
        let stalled = async {
            shared.clock.sleep(ABORT_STALL).await;
            false
        };
        let now = shared.registry.left();
        if future::or(gone, stalled).await {
            break;
        }
        if now >= left || shared.registry.left() >= now {
            shared.registry.abandon_all(shared);
            break;
        }
        left = now;
    }
    // Now there are descriptors for the peers that are queued, so that they end cleanly.
    close_listeners_unserved(shared);
    shared.close();
}

/// Ends a server that cannot begin to serve.
pub(crate) fn fail_start(shared: &Arc<Shared>, error: io::Error) {
    shared.fail(error);
    drop(DriverGuard::new(shared.clone()));
}

/// Ends a server that was never served.
pub(crate) fn drop_unserved(shared: &Arc<Shared>) {
    if shared.leave_to_owner() {
        return;
    }
    shared.shutdown(Reason::Dropped, None);
    close_listeners_unserved(shared);
    driver_lost(shared);
}

/// The server's task is gone: from here on the last connection to end closes the server.
fn driver_lost(shared: &Shared) {
    shared.registry.set_driver_lost();
    reject_queue(shared);
    shared.close_if_abandoned();
}

/// Stops a server whose task is dropped, as far as that needs no runtime.
pub(super) struct DriverGuard(Arc<Shared>);

impl DriverGuard {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }
}

impl Drop for DriverGuard {
    fn drop(&mut self) {
        let shared = &self.0;
        if shared.latch.phase() == Phase::Closed || shared.leave_to_owner() {
            return;
        }
        shared.shutdown(Reason::RuntimeGone, None);
        close_listeners_unserved(shared);
        shared.latch.shut_at(shared.clock.now());
        shared.registry.drain_all(shared.uptime());
        driver_lost(shared);
    }
}
