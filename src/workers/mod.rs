//! Workers: threads of the server's own, under the same handlers.
//!
//! The sockets of such a server are registered once and edge-triggered with a poller of its own,
//! and its handlers are tasks of a run queue of its own. One thread drives: it waits for events,
//! and runs what they wake. The others sleep until what is there to run is worth a wake-up. Of
//! shards each has a poller, a queue and one thread to itself. Timers, files, channels and sockets
//! of async-std and smol work in these handlers as anywhere: they bring their own reactor.
//!
//! What needs a clock or a place outside the handlers stays with the runtime that the server was
//! made with.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::task::{Context, Poll};

mod poller;
mod pool;

pub(crate) use self::poller::{Poller, Slot, Watch};
pub(crate) use self::pool::{Pool, has_turn, pollers, start};

/// A listening socket under a worker's poller.
#[derive(Debug)]
pub(crate) struct Watched<L: AsFd> {
    socket: L,
    watch: Arc<Watch>,
    poller: Arc<Poller>,
}

impl<L: AsFd> Watched<L> {
    pub(crate) fn new(socket: L, poller: Arc<Poller>) -> io::Result<Self> {
        Ok(Self {
            watch: poller.watch(&socket)?,
            socket,
            poller,
        })
    }

    pub(crate) fn get_ref(&self) -> &L {
        &self.socket
    }

    pub(crate) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.watch.poll_readable(cx)
    }
}

impl<L: AsFd> Drop for Watched<L> {
    fn drop(&mut self) {
        self.poller.unwatch(&self.socket, &self.watch);
    }
}
