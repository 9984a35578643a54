//! Limits of time, looked at by one lazy timer a connection.
//!
//! The timer is not reset when a byte moves: when it fires, the task looks at when that was, and
//! sleeps for the rest. A connection without limits has no timer.

#[cfg(feature = "_handshake")]
use std::future::Future;
#[cfg(feature = "_handshake")]
use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;

#[cfg(feature = "_handshake")]
use futures_lite::future;

use crate::report::Cause;
use crate::shared::TaskCold;
use crate::shared::connection::ConnectionState;
use crate::socket::readiness::{Waiter, flag};

/// What is set while a drain waits until no byte has moved for a while.
pub(super) const WAITS_FOR_QUIET: u64 = flag::DRAINING | flag::QUIET;

/// Acts on every limit that is due, and arranges to be woken for the next.
pub(super) fn poll(cold: &mut TaskCold, state: &ConnectionState, cx: &mut Context<'_>) {
    loop {
        let uptime = state.server.uptime();
        let due = act(cold, state, uptime);
        // A time that never comes needs no timer.
        let Some(due) = due.filter(|due| *due < Duration::MAX) else {
            cold.timer = None;
            return;
        };
        match &mut cold.timer {
            // A timer that fires earlier looks again then.
            Some((at, sleep)) if *at <= due => match sleep.as_mut().poll(cx) {
                Poll::Ready(()) => cold.timer = None,
                Poll::Pending => return,
            },
            _ => {
                let span = due.saturating_sub(uptime);
                cold.timer = Some((due, state.server.clock.sleep(span)));
            }
        }
    }
}

/// Does what is due now; gives the uptime at which to look again.
fn act(cold: &mut TaskCold, state: &ConnectionState, uptime: Duration) -> Option<Duration> {
    let config = &state.server.config;
    let word = state.word();
    let mut next: Option<Duration> = None;
    let mut look_again = |at: Duration| next = Some(next.map_or(at, |next| next.min(at)));

    if word & flag::FIRST_BYTE_GRACE != 0 {
        let over = state.begun().saturating_add(config.first_byte_grace);
        if over <= uptime {
            state.end_first_byte_grace();
        } else {
            look_again(over);
        }
    }
    // A connection that was asked to end while bytes moved is idle when none has for a while.
    if word & WAITS_FOR_QUIET == WAITS_FOR_QUIET {
        let since = state.last_activity();
        let over = since.saturating_add(state.quiet_span());
        if over > uptime {
            look_again(over);
        } else if cold.quiet_since != Some(since) {
            cold.quiet_since = Some(since);
            state.wake(Waiter::Reader);
        }
    }
    // What a peer has left to say when its connection is closed is no matter of these limits.
    let expired = word & (flag::EXPIRED | flag::CLOSING) != 0;
    if let Some(limit) = config.first_byte_timeout.filter(|_| !expired) {
        if state.received.load(Relaxed) == 0 {
            let over = state.begun().saturating_add(limit);
            if over <= uptime {
                expire(cold, state, Cause::FirstByteTimeout);
                return next;
            }
            look_again(over);
        }
    }
    if let Some(limit) = config.idle_timeout.filter(|_| !expired) {
        // A handler at work is not timed.
        let quiet_since = if state.is_waiting() {
            state.last_activity()
        } else {
            uptime
        };
        let asked = cold.asked_by_idle_timeout;
        let over = match asked {
            None => quiet_since.saturating_add(limit),
            // What moves after it was asked may be the goodbye.
            Some(asked) => quiet_since.max(asked).saturating_add(config.linger),
        };
        if over > uptime {
            look_again(over);
        } else if asked.is_none() {
            cold.asked_by_idle_timeout = Some(uptime);
            cold.limit_met.get_or_insert(Cause::IdleTimeout);
            state.notify_end();
            look_again(uptime.saturating_add(config.linger));
        } else {
            state.expire();
        }
    }
    if let Some(limit) = config.max_age {
        let old = state.accepted().saturating_add(limit);
        let over = config.deadline.map(|deadline| old.saturating_add(deadline));
        if old > uptime {
            look_again(old);
        } else {
            if cold.limit_met.is_none() {
                cold.limit_met = Some(Cause::MaxAge);
                state.notify_drain(uptime);
            }
            match over {
                Some(over) if over <= uptime => state.abort(),
                Some(over) => look_again(over),
                None => {}
            }
        }
    }
    next
}

fn expire(cold: &mut TaskCold, state: &ConnectionState, cause: Cause) {
    cold.limit_met = Some(cause);
    state.expire();
}

/// Waits for what comes before a handler, within its limit of time.
#[cfg(feature = "_handshake")]
pub(super) async fn within<T>(
    state: &ConnectionState,
    limit: Option<Duration>,
    what: &str,
    future: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    let late = async {
        let Some(limit) = limit else {
            return future::pending().await;
        };
        state.server.clock.sleep(limit).await;
        Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("{what} took longer than {limit:?}"),
        ))
    };
    future::or(future, late).await
}
