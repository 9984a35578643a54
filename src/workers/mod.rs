//! Workers: threads of the server's own, under the same handlers.
//!
//! The sockets of such a server are registered once and edge-triggered with a poller of its own,
//! and its handlers are tasks of a run queue of its own. One worker drives: it waits for events,
//! and runs what they wake. The others sleep until what is there to run is worth a wake-up. Each
//! shard has a poller, a queue and one thread to itself. Timers, files, channels and sockets of
//! async-std and smol work in these handlers as anywhere: they bring their own reactor.
//!
//! What needs a clock or a place outside the handlers stays with the runtime that the server was
//! made with. There are workers on Linux alone.

#[cfg(target_os = "linux")]
mod driver;
#[cfg(target_os = "linux")]
mod pool;
#[cfg(target_os = "linux")]
mod pools;
#[cfg(target_os = "linux")]
mod spin;
#[cfg(target_os = "linux")]
mod watchdog;
#[cfg(target_os = "linux")]
mod worker;

#[cfg(target_os = "linux")]
pub(crate) use self::driver::{Poller, Registered, Registration, WatchedListener};
#[cfg(target_os = "linux")]
pub(crate) use self::pool::{Pool, PoolId};
#[cfg(target_os = "linux")]
pub(crate) use self::pools::{WorkerOptions, WorkerPools, pollers};

/// There are no pools on this system, and so no number of one.
#[cfg(not(target_os = "linux"))]
#[derive(Clone, Copy, Debug)]
pub(crate) enum PoolId {}

#[cfg(not(target_os = "linux"))]
impl PoolId {
    pub(crate) fn count_off(self) {
        match self {}
    }
}
