//! A worker, a thread of a pool: it drives, or it helps.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use std::thread::{self, Thread};
use std::time::Instant;

use crossbeam_deque::{Injector, Steal, Stealer};

use super::driver::Batch;
use super::pool::{Job, LOCAL, Local, Pool};
use super::queues::Queues;
use super::spin::{AdaptiveSpin, TaskTime};
use crate::sync::lock;

/// How many tasks run between two looks at the sockets. A task that uses up its turn takes as long as
/// many that do not, and is the last.
const TASKS_PER_TICK: usize = 256;

/// A worker, as the other threads see it.
pub(super) struct Worker {
    pub(super) number: usize,
    /// The ways to the tasks in this worker's queues: to those that are ready, and to those that have
    /// used up their turn.
    stealers: [Stealer<Job>; 2],
    /// Counted up when the worker begins a task and when it ends one: odd while it is in a task.
    /// `Relaxed` will do: the watchdog compares what it reads with what it read 50 ms before.
    pub(super) task_steps: AtomicU64,
    /// The worker sleeps as a helper, or is about to, and no other thread has taken it off the
    /// count.
    parked: AtomicBool,
    thread: Mutex<Option<Thread>>,
}

impl Worker {
    /// A worker that runs the tasks in `queues`; it has no thread yet.
    pub(super) fn new(number: usize, queues: &Queues) -> Self {
        Self {
            number,
            stealers: [queues.ready.stealer(), queues.yielded.stealer()],
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
    pub(super) fn give_up_queues(&self, injector: &Injector<Job>) {
        for stealer in &self.stealers {
            // As many as there are now: the worker may go on at any time, and would be chased for ever.
            for _ in 0..stealer.len() {
                if let Steal::Success(job) = stealer.steal() {
                    injector.push(job);
                }
            }
        }
    }

    /// Runs the tasks that are ready, up to where the sockets have to be looked at, and then one of the
    /// tasks that had used up their turn: however many are ready, those have their turn, too. Gives how
    /// many it ran.
    ///
    /// Never inlined: `pop` would be a call for each task if it were inlined in two places.
    #[inline(never)]
    fn run_tick(&self, queues: &Queues) -> usize {
        queues.has_yielded.set(false);
        let mut ran = 0;
        while ran < TASKS_PER_TICK && !queues.has_yielded.get() {
            let Some(job) = queues.ready.pop() else {
                break;
            };
            self.run(job);
            ran += 1;
        }
        if let Some(job) = queues.pop_yielded() {
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
        let queues = Queues::new();
        let worker = {
            let mut workers = lock(&self.workers);
            let worker = Arc::new(Worker::new(workers.len(), &queues));
            workers.push(worker.clone());
            self.spawned.store(workers.len(), SeqCst);
            worker
        };
        let (pool, this) = (self.clone(), worker.clone());
        let name = format!("{}-{}", self.name, worker.number);
        let started = thread::Builder::new().name(name).spawn(move || {
            *lock(&this.thread) = Some(thread::current());
            let queues = Rc::new(queues);
            let local = Local {
                pool: pool.clone(),
                queues: queues.clone(),
            };
            LOCAL.with(|place| *place.borrow_mut() = Some(local));
            pool.work(&this, &queues);
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
    fn work(&self, worker: &Worker, queues: &Queues) {
        let mut batch = Batch::new();
        while !self.is_over() {
            if self.is_driver(worker) {
                self.drive(worker, queues, &mut batch);
            } else {
                self.help(worker, queues, &mut batch);
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
    /// something: the worker's own queues, the injector, another worker's queue if nothing is ready,
    /// the sockets. So none of them can keep the driver from the next.
    fn drive(&self, worker: &Worker, queues: &Queues, batch: &mut Batch) {
        let mut task_time = TaskTime::default();
        let mut spin = AdaptiveSpin::new(self.spin);
        loop {
            let begun = self.has_helpers.then(Instant::now);
            let ran = worker.run_tick(queues);
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
            self.take_of_others(worker, queues);
            let mut block = queues.is_empty();
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
            if self.has_helpers && task_time.is_worth_a_helper(queues.len()) {
                self.wake_one();
            }
        }
    }

    /// Runs tasks that other workers have not begun, then sleeps until it is woken.
    fn help(&self, worker: &Worker, queues: &Queues, batch: &mut Batch) {
        loop {
            loop {
                worker.run_tick(queues);
                if !queues.is_yielded_empty() {
                    self.hear_beside_driver(batch);
                }
                self.take_of_others(worker, queues);
                if queues.is_empty() {
                    break;
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

    /// Looks at the sockets on a helper that goes round with tasks which never pause. The driver looks,
    /// too, but may have to wait for a core. The caller looks at the injector next.
    fn hear_beside_driver(&self, batch: &mut Batch) {
        self.poller.wait(batch, false);
        if batch.has_wake() {
            // The driver sleeps on, and `Pool::wake` takes it for awake. `sleeping` is set before the
            // caller's look at the injector, as by `drive` (invariant 2): that look finds the task of a
            // push whose `wake` still saw `sleeping` cleared.
            self.sleeping.store(true, SeqCst);
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
    pub(super) fn wake_one(&self) {
        if self.parked.load(Relaxed) > 0 {
            let workers = lock(&self.workers);
            if let Some(worker) = workers.iter().find(|worker| self.unpark_if_parked(worker)) {
                worker.unpark();
            }
        }
    }

    /// Moves some tasks of the injector to this worker's queue, and if then no task is ready, some of
    /// another worker's.
    // The looks are a few instructions; the two moves are calls, and need what a call has to save.
    #[inline(always)]
    fn take_of_others(&self, worker: &Worker, queues: &Queues) {
        if !self.injector.is_empty() {
            self.take_injected(queues);
        }
        // Where all other workers sleep as helpers none of them has a task. A stale count does no
        // harm: a worker that has just woken runs its tasks itself.
        if queues.ready.is_empty() && self.parked.load(Relaxed) + 1 < self.spawned.load(Relaxed) {
            self.steal(worker, queues);
        }
    }

    #[inline(never)]
    fn take_injected(&self, queues: &Queues) {
        some_of(|| self.injector.steal_batch(&queues.ready));
    }

    /// Moves some of another worker's tasks to this worker's queues: of those that are ready, and only
    /// if there are none, of those that used up their turn.
    #[inline(never)]
    fn steal(&self, worker: &Worker, queues: &Queues) {
        let workers = lock(&self.workers);
        let others = || workers.iter().filter(|other| other.number != worker.number);
        let ready = &queues.ready;
        let is_ready = others().any(|other| some_of(|| other.stealers[0].steal_batch(ready)));
        if !is_ready && queues.is_yielded_empty() {
            queues.steal_yielded(|yielded| {
                others().any(|other| some_of(|| other.stealers[1].steal_batch(yielded)))
            });
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
