//! How far a connection is with its requests, and how long its peer may take over one.
//!
//! The parts of a connection that see something of it (its io, its service, its responses' bodies)
//! note it here with plain stores; the time is looked at by the connection's future alone, and only
//! where its poll ends in the middle of a request. What arrives in one piece costs no look at a clock.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use super::tracked::Upgrade;
use crate::connection::Control;
use crate::runtime::Sleep;
use crate::shared::connection::ConnectionState;
use crate::socket::errors::too_slow;
use crate::socket::readiness::flag;
use crate::sync::lock;

/// Between two requests: the peer may take its time.
const BETWEEN: u8 = 0;
/// The head of a request has begun to arrive.
const HEAD: u8 = 1;
/// A request was handed to the service, and its response is not complete.
const REQUEST: u8 = 2;

/// What the parts of one connection tell its future.
#[derive(Debug)]
pub(super) struct Progress {
    pub(super) control: Control,
    stage: AtomicU8,
    /// How many requests were begun.
    requests: AtomicU64,
    /// How often something was read.
    reads: AtomicU64,
    /// There is input that hyper has not taken yet.
    has_more: AtomicBool,
    /// A read waits.
    reader_waits: AtomicBool,
    /// A request has come since the server was asked to stop: its connection takes no other.
    is_last: AtomicBool,
    /// What the connection is to become, left by a request.
    upgrade: Mutex<Option<Upgrade>>,
}

impl Progress {
    pub(super) fn new(control: Control) -> Self {
        Self {
            control,
            stage: AtomicU8::new(BETWEEN),
            requests: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            has_more: AtomicBool::new(false),
            reader_waits: AtomicBool::new(false),
            is_last: AtomicBool::new(false),
            upgrade: Mutex::new(None),
        }
    }

    /// A read had to wait.
    pub(super) fn waits_for_input(&self) {
        self.reader_waits.store(true, Relaxed);
    }

    /// A read gave something, and left more, or not.
    pub(super) fn has_input(&self, has_more: bool) {
        self.reader_waits.store(false, Relaxed);
        self.has_more.store(has_more, Relaxed);
        self.reads.store(self.reads.load(Relaxed) + 1, Relaxed);
        if self.stage.load(Relaxed) == BETWEEN {
            self.stage.store(HEAD, Relaxed);
        }
    }

    /// A whole head was read.
    pub(super) fn begins_request(&self, state: &ConnectionState) {
        self.stage.store(REQUEST, Relaxed);
        self.requests
            .store(self.requests.load(Relaxed) + 1, Relaxed);
        if is_stopping(state) {
            self.is_last.store(true, Relaxed);
        }
    }

    /// A response was handed over to its end.
    pub(super) fn ends_request(&self) {
        self.stage.store(BETWEEN, Relaxed);
    }

    /// Whether the head of the next request is read, not the body of one.
    pub(super) fn is_before_request(&self) -> bool {
        self.stage.load(Relaxed) != REQUEST
    }

    /// Whether the next response is to be its connection's last. One behind which a client has
    /// pipelined another request is not.
    pub(super) fn is_last_response(&self, state: &ConnectionState) -> bool {
        is_stopping(state) && !self.has_more.load(Relaxed)
    }

    /// Whether a request has come after the server was asked to stop.
    pub(super) fn is_last(&self) -> bool {
        self.is_last.load(Relaxed)
    }

    /// Keeps what the connection is to become.
    pub(super) fn set_upgrade(&self, upgrade: Upgrade) {
        *lock(&self.upgrade) = Some(upgrade);
    }

    /// Takes what the connection is to become, if a request has left that.
    pub(super) fn take_upgrade(&self) -> Option<Upgrade> {
        lock(&self.upgrade).take()
    }

    /// What is awaited of the peer now.
    fn awaited(&self) -> Option<Awaited> {
        match self.stage.load(Relaxed) {
            HEAD => Some(Awaited::Head(self.requests.load(Relaxed))),
            // In the middle of a request hyper reads for its body alone, and one piece ahead of the
            // service at most: it does not read where the service pauses.
            REQUEST if self.reader_waits.load(Relaxed) => {
                Some(Awaited::Body(self.reads.load(Relaxed)))
            }
            _ => None,
        }
    }
}

/// Whether the server was asked to stop, the lame duck's time included, or the connection was asked
/// to end.
fn is_stopping(state: &ConnectionState) -> bool {
    state.is_server_stopping() || state.has(flag::DRAINING | flag::ABORT)
}

/// What is awaited of a peer in the middle of a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Awaited {
    /// The rest of the head that comes after so many requests.
    Head(u64),
    /// More of a body than what came with so many reads.
    Body(u64),
}

/// How long is waited in the middle of a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    /// For a head to be complete, from its first byte on.
    pub(super) head: Option<Duration>,
    /// For more of a body.
    pub(super) body: Option<Duration>,
}

/// The timer of the timeouts. It is lazy: what moves does not reset it; when it fires, the rest of
/// the time is slept.
pub(super) struct Watch {
    timeouts: Timeouts,
    /// What is awaited, and since which uptime.
    awaited: Option<(Awaited, Duration)>,
    /// The uptime at which the timer fires.
    timer: Option<(Duration, Sleep)>,
}

impl Watch {
    pub(super) fn new(timeouts: Timeouts) -> Self {
        Self {
            timeouts,
            awaited: None,
            timer: None,
        }
    }

    /// Looks, after a poll that ended in a wait, whether the peer has taken too long, and arranges to
    /// look again when it will have.
    pub(super) fn poll(&mut self, progress: &Progress, cx: &mut Context<'_>) -> io::Result<()> {
        let Some(awaited) = progress.awaited() else {
            // A timer that is set stays for the next request.
            self.awaited = None;
            return Ok(());
        };
        let limit = match awaited {
            Awaited::Head(_) => self.timeouts.head,
            Awaited::Body(_) => self.timeouts.body,
        };
        let Some(limit) = limit else {
            return Ok(());
        };
        let server = progress.control.server();
        loop {
            let uptime = server.uptime();
            let since = match self.awaited {
                Some((before, since)) if before == awaited => since,
                _ => {
                    self.awaited = Some((awaited, uptime));
                    uptime
                }
            };
            let due = since.saturating_add(limit);
            if due <= uptime {
                let what = match awaited {
                    Awaited::Head(_) => "the head of a request is not complete",
                    Awaited::Body(_) => "no more of a request's body has come",
                };
                let message = format!("{what} after {limit:?}");
                return Err(too_slow(message));
            }
            match &mut self.timer {
                // A timer that fires earlier looks again then.
                Some((at, sleep)) if *at <= due => match sleep.as_mut().poll(cx) {
                    Poll::Ready(()) => self.timer = None,
                    Poll::Pending => return Ok(()),
                },
                _ => self.timer = Some((due, server.clock.sleep(due - uptime))),
            }
        }
    }
}
