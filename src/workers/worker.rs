//! A worker, a thread of a pool: it drives, or it helps.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use std::thread::{self, Thread};
use std::time::Instant;

use crossbeam_deque::{Injector, Steal, Stealer, Worker as Queue};

use super::driver::Batch;
use super::pool::{Job, LOCAL, Local, Pool};
use super::spin::{AdaptiveSpin, TaskTime};
use crate::socket::budget;
use crate::sync::lock;

/// How many tasks run between two looks at the sockets, and how many of them may use up their turn,
/// which takes many times as long as most tasks do.
const TASKS_PER_TICK: usize = 256;
const TURNS_PER_TICK: u32 = 8;

/// A worker, as the other threads see it.
pub(super) struct Worker {
    pub(super) number: usize,
    /// The way to the tasks in this worker's queue.
    stealer: Stealer<Job>,
    /// Counted up when the worker begins a task and when it ends one: odd while it is in a task.
    /// `Relaxed` will do: the watchdog compares what it reads with what it read 50 ms before.
    pub(super) task_steps: AtomicU64,
    /// The worker sleeps as a helper, or is about to, and no other thread has taken it off the
    /// count.
    parked: AtomicBool,
    thread: Mutex<Option<Thread>>,
}

impl Worker {
    /// A worker that runs the tasks in `queue`; it has no thread yet.
    pub(super) fn new(number: usize, queue: &Queue<Job>) -> Self {
        Self {
            number,
            stealer: queue.stealer(),
            task_steps: AtomicU64::new(0),
            parked: AtomicBool::new(false),
            thread: Mutex::default(),
        }
    }

    /// Has the thread look again, if it sleeps or is about to.
    pub(super) fn unpark(&self) {
        if let Some(thread) = &*lock(&self.thread) {
            thread.unpark();
        }
    }

    /// Runs one task, up to where it waits.
    fn run(&self, job: Job) {
        let steps = self.task_steps.load(Relaxed);
        self.task_steps.store(steps + 1, Relaxed);
        // Panics of handlers are caught where handlers are polled. Any other must not end the
        // thread.
        let _caught = catch_unwind(AssertUnwindSafe(|| job.run()));
        self.task_steps.store(steps + 2, Relaxed);
    }

    /// Moves the tasks that this worker has not begun to the injector, for other workers.
    pub(super) fn give_up_queue(&self, injector: &Injector<Job>) {
        // As many as there are now: the worker may go on at any time, and would be chased for ever.
        for _ in 0..self.stealer.len() {
            if let Steal::Success(job) = self.stealer.steal() {
                injector.push(job);
            }
        }
    }

    /// Runs the tasks in this worker's queue, up to where the sockets have to be looked at; gives
    /// how many it ran.
    ///
    /// Never inlined: the queue's `pop`, which is inlined here, would be a call for each task if there
    /// were two of it.
    #[inline(never)]
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
    /// Starts one more worker.
    ///
    /// # Errors
    /// The system's, where there is no thread to be had.
    pub(super) fn spawn_worker(self: &Arc<Self>) -> io::Result<Arc<Worker>> {
        let queue = Queue::new_fifo();
        let worker = {
            let mut workers = lock(&self.workers);
            let worker = Arc::new(Worker::new(workers.len(), &queue));
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
                // This worker is the last in the list: one thread at a time starts workers, the one
                // that
                // starts the server, and the watchdog afterwards.
                let mut workers = lock(&self.workers);
                workers.pop();
                self.spawned.store(workers.len(), SeqCst);
                return Err(error);
            }
        };
        *lock(&worker.thread) = Some(thread.thread().clone());
        Ok(worker)
    }

    /// A worker's life.
    fn work(&self, worker: &Worker, queue: &Queue<Job>) {
        let mut batch = Batch::new();
        while !self.is_over() {
            if self.is_driver(worker) {
                self.drive(worker, queue, &mut batch);
            } else {
                self.help(worker, queue);
            }
        }
        // A worker that sleeps finds that the pool is over, too.
        self.wake_all();
    }

    /// Whether a worker has the role of the driver.
    pub(super) fn is_driver(&self, worker: &Worker) -> bool {
        self.driver.load(SeqCst) == worker.number
    }

    /// Waits for events and runs the tasks that they wake, as long as this worker is the driver.
    ///
    /// Each round takes a bounded part of what there is in every place where there may be
    /// something: the worker's own queue, the injector, another worker's queue if there is nothing
    /// else, the sockets. So none of them can keep the driver from the next.
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
                // A handler blocked this thread, and another drives. The new driver may have gone
                // to sleep before this thread woke; the wake-up and the `sleeping` flag that were
                // consumed here may have been its own. Pass the wake-up on.
                self.poller.wake();
                return;
            }
            self.take_injected(queue);
            if queue.is_empty() {
                self.steal(worker, queue);
            }
            let mut block = queue.is_empty();
            if block
                && spin.spin(|| self.poller.wait(batch, false) > 0 || !self.injector.is_empty())
            {
                continue;
            }
            if block {
                // These two `SeqCst` operations pair with those of `schedule`, which pushes to the
                // injector first and swaps `sleeping` afterwards, in `Pool::wake`. Either this look
                // sees the task, or that swap sees `sleeping` and ends the wait.
                self.sleeping.store(true, SeqCst);
                block = self.injector.is_empty() && !self.is_over();
            }
            self.poller.wait(batch, block);
            self.sleeping.store(false, SeqCst);
            if self.has_helpers && task_time.is_worth_a_helper(queue.len()) {
                self.wake_one();
            }
        }
    }

    /// Runs tasks that other workers have not begun, then sleeps until it is woken.
    fn help(&self, worker: &Worker, queue: &Queue<Job>) {
        loop {
            while !queue.is_empty() || self.steal(worker, queue) {
                worker.run_queue(queue);
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

    /// Sleeps until another thread calls `Worker::unpark`.
    fn park(&self, worker: &Worker) {
        // Counted up before the flag is set: the thread that clears the flag counts down, and would
        // otherwise count below zero.
        self.parked.fetch_add(1, SeqCst);
        worker.parked.store(true, SeqCst);
        thread::park();
        // `thread::park` may also return for no reason, with the flag still set.
        self.unpark_if_parked(worker);
    }

    /// Takes a helper off the count of those that sleep; `false` where another thread has done so,
    /// or it does not sleep. Of several threads one gets `true`, and wakes it.
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

    /// Moves some tasks of another worker's queue to this worker's; gives whether there were any.
    fn steal(&self, worker: &Worker, queue: &Queue<Job>) -> bool {
        // Where all other workers sleep as helpers none of them has a task. A stale count does no
        // harm: a worker that has just woken runs its tasks itself.
        if self.parked.load(Relaxed) + 1 >= self.spawned.load(Relaxed) {
            return false;
        }
        let workers = lock(&self.workers);
        let mut others = workers.iter().filter(|other| other.number != worker.number);
        others.any(|other| some_of(|| other.stealer.steal_batch(queue)))
    }

    /// Moves some tasks of the injector to this worker's queue.
    fn take_injected(&self, queue: &Queue<Job>) {
        if !self.injector.is_empty() {
            some_of(|| self.injector.steal_batch(queue));
        }
    }
}

/// Steals until there is an answer. Each retry means that another thread has taken something from
/// the same place meanwhile.
fn some_of(mut steal: impl FnMut() -> Steal<()>) -> bool {
    loop {
        match steal() {
            Steal::Success(()) => return true,
            Steal::Empty => return false,
            Steal::Retry => {}
        }
    }
}
