//! A pool: the tasks of a server, or of one shard of it, and the threads that run them.
//!
//! 1. At any time one worker has the role of the driver, named by the pool's `driver`. A worker that
//!    finds it is no longer the driver helps instead.
//! 2. Whoever makes a task runnable sees to it that a thread runs it: on a thread of the pool that
//!    thread will; from elsewhere the driver is woken if it sleeps. The driver sets `sleeping` before
//!    it looks at the injector for the last time, and whoever pushes to the injector looks at
//!    `sleeping` afterwards (both `SeqCst`): swapped on either side, a push between the two acts
//!    would wake nobody.
//! 3. What a thread has not begun, others can take.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex, RwLock, Weak};
use std::task::{Context, Poll};
use std::thread::Thread;
use std::time::Duration;

use async_task::{Builder, Runnable};
use crossbeam_deque::{Injector, Worker as Queue};
use pin_project_lite::pin_project;

use super::driver::Poller;
use super::spin::cores;
use super::worker::Worker;
use crate::sync::{lock, read, write};

/// A task that can be run, with its pool's number: the scheduler has no pool of its own, which would
/// have to be kept alive, with two locked instructions, whenever it is called.
pub(super) type Job = Runnable<PoolId>;

/// A pool's number, of which no two pools of a process have the same: every task has one, and in its
/// header there is room for half a pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PoolId(NonZeroU32);

/// The pools of this process. A pool's own threads need not look here.
static POOLS: RwLock<BTreeMap<PoolId, Weak<Pool>>> = RwLock::new(BTreeMap::new());

pub(crate) struct Pool {
    id: PoolId,
    pub(super) poller: Arc<Poller>,
    /// What the names of the threads begin with.
    pub(super) name: String,
    /// How many threads there should be to run handlers.
    pub(super) size: usize,
    /// Whether helpers are woken: they are of no use where there is one core for all.
    pub(super) has_helpers: bool,
    /// The tasks cannot leave their thread, the only one.
    pub(super) pinned: bool,
    /// How long the driver looks for events before it sleeps.
    pub(super) spin: Duration,
    /// Tasks that were made runnable on threads of others.
    pub(super) injector: Injector<Job>,
    pub(super) workers: Mutex<Vec<Arc<Worker>>>,
    /// The number of the worker that drives.
    pub(super) driver: AtomicUsize,
    /// The driver sleeps, or is about to.
    pub(super) sleeping: AtomicBool,
    /// How many workers there are.
    pub(super) spawned: AtomicUsize,
    /// The log has said that a thread could not be started.
    pub(super) spawn_failed: AtomicBool,
    /// Helpers that sleep.
    pub(super) parked: AtomicUsize,
    /// Tasks that have not ended.
    tasks: AtomicUsize,
    /// The server is closed; the threads end with the last task.
    stopping: AtomicBool,
    pub(super) watchdog: Mutex<Option<Thread>>,
}

/// What a thread of a pool knows of itself.
pub(super) struct Local {
    pub(super) pool: Arc<Pool>,
    pub(super) queue: Rc<Queue<Job>>,
}

thread_local! {
    pub(super) static LOCAL: RefCell<Option<Local>> = const { RefCell::new(None) };
}

impl Pool {
    pub(super) fn new(
        poller: Arc<Poller>,
        name: String,
        size: usize,
        spin: Duration,
        pinned: bool,
    ) -> Arc<Self> {
        let mut pools = write(&POOLS);
        let last = pools.last_key_value().map_or(0, |(id, _)| id.0.get());
        // Only the pools that are there need to differ: a pool is gone after its last task.
        let id = PoolId(NonZeroU32::MIN.saturating_add(last));
        let pool = Arc::new(Self {
            id,
            poller,
            name,
            size,
            has_helpers: size > 1 && cores() > 1,
            pinned,
            spin,
            injector: Injector::new(),
            workers: Mutex::default(),
            driver: AtomicUsize::new(0),
            sleeping: AtomicBool::new(false),
            spawned: AtomicUsize::new(0),
            spawn_failed: AtomicBool::new(false),
            parked: AtomicUsize::new(0),
            tasks: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            watchdog: Mutex::default(),
        });
        pools.insert(id, Arc::downgrade(&pool));
        pool
    }

