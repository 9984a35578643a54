//! What few connections need: allocated when it is first asked for, so that the others pay one
//! pointer for it.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock};
use std::task::Waker;
use std::time::Duration;

use event_listener::Event;

use crate::address::Address;
use crate::report::Cause;
use crate::runtime::Sleep;

#[derive(Debug, Default)]
pub(super) struct Cold {
    /// The peer, where the connection's state has no room for its address.
    pub(super) peer: Option<Address>,
    /// When a byte last moved; kept only where a limit asks for it.
    pub(super) last_activity: AtomicU64,
    pub(super) locked: OnceLock<Box<Mutex<ColdLocked>>>,
}

#[derive(Debug, Default)]
pub(super) struct ColdLocked {
    /// The wakers of the reader, the writer and the task that differ from the task's first, indexed
    /// by `Waiter`.
    pub(super) other_wakers: [Option<Waker>; 3],
    /// Notified when the connection is asked to come to an end, or has come to it.
    pub(super) drain_event: Option<Arc<Event>>,
    /// How long no byte has to move until the connection is idle, where it was declared so.
    pub(super) quiet: Option<Duration>,
    /// How many busy guards live.
    pub(super) guards: u32,
    /// How many futures of the handler wait for the server to close.
    pub(super) self_waits: u32,
    /// The task's part, while the task does not use it.
    pub(super) task: Option<Box<TaskCold>>,
}

/// What the task around a handler needs beside the handler: nothing, while a handler serves without
/// limits.
#[derive(Default)]
pub(crate) struct TaskCold {
    /// The timer of the limits, and the uptime at which it fires.
    pub(crate) timer: Option<(Duration, Sleep)>,
    /// The last activity whose quiet the reader was woken for.
    pub(crate) quiet_since: Option<Duration>,
    /// The limit that this connection has met.
    pub(crate) limit_met: Option<Cause>,
    /// The orderly end under way.
    pub(crate) lingering: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    /// What the handler failed with.
    pub(crate) error: String,
}

impl fmt::Debug for TaskCold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskCold").finish_non_exhaustive()
    }
}
