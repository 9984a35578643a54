//! A protocol's own future, which is asked once to end when its connection is.
//!
//! The future is polled once more after the drain before it is asked to end: what has arrived by
//! the drain is taken in by that poll. Swapped, a request that is in the kernel already would be
//! refused.

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
        // Wakes the task that polls, where that is not the connection's own: the connection's own
        // task is woken by the drain in any case.
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
        // Asked before the future is polled, so that the poll comes after the drain.
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

/// Has a drain wake the task that polls; `true` where the drain has come meanwhile.
fn waits_for_drain(
    state: &Weak<ConnectionState>,
    listener: &mut Option<EventListener>,
    cx: &mut Context<'_>,
) -> bool {
    let Some(state) = state.upgrade() else {
        return false;
    };
    if state.is_own_task(cx.waker()) {
        // A drain sets the flag first and wakes the connection's task afterwards, which then polls
        // this and sees the flag.
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
        // The flag is looked at after the listener was made. Swapped, a drain between the two acts
        // would wake no task.
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
