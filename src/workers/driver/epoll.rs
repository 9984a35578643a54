//! Readiness, edge by edge: a socket is registered once, for its whole life.
//!
//! 1. An edge counts a tick up, then wakes. Who finds the socket empty notes the tick that it had
//!    seen before it looked: as long as there is no other, there is nothing to read.
//! 2. Who waits leaves its waker first and looks at the readiness again afterwards.
//! 3. A key names a slot and the id of its tenant, so an event that is left over from a former
//!    tenant finds nobody.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::task::{Context, Poll, Waker};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags};

use super::super::pool;
use crate::connection::Socket;
use crate::shared::connection::{Record, Who};
use crate::sync::{lock, wake_by_ref};

/// How many events one wait can bring.
const EVENTS: usize = 1024;

// The upper half of a record's word.

/// The peer has ended, or the connection is broken: what is read comes to an end.
const END: u64 = 1 << 32;
/// There was no room to write.
const FULL: u64 = 1 << 33;
/// Room to write is reported.
const ROOM: u64 = 1 << 34;
/// One edge.
const TICK: u64 = 1 << 35;
/// A number of edges that there never is.
const NEVER: u32 = u32::MAX;

/// How many edges there have been.
fn ticks(word: u64) -> u32 {
    (word / TICK) as u32
}

/// Marks the key of a listener.
const LISTENER: u32 = 1 << 31;
/// No place among the tenants.
const NOWHERE: u32 = u32::MAX;
/// The key of the poller's own wake-up.
const WAKE: u64 = u64::MAX;

/// One epoll, and who is registered with it.
#[derive(Debug)]
pub(crate) struct Poller {
    epoll: OwnedFd,
    wake: OwnedFd,
    tenants: Mutex<Tenants>,
}

#[derive(Debug, Default)]
struct Tenants {
    slots: Vec<Option<Arc<Record>>>,
    free: Vec<u32>,
    listeners: Vec<Arc<Watch>>,
}

/// What one wait brought.
pub(crate) struct Batch {
    events: Vec<Event>,
    wakers: Vec<Waker>,
}

