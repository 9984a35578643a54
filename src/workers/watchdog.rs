//! The thread that notices handlers which block a worker, and has another worker take over.

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
/// How many workers may be blocked at once before that is left alone.
const MOST_BLOCKED: usize = 256;

/// Starts to watch over pools. After each look `on_look` is told whether a worker is where it was at
/// the last one.
pub(super) fn start(
    pools: Vec<Arc<Pool>>,
    on_look: impl FnMut(bool) + Send + 'static,
) -> io::Result<Thread> {
    let thread = thread::Builder::new().name("gracious-watch".into());
    let thread = thread.spawn(move || watch(&pools, on_look))?;
    Ok(thread.thread().clone())
}

fn watch(pools: &[Arc<Pool>], mut on_look: impl FnMut(bool)) {
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
    }
}

impl Pool {
    /// Has another worker take over where a handler has blocked the driver since the last look, at
    /// which the steps of the workers were `seen`. Gives whether any worker is blocked.
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
            // What waits behind a blocked handler can be taken by the driver.
            self.wake();
        }
        true
    }

    fn replace_driver(self: &Arc<Self>, workers: &[Arc<Worker>]) {
        let successor = match workers.iter().find(|worker| self.unpark_if_parked(worker)) {
            Some(worker) => worker.clone(),
            None => match self.spawn_worker() {
                Ok(worker) => worker,
                Err(error) => {
                    // It is tried again at every look.
                    if !self.spawn_failed.swap(true, Relaxed) {
                        log::error!(target: "gracious", error:%; "cannot start another worker: {error}");
                    }
                    return;
                }
            },
        };
        // The role first: a successor that woke before it would find nothing to do and sleep again.
        self.driver.store(successor.number, SeqCst);
        successor.unpark();
    }
}
