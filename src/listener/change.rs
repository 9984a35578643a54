//! Listeners that come, or go, while the others of their set go on.

#[cfg(target_os = "linux")]
use std::net::SocketAddr;
use std::task::Waker;

use super::AnyListener;
use super::set::{BoundListener, Ending, ListenerSet, Listeners, log_not_shut};
use crate::sync::{lock, wake_by_ref};

impl ListenerSet {
    /// Takes one more listener in. Where all were shut this one is, too, and shares their end; where
    /// they are closed it is closed.
    pub(crate) fn add(&self, listener: AnyListener, address: u16, is_sharded: bool) {
        let mut added = BoundListener::new(listener, address, is_sharded);
        let acceptor = {
            let mut listeners = lock(&self.listeners);
            if listeners.is_closed {
                drop(listeners);
                return drop(added);
            }
            if let (true, AnyListener::Socket(listener)) = (listeners.is_shut, &mut added.listener)
            {
                let _closed_soon = listener.shut();
            }
            listeners.all.push(added);
            listeners.acceptor.clone()
        };
        acceptor.iter().for_each(wake_by_ref);
    }

    /// Shuts the listeners of one address while the others go on; `false` where there is none, or it
    /// was shut before. `backlog` is how many peers one may have in its queue.
    pub(crate) fn shut_one(&self, address: u16, backlog: u32) -> bool {
        let (mut custom, mut errors) = (Vec::new(), Vec::new());
        let mut is_any = false;
        let acceptor = {
            let mut listeners = lock(&self.listeners);
            if listeners.is_shut {
                return false;
            }
            for found in listeners.of(address) {
                if found.ending.is_some() || !found.origin.owner.is_this_process() {
                    continue;
                }
                let mut left = u32::MAX;
                match &mut found.listener {
                    AnyListener::Socket(listener) => {
                        errors.extend(listener.shut().err());
                        if !listener.is_shut() {
                            left = backlog;
                        }
                    }
                    AnyListener::Custom(listener) => custom.push(listener.clone()),
                }
                let is_last = false;
                found.ending = Some(Ending { left, is_last });
                is_any = true;
            }
            listeners.acceptor.clone()
        };
        custom.iter().for_each(|listener| listener.shut());
        errors.iter().for_each(log_not_shut);
        acceptor.iter().for_each(wake_by_ref);
        is_any
    }

    /// Has the listeners of one address, which were shut by themselves, be closed by the accept loop as
    /// soon as their queues are empty.
    pub(crate) fn close_one(&self, address: u16) {
        let acceptor = {
            let mut listeners = lock(&self.listeners);
            for found in listeners.of(address) {
                if let Some(ending) = &mut found.ending {
                    ending.is_last = true;
                }
            }
            listeners.acceptor.clone()
        };
        acceptor.iter().for_each(wake_by_ref);
    }

    /// The addresses to ask the kernel for handshakes under way at, of the listener of one address, if
    /// it is shut.
    #[cfg(target_os = "linux")]
    pub(crate) fn handshakes_at_one(&self, address: u16) -> Option<SocketAddr> {
        let mut listeners = lock(&self.listeners);
        listeners.of(address).find_map(|it| it.handshakes_at())
    }
}

impl Listeners {
    /// The listeners of one address: one, or several where a predecessor had more shards.
    pub(super) fn of(&mut self, address: u16) -> impl Iterator<Item = &mut BoundListener> {
        let all = self.all.iter_mut();
        all.filter(move |it| it.origin.address == address)
    }

    /// Where the listener is that was found at `index`: a listener of the user's own is asked without
    /// the lock, and may be elsewhere by then. There is one of its address.
    fn position(&self, index: usize, address: u16) -> Option<usize> {
        let is_it = |it: &BoundListener| it.origin.address == address;
        match self.all.get(index) {
            Some(found) if is_it(found) => Some(index),
            _ => self.all.iter().position(is_it),
        }
    }

    /// Counts a peer of a listener that was shut by itself.
    #[inline]
    pub(super) fn count_down(&mut self, index: usize, address: u16) {
        let found = self.position(index, address);
        let found = found.and_then(|index| self.all[index].ending.as_mut());
        if let Some(ending) = found {
            ending.left = ending.left.saturating_sub(1);
        }
    }

    /// Takes a listener out, to be closed without the lock.
    pub(super) fn take(&mut self, index: usize, address: u16) -> Option<BoundListener> {
        let index = self.position(index, address)?;
        let mut taken = self.all.remove(index);
        taken.end();
        Some(taken)
    }

    /// Keeps the waker of the accept loop; gives the one before, to be dropped without the lock.
    #[inline]
    pub(super) fn keep_acceptor(&mut self, waker: &Waker) -> Option<Waker> {
        let is_kept = |old: &Waker| old.will_wake(waker);
        if self.is_closed || self.acceptor.as_ref().is_some_and(is_kept) {
            return None;
        }
        self.acceptor.replace(waker.clone())
    }
}
