//! The connections that are registered with a poller, and each one's side of it.
//!
//! 1. A key names a slot and the id of the connection in it, so an event that is left over from an
//!    earlier connection of the slot finds none.
//! 2. A read that finds the socket empty notes how many events there had been *before* it looked:
//!    as long as there is no further event, there is nothing to read. With the number of *after*
//!    the look an event between the two would be taken for one that the read has seen.

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
    /// Its word and its task's first waker.
    fn readiness(&self) -> &Readiness;

    /// Takes the waker of a waiter that is registered with another than the task's first.
    fn other_waker(&self, waiter: Waiter) -> Option<Waker>;
}

/// A connection whose type a poller cannot name, because it is of a layer above.
pub(crate) type Erased = Arc<dyn Any + Send + Sync>;

/// The table of registered connections, whose type only layers above know. It is the table that is
/// behind a trait, not each connection: a slot is one pointer then, and with a `dyn Registered` in
/// it would be two, 8 bytes more for every connection.
pub(super) trait Registrations: fmt::Debug + Send + Sync {
    /// Gives a connection a slot, and the key for its events.
    fn insert(&self, connection: Erased) -> (u32, u64);

    /// Empties a slot. The caller drops the connection, without a lock held.
    fn remove(&self, index: u32) -> Option<Erased>;

    /// Records each event with the connection that it is for. Wakes the waiters that it concerns,
    /// or collects their wakers in `wakers`, for the caller to wake without a lock. `other` gives
    /// the waker for a key that is not a connection's.
    fn on_events(
        &self,
        events: &[Event],
        wakers: &mut Vec<Waker>,
        other: &mut dyn FnMut(u64) -> Option<Waker>,
    );
}

/// The table for connections of the type `R`.
#[derive(Debug)]
pub(super) struct Slab<R>(Mutex<Slots<R>>);

#[derive(Debug)]
struct Slots<R> {
    /// The connections by their slot.
    connections: Vec<Option<Arc<R>>>,
    /// The slots that are empty.
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
            // A read stops at urgent data, however much there is behind it, and brings less than
            // the buffer holds. So it is taken for an end: a short read then does not count as
            // having emptied the socket.
            let read_closed = flags.intersects(
                EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR | EventFlags::PRI,
            );
            let readable = read_closed || flags.contains(EventFlags::IN);
            let writable = flags.intersects(EventFlags::OUT | EventFlags::HUP | EventFlags::ERR);
            readiness.on_event(readable, writable, read_closed, |waiter| {
                match readiness.task_waker(waiter) {
                    // Called under the lock of the table: it is the waker of a task of the pool's,
                    // and does no more than queue that task.
                    Some(waker) => waker.wake_by_ref(),
                    None => wakers.extend(connection.other_waker(waiter)),
                }
            });
        }
    }
}

/// Set in every key that is not a connection's.
pub(super) const NOT_A_CONNECTION: u32 = 1 << 31;
/// In place of a slot, where there is none.
const NOWHERE: u32 = u32::MAX;
/// In place of a number of events; no word has it, since ticks are 29 bits.
const NEVER: u32 = u32::MAX;

/// The key of a connection in a slot: the lower half of its id, and the slot (invariant 1).
fn key(id: u64, index: u32) -> u64 {
    id << 32 | u64::from(index)
}

/// The events of every connection. Urgent data is among them because of what it does to reads: see
/// `on_events`.
const INPUT: EventFlags = EventFlags::IN
    .union(EventFlags::RDHUP)
    .union(EventFlags::PRI)
    .union(EventFlags::ET);

/// A connection's socket, and what is known of its readiness beside its word.
#[derive(Debug)]
pub(crate) struct Registration {
    socket: Socket,
    poller: Arc<Poller>,
    /// How many events there had been when the socket was found empty (invariant 2), stored by the
    /// reader alone.
    empty_at: AtomicU32,
    /// The slot in the table.
    index: AtomicU32,
}

impl Registration {
    /// A socket that will be registered with this poller.
    pub(crate) fn new(socket: Socket, poller: Arc<Poller>) -> Self {
        Self {
            socket,
            poller,
            // A peer that connects mostly sends something at once. By the time that the handler
            // reads it has arrived, so the first read looks without having waited for an event.
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

    /// Takes the connection out of the table, once. Closing its socket takes that out of the epoll,
    /// unless a descriptor that was duplicated `outlives` the close.
    pub(crate) fn deregister(&self, outlives: bool) {
        // `SeqCst` pairs with nothing: of several threads one gets the slot.
        let index = self.index.swap(NOWHERE, SeqCst);
        if index == NOWHERE {
            return;
        }
        let connection = self.poller.registrations.remove(index);
        if outlives {
            self.poller.delete(self);
        }
        // Without the table's lock: the last owner of a connection closes its socket.
        drop(connection);
    }

    /// Reads, if by the word that was `seen` there may be something; with `look`, in any case.
    /// After `Pending` the caller registers its waker and asks [`may_read`](Self::may_read) of a
    /// word that it loads afterwards.
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
                    // A short read has emptied a TCP socket, and what comes later is an event. That
                    // is not so where the peer has ended: its end is no event of its own if it came
                    // with data. Nor of a Unix socket, where a read stops after a message that
                    // carries descriptors.
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

    /// Writes what fits. After `Pending` the caller registers its waker and asks `is_write_blocked`
    /// of a word that it loads afterwards.
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
                            // The first write that finds no room asks for events of room, from then
                            // on. Room that there is already is an event, too.
                            if let Err(error) = self.ask_for_room(readiness.id) {
                                // Else the next write would wait for an event that never comes.
                                readiness.unmark_write_blocked();
                                return Poll::Ready(Err(error));
                            }
                        }
                        return Poll::Pending;
                    }
                }
                sent => return Poll::Ready(Ok(sent?)),
            }
        }
    }

    /// Has room to write be reported, as well as input.
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
    use std::io::Read;
    use std::os::unix::net::UnixStream;

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

    /// As where the system has no memory left for it.
    #[test]
    fn a_writer_that_cannot_be_told_of_room_does_not_wait_for_it() {
        let (mut peer, socket) = UnixStream::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        let poller = Arc::new(Poller::new::<Nothing>().unwrap());
        // It was never registered, so that its registration cannot be changed.
        let registration = Registration::new(Socket::Unix(socket), poller);
        let readiness = Readiness::new(1, 0);
        let write = || registration.poll_write(&readiness, &[IoSlice::new(&[b'.'; 4096])]);
        let fill = || {
            let mut written = 0;
            loop {
                match write() {
                    Poll::Ready(Ok(n)) => written += n,
                    full => return (written, full),
                }
            }
        };
        let (_written, full) = fill();
        assert!(matches!(full, Poll::Ready(Err(_))), "{full:?}");
        let (written, full) = fill();
        assert!(matches!(full, Poll::Ready(Err(_))), "{full:?}");
        assert_eq!(written, 0);
        // Once there is room, it is used.
        peer.read_exact(&mut vec![0; 64 * 1024]).unwrap();
        let (written, full) = fill();
        assert!(matches!(full, Poll::Ready(Err(_))), "{full:?}");
        assert!(written > 0);
    }
}
