//! The tracked connections of one server: a record each, and the ledger that balances.
//!
//! 1. A connection is in the ledger from the moment `accept` returned it until its socket is
//!    closed; the ledger's counts change together, under one lock.
//! 2. On the hot path nobody takes that lock: a half of a connection stores plain numbers of its
//!    own into the record, and reads one word.
//! 3. Who registers a waker looks at the word again afterwards; who sets a bit of the word wakes
//!    afterwards. One of the two sees the other.

use std::cell::Cell;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, fence};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError, Weak};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use async_channel::Receiver;
use event_listener::Event;

use crate::address::Address;
use crate::by_id::ById;
use crate::events::{Cause, Outbox, ServerEvent, Subscribers};
use crate::handle::{Shared, lock};
use crate::report::{AcceptErrors, Limited, Stats, Straggler, Waiting};
use crate::shutdown::State;
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
    peer: Peer,
    pub(crate) transport: Transport,
    /// Which of the server's addresses it came to.
    address: u16,
    /// Which of the server's pools serves it, where there are any.
    pub(crate) shard: u16,
    word: AtomicU32,
    guards: AtomicU32,
    /// How many futures of its handler wait for the server to close; changed under the ledger's
    /// lock.
    waits: AtomicU32,
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
    wakers: Mutex<[Option<Waker>; 3]>,
    /// Which of them is there, each stored by its owner alone; see [`fingerprint`].
    parked: [AtomicUsize; 3],
    /// Notified when the connection is asked to come to an end, or has come to it.
    pub(crate) told: Event,
}

thread_local! {
    /// Whose handler this thread is in; for comparison only.
    static HANDLED: Cell<*const Record> = const { Cell::new(std::ptr::null()) };
}

/// Whose waker.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Who {
    Task,
    Reader,
    Writer,
}

impl Record {
    #[inline]
    pub(crate) fn word(&self) -> u32 {
        self.word.load(Acquire)
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
        match &self.peer {
            Peer::V4(peer) => Address::Tcp(SocketAddr::V4(*peer)),
            Peer::Other(peer) => Address::clone(peer),
        }
    }

    pub(crate) fn local_addr(&self) -> io::Result<Address> {
        let own = self.transport.local_addr()?;
        Ok(own.unwrap_or_else(|| self.server.addrs()[usize::from(self.address)].clone()))
    }

    /// Leaves `cx`'s waker where those who change the word will find it. The lock is taken only
    /// where another was left the last time.
    #[inline]
    pub(crate) fn park(&self, who: Who, cx: &Context<'_>) {
        let mine = fingerprint(cx.waker());
        if self.parked[who as usize].load(Relaxed) != mine {
            self.park_anew(who, cx.waker(), mine);
        }
    }

    #[cold]
    fn park_anew(&self, who: Who, waker: &Waker, mine: usize) {
        let old = lock(&self.wakers)[who as usize].replace(waker.clone());
        self.parked[who as usize].store(mine, Relaxed);
        // Outside the lock, since dropping a waker can run a task's destructor.
        drop(old);
    }

    /// Forgets a waker, whose owner is gone.
    pub(crate) fn unpark(&self, who: Who) {
        if self.parked[who as usize].swap(0, Relaxed) != 0 {
            let old = lock(&self.wakers)[who as usize].take();
            drop(old);
        }
    }

    #[inline]
    pub(crate) fn waker(&self, who: Who) -> Option<Waker> {
        self.wakers()[who as usize].clone()
    }

