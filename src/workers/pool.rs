//! A pool: the tasks of a server, or of one shard of it, and the threads that run them.
//!
//! 1. At any time one worker has the role of the driver, named by the pool's `driver`. A worker
//!    that finds that it is no longer the driver helps instead.
//! 2. A thread that makes a task runnable sees to it that a worker runs it. On a worker of the pool
//!    the task goes to that worker's own queue, which it runs before it sleeps. On any other thread
//!    the task goes to the injector, and the driver is woken if it sleeps: the driver sets
//!    `sleeping` before it looks at the injector for the last time, and the other thread pushes
//!    before it looks at `sleeping` (all `SeqCst`). Swapped on either side, a push between the two
//!    acts would wake no worker.
//! 3. Tasks that a worker has not begun, other workers can take, unless the pool is pinned.

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
use crossbeam_deque::Injector;
use pin_project_lite::pin_project;

use super::driver::Poller;
use super::queues::Queues;
use super::spin::cores;
use super::worker::Worker;
use crate::sync::{lock, read, write};

/// A task that can be run, with its pool's number. `schedule` finds the pool by the number: with a
/// reference in its place every call would have to keep the pool alive, which takes two locked
/// instructions.
pub(super) type Job = Runnable<PoolId>;

/// A pool's number, which no other pool of the process has. Every task has it, in its header, where
/// there is room for half a pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PoolId(NonZeroU32);

/// The pools of this process, for threads that are not workers of the pool they look for.
static POOLS: RwLock<BTreeMap<PoolId, Weak<Pool>>> = RwLock::new(BTreeMap::new());

/// The tasks of a server, or of one shard of it, and its workers.
pub(crate) struct Pool {
    id: PoolId,
    pub(super) poller: Arc<Poller>,
    /// What the names of the threads begin with.
    pub(super) name: String,
    /// How many workers there should be, those that are blocked not counted.
    pub(super) size: usize,
    /// Whether helpers are woken: they are of no use where there is one core for all.
    pub(super) has_helpers: bool,
    /// There is one worker, and tasks cannot leave its thread.
    pub(super) pinned: bool,
    /// How long the driver looks for events before it sleeps.
    pub(super) spin: Duration,
    /// Tasks that were made runnable on threads that are not workers of this pool.
    pub(super) injector: Injector<Job>,
    /// The workers, each at the index that is its number.
    pub(super) workers: Mutex<Vec<Arc<Worker>>>,
    /// The number of the worker that drives.
    pub(super) driver: AtomicUsize,
    /// The driver sleeps, or is about to.
    pub(super) sleeping: AtomicBool,
    /// How many workers there are, to be known without the lock.
    pub(super) spawned: AtomicUsize,
    /// The log has said that a worker could not be started.
    pub(super) spawn_failed: AtomicBool,
    /// How many workers sleep as helpers.
    pub(super) parked: AtomicUsize,
    /// How many tasks have not been dropped.
    tasks: AtomicUsize,
    /// The server is closed; the workers end with the last task.
    stopping: AtomicBool,
    /// The watchdog's thread, to be woken.
    pub(super) watchdog: Mutex<Option<Thread>>,
}

/// What a worker's thread knows of itself.
pub(super) struct Local {
    pub(super) pool: Arc<Pool>,
    pub(super) queues: Rc<Queues>,
}

thread_local! {
    /// `None` on a thread that is no worker, and on a worker's that is ending.
    pub(super) static LOCAL: RefCell<Option<Local>> = const { RefCell::new(None) };
}

impl Pool {
    /// Makes a pool without workers.
    pub(super) fn new(
        poller: Arc<Poller>,
        name: String,
        size: usize,
        spin: Duration,
        pinned: bool,
    ) -> Arc<Self> {
        let mut pools = write(&POOLS);
        let last = pools.last_key_value().map_or(0, |(id, _)| id.0.get());
        // One above the highest number there is. The number of a pool that is gone may be given
        // again: a pool goes after the last of its tasks.
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

    /// The poller that connections of this pool are registered with.
    pub(crate) fn poller(&self) -> &Arc<Poller> {
        &self.poller
    }

    /// Has the workers end when no task is left: the server is closed.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, SeqCst);
        self.wake_all();
    }

    /// Spawns a future as a task of this pool.
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

    /// Spawns a future that never leaves the calling thread, which is that of this pool's only
    /// worker.
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

    /// Counts a task; gives the number by which it is counted off.
    fn count_in(&self) -> PoolId {
        if self.tasks.fetch_add(1, SeqCst) == 0 {
            // The watchdog sleeps longer while there is nothing to watch.
            self.unpark_watchdog();
        }
        self.id
    }

    /// Counts a task off. The last one of a closed server ends the workers: here the count falls
    /// first and `stopping` is looked at afterwards, in `stop` it is set first and the workers look
    /// at the count afterwards (all `SeqCst`). So one of the two wakes workers that then end.
    fn count_off(&self) {
        if self.tasks.fetch_sub(1, SeqCst) == 1 && self.stopping.load(SeqCst) {
            self.wake_all();
        }
    }

    /// Wakes the driver, if it sleeps or is about to: with one write to the poller, however many
    /// threads call this.
    pub(super) fn wake(&self) {
        // `SeqCst` pairs with `drive`, which stores `sleeping` before its last look at the
        // injector.
        if self.sleeping.swap(false, SeqCst) {
            self.poller.wake();
        }
    }

    /// Wakes the driver, all helpers and the watchdog.
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

