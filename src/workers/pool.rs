//! The threads: one that drives, helpers on demand, and one that looks after them.
//!
//! 1. At any time one thread has the role of the driver, named by the pool's `driver`. A thread that
//!    finds it is no longer that one helps instead.
//! 2. Whoever makes something runnable sees to it that somebody runs it: on a thread of the pool
//!    that thread will; from elsewhere the driver is woken if it sleeps. The driver says that it
//!    sleeps before it looks for the last time.
//! 3. What a thread has not begun, others can take.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::num::NonZeroU32;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::task::{Context, Poll};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use async_task::{Builder, Runnable};
use crossbeam_deque::{Injector, Steal, Stealer, Worker};
use pin_project_lite::pin_project;

use super::driver::epoll::{Batch, Poller};
use crate::handle::Shared;
use crate::sync::lock;

/// How many tasks run between two looks at the sockets; one that has read until its turn was over
/// counts as many times as it has read.
const TURN: usize = 256;
/// How many reads a task may make in one turn before the others have theirs.
const READS: u32 = 32;
/// What is there to run has to take this long to be worth a helper's wake-up, which takes about a
/// tenth of it. On two cores that the clients share, handlers of 20 µs do half as much again with a
/// helper, the same from 100 µs to 1 ms; 2.5 ms are more than 50 clients ever have to run. Handlers
/// that do nothing gain nothing, and lose a few per cent where 500 clients ask at once.
const WORTH_A_HELPER: Duration = Duration::from_micros(250);
/// How often the threads are looked after, while there is anything to do.
const LOOK: Duration = Duration::from_millis(50);
/// How many threads may be blocked by handlers at once, before that is left alone.
const MOST_BLOCKED: usize = 256;

/// A task that can be run, with its pool's number: the scheduler has no pool of its own, which would
/// have to be kept alive, with two locked instructions, whenever it is called.
type Job = Runnable<PoolId>;

/// A pool's number, of which no two pools of a process have the same: every task has one, and in its
/// header there is room for half a pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PoolId(NonZeroU32);

/// The pools there are. Those who are on a pool's own threads need not look here.
static POOLS: RwLock<BTreeMap<PoolId, Weak<Pool>>> = RwLock::new(BTreeMap::new());

pub(crate) struct Pool {
    id: PoolId,
    poller: Arc<Poller>,
    /// What its threads' names begin with.
    name: String,
    /// How many threads there should be to run handlers.
    size: usize,
    /// Whether helpers are called: they are of no use where there is one core for all.
    helped: bool,
    /// Its tasks cannot leave their thread, the only one.
    rooted: bool,
    /// How long the driver looks for events before it sleeps.
    spin: Duration,
    foreign: Injector<Job>,
    threads: Mutex<Vec<Arc<Seat>>>,
    /// The number of the thread that drives.
    driver: AtomicUsize,
    /// The driver sleeps, or is about to.
    sleeping: AtomicBool,
    hired: AtomicUsize,
    /// The operator knows that a thread could not be started.
    short: AtomicBool,
    /// Helpers that sleep.
    resting: AtomicUsize,
    /// Tasks that have not ended.
    tasks: AtomicUsize,
    /// The server is closed; the threads end with the last task.
    over: AtomicBool,
    watcher: Mutex<Option<Thread>>,
}

/// How many cores this process may use.
fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// One poller a shard.
pub(crate) fn pollers(shards: usize) -> io::Result<Vec<Arc<Poller>>> {
    (0..shards).map(|_| Poller::new().map(Arc::new)).collect()
}