impl Batch {
    pub(crate) fn new() -> Self {
        Self {
            events: Vec::with_capacity(EVENTS),
            wakers: Vec::with_capacity(EVENTS),
        }
    }
}

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        // Edge-triggered, and so never read: each write is an edge.
        epoll::add(
            &epoll,
            &wake,
            EventData::new_u64(WAKE),
            EventFlags::IN | EventFlags::ET,
        )?;
        Ok(Self {
            epoll,
            wake,
            tenants: Mutex::default(),
        })
    }

    /// Wakes whoever waits, or the next to wait.
    pub(crate) fn wake(&self) {
        // It fails only where 2^64 - 1 wake-ups are pending.
        let _ignored = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// How many wake-ups were written so far, which nobody else reads.
    #[cfg(test)]
    pub(super) fn wakes(&self) -> u64 {
        let mut count = [0; 8];
        match rustix::io::read(&self.wake, &mut count) {
            Ok(_) => u64::from_ne_bytes(count),
            Err(_) => 0,
        }
    }

    /// Waits for events, for ever or not at all, and wakes whom they are for. Says how many.
    pub(crate) fn wait(&self, batch: &mut Batch, block: bool) -> usize {
        const NOT_AT_ALL: Timespec = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let Batch { events, wakers } = batch;
        events.clear();
        let timeout = (!block).then_some(&NOT_AT_ALL);
        // A signal ends the wait early, with no event.
        if epoll::wait(&self.epoll, spare_capacity(events), timeout).is_err() {
            return 0;
        }
        if events.is_empty() {
            return 0;
        }
        {
            let tenants = self.tenants();
            for event in &*events {
                let (data, flags) = (event.data, event.flags);
                let index = data.u64() as u32;
                if data.u64() == WAKE {
                    continue;
                }
                if index & LISTENER != 0 {
                    let watch = tenants.listeners.get((index & !LISTENER) as usize);
                    wakers.extend(watch.and_then(|watch| watch.report(&self.epoll)));
                    continue;
                }
                if let Some(Some(record)) = tenants.slots.get(index as usize) {
                    if key(record, index) == data.u64() {
                        edge(&record.word, flags, |who| {
                            match record.home(who) {
                                // Of a task of the pool's, which this only queues.
                                Some(home) => home.wake_by_ref(),
                                None => wakers.extend(record.away(who)),
                            }
                        });
                    }
                }
            }
        }
        // After the lock, since a waker is somebody else's code.
        for waker in wakers.drain(..) {
            wake_by_ref(&waker);
        }
        events.len()
    }

    /// Registers a connection's socket, for its whole life.
    pub(crate) fn enroll(&self, record: &Arc<Record>, slot: &Slot) -> io::Result<()> {
        let index = {
            let mut tenants = self.tenants();
            let index = match tenants.free.pop() {
                Some(index) => index,
                None => {
                    tenants.slots.push(None);
                    tenants.slots.len() as u32 - 1
                }
            };
            tenants.slots[index as usize] = Some(record.clone());
            index
        };
        slot.index.store(index, Relaxed);
        let key = EventData::new_u64(key(record, index));
        let registered = epoll::add(&self.epoll, slot, key, INPUT);
        if registered.is_err() {
            self.dismiss(slot, false);
        }
        Ok(registered?)
    }

    /// Forgets a connection. Closing its socket takes it out of the epoll, unless it is `shared`:
    /// a descriptor that somebody duplicated outlives the close.
    pub(crate) fn dismiss(&self, slot: &Slot, shared: bool) {
        let index = slot.index.swap(NOWHERE, SeqCst);
        if index == NOWHERE {
            return;
        }
        let record = {
            let mut tenants = self.tenants();
            let record = tenants.slots[index as usize].take();
            tenants.free.push(index);
            record
        };
        if shared {
            let _ignored = epoll::delete(&self.epoll, slot);
        }
        drop(record);
    }

    /// Registers a listener: unlike a connection it is reported as long as somebody is queued.
    pub(crate) fn watch<L: AsFd + Send + Sync + 'static>(
        &self,
        listener: &Arc<L>,
    ) -> io::Result<Arc<Watch>> {
        let watch = {
            let mut tenants = self.tenants();
            let index = tenants.listeners.len() as u32;
            let listener: Weak<L> = Arc::downgrade(listener);
            let watch = Arc::new(Watch {
                key: u64::from(index | LISTENER),
                state: Mutex::new(Watching {
                    listener,
                    reported: false,
                    muted: false,
                    waker: None,
                }),
            });
            tenants.listeners.push(watch.clone());
            watch
        };
        let key = EventData::new_u64(watch.key);
        epoll::add(&self.epoll, listener, key, EventFlags::IN)?;
        Ok(watch)
    }

    /// Waits until somebody may be queued at a listener.
    pub(crate) fn poll_queued(
        &self,
        listener: &impl AsFd,
        watch: &Watch,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = watch.state();
        if std::mem::take(&mut state.reported) {
            return Poll::Ready(Ok(()));
        }
        if state.muted {
            watch.ask_for(&self.epoll, listener, EventFlags::IN)?;
            state.muted = false;
        }
        let old = state.waker.replace(cx.waker().clone());
        drop(state);
        drop(old);
        Poll::Pending
    }

    /// Takes a listener out, which others may hold open. A waker that is left in its watch would
    /// keep the task, and with it the pool and this poller, for ever.
    pub(crate) fn unwatch(&self, listener: &impl AsFd, watch: &Watch) {
        let _ignored = epoll::delete(&self.epoll, listener);
        let waker = {
            let mut state = watch.state();
            state.listener = Weak::<OwnedFd>::new();
            state.waker.take()
        };
        drop(waker);
    }

    fn tenants(&self) -> MutexGuard<'_, Tenants> {
        lock(&self.tenants)
    }
}

/// Names a slot and who is in it, by its id in the server: an event that is left over from another
/// finds that it is not.
fn key(record: &Record, index: u32) -> u64 {
    record.id << 32 | u64::from(index)
}

/// Urgent data is asked for because of what it does to reads: see [`Slot::poll_read`].
const INPUT: EventFlags = EventFlags::IN
    .union(EventFlags::RDHUP)
    .union(EventFlags::PRI)
    .union(EventFlags::ET);

/// Who is told that somebody is queued at a listener.
#[derive(Debug)]
pub(crate) struct Watch {
    key: u64,
    state: Mutex<Watching>,
}

#[derive(Debug)]
struct Watching {
    /// Strong under the lock only, so that the listener is closed by its owner.
    listener: Weak<dyn AsFd + Send + Sync>,
    /// Somebody was queued, and nobody has looked since.
    reported: bool,
    /// Nobody waits for reports, so none are made: they would come at every wait.
    muted: bool,
    waker: Option<Waker>,
}

impl Watch {
    /// Somebody is queued: says whom to wake.
    fn report(&self, epoll: &OwnedFd) -> Option<Waker> {
        let mut state = self.state();
        if state.reported && state.waker.is_none() && !state.muted {
            if let Some(listener) = state.listener.upgrade() {
                // Of an end, which is reported in any case, the edge alone; asking is one more.
                state.muted = self.ask_for(epoll, &*listener, EventFlags::ET).is_ok();
            }
        }
        state.reported = true;
        state.waker.take()
    }

