//! How a drain goes, while it goes on.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_lite::{Stream, future, stream};

use crate::lifecycle::Phase;
use crate::shared::{SelfWait, Shared};
use crate::sync::listen;

/// How long after one item the next comes, where the number of what is left does not change.
const TICK: Duration = Duration::from_millis(100);

/// How far a drain has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// How many connections and tracked futures are left.
    pub left: u64,
    /// How long they have; `None` where there is no deadline, or it does not run yet.
    pub time: Option<Duration>,
}

/// The stream of [`Handle::drain_progress`](crate::Handle::drain_progress).
#[must_use = "streams do nothing unless polled"]
pub struct DrainProgress(Pin<Box<dyn Stream<Item = Progress> + Send>>);

impl DrainProgress {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let wait = SelfWait::new(&shared, None);
        Self(Box::pin(stream::unfold(
            Some((shared, wait, None)),
            |state| async {
                let (shared, mut wait, last) = state?;
                let over = wait.race(next(&shared, last)).await.unwrap_or(true);
                let progress = Progress::of(&shared);
                let rest = (!over).then_some((shared, wait, Some(progress.left)));
                Some((progress, rest))
            },
        )))
    }
}

/// Waits for the item after one whose number was `last`, if there was one; gives whether it is the
/// final one.
async fn next(shared: &Shared, last: Option<u64>) -> bool {
    shared.latch.reached(Phase::Draining).await;
    let tick = async {
        // The first item comes at once.
        if last.is_some() {
            shared.clock.sleep(TICK).await;
        }
    };
    let changed = async {
        loop {
            // Listening begins before the number is looked at: swapped, a connection that ends
            // between the two acts would be heard of with the next tick only.
            let (ended, stopped) = (listen(&shared.permits.released), shared.latch.listen());
            if shared.latch.phase() == Phase::Closed || Some(shared.registry.left()) != last {
                return;
            }
            future::or(ended, stopped).await;
        }
    };
    future::or(changed, tick).await;
    // The phase is loaded before the number: once the phase is `Closed` the number is 0. Swapped, the
    // final item could say that some are left.
    shared.latch.phase() == Phase::Closed
}

impl Progress {
    pub(crate) fn of(shared: &Shared) -> Self {
        // The deadline first: it may be set in between, and the time left would be more than there is.
        let deadline = shared.deadline();
        let now = shared.clock.now();
        Self {
            left: shared.registry.left(),
            time: deadline.map(|deadline| deadline.saturating_duration_since(now)),
        }
    }
}

impl Stream for DrainProgress {
    type Item = Progress;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Progress>> {
        self.0.as_mut().poll_next(cx)
    }
}

impl fmt::Debug for DrainProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DrainProgress").finish_non_exhaustive()
    }
}
