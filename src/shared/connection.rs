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
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, fence};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use event_listener::{Event, EventListener};

use crate::address::Address;
use crate::connection::task::Extra;
use crate::handle::Shared;
use crate::report::{Straggler, Waiting};
use crate::sync::{lock, nanos, notify, wake_by_ref};
use crate::transport::Transport;

/// The bits of a record's word, the lower half. The upper is the readiness of its socket, where a
/// worker's poller tells that: what a read has to know is one load.
pub(crate) mod bit {
    /// The drain was announced to this connection.
    pub(crate) const TOLD: u64 = 1;
    /// It was announced before the first byte came, and the grace for that is not over.
    pub(crate) const GRACE: u64 = 1 << 1;
    /// The connection is cut: its handler is dropped, every operation fails.
    pub(crate) const ABORT: u64 = 1 << 2;
    /// A limit of time ended the connection's reads and writes.
    pub(crate) const EXPIRED: u64 = 1 << 3;
    /// The read half is there.
    pub(crate) const READER: u64 = 1 << 4;
    /// The write half is there.
    pub(crate) const WRITER: u64 = 1 << 5;
    /// The halves are apart and may be on two threads.
    pub(crate) const SPLIT: u64 = 1 << 6;
    /// The peer's end was read.
    pub(crate) const PEER_ENDED: u64 = 1 << 7;
    /// A read was ended by the drain.
    pub(crate) const DRAIN_ENDED: u64 = 1 << 8;
    /// Our end was sent.
    pub(crate) const FINISHED: u64 = 1 << 9;
    /// The handler watches for the drain itself; reads never end early.
    pub(crate) const MANUAL: u64 = 1 << 10;
    /// A busy guard has been taken once: from then on guards are what counts.
    pub(crate) const GUARDED: u64 = 1 << 11;
    /// The task is polled with another waker than at first.
    pub(crate) const TASK_AWAY: u64 = 1 << 12;
    /// Handed on to whoever detached it.
    pub(crate) const DETACHED: u64 = 1 << 13;
    /// Its end is in the ledger; whoever comes later does not count it again.
    pub(crate) const COUNTED: u64 = 1 << 14;
    /// It has no handler yet, for want of a place.
    pub(crate) const HELD: u64 = 1 << 15;
    /// Its handler is gone and its socket being closed.
    pub(crate) const CLOSING: u64 = 1 << 16;
    /// Its handler waits for the server to close.
    pub(crate) const INSIDER: u64 = 1 << 17;
    /// It is closed without the user's handler.
    pub(crate) const REJECTED: u64 = 1 << 18;
    /// The operator has been told that its handler blocks a thread.
    #[cfg(target_os = "linux")]
    pub(crate) const BLOCKED: u64 = 1 << 19;
    /// Its socket needs nothing more.
    pub(crate) const CLOSED: u64 = 1 << 20;
    /// It counts against its peer's share.
    pub(crate) const SHARES: u64 = 1 << 21;
    /// The read half waits with the task's first waker.
    pub(crate) const READER_HOME: u64 = 1 << 22;
    /// It waits with another.
    pub(crate) const READER_AWAY: u64 = 1 << 23;
    /// The same of the write half.
    pub(crate) const WRITER_HOME: u64 = 1 << 24;
    pub(crate) const WRITER_AWAY: u64 = 1 << 25;
    /// The peer came with its IPv4 address as one of IPv6, as to a dual-stack listener.
    pub(crate) const MAPPED: u64 = 1 << 26;

    /// What a read or a write has to look at closely.
    pub(crate) const CUT: u64 = ABORT | EXPIRED;
}

/// What a connection shares with its server.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) id: u64,
    pub(crate) server: Arc<Shared>,
    pub(crate) transport: Transport,
    pub(crate) word: AtomicU64,
    /// Since the server was bound, as all times of a record, in nanoseconds.
    accepted: u64,
    /// Bytes read from the kernel, stored by the read half alone.
    pub(crate) received: AtomicU64,
    /// What had been received, and consumed, when the last write began that was completed or had to
    /// wait; stored by the write half alone.
    answered: AtomicU64,
    /// Bytes written to the kernel, stored by the write half alone.
    pub(crate) sent: AtomicU64,
    /// The waker with which the task was polled first. Most tasks have no other, and most halves are
    /// polled with that of the task.
    home: OnceLock<Waker>,
    more: OnceLock<Box<More>>,
    /// The peer; an address that is longer is among what few have.
    peer: SocketAddrV4,
    /// Which of the server's addresses it came to.
    address: u16,
    /// Counted up when the task's thread enters the handler and when it leaves it, by the task
    /// alone: odd inside.
    polls: AtomicU32,
    /// Which of the server's pools serves it, where there are any.
    pub(crate) shard: u16,
    pub(crate) reader: Half,
    pub(crate) writer: Half,
}

