//! What a connection shares with its server.
//!
//! 1. On the hot path nobody takes a lock: a half of a connection stores plain numbers of its own
//!    into the record, and reads one word.
//! 2. Who leaves a waker looks at the word again afterwards; who sets a bit of the word wakes
//!    afterwards. One of the two sees the other.

use std::cell::Cell;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, fence};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use event_listener::{Event, EventListener};

use crate::address::Address;
use crate::handle::{Shared, lock};
use crate::report::{Straggler, Waiting};
use crate::transport::{Armed, Transport};

/// The bits of a record's word.
pub(crate) mod bit {
    /// The drain was announced to this connection.
    pub(crate) const TOLD: u32 = 1;
    /// It was announced before the first byte came, and the grace for that is not over.
    pub(crate) const GRACE: u32 = 1 << 1;
    /// The connection is cut: its handler is dropped, every operation fails.
    pub(crate) const ABORT: u32 = 1 << 2;
    /// A limit of time ended the connection's reads and writes.
    pub(crate) const EXPIRED: u32 = 1 << 3;
    /// The read half is there.
    pub(crate) const READER: u32 = 1 << 4;
    /// The write half is there.
    pub(crate) const WRITER: u32 = 1 << 5;
    /// The halves are apart and may be on two threads.
    pub(crate) const SPLIT: u32 = 1 << 6;
    /// The peer's end was read.
    pub(crate) const PEER_ENDED: u32 = 1 << 7;
    /// A read was ended by the drain.
    pub(crate) const DRAIN_ENDED: u32 = 1 << 8;
    /// Our end was sent.
    pub(crate) const FINISHED: u32 = 1 << 9;
    /// The handler watches for the drain itself; reads never end early.
    pub(crate) const MANUAL: u32 = 1 << 10;
    /// A busy guard has been taken once: from then on guards are what counts.
    pub(crate) const GUARDED: u32 = 1 << 11;
    /// The task is polled with another waker than at first.
    pub(crate) const AWAY: u32 = 1 << 12;
    /// Handed on to whoever detached it.
    pub(crate) const DETACHED: u32 = 1 << 13;
    /// Its end is in the ledger; whoever comes later does not count it again.
    pub(crate) const COUNTED: u32 = 1 << 14;
    /// It has no handler yet, for want of a place.
    pub(crate) const HELD: u32 = 1 << 15;
    /// Its handler is gone and its socket being closed.
    pub(crate) const CLOSING: u32 = 1 << 16;
    /// Its handler waits for the server to close.
    pub(crate) const INSIDER: u32 = 1 << 17;
    /// It is closed without the user's handler.
    pub(crate) const REJECTED: u32 = 1 << 18;
    /// Its socket needs nothing more.
    pub(crate) const CLOSED: u32 = 1 << 20;
    /// It counts against its peer's share.
    pub(crate) const SHARES: u32 = 1 << 21;
    /// The operator has been told that its handler blocks a thread.
    pub(crate) const BLOCKED: u32 = 1 << 19;

    /// What a read or a write has to look at closely.
    pub(crate) const CUT: u32 = ABORT | EXPIRED;
}

/// What a connection shares with its server.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) id: u64,
    pub(crate) server: Arc<Shared>,
    pub(crate) transport: Transport,
    /// The peer; those that have no such address are among what few have.
    peer: SocketAddrV4,
    /// Which of the server's addresses it came to.
    address: u16,
    /// Which of the server's pools serves it, where there are any.
    pub(crate) shard: u16,
    word: AtomicU32,
    /// Since the server was bound, as all times of a record, in nanoseconds.
    accepted: u64,
    /// When a byte last moved; kept only where a limit asks for it.
    pub(crate) touched: AtomicU64,
    /// Bytes read from the kernel, stored by the read half alone.
    pub(crate) received: AtomicU64,
    /// Bytes the handler has consumed, stored by the read half alone.
    pub(crate) taken: AtomicU64,
    /// What was taken when the last completed write began, stored by the write half alone.
    pub(crate) answered: AtomicU64,
    /// Bytes written to the kernel, stored by the write half alone.
    pub(crate) sent: AtomicU64,
    /// What was taken when the write under way began, stored by the write half alone.
    pub(crate) began: AtomicU64,
    /// What each half knows of the socket's readiness, stored by it alone.
    pub(crate) read_armed: Armed,
    pub(crate) write_armed: Armed,
    /// A read waits, stored by the read half alone.
    pub(crate) reading: AtomicBool,
    /// A write waits, stored by the write half alone.
    pub(crate) writing: AtomicBool,
    /// Counted up when the task's thread enters the handler and when it leaves it, by the task
    /// alone: odd inside.
    polls: AtomicU32,
    /// Where each half has left its waker, stored by it alone.
    left: [AtomicU8; 2],
    /// The waker with which the task was polled first. Most tasks have no other, and most halves are
    /// polled with that of the task.
    home: OnceLock<Waker>,
    more: Mutex<Option<Box<More>>>,
}