/// Starts the threads that `server` was configured for, for as long as it has something to do; none
/// where it has no pollers. With `local`, there are some in any case, and each is a shard's; where
/// they have one listening socket, its connections are dealt out by a thread more, which no handler
/// blocks.
pub(crate) fn start(
    of_listeners: &[Arc<Poller>],
    server: &Arc<Shared>,
    local: bool,
) -> io::Result<Vec<Arc<Pool>>> {
    if of_listeners.is_empty() && !local {
        return Ok(Vec::new());
    }
    let workers = server.config.workers.unwrap_or_else(cores);
    let sharded = server.config.sharded;
    let dealers = usize::from(local && !sharded);
    let shards = if local || sharded { workers } else { 1 };
    let mut pollers = of_listeners.to_vec();
    pollers.extend(self::pollers(shards + dealers - pollers.len())?);
    let pool = |(number, poller)| {
        let name = match &pollers[..] {
            [_] => "gracious".to_owned(),
            _ => format!("gracious-{number}"),
        };
        let serves = number >= dealers;
        let spin = if serves {
            server.config.spin
        } else {
            Duration::ZERO
        };
        Pool::new(poller, name, workers / shards, spin, local && serves)
    };
    let pools: Vec<_> = pollers.iter().cloned().enumerate().map(pool).collect();
    // So that those that are started are ended, too, where the next cannot be.
    server.employ(&pools, dealers);
    for pool in &pools {
        for _ in 0..pool.size {
            pool.hire()?;
        }
    }
    let (looked_after, server) = (pools.clone(), Arc::downgrade(server));
    let watcher = thread::Builder::new().name("gracious-watch".into());
    let watcher = watcher.spawn(move || look_after(&looked_after, &server))?;
    for pool in &pools {
        *lock(&pool.watcher) = Some(watcher.thread().clone());
    }
    Ok(pools)
}

/// Notices handlers that block their threads, and has the operator told of them.
fn look_after(pools: &[Arc<Pool>], server: &Weak<Shared>) {
    let mut seen = vec![Vec::new(); pools.len()];
    let mut inside = Vec::new();
    while !pools.iter().all(|pool| pool.is_over()) {
        if pools.iter().all(|pool| pool.tasks.load(SeqCst) == 0) {
            thread::park_timeout(Duration::from_secs(1));
            continue;
        }
        thread::park_timeout(LOOK);
        let mut blocked = false;
        for (pool, seen) in pools.iter().zip(&mut seen) {
            blocked |= pool.relieve_blocked(seen);
        }
        if !blocked {
            inside.clear();
        } else if let Some(server) = server.upgrade() {
            // Those who are where they were at the last look.
            server.group.name_blocked(&inside);
            inside = server.group.inside();
        }
    }
}

/// A thread's place in the pool, as others see it.
struct Seat {
    number: usize,
    stealer: Stealer<Job>,
    /// Counted up at the beginning and at the end of every task: odd inside one.
    turns: AtomicU64,
    resting: AtomicBool,
    thread: Mutex<Option<Thread>>,
}

/// What a thread of a pool knows of itself.
struct Local {
    pool: Arc<Pool>,
    queue: Rc<Worker<Job>>,
}

thread_local! {
    static LOCAL: RefCell<Option<Local>> = const { RefCell::new(None) };
    static READS_LEFT: Cell<u32> = const { Cell::new(u32::MAX) };
}

/// Whether the running task may go on reading; on a thread that is no worker, always.
pub(crate) fn has_turn() -> bool {
    READS_LEFT.get() > 0
}

/// The running task has read something.
pub(super) fn has_read() {
    let left = READS_LEFT.get();
    if left != u32::MAX {
        READS_LEFT.set(left.saturating_sub(1));
    }
}

impl Pool {
    pub(crate) fn new(
        poller: Arc<Poller>,
        name: String,
        size: usize,
        spin: Duration,
        rooted: bool,
    ) -> Arc<Self> {
        let mut pools = POOLS.write().unwrap_or_else(PoisonError::into_inner);
        let last = pools.last_key_value().map_or(0, |(id, _)| id.0.get());
        // Only those that are there need to differ: a pool is gone after its last task.
        let id = PoolId(NonZeroU32::MIN.saturating_add(last));
        let pool = Arc::new(Self {
            id,
            poller,
            name,
            size,
            helped: size > 1 && cores() > 1,
            rooted,
            spin,
            foreign: Injector::new(),
            threads: Mutex::default(),
            driver: AtomicUsize::new(0),
            sleeping: AtomicBool::new(false),
            hired: AtomicUsize::new(0),
            short: AtomicBool::new(false),
            resting: AtomicUsize::new(0),
            tasks: AtomicUsize::new(0),
            over: AtomicBool::new(false),
            watcher: Mutex::default(),
        });
        pools.insert(id, Arc::downgrade(&pool));
        pool
    }

    pub(crate) fn poller(&self) -> &Arc<Poller> {
        &self.poller
    }

