//! Asking idle connections to end one after the other, so that their clients do not all come back
//! in one instant.

use std::time::{Duration, Instant};

use futures_lite::future;

use crate::runtime::sleep_until;
use crate::shared::Shared;

/// How long at least it is between asking some connections and asking the next: a timer for each of
/// many connections would cost more.
const STEP: Duration = Duration::from_millis(5);

/// Asks these connections to end, evenly over the configured span.
pub(super) async fn drain_one_by_one(shared: &Shared, idle: Vec<u64>) {
    let begun = shared.clock.now();
    let mut asked = 0;
    while asked < idle.len() {
        // Listening begins before the deadline is looked at. Swapped, one that is given between the
        // two acts would shorten the span only after the next pause.
        let changed = shared.latch.listen();
        let now = shared.clock.now();
        let span = span(shared, begun);
        let due = share(idle.len(), now.saturating_duration_since(begun), span);
        let uptime = shared.uptime();
        while asked < due {
            if let Some(connection) = shared.registry.find(idle[asked]) {
                connection.notify_drain(uptime);
            }
            asked += 1;
        }
        let pause = (span / u32::try_from(idle.len()).unwrap_or(u32::MAX)).max(STEP);
        future::or(sleep_until(&*shared.clock, now.checked_add(pause)), changed).await;
    }
}

/// How long it may take to ask all: less than the deadline, so that the last have time to end.
fn span(shared: &Shared, begun: Instant) -> Duration {
    let left = shared
        .deadline()
        .map(|deadline| deadline.saturating_duration_since(begun));
    let most = left.map_or(Duration::MAX, |left| left - left / 4);
    shared.config.spread.min(most)
}

/// How many of `count` connections are due after so much of the span: one at its beginning, all at
/// its end.
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
    fn all_are_asked_evenly_within_the_span() {
        let span = Duration::from_secs(9);
        for (seconds, asked) in [(0, 1), (3, 4), (6, 7), (9, 10), (100, 10)] {
            assert_eq!(share(10, Duration::from_secs(seconds), span), asked);
        }
        assert_eq!(share(10, Duration::ZERO, Duration::ZERO), 10);
        assert_eq!(share(1, Duration::ZERO, span), 1);
    }
}