    pub(crate) fn poller(&self) -> &Arc<Poller> {
        &self.poller
    }

    /// Has the threads end when no task is left: the server is closed.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, SeqCst);
        self.wake_all();
    }

    pub(crate) fn spawn(self: &Arc<Self>, future: impl Future<Output = ()> + Send + 'static) {
        self.spawn_counted(|pool| Counted::new(future, pool));
    }

    /// Spawns a future that [counts itself off](PoolId::count_off) when it is dropped.
    pub(crate) fn spawn_counted<F>(self: &Arc<Self>, future: impl FnOnce(PoolId) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let future = future(self.count_in());
        let (job, task) = builder(self).spawn(|_| future, schedule);
        task.detach();
        job.schedule();
    }

    /// Spawns on the calling thread, the only one of this pool, a future that never leaves it.
    pub(crate) fn spawn_local(self: &Arc<Self>, future: impl Future<Output = ()> + 'static) {
        self.spawn_local_counted(|pool| Counted::new(future, pool));
    }

    /// As [`spawn_local`](Self::spawn_local), of a future that
    /// [counts itself off](PoolId::count_off) when it is dropped.
    pub(crate) fn spawn_local_counted<F>(self: &Arc<Self>, future: impl FnOnce(PoolId) -> F)
    where
        F: Future<Output = ()> + 'static,
    {
        debug_assert!(self.pinned);
        let future = future(self.count_in());
        let (job, task) = builder(self).spawn_local(|_| future, schedule);
        task.detach();
        job.schedule();
    }

    fn count_in(&self) -> PoolId {
        if self.tasks.fetch_add(1, SeqCst) == 0 {
            // From now on there is something to watch.
            self.unpark_watchdog();
        }
        self.id
    }

    fn count_off(&self) {
        if self.tasks.fetch_sub(1, SeqCst) == 1 && self.stopping.load(SeqCst) {
            self.wake_all();
        }
    }

    /// Has the driver look again: one write to the poller however many ask.
    pub(super) fn wake(&self) {
        // Pairs with `drive`, which stores `sleeping` before its last look at the injector.
        if self.sleeping.swap(false, SeqCst) {
            self.poller.wake();
        }
    }

    pub(super) fn wake_all(&self) {
        self.sleeping.store(false, SeqCst);
        self.poller.wake();
        for worker in &*lock(&self.workers) {
            worker.unpark();
        }
        self.unpark_watchdog();
    }

    fn unpark_watchdog(&self) {
        if let Some(watchdog) = &*lock(&self.watchdog) {
            watchdog.unpark();
        }
    }

    /// Whether the server is closed and no task is left.
    pub(super) fn is_over(&self) -> bool {
        self.stopping.load(SeqCst) && !self.has_tasks()
    }

    pub(super) fn has_tasks(&self) -> bool {
        self.tasks.load(SeqCst) > 0
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // Dropping a queued task decrements its pool's task count through the `PoolId`. So the queue
        // is emptied before the number is free to be used by another pool.
        while !self.injector.is_empty() {
            let _never_run = self.injector.steal();
        }
        let mut pools = write(&POOLS);
        pools.remove(&self.id);
    }
}

impl PoolId {
    fn pool(self) -> Option<Arc<Pool>> {
        let pools = read(&POOLS);
        pools.get(&self)?.upgrade()
    }

    /// Counts a task of this pool as dropped: the pool's threads do not end before the last is.
    pub(crate) fn count_off(self) {
        let done = with_local(self, |local| local.pool.count_off());
        if done.is_none() {
            // A pool that is gone waits for no task.
            if let Some(pool) = self.pool() {
                pool.count_off();
            }
        }
    }
}

