//! Futures that wait for the end of a server abort it in place of the server's own task, where that
//! is late. The task is late where it gets no thread, because handlers block them all; a waiting
//! future is polled by whatever executor its owner uses, a `block_on` in `main` for instance.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_lite::future;

use super::abort::abort_and_close;
use crate::lifecycle::Phase;
use crate::report::Report;
use crate::runtime::sleep_until;
use crate::shared::{SelfWait, Shared};

/// How late the server's own task has to be until a waiting future does its work.
const FALLBACK_DELAY: Duration = Duration::from_millis(500);

/// Waits until the server is closed, and gives its report; where this is awaited in the server's
/// own tracked work, or by the handler of `connection`, until only such self-waiters are left.
pub(crate) async fn closed(shared: Arc<Shared>, connection: Option<u64>) -> Report {
    let mut wait = SelfWait::new(&shared, connection);
    if wait.is_handler() {
        // A handler cannot abort the server in place of its task: it would be dropped itself.
        let never = future::pending::<Report>();
        return wait.race(never).await.unwrap_or_else(|report| report);
    }
    let ended = wait.race(closed_or_late(&shared)).await;
    ended.map_or_else(|report| report, |()| shared.report())
}

/// Waits until the server is closed; aborts it where its own task is late.
async fn closed_or_late(shared: &Arc<Shared>) {
    let closed = shared.latch.reached(Phase::Closed);
    let fallback = async {
        loop {
            let changed = shared.latch.listen();
            future::or(sleep_until(&*shared.clock, fallback_at(shared)), changed).await;
            if fallback_at(shared).is_some_and(|at| at <= shared.clock.now()) {
                return abort_and_close(shared).await;
            }
        }
    };
    future::or(closed, fallback).await;
}

/// When a waiting future has to abort the server: a delay after the server's own task should have,
/// or after it did and nothing came of it. `None` while there is no such time.
fn fallback_at(shared: &Shared) -> Option<Instant> {
    if shared.latch.phase() < Phase::Draining {
        return None;
    }
    // A server that is not served yet has no task that could be late.
    let serving_since = shared.serving_since()?;
    let request = shared.latch.request().clone();
    if let Some(aborted) = request.aborted {
        return aborted.checked_add(FALLBACK_DELAY);
    }
    // Where the listeners are not shut yet, the deadline runs from when they should have been.
    let shut = request.shut.or_else(|| {
        let begun = request.asked?.max(serving_since);
        begun.checked_add(shared.lame_duck())
    });
    let deadline = request.deadline(shared.config.deadline, shut)?;
    deadline.checked_add(FALLBACK_DELAY)
}
