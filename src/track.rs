//! Futures that are tied to a server.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use pin_project_lite::pin_project;

use crate::lifecycle::{Phase, Reason};
use crate::shared::{Name, Shared, WorkWaker};

pin_project! {
    /// The future of [`Handle::track`](crate::Handle::track) and
    /// [`Handle::track_as`](crate::Handle::track_as): `None` where a stop dropped what was inside.
    #[must_use = "a tracked future does nothing unless polled, and a drain waits for it"]
    pub struct Tracked<F> {
        #[pin]
        future: Option<F>,
        aborted: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
        guard: Option<TrackGuard>,
    }
}

impl<F> Tracked<F> {
    pub(crate) fn new(shared: &Arc<Shared>, name: Name, future: F) -> Self {
        Self {
            future: Some(future),
            aborted: Some(Box::pin(aborted(shared.clone()))),
            guard: Some(TrackGuard::new(shared.clone(), name)),
        }
    }
}

impl<F: Future> Future for Tracked<F> {
    type Output = Option<F::Output>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let (Some(guard), Some(aborted)) = (&mut *this.guard, &mut *this.aborted) else {
            return Poll::Ready(None);
        };
        // Before the future is polled. Swapped, a wake-up during the poll would wake no task.
        guard.work_waker.register(cx.waker());
        let cx = &mut Context::from_waker(&guard.waker);
        let polled = match this.future.as_mut().as_pin_mut() {
            Some(future) if aborted.as_mut().poll(cx).is_pending() => {
                let registry = &guard.shared.registry;
                match registry.poll_work(guard.id, || future.poll(cx)) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(output) => Some(output),
                }
            }
            _ => None,
        };
        guard.is_done = polled.is_some();
        // The future is dropped first, and counted off afterwards, by the guard: when a drain finds
        // that no work is left, the destructors of all of it have run.
        this.future.set(None);
        *this.aborted = None;
        *this.guard = None;
        Poll::Ready(polled)
    }
}

impl<F> fmt::Debug for Tracked<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracked").finish_non_exhaustive()
    }
}

/// Counts a piece of work as tracked as long as this lives.
struct TrackGuard {
    shared: Arc<Shared>,
    /// The id of the work.
    id: u64,
    work_waker: Arc<WorkWaker>,
    /// `work_waker`, as a context takes it.
    waker: Waker,
    /// The future has come to its end.
    is_done: bool,
}

impl TrackGuard {
    /// Begins to count a piece of work.
    fn new(shared: Arc<Shared>, name: Name) -> Self {
        let id = shared.registry.track(name);
        let work_waker = shared.registry.work_waker(id);
        Self {
            shared,
            id,
            waker: work_waker.clone().into(),
            work_waker,
            is_done: false,
        }
    }

    /// Whether it is a stop that drops a future which has not ended. Before, it is the future's
    /// owner, who does not want it any more.
    fn is_dropped_by_stop(&self) -> bool {
        let is_aborting = self.shared.latch.phase() >= Phase::Aborting;
        is_aborting || self.shared.latch.request().reason == Some(Reason::RuntimeGone)
    }
}

impl Drop for TrackGuard {
    fn drop(&mut self) {
        let is_dropped = !self.is_done && self.is_dropped_by_stop();
        self.shared.untrack(self.id, is_dropped);
    }
}

/// Waits until the server is aborted.
async fn aborted(shared: Arc<Shared>) {
    shared.latch.reached(Phase::Aborting).await;
}