    pub(crate) fn wake(&self, who: Who) {
        // Outside the lock, since a waker is somebody else's code.
        if let Some(waker) = self.waker(who) {
            wake(waker);
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

    fn wakers(&self) -> MutexGuard<'_, [Option<Waker>; 3]> {
        lock(&self.wakers)
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
        notify(&self.told);
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
            notify(&self.told);
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
        self.guards.fetch_add(1, SeqCst);
        self.set(bit::GUARDED);
    }

    pub(crate) fn unguard(&self) {
        self.guards.fetch_sub(1, SeqCst);
        fence(SeqCst);
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

    /// The task's thread enters the handler, or leaves it.
    #[inline]
    fn step(&self) {
        let polls = self.polls.load(Relaxed);
        self.polls.store(polls.wrapping_add(1), Relaxed);
    }

    fn is_inside(&self) -> bool {
        self.polls.load(Relaxed) % 2 == 1
    }

    /// Between two messages, or inside one.
    pub(crate) fn is_busy(&self) -> bool {
        let received = self.received.load(Acquire);
        let word = self.word();
        if word & bit::GUARDED != 0 {
            return self.guards.load(SeqCst) > 0 || self.taken.load(Acquire) < received;
        }
        self.answered.load(Acquire) < received || self.writing.load(Acquire)
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

    fn waiting(&self) -> Waiting {
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

    fn straggler(&self, uptime: Duration) -> Straggler {
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
        notify(&self.told);
    }
}

/// A peer's address, as small as most are.
#[derive(Debug)]
enum Peer {
    V4(SocketAddrV4),
    Other(Box<Address>),
}

impl From<Address> for Peer {
    fn from(address: Address) -> Self {
        match address {
            Address::Tcp(SocketAddr::V4(peer)) => Self::V4(peer),
            other => Self::Other(Box::new(other)),
        }
    }
}

/// Tells one waker from another, by both its pointers in one word, which is never 0. While a waker
/// is left in a record nobody else can have its pointers.
fn fingerprint(waker: &Waker) -> usize {
    let vtable = std::ptr::from_ref(waker.vtable()) as usize;
    (waker.data() as usize) ^ vtable.rotate_left(usize::BITS / 2)
}

/// A connection as [`Handle::connections`](crate::Handle::connections) shows it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConnectionInfo {
    /// Its id: 1 for the first of a server, and so on.
    pub id: u64,
    /// Its peer.
    pub peer: Address,
    /// How long ago it was accepted.
    pub age: Duration,
    /// Whether it is inside a message.
    pub busy: bool,
    /// What it is waiting for.
    pub waiting: Waiting,
    /// Bytes read from the peer.
    pub bytes_in: u64,
    /// Bytes written to the peer.
    pub bytes_out: u64,
}

/// How a connection ended, as the ledger counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Completed,
    Failed,
    Panicked,
    Aborted,
    Detached,
    Rejected,
}

#[derive(Debug)]
pub(crate) struct Group {
    ledger: Mutex<Ledger>,
    subscribers: Mutex<Subscribers>,
    /// Notified when a place may have become free, or a pause has ended.
    pub(crate) vacancy: Event,
    /// Notified when the group may be empty.
    pub(crate) empty: Event,
    /// Connections that hold a place.
    seated: AtomicUsize,
    max: AtomicUsize,
    paused: AtomicBool,
}

#[derive(Debug, Default)]
pub(crate) struct Ledger {
    records: ById<Weak<Record>>,
    /// How many of them come from one address; kept only where that is limited.
    by_peer: HashMap<IpAddr, usize>,
    accepted: u64,
    completed: u64,
    failed: u64,
    panicked: u64,
    aborted: u64,
    detached: u64,
    rejected: u64,
    peak: u64,
    tracked: u64,
    /// Of those that ended.
    bytes_in: u64,
    bytes_out: u64,
    accept_errors: AcceptErrors,
    limited: Limited,
    /// Connections whose handlers wait for the server to close.
    insiders: u64,
    /// The drain was announced: it is to whoever comes now, too.
    told: bool,
    /// Everybody was cut: whoever comes now is, too.
    cut: bool,
    /// The server's task is gone; nobody else will note that the group is empty.
    pub(crate) orphaned: bool,
    /// Accept loops beside the server's own task. They may be about to take somebody in.
    doorkeepers: u64,
    pub(crate) stragglers: Vec<Straggler>,
    outbox: Outbox,
}

impl Group {
    pub(crate) fn new(max_connections: Option<usize>) -> Self {
        Self {
            ledger: Mutex::default(),
            subscribers: Mutex::default(),
            vacancy: Event::new(),
            empty: Event::new(),
            seated: AtomicUsize::new(0),
            max: AtomicUsize::new(max_connections.unwrap_or(usize::MAX)),
            paused: AtomicBool::new(false),
        }
    }

    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        lock(&self.ledger)
    }

    pub(crate) fn subscribe(&self) -> Receiver<ServerEvent> {
        let mut subscribers = lock(&self.subscribers);
        // What happened before is the others' to hear.
        let events = self.ledger().outbox.take();
        subscribers.tell(events);
        let receiver = subscribers.add(&mut self.ledger().outbox);
        drop(subscribers);
        self.deliver();
        receiver
    }

    pub(crate) fn publish(&self, state: State) {
        self.ledger().outbox.state(state);
        self.deliver();
    }

    /// Tells what is in the outbox. Who finds somebody at it leaves it to them: they look again
    /// after they have let go.
    fn deliver(&self) {
        while !self.ledger().outbox.is_empty() {
            let mut subscribers = match self.subscribers.try_lock() {
                Ok(subscribers) => subscribers,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
            let events = self.ledger().outbox.take();
            subscribers.tell(events);
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.seated.load(SeqCst) >= self.max.load(SeqCst)
    }

    pub(crate) fn set_max(&self, max_connections: Option<usize>) {
        self.max
            .store(max_connections.unwrap_or(usize::MAX), SeqCst);
        notify(&self.vacancy);
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused.load(SeqCst)
    }

    pub(crate) fn set_paused(&self, paused: bool) {
        self.paused.store(paused, SeqCst);
        notify(&self.vacancy);
    }

    /// Takes a peer in. From here on it is counted, wherever it ends.
    pub(crate) fn open(
        &self,
        server: &Arc<Shared>,
        transport: Transport,
        peer: Address,
        (address, shard): (u16, u16),
    ) -> Arc<Record> {
        let accepted = server.uptime();
        let mut ledger = self.ledger();
        ledger.accepted += 1;
        let mut word = bit::READER | bit::WRITER | bit::HELD;
        if ledger.told {
            word |= bit::TOLD;
            if !server.config.first_byte_grace.is_zero() {
                word |= bit::GRACE;
            }
        }
        if ledger.cut {
            word |= bit::ABORT;
        }
        let accepted = nanos(accepted);
        let record = Arc::new(Record {
            id: ledger.accepted,
            server: server.clone(),
            peer: Peer::from(peer),
            transport,
            address,
            shard,
            word: AtomicU32::new(word),
            guards: AtomicU32::new(0),
            waits: AtomicU32::new(0),
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
            wakers: Mutex::default(),
            parked: Default::default(),
            told: Event::new(),
        });
        ledger.records.push(record.id, Arc::downgrade(&record));
        ledger.peak = ledger.peak.max(ledger.records.len() as u64);
        ledger.outbox.opened(&record);
        let told = ledger.outbox.is_empty();
        drop(ledger);
        if !told {
            self.deliver();
        }
        record
    }

    pub(crate) fn is_limited(&self) -> bool {
        self.max.load(SeqCst) < usize::MAX
    }

    /// Takes a connection's place from it.
    pub(crate) fn unseat(&self, record: &Record) {
        if record.set(bit::HELD) & bit::HELD == 0 {
            self.seated.fetch_sub(1, SeqCst);
            notify(&self.vacancy);
        }
    }

    /// Gives a connection its place; `false` where there is none.
    pub(crate) fn seat(&self, record: &Record) -> bool {
        let one_more = |seated| (seated < self.max.load(SeqCst)).then_some(seated + 1);
        let seated = self.seated.fetch_update(SeqCst, SeqCst, one_more).is_ok();
        if seated {
            record.clear(bit::HELD);
        }
        seated
    }

    /// Takes a connection's part of its peer's share; `false` where that is used up.
    pub(crate) fn take_share(&self, record: &Record, share: usize) -> bool {
        let Some(ip) = record.peer().ip() else {
            return true;
        };
        let mut ledger = self.ledger();
        let count = ledger.by_peer.entry(ip).or_default();
        let has_share = *count < share;
        if has_share {
            *count += 1;
            record.set(bit::SHARES);
        }
        has_share
    }

    /// Enters the end of a connection, whose socket is closed, into the ledger, once; `true` where
    /// that leaves the server to be closed by whoever is last. Where nobody listens to what happens,
    /// nobody asks for the `uptime`.
    pub(crate) fn close(
        &self,
        entry: Entry,
        ending: Ending,
        cause: Cause,
        uptime: impl FnOnce() -> Duration,
    ) -> bool {
        let mut ledger = self.ledger();
        let mut age = Duration::ZERO;
        if ledger.outbox.is_heard() {
            // Not under the lock: the clock is somebody else's code.
            drop(ledger);
            age = uptime().saturating_sub(entry.accepted);
            ledger = self.ledger();
        }
        ledger.records.remove(entry.id);
        *match ending {
            Ending::Completed => &mut ledger.completed,
            Ending::Failed => &mut ledger.failed,
            Ending::Panicked => &mut ledger.panicked,
            Ending::Aborted => &mut ledger.aborted,
            Ending::Detached => &mut ledger.detached,
            Ending::Rejected => &mut ledger.rejected,
        } += 1;
        match cause {
            Cause::IdleTimeout => ledger.limited.idle += 1,
            Cause::FirstByteTimeout => ledger.limited.first_byte += 1,
            Cause::MaxAge => ledger.limited.age += 1,
            _ => {}
        }
        if let Some(ip) = entry.shares {
            if let Some(count) = ledger.by_peer.get_mut(&ip) {
                *count -= 1;
                if *count == 0 {
                    ledger.by_peer.remove(&ip);
                }
            }
        }
        if entry.insider {
            ledger.insiders -= 1;
        }
        if entry.seated {
            self.seated.fetch_sub(1, SeqCst);
        }
        ledger.outbox.closed(&entry, cause, age);
        let quiet = ledger.is_quiet();
        let last = ledger.orphaned && ledger.is_empty();
        let told = ledger.outbox.is_empty();
        drop(ledger);
        if !told {
            self.deliver();
        }
        notify(&self.vacancy);
        if quiet {
            notify(&self.empty);
        }
        last
    }

    /// Announces the drain to everybody inside, and to whoever comes through the sweep.
    pub(crate) fn tell_all(&self, uptime: Duration) {
        self.ledger().told = true;
        self.tell_open(uptime);
    }

    /// Announces the drain to those inside now.
    pub(crate) fn tell_open(&self, uptime: Duration) {
        for record in self.records() {
            record.tell(uptime);
        }
    }

    /// Cuts everybody, and whoever comes from now on.
    pub(crate) fn abort_all(&self) {
        self.ledger().cut = true;
        self.abort_open();
    }

    /// Cuts those inside now.
    pub(crate) fn abort_open(&self) {
        for record in self.records() {
            record.abort();
        }
    }

    pub(crate) fn find(&self, id: u64) -> Option<Arc<Record>> {
        self.ledger().records.get(id)?.upgrade()
    }

    /// Strong for a moment only: a record's last owner closes its socket.
    fn records(&self) -> Vec<Arc<Record>> {
        self.ledger()
            .records
            .values()
            .filter_map(Weak::upgrade)
            .collect()
    }

    /// Who is left, in the order they came.
    pub(crate) fn stragglers(&self, uptime: Duration) -> Vec<Straggler> {
        self.records()
            .iter()
            .map(|record| record.straggler(uptime))
            .collect()
    }

    /// Counts those that cannot be dropped, because they block their threads or wait behind one
    /// that does, as aborted.
    pub(crate) fn write_off(&self, uptime: Duration) {
        for record in self.records() {
            let blocked = record.is_inside();
            let Some(entry) = self.begin_end(&record) else {
                continue;
            };
            if blocked {
                let mut ledger = self.ledger();
                if let Some(straggler) = ledger.stragglers.iter_mut().find(|s| s.id == record.id) {
                    straggler.waiting = Waiting::Blocked;
                }
            }
            self.close(entry, Ending::Aborted, Cause::Aborted, || uptime);
        }
        let mut ledger = self.ledger();
        ledger.tracked = 0;
    }

    /// The connections whose handlers a thread is inside of now, and whom nobody has been told of,
    /// each with the number of its poll.
    pub(crate) fn inside(&self) -> Vec<(u64, u32)> {
        let mut inside = Vec::new();
        for record in self.records() {
            if record.is_inside() && !record.has(bit::BLOCKED) {
                inside.push((record.id, record.polls.load(Relaxed)));
            }
        }
        inside
    }

    /// Tells the operator of handlers that block their threads, once each: those that are where
    /// they were. The others had just something to do.
    pub(crate) fn name_blocked(&self, inside: &[(u64, u32)]) {
        for &(id, polls) in inside {
            let Some(record) = self.find(id) else {
                continue;
            };
            if polls % 2 == 1 && record.polls.load(Relaxed) == polls {
                record.set(bit::BLOCKED);
                log::warn!(
                    target: "gracious", conn = record.id, peer:% = record.peer();
                    "the handler of connection {} from {} blocks a thread", record.id, record.peer(),
                );
            }
        }
    }

    pub(crate) fn count_accept_error(&self, count: impl FnOnce(&mut AcceptErrors)) {
        count(&mut self.ledger().accept_errors);
    }

    pub(crate) fn post_doorkeeper(&self) {
        self.ledger().doorkeepers += 1;
    }

    pub(crate) fn relieve_doorkeeper(&self) {
        self.ledger().doorkeepers -= 1;
        notify(&self.vacancy);
        notify(&self.empty);
    }

    /// A future that is awaited at a drain, and counted apart.
    pub(crate) fn track(&self) {
        self.ledger().tracked += 1;
    }

    pub(crate) fn untrack(&self) {
        let mut ledger = self.ledger();
        ledger.tracked = ledger.tracked.saturating_sub(1);
        let quiet = ledger.is_quiet();
        drop(ledger);
        if quiet {
            notify(&self.empty);
        }
    }

    /// A handler begins to wait for its own server; `false` where its connection is no more.
    pub(crate) fn enter(&self, record: &Record) -> bool {
        let mut ledger = self.ledger();
        let word = record.set(bit::INSIDER);
        if word & bit::COUNTED != 0 {
            return false;
        }
        record.waits.fetch_add(1, Relaxed);
        if word & bit::INSIDER == 0 {
            ledger.insiders += 1;
        }
        drop(ledger);
        notify(&self.empty);
        true
    }

    pub(crate) fn leave(&self, record: &Record) {
        let mut ledger = self.ledger();
        if record.waits.fetch_sub(1, Relaxed) > 1 {
            return;
        }
        // Where the connection's end has come in between, `close` takes the insider off.
        if record.clear(bit::INSIDER) & bit::COUNTED == 0 {
            ledger.insiders -= 1;
        }
    }

    pub(crate) fn stats(&self) -> Stats {
        let ledger = self.ledger();
        let records: Vec<_> = ledger.records.values().filter_map(Weak::upgrade).collect();
        let stats = ledger.stats(&records);
        // The records go after the lock: the last owner of one runs destructors.
        drop(ledger);
        stats
    }

    pub(crate) fn connections(&self, uptime: Duration) -> Vec<ConnectionInfo> {
        let info = |record: Arc<Record>| ConnectionInfo {
            id: record.id,
            peer: record.peer(),
            age: record.age(uptime),
            busy: record.is_busy(),
            waiting: record.waiting(),
            bytes_in: record.received.load(Relaxed),
            bytes_out: record.sent.load(Relaxed),
        };
        self.records().into_iter().map(info).collect()
    }
}

impl Ledger {
    pub(crate) fn active(&self) -> u64 {
        self.records.len() as u64
    }

    /// Nobody is left, or only those who wait for exactly that.
    pub(crate) fn is_quiet(&self) -> bool {
        self.active() <= self.insiders && self.tracked == 0 && !self.is_attended()
    }

    /// Connections and tracked futures.
    pub(crate) fn left(&self) -> u64 {
        self.active() + self.tracked
    }

    /// Nobody is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.records.is_empty() && self.tracked == 0 && !self.is_attended()
    }

    /// Somebody may yet be taken in.
    pub(crate) fn is_attended(&self) -> bool {
        self.doorkeepers > 0
    }

    fn stats(&self, records: &[Arc<Record>]) -> Stats {
        let moved = |count: fn(&Record) -> &AtomicU64| -> u64 {
            // The bytes of the others are in the ledger.
            let open = records.iter().filter(|record| !record.has(bit::COUNTED));
            open.map(|record| count(record).load(Relaxed)).sum()
        };
        let errors = self.accept_errors;
        Stats {
            accepted: self.accepted,
            completed: self.completed,
            failed: self.failed,
            panicked: self.panicked,
            aborted: self.aborted,
            detached: self.detached,
            rejected: self.rejected,
            active: self.active(),
            peak: self.peak,
            tracked: self.tracked,
            accept_errors: errors.peer + errors.shortage + errors.listener,
            accept_errors_by: errors,
            limited: self.limited,
            bytes_in: self.bytes_in + moved(|record| &record.received),
            bytes_out: self.bytes_out + moved(|record| &record.sent),
        }
    }
}

/// What the ledger needs of a connection that ends, apart from its record: that is dropped first,
/// so that the socket is closed when the end is counted.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) id: u64,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    pub(crate) accepted: Duration,
    seated: bool,
    insider: bool,
    shares: Option<IpAddr>,
}

impl Group {
    /// Begins the end of a connection; `None` where that has been done. Its bytes move from its
    /// record to the ledger, so that no sum ever goes back.
    pub(crate) fn begin_end(&self, record: &Record) -> Option<Entry> {
        let mut ledger = self.ledger();
        let word = record.set(bit::COUNTED);
        if word & bit::COUNTED != 0 {
            return None;
        }
        let entry = Entry {
            id: record.id,
            bytes_in: record.received.load(Relaxed),
            bytes_out: record.sent.load(Relaxed),
            accepted: record.accepted(),
            seated: word & bit::HELD == 0,
            insider: word & bit::INSIDER != 0,
            shares: (word & bit::SHARES != 0)
                .then(|| record.peer().ip())
                .flatten(),
        };
        ledger.bytes_in += entry.bytes_in;
        ledger.bytes_out += entry.bytes_out;
        Some(entry)
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
pub(crate) fn wake(waker: Waker) {
    if catch_unwind(AssertUnwindSafe(|| waker.wake())).is_err() {
        log::error!(target: "gracious", "a waker panicked");
    }
}

fn nanos(uptime: Duration) -> u64 {
    u64::try_from(uptime.as_nanos()).unwrap_or(u64::MAX)
}