/// What one half of a connection says of itself, stored by it alone.
#[derive(Debug, Default)]
pub(crate) struct Half(AtomicU8);

impl Half {
    /// It waits.
    pub(crate) const WAITS: u8 = 1;
    /// The reactor was asked to wake it, and its answer has not been taken yet. Taking it first saves
    /// the call that would only find nothing, and a second one after a stale answer.
    pub(crate) const ARMED: u8 = 1 << 1;
    /// The handler has not consumed all it received.
    const UNTAKEN: u8 = 1 << 2;
    /// What counts as answered is not yet: the write that should do it waits, or came to nothing.
    pub(crate) const OPEN: u8 = 1 << 3;

    #[inline]
    pub(crate) fn has(&self, bits: u8) -> bool {
        self.0.load(Acquire) & bits != 0
    }

    #[inline]
    pub(crate) fn set(&self, bits: u8) {
        self.change(0, bits);
    }

    #[inline]
    pub(crate) fn clear(&self, bits: u8) {
        self.change(bits, 0);
    }

    #[inline]
    fn change(&self, clear: u8, set: u8) {
        self.0.store(self.0.load(Relaxed) & !clear | set, Release);
    }
}

/// What few connections have.
#[derive(Debug, Default)]
struct More {
    /// The peer, where the record has no room for it.
    peer: Option<Address>,
    /// When a byte last moved; kept only where a limit asks for it.
    touched: AtomicU64,
    kept: OnceLock<Box<Mutex<Kept>>>,
}

#[derive(Debug, Default)]
struct Kept {
    /// Of those who are polled with another waker than the task's first.
    wakers: [Option<Waker>; 3],
    /// Notified when the connection is asked to come to an end, or has come to it.
    told: Option<Arc<Event>>,
    /// Busy guards.
    guards: u32,
    /// How many futures of its handler wait for the server to close.
    waits: u32,
    /// The task's own, while it does not use it.
    extra: Option<Box<Extra>>,
}

/// In place of one that has no address.
const NO_PEER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);

/// A peer's address as most have it, with what to set in the record's word, or as it is.
fn shorten(peer: Address) -> Result<(SocketAddrV4, u64), Address> {
    let short = match &peer {
        Address::Unnamed => return Ok((NO_PEER, 0)),
        Address::Tcp(SocketAddr::V4(peer)) => Some((*peer, 0)),
        Address::Tcp(SocketAddr::V6(peer)) if peer.flowinfo() == 0 && peer.scope_id() == 0 => {
            let mapped = peer.ip().to_ipv4_mapped();
            mapped.map(|ip| (SocketAddrV4::new(ip, peer.port()), bit::MAPPED))
        }
        _ => None,
    };
    short.filter(|(short, _)| *short != NO_PEER).ok_or(peer)
}

fn lengthen(peer: SocketAddrV4, word: u64) -> Address {
    if peer == NO_PEER {
        Address::Unnamed
    } else if word & bit::MAPPED != 0 {
        Address::Tcp((peer.ip().to_ipv6_mapped(), peer.port()).into())
    } else {
        Address::Tcp(peer.into())
    }
}

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

impl Who {
    /// Says that it waits with the task's first waker. The task has that as long as it has no other.
    const fn home(self) -> u64 {
        match self {
            Self::Reader => bit::READER_HOME,
            Self::Writer => bit::WRITER_HOME,
            Self::Task => 0,
        }
    }

    /// Says that it waits with another.
    const fn away(self) -> u64 {
        match self {
            Self::Reader => bit::READER_AWAY,
            Self::Writer => bit::WRITER_AWAY,
            Self::Task => bit::TASK_AWAY,
        }
    }

    /// Whether a word says that it waits with the task's first waker.
    const fn is_home(self, word: u64) -> bool {
        word & (self.home() | self.away()) == self.home()
    }
}

impl Record {
    pub(crate) fn new(
        id: u64,
        server: Arc<Shared>,
        arrival: Arrival,
        word: u64,
        accepted: Duration,
    ) -> Self {
        let accepted = nanos(accepted);
        let (peer, mapped, other) = match shorten(arrival.peer) {
            Ok((peer, mapped)) => (peer, mapped, None),
            Err(other) => (NO_PEER, 0, Some(other)),
        };
        let more = OnceLock::new();
        if other.is_some() || server.config.watches_idle() {
            let _first = more.set(Box::new(More {
                peer: other,
                touched: AtomicU64::new(accepted),
                ..More::default()
            }));
        }
        Self {
            id,
            server,
            transport: arrival.transport,
            word: AtomicU64::new(word | mapped),
            accepted,
            received: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            home: OnceLock::new(),
            more,
            peer,
            address: arrival.address,
            polls: AtomicU32::new(0),
            shard: arrival.shard,
            reader: Half::default(),
            writer: Half::default(),
        }
    }

