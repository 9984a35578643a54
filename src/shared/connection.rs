//! What a connection shares with its server.
//!
//! 1. On the hot path no lock is taken: each half of a connection stores plain numbers of its own,
//!    and reads one word (`socket::readiness`).
//! 2. A waiter registers its waker first and looks at the word and the counts afterwards; whoever
//!    changes them changes them first and wakes afterwards. With the two acts swapped on either side
//!    a change between them would wake nobody.
//! 3. The socket is closed by the last owner of a `ConnectionState`. So strong references outside of
//!    the task and the halves are dropped soon.

use std::any::Any;
use std::cell::Cell;
use std::io;
use std::net::SocketAddrV4;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicU32, AtomicU64, fence};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Waker};
use std::thread;
use std::time::Duration;

use event_listener::EventListener;

use super::Shared;
use super::cold::{Cold, ColdLocked, TaskCold};
use crate::address::{Address, NO_ADDRESS, lengthen, shorten};
use crate::report::{Straggler, Waiting};
use crate::socket::readiness::{HalfState, Readiness, Waiter, flag};
use crate::sync::{MutexGuard, assert_unlocked, listen, lock, nanos, notify, wake_by_ref};
#[cfg(feature = "_tls")]
use crate::tls::{Tls, TlsState};
use crate::transport::Transport;

/// What a connection, its task and its server know of it. 136 bytes, and what few need apart.
#[derive(Debug)]
pub(crate) struct ConnectionState {
    pub(super) readiness: Readiness,
    pub(crate) server: Arc<Shared>,
    pub(crate) transport: Transport,
    /// Nanoseconds from the server's bind to the accept, as all times of a connection.
    accepted: u64,
    /// Bytes read from the kernel, stored by the read half alone.
    pub(crate) received: AtomicU64,
    /// What had been received, and consumed, when the last write began that was completed or had to
    /// wait; stored by the write half alone.
    pub(super) answered: AtomicU64,
    /// Bytes written to the kernel, stored by the write half alone.
    pub(crate) sent: AtomicU64,
    pub(super) cold: OnceLock<Box<Cold>>,
    /// The peer; a longer address is in the cold data.
    peer: SocketAddrV4,
    /// Which of the server's addresses the peer connected to.
    pub(super) address: u16,
    /// Counted up by the task when its thread enters the handler and when it leaves it: odd inside.
    handler_steps: AtomicU32,
    /// Which of the server's pools serves this connection, where there are any.
    pub(crate) shard: u16,
    pub(crate) reader: HalfState,
    pub(crate) writer: HalfState,
}

/// An accepted peer, before it has a state.
pub(crate) struct Arrival {
    pub(crate) transport: Transport,
    pub(crate) peer: Address,
    pub(crate) address: u16,
    pub(crate) shard: u16,
}

thread_local! {
    /// The connection whose handler this thread is in; for comparison only.
    static IN_HANDLER_OF: Cell<*const ConnectionState> = const { Cell::new(std::ptr::null()) };
}

impl ConnectionState {
    #[inline]
    pub(crate) fn new(
        id: u64,
        server: Arc<Shared>,
        arrival: Arrival,
        flags: u64,
        accepted: Duration,
    ) -> Self {
        let accepted = nanos(accepted);
        let (peer, is_mapped, long) = match shorten(arrival.peer) {
            Ok((peer, is_mapped)) => (peer, is_mapped, None),
            Err(long) => (NO_ADDRESS, false, Some(long)),
        };
        let cold = OnceLock::new();
        if long.is_some() || flags & flag::WATCHED != 0 {
            let _first = cold.set(Box::new(Cold {
                peer: long,
                last_activity: AtomicU64::new(accepted),
                ..Cold::default()
            }));
        }
        let mapped = if is_mapped { flag::MAPPED } else { 0 };
        Self {
            readiness: Readiness::new(id, flags | mapped),
            server,
            transport: arrival.transport,
            accepted,
            received: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            cold,
            peer,
            address: arrival.address,
            handler_steps: AtomicU32::new(0),
            shard: arrival.shard,
            reader: HalfState::default(),
            writer: HalfState::default(),
        }
    }

    #[inline]
    pub(crate) fn id(&self) -> u64 {
        self.readiness.id
    }

