//! A server's life as its own task lives it: accept, shut the listeners, drain, abort, report.
//!
//! What has to happen even if this task is never polled again, because a handler blocks its thread
//! or the runtime is gone, is in [`abort`], where nothing waits for the runtime. A future that waits
//! for the end of the server sees to it that it is called: see [`fallback`].

use std::future::Future;
use std::sync::Arc;

use futures_lite::future;

use self::abort::{DriverGuard, abort_and_close};
use self::sweep::{close_listeners, keep_sweeping, launch_queued, shut_listeners, sweep};
use crate::accept::spawn::Launcher;
use crate::accept::{AcceptorGuard, accept};
use crate::lifecycle::Phase;
use crate::runtime::sleep_until;
use crate::shared::Shared;

pub(crate) mod abort;
pub(crate) mod fallback;
mod spread;
pub(crate) mod sweep;

/// Serves until a shutdown, and drains.
pub(crate) fn run(
    shared: Arc<Shared>,
    launcher: Arc<dyn Launcher>,
) -> impl Future<Output = ()> + Send + 'static {
    // Made here, not in the future: a runtime that is gone drops that without a poll.
    let guard = DriverGuard::new(shared.clone());
    async move {
        serve_and_drain(&shared, &launcher).await;
        drop(guard);
    }
}

async fn serve_and_drain(shared: &Arc<Shared>, launcher: &Arc<dyn Launcher>) {
    shared.start();
    for set in 1..shared.listener_sets.len() {
        let (shared, guard) = (shared.clone(), AcceptorGuard::new(shared));
        let beside = launcher.clone();
        let accepting = async move {
            accept(&shared, set, &*beside).await;
            drop((beside, guard));
        };
        launcher.spawn(set as u16, Box::pin(accepting));
    }
    accept(shared, 0, &**launcher).await;

    // All listeners, before anything waits or any connection is told.
    shut_listeners(shared);
    let is_swept = sweep(shared, &**launcher);
    if is_swept && shared.config.sweep.is_zero() {
        close_listeners(shared, &**launcher);
    }
    shared.latch.shut_at(shared.clock.now());
    let idle = shared
        .registry
        .drain_busy(shared.uptime(), shared.config.spread);

    let settled = future::zip(
        keep_sweeping(shared, &**launcher),
        launch_queued(shared, &**launcher),
    );
    let drained = async {
        settled.await;
        shared.emptied().await;
    };
    let overdue = async {
        future::or(deadline(shared), shared.latch.reached(Phase::Aborting)).await;
        abort_and_close(shared).await;
    };
    let told = async {
        spread::drain_one_by_one(shared, idle).await;
        future::pending().await
    };
    future::or(drained, future::or(overdue, told)).await;
    shared.close();
}

/// Waits for the earliest deadline of all that were given, also of those that are given meanwhile.
async fn deadline(shared: &Shared) {
    loop {
        let changed = shared.latch.listen();
        let deadline = shared.deadline();
        if deadline.is_some_and(|deadline| deadline <= shared.clock.now()) {
            return;
        }
        future::or(sleep_until(&*shared.clock, deadline), changed).await;
    }
}
