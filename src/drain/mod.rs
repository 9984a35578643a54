//! The server's own task: accept, shut the listeners, sweep them, ask the connections to end, wait,
//! abort what is left at the deadline, report.
//!
//! 1. All listeners are shut, those of linked servers included, before anything waits and before
//!    any connection is asked to end: a client that sees the end of its connection finds no
//!    listener of this server's open.
//! 2. The deadline runs from the end of the first sweep: by then the listeners are closed, or are
//!    kept for handshakes under way or for want of a descriptor, beside the drain.
//! 3. A deadline, an abort and the last connection's end are waited for together: a stop takes one
//!    deadline at most, however many listeners and connections it waits for.
//!
//! What has to happen even if this task is never polled again, because a handler blocks its thread
//! or the runtime is gone, is in [`abort`]: nothing there waits for the runtime. Futures that wait
//! for the end of the server do it in place of this task where it is late: see [`fallback`].

use std::future::Future;
use std::sync::Arc;

use futures_lite::future;

use self::abort::{DriverGuard, abort_and_close};
use self::sweep::{keep_sweeping, launch_queued, shut_listeners, sweep_and_close};
use crate::accept::spawn::{Launcher, Launchers};
use crate::accept::{AcceptorGuard, accept};
use crate::connection::closer::Closer;
use crate::lifecycle::Phase;
use crate::runtime::sleep_until;
use crate::shared::Shared;

pub(crate) mod abort;
pub(crate) mod fallback;
mod handshakes;
pub(crate) mod one;
mod spread;
mod sweep;

/// The server's own task.
pub(crate) fn run(
    shared: Arc<Shared>,
    launchers: Launchers,
) -> impl Future<Output = ()> + Send + 'static {
    // Made here and not in the `async` block: a runtime that is gone drops the future without
    // having polled it once, and then nothing in the block would have been made, or be dropped.
    let guard = DriverGuard::new(shared.clone());
    async move {
        serve_and_drain(&shared, launchers).await;
        drop(guard);
    }
}

/// Serves until a shutdown, then drains.
async fn serve_and_drain(shared: &Arc<Shared>, launchers: Launchers) {
    let Launchers {
        mut first,
        beside,
        mut queued,
    } = launchers;
    shared.start();
    for shard in 0..shared.lingering.shards() {
        first.spawn(shard, Box::pin(Closer::new(shared, shard)));
    }
    #[cfg(feature = "metrics")]
    first.spawn(
        0,
        Box::pin(crate::shared::metrics::keep_recording(shared.clone())),
    );
    for (mut launcher, set) in beside.into_iter().zip(1..) {
        let (shared, guard) = (shared.clone(), AcceptorGuard::of_set(shared, set));
        // What stays open through a drain has no shard of its own.
        let shard = if shared.listener_sets[set].keeps_open {
            0
        } else {
            set
        };
        let accepting = async move {
            begin(&shared, set, &mut *launcher).await;
            drop((launcher, guard));
        };
        first.spawn(shard as u16, Box::pin(accepting));
    }
    begin(shared, 0, &mut *first).await;

    // Invariant 1.
    shut_listeners(shared);
    let kept = sweep_and_close(shared, &mut *first).await;
    shared.latch.shut_at(shared.clock.now());
    shared.lingering.hurry();
    let idle = shared
        .registry
        .drain_busy(shared.uptime(), shared.config.spread);

    let settled = future::zip(
        async {
            keep_sweeping(shared, &mut *first, kept).await;
            close_last(shared, &mut *first).await;
        },
        launch_queued(shared, &mut *queued),
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

/// Runs the accept loop of a set, which tells when it has begun where anybody asks.
async fn begin(shared: &Arc<Shared>, set: usize, launcher: &mut dyn Launcher) {
    let accepting = accept(shared, set, launcher);
    #[cfg(feature = "_ready")]
    let accepting = shared.listener_sets[set].begin(accepting);
    accepting.await;
}

/// Waits until nothing is left but listeners that stay open through a drain, and their connections.
/// Then these are drained, too, as the others were.
async fn close_last(shared: &Arc<Shared>, launcher: &mut dyn Launcher) {
    if !shared.keeps_any_open() {
        return;
    }
    shared.emptied_but_last().await;
    shared.latch.come_to_the_last();
    // Invariant 1 holds for them by themselves.
    shut_listeners(shared);
    let kept = sweep_and_close(shared, launcher).await;
    shared.registry.drain_all(shared.uptime());
    keep_sweeping(shared, launcher, kept).await;
}

/// Waits for the earliest of all deadlines that were given, those given meanwhile included.
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
