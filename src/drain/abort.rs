//! The acts of a stop that need no runtime, so that they can be done from any thread, and where the
//! runtime is gone or all its threads are blocked. ([`abort_and_close`] waits, but any executor
//! will do: a future that waits for the end of a server polls it, too.)
//!
//! 1. The phase rises first, and the connections in the queue are rejected afterwards. A connection
//!    that was queued before that pass is rejected by it, and one that is queued later by
//!    `enqueue`, which looks at the phase after it has pushed. Swapped, a connection that is queued
//!    between the two acts would wait for ever.
//! 2. Stragglers are recorded before the phase rises: from then on the server can be closed, and
//!    its report made, at any moment.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_lite::future;

use super::sweep::{close_listeners_unserved, close_listeners_without_runtime};
use crate::accept::admission::reject_queue;
use crate::lifecycle::{Phase, Reason, State};
use crate::log;
use crate::shared::Shared;

/// How long, after all connections were aborted, none of them may be gone until those that are left
/// are given up. Dropping a handler takes microseconds; a handler that blocks its thread cannot be
/// dropped.
const ABORT_STALL: Duration = Duration::from_millis(250);

/// Ends the server now. Where no stop was asked for before, this is the first request of one, and
/// no connection is asked to end before it is aborted.
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

/// Aborts all connections, those included that come later. May be called again and by several
/// threads.
pub(crate) fn abort_now(shared: &Shared) {
    // Before the lock: a user's runtime may have a clock of its own.
    let now = shared.clock.now();
    shared.latch.request().aborted.get_or_insert(now);
    reject_queue(shared);
    if shared.latch.phase() < Phase::Aborting {
        let left = shared.registry.stragglers(shared.uptime());
        // Invariant 2.
        shared.registry.record_stragglers(&left);
        shared.registry.publish(State::Aborting);
        if shared.latch.advance(Phase::Aborting) {
            for straggler in &left {
                log::warn!(
                    target: "gracious", conn = straggler.id;
                    "aborted a connection from {straggler}",
                );
            }
        }
    }
    // What was queued since the first pass (invariant 1). That pass comes before the stragglers are
    // listed, so that connections which never had a handler are not among them.
    reject_queue(shared);
    shared.registry.abort_all();
}

/// Aborts all connections, waits until they are gone, and closes the server. Connections whose
/// handlers cannot be dropped, because they block their threads, are not waited for.
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
        // None was gone in that time.
        if now >= left || shared.registry.left() >= now {
            shared.registry.abandon_all(shared);
            break;
        }
        left = now;
    }
    // After the connections: their descriptors are free by now, so peers for which there was none
    // can be accepted and closed cleanly. Swapped, they would be reset.
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
    close_listeners_without_runtime(shared);
    driver_lost(shared);
}

/// Leaves the rest of a stop to the connections, since the server's task is gone: the last of them
/// to end closes the server.
fn driver_lost(shared: &Shared) {
    shared.registry.set_driver_lost();
    // No accept loop and no sweep is left to launch what is queued.
    reject_queue(shared);
    // After `set_driver_lost`: a connection that ended before that call did not close the server.
    shared.close_if_abandoned();
}

/// Belongs to the server's task: where the task is dropped before its end, this does what it would
/// have done, as far as that needs no runtime.
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
        close_listeners_without_runtime(shared);
        shared.latch.shut_at(shared.clock.now());
        shared.registry.drain_all(shared.uptime());
        driver_lost(shared);
    }
}
