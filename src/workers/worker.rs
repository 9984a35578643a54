//! A thread of a pool: it drives, or it helps.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use std::thread::{self, Thread};
use std::time::Instant;

use crossbeam_deque::{Steal, Stealer, Worker as Queue};

use super::driver::Batch;
use super::pool::{Job, LOCAL, Local, Pool};
use super::spin::{AdaptiveSpin, TaskTime};
use crate::socket::budget;
use crate::sync::lock;

/// How many tasks run between two looks at the sockets, and how many of them may use up their turn:
/// that takes many times as long as most tasks do.
const TASKS_PER_TICK: usize = 256;
const TURNS_PER_TICK: u32 = 8;

/// A thread of a pool, as the other threads see it.
pub(super) struct Worker {
    pub(super) number: usize,
    stealer: Stealer<Job>,
    /// Counted up at the beginning and at the end of every task: odd inside one.
    pub(super) task_steps: AtomicU64,
    parked: AtomicBool,
    thread: Mutex<Option<Thread>>,
}

impl Worker {
    pub(super) fn unpark(&self) {
        if let Some(thread) = &*lock(&self.thread) {
            thread.unpark();
        }
    }

    fn run(&self, job: Job) {
        let steps = self.task_steps.load(Relaxed);
        self.task_steps.store(steps + 1, Relaxed);
        // A panic here is not a handler's: those are caught where handlers are polled.
        let _caught = catch_unwind(AssertUnwindSafe(|| job.run()));
        self.task_steps.store(steps + 2, Relaxed);
    }

    /// Runs what is in this thread's queue, for a tick at most; gives the number of tasks.
    fn run_queue(&self, queue: &Queue<Job>) -> usize {
        let before = budget::turns_used_up();
        let turns = || budget::turns_used_up().wrapping_sub(before);
        let mut ran = 0;
        while ran < TASKS_PER_TICK && turns() < TURNS_PER_TICK {
            let Some(job) = queue.pop() else {
                break;
            };
            self.run(job);
            ran += 1;
        }
        ran
    }
}

impl Pool {
    /// Starts one more thread.
    pub(super) fn spawn_worker(self: &Arc<Self>) -> io::Result<Arc<Worker>> {
        let queue = Queue::new_fifo();
        let worker = {
            let mut workers = lock(&self.workers);
            let worker = Arc::new(Worker {
                number: workers.len(),
                stealer: queue.stealer(),
                task_steps: AtomicU64::new(0),
                parked: AtomicBool::new(false),
                thread: Mutex::default(),
            });
            workers.push(worker.clone());
            self.spawned.store(workers.len(), SeqCst);
            worker
        };
        let (pool, this) = (self.clone(), worker.clone());
        let name = format!("{}-{}", self.name, worker.number);
        let started = thread::Builder::new().name(name).spawn(move || {
            *lock(&this.thread) = Some(thread::current());
            let queue = Rc::new(queue);
            let local = Local {
                pool: pool.clone(),
                queue: queue.clone(),
            };
            LOCAL.with(|place| *place.borrow_mut() = Some(local));
            pool.work(&this, &queue);
            LOCAL.with(|place| *place.borrow_mut() = None);
        });
        let thread = match started {
            Ok(thread) => thread,
            Err(error) => {
                // This worker is the last in the list: only one thread at a time spawns.
                let mut workers = lock(&self.workers);
                workers.pop();
                self.spawned.store(workers.len(), SeqCst);
                return Err(error);
            }
        };
        *lock(&worker.thread) = Some(thread.thread().clone());
        Ok(worker)
    }

    /// A thread's life.
    fn work(&self, worker: &Worker, queue: &Queue<Job>) {
        let mut batch = Batch::new();
        while !self.is_over() {
            if self.is_driver(worker) {
                self.drive(worker, queue, &mut batch);
            } else {
                self.help(worker, queue);
            }
        }
        // The next thread finds that the pool is over, too.
        self.wake_all();
    }

    pub(super) fn is_driver(&self, worker: &Worker) -> bool {
        self.driver.load(SeqCst) == worker.number
    }