    /// The server is closed: the threads end when no task is left.
    pub(crate) fn end(&self) {
        self.over.store(true, SeqCst);
        self.wake_all();
    }

    pub(crate) fn spawn(self: &Arc<Self>, future: impl Future<Output = ()> + Send + 'static) {
        self.spawn_counted(|pool| Counted::new(future, pool));
    }

    /// The same of a future that [counts itself off](PoolId::count_off) when it is dropped.
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

    /// The same of a future that [counts itself off](PoolId::count_off) when it is dropped.
    pub(crate) fn spawn_local_counted<F>(self: &Arc<Self>, future: impl FnOnce(PoolId) -> F)
    where
        F: Future<Output = ()> + 'static,
    {
        debug_assert!(self.rooted);
        let future = future(self.count_in());
        let (job, task) = builder(self).spawn_local(|_| future, schedule);
        task.detach();
        job.schedule();
    }

    fn count_in(&self) -> PoolId {
        if self.tasks.fetch_add(1, SeqCst) == 0 {
            // From now on there is something to look after.
            self.unpark_watcher();
        }
        self.id
    }

    fn count_off(&self) {
        if self.tasks.fetch_sub(1, SeqCst) == 1 && self.over.load(SeqCst) {
            self.wake_all();
        }
    }

    /// Sees to it that the driver looks again: one write however many ask.
    fn wake(&self) {
        if self.sleeping.swap(false, SeqCst) {
            self.poller.wake();
        }
    }

    fn wake_all(&self) {
        self.sleeping.store(false, SeqCst);
        self.poller.wake();
        for seat in &*lock(&self.threads) {
            seat.unpark();
        }
        self.unpark_watcher();
    }

    fn unpark_watcher(&self) {
        if let Some(watcher) = &*lock(&self.watcher) {
            watcher.unpark();
        }
    }

    fn is_over(&self) -> bool {
        self.over.load(SeqCst) && self.tasks.load(SeqCst) == 0
    }

    /// One more thread.
    fn hire(self: &Arc<Self>) -> io::Result<Arc<Seat>> {
        let queue = Worker::new_fifo();
        let seat = {
            let mut threads = lock(&self.threads);
            let seat = Arc::new(Seat {
                number: threads.len(),
                stealer: queue.stealer(),
                turns: AtomicU64::new(0),
                resting: AtomicBool::new(false),
                thread: Mutex::default(),
            });
            threads.push(seat.clone());
            self.hired.store(threads.len(), SeqCst);
            seat
        };
        let (pool, mine) = (self.clone(), seat.clone());
        let name = format!("{}-{}", self.name, seat.number);
        let started = thread::Builder::new().name(name).spawn(move || {
            *lock(&mine.thread) = Some(thread::current());
            let queue = Rc::new(queue);
            let local = Local {
                pool: pool.clone(),
                queue: queue.clone(),
            };
            LOCAL.with(|place| *place.borrow_mut() = Some(local));
            pool.work(&mine, &queue);
            LOCAL.with(|place| *place.borrow_mut() = None);
        });
        let thread = match started {
            Ok(thread) => thread,
            Err(error) => {
                // Nobody sits there. Only one thread at a time hires.
                let mut threads = lock(&self.threads);
                threads.pop();
                self.hired.store(threads.len(), SeqCst);
                return Err(error);
            }
        };
        *lock(&seat.thread) = Some(thread.thread().clone());
        Ok(seat)
    }

    /// A thread's life.
    fn work(&self, seat: &Seat, queue: &Worker<Job>) {
        let mut batch = Batch::new();
        while !self.is_over() {
            if self.is_driver(seat) {
                self.drive(seat, queue, &mut batch);
            } else {
                self.help(seat, queue);
            }
        }
        // The next finds that it is over, too.
        self.wake_all();
    }

    fn is_driver(&self, seat: &Seat) -> bool {
        self.driver.load(SeqCst) == seat.number
    }