/// What few connections have.
#[derive(Debug, Default)]
struct More {
    /// Of those who are polled with another waker than the task's first.
    wakers: [Option<Waker>; 3],
    /// Notified when the connection is asked to come to an end, or has come to it.
    told: Option<Arc<Event>>,
    /// Busy guards.
    guards: u32,
    /// How many futures of its handler wait for the server to close.
    waits: u32,
    /// The peer, where it has no IPv4 address.
    peer: Option<Address>,
}

const NO_PEER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);

/// A peer that was accepted.
pub(crate) struct Arrival {
    pub(crate) transport: Transport,
    pub(crate) peer: Address,
    pub(crate) address: u16,
    pub(crate) shard: u16,
}

thread_local! {
    /// Whose handler this thread is in; for comparison only.
    static HANDLED: Cell<*const Record> = const { Cell::new(std::ptr::null()) };
}

/// Whose waker.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Who {
    Reader,
    Writer,
    Task,
}

/// There is no waker, it is the task's first, or it is among what few have.
const NOWHERE: u8 = 0;
const HOME: u8 = 1;
const AWAY: u8 = 2;

impl Record {
    pub(crate) fn new(
        id: u64,
        server: Arc<Shared>,
        arrival: Arrival,
        word: u32,
        accepted: Duration,
    ) -> Self {
        let accepted = nanos(accepted);
        let (peer, more) = match arrival.peer {
            Address::Tcp(SocketAddr::V4(peer)) => (peer, None),
            other => {
                let more = More {
                    peer: Some(other),
                    ..More::default()
                };
                (NO_PEER, Some(more))
            }
        };
        Self {
            id,
            server,
            transport: arrival.transport,
            peer,
            address: arrival.address,
            shard: arrival.shard,
            word: AtomicU32::new(word),
            accepted,
            touched: AtomicU64::new(accepted),
            received: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            began: AtomicU64::new(0),
            read_armed: AtomicBool::new(false),
            write_armed: AtomicBool::new(false),
            reading: AtomicBool::new(false),
            writing: AtomicBool::new(false),
            polls: AtomicU32::new(0),
            left: Default::default(),
            home: OnceLock::new(),
            more: Mutex::new(more.map(Box::new)),
        }
    }

    #[inline]
    pub(crate) fn word(&self) -> u32 {
        self.word.load(SeqCst)
    }

    #[inline]
    pub(crate) fn has(&self, bits: u32) -> bool {
        self.word() & bits != 0
    }

    /// Sets bits; gives the word as it was.
    pub(crate) fn set(&self, bits: u32) -> u32 {
        self.word.fetch_or(bits, SeqCst)
    }

    /// Clears bits; gives the word as it was.
    pub(crate) fn clear(&self, bits: u32) -> u32 {
        self.word.fetch_and(!bits, SeqCst)
    }

    pub(crate) fn peer(&self) -> Address {
        let other = self.more().as_ref().and_then(|more| more.peer.clone());
        other.unwrap_or(Address::Tcp(SocketAddr::V4(self.peer)))
    }

    pub(crate) fn local_addr(&self) -> io::Result<Address> {
        let own = self.transport.local_addr()?;
        Ok(own.unwrap_or_else(|| self.server.addrs()[usize::from(self.address)].clone()))
    }

    /// Leaves `cx`'s waker where those who change the word will find it. Where it is the task's first,
    /// that is done with a look.
    #[inline]
    pub(crate) fn park(&self, who: Who, cx: &Context<'_>) {
        let home = self.home.get();
        let at_home = home.is_some_and(|home| home.will_wake(cx.waker()));
        if !at_home || self.left(who) != HOME {
            self.park_anew(who, cx.waker(), at_home);
        }
    }

    #[cold]
    fn park_anew(&self, who: Who, waker: &Waker, at_home: bool) {
        if at_home {
            self.unpark(who);
            self.leave(who, HOME);
        } else if matches!(who, Who::Task) && self.home.get().is_none() {
            let _first = self.home.set(waker.clone());
        } else {
            let old = {
                let mut more = self.more();
                let place = &mut more.get_or_insert_default().wakers[who as usize];
                match place {
                    Some(known) if known.will_wake(waker) => None,
                    place => place.replace(waker.clone()),
                }
            };
            self.leave(who, AWAY);
            // Outside the lock, since dropping a waker can run a task's destructor.
            drop(old);
        }
        // Whoever wakes from here on sees it, or has changed what is looked at next.
        fence(SeqCst);
    }

