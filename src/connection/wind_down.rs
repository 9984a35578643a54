//! A protocol's own future, told once of a drain.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Weak;
use std::task::{Context, Poll};

use event_listener::EventListener;
use pin_project_lite::pin_project;

use crate::shared::connection::ConnectionState;
use crate::socket::readiness::flag;

pin_project! {
    /// The future of [`Control::wind_down`](super::Control::wind_down).
    #[must_use = "futures do nothing unless polled"]
    pub struct WindDown<F, D> {
        #[pin]
        future: F,
        // `None` once it was called.
        on_drain: Option<D>,
        state: Weak<ConnectionState>,
        // Wakes a task that is not the connection's own, which the drain wakes in any case.
        listener: Option<EventListener>,
    }
}

impl<F, D> WindDown<F, D> {
    pub(super) fn new(state: Weak<ConnectionState>, future: F, on_drain: D) -> Self {
        Self {
            future,
            on_drain: Some(on_drain),
            state,
            listener: None,
        }
    }
}

impl<F: Future, D: FnOnce(Pin<&mut F>)> Future for WindDown<F, D> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let mut this = self.project();
        // Looked at before the poll: what that one finds has arrived by the drain.
        let is_draining = |state: &Weak<ConnectionState>| {
            let state = state.upgrade();
            state.is_some_and(|state| state.has(flag::DRAINING))
        };
        let mut was_draining = this.on_drain.is_some() && is_draining(this.state);
        loop {
            if let Poll::Ready(output) = this.future.as_mut().poll(cx) {
                return Poll::Ready(output);
            }
            if this.on_drain.is_none() {
                return Poll::Pending;
            }
            if was_draining {
                if let Some(on_drain) = this.on_drain.take() {
                    on_drain(this.future.as_mut());
                }
                *this.listener = None;
                continue;
            }
            if !waits_for_drain(this.state, this.listener, cx) {
                return Poll::Pending;
            }
            was_draining = true;
        }
    }
}

/// Has the drain wake the task that polls; `true` where there has been one meanwhile.
fn waits_for_drain(
    state: &Weak<ConnectionState>,
    listener: &mut Option<EventListener>,
    cx: &mut Context<'_>,
) -> bool {
    let Some(state) = state.upgrade() else {
        return false;
    };
    if state.is_own_task(cx.waker()) {
        // Woken by the drain: the flag is set before that, and so seen by the poll that follows.
        *listener = None;
        return state.has(flag::DRAINING);
    }
    loop {
        let ended = match listener {
            Some(listener) => Pin::new(listener).poll(cx).is_ready(),
            None => {
                *listener = Some(state.listen_for_drain());
                continue;
            }
        };
        if ended {
            *listener = None;
        }
        // After the listener was made: a drain before that notified nobody.
        if state.has(flag::DRAINING) {
            return true;
        }
        if !ended {
            return false;
        }
    }
}

impl<F, D> fmt::Debug for WindDown<F, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WindDown").finish_non_exhaustive()
    }
}