    /// Waits for events and runs what they wake, as long as it is this thread's role.
    fn drive(&self, seat: &Seat, queue: &Worker<Job>, batch: &mut Batch) {
        let mut pace = Pace::default();
        let mut spins = Spins::new(self.spin);
        loop {
            let begun = self.helped.then(Instant::now);
            let ran = run_own(seat, queue);
            if let Some(begun) = begun {
                pace.note(ran, begun);
            }
            if self.is_over() {
                return;
            }
            // Another has taken over while a handler blocked this thread.
            if !self.is_driver(seat) {
                // It may have gone to sleep before this one did: what was meant for it, and the
                // word that it sleeps, may have been taken from it here.
                self.poller.wake();
                return;
            }
            self.take_foreign(queue);
            if queue.is_empty() {
                if let Some(job) = self.take_from_others(seat, queue) {
                    run(seat, job);
                    continue;
                }
            }
            let mut block = queue.is_empty();
            if block
                && spins.spin(|| self.poller.wait(batch, false) > 0 || !self.foreign.is_empty())
            {
                continue;
            }
            if block {
                self.sleeping.store(true, SeqCst);
                // A look after the word: whoever pushes from now on wakes.
                block = self.foreign.is_empty() && !self.is_over();
            }
            self.poller.wait(batch, block);
            self.sleeping.store(false, SeqCst);
            if self.helped && pace.is_worth_a_helper(queue.len()) {
                self.call_a_helper();
            }
        }
    }

    /// Runs what others have not begun, then sleeps until it is called.
    fn help(&self, seat: &Seat, queue: &Worker<Job>) {
        loop {
            loop {
                run_own(seat, queue);
                if !queue.is_empty() {
                    continue;
                }
                match self.take_from_others(seat, queue) {
                    Some(job) => {
                        run(seat, job);
                    }
                    None => break,
                }
            }
            if self.is_over() || self.is_driver(seat) {
                return;
            }
            self.rest(seat);
            if self.is_over() || self.is_driver(seat) {
                return;
            }
        }
    }

    fn rest(&self, seat: &Seat) {
        // Counted first: whoever finds it at rest counts it off.
        self.resting.fetch_add(1, SeqCst);
        seat.resting.store(true, SeqCst);
        thread::park();
        // Unless somebody called: `park` may return for no reason.
        self.rouse(seat);
    }

    /// Takes a helper out of its rest; `false` where it was not resting.
    fn rouse(&self, seat: &Seat) -> bool {
        let rested = seat.resting.swap(false, SeqCst);
        if rested {
            self.resting.fetch_sub(1, SeqCst);
        }
        rested
    }

    fn call_a_helper(&self) {
        if self.resting.load(Relaxed) > 0 {
            if let Some(seat) = lock(&self.threads).iter().find(|seat| self.rouse(seat)) {
                seat.unpark();
            }
        }
    }

