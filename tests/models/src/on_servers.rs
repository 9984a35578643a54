//! The latch, the permits with those who wait for one, the queue, the registry's count with those who
//! wait for its end.

use std::time::{Duration, Instant};

use event_listener::Event;
use futures_lite::future;
use loom::future::block_on;
use loom::sync::Arc;
use loom::thread;

use crate::connection::ConnectionState;
use crate::explore;
use crate::lifecycle::{Latch, Phase, Reason};
use crate::permits::{Permits, Queue};
use crate::sync::{Mutex, listen, lock, notify};

#[derive(Default)]
struct Config {
    reject_with: Option<Vec<u8>>,
}

struct Shared {
    config: Config,
    latch: Latch,
    permits: Permits,
    queue: Queue<Arc<ConnectionState>>,
    registry: Registry,
    clock: Box<Clock>,
}

/// It stands still.
struct Clock(Instant);

impl Clock {
    fn now(&self) -> Instant {
        self.0
    }
}

async fn sleep_until(_clock: &Clock, _until: Option<Instant>) {
    future::pending().await
}

#[derive(Default)]
struct Registry {
    ledger: Mutex<Ledger>,
    empty: Event,
}

#[derive(Default)]
struct Ledger {
    active: u64,
    acceptors: u64,
    rejected: u64,
}

/// Sketches of those in `shared/registry.rs`: what they change, and whom they tell.
impl Registry {
    fn open(&self) {
        lock(&self.ledger).active += 1;
    }

    fn close(&self) {
        let mut ledger = lock(&self.ledger);
        ledger.active -= 1;
        let is_disconnected = ledger.active == 0 && ledger.acceptors == 0;
        drop(ledger);
        if is_disconnected {
            notify(&self.empty);
        }
    }

    fn acceptor_ended(&self) {
        lock(&self.ledger).acceptors -= 1;
        notify(&self.empty);
    }

    fn is_empty(&self) -> bool {
        let ledger = lock(&self.ledger);
        ledger.active == 0 && ledger.acceptors == 0
    }

    fn attend_to_work(&self, _drained_for: impl FnOnce() -> Duration) {}
}

impl Shared {
    fn new(max_connections: Option<usize>) -> Arc<Self> {
        Arc::new(Self {
            config: Config::default(),
            latch: Latch::default(),
            permits: Permits::new(max_connections),
            queue: Queue::default(),
            registry: Registry::default(),
            clock: Box::new(Clock(Instant::now())),
        })
    }

    fn drained_for(&self) -> Option<Duration> {
        None
    }

    fn deadline(&self) -> Option<Instant> {
        self.latch.request().deadline(None, None)
    }

    pub(crate) async fn emptied(&self) {
        loop {
            let empty = listen(&self.registry.empty);
            if self.registry.is_empty() {
                return;
            }
            let drained_for = || self.drained_for().unwrap_or_default();
            self.registry.attend_to_work(drained_for);
            empty.await;
        }
    }

    pub(crate) fn has_permit(&self) -> bool {
        let rejects = self.config.reject_with.is_some();
        !self.permits.is_paused() && (rejects || !self.permits.is_full())
    }

    pub(crate) async fn permit(&self) {
        while !self.has_permit() {
            let released = listen(&self.permits.released);
            let returned = listen(&self.permits.returned);
            if self.has_permit() {
                return;
            }
            future::or(released, returned).await;
        }
    }
}

async fn deadline(shared: &Shared) {
    loop {
        let changed = shared.latch.listen();
        let deadline = shared.deadline();
        if deadline.is_some_and(|deadline| deadline <= shared.clock.now()) {
            return;
        }
        future::or(sleep_until(&*shared.clock, deadline), changed).await;
    }
}

fn enqueue(shared: &Shared, connection: Arc<ConnectionState>) {
    shared.queue.push(connection);
    // Invariant 2.
    if shared.latch.phase() >= Phase::Aborting {
        reject_queue(shared);
    }
}

fn reject_queue(shared: &Shared) {
    lock(&shared.registry.ledger).rejected += shared.queue.take_all().len() as u64;
}

#[test]
fn a_stop_is_heard_by_whoever_begins_to_wait_for_it() {
    explore(|| {
        let latch = Arc::new(Latch::default());
        let asked = latch.clone();
        let asks = thread::spawn(move || asked.ask(Reason::Requested, Instant::now(), None));
        block_on(latch.reached(Phase::Draining));
        assert!(asks.join().unwrap());
    });
}

#[test]
fn a_stop_is_heard_by_all_and_first_for_one() {
    explore(|| {
        let latch = Arc::new(Latch::default());
        let asks = |reason: &'static str| {
            let latch = latch.clone();
            thread::spawn(move || latch.ask(Reason::Signal(reason), Instant::now(), None))
        };
        let (one, other) = (asks("one"), asks("other"));
        block_on(latch.reached(Phase::Draining));
        let first = match latch.request().reason {
            Some(Reason::Signal(name)) => name,
            _ => panic!("the phase has risen, and there is no reason"),
        };
        let firsts = [one.join().unwrap(), other.join().unwrap()];
        assert_eq!(firsts, [first == "one", first == "other"]);
    });
}

