//! The tasks that a worker has to run: those that are ready, and those that have used up their turn.

use std::cell::Cell;

use crossbeam_deque::Worker as Queue;

use super::pool::Job;
use crate::socket::budget;

/// The tasks that a worker has to run.
pub(super) struct Queues {
    pub(super) ready: Queue<Job>,
    /// Tasks that have used up their turn. One of them is run in each round, so that a task which
    /// becomes ready waits for one turn, not for a turn of each.
    pub(super) yielded: Queue<Job>,
    /// There may be a task in `yielded`, to be known without a look at the queue.
    may_have_yielded: Cell<bool>,
    /// A task went to `yielded` since `run_tick` cleared this.
    pub(super) has_yielded: Cell<bool>,
}

impl Queues {
    pub(super) fn new() -> Self {
        Self {
            ready: Queue::new_fifo(),
            yielded: Queue::new_fifo(),
            may_have_yielded: Cell::new(false),
            has_yielded: Cell::new(false),
        }
    }

    pub(super) fn push(&self, job: Job) {
        // A task that wakes itself is queued when its poll is over: it is this job, unless it woke
        // another task after it had used up its turn. Then that one waits for a round, once.
        if budget::take_yield() {
            self.has_yielded.set(true);
            self.may_have_yielded.set(true);
            self.yielded.push(job);
        } else {
            self.ready.push(job);
        }
    }

    /// The task that has waited longest of those that used up their turn.
    #[inline]
    pub(super) fn pop_yielded(&self) -> Option<Job> {
        if self.may_have_yielded.get() {
            self.pop_yielded_now()
        } else {
            None
        }
    }

    #[cold]
    fn pop_yielded_now(&self) -> Option<Job> {
        let job = self.yielded.pop();
        self.may_have_yielded.set(job.is_some());
        job
    }

    /// Whether no task has used up its turn.
    #[inline]
    pub(super) fn is_yielded_empty(&self) -> bool {
        !self.may_have_yielded.get() || self.yielded.is_empty()
    }

    /// Takes from another worker some of the tasks that used up their turn; gives whether there were
    /// any.
    pub(super) fn steal_yielded(&self, steal: impl FnOnce(&Queue<Job>) -> bool) -> bool {
        self.may_have_yielded.set(true);
        steal(&self.yielded)
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.ready.is_empty() && self.is_yielded_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.ready.len() + self.yielded.len()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::atomic::Ordering::SeqCst;
    use std::sync::atomic::{AtomicBool, AtomicUsize};
    use std::sync::{Arc, mpsc};
    use std::task::Poll;
    use std::thread;
    use std::time::Duration;

    use futures_lite::future;

    use super::super::driver::Poller;
    use super::super::driver::registration::tests::Nothing;
    use super::super::pool::Pool;
    use super::super::pool::tests::{DEADLINE, alone, eventually, is_run_on};
    use super::*;

    /// One turn at most comes between two polls of a task that is ready, however many never pause; and
    /// some turns do, however often it is ready.
    #[test]
    fn a_task_that_has_used_up_its_turn_comes_after_what_is_ready() {
        const NEVER_PAUSE: usize = 8;
        const POLLS: usize = 10_000;
        let pool = alone();
        let turns = Arc::new(AtomicUsize::new(0));
        let is_over = Arc::new(AtomicBool::new(false));
        for _ in 0..NEVER_PAUSE {
            let (turns, is_over) = (turns.clone(), is_over.clone());
            pool.spawn(poll_fn(move |cx| {
                turns.fetch_add(1, SeqCst);
                match is_over.load(SeqCst) {
                    true => Poll::Ready(()),
                    false => budget::yield_turn(cx),
                }
            }));
        }
        pool.spawn_worker().unwrap();
        eventually("they are at it", || turns.load(SeqCst) > 100);
        let (say, said) = mpsc::channel();
        let counted = turns.clone();
        pool.spawn(async move {
            let before = counted.load(SeqCst);
            for _ in 0..POLLS {
                future::yield_now().await;
            }
            say.send(counted.load(SeqCst) - before).unwrap();
        });
        let between = said.recv_timeout(DEADLINE).unwrap();
        assert!((10..=POLLS).contains(&between), "{between} turns");
        is_over.store(true, SeqCst);
        pool.stop();
    }

    /// A helper that looks at the sockets may find the wake-up that was meant for the driver.
    #[test]
    fn a_helper_that_hears_a_wake_up_leaves_the_driver_one_to_be_woken_by() {
        let poller = Arc::new(Poller::new::<Nothing>().unwrap());
        let pool = Pool::new(poller, "test".into(), 2, Duration::ZERO, false);
        for _ in 0..2 {
            pool.spawn_worker().unwrap();
        }
        for _ in 0..5 {
            let turns = Arc::new(AtomicUsize::new(0));
            let is_over = Arc::new(AtomicBool::new(false));
            let (its, end) = (turns.clone(), is_over.clone());
            pool.spawn(poll_fn(move |cx| {
                its.fetch_add(1, SeqCst);
                match end.load(SeqCst) {
                    true => Poll::Ready(()),
                    false => budget::yield_turn(cx),
                }
            }));
            eventually("the helper has it, and the driver sleeps", || {
                pool.wake_one();
                let before = turns.load(SeqCst);
                let sleeps = pool.sleeping.load(SeqCst);
                thread::sleep(Duration::from_millis(1));
                sleeps && pool.sleeping.load(SeqCst) && turns.load(SeqCst) > before
            });
            // Wake-ups, one of which the helper finds.
            for _ in 0..10 {
                assert!(is_run_on(&pool));
            }
            is_over.store(true, SeqCst);
            eventually("the helper rests", || pool.parked.load(SeqCst) == 1);
            assert!(is_run_on(&pool), "nobody was woken for it");
        }
        pool.stop();
    }
}
