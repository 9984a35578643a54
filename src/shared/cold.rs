//! What few connections need: it is allocated when it is first used, so that all other connections
//! pay one pointer for it.

use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::Waker;
use std::time::Duration;

use event_listener::Event;

use crate::address::Address;
use crate::report::Cause;
use crate::runtime::Sleep;
#[cfg(feature = "_tls")]
use crate::tls::TlsState;

#[cfg(feature = "proxy")]
use super::proxy::ProxyState;

/// The cold data of a connection.
#[derive(Debug, Default)]
pub(super) struct Cold {
    /// The peer, where `ConnectionState` has no room for its address.
    pub(super) peer: Option<Address>,
    /// The uptime, in nanoseconds, at which a byte last moved; kept only where a limit needs it.
    pub(super) last_activity: AtomicU64,
    /// How many busy guards live.
    pub(super) guards: AtomicU32,
    /// The TLS that the connection's bytes go through, once it has begun.
    #[cfg(feature = "_tls")]
    pub(super) tls: OnceLock<Box<TlsState>>,
    /// The header of the proxy that has connected, or the wait for it.
    #[cfg(feature = "proxy")]
    pub(super) proxy: OnceLock<Box<ProxyState>>,
    /// What is used under a lock, allocated apart: a long address or a limit alone does not need
    /// it.
    pub(super) locked: OnceLock<Box<Mutex<ColdLocked>>>,
}

/// The part of the cold data that is used under a lock. No code of others runs under it: wakers,
/// listeners and timers are taken out first.
#[derive(Debug, Default)]
pub(super) struct ColdLocked {
    /// The wakers of the reader, the writer and the task that differ from the task's first, indexed
    /// by `Waiter`.
    pub(super) other_wakers: [Option<Waker>; 3],
    /// Notified when the connection is asked to come to an end, or has come to it.
    pub(super) drain_event: Option<Arc<Event>>,
    /// How long no byte has to move until the connection is idle, where it was declared so.
    pub(super) quiet: Option<Duration>,
    /// How many futures of the handler wait for the server to close.
    pub(super) self_waits: u32,
    /// The task's cold data, while the task does not use it.
    pub(super) task: Option<Box<TaskCold>>,
}

/// What the task around a handler needs beside the handler: for its limits, and for the
/// connection's end where that takes time. Most tasks never need it.
#[derive(Default)]
pub(crate) struct TaskCold {
    /// The timer of the limits, and the uptime at which it fires.
    pub(crate) timer: Option<(Duration, Sleep)>,
    /// The last activity after which the connection was quiet, and its reader was woken for that.
    pub(crate) quiet_since: Option<Duration>,
    /// The limit that has ended this connection.
    pub(crate) limit_met: Option<Cause>,
    /// The uptime at which `idle_timeout` asked this connection to end.
    pub(crate) asked_by_idle_timeout: Option<Duration>,
    /// What the handler failed with.
    pub(crate) error: String,
}

impl fmt::Debug for TaskCold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskCold").finish_non_exhaustive()
    }
}
