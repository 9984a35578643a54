//! The connections that are registered with a poller, and each one's side of it.
//!
//! 1. A key names a slot and the id of the connection in it, so an event that is left over from an
//!    earlier connection of the slot finds nobody.
//! 2. A read that finds the socket empty notes how many events there had been *before* it looked: as
//!    long as there is no other, there is nothing to read. Noted afterwards, an event between the
//!    look and the note would be taken for seen.

use std::any::Any;
use std::fmt;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};

use rustix::event::epoll::{Event, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags};

use super::Poller;
use crate::socket::Socket;
use crate::socket::readiness::{
    READ_CLOSED, Readiness, WRITE_INTEREST, Waiter, is_write_blocked, ticks,
};
use crate::sync::lock;

/// A connection, as a poller knows it.
pub(crate) trait Registered: fmt::Debug + Send + Sync + 'static {
    fn readiness(&self) -> &Readiness;

    /// Takes the waker of a waiter that is registered with another than the task's first.
    fn other_waker(&self, waiter: Waiter) -> Option<Waker>;
}

/// A connection whose type a poller cannot name, because it is of a layer above.
pub(crate) type Erased = Arc<dyn Any + Send + Sync>;

/// The registered connections. Behind a trait, so that a slot is one pointer to a type that only the
/// layers above know: a pointer to the trait in each slot would cost every connection 8 bytes more.
pub(super) trait Registrations: fmt::Debug + Send + Sync {
    /// Gives a connection a slot, and the key for its events.
    fn insert(&self, connection: Erased) -> (u32, u64);

    /// Empties a slot. The caller drops the connection, without a lock held.
    fn remove(&self, index: u32) -> Option<Erased>;

    /// Records each event with the connection that it is for, and wakes or collects whom it
    /// concerns. `other` gives the waker for a key that is not a connection's.
    fn on_events(
        &self,
        events: &[Event],
        wakers: &mut Vec<Waker>,
        other: &mut dyn FnMut(u64) -> Option<Waker>,
    );
}

#[derive(Debug)]
pub(super) struct Slab<R>(Mutex<Slots<R>>);

#[derive(Debug)]
struct Slots<R> {
    connections: Vec<Option<Arc<R>>>,
    free: Vec<u32>,
}

impl<R> Default for Slab<R> {
    fn default() -> Self {
        Self(Mutex::new(Slots {
            connections: Vec::new(),
            free: Vec::new(),
        }))
    }
}

impl<R: Registered> Registrations for Slab<R> {
    fn insert(&self, connection: Erased) -> (u32, u64) {
        let connection = connection
            .downcast::<R>()
            .expect("a poller has connections of one type");
        let id = connection.readiness().id;
        let mut slots = lock(&self.0);
        let index = match slots.free.pop() {
            Some(index) => index,
            None => {
                slots.connections.push(None);
                slots.connections.len() as u32 - 1
            }
        };
        slots.connections[index as usize] = Some(connection);
        (index, key(id, index))
    }

    fn remove(&self, index: u32) -> Option<Erased> {
        let mut slots = lock(&self.0);
        let connection = slots.connections[index as usize].take();
        slots.free.push(index);
        connection.map(|connection| connection as Erased)
    }

    fn on_events(
        &self,
        events: &[Event],
        wakers: &mut Vec<Waker>,
        other: &mut dyn FnMut(u64) -> Option<Waker>,
    ) {
        let slots = lock(&self.0);
        for event in events {
            let (data, flags) = (event.data.u64(), event.flags);
            let index = data as u32;
            if index & NOT_A_CONNECTION != 0 {
                wakers.extend(other(data));
                continue;
            }
            let Some(Some(connection)) = slots.connections.get(index as usize) else {
                continue;
            };
            let readiness = connection.readiness();
            if key(readiness.id, index) != data {
                continue;
            }
            // A read stops at urgent data, however much there is behind it; as at an end, reads
            // then go on until there is nothing.
            let read_closed = flags.intersects(
                EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR | EventFlags::PRI,
            );
            let readable = read_closed || flags.contains(EventFlags::IN);
            let writable = flags.intersects(EventFlags::OUT | EventFlags::HUP | EventFlags::ERR);
            readiness.on_event(readable, writable, read_closed, |waiter| {
                match readiness.task_waker(waiter) {
                    // The waker of a task of the pool's, which this only queues.
                    Some(waker) => waker.wake_by_ref(),
                    None => wakers.extend(connection.other_waker(waiter)),
                }
            });
        }
    }
}

/// Set in every key that is not a connection's.
pub(super) const NOT_A_CONNECTION: u32 = 1 << 31;
/// No slot.
const NOWHERE: u32 = u32::MAX;
/// A number of events that there never is.
const NEVER: u32 = u32::MAX;

fn key(id: u64, index: u32) -> u64 {
    id << 32 | u64::from(index)
}

