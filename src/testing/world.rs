//! What a run has: its time, its network, and its account of what happened.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use super::fault::Fault;
use super::network::{Event, Network};
use super::plan::Plan;
use super::timeline::{Timeline, Who};
use super::watch::Watch;
use super::wire::Effects;

/// A future that may be polled on any thread, as those that a runtime is given.
pub(super) type SendTask = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Why a run is a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// What kind it is of: a run from which something was left out fails in the same way if it is of
    /// the same.
    pub(super) kind: &'static str,
    pub(super) text: String,
}

/// A run's world. All of it is used on one thread; the locks are there because what a server has may be
/// sent to others.
pub(super) struct World {
    pub(super) plan: Plan,
    origin: Instant,
    /// Nanoseconds since the beginning.
    now: AtomicU64,
    step: AtomicU64,
    pub(super) ready: Arc<Ready>,
    timers: Mutex<Timers>,
    spawned: Mutex<Vec<SendTask>>,
    network: Mutex<Network>,
    timeline: Mutex<Timeline>,
    /// What was looked for, and whether it came.
    looked: Mutex<BTreeMap<String, Looked>>,
    /// How many acts the scenario has named.
    acts: AtomicUsize,
    fired: Mutex<BTreeSet<Fault>>,
    failure: Mutex<Option<Failure>>,
    watch: Mutex<Watch>,
}

/// Something that was looked for in a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Looked {
    pub(super) came: bool,
    /// The simulation fails where it comes in no run.
    pub(super) is_wanted: bool,
}

/// The tasks that can go on.
#[derive(Debug)]
pub(super) struct Ready {
    tasks: Mutex<Vec<u64>>,
    thread: ThreadId,
    /// Another thread has woken a task.
    is_foreign: AtomicBool,
}

/// What happens at a time, by that time and a number that is given out in turn.
#[derive(Default)]
struct Timers {
    all: BTreeMap<(Duration, u64), Timed>,
    next: u64,
}

pub(super) enum Timed {
    Wake(Waker),
    Happen(Event),
    /// An act of the scenario's.
    Act(usize),
}

/// A timer's place.
pub(super) type TimerKey = (Duration, u64);

thread_local! {
    /// The world that this thread runs.
    static CURRENT: RefCell<Option<Arc<World>>> = const { RefCell::new(None) };
}

impl World {
    pub(super) fn new(plan: Plan, is_read: bool) -> Arc<Self> {
        let network = Network {
            descriptors: plan.descriptors,
            ..Network::default()
        };
        Arc::new(Self {
            plan,
            origin: Instant::now(),
            now: AtomicU64::new(0),
            step: AtomicU64::new(0),
            ready: Arc::new(Ready {
                tasks: Mutex::default(),
                thread: thread::current().id(),
                is_foreign: AtomicBool::new(false),
            }),
            timers: Mutex::default(),
            spawned: Mutex::default(),
            network: Mutex::new(network),
            timeline: Mutex::new(Timeline::new(is_read)),
            looked: Mutex::default(),
            acts: AtomicUsize::new(0),
            fired: Mutex::default(),
            failure: Mutex::default(),
            watch: Mutex::default(),
        })
    }

    /// The world of this thread, inside a run.
    pub(super) fn current() -> Option<Arc<Self>> {
        CURRENT.with_borrow(Clone::clone)
    }

    /// Makes this the world of this thread, for as long as the guard lives.
    pub(super) fn enter(self: &Arc<Self>) -> Entered {
        Entered(CURRENT.replace(Some(self.clone())))
    }

    /// The time since the beginning.
    pub(super) fn now(&self) -> Duration {
        Duration::from_nanos(self.now.load(SeqCst))
    }

    /// The time as the server's clock shows it.
    pub(super) fn instant(&self) -> Instant {
        self.origin + self.now()
    }

    pub(super) fn step(&self) -> u64 {
        self.step.load(SeqCst)
    }

    pub(super) fn next_step(&self) -> u64 {
        self.step.fetch_add(1, SeqCst) + 1
    }

    pub(super) fn spawn(&self, task: SendTask) {
        locked(&self.spawned).push(task);
    }

    pub(super) fn take_spawned(&self) -> Vec<SendTask> {
        std::mem::take(&mut *locked(&self.spawned))
    }

    /// Sets a timer; `None` where its time never comes.
    pub(super) fn set_timer(&self, at: Duration, timed: Timed) -> TimerKey {
        let mut timers = locked(&self.timers);
        let key = (at, timers.next);
        timers.next += 1;
        timers.all.insert(key, timed);
        key
    }

    /// Gives a timer another waker; `false` where it has fired.
    pub(super) fn reset_timer(&self, key: TimerKey, waker: &Waker) -> bool {
        let old = match locked(&self.timers).all.get_mut(&key) {
            Some(Timed::Wake(old)) if old.will_wake(waker) => return true,
            Some(Timed::Wake(old)) => std::mem::replace(old, waker.clone()),
            _ => return false,
        };
        drop(old);
        true
    }

    pub(super) fn clear_timer(&self, key: TimerKey) {
        let cleared = locked(&self.timers).all.remove(&key);
        drop(cleared);
    }

