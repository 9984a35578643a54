//! The system's way to wait for many sockets. Nothing above this folder names the system.
//!
//! Connections and listeners are registered with a [`Poller`]. Its `wait` records the events of
//! connections in their words (`socket::readiness`) and wakes the futures that these concern; its
//! `wake` ends a wait from another thread.

pub(crate) mod epoll;
mod listener;
pub(crate) mod registration;

pub(crate) use self::epoll::{Batch, Poller};
pub(crate) use self::listener::WatchedListener;
pub(crate) use self::registration::{Registered, Registration};
