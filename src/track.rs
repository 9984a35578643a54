//! Futures that are tied to a server.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;

use crate::lifecycle::Phase;
use crate::shared::Shared;

pin_project! {
    /// The future of [`Handle::track`](crate::Handle::track): `None` where an abort dropped what was inside.
    #[must_use = "a tracked future does nothing unless polled, and a drain waits for it"]
    pub struct Tracked<F> {
        #[pin]
        future: Option<F>,
        aborted: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
        guard: Option<TrackGuard>,
    }
}

impl<F> Tracked<F> {
    pub(crate) fn new(shared: &Arc<Shared>, future: F) -> Self {
        shared.registry.track();
        Self {
            future: Some(future),
            aborted: Some(Box::pin(aborted(shared.clone()))),
            guard: Some(TrackGuard(shared.clone())),
        }
    }
}

impl<F: Future> Future for Tracked<F> {
    type Output = Option<F::Output>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let aborted = this
            .aborted
            .as_mut()
            .is_none_or(|aborted| aborted.as_mut().poll(cx).is_ready());
        let polled = match this.future.as_mut().as_pin_mut() {
            Some(future) if !aborted => match future.poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(output) => Some(output),
            },
            _ => None,
        };
        // The future is dropped before it is counted off.
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

struct TrackGuard(Arc<Shared>);

impl Drop for TrackGuard {
    fn drop(&mut self) {
        self.0.registry.untrack();
        self.0.close_if_abandoned();
    }
}

async fn aborted(shared: Arc<Shared>) {
    shared.latch.reached(Phase::Aborting).await;
}