    #[inline]
    pub(crate) fn word(&self) -> u64 {
        self.word.load(SeqCst)
    }

    #[inline]
    pub(crate) fn has(&self, bits: u64) -> bool {
        self.word() & bits != 0
    }

    /// Sets bits; gives the word as it was.
    pub(crate) fn set(&self, bits: u64) -> u64 {
        self.word.fetch_or(bits, SeqCst)
    }

    /// Clears bits; gives the word as it was.
    pub(crate) fn clear(&self, bits: u64) -> u64 {
        self.word.fetch_and(!bits, SeqCst)
    }

    pub(crate) fn peer(&self) -> Address {
        let other = self.more.get().and_then(|more| more.peer.clone());
        other.unwrap_or_else(|| lengthen(self.peer, self.word()))
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
        if !at_home || !who.is_home(self.word()) {
            self.park_anew(who, cx.waker(), at_home);
        }
    }

    #[cold]
    fn park_anew(&self, who: Who, waker: &Waker, at_home: bool) {
        if at_home {
            self.set(who.home());
            self.unpark_away(who);
        } else if matches!(who, Who::Task) && self.home.get().is_none() {
            self.home.get_or_init(|| waker.clone());
        } else {
            let old = {
                let mut kept = self.kept();
                let place = &mut kept.wakers[who as usize];
                match place {
                    Some(known) if known.will_wake(waker) => None,
                    place => place.replace(waker.clone()),
                }
            };
            self.set(who.away());
            // Outside the lock, since dropping a waker can run a task's destructor.
            drop(old);
        }
        // Whoever wakes from here on sees it, or has changed what is looked at next.
        fence(SeqCst);
    }

    /// Forgets a waker that is not the task's first, whose owner is gone or waits with that.
    #[inline]
    pub(crate) fn unpark_away(&self, who: Who) {
        if self.has(who.away()) {
            self.take_away(who);
        }
    }

    #[cold]
    fn take_away(&self, who: Who) {
        self.clear(who.away());
        let old = self.kept().wakers[who as usize].take();
        drop(old);
    }

    /// The waker that the task was polled with first, where it is that one's, too.
    #[inline]
    pub(crate) fn home(&self, who: Who) -> Option<&Waker> {
        if who.is_home(self.word()) {
            self.home.get()
        } else {
            None
        }
    }