/// Urgent data is asked for because of what it does to reads: see `on_events`.
const INPUT: EventFlags = EventFlags::IN
    .union(EventFlags::RDHUP)
    .union(EventFlags::PRI)
    .union(EventFlags::ET);

/// A connection's socket, and what is known of its readiness beside its word.
#[derive(Debug)]
pub(crate) struct Registration {
    socket: Socket,
    poller: Arc<Poller>,
    /// How many events there had been when the socket was found empty, stored by the reader alone.
    empty_at: AtomicU32,
    /// The slot.
    index: AtomicU32,
}

impl Registration {
    pub(crate) fn new(socket: Socket, poller: Arc<Poller>) -> Self {
        Self {
            socket,
            poller,
            // A peer that connects has mostly something to say: by the time the handler reads it is
            // there, and a look saves the wait for the event that would say so.
            empty_at: AtomicU32::new(NEVER),
            index: AtomicU32::new(NOWHERE),
        }
    }

    pub(crate) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Registers the socket of `connection`, for its whole life.
    pub(crate) fn register(&self, connection: Erased) -> io::Result<()> {
        let (index, key) = self.poller.registrations.insert(connection);
        self.index.store(index, Relaxed);
        let registered = self.poller.add(self, key, INPUT);
        if registered.is_err() {
            self.deregister(false);
        }
        registered
    }

    /// Forgets the connection. Closing its socket takes it out of the epoll, unless a descriptor
    /// that was duplicated `outlives` the close.
    pub(crate) fn deregister(&self, outlives: bool) {
        let index = self.index.swap(NOWHERE, SeqCst);
        if index == NOWHERE {
            return;
        }
        let connection = self.poller.registrations.remove(index);
        if outlives {
            self.poller.delete(self);
        }
        // Without a lock: this may be the last owner, whose destructor closes the socket.
        drop(connection);
    }

    /// Reads, if by the word that was `seen` there may be something; with `look`, in any case. After
    /// `Pending` the caller registers its waker and asks [`may_read`](Self::may_read) of a newer
    /// word.
    #[inline]
    pub(crate) fn poll_read(
        &self,
        seen: u64,
        buf: &mut [u8],
        look: bool,
    ) -> Poll<io::Result<usize>> {
        if !look && !self.may_read(seen) {
            return Poll::Pending;
        }
        loop {
            match rustix::net::recv(&self.socket, &mut *buf, RecvFlags::empty()) {
                Ok((n, _)) => {
                    // A short read has emptied a TCP socket; what comes later is an event. Not so
                    // at an end, which is no event of its own if it came with data, and not a Unix
                    // socket, where a read stops after a message that carries descriptors.
                    let short = n > 0 && n < buf.len() && seen & READ_CLOSED == 0;
                    if short && matches!(self.socket, Socket::Tcp(_)) {
                        self.empty_at.store(ticks(seen), Relaxed);
                    }
                    return Poll::Ready(Ok(n));
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.empty_at.store(ticks(seen), Relaxed);
                    return Poll::Pending;
                }
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    /// Whether by this word a read is worth trying.
    #[inline]
    pub(crate) fn may_read(&self, word: u64) -> bool {
        ticks(word) != self.empty_at.load(Relaxed)
    }

    /// Writes what fits. After `Pending` the caller registers its waker and asks
    /// `is_write_blocked` of a newer word.
    #[inline]
    pub(crate) fn poll_write(
        &self,
        readiness: &Readiness,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            let seen = readiness.word();
            if is_write_blocked(seen) {
                return Poll::Pending;
            }
            let sent = match bufs {
                [buf] => rustix::net::send(&self.socket, buf, SendFlags::NOSIGNAL),
                bufs => rustix::net::sendmsg(
                    &self.socket,
                    bufs,
                    &mut SendAncillaryBuffer::default(),
                    SendFlags::NOSIGNAL,
                ),
            };
            match sent {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    if readiness.mark_write_blocked(seen) {
                        if seen & WRITE_INTEREST == 0 {
                            // The first write that needs room asks for reports of it; room that
                            // there is by then is an event.
                            self.ask_for_room(readiness.id)?;
                        }
                        return Poll::Pending;
                    }
                }
                sent => return Poll::Ready(Ok(sent?)),
            }
        }
    }

    fn ask_for_room(&self, id: u64) -> io::Result<()> {
        let key = key(id, self.index.load(Relaxed));
        self.poller.modify(self, key, INPUT | EventFlags::OUT)
    }
}

impl AsFd for Registration {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The connections of a poller that has none.
    #[derive(Debug)]
    pub(crate) enum Nothing {}

    impl Registered for Nothing {
        fn readiness(&self) -> &Readiness {
            match *self {}
        }

        fn other_waker(&self, _waiter: Waiter) -> Option<Waker> {
            match *self {}
        }
    }
}