    /// Waits for events and runs what they wake, as long as it is this thread's role.
    fn drive(&self, worker: &Worker, queue: &Queue<Job>, batch: &mut Batch) {
        let mut task_time = TaskTime::default();
        let mut spin = AdaptiveSpin::new(self.spin);
        loop {
            let begun = self.has_helpers.then(Instant::now);
            let ran = worker.run_queue(queue);
            if let Some(begun) = begun {
                task_time.add(ran, begun);
            }
            if self.is_over() {
                return;
            }
            if !self.is_driver(worker) {
                // A handler blocked this thread, and another drives. The new driver may have gone to
                // sleep before this thread woke; the wake-up and the `sleeping` flag that were
                // consumed here may have been its own. Pass the wake-up on.
                self.poller.wake();
                return;
            }
            self.drain_injector(queue);
            if queue.is_empty() {
                if let Some(job) = self.steal(worker, queue) {
                    worker.run(job);
                    continue;
                }
            }
            let mut block = queue.is_empty();
            if block
                && spin.spin(|| self.poller.wait(batch, false) > 0 || !self.injector.is_empty())
            {
                continue;
            }
            if block {
                self.sleeping.store(true, SeqCst);
                // Pairs with `Pool::wake`: whoever pushes after this look sees `sleeping`.
                block = self.injector.is_empty() && !self.is_over();
            }
            self.poller.wait(batch, block);
            self.sleeping.store(false, SeqCst);
            if self.has_helpers && task_time.is_worth_a_helper(queue.len()) {
                self.wake_one();
            }
        }
    }

    /// Runs what other threads have not begun, then sleeps until it is woken.
    fn help(&self, worker: &Worker, queue: &Queue<Job>) {
        loop {
            loop {
                worker.run_queue(queue);
                if !queue.is_empty() {
                    continue;
                }
                match self.steal(worker, queue) {
                    Some(job) => {
                        worker.run(job);
                    }
                    None => break,
                }
            }
            if self.is_over() || self.is_driver(worker) {
                return;
            }
            self.park(worker);
            if self.is_over() || self.is_driver(worker) {
                return;
            }
        }
    }

    fn park(&self, worker: &Worker) {
        // Counted before the flag is set: whoever clears the flag counts down.
        self.parked.fetch_add(1, SeqCst);
        worker.parked.store(true, SeqCst);
        thread::park();
        // `park` may return for no reason; then nobody has cleared the flag yet.
        self.unpark_if_parked(worker);
    }

    /// Takes a helper off the list of those that sleep; `false` where it was not on it.
    pub(super) fn unpark_if_parked(&self, worker: &Worker) -> bool {
        let was_parked = worker.parked.swap(false, SeqCst);
        if was_parked {
            self.parked.fetch_sub(1, SeqCst);
        }
        was_parked
    }

    /// Wakes one helper, if one sleeps.
    fn wake_one(&self) {
        if self.parked.load(Relaxed) > 0 {
            let workers = lock(&self.workers);
            if let Some(worker) = workers.iter().find(|worker| self.unpark_if_parked(worker)) {
                worker.unpark();
            }
        }
    }

    /// Takes some of another thread's queue into this thread's, and gives the first of it.
    fn steal(&self, worker: &Worker, queue: &Queue<Job>) -> Option<Job> {
        // Where all other threads sleep none of them has anything.
        if self.parked.load(Relaxed) + 1 >= self.spawned.load(Relaxed) {
            return None;
        }
        let workers = lock(&self.workers);
        for other in workers.iter().filter(|other| other.number != worker.number) {
            loop {
                match other.stealer.steal_batch_and_pop(queue) {
                    Steal::Success(job) => return Some(job),
                    Steal::Empty => break,
                    Steal::Retry => {}
                }
            }
        }
        None
    }

    fn drain_injector(&self, queue: &Queue<Job>) {
        while !self.injector.is_empty() && self.injector.steal_batch(queue).is_retry() {}
    }
}