    /// Another waker.
    pub(crate) fn away(&self, who: Who) -> Option<Waker> {
        if self.has(who.away()) {
            self.kept().wakers[who as usize].clone()
        } else {
            None
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
                if !slot.may_read(self.word()) {
                    self.park(Who::Reader, cx);
                    if !slot.may_read(self.word()) {
                        return Poll::Pending;
                    }
                }
                Poll::Ready(Ok(()))
            }
            transport => transport.poll_readable(cx),
        }
    }

    fn more(&self) -> &More {
        self.more.get_or_init(Box::default)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        lock(self.more().kept.get_or_init(Box::default))
    }

    /// The same, unless there is nothing yet.
    fn kept_so_far(&self) -> Option<MutexGuard<'_, Kept>> {
        Some(lock(self.more.get()?.kept.get()?))
    }

    /// Does something with what the task has beside its handler, which most need not have. Not under
    /// the lock: timers and wakers are somebody else's code.
    pub(crate) fn with_extra<T>(&self, with: impl FnOnce(&mut Extra) -> T) -> T {
        let mut extra = self.take_extra().unwrap_or_default();
        let done = with(&mut extra);
        self.kept().extra = Some(extra);
        done
    }

    /// Takes that away.
    pub(crate) fn take_extra(&self) -> Option<Box<Extra>> {
        self.kept_so_far()?.extra.take()
    }

    /// Begins to listen for the announcement of an end; whether there has been one is to be looked
    /// at afterwards.
    pub(crate) fn listen(&self) -> EventListener {
        self.kept().told.get_or_insert_default().listen()
    }

    /// Tells whoever listens for that.
    fn announce(&self) {
        let told = self.kept_so_far().and_then(|kept| kept.told.clone());
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
        self.kept().guards += 1;
        self.set(bit::GUARDED);
    }

    pub(crate) fn unguard(&self) {
        self.kept().guards -= 1;
        if self.has(bit::TOLD) {
            self.wake(Who::Reader);
        }
    }

    /// Called by the read half, which waits no longer: so many bytes came.
    #[inline]
    pub(crate) fn receive(&self, bytes: usize) {
        // First, for whoever sees the count.
        self.reader.change(Half::WAITS, Half::UNTAKEN);
        let total = self.received.load(Relaxed) + bytes as u64;
        self.received.store(total, Release);
        self.touch();
    }

    /// Called by the read half: its handler has consumed all there was.
    #[inline]
    pub(crate) fn take(&self) {
        self.reader.clear(Half::UNTAKEN);
    }

    /// Called by the write half, which begins to write: how much of what was received it will have
    /// answered.
    #[inline]
    pub(crate) fn taken(&self) -> u64 {
        // What comes after this is not answered.
        let received = self.received.load(Acquire);
        if self.reader.has(Half::UNTAKEN) {
            return self.answered.load(Relaxed);
        }
        received
    }

    /// Called by the write half, which begins to wait. In this order: as long as it waits, nothing
    /// counts as answered, and afterwards only if it was written.
    pub(crate) fn begin_wait(&self, taken: u64) {
        let is_open = self.answered.load(Relaxed) < taken;
        let open = if is_open { Half::OPEN } else { 0 };
        self.writer.set(Half::WAITS | open);
        self.answer(taken);
    }

    /// Called by the write half: so much is answered by what it has written.
    #[inline]
    pub(crate) fn answer(&self, taken: u64) {
        self.answered.store(taken, Release);
    }

    /// Called by the write half after a write: at a drain the read half may be waiting for just that.
    #[inline]
    pub(crate) fn written(&self) {
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
        if self.has(bit::GUARDED) {
            return self.kept().guards > 0 || self.reader.has(Half::UNTAKEN);
        }
        let received = self.received.load(Acquire);
        self.answered.load(Acquire) < received || self.writer.has(Half::WAITS | Half::OPEN)
    }

    /// One more future of its handler waits for the server to close, or one less. Says how many do.
    pub(crate) fn count_waits(&self, change: impl FnOnce(u32) -> u32) -> u32 {
        let mut kept = self.kept();
        kept.waits = change(kept.waits);
        kept.waits
    }

    /// A byte moved, or a wait for one began.
    #[inline]
    pub(crate) fn touch(&self) {
        if self.server.config.watches_idle() {
            let now = nanos(self.server.uptime());
            self.more().touched.store(now, Relaxed);
        }
    }

    /// When that was.
    pub(crate) fn touched(&self) -> Duration {
        Duration::from_nanos(self.more().touched.load(Relaxed))
    }

    /// Whether either half waits for its peer.
    pub(crate) fn waits(&self) -> bool {
        self.reader.has(Half::WAITS) || self.writer.has(Half::WAITS)
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
        } else if self.writer.has(Half::WAITS) {
            Waiting::Write
        } else if self.reader.has(Half::WAITS) {
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
        // Whoever listens has nothing more to be told.
        self.announce();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What every idle connection costs beside its handler's future, which holds the connection.
    #[test]
    #[cfg(all(target_os = "linux", target_pointer_width = "64"))]
    fn a_record_and_a_connection_are_small() {
        use crate::connection::Connection;
        assert!(size_of::<Record>() <= 136, "{}", size_of::<Record>());
        assert!(size_of::<Connection>() <= 16, "{}", size_of::<Connection>());
    }

    #[test]
    fn an_address_that_was_shortened_is_what_it_was() {
        let is_short = |address: &Address| match shorten(address.clone()) {
            Ok((peer, word)) => {
                assert_eq!(lengthen(peer, word), *address);
                true
            }
            Err(same) => {
                assert_eq!(same, *address);
                false
            }
        };
        for short in ["127.0.0.1:80", "0.0.0.0:1", "[::ffff:10.1.2.3]:65535"] {
            assert!(is_short(&Address::Tcp(short.parse().unwrap())), "{short}");
        }
        assert!(is_short(&Address::Unnamed));
        let others = [
            "[::1]:80",
            "[::ffff:10.1.2.3%7]:80",
            "[::ffff:0.0.0.0]:0",
            "0.0.0.0:0",
        ];
        for other in others {
            assert!(!is_short(&Address::Tcp(other.parse().unwrap())), "{other}");
        }
        assert!(!is_short(&Address::Unix("a.sock".into())));
        assert!(!is_short(&Address::Custom("a peer".into())));
    }
}
