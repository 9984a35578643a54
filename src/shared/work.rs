//! Tracked work: the futures that a drain waits for beside the connections.
//!
//! 1. Work is in the list from `Handle::track` until its future is dropped. The list is part of the
//!    ledger, and changes under the registry's lock.
//! 2. Work that waits for the end of its own server cannot be waited for to its end. Such work is
//!    known by the poll in which its wait is polled (`polled_work`), or, where it reads events, by
//!    the wake-up that an event sends it (`work_woken_by`): the channel of events does not say by
//!    which task it is read.

use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt;
use std::panic::Location;
use std::sync::Arc;
use std::task::{Wake, Waker};
use std::time::Duration;

use futures_util::task::AtomicWaker;

use super::id_map::IdMap;
use crate::report::TrackedWork;

/// What tracked work is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Name {
    Given(Cow<'static, str>),
    /// The place of the call of `track`, where no name was given.
    At(&'static Location<'static>),
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Given(name) => f.write_str(name),
            Self::At(place) => place.fmt(f),
        }
    }
}

/// The tracked work of one server.
#[derive(Debug, Default)]
pub(super) struct WorkList {
    /// The work that has not ended.
    living: IdMap<Work>,
    last_id: u64,
    /// How much of it waits for the end of the server.
    waiting: usize,
    /// How much of it waits for that end or reads events, which end with the server.
    dependent: usize,
    /// How much work was dropped by a stop.
    dropped: u64,
    /// The work that ended after the drain had begun, by name.
    outlasted: Vec<Outlasted>,
    /// The log has said which work the drain waits for.
    is_logged: bool,
}

/// A piece of tracked work.
#[derive(Debug)]
struct Work {
    name: Name,
    /// How many of its futures wait for the end of the server.
    waits: u32,
    reads_events: bool,
    /// How long after the beginning of the drain its wait for the end was over, since nothing but
    /// such work was left.
    released: Option<Duration>,
}

impl Work {
    /// Whether it may end only when the server does.
    fn is_dependent(&self) -> bool {
        self.waits > 0 || self.reads_events
    }
}

/// Work of one name that ended after the drain had begun.
#[derive(Debug)]
struct Outlasted {
    name: Name,
    count: u64,
    dropped: u64,
    waited: Duration,
}

impl WorkList {
    /// Adds a piece of work; gives its id.
    pub(super) fn add(&mut self, name: Name) -> u64 {
        self.last_id += 1;
        let work = Work {
            name,
            waits: 0,
            reads_events: false,
            released: None,
        };
        self.living.push(self.last_id, work);
        self.last_id
    }

    /// Takes out work that has ended; gives its name, unless it was given up before. `waited` is
    /// how long after the beginning of the drain it ended; `None` where there is no drain.
    pub(super) fn remove(
        &mut self,
        id: u64,
        is_dropped: bool,
        waited: Option<Duration>,
    ) -> Option<Name> {
        let work = self.living.remove(id)?;
        self.waiting -= usize::from(work.waits > 0);
        self.dependent -= usize::from(work.is_dependent());
        self.dropped += u64::from(is_dropped);
        let waited = waited.or(is_dropped.then_some(Duration::ZERO));
        if let Some(waited) = waited {
            // Until it was released the work waited for the stop, and not the stop for the work.
            let waited = waited.saturating_sub(work.released.unwrap_or_default());
            self.note(&work.name, is_dropped, waited);
        }
        Some(work.name)
    }

    /// Records work that ended after the drain had begun.
    fn note(&mut self, name: &Name, is_dropped: bool, waited: Duration) {
        let known = self.outlasted.iter_mut().find(|known| known.name == *name);
        let outlasted = match known {
            Some(known) => known,
            None => {
                self.outlasted.push(Outlasted {
                    name: name.clone(),
                    count: 0,
                    dropped: 0,
                    waited,
                });
                let last = self.outlasted.len() - 1;
                &mut self.outlasted[last]
            }
        };
        outlasted.count += 1;
        outlasted.dropped += u64::from(is_dropped);
        outlasted.waited = outlasted.waited.max(waited);
    }

    /// Gives up all work that has not ended: no task polls it any more, so it cannot be dropped.
    /// Gives the names, for the log.
    pub(super) fn give_up(&mut self, waited: Duration) -> String {
        let living = std::mem::take(&mut self.living);
        (self.waiting, self.dependent) = (0, 0);
        for work in living.values() {
            self.dropped += 1;
            self.note(&work.name, true, waited);
        }
        names(living.values())
    }

    /// The names of the work that the end of a drain waits for, the first time that there is some.
    pub(super) fn names_to_log(&mut self) -> Option<String> {
        if self.is_logged || self.only_depends() {
            return None;
        }
        self.is_logged = true;
        Some(names(self.living.values().filter(|it| !it.is_dependent())))
    }

    /// A future of this work begins to wait for the end of the server.
    pub(super) fn begin_wait(&mut self, id: u64) {
        if let Some(work) = self.living.get_mut(id) {
            self.waiting += usize::from(work.waits == 0);
            self.dependent += usize::from(!work.is_dependent());
            work.waits += 1;
        }
    }