    /// Forgets a waker, whose owner is gone. The task's first stays: a task that has ended takes no
    /// notice of it.
    pub(crate) fn unpark(&self, who: Who) {
        if self.left(who) == AWAY {
            let old = self.take_away(who);
            drop(old);
        }
        if !matches!(who, Who::Task) {
            self.leave(who, NOWHERE);
        }
    }

    fn take_away(&self, who: Who) -> Option<Waker> {
        let mut more = self.more();
        more.as_mut()?.wakers[who as usize].take()
    }

    #[inline]
    fn left(&self, who: Who) -> u8 {
        match self.left.get(who as usize) {
            Some(left) => left.load(SeqCst),
            None if self.has(bit::AWAY) => AWAY,
            None => HOME,
        }
    }

    fn leave(&self, who: Who, place: u8) {
        match self.left.get(who as usize) {
            Some(left) => left.store(place, SeqCst),
            None if place == AWAY => drop(self.set(bit::AWAY)),
            None => drop(self.clear(bit::AWAY)),
        }
    }

    /// The waker that the task was polled with first, where it is that one's, too.
    #[inline]
    pub(crate) fn home(&self, who: Who) -> Option<&Waker> {
        match self.left(who) {
            HOME => self.home.get(),
            _ => None,
        }
    }

    /// Another waker.
    pub(crate) fn away(&self, who: Who) -> Option<Waker> {
        match self.left(who) {
            AWAY => self.more().as_ref()?.wakers[who as usize].clone(),
            _ => None,
        }
    }

    pub(crate) fn wake(&self, who: Who) {
        // Whoever parks from here on sees what was changed before this.
        fence(SeqCst);
        if let Some(home) = self.home(who) {
            wake_by_ref(home);
        } else if let Some(away) = self.away(who) {
            // Outside the lock, since a waker is somebody else's code.
            wake_by_ref(&away);
        }
    }

