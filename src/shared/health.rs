//! The listeners for questions after a server's health: the last that are closed.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use super::Shared;
use crate::address::Address;
use crate::lifecycle::State;
use crate::listener::bind::Bound;
use crate::listener::set::ListenerSet;
use crate::sync::nanos;

/// How long the server's own task may not have run until it is taken to be stuck: longer than a handler
/// that blocks its thread by mistake, and than a processor is away from a busy machine.
const STALLED: Duration = Duration::from_secs(10);

/// Where a server is asked after its health.
pub(crate) struct Health {
    pub(crate) listeners: ListenerSet,
    addrs: Vec<Address>,
    /// When the server's own task ran last, in nanoseconds of uptime; 0 before it has begun.
    beat: AtomicU64,
}

/// What a server says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Readiness {
    Ready,
    /// Bound, and not accepting yet.
    Starting,
    Paused,
    Draining,
    /// It would accept, and cannot for want of descriptors or memory.
    Short,
    /// Aborting, or closed.
    Gone,
}

impl Health {
    pub(crate) fn new(bound: Vec<Bound>) -> io::Result<Self> {
        let addrs = bound.iter().map(|bound| bound.sockets[0].local_addr());
        let addrs = addrs.collect::<io::Result<_>>()?;
        let sockets = bound.into_iter().map(|it| (it.sockets, false));
        Ok(Self {
            // With one engine there is one set.
            listeners: ListenerSet::all(sockets, 1).remove(0),
            addrs,
            beat: AtomicU64::new(0),
        })
    }

    pub(crate) fn addrs(&self) -> &[Address] {
        &self.addrs
    }

    /// The server's own task runs.
    pub(crate) fn beat(&self, uptime: Duration) {
        self.beat.store(nanos(uptime).max(1), SeqCst);
    }

    /// How long the server's own task has not run, if that is too long.
    pub(crate) fn stalled(&self, uptime: Duration) -> Option<Duration> {
        let last = self.beat.load(SeqCst);
        let since = uptime.saturating_sub(Duration::from_nanos(last));
        (last > 0 && since > STALLED).then_some(since)
    }

    /// Closes the listeners: their addresses can be bound again.
    pub(super) fn close(&self) {
        self.listeners.shut();
        self.listeners.close(false);
    }
}

impl Shared {
    /// Whether new peers should come here. `is_short`: a descriptor was wanting just now.
    pub(crate) fn readiness(&self, is_short: bool) -> Readiness {
        match self.state() {
            State::Serving if !self.accepts_everywhere() => Readiness::Starting,
            State::Serving if is_short || self.is_short() => Readiness::Short,
            State::Serving => Readiness::Ready,
            State::Bound => Readiness::Starting,
            State::Paused => Readiness::Paused,
            State::Draining => Readiness::Draining,
            State::Aborting | State::Closed => Readiness::Gone,
        }
    }
}