    /// Whether there are tasks that have not been dropped.
    pub(super) fn has_tasks(&self) -> bool {
        self.tasks.load(SeqCst) > 0
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // A task that is dropped counts itself off through the `PoolId`. So the injector is emptied
        // before the number is free: swapped, the tasks would be counted off another pool's.
        while !self.injector.is_empty() {
            let _never_run = self.injector.steal();
        }
        let mut pools = write(&POOLS);
        pools.remove(&self.id);
    }
}

impl PoolId {
    /// The pool of this number, if it is there still.
    fn pool(self) -> Option<Arc<Pool>> {
        let pools = read(&POOLS);
        pools.get(&self)?.upgrade()
    }

    /// Counts a task of this pool as dropped. The workers do not end before all are.
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

/// Runs `with` on what the calling thread knows of itself, if it is a worker's of this pool; `None`
/// on all others, and on a worker's that is ending.
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

/// A builder of tasks that have this pool's number.
fn builder(pool: &Pool) -> Builder<PoolId> {
    Builder::new().metadata(pool.id)
}

/// Queues a task that was made runnable (invariant 2): what its waker calls.
fn schedule(job: Job) {
    let id = *job.metadata();
    let mut job = Some(job);
    // Pushed within the borrow of the thread's own: no code of others runs there.
    with_local(id, |local| job.take().map(|job| local.queues.push(job)));
    let Some(job) = job else { return };
    if let Some(pool) = id.pool() {
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

/// Counts a task off when it is dropped.
struct Count(PoolId);

impl Drop for Count {
    fn drop(&mut self) {
        self.0.count_off();
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::sync::{OnceLock, mpsc};
    use std::task::Wake;
    use std::thread;
    use std::time::Instant;

    use super::super::driver::WatchedListener;
    use super::super::driver::registration::tests::Nothing;
    use super::*;

    pub(in crate::workers) const DEADLINE: Duration = Duration::from_secs(20);

    pub(in crate::workers) fn eventually(what: &str, holds: impl Fn() -> bool) {
        let begun = Instant::now();
        while !holds() {
            assert!(begun.elapsed() < DEADLINE, "never came to pass: {what}");
            thread::yield_now();
        }
    }

    pub(in crate::workers) fn alone() -> Arc<Pool> {
        let poller = Arc::new(Poller::new::<Nothing>().unwrap());
        Pool::new(poller, "test".into(), 1, Duration::ZERO, false)
    }

    /// Runs something on the pool, and waits for it.
    pub(in crate::workers) fn is_run_on(pool: &Arc<Pool>) -> bool {
        let (say, said) = mpsc::channel();
        pool.spawn(async move { say.send(()).unwrap() });
        said.recv_timeout(DEADLINE).is_ok()
    }

    /// Both sleep in the poller, the driver that was replaced and its successor; the kernel gives
    /// the wake-up to the first of them.
    #[test]
    fn a_driver_that_was_replaced_takes_no_wake_up_with_it() {
        let pool = alone();
        let drives = |number: usize| {
            pool.driver.store(number, SeqCst);
            let workers = lock(&pool.workers).clone();
            pool.unpark_if_parked(&workers[number]);
            workers[number].unpark();
            eventually("it says that it sleeps", || pool.sleeping.load(SeqCst));
            // A moment later it does; no event says so.
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
            assert!(is_run_on(&pool), "no worker was woken for it");
        }
        pool.stop();
    }

    /// A waker that records how many jobs had been run when it was called for the first time.
    struct Heard {
        ran: Arc<AtomicUsize>,
        at: OnceLock<usize>,
    }

    impl Wake for Heard {
        fn wake(self: Arc<Self>) {
            let _first = self.at.set(self.ran.load(SeqCst));
        }
    }

    /// Else the sockets are not looked at for as long as another worker has tasks to be stolen.
    #[test]
    fn a_driver_that_steals_looks_at_its_sockets_in_every_round() {
        const JOBS: usize = 20_000;
        let pool = alone();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let mut watched = WatchedListener::new(listener, pool.poller.clone()).unwrap();
        let ran = Arc::new(AtomicUsize::new(0));
        let heard = Arc::new(Heard {
            ran: ran.clone(),
            at: OnceLock::new(),
        });
        let waker = heard.clone().into();
        let mut cx = Context::from_waker(&waker);
        assert!(
            watched
                .poll_accept(&mut cx, TcpListener::accept)
                .is_pending()
        );
        let _client = TcpStream::connect(address).unwrap();
        // A worker whose thread has a handler that blocks.
        let queues = Queues::new();
        lock(&pool.workers).push(Arc::new(Worker::new(0, &queues)));
        for _ in 0..JOBS {
            let ran = ran.clone();
            let job = async move {
                ran.fetch_add(1, SeqCst);
            };
            let (job, task) = builder(&pool).spawn(|_| job, schedule);
            task.detach();
            queues.ready.push(job);
        }
        pool.driver.store(1, SeqCst);
        pool.spawn_worker().unwrap();
        eventually("all jobs are run", || ran.load(SeqCst) == JOBS);
        eventually("the connect is heard", || heard.at.get().is_some());
        let at = *heard.at.get().unwrap();
        assert!(at < 1000, "after {at} jobs");
        pool.stop();
    }

    /// Tasks that a pool still has when it goes are not counted off the next one's.
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

    /// One write for all wake-ups, and none while the driver is awake.
    #[test]
    fn many_wake_ups_are_one_write() {
        let pool = alone();
        // This pool has no worker.
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
