//! A pool's driver, which sleeps in the poller, and its helpers, which sleep in `thread::park`.

use loom::sync::{Arc, Condvar};
use loom::thread::{self, Thread};

use crate::explore;
use crate::sync::atomic::Ordering::SeqCst;
use crate::sync::atomic::{AtomicBool, AtomicUsize};
use crate::sync::{Mutex, lock};

struct Pool {
    poller: Poller,
    injector: Injector,
    workers: Mutex<Vec<Arc<Worker>>>,
    driver: AtomicUsize,
    sleeping: AtomicBool,
    parked: AtomicUsize,
    tasks: AtomicUsize,
    stopping: AtomicBool,
    /// How many tasks were run.
    ran: Mutex<usize>,
}

/// An epoll with its eventfd: each write ends a wait, that of one thread.
struct Poller {
    wakes: Mutex<bool>,
    waiting: Condvar,
}

impl Poller {
    fn wake(&self) {
        *lock(&self.wakes) = true;
        self.waiting.notify_one();
    }

    /// Gives whether it was woken.
    fn wait(&self, block: bool) -> bool {
        let mut wakes = lock(&self.wakes);
        while block && !*wakes {
            wakes = self.waiting.wait(wakes).unwrap();
        }
        std::mem::take(&mut *wakes)
    }
}

/// As crossbeam's, the loads and the count of whose `is_empty` and `push` are `SeqCst`.
struct Injector {
    jobs: Mutex<usize>,
    pushed: AtomicUsize,
    taken: AtomicUsize,
}

impl Injector {
    fn push(&self) {
        let mut jobs = lock(&self.jobs);
        *jobs += 1;
        self.pushed.fetch_add(1, SeqCst);
    }

    fn is_empty(&self) -> bool {
        self.taken.load(SeqCst) == self.pushed.load(SeqCst)
    }

    fn steal(&self) -> bool {
        let mut jobs = lock(&self.jobs);
        if *jobs == 0 {
            return false;
        }
        *jobs -= 1;
        self.taken.fetch_add(1, SeqCst);
        true
    }
}

struct Worker {
    number: usize,
    parked: AtomicBool,
    thread: Mutex<Option<Thread>>,
}

impl Worker {
    fn unpark(&self) {
        if let Some(thread) = &*lock(&self.thread) {
            thread.unpark();
        }
    }
}

impl Pool {
    fn new(tasks: usize, workers: usize) -> Arc<Self> {
        let worker = |number| {
            Arc::new(Worker {
                number,
                parked: AtomicBool::new(false),
                thread: Mutex::new(None),
            })
        };
        Arc::new(Self {
            poller: Poller {
                wakes: Mutex::new(false),
                waiting: Condvar::new(),
            },
            injector: Injector {
                jobs: Mutex::new(0),
                pushed: AtomicUsize::new(0),
                taken: AtomicUsize::new(0),
            },
            workers: Mutex::new((0..workers).map(worker).collect()),
            driver: AtomicUsize::new(0),
            sleeping: AtomicBool::new(false),
            parked: AtomicUsize::new(0),
            tasks: AtomicUsize::new(tasks),
            stopping: AtomicBool::new(false),
            ran: Mutex::new(0),
        })
    }

    /// Starts a worker's thread: `Pool::spawn_worker` and `Pool::work`.
    fn start(pool: &Arc<Self>, number: usize) -> thread::JoinHandle<()> {
        let (pool, worker) = (pool.clone(), lock(&pool.workers)[number].clone());
        thread::spawn(move || {
            *lock(&worker.thread) = Some(thread::current());
            while !pool.is_over() {
                match pool.is_driver(&worker) {
                    true => pool.drive(&worker),
                    false => pool.help(&worker),
                }
            }
        })
    }

    /// A task is made runnable on a thread of others: `schedule`.
    fn schedule(&self) {
        self.injector.push();
        self.wake();
    }

    fn run_all(&self) {
        while self.injector.steal() {
            *lock(&self.ran) += 1;
            self.count_off();
        }
    }

    /// A sketch of `Pool::drive`: the order of its looks.
    fn drive(&self, worker: &Worker) {
        loop {
            self.run_all();
            if self.is_over() {
                return;
            }
            if !self.is_driver(worker) {
                self.poller.wake();
                return;
            }
            self.sleeping.store(true, SeqCst);
            let block = self.injector.is_empty() && !self.is_over();
            self.poller.wait(block);
            self.sleeping.store(false, SeqCst);
        }
    }

    /// A sketch of `Pool::help`.
    fn help(&self, worker: &Worker) {
        loop {
            self.run_all();
            if self.is_over() || self.is_driver(worker) {
                return;
            }
            self.park(worker);
            if self.is_over() || self.is_driver(worker) {
                return;
            }
        }
    }