    #[inline]
    pub(crate) fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    #[inline]
    pub(crate) fn word(&self) -> u64 {
        self.readiness.word()
    }

    #[inline]
    pub(crate) fn has(&self, flags: u64) -> bool {
        self.readiness.has(flags)
    }

    /// Sets flags; gives the word as it was.
    pub(crate) fn set(&self, flags: u64) -> u64 {
        self.readiness.set(flags)
    }

    /// Clears flags; gives the word as it was.
    pub(crate) fn clear(&self, flags: u64) -> u64 {
        self.readiness.clear(flags)
    }

    /// The client: the peer, or whom its PROXY header names.
    pub(crate) fn peer(&self) -> Address {
        #[cfg(feature = "proxy")]
        if let Some(client) = self.proxy_header().and_then(|it| it.source.clone()) {
            return client;
        }
        self.socket_peer()
    }

    /// The peer at the other end of the socket.
    pub(crate) fn socket_peer(&self) -> Address {
        let long = self.cold.get().and_then(|cold| cold.peer.clone());
        long.unwrap_or_else(|| lengthen(self.peer, self.has(flag::MAPPED)))
    }

    pub(crate) fn local_addr(&self) -> io::Result<Address> {
        let own = self.transport.local_addr()?;
        Ok(own.unwrap_or_else(|| self.server.address(self.address)))
    }

    /// Registers `cx`'s waker. If it is the task's first and registered already, nothing is written.
    #[inline]
    pub(crate) fn register(&self, waiter: Waiter, cx: &Context<'_>) {
        let (is_first, is_registered) = self.readiness.is_registered(waiter, cx.waker());
        if !is_registered {
            self.register_slow(waiter, cx.waker(), is_first);
        }
    }

    #[cold]
    fn register_slow(&self, waiter: Waiter, waker: &Waker, is_first: bool) {
        if is_first {
            self.set(waiter.task_waker_flag());
            self.clear_other_waker(waiter);
        } else if matches!(waiter, Waiter::Task) && self.readiness.set_task_waker(waker) {
        } else {
            // Cloned and dropped outside the lock: a waker is code of others, and to drop one can run
            // a task's destructor.
            let waker = waker.clone();
            let old = self.cold_locked().other_wakers[waiter as usize].replace(waker);
            self.set(waiter.other_waker_flag());
            assert_unlocked();
            drop(old);
        }
        // Pairs with the fence in `wake`: either `wake` sees this waker, or the caller's next look
        // sees what was changed before `wake`.
        fence(SeqCst);
    }

    /// Forgets the waker that differs from the task's first, of a waiter that is gone or is
    /// registered with the task's first from now on.
    #[inline]
    pub(crate) fn clear_other_waker(&self, waiter: Waiter) {
        if self.has(waiter.other_waker_flag()) {
            self.take_other_waker(waiter);
        }
    }

    #[cold]
    fn take_other_waker(&self, waiter: Waiter) {
        self.clear(waiter.other_waker_flag());
        let old = self.cold_locked().other_wakers[waiter as usize].take();
        assert_unlocked();
        drop(old);
    }

    /// Takes the waker of a waiter that is registered with another than the task's first, to wake it
    /// without a lock. A waiter that was woken registers anew when it is polled.
    fn other_waker(&self, waiter: Waiter) -> Option<Waker> {
        if self.has(waiter.other_waker_flag()) {
            self.cold_locked().other_wakers[waiter as usize].take()
        } else {
            None
        }
    }

    pub(crate) fn wake(&self, waiter: Waiter) {
        // Pairs with the fence in `register_slow`: a waiter that registers after this look for its
        // waker sees what was changed before it.
        fence(SeqCst);
        if let Some(waker) = self.readiness.task_waker(waiter) {
            wake_by_ref(waker);
        } else if let Some(waker) = self.other_waker(waiter) {
            wake_by_ref(&waker);
        }
    }

    #[cfg(feature = "_tls")]
    pub(super) fn existing_tls(&self) -> Option<&TlsState> {
        self.cold.get()?.tls.get().map(|tls| &**tls)
    }

    /// Keeps the connection's TLS; `false` where there is one already.
    #[cfg(feature = "_tls")]
    pub(super) fn set_tls(&self, tls: TlsState) -> bool {
        self.cold().tls.set(Box::new(tls)).is_ok()
    }

