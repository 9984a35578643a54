//! The watchdog: a thread that notices when a handler blocks a worker, and has another worker take
//! over.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::thread::{self, Thread};
use std::time::Duration;

use super::pool::Pool;
use super::worker::Worker;
use crate::log;
use crate::sync::lock;

/// How often the workers are looked at while there is any task.
const LOOK: Duration = Duration::from_millis(50);
/// With more blocked workers than these a pool is left as it is: no further worker is started.
const MOST_BLOCKED: usize = 256;

/// Starts the watchdog. After each look at the workers it calls `on_look`, with whether one of them
/// is in the same task as at the last look; it calls `on_failure` once, if a poller reports nothing
/// any more.
pub(super) fn start(
    pools: Vec<Arc<Pool>>,
    on_look: impl FnMut(bool) + Send + 'static,
    on_failure: impl FnOnce(io::Error) + Send + 'static,
) -> io::Result<Thread> {
    let thread = thread::Builder::new().name("gracious-watch".into());
    let thread = thread.spawn(move || watch(&pools, on_look, on_failure))?;
    Ok(thread.thread().clone())
}

/// The watchdog's life.
fn watch(pools: &[Arc<Pool>], mut on_look: impl FnMut(bool), on_failure: impl FnOnce(io::Error)) {
    let mut on_failure = Some(on_failure);
    let mut seen = vec![Vec::new(); pools.len()];
    while !pools.iter().all(|pool| pool.is_over()) {
        if !pools.iter().any(|pool| pool.has_tasks()) {
            thread::park_timeout(Duration::from_secs(1));
            continue;
        }
        thread::park_timeout(LOOK);
        let mut is_blocked = false;
        for (pool, seen) in pools.iter().zip(&mut seen) {
            is_blocked |= pool.replace_blocked(seen);
        }
        on_look(is_blocked);
        if let Some(error) = pools.iter().find_map(|pool| pool.poller.failure()) {
            if let Some(on_failure) = on_failure.take() {
                on_failure(error);
            }
        }
    }
}

impl Pool {
    /// Has another worker take over where the driver is in the same task as at the last look, when
    /// the steps of the workers were `seen`. Gives whether any worker is.
    fn replace_blocked(self: &Arc<Self>, seen: &mut Vec<u64>) -> bool {
        let workers = lock(&self.workers).clone();
        seen.resize(workers.len(), 0);
        let mut blocked = Vec::new();
        for (worker, seen) in workers.iter().zip(seen) {
            let steps = worker.task_steps.load(Relaxed);
            if steps % 2 == 1 && steps == *seen {
                blocked.push(worker);
            }
            *seen = steps;
        }
        if blocked.is_empty() || blocked.len() > MOST_BLOCKED {
            return false;
        }
        if !self.pinned {
            if blocked.iter().any(|worker| self.is_driver(worker)) {
                self.replace_driver(&workers);
            }
            // The tasks that wait behind a blocked handler go to the injector, from which the
            // driver takes tasks in every round. From another worker's queue it steals only if it
            // has nothing of that kind itself.
            for worker in blocked {
                worker.give_up_queues(&self.injector);
            }
            self.wake();
        }
        true
    }

    /// Makes another worker the driver: one that sleeps, or a new one.
    fn replace_driver(self: &Arc<Self>, workers: &[Arc<Worker>]) {
        let successor = match workers.iter().find(|worker| self.unpark_if_parked(worker)) {
            Some(worker) => worker.clone(),
            None => match self.spawn_worker() {
                Ok(worker) => worker,
                Err(error) => {
                    // Tried again at every look, and said once.
                    if !self.spawn_failed.swap(true, Relaxed) {
                        log::error!(target: "gracious", "cannot start another worker: {error}");
                    }
                    return;
                }
            },
        };
        // The role is given first, and the successor woken afterwards. Swapped, it could wake, find
        // that it is not the driver, and sleep again. `SeqCst` pairs with the load in `is_driver`.
        self.driver.store(successor.number, SeqCst);
        successor.unpark();
    }
}