    /// Takes some of another thread's queue into this one's, and gives the first of it.
    fn take_from_others(&self, seat: &Seat, queue: &Worker<Job>) -> Option<Job> {
        // Nobody else has anything where all others rest.
        if self.resting.load(Relaxed) + 1 >= self.hired.load(Relaxed) {
            return None;
        }
        let threads = lock(&self.threads);
        for other in threads.iter().filter(|other| other.number != seat.number) {
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

    fn take_foreign(&self, queue: &Worker<Job>) {
        while !self.foreign.is_empty() && self.foreign.steal_batch(queue).is_retry() {}
    }

    /// Lets another thread take over where a handler has blocked its own since the last look, at
    /// which `seen` was seen; says whether one has.
    fn relieve_blocked(self: &Arc<Self>, seen: &mut Vec<u64>) -> bool {
        let threads = lock(&self.threads).clone();
        seen.resize(threads.len(), 0);
        let mut blocked = Vec::new();
        for (seat, seen) in threads.iter().zip(seen) {
            let turns = seat.turns.load(Relaxed);
            if turns % 2 == 1 && turns == *seen {
                blocked.push(seat);
            }
            *seen = turns;
        }
        if blocked.is_empty() || blocked.len() > MOST_BLOCKED {
            return false;
        }
        if !self.rooted {
            if blocked.iter().any(|seat| self.is_driver(seat)) {
                self.replace_driver(&threads);
            }
            // What waits behind a blocked handler is there to be taken.
            self.wake();
        }
        true
    }

    fn replace_driver(self: &Arc<Self>, threads: &[Arc<Seat>]) {
        let heir = match threads.iter().find(|seat| self.rouse(seat)) {
            Some(seat) => seat.clone(),
            None => match self.hire() {
                Ok(seat) => seat,
                Err(error) => {
                    // It is tried again at every look.
                    if !self.short.swap(true, Relaxed) {
                        log::error!(target: "gracious", error:%; "cannot start another worker: {error}");
                    }
                    return;
                }
            },
        };
        self.driver.store(heir.number, SeqCst);
        heir.unpark();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // What nobody will run counts itself off, by this number: it has to be nobody else's yet.
        while !self.foreign.is_empty() {
            let _nobody_runs_it = self.foreign.steal();
        }
        let mut pools = POOLS.write().unwrap_or_else(PoisonError::into_inner);
        pools.remove(&self.id);
    }
}

impl PoolId {
    fn pool(self) -> Option<Arc<Pool>> {
        let pools = POOLS.read().unwrap_or_else(PoisonError::into_inner);
        pools.get(&self)?.upgrade()
    }

    /// A task of this pool is dropped: its threads do not end as long as there are some.
    pub(crate) fn count_off(self) {
        let done = with_own(self, |local| local.pool.count_off());
        if done.is_none() {
            // One that is gone waits for nobody.
            if let Some(pool) = self.pool() {
                pool.count_off();
            }
        }
    }
}

/// What the calling thread has, if it is one of this pool's. A thread that is ending has nothing any
/// more, and is as foreign as any.
fn with_own<T>(pool: PoolId, with: impl FnOnce(&Local) -> T) -> Option<T> {
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

impl Seat {
    fn unpark(&self) {
        if let Some(thread) = &*lock(&self.thread) {
            thread.unpark();
        }
    }
}

fn builder(pool: &Pool) -> Builder<PoolId> {
    Builder::new().metadata(pool.id)
}

fn schedule(job: Job) {
    let id = *job.metadata();
    if let Some(queue) = with_own(id, |local| local.queue.clone()) {
        queue.push(job);
    } else if let Some(pool) = id.pool() {
        pool.foreign.push(job);
        pool.wake();
    }
}

/// Says what that was of a thread's turn.
fn run(seat: &Seat, job: Job) -> usize {
    let turns = seat.turns.load(Relaxed);
    seat.turns.store(turns + 1, Relaxed);
    READS_LEFT.with(|left| left.set(READS));
    // What panics here is not a handler: those are caught where they are polled.
    let _caught = catch_unwind(AssertUnwindSafe(|| job.run()));
    let left = READS_LEFT.with(|left| left.replace(u32::MAX));
    seat.turns.store(turns + 2, Relaxed);
    if left == 0 { READS as usize } else { 1 }
}

/// Runs what is in this thread's queue, up to a turn; says how many.
fn run_own(seat: &Seat, queue: &Worker<Job>) -> usize {
    let (mut ran, mut spent) = (0, 0);
    while spent < TURN {
        let Some(job) = queue.pop() else {
            break;
        };
        spent += run(seat, job);
        ran += 1;
    }
    ran
}

/// How long a task takes, of late.
#[derive(Default)]
struct Pace {
    nanos: u64,
}

impl Pace {
    fn note(&mut self, ran: usize, begun: Instant) {
        if ran > 0 {
            let each = begun.elapsed().as_nanos() as u64 / ran as u64;
            self.nanos = (self.nanos * 7 + each) / 8;
        }
    }

    fn is_worth_a_helper(&self, queued: usize) -> bool {
        queued > 1 && Duration::from_nanos(self.nanos * queued as u64) > WORTH_A_HELPER
    }
}

/// Fruitless spins in a row make the next rarer, up to one in 256 sleeps: what that costs is little
/// beside what so many sleeps do, and a client that is alone again is soon found out.
const MOST_FRUITLESS: u32 = 8;

/// A short look for events before the thread sleeps, as long as that pays.
struct Spins {
    span: Duration,
    /// How many sleeps come before the next try.
    skip: u32,
    fruitless: u32,
}

impl Spins {
    fn new(span: Duration) -> Self {
        Self {
            // Whoever could bring something is kept from it by the look for it.
            span: if cores() == 1 { Duration::ZERO } else { span },
            skip: 0,
            fruitless: 0,
        }
    }

    fn spin(&mut self, mut found: impl FnMut() -> bool) -> bool {
        if self.span.is_zero() {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        let begun = Instant::now();
        let mut last = begun;
        loop {
            if found() {
                self.fruitless = 0;
                return true;
            }
            let now = Instant::now();
            // Half the span between two looks: somebody else wants this core.
            let contended = now - last > self.span / 2;
            if contended || now - begun > self.span {
                self.fruitless =
                    (self.fruitless + if contended { 4 } else { 1 }).min(MOST_FRUITLESS);
                if self.fruitless > 2 {
                    self.skip = 1 << self.fruitless;
                }
                return false;
            }
            last = now;
            std::hint::spin_loop();
        }
    }
}

pin_project! {
    /// A task that is counted until it is dropped.
    struct Counted<F> {
        #[pin]
        future: F,
        count: Count,
    }
}

impl<F> Counted<F> {
    fn new(future: F, by: PoolId) -> Self {
        let count = Count(by);
        Self { future, count }
    }
}

impl<F: Future> Future for Counted<F> {
    type Output = F::Output;

    #[inline]
    fn poll(self: std::pin::Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
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
        let poller = Arc::new(Poller::new().unwrap());
        Pool::new(poller, "test".into(), 1, Duration::ZERO, false)
    }

    /// Runs something on the pool, and waits for it.
    fn is_run_on(pool: &Arc<Pool>) -> bool {
        let (say, said) = mpsc::channel();
        pool.spawn(async move { say.send(()).unwrap() });
        said.recv_timeout(DEADLINE).is_ok()
    }

    /// Both drivers sleep, the one that was replaced in front of its heir: it gets the wake-up.
    #[test]
    fn a_driver_that_was_replaced_takes_no_wake_up_with_it() {
        let pool = alone();
        let drives = |number: usize| {
            pool.driver.store(number, SeqCst);
            let threads = lock(&pool.threads).clone();
            pool.rouse(&threads[number]);
            threads[number].unpark();
            eventually("it says that it sleeps", || pool.sleeping.load(SeqCst));
            // Which it does then: the kernel tells nobody.
            thread::sleep(Duration::from_millis(20));
        };
        pool.driver.store(1, SeqCst);
        for _ in 0..2 {
            pool.hire().unwrap();
        }
        eventually("the other rests", || pool.resting.load(SeqCst) == 1);
        drives(1);
        pool.sleeping.store(false, SeqCst);
        drives(0);
        pool.driver.store(1, SeqCst);
        for _ in 0..10 {
            assert!(is_run_on(&pool), "nobody was woken for it");
        }
        pool.end();
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

    fn spins(span: Duration) -> Spins {
        Spins {
            span,
            skip: 0,
            fruitless: 0,
        }
    }

    #[test]
    fn a_spin_ends_with_what_it_finds() {
        let mut spins = spins(Duration::from_secs(3600));
        for looks in [1, 2, 1000] {
            let mut left = looks;
            let found = spins.spin(|| {
                left -= 1;
                left == 0
            });
            assert!(found);
        }
    }

    #[test]
    fn without_a_span_nobody_looks() {
        assert!(!spins(Duration::ZERO).spin(|| unreachable!()));
    }

    /// The span is over at once, as where somebody else has the core.
    #[test]
    fn spins_that_find_nothing_become_rare_and_one_that_does_brings_them_back() {
        let mut spins = spins(Duration::from_nanos(1));
        // How many sleeps come without a look.
        let mut until_it_looks = |finds: bool| {
            let mut sleeps = 0;
            loop {
                let mut looked = false;
                let found = spins.spin(|| {
                    looked = true;
                    finds
                });
                assert_eq!(found, looked && finds);
                if looked {
                    return sleeps;
                }
                sleeps += 1;
            }
        };
        assert_eq!(until_it_looks(false), 0);
        let mut last = 0;
        for _ in 0..2 {
            let sleeps = until_it_looks(false);
            assert!(sleeps > last, "{sleeps} sleeps after {last}");
            last = sleeps;
        }
        // It never gives up for good.
        assert_eq!(until_it_looks(false), 1 << MOST_FRUITLESS);
        assert_eq!(until_it_looks(true), 1 << MOST_FRUITLESS);
        assert_eq!(until_it_looks(true), 0);
        assert_eq!(until_it_looks(false), 0);
        assert!(until_it_looks(false) < 100, "as if for the first time");
    }
}