    /// Of `Pool::replace_driver`, where the successor is known.
    fn replace_driver(&self, successor: &Worker) {
        self.unpark_if_parked(successor);
        self.driver.store(successor.number, SeqCst);
        successor.unpark();
    }

    fn wake_all(&self) {
        self.sleeping.store(false, SeqCst);
        // Each of two drivers may sleep: the first that ends wakes the other, in `Pool::work`.
        *lock(&self.poller.wakes) = true;
        self.poller.waiting.notify_all();
        for worker in &*lock(&self.workers) {
            worker.unpark();
        }
    }

    fn has_tasks(&self) -> bool {
        self.tasks.load(SeqCst) > 0
    }
}

/// Word for word those of `workers/pool.rs` and `workers/worker.rs`.
impl Pool {
    pub(crate) fn stop(&self) {
        self.stopping.store(true, SeqCst);
        self.wake_all();
    }

    fn count_off(&self) {
        if self.tasks.fetch_sub(1, SeqCst) == 1 && self.stopping.load(SeqCst) {
            self.wake_all();
        }
    }

    pub(super) fn wake(&self) {
        // `SeqCst` pairs with `drive`, which stores `sleeping` before its last look at the
        // injector.
        if self.sleeping.swap(false, SeqCst) {
            self.poller.wake();
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.stopping.load(SeqCst) && !self.has_tasks()
    }

    pub(super) fn is_driver(&self, worker: &Worker) -> bool {
        self.driver.load(SeqCst) == worker.number
    }

    fn park(&self, worker: &Worker) {
        // Counted up before the flag is set: the thread that clears the flag counts down, and would
        // otherwise count below zero.
        self.parked.fetch_add(1, SeqCst);
        worker.parked.store(true, SeqCst);
        thread::park();
        // `thread::park` may also return for no reason, with the flag still set.
        self.unpark_if_parked(worker);
    }

    pub(super) fn unpark_if_parked(&self, worker: &Worker) -> bool {
        let was_parked = worker.parked.swap(false, SeqCst);
        if was_parked {
            self.parked.fetch_sub(1, SeqCst);
        }
        was_parked
    }
}

/// The driver of a pool that is to end with its last task: it sleeps for ever where a wake-up is lost.
#[test]
fn a_task_from_elsewhere_is_run() {
    explore(|| {
        let pool = Pool::new(1, 1);
        pool.stopping.store(true, SeqCst);
        let driver = Pool::start(&pool, 0);
        pool.schedule();
        driver.join().unwrap();
        assert_eq!(*lock(&pool.ran), 1);
    });
}

#[test]
fn tasks_from_two_threads_are_run() {
    explore(|| {
        let pool = Pool::new(2, 1);
        pool.stopping.store(true, SeqCst);
        let driver = Pool::start(&pool, 0);
        let of_other = pool.clone();
        let other = thread::spawn(move || of_other.schedule());
        pool.schedule();
        driver.join().unwrap();
        other.join().unwrap();
        assert_eq!(*lock(&pool.ran), 2);
    });
}

#[test]
fn the_last_task_and_the_stop_end_the_driver() {
    explore(|| {
        let pool = Pool::new(1, 1);
        let driver = Pool::start(&pool, 0);
        let of_task = pool.clone();
        // A task that is dropped elsewhere.
        let task = thread::spawn(move || of_task.count_off());
        pool.stop();
        driver.join().unwrap();
        task.join().unwrap();
    });
}

/// A helper sleeps, or is about to, as it is given the role of the driver.
#[test]
fn a_helper_that_is_made_the_driver_drives() {
    explore(|| {
        let pool = Pool::new(1, 2);
        pool.stopping.store(true, SeqCst);
        let successor = lock(&pool.workers)[1].clone();
        // Its thread is known before it is started, as it is once `spawn_worker` has returned.
        let helper = Pool::start(&pool, 1);
        *lock(&successor.thread) = Some(helper.thread().clone());
        pool.replace_driver(&successor);
        // Only a driver hears of it.
        pool.schedule();
        helper.join().unwrap();
        assert_eq!(*lock(&pool.ran), 1);
        assert_eq!(pool.parked.load(SeqCst), 0);
    });
}

/// The driver that is replaced comes back while its successor goes to sleep, and a task is made
/// runnable meanwhile: one of them runs it.
#[test]
fn a_driver_that_was_replaced_takes_no_wake_up_with_it() {
    explore(|| {
        let pool = Pool::new(1, 2);
        pool.stopping.store(true, SeqCst);
        let successor = lock(&pool.workers)[1].clone();
        let (driver, helper) = (Pool::start(&pool, 0), Pool::start(&pool, 1));
        *lock(&successor.thread) = Some(helper.thread().clone());
        pool.replace_driver(&successor);
        pool.schedule();
        driver.join().unwrap();
        helper.join().unwrap();
        assert_eq!(*lock(&pool.ran), 1);
    });
}