#[test]
fn a_phase_that_rises_by_two_threads_is_risen_by_one() {
    explore(|| {
        let latch = Arc::new(Latch::default());
        let of_abort = latch.clone();
        let abort = thread::spawn(move || of_abort.advance(Phase::Aborting));
        let drains = latch.advance(Phase::Draining);
        let again = latch.advance(Phase::Aborting);
        assert!(abort.join().unwrap() != again);
        assert!(drains || !again);
        assert_eq!(latch.phase(), Phase::Aborting);
    });
}

#[test]
fn a_deadline_that_comes_in_a_drain_is_heard() {
    explore(|| {
        let shared = Shared::new(None);
        let now = shared.clock.now();
        shared.latch.ask(Reason::Requested, now, None);
        let of_other = shared.clone();
        let other = thread::spawn(move || of_other.latch.ask(Reason::Requested, now, Some(now)));
        block_on(deadline(&shared));
        assert!(!other.join().unwrap());
    });
}

#[test]
fn a_permit_that_is_released_is_found() {
    explore(|| {
        let shared = Shared::new(Some(1));
        assert!(shared.permits.acquire());
        let of_other = shared.clone();
        let other = thread::spawn(move || of_other.permits.release());
        block_on(shared.permit());
        assert!(shared.permits.acquire());
        other.join().unwrap();
    });
}

#[test]
fn a_limit_that_is_raised_and_a_pause_that_ends_are_heard() {
    explore(|| {
        let shared = Shared::new(Some(0));
        shared.permits.set_paused(true);
        let of_other = shared.clone();
        let other = thread::spawn(move || {
            of_other.permits.set_max(Some(1));
            of_other.permits.set_paused(false);
        });
        block_on(shared.permit());
        other.join().unwrap();
    });
}

#[test]
fn a_reservation_that_came_to_nothing_is_found() {
    explore(|| {
        let shared = Shared::new(Some(1));
        let of_other = shared.clone();
        let other = thread::spawn(move || drop(of_other.permits.reserve()));
        loop {
            block_on(shared.permit());
            if shared.permits.acquire() {
                break;
            }
        }
        other.join().unwrap();
    });
}

#[test]
fn there_are_never_more_permits_than_the_limit() {
    explore(|| {
        let shared = Shared::new(Some(1));
        let of_other = shared.clone();
        let other = thread::spawn(move || of_other.permits.acquire());
        let own = shared.permits.acquire();
        assert!(own != other.join().unwrap());
    });
}

#[test]
fn a_connection_apart_is_counted_once() {
    explore(|| {
        let shared = Shared::new(Some(1));
        assert!(shared.permits.acquire());
        let of_other = shared.clone();
        let other = thread::spawn(move || of_other.permits.acquire());
        let is_apart = shared.permits.set_apart();
        assert!(is_apart);
        let has_other = other.join().unwrap();
        shared.permits.take_back();
        assert_eq!(shared.permits.apart(), 0);
        shared.permits.end(true, false);
        assert!(shared.permits.is_full() == has_other);
    });
}

#[test]
fn whoever_is_queued_as_an_abort_comes_is_rejected() {
    explore(|| {
        let shared = Shared::new(None);
        let of_abort = shared.clone();
        // As `abort_now`.
        let abort = thread::spawn(move || {
            of_abort.latch.advance(Phase::Aborting);
            reject_queue(&of_abort);
        });
        enqueue(&shared, Arc::new(ConnectionState::new(0)));
        abort.join().unwrap();
        assert_eq!(lock(&shared.registry.ledger).rejected, 1);
        assert!(shared.queue.is_empty());
    });
}

#[test]
fn the_last_end_is_heard() {
    explore(|| {
        let shared = Shared::new(None);
        for _ in 0..2 {
            shared.registry.open();
        }
        let ends = || {
            let shared = shared.clone();
            thread::spawn(move || shared.registry.close())
        };
        let (one, other) = (ends(), ends());
        block_on(shared.emptied());
        assert!(shared.registry.is_empty());
        one.join().unwrap();
        other.join().unwrap();
    });
}

#[test]
fn nothing_ends_before_the_last_accept_loop() {
    explore(|| {
        let shared = Shared::new(None);
        lock(&shared.registry.ledger).acceptors = 1;
        let of_loop = shared.clone();
        let accepts = thread::spawn(move || {
            of_loop.registry.open();
            of_loop.registry.acceptor_ended();
            of_loop.registry.close();
        });
        block_on(shared.emptied());
        accepts.join().unwrap();
        assert!(shared.registry.is_empty());
    });
}
