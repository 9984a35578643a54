//! The sockets of a set, for who else has to do with them: a supervisor that holds them for a successor,
//! and who answers questions while descriptors are wanting.

#[cfg(feature = "systemd")]
use std::io;
#[cfg(feature = "systemd")]
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

#[cfg(feature = "systemd")]
use super::BoundListener;
use super::{AnyListener, ListenerSet};
use crate::sync::lock;

impl ListenerSet {
    /// Copies of the sockets that a supervisor may hold for a successor, each with the number of its
    /// address, and its descriptor here.
    #[cfg(feature = "systemd")]
    pub(crate) fn lend(&self) -> Vec<(u16, RawFd, io::Result<OwnedFd>)> {
        let listeners = lock(&self.listeners);
        let lent = |it: &BoundListener| match &it.listener {
            AnyListener::Socket(listener) => listener.lend().map(|fd| {
                let copy = fd.try_clone_to_owned();
                (it.origin.address, fd.as_raw_fd(), copy)
            }),
            AnyListener::Custom(_) => None,
        };
        listeners.all.iter().filter_map(lent).collect()
    }

    /// A supervisor holds the socket of this descriptor for a successor.
    #[cfg(feature = "systemd")]
    pub(crate) fn keep(&self, descriptor: RawFd) {
        for BoundListener { listener, .. } in &mut lock(&self.listeners).all {
            if let AnyListener::Socket(listener) = listener {
                if listener
                    .lend()
                    .is_some_and(|it| it.as_raw_fd() == descriptor)
                {
                    listener.keep();
                }
            }
        }
    }

    /// Whether a peer is queued at a socket of this set.
    #[cfg(feature = "health")]
    pub(crate) fn has_queued(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let listeners = lock(&self.listeners);
        let sockets = listeners.all.iter().filter_map(|it| match &it.listener {
            AnyListener::Socket(listener) => listener.lend(),
            AnyListener::Custom(_) => None,
        });
        let mut polled: Vec<_> = sockets
            .map(|socket| PollFd::from_borrowed_fd(socket, PollFlags::IN))
            .collect();
        poll(&mut polled, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }

    /// Has nobody accept at a socket of this set, until what this gives is dropped.
    #[cfg(feature = "health")]
    pub(crate) fn hold(&self) -> impl Sized + '_ {
        lock(&self.listeners)
    }
}