/// Runs `with` on what the calling thread has, if it is one of this pool's. A thread that is ending
/// has nothing any more, and is as foreign as any.
fn with_local<T>(pool: PoolId, with: impl FnOnce(&Local) -> T) -> Option<T> {
    let with = |local: &RefCell<Option<Local>>| {
        let local = local.borrow();
        local.as_ref().filter(|it| it.pool.id == pool).map(with)
    };
    LOCAL.try_with(with).ok().flatten()
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool")
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

fn builder(pool: &Pool) -> Builder<PoolId> {
    Builder::new().metadata(pool.id)
}

/// Queues a task that can be run: with the calling thread if that is one of the pool's.
fn schedule(job: Job) {
    let id = *job.metadata();
    if let Some(queue) = with_local(id, |local| local.queue.clone()) {
        queue.push(job);
    } else if let Some(pool) = id.pool() {
        pool.injector.push(job);
        pool.wake();
    }
}

pin_project! {
    /// A future that is counted as a task of its pool until it is dropped.
    struct Counted<F> {
        #[pin]
        future: F,
        count: Count,
    }
}

impl<F> Counted<F> {
    fn new(future: F, pool: PoolId) -> Self {
        let count = Count(pool);
        Self { future, count }
    }
}

impl<F: Future> Future for Counted<F> {
    type Output = F::Output;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.project().future.poll(cx)
    }
}

struct Count(PoolId);

impl Drop for Count {
    fn drop(&mut self) {
        self.0.count_off();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Instant;

    use super::super::driver::registration::tests::Nothing;
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(20);

    fn eventually(what: &str, holds: impl Fn() -> bool) {
        let begun = Instant::now();
        while !holds() {
            assert!(begun.elapsed() < DEADLINE, "never came to pass: {what}");
            thread::yield_now();
        }
    }

    fn alone() -> Arc<Pool> {
        let poller = Arc::new(Poller::new::<Nothing>().unwrap());
        Pool::new(poller, "test".into(), 1, Duration::ZERO, false)
    }

    /// Runs something on the pool, and waits for it.
    fn is_run_on(pool: &Arc<Pool>) -> bool {
        let (say, said) = mpsc::channel();
        pool.spawn(async move { say.send(()).unwrap() });
        said.recv_timeout(DEADLINE).is_ok()
    }

    /// Both drivers sleep, the one that was replaced in front of its successor: it gets the wake-up.
    #[test]
    fn a_driver_that_was_replaced_takes_no_wake_up_with_it() {
        let pool = alone();
        let drives = |number: usize| {
            pool.driver.store(number, SeqCst);
            let workers = lock(&pool.workers).clone();
            pool.unpark_if_parked(&workers[number]);
            workers[number].unpark();
            eventually("it says that it sleeps", || pool.sleeping.load(SeqCst));
            // Which it does then: the kernel tells nobody.
            thread::sleep(Duration::from_millis(20));
        };
        pool.driver.store(1, SeqCst);
        for _ in 0..2 {
            pool.spawn_worker().unwrap();
        }
        eventually("the other rests", || pool.parked.load(SeqCst) == 1);
        drives(1);
        pool.sleeping.store(false, SeqCst);
        drives(0);
        pool.driver.store(1, SeqCst);
        for _ in 0..10 {
            assert!(is_run_on(&pool), "nobody was woken for it");
        }
        pool.stop();
    }

    /// What a pool that goes still has is not counted off the next one's tasks.
    #[test]
    fn a_pool_that_is_gone_counts_nothing_off_another() {
        struct Begins(mpsc::Sender<Arc<Pool>>);
        impl Drop for Begins {
            fn drop(&mut self) {
                self.0.send(alone()).unwrap();
            }
        }
        let (say, said) = mpsc::channel();
        let pool = alone();
        let begins = Begins(say);
        pool.spawn(async move { drop(begins) });
        drop(pool);
        let next = said.recv().unwrap();
        assert_eq!(next.tasks.load(SeqCst), 0);
    }

    /// One write for all of them, and none while the driver is awake.
    #[test]
    fn many_wake_ups_are_one_write() {
        let pool = alone();
        // No thread takes anything.
        for _ in 0..100 {
            pool.spawn(async {});
        }
        assert_eq!(pool.poller.wakes(), 0);
        pool.sleeping.store(true, SeqCst);
        for _ in 0..100 {
            pool.spawn(async {});
        }
        assert_eq!(pool.poller.wakes(), 1);
    }
}