    /// When the next timer fires.
    pub(super) fn next_timer(&self) -> Option<Duration> {
        locked(&self.timers)
            .all
            .first_key_value()
            .map(|((at, _), _)| *at)
    }

    /// Has time pass until then, and takes the timers that fire.
    pub(super) fn pass(&self, until: Duration) -> Vec<Timed> {
        self.now.store(until.as_nanos() as u64, SeqCst);
        let mut timers = locked(&self.timers);
        let later = timers.all.split_off(&(until, u64::MAX));
        std::mem::replace(&mut timers.all, later)
            .into_values()
            .collect()
    }

    /// Uses the network, then does what is to be done without its lock.
    pub(super) fn on_network<T>(&self, operate: impl FnOnce(&mut Network, &mut Effects) -> T) -> T {
        let mut fx = Effects {
            now: self.now(),
            ..Effects::default()
        };
        let value = operate(&mut locked(&self.network), &mut fx);
        for (at, wire, to, packet) in fx.later {
            self.set_timer(at, Timed::Happen(Event::Arrives { wire, to, packet }));
        }
        for (who, what, count) in fx.happened {
            self.note(who, what, count);
        }
        fx.wake.into_iter().for_each(Waker::wake);
        value
    }

    /// Something happens in the network by itself.
    pub(super) fn happen(&self, event: Event) {
        let next = self.on_network(|network, fx| network.happen(event, fx));
        if let Some((at, event)) = next {
            self.set_timer(at, Timed::Happen(event));
        }
    }

    pub(super) fn note(&self, who: Who, what: &str, count: impl Into<Option<u64>>) {
        locked(&self.timeline).add(self.now(), self.step(), who, what, count.into());
    }

    pub(super) fn timeline(&self) -> MutexGuard<'_, Timeline> {
        locked(&self.timeline)
    }

    /// A fault has come to pass.
    pub(super) fn fired(&self, fault: Fault) {
        locked(&self.fired).insert(fault);
    }

    pub(super) fn take_fired(&self) -> BTreeSet<Fault> {
        std::mem::take(&mut *locked(&self.fired))
    }

    /// Something was looked for by the world itself.
    pub(super) fn looked(&self, what: &str, came: bool) {
        self.look(what, came, false);
    }

    /// Something was looked for that has to come in one of all runs.
    pub(super) fn wanted(&self, what: &str, came: bool) {
        self.look(what, came, true);
    }

    fn look(&self, what: &str, came: bool, is_wanted: bool) {
        let mut looked = locked(&self.looked);
        match looked.get_mut(what) {
            Some(before) => before.came |= came,
            None => _ = looked.insert(what.to_owned(), Looked { came, is_wanted }),
        }
    }

    /// Gives the next act its number.
    pub(super) fn next_act(&self) -> usize {
        self.acts.fetch_add(1, SeqCst)
    }

    pub(super) fn acts(&self) -> usize {
        self.acts.load(SeqCst)
    }

    pub(super) fn take_looked(&self) -> BTreeMap<String, Looked> {
        std::mem::take(&mut *locked(&self.looked))
    }

    /// Makes this run a failure, unless it is one.
    pub(super) fn fail(&self, kind: &'static str, text: impl Into<String>) {
        let text = text.into();
        self.note(Who::World, &format!("FAILS, {kind}: {text}"), None);
        locked(&self.failure).get_or_insert(Failure { kind, text });
    }

    pub(super) fn failure(&self) -> Option<Failure> {
        locked(&self.failure).clone()
    }

    pub(super) fn watch(&self) -> MutexGuard<'_, Watch> {
        locked(&self.watch)
    }

    /// Drops all that holds a waker, so that nothing holds this world any more.
    pub(super) fn clear(&self) {
        let timers = std::mem::take(&mut locked(&self.timers).all);
        let spawned = self.take_spawned();
        let watch = std::mem::take(&mut *self.watch());
        let network = std::mem::take(&mut *locked(&self.network));
        drop((timers, spawned, watch, network));
    }
}

impl Ready {
    pub(super) fn push(&self, task: u64) {
        if thread::current().id() != self.thread {
            self.is_foreign.store(true, SeqCst);
        }
        locked(&self.tasks).push(task);
    }

    /// Takes one of them, by a number that was drawn.
    pub(super) fn take(&self, draw: impl FnOnce(u64) -> u64) -> Option<u64> {
        let mut tasks = locked(&self.tasks);
        if tasks.is_empty() {
            return None;
        }
        let index = draw(tasks.len() as u64) as usize;
        Some(tasks.swap_remove(index))
    }

    pub(super) fn is_foreign(&self) -> bool {
        self.is_foreign.load(SeqCst)
    }
}

/// Makes the world before this one that of the thread again.
pub(super) struct Entered(Option<Arc<World>>);

impl Drop for Entered {
    fn drop(&mut self) {
        let left = CURRENT.replace(self.0.take());
        drop(left);
    }
}

/// Locks, whether or not a panic has come under the lock before. Not a lock of the crate's own: nothing
/// else runs under it.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