    fn ask_for(
        &self,
        epoll: &OwnedFd,
        listener: &(impl AsFd + ?Sized),
        flags: EventFlags,
    ) -> io::Result<()> {
        let key = EventData::new_u64(self.key);
        Ok(epoll::modify(epoll, listener, key, flags)?)
    }

    fn state(&self) -> MutexGuard<'_, Watching> {
        lock(&self.state)
    }
}

/// A connection's socket, and what is known of its readiness beside its record's word.
#[derive(Debug)]
pub(crate) struct Slot {
    socket: Socket,
    poller: Arc<Poller>,
    /// How many edges there had been when the socket was found empty, stored by who reads alone.
    drained: AtomicU32,
    /// Its place among the tenants.
    index: AtomicU32,
}

impl Slot {
    pub(crate) fn new(socket: Socket, poller: Arc<Poller>) -> Self {
        Self {
            socket,
            poller,
            // Who connects has mostly something to say: by the time the handler reads it is there,
            // and a look saves the wait for the event that would say so.
            drained: AtomicU32::new(NEVER),
            index: AtomicU32::new(NOWHERE),
        }
    }

    pub(crate) fn socket(&self) -> &Socket {
        &self.socket
    }

    pub(crate) fn poller(&self) -> &Poller {
        &self.poller
    }

    /// Reads, if by the word that was `seen` there may be something; with `look`, in any case. On
    /// `Pending` the caller leaves its waker and asks [`may_read`](Self::may_read) of a newer word.
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
                    pool::has_read();
                    // A short read has emptied a TCP socket; what comes later is an edge. Not so at
                    // an end, which is no edge of its own if it came with data, and not a Unix
                    // socket, where a read stops after a message that carries descriptors.
                    let short = n > 0 && n < buf.len() && seen & END == 0;
                    if short && matches!(self.socket, Socket::Tcp(_)) {
                        self.drained.store(ticks(seen), Relaxed);
                    }
                    return Poll::Ready(Ok(n));
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.drained.store(ticks(seen), Relaxed);
                    return Poll::Pending;
                }
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    /// Whether by this word a read is worth trying.
    #[inline]
    pub(crate) fn may_read(&self, word: u64) -> bool {
        ticks(word) != self.drained.load(Relaxed)
    }

    /// Writes what fits. On `Pending` the caller leaves its waker and asks
    /// [`may_write`](Self::may_write).
    #[inline]
    pub(crate) fn poll_write(
        &self,
        record: &Record,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            let seen = record.word();
            if seen & FULL != 0 {
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
                    if fill(&record.word, seen) {
                        if seen & ROOM == 0 {
                            // Asked for by the first who needs it; room there is now is an edge.
                            self.ask_for_room(record)?;
                        }
                        return Poll::Pending;
                    }
                }
                sent => return Poll::Ready(Ok(sent?)),
            }
        }
    }

    /// Whether by this word a write is worth trying.
    #[inline]
    pub(crate) fn may_write(word: u64) -> bool {
        word & FULL == 0
    }

    fn ask_for_room(&self, record: &Record) -> io::Result<()> {
        let key = EventData::new_u64(key(record, self.index.load(Relaxed)));
        let flags = INPUT | EventFlags::OUT;
        Ok(epoll::modify(&self.poller.epoll, self, key, flags)?)
    }
}

/// An event: sets what it says, and says whom it concerns.
#[inline]
fn edge(word: &AtomicU64, flags: EventFlags, mut concerns: impl FnMut(Who)) {
    // A read stops at urgent data, however much there is behind it; as at an end, reads then go on
    // until there is nothing.
    let ended =
        flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR | EventFlags::PRI);
    let readable = ended || flags.contains(EventFlags::IN);
    let writable = flags.intersects(EventFlags::OUT | EventFlags::HUP | EventFlags::ERR);
    let set = END * u64::from(ended);
    let clear = FULL * u64::from(writable);
    let mut seen = word.load(Relaxed);
    while let Err(newer) = word.compare_exchange_weak(
        seen,
        (seen.wrapping_add(TICK) | set) & !clear,
        SeqCst,
        Relaxed,
    ) {
        seen = newer;
    }
    if readable {
        concerns(Who::Reader);
    }
    // Room is reported with every input once it was asked for.
    if writable && seen & FULL != 0 {
        concerns(Who::Writer);
    }
}

/// Notes that there was no room, unless there has been an edge since `seen`; `false` then.
fn fill(word: &AtomicU64, seen: u64) -> bool {
    let mut now = seen;
    // Somebody may have set a bit of their own, which is no edge.
    while ticks(now) == ticks(seen) {
        match word.compare_exchange_weak(now, now | FULL | ROOM, SeqCst, Acquire) {
            Ok(_) => return true,
            Err(newer) => now = newer,
        }
    }
    false
}

impl AsFd for Slot {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
