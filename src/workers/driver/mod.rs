//! The system's way to wait for many sockets.
//!
//! A driver has a poller that connections and listeners are registered with: `Poller::wait` reports
//! their events into the words of `socket::readiness` and wakes, `Poller::wake` ends a wait.

pub(crate) mod epoll;
mod listener;
pub(crate) mod registration;

pub(crate) use self::epoll::{Batch, Poller};
pub(crate) use self::listener::WatchedListener;
pub(crate) use self::registration::{Registered, Registration};
