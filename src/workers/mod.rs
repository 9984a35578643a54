//! Workers: threads of the server's own, under the same handlers.
//!
//! The sockets of such a server are registered with a poller of its own, once and edge-triggered,
//! and its handlers are tasks in a run queue of its own. One worker is the driver: it waits for
//! events and runs the tasks that they wake. The others are helpers, which sleep until there are so
//! many tasks to run that a wake-up pays. A sharded server has a pool for each shard: a poller, a
//! queue and one thread. Timers, files, channels and sockets of async-std and smol work in these
//! handlers as anywhere: they bring their own reactor.
//!
//! Timers of the server itself stay with the runtime that the server was made with: a worker has no
//! clock. There are workers on Linux alone.

#[cfg(target_os = "linux")]
mod driver;
#[cfg(target_os = "linux")]
mod pool;
#[cfg(target_os = "linux")]
mod pools;
#[cfg(target_os = "linux")]
mod queues;
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

/// There are no pools on this system, and so no value of this type.
#[cfg(not(target_os = "linux"))]
#[derive(Clone, Copy, Debug)]
pub(crate) enum PoolId {}

#[cfg(not(target_os = "linux"))]
impl PoolId {
    pub(crate) fn count_off(self) {
        match self {}
    }
}
