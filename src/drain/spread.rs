//! Idle connections told of a drain one after the other, so that their clients do not come back in one
//! instant.

use std::time::{Duration, Instant};

use futures_lite::future;

use crate::runtime::sleep_until;
use crate::shared::Shared;

/// How often, at most, the next connections are told: a timer for each of many would cost more.
const STEP: Duration = Duration::from_millis(5);

/// Tells these connections of the drain, evenly over the configured span.
pub(super) async fn drain_one_by_one(shared: &Shared, idle: Vec<u64>) {
    let begun = shared.clock.now();
    let mut told = 0;
    while told < idle.len() {
        // Listened for first: a deadline that is given from here on shortens the span.
        let changed = shared.latch.listen();
        let now = shared.clock.now();
        let span = span(shared, begun);
        let due = share(idle.len(), now.saturating_duration_since(begun), span);
        let uptime = shared.uptime();
        while told < due {
            if let Some(connection) = shared.registry.find(idle[told]) {
                connection.notify_drain(uptime);
            }
            told += 1;
        }
        let pause = (span / u32::try_from(idle.len()).unwrap_or(u32::MAX)).max(STEP);
        future::or(sleep_until(&*shared.clock, now.checked_add(pause)), changed).await;
    }
}

/// How long it may take to tell all: within the deadline, with some of it left for the last.
fn span(shared: &Shared, begun: Instant) -> Duration {
    let left = shared
        .deadline()
        .map(|deadline| deadline.saturating_duration_since(begun));
    let most = left.map_or(Duration::MAX, |left| left - left / 4);
    shared.config.spread.min(most)
}

/// How many of `count` are due after so much of the span: one at its beginning, all at its end.
fn share(count: usize, elapsed: Duration, span: Duration) -> usize {
    if elapsed >= span {
        return count;
    }
    let share = elapsed.as_secs_f64() / span.as_secs_f64();
    1 + ((count - 1) as f64 * share) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_told_evenly_within_the_span() {
        let span = Duration::from_secs(9);
        for (seconds, told) in [(0, 1), (3, 4), (6, 7), (9, 10), (100, 10)] {
            assert_eq!(share(10, Duration::from_secs(seconds), span), told);
        }
        assert_eq!(share(10, Duration::ZERO, Duration::ZERO), 10);
        assert_eq!(share(1, Duration::ZERO, span), 1);
    }
}
