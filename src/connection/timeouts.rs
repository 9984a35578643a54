//! Limits of time, looked at by one lazy timer a connection.
//!
//! The timer is not reset when a byte moves: when it fires, it looks at when that was, and sleeps
//! for the rest. A connection without limits has none.

use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::report::Cause;
use crate::runtime::Sleep;
use crate::shared::connection::{Record, bit};

/// A connection's timer, and what it has done.
#[derive(Default)]
pub(crate) struct Limits {
    timer: Option<(Duration, Sleep)>,
    /// The limit that this connection has met.
    pub(crate) met: Option<Cause>,
}

impl Limits {
    /// Acts on every limit that is due, and arranges to be woken for the next.
    pub(crate) fn poll(&mut self, record: &Record, cx: &mut Context<'_>) {
        loop {
            let uptime = record.server.uptime();
            let Some(due) = self.act(record, uptime) else {
                self.timer = None;
                return;
            };
            match &mut self.timer {
                // An earlier one looks again when it fires.
                Some((at, sleep)) if *at <= due => match sleep.as_mut().poll(cx) {
                    Poll::Ready(()) => self.timer = None,
                    Poll::Pending => return,
                },
                _ => {
                    let span = due.saturating_sub(uptime);
                    self.timer = Some((due, record.server.clock.sleep(span)));
                }
            }
        }
    }

    /// Does what is due now; says when to look again.
    fn act(&mut self, record: &Record, uptime: Duration) -> Option<Duration> {
        let config = &record.server.config;
        let word = record.word();
        let mut next: Option<Duration> = None;
        let mut look_again = |at: Duration| next = Some(next.map_or(at, |next| next.min(at)));

        if word & bit::GRACE != 0 {
            let over = record.accepted().saturating_add(config.first_byte_grace);
            if over <= uptime {
                record.end_grace();
            } else {
                look_again(over);
            }
        }
        let expired = word & bit::EXPIRED != 0;
        if let Some(limit) = config.first_byte_timeout.filter(|_| !expired) {
            if record.received.load(Relaxed) == 0 {
                let over = record.accepted().saturating_add(limit);
                if over <= uptime {
                    self.expire(record, Cause::FirstByteTimeout);
                    return next;
                }
                look_again(over);
            }
        }
        if let Some(limit) = config.idle_timeout.filter(|_| !expired) {
            let since = if record.waits() {
                record.touched()
            } else {
                uptime
            };
            let over = since.saturating_add(limit);
            if over <= uptime {
                self.expire(record, Cause::IdleTimeout);
                return next;
            }
            look_again(over);
        }
        if let Some(limit) = config.max_age {
            let old = record.accepted().saturating_add(limit);
            let over = config.deadline.map(|deadline| old.saturating_add(deadline));
            if old > uptime {
                look_again(old);
            } else {
                if self.met.is_none() {
                    self.met = Some(Cause::MaxAge);
                    record.tell(uptime);
                }
                match over {
                    Some(over) if over <= uptime => record.abort(),
                    Some(over) => look_again(over),
                    None => {}
                }
            }
        }
        next
    }

    fn expire(&mut self, record: &Record, cause: Cause) {
        self.met = Some(cause);
        record.expire();
    }
}