    /// Waits until there may be something to read; for whoever closes a connection without halves.
    pub(crate) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.transport {
            #[cfg(target_os = "linux")]
            Transport::Slot(slot) => {
                // As long as nobody has found it empty.
                if !slot.may_read() {
                    self.park(Who::Reader, cx);
                    if !slot.may_read() {
                        return Poll::Pending;
                    }
                }
                Poll::Ready(Ok(()))
            }
            transport => transport.poll_readable(cx),
        }
    }

    fn more(&self) -> MutexGuard<'_, Option<Box<More>>> {
        lock(&self.more)
    }

    /// Begins to listen for the announcement of an end; whether there has been one is to be looked
    /// at afterwards.
    pub(crate) fn listen(&self) -> EventListener {
        let mut more = self.more();
        let told = &mut more.get_or_insert_default().told;
        told.get_or_insert_default().listen()
    }

    /// Tells whoever listens for that.
    fn announce(&self) {
        let told = self.more().as_ref().and_then(|more| more.told.clone());
        if let Some(told) = told {
            notify(&told);
        }
    }

    /// Announces the drain to this connection.
    pub(crate) fn tell(&self, uptime: Duration) {
        let fresh = self.received.load(Acquire) == 0
            && self.age(uptime) < self.server.config.first_byte_grace;
        self.set(if fresh {
            bit::TOLD | bit::GRACE
        } else {
            bit::TOLD
        });
        self.announce();
        self.wake(Who::Reader);
        if fresh {
            // The task ends the grace when its time has come.
            self.wake(Who::Task);
        }
    }

    /// Cuts the connection under whoever holds it.
    pub(crate) fn abort(&self) {
        // What was detached is no longer ours to cut.
        if self.set(bit::ABORT) & (bit::ABORT | bit::DETACHED) == 0 {
            self.transport.shut();
            self.announce();
            for who in [Who::Task, Who::Reader, Who::Writer] {
                self.wake(who);
            }
        }
    }

    /// The first byte has had its time.
    pub(crate) fn end_grace(&self) {
        self.clear(bit::GRACE);
        self.wake(Who::Reader);
    }

    /// Ends the connection's reads and writes with a time-out.
    pub(crate) fn expire(&self) {
        self.set(bit::EXPIRED);
        self.wake(Who::Reader);
        self.wake(Who::Writer);
    }

    /// A guard says that the handler is inside a message.
    pub(crate) fn guard(&self) {
        self.more().get_or_insert_default().guards += 1;
        self.set(bit::GUARDED);
    }

    pub(crate) fn unguard(&self) {
        self.more().get_or_insert_default().guards -= 1;
        if self.has(bit::TOLD) {
            self.wake(Who::Reader);
        }
    }

    /// Called by the write half after it stored what it answered: at a drain the read half may be
    /// waiting for just that.
    #[inline]
    pub(crate) fn answer(&self) {
        let mut word = self.word.load(Relaxed);
        if word & bit::SPLIT != 0 {
            // Either this thread sees that the drain was announced, or the reader, which looks at
            // the counts after that, sees the answer.
            fence(SeqCst);
            word = self.word.load(Relaxed);
        }
        if word & bit::TOLD != 0 {
            self.wake(Who::Reader);
        }
    }

    /// What the task's thread does in the handler: it may panic.
    #[inline]
    pub(crate) fn handle<T>(&self, inside: impl FnOnce() -> T) -> thread::Result<T> {
        self.step();
        let outer = HANDLED.replace(self);
        let done = catch_unwind(AssertUnwindSafe(inside));
        HANDLED.set(outer);
        self.step();
        done
    }

    /// Has the task look at the word. In the handler it will do so in any case.
    pub(crate) fn wake_task(&self) {
        if !std::ptr::eq(HANDLED.get(), self) {
            self.wake(Who::Task);
        }
    }

    /// How often the task's thread has entered or left the handler.
    pub(crate) fn polls(&self) -> u32 {
        self.polls.load(Relaxed)
    }

    /// The task's thread enters the handler, or leaves it.
    #[inline]
    fn step(&self) {
        let polls = self.polls();
        self.polls.store(polls.wrapping_add(1), Relaxed);
    }

    pub(crate) fn is_inside(&self) -> bool {
        self.polls() % 2 == 1
    }

    /// Between two messages, or inside one.
    pub(crate) fn is_busy(&self) -> bool {
        let received = self.received.load(Acquire);
        let word = self.word();
        if word & bit::GUARDED != 0 {
            return self.is_guarded() || self.taken.load(Acquire) < received;
        }
        self.answered.load(Acquire) < received || self.writing.load(Acquire)
    }

    fn is_guarded(&self) -> bool {
        self.more().as_ref().is_some_and(|more| more.guards > 0)
    }

    /// One more future of its handler waits for the server to close, or one less. Says how many do.
    pub(crate) fn count_waits(&self, change: impl FnOnce(u32) -> u32) -> u32 {
        let mut more = self.more();
        let waits = &mut more.get_or_insert_default().waits;
        *waits = change(*waits);
        *waits
    }

    /// A byte moved, or a wait for one began.
    #[inline]
    pub(crate) fn touch(&self) {
        if self.server.config.watches_idle() {
            self.touched.store(nanos(self.server.uptime()), Relaxed);
        }
    }

    pub(crate) fn age(&self, uptime: Duration) -> Duration {
        uptime.saturating_sub(Duration::from_nanos(self.accepted))
    }

    /// When this connection was accepted, since the server was bound.
    pub(crate) fn accepted(&self) -> Duration {
        Duration::from_nanos(self.accepted)
    }

    pub(crate) fn waiting(&self) -> Waiting {
        let word = self.word();
        if word & bit::HELD != 0 {
            Waiting::Place
        } else if word & bit::CLOSING != 0 {
            Waiting::Close
        } else if self.writing.load(Relaxed) {
            Waiting::Write
        } else if self.reading.load(Relaxed) {
            Waiting::Read
        } else {
            Waiting::Handler
        }
    }

    pub(crate) fn straggler(&self, uptime: Duration) -> Straggler {
        Straggler {
            id: self.id,
            peer: self.peer(),
            age: self.age(uptime),
            busy: self.is_busy(),
            waiting: self.waiting(),
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let more = self.more.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(told) = more.take().and_then(|more| more.told) {
            notify(&told);
        }
    }
}

/// Notifies all who listen, if anybody does: without a listener `Event` allocates a list to find it
/// empty.
pub(crate) fn notify(event: &Event) {
    // Who begins to listen looks afterwards at what was changed before this. Either that look sees
    // it, or this one the listener.
    fence(SeqCst);
    if event.total_listeners() > 0 {
        event.notify(usize::MAX);
    }
}

/// Wakes; a waker that panics is its owner's affair, and the others are woken all the same.
#[inline]
pub(crate) fn wake_by_ref(waker: &Waker) {
    if catch_unwind(AssertUnwindSafe(|| waker.wake_by_ref())).is_err() {
        log::error!(target: "gracious", "a waker panicked");
    }
}

pub(crate) fn nanos(uptime: Duration) -> u64 {
    u64::try_from(uptime.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(all(test, target_os = "linux", target_pointer_width = "64"))]
mod tests {
    use super::*;
    use crate::connection::Connection;

    /// What every idle connection costs; a handler's future holds its connection twice.
    #[test]
    fn a_record_and_a_connection_are_small() {
        assert!(size_of::<Record>() <= 168, "{}", size_of::<Record>());
        assert!(size_of::<Connection>() <= 16, "{}", size_of::<Connection>());
    }
}