    /// That wait is over.
    pub(super) fn end_wait(&mut self, id: u64) {
        if let Some(work) = self.living.get_mut(id) {
            work.waits -= 1;
            self.waiting -= usize::from(work.waits == 0);
            self.dependent -= usize::from(!work.is_dependent());
        }
    }

    /// Records that this work reads events; `true` where that was not known.
    pub(super) fn mark_reader(&mut self, id: u64) -> bool {
        let Some(work) = self.living.get_mut(id) else {
            return false;
        };
        self.dependent += usize::from(!work.is_dependent());
        !std::mem::replace(&mut work.reads_events, true)
    }

    /// Records that work which depends on the end of the server is released now, so long after the
    /// beginning of the drain.
    pub(super) fn mark_released(&mut self, waited: Duration) {
        for work in self.living.values_mut().filter(|it| it.is_dependent()) {
            work.released.get_or_insert(waited);
        }
    }

    /// Whether this work has not ended.
    pub(super) fn is_living(&self, id: u64) -> bool {
        self.living.get(id).is_some()
    }

    pub(super) fn len(&self) -> u64 {
        self.living.len() as u64
    }

    pub(super) fn is_empty(&self) -> bool {
        self.living.len() == 0
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Whether all work that is left waits for the end of the server.
    pub(super) fn only_waits(&self) -> bool {
        self.waiting == self.living.len()
    }

    /// Whether all work that is left waits for the end of the server or reads events.
    pub(super) fn only_depends(&self) -> bool {
        self.dependent == self.living.len()
    }

    /// The work that ended after the drain had begun, the longest first.
    pub(super) fn outlasted(&self) -> Vec<TrackedWork> {
        let mut outlasted: Vec<_> = self
            .outlasted
            .iter()
            .map(|it| TrackedWork {
                name: it.name.to_string(),
                count: it.count,
                dropped: it.dropped,
                waited: it.waited,
            })
            .collect();
        outlasted.sort_by_key(|work| std::cmp::Reverse(work.waited));
        outlasted
    }
}

/// The names of work, for the log: `flush, job (12 of them)`.
fn names<'a>(work: impl Iterator<Item = &'a Work>) -> String {
    let mut counted: Vec<(&Name, u64)> = Vec::new();
    for it in work {
        match counted.iter_mut().find(|(name, _)| **name == it.name) {
            Some((_, count)) => *count += 1,
            None => counted.push((&it.name, 1)),
        }
    }
    let named = counted.into_iter().map(|(name, count)| match count {
        1 => name.to_string(),
        _ => format!("{name} ({count} of them)"),
    });
    named.collect::<Vec<_>>().join(", ")
}

/// A piece of tracked work of any server of this process: the address of the server's registry, and
/// the id there.
pub(super) type WorkKey = (usize, u64);

thread_local! {
    /// The tracked work that this thread polls, the outermost first: work may be awaited by other
    /// work.
    static POLLED: RefCell<Vec<WorkKey>> = const { RefCell::new(Vec::new()) };
    /// While this thread sends an event: the tracked work that the event wakes.
    static WOKEN: RefCell<Option<Vec<WorkKey>>> = const { RefCell::new(None) };
}

/// Runs `poll`, which polls this work, and has [`polled_work`] know of it meanwhile.
pub(super) fn polling<T>(work: WorkKey, poll: impl FnOnce() -> T) -> T {
    struct Polled;
    impl Drop for Polled {
        fn drop(&mut self) {
            POLLED.with_borrow_mut(Vec::pop);
        }
    }
    POLLED.with_borrow_mut(|polled| polled.push(work));
    let _polled = Polled;
    poll()
}

/// The work of one registry's server that this thread polls.
pub(super) fn polled_work(registry: usize) -> Vec<u64> {
    POLLED.with_borrow(|polled| of(registry, polled))
}

/// Runs `send`; gives the work of one registry's server that it woke.
pub(super) fn work_woken_by<T>(registry: usize, send: impl FnOnce() -> T) -> (T, Vec<u64>) {
    // A waker may send events itself, of this server or of another: those collect apart.
    let outer = WOKEN.replace(Some(Vec::new()));
    let sent = send();
    let woken = WOKEN.replace(outer).unwrap_or_default();
    (sent, of(registry, &woken))
}

/// The ids of the work that belongs to one registry's server.
fn of(registry: usize, work: &[WorkKey]) -> Vec<u64> {
    let own = work.iter().filter(|(it, _)| *it == registry);
    own.map(|(_, id)| *id).collect()
}

/// The waker that tracked work is polled with. It wakes the task that polls the work, and has
/// [`work_woken_by`] know which work that is.
#[derive(Debug)]
pub(crate) struct WorkWaker {
    work: WorkKey,
    task: AtomicWaker,
}

impl WorkWaker {
    /// A waker for this work, which wakes no task yet.
    pub(super) fn new(work: WorkKey) -> Arc<Self> {
        Arc::new(Self {
            work,
            task: AtomicWaker::new(),
        })
    }

    /// Has it wake `task`, once. Called before each poll of the work.
    pub(crate) fn register(&self, task: &Waker) {
        self.task.register(task);
    }
}

impl Wake for WorkWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // A thread that is ending may call wakers, too; it sends no events.
        let _ending = WOKEN.try_with(|woken| {
            if let Some(woken) = &mut *woken.borrow_mut() {
                woken.push(self.work);
            }
        });
        self.task.wake();
    }
}
