//! What a driver measures: how long a task takes, which decides whether a helper is woken, and
//! whether a look for events before a sleep pays.

use std::thread;
use std::time::{Duration, Instant};

/// How long the queued tasks have to take until a helper is woken for them; the wake-up itself
/// takes about a tenth of it. Measured on two cores that the clients share: handlers of 20 µs do
/// half as much again as without a helper. Any limit from 100 µs to 1 ms does as well, and 2.5 ms
/// is more than 50 clients ever have queued. Handlers that do nothing gain nothing, and lose a few
/// per cent where 500 clients ask at once.
const WORTH_A_HELPER: Duration = Duration::from_micros(250);

/// Spins in a row that find nothing make the next one rarer, up to one in 256 sleeps (2 to this
/// power). One spin costs little beside so many sleeps, and it does not take long to find that
/// spins pay again.
const MOST_FRUITLESS: u32 = 8;

/// How many cores this process may use.
pub(super) fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// The time that a task takes: a moving average.
#[derive(Default)]
pub(super) struct TaskTime {
    nanos: u64,
}

impl TaskTime {
    /// Adds `ran` tasks, the first of which began at `begun`.
    pub(super) fn add(&mut self, ran: usize, begun: Instant) {
        if ran > 0 {
            let each = begun.elapsed().as_nanos() as u64 / ran as u64;
            self.nanos = (self.nanos * 7 + each) / 8;
        }
    }

    /// Whether a queue of this length takes long enough to wake a helper for it.
    pub(super) fn is_worth_a_helper(&self, queued: usize) -> bool {
        queued > 1 && Duration::from_nanos(self.nanos * queued as u64) > WORTH_A_HELPER
    }
}

/// A short look for events before the thread sleeps, as long as that pays.
pub(super) struct AdaptiveSpin {
    span: Duration,
    /// How many sleeps come before the next try.
    skip: u32,
    fruitless: u32,
}

impl AdaptiveSpin {
    pub(super) fn new(span: Duration) -> Self {
        Self {
            // With one core a spin keeps the clients, and all else that could bring an event, from
            // running.
            span: if cores() == 1 { Duration::ZERO } else { span },
            skip: 0,
            fruitless: 0,
        }
    }

    /// Calls `found` until it is true, for the span at most; gives whether it was.
    #[inline]
    pub(super) fn spin(&mut self, found: impl FnMut() -> bool) -> bool {
        if self.span.is_zero() {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        self.spin_now(found)
    }

    fn spin_now(&mut self, mut found: impl FnMut() -> bool) -> bool {
        let begun = Instant::now();
        let mut last = begun;
        loop {
            if found() {
                self.fruitless = 0;
                return true;
            }
            let now = Instant::now();
            // So much time between two looks means that another thread had this core in between.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn spin(span: Duration) -> AdaptiveSpin {
        AdaptiveSpin {
            span,
            skip: 0,
            fruitless: 0,
        }
    }

    #[test]
    fn a_spin_ends_with_what_it_finds() {
        let mut spin = spin(Duration::from_secs(3600));
        for looks in [1, 2, 1000] {
            let mut left = looks;
            let found = spin.spin(|| {
                left -= 1;
                left == 0
            });
            assert!(found);
        }
    }

    #[test]
    fn without_a_span_nobody_looks() {
        assert!(!spin(Duration::ZERO).spin(|| unreachable!()));
    }

    /// The span is over at once, as where another thread has the core.
    #[test]
    fn spins_that_find_nothing_become_rare_and_one_that_does_brings_them_back() {
        let mut spin = spin(Duration::from_nanos(1));
        // How many sleeps come without a look.
        let mut until_it_looks = |finds: bool| {
            let mut sleeps = 0;
            loop {
                let mut looked = false;
                let found = spin.spin(|| {
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