    pub(super) fn cold(&self) -> &Cold {
        self.cold.get_or_init(Box::default)
    }

    pub(super) fn cold_locked(&self) -> MutexGuard<'_, ColdLocked> {
        lock(self.cold().locked.get_or_init(Box::default))
    }

    /// The cold data if there is any yet.
    pub(super) fn existing_cold(&self) -> Option<MutexGuard<'_, ColdLocked>> {
        Some(lock(self.cold.get()?.locked.get()?))
    }

    /// Runs `with` on the task's cold data, outside the lock: timers and wakers are code of others.
    pub(crate) fn with_task_cold<T>(&self, with: impl FnOnce(&mut TaskCold) -> T) -> T {
        let mut task = self.take_task_cold().unwrap_or_default();
        assert_unlocked();
        let done = with(&mut task);
        self.cold_locked().task = Some(task);
        done
    }

    pub(crate) fn take_task_cold(&self) -> Option<Box<TaskCold>> {
        self.existing_cold()?.task.take()
    }

    /// Begins to listen for a request to end; the caller looks afterwards whether there has been one.
    pub(crate) fn listen_for_drain(&self) -> EventListener {
        let event = self
            .cold_locked()
            .drain_event
            .get_or_insert_default()
            .clone();
        // Outside the lock, as `notify` asks for.
        listen(&event)
    }

    /// Notifies the futures that listen for a request to end.
    fn notify_listeners(&self) {
        let event = self
            .existing_cold()
            .and_then(|cold| cold.drain_event.clone());
        if let Some(event) = event {
            notify(&event);
        }
    }

    /// Asks this connection to come to an end, whether or not it has had time for its first byte.
    pub(crate) fn notify_end(&self) {
        self.set(flag::DRAINING);
        self.notify_listeners();
        self.wake(Waiter::Reader);
    }

    /// Asks this connection to come to an end. One that has just been accepted may still send its
    /// first byte.
    pub(crate) fn notify_drain(&self, uptime: Duration) {
        let is_fresh = self.is_fresh(uptime);
        self.set(if is_fresh {
            flag::DRAINING | flag::FIRST_BYTE_GRACE
        } else {
            flag::DRAINING
        });
        self.notify_listeners();
        self.wake(Waiter::Reader);
        if is_fresh || self.has(flag::QUIET | flag::NEVER_IDLE) {
            // The task ends the grace, or the wait for quiet, when its time has come; a handler that
            // is never idle is told.
            self.wake(Waiter::Task);
        }
    }

    /// Aborts the connection under whatever holds it.
    pub(crate) fn abort(&self) {
        if self.server.is_forked() {
            return;
        }
        // A detached socket is no longer the server's.
        if self.set(flag::ABORT) & (flag::ABORT | flag::DETACHED) == 0 {
            self.transport.shutdown_both();
            self.notify_listeners();
            for waiter in [Waiter::Task, Waiter::Reader, Waiter::Writer] {
                self.wake(waiter);
            }
            // After ABORT is set, as the task looks for ABORT when it sets CLOSING: one sees the other.
            if self.has(flag::CLOSING) {
                self.server.lingering.of(self.shard).hurry();
            }
        }
    }

    /// Ends the time in which the first byte may still come.
    pub(crate) fn end_first_byte_grace(&self) {
        self.clear(flag::FIRST_BYTE_GRACE);
        self.wake(Waiter::Reader);
    }

    /// Ends the connection's reads and writes with a time-out.
    pub(crate) fn expire(&self) {
        self.set(flag::EXPIRED);
        self.wake(Waiter::Reader);
        self.wake(Waiter::Writer);
    }

    /// Whether this is the waker that the connection's own task was polled with last.
    pub(crate) fn is_own_task(&self, waker: &Waker) -> bool {
        match self.readiness.task_waker(Waiter::Task) {
            Some(own) => own.will_wake(waker),
            None => {
                let other = self.other_waker(Waiter::Task);
                other.is_some_and(|own| own.will_wake(waker))
            }
        }
    }

    /// Runs what the task does in the handler; gives the panic if there was one.
    #[inline]
    pub(crate) fn in_handler<T>(&self, run: impl FnOnce() -> T) -> thread::Result<T> {
        assert_unlocked();
        self.step();
        let outer = IN_HANDLER_OF.replace(self);
        let done = catch_unwind(AssertUnwindSafe(run));
        IN_HANDLER_OF.set(outer);
        self.step();
        done
    }

    /// Has the task look at the word. A task that is in its handler does so in any case.
    pub(crate) fn wake_task(&self) {
        if !std::ptr::eq(IN_HANDLER_OF.get(), self) {
            self.wake(Waiter::Task);
        }
    }

    /// How often the task's thread has entered or left the handler.
    pub(crate) fn handler_steps(&self) -> u32 {
        self.handler_steps.load(Relaxed)
    }

    /// The task's thread enters the handler, or leaves it.
    #[inline]
    fn step(&self) {
        let steps = self.handler_steps();
        self.handler_steps.store(steps.wrapping_add(1), Relaxed);
    }

    pub(crate) fn is_in_handler(&self) -> bool {
        self.handler_steps() % 2 == 1
    }

    /// Changes how many futures of the handler wait for the server to close; gives the new number.
    pub(crate) fn count_self_waits(&self, change: impl FnOnce(u32) -> u32) -> u32 {
        let mut cold = self.cold_locked();
        cold.self_waits = change(cold.self_waits);
        cold.self_waits
    }

    pub(crate) fn age(&self, uptime: Duration) -> Duration {
        uptime.saturating_sub(Duration::from_nanos(self.accepted))
    }

    /// The uptime at which this connection was accepted.
    pub(crate) fn accepted(&self) -> Duration {
        Duration::from_nanos(self.accepted)
    }

    /// Whether it came through a listener that stays open through a drain.
    #[inline]
    pub(crate) fn is_last(&self) -> bool {
        self.server.keeps_open(self.address)
    }

    /// Whether the server was asked to stop, the lame duck's time included, and that concerns this
    /// connection already.
    #[cfg(feature = "http")]
    pub(crate) fn is_server_stopping(&self) -> bool {
        self.server.is_stopping(self.address)
    }

    /// The TLS of the listener that this connection came through.
    #[cfg(feature = "_tls")]
    pub(crate) fn listeners_tls(&self) -> Option<Tls> {
        self.server.tls(self.address)
    }

    pub(crate) fn waiting(&self) -> Waiting {
        let word = self.word();
        #[cfg(feature = "_handshake")]
        if let Some(handshake) = self.handshake().filter(|_| word & flag::CLOSING == 0) {
            return handshake;
        }
        if word & flag::CLOSING != 0 {
            Waiting::Close
        } else if word & flag::QUEUED != 0 {
            Waiting::Limit
        } else if self.writer.has(HalfState::WAITING) {
            Waiting::Write
        } else if self.reader.has(HalfState::WAITING) {
            Waiting::Read
        } else {
            Waiting::Handler
        }
    }

    pub(crate) fn straggler(&self, uptime: Duration) -> Straggler {
        Straggler {
            id: self.id(),
            peer: self.peer(),
            age: self.age(uptime),
            busy: self.is_busy(),
            waiting: self.waiting(),
        }
    }

    /// Begins to be told about this connection's socket.
    pub(crate) fn register_socket(self: &Arc<Self>) -> io::Result<()> {
        // The driver keeps what it cannot name: it lies below this layer.
        let any: Arc<dyn Any + Send + Sync> = self.clone();
        self.transport.register(any)
    }
}

#[cfg(target_os = "linux")]
impl crate::workers::Registered for ConnectionState {
    fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    fn other_waker(&self, waiter: Waiter) -> Option<Waker> {
        self.other_waker(waiter)
    }
}

impl Drop for ConnectionState {
    fn drop(&mut self) {
        // A transport of the user's own is dropped with this.
        assert_unlocked();
        // A future that listens has nothing more to wait for.
        self.notify_listeners();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What every idle connection costs beside its handler's future, which holds the connection.
    #[test]
    #[cfg(all(target_os = "linux", target_pointer_width = "64"))]
    fn the_state_of_a_connection_is_small() {
        let size = size_of::<ConnectionState>();
        assert!(size <= 136, "{size}");
    }
}
