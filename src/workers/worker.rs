//! A thread of a pool: it drives, or it helps.

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
use super::pool::{Job, LOCAL, Local, Pool, Queues};
use super::spin::{AdaptiveSpin, TaskTime};
use crate::sync::lock;

/// How many tasks run between two looks at the sockets. One that uses up its turn takes as long as
/// many of those that do not, and is the last.
const TASKS_PER_TICK: usize = 256;

/// A thread of a pool, as the other threads see it.
pub(super) struct Worker {
    pub(super) number: usize,
    /// Of what is ready, and of the tasks that have used up their turn.
    stealers: [Stealer<Job>; 2],
    /// Counted up at the beginning and at the end of every task: odd inside one.
    pub(super) task_steps: AtomicU64,
    parked: AtomicBool,
    thread: Mutex<Option<Thread>>,
}

impl Worker {
    pub(super) fn new(number: usize, queues: &Queues) -> Self {
        Self {
            number,
            stealers: [queues.ready.stealer(), queues.yielded.stealer()],
            task_steps: AtomicU64::new(0),
            parked: AtomicBool::new(false),
            thread: Mutex::default(),
        }
    }

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

    /// Has others run what this thread has not begun.
    pub(super) fn give_up_queues(&self, injector: &Injector<Job>) {
        for stealer in &self.stealers {
            // As many as there are now: the thread may go on at any time.
            for _ in 0..stealer.len() {
                if let Steal::Success(job) = stealer.steal() {
                    injector.push(job);
                }
            }
        }
    }

    /// Runs what is ready, for a tick at most, and then one of the tasks that had used up their turn:
    /// however much is ready, they are not forgotten. Gives the number of tasks.
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
        if let Some(job) = queues.yielded.pop() {
            self.run(job);
            ran += 1;
        }
        ran
    }
}

impl Pool {
    /// Starts one more thread.
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
    fn work(&self, worker: &Worker, queues: &Queues) {
        let mut batch = Batch::new();
        while !self.is_over() {
            if self.is_driver(worker) {
                self.drive(worker, queues, &mut batch);
            } else {
                self.help(worker, queues, &mut batch);
            }
        }
        // The next thread finds that the pool is over, too.
        self.wake_all();
    }

    pub(super) fn is_driver(&self, worker: &Worker) -> bool {
        self.driver.load(SeqCst) == worker.number
    }

    /// Waits for events and runs what they wake, as long as it is this thread's role.
    ///
    /// Each round takes from every place where there may be something, and no more than a bounded
    /// part of it: the thread's own queues, the injector, another thread's queue if nothing is ready,
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
                // A handler blocked this thread, and another drives. The new driver may have gone to
                // sleep before this thread woke; the wake-up and the `sleeping` flag that were
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
                self.sleeping.store(true, SeqCst);
                // Pairs with `Pool::wake`: whoever pushes after this look sees `sleeping`.
                block = self.injector.is_empty() && !self.is_over();
            }
            self.poller.wait(batch, block);
            self.sleeping.store(false, SeqCst);
            if self.has_helpers && task_time.is_worth_a_helper(queues.len()) {
                self.wake_one();
            }
        }
    }

    /// Runs what other threads have not begun, then sleeps until it is woken.
    fn help(&self, worker: &Worker, queues: &Queues, batch: &mut Batch) {
        loop {
            loop {
                worker.run_tick(queues);
                if !queues.yielded.is_empty() {
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

    /// Looks at the sockets on a thread that goes round with tasks which never pause: the driver does,
    /// too, but it may have to wait for a core. The caller looks at the injector next.
    fn hear_beside_driver(&self, batch: &mut Batch) {
        self.poller.wait(batch, false);
        if batch.has_wake() {
            // The driver sleeps on, and `Pool::wake` believes that it does not. Set before the look at
            // the injector, as by `drive`: a push that still found it cleared is seen by that look.
            self.sleeping.store(true, SeqCst);
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
    pub(super) fn wake_one(&self) {
        if self.parked.load(Relaxed) > 0 {
            let workers = lock(&self.workers);
            if let Some(worker) = workers.iter().find(|worker| self.unpark_if_parked(worker)) {
                worker.unpark();
            }
        }
    }

    /// Takes some of what others have made runnable, and if then nothing is ready, some of what
    /// another thread has.
    fn take_of_others(&self, worker: &Worker, queues: &Queues) {
        if !self.injector.is_empty() {
            some_of(|| self.injector.steal_batch(&queues.ready));
        }
        // Where all other threads sleep none of them has anything.
        if !queues.ready.is_empty() || self.parked.load(Relaxed) + 1 >= self.spawned.load(Relaxed) {
            return;
        }
        let workers = lock(&self.workers);
        let others = || workers.iter().filter(|other| other.number != worker.number);
        let [ready, yielded] = [&queues.ready, &queues.yielded];
        let is_ready = others().any(|other| some_of(|| other.stealers[0].steal_batch(ready)));
        if !is_ready && yielded.is_empty() {
            others().any(|other| some_of(|| other.stealers[1].steal_batch(yielded)));
        }
    }
}

/// Tries again for as long as others are at the same place, each of which has then taken some.
fn some_of(mut steal: impl FnMut() -> Steal<()>) -> bool {
    loop {
        match steal() {
            Steal::Success(()) => return true,
            Steal::Empty => return false,
            Steal::Retry => {}
        }
    }
}
